//! The one door to data: PromQL, LogQL and label searches over the seam `Shards`.
//!
//! parse → plan → ask the shards once per selector → evaluate. The evaluation itself does no I/O; it gives way to other
//! tasks now and then, and a query that nobody waits for any more ends there (drop the future to cancel).
//! Times are `TimestampNs`, taken at PromQL's resolution: whole milliseconds, rounded down.

use crate::shards::{Shards, ShardsError};
use crate::value::{Answer, LogsValue, Value};
use hindcast_model::{Class, Classify, Labels, Positions, ResourceId, SpanNs, TenantId, TimestampNs};
use hindcast_promql::ParseError;
use hindcast_storage::read::Direction;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The virtual label that holds the hex id of a series' owner, when `Options::owner_label` asks for it.
pub const OWNER_LABEL: &str = "__owner__";

/// Bounds of one query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Samples loaded and points computed.
    pub samples_max: usize,
    /// Points of one series in a range query.
    pub steps_max: usize,
    /// Series of one selector.
    pub series_max: usize,
    /// Bytes of an expression.
    pub expr_bytes_max: usize,
    /// Log lines of one answer.
    pub lines_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            samples_max: 50_000_000,
            steps_max: 11_000,
            series_max: 1_000_000,
            expr_bytes_max: 64 * 1024,
            lines_max: 100_000,
        }
    }
}

/// What a query may see, beside its text.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// How far back an instant looks for a sample; the instant that far back itself is out.
    pub lookback: SpanNs,
    /// A cut's positions; `None`: all that is known.
    pub as_of: Option<Positions>,
    /// Only data of these resources.
    pub owners: Option<BTreeSet<ResourceId>>,
    /// Adds the virtual label [`OWNER_LABEL`] to every selected series that has an owner.
    pub owner_label: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lookback: SpanNs::from_secs(300),
            as_of: None,
            owners: None,
            owner_label: false,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct InstantQuery {
    pub tenant: TenantId,
    pub expr: String,
    pub at: TimestampNs,
    pub options: Options,
}

#[derive(Clone, Debug, PartialEq)]
pub struct RangeQuery {
    pub tenant: TenantId,
    pub expr: String,
    pub start: TimestampNs,
    /// Included, when a step falls on it.
    pub end: TimestampNs,
    pub step: SpanNs,
    pub options: Options,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LogsQuery {
    pub tenant: TenantId,
    pub expr: String,
    /// Included.
    pub start: TimestampNs,
    /// Of lines: excluded. Of a metric expression: included.
    pub end: TimestampNs,
    /// Of a metric expression: `None` evaluates it once, at `end`. Lines need no step.
    pub step: Option<SpanNs>,
    pub limit: usize,
    pub direction: Direction,
    pub options: Options,
}

/// Which label sets exist.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelsQuery {
    pub tenant: TenantId,
    /// Log streams instead of series.
    pub streams: bool,
    /// Selectors; a set matches when any of them does. Empty: all.
    pub matching: Vec<String>,
    pub start: TimestampNs,
    pub end: TimestampNs,
}

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    #[error("{0}")]
    Parse(#[from] ParseError),
    /// A parameter beside the expression is wrong.
    #[error("{0}")]
    Parameter(String),
    /// The expression is well-formed, but has no value over this data.
    #[error("{0}")]
    Execution(String),
    #[error("the query needs more than {max} {what}; ask for less time, fewer series or a longer step")]
    TooLarge { what: &'static str, max: usize },
    #[error(transparent)]
    Shards(#[from] ShardsError),
}

impl Classify for QueryError {
    fn class(&self) -> Class {
        match self {
            Self::Parse(_) | Self::Parameter(_) | Self::Execution(_) => Class::FixRequest,
            Self::TooLarge { .. } => Class::TooLarge,
            Self::Shards(e) => e.class(),
        }
    }
}

/// Answers queries. Clones are not needed: share it in an `Arc`.
pub struct Engine {
    pub(crate) shards: Arc<dyn Shards>,
    pub(crate) limits: Limits,
}

impl Engine {
    pub fn new(shards: Arc<dyn Shards>, limits: Limits) -> Self {
        Self { shards, limits }
    }

    pub async fn instant(&self, q: &InstantQuery) -> Result<Answer<Value>, QueryError> {
        let _ = hindcast_promql::parse(&q.expr)?;
        Err(QueryError::Execution("no evaluator yet".to_owned()))
    }

    pub async fn range(&self, q: &RangeQuery) -> Result<Answer<Value>, QueryError> {
        let _ = hindcast_promql::parse(&q.expr)?;
        Err(QueryError::Execution("no evaluator yet".to_owned()))
    }

    pub async fn logs(&self, q: &LogsQuery) -> Result<Answer<LogsValue>, QueryError> {
        let _ = (&self.shards, &self.limits, q);
        Err(QueryError::Execution("no evaluator yet".to_owned()))
    }

    pub async fn series(&self, _q: &LabelsQuery) -> Result<Answer<Vec<Labels>>, QueryError> {
        Err(QueryError::Execution("no evaluator yet".to_owned()))
    }

    pub async fn label_names(&self, _q: &LabelsQuery) -> Result<Answer<Vec<String>>, QueryError> {
        Err(QueryError::Execution("no evaluator yet".to_owned()))
    }

    pub async fn label_values(&self, _q: &LabelsQuery, _name: &str) -> Result<Answer<Vec<String>>, QueryError> {
        Err(QueryError::Execution("no evaluator yet".to_owned()))
    }
}

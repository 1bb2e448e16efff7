//! LogQL: parser and line filters. Pure; no evaluation here.
//!
//! Here: stream selectors, line filters, range aggregations over lines (`rate`, `count_over_time`, `bytes_rate`,
//! `bytes_over_time`, `absent_over_time`), aggregations and operators over these. Deliberately absent, each with an
//! error that says so: parsers and label stages (`| json`), `unwrap`, pattern filters.
//!
//! Promises: any text either parses or is refused with the line and column of what is wrong; nothing panics; a tree has
//! at most [`NODES_MAX`] nodes.

mod filter;
mod parser;

pub use filter::{FilterOp, LineFilter};
use hindcast_model::Matcher;
pub use hindcast_promql::ParseError;
use hindcast_promql::{AggregateOp, BinaryOp, Grouping, Matching};
pub use parser::{NODES_MAX, parse, parse_selector};

#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    Lines(LogSelector),
    Metric(Metric),
}

/// Which lines: of which streams, and what the line must hold.
#[derive(Clone, Debug, PartialEq)]
pub struct LogSelector {
    pub matchers: Vec<Matcher>,
    /// All must pass.
    pub filters: Vec<LineFilter>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeFunction {
    Rate,
    CountOverTime,
    BytesRate,
    BytesOverTime,
    AbsentOverTime,
}

/// Numbers over time, computed from lines.
#[derive(Clone, Debug, PartialEq)]
pub enum Metric {
    Number(f64),
    /// `vector(1)`
    Vector(f64),
    Range {
        function: RangeFunction,
        lines: LogSelector,
        /// Left-open, right-closed.
        range_ms: i64,
        offset_ms: i64,
    },
    Aggregate {
        op: AggregateOp,
        grouping: Option<Grouping>,
        param: Option<f64>,
        inner: Box<Metric>,
    },
    Sorted {
        descending: bool,
        inner: Box<Metric>,
    },
    Binary {
        op: BinaryOp,
        lhs: Box<Metric>,
        rhs: Box<Metric>,
        as_bool: bool,
        matching: Option<Matching>,
    },
}

impl Metric {
    /// A number at every instant, with no labels.
    pub fn is_scalar(&self) -> bool {
        match self {
            Self::Number(_) => true,
            Self::Binary { lhs, rhs, .. } => lhs.is_scalar() && rhs.is_scalar(),
            Self::Vector(_) | Self::Range { .. } | Self::Aggregate { .. } | Self::Sorted { .. } => false,
        }
    }
}

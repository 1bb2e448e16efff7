//! The seam through which queries reach data, wherever it is. `ops/hindcast` ties it to the peer transport;
//! `testing::OneShard` and the simulator are the other implementations.

use hindcast_model::{Class, Classify, Labels, Matcher, Positions, ResourceId, TenantId, TimestampNs};
use hindcast_storage::logs::Filter;
use hindcast_storage::read::{Direction, SeriesData, StreamData};
use std::collections::BTreeSet;

/// Which samples, over all shards. `hindcast_storage::read::SelectSeries` with one commit position per shard.
#[derive(Clone, Debug)]
pub struct SeriesRequest {
    pub tenant: TenantId,
    pub matchers: Vec<Matcher>,
    pub from: TimestampNs,
    pub to: TimestampNs,
    /// A cut's positions; a shard that it does not name answers nothing. `None`: all that is known.
    pub as_of: Option<Positions>,
    pub owners: Option<BTreeSet<ResourceId>>,
}

#[derive(Clone, Debug)]
pub struct LinesRequest {
    pub tenant: TenantId,
    pub matchers: Vec<Matcher>,
    pub from: TimestampNs,
    pub to: TimestampNs,
    pub as_of: Option<Positions>,
    pub owners: Option<BTreeSet<ResourceId>>,
    /// Only lines that pass.
    pub filter: Filter,
    /// Over all shards.
    pub limit: Option<usize>,
    pub direction: Direction,
}

#[derive(Clone, Debug)]
pub struct LabelsRequest {
    pub tenant: TenantId,
    pub streams: bool,
    pub any_of: Vec<Vec<Matcher>>,
    pub from: TimestampNs,
    pub to: TimestampNs,
}

/// Whether an answer is whole, and what it had seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Completeness {
    /// What could not be asked, and why; empty: the answer is complete.
    pub missing: Vec<String>,
    /// Applied positions of the shards that answered.
    pub positions: Positions,
}

impl Completeness {
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }
    pub fn merge(&mut self, other: Self) {
        self.missing.extend(other.missing);
        for (group, index) in other.positions {
            let seen = self.positions.entry(group).or_insert(index);
            // Two reads of one query: the answer as a whole is only as new as the older one.
            *seen = (*seen).min(index);
        }
    }
}

/// Why no answer can be given at all. A shard that cannot be reached is no error: it makes the answer incomplete.
#[derive(Debug, thiserror::Error)]
pub enum ShardsError {
    #[error("{0}")]
    Refused(String),
    #[error("no shard could be asked: {0}")]
    Unavailable(String),
}

impl Classify for ShardsError {
    fn class(&self) -> Class {
        match self {
            Self::Refused(_) => Class::FixRequest,
            Self::Unavailable(_) => Class::Unavailable,
        }
    }
}

#[async_trait::async_trait]
pub trait Shards: Send + Sync {
    /// Sorted by (slot, fingerprint, labels): the order of summation. A label set occurs once per slot.
    async fn series(&self, request: SeriesRequest) -> Result<(Vec<SeriesData>, Completeness), ShardsError>;
    /// Sorted by (slot, fingerprint, labels).
    async fn lines(&self, request: LinesRequest) -> Result<(Vec<StreamData>, Completeness), ShardsError>;
    /// Sorted, each once.
    async fn label_sets(&self, request: LabelsRequest) -> Result<(Vec<Labels>, Completeness), ShardsError>;
    /// Every source of every shard has sent event time up to here (silent ones aside): rules wait for it.
    async fn complete_to(&self, tenant: &TenantId) -> Result<TimestampNs, ShardsError>;
}

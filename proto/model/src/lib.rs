//! The glossary as types: what every part of Hindcast means by a shard, a sample, a label or an error.
//!
//! Pure: no clock, no I/O, no randomness. Everything here is a value or a function of values.

pub mod batch;
pub mod class;
pub mod codec;
pub mod histogram;
pub mod ids;
pub mod labels;
pub mod limits;
pub mod matcher;
pub mod resource;
pub mod retention;
pub mod setting;
pub mod severity;
pub mod slot;
pub mod time;

pub use batch::{Batch, BatchId, LogLine, Sample, SeriesBlock, StreamBlock, WriterId};
pub use class::{Class, Classify};
pub use histogram::Histogram;
pub use ids::{CommitPosition, CutId, GroupId, IncidentId, NodeId, Positions, ShardId, TenantId, TicketId};
pub use labels::{Labels, METRIC_NAME};
pub use matcher::{MatchOp, Matcher, MatcherSet};
pub use resource::{Domain, Kind, Owner, Resource, ResourceId};
pub use retention::{Keeps, RetentionRule};
pub use severity::Severity;
pub use slot::{SLOTS, ShardMap, Slot};
pub use time::{SpanNs, TimestampNs};

/// The bits of Prometheus's staleness marker: a NaN that says "this series ended here".
///
/// Source: `prometheus/model/value`, `StaleNaN`.
pub const STALE_NAN_BITS: u64 = 0x7ff0_0000_0000_0002;

/// Whether `v` is the staleness marker, told by its bits: every other NaN is an ordinary value.
pub fn is_stale(v: f64) -> bool {
    v.to_bits() == STALE_NAN_BITS
}

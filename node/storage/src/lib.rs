//! One shard's samples and lines: head, immutable checksummed segments, recovery, retention, pins, cuts and reads.
//!
//! Pure core on `hindcast_env::Disk`: no clock, no thread, no socket. The Raft log is the write-ahead log; a shard
//! takes committed entries (`Shard`), answers reads of any thread (`ShardReader`), and tells up to where the log may
//! be cut. Times are `TimestampNs` (event time); positions are indexes of the shard's Raft group.
//!
//! Deliberately absent: quotas and ages of pins (the meta group decides), the dedup table (the caller's `aux` bytes),
//! repair (the node knows from here which files are damaged, and is sent a snapshot by a peer).

pub mod aggregate;
pub mod cardinality;
mod codec;
mod cold;
mod compaction;
mod container;
mod cursor;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod grain;
mod head;
pub mod index;
pub mod kernel;
pub mod logs;
mod manifest;
pub mod metric;
mod newest;
pub mod points;
pub mod read;
mod retention;
mod rollup;
pub mod rows;
mod segment;
mod shard;
mod verify;
mod view;
mod work;

pub use codec::{RawLine, put_metadata};
pub use cold::{Cold, ColdCounts, ColdDone, ColdJob, ColdReport, ColdRule};
pub use compaction::Effort;
pub use error::{Damage, ReadError, StorageError};
pub use retention::{Floor, Floors, Pin, Policy, Selector, TOPOLOGY_LABEL};
pub use shard::{
    CompactReport, Dropped, DroppedByRule, FlushReport, Opened, Shard, ShardConfig, ShardStats, check_export,
};
pub use verify::{FileCheck, ImmutableFile};
pub use view::{ShardReader, VisitedSeries, VisitedStream};
pub use work::{FlushDone, FlushWork, MergeDone, MergeWork, Merged};

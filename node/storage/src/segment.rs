//! The immutable files of a shard, whatever kind of rows they hold.

use crate::container::{FileKind, FileRef, Head};
use crate::error::{ReadError, StorageError};
use crate::{logs, metric};
use hindcast_env::Disk;
use serde::{Deserialize, Serialize};

/// How much work went into a file: what a flush writes fast, compaction makes small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Tier {
    Flush,
    Compacted,
}

/// A segment as the manifest names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRef {
    pub kind: FileKind,
    pub tier: Tier,
    pub file: FileRef,
}

pub enum Rows {
    Metric(Box<metric::Segment>),
    Log(logs::Segment),
}

/// An open segment.
pub struct Segment {
    pub head: Head,
    pub tier: Tier,
    pub file: FileRef,
    pub rows: Rows,
}

impl Segment {
    pub fn open(disk: &dyn Disk, dir: &str, named: &SegmentRef) -> Result<Self, StorageError> {
        Ok(match named.kind {
            FileKind::Metric => Self::of_metrics(metric::Segment::open(disk, dir, &named.file)?, named.tier),
            FileKind::Log => Self::of_lines(logs::Segment::open(disk, dir, &named.file)?, named.tier),
        })
    }

    pub fn of_metrics(rows: metric::Segment, tier: Tier) -> Self {
        Self {
            head: rows.head().clone(),
            tier,
            file: rows.file().clone(),
            rows: Rows::Metric(Box::new(rows)),
        }
    }

    pub fn of_lines(rows: logs::Segment, tier: Tier) -> Self {
        Self {
            head: rows.head().clone(),
            tier,
            file: rows.file().clone(),
            rows: Rows::Log(rows),
        }
    }

    pub fn named(&self) -> SegmentRef {
        SegmentRef {
            kind: self.head.kind,
            tier: self.tier,
            file: self.file.clone(),
        }
    }

    pub fn is_of_lines(&self) -> bool {
        matches!(self.rows, Rows::Log(_))
    }

    pub fn row_count(&self) -> u64 {
        match &self.rows {
            Rows::Metric(s) => s.rows(),
            Rows::Log(s) => s.rows(),
        }
    }

    pub fn ids(&self) -> Vec<u32> {
        match &self.rows {
            Rows::Metric(s) => s.series().map(|(id, _)| id).collect(),
            Rows::Log(s) => s.streams().collect(),
        }
    }

    pub fn metrics(&self) -> Option<&metric::Segment> {
        match &self.rows {
            Rows::Metric(s) => Some(s),
            Rows::Log(_) => None,
        }
    }

    pub fn lines(&self) -> Option<&logs::Segment> {
        match &self.rows {
            Rows::Log(s) => Some(s),
            Rows::Metric(_) => None,
        }
    }

    /// The file as a scrub reads it, at its own pace.
    pub fn immutable_file(&self) -> crate::verify::ImmutableFile {
        match &self.rows {
            Rows::Metric(s) => s.immutable_file(),
            Rows::Log(s) => s.immutable_file(),
        }
    }

    pub fn scrub(&self) -> Result<(), ReadError> {
        match &self.rows {
            Rows::Metric(s) => s.scrub(),
            Rows::Log(s) => s.scrub(),
        }
    }
}

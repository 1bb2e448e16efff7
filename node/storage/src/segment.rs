//! The immutable files of a shard, whatever kind of rows they hold.
//!
//! Windows (`aggregate`) are a metric segment whose header says how long they are, in its extra area: nothing there
//! means rows as they came.

use crate::aggregate::Resolution;
use crate::container::{Container, FileKind, FileRef, Head};
use crate::cursor::Bad;
use crate::error::{Damage, ReadError, StorageError};
use crate::{logs, metric};
use hindcast_env::{ColdRef, ColdTier, Disk};
use serde::{Deserialize, Serialize};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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
    /// Where the file is, if it is in the cold store and only its table is here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cold: Option<ColdRef>,
}

/// What a header's extra area says of rows of this resolution.
pub fn extra_of(resolution: Option<Resolution>) -> Vec<u8> {
    resolution.map(|r| r as u8).into_iter().collect()
}

fn resolution_in(kind: FileKind, extra: &[u8]) -> Result<Option<Resolution>, Bad> {
    match (kind, extra) {
        (_, []) => Ok(None),
        (FileKind::Metric, [r]) => {
            let known = Resolution::ALL.get(usize::from(*r)).copied();
            known.map(Some).ok_or("an unknown length of windows")
        }
        _ => Err("an unknown kind of rows"),
    }
}

/// Rows of a series or stream that lie together in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    pub first: i64,
    pub last: i64,
    pub rows: u64,
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
    /// Where it is, if not here.
    pub cold: Option<ColdRef>,
    resolution: Option<Resolution>,
    /// A merge met damage here: it is left alone, and readers of what is damaged are told.
    set_aside: AtomicBool,
    /// What a look at the whole file found.
    damage: OnceLock<Damage>,
    /// How much of it seemed to be needed when a rewrite had just left it. The page table tells that about: by the time
    /// that a page spans, of which a pin may hold a little with most of the rows.
    kept_when_rewritten: AtomicU64,
}

impl Segment {
    /// Never asks the cold store; a file that is there cannot be opened without one.
    pub fn open(disk: &dyn Disk, dir: &str, named: &SegmentRef, cold: Option<&ColdTier>) -> Result<Self, StorageError> {
        let (kind, file) = (named.kind, &named.file);
        let (container, table) = match (&named.cold, cold) {
            (None, _) => Container::open(disk, dir, kind, file)?,
            (Some(name), Some(tier)) => Container::open_cold(disk, dir, kind, file, (tier, name))?,
            (Some(name), None) => {
                return Err(StorageError::NoColdStore {
                    dir: dir.to_owned(),
                    name: name.name.clone(),
                });
            }
        };
        let mut segment = match kind {
            FileKind::Metric => Self::of_metrics(metric::Segment::new(container, &table)?, named.tier),
            FileKind::Log => Self::of_lines(logs::Segment::new(container, &table)?, named.tier),
        };
        segment.cold.clone_from(&named.cold);
        let known = resolution_in(segment.head.kind, &segment.head.extra);
        known.map_err(|why| segment.damage(format!("the header: {why}")))?;
        Ok(segment)
    }

    pub fn of_metrics(rows: metric::Segment, tier: Tier) -> Self {
        Self {
            head: rows.head().clone(),
            tier,
            file: rows.file().clone(),
            resolution: resolution_in(rows.head().kind, &rows.head().extra).unwrap_or_default(),
            rows: Rows::Metric(Box::new(rows)),
            cold: None,
            set_aside: AtomicBool::new(false),
            damage: OnceLock::new(),
            kept_when_rewritten: AtomicU64::new(u64::MAX),
        }
    }

    pub fn of_lines(rows: logs::Segment, tier: Tier) -> Self {
        Self {
            head: rows.head().clone(),
            tier,
            file: rows.file().clone(),
            resolution: resolution_in(rows.head().kind, &rows.head().extra).unwrap_or_default(),
            rows: Rows::Log(rows),
            cold: None,
            set_aside: AtomicBool::new(false),
            damage: OnceLock::new(),
            kept_when_rewritten: AtomicU64::new(u64::MAX),
        }
    }

    pub fn named(&self) -> SegmentRef {
        SegmentRef {
            kind: self.head.kind,
            tier: self.tier,
            file: self.file.clone(),
            cold: self.cold.clone(),
        }
    }

    pub fn container(&self) -> &Container {
        match &self.rows {
            Rows::Metric(s) => s.container(),
            Rows::Log(s) => s.container(),
        }
    }

    /// What damage found in it is told of.
    pub fn path(&self) -> &str {
        self.container().path()
    }

    /// Rows are columns of windows of this length. `None`: samples or lines as they came.
    pub fn resolution(&self) -> Option<Resolution> {
        self.resolution
    }

    pub fn set_aside(&self) {
        self.set_aside.store(true, Ordering::Relaxed);
    }

    pub fn is_set_aside(&self) -> bool {
        self.set_aside.load(Ordering::Relaxed)
    }

    /// The file itself is not what was written. The first finding stays.
    pub fn found(&self, damage: Damage) {
        let _ = self.damage.set(damage);
    }

    pub fn damage_found(&self) -> Option<&Damage> {
        self.damage.get()
    }

    /// A rewrite left it, and `kept` rows of it seem to be needed.
    pub fn rewritten(&self, kept: u64) {
        self.kept_when_rewritten.store(kept, Ordering::Relaxed);
    }

    /// Rows of which no more than half may seem to be needed before it is rewritten again; so that this ends.
    pub fn kept_when_rewritten(&self) -> u64 {
        self.kept_when_rewritten.load(Ordering::Relaxed)
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

    /// Where the rows of a series or stream lie, ascending by time.
    pub fn stretches(&self, id: u32) -> Vec<Stretch> {
        match &self.rows {
            Rows::Metric(s) => {
                let of = |page| {
                    let (first, last) = s.page_times(page);
                    let rows = s.page_rows(page) as u64;
                    Stretch { first, last, rows }
                };
                s.pages_of(id).map(of).collect()
            }
            Rows::Log(s) => {
                let of = |number| {
                    let info = s.info(number);
                    let (first, last, rows) = (info.first, info.last, u64::from(info.rows));
                    Stretch { first, last, rows }
                };
                s.blocks_of(id).map(of).collect()
            }
        }
    }

    /// What is wrong with the file as a whole.
    pub fn damage(&self, why: impl Into<String>) -> Damage {
        match &self.rows {
            Rows::Metric(s) => s.damage(why),
            Rows::Log(s) => s.damage(why),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_says_how_long_its_windows_are() {
        for resolution in [None, Some(Resolution::FiveMinutes), Some(Resolution::Hour)] {
            assert_eq!(resolution_in(FileKind::Metric, &extra_of(resolution)), Ok(resolution));
        }
        for (kind, extra) in [
            (FileKind::Metric, &[2][..]),
            (FileKind::Metric, &[0, 0]),
            (FileKind::Log, &[0]),
        ] {
            assert!(resolution_in(kind, extra).is_err(), "{kind:?} {extra:?}");
        }
    }
}

//! A group's log as the raft thread sees it: the tail in memory, older entries by their place on disk.
//!
//! The raft thread appends and truncates; the log thread adds where entries lie once they are written. Both hold
//! the lock for moments only.
//!
//! Invariants
//! - An entry leaves the memory only when its place is known, so every entry of the view can be read at any time.
//! - A place is taken over only for the very append that it was written for (`version`): an index may be replaced
//!   and come back while its first writing is still under way.

use crate::log::LogError;
use crate::record::{self, Scan};
use hindcast_env::ReadAt;
use hindcast_model::GroupId;
use parking_lot::{Mutex, RwLock};
use raft::eraftpb::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// A place in a log: index and term of the entry there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Point {
    pub index: u64,
    pub term: u64,
}

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loc {
    pub segment: u64,
    pub offset: u32,
    pub len: u32,
}

/// Open segments, for reading.
#[derive(Default)]
pub struct SegmentReaders(RwLock<BTreeMap<u64, Arc<dyn ReadAt>>>);

impl SegmentReaders {
    pub fn insert(&self, segment: u64, reader: Arc<dyn ReadAt>) {
        self.0.write().insert(segment, reader);
    }
    pub fn remove(&self, segment: u64) {
        self.0.write().remove(&segment);
    }
    pub fn contains(&self, segment: u64) -> bool {
        self.0.read().contains_key(&segment)
    }

    pub fn read(&self, group: GroupId, index: u64, term: u64, loc: Loc) -> Result<Entry, LogError> {
        let damaged = |why: &str| LogError::Damaged {
            path: format!("segment {:016x}", loc.segment),
            offset: u64::from(loc.offset),
            why: format!("entry {index} of group {group}: {why}"),
        };
        let reader = self.0.read().get(&loc.segment).cloned();
        let reader = reader.ok_or_else(|| damaged("the segment was freed"))?;
        let bytes = reader.read_at(u64::from(loc.offset), loc.len as usize)?;
        match record::scan(&bytes, 0, loc.segment) {
            Scan::Bad(why) => Err(damaged(why)),
            Scan::Record { body, payload, .. } if (body.group, body.index, body.term) == (group, index, term) => {
                record::read_entry(body, &payload).ok_or_else(|| damaged("it is not an entry"))
            }
            Scan::Record { .. } => Err(damaged("another record lies there")),
        }
    }
}

#[derive(Debug)]
struct Slot {
    term: u64,
    version: u64,
    bytes: u32,
    loc: Option<Loc>,
    entry: Option<Entry>,
}

pub struct LogView {
    group: GroupId,
    truncated: Point,
    slots: VecDeque<Slot>,
    /// Of all slots.
    bytes: u64,
    version: u64,
    readers: Arc<SegmentReaders>,
    /// Index of the first slot that may hold an entry in memory.
    cached_from: u64,
    cached_bytes: usize,
    cache_bytes_max: usize,
}

pub type SharedView = Arc<Mutex<LogView>>;

/// An entry that is not there.
#[derive(Debug)]
pub enum ViewError {
    Compacted,
    Unavailable,
    Log(LogError),
}

impl LogView {
    pub fn new(
        group: GroupId,
        truncated: Point,
        written: impl Iterator<Item = (u64, Loc)>,
        readers: Arc<SegmentReaders>,
        cache_bytes_max: usize,
    ) -> Self {
        let slots: VecDeque<_> = written
            .map(|(term, loc)| Slot {
                term,
                version: 0,
                bytes: loc.len,
                loc: Some(loc),
                entry: None,
            })
            .collect();
        Self {
            group,
            truncated,
            cached_from: truncated.index + 1 + slots.len() as u64,
            bytes: slots.iter().map(|s| u64::from(s.bytes)).sum(),
            slots,
            version: 0,
            readers,
            cached_bytes: 0,
            cache_bytes_max,
        }
    }

    pub fn first_index(&self) -> u64 {
        self.truncated.index + 1
    }

    pub fn last_index(&self) -> u64 {
        self.truncated.index + self.slots.len() as u64
    }

    pub fn truncated(&self) -> Point {
        self.truncated
    }

    pub fn term(&self, index: u64) -> Result<u64, ViewError> {
        if index == self.truncated.index {
            return Ok(self.truncated.term);
        }
        self.slot(index).map(|s| s.term)
    }

    fn slot(&self, index: u64) -> Result<&Slot, ViewError> {
        if index <= self.truncated.index {
            return Err(ViewError::Compacted);
        }
        let at = (index - self.truncated.index - 1) as usize;
        self.slots.get(at).ok_or(ViewError::Unavailable)
    }

    /// Entries `low..high`, at least one, then as many as fit into `bytes_max`.
    pub fn entries(&self, low: u64, high: u64, bytes_max: u64) -> Result<Vec<Entry>, ViewError> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        for index in low..high {
            let slot = self.slot(index)?;
            let entry = match (&slot.entry, slot.loc) {
                (Some(entry), _) => entry.clone(),
                (None, Some(loc)) => {
                    let read = self.readers.read(self.group, index, slot.term, loc);
                    read.map_err(ViewError::Log)?
                }
                (None, None) => unreachable!("an entry stays in memory until its place is known"),
            };
            bytes += entry_bytes(&entry) as u64;
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    /// Adds entries, replacing everything from the first one's index on. Returns the version to write them under.
    pub fn append(&mut self, entries: &[Entry]) -> u64 {
        self.version += 1;
        let Some(first) = entries.first() else {
            return self.version;
        };
        assert!(
            first.index > self.truncated.index && first.index <= self.last_index() + 1,
            "entry {} does not follow the log {}..={}",
            first.index,
            self.first_index(),
            self.last_index()
        );
        let kept = (first.index - self.truncated.index - 1) as usize;
        for gone in self.slots.drain(kept..) {
            self.cached_bytes -= gone.entry.as_ref().map_or(0, entry_bytes);
            self.bytes -= u64::from(gone.bytes);
        }
        self.cached_from = self.cached_from.min(first.index);
        for entry in entries {
            self.cached_bytes += entry_bytes(entry);
            self.bytes += entry_bytes(entry) as u64;
            self.slots.push_back(Slot {
                term: entry.term,
                version: self.version,
                bytes: entry_bytes(entry) as u32,
                loc: None,
                entry: Some(entry.clone()),
            });
        }
        self.version
    }

    pub fn located(&mut self, index: u64, version: u64, loc: Loc) {
        if let Some(slot) = self.slot_mut(index)
            && slot.version == version
        {
            slot.loc = Some(loc);
        }
        self.evict();
    }

    /// The record at `from` now lies at `to`.
    pub fn moved(&mut self, index: u64, from: Loc, to: Loc) {
        if let Some(slot) = self.slot_mut(index)
            && slot.loc == Some(from)
        {
            slot.loc = Some(to);
        }
    }

    fn slot_mut(&mut self, index: u64) -> Option<&mut Slot> {
        let at = index.checked_sub(self.truncated.index + 1)?;
        self.slots.get_mut(at as usize)
    }

    fn evict(&mut self) {
        while self.cached_bytes > self.cache_bytes_max && self.cached_from <= self.last_index() {
            let at = self.cached_from.saturating_sub(self.truncated.index + 1) as usize;
            let slot = &mut self.slots[at];
            if slot.entry.is_some() && slot.loc.is_none() {
                return;
            }
            self.cached_bytes -= slot.entry.take().as_ref().map_or(0, entry_bytes);
            self.cached_from = self.truncated.index + 1 + at as u64 + 1;
        }
    }

    /// Nobody is waiting for the entries up to `index`: they leave memory, as far as they are written. Who asks after all
    /// reads the file.
    pub fn release(&mut self, index: u64) {
        while self.cached_from <= index.min(self.last_index()) {
            let at = self.cached_from.saturating_sub(self.truncated.index + 1) as usize;
            let slot = &mut self.slots[at];
            if slot.entry.is_some() && slot.loc.is_none() {
                return;
            }
            self.cached_bytes -= slot.entry.take().as_ref().map_or(0, entry_bytes);
            self.cached_from = self.truncated.index + 1 + at as u64 + 1;
        }
    }

    /// Forgets entries up to `index`; returns the new start. Nothing happens when that is not within the log.
    pub fn truncate(&mut self, index: u64) -> Option<Point> {
        let term = self.term(index).ok()?;
        if index <= self.truncated.index {
            return None;
        }
        for gone in self.slots.drain(..(index - self.truncated.index) as usize) {
            self.cached_bytes -= gone.entry.as_ref().map_or(0, entry_bytes);
            self.bytes -= u64::from(gone.bytes);
        }
        self.truncated = Point { index, term };
        self.cached_from = self.cached_from.max(index + 1);
        Some(self.truncated)
    }

    /// A snapshot took the place of everything.
    pub fn reset(&mut self, at: Point) {
        self.version += 1;
        self.slots.clear();
        self.bytes = 0;
        self.cached_bytes = 0;
        self.truncated = at;
        self.cached_from = at.index + 1;
    }

    /// The highest index up to `limit` whose entries can go while at least `tail_bytes` stay.
    pub fn excess(&self, limit: u64, tail_bytes: u64) -> Option<u64> {
        let mut left = self.bytes;
        let mut found = None;
        let within = limit.saturating_sub(self.truncated.index) as usize;
        for (n, slot) in self.slots.iter().take(within).enumerate() {
            left -= u64::from(slot.bytes);
            if left < tail_bytes {
                break;
            }
            found = Some(self.truncated.index + 1 + n as u64);
        }
        found
    }

    /// About how many bytes the entries take in the log.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

fn entry_bytes(entry: &Entry) -> usize {
    const FRAME: usize = 64;
    entry.data.len() + entry.context.len() + FRAME
}

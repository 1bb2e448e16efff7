//! The Raft log of all groups of a node: segments on disk, one fdatasync per round. Layout: `FORMAT.md`.
//!
//! Owned by the log thread; pure over `Disk`. What the raft thread reads goes through `LogView`.
//!
//! Invariants
//! - What `commit(sync: true)` has confirmed is there after any crash, or `open` names the place of the damage.
//! - A torn tail of the last segment is cut, without a word: nothing in it was confirmed. A bad record before a
//!   place that a later record knows to be synced, or in any older segment, is damage and never cut.
//! - Segments are freed oldest first only: a cut of a group's tail must not outlive the entries that it cut.
//! - Each group is recovered by itself: after a crash one may have its part of the last round and another not.

use crate::log_view::{Loc, LogView, Point, SegmentReaders, SharedView};
use crate::record::{self, ALIGN_BYTES, Body, END_BYTES, HEADER_BYTES, Kind, RECORD_BYTES_MIN, Scan};
use bytes::Bytes;
use hindcast_env::buggify::{Point as Rare, buggify};
use hindcast_env::disk::{Disk, DiskError, DiskFile, make_dir};
use hindcast_env::reached::{Mark, reached};
use hindcast_model::GroupId;
use parking_lot::Mutex;
use raft::eraftpb::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

#[derive(Clone, Debug)]
pub struct LogConfig {
    pub segment_bytes_max: u64,
    /// A new segment grows by zeros in such steps, so that records overwrite blocks that exist.
    pub prewrite_bytes: u64,
    /// Segments kept for recycling; more are removed.
    pub free_segments_max: usize,
    /// With more segments in use, live entries of the oldest are copied to the head.
    pub segments_max: usize,
    /// Entries kept in memory per group.
    pub cache_bytes_max: usize,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            segment_bytes_max: 64 << 20,
            prewrite_bytes: 4 << 20,
            free_segments_max: 4,
            segments_max: 12,
            cache_bytes_max: 8 << 20,
        }
    }
}

/// Why the log cannot be opened or written. All of these end the process: the log is what acks rest on.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(
        "the Raft log is damaged at byte {offset} of {path}: {why}; \
         restore this node from a peer under a new id, or from a backup"
    )]
    Damaged { path: String, offset: u64, why: String },
    #[error("the Raft log lacks entry {index} of group {group}, between entries that are there")]
    Gap { group: GroupId, index: u64 },
}

/// Term, vote and commit index: what raft calls its hard state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    pub term: u64,
    pub vote: u64,
    pub commit: u64,
}

/// Where a snapshot stands, and the voters as of then (encoded by the driver).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotPoint {
    pub at: Point,
    pub conf: Bytes,
}

/// One change of a group's log.
#[derive(Clone, Debug)]
pub enum LogWrite {
    /// Replaces everything from the first one's index on. `version`: of the view that holds them.
    Entries {
        version: u64,
        entries: Vec<Entry>,
    },
    HardState(HardState),
    /// The members as of an applied index, at or before every index that the log is needed from.
    Conf(SnapshotPoint),
    /// A snapshot is about to replace the machine's state.
    Announce(SnapshotPoint),
    /// It has: the log starts anew behind it.
    Reset(SnapshotPoint),
    /// Entries up to here are no longer needed.
    Truncate(Point),
}

/// What is known of a group after open.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    pub hard: HardState,
    /// Whether a hard state was ever written: a copy that took part has one.
    pub has_hard: bool,
    pub conf: Option<Bytes>,
    /// The index that `conf` is as of.
    pub conf_index: u64,
    /// Indices of the entries that change members, ascending.
    pub changes: Vec<u64>,
    pub announced: Option<SnapshotPoint>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    term: u64,
    loc: Loc,
}

#[derive(Default)]
struct Group {
    hard: Option<HardState>,
    conf: Option<(u64, Bytes)>,
    /// Of the entries found at open, those that change members.
    changes: Vec<u64>,
    announced: Option<SnapshotPoint>,
    truncated: Point,
    /// Of the entries after `truncated`, as written (the view may be ahead).
    slots: VecDeque<Slot>,
    view: Option<SharedView>,
}

struct Head {
    id: u64,
    file: Box<dyn DiskFile>,
    /// Where the next record goes, after what waits in `buffer`.
    offset: u64,
    synced: u64,
    prewritten: u64,
}

pub struct LogStore {
    disk: Arc<dyn Disk>,
    dir: String,
    config: LogConfig,
    readers: Arc<SegmentReaders>,
    head: Head,
    /// Records of this round for the head segment, not yet handed to the disk.
    buffer: Vec<u8>,
    /// An entry's payload, and what a segment grows by: kept, so that no round clears memory anew.
    payload: Vec<u8>,
    zeros: Vec<u8>,
    /// Bytes of live entries per segment in use, the head included.
    live: BTreeMap<u64, u64>,
    free: Vec<String>,
    groups: BTreeMap<GroupId, Group>,
    /// Views are told where their entries lie once the bytes are written.
    located: Vec<(GroupId, u64, u64, Loc)>,
}

impl LogStore {
    /// Opens or creates the log in `dir`.
    pub fn open(disk: Arc<dyn Disk>, dir: &str, config: LogConfig) -> Result<Self, LogError> {
        make_dir(disk.as_ref(), dir)?;
        // A process that was killed may have left names, and bytes, that are nowhere but in the kernel's memory.
        disk.sync_dir(dir)?;
        let mut free = Vec::new();
        let mut ids = Vec::new();
        let mut freed = 0;
        for name in disk.list(dir)? {
            match parse_name(&name) {
                Some(Name::Segment(id)) => ids.push(id),
                Some(Name::Free(id)) => {
                    freed = freed.max(id);
                    free.push(name);
                }
                None => {}
            }
        }
        ids.sort_unstable();
        let readers = Arc::new(SegmentReaders::default());
        let mut groups = BTreeMap::new();
        // Never one of before, also where only files to be used again are left: what they hold would be taken for its records. Where a
        // segment is, the next one must follow it; all that are freed are older, or were never used.
        let mut next_id = ids.last().copied().unwrap_or(freed).saturating_add(1);
        let mut head = None;
        for (n, &id) in ids.iter().enumerate() {
            let path = format!("{dir}/{}", segment_name(id));
            let bytes = disk.read(&path)?;
            let last = n + 1 == ids.len();
            if n > 0 && ids[n - 1] + 1 != id {
                let why = "the segment before it is missing".to_owned();
                return Err(LogError::Damaged { path, offset: 0, why });
            }
            if !record::header_is_of(&bytes, id) {
                if !last || record::beyond(&bytes, 0, id).record {
                    let why = "the segment header does not verify".to_owned();
                    return Err(LogError::Damaged { path, offset: 0, why });
                }
                // Renamed but never used: its header is synced before its first record.
                let name = free_name(id);
                disk.rename(&path, &format!("{dir}/{name}"))?;
                free.push(name);
                next_id = id;
                break;
            }
            let end = recover_segment(&path, &bytes, id, last, &mut groups)?;
            readers.insert(id, disk.open_read(&path)?);
            if last && end.sealed {
                // Nobody writes to it again: what it says must not wait for a sync that never comes.
                disk.open_write(&path)?.sync()?;
            } else if last {
                let mut file = disk.open_write(&path)?;
                if end.remains {
                    reached(Mark::TornRound);
                    seal(file.as_mut(), id, end.offset)?;
                    continue;
                }
                head = Some(Head {
                    id,
                    file,
                    offset: end.offset,
                    synced: end.offset,
                    prewritten: bytes.len() as u64,
                });
            }
        }
        let mut live: BTreeMap<u64, u64> = ids.iter().map(|&id| (id, 0)).collect();
        let groups = settle_groups(groups, &mut live)?;
        let head = match head {
            Some(head) => head,
            None => new_segment(disk.as_ref(), dir, next_id, &mut free)?,
        };
        readers.insert(head.id, disk.open_read(&format!("{dir}/{}", segment_name(head.id)))?);
        live.retain(|id, _| readers.contains(*id));
        live.entry(head.id).or_insert(0);
        let mut store = Self {
            disk,
            dir: dir.to_owned(),
            config,
            readers,
            head,
            buffer: Vec::new(),
            payload: Vec::new(),
            zeros: Vec::new(),
            live,
            free,
            groups,
            located: Vec::new(),
        };
        store.buffer_meta();
        store.commit(true)?;
        store.drop_spare()?;
        Ok(store)
    }

    /// Whether there is any; files that wait to be used again are none.
    pub fn has_segments(disk: &dyn Disk, dir: &str) -> Result<bool, DiskError> {
        let names = disk.list(dir)?;
        Ok(names.iter().any(|n| matches!(parse_name(n), Some(Name::Segment(_)))))
    }

    pub fn groups(&self) -> Vec<GroupId> {
        self.groups.keys().copied().collect()
    }

    pub fn recovered(&self, group: GroupId) -> Recovered {
        let Some(g) = self.groups.get(&group) else {
            return Recovered::default();
        };
        Recovered {
            hard: g.hard.unwrap_or_default(),
            has_hard: g.hard.is_some(),
            conf: g.conf.as_ref().map(|(_, conf)| conf.clone()),
            conf_index: g.conf.as_ref().map_or(0, |(index, _)| *index),
            changes: g.changes.clone(),
            announced: g.announced.clone(),
        }
    }

    /// What the raft thread reads the group's log through. One per group.
    pub fn view(&mut self, group: GroupId) -> SharedView {
        let cache_bytes_max = self.config.cache_bytes_max;
        let g = self.groups.entry(group).or_default();
        let slots = g.slots.iter().map(|s| (s.term, s.loc));
        let view = LogView::new(group, g.truncated, slots, self.readers.clone(), cache_bytes_max);
        let view = Arc::new(Mutex::new(view));
        g.view = Some(view.clone());
        view
    }

    /// Bytes of all segments in use.
    pub fn bytes(&self) -> u64 {
        self.live.len() as u64 * self.config.segment_bytes_max
    }

    pub fn segments(&self) -> usize {
        self.live.len()
    }

    /// Adds to the round. Nothing is on disk before `commit`.
    pub fn write(&mut self, group: GroupId, write: LogWrite) -> Result<(), LogError> {
        match write {
            LogWrite::Entries { version, entries } => {
                let mut payload = std::mem::take(&mut self.payload);
                for entry in &entries {
                    record::entry_payload(entry, &mut payload);
                    let loc = self.push(Kind::Entry, group, entry.index, entry.term, &payload)?;
                    self.place(group, entry.index, entry.term, loc);
                    self.located.push((group, entry.index, version, loc));
                }
                self.payload = payload;
            }
            LogWrite::HardState(hard) => {
                self.groups.entry(group).or_default().hard = Some(hard);
                self.push(Kind::HardState, group, hard.commit, hard.term, &hard.vote.to_le_bytes())?;
            }
            LogWrite::Conf(SnapshotPoint { at, conf }) => {
                self.groups.entry(group).or_default().conf = Some((at.index, conf.clone()));
                self.push(Kind::Conf, group, at.index, at.term, &conf)?;
            }
            LogWrite::Announce(point) => {
                self.push(Kind::Announce, group, point.at.index, point.at.term, &point.conf)?;
                self.groups.entry(group).or_default().announced = Some(point);
            }
            LogWrite::Reset(SnapshotPoint { at, conf }) => {
                self.push(Kind::Reset, group, at.index, at.term, &conf)?;
                let g = self.groups.entry(group).or_default();
                forget(&mut self.live, g.slots.drain(..));
                (g.truncated, g.conf, g.announced) = (at, Some((at.index, conf)), None);
            }
            LogWrite::Truncate(to) => {
                let g = self.groups.entry(group).or_default();
                if to.index <= g.truncated.index {
                    return Ok(());
                }
                let gone = (to.index - g.truncated.index).min(g.slots.len() as u64) as usize;
                forget(&mut self.live, g.slots.drain(..gone));
                g.truncated = to;
                self.push(Kind::Truncate, group, to.index, to.term, &[])?;
            }
        }
        Ok(())
    }

    /// Ends the round: everything written goes to the disk, and to the platter if `sync`.
    pub fn commit(&mut self, sync: bool) -> Result<(), LogError> {
        self.flush()?;
        if sync && self.head.synced < self.head.offset {
            self.head.file.sync()?;
            self.head.synced = self.head.offset;
        }
        for (group, index, version, loc) in self.located.drain(..) {
            if let Some(view) = self.groups.get(&group).and_then(|g| g.view.as_ref()) {
                view.lock().located(index, version, loc);
            }
        }
        Ok(())
    }

    /// Frees segments that no group needs. Call between rounds, often.
    ///
    /// When there are too many although less than half of their bytes is live, a lagging group pins the oldest one:
    /// its live entries are copied to the head, one segment per call.
    pub fn reclaim(&mut self) -> Result<(), LogError> {
        let live_bytes: u64 = self.live.values().sum();
        let worth = live_bytes * 2 <= self.bytes();
        if self.live.len() > self.config.segments_max.max(2)
            && worth
            && let Some((&oldest, &live)) = self.live.iter().next()
            && live > 0
        {
            self.copy_forward(oldest)?;
        }
        while self.live.len() > 1 && self.live.values().next() == Some(&0) {
            self.free_oldest()?;
        }
        Ok(())
    }

    fn free_oldest(&mut self) -> Result<(), LogError> {
        let Some((&id, &live)) = self.live.iter().next() else {
            return Ok(());
        };
        if live > 0 || id == self.head.id {
            return Ok(());
        }
        // The records that made it needless (truncations, copies, the meta rows at the head's start) come first.
        self.commit(true)?;
        let (from, name) = (format!("{}/{}", self.dir, segment_name(id)), free_name(id));
        self.disk.rename(&from, &format!("{}/{name}", self.dir))?;
        self.disk.sync_dir(&self.dir)?;
        self.readers.remove(id);
        self.live.remove(&id);
        self.free.push(name);
        self.drop_spare()
    }

    fn drop_spare(&mut self) -> Result<(), LogError> {
        while self.free.len() > self.config.free_segments_max {
            if let Some(name) = self.free.pop() {
                self.disk.remove(&format!("{}/{name}", self.dir))?;
            }
        }
        Ok(())
    }

    fn copy_forward(&mut self, segment: u64) -> Result<(), LogError> {
        let groups: Vec<_> = self.groups.keys().copied().collect();
        for group in groups {
            let g = &self.groups[&group];
            let first = g.truncated.index + 1;
            let pinned = g.slots.iter().enumerate().filter(|(_, s)| s.loc.segment == segment);
            let pinned: Vec<_> = pinned.map(|(n, s)| (first + n as u64, *s)).collect();
            for (index, slot) in pinned {
                reached(Mark::LogCopiedForward);
                let entry = self.readers.read(group, index, slot.term, slot.loc)?;
                let mut payload = vec![];
                record::entry_payload(&entry, &mut payload);
                let loc = self.push(Kind::Copy, group, index, slot.term, &payload)?;
                let g = self.groups.get_mut(&group).expect("listed above");
                let at = (index - g.truncated.index - 1) as usize;
                forget(&mut self.live, [g.slots[at]]);
                g.slots[at].loc = loc;
                *self.live.entry(loc.segment).or_insert(0) += u64::from(loc.len);
                if let Some(view) = &g.view {
                    // The bytes must be readable before anyone is sent there.
                    let view = view.clone();
                    self.flush()?;
                    view.lock().moved(index, slot.loc, loc);
                }
            }
        }
        self.commit(true)
    }

    /// Puts an entry into the group's table, cutting what it replaces.
    fn place(&mut self, group: GroupId, index: u64, term: u64, loc: Loc) {
        let g = self.groups.entry(group).or_default();
        let first = g.truncated.index + 1;
        assert!(
            index >= first && index <= first + g.slots.len() as u64,
            "entry {index} of group {group} does not follow the log of {first}..{}",
            first + g.slots.len() as u64
        );
        forget(&mut self.live, g.slots.drain((index - first) as usize..));
        g.slots.push_back(Slot { term, loc });
        *self.live.entry(loc.segment).or_insert(0) += u64::from(loc.len);
    }

    fn push(&mut self, kind: Kind, group: GroupId, index: u64, term: u64, payload: &[u8]) -> Result<Loc, LogError> {
        let len = (RECORD_BYTES_MIN + payload.len()).next_multiple_of(ALIGN_BYTES) as u64;
        let is_full = self.head.offset + len + END_BYTES as u64 > self.config.segment_bytes_max;
        if (is_full || buggify(Rare::ShortSegment)) && self.head.offset > HEADER_BYTES as u64 {
            self.roll()?;
        }
        Ok(self.push_here(kind, group, index, term, payload))
    }

    fn push_here(&mut self, kind: Kind, group: GroupId, index: u64, term: u64, payload: &[u8]) -> Loc {
        let offset = self.head.offset;
        let before = self.buffer.len();
        let body = Body {
            kind,
            group,
            index,
            term,
        };
        record::encode(&mut self.buffer, self.head.id, self.head.synced, body, payload);
        self.head.offset += (self.buffer.len() - before) as u64;
        let len = RECORD_BYTES_MIN + payload.len();
        Loc {
            segment: self.head.id,
            offset: u32::try_from(offset).expect("segments are smaller than 4 GiB"),
            len: u32::try_from(len).expect("records are smaller than 4 GiB"),
        }
    }

    /// Seals the head and starts the next segment with what is known of every group.
    fn roll(&mut self) -> Result<(), LogError> {
        self.push_here(Kind::End, GroupId(0), 0, 0, &[]);
        self.flush()?;
        self.head.file.sync()?;
        self.head = new_segment(self.disk.as_ref(), &self.dir, self.head.id + 1, &mut self.free)?;
        let path = format!("{}/{}", self.dir, segment_name(self.head.id));
        self.readers.insert(self.head.id, self.disk.open_read(&path)?);
        self.live.insert(self.head.id, 0);
        self.buffer_meta();
        Ok(())
    }

    /// Hard state, truncation and voters of all groups, so that older segments are needed for entries only.
    fn buffer_meta(&mut self) {
        let groups = std::mem::take(&mut self.groups);
        for (&group, g) in &groups {
            self.push_here(Kind::Truncate, group, g.truncated.index, g.truncated.term, &[]);
            if let Some(h) = g.hard {
                self.push_here(Kind::HardState, group, h.commit, h.term, &h.vote.to_le_bytes());
            }
            if let Some((index, conf)) = &g.conf {
                self.push_here(Kind::Conf, group, *index, 0, conf);
            }
            if let Some(a) = &g.announced {
                self.push_here(Kind::Announce, group, a.at.index, a.at.term, &a.conf);
            }
        }
        self.groups = groups;
    }

    fn flush(&mut self) -> Result<(), LogError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let start = self.head.offset - self.buffer.len() as u64;
        while self.head.prewritten < self.head.offset {
            let end = (self.head.prewritten + self.config.prewrite_bytes).min(self.config.segment_bytes_max);
            let end = end.max(self.head.offset);
            let len = (end - self.head.prewritten) as usize;
            if self.zeros.len() < len {
                self.zeros.resize(len, 0);
            }
            self.head.file.write_at(self.head.prewritten, &self.zeros[..len])?;
            self.head.prewritten = end;
        }
        self.head.file.write_at(start, &self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

fn forget(live: &mut BTreeMap<u64, u64>, slots: impl IntoIterator<Item = Slot>) {
    for slot in slots {
        let count = live
            .get_mut(&slot.loc.segment)
            .expect("a live entry's segment is in use");
        *count -= u64::from(slot.loc.len);
    }
}

/// After a torn round, records of this segment may lie behind the cut; a full segment is never read beyond its end.
fn seal(file: &mut dyn DiskFile, id: u64, offset: u64) -> Result<(), LogError> {
    let mut end = Vec::new();
    let body = Body {
        kind: Kind::End,
        group: GroupId(0),
        index: 0,
        term: 0,
    };
    record::encode(&mut end, id, offset, body, &[]);
    file.write_at(offset, &end)?;
    Ok(file.sync()?)
}

enum Name {
    Segment(u64),
    Free(u64),
}

fn segment_name(id: u64) -> String {
    format!("{id:016x}.log")
}

fn free_name(id: u64) -> String {
    format!("{id:016x}.free")
}

fn parse_name(name: &str) -> Option<Name> {
    if let Some(id) = name.strip_suffix(".free") {
        // What another program put there has no number, and is used like the rest.
        return Some(Name::Free(u64::from_str_radix(id, 16).unwrap_or(0)));
    }
    let id = u64::from_str_radix(name.strip_suffix(".log")?, 16).ok()?;
    Some(Name::Segment(id))
}

fn new_segment(disk: &dyn Disk, dir: &str, id: u64, free: &mut Vec<String>) -> Result<Head, LogError> {
    let path = format!("{dir}/{}", segment_name(id));
    let (mut file, prewritten) = match free.pop() {
        Some(name) => {
            disk.rename(&format!("{dir}/{name}"), &path)?;
            let file = disk.open_write(&path)?;
            let len = file.len()?;
            (file, len)
        }
        None => (disk.create(&path)?, 0),
    };
    file.write_at(0, &record::header(id))?;
    file.sync()?;
    disk.sync_dir(dir)?;
    Ok(Head {
        id,
        file,
        offset: HEADER_BYTES as u64,
        synced: HEADER_BYTES as u64,
        prewritten: prewritten.max(HEADER_BYTES as u64),
    })
}

#[derive(Default)]
struct Recovering {
    group: Group,
    entries: BTreeMap<u64, Slot>,
    /// Of the entries, those that change members.
    changes: BTreeSet<u64>,
}

struct SegmentEnd {
    offset: u64,
    sealed: bool,
    /// Bytes behind the end name this segment.
    remains: bool,
}

fn recover_segment(
    path: &str,
    bytes: &Bytes,
    id: u64,
    last: bool,
    groups: &mut BTreeMap<GroupId, Recovering>,
) -> Result<SegmentEnd, LogError> {
    let mut offset = HEADER_BYTES;
    let damaged = |offset: usize, why: String| LogError::Damaged {
        path: path.to_owned(),
        offset: offset as u64,
        why,
    };
    loop {
        match record::scan(bytes, offset, id) {
            Scan::Record { body, payload, len } => {
                if body.kind == Kind::End {
                    return Ok(SegmentEnd {
                        offset: (offset + len) as u64,
                        sealed: true,
                        remains: false,
                    });
                }
                let loc = Loc {
                    segment: id,
                    offset: offset as u32,
                    len: len as u32,
                };
                replay(groups, body, &payload, loc).map_err(|why| damaged(offset, why))?;
                offset += len.next_multiple_of(ALIGN_BYTES);
            }
            Scan::Bad(why) => {
                let beyond = record::beyond(bytes, offset, id);
                if !last || beyond.synced {
                    return Err(damaged(offset, why.to_owned()));
                }
                return Ok(SegmentEnd {
                    offset: offset as u64,
                    sealed: false,
                    remains: beyond.remains,
                });
            }
        }
    }
}

fn replay(groups: &mut BTreeMap<GroupId, Recovering>, body: Body, payload: &Bytes, loc: Loc) -> Result<(), String> {
    let r = groups.entry(body.group).or_default();
    let at = Point {
        index: body.index,
        term: body.term,
    };
    let slot = Slot { term: body.term, loc };
    match body.kind {
        Kind::Entry => {
            r.entries.split_off(&body.index);
            r.changes.split_off(&body.index);
            r.entries.insert(body.index, slot);
            if record::changes_members(payload) {
                r.changes.insert(body.index);
            }
        }
        Kind::Copy => {
            r.entries.insert(body.index, slot);
            if record::changes_members(payload) {
                r.changes.insert(body.index);
            }
        }
        Kind::HardState => {
            let vote = payload
                .as_ref()
                .try_into()
                .map_err(|_| "a hard state without a vote".to_owned())?;
            r.group.hard = Some(HardState {
                term: body.term,
                vote: u64::from_le_bytes(vote),
                commit: body.index,
            });
        }
        Kind::Truncate => {
            if at.index >= r.group.truncated.index {
                r.group.truncated = at;
                r.entries = r.entries.split_off(&(at.index + 1));
            }
        }
        Kind::Conf => r.group.conf = Some((at.index, payload.clone())),
        Kind::Announce => {
            let conf = payload.clone();
            r.group.announced = Some(SnapshotPoint { at, conf });
        }
        Kind::Reset => {
            r.entries.clear();
            r.changes.clear();
            r.group.truncated = at;
            r.group.conf = Some((at.index, payload.clone()));
            r.group.announced = None;
        }
        Kind::End => unreachable!("handled by the caller"),
    }
    Ok(())
}

fn settle_groups(
    groups: BTreeMap<GroupId, Recovering>,
    live: &mut BTreeMap<u64, u64>,
) -> Result<BTreeMap<GroupId, Group>, LogError> {
    let mut settled = BTreeMap::new();
    for (id, mut r) in groups {
        let first = r.group.truncated.index + 1;
        for (next, (index, slot)) in (first..).zip(r.entries.split_off(&first)) {
            if index != next {
                return Err(LogError::Gap { group: id, index: next });
            }
            *live.entry(slot.loc.segment).or_insert(0) += u64::from(slot.loc.len);
            r.group.slots.push_back(slot);
        }
        r.group.changes = r.changes.split_off(&first).into_iter().collect();
        settled.insert(id, r.group);
    }
    Ok(settled)
}

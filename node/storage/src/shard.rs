//! One shard's data, as its only writer sees it: entries in, segments out, and back again after a crash.
//!
//! The Raft log is the write-ahead log: what is not flushed yet comes again from there, from `durable` on.
//! Flush and compaction are each replica's own business and change no answer; floors, pins and cuts are entries.
//!
//! Invariants
//! - A failed operation leaves the state, in memory and on disk, as it was before; trying again takes new files.
//! - What is on disk is of one moment: rows, floors, pins, cuts and the caller's bytes at `durable`.
//! - Rows go only when no reader could ever see them again, or a later commit in the same segment overwrote them.

use crate::aggregate::{COLUMNS, COUNT, STALE_AT, series_of};
use crate::codec::{RawLine, put_metadata};
use crate::cold::{self, Cold, ColdCounts, ColdDone, ColdJob, ColdReport, Ledger};
use crate::compaction::{self, Effort, LetGo};
use crate::container;
use crate::error::{Damage, StorageError};
use crate::head::{self, Head, Unpacker};
use crate::index::{Directory, Series};
use crate::manifest::{self, Manifest, Side};
use crate::newest;
use crate::points::Points;
use crate::retention::{Floor, Pin, Retention};
use crate::rollup::Sources;
use crate::rows::{Rows, Run};
use crate::segment::{Segment, SegmentRef, Tier};
use crate::view::{ShardReader, State};
use crate::work::{
    FlushDone, FlushWork, Made, MergeDone, MergeWork, Merged, Numbers, Seen, SideBytes, Sides, check_room, write_heads,
};
use crate::{logs, metric};
use hindcast_env::disk::make_dir;
use hindcast_env::reached::{Mark, reached};
use hindcast_env::{ColdTier, Disk};
use hindcast_model::{Domain, GroupId, Labels, Owner, SeriesBlock, SpanNs, StreamBlock, TenantId, TimestampNs};
use parking_lot::RwLock;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How a shard keeps its files. All bounds are this node's own business.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Counts commit positions; files of another group are refused.
    pub group: GroupId,
    /// Heads want to be flushed when they hold this much, or when the log brought this much since the last flush: what
    /// a restart reads again.
    pub flush_bytes_max: usize,
    /// What is not durable for this long wants to be flushed.
    pub flush_age_max: SpanNs,
    /// Fewest segments worth a merge.
    pub compact_segments_min: usize,
    /// Most segments of one merge.
    pub compact_segments_max: usize,
    /// Most bytes of one merge, so that it ends soon.
    pub compact_bytes_max: u64,
    /// Merges leave so much of the disk free.
    pub reserve_bytes: u64,
    /// Where old files go.
    pub cold: Option<Cold>,
}

impl ShardConfig {
    fn tier(&self) -> Option<&ColdTier> {
        self.cold.as_ref().map(|c| &c.tier)
    }
}

impl Default for ShardConfig {
    fn default() -> Self {
        Self {
            group: GroupId(1),
            flush_bytes_max: 128 << 20,
            flush_age_max: SpanNs::from_secs(2 * 3600),
            compact_segments_min: 4,
            compact_segments_max: 16,
            compact_bytes_max: 256 << 20,
            reserve_bytes: 0,
            cold: None,
        }
    }
}

/// Where the log continues, and what the caller had stored with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    pub applied: u64,
    /// The bytes given to the last flush.
    pub aux: Vec<u8>,
    /// The newest manifest was damaged and the one before is in force: `applied` went back. When the log no longer
    /// reaches back that far, the replica must be rebuilt from a peer.
    pub fell_back: Option<Damage>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlushReport {
    pub applied: u64,
    pub segments: usize,
    pub bytes: u64,
    pub rows: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactReport {
    pub segments_in: usize,
    /// 0 when no row was left.
    pub segments_out: usize,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub rows_in: u64,
    pub rows_out: u64,
    /// Segments written anew by themselves, since most of their rows were let go.
    pub rewrites: usize,
    /// Columns of windows that rows were rolled up to.
    pub windows: u64,
}

/// What retention let go of on this replica: whole files at once, the rest with merges; it is hidden until then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    pub segments: usize,
    pub bytes: u64,
    pub samples: u64,
    pub lines: u64,
    /// Windows of samples.
    pub windows: u64,
    /// Samples that came when their windows were frozen already, and were not taken.
    pub late: u64,
}

impl Dropped {
    fn add(&mut self, other: &Self) {
        self.segments += other.segments;
        self.bytes += other.bytes;
        self.samples += other.samples;
        self.lines += other.lines;
        self.windows += other.windows;
        self.late += other.late;
    }
}

/// What each rule let go here, by its name, since the shard was opened.
pub type DroppedByRule = BTreeMap<String, Dropped>;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardStats {
    /// Series and streams.
    pub series: usize,
    /// Rows that are held, overwritten and hidden ones included.
    pub samples: u64,
    pub lines: u64,
    /// Files of windows among the segments, and the values in them.
    pub window_segments: usize,
    pub window_values: u64,
    pub head_bytes: usize,
    /// All files, cold ones included.
    pub segments: usize,
    pub segment_bytes: u64,
    /// Of these, what is in the cold store.
    pub cold_segments: usize,
    pub cold_bytes: u64,
    pub cold: ColdCounts,
}

/// What the manifest in force says, apart from its segments.
struct Durable {
    applied: u64,
    retention: Retention,
    sides: Sides,
    /// How many segments it names.
    segments: usize,
    sequence: u64,
    hash: [u8; 32],
    /// Sequences up to here may have been tried.
    sequence_tried: u64,
}

struct Flushing {
    /// First number of the files that it may write.
    first: u64,
    /// As it was when the flush began.
    dirty_since: u64,
}

/// Files of new series that are made one.
const SERIES_FILES_MAX: usize = 16;

/// One shard. One owner writes; readers come from `reader`.
pub struct Shard {
    disk: Arc<dyn Disk>,
    dir: String,
    config: ShardConfig,
    state: Arc<RwLock<State>>,
    durable: Durable,
    next_number: Arc<AtomicU64>,
    /// How often everything was replaced by a peer's state.
    life: u64,
    flushing: Option<Flushing>,
    /// First number of the files that a merge under way may write.
    merging: Option<u64>,
    /// Highest index that rows or a cut came with.
    written: u64,
    /// Rows must come with a higher index: what is below is sealed.
    sealed_to: u64,
    /// The monotonic time at which `needs_flush` first saw something to flush, plus one; 0: nothing.
    dirty_since: AtomicU64,
    /// Samples before this may be below a floor that leaves windows behind.
    frozen_below: i64,
    dropped: DroppedByRule,
    /// Met by merges, not told yet.
    found_damage: Vec<Damage>,
    objects: Ledger,
    /// The manifest before the one in force names files that nobody else needs.
    unswept: bool,
    line_packer: logs::BlockEncoder,
}

impl Shard {
    /// Opens the folder, or makes it. Removes what a crash left behind.
    pub fn open(disk: Arc<dyn Disk>, dir: &str, config: ShardConfig) -> Result<(Self, Opened), StorageError> {
        make_dir(disk.as_ref(), dir)?;
        // The manifest that is about to be trusted, and by which the log is cut, may be a name that a killed process
        // left in the kernel's memory alone.
        disk.sync_dir(dir)?;
        let Some((manifest, hash, fell_back)) = newest_manifest(disk.as_ref(), dir)? else {
            let shard = Self::found(disk, dir, config)?;
            let opened = Opened {
                applied: 0,
                aux: vec![],
                fell_back: None,
            };
            return Ok((shard, opened));
        };
        if manifest.group != config.group {
            return Err(StorageError::WrongGroup {
                dir: dir.to_owned(),
                found: manifest.group,
                expected: config.group,
            });
        }
        let state = load_state(disk.as_ref(), dir, &manifest, config.tier())?;
        let aux = read_aux(disk.as_ref(), dir, &manifest)?;
        let applied = manifest.applied;
        let previous = Manifest::load(disk.as_ref(), dir, manifest.previous.0).ok();
        let all: Vec<Arc<Segment>> = state.segments.iter().chain(&state.windows).cloned().collect();
        let mut shard = Self {
            objects: Ledger::opened(&manifest, previous.as_ref().map(|(m, _)| m), &all),
            unswept: previous.as_ref().is_some_and(|(p, _)| cold::has_moved(&manifest, p)),
            next_number: Arc::new(AtomicU64::new(manifest.next_number)),
            life: 0,
            flushing: None,
            merging: None,
            written: applied,
            sealed_to: applied,
            dirty_since: AtomicU64::new(0),
            found_damage: vec![],
            line_packer: logs::BlockEncoder::default(),
            frozen_below: manifest.retention.frozen_below(),
            dropped: BTreeMap::new(),
            durable: Durable {
                applied,
                retention: manifest.retention.clone(),
                sides: Sides::of(&manifest, &state.directory),
                segments: manifest.segments.len(),
                sequence: manifest.sequence,
                hash,
                sequence_tried: manifest.sequence,
            },
            state: Arc::new(RwLock::new(state)),
            disk,
            dir: dir.to_owned(),
            config,
        };
        shard.sweep_files(&manifest, true)?;
        let opened = Opened {
            applied,
            aux,
            fell_back,
        };
        Ok((shard, opened))
    }

    /// A new folder starts with a manifest, so that a missing one can be told from a new shard.
    fn found(disk: Arc<dyn Disk>, dir: &str, config: ShardConfig) -> Result<Self, StorageError> {
        let mut shard = Self {
            objects: Ledger::new(),
            unswept: false,
            state: Arc::new(RwLock::new(empty_state())),
            frozen_below: i64::MIN,
            dropped: BTreeMap::new(),
            next_number: Arc::new(AtomicU64::new(1)),
            life: 0,
            flushing: None,
            merging: None,
            written: 0,
            sealed_to: 0,
            dirty_since: AtomicU64::new(0),
            found_damage: vec![],
            line_packer: logs::BlockEncoder::default(),
            durable: Durable {
                applied: 0,
                retention: Retention::default(),
                sides: Sides::default(),
                segments: 0,
                sequence: 0,
                hash: [0; 32],
                sequence_tried: 0,
            },
            disk,
            dir: dir.to_owned(),
            config,
        };
        shard.publish(0, Retention::default(), vec![], Sides::default(), true)?;
        Ok(shard)
    }

    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    pub fn reader(&self) -> ShardReader {
        ShardReader {
            state: self.state.clone(),
        }
    }

    /// Takes rows of entry `index` into memory, with their labels. They show once `advance` passes it.
    ///
    /// # Panics
    /// When `index` was advanced over, flushed or cut already: the log is given in order, each entry once.
    pub fn write(&mut self, index: u64, tenant: &TenantId, series: &[SeriesBlock], streams: &[StreamBlock]) {
        let (mut times, mut values, mut metadata) = (vec![], vec![], vec![]);
        self.begin(index);
        self.state.write().retention.meet(tenant);
        for block in series.iter().filter(|b| !b.samples.is_empty()) {
            let first = self.define(tenant, false, &block.labels, &block.owner);
            times.clear();
            values.clear();
            times.extend(block.samples.iter().map(|s| s.at.0));
            values.extend(block.samples.iter().flat_map(|s| s.value.to_le_bytes()));
            let rows = Rows {
                times: &times,
                runs: &[Run { first, len: 1 }],
                values: &values,
            };
            assert!(self.push_rows(index, &rows, |_, _, _| {}), "a series was just defined");
        }
        for block in streams.iter().filter(|b| !b.lines.is_empty()) {
            let id = self.define(tenant, true, &block.labels, &block.owner);
            for l in &block.lines {
                metadata.clear();
                put_metadata(&mut metadata, &l.metadata);
                let line = RawLine {
                    at: l.at.0,
                    line: &l.line,
                    metadata: &metadata,
                };
                assert!(
                    self.push_lines(index, id, [line].into_iter()),
                    "a stream was just defined"
                );
            }
        }
    }

    /// The id of a series or stream, given now if it is new. Ids are given in the order of the log, so they are the
    /// same on every replica, and never given again.
    pub fn define(&mut self, tenant: &TenantId, streams: bool, labels: &Labels, owner: &Owner) -> u32 {
        let mut state = self.state.write();
        state.retention.meet(tenant);
        state.directory.find_or_add(tenant, streams, labels, owner)
    }

    /// Counts the ids that were forgotten: an entry whose ids are of another epoch must be made anew.
    pub fn epoch(&self) -> u64 {
        self.state.read().directory.epoch()
    }

    /// Takes samples of entry `index` into memory, and calls `heard` for each owner among the series with their newest
    /// time. False, and nothing was taken, when an id is not one of a series.
    ///
    /// # Panics
    /// As [`Shard::write`]; and when values and times do not fit each other.
    pub fn push_rows(
        &mut self,
        index: u64,
        rows: &Rows<'_>,
        mut heard: impl FnMut(&TenantId, Owner, TimestampNs),
    ) -> bool {
        self.begin(index);
        let state = &mut *self.state.write();
        assert!(
            index > state.applied,
            "entry {index} is new, not one up to {}",
            state.applied
        );
        if rows.times.iter().all(|at| *at >= self.frozen_below) {
            return state.active.push_rows(index, rows, &state.directory, &mut heard);
        }
        push_late(state, index, rows, &mut heard, &mut self.dropped)
    }

    /// Takes lines of entry `index` into memory. False, and nothing was taken, when `id` is not one of a stream.
    ///
    /// # Panics
    /// As [`Shard::write`].
    pub fn push_lines<'a>(&mut self, index: u64, id: u32, lines: impl Iterator<Item = RawLine<'a>>) -> bool {
        self.begin(index);
        let state = &mut *self.state.write();
        assert!(
            index > state.applied,
            "entry {index} is new, not one up to {}",
            state.applied
        );
        state.active.push_lines(index, id, &state.directory, lines)
    }

    fn begin(&mut self, index: u64) {
        assert!(
            index > self.sealed_to && index >= self.written,
            "entry {index} comes after {} and after the cut or flush at {}",
            self.written,
            self.sealed_to
        );
        self.written = index;
    }

    /// Everything up to `index` has been given: readers see it from now on.
    pub fn advance(&mut self, index: u64) {
        let mut state = self.state.write();
        assert!(
            index >= self.written && index >= state.applied,
            "advancing to {index} goes over all that was given, up to {} and {}",
            self.written,
            state.applied
        );
        let full = state.active.show();
        state.applied = index;
        drop(state);
        self.pack_lines(&full);
    }

    /// Packs lines of these streams of the active head. Readers find them as they were meanwhile.
    fn pack_lines(&mut self, streams: &[u32]) {
        for &stream in streams {
            let lines = self.state.write().active.close_to_pack(stream);
            let packed = head::pack(&lines, &mut self.line_packer);
            self.state.write().active.put_packed(stream, packed);
        }
    }

    /// Records a cut: reads `as_of` this index are exact from here on, as long as the cut is kept.
    pub fn cut(&mut self, index: u64) {
        assert!(
            index >= self.written && index >= self.applied(),
            "a cut at {index} comes after all that was given, up to {}",
            self.written.max(self.applied())
        );
        self.written = index;
        // What is full is packed by the flush, if no line comes any more.
        self.state.write().active.show();
        self.seal();
        self.sealed_to = index;
        self.state.write().retention.cut(index);
    }

    /// Nobody asks for this cut any more. It goes when no pin names it.
    pub fn drop_cut(&mut self, index: u64) {
        self.state.write().retention.drop_cut(index);
    }

    /// Holds a window against retention. A pin of the same id is replaced.
    pub fn pin(&mut self, pin: Pin) {
        let mut state = self.state.write();
        state.retention.pin(pin);
        self.frozen_below = state.retention.frozen_below();
    }

    pub fn unpin(&mut self, id: &str) {
        self.state.write().retention.unpin(id);
    }

    /// Replaces the floors, hides what lies below, and lets go of files in which nothing can be read any more.
    pub fn retain(&mut self, floors: Vec<Floor>) -> Dropped {
        let mut guard = self.state.write();
        let state = &mut *guard;
        state.retention.retain(floors);
        self.frozen_below = state.retention.frozen_below();
        let mut dropped = Dropped::default();
        let sources = Sources {
            retention: &state.retention,
            catalog: state.directory.catalog(),
            windows: &state.windows,
        };
        let all = state.segments.iter().chain(&state.windows);
        let gone: BTreeSet<u64> = all.filter(|s| is_gone(&sources, s)).map(|s| s.file.number).collect();
        for s in state
            .segments
            .iter()
            .chain(&state.windows)
            .filter(|s| gone.contains(&s.file.number))
        {
            dropped.segments += 1;
            let rows = rows_by_series(s);
            dropped.add(&count_dropped(
                &mut self.dropped,
                &sources,
                &state.forgotten,
                s,
                s.file.bytes,
                &rows,
            ));
        }
        state.segments.retain(|s| !gone.contains(&s.file.number));
        state.windows.retain(|s| !gone.contains(&s.file.number));
        state.forget_series();
        dropped
    }

    /// What each rule let go here since the shard was opened.
    pub fn dropped(&self) -> &DroppedByRule {
        &self.dropped
    }

    /// The oldest event time of which samples are kept of a tenant's domain (`None`: of what belongs to no domain), as
    /// far as no rule with label matchers says otherwise.
    pub fn floor_of(&self, tenant: &TenantId, domain: Option<Domain>) -> TimestampNs {
        let state = self.state.read();
        state.retention.plain_floors(tenant, domain).raw
    }

    pub fn applied(&self) -> u64 {
        self.state.read().applied
    }

    /// The log may be cut up to here.
    pub fn durable(&self) -> u64 {
        self.durable.applied
    }

    /// Whether the heads are large enough, or old enough. Ages count from the first call that saw them.
    pub fn needs_flush(&self, now: SpanNs) -> bool {
        let state = self.state.read();
        if state.applied == self.durable.applied {
            return false;
        }
        let first = now.0.saturating_add(1);
        let since = match self
            .dirty_since
            .compare_exchange(0, first, Ordering::Relaxed, Ordering::Relaxed)
        {
            Ok(_) => first,
            Err(since) => since,
        };
        let taken: usize = state.heads().map(Head::taken).sum();
        taken.max(head_bytes(&state)) >= self.config.flush_bytes_max
            || first - since.min(first) >= self.config.flush_age_max.0
    }

    /// Makes everything up to `applied` durable, with `aux` beside it.
    ///
    /// # Panics
    /// As [`Shard::begin_flush`].
    pub fn flush(&mut self, aux: &[u8]) -> Result<FlushReport, StorageError> {
        let done = self.begin_flush(aux).run();
        self.end_flush(done)
    }

    /// Closes the heads; the work writes them out with `aux` beside them, on any thread, while more rows are taken.
    ///
    /// # Panics
    /// When rows were given that `advance` has not passed: an entry is flushed whole or not at all. And when a flush
    /// is under way.
    pub fn begin_flush(&mut self, aux: &[u8]) -> FlushWork {
        assert!(self.written <= self.applied(), "a flush comes between entries");
        assert!(self.flushing.is_none(), "one flush at a time");
        self.seal();
        let seen = self.seen();
        self.flushing = Some(Flushing {
            first: self.next_number.load(Ordering::Relaxed),
            dirty_since: self.dirty_since.swap(0, Ordering::Relaxed),
        });
        let state = self.state.read();
        let newest = state.newest_of_all();
        let work = FlushWork {
            heads: state.sealed.clone(),
            applied: state.applied,
            sides: side_bytes(&state.directory, &self.durable.sides, &newest, aux),
            newest,
            seen,
        };
        drop(state);
        self.sealed_to = self.sealed_to.max(work.applied);
        work
    }

    /// Puts in force what a flush wrote. After an error all is as it was before it began, but that its heads stay
    /// closed: the next flush takes them along.
    pub fn end_flush(&mut self, done: FlushDone) -> Result<FlushReport, StorageError> {
        let FlushDone {
            seen,
            heads,
            newest,
            report,
            written,
        } = done;
        if seen.life != self.life {
            seen.numbers.discard(self.disk.as_ref(), &self.dir);
            return Ok(FlushReport {
                applied: self.durable.applied,
                ..FlushReport::default()
            });
        }
        let dirty_since = self.flushing.take().map_or(0, |f| f.dirty_since);
        let ended = written.and_then(|(written, sides)| {
            let mut segments = self.state.read().segments.clone();
            segments.extend(written.into_iter().map(Arc::new));
            let files = self.with_windows(&segments);
            self.publish_or_discard(&seen.numbers, |shard| {
                shard.publish(report.applied, seen.retention, files, sides, true)
            })?;
            let mut state = self.state.write();
            state.segments = segments;
            state.sealed.drain(..heads);
            state.newest = newest;
            Ok(report)
        });
        if ended.is_err() {
            self.dirty_since.store(dirty_since, Ordering::Relaxed);
        }
        ended
    }

    /// Whether rows come faster than a flush under way writes those before them: the owner should wait for it.
    pub fn is_behind(&self) -> bool {
        self.flushing.is_some() && self.state.read().active.taken() >= self.config.flush_bytes_max
    }

    fn seen(&self) -> Seen {
        let state = self.state.read();
        Seen {
            disk: self.disk.clone(),
            dir: self.dir.clone(),
            config: self.config.clone(),
            retention: state.retention.clone(),
            catalog: state.directory.catalog().clone(),
            numbers: Numbers::new(&self.next_number),
            life: self.life,
        }
    }

    /// Merges one run of small neighbouring segments, if there is one, and gives back the room of files that
    /// retention let go. Changes no answer.
    ///
    /// # Panics
    /// As [`Shard::begin_merge`].
    pub fn compact(&mut self) -> Result<Option<CompactReport>, StorageError> {
        self.compact_with(Effort::Background)
    }

    /// As `compact`, and rewrites also what no merge needs but which is still as a flush left it. Called again until
    /// it finds nothing, it leaves the shard as small as it gets.
    pub fn compact_fully(&mut self) -> Result<Option<CompactReport>, StorageError> {
        self.compact_with(Effort::Full)
    }

    fn compact_with(&mut self, effort: Effort) -> Result<Option<CompactReport>, StorageError> {
        loop {
            let done = self.begin_merge(effort)?.run();
            match self.end_merge(done)? {
                Merged::Nothing => return Ok(None),
                Merged::Done(report) => return Ok(Some(report)),
                Merged::InVain => {}
            }
        }
    }

    /// Work that looks for one merge or roll-up and does it, on any thread, while more rows are taken and flushed.
    ///
    /// # Panics
    /// When a merge is under way.
    pub fn begin_merge(&mut self, effort: Effort) -> Result<MergeWork, StorageError> {
        assert!(self.merging.is_none(), "one merge at a time");
        self.release()?;
        let seen = self.seen();
        self.merging = Some(self.next_number.load(Ordering::Relaxed));
        let state = self.state.read();
        Ok(MergeWork {
            seen,
            effort,
            segments: state.segments.clone(),
            windows: state.windows.clone(),
            first_in_heads: state.first_in_heads(self.frozen_below),
            without_cold: self.objects.is_away,
        })
    }

    /// Puts in force what a merge wrote. After an error all is as it was before it began.
    pub fn end_merge(&mut self, done: MergeDone) -> Result<Merged, StorageError> {
        let MergeDone { seen, made, damage } = done;
        if seen.life != self.life {
            seen.numbers.discard(self.disk.as_ref(), &self.dir);
            return Ok(Merged::InVain);
        }
        self.merging = None;
        // What was set aside before is met again by roll-ups, and changes nothing for the next one.
        let met_damage = damage.into_iter().fold(false, |any, d| self.set_aside(d) | any);
        let made = match made {
            // What is here is merged meanwhile.
            Err(e) if cold::is_of_store(&e) => {
                return Ok(match std::mem::replace(&mut self.objects.is_away, true) {
                    true => Merged::Nothing,
                    false => Merged::InVain,
                });
            }
            Err(e) => return Err(e),
            Ok(made) => made,
        };
        let report = match made {
            Made::Nothing if met_damage => return Ok(Merged::InVain),
            Made::Nothing => return Ok(Merged::Nothing),
            Made::Windows(windows) => {
                let report = CompactReport {
                    segments_out: 1,
                    bytes_out: windows.file.bytes,
                    windows: windows.row_count(),
                    ..CompactReport::default()
                };
                let mut all = self.all_segments();
                all.push(Arc::new(windows));
                self.publish_or_discard(&seen.numbers, |shard| shard.publish_segments(&all))?;
                self.take_segments(all);
                report
            }
            Made::Merged {
                run,
                merged,
                let_go,
                rewrites,
            } => {
                let report = CompactReport {
                    rewrites,
                    ..compaction::report(&run, merged.as_ref())
                };
                let Some(all) = replaced(self.all_segments(), &run, merged) else {
                    seen.numbers.discard(self.disk.as_ref(), &self.dir);
                    return Ok(Merged::InVain);
                };
                let counted = count_merge(&self.state.read(), &run, &let_go);
                self.publish_or_discard(&seen.numbers, |shard| shard.publish_segments(&all))?;
                self.take_segments(all);
                for (rule, dropped) in counted {
                    self.dropped.entry(rule).or_default().add(&dropped);
                }
                report
            }
        };
        Ok(Merged::Done(report))
    }

    /// A file in which work met damage is merged no more: what is whole around it goes on. Merged or let go meanwhile,
    /// it is nobody's damage any more. False: it was set aside before.
    fn set_aside(&mut self, damage: Damage) -> bool {
        let all = self.all_segments();
        let found = all.iter().find(|s| s.path() == damage.file);
        if found.is_some_and(|s| s.is_set_aside()) {
            return false;
        }
        if let Some(segment) = found {
            segment.set_aside();
            self.found_damage.push(damage);
        }
        true
    }

    /// Damage that merges met since the last call.
    pub fn take_damage(&mut self) -> Vec<Damage> {
        std::mem::take(&mut self.found_damage)
    }

    /// Removes the files of segments that were let go since the last manifest. Two manifests: the last but one keeps
    /// the files that it names.
    fn release(&mut self) -> Result<(), StorageError> {
        let files = self.all_segments();
        let manifests = match files.len() < self.durable.segments {
            true => 2,
            false => usize::from(self.unswept),
        };
        for _ in 0..manifests {
            self.publish_segments(&files)?;
        }
        Ok(())
    }

    /// The next piece of work with the cold store; one at a time. `now` is the wall clock's.
    pub fn begin_cold(&mut self, now: TimestampNs) -> Option<ColdJob> {
        let cold = self.config.cold.as_ref()?;
        let state = self.state.read();
        let segments: Vec<Arc<Segment>> = state.segments.iter().chain(&state.windows).cloned().collect();
        let sources = state.rollup_sources();
        self.objects
            .begin(cold, &self.disk, &self.dir, &segments, &sources, now)
    }

    /// Takes what came of a job. On an error everything is as it was, and the file is moved again later.
    pub fn finish_cold(&mut self, done: ColdDone) -> Result<ColdReport, StorageError> {
        let mut report = ColdReport::default();
        let moved = match self.objects.end(done, &mut report) {
            Ok(moved) => moved,
            Err(damage) => {
                self.set_aside(damage);
                return Ok(report);
            }
        };
        let Some(moved) = moved.map(Arc::new) else {
            return Ok(report);
        };
        self.objects.has_open(&moved);
        let mut files = self.all_segments();
        match files.iter_mut().find(|s| s.file == moved.file && s.cold.is_none()) {
            Some(here) => *here = moved.clone(),
            // Merged or let go meanwhile.
            None => {
                self.objects.forsake_moved(&moved);
                return Ok(report);
            }
        }
        self.publish_segments(&files)?;
        self.take_segments(files);
        self.unswept = true;
        self.objects.counts.puts += 1;
        self.objects.counts.put_bytes += moved.file.bytes;
        report.moved_bytes = moved.file.bytes;
        Ok(report)
    }

    /// A job will never be finished: its thread died.
    pub fn abandon_cold(&mut self) {
        self.objects.abandon();
    }

    /// Segments of rows and of windows.
    fn all_segments(&self) -> Vec<Arc<Segment>> {
        let state = self.state.read();
        state.segments.iter().chain(&state.windows).cloned().collect()
    }

    fn with_windows(&self, segments: &[Arc<Segment>]) -> Vec<SegmentRef> {
        let windows = self.state.read().windows.clone();
        segments.iter().chain(&windows).map(|s| s.named()).collect()
    }

    /// The durable moment stays what it was, in other files: the log still comes again from there.
    fn publish_segments(&mut self, segments: &[Arc<Segment>]) -> Result<(), StorageError> {
        let files = segments.iter().map(|s| s.named()).collect();
        let (retention, sides) = (self.durable.retention.clone(), self.durable.sides.clone());
        self.publish(self.durable.applied, retention, files, sides, true)
    }

    /// These are all segments from now on.
    fn take_segments(&self, segments: Vec<Arc<Segment>>) {
        let mut state = self.state.write();
        (state.windows, state.segments) = segments.into_iter().partition(|s| s.resolution().is_some());
    }

    /// Writes the state at `applied` into a folder as flat, synced files: for a peer, or for a backup.
    /// Our own durable state stays what it was.
    pub fn export(&mut self, into_dir: &str, aux: &[u8]) -> Result<(), StorageError> {
        assert!(self.written <= self.applied(), "an export comes between entries");
        self.seal();
        let mut seen = self.seen();
        into_dir.clone_into(&mut seen.dir);
        let (sealed, applied, segments, newest) = {
            let s = self.state.read();
            let segments: Vec<Arc<Segment>> = s.segments.iter().chain(&s.windows).cloned().collect();
            (s.sealed.clone(), s.applied, segments, s.newest_of_all())
        };
        let disk = self.disk.clone();
        disk.create_dir_all(into_dir)?;
        let mut files = vec![];
        let cold = segments.iter().filter(|s| s.cold.is_some());
        let down_bytes: u64 = cold.map(|s| s.file.bytes).sum();
        if down_bytes > 0 {
            check_room(disk.as_ref(), into_dir, down_bytes, self.config.reserve_bytes)?;
        }
        for s in &segments {
            let (from, to) = (
                container::path_of(&self.dir, s.file.number),
                container::path_of(into_dir, s.file.number),
            );
            match &s.cold {
                None => bring(disk.as_ref(), &from, &to)?,
                // The peer has a folder of its own in the store.
                Some(_) => cold::bring_down(disk.as_ref(), s.container(), &to)?,
            }
            files.push(SegmentRef {
                cold: None,
                ..s.named()
            });
        }
        files.extend(write_heads(&mut seen, &sealed)?.iter().map(Segment::named));
        let sides = side_bytes(&self.state.read().directory, &Sides::default(), &newest, aux);
        let sides = sides.write(disk.as_ref(), into_dir, &mut seen.numbers)?;
        disk.sync_dir(into_dir)?;
        let manifest = Manifest {
            sequence: 1,
            previous: (0, [0; 32]),
            group: self.config.group,
            applied,
            next_number: self.next_number.load(Ordering::Relaxed),
            retention: seen.retention,
            segments: files,
            series: sides.series,
            newest: sides.newest,
            aux: sides.aux,
        };
        manifest.publish(disk.as_ref(), into_dir)?;
        Ok(())
    }

    /// Replaces everything by an exported state, durably, and returns its caller's bytes. Afterwards `applied` and
    /// `durable` are `index`. The caller has had [`check_export`] read it. A crash on the way leaves the old state or the new one.
    /// Work under way comes to nothing.
    pub fn install(&mut self, from_dir: &str, index: u64) -> Result<Vec<u8>, StorageError> {
        let mut numbers = Numbers::new(&self.next_number);
        let tried = self.durable.sequence_tried;
        let installed = self.install_from(from_dir, index, &mut numbers);
        if installed.is_err() && !self.may_be_in_force(tried) {
            numbers.discard(self.disk.as_ref(), &self.dir);
        }
        installed
    }

    fn install_from(&mut self, from_dir: &str, index: u64, numbers: &mut Numbers) -> Result<Vec<u8>, StorageError> {
        let disk = self.disk.clone();
        let (mut manifest, _, _) =
            newest_manifest(disk.as_ref(), from_dir)?.ok_or_else(|| StorageError::NoSnapshot {
                dir: from_dir.to_owned(),
            })?;
        if manifest.group != self.config.group {
            return Err(StorageError::WrongGroup {
                dir: from_dir.to_owned(),
                found: manifest.group,
                expected: self.config.group,
            });
        }
        if manifest.applied > index {
            return Err(StorageError::SnapshotTooNew {
                dir: from_dir.to_owned(),
                applied: manifest.applied,
                index,
            });
        }
        cold::check_snapshot(from_dir, &manifest)?;
        let aux = read_aux(disk.as_ref(), from_dir, &manifest)?;
        for SegmentRef { file, .. } in &mut manifest.segments {
            let from = container::path_of(from_dir, file.number);
            file.number = numbers.take();
            bring(disk.as_ref(), &from, &container::path_of(&self.dir, file.number))?;
        }
        for (side, file) in manifest.sides_mut() {
            let bytes = manifest::read_side(disk.as_ref(), from_dir, side, file)?;
            let number = numbers.take();
            if let Some(ours) = manifest::write_side(disk.as_ref(), &self.dir, side, number, &bytes)? {
                *file = ours;
            }
        }
        disk.sync_dir(&self.dir)?;
        manifest.applied = index;
        let state = load_state(disk.as_ref(), &self.dir, &manifest, None)?;
        let sides = Sides::of(&manifest, &state.directory);
        self.publish(index, manifest.retention, manifest.segments, sides, false)?;
        self.frozen_below = state.retention.frozen_below();
        *self.state.write() = state;
        self.life += 1;
        (self.flushing, self.merging) = (None, None);
        (self.written, self.sealed_to) = (index, index);
        self.dirty_since.store(0, Ordering::Relaxed);
        Ok(aux)
    }

    /// Gives up everything, durably: the shard is as a new one, but for the numbers of its files.
    pub fn forget(&mut self) -> Result<(), StorageError> {
        self.publish(0, Retention::default(), vec![], Sides::default(), false)?;
        self.frozen_below = i64::MIN;
        *self.state.write() = empty_state();
        self.life += 1;
        (self.flushing, self.merging) = (None, None);
        (self.written, self.sealed_to) = (0, 0);
        self.dirty_since.store(0, Ordering::Relaxed);
        self.found_damage.clear();
        Ok(())
    }

    /// Reads every segment whole and compares its BLAKE3: finds damage before a reader does.
    pub fn scrub(&self) -> Result<(), StorageError> {
        for s in self.all_segments() {
            s.scrub()?;
        }
        Ok(())
    }

    pub fn stats(&self) -> ShardStats {
        let state = self.state.read();
        let heads = || state.sealed.iter().map(Arc::as_ref).chain([&state.active]);
        let rows = |streams| {
            let of_kind = state.segments.iter().filter(move |s| s.is_of_lines() == streams);
            of_kind.map(|s| s.row_count()).sum::<u64>()
        };
        let all = || state.segments.iter().chain(&state.windows);
        let cold = || all().filter(|s| s.cold.is_some());
        ShardStats {
            series: state.directory.len(),
            samples: rows(false) + heads().map(Head::samples).sum::<u64>(),
            lines: rows(true) + heads().map(Head::lines).sum::<u64>(),
            window_segments: state.windows.len(),
            window_values: state.windows.iter().map(|s| s.row_count()).sum(),
            head_bytes: head_bytes(&state),
            segments: state.segments.len() + state.windows.len(),
            segment_bytes: state.segments.iter().chain(&state.windows).map(|s| s.file.bytes).sum(),
            cold_segments: cold().count(),
            cold_bytes: cold().map(|s| s.file.bytes).sum(),
            cold: self.objects.counts,
        }
    }

    /// Ends work with a manifest; removes the new files of what failed, unless a manifest that may be in force names
    /// them.
    fn publish_or_discard(
        &mut self,
        numbers: &Numbers,
        publish: impl FnOnce(&mut Self) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let tried = self.durable.sequence_tried;
        let published = publish(self);
        if published.is_err() && !self.may_be_in_force(tried) {
            numbers.discard(self.disk.as_ref(), &self.dir);
        }
        published
    }

    /// Whether a manifest later than `tried` may be read by the next start, although its writing failed.
    fn may_be_in_force(&self, tried: u64) -> bool {
        let last = self.durable.sequence_tried;
        last > tried && self.disk.exists(&format!("{}/{}", self.dir, manifest::name_of(last)))
    }

    /// Closes the active head and starts another.
    fn seal(&mut self) {
        let mut state = self.state.write();
        if !state.active.is_empty() {
            let full = std::mem::replace(&mut state.active, Head::new());
            state.sealed.push(Arc::new(full.seal()));
        }
    }

    /// Makes a manifest the one in force, then removes files that neither it nor the one before names.
    fn publish(
        &mut self,
        applied: u64,
        retention: Retention,
        segments: Vec<SegmentRef>,
        sides: Sides,
        keep_previous: bool,
    ) -> Result<(), StorageError> {
        self.durable.sequence_tried += 1;
        let manifest = Manifest {
            sequence: self.durable.sequence_tried,
            previous: (self.durable.sequence, self.durable.hash),
            group: self.config.group,
            applied,
            next_number: self.next_number.load(Ordering::Relaxed),
            retention,
            segments,
            series: sides.series.clone(),
            newest: sides.newest.clone(),
            aux: sides.aux.clone(),
        };
        self.objects.tries(&manifest);
        let hash = manifest.publish(self.disk.as_ref(), &self.dir)?;
        self.objects.published(&manifest, keep_previous);
        self.unswept = false;
        // Leftovers are found again when the shard opens; they are no reason to call the flush a failure.
        let _ = self.sweep_files(&manifest, keep_previous);
        self.durable = Durable {
            applied,
            retention: manifest.retention,
            sides,
            segments: manifest.segments.len(),
            sequence: manifest.sequence,
            hash,
            sequence_tried: manifest.sequence,
        };
        Ok(())
    }

    fn sweep_files(&mut self, manifest: &Manifest, keep_previous: bool) -> Result<(), StorageError> {
        let disk = self.disk.as_ref();
        let mut kept: BTreeSet<String> = manifest.names().collect();
        // A damaged one is nothing to fall back to, and the one in force does not need it.
        if keep_previous
            && manifest.previous.0 > 0
            && let Ok((previous, _)) = Manifest::load(disk, &self.dir, manifest.previous.0)
        {
            kept.extend(previous.names());
        }
        // What work under way has written is named by nothing yet.
        let in_work = self.flushing.iter().map(|f| f.first).chain(self.merging).min();
        let is_in_work = |name: &str| in_work.is_some_and(|first| manifest::data_number(name) >= Some(first));
        for name in disk.list(&self.dir)? {
            let is_spared = is_in_work(&name) || self.objects.spares(&name);
            if manifest::is_ours(&name) && !kept.contains(&name) && !is_spared {
                disk.remove(&format!("{}/{name}", self.dir))?;
            }
        }
        Ok(())
    }
}

/// Of a shard that never held anything.
fn empty_state() -> State {
    State {
        directory: Directory::default(),
        retention: Retention::default(),
        applied: 0,
        newest: vec![],
        active: Head::new(),
        sealed: vec![],
        segments: vec![],
        windows: vec![],
        forgotten: BTreeMap::new(),
        sides_damage: None,
    }
}

fn head_bytes(state: &State) -> usize {
    state.sealed.iter().map(|m| m.bytes()).sum::<usize>() + state.active.bytes()
}

fn is_gone(sources: &Sources<'_>, s: &Segment) -> bool {
    let floors = sources.retention.highest(&s.head.tenant, s.head.policy);
    let floor = match (s.resolution(), s.is_of_lines()) {
        (Some(resolution), _) => floors.of(resolution),
        (None, true) => floors.lines,
        (None, false) => floors.raw,
    };
    s.head.span().1 < floor && !sources.needs(s)
}

/// Rows (windows: one each) of every series of a segment.
fn rows_by_series(s: &Segment) -> Vec<(u32, u64)> {
    let mut rows: BTreeMap<u32, u64> = BTreeMap::new();
    for id in s.ids() {
        let of_id: u64 = s.stretches(id).iter().map(|s| s.rows).sum();
        let (id, of_id) = match s.resolution() {
            None => (id, of_id),
            // Each window has a row in one of these columns, or in both.
            Some(_) if id % COLUMNS == COUNT || id % COLUMNS == STALE_AT => (series_of(id), of_id),
            Some(_) => continue,
        };
        let sum = rows.entry(id).or_default();
        *sum = if s.resolution().is_some() {
            of_id.max(*sum)
        } else {
            *sum + of_id
        };
    }
    rows.into_iter().collect()
}

/// What the rules let go with a merge.
fn count_merge(state: &State, run: &[Arc<Segment>], let_go: &[LetGo]) -> DroppedByRule {
    let mut counted = DroppedByRule::new();
    let (bytes, rows) = run
        .iter()
        .fold((0, 0), |(b, r), s| (b + s.file.bytes, r + s.row_count()));
    let gone: u64 = let_go.iter().map(|l| l.rows).sum();
    let share = (u128::from(bytes) * u128::from(gone) / u128::from(rows.max(1))) as u64;
    let by_series: Vec<(u32, u64)> = let_go.iter().map(|l| (l.id, l.rows)).collect();
    if let Some(s) = run.first() {
        let sources = state.rollup_sources();
        count_dropped(&mut counted, &sources, &state.forgotten, s, share, &by_series);
    }
    counted
}

/// Adds rows that went to what their rules let go; `bytes` are shared out by rows.
fn count_dropped(
    counts: &mut DroppedByRule,
    sources: &Sources<'_>,
    forgotten: &BTreeMap<u32, Arc<str>>,
    s: &Segment,
    bytes: u64,
    rows: &[(u32, u64)],
) -> Dropped {
    let mut all = Dropped::default();
    let total: u64 = rows.iter().map(|(_, n)| n).sum();
    let mut left = bytes;
    for (i, (id, n)) in rows.iter().enumerate() {
        let bytes = if i + 1 == rows.len() {
            left
        } else {
            (u128::from(bytes) * u128::from(*n) / u128::from(total.max(1))) as u64
        };
        left -= bytes;
        let mut dropped = Dropped {
            bytes,
            ..Dropped::default()
        };
        match (s.resolution(), s.is_of_lines()) {
            (Some(_), _) => dropped.windows = *n,
            (None, true) => dropped.lines = *n,
            (None, false) => dropped.samples = *n,
        }
        all.add(&dropped);
        let rule = sources
            .catalog
            .get(*id)
            .map(|series| sources.retention.rule_of(&series));
        let rule = rule.or(forgotten.get(id).map(|r| &**r)).unwrap_or(FORGOTTEN);
        match counts.get_mut(rule) {
            Some(of_rule) => of_rule.add(&dropped),
            None => {
                counts.insert(rule.to_owned(), dropped);
            }
        }
    }
    all
}

/// Under this rows are counted whose series was forgotten in an earlier life.
const FORGOTTEN: &str = "forgotten";
/// Forgotten series whose rule is remembered.
const FORGOTTEN_MAX: usize = 1_000_000;

/// Takes rows of which some may be too late: those of frozen windows are left out, the same on every replica.
fn push_late(
    state: &mut State,
    index: u64,
    rows: &Rows<'_>,
    heard: &mut impl FnMut(&TenantId, Owner, TimestampNs),
    dropped: &mut DroppedByRule,
) -> bool {
    let is_series = |id| state.directory.get(id).is_some_and(|s| !s.streams);
    if rows.runs.iter().any(|r| r.first.checked_add(r.len).is_none()) || !rows.ids().all(is_series) {
        return false;
    }
    let width = rows.width();
    let (mut times, mut values) = (vec![], vec![]);
    for (column, id) in rows.ids().enumerate() {
        let Some(series) = state.directory.get(id) else {
            continue;
        };
        let reach = state.retention.reach(&series);
        let frozen_to = if reach.has_windows() {
            reach.frozen_to()
        } else {
            i64::MIN
        };
        times.clear();
        values.clear();
        for (row, at) in rows.times.iter().enumerate() {
            if *at > frozen_to {
                times.push(*at);
                values.extend_from_slice(&rows.value(row * width + column).to_bits().to_le_bytes());
            }
        }
        if times.len() < rows.times.len() {
            let of_rule = dropped.entry(state.retention.rule_of(&series).to_owned()).or_default();
            of_rule.late += (rows.times.len() - times.len()) as u64;
        }
        let kept = Rows {
            times: &times,
            runs: &[Run { first: id, len: 1 }],
            values: &values,
        };
        if !times.is_empty() && !state.active.push_rows(index, &kept, &state.directory, heard) {
            return false;
        }
    }
    true
}

impl State {
    /// What decides which rows and windows are still needed.
    fn rollup_sources(&self) -> Sources<'_> {
        Sources {
            retention: &self.retention,
            catalog: self.directory.catalog(),
            windows: &self.windows,
        }
    }

    /// Of series with samples before `frozen_below` in a head: a time before which they have none there.
    fn first_in_heads(&self, frozen_below: i64) -> BTreeMap<u32, i64> {
        let mut firsts = BTreeMap::new();
        for (id, first) in self.heads().flat_map(|h| h.first_times(frozen_below)) {
            let known: &mut i64 = firsts.entry(id).or_insert(first);
            *known = first.min(*known);
        }
        firsts
    }

    pub fn heads(&self) -> impl Iterator<Item = &Head> {
        self.sealed.iter().map(Arc::as_ref).chain([&self.active])
    }

    /// The newest event time of every id, heads included.
    fn newest_of_all(&self) -> Vec<i64> {
        let mut newest = self.newest.clone();
        newest.resize(self.directory.next_id() as usize, i64::MIN);
        for head in self.heads() {
            for id in [head.ids(false), head.ids(true)].concat() {
                if let Some((_, last)) = head.times_of(id) {
                    let newest = &mut newest[id as usize];
                    *newest = last.max(*newest);
                }
            }
        }
        newest
    }

    /// Forgets the series of which no row can be read any more. Goes by what was written alone, so that every replica
    /// forgets the same at the same entry.
    fn forget_series(&mut self) {
        let stored = |id: u32| TimestampNs(self.newest.get(id as usize).copied().unwrap_or(i64::MIN));
        let newest_of = |id: u32| {
            let in_heads = self
                .heads()
                .filter_map(|h| h.times_of(id))
                .map(|t| TimestampNs(t.1))
                .max();
            in_heads.map_or(stored(id), |t| t.max(stored(id)))
        };
        let is_over = |id: &u32| {
            // Most series are told by their stored time already.
            let series = self.directory.get(*id);
            series
                .is_some_and(|s| self.retention.is_over(&s, stored(*id)) && self.retention.is_over(&s, newest_of(*id)))
        };
        let over: Vec<u32> = (0..self.directory.next_id()).filter(is_over).collect();
        for &id in &over {
            if let Some(series) = self.directory.get(id)
                && self.forgotten.len() < FORGOTTEN_MAX
            {
                // One text for all of a rule: neighbours mostly go by the same.
                let rule = self.retention.rule_of(&series);
                let before = self.forgotten.last_key_value().filter(|(_, r)| ***r == *rule);
                let rule = before.map_or_else(|| Arc::from(rule), |(_, r)| r.clone());
                self.forgotten.insert(id, rule);
            }
        }
        self.directory.forget(&over);
    }
}

/// What is to stand beside the segments; of the directory only what the files `before` do not have.
fn side_bytes(directory: &Directory, before: &Sides, newest: &[i64], aux: &[u8]) -> SideBytes {
    let (mut kept, mut first) = (vec![], 0);
    if before.epoch == directory.epoch() && before.series.len() < SERIES_FILES_MAX {
        kept.clone_from(&before.series);
        first = before.next_id;
    }
    SideBytes {
        kept,
        next_id: directory.next_id(),
        epoch: directory.epoch(),
        series: if first < directory.next_id() {
            directory.encode_from(first)
        } else {
            vec![]
        },
        newest: if newest.is_empty() {
            vec![]
        } else {
            newest::encode(newest)
        },
        aux: aux.to_vec(),
    }
}

/// All segments, with the merged one in the place of the run's last; `None`: some of the run are no more.
fn replaced(all: Vec<Arc<Segment>>, run: &[Arc<Segment>], merged: Option<Segment>) -> Option<Vec<Arc<Segment>>> {
    let gone: BTreeSet<u64> = run.iter().map(|s| s.file.number).collect();
    let last = run.last().map(|s| s.file.number);
    if all.iter().filter(|s| gone.contains(&s.file.number)).count() < gone.len() {
        return None;
    }
    let mut merged = merged.map(Arc::new);
    let mut kept = vec![];
    for s in all {
        if Some(s.file.number) == last {
            kept.extend(merged.take());
        } else if !gone.contains(&s.file.number) {
            kept.push(s);
        }
    }
    Some(kept)
}

impl Sides {
    fn of(manifest: &Manifest, directory: &Directory) -> Self {
        Self {
            series: manifest.series.clone(),
            next_id: directory.next_id(),
            epoch: directory.epoch(),
            newest: manifest.newest.clone(),
            aux: manifest.aux.clone(),
        }
    }
}

pub fn write_metrics(
    disk: &dyn Disk,
    dir: &str,
    number: u64,
    file_head: container::Head,
    head: &Head,
    series: &[(u32, Series<'_>)],
) -> Result<Segment, StorageError> {
    let mut writer = metric::Writer::create(disk, dir, number, file_head, metric::Tier::Flush)?;
    let everything = smallvec::smallvec![(i64::MIN, i64::MAX)];
    let (mut points, mut unpacker) = (Points::default(), Unpacker::default());
    for &(id, _) in series {
        points.clear();
        head.append_samples(id, &everything, &mut unpacker, &mut points);
        points.settle();
        if !points.is_empty() {
            writer.series(id, &points.times, &points.values)?;
        }
    }
    Ok(Segment::of_metrics(writer.finish(disk)?, Tier::Flush))
}

pub fn write_lines(
    disk: &dyn Disk,
    dir: &str,
    number: u64,
    file_head: container::Head,
    head: &Head,
    series: &[(u32, Series<'_>)],
) -> Result<Segment, StorageError> {
    let mut writer = logs::Writer::create(disk, dir, number, file_head, logs::Tier::Flush)?;
    let mut ids: Vec<u32> = series.iter().map(|(id, _)| *id).collect();
    ids.sort_unstable();
    for id in ids {
        if let Some(column) = head.stream(id) {
            column.write(&mut writer)?;
        }
    }
    Ok(Segment::of_lines(writer.finish(disk)?, Tier::Flush))
}

/// Gives a file a second name, or copies it where links are not possible; synced, the new name not yet.
fn bring(disk: &dyn Disk, from: &str, to: &str) -> Result<(), StorageError> {
    const COPY_BYTES: u64 = 1 << 20;
    if disk.exists(to) {
        // Never written through: it may be a link to a file in use.
        disk.remove(to)?;
    }
    if disk.link(from, to).is_ok() {
        return Ok(disk.open_write(to)?.sync()?);
    }
    let reader = disk.open_read(from)?;
    let mut file = disk.create(to)?;
    let mut at = 0;
    while at < reader.len() {
        let len = COPY_BYTES.min(reader.len() - at);
        file.write_at(at, &reader.read_at(at, len as usize)?)?;
        at += len;
    }
    Ok(file.sync()?)
}

/// Whether an exported state is as it was written, file by file; a file is named as in the shard's own folder. What is sent may
/// be damaged where it comes from: its receiver looks before it takes it, and then its sender, which files they are.
pub fn check_export(disk: &dyn Disk, dir: &str) -> Result<(), StorageError> {
    let newest = newest_manifest(disk, dir)?;
    let (mut manifest, _, _) = newest.ok_or_else(|| StorageError::NoSnapshot { dir: dir.to_owned() })?;
    for SegmentRef { file, .. } in &manifest.segments {
        container::scrub_path(disk, &container::path_of(dir, file.number), file)?;
    }
    for (side, file) in manifest.sides_mut() {
        manifest::read_side(disk, dir, side, file)?;
    }
    Ok(())
}

/// Whether manifest and side files of a shard that goes on meanwhile are on the disk as they were written.
pub(crate) fn check_sides(disk: &dyn Disk, dir: &str) -> Result<(), StorageError> {
    /// The shard publishes a manifest each few minutes, which ends the files before it.
    const TRIES: usize = 3;
    let newest = || -> Result<Option<u64>, StorageError> {
        let names = disk.list(dir)?;
        Ok(names.iter().filter_map(|n| manifest::number_in(n, "manifest-")).max())
    };
    let forget = |name: &str| -> Result<(), StorageError> {
        let file = disk.open_read(&format!("{dir}/{name}"))?;
        file.forget_cached(0..file.len());
        Ok(())
    };
    let check = |sequence| -> Result<(), StorageError> {
        forget(&manifest::name_of(sequence))?;
        let (mut manifest, _) = Manifest::load(disk, dir, sequence)?;
        for (side, file) in manifest.sides_mut() {
            // One that is missing is told by the read.
            let _ = forget(&side.name(file.number));
            manifest::read_side(disk, dir, side, file)?;
        }
        Ok(())
    };
    for _ in 0..TRIES {
        let Some(sequence) = newest()? else {
            return Ok(());
        };
        let checked = check(sequence);
        if checked.is_ok() || newest()? == Some(sequence) {
            return checked;
        }
    }
    Ok(())
}

type Found = (Manifest, [u8; 32], Option<Damage>);

/// The newest manifest that verifies; `None` in a folder that never had one.
fn newest_manifest(disk: &dyn Disk, dir: &str) -> Result<Option<Found>, StorageError> {
    let names = disk.list(dir)?;
    let mut sequences: Vec<u64> = names
        .iter()
        .filter_map(|n| manifest::number_in(n, "manifest-"))
        .collect();
    sequences.sort_unstable_by(|a, b| b.cmp(a));
    let mut damage = None;
    for sequence in sequences {
        match Manifest::load(disk, dir, sequence) {
            Ok((manifest, hash)) => {
                check_chain(disk, dir, &manifest)?;
                if damage.is_some() {
                    reached(Mark::ManifestBefore);
                }
                return Ok(Some((manifest, hash, damage)));
            }
            Err(StorageError::Damaged(d)) => damage = damage.or(Some(d)),
            Err(e) => return Err(e),
        }
    }
    let is_of_rows = |n: &String| {
        ["segment-", "table-"]
            .iter()
            .any(|p| manifest::number_in(n, p).is_some())
    };
    let has_rows = names.iter().any(is_of_rows);
    match damage {
        Some(d) => Err(d.into()),
        None if has_rows => Err(Damage {
            file: dir.to_owned(),
            from: 0,
            to: 0,
            why: "there are segments but no manifest".to_owned(),
        }
        .into()),
        None => Ok(None),
    }
}

/// The manifest before, where it is still there, must be the one that this one names.
fn check_chain(disk: &dyn Disk, dir: &str, manifest: &Manifest) -> Result<(), StorageError> {
    let (sequence, hash) = manifest.previous;
    if sequence == 0 || !disk.exists(&format!("{dir}/{}", manifest::name_of(sequence))) {
        return Ok(());
    }
    match Manifest::load(disk, dir, sequence) {
        Ok((_, found)) if found != hash => Err(Damage {
            file: format!("{dir}/{}", manifest::name_of(manifest.sequence)),
            from: 0,
            to: 0,
            why: format!("it does not follow {}", manifest::name_of(sequence)),
        }
        .into()),
        // A damaged older one is of no use and no harm.
        _ => Ok(()),
    }
}

fn load_state(disk: &dyn Disk, dir: &str, manifest: &Manifest, cold: Option<&ColdTier>) -> Result<State, StorageError> {
    let mut directory = Directory::default();
    for file in &manifest.series {
        let bytes = manifest::read_side(disk, dir, Side::Series, file)?;
        let loaded = directory.load(&bytes);
        loaded.map_err(|why| manifest::bad_side(dir, Side::Series, file, why))?;
    }
    let mut newest = vec![];
    if let Some(file) = &manifest.newest {
        let bytes = manifest::read_side(disk, dir, Side::Newest, file)?;
        let decoded = newest::decode(&bytes, directory.next_id());
        newest = decoded.map_err(|why| manifest::bad_side(dir, Side::Newest, file, why))?;
    }
    let mut segments = vec![];
    for file in &manifest.segments {
        segments.push(Arc::new(Segment::open(disk, dir, file, cold)?));
    }
    let (windows, segments) = segments
        .into_iter()
        .partition(|s: &Arc<Segment>| s.resolution().is_some());
    Ok(State {
        directory,
        newest,
        retention: manifest.retention.clone(),
        applied: manifest.applied,
        active: Head::new(),
        sealed: vec![],
        segments,
        windows,
        sides_damage: None,
        forgotten: BTreeMap::new(),
    })
}

fn read_aux(disk: &dyn Disk, dir: &str, manifest: &Manifest) -> Result<Vec<u8>, StorageError> {
    let aux = manifest.aux.as_ref();
    aux.map_or(Ok(vec![]), |file| manifest::read_side(disk, dir, Side::Aux, file))
}

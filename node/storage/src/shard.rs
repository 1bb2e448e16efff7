//! One shard's data, as its only writer sees it: entries in, segments out, and back again after a crash.
//!
//! The Raft log is the write-ahead log: what is not flushed yet comes again from there, from `durable` on.
//! Flush and compaction are each replica's own business and change no answer; floors, pins and cuts are entries.
//!
//! Invariants
//! - A failed operation leaves the state, in memory and on disk, as it was before; trying again takes new files.
//! - What is on disk is of one moment: rows, floors, pins, cuts and the caller's bytes at `durable`.
//! - Rows go only when no reader could ever see them again, or a later commit in the same segment overwrote them.

use crate::codec::RawLine;
use crate::compaction::{self, Merge};
use crate::directory::{Directory, SeriesMeta};
use crate::error::{Damage, StorageError};
use crate::manifest::{self, Manifest};
use crate::memtable::{Column, Memtable, settle};
use crate::retention::{Floor, Pin, Policy, Retention};
use crate::rows::Rows;
use crate::segment::{self, FileRef, Head, Segment, Writer};
use crate::view::{ShardReader, State};
use hindcast_env::Disk;
use hindcast_model::{Domain, GroupId, Labels, Owner, Sample, SeriesBlock, SpanNs, StreamBlock, TenantId, TimestampNs};
use parking_lot::RwLock;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How a shard keeps its files. All bounds are this node's own business.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Counts commit positions; files of another group are refused.
    pub group: GroupId,
    /// Memtables that hold this much want to be flushed.
    pub flush_bytes_max: usize,
    /// What is not durable for this long wants to be flushed.
    pub flush_age_max: SpanNs,
    /// Fewest segments worth a merge.
    pub compact_segments_min: usize,
    /// Most segments of one merge.
    pub compact_segments_max: usize,
    /// Most bytes of one merge, so that it ends soon.
    pub compact_bytes_max: u64,
}

impl Default for ShardConfig {
    fn default() -> Self {
        Self {
            group: GroupId(1),
            flush_bytes_max: 128 << 20,
            flush_age_max: SpanNs::from_secs(2 * 3600),
            compact_segments_min: 4,
            compact_segments_max: 16,
            compact_bytes_max: 64 << 20,
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
}

/// What retention let go at once, on this replica; the rest goes with merges and is hidden until then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    pub segments: usize,
    pub bytes: u64,
    pub samples: u64,
    pub lines: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardStats {
    /// Series and streams.
    pub series: usize,
    /// Rows that are held, overwritten and hidden ones included.
    pub samples: u64,
    pub lines: u64,
    pub memtable_bytes: usize,
    pub segments: usize,
    pub segment_bytes: u64,
}

/// What the manifest in force says, apart from its segments.
struct Durable {
    applied: u64,
    retention: Retention,
    aux: Option<FileRef>,
    sequence: u64,
    hash: [u8; 32],
    /// Sequences up to here may have been tried.
    sequence_tried: u64,
}

/// One shard. One owner writes; readers come from `reader`.
pub struct Shard {
    disk: Arc<dyn Disk>,
    dir: String,
    config: ShardConfig,
    state: Arc<RwLock<State>>,
    durable: Durable,
    next_number: u64,
    /// Highest index that rows or a cut came with.
    written: u64,
    /// Rows must come with a higher index: what is below is sealed.
    sealed_to: u64,
    /// The monotonic time at which `needs_flush` first saw something to flush, plus one; 0: nothing.
    dirty_since: AtomicU64,
}

impl Shard {
    /// Opens the folder, or makes it. Removes what a crash left behind.
    pub fn open(disk: Arc<dyn Disk>, dir: &str, config: ShardConfig) -> Result<(Self, Opened), StorageError> {
        disk.create_dir_all(dir)?;
        disk.sync_dir(hindcast_env::disk::parent(dir))?;
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
        let state = load_state(disk.as_ref(), dir, &manifest, 1)?;
        let aux = manifest::read_aux(disk.as_ref(), dir, manifest.aux.as_ref())?;
        let applied = manifest.applied;
        let mut shard = Self {
            state: Arc::new(RwLock::new(state)),
            next_number: manifest.next_number,
            written: applied,
            sealed_to: applied,
            dirty_since: AtomicU64::new(0),
            durable: Durable {
                applied,
                retention: manifest.retention.clone(),
                aux: manifest.aux.clone(),
                sequence: manifest.sequence,
                hash,
                sequence_tried: manifest.sequence,
            },
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
            state: Arc::new(RwLock::new(State {
                directory: Directory::default(),
                retention: Retention::default(),
                applied: 0,
                active: Memtable::new(1),
                sealed: vec![],
                segments: vec![],
            })),
            next_number: 1,
            written: 0,
            sealed_to: 0,
            dirty_since: AtomicU64::new(0),
            durable: Durable {
                applied: 0,
                retention: Retention::default(),
                aux: None,
                sequence: 0,
                hash: [0; 32],
                sequence_tried: 0,
            },
            disk,
            dir: dir.to_owned(),
            config,
        };
        shard.publish(0, Retention::default(), vec![], None, true)?;
        Ok(shard)
    }

    pub fn reader(&self) -> ShardReader {
        ShardReader {
            state: self.state.clone(),
        }
    }

    /// Takes rows of entry `index` into memory. They show once `advance` passes it.
    ///
    /// # Panics
    /// When `index` was advanced over, flushed or cut already: the log is given in order, each entry once.
    pub fn write(&mut self, index: u64, tenant: &TenantId, series: &[SeriesBlock], streams: &[StreamBlock]) {
        self.begin(index);
        let mut guard = self.state.write();
        let State {
            directory,
            active,
            retention,
            applied,
            ..
        } = &mut *guard;
        assert!(index > *applied, "entry {index} is new, not one up to {applied}");
        retention.meet(tenant);
        for block in series.iter().filter(|b| !b.samples.is_empty()) {
            let (meta, place) = directory.find_or_add(tenant, false, &block.labels, &block.owner);
            active.push_samples(meta, place, &block.samples);
            active.saw(index);
        }
        for block in streams.iter().filter(|b| !b.lines.is_empty()) {
            let (meta, place) = directory.find_or_add(tenant, true, &block.labels, &block.owner);
            active.push_lines(meta, place, &block.lines);
            active.saw(index);
        }
    }

    /// The id of a series or stream, given now if it is new. Ids are given in the order of the log, so they are the
    /// same on every replica, and never given again.
    pub fn define(&mut self, tenant: &TenantId, streams: bool, labels: &Labels, owner: &Owner) -> u32 {
        let mut state = self.state.write();
        state.retention.meet(tenant);
        state.directory.find_or_add(tenant, streams, labels, owner).0.id
    }

    /// Counts how often ids were forgotten: an entry whose ids are of another epoch must be made anew.
    pub fn epoch(&self) -> u64 {
        0
    }

    /// Takes samples of entry `index` into memory, and calls `heard` once for each owner among the series.
    /// False, and nothing was taken, when an id is not one of a series.
    ///
    /// # Panics
    /// As [`Shard::write`].
    pub fn push_rows(
        &mut self,
        index: u64,
        rows: &Rows<'_>,
        mut heard: impl FnMut(&TenantId, Owner, TimestampNs),
    ) -> bool {
        self.begin(index);
        let mut guard = self.state.write();
        let State { directory, active, .. } = &mut *guard;
        if !rows.ids().all(|id| directory.get(id).is_some_and(|m| !m.streams)) {
            return false;
        }
        let newest = TimestampNs(rows.times.iter().copied().max().unwrap_or(i64::MIN));
        let mut last = None;
        for (i, id) in rows.ids().enumerate() {
            let Some((meta, place)) = directory.column(id) else {
                return false;
            };
            if last != Some(meta.owner) {
                last = Some(meta.owner);
                heard(&meta.tenant, meta.owner, newest);
            }
            let width = rows.width();
            for (t, at) in rows.times.iter().enumerate() {
                let sample = Sample {
                    at: TimestampNs(*at),
                    value: rows.value(t * width + i),
                };
                active.push_samples(meta, place, &[sample]);
            }
        }
        active.saw(index);
        true
    }

    /// Takes lines of entry `index` into memory. False, and nothing was taken, when `id` is not one of a stream.
    ///
    /// # Panics
    /// As [`Shard::write`].
    pub fn push_lines<'a>(&mut self, index: u64, id: u32, lines: impl Iterator<Item = RawLine<'a>>) -> bool {
        self.begin(index);
        let mut guard = self.state.write();
        let State { directory, active, .. } = &mut *guard;
        match directory.column(id) {
            Some((meta, place)) if meta.streams => {
                active.push_raw_lines(meta, place, lines);
                active.saw(index);
                true
            }
            _ => false,
        }
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
        state.active.show();
        state.applied = index;
    }

    /// Records a cut: reads `as_of` this index are exact from here on, as long as the cut is kept.
    pub fn cut(&mut self, index: u64) {
        assert!(
            index >= self.written && index >= self.applied(),
            "a cut at {index} comes after all that was given, up to {}",
            self.written.max(self.applied())
        );
        self.written = index;
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
        self.state.write().retention.pin(pin);
    }

    pub fn unpin(&mut self, id: &str) {
        self.state.write().retention.unpin(id);
    }

    /// Replaces the floors, hides what lies below, and lets go of files in which nothing can be read any more.
    pub fn retain(&mut self, floors: Vec<Floor>) -> Dropped {
        let mut guard = self.state.write();
        let state = &mut *guard;
        state.retention.retain(floors);
        let mut dropped = Dropped::default();
        let retention = &state.retention;
        state.segments.retain(|s| {
            let gone = is_gone(retention, s);
            if gone {
                dropped.segments += 1;
                dropped.bytes += s.file.bytes;
                let rows = if s.head.streams {
                    &mut dropped.lines
                } else {
                    &mut dropped.samples
                };
                *rows += s.rows();
            }
            !gone
        });
        if dropped.segments > 0 {
            state.directory.sweep();
        }
        dropped
    }

    /// The oldest event time that is kept of a tenant's domain (`None`: of what belongs to no domain).
    pub fn floor_of(&self, tenant: &TenantId, domain: Option<Domain>) -> TimestampNs {
        let state = self.state.read();
        state.retention.floor_of(tenant, Policy::of_domain(domain))
    }

    pub fn applied(&self) -> u64 {
        self.state.read().applied
    }

    /// The log may be cut up to here.
    pub fn durable(&self) -> u64 {
        self.durable.applied
    }

    /// Whether the memtables are large enough, or old enough. Ages count from the first call that saw them.
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
        memtable_bytes(&state) >= self.config.flush_bytes_max || first - since.min(first) >= self.config.flush_age_max.0
    }

    /// Makes everything up to `applied` durable, with `aux` beside it.
    ///
    /// # Panics
    /// When rows were given that `advance` has not passed: an entry is flushed whole or not at all.
    pub fn flush(&mut self, aux: &[u8]) -> Result<FlushReport, StorageError> {
        assert!(self.written <= self.applied(), "a flush comes between entries");
        self.seal();
        self.or_discard(|shard| shard.flush_sealed(aux))
    }

    fn flush_sealed(&mut self, aux: &[u8]) -> Result<FlushReport, StorageError> {
        let (sealed, applied, retention, mut segments) = {
            let s = self.state.read();
            (s.sealed.clone(), s.applied, s.retention.clone(), s.segments.clone())
        };
        let mut report = FlushReport {
            applied,
            ..FlushReport::default()
        };
        let dir = self.dir.clone();
        for segment in self.write_memtables(&sealed, &dir)? {
            report.segments += 1;
            report.bytes += segment.file.bytes;
            report.rows += segment.rows();
            segments.push(Arc::new(segment));
        }
        let number = self.take_number();
        let aux = manifest::write_aux(self.disk.as_ref(), &self.dir, number, aux)?;
        self.disk.sync_dir(&self.dir)?;
        let files = segments.iter().map(|s| s.file.clone()).collect();
        self.publish(applied, retention, files, aux, true)?;
        let mut state = self.state.write();
        state.segments = segments;
        state.sealed.clear();
        self.sealed_to = self.sealed_to.max(applied);
        self.dirty_since.store(0, Ordering::Relaxed);
        Ok(report)
    }

    /// Merges one run of small neighbouring segments, if there is one. Changes no answer.
    pub fn compact(&mut self) -> Result<Option<CompactReport>, StorageError> {
        self.or_discard(Self::merge_one)
    }

    fn merge_one(&mut self) -> Result<Option<CompactReport>, StorageError> {
        let (retention, segments) = {
            let s = self.state.read();
            (s.retention.clone(), s.segments.clone())
        };
        let Some(run) = compaction::choose(&segments, &retention, &self.config) else {
            return Ok(None);
        };
        let number = self.take_number();
        let merged = Merge {
            disk: self.disk.as_ref(),
            dir: &self.dir,
            number,
            retention: &retention,
        }
        .run(&run)?;
        self.disk.sync_dir(&self.dir)?;
        let report = compaction::report(&run, merged.as_ref());
        let gone: BTreeSet<u64> = run.iter().map(|s| s.file.number).collect();
        let last = run.last().map(|s| s.file.number);
        let mut merged = merged.map(Arc::new);
        let mut kept = vec![];
        for s in segments {
            if Some(s.file.number) == last {
                kept.extend(merged.take());
            } else if !gone.contains(&s.file.number) {
                kept.push(s);
            }
        }
        let files = kept.iter().map(|s| s.file.clone()).collect();
        // The durable moment stays what it was: the log still comes again from there.
        let (applied, retention, aux) = (
            self.durable.applied,
            self.durable.retention.clone(),
            self.durable.aux.clone(),
        );
        self.publish(applied, retention, files, aux, true)?;
        let mut state = self.state.write();
        state.segments = kept;
        if report.rows_out < report.rows_in {
            drop(run);
            state.directory.sweep();
        }
        Ok(Some(report))
    }

    /// Writes the state at `applied` into a folder as flat, synced files: for a peer, or for a backup.
    /// Our own durable state stays what it was.
    pub fn export(&mut self, into_dir: &str, aux: &[u8]) -> Result<(), StorageError> {
        assert!(self.written <= self.applied(), "an export comes between entries");
        self.seal();
        let (sealed, applied, retention, segments) = {
            let s = self.state.read();
            (s.sealed.clone(), s.applied, s.retention.clone(), s.segments.clone())
        };
        let disk = self.disk.clone();
        disk.create_dir_all(into_dir)?;
        let mut files = vec![];
        for s in &segments {
            let (from, to) = (
                segment::path_of(&self.dir, s.file.number),
                segment::path_of(into_dir, s.file.number),
            );
            bring(disk.as_ref(), &from, &to)?;
            files.push(s.file.clone());
        }
        files.extend(self.write_memtables(&sealed, into_dir)?.into_iter().map(|s| s.file));
        let number = self.take_number();
        let aux = manifest::write_aux(disk.as_ref(), into_dir, number, aux)?;
        disk.sync_dir(into_dir)?;
        let manifest = Manifest {
            sequence: 1,
            previous: (0, [0; 32]),
            group: self.config.group,
            applied,
            next_number: self.next_number,
            retention,
            segments: files,
            aux,
        };
        manifest.publish(disk.as_ref(), into_dir)?;
        Ok(())
    }

    /// Replaces everything by an exported state, durably, and returns its caller's bytes. Afterwards `applied` and
    /// `durable` are `index`. A crash on the way leaves the old state or the new one.
    pub fn install(&mut self, from_dir: &str, index: u64) -> Result<Vec<u8>, StorageError> {
        self.or_discard(|shard| shard.install_from(from_dir, index))
    }

    fn install_from(&mut self, from_dir: &str, index: u64) -> Result<Vec<u8>, StorageError> {
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
        let aux = manifest::read_aux(disk.as_ref(), from_dir, manifest.aux.as_ref())?;
        for file in &mut manifest.segments {
            let from = segment::path_of(from_dir, file.number);
            segment::scrub_path(disk.as_ref(), &from, file)?;
            file.number = self.take_number();
            bring(disk.as_ref(), &from, &segment::path_of(&self.dir, file.number))?;
        }
        let number = self.take_number();
        manifest.aux = manifest::write_aux(disk.as_ref(), &self.dir, number, &aux)?;
        disk.sync_dir(&self.dir)?;
        manifest.applied = index;
        let memtables = self.state.read().active.number() + 1;
        let state = load_state(disk.as_ref(), &self.dir, &manifest, memtables)?;
        self.publish(index, manifest.retention, manifest.segments, manifest.aux, false)?;
        *self.state.write() = state;
        (self.written, self.sealed_to) = (index, index);
        self.dirty_since.store(0, Ordering::Relaxed);
        Ok(aux)
    }

    /// Reads every segment whole and compares its BLAKE3: finds damage before a reader does.
    pub fn scrub(&self) -> Result<(), StorageError> {
        let segments = self.state.read().segments.clone();
        for s in segments {
            s.scrub()?;
        }
        Ok(())
    }

    pub fn stats(&self) -> ShardStats {
        let state = self.state.read();
        let tables = || state.sealed.iter().map(Arc::as_ref).chain([&state.active]);
        let rows = |streams| {
            let of_kind = state.segments.iter().filter(move |s| s.head.streams == streams);
            of_kind.map(|s| s.rows()).sum::<u64>()
        };
        ShardStats {
            series: state.directory.len(),
            samples: rows(false) + tables().map(Memtable::samples).sum::<u64>(),
            lines: rows(true) + tables().map(Memtable::lines).sum::<u64>(),
            memtable_bytes: memtable_bytes(&state),
            segments: state.segments.len(),
            segment_bytes: state.segments.iter().map(|s| s.file.bytes).sum(),
        }
    }

    /// Removes the new files of what failed, unless a manifest that may be in force names them: a full disk must not
    /// fill further with every try.
    fn or_discard<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, StorageError>) -> Result<T, StorageError> {
        let (number, tried) = (self.next_number, self.durable.sequence_tried);
        let done = work(self);
        let manifest = format!("{}/{}", self.dir, manifest::name_of(self.durable.sequence_tried));
        let is_published = self.durable.sequence_tried > tried && self.disk.exists(&manifest);
        if done.is_err() && !is_published {
            for n in number..self.next_number {
                for path in [
                    segment::path_of(&self.dir, n),
                    format!("{}/{}", self.dir, manifest::aux_name(n)),
                ] {
                    // What stays is an orphan, and goes when the next manifest is there.
                    let _ = self.disk.remove(&path);
                }
            }
        }
        done
    }

    /// Closes the active memtable and starts another.
    fn seal(&mut self) {
        let mut state = self.state.write();
        if !state.active.is_empty() {
            let next = Memtable::new(state.active.number() + 1);
            let full = std::mem::replace(&mut state.active, next);
            state.sealed.push(Arc::new(full.seal()));
        }
    }

    fn take_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number - 1
    }

    /// One segment per memtable, tenant, kind and policy; synced, their names not yet.
    fn write_memtables(&mut self, tables: &[Arc<Memtable>], dir: &str) -> Result<Vec<Segment>, StorageError> {
        let mut written = vec![];
        for table in tables {
            let mut parts: BTreeMap<(&TenantId, bool, Policy), Vec<&Column>> = BTreeMap::new();
            for c in table.columns() {
                let m = &c.meta;
                parts.entry((&m.tenant, m.streams, m.policy)).or_default().push(c);
            }
            for ((tenant, streams, policy), mut columns) in parts {
                columns.sort_by(|a, b| a.meta.order().cmp(&b.meta.order()));
                let head = Head {
                    tenant: tenant.clone(),
                    streams,
                    policy,
                    group: self.config.group,
                    commits: table.commits().unwrap_or((0, 0)),
                    times: times_of(&columns),
                };
                let number = self.take_number();
                written.push(write_part(self.disk.as_ref(), dir, number, head, &columns)?);
            }
        }
        Ok(written)
    }

    /// Makes a manifest the one in force, then removes files that neither it nor the one before names.
    fn publish(
        &mut self,
        applied: u64,
        retention: Retention,
        segments: Vec<FileRef>,
        aux: Option<FileRef>,
        keep_previous: bool,
    ) -> Result<(), StorageError> {
        self.durable.sequence_tried += 1;
        let manifest = Manifest {
            sequence: self.durable.sequence_tried,
            previous: (self.durable.sequence, self.durable.hash),
            group: self.config.group,
            applied,
            next_number: self.next_number,
            retention,
            segments,
            aux,
        };
        let hash = manifest.publish(self.disk.as_ref(), &self.dir)?;
        // Leftovers are found again when the shard opens; they are no reason to call the flush a failure.
        let _ = self.sweep_files(&manifest, keep_previous);
        self.durable = Durable {
            applied,
            retention: manifest.retention,
            aux: manifest.aux,
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
        for name in disk.list(&self.dir)? {
            if manifest::is_ours(&name) && !kept.contains(&name) {
                disk.remove(&format!("{}/{name}", self.dir))?;
            }
        }
        Ok(())
    }
}

fn memtable_bytes(state: &State) -> usize {
    state.sealed.iter().map(|m| m.bytes()).sum::<usize>() + state.active.bytes()
}

fn is_gone(retention: &Retention, s: &Segment) -> bool {
    let (first, last) = s.head.span();
    last < retention.floor_of(&s.head.tenant, s.head.policy)
        && retention.is_gone(s.metas().map(Arc::as_ref), first, last)
}

fn times_of(columns: &[&Column]) -> (i64, i64) {
    let times = columns.iter().filter_map(|c| c.times());
    times.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))).unwrap_or((0, 0))
}

fn write_part(
    disk: &dyn Disk,
    dir: &str,
    number: u64,
    head: Head,
    columns: &[&Column],
) -> Result<Segment, StorageError> {
    let streams = head.streams;
    let mut writer = Writer::create(disk, dir, number, head)?;
    let everything = vec![(i64::MIN, i64::MAX)];
    for c in columns {
        if streams {
            let mut lines: Vec<RawLine<'_>> = c.raw_lines().collect();
            lines.sort_by_key(|l| l.at);
            writer.lines(&c.meta, &lines)?;
        } else {
            let mut samples = vec![];
            c.samples(&everything, &mut samples);
            settle(&mut samples);
            writer.samples(&c.meta, &samples)?;
        }
    }
    Ok(writer.finish(disk, dir)?)
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
                return Ok(Some((manifest, hash, damage)));
            }
            Err(StorageError::Damaged(d)) => damage = damage.or(Some(d)),
            Err(e) => return Err(e),
        }
    }
    let has_rows = names.iter().any(|n| manifest::number_in(n, "segment-").is_some());
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

fn load_state(disk: &dyn Disk, dir: &str, manifest: &Manifest, memtable: u64) -> Result<State, StorageError> {
    let mut directory = Directory::default();
    let mut segments = vec![];
    for file in &manifest.segments {
        segments.push(Arc::new(Segment::open(disk, dir, file, &mut directory)?));
    }
    Ok(State {
        directory,
        retention: manifest.retention.clone(),
        applied: manifest.applied,
        active: Memtable::new(memtable),
        sealed: vec![],
        segments,
    })
}

/// Shared by tests and merges.
pub(crate) fn series_of(segments: &[Arc<Segment>]) -> Vec<Arc<SeriesMeta>> {
    let mut all: Vec<Arc<SeriesMeta>> = segments.iter().flat_map(|s| s.metas().cloned()).collect();
    all.sort_by(|a, b| a.order().cmp(&b.order()));
    all.dedup_by_key(|m| m.id);
    all
}

//! The state machine of one shard: what its committed entries mean.
//!
//! Replicated state: storage (samples, lines, pins, cuts, floors), the dedup table, the topology last recorded.
//! What only helps (sources for the watermark) is derived and starts empty.
//!
//! Invariants
//! - A batch that is known already changes nothing.
//! - A part whose ids do not hold here is stored by no replica and remembered by none: it comes again with definitions.
//! - The auxiliary state is flushed with the segments, in one manifest: both stand at the same index.

use crate::auxiliary::Aux;
use crate::beside::Beside;
use crate::cold_moves::{Jobs, Moves};
use crate::dedup::Verdict;
use crate::entry::{self, Command, Control, PartView};
use crate::sources::Sources;
use bytes::Bytes;
use hindcast_env::buggify::{Point as Rare, buggify};
use hindcast_env::planted::{Bug, planted};
use hindcast_env::reached::{Mark, reached};
use hindcast_env::{Clock, Disk};
use hindcast_ingest::intake::Numbers;
use hindcast_model::resource::Edge;
use hindcast_model::{GroupId, LogLine, Owner, Resource, SpanNs, StreamBlock, TenantId, TimestampNs, codec};
use hindcast_proto::topology::TopologyRecord;
use hindcast_raft::{Machine, MachineError, SnapshotCheck, Work, WorkKind};
use hindcast_storage::rows::{Rows, Run};
use hindcast_storage::{
    Damage, DroppedByRule, Effort, FlushDone, MergeDone, Merged, Shard, ShardConfig, ShardReader, ShardStats,
    StorageError,
};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Resources and edges whose last record a shard remembers; beyond, no further ones are recorded.
pub const TOPOLOGY_MAX: usize = 1_000_000;
/// Merges are looked for at most this often.
const COMPACT_SPAN: SpanNs = SpanNs::from_secs(5);
/// So much memory is written within milliseconds.
const EXPORT_HEAD_BYTES_MAX: usize = 256 << 10;

/// What the proposer of an entry is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Applied {
    /// One per part of the write, in order.
    Write(Vec<PartApplied>),
    Control,
    /// The entry could not be read: nothing was changed.
    Refused(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PartApplied {
    Stored,
    Duplicate,
    SequenceTooOld,
    /// Its ids are not those of the shard: nothing was stored. Sent again with definitions, it will be.
    Stale,
}

/// The shard as others on this node see it: reads, and requests to the machine's owner.
#[derive(Clone)]
pub struct ShardHandle {
    pub group: GroupId,
    pub reader: ShardReader,
    pub sources: Arc<RwLock<Sources>>,
    disk: Arc<dyn Disk>,
    dir: Arc<str>,
    stats: Arc<Mutex<ShardStats>>,
    dropped: Arc<Mutex<DroppedByRule>>,
    wishes: Arc<Wishes>,
    repairs: Arc<AtomicU64>,
}

/// Requests to the apply worker, counted: a wish is granted when the done count has reached it.
#[derive(Default)]
struct Wishes {
    flush: AtomicU64,
    flushed: AtomicU64,
    compact: AtomicU64,
    compacted: AtomicU64,
}

impl ShardHandle {
    pub fn stats(&self) -> ShardStats {
        *self.stats.lock()
    }

    /// What each retention rule let go here since the node started.
    pub fn dropped(&self) -> DroppedByRule {
        self.dropped.lock().clone()
    }

    /// How often damaged files were replaced by another node's snapshot since the node started.
    pub fn repairs(&self) -> u64 {
        self.repairs.load(Ordering::Relaxed)
    }

    /// Looks at the manifest and what it names beside segments, as `ShardReader::check_sides`. Reads files.
    pub fn check_sides(&self) -> Result<Option<Damage>, StorageError> {
        self.reader.check_sides(self.disk.as_ref(), &self.dir)
    }

    /// Asks for a flush; the ticket is to be shown to `flushed`.
    pub fn ask_flush(&self) -> u64 {
        self.wishes.flush.fetch_add(1, Ordering::SeqCst) + 1
    }
    pub fn flushed(&self, ticket: u64) -> bool {
        self.wishes.flushed.load(Ordering::SeqCst) >= ticket
    }
    /// Asks to compact until nothing is left to merge.
    pub fn ask_compact(&self) -> u64 {
        self.wishes.compact.fetch_add(1, Ordering::SeqCst) + 1
    }
    pub fn compacted(&self, ticket: u64) -> bool {
        self.wishes.compacted.load(Ordering::SeqCst) >= ticket
    }
}

pub struct ShardMachine {
    shard: Shard,
    aux: Aux,
    clock: Arc<dyn Clock>,
    handle: ShardHandle,
    compact_after: SpanNs,
    flush: Beside<FlushDone>,
    /// The wish that the flush under way grants.
    flush_grants: u64,
    merge: Beside<MergeDone>,
    /// The wish that the merge under way grants when it finds nothing to do.
    merge_grants: Option<u64>,
    /// `None`: nothing goes to a cold store.
    moves: Option<Moves>,
    /// A folder of files that did not open.
    aside: Option<(Arc<dyn Disk>, String)>,
    /// The flush that a snapshot for a peer waits for.
    export_after: Option<u64>,
}

impl ShardMachine {
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &str,
        config: ShardConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StorageError> {
        let group = config.group;
        let (shard, opened) = Shard::open(disk.clone(), dir, config)?;
        let aux = read_aux(&opened.aux, dir)?;
        let handle = ShardHandle {
            group,
            reader: shard.reader(),
            sources: Arc::default(),
            disk,
            dir: dir.into(),
            stats: Arc::new(Mutex::new(shard.stats())),
            dropped: Arc::default(),
            wishes: Arc::default(),
            repairs: Arc::default(),
        };
        let compact_after = clock.monotonic();
        Ok(Self {
            shard,
            aux,
            clock,
            handle,
            compact_after,
            flush: Beside::default(),
            flush_grants: 0,
            merge: Beside::default(),
            merge_grants: None,
            moves: None,
            aside: None,
            export_after: None,
        })
    }

    /// What is in the folder did not open; it goes when a snapshot, or what the log gives again, is in force
    /// in its place.
    pub fn with_aside(mut self, disk: Arc<dyn Disk>, folder: String) -> Self {
        self.aside = Some((disk, folder));
        self
    }

    /// Work with the shard's cold store runs there.
    pub fn with_cold_jobs(mut self, jobs: Arc<dyn Jobs>) -> Self {
        self.moves = Some(Moves::new(jobs));
        self
    }

    pub fn handle(&self) -> ShardHandle {
        self.handle.clone()
    }

    fn write(&mut self, index: u64, at: TimestampNs, parts: Vec<PartView<'_>>) -> Applied {
        let mut answers = Vec::with_capacity(parts.len());
        for part in parts {
            answers.push(match self.aux.dedup.verdict(&part.tenant, part.id, at) {
                Verdict::Known => {
                    reached(Mark::DuplicateAnswered);
                    PartApplied::Duplicate
                }
                Verdict::TooOld => PartApplied::SequenceTooOld,
                Verdict::New if self.store(index, at, &part) => {
                    self.aux.dedup.remember(&part.tenant, part.id, at);
                    PartApplied::Stored
                }
                Verdict::New => {
                    reached(Mark::PartStale);
                    PartApplied::Stale
                }
            });
        }
        Applied::Write(answers)
    }

    /// False, and no line was taken, when its ids do not hold here. Samples may have been taken then; coming again
    /// they replace themselves.
    fn store(&mut self, index: u64, at: TimestampNs, part: &PartView<'_>) -> bool {
        let known = |numbers| numbers == Numbers::Ids;
        if part.has_ids() && part.epoch != self.shard.epoch() {
            return false;
        }
        // No lines yet: only whether the id is one of a stream.
        let mut streams = part.streams.iter().filter(|s| known(s.numbers));
        if !streams.all(|s| self.shard.push_lines(index, s.number, std::iter::empty())) {
            return false;
        }
        let defined: Vec<u32> = part
            .definitions
            .iter()
            .map(|d| self.shard.define(&part.tenant, d.streams, &d.labels, &d.owner))
            .collect();
        if !self.store_rows(index, at, part, &defined) {
            return false;
        }
        for s in &part.streams {
            let id = match s.numbers {
                Numbers::Ids => s.number,
                Numbers::Definitions => defined[s.number as usize],
            };
            self.shard.push_lines(index, id, part.lines(s));
        }
        if !part.resources.is_empty() || !part.edges.is_empty() {
            let first = part.first().unwrap_or(at);
            let records = self.topology(&part.tenant, part.resources.clone(), &part.edges, first);
            self.shard.write(index, &part.tenant, &[], &records);
        }
        true
    }

    fn store_rows(&mut self, index: u64, at: TimestampNs, part: &PartView<'_>, defined: &[u32]) -> bool {
        let mut sources = self.handle.sources.write();
        let mut runs: Vec<Run> = vec![];
        for group in &part.groups {
            let runs = match group.numbers {
                Numbers::Ids => &group.runs,
                Numbers::Definitions => {
                    runs.clear();
                    let ids = group.runs.iter().flat_map(|r| r.ids()).map(|n| defined[n as usize]);
                    for id in ids {
                        match runs.last_mut() {
                            Some(run) if run.first + run.len == id => run.len += 1,
                            _ => runs.push(Run { first: id, len: 1 }),
                        }
                    }
                    &runs
                }
            };
            let rows = Rows {
                times: &group.times,
                runs,
                values: group.values,
            };
            let heard = |tenant: &TenantId, owner, newest| sources.heard(tenant, owner, newest, at);
            if !self.shard.push_rows(index, &rows, heard) {
                return false;
            }
        }
        true
    }

    /// Lines for what the batch says of the world that was not recorded in this form yet.
    fn topology(
        &mut self,
        tenant: &TenantId,
        resources: Vec<Resource>,
        edges: &[Edge],
        at: TimestampNs,
    ) -> Vec<StreamBlock> {
        let mut streams = vec![];
        let mut record = |record: TopologyRecord, owner: Owner| {
            let line = LogLine {
                at,
                line: Bytes::from(record.to_line()),
                metadata: vec![],
            };
            streams.push(StreamBlock {
                labels: record.stream(),
                owner,
                lines: vec![line],
            });
        };
        for resource in resources {
            let room = self.aux.resources.len() < TOPOLOGY_MAX;
            let known = match self.aux.resources.entry((tenant.clone(), resource.id)) {
                Entry::Vacant(_) if !room => continue,
                Entry::Vacant(new) => new.insert(resource),
                Entry::Occupied(known) => {
                    let known = known.into_mut();
                    // Senders tell different amounts: who says less does not take back what another said.
                    let before = known.attributes.clone();
                    known.attributes.extend(resource.attributes);
                    if known.attributes == before {
                        continue;
                    }
                    known
                }
            };
            let owner = Owner::Resource {
                id: known.id,
                kind: known.kind,
            };
            record(TopologyRecord::Resource(known.clone()), owner);
        }
        for edge in edges {
            let room = self.aux.edges.len() < TOPOLOGY_MAX;
            if room && self.aux.edges.insert((tenant.clone(), *edge)) {
                // The stream belongs to no resource kind in particular: the slot is that of `from`, as the router chose.
                record(TopologyRecord::Edge(*edge), Owner::None);
            }
        }
        streams
    }

    fn control(&mut self, index: u64, control: Control) {
        match control {
            Control::Retain { floors } => {
                self.shard.retain(floors);
            }
            Control::Pin { pin } => self.shard.pin(pin),
            Control::Unpin { id } => self.shard.unpin(&id),
            Control::Cut => self.shard.cut(index),
            Control::DropCut { index } => self.shard.drop_cut(index),
        }
    }

    /// Puts in force what a flush wrote; begins one when memory is full or old, or somebody asked.
    fn tend_flush(&mut self, now: SpanNs, begin: &mut dyn FnMut(Work)) -> Result<(), MachineError> {
        if let Some(done) = self.flush.take() {
            self.end_flush(done)?;
        }
        let wishes = &self.handle.wishes;
        let wished = wishes.flush.load(Ordering::SeqCst);
        let is_asked = wished > wishes.flushed.load(Ordering::SeqCst);
        let is_early = self.shard.durable() < self.shard.applied() && buggify(Rare::EarlyFlush);
        if self.flush.is_idle() && (is_asked || is_early || self.shard.needs_flush(now)) {
            self.flush_grants = wished;
            let work = self.shard.begin_flush(&self.aux.encode());
            begin(Work {
                kind: WorkKind::Flush,
                run: self.flush.begin(|| work.run()),
            });
        }
        Ok(())
    }

    fn end_flush(&mut self, done: FlushDone) -> Result<(), MachineError> {
        self.shard.end_flush(done).map_err(machine_error)?;
        // The log still held all of it, and gives it again. A copy that waits for a snapshot has nothing to write.
        if self.shard.durable() > 0 && self.forget_aside() {
            self.handle.repairs.fetch_add(1, Ordering::Relaxed);
        }
        self.handle.wishes.flushed.store(self.flush_grants, Ordering::SeqCst);
        Ok(())
    }

    /// True when there were files that did not open.
    fn forget_aside(&mut self) -> bool {
        let Some((disk, folder)) = self.aside.take() else {
            return false;
        };
        if let Err(error) = disk.remove_dir_all(&folder) {
            tracing::warn!(folder, %error, "damaged files of a shard stay behind; they may be deleted");
        }
        true
    }

    /// Memory is bounded: when rows come faster than they are written out, their entries wait.
    fn wait_for_flush(&mut self) -> Result<(), MachineError> {
        match self.flush.wait().map(|done| self.end_flush(done)) {
            // Tried again by `maintain`; what the log takes until then is bounded by the disk's reserve.
            Some(Err(MachineError::Disk(e))) if e.is_full() => Ok(()),
            ended => ended.unwrap_or(Ok(())),
        }
    }

    /// One merge at a time. A wish is granted when nothing is left to merge.
    fn tend_merge(&mut self, now: SpanNs, begin: &mut dyn FnMut(Work)) -> Result<(), MachineError> {
        if let Some(done) = self.merge.take() {
            let merged = self.shard.end_merge(done).map_err(machine_error);
            for damage in self.shard.take_damage() {
                tracing::error!(%damage, "a merge met damage and leaves the file alone; see the runbook of scrub findings");
            }
            if let (Merged::Nothing, Some(granted)) = (merged?, self.merge_grants) {
                self.handle.wishes.compacted.store(granted, Ordering::SeqCst);
            }
        }
        if !self.merge.is_idle() {
            return Ok(());
        }
        let wishes = &self.handle.wishes;
        let wished = wishes.compact.load(Ordering::SeqCst);
        let is_asked = wished > wishes.compacted.load(Ordering::SeqCst);
        let effort = match (is_asked, now >= self.compact_after || buggify(Rare::EarlyMerge)) {
            (true, _) => Effort::Full,
            (false, true) => Effort::Background,
            (false, false) => return Ok(()),
        };
        self.merge_grants = is_asked.then_some(wished);
        self.compact_after = SpanNs(now.0 + COMPACT_SPAN.0);
        let work = self.shard.begin_merge(effort).map_err(machine_error)?;
        begin(Work {
            kind: WorkKind::Merge,
            run: self.merge.begin(|| work.run()),
        });
        Ok(())
    }
}

fn read_aux(bytes: &[u8], dir: &str) -> Result<Aux, StorageError> {
    Aux::decode(bytes).map_err(|e| {
        let (file, to) = (format!("{dir}, the state beside the segments"), bytes.len() as u64);
        StorageError::Damaged(Damage {
            file,
            from: 0,
            to,
            why: e.to_string(),
        })
    })
}

fn machine_error(e: StorageError) -> MachineError {
    match e {
        // A full disk is told apart: the apply worker tries again.
        StorageError::Disk(e) => MachineError::Disk(e),
        e => MachineError::Damaged(e.to_string()),
    }
}

impl Machine for ShardMachine {
    fn applied(&self) -> u64 {
        self.shard.applied()
    }

    fn apply(&mut self, entry: &hindcast_raft::Entry) -> Result<Bytes, MachineError> {
        if self.shard.is_behind() {
            reached(Mark::ApplyWaited);
            self.wait_for_flush()?;
        }
        let mut h = blake3::Hasher::new();
        h.update(&self.aux.digest)
            .update(&entry.index.to_le_bytes())
            .update(&entry.data);
        self.aux.digest = *h.finalize().as_bytes();
        let answer = match entry::decode(&entry.data) {
            Ok(entry::ShardEntry {
                at,
                command: Command::Write(parts),
            }) => self.write(entry.index, at, parts),
            Ok(entry::ShardEntry {
                command: Command::Control(control),
                ..
            }) => {
                self.control(entry.index, control);
                Applied::Control
            }
            // Every replica reads the same bytes and refuses them alike.
            Err(e) => Applied::Refused(e.to_string()),
        };
        self.shard.advance(entry.index);
        Ok(codec::to_bytes(&answer).into())
    }

    fn durable(&self) -> u64 {
        self.shard.durable()
    }

    fn maintain(&mut self, begin: &mut dyn FnMut(Work)) -> Result<(), MachineError> {
        let now = self.clock.monotonic();
        // A flush that finds the disk full does not keep merges from giving room back.
        let flushed = self.tend_flush(now, begin);
        let merged = self.tend_merge(now, begin);
        let moved = match &mut self.moves {
            Some(moves) => moves.step(&mut self.shard, now, self.clock.now()),
            None => Ok(()),
        };
        *self.handle.stats.lock() = self.shard.stats();
        self.handle.dropped.lock().clone_from(self.shard.dropped());
        flushed.and(merged).and(moved.map_err(machine_error))
    }

    /// What is in memory is written into the snapshot while no entry is applied: a flush before leaves little of it.
    fn is_ready_to_export(&mut self) -> bool {
        let ticket = match self.export_after {
            Some(ticket) => ticket,
            None if self.shard.stats().head_bytes <= EXPORT_HEAD_BYTES_MAX => return true,
            None => self.handle.ask_flush(),
        };
        let is_ready = self.handle.flushed(ticket);
        self.export_after = (!is_ready).then_some(ticket);
        is_ready
    }

    fn export(&mut self, dir: &str) -> Result<(), MachineError> {
        self.shard.export(dir, &self.aux.encode()).map_err(machine_error)
    }

    fn snapshot_check(&self) -> SnapshotCheck {
        let disk = self.shard.disk().clone();
        Arc::new(move |dir| hindcast_storage::check_export(disk.as_ref(), dir).map_err(machine_error))
    }

    fn install(&mut self, dir: &str, index: u64) -> Result<(), MachineError> {
        let damaged = self.handle.reader.damaged();
        let aux = self.shard.install(dir, index).map_err(machine_error)?;
        self.aux = read_aux(&aux, dir).map_err(machine_error)?;
        if planted(Bug::SnapshotDropsDedup) {
            self.aux.dedup = Default::default();
        }
        if self.forget_aside() || !damaged.is_empty() {
            self.handle.repairs.fetch_add(1, Ordering::Relaxed);
            let (group, files) = (self.handle.group, damaged.len());
            tracing::info!(%group, files, index, "damaged files are replaced by a snapshot of the leader");
        }
        Ok(())
    }

    fn forget(&mut self) -> Result<(), MachineError> {
        self.shard.forget().map_err(machine_error)?;
        self.aux = Aux::default();
        *self.handle.sources.write() = Sources::default();
        self.forget_aside();
        tracing::info!(group = %self.handle.group, "this copy is not needed any more, and its files are gone");
        Ok(())
    }

    fn digest(&self) -> [u8; 32] {
        self.aux.digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_env::{SimClock, SimDisk};
    use hindcast_ingest::{Ids, Intake, Naming};
    use hindcast_model::{Batch, BatchId, Labels, Sample, SeriesBlock, ShardId, ShardMap, WriterId};
    use hindcast_storage::read::{Direction, SelectLines, SelectSeries};
    use std::collections::BTreeMap;

    struct Rig {
        machine: ShardMachine,
        disk: SimDisk,
        replicas: crate::route::Replicas,
        index: u64,
    }

    impl Rig {
        fn new() -> Self {
            Self::with(ShardConfig::default())
        }

        fn with(config: ShardConfig) -> Self {
            let disk = SimDisk::new();
            let clock = Arc::new(SimClock::at(TimestampNs::from_secs(1_000)));
            let machine = ShardMachine::open(Arc::new(disk.clone()), "shard-1", config, clock).unwrap();
            let readers = BTreeMap::from([(ShardId(1), machine.handle().reader)]);
            let replicas = crate::route::Replicas::new(ShardMap::even(1).unwrap(), readers);
            Self {
                machine,
                disk,
                replicas,
                index: 0,
            }
        }

        /// Applies requests as one entry.
        fn apply(&mut self, intakes: &[Intake]) -> Vec<PartApplied> {
            let parts: Vec<Bytes> = intakes
                .iter()
                .flat_map(|i| i.shares.iter().map(|s| entry::encode_part(i, s).into()))
                .collect();
            self.index += 1;
            let entry = hindcast_raft::Entry {
                index: self.index,
                term: 1,
                data: entry::encode_write(TimestampNs::from_secs(1_000), &parts).into(),
            };
            let answer = self.machine.apply(&entry).unwrap();
            match codec::from_bytes(&answer).unwrap() {
                Applied::Write(applied) => applied,
                other => panic!("{other:?}"),
            }
        }

        fn laid(&self, batch: &Batch, naming: Naming) -> Intake {
            Intake::of_batch(batch, &self.replicas, naming)
        }

        fn stored(&self) -> (u64, usize) {
            let (tenant, reader) = (TenantId::default(), self.machine.handle().reader);
            let (from, to) = (TimestampNs::MIN, TimestampNs::MAX);
            let series = reader
                .series(&SelectSeries {
                    tenant: tenant.clone(),
                    matchers: vec![],
                    from,
                    to,
                    as_of: None,
                    owners: None,
                })
                .unwrap();
            let streams = reader
                .lines(&SelectLines {
                    tenant,
                    matchers: vec![hindcast_model::Matcher::equal("job", "j")],
                    from,
                    to,
                    as_of: None,
                    owners: None,
                    filter: hindcast_storage::logs::Filter::all(),
                    limit: None,
                    direction: Direction::Forward,
                })
                .unwrap();
            let samples = series.iter().map(|s| s.samples.len() as u64).sum();
            (samples, streams.iter().map(|s| s.lines.len()).sum())
        }
    }

    fn batch(seq: u64) -> Batch {
        let mut batch = Batch::new(TenantId::default());
        let writer = WriterId([1; 16]);
        batch.id = Some(BatchId::Sequenced { writer, seq });
        let labels = |name: &str| Labels::from_pairs([("__name__", name), ("instance", "h:1"), ("job", "j")]);
        for name in ["node_load1", "node_load5", "up"] {
            let labels = labels(name);
            let owner = hindcast_model::resource::owner(&batch.tenant, &labels, &[]);
            let sample = |i: u64| Sample {
                at: TimestampNs::from_secs((seq * 10 + i) as i64),
                value: i as f64,
            };
            batch.series.push(SeriesBlock {
                labels,
                owner,
                samples: (0..2).map(sample).collect(),
            });
        }
        let line = LogLine {
            at: TimestampNs::from_secs(seq as i64),
            line: "a line".into(),
            metadata: vec![("k".into(), "v".into())],
        };
        batch.streams.push(StreamBlock {
            labels: Labels::from_pairs([("job", "j")]),
            owner: Owner::None,
            lines: vec![line; 2],
        });
        batch
    }

    #[test]
    fn ids_are_used_once_the_replica_has_applied_their_definitions() {
        let mut rig = Rig::new();
        let first = rig.laid(&batch(1), Naming::Known);
        assert_eq!(first.shares[0].definitions.len(), 4, "nothing is known yet");
        // Two that were laid out before either was applied: both define, and mean the same.
        let second = rig.laid(&batch(2), Naming::Known);
        assert_eq!(rig.apply(&[first, second]), [PartApplied::Stored; 2]);
        let third = rig.laid(&batch(3), Naming::Known);
        assert!(third.shares[0].definitions.is_empty());
        assert_eq!(
            third.shares[0].groups[0].runs.len(),
            1,
            "defined together, they follow each other"
        );
        assert_eq!(rig.apply(&[third]), [PartApplied::Stored]);
        assert_eq!(rig.stored(), (18, 6));
        assert_eq!(rig.machine.handle().reader.epoch(), rig.replicas.epoch(ShardId(1)));
    }

    #[test]
    fn a_stale_part_changes_nothing_and_is_stored_once_when_it_comes_with_definitions() {
        let mut rig = Rig::new();
        let known = rig.laid(&batch(1), Naming::Known);
        rig.apply(&[known]);
        let mut stale = rig.laid(&batch(2), Naming::Known);
        stale.shares[0].epoch += 1;
        let fine = rig.laid(&batch(3), Naming::Known);
        assert_eq!(
            rig.apply(&[stale.clone(), fine, stale.clone()]),
            [PartApplied::Stale, PartApplied::Stored, PartApplied::Stale]
        );
        assert_eq!(rig.stored(), (12, 4));
        let again = rig.laid(&batch(2), Naming::Defined);
        assert_eq!(rig.apply(std::slice::from_ref(&again)), [PartApplied::Stored]);
        assert_eq!(rig.stored(), (18, 6));
        assert_eq!(
            rig.apply(&[again, stale]),
            [PartApplied::Duplicate; 2],
            "also the stale form is known now"
        );
        assert_eq!(rig.stored(), (18, 6));
    }

    /// What `maintain` begins, of one kind.
    fn begun(rig: &mut Rig, kind: WorkKind) -> Vec<Work> {
        let mut works = vec![];
        rig.machine.maintain(&mut |work| works.push(work)).unwrap();
        works.retain(|w| w.kind == kind);
        works
    }

    #[test]
    fn a_node_that_starts_again_after_series_were_forgotten_stores_what_the_others_store() {
        let mut rig = Rig::new();
        let first = rig.laid(&batch(1), Naming::Known);
        rig.apply(&[first]);
        let floors = vec![hindcast_storage::Floor::at(None, None, TimestampNs::from_secs(15))];
        let at = TimestampNs::from_secs(1_000);
        rig.index += 1;
        let entry = hindcast_raft::Entry {
            index: rig.index,
            term: 1,
            data: entry::encode_control(at, &Control::Retain { floors }).into(),
        };
        rig.machine.apply(&entry).unwrap();
        let epoch = rig.machine.shard.epoch();
        assert!(epoch > 0, "old series are forgotten");
        let aux = rig.machine.aux.encode();
        rig.machine.shard.flush(&aux).unwrap();
        rig.machine.export("out").unwrap();
        let open = |dir: &str| {
            let clock = Arc::new(SimClock::at(at));
            ShardMachine::open(Arc::new(rig.disk.clone()), dir, ShardConfig::default(), clock).unwrap()
        };
        assert_eq!(open("shard-1").shard.epoch(), epoch, "after a restart");
        let mut follower = open("follower");
        follower.install("out", rig.index).unwrap();
        assert_eq!(follower.shard.epoch(), epoch, "after a snapshot");
    }

    #[test]
    fn a_damaged_file_of_the_leader_does_not_end_the_node_that_asks_for_a_snapshot() {
        let mut leader = Rig::new();
        let first = leader.laid(&batch(1), Naming::Known);
        leader.apply(&[first]);
        leader.machine.export("out").unwrap();
        let check = leader.machine.snapshot_check();
        check("out").unwrap();
        let segments = leader.disk.list("out").unwrap();
        let segment = segments.iter().find(|name| name.starts_with("segment-")).unwrap();
        leader.disk.flip_bit(&format!("out/{segment}"), 60, 1).unwrap();
        let why = check("out").unwrap_err().to_string();
        assert!(why.contains(segment), "the file is named: {why}");
    }

    #[test]
    fn damaged_files_are_kept_until_something_durable_stands_for_them() {
        let mut rig = Rig::new();
        let file = "shard-1.damaged/segment-1";
        rig.disk.create_dir_all("shard-1.damaged").unwrap();
        hindcast_env::disk::write_new_file(&rig.disk, file, b"damaged").unwrap();
        rig.machine.aside = Some((Arc::new(rig.disk.clone()), "shard-1.damaged".to_owned()));
        let flush = |rig: &mut Rig| {
            let ticket = rig.machine.handle().ask_flush();
            for work in begun(rig, WorkKind::Flush) {
                (work.run)();
            }
            begun(rig, WorkKind::Flush);
            assert!(rig.machine.handle().flushed(ticket));
        };
        flush(&mut rig);
        assert!(
            rig.disk.exists(file),
            "a copy that has nothing yet is no reason to forget them"
        );
        let first = rig.laid(&batch(1), Naming::Known);
        rig.apply(&[first]);
        flush(&mut rig);
        assert!(!rig.disk.exists(file));
    }

    #[test]
    fn entries_go_on_beside_a_flush_and_wait_for_it_when_memory_is_full_again() {
        // Six samples and two lines take more: every batch fills a head.
        let mut rig = Rig::with(ShardConfig {
            flush_bytes_max: 100,
            ..ShardConfig::default()
        });
        let write = |rig: &mut Rig, seq| {
            let laid = rig.laid(&batch(seq), Naming::Known);
            assert_eq!(rig.apply(&[laid]), [PartApplied::Stored]);
        };
        write(&mut rig, 1);
        let mut works = begun(&mut rig, WorkKind::Flush);
        assert_eq!(works.len(), 1);
        write(&mut rig, 2);
        assert_eq!(
            rig.machine.durable(),
            0,
            "nobody has done the flush yet, and nobody waited for it"
        );
        assert!(begun(&mut rig, WorkKind::Flush).is_empty(), "one at a time");
        write(&mut rig, 3);
        assert_eq!(
            rig.machine.durable(),
            1,
            "the second head was full: the worker did the flush itself"
        );
        works.drain(..).for_each(|w| (w.run)());
        assert_eq!(rig.stored(), (18, 6));
        let ticket = rig.machine.handle().ask_flush();
        for work in begun(&mut rig, WorkKind::Flush) {
            (work.run)();
        }
        assert!(
            !rig.machine.handle().flushed(ticket),
            "it is in force when the machine has seen its end"
        );
        begun(&mut rig, WorkKind::Flush);
        assert!(rig.machine.handle().flushed(ticket));
        assert_eq!((rig.machine.durable(), rig.stored()), (3, (18, 6)));
    }

    #[test]
    fn ids_that_no_series_has_are_stale_and_no_line_is_taken() {
        let mut rig = Rig::new();
        let known = rig.laid(&batch(1), Naming::Known);
        rig.apply(&[known]);
        let mut wrong = rig.laid(&batch(2), Naming::Known);
        wrong.shares[0].groups[0].runs = vec![(1_000, 3)];
        assert_eq!(rig.apply(&[wrong]), [PartApplied::Stale]);
        let mut wrong = rig.laid(&batch(2), Naming::Known);
        // A series is no stream.
        wrong.shares[0].streams[0].number = 0;
        assert_eq!(rig.apply(&[wrong]), [PartApplied::Stale]);
        assert_eq!(rig.stored(), (6, 2));
    }
}

//! The state machine of one shard: what its committed entries mean.
//!
//! Replicated state: storage (samples, lines, pins, cuts, floors), the dedup table, the topology last recorded.
//! What only helps (sources for the watermark) is derived and starts empty.
//!
//! Invariants
//! - A batch that is known already changes nothing.
//! - The auxiliary state is flushed with the segments, in one manifest: both stand at the same index.

use crate::dedup::{Dedup, Verdict};
use crate::entry::{self, Command, Control, WritePart};
use crate::sources::Sources;
use bytes::Bytes;
use hindcast_env::{Clock, Disk};
use hindcast_model::resource::Edge;
use hindcast_model::{
    GroupId, LogLine, Owner, Resource, ResourceId, SpanNs, StreamBlock, TenantId, TimestampNs, codec,
};
use hindcast_proto::topology::TopologyRecord;
use hindcast_raft::{Machine, MachineError};
use hindcast_storage::{Damage, DroppedByRule, Shard, ShardConfig, ShardReader, ShardStats, StorageError};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Resources and edges whose last record a shard remembers; beyond, no further ones are recorded.
pub const TOPOLOGY_MAX: usize = 1_000_000;
/// Merges are looked for at most this often.
const COMPACT_SPAN: SpanNs = SpanNs::from_secs(5);

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
}

/// The shard as others on this node see it: reads, and requests to the machine's owner.
#[derive(Clone)]
pub struct ShardHandle {
    pub group: GroupId,
    pub reader: ShardReader,
    pub sources: Arc<RwLock<Sources>>,
    stats: Arc<Mutex<ShardStats>>,
    dropped: Arc<Mutex<DroppedByRule>>,
    wishes: Arc<Wishes>,
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

/// What is flushed beside the segments.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Aux {
    dedup: Dedup,
    /// As last recorded.
    resources: BTreeMap<(TenantId, ResourceId), Resource>,
    edges: BTreeSet<(TenantId, Edge)>,
    /// Rolling BLAKE3 over all applied entries (I3).
    digest: [u8; 32],
}

pub struct ShardMachine {
    shard: Shard,
    aux: Aux,
    clock: Arc<dyn Clock>,
    handle: ShardHandle,
    compact_after: SpanNs,
}

impl ShardMachine {
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &str,
        config: ShardConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StorageError> {
        let group = config.group;
        let (shard, opened) = Shard::open(disk, dir, config)?;
        let aux = read_aux(&opened.aux, dir)?;
        let handle = ShardHandle {
            group,
            reader: shard.reader(),
            sources: Arc::default(),
            stats: Arc::new(Mutex::new(shard.stats())),
            dropped: Arc::default(),
            wishes: Arc::default(),
        };
        let compact_after = clock.monotonic();
        Ok(Self {
            shard,
            aux,
            clock,
            handle,
            compact_after,
        })
    }

    pub fn handle(&self) -> ShardHandle {
        self.handle.clone()
    }

    fn write(&mut self, index: u64, at: TimestampNs, parts: Vec<WritePart>) -> Applied {
        let mut answers = Vec::with_capacity(parts.len());
        for part in parts {
            answers.push(match self.aux.dedup.admit(&part.tenant, part.id, at) {
                Verdict::Known => PartApplied::Duplicate,
                Verdict::TooOld => PartApplied::SequenceTooOld,
                Verdict::New => {
                    self.store(index, at, part);
                    PartApplied::Stored
                }
            });
        }
        Applied::Write(answers)
    }

    fn store(&mut self, index: u64, at: TimestampNs, mut part: WritePart) {
        let samples = part.series.iter().flat_map(|s| s.samples.iter().map(|x| x.at));
        let lines = part.streams.iter().flat_map(|s| s.lines.iter().map(|x| x.at));
        let first = samples.chain(lines).min().unwrap_or(at);
        let topology = self.topology(&part.tenant, std::mem::take(&mut part.resources), &part.edges, first);
        part.streams.extend(topology);
        {
            let mut sources = self.handle.sources.write();
            for s in &part.series {
                if let Some(newest) = s.samples.iter().map(|x| x.at).max() {
                    sources.heard(&part.tenant, s.owner, newest);
                }
            }
        }
        self.shard.write(index, &part.tenant, &part.series, &part.streams);
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

    fn flush(&mut self) -> Result<(), MachineError> {
        let wished = self.handle.wishes.flush.load(Ordering::SeqCst);
        self.shard.flush(&codec::to_bytes(&self.aux)).map_err(machine_error)?;
        self.handle.wishes.flushed.store(wished, Ordering::SeqCst);
        Ok(())
    }

    /// One merge a call: applies go on in between. A wish is granted when nothing is left to merge.
    fn compact(&mut self, now: SpanNs) -> Result<(), MachineError> {
        let wishes = self.handle.wishes.clone();
        let compact = wishes.compact.load(Ordering::SeqCst);
        if compact > wishes.compacted.load(Ordering::SeqCst) {
            if self.shard.compact().map_err(machine_error)?.is_none() {
                wishes.compacted.store(compact, Ordering::SeqCst);
            }
        } else if now >= self.compact_after {
            self.compact_after = SpanNs(now.0 + COMPACT_SPAN.0);
            self.shard.compact().map_err(machine_error)?;
        }
        Ok(())
    }
}

fn read_aux(bytes: &[u8], dir: &str) -> Result<Aux, StorageError> {
    if bytes.is_empty() {
        return Ok(Aux::default());
    }
    codec::from_bytes(bytes).map_err(|e| {
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

    fn maintain(&mut self) -> Result<(), MachineError> {
        let wishes = self.handle.wishes.clone();
        let wished = wishes.flush.load(Ordering::SeqCst) > wishes.flushed.load(Ordering::SeqCst);
        let now = self.clock.monotonic();
        // A flush that finds the disk full does not keep merges from giving room back.
        let flushed = if wished || self.shard.needs_flush(now) {
            self.flush()
        } else {
            Ok(())
        };
        let compacted = self.compact(now);
        *self.handle.stats.lock() = self.shard.stats();
        self.handle.dropped.lock().clone_from(self.shard.dropped());
        flushed.and(compacted)
    }

    fn export(&mut self, dir: &str) -> Result<(), MachineError> {
        self.shard
            .export(dir, &codec::to_bytes(&self.aux))
            .map_err(machine_error)
    }

    fn install(&mut self, dir: &str, index: u64) -> Result<(), MachineError> {
        let aux = self.shard.install(dir, index).map_err(machine_error)?;
        self.aux = read_aux(&aux, dir).map_err(machine_error)?;
        Ok(())
    }

    fn digest(&self) -> [u8; 32] {
        self.aux.digest
    }
}

//! The write path: a batch is split by shard, each part goes to its leader, waiting parts are folded into one entry.
//!
//! A part that its shard answers as stale (its ids are of another epoch) was not stored; it is encoded anew with all
//! definitions and brought again, once.

use super::disk_watch::DiskWatch;
use super::memory_watch::MemoryWatch;
use super::peers::Peers;
use super::under_way::UnderWay;
use super::whereabouts::Whereabouts;
use crate::disk_guard::DiskState;
use crate::entry::{self, Control};
use crate::memory_guard::Work;
use crate::route::Replicas;
use crate::shard_machine::{Applied, PartApplied};
use crate::write::{BatchSink, Redo, WriteError, Written};
use bytes::Bytes;
use futures::future::join_all;
use hindcast_env::Clock;
use hindcast_ingest::{Ids, Intake, Naming};
use hindcast_model::limits::ENTRY_BYTES_MAX;
use hindcast_model::{Batch, Class, Classify, GroupId, NodeId, ShardId, ShardMap, codec};
use hindcast_raft::{ProposeError, RaftHost};
use hindcast_storage::ShardReader;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tonic::Status;

/// Parts that wait at a leader, per shard, in bytes; beyond, writers are told to retry.
pub const QUEUED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A fold ends when it holds so many bytes of parts, or more when one part alone has more.
const FOLD_BYTES_MAX: usize = 2 * 1024 * 1024;
/// A part that takes an entry for itself, with room for the entry's head.
const PART_BYTES_MAX: usize = ENTRY_BYTES_MAX - 64;
/// Entries of one shard in flight at once; more gives latency, not throughput.
const ENTRIES_IN_FLIGHT_MAX: usize = 4;
/// How long a writer waits for its quorum before it is told `Unconfirmed`.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
const LEADER_PAUSE: Duration = Duration::from_millis(20);
/// A leader hands over within milliseconds: the first retries come soon, and each one later than the one before, up to `LEADER_PAUSE`.
const HANDOVER_PAUSE: Duration = Duration::from_millis(3);
/// A node that knows no leader for so long is on the small side of a cut, or most nodes are down: writers are told.
const LEADERLESS_TIMEOUT: Duration = Duration::from_secs(3);

const CALL_WRITE: &str = "write";
const CALL_CONTROL: &str = "control";

/// What became of one part; crosses the peer protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Fate {
    Applied(PartApplied),
    /// Surely not proposed here.
    NotLeader,
    QueueFull,
    /// Surely not proposed: the leader's disk.
    DiskFull {
        free: u64,
        reserve: u64,
    },
    /// May be stored.
    Unconfirmed,
    /// Surely not proposed: the leader's memory.
    MemoryFull {
        used: u64,
        limit: u64,
    },
    /// Surely not proposed here; that node leads, as this one has heard.
    LedBy(NodeId),
}

impl Fate {
    fn not_leader(leader: Option<NodeId>) -> Self {
        leader.map_or(Self::NotLeader, Self::LedBy)
    }
}

struct Waiting {
    part: Bytes,
    answer: oneshot::Sender<Fate>,
}

struct Fold {
    queue: mpsc::UnboundedSender<Waiting>,
    /// What bounds the queue.
    queued_bytes: Arc<AtomicUsize>,
}

/// What a leader looks at before it takes a part.
#[derive(Clone)]
pub struct Room {
    pub disk: DiskWatch,
    pub memory: MemoryWatch,
    pub under_way: UnderWay,
}

/// Raft, and what of the cluster's groups it does not know.
#[derive(Clone)]
pub struct Groups {
    pub raft: RaftHost,
    pub whereabouts: Whereabouts,
}

/// The node's router. Clones share it.
#[derive(Clone)]
pub struct Writer(Arc<Inner>);

struct Inner {
    me: NodeId,
    replicas: Replicas,
    raft: RaftHost,
    whereabouts: Whereabouts,
    peers: Arc<Peers>,
    clock: Arc<dyn Clock>,
    disk: DiskWatch,
    memory: MemoryWatch,
    under_way: UnderWay,
    folds: BTreeMap<ShardId, Fold>,
}

#[derive(Serialize, Deserialize)]
struct ForwardedPart {
    shard: ShardId,
    part: Bytes,
}

#[derive(Serialize, Deserialize)]
struct ForwardedControl {
    shard: ShardId,
    control: Control,
}

impl Writer {
    /// `readers` are those of all shards; where this node has no copy, it is empty.
    pub fn new(
        me: NodeId,
        map: ShardMap,
        readers: BTreeMap<ShardId, ShardReader>,
        Groups { raft, whereabouts }: Groups,
        peers: Arc<Peers>,
        clock: Arc<dyn Clock>,
        room: Room,
    ) -> Self {
        let folds = map.shards().into_iter().map(|shard| {
            let (queue, waiting) = mpsc::unbounded_channel();
            let queued_bytes = Arc::new(AtomicUsize::new(0));
            tokio::spawn(fold(shard, raft.clone(), clock.clone(), waiting, queued_bytes.clone()));
            (shard, Fold { queue, queued_bytes })
        });
        let folds = folds.collect();
        let writer = Self(Arc::new(Inner {
            me,
            replicas: {
                let places = whereabouts.clone();
                Replicas::of_copies(map, readers, Arc::new(move |shard| places.is_here(shard.into())))
            },
            raft,
            whereabouts,
            peers: peers.clone(),
            clock,
            disk: room.disk,
            memory: room.memory,
            under_way: room.under_way,
            folds,
        }));
        let w = writer.clone();
        peers.register(
            CALL_WRITE,
            Arc::new(move |_, body| {
                let w = w.clone();
                Box::pin(async move {
                    let f: ForwardedPart =
                        codec::from_bytes(&body).map_err(|e| Status::invalid_argument(e.to_string()))?;
                    Ok(codec::to_bytes(&w.write_here(f.shard, f.part).await).into())
                })
            }),
        );
        let w = writer.clone();
        peers.register(
            CALL_CONTROL,
            Arc::new(move |_, body| {
                let w = w.clone();
                Box::pin(async move {
                    let f: ForwardedControl =
                        codec::from_bytes(&body).map_err(|e| Status::invalid_argument(e.to_string()))?;
                    Ok(codec::to_bytes(&w.control_here(f.shard, &f.control).await).into())
                })
            }),
        );
        writer
    }

    /// Cluster time.
    pub fn now(&self) -> hindcast_model::TimestampNs {
        self.0.clock.now()
    }

    pub fn shard_map(&self) -> &ShardMap {
        self.0.replicas.map()
    }

    /// Hands a part to this node's fold of the shard.
    async fn write_here(&self, shard: ShardId, part: Bytes) -> Fate {
        let Some(fold) = self.0.folds.get(&shard) else {
            return Fate::NotLeader;
        };
        let leader = self.0.whereabouts.leader(shard.into());
        if leader != Some(self.0.me) {
            return Fate::not_leader(leader);
        }
        if let DiskState::Refuse { free, reserve } = self.0.disk.admit() {
            return Fate::DiskFull { free, reserve };
        }
        if !self.0.memory.admits(Work::Forwarded) {
            let (used, limit) = (self.0.memory.used(), self.0.memory.limit());
            return Fate::MemoryFull { used, limit };
        }
        let bytes = part.len();
        if fold.queued_bytes.fetch_add(bytes, Ordering::SeqCst) + bytes > QUEUED_BYTES_MAX {
            fold.queued_bytes.fetch_sub(bytes, Ordering::SeqCst);
            return Fate::QueueFull;
        }
        let (answer, answered) = oneshot::channel();
        if fold.queue.send(Waiting { part, answer }).is_err() {
            fold.queued_bytes.fetch_sub(bytes, Ordering::SeqCst);
            return Fate::NotLeader;
        }
        answered.await.unwrap_or(Fate::Unconfirmed)
    }

    /// Ends when `leader` is not the shard's any more, by what this node knows.
    async fn leads_no_more(&self, shard: ShardId, leader: NodeId) {
        while self.0.whereabouts.leader(shard.into()) == Some(leader) {
            tokio::time::sleep(LEADER_PAUSE).await;
        }
    }

    /// Hands a part to the leader, here or there.
    async fn write_at(&self, leader: NodeId, shard: ShardId, part: Bytes) -> Fate {
        if leader == self.0.me {
            return self.write_here(shard, part).await;
        }
        let body = codec::to_bytes(&ForwardedPart { shard, part });
        let answer = self
            .0
            .peers
            .call(leader, CALL_WRITE, body.into(), PROPOSE_TIMEOUT)
            .await;
        match answer {
            Ok(fate) => codec::from_bytes(&fate).unwrap_or(Fate::Unconfirmed),
            Err(_) => Fate::Unconfirmed,
        }
    }

    /// Brings one part to its leader, wherever it is; again while that is harmless.
    async fn write_part(&self, shard: ShardId, part: Bytes, has_id: bool) -> Result<PartApplied, WriteError> {
        let now = || self.0.clock.monotonic().as_duration();
        let deadline = now() + WRITE_TIMEOUT;
        let mut leaderless_until = now() + LEADERLESS_TIMEOUT;
        let mut may_be_stored = false;
        let mut pause = HANDOVER_PAUSE;
        loop {
            let leader = self.0.whereabouts.leader(shard.into());
            let fate = match leader {
                None => Fate::NotLeader,
                // A leader that stands still, or is cut off, answers nothing: the next one is asked as soon as there is
                // one. Not without an id: then a second attempt could be a second write.
                Some(leader) => tokio::select! {
                    fate = self.write_at(leader, shard, part.clone()) => fate,
                    () = self.leads_no_more(shard, leader), if has_id => Fate::Unconfirmed,
                },
            };
            if leader.is_some() {
                leaderless_until = now() + LEADERLESS_TIMEOUT;
            }
            match fate {
                Fate::Applied(applied) => return Ok(applied),
                Fate::QueueFull => {
                    return Err(WriteError::QueueFull {
                        shard,
                        queued_bytes_max: QUEUED_BYTES_MAX,
                    });
                }
                Fate::MemoryFull { used, limit } => return Err(WriteError::MemoryFull { shard, used, limit }),
                Fate::DiskFull { free, reserve } => return Err(WriteError::DiskFull { shard, free, reserve }),
                Fate::NotLeader => {}
                Fate::LedBy(other) => self.0.whereabouts.told(shard.into(), other),
                Fate::Unconfirmed => may_be_stored = true,
            }
            // With an id the shard tells a second attempt from a first; without one only a sure refusal is retried.
            // Nobody takes parts of a node that was removed; its clients are to ask another one soon.
            let again = (has_id || !may_be_stored) && !*self.0.peers.removed().borrow();
            if !again || now() >= deadline.min(leaderless_until) {
                return Err(if may_be_stored {
                    WriteError::Unconfirmed { shard }
                } else {
                    WriteError::NoLeader { shard }
                });
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(LEADER_PAUSE);
        }
    }

    async fn control_here(&self, shard: ShardId, control: &Control) -> Option<u64> {
        let data = entry::encode_control(self.0.clock.now(), control);
        self.0
            .raft
            .propose(shard.into(), data, PROPOSE_TIMEOUT)
            .await
            .ok()
            .map(|(index, _)| index)
    }

    /// Proposes a control command at the shard's leader; the index at which it stands. Controls are idempotent,
    /// so that a second attempt after an unknown outcome is harmless.
    pub async fn control(&self, shard: ShardId, control: Control) -> Result<u64, WriteError> {
        let deadline = self.0.clock.monotonic().as_duration() + WRITE_TIMEOUT;
        loop {
            let index = match self.0.whereabouts.leader(shard.into()) {
                None => None,
                Some(leader) if leader == self.0.me => self.control_here(shard, &control).await,
                Some(leader) => {
                    let body = codec::to_bytes(&ForwardedControl {
                        shard,
                        control: control.clone(),
                    });
                    let answer = self
                        .0
                        .peers
                        .call(leader, CALL_CONTROL, body.into(), PROPOSE_TIMEOUT)
                        .await;
                    answer
                        .ok()
                        .and_then(|a| codec::from_bytes::<Option<u64>>(&a).ok())
                        .flatten()
                }
            };
            match index {
                Some(index) => return Ok(index),
                None if self.0.clock.monotonic().as_duration() >= deadline => {
                    return Err(WriteError::Unconfirmed { shard });
                }
                None => tokio::time::sleep(LEADER_PAUSE).await,
            }
        }
    }

    /// Proposes the same control in every shard; indices by group.
    pub async fn control_all(&self, control: &Control) -> Result<hindcast_model::Positions, WriteError> {
        let all = self.0.replicas.map().shards().into_iter().map(|shard| async move {
            let index = self.control(shard, control.clone()).await?;
            Ok((GroupId::from(shard), index))
        });
        join_all(all).await.into_iter().collect()
    }

    /// Bytes of parts that wait here, by shard; each has the bound `QUEUED_BYTES_MAX`.
    pub fn queued_bytes(&self) -> Vec<(ShardId, usize)> {
        let folds = self.0.folds.iter();
        folds
            .map(|(shard, f)| (*shard, f.queued_bytes.load(Ordering::SeqCst)))
            .collect()
    }

    /// Shards that this node leads now.
    pub fn led_here(&self) -> Vec<ShardId> {
        let shards = self.0.replicas.map().shards().into_iter();
        shards
            .filter(|s| self.0.raft.status((*s).into()).leader == Some(self.0.me))
            .collect()
    }
}

#[async_trait::async_trait]
impl BatchSink for Writer {
    async fn write(&self, batch: Batch) -> Result<Written, WriteError> {
        let ids = &self.0.replicas;
        let intake = Intake::of_batch(&batch, ids, Naming::Known);
        self.write_intake(intake, &|| Intake::of_batch(&batch, ids, Naming::Defined))
            .await
    }

    fn ids(&self) -> &dyn Ids {
        &self.0.replicas
    }

    async fn write_intake(&self, intake: Intake, redo: Redo<'_>) -> Result<Written, WriteError> {
        let (samples, lines) = (intake.samples, intake.lines);
        let mut done = vec![];
        let first = self.write_parts(encode(intake, |_| true)?).await?;
        let stale: Vec<ShardId> = first
            .iter()
            .filter(|(_, a)| *a == PartApplied::Stale)
            .map(|(shard, _)| *shard)
            .collect();
        done.extend(first.into_iter().filter(|(_, a)| *a != PartApplied::Stale));
        if !stale.is_empty() {
            let again = encode(redo(), |shard| stale.contains(&shard))?;
            done.extend(self.write_parts(again).await?);
        }
        // Only here, when no shard has anything left to store: who is told so does not come again.
        if let Some((shard, _)) = done.iter().find(|(_, a)| *a == PartApplied::SequenceTooOld) {
            return Err(WriteError::SequenceTooOld { shard: *shard });
        }
        let duplicate = !done.is_empty() && done.iter().all(|(_, a)| *a == PartApplied::Duplicate);
        Ok(Written {
            samples,
            lines,
            duplicate,
        })
    }
}

/// One shard's part of a request, on its way.
struct Part {
    shard: ShardId,
    bytes: Bytes,
    has_id: bool,
}

fn encode(intake: Intake, wanted: impl Fn(ShardId) -> bool) -> Result<Vec<Part>, WriteError> {
    let mut parts = vec![];
    for share in intake.shares.iter().filter(|s| wanted(s.shard)) {
        let bytes = Bytes::from(entry::encode_part(&intake, share));
        if bytes.len() > PART_BYTES_MAX {
            return Err(WriteError::TooLarge {
                shard: share.shard,
                bytes: bytes.len(),
                entry_bytes_max: PART_BYTES_MAX,
            });
        }
        parts.push(Part {
            shard: share.shard,
            bytes,
            has_id: intake.id.is_some(),
        });
    }
    Ok(parts)
}

impl Writer {
    /// Brings all parts to their leaders. One that fails fails all; see [`answer`].
    async fn write_parts(&self, parts: Vec<Part>) -> Result<Vec<(ShardId, PartApplied)>, WriteError> {
        let _under_way = self.0.under_way.begin();
        let writes = parts.into_iter().map(|part| async move {
            let applied = self.write_part(part.shard, part.bytes, part.has_id).await?;
            Ok((part.shard, applied))
        });
        answer(join_all(writes).await)
    }
}

/// What is said of several parts: the worst of what befell them. What may be stored outweighs what surely is not, and what
/// another attempt can store outweighs what none can. That a shard has forgotten a number is no failure here: its part has no
/// need of another attempt, those of others may.
fn answer(fates: Vec<Result<(ShardId, PartApplied), WriteError>>) -> Result<Vec<(ShardId, PartApplied)>, WriteError> {
    let weight = |why: &WriteError| match why.class() {
        Class::RetrySameId => 0,
        Class::RetryLater | Class::Unavailable => 1,
        _ => 2,
    };
    let (mut applied, mut worst) = (vec![], None);
    for fate in fates {
        match fate {
            Ok(one) => applied.push(one),
            Err(why) if worst.as_ref().is_none_or(|w| weight(&why) < weight(w)) => worst = Some(why),
            Err(_) => {}
        }
    }
    worst.map_or(Ok(applied), Err)
}

/// Collects what waits and proposes it, a bounded number of entries at a time.
async fn fold(
    shard: ShardId,
    raft: RaftHost,
    clock: Arc<dyn Clock>,
    mut waiting: mpsc::UnboundedReceiver<Waiting>,
    queued_bytes: Arc<AtomicUsize>,
) {
    let room = Arc::new(Semaphore::new(ENTRIES_IN_FLIGHT_MAX));
    // The part with which the last fold would have become too large.
    let mut left_over: Option<Waiting> = None;
    loop {
        // Room first: what arrives while all entries are in flight is folded into the next one.
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        let first = match left_over.take() {
            Some(first) => first,
            None => match waiting.recv().await {
                Some(first) => first,
                None => return,
            },
        };
        let mut bytes = first.part.len();
        let mut folded = vec![first];
        while bytes < FOLD_BYTES_MAX {
            let Ok(more) = waiting.try_recv() else { break };
            if bytes + more.part.len() > FOLD_BYTES_MAX {
                left_over = Some(more);
                break;
            }
            bytes += more.part.len();
            folded.push(more);
        }
        let (raft, clock, queued_bytes) = (raft.clone(), clock.clone(), queued_bytes.clone());
        tokio::spawn(async move {
            let parts: Vec<Bytes> = folded.iter().map(|w| w.part.clone()).collect();
            let data = entry::encode_write(clock.now(), &parts);
            let fates = match raft.propose(shard.into(), data, PROPOSE_TIMEOUT).await {
                Ok((_, answer)) => match codec::from_bytes(&answer) {
                    Ok(Applied::Write(applied)) => applied.into_iter().map(Fate::Applied).collect(),
                    _ => vec![],
                },
                Err(ProposeError::NotLeader { leader }) => vec![Fate::not_leader(leader); folded.len()],
                Err(ProposeError::Full) => vec![Fate::QueueFull; folded.len()],
                Err(_) => vec![],
            };
            queued_bytes.fetch_sub(bytes, Ordering::SeqCst);
            drop(permit);
            let mut fates = fates.into_iter();
            for waiting in folded {
                let _ = waiting.answer.send(fates.next().unwrap_or(Fate::Unconfirmed));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::node::{Node, NodeConfig, TestOnly};
    use hindcast_model::{
        BatchId, Labels, LogLine, Matcher, Owner, Sample, SeriesBlock, StreamBlock, TenantId, TimestampNs, WriterId,
    };
    use hindcast_storage::read::{Direction, SelectLines, SelectSeries};

    async fn node(dir: &std::path::Path) -> Node {
        let config = NodeConfig {
            id: NodeId(1),
            data_dir: dir.to_path_buf(),
            join: vec![],
            join_cluster: vec![],
            shards: 2,
            replicas: None,
            retention: vec![],
            test_only: TestOnly::default(),
            disk_reserve: None,
            cold: None,
            peer_tls: None,
            memory_limit: None,
            client_cluster: None,
        };
        Node::start(config, None, vec![]).await.unwrap()
    }

    /// One sample of each of 8 series, and a line, at second `seq`.
    fn batch(seq: u64) -> Batch {
        let mut batch = Batch::new(TenantId::default());
        let writer = WriterId([3; 16]);
        batch.id = Some(BatchId::Sequenced { writer, seq });
        let at = TimestampNs::from_secs(seq as i64);
        batch.series = (0..8)
            .map(|n| SeriesBlock {
                labels: Labels::from_pairs([("__name__", "m"), ("n", &n.to_string())]),
                owner: Owner::None,
                samples: vec![Sample { at, value: seq as f64 }],
            })
            .collect();
        let line = LogLine {
            at,
            line: "a line".into(),
            metadata: vec![],
        };
        batch.streams = vec![StreamBlock {
            labels: Labels::from_pairs([("job", "j")]),
            owner: Owner::None,
            lines: vec![line],
        }];
        batch
    }

    /// Samples and lines that all shards hold.
    fn stored(node: &Node) -> (usize, usize) {
        let (tenant, from, to) = (TenantId::default(), TimestampNs::MIN, TimestampNs::MAX);
        let mut held = (0, 0);
        for shard in node.shards.values() {
            let series = shard.reader.series(&SelectSeries {
                tenant: tenant.clone(),
                matchers: vec![Matcher::equal("__name__", "m")],
                from,
                to,
                as_of: None,
                owners: None,
            });
            held.0 += series.unwrap().iter().map(|s| s.samples.len()).sum::<usize>();
            let streams = shard.reader.lines(&SelectLines {
                tenant: tenant.clone(),
                matchers: vec![Matcher::equal("job", "j")],
                from,
                to,
                as_of: None,
                owners: None,
                filter: hindcast_storage::logs::Filter::all(),
                limit: None,
                direction: Direction::Forward,
            });
            held.1 += streams.unwrap().iter().map(|s| s.lines.len()).sum::<usize>();
        }
        held
    }

    /// A syslog batch was retried for ten minutes while one shard had no leader. The other shard had stored its part and had forgotten
    /// that by then; its word was taken for the whole batch, and the lines of the first one were gone.
    #[test]
    fn a_number_that_one_shard_forgot_does_not_hide_that_another_one_can_still_store() {
        let too_old = || Ok((ShardId(1), PartApplied::SequenceTooOld));
        let shard = ShardId(2);
        let no_leader = || WriteError::NoLeader { shard };
        let unconfirmed = || WriteError::Unconfirmed { shard: ShardId(3) };
        let hopeless = || WriteError::TooLarge {
            shard: ShardId(4),
            bytes: 2,
            entry_bytes_max: 1,
        };
        for fates in [
            vec![too_old(), Err(no_leader())],
            vec![Err(hopeless()), too_old(), Err(no_leader())],
        ] {
            assert_eq!(answer(fates), Err(no_leader()));
        }
        let fates = vec![Err(hopeless()), Err(no_leader()), Err(unconfirmed())];
        assert_eq!(answer(fates), Err(unconfirmed()));
        // The first of several that weigh the same.
        let full = || WriteError::QueueFull {
            shard,
            queued_bytes_max: 1,
        };
        assert_eq!(answer(vec![Err(full()), Err(no_leader())]), Err(full()));
        let all = answer(vec![too_old(), Ok((shard, PartApplied::Stored))]).unwrap();
        assert_eq!(all.len(), 2);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_stale_at_its_shard_is_stored_once_and_writers_at_once_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let node = node(dir.path()).await;
        let writer = &node.writer;
        let all = join_all((1..=10).map(|seq| writer.write(batch(seq)))).await;
        assert!(all.iter().all(Result::is_ok), "{all:?}");
        assert_eq!(stored(&node), (80, 10));

        let eleventh = batch(11);
        let mut intake = Intake::of_batch(&eleventh, writer.ids(), Naming::Known);
        assert!(
            intake.shares.iter().all(|s| s.definitions.is_empty()),
            "all of it is known"
        );
        let plain = intake.clone();
        intake.shares.iter_mut().for_each(|s| s.epoch += 1);
        let redone = AtomicUsize::new(0);
        let redo = || {
            redone.fetch_add(1, Ordering::SeqCst);
            Intake::of_batch(&eleventh, writer.ids(), Naming::Defined)
        };
        let written = writer.write_intake(intake, &redo).await.unwrap();
        assert_eq!((written.samples, written.lines, written.duplicate), (8, 1, false));
        assert_eq!((redone.load(Ordering::SeqCst), stored(&node)), (1, (88, 11)));
        // A retry of the first form, as a writer sends it whose answer was lost.
        let again = writer.write_intake(plain, &redo).await.unwrap();
        assert!(again.duplicate);
        assert_eq!((redone.load(Ordering::SeqCst), stored(&node)), (1, (88, 11)));
        node.raft.shutdown();
    }
}

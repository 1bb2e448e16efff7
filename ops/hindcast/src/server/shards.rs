//! The seam `Shards` over the replicas of the cluster.
//!
//! A shard of which this node has a copy that counts is read here: the replica waits until it has applied what the leader had
//! committed (ReadIndex), or what a cut names, then answers. Of another one, a node that has it is asked the same, and does the
//! same; only what it makes of its samples crosses the wire. A query that says so does not wait: it gets what is applied,
//! and how old that may be.

use bytes::Bytes;
use futures::future::join_all;
use futures::future::try_join_all;
use hindcast_model::{GroupId, Labels, NodeId, Positions, Sample, SpanNs, TenantId, TimestampNs, codec};
use hindcast_node::io::node::Node;
use hindcast_node::memory_guard::Work;
use hindcast_node::sources::{AWAITED_MAX, Sources};
use hindcast_query::shards::{
    Columns, ColumnsRequest, Completeness, Consistency, CountsRequest, Freshness, LabelsRequest, LinesRequest,
    NativeSeries, SeriesRequest, Shards, ShardsError, cardinality_of_sets,
};
use hindcast_query::wire::{Answer, Closing, Question};
use hindcast_storage::cardinality::{ACTIVE_SPAN, Cardinality, cardinality};
use hindcast_storage::read::{Direction, LabelTexts, SeriesData, StreamCounts, StreamData};
use hindcast_storage::{ReadError, ShardReader};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tonic::Status;

/// How long a read waits for the shard's leader, or for a replica that is behind a cut.
const FRESH_TIMEOUT: Duration = Duration::from_secs(5);
/// Who is asked says every second that it still works on the answer; one that stands still says nothing.
const WORKING_PAUSE: Duration = Duration::from_secs(1);
const PIECE_TIMEOUT: Duration = Duration::from_secs(4);
/// While copies move, nobody may be known to have one for a moment.
const HOLDER_WAIT_MAX: Duration = Duration::from_secs(2);
const HOLDER_PAUSE: Duration = Duration::from_millis(50);
/// Questions of other nodes that are worked on here at a time; further ones wait.
const QUESTIONS_AT_ONCE_MAX: usize = 64;
/// Of the nodes that have a shard, so many are asked one after the other.
const HOLDERS_ASKED_MAX: usize = 2;
const SPOKEN_TIMEOUT: Duration = Duration::from_secs(1);
/// Reports on series that are made at a time; another one waits so long, and is refused then.
pub const REPORTS_MAX: usize = 1;
const REPORT_WAIT_MAX: Duration = Duration::from_secs(5);
/// Of one question so many shards are read where it is asked: others want their turn.
const AT_ONCE_MAX: usize = 8;
const BEHIND_PAUSE: Duration = Duration::from_millis(5);

/// How often leaders are asked how far they are, for answers that do not wait for it.
const CONFIRM_PAUSE: SpanNs = SpanNs::from_ms(200);
/// How long the first such answer waits for that, so that its age is known.
const FIRST_CONFIRM: Duration = Duration::from_millis(50);

const ASK_READ: &str = "read";
const CALL_SPOKEN: &str = "spoken";

/// A question to another node, about one of its shards.
#[derive(Serialize, Deserialize)]
struct Asked {
    group: GroupId,
    as_of: Option<u64>,
    stale_ok: bool,
    question: Bytes,
}

/// Up to where the sources of a shard have spoken: all of them, and those that are waited for.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Spoken {
    complete: TimestampNs,
    awaited: TimestampNs,
}

#[derive(Clone)]
pub struct ClusterShards {
    node: Node,
    consistency: Consistency,
    /// Shared by all consistencies.
    confirmed: Arc<BTreeMap<GroupId, Mutex<Confirmed>>>,
    reports: Arc<Semaphore>,
    /// For questions of other nodes.
    questions: Arc<Semaphore>,
}

/// Until when a replica is known to be whole, in monotonic time.
#[derive(Clone, Copy, Debug, Default)]
struct Confirmed {
    asked: Option<SpanNs>,
    whole_at: Option<SpanNs>,
}

impl ClusterShards {
    /// Also answers what other nodes ask of the shards of this one; on `threads`, as the queries of its own clients.
    pub fn new(node: Node, threads: tokio::runtime::Handle) -> Self {
        let confirmed = node.shards.keys().map(|g| (*g, Mutex::default()));
        let shards = Self {
            confirmed: Arc::new(confirmed.collect()),
            consistency: Consistency::Linearizable,
            reports: Arc::new(Semaphore::new(REPORTS_MAX)),
            questions: Arc::new(Semaphore::new(QUESTIONS_AT_ONCE_MAX)),
            node,
        };
        let answers = shards.clone();
        shards.node.peers.register_ask(
            ASK_READ,
            Arc::new(move |_, body, pieces| {
                let answering = threads.spawn(answers.clone().answer(body, pieces));
                Box::pin(async move { drop(answering.await) })
            }),
        );
        let tells = shards.clone();
        shards.node.peers.register(
            CALL_SPOKEN,
            Arc::new(move |_, body| {
                let tells = tells.clone();
                Box::pin(async move {
                    let asked = codec::from_bytes(&body).map_err(|e| Status::invalid_argument(e.to_string()))?;
                    let (group, tenant): (GroupId, TenantId) = asked;
                    let spoken = tells.spoken_here(group, &tenant);
                    let spoken = spoken.ok_or_else(|| Status::failed_precondition("no copy of it counts here"))?;
                    Ok(codec::to_bytes(&spoken).into())
                })
            }),
        );
        shards
    }

    fn with(&self, consistency: Consistency) -> Self {
        Self {
            consistency,
            ..self.clone()
        }
    }

    /// Asks the leader how far it had committed, and waits until that is applied here.
    async fn confirm(&self, group: GroupId, timeout: Duration) -> Result<u64, hindcast_raft::io::ReadError> {
        let began = self.node.clock.monotonic();
        let index = self.node.raft.read_index(group, timeout).await?;
        if let Some(confirmed) = self.confirmed.get(&group) {
            let mut confirmed = confirmed.lock();
            confirmed.whole_at = confirmed.whole_at.max(Some(began));
        }
        Ok(index)
    }

    /// What is applied here, and how old that may be. The leader is asked beside it, a few times a second for all queries
    /// together: the next answers know by it how old they are.
    async fn at_once(&self, group: GroupId) -> (u64, Freshness) {
        if let Some(confirmed) = self.confirmed.get(&group) {
            let now = self.node.clock.monotonic();
            let (ask, known) = {
                let mut c = confirmed.lock();
                let due = c.asked.is_none_or(|at| now.0.saturating_sub(at.0) >= CONFIRM_PAUSE.0);
                if due {
                    c.asked = Some(now);
                }
                (due, c.whole_at.is_some())
            };
            if ask {
                let this = self.clone();
                let asking = tokio::spawn(async move { this.confirm(group, FRESH_TIMEOUT).await });
                if !known {
                    let _ = tokio::time::timeout(FIRST_CONFIRM, asking).await;
                }
            }
        }
        // Before the rows are read: what is applied meanwhile only makes the answer newer.
        let applied = self.node.shards.get(&group).map_or(0, |s| s.reader.applied());
        let now = self.node.clock.monotonic();
        let whole_at = self.confirmed.get(&group).and_then(|c| c.lock().whole_at);
        let age = whole_at.map(|at| SpanNs(now.0.saturating_sub(at.0)));
        (applied, Freshness::Stale { age })
    }

    /// The copy was set aside and has nothing yet: what it says would not be old but wrong.
    fn is_empty_handed(&self, group: GroupId) -> bool {
        let status = self.node.raft.status(group);
        let is_out = status.quarantined.is_some() || status.is_rebuilding;
        is_out && self.node.shards.get(&group).is_some_and(|s| s.reader.applied() == 0)
    }

    /// Waits until the replica may answer; the applied index and how new that is, or why it may not.
    async fn fresh(&self, group: GroupId, as_of: Option<u64>) -> Result<(u64, Freshness), String> {
        match as_of {
            None if self.consistency == Consistency::StaleOk && self.is_empty_handed(group) => Err(format!(
                "shard {group} of this node is damaged and being rebuilt; ask another node"
            )),
            None if self.consistency == Consistency::StaleOk => Ok(self.at_once(group).await),
            None => {
                let read = self.confirm(group, FRESH_TIMEOUT).await;
                let index = read.map_err(|e| format!("shard {group} gave no linearizable read: {e}"))?;
                let applied = self.node.shards.get(&group).map_or(0, |s| s.reader.applied());
                Ok((index.max(applied), Freshness::Linearizable))
            }
            Some(index) => {
                let caught_up = async {
                    while self.node.shards.get(&group).is_some_and(|s| s.reader.applied() < index) {
                        tokio::time::sleep(BEHIND_PAUSE).await;
                    }
                };
                let waited = tokio::time::timeout(FRESH_TIMEOUT, caught_up).await;
                waited.map_err(|_| format!("shard {group} of this node is behind the cut's position {index}"))?;
                Ok((index, Freshness::Linearizable))
            }
        }
    }

    /// `None`: the shard is not here.
    fn spoken_here(&self, group: GroupId, tenant: &TenantId) -> Option<Spoken> {
        let shard = self
            .node
            .shards
            .get(&group)
            .filter(|_| self.node.whereabouts.is_here(group))?;
        let (now, sources) = (self.node.meta.cluster_now(), shard.sources.read());
        let of = |to: fn(&Sources, &TenantId, TimestampNs) -> TimestampNs| to(&sources, tenant, now);
        Some(Spoken {
            complete: of(Sources::complete_to),
            awaited: of(Sources::awaited_to),
        })
    }

    async fn spoken(&self, group: GroupId, tenant: &TenantId) -> Result<Spoken, ShardsError> {
        if let Some(spoken) = self.spoken_here(group, tenant) {
            return Ok(spoken);
        }
        let holder = self.holders(group).await.first().copied();
        let holder = holder.ok_or_else(|| ShardsError::Unavailable(nobody_has(group)))?;
        let body = codec::to_bytes(&(group, tenant)).into();
        let told = self.node.peers.call(holder, CALL_SPOKEN, body, SPOKEN_TIMEOUT).await;
        let told = told.map_err(|status| ShardsError::Unavailable(of_node(group, holder, status.message())))?;
        codec::from_bytes(&told).map_err(|e| ShardsError::Unavailable(of_node(group, holder, &e.to_string())))
    }

    /// The least of what the shards' sources say.
    async fn all_spoken(&self, tenant: &TenantId) -> Result<Spoken, ShardsError> {
        let all = self.node.shards.keys().map(|group| self.spoken(*group, tenant));
        let silence = Spoken {
            complete: TimestampNs::MAX,
            awaited: TimestampNs::MAX,
        };
        let least = |a: Spoken, b: Spoken| Spoken {
            complete: a.complete.min(b.complete),
            awaited: a.awaited.min(b.awaited),
        };
        Ok(try_join_all(all).await?.into_iter().fold(silence, least))
    }

    /// Reads copies of this node, each once it may answer.
    async fn here(&self, of: Vec<(GroupId, Option<u64>)>, question: &Arc<Question>) -> Vec<(GroupId, Answered)> {
        let readers = Arc::new(Readers::default());
        let reading = of.into_iter().enumerate().map(|(i, (group, as_of))| {
            let readers = &readers;
            async move {
                let answered = async {
                    let shard = self.node.shards.get(&group);
                    let shard = shard.ok_or_else(|| format!("there is no shard {group}"))?;
                    let (applied, freshness) = self.fresh(group, as_of).await?;
                    let copy = FreshCopy {
                        group,
                        as_of,
                        reader: shard.reader.clone(),
                    };
                    let answer = match (i < AT_ONCE_MAX).then(|| copy.ask_at_once(question)).flatten() {
                        Some(answer) => answer?,
                        None => readers.ask(copy, question.clone()).await?,
                    };
                    // A copy that was let go meanwhile may have been empty when it was read.
                    match self.node.whereabouts.is_here(group) {
                        true => Ok((applied, freshness, answer)),
                        false => Err(format!(
                            "shard {group} went to other nodes while it was read; ask again"
                        )),
                    }
                };
                (group, answered.await)
            }
        });
        join_all(reading).await
    }

    /// Who has a shard that is not here; waits a little for somebody to be known.
    async fn holders(&self, group: GroupId) -> Vec<NodeId> {
        let known = async {
            loop {
                let holders = self.node.whereabouts.holders(group);
                if !holders.is_empty() {
                    return holders;
                }
                tokio::time::sleep(HOLDER_PAUSE).await;
            }
        };
        tokio::time::timeout(HOLDER_WAIT_MAX, known).await.unwrap_or_default()
    }

    /// Asks nodes that have a copy, the leader first, until one answers.
    async fn elsewhere(
        &self,
        group: GroupId,
        as_of: Option<u64>,
        question: &Question,
    ) -> Result<(u64, Freshness, Answer), String> {
        let mut why = nobody_has(group);
        for holder in self.holders(group).await.into_iter().take(HOLDERS_ASKED_MAX) {
            match self.ask(holder, group, as_of, question).await {
                Ok(answer) => return Ok(answer),
                Err(said) => why = of_node(group, holder, &said),
            }
        }
        Err(why)
    }

    async fn ask(
        &self,
        holder: NodeId,
        group: GroupId,
        as_of: Option<u64>,
        question: &Question,
    ) -> Result<(u64, Freshness, Answer), String> {
        let asked = Asked {
            group,
            as_of,
            stale_ok: self.consistency == Consistency::StaleOk,
            question: question.encode(),
        };
        let body = codec::to_bytes(&asked).into();
        let pieces = self.node.peers.ask(holder, ASK_READ, body, PIECE_TIMEOUT).await;
        let mut pieces = pieces.map_err(|status| status.message().to_owned())?;
        let mut answer = question.nothing();
        // Counted when it is whole: another node may be asked after this one.
        let (mut samples, mut values) = (0, 0);
        let count = |samples, values, exceeded| {
            let Some(budget) = question.budget() else { return };
            let fits = budget.read(samples).is_continue() && budget.computed(values).is_continue();
            if exceeded || !fits {
                budget.exceed();
            }
        };
        loop {
            let Ok(piece) = tokio::time::timeout(PIECE_TIMEOUT, pieces.message()).await else {
                return Err(format!("it said nothing for {PIECE_TIMEOUT:?}"));
            };
            let piece = piece.map_err(|status| status.message().to_owned())?;
            let piece = piece.ok_or("its answer ended early")?;
            if piece.body.is_empty() {
                continue;
            }
            let taken = answer.take(&piece.body).map_err(|e| e.to_string())?;
            (samples, values) = (samples + taken.samples, values + taken.values);
            if let Some(closing) = taken.closing {
                count(samples + closing.samples as usize, values, closing.exceeded);
                return Ok((closing.applied, closing.freshness(), answer));
            }
            let too_many = question.budget().is_some_and(|budget| {
                let (samples_left, values_left) = budget.left();
                samples > samples_left || values > values_left
            });
            if too_many {
                // The query is refused for it, so that the rest is of no use.
                count(samples, values, true);
                return Ok((0, Freshness::Linearizable, answer));
            }
        }
    }

    /// Answers another node about a shard of this one.
    async fn answer(self, body: Bytes, pieces: mpsc::Sender<Result<Bytes, Status>>) {
        let ended = pieces.clone();
        let answering = self.answer_with(body, &pieces);
        tokio::select! {
            done = answering => if let Err(status) = done {
                let _ = ended.send(Err(status)).await;
            },
            // Nobody listens any more; a read that is under way is told by its budget.
            () = ended.closed() => {}
        }
    }

    async fn answer_with(&self, body: Bytes, pieces: &mpsc::Sender<Result<Bytes, Status>>) -> Result<(), Status> {
        let misfit = |e: String| Status::invalid_argument(format!("the question cannot be read: {e}"));
        let asked: Asked = codec::from_bytes(&body).map_err(|e| misfit(e.to_string()))?;
        let question = Question::decode(&asked.question).map_err(|e| misfit(e.to_string()))?;
        if !self.node.whereabouts.is_here(asked.group) {
            return Err(Status::failed_precondition("no copy of it counts there"));
        }
        let consistency = match asked.stale_ok {
            true => Consistency::StaleOk,
            false => Consistency::Linearizable,
        };
        let _place = self.questions.acquire().await;
        if let Err(overload) = self.node.admission.memory_for(Work::Queries) {
            return Err(Status::resource_exhausted(overload.to_string()));
        }
        let question = Arc::new(question);
        let _cancels = question.budget().map(|budget| CancelsWhenDropped(budget.clone()));
        let before = question.budget().map_or((0, 0), |b| b.left());
        let local = self.with(consistency);
        let reading = local.here(vec![(asked.group, asked.as_of)], &question);
        tokio::pin!(reading);
        let read = loop {
            tokio::select! {
                read = &mut reading => break read,
                () = tokio::time::sleep(WORKING_PAUSE) => {
                    let _ = pieces.send(Ok(Bytes::new())).await;
                }
            }
        };
        let [(_, read)] = <[_; 1]>::try_from(read).map_err(|_| Status::internal("a shard answers once"))?;
        let (applied, freshness, answer) = read.map_err(Status::unavailable)?;
        let is_made = matches!(answer, Answer::Columns(_));
        let closing = Closing {
            applied,
            samples: match question.budget().filter(|_| is_made) {
                Some(budget) => before.0.saturating_sub(budget.left().0) as u64,
                None => 0,
            },
            exceeded: question.budget().is_some_and(|b| b.is_exceeded()),
            ..Closing::default()
        };
        let pieces = pieces.clone();
        let sending = tokio::task::spawn_blocking(move || {
            if answer.send(&mut |piece| pieces.blocking_send(Ok(piece)).is_ok()) {
                let _ = pieces.blocking_send(Ok(closing.with_freshness(freshness).encode()));
            }
        });
        sending
            .await
            .map_err(|e| Status::internal(format!("the answer ended early: {e}")))
    }

    /// Asks every shard; answers in the order of shards.
    async fn scatter(
        &self,
        as_of: Option<&Positions>,
        question: Question,
    ) -> Result<(Vec<Answer>, Completeness), ShardsError> {
        let question = Arc::new(question);
        let (mut here, mut elsewhere) = (vec![], vec![]);
        for group in self.node.shards.keys() {
            let position = match as_of {
                // A shard that the cut does not name held nothing then.
                Some(cut) => match cut.get(group) {
                    Some(index) => Some(*index),
                    None => continue,
                },
                None => None,
            };
            match self.node.whereabouts.is_here(*group) {
                true => here.push((*group, position)),
                false => elsewhere.push((*group, position)),
            }
        }
        let question_of_others = &question;
        let elsewhere = elsewhere.into_iter().map(|(group, position)| async move {
            let answer = self.elsewhere(group, position, question_of_others).await;
            (group, answer)
        });
        let (here, elsewhere) = futures::join!(self.here(here, &question), join_all(elsewhere));
        // In the order of shards, whoever answered.
        let all: BTreeMap<GroupId, Answered> = here.into_iter().chain(elsewhere).collect();
        let (mut answers, mut completeness) = (vec![], Completeness::default());
        let asked = all.len();
        for (group, answer) in all {
            match answer {
                Ok((applied, freshness, answer)) => {
                    completeness.positions.insert(group, applied);
                    completeness.freshness = completeness.freshness.merge(freshness);
                    answers.push(answer);
                }
                Err(why) => completeness.missing.push(why),
            }
        }
        let told_nothing = asked == self.node.shards.len() && answers.is_empty();
        if told_nothing {
            return Err(ShardsError::Unavailable(completeness.missing.join("; ")));
        }
        Ok((answers, completeness))
    }

    /// The copies here, if all shards are here.
    async fn all_readers(&self) -> Result<Option<(Vec<ShardReader>, Completeness)>, ShardsError> {
        if !self.node.shards.keys().all(|g| self.node.whereabouts.is_here(*g)) {
            return Ok(None);
        }
        let fresh = self.node.shards.iter().map(|(group, shard)| async move {
            let fresh = self.fresh(*group, None).await;
            fresh.map(|(applied, freshness)| (*group, applied, freshness, shard.reader.clone()))
        });
        let (mut readers, mut completeness) = (vec![], Completeness::default());
        for one in join_all(fresh).await {
            match one {
                Ok((group, applied, freshness, reader)) => {
                    completeness.positions.insert(group, applied);
                    completeness.freshness = completeness.freshness.merge(freshness);
                    readers.push(reader);
                }
                Err(why) => completeness.missing.push(why),
            }
        }
        if readers.is_empty() {
            return Err(ShardsError::Unavailable(completeness.missing.join("; ")));
        }
        Ok(Some((readers, completeness)))
    }
}

/// What a shard was asked for, the position and the age of that; or why there is nothing.
type Answered = Result<(u64, Freshness, Answer), String>;

/// Asked once: the system reads files to tell.
static PROCESSORS: LazyLock<usize> = LazyLock::new(|| std::thread::available_parallelism().map_or(1, usize::from));

/// A copy that may answer.
struct FreshCopy {
    group: GroupId,
    as_of: Option<u64>,
    reader: ShardReader,
}

impl FreshCopy {
    fn ask(&self, question: &Question) -> Result<Answer, String> {
        self.contained(|| question.ask(&self.reader, self.as_of))
    }

    /// What is done about as soon as another thread would wake up for it. `None`: it may take longer.
    fn ask_at_once(&self, question: &Question) -> Option<Result<Answer, String>> {
        let ask = || question.ask_at_once(&self.reader, self.as_of).transpose();
        self.contained(ask).transpose()
    }

    /// A read whose end by a panic is that of no other.
    fn contained<A>(&self, read: impl FnOnce() -> Result<A, ReadError>) -> Result<A, String> {
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)) {
            Ok(answer) => answer.map_err(|e| format!("shard {}: {e}", self.group)),
            Err(_) => Err(early(self.group)),
        }
    }
}

fn early(group: GroupId) -> String {
    format!("shard {group}: the read ended early; the log tells why")
}

/// A copy, what it is asked, and who waits for the answer.
type Waits = (FreshCopy, Arc<Question>, oneshot::Sender<Result<Answer, String>>);

/// The threads that read for one question: one for each processor, since more would only take turns. What may wait for the cold store
/// has a thread of its own.
#[derive(Default)]
struct Readers {
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    copies: VecDeque<Waits>,
    threads: usize,
}

impl Readers {
    async fn ask(self: &Arc<Self>, copy: FreshCopy, question: Arc<Question>) -> Result<Answer, String> {
        let group = copy.group;
        let (tell, told) = oneshot::channel();
        if question.may_wait(&copy.reader) {
            tokio::task::spawn_blocking(move || drop(tell.send(copy.ask(&question))));
        } else {
            let mut waiting = self.waiting.lock();
            waiting.copies.push_back((copy, question, tell));
            if waiting.threads < *PROCESSORS {
                waiting.threads += 1;
                let this = self.clone();
                tokio::task::spawn_blocking(move || this.read());
            }
        }
        told.await.unwrap_or_else(|_| Err(early(group)))
    }

    /// Until nothing waits.
    fn read(&self) {
        loop {
            let next = {
                let mut waiting = self.waiting.lock();
                let next = waiting.copies.pop_front();
                if next.is_none() {
                    waiting.threads -= 1;
                }
                next
            };
            let Some((copy, question, tell)) = next else { return };
            let _ = tell.send(copy.ask(&question));
        }
    }
}

/// Ends a read when who asked for it has gone.
struct CancelsWhenDropped(Arc<hindcast_query::shards::Budget>);

impl Drop for CancelsWhenDropped {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

fn nobody_has(group: GroupId) -> String {
    format!("shard {group}: no node that has a copy of it answers; `hindcast cluster status` tells which should")
}

fn of_node(group: GroupId, node: NodeId, why: &str) -> String {
    match why.starts_with("shard ") {
        true => format!("{why} (asked of node {node})"),
        false => format!("shard {group}, asked of node {node}: {why}"),
    }
}

/// Joins neighbours of one label set and slot (a window that spans a move of slots); the first wins a tie in time.
fn merge_series(mut all: Vec<SeriesData>) -> Vec<SeriesData> {
    all.sort_by_cached_key(|s| (s.slot, s.labels.fingerprint(), s.labels.clone()));
    let mut merged: Vec<SeriesData> = Vec::with_capacity(all.len());
    for series in all {
        match merged.last_mut() {
            Some(last) if last.slot == series.slot && last.labels == series.labels => {
                let mut samples: Vec<Sample> = std::mem::take(&mut last.samples);
                samples.extend(series.samples);
                samples.sort_by_key(|s| s.at);
                samples.dedup_by_key(|s| s.at);
                last.samples = samples;
            }
            _ => merged.push(series),
        }
    }
    merged
}

fn merge_streams(mut all: Vec<StreamData>) -> Vec<StreamData> {
    all.sort_by_cached_key(|s| (s.slot, s.labels.fingerprint(), s.labels.clone()));
    let mut merged: Vec<StreamData> = Vec::with_capacity(all.len());
    for stream in all {
        match merged.last_mut() {
            Some(last) if last.slot == stream.slot && last.labels == stream.labels => {
                last.lines.extend(stream.lines);
                last.lines.sort_by_key(|l| l.at);
            }
            _ => merged.push(stream),
        }
    }
    merged
}

/// Keeps the `limit` lines at the end that `direction` names, over all streams.
fn keep_limit(streams: &mut Vec<StreamData>, limit: usize, direction: Direction) {
    let mut times: Vec<TimestampNs> = streams.iter().flat_map(|s| s.lines.iter().map(|l| l.at)).collect();
    if times.len() <= limit {
        return;
    }
    times.sort_unstable();
    if direction == Direction::Backward {
        times.reverse();
    }
    let Some(bound) = limit.checked_sub(1).map(|i| times[i]) else {
        streams.clear();
        return;
    };
    // Of the lines at the bound only so many fit; streams in order take theirs first.
    let inside = |at: TimestampNs| {
        if direction == Direction::Backward {
            at > bound
        } else {
            at < bound
        }
    };
    let mut room = limit - times.iter().filter(|at| inside(**at)).count();
    for stream in streams.iter_mut() {
        stream.lines.retain(|l| {
            inside(l.at) || {
                let fits = l.at == bound && room > 0;
                room -= usize::from(fits);
                fits
            }
        });
    }
    streams.retain(|s| !s.lines.is_empty());
}

// A source is behind when no rule waits so long.
const _: () = assert!(AWAITED_MAX.0 == hindcast_alerting::io::evaluator::WAIT_MAX.0);

#[async_trait::async_trait]
impl Shards for ClusterShards {
    fn read_with(&self, consistency: Consistency) -> Option<Arc<dyn Shards>> {
        (consistency != self.consistency).then(|| Arc::new(self.with(consistency)) as Arc<dyn Shards>)
    }

    async fn series(&self, r: SeriesRequest) -> Result<(Vec<SeriesData>, Completeness), ShardsError> {
        let as_of = r.as_of.clone();
        let (answers, completeness) = self.scatter(as_of.as_ref(), Question::Series(r)).await?;
        let series = answers.into_iter().flat_map(|a| match a {
            Answer::Series(series) => series,
            _ => vec![],
        });
        Ok((merge_series(series.collect()), completeness))
    }

    async fn columns(&self, r: ColumnsRequest) -> Result<(Columns, Completeness), ShardsError> {
        let as_of = r.series.as_of.clone();
        let (answers, completeness) = self.scatter(as_of.as_ref(), Question::Columns(r)).await?;
        let mut all = Columns::default();
        for answer in answers {
            if let Answer::Columns(found) = answer {
                all.extend(found);
            }
        }
        Ok((all, completeness))
    }

    async fn natives(&self, r: SeriesRequest) -> Result<(Vec<NativeSeries>, Completeness), ShardsError> {
        let as_of = r.as_of.clone();
        let (answers, completeness) = self.scatter(as_of.as_ref(), Question::Natives(r)).await?;
        let natives = answers.into_iter().flat_map(|a| match a {
            Answer::Natives(natives) => natives,
            _ => vec![],
        });
        Ok((natives.collect(), completeness))
    }

    async fn line_counts(&self, r: CountsRequest) -> Result<(Vec<StreamCounts>, Completeness), ShardsError> {
        let as_of = r.as_of.clone();
        let (answers, completeness) = self.scatter(as_of.as_ref(), Question::LineCounts(r)).await?;
        let counts = answers.into_iter().flat_map(|a| match a {
            Answer::LineCounts(counts) => counts,
            _ => vec![],
        });
        Ok((counts.collect(), completeness))
    }

    async fn lines(&self, r: LinesRequest) -> Result<(Vec<StreamData>, Completeness), ShardsError> {
        let (as_of, limit, direction) = (r.as_of.clone(), r.limit, r.direction);
        let (answers, completeness) = self.scatter(as_of.as_ref(), Question::Lines(r)).await?;
        let streams = answers.into_iter().flat_map(|a| match a {
            Answer::Lines(streams) => streams,
            _ => vec![],
        });
        let mut streams = merge_streams(streams.collect());
        if let Some(limit) = limit {
            keep_limit(&mut streams, limit, direction);
        }
        Ok((streams, completeness))
    }

    async fn label_sets(&self, r: LabelsRequest) -> Result<(Vec<Labels>, Completeness), ShardsError> {
        let (answers, completeness) = self.scatter(None, Question::LabelSets(r)).await?;
        let sets = answers.into_iter().flat_map(|a| match a {
            Answer::LabelSets(sets) => sets,
            _ => vec![],
        });
        let sets: BTreeSet<Labels> = sets.collect();
        Ok((sets.into_iter().collect(), completeness))
    }

    async fn label_texts(&self, r: LabelsRequest, of: LabelTexts) -> Result<(Vec<String>, Completeness), ShardsError> {
        let (answers, completeness) = self.scatter(None, Question::LabelTexts(r, of)).await?;
        let texts = answers.into_iter().flat_map(|a| match a {
            Answer::LabelTexts(texts) => texts,
            _ => vec![],
        });
        let texts: BTreeSet<String> = texts.collect();
        Ok((texts.into_iter().collect(), completeness))
    }

    async fn cardinality(
        &self,
        tenant: &TenantId,
        now: TimestampNs,
        entries: usize,
    ) -> Result<(Cardinality, Completeness), ShardsError> {
        let reports = self.reports.clone();
        let Ok(Ok(place)) = tokio::time::timeout(REPORT_WAIT_MAX, reports.acquire_owned()).await else {
            let why = format!("{REPORTS_MAX} report on series is under way and takes long; ask again when it is done");
            return Err(ShardsError::Unavailable(why));
        };
        let Some((readers, completeness)) = self.all_readers().await? else {
            return cardinality_of_sets(self, tenant, now, entries).await;
        };
        let (since, tenant) = (now - ACTIVE_SPAN, tenant.clone());
        let counting = tokio::task::spawn_blocking(move || {
            // Held to the end: who asked may be gone by then, and the work goes on.
            let _place = place;
            cardinality(&readers, &tenant, since.0, entries)
        });
        match counting.await {
            Ok(Ok(report)) => Ok((report, completeness)),
            Ok(Err(why)) => Err(ShardsError::Refused(why.to_string())),
            Err(why) => Err(ShardsError::Unavailable(format!("the report ended early: {why}"))),
        }
    }

    async fn complete_to(&self, tenant: &TenantId) -> Result<TimestampNs, ShardsError> {
        Ok(self.all_spoken(tenant).await?.complete)
    }

    async fn awaited_to(&self, tenant: &TenantId) -> Result<TimestampNs, ShardsError> {
        Ok(self.all_spoken(tenant).await?.awaited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_env::SimDisk;
    use hindcast_model::{LogLine, Owner, SeriesBlock, Slot};
    use hindcast_storage::{Shard, ShardConfig};

    /// A copy of a shard that has series of its own name.
    fn copy(group: u64) -> FreshCopy {
        let (mut shard, _) = Shard::open(Arc::new(SimDisk::new()), "s", ShardConfig::default()).unwrap();
        let block = SeriesBlock {
            labels: Labels::from_pairs([("shard", &group.to_string())]),
            owner: Owner::None,
            samples: vec![Sample {
                at: TimestampNs(1),
                value: 1.0,
            }],
        };
        shard.write(1, &TenantId::default(), &[block], &[]);
        shard.advance(1);
        FreshCopy {
            group: GroupId(group),
            as_of: None,
            reader: shard.reader(),
        }
    }

    fn names() -> Arc<Question> {
        let request = LabelsRequest {
            tenant: TenantId::default(),
            streams: false,
            any_of: vec![],
            from: TimestampNs(0),
            to: TimestampNs(9),
        };
        Arc::new(Question::LabelTexts(request, LabelTexts::Values("shard".to_owned())))
    }

    #[tokio::test]
    async fn each_copy_gives_its_own_answer_and_the_threads_end() {
        let readers = Arc::new(Readers::default());
        let asked = (1..=20).map(|group| readers.ask(copy(group), names()));
        for (answer, group) in join_all(asked).await.into_iter().zip(1..) {
            let Ok(Answer::LabelTexts(texts)) = answer else {
                panic!("shard {group} answers with texts")
            };
            assert_eq!(texts, [i32::to_string(&group)]);
        }
        let ended = || {
            let waiting = readers.waiting.lock();
            waiting.copies.is_empty() && waiting.threads == 0
        };
        while !ended() {
            tokio::task::yield_now().await;
        }
        let small = copy(7).ask_at_once(&names());
        assert!(matches!(small, Some(Ok(Answer::LabelTexts(texts))) if texts == ["7"]));
    }

    #[test]
    fn a_read_that_panics_is_told_as_that_shards_end() {
        let told = copy(3).contained(|| -> Result<(), ReadError> { panic!("a bug") });
        assert_eq!(told.unwrap_err(), early(GroupId(3)));
    }

    fn stream(name: &str, times: &[i64]) -> StreamData {
        let line = |at: &i64| LogLine {
            at: TimestampNs(*at),
            line: "x".into(),
            metadata: vec![],
        };
        StreamData {
            labels: Labels::from_pairs([("s", name)]),
            owner: Owner::None,
            slot: Slot(1),
            lines: times.iter().map(line).collect(),
        }
    }

    fn kept(limit: usize, direction: Direction) -> Vec<(String, Vec<i64>)> {
        let mut streams = vec![stream("a", &[1, 3, 5]), stream("b", &[2, 3, 4])];
        keep_limit(&mut streams, limit, direction);
        streams
            .into_iter()
            .map(|s| (s.labels.value("s").to_owned(), s.lines.iter().map(|l| l.at.0).collect()))
            .collect()
    }

    #[test]
    fn a_limit_holds_over_all_streams_from_the_asked_end() {
        assert_eq!(
            kept(3, Direction::Backward),
            [("a".into(), vec![3, 5]), ("b".into(), vec![4])]
        );
        assert_eq!(
            kept(3, Direction::Forward),
            [("a".into(), vec![1, 3]), ("b".into(), vec![2])]
        );
        assert_eq!(kept(0, Direction::Forward), []);
        assert_eq!(kept(9, Direction::Forward).len(), 2);
    }

    #[test]
    fn lines_of_one_stream_from_two_shards_are_one_stream() {
        let merged = merge_streams(vec![stream("a", &[1, 5]), stream("a", &[3])]);
        assert_eq!(merged.len(), 1);
        assert_eq!(merged[0].lines.iter().map(|l| l.at.0).collect::<Vec<_>>(), [1, 3, 5]);
    }
}

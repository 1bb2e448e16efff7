//! One source: joins its group, and consumes the partitions that the group deals to this node, until it deals anew.
//!
//! Tasks of one generation: a fetcher for each broker, which asks for all partitions that it leads and that are hungry; a storer for
//! each partition, which stores batch after batch; and the one that keeps the membership and commits for all, over the connection to the
//! coordinator. They end together. A storer that is in the middle of a write when its generation ends has [`DRAIN_SPAN_MAX`] to end it;
//! then it is dropped, and whoever has the partition next makes the same batch again.

use super::Inner;
use super::conn::{ANSWER_TIMEOUT, Conn, Reach, checked};
use super::stats::{PartitionNow, SourceStats};
use super::store::Store;
use hindcast_env::Rng;
use hindcast_env::io::os_rng;
use hindcast_ingest::records::Record;
use hindcast_kafka::config::Start;
use hindcast_kafka::group::{self, PROTOCOL, deal, read_assignment, read_subscription};
use hindcast_kafka::lane::{Cut, Lane, back_off};
use hindcast_kafka::messages::{
    self, Api, Broker, ByTopic, Code, Commit, Join, Member, Metadata, Place, Wanted, read_code, read_coordinator,
    read_fetch, read_join_group, read_list_offsets, read_metadata, read_offset_commit, read_offset_fetch,
    read_sync_group,
};
use hindcast_kafka::records::Unreadable;
use hindcast_kafka::{Source, Topic, records};
use hindcast_model::WriterId;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Partitions that a node consumes of one source; more of them are not begun, and said.
pub const PARTITIONS_MAX: usize = 4_096;
/// Records that came and are not stored, of all sources of a node. What was asked for before may come on top.
pub const WAITING_BYTES_MAX: usize = 64 * 1024 * 1024;
/// What one answer should bring, of one partition and of all.
const PARTITION_BYTES: i32 = 1024 * 1024;
const ANSWER_BYTES: i32 = 4 * 1024 * 1024;
/// How long a broker may wait for records before it answers without.
const FETCH_WAIT_MS: i32 = 250;
const HEARTBEAT_PAUSE_MAX: Duration = Duration::from_secs(3);
/// How long members have to come together when the group deals anew.
const REBALANCE_TIMEOUT: Duration = Duration::from_secs(60);
/// What a write that is under way has when its generation ends.
const DRAIN_SPAN_MAX: Duration = Duration::from_secs(5);
/// How often it is asked who leads what, and soonest after somebody found that it changed.
const METADATA_PAUSE: Duration = Duration::from_secs(30);
const METADATA_PAUSE_MIN: Duration = Duration::from_secs(1);
/// Between tries of a source that cannot be reached, first and longest.
const PAUSE_FIRST_MS: u64 = 250;
const PAUSE_MAX_MS: u64 = 15_000;
/// Between looks of a fetcher whom nobody wants something from.
const IDLE_PAUSE: Duration = Duration::from_millis(100);
/// After a partition could not be fetched.
const PARTITION_PAUSE: Duration = Duration::from_millis(500);
/// How long the end of a batch that was begun may be missing from the log.
const KNOWN_SPAN_MAX: Duration = Duration::from_secs(60);
const COMMITS_QUEUED_MAX: usize = 1_024;
/// A batch with a wrong checksum is fetched again so often, on a new connection each time, before it is passed over.
const DAMAGED_MAX: u32 = 3;

/// Why consuming came to an end.
enum Ended {
    Stopped,
    /// The group deals anew.
    Rebalance,
    Failed(String),
}

struct CommitAsk {
    topic: String,
    commit: Commit,
    done: oneshot::Sender<()>,
}

/// A partition of this generation.
struct Slot {
    topic: Arc<Topic>,
    partition: i32,
    leader: AtomicI32,
    lane: Mutex<Lane>,
    /// There is something to store, or the generation ends.
    wake: Notify,
    end: AtomicI64,
    /// Since when the end of a batch that was begun is waited for, and until when not to ask.
    waits: Mutex<(Option<Instant>, Option<Instant>)>,
    held: AtomicUsize,
    /// How often what was fetched from here on had a wrong checksum.
    damaged: AtomicU32,
}

impl Slot {
    fn has_pause(&self, now: Instant) -> bool {
        self.waits.lock().1.is_some_and(|until| now < until)
    }

    fn led_as(&self, told: &Metadata) {
        let of = told.topics.iter().find(|t| t.name == self.topic.name);
        let led = of.and_then(|t| t.partitions.iter().find(|(p, _)| *p == self.partition));
        self.leader.store(led.map_or(-1, |(_, leader)| *leader), Relaxed);
    }

    fn pause(&self) {
        self.waits.lock().1 = Some(Instant::now() + PARTITION_PAUSE);
    }
}

/// What the tasks of a generation share.
struct Generation {
    slots: Vec<Arc<Slot>>,
    commits: mpsc::Sender<CommitAsk>,
    /// A lane got room.
    hungry: Notify,
    /// Somebody found that a partition is led by another broker.
    stale: Notify,
    draining: watch::Receiver<bool>,
}

impl Generation {
    /// Who has no leader gets one soon.
    fn metadata_pause(&self) -> Duration {
        match self.slots.iter().any(|s| s.leader.load(Relaxed) < 0) {
            true => METADATA_PAUSE_MIN,
            false => METADATA_PAUSE,
        }
    }
}

/// One source on this node.
#[derive(Clone)]
pub(super) struct Consumer {
    pub inner: Arc<Inner>,
    pub source: Arc<Source>,
    pub reach: Reach,
    pub stats: Arc<SourceStats>,
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|s| *s).await;
}

fn epoch() -> Result<u64, String> {
    let rng = os_rng();
    Ok(rng
        .map_err(|e| format!("the machine gives no random numbers: {e}"))?
        .next_u64())
}

fn by_topic<T>(of: impl Iterator<Item = (String, T)>) -> ByTopic<T> {
    // In their order: a broker that has more than fits sends what is asked for first.
    let (mut places, mut out) = (BTreeMap::new(), ByTopic::<T>::new());
    for (topic, one) in of {
        let place = *places.entry(topic.clone()).or_insert_with(|| {
            out.push((topic, vec![]));
            out.len() - 1
        });
        out[place].1.push(one);
    }
    out
}

impl Consumer {
    fn say(&self, state: &str, error: &str) {
        let (name, group) = (&self.source.name, &self.source.group);
        self.inner.stats.say(self.inner.me, name, group, state, error);
    }

    /// Consumes until told to stop.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let (mut attempt, mut member, stop) = (0, String::new(), &mut stop);
        loop {
            if *stop.borrow() {
                break;
            }
            self.say("joining", "");
            let began = Instant::now();
            match self.session(&mut member, stop).await {
                Ended::Stopped => break,
                Ended::Rebalance => attempt = 0,
                Ended::Failed(why) => {
                    if began.elapsed() > Duration::from_millis(PAUSE_MAX_MS) {
                        attempt = 0;
                    }
                    self.stats.failures.fetch_add(1, Relaxed);
                    self.say("failing", &why);
                    let source = &self.source.name;
                    tracing::warn!(source, why, "consuming from Kafka failed and is tried again");
                    let pause = Duration::from_millis(back_off(attempt, PAUSE_FIRST_MS, PAUSE_MAX_MS));
                    attempt += 1;
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = stopped(stop) => break,
                    }
                }
            }
        }
        self.inner.stats.states.lock().remove(&self.source.name);
        self.inner.slots.lock().remove(&self.source.name);
    }

    async fn any_broker(&self) -> Result<Conn, String> {
        let mut said = vec![];
        for (host, port) in &self.source.brokers {
            match self.reach.connect(host, *port).await {
                Ok(conn) => return Ok(conn),
                Err(why) => said.push(why),
            }
        }
        Err(said.join("; "))
    }

    async fn coordinator(&self) -> Result<Conn, String> {
        let mut any = self.any_broker().await?;
        let asked = messages::find_coordinator(&self.source.group);
        let found = any.ask(Api::FindCoordinator, &asked, read_coordinator).await?;
        let broker = found.map_err(|code| format!("group {}: {code}", self.source.group))?;
        self.reach.connect(&broker.host, broker.port).await
    }

    /// Generation after generation over one connection.
    async fn session(&self, member: &mut String, stop: &mut watch::Receiver<bool>) -> Ended {
        let mut conn = tokio::select! {
            conn = self.coordinator() => match conn {
                Ok(conn) => conn,
                Err(why) => return Ended::Failed(why),
            },
            () = stopped(stop) => return Ended::Stopped,
        };
        loop {
            let joining = self.join(&mut conn, member);
            let joined = tokio::select! {
                joined = joining => joined,
                // The broker finds out by itself.
                () = stopped(stop) => return Ended::Stopped,
            };
            let (me, assigned, counts) = match joined {
                Ok(Some(joined)) => joined,
                // It knows this member by another name now, or not any more.
                Ok(None) => continue,
                Err(why) => return Ended::Failed(why),
            };
            let ended = self.generation(&mut conn, &me, assigned, counts, stop).await;
            match ended {
                Ended::Rebalance => {
                    self.stats.rebalances.fetch_add(1, Relaxed);
                    self.say("joining", "");
                }
                Ended::Stopped => {
                    // So the others need not wait until its session is over.
                    let _ = conn
                        .ask_within(
                            Api::LeaveGroup,
                            &messages::leave_group(&me),
                            Duration::from_secs(2),
                            read_code,
                        )
                        .await;
                    return Ended::Stopped;
                }
                failed @ Ended::Failed(_) => return failed,
            }
        }
    }

    fn topic_names(&self) -> Vec<&str> {
        self.source.topics.iter().map(|t| t.name.as_str()).collect()
    }

    async fn metadata(&self, conn: &mut Conn) -> Result<Metadata, String> {
        let asked = messages::metadata(&self.topic_names());
        conn.ask(Api::Metadata, &asked, read_metadata).await
    }

    /// Joins the group. `None`: once more, under the name that is in `member` now.
    #[allow(
        clippy::type_complexity,
        reason = "who this is, what it has, and how many partitions were dealt"
    )]
    async fn join(
        &self,
        conn: &mut Conn,
        member: &mut String,
    ) -> Result<Option<(Member, ByTopic<i32>, BTreeMap<String, usize>)>, String> {
        let topics = self.topic_names();
        let wanted = group::subscription(&topics);
        let ms = |span: Duration| i32::try_from(span.as_millis()).unwrap_or(i32::MAX);
        let join = Join {
            group: &self.source.group,
            member: member.as_str(),
            session_timeout_ms: ms(self.source.session.as_duration()),
            rebalance_timeout_ms: ms(REBALANCE_TIMEOUT),
            protocol: (PROTOCOL, &wanted),
        };
        let patience = REBALANCE_TIMEOUT + self.source.session.as_duration() + ANSWER_TIMEOUT;
        let joined = conn
            .ask_within(Api::JoinGroup, &messages::join_group(&join), patience, read_join_group)
            .await?;
        match joined.code {
            Code::MEMBER_ID_REQUIRED => {
                *member = joined.member;
                return Ok(None);
            }
            Code::UNKNOWN_MEMBER if !member.is_empty() => {
                member.clear();
                return Ok(None);
            }
            code => checked(&format!("joining group {}", self.source.group), code)?,
        }
        *member = joined.member.clone();
        let me = Member {
            group: self.source.group.clone(),
            generation: joined.generation,
            id: joined.member.clone(),
        };
        let told = self.metadata(conn).await?;
        let mut dealt = vec![];
        if joined.leader == joined.member {
            let members = joined.members.into_iter().map(|(id, said)| {
                let wants = read_subscription(said).unwrap_or_default();
                (id, wants)
            });
            let members: BTreeMap<String, Vec<String>> = members.collect();
            let mut asked: Vec<String> = members.values().flatten().cloned().collect();
            asked.sort();
            asked.dedup();
            // Others may have a file with other topics.
            let names: Vec<&str> = asked.iter().map(String::as_str).collect();
            let all = conn
                .ask(Api::Metadata, &messages::metadata(&names), read_metadata)
                .await?;
            let topics = all.topics.into_iter().map(|t| {
                let mut partitions: Vec<i32> = t.partitions.iter().map(|(p, _)| *p).collect();
                partitions.sort_unstable();
                (t.name, partitions)
            });
            let hands = deal(&members, &topics.collect());
            dealt = hands.into_iter().map(|(m, of)| (m, group::assignment(&of))).collect();
        }
        let counts = told
            .topics
            .iter()
            .map(|t| (t.name.clone(), t.partitions.len()))
            .collect();
        let asked = messages::sync_group(&me, &dealt);
        let (code, assignment) = conn
            .ask_within(Api::SyncGroup, &asked, patience, read_sync_group)
            .await?;
        if code.is_fenced() {
            if code == Code::UNKNOWN_MEMBER {
                member.clear();
            }
            return Ok(None);
        }
        checked(&format!("group {}", self.source.group), code)?;
        let assigned = read_assignment(assignment).map_err(|e| format!("what the group dealt cannot be read: {e}"))?;
        Ok(Some((me, assigned, counts)))
    }

    /// Where this node goes on in each partition.
    async fn slots(&self, conn: &mut Conn, assigned: &ByTopic<i32>, told: &Metadata) -> Result<Vec<Arc<Slot>>, String> {
        let leaders: BTreeMap<(&str, i32), i32> = told
            .topics
            .iter()
            .flat_map(|t| t.partitions.iter().map(|(p, l)| ((t.name.as_str(), *p), *l)))
            .collect();
        let topics: BTreeMap<&str, Arc<Topic>> = self
            .source
            .topics
            .iter()
            .map(|t| (t.name.as_str(), Arc::new(t.clone())))
            .collect();
        let asked = messages::offset_fetch(&self.source.group, assigned);
        let (known, code) = conn.ask(Api::OffsetFetch, &asked, read_offset_fetch).await?;
        checked(&format!("offsets of group {}", self.source.group), code)?;
        let (mut lanes, mut unknown) = (vec![], vec![]);
        for (topic, partitions) in known {
            for of in partitions {
                checked(&format!("topic {topic} partition {}", of.partition), of.code)?;
                let lane = match of.offset {
                    0.. => Some(Lane::committed(of.offset, &of.note, epoch()?)),
                    _ => None,
                };
                if lane.is_none() {
                    unknown.push((topic.clone(), of.partition));
                }
                lanes.push((topic.clone(), of.partition, lane));
            }
        }
        let place = match self.source.start {
            Start::Earliest => Place::Earliest,
            Start::Latest => Place::Latest,
        };
        let mut begins = BTreeMap::new();
        for (topic, partition) in unknown {
            let leader = leaders.get(&(topic.as_str(), partition)).copied().unwrap_or(-1);
            begins.entry(leader).or_insert_with(Vec::new).push((topic, partition));
        }
        let mut offsets: BTreeMap<(String, i32), i64> = BTreeMap::new();
        for (leader, of) in begins {
            let broker = told.brokers.iter().find(|b| b.id == leader);
            let broker = broker.ok_or_else(|| format!("{} partitions have no leader now", of.len()))?;
            let mut conn = self.reach.connect(&broker.host, broker.port).await?;
            let asked = by_topic(of.into_iter().map(|(t, p)| (t, (p, place))));
            for (topic, partition, offset) in list_offsets(&mut conn, &asked).await? {
                offsets.insert((topic, partition), offset);
            }
        }
        let mut slots = vec![];
        for (topic, partition, lane) in lanes {
            let Some(of) = topics.get(topic.as_str()) else { continue };
            let lane = match lane {
                Some(lane) => lane,
                None => match offsets.get(&(topic.clone(), partition)) {
                    Some(offset) => Lane::at(*offset, epoch()?),
                    None => {
                        return Err(format!(
                            "topic {topic} partition {partition}: its leader does not say where it begins"
                        ));
                    }
                },
            };
            let leader = leaders.get(&(topic.as_str(), partition)).copied().unwrap_or(-1);
            slots.push(Arc::new(Slot {
                topic: of.clone(),
                partition,
                leader: AtomicI32::new(leader),
                lane: Mutex::new(lane),
                wake: Notify::new(),
                end: AtomicI64::new(-1),
                waits: Mutex::default(),
                damaged: AtomicU32::new(0),
                held: AtomicUsize::new(0),
            }));
        }
        if slots.len() > PARTITIONS_MAX {
            let source = &self.source.name;
            tracing::error!(
                source,
                partitions = slots.len(),
                "a node consumes at most {PARTITIONS_MAX} partitions of a source: the rest waits until other nodes join"
            );
            slots.truncate(PARTITIONS_MAX);
        }
        Ok(slots)
    }

    async fn generation(
        &self,
        conn: &mut Conn,
        me: &Member,
        assigned: ByTopic<i32>,
        counts: BTreeMap<String, usize>,
        stop: &mut watch::Receiver<bool>,
    ) -> Ended {
        let began = async {
            let told = self.metadata(conn).await?;
            let slots = self.slots(conn, &assigned, &told).await?;
            // Where a partition begins is known from now on, also when nothing comes before this node dies.
            let begins = slots.iter().map(|s| {
                let lane = s.lane.lock();
                let note = match lane.awaits_known() {
                    true => None,
                    false => Some((s.partition, lane.stored(), lane.note(lane.stored()))),
                };
                note.map(|n| (s.topic.name.clone(), n))
            });
            let begins = by_topic(begins.flatten());
            if !begins.is_empty() {
                let answer = conn
                    .ask(
                        Api::OffsetCommit,
                        &messages::offset_commit(me, &begins),
                        read_offset_commit,
                    )
                    .await?;
                if let Some(ended) = self.commit_failed(&answer) {
                    return Ok(Err(ended));
                }
            }
            let keeps_notes = self.keeps_notes(conn, &begins).await?;
            Ok::<_, String>(Ok((told, slots, keeps_notes)))
        };
        let (told, slots, keeps_notes) = match began.await {
            Ok(Ok(began)) => began,
            Ok(Err(ended)) => return ended,
            Err(why) => return Ended::Failed(why),
        };
        let missing: Vec<&str> = told
            .topics
            .iter()
            .filter(|t| t.code.is_error())
            .map(|t| t.name.as_str())
            .collect();
        let mut wrong = vec![];
        if !missing.is_empty() {
            let names = missing.join(", ");
            wrong.push(format!(
                "these topics are not there, or this user may not see them: {names}"
            ));
        }
        if !keeps_notes {
            wrong.push("the broker keeps no notes beside offsets, as Kafka does: what was under way when a node died is stored twice".to_owned());
        }
        let why = wrong.join("; ");
        if !why.is_empty() {
            tracing::warn!(
                source = self.source.name,
                why,
                "consuming from Kafka, but not as it should be"
            );
        }
        self.say("consuming", &why);
        self.inner
            .slots
            .lock()
            .insert(self.source.name.clone(), Partitions(slots.clone()));
        let (commits, mut asks) = mpsc::channel(COMMITS_QUEUED_MAX);
        let (drain, draining) = watch::channel(false);
        let shared = Arc::new(Generation {
            slots,
            commits,
            hungry: Notify::new(),
            stale: Notify::new(),
            draining,
        });
        let (mut storers, mut fetchers) = (JoinSet::new(), JoinSet::new());
        for slot in &shared.slots {
            storers.spawn(self.clone().storer(shared.clone(), slot.clone()));
        }
        let mut asked_brokers = vec![];
        self.spawn_fetchers(&mut fetchers, &mut asked_brokers, &shared, &told);
        let heartbeat = HEARTBEAT_PAUSE_MAX.min(self.source.session.as_duration() / 3);
        let mut beat = tokio::time::interval(heartbeat);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut look_at = Instant::now() + shared.metadata_pause();
        let (mut ended, mut deadline) = (None, None);
        loop {
            if ended.is_some() && deadline.is_none() {
                deadline = Some(Instant::now() + DRAIN_SPAN_MAX);
                let _ = drain.send(true);
                shared.slots.iter().for_each(|s| s.wake.notify_one());
                if storers.is_empty() {
                    break;
                }
            }
            // The membership first: however much is committed, the group must hear of this node in time.
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(deadline.unwrap_or(look_at)), if deadline.is_some() => break,
                () = stopped(stop), if ended.is_none() => ended = Some(Ended::Stopped),
                _ = beat.tick(), if deadline.is_none() => match self.heartbeat(conn, me).await {
                    Ok(()) => {}
                    Err(why @ Ended::Rebalance) => ended = Some(why),
                    Err(why) => {
                        ended = Some(why);
                        break;
                    }
                },
                () = tokio::time::sleep_until(look_at), if deadline.is_none() => {
                    let now = match self.metadata(conn).await {
                        Ok(now) => now,
                        Err(why) => {
                            ended = Some(Ended::Failed(why));
                            break;
                        }
                    };
                    for slot in &shared.slots {
                        slot.led_as(&now);
                    }
                    look_at = Instant::now() + shared.metadata_pause();
                    self.spawn_fetchers(&mut fetchers, &mut asked_brokers, &shared, &now);
                    // Partitions were added, or a topic was: whoever joins again has the group deal anew.
                    let counted = |t: &messages::TopicMeta| counts.get(&t.name).copied().unwrap_or(0);
                    if now.topics.iter().any(|t| counted(t) != t.partitions.len()) {
                        ended = Some(Ended::Rebalance);
                    }
                }
                () = shared.stale.notified(), if deadline.is_none() => {
                    look_at = look_at.min(Instant::now() + METADATA_PAUSE_MIN);
                }
                Some(done) = storers.join_next() => {
                    if let Err(why) = done && why.is_panic() {
                        let source = &self.source.name;
                        tracing::error!(%why, source, "consuming broke off by a mistake of this program");
                        let why = "a partition's task broke off by a mistake of this program".to_owned();
                        ended.get_or_insert(Ended::Failed(why));
                    }
                    if ended.is_some() && storers.is_empty() {
                        break;
                    }
                }
                ask = asks.recv() => {
                    let Some(ask) = ask else { break };
                    let mut all = vec![ask];
                    while let Ok(more) = asks.try_recv() {
                        all.push(more);
                    }
                    if let Err(why) = self.commit(conn, me, all).await {
                        ended = Some(why);
                        break;
                    }
                }
            }
        }
        // What is dropped here was begun with a note: it is made again.
        fetchers.shutdown().await;
        storers.shutdown().await;
        self.inner.slots.lock().remove(&self.source.name);
        ended.unwrap_or(Ended::Rebalance)
    }

    /// Whether what was just noted is there. Without notes records are stored at least once, and no more is promised.
    async fn keeps_notes(&self, conn: &mut Conn, noted: &ByTopic<Commit>) -> Result<bool, String> {
        let Some((topic, (partition, _, note))) = noted.first().and_then(|(t, of)| Some((t, of.first()?))) else {
            return Ok(true);
        };
        let of = vec![(topic.clone(), vec![*partition])];
        let asked = messages::offset_fetch(&self.source.group, &of);
        let (known, _) = conn.ask(Api::OffsetFetch, &asked, read_offset_fetch).await?;
        Ok(known.iter().flat_map(|(_, of)| of).any(|k| k.note == *note))
    }

    async fn heartbeat(&self, conn: &mut Conn, me: &Member) -> Result<(), Ended> {
        let beat = conn.ask(Api::Heartbeat, &messages::heartbeat(me), read_code).await;
        match beat.map_err(Ended::Failed)? {
            code if code.is_fenced() => Err(Ended::Rebalance),
            code => checked("heartbeat", code).map_err(Ended::Failed),
        }
    }

    fn spawn_fetchers(
        &self,
        fetchers: &mut JoinSet<()>,
        asked: &mut Vec<i32>,
        shared: &Arc<Generation>,
        told: &Metadata,
    ) {
        for broker in &told.brokers {
            let leads = |s: &Arc<Slot>| s.leader.load(Relaxed) == broker.id;
            if shared.slots.iter().any(leads) && !asked.contains(&broker.id) {
                asked.push(broker.id);
                fetchers.spawn(self.clone().fetcher(shared.clone(), broker.clone()));
            }
        }
    }

    /// What a refused commit means for all of the generation.
    fn commit_failed(&self, answer: &ByTopic<(i32, Code)>) -> Option<Ended> {
        let failed = answer.iter().flat_map(|(t, of)| of.iter().map(move |(p, c)| (t, p, c)));
        let (topic, partition, code) = failed.into_iter().find(|(_, _, c)| c.is_error())?;
        Some(match code.is_fenced() {
            true => Ended::Rebalance,
            false => Ended::Failed(format!("committing topic {topic} partition {partition}: {code}")),
        })
    }

    async fn commit(&self, conn: &mut Conn, me: &Member, asks: Vec<CommitAsk>) -> Result<(), Ended> {
        let of = by_topic(asks.iter().map(|a| (a.topic.clone(), a.commit.clone())));
        let asked = messages::offset_commit(me, &of);
        let answer = conn.ask(Api::OffsetCommit, &asked, read_offset_commit).await;
        match answer.map_err(Ended::Failed) {
            Ok(answer) => match self.commit_failed(&answer) {
                None => {
                    self.stats.commits.fetch_add(asks.len() as u64, Relaxed);
                    asks.into_iter().for_each(|a| _ = a.done.send(()));
                    Ok(())
                }
                Some(ended) => Err(ended),
            },
            Err(ended) => Err(ended),
        }
    }

    /// Stores what comes of one partition.
    async fn storer(self, shared: Arc<Generation>, slot: Arc<Slot>) {
        let (inner, topic) = (&self.inner, slot.topic.clone());
        let name = self.source.name.clone();
        let mut store = Store::new(
            inner.ingest.clone(),
            self.stats.clone(),
            name,
            topic.clone(),
            slot.partition,
        );
        let commit = async |offset: i64, note: String| {
            let (done, waits) = oneshot::channel();
            let ask = CommitAsk {
                topic: topic.name.clone(),
                commit: (slot.partition, offset, note),
                done,
            };
            // Nobody answers: the generation ends.
            shared.commits.send(ask).await.is_ok() && waits.await.is_ok()
        };
        loop {
            let (cut, known, epoch) = {
                let mut lane = slot.lane.lock();
                let known = lane.until_known();
                let cut = lane.cut();
                slot.held.store(lane.bytes(), Relaxed);
                (cut, known, lane.epoch())
            };
            let Some(Cut { from, until, records }) = cut else {
                if *shared.draining.borrow() {
                    return;
                }
                slot.wake.notified().await;
                continue;
            };
            shared.hungry.notify_waiters();
            if *shared.draining.borrow() {
                return;
            }
            let values: Vec<Record> = records
                .into_iter()
                .filter_map(|r| match r.value {
                    Some(value) if !value.is_empty() => Some(Record {
                        partition: slot.partition,
                        offset: r.offset,
                        at: r.at,
                        key: r.key,
                        value,
                    }),
                    _ => {
                        self.stats.refused("empty", 1);
                        None
                    }
                })
                .collect();
            if !values.is_empty() {
                // Of a batch that is made again it stands there already.
                if known != Some(until) {
                    let note = slot.lane.lock().note(until);
                    if !commit(from, note).await {
                        return;
                    }
                }
                let group = &self.source.group;
                let writer = format!("hindcast/kafka/{group}/{}/{}/{epoch:016x}", topic.name, slot.partition);
                let writer = WriterId::named(&topic.tenant, &writer);
                store.store(writer, values, until).await;
            }
            let (has_more, note) = {
                let mut lane = slot.lane.lock();
                lane.done(until);
                slot.held.store(lane.bytes(), Relaxed);
                (lane.has_more(), lane.note(until))
            };
            shared.hungry.notify_waiters();
            // With more at hand, the next batch's note says it, too.
            let is_due = !has_more || *shared.draining.borrow();
            if is_due && !commit(until, note).await {
                return;
            }
        }
    }

    /// Asks one broker for what is wanted of the partitions that it leads.
    async fn fetcher(self, shared: Arc<Generation>, broker: Broker) {
        let (mut conn, mut attempt, mut turn) = (None, 0, 0);
        loop {
            if *shared.draining.borrow() {
                return;
            }
            let now = Instant::now();
            let mut wanted: Vec<Arc<Slot>> = {
                let leads = |s: &&Arc<Slot>| s.leader.load(Relaxed) == broker.id;
                let all = shared.slots.iter().filter(leads);
                let wants = |s: &&Arc<Slot>| !s.has_pause(now) && s.lane.lock().is_hungry();
                match self.inner.waiting_bytes() < self.inner.waiting_bytes_max {
                    true => all.filter(wants).cloned().collect(),
                    false => vec![],
                }
            };
            if wanted.is_empty() {
                let _ = tokio::time::timeout(IDLE_PAUSE, shared.hungry.notified()).await;
                continue;
            }
            // Each is the first one day, and gets what does not fit behind others.
            let many = wanted.len();
            wanted.rotate_left(turn % many);
            turn += 1;
            match self.fetch(&mut conn, &broker, &wanted, &shared).await {
                Ok(()) => {
                    if attempt > 0 {
                        self.say("consuming", "");
                    }
                    attempt = 0;
                }
                Err(why) => {
                    conn = None;
                    self.stats.failures.fetch_add(1, Relaxed);
                    self.say("consuming", &why);
                    if attempt == 0 {
                        tracing::warn!(
                            source = self.source.name,
                            why,
                            "fetching from a broker failed and is tried again"
                        );
                    }
                    shared.stale.notify_one();
                    tokio::time::sleep(Duration::from_millis(back_off(attempt, PAUSE_FIRST_MS, PAUSE_MAX_MS))).await;
                    attempt += 1;
                }
            }
        }
    }

    async fn fetch(
        &self,
        conn: &mut Option<Conn>,
        broker: &Broker,
        wanted: &[Arc<Slot>],
        shared: &Arc<Generation>,
    ) -> Result<(), String> {
        let open = match conn {
            Some(open) => open,
            None => conn.insert(self.reach.connect(&broker.host, broker.port).await?),
        };
        let asked: Vec<(Arc<Slot>, i64)> = wanted.iter().map(|s| (s.clone(), s.lane.lock().next())).collect();
        let of = by_topic(asked.iter().map(|(slot, from)| {
            let wanted = Wanted {
                partition: slot.partition,
                from: *from,
                bytes_max: PARTITION_BYTES,
            };
            (slot.topic.name.clone(), wanted)
        }));
        let question = messages::fetch(&of, FETCH_WAIT_MS, ANSWER_BYTES);
        let (code, parts) = open.ask(Api::Fetch, &question, read_fetch).await?;
        checked("fetching", code)?;
        self.stats.fetches.fetch_add(1, Relaxed);
        for (topic, parts) in parts {
            for part in parts {
                let found = asked
                    .iter()
                    .find(|(s, _)| s.partition == part.partition && s.topic.name == topic);
                let Some((slot, from)) = found else { continue };
                let (slot, from) = (slot.clone(), *from);
                match part.code {
                    // One answer may come to much more than its bytes. What is left is asked for again.
                    Code(0) if self.inner.waiting_bytes() >= self.inner.waiting_bytes_max => {
                        slot.end.store(part.stable_end, Relaxed);
                    }
                    Code(0) => {
                        slot.end.store(part.stable_end, Relaxed);
                        let read =
                            tokio::task::spawn_blocking(move || records::read(&part.records, from, &part.aborted));
                        let read = read.await.map_err(|e| format!("reading records broke off: {e}"))?;
                        let is_damaged = read.passed_over.iter().any(|p| p.why == Unreadable::Checksum);
                        if is_damaged && slot.damaged.fetch_add(1, Relaxed) < DAMAGED_MAX {
                            slot.pause();
                            let partition = slot.partition;
                            return Err(format!(
                                "topic {topic} partition {partition}: a batch from offset {from} on has a wrong checksum; it is fetched again"
                            ));
                        }
                        slot.damaged.store(0, Relaxed);
                        self.take(&slot, from, read)?;
                    }
                    Code::OFFSET_OUT_OF_RANGE => self.out_of_range(open, &slot).await?,
                    code => {
                        slot.pause();
                        shared.stale.notify_one();
                        if !code.is_passing() {
                            let partition = slot.partition;
                            self.say("consuming", &format!("topic {topic} partition {partition}: {code}"));
                            tracing::warn!(source = self.source.name, topic, partition, %code, "a partition cannot be fetched");
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn take(&self, slot: &Slot, from: i64, mut read: records::Fetched) -> Result<(), String> {
        for passed in std::mem::take(&mut read.passed_over) {
            self.stats.refused(passed.why.reason(), passed.records);
            let (topic, partition) = (&slot.topic.name, slot.partition);
            tracing::error!(
                source = self.source.name,
                topic,
                partition,
                from = passed.from,
                until = passed.until,
                records = passed.records,
                why = %passed.why,
                "records cannot be read and are passed over; hindcast_kafka_refused_records_total counts them"
            );
        }
        let (is_new, waits) = {
            let mut lane = slot.lane.lock();
            let is_new = read.next > from;
            lane.take(from, read);
            slot.held.store(lane.bytes(), Relaxed);
            (is_new, lane.awaits_known())
        };
        if is_new {
            slot.waits.lock().0 = None;
            slot.wake.notify_one();
        } else if waits {
            let since = *slot.waits.lock().0.get_or_insert_with(Instant::now);
            if since.elapsed() > KNOWN_SPAN_MAX {
                let mut lane = slot.lane.lock();
                tracing::warn!(
                    source = self.source.name,
                    topic = slot.topic.name,
                    partition = slot.partition,
                    offset = lane.stored(),
                    "the log ends before a batch that was begun: its records may be stored twice"
                );
                lane.give_up_known(epoch()?);
                slot.wake.notify_one();
            }
        }
        Ok(())
    }

    /// The log begins later, because the broker deleted what was not consumed, or ends earlier, because the topic was made anew.
    async fn out_of_range(&self, conn: &mut Conn, slot: &Slot) -> Result<(), String> {
        slot.pause();
        {
            let mut lane = slot.lane.lock();
            if lane.awaits_known() {
                // The rest of a batch that was begun does not come any more.
                lane.give_up_known(epoch()?);
                slot.wake.notify_one();
            }
            if !lane.is_idle() {
                // What came is stored first.
                return Ok(());
            }
        }
        let (topic, partition) = (slot.topic.name.clone(), slot.partition);
        let ask = |place| vec![(topic.clone(), vec![(partition, place)])];
        let offset_of = |list: Vec<(String, i32, i64)>| list.first().map(|(_, _, offset)| *offset);
        let first = offset_of(list_offsets(conn, &ask(Place::Earliest)).await?);
        let end = offset_of(list_offsets(conn, &ask(Place::Latest)).await?);
        let (Some(first), Some(end)) = (first, end) else {
            return Err(format!(
                "topic {topic} partition {partition}: its leader does not say where it begins"
            ));
        };
        let mut lane = slot.lane.lock();
        let at = lane.stored();
        let source = &self.source.name;
        if at < first {
            self.stats.lost_offsets.fetch_add((first - at) as u64, Relaxed);
            tracing::error!(
                source,
                topic,
                partition,
                from = at,
                until = first,
                "records were deleted by the broker before they were consumed: they are lost; give the topic a longer retention, or look why consuming is behind (hindcast_kafka_lag_records)"
            );
        } else if at > end {
            tracing::error!(
                source,
                topic,
                partition,
                offset = at,
                begins = first,
                ends = end,
                "the log ends before what was consumed: the topic was made anew, or its broker lost records; consuming goes on from its beginning"
            );
        } else {
            return Ok(());
        }
        *lane = Lane::at(first, epoch()?);
        Ok(())
    }
}

async fn list_offsets(conn: &mut Conn, of: &ByTopic<(i32, Place)>) -> Result<Vec<(String, i32, i64)>, String> {
    let listed = conn
        .ask(Api::ListOffsets, &messages::list_offsets(of), read_list_offsets)
        .await?;
    let mut out = vec![];
    for (topic, partitions) in listed {
        for (partition, code, offset) in partitions {
            checked(&format!("where topic {topic} partition {partition} begins"), code)?;
            out.push((topic.clone(), partition, offset));
        }
    }
    Ok(out)
}

/// The partitions of a source that this node has.
pub(super) struct Partitions(Vec<Arc<Slot>>);

impl Partitions {
    pub fn waiting_bytes(&self) -> usize {
        self.0.iter().map(|s| s.held.load(Relaxed)).sum()
    }

    pub fn now(&self, source: &str, node: u64) -> Vec<PartitionNow> {
        let of = |slot: &Arc<Slot>| PartitionNow {
            source: source.to_owned(),
            topic: slot.topic.name.clone(),
            partition: slot.partition,
            node,
            offset: slot.lane.lock().stored(),
            end: slot.end.load(Relaxed),
            waiting_bytes: slot.held.load(Relaxed) as u64,
        };
        self.0.iter().map(of).collect()
    }
}

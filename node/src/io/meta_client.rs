//! The meta group from any node: commands go to its leader, which stamps them with cluster time.

use super::peers::Peers;
use crate::cluster_time::{self, ClusterClock};
use bytes::Bytes;
use hindcast_env::Clock;
use hindcast_model::{Class, GroupId, NodeId, SpanNs, TimestampNs, codec};
use hindcast_raft::{
    Meta, MetaCommand, MetaError, MetaRead, ProposeError, RaftHost, Refusal, decode_reply, stored_clock,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tonic::Status;

const CALL_META: &str = "meta";
const CALL_CLOCK: &str = "clock";
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a caller waits for a leader before it is told that there is none.
const LEADER_TIMEOUT: Duration = Duration::from_secs(8);
const LEADER_PAUSE: Duration = Duration::from_millis(50);
/// How often the voters' clocks are compared.
const CLOCK_PAUSE: Duration = Duration::from_secs(1);

#[derive(Serialize, Deserialize)]
struct Forwarded {
    part: String,
    body: Bytes,
}

#[derive(Serialize, Deserialize)]
enum Fate {
    Reply(Bytes),
    Refused(Class, String),
    NotLeader,
    Unconfirmed,
}

/// Clones share it.
#[derive(Clone)]
pub struct MetaClient(Arc<Inner>);

struct Inner {
    me: NodeId,
    raft: RaftHost,
    peers: Arc<Peers>,
    clock: Arc<dyn Clock>,
    rows: Arc<dyn MetaRead>,
    /// Peers' clocks, as `cluster_time::zero_of`.
    zeros: Mutex<BTreeMap<NodeId, i64>>,
    shown: Mutex<ClusterClock>,
}

impl MetaClient {
    pub fn new(me: NodeId, raft: RaftHost, peers: Arc<Peers>, clock: Arc<dyn Clock>, rows: Arc<dyn MetaRead>) -> Self {
        let inner = Inner {
            me,
            raft,
            peers: peers.clone(),
            clock,
            rows,
            zeros: Mutex::default(),
            shown: Mutex::default(),
        };
        let meta = Self(Arc::new(inner));
        let m = meta.clone();
        peers.register(
            CALL_META,
            Arc::new(move |_, body| {
                let m = m.clone();
                Box::pin(async move {
                    let f: Forwarded = codec::from_bytes(&body).map_err(|e| Status::invalid_argument(e.to_string()))?;
                    Ok(codec::to_bytes(&m.propose_here(f.part, f.body.to_vec()).await).into())
                })
            }),
        );
        let m = meta.clone();
        peers.register(
            CALL_CLOCK,
            Arc::new(move |_, _| {
                let now = m.0.clock.now();
                Box::pin(async move { Ok(codec::to_bytes(&now).into()) })
            }),
        );
        tokio::spawn(meta.clone().compare_clocks());
        meta
    }

    /// Cluster time as this node knows it.
    pub fn cluster_now(&self) -> TimestampNs {
        self.show(TimestampNs::MIN)
    }

    /// As [`cluster_now`](Self::cluster_now), and not before the last command that this node has applied.
    fn caught_up(&self) -> TimestampNs {
        self.show(stored_clock(self.0.rows.as_ref()))
    }

    fn show(&self, stored: TimestampNs) -> TimestampNs {
        let corrected = self.corrected_now();
        // Read under the lock: of two that read at a time, the later one must not be taken for the earlier.
        let mut shown = self.0.shown.lock();
        shown.show(corrected, self.0.clock.monotonic(), stored)
    }

    fn corrected_now(&self) -> TimestampNs {
        let (own, offsets) = self.offsets();
        cluster_time::corrected(own, cluster_time::ahead_of_median(&offsets))
    }

    /// The own clock as the voters' median has it: what people call now, also while cluster time is ahead of it. It may go back. Until most
    /// clocks were compared, nobody knows whether cluster time is ahead or the own clock is late: it is cluster time then.
    pub fn wall(&self) -> Arc<dyn Clock> {
        Arc::new(Wall(self.clone()))
    }

    /// The own clock, and those of peers against it.
    fn offsets(&self) -> (TimestampNs, Vec<i64>) {
        let (own, monotonic) = (self.0.clock.now(), self.0.clock.monotonic());
        let zeros = self.0.zeros.lock();
        let offsets = zeros
            .values()
            .map(|zero| zero.saturating_sub(cluster_time::zero_of(own, monotonic)));
        (own, offsets.collect())
    }

    /// How far cluster time stands ahead of clocks: see [`cluster_time::ahead_of_clocks`].
    pub fn ahead_of_clocks(&self) -> Option<SpanNs> {
        cluster_time::ahead_of_clocks(self.corrected_now(), self.caught_up())
    }

    async fn compare_clocks(self) {
        let (mut reported, mut was_ahead) = (false, false);
        loop {
            for id in self.0.peers.ids() {
                let sent = self.0.clock.monotonic();
                let answer = self.0.peers.call(id, CALL_CLOCK, Bytes::new(), CLOCK_PAUSE).await;
                let received = self.0.clock.monotonic();
                // A peer that is away keeps its say: of two clocks one that is wrong would move the median.
                if let Some(theirs) = answer.ok().and_then(|a| codec::from_bytes::<TimestampNs>(&a).ok()) {
                    // Half of the round trip is the best guess of the way back.
                    let middle = SpanNs(sent.0 + received.0.saturating_sub(sent.0) / 2);
                    self.0.zeros.lock().insert(id, cluster_time::zero_of(theirs, middle));
                }
            }
            let ids = self.0.peers.ids();
            self.0.zeros.lock().retain(|id, _| ids.contains(id));
            let ahead = cluster_time::ahead_of_median(&self.offsets().1);
            let skewed = ahead.unsigned_abs() > cluster_time::SKEW_MAX.0;
            if skewed && !reported {
                tracing::warn!(
                    ahead_ms = ahead / 1_000_000,
                    "this node's clock is off the median of the cluster's; cluster time does not follow it"
                );
            }
            reported = skewed;
            let ahead = self.ahead_of_clocks();
            if let Some(by) = ahead.filter(|_| !was_ahead) {
                tracing::warn!(
                    ahead = %by,
                    "cluster time is ahead of clocks: one ran ahead and was set back. Rules are evaluated by the clock; incidents, tickets \
                     and messages bear cluster time, which goes at nine tenths of its speed until clocks have caught up"
                );
            }
            was_ahead = ahead.is_some();
            tokio::time::sleep(CLOCK_PAUSE).await;
        }
    }

    async fn propose_here(&self, part: String, body: Vec<u8>) -> Fate {
        if self.0.raft.status(GroupId::META).leader != Some(self.0.me) {
            return Fate::NotLeader;
        }
        let command = MetaCommand {
            part,
            at: self.caught_up(),
            body,
        };
        match self
            .0
            .raft
            .propose(GroupId::META, codec::to_bytes(&command), PROPOSE_TIMEOUT)
            .await
        {
            Ok((_, reply)) => match decode_reply(&reply) {
                Ok(reply) => Fate::Reply(reply),
                Err(refusal) => Fate::Refused(refusal.class, refusal.message),
            },
            Err(ProposeError::NotLeader { .. }) => Fate::NotLeader,
            Err(ProposeError::Full) => Fate::Refused(
                Class::RetryLater,
                "the meta group's log queue is full; retry in a second".to_owned(),
            ),
            Err(ProposeError::TooLarge { .. }) => Fate::Refused(
                Class::TooLarge,
                "the command is larger than one log entry may be".to_owned(),
            ),
            Err(_) => Fate::Unconfirmed,
        }
    }
}

/// Cluster time, for what stamps entries: a leader whose own clock is wrong must not age what a shard remembers.
impl Clock for MetaClient {
    fn now(&self) -> TimestampNs {
        self.cluster_now()
    }

    fn monotonic(&self) -> SpanNs {
        self.0.clock.monotonic()
    }
}

/// See [`MetaClient::wall`].
struct Wall(MetaClient);

impl Clock for Wall {
    fn now(&self) -> TimestampNs {
        let (own, offsets) = self.0.offsets();
        match cluster_time::are_compared(offsets.len(), self.0.0.peers.ids().len()) {
            true => cluster_time::corrected(own, cluster_time::ahead_of_median(&offsets)),
            false => self.0.caught_up(),
        }
    }

    fn monotonic(&self) -> SpanNs {
        self.0.0.clock.monotonic()
    }
}

#[async_trait::async_trait]
impl Meta for MetaClient {
    async fn propose(&self, part: &'static str, body: Vec<u8>) -> Result<Bytes, MetaError> {
        let deadline = self.0.clock.monotonic().as_duration() + LEADER_TIMEOUT;
        loop {
            let fate = match self.0.raft.status(GroupId::META).leader {
                None => Fate::NotLeader,
                Some(leader) if leader == self.0.me => self.propose_here(part.to_owned(), body.clone()).await,
                Some(leader) => {
                    let forwarded = Forwarded {
                        part: part.to_owned(),
                        body: body.clone().into(),
                    };
                    let sent = codec::to_bytes(&forwarded).into();
                    match self
                        .0
                        .peers
                        .call(leader, CALL_META, sent, PROPOSE_TIMEOUT + CLOCK_PAUSE)
                        .await
                    {
                        Ok(answer) => codec::from_bytes(&answer).unwrap_or(Fate::Unconfirmed),
                        Err(_) => Fate::Unconfirmed,
                    }
                }
            };
            match fate {
                Fate::Reply(reply) => return Ok(reply),
                Fate::Refused(class, message) => return Err(Refusal { class, message }.into()),
                Fate::Unconfirmed => return Err(MetaError::Unconfirmed),
                Fate::NotLeader if self.0.clock.monotonic().as_duration() >= deadline => {
                    return Err(MetaError::NoLeader);
                }
                Fate::NotLeader => tokio::time::sleep(LEADER_PAUSE).await,
            }
        }
    }

    async fn read(&self) -> Result<Arc<dyn MetaRead>, MetaError> {
        let read = self.0.raft.read_index(GroupId::META, LEADER_TIMEOUT).await;
        read.map(|_| self.0.rows.clone()).map_err(|_| MetaError::NoLeader)
    }

    fn stale(&self) -> Arc<dyn MetaRead> {
        self.0.rows.clone()
    }

    fn is_leader(&self) -> bool {
        self.0.raft.status(GroupId::META).leader == Some(self.0.me)
    }
}

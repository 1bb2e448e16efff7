//! Kafka: topics are consumed, each source of the file as one member of its group on every node.
//!
//! What a batch is, and what is committed with it, is decided in `hindcast_kafka`; here are the file, the connections and the tasks
//! ([`consume`]), and the way into the store ([`store`]). Brokers deal partitions to nodes, and to nobody else's nodes while a node holds its
//! place ([decision 0027](../../../../../ops/decisions/0027-kafka.md)).

#[cfg(test)]
mod broker;
mod conn;
mod consume;
mod files;
mod stats;
mod store;
#[cfg(test)]
mod tests;

pub use consume::{PARTITIONS_MAX, WAITING_BYTES_MAX};
pub use files::{LoadError, Loaded, load};
pub use stats::{KafkaStats, LAG_ROWS_MAX, PartitionNow, Row, SourceNow, Told};

use super::IngestState;
use crate::io::peers::Peers;
use conn::Reach;
use consume::{Consumer, Partitions};
use hindcast_kafka::Source;
use hindcast_model::{NodeId, codec};
use parking_lot::Mutex;
use stats::TOLD_MAX;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long sources have to end what is under way.
const STOP_SPAN_MAX: Duration = Duration::from_secs(10);
const PEERS_TIMEOUT: Duration = Duration::from_secs(1);
const CALL_TOLD: &str = "kafka-told";

struct Inner {
    ingest: IngestState,
    peers: Option<Arc<Peers>>,
    me: NodeId,
    stats: Arc<KafkaStats>,
    loaded: watch::Sender<Loaded>,
    slots: Mutex<BTreeMap<String, Partitions>>,
    waiting_bytes_max: usize,
}

impl Inner {
    /// Records that came and are not stored.
    fn waiting_bytes(&self) -> usize {
        self.slots.lock().values().map(Partitions::waiting_bytes).sum()
    }

    fn told(&self) -> Told {
        let slots = self.slots.lock();
        let partitions = slots.iter().flat_map(|(source, of)| of.now(source, self.me.0));
        Told {
            partitions: partitions.take(TOLD_MAX).collect(),
            sources: self.stats.states.lock().values().cloned().collect(),
        }
    }
}

/// The consuming of one node. Clones share it.
#[derive(Clone)]
pub struct Kafka(Arc<Inner>);

struct Running {
    source: Source,
    files: u64,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Running {
    async fn end(self) {
        let _ = self.stop.send(true);
        let _ = self.task.await;
    }
}

impl Kafka {
    /// `peers`: of a cluster. Topics are consumed from [`Kafka::run`] on.
    pub fn new(loaded: Loaded, ingest: IngestState, peers: Option<Arc<Peers>>, me: NodeId) -> Self {
        Self::bounded(loaded, ingest, peers, me, WAITING_BYTES_MAX)
    }

    fn bounded(
        loaded: Loaded,
        ingest: IngestState,
        peers: Option<Arc<Peers>>,
        me: NodeId,
        waiting_bytes_max: usize,
    ) -> Self {
        let kafka = Self(Arc::new(Inner {
            ingest,
            peers,
            me,
            stats: Arc::default(),
            loaded: watch::channel(loaded).0,
            slots: Mutex::default(),
            waiting_bytes_max,
        }));
        if let Some(peers) = &kafka.0.peers {
            let inner = kafka.0.clone();
            peers.register(
                CALL_TOLD,
                Arc::new(move |_, _| {
                    let told = codec::to_bytes(&inner.told());
                    Box::pin(async move { Ok(told.into()) })
                }),
            );
        }
        kafka
    }

    /// Puts a file in force that was loaded. Sources that it does not change go on.
    pub fn replace(&self, loaded: Loaded) {
        self.0.loaded.send_replace(loaded);
    }

    pub fn reload_failed(&self) {
        self.0.stats.reload_failures.fetch_add(1, Relaxed);
    }

    /// Rows of `/metrics`.
    pub fn rows(&self) -> Vec<Row> {
        self.0.stats.rows(&self.0.told().partitions)
    }

    /// What this node and its peers consume.
    pub async fn told(&self) -> Told {
        let mut told = self.0.told();
        if let Some(peers) = &self.0.peers {
            let asked = peers.ids().into_iter().map(|id| async move {
                let answer = peers.call(id, CALL_TOLD, bytes::Bytes::new(), PEERS_TIMEOUT).await;
                codec::from_bytes::<Told>(&answer.ok()?).ok()
            });
            for other in futures::future::join_all(asked).await.into_iter().flatten() {
                told.sources.extend(other.sources);
                told.partitions.extend(other.partitions);
            }
        }
        told.sources
            .sort_by(|a, b| (&a.source, a.node).cmp(&(&b.source, b.node)));
        let key = |p: &PartitionNow| (p.source.clone(), p.topic.clone(), p.partition);
        told.partitions.sort_by_cached_key(key);
        told
    }

    fn start(&self, source: &Source, reach: &Reach) -> Running {
        let (stop, stopped) = watch::channel(false);
        let consumer = Consumer {
            inner: self.0.clone(),
            source: Arc::new(source.clone()),
            reach: reach.clone(),
            stats: self.0.stats.of(&source.name),
        };
        Running {
            source: source.clone(),
            files: reach.files,
            stop,
            task: tokio::spawn(consumer.run(stopped)),
        }
    }

    /// Consumes until told to stop.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut loaded = self.0.loaded.subscribe();
        let mut running: BTreeMap<String, Running> = BTreeMap::new();
        loop {
            let now = loaded.borrow_and_update().clone();
            let wanted: BTreeMap<&String, (&Source, &Reach)> = now
                .config
                .sources
                .iter()
                .zip(&now.reaches)
                .map(|(s, r)| (&s.name, (s, r)))
                .collect();
            let is_other =
                |r: &Running, (source, reach): &(&Source, &Reach)| **source != r.source || reach.files != r.files;
            let is_over = |r: &Running| wanted.get(&r.source.name).is_none_or(|w| is_other(r, w));
            let over: Vec<String> = running
                .values()
                .filter(|r| is_over(r))
                .map(|r| r.source.name.clone())
                .collect();
            let ending = over.iter().filter_map(|name| running.remove(name)).map(Running::end);
            futures::future::join_all(ending).await;
            for (name, (source, reach)) in wanted {
                running.entry(name.clone()).or_insert_with(|| self.start(source, reach));
            }
            tokio::select! {
                changed = loaded.changed() => if changed.is_err() { break },
                _ = stop.wait_for(|s| *s) => break,
            }
        }
        let ending = futures::future::join_all(running.into_values().map(Running::end));
        let _ = tokio::time::timeout(STOP_SPAN_MAX, ending).await;
    }
}

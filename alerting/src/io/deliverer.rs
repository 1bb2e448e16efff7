//! Delivers what is due in the outbox.
//!
//! Every node runs one. The leader of the meta group goes first; the others take what has been due for a second, and
//! what a dead node held once its lease has run out. A message is sent by the holder of its lease only, and its
//! outcome is proposed with the lease's token. No opinion of its own: rows say what, when and how often.

use super::{is_passing, pause, propose};
use crate::channel::{Channels, SendError};
use crate::command::{GatewayCommand, GatewayReply};
use crate::outbox::{EffectKey, Outcome, Sending};
use crate::rows;
use hindcast_env::Clock;
use hindcast_model::{NodeId, SpanNs};
use hindcast_raft::Meta;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

/// How long a node may take for one message before another one may send it.
pub const LEASE_TTL: SpanNs = SpanNs::from_secs(10);
/// Of the lease, kept for recording the outcome.
pub const RECORD_SPAN: SpanNs = SpanNs::from_secs(2);
/// Messages under way on one node.
pub const SENDS_MAX: usize = 32;
/// What others than the leader leave to the leader.
const PATIENCE: SpanNs = SpanNs::from_secs(1);
const ROUND: Duration = Duration::from_millis(100);

/// Attempts of this node to send, by outcome.
#[derive(Clone, Default)]
pub struct Sends(Arc<[AtomicU64; OUTCOMES.len()]>);

const OUTCOMES: [&str; 3] = ["delivered", "retry", "refused"];

impl Sends {
    fn add(&self, outcome: &Outcome) {
        let at = match outcome {
            Outcome::Delivered { .. } => 0,
            Outcome::Retry { .. } => 1,
            Outcome::Refused { .. } => 2,
        };
        self.0[at].fetch_add(1, Relaxed);
    }

    pub fn list(&self) -> Vec<(&'static str, u64)> {
        let counts = self.0.iter().map(|n| n.load(Relaxed));
        OUTCOMES.into_iter().zip(counts).collect()
    }
}

/// The shell around deliveries. Clones share what they work on.
#[derive(Clone)]
pub struct Deliverer {
    meta: Arc<dyn Meta>,
    channels: Channels,
    node: NodeId,
    clock: Arc<dyn Clock>,
    ttl: SpanNs,
    busy: Arc<Mutex<BTreeSet<EffectKey>>>,
    places: Arc<Semaphore>,
    sends: Sends,
}

impl Deliverer {
    pub fn new(meta: Arc<dyn Meta>, channels: Channels, node: NodeId, clock: Arc<dyn Clock>) -> Self {
        Self {
            meta,
            channels,
            node,
            clock,
            ttl: LEASE_TTL,
            busy: Arc::default(),
            places: Arc::new(Semaphore::new(SENDS_MAX)),
            sends: Sends::default(),
        }
    }

    pub fn sends(&self) -> Sends {
        self.sends.clone()
    }

    /// Another length of leases. A message must go, and its outcome be recorded, within it.
    pub fn with_lease(mut self, ttl: SpanNs) -> Self {
        self.ttl = ttl;
        self
    }

    /// Works until told to stop.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        while pause(ROUND, &mut stop).await {
            self.round();
        }
    }

    fn round(&self) {
        let now = self.clock.now();
        let patience = if self.meta.is_leader() { SpanNs::ZERO } else { PATIENCE };
        let due = match rows::deliveries_due(self.meta.stale().as_ref(), now, SENDS_MAX) {
            Ok(due) => due,
            Err(error) => {
                tracing::error!(%error, "the outbox cannot be read, nothing is sent from here");
                return;
            }
        };
        for (key, since) in due {
            if now < since + patience || !self.busy.lock().expect("plain data").insert(key.clone()) {
                continue;
            }
            let Ok(place) = self.places.clone().try_acquire_owned() else {
                self.busy.lock().expect("plain data").remove(&key);
                return;
            };
            let this = self.clone();
            tokio::spawn(async move {
                this.deliver(&key).await;
                this.busy.lock().expect("plain data").remove(&key);
                drop(place);
            });
        }
    }

    /// One attempt at one effect: lease, send, record.
    async fn deliver(&self, key: &EffectKey) {
        let take = GatewayCommand::TakeEffect {
            key: key.clone(),
            node: self.node,
            ttl: self.ttl,
        };
        let sending = match propose(self.meta.as_ref(), &take).await {
            Ok(GatewayReply::Send(sending)) => sending,
            Ok(_) => return,
            Err(error) => {
                tracing::debug!(%key, %error, "no lease for a message");
                return;
            }
        };
        let outcome = self.send(&sending).await;
        self.sends.add(&outcome);
        if let Outcome::Retry { error } | Outcome::Refused { error } = &outcome {
            let receiver = &sending.effect.receiver;
            tracing::warn!(%key, %receiver, attempt = sending.effect.attempts, error, "a message did not go");
        }
        self.record(key, sending.token, outcome).await;
    }

    async fn send(&self, sending: &Sending) -> Outcome {
        let name = sending.effect.target.channel();
        let Some(channel) = self.channels.get(name) else {
            return Outcome::Refused {
                error: format!("this program has no channel {name:?}"),
            };
        };
        let patience = SpanNs(self.ttl.0.saturating_sub(RECORD_SPAN.0).max(self.ttl.0 / 2));
        match tokio::time::timeout(patience.as_duration(), channel.send(sending)).await {
            Ok(Ok(receipt)) => Outcome::Delivered { receipt },
            Ok(Err(SendError::Busy(error))) => Outcome::Retry { error },
            Ok(Err(SendError::Rejected(error))) => Outcome::Refused { error },
            Err(_) => Outcome::Retry {
                error: format!("no answer within {patience}; the message may have gone"),
            },
        }
    }

    /// Proposes the outcome until there is an answer, or the lease is somebody else's business.
    async fn record(&self, key: &EffectKey, token: u64, outcome: Outcome) {
        let done = GatewayCommand::EffectDone {
            key: key.clone(),
            token,
            outcome,
        };
        let until = self.clock.now() + self.ttl;
        loop {
            match propose(self.meta.as_ref(), &done).await {
                Ok(_) => return,
                Err(error) if is_passing(&error) && self.clock.now() < until => tokio::time::sleep(ROUND).await,
                Err(error) => {
                    tracing::warn!(%key, %error, "the outcome of a message could not be recorded; it may be sent again");
                    return;
                }
            }
        }
    }
}

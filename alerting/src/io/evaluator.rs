//! Asks the rules' expressions when they are due, and proposes what they returned.
//!
//! Every node runs one. A group is evaluated by the node that holds its lease; that node goes first the next time,
//! then the leader of the meta group, then the others. A group that was late is asked about its latest instant only.
//! Leases are of cluster time, instants of the wall clock: the two differ when a clock ran ahead and was set back, and data
//! has the times of the wall. The apply decides.

use super::{is_passing, pause, propose};
use crate::command::{Evaluation, GatewayCommand, GatewayReply, RuleResult, SERIES_PER_RULE_MAX};
use crate::outbox::Lease;
use crate::rows::{self, GroupRow};
use crate::rule::Language;
use hindcast_env::Clock;
use hindcast_model::{Labels, NodeId, Positions, SpanNs, TimestampNs};
use hindcast_query::engine::{Engine, InstantQuery, Options, QueryError};
use hindcast_query::shards::Shards;
use hindcast_query::value::{Answer, Value, VectorSample};
use hindcast_raft::Meta;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

/// How long a group waits for its sources to send up to the instant.
pub const WAIT_MAX: SpanNs = SpanNs::from_secs(10);
/// How long a node may take for one evaluation before another one may begin.
pub const LEASE_TTL: SpanNs = SpanNs::from_secs(15);
/// Groups that one node evaluates at the same time.
pub const EVALUATIONS_MAX: usize = 8;
/// Bytes of one proposal; the results that are too large for it are failed.
pub const PROPOSAL_BYTES_MAX: usize = 4 * 1024 * 1024;

const ROUND: Duration = Duration::from_millis(200);
const WATERMARK_POLL: Duration = Duration::from_millis(100);
const PROPOSALS_MAX: u32 = 5;

/// The shell around rule evaluation. Clones share what they work on.
#[derive(Clone)]
pub struct Evaluator {
    meta: Arc<dyn Meta>,
    engine: Arc<Engine>,
    shards: Arc<dyn Shards>,
    clock: Arc<dyn Clock>,
    wall: Arc<dyn Clock>,
    node: NodeId,
    /// Groups under way on this node.
    busy: Arc<Mutex<BTreeSet<String>>>,
    places: Arc<Semaphore>,
}

impl Evaluator {
    /// `clock` shows cluster time, `wall` what the clocks of most nodes show.
    pub fn new(
        meta: Arc<dyn Meta>,
        engine: Arc<Engine>,
        shards: Arc<dyn Shards>,
        clock: Arc<dyn Clock>,
        wall: Arc<dyn Clock>,
        node: NodeId,
    ) -> Self {
        Self {
            meta,
            engine,
            shards,
            clock,
            wall,
            node,
            busy: Arc::default(),
            places: Arc::new(Semaphore::new(EVALUATIONS_MAX)),
        }
    }

    /// Works until told to stop.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        while pause(until_round(self.wall.now()), &mut stop).await {
            self.round().await;
        }
    }

    /// Begins what is due. Returns once a tick was proposed, if one was due; evaluations go on by themselves.
    async fn round(&self) {
        let now = self.clock.now();
        let read = self.meta.stale();
        if self.meta.is_leader()
            && rows::is_tick_due(read.as_ref(), now)
            && let Err(error) = propose(self.meta.as_ref(), &GatewayCommand::Tick).await
        {
            tracing::debug!(%error, "a tick has to wait");
        }
        let groups = match rows::rule_groups(read.as_ref(), None) {
            Ok(groups) => groups,
            Err(error) => {
                tracing::error!(%error, "rule groups cannot be read, none is evaluated");
                return;
            }
        };
        for group in groups {
            let Some(instant) = self.due(&group, now, self.wall.now()) else {
                continue;
            };
            let name = group.key.to_string();
            if !self.busy.lock().expect("plain data").insert(name.clone()) {
                continue;
            }
            let Ok(place) = self.places.clone().try_acquire_owned() else {
                self.busy.lock().expect("plain data").remove(&name);
                return;
            };
            let this = self.clone();
            tokio::spawn(async move {
                this.evaluate(group, instant).await;
                this.busy.lock().expect("plain data").remove(&name);
                drop(place);
            });
        }
    }

    /// The instant that a group is to be asked about by this node now.
    fn due(&self, group: &GroupRow, now: TimestampNs, wall: TimestampNs) -> Option<TimestampNs> {
        let interval = i64::try_from(group.group.interval.0).ok().filter(|i| *i > 0)?;
        let instant = TimestampNs(wall.0 - wall.0.rem_euclid(interval));
        if group.evaluated_at.is_some_and(|last| instant <= last) && group.set_back_from(wall).is_none() {
            return None;
        }
        let is_ours = group.lease.is_some_and(|l| l.node == self.node);
        let is_held = group.lease.is_some_and(|l: Lease| now < l.until);
        let patience = match (is_ours, self.meta.is_leader()) {
            (true, _) => SpanNs::ZERO,
            (false, true) => SpanNs::from_ms(300),
            (false, false) => SpanNs::from_ms(1_000 + 100 * (self.node.0 % 10)),
        };
        let is_turn = group.lease.is_none() && self.meta.is_leader() || wall >= instant + patience;
        (is_turn && (is_ours || !is_held)).then_some(instant)
    }

    /// One evaluation of one group, from the lease to the proposal.
    async fn evaluate(&self, group: GroupRow, instant: TimestampNs) {
        let lease = GatewayCommand::TakeGroupLease {
            group: group.key.clone(),
            node: self.node,
            ttl: LEASE_TTL,
        };
        let token = async {
            match propose(self.meta.as_ref(), &lease).await {
                Ok(GatewayReply::Lease { token, .. }) => Ok(token),
                Ok(_) => Err(()),
                Err(error) => {
                    tracing::debug!(group = %group.key, %error, "no lease for a rule group");
                    Err(())
                }
            }
        };
        let is_whole = async { Ok(self.wait_for_sources(&group, instant).await) };
        // What is proposed without the lease would be refused; sources may be waited for without it.
        let Ok((token, is_whole)) = tokio::try_join!(token, is_whole) else {
            return;
        };
        let partial = !is_whole;
        let (mut results, mut missing, mut positions) = (vec![], BTreeSet::new(), Positions::new());
        for rule in &group.group.rules {
            results.push(match self.value(&group, &rule.expr, instant).await {
                Ok(answer) => {
                    missing.extend(answer.completeness.missing);
                    for (shard, index) in answer.completeness.positions {
                        let seen = positions.entry(shard).or_insert(index);
                        *seen = (*seen).min(index);
                    }
                    series(answer.value)
                }
                Err(error) => RuleResult::Failed(error.to_string()),
            });
        }
        let evaluation = bounded(Evaluation {
            set_back_from: group.set_back_from(instant),
            group: group.key,
            revision: group.revision,
            token,
            instant,
            results,
            partial: partial || !missing.is_empty(),
            missing: missing.into_iter().take(100).collect(),
            positions,
        });
        self.propose_evaluation(evaluation).await;
    }

    /// What an expression of the group gives at the instant.
    async fn value(&self, group: &GroupRow, expr: &str, at: TimestampNs) -> Result<Answer<Value>, QueryError> {
        let query = InstantQuery {
            tenant: group.key.tenant.clone(),
            expr: expr.to_owned(),
            at,
            options: Options::default(),
        };
        match group.group.language {
            Language::Promql => self.engine.instant(&query).await,
            Language::Logql => self.engine.instant_of_logs(&query).await,
        }
    }

    /// Waits until the sources that may still do so have sent up to the instant. `false`: some have not, or it could not be told.
    async fn wait_for_sources(&self, group: &GroupRow, instant: TimestampNs) -> bool {
        let tenant = &group.key.tenant;
        loop {
            let awaited_to = self.shards.awaited_to(tenant).await;
            if awaited_to.is_ok_and(|to| to >= instant) || self.wall.now() >= instant + WAIT_MAX {
                return self.shards.complete_to(tenant).await.is_ok_and(|to| to >= instant);
            }
            tokio::time::sleep(WATERMARK_POLL).await;
        }
    }

    /// Proposes until there is an answer: a repeat is refused by its instant, so that it is harmless.
    async fn propose_evaluation(&self, evaluation: Evaluation) {
        let (group, instant) = (evaluation.group.clone(), evaluation.instant);
        let command = GatewayCommand::Evaluated(evaluation);
        for attempt in 1..=PROPOSALS_MAX {
            match propose(self.meta.as_ref(), &command).await {
                Ok(_) => return,
                Err(error) if is_passing(&error) && attempt < PROPOSALS_MAX => {
                    tokio::time::sleep(ROUND * attempt).await;
                }
                Err(error) => {
                    tracing::info!(%group, at_ms = instant.as_ms(), %error, "an evaluation was not taken");
                    return;
                }
            }
        }
    }
}

/// Rounds begin with the instants of rules whose interval is a multiple of theirs, not somewhere after them.
fn until_round(wall: TimestampNs) -> Duration {
    let every = ROUND.as_nanos() as i64;
    Duration::from_nanos((every - wall.0.rem_euclid(every)) as u64)
}

fn series(value: Value) -> RuleResult {
    match value {
        Value::Scalar(v) => RuleResult::Series(vec![(Labels::empty(), v)]),
        Value::Vector(samples) if samples.len() > SERIES_PER_RULE_MAX => RuleResult::Failed(format!(
            "the expression returned {} series, more than {SERIES_PER_RULE_MAX}; narrow it down",
            samples.len()
        )),
        Value::Vector(samples) => {
            // Of a histogram, how much it counts.
            let value = |s: &VectorSample| s.histogram.as_ref().map_or(s.value, |h| h.count);
            RuleResult::Series(
                samples
                    .into_iter()
                    .map(|s| {
                        let v = value(&s);
                        (s.labels, v)
                    })
                    .collect(),
            )
        }
        other => RuleResult::Failed(format!(
            "the expression gives a {}, a rule needs a vector",
            other.kind()
        )),
    }
}

/// Fails the largest results until the rest fits into one command.
fn bounded(mut evaluation: Evaluation) -> Evaluation {
    let size = |r: &RuleResult| match r {
        RuleResult::Series(list) => list
            .iter()
            .map(|(l, _)| 16 + l.iter().map(|(n, v)| n.len() + v.len() + 8).sum::<usize>())
            .sum(),
        RuleResult::Failed(error) => error.len(),
    };
    loop {
        let sizes: Vec<usize> = evaluation.results.iter().map(size).collect();
        let total: usize = sizes.iter().sum();
        let largest = (0..sizes.len()).max_by_key(|i| sizes[*i]);
        match largest {
            Some(i) if total > PROPOSAL_BYTES_MAX => {
                let error = format!("the group's results take {total} bytes, more than {PROPOSAL_BYTES_MAX}; split it");
                evaluation.results[i] = RuleResult::Failed(error);
            }
            _ => return evaluation,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// People were told up to 0.2 s later than need be: rounds began somewhere after the instant that they were for.
    #[test]
    fn a_round_begins_with_the_instant() {
        let waits = [0, 1, 150, 199, 200, 1_000, -1].map(|ms| until_round(TimestampNs::from_ms(ms)).as_millis());
        assert_eq!(waits, [200, 199, 50, 1, 200, 200, 1]);
    }
}

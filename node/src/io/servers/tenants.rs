//! What tenants may write, as this node keeps to it: limits in force, buckets of tokens, active series, and what was refused for whom.
//!
//! Rates are of the cluster. Each node takes its share of them by the number of nodes that live: those it heard of in the last
//! [`LIVING_SPAN`], and itself. While a node goes, its share is nobody's; while one comes back, the rate is exceeded by its share until all
//! have heard of it, [`LIVING_PAUSE`] later or so.

use crate::io::peers::Peers;
use crate::write::BatchSink;
use bytes::Bytes;
use hindcast_env::Clock;
use hindcast_ingest::new_series::{NewSeries, Tally, WidestLabel, key_of};
use hindcast_ingest::rates::{Buckets, Costs, Counted, Rates, TooFast, share};
use hindcast_ingest::tenant_limits::{Limits, LimitsInForce, Rate};
use hindcast_ingest::{Bounds, Ids, Naming, Refusal, Rejections};
use hindcast_model::{Class, Classify, Labels, NodeId, Owner, ShardId, SpanNs, TenantId};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// How often other nodes are asked whether they live, and how long one that does not answer counts on.
const LIVING_PAUSE: Duration = Duration::from_secs(1);
const LIVING_TIMEOUT: Duration = Duration::from_millis(800);
pub const LIVING_SPAN: SpanNs = SpanNs::from_secs(3);
const CALL_LIVES: &str = "lives";
/// Tenants of which it is told what was refused; of further ones together, under no name.
pub const TENANTS_TOLD_MAX: usize = 1_000;
/// Refusals of parts that are a tenant's limit, by their codes.
const LIMIT_CODES: [(&str, &str); 4] = [
    ("too_many_labels", "labels_max"),
    ("label_value_too_long", "label_value_bytes_max"),
    ("line_too_long", "line_bytes_max"),
    ("too_many_series", "active_series_max"),
];
/// How often the active series of tenants are counted that have a limit and send new ones.
const COUNT_PAUSE: Duration = Duration::from_secs(10);
/// Tenants of which series are counted; beyond, all are forgotten and counted anew.
pub const TALLIES_MAX: usize = 10_000;
/// A tenant that sent no new series for so long is not counted any more.
const TALLY_SPAN: SpanNs = SpanNs::from_secs(600);

/// A request that its tenant sent too early. Nothing of it is stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "tenant {tenant} writes faster than its limit {} allows: {} {} per second and {} at once{}; this request has {}. Retry in {} ms, or raise the limit in the file that --limits names",
    .too_fast.counted.limit(), .rate.per_second, .too_fast.counted.unit(), .rate.burst, of_nodes(*.nodes), .too_fast.cost, .too_fast.retry_after.0.div_ceil(1_000_000)
)]
pub struct TooFastError {
    tenant: TenantId,
    too_fast: TooFast,
    /// Of the cluster.
    rate: Rate,
    nodes: usize,
}

fn of_nodes(nodes: usize) -> String {
    match nodes {
        0 | 1 => String::new(),
        n => format!(", of which each of {n} nodes takes its part"),
    }
}

impl Classify for TooFastError {
    fn class(&self) -> Class {
        Class::RetryLater
    }

    fn retry_after(&self) -> Option<SpanNs> {
        Some(self.too_fast.retry_after)
    }
}

/// What was refused of one tenant under one limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    pub requests: u64,
    /// Samples or lines that were refused while the rest of their request was stored.
    pub items: u64,
}

/// By tenant and limit; the empty tenant stands for those that are not told apart.
pub type RefusedByTenant = BTreeMap<(String, &'static str), Refused>;

/// What a node knows of its tenants' limits.
pub struct Tenants {
    pub limits: LimitsInForce,
    buckets: Mutex<Buckets>,
    nodes: AtomicUsize,
    refused: Mutex<RefusedByTenant>,
    lines_cut: AtomicU64,
    series: Mutex<BTreeMap<TenantId, Arc<Mutex<Series>>>>,
}

/// Active series of one tenant.
#[derive(Default)]
struct Series {
    tally: Tally,
    is_counted: bool,
    /// `None`: nobody was refused since it was looked for.
    widest: Option<WidestLabel>,
    /// Monotonic: when a new series was asked for.
    asked: SpanNs,
    refused: bool,
}

/// How many active series a tenant has, and how many it may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeriesNow {
    pub active: u64,
    pub max: Option<u64>,
}

impl Default for Tenants {
    fn default() -> Self {
        Self {
            limits: LimitsInForce::default(),
            buckets: Mutex::default(),
            nodes: AtomicUsize::new(1),
            refused: Mutex::default(),
            lines_cut: AtomicU64::new(0),
            series: Mutex::default(),
        }
    }
}

impl Tenants {
    pub fn bounds(&self, tenant: &TenantId) -> Bounds {
        self.limits.current().of(tenant).bounds
    }

    /// Puts limits in force. True: what was checked before must be checked again.
    pub(super) fn replace(&self, limits: Limits) -> bool {
        let before = self.limits.current();
        let is_other = before.default.bounds != limits.default.bounds
            || before
                .tenants
                .keys()
                .chain(limits.tenants.keys())
                .any(|t| before.of(t).bounds != limits.of(t).bounds);
        self.limits.replace(limits);
        is_other
    }

    /// Nodes that live, as far as this one knows.
    pub fn nodes(&self) -> usize {
        self.nodes.load(Relaxed)
    }

    pub(super) fn live_with(&self, nodes: usize) {
        self.nodes.store(nodes, Relaxed);
    }

    /// Takes what a request costs off the tenant's buckets. `now` is monotonic.
    pub(super) fn charge(&self, tenant: &TenantId, costs: &Costs, now: SpanNs) -> Result<(), TooFastError> {
        let limits = self.limits.current();
        let of = limits.of(tenant);
        let rates: Rates = [of.samples, of.log_bytes];
        if rates == [None; 2] {
            return Ok(());
        }
        let nodes = self.nodes();
        let own = rates.map(|r| r.map(|r| share(r, nodes)));
        let taken = self.buckets.lock().take(tenant, &own, costs, now);
        taken.map_err(|too_fast| {
            self.count(tenant, too_fast.counted.limit(), |r| r.requests += 1);
            let rate = rates[too_fast.counted as usize].unwrap_or(Rate {
                per_second: 0,
                burst: 0,
            });
            TooFastError {
                tenant: tenant.clone(),
                too_fast,
                rate,
                nodes,
            }
        })
    }

    /// Of a request that was not stored after all.
    pub(super) fn give_back(&self, tenant: &TenantId, costs: &Costs) {
        let limits = self.limits.current();
        let of = limits.of(tenant);
        if of.samples.is_some() || of.log_bytes.is_some() {
            self.buckets.lock().give_back(tenant, costs);
        }
    }

    fn count(&self, tenant: &TenantId, limit: &'static str, add: impl FnOnce(&mut Refused)) {
        let mut refused = self.refused.lock();
        let key = (tenant.to_string(), limit);
        let has_room = refused.len() < TENANTS_TOLD_MAX || refused.contains_key(&key);
        let key = if has_room { key } else { (String::new(), limit) };
        add(refused.entry(key).or_default());
    }

    /// Counts the refused parts of a request that are this tenant's limits.
    pub(super) fn refused_items(&self, tenant: &TenantId, rejected: &Rejections) {
        for (code, limit) in LIMIT_CODES {
            if let Some(items) = rejected.by_code().get(code) {
                self.count(tenant, limit, |r| r.items += items);
            }
        }
    }

    pub(super) fn cut(&self, lines: u64) {
        self.lines_cut.fetch_add(lines, Relaxed);
    }

    /// Lines that were cut since the start.
    pub fn lines_cut(&self) -> u64 {
        self.lines_cut.load(Relaxed)
    }

    pub fn refused(&self) -> RefusedByTenant {
        self.refused.lock().clone()
    }

    /// The gate for new series of a request; `None`: the tenant may have any number.
    pub(super) fn gate(
        self: &Arc<Self>,
        tenant: &TenantId,
        sink: &Arc<dyn BatchSink>,
        clock: &Arc<dyn Clock>,
    ) -> Option<SeriesGate> {
        let max = self.limits.current().of(tenant).active_series_max?;
        Some(SeriesGate {
            tenants: self.clone(),
            sink: sink.clone(),
            clock: clock.clone(),
            tenant: tenant.clone(),
            max,
            refused: Mutex::default(),
        })
    }

    fn series_of(&self, tenant: &TenantId) -> Arc<Mutex<Series>> {
        let mut all = self.series.lock();
        if all.len() >= TALLIES_MAX && !all.contains_key(tenant) {
            all.clear();
        }
        all.entry(tenant.clone()).or_default().clone()
    }

    /// Active series now, of tenants that have a limit and sent new series of late.
    pub fn series(&self, ids: &dyn Ids) -> BTreeMap<TenantId, SeriesNow> {
        let limits = self.limits.current();
        let all: Vec<_> = self.series.lock().iter().map(|(t, s)| (t.clone(), s.clone())).collect();
        let now = |(tenant, series): (TenantId, Arc<Mutex<Series>>)| {
            let series = series.lock();
            let since = ids.series_since(&tenant, series.tally.counted());
            let max = limits.of(&tenant).active_series_max;
            let active = series.tally.counted().active + since;
            series.is_counted.then_some((tenant, SeriesNow { active, max }))
        };
        all.into_iter().filter_map(now).collect()
    }

    /// Counts anew what is counted. Looks at all series of these tenants.
    pub(super) fn count_again(&self, ids: &dyn Ids, clock: &dyn Clock) {
        let all: Vec<_> = self.series.lock().iter().map(|(t, s)| (t.clone(), s.clone())).collect();
        for (tenant, series) in all {
            let is_idle = clock.monotonic().0.saturating_sub(series.lock().asked.0) > TALLY_SPAN.0;
            if is_idle {
                self.series.lock().remove(&tenant);
                continue;
            }
            // Not under its lock: requests go on by what was counted before.
            let counted = ids.active_series(&tenant, clock.now());
            let was_refused = std::mem::take(&mut series.lock().refused);
            let widest = was_refused.then(|| ids.widest_label(&tenant)).flatten();
            let mut series = series.lock();
            series.tally.count(counted, clock.monotonic());
            series.is_counted = true;
            series.widest = widest;
        }
    }

    /// Counts active series for as long as the node runs.
    pub async fn count_series_regularly(self: Arc<Self>, sink: Arc<dyn BatchSink>, clock: Arc<dyn Clock>) {
        loop {
            tokio::time::sleep(COUNT_PAUSE).await;
            let (tenants, sink, clock) = (self.clone(), sink.clone(), clock.clone());
            let counted = tokio::task::spawn_blocking(move || tenants.count_again(sink.ids(), &*clock)).await;
            if let Err(why) = counted
                && why.is_panic()
            {
                tracing::error!(%why, "counting series of tenants broke off by a mistake of this program");
            }
        }
    }

    /// Hears of the other nodes for as long as this one runs.
    pub async fn hear_of_nodes(self: Arc<Self>, peers: Arc<Peers>, clock: Arc<dyn Clock>) {
        peers.register(CALL_LIVES, Arc::new(|_, _| Box::pin(async { Ok(Bytes::new()) })));
        let mut living = Living::default();
        loop {
            let ids = peers.ids();
            let asked = ids
                .iter()
                .map(|id| peers.call(*id, CALL_LIVES, Bytes::new(), LIVING_TIMEOUT));
            let answers = futures::future::join_all(asked).await;
            let now = clock.monotonic();
            let heard = ids.iter().zip(answers).map(|(id, answer)| (*id, answer.is_ok()));
            self.live_with(1 + living.others(heard, now));
            tokio::time::sleep(LIVING_PAUSE).await;
        }
    }
}

/// Says for one request which new series may begin. Laid out again, the same request gets the same answers.
pub(super) struct SeriesGate {
    tenants: Arc<Tenants>,
    sink: Arc<dyn BatchSink>,
    clock: Arc<dyn Clock>,
    tenant: TenantId,
    max: u64,
    refused: Mutex<HashMap<u64, Refusal>>,
}

impl NewSeries for SeriesGate {
    fn admit(&self, naming: Naming, shard: ShardId, labels: &Labels, owner: &Owner) -> Result<(), Refusal> {
        let key = key_of(labels, owner);
        if naming == Naming::Defined {
            return self.refused.lock().get(&key).cloned().map_or(Ok(()), Err);
        }
        let ids = self.sink.ids();
        let series = self.tenants.series_of(&self.tenant);
        let mut series = series.lock();
        let now = self.clock.monotonic();
        series.asked = now;
        if !series.is_counted {
            let counted = ids.active_series(&self.tenant, self.clock.now());
            series.tally.count(counted, now);
            series.is_counted = true;
        }
        let since = ids.series_since(&self.tenant, series.tally.counted());
        let is_known = |shard, labels: &Labels, owner: &Owner| {
            let (_, known) = ids.ids(shard, &self.tenant, super::is_native(labels), &[(labels, owner)]);
            known.iter().any(Option::is_some)
        };
        if series
            .tally
            .admit((shard, labels, owner), self.max, since, is_known, now)
        {
            return Ok(());
        }
        series.refused = true;
        if series.widest.is_none() {
            series.widest = ids.widest_label(&self.tenant);
        }
        let why = Refusal::TooManySeries {
            max: self.max,
            widest: series.widest.clone(),
        };
        self.refused.lock().insert(key, why.clone());
        Err(why)
    }
}

/// When other nodes were heard of last.
#[derive(Debug, Default)]
struct Living(BTreeMap<NodeId, SpanNs>);

impl Living {
    /// How many of those that belong to the cluster live. One that is new here counts until it had its time to answer.
    fn others(&mut self, heard: impl Iterator<Item = (NodeId, bool)>, now: SpanNs) -> usize {
        let before = std::mem::take(&mut self.0);
        for (id, answers) in heard {
            let last = before.get(&id).copied().filter(|_| !answers).unwrap_or(now);
            self.0.insert(id, last);
        }
        let lives = |at: &&SpanNs| now.0 - at.0 < LIVING_SPAN.0;
        self.0.values().filter(lives).count()
    }
}

/// What a request costs.
pub(super) fn costs(samples: u64, log_bytes: usize) -> Costs {
    let mut costs = Costs::default();
    costs[Counted::Samples as usize] = samples;
    costs[Counted::LogBytes as usize] = log_bytes as u64;
    costs
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_ingest::tenant_limits::parse;

    #[test]
    fn a_node_counts_until_it_was_silent_for_a_while() {
        let mut living = Living::default();
        let mut at = |secs, heard: &[(u64, bool)]| {
            let heard = heard.iter().map(|(id, answers)| (NodeId(*id), *answers));
            living.others(heard, SpanNs::from_secs(secs))
        };
        assert_eq!(at(0, &[(2, true), (3, false)]), 2, "one that starts has time to answer");
        assert_eq!(at(2, &[(2, true), (3, false)]), 2);
        assert_eq!(at(3, &[(2, true), (3, false)]), 1);
        assert_eq!(at(4, &[(2, false), (3, true)]), 2, "it is back");
        assert_eq!(at(5, &[(3, true)]), 1, "one that left the cluster counts no more");
    }

    #[test]
    fn each_node_takes_its_share_and_says_so() {
        let tenants = Tenants::default();
        tenants
            .limits
            .replace(parse("f", "default: {samples_per_second: 30, samples_burst: 60}").unwrap());
        tenants.live_with(3);
        let (tenant, now) = (TenantId::default(), SpanNs::from_secs(1));
        assert_eq!(tenants.charge(&tenant, &costs(20, 999), now), Ok(()));
        let why = tenants.charge(&tenant, &costs(5, 0), now).unwrap_err();
        assert_eq!(why.retry_after(), Some(SpanNs::from_ms(500)));
        expect_test::expect!["tenant default writes faster than its limit samples_per_second allows: 30 samples per second and 60 at once, of which each of 3 nodes takes its part; this request has 5. Retry in 500 ms, or raise the limit in the file that --limits names"].assert_eq(&why.to_string());
        assert_eq!(
            tenants.refused()[&("default".to_owned(), "samples_per_second")].requests,
            1
        );
        tenants.live_with(1);
        let later = SpanNs::from_secs(2);
        assert_eq!(
            tenants.charge(&tenant, &costs(30, 0), later),
            Ok(()),
            "the others are gone"
        );
    }

    #[test]
    fn tenants_beyond_a_number_are_told_together() {
        let tenants = Tenants::default();
        tenants
            .limits
            .replace(parse("f", "default: {samples_per_second: 1, samples_burst: 1}").unwrap());
        let now = SpanNs::from_secs(1);
        for i in 0..TENANTS_TOLD_MAX + 5 {
            let tenant = TenantId::new(&format!("t{i}")).unwrap();
            tenants.charge(&tenant, &costs(1, 0), now).unwrap();
            tenants.charge(&tenant, &costs(1, 0), now).unwrap_err();
        }
        let refused = tenants.refused();
        assert_eq!(refused.len(), TENANTS_TOLD_MAX + 1);
        assert_eq!(refused[&(String::new(), "samples_per_second")].requests, 5);
    }
}

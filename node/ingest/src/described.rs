//! What senders say of their metrics: type, help text, unit.
//!
//! It is kept as an ordinary series per metric, `hindcast_metric_info{metric, type, unit, help}`: replicated, durable and the same on
//! every node like all others (decision 0022). Its value is the time of writing. Senders repeat themselves with each request, so a node
//! remembers what it wrote and writes again what is new, or what was written longer than [`REWRITE_SPAN`] ago. What it
//! remembers decides nothing else: after a restart everything is written once more.
//!
//! Bounded: per tenant [`METRICS_MAX`] of them, [`VARIANTS_MAX`] per name, [`REMEMBERED_MAX`] on a node, [`PER_REQUEST_MAX`] written for one
//! request. What finds no room is left out and counted.

use crate::check::{LimitsContext, cut};
use hindcast_model::limits::LABEL_VALUE_BYTES_MAX;
use hindcast_model::{Batch, Labels, METRIC_NAME, Owner, Sample, SeriesBlock, SpanNs, TenantId, TimestampNs};
use hindcast_proto::metric_info::{HELP, METRIC, METRIC_INFO, TYPE, UNIT};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_64_with_seed;

pub use hindcast_proto::metric_info::REWRITE_SPAN;

/// Descriptions of one tenant's metrics, within one [`REWRITE_SPAN`].
pub const METRICS_MAX: usize = 20_000;
/// Descriptions of one metric: programs of several versions may describe it each in their words.
pub const VARIANTS_MAX: usize = 4;
/// Descriptions that one node remembers, of all tenants.
pub const REMEMBERED_MAX: usize = 200_000;
/// Descriptions written for one request; the sender says the others again.
pub const PER_REQUEST_MAX: usize = 2_000;
/// Longer help texts are cut.
pub const HELP_BYTES_MAX: usize = 1024;
pub const UNIT_BYTES_MAX: usize = 64;
/// How often room is looked for.
const SWEEP_SPAN: SpanNs = SpanNs::from_secs(60);

/// What a metric is, in Prometheus' order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricType {
    Unknown,
    Counter,
    Gauge,
    Histogram,
    GaugeHistogram,
    Summary,
    Info,
    StateSet,
}

impl MetricType {
    /// As both versions of remote write number them.
    pub const fn of_number(number: u64) -> Self {
        match number {
            1 => Self::Counter,
            2 => Self::Gauge,
            3 => Self::Histogram,
            4 => Self::GaugeHistogram,
            5 => Self::Summary,
            6 => Self::Info,
            7 => Self::StateSet,
            _ => Self::Unknown,
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::GaugeHistogram => "gaugehistogram",
            Self::Summary => "summary",
            Self::Info => "info",
            Self::StateSet => "stateset",
        }
    }

    /// The metric whose part a series of this name is.
    pub fn family_of(self, series: &str) -> &str {
        let suffixes: &[&str] = match self {
            Self::Histogram | Self::GaugeHistogram => &["_bucket", "_sum", "_count"],
            Self::Summary => &["_sum", "_count"],
            _ => &[],
        };
        let stripped = suffixes.iter().find_map(|s| series.strip_suffix(s));
        stripped.filter(|s| !s.is_empty()).unwrap_or(series)
    }
}

/// A metric as a request describes it.
#[derive(Clone, Copy, Debug)]
pub struct Metric<'m> {
    pub name: &'m str,
    pub kind: MetricType,
    pub help: &'m str,
    pub unit: &'m str,
}

impl Metric<'_> {
    fn says_nothing(&self) -> bool {
        self.name.is_empty()
            || self.name.len() > LABEL_VALUE_BYTES_MAX
            || (self.kind == MetricType::Unknown && self.help.is_empty() && self.unit.is_empty())
    }

    fn key(&self) -> Key {
        let name = xxh3_64_with_seed(self.name.as_bytes(), 0);
        let of_help = xxh3_64_with_seed(self.help.as_bytes(), name ^ self.kind as u64);
        Key {
            name,
            all: xxh3_64_with_seed(self.unit.as_bytes(), of_help),
        }
    }

    fn labels(&self) -> Labels {
        let pairs = [
            (METRIC_NAME, METRIC_INFO.to_owned()),
            (METRIC, self.name.to_owned()),
            (TYPE, self.kind.as_str().to_owned()),
            (UNIT, cut(self.unit, UNIT_BYTES_MAX)),
            (HELP, cut(self.help, HELP_BYTES_MAX)),
        ];
        Labels::new(pairs.map(|(n, v)| (n.to_owned(), v)).into_iter().collect())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    name: u64,
    all: u64,
}

/// Descriptions that are to be written.
#[derive(Clone, Debug, Default)]
pub struct Due {
    labels: BTreeMap<Key, Labels>,
    /// Descriptions that found no room.
    pub left_out: u64,
}

impl Due {
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// As rows of a batch, written at `now`.
    pub fn batch(&self, tenant: &TenantId, now: TimestampNs) -> Batch {
        let mut batch = Batch::new(tenant.clone());
        let at = now.floor_ms();
        let value = (at.as_ms() / 1000) as f64;
        batch.series.extend(self.labels.values().map(|labels| SeriesBlock {
            labels: labels.clone(),
            owner: Owner::None,
            samples: vec![Sample { at, value }],
        }));
        batch
    }
}

/// Of one name: what was written of it, and when.
type Written = BTreeMap<u64, Vec<(u64, TimestampNs)>>;

#[derive(Default)]
struct Inner {
    tenants: BTreeMap<TenantId, (Written, usize)>,
    all: usize,
    swept: Option<TimestampNs>,
}

/// What this node wrote of late.
#[derive(Default)]
pub struct Described {
    inner: RwLock<Inner>,
}

fn is_fresh(written: TimestampNs, now: TimestampNs) -> bool {
    now < written + REWRITE_SPAN
}

impl Inner {
    /// Whether it stands there and is fresh; else whether there is room for it.
    fn state(&self, tenant: &TenantId, key: Key, now: TimestampNs) -> Result<bool, ()> {
        let of_tenant = self.tenants.get(tenant);
        let of_name = of_tenant.and_then(|(names, _)| names.get(&key.name));
        let of_name = of_name.map_or(&[][..], Vec::as_slice);
        if let Some((_, written)) = of_name.iter().find(|(all, _)| *all == key.all) {
            return Ok(is_fresh(*written, now));
        }
        let fresh = of_name.iter().filter(|(_, at)| is_fresh(*at, now)).count();
        let of_tenant = of_tenant.map_or(0, |(_, n)| *n);
        match fresh < VARIANTS_MAX && of_tenant < METRICS_MAX && self.all < REMEMBERED_MAX {
            true => Ok(false),
            false => Err(()),
        }
    }

    fn may_sweep(&self, now: TimestampNs) -> bool {
        self.swept.is_none_or(|at| now >= at + SWEEP_SPAN)
    }

    /// Forgets what would be written again anyway; now and then.
    fn sweep(&mut self, now: TimestampNs) {
        if !self.may_sweep(now) {
            return;
        }
        self.swept = Some(now);
        self.all = 0;
        for (names, n) in self.tenants.values_mut() {
            *n = 0;
            names.retain(|_, of_name| {
                of_name.retain(|(_, at)| is_fresh(*at, now));
                *n += of_name.len();
                !of_name.is_empty()
            });
            self.all += *n;
        }
        self.tenants.retain(|_, (_, n)| *n > 0);
    }
}

impl Described {
    /// Adds to `due` what is to be written of this metric.
    pub fn look(&self, tenant: &TenantId, metric: &Metric<'_>, limits: &LimitsContext, due: &mut Due) {
        if metric.says_nothing() {
            return;
        }
        let (key, now) = (metric.key(), limits.now);
        let (mut state, may_sweep) = {
            let inner = self.inner.read();
            (inner.state(tenant, key, now), inner.may_sweep(now))
        };
        // A full table is full for each series of each request: only who sweeps keeps the others out.
        if state.is_err() && may_sweep {
            let mut inner = self.inner.write();
            inner.sweep(now);
            state = inner.state(tenant, key, now);
        }
        match state {
            Ok(true) => {}
            Ok(false) if due.labels.contains_key(&key) => {}
            Ok(false) if due.labels.len() < PER_REQUEST_MAX => {
                due.labels.insert(key, metric.labels());
            }
            _ => due.left_out += 1,
        }
    }

    /// Remembers what was written.
    pub fn learn(&self, tenant: &TenantId, written: &Due, now: TimestampNs) {
        let mut inner = self.inner.write();
        for key in written.labels.keys() {
            // Of two requests at once each may have found the last room.
            if inner.state(tenant, *key, now).is_err() {
                continue;
            }
            let (names, n) = inner.tenants.entry(tenant.clone()).or_default();
            let of_name = names.entry(key.name).or_default();
            let before = of_name.len();
            of_name.retain(|(all, at)| *all != key.all && is_fresh(*at, now));
            of_name.push((key.all, now));
            let more = of_name.len() as isize - before as isize;
            *n = n.saturating_add_signed(more);
            inner.all = inner.all.saturating_add_signed(more);
        }
    }

    /// Descriptions remembered.
    pub fn size(&self) -> usize {
        self.inner.read().all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    fn at(secs: i64) -> LimitsContext {
        LimitsContext {
            now: TimestampNs::from_secs(secs),
            floor: None,
            bounds: crate::check::Bounds::DEFAULT,
        }
    }

    /// Each line: seconds, metric, type's number, unit, help. What is to be written is written.
    fn check(script: &str, expect: Expect) {
        let (table, tenant) = (Described::default(), TenantId::default());
        let mut out = String::new();
        for step in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let mut words = step.splitn(5, ' ');
            let mut next = || words.next().unwrap_or_default();
            let (limits, name, kind) = (at(next().parse().unwrap()), next(), next().parse().unwrap());
            let metric = Metric {
                name,
                kind: MetricType::of_number(kind),
                unit: next().trim_matches('-'),
                help: next(),
            };
            let mut due = Due::default();
            table.look(&tenant, &metric, &limits, &mut due);
            table.look(&tenant, &metric, &limits, &mut due);
            table.learn(&tenant, &due, limits.now);
            let rows = due.batch(&tenant, limits.now).series;
            let shown = rows.iter().map(|s| format!("{} {}", s.labels, s.samples[0].value));
            let shown: Vec<_> = shown.chain((due.left_out > 0).then(|| "left out".to_owned())).collect();
            out += &format!("{step} -> {}\n", shown.join(", "));
        }
        expect.assert_eq(&out);
    }

    #[test]
    fn what_does_not_change_is_written_once_in_six_hours() {
        check(
            "
            0 up 2 - Whether the target answers
            10 up 2 - Whether the target answers
            10 t 1 seconds
            20 t 1 ms
            21599 up 2 - Whether the target answers
            21600 up 2 - Whether the target answers
            21601 up 2 - Whether the target answers
            21601 nothing 0 -
            ",
            expect![[r#"
                0 up 2 - Whether the target answers -> hindcast_metric_info{help="Whether the target answers", metric="up", type="gauge"} 0
                10 up 2 - Whether the target answers -> 
                10 t 1 seconds -> hindcast_metric_info{metric="t", type="counter", unit="seconds"} 10
                20 t 1 ms -> hindcast_metric_info{metric="t", type="counter", unit="ms"} 20
                21599 up 2 - Whether the target answers -> 
                21600 up 2 - Whether the target answers -> hindcast_metric_info{help="Whether the target answers", metric="up", type="gauge"} 21600
                21601 up 2 - Whether the target answers -> 
                21601 nothing 0 - -> 
            "#]],
        );
    }

    #[test]
    fn a_metric_is_described_in_a_few_ways_and_no_more() {
        check(
            "
            0 m 1 - one
            1 m 1 - two
            2 m 1 - three
            3 m 1 - four
            4 m 1 - five
            5 m 1 - two
            21601 m 1 - five
            ",
            expect![[r#"
                0 m 1 - one -> hindcast_metric_info{help="one", metric="m", type="counter"} 0
                1 m 1 - two -> hindcast_metric_info{help="two", metric="m", type="counter"} 1
                2 m 1 - three -> hindcast_metric_info{help="three", metric="m", type="counter"} 2
                3 m 1 - four -> hindcast_metric_info{help="four", metric="m", type="counter"} 3
                4 m 1 - five -> left out
                5 m 1 - two -> 
                21601 m 1 - five -> hindcast_metric_info{help="five", metric="m", type="counter"} 21601
            "#]],
        );
    }

    /// Looks at `n` metrics of the tenant, and writes what is due; how many that was, and how many were left out.
    fn flood(table: &Described, tenant: &str, limits: &LimitsContext, from: usize, n: usize) -> (usize, u64) {
        let (tenant, mut due) = (TenantId::new(tenant).unwrap(), Due::default());
        for i in from..from + n {
            let name = format!("m{i}");
            let metric = Metric {
                name: &name,
                kind: MetricType::Gauge,
                help: "",
                unit: "",
            };
            table.look(&tenant, &metric, limits, &mut due);
        }
        table.learn(&tenant, &due, limits.now);
        (due.len(), due.left_out)
    }

    #[test]
    fn a_tenant_and_a_node_remember_so_many_and_room_comes_back() {
        let table = Described::default();
        assert_eq!(flood(&table, "a", &at(0), 0, PER_REQUEST_MAX + 7), (PER_REQUEST_MAX, 7));
        for n in (PER_REQUEST_MAX..METRICS_MAX).step_by(PER_REQUEST_MAX) {
            assert_eq!(flood(&table, "a", &at(0), n, PER_REQUEST_MAX), (PER_REQUEST_MAX, 0));
        }
        assert_eq!(flood(&table, "a", &at(1), METRICS_MAX, 3), (0, 3));
        for tenant in 1..REMEMBERED_MAX / METRICS_MAX {
            for n in (0..METRICS_MAX).step_by(PER_REQUEST_MAX) {
                flood(&table, &format!("t{tenant}"), &at(1), n, PER_REQUEST_MAX);
            }
        }
        assert_eq!(table.size(), REMEMBERED_MAX);
        assert_eq!(flood(&table, "z", &at(2), 0, 3), (0, 3));
        // What is old makes room for what is new.
        let later = at(3 + (REWRITE_SPAN.0 / 1_000_000_000) as i64);
        assert_eq!(flood(&table, "z", &later, 0, 3), (3, 0));
        assert_eq!(table.size(), 3);
    }

    #[test]
    fn requests_do_not_wait_for_each_other_where_a_tenant_has_all_its_descriptions() {
        let table = Described::default();
        for n in (0..METRICS_MAX).step_by(PER_REQUEST_MAX) {
            flood(&table, "a", &at(0), n, PER_REQUEST_MAX);
        }
        // The first one that finds no room looks for some.
        assert_eq!(flood(&table, "a", &at(0), METRICS_MAX, 1), (0, 1));
        let other = table.inner.read();
        let (done, is_done) = std::sync::mpsc::channel();
        let looked = std::thread::scope(|threads| {
            threads.spawn(|| {
                let (tenant, mut due) = (TenantId::new("a").unwrap(), Due::default());
                let metric = Metric {
                    name: "more",
                    kind: MetricType::Gauge,
                    help: "",
                    unit: "",
                };
                table.look(&tenant, &metric, &at(1), &mut due);
                done.send(due.left_out).unwrap();
            });
            let looked = is_done.recv_timeout(std::time::Duration::from_secs(5));
            drop(other);
            looked
        });
        assert_eq!(looked, Ok(1));
    }

    proptest! {
        #[test]
        fn texts_of_any_length_become_labels_that_are_taken(name in ".{1,40}", help in ".{0,700}", unit in ".{0,80}") {
            let metric = Metric { name: &name, kind: MetricType::Info, help: &help, unit: &unit };
            let labels = metric.labels();
            let pairs: Vec<_> = labels.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
            prop_assert_eq!(at(0).labels(&pairs, true), Ok(()));
            prop_assert!(labels.value(HELP).len() <= HELP_BYTES_MAX && labels.value(UNIT).len() <= UNIT_BYTES_MAX);
            if help.len() <= HELP_BYTES_MAX {
                prop_assert_eq!(labels.value(HELP), help.as_str());
            }
        }

        #[test]
        fn a_part_of_a_metric_is_of_its_family(name in "[a-z_]{1,20}", kind in 0u64..9) {
            let kind = MetricType::of_number(kind);
            let family = kind.family_of(&name);
            prop_assert!(!family.is_empty() && name.starts_with(family));
        }
    }
}

//! How many series a tenant has, and which labels make them many.
//!
//! A series is *active* while a sample of it lies in memory, or one that is not older than [`ACTIVE_SPAN`] was stored.
//!
//! Nothing here holds a shard for longer than it takes to look at [`IDS_AT_ONCE`] series or [`VALUES_AT_ONCE`] values: what comes or goes
//! meanwhile may be counted or not. A stream that is a series of native histograms counts as the series that it is, without its mark;
//! other streams are not looked at.

use crate::index::Posting;
use crate::view::ShardReader;
use hindcast_model::{Labels, METRIC_NAME, SpanNs, TenantId};
use roaring::RoaringBitmap;
use std::collections::{BTreeMap, HashMap};
use xxhash_rust::xxh3::xxh3_64;

pub const ACTIVE_SPAN: SpanNs = SpanNs::from_secs(2 * 3600);
const IDS_AT_ONCE: u32 = 1 << 16;
const VALUES_AT_ONCE: usize = 1 << 13;
/// Values of labels that one report looks at, over all shards and labels.
pub const REPORT_VALUES_MAX: usize = 4_000_000;
/// Entries of each list of a report.
pub const REPORT_ENTRIES_MAX: usize = 10_000;
/// Values that are told apart to say how many one label has; beyond, they are counted per shard.
const DISTINCT_VALUES_MAX: usize = 1_000_000;

/// The active series of a shard, and the first id that was not given when they were counted: ids from there on are new.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Active {
    pub ids: RoaringBitmap,
    pub next_id: u32,
}

impl ShardReader {
    /// The tenant's series that are active: of a sample from `since` on, or in memory.
    pub fn active_series(&self, tenant: &TenantId, since: i64) -> Active {
        let mut active = Active::default();
        loop {
            let state = self.state.read();
            let end = active.next_id.saturating_add(IDS_AT_ONCE);
            let natives = state.directory.native_ids_of(tenant);
            let all = state.directory.ids_of(tenant).into_iter().chain(natives.as_deref());
            for id in all.flat_map(|ids| ids.range(active.next_id..end)) {
                let stored = state.newest.get(id as usize).copied().unwrap_or(i64::MIN);
                let in_memory = || state.active.has(id) || state.sealed.iter().any(|h| h.has(id));
                if stored >= since || in_memory() {
                    active.ids.insert(id);
                }
            }
            active.next_id = end;
            // The last piece is counted in the moment in which it is the last.
            if end >= state.directory.next_id() {
                active.next_id = state.directory.next_id();
                return active;
            }
        }
    }

    /// Series of the tenant whose ids were given from `next_id` on.
    pub fn series_since(&self, tenant: &TenantId, next_id: u32) -> u64 {
        let state = self.state.read();
        let natives = state.directory.native_ids_of(tenant);
        let all = state.directory.ids_of(tenant).into_iter().chain(natives.as_deref());
        all.map(|ids| ids.range_cardinality(next_id..)).sum()
    }

    /// Labels of the tenant's series, and how many values each has.
    fn label_sizes(&self, tenant: &TenantId) -> Vec<(String, usize)> {
        self.state.read().directory.label_sizes(tenant)
    }

    /// Hands on the values of a label with their ids in `active`, piece by piece; those without one are left out.
    fn visit_values(&self, tenant: &TenantId, name: &str, active: &RoaringBitmap, mut each: impl FnMut(&str, u64)) {
        for streams in [false, true] {
            let mut from = Some(0);
            while let Some(at) = from {
                let state = self.state.read();
                if streams && state.directory.native_ids_of(tenant).is_none_or(|ids| ids.is_empty()) {
                    break;
                }
                let told = |text: &str, posting: &Posting| {
                    let series = posting.count_within(active);
                    if series > 0 {
                        each(text, series);
                    }
                };
                let directory = &state.directory;
                from = directory.visit_values((tenant, streams), name, at, VALUES_AT_ONCE, told);
            }
        }
    }
}

/// The label of a tenant's series with the most values, and how many: over all shards, as long as there are not too many.
pub fn widest_label(readers: &[ShardReader], tenant: &TenantId) -> Option<(String, u64)> {
    let mut sizes: HashMap<String, usize> = HashMap::new();
    for (name, values) in readers.iter().flat_map(|r| r.label_sizes(tenant)) {
        *sizes.entry(name).or_default() += values;
    }
    // Names of metrics are there anyway: another label that is as wide is the likelier cause.
    let order = |(name, values): &(String, usize)| (*values, *name != METRIC_NAME, std::cmp::Reverse(name.clone()));
    let (name, values) = sizes.into_iter().max_by_key(order)?;
    if values > DISTINCT_VALUES_MAX {
        return Some((name, values as u64));
    }
    let mut hashes = Vec::with_capacity(values);
    for reader in readers {
        let active = reader.active_series(tenant, i64::MIN).ids;
        reader.visit_values(tenant, &name, &active, |text, _| hashes.push(xxh3_64(text.as_bytes())));
    }
    hashes.sort_unstable();
    hashes.dedup();
    Some((name, hashes.len() as u64))
}

/// One label among the active series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelCount {
    pub name: String,
    /// Distinct values.
    pub values: u64,
    /// Of these values, each once.
    pub bytes: u64,
    /// Series that have the label.
    pub series: u64,
}

/// What a tenant's active series are. Lists have the largest first, of equal ones by name, and are cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cardinality {
    pub series: u64,
    pub label_pairs: u64,
    /// Series by name of the metric.
    pub metrics: Vec<(String, u64)>,
    pub labels: Vec<LabelCount>,
    /// Series by label and value.
    pub pairs: Vec<((String, String), u64)>,
}

impl Cardinality {
    /// Of label sets that are at hand.
    pub fn of_sets(sets: &[Labels], entries: usize) -> Self {
        let mut pairs: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for pair in sets.iter().flat_map(Labels::iter) {
            *pairs.entry(pair).or_default() += 1;
        }
        let mut labels: BTreeMap<&str, LabelCount> = BTreeMap::new();
        for ((name, value), series) in &pairs {
            let label = labels.entry(name).or_insert_with(|| LabelCount {
                name: (*name).to_owned(),
                values: 0,
                bytes: 0,
                series: 0,
            });
            label.values += 1;
            label.bytes += value.len() as u64;
            label.series += series;
        }
        let of_metrics = pairs.iter().filter(|((name, _), _)| *name == METRIC_NAME);
        let mut report = Self {
            series: sets.len() as u64,
            label_pairs: pairs.len() as u64,
            metrics: of_metrics.map(|((_, value), n)| ((*value).to_owned(), *n)).collect(),
            labels: labels.into_values().collect(),
            pairs: pairs
                .iter()
                .map(|((name, value), n)| (((*name).to_owned(), (*value).to_owned()), *n))
                .collect(),
        };
        report.order();
        report.metrics.truncate(entries);
        report.pairs.truncate(entries);
        report
    }

    fn order(&mut self) {
        self.metrics.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        self.pairs.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        self.labels
            .sort_by(|a, b| b.values.cmp(&a.values).then_with(|| a.name.cmp(&b.name)));
    }

    /// The label that makes the series many: the one with the most values, names of metrics aside.
    pub fn driving(&self) -> Option<&LabelCount> {
        self.labels.iter().find(|l| l.name != METRIC_NAME && l.values > 1)
    }
}

/// A report that would take too much.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the series of this tenant have {values} values of labels (label {widest:?} alone {of_widest}), more than the {values_max} that a report looks at"
)]
pub struct TooManyValues {
    values: usize,
    widest: String,
    of_widest: usize,
    values_max: usize,
}

/// A value of a label, by its hash: how many series have it.
#[derive(Clone, Copy)]
struct Counted {
    hash: u64,
    series: u64,
    bytes: u32,
}

/// Counts the active series of a tenant over the shards of a node. The lists of metrics and pairs have at most `entries` entries; all
/// labels are there, since who reads them orders them in his own way.
pub fn cardinality(
    readers: &[ShardReader],
    tenant: &TenantId,
    since: i64,
    entries: usize,
) -> Result<Cardinality, TooManyValues> {
    count(
        readers,
        tenant,
        since,
        entries.min(REPORT_ENTRIES_MAX),
        REPORT_VALUES_MAX,
    )
}

fn count(
    readers: &[ShardReader],
    tenant: &TenantId,
    since: i64,
    entries: usize,
    values_max: usize,
) -> Result<Cardinality, TooManyValues> {
    let mut sizes: HashMap<String, usize> = HashMap::new();
    for (name, values) in readers.iter().flat_map(|r| r.label_sizes(tenant)) {
        *sizes.entry(name).or_default() += values;
    }
    let values = sizes.values().sum();
    if values > values_max {
        let (widest, of_widest) = sizes.into_iter().max_by_key(|s| s.1).unwrap_or_default();
        return Err(TooManyValues {
            values,
            widest,
            of_widest,
            values_max,
        });
    }
    let actives: Vec<Active> = readers.iter().map(|r| r.active_series(tenant, since)).collect();
    let mut report = Cardinality {
        series: actives.iter().map(|a| a.ids.len()).sum(),
        ..Cardinality::default()
    };
    let mut names: Vec<String> = sizes.into_keys().collect();
    names.sort_unstable();
    // The pairs with most series so far: label, hash of the value, series.
    let mut pairs: Vec<(usize, u64, u64)> = vec![];
    let mut metrics: Vec<(usize, u64, u64)> = vec![];
    for (at, name) in names.iter().enumerate() {
        let counted = count_values(readers, &actives, tenant, name);
        if counted.is_empty() {
            continue;
        }
        report.label_pairs += counted.len() as u64;
        report.labels.push(LabelCount {
            name: name.clone(),
            values: counted.len() as u64,
            bytes: counted.iter().map(|c| u64::from(c.bytes)).sum(),
            series: counted.iter().map(|c| c.series).sum(),
        });
        let mut largest: Vec<_> = counted.iter().map(|c| (at, c.hash, c.series)).collect();
        keep_largest(&mut largest, entries);
        if name == METRIC_NAME {
            metrics.clone_from(&largest);
        }
        pairs.extend(largest);
        keep_largest(&mut pairs, entries);
    }
    let texts = texts_of(readers, &actives, tenant, &names, pairs.iter().chain(&metrics));
    let text = |at: usize, hash: u64| texts.get(&(at, hash)).cloned().unwrap_or_default();
    report.metrics = metrics.iter().map(|(at, hash, n)| (text(*at, *hash), *n)).collect();
    report.pairs = pairs
        .iter()
        .map(|(at, hash, n)| ((names[*at].clone(), text(*at, *hash)), *n))
        .collect();
    report.order();
    Ok(report)
}

/// Of equal ones those with the smaller hash: any would do, and these are the same each time.
fn keep_largest(counted: &mut Vec<(usize, u64, u64)>, entries: usize) {
    if counted.len() > entries {
        let order = |c: &(usize, u64, u64)| (std::cmp::Reverse(c.2), c.0, c.1);
        counted.select_nth_unstable_by_key(entries, order);
        counted.truncate(entries);
    }
}

/// Each value of a label once.
fn count_values(readers: &[ShardReader], actives: &[Active], tenant: &TenantId, name: &str) -> Vec<Counted> {
    let mut counted: Vec<Counted> = vec![];
    for (reader, active) in readers.iter().zip(actives) {
        reader.visit_values(tenant, name, &active.ids, |text, series| {
            counted.push(Counted {
                hash: xxh3_64(text.as_bytes()),
                series,
                bytes: text.len() as u32,
            });
        });
    }
    // The same value in several shards.
    counted.sort_unstable_by_key(|c| c.hash);
    counted.dedup_by(|again, first| {
        let is_same = again.hash == first.hash;
        if is_same {
            first.series += again.series;
        }
        is_same
    });
    counted
}

/// Texts of values by label and hash: only labels that are wanted are gone through again.
fn texts_of<'a>(
    readers: &[ShardReader],
    actives: &[Active],
    tenant: &TenantId,
    names: &[String],
    wanted: impl Iterator<Item = &'a (usize, u64, u64)>,
) -> HashMap<(usize, u64), String> {
    let mut by_label: HashMap<usize, HashMap<u64, String>> = HashMap::new();
    for (at, hash, _) in wanted {
        by_label.entry(*at).or_default().insert(*hash, String::new());
    }
    for (at, texts) in &mut by_label {
        for (reader, active) in readers.iter().zip(actives) {
            reader.visit_values(tenant, &names[*at], &active.ids, |text, _| {
                if let Some(known) = texts.get_mut(&xxh3_64(text.as_bytes()))
                    && known.is_empty()
                {
                    text.clone_into(known);
                }
            });
        }
    }
    let pairs = by_label
        .into_iter()
        .flat_map(|(at, texts)| texts.into_iter().map(move |(hash, text)| ((at, hash), text)));
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Shard, ShardConfig};
    use expect_test::expect;
    use hindcast_env::SimDisk;
    use hindcast_model::histogram::MARK;
    use hindcast_model::{LogLine, Owner, Sample, SeriesBlock, StreamBlock, TimestampNs};
    use proptest::prelude::*;
    use std::sync::Arc;

    const HOUR: i64 = 3_600_000_000_000;

    fn shard() -> Shard {
        let disk: Arc<dyn hindcast_env::Disk> = Arc::new(SimDisk::new());
        Shard::open(disk, "s", ShardConfig::default()).unwrap().0
    }

    /// Native histograms, beside logs of the same labels, which are no series.
    fn put_natives(shard: &mut Shard, index: u64, tenant: &str, sets: &[Labels], at: i64) {
        let stream = |labels: Labels| StreamBlock {
            labels,
            owner: Owner::None,
            lines: vec![LogLine {
                at: TimestampNs(at),
                line: "h1 s=0 c=1 p=0:1".into(),
                metadata: vec![],
            }],
        };
        let logs = sets.iter().map(|labels| labels.with("log", "yes"));
        let natives = sets.iter().map(|labels| labels.with(MARK.0, MARK.1));
        let streams: Vec<_> = natives.chain(logs).map(stream).collect();
        shard.write(index, &TenantId::new(tenant).unwrap(), &[], &streams);
        shard.advance(index);
    }

    fn put(shard: &mut Shard, index: u64, tenant: &str, sets: &[Labels], at: i64) {
        let block = |labels: &Labels| SeriesBlock {
            labels: labels.clone(),
            owner: Owner::None,
            samples: vec![Sample {
                at: TimestampNs(at),
                value: 1.0,
            }],
        };
        let series: Vec<_> = sets.iter().map(block).collect();
        shard.write(index, &TenantId::new(tenant).unwrap(), &series, &[]);
        shard.advance(index);
    }

    fn set(name: &str, pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .fold(Labels::from_pairs([(METRIC_NAME, name)]), |l, (n, v)| l.with(n, v))
    }

    #[test]
    fn a_report_is_over_all_shards_and_of_active_series_only() {
        let (mut a, mut b) = (shard(), shard());
        let request = |i: usize| {
            set(
                "http_requests_total",
                &[("job", "shop"), ("request_id", &format!("r{i}"))],
            )
        };
        put(&mut a, 1, "t", &(0..30).map(request).collect::<Vec<_>>(), 5 * HOUR);
        put(&mut b, 1, "t", &(20..50).map(request).collect::<Vec<_>>(), 5 * HOUR);
        put(
            &mut b,
            2,
            "t",
            &[set("up", &[("job", "shop")]), set("up", &[("job", "db")])],
            5 * HOUR,
        );
        put(&mut b, 3, "other", &[set("up", &[("job", "not mine")])], 5 * HOUR);
        // Over: stored, and older than what is asked for.
        put(&mut a, 2, "t", &[set("gone", &[])], HOUR);
        a.flush(&[]).unwrap();
        let readers = [a.reader(), b.reader()];
        let tenant = TenantId::new("t").unwrap();
        let report = cardinality(&readers, &tenant, 3 * HOUR, 3).unwrap();
        expect![[r#"
            Cardinality {
                series: 62,
                label_pairs: 54,
                metrics: [
                    (
                        "http_requests_total",
                        60,
                    ),
                    (
                        "up",
                        2,
                    ),
                ],
                labels: [
                    LabelCount {
                        name: "request_id",
                        values: 50,
                        bytes: 140,
                        series: 60,
                    },
                    LabelCount {
                        name: "__name__",
                        values: 2,
                        bytes: 21,
                        series: 62,
                    },
                    LabelCount {
                        name: "job",
                        values: 2,
                        bytes: 6,
                        series: 62,
                    },
                ],
                pairs: [
                    (
                        (
                            "job",
                            "shop",
                        ),
                        61,
                    ),
                    (
                        (
                            "__name__",
                            "http_requests_total",
                        ),
                        60,
                    ),
                    (
                        (
                            "__name__",
                            "up",
                        ),
                        2,
                    ),
                ],
            }"#]]
        .assert_eq(&format!("{report:#?}"));
        assert_eq!(widest_label(&readers, &tenant), Some(("request_id".to_owned(), 50)));
        assert_eq!(widest_label(&readers, &TenantId::new("nobody").unwrap()), None);
    }

    #[test]
    fn a_report_on_too_many_values_is_refused_under_the_name_of_the_widest_label() {
        let mut a = shard();
        let sets: Vec<_> = (0..5).map(|i| set("m", &[("id", &i.to_string())])).collect();
        put(&mut a, 1, "t", &sets, HOUR);
        let tenant = TenantId::new("t").unwrap();
        let within = |max| count(&[a.reader()], &tenant, 0, 10, max);
        assert_eq!(within(6).map(|r| r.label_pairs), Ok(6));
        expect!["the series of this tenant have 6 values of labels (label \"id\" alone 5), more than the 5 that a report looks at"]
            .assert_eq(&within(5).unwrap_err().to_string());
    }

    #[test]
    fn new_series_show_before_they_are_counted_again() {
        let mut a = shard();
        let tenant = TenantId::new("t").unwrap();
        put(&mut a, 1, "t", &[set("a", &[]), set("b", &[])], HOUR);
        let active = a.reader().active_series(&tenant, 0);
        assert_eq!((active.ids.len(), active.next_id), (2, 2));
        put(&mut a, 2, "t", &[set("a", &[]), set("c", &[])], HOUR);
        put(&mut a, 3, "other", &[set("a", &[])], HOUR);
        assert_eq!(a.reader().series_since(&tenant, active.next_id), 1);
    }

    /// The limit of active series was never reached by who sent native histograms alone, and no report showed them.
    #[test]
    fn series_of_native_histograms_are_active_series() {
        let mut a = shard();
        let tenant = TenantId::new("t").unwrap();
        let h = |i: usize| set("h", &[("request_id", &i.to_string())]);
        put_natives(&mut a, 1, "t", &(0..3).map(h).collect::<Vec<_>>(), 5 * HOUR);
        let before = a.reader().active_series(&tenant, 0);
        assert_eq!((before.ids.len(), a.reader().series_since(&tenant, 0)), (3, 3));
        put(&mut a, 2, "t", &[set("m", &[])], 5 * HOUR);
        put_natives(&mut a, 3, "t", &(2..5).map(h).collect::<Vec<_>>(), 5 * HOUR);
        assert_eq!(a.reader().series_since(&tenant, before.next_id), 3);
        assert_eq!(widest_label(&[a.reader()], &tenant), Some(("request_id".to_owned(), 5)));
        let report = cardinality(&[a.reader()], &tenant, 0, 10).unwrap();
        assert_eq!(report.series, 6);
        assert_eq!(report.metrics, [("h".to_owned(), 5), ("m".to_owned(), 1)]);
        let labels: Vec<&str> = report.labels.iter().map(|l| l.name.as_str()).collect();
        assert_eq!(labels, ["request_id", METRIC_NAME]);
        // Stored and over, they count no more.
        a.flush(&[]).unwrap();
        assert_eq!(a.reader().active_series(&tenant, 6 * HOUR).ids.len(), 0);
        assert_eq!(a.reader().active_series(&tenant, 5 * HOUR).ids.len(), 6);
    }

    proptest! {
        /// What is counted value by value is what counting series by series gives.
        #[test]
        fn a_report_counts_what_is_there(of in prop::collection::btree_set((0u8..4, 0u8..6, 0u8..3), 0..40)) {
            let (mut a, mut b) = (shard(), shard());
            let mut distinct: Vec<Labels> = vec![];
            for (n, x, y) in of {
                let labels = set(&format!("m{n}"), &[("x", &x.to_string()), ("y", if y == 0 { "" } else { "1" })]);
                if !distinct.contains(&labels) {
                    distinct.push(labels);
                }
            }
            for (i, labels) in distinct.iter().enumerate() {
                let shard = if i % 2 == 0 { &mut a } else { &mut b };
                let put = if i % 3 == 0 { put_natives } else { put };
                put(shard, i as u64 + 1, "t", std::slice::from_ref(labels), HOUR);
            }
            let report = cardinality(&[a.reader(), b.reader()], &TenantId::new("t").unwrap(), 0, 1000).unwrap();
            prop_assert_eq!(report, Cardinality::of_sets(&distinct, 1000));
        }
    }
}

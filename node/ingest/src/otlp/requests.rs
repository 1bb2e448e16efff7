//! Request metrics of services, counted from their spans: how many, with which outcome, how long they took.
//!
//! Names and labels are those of OpenTelemetry's span metrics: `traces_span_metrics_calls_total` and
//! `traces_span_metrics_duration_seconds`, a classic histogram with the bounds that the semantic conventions advise for
//! requests. Spans inside of a service (internal ones) are no requests.
//!
//! Totals belong to the node that counted, which is in their labels (`collector_instance_id`): so each series has one writer, whichever
//! node a sender turns to. The caller adds what was stored and was not stored before, so a batch that comes again counts once.
//! Totals that could not be written are due again.
//!
//! Invariants
//! - Of one series, times rise, none is ahead of `now` by more than the writes before it, and none lies before the node
//!   began to count it: a node that starts anew never writes between samples of its former life.
//! - What is counted shows as an increase: the first sample, and one after a pause, comes with the total before it.
//! - A set is written once in a round, which is a run of calls of [`due`](RequestTotals::due): what is counted meanwhile waits for the
//!   next one, however many spans come, and no set waits longer because others are busy.

use super::names::number;
use hindcast_model::limits::LABEL_VALUE_BYTES_MAX;
use hindcast_model::{Batch, Labels, METRIC_NAME, Owner, Sample, SeriesBlock, SpanNs, TenantId, TimestampNs};
use std::collections::{BTreeMap, BTreeSet};

/// Sets of labels counted on one node; each is a counter and a histogram.
pub const REQUEST_SETS_MAX: usize = 20_000;
/// Names of spans told apart per service instance; those that come later count as [`OTHER`].
pub const SPAN_NAMES_MAX: usize = 200;
/// A longer name counts as [`OTHER`], too.
pub const SPAN_NAME_BYTES_MAX: usize = 256;
/// Sets of labels in one batch.
pub const DUE_SETS_MAX: usize = 500;
/// The name of those that are not told apart.
pub const OTHER: &str = "other";

const _: () = assert!(SPAN_NAME_BYTES_MAX <= LABEL_VALUE_BYTES_MAX);

/// Upper bounds of the buckets, in seconds.
const BOUNDS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
/// After a longer pause the total before is written again.
const PAUSE_MAX: SpanNs = SpanNs::from_secs(60);
/// So long before a total lies the one that it follows.
const LEAD: SpanNs = SpanNs::from_secs(10);
const TICK: SpanNs = SpanNs::from_ms(1);
/// An instance that was quiet for so long may be forgotten when room is needed.
const QUIET_MAX: SpanNs = SpanNs::from_secs(3600);
const SWEEP_PAUSE: SpanNs = SpanNs::from_secs(60);

/// One span as it is counted.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    pub name: String,
    /// As OpenTelemetry writes it: `SPAN_KIND_SERVER`.
    pub kind: &'static str,
    /// `STATUS_CODE_ERROR`
    pub status: &'static str,
    pub end: TimestampNs,
    pub took: SpanNs,
}

/// The spans of one service instance.
#[derive(Clone, Debug, PartialEq)]
pub struct Calls {
    /// What all its series have in common.
    pub labels: Labels,
    pub owner: Owner,
    pub calls: Vec<Call>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counts {
    calls: u64,
    seconds: f64,
    /// By bucket, not cumulated; the last one is beyond all bounds.
    buckets: [u64; BOUNDS.len() + 1],
}

struct Set {
    total: Counts,
    /// As of the last sample.
    shown: Counts,
    /// Samples that are under way or could not be written, at most three.
    pending: Vec<(TimestampNs, Counts)>,
    /// The newest end among what was counted.
    newest: TimestampNs,
    last: Option<TimestampNs>,
    /// All samples lie after it.
    floor: TimestampNs,
    /// The round since which there is something to write.
    due: Option<u64>,
    /// Whether the last batch has its samples.
    is_under_way: bool,
}

/// Name, kind and status.
type Key = (String, &'static str, &'static str);

struct Instance {
    owner: Owner,
    sets: BTreeMap<Key, Set>,
    names: BTreeSet<String>,
    touched: TimestampNs,
}

/// Running totals of one node.
pub struct RequestTotals {
    since: TimestampNs,
    /// The node's name among those that count; "" is none.
    collector: String,
    instances: BTreeMap<(TenantId, Labels), Instance>,
    sets: usize,
    sets_max: usize,
    swept: Option<TimestampNs>,
    uncounted: u64,
    /// Sets that are due since an earlier one are written.
    round: u64,
    /// Whether the round gave a batch and nothing failed since.
    is_writing: bool,
}

impl RequestTotals {
    /// Begins to count at `since`.
    pub fn new(since: TimestampNs, collector: &str, sets_max: usize) -> Self {
        Self {
            since,
            collector: collector.to_owned(),
            instances: BTreeMap::new(),
            sets: 0,
            sets_max,
            swept: None,
            uncounted: 0,
            round: 0,
            is_writing: false,
        }
    }

    /// Sets of labels held.
    pub fn size(&self) -> usize {
        self.sets
    }

    /// Spans that found no room.
    pub fn uncounted(&self) -> u64 {
        self.uncounted
    }

    /// Counts spans that were stored.
    pub fn add(&mut self, tenant: &TenantId, calls: Vec<Calls>, now: TimestampNs) {
        for of in calls {
            for call in of.calls {
                self.count(tenant, &of.labels, of.owner, call, now);
            }
        }
    }

    fn count(&mut self, tenant: &TenantId, labels: &Labels, owner: Owner, call: Call, now: TimestampNs) {
        if self.sets >= self.sets_max {
            self.sweep(now);
        }
        let has_room = self.sets < self.sets_max;
        let key = (tenant.clone(), labels.clone());
        if !has_room && !self.instances.contains_key(&key) {
            self.uncounted += 1;
            return;
        }
        let instance = self.instances.entry(key).or_insert_with(|| Instance {
            owner,
            sets: BTreeMap::new(),
            names: BTreeSet::new(),
            touched: now,
        });
        instance.touched = now;
        let is_told_apart = instance.names.contains(&call.name)
            || (call.name.len() <= SPAN_NAME_BYTES_MAX && instance.names.len() < SPAN_NAMES_MAX);
        let name = if is_told_apart { call.name } else { OTHER.to_owned() };
        let key = (name, call.kind, call.status);
        if !instance.sets.contains_key(&key) {
            if !has_room {
                self.uncounted += 1;
                return;
            }
            self.sets += 1;
            instance.names.insert(key.0.clone());
        }
        let set = instance.sets.entry(key).or_insert_with(|| Set {
            total: Counts::default(),
            shown: Counts::default(),
            newest: call.end,
            last: None,
            floor: self.since.max(now.saturating_sub(LEAD)).floor_ms(),
            pending: vec![],
            due: None,
            is_under_way: false,
        });
        let seconds = call.took.0 as f64 / 1e9;
        set.total.calls += 1;
        set.total.seconds += seconds;
        set.total.buckets[BOUNDS.partition_point(|b| *b < seconds)] += 1;
        set.newest = set.newest.max(call.end);
        set.due.get_or_insert(self.round);
    }

    fn sweep(&mut self, now: TimestampNs) {
        if self.swept.is_some_and(|at| now.since(at) < SWEEP_PAUSE) {
            return;
        }
        self.swept = Some(now);
        self.instances.retain(|_, i| now.since(i.touched) < QUIET_MAX);
        self.sets = self.instances.values().map(|i| i.sets.len()).sum();
    }

    /// Totals that changed, of one tenant and at most [`DUE_SETS_MAX`] sets; `None` when all of the round are written, which ends it. What
    /// became of them is told by [`settled`](Self::settled) before this is asked again. After a failure the others come first: a batch
    /// that is never taken must not keep them out.
    pub fn due(&mut self, now: TimestampNs) -> Option<Batch> {
        let mut batch = self.of_round(now);
        if batch.is_none() && !self.is_writing {
            self.round += 1;
            batch = self.of_round(now);
        }
        self.is_writing = batch.is_some();
        batch
    }

    fn of_round(&mut self, now: TimestampNs) -> Option<Batch> {
        let round = self.round;
        let mut batch: Option<Batch> = None;
        let mut sets = 0;
        for ((tenant, labels), instance) in &mut self.instances {
            if batch.as_ref().is_some_and(|b| b.tenant != *tenant) {
                break;
            }
            for ((name, kind, status), set) in instance
                .sets
                .iter_mut()
                .filter(|(_, s)| s.due.is_some_and(|since| since < round))
            {
                if sets == DUE_SETS_MAX {
                    return batch;
                }
                sets += 1;
                let batch = batch.get_or_insert_with(|| Batch::new(tenant.clone()));
                let labels = labels
                    .with("span_name", name)
                    .with("span_kind", kind)
                    .with("status_code", status)
                    .with("collector_instance_id", &self.collector);
                batch.series.extend(set.samples(&labels, instance.owner, now));
            }
        }
        batch
    }

    /// Whether the last batch was written. One that may have been is written again, with the same samples and what came since.
    pub fn settled(&mut self, is_written: bool) {
        let sets = self.instances.values_mut().flat_map(|i| i.sets.values_mut());
        for set in sets.filter(|s| s.is_under_way) {
            set.is_under_way = false;
            if is_written {
                set.pending = vec![];
            } else {
                set.due = Some(self.round);
            }
        }
        self.is_writing &= is_written;
    }
}

impl Set {
    /// The totals as samples, from here on under way.
    fn samples(&mut self, labels: &Labels, owner: Owner, now: TimestampNs) -> Vec<SeriesBlock> {
        let after = self.last.unwrap_or(self.floor);
        // The first one leaves room for a zero before it.
        let ticks = if self.last.is_none() { 2 } else { 1 };
        let at = self.newest.min(now).floor_ms().max(after + SpanNs(TICK.0 * ticks));
        let before = at.saturating_sub(LEAD).max(after + TICK);
        let is_paused = self.last.is_none_or(|last| at.since(last) > PAUSE_MAX);
        if is_paused && before < at && self.pending.is_empty() {
            self.pending.push((before, self.shown));
        }
        // Of several that could not be written, the totals between say nothing that the last does not say.
        self.pending.truncate(2);
        self.pending.push((at, self.total));
        (self.last, self.shown) = (Some(at), self.total);
        (self.due, self.is_under_way) = (None, true);
        let values = self.pending.clone();
        let series = |name: &str, bound: Option<f64>, value: &dyn Fn(&Counts) -> f64| {
            let labels = labels.with(METRIC_NAME, name);
            SeriesBlock {
                labels: bound.map_or_else(|| labels.clone(), |b| labels.with("le", &number(b))),
                owner,
                samples: values
                    .iter()
                    .map(|(at, c)| Sample {
                        at: *at,
                        value: value(c),
                    })
                    .collect(),
            }
        };
        let calls = |c: &Counts| c.calls as f64;
        let mut out = vec![series("traces_span_metrics_calls_total", None, &calls)];
        for (i, bound) in BOUNDS.into_iter().chain([f64::INFINITY]).enumerate() {
            let upto = |c: &Counts| c.buckets[..=i].iter().sum::<u64>() as f64;
            out.push(series(
                "traces_span_metrics_duration_seconds_bucket",
                Some(bound),
                &upto,
            ));
        }
        out.push(series("traces_span_metrics_duration_seconds_sum", None, &|c| c.seconds));
        out.push(series("traces_span_metrics_duration_seconds_count", None, &calls));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    fn of(instance: &str, calls: Vec<Call>) -> Vec<Calls> {
        vec![Calls {
            labels: Labels::from_pairs([("instance", instance), ("job", "shop")]),
            owner: Owner::None,
            calls,
        }]
    }

    fn call(name: &str, end: TimestampNs, took_ms: u64) -> Call {
        Call {
            name: name.to_owned(),
            kind: "SPAN_KIND_SERVER",
            status: "STATUS_CODE_UNSET",
            end,
            took: SpanNs::from_ms(took_ms),
        }
    }

    /// Each line: seconds, then `call NAME END MS` or `write` or `fail`; these two with a `call …` behind that comes while each batch is under
    /// way. Shows what is written of calls, and of the fastest.
    fn check(sets_max: usize, script: &str, expect: Expect) {
        let mut totals = RequestTotals::new(TimestampNs::from_secs(100), "1", sets_max);
        let mut out = String::new();
        for step in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let parts: Vec<&str> = step.split(' ').collect();
            let now = TimestampNs::from_secs(parts[0].parse().unwrap());
            let count = |totals: &mut RequestTotals, parts: &[&str]| {
                let end = TimestampNs::from_secs(parts[1].parse().unwrap());
                let took = parts[2].parse().unwrap();
                totals.add(&TenantId::default(), of("i", vec![call(parts[0], end, took)]), now);
            };
            if parts[1] == "call" {
                count(&mut totals, &parts[2..]);
                continue;
            }
            out += &format!("{step}\n");
            let mut batches = 0;
            while let Some(batch) = totals.due(now) {
                batches += 1;
                assert!(batches <= sets_max, "one write ends");
                if let Some(["call", of_call @ ..]) = parts.get(2..) {
                    count(&mut totals, of_call);
                }
                for s in &batch.series {
                    let is_shown = s.labels.value("__name__").ends_with("_total") || s.labels.value("le") == "0.005";
                    if is_shown {
                        let name = s.labels.value("__name__").trim_start_matches("traces_span_metrics_");
                        let samples: Vec<_> = s.samples.iter().map(|s| format!("{}@{}", s.value, s.at)).collect();
                        out += &format!("  {name} {} {}\n", s.labels.value("span_name"), samples.join(" "));
                    }
                }
                totals.settled(parts[1] == "write");
                if parts[1] != "write" {
                    break;
                }
            }
        }
        out += &format!("uncounted {}\n", totals.uncounted());
        expect.assert_eq(&out);
    }

    #[test]
    fn what_is_counted_shows_as_an_increase() {
        check(
            2,
            "
            200 call a 199 1
            200 call a 198 7
            200 write
            205 write
            210 call a 208 1
            210 write
            400 call a 390 1
            400 fail
            401 call a 391 1
            410 write
            420 call b 420 1
            420 call c 420 1
            420 write
            ",
            expect![[r#"
                200 write
                  calls_total a 0@190.001 2@199.000
                  duration_seconds_bucket a 0@190.001 1@199.000
                205 write
                210 write
                  calls_total a 3@208.000
                  duration_seconds_bucket a 2@208.000
                400 fail
                  calls_total a 3@380.000 4@390.000
                  duration_seconds_bucket a 2@380.000 3@390.000
                410 write
                  calls_total a 3@380.000 4@390.000 5@391.000
                  duration_seconds_bucket a 2@380.000 3@390.000 4@391.000
                420 write
                  calls_total b 0@410.001 1@420.000
                  duration_seconds_bucket b 0@410.001 1@420.000
                uncounted 1
            "#]],
        );
    }

    #[test]
    fn spans_that_come_while_totals_are_written_wait_for_the_next_time() {
        check(
            3,
            "
            200 call a 199 1
            200 write call a 200 1
            205 write call b 205 1
            210 write
            ",
            expect![[r#"
                200 write call a 200 1
                  calls_total a 0@190.001 1@199.000
                  duration_seconds_bucket a 0@190.001 1@199.000
                205 write call b 205 1
                  calls_total a 2@200.000
                  duration_seconds_bucket a 2@200.000
                210 write
                  calls_total b 0@195.001 1@205.000
                  duration_seconds_bucket b 0@195.001 1@205.000
                uncounted 0
            "#]],
        );
    }

    #[test]
    fn what_is_written_is_not_sent_again_because_a_span_came_meanwhile_and_what_failed_is() {
        check(
            2,
            "
            200 call a 199 1
            200 fail call a 200 1
            210 write call a 210 1
            220 write
            230 call a 230 1
            230 write
            ",
            expect![[r#"
                200 fail call a 200 1
                  calls_total a 0@190.001 1@199.000
                  duration_seconds_bucket a 0@190.001 1@199.000
                210 write call a 210 1
                  calls_total a 0@190.001 1@199.000 2@200.000
                  duration_seconds_bucket a 0@190.001 1@199.000 2@200.000
                220 write
                  calls_total a 3@210.000
                  duration_seconds_bucket a 3@210.000
                230 write
                  calls_total a 4@230.000
                  duration_seconds_bucket a 4@230.000
                uncounted 0
            "#]],
        );
    }

    /// Writes until nothing is due; how many batches, and sets, by instance. While a batch is under way, spans of `busy` come again.
    fn write(
        totals: &mut RequestTotals,
        busy: &[Calls],
        now: TimestampNs,
        fails: &str,
    ) -> (usize, BTreeMap<String, usize>) {
        let (mut batches, mut written) = (0, BTreeMap::new());
        while let Some(batch) = totals.due(now) {
            batches += 1;
            assert!(batches < 20, "one write ends");
            totals.add(&TenantId::default(), busy.to_vec(), now);
            let is_total = |s: &&SeriesBlock| s.labels.value("__name__").ends_with("_total");
            let instances: Vec<_> = batch
                .series
                .iter()
                .filter(is_total)
                .map(|s| s.labels.value("instance"))
                .collect();
            if instances.contains(&fails) {
                totals.settled(false);
                break;
            }
            for instance in instances {
                *written.entry(instance.to_owned()).or_default() += 1;
            }
            totals.settled(true);
        }
        (batches, written)
    }

    #[test]
    fn quiet_services_are_written_though_busy_ones_fill_batch_after_batch_or_fail() {
        let (tenant, now) = (TenantId::default(), TimestampNs::from_secs(1_000));
        let mut totals = RequestTotals::new(TimestampNs(0), "", REQUEST_SETS_MAX);
        let mut busy = vec![];
        for i in 0..DUE_SETS_MAX.div_ceil(100) + 1 {
            let calls = (0..100).map(|n| call(&format!("n{n}"), now, 1)).collect();
            busy.append(&mut of(&format!("busy{i}"), calls));
        }
        totals.add(&tenant, busy.clone(), now);
        totals.add(&tenant, of("quiet", vec![call("a", now, 1)]), now);
        let (batches, written) = write(&mut totals, &busy, now, "none");
        assert_eq!(batches, 2);
        assert!(
            written["quiet"] == 1 && written["busy0"] == 100 && written["busy5"] == 100,
            "{written:?}"
        );
        // The first batch is never taken.
        totals.add(&tenant, of("quiet", vec![call("a", now, 1)]), now);
        assert_eq!(write(&mut totals, &busy, now, "busy0"), (1, BTreeMap::new()));
        assert_eq!(write(&mut totals, &busy, now, "busy0").1["quiet"], 1);
        // It is tried again, with what came since.
        assert_eq!(write(&mut totals, &busy, now, "busy0"), (1, BTreeMap::new()));
        write(&mut totals, &[], now, "none");
        assert_eq!(write(&mut totals, &[], now, "none").1["busy0"], 100);
        assert_eq!(write(&mut totals, &[], now, "none"), (0, BTreeMap::new()));
    }

    #[test]
    fn a_node_that_starts_never_writes_before_its_start_and_none_writes_ahead() {
        check(
            2,
            "
            100 call old 50 1
            101 write
            102 call old 700 1
            103 write
            103 call old 103 1
            103 write
            ",
            expect![[r#"
                101 write
                  calls_total old 0@100.001 1@100.002
                  duration_seconds_bucket old 0@100.001 1@100.002
                103 write
                  calls_total old 2@103.000
                  duration_seconds_bucket old 2@103.000
                103 write
                  calls_total old 3@103.001
                  duration_seconds_bucket old 3@103.001
                uncounted 0
            "#]],
        );
    }

    #[test]
    fn names_beyond_the_bound_count_as_others_and_quiet_instances_make_room() {
        let (tenant, now) = (TenantId::default(), TimestampNs::from_secs(1_000));
        let mut totals = RequestTotals::new(TimestampNs(0), "", SPAN_NAMES_MAX + 2);
        let calls = (0..SPAN_NAMES_MAX + 5)
            .map(|n| call(&format!("n{n}"), now, 1))
            .collect();
        totals.add(&tenant, of("i", calls), now);
        totals.add(
            &tenant,
            of("i", vec![call(&"x".repeat(SPAN_NAME_BYTES_MAX + 1), now, 1)]),
            now,
        );
        assert_eq!((totals.size(), totals.uncounted()), (SPAN_NAMES_MAX + 1, 0));
        let mut others = 0.0;
        while let Some(batch) = totals.due(now) {
            let is_other = |s: &&SeriesBlock| {
                s.labels.value("span_name") == OTHER && s.labels.value("__name__").ends_with("_total")
            };
            others += batch
                .series
                .iter()
                .filter(is_other)
                .map(|s| s.samples[1].value)
                .sum::<f64>();
            totals.settled(true);
        }
        assert_eq!(others, 6.0);
        for instance in ["j", "k"] {
            totals.add(&tenant, of(instance, vec![call("a", now, 1)]), now);
        }
        assert_eq!((totals.size(), totals.uncounted()), (SPAN_NAMES_MAX + 2, 1));
        let later = now + QUIET_MAX;
        totals.add(&tenant, of("k", vec![call("a", later, 1)]), later);
        assert_eq!((totals.size(), totals.uncounted()), (1, 1));
    }

    /// Names, ends and durations.
    fn calls() -> impl Strategy<Value = Vec<(u8, i64, u64)>> {
        prop::collection::vec((0u8..3, 0i64..2_000, 0u64..20_000), 0..5)
    }

    proptest! {
        /// Whatever the order and whatever fails, times rise, and increases add up to what was counted.
        #[test]
        fn increases_add_up(
            steps in prop::collection::vec((0u64..100, calls(), calls(), any::<bool>()), 1..20),
        ) {
            let tenant = TenantId::default();
            let mut totals = RequestTotals::new(TimestampNs::from_secs(1_000), "1", 100);
            let mut now = TimestampNs::from_secs(1_000);
            let mut series = BTreeMap::new();
            let mut counted = 0;
            let add = |totals: &mut RequestTotals, calls: &[(u8, i64, u64)], now| {
                let spans = calls.iter().map(|(name, end, took)| call(&name.to_string(), TimestampNs::from_secs(*end), *took));
                totals.add(&tenant, of("i", spans.collect()), now);
                calls.len()
            };
            // What fails may be stored all the same. Calls come while a batch is under way.
            type Held = BTreeMap<Labels, BTreeMap<TimestampNs, f64>>;
            let writes = |totals: &mut RequestTotals, now, is_written: bool, meanwhile: &[(u8, i64, u64)], series: &mut Held| {
                let (mut counted, mut batches) = (0, 0);
                while let Some(batch) = totals.due(now) {
                    batches += 1;
                    assert!(batches <= 3, "one write ends");
                    counted += add(totals, meanwhile, now);
                    for s in batch.series {
                        let held = series.entry(s.labels).or_default();
                        assert!(s.samples.len() <= 3 && s.samples.is_sorted_by(|a, b| a.at < b.at));
                        for sample in s.samples {
                            let is_new = held.last_key_value().is_none_or(|(at, _)| sample.at > *at);
                            let before = held.insert(sample.at, sample.value);
                            assert!(is_new || before == Some(sample.value), "a sample is never changed, and none comes between");
                        }
                    }
                    totals.settled(is_written);
                    if !is_written {
                        break;
                    }
                }
                counted
            };
            for (pause, calls, meanwhile, is_written) in steps {
                now = now + SpanNs::from_secs(pause);
                counted += add(&mut totals, &calls, now);
                counted += writes(&mut totals, now, is_written, &meanwhile, &mut series);
            }
            writes(&mut totals, now, true, &[], &mut series);
            prop_assert!(totals.instances.values().flat_map(|i| i.sets.values()).all(|s| s.pending.is_empty() && s.due.is_none()));
            let mut increase = 0.0;
            for (labels, samples) in series {
                prop_assert!(*samples.first_key_value().unwrap().0 > TimestampNs::from_secs(1_000));
                prop_assert!(samples.values().is_sorted(), "{} {:?}", labels, samples);
                if labels.value("__name__").ends_with("_total") {
                    increase += samples.last_key_value().unwrap().1 - samples.first_key_value().unwrap().1;
                }
            }
            prop_assert_eq!(increase, counted as f64);
        }
    }
}

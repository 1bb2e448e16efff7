//! Functions of ranges where samples were rolled up: what windows answer is what the samples would have, over ranges
//! that end where windows do; and nobody can tell whether a file was rolled up already.

use crate::real::Real;
use expect_test::{Expect, expect};
use futures::executor::block_on;
use hindcast_model::{
    Kind, Labels, Owner, ResourceId, STALE_NAN_BITS, Sample, SeriesBlock, SpanNs, TenantId, TimestampNs,
};
use hindcast_query::eval::window::{self, Window};
use hindcast_query::{Engine, Limits, Options, RangeQuery, Value};
use hindcast_storage::{Floor, Floors, Pin};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

const MINUTE: i64 = 60_000;
const FIVE: i64 = 5 * MINUTE;
const HOUR: i64 = 60 * MINUTE;
/// Samples lie in so many hours.
const HOURS: i64 = 8;

const STALE: f64 = f64::from_bits(STALE_NAN_BITS);

/// To the bit, whatever the values are.
const EXACT: [&str; 9] = [
    "count_over_time",
    "present_over_time",
    "min_over_time",
    "max_over_time",
    "first_over_time",
    "last_over_time",
    "ts_of_first_over_time",
    "ts_of_last_over_time",
    "delta",
];
/// To the bit where sums are exact.
const SUMS: [&str; 4] = ["sum_over_time", "avg_over_time", "rate", "increase"];
/// Where windows tell, to the bit.
const EVENTS: [&str; 2] = ["resets", "changes"];
/// They need samples, and see the last one of each window.
const OTHERS: [&str; 2] = ["stddev_over_time", "irate"];

/// Of one series: milliseconds, and values.
type Rows = BTreeMap<i64, f64>;

#[derive(Clone, Copy, Debug)]
enum Work {
    Nothing,
    Flush,
    FlushAndCompact,
}

#[derive(Clone, Debug)]
enum Entry {
    /// Hours: samples up to there are out. Of rows, of windows of five minutes and of an hour.
    Retain([i64; 3]),
    /// Milliseconds.
    Pin(i64, i64),
}

fn labels(i: usize) -> Labels {
    Labels::from_pairs([("__name__", "m_total"), ("i", &i.to_string())])
}

fn give(shards: &mut Real, entry: &Entry) {
    let shard = &mut shards.0[0];
    let index = shard.applied() + 1;
    match entry {
        Entry::Retain(floors) => {
            let [raw, five_minutes, hour] = floors.map(|hours| TimestampNs(hours * HOUR * 1_000_000 + 1));
            let mut rule = Floor::at(None, None, raw);
            rule.floors = Floors {
                raw,
                five_minutes,
                hour,
                lines: raw,
            };
            shard.retain(vec![rule]);
        }
        Entry::Pin(from, to) => shard.pin(Pin {
            id: format!("{from}"),
            tenant: TenantId::default(),
            from: TimestampNs::from_ms(*from),
            to: TimestampNs::from_ms(*to),
            owners: None,
            cuts: vec![],
        }),
    }
    shard.advance(index);
}

fn work(shards: &mut Real, work: Work) {
    if matches!(work, Work::Flush | Work::FlushAndCompact) {
        shards.0[0].flush(b"").unwrap();
    }
    if matches!(work, Work::FlushAndCompact) {
        let mut steps = 0..100;
        while let Some(done) = shards.0[0].compact_fully().unwrap() {
            assert!(steps.next().is_some(), "compaction does not end: {done:?}");
        }
    }
}

/// A shard that was given the rows, and then the entries, at each of which there was work.
fn shard(rows: &[Rows], entries: &[Entry], works: &[Work]) -> Real {
    let mut shards = Real::new(1);
    let mut works = works.iter().copied().cycle();
    for hours in [0..HOURS / 2, HOURS / 2..HOURS + 1] {
        let block = |(i, rows): (usize, &Rows)| SeriesBlock {
            labels: labels(i),
            owner: Owner::None,
            samples: rows
                .range(hours.start * HOUR..hours.end * HOUR)
                .map(|(at, value)| Sample {
                    at: TimestampNs::from_ms(*at),
                    value: *value,
                })
                .collect(),
        };
        let blocks: Vec<SeriesBlock> = rows.iter().enumerate().map(block).collect();
        shards.write(0, &blocks, &[]);
        work(&mut shards, works.next().unwrap());
    }
    for entry in entries {
        give(&mut shards, entry);
        work(&mut shards, works.next().unwrap());
    }
    shards
}

fn engine(shards: Real) -> Engine {
    Engine::new(Arc::new(shards), Limits::default())
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    start: i64,
    step: i64,
    count: i64,
    range: i64,
}

impl Asked {
    fn steps(self) -> impl Iterator<Item = i64> {
        (0..self.count).map(move |i| self.start + i * self.step)
    }
}

type Values = BTreeMap<i64, f64>;

/// Values at steps, by series; and what the answer says beside.
fn ask(engine: &Engine, function: &str, series: usize, asked: Asked) -> (Values, Vec<String>) {
    let q = RangeQuery {
        tenant: TenantId::default(),
        expr: format!("{function}(m_total{{i=\"{series}\"}}[{}ms])", asked.range),
        start: TimestampNs::from_ms(asked.start),
        end: TimestampNs::from_ms(asked.start + (asked.count - 1) * asked.step),
        step: SpanNs::from_ms(asked.step as u64),
        options: Options::default(),
    };
    let answer = block_on(engine.range(&q)).unwrap();
    let Value::Matrix(found) = answer.value else { panic!() };
    assert!(found.len() < 2);
    let points = found.into_iter().flat_map(|s| s.points);
    (points.map(|(t, v)| (t.as_ms(), v)).collect(), answer.warnings)
}

fn bits(values: &Values) -> Vec<(i64, u64)> {
    values.iter().map(|(t, v)| (*t, v.to_bits())).collect()
}

fn cell(at: i64, span: i64) -> i64 {
    (at + span - 1).div_euclid(span) * span
}

/// What of a series is there, and how: told by the floors alone, without pins.
struct Tiers([i64; 3]);

impl Tiers {
    /// The span of the windows that a time lies in; 1: rows. `None`: nothing is left.
    fn span(&self, at: i64) -> Option<i64> {
        let [raw, five, hour] = self.0.map(|h| h * HOUR);
        match at {
            _ if at > raw => Some(1),
            _ if hour == raw => None,
            _ if at > five => Some(FIVE),
            _ if at > hour => Some(HOUR),
            _ => None,
        }
    }

    /// What a function whose windows are at most `longest` has to go by.
    fn rows(&self, rows: &Rows, longest: i64) -> Rows {
        let mut kept = Rows::new();
        for (at, value) in rows {
            let Some(span) = self.span(*at) else { continue };
            if span > longest.max(1) {
                // The last value, and a marker behind it.
                let same = |t: &i64| cell(*t, span) == cell(*at, span);
                let mut later = rows.range(at + 1..).filter(|(t, _)| same(t));
                let is_last = match value.to_bits() == STALE_NAN_BITS {
                    true => later.next().is_none(),
                    false => later.all(|(_, v)| v.to_bits() == STALE_NAN_BITS),
                };
                if !is_last {
                    continue;
                }
            }
            kept.insert(*at, *value);
        }
        kept
    }

    fn floor(&self, at: i64, longest: i64) -> i64 {
        match self.span(at) {
            Some(span) if span <= longest => at.div_euclid(span) * span,
            _ => at,
        }
    }
}

/// What PromQL says of the rows in the range, its ends taken back to the bounds of windows.
fn wanted(rows: &Rows, tiers: &Tiers, function: &str, asked: Asked) -> Values {
    let longest = if OTHERS.contains(&function) { 0 } else { asked.range };
    let rows = tiers.rows(rows, longest);
    let kernel = window::kernel(function).unwrap();
    let value = |now: i64| {
        let (at, from) = (tiers.floor(now, longest), tiers.floor(now - asked.range, longest));
        let inside = rows.range(from + 1..at.max(from) + 1);
        let (times, values): (Vec<i64>, Vec<f64>) = inside.filter(|(_, v)| v.to_bits() != STALE_NAN_BITS).unzip();
        let value = kernel(&Window {
            times: &times,
            values: &values,
            at,
            now,
            range_ms: at - from,
            params: [0.0; 2],
        });
        (now, value)
    };
    let all = asked.steps().map(value);
    all.filter(|(_, v)| v.to_bits() != STALE_NAN_BITS).collect()
}

fn is_near(a: &Values, b: &Values) -> bool {
    let close = |x: f64, y: f64| (x.is_nan() && y.is_nan()) || (x - y).abs() <= 1e-9 * (1.0 + x.abs().max(y.abs()));
    a.len() == b.len() && a.iter().zip(b).all(|((s, x), (t, y))| s == t && close(*x, *y))
}

fn at() -> impl Strategy<Value = i64> {
    // On the bounds of windows often.
    prop_oneof![
        2 => (0..HOURS * 12).prop_map(|n| n * FIVE),
        3 => (0..HOURS * 60).prop_map(|n| n * MINUTE),
        3 => 0..HOURS * HOUR,
    ]
}

/// A counter that starts anew now and then; whole numbers and all that is special; fractions.
fn series() -> impl Strategy<Value = Vec<Rows>> {
    let rises = prop::collection::btree_map(at(), (0u32..50, prop::bool::weighted(0.05)), 0..200);
    let counter = rises.prop_map(|rises| {
        let mut total = 0.0;
        let rise = |(at, (by, is_reset)): (i64, (u32, bool))| {
            total = if is_reset { f64::from(by) } else { total + f64::from(by) };
            (at, total)
        };
        rises.into_iter().map(rise).collect::<Rows>()
    });
    let special = prop_oneof![
        12 => (-3i32..4).prop_map(f64::from),
        2 => Just(-0.0),
        1 => Just(f64::from_bits(0x7ff8_0000_0000_1234)),
        1 => Just(STALE),
    ];
    let gauge = prop::collection::btree_map(at(), special, 0..200);
    let endless =
        prop_oneof![6 => (0..9i32).prop_map(f64::from), 1 => Just(f64::INFINITY), 1 => Just(f64::NEG_INFINITY)];
    let endless = prop::collection::btree_map(at(), endless, 0..60);
    let fractions = prop::collection::btree_map(at(), prop_oneof![9 => -1e3..1e3f64, 1 => Just(STALE)], 0..200);
    // One value for long, as `up` has it.
    let steady = prop::collection::btree_map(at(), prop_oneof![40 => Just(1.0), 1 => Just(0.0)], 0..200);
    (counter, gauge, endless, steady, fractions).prop_map(|(a, b, c, d, e)| vec![a, b, c, d, e])
}

fn floors() -> impl Strategy<Value = [i64; 3]> {
    (0..=HOURS, 0..4i64, 0..4i64).prop_map(|(raw, five, hour)| [raw, (raw - five).max(0), (raw - five - hour).max(0)])
}

fn asked() -> impl Strategy<Value = Asked> {
    let any = (
        0..HOURS * HOUR,
        1..HOUR,
        prop_oneof![1..FIVE, FIVE..HOUR, HOUR..3 * HOUR],
    );
    let fives = (0..HOURS * 12, 1..12i64, 1..24i64).prop_map(|(a, b, c)| (a * FIVE, b * FIVE, c * FIVE));
    let hours = (0..HOURS, 1..3i64, 1..4i64).prop_map(|(a, b, c)| (a * HOUR, b * HOUR, c * HOUR));
    prop_oneof![any, fives, hours].prop_map(|(start, step, range)| Asked {
        start,
        step,
        count: 20,
        range,
    })
}

fn works() -> impl Strategy<Value = Vec<Work>> {
    let work = prop_oneof![Just(Work::Nothing), Just(Work::Flush), Just(Work::FlushAndCompact)];
    prop::collection::vec(work, 4..5)
}

proptest! {
    // Each case asks some hundred queries.
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn windows_answer_what_their_rows_would(
        rows in series(),
        floors in floors(),
        asked in prop::collection::vec(asked(), 1..4),
        work_a in works(),
        work_b in works(),
    ) {
        let entries = [Entry::Retain(floors)];
        let (a, b) = (engine(shard(&rows, &entries, &work_a)), engine(shard(&rows, &entries, &work_b)));
        let as_they_came = engine(shard(&rows, &[], &[Work::Nothing]));
        let tiers = Tiers(floors);
        for asked in asked {
            for function in EXACT.into_iter().chain(SUMS).chain(EVENTS).chain(OTHERS) {
                for (i, rows) in rows.iter().enumerate() {
                    let (found, notes) = ask(&a, function, i, asked);
                    prop_assert_eq!((bits(&found), &notes), {
                        let (found, notes) = ask(&b, function, i, asked);
                        (bits(&found), &notes.clone())
                    });
                    let wanted = wanted(rows, &tiers, function, asked);
                    let context = || format!("{function} of {i}: {rows:?}\nfound {found:?}\nwanted {wanted:?}");
                    let is_whole = i < 4;
                    if EVENTS.contains(&function) && notes.iter().any(|n| n.contains("the least")) {
                        prop_assert!(found.keys().eq(wanted.keys()), "{}", context());
                        prop_assert!(found.values().zip(wanted.values()).all(|(f, w)| f <= w), "{}", context());
                    } else if is_whole || !SUMS.contains(&function) {
                        prop_assert_eq!(bits(&found), bits(&wanted), "{}", context());
                    } else {
                        prop_assert!(is_near(&found, &wanted), "{}", context());
                    }
                    // As if nothing had been rolled up, where ranges end where windows do.
                    let ends = || asked.steps().flat_map(|t| [t, t - asked.range]);
                    let is_aligned = ends().all(|t| tiers.span(t + 1).is_some_and(|s| s <= asked.range && t % s == 0));
                    if is_aligned && EXACT.contains(&function) {
                        let (before, _) = ask(&as_they_came, function, i, asked);
                        prop_assert_eq!(bits(&found), bits(&before), "{}", context());
                    }
                }
            }
        }
    }

    #[test]
    fn ranges_that_adjoin_count_every_sample_once(
        rows in series(),
        floors in floors(),
        later in floors(),
        pins in prop::collection::vec((at(), 0..2 * HOUR), 0..3),
        range in prop_oneof![MINUTE..FIVE, FIVE..HOUR, HOUR..3 * HOUR],
        work_a in works(),
        work_b in works(),
    ) {
        let mut entries = vec![Entry::Retain(floors)];
        entries.extend(pins.iter().map(|(from, len)| Entry::Pin(*from, from + len)));
        entries.push(Entry::Retain(later));
        let (a, b) = (engine(shard(&rows, &entries, &work_a)), engine(shard(&rows, &entries, &work_b)));
        let count = (HOURS + 1) * HOUR / range + 1;
        let asked = Asked { start: range, step: range, count, range };
        for i in 0..rows.len() {
            let (parts, notes) = ask(&a, "count_over_time", i, asked);
            prop_assert_eq!((bits(&parts), &notes), {
                let (found, notes) = ask(&b, "count_over_time", i, asked);
                (bits(&found), &notes.clone())
            });
            if range < HOUR {
                continue;
            }
            let whole = Asked { start: count * range, step: 1, count: 1, range: count * range };
            let (whole, _) = ask(&a, "count_over_time", i, whole);
            prop_assert_eq!(parts.values().sum::<f64>(), whole.values().sum::<f64>());
        }
    }
}

/// A row a minute, of a counter that starts anew every 100 minutes; rows from the seventh hour on, windows of five
/// minutes of the two hours before, of an hour of the two before those.
fn minutes() -> Engine {
    let rows: Rows = (1..=HOURS * 60).map(|m| (m * MINUTE, (m % 100 * 10) as f64)).collect();
    engine(shard(&[rows], &[Entry::Retain([6, 4, 2])], &[Work::FlushAndCompact]))
}

fn check(functions: &[&str], asked: Asked, expect: Expect) {
    let engine = minutes();
    let mut shown = String::new();
    for function in functions {
        let (values, notes) = ask(&engine, function, 0, asked);
        let values: Vec<String> = values.iter().map(|(t, v)| format!("{}={v}", t / MINUTE)).collect();
        shown += &format!("{function} {}\n", values.join(" "));
        shown += &notes.iter().map(|n| format!("  {n}\n")).collect::<String>();
    }
    expect.assert_eq(&shown);
}

#[test]
fn an_hour_is_the_same_from_hours_from_five_minutes_and_from_rows() {
    let asked = Asked {
        start: 3 * HOUR,
        step: HOUR,
        count: 6,
        range: HOUR,
    };
    let functions = [
        "count_over_time",
        "sum_over_time",
        "avg_over_time",
        "min_over_time",
        "max_over_time",
        "first_over_time",
        "last_over_time",
        "increase",
        "rate",
        "resets",
        "changes",
        "stddev_over_time",
    ];
    check(
        &functions,
        asked,
        expect![[r#"
        count_over_time 180=60 240=60 300=60 360=60 420=60 480=60
          PromQL info: count_over_time counts whole windows where samples were rolled up; there the ends of its range go back to the bounds of windows
        sum_over_time 180=30300 240=25300 300=41300 360=18300 420=33300 480=30300
          PromQL info: sum_over_time counts whole windows where samples were rolled up; there the ends of its range go back to the bounds of windows
        avg_over_time 180=505 240=421.6666666666667 300=688.3333333333334 360=305 420=555 480=505
          PromQL info: avg_over_time counts whole windows where samples were rolled up; there the ends of its range go back to the bounds of windows
        min_over_time 180=210 240=0 300=0 360=10 420=0 480=210
          PromQL info: min_over_time counts whole windows where samples were rolled up; there the ends of its range go back to the bounds of windows
        max_over_time 180=800 240=990 300=990 360=600 420=990 480=800
          PromQL info: max_over_time counts whole windows where samples were rolled up; there the ends of its range go back to the bounds of windows
        first_over_time 180=210 240=810 300=410 360=10 420=610 480=210
          PromQL info: first_over_time counts whole windows where samples were rolled up; there the ends of its range go back to the bounds of windows
        last_over_time 180=800 240=400 300=0 360=600 420=200 480=800
          PromQL info: last_over_time counts whole windows where samples were rolled up; there the ends of its range go back to the bounds of windows
        increase 180=600 240=589.8305084745763 300=589.8305084745763 360=600 420=589.8305084745763 480=600
          PromQL info: increase counts whole windows where samples were rolled up; there the ends of its range go back to the bounds of windows
        rate 180=0.16666666666666669 240=0.16384180790960454 300=0.16384180790960454 360=0.16666666666666669 420=0.16384180790960454 480=0.16666666666666669
          PromQL info: rate counts whole windows where samples were rolled up; there the ends of its range go back to the bounds of windows
        resets 180=0 240=1 300=1 360=0 420=1 480=0
          PromQL info: resets counts whole windows where samples were rolled up; there the ends of its range go back to the bounds of windows
          PromQL warning: resets is the least that it can be where samples were rolled up; their windows do not tell
        changes 180=1 240=1 300=23 360=23 420=59 480=59
          PromQL info: changes counts whole windows where samples were rolled up; there the ends of its range go back to the bounds of windows
          PromQL warning: changes is the least that it can be where samples were rolled up; their windows do not tell
        stddev_over_time 180=0 240=0 300=245.65671621639459 360=172.60262647673315 420=347.83856408780593 480=173.18102282486575
          PromQL warning: stddev_over_time sees no more than the last sample of each window where samples were rolled up
    "#]],
    );
}

#[test]
fn a_range_that_cuts_windows_goes_back_to_their_bounds() {
    // Twelve minutes: two or three windows of five, and the rows after the floor at minute 360 as they are.
    let asked = Asked {
        start: 345 * MINUTE,
        step: 4 * MINUTE,
        count: 8,
        range: 12 * MINUTE,
    };
    check(
        &["count_over_time", "increase", "rate"],
        asked,
        expect![[r#"
        count_over_time 345=15 349=10 353=10 357=10 361=16 365=15 369=14 373=12
          PromQL info: count_over_time counts whole windows where samples were rolled up; there the ends of its range go back to the bounds of windows
        increase 345=150 349=100 353=100 357=100 361=160 365=150 369=140 373=119.99999999999999
          PromQL info: increase counts whole windows where samples were rolled up; there the ends of its range go back to the bounds of windows
        rate 345=0.16666666666666666 349=0.16666666666666669 353=0.16666666666666669 357=0.16666666666666669 361=0.16666666666666666 365=0.16666666666666666 369=0.16666666666666666 373=0.16666666666666663
          PromQL info: rate counts whole windows where samples were rolled up; there the ends of its range go back to the bounds of windows
    "#]],
    );
}

#[test]
fn windows_longer_than_the_range_give_their_last_samples() {
    let asked = Asked {
        start: 3 * HOUR,
        step: 20 * MINUTE,
        count: 8,
        range: 10 * MINUTE,
    };
    check(
        &["count_over_time", "last_over_time"],
        asked,
        expect![[r#"
        count_over_time 180=1 240=1 260=10 280=10 300=10 320=10
          PromQL info: count_over_time counts whole windows where samples were rolled up; there the ends of its range go back to the bounds of windows
          PromQL warning: count_over_time sees no more than the last sample of each window where samples were rolled up
        last_over_time 180=800 240=400 260=600 280=800 300=0 320=200
          PromQL info: last_over_time counts whole windows where samples were rolled up; there the ends of its range go back to the bounds of windows
          PromQL warning: last_over_time sees no more than the last sample of each window where samples were rolled up
    "#]],
    );
    let asked = Asked {
        range: 2 * MINUTE,
        start: 5 * HOUR,
        step: MINUTE,
        ..asked
    };
    check(
        &["count_over_time", "last_over_time"],
        asked,
        expect![[r#"
        count_over_time 300=1 301=1 305=1 306=1
          PromQL warning: count_over_time sees no more than the last sample of each window where samples were rolled up
        last_over_time 300=0 301=0 305=50 306=50
          PromQL warning: last_over_time sees no more than the last sample of each window where samples were rolled up
    "#]],
    );
}

/// Two hosts that send under the same labels: their rows would fall between each other.
#[test]
fn series_of_two_owners_give_the_last_samples_of_their_windows_and_say_so() {
    let mut shards = Real::new(2);
    let rows = |owner: &str, second: i64| {
        let tenant = TenantId::default();
        SeriesBlock {
            labels: labels(0),
            owner: Owner::Resource {
                id: ResourceId::new(&tenant, Kind::Host, &[owner]),
                kind: Kind::Host,
            },
            samples: (1..HOURS * 60)
                .map(|m| Sample {
                    at: TimestampNs::from_ms(m * MINUTE + second * 1000),
                    value: 1.0,
                })
                .collect(),
        }
    };
    shards.write(0, &[rows("a", 0)], &[]);
    shards.write(1, &[rows("b", 30)], &[]);
    let mut one = Real(vec![shards.0.remove(0)]);
    give(&mut one, &Entry::Retain([6, 2, 2]));
    shards.0.insert(0, one.0.remove(0));
    let asked = Asked {
        start: 6 * HOUR,
        step: HOUR,
        count: 2,
        range: HOUR,
    };
    let (values, notes) = ask(&engine(shards), "count_over_time", 0, asked);
    // Of one twelve windows, of the other sixty rows; then rows of both.
    assert_eq!(values.values().copied().collect::<Vec<_>>(), [72.0, 120.0]);
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].starts_with("PromQL warning") && notes[0].contains("the last sample of each window"));
}

//! What the shards compute is what would be computed here: columns of series and counts of lines over two real shards,
//! compared with the samples and lines themselves. And reads that end early.

use crate::real::{Answer, Real};
use futures::FutureExt;
use futures::executor::block_on;
use hindcast_model::resource::Kind;
use hindcast_model::{
    Labels, LogLine, Matcher, Owner, ResourceId, STALE_NAN_BITS, Sample, SeriesBlock, SpanNs, StreamBlock, TenantId,
    TimestampNs,
};
use hindcast_query::column::Steps;
use hindcast_query::plan::When;
use hindcast_query::reduce::{Collector, How, Reducer, Reduction};
use hindcast_query::replica;
use hindcast_query::shards::{
    Budget, Columns, ColumnsRequest, Completeness, CountsRequest, LabelsRequest, LinesRequest, NativeSeries,
    SeriesColumn, SeriesRequest, Shards, ShardsError,
};
use hindcast_query::{Engine, Limits, LogsQuery, LogsValue, OWNER_LABEL, Options, QueryError, RangeQuery, Value};
use hindcast_storage::VisitedSeries;
use hindcast_storage::points::Points;
use hindcast_storage::read::{Direction, Rolled, SeriesData, StreamCounts, StreamData};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Over the same shards: loads all samples, puts equal labels together, and only then reduces.
struct Loading {
    real: Arc<Real>,
    owner_label: bool,
}

#[async_trait::async_trait]
impl Shards for Loading {
    async fn series(&self, r: SeriesRequest) -> Answer<SeriesData> {
        self.real.series(r).await
    }
    async fn columns(&self, r: ColumnsRequest) -> Result<(Columns, Completeness), ShardsError> {
        let (all, whole) = self.real.series(r.series).await?;
        let mut by_labels: BTreeMap<_, (SeriesData, BTreeMap<i64, f64>)> = BTreeMap::new();
        // The lowest slot comes first and wins.
        for s in all {
            let owner = s.owner.id().filter(|_| self.owner_label);
            let samples: Vec<(i64, f64)> = s.samples.iter().map(|s| (s.at.0, s.value)).collect();
            let (_, merged) = by_labels
                .entry((s.labels.clone(), owner))
                .or_insert_with(|| (s, BTreeMap::new()));
            for (at, value) in samples {
                merged.entry(at).or_insert(value);
            }
        }
        let column = |(s, merged): (SeriesData, BTreeMap<i64, f64>)| {
            let mut points = Points::default();
            merged.iter().for_each(|(at, v)| points.push(*at, *v));
            SeriesColumn {
                fingerprint: s.labels.fingerprint(),
                labels: s.labels,
                owner: s.owner,
                slot: s.slot,
                values: Reducer::default().points(&r.reduction, &points),
                old: Default::default(),
            }
        };
        let columns = by_labels.into_values().map(column).collect();
        let all = Columns {
            columns,
            ..Columns::default()
        };
        Ok((all, whole))
    }
    async fn natives(&self, _: SeriesRequest) -> Answer<NativeSeries> {
        Ok((vec![], Completeness::default()))
    }
    async fn line_counts(&self, _: CountsRequest) -> Answer<StreamCounts> {
        unreachable!("lines are compared otherwise")
    }
    async fn lines(&self, _: LinesRequest) -> Answer<StreamData> {
        unreachable!("no test asks")
    }
    async fn label_sets(&self, _: LabelsRequest) -> Answer<Labels> {
        unreachable!("no test asks")
    }
    async fn complete_to(&self, _: &TenantId) -> Result<TimestampNs, ShardsError> {
        unreachable!("no test asks")
    }
}

fn owner(i: usize) -> Owner {
    let tenant = TenantId::default();
    match i {
        0 => Owner::None,
        i => Owner::Resource {
            id: ResourceId::new(&tenant, Kind::Host, &[&i.to_string()]),
            kind: Kind::Host,
        },
    }
}

/// A piece of a series or stream: shard, label set, owner, (time, value).
type Piece = (usize, usize, usize, Vec<(i64, i32)>);

fn pieces(unit: i64) -> impl Strategy<Value = Vec<Piece>> {
    let rows = prop::collection::vec((0..300_000 * unit, -5i32..400), 1..40);
    prop::collection::vec((0..2usize, 0..4usize, 0..3usize, rows), 0..14)
}

fn sample((at, value): &(i64, i32)) -> Sample {
    Sample {
        at: TimestampNs::from_ms(*at),
        value: match value {
            ..0 => f64::from_bits(STALE_NAN_BITS),
            v => f64::from(*v) * 0.1,
        },
    }
}

fn with_series(pieces: &[Piece]) -> Real {
    let mut real = Real::new(2);
    for (n, (shard, labels, of, rows)) in pieces.iter().enumerate() {
        let block = SeriesBlock {
            labels: Labels::from_pairs([("__name__", "m_total"), ("i", &labels.to_string())]),
            owner: owner(*of),
            samples: rows.iter().map(sample).collect(),
        };
        real.write(*shard, &[block], &[]);
        if n % 4 == 3 {
            real.0[*shard].flush(&[]).unwrap();
        }
    }
    real
}

/// Series with their points, to the bit.
fn shown(value: Value) -> Vec<(String, Vec<(i64, u64)>)> {
    let Value::Matrix(series) = value else {
        panic!("{value:?}");
    };
    let points = |points: Vec<(TimestampNs, f64)>| points.iter().map(|(t, v)| (t.as_ms(), v.to_bits())).collect();
    series
        .into_iter()
        .map(|s| (s.labels.to_string(), points(s.points)))
        .collect()
}

const WINDOWS: [&str; 26] = [
    "rate",
    "increase",
    "delta",
    "irate",
    "idelta",
    "resets",
    "changes",
    "deriv",
    "sum_over_time",
    "avg_over_time",
    "min_over_time",
    "max_over_time",
    "count_over_time",
    "present_over_time",
    "last_over_time",
    "stdvar_over_time",
    "stddev_over_time",
    "absent_over_time",
    "sum by (i) (rate",
    "avg(increase",
    "topk(2, last_over_time",
    "quantile_over_time(0.3, ",
    "quantile_over_time(scalar(m_total{i=\"1\"}), ",
    "predict_linear(",
    "-rate",
    "1 + max_over_time",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn columns_from_the_shards_have_the_bits_of_columns_from_samples(
        pieces in pieces(1),
        start in -50_000i64..300_000,
        step in 1i64..30_000,
        range_ms in 1i64..120_000,
        owner_label: bool,
        are_apart: bool,
    ) {
        let mut pieces = pieces;
        if are_apart {
            // No label set in two places, so that aggregations are folded there.
            pieces.iter_mut().for_each(|(shard, labels, owner, _)| *labels = 6 * *labels + 3 * *shard + *owner);
        }
        let real = Arc::new(with_series(&pieces));
        let loading = Loading { real: real.clone(), owner_label };
        let (pushed, loaded) = (Engine::new(real, Limits::default()), Engine::new(Arc::new(loading), Limits::default()));
        let window = |f: &&str| {
            let open = if f.ends_with(", ") || f.ends_with("linear(") { "" } else { "(" };
            let args = if f.starts_with("predict") { ", 60" } else { "" };
            let whole = format!("{f}{open}m_total[{range_ms}ms]{args}");
            let closing = ")".repeat(whole.matches('(').count() - whole.matches(')').count());
            whole + &closing
        };
        let mut exprs: Vec<String> = WINDOWS.iter().map(window).collect();
        exprs.extend([
            "m_total".to_owned(),
            "sum(m_total)".to_owned(),
            "sum by (i) (m_total offset 20s)".to_owned(),
            "avg without (i) (m_total)".to_owned(),
            "min by (__name__) (m_total)".to_owned(),
            format!("max by (__name__, j) (rate(m_total[{range_ms}ms]))"),
            "count(m_total)".to_owned(),
            "group by (i) (m_total)".to_owned(),
            format!("stddev(sum_over_time(m_total[{range_ms}ms]))"),
            format!("stdvar without (j) (last_over_time(m_total[{range_ms}ms]))"),
            format!("avg(increase({{__name__=~\"m_.*\"}}[{range_ms}ms]))"),
            "timestamp(m_total)".to_owned(),
            "absent(m_total{i=\"2\"})".to_owned(),
            format!("rate(m_total[{range_ms}ms] offset -15s)"),
            format!("increase(m_total[{range_ms}ms] @ end())"),
            format!("max_over_time(rate(m_total[{range_ms}ms])[1m:7s])"),
            format!("m_total / on (i) group_left sum by (i) (sum_over_time(m_total[{range_ms}ms]))"),
        ]);
        for expr in exprs {
            let q = RangeQuery {
                tenant: TenantId::default(),
                expr,
                start: TimestampNs::from_ms(start),
                end: TimestampNs::from_ms(start + 20 * step),
                step: SpanNs::from_ms(step as u64),
                options: Options { owner_label, ..Options::default() },
            };
            let answer = |e: &Engine| block_on(e.range(&q)).map(|a| (shown(a.value), a.warnings)).map_err(|e| e.to_string());
            prop_assert_eq!(answer(&pushed), answer(&loaded), "{}", &q.expr);
        }
    }

    #[test]
    fn counts_of_lines_are_those_of_their_milliseconds(
        pieces in pieces(1_000_000),
        start in -50_000i64..300_000,
        step in 1i64..30_000,
        range_ms in 1i64..120_000,
        offset_ms in -30_000i64..30_000,
        on_bound in prop::collection::vec((0usize..20, -1i64..2), 0..8),
    ) {
        let mut pieces = pieces;
        // Lines at, just before and just after the ends of windows.
        let bound = |(i, by): &(usize, i64)| ((start + *i as i64 * step - offset_ms) * 1_000_000 + by, 7);
        pieces.push((0, 1, 0, on_bound.iter().map(bound).collect()));
        let mut real = Real::new(2);
        let text = |v: i32| if v % 3 == 0 { format!("error {v}") } else { format!("ok {v}") };
        for (n, (shard, labels, of, rows)) in pieces.iter().enumerate() {
            let line = |(at, v): &(i64, i32)| LogLine { at: TimestampNs(*at), line: text(*v).into(), metadata: vec![] };
            let labels = Labels::from_pairs([("app", &labels.to_string())]);
            let block = StreamBlock { labels, owner: owner(*of), lines: rows.iter().map(line).collect() };
            real.write(*shard, &[], &[block]);
            if n % 4 == 3 {
                real.0[*shard].flush(&[]).unwrap();
            }
        }
        let e = Engine::new(Arc::new(real), Limits::default());
        for (function, filter, per) in [
            ("count_over_time", "", 1.0),
            ("count_over_time", "|= `error`", 1.0),
            ("rate", "", range_ms as f64 / 1000.0),
            ("rate", "!~ `^err`", range_ms as f64 / 1000.0),
        ] {
            let q = LogsQuery {
                tenant: TenantId::default(),
                expr: format!("{function}({{app=~\".+\"}} {filter} [{range_ms}ms] offset {offset_ms}ms)"),
                start: TimestampNs::from_ms(start),
                end: TimestampNs::from_ms(start + 20 * step),
                step: Some(SpanNs::from_ms(step as u64)),
                limit: 0,
                direction: Direction::Forward,
                options: Options::default(),
            };
            let LogsValue::Metric(got) = block_on(e.logs(&q)).unwrap().value else { panic!("a metric query") };
            let mut wanted: BTreeMap<String, Vec<(i64, u64)>> = BTreeMap::new();
            for labels in 0..4 {
                let lines = pieces.iter().filter(|p| p.1 == labels).flat_map(|p| &p.3);
                // A line is in `(a, b]` exactly when its millisecond, rounded up, is.
                let times: Vec<i64> = lines
                    .filter(|(_, v)| match filter {
                        "" => true,
                        "|= `error`" => text(*v).contains("error"),
                        _ => !text(*v).starts_with("err"),
                    })
                    .map(|(at, _)| (at + 999_999).div_euclid(1_000_000))
                    .collect();
                let points = (0..=20).map(|i| start + i * step).filter_map(|t| {
                    let at = t - offset_ms;
                    let lines = times.iter().filter(|l| at - range_ms < **l && **l <= at).count();
                    (lines > 0).then(|| (t, (lines as f64 / per).to_bits()))
                });
                let points: Vec<(i64, u64)> = points.collect();
                if !points.is_empty() {
                    wanted.insert(Labels::from_pairs([("app", &labels.to_string())]).to_string(), points);
                }
            }
            prop_assert_eq!(shown(got), wanted.into_iter().collect::<Vec<_>>(), "{}", &q.expr);
        }
    }
}

fn ten_series() -> Real {
    let rows: Vec<(i64, i32)> = (0..10).map(|t| (t * 1000, 1)).collect();
    let pieces: Vec<Piece> = (0..10).map(|i| (0, i, 0, rows.clone())).collect();
    with_series(&pieces)
}

fn newest(budget: Budget) -> ColumnsRequest {
    let reduction = Reduction {
        how: How::Newest {
            lookback_ms: 60_000,
            times: false,
        },
        steps: Steps {
            start: 0,
            step: 1000,
            count: 10,
        },
        when: When::default(),
    };
    ColumnsRequest {
        series: SeriesRequest {
            tenant: TenantId::default(),
            matchers: vec![Matcher::equal("__name__", "m_total")],
            from: TimestampNs::MIN,
            to: TimestampNs::MAX,
            as_of: None,
            owners: None,
            only: None,
            budget: Arc::new(budget),
        },
        reduction: Arc::new(reduction),
        fold: None,
    }
}

/// Keeps what it is asked. Without shards it never answers.
#[derive(Default)]
struct Noting {
    real: Option<Real>,
    asked: Mutex<Vec<ColumnsRequest>>,
}

#[async_trait::async_trait]
impl Shards for Noting {
    async fn series(&self, r: SeriesRequest) -> Answer<SeriesData> {
        self.real.as_ref().expect("only columns are asked for").series(r).await
    }
    async fn columns(&self, r: ColumnsRequest) -> Result<(Columns, Completeness), ShardsError> {
        self.asked.lock().unwrap().push(r.clone());
        match &self.real {
            Some(real) => real.columns(r).await,
            None => futures::future::pending().await,
        }
    }
    async fn natives(&self, _: SeriesRequest) -> Answer<NativeSeries> {
        unreachable!("no test asks")
    }
    async fn line_counts(&self, _: CountsRequest) -> Answer<StreamCounts> {
        unreachable!("no test asks")
    }
    async fn lines(&self, _: LinesRequest) -> Answer<StreamData> {
        unreachable!("a count reads no lines")
    }
    async fn label_sets(&self, _: LabelsRequest) -> Answer<Labels> {
        unreachable!("no test asks")
    }
    async fn complete_to(&self, _: &TenantId) -> Result<TimestampNs, ShardsError> {
        unreachable!("no test asks")
    }
}

#[test]
fn aggregations_are_folded_where_series_lie_and_asked_again_only_when_one_lies_in_two_places() {
    let rows: Vec<(i64, i32)> = (0..10).map(|t| (t * 1000, 1)).collect();
    let piece = |shard, labels, owner| (shard, labels, owner, rows.clone());
    let apart = [piece(0, 0, 1), piece(1, 1, 0), piece(0, 2, 0)];
    let twice = [piece(0, 0, 1), piece(1, 0, 0)];
    // Of one owner, so in one slot.
    let one_slot = [piece(0, 0, 1), piece(1, 1, 1)];
    let ask = |pieces: &[Piece], expr: &str, options: Options| {
        let noting = Arc::new(Noting {
            real: Some(with_series(pieces)),
            ..Noting::default()
        });
        let q = RangeQuery {
            tenant: TenantId::default(),
            expr: expr.to_owned(),
            start: TimestampNs::from_ms(9_000),
            end: TimestampNs::from_ms(9_000),
            step: SpanNs::from_secs(1),
            options,
        };
        let answer = block_on(Engine::new(noting.clone(), Limits::default()).range(&q)).unwrap();
        let values = shown(answer.value).into_iter().map(|(labels, points)| {
            let value = points.first().map(|(_, bits)| f64::from_bits(*bits));
            (labels, value.unwrap_or(f64::NAN))
        });
        let folds: Vec<bool> = noting.asked.lock().unwrap().iter().map(|r| r.fold.is_some()).collect();
        (values.map(|(_, v)| v).collect::<Vec<_>>(), folds)
    };
    let plain = |pieces: &[Piece], expr: &str| ask(pieces, expr, Options::default());
    assert_eq!(plain(&apart, "count(m_total)"), (vec![3.0], vec![true]));
    assert_eq!(
        plain(&apart, "count by (i) (rate(m_total[5s]))"),
        (vec![1.0; 3], vec![true])
    );
    assert_eq!(
        plain(&apart, "max(-m_total)"),
        (vec![-0.1], vec![false]),
        "not of columns as they are"
    );
    assert_eq!(
        plain(&apart, "quantile(0.5, m_total)"),
        (vec![0.1], vec![false]),
        "not of cells"
    );
    let any_name = "sum(rate({__name__=~\"m.*\"}[5s]))";
    assert_eq!(
        plain(&apart, any_name),
        (vec![0.0], vec![false]),
        "names that go could have told series apart"
    );
    assert_eq!(plain(&twice, "count(m_total)"), (vec![1.0], vec![true, false]));
    assert_eq!(plain(&one_slot, "count(m_total)"), (vec![2.0], vec![true, false]));
    assert_eq!(plain(&one_slot, "count by (i) (m_total)"), (vec![1.0; 2], vec![true]));
    let owner_label = Options {
        owner_label: true,
        ..Options::default()
    };
    assert_eq!(ask(&twice, "count(m_total)", owner_label), (vec![2.0], vec![false]));
}

/// Each of ten aggregations that were asked again could load as much as a whole query may.
#[test]
fn selectors_that_are_asked_again_share_what_a_query_may_load() {
    let rows: Vec<(i64, i32)> = (0..10).map(|t| (t * 1000, 1)).collect();
    let noting = Arc::new(Noting {
        real: Some(with_series(&[(0, 0, 1, rows.clone()), (1, 0, 0, rows)])),
        ..Noting::default()
    });
    let q = RangeQuery {
        tenant: TenantId::default(),
        expr: "count(m_total) + count(m_total offset 1s)".to_owned(),
        start: TimestampNs::from_ms(9_000),
        end: TimestampNs::from_ms(9_000),
        step: SpanNs::from_secs(1),
        options: Options::default(),
    };
    block_on(Engine::new(noting.clone(), Limits::default()).range(&q)).unwrap();
    let asked = noting.asked.lock().unwrap();
    let (first, again): (Vec<_>, Vec<_>) = asked.iter().partition(|r| r.fold.is_some());
    assert_eq!((first.len(), again.len()), (2, 2));
    let is_shared = |all: &[&ColumnsRequest]| Arc::ptr_eq(&all[0].series.budget, &all[1].series.budget);
    assert!(is_shared(&first) && is_shared(&again));
    assert!(
        !is_shared(&[first[0], again[0]]),
        "what was folded is not counted twice"
    );
}

#[test]
fn reading_stops_where_the_budget_ends() {
    let real = ten_series();
    let read = |budget: Budget| {
        let r = newest(budget);
        let found = replica::columns(&real.0[0].reader(), &r, None).unwrap().columns;
        (found.len(), r.series.budget.samples(), r.series.budget.is_exceeded())
    };
    assert_eq!(read(Budget::new(1000, 1000)), (10, 100, false));
    assert_eq!(
        read(Budget::new(25, 1000)),
        (2, 30, true),
        "the third series was one too many"
    );
    assert_eq!(
        read(Budget::new(1000, 3)),
        (4, 40, false),
        "one more than allowed tells that there are more"
    );
    let cancelled = Budget::new(1000, 1000);
    cancelled.cancel();
    assert_eq!(read(cancelled).0, 0);
    let e = Engine::new(
        Arc::new(ten_series()),
        Limits {
            series_max: 3,
            ..Limits::default()
        },
    );
    let q = RangeQuery {
        tenant: TenantId::default(),
        expr: "rate(m_total[5m])".to_owned(),
        start: TimestampNs(0),
        end: TimestampNs::from_secs(9),
        step: SpanNs::from_secs(1),
        options: Options::default(),
    };
    let refused = block_on(e.range(&q)).unwrap_err();
    assert!(
        matches!(refused, QueryError::TooLarge { what: "series", max: 3 }),
        "{refused}"
    );
}

#[test]
fn series_of_equal_labels_are_counted_once() {
    // Three owners of each of two label sets.
    let pieces: Vec<Piece> = (0..6).map(|i| (0, i % 2, i / 2, vec![(1000, 1)])).collect();
    let e = Engine::new(
        Arc::new(with_series(&pieces)),
        Limits {
            series_max: 2,
            ..Limits::default()
        },
    );
    let ask = |owner_label: bool| {
        let q = RangeQuery {
            tenant: TenantId::default(),
            expr: "m_total".to_owned(),
            start: TimestampNs::from_secs(1),
            end: TimestampNs::from_secs(1),
            step: SpanNs::from_secs(1),
            options: Options {
                owner_label,
                ..Options::default()
            },
        };
        block_on(e.range(&q)).map(|a| shown(a.value).len())
    };
    assert_eq!(ask(false).unwrap(), 2);
    assert!(
        matches!(ask(true), Err(QueryError::TooLarge { what: "series", .. })),
        "{OWNER_LABEL} makes them six"
    );
}

/// A day of rates by the second over every stream took memory for each stream that matched, also for those without a
/// line in the day.
#[test]
fn counts_cost_nothing_for_streams_without_a_line_in_the_window() {
    let mut real = Real::new(2);
    let stream = |i: i64| StreamBlock {
        labels: Labels::from_pairs([("app", &i.to_string())]),
        owner: Owner::None,
        lines: vec![LogLine {
            at: TimestampNs::from_secs(if i < 3 { 100 } else { 1 }),
            line: "ok".into(),
            metadata: vec![],
        }],
    };
    let streams: Vec<StreamBlock> = (0..400).map(stream).collect();
    real.write(0, &[], &streams[..200]);
    real.write(1, &[], &streams[200..]);
    real.0[0].flush(&[]).unwrap();
    let limits = Limits {
        samples_max: 200,
        ..Limits::default()
    };
    let e = Engine::new(Arc::new(real), limits);
    let ask = |start: i64| {
        let q = LogsQuery {
            tenant: TenantId::default(),
            expr: "count_over_time({app=~`.+`}[10s])".to_owned(),
            start: TimestampNs::from_secs(start),
            end: TimestampNs::from_secs(start + 10),
            step: Some(SpanNs::from_secs(1)),
            limit: 0,
            direction: Direction::Forward,
            options: Options::default(),
        };
        block_on(e.logs(&q)).map(|a| match a.value {
            LogsValue::Metric(value) => shown(value).len(),
            LogsValue::Streams(_) => panic!("a metric query"),
        })
    };
    assert_eq!(ask(100).unwrap(), 3);
    assert!(
        matches!(ask(1), Err(QueryError::TooLarge { max: 200, .. })),
        "too many streams to count are refused, not kept"
    );
}

#[test]
fn a_cancelled_query_gets_no_further_series() {
    let r = newest(Budget::new(1000, 1000));
    let mut collector = Collector::new(&r);
    let mut points = Points::default();
    points.push(0, 1.0);
    let labels = Labels::from_pairs([("a", "b")]);
    let series = VisitedSeries {
        labels: &labels,
        owner: Owner::None,
        slot: Owner::None.slot(&labels),
        fingerprint: labels.fingerprint(),
        rolled: &Rolled::NOTHING,
        rank: 0,
    };
    assert!(collector.take(series, &points).is_continue());
    r.series.budget.cancel();
    assert!(collector.take(series, &points).is_break());
}

#[test]
fn dropping_a_query_stops_its_reads() {
    let stuck = Arc::new(Noting::default());
    let e = Engine::new(stuck.clone(), Limits::default());
    let q = RangeQuery {
        tenant: TenantId::default(),
        expr: "sum(m)".to_owned(),
        start: TimestampNs(0),
        end: TimestampNs(0),
        step: SpanNs::from_secs(1),
        options: Options::default(),
    };
    let mut run = Box::pin(e.range(&q));
    assert!((&mut run).now_or_never().is_none());
    let budget = stuck.asked.lock().unwrap()[0].series.budget.clone();
    assert!(!budget.is_cancelled());
    drop(run);
    assert!(budget.is_cancelled());
}

//! The evaluator against a naive one, its limits, and what a query sees of owners.

use futures::FutureExt;
use futures::executor::block_on;
use hindcast_model::resource::Kind;
use hindcast_model::{
    Class, Classify, Labels, Owner, ResourceId, STALE_NAN_BITS, Sample, SpanNs, TenantId, TimestampNs,
};
use hindcast_query::testing::OneShard;
use hindcast_query::{Engine, InstantQuery, Limits, OWNER_LABEL, Options, QueryError, RangeQuery, Value};
use proptest::prelude::*;
use std::sync::Arc;

fn range(expr: &str, start: i64, end: i64, step: i64) -> RangeQuery {
    RangeQuery {
        tenant: TenantId::default(),
        expr: expr.to_owned(),
        start: TimestampNs::from_ms(start),
        end: TimestampNs::from_ms(end),
        step: SpanNs::from_ms(step as u64),
        options: Options::default(),
    }
}

fn instant(expr: &str, at_ms: i64) -> InstantQuery {
    InstantQuery {
        tenant: TenantId::default(),
        expr: expr.to_owned(),
        at: TimestampNs::from_ms(at_ms),
        options: Options::default(),
    }
}

fn engine(series: &[(Labels, Vec<(i64, f64)>)], limits: Limits) -> Engine {
    let shard = OneShard::new();
    for (labels, samples) in series {
        let samples = samples.iter().map(|(at, value)| Sample {
            at: TimestampNs::from_ms(*at),
            value: *value,
        });
        shard.add(&TenantId::default(), labels.clone(), samples);
    }
    Engine::new(Arc::new(shard), limits)
}

fn one_series(samples: Vec<(i64, f64)>) -> Engine {
    engine(
        &[(Labels::from_pairs([("__name__", "m_total")]), samples)],
        Limits::default(),
    )
}

/// The points of an answer that has at most one series.
fn points(e: &Engine, q: &RangeQuery) -> Vec<(i64, f64)> {
    match block_on(e.range(q)).unwrap().value {
        Value::Matrix(series) => series
            .into_iter()
            .flat_map(|s| s.points)
            .map(|(t, v)| (t.as_ms(), v))
            .collect(),
        other => panic!("{other:?}"),
    }
}

/// What the manual says, sample by sample: the naive evaluator.
fn naive(samples: &[(i64, f64)], at: i64, range_ms: i64, function: &str) -> Option<f64> {
    let live: Vec<(i64, f64)> = samples
        .iter()
        .copied()
        .filter(|(t, v)| at - range_ms < *t && *t <= at && v.to_bits() != STALE_NAN_BITS)
        .collect();
    match function {
        "" => {
            let (t, v) = samples.iter().rfind(|(t, _)| *t <= at)?;
            (*t > at - range_ms && v.to_bits() != STALE_NAN_BITS).then_some(*v)
        }
        "count_over_time" => (!live.is_empty()).then_some(live.len() as f64),
        "sum_over_time" => (!live.is_empty()).then(|| live.iter().map(|(_, v)| v).sum()),
        "max_over_time" => live.iter().map(|(_, v)| *v).reduce(f64::max),
        "rate" => {
            let (first, last) = (live.first()?, live.last()?);
            if live.len() < 2 {
                return None;
            }
            let resets: f64 = live.windows(2).filter(|w| w[1].1 < w[0].1).map(|w| w[0].1).sum();
            let rise = last.1 - first.1 + resets;
            let length = (last.0 - first.0) as f64;
            let gap = length / (live.len() - 1) as f64;
            let stretch = |to_end: f64| if to_end < gap * 1.1 { to_end } else { gap / 2.0 };
            let mut before = stretch((first.0 - (at - range_ms)) as f64);
            if rise > 0.0 && first.1 >= 0.0 {
                before = before.min(length * first.1 / rise);
            }
            let after = stretch((at - last.0) as f64);
            Some(rise * (length + before + after) / length / (range_ms as f64 / 1000.0))
        }
        other => panic!("{other}"),
    }
}

fn samples() -> impl Strategy<Value = Vec<(i64, f64)>> {
    let value = prop_oneof![
        8 => (0i32..1000).prop_map(f64::from),
        1 => Just(f64::from_bits(STALE_NAN_BITS)),
    ];
    prop::collection::vec((1i64..40_000, value), 0..60).prop_map(|gaps| {
        let mut at = 0;
        gaps.into_iter()
            .map(|(gap, v)| {
                at += gap;
                (at, v)
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn the_evaluator_agrees_with_a_naive_one(
        samples in samples(),
        start in -100_000i64..1_000_000,
        step in 1i64..100_000,
        range_ms in 1i64..300_000,
    ) {
        let e = one_series(samples.clone());
        let end = start + 20 * step;
        for (function, range_ms) in [
            ("", 300_000), ("count_over_time", range_ms), ("sum_over_time", range_ms), ("max_over_time", range_ms), ("rate", range_ms),
        ] {
            let expr = if function.is_empty() { "m_total".to_owned() } else { format!("{function}(m_total[{range_ms}ms])") };
            let got = points(&e, &range(&expr, start, end, step));
            let wanted: Vec<(i64, f64)> = (0..=20)
                .map(|i| start + i * step)
                .filter_map(|t| naive(&samples, t, range_ms, function).map(|v| (t, v)))
                .collect();
            prop_assert_eq!(got.len(), wanted.len(), "{}", &expr);
            for ((t, v), (u, w)) in got.iter().zip(&wanted) {
                prop_assert!(t == u && (v - w).abs() <= 1e-9 * w.abs().max(1.0), "{}: {:?} {:?}", &expr, (t, v), (u, w));
            }
            // A range query is nothing but instant queries.
            let at = start + 7 * step;
            let alone = match block_on(e.instant(&instant(&expr, at))).unwrap().value {
                Value::Vector(v) => v.first().map(|s| s.value.to_bits()),
                other => panic!("{other:?}"),
            };
            prop_assert_eq!(alone, got.iter().find(|(t, _)| *t == at).map(|(_, v)| v.to_bits()));
        }
    }

    #[test]
    fn a_sum_has_the_same_bits_whatever_else_is_summed_beside_it(
        values in prop::collection::vec(-1.0e6..1.0e6f64, 1..60),
    ) {
        let all: Vec<_> = values
            .iter()
            .enumerate()
            .map(|(i, v)| (Labels::from_pairs([("__name__", "m"), ("i", &i.to_string()), ("odd", if i % 2 == 1 { "1" } else { "0" })]), vec![(0, *v)]))
            .collect();
        let e = engine(&all, Limits::default());
        let bits = |expr: &str| match block_on(e.instant(&instant(expr, 0))).unwrap().value {
            Value::Vector(v) => v.into_iter().map(|s| s.value.to_bits()).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        prop_assert_eq!(&bits("sum by (odd) (m)")[0], &bits("sum(m{odd=\"0\"})")[0]);
    }
}

#[test]
fn a_bare_window_gives_its_samples_and_a_subquery_its_steps() {
    let e = one_series(vec![(0, 1.0), (1000, 2.0), (2500, 3.0)]);
    let shown = |expr: &str| match block_on(e.instant(&instant(expr, 3000))).unwrap().value {
        Value::Matrix(series) => series[0]
            .points
            .iter()
            .map(|(t, v)| (t.as_ms(), *v))
            .collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(shown("m_total[3s]"), [(1000, 2.0), (2500, 3.0)]);
    assert_eq!(shown("m_total[2s:1s]"), [(2000, 2.0), (3000, 3.0)]);
}

#[test]
fn limits_are_reached_and_named() {
    let series: Vec<_> = (0..10)
        .map(|i| {
            let labels = Labels::from_pairs([("__name__", "m"), ("i", &i.to_string())]);
            (labels, (0..10).map(|t| (t * 1000, 1.0)).collect())
        })
        .collect();
    let small = Limits {
        samples_max: 150,
        series_max: 9,
        ..Limits::default()
    };
    let refused = |limits: Limits, expr: &str| {
        let e = engine(&series, limits);
        let error = block_on(e.range(&range(expr, 0, 9000, 1000))).unwrap_err();
        assert_eq!(error.class(), Class::TooLarge, "{error}");
        error.to_string()
    };
    let told = |max: usize, what: &str| {
        format!("the query needs more than {max} {what}; ask for less time, fewer series or a longer step")
    };
    assert_eq!(refused(small, "m"), told(9, "series"));
    assert_eq!(
        refused(small, "sum(m)"),
        told(9, "series"),
        "also where sums are all that comes"
    );
    let series_only = Limits {
        series_max: 10,
        ..small
    };
    assert_eq!(refused(series_only, "sum by (i) (m)"), told(150, "samples"));
    // Of series that are folded where they lie, sums alone are kept here.
    assert!(block_on(engine(&series, series_only).range(&range("sum(m)", 0, 9000, 1000))).is_ok());
    assert_eq!(
        refused(
            Limits {
                samples_max: 99,
                ..series_only
            },
            "m"
        ),
        told(99, "samples")
    );
    assert_eq!(
        refused(
            Limits {
                expr_bytes_max: 3,
                ..series_only
            },
            "m + 1"
        ),
        told(3, "bytes of text")
    );
    // Points that a subquery makes count as well.
    let subquery = "sum_over_time(vector(1)[1y:1s])";
    assert_eq!(
        refused(
            Limits {
                samples_max: 1_000_000,
                ..series_only
            },
            subquery
        ),
        told(1_000_000, "samples")
    );
}

#[test]
fn a_long_query_gives_way_and_ends_when_it_is_dropped() {
    let series: Vec<_> = (0..200)
        .map(|i| {
            (
                Labels::from_pairs([("__name__", "m"), ("i", &i.to_string())]),
                vec![(0, 1.0)],
            )
        })
        .collect();
    let e = engine(&series, Limits::default());
    // 200 × 10,001 points: more than one pause's worth.
    let q = range("m", 0, 10_000, 1);
    assert!(
        e.range(&q).now_or_never().is_none(),
        "the query ran to its end in one go"
    );
    assert!(block_on(e.range(&q)).is_ok());
}

#[test]
fn owners_show_as_a_label_and_narrow_the_data() {
    let tenant = TenantId::default();
    let owner = |name: &str| Owner::Resource {
        id: ResourceId::new(&tenant, Kind::Host, &[name]),
        kind: Kind::Host,
    };
    let shard = OneShard::new();
    let labels = Labels::from_pairs([("__name__", "m")]);
    let sample = |value| {
        [Sample {
            at: TimestampNs(0),
            value,
        }]
    };
    // Two owners of one label set: the lower slot wins where times are equal.
    shard.add_owned(&tenant, labels.clone(), owner("a"), sample(1.0));
    shard.add_owned(&tenant, labels.clone(), owner("b"), sample(2.0));
    let e = Engine::new(Arc::new(shard), Limits::default());
    let ask = |expr: &str, options: Options| {
        let q = InstantQuery {
            options,
            ..instant(expr, 0)
        };
        match block_on(e.instant(&q)).unwrap().value {
            Value::Vector(v) => v
                .into_iter()
                .map(|s| (s.labels.value(OWNER_LABEL).to_owned(), s.value))
                .collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        }
    };
    let lower = if owner("a").slot(&labels) < owner("b").slot(&labels) {
        1.0
    } else {
        2.0
    };
    assert_eq!(ask("m", Options::default()), [(String::new(), lower)]);
    let labelled = Options {
        owner_label: true,
        ..Options::default()
    };
    let mut both = vec![(owner("a"), 1.0), (owner("b"), 2.0)]
        .into_iter()
        .map(|(o, v)| (o.id().unwrap().to_string(), v))
        .collect::<Vec<_>>();
    both.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(ask("sum by (__owner__) (m)", labelled), both);
    let only_b = Options {
        owners: Some([owner("b").id().unwrap()].into()),
        ..Options::default()
    };
    assert_eq!(ask("m", only_b), [(String::new(), 2.0)]);
}

#[test]
fn a_missing_shard_makes_an_answer_incomplete_not_an_error() {
    let shard = Arc::new(OneShard::new());
    shard.add(
        &TenantId::default(),
        Labels::from_pairs([("__name__", "m")]),
        [Sample {
            at: TimestampNs(0),
            value: 1.0,
        }],
    );
    shard.set_missing(vec!["shard 2: no leader".to_owned()]);
    let e = Engine::new(shard, Limits::default());
    let answer = block_on(e.instant(&instant("m + m", 0))).unwrap();
    assert!(!answer.completeness.is_complete());
    assert_eq!(answer.completeness.missing, ["shard 2: no leader"]);
    let error: QueryError = hindcast_query::shards::ShardsError::Unavailable("x".to_owned()).into();
    assert_eq!(error.class(), Class::Unavailable);
}

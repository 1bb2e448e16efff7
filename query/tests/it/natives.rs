//! Native histograms over shards as a node has them: what a query of many of them may take.

use crate::real::Real;
use futures::FutureExt;
use futures::executor::block_on;
use hindcast_model::{Histogram, Labels, LogLine, Matcher, Owner, SpanNs, StreamBlock, TenantId, TimestampNs};
use hindcast_proto::trace::{NATIVE, TRACE_LABEL};
use hindcast_query::shards::{Budget, SeriesRequest};
use hindcast_query::{Engine, InstantQuery, Limits, Options, QueryError, RangeQuery, replica};
use std::sync::Arc;

const LINE: &str = "h1 s=3 c=10 sum=12.5 p=-2:2,3,0,1;7:1,3";

fn weight() -> usize {
    Histogram::of_line(LINE.as_bytes()).unwrap().unwrap().weight()
}

/// So many series of a metric `h`, one sample each second.
fn stored(series: usize, samples: i64) -> Real {
    let mut real = Real::new(1);
    let stream = |i: usize| StreamBlock {
        labels: Labels::from_pairs([("__name__", "h"), ("i", &i.to_string()), (TRACE_LABEL, NATIVE)]),
        owner: Owner::None,
        lines: (0..samples)
            .map(|s| LogLine {
                at: TimestampNs::from_secs(s),
                line: LINE.into(),
                metadata: vec![],
            })
            .collect(),
    };
    real.write(0, &[], &(0..series).map(stream).collect::<Vec<_>>());
    real
}

fn request(samples_max: usize, series_max: usize) -> SeriesRequest {
    SeriesRequest {
        tenant: TenantId::default(),
        matchers: vec![Matcher::equal("__name__", "h")],
        from: TimestampNs::MIN,
        to: TimestampNs::MAX,
        as_of: None,
        owners: None,
        only: None,
        budget: Arc::new(Budget::new(samples_max, series_max)),
    }
}

/// A dashboard over a year of native histograms took the memory of half a million of them on each shard, and was refused only then.
#[test]
fn a_read_of_histograms_ends_where_the_query_may_hold_no_more_of_them() {
    for flushed in [false, true] {
        let mut real = stored(3, 5_000);
        if flushed {
            real.0[0].flush(&[]).unwrap();
        }
        // Within the first series.
        let r = request(100 * weight(), 10);
        let found = replica::natives(&real.0[0].reader(), &r, None).unwrap();
        assert_eq!(found.iter().map(|s| s.samples.len()).sum::<usize>(), 100);
        assert!(r.budget.is_exceeded());
        assert_eq!(r.budget.samples(), 101 * weight());
        // All of it, when it may.
        let r = request(15_000 * weight(), 10);
        let found = replica::natives(&real.0[0].reader(), &r, None).unwrap();
        assert_eq!(found.iter().map(|s| s.samples.len()).collect::<Vec<_>>(), [5_000; 3]);
        assert!(!r.budget.is_exceeded());
        // No further than the series that one selector may have.
        let r = request(usize::MAX, 1);
        let found = replica::natives(&real.0[0].reader(), &r, None).unwrap();
        assert_eq!(found.len(), 1);
        // Nobody waits.
        let r = request(usize::MAX, 10);
        r.budget.cancel();
        let found = replica::natives(&real.0[0].reader(), &r, None).unwrap();
        assert_eq!(found.iter().map(|s| s.samples.len()).sum::<usize>(), 0);
    }
}

fn limited(samples_max: usize, shards: Real) -> Engine {
    let limits = Limits {
        samples_max,
        ..Limits::default()
    };
    Engine::new(Arc::new(shards), limits)
}

fn instant(engine: &Engine, expr: &str) -> Result<(), QueryError> {
    let q = InstantQuery {
        tenant: TenantId::default(),
        expr: expr.to_owned(),
        at: TimestampNs::from_secs(99),
        options: Options::default(),
    };
    block_on(engine.instant(&q)).map(drop)
}

fn range(engine: &Engine, expr: &str, step_s: u64) -> Result<(), QueryError> {
    range_ms(engine, expr, step_s * 1000)
}

fn over_samples(expr: &str, step_ms: u64) -> RangeQuery {
    RangeQuery {
        tenant: TenantId::default(),
        expr: expr.to_owned(),
        start: TimestampNs::from_secs(0),
        end: TimestampNs::from_secs(99),
        step: SpanNs::from_ms(step_ms),
        options: Options::default(),
    }
}

fn range_ms(engine: &Engine, expr: &str, step_ms: u64) -> Result<(), QueryError> {
    block_on(engine.range(&over_samples(expr, step_ms))).map(drop)
}

#[test]
fn a_query_of_too_many_histograms_is_refused_as_one_of_too_many_floats() {
    let read = 5 * 100 * weight();
    let refusal = |max: usize| {
        format!("the query needs more than {max} samples; ask for less time, fewer series or a longer step")
    };
    let engine = limited(read - 1, stored(5, 100));
    for expr in ["h", "h[2m]", "rate(h[2m])", "histogram_count(sum(h))", "rate(h[2m:1s])"] {
        assert_eq!(
            instant(&engine, expr).unwrap_err().to_string(),
            refusal(read - 1),
            "{expr}"
        );
        if expr != "h[2m]" {
            assert_eq!(
                range(&engine, expr, 11).unwrap_err().to_string(),
                refusal(read - 1),
                "{expr}"
            );
        }
    }
    let engine = limited(read + 1000, stored(5, 100));
    for expr in ["h", "h[2m]", "rate(h[2m])", "histogram_count(sum(h))"] {
        instant(&engine, expr).unwrap_or_else(|e| panic!("{expr}: {e}"));
    }
}

/// How often a query let others have their turn.
fn turns(engine: &Engine, expr: &str, step_ms: u64) -> usize {
    let q = over_samples(expr, step_ms);
    let mut run = Box::pin(engine.range(&q));
    let mut turns = 0;
    loop {
        match (&mut run).now_or_never() {
            Some(answer) => {
                answer.unwrap();
                return turns;
            }
            None => turns += 1,
        }
    }
}

/// A query of native histograms that was given up went on for minutes, and kept its thread from others.
#[test]
fn long_work_on_histograms_gives_way_and_so_can_be_given_up() {
    let engine = limited(usize::MAX, stored(200, 100));
    let of_floats = turns(&engine, "count(h)", 200);
    assert!(turns(&engine, "sum(h)", 200) > of_floats);
    assert!(turns(&engine, "h + h", 200) > of_floats);
    assert!(turns(&engine, "histogram_stddev(h)", 200) > of_floats);
    let engine = limited(usize::MAX, stored(1, 100));
    assert!(turns(&engine, "rate(h[2m])", 50) > 0);
    assert!(turns(&engine, "avg_over_time(h[1m:1s])", 50) > 0);
}

#[test]
fn what_is_made_of_histograms_counts_as_what_it_takes() {
    // Two series are read and 1,000 steps made of each; the sums of them are as much again.
    let steps = 991 * 2 * weight();
    let made = |times: usize| limited(times * steps, stored(2, 100));
    range_ms(&made(2), "h", 100).unwrap();
    for expr in ["h * 2", "h + h", "-h"] {
        range_ms(&made(8), expr, 100).unwrap_or_else(|e| panic!("{expr}: {e}"));
        assert!(
            matches!(
                range_ms(&made(1), expr, 100),
                Err(QueryError::TooLarge { what: "samples", .. })
            ),
            "{expr}"
        );
    }
}

//! What a query costs when the shard computes, and when it hands over samples or lines: `cargo bench -p hindcast-query`.
//!
//! Thread CPU time, the best of some runs: other work on the machine hardly shows. One shard in memory, 1,600 counters
//! every 15 s for six hours, and two million lines of eight streams in a day.

use futures::executor::block_on;
use hindcast_env::SimDisk;
use hindcast_model::{Labels, Owner, SpanNs, TenantId, TimestampNs};
use hindcast_query::reduce::Reducer;
use hindcast_query::replica;
use hindcast_query::shards::{
    Columns, ColumnsRequest, Completeness, CountsRequest, LabelsRequest, LinesRequest, NativeSeries, SeriesColumn,
    SeriesRequest, Shards, ShardsError,
};
use hindcast_query::{Engine, Limits, LogsQuery, Options, RangeQuery};
use hindcast_storage::points::Points;
use hindcast_storage::read::{Direction, SeriesData, StreamCounts, StreamData};
use hindcast_storage::rows::{Rows, Run};
use hindcast_storage::{RawLine, Shard, ShardConfig, ShardReader};
use std::sync::Arc;

const SERIES: u32 = 1_600;
const INSTANCES: u32 = 16;
const SCRAPE_NS: i64 = 15_000_000_000;
const SCRAPES: i64 = 6 * 3600 / 15 + 20;
const STREAMS: u32 = 8;
const LINES: i64 = 2_000_000;
const DAY_NS: i64 = 86_400_000_000_000;
const RUNS: usize = 7;

type Answer<T> = Result<(Vec<T>, Completeness), ShardsError>;

/// One shard; `pushes` is whether it computes itself.
struct One {
    reader: ShardReader,
    pushes: bool,
}

#[async_trait::async_trait]
impl Shards for One {
    async fn series(&self, r: SeriesRequest) -> Answer<SeriesData> {
        let found = replica::series(&self.reader, &r, None).unwrap();
        Ok((found, Completeness::default()))
    }

    async fn columns(&self, r: ColumnsRequest) -> Result<(Columns, Completeness), ShardsError> {
        if self.pushes {
            let found = replica::columns(&self.reader, &r, None).unwrap();
            return Ok((found, Completeness::default()));
        }
        let (series, whole) = self.series(r.series).await?;
        let mut reducer = Reducer::default();
        let column = |s: SeriesData| {
            let mut points = Points::default();
            s.samples.iter().for_each(|s| points.push(s.at.0, s.value));
            SeriesColumn {
                values: reducer.points(&r.reduction, &points),
                fingerprint: s.labels.fingerprint(),
                labels: s.labels,
                owner: s.owner,
                slot: s.slot,
                old: Default::default(),
            }
        };
        let columns = series.into_iter().map(column).collect();
        let all = Columns {
            columns,
            ..Columns::default()
        };
        Ok((all, whole))
    }

    async fn natives(&self, r: SeriesRequest) -> Answer<NativeSeries> {
        let found = replica::natives(&self.reader, &r, None).unwrap();
        Ok((found, Completeness::default()))
    }

    async fn lines(&self, r: LinesRequest) -> Answer<StreamData> {
        let found = replica::lines(&self.reader, &r, None).unwrap();
        Ok((found, Completeness::default()))
    }

    async fn line_counts(&self, r: CountsRequest) -> Answer<StreamCounts> {
        if self.pushes {
            let found = replica::line_counts(&self.reader, &r, None).unwrap();
            return Ok((found, Completeness::default()));
        }
        let lines = LinesRequest {
            tenant: r.tenant,
            matchers: r.matchers,
            from: r.from,
            to: r.bounds[r.bounds.len() - 1],
            as_of: None,
            owners: None,
            filter: r.filter,
            limit: None,
            direction: Direction::Forward,
        };
        let (streams, whole) = self.lines(lines).await?;
        let counts = |s: StreamData| {
            let upto = |b: &TimestampNs| s.lines.partition_point(|l| l.at <= *b) as u64;
            StreamCounts {
                counts: r.bounds.iter().map(upto).collect(),
                labels: s.labels,
                owner: s.owner,
                slot: s.slot,
            }
        };
        Ok((streams.into_iter().map(counts).collect(), whole))
    }

    async fn label_sets(&self, _: LabelsRequest) -> Answer<Labels> {
        unreachable!("nothing here asks")
    }

    async fn complete_to(&self, _: &TenantId) -> Result<TimestampNs, ShardsError> {
        unreachable!("nothing here asks")
    }
}

fn filled() -> Shard {
    let tenant = TenantId::default();
    let (mut shard, _) = Shard::open(Arc::new(SimDisk::new()), "s", ShardConfig::default()).unwrap();
    let labels = |i: u32| {
        let (instance, device) = ((i / (SERIES / INSTANCES)).to_string(), i.to_string());
        Labels::from_pairs([("__name__", "x_total"), ("device", &device), ("instance", &instance)])
    };
    let ids: Vec<u32> = (0..SERIES)
        .map(|i| shard.define(&tenant, false, &labels(i), &Owner::None))
        .collect();
    let mut counters = vec![0u64; SERIES as usize];
    let mut index = 0;
    for scrape in 0..SCRAPES {
        for (i, c) in counters.iter_mut().enumerate() {
            *c += (i as u64 * 7 + scrape as u64 * 13) % 90;
        }
        let values: Vec<u8> = counters.iter().flat_map(|c| (*c as f64).to_le_bytes()).collect();
        let rows = Rows {
            times: &[scrape * SCRAPE_NS],
            runs: &[Run {
                first: ids[0],
                len: SERIES,
            }],
            values: &values,
        };
        index += 1;
        assert!(shard.push_rows(index, &rows, |_, _, _| {}));
        shard.advance(index);
        if scrape % 480 == 479 {
            shard.flush(&[]).unwrap();
        }
    }
    let streams: Vec<u32> = (0..STREAMS)
        .map(|s| {
            shard.define(
                &tenant,
                true,
                &Labels::from_pairs([("app", &s.to_string())]),
                &Owner::None,
            )
        })
        .collect();
    for n in 0..LINES {
        let text = format!(
            "level=info path=/api/v1/items/{} status=200 ms={}",
            n * 7919 % 10_007,
            n % 311
        );
        let line = RawLine {
            at: n * (DAY_NS / LINES),
            line: text.as_bytes(),
            metadata: &[],
        };
        let stream = streams[n as usize % streams.len()];
        index += 1;
        assert!(shard.push_lines(index, stream, [line].into_iter()));
        shard.advance(index);
        if n % 400_000 == 399_999 {
            shard.flush(&[]).unwrap();
        }
    }
    shard
}

/// What this thread has computed so far, in milliseconds.
fn thread_cpu_ms() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux tells");
    let ns: u64 = stat.split(' ').next().and_then(|n| n.parse().ok()).expect("a number");
    ns as f64 / 1e6
}

fn best(name: &str, pushes: bool, mut run: impl FnMut()) {
    let each = (0..RUNS).map(|_| {
        let before = thread_cpu_ms();
        run();
        thread_cpu_ms() - before
    });
    let best = each.fold(f64::INFINITY, f64::min);
    println!(
        "{name:40} {:10} {best:9.1} ms",
        if pushes { "in shard" } else { "handed over" }
    );
}

fn main() {
    let shard = filled();
    for pushes in [false, true] {
        let one = One {
            reader: shard.reader(),
            pushes,
        };
        let e = Engine::new(Arc::new(one), Limits::default());
        for expr in [
            "sum by (instance) (rate(x_total[5m]))",
            "sum by (instance) (rate(x_total[1h]))",
            "sum by (instance) (x_total)",
            "avg by (instance) (avg_over_time(x_total[5m]))",
        ] {
            let q = RangeQuery {
                tenant: TenantId::default(),
                expr: expr.to_owned(),
                start: TimestampNs::from_secs(300),
                end: TimestampNs::from_secs(300 + 6 * 3600),
                step: SpanNs::from_secs(60),
                options: Options::default(),
            };
            best(expr, pushes, || drop(block_on(e.range(&q)).unwrap()));
        }
        for filter in ["", "|= `status=200`", "|= `items/77 `"] {
            let expr = format!("sum by (app) (count_over_time({{app=~\".+\"}} {filter} [10m]))");
            let q = LogsQuery {
                tenant: TenantId::default(),
                expr: expr.clone(),
                start: TimestampNs::from_secs(600),
                end: TimestampNs::from_secs(86_400),
                step: Some(SpanNs::from_secs(600)),
                limit: 0,
                direction: Direction::Forward,
                options: Options::default(),
            };
            best(&expr, pushes, || drop(block_on(e.logs(&q)).unwrap()));
        }
    }
}

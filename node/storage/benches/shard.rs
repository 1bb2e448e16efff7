//! How fast a shard takes entries and gives them back: `cargo bench -p hindcast-storage`.
//!
//! One entry holds a scrape of ten hosts: 5,000 series of eight labels, one sample each.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hindcast_env::SimDisk;
use hindcast_model::resource::owner;
use hindcast_model::{Labels, Matcher, Owner, TenantId, TimestampNs};
use hindcast_storage::read::SelectSeries;
use hindcast_storage::rows::{Rows, Run};
use hindcast_storage::{Shard, ShardConfig};
use std::hint::black_box;
use std::sync::Arc;

const SERIES: usize = 5_000;
const SCRAPES: u64 = 480;
const HOSTS: usize = 10;

/// Label sets and owners of `SERIES` series of ten hosts.
fn series() -> Vec<(Labels, Owner)> {
    let one = |i: usize| {
        let labels: Labels = [
            ("__name__", format!("node_metric_{}", i % 50)),
            ("instance", format!("web-{}:9100", i / 500)),
            ("job", "node".to_owned()),
            ("device", format!("sd{}", i / 50 % 10)),
            ("mode", "idle".to_owned()),
            ("region", "eu-central-1".to_owned()),
            ("zone", "eu-central-1b".to_owned()),
            ("team", "platform".to_owned()),
        ]
        .into_iter()
        .map(|(n, v)| (n.to_owned(), v))
        .collect();
        let owner = owner(&TenantId::default(), &labels, &[]);
        (labels, owner)
    };
    (0..SERIES).map(one).collect()
}

/// A shard that takes scrapes.
struct Filling {
    shard: Shard,
    runs: Vec<Run>,
    values: Vec<u8>,
    index: u64,
}

impl Filling {
    fn new() -> Self {
        let mut shard = open();
        let ids = series()
            .iter()
            .map(|(l, o)| shard.define(&TenantId::default(), false, l, o))
            .collect::<Vec<u32>>();
        assert!(ids.is_sorted());
        let host = |h: usize| Run {
            first: ids[0] + (h * SERIES / HOSTS) as u32,
            len: (SERIES / HOSTS) as u32,
        };
        Self {
            shard,
            runs: (0..HOSTS).map(host).collect(),
            values: vec![],
            index: 0,
        }
    }

    /// One entry: a row of each host.
    fn scrape(&mut self) {
        self.index += 1;
        for (h, run) in self.runs.iter().enumerate() {
            let value = |i: u32| (self.index * u64::from(i % 7)) as f64;
            self.values.clear();
            self.values.extend(run.ids().flat_map(|i| value(i).to_le_bytes()));
            let rows = Rows {
                times: &[self.index as i64 * 15_000_000_000 + h as i64],
                runs: std::slice::from_ref(run),
                values: &self.values,
            };
            assert!(self.shard.push_rows(self.index, &rows, |_, _, _| {}));
        }
        self.shard.advance(self.index);
    }
}

fn open() -> Shard {
    let opened = Shard::open(Arc::new(SimDisk::new()), "s", ShardConfig::default());
    opened.expect("a disk in memory opens").0
}

fn ingest(c: &mut Criterion) {
    let mut filling = Filling::new();
    let mut group = c.benchmark_group("ingest");
    group.throughput(Throughput::Elements(SERIES as u64));
    group.bench_function("scrapes of 5,000 known series", |b| {
        b.iter(|| {
            filling.scrape();
            if filling.index.is_multiple_of(2000) {
                filling.shard.flush(b"").expect("a disk in memory takes it");
            }
        });
    });
    group.finish();
}

fn scan(c: &mut Criterion) {
    let mut filling = Filling::new();
    (0..SCRAPES).for_each(|_| filling.scrape());
    let (mut shard, tenant) = (filling.shard, TenantId::default());
    let reader = shard.reader();
    let select = |matchers| SelectSeries {
        tenant: tenant.clone(),
        matchers,
        from: TimestampNs::MIN,
        to: TimestampNs::MAX,
        as_of: None,
        owners: None,
    };
    let mut group = c.benchmark_group("scan");
    for (what, matchers) in [
        ("everything", vec![]),
        ("one metric", vec![Matcher::equal("__name__", "node_metric_7")]),
    ] {
        let q = select(matchers);
        let rows: usize = reader
            .series(&q)
            .expect("it reads")
            .iter()
            .map(|s| s.samples.len())
            .sum();
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(format!("{what}, head"), |b| b.iter(|| black_box(reader.series(&q))));
    }
    group.throughput(Throughput::Elements(SERIES as u64 * SCRAPES));
    group.bench_function("flush", |b| {
        b.iter_batched(
            || {
                let mut filling = Filling::new();
                (0..SCRAPES).for_each(|_| filling.scrape());
                filling.shard
            },
            |mut shard| shard.flush(b"").expect("a disk in memory takes it"),
            criterion::BatchSize::PerIteration,
        );
    });
    shard.flush(b"").expect("a disk in memory takes it");
    for (what, matchers) in [
        ("everything", vec![]),
        ("one metric", vec![Matcher::equal("__name__", "node_metric_7")]),
    ] {
        let q = select(matchers);
        let rows: usize = reader
            .series(&q)
            .expect("it reads")
            .iter()
            .map(|s| s.samples.len())
            .sum();
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(format!("{what}, segment"), |b| b.iter(|| black_box(reader.series(&q))));
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10);
    targets = ingest, scan
}
criterion_main!(benches);

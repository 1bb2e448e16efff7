//! How fast a shard takes entries and gives them back: `cargo bench -p hindcast-storage`.
//!
//! One entry is a scrape: 5,000 series, one sample each, eight labels.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hindcast_env::SimDisk;
use hindcast_model::resource::owner;
use hindcast_model::{Labels, Matcher, Sample, SeriesBlock, TenantId, TimestampNs};
use hindcast_storage::read::SelectSeries;
use hindcast_storage::{Shard, ShardConfig};
use std::hint::black_box;
use std::sync::Arc;

const SERIES: usize = 5_000;
const SCRAPES: u64 = 100;

fn scrape() -> Vec<SeriesBlock> {
    let block = |i: usize| {
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
        SeriesBlock {
            owner: owner(&TenantId::default(), &labels, &[]),
            labels,
            samples: vec![],
        }
    };
    (0..SERIES).map(block).collect()
}

fn fill(blocks: &mut [SeriesBlock], scrape: u64) {
    for (i, b) in blocks.iter_mut().enumerate() {
        b.samples.clear();
        b.samples.push(Sample {
            at: TimestampNs::from_secs(15 * scrape as i64),
            value: (scrape * (i as u64 % 7)) as f64,
        });
    }
}

fn open() -> Shard {
    let opened = Shard::open(Arc::new(SimDisk::new()), "s", ShardConfig::default());
    opened.expect("a disk in memory opens").0
}

fn ingest(c: &mut Criterion) {
    let mut blocks = scrape();
    let (mut shard, mut index, tenant) = (open(), 0, TenantId::default());
    let mut group = c.benchmark_group("ingest");
    group.throughput(Throughput::Elements(SERIES as u64));
    group.bench_function("scrape of 5,000 known series", |b| {
        b.iter(|| {
            index += 1;
            fill(&mut blocks, index);
            shard.write(index, &tenant, &blocks, &[]);
            shard.advance(index);
            if index % 2000 == 0 {
                shard.flush(b"").expect("a disk in memory takes it");
            }
        });
    });
    group.finish();
}

fn scan(c: &mut Criterion) {
    let mut blocks = scrape();
    let (mut shard, tenant) = (open(), TenantId::default());
    for index in 1..=SCRAPES {
        fill(&mut blocks, index);
        shard.write(index, &tenant, &blocks, &[]);
        shard.advance(index);
    }
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
        group.bench_function(format!("{what}, memtable"), |b| b.iter(|| black_box(reader.series(&q))));
    }
    group.throughput(Throughput::Elements(SERIES as u64 * SCRAPES));
    group.bench_function("flush", |b| {
        b.iter_batched(
            || {
                let mut shard = open();
                for index in 1..=SCRAPES {
                    fill(&mut blocks, index);
                    shard.write(index, &tenant, &blocks, &[]);
                    shard.advance(index);
                }
                shard
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

//! Values of one host to pages and back, and a scan over them: `cargo bench -p hindcast-storage --bench metric`.
//!
//! The series are made up, in about the proportions of a host's exporter: two thirds do not change, the others are
//! counters of steady or bursty rate, memory gauges in whole pages, temperatures, and a few floats of full precision.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use hindcast_storage::kernel::{Function, Running};
use hindcast_storage::metric::{Encoder, Page, Scratch, push_page};
use std::hint::black_box;

const SERIES: u64 = 300;

fn noise(i: u64) -> u64 {
    let z = (i ^ (i >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn series(s: u64, rows: u64) -> Vec<f64> {
    let mut sum = noise(s) % 1_000_000;
    let mut next = |step: u64| {
        sum += step;
        sum as f64
    };
    let each = |i: u64| {
        let n = noise(s << 32 | i);
        match s % 30 {
            // CPU seconds, in hundredths.
            0 | 1 => next(90 + n % 20) / 100.0,
            // Bytes sent: bursts.
            2 => next(if n.is_multiple_of(5) { n % 100_000 } else { n % 300 }),
            // Errors: rare.
            3 | 4 => next(u64::from(n.is_multiple_of(200))),
            5 | 6 => (4096 * (500_000 + n % 3000)) as f64,
            7 => (400 + (n % 16)) as f64 / 10.0,
            8 if s == 8 => (n as f64).sqrt(),
            8 | 9 => next(n % 3),
            _ => (s * 17) as f64,
        }
    };
    (0..rows).map(each).collect()
}

fn pages(c: &mut Criterion) {
    for rows in [120u64, 480, 1200] {
        let all: Vec<Vec<f64>> = (0..SERIES).map(|s| series(s, rows)).collect();
        let mut group = c.benchmark_group(format!("page-{rows}"));
        group.throughput(Throughput::Elements(SERIES * rows));
        group.bench_function("encode", |b| {
            let mut encoder = Encoder::default();
            b.iter_batched_ref(
                Vec::new,
                |out| all.iter().for_each(|v| encoder.encode(black_box(v), out)),
                BatchSize::SmallInput,
            );
        });
        let mut encoder = Encoder::default();
        let encode = |v: &Vec<f64>| {
            let mut out = vec![];
            encoder.encode(v, &mut out);
            out
        };
        let encoded: Vec<Vec<u8>> = all.iter().map(encode).collect();
        let page = |bytes| Page::parse(bytes, rows as usize).expect("it was encoded a moment ago");
        group.bench_function("decode", |b| {
            let (mut scratch, mut out) = (Scratch::default(), vec![0.0; rows as usize]);
            b.iter(|| {
                for bytes in &encoded {
                    page(bytes)
                        .decode(&mut out, &mut scratch)
                        .expect("it was encoded a moment ago");
                    black_box(&out);
                }
            });
        });
        group.bench_function("scan-increase", |b| {
            let mut scratch = Scratch::default();
            b.iter(|| {
                for bytes in &encoded {
                    let mut running = Running::new(Function::Increase);
                    let pushed = push_page(&page(bytes), 0..rows as usize, &mut running, &mut scratch);
                    pushed.expect("it was encoded a moment ago");
                    black_box(running.finish());
                }
            });
        });
        group.finish();
    }
}

criterion_group!(benches, pages);
criterion_main!(benches);

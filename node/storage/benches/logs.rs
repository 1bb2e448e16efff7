//! How fast lines become blocks and are found in them again: `cargo bench -p hindcast-storage --bench logs`.
//!
//! One block of 2 MiB of three kinds of lines, made here; throughput is bytes of their text.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hindcast_storage::logs::{Block, BlockEncoder, BlockInfo, Filter, RawLine, Settled};
use std::hint::black_box;

const TEXT_BYTES: usize = 2 << 20;
const START: i64 = 1_700_000_000_000_000_000;
const STEP: i64 = 137_000_000;

fn lines() -> Vec<Vec<u8>> {
    let (mut all, mut bytes, mut seed) = (vec![], 0, 7u64);
    while bytes < TEXT_BYTES {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let (i, r) = (all.len(), seed >> 16);
        let at = format!(
            "{:02}:{:02}:{:02},{:03}",
            i / 26_280 % 24,
            i / 438 % 60,
            i / 7 % 60,
            r % 1000
        );
        let line = match r % 5 {
            0 | 1 => format!(
                "{at} INFO  [worker-{}] request {:016x} took {} ms",
                r % 16,
                seed,
                r % 3000
            ),
            2 | 3 => format!(
                "{at} WARN  Failed password for user{} from 10.1.{}.{} port {} ssh2",
                r % 40,
                r % 9,
                r % 251,
                1024 + r % 60_000
            ),
            _ => format!(
                "{at} INFO  PacketResponder {} for block blk_-{} terminating",
                r % 3,
                seed >> 2
            ),
        };
        bytes += line.len();
        all.push(line.into_bytes());
    }
    all
}

fn raw(lines: &[Vec<u8>]) -> impl Iterator<Item = RawLine<'_>> {
    lines.iter().enumerate().map(|(i, line)| RawLine {
        at: START + STEP * i as i64,
        line,
        metadata: &[],
    })
}

fn encoded(lines: &[Vec<u8>], level: i32) -> (BlockInfo, bytes::Bytes) {
    let mut out = vec![];
    let info = BlockEncoder::default().encode(raw(lines), level, &mut out);
    (info, out.into())
}

fn encode(c: &mut Criterion) {
    let lines = lines();
    let mut group = c.benchmark_group("log block");
    group.throughput(Throughput::Bytes(TEXT_BYTES as u64));
    for (what, level) in [("encode, flush", 1), ("encode, compaction", 9)] {
        let (mut encoder, mut out) = (BlockEncoder::default(), vec![]);
        group.bench_function(what, |b| {
            b.iter(|| {
                out.clear();
                encoder.encode(raw(&lines), level, &mut out)
            });
        });
    }
    let (info, sections) = encoded(&lines, 1);
    println!("{} of {} bytes", info.stored(), info.raw_bytes);
    let block = || Block::in_memory(info.clone(), sections.clone());
    group.bench_function("decode all", |b| {
        b.iter(|| block().lines(0..lines.len()).map(|l| l.len()))
    });
    group.bench_function("newest 1,000", |b| {
        b.iter(|| block().lines(lines.len() - 1000..lines.len()).map(|l| l.len()));
    });
    group.finish();
}

fn search(c: &mut Criterion) {
    let lines = lines();
    let (info, sections) = encoded(&lines, 1);
    let mut group = c.benchmark_group("log search");
    group.throughput(Throughput::Bytes(TEXT_BYTES as u64));
    let regex = |p: &str| Filter::regex(p).expect("it compiles");
    for (what, filter) in [
        ("needle of an absent word", Filter::contains(b"NEEDLE-7f3a9c")),
        ("word of a template", Filter::contains(b"password for")),
        ("piece of a value", Filter::contains(b"port 4711")),
        ("regex", regex("blk_-?[0-9]+ terminating")),
        ("regex, any case", regex("(?i)fail(ed|ure).*from [0-9]+[.][0-9]+")),
    ] {
        group.bench_function(what, |b| {
            b.iter(|| {
                let block = Block::in_memory(info.clone(), sections.clone());
                black_box(block.count(&filter, i64::MIN, i64::MAX)).expect("it reads")
            });
        });
    }
    let mut marked = lines.clone();
    let place = marked.len() / 2;
    marked[place].extend_from_slice(b" NEEDLE-7f3a9c");
    let (marked_info, marked_sections) = encoded(&marked, 1);
    let needle = Filter::contains(b"NEEDLE-7f3a9c");
    group.bench_function("one line found and built", |b| {
        b.iter(|| {
            let block = Block::in_memory(marked_info.clone(), marked_sections.clone());
            let mut rows = vec![];
            let found = block.matches(&needle, &mut Settled::default(), i64::MIN, i64::MAX, &mut rows);
            found.expect("it reads");
            block.rows_of(&rows).expect("it reads").len()
        });
    });
    group.bench_function("count per minute", |b| {
        b.iter(|| {
            let block = Block::in_memory(info.clone(), sections.clone());
            let times = block.times().expect("they read");
            let minutes = (info.last - info.first) / 60_000_000_000;
            (0..=minutes)
                .map(|m| times.before(info.first + m * 60_000_000_000))
                .sum::<usize>()
        });
    });
    group.finish();
}

criterion_group!(benches, encode, search);
criterion_main!(benches);

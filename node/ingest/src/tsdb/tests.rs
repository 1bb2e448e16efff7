//! Directories as Prometheus writes them, made here, whole and damaged.

use super::{Damage, Finding, Flow, Place, Sink, Tally, Walk, chunk};
use expect_test::{Expect, expect};
use hindcast_env::{Disk, SimDisk};
use hindcast_model::{Labels, STALE_NAN_BITS};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fmt::Write;

fn uvarint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn varint(n: i64, out: &mut Vec<u8>) {
    uvarint((n << 1 ^ n >> 63) as u64, out);
}

fn text(t: &str, out: &mut Vec<u8>) {
    uvarint(t.len() as u64, out);
    out.extend_from_slice(t.as_bytes());
}

/// Bits, the highest first.
#[derive(Default)]
struct Written(Vec<bool>);

impl Written {
    fn bits(&mut self, value: u64, n: u32) {
        self.0.extend((0..n).rev().map(|i| value >> i & 1 == 1));
    }

    fn bytes(self) -> Vec<u8> {
        let byte = |c: &[bool]| {
            c.iter()
                .enumerate()
                .fold(0, |b, (i, bit)| b | u8::from(*bit) << (7 - i))
        };
        self.0.chunks(8).map(byte).collect()
    }

    /// Ones that lead, and the number in the width that they stand for.
    fn stepped(&mut self, value: i64, widths: &[u32]) {
        let last = widths.len() - 1;
        let fits = |w: u32| w == 64 || value > -(1i64 << w >> 1) && value <= 1i64 << w >> 1;
        let step = widths
            .iter()
            .position(|w| if *w == 0 { value == 0 } else { fits(*w) })
            .unwrap();
        for _ in 0..step {
            self.bits(1, 1);
        }
        if step < last {
            self.bits(0, 1);
        }
        self.bits(value as u64, widths[step]);
    }

    fn int(&mut self, value: i64) {
        self.stepped(value, &[0, 3, 6, 9, 12, 18, 25, 56, 64]);
    }

    fn uint(&mut self, value: u64) {
        let widths = [0, 3, 6, 9, 12, 18, 25, 56, 64];
        let step = widths.iter().position(|w| *w == 64 || value < 1 << w).unwrap();
        for _ in 0..step {
            self.bits(1, 1);
        }
        if step < 8 {
            self.bits(0, 1);
        }
        self.bits(value, widths[step]);
    }

    /// Never the short form: what it says is the same.
    fn xor(&mut self, before: f64, value: f64) {
        let changed = before.to_bits() ^ value.to_bits();
        if changed == 0 {
            return self.bits(0, 1);
        }
        let (leading, trailing) = (changed.leading_zeros().min(31), changed.trailing_zeros());
        let meaning = 64 - leading - trailing;
        self.bits(0b11, 2);
        self.bits(u64::from(leading), 5);
        self.bits(u64::from(meaning % 64), 6);
        self.bits(changed >> trailing, meaning);
    }
}

fn floats(rows: &[(i64, f64)]) -> Vec<u8> {
    let mut out = (rows.len() as u16).to_be_bytes().to_vec();
    varint(rows[0].0, &mut out);
    out.extend(rows[0].1.to_be_bytes());
    let mut bits = Written::default();
    let mut step = 0;
    for (i, pair) in rows.windows(2).enumerate() {
        let next = pair[1].0 - pair[0].0;
        if i == 0 {
            uvarint(next as u64, &mut out);
        } else {
            bits.stepped(next - step, &[0, 14, 17, 20, 64]);
        }
        step = next;
        bits.xor(pair[0].1, pair[1].1);
    }
    out.extend(bits.bytes());
    out
}

type Rows = Vec<(i64, f64)>;
type Set = BTreeMap<String, Rows>;

struct Dir(SimDisk);

impl Dir {
    fn new() -> Self {
        Self(SimDisk::default())
    }

    fn put(&self, path: &str, bytes: &[u8]) {
        if let Some((dir, _)) = path.rsplit_once('/') {
            self.0.create_dir_all(dir).unwrap();
        }
        self.0.create(path).unwrap().write_at(0, bytes).unwrap();
    }

    /// A block whose series have one chunk for every two samples.
    fn block(&self, name: &str, set: &Set, deleted: &[(usize, i64, i64)]) {
        let mut symbols: Vec<&str> = vec!["__name__", "j", "job"];
        symbols.extend(set.keys().map(String::as_str));
        symbols.sort_unstable();
        let mut index = 0xBAAA_D700u32.to_be_bytes().to_vec();
        index.push(2);
        let mut table = (symbols.len() as u32).to_be_bytes().to_vec();
        symbols.iter().for_each(|s| text(s, &mut table));
        section(&table, &mut index);
        let number = |s: &str| symbols.iter().position(|t| *t == s).unwrap() as u64;
        let mut chunks = 0x85BD_40DDu32.to_be_bytes().to_vec();
        chunks.extend([1, 0, 0, 0]);
        index.resize(index.len().next_multiple_of(16), 0);
        let series_at = index.len();
        let mut ids = vec![];
        for (metric, rows) in set {
            ids.push(index.len() as u64 / 16);
            let mut entry = vec![];
            uvarint(2, &mut entry);
            for s in ["__name__", metric, "job", "j"] {
                uvarint(number(s), &mut entry);
            }
            let packed: Vec<_> = rows.chunks(2).collect();
            uvarint(packed.len() as u64, &mut entry);
            let (mut to, mut place) = (0, 0);
            for (i, rows) in packed.iter().enumerate() {
                let (from, last) = (rows[0].0, rows[rows.len() - 1].0);
                if i == 0 {
                    varint(from, &mut entry);
                } else {
                    uvarint((from - to) as u64, &mut entry);
                }
                uvarint((last - from) as u64, &mut entry);
                if i == 0 {
                    uvarint(chunks.len() as u64, &mut entry);
                } else {
                    varint(chunks.len() as i64 - place, &mut entry);
                }
                (to, place) = (last, chunks.len() as i64);
                let data = floats(rows);
                uvarint(data.len() as u64, &mut chunks);
                let at = chunks.len();
                chunks.push(chunk::FLOATS);
                chunks.extend(data);
                chunks.extend(crc32c::crc32c(&chunks[at..]).to_be_bytes());
            }
            uvarint(entry.len() as u64, &mut index);
            index.extend(&entry);
            index.extend(crc32c::crc32c(&entry).to_be_bytes());
            index.resize(index.len().next_multiple_of(16), 0);
        }
        let postings_at = index.len();
        let mut list = (ids.len() as u32).to_be_bytes().to_vec();
        ids.iter().for_each(|id| list.extend((*id as u32).to_be_bytes()));
        section(&list, &mut index);
        let table_at = index.len();
        section(&0u32.to_be_bytes(), &mut index);
        let toc = [5, series_at, 0, 0, postings_at, table_at];
        let toc: Vec<u8> = toc.iter().flat_map(|at| (*at as u64).to_be_bytes()).collect();
        index.extend(&toc);
        index.extend(crc32c::crc32c(&toc).to_be_bytes());
        self.put(&format!("{name}/index"), &index);
        self.put(&format!("{name}/chunks/000001"), &chunks);
        let times = || set.values().flatten().map(|r| r.0);
        let (from, to) = (times().min().unwrap_or(0), times().max().unwrap_or(0) + 1);
        let meta = format!(
            r#"{{"minTime":{from},"maxTime":{to},"version":1,"stats":{{"numSeries":{}}}}}"#,
            set.len()
        );
        self.put(&format!("{name}/meta.json"), meta.as_bytes());
        if !deleted.is_empty() {
            let mut body = vec![];
            for (i, from, to) in deleted {
                uvarint(ids[*i], &mut body);
                varint(*from, &mut body);
                varint(*to, &mut body);
            }
            let mut file = 0x0130_BA30u32.to_be_bytes().to_vec();
            file.push(1);
            file.extend(&body);
            file.extend(crc32c::crc32c(&body).to_be_bytes());
            self.put(&format!("{name}/tombstones"), &file);
        }
    }

    fn walk(&self, from: Place, rows_max: usize, table: usize) -> Heard {
        let walk = Walk::open(&self.0).unwrap().with_table(table);
        let mut heard = Heard::new(rows_max);
        let _ = walk.run(from, Tally::default(), &mut heard);
        heard
    }

    fn all(&self) -> Heard {
        self.walk(Place::START, usize::MAX, 1 << 20)
    }

    fn flip(&self, path: &str, at: usize, by: u8) {
        let mut bytes = self.0.read(path).unwrap().to_vec();
        bytes[at] ^= by;
        self.put(path, &bytes);
    }
}

fn section(body: &[u8], out: &mut Vec<u8>) {
    out.extend((body.len() as u32).to_be_bytes());
    out.extend(body);
    out.extend(crc32c::crc32c(body).to_be_bytes());
}

fn series_record(series: &[(u64, &str)]) -> Vec<u8> {
    let mut out = vec![1];
    for (id, metric) in series {
        out.extend(id.to_be_bytes());
        uvarint(2, &mut out);
        for t in ["__name__", metric, "job", "j"] {
            text(t, &mut out);
        }
    }
    out
}

fn samples_record(rows: &[(u64, i64, f64)]) -> Vec<u8> {
    let mut out = vec![2];
    out.extend(rows[0].0.to_be_bytes());
    out.extend(rows[0].1.to_be_bytes());
    for (id, at, value) in rows {
        varint(*id as i64 - rows[0].0 as i64, &mut out);
        varint(at - rows[0].1, &mut out);
        out.extend(value.to_be_bytes());
    }
    out
}

/// The newer form: each series as a difference from the one before, and start times.
fn samples_2_record(rows: &[(u64, i64, f64)]) -> Vec<u8> {
    let mut out = vec![11];
    let mut before = 0;
    for (i, (id, at, value)) in rows.iter().enumerate() {
        varint(*id as i64 - before, &mut out);
        before = *id as i64;
        varint(if i == 0 { *at } else { at - rows[0].1 }, &mut out);
        match i {
            0 => varint(5, &mut out),
            1 => {
                out.push(2);
                varint(-3, &mut out);
            }
            _ => out.push((i % 2) as u8),
        }
        out.extend(value.to_be_bytes());
    }
    out
}

fn deleted_record(id: u64, from: i64, to: i64) -> Vec<u8> {
    let mut out = vec![3];
    out.extend(id.to_be_bytes());
    varint(from, &mut out);
    varint(to, &mut out);
    out
}

/// Records in pages; each third one packed by snappy, each third by zstd.
fn segment(records: &[Vec<u8>]) -> Vec<u8> {
    const PAGE: usize = 32 * 1024;
    let mut out: Vec<u8> = vec![];
    for (i, record) in records.iter().enumerate() {
        let (flag, packed) = match i % 3 {
            0 => (0, record.clone()),
            1 => (8, snap::raw::Encoder::new().compress_vec(record).unwrap()),
            _ => (16, zstd::encode_all(&record[..], 1).unwrap()),
        };
        let mut rest = &packed[..];
        let mut first = true;
        loop {
            let mut left = PAGE - out.len() % PAGE;
            if left <= 7 {
                out.resize(out.len() + left, 0);
                left = PAGE;
            }
            let n = rest.len().min(left - 7);
            let last = n == rest.len();
            let kind: u8 = match (first, last) {
                (true, true) => 1,
                (true, false) => 2,
                (false, false) => 3,
                (false, true) => 4,
            };
            out.push(kind | flag);
            out.extend((n as u16).to_be_bytes());
            out.extend(crc32c::crc32c(&rest[..n]).to_be_bytes());
            out.extend(&rest[..n]);
            (rest, first) = (&rest[n..], false);
            if last {
                break;
            }
        }
    }
    out
}

fn head_file(chunks: &[(u64, u8, Vec<u8>)]) -> Vec<u8> {
    let mut out = 0x0130_BC91u32.to_be_bytes().to_vec();
    out.extend([1, 0, 0, 0]);
    for (series, encoding, data) in chunks {
        let at = out.len();
        out.extend(series.to_be_bytes());
        out.extend([0; 16]);
        out.push(*encoding);
        uvarint(data.len() as u64, &mut out);
        out.extend(data);
        out.extend(crc32c::crc32c(&out[at..]).to_be_bytes());
    }
    out
}

/// Everything that is told.
#[derive(Debug)]
struct Heard {
    rows: Vec<(String, i64, u64)>,
    found: Vec<Finding>,
    place: Place,
    tally: Tally,
    /// Rows before the last place.
    settled: usize,
    rows_max: usize,
}

impl Heard {
    fn new(rows_max: usize) -> Self {
        Self {
            rows: vec![],
            found: vec![],
            place: Place::START,
            tally: Tally::default(),
            settled: 0,
            rows_max,
        }
    }

    /// What a store keeps of it.
    fn set(&self) -> BTreeMap<(String, i64), u64> {
        self.rows.iter().map(|(l, at, v)| ((l.clone(), *at), *v)).collect()
    }

    fn damage(&self) -> Vec<&Damage> {
        let damage = self.found.iter().filter_map(|f| match f {
            Finding::Damage(d) => Some(d),
            Finding::Torn { .. } => None,
        });
        damage.collect()
    }
}

impl Sink for Heard {
    fn row(&mut self, labels: &Labels, at_ms: i64, value: f64) -> Flow {
        if self.rows.len() == self.rows_max {
            return Flow::Break(());
        }
        self.rows.push((labels.to_string(), at_ms, value.to_bits()));
        Flow::Continue(())
    }
    /// Its line stands with the labels.
    fn native(&mut self, labels: &Labels, at_ms: i64, histogram: Option<&hindcast_model::Histogram>) -> Flow {
        if self.rows.len() == self.rows_max {
            return Flow::Break(());
        }
        let line = histogram.map_or_else(|| "stale".to_owned(), |h| h.to_line().unwrap());
        self.rows.push((format!("{labels} {line}"), at_ms, 0));
        Flow::Continue(())
    }
    fn at(&mut self, place: &Place, tally: &Tally, _: u64) -> Flow {
        self.place = *place;
        self.tally = tally.clone();
        self.settled = self.rows.len();
        Flow::Continue(())
    }
    fn found(&mut self, finding: Finding) {
        self.found.push(finding);
    }
}

fn check(heard: &Heard, expect: Expect) {
    let mut out = String::new();
    for (labels, at, value) in &heard.rows {
        writeln!(out, "{labels} {at} {}", f64::from_bits(*value)).unwrap();
    }
    for finding in &heard.found {
        writeln!(out, "{finding}").unwrap();
    }
    expect.assert_eq(&out);
}

const BLOCK: &str = "01M8M2G1X3ACTF5P8ZM7HW40EH";

fn set(series: &[(&str, &[(i64, f64)])]) -> Set {
    series
        .iter()
        .map(|(metric, rows)| ((*metric).to_owned(), rows.to_vec()))
        .collect()
}

/// A block up to 40, and a head behind it that begins a little earlier.
fn whole() -> Dir {
    let dir = Dir::new();
    let a = [(10, 1.0), (20, f64::NAN), (30, -0.0), (40, 1e9)];
    dir.block(
        BLOCK,
        &set(&[("a", &a), ("b", &[(10, 5.0), (40, 6.0)])]),
        &[(1, 35, 45)],
    );
    let checkpoint = [
        series_record(&[(1, "a"), (2, "b")]),
        samples_record(&[(1, 30, -0.0), (2, 50, 7.0)]),
    ];
    dir.put("wal/checkpoint.00000003/00000000", &segment(&checkpoint));
    // Left behind by a Prometheus that died before it took it away: the checkpoint holds what counts of it.
    dir.put("wal/00000003", &segment(&[samples_record(&[(1, 1, 1.0)])]));
    let first = [
        samples_record(&[(1, 40, 1e9), (2, 60, 8.0), (1, 61, 2.0)]),
        series_record(&[(7, "late")]),
        deleted_record(2, 55, 65),
    ];
    dir.put("wal/00000004", &segment(&first));
    dir.put(
        "wal/00000005",
        &segment(&[samples_2_record(&[
            (1, 70, 3.0),
            (7, 71, 4.0),
            (7, 72, 4.5),
            (9, 72, 1.0),
        ])]),
    );
    dir.put("wbl/00000000", &segment(&[samples_record(&[(7, 15, 0.5)])]));
    let head = [
        (1, chunk::FLOATS, floats(&[(50, 1.25), (61, 2.0)])),
        (7, 0x80 | chunk::FLOATS, floats(&[(5, 0.25), (6, 0.75)])),
    ];
    let mut head = head_file(&head);
    head.extend([0; 100]);
    dir.put("chunks_head/000001", &head);
    dir
}

#[test]
fn blocks_come_first_then_what_the_head_has_beyond_them() {
    let heard = whole().all();
    check(
        &heard,
        expect![[r#"
            a{job="j"} 10 1
            a{job="j"} 20 NaN
            a{job="j"} 30 -0
            a{job="j"} 40 1000000000
            b{job="j"} 10 5
            a{job="j"} 50 1.25
            a{job="j"} 61 2
            late{job="j"} 5 0.25
            late{job="j"} 6 0.75
            b{job="j"} 50 7
            a{job="j"} 61 2
            a{job="j"} 70 3
            late{job="j"} 71 4
            late{job="j"} 72 4.5
            late{job="j"} 15 0.5
        "#]],
    );
    expect![[r#"
        Tally {
            blocks: 1,
            series: 5,
            samples: 15,
            histograms: 0,
            histograms_refused: 0,
            histograms_why: "",
            deleted: 2,
            in_blocks: 2,
            of_unknown_series: 1,
            exemplars: 0,
            metadata: 0,
            unknown: 0,
        }
    "#]]
    .assert_debug_eq(&heard.tally);
}

#[test]
fn the_series_of_the_head_may_be_read_in_many_passes() {
    let dir = whole();
    let (once, often) = (dir.all(), dir.walk(Place::START, usize::MAX, 1));
    assert_eq!(once.set(), often.set());
    assert_eq!(once.tally, often.tally);
    assert!(often.place.part > once.place.part + 50, "{:?}", often.place);
}

#[test]
fn a_tail_that_was_being_written_is_no_damage_and_one_that_was_damaged_is() {
    let dir = whole();
    let all = dir.all();
    let mut tail = dir.0.read("wal/00000005").unwrap().to_vec();
    let two = [samples_record(&[(1, 80, 9.0)]), samples_record(&[(1, 81, 9.5)])];
    let more = segment(&two);
    // Not packed, then packed: the page goes on.
    tail.extend(&more);
    for cut in 1..more.len() {
        dir.put("wal/00000005", &tail[..tail.len() - cut]);
        let heard = dir.all();
        assert_eq!(heard.damage(), Vec::<&Damage>::new(), "{cut}");
        assert!(heard.set().len() >= all.set().len());
    }
    tail.resize(tail.len() + 5000, 0);
    dir.put("wal/00000005", &tail);
    assert_eq!((dir.all().found, dir.all().set().len()), (vec![], all.set().len() + 2));
    let last = tail.len() - 5000 - 1;
    tail[last] ^= 1;
    dir.put("wal/00000005", &tail);
    check(
        &Heard {
            rows: vec![],
            ..dir.all()
        },
        expect![[r#"
            wal/00000005 at byte 88: the checksum of a record is wrong
        "#]],
    );
}

#[test]
fn what_is_missing_is_named_and_the_rest_is_read() {
    let dir = whole();
    dir.0.remove("wal/00000004").unwrap();
    dir.put("wal/00000007", &segment(&[samples_record(&[(1, 90, 1.0)])]));
    dir.0.remove(&format!("{BLOCK}/chunks/000001")).unwrap();
    check(
        &dir.all(),
        expect![[r#"
            a{job="j"} 50 1.25
            a{job="j"} 61 2
            a{job="j"} 30 -0
            b{job="j"} 50 7
            a{job="j"} 70 3
            a{job="j"} 90 1
            wal/00000004 at byte 0: it is missing, and 00000005 follows it
            wal/00000006 at byte 0: it is missing, and 00000007 follows it
            01M8M2G1X3ACTF5P8ZM7HW40EH/chunks/000001 at byte 0: it cannot be opened: entity not found
            01M8M2G1X3ACTF5P8ZM7HW40EH/chunks/000001 at byte 0: it cannot be opened: entity not found
            01M8M2G1X3ACTF5P8ZM7HW40EH/chunks/000001 at byte 0: it cannot be opened: entity not found
        "#]],
    );
    let nothing = Dir::new();
    nothing.put("notes/readme", b"x");
    let why = Walk::open(&nothing.0).map(|_| ()).unwrap_err().to_string();
    expect!["there is neither a block (a folder with an index) nor a wal in it; name the folder that Prometheus was given as --storage.tsdb.path"].assert_eq(&why);
}

/// A histogram's counts, sum and buckets, in integers or floats.
struct Hist(i64, u64, f64, [i64; 3], i64);

fn histograms(is_float: bool, samples: &[Hist]) -> Vec<u8> {
    flagged_histograms(0, is_float, samples)
}

fn flagged_histograms(flags: u8, is_float: bool, samples: &[Hist]) -> Vec<u8> {
    let mut out = (samples.len() as u16).to_be_bytes().to_vec();
    out.push(flags);
    let mut bits = Written::default();
    // 2^-10, which is 0.5 * 2^(234 - 243).
    bits.bits(234, 8);
    bits.int(1);
    // Two buckets from 0 on, and one behind a gap; one negative.
    bits.uint(2);
    for (offset, length) in [(0, 2), (1, 1)] {
        bits.uint(length);
        bits.int(offset);
    }
    bits.uint(1);
    bits.uint(1);
    bits.int(0);
    let raw = |bits: &mut Written, v: f64| bits.bits(v.to_bits(), 64);
    let differences = |h: &Hist| [h.3[0], h.3[1] - h.3[0], h.3[2] - h.3[1], h.4];
    let counts = |h: &Hist| [h.3[0], h.3[1], h.3[2], h.4];
    for (i, h) in samples.iter().enumerate() {
        let stale = h.2.to_bits() == STALE_NAN_BITS;
        if i == 0 {
            bits.int(h.0);
            if is_float {
                raw(&mut bits, h.1 as f64);
                raw(&mut bits, 1.0);
            } else {
                bits.uint(h.1);
                bits.uint(1);
            }
            raw(&mut bits, h.2);
            for (difference, count) in differences(h).into_iter().zip(counts(h)) {
                if is_float {
                    raw(&mut bits, count as f64);
                } else {
                    bits.int(difference);
                }
            }
            continue;
        }
        // A difference, then differences of differences: of what was before, and before that.
        let step = |f: &dyn Fn(&Hist) -> i64| {
            let now = f(h) - f(&samples[i - 1]);
            if i == 1 {
                now
            } else {
                now - (f(&samples[i - 1]) - f(&samples[i - 2]))
            }
        };
        let before = &samples[i - 1];
        bits.int(step(&|h| h.0));
        if is_float {
            bits.xor(before.1 as f64, h.1 as f64);
            bits.xor(1.0, 1.0);
        } else {
            bits.int(step(&|h| h.1 as i64));
            bits.int(step(&|_| 1));
        }
        bits.xor(before.2, h.2);
        if stale {
            continue;
        }
        for b in 0..4 {
            if is_float {
                bits.xor(counts(before)[b] as f64, counts(h)[b] as f64);
            } else {
                bits.int(step(&|h| differences(h)[b]));
            }
        }
    }
    out.extend(bits.bytes());
    out
}

#[test]
fn native_histograms_of_chunks_are_told() {
    let stale = f64::from_bits(STALE_NAN_BITS);
    let samples = || {
        vec![
            Hist(1000, 9, 12.5, [1, 2, 3], 2),
            Hist(2000, 12, 14.5, [2, 3, 4], 2),
            Hist(3500, 30, 20.0, [10, 4, 12], 3),
            Hist(4500, 30, stale, [10, 4, 12], 3),
        ]
    };
    let mut shown = vec![];
    for is_float in [false, true] {
        let dir = Dir::new();
        dir.put("wal/00000000", &segment(&[series_record(&[(3, "h")])]));
        let encoding = if is_float {
            chunk::FLOAT_HISTOGRAMS
        } else {
            chunk::HISTOGRAMS
        };
        dir.put(
            "chunks_head/000001",
            &head_file(&[(3, encoding, histograms(is_float, &samples()))]),
        );
        let heard = dir.all();
        assert_eq!((heard.found.len(), heard.tally.histograms), (0, 4), "{heard:?}");
        shown.push(heard);
    }
    let sorted = |heard: &Heard| heard.set();
    assert_eq!(sorted(&shown[0]), sorted(&shown[1]));
    check(
        &shown[0],
        expect![[r#"
            h{job="j"} h1 s=1 c=9 sum=12.5 zt=0.0009765625 zc=1 p=0:1,2,0,3 n=0:2 1000 0
            h{job="j"} h1 s=1 c=12 sum=14.5 zt=0.0009765625 zc=1 p=0:2,3,0,4 n=0:2 2000 0
            h{job="j"} h1 s=1 c=30 sum=20 zt=0.0009765625 zc=1 p=0:10,4,0,12 n=0:3 3500 0
            h{job="j"} stale 4500 0
        "#]],
    );
}

/// `rate` of an imported gauge did not say that it is none of a counter, and took each fall for a reset.
#[test]
fn gauges_of_chunks_and_logs_stay_gauges() {
    let samples = [Hist(1000, 9, 12.5, [1, 2, 3], 2), Hist(2000, 8, 11.5, [1, 2, 2], 2)];
    let dir = Dir::new();
    // In the log: the first series and time, how far each is from it, the hint; then the histogram: schema, threshold, count of the
    // zero bucket, count, sum, and no spans or buckets.
    let mut record = vec![7];
    record.extend(4u64.to_be_bytes());
    record.extend(1000i64.to_be_bytes());
    record.extend([0, 0, 3, 0]);
    record.extend(0f64.to_be_bytes());
    record.extend([0, 5]);
    record.extend(2.5f64.to_be_bytes());
    record.extend([0, 0, 0, 0]);
    dir.put(
        "wal/00000000",
        &segment(&[series_record(&[(3, "h"), (4, "w")]), record]),
    );
    dir.put(
        "chunks_head/000001",
        &head_file(&[(3, chunk::HISTOGRAMS, flagged_histograms(0b1100_0000, false, &samples))]),
    );
    check(
        &dir.all(),
        expect![[r#"
            h{job="j"} h1 s=1 c=9 sum=12.5 zt=0.0009765625 zc=1 r=g p=0:1,2,0,3 n=0:2 1000 0
            h{job="j"} h1 s=1 c=8 sum=11.5 zt=0.0009765625 zc=1 r=g p=0:1,2,0,2 n=0:2 2000 0
            w{job="j"} h1 s=0 c=5 sum=2.5 r=g 1000 0
        "#]],
    );
}

fn files() -> Vec<String> {
    let block = ["index", "chunks/000001", "tombstones", "meta.json"].map(|f| format!("{BLOCK}/{f}"));
    let head = [
        "wal/checkpoint.00000003/00000000",
        "wal/00000004",
        "wal/00000005",
        "wbl/00000000",
        "chunks_head/000001",
    ];
    block.into_iter().chain(head.map(str::to_owned)).collect()
}

fn value() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<u64>().prop_map(f64::from_bits),
        (-5i32..5).prop_map(f64::from),
        Just(0.1)
    ]
}

proptest! {
    #[test]
    fn packed_floats_read_back_bit_by_bit(
        first in -1i64 << 40..1 << 40,
        rows in proptest::collection::vec((prop_oneof![0i64..100, 0i64..1 << 20, 0i64..1 << 40], value()), 1..200),
    ) {
        let mut at = first;
        let rows: Rows = rows.into_iter().map(|(step, value)| { at += step; (at, value) }).collect();
        let mut read = vec![];
        let known = chunk::read(chunk::FLOATS, &floats(&rows), &mut |at, value| match value {
            chunk::Value::Float(v) => read.push((at, v.to_bits())),
            chunk::Value::Native(_) => panic!("a float is none"),
        });
        prop_assert_eq!(known, Ok(true));
        prop_assert_eq!(read, rows.iter().map(|(at, v)| (*at, v.to_bits())).collect::<Vec<_>>());
    }

    #[test]
    fn a_flipped_bit_changes_no_row_and_one_that_loses_rows_is_named(
        file in any::<proptest::sample::Index>(), at in any::<proptest::sample::Index>(), bit in 0u8..8,
    ) {
        let (dir, path) = (whole(), files()[file.index(files().len())].clone());
        let before = dir.all().set();
        let at = at.index(dir.0.read(&path).unwrap().len());
        dir.flip(&path, at, 1 << bit);
        let heard = dir.all();
        let after = heard.set();
        // Deletions may be what is damaged.
        let deleted = [("b{job=\"j\"}".to_owned(), 40, 6f64.to_bits()), ("b{job=\"j\"}".to_owned(), 60, 8f64.to_bits())];
        for ((labels, ms), value) in &after {
            let was = before.get(&(labels.clone(), *ms)) == Some(value) || deleted.contains(&(labels.clone(), *ms, *value));
            prop_assert!(was, "{labels} {ms} {} is not what was written; byte {at} of {path}", f64::from_bits(*value));
        }
        if after != before {
            let named = heard.found.iter().any(|f| match f {
                Finding::Damage(d) => d.file == path,
                Finding::Torn { file, .. } => *file == path && path.starts_with("chunks_head"),
            });
            prop_assert!(named, "byte {at} of {path}: {:?}", heard.found);
        }
    }

    #[test]
    fn a_walk_that_is_taken_up_again_misses_nothing(rows_max in 0usize..20, table in prop_oneof![Just(1usize), Just(200), Just(1 << 20)]) {
        let dir = whole();
        let all = dir.walk(Place::START, usize::MAX, table);
        let first = dir.walk(Place::START, rows_max, table);
        let walk = Walk::open(&dir.0).unwrap().with_table(table);
        let mut rest = Heard::new(usize::MAX);
        let _ = walk.run(first.place, first.tally.clone(), &mut rest);
        prop_assert_eq!(&rest.tally, &all.tally);
        let mut both = first.rows[..first.settled].to_vec();
        both.extend(rest.rows);
        prop_assert_eq!(both, all.rows);
    }
}

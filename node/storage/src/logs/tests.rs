//! Blocks against the plain truth: every line comes back, every search finds what testing line by line finds.

use super::block::{BlockEncoder, BlockInfo, ROWS_MAX, Section, Source};
use super::{Block, Filter, RawLine, Settled, put_metadata};
use crate::cursor::Bad;
use crate::error::ReadError;
use bytes::Bytes;
use proptest::prelude::*;
use std::sync::{Arc, Mutex};

#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    at: i64,
    line: Vec<u8>,
    metadata: Vec<u8>,
}

impl Line {
    fn raw(&self) -> RawLine<'_> {
        RawLine {
            at: self.at,
            line: &self.line,
            metadata: &self.metadata,
        }
    }
}

fn of_raw(l: RawLine<'_>) -> Line {
    Line {
        at: l.at,
        line: l.line.to_vec(),
        metadata: l.metadata.to_vec(),
    }
}

fn encoded(lines: &[Line], level: i32) -> (BlockInfo, Vec<u8>) {
    let mut sections = vec![];
    let info = BlockEncoder::default().encode(lines.iter().map(Line::raw), level, &mut sections);
    (info, sections)
}

fn block(lines: &[Line]) -> Block {
    let (info, sections) = encoded(lines, 1);
    let mut bytes = vec![];
    info.put(&mut bytes, 0);
    bytes.extend_from_slice(&sections);
    Block::parse(bytes.into()).unwrap()
}

/// Lines such as programs write: a few forms with values in them.
fn spoken() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        8 => (0u32..24, 0u32..60, 0u32..60, 0u32..1000, 0u32..99_999, 0u32..4, any::<u8>()).prop_map(|(h, m, s, ms, n, f, ip)| {
            let at = format!("2015-07-{:02} {h:02}:{m:02}:{s:02},{ms:03}", 1 + n % 28);
            match f {
                0 => format!("{at} INFO  [worker-{n}] took {} ms of 10.0.{}.{ip}:{n}", n / 7, ip % 4),
                1 => format!("{at} WARN  Failed password for user{} from 10.0.{}.{ip} port {n} ssh2", n % 5, ip % 4),
                2 => format!("{at} INFO  blk_-{} terminating", u64::from(n) * 98_765_432_101),
                _ => format!("{at} 오류: 디스크 sd{} 사용률 {}%", ['a', 'b', 'c'][n as usize % 3], n % 101),
            }
        }),
        1 => "req-[a-f0-9]{8}-[a-f0-9]{4}-[a-f0-9]{4}-[a-f0-9]{4}-[a-f0-9]{12} (done|FAILURE from 1.5) [a-f0-9]{32}",
        1 => "[a-e0-3 .:\n-]{0,12}",
    ];
    prop_oneof![
        30 => line.prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 0..30),
        1 => Just(vec![]),
    ]
}

fn metadata() -> impl Strategy<Value = Vec<u8>> {
    let pairs = prop_oneof![
        Just(vec![]),
        Just(vec![("level".to_owned(), "info".to_owned())]),
        ("[a-f0-9]{32}", "[a-f0-9]{16}").prop_map(|(t, s)| vec![("trace_id".to_owned(), t), ("span_id".to_owned(), s)]),
        prop::collection::vec((".{0,4}", ".{0,6}"), 0..3),
    ];
    let written = pairs.prop_map(|pairs| {
        let mut out = vec![];
        put_metadata(&mut out, &pairs);
        out
    });
    prop_oneof![20 => written, 1 => prop::collection::vec(any::<u8>(), 0..12)]
}

fn lines(max: usize) -> impl Strategy<Value = Vec<Line>> {
    let metadata = prop_oneof![Just(vec![]).boxed(), metadata().boxed()];
    let line = prop_oneof![
        4 => (spoken(), metadata).boxed(),
        1 => (prop::sample::select(vec![b"same 12 again".to_vec(), b"same 130 again".to_vec()]), Just(vec![])).boxed(),
    ];
    let steps = prop_oneof![
        Just(1_000_000i64),
        Just(0),
        any::<i32>().prop_map(|s| i64::from(s).abs())
    ];
    (prop::collection::vec((line, steps), 1..max), any::<i32>()).prop_map(|(all, start)| {
        let mut at = i64::from(start);
        let made = all.into_iter().map(|((line, metadata), step)| {
            at += step;
            Line { at, line, metadata }
        });
        made.collect()
    })
}

fn filters() -> impl Strategy<Value = Filter> {
    let leaf = prop_oneof![
        prop::sample::select(vec![
            "error",
            "INFO",
            "worker-",
            "-1",
            "10.0.1",
            "Failed",
            "사용률",
            "%",
            "",
            " ",
            "0",
            "07",
            "12",
            ":0",
            "ms of 10",
            "port 4",
            "blk_-",
            "same 1",
            "again",
            "[worker-4",
            "3 again",
            "terminating",
            "user3 from",
            "2015-07-0",
            "\n",
            "ab",
        ])
        .prop_map(|n| Filter::contains(n.as_bytes())),
        prop::sample::select(vec![
            r"blk_-?[0-9]+ terminating",
            r"(?i)fail(ed|ure).*from [0-9]+[.][0-9]+",
            r"^2015",
            r"ms$",
            r"\d+$",
            r"^$",
            r"[^a]b",
            r"(?i)info|WARN",
            r"took [0-9]{3} ms",
            r"user[0-2] ",
            r"\bpassword\b",
            r"(?-u:\xff)",
            r"^\S+ 1",
            r"sd[ab] .*9%",
            r"a\s+b",
            r"디스크 \w+",
            r".*",
            r"10\.0\.[12]\.\d{2}:",
            r"[0-9a-f]{32}$",
            r"\nb",
            r"(?m)^b",
            r"[a-c]-[a-c]",
            r"x{0}",
        ])
        .prop_map(|p| Filter::regex(p).unwrap()),
    ];
    leaf.prop_recursive(2, 6, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(Filter::negated),
            prop::collection::vec(inner.clone(), 0..3).prop_map(Filter::And),
            prop::collection::vec(inner, 0..3).prop_map(Filter::Or),
        ]
    })
}

fn check_search(block: &Block, given: &[Line], filter: &Filter, from: i64, to: i64) {
    let naive: Vec<u32> = (0..given.len() as u32)
        .filter(|&i| {
            let l = &given[i as usize];
            (from..=to).contains(&l.at) && filter.is_match(&l.line)
        })
        .collect();
    let mut found = vec![];
    block
        .matches(filter, &mut Settled::default(), from, to, &mut found)
        .unwrap();
    assert_eq!(found, naive, "{filter:?}");
    assert_eq!(block.count(filter, from, to).unwrap(), naive.len() as u64, "{filter:?}");
}

/// A piece of some line, perhaps with a byte changed: a needle that is nearly there.
fn needle(given: &[Line], pick: prop::sample::Index, from: prop::sample::Index, len: usize, change: bool) -> Vec<u8> {
    let line = &pick.get(given).line;
    let from = if line.is_empty() { 0 } else { from.index(line.len()) };
    let mut needle = line[from..(from + len).min(line.len())].to_vec();
    if change && let Some(last) = needle.last_mut() {
        *last = last.wrapping_add(1);
    }
    needle
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(160))]

    #[test]
    fn every_line_comes_back(given in lines(300), level in prop::sample::select(vec![1, 9]), pick: prop::sample::Index) {
        let (info, sections) = encoded(&given, level);
        let block = Block::in_memory(info.clone(), sections.into());
        prop_assert_eq!(info.rows as usize, given.len());
        let back: Vec<Line> = block.lines(0..given.len()).unwrap().iter().map(of_raw).collect();
        prop_assert_eq!(&back, &given);
        let row = pick.index(given.len());
        prop_assert_eq!(of_raw(block.line(row).unwrap().get(0)), given[row].clone());
        let some: Vec<u32> = (0..given.len() as u32).rev().step_by(3).collect();
        let back: Vec<Line> = block.rows_of(&some).unwrap().iter().map(of_raw).collect();
        let expected: Vec<Line> = some.iter().map(|&i| given[i as usize].clone()).collect();
        prop_assert_eq!(back, expected);
    }

    #[test]
    fn a_search_finds_what_testing_each_line_finds(
        given in lines(200), filter in filters(), from: prop::sample::Index, to: prop::sample::Index, all: bool,
    ) {
        let block = block(&given);
        let (from, to) = if all { (i64::MIN, i64::MAX) } else { (from.get(&given).at, to.get(&given).at) };
        check_search(&block, &given, &filter, from, to);
    }

    #[test]
    fn a_piece_of_a_line_is_found(
        given in lines(200), pick: prop::sample::Index, from: prop::sample::Index, len in 0usize..40, change: bool,
    ) {
        let needle = needle(&given, pick, from, len, change);
        let block = block(&given);
        check_search(&block, &given, &Filter::contains(&needle), i64::MIN, i64::MAX);
        if let Ok(text) = std::str::from_utf8(&needle) {
            let escaped = regex::escape(text);
            for pattern in [escaped.clone(), format!("(?i){escaped}"), format!("{escaped}$"), format!("{escaped}[0-9]")] {
                check_search(&block, &given, &Filter::regex(&pattern).unwrap(), i64::MIN, i64::MAX);
            }
        }
    }

    #[test]
    fn damaged_blocks_are_refused_or_read_without_a_panic(
        given in lines(60), section in 0usize..7, at: prop::sample::Index, bit in 0u8..8,
    ) {
        let (info, sections) = encoded(&given, 1);
        // The change is made inside of a section and sealed again, so that the decoders see it.
        let piece = info.pieces[section];
        if piece.stored == 0 {
            return Ok(());
        }
        let start: usize = info.pieces[..section].iter().map(|p| p.stored as usize).sum();
        let stored = Bytes::copy_from_slice(&sections[start..start + piece.stored as usize]);
        let mut raw = super::block::unframe(&stored, piece).unwrap().to_vec();
        let at = at.index(raw.len());
        raw[at] ^= 1 << bit;
        let mut framed = vec![0];
        framed.extend_from_slice(&raw);
        framed.extend_from_slice(&crc32c::crc32c(&framed).to_le_bytes());
        let mut changed = info.clone();
        changed.pieces[section].stored = framed.len() as u32;
        let bytes = [&sections[..start], &framed, &sections[start + stored.len()..]].concat();
        let block = Block::in_memory(changed, bytes.into());
        let _ = block.lines(0..given.len());
        for filter in [Filter::contains(b"r3 from 10"), Filter::regex(r"\bd\w*[0-9]$").unwrap()] {
            let _ = block.count(&filter, i64::MIN, i64::MAX);
            let _ = block.matches(&filter, &mut Settled::default(), given[0].at + 1, i64::MAX, &mut vec![]);
        }
    }

    #[test]
    fn any_bytes_are_a_block_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(block) = Block::parse(bytes.into()) {
            let _ = block.lines(0..ROWS_MAX);
        }
    }
}

fn many(n: u64) -> Vec<Line> {
    (0..n)
        .map(|i| Line {
            at: 1_700_000_000_000_000_000 + (i as i64) * 250_000_000,
            line: format!(
                "{:02}:{:02}:{:02} host sshd[{}]: Failed password for user{} from 10.1.{}.{} port {} ssh2",
                i / 4 / 3600 % 24,
                i / 240 % 60,
                i / 4 % 60,
                300 + i / 50,
                i % 17,
                i % 7,
                i * 31 % 251,
                1024 + i * 7919 % 60_000,
            )
            .into_bytes(),
            metadata: vec![],
        })
        .collect()
}

#[test]
fn lines_of_few_forms_take_little_room() {
    let given = many(20_000);
    let (info, sections) = encoded(&given, 1);
    assert!(!info.is_plain());
    assert!(
        (sections.len() as u64) * 12 < info.raw_bytes,
        "{} of {}",
        sections.len(),
        info.raw_bytes
    );
}

#[test]
fn text_without_forms_is_kept_plain() {
    let given: Vec<Line> = (0..500u64)
        .map(|i| {
            let word: String = (0..12)
                .map(|k| (b'a' + (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (5 * k) & 15) as u8) as char)
                .collect();
            Line {
                at: i as i64,
                line: format!("{word} {word}x").into_bytes(),
                metadata: vec![],
            }
        })
        .collect();
    let (info, sections) = encoded(&given, 1);
    assert!(info.is_plain());
    let block = Block::in_memory(info, sections.into());
    for word in ["aa", "b c", "x", "ab x"] {
        check_search(&block, &given, &Filter::contains(word.as_bytes()), 100, 400);
    }
}

/// A source that counts what is read of it.
struct Counted {
    inner: std::sync::Arc<dyn super::block::Source>,
    read: parking_lot::Mutex<Vec<Section>>,
}

impl super::block::Source for Counted {
    fn read(&self, section: Section) -> Result<Bytes, crate::ReadError> {
        self.read.lock().push(section);
        self.inner.read(section)
    }
    fn damage(&self, section: Section, why: crate::cursor::Bad) -> crate::ReadError {
        self.inner.damage(section, why)
    }
}

#[test]
fn a_search_reads_no_more_than_it_needs() {
    let given = many(5_000);
    let (info, sections) = encoded(&given, 1);
    let read = |search: &dyn Fn(&Block) -> u64| {
        let source = std::sync::Arc::new(Counted {
            inner: super::block::in_memory_source(info.clone(), sections.clone().into()),
            read: parking_lot::Mutex::default(),
        });
        let block = Block::new(info.clone(), source.clone());
        let n = search(&block);
        let read = source.read.lock().clone();
        (n, read)
    };
    let count = |filter: Filter| read(&move |b: &Block| b.count(&filter, i64::MIN, i64::MAX).unwrap());
    use Section::{Numbers, Strings, Templates, Words};
    assert_eq!(count(Filter::contains(b"NEEDLE-7f3a9c")), (0, vec![Words]));
    assert_eq!(
        count(Filter::contains(b"password for")),
        (5_000, vec![Words, Templates])
    );
    assert_eq!(
        count(Filter::regex(r"(?i)fail(ed|ure).*from [0-9]+[.][0-9]+").unwrap()),
        (5_000, vec![Templates])
    );
    assert_eq!(count(Filter::contains(b"user3 ")), (294, vec![Templates, Strings]));
    assert_eq!(
        count(Filter::contains(b"port 1024")).1,
        vec![Templates, Strings, Numbers]
    );
    let (n, sections) = read(&|b: &Block| {
        let mut rows = vec![];
        b.matches(
            &Filter::contains(b"user3 "),
            &mut Settled::default(),
            i64::MIN,
            i64::MAX,
            &mut rows,
        )
        .unwrap();
        rows.len() as u64
    });
    // One template: no ids.
    assert_eq!((n, sections), (294, vec![Templates, Strings]));
}

// ---- segments ----

use super::{FileKind, Head, Policy, Segment, Tier, Writer};
use hindcast_env::{Disk, SimDisk};
use hindcast_model::{GroupId, TenantId};

fn head(times: (i64, i64)) -> Head {
    Head {
        tenant: TenantId::default(),
        kind: FileKind::Log,
        policy: Policy::Apm,
        group: GroupId(3),
        commits: (10, 20),
        times,
        extra: vec![],
    }
}

fn written(disk: &SimDisk, streams: &[(u32, Vec<Line>)], tier: Tier) -> Segment {
    disk.create_dir_all("d").unwrap();
    let mut w = Writer::create(disk, "d", 1, head((0, i64::MAX)), tier).unwrap();
    for (id, lines) in streams {
        w.stream(*id, lines.iter().map(Line::raw)).unwrap();
    }
    w.finish(disk).unwrap()
}

fn read(segment: &Segment, id: u32) -> Vec<Line> {
    let mut all = vec![];
    for number in segment.blocks_of(id) {
        let block = segment.block(number);
        all.extend(block.lines(0..block.rows()).unwrap().iter().map(of_raw));
    }
    all
}

fn some_streams() -> Vec<(u32, Vec<Line>)> {
    let mut named = many(30_000);
    for (i, l) in named.iter_mut().enumerate().step_by(3) {
        put_metadata(&mut l.metadata, &[("trace_id".to_owned(), format!("{:032x}", i * 77))]);
    }
    let short = vec![Line {
        at: 5,
        line: "하나".as_bytes().to_vec(),
        metadata: vec![],
    }];
    vec![(0, many(100)), (3, named), (4, short), (900, many(10))]
}

#[test]
fn streams_of_a_file_come_back_block_by_block() {
    for tier in [Tier::Flush, Tier::Compacted] {
        let disk = SimDisk::new();
        let streams = some_streams();
        let made = written(&disk, &streams, tier);
        let opened = Segment::open(&disk, "d", made.file()).unwrap();
        assert!(opened.streams().eq([0, 3, 4, 900]));
        assert_eq!(opened.rows(), 30_111);
        for (id, lines) in &streams {
            assert_eq!(&read(&opened, *id), lines);
        }
        assert!(opened.blocks_of(1).is_empty());
        // Three blocks of the long stream: a window touches those it needs.
        let all = opened.blocks_of(3);
        assert_eq!(all.len(), 3);
        let last = streams[1].1.last().unwrap().at;
        assert_eq!(opened.blocks_in(3, last, i64::MAX), all.end - 1..all.end);
        assert_eq!(opened.blocks_in(3, i64::MIN, 7), all.start..all.start);
        assert_eq!(opened.blocks_in(3, i64::MIN, i64::MAX), all);
        opened.scrub().unwrap();
    }
}

#[test]
fn only_blocks_with_the_words_are_left() {
    let disk = SimDisk::new();
    let mut streams = some_streams();
    streams[1].1[20_000].line.extend_from_slice(b" NEEDLE-7f3a9c");
    let segment = written(&disk, &streams, Tier::Flush);
    let blocks = || {
        segment
            .streams()
            .flat_map(|id| segment.blocks_of(id))
            .collect::<Vec<_>>()
            .into_iter()
    };
    let needle = Filter::contains(b"NEEDLE-7f3a9c");
    let (first, again) = (
        segment.may_match(blocks(), &needle).unwrap(),
        segment.may_match(blocks(), &needle).unwrap(),
    );
    assert_eq!(first, again);
    // The one block, and that of one word without a digit has none to deny it by.
    let count = |number: u32| segment.block(number).count(&needle, i64::MIN, i64::MAX).unwrap();
    assert_eq!(first.iter().map(|&n| count(n)).sum::<u64>(), 1);
    assert!(first.len() <= 2, "{first:?}");
}

#[test]
fn a_wrong_bit_of_a_file_is_told_with_its_place() {
    let disk = SimDisk::new();
    let streams = vec![(1, many(300)), (2, many(40))];
    let made = written(&disk, &streams, Tier::Flush);
    let path = "d/segment-0000000000000001";
    let check = || -> Result<(), crate::StorageError> {
        let s = Segment::open(&disk, "d", made.file())?;
        for id in [1, 2] {
            for number in s.blocks_of(id) {
                let block = s.block(number);
                block.may_match(&Filter::contains(b"NEEDLE-7f3a9c"))?;
                block.lines(0..block.rows())?;
            }
        }
        Ok(())
    };
    check().unwrap();
    for at in (0..made.file().bytes as usize).step_by(97) {
        disk.flip_bit(path, at, (at % 8) as u8).unwrap();
        let told = check();
        assert!(
            matches!(&told, Err(crate::StorageError::Damaged(d)) if d.file == path),
            "byte {at}: {told:?}"
        );
        disk.flip_bit(path, at, (at % 8) as u8).unwrap();
    }
}

/// Bytes of this release's files: a change of them is a change of the format.
#[test]
fn golden_file() {
    let disk = SimDisk::new();
    let mut lines = many(200);
    for (i, l) in lines.iter_mut().enumerate() {
        match i % 4 {
            0 => {
                l.line = format!(
                    "2026-01-02T03:04:{:02}.{:03}Z 디스크 sda{} 사용률 {}%",
                    i / 4,
                    i * 5,
                    i % 3,
                    i % 101
                )
                .into_bytes()
            }
            1 => put_metadata(&mut l.metadata, &[("trace_id".to_owned(), format!("{:032x}", i * 77))]),
            _ => {}
        }
    }
    lines[7].line = vec![0, 1, 2, 3, 255, 10];
    let plain = vec![
        Line {
            at: 1_700_000_000_000_000_001,
            line: b"plain text".to_vec(),
            metadata: vec![],
        },
        Line {
            at: 1_700_000_000_000_000_001,
            line: vec![],
            metadata: vec![],
        },
    ];
    let streams = [(2, lines), (7, plain)];
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v2/log-segment");
    let real = hindcast_env::io::RealDisk::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v2")).unwrap();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        written(&disk, &streams, Tier::Flush);
        let bytes = disk.read("d/segment-0000000000000001").unwrap();
        hindcast_env::disk::write_new_file(&real, "log-segment", &bytes).unwrap();
    }
    let bytes = real.read("log-segment").unwrap_or_else(|e| panic!("{path}: {e}"));
    disk.create_dir_all("d").unwrap();
    hindcast_env::disk::write_new_file(&disk, "d/segment-0000000000000001", &bytes).unwrap();
    let file = super::FileRef {
        number: 1,
        bytes: bytes.len() as u64,
        blake3: bytes[bytes.len() - 40..bytes.len() - 8].try_into().unwrap(),
    };
    let segment = Segment::open(&disk, "d", &file).unwrap();
    for (id, lines) in &streams {
        assert_eq!(&read(&segment, *id), lines);
    }
    let written = written(&SimDisk::new(), &streams, Tier::Flush);
    assert_eq!(
        written.file().blake3,
        file.blake3,
        "the same lines are written as other bytes"
    );
}

/// Notes which sections are read.
struct Noting {
    source: Arc<dyn Source>,
    read: Arc<Mutex<Vec<Section>>>,
}

impl Source for Noting {
    fn read(&self, section: Section) -> Result<Bytes, ReadError> {
        self.read.lock().unwrap().push(section);
        self.source.read(section)
    }

    fn damage(&self, section: Section, why: Bad) -> ReadError {
        self.source.damage(section, why)
    }
}

#[test]
fn a_needle_costs_a_block_without_it_no_more_than_its_words() {
    let mut lines = many(5000);
    lines[77].line.extend_from_slice(b" NEEDLE-7f3a9c");
    let (info, sections) = encoded(&lines, 1);
    let read = Arc::new(Mutex::new(vec![]));
    let source = super::block::in_memory_source(info.clone(), sections.into());
    let noting = Noting {
        source,
        read: read.clone(),
    };
    let block = Block::new(info, Arc::new(noting));
    let look = |needle: &[u8]| {
        let mut rows = vec![];
        let known = &mut Settled::default();
        let found = block.matches(&Filter::contains(needle), known, i64::MIN, i64::MAX, &mut rows);
        found.unwrap();
        (
            block.rows_of(&rows).unwrap().len(),
            std::mem::take(&mut *read.lock().unwrap()),
        )
    };
    assert_eq!(look(b"NEEDLE-aaaaaa"), (0, vec![Section::Words]));
    let (found, sections) = look(b"NEEDLE-7f3a9c");
    assert_eq!(found, 1);
    assert!(sections.contains(&Section::Ids), "{sections:?}");
}

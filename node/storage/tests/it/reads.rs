//! What readers see, told as scripts.

use crate::naive::{all_lines, all_series, config, owners};
use expect_test::{Expect, expect};
use hindcast_env::SimDisk;
use hindcast_model::{Labels, LogLine, Matcher, Sample, SeriesBlock, SpanNs, StreamBlock, TenantId, TimestampNs};
use hindcast_storage::logs::Filter;
use hindcast_storage::read::{CountLines, Direction, LabelTexts, SearchLabels};
use hindcast_storage::{Floor, Pin, Selector, Shard, ShardConfig};
use std::fmt::Write;
use std::ops::ControlFlow;
use std::sync::Arc;

/// `<op> <arguments>` per line; an entry per line that changes something. Times in seconds.
fn check(script: &str, expect: Expect) {
    let disk = SimDisk::new();
    let (mut shard, _) = Shard::open(Arc::new(disk), "s", config()).unwrap();
    let (mut out, mut index, tenant) = (String::new(), 0, TenantId::default());
    for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let words: Vec<&str> = line.split(' ').collect();
        let at = |i: usize| TimestampNs::from_secs(words[i].parse().unwrap());
        let said = match words[0] {
            "write" => {
                index += 1;
                let samples = words[1..].iter().map(|w| w.split_once('=').unwrap());
                let samples = samples.map(|(at, value)| Sample {
                    at: TimestampNs::from_secs(at.parse().unwrap()),
                    value: value.parse().unwrap(),
                });
                let block = SeriesBlock {
                    labels: Labels::from_pairs([("a", "b")]),
                    owner: owners()[1],
                    samples: samples.collect(),
                };
                shard.write(index, &tenant, &[block], &[]);
                shard.advance(index);
                format!("is entry {index}")
            }
            "cut" => {
                index += 1;
                shard.cut(index);
                shard.advance(index);
                format!("at {index}")
            }
            "drop" => {
                shard.drop_cut(words[1].parse().unwrap());
                String::new()
            }
            "pin" => {
                shard.pin(Pin {
                    id: "p".to_owned(),
                    tenant: tenant.clone(),
                    from: at(1),
                    to: at(2),
                    owners: None,
                    cuts: vec![],
                });
                String::new()
            }
            "unpin" => {
                shard.unpin("p");
                String::new()
            }
            "retain" => {
                let dropped = shard.retain(vec![Floor::at(None, None, at(1))]);
                format!("drops {} segments, {} samples", dropped.segments, dropped.samples)
            }
            "flush" => format!("{} segments", shard.flush(b"").unwrap().segments),
            "compact" => match shard.compact().unwrap() {
                Some(r) => format!(
                    "{} -> {} segments, {} -> {} rows",
                    r.segments_in, r.segments_out, r.rows_in, r.rows_out
                ),
                None => "nothing to do".to_owned(),
            },
            "read" => {
                let mut q = all_series(&tenant);
                q.as_of = words.get(1).map(|w| w.parse().unwrap());
                match shard.reader().series(&q) {
                    Ok(found) => {
                        let samples = found.iter().flat_map(|s| &s.samples);
                        let shown = samples.map(|s| format!("{}={}", s.at.as_ms() / 1000, s.value));
                        shown.collect::<Vec<_>>().join(" ")
                    }
                    Err(e) => e.to_string(),
                }
            }
            other => panic!("{other}?"),
        };
        writeln!(out, "{}", format!("{line} -> {said}").trim_end()).unwrap();
    }
    expect.assert_eq(&out);
}

#[test]
fn a_cut_shows_what_was_known_then_also_after_merges() {
    check(
        "
        write 1=1 2=2
        cut
        write 1=10 0=0
        read 2
        read
        flush
        compact
        read 2
        read 1
        drop 2
        write 3=3
        flush
        compact
        read
        read 2
        ",
        expect![[r#"
            write 1=1 2=2 -> is entry 1
            cut -> at 2
            write 1=10 0=0 -> is entry 3
            read 2 -> 1=1 2=2
            read -> 0=0 1=10 2=2
            flush -> 2 segments
            compact -> nothing to do
            read 2 -> 1=1 2=2
            read 1 -> index 1 is no recorded cut of this shard (applied: 3; the last cut before it: none)
            drop 2 ->
            write 3=3 -> is entry 4
            flush -> 1 segments
            compact -> 3 -> 1 segments, 5 -> 4 rows
            read -> 0=0 1=10 2=2 3=3
            read 2 -> index 2 is no recorded cut of this shard (applied: 4; the last cut before it: none)
        "#]],
    );
}

#[test]
fn a_pinned_window_outlives_its_floor() {
    check(
        "
        write 1=1 2=2 3=3
        flush
        pin 1 2
        retain 3
        read
        retain 5
        read
        unpin
        read
        retain 5
        read
        ",
        expect![[r#"
            write 1=1 2=2 3=3 -> is entry 1
            flush -> 1 segments
            pin 1 2 ->
            retain 3 -> drops 0 segments, 0 samples
            read -> 1=1 2=2 3=3
            retain 5 -> drops 0 segments, 0 samples
            read -> 1=1 2=2
            unpin ->
            read ->
            retain 5 -> drops 1 segments, 3 samples
            read ->
        "#]],
    );
}

#[test]
fn late_and_overwriting_samples_are_told_apart_by_commits() {
    check(
        "
        write 5=5
        flush
        write -100=1 5=6 5=7
        flush
        write 5=8
        read
        flush
        read
        compact
        read
        ",
        expect![[r#"
            write 5=5 -> is entry 1
            flush -> 1 segments
            write -100=1 5=6 5=7 -> is entry 2
            flush -> 1 segments
            write 5=8 -> is entry 3
            read -> -100=1 5=8
            flush -> 1 segments
            read -> -100=1 5=8
            compact -> 3 -> 1 segments, 4 -> 2 rows
            read -> -100=1 5=8
        "#]],
    );
}

fn stream(n: i64) -> StreamBlock {
    StreamBlock {
        labels: Labels::from_pairs([("n", &n.to_string())]),
        owner: owners()[2],
        lines: (0..3000)
            .map(|i| LogLine {
                at: TimestampNs(i * 1000 + n),
                line: format!("{n} says {i}: {}", "x".repeat(100)).into(),
                metadata: vec![],
            })
            .collect(),
    }
}

#[test]
fn the_newest_lines_come_from_the_last_blocks_alone() {
    let disk = SimDisk::new();
    let (mut shard, _) = Shard::open(Arc::new(disk.clone()), "s", config()).unwrap();
    let t = TenantId::default();
    for index in 1..=2 {
        let half = |n| {
            let mut s = stream(n);
            s.lines = s.lines.split_off(if index == 1 { 0 } else { 1500 });
            s.lines.truncate(1500);
            s
        };
        shard.write(index, &t, &[], &[half(1), half(2)]);
        shard.advance(index);
        shard.flush(b"").unwrap();
    }
    let mut q = all_lines(&t);
    let whole = shard.reader().lines(&q).unwrap();
    assert_eq!(whole.iter().map(|s| s.lines.len()).sum::<usize>(), 6000);
    (q.limit, q.direction) = (Some(5), Direction::Backward);
    let newest = shard.reader().lines(&q).unwrap();
    for s in &newest {
        let all = &whole.iter().find(|w| w.labels == s.labels).unwrap().lines;
        assert_eq!(s.lines, all[all.len() - s.lines.len()..]);
    }
    assert_eq!(newest.iter().map(|s| s.lines.len()).sum::<usize>(), 5);
    // Damage in the first block is not met by a read that needs the last one only.
    disk.flip_bit("s/segment-0000000000000001", 100, 0).unwrap();
    assert_eq!(shard.reader().lines(&q).unwrap(), newest);
    q.direction = Direction::Forward;
    assert!(shard.reader().lines(&q).is_err());
}

#[test]
fn label_sets_are_those_with_a_row_in_the_window_even_inside_a_page() {
    let (mut shard, _) = Shard::open(Arc::new(SimDisk::new()), "s", config()).unwrap();
    let t = TenantId::default();
    let block = SeriesBlock {
        labels: Labels::from_pairs([("a", "b")]),
        owner: owners()[0],
        samples: [0, 10]
            .map(|s| Sample {
                at: TimestampNs::from_secs(s),
                value: 1.0,
            })
            .to_vec(),
    };
    shard.write(1, &t, std::slice::from_ref(&block), &[]);
    shard.advance(1);
    shard.flush(b"").unwrap();
    let found = |from, to| {
        let q = SearchLabels {
            tenant: t.clone(),
            streams: false,
            any_of: vec![],
            from: TimestampNs::from_secs(from),
            to: TimestampNs::from_secs(to),
        };
        shard.reader().label_sets(&q).unwrap().len()
    };
    assert_eq!((found(0, 5), found(1, 9), found(10, 10), found(11, 20)), (1, 0, 1, 0));
}

#[test]
fn an_entry_shows_whole_and_a_flush_is_wanted_by_size_or_age() {
    let config = ShardConfig {
        flush_bytes_max: 10_000,
        flush_age_max: SpanNs::from_secs(60),
        ..config()
    };
    let (mut shard, _) = Shard::open(Arc::new(SimDisk::new()), "s", config).unwrap();
    let t = TenantId::default();
    let block = |n: i64| SeriesBlock {
        labels: Labels::from_pairs([("a", "b")]),
        owner: owners()[0],
        samples: (0..n)
            .map(|s| Sample {
                at: TimestampNs::from_secs(s),
                value: 1.0,
            })
            .collect(),
    };
    assert!(!shard.needs_flush(SpanNs::from_secs(1000)));
    shard.write(1, &t, &[block(2)], &[]);
    assert!(shard.reader().series(&all_series(&t)).unwrap().is_empty());
    shard.advance(1);
    assert_eq!(shard.reader().series(&all_series(&t)).unwrap()[0].samples.len(), 2);
    assert!(!shard.needs_flush(SpanNs::from_secs(2000)));
    assert!(!shard.needs_flush(SpanNs::from_secs(2059)));
    assert!(shard.needs_flush(SpanNs::from_secs(2060)));
    shard.flush(b"").unwrap();
    assert!(!shard.needs_flush(SpanNs::from_secs(9000)));
    shard.write(2, &t, &[block(1000)], &[]);
    shard.advance(2);
    assert!(shard.needs_flush(SpanNs::from_secs(9001)));
    assert_eq!(shard.stats().samples, 1002);
}

/// Enough lines of one stream that blocks of them are packed in memory, some of them late.
#[test]
fn lines_are_found_alike_open_packed_flushed_and_merged() {
    let tenant = TenantId::default();
    let (mut shard, _) = Shard::open(Arc::new(SimDisk::new()), "s", config()).unwrap();
    let mut all: Vec<(i64, String)> = vec![];
    for index in 1..=60u64 {
        // Every seventh entry is an hour late, so that blocks overlap in time.
        let start = index as i64 * 60 - if index.is_multiple_of(7) { 3600 } else { 0 };
        let line = |i: i64| {
            let text = match i % 4 {
                0 => format!("blk_{} terminating, {i} of {index}", i * 7919),
                1 => format!("디스크 sda{} 사용률 {}%", i % 9, i % 100),
                2 => format!(
                    "Failed password for user{i} from 10.1.{}.7 port {}",
                    i % 251,
                    index * 31
                ),
                _ => format!(
                    "abcdefab-cdef-4f89-41d3-9a0c{:08x} done in {}.{:03} s",
                    i * 77,
                    index,
                    i % 1000
                ),
            };
            (TimestampNs::from_secs(start + i / 20).0, text)
        };
        let new: Vec<(i64, String)> = (0..1200).map(line).collect();
        let lines = new.iter().map(|(at, line)| LogLine {
            at: TimestampNs(*at),
            line: line.clone().into(),
            metadata: vec![],
        });
        let block = StreamBlock {
            labels: Labels::from_pairs([("job", "a")]),
            owner: owners()[1],
            lines: lines.collect(),
        };
        shard.write(index, &tenant, &[], &[block]);
        shard.advance(index);
        all.extend(new);
    }
    let head_bytes = shard.stats().head_bytes;
    assert!(head_bytes < 3 << 20, "{head_bytes} bytes of 5 MB of lines");
    all.sort_by_key(|l| l.0);
    let look = |shard: &Shard| {
        for filter in [
            Filter::all(),
            Filter::contains(b"user978 "),
            Filter::contains("사용률 93%".as_bytes()),
            Filter::regex("blk_-?[0-9]+ terminating").unwrap(),
            Filter::contains(b"port 31").negated(),
        ] {
            let passing = all.iter().filter(|l| filter.is_match(l.1.as_bytes()));
            let passing: Vec<(i64, &[u8])> = passing.map(|l| (l.0, l.1.as_bytes())).collect();
            for (limit, direction) in [
                (None, Direction::Forward),
                (Some(1000), Direction::Forward),
                (Some(1000), Direction::Backward),
            ] {
                let mut q = all_lines(&tenant);
                (q.filter, q.limit, q.direction) = (filter.clone(), limit, direction);
                let found = shard.reader().lines(&q).unwrap();
                let found: Vec<(i64, &[u8])> = found[0].lines.iter().map(|l| (l.at.0, &l.line[..])).collect();
                let over = passing.len().saturating_sub(limit.unwrap_or(usize::MAX));
                let want = match direction {
                    Direction::Forward => &passing[..passing.len() - over],
                    Direction::Backward => &passing[over..],
                };
                assert!(
                    found == want,
                    "{filter:?}, {limit:?} {direction:?}: {} of {}",
                    found.len(),
                    want.len()
                );
            }
            let bounds = [2000, 3000, 4000].map(TimestampNs::from_secs);
            let q = CountLines {
                tenant: tenant.clone(),
                matchers: vec![],
                from: TimestampNs::from_secs(1000),
                bounds: bounds.to_vec(),
                as_of: None,
                owners: None,
                filter: filter.clone(),
            };
            let counts = shard.reader().count_lines(&q, &mut |_| ControlFlow::Continue(()));
            let within = |to: TimestampNs| {
                passing
                    .iter()
                    .filter(|l| (1_000_000_000_000..=to.0).contains(&l.0))
                    .count()
            };
            let want: Vec<u64> = bounds.iter().map(|b| within(*b) as u64).collect();
            assert_eq!(counts.unwrap()[0].counts, want, "{filter:?}");
        }
    };
    look(&shard);
    shard.flush(b"").unwrap();
    look(&shard);
    while shard.compact_fully().unwrap().is_some() {}
    look(&shard);
}

/// A data directory that was imported twice had each native histogram twice.
#[test]
fn a_native_histogram_that_comes_again_takes_the_place_of_the_one_before() {
    let tenant = TenantId::default();
    let (mut shard, _) = Shard::open(Arc::new(SimDisk::new()), "s", config()).unwrap();
    let block = |labels: &Labels, text: &str| StreamBlock {
        labels: labels.clone(),
        owner: owners()[1],
        lines: (0..3000)
            .map(|i| LogLine {
                at: TimestampNs::from_secs(i),
                line: format!("h1 s=0 c={i} sum={text}").into(),
                metadata: vec![],
            })
            .collect(),
    };
    let (mark, value) = hindcast_model::histogram::MARK;
    let log = Labels::from_pairs([("__name__", "h")]);
    let native = log.with(mark, value);
    let look = |shard: &Shard, text: &str| {
        for (limit, direction) in [
            (None, Direction::Forward),
            (Some(1000), Direction::Forward),
            (Some(1000), Direction::Backward),
        ] {
            let mut q = all_lines(&tenant);
            q.matchers = vec![Matcher::equal(mark, value)];
            (q.limit, q.direction) = (limit, direction);
            let found = shard.reader().lines(&q).unwrap().remove(0).lines;
            let first = match direction {
                Direction::Forward => 0,
                Direction::Backward => 2000,
            };
            let wanted = (first..)
                .take(limit.unwrap_or(3000))
                .map(|i| format!("h1 s=0 c={i} sum={text}"));
            let found = found.iter().map(|l| String::from_utf8_lossy(&l.line).into_owned());
            assert!(found.eq(wanted), "{limit:?} {direction:?} {text}");
        }
    };
    for (index, text) in (1..).zip(["1", "2", "3"]) {
        shard.write(index, &tenant, &[], &[block(&native, text), block(&log, text)]);
        shard.advance(index);
        look(&shard, text);
        shard.flush(b"").unwrap();
        look(&shard, text);
    }
    while shard.compact_fully().unwrap().is_some() {}
    look(&shard, "3");
    // Merged, one of each is left; lines of logs stay.
    let mut left = [0, 0];
    let all = all_series(&tenant);
    let counted = shard.reader().visit_lines(&all, &mut |stream, _, _| {
        left[usize::from(stream.labels == &native)] += 1;
        ControlFlow::Continue(())
    });
    counted.unwrap();
    assert_eq!(left, [9000, 3000]);
}

/// As the rules say that nodes propose: one beside each, for the marked streams.
#[test]
fn native_histograms_and_logs_of_one_file_have_floors_of_their_own() {
    let tenant = TenantId::default();
    let (mark, value) = hindcast_model::histogram::MARK;
    let stream = |labels: Labels| StreamBlock {
        labels,
        owner: owners()[1],
        lines: (0..100)
            .map(|i| LogLine {
                at: TimestampNs::from_secs(i),
                line: "h1 s=0".into(),
                metadata: vec![],
            })
            .collect(),
    };
    let log = Labels::from_pairs([("__name__", "h")]);
    let streams = [stream(log.with(mark, value)), stream(log)];
    let rules = |lines: i64, natives: i64| {
        let mut of_natives = Floor::at(None, None, TimestampNs::from_secs(natives));
        of_natives.selector = vec![Selector(Matcher::equal(mark, value))];
        vec![Floor::at(None, None, TimestampNs::from_secs(lines)), of_natives]
    };
    for (lines, natives, files) in [(30, 60, 1), (60, 30, 1), (200, 30, 1), (30, 200, 1), (200, 200, 0)] {
        let disk = SimDisk::new();
        let (mut shard, _) = Shard::open(Arc::new(disk.clone()), "s", config()).unwrap();
        shard.write(1, &tenant, &[], &streams);
        shard.advance(1);
        shard.flush(b"").unwrap();
        shard.retain(rules(lines, natives));
        shard.advance(2);
        while shard.compact_fully().unwrap().is_some() {}
        let left = |of_natives: bool| {
            let mut q = all_lines(&tenant);
            q.matchers = vec![Matcher::equal(mark, if of_natives { value } else { "" })];
            let found = shard.reader().lines(&q).unwrap();
            found.iter().map(|s| s.lines.len() as i64).sum::<i64>()
        };
        let kept = |floor: i64| (100 - floor).max(0);
        assert_eq!(
            (left(false), left(true)),
            (kept(lines), kept(natives)),
            "{lines} {natives}"
        );
        assert_eq!(shard.reader().files().len(), files, "{lines} {natives}");
    }
}

#[test]
fn few_rows_here_are_quick_and_many_or_a_search_are_not() {
    let (mut shard, _) = Shard::open(Arc::new(SimDisk::new()), "s", config()).unwrap();
    let tenant = TenantId::default();
    let block = |host: i64, rows: i64| SeriesBlock {
        labels: Labels::from_pairs([("__name__", "m"), ("host", &host.to_string())]),
        owner: owners()[1],
        samples: (0..rows)
            .map(|i| Sample {
                at: TimestampNs::from_secs(i),
                value: 1.0,
            })
            .collect(),
    };
    let blocks: Vec<SeriesBlock> = (0..20)
        .map(|host| block(host, if host == 0 { 20_000 } else { 100 }))
        .collect();
    let quick = |shard: &Shard, matcher: Matcher, to: i64| {
        let mut q = all_series(&tenant);
        (q.matchers, q.to) = (vec![matcher], TimestampNs::from_secs(to));
        shard.reader().is_quick(&q)
    };
    shard.write(1, &tenant, &blocks, &[]);
    shard.advance(1);
    for is_flushed in [false, true] {
        if is_flushed {
            shard.flush(b"").unwrap();
        }
        assert!(quick(&shard, Matcher::equal("host", "7"), 100_000), "a hundred rows");
        assert!(quick(&shard, Matcher::equal("host", "77"), 100_000), "nothing");
        assert!(!quick(&shard, Matcher::equal("host", "0"), 100_000), "many rows");
        assert!(!quick(&shard, Matcher::equal("__name__", "m"), 100_000), "many series");
        let search = Matcher::new("host", hindcast_model::MatchOp::Regex, "7|8").unwrap();
        assert!(!quick(&shard, search, 100_000), "a search");
    }
    assert!(quick(&shard, Matcher::equal("host", "0"), 100), "few of many rows");
    assert!(shard.reader().knows(&tenant, false, &[Matcher::equal("host", "7")]));
    assert!(!shard.reader().knows(&tenant, true, &[Matcher::equal("host", "7")]));

    let texts = |shard: &Shard, of: LabelTexts, to: i64| {
        let q = SearchLabels {
            tenant: tenant.clone(),
            streams: false,
            any_of: vec![],
            from: TimestampNs(0),
            to: TimestampNs::from_secs(to),
        };
        let at_once = shard.reader().label_texts_at_once(&q, &of).unwrap();
        at_once.inspect(|texts| assert_eq!(*texts, shard.reader().label_texts(&q, &of).unwrap()))
    };
    let hosts = || LabelTexts::Values("host".to_owned());
    assert_eq!(texts(&shard, hosts(), 100_000).unwrap().len(), 20);
    assert_eq!(texts(&shard, LabelTexts::Names, 100_000).unwrap(), ["__name__", "host"]);
    let many: Vec<SeriesBlock> = (0..300).map(|host| block(host, 1)).collect();
    shard.write(2, &tenant, &many, &[]);
    shard.advance(2);
    assert!(texts(&shard, hosts(), 100_000).is_none(), "many texts");
}

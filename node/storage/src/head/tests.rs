//! The head against a plain list per series.

use super::*;
use hindcast_model::{Labels, resource};
use proptest::prelude::*;
use smallvec::smallvec;
use std::collections::BTreeMap;

const SERIES: u32 = 12;

fn directory() -> Directory {
    let mut d = Directory::default();
    let tenant = TenantId::default();
    for i in 0..SERIES {
        let (name, instance) = (format!("node_{}", i % 4), format!("web-{}:9100", i / 4));
        let labels = Labels::from_pairs([("__name__", &name), ("instance", &instance), ("job", "node")]);
        let owner = resource::owner(&tenant, &labels, &[]);
        d.find_or_add(&tenant, false, &labels, &owner);
    }
    d.find_or_add(&tenant, true, &Labels::from_pairs([("job", "log")]), &Owner::None);
    d
}

#[derive(Clone, Debug)]
struct Push {
    runs: Vec<Run>,
    times: Vec<i64>,
    seed: u64,
}

impl Push {
    fn ids(&self) -> Vec<u32> {
        self.runs.iter().flat_map(|r| r.ids()).collect()
    }

    /// Some repeat, some never do.
    fn value(&self, at: usize) -> f64 {
        if self.seed.is_multiple_of(3) {
            f64::from_bits(self.seed.wrapping_mul(at as u64 + 1))
        } else {
            (self.seed % 1000) as f64 + at as f64
        }
    }
}

fn push() -> impl Strategy<Value = Push> {
    let whole = Just(vec![Run { first: 0, len: SERIES }]);
    let host = (0..3u32).prop_map(|h| vec![Run { first: h * 4, len: 4 }]);
    let some = prop::collection::vec((0..SERIES, 0..4u32), 0..4).prop_map(|runs| {
        let run = |(first, len): (u32, u32)| Run {
            first,
            len: len.min(SERIES - first),
        };
        runs.into_iter().map(run).collect()
    });
    let runs = prop_oneof![2 => whole, 3 => host, 2 => some];
    let times = prop_oneof![4 => (0..40i64).prop_map(|t| vec![t]), 1 => prop::collection::vec(0..40i64, 0..90)];
    (runs, times, any::<u64>()).prop_map(|(runs, times, seed)| Push { runs, times, seed })
}

/// Samples by series, in the order of commits; of one entry's equal times only the last counts.
type Plain = BTreeMap<u32, Vec<(i64, u64)>>;

fn settled(samples: &[(i64, u64)]) -> Vec<(i64, u64)> {
    let by_time: BTreeMap<i64, u64> = samples.iter().copied().collect();
    by_time.into_iter().collect()
}

fn samples_of(mut out: Points) -> Vec<(i64, u64)> {
    out.settle();
    out.iter().map(|(at, value)| (at, value.to_bits())).collect()
}

proptest! {
    #[test]
    fn a_head_gives_back_what_it_was_given(pushes in prop::collection::vec(push(), 1..60)) {
        let d = directory();
        let (mut head, mut plain) = (Head::new(), Plain::new());
        let everything: Spans = smallvec![(i64::MIN, i64::MAX)];
        let windows: [Spans; 2] = [smallvec![(5, 11), (20, 21)], smallvec![(7, 15)]];
        for (index, p) in (1..).zip(&pushes) {
            let ids = p.ids();
            let values: Vec<u8> = (0..p.times.len() * ids.len()).flat_map(|i| p.value(i).to_le_bytes()).collect();
            let rows = Rows { times: &p.times, runs: &p.runs, values: &values };
            let mut heard = vec![];
            prop_assert!(head.push_rows(index, &rows, &d, &mut |_, owner, at| heard.push((owner, at))));
            for (r, &at) in p.times.iter().enumerate() {
                for (i, &id) in ids.iter().enumerate() {
                    plain.entry(id).or_default().push((at, p.value(r * ids.len() + i).to_bits()));
                    prop_assert!(heard.iter().any(|h| h.0 == d.get(id).unwrap().owner && h.1.0 >= at));
                }
            }
            // Nothing of the entry shows before it was advanced over.
            if index % 13 == 0 {
                head.show();
                for window in &windows {
                    let wanted: Vec<_> = (0..SERIES).map(|id| (id, window.clone())).collect();
                    let copied = head.copy(&wanted);
                    for id in 0..SERIES {
                        let mut got = Points::default();
                        copied.append_samples(id as usize, window, &mut Unpacker::default(), &mut got);
                        let want = settled(plain.get(&id).map_or(&[], Vec::as_slice));
                        let within: Vec<_> = want.into_iter().filter(|(at, _)| is_in(window, *at)).collect();
                        prop_assert_eq!(samples_of(got), within);
                    }
                }
                for id in 0..SERIES {
                    let mut all = Points::default();
                    head.append_samples(id, &everything, &mut Unpacker::default(), &mut all);
                    let want = settled(plain.get(&id).map_or(&[], Vec::as_slice));
                    let ends = want.first().map(|f| (f.0, want.last().map_or(f.0, |l| l.0)));
                    prop_assert_eq!(head.times_of(id), ends);
                    prop_assert_eq!(samples_of(all), want);
                }
            }
        }
        let shown = plain.clone();
        head.show();
        let head = head.seal();
        for id in 0..SERIES {
            let mut all = Points::default();
            head.append_samples(id, &everything, &mut Unpacker::default(), &mut all);
            prop_assert_eq!(samples_of(all), settled(shown.get(&id).map_or(&[], Vec::as_slice)));
        }
        prop_assert_eq!(head.samples(), plain.values().map(|v| v.len() as u64).sum::<u64>());
    }
}

fn is_in(spans: &Spans, at: i64) -> bool {
    spans.iter().any(|&(a, b)| a <= at && at <= b)
}

fn scrape(head: &mut Head, d: &Directory, index: u64, runs: &[Run]) -> bool {
    let width: u32 = runs.iter().map(|r| r.len).sum();
    let values: Vec<u8> = (0..width).flat_map(|v| f64::from(v).to_le_bytes()).collect();
    let rows = Rows {
        times: &[index as i64],
        runs,
        values: &values,
    };
    head.push_rows(index, &rows, d, &mut |_, _, _| {})
}

#[test]
fn scrapes_of_one_shape_fill_one_lane_and_pack_into_little() {
    let (d, mut head) = (directory(), Head::new());
    // The first lane's first chunk is closed after 60 rows.
    for index in 1..=60 + 3 * 120 + 20 {
        assert!(scrape(&mut head, &d, index, &[Run { first: 0, len: SERIES }]));
        head.show();
    }
    assert_eq!(head.lanes.len(), 1);
    assert_eq!(head.lanes[0].chunks.len(), 4);
    assert_eq!(head.lanes[0].open_rows(), 20);
    assert!(head.bytes() < 8000, "{} bytes for 5,280 samples", head.bytes());
}

#[test]
fn rows_show_when_their_entry_is_over() {
    let (d, mut head) = (directory(), Head::new());
    let everything: Spans = smallvec![(i64::MIN, i64::MAX)];
    scrape(&mut head, &d, 1, &[Run { first: 0, len: 4 }]);
    let count = |head: &Head| {
        let mut out = Points::default();
        head.append_samples(0, &everything, &mut Unpacker::default(), &mut out);
        out.len()
    };
    assert_eq!((count(&head), head.times_of(0)), (0, None));
    head.show();
    assert_eq!((count(&head), head.times_of(0)), (1, Some((1, 1))));
}

#[test]
fn ids_that_are_no_series_are_refused_and_nothing_is_taken() {
    let (d, mut head) = (directory(), Head::new());
    let bad = [
        Run { first: SERIES, len: 1 },
        Run {
            first: 0,
            len: SERIES + 1,
        },
        Run { first: 1000, len: 1 },
        Run {
            first: u32::MAX,
            len: 2,
        },
    ];
    for run in bad {
        let rows = Rows {
            times: &[],
            runs: &[run],
            values: &[],
        };
        assert!(!head.push_rows(1, &rows, &d, &mut |_, _, _| {}), "{run:?}");
    }
    assert!(head.is_empty() && head.ids(false).is_empty());
    let line = RawLine {
        at: 1,
        line: b"x",
        metadata: b"",
    };
    assert!(!head.push_lines(1, 0, &d, [line].into_iter()));
    assert!(head.push_lines(1, SERIES, &d, [line].into_iter()));
}

/// Lines by time, those of one time in the order of commits.
fn by_time(lines: &[(i64, String)]) -> Vec<(i64, Vec<u8>)> {
    let mut sorted = lines.to_vec();
    sorted.sort_by_key(|l| l.0);
    sorted.into_iter().map(|(at, l)| (at, l.into_bytes())).collect()
}

/// What readers make of a stream: of one time, lines go by their rows.
fn read(column: &Column) -> Vec<(i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for (number, packed) in column.closed().packed.iter().enumerate() {
        let lines = packed.block().lines(0..packed.info().rows as usize).unwrap();
        for (row, l) in lines.iter().enumerate() {
            found.insert((l.at, number * crate::logs::BLOCK_ROWS_MAX + row), l.line.to_vec());
        }
    }
    found.extend(column.loose_lines().map(|(row, l)| ((l.at, row), l.line.to_vec())));
    found.into_iter().map(|((at, _), line)| (at, line)).collect()
}

fn write(column: &Column) -> Vec<(i64, Vec<u8>)> {
    let disk = hindcast_env::SimDisk::new();
    hindcast_env::Disk::create_dir_all(&disk, "d").unwrap();
    let head = crate::container::Head {
        tenant: TenantId::default(),
        kind: crate::container::FileKind::Log,
        policy: crate::retention::Policy::Unowned,
        group: hindcast_model::GroupId(1),
        commits: (1, 1),
        times: (0, 100),
        extra: vec![],
    };
    let mut writer = crate::logs::Writer::create(&disk, "d", 1, head, crate::logs::Tier::Flush).unwrap();
    column.write(&mut writer).unwrap();
    let segment = writer.finish(&disk).unwrap();
    let mut found = vec![];
    for number in segment.blocks_of(column.id) {
        let block = segment.block(number);
        let lines = block.lines(0..block.rows()).unwrap();
        found.extend(lines.iter().map(|l| (l.at, l.line.to_vec())));
    }
    found
}

proptest! {
    /// Packed early, late or never, in order or not: a stream is what was pushed, here and in its file.
    #[test]
    fn a_stream_is_the_same_however_it_is_packed(
        steps in prop::collection::vec(
            (prop::collection::vec((0i64..60, "[a-c]{0,3} [0-9]{1,2}"), 0..12), any::<bool>(), any::<bool>(), any::<bool>()),
            1..12,
        ),
        in_order in any::<bool>(),
        span in (0i64..60, 0i64..5),
    ) {
        let (mut column, mut plain) = (Column::new(3), vec![]);
        let mut encoder = crate::logs::BlockEncoder::default();
        let mut now = 0;
        for (lines, show, pack_now, open) in steps {
            let lines: Vec<(i64, String)> = lines
                .into_iter()
                .map(|(at, line)| {
                    now += at % 3;
                    (if in_order { now } else { at }, line)
                })
                .collect();
            let raw = |(at, line): &'_ (i64, String)| (*at, line.clone());
            plain.extend(lines.iter().map(raw));
            column.push(lines.iter().map(|(at, line)| RawLine { at: *at, line: line.as_bytes(), metadata: b"" }));
            column.show();
            if show {
                prop_assert_eq!(read(&column), by_time(&plain));
            }
            if pack_now {
                let chunks = column.close_to_pack(open);
                let held = column.loose_bytes();
                let (_, freed) = column.put_packed(pack(&chunks, &mut encoder));
                prop_assert_eq!(column.loose_bytes(), held - freed);
            }
        }
        let want = by_time(&plain);
        prop_assert_eq!(read(&column), want.clone());
        prop_assert_eq!(column.times(), want.first().zip(want.last()).map(|(a, b)| (a.0, b.0)));
        let spans: Spans = smallvec![(span.0, span.0 + span.1)];
        prop_assert_eq!(column.has_any(&spans).unwrap(), want.iter().any(|l| is_in(&spans, l.0)));
        prop_assert_eq!(write(&column), want);
    }
}

#[test]
fn a_stream_that_grows_is_packed_and_its_head_stays_small() {
    let (d, mut head) = (directory(), Head::new());
    let mut encoder = crate::logs::BlockEncoder::default();
    let mut taken = 0;
    for index in 1..=600 {
        let texts: Vec<String> = (0..100)
            .map(|i| {
                format!(
                    "request {} of host web-{} took {} ms",
                    index * 100 + i,
                    i % 7,
                    i * 31 % 900
                )
            })
            .collect();
        taken += texts.iter().map(String::len).sum::<usize>();
        let lines = (0..).zip(&texts).map(|(i, l)| RawLine {
            at: (index * 100 + i) as i64,
            line: l.as_bytes(),
            metadata: b"",
        });
        assert!(head.push_lines(index, SERIES, &d, lines));
        for stream in head.show() {
            let packed = pack(&head.close_to_pack(stream), &mut encoder);
            head.put_packed(stream, packed);
        }
        assert!(head.bytes() < 3 << 20, "{} bytes", head.bytes());
    }
    assert_eq!(head.lines(), 60_000);
    let column = head.stream(SERIES).unwrap();
    assert!(column.closed().packed.len() > 1);
    assert!(
        head.bytes() < head.loose_bytes() + taken / 10,
        "{} of {taken} bytes",
        head.bytes()
    );
}

#[test]
fn many_streams_of_little_are_packed_early_and_tiny_ones_wait_for_the_flush() {
    let tenant = TenantId::default();
    let mut d = Directory::default();
    let mut streams = vec![];
    for i in 0..1200 {
        let labels = Labels::from_pairs([("job", &format!("j{i}"))]);
        streams.push(d.find_or_add(&tenant, true, &labels, &Owner::None));
    }
    let (mut head, mut encoder) = (Head::new(), crate::logs::BlockEncoder::default());
    let text = "a line of some length that comes again and again ".repeat(20);
    let mut most = 0;
    for index in 1..=60u64 {
        // Most streams get a kilobyte an entry, the last two hundred one in thirty.
        for (i, &id) in streams
            .iter()
            .enumerate()
            .filter(|(i, _)| *i < 1000 || index.is_multiple_of(30))
        {
            let line = RawLine {
                at: index as i64 * 1000 + i as i64,
                line: text.as_bytes(),
                metadata: b"",
            };
            assert!(head.push_lines(index, id, &d, [line].into_iter()));
        }
        for stream in head.show() {
            let packed = pack(&head.close_to_pack(stream), &mut encoder);
            head.put_packed(stream, packed);
        }
        most = most.max(head.loose_bytes());
    }
    assert!(most < LOOSE_BYTES_MAX + (4 << 20), "{most} bytes");
    let packed = |id: &u32| head.stream(*id).is_some_and(|c| !c.closed().packed.is_empty());
    assert!(streams[..1000].iter().filter(|id| packed(id)).count() > 300);
    assert!(!streams[1000..].iter().any(packed));
}

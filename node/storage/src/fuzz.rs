//! This crate's decoders as fuzz targets, with seeds by its own encoders. See `hindcast_env::fuzz`.

use crate::container::{Container, FileKind, FileRef, Head};
use crate::index::Directory;
use crate::logs::{self, Block, BlockEncoder, Filter, Settled};
use crate::manifest::{Manifest, Side, read_side};
use crate::metric::{self, Encoder, PAGE_ROWS_MAX, Page, Scratch};
use crate::retention::{Policy, Retention};
use crate::segment::{Segment, SegmentRef, Tier};
use crate::{RawLine, newest, put_metadata};
use hindcast_env::disk::write_new_file;
use hindcast_env::fuzz::{Target, without_checksums};
use hindcast_env::{ColdRef, ColdTier, Disk, SimCold, SimDisk};
use hindcast_model::{GroupId, Labels, Owner, TenantId};
use std::sync::Arc;

/// Every decoder of bytes that lie on a disk or come from a peer's disk.
pub const TARGETS: &[Target] = &[
    Target {
        name: "storage-metric-page",
        run: metric_page,
        seeds: metric_page_seeds,
    },
    Target {
        name: "storage-metric-segment",
        run: metric_segment,
        seeds: metric_segment_seeds,
    },
    Target {
        name: "storage-log-block",
        run: log_block,
        seeds: log_block_seeds,
    },
    Target {
        name: "storage-log-segment",
        run: log_segment,
        seeds: log_segment_seeds,
    },
    Target {
        name: "storage-line-metadata",
        run: line_metadata,
        seeds: line_metadata_seeds,
    },
    Target {
        name: "storage-directory",
        run: directory,
        seeds: directory_seeds,
    },
    Target {
        name: "storage-newest",
        run: newest_times,
        seeds: newest_seeds,
    },
    Target {
        name: "storage-manifest",
        run: manifest,
        seeds: manifest_seeds,
    },
    Target {
        name: "storage-cold-table",
        run: cold_table,
        seeds: cold_table_seeds,
    },
    Target {
        name: "storage-side-file",
        run: side_file,
        seeds: side_file_seeds,
    },
];

const SEGMENT: &str = "d/segment-0000000000000001";
/// A whole segment is more than enough to go wrong with so many pages or blocks.
const PARTS_MAX: usize = 64;

fn head(kind: FileKind) -> Head {
    Head {
        tenant: TenantId::default(),
        kind,
        policy: Policy::ALL[0],
        group: GroupId(1),
        commits: (1, 9),
        times: (i64::MIN, i64::MAX),
        extra: vec![],
    }
}

/// The bytes as a file that the manifest names just so.
fn as_segment(bytes: &[u8]) -> (SimDisk, FileRef) {
    let disk = SimDisk::new();
    write_new_file(&disk, SEGMENT, bytes).expect("memory is no disk that fails");
    let mut blake3 = [0; 32];
    if let Some(footer) = bytes.len().checked_sub(40).map(|at| &bytes[at..at + 32]) {
        blake3.copy_from_slice(footer);
    }
    let file = FileRef {
        number: 1,
        bytes: bytes.len() as u64,
        blake3,
    };
    (disk, file)
}

fn values(kind: usize, n: usize) -> Vec<f64> {
    let value = |i: usize| match kind {
        0 => 1.5,
        1 => i as f64,
        2 => (i * i % 97) as f64 / 10.0,
        3 => f64::from_bits(0x7ff8_0000_0000_0000 | i as u64),
        4 => (i as f64).sin() * 1e9,
        _ => (1u64 << (i % 60)) as f64,
    };
    (0..n).map(value).collect()
}

fn times(kind: usize, n: usize) -> Vec<i64> {
    let step = |i: i64| if kind == 0 { 15_000 } else { 15_000 + i * 7919 % 13 };
    let mut at = 1_700_000_000_000_000_000;
    (0..n as i64)
        .map(|i| {
            at += step(i) * 1_000_000;
            at
        })
        .collect()
}

fn raw_lines() -> Vec<(i64, String, Vec<u8>)> {
    let mut metadata = vec![];
    put_metadata(&mut metadata, &[("trace_id".to_owned(), "00ff".repeat(8))]);
    let line = |i: i64| match i % 4 {
        0 => format!(
            "2015-07-29 17:41:44,{:03} INFO [worker-{i}] took {} ms",
            i % 1000,
            i * 7
        ),
        1 => format!("오류: 디스크 sd{} 사용률 {}%", i % 3, i % 100),
        2 => format!("blk_-{} terminating of 10.0.{}.{}", i * 98_765, i % 4, i % 250),
        _ => String::new(),
    };
    (0..60)
        .map(|i| {
            let metadata = if i % 5 == 0 { metadata.clone() } else { vec![] };
            (i * 1_000_003, line(i), metadata)
        })
        .collect()
}

fn with_raw_lines<T>(f: impl FnOnce(&[RawLine<'_>]) -> T) -> T {
    let owned = raw_lines();
    let lines: Vec<RawLine<'_>> = owned
        .iter()
        .map(|(at, line, metadata)| RawLine {
            at: *at,
            line: line.as_bytes(),
            metadata,
        })
        .collect();
    f(&lines)
}

// ---- metrics ----

/// Two bytes say how many rows the page is read with; as a table would.
fn metric_page(bytes: &[u8]) {
    let Some((n, page)) = bytes.split_first_chunk() else {
        return;
    };
    let n = 1 + usize::from(u16::from_le_bytes(*n)) % PAGE_ROWS_MAX;
    let Ok(page) = Page::parse(page, n) else { return };
    let mut scratch = Scratch::default();
    let mut out = vec![];
    let _ = page.decode_into(&mut out, &mut scratch);
    let _ = page.decode_ints(&mut vec![0; n], &mut scratch);
    let _ = page.chunks(n, &mut scratch, |_| ());
    let _ = (page.closed(), page.may_hold_nan(), page.ascends());
}

fn metric_page_seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![];
    for kind in 0..6 {
        for n in [1usize, 2, 120, 700] {
            for best in [false, true] {
                let mut page = ((n - 1) as u16).to_le_bytes().to_vec();
                let mut encoder = Encoder::default();
                if best {
                    encoder.encode_best(&values(kind, n), &mut page);
                } else {
                    encoder.encode(&values(kind, n), &mut page);
                }
                seeds.push(page);
            }
        }
    }
    seeds
}

fn metric_segment(bytes: &[u8]) {
    without_checksums(|| {
        let (disk, file) = as_segment(bytes);
        let Ok(segment) = metric::Segment::open(&disk, "d", &file) else {
            return;
        };
        let mut reader = segment.reader();
        let pages = segment.series().flat_map(|(_, pages)| pages);
        for page in pages.take(PARTS_MAX) {
            let _ = (segment.page_times(page), segment.page_rows(page));
            let _ = reader.samples(page);
            let _ = reader.rows_in(page, 0, i64::MAX);
        }
        let _ = (segment.pages_in(1, 0, i64::MAX), segment.memory_bytes());
    });
}

fn metric_segment_seeds() -> Vec<Vec<u8>> {
    let write = |tier| {
        let disk = SimDisk::new();
        let mut w = metric::Writer::create(&disk, "d", 1, head(FileKind::Metric), tier)?;
        for id in 0..12u32 {
            let n = [1, 5, 120, 700][id as usize % 4];
            w.series(id * 3, &times(id as usize % 2, n), &values(id as usize % 6, n))?;
        }
        w.finish(&disk)?;
        disk.read(SEGMENT)
    };
    let tiers = [metric::Tier::Flush, metric::Tier::Compacted];
    tiers
        .map(|tier| write(tier).expect("memory is no disk that fails").to_vec())
        .into()
}

// ---- logs ----

fn read_block(block: &Block, rows: usize) {
    let _ = block.times();
    let _ = block.lines(0..rows);
    let _ = block.rows_of(&[0]);
    for filter in [Filter::contains(b"worker-7"), Filter::contains(b"x")] {
        let _ = block.may_match(&filter);
        let _ = block.count(&filter, 0, i64::MAX);
        let _ = block.matches(&filter, &mut Settled::default(), i64::MIN, i64::MAX, &mut vec![]);
    }
}

fn log_block(bytes: &[u8]) {
    without_checksums(|| {
        if let Ok(block) = Block::parse(bytes.to_vec().into()) {
            let rows = block.info().rows as usize;
            read_block(&block, rows);
        }
    });
}

fn log_block_seeds() -> Vec<Vec<u8>> {
    with_raw_lines(|lines| {
        let encode = |lines: &[RawLine<'_>], level| {
            let mut sections = vec![];
            let info = BlockEncoder::default().encode(lines.iter().copied(), level, &mut sections);
            let mut bytes = vec![];
            info.put(&mut bytes, 0);
            bytes.extend_from_slice(&sections);
            bytes
        };
        vec![encode(lines, 1), encode(&lines[..3], 1), encode(&lines[1..2], 3)]
    })
}

fn log_segment(bytes: &[u8]) {
    without_checksums(|| {
        let (disk, file) = as_segment(bytes);
        let Ok(segment) = logs::Segment::open(&disk, "d", &file) else {
            return;
        };
        let blocks = segment.streams().flat_map(|id| segment.blocks_of(id));
        for number in blocks.take(PARTS_MAX) {
            let rows = segment.info(number).rows as usize;
            read_block(&segment.block(number), rows);
        }
    });
}

fn log_segment_seeds() -> Vec<Vec<u8>> {
    let write = |tier| {
        let disk = SimDisk::new();
        let head = head(FileKind::Log);
        let mut w = logs::Writer::create(&disk, "d", 1, head, tier).expect("memory is no disk that fails");
        with_raw_lines(|lines| {
            for id in [2, 5, 6] {
                w.stream(id, lines[id as usize..].iter().copied())
                    .expect("memory is no disk that fails");
            }
        });
        w.finish(&disk).expect("memory is no disk that fails");
        disk.read(SEGMENT).expect("it was just written").to_vec()
    };
    [logs::Tier::Flush, logs::Tier::Compacted].map(write).into()
}

fn line_metadata(bytes: &[u8]) {
    let line = RawLine {
        at: 0,
        line: b"",
        metadata: bytes,
    };
    let _ = line.to_line();
}

fn line_metadata_seeds() -> Vec<Vec<u8>> {
    let pairs = [("trace_id", "00ff"), ("level", "info"), ("이름", "값")];
    let pairs: Vec<_> = pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    (0..=pairs.len())
        .map(|n| {
            let mut metadata = vec![];
            put_metadata(&mut metadata, &pairs[..n]);
            metadata
        })
        .collect()
}

// ---- beside the segments ----

fn directory(bytes: &[u8]) {
    without_checksums(|| {
        let mut directory = Directory::default();
        if directory.load(bytes).is_ok() {
            let _ = directory.get(0).map(|s| s.labels());
            let count = |_: &str, ids: &mut dyn Iterator<Item = u32>| {
                ids.count();
                Ok::<(), ()>(())
            };
            let _ = directory.visit_label_texts(&TenantId::default(), false, None, &[vec![]], count);
            let _ = directory.encode_from(0);
        }
    });
}

fn directory_seeds() -> Vec<Vec<u8>> {
    let mut directory = Directory::default();
    for i in 0..40 {
        let labels = Labels::new(vec![
            ("__name__".to_owned(), format!("node_cpu_{}", i % 3)),
            ("instance".to_owned(), format!("host-{}:9100", i % 7)),
            ("cpu".to_owned(), i.to_string()),
        ]);
        directory.find_or_add(&TenantId::default(), i % 5 == 0, &labels, &Owner::None);
    }
    vec![directory.encode_from(0), Directory::default().encode_from(0)]
}

fn newest_times(bytes: &[u8]) {
    let _ = newest::decode(bytes, 10_000);
}

fn newest_seeds() -> Vec<Vec<u8>> {
    vec![
        newest::encode(&times(1, 50)),
        newest::encode(&[]),
        newest::encode(&[i64::MIN, i64::MAX]),
    ]
}

fn manifest(bytes: &[u8]) {
    without_checksums(|| {
        let disk = SimDisk::new();
        write_new_file(&disk, "d/manifest-0000000000000007", bytes).expect("memory is no disk that fails");
        if let Ok((manifest, _)) = Manifest::load(&disk, "d", 7) {
            let _ = manifest.names().count() + manifest.cold_names().count();
        }
    });
}

fn manifest_seeds() -> Vec<Vec<u8>> {
    let file = |number| FileRef {
        number,
        bytes: 1000,
        blake3: [7; 32],
    };
    let mut manifest = Manifest {
        sequence: 7,
        previous: (6, [1; 32]),
        group: GroupId(1),
        applied: 100,
        next_number: 12,
        retention: Retention::default(),
        segments: [(1, FileKind::Metric), (2, FileKind::Log)]
            .map(|(number, kind)| SegmentRef {
                kind,
                tier: Tier::Flush,
                file: file(number),
                cold: None,
            })
            .into(),
        series: vec![file(3)],
        newest: Some(file(4)),
        aux: Some(file(5)),
    };
    let without_cold = manifest.encode();
    manifest.segments[0].cold = Some(cold_ref(1000));
    vec![without_cold, manifest.encode()]
}

fn cold_ref(bytes: u64) -> ColdRef {
    ColdRef {
        name: "c/node-1/shard-1/segment-0000000000000001-07".to_owned(),
        bytes,
        blake3: [8; 32],
    }
}

/// The first two bytes say how long the blocks are that are not here.
fn cold_table(bytes: &[u8]) {
    let Some((blocks, bytes)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    without_checksums(|| {
        let (disk, mut file) = as_segment(bytes);
        file.bytes += u64::from(u16::from_le_bytes(*blocks));
        let path = crate::container::table_path_of("d", file.number);
        write_new_file(&disk, &path, bytes).expect("memory is no disk that fails");
        let tier = ColdTier::new(Arc::new(SimCold::default()), 1 << 20);
        for kind in [FileKind::Metric, FileKind::Log] {
            let named = SegmentRef {
                kind,
                tier: Tier::Compacted,
                file: file.clone(),
                cold: Some(cold_ref(file.bytes)),
            };
            if let Ok(segment) = Segment::open(&disk, "d", &named, Some(&tier)) {
                let ids = segment.ids();
                let _ = ids.iter().map(|id| segment.stretches(*id).len()).sum::<usize>();
                let _ = segment.immutable_file().check().next_bytes();
            }
        }
    });
}

fn cold_table_seeds() -> Vec<Vec<u8>> {
    let of = |bytes: &Vec<u8>, kind| {
        let (disk, file) = as_segment(bytes);
        let (container, _) = Container::open(&disk, "d", kind, &file).expect("it was just written");
        let table = container.table_bytes().expect("memory is no disk that fails");
        let blocks = (bytes.len() - table.len()) as u16;
        [&blocks.to_le_bytes()[..], &table].concat()
    };
    let metrics = metric_segment_seeds().into_iter().map(|b| of(&b, FileKind::Metric));
    let logs = log_segment_seeds().into_iter().map(|b| of(&b, FileKind::Log));
    metrics.chain(logs).collect()
}

fn side_file(bytes: &[u8]) {
    without_checksums(|| {
        let disk = SimDisk::new();
        write_new_file(&disk, "d/aux-0000000000000001", bytes).expect("memory is no disk that fails");
        let mut blake3 = [0; 32];
        if let Some(hash) = bytes.last_chunk::<32>() {
            blake3 = *hash;
        }
        let file = FileRef {
            number: 1,
            bytes: bytes.len() as u64,
            blake3,
        };
        let _ = read_side(&disk, "d", Side::Aux, &file);
    });
}

fn side_file_seeds() -> Vec<Vec<u8>> {
    let disk = SimDisk::new();
    let written = crate::manifest::write_side(&disk, "d", Side::Aux, 1, b"what the caller keeps beside the segments");
    written.expect("memory is no disk that fails");
    let path = format!("d/{}", Side::Aux.name(1));
    vec![disk.read(&path).expect("it was just written").to_vec()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_env::io::SystemClock;
    use hindcast_model::SpanNs;

    #[test]
    fn no_decoder_panics_or_hangs_on_damaged_bytes() {
        hindcast_env::fuzz::check_targets(TARGETS, &SystemClock::new(), SpanNs::from_ms(800));
    }

    /// Found by the loop: the length was believed, and measuring such a header later was a panic.
    #[test]
    fn a_header_with_a_longer_extra_area_than_any_writer_may_give_is_damage() {
        let mut bytes = metric_segment_seeds().swap_remove(0);
        // Behind the fixed fields and the tenant's name; a varint of 1,025.
        let at = 8 + 2 + 2 + 5 * 8 + 1 + TenantId::default().as_str().len();
        assert_eq!(bytes[at], 0, "the extra area's length");
        bytes.splice(at..at + 1, [0x81, 0x08]);
        let (disk, file) = as_segment(&bytes);
        let opened = without_checksums(|| metric::Segment::open(&disk, "d", &file).map(drop));
        assert!(opened.unwrap_err().to_string().contains("extra area"));
    }

    #[test]
    fn seeds_are_what_the_decoders_read() {
        let (disk, file) = as_segment(&metric_segment_seeds()[0]);
        assert_eq!(metric::Segment::open(&disk, "d", &file).unwrap().series().len(), 12);
        let (disk, file) = as_segment(&log_segment_seeds()[0]);
        assert_eq!(logs::Segment::open(&disk, "d", &file).unwrap().streams().count(), 3);
        assert_eq!(
            Block::parse(log_block_seeds()[0].clone().into()).unwrap().info().rows,
            60
        );
        let mut directory = Directory::default();
        directory.load(&directory_seeds()[0]).unwrap();
        assert_eq!(directory.len(), 40);
        assert_eq!(newest::decode(&newest_seeds()[0], 50).unwrap().len(), 50);
        for seed in cold_table_seeds() {
            let (disk, mut file) = as_segment(&seed[2..]);
            file.bytes += u64::from(u16::from_le_bytes([seed[0], seed[1]]));
            write_new_file(&disk, &crate::container::table_path_of("d", 1), &seed[2..]).unwrap();
            let tier = ColdTier::new(Arc::new(SimCold::default()), 1 << 20);
            let cold = cold_ref(file.bytes);
            let open = |kind| Container::open_cold(&disk, "d", kind, &file, (&tier, &cold)).is_ok();
            assert!(open(FileKind::Metric) != open(FileKind::Log));
        }
    }
}

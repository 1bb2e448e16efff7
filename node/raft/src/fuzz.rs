//! This crate's decoders as fuzz targets, with seeds by its own encoders. See `hindcast_env::fuzz`.

use crate::log::{HardState, LogConfig, LogStore, LogWrite, SnapshotPoint};
use crate::log_view::Point;
use crate::mem_store::MemStore;
use crate::meta::{Changes, MetaStore};
use crate::meta_snapshot::{SnapshotFile, export_all};
use crate::record::{self, Body, Kind};
use crate::wire;
use bytes::Bytes;
use hindcast_env::disk::{make_dir, write_new_file};
use hindcast_env::fuzz::{Target, without_checksums};
use hindcast_env::{Disk, SimDisk};
use hindcast_model::GroupId;
use raft::eraftpb::{Entry, Message, MessageType};
use std::sync::Arc;

/// The log as it lies on the disk, a snapshot's file, and what a peer sends.
pub const TARGETS: &[Target] = &[
    Target {
        name: "raft-log",
        run: log,
        seeds: log_seeds,
    },
    Target {
        name: "raft-record",
        run: read_record,
        seeds: record_seeds,
    },
    Target {
        name: "raft-meta-snapshot",
        run: meta_snapshot,
        seeds: meta_snapshot_seeds,
    },
    Target {
        name: "raft-wire",
        run: wire_message,
        seeds: wire_seeds,
    },
];

const SEGMENT: &str = "log/0000000000000001.log";
/// A snapshot may be a few bytes of zstd that unpack to any number of rows; a reader takes them one by one.
const ROWS_MAX: usize = 10_000;

fn config() -> LogConfig {
    LogConfig {
        segment_bytes_max: 16 << 10,
        prewrite_bytes: 1 << 10,
        free_segments_max: 1,
        segments_max: 4,
        cache_bytes_max: 1 << 10,
    }
}

/// The bytes as the only segment. Twice: with checksums as they are, as a damaged disk would give it, and without,
/// for what lies behind them; a log whose records verify was written by us, so only the scan is run there.
fn log(bytes: &[u8]) {
    let disk = SimDisk::new();
    let mut file = bytes.to_vec();
    let header = record::header(1);
    if file.len() >= header.len() {
        file[..header.len()].copy_from_slice(&header);
    }
    let written = make_dir(&disk, "log").and_then(|()| write_new_file(&disk, SEGMENT, &file));
    written.expect("memory is no disk that fails");
    if let Ok(mut store) = LogStore::open(Arc::new(disk), "log", config()) {
        for group in store.groups() {
            let _ = store.recovered(group);
            let view = store.view(group);
            let view = view.lock();
            let _ = view.entries(view.first_index(), view.last_index() + 1, u64::MAX);
        }
    }
    read_record(&file);
}

fn log_seeds() -> Vec<Vec<u8>> {
    let disk = SimDisk::new();
    let mut store = LogStore::open(Arc::new(disk.clone()), "log", config()).expect("memory is no disk that fails");
    let views = [0, 1, 2].map(|g| store.view(GroupId(g)));
    let mut write = |group: u64, write| store.write(GroupId(group), write).expect("it is open");
    for (group, view) in (0..).zip(&views) {
        let conf = Bytes::from_static(&[8, 1]);
        let at = Point::default();
        write(group, LogWrite::Conf(SnapshotPoint { at, conf }));
        for index in 1..=5u64 {
            let entries = vec![Entry {
                index,
                term: 1 + index / 3,
                data: vec![index as u8; 40 * index as usize].into(),
                context: vec![7; 16].into(),
                ..Entry::default()
            }];
            let version = view.lock().append(&entries);
            write(group, LogWrite::Entries { version, entries });
        }
        write(
            group,
            LogWrite::HardState(HardState {
                term: 2,
                vote: 1,
                commit: 4,
            }),
        );
        write(group, LogWrite::Truncate(Point { index: 2, term: 1 }));
    }
    let point = SnapshotPoint {
        at: Point { index: 9, term: 2 },
        conf: Bytes::from_static(&[8, 1]),
    };
    write(2, LogWrite::Announce(point.clone()));
    write(2, LogWrite::Reset(point));
    store.commit(true).expect("memory is no disk that fails");
    vec![disk.read(SEGMENT).expect("it was just written").to_vec()]
}

/// Records one after the other, from wherever one can be read.
fn read_record(bytes: &[u8]) {
    without_checksums(|| {
        let bytes = Bytes::copy_from_slice(bytes);
        let mut at = 0;
        while at < bytes.len() {
            match record::scan(&bytes, at, 1) {
                record::Scan::Record { body, payload, len } => {
                    let _ = record::read_entry(body, &payload);
                    at += len.next_multiple_of(record::ALIGN_BYTES);
                }
                record::Scan::Bad(_) => {
                    // Everything behind is looked at anyway; once is enough.
                    let _ = record::beyond(&bytes, at, 1);
                    break;
                }
            }
        }
    });
}

fn record_seeds() -> Vec<Vec<u8>> {
    let entry = Entry {
        index: 5,
        term: 2,
        data: vec![1; 50].into(),
        context: vec![7; 16].into(),
        ..Entry::default()
    };
    let mut bytes = vec![];
    for (index, kind) in (1..).zip([Kind::Entry, Kind::HardState, Kind::Copy, Kind::Truncate, Kind::End]) {
        let body = Body {
            kind,
            group: GroupId(1),
            index,
            term: 2,
        };
        let mut payload = vec![];
        record::entry_payload(&entry, &mut payload);
        record::encode(&mut bytes, 1, 64, body, &payload);
    }
    vec![bytes]
}

fn meta_snapshot(bytes: &[u8]) {
    without_checksums(|| {
        let disk = SimDisk::new();
        write_new_file(&disk, "meta.snapshot", bytes).expect("memory is no disk that fails");
        let Ok(Some(mut file)) = SnapshotFile::open(&disk, "meta.snapshot") else {
            return;
        };
        for _ in 0..ROWS_MAX {
            if !matches!(file.next_row(), Ok(Some(_))) {
                break;
            }
        }
    });
}

fn meta_snapshot_seeds() -> Vec<Vec<u8>> {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let store = MemStore::default();
    let mut changes = Changes::new();
    for i in 0..30u8 {
        let tree = ["cluster", "gateway", "desk"][usize::from(i) % 3];
        changes.insert((tree.to_owned(), vec![i]), Some(vec![i; usize::from(i) * 3]));
    }
    store.commit(&changes, 7).expect("a map takes anything");
    export_all(disk.clone(), "meta.snapshot", &store).expect("memory is no disk that fails");
    vec![disk.read("meta.snapshot").expect("it was just written").to_vec()]
}

fn wire_message(bytes: &[u8]) {
    let _ = wire::parse(&Bytes::copy_from_slice(bytes));
}

fn wire_seeds() -> Vec<Vec<u8>> {
    let kinds = [
        MessageType::MsgAppend,
        MessageType::MsgHeartbeat,
        MessageType::MsgRequestVote,
    ];
    let message = |kind| {
        let mut message = Message {
            from: 1,
            to: 2,
            term: 3,
            ..Message::default()
        };
        message.set_msg_type(kind);
        let entries = (1..=3).map(|index| Entry {
            index,
            term: 3,
            data: vec![5; 100].into(),
            context: vec![9; 16].into(),
            ..Entry::default()
        });
        message.set_entries(entries.collect::<Vec<_>>().into());
        wire::pack(GroupId(1), message).head.to_vec()
    };
    kinds.map(message).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_env::io::SystemClock;
    use hindcast_model::SpanNs;

    #[test]
    fn no_decoder_panics_or_hangs_on_damaged_bytes() {
        hindcast_env::fuzz::check_targets(TARGETS, &SystemClock::new(), SpanNs::from_ms(1000));
    }
}

//! Files of every type and version, as they were written: still read, and still what today's writer gives.
//!
//! `UPDATE_EXPECT=1` writes them anew; only a new format version is a reason to.

#![allow(clippy::disallowed_methods, reason = "golden files lie beside the tests")]

use crate::cold::{cold_config, move_all};
use crate::naive::{all_lines, all_series, instant, owners};
use expect_test::expect;
use hindcast_env::{ColdStore, Disk, SimCold, SimDisk};
use hindcast_model::{GroupId, Labels, LogLine, STALE_NAN_BITS, Sample, SeriesBlock, StreamBlock, TenantId};
use hindcast_storage::{Floor, Pin, Shard, ShardConfig, TOPOLOGY_LABEL};
use std::path::PathBuf;
use std::sync::Arc;

fn folder(of: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(of)
}

fn config() -> ShardConfig {
    ShardConfig {
        group: GroupId(2),
        ..ShardConfig::default()
    }
}

fn series(name: &str, values: impl Iterator<Item = f64>) -> SeriesBlock {
    SeriesBlock {
        labels: Labels::from_pairs([("__name__", name), ("job", "golden")]),
        owner: owners()[1],
        samples: values
            .zip(0..)
            .map(|(value, i)| Sample { at: instant(i), value })
            .collect(),
    }
}

fn stream(labels: [(&str, &str); 1], lines: &[&str]) -> StreamBlock {
    StreamBlock {
        labels: Labels::from_pairs(labels),
        owner: owners()[2],
        lines: lines
            .iter()
            .zip(0..)
            .map(|(line, i)| LogLine {
                at: instant(i / 2),
                line: (*line).to_owned().into(),
                metadata: vec![("trace_id".to_owned(), format!("{i:032x}"))],
            })
            .collect(),
    }
}

fn cold_golden(cold: &SimCold) -> ShardConfig {
    ShardConfig {
        cold: cold_config(cold, "s").cold,
        ..config()
    }
}

/// The same, merged and moved to a cold store, but for what is exempt.
fn moved_today() -> (SimDisk, SimCold) {
    let (disk, cold) = (written_today(), SimCold::default());
    let (mut shard, _) = Shard::open(Arc::new(disk.clone()), "s", cold_golden(&cold)).unwrap();
    while shard.compact_fully().unwrap().is_some() {}
    assert_eq!(move_all(&mut shard, instant(100)).unwrap(), None);
    shard.compact().unwrap();
    assert_eq!((shard.stats().segments, shard.stats().cold_segments), (3, 2));
    (disk, cold)
}

/// One value page of each kind, lines with metadata, an exempt stream, a pin, a cut, floors and aux bytes.
fn written_today() -> SimDisk {
    let disk = SimDisk::new();
    let (mut shard, _) = Shard::open(Arc::new(disk.clone()), "s", config()).unwrap();
    let tenant = TenantId::new("golden").unwrap();
    let odd = [f64::from_bits(STALE_NAN_BITS), -0.0, f64::NEG_INFINITY, 1e-300];
    let all = [
        series("node_constant", [7.25; 12].into_iter()),
        series("node_counter", (0..30).map(|i| f64::from(i * i))),
        series("node_gauge", (0..30).map(|i| f64::from(i) / 100.0)),
        series("node_odd", odd.into_iter()),
    ];
    let lines = ["first", "second \u{1F980}", "", "first"];
    let streams = [
        stream([("job", "golden")], &lines),
        stream([(TOPOLOGY_LABEL, "edge")], &["{}"]),
    ];
    shard.write(1, &tenant, &all, &streams);
    shard.advance(1);
    shard.cut(2);
    shard.advance(2);
    shard.pin(Pin {
        id: "INC-1".to_owned(),
        tenant: tenant.clone(),
        from: instant(0),
        to: instant(9),
        owners: Some(owners()[1].id().into_iter().collect()),
        cuts: vec![2],
    });
    shard.retain(vec![Floor::at(None, None, instant(1))]);
    shard.advance(3);
    shard.flush(b"golden aux").unwrap();
    disk
}

/// Both tests look at the files, at the same time: who comes first writes them.
fn update_if_asked() {
    static UPDATED: std::sync::Once = std::sync::Once::new();
    UPDATED.call_once(|| {
        if std::env::var_os("UPDATE_EXPECT").is_none() {
            return;
        }
        write_folder(&written_today(), "v2/shard");
        let (disk, cold) = moved_today();
        write_folder(&disk, "v3/shard");
        for name in cold.names() {
            let path = folder("v3/store").join(&name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, cold.file(&name).unwrap()).unwrap();
        }
    });
}

fn write_folder(disk: &SimDisk, of: &str) {
    std::fs::create_dir_all(folder(of)).unwrap();
    for name in disk.list("s").unwrap() {
        std::fs::write(folder(of).join(&name), disk.read(&format!("s/{name}")).unwrap()).unwrap();
    }
}

/// Names and bytes of a golden folder.
fn golden(of: &str) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(folder(of))
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()))
        .collect();
    files.sort();
    files
}

/// A shard's folder on a disk, as the golden files have it.
fn golden_disk(of: &str) -> SimDisk {
    let disk = SimDisk::new();
    for (name, bytes) in golden(of) {
        hindcast_env::disk::write_new_file(&disk, &format!("s/{name}"), &bytes).unwrap();
    }
    disk
}

#[test]
fn todays_writer_gives_the_golden_bytes() {
    update_if_asked();
    let (moved, cold) = moved_today();
    for (disk, of) in [(&written_today(), "v2/shard"), (&moved, "v3/shard")] {
        let names = disk.list("s").unwrap();
        let golden = golden(of);
        assert_eq!(names, golden.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>());
        for (name, bytes) in golden {
            let same = disk.read(&format!("s/{name}")).unwrap() == bytes;
            assert!(
                same,
                "{name} of {of} is written differently today: raise its version and keep the old reader"
            );
        }
    }
    for (name, bytes) in golden("v3/store/c/s") {
        assert!(
            cold.file(&format!("c/s/{name}")).is_some_and(|f| f == bytes),
            "{name} is put differently today"
        );
    }
}

#[test]
fn the_golden_files_are_still_read() {
    update_if_asked();
    let read = golden_is_read(golden_disk("v2/shard"), config());
    let cold = SimCold::default();
    for (name, bytes) in golden("v3/store/c/s") {
        let disk = SimDisk::new();
        hindcast_env::disk::write_new_file(&disk, "f", &bytes).unwrap();
        let file = disk.open_read("f").unwrap();
        cold.put(&format!("c/s/{name}"), file.as_ref()).unwrap();
    }
    let from_the_store = golden_is_read(golden_disk("v3/shard"), cold_golden(&cold));
    assert_eq!(from_the_store, read, "here and there");
}

/// A release that knows nothing of cold files must refuse a manifest that names some, and take one that names none.
#[test]
fn a_manifest_is_of_the_version_that_its_readers_need() {
    update_if_asked();
    for (of, version) in [("v2/shard", 2), ("v3/shard", 3)] {
        let files = golden(of);
        for (name, bytes) in files {
            let found = u16::from_le_bytes([bytes[8], bytes[9]]);
            let is_manifest = name.starts_with("manifest-");
            assert_eq!(found, if is_manifest { version } else { 2 }, "{of}/{name}");
        }
    }
}

fn golden_is_read(disk: SimDisk, config: ShardConfig) -> String {
    let (shard, opened) = Shard::open(Arc::new(disk), "s", config).unwrap();
    let tenant = TenantId::new("golden").unwrap();
    let mut out = format!(
        "applied {}, aux {:?}\n",
        opened.applied,
        String::from_utf8_lossy(&opened.aux)
    );
    out += &format!("floor {}\n", shard.floor_of(&tenant, None));
    let mut q = all_series(&tenant);
    q.as_of = Some(2);
    for s in shard.reader().series(&q).unwrap() {
        let (first, last) = (&s.samples[0], &s.samples[s.samples.len() - 1]);
        let n = s.samples.len();
        out += &format!("{} {n} {}={:x}", s.labels, first.at, first.value.to_bits());
        out += &format!(" {}={:x}\n", last.at, last.value.to_bits());
    }
    for s in shard.reader().lines(&all_lines(&tenant)).unwrap() {
        for l in s.lines {
            out += &format!(
                "{} {} {:?} {:?}\n",
                s.labels,
                l.at,
                String::from_utf8_lossy(&l.line),
                l.metadata
            );
        }
    }
    expect![[r#"
        applied 3, aux "golden aux"
        floor -9.000
        node_odd{job="golden"} 4 -10.000=7ff0000000000002 -7.000=1a56e1fc2f8f359
        node_constant{job="golden"} 12 -10.000=401d000000000000 1.000=401d000000000000
        node_counter{job="golden"} 30 -10.000=0 19.000=408a480000000000
        node_gauge{job="golden"} 30 -10.000=0 19.000=3fd28f5c28f5c28f
        {hindcast_topology="edge"} -10.000 "{}" [("trace_id", "00000000000000000000000000000000")]
        {job="golden"} -9.000 "" [("trace_id", "00000000000000000000000000000002")]
        {job="golden"} -9.000 "first" [("trace_id", "00000000000000000000000000000003")]
    "#]]
    .assert_eq(&out);
    shard.scrub().unwrap();
    out
}

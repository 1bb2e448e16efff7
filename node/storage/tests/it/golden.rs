//! Files of every type and version, as they were written: still read, and still what today's writer gives.
//!
//! `UPDATE_EXPECT=1` writes them anew; only a new format version is a reason to.

#![allow(clippy::disallowed_methods, reason = "golden files lie beside the tests")]

use crate::naive::{all_lines, all_series, instant, owners};
use expect_test::expect;
use hindcast_env::{Disk, SimDisk};
use hindcast_model::{GroupId, Labels, LogLine, STALE_NAN_BITS, Sample, SeriesBlock, StreamBlock, TenantId};
use hindcast_storage::{Floor, Pin, Shard, ShardConfig, TOPOLOGY_LABEL};
use std::path::PathBuf;
use std::sync::Arc;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v2/shard")
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
        let disk = written_today();
        std::fs::create_dir_all(folder()).unwrap();
        for name in disk.list("s").unwrap() {
            std::fs::write(folder().join(&name), disk.read(&format!("s/{name}")).unwrap()).unwrap();
        }
    });
}

#[test]
fn todays_writer_gives_the_golden_bytes() {
    let disk = written_today();
    let names = disk.list("s").unwrap();
    update_if_asked();
    let mut golden: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    golden.sort();
    assert_eq!(names, golden);
    for name in names {
        let same = disk.read(&format!("s/{name}")).unwrap() == std::fs::read(folder().join(&name)).unwrap();
        assert!(
            same,
            "{name} is written differently today: raise its version and keep the old reader"
        );
    }
}

#[test]
fn the_golden_files_are_still_read() {
    update_if_asked();
    let disk = SimDisk::new();
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        hindcast_env::disk::write_new_file(&disk, &format!("s/{name}"), &std::fs::read(&path).unwrap()).unwrap();
    }
    let (shard, opened) = Shard::open(Arc::new(disk), "s", config()).unwrap();
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
}

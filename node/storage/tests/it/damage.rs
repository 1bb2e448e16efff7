//! A wrong bit or a missing end, anywhere in any file: told, with the file's name, and never served.

use crate::naive::{all_lines, all_series, config, instant, label_sets, owners};
use hindcast_env::{Disk, SimDisk};
use hindcast_model::{LogLine, Sample, SeriesBlock, StreamBlock, TenantId};
use hindcast_storage::read::{SeriesData, StreamData};
use hindcast_storage::{Effort, Floor, Merged, Opened, ReadError, Shard, StorageError, check_export};
use std::sync::Arc;

type Answer = (Vec<SeriesData>, Vec<StreamData>);

pub fn series(i: u64) -> SeriesBlock {
    SeriesBlock {
        labels: label_sets()[0].clone(),
        owner: owners()[1],
        samples: (0..20)
            .map(|s| Sample {
                at: instant(s),
                value: (s as f64 + i as f64).sqrt(),
            })
            .collect(),
    }
}

fn stream(i: u64) -> StreamBlock {
    StreamBlock {
        labels: label_sets()[1].clone(),
        owner: owners()[2],
        lines: vec![LogLine {
            at: instant(i as i64),
            line: format!("line {i}").into(),
            metadata: vec![("a".to_owned(), i.to_string())],
        }],
    }
}

/// Two flushes, so that there is a manifest before the one in force.
fn filled() -> SimDisk {
    let disk = SimDisk::new();
    let (mut shard, _) = Shard::open(Arc::new(disk.clone()), "s", config()).unwrap();
    for i in 1..=2 {
        shard.write(i, &TenantId::default(), &[series(i)], &[stream(i)]);
        shard.advance(i);
        shard.flush(b"what the caller keeps").unwrap();
    }
    disk
}

/// A disk with the same files, each synced.
fn copy(disk: &SimDisk) -> SimDisk {
    let fresh = SimDisk::new();
    for name in disk.list("s").unwrap() {
        let path = format!("s/{name}");
        hindcast_env::disk::write_new_file(&fresh, &path, &disk.read(&path).unwrap()).unwrap();
    }
    fresh
}

fn answer(shard: &Shard) -> Result<Answer, ReadError> {
    let (reader, t) = (shard.reader(), TenantId::default());
    Ok((reader.series(&all_series(&t))?, reader.lines(&all_lines(&t))?))
}

/// Opens, reads and scrubs; the first damage that is told.
fn look(disk: &SimDisk) -> Result<(Opened, Answer), StorageError> {
    let (shard, opened) = Shard::open(Arc::new(disk.clone()), "s", config())?;
    let answer = answer(&shard)?;
    shard.scrub()?;
    Ok((opened, answer))
}

fn newest_manifest(disk: &SimDisk) -> String {
    let names = disk.list("s").unwrap();
    names.into_iter().rfind(|n| n.starts_with("manifest-")).unwrap()
}

/// What must come of damage to file `name`.
fn judge(name: &str, newest: &str, damaged: &SimDisk, truth: &Answer, what: &str) {
    let looked = look(damaged);
    if name == newest {
        // The one before takes over and the caller is told; it names fewer entries.
        let (opened, _) = looked.unwrap();
        assert!(opened.fell_back.is_some_and(|d| d.file.ends_with(name)), "{what}");
        assert_eq!(opened.applied, 1, "{what}");
    } else if name.starts_with("manifest-") {
        let (opened, answer) = looked.unwrap();
        assert_eq!(
            (opened.applied, &opened.fell_back, &answer),
            (2, &None, truth),
            "{what}"
        );
    } else if named_by_newest(name) {
        match looked {
            Err(StorageError::Damaged(d)) => assert!(d.file.ends_with(name), "{what}: {d}"),
            other => panic!("{what}: {other:?}"),
        }
    } else {
        assert_eq!(&looked.unwrap().1, truth, "{what}");
    }
}

/// Every file but those that the second flush replaced: the caller's bytes and the newest times of the first.
fn named_by_newest(name: &str) -> bool {
    !["aux-0000000000000005", "newest-0000000000000004"].contains(&name)
}

#[test]
fn a_wrong_bit_in_any_byte_of_any_file_is_told_and_never_served() {
    let disk = filled();
    let (newest, (_, truth)) = (newest_manifest(&disk), look(&disk).unwrap());
    let names = disk.list("s").unwrap();
    assert_eq!(names.len(), 11, "{names:?}");
    for name in names {
        let path = format!("s/{name}");
        for byte in 0..disk.read(&path).unwrap().len() {
            let damaged = copy(&disk);
            damaged.flip_bit(&path, byte, (byte % 8) as u8).unwrap();
            judge(&name, &newest, &damaged, &truth, &format!("byte {byte} of {name}"));
        }
    }
}

#[test]
fn a_file_cut_anywhere_is_told_and_never_served() {
    let disk = filled();
    let (newest, (_, truth)) = (newest_manifest(&disk), look(&disk).unwrap());
    for name in disk.list("s").unwrap() {
        let path = format!("s/{name}");
        for len in (0..disk.read(&path).unwrap().len()).step_by(5) {
            let damaged = copy(&disk);
            damaged.cut(&path, len).unwrap();
            judge(&name, &newest, &damaged, &truth, &format!("{name} cut to {len}"));
        }
    }
}

#[test]
fn damage_that_comes_while_a_segment_is_open_is_told_by_the_read() {
    let disk = filled();
    let (shard, _) = Shard::open(Arc::new(disk.clone()), "s", config()).unwrap();
    // The first group lies behind the header: 8 + 12 + 40 bytes and the tenant's name.
    disk.flip_bit("s/segment-0000000000000001", 80, 0).unwrap();
    let error = shard.reader().series(&all_series(&TenantId::default())).unwrap_err();
    let told = error.to_string();
    assert!(
        told.contains("segment-0000000000000001") && told.contains("checksum"),
        "{told}"
    );
}

#[test]
fn a_merge_that_meets_damage_leaves_that_file_alone_and_goes_on() {
    let disk = filled();
    let (mut shard, _) = Shard::open(Arc::new(disk.clone()), "s", config()).unwrap();
    for i in 3..=4 {
        shard.write(i, &TenantId::default(), &[series(i)], &[stream(i)]);
        shard.advance(i);
        shard.flush(b"").unwrap();
    }
    let lines = answer(&shard).unwrap().1;
    disk.flip_bit("s/segment-0000000000000001", 80, 0).unwrap();
    let mut merges = 0;
    while shard.compact_fully().unwrap().is_some() {
        merges += 1;
    }
    assert!(merges >= 2, "lines, and samples behind the damage");
    let damage = shard.take_damage();
    assert_eq!(damage.len(), 1, "{damage:?}");
    assert!(damage[0].file.ends_with("segment-0000000000000001"), "{damage:?}");
    assert!(shard.take_damage().is_empty());
    // Reads of the damaged file are told; the others answer, and rows go on coming.
    assert!(shard.reader().series(&all_series(&TenantId::default())).is_err());
    assert_eq!(shard.reader().lines(&all_lines(&TenantId::default())).unwrap(), lines);
    shard.write(5, &TenantId::default(), &[series(5)], &[]);
    shard.advance(5);
    shard.flush(b"").unwrap();
    assert_eq!(Shard::open(Arc::new(disk), "s", config()).unwrap().1.applied, 5);
}

#[test]
fn damage_that_a_merge_met_in_a_file_that_was_let_go_meanwhile_stops_nobody() {
    let disk = filled();
    let (mut shard, _) = Shard::open(Arc::new(disk.clone()), "s", config()).unwrap();
    disk.flip_bit("s/segment-0000000000000001", 80, 0).unwrap();
    let merge = shard.begin_merge(Effort::Full).unwrap().run();
    let floor = Floor::at(None, None, hindcast_model::TimestampNs(i64::MAX));
    assert!(shard.retain(vec![floor]).segments > 0);
    assert_eq!(shard.end_merge(merge).unwrap(), Merged::InVain);
    assert!(shard.take_damage().is_empty(), "nobody has the file any more");
    assert!(shard.compact_fully().unwrap().is_none());
}

#[test]
fn segments_without_a_manifest_and_files_of_another_group_are_refused() {
    let disk = filled();
    for name in disk.list("s").unwrap().iter().filter(|n| n.starts_with("manifest-")) {
        disk.remove(&format!("s/{name}")).unwrap();
    }
    assert!(matches!(look(&disk), Err(StorageError::Damaged(_))));
    let mut other = config();
    other.group = hindcast_model::GroupId(4);
    let opened = Shard::open(Arc::new(filled()), "s", other);
    assert!(matches!(opened, Err(StorageError::WrongGroup { .. })));
}

#[test]
fn a_damaged_snapshot_is_refused_and_the_old_state_stays() {
    let disk = filled();
    let (mut shard, _) = Shard::open(Arc::new(disk.clone()), "s", config()).unwrap();
    let before = answer(&shard).unwrap();
    assert!(matches!(
        shard.install("nowhere", 5),
        Err(StorageError::NoSnapshot { .. })
    ));
    shard.export("snapshot", b"aux").unwrap();
    assert!(matches!(
        shard.install("snapshot", 1),
        Err(StorageError::SnapshotTooNew { .. })
    ));
    // A copy: the exported files are links, their bytes are ours too.
    for name in disk.list("snapshot").unwrap() {
        let bytes = disk.read(&format!("snapshot/{name}")).unwrap();
        hindcast_env::disk::write_new_file(&disk, &format!("copy/{name}"), &bytes).unwrap();
    }
    for name in disk.list("copy").unwrap() {
        let path = format!("copy/{name}");
        let middle = disk.read(&path).unwrap().len() / 2;
        disk.flip_bit(&path, middle, 3).unwrap();
        let taken = check_export(&disk, "copy").and_then(|()| shard.install("copy", 5));
        assert!(matches!(taken, Err(StorageError::Damaged(_))), "{name}");
        assert_eq!(answer(&shard).unwrap(), before);
        disk.flip_bit(&path, middle, 3).unwrap();
    }
    assert_eq!(shard.install("copy", 5).unwrap(), b"aux");
    assert_eq!((answer(&shard).unwrap(), shard.applied()), (before, 5));
}

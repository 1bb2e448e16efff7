//! A scrub over a reader's files: finds each wrong bit where it lies, while the shard goes on.

use crate::naive::{all_series, config, instant, label_sets, owners};
use hindcast_env::{Disk, SimDisk};
use hindcast_model::{LogLine, Sample, SeriesBlock, StreamBlock, TenantId};
use hindcast_storage::{Damage, ImmutableFile, Shard};
use std::sync::Arc;

fn write(shard: &mut Shard, index: u64) {
    let series = SeriesBlock {
        labels: label_sets()[0].clone(),
        owner: owners()[1],
        samples: (0..40)
            .map(|s| Sample {
                at: instant(s + 100 * index as i64),
                value: (s as f64 + index as f64).sqrt(),
            })
            .collect(),
    };
    let stream = StreamBlock {
        labels: label_sets()[1].clone(),
        owner: owners()[2],
        lines: vec![LogLine {
            at: instant(index as i64),
            line: format!("line {index}").into(),
            metadata: vec![],
        }],
    };
    shard.write(index, &TenantId::default(), &[series], &[stream]);
    shard.advance(index);
}

fn damages(file: ImmutableFile) -> Vec<Damage> {
    let mut check = file.check();
    while check.next_bytes() > 0 {
        check.step();
    }
    check.finish()
}

#[test]
fn every_wrong_bit_is_found_at_its_place_and_a_good_file_has_none() {
    let disk = SimDisk::new();
    let (mut shard, _) = Shard::open(Arc::new(disk.clone()), "s", config()).unwrap();
    for index in 1..=2 {
        write(&mut shard, index);
        shard.flush(b"").unwrap();
    }
    let files = shard.reader().files();
    assert!(files.len() >= 4, "samples and lines of two flushes");
    assert_eq!(
        files.iter().map(ImmutableFile::bytes).sum::<u64>(),
        shard.stats().segment_bytes
    );
    for file in files {
        assert_eq!(damages(file.clone()), []);
        for byte in 0..file.bytes() {
            let bit = (byte % 8) as u8;
            disk.flip_bit(file.path(), byte as usize, bit).unwrap();
            let found = damages(file.clone());
            assert!(
                found
                    .iter()
                    .any(|d| d.from <= byte && byte < d.to && d.file == file.path()),
                "byte {byte} of {}: {found:?}",
                file.path()
            );
            disk.flip_bit(file.path(), byte as usize, bit).unwrap();
        }
    }
}

#[test]
fn a_check_goes_on_while_its_file_is_merged_away() {
    let disk = SimDisk::new();
    let (mut shard, _) = Shard::open(Arc::new(disk.clone()), "s", config()).unwrap();
    for index in 1..=6 {
        write(&mut shard, index);
        shard.flush(b"").unwrap();
    }
    let reader = shard.reader();
    let before = reader.files();
    let mut checks: Vec<_> = before.iter().cloned().map(ImmutableFile::check).collect();
    while shard.compact().unwrap().is_some() {}
    // Two more manifests, so that the files of the first are let go.
    for index in 7..=8 {
        write(&mut shard, index);
        shard.flush(b"").unwrap();
    }
    assert!(before.iter().any(|f| !disk.exists(f.path())), "no file was merged away");
    for check in &mut checks {
        while check.next_bytes() > 0 {
            check.step();
        }
    }
    assert!(checks.into_iter().all(|c| c.finish().is_empty()));
    assert!(!reader.series(&all_series(&TenantId::default())).unwrap().is_empty());
}

/// All but segments, which `files` has: each of these is looked at, and a flush or a snapshot makes up for what is damaged.
#[test]
fn damage_beside_the_segments_is_found_while_the_shard_goes_on() {
    let disk = SimDisk::new();
    let (mut shard, _) = Shard::open(Arc::new(disk.clone()), "s", config()).unwrap();
    for index in 1..=3 {
        shard.write(index, &TenantId::default(), &[crate::damage::series(index)], &[]);
        shard.advance(index);
        shard.flush(b"what the caller keeps").unwrap();
    }
    let reader = shard.reader();
    assert_eq!(reader.check_sides(&disk, "s").unwrap(), None);
    let newest = |prefix: &str| {
        let names = disk.list("s").unwrap();
        names.into_iter().rfind(|n| n.starts_with(prefix)).unwrap()
    };
    let mut healed = vec![];
    for prefix in ["manifest-", "aux-", "newest-", "series-"] {
        let name = newest(prefix);
        disk.flip_bit(&format!("s/{name}"), 20, 1).unwrap();
        let found = reader.check_sides(&disk, "s").unwrap().expect("it is damaged");
        assert!(found.file.ends_with(&name), "{found}");
        assert_eq!(reader.damaged(), [found]);
        shard.flush(b"what the caller keeps").unwrap();
        if reader.check_sides(&disk, "s").unwrap().is_none() {
            healed.push(prefix);
            assert_eq!(reader.damaged(), []);
        }
    }
    assert_eq!(
        healed,
        ["manifest-", "aux-", "newest-"],
        "series are written once: a peer has them"
    );
}

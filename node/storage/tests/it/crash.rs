//! Power may go at any sync of any operation: what was flushed before is there, and the state is of one moment.

use crate::naive::{Entry, Naive, compare, config, give, instant, label_sets, owners};
use hindcast_env::disk::DiskResult;
use hindcast_env::io::RealDisk;
use hindcast_env::{Disk, DiskError, DiskFile, ReadAt, SeededRng, SimDisk};
use hindcast_model::{LogLine, Sample, SeriesBlock, StreamBlock};
use hindcast_storage::{Effort, Shard};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

fn entry(i: u64) -> Entry {
    let at = instant(i as i64 % 30);
    Entry::Write {
        tenant: i as usize % 2,
        series: vec![SeriesBlock {
            labels: label_sets()[i as usize % 2].clone(),
            owner: owners()[1],
            samples: vec![Sample { at, value: i as f64 }],
        }],
        streams: vec![StreamBlock {
            labels: label_sets()[0].clone(),
            owner: owners()[2],
            lines: vec![LogLine {
                at,
                line: format!("line {i}").into(),
                metadata: vec![],
            }],
        }],
    }
}

/// Flushes, merges, exports and installs; returns at the first error, with what was durable before.
fn work(shard: &mut Shard, durable: &mut u64) -> Result<(), hindcast_storage::StorageError> {
    for i in 1..=12 {
        give(shard, i, &entry(i));
        if i % 3 == 0 {
            shard.flush(format!("{i}").as_bytes())?;
            *durable = i;
        }
    }
    while shard.compact()?.is_some() {}
    shard.export("snapshot", b"12")?;
    give(shard, 13, &entry(13));
    // The peer's snapshot is of an earlier moment than ours; the leader says so: it wins.
    shard.install("snapshot", 12)?;
    Ok(())
}

#[test]
fn a_crash_at_any_sync_loses_nothing_that_was_flushed() {
    let mut ended = false;
    for sync in 0.. {
        if ended {
            assert!(sync > 20, "there were syncs to fail: {sync}");
            break;
        }
        for seed in 0..3 {
            let disk = SimDisk::new();
            let (mut shard, _) = Shard::open(Arc::new(disk.clone()), "s", config()).unwrap();
            disk.fail_sync_after(sync);
            let mut durable = 0;
            ended = work(&mut shard, &mut durable).is_ok();
            disk.heal();
            drop(shard);
            disk.crash(&mut SeededRng::new(seed));
            let (mut shard, opened) = Shard::open(Arc::new(disk.clone()), "s", config()).unwrap();
            assert_eq!(opened.fell_back, None);
            assert!(opened.applied >= durable, "sync {sync}: {} < {durable}", opened.applied);
            let aux = if opened.applied == 0 {
                String::new()
            } else {
                opened.applied.to_string()
            };
            assert_eq!(opened.aux, aux.as_bytes());
            let mut naive = Naive::default();
            for i in 1..=14 {
                naive.give(i, &entry(i));
                if i > opened.applied {
                    give(&mut shard, i, &entry(i));
                }
            }
            compare(&shard.reader(), &naive, (3, 9));
            shard.flush(b"14").unwrap();
            shard.scrub().unwrap();
        }
    }
}

/// The disk of a process that is killed before the sync of a folder.
struct KilledBeforeFolderSync {
    disk: SimDisk,
    folder_syncs_left: AtomicI64,
}

impl Disk for KilledBeforeFolderSync {
    fn sync_dir(&self, dir: &str) -> DiskResult<()> {
        if self.folder_syncs_left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            return Err(DiskError::new("sync", dir, std::io::Error::other("killed")));
        }
        self.disk.sync_dir(dir)
    }
    fn create_dir_all(&self, dir: &str) -> DiskResult<()> {
        self.disk.create_dir_all(dir)
    }
    fn list(&self, dir: &str) -> DiskResult<Vec<String>> {
        self.disk.list(dir)
    }
    fn exists(&self, path: &str) -> bool {
        self.disk.exists(path)
    }
    fn read(&self, path: &str) -> DiskResult<bytes::Bytes> {
        self.disk.read(path)
    }
    fn open_read(&self, path: &str) -> DiskResult<Arc<dyn ReadAt>> {
        self.disk.open_read(path)
    }
    fn create(&self, path: &str) -> DiskResult<Box<dyn DiskFile>> {
        self.disk.create(path)
    }
    fn open_write(&self, path: &str) -> DiskResult<Box<dyn DiskFile>> {
        self.disk.open_write(path)
    }
    fn rename(&self, from: &str, to: &str) -> DiskResult<()> {
        self.disk.rename(from, to)
    }
    fn link(&self, from: &str, to: &str) -> DiskResult<()> {
        self.disk.link(from, to)
    }
    fn remove(&self, path: &str) -> DiskResult<()> {
        self.disk.remove(path)
    }
    fn remove_dir_all(&self, dir: &str) -> DiskResult<()> {
        self.disk.remove_dir_all(dir)
    }
    fn free_bytes(&self) -> DiskResult<u64> {
        self.disk.free_bytes()
    }
    fn capacity_bytes(&self) -> DiskResult<u64> {
        self.disk.capacity_bytes()
    }
}

/// The log is cut by what an opened shard calls durable, so that must be true of the platter too.
#[test]
fn what_a_restart_found_after_a_kill_is_still_there_after_a_power_cut() {
    let mut found = 0;
    for folder_syncs in 0..30 {
        for seed in 0..6 {
            let disk = SimDisk::new();
            let (mut shard, _) = Shard::open(Arc::new(disk.clone()), "s", config()).unwrap();
            give(&mut shard, 1, &entry(1));
            shard.flush(b"1").unwrap();
            drop(shard);
            let killed = KilledBeforeFolderSync {
                disk: disk.clone(),
                folder_syncs_left: AtomicI64::new(folder_syncs),
            };
            if let Ok((mut shard, _)) = Shard::open(Arc::new(killed), "s", config()) {
                for i in 2..=4 {
                    give(&mut shard, i, &entry(i));
                    if shard.flush(format!("{i}").as_bytes()).is_err() {
                        break;
                    }
                }
            }
            let (shard, opened) = Shard::open(Arc::new(disk.clone()), "s", config()).unwrap();
            found = found.max(opened.applied);
            let durable = shard.durable();
            drop(shard);
            disk.crash(&mut SeededRng::new(seed));
            let (_, again) = Shard::open(Arc::new(disk.clone()), "s", config()).unwrap();
            assert!(
                again.applied >= durable,
                "{folder_syncs}: {} < {durable}",
                again.applied
            );
        }
    }
    assert_eq!(found, 4, "the flushes went all the way once");
}

#[test]
fn a_full_disk_fails_the_flush_and_nothing_else() {
    let disk = SimDisk::new();
    let (mut shard, _) = Shard::open(Arc::new(disk.clone()), "s", config()).unwrap();
    let mut naive = Naive::default();
    for i in 1..=5 {
        give(&mut shard, i, &entry(i));
        naive.give(i, &entry(i));
    }
    disk.set_full(true);
    let names = hindcast_env::Disk::list(&disk, "s").unwrap();
    let error = shard.flush(b"5").unwrap_err();
    assert_eq!(
        hindcast_env::Disk::list(&disk, "s").unwrap(),
        names,
        "nothing is left to fill the disk further"
    );
    assert_eq!(
        hindcast_model::Classify::class(&error),
        hindcast_model::Class::RetryLater
    );
    assert_eq!(shard.durable(), 0);
    compare(&shard.reader(), &naive, (0, 10));
    disk.heal();
    shard.flush(b"5").unwrap();
    assert_eq!(shard.durable(), 5);
    compare(&shard.reader(), &naive, (0, 10));
}

#[test]
fn files_that_nothing_names_are_removed() {
    let disk = SimDisk::new();
    let (mut shard, _) = Shard::open(Arc::new(disk.clone()), "s", config()).unwrap();
    for i in 1..=8 {
        give(&mut shard, i, &entry(i));
        shard.flush(b"aux").unwrap();
    }
    while shard.compact().unwrap().is_some() {}
    shard.flush(b"aux").unwrap();
    let stats = shard.stats();
    let segments = |disk: &SimDisk| {
        let names = hindcast_env::Disk::list(disk, "s").unwrap();
        names.iter().filter(|n| n.starts_with("segment-")).count()
    };
    assert_eq!(segments(&disk), stats.segments, "inputs of merges are gone");
    hindcast_env::Disk::create(&disk, "s/segment-00000000000000ff").unwrap();
    hindcast_env::Disk::create(&disk, "s/manifest-00000000000000ff.tmp").unwrap();
    drop(shard);
    let (shard, opened) = Shard::open(Arc::new(disk.clone()), "s", config()).unwrap();
    assert_eq!((opened.applied, shard.stats().segments), (8, stats.segments));
    assert_eq!(segments(&disk), stats.segments);
}

#[test]
fn the_machines_file_system_keeps_it_all_too() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Arc::new(RealDisk::new(folder.path()).unwrap());
    let (mut shard, _) = Shard::open(disk.clone(), "groups/1", config()).unwrap();
    let mut durable = 0;
    work(&mut shard, &mut durable).unwrap();
    assert_eq!((durable, shard.applied(), shard.durable()), (12, 12, 12));
    let mut naive = Naive::default();
    (1..=12).for_each(|i| naive.give(i, &entry(i)));
    // A reader goes on although the shard is gone and its files are replaced.
    let reader = shard.reader();
    drop(shard);
    let (shard, opened) = Shard::open(disk, "groups/1", config()).unwrap();
    assert_eq!((opened.applied, &opened.aux[..]), (12, &b"12"[..]));
    compare(&reader, &naive, (2, 8));
    compare(&shard.reader(), &naive, (2, 8));
    shard.scrub().unwrap();
}

/// Work beside the applies, ended in all orders, with a failed sync anywhere.
#[test]
fn a_crash_while_flush_and_merge_go_on_beside_the_applies_loses_nothing() {
    let mut ended = false;
    for sync in 0.. {
        if ended {
            assert!(sync > 5, "there were syncs to fail: {sync}");
            break;
        }
        let disk = SimDisk::new();
        let (mut shard, _) = Shard::open(Arc::new(disk.clone()), "s", config()).unwrap();
        for i in 1..=8 {
            give(&mut shard, i, &entry(i));
            shard.flush(format!("{i}").as_bytes()).unwrap();
        }
        give(&mut shard, 9, &entry(9));
        let (flush, merge) = (shard.begin_flush(b"9"), shard.begin_merge(Effort::Full).unwrap());
        give(&mut shard, 10, &entry(10));
        disk.fail_sync_after(sync);
        let (flush, merge) = (flush.run(), merge.run());
        give(&mut shard, 11, &entry(11));
        let merged = shard.end_merge(merge);
        let flushed = shard.end_flush(flush);
        ended = merged.is_ok() && flushed.is_ok();
        let durable = shard.durable();
        assert!(durable == 9 || flushed.is_err(), "sync {sync}");
        disk.heal();
        drop(shard);
        disk.crash(&mut SeededRng::new(sync));
        let (mut shard, opened) = Shard::open(Arc::new(disk.clone()), "s", config()).unwrap();
        assert!(opened.applied >= durable, "sync {sync}: {} < {durable}", opened.applied);
        assert_eq!(opened.aux, opened.applied.to_string().as_bytes());
        let mut naive = Naive::default();
        for i in 1..=11 {
            naive.give(i, &entry(i));
            if i > opened.applied {
                give(&mut shard, i, &entry(i));
            }
        }
        compare(&shard.reader(), &naive, (3, 9));
        shard.flush(b"11").unwrap();
        shard.scrub().unwrap();
    }
}

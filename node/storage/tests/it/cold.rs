//! Old files go to a cold store and nobody sees a difference, whenever power, store or both go away.

use crate::naive::{Entry, Naive, all_lines, all_series, compare, config, give, instant, label_sets, owners};
use expect_test::expect;
use hindcast_env::{ColdRef, ColdStore, ColdTier, Disk, SeededRng, SimCold, SimDisk};
use hindcast_model::{GroupId, LogLine, Sample, SeriesBlock, SpanNs, StreamBlock, TenantId, TimestampNs};
use hindcast_storage::{Cold, ColdDone, ColdRule, Floor, ImmutableFile, Pin, Shard, ShardConfig, StorageError};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

/// Instants older than this many are cold.
pub const AFTER: i64 = 10;

/// A configuration with a cold store; `dir` is also the shard's place in it.
pub fn cold_config(cold: &SimCold, dir: &str) -> ShardConfig {
    let tier = ColdTier::new(Arc::new(cold.clone()), 1 << 20);
    let rule = ColdRule {
        tenant: None,
        domain: None,
        after: Some(SpanNs::from_secs(AFTER as u64)),
    };
    ShardConfig {
        cold: Some(Cold::new(tier, format!("c/{dir}"), vec![rule])),
        ..config()
    }
}

fn open(disk: &SimDisk, cold: &SimCold) -> Shard {
    Shard::open(Arc::new(disk.clone()), "s", cold_config(cold, "s"))
        .unwrap()
        .0
}

/// Works until there is nothing to do at `now`, or something fails.
pub fn move_all(shard: &mut Shard, now: TimestampNs) -> Result<Option<String>, StorageError> {
    while let Some(job) = shard.begin_cold(now) {
        let report = shard.finish_cold(job.run())?;
        if report.failed.is_some() {
            return Ok(report.failed);
        }
    }
    Ok(None)
}

/// What the manifest in force and the one before need of the store, told from the files alone: tables here.
fn files(disk: &SimDisk, dir: &str) -> Vec<String> {
    let mut names = disk.list(dir).unwrap();
    names.retain(|n| n.starts_with("segment-") || n.starts_with("table-"));
    names
}

fn entry(i: u64) -> Entry {
    let sample = |s: i64| Sample {
        at: instant(i as i64),
        value: (i as f64 + s as f64).sqrt(),
    };
    Entry::Write {
        tenant: 0,
        series: vec![SeriesBlock {
            labels: label_sets()[i as usize % 2].clone(),
            owner: owners()[1],
            samples: vec![sample(0)],
        }],
        streams: vec![StreamBlock {
            labels: label_sets()[0].clone(),
            owner: owners()[2],
            lines: vec![LogLine {
                at: instant(i as i64),
                line: format!("line {i}").into(),
                metadata: vec![],
            }],
        }],
    }
}

/// Entries 1..=to, in flushes of three, merged.
fn filled(shard: &mut Shard, to: u64) -> Naive {
    let mut naive = Naive::default();
    for i in 1..=to {
        give(shard, i, &entry(i));
        naive.give(i, &entry(i));
        if i % 3 == 0 {
            shard.flush(format!("{i}").as_bytes()).unwrap();
        }
    }
    while shard.compact_fully().unwrap().is_some() {}
    naive
}

fn state(shard: &Shard, disk: &SimDisk, cold: &SimCold) -> String {
    let stats = shard.stats();
    let mut out = format!("{} segments, {} cold\n", stats.segments, stats.cold_segments);
    for name in files(disk, "s") {
        let _ = writeln!(out, "here   {name}");
    }
    for name in cold.names() {
        // Without the hash of its bytes.
        let _ = writeln!(out, "there  {}", name.rsplit_once('-').unwrap().0);
    }
    out
}

#[test]
fn old_files_leave_the_disk_and_answers_stay() {
    let (disk, cold) = (SimDisk::new(), SimCold::default());
    let mut shard = open(&disk, &cold);
    let naive = filled(&mut shard, 9);
    let mut told = state(&shard, &disk, &cold);
    assert_eq!(move_all(&mut shard, instant(AFTER + 9)).unwrap(), None);
    told += &format!("\nthe newest row is not old enough: {}", state(&shard, &disk, &cold));
    assert_eq!(move_all(&mut shard, instant(AFTER + 10)).unwrap(), None);
    told += &format!("\nmoved: {}", state(&shard, &disk, &cold));
    compare(&shard.reader(), &naive, (2, 7));
    shard.compact().unwrap();
    told += &format!("\nswept: {}", state(&shard, &disk, &cold));
    compare(&shard.reader(), &naive, (2, 7));
    shard.scrub().unwrap();
    drop(shard);
    let mut shard = open(&disk, &cold);
    compare(&shard.reader(), &naive, (2, 7));
    shard.retain(vec![Floor::at(None, None, instant(30))]);
    shard.advance(10);
    shard.compact().unwrap();
    told += &format!("\nlet go: {}", state(&shard, &disk, &cold));
    assert_eq!(move_all(&mut shard, instant(AFTER + 10)).unwrap(), None);
    told += &format!("\ndeleted: {}", state(&shard, &disk, &cold));
    expect![[r#"
        2 segments, 0 cold
        here   segment-0000000000000002
        here   segment-0000000000000007
        here   segment-000000000000000c
        here   segment-0000000000000010
        here   segment-0000000000000011

        the newest row is not old enough: 2 segments, 0 cold
        here   segment-0000000000000002
        here   segment-0000000000000007
        here   segment-000000000000000c
        here   segment-0000000000000010
        here   segment-0000000000000011

        moved: 2 segments, 2 cold
        here   segment-0000000000000011
        here   table-0000000000000010
        here   table-0000000000000011
        there  c/s/segment-0000000000000010
        there  c/s/segment-0000000000000011

        swept: 2 segments, 2 cold
        here   table-0000000000000010
        here   table-0000000000000011
        there  c/s/segment-0000000000000010
        there  c/s/segment-0000000000000011

        let go: 0 segments, 0 cold
        there  c/s/segment-0000000000000010
        there  c/s/segment-0000000000000011

        deleted: 0 segments, 0 cold
    "#]]
    .assert_eq(&told);
}

#[test]
fn a_shard_opens_without_its_store_and_says_what_it_cannot_read() {
    let (disk, cold) = (SimDisk::new(), SimCold::default());
    let mut shard = open(&disk, &cold);
    let mut naive = filled(&mut shard, 9);
    move_all(&mut shard, instant(AFTER + 10)).unwrap();
    shard.compact().unwrap();
    drop(shard);
    cold.fail_after(0, false);
    let calls = cold.calls();
    let mut shard = open(&disk, &cold);
    assert_eq!(cold.calls(), calls, "nobody asked the store");
    for i in 10..=20 {
        give(&mut shard, i, &entry(i));
        naive.give(i, &entry(i));
    }
    shard.flush(b"20").unwrap();
    while shard.compact_fully().unwrap().is_some() {}
    assert_eq!(cold.calls(), calls, "what is here is written and merged without it");
    let mut q = all_series(&TenantId::default());
    q.from = instant(10);
    assert_eq!(shard.reader().series(&q).unwrap(), naive.series(&q), "and read");
    let said = shard.reader().series(&all_series(&TenantId::default())).unwrap_err();
    let lines = shard.reader().lines(&all_lines(&TenantId::default())).unwrap_err();
    expect![[r#"
        cannot read memory://cold/c/s/segment-0000000000000010-ba44550d105707a1: memory://cold cannot be reached or cannot serve: it was told to fail; check network and endpoint if it lasts, and ask again
        cannot read memory://cold/c/s/segment-0000000000000011-4195e650ba099865: memory://cold cannot be reached or cannot serve: it was told to fail; check network and endpoint if it lasts, and ask again
    "#]].assert_eq(&format!("{said}\n{lines}\n"));
    let failed = move_all(&mut shard, instant(60)).unwrap();
    expect!["files that nobody needs were not looked for: memory://cold cannot be reached or cannot serve: it was told to fail; check network and endpoint if it lasts, and ask again"].assert_eq(&failed.unwrap_or_default());
    assert_eq!(shard.stats().cold.failures, 1);
    cold.heal();
    compare(&shard.reader(), &naive, (2, 17));
    assert_eq!(move_all(&mut shard, instant(60)).unwrap(), None);
    compare(&shard.reader(), &naive, (2, 17));
}

#[test]
fn without_a_store_a_shard_that_needs_one_is_not_opened() {
    let (disk, cold) = (SimDisk::new(), SimCold::default());
    let mut shard = open(&disk, &cold);
    filled(&mut shard, 9);
    move_all(&mut shard, instant(AFTER + 10)).unwrap();
    drop(shard);
    let said = Shard::open(Arc::new(disk), "s", config()).err().unwrap().to_string();
    assert!(said.contains("c/s/segment-") && said.contains("--cold-store"), "{said}");
}

/// Writes, merges, moves, lets go; returns at the first error, with what was durable before.
fn work(shard: &mut Shard, durable: &mut u64) -> Result<(), StorageError> {
    for i in 1..=12 {
        give(shard, i, &entry(i));
        if i % 3 == 0 {
            shard.flush(format!("{i}").as_bytes())?;
            *durable = i;
        }
        if i % 6 == 0 {
            while shard.compact_fully()?.is_some() {}
            move_all(shard, instant(AFTER + i as i64 + 1))?;
        }
    }
    shard.retain(vec![Floor::at(None, None, instant(7))]);
    shard.advance(13);
    while shard.compact()?.is_some() {}
    move_all(shard, instant(AFTER + 20))?;
    shard.flush(b"13")?;
    *durable = 13;
    while shard.compact()?.is_some() {}
    move_all(shard, instant(AFTER + 20))?;
    Ok(())
}

fn naive_of_work() -> Naive {
    let mut naive = Naive::default();
    (1..=12).for_each(|i| naive.give(i, &entry(i)));
    naive.give(13, &Entry::Retain(vec![Floor::at(None, None, instant(7))]));
    naive
}

/// Opens again, as a node does, and shows that all is there, with nothing left over in the end.
fn recovers(disk: &SimDisk, cold: &SimCold, durable: u64, when: &str) {
    disk.heal();
    cold.heal();
    let (mut shard, opened) = Shard::open(Arc::new(disk.clone()), "s", cold_config(cold, "s")).unwrap();
    assert_eq!(opened.fell_back, None, "{when}");
    assert!(opened.applied >= durable, "{when}: {} < {durable}", opened.applied);
    for i in opened.applied + 1..=12 {
        give(&mut shard, i, &entry(i));
    }
    if opened.applied < 13 {
        give(&mut shard, 13, &Entry::Retain(vec![Floor::at(None, None, instant(7))]));
    }
    let naive = naive_of_work();
    compare(&shard.reader(), &naive, (3, 9));
    shard.flush(b"13").unwrap();
    while shard.compact_fully().unwrap().is_some() {}
    assert_eq!(move_all(&mut shard, instant(AFTER + 20)).unwrap(), None, "{when}");
    compare(&shard.reader(), &naive, (3, 9));
    shard.scrub().unwrap();
    // Twice: the last manifest but one needs its files too.
    for _ in 0..2 {
        shard.flush(b"13").unwrap();
        assert_eq!(move_all(&mut shard, instant(AFTER + 20)).unwrap(), None, "{when}");
    }
    let stats = shard.stats();
    assert_eq!(cold.names().len(), stats.cold_segments, "{when}: {:?}", cold.names());
    assert_eq!(files(disk, "s").len(), stats.segments, "{when}: {:?}", files(disk, "s"));
}

#[test]
fn a_power_cut_at_any_sync_loses_nothing_here_or_there() {
    let mut ended = false;
    for sync in 0.. {
        if ended {
            assert!(sync > 30, "there were syncs to fail: {sync}");
            break;
        }
        for seed in 0..3 {
            let (disk, cold) = (SimDisk::new(), SimCold::default());
            let mut shard = open(&disk, &cold);
            disk.fail_sync_after(sync);
            let mut durable = 0;
            ended = work(&mut shard, &mut durable).is_ok();
            drop(shard);
            disk.crash(&mut SeededRng::new(seed));
            recovers(&disk, &cold, durable, &format!("sync {sync}, seed {seed}"));
        }
    }
}

#[test]
fn a_store_that_goes_away_at_any_call_with_the_power_loses_nothing() {
    let mut calls = u64::MAX;
    for call in 0.. {
        if call >= calls {
            assert!(call >= 8, "there were calls to fail: {call}");
            break;
        }
        for answers_get_lost in [false, true] {
            let (disk, cold) = (SimDisk::new(), SimCold::default());
            let mut shard = open(&disk, &cold);
            cold.fail_after(call, answers_get_lost);
            let mut durable = 0;
            work(&mut shard, &mut durable).unwrap();
            if cold.calls() <= call {
                calls = call;
            }
            if call % 2 == 0 {
                // The process goes on, and the store comes back.
                cold.heal();
                assert_eq!(move_all(&mut shard, instant(AFTER + 20)).unwrap(), None);
                compare(&shard.reader(), &naive_of_work(), (3, 9));
            }
            drop(shard);
            disk.crash(&mut SeededRng::new(call));
            recovers(&disk, &cold, durable, &format!("call {call}, {answers_get_lost}"));
        }
    }
}

/// Deletes come after the manifests that could name what they delete, so that a manifest that is damaged and the one
/// before, which takes over, lose nothing either.
#[test]
fn when_the_newest_manifest_is_damaged_the_one_before_finds_its_files() {
    let (disk, cold) = (SimDisk::new(), SimCold::default());
    let mut shard = open(&disk, &cold);
    let naive = filled(&mut shard, 9);
    move_all(&mut shard, instant(AFTER + 10)).unwrap();
    let newest = || {
        let names = disk.list("s").unwrap();
        names.into_iter().rfind(|n| n.starts_with("manifest-")).unwrap()
    };
    let damage = |name: String| disk.flip_bit(&format!("s/{name}"), 20, 1).unwrap();
    drop(shard);
    damage(newest());
    let (mut shard, opened) = Shard::open(Arc::new(disk.clone()), "s", cold_config(&cold, "s")).unwrap();
    assert!(opened.fell_back.is_some());
    compare(&shard.reader(), &naive, (2, 7));
    move_all(&mut shard, instant(AFTER + 10)).unwrap();
    compare(&shard.reader(), &naive, (2, 7));
    // Let go in the newest one, and still held by the one before.
    shard.compact().unwrap();
    let objects = cold.names();
    shard.retain(vec![Floor::at(None, None, instant(30))]);
    shard.advance(10);
    shard.flush(b"").unwrap();
    move_all(&mut shard, instant(AFTER + 10)).unwrap();
    assert_eq!(cold.names(), objects, "one manifest that needs them is left");
    drop(shard);
    damage(newest());
    let (mut shard, opened) = Shard::open(Arc::new(disk.clone()), "s", cold_config(&cold, "s")).unwrap();
    assert!(opened.fell_back.is_some());
    compare(&shard.reader(), &naive, (2, 7));
    shard.retain(vec![Floor::at(None, None, instant(30))]);
    shard.advance(10);
    shard.compact().unwrap();
    move_all(&mut shard, instant(AFTER + 10)).unwrap();
    assert_eq!(cold.names(), [""; 0]);
}

#[test]
fn a_file_goes_only_when_it_is_old_compacted_and_not_about_to_be_written_anew() {
    let (disk, cold) = (SimDisk::new(), SimCold::default());
    let mut shard = open(&disk, &cold);
    for i in 1..=3 {
        give(&mut shard, i, &entry(i));
    }
    shard.flush(b"").unwrap();
    move_all(&mut shard, instant(100)).unwrap();
    assert_eq!(shard.stats().cold_segments, 0, "as a flush left it");
    while shard.compact_fully().unwrap().is_some() {}
    // Most of it is let go, and a merge will say so.
    shard.retain(vec![Floor::at(None, None, instant(3))]);
    shard.advance(4);
    move_all(&mut shard, instant(100)).unwrap();
    assert_eq!(shard.stats().cold_segments, 0, "a merge is about to write it anew");
    while shard.compact_fully().unwrap().is_some() {}
    move_all(&mut shard, instant(100)).unwrap();
    assert_eq!(shard.stats().cold_segments, shard.stats().segments);
}

#[test]
fn a_pinned_window_stays_readable_in_the_store() {
    let (disk, cold) = (SimDisk::new(), SimCold::default());
    let mut shard = open(&disk, &cold);
    let mut naive = filled(&mut shard, 9);
    let mut both = |shard: &mut Shard, index, entry: Entry| {
        give(shard, index, &entry);
        naive.give(index, &entry);
    };
    both(&mut shard, 10, Entry::Cut);
    both(
        &mut shard,
        11,
        Entry::Pin(Pin {
            id: "INC-1".to_owned(),
            tenant: TenantId::default(),
            from: instant(2),
            to: instant(4),
            owners: None,
            cuts: vec![10],
        }),
    );
    move_all(&mut shard, instant(AFTER + 10)).unwrap();
    both(&mut shard, 12, Entry::Retain(vec![Floor::at(None, None, instant(30))]));
    let kept = shard.stats().cold_segments;
    assert!(kept > 0);
    while shard.compact().unwrap().is_some() {}
    move_all(&mut shard, instant(AFTER + 10)).unwrap();
    compare(&shard.reader(), &naive, (0, 20));
    assert_eq!(
        shard.stats().cold_segments,
        kept,
        "written anew without what nobody sees, and moved again"
    );
    let entry = Entry::Unpin("INC-1".to_owned());
    give(&mut shard, 13, &entry);
    naive.give(13, &entry);
    let floors = Entry::Retain(vec![Floor::at(None, None, instant(31))]);
    give(&mut shard, 14, &floors);
    naive.give(14, &floors);
    shard.compact().unwrap();
    move_all(&mut shard, instant(AFTER + 10)).unwrap();
    compare(&shard.reader(), &naive, (0, 20));
    assert_eq!(cold.names(), [""; 0]);
}

#[test]
fn a_reader_that_has_a_file_open_keeps_it() {
    let (disk, cold) = (SimDisk::new(), SimCold::default());
    let mut shard = open(&disk, &cold);
    let naive = filled(&mut shard, 9);
    move_all(&mut shard, instant(AFTER + 10)).unwrap();
    let reader = shard.reader();
    let query = all_series(&TenantId::default());
    let mut seen = vec![];
    let visited = reader.visit(&query, &mut |_, points| {
        if seen.is_empty() {
            // Everything goes while this one is read, as far as the owner is concerned.
            shard.retain(vec![Floor::at(None, None, instant(30))]);
            shard.advance(10);
            shard.compact().unwrap();
            move_all(&mut shard, instant(AFTER + 10)).unwrap();
        }
        seen.push(points.to_samples());
        std::ops::ControlFlow::Continue(())
    });
    visited.unwrap();
    let wanted: Vec<_> = naive.series(&query).into_iter().map(|s| s.samples).collect();
    assert_eq!(seen, wanted);
    move_all(&mut shard, instant(AFTER + 10)).unwrap();
    assert_eq!(cold.names(), [""; 0], "and afterwards they go");
}

#[test]
fn a_file_that_was_merged_or_let_go_while_it_was_put_is_not_left_in_the_store() {
    let (disk, cold) = (SimDisk::new(), SimCold::default());
    let mut shard = open(&disk, &cold);
    filled(&mut shard, 9);
    // The list of what nobody names comes first.
    let job = shard.begin_cold(instant(AFTER + 10)).unwrap();
    shard.finish_cold(job.run()).unwrap();
    let job = shard.begin_cold(instant(AFTER + 10)).unwrap();
    assert!(shard.begin_cold(instant(AFTER + 10)).is_none(), "one at a time");
    let done: ColdDone = job.run();
    assert_eq!(cold.names().len(), 1);
    // A manifest comes between: the table that the job wrote is not taken for a leftover.
    shard.flush(b"9").unwrap();
    assert!(files(&disk, "s").iter().any(|n| n.starts_with("table-")));
    shard.retain(vec![Floor::at(None, None, instant(30))]);
    shard.advance(10);
    shard.compact().unwrap();
    shard.finish_cold(done).unwrap();
    move_all(&mut shard, instant(AFTER + 10)).unwrap();
    assert_eq!(cold.names(), [""; 0]);
    shard.flush(b"9").unwrap();
    assert_eq!(files(&disk, "s"), [""; 0]);
}

#[test]
fn a_snapshot_brings_its_cold_files_along_and_is_refused_when_they_do_not_come() {
    let (disk, cold) = (SimDisk::new(), SimCold::default());
    let mut shard = open(&disk, &cold);
    let naive = filled(&mut shard, 9);
    move_all(&mut shard, instant(AFTER + 10)).unwrap();
    shard.compact().unwrap();
    cold.fail_next(1);
    let said = shard.export("snapshot", b"9").unwrap_err().to_string();
    assert!(said.contains("memory://"), "{said}");
    shard.export("snapshot", b"9").unwrap();
    let theirs = SimCold::default();
    let (mut peer, _) = Shard::open(Arc::new(disk.clone()), "p", cold_config(&theirs, "p")).unwrap();
    filled(&mut peer, 12);
    move_all(&mut peer, instant(AFTER + 20)).unwrap();
    let objects = theirs.names();
    assert!(!objects.is_empty());
    peer.install("snapshot", 9).unwrap();
    compare(&peer.reader(), &naive, (2, 7));
    assert_eq!(peer.stats().cold_segments, 0);
    move_all(&mut peer, instant(AFTER + 10)).unwrap();
    compare(&peer.reader(), &naive, (2, 7));
    assert_eq!(peer.stats().cold_segments, peer.stats().segments);
    assert!(
        theirs.names().iter().all(|n| !objects.contains(n)),
        "what was replaced is gone"
    );
    // On a disk that is too small for them.
    disk.set_capacity(1);
    let roomy = ShardConfig {
        reserve_bytes: 1 << 20,
        ..cold_config(&cold, "s")
    };
    drop(shard);
    let (mut shard, _) = Shard::open(Arc::new(disk.clone()), "s", roomy).unwrap();
    let said = shard.export("snapshot2", b"9").unwrap_err().to_string();
    assert!(said.contains("are to stay free"), "{said}");
}

fn checked(file: ImmutableFile) -> (Vec<String>, Option<String>) {
    let mut check = file.check();
    while check.next_bytes() > 0 {
        check.step();
    }
    let unchecked = check.unchecked().map(str::to_owned);
    (check.finish().iter().map(ToString::to_string).collect(), unchecked)
}

#[test]
fn a_scrub_finds_every_wrong_bit_in_the_store_and_in_the_table_and_says_what_it_did_not_check() {
    let (disk, cold) = (SimDisk::new(), SimCold::default());
    let mut shard = open(&disk, &cold);
    filled(&mut shard, 9);
    move_all(&mut shard, instant(AFTER + 10)).unwrap();
    shard.compact().unwrap();
    for file in shard.reader().files() {
        assert!(file.is_cold());
        assert_eq!(checked(file.clone()), (vec![], None));
        let name = file.path().strip_prefix("memory://cold/").unwrap().to_owned();
        for byte in 0..file.bytes() as usize {
            assert!(cold.flip_bit(&name, byte, byte as u8));
            let (damages, unchecked) = checked(file.clone());
            assert!(
                damages[0].contains(file.path()) || damages[0].contains("table-"),
                "{byte}: {damages:?}"
            );
            assert_eq!(unchecked, None);
            cold.flip_bit(&name, byte, byte as u8);
        }
        cold.fail_after(0, false);
        let (damages, unchecked) = checked(file.clone());
        assert_eq!(damages, [""; 0], "a store that is away is no damage");
        assert!(unchecked.unwrap().contains("memory://"));
        cold.heal();
        cold.delete(&name).unwrap();
        let (damages, _) = checked(file);
        assert!(damages[0].contains("holds no"), "{damages:?}");
    }
    let tables: Vec<String> = files(&disk, "s");
    assert!(!tables.is_empty());
}

#[test]
fn a_wrong_bit_in_a_table_is_told_by_the_scrub_or_by_the_next_start() {
    let (disk, cold) = (SimDisk::new(), SimCold::default());
    let mut shard = open(&disk, &cold);
    filled(&mut shard, 9);
    move_all(&mut shard, instant(AFTER + 10)).unwrap();
    shard.compact().unwrap();
    let files_open = shard.reader().files();
    drop(shard);
    for name in files(&disk, "s") {
        let path = format!("s/{name}");
        for byte in 0..disk.read(&path).unwrap().len() {
            disk.flip_bit(&path, byte, 3).unwrap();
            let told: Vec<String> = files_open.iter().flat_map(|f| checked(f.clone()).0).collect();
            assert!(told.iter().any(|d| d.contains(&name)), "{name} {byte}: {told:?}");
            let opened = Shard::open(Arc::new(disk.clone()), "s", cold_config(&cold, "s"));
            let said = opened.err().map(|e| e.to_string()).unwrap_or_default();
            assert!(said.contains(&name), "{name} {byte}: {said}");
            disk.flip_bit(&path, byte, 3).unwrap();
        }
    }
}

#[test]
fn damage_in_the_store_ends_the_read_and_names_the_object() {
    let (disk, cold) = (SimDisk::new(), SimCold::default());
    let mut shard = open(&disk, &cold);
    filled(&mut shard, 9);
    move_all(&mut shard, instant(AFTER + 10)).unwrap();
    for name in cold.names() {
        cold.flip_bit(&name, 120, 3);
    }
    let said = shard
        .reader()
        .series(&all_series(&TenantId::default()))
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("memory://cold/") && said.contains("c/s/segment-"),
        "{said}"
    );
}

/// The file was whole when it was written and is not any more: that copy must not become the only one.
#[test]
fn a_file_that_is_damaged_here_does_not_go() {
    let (disk, cold) = (SimDisk::new(), SimCold::default());
    let mut shard = open(&disk, &cold);
    filled(&mut shard, 9);
    for name in files(&disk, "s") {
        disk.flip_bit(&format!("s/{name}"), 120, 3).unwrap();
    }
    move_all(&mut shard, instant(AFTER + 10)).unwrap();
    assert_eq!((shard.stats().cold_segments, cold.names()), (0, vec![]));
    assert_eq!(shard.take_damage().len(), shard.stats().segments);
}

#[test]
fn a_damaged_file_that_is_let_go_while_it_is_looked_at_stops_nobody() {
    let (disk, cold) = (SimDisk::new(), SimCold::default());
    let mut shard = open(&disk, &cold);
    filled(&mut shard, 9);
    for name in files(&disk, "s") {
        disk.flip_bit(&format!("s/{name}"), 120, 3).unwrap();
    }
    let job = shard.begin_cold(instant(AFTER + 10)).unwrap();
    shard.finish_cold(job.run()).unwrap();
    let done = shard.begin_cold(instant(AFTER + 10)).unwrap().run();
    shard.retain(vec![Floor::at(None, None, instant(30))]);
    shard.advance(10);
    shard.compact().unwrap();
    let report = shard.finish_cold(done).unwrap();
    assert_eq!(
        (report.failed, shard.take_damage(), shard.stats().segments),
        (None, vec![], 0)
    );
}

/// A merge that needs a cold file waits for the store; what is here is merged, and nothing stops.
#[test]
fn a_rewrite_of_a_cold_file_waits_for_the_store() {
    let (disk, cold) = (SimDisk::new(), SimCold::default());
    let mut shard = open(&disk, &cold);
    let mut naive = filled(&mut shard, 9);
    move_all(&mut shard, instant(AFTER + 10)).unwrap();
    shard.compact().unwrap();
    let floors = Entry::Retain(vec![Floor::at(None, None, instant(7))]);
    give(&mut shard, 10, &floors);
    naive.give(10, &floors);
    cold.fail_after(0, false);
    let cold_segments = shard.stats().cold_segments;
    for i in 11..=16 {
        give(&mut shard, i, &entry(i));
        naive.give(i, &entry(i));
        shard.flush(b"").unwrap();
    }
    assert!(shard.compact().unwrap().is_some(), "what is here");
    while shard.compact().unwrap().is_some() {}
    assert_eq!(shard.stats().cold_segments, cold_segments);
    assert!(move_all(&mut shard, instant(AFTER + 10)).unwrap().is_some());
    cold.heal();
    move_all(&mut shard, instant(AFTER + 10)).unwrap();
    while shard.compact().unwrap().is_some() {}
    move_all(&mut shard, instant(AFTER + 10)).unwrap();
    compare(&shard.reader(), &naive, (2, 17));
    let rows = 2 * (9 - 7 + 1) + 2 * 6;
    assert_eq!(
        shard.stats().samples + shard.stats().lines,
        rows,
        "rows that nobody sees are gone"
    );
}

#[test]
fn rules_are_by_tenant_before_domain() {
    let (disk, cold) = (SimDisk::new(), SimCold::default());
    let rule = |domain, after: Option<u64>| ColdRule {
        tenant: None,
        domain,
        after: after.map(SpanNs::from_secs),
    };
    let mut with_rules = cold_config(&cold, "s");
    if let Some(cold) = &mut with_rules.cold {
        cold.rules = vec![rule(None, Some(10)), rule(owners()[2].domain(), None)];
    }
    let (mut shard, _) = Shard::open(Arc::new(disk.clone()), "s", with_rules.clone()).unwrap();
    filled(&mut shard, 9);
    move_all(&mut shard, instant(100)).unwrap();
    let moved: BTreeSet<String> = cold.names().into_iter().collect();
    assert_eq!(
        (moved.len(), shard.stats().segments),
        (1, 2),
        "the database's lines stay"
    );
    if let Some(cold) = &mut with_rules.cold {
        cold.rules.clear();
    }
    drop(shard);
    let (mut shard, _) = Shard::open(Arc::new(disk), "s", with_rules).unwrap();
    move_all(&mut shard, instant(100)).unwrap();
    assert_eq!(shard.stats().cold_segments, 1, "read, and nothing more goes");
}

/// Another cluster, node or group never meets it; nor a folder whose name begins alike.
#[test]
fn what_lies_elsewhere_in_the_store_is_left_alone() {
    let (disk, cold) = (SimDisk::new(), SimCold::default());
    hindcast_env::disk::write_new_file(&disk, "f", b"somebody's").unwrap();
    let file = disk.open_read("f").unwrap();
    for name in ["c/s2/segment-1", "c/s-1", "d/s/segment-1", "c/s/ours-of-a-crash"] {
        let _: ColdRef = cold.put(name, file.as_ref()).unwrap();
    }
    let mut shard = open(&disk, &cold);
    move_all(&mut shard, instant(100)).unwrap();
    assert_eq!(cold.names(), ["c/s-1", "c/s2/segment-1", "d/s/segment-1"]);
    assert_eq!(config().group, GroupId(3));
}

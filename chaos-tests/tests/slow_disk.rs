//! The meta store on a disk that is slow.
//!
//! sled has seven threads for all its writes. When each of them had something to write and a change of its file's length waited behind
//! them, they waited for each other for ever: a node on a slow disk listened, answered nobody, and did not end.

#![allow(clippy::disallowed_methods, reason = "a test on real processes runs in real time")]

use anyhow::{Context, Result, ensure};
use hindcast_env::{Rng, SeededRng};
use hindcast_raft::io::{SledConfig, SledStores};
use hindcast_raft::meta::{Changes, MetaStore};
use hindcast_raft::meta_machine::StoreFactory;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Of the test, which runs itself once for each store, with the store's folder here.
const NAME: &str = "a_meta_store_on_a_slow_disk_does_not_stand_still";
const DIR: &str = "HINDCAST_TEST_SLOW_DISK_DIR";
const SYNC_TAKES_MS: u32 = 100;
const WORK: Duration = Duration::from_secs(45);
/// Beyond that: one that stands still is ended by its own watchdog, after half a minute.
const END_MAX: Duration = Duration::from_secs(90);
/// Each has its own sled; one that stands still is enough.
const STORES: u64 = 4;

/// The library of the episodes, and the numbers that it reads: a sync takes longer, nothing else.
fn slow_disk(dir: &Path) -> Result<(PathBuf, PathBuf)> {
    let (library, numbers) = (dir.join("disk.so"), dir.join("numbers"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("episodes/faults/disk.c");
    let made = Command::new("cc")
        .args(["-O2", "-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .status()
        .context("a C compiler is needed")?;
    ensure!(made.success(), "disk.c does not compile");
    let mut told = [0; 7];
    told[3] = SYNC_TAKES_MS;
    std::fs::write(
        &numbers,
        told.iter().flat_map(|n: &u32| n.to_ne_bytes()).collect::<Vec<u8>>(),
    )?;
    Ok((library, numbers))
}

fn start(dir: &Path, library: &Path, numbers: &Path) -> Result<Child> {
    std::fs::create_dir_all(dir)?;
    Ok(Command::new(std::env::current_exe()?)
        .args(["--exact", NAME, "--ignored"])
        .env(DIR, dir)
        .env("LD_PRELOAD", library)
        .env("HINDCAST_FAULT_DIR", dir)
        .env("HINDCAST_FAULT_FILE", numbers)
        .stdout(Stdio::null())
        .spawn()?)
}

#[test]
#[ignore = "45 s: `cargo xtask prove slow-disk`"]
fn a_meta_store_on_a_slow_disk_does_not_stand_still() -> Result<()> {
    if let Some(dir) = std::env::var_os(DIR) {
        return one_store(Path::new(&dir));
    }
    let dir = tempfile::tempdir()?;
    let (library, numbers) = slow_disk(dir.path())?;
    let stores = (0..STORES).map(|i| start(&dir.path().join(i.to_string()), &library, &numbers));
    let (stores, begun) = (stores.collect::<Result<Vec<Child>>>()?, Instant::now());
    let told = stores.into_iter().map(|store| ended_well(store, begun));
    let told = told.collect::<Result<Vec<bool>>>()?;
    ensure!(told.iter().all(|well| *well), "a store stood still: {told:?}");
    let met = std::fs::read(&numbers)?[24..].try_into().map(u32::from_ne_bytes)?;
    println!("{STORES} stores, {met} slow syncs");
    ensure!(met > 100, "the disk was not slow: {met} syncs");
    Ok(())
}

/// What one store is asked for: some commits of a few rows, one of many, again and again; it grows and shrinks in turn, so that its file does.
struct Work {
    keys: u64,
    bytes_max: u64,
    rows: usize,
    rows_of_the_large: usize,
}

const WORKS: [Work; 2] = [
    Work {
        keys: 2_000,
        bytes_max: 64 << 10,
        rows: 20,
        rows_of_the_large: 20,
    },
    // A mass alarm: thousands of alerts in one command, and as many History rows that go in another.
    Work {
        keys: 20_000,
        bytes_max: 2_000,
        rows: 20,
        rows_of_the_large: 5_000,
    },
];

/// Whether it went well. One that does not end is ended.
fn ended_well(mut store: Child, begun: Instant) -> Result<bool> {
    while begun.elapsed() < WORK + END_MAX {
        if let Some(status) = store.try_wait()? {
            return Ok(status.success());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    store.kill()?;
    store.wait()?;
    Ok(false)
}

fn one_store(dir: &Path) -> Result<()> {
    let number: u64 = dir.file_name().and_then(|n| n.to_str()).context("no number")?.parse()?;
    let work = &WORKS[number as usize % WORKS.len()];
    let store = SledStores::new(SledConfig::new(dir.join("sled"))).open()?;
    let mut rng = SeededRng::new(number);
    let begun = Instant::now();
    let mut index = 0;
    while begun.elapsed() < WORK {
        index += 1;
        let grows = (index / 200) % 2 == 0;
        let rows = if index % 100 == 0 {
            work.rows_of_the_large
        } else {
            work.rows
        };
        let row = |_| {
            let key = ("rows".to_owned(), rng.below(work.keys).to_be_bytes().to_vec());
            (key, grows.then(|| vec![7; rng.below(work.bytes_max) as usize]))
        };
        store.commit(&(0..rows).map(row).collect::<Changes>(), index)?;
    }
    eprintln!("{index} commits");
    Ok(())
}

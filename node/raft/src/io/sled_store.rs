//! The meta store in sled: one tree, keys `tree \0 key`, one batch per command.
//!
//! sled is the queryable form of what snapshot file and Raft log hold, never the only copy: its `flush` does not
//! reach the disk on Linux, and it may fail to open after an abrupt stop. Whatever goes wrong, the folder is moved
//! aside and built again.

#![allow(clippy::disallowed_methods, reason = "sled and its folder are outside the Disk seam")]

use crate::meta::{Changes, MetaRead, MetaStore, MetaStoreError, Rows};
use crate::meta_machine::StoreFactory;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct SledConfig {
    /// The store's own folder.
    pub dir: PathBuf,
    /// sled takes several times as much memory; set a quarter of what it may use.
    pub cache_bytes: u64,
}

impl SledConfig {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            cache_bytes: 64 << 20,
        }
    }
}

/// No tree has an empty name, so this key is none of theirs.
const APPLIED_KEY: &[u8] = b"\0applied";
/// sled cleans a segment of its file as often as it flushes by itself; a flush also takes one of its seven threads until it is written.
const FLUSH_EVERY_MS: u64 = 5_000;
/// Of a segment, which is what sled writes at most at a time. A store that was made with another size is built again.
const SEGMENT_BYTES: usize = 4 << 20;
const LOCK_TRIES_MAX: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// Between two flushes that are waited for. sled 0.34 stands still for ever when all of its seven threads have something to write and a
/// change of its file's length waits behind them, so few writes may be under way. A row that changes takes its page with it, which has
/// some kilobytes; one command may be larger than this, and it would take twenty-eight megabytes to be seven segments.
const UNFLUSHED_ROWS_MAX: u64 = 256;
const UNFLUSHED_BYTES_MAX: u64 = 256 << 10;

pub struct SledStore {
    db: sled::Db,
    db_file: PathBuf,
    applied: AtomicU64,
    /// A batch is one step to point reads but not to a walk; this makes it one to both.
    gate: RwLock<()>,
    unflushed: Mutex<Unflushed>,
    watchdog: Watchdog,
}

/// What was committed since the last flush that was waited for.
#[derive(Default)]
struct Unflushed {
    rows: u64,
    bytes: u64,
}

fn failed(what: &'static str, why: impl std::fmt::Display) -> MetaStoreError {
    MetaStoreError {
        what,
        why: why.to_string(),
    }
}

fn full_key(tree: &str, key: &[u8]) -> Vec<u8> {
    [tree.as_bytes(), b"\0", key].concat()
}

/// A thread of sled may hold the file of a store that was closed for a moment longer.
fn open_unlocked(options: &sled::Config) -> sled::Result<sled::Db> {
    let mut tries_left = LOCK_TRIES_MAX;
    loop {
        match options.open() {
            Err(sled::Error::Io(e)) if tries_left > 0 && e.to_string().contains("could not acquire lock") => {
                tries_left -= 1;
                std::thread::sleep(LOCK_PAUSE);
            }
            opened => return opened,
        }
    }
}

/// A store that cannot be read must not look like one without rows: the worker stops the node, the next start rebuilds.
fn readable<T>(result: sled::Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(e) => panic!("the meta store cannot be read and must be rebuilt: {e}"),
    }
}

impl SledStore {
    fn open(config: &SledConfig) -> Result<Self, MetaStoreError> {
        let options = sled::Config::new()
            .path(&config.dir)
            .cache_capacity(config.cache_bytes)
            .segment_size(SEGMENT_BYTES)
            .flush_every_ms(Some(FLUSH_EVERY_MS));
        // sled meets some kinds of damage with a panic.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let db = open_unlocked(&options).map_err(|e| match e {
                // sled asks the user to change a number back.
                sled::Error::Unsupported(_) => failed("open", "it is of another version of this program"),
                e => failed("open", e),
            })?;
            let applied = db.get(APPLIED_KEY).map_err(|e| failed("read its applied index", e))?;
            let applied = match applied.as_deref().map(<[u8; 8]>::try_from) {
                None if db.is_empty() => 0,
                Some(Ok(bytes)) => u64::from_be_bytes(bytes),
                None | Some(Err(_)) => {
                    return Err(failed("read its applied index", "there are rows, but no such index"));
                }
            };
            Ok((db, applied))
        }));
        let (db, applied) = opened.map_err(|_| failed("open", "sled panicked"))??;
        Ok(Self {
            db,
            db_file: config.dir.join("db"),
            applied: AtomicU64::new(applied),
            gate: RwLock::new(()),
            unflushed: Mutex::default(),
            watchdog: Watchdog::new(TICK, TICKS_MAX, end_process).map_err(|e| failed("start its watchdog", e))?,
        })
    }
}

impl SledStore {
    fn flush(&self) -> Result<(), MetaStoreError> {
        let _call = self.watchdog.call("flush");
        self.db.flush().map_err(|e| failed("flush", e))?;
        Ok(())
    }

    /// Waits for what is under way if these changes make it too much.
    fn make_room(&self, changes: &Changes) -> Result<(), MetaStoreError> {
        let bytes = changes
            .iter()
            .map(|((tree, key), value)| tree.len() + key.len() + value.as_ref().map_or(0, Vec::len));
        let (rows, bytes) = (changes.len() as u64, bytes.sum::<usize>() as u64);
        let mut unflushed = self.unflushed.lock();
        if unflushed.rows + rows > UNFLUSHED_ROWS_MAX || unflushed.bytes + bytes > UNFLUSHED_BYTES_MAX {
            // Readers go on meanwhile: the gate is not held.
            self.flush()?;
            *unflushed = Unflushed::default();
        }
        unflushed.rows += rows;
        unflushed.bytes += bytes;
        Ok(())
    }
}

impl Drop for SledStore {
    /// sled writes what is left when it is closed, and can stand still there as well; afterwards nothing is left to do, but for an
    /// error that it will meet again.
    fn drop(&mut self) {
        let _ = self.flush();
    }
}

impl MetaRead for SledStore {
    fn get(&self, tree: &str, key: &[u8]) -> Option<Vec<u8>> {
        let _call = self.watchdog.call("read");
        readable(self.db.get(full_key(tree, key))).map(|v| v.to_vec())
    }

    fn scan(&self, tree: &str, prefix: &[u8], from: Option<&[u8]>, limit: usize) -> Rows {
        let start = full_key(tree, from.unwrap_or(prefix).max(prefix));
        let prefix = full_key(tree, prefix);
        let skip = tree.len() + 1;
        let _call = self.watchdog.call("walk");
        let _gate = self.gate.read();
        let mut rows = Rows::new();
        for row in self.db.range(start..).take(limit) {
            let (key, value) = readable(row);
            if !key.starts_with(&prefix) {
                break;
            }
            rows.push((key[skip..].to_vec(), value.to_vec()));
        }
        rows
    }

    fn applied(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }
}

impl MetaStore for SledStore {
    fn commit(&self, changes: &Changes, applied: u64) -> Result<(), MetaStoreError> {
        self.make_room(changes)?;
        let mut batch = sled::Batch::default();
        for ((tree, key), value) in changes {
            match value {
                Some(value) => batch.insert(full_key(tree, key), value.as_slice()),
                None => batch.remove(full_key(tree, key)),
            }
        }
        batch.insert(APPLIED_KEY, &applied.to_be_bytes());
        let _call = self.watchdog.call("commit");
        let _gate = self.gate.write();
        self.db.apply_batch(batch).map_err(|e| failed("commit", e))?;
        self.applied.store(applied, Ordering::Release);
        Ok(())
    }

    fn checkpoint(&self) -> Result<(), MetaStoreError> {
        self.flush()?;
        // sled's flush stops at the page cache.
        let file = fs::File::open(&self.db_file).map_err(|e| failed("open its file to sync it", e))?;
        file.sync_all().map_err(|e| failed("sync its file", e))
    }
}

const TICK: Duration = Duration::from_secs(1);
/// A call that was there for so many ticks in a row does not end.
const TICKS_MAX: u32 = 30;

/// Tells of a call that does not end. On a disk that fails or is slow sled 0.34 can wait for itself for ever (see
/// `UNFLUSHED_ROWS_MAX`), and who waits for the store with it: the node would neither answer nor end.
///
/// Counts its own ticks instead of asking a clock: a process that was stopped for a while did not hang.
struct Watchdog {
    calls: Arc<Mutex<Calls>>,
}

#[derive(Default)]
struct Calls {
    next: u64,
    /// What it is, and how often a tick met it.
    open: BTreeMap<u64, (&'static str, u32)>,
}

impl Watchdog {
    fn new(tick: Duration, ticks_max: u32, hangs: fn(&'static str)) -> io::Result<Self> {
        let calls = Arc::new(Mutex::new(Calls::default()));
        let watched = Arc::downgrade(&calls);
        let watch = move || {
            loop {
                std::thread::sleep(tick);
                // The store is closed.
                let Some(calls) = watched.upgrade() else { return };
                let mut calls = calls.lock();
                for (what, ticks) in calls.open.values_mut() {
                    *ticks += 1;
                    if *ticks == ticks_max {
                        hangs(what);
                    }
                }
            }
        };
        std::thread::Builder::new().name("meta-watch".to_owned()).spawn(watch)?;
        Ok(Self { calls })
    }

    /// Open until it is dropped.
    fn call(&self, what: &'static str) -> Call<'_> {
        let mut calls = self.calls.lock();
        let id = calls.next;
        calls.next += 1;
        calls.open.insert(id, (what, 0));
        Call { watchdog: self, id }
    }
}

struct Call<'a> {
    watchdog: &'a Watchdog,
    id: u64,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.watchdog.calls.lock().open.remove(&self.id);
    }
}

/// Not by way of the other threads: they may wait for the store. The next start reads it, or builds it again.
fn end_process(what: &'static str) {
    let span = TICK * TICKS_MAX;
    tracing::error!(?span, "a {what} of the meta store does not end");
    eprintln!(
        "hindcast: this node cannot go on: a {what} of the meta store has not ended for {span:?}: the disk fails or is very slow; \
         look after the disk, then start the node again: the store is read, or built again from its snapshot and the Raft log"
    );
    std::process::exit(1);
}

/// Opens the store in its folder. At most one damaged folder is kept aside, for a later look.
pub struct SledStores {
    config: SledConfig,
}

impl SledStores {
    pub fn new(config: SledConfig) -> Self {
        Self { config }
    }

    fn aside(&self) -> PathBuf {
        let mut name = self.config.dir.clone().into_os_string();
        name.push(".aside");
        name.into()
    }
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

impl StoreFactory for SledStores {
    type Store = SledStore;

    fn open(&self) -> Result<SledStore, MetaStoreError> {
        SledStore::open(&self.config)
    }

    fn move_aside(&self) -> Result<(), MetaStoreError> {
        let aside = self.aside();
        ignore_missing(fs::remove_dir_all(&aside)).map_err(|e| failed("remove the folder kept aside", e))?;
        ignore_missing(fs::rename(&self.config.dir, &aside)).map_err(|e| failed("move its folder aside", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn a_call_that_does_not_end_is_told_of_once_and_those_that_end_never() {
        static HANGS: AtomicU32 = AtomicU32::new(0);
        static ENDS: AtomicU32 = AtomicU32::new(0);
        let tell = |what| {
            let told = if what == "commit" { &HANGS } else { &ENDS };
            told.fetch_add(1, Ordering::SeqCst);
        };
        let watchdog = Watchdog::new(Duration::from_millis(10), 50, tell).unwrap();
        let hanging = watchdog.call("commit");
        while HANGS.load(Ordering::SeqCst) == 0 {
            // Many short ones meanwhile, none of them for fifty ticks.
            drop(watchdog.call("read"));
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(100));
        drop(hanging);
        assert!(watchdog.calls.lock().open.is_empty());
        assert_eq!([&HANGS, &ENDS].map(|n| n.load(Ordering::SeqCst)), [1, 0]);
    }
}

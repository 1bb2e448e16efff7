//! For tests only: a real folder that forgets what was not synced when the power is cut.
//!
//! `kill -9` tests recovery but no sync: the kernel keeps what it was given. This disk remembers every write and name
//! since its last sync. When told so it stops all operations, takes back what the rule of [`crash`](crate::crash)
//! says is lost, on the real files, and aborts the process. What starts next finds what a power cut would have left.
//!
//! How it is told: the file [`CONTROL_FILE`] appears in the folder, with one line `OPERATIONS SEED`: cut before that
//! many more writes, syncs or names, at the latest after [`WAIT_MAX`]. What was lost is then told in [`DONE_FILE`].
//!
//! Limits: only what goes through this disk is taken back; what an earlier process left unsynced is not known; beyond
//! [`UNSYNCED_BYTES_MAX`] the oldest writes count as written back by the kernel, which does that too. A new folder
//! whose parent was not synced may be lost with all that is in it; a removed folder that comes back lacks its empty
//! folders.

#![allow(clippy::disallowed_methods, reason = "this is a door to the file system")]

use super::fs::RealDisk;
use crate::crash::{Cut, Kept, NameChanges};
use crate::disk::{Disk, DiskError, DiskFile, DiskResult, ReadAt, parent};
use crate::rng::SeededRng;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub const CONTROL_FILE: &str = "test-only-power-cut";
pub const DONE_FILE: &str = "test-only-power-cut.done";
/// Holds a second name of every file that a change of names is about, so that the change can be taken back.
const GRAVEYARD: &str = ".test-only-power-cut";
/// What is remembered of overwritten bytes.
pub const UNSYNCED_BYTES_MAX: usize = 256 << 20;
/// A disk that is idle is cut all the same.
pub const WAIT_MAX: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(2);
const NOT_ARMED: i64 = i64::MAX;

/// Clones share the disk.
#[derive(Clone)]
pub struct PowerCutDisk(Arc<Inner>);

struct Inner {
    real: RealDisk,
    /// Operations share it; the cut takes it alone and never gives it back.
    gate: RwLock<()>,
    state: Mutex<State>,
    /// Operations that are still done; `NOT_ARMED`: all.
    left: AtomicI64,
    seed: AtomicU64,
}

#[derive(Default)]
struct State {
    /// In the order in which they were done, over all files.
    unsynced: VecDeque<Unsynced>,
    unsynced_bytes: usize,
    done: u64,
    /// What the names that `changes` speaks of meant before. Files are named by their inode.
    durable: BTreeMap<String, u64>,
    changes: NameChanges<u64>,
    new_folders: Vec<String>,
    buried: BTreeSet<u64>,
}

/// One write, and what it overwrote.
struct Unsynced {
    number: u64,
    inode: u64,
    file: Arc<File>,
    what: What,
    len_before: u64,
}

enum What {
    Write {
        offset: u64,
        len: usize,
        before: Vec<u8>,
    },
    /// `tail`: what was cut off.
    Length {
        to: u64,
        tail: Vec<u8>,
    },
}

impl Unsynced {
    fn bytes(&self) -> usize {
        match &self.what {
            What::Write { before, .. } => before.len(),
            What::Length { tail, .. } => tail.len(),
        }
    }

    /// Takes the write back; the bytes that it had written.
    fn undo(&self) -> io::Result<Vec<u8>> {
        let mut after = vec![];
        match &self.what {
            What::Write { offset, len, before } => {
                after = read_some(&self.file, *offset, *len)?;
                self.file.write_all_at(before, *offset)?;
            }
            What::Length { tail, .. } if !tail.is_empty() => {
                let at = self.len_before - tail.len() as u64;
                self.file.write_all_at(tail, at)?;
            }
            What::Length { .. } => {}
        }
        self.file.set_len(self.len_before)?;
        Ok(after)
    }

    /// Does again what is left of it.
    fn redo(&self, kept: Kept, after: &[u8]) -> io::Result<()> {
        match (&self.what, kept) {
            (What::Write { offset, .. }, Kept::Whole) => self.file.write_all_at(after, *offset),
            (What::Write { offset, .. }, Kept::Start(n)) => {
                self.file.write_all_at(&after[..n.min(after.len())], *offset)
            }
            (What::Length { to, .. }, Kept::Whole) => self.file.set_len(*to),
            _ => Ok(()),
        }
    }
}

/// As much as is there.
fn read_some(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let there = file.metadata()?.len().saturating_sub(offset).min(len as u64);
    let mut bytes = vec![0; there as usize];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// What a cut took back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    pub writes: usize,
    pub writes_unsynced: usize,
    pub names: usize,
    pub names_unsynced: usize,
    pub folders: usize,
}

impl PowerCutDisk {
    /// Takes the folder over and begins to watch for the control file. Never for data that somebody needs.
    pub fn new(real: RealDisk) -> DiskResult<Self> {
        for leftover in [CONTROL_FILE, DONE_FILE] {
            let _ = fs::remove_file(real.root().join(leftover));
        }
        real.remove_dir_all(GRAVEYARD)?;
        real.create_dir_all(GRAVEYARD)?;
        let disk = Self(Arc::new(Inner {
            real,
            gate: RwLock::default(),
            state: Mutex::default(),
            left: AtomicI64::new(NOT_ARMED),
            seed: AtomicU64::new(0),
        }));
        let watched = Arc::downgrade(&disk.0);
        std::thread::spawn(move || {
            while let Some(inner) = watched.upgrade() {
                inner.watch();
                drop(inner);
                std::thread::sleep(POLL);
            }
        });
        Ok(disk)
    }

    /// Takes back what a cut with this seed loses. Nothing may use the disk meanwhile, or its open files afterwards.
    pub fn cut(&self, seed: u64) -> io::Result<Lost> {
        self.0.take_back(seed)
    }
}

impl Inner {
    fn full(&self, path: &str) -> PathBuf {
        self.real.root().join(path)
    }

    fn grave(&self, inode: u64) -> PathBuf {
        self.full(GRAVEYARD).join(format!("{inode:x}"))
    }

    fn watch(&self) {
        let Ok(text) = fs::read_to_string(self.full(CONTROL_FILE)) else {
            return;
        };
        let Some((operations, seed)) = text.strip_suffix('\n').and_then(|t| t.split_once(' ')) else {
            return; // not written to its end yet
        };
        if let (Ok(operations), Ok(seed)) = (operations.parse::<u32>(), seed.parse()) {
            self.seed.store(seed, Ordering::SeqCst);
            self.left.store(i64::from(operations), Ordering::SeqCst);
            let told = Instant::now();
            while told.elapsed() < WAIT_MAX {
                std::thread::sleep(POLL);
            }
            self.end();
        }
    }

    /// One operation that changes the disk: none begins after the cut.
    fn operation<T>(&self, what: &'static str, path: &str, f: impl FnOnce() -> io::Result<T>) -> DiskResult<T> {
        if self.left.load(Ordering::SeqCst) != NOT_ARMED && self.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            self.end();
        }
        let _open = self.gate.read();
        f().map_err(|e| DiskError::new(what, &self.full(path).to_string_lossy(), e))
    }

    fn end(&self) -> ! {
        let _closed = self.gate.write();
        let told = match self.take_back(self.seed.load(Ordering::SeqCst)) {
            Ok(lost) => format!(
                "lost {} of {} writes, {} of {} names, {} folders\n",
                lost.writes, lost.writes_unsynced, lost.names, lost.names_unsynced, lost.folders
            ),
            Err(e) => format!("the cut itself failed, the folder is of no use: {e}\n"),
        };
        let _ = fs::write(self.full(DONE_FILE), told);
        std::process::abort();
    }

    fn take_back(&self, seed: u64) -> io::Result<Lost> {
        let mut rng = SeededRng::new(seed);
        let mut cut = Cut::new(&mut rng);
        let mut state = std::mem::take(&mut *self.state.lock());
        let mut lost = Lost {
            writes_unsynced: state.unsynced.len(),
            names_unsynced: state.changes.len(),
            ..Lost::default()
        };
        let mut written = vec![];
        for write in state.unsynced.iter().rev() {
            written.push(write.undo()?);
        }
        for (write, after) in state.unsynced.iter().zip(written.iter().rev()) {
            let len = matches!(write.what, What::Write { .. }).then_some(after.len());
            let kept = cut.write(len);
            lost.writes += usize::from(kept != Kept::Whole);
            write.redo(kept, after)?;
        }
        let names: Vec<String> = state.changes.paths().into_iter().map(str::to_owned).collect();
        lost.names = state.changes.cut(&mut cut, &mut state.durable);
        for name in names {
            self.put_name(&name, state.durable.get(&name).copied())?;
        }
        for folder in state.new_folders.iter().rev() {
            if !cut.names() {
                lost.folders += 1;
                self.real.remove_dir_all(folder).map_err(|e| e.source)?;
            }
        }
        self.real.remove_dir_all(GRAVEYARD).map_err(|e| e.source)?;
        Ok(lost)
    }

    /// Makes a name mean what it must mean after the cut.
    fn put_name(&self, name: &str, inode: Option<u64>) -> io::Result<()> {
        let full = self.full(name);
        let now = fs::metadata(&full).ok().map(|m| m.ino());
        if now == inode {
            return Ok(());
        }
        if now.is_some() {
            fs::remove_file(&full)?;
        }
        if let Some(inode) = inode {
            fs::create_dir_all(self.full(parent(name)))?;
            fs::hard_link(self.grave(inode), full)?;
        }
        Ok(())
    }

    /// Notes what a name means before it changes, and gives that file a second name.
    fn know(&self, state: &mut State, path: &str) -> io::Result<Option<u64>> {
        let full = self.full(path);
        let inode = match fs::metadata(&full) {
            Ok(m) => Some(m.ino()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        let known = state.durable.contains_key(path) || state.changes.paths().contains(path);
        if let Some(inode) = inode {
            self.bury(state, path, inode)?;
            if !known {
                state.durable.insert(path.to_owned(), inode);
            }
        }
        Ok(inode)
    }

    fn bury(&self, state: &mut State, path: &str, inode: u64) -> io::Result<()> {
        if state.buried.insert(inode) {
            fs::hard_link(self.full(path), self.grave(inode))?;
        }
        Ok(())
    }

    /// Forgets what no change speaks of any more.
    fn settle(&self, folder: &str) -> io::Result<()> {
        let state = &mut *self.state.lock();
        state.changes.settle(folder, &mut state.durable);
        state.new_folders.retain(|d| parent(d) != folder);
        let paths = state.changes.paths();
        state.durable.retain(|p, _| paths.contains(p.as_str()));
        let needed: BTreeSet<u64> = state.changes.nodes().chain(state.durable.values()).copied().collect();
        let idle: Vec<u64> = state.buried.difference(&needed).copied().collect();
        for inode in idle {
            fs::remove_file(self.grave(inode))?;
            state.buried.remove(&inode);
        }
        Ok(())
    }

    /// All files below a folder, by path.
    fn files_below(&self, dir: &str) -> io::Result<Vec<String>> {
        let (mut files, mut dirs) = (vec![], vec![dir.to_owned()]);
        while let Some(dir) = dirs.pop() {
            let entries = match fs::read_dir(self.full(&dir)) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                entries => entries?,
            };
            for entry in entries {
                let entry = entry?;
                let path = format!("{dir}/{}", entry.file_name().to_string_lossy());
                let list = if entry.file_type()?.is_dir() {
                    &mut dirs
                } else {
                    &mut files
                };
                list.push(path);
            }
        }
        Ok(files)
    }
}

struct PowerCutFile {
    disk: PowerCutDisk,
    path: String,
    inode: u64,
    file: Arc<File>,
}

impl PowerCutFile {
    fn open(disk: &PowerCutDisk, path: &str, file: File) -> io::Result<Self> {
        Ok(Self {
            disk: disk.clone(),
            path: path.to_owned(),
            inode: file.metadata()?.ino(),
            file: Arc::new(file),
        })
    }

    /// Notes a write that is about to be done.
    fn note(&self, state: &mut State, len_before: u64, what: What) {
        state.done += 1;
        let write = Unsynced {
            number: state.done,
            inode: self.inode,
            file: self.file.clone(),
            what,
            len_before,
        };
        state.unsynced_bytes += write.bytes();
        state.unsynced.push_back(write);
        while state.unsynced_bytes > UNSYNCED_BYTES_MAX
            && let Some(oldest) = state.unsynced.pop_front()
        {
            state.unsynced_bytes -= oldest.bytes();
        }
    }

    fn cut_to(&self, len: u64) -> io::Result<()> {
        let state = &mut *self.disk.0.state.lock();
        let len_before = self.file.metadata()?.len();
        let tail = read_some(&self.file, len, len_before.saturating_sub(len) as usize)?;
        self.note(state, len_before, What::Length { to: len, tail });
        self.file.set_len(len)
    }
}

impl DiskFile for PowerCutFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> DiskResult<()> {
        self.disk.0.operation("write", &self.path, || {
            let state = &mut *self.disk.0.state.lock();
            let len_before = self.file.metadata()?.len();
            let (len, before) = (bytes.len(), read_some(&self.file, offset, bytes.len())?);
            self.note(state, len_before, What::Write { offset, len, before });
            self.file.write_all_at(bytes, offset)
        })
    }

    fn sync(&mut self) -> DiskResult<()> {
        self.disk.0.operation("sync", &self.path, || {
            // The sync itself takes long: others go on meanwhile.
            let done = self.disk.0.state.lock().done;
            self.file.sync_data()?;
            let state = &mut *self.disk.0.state.lock();
            let inode = self.inode;
            state.unsynced.retain(|w| w.inode != inode || w.number > done);
            state.unsynced_bytes = state.unsynced.iter().map(Unsynced::bytes).sum();
            Ok(())
        })
    }

    fn truncate(&mut self, len: u64) -> DiskResult<()> {
        self.disk.0.operation("truncate", &self.path, || self.cut_to(len))
    }

    fn len(&self) -> DiskResult<u64> {
        let len = self.file.metadata().map(|m| m.len());
        len.map_err(|e| DiskError::new("measure", &self.path, e))
    }
}

impl Disk for PowerCutDisk {
    fn create_dir_all(&self, dir: &str) -> DiskResult<()> {
        self.0.operation("create", dir, || {
            let mut state = self.0.state.lock();
            let mut missing = vec![];
            let mut at = dir;
            while !at.is_empty() && !self.0.real.exists(at) {
                missing.push(at.to_owned());
                at = parent(at);
            }
            state.new_folders.extend(missing.into_iter().rev());
            fs::create_dir_all(self.0.full(dir))
        })
    }

    fn list(&self, dir: &str) -> DiskResult<Vec<String>> {
        let mut names = self.0.real.list(dir)?;
        names.retain(|n| ![GRAVEYARD, CONTROL_FILE, DONE_FILE].contains(&n.as_str()));
        Ok(names)
    }

    fn exists(&self, path: &str) -> bool {
        self.0.real.exists(path)
    }
    fn read(&self, path: &str) -> DiskResult<Bytes> {
        self.0.real.read(path)
    }
    fn open_read(&self, path: &str) -> DiskResult<Arc<dyn ReadAt>> {
        self.0.real.open_read(path)
    }

    fn create(&self, path: &str) -> DiskResult<Box<dyn DiskFile>> {
        let file = self.0.operation("create", path, || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            let mut state = self.0.state.lock();
            let there = self.0.real.exists(path);
            let file = PowerCutFile::open(self, path, options.open(self.0.full(path))?)?;
            if !there {
                self.0.bury(&mut state, path, file.inode)?;
                state.changes.set(path, Some(file.inode));
            }
            drop(state);
            if there {
                // The file stays the same; its bytes go.
                file.cut_to(0)?;
            }
            Ok(file)
        })?;
        Ok(Box::new(file))
    }

    fn open_write(&self, path: &str) -> DiskResult<Box<dyn DiskFile>> {
        let opened = OpenOptions::new().read(true).write(true).open(self.0.full(path));
        let file = opened.and_then(|f| PowerCutFile::open(self, path, f));
        let shown = || self.0.full(path).to_string_lossy().into_owned();
        Ok(Box::new(file.map_err(|e| DiskError::new("open", &shown(), e))?))
    }

    fn rename(&self, from: &str, to: &str) -> DiskResult<()> {
        self.0.operation("rename", from, || {
            let state = &mut *self.0.state.lock();
            let inode = self.0.know(state, from)?.ok_or(io::ErrorKind::NotFound)?;
            self.0.know(state, to)?;
            fs::rename(self.0.full(from), self.0.full(to))?;
            state.changes.moved(from, to, inode);
            Ok(())
        })
    }

    fn link(&self, from: &str, to: &str) -> DiskResult<()> {
        self.0.operation("link", from, || {
            let state = &mut *self.0.state.lock();
            let inode = fs::metadata(self.0.full(from))?.ino();
            fs::hard_link(self.0.full(from), self.0.full(to))?;
            self.0.bury(state, to, inode)?;
            state.changes.set(to, Some(inode));
            Ok(())
        })
    }

    fn remove(&self, path: &str) -> DiskResult<()> {
        self.0.operation("remove", path, || {
            let state = &mut *self.0.state.lock();
            self.0.know(state, path)?.ok_or(io::ErrorKind::NotFound)?;
            fs::remove_file(self.0.full(path))?;
            state.changes.set(path, None);
            Ok(())
        })
    }

    fn remove_dir_all(&self, dir: &str) -> DiskResult<()> {
        self.0.operation("remove", dir, || {
            let state = &mut *self.0.state.lock();
            let files = self.0.files_below(dir)?;
            for file in &files {
                self.0.know(state, file)?;
            }
            self.0.real.remove_dir_all(dir).map_err(|e| e.source)?;
            let inside = format!("{dir}/");
            state.new_folders.retain(|d| d != dir && !d.starts_with(&inside));
            if !files.is_empty() {
                let gone = files.into_iter().map(|f| (f, None)).collect();
                state.changes.add(parent(dir), gone);
            }
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &str) -> DiskResult<()> {
        self.0.operation("sync", dir, || {
            self.0.real.sync_dir(dir).map_err(|e| e.source)?;
            self.0.settle(dir)
        })
    }

    fn free_bytes(&self) -> DiskResult<u64> {
        self.0.real.free_bytes()
    }

    fn capacity_bytes(&self) -> DiskResult<u64> {
        self.0.real.capacity_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{make_dir, replace_file, write_new_file};

    fn on_fresh_folder<T>(name: &str, test: impl FnOnce(&PowerCutDisk) -> T) -> T {
        let folder = std::env::temp_dir().join(format!("hindcast-power-cut-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let disk = PowerCutDisk::new(RealDisk::new(&folder).unwrap()).unwrap();
        let answer = test(&disk);
        fs::remove_dir_all(folder).unwrap();
        answer
    }

    #[test]
    fn what_was_synced_stays_and_only_that_for_sure() {
        let (mut lost, mut torn, mut whole) = (0, 0, 0);
        for seed in 0..40 {
            on_fresh_folder("bytes", |disk| {
                make_dir(disk, "d").unwrap();
                write_new_file(disk, "d/kept", &[1; 2000]).unwrap();
                let mut file = disk.open_write("d/kept").unwrap();
                file.write_at(500, &[2; 2000]).unwrap();
                file.truncate(3000).unwrap();
                drop(file);
                disk.cut(seed).unwrap();
                let kept = disk.read("d/kept").unwrap();
                assert_eq!(kept[..500], [1; 500]);
                let twos = kept.iter().filter(|b| **b == 2).count();
                assert_eq!(kept[500..500 + twos], vec![2; twos]);
                match twos {
                    0 => lost += 1,
                    2000 => whole += 1,
                    _ => {
                        assert_eq!(twos % crate::crash::SECTOR_BYTES, 0);
                        torn += 1;
                    }
                }
                if twos < 1500 {
                    assert_eq!(
                        kept[500 + twos..2000],
                        vec![1; 1500 - twos],
                        "what was there before is there again"
                    );
                }
            });
        }
        assert!(lost > 0 && torn > 0 && whole > 0, "{lost} {torn} {whole}");
    }

    #[test]
    fn names_come_back_and_go_as_one() {
        let (mut old, mut new, mut back, mut gone) = (0, 0, 0, 0);
        for seed in 0..40 {
            on_fresh_folder("names", |disk| {
                make_dir(disk, "d").unwrap();
                write_new_file(disk, "d/a", b"a").unwrap();
                write_new_file(disk, "d/b", b"old").unwrap();
                write_new_file(disk, "d/b.tmp", b"new").unwrap();
                disk.remove("d/a").unwrap();
                disk.rename("d/b.tmp", "d/b").unwrap();
                disk.cut(seed).unwrap();
                *(if disk.exists("d/a") { &mut back } else { &mut gone }) += 1;
                let b = disk.read("d/b").expect("the old one or the new one, never none");
                *(if b == b"old"[..] { &mut old } else { &mut new }) += 1;
                assert_eq!(disk.exists("d/b.tmp"), b == b"old"[..]);
            });
        }
        assert!(old > 0 && new > 0 && back > 0 && gone > 0, "{old} {new} {back} {gone}");
    }

    #[test]
    fn what_was_replaced_by_the_recipe_is_never_lost_and_nothing_is_left_behind() {
        for seed in 0..10 {
            on_fresh_folder("recipe", |disk| {
                make_dir(disk, "d/e").unwrap();
                for n in 0..5u8 {
                    replace_file(disk, "d/e/f", &[n; 100]).unwrap();
                }
                disk.remove_dir_all("gone").unwrap();
                disk.create_dir_all("lost/or/not").unwrap();
                assert!(disk.0.state.lock().buried.is_empty(), "what is settled is forgotten");
                disk.cut(seed).unwrap();
                assert_eq!(disk.read("d/e/f").unwrap(), &[4; 100][..]);
                assert_eq!(disk.list("d/e").unwrap(), ["f"]);
            });
        }
    }

    #[test]
    fn a_removed_folder_may_come_back_and_a_new_one_may_not() {
        let (mut back, mut lost) = (0, 0);
        for seed in 0..30 {
            on_fresh_folder("folders", |disk| {
                make_dir(disk, "d/e").unwrap();
                write_new_file(disk, "d/e/f", b"f").unwrap();
                disk.remove_dir_all("d").unwrap();
                disk.create_dir_all("new").unwrap();
                write_new_file(disk, "new/g", b"g").unwrap();
                disk.cut(seed).unwrap();
                back += u32::from(disk.read("d/e/f").is_ok_and(|f| f == b"f"[..]));
                lost += u32::from(!disk.exists("new/g"));
            });
        }
        assert!(back > 0 && lost > 0, "{back} {lost}");
    }
}

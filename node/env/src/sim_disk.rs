//! A disk in memory that forgets what was not synced when it crashes.
//!
//! What a crash keeps: per file the synced bytes, names as of the folder's last sync, and of what came later what the
//! rule of [`crash`](crate::crash) leaves. Folders always stay. Deterministic in its rng.
//! A capacity bounds the bytes of files that have a name: growing beyond it fails as on a full disk.

use crate::crash::{Cut, Kept, NameChanges};
use crate::disk::{Disk, DiskError, DiskFile, DiskResult, ReadAt, parent};
use crate::rng::{Rng, SeededRng};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

#[derive(Clone, Default)]
struct FileState {
    bytes: Vec<u8>,
    synced: Vec<u8>,
    /// Writes since the last sync, in order.
    unsynced: Vec<Write>,
}

#[derive(Clone)]
enum Write {
    At(u64, Vec<u8>),
    Truncate(u64),
}

impl Write {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Self::At(offset, bytes) => {
                let end = *offset as usize + bytes.len();
                if to.len() < end {
                    to.resize(end, 0);
                }
                to[*offset as usize..end].copy_from_slice(bytes);
            }
            Self::Truncate(len) => to.resize(*len as usize, 0),
        }
    }
}

type Node = Arc<Mutex<FileState>>;

#[derive(Default)]
struct State {
    names: BTreeMap<String, Node>,
    /// Names that survive a crash for sure, but for the changes.
    synced_names: BTreeMap<String, Node>,
    changes: NameChanges<Node>,
    /// Counts down to an error of the next syncs; `None`: none planned.
    syncs_until_error: Option<u64>,
    full: bool,
    bad_reads: Option<BadReads>,
    /// `None`: [`CAPACITY_BYTES`].
    capacity: Option<u64>,
    syncs: u64,
    written: u64,
}

/// Some reads give a wrong bit; the next read of the same bytes may be right.
struct BadReads {
    rng: SeededRng,
    one_in: u64,
    of: fn(&str) -> bool,
    given: u64,
}

/// What a disk holds unless a test says otherwise.
const CAPACITY_BYTES: u64 = 1 << 40;

impl State {
    fn capacity(&self) -> u64 {
        self.capacity.unwrap_or(CAPACITY_BYTES)
    }

    /// Bytes of all files that have a name, those with several names once.
    fn used(&self) -> u64 {
        let mut seen = BTreeSet::new();
        let files = self.names.values().filter(|n| seen.insert(Arc::as_ptr(n)));
        files.map(|n| n.lock().bytes.len() as u64).sum()
    }

    fn free(&self) -> u64 {
        if self.full {
            return 0;
        }
        self.capacity().saturating_sub(self.used())
    }
}

/// Clones share the disk.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

fn missing(what: &'static str, path: &str) -> DiskError {
    DiskError::new(what, path, io::ErrorKind::NotFound.into())
}

impl SimDisk {
    pub fn new() -> Self {
        Self::default()
    }

    /// Power is gone and back: unsynced writes and names are lost, or partly kept, as `rng` decides.
    /// Files opened before must be thrown away by their owners.
    pub fn crash(&self, rng: &mut dyn Rng) {
        let mut guard = self.0.lock();
        let s = &mut *guard;
        let mut cut = Cut::new(rng);
        s.changes.cut(&mut cut, &mut s.synced_names);
        for node in s.synced_names.values() {
            let mut f = node.lock();
            let mut bytes = f.synced.clone();
            for write in std::mem::take(&mut f.unsynced) {
                let len = match &write {
                    Write::At(_, data) => Some(data.len()),
                    Write::Truncate(_) => None,
                };
                match (cut.write(len), &write) {
                    (Kept::Whole, _) => write.apply(&mut bytes),
                    (Kept::Start(kept), Write::At(offset, data)) => {
                        Write::At(*offset, data[..kept].to_vec()).apply(&mut bytes);
                    }
                    _ => {}
                }
            }
            f.synced.clone_from(&bytes);
            f.bytes = bytes;
        }
        s.names = s.synced_names.clone();
    }

    /// The `n`-th sync from now (0: the next) and all later ones fail, until `heal`.
    pub fn fail_sync_after(&self, n: u64) {
        self.0.lock().syncs_until_error = Some(n);
    }

    pub fn set_full(&self, full: bool) {
        self.0.lock().full = full;
    }

    /// From now on the disk holds so much; what is there already stays.
    pub fn set_capacity(&self, bytes: u64) {
        self.0.lock().capacity = Some(bytes);
    }

    pub fn heal(&self) {
        let mut s = self.0.lock();
        s.syncs_until_error = None;
        s.full = false;
    }

    /// From now on about one of `one_in` reads of the files that `of` says gives a wrong bit, until `read_well`.
    pub fn read_badly(&self, rng: SeededRng, one_in: u64, of: fn(&str) -> bool) {
        self.0.lock().bad_reads = Some(BadReads {
            rng,
            one_in,
            of,
            given: 0,
        });
    }

    /// Ends that; how many reads were wrong.
    pub fn read_well(&self) -> u64 {
        self.0.lock().bad_reads.take().map_or(0, |b| b.given)
    }

    /// What a reader gets of bytes that lie there so.
    fn as_read(&self, path: &str, bytes: Bytes) -> Bytes {
        let mut s = self.0.lock();
        let Some(bad) = s.bad_reads.as_mut().filter(|b| (b.of)(path)) else {
            return bytes;
        };
        if bytes.is_empty() || bad.rng.below(bad.one_in) > 0 {
            return bytes;
        }
        bad.given += 1;
        let mut wrong = bytes.to_vec();
        let at = bad.rng.below(wrong.len() as u64) as usize;
        wrong[at] ^= 1 << bad.rng.below(8);
        wrong.into()
    }

    /// As after a new start of the machine: syncs work again. A full disk stays full.
    pub fn heal_syncs(&self) {
        self.0.lock().syncs_until_error = None;
    }

    /// Another disk with the same files, all of it on the platter.
    pub fn fork(&self) -> Self {
        Self::with_files(&self.0.lock().names, |file| file.bytes.clone())
    }

    /// Another disk with what any crash leaves of this one for sure.
    pub fn fork_synced(&self) -> Self {
        Self::with_files(&self.0.lock().synced_names, |file| file.synced.clone())
    }

    fn with_files(names: &BTreeMap<String, Node>, bytes_of: fn(&FileState) -> Vec<u8>) -> Self {
        let names = names.iter().map(|(path, node)| {
            let bytes = bytes_of(&node.lock());
            let file = FileState {
                synced: bytes.clone(),
                bytes,
                unsynced: vec![],
            };
            (path.clone(), Arc::new(Mutex::new(file)))
        });
        let names: BTreeMap<String, Node> = names.collect();
        let state = State {
            synced_names: names.clone(),
            names,
            ..State::default()
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Paths of all files, with their lengths.
    pub fn files(&self) -> Vec<(String, usize)> {
        let s = self.0.lock();
        s.names
            .iter()
            .map(|(path, node)| (path.clone(), node.lock().bytes.len()))
            .collect()
    }

    /// How many file syncs there were.
    pub fn syncs(&self) -> u64 {
        self.0.lock().syncs
    }

    /// How many bytes were written to files, over all time.
    pub fn written(&self) -> u64 {
        self.0.lock().written
    }

    /// Flips one bit of a file, on the platter.
    pub fn flip_bit(&self, path: &str, byte: usize, bit: u8) -> DiskResult<()> {
        let node = self
            .0
            .lock()
            .names
            .get(path)
            .cloned()
            .ok_or_else(|| missing("flip a bit of", path))?;
        let mut f = node.lock();
        f.bytes[byte] ^= 1 << bit;
        f.synced = f.bytes.clone();
        Ok(())
    }

    /// Zeroes a range of a file, on the platter.
    pub fn zero(&self, path: &str, range: std::ops::Range<usize>) -> DiskResult<()> {
        let node = self.node("zero a range of", path)?;
        let mut f = node.lock();
        f.bytes[range].fill(0);
        f.synced = f.bytes.clone();
        Ok(())
    }

    /// A file is gone, as when a check of the file system throws it away.
    pub fn lose(&self, path: &str) -> DiskResult<()> {
        self.remove(path)?;
        self.sync_dir(parent(path))
    }

    /// Cuts a file, on the platter.
    pub fn cut(&self, path: &str, len: usize) -> DiskResult<()> {
        let node = self
            .0
            .lock()
            .names
            .get(path)
            .cloned()
            .ok_or_else(|| missing("cut", path))?;
        let mut f = node.lock();
        f.bytes.truncate(len);
        f.synced = f.bytes.clone();
        Ok(())
    }

    fn node(&self, what: &'static str, path: &str) -> DiskResult<Node> {
        self.0
            .lock()
            .names
            .get(path)
            .cloned()
            .ok_or_else(|| missing(what, path))
    }
}

struct SimFile {
    path: String,
    node: Node,
    disk: SimDisk,
}

impl SimFile {
    fn write(&mut self, write: Write) -> DiskResult<()> {
        let (end, bytes) = match &write {
            Write::At(offset, bytes) => (offset + bytes.len() as u64, bytes.len() as u64),
            Write::Truncate(len) => (*len, 0),
        };
        let grows_by = end.saturating_sub(self.node.lock().bytes.len() as u64);
        {
            let mut s = self.disk.0.lock();
            // Counting what is used costs a walk over all files: only where a test set a bound.
            if s.full || (s.capacity.is_some() && grows_by > s.free()) {
                return Err(DiskError::new("write", &self.path, io::ErrorKind::StorageFull.into()));
            }
            s.written += bytes;
        }
        let mut f = self.node.lock();
        write.apply(&mut f.bytes);
        f.unsynced.push(write);
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> DiskResult<()> {
        self.write(Write::At(offset, bytes.to_vec()))
    }
    fn sync(&mut self) -> DiskResult<()> {
        {
            let mut s = self.disk.0.lock();
            s.syncs += 1;
            match &mut s.syncs_until_error {
                Some(0) => {
                    return Err(DiskError::new(
                        "sync",
                        &self.path,
                        io::Error::other("simulated I/O error"),
                    ));
                }
                Some(n) => *n -= 1,
                None => {}
            }
        }
        let mut f = self.node.lock();
        // Replaying the writes, not copying the file: a log of 64 MiB is synced thousands of times.
        let writes = std::mem::take(&mut f.unsynced);
        for write in &writes {
            write.apply(&mut f.synced);
        }
        Ok(())
    }
    fn truncate(&mut self, len: u64) -> DiskResult<()> {
        self.write(Write::Truncate(len))
    }
    fn len(&self) -> DiskResult<u64> {
        Ok(self.node.lock().bytes.len() as u64)
    }
}

struct SimReader {
    path: String,
    node: Node,
    disk: SimDisk,
}

impl ReadAt for SimReader {
    fn read_at(&self, offset: u64, len: usize) -> DiskResult<Bytes> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let there = {
            let f = self.node.lock();
            let slice = start.checked_add(len).and_then(|end| f.bytes.get(start..end));
            slice.map(Bytes::copy_from_slice)
        };
        match there {
            Some(bytes) => Ok(self.disk.as_read(&self.path, bytes)),
            None => Err(DiskError::new("read", &self.path, io::ErrorKind::UnexpectedEof.into())),
        }
    }
    fn len(&self) -> u64 {
        self.node.lock().bytes.len() as u64
    }
}

impl Disk for SimDisk {
    fn create_dir_all(&self, _dir: &str) -> DiskResult<()> {
        Ok(())
    }
    fn list(&self, dir: &str) -> DiskResult<Vec<String>> {
        let s = self.0.lock();
        let prefix = if dir.is_empty() {
            String::new()
        } else {
            format!("{dir}/")
        };
        let inside = s.names.keys().filter_map(|p| p.strip_prefix(&prefix));
        let mut names: Vec<String> = inside.map(|p| p.split('/').next().unwrap_or(p).to_owned()).collect();
        names.dedup();
        Ok(names)
    }
    fn exists(&self, path: &str) -> bool {
        let s = self.0.lock();
        let inside = format!("{path}/");
        s.names.contains_key(path)
            || s.names
                .range(inside.clone()..)
                .next()
                .is_some_and(|(p, _)| p.starts_with(&inside))
    }
    fn read(&self, path: &str) -> DiskResult<Bytes> {
        let bytes = Bytes::copy_from_slice(&self.node("read", path)?.lock().bytes);
        Ok(self.as_read(path, bytes))
    }
    fn open_read(&self, path: &str) -> DiskResult<Arc<dyn ReadAt>> {
        Ok(Arc::new(SimReader {
            path: path.to_owned(),
            node: self.node("open", path)?,
            disk: self.clone(),
        }))
    }
    fn create(&self, path: &str) -> DiskResult<Box<dyn DiskFile>> {
        let node = Node::default();
        let mut s = self.0.lock();
        s.names.insert(path.to_owned(), node.clone());
        s.changes.set(path, Some(node.clone()));
        drop(s);
        Ok(Box::new(SimFile {
            path: path.to_owned(),
            node,
            disk: self.clone(),
        }))
    }
    fn open_write(&self, path: &str) -> DiskResult<Box<dyn DiskFile>> {
        Ok(Box::new(SimFile {
            path: path.to_owned(),
            node: self.node("open", path)?,
            disk: self.clone(),
        }))
    }
    fn rename(&self, from: &str, to: &str) -> DiskResult<()> {
        let mut s = self.0.lock();
        let node = s.names.remove(from).ok_or_else(|| missing("rename", from))?;
        s.names.insert(to.to_owned(), node.clone());
        s.changes.moved(from, to, node);
        Ok(())
    }
    fn link(&self, from: &str, to: &str) -> DiskResult<()> {
        let node = self.node("link", from)?;
        let mut s = self.0.lock();
        s.names.insert(to.to_owned(), node.clone());
        s.changes.set(to, Some(node));
        Ok(())
    }
    fn remove(&self, path: &str) -> DiskResult<()> {
        let mut s = self.0.lock();
        s.names.remove(path).ok_or_else(|| missing("remove", path))?;
        s.changes.set(path, None);
        Ok(())
    }
    fn remove_dir_all(&self, dir: &str) -> DiskResult<()> {
        let inside = format!("{dir}/");
        let mut s = self.0.lock();
        let gone: Vec<_> = s.names.keys().filter(|p| p.starts_with(&inside)).cloned().collect();
        s.names.retain(|p, _| !p.starts_with(&inside));
        s.changes
            .add(parent(dir), gone.into_iter().map(|p| (p, None)).collect());
        Ok(())
    }
    fn sync_dir(&self, dir: &str) -> DiskResult<()> {
        let s = &mut *self.0.lock();
        s.changes.settle(dir, &mut s.synced_names);
        Ok(())
    }
    fn free_bytes(&self) -> DiskResult<u64> {
        Ok(self.0.lock().free())
    }
    fn capacity_bytes(&self) -> DiskResult<u64> {
        Ok(self.0.lock().capacity())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::write_new_file;
    use crate::rng::SeededRng;

    #[test]
    fn a_crash_keeps_what_was_synced_and_only_that_for_sure() {
        let (mut lost_bytes, mut lost_name) = (false, false);
        for seed in 0..50 {
            let disk = SimDisk::new();
            write_new_file(&disk, "d/kept", b"abc").unwrap();
            disk.open_write("d/kept").unwrap().write_at(3, b"def").unwrap();
            disk.create("d/new").unwrap();
            disk.crash(&mut SeededRng::new(seed));
            let kept = disk.read("d/kept").unwrap();
            assert!(kept.starts_with(b"abc"));
            lost_bytes |= kept.len() == 3;
            lost_name |= !disk.exists("d/new");
        }
        assert!(lost_bytes && lost_name, "the simulation must lose something sometimes");
    }

    #[test]
    fn a_disk_takes_what_it_holds_and_no_byte_more() {
        let disk = SimDisk::new();
        disk.set_capacity(6);
        write_new_file(&disk, "d/a", b"abcd").unwrap();
        disk.link("d/a", "d/b").unwrap();
        assert_eq!((disk.free_bytes().unwrap(), disk.written()), (2, 4));
        let mut file = disk.open_write("d/a").unwrap();
        assert!(file.write_at(3, b"wxyz").unwrap_err().is_full());
        file.write_at(2, b"wxyz").unwrap();
        file.write_at(0, b"over").unwrap();
        assert_eq!(&disk.read("d/b").unwrap()[..], b"overyz");
        assert!(write_new_file(&disk, "d/c", b"1").unwrap_err().is_full());
        disk.remove("d/a").unwrap();
        assert_eq!(disk.free_bytes().unwrap(), 0, "the other name still holds it");
        disk.remove("d/b").unwrap();
        assert_eq!(disk.free_bytes().unwrap(), 6);
    }

    #[test]
    fn a_bad_read_shows_a_wrong_bit_and_leaves_the_file_alone() {
        let disk = SimDisk::new();
        write_new_file(&disk, "d/a", &[0; 8]).unwrap();
        write_new_file(&disk, "d/b", &[0; 8]).unwrap();
        disk.read_badly(SeededRng::new(1), 2, |path| path.ends_with('a'));
        let wrong = |path| (0..100).filter(|_| disk.read(path).unwrap()[..] != [0; 8]).count() as u64;
        let shown = wrong("d/a");
        assert!(shown > 10 && wrong("d/b") == 0);
        assert_eq!(disk.read_well(), shown);
        assert_eq!(wrong("d/a"), 0, "the bytes on the platter are right");
    }

    #[test]
    fn a_rename_without_a_folder_sync_may_be_undone() {
        let mut undone = 0;
        for seed in 0..50 {
            let disk = SimDisk::new();
            write_new_file(&disk, "d/a", b"1").unwrap();
            disk.rename("d/a", "d/b").unwrap();
            disk.crash(&mut SeededRng::new(seed));
            assert!(disk.exists("d/a") || disk.exists("d/b"));
            undone += u32::from(disk.exists("d/a"));
        }
        assert!(undone > 0);
    }

    #[test]
    fn a_removal_and_a_replacement_without_a_folder_sync_may_be_undone_or_not() {
        let (mut back, mut gone, mut old, mut new) = (0, 0, 0, 0);
        for seed in 0..80 {
            let disk = SimDisk::new();
            write_new_file(&disk, "d/a", b"a").unwrap();
            write_new_file(&disk, "d/b", b"old").unwrap();
            write_new_file(&disk, "d/b.tmp", b"new").unwrap();
            disk.remove("d/a").unwrap();
            disk.rename("d/b.tmp", "d/b").unwrap();
            disk.crash(&mut SeededRng::new(seed));
            *(if disk.exists("d/a") { &mut back } else { &mut gone }) += 1;
            let b = disk.read("d/b").expect("the old one or the new one, never none");
            *(if b == b"old"[..] { &mut old } else { &mut new }) += 1;
            assert_eq!(
                disk.exists("d/b.tmp"),
                b == b"old"[..],
                "a rename is not done in halves"
            );
        }
        assert!(back > 0 && gone > 0 && old > 0 && new > 0, "{back} {gone} {old} {new}");
    }
}

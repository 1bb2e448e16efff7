//! Files as the engines need them: few operations, each with a known promise.
//!
//! Paths are relative to the disk's root, parts joined by `/`, never `..`.
//! Durability: bytes are safe after `DiskFile::sync`; a new name, a rename or a removal after `sync_dir` of its folder.
//! An error of `sync` is final for that file: never try again (the kernel may have dropped the dirty pages).

use crate::planted::{Bug, planted};
use bytes::Bytes;
use std::io;
use std::sync::Arc;

/// What a disk could not do, to which path.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}: {source}")]
pub struct DiskError {
    pub what: &'static str,
    pub path: String,
    #[source]
    pub source: io::Error,
}

impl DiskError {
    pub fn new(what: &'static str, path: &str, source: io::Error) -> Self {
        Self {
            what,
            path: path.to_owned(),
            source,
        }
    }
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
    /// The medium does not give back what lies there (EIO, the same number on every Unix that we run on).
    pub fn is_unreadable(&self) -> bool {
        const EIO: i32 = 5;
        self.source.raw_os_error() == Some(EIO)
    }
    pub fn is_full(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }
}

pub type DiskResult<T> = Result<T, DiskError>;

pub trait Disk: Send + Sync + 'static {
    /// Creates the folder and its parents; no error when it is there.
    fn create_dir_all(&self, dir: &str) -> DiskResult<()>;
    /// Names (not paths) of files and folders in `dir`, sorted. A missing folder is empty.
    fn list(&self, dir: &str) -> DiskResult<Vec<String>>;
    fn exists(&self, path: &str) -> bool;
    fn read(&self, path: &str) -> DiskResult<Bytes>;
    fn open_read(&self, path: &str) -> DiskResult<Arc<dyn ReadAt>>;
    /// A new, empty file; one that is there is emptied.
    fn create(&self, path: &str) -> DiskResult<Box<dyn DiskFile>>;
    /// An existing file, for writing at any place.
    fn open_write(&self, path: &str) -> DiskResult<Box<dyn DiskFile>>;
    /// Replaces `to` if it is there.
    fn rename(&self, from: &str, to: &str) -> DiskResult<()>;
    /// A second name for the same file (it must never be written again).
    fn link(&self, from: &str, to: &str) -> DiskResult<()>;
    fn remove(&self, path: &str) -> DiskResult<()>;
    /// No error when it is not there.
    fn remove_dir_all(&self, dir: &str) -> DiskResult<()>;
    fn sync_dir(&self, dir: &str) -> DiskResult<()>;
    /// Bytes left for us.
    fn free_bytes(&self) -> DiskResult<u64>;
    /// Bytes that the disk holds in all.
    fn capacity_bytes(&self) -> DiskResult<u64>;
}

#[allow(clippy::len_without_is_empty, reason = "a length in bytes, not a collection")]
pub trait DiskFile: Send {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> DiskResult<()>;
    /// fdatasync: the bytes, and the size needed to read them.
    fn sync(&mut self) -> DiskResult<()>;
    fn truncate(&mut self, len: u64) -> DiskResult<()>;
    fn len(&self) -> DiskResult<u64>;
}

#[allow(clippy::len_without_is_empty, reason = "a length in bytes, not a collection")]
pub trait ReadAt: Send + Sync {
    /// Exactly `len` bytes, or an error of kind `UnexpectedEof`.
    fn read_at(&self, offset: u64, len: usize) -> DiskResult<Bytes>;
    fn len(&self) -> u64;
    /// The next read of these bytes asks the device and not memory, where that can be asked for. A hint.
    fn forget_cached(&self, _range: std::ops::Range<u64>) {}
}

/// The one way to replace a small file: write aside, sync, rename, sync the folder.
pub fn replace_file(disk: &dyn Disk, path: &str, bytes: &[u8]) -> DiskResult<()> {
    let aside = format!("{path}.tmp");
    let mut file = disk.create(&aside)?;
    file.write_at(0, bytes)?;
    file.sync()?;
    drop(file);
    disk.rename(&aside, path)?;
    sync_name(disk, path)
}

/// The one way to make a new immutable file: write, sync, sync the folder.
pub fn write_new_file(disk: &dyn Disk, path: &str, bytes: &[u8]) -> DiskResult<()> {
    let mut file = disk.create(path)?;
    file.write_at(0, bytes)?;
    file.sync()?;
    sync_name(disk, path)
}

fn sync_name(disk: &dyn Disk, path: &str) -> DiskResult<()> {
    if planted(Bug::NoDirSync) {
        return Ok(());
    }
    disk.sync_dir(parent(path))
}

/// The one way to make a folder that must be there after a crash: it and its parents are names like any other.
pub fn make_dir(disk: &dyn Disk, dir: &str) -> DiskResult<()> {
    disk.create_dir_all(dir)?;
    let mut made = dir;
    while !made.is_empty() {
        made = parent(made);
        disk.sync_dir(made)?;
    }
    Ok(())
}

/// The folder of a path; "" for the root.
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

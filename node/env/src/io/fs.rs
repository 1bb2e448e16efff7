//! The machine's file system behind `Disk`.

#![allow(clippy::disallowed_methods, reason = "this is the door to the file system")]

use crate::disk::{Disk, DiskError, DiskFile, DiskResult, ReadAt};
use bytes::{Bytes, BytesMut};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Held as long as a folder belongs to this process; the kernel lets go when the process dies, however it dies.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

/// A folder of the machine's file system.
#[derive(Clone, Debug)]
pub struct RealDisk {
    root: PathBuf,
}

impl RealDisk {
    /// Creates the folder when it is not there.
    pub fn new(root: impl Into<PathBuf>) -> DiskResult<Self> {
        let root = root.into();
        fs::create_dir_all(&root).map_err(|e| DiskError::new("create", &root.to_string_lossy(), e))?;
        Ok(Self { root })
    }

    /// Makes this process the only one that may use the folder, until the guard is dropped or the process ends.
    /// `Ok(None)`: another process holds it.
    pub fn lock(&self) -> DiskResult<Option<FolderLock>> {
        self.at("lock", "LOCK", |full| {
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(full)?;
            match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => Ok(Some(FolderLock { _file: file })),
                Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
                Err(e) => Err(e.into()),
            }
        })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    fn at<T>(&self, what: &'static str, path: &str, f: impl FnOnce(PathBuf) -> io::Result<T>) -> DiskResult<T> {
        assert!(
            !path.split('/').any(|p| p == ".."),
            "paths stay inside the root: {path}"
        );
        let full = self.root.join(path);
        let shown = full.to_string_lossy().into_owned();
        f(full).map_err(|e| DiskError::new(what, &shown, e))
    }
}

struct RealFile(String, File);

impl RealFile {
    fn done<T>(&self, what: &'static str, r: io::Result<T>) -> DiskResult<T> {
        r.map_err(|e| DiskError::new(what, &self.0, e))
    }
}

impl DiskFile for RealFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> DiskResult<()> {
        self.done("write", self.1.write_all_at(bytes, offset))
    }
    fn sync(&mut self) -> DiskResult<()> {
        self.done("sync", self.1.sync_data())
    }
    fn truncate(&mut self, len: u64) -> DiskResult<()> {
        self.done("truncate", self.1.set_len(len))
    }
    fn len(&self) -> DiskResult<u64> {
        self.done("measure", self.1.metadata().map(|m| m.len()))
    }
}

struct RealReader(String, File, u64);

impl ReadAt for RealReader {
    fn read_at(&self, offset: u64, len: usize) -> DiskResult<Bytes> {
        let mut buf = BytesMut::zeroed(len);
        self.1
            .read_exact_at(&mut buf, offset)
            .map_err(|e| DiskError::new("read", &self.0, e))?;
        Ok(buf.freeze())
    }
    fn len(&self) -> u64 {
        self.2
    }
    fn forget_cached(&self, range: std::ops::Range<u64>) {
        let len = std::num::NonZeroU64::new(range.end.saturating_sub(range.start));
        // Only clean pages go; a failure costs a scrub its sharpness and nothing else.
        let _ = rustix::fs::fadvise(&self.1, range.start, len, rustix::fs::Advice::DontNeed);
    }
}

impl Disk for RealDisk {
    fn create_dir_all(&self, dir: &str) -> DiskResult<()> {
        self.at("create", dir, fs::create_dir_all)
    }
    fn list(&self, dir: &str) -> DiskResult<Vec<String>> {
        self.at("list", dir, |full| {
            let entries = match fs::read_dir(full) {
                Ok(entries) => entries,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
                Err(e) => return Err(e),
            };
            let mut names = vec![];
            for entry in entries {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            names.sort();
            Ok(names)
        })
    }
    fn exists(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }
    fn read(&self, path: &str) -> DiskResult<Bytes> {
        self.at("read", path, |full| fs::read(full).map(Bytes::from))
    }
    fn open_read(&self, path: &str) -> DiskResult<Arc<dyn ReadAt>> {
        self.at("open", path, |full| {
            let shown = full.to_string_lossy().into_owned();
            let file = File::open(full)?;
            let len = file.metadata()?.len();
            Ok(Arc::new(RealReader(shown, file, len)) as Arc<dyn ReadAt>)
        })
    }
    fn create(&self, path: &str) -> DiskResult<Box<dyn DiskFile>> {
        self.at("create", path, |full| {
            let shown = full.to_string_lossy().into_owned();
            Ok(Box::new(RealFile(shown, File::create(full)?)) as Box<dyn DiskFile>)
        })
    }
    fn open_write(&self, path: &str) -> DiskResult<Box<dyn DiskFile>> {
        self.at("open", path, |full| {
            let shown = full.to_string_lossy().into_owned();
            Ok(Box::new(RealFile(shown, OpenOptions::new().write(true).open(full)?)) as Box<dyn DiskFile>)
        })
    }
    fn rename(&self, from: &str, to: &str) -> DiskResult<()> {
        self.at("rename", from, |full| fs::rename(full, self.root.join(to)))
    }
    fn link(&self, from: &str, to: &str) -> DiskResult<()> {
        self.at("link", from, |full| fs::hard_link(full, self.root.join(to)))
    }
    fn remove(&self, path: &str) -> DiskResult<()> {
        self.at("remove", path, fs::remove_file)
    }
    fn remove_dir_all(&self, dir: &str) -> DiskResult<()> {
        self.at("remove", dir, |full| match fs::remove_dir_all(full) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        })
    }
    fn sync_dir(&self, dir: &str) -> DiskResult<()> {
        self.at("sync", dir, |full| File::open(full)?.sync_all())
    }
    fn free_bytes(&self) -> DiskResult<u64> {
        self.at("measure", "", |full| {
            // `statvfs` through the safe wrapper of rustix: this crate forbids unsafe code.
            let s = rustix::fs::statvfs(full)?;
            Ok(s.f_bavail.saturating_mul(s.f_frsize))
        })
    }
    fn capacity_bytes(&self) -> DiskResult<u64> {
        self.at("measure", "", |full| {
            let s = rustix::fs::statvfs(full)?;
            Ok(s.f_blocks.saturating_mul(s.f_frsize))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_no_more_room_than_it_holds() {
        let disk = RealDisk::new(std::env::temp_dir()).unwrap();
        let (free, all) = (disk.free_bytes().unwrap(), disk.capacity_bytes().unwrap());
        assert!(0 < free && free <= all, "{free} of {all}");
    }

    #[test]
    fn two_servers_never_share_a_folder() {
        let dir = std::env::temp_dir().join(format!("hindcast-lock-{}", std::process::id()));
        let disk = RealDisk::new(&dir).unwrap();
        let first = disk.lock().unwrap();
        assert!(first.is_some());
        assert!(RealDisk::new(&dir).unwrap().lock().unwrap().is_none(), "it is held");
        drop(first);
        assert!(disk.lock().unwrap().is_some(), "and free again");
        fs::remove_dir_all(dir).unwrap();
    }
}

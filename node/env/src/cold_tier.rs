//! What a shard needs of a cold store: files that open without the network, read through one bounded cache.
//!
//! Decides when the store is asked: never when a file is opened, only when its bytes are read and not in the cache.
//! So a node starts, and answers what lies on its own disk, while the store is away; what needs cold bytes then fails
//! with the store's error, and works again when the store does.
//! Promises: a file reads as it was put, or fails. The length is compared once per handle, blocks by their own CRC32C.

use crate::cold::{ColdEntry, ColdRef, ColdResult, ColdStore};
use crate::cold_cache::{CacheStats, ColdCache};
use crate::disk::{DiskResult, ReadAt};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

/// The cold store of a node with its cache. Clones share both.
#[derive(Clone)]
pub struct ColdTier {
    store: Arc<dyn ColdStore>,
    cache: ColdCache,
}

impl fmt::Debug for ColdTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ColdTier({})", self.store.url())
    }
}

impl ColdTier {
    /// `cache_bytes_max`: of all cold files of the node together.
    pub fn new(store: Arc<dyn ColdStore>, cache_bytes_max: usize) -> Self {
        Self {
            store,
            cache: ColdCache::new(cache_bytes_max),
        }
    }

    /// Puts a whole file and verifies it. It may leave the disk once a durable manifest names the answer.
    pub fn put(&self, name: &str, file: &dyn ReadAt) -> ColdResult<ColdRef> {
        self.store.put(name, file)
    }

    /// A handle that asks the store when it is read and the cache does not hold it.
    pub fn open(&self, file: &ColdRef) -> Arc<dyn ReadAt> {
        self.cache
            .open(self.open_whole(file), file.bytes, &self.path_of(&file.name))
    }

    /// As `open`, past the cache: for who reads all of it once.
    pub fn open_whole(&self, file: &ColdRef) -> Arc<dyn ReadAt> {
        Arc::new(Lazy {
            store: self.store.clone(),
            path: self.path_of(&file.name),
            file: file.clone(),
            open: Mutex::new(None),
        })
    }

    /// As messages name a file: the store's URL and the name.
    pub fn path_of(&self, name: &str) -> String {
        format!("{}/{name}", self.store.url().trim_end_matches('/'))
    }

    /// No error when it is not there. To be called once no manifest in force, nor the one before it, names the file.
    pub fn delete(&self, name: &str) -> ColdResult<()> {
        self.store.delete(name)
    }

    /// Files below `folder` that nobody names: of puts whose manifest never came.
    pub fn orphans(&self, folder: &str, named: &BTreeSet<String>) -> ColdResult<Vec<ColdEntry>> {
        let mut entries = self.store.list(folder)?;
        entries.retain(|e| !named.contains(&e.name));
        Ok(entries)
    }

    pub fn stats(&self) -> CacheStats {
        self.cache.stats()
    }
}

/// Opens its file at the first read that works.
struct Lazy {
    store: Arc<dyn ColdStore>,
    path: String,
    file: ColdRef,
    open: Mutex<Option<Arc<dyn ReadAt>>>,
}

impl Lazy {
    fn reader(&self) -> ColdResult<Arc<dyn ReadAt>> {
        if let Some(reader) = self.open.lock().clone() {
            return Ok(reader);
        }
        // Two readers at once may both ask: better than one that waits for the network under a lock.
        let reader = self.store.open(&self.file)?;
        Ok(self.open.lock().get_or_insert(reader).clone())
    }
}

impl ReadAt for Lazy {
    fn read_at(&self, offset: u64, len: usize) -> DiskResult<Bytes> {
        let reader = self.reader().map_err(|e| e.into_disk_error("read", &self.path))?;
        reader.read_at(offset, len)
    }

    fn len(&self) -> u64 {
        self.file.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Disk, SimCold, SimDisk, disk::write_new_file};

    fn tier() -> (SimCold, ColdTier, ColdRef) {
        let (disk, cold) = (SimDisk::new(), SimCold::default());
        write_new_file(&disk, "f", &[7; 1000]).unwrap();
        let tier = ColdTier::new(Arc::new(cold.clone()), 1 << 20);
        let put = tier.put("n/s/f", disk.open_read("f").unwrap().as_ref()).unwrap();
        (cold, tier, put)
    }

    #[test]
    fn a_file_opens_while_the_store_is_away_and_reads_when_it_is_back() {
        let (cold, tier, put) = tier();
        cold.fail_next(2);
        let file = tier.open(&put);
        assert_eq!(file.len(), 1000);
        for _ in 0..2 {
            let said = file.read_at(0, 10).unwrap_err();
            assert_eq!(said.source.kind(), std::io::ErrorKind::TimedOut, "{said}");
        }
        assert_eq!(file.read_at(0, 10).unwrap(), [7; 10][..]);
        let reads = cold.reads();
        assert_eq!(file.read_at(500, 500).unwrap(), [7; 500][..]);
        assert_eq!(cold.reads(), reads, "from the cache");
    }

    #[test]
    fn a_file_of_another_length_is_damage() {
        let (_, tier, put) = tier();
        let longer = ColdRef { bytes: 1001, ..put };
        let said = tier.open(&longer).read_at(0, 10).unwrap_err();
        assert_eq!(said.source.kind(), std::io::ErrorKind::UnexpectedEof);
        assert!(said.to_string().contains("1000 bytes instead of 1001"), "{said}");
    }

    #[test]
    fn orphans_are_what_nobody_names_in_ones_own_folder() {
        let (_, tier, put) = tier();
        let disk = SimDisk::new();
        write_new_file(&disk, "f", b"x").unwrap();
        let file = disk.open_read("f").unwrap();
        for name in ["n/s/g", "n/s2/h", "n/s"] {
            tier.put(name, file.as_ref()).unwrap();
        }
        let named = BTreeSet::from([put.name]);
        let names: Vec<String> = tier
            .orphans("n/s", &named)
            .unwrap()
            .into_iter()
            .map(|e| e.name)
            .collect();
        assert_eq!(names, ["n/s/g"]);
        tier.delete("n/s/g").unwrap();
        assert_eq!(tier.orphans("n/s", &named).unwrap(), []);
    }
}

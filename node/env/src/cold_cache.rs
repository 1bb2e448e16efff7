//! A bounded cache of blocks between readers and files that are slow to read.
//!
//! Decides which blocks stay: those used last, as many as fit into `bytes_max` bytes, over all files together.
//! Promises: a cached file answers as the file itself, byte for byte, or with its error; an error is never kept; the
//! blocks held never exceed the bound. Two readers that miss the same block at once both fetch it: that costs a read.
//! A read that would push out most of the cache (a scrub, a merge) goes past it.

use crate::disk::{DiskError, DiskResult, ReadAt};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is fetched and kept as one.
pub const BLOCK_BYTES: usize = 256 * 1024;
/// What the cache of a node holds when nobody said.
pub const CACHE_BYTES_DEFAULT: usize = 256 << 20;
/// Neighbouring blocks that are fetched by one read.
const FETCH_BLOCKS_MAX: u64 = 16;

/// File and block.
type Key = (u64, u64);

/// Blocks by how lately they were used. Pure.
#[derive(Debug)]
struct Lru {
    bytes_max: usize,
    bytes: usize,
    tick: u64,
    blocks: BTreeMap<Key, (u64, Bytes)>,
    by_age: BTreeMap<u64, Key>,
}

impl Lru {
    fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            tick: 0,
            blocks: BTreeMap::new(),
            by_age: BTreeMap::new(),
        }
    }

    fn get(&mut self, key: Key) -> Option<Bytes> {
        self.tick += 1;
        let (used, block) = self.blocks.get_mut(&key)?;
        self.by_age.remove(used);
        self.by_age.insert(self.tick, key);
        *used = self.tick;
        Some(block.clone())
    }

    fn put(&mut self, key: Key, block: Bytes) {
        self.remove(key);
        if block.len() > self.bytes_max {
            return;
        }
        while self.bytes + block.len() > self.bytes_max {
            let Some((_, oldest)) = self.by_age.pop_first() else {
                break;
            };
            self.drop_block(oldest);
        }
        self.tick += 1;
        self.bytes += block.len();
        self.by_age.insert(self.tick, key);
        self.blocks.insert(key, (self.tick, block));
    }

    fn remove(&mut self, key: Key) {
        if let Some((used, _)) = self.blocks.get(&key) {
            self.by_age.remove(used);
            self.drop_block(key);
        }
    }

    fn drop_block(&mut self, key: Key) {
        if let Some((_, block)) = self.blocks.remove(&key) {
            self.bytes -= block.len();
        }
    }

    fn forget(&mut self, file: u64) {
        let keys: Vec<Key> = self
            .blocks
            .range((file, 0)..=(file, u64::MAX))
            .map(|(k, _)| *k)
            .collect();
        for key in keys {
            self.remove(key);
        }
    }
}

/// What a cache did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Blocks that were there, and blocks that were fetched.
    pub hits: u64,
    pub misses: u64,
    /// Held now.
    pub bytes: usize,
}

#[derive(Debug)]
struct Shared {
    lru: Mutex<Lru>,
    files: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// The cache of a node. Clones share it.
#[derive(Clone, Debug)]
pub struct ColdCache(Arc<Shared>);

impl ColdCache {
    pub fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Shared {
            lru: Mutex::new(Lru::new(bytes_max)),
            files: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }))
    }

    /// The same file, read through the cache. `bytes` is what it must have: another length is an error of every read.
    /// Its blocks go when the last handle does.
    pub fn open(&self, file: Arc<dyn ReadAt>, bytes: u64, path: &str) -> Arc<dyn ReadAt> {
        Arc::new(Cached {
            number: self.0.files.fetch_add(1, Ordering::Relaxed),
            cache: self.clone(),
            path: path.to_owned(),
            bytes,
            file,
        })
    }

    pub fn stats(&self) -> CacheStats {
        CacheStats {
            hits: self.0.hits.load(Ordering::Relaxed),
            misses: self.0.misses.load(Ordering::Relaxed),
            bytes: self.0.lru.lock().bytes,
        }
    }
}

struct Cached {
    file: Arc<dyn ReadAt>,
    number: u64,
    cache: ColdCache,
    path: String,
    bytes: u64,
}

impl Drop for Cached {
    fn drop(&mut self) {
        self.cache.0.lru.lock().forget(self.number);
    }
}

impl Cached {
    fn error(&self, kind: io::ErrorKind, why: String) -> DiskError {
        DiskError::new("read", &self.path, io::Error::new(kind, why))
    }

    /// A read of the file itself; exactly what was asked for.
    fn fetch(&self, range: Range<u64>) -> DiskResult<Bytes> {
        let found = self.file.len();
        if found != self.bytes {
            let why = format!("it has {found} bytes instead of {}", self.bytes);
            return Err(self.error(io::ErrorKind::UnexpectedEof, why));
        }
        let len = (range.end - range.start) as usize;
        let bytes = self.file.read_at(range.start, len)?;
        if bytes.len() != len {
            let why = format!("{} bytes came instead of {len}", bytes.len());
            return Err(self.error(io::ErrorKind::UnexpectedEof, why));
        }
        Ok(bytes)
    }

    fn block_range(&self, block: u64) -> Range<u64> {
        let start = block * BLOCK_BYTES as u64;
        start..(start + BLOCK_BYTES as u64).min(self.bytes)
    }

    /// The blocks of a run that is not cached, fetched by one read and kept.
    fn fetch_run(&self, run: Range<u64>) -> DiskResult<Vec<Bytes>> {
        let range = self.block_range(run.start).start..self.block_range(run.end - 1).end;
        let bytes = self.fetch(range.clone())?;
        self.cache.0.misses.fetch_add(run.end - run.start, Ordering::Relaxed);
        let mut blocks = vec![];
        for block in run {
            let at = self.block_range(block);
            // A copy: a slice would hold the whole run in memory for as long as one block of it is kept.
            let own =
                Bytes::copy_from_slice(&bytes[(at.start - range.start) as usize..(at.end - range.start) as usize]);
            self.cache.0.lru.lock().put((self.number, block), own.clone());
            blocks.push(own);
        }
        Ok(blocks)
    }

    /// All blocks of a range, from the cache or fetched.
    fn blocks(&self, range: Range<u64>) -> DiskResult<Vec<Bytes>> {
        let mut blocks = vec![];
        let mut run: Option<Range<u64>> = None;
        for block in range {
            let cached = self.cache.0.lru.lock().get((self.number, block));
            if let Some(missing) = run.take_if(|r| cached.is_some() || r.end - r.start == FETCH_BLOCKS_MAX) {
                blocks.extend(self.fetch_run(missing)?);
            }
            match cached {
                Some(found) => {
                    self.cache.0.hits.fetch_add(1, Ordering::Relaxed);
                    blocks.push(found);
                }
                None => run = Some(run.map_or(block, |r| r.start)..block + 1),
            }
        }
        if let Some(missing) = run {
            blocks.extend(self.fetch_run(missing)?);
        }
        Ok(blocks)
    }
}

impl ReadAt for Cached {
    fn read_at(&self, offset: u64, len: usize) -> DiskResult<Bytes> {
        let end = offset.checked_add(len as u64).filter(|end| *end <= self.bytes);
        let Some(end) = end else {
            let why = format!("bytes {offset} and {len} more are asked for, of {}", self.bytes);
            return Err(self.error(io::ErrorKind::UnexpectedEof, why));
        };
        if len == 0 {
            return Ok(Bytes::new());
        }
        let past_the_cache = len >= self.cache.0.lru.lock().bytes_max / 4;
        if past_the_cache {
            return self.fetch(offset..end);
        }
        let first = offset / BLOCK_BYTES as u64;
        let last = (end - 1) / BLOCK_BYTES as u64;
        let blocks = self.blocks(first..last + 1)?;
        let start = (offset - first * BLOCK_BYTES as u64) as usize;
        if let [block] = &blocks[..] {
            return Ok(block.slice(start..start + len));
        }
        let mut out = BytesMut::with_capacity(len);
        for (i, block) in blocks.iter().enumerate() {
            let from = if i == 0 { start } else { 0 };
            let to = block.len().min(from + len - out.len());
            out.extend_from_slice(&block[from..to]);
        }
        Ok(out.freeze())
    }

    fn len(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A file whose byte at `i` is known, that counts its reads and fails when told.
    struct Far {
        bytes: u64,
        reads: AtomicU64,
        fails: AtomicU64,
        short_by: usize,
    }

    fn byte(i: u64) -> u8 {
        (i ^ (i >> 8) ^ (i >> 16)) as u8
    }

    fn far(bytes: u64) -> Arc<Far> {
        Arc::new(Far {
            bytes,
            reads: AtomicU64::new(0),
            fails: AtomicU64::new(0),
            short_by: 0,
        })
    }

    impl ReadAt for Far {
        fn read_at(&self, offset: u64, len: usize) -> DiskResult<Bytes> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            if self.fails.load(Ordering::Relaxed) > 0 {
                self.fails.fetch_sub(1, Ordering::Relaxed);
                return Err(DiskError::new("read", "far", io::ErrorKind::TimedOut.into()));
            }
            let end = offset + (len - self.short_by) as u64;
            Ok((offset..end).map(byte).collect::<Vec<u8>>().into())
        }
        fn len(&self) -> u64 {
            self.bytes
        }
    }

    const B: u64 = BLOCK_BYTES as u64;

    #[test]
    fn what_was_read_once_is_not_fetched_again() {
        let (file, cache) = (far(10 * B + 7), ColdCache::new(100 * BLOCK_BYTES));
        let cached = cache.open(file.clone(), file.bytes, "far");
        let read = |offset, len| {
            let bytes = cached.read_at(offset, len).unwrap();
            assert!(bytes.iter().copied().eq((offset..offset + len as u64).map(byte)));
            file.reads.swap(0, Ordering::Relaxed)
        };
        assert_eq!(read(5, 10), 1);
        assert_eq!(read(0, BLOCK_BYTES), 0);
        // One fetch for neighbours, and none for the block in their middle.
        assert_eq!(read(3 * B, 10), 1);
        assert_eq!(read(B, 4 * BLOCK_BYTES), 2);
        assert_eq!(read(10 * B, 7), 1);
        assert_eq!(read(10 * B + 7, 0), 0);
        let stats = cache.stats();
        assert_eq!((stats.hits, stats.misses), (2, 6));
        drop(cached);
        assert_eq!(cache.stats().bytes, 0, "blocks go with the last handle");
    }

    #[test]
    fn errors_are_handed_on_and_never_kept() {
        let (file, cache) = (far(3 * B), ColdCache::new(100 * BLOCK_BYTES));
        let cached = cache.open(file.clone(), file.bytes, "far");
        file.fails.store(1, Ordering::Relaxed);
        assert!(cached.read_at(0, 10).is_err());
        assert!(cached.read_at(0, 10).is_ok());
        let eof = |r: DiskResult<Bytes>| r.unwrap_err().source.kind() == io::ErrorKind::UnexpectedEof;
        assert!(eof(cached.read_at(3 * B - 1, 2)));
        assert!(eof(cached.read_at(u64::MAX, 2)));
        assert!(eof(cache.open(file.clone(), 3 * B + 1, "far").read_at(0, 1)));
        let short = Arc::new(Far {
            bytes: B,
            reads: AtomicU64::new(0),
            fails: AtomicU64::new(0),
            short_by: 1,
        });
        assert!(eof(cache.open(short, B, "short").read_at(0, 10)));
    }

    #[test]
    fn a_scan_goes_past_the_cache() {
        let (file, cache) = (far(20 * B), ColdCache::new(8 * BLOCK_BYTES));
        let cached = cache.open(file.clone(), file.bytes, "far");
        cached.read_at(0, 10).unwrap();
        cached.read_at(2 * B, 10 * BLOCK_BYTES).unwrap();
        file.reads.store(0, Ordering::Relaxed);
        cached.read_at(20, 10).unwrap();
        assert_eq!(file.reads.load(Ordering::Relaxed), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn cached_files_answer_as_the_files_themselves_within_the_bound(
            cache_blocks in 1usize..12,
            reads in prop::collection::vec((0usize..2, 0u64..6 * B, 0usize..3 * BLOCK_BYTES), 1..25),
        ) {
            let cache = ColdCache::new(cache_blocks * BLOCK_BYTES);
            let files = [far(6 * B + 1), far(2 * B - 1)];
            let cached: Vec<_> = files.iter().map(|f| cache.open(f.clone(), f.bytes, "far")).collect();
            for (which, offset, len) in reads {
                let answer = cached[which].read_at(offset, len);
                if offset + len as u64 <= files[which].bytes {
                    let bytes = answer.unwrap();
                    prop_assert_eq!(bytes.len(), len);
                    prop_assert!(bytes.iter().enumerate().all(|(i, b)| *b == byte(offset + i as u64)));
                } else {
                    prop_assert!(answer.is_err());
                }
                prop_assert!(cache.stats().bytes <= cache_blocks * BLOCK_BYTES);
            }
        }

        #[test]
        fn the_blocks_used_last_stay(
            bytes_max in 0usize..50,
            uses in prop::collection::vec((0u64..3, 0u64..5, 1usize..12, 0u8..8), 0..80),
        ) {
            let mut lru = Lru::new(bytes_max);
            // Newest first.
            let mut model: Vec<(Key, usize)> = vec![];
            for (file, block, len, what) in uses {
                let key = (file, block);
                match what {
                    0 => {
                        lru.forget(file);
                        model.retain(|(k, _)| k.0 != file);
                    }
                    1..4 => {
                        let found = lru.get(key).map(|b| b.len());
                        let place = model.iter().position(|(k, _)| *k == key);
                        prop_assert_eq!(found, place.map(|i| model[i].1));
                        if let Some(i) = place {
                            let used = model.remove(i);
                            model.insert(0, used);
                        }
                    }
                    _ => {
                        lru.put(key, vec![0; len].into());
                        model.retain(|(k, _)| *k != key);
                        if len <= bytes_max {
                            model.insert(0, (key, len));
                            while model.iter().map(|m| m.1).sum::<usize>() > bytes_max {
                                model.pop();
                            }
                        }
                    }
                }
                let held: usize = model.iter().map(|m| m.1).sum();
                prop_assert!(lru.bytes == held && held <= bytes_max);
                prop_assert_eq!(lru.blocks.len(), model.len());
                prop_assert_eq!(lru.by_age.len(), model.len());
            }
        }
    }
}

//! Series and streams that were seen before, found by the bytes that encode their labels.
//!
//! Senders repeat the same series in the same order. So each entry remembers which one came after it last time: in
//! the common case a series costs one comparison of bytes that lie next to those of the series before, and no hash.
//! An entry knows the slot, the shard that owns it now and, once the local replica has applied its definition, the
//! id. The cache decides nothing: a miss gives the same.
//!
//! Bounded in bytes by two generations: when the young one holds half of `bytes_max` it becomes the old one, and
//! what was old and not asked for since goes. Readers share it; only what is new takes the lock for itself.

use crate::owners::Scope;
use hashbrown::HashTable;
use hindcast_model::{ShardId, Slot};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Bytes that a node's cache may hold: some 300,000 series of ten labels.
pub const SERIES_CACHE_BYTES_MAX: usize = 96 * 1024 * 1024;
/// Scopes (tenants and sets of resource attributes) that are told apart; beyond, everything is forgotten.
const SCOPES_MAX: usize = 65_536;
const SCOPES_BYTES_MAX: usize = 16 * 1024 * 1024;

/// No entry, or no id.
const NONE: u32 = u32::MAX;
const NO_ID: u64 = u64::MAX;

struct Entry {
    /// Where its bytes lie.
    at: u32,
    len: u32,
    hash: u64,
    scope: u32,
    slot: Slot,
    shard: u16,
    /// The entry that came after this one.
    next: AtomicU32,
    /// The low half of the epoch, and the id.
    id: AtomicU64,
}

#[derive(Default)]
struct Generation {
    /// Encoded labels, one after another.
    raw: Vec<u8>,
    entries: Vec<Entry>,
    index: HashTable<u32>,
}

impl Generation {
    fn raw_of(&self, e: &Entry) -> &[u8] {
        &self.raw[e.at as usize..][..e.len as usize]
    }

    fn find(&self, hash: u64, scope: u32, raw: &[u8]) -> Option<u32> {
        let is = |&i: &u32| {
            let e = &self.entries[i as usize];
            e.hash == hash && e.scope == scope && self.raw_of(e) == raw
        };
        self.index.find(hash, is).copied()
    }

    fn bytes(&self) -> usize {
        // Eight bytes of index per entry, at most.
        self.raw.len() + self.entries.len() * (size_of::<Entry>() + 8)
    }
}

#[derive(Default)]
struct Inner {
    young: Generation,
    old: Generation,
    scopes: BTreeMap<Arc<[u8]>, u32>,
    scopes_bytes: usize,
}

/// A series or stream as the cache knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hit {
    /// Place among the young; `NONE` for an old one.
    place: u32,
    /// Bytes of the encoded labels.
    pub len: usize,
    pub slot: Slot,
    pub shard: ShardId,
    id: u64,
}

impl Hit {
    /// The id, if it was given in this epoch.
    #[inline]
    pub fn id(&self, epoch: u64) -> Option<u32> {
        (self.id != NO_ID && (self.id >> 32) as u32 == epoch as u32).then_some(self.id as u32)
    }

    pub const fn is_old(&self) -> bool {
        self.place == NONE
    }
}

/// The series and streams that a node has seen of late.
pub struct SeriesCache {
    inner: RwLock<Inner>,
    bytes_max: usize,
}

impl Default for SeriesCache {
    fn default() -> Self {
        Self::new(SERIES_CACHE_BYTES_MAX)
    }
}

/// Looks series up in the order in which a request names them.
pub(crate) struct Lookup<'c> {
    inner: parking_lot::RwLockReadGuard<'c, Inner>,
    scope: Option<u32>,
    seed: u64,
    last: u32,
}

/// What is to be remembered of a series or stream.
pub(crate) struct Learned<'m> {
    pub raw: &'m [u8],
    pub slot: Slot,
    pub shard: ShardId,
    pub epoch: u64,
    pub id: Option<u32>,
}

impl SeriesCache {
    /// Forgets everything: what is known is not checked against limits again.
    pub fn forget(&self) {
        *self.inner.write() = Inner::default();
    }

    pub fn new(bytes_max: usize) -> Self {
        Self {
            inner: RwLock::default(),
            // Places in a generation are 32-bit numbers.
            bytes_max: bytes_max.min(u32::MAX as usize),
        }
    }

    /// Entries held, and about how many bytes they take.
    pub fn size(&self) -> (usize, usize) {
        let inner = self.inner.read();
        let entries = inner.young.entries.len() + inner.old.entries.len();
        (entries, inner.young.bytes() + inner.old.bytes() + inner.scopes_bytes)
    }

    pub(crate) fn lookup(&self, scope: &Scope) -> Lookup<'_> {
        let inner = self.inner.read();
        Lookup {
            scope: inner.scopes.get(scope.bytes()).copied(),
            seed: scope.seed(),
            last: NONE,
            inner,
        }
    }

    /// Remembers series and streams, or what is new about them.
    pub(crate) fn learn<'m>(&self, scope: &Scope, learned: impl Iterator<Item = Learned<'m>>) {
        let mut inner = self.inner.write();
        let number = inner.scope(scope);
        let mut last = NONE;
        for l in learned {
            last = inner.learn(number, scope.seed(), &l, self.bytes_max, last);
        }
    }
}

impl Inner {
    fn scope(&mut self, scope: &Scope) -> u32 {
        if let Some(&number) = self.scopes.get(scope.bytes()) {
            return number;
        }
        let bytes = scope.bytes().len() + 64;
        if self.scopes.len() == SCOPES_MAX || self.scopes_bytes + bytes > SCOPES_BYTES_MAX {
            *self = Self::default();
        }
        let number = self.scopes.len() as u32;
        self.scopes_bytes += bytes;
        self.scopes.insert(scope.bytes().into(), number);
        number
    }

    fn learn(&mut self, scope: u32, seed: u64, l: &Learned<'_>, bytes_max: usize, last: u32) -> u32 {
        let hash = xxh3_64_with_seed(l.raw, seed);
        let word = l.id.map_or(NO_ID, |id| u64::from(l.epoch as u32) << 32 | u64::from(id));
        let place = match self.young.find(hash, scope, l.raw) {
            Some(place) => {
                let e = &self.young.entries[place as usize];
                if l.id.is_some() {
                    e.id.store(word, Relaxed);
                }
                place
            }
            None => {
                let bytes = l.raw.len() + size_of::<Entry>() + 8;
                if bytes > bytes_max / 2 {
                    return NONE;
                }
                if self.young.bytes() + bytes > bytes_max / 2 {
                    self.old = std::mem::take(&mut self.young);
                }
                let young = &mut self.young;
                let place = young.entries.len() as u32;
                young.entries.push(Entry {
                    at: young.raw.len() as u32,
                    len: l.raw.len() as u32,
                    hash,
                    scope,
                    slot: l.slot,
                    shard: l.shard.0 as u16,
                    next: AtomicU32::new(NONE),
                    id: AtomicU64::new(word),
                });
                young.raw.extend_from_slice(l.raw);
                let entries = &young.entries;
                young.index.insert_unique(hash, place, |&i| entries[i as usize].hash);
                place
            }
        };
        if let Some(before) = self.young.entries.get(last as usize) {
            before.next.store(place, Relaxed);
        }
        place
    }
}

impl Lookup<'_> {
    fn hit(&mut self, place: u32) -> Hit {
        let e = &self.inner.young.entries[place as usize];
        if let Some(before) = self.inner.young.entries.get(self.last as usize)
            && before.next.load(Relaxed) != place
        {
            before.next.store(place, Relaxed);
        }
        self.last = place;
        Hit {
            place,
            len: e.len as usize,
            slot: e.slot,
            shard: ShardId(u64::from(e.shard)),
            id: e.id.load(Relaxed),
        }
    }

    /// The entry that followed the last one, if `message` begins with its bytes. Whether more labels follow is for
    /// the caller to see.
    #[inline]
    pub fn guess(&mut self, message: &[u8]) -> Option<Hit> {
        let young = &self.inner.young;
        let place = young.entries.get(self.last as usize)?.next.load(Relaxed);
        let e = young.entries.get(place as usize)?;
        if Some(e.scope) != self.scope || !message.starts_with(young.raw_of(e)) {
            return None;
        }
        Some(self.hit(place))
    }

    /// The entry of these encoded labels.
    pub fn find(&mut self, raw: &[u8]) -> Option<Hit> {
        let scope = self.scope?;
        let hash = xxh3_64_with_seed(raw, self.seed);
        if let Some(place) = self.inner.young.find(hash, scope, raw) {
            return Some(self.hit(place));
        }
        let place = self.inner.old.find(hash, scope, raw)?;
        let e = &self.inner.old.entries[place as usize];
        Some(Hit {
            place: NONE,
            len: raw.len(),
            slot: e.slot,
            shard: ShardId(u64::from(e.shard)),
            id: e.id.load(Relaxed),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_model::TenantId;
    use proptest::prelude::*;

    fn scope(role: &str) -> Scope {
        Scope::new(&TenantId::default(), &[], role)
    }

    fn learned(raw: &[u8], id: Option<u32>) -> Learned<'_> {
        Learned {
            raw,
            slot: Slot(raw.len() as u16),
            shard: ShardId(1),
            epoch: 7,
            id,
        }
    }

    proptest! {
        /// What is found is what was learned under those bytes in that scope, and the bound holds throughout.
        #[test]
        fn a_hit_is_what_was_learned_and_the_cache_stays_within_its_bound(
            asked in proptest::collection::vec((0u32..60, any::<bool>()), 0..400),
        ) {
            let cache = SeriesCache::new(4_000);
            let scopes = [scope("series"), scope("stream")];
            for (n, second) in asked {
                let scope = &scopes[usize::from(second)];
                let id = if second { n + 1000 } else { n };
                let raw = n.to_le_bytes();
                let found = cache.lookup(scope).find(&raw);
                if let Some(hit) = found {
                    prop_assert_eq!(hit.id(7), Some(id));
                    prop_assert_eq!(hit.id(8), None, "another epoch");
                }
                cache.learn(scope, std::iter::once(learned(&raw, Some(id))));
                let (_, bytes) = cache.size();
                prop_assert!(bytes <= 4_000 + 200, "{bytes}: two scopes beside the entries");
            }
        }
    }

    #[test]
    fn a_series_in_use_outlives_the_generations() {
        let (cache, scope) = (SeriesCache::new(4_000), scope("series"));
        cache.learn(&scope, std::iter::once(learned(b"kept", Some(1))));
        let mut promoted = 0;
        for n in 0..500u32 {
            let hit = cache.lookup(&scope).find(b"kept").expect("it was asked for each time");
            if hit.is_old() {
                promoted += 1;
                cache.learn(&scope, std::iter::once(learned(b"kept", Some(1))));
            }
            cache.learn(&scope, std::iter::once(learned(&n.to_le_bytes(), None)));
        }
        assert!(promoted > 2, "generations changed {promoted} times");
    }

    #[test]
    fn a_guess_follows_the_order_and_a_wrong_one_is_seen_by_its_bytes() {
        let (cache, scope) = (SeriesCache::new(4_000), scope("series"));
        let order = [b"aa".as_slice(), b"bb", b"cc"];
        cache.learn(&scope, order.into_iter().map(|raw| learned(raw, None)));
        let mut lookup = cache.lookup(&scope);
        assert!(lookup.guess(b"aa.").is_none(), "nothing comes before the first");
        lookup.find(b"aa").unwrap();
        assert!(lookup.guess(b"cc.").is_none(), "b was expected");
        assert_eq!(lookup.guess(b"bb.").unwrap().len, 2);
        lookup.find(b"aa").unwrap();
        assert!(lookup.guess(b"bb").is_some(), "a is followed by b again");
        lookup.find(b"aa").unwrap();
        lookup.find(b"cc").unwrap();
        lookup.find(b"aa").unwrap();
        assert!(lookup.guess(b"cc").is_some(), "and by c since");
    }

    #[test]
    fn too_many_scopes_forget_everything_and_nothing_else() {
        let mut inner = Inner::default();
        let big = "x".repeat(SCOPES_BYTES_MAX / 4);
        for i in 0..9 {
            let scope = Scope::new(&TenantId::default(), &[(i.to_string(), big.clone())], "series");
            inner.scope(&scope);
            assert!(inner.scopes_bytes <= SCOPES_BYTES_MAX);
        }
    }
}

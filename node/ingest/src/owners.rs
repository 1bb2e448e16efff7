//! Labels that were seen before: their checked set and their owner, found by the bytes that encode them.
//!
//! Senders repeat the same series in every request. A hit costs one hash and one comparison; decoding, checking,
//! sorting and hashing the owner's key happen once per series. The cache decides nothing: a miss gives the same.
//!
//! Bounded in bytes by two generations: when the young one holds half of `bytes_max` it becomes the old one, and
//! what was old and not asked for since goes.

use crate::Refusal;
use hindcast_model::{Batch, Labels, Owner, Resource, ResourceId, TenantId};
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

/// Bytes that one cache may hold, by default: some 50,000 series of ten labels.
pub const OWNER_CACHE_BYTES_MAX: usize = 48 * 1024 * 1024;
/// What an entry takes beside its bytes, roughly.
const ENTRY_OVERHEAD_BYTES: usize = 200;

/// Labels as they are stored, and whose they are.
#[derive(Clone)]
pub(crate) struct Named {
    pub labels: Labels,
    pub owner: Owner,
    pub resource: Option<Arc<Resource>>,
}

impl Named {
    /// Finds the owner of a set whose resource attributes are `attrs`.
    pub fn new(tenant: &TenantId, labels: Labels, attrs: &[(String, String)]) -> Self {
        let resource = crate::identity::owning(tenant, &labels, attrs).map(Arc::new);
        let owner = owner_of(resource.as_deref());
        Self {
            labels,
            owner,
            resource,
        }
    }
}

pub(crate) fn owner_of(resource: Option<&Resource>) -> Owner {
    resource.map_or(Owner::None, |r| Owner::Resource { id: r.id, kind: r.kind })
}

/// What else than its own labels names a set: tenant, resource attributes, and whether it is a series or a stream.
pub(crate) struct Scope {
    bytes: Arc<[u8]>,
    seed: u64,
}

impl Scope {
    pub fn new(tenant: &TenantId, attrs: &[(String, String)], role: &str) -> Self {
        let mut bytes = Vec::new();
        let pairs = attrs.iter().flat_map(|(n, v)| [n.as_str(), v.as_str()]);
        for text in [role, tenant.as_str()].into_iter().chain(pairs) {
            bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        let seed = xxhash_rust::xxh3::xxh3_64(&bytes);
        Self {
            bytes: bytes.into(),
            seed,
        }
    }
}

/// Keys are hashes already.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only u64 keys are hashed");
    }
    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

struct Entry {
    scope: Arc<[u8]>,
    raw: Box<[u8]>,
    named: Named,
}

impl Entry {
    fn is(&self, scope: &Scope, raw: &[u8]) -> bool {
        *self.raw == *raw && (Arc::ptr_eq(&self.scope, &scope.bytes) || self.scope == scope.bytes)
    }
    fn bytes(&self) -> usize {
        // The encoded labels, and about as much again for the decoded ones with their string headers.
        self.raw.len() * 2 + self.named.labels.len() * size_of::<(String, String)>() + ENTRY_OVERHEAD_BYTES
    }
}

/// Keys are looked up and never walked over, so the map's order reaches nothing.
#[derive(Default)]
struct Generation {
    entries: HashMap<u64, Entry, BuildHasherDefault<AsIs>>,
    bytes: usize,
}

/// Labels already seen. One cache serves one request at a time; the shell keeps a few.
pub struct OwnerCache {
    young: Generation,
    old: Generation,
    bytes_max: usize,
}

impl Default for OwnerCache {
    fn default() -> Self {
        Self::new(OWNER_CACHE_BYTES_MAX)
    }
}

impl OwnerCache {
    pub fn new(bytes_max: usize) -> Self {
        Self {
            young: Generation::default(),
            old: Generation::default(),
            bytes_max,
        }
    }

    /// Entries held, and about how many bytes they take.
    pub fn size(&self) -> (usize, usize) {
        let entries = self.young.entries.len() + self.old.entries.len();
        (entries, self.young.bytes + self.old.bytes)
    }

    /// The set that `raw` encodes in `scope`, as `make` gave it the first time. Refusals are not remembered.
    pub(crate) fn named<E>(
        &mut self,
        scope: &Scope,
        raw: &[u8],
        make: impl FnOnce() -> Result<Named, E>,
    ) -> Result<Named, E> {
        let key = xxhash_rust::xxh3::xxh3_64_with_seed(raw, scope.seed);
        if let Some(entry) = self.young.entries.get(&key)
            && entry.is(scope, raw)
        {
            return Ok(entry.named.clone());
        }
        let entry = match self.old.entries.remove(&key) {
            Some(entry) => {
                self.old.bytes -= entry.bytes();
                Some(entry).filter(|e| e.is(scope, raw))
            }
            None => None,
        };
        let entry = match entry {
            Some(entry) => entry,
            None => Entry {
                scope: scope.bytes.clone(),
                raw: raw.into(),
                named: make()?,
            },
        };
        let named = entry.named.clone();
        self.keep(key, entry);
        Ok(named)
    }

    fn keep(&mut self, key: u64, entry: Entry) {
        let bytes = entry.bytes();
        if self.young.bytes + bytes > self.bytes_max / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        if bytes > self.bytes_max / 2 {
            return;
        }
        self.young.bytes += bytes;
        if let Some(replaced) = self.young.entries.insert(key, entry) {
            self.young.bytes -= replaced.bytes();
        }
    }
}

/// The distinct resources that a request speaks of.
#[derive(Default)]
pub(crate) struct Seen {
    by_id: BTreeMap<ResourceId, Arc<Resource>>,
    last: Option<ResourceId>,
}

impl Seen {
    pub fn note(&mut self, resource: &Option<Arc<Resource>>) {
        let Some(resource) = resource else { return };
        // Series of one resource come in runs.
        if self.last != Some(resource.id) {
            self.last = Some(resource.id);
            self.by_id.entry(resource.id).or_insert_with(|| resource.clone());
        }
    }

    /// Writes them into the batch, in the order of their ids.
    pub fn into_batch(self, batch: &mut Batch) {
        batch.resources = self.by_id.into_values().map(Arc::unwrap_or_clone).collect();
    }
}

/// Checks and names the labels of a series or stream of a protocol that sends them as label lists.
pub(crate) fn name_labels(
    tenant: &TenantId,
    pairs: Vec<(String, String)>,
    attrs: &[(String, String)],
    of_series: bool,
) -> Result<Named, Refusal> {
    crate::check::labels(&pairs, of_series)?;
    let labels = Labels::new(pairs);
    let named = Named::new(tenant, labels, attrs);
    if attrs.is_empty() {
        return Ok(named);
    }
    let filled = if of_series {
        crate::identity::fill_series(&named.labels, attrs, named.resource.as_deref())
    } else {
        crate::identity::fill_stream(&named.labels, attrs)
    };
    let pairs: Vec<_> = filled.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    crate::check::labels(&pairs, of_series)?;
    Ok(Named {
        labels: filled,
        ..named
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn made(n: u32) -> Named {
        let labels = hindcast_model::resource::metric("m", &[("n", &n.to_string())]);
        Named::new(&TenantId::default(), labels, &[])
    }

    proptest! {
        #[test]
        fn a_cache_gives_what_was_made_and_stays_within_its_bound(
            asked in proptest::collection::vec((0u32..60, any::<bool>()), 0..400),
        ) {
            let mut cache = OwnerCache::new(8_000);
            let scopes = [Scope::new(&TenantId::default(), &[], "series"), Scope::new(&TenantId::default(), &[], "stream")];
            for (n, second) in asked {
                let of = if second { n + 1000 } else { n };
                let got = cache.named::<()>(&scopes[usize::from(second)], &n.to_le_bytes(), || Ok(made(of))).unwrap();
                prop_assert_eq!(got.labels, made(of).labels);
                prop_assert!(cache.size().1 <= 8_000);
            }
        }
    }

    #[test]
    fn a_series_in_use_outlives_the_generations() {
        let mut cache = OwnerCache::new(8_000);
        let scope = Scope::new(&TenantId::default(), &[], "series");
        let mut makes = 0;
        for n in 1..500u32 {
            for key in [0, n] {
                let make = || {
                    makes += u32::from(key == 0);
                    Ok::<_, ()>(made(key))
                };
                cache.named(&scope, &key.to_le_bytes(), make).unwrap();
            }
        }
        assert_eq!(makes, 1);
    }
}

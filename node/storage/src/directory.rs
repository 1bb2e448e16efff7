//! Every series and stream that the shard holds rows of: found by label set when writing, by matchers when reading.
//!
//! Invariants
//! - A series is named by tenant, kind, labels and owner; the same four never occur twice.
//! - Numbers are given once: a reader that still holds one never meets another series under it.
//! - Nothing here is stored: it is rebuilt from segments and the log.

use crate::retention::Policy;
use hindcast_model::matcher::matches_all;
use hindcast_model::{Labels, MatchOp, Matcher, Owner, Slot, TenantId};
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// What is known of a series or stream. Shared by the memtables and segments that hold its rows.
#[derive(Debug)]
pub struct SeriesMeta {
    pub id: u32,
    pub tenant: TenantId,
    pub streams: bool,
    pub policy: Policy,
    pub labels: Labels,
    pub owner: Owner,
    pub slot: Slot,
    pub fingerprint: u64,
}

impl SeriesMeta {
    pub fn new(id: u32, tenant: &TenantId, streams: bool, labels: Labels, owner: Owner) -> Self {
        Self {
            id,
            tenant: tenant.clone(),
            streams,
            policy: Policy::of(&labels, &owner, streams),
            slot: owner.slot(&labels),
            fingerprint: labels.fingerprint(),
            labels,
            owner,
        }
    }

    /// The order of answers and of segments. The owner comes last: streams of one label set may have several.
    pub fn order(&self) -> (Slot, u64, &Labels, Owner) {
        (self.slot, self.fingerprint, &self.labels, self.owner)
    }
}

/// The memtable column that takes a series' next rows, valid while that memtable is the active one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub memtable: u64,
    pub column: u32,
}

struct Entry {
    meta: Arc<SeriesMeta>,
    /// Labels and owner as one run of bytes: compared at once, in one place of memory.
    key: Box<[u8]>,
    place: Place,
}

/// The key is a hash already. Fixed, so that nothing depends on a random state.
#[derive(Default)]
pub struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only u64 keys are used");
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// Which series have a value of a label.
#[derive(Default)]
struct Postings {
    all: Vec<u32>,
    by_label: BTreeMap<String, BTreeMap<String, Vec<u32>>>,
}

impl Postings {
    fn add(&mut self, id: u32, labels: &Labels) {
        self.all.push(id);
        for (name, value) in labels.iter() {
            if !self.by_label.contains_key(name) {
                self.by_label.insert(name.to_owned(), BTreeMap::new());
            }
            if let Some(values) = self.by_label.get_mut(name) {
                match values.get_mut(value) {
                    Some(ids) => ids.push(id),
                    None => {
                        values.insert(value.to_owned(), vec![id]);
                    }
                }
            }
        }
    }

    /// Series that may match: all that do are among them.
    fn candidates(&self, matchers: &[Matcher]) -> Vec<u32> {
        let values_of = |m: &Matcher| self.by_label.get(&m.name);
        let narrowing = || matchers.iter().filter(|m| !m.matches_empty());
        let equal = narrowing().filter(|m| m.op == MatchOp::Equal);
        let postings = equal.map(|m| {
            values_of(m)
                .and_then(|v| v.get(&m.value))
                .map_or(&[][..], Vec::as_slice)
        });
        if let Some(least) = postings.min_by_key(|p| p.len()) {
            return least.to_vec();
        }
        match narrowing().min_by_key(|m| values_of(m).map_or(0, BTreeMap::len)) {
            Some(m) => {
                let values = values_of(m).into_iter().flatten();
                let matching = values.filter(|(v, _)| m.matches_value(v));
                matching.flat_map(|(_, ids)| ids.iter().copied()).collect()
            }
            None => self.all.clone(),
        }
    }
}

#[derive(Default)]
pub struct Directory {
    entries: Vec<Option<Entry>>,
    by_key: HashMap<u64, Vec<u32>, BuildHasherDefault<AsIs>>,
    postings: BTreeMap<(TenantId, bool), Postings>,
    scratch: Vec<u8>,
    live: usize,
}

/// 0xff cannot occur in UTF-8, so parts never run together.
fn put_key(out: &mut Vec<u8>, tenant: &TenantId, streams: bool, labels: &Labels, owner: &Owner) {
    out.clear();
    for (name, value) in labels.iter() {
        out.extend_from_slice(name.as_bytes());
        out.push(0xff);
        out.extend_from_slice(value.as_bytes());
        out.push(0xff);
    }
    out.push(0xff);
    out.extend_from_slice(tenant.as_str().as_bytes());
    out.extend_from_slice(&[0xff, u8::from(streams)]);
    if let Owner::Resource { id, kind } = owner {
        out.push(*kind as u8);
        out.extend_from_slice(&id.0);
    }
}

impl Directory {
    pub fn len(&self) -> usize {
        self.live
    }

    /// The series of this name, made when it is new, and whether it was.
    pub fn find_or_add(
        &mut self,
        tenant: &TenantId,
        streams: bool,
        labels: &Labels,
        owner: &Owner,
    ) -> (&Arc<SeriesMeta>, &mut Place) {
        let mut scratch = std::mem::take(&mut self.scratch);
        put_key(&mut scratch, tenant, streams, labels, owner);
        let hash = xxh3_64(&scratch);
        let same = self.by_key.entry(hash).or_default();
        let known = same.iter().copied().find(|&id| {
            self.entries[id as usize]
                .as_ref()
                .is_some_and(|e| *e.key == *scratch.as_slice())
        });
        let id = known.unwrap_or_else(|| {
            let id = u32::try_from(self.entries.len()).expect("a shard holds fewer than 2^32 series");
            let meta = Arc::new(SeriesMeta::new(id, tenant, streams, labels.clone(), *owner));
            let postings = self.postings.entry((tenant.clone(), streams)).or_default();
            postings.add(id, labels);
            self.entries.push(Some(Entry {
                meta,
                key: scratch.as_slice().into(),
                place: Place { memtable: 0, column: 0 },
            }));
            same.push(id);
            self.live += 1;
            id
        });
        self.scratch = scratch;
        let entry = self.entries[id as usize]
            .as_mut()
            .expect("a posted series is in the directory");
        (&entry.meta, &mut entry.place)
    }

    /// The number of a series that is known.
    pub fn find(&self, tenant: &TenantId, streams: bool, labels: &Labels, owner: &Owner) -> Option<u32> {
        let mut key = vec![];
        put_key(&mut key, tenant, streams, labels, owner);
        let same = self.by_key.get(&xxh3_64(&key))?;
        same.iter()
            .copied()
            .find(|&id| self.entries[id as usize].as_ref().is_some_and(|e| *e.key == *key))
    }

    pub fn get(&self, id: u32) -> Option<&Arc<SeriesMeta>> {
        self.entries.get(id as usize)?.as_ref().map(|e| &e.meta)
    }

    pub fn column(&mut self, id: u32) -> Option<(&Arc<SeriesMeta>, &mut Place)> {
        let entry = self.entries.get_mut(id as usize)?.as_mut()?;
        Some((&entry.meta, &mut entry.place))
    }

    pub fn place(&self, id: u32) -> Option<Place> {
        self.entries.get(id as usize)?.as_ref().map(|e| e.place)
    }

    /// Series for which all matchers of any of the sets hold, in the order of answers.
    pub fn select(&self, tenant: &TenantId, streams: bool, any_of: &[Vec<Matcher>]) -> Vec<Arc<SeriesMeta>> {
        let Some(postings) = self.postings.get(&(tenant.clone(), streams)) else {
            return vec![];
        };
        let meta = |id: u32| self.entries[id as usize].as_ref().map(|e| &e.meta);
        let mut found: Vec<Arc<SeriesMeta>> = vec![];
        for matchers in any_of {
            let candidates = postings.candidates(matchers);
            let metas = candidates.into_iter().filter_map(meta);
            found.extend(metas.filter(|m| matches_all(matchers, &m.labels)).cloned());
        }
        found.sort_by(|a, b| a.order().cmp(&b.order()));
        found.dedup_by_key(|m| m.id);
        found
    }

    /// Forgets series that no memtable and no segment holds any more.
    pub fn sweep(&mut self) {
        let mut swept = false;
        for entry in &mut self.entries {
            if entry.as_ref().is_some_and(|e| Arc::strong_count(&e.meta) == 1) {
                *entry = None;
                self.live -= 1;
                swept = true;
            }
        }
        if !swept {
            return;
        }
        let entries = &self.entries;
        let is_live = |id: &u32| entries[*id as usize].is_some();
        self.by_key.retain(|_, ids| {
            ids.retain(is_live);
            !ids.is_empty()
        });
        for postings in self.postings.values_mut() {
            postings.all.retain(is_live);
            for values in postings.by_label.values_mut() {
                values.retain(|_, ids| {
                    ids.retain(is_live);
                    !ids.is_empty()
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn directory() -> Directory {
        let mut d = Directory::default();
        for (name, job) in [("up", "a"), ("up", "b"), ("down", "a"), ("load", "")] {
            let labels = Labels::from_pairs([("__name__", name), ("job", job)]);
            d.find_or_add(&TenantId::default(), false, &labels, &Owner::None);
        }
        d
    }

    fn check(d: &Directory, matchers: &[(&str, MatchOp, &str)], expect: Expect) {
        let matchers: Vec<Matcher> = matchers
            .iter()
            .map(|(n, op, v)| Matcher::new(n, *op, v).unwrap())
            .collect();
        let mut found: Vec<String> = d
            .select(&TenantId::default(), false, &[matchers])
            .iter()
            .map(|m| m.labels.to_string())
            .collect();
        found.sort();
        expect.assert_eq(&found.join(" "));
    }

    #[test]
    fn matchers_find_series_by_any_operator() {
        use MatchOp::{Equal, NotEqual, NotRegex, Regex};
        let d = directory();
        check(
            &d,
            &[("__name__", Equal, "up")],
            expect![[r#"up{job="a"} up{job="b"}"#]],
        );
        check(
            &d,
            &[("__name__", Equal, "up"), ("job", NotEqual, "a")],
            expect![[r#"up{job="b"}"#]],
        );
        check(&d, &[("job", Equal, "")], expect!["load"]);
        check(&d, &[("job", Regex, "a|c")], expect![[r#"down{job="a"} up{job="a"}"#]]);
        check(&d, &[("job", NotRegex, "a")], expect![[r#"load up{job="b"}"#]]);
        check(&d, &[("gone", Regex, ".+")], expect![""]);
        check(&d, &[], expect![[r#"down{job="a"} load up{job="a"} up{job="b"}"#]]);
    }

    #[test]
    fn owners_and_tenants_keep_equal_label_sets_apart() {
        use hindcast_model::{Kind, ResourceId};
        let mut d = Directory::default();
        let labels = Labels::from_pairs([("a", "b")]);
        let (t, u) = (TenantId::default(), TenantId::new("u").unwrap());
        let owner = |n: &str| Owner::Resource {
            id: ResourceId::new(&TenantId::default(), Kind::Host, &[n]),
            kind: Kind::Host,
        };
        let mut add = |t: &TenantId, streams, o| d.find_or_add(t, streams, &labels, &o).0.id;
        let ids = [
            add(&t, false, Owner::None),
            add(&t, true, Owner::None),
            add(&u, false, Owner::None),
            add(&t, false, owner("x")),
            add(&t, false, owner("y")),
        ];
        assert_eq!(ids, [0, 1, 2, 3, 4]);
        assert_eq!(add(&t, false, owner("x")), 3);
    }

    #[test]
    fn a_swept_series_is_gone_and_its_number_is_not_given_again() {
        let mut d = directory();
        let kept = d.select(&TenantId::default(), false, &[vec![Matcher::equal("__name__", "load")]]);
        d.sweep();
        assert_eq!(d.len(), 1);
        check(&d, &[], expect!["load"]);
        let labels = Labels::from_pairs([("__name__", "up"), ("job", "a")]);
        let id = d.find_or_add(&TenantId::default(), false, &labels, &Owner::None).0.id;
        assert!(id > kept[0].id);
    }
}

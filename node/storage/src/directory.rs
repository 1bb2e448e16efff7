//! Every series and stream that the shard holds rows of: found by label set when writing, by matchers when reading.
//!
//! Invariants
//! - A series is named by tenant, kind, labels and owner; the same four never occur twice.
//! - Ids are given in the order of the log, and once: the same on every replica, and a reader that still holds one
//!   never meets another series under it.

use crate::codec::Bad;
use crate::retention::Policy;
use hindcast_model::matcher::matches_all;
use hindcast_model::{Labels, MatchOp, Matcher, Owner, Slot, TenantId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use xxhash_rust::xxh3::xxh3_64;

/// What is known of a series or stream.
#[derive(Clone, Copy, Debug)]
pub struct Series<'a> {
    pub tenant: &'a TenantId,
    pub streams: bool,
    pub policy: Policy,
    pub labels: &'a Labels,
    pub owner: Owner,
    pub slot: Slot,
    pub fingerprint: u64,
}

impl<'a> Series<'a> {
    /// The order of answers. The owner comes last: streams of one label set may have several.
    pub fn order(&self) -> (Slot, u64, &'a Labels, Owner) {
        (self.slot, self.fingerprint, self.labels, self.owner)
    }
}

#[derive(Serialize, Deserialize)]
struct Entry {
    tenant: TenantId,
    streams: bool,
    labels: Labels,
    owner: Owner,
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
    live: usize,
    epoch: u64,
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

    /// Ids below were given.
    pub fn next_id(&self) -> u32 {
        self.entries.len() as u32
    }

    /// How often ids were forgotten.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub fn find(&self, tenant: &TenantId, streams: bool, labels: &Labels, owner: &Owner) -> Option<u32> {
        let mut key = vec![];
        put_key(&mut key, tenant, streams, labels, owner);
        let same = self.by_key.get(&xxh3_64(&key))?;
        same.iter().copied().find(|&id| {
            self.entries[id as usize].as_ref().is_some_and(|e| {
                e.streams == streams && e.owner == *owner && e.tenant == *tenant && e.labels == *labels
            })
        })
    }

    /// The id of this name, given now when it is new.
    pub fn find_or_add(&mut self, tenant: &TenantId, streams: bool, labels: &Labels, owner: &Owner) -> u32 {
        if let Some(id) = self.find(tenant, streams, labels, owner) {
            return id;
        }
        self.add(Entry {
            tenant: tenant.clone(),
            streams,
            labels: labels.clone(),
            owner: *owner,
        })
    }

    fn add(&mut self, entry: Entry) -> u32 {
        let id = u32::try_from(self.entries.len()).expect("a shard holds fewer than 2^32 series");
        let mut key = vec![];
        put_key(&mut key, &entry.tenant, entry.streams, &entry.labels, &entry.owner);
        self.by_key.entry(xxh3_64(&key)).or_default().push(id);
        let postings = self.postings.entry((entry.tenant.clone(), entry.streams)).or_default();
        postings.add(id, &entry.labels);
        self.entries.push(Some(entry));
        self.live += 1;
        id
    }

    pub fn get(&self, id: u32) -> Option<Series<'_>> {
        let e = self.entries.get(id as usize)?.as_ref()?;
        Some(Series {
            tenant: &e.tenant,
            streams: e.streams,
            policy: Policy::of(&e.labels, &e.owner, e.streams),
            labels: &e.labels,
            owner: e.owner,
            slot: e.owner.slot(&e.labels),
            fingerprint: e.labels.fingerprint(),
        })
    }

    /// Series for which all matchers of any of the sets hold, in the order of answers.
    pub fn select(&self, tenant: &TenantId, streams: bool, any_of: &[Vec<Matcher>]) -> Vec<u32> {
        let Some(postings) = self.postings.get(&(tenant.clone(), streams)) else {
            return vec![];
        };
        let mut found: Vec<(u32, Series<'_>)> = vec![];
        for matchers in any_of {
            let candidates = postings.candidates(matchers);
            let series = candidates.into_iter().filter_map(|id| Some((id, self.get(id)?)));
            found.extend(series.filter(|(_, s)| matches_all(matchers, s.labels)));
        }
        found.sort_by(|a, b| a.1.order().cmp(&b.1.order()));
        found.dedup_by_key(|m| m.0);
        found.into_iter().map(|(id, _)| id).collect()
    }

    /// Forgets series of which no row can be read any more. Their ids are not given again.
    pub fn forget(&mut self, ids: &[u32]) {
        let before = self.live;
        for &id in ids {
            self.live -= usize::from(self.entries[id as usize].take().is_some());
        }
        if self.live == before {
            return;
        }
        self.epoch += 1;
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

    /// What `load` takes: series from this id on.
    pub fn encode_from(&self, first: u32) -> Vec<u8> {
        hindcast_model::codec::to_bytes(&(self.epoch, first, &self.entries[first as usize..]))
    }

    /// Appends what `encode_from` gave; it must begin where the directory ends.
    pub fn load(&mut self, bytes: &[u8]) -> Result<(), Bad> {
        let (epoch, first, entries): (u64, u32, Vec<Option<Entry>>) =
            hindcast_model::codec::from_bytes(bytes).map_err(|_| "it does not decode")?;
        if first != self.next_id() {
            return Err("it does not begin where the one before ends");
        }
        for entry in entries {
            match entry {
                Some(entry) => {
                    self.add(entry);
                }
                None => self.entries.push(None),
            }
        }
        self.epoch = epoch;
        Ok(())
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
            .filter_map(|&id| Some(d.get(id)?.labels.to_string()))
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
        let mut add = |t: &TenantId, streams, o| d.find_or_add(t, streams, &labels, &o);
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
    fn a_forgotten_series_is_gone_and_its_id_is_not_given_again() {
        let mut d = directory();
        d.forget(&[0, 2]);
        assert_eq!((d.len(), d.epoch()), (2, 1));
        d.forget(&[0]);
        assert_eq!(d.epoch(), 1);
        let labels = Labels::from_pairs([("__name__", "up"), ("job", "a")]);
        assert_eq!(d.find_or_add(&TenantId::default(), false, &labels, &Owner::None), 4);
        let mut again = Directory::default();
        again.load(&d.encode_from(0)).unwrap();
        assert_eq!((again.len(), again.epoch(), again.next_id()), (3, 1, 5));
        assert!(again.get(0).is_none());
        assert_eq!(again.find(&TenantId::default(), false, &labels, &Owner::None), Some(4));
        check(&again, &[], expect![[r#"load up{job="a"} up{job="b"}"#]]);
    }
}

//! Which batches a shard has stored already: what makes a retry harmless.
//!
//! Part of the shard's replicated state: the same entries give the same table on every replica.
//!
//! Invariants
//! - An id is remembered for `DEDUP_SPAN` of entry time, unless more than `DEDUP_IDS_MAX` came since.
//! - A sequence that may have been forgotten is refused, never guessed: per writer the highest forgotten one is kept.
//! - Writers that write in order keep their last sequence for good.

use crate::codec::{Malformed, Reader, put_bytes, put_signed, put_varint};
use hashbrown::HashTable;
use hindcast_model::limits::{DEDUP_IDS_MAX, DEDUP_SPAN};
use hindcast_model::{BatchId, TenantId, TimestampNs, WriterId};
use std::collections::{BTreeMap, VecDeque};
use xxhash_rust::xxh3::Xxh3;

/// Writers whose highest forgotten sequence is kept; beyond, the one that was quiet longest goes.
pub const WRITERS_MAX: usize = 100_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    New,
    /// Stored before.
    Known,
    /// So old that it cannot be told.
    TooOld,
}

/// A batch that is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    /// Of its entry.
    at: TimestampNs,
    tenant: TenantId,
    id: BatchId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
struct Forgotten {
    seq: u64,
    at: TimestampNs,
}

#[derive(Clone, Debug, Default)]
pub struct Dedup {
    /// Oldest first.
    order: VecDeque<Seen>,
    /// The number of the oldest: they are counted as they come, and numbers start anew at 2^32.
    first: u32,
    /// The numbers of all in `order`, found by tenant and id.
    known: HashTable<u32>,
    forgotten: BTreeMap<WriterId, Forgotten>,
    ordered: BTreeMap<WriterId, u64>,
    limits: Limits,
}

/// What is remembered counts, not how it is found.
impl PartialEq for Dedup {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
            && self.forgotten == other.forgotten
            && self.ordered == other.ordered
            && self.limits == other.limits
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    ids_max: usize,
    writers_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ids_max: DEDUP_IDS_MAX,
            writers_max: WRITERS_MAX,
        }
    }
}

fn hash_of(tenant: &TenantId, id: &BatchId) -> u64 {
    let mut h = Xxh3::new();
    match id {
        BatchId::Sequenced { writer, seq } | BatchId::Ordered { writer, seq } => {
            h.update(&writer.0);
            h.update(&seq.to_le_bytes());
        }
        BatchId::Hashed(hash) => h.update(hash),
    }
    h.update(tenant.as_str().as_bytes());
    h.digest()
}

impl Dedup {
    #[cfg(test)]
    fn with_limits(ids_max: usize, writers_max: usize) -> Self {
        Self {
            limits: Limits { ids_max, writers_max },
            ..Self::default()
        }
    }

    /// Decides about a batch in the entry stamped `at`, and remembers it if it is new.
    #[cfg(test)]
    fn admit(&mut self, tenant: &TenantId, id: Option<BatchId>, at: TimestampNs) -> Verdict {
        let verdict = self.verdict(tenant, id, at);
        if verdict == Verdict::New {
            self.remember(tenant, id, at);
        }
        verdict
    }

    /// Decides about a batch in the entry stamped `at`.
    pub fn verdict(&mut self, tenant: &TenantId, id: Option<BatchId>, at: TimestampNs) -> Verdict {
        let Some(id) = id else { return Verdict::New };
        self.expire(at);
        if let BatchId::Ordered { writer, seq } = id {
            let last = self.ordered.get(&writer).copied().unwrap_or(0);
            return if seq <= last { Verdict::Known } else { Verdict::New };
        }
        if self.is_known(tenant, &id) {
            return Verdict::Known;
        }
        match id {
            BatchId::Sequenced { writer, seq } if self.forgotten.get(&writer).is_some_and(|f| seq <= f.seq) => {
                Verdict::TooOld
            }
            _ => Verdict::New,
        }
    }

    /// A batch that was new is stored, in the entry stamped `at`.
    pub fn remember(&mut self, tenant: &TenantId, id: Option<BatchId>, at: TimestampNs) {
        let Some(id) = id else { return };
        if let BatchId::Ordered { writer, seq } = id {
            self.ordered.insert(writer, seq);
            return;
        }
        self.push(Seen {
            at,
            tenant: tenant.clone(),
            id,
        });
        while self.order.len() > self.limits.ids_max {
            self.forget_oldest();
        }
    }

    fn is_known(&self, tenant: &TenantId, id: &BatchId) -> bool {
        let is = |n: &u32| {
            let seen = &self.order[n.wrapping_sub(self.first) as usize];
            seen.id == *id && seen.tenant == *tenant
        };
        self.known.find(hash_of(tenant, id), is).is_some()
    }

    /// One that is not known.
    fn push(&mut self, seen: Seen) {
        let number = self.first.wrapping_add(self.order.len() as u32);
        let hash = hash_of(&seen.tenant, &seen.id);
        self.order.push_back(seen);
        let (order, first) = (&self.order, self.first);
        let again = |n: &u32| {
            let seen = &order[n.wrapping_sub(first) as usize];
            hash_of(&seen.tenant, &seen.id)
        };
        self.known.insert_unique(hash, number, again);
    }

    fn expire(&mut self, now: TimestampNs) {
        while self.order.front().is_some_and(|s| now.since(s.at) > DEDUP_SPAN) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some(Seen { at, tenant, id }) = self.order.pop_front() else {
            return;
        };
        let number = self.first;
        self.first = number.wrapping_add(1);
        if let Ok(entry) = self.known.find_entry(hash_of(&tenant, &id), |n| *n == number) {
            entry.remove();
        }
        let BatchId::Sequenced { writer, seq } = id else {
            return;
        };
        let f = self.forgotten.entry(writer).or_insert(Forgotten { seq, at });
        *f = Forgotten {
            seq: f.seq.max(seq),
            at,
        };
        if self.forgotten.len() > self.limits.writers_max {
            let quietest = self.forgotten.iter().min_by_key(|(w, f)| (f.at, **w)).map(|(w, _)| *w);
            quietest.map(|w| self.forgotten.remove(&w));
        }
    }
}

/// Gives each new thing the next number.
struct Numbers<T> {
    numbers: BTreeMap<T, u64>,
    in_order: Vec<T>,
}

impl<T: Ord + Clone> Numbers<T> {
    fn of<'a>(things: impl Iterator<Item = &'a T>) -> Self
    where
        T: 'a,
    {
        let (mut numbers, mut in_order) = (BTreeMap::new(), vec![]);
        for thing in things {
            if !numbers.contains_key(thing) {
                numbers.insert(thing.clone(), in_order.len() as u64);
                in_order.push(thing.clone());
            }
        }
        Self { numbers, in_order }
    }
}

fn writer_of(id: &BatchId) -> Option<(&WriterId, u64)> {
    match id {
        BatchId::Sequenced { writer, seq } | BatchId::Ordered { writer, seq } => Some((writer, *seq)),
        BatchId::Hashed(_) => None,
    }
}

/// The table as bytes: `FORMAT.md`, "Auxiliary state of a shard". Most of it are ids that nothing makes smaller, so that
/// each is there once.
impl Dedup {
    pub fn encode(&self, out: &mut Vec<u8>) {
        let tenants = Numbers::of(self.order.iter().map(|s| &s.tenant));
        let writers = Numbers::of(self.order.iter().filter_map(|s| Some(writer_of(&s.id)?.0)));
        put_varint(out, tenants.in_order.len() as u64);
        for tenant in &tenants.in_order {
            put_bytes(out, tenant.as_str().as_bytes());
        }
        put_varint(out, writers.in_order.len() as u64);
        writers.in_order.iter().for_each(|w| out.extend_from_slice(&w.0));
        put_varint(out, self.order.len() as u64);
        let mut before = 0i64;
        for seen in &self.order {
            put_signed(out, seen.at.0.wrapping_sub(before));
            before = seen.at.0;
        }
        for seen in &self.order {
            put_varint(out, tenants.numbers[&seen.tenant]);
        }
        for seen in &self.order {
            put_varint(out, writer_of(&seen.id).map_or(0, |(w, _)| 1 + writers.numbers[w]));
        }
        let mut before = 0u64;
        for seen in &self.order {
            if let BatchId::Hashed(hash) = &seen.id {
                out.extend_from_slice(hash);
            } else if let Some((_, seq)) = writer_of(&seen.id) {
                put_signed(out, seq.wrapping_sub(before) as i64);
                before = seq;
            }
        }
        put_varint(out, self.forgotten.len() as u64);
        for (writer, f) in &self.forgotten {
            out.extend_from_slice(&writer.0);
            put_varint(out, f.seq);
            put_signed(out, f.at.0);
        }
        put_varint(out, self.ordered.len() as u64);
        for (writer, seq) in &self.ordered {
            out.extend_from_slice(&writer.0);
            put_varint(out, *seq);
        }
        put_varint(out, self.limits.ids_max as u64);
        put_varint(out, self.limits.writers_max as u64);
    }

    pub fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut tenants = vec![];
        for _ in 0..r.count()? {
            let name = std::str::from_utf8(r.bytes()?).map_err(|_| r.malformed())?;
            tenants.push(TenantId::new(name).map_err(|_| r.malformed())?);
        }
        let writers = (0..r.count()?).map(|_| r.array().map(WriterId));
        let writers: Vec<WriterId> = writers.collect::<Result<_, Malformed>>()?;
        let seen = r.count()?;
        let (mut times, mut whose) = (vec![], vec![]);
        let mut at = 0i64;
        for _ in 0..seen {
            at = at.wrapping_add(r.signed()?);
            times.push(TimestampNs(at));
        }
        let place = |r: &mut Reader<'_>| usize::try_from(r.varint()?).map_err(|_| r.malformed());
        for _ in 0..seen {
            let tenant = tenants.get(place(r)?);
            whose.push(tenant.ok_or_else(|| r.malformed())?);
        }
        let mut by = vec![];
        for _ in 0..seen {
            by.push(match place(r)? {
                0 => None,
                n => Some(*writers.get(n - 1).ok_or_else(|| r.malformed())?),
            });
        }
        let mut table = Self::default();
        let mut seq = 0u64;
        for ((at, tenant), writer) in times.into_iter().zip(whose).zip(by) {
            let id = match writer {
                None => BatchId::Hashed(r.array()?),
                Some(writer) => {
                    seq = seq.wrapping_add(r.signed()? as u64);
                    BatchId::Sequenced { writer, seq }
                }
            };
            if table.is_known(tenant, &id) {
                return Err(r.malformed());
            }
            let tenant = tenant.clone();
            table.push(Seen { at, tenant, id });
        }
        for _ in 0..r.count()? {
            let (writer, seq) = (WriterId(r.array()?), r.varint()?);
            let at = TimestampNs(r.signed()?);
            table.forgotten.insert(writer, Forgotten { seq, at });
        }
        for _ in 0..r.count()? {
            let writer = WriterId(r.array()?);
            table.ordered.insert(writer, r.varint()?);
        }
        table.limits = Limits {
            ids_max: place(r)?,
            writers_max: place(r)?,
        };
        Ok(table)
    }
}

/// The table as version 1 had it: MessagePack with field names, each id twice.
#[derive(serde::Deserialize)]
pub struct Version1 {
    order: VecDeque<(TimestampNs, (TenantId, BatchId))>,
    forgotten: BTreeMap<WriterId, Forgotten>,
    ordered: BTreeMap<WriterId, u64>,
}

impl From<Version1> for Dedup {
    fn from(old: Version1) -> Self {
        let mut table = Self {
            forgotten: old.forgotten,
            ordered: old.ordered,
            ..Self::default()
        };
        for (at, (tenant, id)) in old.order {
            if !table.is_known(&tenant, &id) {
                table.push(Seen { at, tenant, id });
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_model::SpanNs;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn sequenced(seq: u64) -> Option<BatchId> {
        Some(BatchId::Sequenced {
            writer: WriterId([1; 16]),
            seq,
        })
    }

    #[test]
    fn a_retry_within_the_window_is_known_and_after_it_refused() {
        let (mut d, t) = (Dedup::default(), TenantId::default());
        let at = |s| TimestampNs::from_secs(s);
        assert_eq!(d.admit(&t, sequenced(2), at(0)), Verdict::New);
        assert_eq!(
            d.admit(&t, sequenced(1), at(1)),
            Verdict::New,
            "any order within the window"
        );
        assert_eq!(d.admit(&t, sequenced(2), at(600)), Verdict::Known);
        assert_eq!(d.admit(&t, sequenced(2), at(602)), Verdict::TooOld);
        assert_eq!(d.admit(&t, sequenced(3), at(602)), Verdict::New);
        assert_eq!(d.admit(&t, None, at(602)), Verdict::New);
    }

    #[test]
    fn a_writer_in_order_is_remembered_for_good() {
        let (mut d, t) = (Dedup::default(), TenantId::default());
        let id = |seq| {
            Some(BatchId::Ordered {
                writer: WriterId([2; 16]),
                seq,
            })
        };
        assert_eq!(d.admit(&t, id(5), TimestampNs(0)), Verdict::New);
        assert_eq!(d.admit(&t, id(5), TimestampNs::from_secs(1_000_000)), Verdict::Known);
        assert_eq!(d.admit(&t, id(4), TimestampNs::from_secs(1_000_000)), Verdict::Known);
        assert_eq!(d.admit(&t, id(9), TimestampNs::from_secs(1_000_000)), Verdict::New);
    }

    #[test]
    fn the_tables_stay_within_their_bounds() {
        let (mut d, t) = (Dedup::with_limits(3, 2), TenantId::default());
        for i in 0..10u8 {
            let id = BatchId::Sequenced {
                writer: WriterId([i; 16]),
                seq: 1,
            };
            assert_eq!(d.admit(&t, Some(id), TimestampNs(i64::from(i))), Verdict::New);
        }
        assert_eq!((d.known.len(), d.order.len(), d.forgotten.len()), (3, 3, 2));
    }

    fn any_id() -> impl Strategy<Value = BatchId> {
        let writer = (0u8..3).prop_map(|w| WriterId([w; 16]));
        prop_oneof![
            (writer.clone(), 0u64..9).prop_map(|(writer, seq)| BatchId::Sequenced { writer, seq }),
            (writer, any::<u64>()).prop_map(|(writer, seq)| BatchId::Ordered { writer, seq }),
            prop_oneof![Just([7; 16]), any::<[u8; 16]>()].prop_map(BatchId::Hashed),
        ]
    }

    proptest! {
        /// What comes back decides the same, and whatever came before is found and forgotten as it was.
        #[test]
        fn a_table_comes_back_and_decides_the_same(
            steps in prop::collection::vec((any_id(), 0u8..2, 0u64..300), 0..60),
            more in prop::collection::vec((any_id(), 0u8..2, 0u64..300), 0..30),
            ids_max in 1usize..20,
        ) {
            let tenant = |t: u8| TenantId::new(["a", "b"][usize::from(t)]).unwrap();
            let (mut d, mut now) = (Dedup::with_limits(ids_max, 2), TimestampNs(5));
            for (id, t, pause) in steps {
                now = now + SpanNs::from_secs(pause);
                d.admit(&tenant(t), Some(id), now);
                prop_assert_eq!(d.known.len(), d.order.len());
            }
            let mut bytes = vec![];
            d.encode(&mut bytes);
            let mut r = Reader::new(&bytes);
            let mut back = Dedup::decode(&mut r).unwrap();
            prop_assert!(r.is_empty());
            prop_assert_eq!(&back, &d);
            for (id, t, pause) in more {
                now = now + SpanNs::from_secs(pause);
                let t = tenant(t);
                prop_assert_eq!(back.admit(&t, Some(id), now), d.admit(&t, Some(id), now));
            }
            prop_assert_eq!(back, d);
        }

        #[test]
        fn any_bytes_are_a_table_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Dedup::decode(&mut Reader::new(&bytes));
        }

        /// Whatever comes when, nothing is stored twice.
        #[test]
        fn no_sequence_is_new_twice(steps in prop::collection::vec((1u64..20, 0u64..400), 1..80), ids_max in 1usize..8) {
            let (mut d, t) = (Dedup::with_limits(ids_max, 10), TenantId::default());
            let (mut now, mut stored) = (TimestampNs(0), BTreeSet::new());
            for (seq, pause) in steps {
                now = now + SpanNs::from_secs(pause);
                if d.admit(&t, sequenced(seq), now) == Verdict::New {
                    prop_assert!(stored.insert(seq), "sequence {} was stored twice", seq);
                }
            }
        }
    }
}

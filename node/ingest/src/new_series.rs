//! Whether a series that no shard knows may begin: the tenant's limit of active series.
//!
//! Decided where a request comes in, by what the local replicas know: how many series were active when they were counted last, which
//! new ones they were given since, and which ones this node let in that they have not seen yet. Samples of known series are never
//! refused, also of one that was not active any more.
//!
//! So a node on its own never lets in more than the limit. In a cluster others let in series that this node's replicas do not know yet;
//! by these the limit can be exceeded, and no further: with `n` nodes by `n - 1` times what was left of it when they were sent.

use crate::intake::{Ids, Naming};
use crate::{Refusal, Rejections};
use hindcast_model::{Batch, Labels, Owner, ShardId, SpanNs, TenantId, TimestampNs};
use std::collections::HashMap;

/// Series let in that no replica here has seen yet, of one tenant.
pub const PENDING_MAX: usize = 262_144;
/// One that is not seen after so long was not stored.
pub const PENDING_SPAN: SpanNs = SpanNs::from_secs(15);
/// What is pending is not gone through more often, unless replicas have new series.
const LOOK_PAUSE: SpanNs = SpanNs::from_ms(100);

/// Says whether a series that nobody knows may begin.
pub trait NewSeries: Sync {
    /// `naming`: a request that is laid out again must be answered as it was before.
    /// All of these begin, or none does.
    fn admit(&self, naming: Naming, series: &[New<'_>]) -> Result<(), Refusal>;
}

/// A series that no shard knows, and the one that would take it.
pub type New<'a> = (ShardId, &'a Labels, &'a Owner);

/// What the replicas of a node counted: active series of a tenant, and from which id on series of a shard are new.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CountedSeries {
    pub active: u64,
    pub marks: Vec<(ShardId, u32)>,
}

/// The label with the most values among a tenant's series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WidestLabel {
    pub name: String,
    pub values: u64,
}

struct Pending {
    shard: ShardId,
    labels: Labels,
    owner: Owner,
    until: SpanNs,
}

/// Active series of one tenant, as one node knows them.
#[derive(Default)]
pub struct Tally {
    counted: CountedSeries,
    /// Let in here, and not seen yet when this was looked at last.
    pending: HashMap<u64, Pending>,
    /// When that was, and how many new series replicas had then.
    looked: Option<(SpanNs, u64)>,
}

/// By which a series is told from others.
pub fn key_of(labels: &Labels, owner: &Owner) -> u64 {
    let of_owner = owner.id().map_or(0, |id| xxhash_rust::xxh3::xxh3_64(&id.0));
    labels.fingerprint() ^ of_owner
}

impl Tally {
    pub const fn counted(&self) -> &CountedSeries {
        &self.counted
    }

    pub fn count(&mut self, counted: CountedSeries, now: SpanNs) {
        self.counted = counted;
        self.looked = None;
        // Also of a tenant that is never full: what is not under way any more takes memory for nothing.
        self.pending.retain(|_, p| now < p.until);
    }

    /// How many there are now, when replicas were given `since` new ones since they counted.
    pub fn now(&self, since: u64) -> u64 {
        self.counted.active + since + self.pending.len() as u64
    }

    /// Lets new series in if there is room for all of them. `since` and `is_known` say what replicas know; `now` is monotonic.
    pub fn admit(
        &mut self,
        series: &[New<'_>],
        max: u64,
        since: u64,
        is_known: impl Fn(ShardId, &Labels, &Owner) -> bool,
        now: SpanNs,
    ) -> bool {
        let keyed = series.iter().map(|new| (key_of(new.1, new.2), new));
        let mut new: Vec<_> = keyed.filter(|(key, _)| !self.pending.contains_key(key)).collect();
        new.sort_unstable_by_key(|(key, _)| *key);
        new.dedup_by_key(|(key, _)| *key);
        if new.is_empty() {
            return true;
        }
        let count = new.len();
        let is_full = |t: &Self| t.now(since) + count as u64 > max || t.pending.len() + count > PENDING_MAX;
        if is_full(self) {
            let is_news = |(at, then): (SpanNs, u64)| since != then || now.0.saturating_sub(at.0) >= LOOK_PAUSE.0;
            if !self.looked.is_none_or(is_news) {
                return false;
            }
            self.looked = Some((now, since));
            // What was seen meanwhile is counted twice so far.
            self.pending
                .retain(|_, p| now < p.until && !is_known(p.shard, &p.labels, &p.owner));
            if is_full(self) {
                return false;
            }
        }
        self.pending
            .extend(new.into_iter().map(|(key, (shard, labels, owner))| {
                let pending = Pending {
                    shard: *shard,
                    labels: (*labels).clone(),
                    owner: **owner,
                    until: SpanNs(now.0.saturating_add(PENDING_SPAN.0)),
                };
                (key, pending)
            }));
        true
    }
}

/// Those of these series that no shard knows, with their places among them.
fn unknown<'a>(ids: &dyn Ids, tenant: &TenantId, sets: &[(&'a Labels, &'a Owner)]) -> Vec<(usize, New<'a>)> {
    let shard_of = |(labels, owner): &(&Labels, &Owner)| ids.shard_of(owner.slot(labels), TimestampNs::MAX);
    let mut by_shard: Vec<(ShardId, usize)> = sets.iter().map(shard_of).zip(0..).collect();
    by_shard.sort_unstable();
    let mut unknown = vec![];
    for of_shard in by_shard.chunk_by(|a, b| a.0 == b.0) {
        let shard = of_shard[0].0;
        let wanted: Vec<_> = of_shard.iter().map(|(_, i)| sets[*i]).collect();
        let (_, known) = ids.ids(shard, tenant, false, &wanted);
        for ((_, i), _) in of_shard.iter().zip(known).filter(|(_, id)| id.is_none()) {
            let (labels, owner) = sets[*i];
            unknown.push((*i, (shard, labels, owner)));
        }
    }
    unknown
}

/// Why each of these series may not begin; `None`: it may, or it is known.
pub(crate) fn refused(
    ids: &dyn Ids,
    gate: &dyn NewSeries,
    naming: Naming,
    tenant: &TenantId,
    sets: &[(&Labels, &Owner)],
) -> Vec<Option<Refusal>> {
    let mut refused = vec![None; sets.len()];
    for (i, new) in unknown(ids, tenant, sets) {
        refused[i] = gate.admit(naming, &[new]).err();
    }
    refused
}

/// As [`refused`], of series that mean nothing without each other.
pub(crate) fn refused_together(
    ids: &dyn Ids,
    gate: &dyn NewSeries,
    naming: Naming,
    tenant: &TenantId,
    sets: &[(&Labels, &Owner)],
) -> Result<(), Refusal> {
    let new: Vec<_> = unknown(ids, tenant, sets).into_iter().map(|(_, new)| new).collect();
    match new.is_empty() {
        true => Ok(()),
        false => gate.admit(naming, &new),
    }
}

/// Takes those series out of a batch that may not begin.
pub fn keep_allowed(ids: &dyn Ids, gate: &dyn NewSeries, batch: &mut Batch, rejected: &mut Rejections) {
    let sets: Vec<_> = batch.series.iter().map(|s| (&s.labels, &s.owner)).collect();
    let refused = refused(ids, gate, Naming::Known, &batch.tenant, &sets);
    let mut refused = refused.into_iter();
    batch.series.retain(|s| match refused.next().flatten() {
        None => true,
        Some(why) => {
            rejected.add(s.samples.len() as u64, &why, || s.labels.to_string());
            false
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn labels(n: u64) -> Labels {
        Labels::from_pairs([("__name__", "m"), ("n", &n.to_string())])
    }

    /// Replicas that learn of series when they are told.
    #[derive(Default)]
    struct Scene {
        tally: Tally,
        seen: BTreeSet<String>,
        at: SpanNs,
    }

    impl Scene {
        fn count(&mut self, active: u64) {
            let marks = vec![];
            self.tally.count(CountedSeries { active, marks }, self.at);
        }

        fn admit(&mut self, n: u64, max: u64) -> bool {
            self.admit_all(&[n], max)
        }

        fn admit_all(&mut self, ns: &[u64], max: u64) -> bool {
            let (all, since) = (
                ns.iter().map(|n| labels(*n)).collect::<Vec<_>>(),
                self.seen.len() as u64,
            );
            let is_known = |_: ShardId, l: &Labels, _: &Owner| self.seen.contains(&l.to_string());
            let all: Vec<_> = all.iter().map(|l| (ShardId(1), l, &Owner::None)).collect();
            self.tally.admit(&all, max, since, is_known, self.at)
        }
    }

    #[test]
    fn a_histogram_that_does_not_fit_takes_no_room_from_others() {
        let mut s = Scene::default();
        s.count(3);
        assert!(s.admit(1, 6));
        assert!(!s.admit_all(&[1, 2, 3, 4], 6), "three more, and there is room for two");
        assert!(
            s.admit_all(&[2, 3, 3, 1], 6),
            "two of them, one twice, and one that is under way"
        );
        assert!(!s.admit(4, 6));
    }

    #[test]
    fn a_tenant_that_is_never_full_does_not_remember_what_it_began_long_ago() {
        let mut s = Scene::default();
        s.count(0);
        (0..100).for_each(|n| assert!(s.admit(n, 1_000)));
        s.at = PENDING_SPAN;
        assert!(s.admit(100, 1_000));
        s.count(100);
        assert_eq!(s.tally.pending.len(), 1);
    }

    #[test]
    fn what_is_under_way_counts_once_and_until_it_is_given_up() {
        let mut s = Scene::default();
        s.count(3);
        assert!(s.admit(1, 5) && s.admit(2, 5));
        assert!(!s.admit(3, 5), "full by what is under way");
        assert!(s.admit(2, 5), "the same again");
        s.seen.insert(labels(1).to_string());
        assert!(!s.admit(3, 5), "one was seen, and is not counted twice");
        assert!(s.admit(3, 6), "the limit was raised");
        s.at = PENDING_SPAN;
        assert!(s.admit(4, 6), "2 and 3 were never stored");
        s.count(0);
        s.seen.clear();
        assert!(s.admit(5, 2), "old ones are over");
        assert!(!s.admit(6, 2));
        assert!(!s.admit(7, 0), "none at all");
    }

    #[test]
    fn only_so_many_are_under_way() {
        let mut s = Scene::default();
        for n in 0..PENDING_MAX as u64 {
            assert!(s.admit(n, u64::MAX));
        }
        assert!(!s.admit(u64::MAX, u64::MAX));
        s.seen.insert(labels(0).to_string());
        assert!(s.admit(u64::MAX, u64::MAX));
    }

    proptest! {
        /// Whatever is seen when: those that were let in are never more than there is room for, and none is refused while there is room.
        #[test]
        fn exactly_as_many_as_there_is_room_for(
            active in 0u64..5, max in 0u64..12, steps in prop::collection::vec((0u64..20, any::<bool>()), 0..60),
        ) {
            let mut s = Scene::default();
            s.count(active);
            let mut let_in = BTreeSet::new();
            for (n, is_seen) in steps {
                if s.seen.contains(&labels(n).to_string()) {
                    continue;
                }
                let has_room = let_in.contains(&n) || active + (let_in.len() as u64) < max;
                prop_assert_eq!(s.admit(n, max), has_room);
                if has_room {
                    let_in.insert(n);
                }
                if has_room && is_seen {
                    s.seen.insert(labels(n).to_string());
                }
            }
        }
    }
}

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
use hindcast_model::{Batch, Labels, Owner, ShardId, SpanNs, StreamBlock, TenantId, TimestampNs};
use hindcast_proto::trace::{NATIVE, TRACE_LABEL};
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
    fn admit(&self, naming: Naming, shard: ShardId, labels: &Labels, owner: &Owner) -> Result<(), Refusal>;
}

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

    /// Lets a new series in if there is room for it. `since` and `is_known` say what replicas know; `now` is monotonic.
    pub fn admit(
        &mut self,
        (shard, labels, owner): (ShardId, &Labels, &Owner),
        max: u64,
        since: u64,
        is_known: impl Fn(ShardId, &Labels, &Owner) -> bool,
        now: SpanNs,
    ) -> bool {
        let key = key_of(labels, owner);
        if self.pending.contains_key(&key) {
            return true;
        }
        let is_full = |t: &Self| t.now(since) >= max || t.pending.len() >= PENDING_MAX;
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
        self.pending.insert(
            key,
            Pending {
                shard,
                labels: labels.clone(),
                owner: *owner,
                until: SpanNs(now.0.saturating_add(PENDING_SPAN.0)),
            },
        );
        true
    }
}

/// Why each of these series may not begin; `None`: it may, or it is known. `streams`: they are series of native histograms.
pub(crate) fn refused(
    ids: &dyn Ids,
    gate: &dyn NewSeries,
    (naming, streams): (Naming, bool),
    tenant: &TenantId,
    sets: &[(&Labels, &Owner)],
) -> Vec<Option<Refusal>> {
    let shard_of = |(labels, owner): &(&Labels, &Owner)| ids.shard_of(owner.slot(labels), TimestampNs::MAX);
    let mut by_shard: Vec<(ShardId, usize)> = sets.iter().map(shard_of).zip(0..).collect();
    by_shard.sort_unstable();
    let mut refused = vec![None; sets.len()];
    for of_shard in by_shard.chunk_by(|a, b| a.0 == b.0) {
        let shard = of_shard[0].0;
        // Which are new only a node knows that has the shard.
        if !ids.is_here(shard) {
            continue;
        }
        let wanted: Vec<_> = of_shard.iter().map(|(_, i)| sets[*i]).collect();
        let (_, known) = ids.ids(shard, tenant, streams, &wanted);
        for ((_, i), _) in of_shard.iter().zip(known).filter(|(_, id)| id.is_none()) {
            let (labels, owner) = sets[*i];
            refused[*i] = gate.admit(naming, shard, labels, owner).err();
        }
    }
    refused
}

/// Takes those series out of a batch that may not begin.
pub fn keep_allowed(ids: &dyn Ids, gate: &dyn NewSeries, batch: &mut Batch, rejected: &mut Rejections) {
    let sets: Vec<_> = batch.series.iter().map(|s| (&s.labels, &s.owner)).collect();
    let refused = refused(ids, gate, (Naming::Known, false), &batch.tenant, &sets);
    let mut refused = refused.into_iter();
    batch.series.retain(|s| match refused.next().flatten() {
        None => true,
        Some(why) => {
            rejected.add(s.samples.len() as u64, &why, || s.labels.to_string());
            false
        }
    });
    let is_native = |s: &StreamBlock| s.labels.get(TRACE_LABEL) == Some(NATIVE);
    let sets: Vec<_> = batch
        .streams
        .iter()
        .filter(|s| is_native(s))
        .map(|s| (&s.labels, &s.owner))
        .collect();
    if sets.is_empty() {
        return;
    }
    let refused = self::refused(ids, gate, (Naming::Known, true), &batch.tenant, &sets);
    let mut refused = refused.into_iter();
    batch
        .streams
        .retain(|s| match is_native(s).then(|| refused.next()).flatten().flatten() {
            None => true,
            Some(why) => {
                let shown = || s.labels.without(TRACE_LABEL).to_string();
                rejected.add(s.lines.len() as u64, &why, shown);
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
            let (labels, since) = (labels(n), self.seen.len() as u64);
            let is_known = |_: ShardId, l: &Labels, _: &Owner| self.seen.contains(&l.to_string());
            let of = (ShardId(1), &labels, &Owner::None);
            self.tally.admit(of, max, since, is_known, self.at)
        }
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

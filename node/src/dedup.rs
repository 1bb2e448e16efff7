//! Which batches a shard has stored already: what makes a retry harmless.
//!
//! Part of the shard's replicated state: the same entries give the same table on every replica.
//!
//! Invariants
//! - An id is remembered for `DEDUP_SPAN` of entry time, unless more than `DEDUP_IDS_MAX` came since.
//! - A sequence that may have been forgotten is refused, never guessed: per writer the highest forgotten one is kept.
//! - Writers that write in order keep their last sequence for good.

use hindcast_model::limits::{DEDUP_IDS_MAX, DEDUP_SPAN};
use hindcast_model::{BatchId, TenantId, TimestampNs, WriterId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

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

type Key = (TenantId, BatchId);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Forgotten {
    seq: u64,
    at: TimestampNs,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dedup {
    known: BTreeSet<Key>,
    /// Oldest first.
    order: VecDeque<(TimestampNs, Key)>,
    forgotten: BTreeMap<WriterId, Forgotten>,
    ordered: BTreeMap<WriterId, u64>,
    #[serde(default)]
    limits: Limits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
        if self.known.contains(&(tenant.clone(), id)) {
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
        let key = (tenant.clone(), id);
        self.known.insert(key.clone());
        self.order.push_back((at, key));
        while self.order.len() > self.limits.ids_max {
            self.forget_oldest();
        }
    }

    fn expire(&mut self, now: TimestampNs) {
        while self.order.front().is_some_and(|(at, _)| now.since(*at) > DEDUP_SPAN) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((at, key)) = self.order.pop_front() else {
            return;
        };
        self.known.remove(&key);
        let BatchId::Sequenced { writer, seq } = key.1 else {
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

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_model::SpanNs;
    use proptest::prelude::*;

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

    proptest! {
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

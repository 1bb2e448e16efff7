//! Up to which event time a shard's sources have spoken: what a rule waits for.
//!
//! A source is the owner of series. A shard is *complete to t* once every source has sent event time ≥ t minus its
//! usual spacing; one that was silent for five spacings does not count any more. One that is late by more than twice what it usually is
//! is not waited for, although it counts: an agent that catches up, a host that died, or a node that has too much to do would
//! make every alert of others late.
//! Derived from applied writes, not replicated: after a restart it fills again.

use hindcast_model::{Owner, SpanNs, TenantId, TimestampNs};
use std::collections::BTreeMap;

/// Sources followed per shard; beyond, the one heard longest ago goes.
pub const SOURCES_MAX: usize = 100_000;
/// A source is silent after so many of its usual spacings.
const SILENT_SPACINGS: u64 = 5;
/// Assumed until a second sample tells better, and never less than `SPACING_MIN`.
const SPACING_FIRST: SpanNs = SpanNs::from_secs(15);
const SPACING_MIN: SpanNs = SpanNs::from_secs(1);
/// What is due for longer than this did not come in time, and a rule that waits for it waits in vain.
pub const AWAITED_MAX: SpanNs = SpanNs::from_secs(10);
/// One that is usually on time may be so late.
const AWAITED_MIN: SpanNs = SpanNs::from_secs(1);
/// A sample that is later than usual changes one in so many parts of a source's usual lateness: what is slow for a while does not
/// count as usual.
const LATER_PARTS: u64 = 32;
/// One that is sooner, one in so many: a source that begins with what it kept is soon known as one that is on time.
const SOONER_PARTS: u64 = 4;

#[derive(Clone, Copy, Debug)]
struct Source {
    newest: TimestampNs,
    spacing: SpanNs,
    settled: bool,
    /// How long after its event time what is newest usually comes.
    lateness: SpanNs,
}

#[derive(Clone, Debug, Default)]
pub struct Sources(BTreeMap<(TenantId, Owner), Source>);

impl Sources {
    /// A source has sent event time `at`, and that came at `now`.
    pub fn heard(&mut self, tenant: &TenantId, owner: Owner, at: TimestampNs, now: TimestampNs) {
        if matches!(owner, Owner::None) {
            return;
        }
        let first = Source {
            newest: at,
            spacing: SPACING_FIRST,
            settled: false,
            lateness: now.since(at),
        };
        let source = self.0.entry((tenant.clone(), owner)).or_insert(first);
        if at > source.newest {
            let gap = at.since(source.newest);
            // Follows slowly, so that one pause does not count as the rhythm; the first gap counts whole.
            let blended = if source.settled {
                SpanNs((source.spacing.0 / 8).saturating_mul(7) + gap.0 / 8)
            } else {
                gap
            };
            source.spacing = blended.max(SPACING_MIN);
            source.settled = true;
            source.newest = at;
            let (usual, late) = (source.lateness, now.since(at));
            let parts = if late > usual { LATER_PARTS } else { SOONER_PARTS };
            source.lateness = SpanNs((usual.0 / parts * (parts - 1)).saturating_add(late.0 / parts));
        }
        if self.0.len() > SOURCES_MAX {
            let quietest = self.0.iter().min_by_key(|(_, s)| s.newest).map(|(k, _)| k.clone());
            quietest.map(|k| self.0.remove(&k));
        }
    }

    /// The instant to which all living sources of the tenant have spoken; `TimestampNs::MAX` without any.
    pub fn complete_to(&self, tenant: &TenantId, now: TimestampNs) -> TimestampNs {
        self.spoken_to(tenant, |s| s.lives(now))
    }

    /// Likewise, of the sources that may speak in time.
    pub fn awaited_to(&self, tenant: &TenantId, now: TimestampNs) -> TimestampNs {
        self.spoken_to(tenant, |s| s.lives(now) && s.is_awaited(now))
    }

    fn spoken_to(&self, tenant: &TenantId, counts: impl Fn(&Source) -> bool) -> TimestampNs {
        let own = self
            .0
            .range((tenant.clone(), Owner::MIN)..)
            .take_while(|((t, _), _)| t == tenant);
        let counted = own.map(|(_, s)| s).filter(|s| counts(s));
        let spoken = counted.map(|s| s.newest + s.spacing).min();
        spoken.unwrap_or(TimestampNs::MAX)
    }
}

impl Source {
    fn lives(&self, now: TimestampNs) -> bool {
        now.since(self.newest) <= SpanNs(self.spacing.0.saturating_mul(SILENT_SPACINGS))
    }

    fn is_awaited(&self, now: TimestampNs) -> bool {
        if self.lateness > AWAITED_MAX {
            return false;
        }
        // Of one sample nobody knows the rhythm.
        let spacing = if self.settled { self.spacing } else { SpanNs::ZERO };
        let late = self.lateness.doubled(1).clamp(AWAITED_MIN, AWAITED_MAX);
        now.since(self.newest) <= SpanNs(spacing.0.saturating_add(late.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_model::{Kind, ResourceId};

    #[test]
    fn a_rule_waits_for_every_living_source_and_for_no_silent_one() {
        let (mut s, t) = (Sources::default(), TenantId::default());
        let owner = |n| Owner::Resource {
            id: ResourceId([n; 16]),
            kind: Kind::Host,
        };
        let at = TimestampNs::from_secs;
        assert_eq!(s.complete_to(&t, at(0)), TimestampNs::MAX, "nobody to wait for");
        for i in 0..10 {
            s.heard(&t, owner(1), at(i * 10), at(i * 10));
            s.heard(&t, owner(2), at(i * 5), at(i * 5));
        }
        assert_eq!(
            s.complete_to(&t, at(60)),
            at(50),
            "45 s, and 5 s spacing, of the slower one"
        );
        assert_eq!(s.complete_to(&t, at(90)), at(100), "the slower one is silent by now");
        assert_eq!(
            s.complete_to(&TenantId::new("other").unwrap(), at(60)),
            TimestampNs::MAX
        );
    }

    #[test]
    fn a_source_that_is_far_behind_or_died_makes_no_alert_of_others_late() {
        let (mut s, t) = (Sources::default(), TenantId::default());
        let owner = |n| Owner::Resource {
            id: ResourceId([n; 16]),
            kind: Kind::Host,
        };
        let at = TimestampNs::from_secs;
        let spoken = |s: &Sources, now| (s.complete_to(&t, at(now)), s.awaited_to(&t, at(now)));
        for i in 0..=10 {
            s.heard(&t, owner(1), at(i * 15), at(i * 15));
        }
        assert_eq!(spoken(&s, 151), (at(165), at(165)));
        // It died; its next sample was due at 165.
        assert_eq!(spoken(&s, 166), (at(165), at(165)), "it may be late");
        assert_eq!(
            spoken(&s, 167),
            (at(165), TimestampNs::MAX),
            "it is missing, and nobody waits"
        );
        assert_eq!(spoken(&s, 226), (TimestampNs::MAX, TimestampNs::MAX), "it is forgotten");
        // Another one sends what it kept for half a minute, from its first sample on.
        s.heard(&t, owner(1), at(225), at(225));
        s.heard(&t, owner(2), at(196), at(226));
        assert_eq!(spoken(&s, 226), (at(211), at(225) + SpanNs::from_ms(22_500)));
    }

    #[test]
    fn a_source_that_is_always_late_is_waited_for_and_one_that_is_late_for_once_is_not() {
        let (mut s, t) = (Sources::default(), TenantId::default());
        let owner = Owner::Resource {
            id: ResourceId([1; 16]),
            kind: Kind::Host,
        };
        let at = TimestampNs::from_secs;
        // Its samples lie four seconds in a queue of its own.
        for i in 0..50 {
            s.heard(&t, owner, at(i * 15), at(i * 15 + 4));
        }
        let due = at(50 * 15);
        assert_eq!(s.awaited_to(&t, due + SpanNs::from_secs(8)), due);
        assert_eq!(s.awaited_to(&t, due + SpanNs::from_secs(9)), TimestampNs::MAX);
        // From now on twelve: it takes a while until that is usual, and then nobody waits so long.
        for i in 50..52 {
            s.heard(&t, owner, at(i * 15), at(i * 15 + 12));
        }
        let due = at(52 * 15);
        assert_eq!(s.awaited_to(&t, due + SpanNs::from_secs(8)), due);
        for i in 52..200 {
            s.heard(&t, owner, at(i * 15), at(i * 15 + 12));
        }
        assert_eq!(s.awaited_to(&t, at(200 * 15)), TimestampNs::MAX);
    }

    #[test]
    fn a_source_that_begins_with_what_it_kept_is_soon_waited_for_no_longer_than_others() {
        let (mut s, t) = (Sources::default(), TenantId::default());
        let owner = Owner::Resource {
            id: ResourceId([1; 16]),
            kind: Kind::Host,
        };
        let at = TimestampNs::from_secs;
        // Eight seconds old when it comes; from then on every two seconds, on time.
        s.heard(&t, owner, at(0), at(8));
        for i in 0..8 {
            s.heard(&t, owner, at(8 + i * 2), at(8 + i * 2));
        }
        let due = s.complete_to(&t, at(22));
        assert_eq!(s.awaited_to(&t, due + SpanNs::from_secs(1)), due);
        assert_eq!(s.awaited_to(&t, due + SpanNs::from_secs(2)), TimestampNs::MAX);
    }

    #[test]
    fn late_samples_do_not_turn_the_clock_back() {
        let (mut s, t) = (Sources::default(), TenantId::default());
        let owner = Owner::Resource {
            id: ResourceId([1; 16]),
            kind: Kind::Host,
        };
        for at in [10, 20, 5, 30] {
            s.heard(&t, owner, TimestampNs::from_secs(at), TimestampNs::from_secs(at));
        }
        assert_eq!(
            s.complete_to(&t, TimestampNs::from_secs(30)),
            TimestampNs::from_secs(40)
        );
    }
}

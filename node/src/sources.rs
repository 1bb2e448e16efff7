//! Up to which event time a shard's sources have spoken: what a rule waits for.
//!
//! A source is the owner of series. A shard is *complete to t* once every source has sent event time ≥ t minus its
//! usual spacing; one that was silent for five spacings does not count any more.
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

#[derive(Clone, Copy, Debug)]
struct Source {
    newest: TimestampNs,
    spacing: SpanNs,
    settled: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Sources(BTreeMap<(TenantId, Owner), Source>);

impl Sources {
    /// A source has sent event time `at`.
    pub fn heard(&mut self, tenant: &TenantId, owner: Owner, at: TimestampNs) {
        if matches!(owner, Owner::None) {
            return;
        }
        let first = Source {
            newest: at,
            spacing: SPACING_FIRST,
            settled: false,
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
        }
        if self.0.len() > SOURCES_MAX {
            let quietest = self.0.iter().min_by_key(|(_, s)| s.newest).map(|(k, _)| k.clone());
            quietest.map(|k| self.0.remove(&k));
        }
    }

    /// The instant to which all living sources of the tenant have spoken; `TimestampNs::MAX` without any.
    pub fn complete_to(&self, tenant: &TenantId, now: TimestampNs) -> TimestampNs {
        let own = self
            .0
            .range((tenant.clone(), Owner::MIN)..)
            .take_while(|((t, _), _)| t == tenant);
        let living = own.filter(|(_, s)| now.since(s.newest) <= SpanNs(s.spacing.0.saturating_mul(SILENT_SPACINGS)));
        living
            .map(|(_, s)| s.newest + s.spacing)
            .min()
            .unwrap_or(TimestampNs::MAX)
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
            s.heard(&t, owner(1), at(i * 10));
            s.heard(&t, owner(2), at(i * 5));
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
    fn late_samples_do_not_turn_the_clock_back() {
        let (mut s, t) = (Sources::default(), TenantId::default());
        let owner = Owner::Resource {
            id: ResourceId([1; 16]),
            kind: Kind::Host,
        };
        for at in [10, 20, 5, 30] {
            s.heard(&t, owner, TimestampNs::from_secs(at));
        }
        assert_eq!(
            s.complete_to(&t, TimestampNs::from_secs(30)),
            TimestampNs::from_secs(40)
        );
    }
}

//! The replay spec: all that decides the answer of a replay.
//!
//! Promises: one spec has one canonical encoding (resources and domains are sorted, each once), and its hash is the
//! replay's id. No locale and no clock: frames hold codes, the viewer makes words.

use super::bindings;
use super::encode::encode_spec;
use hindcast_model::{CutId, Domain, IncidentId, Positions, ResourceId, SpanNs, TenantId, TimestampNs};
use serde::Serialize;

/// Which version of the rules in this module made a frame. Rises only when a bit of an answer would change.
pub const EVALUATOR_VERSION: u32 = 1;
/// What a replay steps by unless told otherwise.
pub const STEP_DEFAULT: SpanNs = SpanNs::from_secs(10);
/// How far from the named resources a replay looks along edges unless told otherwise.
pub const DEPTH_DEFAULT: u32 = 1;
/// How long before the first event a replay starts.
pub const LEAD_IN: SpanNs = SpanNs::from_secs(30 * 60);
/// How long after the close of an incident a replay ends.
pub const LEAD_OUT: SpanNs = SpanNs::from_secs(15 * 60);
/// Frames of one replay, the spec aside.
pub const FRAMES_MAX: u64 = 100_000;
/// Resources that a spec may name.
pub const RESOURCES_MAX: usize = 1_000;
pub const DEPTH_MAX: u32 = 8;

/// What a replay may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AsOf {
    /// As known then: only what was committed up to the positions of this cut.
    Cut { id: CutId, positions: Positions },
    /// All that is known by now, late data included.
    Corrected,
}

impl AsOf {
    pub const fn positions(&self) -> Option<&Positions> {
        match self {
            Self::Cut { positions, .. } => Some(positions),
            Self::Corrected => None,
        }
    }
}

impl std::fmt::Display for AsOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cut { id, .. } => write!(f, "{id}"),
            Self::Corrected => f.write_str("corrected"),
        }
    }
}

impl Serialize for AsOf {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReplaySpec {
    pub tenant: TenantId,
    pub incident: Option<IncidentId>,
    /// Ascending, each once. Empty: all resources of the tenant.
    #[serde(serialize_with = "super::frame::ids_as_hex")]
    pub resources: Vec<ResourceId>,
    /// Steps along edges from the named resources.
    pub depth: u32,
    /// The instant of frame 1.
    pub from: TimestampNs,
    /// Included, when a step falls on it.
    pub to: TimestampNs,
    pub step: SpanNs,
    /// Ascending, each once.
    pub domains: Vec<Domain>,
    pub as_of: AsOf,
    pub binding_revision: u32,
    pub evaluator_version: u32,
}

/// Why a spec cannot be played.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSpec {
    #[error("the window ends at {to}, before it starts at {from}")]
    EndsEarly { from: TimestampNs, to: TimestampNs },
    #[error("the step is {step}: use a whole number of milliseconds, at least 1")]
    Step { step: SpanNs },
    #[error("the window starts at {} ns: use a whole millisecond", from.0)]
    From { from: TimestampNs },
    #[error("the window has {frames} frames, more than {FRAMES_MAX}: use a longer step or a shorter window")]
    TooManyFrames { frames: u64 },
    #[error("the spec names {resources} resources, more than {RESOURCES_MAX}")]
    TooManyResources { resources: usize },
    #[error("the depth is {depth}, more than {DEPTH_MAX}")]
    Depth { depth: u32 },
    #[error("resources and domains must be sorted, each once, with at least one domain")]
    NotCanonical,
    #[error(
        "this program knows bindings up to revision {}, the spec names {revision}",
        bindings::REVISION
    )]
    BindingRevision { revision: u32 },
    #[error("this program evaluates version {EVALUATOR_VERSION}, the spec names {version}")]
    EvaluatorVersion { version: u32 },
}

impl ReplaySpec {
    /// A spec with the current bindings and evaluator. Sorts; an empty list of domains means all.
    pub fn new(
        tenant: TenantId,
        incident: Option<IncidentId>,
        mut resources: Vec<ResourceId>,
        window: (TimestampNs, TimestampNs),
        step: SpanNs,
        mut domains: Vec<Domain>,
        as_of: AsOf,
    ) -> Result<Self, BadSpec> {
        resources.sort_unstable();
        resources.dedup();
        domains.sort_unstable();
        domains.dedup();
        if domains.is_empty() {
            domains = Domain::ALL.to_vec();
        }
        let spec = Self {
            tenant,
            incident,
            resources,
            depth: DEPTH_DEFAULT,
            from: window.0.floor_ms(),
            to: window.1.floor_ms(),
            step,
            domains,
            as_of,
            binding_revision: bindings::REVISION,
            evaluator_version: EVALUATOR_VERSION,
        };
        spec.check()?;
        Ok(spec)
    }

    /// Whether this program can play it.
    pub fn check(&self) -> Result<(), BadSpec> {
        let (from, to, step) = (self.from, self.to, self.step);
        if to < from {
            return Err(BadSpec::EndsEarly { from, to });
        }
        if step == SpanNs::ZERO || SpanNs::from_ms(step.as_ms()) != step {
            return Err(BadSpec::Step { step });
        }
        if from.floor_ms() != from {
            return Err(BadSpec::From { from });
        }
        if self.frames() > FRAMES_MAX {
            return Err(BadSpec::TooManyFrames { frames: self.frames() });
        }
        if self.resources.len() > RESOURCES_MAX {
            let resources = self.resources.len();
            return Err(BadSpec::TooManyResources { resources });
        }
        if self.depth > DEPTH_MAX {
            return Err(BadSpec::Depth { depth: self.depth });
        }
        if !(self.resources.is_sorted_by(|a, b| a < b) && self.domains.is_sorted_by(|a, b| a < b))
            || self.domains.is_empty()
        {
            return Err(BadSpec::NotCanonical);
        }
        if bindings::table(self.binding_revision).is_none() {
            let revision = self.binding_revision;
            return Err(BadSpec::BindingRevision { revision });
        }
        if self.evaluator_version != EVALUATOR_VERSION {
            let version = self.evaluator_version;
            return Err(BadSpec::EvaluatorVersion { version });
        }
        Ok(())
    }

    /// How many frames follow the spec.
    pub fn frames(&self) -> u64 {
        self.to.since(self.from).0 / self.step.0.max(1) + 1
    }

    /// The instant of a frame, which counts from 1.
    pub fn instant(&self, number: u64) -> TimestampNs {
        self.from + SpanNs(self.step.0.saturating_mul(number.saturating_sub(1)))
    }

    /// The replay's id: the hash of its spec, which is also the digest of frame 0.
    pub fn id(&self) -> [u8; 32] {
        *blake3::hash(&encode_spec(self)).as_bytes()
    }
}

/// The window of an incident: from 30 min before it opened to 15 min after it closed. What the cut cannot know is not
/// in it: the window of an unsealed incident ends at the cut.
pub fn default_window(
    opened_at: TimestampNs,
    closed_at: Option<TimestampNs>,
    cut_time: TimestampNs,
) -> (TimestampNs, TimestampNs) {
    let from = (opened_at - LEAD_IN).floor_ms();
    let to = closed_at.map_or(cut_time, |closed| (closed + LEAD_OUT).min(cut_time));
    (from, to.floor_ms().max(from))
}

#[cfg(test)]
mod tests {
    use super::super::testing::any_spec;
    use super::*;
    use proptest::prelude::*;

    fn spec(from: i64, to: i64) -> Result<ReplaySpec, BadSpec> {
        let window = (TimestampNs::from_secs(from), TimestampNs::from_secs(to));
        let id = |n| ResourceId([n; 16]);
        let resources = vec![id(2), id(1), id(2)];
        let domains = vec![Domain::Nms, Domain::Sms];
        let tenant = TenantId::default();
        ReplaySpec::new(tenant, None, resources, window, STEP_DEFAULT, domains, AsOf::Corrected)
    }

    #[test]
    fn the_order_in_which_a_scope_is_named_does_not_matter() {
        let s = spec(0, 95).unwrap();
        assert_eq!(s.resources, [ResourceId([1; 16]), ResourceId([2; 16])]);
        assert_eq!(s.domains, [Domain::Sms, Domain::Nms]);
        assert_eq!((s.frames(), s.instant(10)), (10, TimestampNs::from_secs(90)));
    }

    #[test]
    fn a_spec_that_cannot_be_played_says_why() {
        let said = |s: Result<ReplaySpec, BadSpec>| s.unwrap_err().to_string();
        assert_eq!(said(spec(5, 4)), "the window ends at 4.000, before it starts at 5.000");
        assert!(said(spec(0, 1_000_000)).starts_with("the window has 100001 frames, more than 100000"));
        let changed = |change: fn(&mut ReplaySpec)| {
            let mut s = spec(0, 10).unwrap();
            change(&mut s);
            s.check().unwrap_err()
        };
        let step = SpanNs(1);
        assert_eq!(changed(|s| s.step = SpanNs(1)), BadSpec::Step { step });
        assert_eq!(changed(|s| s.domains.reverse()), BadSpec::NotCanonical);
        assert_eq!(
            changed(|s| s.evaluator_version = 9),
            BadSpec::EvaluatorVersion { version: 9 }
        );
        assert_eq!(
            changed(|s| s.binding_revision = 0),
            BadSpec::BindingRevision { revision: 0 }
        );
        assert_eq!(changed(|s| s.depth = 9), BadSpec::Depth { depth: 9 });
        let many = |s: &mut ReplaySpec| {
            s.resources = (0..=RESOURCES_MAX as u128)
                .map(|n| ResourceId(n.to_be_bytes()))
                .collect();
        };
        assert_eq!(changed(many), BadSpec::TooManyResources { resources: 1_001 });
    }

    #[test]
    fn an_incident_is_watched_from_half_an_hour_before_to_a_quarter_after() {
        let t = TimestampNs::from_secs;
        assert_eq!(default_window(t(3600), Some(t(7200)), t(8100)), (t(1800), t(8100)));
        assert_eq!(default_window(t(3600), Some(t(7200)), t(9999)), (t(1800), t(8100)));
        // Not sealed: the window ends at the cut.
        assert_eq!(default_window(t(3600), None, t(3700)), (t(1800), t(3700)));
        assert_eq!(default_window(t(3600), Some(t(7200)), t(7300)), (t(1800), t(7300)));
        // A cut from before the incident gives the shortest window there is.
        assert_eq!(default_window(t(3600), None, t(0)), (t(1800), t(1800)));
    }

    proptest! {
        #[test]
        fn two_specs_share_an_id_only_when_they_are_one(a in any_spec(), b in any_spec()) {
            prop_assert_eq!(a.id() == b.id(), a == b);
        }
    }
}

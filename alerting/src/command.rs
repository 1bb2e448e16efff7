//! What can be asked of the gateway: the commands of part `gateway`, and its answers.
//!
//! Both are encoded by `hindcast_model::codec`. A refused command changes nothing.

use crate::event::DeskNotice;
use crate::outbox::{EffectKey, EffectState, Outcome, Sending};
use crate::route::Routes;
use crate::rule::RuleGroup;
use hindcast_model::codec::{self, DecodeError};
use hindcast_model::{CutId, IncidentId, Labels, NodeId, Positions, SpanNs, TenantId, TimestampNs};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The part's name: its tree, and where its commands are addressed to.
pub const GATEWAY_PART: &str = "gateway";

/// Series that one rule may return; a rule with more is failed, not cut.
pub const SERIES_PER_RULE_MAX: usize = 5_000;

/// Names a rule group for good: whose, from which file, which of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GroupKey {
    pub tenant: TenantId,
    pub source: String,
    pub group: String,
}

impl fmt::Display for GroupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.tenant, self.source, self.group)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum GatewayCommand {
    /// Replaces all groups of a source. No groups: the source goes, and its alerts resolve.
    SetRules {
        tenant: TenantId,
        source: String,
        /// `rule::revision` of the file; the same revision again changes nothing.
        revision: String,
        groups: Vec<RuleGroup>,
    },
    /// Replaces the routes of a tenant, or of all tenants that have none of their own.
    SetRoutes {
        tenant: Option<TenantId>,
        revision: String,
        routes: Routes,
    },
    /// A node wants to evaluate a group. Answer: `Lease` or `Held`.
    TakeGroupLease {
        group: GroupKey,
        node: NodeId,
        ttl: SpanNs,
    },
    /// What a group's expressions returned at one instant.
    Evaluated(Evaluation),
    /// Cool-downs, closings and reminders that are due, by the time of this command.
    Tick,
    /// A node wants to deliver an effect. Answer: `Send`, `NotNow` or `Ended`.
    TakeEffect {
        key: EffectKey,
        node: NodeId,
        ttl: SpanNs,
    },
    EffectDone {
        key: EffectKey,
        token: u64,
        outcome: Outcome,
    },
    Desk(DeskNotice),
    /// Records a cut with the incident that it was taken for.
    SetCut {
        incident: IncidentId,
        generation: u64,
        which: CutOf,
        cut: CutId,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CutOf {
    Opened,
    Sealed,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    pub group: GroupKey,
    /// Of the group's rules, as the results are in their order.
    pub revision: String,
    /// Of the group's lease.
    pub token: u64,
    /// A multiple of the group's interval.
    pub instant: TimestampNs,
    /// The last accepted instant, where that lies ahead of clocks: one ran ahead and was set back. This one comes in spite of it.
    #[serde(default)]
    pub set_back_from: Option<TimestampNs>,
    /// One per rule, in order.
    pub results: Vec<RuleResult>,
    /// The sources had not all sent up to `instant` when the wait was over.
    pub partial: bool,
    /// What could not be asked; not empty: an absent series proves nothing.
    pub missing: Vec<String>,
    pub positions: Positions,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RuleResult {
    Series(Vec<(Labels, f64)>),
    Failed(String),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum GatewayReply {
    Done,
    /// It was so already.
    Unchanged,
    Lease {
        token: u64,
        until: TimestampNs,
    },
    Held {
        by: NodeId,
        until: TimestampNs,
    },
    Send(Box<Sending>),
    NotNow {
        why: String,
    },
    Ended {
        state: EffectState,
    },
}

impl GatewayCommand {
    pub fn encode(&self) -> Vec<u8> {
        codec::to_bytes(self)
    }
}

impl GatewayReply {
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        codec::from_bytes(bytes)
    }
}

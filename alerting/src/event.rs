//! What passes between the gateway and the desk, inside the meta machine.
//!
//! Rightward (`IncidentEvent`): in the same apply. Leftward (`DeskNotice`): as the next command of the gateway.

use hindcast_model::{IncidentId, ResourceId, Severity, TenantId, TicketId, TimestampNs};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IncidentState {
    Open,
    Recovered,
    Closed,
}

/// Weight of a service; of what has no service, low.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Criticality {
    Low,
    Medium,
    High,
    Critical,
}

/// What a route says about tickets on recovery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnRecovery {
    Note,
    #[default]
    ResolveIfUntouched,
    Resolve,
}

/// One member alert of an incident, as the desk shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberAlert {
    pub id: String,
    pub rule: String,
    pub severity: Option<Severity>,
    pub labels: BTreeMap<String, String>,
    pub summary: String,
}

/// An incident as the desk needs it: everything, each time, so that the desk never has to ask back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IncidentSnapshot {
    pub id: IncidentId,
    pub tenant: TenantId,
    pub generation: u64,
    pub title: String,
    pub state: IncidentState,
    /// Worst level so far in this generation.
    pub severity: Severity,
    pub opened_at: TimestampNs,
    pub alerts: Vec<MemberAlert>,
    pub resources: Vec<ResourceId>,
    /// Names of services that are touched, with their weight.
    pub services: BTreeMap<String, Criticality>,
    /// The desk team that the route names, when it routes to the desk at all.
    pub desk_group: Option<String>,
    pub on_recovery: OnRecovery,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum IncidentEventKind {
    Opened,
    /// Members or severity changed; the words say what.
    Changed {
        what: String,
    },
    Recovered,
    /// A member fired again within the reopen window: same generation.
    Reopened,
    Closed,
    /// A later life: what the desk had is final, a new ticket is linked as recurrence.
    Recurred,
}

/// Output of the gateway, input of the desk, encoded by `hindcast_model::codec`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IncidentEvent {
    pub kind: IncidentEventKind,
    pub incident: IncidentSnapshot,
}

/// What the desk tells the gateway: the body of `GatewayCommand::Desk`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum DeskNotice {
    TicketOpened {
        incident: IncidentId,
        generation: u64,
        ticket: TicketId,
    },
    /// A person owns it: paging stops.
    TicketTaken {
        incident: IncidentId,
        generation: u64,
        ticket: TicketId,
        by: String,
    },
}

//! Incidents: which alerts are one disturbance, and the row that keeps it.
//!
//! An alert that fires joins, in this order: the live incident it is a member of; the live incident that owns one
//! of its keys; the closed incident it was a member of (within the reopen window the same generation goes on, later
//! a new one begins); else it opens an incident. Keys, in order: the resource it is about, its service, and, for
//! firings within five minutes of each other, equal cluster or host labels. An alert without any key stands alone,
//! together with its rule's other alerts of those five minutes.
//!
//! Invariants
//! - A key is owned by at most one live incident (open or recovered); who owns a key is a row.
//! - Nothing is added to a closed incident; only a member's relapse takes it back to open.
//! - Within a generation the severity is the worst so far; it never falls.

use crate::alert::AlertRow;
use crate::event::{Criticality, IncidentSnapshot, IncidentState, MemberAlert, OnRecovery};
use hindcast_model::{CutId, IncidentId, ResourceId, Severity, SpanNs, TenantId, TicketId, TimestampNs};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Alerts of one incident; the next one opens another.
pub const MEMBERS_MAX: usize = 200;
/// Entries of an incident's own short timeline; History has all.
pub const TIMELINE_MAX: usize = 50;
/// Generations and cuts of the past that a row lists; History has all.
pub const EARLIER_MAX: usize = 20;
/// Firings this close together join by cluster or host labels.
pub const CORRELATE_WINDOW: SpanNs = SpanNs::from_secs(300);
/// The closing cut is taken so long after the close, so that late data is in it.
pub const SEAL_AFTER_CLOSE: SpanNs = SpanNs::from_secs(900);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Member {
    pub alert: String,
    pub joined_at: TimestampNs,
    pub on: bool,
}

/// A receiver that an incident is routed to, with what its route says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutedReceiver {
    pub group_interval: SpanNs,
    pub repeat_interval: Option<SpanNs>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimelineEntry {
    pub at: TimestampNs,
    pub what: String,
}

/// A life of the incident that is over for good.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EarlierGeneration {
    pub generation: u64,
    pub opened_at: TimestampNs,
    pub closed_at: Option<TimestampNs>,
    pub severity: Severity,
    pub ticket: Option<TicketId>,
    pub opened_cut: Option<CutId>,
    pub sealed_cut: Option<CutId>,
}

/// The row of one incident.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IncidentRow {
    pub id: IncidentId,
    pub tenant: TenantId,
    pub generation: u64,
    pub title: String,
    pub state: IncidentState,
    pub severity: Severity,
    pub opened_at: TimestampNs,
    pub recovered_at: Option<TimestampNs>,
    pub closed_at: Option<TimestampNs>,
    /// The last change of any kind.
    pub changed_at: TimestampNs,
    /// Relapses in this generation.
    pub flaps: u32,
    pub members: Vec<Member>,
    /// The keys it owns while it is live.
    pub keys: BTreeSet<String>,
    pub resources: BTreeSet<ResourceId>,
    pub services: BTreeMap<String, Criticality>,
    pub receivers: BTreeMap<String, RoutedReceiver>,
    pub desk_group: Option<String>,
    pub on_recovery: OnRecovery,
    /// The generation that the desk has heard of last.
    pub desk_told: Option<u64>,
    pub ticket: Option<TicketId>,
    pub taken_by: Option<String>,
    pub opened_cut: Option<CutId>,
    pub sealed_cut: Option<CutId>,
    /// Cuts that sealed this generation before it was reopened.
    pub earlier_cuts: Vec<CutId>,
    pub earlier: Vec<EarlierGeneration>,
    pub timeline: Vec<TimelineEntry>,
}

impl IncidentRow {
    pub fn new(id: IncidentId, tenant: TenantId, title: String, severity: Severity, now: TimestampNs) -> Self {
        Self {
            id,
            tenant,
            generation: 1,
            title,
            state: IncidentState::Open,
            severity,
            opened_at: now,
            recovered_at: None,
            closed_at: None,
            changed_at: now,
            flaps: 0,
            members: vec![],
            keys: BTreeSet::new(),
            resources: BTreeSet::new(),
            services: BTreeMap::new(),
            receivers: BTreeMap::new(),
            desk_group: None,
            on_recovery: OnRecovery::default(),
            desk_told: None,
            ticket: None,
            taken_by: None,
            opened_cut: None,
            sealed_cut: None,
            earlier_cuts: vec![],
            earlier: vec![],
            timeline: vec![],
        }
    }

    /// Open or recovered: more may join.
    pub fn is_live(&self) -> bool {
        self.state != IncidentState::Closed
    }

    pub fn is_reopenable(&self, window: SpanNs, now: TimestampNs) -> bool {
        self.closed_at.is_some_and(|at| now <= at + window)
    }

    pub fn is_member(&self, alert: &str) -> bool {
        self.members.iter().any(|m| m.alert == alert)
    }

    pub fn note(&mut self, at: TimestampNs, what: impl Into<String>) {
        if self.timeline.len() == TIMELINE_MAX {
            // The first entry, how it began, stays.
            self.timeline.remove(1);
        }
        let what = what.into();
        self.timeline.push(TimelineEntry { at, what });
        self.changed_at = at;
    }

    /// The same disturbance goes on.
    pub fn reopen(&mut self) {
        self.state = IncidentState::Open;
        self.recovered_at = None;
        self.closed_at = None;
        self.flaps += 1;
        if let Some(cut) = self.sealed_cut.take() {
            push_bounded(&mut self.earlier_cuts, cut);
        }
    }

    /// A new life under the same number.
    pub fn recur(&mut self, severity: Severity, now: TimestampNs) {
        let over = EarlierGeneration {
            generation: self.generation,
            opened_at: self.opened_at,
            closed_at: self.closed_at,
            severity: self.severity,
            ticket: self.ticket,
            opened_cut: self.opened_cut,
            sealed_cut: self.sealed_cut,
        };
        let mut earlier = std::mem::take(&mut self.earlier);
        push_bounded(&mut earlier, over);
        *self = Self {
            generation: self.generation + 1,
            desk_told: self.desk_told,
            earlier,
            timeline: std::mem::take(&mut self.timeline),
            ..Self::new(self.id, self.tenant.clone(), self.title.clone(), severity, now)
        };
    }

    /// As the desk sees it.
    pub fn snapshot(&self, alerts: &[AlertRow]) -> IncidentSnapshot {
        IncidentSnapshot {
            id: self.id,
            tenant: self.tenant.clone(),
            generation: self.generation,
            title: self.title.clone(),
            state: self.state,
            severity: self.severity,
            opened_at: self.opened_at,
            alerts: alerts
                .iter()
                .map(|a| MemberAlert {
                    id: a.id.clone(),
                    rule: a.rule.clone(),
                    severity: a.clock.severity,
                    labels: a.labels.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect(),
                    summary: a.summary(),
                })
                .collect(),
            resources: self.resources.iter().copied().collect(),
            services: self.services.clone(),
            desk_group: self.desk_group.clone(),
            on_recovery: self.on_recovery,
        }
    }
}

fn push_bounded<T>(list: &mut Vec<T>, item: T) {
    if list.len() == EARLIER_MAX {
        list.remove(0);
    }
    list.push(item);
}

/// Something that two alerts of one disturbance have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorrelationKey {
    pub text: String,
    /// Only counts within `CORRELATE_WINDOW`.
    pub windowed: bool,
}

/// The keys of an alert, strongest first.
pub fn correlation_keys(alert: &AlertRow) -> Vec<CorrelationKey> {
    let mut keys = vec![];
    let mut add = |text: String, windowed| keys.push(CorrelationKey { text, windowed });
    if let Some(resource) = alert.resource {
        add(format!("resource:{resource}"), false);
    }
    if let Some(service) = service(alert) {
        add(format!("service:{service}"), false);
    }
    if let Some(cluster) = alert.labels.get("cluster") {
        add(format!("cluster:{cluster}"), true);
    }
    let host = ["host_name", "host", "instance", "node"]
        .iter()
        .find_map(|n| alert.labels.get(n));
    if let Some(host) = host {
        let bare = match host.rsplit_once(':') {
            Some((bare, port)) if port.bytes().all(|b| b.is_ascii_digit()) => bare,
            _ => host,
        };
        add(format!("host:{bare}"), true);
    }
    if keys.is_empty() {
        keys.push(CorrelationKey {
            text: format!("rule:{}", alert.rule_id),
            windowed: true,
        });
    }
    keys
}

/// The service that an alert is about, by its labels.
pub fn service(alert: &AlertRow) -> Option<String> {
    let names = ["service_name", "service"];
    names.iter().find_map(|n| alert.labels.get(n)).map(str::to_owned)
}

/// How much the service weighs: what the alert's `criticality` label says, else low.
pub fn criticality(alert: &AlertRow) -> Criticality {
    match alert.labels.value("criticality") {
        "critical" => Criticality::Critical,
        "high" => Criticality::High,
        "medium" => Criticality::Medium,
        _ => Criticality::Low,
    }
}

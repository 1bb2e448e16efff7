//! Alerts, incidents and tickets as they stood at an instant, folded from History.
//!
//! Promises: records are taken by (time, index of the command, kind, place within), each once, so the fold depends on
//! what was recorded and on nothing else. A record whose state lacks a field that this module looks for is still shown, with
//! its state as it is.

use super::frame::{AlertFrame, Change, ChangeKind, Fact};
use super::pages::Pages;
use crate::shards::{Shards, ShardsError};
use hindcast_model::{IncidentId, ResourceId, Severity, TimestampNs};
use hindcast_proto::history::{HistoryKind, HistoryRecord};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Bytes of a state that a frame shows; a longer one is replaced by its length.
pub const STATE_BYTES_MAX: usize = 16 * 1024;

/// Which resources and which incident a replay is about.
pub struct Scope {
    /// `None`: everything.
    pub resources: Option<BTreeSet<ResourceId>>,
    pub incident: Option<IncidentId>,
}

/// Reads History forward and keeps what lives, in scope or not: what is out of scope now may come into it.
pub struct PastReader {
    pages: Pages,
    up_to: TimestampNs,
    waiting: VecDeque<Waiting>,
    last: Option<Place>,
    scope: Scope,
    alerts: BTreeMap<String, AlertFrame>,
    incidents: BTreeMap<Number, Fact>,
    /// With the incident that a ticket speaks of.
    tickets: BTreeMap<Number, (String, Fact)>,
    /// Which incidents, and through them which tickets and deliveries, belong to the scope. Kept after their end.
    incidents_in_scope: BTreeSet<String>,
    pub missing: BTreeSet<String>,
    /// Records so far that could not be read.
    pub unreadable: usize,
}

/// `INC-2` before `INC-10`: by number, then by text.
type Number = (u64, String);

/// The order of History: by time and command, and within one command from cause to effect.
type Place = (TimestampNs, u64, HistoryKind, u32, String);

struct Waiting {
    at: TimestampNs,
    record: Option<HistoryRecord>,
}

impl Waiting {
    fn place(&self) -> Option<Place> {
        let r = self.record.as_ref()?;
        Some((self.at, r.index, r.kind, r.seq, r.object.clone()))
    }
}

impl PastReader {
    pub fn new(pages: Pages, scope: Scope) -> Self {
        let incidents_in_scope = scope.incident.iter().map(ToString::to_string).collect();
        Self {
            pages,
            up_to: TimestampNs::MIN,
            waiting: VecDeque::new(),
            last: None,
            scope,
            alerts: BTreeMap::new(),
            incidents: BTreeMap::new(),
            tickets: BTreeMap::new(),
            incidents_in_scope,
            missing: BTreeSet::new(),
            unreadable: 0,
        }
    }

    /// Takes every record up to and with `at`; answers with what happened in scope since the call before.
    pub async fn advance(&mut self, shards: &dyn Shards, at: TimestampNs) -> Result<Vec<Change>, ShardsError> {
        let mut changes = vec![];
        loop {
            while self.waiting.front().is_some_and(|w| w.at <= at) {
                let next = self.waiting.pop_front().expect("a front was seen");
                changes.extend(self.take(next));
            }
            if self.up_to >= at || !self.read_page(shards).await? {
                return Ok(changes);
            }
        }
    }

    async fn read_page(&mut self, shards: &dyn Shards) -> Result<bool, ShardsError> {
        let Some(page) = self.pages.next(shards).await? else {
            self.up_to = TimestampNs::MAX;
            return Ok(false);
        };
        self.up_to = page.up_to;
        self.missing.extend(page.missing);
        let lines = page.streams.iter().flat_map(|s| &s.lines);
        let mut records: Vec<Waiting> = lines
            .map(|line| Waiting {
                at: line.at,
                record: HistoryRecord::from_line(&line.line).ok(),
            })
            .collect();
        records.sort_by_cached_key(|w| (w.at, w.place()));
        self.waiting.extend(records);
        Ok(true)
    }

    fn take(&mut self, next: Waiting) -> Option<Change> {
        let place = next.place();
        let Waiting { at, record } = next;
        let Some(record) = record else {
            self.unreadable += 1;
            return None;
        };
        if self.last == place {
            // History is written until it is acknowledged; a second copy says nothing new.
            return None;
        }
        self.last = place;
        let (kind, in_scope) = match record.kind {
            HistoryKind::Alert => (ChangeKind::Alert, self.alert(at, &record)),
            HistoryKind::Incident => (ChangeKind::Incident, self.incident(at, &record)),
            HistoryKind::Ticket => (ChangeKind::Ticket, self.ticket(at, &record)),
            HistoryKind::Delivery => (ChangeKind::Delivery, self.shows(incident_of(&record.state))),
            HistoryKind::Rule => (ChangeKind::Rule, true),
            HistoryKind::Cut => (ChangeKind::Cut, true),
            HistoryKind::Pin => (ChangeKind::Pin, true),
            // Who did what is for auditors, not for everyone who may see a replay.
            HistoryKind::Audit => return None,
        };
        in_scope.then_some(Change {
            at,
            kind,
            index: record.index,
            seq: record.seq,
            object: record.object,
            what: record.change,
        })
    }

    fn alert(&mut self, at: TimestampNs, record: &HistoryRecord) -> bool {
        let state = &record.state;
        let phase = text(state, &["state", "phase"]).unwrap_or(&record.change);
        let severity = text(state, &["severity"]).and_then(Severity::from_label);
        let before = self.alerts.remove(&record.object);
        let same = before.as_ref().filter(|b| b.phase == phase && b.severity == severity);
        let alert = AlertFrame {
            id: record.object.clone(),
            phase: phase.to_owned(),
            severity,
            since: same.map_or(at, |b| b.since),
            incident: incident_of(state).parse().ok(),
            resources: resources_of(state),
            state: shown(state),
        };
        let in_scope = self.in_scope(&alert) || before.is_some_and(|b| self.in_scope(&b));
        if !matches!(phase, "inactive" | "resolved") {
            self.alerts.insert(record.object.clone(), alert);
        }
        in_scope
    }

    fn incident(&mut self, at: TimestampNs, record: &HistoryRecord) -> bool {
        if touches(&self.scope, &resources_of(&record.state)) {
            self.incidents_in_scope.insert(record.object.clone());
        }
        if is_state(record, &["closed"]) {
            self.incidents.remove(&number(&record.object));
        } else {
            self.incidents.insert(number(&record.object), fact(at, record));
        }
        self.shows(&record.object)
    }

    fn ticket(&mut self, at: TimestampNs, record: &HistoryRecord) -> bool {
        let incident = incident_of(&record.state).to_owned();
        let in_scope = self.shows(&incident);
        if is_state(record, &["closed", "cancelled"]) {
            self.tickets.remove(&number(&record.object));
        } else {
            self.tickets
                .insert(number(&record.object), (incident, fact(at, record)));
        }
        in_scope
    }

    fn in_scope(&self, alert: &AlertFrame) -> bool {
        let of_incident = alert.incident.is_some() && alert.incident == self.scope.incident;
        of_incident || touches(&self.scope, &alert.resources)
    }

    /// Whether what speaks of this incident belongs to the scope.
    fn shows(&self, incident: &str) -> bool {
        self.scope.resources.is_none() || self.incidents_in_scope.contains(incident)
    }

    /// Every alert of the tenant that lives, by id.
    pub fn all_alerts(&self) -> impl Iterator<Item = &AlertFrame> {
        self.alerts.values()
    }
    pub fn alerts(&self) -> impl Iterator<Item = &AlertFrame> {
        self.alerts.values().filter(|a| self.in_scope(a))
    }
    pub fn incidents(&self) -> impl Iterator<Item = &Fact> {
        self.incidents.values().filter(|f| self.shows(&f.object))
    }
    pub fn tickets(&self) -> impl Iterator<Item = &Fact> {
        let shown = self.tickets.values().filter(|(incident, _)| self.shows(incident));
        shown.map(|(_, fact)| fact)
    }
}

fn touches(scope: &Scope, resources: &[ResourceId]) -> bool {
    let wanted = scope.resources.as_ref();
    wanted.is_none_or(|wanted| resources.iter().any(|r| wanted.contains(r)))
}

fn fact(at: TimestampNs, record: &HistoryRecord) -> Fact {
    Fact {
        object: record.object.clone(),
        change: record.change.clone(),
        at,
        state: shown(&record.state),
    }
}

fn number(object: &str) -> Number {
    let digits = object.rsplit('-').next().and_then(|n| n.parse().ok());
    (digits.unwrap_or(u64::MAX), object.to_owned())
}

/// What the state says, or, where it says nothing, the change.
fn is_state(record: &HistoryRecord, words: &[&str]) -> bool {
    let state = text(&record.state, &["state", "status"]).unwrap_or(&record.change);
    words.contains(&state)
}

fn text<'a>(state: &'a Value, names: &[&str]) -> Option<&'a str> {
    let found = names.iter().find_map(|n| state.get(n)?.as_str());
    found.filter(|t| !t.is_empty())
}

/// The incident that a state speaks of, or nothing.
fn incident_of(state: &Value) -> &str {
    text(state, &["incident"]).unwrap_or("")
}

/// Ids as hex digits or as bytes, under `resources` or `resource`; sorted, each once.
fn resources_of(state: &Value) -> Vec<ResourceId> {
    let one = |v: &Value| match v {
        Value::String(hex) => ResourceId::parse(hex),
        bytes => serde_json::from_value::<ResourceId>(bytes.clone()).ok(),
    };
    let many = state.get("resources").and_then(Value::as_array);
    let mut ids: Vec<ResourceId> = many.into_iter().flatten().filter_map(one).collect();
    ids.extend(state.get("resource").and_then(one));
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Canonical JSON: keys sorted, no spaces.
fn shown(state: &Value) -> String {
    let mut out = String::new();
    write_canonical(state, &mut out);
    if out.len() > STATE_BYTES_MAX {
        return format!(r#"{{"bytes":{}}}"#, out.len());
    }
    out
}

fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_canonical(item, out);
            }
            out.push(']');
        }
        Value::Object(map) => {
            // Sorted here: whether a map of serde_json keeps its order depends on how the program was built.
            let sorted: BTreeMap<&String, &Value> = map.iter().collect();
            out.push('{');
            for (i, (name, item)) in sorted.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                out.push_str(&Value::String(name.clone()).to_string());
                out.push(':');
                write_canonical(item, out);
            }
            out.push('}');
        }
        plain => out.push_str(&plain.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_shown_with_its_keys_in_order_and_never_at_any_length() {
        let state = serde_json::json!({"b": [1, 1.5, null], "a": {"z": "ü\"", "y": true}});
        assert_eq!(shown(&state), r#"{"a":{"y":true,"z":"ü\""},"b":[1,1.5,null]}"#);
        let long = serde_json::json!({"text": "x".repeat(STATE_BYTES_MAX)});
        assert_eq!(shown(&long), r#"{"bytes":16395}"#);
    }

    #[test]
    fn resource_ids_are_read_in_both_forms() {
        let id = ResourceId([7; 16]);
        let state = serde_json::json!({"resources": [id, id.to_string(), "no id", 5], "resource": id.to_string()});
        assert_eq!(resources_of(&state), [id]);
    }

    #[test]
    fn numbers_order_as_numbers() {
        assert!(number("INC-2") < number("INC-10") && number("INC-10") < number("odd"));
    }
}

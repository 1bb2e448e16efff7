//! Alerts, incidents and tickets as they stood at an instant, folded from History.
//!
//! Promises: records are taken by (time, index of the command, place within), each once, so the fold depends on what
//! was recorded and on nothing else. A record whose state lacks a field that this module looks for is still shown, with
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

/// Reads History forward and keeps what lives.
pub struct PastReader {
    pages: Pages,
    up_to: TimestampNs,
    waiting: VecDeque<(TimestampNs, HistoryRecord)>,
    last: Option<(TimestampNs, u64, u32)>,
    scope: Scope,
    alerts: BTreeMap<String, AlertFrame>,
    incidents: BTreeMap<IncidentKey, Fact>,
    tickets: BTreeMap<IncidentKey, Fact>,
    /// Which incidents, and through them which tickets and deliveries, belong to the scope. Kept after their end.
    incidents_in_scope: BTreeSet<String>,
    pub missing: BTreeSet<String>,
    pub unreadable: usize,
}

/// `INC-2` before `INC-10`: by number, then by text.
type IncidentKey = (u64, String);

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

    /// Takes every record up to and with `at`; answers with what happened since the call before.
    pub async fn advance(&mut self, shards: &dyn Shards, at: TimestampNs) -> Result<Vec<Change>, ShardsError> {
        let mut changes = vec![];
        loop {
            while self.waiting.front().is_some_and(|(t, _)| *t <= at) {
                let (t, record) = self.waiting.pop_front().expect("a front was seen");
                changes.extend(self.take(t, record));
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
        let mut records = vec![];
        for line in page.streams.iter().flat_map(|s| &s.lines) {
            match HistoryRecord::from_line(&line.line) {
                Ok(record) => records.push((line.at, record)),
                Err(_) => self.unreadable += 1,
            }
        }
        records.sort_by_key(|(at, r)| (*at, r.index, r.seq, r.kind));
        self.waiting.extend(records);
        Ok(true)
    }

    fn take(&mut self, at: TimestampNs, record: HistoryRecord) -> Option<Change> {
        let place = (at, record.index, record.seq);
        if self.last == Some(place) {
            return None;
        }
        self.last = Some(place);
        let (kind, in_scope) = match record.kind {
            HistoryKind::Alert => (ChangeKind::Alert, self.alert(at, &record)),
            HistoryKind::Incident => (ChangeKind::Incident, self.incident(at, &record)),
            HistoryKind::Ticket => (ChangeKind::Ticket, self.ticket(at, &record)),
            HistoryKind::Delivery => (ChangeKind::Delivery, self.of_incident_in_scope(&record.state)),
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
        let incident = text(state, &["incident"]).and_then(|i| i.parse().ok());
        let resources = resources_of(state);
        let known = self.alerts.contains_key(&record.object);
        if !(known || self.in_scope(&resources, incident)) {
            return false;
        }
        if matches!(phase, "inactive" | "resolved") {
            self.alerts.remove(&record.object);
            return true;
        }
        let severity = text(state, &["severity"]).and_then(Severity::from_label);
        let before = self.alerts.get(&record.object);
        let same = before.filter(|b| b.phase == phase && b.severity == severity);
        let alert = AlertFrame {
            id: record.object.clone(),
            phase: phase.to_owned(),
            severity,
            since: same.map_or(at, |b| b.since),
            // An alert is recorded before its incident is known; the link stays once made.
            incident: incident.or(before.and_then(|b| b.incident)),
            resources,
            state: shown(state),
        };
        self.alerts.insert(record.object.clone(), alert);
        true
    }

    fn incident(&mut self, at: TimestampNs, record: &HistoryRecord) -> bool {
        let known = self.incidents_in_scope.contains(&record.object);
        if !(known || self.in_scope(&resources_of(&record.state), record.object.parse().ok())) {
            return false;
        }
        self.incidents_in_scope.insert(record.object.clone());
        let ended = is_state(record, &["closed"]);
        put(&mut self.incidents, at, record, ended);
        true
    }

    fn ticket(&mut self, at: TimestampNs, record: &HistoryRecord) -> bool {
        if !(self.tickets.contains_key(&key(&record.object)) || self.of_incident_in_scope(&record.state)) {
            return false;
        }
        let ended = is_state(record, &["closed", "cancelled"]);
        put(&mut self.tickets, at, record, ended);
        true
    }

    fn in_scope(&self, resources: &[ResourceId], incident: Option<IncidentId>) -> bool {
        let Some(wanted) = &self.scope.resources else { return true };
        resources.iter().any(|r| wanted.contains(r)) || (incident.is_some() && incident == self.scope.incident)
    }

    fn of_incident_in_scope(&self, state: &Value) -> bool {
        let named = || text(state, &["incident"]).is_some_and(|i| self.incidents_in_scope.contains(i));
        self.scope.resources.is_none() || named()
    }

    pub fn alerts(&self) -> impl Iterator<Item = &AlertFrame> {
        self.alerts.values()
    }
    pub fn incidents(&self) -> impl Iterator<Item = &Fact> {
        self.incidents.values()
    }
    pub fn tickets(&self) -> impl Iterator<Item = &Fact> {
        self.tickets.values()
    }
}

fn put(all: &mut BTreeMap<IncidentKey, Fact>, at: TimestampNs, record: &HistoryRecord, ended: bool) {
    if ended {
        all.remove(&key(&record.object));
        return;
    }
    let fact = Fact {
        object: record.object.clone(),
        change: record.change.clone(),
        at,
        state: shown(&record.state),
    };
    all.insert(key(&record.object), fact);
}

fn key(object: &str) -> IncidentKey {
    let number = object.rsplit('-').next().and_then(|n| n.parse().ok());
    (number.unwrap_or(u64::MAX), object.to_owned())
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
        assert!(key("INC-2") < key("INC-10") && key("INC-10") < key("odd"));
    }
}

//! Alerts, incidents and deliveries as JSON: for History and for the HTTP API, so that both say the same.
//!
//! Times are Unix milliseconds; keys are in a fixed order; a number that JSON cannot write (NaN, infinities) is a
//! string.

use crate::alert::AlertRow;
use crate::incident::IncidentRow;
use crate::outbox::EffectRow;
use crate::template::number;
use hindcast_model::{Labels, TimestampNs};
use serde_json::{Map, Value, json};

/// A value, also when JSON has no number for it.
pub fn value(n: f64) -> Value {
    serde_json::Number::from_f64(n).map_or_else(|| Value::String(number(n)), Value::Number)
}

pub fn labels(labels: &Labels) -> Value {
    let pairs = labels.iter().map(|(n, v)| (n.to_owned(), Value::from(v)));
    Value::Object(pairs.collect::<Map<_, _>>())
}

fn ms(at: Option<TimestampNs>) -> Value {
    at.map_or(Value::Null, |t| t.as_ms().into())
}

/// A type's own word for itself, as serde writes it.
pub fn word<T: serde::Serialize>(of: &T) -> Value {
    serde_json::to_value(of).expect("a word is plain data")
}

pub fn alert(a: &AlertRow) -> Value {
    json!({
        "id": a.id,
        "rule": a.rule,
        "group": a.group,
        "source": a.source,
        "state": a.clock.state.as_str(),
        "severity": a.clock.severity.map(|s| s.as_str()),
        "generation": a.generation,
        "since": a.clock.since.as_ms(),
        "fired": ms(a.fired_at),
        "value": value(a.value),
        "labels": labels(&a.labels),
        "annotations": a.annotations,
        "summary": a.summary(),
        "resource": a.resource.map(|r| r.to_string()),
        "resource_name": a.resource_name,
        "incident": a.incident.map(|i| i.to_string()),
    })
}

/// An alert with the decisions that it remembers.
pub fn alert_with_decisions(a: &AlertRow) -> Value {
    let mut v = alert(a);
    let decisions = a.decisions.iter().map(|d| {
        json!({
            "at": d.at.as_ms(),
            "last_at": d.last_at.as_ms(),
            "times": d.times,
            "reason": d.reason,
            "value": value(d.value),
        })
    });
    v["decisions"] = decisions.collect();
    v
}

pub fn incident(i: &IncidentRow) -> Value {
    json!({
        "id": i.id.to_string(),
        "title": i.title,
        "state": word(&i.state),
        "severity": i.severity.as_str(),
        "generation": i.generation,
        "flaps": i.flaps,
        "opened": i.opened_at.as_ms(),
        "recovered": ms(i.recovered_at),
        "closed": ms(i.closed_at),
        "changed": i.changed_at.as_ms(),
        "alerts": i.members.iter().map(|m| m.alert.as_str()).collect::<Vec<_>>(),
        "firing": i.members.iter().filter(|m| m.on).count(),
        "resources": i.resources.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "services": i.services,
        "receivers": i.receivers.keys().collect::<Vec<_>>(),
        "desk_group": i.desk_group,
        "ticket": i.ticket.map(|t| t.to_string()),
        "owner": i.taken_by,
        "opened_cut": i.opened_cut.map(|c| c.to_string()),
        "sealed_cut": i.sealed_cut.map(|c| c.to_string()),
    })
}

/// An incident with its alerts, deliveries, timeline and earlier lives.
pub fn incident_in_full(i: &IncidentRow, members: &[AlertRow], effects: &[EffectRow]) -> Value {
    let mut v = incident(i);
    v["members"] = members.iter().map(alert_with_decisions).collect();
    v["deliveries"] = effects.iter().map(effect).collect();
    let timeline = i.timeline.iter().map(|t| json!({"at": t.at.as_ms(), "what": t.what}));
    v["timeline"] = timeline.collect();
    let earlier = i.earlier.iter().map(|e| {
        json!({
            "generation": e.generation,
            "opened": e.opened_at.as_ms(),
            "closed": ms(e.closed_at),
            "severity": e.severity.as_str(),
            "ticket": e.ticket.map(|t| t.to_string()),
            "opened_cut": e.opened_cut.map(|c| c.to_string()),
            "sealed_cut": e.sealed_cut.map(|c| c.to_string()),
        })
    });
    v["earlier"] = earlier.collect();
    v
}

pub fn effect(e: &EffectRow) -> Value {
    json!({
        "key": e.key.0,
        "incident": e.incident.to_string(),
        "generation": e.generation,
        "kind": e.kind.as_str(),
        "receiver": e.receiver.name,
        "channel": e.target.channel(),
        "state": e.state.as_str(),
        "attempts": e.attempts,
        "attempts_max": e.attempts_max,
        "created": e.created_at.as_ms(),
        "due": e.due.as_ms(),
        "ended": ms(e.ended_at),
        "receipt": e.receipt.as_ref().map(|r| r.id.as_str()),
        "last_error": e.last_error,
    })
}

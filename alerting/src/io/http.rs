//! `/api/hindcast/v1/{alerts,incidents}` for the web UI, `/api/v1/{rules,alerts}` as Prometheus has them.
//!
//! JSON. Own paths: times as Unix ms, errors `{code, message}`. Prometheus's paths: its shapes, times RFC 3339.

use super::grpc::{INCIDENTS_LISTED_MAX, incident_state};
use crate::alert::{AlertRow, AlertState};
use crate::rows::{self, GroupRow};
use crate::rule::{Condition, Rule};
use crate::template::number;
use crate::view;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hindcast_model::codec::DecodeError;
use hindcast_model::{Class, Classify, IncidentId, Severity, TenantId, TimestampNs};
use hindcast_proto::edge::{TENANT_KEY, http_status, tenant_of_header};
use hindcast_raft::{Meta, MetaRead};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The routes, to be merged into the server's.
pub fn router(meta: Arc<dyn Meta>) -> Router {
    Router::new()
        .route("/api/hindcast/v1/alerts", get(alerts))
        .route("/api/hindcast/v1/alerts/{id}", get(alert))
        .route("/api/hindcast/v1/incidents", get(incidents))
        .route("/api/hindcast/v1/incidents/{id}", get(incident))
        .route("/api/v1/rules", get(prometheus_rules))
        .route("/api/v1/alerts", get(prometheus_alerts))
        .with_state(meta)
}

/// An error on its way out.
struct Failed {
    class: Class,
    message: String,
}

impl Failed {
    fn new(class: Class, message: impl Into<String>) -> Self {
        Self {
            class,
            message: message.into(),
        }
    }
}

impl From<hindcast_raft::MetaError> for Failed {
    fn from(e: hindcast_raft::MetaError) -> Self {
        Self::new(e.class(), e.to_string())
    }
}

impl From<DecodeError> for Failed {
    fn from(e: DecodeError) -> Self {
        Self::new(Class::Internal, e.to_string())
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let code = match self.class {
            Class::NotFound => "not_found",
            Class::RetrySameId => "unconfirmed",
            Class::Unavailable | Class::AskAnotherNode => "unavailable",
            Class::Conflict => "conflict",
            Class::Internal => "internal",
            _ => "invalid",
        };
        let status = StatusCode::from_u16(http_status(self.class)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // Prometheus's own fields beside ours: its clients look for them.
        let kind = if self.class == Class::Internal {
            "internal"
        } else {
            "bad_data"
        };
        let body = json!({
            "code": code, "message": self.message,
            "status": "error", "errorType": kind, "error": self.message,
        });
        (status, Json(body)).into_response()
    }
}

fn tenant(headers: &HeaderMap) -> Result<TenantId, Failed> {
    let value = match headers.get(TENANT_KEY) {
        None => None,
        Some(v) => Some(
            v.to_str()
                .map_err(|_| Failed::new(Class::FixRequest, "the tenant is not plain ASCII"))?,
        ),
    };
    tenant_of_header(value).map_err(|e| Failed::new(Class::FixRequest, e.to_string()))
}

type Answer = Result<Json<Value>, Failed>;
type Words = Query<BTreeMap<String, String>>;

async fn alerts(State(meta): State<Arc<dyn Meta>>, headers: HeaderMap, Query(words): Words) -> Answer {
    let tenant = tenant(&headers)?;
    let read = meta.read().await?;
    let wanted = words.get("state").map_or("", String::as_str);
    let mut found = rows::alerts(read.as_ref(), &tenant)?;
    found.retain(|a| wanted.is_empty() || a.clock.state.as_str() == wanted);
    found.sort_by_key(|a| {
        (
            !a.clock.state.is_on(),
            std::cmp::Reverse(a.clock.severity),
            a.id.clone(),
        )
    });
    Ok(Json(
        json!({"alerts": found.iter().map(view::alert).collect::<Vec<_>>()}),
    ))
}

async fn alert(State(meta): State<Arc<dyn Meta>>, headers: HeaderMap, Path(id): Path<String>) -> Answer {
    let tenant = tenant(&headers)?;
    let read = meta.read().await?;
    match rows::alert(read.as_ref(), &tenant, &id)? {
        Some(row) => Ok(Json(view::alert_with_decisions(&row))),
        None => Err(Failed::new(Class::NotFound, format!("there is no alert {id:?}"))),
    }
}

async fn incidents(State(meta): State<Arc<dyn Meta>>, headers: HeaderMap, Query(words): Words) -> Answer {
    let tenant = tenant(&headers)?;
    let wrong = |message: String| Failed::new(Class::FixRequest, message);
    let state = incident_state(words.get("state").map_or("", String::as_str)).map_err(wrong)?;
    let limit = match words.get("limit") {
        None => 100,
        Some(text) => text
            .parse()
            .map_err(|_| Failed::new(Class::FixRequest, format!("limit {text:?} is no number")))?,
    };
    let read = meta.read().await?;
    let found = rows::incidents(read.as_ref(), &tenant, state, limit.min(INCIDENTS_LISTED_MAX))?;
    Ok(Json(
        json!({"incidents": found.iter().map(view::incident).collect::<Vec<_>>()}),
    ))
}

async fn incident(State(meta): State<Arc<dyn Meta>>, headers: HeaderMap, Path(id): Path<String>) -> Answer {
    let tenant = tenant(&headers)?;
    let id: IncidentId = id
        .parse()
        .map_err(|e: hindcast_model::ids::BadId| Failed::new(Class::FixRequest, e.to_string()))?;
    let read = meta.read().await?;
    let Some(row) = rows::incident(read.as_ref(), Some(&tenant), id)? else {
        return Err(Failed::new(Class::NotFound, format!("there is no incident {id}")));
    };
    let members = rows::members(read.as_ref(), &row)?;
    let effects = rows::effects(read.as_ref(), id)?;
    Ok(Json(view::incident_in_full(&row, &members, &effects)))
}

fn rfc3339(at: TimestampNs) -> String {
    jiff::Timestamp::from_nanosecond(at.0.into()).map_or_else(|_| at.as_ms().to_string(), |t| t.to_string())
}

fn prometheus_alert(a: &AlertRow) -> Value {
    let labels = match a.clock.severity {
        Some(severity) if a.labels.get("severity").is_none() => a.labels.with("severity", severity.as_str()),
        _ => a.labels.clone(),
    };
    let state = if a.clock.state == AlertState::Pending {
        "pending"
    } else {
        "firing"
    };
    json!({
        "labels": view::labels(&labels),
        "annotations": a.annotations,
        "state": state,
        "activeAt": rfc3339(a.clock.since),
        "value": number(a.value),
    })
}

fn is_active(a: &AlertRow) -> bool {
    a.clock.state.is_on() || a.clock.state == AlertState::Pending
}

async fn prometheus_alerts(State(meta): State<Arc<dyn Meta>>, headers: HeaderMap) -> Answer {
    let tenant = tenant(&headers)?;
    let read = meta.read().await?;
    let found = rows::alerts(read.as_ref(), &tenant)?;
    let active: Vec<_> = found.iter().filter(|a| is_active(a)).map(prometheus_alert).collect();
    Ok(Json(json!({"status": "success", "data": {"alerts": active}})))
}

async fn prometheus_rules(State(meta): State<Arc<dyn Meta>>, headers: HeaderMap, Query(words): Words) -> Answer {
    let tenant = tenant(&headers)?;
    let read = meta.read().await?;
    // Recording rules are not here, so that asking for them alone finds nothing.
    let groups = match words.get("type").map(String::as_str) {
        None | Some("alert") => rule_groups(read.as_ref(), &tenant)?,
        Some("record") => vec![],
        Some(other) => {
            let message = format!("type {other:?} is neither alert nor record");
            return Err(Failed::new(Class::FixRequest, message));
        }
    };
    Ok(Json(json!({"status": "success", "data": {"groups": groups}})))
}

fn rule_groups(read: &dyn MetaRead, tenant: &TenantId) -> Result<Vec<Value>, DecodeError> {
    let alerts = rows::alerts(read, tenant)?;
    let groups = rows::rule_groups(read, Some(tenant))?;
    let shown = groups.iter().map(|group| {
        let rules = group.group.rules.iter().enumerate();
        let rules: Vec<_> = rules
            .map(|(i, rule)| prometheus_rule(group, i, rule, &alerts))
            .collect();
        json!({
            "name": group.key.group,
            "file": group.key.source,
            "interval": group.group.interval.as_ms() as f64 / 1000.0,
            "limit": 0,
            "type": group.group.language.group_type(),
            "rules": rules,
            "lastEvaluation": group.evaluated_at.map_or_else(String::new, rfc3339),
        })
    });
    Ok(shown.collect())
}

fn prometheus_rule(group: &GroupRow, index: usize, rule: &Rule, alerts: &[AlertRow]) -> Value {
    let rule_id = rows::rule_id(&group.key, rule);
    let mine: Vec<_> = alerts.iter().filter(|a| a.rule_id == rule_id && is_active(a)).collect();
    let worst = match mine.iter().any(|a| a.clock.state.is_on()) {
        true => "firing",
        false if !mine.is_empty() => "pending",
        false => "inactive",
    };
    let error = group.health.get(index).and_then(|h| h.error.clone());
    let health = match (group.evaluated_at, &error) {
        (None, _) => "unknown",
        (_, Some(_)) => "err",
        (_, None) => "ok",
    };
    let (duration_ms, levels) = match &rule.condition {
        Condition::Present { hold } => (hold.as_ms(), Value::Null),
        Condition::Levels { sense, levels } => {
            let shown = levels.iter().map(|l| {
                let severity: Severity = l.severity;
                let level = json!({"bound": l.bound, "for_ms": l.hold.as_ms(), "clear": l.clear});
                (severity.as_str().to_owned(), level)
            });
            let first = levels.iter().map(|l| l.hold.as_ms()).min().unwrap_or(0);
            (
                first,
                json!({"sense": view::word(sense), "levels": shown.collect::<BTreeMap<_, _>>()}),
            )
        }
    };
    json!({
        "type": "alerting",
        "name": rule.name,
        "query": rule.expr,
        "duration": duration_ms as f64 / 1000.0,
        "keepFiringFor": rule.keep_firing_for.as_ms() as f64 / 1000.0,
        "labels": rule.labels,
        "annotations": rule.annotations,
        "alerts": mine.iter().map(|a| prometheus_alert(a)).collect::<Vec<_>>(),
        "state": worst,
        "health": health,
        "lastError": error.unwrap_or_default(),
        "lastEvaluation": group.evaluated_at.map_or_else(String::new, rfc3339),
        "threshold": levels,
    })
}

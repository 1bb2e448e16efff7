//! `/api/hindcast/v1/tickets`: the desk for the web UI and for scripts.
//!
//! JSON, times as Unix ms. `ETag` is the version; `If-Match` bases an edit on it, without it nothing is compared.
//! Every edit needs `Content-Type: application/json`, so that no other site's form can send one.
//! Errors are `{code, message}`; a conflict adds `conflicts` (field, yours, theirs) and the ticket's `version`.

use super::{DeskError, Shell, actor, number};
use crate::desk::Edit;
use crate::ticket::{Action, Fields, Status, Ticket};
use crate::view::{TICKETS_LISTED_MAX, TicketView};
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hindcast_model::{Class, Classify, TenantId};
use hindcast_proto::edge::{ACTOR_KEY, RETRY_SECS_DEFAULT, TENANT_KEY, http_status, tenant_of_header};
use hindcast_raft::Meta;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// Bytes of one request: a text of the longest kind, however it is escaped.
const BODY_BYTES_MAX: usize = 128 * 1024;

/// The routes, to be merged into the server's.
pub fn router(meta: Arc<dyn Meta>) -> Router {
    Router::new()
        .route("/api/hindcast/v1/tickets", get(list))
        .route("/api/hindcast/v1/tickets/{number}", get(show).patch(patch))
        .route("/api/hindcast/v1/tickets/{number}/take", post(take))
        .route("/api/hindcast/v1/tickets/{number}/notes", post(note))
        .route("/api/hindcast/v1/tickets/{number}/transition", post(transition))
        .route("/api/hindcast/v1/tickets/{number}/assign", post(assign))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(Shell::new(meta))
}

/// An error on its way out.
struct Failed {
    class: Class,
    body: Value,
}

impl Failed {
    fn new(class: Class, message: impl Into<String>) -> Self {
        let message: String = message.into();
        let mut body = json!({"code": code(class), "message": message});
        if class == Class::RetryLater {
            body["retry_ms"] = json!(RETRY_SECS_DEFAULT * 1_000);
        }
        Self { class, body }
    }
}

impl From<DeskError> for Failed {
    fn from(error: DeskError) -> Self {
        Self::new(error.class(), error.to_string())
    }
}

impl From<JsonRejection> for Failed {
    fn from(rejection: JsonRejection) -> Self {
        match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                let message = format!("the request takes more than {BODY_BYTES_MAX} bytes; send a shorter text");
                Self::new(Class::TooLarge, message)
            }
            _ => Self::new(Class::FixRequest, rejection.body_text()),
        }
    }
}

impl From<QueryRejection> for Failed {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(Class::FixRequest, rejection.body_text())
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(http_status(self.class)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.body)).into_response();
        if self.class == Class::RetryLater {
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_SECS_DEFAULT));
        }
        response
    }
}

/// The word by which the UI finds its own text.
const fn code(class: Class) -> &'static str {
    match class {
        Class::FixRequest => "invalid",
        Class::TooLarge => "too_large",
        Class::NotFound => "not_found",
        Class::RetryLater => "busy",
        Class::RetrySameId => "unconfirmed",
        Class::Unavailable | Class::AskAnotherNode => "unavailable",
        Class::Conflict => "conflict",
        Class::NotSignedIn => "not_signed_in",
        Class::NotAllowed => "not_allowed",
        Class::Internal => "internal",
    }
}

fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Failed> {
    let text = headers.get(name).map(HeaderValue::to_str).transpose();
    text.map_err(|_| Failed::new(Class::FixRequest, format!("header {name} is not plain ASCII")))
}

fn tenant(headers: &HeaderMap) -> Result<TenantId, Failed> {
    tenant_of_header(header_text(headers, TENANT_KEY)?).map_err(|e| Failed::new(Class::FixRequest, e.to_string()))
}

/// `"7"`, with or without quotes; nothing and `*` base the edit on whatever is there.
fn base_version(headers: &HeaderMap) -> Result<u64, Failed> {
    match header_text(headers, "if-match")? {
        None | Some("*") => Ok(0),
        Some(tag) => tag.trim_matches('"').parse().map_err(|_| {
            let message = format!("If-Match {tag:?} is not a version like \"7\", as the ETag of a ticket gives it");
            Failed::new(Class::FixRequest, message)
        }),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    #[serde(default)]
    status: String,
    limit: Option<usize>,
}

async fn list(
    State(shell): State<Shell>,
    headers: HeaderMap,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Response, Failed> {
    let Query(query) = query?;
    let limit = query.limit.unwrap_or(TICKETS_LISTED_MAX);
    let tickets = shell.list(&tenant(&headers)?, &query.status, limit).await?;
    let tickets: Vec<_> = tickets.iter().map(ticket_json).collect();
    Ok(Json(json!({"tickets": tickets})).into_response())
}

async fn show(State(shell): State<Shell>, headers: HeaderMap, Path(text): Path<String>) -> Result<Response, Failed> {
    let view = shell.get(&tenant(&headers)?, number(&text)?).await?;
    Ok(answer(&view))
}

fn answer(view: &TicketView) -> Response {
    let etag = format!("\"{}\"", view.ticket.version);
    ([(header::ETAG, etag)], Json(view_json(view))).into_response()
}

async fn edit(
    shell: &Shell,
    headers: &HeaderMap,
    text: &str,
    request_id: String,
    action: Action,
) -> Result<Response, Failed> {
    let edit = Edit {
        tenant: tenant(headers)?,
        number: number(text)?,
        base_version: base_version(headers)?,
        request_id,
        actor: actor(header_text(headers, ACTOR_KEY)?)?,
        action,
    };
    let error = match shell.edit(edit.clone()).await {
        Ok(view) => return Ok(answer(&view)),
        Err(error) => error,
    };
    let conflict = error.class() == Class::Conflict;
    let mut failed = Failed::from(error);
    if conflict && let Ok((Some(now), conflicts)) = shell.conflicts(&edit).await {
        failed.body["conflicts"] = json!(conflicts);
        failed.body["version"] = json!(now.version);
    }
    Err(failed)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TakeBody {
    #[serde(default)]
    request_id: String,
}

async fn take(
    State(shell): State<Shell>,
    headers: HeaderMap,
    Path(text): Path<String>,
    body: Result<Json<TakeBody>, JsonRejection>,
) -> Result<Response, Failed> {
    let Json(body) = body?;
    edit(&shell, &headers, &text, body.request_id, Action::Take).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoteBody {
    text: String,
    #[serde(default)]
    request_id: String,
}

async fn note(
    State(shell): State<Shell>,
    headers: HeaderMap,
    Path(text): Path<String>,
    body: Result<Json<NoteBody>, JsonRejection>,
) -> Result<Response, Failed> {
    let Json(body) = body?;
    let action = Action::Note { text: body.text };
    edit(&shell, &headers, &text, body.request_id, action).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TransitionBody {
    to: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    code: String,
    #[serde(default)]
    text: String,
    #[serde(default)]
    request_id: String,
}

async fn transition(
    State(shell): State<Shell>,
    headers: HeaderMap,
    Path(text): Path<String>,
    body: Result<Json<TransitionBody>, JsonRejection>,
) -> Result<Response, Failed> {
    let Json(body) = body?;
    let request_id = body.request_id.clone();
    let to = Status::parse(&body.to);
    let now = match to {
        // Going back to work is another thing from Resolved than from elsewhere.
        Some(Status::InProgress) => Some(shell.get(&tenant(&headers)?, number(&text)?).await?.ticket.status),
        _ => None,
    };
    let action = transition_action(to, now, body).map_err(|m| Failed::new(Class::FixRequest, m))?;
    edit(&shell, &headers, &text, request_id, action).await
}

fn transition_action(to: Option<Status>, now: Option<Status>, body: TransitionBody) -> Result<Action, String> {
    let TransitionBody {
        to: word,
        reason,
        code,
        text,
        ..
    } = body;
    match to {
        Some(Status::Pending) => Ok(Action::Pending { reason, text }),
        Some(Status::Resolved) => Ok(Action::Resolve { code, text }),
        Some(Status::Cancelled) => Ok(Action::Cancel { text }),
        Some(Status::Closed) => Ok(Action::Close),
        Some(Status::InProgress) if now == Some(Status::Resolved) => Ok(Action::Reopen { text }),
        Some(Status::InProgress) => Ok(Action::Take),
        Some(Status::Assigned) => Err("to assign, POST a group or person to …/assign".to_owned()),
        Some(Status::New) | None => {
            let known = "in_progress, pending, resolved, closed, cancelled";
            Err(format!("a ticket cannot go to {word:?}; use one of {known}"))
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AssignBody {
    group: Option<String>,
    person: Option<String>,
    #[serde(default)]
    request_id: String,
}

async fn assign(
    State(shell): State<Shell>,
    headers: HeaderMap,
    Path(text): Path<String>,
    body: Result<Json<AssignBody>, JsonRejection>,
) -> Result<Response, Failed> {
    let Json(body) = body?;
    let action = Action::Set(Fields {
        group: body.group,
        owner: body.person,
        ..Fields::default()
    });
    edit(&shell, &headers, &text, body.request_id, action).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PatchBody {
    group: Option<String>,
    owner: Option<String>,
    impact: Option<String>,
    urgency: Option<String>,
    #[serde(default)]
    request_id: String,
}

async fn patch(
    State(shell): State<Shell>,
    headers: HeaderMap,
    Path(text): Path<String>,
    body: Result<Json<PatchBody>, JsonRejection>,
) -> Result<Response, Failed> {
    let Json(body) = body?;
    let action = Action::Set(Fields {
        group: body.group,
        owner: body.owner,
        impact: body.impact,
        urgency: body.urgency,
    });
    edit(&shell, &headers, &text, body.request_id, action).await
}

fn ticket_json(ticket: &Ticket) -> Value {
    json!({
        "number": ticket.number.to_string(),
        "title": ticket.title,
        "status": ticket.status,
        "priority": ticket.priority(),
        "impact": ticket.impact,
        "urgency": ticket.urgency,
        "severity": ticket.severity,
        "owner": ticket.owner,
        "group": ticket.group,
        "version": ticket.version,
        "created_ms": ticket.created_at.as_ms(),
        "updated_ms": ticket.updated_at.as_ms(),
        "incident": ticket.incident.to_string(),
        "generation": ticket.generation,
        "recurrence_of": ticket.recurrence_of.map(|t| t.to_string()),
        "flaps": ticket.flaps,
        "services": ticket.services,
        "pending_reason": ticket.pending_reason,
        "resolution_code": ticket.resolution_code,
        "resolution_text": ticket.resolution_text,
        "by_person": ticket.by_person,
        "replay_url": ticket.replay_url(),
        "replay_command": ticket.replay_command(),
    })
}

fn view_json(view: &TicketView) -> Value {
    let mut json = ticket_json(&view.ticket);
    let entries = view
        .thread
        .iter()
        .map(|e| json!({"at_ms": e.at.as_ms(), "actor": e.actor, "kind": e.kind, "text": e.text}));
    json["thread"] = entries.collect();
    let records = view.audit.iter().map(|r| {
        json!({
            "seq": r.seq,
            "at_ms": r.at.as_ms(),
            "actor": r.actor,
            "action": r.action,
            "before": r.before,
            "after": r.after,
            "hash": r.hash_hex(),
        })
    });
    json["audit"] = records.collect();
    json["notes_left_out"] = json!(view.ticket.notes_left_out);
    json
}

#[cfg(test)]
mod tests;

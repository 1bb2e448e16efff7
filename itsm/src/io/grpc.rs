//! `hindcast.v1.Desk`.

use super::{DeskError, Shell, actor, number};
use crate::audit::AuditRecord;
use crate::desk::Edit;
use crate::thread::ThreadEntry;
use crate::ticket::{Action, Fields, Ticket};
use crate::view::{TICKETS_LISTED_MAX, TicketView};
use hindcast_model::TimestampNs;
use hindcast_proto::edge::{ACTOR_KEY, status, tenant_of_metadata};
use hindcast_proto::v1;
use hindcast_proto::v1::desk_server::{Desk, DeskServer};
use hindcast_proto::v1::edit_ticket_request::Action as WireAction;
use hindcast_raft::Meta;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The service, for the server's router.
pub fn desk_service(meta: Arc<dyn Meta>) -> DeskServer<DeskGrpc> {
    DeskServer::new(DeskGrpc::new(meta))
}

pub struct DeskGrpc {
    shell: Shell,
}

impl DeskGrpc {
    pub fn new(meta: Arc<dyn Meta>) -> Self {
        Self {
            shell: Shell::new(meta),
        }
    }
}

#[tonic::async_trait]
impl Desk for DeskGrpc {
    async fn list(
        &self,
        request: Request<v1::ListTicketsRequest>,
    ) -> Result<Response<v1::ListTicketsResponse>, Status> {
        let tenant = tenant_of_metadata(request.metadata())?;
        let wanted = &request.get_ref().status;
        let tickets = self.shell.list(&tenant, wanted, TICKETS_LISTED_MAX).await;
        let tickets = tickets.map_err(|e| status(&e))?;
        Ok(Response::new(v1::ListTicketsResponse {
            tickets: tickets.iter().map(ticket_to_wire).collect(),
        }))
    }

    async fn get(&self, request: Request<v1::GetTicketRequest>) -> Result<Response<v1::Ticket>, Status> {
        let tenant = tenant_of_metadata(request.metadata())?;
        let number = number(&request.get_ref().number).map_err(|e| status(&e))?;
        let view = self.shell.get(&tenant, number).await.map_err(|e| status(&e))?;
        Ok(Response::new(view_to_wire(&view)))
    }

    async fn edit(&self, request: Request<v1::EditTicketRequest>) -> Result<Response<v1::Ticket>, Status> {
        let edit = edit_from_wire(&request).map_err(|e| status(&e))?;
        let view = self.shell.edit(edit).await.map_err(|e| status(&e))?;
        Ok(Response::new(view_to_wire(&view)))
    }
}

fn edit_from_wire(request: &Request<v1::EditTicketRequest>) -> Result<Edit, DeskError> {
    let metadata = request.metadata();
    let tenant = tenant_of_metadata(metadata).map_err(|s| DeskError::Bad(s.message().to_owned()))?;
    let actor_header = metadata.get(ACTOR_KEY).map(|v| v.to_str());
    let actor_header = actor_header
        .transpose()
        .map_err(|_| DeskError::Bad("x-hindcast-actor is not plain ASCII; percent-encode it".to_owned()))?;
    let wire = request.get_ref();
    let action = wire.action.as_ref().ok_or_else(|| {
        DeskError::Bad("no action is given; say what to do with the ticket (take, note, resolve …)".to_owned())
    })?;
    Ok(Edit {
        tenant,
        number: number(&wire.number)?,
        base_version: wire.base_version,
        request_id: wire.request_id.clone(),
        actor: actor(actor_header)?,
        action: action_from_wire(action),
    })
}

fn action_from_wire(action: &WireAction) -> Action {
    let some = |text: &String| Some(text.clone()).filter(|t| !t.is_empty());
    match action {
        WireAction::Take(_) => Action::Take,
        WireAction::Note(n) => Action::Note { text: n.text.clone() },
        WireAction::Pending(p) => Action::Pending {
            reason: p.reason.clone(),
            text: p.text.clone(),
        },
        WireAction::Resolve(r) => Action::Resolve {
            code: r.code.clone(),
            text: r.text.clone(),
        },
        WireAction::Reopen(r) => Action::Reopen { text: r.text.clone() },
        WireAction::Cancel(c) => Action::Cancel { text: c.text.clone() },
        WireAction::Close(_) => Action::Close,
        WireAction::Assign(a) => Action::Set(Fields {
            group: some(&a.group),
            owner: some(&a.person),
            ..Fields::default()
        }),
        WireAction::Priority(p) => Action::Set(Fields {
            impact: some(&p.impact),
            urgency: some(&p.urgency),
            ..Fields::default()
        }),
    }
}

/// A ticket as it stands, without thread and audit.
fn ticket_to_wire(ticket: &Ticket) -> v1::Ticket {
    let ms = |at: TimestampNs| at.as_ms();
    let text = |v: &Option<String>| v.clone().unwrap_or_default();
    v1::Ticket {
        number: ticket.number.to_string(),
        title: ticket.title.clone(),
        status: ticket.status.to_string(),
        priority: ticket.priority().to_string(),
        impact: ticket.impact.to_string(),
        urgency: ticket.urgency.to_string(),
        owner: text(&ticket.owner),
        group: text(&ticket.group),
        version: ticket.version,
        created_ms: ms(ticket.created_at),
        updated_ms: ms(ticket.updated_at),
        incident: ticket.incident.to_string(),
        generation: ticket.generation,
        replay_url: ticket.replay_url(),
        replay_command: ticket.replay_command(),
        thread: vec![],
        audit: vec![],
        pending_reason: ticket.pending_reason.map_or(String::new(), |r| r.as_str().to_owned()),
        resolution_code: text(&ticket.resolution_code),
        resolution_text: text(&ticket.resolution_text),
        recurrence_of: ticket.recurrence_of.map_or(String::new(), |t| t.to_string()),
        severity: ticket.severity.to_string(),
        flaps: ticket.flaps,
        services: ticket.services.keys().cloned().collect(),
    }
}

fn view_to_wire(view: &TicketView) -> v1::Ticket {
    let entry = |e: &ThreadEntry| v1::ThreadEntry {
        at_ms: e.at.as_ms(),
        actor: e.actor.clone(),
        kind: e.kind.as_str().to_owned(),
        text: e.text.clone(),
    };
    let record = |r: &AuditRecord| v1::AuditRecord {
        seq: r.seq,
        at_ms: r.at.as_ms(),
        actor: r.actor.clone(),
        action: r.action.clone(),
        before: r.before.clone(),
        after: r.after.clone(),
        hash: r.hash_hex(),
    };
    v1::Ticket {
        thread: view.thread.iter().map(entry).collect(),
        audit: view.audit.iter().map(record).collect(),
        ..ticket_to_wire(&view.ticket)
    }
}

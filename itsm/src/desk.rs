//! The `desk` part of the meta machine: people's edits and the gateway's incident events, over the desk's rows.
//!
//! Decides which ticket an event belongs to, and what the route's rule about recovery does to it. Each change writes
//! the ticket, its thread, an audit record and a History line in one go (`commit`).
//!
//! Automatic rules, by event:
//! - opened, or routed to the desk later: a new ticket, linked to the one of the incident's earlier life;
//! - changed: severity and services are followed, priority too where no person fixed it;
//! - recovered: a note. Closed, which is the end of the cool-down: what the route says;
//! - reopened: the same ticket again, counted; when that one is final, a new one is linked to it.
//!
//! Incident events never fail here, except on rows that cannot be read.

use crate::audit::AuditEntry;
use crate::rows::{self, IncidentLink};
use crate::thread::{EntryKind, NOTES_MAX, SYSTEM_NOTES_MAX, ThreadEntry};
use crate::ticket::{Action, EditError, Edited, Field, Line, MACHINE, NAME_BYTES_MAX, REQUESTS_MAX, Status, Ticket};
use crate::words;
use hindcast_alerting::command::{GATEWAY_PART, GatewayCommand};
use hindcast_alerting::event::{DeskNotice, IncidentEvent, IncidentEventKind, IncidentSnapshot, OnRecovery};
use hindcast_model::{Class, Classify, TenantId, TicketId, codec};
use hindcast_proto::history::{HistoryKind, HistoryRecord};
use hindcast_raft::{ApplyContext, HistoryLine, MetaTx, Part, PartInput, PartOutput, Refusal};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The part's name, and its tree's.
pub const DESK_PART: &str = "desk";

/// A command addressed to the desk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeskCommand {
    Edit(Edit),
}

/// A person changes a ticket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    pub tenant: TenantId,
    pub number: TicketId,
    /// The version that the person saw; 0: no check.
    pub base_version: u64,
    /// Makes a retry harmless; empty: none.
    pub request_id: String,
    pub actor: String,
    pub action: Action,
}

/// What the editor is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EditReply {
    pub number: TicketId,
    pub version: u64,
}

pub struct DeskPart;

impl Part for DeskPart {
    fn name(&self) -> &'static str {
        DESK_PART
    }

    fn apply(&self, ctx: ApplyContext, input: PartInput<'_>, tx: &mut MetaTx<'_>) -> Result<PartOutput, Refusal> {
        let mut out = PartOutput::default();
        match input {
            PartInput::Command(body) => {
                let DeskCommand::Edit(edit) =
                    codec::from_bytes(body).map_err(|e| Refusal::new(Class::FixRequest, e.to_string()))?;
                let reply = apply_edit(ctx, &edit, tx, &mut out)?;
                out.reply = codec::to_bytes(&reply).into();
            }
            PartInput::Upstream {
                part: GATEWAY_PART,
                body,
            } => {
                let event: IncidentEvent =
                    codec::from_bytes(body).map_err(|e| Refusal::new(Class::Internal, e.to_string()))?;
                apply_event(ctx, &event, tx, &mut out)?;
            }
            PartInput::Upstream { .. } => {}
        }
        Ok(out)
    }
}

fn refused(error: &EditError) -> Refusal {
    Refusal::new(error.class(), error.to_string())
}

fn apply_edit(ctx: ApplyContext, edit: &Edit, tx: &mut MetaTx<'_>, out: &mut PartOutput) -> Result<EditReply, Refusal> {
    let number = edit.number;
    let not_found = || refused(&EditError::NotFound { number });
    let ticket = rows::ticket(tx, number)?
        .filter(|t| t.tenant == edit.tenant)
        .ok_or_else(not_found)?;
    let request = request_hash(&edit.actor, &edit.action);
    let unchanged = EditReply {
        number,
        version: ticket.version,
    };
    if is_repeat(&ticket, &edit.request_id, request).map_err(|e| refused(&e))? {
        return Ok(unchanged);
    }
    let edited = ticket.edited(edit.base_version, &edit.actor, &edit.action);
    let Some(Edited {
        ticket: mut after,
        line,
    }) = edited.map_err(|e| refused(&e))?
    else {
        return Ok(unchanged);
    };
    if matches!(line, Line::Note(_)) && ticket.notes >= NOTES_MAX {
        return Err(refused(&EditError::ThreadFull {
            number,
            notes_max: NOTES_MAX,
        }));
    }
    if !edit.request_id.is_empty() {
        after.requests.push((edit.request_id.clone(), request));
        let excess = after.requests.len().saturating_sub(REQUESTS_MAX);
        after.requests.drain(..excess);
    }
    let newly_owned = after.owner.clone().filter(|_| ticket.owner.is_none());
    let change = Change {
        actor: &edit.actor,
        word: edit.action.word(),
        before: Some(&ticket),
        after,
        line: Some(line),
    };
    let after = commit(ctx, change, tx, out)?;
    if let Some(by) = newly_owned {
        notify(
            out,
            DeskNotice::TicketTaken {
                incident: after.incident,
                generation: after.generation,
                ticket: number,
                by,
            },
        );
    }
    Ok(EditReply {
        number,
        version: after.version,
    })
}

/// Hash of who asked for what: tells a retry from another edit under the same request id.
fn request_hash(actor: &str, action: &Action) -> [u8; 16] {
    let mut h = blake3::Hasher::new_derive_key("hindcast 2026 desk request");
    h.update(&codec::to_bytes(&(actor, action)));
    let mut hash = [0; 16];
    h.finalize_xof().fill(&mut hash);
    hash
}

fn is_repeat(ticket: &Ticket, request_id: &str, hash: [u8; 16]) -> Result<bool, EditError> {
    if request_id.is_empty() {
        return Ok(false);
    }
    if request_id.len() > NAME_BYTES_MAX {
        return Err(EditError::TooLong {
            field: "request_id",
            bytes_max: NAME_BYTES_MAX,
        });
    }
    match ticket.requests.iter().find(|(id, _)| id == request_id) {
        None => Ok(false),
        Some((_, known)) if *known == hash => Ok(true),
        Some(_) => Err(EditError::RequestReused {
            number: ticket.number,
            request_id: request_id.to_owned(),
        }),
    }
}

fn apply_event(
    ctx: ApplyContext,
    event: &IncidentEvent,
    tx: &mut MetaTx<'_>,
    out: &mut PartOutput,
) -> Result<(), Refusal> {
    use IncidentEventKind::{Changed, Closed, Opened, Recovered, Recurred, Reopened};
    let incident = &event.incident;
    let newest = match rows::link(tx, incident.id)? {
        // Of a life that is over: what the desk has is newer.
        Some(link) if link.generation > incident.generation => return Ok(()),
        Some(link) => rows::ticket(tx, link.ticket)?,
        None => None,
    };
    let current = newest.as_ref().filter(|t| t.generation == incident.generation);
    match (&event.kind, current) {
        (Recovered | Closed, None) => Ok(()),
        (_, None) => open(ctx, incident, newest.as_ref(), tx, out),
        (Reopened, Some(t)) if !t.status.is_open() => open(ctx, incident, newest.as_ref(), tx, out),
        (_, Some(t)) if !t.status.is_open() => Ok(()),
        (Opened | Recurred, Some(_)) => Ok(()),
        (Changed { what }, Some(t)) => follow(ctx, t, incident, what, tx, out),
        (Recovered, Some(t)) => {
            let text = "All alerts are over. If nothing comes back, the incident closes soon.";
            by_rule(ctx, t, t.clone(), "recovered", text, tx, out)
        }
        (Reopened, Some(t)) => {
            let mut after = t.clone();
            after.relapse();
            after.follow(incident.severity, &incident.services);
            let text = match t.status {
                Status::Resolved => "It came back; the ticket is open again.",
                _ => "It came back.",
            };
            by_rule(ctx, t, after, "relapsed", text, tx, out)
        }
        (Closed, Some(t)) => close_out(ctx, t, incident.on_recovery, tx, out),
    }
}

/// A new ticket, when the incident is routed to the desk.
fn open(
    ctx: ApplyContext,
    incident: &IncidentSnapshot,
    earlier: Option<&Ticket>,
    tx: &mut MetaTx<'_>,
    out: &mut PartOutput,
) -> Result<(), Refusal> {
    let Some(group) = &incident.desk_group else {
        return Ok(());
    };
    let number = rows::next_number(tx)?;
    let ticket = new_ticket(ctx, number, incident, group, earlier);
    let change = Change {
        actor: MACHINE,
        word: "opened",
        before: None,
        after: ticket,
        line: Some(Line::Event(words::opening(incident))),
    };
    commit(ctx, change, tx, out)?;
    let link = IncidentLink {
        generation: incident.generation,
        ticket: number,
    };
    rows::put_link(tx, incident.id, link);
    notify(
        out,
        DeskNotice::TicketOpened {
            incident: incident.id,
            generation: incident.generation,
            ticket: number,
        },
    );
    match earlier.filter(|e| e.status.is_open()) {
        Some(earlier) => {
            let text = format!("The trouble came back later and goes on in {number}.");
            by_rule(ctx, earlier, earlier.clone(), "recurred", &text, tx, out)
        }
        None => Ok(()),
    }
}

fn new_ticket(
    ctx: ApplyContext,
    number: TicketId,
    incident: &IncidentSnapshot,
    group: &str,
    earlier: Option<&Ticket>,
) -> Ticket {
    let mut ticket = Ticket {
        number,
        tenant: incident.tenant.clone(),
        version: 0,
        created_at: ctx.now,
        updated_at: ctx.now,
        title: words::title(incident),
        incident: incident.id,
        generation: incident.generation,
        recurrence_of: earlier.map(|e| e.number),
        status: Status::New,
        pending_reason: None,
        resolution_code: None,
        resolution_text: None,
        owner: None,
        group: Some(group.to_owned()),
        impact: crate::priority::Level::Low,
        urgency: crate::priority::Level::Low,
        severity: incident.severity,
        services: BTreeMap::new(),
        flaps: 0,
        by_person: Default::default(),
        touched: false,
        changed_in: BTreeMap::new(),
        notes: 0,
        system_notes: 0,
        notes_left_out: 0,
        requests: vec![],
    };
    ticket.follow(incident.severity, &incident.services);
    ticket
}

fn follow(
    ctx: ApplyContext,
    ticket: &Ticket,
    incident: &IncidentSnapshot,
    what: &str,
    tx: &mut MetaTx<'_>,
    out: &mut PartOutput,
) -> Result<(), Refusal> {
    let mut after = ticket.clone();
    after.follow(incident.severity, &incident.services);
    match words::change(ticket, &after, what) {
        Some(text) => by_rule(ctx, ticket, after, "followed", &text, tx, out),
        None if after == *ticket => Ok(()),
        None => by_rule(
            ctx,
            ticket,
            after,
            "followed",
            "Other services are touched now.",
            tx,
            out,
        ),
    }
}

/// The cool-down is over: the route's rule about recovery.
fn close_out(
    ctx: ApplyContext,
    ticket: &Ticket,
    rule: OnRecovery,
    tx: &mut MetaTx<'_>,
    out: &mut PartOutput,
) -> Result<(), Refusal> {
    let wanted = match rule {
        OnRecovery::Note => false,
        OnRecovery::ResolveIfUntouched => !ticket.touched,
        OnRecovery::Resolve => true,
    };
    let mut after = ticket.clone();
    if wanted && after.resolve_by_rule("All alerts ended and none came back.") {
        let text = "Resolved by the route's rule: all alerts ended and none came back.";
        return by_rule(ctx, ticket, after, "resolved", text, tx, out);
    }
    let text = match ticket.status {
        Status::Resolved => "The incident is closed: nothing came back.",
        _ => "The incident is closed: nothing came back. Confirm with those affected and resolve.",
    };
    by_rule(ctx, ticket, ticket.clone(), "incident_closed", text, tx, out)
}

fn by_rule(
    ctx: ApplyContext,
    before: &Ticket,
    after: Ticket,
    word: &'static str,
    text: &str,
    tx: &mut MetaTx<'_>,
    out: &mut PartOutput,
) -> Result<(), Refusal> {
    let change = Change {
        actor: MACHINE,
        word,
        before: Some(before),
        after,
        line: Some(Line::Event(text.to_owned())),
    };
    commit(ctx, change, tx, out).map(drop)
}

/// A change on its way into the rows.
struct Change<'a> {
    actor: &'a str,
    word: &'static str,
    before: Option<&'a Ticket>,
    after: Ticket,
    line: Option<Line>,
}

/// Writes a change: version, thread, ticket, audit, History. The one place that does.
fn commit(ctx: ApplyContext, change: Change<'_>, tx: &mut MetaTx<'_>, out: &mut PartOutput) -> Result<Ticket, Refusal> {
    let Change {
        actor,
        word,
        before,
        mut after,
        line,
    } = change;
    after.version = before.map_or(0, |b| b.version) + 1;
    after.updated_at = ctx.now;
    let changed: Vec<Field> = match before {
        Some(before) => before.differences(&after),
        None => Field::ALL.into_iter().filter(|f| after.value(*f).is_some()).collect(),
    };
    if before.is_some() {
        let version = after.version;
        after.changed_in.extend(changed.iter().map(|f| (*f, version)));
    }
    let mut values = BTreeMap::new();
    for field in &changed {
        values.insert(field.as_str(), after.value(*field));
    }
    if let Some(line) = line {
        let text_hash = add_line(ctx, actor, line, &mut after, tx);
        values.insert("text_blake3", Some(text_hash));
    }
    let was = |f: &Field| (f.as_str(), before.and_then(|b| b.value(*f)));
    let entry = AuditEntry {
        at: ctx.now,
        actor: actor.to_owned(),
        action: word.to_owned(),
        object: after.number.to_string(),
        before: json(&changed.iter().map(was).collect()),
        after: json(&values),
    };
    let mut head = rows::audit_head(tx)?;
    let record = head.append(ctx.index, entry);
    rows::put_audit(tx, &after, &record, &head);
    rows::put_ticket(tx, before, &after);
    let seq = ctx.history + out.history.len() as u32;
    out.history.push(history_line(ctx, &after, actor, word, seq));
    Ok(after)
}

fn json(values: &BTreeMap<&str, Option<String>>) -> String {
    serde_json::to_string(values).expect("text to text")
}

/// Adds to the thread within its bounds; returns the hash of the text for the audit record.
fn add_line(ctx: ApplyContext, actor: &str, line: Line, ticket: &mut Ticket, tx: &mut MetaTx<'_>) -> String {
    let nth = u64::from(ticket.notes) + u64::from(ticket.system_notes);
    let (kind, text) = match line {
        Line::Note(text) => (EntryKind::Note, text),
        Line::Event(text) => (EntryKind::System, text),
    };
    let hash = blake3::hash(text.as_bytes()).to_hex().to_string();
    match kind {
        EntryKind::Note => ticket.notes += 1,
        EntryKind::System if ticket.system_notes >= SYSTEM_NOTES_MAX => {
            ticket.notes_left_out = ticket.notes_left_out.saturating_add(1);
            return hash;
        }
        EntryKind::System => ticket.system_notes += 1,
    }
    let entry = ThreadEntry {
        at: ctx.now,
        actor: actor.to_owned(),
        kind,
        text,
    };
    rows::put_thread(tx, ticket.number, nth, &entry);
    hash
}

fn history_line(ctx: ApplyContext, ticket: &Ticket, actor: &str, word: &str, seq: u32) -> HistoryLine {
    let record = HistoryRecord {
        kind: HistoryKind::Ticket,
        tenant: ticket.tenant.clone(),
        object: ticket.number.to_string(),
        at: ctx.now,
        index: ctx.index,
        seq,
        change: word.to_owned(),
        state: serde_json::json!({
            "actor": actor,
            "flaps": ticket.flaps,
            "generation": ticket.generation,
            "group": ticket.group,
            "incident": ticket.incident.to_string(),
            "owner": ticket.owner,
            "priority": ticket.priority().as_str(),
            "recurrence_of": ticket.recurrence_of.map(|t| t.to_string()),
            "severity": ticket.severity.as_str(),
            "status": ticket.status.as_str(),
            "title": ticket.title,
            "version": ticket.version,
        }),
    };
    HistoryLine {
        tenant: ticket.tenant.clone(),
        labels: HistoryKind::Ticket.stream(),
        at: ctx.now,
        line: record.to_line(),
    }
}

/// Tells the gateway, as the next command after this one.
fn notify(out: &mut PartOutput, notice: DeskNotice) {
    let command = GatewayCommand::Desk(notice);
    out.leftward.push((GATEWAY_PART.to_owned(), codec::to_bytes(&command)));
}

#[cfg(test)]
mod tests;

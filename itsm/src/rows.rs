//! The desk's rows: keys, and typed reads and writes.
//!
//! Numbers in keys are big-endian; index keys hold the complement, so that the newest comes first in a scan.
//!
//! | Key | Value |
//! |---|---|
//! | `count` | number of the last ticket |
//! | `ticket/<number>` | `Ticket` |
//! | `status/<tenant>\0<status>\0<!number>` | empty: tickets by status, newest first |
//! | `thread/<number>/<n>` | `ThreadEntry` |
//! | `incident/<incident>` | `IncidentLink`: the newest ticket of an incident |
//! | `head` | `AuditHead` |
//! | `audit/<seq>` | `AuditRecord` |
//! | `audit-of/<number>/<version>` | `seq` of the record of the change that made this version |

use crate::audit::{AuditHead, AuditRecord};
use crate::desk::DESK_PART;
use crate::thread::ThreadEntry;
use crate::ticket::{Status, Ticket};
use hindcast_model::{Class, IncidentId, TenantId, TicketId, codec};
use hindcast_raft::{MetaRead, MetaTx, Refusal};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Which ticket an incident has, of the newest generation that the desk has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncidentLink {
    pub generation: u64,
    pub ticket: TicketId,
}

/// Reads of the desk's tree, inside a command and outside.
pub trait DeskRead {
    fn row(&self, key: &[u8]) -> Option<Vec<u8>>;
    fn rows(&self, prefix: &[u8], from: Option<&[u8]>, limit: usize) -> Vec<(Vec<u8>, Vec<u8>)>;
}

impl DeskRead for MetaTx<'_> {
    fn row(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.get(DESK_PART, key)
    }
    fn rows(&self, prefix: &[u8], from: Option<&[u8]>, limit: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.scan(DESK_PART, prefix, from, limit)
    }
}

impl DeskRead for dyn MetaRead + '_ {
    fn row(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.get(DESK_PART, key)
    }
    fn rows(&self, prefix: &[u8], from: Option<&[u8]>, limit: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.scan(DESK_PART, prefix, from, limit)
    }
}

fn decoded<T: DeserializeOwned>(value: &[u8]) -> Result<T, Refusal> {
    codec::from_bytes(value).map_err(|e| Refusal::new(Class::Internal, e.to_string()))
}

fn read<T: DeserializeOwned>(from: &(impl DeskRead + ?Sized), key: &[u8]) -> Result<Option<T>, Refusal> {
    from.row(key).map(|v| decoded(&v)).transpose()
}

const COUNT: &[u8] = b"count";
const HEAD: &[u8] = b"head";
const AUDIT: &[u8] = b"audit/";

fn ticket_key(number: TicketId) -> Vec<u8> {
    [b"ticket/".as_slice(), &number.0.to_be_bytes()].concat()
}

fn thread_prefix(number: TicketId) -> Vec<u8> {
    [b"thread/".as_slice(), &number.0.to_be_bytes(), b"/"].concat()
}

fn audit_of_prefix(number: TicketId) -> Vec<u8> {
    [b"audit-of/".as_slice(), &number.0.to_be_bytes(), b"/"].concat()
}

fn status_prefix(tenant: &TenantId, status: Status) -> Vec<u8> {
    format!("status/{tenant}\0{status}\0").into_bytes()
}

fn status_key(ticket: &Ticket) -> Vec<u8> {
    let mut key = status_prefix(&ticket.tenant, ticket.status);
    key.extend((!ticket.number.0).to_be_bytes());
    key
}

fn incident_key(incident: IncidentId) -> Vec<u8> {
    [b"incident/".as_slice(), &incident.0.to_be_bytes()].concat()
}

fn tail(key: &[u8]) -> Option<u64> {
    let (_, tail) = key.split_last_chunk::<8>()?;
    Some(u64::from_be_bytes(*tail))
}

pub fn ticket(from: &(impl DeskRead + ?Sized), number: TicketId) -> Result<Option<Ticket>, Refusal> {
    read(from, &ticket_key(number))
}

pub fn link(from: &(impl DeskRead + ?Sized), incident: IncidentId) -> Result<Option<IncidentLink>, Refusal> {
    read(from, &incident_key(incident))
}

pub fn audit_head(from: &(impl DeskRead + ?Sized)) -> Result<AuditHead, Refusal> {
    Ok(read(from, HEAD)?.unwrap_or_default())
}

/// Up to `limit` audit records from sequence `from_seq` on.
pub fn audit_records(
    from: &(impl DeskRead + ?Sized),
    from_seq: u64,
    limit: usize,
) -> Result<Vec<AuditRecord>, Refusal> {
    let start = [AUDIT, &from_seq.to_be_bytes()].concat();
    let rows = from.rows(AUDIT, Some(&start), limit);
    rows.iter().map(|(_, v)| decoded(v)).collect()
}

/// Audit records of a ticket: of the changes that made version `from_version` and later ones.
pub fn audit_of(
    from: &(impl DeskRead + ?Sized),
    number: TicketId,
    from_version: u64,
    limit: usize,
) -> Result<Vec<AuditRecord>, Refusal> {
    let prefix = audit_of_prefix(number);
    let start = [prefix.as_slice(), &from_version.to_be_bytes()].concat();
    let mut records = Vec::new();
    for (_, seq) in from.rows(&prefix, Some(&start), limit) {
        records.extend(read::<AuditRecord>(from, &[AUDIT, &seq].concat())?);
    }
    Ok(records)
}

/// The thread of a ticket, oldest first, from its `nth` entry on.
pub fn thread(
    from: &(impl DeskRead + ?Sized),
    number: TicketId,
    nth: u64,
    limit: usize,
) -> Result<Vec<ThreadEntry>, Refusal> {
    let prefix = thread_prefix(number);
    let start = [prefix.as_slice(), &nth.to_be_bytes()].concat();
    let rows = from.rows(&prefix, Some(&start), limit);
    rows.iter().map(|(_, v)| decoded(v)).collect()
}

/// Numbers of the newest `limit` tickets of a status, newest first.
pub fn newest(from: &(impl DeskRead + ?Sized), tenant: &TenantId, status: Status, limit: usize) -> Vec<TicketId> {
    let rows = from.rows(&status_prefix(tenant, status), None, limit);
    rows.iter().filter_map(|(key, _)| Some(TicketId(!tail(key)?))).collect()
}

/// The next number: strictly rising, never given twice.
pub fn next_number(tx: &mut MetaTx<'_>) -> Result<TicketId, Refusal> {
    let last: u64 = read(tx, COUNT)?.unwrap_or(0);
    tx.put(DESK_PART, COUNT, codec::to_bytes(&(last + 1)));
    Ok(TicketId(last + 1))
}

/// Writes a ticket and moves it in the index of statuses.
pub fn put_ticket(tx: &mut MetaTx<'_>, before: Option<&Ticket>, ticket: &Ticket) {
    tx.put(DESK_PART, &ticket_key(ticket.number), codec::to_bytes(ticket));
    if let Some(before) = before.filter(|b| b.status != ticket.status) {
        tx.delete(DESK_PART, &status_key(before));
    }
    if before.is_none_or(|b| b.status != ticket.status) {
        tx.put(DESK_PART, &status_key(ticket), vec![]);
    }
}

pub fn put_link(tx: &mut MetaTx<'_>, incident: IncidentId, link: IncidentLink) {
    tx.put(DESK_PART, &incident_key(incident), codec::to_bytes(&link));
}

pub fn put_thread(tx: &mut MetaTx<'_>, number: TicketId, nth: u64, entry: &ThreadEntry) {
    let mut key = thread_prefix(number);
    key.extend(nth.to_be_bytes());
    tx.put(DESK_PART, &key, codec::to_bytes(entry));
}

pub fn put_audit(tx: &mut MetaTx<'_>, ticket: &Ticket, record: &AuditRecord, head: &AuditHead) {
    let seq = record.seq.to_be_bytes();
    let of_ticket = [audit_of_prefix(ticket.number), ticket.version.to_be_bytes().to_vec()].concat();
    tx.put(DESK_PART, &[AUDIT, &seq].concat(), codec::to_bytes(record));
    tx.put(DESK_PART, &of_ticket, seq.to_vec());
    tx.put(DESK_PART, HEAD, codec::to_bytes(head));
}

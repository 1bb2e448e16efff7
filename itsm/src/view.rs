//! Tickets as readers see them: the row, the end of the thread and of the audit trail, and where the replay is.

use crate::audit::{AuditRecord, verify_chain};
use crate::rows;
use crate::thread::ThreadEntry;
use crate::ticket::{Status, Ticket};
use hindcast_model::{Class, TenantId, TicketId};
use hindcast_raft::{MetaRead, Refusal};

/// Newest entries of a thread that one answer holds.
pub const THREAD_SHOWN_MAX: usize = 500;
/// Newest audit records of a ticket that one answer holds.
pub const AUDIT_SHOWN_MAX: usize = 200;
/// Tickets in one list.
pub const TICKETS_LISTED_MAX: usize = 1_000;
/// Audit records read at a time while the chain is verified.
const AUDIT_PAGE: usize = 1_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TicketView {
    pub ticket: Ticket,
    /// Oldest first.
    pub thread: Vec<ThreadEntry>,
    pub audit: Vec<AuditRecord>,
}

impl Ticket {
    /// Path of the replay in the web UI.
    pub fn replay_url(&self) -> String {
        format!("/replay/{}", self.incident)
    }

    pub fn replay_command(&self) -> String {
        format!("hindcast replay {}", self.incident)
    }
}

/// Which tickets to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TicketFilter {
    All,
    /// All but closed and cancelled.
    Open,
    Status(Status),
}

impl TicketFilter {
    /// A status in snake case, `open`, or nothing for all.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "all" => Some(Self::All),
            "open" => Some(Self::Open),
            status => Status::parse(status).map(Self::Status),
        }
    }

    fn takes(self, status: Status) -> bool {
        match self {
            Self::All => true,
            Self::Open => status.is_open(),
            Self::Status(s) => s == status,
        }
    }
}

/// The newest tickets first, at most `limit` and `TICKETS_LISTED_MAX`.
pub fn list_tickets(
    read: &dyn MetaRead,
    tenant: &TenantId,
    filter: TicketFilter,
    limit: usize,
) -> Result<Vec<Ticket>, Refusal> {
    let limit = limit.min(TICKETS_LISTED_MAX);
    let statuses = Status::ALL.into_iter().filter(|s| filter.takes(*s));
    let mut numbers: Vec<_> = statuses.flat_map(|s| rows::newest(read, tenant, s, limit)).collect();
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    let mut tickets = Vec::new();
    for number in numbers.into_iter().take(limit) {
        tickets.extend(rows::ticket(read, number)?);
    }
    Ok(tickets)
}

/// A ticket of this tenant; another tenant's does not exist.
pub fn get_ticket(read: &dyn MetaRead, tenant: &TenantId, number: TicketId) -> Result<Option<TicketView>, Refusal> {
    let Some(ticket) = rows::ticket(read, number)?.filter(|t| t.tenant == *tenant) else {
        return Ok(None);
    };
    let entries = u64::from(ticket.notes) + u64::from(ticket.system_notes);
    let first_entry = entries.saturating_sub(THREAD_SHOWN_MAX as u64);
    let first_version = (ticket.version + 1).saturating_sub(AUDIT_SHOWN_MAX as u64);
    Ok(Some(TicketView {
        thread: rows::thread(read, number, first_entry, THREAD_SHOWN_MAX)?,
        audit: rows::audit_of(read, number, first_version, AUDIT_SHOWN_MAX)?,
        ticket,
    }))
}

/// Verifies the whole audit chain of the desk; returns how many records it has.
pub fn verify_audit(read: &dyn MetaRead) -> Result<u64, Refusal> {
    let head = rows::audit_head(read)?;
    let mut records = Vec::new();
    loop {
        let page = rows::audit_records(read, records.len() as u64 + 1, AUDIT_PAGE)?;
        let last = page.len() < AUDIT_PAGE;
        records.extend(page);
        if last {
            return verify_chain(&records, &head).map_err(|e| Refusal::new(Class::Internal, e.to_string()));
        }
    }
}

//! What may happen to a ticket: the status machine, the fields, and who may change which.
//!
//! Pure: an edit is a function of the ticket as it is, the version the editor saw, who asks, and what is asked.
//!
//! Invariants
//! - A status goes only where the table says; a chain of steps (taking a new ticket) is legal step by step.
//! - What a person set (`by_person`) no rule changes. The reason for waiting belongs to the status Pending and goes with it.
//! - An edit based on an old version fails only on fields that others changed since, and to another value.

use crate::priority::{Level, Priority, impact_of, urgency_of};
use crate::thread::TEXT_BYTES_MAX;
use hindcast_alerting::event::Criticality;
use hindcast_model::{Class, Classify, IncidentId, Severity, TenantId, TicketId, TimestampNs};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Bytes of a name: a person, a group.
pub const NAME_BYTES_MAX: usize = 128;
/// Bytes of a resolution code.
pub const CODE_BYTES_MAX: usize = 40;
/// Request ids that a ticket remembers; a retry that comes later than so many other edits is taken for a new one.
pub const REQUESTS_MAX: usize = 32;
/// The name under which rules act. No person may use it.
pub const MACHINE: &str = "gateway";
/// The resolution code that rules give.
pub const CODE_RECOVERED: &str = "recovered";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    New,
    Assigned,
    InProgress,
    Pending,
    Resolved,
    Closed,
    Cancelled,
}

/// Whether a person or a rule moves the ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Person,
    Rule,
}

impl Status {
    pub const ALL: [Self; 7] = [
        Self::New,
        Self::Assigned,
        Self::InProgress,
        Self::Pending,
        Self::Resolved,
        Self::Closed,
        Self::Cancelled,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Assigned => "assigned",
            Self::InProgress => "in_progress",
            Self::Pending => "pending",
            Self::Resolved => "resolved",
            Self::Closed => "closed",
            Self::Cancelled => "cancelled",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == text)
    }

    /// Final ones are not open; a resolved ticket still is, since a relapse takes it back.
    pub const fn is_open(self) -> bool {
        !matches!(self, Self::Closed | Self::Cancelled)
    }

    /// The table of statuses, line by line.
    pub const fn goes_to(self, to: Self, by: By) -> bool {
        use Status::{Assigned, Cancelled, Closed, InProgress, New, Pending, Resolved};
        match self {
            New => matches!(to, Assigned | Cancelled) || (matches!(to, Resolved) && matches!(by, By::Rule)),
            Assigned => matches!(to, InProgress | Pending | Cancelled | Resolved),
            InProgress => matches!(to, Pending | Resolved | Assigned),
            Pending => matches!(to, InProgress | Resolved),
            Resolved => matches!(to, Closed | InProgress),
            Closed | Cancelled => false,
        }
    }

    /// What a person can do instead, for the error.
    const fn advice(self) -> &'static str {
        match self {
            Self::New => "take or assign it first",
            Self::Assigned | Self::InProgress => "look at its present status",
            Self::Pending => "take it to go on working, or resolve it",
            Self::Resolved => "reopen it first",
            Self::Closed | Self::Cancelled => "it is final; a relapse makes a new ticket",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a pending ticket waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PendingReason {
    Customer,
    Vendor,
    Change,
    Maintenance,
    Other,
}

impl PendingReason {
    pub const ALL: [Self; 5] = [
        Self::Customer,
        Self::Vendor,
        Self::Change,
        Self::Maintenance,
        Self::Other,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::Vendor => "vendor",
            Self::Change => "change",
            Self::Maintenance => "maintenance",
            Self::Other => "other",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.as_str() == text)
    }
}

/// What can be edited, or is kept up to date by rules. The order is that of audit values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Field {
    Status,
    PendingReason,
    ResolutionCode,
    ResolutionText,
    Owner,
    Group,
    Impact,
    Urgency,
    Severity,
    Services,
    Flaps,
}

impl Field {
    pub const ALL: [Self; 11] = [
        Self::Status,
        Self::PendingReason,
        Self::ResolutionCode,
        Self::ResolutionText,
        Self::Owner,
        Self::Group,
        Self::Impact,
        Self::Urgency,
        Self::Severity,
        Self::Services,
        Self::Flaps,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::PendingReason => "pending_reason",
            Self::ResolutionCode => "resolution_code",
            Self::ResolutionText => "resolution_text",
            Self::Owner => "owner",
            Self::Group => "group",
            Self::Impact => "impact",
            Self::Urgency => "urgency",
            Self::Severity => "severity",
            Self::Services => "services",
            Self::Flaps => "flaps",
        }
    }
}

/// An edit that a person asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// The actor becomes the owner and works on it.
    Take,
    Note {
        text: String,
    },
    Pending {
        reason: String,
        text: String,
    },
    Resolve {
        code: String,
        text: String,
    },
    Reopen {
        text: String,
    },
    Cancel {
        text: String,
    },
    Close,
    /// Fields by hand; `None` leaves as is. A group without a person takes the owner off: it is the group's turn.
    Set(Fields),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fields {
    pub group: Option<String>,
    pub owner: Option<String>,
    pub impact: Option<String>,
    pub urgency: Option<String>,
}

impl Action {
    /// The word of it in audit and History.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Take => "taken",
            Self::Note { .. } => "noted",
            Self::Pending { .. } => "pending",
            Self::Resolve { .. } => "resolved",
            Self::Reopen { .. } => "reopened",
            Self::Cancel { .. } => "cancelled",
            Self::Close => "closed",
            Self::Set(f) if f.owner.is_some() || f.group.is_some() => "assigned",
            Self::Set(_) => "prioritised",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    pub number: TicketId,
    pub tenant: TenantId,
    /// Counts changes, from 1. What edits are based on.
    pub version: u64,
    pub created_at: TimestampNs,
    pub updated_at: TimestampNs,
    pub title: String,
    pub incident: IncidentId,
    pub generation: u64,
    /// The ticket of an earlier life of the same trouble.
    pub recurrence_of: Option<TicketId>,
    pub status: Status,
    pub pending_reason: Option<PendingReason>,
    /// Of the last resolution, also while the ticket is open again.
    pub resolution_code: Option<String>,
    pub resolution_text: Option<String>,
    pub owner: Option<String>,
    pub group: Option<String>,
    pub impact: Level,
    pub urgency: Level,
    pub severity: Severity,
    pub services: BTreeMap<String, Criticality>,
    /// How often the trouble came back within this ticket.
    pub flaps: u32,
    /// Fields whose present value a person set.
    pub by_person: BTreeSet<Field>,
    /// Whether any person ever did anything here.
    pub touched: bool,
    /// Version that last changed a field; absent: as created.
    pub changed_in: BTreeMap<Field, u64>,
    pub notes: u32,
    pub system_notes: u32,
    /// Machine notes that were not kept because of the bound.
    pub notes_left_out: u32,
    /// The last requests, oldest first: id, hash of actor and action.
    pub requests: Vec<(String, [u8; 16])>,
}

/// A value on which two editors differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldConflict {
    pub field: Field,
    /// What the refused edit wanted.
    pub yours: Option<String>,
    /// What it is now.
    pub theirs: Option<String>,
}

impl fmt::Display for FieldConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |v: &Option<String>| v.as_ref().map_or_else(|| "nothing".to_owned(), |v| format!("{v:?}"));
        let (field, theirs, yours) = (self.field.as_str(), shown(&self.theirs), shown(&self.yours));
        write!(f, "{field} is now {theirs}, you asked for {yours}")
    }
}

/// Why an edit is refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    #[error("there is no ticket {number}")]
    NotFound { number: TicketId },
    #[error("{number} is {from} and cannot become {to}: {}", .from.advice())]
    Status { number: TicketId, from: Status, to: Status },
    #[error("{number} is {status} and cannot be assigned: {}", .status.advice())]
    NotAssignable { number: TicketId, status: Status },
    #[error("{field} is missing: {what}")]
    Missing { field: &'static str, what: &'static str },
    #[error("{field} {given:?} is not one of {known}")]
    Unknown {
        field: &'static str,
        given: String,
        known: &'static str,
    },
    #[error("{field} is longer than {bytes_max} bytes")]
    TooLong { field: &'static str, bytes_max: usize },
    #[error("{field} holds a control character; write plain text")]
    NotPlain { field: &'static str },
    #[error("{MACHINE:?} is the name of the rules; act under your own")]
    ReservedName,
    #[error("{number} has {notes_max} notes, which is the most; go on in a linked ticket")]
    ThreadFull { number: TicketId, notes_max: u32 },
    #[error("{number} is at version {version}, the edit is based on {base}, which does not exist yet")]
    FutureVersion { number: TicketId, version: u64, base: u64 },
    #[error("request id {request_id:?} was used for another edit of {number}; use a new one")]
    RequestReused { number: TicketId, request_id: String },
    #[error("{number} was changed since version {base}: {}", list(.conflicts))]
    Conflict {
        number: TicketId,
        base: u64,
        conflicts: Vec<FieldConflict>,
    },
}

fn list(conflicts: &[FieldConflict]) -> String {
    let all: Vec<_> = conflicts.iter().map(ToString::to_string).collect();
    all.join("; ")
}

impl Classify for EditError {
    fn class(&self) -> Class {
        match self {
            Self::NotFound { .. } => Class::NotFound,
            Self::TooLong { .. } => Class::TooLarge,
            Self::Conflict { .. } => Class::Conflict,
            _ => Class::FixRequest,
        }
    }
}

/// What an edit comes to: the ticket after it, and the line of the thread. Version and rows are the desk's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edited {
    pub ticket: Ticket,
    pub line: Line,
}

/// What an edit adds to the thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// What the person wrote.
    Note(String),
    /// What happened, in one line.
    Event(String),
}

impl Ticket {
    pub const fn priority(&self) -> Priority {
        Priority::of(self.impact, self.urgency)
    }

    /// A field as text; `None` when it has no value.
    pub fn value(&self, field: Field) -> Option<String> {
        match field {
            Field::Status => Some(self.status.to_string()),
            Field::PendingReason => self.pending_reason.map(|r| r.as_str().to_owned()),
            Field::ResolutionCode => self.resolution_code.clone(),
            Field::ResolutionText => self.resolution_text.clone(),
            Field::Owner => self.owner.clone(),
            Field::Group => self.group.clone(),
            Field::Impact => Some(self.impact.to_string()),
            Field::Urgency => Some(self.urgency.to_string()),
            Field::Severity => Some(self.severity.to_string()),
            Field::Services => {
                let names: Vec<_> = self.services.keys().map(String::as_str).collect();
                Some(names.join(", ")).filter(|n| !n.is_empty())
            }
            Field::Flaps => Some(self.flaps.to_string()),
        }
    }

    /// Fields in which two states of a ticket differ.
    pub fn differences(&self, other: &Self) -> Vec<Field> {
        let differ = |f: &Field| self.value(*f) != other.value(*f);
        Field::ALL.into_iter().filter(differ).collect()
    }

    /// A person's edit. `Ok(None)`: everything is already as asked.
    pub fn edited(&self, base: u64, actor: &str, action: &Action) -> Result<Option<Edited>, EditError> {
        check_actor(actor)?;
        if base > self.version {
            return Err(EditError::FutureVersion {
                number: self.number,
                version: self.version,
                base,
            });
        }
        let changed_since = |field: Field| base > 0 && self.changed_in.get(&field).is_some_and(|v| *v > base);
        let conflict = |conflicts| EditError::Conflict {
            number: self.number,
            base,
            conflicts,
        };
        let mut after = self.clone();
        let line = match after.act(actor, action) {
            Ok(line) => line,
            // What the editor saw allowed it; somebody else was first.
            Err(EditError::Status { from, to, .. }) if changed_since(Field::Status) => {
                return Err(conflict(vec![FieldConflict {
                    field: Field::Status,
                    yours: Some(to.to_string()),
                    theirs: Some(from.to_string()),
                }]));
            }
            Err(e) => return Err(e),
        };
        let changed = self.differences(&after);
        let conflicts: Vec<_> = changed
            .iter()
            .filter(|f| changed_since(**f))
            .map(|&field| FieldConflict {
                field,
                yours: after.value(field),
                theirs: self.value(field),
            })
            .collect();
        if !conflicts.is_empty() {
            return Err(conflict(conflicts));
        }
        // Naming a value that is there already still makes it a person's.
        if changed.is_empty() && after.by_person == self.by_person && !matches!(line, Line::Note(_)) {
            return Ok(None);
        }
        after.touched = true;
        Ok(Some(Edited { ticket: after, line }))
    }

    /// Changes the fields; the caller compares.
    fn act(&mut self, actor: &str, action: &Action) -> Result<Line, EditError> {
        let line = match action {
            Action::Take => {
                self.walk_to_work()?;
                self.set_owner(Some(actor));
                Line::Event("took the ticket".into())
            }
            Action::Note { text } => {
                required("text", "write what the others should know", text)?;
                Line::Note(text.trim().to_owned())
            }
            Action::Pending { reason, text } => {
                required("reason", "say what is waited for", reason)?;
                let reason = PendingReason::parse(reason).ok_or_else(|| EditError::Unknown {
                    field: "reason",
                    given: reason.chars().take(80).collect(),
                    known: "customer, vendor, change, maintenance, other",
                })?;
                plain("text", text)?;
                self.step(Status::Pending, By::Person)?;
                self.pending_reason = Some(reason);
                event(&format!("waits: {}", reason.as_str()), text)
            }
            Action::Resolve { code, text } => {
                required(
                    "code",
                    "say how it was resolved, in one word (fixed, workaround, false-alarm …)",
                    code,
                )?;
                let is_code = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
                if code.len() > CODE_BYTES_MAX || !code.chars().all(is_code) {
                    return Err(EditError::Unknown {
                        field: "code",
                        given: code.chars().take(80).collect(),
                        known: "the words of up to 40 letters, digits, - and _",
                    });
                }
                required("text", "say what was done", text)?;
                self.step(Status::Resolved, By::Person)?;
                self.resolution_code = Some(code.clone());
                self.resolution_text = Some(text.trim().to_owned());
                self.by_person.extend([Field::ResolutionCode, Field::ResolutionText]);
                event(&format!("resolved: {code}"), text)
            }
            Action::Reopen { text } => {
                plain("text", text)?;
                if self.status != Status::Resolved {
                    return Err(self.no_way(Status::InProgress));
                }
                self.step(Status::InProgress, By::Person)?;
                event("reopened", text)
            }
            Action::Cancel { text } => {
                plain("text", text)?;
                self.step(Status::Cancelled, By::Person)?;
                event("cancelled", text)
            }
            Action::Close => {
                self.step(Status::Closed, By::Person)?;
                event("closed", "")
            }
            Action::Set(fields) => self.set(fields)?,
        };
        Ok(line)
    }

    fn set(&mut self, fields: &Fields) -> Result<Line, EditError> {
        let given = |v: &Option<String>| v.as_deref().map(str::trim).filter(|v| !v.is_empty()).map(str::to_owned);
        let (group, owner) = (given(&fields.group), given(&fields.owner));
        let (impact, urgency) = (given(&fields.impact), given(&fields.urgency));
        if group.is_none() && owner.is_none() && impact.is_none() && urgency.is_none() {
            return Err(EditError::Missing {
                field: "fields",
                what: "name a group, a person, an impact or an urgency",
            });
        }
        let mut said = Vec::new();
        if group.is_some() || owner.is_some() {
            said.push(self.assign(group, owner)?);
        }
        if let Some(impact) = impact {
            self.impact = level("impact", &impact)?;
            self.by_person.insert(Field::Impact);
            said.push(format!("set impact to {}", self.impact));
        }
        if let Some(urgency) = urgency {
            self.urgency = level("urgency", &urgency)?;
            self.by_person.insert(Field::Urgency);
            said.push(format!("set urgency to {}", self.urgency));
        }
        Ok(Line::Event(said.join(", ")))
    }

    fn assign(&mut self, group: Option<String>, owner: Option<String>) -> Result<String, EditError> {
        for (field, name) in [("group", &group), ("owner", &owner)] {
            check_name(field, name.as_deref().unwrap_or_default())?;
        }
        let same_group = group.is_none() || group == self.group;
        let same_owner = owner.is_none() || owner == self.owner;
        match self.status {
            Status::New => self.step(Status::Assigned, By::Person)?,
            Status::InProgress if !(same_group && same_owner) => self.step(Status::Assigned, By::Person)?,
            // Who waits for a vendor can still change; the ticket goes on waiting.
            Status::Assigned | Status::InProgress | Status::Pending => {}
            status => {
                return Err(EditError::NotAssignable {
                    number: self.number,
                    status,
                });
            }
        }
        let mut to = Vec::new();
        if let Some(group) = group {
            to.push(group.clone());
            if owner.is_none() && !same_group {
                self.set_owner(None);
            }
            self.group = Some(group);
            self.by_person.insert(Field::Group);
        }
        if let Some(owner) = owner {
            to.push(owner.clone());
            self.set_owner(Some(&owner));
        }
        Ok(format!("assigned to {}", to.join(", ")))
    }

    fn set_owner(&mut self, owner: Option<&str>) {
        self.owner = owner.map(str::to_owned);
        self.by_person.insert(Field::Owner);
    }

    fn no_way(&self, to: Status) -> EditError {
        EditError::Status {
            number: self.number,
            from: self.status,
            to,
        }
    }

    fn step(&mut self, to: Status, by: By) -> Result<(), EditError> {
        if !self.status.goes_to(to, by) {
            return Err(self.no_way(to));
        }
        if self.status == Status::Pending {
            self.pending_reason = None;
        }
        self.status = to;
        Ok(())
    }

    /// To In progress, over Assigned where the table asks for it.
    fn walk_to_work(&mut self) -> Result<(), EditError> {
        match self.status {
            Status::InProgress => Ok(()),
            // From Resolved only by reopening, which says why.
            Status::Resolved => Err(self.no_way(Status::InProgress)),
            Status::New => {
                self.step(Status::Assigned, By::Person)?;
                self.step(Status::InProgress, By::Person)
            }
            _ => self.step(Status::InProgress, By::Person),
        }
    }

    /// A rule resolves, from wherever the table lets it; `false` when the ticket is past that.
    pub fn resolve_by_rule(&mut self, text: &str) -> bool {
        if self.step(Status::Resolved, By::Rule).is_err() {
            return false;
        }
        if !self.by_person.contains(&Field::ResolutionCode) {
            self.resolution_code = Some(CODE_RECOVERED.into());
            self.resolution_text = Some(text.to_owned());
        }
        true
    }

    /// A relapse: back to work when it was resolved; counted in any case.
    pub fn relapse(&mut self) {
        self.flaps = self.flaps.saturating_add(1);
        if self.status == Status::Resolved {
            self.step(Status::InProgress, By::Rule)
                .expect("resolved goes to in progress");
        }
    }

    /// What the incident is now; priority follows where no person fixed it.
    pub fn follow(&mut self, severity: Severity, services: &BTreeMap<String, Criticality>) {
        self.severity = severity;
        self.services.clone_from(services);
        if !self.by_person.contains(&Field::Urgency) {
            self.urgency = urgency_of(severity);
        }
        if !self.by_person.contains(&Field::Impact) {
            self.impact = impact_of(services.values().copied());
        }
    }
}

fn event(what: &str, text: &str) -> Line {
    match text.trim() {
        "" => Line::Event(what.to_owned()),
        text => Line::Event(format!("{what}: {text}")),
    }
}

fn level(field: &'static str, text: &str) -> Result<Level, EditError> {
    Level::parse(text).ok_or_else(|| EditError::Unknown {
        field,
        given: text.chars().take(80).collect(),
        known: "high, medium, low",
    })
}

fn plain(field: &'static str, text: &str) -> Result<(), EditError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(EditError::TooLong {
            field,
            bytes_max: TEXT_BYTES_MAX,
        });
    }
    if text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
        return Err(EditError::NotPlain { field });
    }
    Ok(())
}

fn required(field: &'static str, what: &'static str, text: &str) -> Result<(), EditError> {
    if text.trim().is_empty() {
        return Err(EditError::Missing { field, what });
    }
    plain(field, text)
}

fn check_name(field: &'static str, name: &str) -> Result<(), EditError> {
    if name.len() > NAME_BYTES_MAX {
        return Err(EditError::TooLong {
            field,
            bytes_max: NAME_BYTES_MAX,
        });
    }
    if name.chars().any(char::is_control) {
        return Err(EditError::NotPlain { field });
    }
    if name == MACHINE {
        return Err(EditError::ReservedName);
    }
    Ok(())
}

fn check_actor(actor: &str) -> Result<(), EditError> {
    if actor.trim().is_empty() {
        return Err(EditError::Missing {
            field: "actor",
            what: "say who acts",
        });
    }
    check_name("actor", actor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn the_status_table_is_the_one_on_the_page() {
        let mut shown = String::new();
        for from in Status::ALL {
            let to = |to: &Status| match (from.goes_to(*to, By::Person), from.goes_to(*to, By::Rule)) {
                (true, true) => Some(to.to_string()),
                (false, true) => Some(format!("{to} (auto)")),
                (false, false) => None,
                (true, false) => Some(format!("{to} (people only)")),
            };
            let to: Vec<_> = Status::ALL.iter().filter_map(to).collect();
            shown += &format!(
                "{from}: {}\n",
                if to.is_empty() { "final".into() } else { to.join(", ") }
            );
        }
        expect![[r#"
            new: assigned, resolved (auto), cancelled
            assigned: in_progress, pending, resolved, cancelled
            in_progress: assigned, pending, resolved
            pending: in_progress, resolved
            resolved: in_progress, closed
            closed: final
            cancelled: final
        "#]]
        .assert_eq(&shown);
    }

    #[test]
    fn words_read_back() {
        for s in Status::ALL {
            assert_eq!(Status::parse(s.as_str()), Some(s));
        }
        for r in PendingReason::ALL {
            assert_eq!(PendingReason::parse(r.as_str()), Some(r));
        }
    }
}

//! The outbox: what leaves the state machine, as keyed rows, and the life of one delivery.
//!
//! Pure: a function of (row, input, cluster time).
//!
//! Invariants
//! - A row ends after at most `attempts_max` leases: delivered, refused or given up.
//! - Only the holder of the last lease ends it; an older fencing token changes nothing.
//! - Of the messages to one place about one incident, the next is leased only after the one before it ended, so
//!   that a recovery never overtakes what it recovers from.
//!
//! A lease that runs out leaves open whether the message went: it is sent again (at least once), and counted.

use crate::event::IncidentState;
use crate::route::{Settings, Target};
use hindcast_env::planted::{Bug, planted};
use hindcast_env::reached::{Mark, reached};
use hindcast_model::{IncidentId, NodeId, Severity, SpanNs, TenantId, TicketId, TimestampNs};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Alerts that one message lists; it says how many more there are.
pub const NOTIFIED_ALERTS_MAX: usize = 20;
/// Of an error that is kept with a row.
pub const ERROR_BYTES_MAX: usize = 500;

/// The stable name of an effect: 32 hex digits. Receivers see it and can tell a repeat.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EffectKey(pub String);

impl EffectKey {
    pub fn new(
        tenant: &TenantId,
        incident: IncidentId,
        generation: u64,
        kind: EffectKind,
        receiver: &ReceiverRef,
        step: u64,
    ) -> Self {
        let mut h = blake3::Hasher::new_derive_key("hindcast 2026 effect key");
        for part in [tenant.as_str(), kind.as_str(), &receiver.name] {
            h.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        for number in [incident.0, generation, u64::from(receiver.channel), step] {
            h.update(&number.to_le_bytes());
        }
        Self(h.finalize().to_hex()[..32].to_owned())
    }
}

impl fmt::Display for EffectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One channel of a receiver: its name, and which of its entries.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ReceiverRef {
    pub name: String,
    pub channel: u32,
}

impl fmt::Display for ReceiverRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.name, self.channel)
    }
}

/// Why somebody is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EffectKind {
    Opened,
    /// The worst level rose.
    Raised,
    /// More alerts joined.
    Updated,
    /// Still open, nobody has taken it.
    Reminder,
    Reopened,
    Recovered,
}

impl EffectKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Raised => "raised",
            Self::Updated => "updated",
            Self::Reminder => "reminder",
            Self::Reopened => "reopened",
            Self::Recovered => "recovered",
        }
    }
}

/// Who works on something, until when, and the fencing token that proves it (the index of the command that gave it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub node: NodeId,
    pub token: u64,
    pub until: TimestampNs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EffectState {
    Pending,
    Leased,
    Delivered,
    /// The receiver said no for good.
    Refused,
    /// `attempts_max` were not enough.
    GaveUp,
}

impl EffectState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Leased => "leased",
            Self::Delivered => "delivered",
            Self::Refused => "refused",
            Self::GaveUp => "gave_up",
        }
    }

    pub const fn has_ended(self) -> bool {
        !matches!(self, Self::Pending | Self::Leased)
    }
}

/// What a message says: all of it, so that a channel never has to ask back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Notification {
    pub kind: EffectKind,
    pub tenant: TenantId,
    pub incident: IncidentId,
    pub generation: u64,
    pub title: String,
    pub state: IncidentState,
    /// Worst level of this generation.
    pub severity: Severity,
    pub opened_at: TimestampNs,
    /// When what it tells of happened.
    pub at: TimestampNs,
    pub flaps: u32,
    pub ticket: Option<TicketId>,
    /// At most `NOTIFIED_ALERTS_MAX`, firing ones first.
    pub alerts: Vec<NotifiedAlert>,
    pub alerts_total: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NotifiedAlert {
    pub id: String,
    pub rule: String,
    pub state: String,
    pub severity: Option<Severity>,
    pub value: f64,
    pub summary: String,
    pub description: String,
    pub labels: BTreeMap<String, String>,
}

/// One effect of the outbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EffectRow {
    pub key: EffectKey,
    pub tenant: TenantId,
    pub incident: IncidentId,
    pub generation: u64,
    pub kind: EffectKind,
    pub receiver: ReceiverRef,
    pub step: u64,
    pub target: Target,
    pub notification: Notification,
    pub state: EffectState,
    /// Leases so far: each may have sent the message.
    pub attempts: u32,
    pub attempts_max: u32,
    pub pause_first: SpanNs,
    pub pause_max: SpanNs,
    pub created_at: TimestampNs,
    /// Not before this; while leased: when the lease runs out.
    pub due: TimestampNs,
    pub lease: Option<Lease>,
    /// The message to the same place that must have ended first.
    pub after: Option<EffectKey>,
    pub last_error: String,
    pub receipt: Option<Receipt>,
    pub ended_at: Option<TimestampNs>,
}

/// What the far side gave for a delivered message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Names the message there: Slack's `channel/ts`, an SMTP answer, an HTTP status.
    pub id: String,
}

/// A leased effect with what a channel needs besides the row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sending {
    pub effect: EffectRow,
    pub token: u64,
    /// The first message of the thread: the effect itself, or an earlier one.
    pub thread_root: EffectKey,
    /// What the last delivered message of this generation left, for channels that edit in place.
    pub thread_receipt: Option<Receipt>,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    Delivered {
        receipt: Receipt,
    },
    /// Not now: the far side is away or busy.
    Retry {
        error: String,
    },
    /// Never: the far side says that the message itself is wrong.
    Refused {
        error: String,
    },
}

/// What came of asking for a lease.
#[derive(Clone, Debug, PartialEq)]
pub enum Take {
    Leased,
    /// Taken, not due, or behind another message.
    NotNow(String),
    /// Over: there is nothing to send.
    Ended,
    /// The last lease ran out and no attempt is left: the row has just been given up.
    GaveUp,
}

impl EffectRow {
    /// A node asks for the row. `before_ended`: whether the message before it has ended.
    pub fn take(&mut self, node: NodeId, token: u64, ttl: SpanNs, before_ended: bool, now: TimestampNs) -> Take {
        match self.state {
            EffectState::Delivered | EffectState::Refused | EffectState::GaveUp => Take::Ended,
            EffectState::Leased if now < self.due => {
                let by = self.lease.map_or(NodeId(0), |l| l.node);
                Take::NotNow(format!("node {by} has it until {}", self.due.as_ms()))
            }
            EffectState::Leased if self.attempts >= self.attempts_max => {
                self.end(EffectState::GaveUp, now);
                if self.last_error.is_empty() {
                    self.last_error = "the last lease ran out without an answer".into();
                }
                Take::GaveUp
            }
            EffectState::Pending if now < self.due => Take::NotNow(format!("it is due at {}", self.due.as_ms())),
            EffectState::Pending if !before_ended => {
                Take::NotNow("an earlier message to this place is under way".into())
            }
            EffectState::Pending | EffectState::Leased => {
                if self.state == EffectState::Leased {
                    reached(Mark::LeaseTakenOver);
                }
                self.attempts += 1;
                self.state = EffectState::Leased;
                let until = now + ttl;
                self.lease = Some(Lease { node, token, until });
                self.due = until;
                if planted(Bug::DoneBeforeSend) {
                    self.end(EffectState::Delivered, now);
                }
                Take::Leased
            }
        }
    }

    /// The holder of lease `token` tells how it went. `false`: the lease is not the row's, nothing changed.
    pub fn finish(&mut self, token: u64, outcome: Outcome, now: TimestampNs) -> bool {
        let holds = self.state == EffectState::Leased && self.lease.is_some_and(|l| l.token == token);
        if !holds {
            reached(Mark::OldTokenRefused);
            return false;
        }
        match outcome {
            Outcome::Delivered { receipt } => {
                self.receipt = Some(receipt);
                self.last_error.clear();
                self.end(EffectState::Delivered, now);
            }
            Outcome::Refused { error } => {
                self.last_error = shortened(error);
                self.end(EffectState::Refused, now);
            }
            Outcome::Retry { error } => {
                self.last_error = shortened(error);
                if self.attempts >= self.attempts_max {
                    self.end(EffectState::GaveUp, now);
                } else {
                    self.state = EffectState::Pending;
                    self.lease = None;
                    // Doubling, so that a struggling mail server gets room to recover.
                    let pause = self.pause_first.doubled(self.attempts - 1);
                    self.due = now + pause.min(self.pause_max);
                }
            }
        }
        true
    }

    /// Nobody has been told yet and nobody is telling: what it says may still change.
    pub fn is_untouched(&self) -> bool {
        self.state == EffectState::Pending && self.attempts == 0
    }

    fn end(&mut self, state: EffectState, now: TimestampNs) {
        self.state = state;
        self.lease = None;
        self.ended_at = Some(now);
    }

    pub fn with_settings(mut self, settings: &Settings) -> Self {
        self.attempts_max = settings.delivery_attempts_max;
        self.pause_first = settings.delivery_pause_first;
        self.pause_max = settings.delivery_pause_max;
        self
    }
}

fn shortened(mut text: String) -> String {
    if text.len() > ERROR_BYTES_MAX {
        let cut = (0..=ERROR_BYTES_MAX).rev().find(|i| text.is_char_boundary(*i));
        text.truncate(cut.unwrap_or(0));
    }
    text
}

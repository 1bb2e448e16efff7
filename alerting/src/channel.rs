//! How a message leaves: the seam between the outbox and whatever can carry a message.
//!
//! The gateway owns the trait; `hindcast-notify` implements it for email, Slack and webhooks, tests record.

use crate::outbox::{Receipt, Sending};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Why a message did not go, in the words of whoever will read the outbox.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The far side is away, slow or full: try again later. The message may have gone.
    #[error("{0}")]
    Busy(String),
    /// The far side, or our own configuration, says no: trying again changes nothing.
    #[error("{0}")]
    Rejected(String),
}

/// Something that carries messages to one kind of place.
#[async_trait::async_trait]
pub trait Channel: Send + Sync {
    /// Sends one message. A repeat of the same effect key must be recognisable to the receiver.
    async fn send(&self, sending: &Sending) -> Result<Receipt, SendError>;
}

/// Channels by the name that a target gives (`Target::channel`).
#[derive(Clone, Default)]
pub struct Channels(BTreeMap<&'static str, Arc<dyn Channel>>);

impl Channels {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn with(mut self, name: &'static str, channel: Arc<dyn Channel>) -> Self {
        self.0.insert(name, channel);
        self
    }

    pub fn get(&self, name: &str) -> Option<Arc<dyn Channel>> {
        self.0.get(name).cloned()
    }
}

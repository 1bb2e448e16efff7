//! What really sends: SMTP through lettre, Slack's Web API through slack-morphism, HTTP through hyper.

mod email;
mod secret;
mod slack;
mod webhook;

pub use email::EmailChannel;
pub use slack::SlackChannel;
pub use webhook::WebhookChannel;

use hindcast_alerting::Channels;
use std::sync::Arc;
use std::time::Duration;

/// How long one step of a conversation (connect, one command, one answer) may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// All channels of this crate, by the names that targets give.
pub fn channels() -> Channels {
    Channels::new()
        .with("email", Arc::new(EmailChannel))
        .with("slack", Arc::new(SlackChannel))
        .with("webhook", Arc::new(WebhookChannel))
}

//! Channels to people and programs: email, Slack, webhook.
//!
//! `message` says what a notification reads like, `address` where a webhook may go; both are pure. `io` sends.
//! Promises: a repeat of an effect carries the same key (`Message-ID`, Slack metadata, `X-Hindcast-Key`); no text
//! from labels or templates becomes a header, a mention or markup; no secret is shown by `Debug` or in an error.

pub mod address;
pub mod io;
pub mod message;

pub use io::{EmailChannel, SlackChannel, WebhookChannel, channels};

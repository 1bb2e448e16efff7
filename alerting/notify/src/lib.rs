//! Channels: email, Slack, webhook

//! Outbound service desks, each a channel behind the outbox

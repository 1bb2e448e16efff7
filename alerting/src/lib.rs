//! Rules, alerts, incidents, routes, outbox: the gateway part of the meta machine

pub mod event;

//! Rules, alerts, incidents, routes, outbox: the gateway part of the meta machine

pub mod command;
pub mod event;
pub mod expr;
pub mod outbox;
pub mod route;
pub mod rule;
pub mod template;

//! Rules, alerts, incidents, routes, outbox: the gateway part of the meta machine.
//!
//! `command` says what can be asked of it, `gateway` does it, `rows` is what it remembers and how others read it;
//! `rule`, `alert`, `incident`, `route`, `outbox` and `template` decide. `io` holds the shells: who evaluates,
//! who delivers, who writes History, and the faces over gRPC and HTTP.

pub mod alert;
pub mod channel;
pub mod command;
pub mod event;
pub mod expr;
pub mod fuzz;
pub mod gateway;
pub mod incident;
pub mod io;
pub mod outbox;
pub mod route;
pub mod rows;
pub mod rule;
pub mod template;
pub mod view;

pub use channel::{Channel, Channels, SendError};
pub use command::{CutOf, Evaluation, GATEWAY_PART, GatewayCommand, GatewayReply, GroupKey, RuleResult};
pub use gateway::GatewayPart;

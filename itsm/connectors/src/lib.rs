//! Other companies' desks: our ticket as theirs, made there once and kept up to date.
//!
//! `mapping` turns a ticket into a request of a desk that speaks JSON over HTTP, with configurable field names;
//! `reconcile` decides what to ask next, so that a crash or a lost answer never makes a second ticket. Both are pure:
//! whoever sends is the outbox. No desk of a particular maker is here yet.

pub mod mapping;
pub mod reconcile;

pub use mapping::{DeskFields, Method, RemoteKey, RemoteRequest, RemoteTicket};
pub use reconcile::{Answer, Found, Next, Reconcile};

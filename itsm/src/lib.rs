//! The service desk: tickets that people work on, made and kept up to date by what happens to incidents.
//!
//! The core is pure: `ticket` (status machine and fields), `priority`, `thread`, `audit`, `words`, and `desk`, the part of
//! the meta machine that puts them together over its rows. `io` holds the gRPC service and the HTTP routes.
//!
//! Invariants
//! - At most one ticket is open per incident generation. Numbers rise by one and are never reused.
//! - What a person set is not overwritten by a machine.
//! - Every change has one audit record, chained by hash over all tickets of this desk, and one History line.
//! - What the gateway reports is never refused here: one refusal would take the alert change down with it.
//!
//! Absent so far: SLA clocks and calendars, therefore closing three working days after the resolution; merging.

pub mod audit;
pub mod desk;
pub mod io;
pub mod priority;
pub mod rows;
pub mod thread;
pub mod ticket;
pub mod view;
pub mod words;

pub use audit::{AuditRecord, BrokenChain, verify_chain};
pub use desk::{DESK_PART, DeskCommand, DeskPart, Edit, EditReply};
pub use io::grpc::desk_service;
pub use io::http::router;
pub use priority::{Level, Priority};
pub use ticket::{Action, EditError, FieldConflict, PendingReason, Status, Ticket};
pub use view::{TicketFilter, TicketView, get_ticket, list_tickets};

//! SNMP: devices that are polled, and what they send by themselves.
//!
//! What is asked, said and believed is decided in `hindcast_snmp`; here are the files and the sockets. When a device is due, and
//! which node's it is, decides the pool of targets: [`super::scrape`] asks here instead of over HTTP.

mod files;
mod names;
mod poll;
mod queue;
#[cfg(test)]
mod tests;
mod traps;

pub use files::{Devices, LoadError, load};
pub(super) use poll::poll;
pub use poll::{PollStats, Polling};
pub use traps::{BoundTraps, TrapStats, Traps};

//! SNMP, as far as devices are watched with it: versions 2c and 3, asking and being told.
//!
//! Pure: datagrams, texts of files, secrets and the time in; datagrams, samples and lines out. Sockets and files are the shell's
//! (`hindcast_node::io::servers::snmp`).
//!
//! - [`ber`] and [`oid`] are the encoding, [`pdu`] what is asked and answered and the message of version 2c.
//! - [`usm`] is version 3: users, their keys, and the message that they sign and encrypt.
//! - [`session`] asks one device: it finds its engine, signs, and tells answers from what is none.
//! - [`panel`] is the list of what is asked for, [`poll`] asks for it, step by step, and makes samples of it.
//! - [`config`] reads the list of devices.
//! - [`trap`] hears traps and informs, [`line`] makes a line of one.
//!
//! Promises
//! - No datagram panics, or takes more memory than a small multiple of its own length.
//! - What is not signed as it should be, or is too old, is refused with a reason.
//! - A list of devices is taken whole or not at all. Secrets are never shown.

pub mod ber;
pub mod config;
#[doc(hidden)]
pub mod fuzz;
pub mod line;
pub mod oid;
pub mod panel;
pub mod pdu;
pub mod poll;
pub mod session;
pub mod trap;
pub mod usm;

pub use config::{Device, SnmpConfig};
pub use oid::Oid;
pub use pdu::{Pdu, Value};

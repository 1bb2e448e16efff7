//! One node: routing, write path, shard machine, peer transport, write servers.

pub mod io;
pub mod write;

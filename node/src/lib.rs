//! Routing, write path, shard machine, peer transport, write servers

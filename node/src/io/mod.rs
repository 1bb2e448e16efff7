//! The shells of this crate: sockets, timers, threads.
pub mod admission;
pub mod cold;
pub mod cuts;
pub mod disk_watch;
pub mod identity;
pub mod members;
pub mod memory_watch;
pub mod meta_client;
pub mod node;
pub mod peers;
pub mod servers;
pub mod snapshots;
pub mod tls;
pub mod under_way;
pub mod whereabouts;
pub mod writer;

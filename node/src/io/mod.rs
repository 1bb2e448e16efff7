//! The shells of this crate: sockets, timers, threads.

//! Whole clusters in one thread: the real cores of replication, log, shards, meta group, alert gateway and desk over a
//! simulated disk, network and clock. One seed gives one run, always the same.
//!
//! `plan` draws from the seed what a run is made of: nodes, sizes, faults and how strong they are. `world` is the
//! scheduler, a heap of events in virtual time. `node` does what a node's threads do, event by event. `writers` and
//! `desk` are the clients. `check` holds the invariants; one that does not hold ends the run with a reason. `campaign`
//! runs many seeds.
//!
//! The shells around the cores (sockets, threads, sled) are not here: they are tested on real processes.

pub mod campaign;
pub mod check;
pub mod desk;
pub mod log_rot;
pub mod members;
pub mod node;
pub mod older;
pub mod pins;
pub mod plan;
pub mod world;
pub mod writers;

pub use plan::Plan;
pub use world::{Grown, Report, grow, run};

/// Seeds that once failed.
pub fn kept_seeds() -> Vec<u64> {
    let lines = include_str!("../regressions.seeds").lines();
    let seeds = lines
        .filter_map(|l| l.split('#').next())
        .map(str::trim)
        .filter(|l| !l.is_empty());
    seeds
        .map(|l| l.parse().expect("a line of regressions.seeds is a number"))
        .collect()
}

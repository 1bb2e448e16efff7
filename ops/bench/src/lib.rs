//! Load generator and measuring tool: what a cluster takes, how fast it answers, what that costs.
//!
//! Everything but `io` is a function of its arguments: the made-up fleet, the bodies, the figures.

pub mod body;
pub mod cli;
pub mod fleet;
pub mod io;
pub mod latency;
pub mod outcome;
pub mod proc;
pub mod report;

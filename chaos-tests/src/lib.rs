//! Tests on real processes: nodes that are started, killed and asked; and the checks of what they promise.

pub mod history;
pub mod process;
pub mod workload;

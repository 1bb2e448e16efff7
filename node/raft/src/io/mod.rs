//! The shell of replication: threads, sled, and the door through which the rest of the node uses both.

mod host;
mod log_thread;
mod logger;
mod raft_thread;
mod sled_store;
mod times;
mod worker;
mod workshop;

pub use host::{
    GroupSpec, GroupStatus, Leadership, LeadershipWatch, ProposeError, RaftConfig, RaftError, RaftHost, RaftQueues,
    ReadError, Transport,
};
pub use sled_store::{SledConfig, SledStore, SledStores};
pub use times::{Times, TimesSeen};

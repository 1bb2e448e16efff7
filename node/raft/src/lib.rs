//! Replication: the raft-rs driver, the segmented log, the meta machine and its store, Raft snapshots.

pub mod driver;
#[doc(hidden)]
pub mod fuzz;
pub mod io;
pub mod local_meta;
pub mod log;
pub mod log_start;
pub mod log_view;
pub mod machine;
pub mod mem_store;
pub mod members;
pub mod meta;
pub mod meta_machine;
pub mod meta_snapshot;
pub mod record;
pub mod wire;

pub use driver::Role;
pub use io::{
    GroupSpec, GroupStatus, Leadership, LeadershipWatch, ProposeError, RaftConfig, RaftError, RaftHost, ReadError,
    SledConfig, SledStore, SledStores, Transport,
};
pub use local_meta::LocalMeta;
pub use log::LogConfig;
pub use machine::{Entry, Machine, MachineError, SnapshotCheck, Work, WorkKind};
pub use mem_store::{MemStore, MemStores};
pub use members::{MemberStep, PeerProgress};
pub use meta::{
    ApplyContext, Changes, HistoryLine, MachineCommand, Meta, MetaCommand, MetaError, MetaRead, MetaStore,
    MetaStoreError, MetaTx, Part, PartInput, PartOutput, Refusal,
};
pub use meta_machine::{
    LeftwardRow, MetaFile, MetaMachine, MetaMachineConfig, MetaReply, StoreFactory, decode_reply, history_rows,
    leftward_rows, stored_clock,
};
pub use wire::WireMessage;

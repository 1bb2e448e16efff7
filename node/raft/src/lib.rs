//! Replication: the raft-rs driver, the segmented log, the meta machine and its store, Raft snapshots.

pub mod machine;
pub mod meta;

pub use machine::{Entry, Machine, MachineError};
pub use meta::{
    ApplyContext, Changes, HistoryLine, MachineCommand, Meta, MetaCommand, MetaError, MetaRead, MetaStore,
    MetaStoreError, MetaTx, Part, PartInput, PartOutput, Refusal,
};

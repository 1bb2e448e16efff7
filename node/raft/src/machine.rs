//! What a Raft group replicates: the seam between the driver and the state machines.

use bytes::Bytes;
use hindcast_env::DiskError;
use std::sync::Arc;

/// One committed entry. `data` is never empty: raft's own empty entries stop at the driver.
#[derive(Clone, Debug)]
pub struct Entry {
    pub index: u64,
    pub term: u64,
    pub data: Bytes,
}

/// Why a machine cannot go on. The node stops: its copy can no longer be trusted to follow the others.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("the stored state does not verify: {0}")]
    Damaged(String),
}

/// What a piece of work is for: each kind has a thread of its own, so that a long merge holds up no flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkKind {
    /// Writes memory to disk, so that the log can be cut.
    Flush,
    /// Makes files fewer and smaller.
    Merge,
}

/// Work that `maintain` began and that needs the machine no more: done on any thread, and never twice.
pub struct Work {
    pub kind: WorkKind,
    pub run: Box<dyn FnOnce() + Send>,
}

/// Tells whether the files in a folder are what a peer's `export` wrote; asked on any thread.
pub type SnapshotCheck = Arc<dyn Fn(&str) -> Result<(), MachineError> + Send + Sync>;

/// A replicated state machine. Owned by one apply worker; never awaits. Deterministic: same entries, same state.
pub trait Machine: Send {
    /// Index of the last entry that the state holds, in memory or on disk. After open: where the log continues.
    fn applied(&self) -> u64;

    /// Applies the next entry and returns what its proposer is told. Bad content is an answer, never an error.
    fn apply(&mut self, entry: &Entry) -> Result<Bytes, MachineError>;

    /// The index up to which the state is on disk outside the log; the log may be cut up to it.
    fn durable(&self) -> u64;

    /// Called between applies, often: the place to begin flushes and merges, to put in force what they wrote, and to
    /// drop. Must return soon; what takes long is handed to `begin`, and a later call sees its end. After an error of
    /// a full disk everything is as it was, and the call is made again a little later.
    fn maintain(&mut self, begin: &mut dyn FnMut(Work)) -> Result<(), MachineError>;

    /// Asked before `export`, between applies, until it says yes: what would take long then is better done beside the applies.
    fn is_ready_to_export(&mut self) -> bool {
        true
    }

    /// Writes the whole state at `applied()` as synced files (no folders) into `dir`, which exists and is empty.
    /// After this `durable()` may still be lower: a Raft snapshot for a peer is not our own checkpoint.
    fn export(&mut self, dir: &str) -> Result<(), MachineError>;

    /// How files of a peer are checked before `install` is asked for. The transport shows that they came as they were
    /// read; this, that what was read there is what was written there.
    fn snapshot_check(&self) -> SnapshotCheck;

    /// Replaces the state by the files in `dir` (written by `export` on a peer, checked by `snapshot_check`),
    /// durably: afterwards `applied()` and `durable()` are `index`. After an error of a full disk everything is as it was, the
    /// files included, and the call is made again a little later.
    fn install(&mut self, dir: &str, index: u64) -> Result<(), MachineError>;

    /// Gives up the whole state, durably, and the room that it took: afterwards `applied()` and `durable()` are 0. Asked only of a
    /// copy that its group does not count any more.
    fn forget(&mut self) -> Result<(), MachineError>;

    /// Digest of the logical state at `applied()` (I3): equal on all nodes, whatever their files look like.
    fn digest(&self) -> [u8; 32];
}

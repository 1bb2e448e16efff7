//! What storage operations cannot do, in the caller's words.

use hindcast_env::DiskError;
use hindcast_model::{Class, Classify, GroupId};

/// Bytes that are not what was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}, bytes {from}..{to}: {why}")]
pub struct Damage {
    pub file: String,
    pub from: u64,
    pub to: u64,
    pub why: String,
}

/// Why a shard could not be opened, flushed, merged, exported or installed. What was durable before still is.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("the shard's files are damaged ({0}); rebuild this replica from a snapshot of a peer")]
    Damaged(#[from] Damage),
    #[error("{dir} holds data of group {found}, not of group {expected}; check which folder belongs to which shard")]
    WrongGroup {
        dir: String,
        found: GroupId,
        expected: GroupId,
    },
    #[error("{file} has format version {found}, newer than {known}; start the release that wrote it")]
    FromTheFuture { file: String, found: u16, known: u16 },
    #[error("the snapshot in {dir} is of index {applied}, after index {index} that was asked for; send another one")]
    SnapshotTooNew { dir: String, applied: u64, index: u64 },
    #[error("{dir} holds no snapshot; send one")]
    NoSnapshot { dir: String },
    #[error("{dir} has files in a cold store ({name} is one), and none is configured; name it with --cold-store")]
    NoColdStore { dir: String, name: String },
}

impl Classify for StorageError {
    fn class(&self) -> Class {
        match self {
            Self::Disk(e) if e.is_full() => Class::RetryLater,
            Self::Disk(_) | Self::Damaged(_) | Self::SnapshotTooNew { .. } | Self::NoSnapshot { .. } => {
                Class::Unavailable
            }
            Self::NoColdStore { .. } => Class::FixRequest,
            Self::WrongGroup { .. } | Self::FromTheFuture { .. } => Class::Internal,
        }
    }
}

/// Why a read got no answer. Damaged data is never part of one.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("index {as_of} is no recorded cut of this shard (applied: {applied}; the last cut before it: {})",
        .before.map_or("none".to_owned(), |c| c.to_string()))]
    NoCut {
        as_of: u64,
        applied: u64,
        before: Option<u64>,
    },
    #[error("stored data is damaged ({0}); ask another replica and repair this one")]
    Damaged(#[from] Damage),
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl Classify for ReadError {
    fn class(&self) -> Class {
        match self {
            Self::NoCut { .. } => Class::FixRequest,
            Self::Damaged(_) | Self::Disk(_) => Class::Unavailable,
        }
    }
}

impl From<ReadError> for StorageError {
    fn from(e: ReadError) -> Self {
        match e {
            ReadError::Damaged(d) => Self::Damaged(d),
            ReadError::Disk(d) => Self::Disk(d),
            ReadError::NoCut { .. } => unreachable!("our own reads ask for everything"),
        }
    }
}

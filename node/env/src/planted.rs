//! Known bugs, compiled in with the feature `planted-bugs` only and switched on one at a time: the proof that the
//! simulator finds what it is there to find. Without the feature every question here is a constant `false`.

#[cfg(feature = "planted-bugs")]
use std::cell::Cell;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Votes and append answers leave before what they promise is on disk.
    ReplyBeforeSync,
    /// A vote is given and not written.
    VoteNotPersisted,
    /// A new file is synced, its name is not.
    NoDirSync,
    /// A read is served at whatever was applied here.
    ReadWithoutIndex,
    /// A snapshot for a peer comes without the dedup table.
    SnapshotDropsDedup,
    /// A node that starts again counts members as they were when its state was saved.
    RemovedStillCounts,
    /// An effect ends when it is leased.
    DoneBeforeSend,
    /// The log is cut up to what is applied, whether or not it is on disk elsewhere.
    TruncateBeyondDurable,
}

impl Bug {
    pub const ALL: [Self; 8] = [
        Self::ReplyBeforeSync,
        Self::VoteNotPersisted,
        Self::NoDirSync,
        Self::ReadWithoutIndex,
        Self::SnapshotDropsDedup,
        Self::RemovedStillCounts,
        Self::DoneBeforeSend,
        Self::TruncateBeyondDurable,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ReplyBeforeSync => "reply-before-sync",
            Self::VoteNotPersisted => "vote-not-persisted",
            Self::NoDirSync => "no-dir-sync",
            Self::ReadWithoutIndex => "read-without-index",
            Self::SnapshotDropsDedup => "snapshot-drops-dedup",
            Self::RemovedStillCounts => "removed-still-counts",
            Self::DoneBeforeSend => "done-before-send",
            Self::TruncateBeyondDurable => "truncate-beyond-durable",
        }
    }

    /// A seed that finds it must be among so many.
    pub const fn seeds_max(self) -> u64 {
        match self {
            Self::ReplyBeforeSync | Self::ReadWithoutIndex | Self::TruncateBeyondDurable => 300,
            Self::NoDirSync | Self::RemovedStillCounts | Self::DoneBeforeSend => 1_000,
            Self::VoteNotPersisted | Self::SnapshotDropsDedup => 5_000,
        }
    }
}

#[cfg(feature = "planted-bugs")]
thread_local! {
    static ON: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Whether the code is to be wrong here.
#[cfg(feature = "planted-bugs")]
pub fn planted(bug: Bug) -> bool {
    ON.get() == Some(bug)
}

/// Whether the code is to be wrong here: never, in this build.
#[cfg(not(feature = "planted-bugs"))]
pub const fn planted(_: Bug) -> bool {
    false
}

/// Switches a bug on for this thread, until the guard goes. Has no effect without the feature.
#[must_use]
pub fn switch_on(bug: Bug) -> On {
    #[cfg(feature = "planted-bugs")]
    ON.set(Some(bug));
    let _ = bug;
    On(())
}

pub struct On(());

impl Drop for On {
    fn drop(&mut self) {
        #[cfg(feature = "planted-bugs")]
        ON.set(None);
    }
}

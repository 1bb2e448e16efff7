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
    /// A client hears that its batch is stored when the leader has proposed it.
    AckBeforeCommit,
    /// The number of a new incident comes from a counter of the process, not from the rows.
    NumberOutsideLog,
    /// A node whose disk was replaced by an empty one comes back under the id that it had.
    WipedKeepsId,
    /// What is read from a file is taken as it comes.
    CrcNotChecked,
    /// A pin holds nothing against retention.
    RetentionIgnoresPins,
    /// A node whose log ends before what it had confirmed goes on.
    WatermarkIgnored,
}

impl Bug {
    pub const ALL: [Self; 14] = [
        Self::ReplyBeforeSync,
        Self::VoteNotPersisted,
        Self::NoDirSync,
        Self::ReadWithoutIndex,
        Self::SnapshotDropsDedup,
        Self::RemovedStillCounts,
        Self::DoneBeforeSend,
        Self::TruncateBeyondDurable,
        Self::AckBeforeCommit,
        Self::NumberOutsideLog,
        Self::WipedKeepsId,
        Self::CrcNotChecked,
        Self::RetentionIgnoresPins,
        Self::WatermarkIgnored,
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
            Self::AckBeforeCommit => "ack-before-commit",
            Self::NumberOutsideLog => "number-outside-log",
            Self::WipedKeepsId => "wiped-keeps-id",
            Self::CrcNotChecked => "crc-not-checked",
            Self::RetentionIgnoresPins => "retention-ignores-pins",
            Self::WatermarkIgnored => "watermark-ignored",
        }
    }

    /// A seed that finds it must be among so many.
    pub const fn seeds_max(self) -> u64 {
        match self {
            Self::NumberOutsideLog => 30,
            Self::ReplyBeforeSync
            | Self::ReadWithoutIndex
            | Self::TruncateBeyondDurable
            | Self::AckBeforeCommit
            | Self::CrcNotChecked
            | Self::RetentionIgnoresPins => 300,
            Self::NoDirSync
            | Self::RemovedStillCounts
            | Self::DoneBeforeSend
            | Self::WipedKeepsId
            | Self::WatermarkIgnored => 1_000,
            Self::VoteNotPersisted | Self::SnapshotDropsDedup => 5_000,
        }
    }
}

#[cfg(feature = "planted-bugs")]
thread_local! {
    static ON: Cell<Option<Bug>> = const { Cell::new(None) };
    static COUNTED: Cell<u64> = const { Cell::new(0) };
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

/// A number that no log knows of, one higher each time.
#[cfg(feature = "planted-bugs")]
pub fn number_of_this_process() -> u64 {
    COUNTED.set(COUNTED.get() + 1);
    COUNTED.get()
}

/// Nobody asks for it in this build.
#[cfg(not(feature = "planted-bugs"))]
pub const fn number_of_this_process() -> u64 {
    0
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

//! Places that a campaign of the simulator must come by: a campaign that never gets there says nothing about what they do.
//!
//! Without the feature `simulated` nothing is counted.

#[cfg(feature = "simulated")]
use std::cell::RefCell;

macro_rules! marks {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mark {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Mark {
            pub const ALL: &[Self] = &[$(Self::$name,)+];
        }
    };
}

marks! {
    /// A copy found that it lost what it had confirmed, and takes no more part.
    Quarantined,
    /// Such a copy began again without a log.
    BeganAgain,
    /// It ended between the two halves of that.
    GivenUpHalf,
    /// A copy that was needed no more forgot what it had.
    Forgotten,
    /// It answered entries with a request for a snapshot.
    SnapshotAskedFor,
    /// The snapshot that it waited for is in force.
    Rebuilt,
    /// A crash came between the machine's files and the log's new start; the log was made to begin there at the start.
    InstallMadeUpFor,
    /// A snapshot came and nobody had use for it.
    SnapshotNeedless,
    /// A learner that was far behind waited for its next share of the log.
    CatchUpPaced,
    /// A follower's read was answered without another round of heartbeats.
    ReadAnsweredAtOnce,
    /// A joint membership stayed, and the watchdog proposed its end.
    JointEndedByWatchdog,
    /// A leader or candidate that found itself taken out stepped down.
    RemovedSteppedDown,
    /// Another entry took the place of a proposal.
    ProposalLost,
    /// A snapshot covered the place of a proposal.
    ProposalUnknown,
    /// A log was damaged before its end and went aside.
    LogSetAside,
    /// The last segment of a log ended in a round that was half written.
    TornRound,
    /// A group that lags had its entries copied to the head of the log.
    LogCopiedForward,
    /// A batch that came again was known.
    DuplicateAnswered,
    /// Ids of a part did not hold any more; it had to come again with definitions.
    PartStale,
    /// Entries waited for a flush.
    ApplyWaited,
    /// The rows of the meta group were built again from snapshot file and log.
    RowsRebuilt,
    /// The newest manifest of a shard was damaged, and the one before was taken.
    ManifestBefore,
    /// The lease of an effect ran out, and another node took it.
    LeaseTakenOver,
    /// Who had lost its lease told how it went, and changed nothing.
    OldTokenRefused,
    /// The end of a log was lost without its node being able to know.
    TailTaken,
    /// A node whose log was damaged has again what it had.
    MadeWhole,
}

/// How often each was come by, in the order of [`Mark::ALL`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reached(Vec<u64>);

impl Reached {
    pub fn times(&self, mark: Mark) -> u64 {
        self.0.get(mark as usize).copied().unwrap_or(0)
    }

    pub fn add(&mut self, other: &Self) {
        let sum = |mark: &Mark| self.times(*mark) + other.times(*mark);
        self.0 = Mark::ALL.iter().map(sum).collect();
    }

    pub fn missed(&self) -> Vec<Mark> {
        Mark::ALL.iter().copied().filter(|m| self.times(*m) == 0).collect()
    }
}

#[cfg(feature = "simulated")]
thread_local! {
    static COUNTED: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Counts that this thread was here.
#[cfg(feature = "simulated")]
pub fn reached(mark: Mark) {
    COUNTED.with_borrow_mut(|counted| {
        counted.resize(Mark::ALL.len(), 0);
        counted[mark as usize] += 1;
    });
}

/// Counts nothing, in this build.
#[cfg(not(feature = "simulated"))]
pub const fn reached(_: Mark) {}

/// What this thread came by since it was asked last.
pub fn take() -> Reached {
    #[cfg(feature = "simulated")]
    return Reached(COUNTED.take());
    #[cfg(not(feature = "simulated"))]
    Reached::default()
}

//! Places in the cores where a simulation may do at once, or in the smallest amount, what otherwise comes rarely: what is right
//! must be right then, too. Each seed draws which of them are in force, and how often.
//!
//! Without the feature `simulated` every question here is a constant `false`; with it, outside of a simulation, none is in force.
//! A command that replicas apply must not depend on an answer.

#[cfg(feature = "simulated")]
use crate::rng::{Rng as _, SeededRng};
#[cfg(feature = "simulated")]
use std::cell::RefCell;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// Proposals that wait go to raft one by one, not together.
    LoneProposals,
    /// A member asks for votes although its leader is well.
    EarlyElection,
    /// The log is cut at once up to what nobody needs: who is behind gets a snapshot.
    NoTail,
    /// One append is on its way to a follower, not many.
    OneAppend,
    /// A joint membership does not end by itself.
    JointStays,
    /// A segment of the log ends although it has room.
    ShortSegment,
    /// What is in memory is written out although there is room.
    EarlyFlush,
    /// Files are merged without a pause.
    EarlyMerge,
    /// A snapshot of the meta group is made after few commands.
    EarlySnapshot,
}

impl Point {
    pub const ALL: [Self; 9] = [
        Self::LoneProposals,
        Self::EarlyElection,
        Self::NoTail,
        Self::OneAppend,
        Self::JointStays,
        Self::ShortSegment,
        Self::EarlyFlush,
        Self::EarlyMerge,
        Self::EarlySnapshot,
    ];
}

/// Each point that is in force, and of how many questions about one is answered with yes.
pub type Bends = Vec<(Point, u64)>;

#[cfg(feature = "simulated")]
struct InForce {
    one_in: [u64; Point::ALL.len()],
    rng: SeededRng,
}

#[cfg(feature = "simulated")]
thread_local! {
    static IN_FORCE: RefCell<Option<InForce>> = const { RefCell::new(None) };
}

/// Whether the code is to do the rare thing here, now.
#[cfg(feature = "simulated")]
pub fn buggify(point: Point) -> bool {
    IN_FORCE.with_borrow_mut(|in_force| {
        let Some(b) = in_force else { return false };
        let one_in = b.one_in[point as usize];
        one_in > 0 && b.rng.below(one_in) == 0
    })
}

/// Whether the code is to do the rare thing here: never, in this build.
#[cfg(not(feature = "simulated"))]
pub const fn buggify(_: Point) -> bool {
    false
}

/// Puts points in force for this thread, until the guard goes. Has no effect without the feature.
#[must_use]
pub fn put_in_force(bends: &Bends, seed: u64) -> Guard {
    #[cfg(feature = "simulated")]
    {
        let mut one_in = [0; Point::ALL.len()];
        for (point, of) in bends {
            one_in[*point as usize] = *of;
        }
        let rng = SeededRng::new(seed);
        IN_FORCE.set(Some(InForce { one_in, rng }));
    }
    let _ = (bends, seed);
    Guard(())
}

pub struct Guard(());

impl Drop for Guard {
    fn drop(&mut self) {
        #[cfg(feature = "simulated")]
        IN_FORCE.set(None);
    }
}

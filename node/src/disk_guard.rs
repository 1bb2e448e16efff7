//! Whether the disk has room for further writes: refuses them while there still is room for everything else.
//!
//! What is kept free (the reserve) lets the node go on without new data: Raft's own records, the meta group's rows,
//! flushes of what memory holds, manifests, merges that give room back. A node whose Raft log cannot be written stops.
//!
//! Invariants
//! - Below the reserve writes are refused at once.
//! - They are taken again only after there were `REOPEN_ABOVE` more than that for `REOPEN_SPAN`: a disk that fills
//!   and empties by a few bytes does not make senders flap.

use hindcast_model::SpanNs;

/// Kept free unless the operator says otherwise, on disks of more than ten times that.
pub const RESERVE_BYTES_DEFAULT: u64 = 1 << 30;
/// Smaller disks keep this share free, but not less than [`RESERVE_BYTES_MIN`].
const RESERVE_SHARE: u64 = 10;
/// What one flush of every shard, a segment of the Raft log and a merge may take together, about.
const RESERVE_BYTES_MIN: u64 = 128 << 20;
/// On a disk smaller than that, half of it.
const RESERVE_SHARE_MOST: u64 = 2;
/// This part of the reserve must be free besides it before writes are taken again.
const REOPEN_ABOVE: u64 = 4;
/// And for so long.
pub const REOPEN_SPAN: SpanNs = SpanNs::from_secs(3);

/// What is kept free of a disk of this size when nothing is configured.
pub fn reserve_for(capacity: u64) -> u64 {
    let share = (capacity / RESERVE_SHARE).clamp(RESERVE_BYTES_MIN, RESERVE_BYTES_DEFAULT);
    share.min(capacity / RESERVE_SHARE_MOST)
}

/// What writers are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskState {
    Open,
    Refuse { free: u64, reserve: u64 },
}

/// Decides from what the disk is seen to have free.
#[derive(Clone, Debug)]
pub struct DiskGuard {
    reserve: u64,
    refuses: bool,
    /// Since when there was enough again.
    enough_since: Option<SpanNs>,
}

impl DiskGuard {
    pub fn new(reserve: u64) -> Self {
        Self {
            reserve,
            refuses: false,
            enough_since: None,
        }
    }

    pub fn reserve(&self) -> u64 {
        self.reserve
    }

    /// `free` bytes were seen at the monotonic time `now`.
    pub fn see(&mut self, free: u64, now: SpanNs) -> DiskState {
        if free < self.reserve {
            (self.refuses, self.enough_since) = (true, None);
        } else if self.refuses {
            let is_enough = free >= self.reserve.saturating_add(self.reserve / REOPEN_ABOVE);
            let since = self.enough_since.filter(|_| is_enough).unwrap_or(now);
            self.enough_since = is_enough.then_some(since);
            self.refuses = !is_enough || now.0.saturating_sub(since.0) < REOPEN_SPAN.0;
        }
        if self.refuses {
            DiskState::Refuse {
                free,
                reserve: self.reserve,
            }
        } else {
            DiskState::Open
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;
    use std::fmt::Write;

    /// Free bytes second by second, against a reserve of 100.
    fn check(free: &[u64], expect: Expect) {
        let mut guard = DiskGuard::new(100);
        let mut out = String::new();
        for (second, free) in (0..).zip(free) {
            let open = guard.see(*free, SpanNs::from_secs(second)) == DiskState::Open;
            write!(out, "{free}:{} ", if open { "open" } else { "refuse" }).unwrap();
        }
        expect.assert_eq(out.trim_end());
    }

    #[test]
    fn writes_are_refused_at_the_reserve_and_taken_again_well_above_it() {
        check(
            &[101, 100, 99, 100, 124, 125, 125, 124, 125, 125, 125, 125, 110, 99],
            expect![
                "101:open 100:open 99:refuse 100:refuse 124:refuse 125:refuse 125:refuse 124:refuse 125:refuse 125:refuse 125:refuse 125:open 110:open 99:refuse"
            ],
        );
    }

    #[test]
    fn a_reserve_of_nothing_never_refuses() {
        assert_eq!(DiskGuard::new(0).see(0, SpanNs::ZERO), DiskState::Open);
    }

    #[test]
    fn the_reserve_fits_the_disk() {
        let mib = |n: u64| n << 20;
        let reserves = [mib(64), mib(512), mib(4 << 10), mib(1 << 20)].map(|c| reserve_for(c) >> 20);
        expect!["[32, 128, 409, 1024]"].assert_eq(&format!("{reserves:?}"));
    }

    proptest! {
        #[test]
        fn below_the_reserve_nothing_is_taken(seen in prop::collection::vec((0u64..300, 0u64..5), 1..60)) {
            let (mut guard, mut now, mut was_open) = (DiskGuard::new(100), 0, true);
            for (free, pause) in seen {
                now += pause;
                let open = guard.see(free, SpanNs::from_secs(now)) == DiskState::Open;
                prop_assert!(!open || free >= 100);
                prop_assert!(was_open || !open || free >= 125, "it opens above the mark only");
                was_open = open;
            }
        }
    }
}

//! Cluster time: the leader's clock, believed only as far as the voters agree with it.
//!
//! It never goes back. When a clock that ran ahead is set right, cluster time is ahead of all clocks: it goes on more slowly then, so
//! that leases end and messages are sent, until clocks have caught up.

use hindcast_model::{SpanNs, TimestampNs};

/// A clock further off the median than this is reported and not believed.
pub const SKEW_MAX: SpanNs = SpanNs::from_secs(1);
/// How fast cluster time goes while it is ahead of clocks: nine seconds in ten. What waits half an hour waits three minutes longer, and
/// an hour too much is caught up in ten.
const SLOW: (u64, u64) = (9, 10);

/// What a clock would have shown when this node's monotonic clock stood at zero, in nanoseconds since 1970. Clocks are remembered
/// as this, so that a step of the own clock moves the own one alone, and at once.
pub fn zero_of(clock: TimestampNs, monotonic: SpanNs) -> i64 {
    clock.0.saturating_sub_unsigned(monotonic.0)
}

/// How far the own clock stands from the median of all voters' clocks (own included), in nanoseconds.
/// Positive: the own clock is ahead. Offsets are those of peers relative to the own clock.
pub fn ahead_of_median(peer_offsets: &[i64]) -> i64 {
    let mut offsets: Vec<i64> = peer_offsets.to_vec();
    offsets.push(0);
    offsets.sort_unstable();
    let mid = offsets.len() / 2;
    let median = if offsets.len() % 2 == 1 {
        offsets[mid]
    } else {
        // Halves first: two far-off clocks must not overflow.
        offsets[mid - 1] / 2 + offsets[mid] / 2
    };
    -median
}

/// The own clock as the voters' median has it.
pub fn corrected(own: TimestampNs, ahead: i64) -> TimestampNs {
    TimestampNs(own.0.saturating_sub(ahead))
}

/// Whether the median is that of most clocks: those of so many peers are known, and the own one.
pub fn are_compared(known: usize, peers: usize) -> bool {
    2 * (known + 1) > peers + 1
}

/// How far cluster time stands ahead of the corrected clock, when that is more than clocks may differ: a clock ran ahead
/// and was set back.
pub fn ahead_of_clocks(corrected: TimestampNs, cluster: TimestampNs) -> Option<SpanNs> {
    let by = cluster.since(corrected);
    (by > SKEW_MAX).then_some(by)
}

/// Cluster time as one node shows it.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClusterClock {
    last: Option<(TimestampNs, SpanNs)>,
}

impl ClusterClock {
    /// `stored`: of the last command that this node has applied. Never before the time shown last.
    pub fn show(&mut self, corrected: TimestampNs, monotonic: SpanNs, stored: TimestampNs) -> TimestampNs {
        let shown = self.last.map_or(TimestampNs::MIN, |(at, seen)| {
            let passed = monotonic.0.saturating_sub(seen.0);
            match ahead_of_clocks(corrected, at) {
                Some(_) => at + SpanNs(passed / SLOW.1 * SLOW.0 + passed % SLOW.1 * SLOW.0 / SLOW.1),
                // Clocks that differ a little wait for each other.
                None => at,
            }
        });
        let at = corrected.max(stored).max(shown);
        self.last = Some((at, monotonic));
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_wrong_clock_of_three_changes_nothing() {
        let two_hours = 7_200_000_000_000;
        // The own clock is two hours ahead: both peers are two hours behind it.
        assert_eq!(ahead_of_median(&[-two_hours, -two_hours + 5]), two_hours - 5);
        // A peer is two hours ahead: nothing happens.
        assert_eq!(ahead_of_median(&[two_hours, 3]), -3);
        assert_eq!(ahead_of_median(&[]), 0);
    }

    #[test]
    fn after_a_clock_that_was_two_hours_ahead_is_set_right_what_waits_becomes_due_all_the_same() {
        let (real, two_hours) = (TimestampNs::from_secs(1_800_000_000), SpanNs::from_secs(7200));
        let second = SpanNs::from_secs;
        let mut clock = ClusterClock::default();
        assert_eq!(
            clock.show(real + two_hours, second(0), TimestampNs::MIN),
            real + two_hours
        );
        // Set right at once: a retry in 30 s is due after 34.
        let ahead = clock.show(real, second(0), TimestampNs::MIN);
        assert_eq!(ahead, real + two_hours);
        assert_eq!(
            clock.show(real + second(10), second(10), TimestampNs::MIN),
            ahead + second(9)
        );
        assert_eq!(
            clock.show(real + second(34), second(34), TimestampNs::MIN).since(ahead),
            SpanNs::from_ms(30_600)
        );
        // A node that starts has it from the rows, and goes on from there.
        let mut other = ClusterClock::default();
        let stored = ahead + second(30);
        assert_eq!(other.show(real + second(34), second(1), stored), stored);
        assert_eq!(other.show(real + second(44), second(11), stored), stored + second(9));
        // After ten times as long clocks have caught up.
        let late = second(72_001);
        assert_eq!(clock.show(real + late, late, stored), real + late);
    }

    #[test]
    fn a_clock_that_is_late_is_not_believed_before_most_clocks_were_compared() {
        let of = |peers: usize| (0..=peers).map(|known| are_compared(known, peers)).collect::<Vec<_>>();
        assert_eq!(of(0), [true]);
        assert_eq!(of(1), [false, true]);
        assert_eq!(of(2), [false, true, true]);
        assert_eq!(of(4), [false, false, true, true, true]);
    }

    #[test]
    fn clocks_that_differ_by_less_than_a_second_wait_for_each_other() {
        let mut clock = ClusterClock::default();
        let ms = |ms: i64| TimestampNs::from_ms(1_800_000_000_000 + ms);
        assert_eq!(clock.show(ms(0), SpanNs::from_ms(0), ms(900)), ms(900));
        assert_eq!(clock.show(ms(800), SpanNs::from_ms(800), ms(900)), ms(900));
        assert_eq!(clock.show(ms(901), SpanNs::from_ms(901), ms(900)), ms(901));
    }

    #[test]
    fn a_clock_that_was_hours_ahead_and_is_set_right_is_told() {
        let (hours, second) = (SpanNs::from_secs(7200), SpanNs::from_secs(1));
        let now = TimestampNs::from_secs(1_800_000_000);
        assert_eq!(ahead_of_clocks(now, now + hours), Some(hours));
        // Clocks that differ a little, and a cluster that has no time yet.
        assert_eq!(ahead_of_clocks(now, now + second), None);
        assert_eq!(ahead_of_clocks(now, TimestampNs::MIN), None);
        // The own clock is two hours behind the median: that is no clock that ran ahead.
        assert_eq!(ahead_of_clocks(corrected(now - hours, -(hours.0 as i64)), now), None);
    }

    #[test]
    fn a_step_of_the_own_clock_moves_cluster_time_not_for_a_moment() {
        let (two_hours, second) = (7_200_000_000_000, 1_000_000_000);
        let real = |seconds: i64| TimestampNs(1_772_000_000 * second + seconds * second);
        let at = |seconds: u64| SpanNs(seconds * second as u64);
        // Both peers were asked before the step, the own clock is read after it.
        let zeros = [zero_of(real(1), at(1)), zero_of(real(2), at(2))];
        for step in [two_hours, -two_hours] {
            let own = TimestampNs(real(3).0 + step);
            let offsets = zeros.map(|zero| zero - zero_of(own, at(3)));
            assert_eq!(corrected(own, ahead_of_median(&offsets)), real(3));
        }
    }

    proptest! {
        /// Whatever clocks and other nodes do: never back, never behind what is stored, and never still while it is ahead of clocks.
        #[test]
        fn cluster_time_goes_on(
            steps in proptest::collection::vec((-10_000i64..10_000, 0u64..5_000, -10_000i64..10_000), 1..50),
        ) {
            let (mut clock, mut monotonic, mut own, mut stored) = (ClusterClock::default(), 0, 1_000_000, 0);
            let mut last: Option<TimestampNs> = None;
            for (step, passed, other) in steps {
                (monotonic, own) = (monotonic + passed, own + step + passed as i64);
                stored = stored.max(own + other);
                let at = clock.show(TimestampNs::from_ms(own), SpanNs::from_ms(monotonic), TimestampNs::from_ms(stored));
                prop_assert!(at >= TimestampNs::from_ms(stored) && at >= TimestampNs::from_ms(own));
                if let Some(last) = last {
                    let least = match ahead_of_clocks(TimestampNs::from_ms(own), last) {
                        Some(_) => SpanNs::from_ms(passed * 9 / 10),
                        None => SpanNs::ZERO,
                    };
                    prop_assert!(at >= last + least);
                }
                last = Some(at);
            }
        }

        #[test]
        fn a_minority_cannot_move_the_median_outside_the_honest_range(
            liar in any::<i64>(), a in -1000i64..1000, b in -1000i64..1000, c in -1000i64..1000,
        ) {
            let ahead = ahead_of_median(&[liar, a, b, c]);
            let honest = [0, a, b, c];
            prop_assert!(-ahead >= *honest.iter().min().unwrap() && -ahead <= *honest.iter().max().unwrap());
        }
    }
}

//! Cluster time: the leader's clock, believed only as far as the voters agree with it.

use hindcast_model::{SpanNs, TimestampNs};

/// A clock further off the median than this is reported and not believed.
pub const SKEW_MAX: SpanNs = SpanNs::from_secs(1);

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

/// The time a leader stamps: its clock corrected to the median, never before the last stamp.
pub fn stamp(own: TimestampNs, ahead: i64, last: TimestampNs) -> TimestampNs {
    TimestampNs(own.0.saturating_sub(ahead)).max(last)
}

/// How far cluster time stands ahead of the corrected clock, when that is more than clocks may differ: a clock ran ahead
/// and was set back, and until clocks have caught up nothing becomes due.
pub fn held_back(own: TimestampNs, ahead: i64, stored: TimestampNs) -> Option<SpanNs> {
    let by = stored.since(TimestampNs(own.0.saturating_sub(ahead)));
    (by > SKEW_MAX).then_some(by)
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
        assert_eq!(
            stamp(TimestampNs(100), 60, TimestampNs(50)),
            TimestampNs(50),
            "never back"
        );
    }

    #[test]
    fn a_clock_that_was_hours_ahead_and_is_set_right_holds_cluster_time_back_and_that_is_told() {
        let (hours, second) = (SpanNs::from_secs(7200), SpanNs::from_secs(1));
        let now = TimestampNs::from_secs(1_800_000_000);
        assert_eq!(held_back(now, 0, now + hours), Some(hours));
        // Clocks that differ a little, and a cluster that has no time yet.
        assert_eq!(held_back(now, 0, now + second), None);
        assert_eq!(held_back(now, 0, TimestampNs::MIN), None);
        // The own clock is two hours behind the median: that is no clock that ran ahead.
        assert_eq!(held_back(now - hours, -(hours.0 as i64), now), None);
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
            assert_eq!(stamp(own, ahead_of_median(&offsets), real(2)), real(3));
        }
    }

    proptest! {
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

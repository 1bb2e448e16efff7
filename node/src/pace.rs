//! How fast work in the background may read or write: a bucket of bytes that fills with time.
//!
//! A pure function of (state, now): the state is one instant, at which everything taken so far will have been paid for.
//! Promises: in any stretch of time the work that waits as told does at most `bytes_per_second` times its length, and
//! `burst_bytes` (or one take, if that is larger) more. Times are monotonic `SpanNs`.

use hindcast_model::SpanNs;

/// The rate of one kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    pub bytes_per_second: u64,
    pub burst_bytes: u64,
}

/// When all that was taken is paid for. The default: nothing was taken yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owed(SpanNs);

impl Pace {
    fn cost(&self, bytes: u64) -> u64 {
        // A rate of 0 would wait for ever: it is read as the slowest there is.
        let ns = u128::from(bytes) * 1_000_000_000;
        u64::try_from(ns.div_ceil(u128::from(self.bytes_per_second.max(1)))).unwrap_or(u64::MAX)
    }

    /// Takes `bytes` at `now`: the new state, and how long to wait before doing the work.
    pub fn take(&self, owed: Owed, bytes: u64, now: SpanNs) -> (Owed, SpanNs) {
        let paid_at = owed.0.0.max(now.0).saturating_add(self.cost(bytes));
        let start = paid_at.saturating_sub(self.cost(self.burst_bytes));
        (Owed(SpanNs(paid_at)), SpanNs(start.saturating_sub(now.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_is_free_and_then_the_rate_holds() {
        let pace = Pace {
            bytes_per_second: 1000,
            burst_bytes: 500,
        };
        let mut owed = Owed::default();
        let mut now = SpanNs::from_secs(7);
        let mut waits = vec![];
        for _ in 0..4 {
            let (next, wait) = pace.take(owed, 250, now);
            owed = next;
            now = SpanNs(now.0 + wait.0);
            waits.push(wait.as_ms());
        }
        assert_eq!(waits, [0, 0, 250, 250]);
        // Idle time fills the bucket, and not above its brim.
        let now = SpanNs(now.0 + 3_600_000_000_000);
        let (owed, wait) = pace.take(owed, 500, now);
        assert_eq!(wait, SpanNs::ZERO);
        assert_eq!(pace.take(owed, 100, now).1.as_ms(), 100);
    }

    proptest! {
        #[test]
        fn no_stretch_of_time_sees_more_than_rate_and_burst(
            rate in 1u64..1_000_000,
            burst in 0u64..100_000,
            work in prop::collection::vec((1u64..50_000, 0u64..2_000_000_000), 1..40),
        ) {
            let pace = Pace { bytes_per_second: rate, burst_bytes: burst };
            let (mut owed, mut now, mut done) = (Owed::default(), SpanNs::ZERO, vec![]);
            for (bytes, idle) in work {
                now = SpanNs(now.0 + idle);
                let (next, wait) = pace.take(owed, bytes, now);
                owed = next;
                now = SpanNs(now.0 + wait.0);
                done.push((now.0, bytes));
            }
            for i in 0..done.len() {
                for j in i..done.len() {
                    let bytes: u64 = done[i..=j].iter().map(|d| d.1).sum();
                    let largest = done[i..=j].iter().map(|d| d.1).max().unwrap_or(0);
                    let span = u128::from(done[j].0 - done[i].0);
                    // Costs are rounded up to whole nanoseconds, never down.
                    let allowed = span * u128::from(rate) / 1_000_000_000 + u128::from(burst.max(largest)) + 1;
                    prop_assert!(u128::from(bytes) <= allowed, "{} bytes in {} ns, {} allowed", bytes, span, allowed);
                }
            }
        }

        #[test]
        fn no_number_is_too_large(rate: u64, burst: u64, bytes: u64, now: u64) {
            let pace = Pace { bytes_per_second: rate, burst_bytes: burst };
            let (owed, _) = pace.take(Owed::default(), bytes, SpanNs(now));
            pace.take(owed, bytes, SpanNs(now));
        }
    }
}

//! How much write work may be under way: what the node finished within the last moments, so that nothing waits long behind it.
//!
//! By Little's law the work under way divided by what is finished per second is how long a write takes. A bound of what is finished in
//! [`WINDOW_SPAN`] lets the window grow by itself while writes take less, and shrink while they take more, on any machine: the
//! rest waits at the door, where it costs nothing, and alerts, whose reads wait for what was applied before, do not wait behind it.
//!
//! Pure: a function of what was finished and of `now`, a monotonic `SpanNs`. Work is counted in bytes as a request's head tells.

use hindcast_model::SpanNs;

/// A write should not take longer than this when there are too many.
pub const WINDOW_SPAN: SpanNs = SpanNs::from_ms(500);
/// What may always be under way, also on a node that did nothing for a while.
pub const WINDOW_BYTES_MIN: usize = 16 * 1024 * 1024;

/// What was finished is counted over so many buckets of `BUCKET_NS`: one second.
const BUCKETS: usize = 10;
const BUCKET_NS: u64 = 100_000_000;

/// What was finished in the last second.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// By number of the bucket since the clock's zero: a slot that holds another number is over.
    finished: [(u64, u64); BUCKETS],
}

impl Window {
    pub fn finish(&mut self, bytes: usize, now: SpanNs) {
        let number = now.0 / BUCKET_NS;
        let (slot, finished) = &mut self.finished[(number % BUCKETS as u64) as usize];
        if *slot != number {
            (*slot, *finished) = (number, 0);
        }
        *finished = finished.saturating_add(bytes as u64);
    }

    /// Bytes that may be under way now, never more than `most`.
    pub fn bytes_max(&self, most: usize, now: SpanNs) -> usize {
        let number = now.0 / BUCKET_NS;
        let lately = self.finished.iter().filter(|(n, _)| *n + BUCKETS as u64 > number);
        let per_second = lately.fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        let bytes = per_second / (1_000_000_000 / WINDOW_SPAN.0);
        usize::try_from(bytes)
            .unwrap_or(usize::MAX)
            .clamp(WINDOW_BYTES_MIN.min(most), most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MOST: usize = 512 << 20;
    const ONE: usize = 512 * 1024;

    /// Senders who always have more, at a node that finishes so many bytes per second: how long a write takes in the end.
    fn settles_at(per_second: usize) -> SpanNs {
        let (mut window, mut under_way, mut now) = (Window::default(), std::collections::VecDeque::new(), SpanNs(0));
        let mut took = SpanNs(0);
        let step = (ONE as u64 * 1_000_000_000) / per_second as u64;
        for _ in 0..20_000 {
            while (under_way.len() + 1) * ONE <= window.bytes_max(MOST, now) {
                under_way.push_back(now);
            }
            now = SpanNs(now.0 + step);
            if let Some(began) = under_way.pop_front() {
                took = SpanNs(now.0 - began.0);
                window.finish(ONE, now);
            }
        }
        took
    }

    #[test]
    fn writes_of_senders_who_always_have_more_take_half_a_second_on_a_slow_node_and_on_a_fast_one() {
        for per_second in [40 << 20, 200 << 20, 800 << 20] {
            let took = settles_at(per_second);
            assert!(
                (SpanNs::from_ms(300)..=SpanNs::from_ms(600)).contains(&took),
                "{per_second} bytes a second: {took}"
            );
        }
        // A node so slow that the least window is more than half a second.
        assert!(settles_at(4 << 20) > SpanNs::from_secs(3));
    }

    #[test]
    fn what_was_long_ago_counts_no_more() {
        let mut window = Window::default();
        let at = SpanNs::from_secs;
        assert_eq!(
            window.bytes_max(MOST, at(5)),
            WINDOW_BYTES_MIN,
            "nothing was finished yet"
        );
        window.finish(100 << 20, at(5));
        assert_eq!(window.bytes_max(MOST, at(5)), 50 << 20);
        assert_eq!(window.bytes_max(20 << 20, at(5)), 20 << 20, "the node's own bound");
        assert_eq!(window.bytes_max(MOST, at(6)), WINDOW_BYTES_MIN);
    }

    proptest! {
        #[test]
        fn the_window_stays_within_its_bounds(
            finished in prop::collection::vec((any::<usize>(), 0u64..5_000), 0..50),
            most in 1usize..MOST,
        ) {
            let (mut window, mut now) = (Window::default(), SpanNs(0));
            for (bytes, ms) in finished {
                now = SpanNs(now.0 + ms * 1_000_000);
                window.finish(bytes, now);
                let bytes_max = window.bytes_max(most, now);
                prop_assert!(bytes_max <= most && bytes_max >= WINDOW_BYTES_MIN.min(most));
            }
        }
    }
}

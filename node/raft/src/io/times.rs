//! How long things took, counted by how long: cheap to add to, told on `/metrics`.

use hindcast_model::SpanNs;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Upper bounds of the counted spans, in microseconds; one more is for what is longer.
const BOUNDS_MICROS: [u64; 14] = [
    200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 5_000_000, 30_000_000,
];

#[derive(Default)]
pub struct Times {
    counts: [AtomicU64; BOUNDS_MICROS.len() + 1],
    sum_ns: AtomicU64,
}

/// Counts at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TimesSeen {
    /// How many took at most so long; `None`: all.
    pub buckets: Vec<(Option<SpanNs>, u64)>,
    pub sum: SpanNs,
    pub count: u64,
}

impl Times {
    pub fn add(&self, took: SpanNs) {
        let micros = took.0 / 1000;
        let at = BOUNDS_MICROS.partition_point(|b| *b < micros);
        self.counts[at].fetch_add(1, Relaxed);
        self.sum_ns.fetch_add(took.0, Relaxed);
    }

    pub fn seen(&self) -> TimesSeen {
        let mut count = 0;
        let bounds = BOUNDS_MICROS.iter().map(|b| Some(SpanNs(*b * 1000))).chain([None]);
        let buckets = bounds.zip(&self.counts).map(|(bound, n)| {
            count += n.load(Relaxed);
            (bound, count)
        });
        TimesSeen {
            buckets: buckets.collect(),
            sum: SpanNs(self.sum_ns.load(Relaxed)),
            count,
        }
    }
}

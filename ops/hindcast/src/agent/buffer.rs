//! Batches that wait for a node that answers.
//!
//! Pure. Holds at most [`BUFFER_BATCHES_MAX`] batches and [`BUFFER_BYTES_MAX`] bytes; what is too much drops the
//! oldest first, because the newest says how the host fares now. The batch that is being sent stays the oldest until it is confirmed.

use super::batcher::items;
use hindcast_proto::v1;
use prost::Message;
use std::collections::VecDeque;

pub const BUFFER_BATCHES_MAX: usize = 20_000;
pub const BUFFER_BYTES_MAX: usize = 64 * 1024 * 1024;

#[derive(Debug)]
pub struct Buffer {
    batches: VecDeque<(v1::WriteRequest, usize)>,
    bytes: usize,
    batches_max: usize,
    bytes_max: usize,
}

impl Default for Buffer {
    fn default() -> Self {
        Self::bounded(BUFFER_BATCHES_MAX, BUFFER_BYTES_MAX)
    }
}

impl Buffer {
    pub fn bounded(batches_max: usize, bytes_max: usize) -> Self {
        Self {
            batches: VecDeque::new(),
            bytes: 0,
            batches_max,
            bytes_max,
        }
    }

    /// Takes a batch; answers how many samples and lines had to go for it.
    pub fn push(&mut self, batch: v1::WriteRequest) -> u64 {
        let bytes = batch.encoded_len();
        self.bytes += bytes;
        self.batches.push_back((batch, bytes));
        self.shrink()
    }

    /// Takes back the batch that was taken last.
    pub fn put_back(&mut self, batch: v1::WriteRequest) -> u64 {
        let bytes = batch.encoded_len();
        self.bytes += bytes;
        self.batches.push_front((batch, bytes));
        self.shrink()
    }

    fn shrink(&mut self) -> u64 {
        let mut dropped = 0;
        while self.batches.len() > self.batches_max || self.bytes > self.bytes_max {
            let Some(oldest) = self.take() else { break };
            let (samples, lines) = items(&oldest);
            dropped += samples + lines;
        }
        dropped
    }

    pub fn oldest(&self) -> Option<&v1::WriteRequest> {
        self.batches.front().map(|(batch, _)| batch)
    }

    /// The oldest batch.
    pub fn take(&mut self) -> Option<v1::WriteRequest> {
        let (batch, bytes) = self.batches.pop_front()?;
        self.bytes -= bytes;
        Some(batch)
    }

    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    pub fn batches(&self) -> usize {
        self.batches.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Samples and lines that wait.
    pub fn waiting(&self) -> u64 {
        self.batches
            .iter()
            .map(|(b, _)| items(b))
            .map(|(samples, lines)| samples + lines)
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::batcher::Batcher;
    use hindcast_model::resource::metric;
    use proptest::prelude::*;

    fn batches(n: u64) -> Vec<v1::WriteRequest> {
        let mut b = Batcher::new("w", &[]);
        (0..n)
            .filter_map(|i| {
                let _ = b.sample(&metric("up", &[]), i as i64, 1.0);
                b.finish()
            })
            .collect()
    }

    #[test]
    fn a_full_buffer_drops_the_oldest_and_counts_it() {
        let mut buffer = Buffer::bounded(2, usize::MAX);
        let dropped: Vec<_> = batches(4).into_iter().map(|b| buffer.push(b)).collect();
        assert_eq!(dropped, [0, 0, 1, 1]);
        assert_eq!(buffer.take().map(|b| b.seq), Some(3));
        assert_eq!(buffer.waiting(), 1);
    }

    proptest! {
        #[test]
        fn every_batch_is_kept_dropped_or_taken_and_the_bounds_hold(
            n in 1u64..40, batches_max in 1usize..8, bytes_max in 1usize..400,
        ) {
            let mut buffer = Buffer::bounded(batches_max, bytes_max);
            let mut dropped = 0;
            for b in batches(n) {
                dropped += buffer.push(b);
                prop_assert!(buffer.batches.len() <= batches_max && buffer.bytes <= bytes_max);
            }
            let mut left = 0;
            while buffer.take().is_some() { left += 1; }
            prop_assert_eq!(dropped + left, n);
            prop_assert_eq!(buffer.bytes, 0);
        }
    }
}

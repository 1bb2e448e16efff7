//! Reads native histograms (`hindcast_model::histogram`) out of the lines that they are stored as, where these lie.
//!
//! A line becomes a histogram as it passes by, and is charged to the query's budget as such before the next one is looked at: what is
//! held is never more than the query may hold, beside one block of lines.

use crate::reduce::Distinct;
use crate::shards::{NativeSeries, SeriesRequest};
use hindcast_model::{Histogram, TimestampNs};
use hindcast_proto::trace::TRACE_LABEL;
use hindcast_storage::VisitedStream;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Takes the lines of one shard, stream by stream.
pub struct NativeCollector<'a> {
    request: &'a SeriesRequest,
    found: Vec<NativeSeries>,
    /// Of the stream that lines come of now, and whether it is wanted.
    now: Option<(usize, bool)>,
    distinct: Distinct,
}

impl<'a> NativeCollector<'a> {
    pub fn new(request: &'a SeriesRequest) -> Self {
        Self {
            distinct: Distinct::new(request.budget.series_max),
            request,
            found: vec![],
            now: None,
        }
    }

    /// A line of a stream, in the order of commits. Breaks when nobody waits for more.
    pub fn take(&mut self, stream: VisitedStream<'_>, at: TimestampNs, line: &[u8]) -> ControlFlow<()> {
        let is_wanted = match self.now {
            Some((rank, is_wanted)) if rank == stream.rank => is_wanted,
            _ => self.begin(stream)?,
        };
        let Some(series) = self.found.last_mut().filter(|_| is_wanted) else {
            return ControlFlow::Continue(());
        };
        let Ok(read) = Histogram::of_line(line) else {
            series.unreadable += 1;
            return self.request.budget.read(1);
        };
        self.request.budget.read(read.as_ref().map_or(1, Histogram::weight))?;
        series.samples.push((at.floor_ms(), read.map(Arc::new)));
        ControlFlow::Continue(())
    }

    fn begin(&mut self, stream: VisitedStream<'_>) -> ControlFlow<(), bool> {
        let labels = stream.labels.without(TRACE_LABEL);
        let is_wanted = !self.request.skips(&labels);
        self.now = Some((stream.rank, is_wanted));
        if is_wanted {
            self.distinct.add(&labels, self.found.iter().map(|s| &s.labels))?;
            self.end();
            self.found.push(NativeSeries {
                labels,
                owner: stream.owner,
                slot: stream.slot,
                samples: vec![],
                unreadable: 0,
            });
        }
        ControlFlow::Continue(is_wanted)
    }

    /// Puts the samples of the last series in order. Of lines of one time, the one that came last counts.
    fn end(&mut self) {
        let Some(series) = self.found.last_mut() else { return };
        let samples = &mut series.samples;
        if samples.is_sorted_by(|a, b| a.0 < b.0) {
            return;
        }
        samples.sort_by_key(|(at, _)| *at);
        samples.dedup_by(|later, kept| {
            let is_same = later.0 == kept.0;
            if is_same {
                std::mem::swap(later, kept);
            }
            is_same
        });
    }

    pub fn finish(mut self) -> Vec<NativeSeries> {
        self.end();
        self.found
    }
}

//! Lines of a time range, a bounded number at a time.
//!
//! Promise: every line comes once, and all lines of a page lie before those of the next, in the direction asked for.
//! A page that is full may have cut lines of one instant apart, so its last instant is left to the next page.

use crate::engine::QueryError;
use crate::shards::{Completeness, LinesRead, LinesRequest, Shards};
use hindcast_model::TimestampNs;
use hindcast_storage::read::{Direction, StreamData};

/// Lines of a page, unless the query needs fewer.
pub const PAGE_LINES: usize = 10_000;
/// Lines of one instant that a query can go through.
pub const INSTANT_LINES_MAX: usize = 1_000_000;

pub struct Pages<'a> {
    shards: &'a dyn Shards,
    request: LinesRequest,
    page_lines: usize,
    is_over: bool,
    pub completeness: Completeness,
}

impl<'a> Pages<'a> {
    /// Pages of the first few lines in the direction of the request come in smaller ones: `first` lines.
    pub fn new(shards: &'a dyn Shards, request: LinesRequest, first: usize) -> Self {
        Self {
            shards,
            is_over: request.to < request.from,
            request,
            page_lines: first.clamp(1, PAGE_LINES),
            completeness: Completeness::default(),
        }
    }

    /// `None`: there are no more.
    pub async fn next(&mut self) -> Result<Option<Vec<StreamData>>, QueryError> {
        while !self.is_over {
            let request = LinesRequest {
                limit: Some(self.page_lines),
                ..self.request.clone()
            };
            let (mut streams, seen) = self.shards.lines(request).await?;
            self.completeness.merge(seen);
            let times = || streams.iter().flat_map(|s| s.lines.iter().map(|l| l.at));
            let found = times().count();
            if found < self.page_lines {
                self.is_over = true;
                return Ok(Some(self.counted(streams)));
            }
            let (oldest, newest) = (times().min(), times().max());
            let last: Option<TimestampNs> = match self.request.direction {
                Direction::Forward => newest,
                Direction::Backward => oldest,
            };
            let Some(last) = last else { return Ok(None) };
            if oldest == newest {
                // A page of one instant cannot be cut: it must hold all of it.
                if self.page_lines >= INSTANT_LINES_MAX {
                    return Err(QueryError::TooLarge {
                        what: "lines of one instant",
                        max: INSTANT_LINES_MAX,
                    });
                }
                self.page_lines = self.page_lines.saturating_mul(4).min(INSTANT_LINES_MAX);
                continue;
            }
            match self.request.direction {
                Direction::Forward => self.request.from = last,
                Direction::Backward => self.request.to = last,
            }
            self.page_lines = self.page_lines.saturating_mul(2).clamp(1, PAGE_LINES);
            streams.iter_mut().for_each(|s| s.lines.retain(|l| l.at != last));
            streams.retain(|s| !s.lines.is_empty());
            return Ok(Some(self.counted(streams)));
        }
        Ok(None)
    }

    fn counted(&mut self, streams: Vec<StreamData>) -> Vec<StreamData> {
        self.completeness.lines.merge(LinesRead::of(&streams));
        streams
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::OneShard;
    use futures::executor::block_on;
    use hindcast_model::{Labels, LogLine, Owner, TenantId};
    use hindcast_storage::logs::Filter;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_line_comes_once_and_in_order(
            times in prop::collection::vec((0i64..12, 0usize..3), 0..60),
            first in 1usize..20,
            forward in any::<bool>(),
        ) {
            let (shard, tenant) = (OneShard::new(), TenantId::default());
            for (i, (at, stream)) in times.iter().enumerate() {
                let line = LogLine { at: TimestampNs(*at), line: i.to_string().into(), metadata: vec![] };
                shard.add_lines(&tenant, Labels::from_pairs([("s", ["a", "b", "c"][*stream])]), Owner::None, [line]);
            }
            let direction = if forward { Direction::Forward } else { Direction::Backward };
            let request = LinesRequest {
                tenant,
                matchers: vec![],
                from: TimestampNs(2),
                to: TimestampNs(9),
                as_of: None,
                owners: None,
                filter: Filter::And(vec![]),
                limit: None,
                direction,
            };
            let mut pages = Pages::new(&shard, request, first);
            let (mut seen, mut before) = (vec![], None);
            while let Some(streams) = block_on(pages.next()).unwrap() {
                let mut at: Vec<i64> = streams.iter().flat_map(|s| s.lines.iter().map(|l| l.at.0)).collect();
                at.sort_unstable();
                let (Some(&low), Some(&high)) = (at.first(), at.last()) else { continue };
                let (near, far) = if forward { (low, high) } else { (-high, -low) };
                prop_assert!(before.is_none_or(|b| b < near));
                before = Some(far);
                seen.extend(streams.into_iter().flat_map(|s| s.lines).map(|l| l.line));
            }
            seen.sort();
            let wanted = times.iter().enumerate().filter(|(_, (at, _))| (2..=9).contains(at));
            let mut wanted: Vec<_> = wanted.map(|(i, _)| bytes::Bytes::from(i.to_string())).collect();
            wanted.sort();
            prop_assert_eq!(seen, wanted);
        }
    }
}

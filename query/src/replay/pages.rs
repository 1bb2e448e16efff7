//! Log lines of a window in order of time, page by page, so that memory stays bounded however much there is.
//!
//! Promises: each line once; a page holds every line up to its `up_to` that no page before it held; where the pages end
//! depends on nothing that a reader could see, since a page never splits an instant.

use crate::shards::{LinesRequest, Shards, ShardsError};
use hindcast_model::TimestampNs;
use hindcast_storage::read::{Direction, StreamData};

/// Lines of one page, unless one instant alone has more.
pub const PAGE_LINES_MAX: usize = 5_000;

pub struct Pages {
    request: LinesRequest,
    lines_max: usize,
    done: bool,
}

pub struct Page {
    pub streams: Vec<StreamData>,
    /// Nothing at or before this instant is still to come.
    pub up_to: TimestampNs,
    pub missing: Vec<String>,
}

impl Pages {
    /// Everything that `request` asks for; its limit and direction are set here.
    pub fn new(request: LinesRequest, lines_max: usize) -> Self {
        let done = request.to < request.from;
        Self {
            request,
            lines_max,
            done,
        }
    }

    pub async fn next(&mut self, shards: &dyn Shards) -> Result<Option<Page>, ShardsError> {
        if self.done {
            return Ok(None);
        }
        self.request.limit = Some(self.lines_max);
        self.request.direction = Direction::Forward;
        let (mut streams, whole) = shards.lines(self.request.clone()).await?;
        let mut missing = whole.missing;
        let lines: usize = streams.iter().map(|s| s.lines.len()).sum();
        if lines < self.lines_max {
            self.done = true;
            let up_to = self.request.to;
            return Ok(Some(Page {
                streams,
                up_to,
                missing,
            }));
        }
        let times = || streams.iter().flat_map(|s| &s.lines).map(|l| l.at);
        let first = times().min().unwrap_or(self.request.from);
        let last = times().max().unwrap_or(self.request.to);
        let up_to = if first == last {
            // One instant fills the page: take it whole, or its other lines would be lost.
            let instant = LinesRequest {
                from: last,
                to: last,
                limit: None,
                ..self.request.clone()
            };
            let (all, whole) = shards.lines(instant).await?;
            missing.extend(whole.missing);
            streams = all;
            last
        } else {
            // The last instant may have been cut by the limit: it comes whole with the next page.
            for s in &mut streams {
                s.lines.retain(|l| l.at < last);
            }
            TimestampNs(last.0 - 1)
        };
        self.done = up_to >= self.request.to;
        self.request.from = TimestampNs(up_to.0.saturating_add(1));
        streams.retain(|s| !s.lines.is_empty());
        Ok(Some(Page {
            streams,
            up_to,
            missing,
        }))
    }
}

//! Log lines of the resources in scope, gathered into one extract per frame.
//!
//! Promises
//! - Every line of a step is counted, by stream and level. What is shown is bounded: the worst levels first, and within a
//!   level the earliest; then listed by time, stream and commit position.
//! - The extract does not depend on how the lines arrive: streams are told apart by labels and owner.

use super::frame::{Level, LineFrame, LogsFrame, StreamFrame};
use super::lines::level_of;
use super::pages::Pages;
use crate::shards::{Shards, ShardsError};
use hindcast_model::{Labels, LogLine, ResourceId, TimestampNs};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Lines shown by one frame.
pub const FRAME_LINES_MAX: usize = 50;
/// Bytes of a line that a frame shows; the rest is cut, its length is said.
pub const FRAME_LINE_BYTES_MAX: usize = 4 * 1024;
/// Entries of a line's metadata that a frame shows.
pub const FRAME_METADATA_MAX: usize = 32;
/// Streams listed by one frame.
pub const FRAME_STREAMS_MAX: usize = 200;

type StreamKey = (Labels, Option<ResourceId>);

struct Waiting {
    at: TimestampNs,
    stream: StreamKey,
    line: LogLine,
}

/// Reads forward; each call takes the lines up to its instant.
pub struct LogReader {
    pages: Pages,
    up_to: TimestampNs,
    waiting: VecDeque<Waiting>,
    pub missing: BTreeSet<String>,
}

/// What one step holds, before it is bounded.
#[derive(Default)]
struct Step {
    counts: BTreeMap<StreamKey, [u64; Level::ALL.len()]>,
    /// By (level, time, stream, arrival): the first ones are shown.
    shown: BTreeMap<(Level, TimestampNs, StreamKey, u64), LogLine>,
    arrivals: u64,
}

impl LogReader {
    pub fn new(pages: Pages) -> Self {
        Self {
            pages,
            up_to: TimestampNs::MIN,
            waiting: VecDeque::new(),
            missing: BTreeSet::new(),
        }
    }

    /// Lines after the last call's instant, up to and with `at`; and whose they were.
    pub async fn step(
        &mut self,
        shards: &dyn Shards,
        at: TimestampNs,
    ) -> Result<(LogsFrame, BTreeSet<ResourceId>), ShardsError> {
        let mut step = Step::default();
        loop {
            while self.waiting.front().is_some_and(|w| w.at <= at) {
                let next = self.waiting.pop_front().expect("a front was seen");
                step.take(next);
            }
            if self.up_to >= at || !self.read_page(shards).await? {
                return Ok(step.finish());
            }
        }
    }

    async fn read_page(&mut self, shards: &dyn Shards) -> Result<bool, ShardsError> {
        let Some(page) = self.pages.next(shards).await? else {
            self.up_to = TimestampNs::MAX;
            return Ok(false);
        };
        self.up_to = page.up_to;
        self.missing.extend(page.missing);
        let mut lines: Vec<Waiting> = vec![];
        for stream in page.streams {
            let key = (stream.labels, stream.owner.id());
            lines.extend(stream.lines.into_iter().map(|line| Waiting {
                at: line.at,
                stream: key.clone(),
                line,
            }));
        }
        // Stable: lines of one stream at one instant stay in the order of their commit.
        lines.sort_by(|a, b| (a.at, &a.stream).cmp(&(b.at, &b.stream)));
        self.waiting.extend(lines);
        Ok(true)
    }
}

impl Step {
    fn take(&mut self, next: Waiting) {
        let level = level_of(&next.stream.0, &next.line);
        let counts = self.counts.entry(next.stream.clone()).or_default();
        counts[level as usize] += 1;
        self.arrivals += 1;
        let place = (level, next.at, next.stream, self.arrivals);
        self.shown.insert(place, next.line);
        if self.shown.len() > FRAME_LINES_MAX {
            self.shown.pop_last();
        }
    }

    fn finish(self) -> (LogsFrame, BTreeSet<ResourceId>) {
        let owners = self.counts.keys().filter_map(|(_, owner)| *owner).collect();
        let named: BTreeSet<&StreamKey> = self.shown.keys().map(|(_, _, stream, _)| stream).collect();
        let mut room = FRAME_STREAMS_MAX.saturating_sub(named.len());
        let mut logs = LogsFrame::default();
        let mut places: BTreeMap<&StreamKey, u32> = BTreeMap::new();
        for (key, counts) in &self.counts {
            // A stream of a shown line is always listed; others as long as there is room.
            if !named.contains(key) {
                if room == 0 {
                    logs.streams_left_out += 1;
                    for (sum, n) in logs.lines_left_out_by_level.iter_mut().zip(counts) {
                        *sum += n;
                    }
                    continue;
                }
                room -= 1;
            }
            places.insert(key, logs.streams.len() as u32);
            logs.streams.push(StreamFrame {
                labels: key.0.clone(),
                owner: key.1,
                lines_by_level: *counts,
            });
        }
        let mut shown: Vec<_> = self.shown.iter().collect();
        shown.sort_by_key(|((_, at, stream, arrival), _)| (*at, places[stream], *arrival));
        logs.lines = shown
            .into_iter()
            .map(|((level, at, stream, _), line)| line_frame(*at, places[stream], *level, line))
            .collect();
        (logs, owners)
    }
}

fn line_frame(at: TimestampNs, stream: u32, level: Level, line: &LogLine) -> LineFrame {
    let cut = |text: &str| text[..text.floor_char_boundary(FRAME_LINE_BYTES_MAX)].to_owned();
    let mut metadata: Vec<(String, String)> = line.metadata.iter().map(|(n, v)| (n.clone(), cut(v))).collect();
    metadata.sort();
    metadata.truncate(FRAME_METADATA_MAX);
    LineFrame {
        at,
        stream,
        level,
        line: cut(&String::from_utf8_lossy(&line.line)),
        bytes: line.line.len() as u32,
        metadata,
    }
}

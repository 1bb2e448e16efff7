//! Which small segments become one, and how.
//!
//! Invariants
//! - A merge takes neighbours in the order of commits, of one tenant, kind and policy, and never crosses a kept cut.
//! - Answers are the same before and after; only rows that no reader can see any more are left out.
//! - The largest input is at most half of a merge, so that a row is copied a logarithmic number of times.

use crate::codec::RawLine;
use crate::container::{FileKind, Head};
use crate::error::StorageError;
use crate::head::Lines;
use crate::index::Directory;
use crate::points::Points;
use crate::retention::{Policy, Retention, is_within};
use crate::segment::{Segment, Tier};
use crate::shard::{CompactReport, ShardConfig, in_file_order};
use crate::{logs, metric};
use hindcast_env::Disk;
use hindcast_model::{TenantId, TimestampNs};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Segments below this weigh this much, so that many tiny ones are neighbours in size.
const WEIGHT_BYTES_MIN: u64 = 64 << 10;

/// How much is asked of a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// What keeps files few while rows arrive.
    Background,
    /// Until everything is as small as it gets: somebody asked for it.
    Full,
}

/// The next run worth merging, oldest first.
pub fn choose(
    segments: &[Arc<Segment>],
    retention: &Retention,
    config: &ShardConfig,
    effort: Effort,
) -> Option<Vec<Arc<Segment>>> {
    let mut kin: BTreeMap<(&TenantId, FileKind, Policy), Vec<&Arc<Segment>>> = BTreeMap::new();
    for s in segments {
        kin.entry((&s.head.tenant, s.head.kind, s.head.policy))
            .or_default()
            .push(s);
    }
    for segments in kin.values() {
        let is_joined = |a: &&Arc<Segment>, b: &&Arc<Segment>| {
            assert!(
                a.head.commits.1 < b.head.commits.0,
                "segments of one kind lie in the order of commits"
            );
            !retention.is_cut_between(a.head.commits.1, b.head.commits.0)
        };
        for run in segments.chunk_by(is_joined) {
            let window = match effort {
                Effort::Background => window_of(run, config),
                Effort::Full => full_window_of(run, config),
            };
            if let Some(window) = window {
                return Some(window.iter().map(|s| Arc::clone(s)).collect());
            }
        }
    }
    None
}

/// What a merge weighs at least, so that many tiny files are neighbours in size.
fn weight(s: &&Arc<Segment>) -> u64 {
    s.file.bytes.max(WEIGHT_BYTES_MIN)
}

/// Whether a merge copies no row too often: the largest input is at most half of it.
fn is_balanced(window: &[&Arc<Segment>]) -> bool {
    let total: u64 = window.iter().map(weight).sum();
    window.iter().map(weight).max().unwrap_or(0) * 2 <= total
}

fn window_of<'a, 'b>(run: &'a [&'b Arc<Segment>], config: &ShardConfig) -> Option<&'a [&'b Arc<Segment>]> {
    let most = config.compact_segments_max.min(run.len());
    for len in (config.compact_segments_min.max(2)..=most).rev() {
        let fits =
            |w: &&[&Arc<Segment>]| w.iter().map(weight).sum::<u64>() <= config.compact_bytes_max && is_balanced(w);
        if let Some(window) = run.windows(len).find(fits) {
            return Some(window);
        }
    }
    None
}

/// The longest stretch that fits a merge and has something to gain: files as flushes left them, or many small ones.
fn full_window_of<'a, 'b>(run: &'a [&'b Arc<Segment>], config: &ShardConfig) -> Option<&'a [&'b Arc<Segment>]> {
    let mut start = 0;
    while start < run.len() {
        let mut total = 0;
        let fits = |s: &&&Arc<Segment>| {
            total += weight(s);
            total <= config.compact_bytes_max
        };
        let len = run[start..].iter().take_while(fits).count().max(1);
        let window = &run[start..start + len];
        let is_raw = window.iter().any(|s| s.tier == Tier::Flush);
        if is_raw || (len > 1 && is_balanced(window)) {
            return Some(window);
        }
        start += len;
    }
    None
}

pub fn report(run: &[Arc<Segment>], merged: Option<&Segment>) -> CompactReport {
    CompactReport {
        segments_in: run.len(),
        segments_out: merged.iter().count(),
        bytes_in: run.iter().map(|s| s.file.bytes).sum(),
        bytes_out: merged.map_or(0, |s| s.file.bytes),
        rows_in: run.iter().map(|s| s.row_count()).sum(),
        rows_out: merged.map_or(0, Segment::row_count),
    }
}

pub struct Merge<'a> {
    pub disk: &'a dyn Disk,
    pub dir: &'a str,
    pub number: u64,
    pub retention: &'a Retention,
    pub directory: &'a Directory,
}

impl Merge<'_> {
    /// Writes the merged segment; `None` when no row is left. Series by series: memory holds one at a time.
    pub fn run(&self, run: &[Arc<Segment>]) -> Result<Option<Segment>, StorageError> {
        let ids = run.iter().flat_map(|s| s.ids()).collect();
        match run[0].head.kind {
            FileKind::Metric => self.metrics(run, ids),
            FileKind::Log => self.lines(run, ids),
        }
    }

    fn metrics(&self, run: &[Arc<Segment>], ids: Vec<u32>) -> Result<Option<Segment>, StorageError> {
        let inputs: Vec<&metric::Segment> = run.iter().filter_map(|s| s.metrics()).collect();
        let mut readers: Vec<metric::PageReader<'_>> = inputs.iter().map(|s| s.reader()).collect();
        let mut writer = None;
        let mut points = Points::default();
        for (id, series) in in_file_order(self.directory, ids) {
            let spans = self.retention.readable(&series, TimestampNs::MIN, TimestampNs::MAX);
            points.clear();
            for (segment, reader) in inputs.iter().zip(&mut readers) {
                for page in segment.pages_of(id) {
                    reader.append(page, &spans, &mut points)?;
                }
            }
            points.settle();
            if points.is_empty() {
                continue;
            }
            let writer = match &mut writer {
                Some(w) => w,
                none => none.insert(metric::Writer::create(
                    self.disk,
                    self.dir,
                    self.number,
                    head_of(run),
                    metric::Tier::Compacted,
                )?),
            };
            writer.series(id, &points.times, &points.values)?;
        }
        let finished = writer.map(|w| w.finish(self.disk)).transpose()?;
        Ok(finished.map(|s| Segment::of_metrics(s, Tier::Compacted)))
    }

    fn lines(&self, run: &[Arc<Segment>], mut ids: Vec<u32>) -> Result<Option<Segment>, StorageError> {
        let inputs: Vec<&logs::Segment> = run.iter().filter_map(|s| s.lines()).collect();
        ids.sort_unstable();
        ids.dedup();
        let mut writer = None;
        for id in ids {
            let Some(series) = self.directory.get(id) else { continue };
            let spans = self.retention.readable(&series, TimestampNs::MIN, TimestampNs::MAX);
            for blocks in batches(&inputs, id) {
                let mut lines = Lines::default();
                for (input, number) in blocks {
                    let block = inputs[input].block(number);
                    let all = block.lines(0..block.rows())?;
                    all.iter()
                        .filter(|l| is_within(&spans, l.at))
                        .for_each(|l| lines.push(l));
                }
                let mut lines: Vec<RawLine<'_>> = lines.iter().collect();
                lines.sort_by_key(|l| l.at);
                if lines.is_empty() {
                    continue;
                }
                let writer = match &mut writer {
                    Some(w) => w,
                    none => none.insert(logs::Writer::create(
                        self.disk,
                        self.dir,
                        self.number,
                        head_of(run),
                        logs::Tier::Compacted,
                    )?),
                };
                writer.stream(id, lines.into_iter())?;
            }
        }
        let finished = writer.map(|w| w.finish(self.disk)).transpose()?;
        Ok(finished.map(|s| Segment::of_lines(s, Tier::Compacted)))
    }
}

/// Text that a merge holds of one stream at once; blocks that overlap in time are taken together, whatever they hold.
const BATCH_BYTES: u64 = 32 << 20;

/// The blocks of a stream as (input, number), in batches that follow each other in time. Inside a batch they stand in
/// the order of commits.
fn batches(inputs: &[&logs::Segment], id: u32) -> Vec<Vec<(usize, u32)>> {
    let of = |(i, s): (usize, &&logs::Segment)| s.blocks_of(id).map(move |n| (i, n)).collect::<Vec<_>>();
    let mut blocks: Vec<(usize, u32)> = inputs.iter().enumerate().flat_map(of).collect();
    let info = |(i, n): &(usize, u32)| inputs[*i].info(*n);
    blocks.sort_by_key(|b| info(b).first);
    let mut batches: Vec<Vec<(usize, u32)>> = vec![];
    let (mut held, mut last) = (0, i64::MIN);
    for block in blocks {
        let about = info(&block);
        match batches.last_mut() {
            Some(batch) if held < BATCH_BYTES || about.first <= last => batch.push(block),
            _ => {
                held = 0;
                batches.push(vec![block]);
            }
        }
        held += about.raw_bytes;
        last = last.max(about.last);
    }
    batches.iter_mut().for_each(|b| b.sort_unstable());
    batches
}

fn head_of(run: &[Arc<Segment>]) -> Head {
    let (first, last) = (&run[0].head, &run[run.len() - 1].head);
    let times = run.iter().map(|s| s.head.times);
    Head {
        commits: (first.commits.0, last.commits.1),
        times: times.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))).unwrap_or((0, 0)),
        extra: vec![],
        ..first.clone()
    }
}

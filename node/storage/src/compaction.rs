//! Which small segments become one, and how.
//!
//! Invariants
//! - A merge takes neighbours in the order of commits, of one tenant, kind and policy, and never crosses a kept cut.
//! - Answers are the same before and after; only rows that no reader can see any more are left out.
//! - The largest input is at most half of a merge, so that a row is copied a logarithmic number of times.

use crate::container::{FileKind, Head};
use crate::error::StorageError;
use crate::head::Lines;
use crate::index::Directory;
use crate::points::Points;
use crate::retention::{Policy, Retention, is_within};
use crate::segment::{Segment, Tier};
use crate::shard::{CompactReport, ShardConfig, in_file_order};
use crate::{lines_file, metric};
use hindcast_env::Disk;
use hindcast_model::{TenantId, TimestampNs};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Segments below this weigh this much, so that many tiny ones are neighbours in size.
const WEIGHT_BYTES_MIN: u64 = 64 << 10;

/// The next run worth merging, oldest first.
pub fn choose(segments: &[Arc<Segment>], retention: &Retention, config: &ShardConfig) -> Option<Vec<Arc<Segment>>> {
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
            if let Some(window) = window_of(run, config) {
                return Some(window.iter().map(|s| Arc::clone(s)).collect());
            }
        }
    }
    None
}

fn window_of<'a, 'b>(run: &'a [&'b Arc<Segment>], config: &ShardConfig) -> Option<&'a [&'b Arc<Segment>]> {
    let weight = |s: &&Arc<Segment>| s.file.bytes.max(WEIGHT_BYTES_MIN);
    let most = config.compact_segments_max.min(run.len());
    for len in (config.compact_segments_min.max(2)..=most).rev() {
        let fits = |w: &&[&Arc<Segment>]| {
            let total: u64 = w.iter().map(weight).sum();
            let largest = w.iter().map(weight).max().unwrap_or(0);
            total <= config.compact_bytes_max && largest * 2 <= total
        };
        if let Some(window) = run.windows(len).find(fits) {
            return Some(window);
        }
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

    fn lines(&self, run: &[Arc<Segment>], ids: Vec<u32>) -> Result<Option<Segment>, StorageError> {
        let inputs: Vec<&lines_file::Segment> = run.iter().filter_map(|s| s.lines()).collect();
        let mut readers: Vec<lines_file::Pages<'_>> = inputs.iter().map(|s| lines_file::Pages::new(s)).collect();
        let mut writer = None;
        for (id, series) in in_file_order(self.directory, ids) {
            let spans = self.retention.readable(&series, TimestampNs::MIN, TimestampNs::MAX);
            let mut lines = Lines::default();
            for (segment, pages) in inputs.iter().zip(&mut readers) {
                for page in segment.pages_of(id, i64::MIN, i64::MAX) {
                    let readable = pages.lines(page)?.into_iter().filter(|l| is_within(&spans, l.at));
                    readable.for_each(|l| lines.push(l));
                }
            }
            let mut lines: Vec<_> = lines.iter().collect();
            lines.sort_by_key(|l| l.at);
            if lines.is_empty() {
                continue;
            }
            let writer = match &mut writer {
                Some(w) => w,
                none => none.insert(lines_file::Writer::create(
                    self.disk,
                    self.dir,
                    self.number,
                    head_of(run),
                )?),
            };
            writer.lines(id, &lines)?;
        }
        let finished = writer.map(|w| w.finish(self.disk, self.dir)).transpose()?;
        Ok(finished.map(|s| Segment::of_lines(s, Tier::Compacted)))
    }
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

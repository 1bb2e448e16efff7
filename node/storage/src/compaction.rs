//! Which small segments become one, and how.
//!
//! Invariants
//! - A merge takes neighbours in the order of commits, of one tenant, kind and policy, and never crosses a kept cut.
//! - Answers are the same before and after; only rows that no reader can see any more are left out.
//! - The largest input is at most half of a merge, so that a row is copied a logarithmic number of times.

use crate::aggregate::{Resolution, series_of};
use crate::directory::{Directory, Series};
use crate::error::StorageError;
use crate::head::{Lines, settle};
use crate::retention::{Policy, Retention, is_within};
use crate::rollup::{Sources, WindowFiles, covered, keeps, kept_rows, write_windows};
use crate::segment::{Head, Pages, Segment, Writer};
use crate::shard::{CompactReport, ShardConfig, in_file_order};
use hindcast_env::Disk;
use hindcast_model::TenantId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Segments below this weigh this much, so that many tiny ones are neighbours in size.
const WEIGHT_BYTES_MIN: u64 = 64 << 10;

/// What segments must have in common to become one: tenant, lines or not, windows or not, policy.
type Kin<'a> = (&'a TenantId, bool, Option<Resolution>, Policy);

/// The next run worth merging, oldest first.
pub fn choose(segments: &[Arc<Segment>], retention: &Retention, config: &ShardConfig) -> Option<Vec<Arc<Segment>>> {
    let mut kin: BTreeMap<Kin<'_>, Vec<&Arc<Segment>>> = BTreeMap::new();
    for s in segments {
        kin.entry((&s.head.tenant, s.head.streams, s.head.resolution, s.head.policy))
            .or_default()
            .push(s);
    }
    for segments in kin.values() {
        let is_joined = |a: &&Arc<Segment>, b: &&Arc<Segment>| {
            // Windows never overlap, so that any of them may be put together.
            let is_windows = a.head.resolution.is_some();
            assert!(
                is_windows || a.head.commits.1 < b.head.commits.0,
                "segments of one kind lie in the order of commits"
            );
            is_windows || !retention.is_cut_between(a.head.commits.1, b.head.commits.0)
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

/// A segment by itself of which most rows can be read no more.
pub fn choose_lone(segments: &[Arc<Segment>], sources: &Sources<'_>) -> Option<Arc<Segment>> {
    let is_worth = |s: &&Arc<Segment>| sources.share(s).is_some_and(|share| share.wants_rewrite());
    segments.iter().find(is_worth).cloned()
}

/// The files whose rows keep most of a file from going, and the length of the windows to make of them.
pub fn choose_rollup(segments: &[Arc<Segment>], sources: &Sources<'_>) -> Option<(Arc<Segment>, Resolution)> {
    let candidates = segments
        .iter()
        .filter(|s| !s.head.streams && s.head.resolution != Some(Resolution::Hour));
    let mut wanting = candidates.filter(|s| sources.share(s).is_some_and(|share| share.wants_rollup()));
    wanting.next().map(|s| {
        let made = match s.head.resolution {
            None => Resolution::FiveMinutes,
            Some(_) => Resolution::Hour,
        };
        (s.clone(), made)
    })
}

pub fn report(run: &[Arc<Segment>], merged: Option<&Segment>) -> CompactReport {
    CompactReport {
        rewrites: usize::from(run.len() == 1),
        windows: 0,
        segments_in: run.len(),
        segments_out: merged.iter().count(),
        bytes_in: run.iter().map(|s| s.file.bytes).sum(),
        bytes_out: merged.map_or(0, |s| s.file.bytes),
        rows_in: run.iter().map(|s| s.rows()).sum(),
        rows_out: merged.map_or(0, Segment::rows),
    }
}

pub struct Merge<'a> {
    pub disk: &'a dyn Disk,
    pub dir: &'a str,
    pub number: u64,
    pub retention: &'a Retention,
    pub directory: &'a Directory,
    pub windows: &'a [Arc<Segment>],
}

/// Rows of one series that retention let go.
#[derive(Clone, Copy, Debug)]
pub struct LetGo {
    pub id: u32,
    pub rows: u64,
}

impl Merge<'_> {
    /// Writes the merged segment; `None` when no row is left. Series by series: memory holds one at a time.
    pub fn run(&self, run: &[Arc<Segment>], let_go: &mut Vec<LetGo>) -> Result<Option<Segment>, StorageError> {
        if let Some(resolution) = run.first().and_then(|s| s.head.resolution) {
            return self.run_windows(run, resolution, let_go);
        }
        let mut inputs: Vec<Pages<'_>> = run.iter().map(|s| Pages::new(s)).collect();
        let mut writer = None;
        let ids: Vec<u32> = run.iter().flat_map(|s| s.ids()).collect();
        self.count_forgotten(run, &ids, let_go);
        for (id, series) in in_file_order(self.directory, ids) {
            let spans = kept_rows(
                &self.retention.reach(&series),
                series.streams,
                covered(self.windows, id),
            );
            let mut gone = 0;
            if series.streams {
                let mut lines = Lines::default();
                for (segment, pages) in run.iter().zip(&mut inputs) {
                    for page in segment.pages_of(id, i64::MIN, i64::MAX) {
                        for l in pages.lines(page)? {
                            if is_within(&spans, l.at) {
                                lines.push(l);
                            } else {
                                gone += 1;
                            }
                        }
                    }
                }
                let mut lines: Vec<_> = lines.iter().collect();
                lines.sort_by_key(|l| l.at);
                if !lines.is_empty() {
                    self.writer(&mut writer, run, &series)?.lines(id, &lines)?;
                }
            } else {
                let mut samples = vec![];
                for (segment, pages) in run.iter().zip(&mut inputs) {
                    for page in segment.pages_of(id, i64::MIN, i64::MAX) {
                        let read = pages.samples(page)?;
                        let before = samples.len() + read.len();
                        samples.extend(read.into_iter().filter(|s| is_within(&spans, s.at.0)));
                        gone += (before - samples.len()) as u64;
                    }
                }
                settle(&mut samples);
                if !samples.is_empty() {
                    self.writer(&mut writer, run, &series)?.samples(id, &samples)?;
                }
            }
            if gone > 0 {
                let_go.push(LetGo { id, rows: gone });
            }
        }
        match writer {
            Some(w) => Ok(Some(w.finish(self.disk, self.dir)?)),
            None => Ok(None),
        }
    }

    /// Rows of series that are known no more stay behind.
    fn count_forgotten(&self, run: &[Arc<Segment>], ids: &[u32], let_go: &mut Vec<LetGo>) {
        let unknown: BTreeSet<u32> = ids
            .iter()
            .copied()
            .filter(|&id| self.directory.get(id).is_none())
            .collect();
        for id in unknown {
            let pages = run
                .iter()
                .flat_map(|s| s.pages_of(id, i64::MIN, i64::MAX).map(|p| u64::from(s.page_rows(p))));
            let_go.push(LetGo { id, rows: pages.sum() });
        }
    }

    fn run_windows(
        &self,
        run: &[Arc<Segment>],
        resolution: Resolution,
        let_go: &mut Vec<LetGo>,
    ) -> Result<Option<Segment>, StorageError> {
        let mut files = WindowFiles::new(run);
        let mut writer = None;
        let ids = run.iter().flat_map(|s| s.ids()).map(series_of).collect();
        for (id, series) in in_file_order(self.directory, ids) {
            let (reach, covered) = (self.retention.reach(&series), covered(self.windows, id));
            let mut windows = files.read(id, resolution, i64::MIN, i64::MAX)?;
            let before = windows.len();
            windows.retain(|w| keeps(&reach, resolution, w.end.0, covered));
            if windows.len() < before {
                let rows = (before - windows.len()) as u64;
                let_go.push(LetGo { id, rows });
            }
            if !windows.is_empty() {
                write_windows(self.writer(&mut writer, run, &series)?, id, &windows)?;
            }
        }
        match writer {
            Some(w) => Ok(Some(w.finish(self.disk, self.dir)?)),
            None => Ok(None),
        }
    }

    fn writer<'w>(
        &self,
        writer: &'w mut Option<Writer>,
        run: &[Arc<Segment>],
        series: &Series<'_>,
    ) -> Result<&'w mut Writer, StorageError> {
        if writer.is_none() {
            let first = &run[0].head;
            let commits = run.iter().map(|s| s.head.commits);
            let times = run.iter().map(|s| s.times());
            let head = Head {
                tenant: series.tenant.clone(),
                streams: series.streams,
                resolution: first.resolution,
                policy: series.policy,
                group: first.group,
                commits: commits.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))).unwrap_or((0, 0)),
                times: times.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))).unwrap_or((0, 0)),
            };
            *writer = Some(Writer::create(self.disk, self.dir, self.number, head)?);
        }
        Ok(writer.as_mut().expect("it was just made"))
    }
}

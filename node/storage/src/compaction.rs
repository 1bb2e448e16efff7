//! Which small segments become one, and how.
//!
//! Invariants
//! - A merge takes neighbours in the order of commits, of one tenant, kind and policy, and never crosses a kept cut.
//! - A file in which a merge met damage is set aside: others are merged on both sides of it.
//! - Answers are the same before and after; only rows that no reader can see any more are left out.
//! - The largest input is at most half of a merge, so that a row is copied a logarithmic number of times.

use crate::aggregate::{Resolution, series_of};
use crate::codec::RawLine;
use crate::container::{FileKind, Head};
use crate::error::StorageError;
use crate::head::Lines;
use crate::index::Catalog;
use crate::points::Points;
use crate::retention::{Policy, Retention, is_within};
use crate::rollup::{Covered, Sources, WindowFiles, covered, keeps, kept_rows, write_windows};
use crate::segment::{Segment, Tier};
use crate::shard::{CompactReport, ShardConfig};
use crate::work::in_file_order;
use crate::{logs, metric};
use hindcast_env::Disk;
use hindcast_model::TenantId;
use hindcast_model::histogram::is_marked;
use std::collections::{BTreeMap, BTreeSet};
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

/// What segments must have in common to become one: tenant, lines or not, windows or not, policy.
type Kin<'a> = (&'a TenantId, FileKind, Option<Resolution>, Policy);

/// The next run worth merging, oldest first.
pub fn choose(
    segments: &[Arc<Segment>],
    retention: &Retention,
    config: &ShardConfig,
    effort: Effort,
) -> Option<Vec<Arc<Segment>>> {
    let mut kin: BTreeMap<Kin<'_>, Vec<&Arc<Segment>>> = BTreeMap::new();
    for s in segments {
        kin.entry((&s.head.tenant, s.head.kind, s.resolution(), s.head.policy))
            .or_default()
            .push(s);
    }
    for segments in kin.values() {
        let is_joined = |a: &&Arc<Segment>, b: &&Arc<Segment>| {
            // Windows never overlap, so that any of them may be put together.
            let is_windows = a.resolution().is_some();
            assert!(
                is_windows || a.head.commits.1 < b.head.commits.0,
                "segments of one kind lie in the order of commits"
            );
            let is_apart = stays(a) || stays(b);
            !is_apart && (is_windows || !retention.is_cut_between(a.head.commits.1, b.head.commits.0))
        };
        for run in segments.chunk_by(is_joined).filter(|run| !stays(run[0])) {
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

/// A file that is merged with no other: a damaged one, and one that went to the cold store and would come back.
fn stays(s: &Segment) -> bool {
    s.is_set_aside() || s.cold.is_some()
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

/// A segment by itself of which most rows can be read no more. `without_cold`: one that is here.
pub fn choose_lone(segments: &[Arc<Segment>], sources: &Sources<'_>, without_cold: bool) -> Option<Arc<Segment>> {
    let is_away = |s: &Segment| without_cold && s.cold.is_some();
    let wants = |s: &Segment| {
        let share = sources.share(s);
        share.is_some_and(|share| share.wants_rewrite(s.kept_when_rewritten()))
    };
    let is_worth = |s: &&Arc<Segment>| !s.is_set_aside() && !is_away(s) && wants(s);
    segments.iter().find(is_worth).cloned()
}

/// The files whose rows keep most of a file from going, and the length of the windows to make of them.
/// `without_cold`: only where no file of the kind is in the cold store, since all of them may have to be read.
pub fn choose_rollup(
    segments: &[Arc<Segment>],
    sources: &Sources<'_>,
    without_cold: bool,
) -> Option<(Arc<Segment>, Resolution)> {
    let kin = |s: &Segment| (s.head.tenant.clone(), s.head.kind, s.resolution(), s.head.policy);
    let cold = segments.iter().filter(|s| without_cold && s.cold.is_some());
    let cold: BTreeSet<_> = cold.map(|s| kin(s)).collect();
    let candidates = segments
        .iter()
        .filter(|s| !s.is_set_aside() && !s.is_of_lines() && s.resolution() != Some(Resolution::Hour))
        .filter(|s| !cold.contains(&kin(s)));
    let mut wanting = candidates.filter(|s| sources.share(s).is_some_and(|share| share.wants_rollup()));
    wanting.next().map(|s| {
        let made = match s.resolution() {
            None => Resolution::FiveMinutes,
            Some(_) => Resolution::Hour,
        };
        (s.clone(), made)
    })
}

pub fn report(run: &[Arc<Segment>], merged: Option<&Segment>) -> CompactReport {
    CompactReport {
        rewrites: 0,
        windows: 0,
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
    pub catalog: &'a Catalog,
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
        let ids: Vec<u32> = run.iter().flat_map(|s| s.ids()).collect();
        match (run[0].resolution(), run[0].head.kind) {
            (Some(resolution), _) => self.windows(run, ids, resolution, let_go),
            (None, FileKind::Metric) => self.metrics(run, ids, let_go),
            (None, FileKind::Log) => self.lines(run, ids, let_go),
        }
    }

    fn metrics(
        &self,
        run: &[Arc<Segment>],
        ids: Vec<u32>,
        let_go: &mut Vec<LetGo>,
    ) -> Result<Option<Segment>, StorageError> {
        self.count_forgotten(run, &ids, let_go);
        let inputs: Vec<&metric::Segment> = run.iter().filter_map(|s| s.metrics()).collect();
        let mut readers: Vec<metric::PageReader<'_>> = inputs.iter().map(|s| s.reader()).collect();
        let mut writer = None;
        let mut points = Points::default();
        for (id, series) in in_file_order(self.catalog, ids) {
            let spans = kept_rows(&self.retention.reach(&series), false, covered(self.windows, id));
            let mut before = 0;
            points.clear();
            for (segment, reader) in inputs.iter().zip(&mut readers) {
                for page in segment.pages_of(id) {
                    before += segment.page_rows(page);
                    reader.append(page, &spans, &mut points)?;
                }
            }
            if points.len() < before {
                let rows = (before - points.len()) as u64;
                let_go.push(LetGo { id, rows });
            }
            points.settle();
            if !points.is_empty() {
                self.metric_writer(&mut writer, run)?
                    .series(id, &points.times, &points.values)?;
            }
        }
        let finished = writer.map(|w| w.finish(self.disk)).transpose()?;
        Ok(finished.map(|s| Segment::of_metrics(s, Tier::Compacted)))
    }

    fn windows(
        &self,
        run: &[Arc<Segment>],
        columns: Vec<u32>,
        resolution: Resolution,
        let_go: &mut Vec<LetGo>,
    ) -> Result<Option<Segment>, StorageError> {
        let mut files = WindowFiles::new(run);
        let mut writer = None;
        let ids = columns.into_iter().map(series_of).collect();
        for (id, series) in in_file_order(self.catalog, ids) {
            let (reach, covered) = (self.retention.reach(&series), covered(self.windows, id));
            let mut windows = files.read(id, resolution, i64::MIN, i64::MAX)?;
            let before = windows.len();
            windows.retain(|w| keeps(&reach, resolution, w.end.0, covered));
            if windows.len() < before {
                let rows = (before - windows.len()) as u64;
                let_go.push(LetGo { id, rows });
            }
            if !windows.is_empty() {
                write_windows(self.metric_writer(&mut writer, run)?, id, &windows)?;
            }
        }
        let finished = writer.map(|w| w.finish(self.disk)).transpose()?;
        Ok(finished.map(|s| Segment::of_metrics(s, Tier::Compacted)))
    }

    fn metric_writer<'w>(
        &self,
        writer: &'w mut Option<metric::Writer>,
        run: &[Arc<Segment>],
    ) -> Result<&'w mut metric::Writer, StorageError> {
        Ok(match writer {
            Some(w) => w,
            none => none.insert(metric::Writer::create(
                self.disk,
                self.dir,
                self.number,
                head_of(run),
                metric::Tier::Compacted,
            )?),
        })
    }

    /// Rows of series that are known no more stay behind.
    fn count_forgotten(&self, run: &[Arc<Segment>], ids: &[u32], let_go: &mut Vec<LetGo>) {
        let is_unknown = |id: &u32| self.catalog.get(*id).is_none();
        let unknown: BTreeSet<u32> = ids.iter().copied().filter(is_unknown).collect();
        for id in unknown {
            let stretches = run.iter().flat_map(|s| s.stretches(id));
            let rows = stretches.map(|s| s.rows).sum();
            let_go.push(LetGo { id, rows });
        }
    }

    fn lines(
        &self,
        run: &[Arc<Segment>],
        mut ids: Vec<u32>,
        let_go: &mut Vec<LetGo>,
    ) -> Result<Option<Segment>, StorageError> {
        self.count_forgotten(run, &ids, let_go);
        let inputs: Vec<&logs::Segment> = run.iter().filter_map(|s| s.lines()).collect();
        ids.sort_unstable();
        ids.dedup();
        let mut writer = None;
        for id in ids {
            let Some(series) = self.catalog.get(id) else { continue };
            let spans = kept_rows(&self.retention.reach(&series), true, Covered::NOTHING);
            let mut gone = 0;
            for blocks in batches(&inputs, id) {
                let mut lines = Lines::default();
                for (input, number) in blocks {
                    let block = inputs[input].block(number);
                    let all = block.lines(0..block.rows())?;
                    for l in all.iter() {
                        if is_within(&spans, l.at) {
                            lines.push(l);
                        } else {
                            gone += 1;
                        }
                    }
                }
                let mut lines: Vec<RawLine<'_>> = lines.iter().collect();
                lines.sort_by_key(|l| l.at);
                if is_marked(series.labels) {
                    // Native histograms are samples: the last commit of a time takes the place of those before.
                    lines.dedup_by(|later, kept| {
                        let is_same = later.at == kept.at;
                        if is_same {
                            *kept = *later;
                        }
                        is_same
                    });
                }
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
            if gone > 0 {
                let_go.push(LetGo { id, rows: gone });
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
    let commits = run.iter().map(|s| s.head.commits);
    let times = run.iter().map(|s| s.head.times);
    Head {
        commits: commits.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))).unwrap_or((0, 0)),
        times: times.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))).unwrap_or((0, 0)),
        ..run[0].head.clone()
    }
}

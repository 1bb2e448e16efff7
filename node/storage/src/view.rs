//! Reads: what a shard answers, from segments and heads together, while its owner goes on applying.
//!
//! Invariants
//! - An answer is of one moment: it holds whole entries, up to the position that was applied when it began.
//! - Sources are walked in the order of commits, so that of equal times the last commit wins and lines keep theirs.
//! - `as_of` is exact or refused: a source that lies on both sides of it is never split by guess.

use crate::aggregate::{HOUR_NS, Resolution, Window, hours_of, windows_of};
use crate::codec::RawLine;
use crate::container::FileKind;
use crate::error::{Damage, ReadError, StorageError};
use crate::grain::{Parts, Rolled, push_lasts};
use crate::head::{Copied, Head, Unpacker};
use crate::index::{Directory, Series};
use crate::logs::{self, Filter, PackedBlock, Settled};
use crate::metric::{self, PageReader};
use crate::points::Points;
use crate::read::{
    AggregateData, CountLines, Direction, LabelTexts, SearchLabels, SelectAggregates, SelectLines, SelectSeries,
    SeriesData, StreamCounts, StreamData,
};
use crate::retention::{Reach, Retention, Spans, is_within, joined};
use crate::rollup::{Covered, WindowFiles, covered, shown};
use crate::segment::Segment;
use crate::shard::check_sides;
use hindcast_env::Disk;
use hindcast_model::histogram::is_marked;
use hindcast_model::{Labels, LogLine, Matcher, Owner, ResourceId, Slot, TenantId, TimestampNs, codec};
use parking_lot::RwLock;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

/// What owner and readers share. The owner writes it under a lock that is held for moments only.
pub struct State {
    pub directory: Directory,
    /// The newest event time of each id, of what is in segments; the heads know of theirs.
    pub newest: Vec<i64>,
    pub retention: Retention,
    pub applied: u64,
    pub active: Head,
    /// In the order of commits.
    pub sealed: Vec<Arc<Head>>,
    /// In the order of commits, among those of one tenant, kind and policy.
    pub segments: Vec<Arc<Segment>>,
    /// What was rolled up.
    pub windows: Vec<Arc<Segment>>,
    /// By whose rule series were forgotten, since the shard was opened: files may hold rows of them still.
    pub forgotten: BTreeMap<u32, Arc<str>>,
    /// What the last look at the manifest and the files beside the segments found.
    pub sides_damage: Option<Damage>,
}

/// Reads a shard from any thread, for as long as it likes. Clones read the same shard.
#[derive(Clone)]
pub struct ShardReader {
    pub(crate) state: Arc<RwLock<State>>,
}

/// A series that `ShardReader::visit` hands on.
#[derive(Clone, Copy, Debug)]
pub struct VisitedSeries<'a> {
    pub labels: &'a Labels,
    pub owner: Owner,
    pub slot: Slot,
    /// Of the labels.
    pub fingerprint: u64,
    /// What came in another form than rows.
    pub rolled: &'a Rolled,
    /// Ranks ascend by (slot, fingerprint, labels).
    pub rank: usize,
}

impl VisitedSeries<'_> {
    pub fn with_samples(&self, points: &Points) -> SeriesData {
        SeriesData {
            labels: self.labels.clone(),
            owner: self.owner,
            slot: self.slot,
            samples: points.to_samples(),
            has_lasts: self.rolled.has_lasts,
        }
    }
}

/// Takes a line of a stream, and says whether more are wanted.
pub type EachLine<'a> = dyn FnMut(VisitedStream<'_>, TimestampNs, &[u8]) -> ControlFlow<()> + 'a;

/// A stream that `ShardReader::visit_lines` hands lines of.
#[derive(Clone, Copy, Debug)]
pub struct VisitedStream<'a> {
    pub labels: &'a Labels,
    pub owner: Owner,
    pub slot: Slot,
    /// Of each stream another one, ascending.
    pub rank: usize,
}

/// A read of no more series, files, pages and rows than this is quick: a few tenths of a millisecond at most.
const QUICK_SERIES_MAX: u64 = 8;
const QUICK_FILES_MAX: usize = 32;
const QUICK_PAGES_MAX: usize = 16;
const QUICK_ROWS_MAX: usize = 8 << 10;
/// Likewise, of texts of labels, and of files that are looked at for their series.
const QUICK_TEXTS_MAX: usize = 256;
const QUICK_LOOKS_MAX: usize = 4096;

/// A series that a read wants, and the times in which it may have it.
struct Wanted {
    id: u32,
    labels: Labels,
    owner: Owner,
    slot: Slot,
    fingerprint: u64,
    spans: Spans,
    /// Where windows of it may be seen.
    old: Option<Old>,
}

/// What a read needs to know of a series' windows.
struct Old {
    reach: Reach,
    covered: Covered,
    /// Rows of windows that are in no file, as far as the read wants them.
    rows: Spans,
}

/// The sources of one read, oldest first.
struct Sources {
    segments: Vec<Arc<Segment>>,
    sealed: Vec<Arc<Head>>,
    windows: Vec<Arc<Segment>>,
    /// Whether the active head is one of them.
    active: bool,
}

impl State {
    /// Segments that are on this disk, as wanted.
    fn here(&self, wanted: impl Fn(&Segment) -> bool) -> Vec<Arc<Segment>> {
        let here = self.segments.iter().chain(&self.windows).filter(|s| s.cold.is_none());
        here.filter(|s| wanted(s)).cloned().collect()
    }

    fn sources(&self, tenant: &TenantId, streams: bool, as_of: Option<u64>) -> Result<Sources, ReadError> {
        let kind = if streams { FileKind::Log } else { FileKind::Metric };
        let of_us = |s: &&Arc<Segment>| s.head.tenant == *tenant && s.head.kind == kind;
        let Some(as_of) = as_of.filter(|&i| i < self.applied) else {
            return Ok(Sources {
                segments: self.segments.iter().filter(of_us).cloned().collect(),
                sealed: self.sealed.clone(),
                windows: self
                    .windows
                    .iter()
                    .filter(|s| s.head.tenant == *tenant)
                    .cloned()
                    .collect(),
                active: true,
            });
        };
        let no_cut = || ReadError::NoCut {
            as_of,
            applied: self.applied,
            before: self.retention.last_cut_before(as_of),
        };
        if !self.retention.is_cut(as_of) {
            return Err(no_cut());
        }
        // Straddling happens when a cut was dropped, files were merged, and a restart replays the time before.
        let is_known_then = |(first, last): (u64, u64)| match (first <= as_of, last <= as_of) {
            (_, true) => Ok(true),
            (false, false) => Ok(false),
            (true, false) => Err(no_cut()),
        };
        let mut known = Sources {
            segments: vec![],
            sealed: vec![],
            windows: vec![],
            active: self.active.commits().map_or(Ok(false), is_known_then)?,
        };
        for s in self.segments.iter().filter(of_us) {
            if is_known_then(s.head.commits)? {
                known.segments.push(s.clone());
            }
        }
        for m in &self.sealed {
            if m.commits().map_or(Ok(false), is_known_then)? {
                known.sealed.push(m.clone());
            }
        }
        Ok(known)
    }

    /// Rows of the active head, for use without the lock.
    fn copy(&self, wanted: &[Wanted]) -> Copied {
        let spans: Vec<(u32, Spans)> = wanted.iter().map(|w| (w.id, w.all_rows())).collect();
        self.active.copy(&spans)
    }

    fn wanted(
        &self,
        tenant: &TenantId,
        streams: bool,
        any_of: &[Vec<Matcher>],
        owners: Option<&BTreeSet<ResourceId>>,
        (from, to): (TimestampNs, TimestampNs),
        with_windows: bool,
    ) -> Vec<Wanted> {
        let mut wanted = vec![];
        for id in self.directory.select(tenant, streams, any_of) {
            let Some(series) = self.directory.get(id) else { continue };
            if owners.is_some_and(|o| series.owner.id().is_none_or(|id| !o.contains(&id))) {
                continue;
            }
            wanted.extend(self.wanted_of(&series, (from, to), with_windows));
        }
        wanted
    }

    /// `None`: nothing of it can be read in that time.
    fn wanted_of(
        &self,
        series: &Series<'_>,
        (from, to): (TimestampNs, TimestampNs),
        with_windows: bool,
    ) -> Option<Wanted> {
        let reach = self.retention.reach(series);
        let spans = if from <= to {
            reach.rows(series.streams, from.0, to.0)
        } else {
            Spans::new()
        };
        let old = (with_windows && !series.streams)
            .then(|| self.old(series.id, reach, (from.0, to.0)))
            .flatten();
        (!spans.is_empty() || old.is_some()).then(|| Wanted {
            id: series.id,
            labels: series.labels.clone(),
            owner: series.owner,
            slot: series.slot,
            fingerprint: series.fingerprint,
            spans,
            old,
        })
    }

    /// `None`: the read wants no time in which there may be windows.
    fn old(&self, id: u32, reach: Reach, (from, to): (i64, i64)) -> Option<Old> {
        let frozen_to = reach.frozen_to();
        if !reach.has_windows() || from > to || from > frozen_to {
            return None;
        }
        let covered = covered(&self.windows, id);
        // Whole hours: an hour is wanted when its last row is.
        let first = Resolution::Hour.end_of(from).saturating_sub(HOUR_NS).saturating_add(1);
        let last = Resolution::Hour.end_of(to).min(frozen_to);
        let rows = joined([(first.max(covered.five.saturating_add(1)), last)].into_iter());
        Some(Old { reach, covered, rows })
    }
}

impl Wanted {
    fn outer(&self) -> (i64, i64) {
        outer(&self.spans)
    }

    /// Times of all rows that the read may look at.
    fn all_rows(&self) -> Spans {
        let Some(old) = &self.old else {
            return self.spans.clone();
        };
        joined(self.spans.iter().chain(&old.rows).copied())
    }
}

fn outer(spans: &Spans) -> (i64, i64) {
    let first = spans.first().map_or(i64::MAX, |s| s.0);
    (first, spans.last().map_or(i64::MIN, |s| s.1))
}

impl Sources {
    /// Whether tables alone tell of a row in the time asked for, in what is not the active head.
    fn surely_has_rows(&self, wanted: &Wanted) -> bool {
        let (from, to) = wanted.outer();
        let within = |(first, last): (i64, i64)| is_within(&wanted.spans, first) || is_within(&wanted.spans, last);
        let in_segment = |s: &Arc<Segment>| {
            let page = |m: &metric::Segment| m.pages_in(wanted.id, from, to).any(|p| within(m.page_times(p)));
            let block = |l: &logs::Segment| {
                let mut infos = l.blocks_in(wanted.id, from, to).map(|n| l.info(n));
                infos.any(|i| within((i.first, i.last)))
            };
            s.metrics().is_some_and(page) || s.lines().is_some_and(block)
        };
        self.segments.iter().any(in_segment) || self.sealed.iter().any(|h| surely_has_rows(h, wanted))
    }

    /// Leaves out files of rows in which nothing that is wanted can lie: they would be searched for each series.
    fn keep_reached(&mut self, wanted: &[Wanted]) {
        let reach = wanted.iter().map(|w| outer(&w.all_rows()));
        let (from, to) = reach.fold((i64::MAX, i64::MIN), |a, b| (a.0.min(b.0), a.1.max(b.1)));
        self.segments.retain(|s| s.head.times.0 <= to && from <= s.head.times.1);
    }

    /// Where series lie in the largest file: all files have their series in one order.
    fn places_in_files(&self) -> impl Fn(u32) -> u32 {
        let metrics = self.segments.iter().filter_map(|s| s.metrics());
        let largest = metrics.max_by_key(|s| s.rows());
        move |id| {
            let pages = largest.map(|s| s.pages_of(id));
            pages.filter(|p| !p.is_empty()).map_or(u32::MAX, |p| p.start)
        }
    }
}

/// Samples of a series in all sources, appended in the order of commits.
struct Scan<'a> {
    segments: Vec<PageReader<'a>>,
    windows: WindowFiles<'a>,
    sources: &'a Sources,
    active: Copied,
    unpacker: Unpacker,
}

impl<'a> Scan<'a> {
    fn new(sources: &'a Sources, active: Copied) -> Self {
        Self {
            segments: sources
                .segments
                .iter()
                .filter_map(|s| Some(s.metrics()?.reader()))
                .collect(),
            windows: WindowFiles::new(&sources.windows),
            sources,
            active,
            unpacker: Unpacker::default(),
        }
    }

    fn rows(&mut self, i: usize, id: u32, spans: &Spans, out: &mut Points) -> Result<(), ReadError> {
        let (from, to) = outer(spans);
        for reader in &mut self.segments {
            for page in reader.segment().pages_in(id, from, to) {
                reader.append(page, spans, out)?;
            }
        }
        for head in &self.sources.sealed {
            head.append_samples(id, spans, &mut self.unpacker, out);
        }
        self.active.append_samples(i, spans, &mut self.unpacker, out);
        Ok(())
    }

    /// The windows of five minutes of the `i`th wanted series that end in `from..=to`: from files, then from rows.
    fn fives(&mut self, i: usize, id: u32, old: &Old, (from, to): (i64, i64)) -> Result<Vec<Window>, ReadError> {
        let mut windows = self.windows.read(id, Resolution::FiveMinutes, from, to)?;
        let mut rows = Points::default();
        self.rows(i, id, &old.rows, &mut rows)?;
        rows.settle();
        let made = windows_of(&rows.to_samples());
        windows.extend(made.into_iter().filter(|w| (from..=to).contains(&w.end.0)));
        Ok(windows)
    }

    /// Windows of the `i`th wanted series that may be seen and end in `from..=to`, from files and from rows.
    fn windows_of(
        &mut self,
        i: usize,
        wanted: &Wanted,
        resolution: Resolution,
        (from, to): (i64, i64),
    ) -> Result<Vec<Window>, ReadError> {
        let Some(old) = &wanted.old else { return Ok(vec![]) };
        let to = to.min(old.reach.frozen_to());
        let mut windows = match resolution {
            Resolution::FiveMinutes => self.fives(i, wanted.id, old, (from, to))?,
            Resolution::Hour => {
                let mut windows = self.windows.read(wanted.id, Resolution::Hour, from, to)?;
                let first = Resolution::Hour
                    .end_of(from)
                    .saturating_sub(HOUR_NS)
                    .max(old.covered.hour);
                let rest = hours_of(&self.fives(i, wanted.id, old, (first.saturating_add(1), to))?);
                windows.extend(rest.into_iter().filter(|w| (from..=to).contains(&w.end.0)));
                windows
            }
        };
        shown(&old.reach, resolution, &mut windows);
        Ok(windows)
    }

    /// All of the `i`th wanted series: rows, and in their place windows of at most `longest_ns`, or the last samples of
    /// windows that are longer.
    fn parts(
        &mut self,
        i: usize,
        wanted: &Wanted,
        (from, to): (i64, i64),
        longest_ns: i64,
        (points, rolled): (&mut Points, &mut Rolled),
    ) -> Result<(), ReadError> {
        rolled.clear();
        let Some(old) = &wanted.old else {
            return self.rows(i, wanted.id, &wanted.spans, points);
        };
        let parts = Parts::of(&old.reach, longest_ns, (from, to));
        self.rows(i, wanted.id, &parts.rows, points)?;
        for (resolution, lasts) in Resolution::ALL.into_iter().zip(&parts.lasts) {
            let grain = parts.grain.spans(resolution);
            if grain.iter().any(|(a, b)| *a <= to && from <= *b) {
                let windows = self.windows_of(i, wanted, resolution, (from, to))?;
                let ours = windows.into_iter().filter(|w| is_within(grain, w.end.0));
                rolled.windows.extend(ours);
            }
            if !lasts.is_empty() {
                let mut windows = self.windows_of(i, wanted, resolution, (from, resolution.end_of(to)))?;
                windows.retain(|w| is_within(lasts, w.end.0));
                let before = points.len();
                push_lasts(&windows, (from, to), points);
                rolled.has_lasts |= points.len() > before;
            }
        }
        rolled.windows.sort_by_key(|w| w.end);
        rolled.grain = parts.grain;
        Ok(())
    }

    /// Whether a row of the `i`th series or stream, or a sample that stands for a window, lies in the time asked for.
    fn has_row(&mut self, i: usize, q: &SearchLabels, unsure: &Unsure) -> Result<bool, ReadError> {
        let wanted = &unsure.wanted;
        if unsure.in_active || self.has_any(q.streams, wanted)? {
            return Ok(true);
        }
        if wanted.old.is_none() {
            return Ok(false);
        }
        let mut old = Points::default();
        self.parts(i, wanted, (q.from.0, q.to.0), 0, (&mut old, &mut Rolled::default()))?;
        Ok(!old.is_empty())
    }

    /// Whether a row of this series or stream lies in the time asked for, in what is not the active head.
    fn has_any(&mut self, streams: bool, wanted: &Wanted) -> Result<bool, ReadError> {
        for head in &self.sources.sealed {
            if has_rows(head, streams, wanted)? {
                return Ok(true);
            }
        }
        let (from, to) = wanted.outer();
        let within = |at| is_within(&wanted.spans, at);
        // The page table knows the first and the last row; only between them the page must be read.
        for reader in &mut self.segments {
            for page in reader.segment().pages_in(wanted.id, from, to) {
                let (first, last) = reader.segment().page_times(page);
                if within(first) || within(last) || reader.times(page)?.iter().any(|&at| within(at)) {
                    return Ok(true);
                }
            }
        }
        for segment in self.sources.segments.iter().filter_map(|s| s.lines()) {
            for number in segment.blocks_in(wanted.id, from, to) {
                let info = segment.info(number);
                if within(info.first) || within(info.last) {
                    return Ok(true);
                }
                let times = segment.block(number);
                let times = times.times()?;
                for &(a, b) in &wanted.spans {
                    if !times.rows_in(a, b).is_empty() {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    }
}

/// A series or stream that may have a row in the time asked for.
struct Unsure {
    /// The caller's.
    place: usize,
    wanted: Wanted,
    in_active: bool,
}

impl Unsure {
    /// What must be known of the active head to go on without the lock.
    fn copy(state: &State, streams: bool, wanted: Vec<(usize, Wanted)>) -> Result<(Vec<Self>, Copied), ReadError> {
        let copied = if wanted.iter().any(|(_, w)| w.old.is_some()) {
            let spans: Vec<(u32, Spans)> = wanted.iter().map(|(_, w)| (w.id, w.all_rows())).collect();
            state.active.copy(&spans)
        } else {
            Copied::nothing(wanted.len())
        };
        let unsure = wanted.into_iter().map(|(place, wanted)| {
            Ok(Self {
                in_active: has_rows(&state.active, streams, &wanted)?,
                place,
                wanted,
            })
        });
        Ok((unsure.collect::<Result<_, ReadError>>()?, copied))
    }
}

/// Whether a head's first and last times alone tell of a row in the time asked for.
fn surely_has_rows(head: &Head, wanted: &Wanted) -> bool {
    let ends = head.times_of(wanted.id);
    ends.is_some_and(|(first, last)| is_within(&wanted.spans, first) || is_within(&wanted.spans, last))
}

fn has_rows(head: &Head, streams: bool, wanted: &Wanted) -> Result<bool, ReadError> {
    let Some((first, last)) = head.times_of(wanted.id) else {
        return Ok(false);
    };
    let (from, to) = wanted.outer();
    if last < from || to < first {
        return Ok(false);
    }
    if is_within(&wanted.spans, first) || is_within(&wanted.spans, last) {
        return Ok(true);
    }
    if streams {
        return head.stream(wanted.id).map_or(Ok(false), |c| c.has_any(&wanted.spans));
    }
    let mut samples = Points::default();
    head.append_samples(wanted.id, &wanted.spans, &mut Unpacker::default(), &mut samples);
    Ok(!samples.is_empty())
}

impl ShardReader {
    pub fn applied(&self) -> u64 {
        self.state.read().applied
    }

    /// The ids of those series or streams that the shard knows, and the epoch in which they hold. What is known here
    /// was committed, so that any entry proposed from now on may name it.
    pub fn ids<'a>(
        &self,
        tenant: &TenantId,
        streams: bool,
        wanted: impl Iterator<Item = (&'a Labels, &'a Owner)>,
    ) -> (u64, Vec<Option<u32>>) {
        let state = self.state.read();
        let ids = wanted.map(|(labels, owner)| state.directory.find(tenant, streams, labels, owner));
        (state.directory.epoch(), ids.collect())
    }

    /// Whether samples are read about as soon as another thread would wake up for it: of few series, few rows in few files, all of them
    /// on this disk or in memory. A guess: nothing depends on it but where the read is done.
    pub fn is_quick(&self, q: &SelectSeries) -> bool {
        let state = self.state.read();
        let found = state
            .directory
            .select_few(&q.tenant, false, &q.matchers, QUICK_SERIES_MAX);
        let Some(ids) = found else { return false };
        if ids.is_empty() {
            return true;
        }
        let is_reached = |s: &&Arc<Segment>| {
            let (first, last) = s.head.times;
            s.head.tenant == q.tenant && first <= q.to.0 && q.from.0 <= last
        };
        let files: Vec<&Arc<Segment>> = state
            .segments
            .iter()
            .filter(is_reached)
            .take(QUICK_FILES_MAX + 1)
            .collect();
        if files.len() > QUICK_FILES_MAX {
            return false;
        }
        let (mut pages, mut rows) = (0, 0);
        for series in ids.iter().filter_map(|id| state.directory.get(*id)) {
            let Some(wanted) = state.wanted_of(&series, (q.from, q.to), true) else {
                continue;
            };
            if wanted.old.is_some() {
                return false;
            }
            let (from, to) = wanted.outer();
            for file in &files {
                let Some(metrics) = file.metrics() else { continue };
                let of_series = metrics.pages_in(series.id, from, to);
                if !of_series.is_empty() && file.cold.is_some() {
                    return false;
                }
                pages += of_series.len();
                rows += of_series.map(|page| metrics.page_rows(page)).sum::<usize>();
            }
            // Those of a head are about all of them: it does not tell how many lie in a time.
            let heads = state.sealed.iter().map(Arc::as_ref).chain([&state.active]);
            rows += heads.map(|head| head.rows_about(series.id)).sum::<usize>();
        }
        pages <= QUICK_PAGES_MAX && rows <= QUICK_ROWS_MAX
    }

    /// Whether what a tenant has of a time may have to be fetched from the cold store.
    pub fn has_cold(&self, tenant: &TenantId, from: TimestampNs, to: TimestampNs) -> bool {
        let state = self.state.read();
        let files = state.segments.iter().chain(&state.windows);
        let mut cold = files.filter(|s| s.cold.is_some() && s.head.tenant == *tenant);
        cold.any(|s| s.head.times.0 <= to.0 && from.0 <= s.head.times.1)
    }

    /// Whether the shard may know a series, or a stream, that matches; it may have no row. What needs a search is not looked for.
    pub fn knows(&self, tenant: &TenantId, streams: bool, matchers: &[Matcher]) -> bool {
        let state = self.state.read();
        let found = state.directory.select_few(tenant, streams, matchers, 0);
        found.is_none()
    }

    /// The epoch in which ids hold now.
    pub fn epoch(&self) -> u64 {
        self.state.read().directory.epoch()
    }

    /// The files that never change and are in force now, each to be checked by itself; the shard goes on meanwhile.
    pub fn files(&self) -> Vec<crate::verify::ImmutableFile> {
        let segments: Vec<Arc<Segment>> = {
            let state = self.state.read();
            state.segments.iter().chain(&state.windows).cloned().collect()
        };
        segments.iter().map(|s| s.immutable_file()).collect()
    }

    /// Files that are here, in force, and suspect: a read did not find in them what was written, and nobody knows yet
    /// whether the disk has it.
    pub fn suspects(&self) -> Vec<crate::verify::ImmutableFile> {
        let suspects = self
            .state
            .read()
            .here(|s| s.container().is_suspect() && s.damage_found().is_none());
        suspects.iter().map(|s| s.immutable_file()).collect()
    }

    /// Somebody else saw what may be damage of this file.
    pub fn suspect(&self, path: &str) {
        for segment in self.state.read().here(|s| s.path() == path) {
            segment.container().suspect(true);
        }
    }

    /// A whole look at a file ended: with what it found, or with nothing. One that is not in force any more, or is in the
    /// cold store, is nobody's damage here. True: it is news.
    pub fn looked_at(&self, path: &str, damage: Option<Damage>) -> bool {
        let Some(segment) = self.state.read().here(|s| s.path() == path).pop() else {
            return false;
        };
        segment.container().suspect(false);
        let is_news = damage.is_some() && segment.damage_found().is_none();
        damage.into_iter().for_each(|d| segment.found(d));
        is_news
    }

    /// What is known to be damaged, of the files that are here and in force. It ends with them: merged, let go, or
    /// replaced by a snapshot.
    pub fn damaged(&self) -> Vec<Damage> {
        let state = self.state.read();
        let damaged = state.here(|s| s.damage_found().is_some());
        let of_segments = damaged.iter().filter_map(|s| s.damage_found());
        of_segments.chain(&state.sides_damage).cloned().collect()
    }

    /// Looks at the newest manifest in the shard's folder and at the files that it names beside segments, as the disk has them;
    /// what is damaged stays known until another look finds nothing, or a snapshot replaces it. Damages: none or one.
    pub fn check_sides(&self, disk: &dyn Disk, dir: &str) -> Result<Option<Damage>, StorageError> {
        let found = match check_sides(disk, dir) {
            Ok(()) => None,
            Err(StorageError::Damaged(damage)) => Some(damage),
            Err(e) => return Err(e),
        };
        self.state.write().sides_damage.clone_from(&found);
        Ok(found)
    }

    /// Sorted by (slot, fingerprint, labels). A label set occurs once per slot; series without a sample are left out.
    pub fn series(&self, q: &SelectSeries) -> Result<Vec<SeriesData>, ReadError> {
        let mut answer = vec![];
        self.visit(q, &mut |series, points| {
            answer.push((series.rank, series.with_samples(points)));
            ControlFlow::Continue(())
        })?;
        answer.sort_unstable_by_key(|(rank, _)| *rank);
        Ok(answer.into_iter().map(|(_, series)| series).collect())
    }

    /// Hands on what `series` would answer, one series after the other, without holding more than one: their columns
    /// live until `each` returns. Ends early when it breaks.
    ///
    /// They come in the order in which they lie in files, so that each group of pages is unpacked once;
    /// `VisitedSeries::rank` says where they stand among all.
    pub fn visit(
        &self,
        q: &SelectSeries,
        each: &mut dyn FnMut(VisitedSeries<'_>, &Points) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        self.visit_rolled(q, 0, each)
    }

    /// As `visit`, but windows of at most `longest_ns` come as such, in place of the rows that they stand for.
    pub fn visit_rolled(
        &self,
        q: &SelectSeries,
        longest_ns: i64,
        each: &mut dyn FnMut(VisitedSeries<'_>, &Points) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let (mut sources, wanted, active) = {
            let state = self.state.read();
            let sources = state.sources(&q.tenant, false, q.as_of)?;
            let any_of = std::slice::from_ref(&q.matchers);
            // What was known at a cut is told from rows alone.
            let with_windows = q.as_of.is_none_or(|i| i >= state.applied);
            let wanted = state.wanted(
                &q.tenant,
                false,
                any_of,
                q.owners.as_ref(),
                (q.from, q.to),
                with_windows,
            );
            let active = if sources.active {
                state.copy(&wanted)
            } else {
                Copied::nothing(wanted.len())
            };
            (sources, wanted, active)
        };
        sources.keep_reached(&wanted);
        let mut scan = Scan::new(&sources, active);
        let range = (q.from.0, q.to.0);
        let (mut points, mut rolled) = (Points::default(), Rolled::default());
        let (mut alone, mut of_it) = (Points::default(), Rolled::default());
        // Two owners in one slot whose series bear the same labels: one series to whoever asks by labels. Their rows
        // fall between each other, and windows cannot be put together so: then each gives its last sample.
        let is_same = |a: &Wanted, b: &Wanted| a.slot == b.slot && a.labels == b.labels;
        let place_of = sources.places_in_files();
        let mut places = Vec::with_capacity(wanted.len());
        for same in wanted.chunk_by(is_same) {
            let start = places.last().map_or(0, |(_, p): &(u32, Range<usize>)| p.end);
            places.push((place_of(same[0].id), start..start + same.len()));
        }
        places.sort_by_key(|(place, _)| *place);
        for (_, at) in places {
            let same = &wanted[at.clone()];
            let is_one = same.len() == 1;
            let mut owner = None;
            points.clear();
            rolled.clear();
            for (w, i) in same.iter().zip(at.clone()) {
                alone.clear();
                let into = if is_one { &mut points } else { &mut alone };
                let longest_ns = if is_one { longest_ns } else { 0 };
                scan.parts(i, w, range, longest_ns, (&mut *into, &mut of_it))?;
                into.settle();
                if !into.is_empty() || !of_it.windows.is_empty() {
                    owner = owner.or(Some(w.owner));
                }
                if is_one {
                    std::mem::swap(&mut rolled, &mut of_it);
                } else {
                    points.extend(&alone);
                    rolled.has_lasts |= of_it.has_lasts;
                }
            }
            if !is_one {
                points.settle();
            }
            let Some(owner) = owner else { continue };
            let series = VisitedSeries {
                labels: &same[0].labels,
                owner,
                slot: same[0].slot,
                fingerprint: same[0].fingerprint,
                rolled: &rolled,
                rank: at.start,
            };
            if each(series, &points).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Sorted by (slot, fingerprint, labels, owner); series without a window are left out.
    pub fn aggregates(&self, q: &SelectAggregates) -> Result<Vec<AggregateData>, ReadError> {
        let (sources, wanted, active) = {
            let state = self.state.read();
            let sources = state.sources(&q.tenant, false, None)?;
            let any_of = std::slice::from_ref(&q.matchers);
            let wanted = state.wanted(&q.tenant, false, any_of, q.owners.as_ref(), (q.from, q.to), true);
            let active = state.copy(&wanted);
            (sources, wanted, active)
        };
        let mut scan = Scan::new(&sources, active);
        let mut answer = vec![];
        for (i, w) in wanted.into_iter().enumerate() {
            let windows = scan.windows_of(i, &w, q.resolution, (q.from.0, q.to.0))?;
            if !windows.is_empty() {
                answer.push(AggregateData {
                    labels: w.labels,
                    owner: w.owner,
                    slot: w.slot,
                    windows,
                });
            }
        }
        Ok(answer)
    }

    /// Sorted by (slot, fingerprint, labels, owner); streams without a line are left out. Of native histograms of one time, which are samples,
    /// the last commit is there.
    pub fn lines(&self, q: &SelectLines) -> Result<Vec<StreamData>, ReadError> {
        let mut gather = Gather::new(q);
        let (sources, wanted, closed) = {
            let state = self.state.read();
            let sources = state.sources(&q.tenant, true, q.as_of)?;
            let any_of = std::slice::from_ref(&q.matchers);
            let wanted = state.wanted(&q.tenant, true, any_of, q.owners.as_ref(), (q.from, q.to), false);
            gather.overwrite = wanted.iter().map(|w| is_marked(&w.labels)).collect();
            // Closed lines are shared; open ones are few enough to be read under the lock. They stand after the closed.
            let mut closed = vec![];
            for (rank, w) in wanted.iter().enumerate().filter(|_| sources.active) {
                if let Some(c) = state.active.stream(w.id) {
                    gather.column(rank, OPEN, &w.spans, (0..).zip(c.open_lines()));
                    closed.push((rank, c.closed().clone()));
                }
            }
            (sources, wanted, closed)
        };
        let heads = sources.segments.len();
        for (source, head) in sources.sealed.iter().enumerate() {
            for (rank, w) in wanted.iter().enumerate() {
                if let Some(c) = head.stream(w.id) {
                    gather.column(rank, heads + source, &w.spans, c.loose_lines());
                    gather.packed(rank, heads + source, &w.spans, &c.closed().packed)?;
                }
            }
        }
        for (rank, closed) in &closed {
            let (source, spans) = (heads + sources.sealed.len(), &wanted[*rank].spans);
            gather.column(*rank, source, spans, closed.loose());
            gather.packed(*rank, source, spans, &closed.packed)?;
        }
        gather.segments(&sources.segments, &wanted)?;
        Ok(gather.finish(&wanted))
    }

    /// Hands on the lines of every stream that matches, one stream after the other, sorted by (slot, fingerprint, labels, owner), and of
    /// each in the order of commits: of lines of one time the last commit comes last. Never holds more than a block of lines, beside
    /// those that were open in the head. Ends early when `each` breaks.
    pub fn visit_lines(&self, q: &SelectSeries, each: &mut EachLine<'_>) -> Result<(), ReadError> {
        let (mut sources, wanted, mut active) = {
            let state = self.state.read();
            let sources = state.sources(&q.tenant, true, q.as_of)?;
            let any_of = std::slice::from_ref(&q.matchers);
            let wanted = state.wanted(&q.tenant, true, any_of, q.owners.as_ref(), (q.from, q.to), false);
            let mut active = BTreeMap::new();
            for (rank, w) in wanted.iter().enumerate().filter(|_| sources.active) {
                if let Some(c) = state.active.stream(w.id) {
                    let open = c.open_lines().filter(|l| is_within(&w.spans, l.at));
                    let open: Vec<(i64, Vec<u8>)> = open.map(|l| (l.at, l.line.to_vec())).collect();
                    active.insert(rank, (c.closed().clone(), open));
                }
            }
            (sources, wanted, active)
        };
        sources.keep_reached(&wanted);
        let files: Vec<&logs::Segment> = sources.segments.iter().filter_map(|s| s.lines()).collect();
        for (rank, w) in wanted.iter().enumerate() {
            let stream = VisitedStream {
                labels: &w.labels,
                owner: w.owner,
                slot: w.slot,
                rank,
            };
            let (from, to) = w.outer();
            let mut walk = Walk {
                spans: &w.spans,
                settled: Settled::default(),
                rows: vec![],
                each: &mut |at, line| each(stream, TimestampNs(at), line),
                is_over: false,
            };
            for file in &files {
                for number in file.blocks_in(w.id, from, to) {
                    walk.block(&file.block(number))?;
                }
            }
            for column in sources.sealed.iter().filter_map(|h| h.stream(w.id)) {
                walk.packed(&column.closed().packed)?;
                walk.loose(column.loose_lines().map(|(_, l)| (l.at, l.line)));
            }
            if let Some((closed, open)) = active.remove(&rank) {
                walk.packed(&closed.packed)?;
                walk.loose(closed.loose().map(|(_, l)| (l.at, l.line)));
                walk.loose(open.iter().map(|(at, line)| (*at, line.as_slice())));
            }
            if walk.is_over {
                break;
            }
        }
        Ok(())
    }

    /// Sorted by (slot, fingerprint, labels, owner); streams without a line are left out. Reads times, and of blocks
    /// that the filter does not decide as a whole what it must. A stream's counts are made with its first line: then
    /// `keep` is told how many there will be. Ends when it breaks, with what was found so far.
    pub fn count_lines(
        &self,
        q: &CountLines,
        keep: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<StreamCounts>, ReadError> {
        let to = q.bounds.last().copied().unwrap_or(TimestampNs::MIN);
        let mut tally = Tally::new(q, keep);
        let (sources, wanted, closed) = {
            let state = self.state.read();
            let sources = state.sources(&q.tenant, true, q.as_of)?;
            let any_of = std::slice::from_ref(&q.matchers);
            let wanted = state.wanted(&q.tenant, true, any_of, q.owners.as_ref(), (q.from, to), false);
            tally.streams(wanted.len());
            let mut closed = vec![];
            for (rank, w) in wanted.iter().enumerate().filter(|_| sources.active) {
                if let Some(c) = state.active.stream(w.id) {
                    tally.lines(rank, &w.spans, c.open_lines());
                    closed.push((rank, c.closed().clone()));
                }
            }
            (sources, wanted, closed)
        };
        for (rank, closed) in &closed {
            let spans = &wanted[*rank].spans;
            tally.lines(*rank, spans, closed.loose().map(|(_, l)| l));
            tally.packed(*rank, spans, &closed.packed)?;
        }
        for (rank, w) in wanted.iter().enumerate() {
            for column in sources.sealed.iter().filter_map(|h| h.stream(w.id)) {
                tally.lines(rank, &w.spans, column.loose_lines().map(|(_, l)| l));
                tally.packed(rank, &w.spans, &column.closed().packed)?;
            }
            let (from, to) = w.outer();
            for segment in sources.segments.iter().filter_map(|s| s.lines()) {
                for number in segment.blocks_in(w.id, from, to) {
                    if tally.is_over {
                        return Ok(tally.finish(&wanted));
                    }
                    tally.block(rank, &w.spans, &segment.block(number))?;
                }
            }
        }
        Ok(tally.finish(&wanted))
    }

    /// Sorted, each once; exactly those with a row in the time asked for.
    pub fn label_sets(&self, q: &SearchLabels) -> Result<Vec<Labels>, ReadError> {
        let (sources, wanted, copied) = {
            let state = self.state.read();
            let sources = state.sources(&q.tenant, q.streams, None)?;
            let wanted = state.wanted(&q.tenant, q.streams, q.any_of(), None, (q.from, q.to), true);
            let wanted: Vec<(usize, Wanted)> = wanted.into_iter().enumerate().collect();
            let (unsure, copied) = Unsure::copy(&state, q.streams, wanted)?;
            (sources, unsure, copied)
        };
        let mut found = BTreeSet::new();
        let mut scan = Scan::new(&sources, copied);
        for (i, unsure) in wanted.iter().enumerate() {
            let labels = &unsure.wanted.labels;
            if !found.contains(labels) && scan.has_row(i, q, unsure)? {
                found.insert(labels.clone());
            }
        }
        Ok(found.into_iter().collect())
    }

    /// Names of labels, or values of one, that label sets with a row in the time asked for have; sorted, each once.
    /// Of each text one series with a row is enough, and most tell without a page being read.
    pub fn label_texts(&self, q: &SearchLabels, of: &LabelTexts) -> Result<Vec<String>, ReadError> {
        let told = self.texts_of(q, of, false)?;
        Ok(told.unwrap_or_default())
    }

    /// Likewise, if that is done about as soon as another thread would wake up for it: few texts, told by tables alone. `None`: it is not.
    pub fn label_texts_at_once(&self, q: &SearchLabels, of: &LabelTexts) -> Result<Option<Vec<String>>, ReadError> {
        self.texts_of(q, of, true)
    }

    /// `None`: not at once, as it is wanted.
    fn texts_of(&self, q: &SearchLabels, of: &LabelTexts, at_once: bool) -> Result<Option<Vec<String>>, ReadError> {
        let mut texts: Vec<(String, bool)> = vec![];
        let (sources, unsure, copied) = {
            let state = self.state.read();
            let values_of = match of {
                LabelTexts::Names => None,
                LabelTexts::Values(name) => Some(name.as_str()),
            };
            let directory = &state.directory;
            if at_once && !directory.has_few_texts(&q.tenant, q.streams, values_of, q.any_of(), QUICK_TEXTS_MAX) {
                return Ok(None);
            }
            let sources = state.sources(&q.tenant, q.streams, None)?;
            let mut undecided = vec![];
            let mut looks = 0;
            let visit = |text: &str, ids: &mut dyn Iterator<Item = u32>| -> Result<(), Option<ReadError>> {
                let (place, before) = (texts.len(), undecided.len());
                let mut has_row = false;
                for series in ids.filter_map(|id| state.directory.get(id)) {
                    looks += 1 + sources.segments.len() + sources.windows.len() + sources.sealed.len();
                    if at_once && looks > QUICK_LOOKS_MAX {
                        return Err(None);
                    }
                    let Some(wanted) = state.wanted_of(&series, (q.from, q.to), true) else {
                        continue;
                    };
                    has_row = sources.surely_has_rows(&wanted)
                        || match at_once {
                            true => surely_has_rows(&state.active, &wanted),
                            false => has_rows(&state.active, q.streams, &wanted)?,
                        };
                    if has_row {
                        undecided.truncate(before);
                        break;
                    }
                    undecided.push((place, wanted));
                }
                if at_once && !has_row && undecided.len() > before {
                    return Err(None);
                }
                texts.push((text.to_owned(), has_row));
                Ok(())
            };
            match directory.visit_label_texts(&q.tenant, q.streams, values_of, q.any_of(), visit) {
                Ok(()) => {}
                Err(Some(e)) => return Err(e),
                Err(None) => return Ok(None),
            }
            let (unsure, copied) = Unsure::copy(&state, q.streams, undecided)?;
            (sources, unsure, copied)
        };
        let mut scan = Scan::new(&sources, copied);
        for (i, unsure) in unsure.iter().enumerate() {
            if !texts[unsure.place].1 {
                texts[unsure.place].1 = scan.has_row(i, q, unsure)?;
            }
        }
        let with_rows = texts.into_iter().filter(|(_, has_row)| *has_row);
        Ok(Some(with_rows.map(|(text, _)| text).collect()))
    }

    /// A digest of all that can be read and of what decides that: equal on replicas at the same position,
    /// whatever their files look like. Reads everything.
    pub fn digest(&self) -> Result<[u8; 32], ReadError> {
        let mut h = blake3::Hasher::new_derive_key("hindcast 2026 shard state");
        let (retention, tenants) = {
            let state = self.state.read();
            let tenants: Vec<TenantId> = state.retention.tenants().cloned().collect();
            (codec::to_bytes(&state.retention), tenants)
        };
        h.update(&retention);
        for tenant in tenants {
            self.digest_of(&tenant, &mut h)?;
        }
        Ok(*h.finalize().as_bytes())
    }

    fn digest_of(&self, tenant: &TenantId, h: &mut blake3::Hasher) -> Result<(), ReadError> {
        let mut part = |text: &str, bytes: &[u8]| {
            h.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
            h.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        };
        let (from, to) = (TimestampNs::MIN, TimestampNs::MAX);
        let series = self.series(&SelectSeries {
            tenant: tenant.clone(),
            matchers: vec![],
            from,
            to,
            as_of: None,
            owners: None,
        })?;
        for s in series {
            let rows = s
                .samples
                .iter()
                .flat_map(|s| [s.at.0.to_le_bytes(), s.value.to_bits().to_le_bytes()]);
            part(&s.labels.to_string(), &rows.flatten().collect::<Vec<u8>>());
        }
        for resolution in Resolution::ALL {
            let windows = self.aggregates(&SelectAggregates {
                tenant: tenant.clone(),
                matchers: vec![],
                from,
                to,
                resolution,
                owners: None,
            })?;
            for s in windows {
                part(&s.labels.to_string(), &codec::to_bytes(&s.owner));
                for w in s.windows {
                    part(&w.end.0.to_string(), &w.to_bytes());
                }
            }
        }
        let streams = self.lines(&SelectLines {
            tenant: tenant.clone(),
            matchers: vec![],
            from,
            to,
            as_of: None,
            owners: None,
            filter: Filter::all(),
            limit: None,
            direction: Direction::Forward,
        })?;
        for s in streams {
            part(&s.labels.to_string(), &codec::to_bytes(&s.owner));
            for l in s.lines {
                part(&l.at.0.to_string(), &l.line);
                part("", &codec::to_bytes(&l.metadata));
            }
        }
        Ok(())
    }
}

/// The source of lines that were still open: after every other.
const OPEN: usize = usize::MAX;

/// Where a line stands among all: time, stream, then commit order (source, row).
type Key = (i64, usize, usize, usize);

/// Collects lines; with a limit it never holds more than that.
struct Gather<'q> {
    q: &'q SelectLines,
    kept: BTreeMap<Key, LogLine>,
    /// Of each stream: whether a line takes the place of those of its time that were committed before.
    overwrite: Vec<bool>,
    settled: Settled,
}

impl<'q> Gather<'q> {
    fn new(q: &'q SelectLines) -> Self {
        Self {
            q,
            kept: BTreeMap::new(),
            overwrite: vec![],
            settled: Settled::default(),
        }
    }

    /// Whether a line at a time of `first..=last` may still be among the kept ones.
    fn admits(&self, first: i64, last: i64) -> bool {
        match self.q.limit {
            Some(0) => false,
            Some(limit) if self.kept.len() >= limit => match self.q.direction {
                Direction::Backward => self.kept.first_key_value().is_none_or(|(k, _)| last >= k.0),
                Direction::Forward => self.kept.last_key_value().is_none_or(|(k, _)| first <= k.0),
            },
            _ => true,
        }
    }

    fn offer(&mut self, key: Key, line: RawLine<'_>) -> Result<(), crate::cursor::Bad> {
        if self.admits(line.at, line.at) {
            self.keep(key, line.to_line()?);
        }
        Ok(())
    }

    fn keep(&mut self, key: Key, line: LogLine) {
        let (at, rank, _, _) = key;
        if self.overwrite[rank] {
            let of_its_time = (at, rank, 0, 0)..=(at, rank, usize::MAX, usize::MAX);
            let other = self.kept.range(of_its_time).next().map(|(other, _)| *other);
            match other {
                Some(other) if other > key => return,
                Some(other) => drop(self.kept.remove(&other)),
                None => {}
            }
        }
        self.kept.insert(key, line);
        if self.q.limit.is_some_and(|limit| self.kept.len() > limit) {
            match self.q.direction {
                Direction::Backward => self.kept.pop_first(),
                Direction::Forward => self.kept.pop_last(),
            };
        }
    }

    /// Blocks of a head, in the order of commits.
    fn packed(
        &mut self,
        rank: usize,
        source: usize,
        spans: &Spans,
        packed: &[Arc<PackedBlock>],
    ) -> Result<(), ReadError> {
        let (from, to) = outer(spans);
        let wanted = (0..).zip(packed);
        let mut wanted: Vec<(u32, &Arc<PackedBlock>)> = wanted
            .filter(|(_, p)| p.info().first <= to && from <= p.info().last)
            .collect();
        if self.q.direction == Direction::Backward {
            wanted.reverse();
        }
        for (number, packed) in wanted {
            if self.admits(packed.info().first, packed.info().last) {
                self.block(&packed.block(), source, number, rank, spans)?;
            }
        }
        Ok(())
    }

    fn column<'a>(
        &mut self,
        rank: usize,
        source: usize,
        spans: &Spans,
        lines: impl Iterator<Item = (usize, RawLine<'a>)>,
    ) {
        let q = self.q;
        let passes = |l: &RawLine<'_>| is_within(spans, l.at) && q.filter.is_match(l.line);
        for (row, l) in lines.filter(|(_, l)| passes(l)) {
            self.offer((l.at, rank, source, row), l)
                .expect("a head holds what it was given");
        }
    }

    fn segments(&mut self, segments: &[Arc<Segment>], wanted: &[Wanted]) -> Result<(), ReadError> {
        let segments: Vec<&logs::Segment> = segments.iter().filter_map(|s| s.lines()).collect();
        // (segment, block, rank): in the order of the file, or from the end that is asked for.
        let mut blocks: Vec<(usize, u32, usize)> = vec![];
        for (i, segment) in segments.iter().enumerate() {
            for (rank, w) in wanted.iter().enumerate() {
                let (from, to) = w.outer();
                blocks.extend(segment.blocks_in(w.id, from, to).map(|b| (i, b, rank)));
            }
        }
        let times = |&(segment, number, _): &(usize, u32, usize)| {
            let info = segments[segment].info(number);
            (info.first, info.last)
        };
        match (self.q.limit, self.q.direction) {
            (None, _) => {}
            (Some(_), Direction::Backward) => blocks.sort_by_key(|b| std::cmp::Reverse(times(b).1)),
            (Some(_), Direction::Forward) => blocks.sort_by_key(|b| times(b).0),
        }
        for b in &blocks {
            let (first, last) = times(b);
            if !self.admits(first, last) {
                // Sorted by time: no later block can hold a line to keep.
                break;
            }
            let &(segment, number, rank) = b;
            self.block(
                &segments[segment].block(number),
                segment,
                number,
                rank,
                &wanted[rank].spans,
            )?;
        }
        Ok(())
    }

    fn block(
        &mut self,
        block: &logs::Block,
        segment: usize,
        number: u32,
        rank: usize,
        spans: &Spans,
    ) -> Result<(), ReadError> {
        let mut rows = vec![];
        for &(from, to) in spans {
            block.matches(&self.q.filter, &mut self.settled, from, to, &mut rows)?;
        }
        // Lines ascend by time, so that no more than the limit can be kept of one end; unless some of them take the place of others.
        let limit = self.q.limit.filter(|_| !self.overwrite[rank]);
        if let Some(over) = limit.map(|limit| rows.len().saturating_sub(limit)) {
            match self.q.direction {
                Direction::Backward => drop(rows.drain(..over)),
                Direction::Forward => rows.truncate(rows.len() - over),
            }
        }
        let lines = block.rows_of(&rows)?;
        for (row, line) in rows.iter().zip(lines.iter()) {
            let row = number as usize * logs::BLOCK_ROWS_MAX + *row as usize;
            self.offer((line.at, rank, segment, row), line)
                .map_err(|why| block.bad_metadata(why))?;
        }
        Ok(())
    }

    fn finish(self, wanted: &[Wanted]) -> Vec<StreamData> {
        let mut by_stream: BTreeMap<usize, Vec<LogLine>> = BTreeMap::new();
        for ((_, rank, _, _), line) in self.kept {
            by_stream.entry(rank).or_default().push(line);
        }
        let data = |(rank, lines): (usize, Vec<LogLine>)| {
            let w = &wanted[rank];
            StreamData {
                labels: w.labels.clone(),
                owner: w.owner,
                slot: w.slot,
                lines,
            }
        };
        by_stream.into_iter().map(data).collect()
    }
}

/// Hands on the lines of one stream, piece by piece.
struct Walk<'a> {
    spans: &'a Spans,
    settled: Settled,
    rows: Vec<u32>,
    each: &'a mut dyn FnMut(i64, &[u8]) -> ControlFlow<()>,
    /// No more is wanted.
    is_over: bool,
}

impl Walk<'_> {
    fn loose<'l>(&mut self, lines: impl Iterator<Item = (i64, &'l [u8])>) {
        for (at, line) in lines.filter(|(at, _)| is_within(self.spans, *at)) {
            if self.is_over {
                return;
            }
            self.is_over = (self.each)(at, line).is_break();
        }
    }

    fn packed(&mut self, packed: &[Arc<PackedBlock>]) -> Result<(), ReadError> {
        let (from, to) = outer(self.spans);
        let wanted = packed.iter().filter(|p| p.info().first <= to && from <= p.info().last);
        for p in wanted {
            self.block(&p.block())?;
        }
        Ok(())
    }

    fn block(&mut self, block: &logs::Block) -> Result<(), ReadError> {
        if self.is_over {
            return Ok(());
        }
        self.rows.clear();
        for &(from, to) in self.spans {
            block.matches(&Filter::all(), &mut self.settled, from, to, &mut self.rows)?;
        }
        let lines = block.rows_of(&self.rows)?;
        self.loose(lines.iter().map(|l| (l.at, l.line)));
        Ok(())
    }
}

/// Counts of lines per stream, between bounds and then up to them.
struct Tally<'q> {
    q: &'q CountLines,
    bounds: Vec<i64>,
    counts: Vec<Vec<u64>>,
    keep: &'q mut dyn FnMut(usize) -> ControlFlow<()>,
    /// No more is wanted.
    is_over: bool,
    rows: Vec<u32>,
    times: Vec<i64>,
    settled: Settled,
}

impl<'q> Tally<'q> {
    fn new(q: &'q CountLines, keep: &'q mut dyn FnMut(usize) -> ControlFlow<()>) -> Self {
        Self {
            q,
            bounds: q.bounds.iter().map(|b| b.0).collect(),
            counts: vec![],
            keep,
            is_over: false,
            rows: vec![],
            times: vec![],
            settled: Settled::default(),
        }
    }

    fn streams(&mut self, streams: usize) {
        self.counts = vec![vec![]; streams];
    }

    /// A line at `at` counts for the first bound that is not before it.
    fn count(&mut self, rank: usize, at: i64) {
        let bound = self.bounds.partition_point(|&b| b < at);
        if let Some(count) = self.of(rank).get_mut(bound) {
            *count += 1;
        }
    }

    /// A stream's counts, made with its first line: most streams that match have none in the window.
    fn of(&mut self, rank: usize) -> &mut [u64] {
        let (counts, bounds) = (&mut self.counts[rank], self.bounds.len());
        if counts.is_empty() && !self.is_over {
            self.is_over = (self.keep)(bounds).is_break();
        }
        if !self.is_over {
            counts.resize(bounds, 0);
        }
        counts
    }

    fn lines<'a>(&mut self, rank: usize, spans: &Spans, lines: impl Iterator<Item = RawLine<'a>>) {
        for l in lines {
            if self.is_over {
                return;
            }
            if is_within(spans, l.at) && self.q.filter.is_match(l.line) {
                self.count(rank, l.at);
            }
        }
    }

    /// Blocks of a head.
    fn packed(&mut self, rank: usize, spans: &Spans, packed: &[Arc<PackedBlock>]) -> Result<(), ReadError> {
        let (from, to) = outer(spans);
        for p in packed {
            if p.info().first <= to && from <= p.info().last {
                self.block(rank, spans, &p.block())?;
            }
        }
        Ok(())
    }

    fn block(&mut self, rank: usize, spans: &Spans, block: &logs::Block) -> Result<(), ReadError> {
        for &(from, to) in spans {
            if self.q.filter.is_all() {
                let times = block.times()?;
                let rows = times.rows_in(from, to);
                if rows.is_empty() {
                    continue;
                }
                let mut done = rows.start;
                let first = self.bounds.partition_point(|&b| b < from.max(times.get(0)));
                self.of(rank);
                if self.is_over {
                    return Ok(());
                }
                for (count, &bound) in self.counts[rank][first..].iter_mut().zip(&self.bounds[first..]) {
                    let upto = times.before(bound.saturating_add(1)).clamp(done, rows.end);
                    *count += (upto - done) as u64;
                    done = upto;
                    if done == rows.end {
                        break;
                    }
                }
                continue;
            }
            self.rows.clear();
            block.matches(&self.q.filter, &mut self.settled, from, to, &mut self.rows)?;
            if self.rows.is_empty() {
                continue;
            }
            self.times.clear();
            let times = block.times()?;
            times.range(0..block.rows(), &mut self.times);
            let rows = std::mem::take(&mut self.rows);
            for &row in &rows {
                self.count(rank, self.times[row as usize]);
            }
            self.rows = rows;
        }
        Ok(())
    }

    fn finish(self, wanted: &[Wanted]) -> Vec<StreamCounts> {
        let mut answer = vec![];
        for (w, mut counts) in wanted.iter().zip(self.counts) {
            let mut total = 0;
            for c in &mut counts {
                total += *c;
                *c = total;
            }
            if total > 0 {
                answer.push(StreamCounts {
                    labels: w.labels.clone(),
                    owner: w.owner,
                    slot: w.slot,
                    counts,
                });
            }
        }
        answer
    }
}

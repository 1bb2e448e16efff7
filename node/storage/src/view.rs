//! Reads: what a shard answers, from segments and memtables together, while its owner goes on applying.
//!
//! Invariants
//! - An answer is of one moment: it holds whole entries, up to the position that was applied when it began.
//! - Sources are walked in the order of commits, so that of equal times the last commit wins and lines keep theirs.
//! - `as_of` is exact or refused: a source that lies on both sides of it is never split by guess.

use crate::codec::RawLine;
use crate::directory::{Directory, SeriesMeta};
use crate::error::ReadError;
use crate::memtable::{Memtable, settle};
use crate::read::{Direction, SearchLabels, SelectLines, SelectSeries, SeriesData, StreamData};
use crate::retention::{Retention, Spans, is_within};
use crate::segment::{Pages, Segment};
use hindcast_model::{Labels, LogLine, Matcher, ResourceId, Sample, TenantId, TimestampNs, codec};
use parking_lot::RwLock;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What owner and readers share. The owner writes it under a lock that is held for moments only.
pub struct State {
    pub directory: Directory,
    pub retention: Retention,
    pub applied: u64,
    pub active: Memtable,
    /// In the order of commits.
    pub sealed: Vec<Arc<Memtable>>,
    /// In the order of commits, among those of one tenant, kind and policy.
    pub segments: Vec<Arc<Segment>>,
}

/// Reads a shard from any thread, for as long as it likes. Clones read the same shard.
#[derive(Clone)]
pub struct ShardReader {
    pub(crate) state: Arc<RwLock<State>>,
}

/// A series that a read wants, and the times in which it may have it.
struct Wanted {
    meta: Arc<SeriesMeta>,
    spans: Spans,
}

/// The sources of one read, oldest first.
struct Sources {
    segments: Vec<Arc<Segment>>,
    sealed: Vec<Arc<Memtable>>,
    /// Whether the active memtable is one of them.
    active: bool,
}

impl State {
    fn sources(&self, tenant: &TenantId, streams: bool, as_of: Option<u64>) -> Result<Sources, ReadError> {
        let of_us = |s: &&Arc<Segment>| s.head.tenant == *tenant && s.head.streams == streams;
        let Some(as_of) = as_of.filter(|&i| i < self.applied) else {
            return Ok(Sources {
                segments: self.segments.iter().filter(of_us).cloned().collect(),
                sealed: self.sealed.clone(),
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

    fn wanted(
        &self,
        tenant: &TenantId,
        streams: bool,
        any_of: &[Vec<Matcher>],
        owners: Option<&BTreeSet<ResourceId>>,
        (from, to): (TimestampNs, TimestampNs),
    ) -> Vec<Wanted> {
        let selected = self.directory.select(tenant, streams, any_of);
        let owned = |m: &Arc<SeriesMeta>| owners.is_none_or(|o| m.owner.id().is_some_and(|id| o.contains(&id)));
        let spans = |meta: Arc<SeriesMeta>| Wanted {
            spans: self.retention.readable(&meta, from, to),
            meta,
        };
        let wanted = selected.into_iter().filter(owned).map(spans);
        wanted.filter(|w| !w.spans.is_empty()).collect()
    }

    /// Samples of the active memtable, per wanted series.
    fn active_samples(&self, wanted: &[Wanted]) -> Vec<Vec<Sample>> {
        let of = |w: &Wanted| {
            let mut out = vec![];
            if let Some(c) = self
                .directory
                .place(w.meta.id)
                .and_then(|p| self.active.active_column(p))
            {
                c.samples(&w.spans, &mut out);
            }
            out
        };
        wanted.iter().map(of).collect()
    }
}

impl Wanted {
    fn outer(&self) -> (i64, i64) {
        let first = self.spans.first().map_or(i64::MAX, |s| s.0);
        (first, self.spans.last().map_or(i64::MIN, |s| s.1))
    }
}

/// Samples of a series in segments and sealed memtables, appended in the order of commits.
struct Scan<'a> {
    segments: Vec<Pages<'a>>,
    sources: &'a Sources,
}

impl<'a> Scan<'a> {
    fn new(sources: &'a Sources) -> Self {
        Self {
            segments: sources.segments.iter().map(|s| Pages::new(s)).collect(),
            sources,
        }
    }

    fn samples(&mut self, wanted: &Wanted, out: &mut Vec<Sample>) -> Result<(), ReadError> {
        let (from, to) = wanted.outer();
        for (segment, pages) in self.sources.segments.iter().zip(&mut self.segments) {
            for page in segment.pages_of(wanted.meta.id, from, to) {
                let samples = pages.samples(page)?;
                let (first, last) = segment.page_times(page);
                if wanted.spans.iter().any(|&(a, b)| a <= first && last <= b) {
                    out.extend_from_slice(&samples);
                } else {
                    out.extend(samples.iter().filter(|s| is_within(&wanted.spans, s.at.0)));
                }
            }
        }
        for m in &self.sources.sealed {
            if let Some(c) = m.sealed_column(wanted.meta.id) {
                c.samples(&wanted.spans, out);
            }
        }
        Ok(())
    }

    fn has_any(&mut self, wanted: &Wanted) -> Result<bool, ReadError> {
        let in_sealed = |m: &Arc<Memtable>| {
            m.sealed_column(wanted.meta.id)
                .is_some_and(|c| c.has_any(&wanted.spans))
        };
        if self.sources.sealed.iter().any(in_sealed) {
            return Ok(true);
        }
        let (from, to) = wanted.outer();
        for (segment, pages) in self.sources.segments.iter().zip(&mut self.segments) {
            for page in segment.pages_of(wanted.meta.id, from, to) {
                let (first, last) = segment.page_times(page);
                // The page table knows the first and the last row; only between them the page must be read.
                if is_within(&wanted.spans, first) || is_within(&wanted.spans, last) {
                    return Ok(true);
                }
                let within = |at| is_within(&wanted.spans, at);
                let found = if wanted.meta.streams {
                    pages.lines(page)?.iter().any(|l| within(l.at))
                } else {
                    pages.samples(page)?.iter().any(|s| within(s.at.0))
                };
                if found {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

impl ShardReader {
    pub fn applied(&self) -> u64 {
        self.state.read().applied
    }

    /// The files that never change and are in force now, each to be checked by itself; the shard goes on meanwhile.
    pub fn files(&self) -> Vec<crate::verify::ImmutableFile> {
        let segments = self.state.read().segments.clone();
        segments.iter().map(|s| s.immutable_file()).collect()
    }

    /// Sorted by (slot, fingerprint, labels). A label set occurs once per slot; series without a sample are left out.
    pub fn series(&self, q: &SelectSeries) -> Result<Vec<SeriesData>, ReadError> {
        let (sources, wanted, active) = {
            let state = self.state.read();
            let sources = state.sources(&q.tenant, false, q.as_of)?;
            let any_of = std::slice::from_ref(&q.matchers);
            let wanted = state.wanted(&q.tenant, false, any_of, q.owners.as_ref(), (q.from, q.to));
            let active = if sources.active {
                state.active_samples(&wanted)
            } else {
                vec![vec![]; wanted.len()]
            };
            (sources, wanted, active)
        };
        let mut scan = Scan::new(&sources);
        let mut answer: Vec<SeriesData> = vec![];
        for (w, newest) in wanted.iter().zip(active) {
            let mut samples = vec![];
            scan.samples(w, &mut samples)?;
            samples.extend(newest);
            settle(&mut samples);
            if samples.is_empty() {
                continue;
            }
            match answer.last_mut() {
                // Two owners in one slot whose series bear the same labels: one series to whoever asks by labels.
                Some(last) if last.slot == w.meta.slot && last.labels == w.meta.labels => {
                    last.samples.extend(samples);
                    settle(&mut last.samples);
                }
                _ => answer.push(SeriesData {
                    labels: w.meta.labels.clone(),
                    owner: w.meta.owner,
                    slot: w.meta.slot,
                    samples,
                }),
            }
        }
        Ok(answer)
    }

    /// Sorted by (slot, fingerprint, labels, owner); streams without a line are left out.
    pub fn lines(&self, q: &SelectLines) -> Result<Vec<StreamData>, ReadError> {
        let mut gather = Gather::new(q);
        let (sources, wanted) = {
            let state = self.state.read();
            let sources = state.sources(&q.tenant, true, q.as_of)?;
            let any_of = std::slice::from_ref(&q.matchers);
            let wanted = state.wanted(&q.tenant, true, any_of, q.owners.as_ref(), (q.from, q.to));
            for (rank, w) in wanted.iter().enumerate().filter(|_| sources.active) {
                if let Some(c) = state
                    .directory
                    .place(w.meta.id)
                    .and_then(|p| state.active.active_column(p))
                {
                    gather.column(rank, usize::MAX, &w.spans, c.raw_lines());
                }
            }
            (sources, wanted)
        };
        for (source, m) in sources.sealed.iter().enumerate() {
            for (rank, w) in wanted.iter().enumerate() {
                if let Some(c) = m.sealed_column(w.meta.id) {
                    gather.column(rank, sources.segments.len() + source, &w.spans, c.raw_lines());
                }
            }
        }
        gather.segments(&sources.segments, &wanted)?;
        Ok(gather.finish(&wanted))
    }

    /// Sorted, each once; exactly those with a row in the time asked for.
    pub fn label_sets(&self, q: &SearchLabels) -> Result<Vec<Labels>, ReadError> {
        let all = [vec![]];
        let any_of = if q.any_of.is_empty() { &all[..] } else { &q.any_of[..] };
        let (sources, wanted, active) = {
            let state = self.state.read();
            let sources = state.sources(&q.tenant, q.streams, None)?;
            let wanted = state.wanted(&q.tenant, q.streams, any_of, None, (q.from, q.to));
            let is_active = |w: &Wanted| {
                let place = state.directory.place(w.meta.id);
                let column = place.and_then(|p| state.active.active_column(p));
                column.is_some_and(|c| c.has_any(&w.spans))
            };
            let active: Vec<bool> = wanted.iter().map(is_active).collect();
            (sources, wanted, active)
        };
        let mut scan = Scan::new(&sources);
        let mut found = BTreeSet::new();
        for (w, in_active) in wanted.iter().zip(active) {
            if !found.contains(&w.meta.labels) && (in_active || scan.has_any(w)?) {
                found.insert(w.meta.labels.clone());
            }
        }
        Ok(found.into_iter().collect())
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
        let streams = self.lines(&SelectLines {
            tenant: tenant.clone(),
            matchers: vec![],
            from,
            to,
            as_of: None,
            owners: None,
            contains: vec![],
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

/// Where a line stands among all: time, stream, then commit order (source, row).
type Key = (i64, usize, usize, usize);

/// Collects lines; with a limit it never holds more than that.
struct Gather<'q> {
    q: &'q SelectLines,
    needles: Vec<regex::bytes::Regex>,
    kept: BTreeMap<Key, LogLine>,
}

impl<'q> Gather<'q> {
    fn new(q: &'q SelectLines) -> Self {
        let needle = |text: &String| {
            // A literal: the regex crate turns it into its fastest substring search.
            regex::bytes::Regex::new(&regex::escape(text)).expect("an escaped text is a pattern")
        };
        Self {
            q,
            needles: q.contains.iter().map(needle).collect(),
            kept: BTreeMap::new(),
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

    fn offer(&mut self, key: Key, line: RawLine<'_>) -> Result<(), crate::codec::Bad> {
        if !self.admits(line.at, line.at) || !self.needles.iter().all(|n| n.is_match(line.line)) {
            return Ok(());
        }
        self.kept.insert(key, line.to_line()?);
        if self.q.limit.is_some_and(|limit| self.kept.len() > limit) {
            match self.q.direction {
                Direction::Backward => self.kept.pop_first(),
                Direction::Forward => self.kept.pop_last(),
            };
        }
        Ok(())
    }

    fn column<'a>(&mut self, rank: usize, source: usize, spans: &Spans, lines: impl Iterator<Item = RawLine<'a>>) {
        for (row, l) in lines.enumerate().filter(|(_, l)| is_within(spans, l.at)) {
            self.offer((l.at, rank, source, row), l)
                .expect("a memtable holds what it was given");
        }
    }

    fn segments(&mut self, segments: &[Arc<Segment>], wanted: &[Wanted]) -> Result<(), ReadError> {
        // (segment, page, rank): in the order of the file, or from the end that is asked for.
        let mut pages: Vec<(usize, u32, usize)> = vec![];
        for (i, segment) in segments.iter().enumerate() {
            for (rank, w) in wanted.iter().enumerate() {
                let (from, to) = w.outer();
                pages.extend(segment.pages_of(w.meta.id, from, to).map(|p| (i, p, rank)));
            }
        }
        let times = |&(segment, page, _): &(usize, u32, usize)| segments[segment].page_times(page);
        match (self.q.limit, self.q.direction) {
            (None, _) => {}
            (Some(_), Direction::Backward) => pages.sort_by_key(|p| std::cmp::Reverse(times(p).1)),
            (Some(_), Direction::Forward) => pages.sort_by_key(|p| times(p).0),
        }
        let mut readers: Vec<Pages<'_>> = segments.iter().map(|s| Pages::new(s)).collect();
        for p in &pages {
            let (first, last) = times(p);
            if !self.admits(first, last) {
                // Sorted by time: no later page can hold a line to keep.
                break;
            }
            let &(segment, page, rank) = p;
            for (row, l) in readers[segment].lines(page)?.into_iter().enumerate() {
                if is_within(&wanted[rank].spans, l.at) {
                    let row = page as usize * crate::codec::PAGE_ROWS_MAX + row;
                    self.offer((l.at, rank, segment, row), l)
                        .map_err(|why| segments[segment].bad_page(page, why))?;
                }
            }
        }
        Ok(())
    }

    fn finish(self, wanted: &[Wanted]) -> Vec<StreamData> {
        let mut by_stream: BTreeMap<usize, Vec<LogLine>> = BTreeMap::new();
        for ((_, rank, _, _), line) in self.kept {
            by_stream.entry(rank).or_default().push(line);
        }
        let data = |(rank, lines): (usize, Vec<LogLine>)| {
            let meta = &wanted[rank].meta;
            StreamData {
                labels: meta.labels.clone(),
                owner: meta.owner,
                slot: meta.slot,
                lines,
            }
        };
        by_stream.into_iter().map(data).collect()
    }
}

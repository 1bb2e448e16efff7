//! Rows that are in the log and not yet in a segment.
//!
//! Invariants
//! - Rows grow in the order of commits; of equal times the later one is the newer one.
//! - Rows of an entry show all at once, when the shard advances over it.

mod lane;
mod lines;
mod page;
#[cfg(test)]
mod tests;

pub use lane::Chunk;
pub use lines::{Column, Lines, pack};
pub use page::Unpacker;

use crate::codec::RawLine;
use crate::index::Directory;
use crate::logs::PackedBlock;
use crate::points::Points;
use crate::retention::{Spans, is_within};
use crate::rows::{Rows, Run};
use hindcast_model::{Owner, TenantId, TimestampNs};
use lane::{CHUNK_ROWS, LANE_SERIES_MAX, Lane};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// A head that holds more than this packs its open rows early.
const OPEN_BYTES_MAX: usize = 48 << 20;
/// Fewest rows of a chunk then: shorter pages would take as much as the open rows.
const EARLY_ROWS: usize = 24;

/// Lines that are not packed and hold more than this are packed early, those of the streams that have most first.
const LOOSE_BYTES_MAX: usize = 32 << 20;
/// Fewest bytes of a stream's lines then: blocks of less would take as much as the lines. What many small streams hold
/// is bounded by the next flush.
const EARLY_PACK_BYTES: usize = 32 << 10;

/// Room that a series takes besides its rows, about.
const SERIES_BYTES: usize = 48;
const STREAM_BYTES: usize = 200;

/// Where a series' or stream's rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Nowhere,
    Lane { lane: u32, column: u16 },
    Stream(u32),
}

/// What to do with a stretch of a push.
enum Step {
    /// All series of a lane, from this column of the push on.
    Full {
        lane: u32,
        from: usize,
    },
    One {
        id: u32,
        from: usize,
    },
    /// Series that have no lane yet.
    New {
        ids: Vec<u32>,
        from: usize,
    },
}

pub struct Head {
    lanes: Vec<Lane>,
    streams: Vec<Column>,
    /// By id, while it is active.
    places: Vec<Place>,
    /// By id, once it is sealed.
    sealed: Vec<(u32, Place)>,
    touched_lanes: Vec<u32>,
    touched_streams: Vec<u32>,
    pushes: u64,
    /// Commit positions of its rows; `None`: it has no rows.
    commits: Option<(u64, u64)>,
    bytes: usize,
    /// Bytes of values, times and lines as the log brought them.
    taken: usize,
    samples: u64,
    lines: u64,
    /// What lines hold that are not packed.
    loose: usize,
    /// What they may hold until they are packed early.
    loose_bytes_max: usize,
    packer: page::Packer,
}

/// What a reader takes out of the active head under the lock: chunks are shared, open rows copied.
pub struct Copied {
    /// Of each lane that is read, the chunks that may have what is wanted.
    lanes: Vec<Vec<Arc<Chunk>>>,
    series: Vec<Option<CopiedSeries>>,
    /// Open rows of all series, one series after the other.
    open: Points,
}

struct CopiedSeries {
    /// In `Copied::lanes`.
    lane: usize,
    column: usize,
    /// In `Copied::open`.
    open: Range<usize>,
}

impl Head {
    pub fn new() -> Self {
        Self {
            lanes: vec![],
            streams: vec![],
            places: vec![],
            sealed: vec![],
            touched_lanes: vec![],
            touched_streams: vec![],
            pushes: 0,
            commits: None,
            bytes: 0,
            taken: 0,
            samples: 0,
            lines: 0,
            loose: 0,
            loose_bytes_max: LOOSE_BYTES_MAX,
            packer: page::Packer::default(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.commits.is_none()
    }
    pub fn commits(&self) -> Option<(u64, u64)> {
        self.commits
    }
    pub fn bytes(&self) -> usize {
        self.bytes
    }
    /// What lines hold that are not packed.
    #[cfg(test)]
    pub fn loose_bytes(&self) -> usize {
        self.loose
    }
    /// What a restart would read again from the log for these rows, about.
    pub fn taken(&self) -> usize {
        self.taken
    }
    pub fn samples(&self) -> u64 {
        self.samples
    }
    pub fn lines(&self) -> u64 {
        self.lines
    }

    fn saw(&mut self, index: u64) {
        let (first, _) = self.commits.unwrap_or((index, index));
        self.commits = Some((first, index));
    }

    fn place(&self, id: u32) -> Place {
        if self.sealed.is_empty() {
            return self.places.get(id as usize).copied().unwrap_or(Place::Nowhere);
        }
        let found = self.sealed.binary_search_by_key(&id, |p| p.0);
        found.map_or(Place::Nowhere, |i| self.sealed[i].1)
    }

    fn set_place(&mut self, id: u32, place: Place) {
        if self.places.len() <= id as usize {
            self.places.resize(id as usize + 1, Place::Nowhere);
        }
        self.places[id as usize] = place;
    }

    /// Takes samples of entry `index`. False, and nothing was taken, when an id is not one of a series.
    pub fn push_rows(
        &mut self,
        index: u64,
        rows: &Rows<'_>,
        directory: &Directory,
        heard: &mut impl FnMut(&TenantId, Owner, TimestampNs),
    ) -> bool {
        let width = rows.width();
        assert_eq!(
            rows.values.len(),
            rows.times.len() * width * crate::rows::VALUE_BYTES,
            "rows are whole"
        );
        let Some(plan) = self.plan(rows.runs, directory) else {
            return false;
        };
        let Some(&newest) = rows.times.iter().max() else {
            return true;
        };
        self.saw(index);
        self.pushes += 1;
        self.samples += (rows.times.len() * width) as u64;
        self.taken += rows.values.len() + size_of_val(rows.times);
        let newest = TimestampNs(newest);
        let mut last_owner = None;
        for step in plan {
            match step {
                Step::Full { lane, from } => {
                    self.full(lane, from, rows, width);
                    let lane = &self.lanes[lane as usize];
                    lane.owners.iter().for_each(|(t, o)| heard(t, *o, newest));
                }
                Step::New { ids, from } => {
                    for (i, ids) in ids.chunks(LANE_SERIES_MAX).enumerate() {
                        self.new_lane(ids, from + i * LANE_SERIES_MAX, rows, width, directory);
                    }
                    for series in ids.iter().filter_map(|&id| directory.get(id)) {
                        if last_owner != Some(series.owner) {
                            last_owner = Some(series.owner);
                            heard(series.tenant, series.owner, newest);
                        }
                    }
                }
                Step::One { id, from } => {
                    self.one(id, from, rows, width);
                    if let Some(series) = directory.get(id)
                        && last_owner != Some(series.owner)
                    {
                        last_owner = Some(series.owner);
                        heard(series.tenant, series.owner, newest);
                    }
                }
            }
        }
        true
    }

    fn plan(&self, runs: &[Run], directory: &Directory) -> Option<Vec<Step>> {
        let mut plan = vec![];
        let mut from = 0;
        if runs.iter().any(|r| r.first.checked_add(r.len).is_none()) {
            return None;
        }
        let mut at = Cursor { runs, done: 0 };
        at.skip(0);
        while let Some(id) = at.id() {
            let place = self.place(id);
            if let Place::Lane { lane, column: 0 } = place
                && let Some(after) = at.over(&self.lanes[lane as usize].runs)
            {
                plan.push(Step::Full { lane, from });
                from += self.lanes[lane as usize].width();
                at = after;
                continue;
            }
            match place {
                Place::Lane { .. } => plan.push(Step::One { id, from }),
                Place::Stream(_) => return None,
                Place::Nowhere if directory.get(id).is_none_or(|s| s.streams) => return None,
                Place::Nowhere => match plan.last_mut() {
                    Some(Step::New { ids, .. }) => ids.push(id),
                    _ => plan.push(Step::New { ids: vec![id], from }),
                },
            }
            from += 1;
            at.step();
        }
        Some(plan)
    }

    fn touch(&mut self, lane: u32) {
        if self.lanes[lane as usize].is_shown() {
            self.touched_lanes.push(lane);
        }
    }

    fn full(&mut self, lane: u32, from: usize, rows: &Rows<'_>, stride: usize) {
        self.touch(lane);
        let lane = &mut self.lanes[lane as usize];
        let values = &rows.values[from * crate::rows::VALUE_BYTES..];
        lane.push_full(self.pushes, rows.times, values, stride);
        self.bytes += rows.times.len() * lane.row_bytes();
    }

    fn new_lane(&mut self, ids: &[u32], from: usize, rows: &Rows<'_>, stride: usize, directory: &Directory) {
        // An id that came twice has its place by now.
        let is_new = ids.iter().all(|&id| self.place(id) == Place::Nowhere) && is_unique(ids);
        if !is_new {
            for (i, &id) in ids.iter().enumerate() {
                match self.place(id) {
                    Place::Nowhere => self.new_lane(&[id], from + i, rows, stride, directory),
                    _ => self.one(id, from + i, rows, stride),
                }
            }
            return;
        }
        let lane = self.lanes.len() as u32;
        for (column, &id) in ids.iter().enumerate() {
            let column = column as u16;
            self.set_place(id, Place::Lane { lane, column });
        }
        let mut owners: Vec<(TenantId, Owner)> = vec![];
        for s in ids.iter().filter_map(|&id| directory.get(id)) {
            if !owners.iter().any(|(t, o)| *o == s.owner && t == s.tenant) {
                owners.push((s.tenant.clone(), s.owner));
            }
        }
        self.lanes.push(Lane::new(lane, ids.to_vec(), owners));
        self.bytes += ids.len() * SERIES_BYTES;
        self.full(lane, from, rows, stride);
    }

    fn one(&mut self, id: u32, from: usize, rows: &Rows<'_>, stride: usize) {
        let Place::Lane { lane, column } = self.place(id) else {
            return;
        };
        self.touch(lane);
        let value = |row| rows.value(row * stride + from);
        let lane = &mut self.lanes[lane as usize];
        let before = lane.open_rows();
        lane.push_one(self.pushes, column.into(), rows.times, value);
        self.bytes += (lane.open_rows() - before) * lane.row_bytes();
    }

    /// Takes lines of entry `index`. False, and nothing was taken, when `id` is not one of a stream.
    pub fn push_lines<'a>(
        &mut self,
        index: u64,
        id: u32,
        directory: &Directory,
        lines: impl Iterator<Item = RawLine<'a>>,
    ) -> bool {
        let column = match self.place(id) {
            Place::Stream(column) => column,
            Place::Nowhere if directory.get(id).is_some_and(|s| s.streams) => {
                let column = self.streams.len() as u32;
                self.set_place(id, Place::Stream(column));
                self.streams.push(Column::new(id));
                self.bytes += STREAM_BYTES;
                column
            }
            _ => return false,
        };
        let stream = &mut self.streams[column as usize];
        if stream.is_shown() {
            self.touched_streams.push(column);
        }
        let (bytes, lines) = stream.push(lines);
        self.bytes += bytes;
        self.loose += bytes;
        self.taken += bytes;
        self.lines += lines as u64;
        self.saw(index);
        true
    }

    /// Shows everything pushed so far, and packs the rows of samples that are full. The streams whose lines want to be
    /// packed, largest first when there is too much of them: `to_pack` and `put_packed`, for each.
    pub fn show(&mut self) -> Vec<u32> {
        let mut full = vec![];
        for lane in self.touched_lanes.drain(..) {
            let rows_min = if self.bytes > OPEN_BYTES_MAX {
                EARLY_ROWS
            } else {
                CHUNK_ROWS
            };
            let (packed, freed) = self.lanes[lane as usize].show(&mut self.packer, rows_min);
            self.bytes = self.bytes + packed - freed;
        }
        for column in self.touched_streams.drain(..) {
            let stream = &mut self.streams[column as usize];
            stream.show();
            if stream.is_full() {
                full.push(column);
            }
        }
        if self.loose > self.loose_bytes_max {
            full = self.largest_streams();
        }
        full
    }

    /// The streams with most lines to pack, until half of what may be there would be left. What cannot be packed is
    /// looked through again when there is more of it.
    fn largest_streams(&mut self) -> Vec<u32> {
        let by_size = (0..).zip(&self.streams).map(|(at, s)| (s.loose_bytes(), at));
        let mut by_size: Vec<(usize, u32)> = by_size.filter(|(bytes, _)| *bytes >= EARLY_PACK_BYTES).collect();
        by_size.sort_unstable_by(|a, b| b.cmp(a));
        let mut left = self.loose;
        let wanted = by_size.into_iter().take_while(|(bytes, _)| {
            let is_wanted = left > LOOSE_BYTES_MAX / 2;
            if is_wanted {
                left -= bytes;
            }
            is_wanted
        });
        let wanted = wanted.map(|(_, at)| at).collect();
        self.loose_bytes_max = LOOSE_BYTES_MAX.max(left + LOOSE_BYTES_MAX / 8);
        wanted
    }

    /// Lines of a stream that `show` named; they stay as they are until `put_packed`.
    pub fn close_to_pack(&mut self, stream: u32) -> Vec<Arc<Lines>> {
        let open = self.loose > LOOSE_BYTES_MAX / 2;
        self.streams[stream as usize].close_to_pack(open)
    }

    pub fn put_packed(&mut self, stream: u32, packed: Vec<Arc<PackedBlock>>) {
        let (packed, loose) = self.streams[stream as usize].put_packed(packed);
        self.bytes = self.bytes + packed - loose;
        self.loose -= loose;
    }

    /// No more rows come.
    pub fn seal(mut self) -> Self {
        assert!(
            self.touched_lanes.is_empty() && self.touched_streams.is_empty(),
            "a head is sealed between entries"
        );
        let places = std::mem::take(&mut self.places).into_iter().zip(0..);
        self.sealed = places
            .filter(|(p, _)| *p != Place::Nowhere)
            .map(|(p, id)| (id, p))
            .collect();
        self
    }

    /// Ids of all series (or streams) that have rows here, ascending.
    pub fn ids(&self, streams: bool) -> Vec<u32> {
        let mut ids: Vec<u32> = if streams {
            self.streams.iter().map(|c| c.id).collect()
        } else {
            self.lanes.iter().flat_map(|l| &l.ids).copied().collect()
        };
        ids.sort_unstable();
        ids
    }

    /// Whether it has rows of the series or stream.
    pub fn has(&self, id: u32) -> bool {
        self.place(id) != Place::Nowhere
    }

    /// No fewer rows than a series has.
    pub fn rows_about(&self, id: u32) -> usize {
        match self.place(id) {
            Place::Lane { lane, .. } => self.lanes[lane as usize].rows_about(),
            Place::Nowhere | Place::Stream(_) => 0,
        }
    }

    /// A series' first and last shown time.
    pub fn times_of(&self, id: u32) -> Option<(i64, i64)> {
        match self.place(id) {
            Place::Nowhere => None,
            Place::Lane { lane, column } => self.lanes[lane as usize].times_of(column.into()),
            Place::Stream(column) => self.streams[column as usize].times(),
        }
    }

    /// For each series that may have samples before `before`: a time before which it has none. Told for all series that
    /// come together, by the first of them.
    pub fn first_times(&self, before: i64) -> impl Iterator<Item = (u32, i64)> {
        let old = self
            .lanes
            .iter()
            .filter_map(move |l| Some((l, l.first_time().filter(|t| *t < before)?)));
        old.flat_map(|(lane, first)| lane.ids.iter().map(move |id| (*id, first)))
    }

    /// A series' shown samples in `spans`, appended in the order of commits: not sorted, nothing overwritten yet.
    pub fn append_samples(&self, id: u32, spans: &Spans, unpacker: &mut Unpacker, out: &mut Points) {
        if let Place::Lane { lane, column } = self.place(id) {
            let lane = &self.lanes[lane as usize];
            for c in &lane.chunks {
                c.samples(column.into(), spans, unpacker, out);
            }
            lane.open_samples(column.into(), 0..lane.shown_rows(), spans, out);
        }
    }

    pub fn stream(&self, id: u32) -> Option<&Column> {
        match self.place(id) {
            Place::Stream(column) => Some(&self.streams[column as usize]),
            _ => None,
        }
    }

    /// For use without the lock: chunks by reference, open rows by copy.
    pub fn copy(&self, wanted: &[(u32, Spans)]) -> Copied {
        let all = wanted.iter().flat_map(|(_, spans)| spans);
        let outer = all.fold((i64::MAX, i64::MIN), |o, s| (o.0.min(s.0), o.1.max(s.1)));
        let mut copied = Copied::nothing(0);
        copied.series.reserve(wanted.len());
        let mut seen: HashMap<u32, (usize, Vec<usize>)> = HashMap::new();
        for (id, spans) in wanted {
            let Place::Lane { lane, column } = self.place(*id) else {
                copied.series.push(None);
                continue;
            };
            let of = &self.lanes[lane as usize];
            let (lane, rows) = seen.entry(lane).or_insert_with(|| {
                copied.lanes.push(of.chunks_in(outer).cloned().collect());
                (copied.lanes.len() - 1, of.open_rows_in(outer).collect())
            });
            let start = copied.open.len();
            of.open_samples(column.into(), rows.iter().copied(), spans, &mut copied.open);
            copied.series.push(Some(CopiedSeries {
                lane: *lane,
                column: column.into(),
                open: start..copied.open.len(),
            }));
        }
        copied
    }
}

impl Copied {
    pub fn nothing(series: usize) -> Self {
        Self {
            lanes: vec![],
            series: (0..series).map(|_| None).collect(),
            open: Points::default(),
        }
    }

    /// As [`Head::append_samples`], for the `i`th series that was asked for.
    pub fn append_samples(&self, i: usize, spans: &Spans, unpacker: &mut Unpacker, out: &mut Points) {
        if let Some(series) = &self.series[i] {
            for c in &self.lanes[series.lane] {
                c.samples(series.column, spans, unpacker, out);
            }
            let open = series.open.clone();
            for (at, value) in self.open.times[open.clone()].iter().zip(&self.open.values[open]) {
                if is_within(spans, *at) {
                    out.push(*at, *value);
                }
            }
        }
    }
}

fn is_unique(ids: &[u32]) -> bool {
    if ids.is_sorted_by(|a, b| a < b) {
        return true;
    }
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    sorted.is_sorted_by(|a, b| a < b)
}

/// A place in a push's runs.
#[derive(Clone, Copy)]
struct Cursor<'a> {
    runs: &'a [Run],
    /// Ids of the first run that are behind us.
    done: u32,
}

impl Cursor<'_> {
    fn id(&self) -> Option<u32> {
        self.runs.first().map(|r| r.first + self.done)
    }

    fn step(&mut self) {
        self.skip(1);
    }

    fn skip(&mut self, ids: u32) {
        self.done += ids;
        while let Some(run) = self.runs.first()
            && self.done >= run.len
        {
            self.done -= run.len;
            self.runs = &self.runs[1..];
        }
    }

    /// Where we are behind these ids, if they come next.
    fn over(mut self, wanted: &[Run]) -> Option<Self> {
        for w in wanted {
            let mut left = *w;
            while left.len > 0 {
                let run = self.runs.first()?;
                if run.first + self.done != left.first {
                    return None;
                }
                let same = (run.len - self.done).min(left.len);
                self.skip(same);
                left = Run {
                    first: left.first + same,
                    len: left.len - same,
                };
            }
        }
        Some(self)
    }
}

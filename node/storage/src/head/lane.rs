//! Samples of series that come together: the series of one scrape, row by row as they came.
//!
//! A lane holds the newest rows as a matrix, one row per time, so that taking a scrape is one copy. Every
//! [`CHUNK_ROWS`] rows the matrix is turned into one packed page per series that share one vector of times.
//!
//! Invariants
//! - Rows stand in the order of commits; of equal times the later row is the newer one. Chunks keep that order among
//!   each other; inside a chunk rows are sorted by time, equal times in the order of commits.
//! - A row of which a series has no sample says so in its bitmap.

use super::page::{self, Unpacker};
use crate::points::Points;
use crate::retention::{Spans, is_within};
use crate::rows::{Run, VALUE_BYTES};
use hindcast_model::{Owner, TenantId};
use std::sync::Arc;

/// Series of one lane; what a scrape has more goes to a further lane.
pub const LANE_SERIES_MAX: usize = 1024;
/// Rows of one chunk. A bitmap over them must fit into a `u128`.
pub const CHUNK_ROWS: usize = 120;
/// Rows by which a lane's matrix grows at least; else by half of what it has, so that it never has twice the room that
/// it needs.
const GROW_ROWS: usize = 12;
/// Fewest rows of a lane's first chunk. Lanes that began together and come at one pace close it at different rows, so
/// that their matrices are not all full at once, nor all packed at once.
const FIRST_ROWS_MIN: usize = 60;
/// Has no factor in common with the span of first chunks: neighbours are spread over all of it.
const FIRST_ROWS_STEP: usize = 37;
/// Values that are turned at once: one cache line of a row.
const TURN_COLUMNS: usize = 8;

/// Packed rows of all series of a lane.
pub struct Chunk {
    /// Ascending; equal ones in the order of commits.
    times: Vec<i64>,
    pages: Vec<u8>,
    /// Per series, where its page ends.
    ends: Vec<u32>,
    /// Series that have no sample in some rows, ascending, with the rows that they have.
    partial: Vec<(u32, u128)>,
}

/// The open rows' bitmaps; none for a row that is full.
type Bits = Option<Box<[u64]>>;

pub struct Lane {
    pub ids: Vec<u32>,
    /// The same ids as runs: how entries name them.
    pub runs: Vec<Run>,
    /// Whose series they are, each once.
    pub owners: Vec<(TenantId, Owner)>,
    times: Vec<i64>,
    /// `times.len()` rows of `ids.len()` values.
    values: Vec<f64>,
    bits: Vec<Bits>,
    /// Open rows up to here are of entries that the shard has advanced over.
    shown: usize,
    pub chunks: Vec<Arc<Chunk>>,
    /// Rows of the next chunk, at most.
    chunk_rows: usize,
    /// The push that touched it last, and its first row.
    last_push: (u64, usize),
}

impl Lane {
    /// `number`: of the lanes that began before, to tell it from them.
    pub fn new(number: u32, ids: Vec<u32>, owners: Vec<(TenantId, Owner)>) -> Self {
        let mut runs: Vec<Run> = vec![];
        for &id in &ids {
            match runs.last_mut() {
                Some(r) if r.first + r.len == id => r.len += 1,
                _ => runs.push(Run { first: id, len: 1 }),
            }
        }
        Self {
            ids,
            runs,
            owners,
            times: vec![],
            values: vec![],
            bits: vec![],
            shown: 0,
            chunks: vec![],
            chunk_rows: FIRST_ROWS_MIN + number as usize * FIRST_ROWS_STEP % (CHUNK_ROWS - FIRST_ROWS_MIN + 1),
            last_push: (0, 0),
        }
    }

    pub fn width(&self) -> usize {
        self.ids.len()
    }

    /// Whether all open rows are of entries that were advanced over.
    pub fn is_shown(&self) -> bool {
        self.shown == self.times.len()
    }

    /// Appends full rows: row `r` is at `times[r]`, its values start at `values[r * stride]`.
    pub fn push_full(&mut self, push: u64, times: &[i64], values: &[u8], stride: usize) {
        self.last_push = (push, self.times.len());
        self.make_room(times.len());
        let row_bytes = self.width() * VALUE_BYTES;
        for (r, &at) in times.iter().enumerate() {
            let row = &values[r * stride * VALUE_BYTES..][..row_bytes];
            let (row, _) = row.as_chunks::<VALUE_BYTES>();
            self.values.extend(row.iter().map(|v| f64::from_le_bytes(*v)));
            self.times.push(at);
            self.bits.push(None);
        }
    }

    /// The first of this push's rows at `times`; made empty when the push is new here.
    fn rows_of(&mut self, push: u64, times: &[i64]) -> usize {
        if self.last_push.0 != push {
            self.last_push = (push, self.times.len());
            self.make_room(times.len());
            self.times.extend_from_slice(times);
            self.values.resize(self.times.len() * self.width(), 0.0);
            let words = self.width().div_ceil(64);
            self.bits
                .resize_with(self.times.len(), || Some(vec![0; words].into_boxed_slice()));
        }
        self.last_push.1
    }

    /// Sets one series' values in the rows of a push. Given twice, the later one stays.
    pub fn push_one(&mut self, push: u64, column: usize, times: &[i64], value: impl Fn(usize) -> f64) {
        let first = self.rows_of(push, times);
        let width = self.width();
        for row in 0..times.len() {
            self.values[(first + row) * width + column] = value(row);
            if let Some(bits) = &mut self.bits[first + row] {
                bits[column / 64] |= 1 << (column % 64);
            }
        }
    }

    fn make_room(&mut self, rows: usize) {
        let wanted = (self.times.len() + rows) * self.width();
        if wanted > self.values.capacity() {
            let more = rows.max(GROW_ROWS).max(self.times.len() / 2);
            self.values.reserve_exact(more * self.width());
        }
    }

    /// Shows all rows. Packs them in chunks of at least `rows_min`; how many bytes that gave and took.
    pub fn show(&mut self, packer: &mut page::Packer, rows_min: usize) -> (usize, usize) {
        self.shown = self.times.len();
        let mut packed = (0, 0);
        let mut done = 0;
        while self.times.len() - done >= rows_min.min(self.chunk_rows).max(1) {
            let end = self.times.len().min(done + self.chunk_rows);
            self.chunk_rows = CHUNK_ROWS;
            let chunk = self.pack(done..end, packer);
            packed.0 += chunk.bytes();
            self.chunks.push(Arc::new(chunk));
            done = end;
        }
        if done == 0 {
            return packed;
        }
        packed.1 = done * self.row_bytes();
        self.times.drain(..done);
        // What is left is a row or two: the room of the others goes back until it is needed.
        self.values = self.values.split_off(done * self.ids.len());
        self.bits.drain(..done);
        self.shown -= done;
        self.last_push = (0, 0);
        packed
    }

    pub fn open_rows(&self) -> usize {
        self.times.len()
    }

    /// No fewer than there are.
    pub fn rows_about(&self) -> usize {
        self.chunks.len() * CHUNK_ROWS + self.times.len()
    }

    /// What an open row takes.
    pub fn row_bytes(&self) -> usize {
        self.width() * VALUE_BYTES + 8
    }

    fn has(&self, row: usize, column: usize) -> bool {
        self.bits[row]
            .as_ref()
            .is_none_or(|b| b[column / 64] >> (column % 64) & 1 == 1)
    }

    fn pack(&self, rows: std::ops::Range<usize>, packer: &mut page::Packer) -> Chunk {
        let width = self.width();
        let mut order: Vec<usize> = rows.clone().collect();
        order.sort_by_key(|&r| self.times[r]);
        let times: Vec<i64> = order.iter().map(|&r| self.times[r]).collect();
        let any_partial = self.bits[rows].iter().any(Option::is_some);
        let mut chunk = Chunk {
            times,
            pages: vec![],
            ends: Vec::with_capacity(width),
            partial: vec![],
        };
        let mut turned: [Vec<f64>; TURN_COLUMNS] = Default::default();
        for first in (0..width).step_by(TURN_COLUMNS) {
            let columns = TURN_COLUMNS.min(width - first);
            turned.iter_mut().for_each(Vec::clear);
            for &row in &order {
                let values = &self.values[row * width + first..][..columns];
                for (c, (column, v)) in turned.iter_mut().zip(values).enumerate() {
                    if !any_partial || self.has(row, first + c) {
                        column.push(*v);
                    }
                }
            }
            for (c, column) in turned[..columns].iter().enumerate() {
                if column.len() < order.len() {
                    let has = |(i, &row): (usize, &usize)| u128::from(self.has(row, first + c)) << i;
                    let mask = order.iter().enumerate().map(has).fold(0, |m, b| m | b);
                    chunk.partial.push(((first + c) as u32, mask));
                }
                packer.put(column, &mut chunk.pages);
                chunk.ends.push(chunk.pages.len() as u32);
            }
        }
        chunk.pages.shrink_to_fit();
        chunk
    }

    /// Chunks that may have rows between these times.
    pub fn chunks_in(&self, (from, to): (i64, i64)) -> impl Iterator<Item = &Arc<Chunk>> {
        self.chunks.iter().filter(move |c| {
            let ends = c.times.first().zip(c.times.last());
            ends.is_some_and(|(first, last)| *first <= to && from <= *last)
        })
    }

    /// Rows that are shown and in no chunk.
    pub fn shown_rows(&self) -> usize {
        self.shown
    }

    /// Those of them that lie between these times.
    pub fn open_rows_in(&self, (from, to): (i64, i64)) -> impl Iterator<Item = usize> {
        (0..self.shown).filter(move |&row| (from..=to).contains(&self.times[row]))
    }

    /// A series' samples in these open rows, as they came.
    pub fn open_samples(&self, column: usize, rows: impl Iterator<Item = usize>, spans: &Spans, out: &mut Points) {
        let width = self.width();
        for row in rows {
            if self.has(row, column) && is_within(spans, self.times[row]) {
                out.push(self.times[row], self.values[row * width + column]);
            }
        }
    }

    /// The first time of any row.
    pub fn first_time(&self) -> Option<i64> {
        let chunks = self.chunks.iter().filter_map(|c| c.times.first());
        self.times.iter().chain(chunks).min().copied()
    }

    /// A series' first and last shown time.
    pub fn times_of(&self, column: usize) -> Option<(i64, i64)> {
        let open = (0..self.shown).filter(|&r| self.has(r, column)).map(|r| self.times[r]);
        let open = open.map(|t| (t, t));
        let chunks = self.chunks.iter().filter_map(|c| c.times_of(column));
        open.chain(chunks).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
    }
}

impl Chunk {
    pub fn bytes(&self) -> usize {
        self.pages.len() + self.ends.len() * 4 + self.times.len() * 8 + self.partial.len() * size_of::<(u32, u128)>()
    }

    fn mask(&self, column: usize) -> Option<u128> {
        let i = self.partial.binary_search_by_key(&(column as u32), |p| p.0).ok()?;
        Some(self.partial[i].1)
    }

    fn page(&self, column: usize) -> &[u8] {
        let start = if column == 0 { 0 } else { self.ends[column - 1] };
        &self.pages[start as usize..self.ends[column] as usize]
    }

    pub fn times_of(&self, column: usize) -> Option<(i64, i64)> {
        match self.mask(column) {
            None => Some((*self.times.first()?, *self.times.last()?)),
            Some(0) => None,
            Some(mask) => {
                let (first, last) = (mask.trailing_zeros(), 127 - mask.leading_zeros());
                Some((self.times[first as usize], self.times[last as usize]))
            }
        }
    }

    /// A series' samples in `spans`, ascending by time; of equal times the later commit comes later.
    pub fn samples(&self, column: usize, spans: &Spans, unpacker: &mut Unpacker, out: &mut Points) {
        let Some((first, last)) = self.times_of(column) else {
            return;
        };
        if !spans.iter().any(|&(a, b)| a <= last && first <= b) {
            return;
        }
        let start = out.len();
        match (self.mask(column), &spans[..]) {
            (None, &[(from, to)]) => {
                let low = self.times.partition_point(|t| *t < from);
                let high = low + self.times[low..].partition_point(|t| *t <= to);
                if low == high {
                    return;
                }
                out.times.extend_from_slice(&self.times[low..high]);
                unpacker.append(self.page(column), self.times.len(), &mut out.values);
                out.values.copy_within(start + low..start + high, start);
                out.values.truncate(start + high - low);
                return;
            }
            (None, _) => out.times.extend_from_slice(&self.times),
            (Some(mask), _) => {
                let rows = self.times.iter().enumerate().filter(|(i, _)| mask >> i & 1 == 1);
                out.times.extend(rows.map(|(_, &at)| at));
            }
        }
        unpacker.append(self.page(column), out.len() - start, &mut out.values);
        if !spans.iter().any(|&(a, b)| a <= first && last <= b) {
            out.retain_from(start, |at| is_within(spans, at));
        }
    }
}

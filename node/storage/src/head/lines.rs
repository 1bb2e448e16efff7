//! Lines of one stream: packed as the blocks of a log segment, closed and waiting for that, and open.
//!
//! Lines are copied out of their entries, which are much larger than one of them. Once a stream has enough of them they
//! are packed, once: a flush copies the blocks into its file as they are.
//!
//! Invariants
//! - Packed lines were committed before the closed ones, and these before the open ones.
//! - Inside a block lines ascend by time; those of one time stay in the order of commits.

use crate::codec::RawLine;
use crate::error::{ReadError, StorageError};
use crate::logs::{BLOCK_BYTES, BLOCK_ROWS_MAX, BlockEncoder, LineBuf, PackedBlock, Tier, Writer, fitting};
use crate::retention::{Spans, is_within};
use std::sync::Arc;

/// Open lines that hold this much are closed, so that readers copy no more than this under the lock.
const CHUNK_BYTES: usize = 256 * 1024;
/// Closed lines of a stream that hold this much are packed.
const PACK_BYTES: usize = BLOCK_BYTES;
/// Room that a line takes besides its text, about.
const LINE_BYTES: usize = 24;

/// Lines in the order of commits.
#[derive(Default)]
pub struct Lines {
    at: Vec<i64>,
    /// Per line: the ends of its metadata and of its text in `bytes`.
    ends: Vec<(u32, u32)>,
    bytes: Vec<u8>,
}

impl Lines {
    pub fn push(&mut self, l: RawLine<'_>) {
        self.bytes.extend_from_slice(l.metadata);
        let metadata_end = self.bytes.len() as u32;
        self.bytes.extend_from_slice(l.line);
        self.at.push(l.at);
        self.ends.push((metadata_end, self.bytes.len() as u32));
    }

    pub fn len(&self) -> usize {
        self.at.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = RawLine<'_>> {
        (0..self.at.len()).map(|row| self.get(row))
    }

    fn get(&self, row: usize) -> RawLine<'_> {
        let start = if row == 0 { 0 } else { self.ends[row - 1].1 };
        let (metadata, line) = self.ends[row];
        RawLine {
            at: self.at[row],
            line: &self.bytes[metadata as usize..line as usize],
            metadata: &self.bytes[start as usize..metadata as usize],
        }
    }

    fn held_bytes(&self) -> usize {
        self.bytes.len() + self.at.len() * LINE_BYTES
    }

    /// With room for as many lines, and an entry's more.
    fn of_its_size(&self) -> Self {
        let rows = self.at.len() + self.at.len() / 4;
        Self {
            at: Vec::with_capacity(rows),
            ends: Vec::with_capacity(rows),
            bytes: Vec::with_capacity(self.bytes.len() + self.bytes.len() / 4),
        }
    }

    /// Gives back room, if there is so much that it is worth a copy.
    fn shrink(&mut self) {
        if self.bytes.capacity() / 3 * 2 > self.bytes.len() {
            self.at.shrink_to_fit();
            self.ends.shrink_to_fit();
            self.bytes.shrink_to_fit();
        }
    }
}

/// Lines that do not change any more. Clones share them.
#[derive(Clone, Default)]
pub struct Closed {
    /// In the order of commits; their times may overlap.
    pub packed: Vec<Arc<PackedBlock>>,
    pub chunks: Vec<Arc<Lines>>,
}

impl Closed {
    /// Lines that are closed and not packed yet, with their rows: those of blocks come first.
    pub fn loose(&self) -> impl Iterator<Item = (usize, RawLine<'_>)> {
        let first = self.packed.len() * BLOCK_ROWS_MAX;
        (first..).zip(self.chunks.iter().flat_map(|c| c.iter()))
    }
}

/// A stream in the head.
pub struct Column {
    pub id: u32,
    closed: Closed,
    /// What the chunks hold.
    closed_bytes: usize,
    open: Lines,
    shown: usize,
    /// The first and the last time of what is shown.
    times: Option<(i64, i64)>,
}

impl Column {
    pub fn new(id: u32) -> Self {
        Self {
            id,
            closed: Closed::default(),
            closed_bytes: 0,
            open: Lines::default(),
            shown: 0,
            times: None,
        }
    }

    pub fn is_shown(&self) -> bool {
        self.shown == self.open.len()
    }

    /// How many bytes more it holds now, and how many lines.
    pub fn push<'a>(&mut self, lines: impl Iterator<Item = RawLine<'a>>) -> (usize, usize) {
        let (bytes, rows) = (self.open.held_bytes(), self.open.len());
        for line in lines {
            self.open.push(line);
        }
        (self.open.held_bytes() - bytes, self.open.len() - rows)
    }

    pub fn show(&mut self) {
        let new = self.open.at[self.shown..].iter().map(|&t| (t, t));
        self.times = self
            .times
            .into_iter()
            .chain(new)
            .reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
        self.shown = self.open.len();
        if self.open.bytes.len() >= CHUNK_BYTES {
            self.close();
        }
    }

    /// Closes what is open. All of it is shown.
    fn close(&mut self) {
        // What filled a chunk fills the next one, too: its room is made at once.
        let next = if self.open.bytes.len() >= CHUNK_BYTES {
            self.open.of_its_size()
        } else {
            Lines::default()
        };
        let mut full = std::mem::replace(&mut self.open, next);
        self.shown = 0;
        full.shrink();
        self.closed_bytes += full.held_bytes();
        self.closed.chunks.push(Arc::new(full));
    }

    /// What lines hold that are not packed.
    pub fn loose_bytes(&self) -> usize {
        self.closed_bytes + self.open.held_bytes()
    }

    /// Whether there is enough to be packed.
    pub fn is_full(&self) -> bool {
        self.closed_bytes >= PACK_BYTES
    }

    /// The lines to be packed next: those that are closed, and with `open` those that are open, too.
    pub fn close_to_pack(&mut self, open: bool) -> Vec<Arc<Lines>> {
        if open && self.open.len() > 0 {
            self.close();
        }
        self.closed.chunks.clone()
    }

    /// Takes the blocks of what `close_to_pack` gave. How many bytes they hold, and held as lines.
    pub fn put_packed(&mut self, packed: Vec<Arc<PackedBlock>>) -> (usize, usize) {
        let bytes = packed.iter().map(|p| p.bytes()).sum();
        self.closed.packed.extend(packed);
        self.closed.chunks.clear();
        (bytes, std::mem::take(&mut self.closed_bytes))
    }

    pub const fn closed(&self) -> &Closed {
        &self.closed
    }

    /// Shown lines that are not closed, in the order of commits.
    pub fn open_lines(&self) -> impl Iterator<Item = RawLine<'_>> {
        (0..self.shown).map(|row| self.open.get(row))
    }

    /// Shown lines that are not packed, with their rows.
    pub fn loose_lines(&self) -> impl Iterator<Item = (usize, RawLine<'_>)> {
        let closed = self.closed.chunks.iter().map(|c| c.len()).sum::<usize>();
        let first = self.closed.packed.len() * BLOCK_ROWS_MAX + closed;
        self.closed.loose().chain((first..).zip(self.open_lines()))
    }

    pub const fn times(&self) -> Option<(i64, i64)> {
        self.times
    }

    /// Whether a shown line lies in these times.
    pub fn has_any(&self, spans: &Spans) -> Result<bool, ReadError> {
        for packed in &self.closed.packed {
            let info = packed.info();
            if is_within(spans, info.first) || is_within(spans, info.last) {
                return Ok(true);
            }
            let block = packed.block();
            let times = block.times()?;
            if spans.iter().any(|&(a, b)| !times.rows_in(a, b).is_empty()) {
                return Ok(true);
            }
        }
        Ok(self.loose_lines().any(|(_, l)| is_within(spans, l.at)))
    }

    /// Puts all of it into a file. Blocks are copied; only those whose times overlap are packed anew.
    pub fn write(&self, writer: &mut Writer) -> Result<(), StorageError> {
        // In the order of commits; the loose lines are the last piece.
        let mut pieces: Vec<Piece<'_>> = self.closed.packed.iter().map(|p| Piece::Packed(p)).collect();
        let loose: Vec<RawLine<'_>> = self.loose_lines().map(|(_, l)| l).collect();
        if !loose.is_empty() {
            pieces.push(Piece::Loose(loose));
        }
        let mut order: Vec<(i64, i64, usize)> = vec![];
        order.extend(pieces.iter().enumerate().map(|(i, p)| {
            let (first, last) = p.times();
            (first, last, i)
        }));
        order.sort_unstable_by_key(|(first, _, i)| (*first, *i));
        for run in overlapping(&order) {
            match (&run[..], &pieces[run[0]]) {
                ([_], Piece::Packed(packed)) => writer.packed(self.id, packed)?,
                _ => {
                    let texts = run.iter().map(|&i| pieces[i].unpacked());
                    let texts = texts.collect::<Result<Vec<Option<LineBuf>>, ReadError>>()?;
                    let mut lines: Vec<RawLine<'_>> = vec![];
                    for (&i, unpacked) in run.iter().zip(&texts) {
                        match (&pieces[i], unpacked) {
                            (Piece::Loose(loose), _) => lines.extend(loose),
                            (_, unpacked) => lines.extend(unpacked.iter().flat_map(LineBuf::iter)),
                        }
                    }
                    lines.sort_by_key(|l| l.at);
                    writer.stream(self.id, lines.into_iter())?;
                }
            }
        }
        Ok(())
    }
}

enum Piece<'a> {
    Packed(&'a PackedBlock),
    /// Never empty.
    Loose(Vec<RawLine<'a>>),
}

impl Piece<'_> {
    fn times(&self) -> (i64, i64) {
        match self {
            Self::Packed(packed) => (packed.info().first, packed.info().last),
            Self::Loose(lines) => {
                let times = lines.iter().map(|l| (l.at, l.at));
                let ends = times.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
                ends.unwrap_or((0, 0))
            }
        }
    }

    fn unpacked(&self) -> Result<Option<LineBuf>, ReadError> {
        match self {
            Self::Packed(packed) => packed.block().lines(0..packed.info().rows as usize).map(Some),
            Self::Loose(_) => Ok(None),
        }
    }
}

/// Runs of pieces (first time, last time, place in the order of commits; sorted by the first) that must be taken
/// together, each in the order of commits. A piece may begin at the time at which an earlier one ends.
fn overlapping(order: &[(i64, i64, usize)]) -> Vec<Vec<usize>> {
    let mut runs: Vec<Vec<usize>> = vec![];
    let (mut last, mut newest) = (i64::MIN, 0);
    for &(first, end, i) in order {
        match runs.last_mut() {
            Some(run) if first < last || (first == last && i < newest) => run.push(i),
            _ => {
                runs.push(vec![i]);
                newest = i;
            }
        }
        last = last.max(end);
        newest = newest.max(i);
    }
    runs.iter_mut().for_each(|r| r.sort_unstable());
    runs
}

/// Packs lines that are in the order of commits.
pub fn pack(chunks: &[Arc<Lines>], encoder: &mut BlockEncoder) -> Vec<Arc<PackedBlock>> {
    let times = || chunks.iter().flat_map(|c| &c.at);
    let lines = chunks.iter().flat_map(|c| c.iter());
    if times().is_sorted() {
        return pack_sorted(lines, encoder);
    }
    let mut sorted: Vec<RawLine<'_>> = lines.collect();
    sorted.sort_by_key(|l| l.at);
    pack_sorted(sorted.into_iter(), encoder)
}

fn pack_sorted<'a>(lines: impl Iterator<Item = RawLine<'a>>, encoder: &mut BlockEncoder) -> Vec<Arc<PackedBlock>> {
    let mut lines = lines.peekable();
    let mut packed = vec![];
    while lines.peek().is_some() {
        // A chunk more than a block is no second block.
        let fitting = fitting(&mut lines, 2 * BLOCK_BYTES);
        packed.push(Arc::new(PackedBlock::encode(encoder, fitting, Tier::Flush.level())));
    }
    packed
}

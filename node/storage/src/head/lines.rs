//! Lines of one stream, copied out of their entries, which are much larger than one of them.

use crate::codec::RawLine;
use std::sync::Arc;

/// Open lines that hold this much are closed, so that readers copy no more than this under the lock.
const CHUNK_BYTES: usize = 256 * 1024;
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
}

/// A stream in the head.
pub struct Column {
    pub id: u32,
    /// Closed lines, all shown.
    pub chunks: Vec<Arc<Lines>>,
    open: Lines,
    shown: usize,
}

impl Column {
    pub fn new(id: u32) -> Self {
        Self {
            id,
            chunks: vec![],
            open: Lines::default(),
            shown: 0,
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
        if self.open.bytes.len() >= CHUNK_BYTES {
            let mut full = std::mem::take(&mut self.open);
            full.at.shrink_to_fit();
            full.ends.shrink_to_fit();
            full.bytes.shrink_to_fit();
            self.chunks.push(Arc::new(full));
        }
        self.shown = self.open.len();
    }

    /// Shown lines that are in no chunk, in the order of commits.
    pub fn open_lines(&self) -> impl Iterator<Item = RawLine<'_>> {
        (0..self.shown).map(|row| self.open.get(row))
    }

    /// All shown lines in the order of commits.
    pub fn lines(&self) -> impl Iterator<Item = RawLine<'_>> {
        self.chunks.iter().flat_map(|c| c.iter()).chain(self.open_lines())
    }

    pub fn times(&self) -> Option<(i64, i64)> {
        let times = self
            .chunks
            .iter()
            .flat_map(|c| &c.at)
            .chain(&self.open.at[..self.shown]);
        let ends = times.map(|&t| (t, t));
        ends.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
    }
}

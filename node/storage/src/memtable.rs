//! Rows that are in the log and not yet in a segment.
//!
//! Invariants
//! - Columns grow in the order of commits; of equal times the later row is the newer one.
//! - Rows of an entry show all at once, when the shard advances over it.

use crate::codec::{RawLine, put_metadata};
use crate::directory::{Place, SeriesMeta};
use crate::retention::{Spans, is_within};
use hindcast_model::{LogLine, Sample};
use std::sync::Arc;

/// Rows of one series or stream.
pub struct Column {
    pub meta: Arc<SeriesMeta>,
    rows: Rows,
    /// Rows up to here are of entries that the shard has advanced over.
    shown: usize,
}

enum Rows {
    Samples {
        samples: Vec<Sample>,
        /// Times strictly ascend: nothing to sort, nothing overwritten.
        ascending: bool,
    },
    Lines(Lines),
}

/// Lines copied out of their entry, which is much larger than one of them.
#[derive(Default)]
pub struct Lines {
    at: Vec<i64>,
    /// Per line: the ends of its metadata and of its text in `bytes`.
    ends: Vec<(usize, usize)>,
    bytes: Vec<u8>,
}

impl Lines {
    pub fn push(&mut self, l: RawLine<'_>) {
        self.bytes.extend_from_slice(l.metadata);
        let metadata_end = self.bytes.len();
        self.bytes.extend_from_slice(l.line);
        self.at.push(l.at);
        self.ends.push((metadata_end, self.bytes.len()));
    }

    pub fn iter(&self) -> impl Iterator<Item = RawLine<'_>> {
        (0..self.at.len()).map(|row| self.get(row))
    }

    fn get(&self, row: usize) -> RawLine<'_> {
        let start = if row == 0 { 0 } else { self.ends[row - 1].1 };
        let (metadata, line) = self.ends[row];
        RawLine {
            at: self.at[row],
            line: &self.bytes[metadata..line],
            metadata: &self.bytes[start..metadata],
        }
    }
}

/// Room that a series takes besides its rows, about.
const SERIES_BYTES: usize = 256;
const LINE_BYTES: usize = 24;

pub struct Memtable {
    /// Tells this memtable's places from those of earlier ones.
    number: u64,
    columns: Vec<Column>,
    touched: Vec<u32>,
    /// (series, column), by series; filled when the table is sealed.
    by_id: Vec<(u32, u32)>,
    /// Commit positions of its rows; `None`: it has no rows.
    commits: Option<(u64, u64)>,
    bytes: usize,
    samples: u64,
    lines: u64,
}

impl Memtable {
    pub fn new(number: u64) -> Self {
        Self {
            number,
            columns: vec![],
            touched: vec![],
            by_id: vec![],
            commits: None,
            bytes: 0,
            samples: 0,
            lines: 0,
        }
    }

    pub fn number(&self) -> u64 {
        self.number
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
    pub fn samples(&self) -> u64 {
        self.samples
    }
    pub fn lines(&self) -> u64 {
        self.lines
    }
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    pub fn saw(&mut self, index: u64) {
        let (first, _) = self.commits.unwrap_or((index, index));
        self.commits = Some((first, index));
    }

    fn column(&mut self, meta: &Arc<SeriesMeta>, place: &mut Place) -> &mut Column {
        if place.memtable != self.number {
            *place = Place {
                memtable: self.number,
                column: self.columns.len() as u32,
            };
            let rows = if meta.streams {
                Rows::Lines(Lines::default())
            } else {
                Rows::Samples {
                    samples: vec![],
                    ascending: true,
                }
            };
            self.columns.push(Column {
                meta: meta.clone(),
                rows,
                shown: 0,
            });
            self.bytes += SERIES_BYTES;
        }
        let column = &mut self.columns[place.column as usize];
        if column.shown == column.len() {
            self.touched.push(place.column);
        }
        column
    }

    pub fn push_samples(&mut self, meta: &Arc<SeriesMeta>, place: &mut Place, new: &[Sample]) {
        let Rows::Samples { samples, ascending } = &mut self.column(meta, place).rows else {
            unreachable!("a series has samples");
        };
        let joins = samples.last().zip(new.first()).is_none_or(|(a, b)| a.at < b.at);
        *ascending &= joins && new.is_sorted_by(|a, b| a.at < b.at);
        samples.extend_from_slice(new);
        self.bytes += size_of_val(new);
        self.samples += new.len() as u64;
    }

    pub fn push_lines(&mut self, meta: &Arc<SeriesMeta>, place: &mut Place, new: &[LogLine]) {
        let Rows::Lines(lines) = &mut self.column(meta, place).rows else {
            unreachable!("a stream has lines");
        };
        let before = lines.bytes.len();
        for l in new {
            put_metadata(&mut lines.bytes, &l.metadata);
            let metadata_end = lines.bytes.len();
            lines.bytes.extend_from_slice(&l.line);
            lines.at.push(l.at.0);
            lines.ends.push((metadata_end, lines.bytes.len()));
        }
        self.bytes += lines.bytes.len() - before + new.len() * LINE_BYTES;
        self.lines += new.len() as u64;
    }

    pub fn push_raw_lines<'a>(
        &mut self,
        meta: &Arc<SeriesMeta>,
        place: &mut Place,
        new: impl Iterator<Item = RawLine<'a>>,
    ) {
        let Rows::Lines(lines) = &mut self.column(meta, place).rows else {
            unreachable!("a stream has lines");
        };
        let (bytes, rows) = (lines.bytes.len(), lines.at.len());
        new.for_each(|l| lines.push(l));
        let added = lines.at.len() - rows;
        self.bytes += lines.bytes.len() - bytes + added * LINE_BYTES;
        self.lines += added as u64;
    }

    /// Shows everything pushed so far.
    pub fn show(&mut self) {
        for &column in &self.touched {
            let c = &mut self.columns[column as usize];
            c.shown = c.len();
        }
        self.touched.clear();
    }

    /// No more rows come; columns are found by series from here on.
    pub fn seal(mut self) -> Self {
        assert!(self.touched.is_empty(), "a memtable is sealed between entries");
        self.by_id = self.columns.iter().zip(0..).map(|(c, i)| (c.meta.id, i)).collect();
        self.by_id.sort_unstable();
        self
    }

    pub fn sealed_column(&self, id: u32) -> Option<&Column> {
        let i = self.by_id.binary_search_by_key(&id, |&(id, _)| id).ok()?;
        Some(&self.columns[self.by_id[i].1 as usize])
    }

    /// The column at a place of the directory, if that is one of ours.
    pub fn active_column(&self, place: Place) -> Option<&Column> {
        (place.memtable == self.number).then(|| &self.columns[place.column as usize])
    }
}

impl Column {
    fn len(&self) -> usize {
        match &self.rows {
            Rows::Samples { samples, .. } => samples.len(),
            Rows::Lines(lines) => lines.at.len(),
        }
    }

    /// The first and the last event time of shown rows.
    pub fn times(&self) -> Option<(i64, i64)> {
        let span = |times: &mut dyn Iterator<Item = i64>| {
            times.fold(None, |span: Option<(i64, i64)>, at| {
                let (first, last) = span.unwrap_or((at, at));
                Some((first.min(at), last.max(at)))
            })
        };
        match &self.rows {
            Rows::Samples { samples, .. } => span(&mut samples[..self.shown].iter().map(|s| s.at.0)),
            Rows::Lines(lines) => span(&mut lines.at[..self.shown].iter().copied()),
        }
    }

    /// Whether any shown row lies in `spans`.
    pub fn has_any(&self, spans: &Spans) -> bool {
        match &self.rows {
            Rows::Samples { samples, .. } => samples[..self.shown].iter().any(|s| is_within(spans, s.at.0)),
            Rows::Lines(lines) => lines.at[..self.shown].iter().any(|&at| is_within(spans, at)),
        }
    }

    /// Shown samples in `spans`, as they came: not sorted, nothing overwritten yet.
    pub fn samples(&self, spans: &Spans, out: &mut Vec<Sample>) {
        let Rows::Samples { samples, ascending } = &self.rows else {
            unreachable!("a series has samples");
        };
        let samples = &samples[..self.shown];
        if *ascending {
            for &(from, to) in spans {
                let start = samples.partition_point(|s| s.at.0 < from);
                let end = samples.partition_point(|s| s.at.0 <= to);
                out.extend_from_slice(&samples[start..end]);
            }
        } else {
            out.extend(samples.iter().filter(|s| is_within(spans, s.at.0)));
        }
    }

    /// Shown lines in the order of commits.
    pub fn raw_lines(&self) -> impl Iterator<Item = RawLine<'_>> {
        let Rows::Lines(lines) = &self.rows else {
            unreachable!("a stream has lines");
        };
        (0..self.shown).map(|row| lines.get(row))
    }
}

/// Puts samples that came in the order of commits into the order of time; of equal times the last stays.
pub fn settle(samples: &mut Vec<Sample>) {
    if samples.is_sorted_by(|a, b| a.at < b.at) {
        return;
    }
    samples.sort_by_key(|s| s.at);
    let mut kept = 0;
    for i in 0..samples.len() {
        if i + 1 == samples.len() || samples[i].at != samples[i + 1].at {
            samples[kept] = samples[i];
            kept += 1;
        }
    }
    samples.truncate(kept);
}

//! The index of a block: which series there are, and where their chunks lie.
//!
//! Series are read in the order of the file, each with a checksum of its own: after a damaged one the next is looked for at the
//! boundaries of 16 bytes at which series begin. Lists of postings are of no use here and only checked.

use super::Damage;
use super::decode::{Bad, Cursor};
use super::window::Window;
use hindcast_env::Disk;
use hindcast_model::Labels;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// One series with its chunks.
const ENTRY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// A longer text is no label that could be stored.
const SYMBOL_BYTES_MAX: usize = 1024 * 1024;
/// Places of symbols that are remembered; the others are walked to from the one before.
const MARKS_MAX: usize = 65_536;
/// Symbols that are kept because series share them.
const SYMBOLS_KEPT_BYTES_MAX: usize = 32 * 1024 * 1024;
const MAGIC: u32 = 0xBAAA_D700;
const VERSION: u8 = 2;
/// Six places and a checksum.
const TOC_BYTES: u64 = 52;
const SERIES_ALIGNED: u64 = 16;
const SECTION_ALIGNED: u64 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkPlace {
    pub from_ms: i64,
    pub to_ms: i64,
    /// Which file, counted from 0.
    pub segment: u32,
    pub offset: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    /// What tombstones call it.
    pub id: u64,
    pub labels: Labels,
    pub chunks: Vec<ChunkPlace>,
}

pub struct Index {
    file: Window,
    symbols: Symbols,
    pub series: Range<u64>,
    sections: Vec<Range<u64>>,
    tables: Vec<u64>,
}

impl Index {
    pub fn open(disk: &dyn Disk, path: &str) -> Result<Self, Damage> {
        let mut file = Window::open(disk, path)?;
        let head = file.get(0, 5)?;
        if head[..4] != MAGIC.to_be_bytes() {
            return Err(file.damage(0, "this is not the index of a block"));
        }
        if head[4] != VERSION {
            let why = format!("version {} of the index is not known here; {VERSION} is", head[4]);
            return Err(file.damage(4, why));
        }
        let Some(toc_at) = file.len.checked_sub(TOC_BYTES).filter(|at| *at >= 5) else {
            return Err(file.damage(0, "the file ends too early"));
        };
        let toc = file.get(toc_at, TOC_BYTES as usize)?;
        if crc32c::crc32c(&toc[..48]).to_be_bytes() != toc[48..] {
            return Err(file.damage(toc_at, "the checksum of its table of contents is wrong"));
        }
        let mut places = Cursor::new(&toc);
        let mut place = || places.be64().expect("48 bytes are six places");
        let (symbols, series, label_indices, label_table, postings, postings_table) =
            (place(), place(), place(), place(), place(), place());
        // What is not there has no place; each ends where the next one begins.
        let end = |from: u64| {
            let all = [series, label_indices, label_table, postings, postings_table, toc_at];
            all.into_iter()
                .filter(|at| *at > from)
                .min()
                .unwrap_or(toc_at)
                .min(toc_at)
        };
        if [symbols, series, label_indices, label_table, postings, postings_table]
            .iter()
            .any(|at| *at > toc_at)
        {
            return Err(file.damage(toc_at, "its table of contents points beyond it"));
        }
        Ok(Self {
            symbols: Symbols::open(file.again(), symbols, end(symbols))?,
            series: if series == 0 {
                toc_at..toc_at
            } else {
                series..end(series)
            },
            sections: [label_indices, postings]
                .into_iter()
                .filter(|at| *at != 0)
                .map(|at| at..end(at))
                .collect(),
            tables: [label_table, postings_table]
                .into_iter()
                .filter(|at| *at != 0)
                .collect(),
            file,
        })
    }

    /// Checks what finding series does not need. Damage there loses nothing.
    pub fn check_lists(&mut self, tell: &mut dyn FnMut(Damage)) {
        for section in self.sections.clone() {
            let mut at = section.start.next_multiple_of(SECTION_ALIGNED);
            while at + 4 < section.end {
                match self.check_section(at, section.end) {
                    Ok(end) => at = end.next_multiple_of(SECTION_ALIGNED),
                    Err(damage) => {
                        tell(damage);
                        break;
                    }
                }
            }
        }
        for at in self.tables.clone() {
            if let Err(damage) = self.check_section(at, self.file.len) {
                tell(damage);
            }
        }
    }

    /// A length, so many bytes, and their checksum. Answers where it ends.
    fn check_section(&mut self, at: u64, bound: u64) -> Result<u64, Damage> {
        let len = u32::from_be_bytes(self.file.get(at, 4)?[..].try_into().expect("4 bytes were read"));
        let end = at + 4 + u64::from(len);
        if end + 4 > bound {
            return Err(self.file.damage(at, "a list of postings is longer than its room"));
        }
        let sum = self.file.checksum(at + 4, end)?;
        if sum.to_be_bytes() != self.file.get(end, 4)?[..] {
            return Err(self.file.damage(
                at,
                "the checksum of a list of postings is wrong (no sample is lost by that)",
            ));
        }
        Ok(end + 4)
    }

    /// The first series at or after a place, and where the next one may begin. `None`: there is no more. An error is told with
    /// where to go on.
    pub fn next(&mut self, from: u64) -> Result<Option<(Series, u64)>, (Damage, u64)> {
        let mut at = from.max(self.series.start).next_multiple_of(SERIES_ALIGNED);
        // Zeros between series say nothing.
        while at < self.series.end {
            match self.file.up_to(at, 1).map_err(|d| (d, self.series.end))?.first() {
                Some(0) => at += SERIES_ALIGNED,
                Some(_) => break,
                None => return Ok(None),
            }
        }
        if at >= self.series.end {
            return Ok(None);
        }
        match self.at(at) {
            Ok((series, end)) => Ok(Some((series, end))),
            Err((damage, false)) => Err((damage, self.resume(at + SERIES_ALIGNED))),
            // Its bytes are right, its labels or chunks are not to be had.
            Err((damage, true)) => Err((damage, at + SERIES_ALIGNED)),
        }
    }

    /// Where the next entry with a right checksum begins.
    fn resume(&mut self, from: u64) -> u64 {
        let mut at = from;
        while at < self.series.end {
            if self.entry(at).is_ok() {
                return at;
            }
            at += SERIES_ALIGNED;
        }
        at
    }

    fn entry(&mut self, at: u64) -> Result<(bytes::Bytes, u64), Damage> {
        let head = self.file.up_to(at, 10)?;
        let mut cursor = Cursor::new(&head);
        let len = cursor.uvarint().map_err(|why| self.file.damage(at, why))?;
        let start = at + (head.len() - cursor.rest.len()) as u64;
        if len == 0 || len > ENTRY_BYTES_MAX as u64 || start + len + 4 > self.series.end {
            return Err(self.file.damage(at, "the length of a series cannot be"));
        }
        let bytes = self.file.get(start, len as usize + 4)?;
        let entry = bytes.slice(..len as usize);
        if crc32c::crc32c(&entry).to_be_bytes() != bytes[len as usize..] {
            return Err(self.file.damage(at, "the checksum of a series is wrong"));
        }
        Ok((entry, start + len + 4))
    }

    /// An error says whether the checksum was right.
    fn at(&mut self, at: u64) -> Result<(Series, u64), (Damage, bool)> {
        let (entry, end) = self.entry(at).map_err(|d| (d, false))?;
        let bad = |file: &Window, why: Bad| (file.damage(at, why), true);
        let mut cursor = Cursor::new(&entry);
        let n = cursor.count().map_err(|why| bad(&self.file, why))?;
        let mut pairs = vec![];
        for _ in 0..n {
            let both = cursor.uvarint().and_then(|name| Ok((name, cursor.uvarint()?)));
            let (name, value) = both.map_err(|why| bad(&self.file, why))?;
            let name = self.symbols.get(name).map_err(|d| (d, true))?;
            pairs.push((name, self.symbols.get(value).map_err(|d| (d, true))?));
        }
        let chunks = chunks(&mut cursor).map_err(|why| bad(&self.file, why))?;
        let series = Series {
            id: at / SERIES_ALIGNED,
            labels: Labels::from_sorted(pairs.iter().map(|(n, v)| (&**n, &**v))),
            chunks,
        };
        Ok((series, end))
    }
}

fn chunks(cursor: &mut Cursor<'_>) -> Result<Vec<ChunkPlace>, Bad> {
    let n = cursor.count()?;
    let mut chunks: Vec<ChunkPlace> = vec![];
    let mut place = 0u64;
    for i in 0..n {
        let from_ms = match chunks.last() {
            None => cursor.varint()?,
            Some(before) => before.to_ms.wrapping_add_unsigned(cursor.uvarint()?),
        };
        let to_ms = from_ms.wrapping_add_unsigned(cursor.uvarint()?);
        place = match i {
            0 => cursor.uvarint()?,
            _ => place.wrapping_add_signed(cursor.varint()?),
        };
        chunks.push(ChunkPlace {
            from_ms,
            to_ms,
            segment: (place >> 32) as u32,
            offset: place as u32,
        });
    }
    Ok(chunks)
}

/// The texts that series refer to by number.
struct Symbols {
    file: Window,
    count: u64,
    end: u64,
    /// Where each `stride`-th symbol begins.
    marks: Vec<u64>,
    stride: u64,
    kept: HashMap<u64, Arc<str>>,
    kept_bytes: usize,
}

impl Symbols {
    fn open(mut file: Window, at: u64, bound: u64) -> Result<Self, Damage> {
        let head = file.get(at, 8)?;
        let mut cursor = Cursor::new(&head);
        let number = |c: &mut Cursor<'_>| u64::from(c.be32().expect("8 bytes were read"));
        let (len, count) = (number(&mut cursor), number(&mut cursor));
        let end = at + 4 + len;
        if len < 4 || end + 4 > bound || count > len {
            return Err(file.damage(at, "the length of its table of symbols cannot be"));
        }
        let sum = file.checksum(at + 4, end)?;
        if sum.to_be_bytes() != file.get(end, 4)?[..] {
            return Err(file.damage(
                at,
                "the checksum of its table of symbols is wrong, and without these no series has labels",
            ));
        }
        let mut symbols = Self {
            file,
            count,
            end,
            marks: vec![],
            stride: count.div_ceil(MARKS_MAX as u64).max(1),
            kept: HashMap::new(),
            kept_bytes: 0,
        };
        let mut place = at + 8;
        for i in 0..count {
            if i.is_multiple_of(symbols.stride) {
                symbols.marks.push(place);
            }
            place = symbols.text_at(place)?.1;
        }
        Ok(symbols)
    }

    /// Where the text of a symbol lies, and where it ends.
    fn text_at(&mut self, at: u64) -> Result<(u64, u64), Damage> {
        let head = self.file.up_to(at, 10)?;
        let mut cursor = Cursor::new(&head);
        let len = cursor.uvarint().map_err(|why| self.file.damage(at, why))?;
        let start = at + (head.len() - cursor.rest.len()) as u64;
        match start.checked_add(len) {
            Some(end) if end <= self.end => Ok((start, end)),
            _ => Err(self.file.damage(at, "a symbol is longer than their table")),
        }
    }

    fn get(&mut self, number: u64) -> Result<Arc<str>, Damage> {
        if let Some(text) = self.kept.get(&number) {
            return Ok(text.clone());
        }
        if number >= self.count {
            return Err(self
                .file
                .damage(0, format_args!("a series refers to symbol {number} of {}", self.count)));
        }
        let mut at = self.marks[(number / self.stride) as usize];
        for _ in 0..number % self.stride {
            at = self.text_at(at)?.1;
        }
        let (start, end) = self.text_at(at)?;
        let len = (end - start) as usize;
        if len > SYMBOL_BYTES_MAX {
            return Err(self.file.damage(
                at,
                format_args!("a label of {len} bytes is longer than any that is stored"),
            ));
        }
        let bytes = self.file.get(start, len)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| self.file.damage(at, "a symbol is not UTF-8"))?;
        let text: Arc<str> = text.into();
        if self.kept_bytes > SYMBOLS_KEPT_BYTES_MAX {
            self.kept.clear();
            self.kept_bytes = 0;
        }
        self.kept_bytes += len + 64;
        self.kept.insert(number, text.clone());
        Ok(text)
    }
}

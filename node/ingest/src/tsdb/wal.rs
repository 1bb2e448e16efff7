//! A write-ahead log: records cut into pages of segments, and what a record says.
//!
//! Segments are read a page at a time. After a fragment that is damaged, reading goes on with the next one whose checksum is right,
//! in this page or at the next.

use super::decode::{Bad, Cursor};
use super::window::Window;
use super::{Damage, Finding};
use crate::remote_write::native::{Kept, NATIVE_COUNTS_MAX, Native, hint};
use hindcast_env::Disk;
use hindcast_model::Labels;
use std::io::Read;

pub const PAGE_BYTES: u64 = 32 * 1024;
const HEAD_BYTES: u64 = 7;
/// One record, packed or not: as much as a segment.
const RECORD_BYTES_MAX: usize = 128 * 1024 * 1024;
const TYPE_MASK: u8 = 0b111;
const SNAPPY: u8 = 1 << 3;
const ZSTD: u8 = 1 << 4;
/// Labels of one series.
const LABELS_MAX: usize = 4096;

/// The records of one segment, in their order.
pub struct Segment {
    file: Window,
    at: u64,
    /// More may have been about to come: its end proves nothing.
    is_last: bool,
    buffer: Vec<u8>,
    /// Where the record in the buffer begins.
    begun: Option<u64>,
    unpacked: Vec<u8>,
    /// Damage was told, and until a record begins its rest belongs to that.
    lost: bool,
}

/// What comes next in a segment.
pub enum Next<'a> {
    /// Where it begins, and its bytes.
    Record(u64, &'a [u8]),
    Finding(Finding),
    End,
}

/// A fragment of a record.
struct Fragment {
    kind: u8,
    packing: u8,
    data: bytes::Bytes,
}

impl Segment {
    pub fn open(disk: &dyn Disk, path: &str, is_last: bool) -> Result<Self, Damage> {
        Ok(Self {
            file: Window::open(disk, path)?,
            at: 0,
            is_last,
            buffer: vec![],
            begun: None,
            unpacked: vec![],
            lost: false,
        })
    }

    pub fn bytes_read(&self) -> u64 {
        self.at
    }

    pub fn next(&mut self) -> Next<'_> {
        loop {
            if self.at >= self.file.len {
                let Some(begun) = self.begun.take() else {
                    return Next::End;
                };
                return Next::Finding(self.ended(begun));
            }
            let at = self.at;
            let fragment = match self.fragment() {
                Ok(Some(fragment)) => fragment,
                Ok(None) => continue,
                Err(damage) => {
                    let begun = self.begun.take().unwrap_or(at);
                    self.lost = true;
                    let page_end = (at / PAGE_BYTES + 1) * PAGE_BYTES;
                    let resumed = self.next_in_page(at + 1, page_end);
                    // What was still being written has nothing behind it.
                    let torn = self.is_last && resumed.is_none() && page_end >= self.file.len && self.is_torn(at);
                    self.at = resumed.unwrap_or(page_end);
                    return Next::Finding(if torn {
                        self.ended(begun)
                    } else {
                        Finding::Damage(damage)
                    });
                }
            };
            match (fragment.kind, self.begun) {
                (1, None) => {
                    self.begun = Some(at);
                    self.buffer.clear();
                }
                (2, None) => {
                    self.begun = Some(at);
                    self.buffer.clear();
                    self.buffer.extend_from_slice(&fragment.data);
                    self.lost = false;
                    continue;
                }
                (3 | 4, Some(_)) => {}
                (3 | 4, None) if self.lost => continue,
                _ => {
                    // A record that began and does not end, or the other way round.
                    let again = matches!(fragment.kind, 1 | 2);
                    if again {
                        self.at = at;
                    }
                    let begun = self.begun.take().unwrap_or(at);
                    self.lost = !again;
                    return Next::Finding(Finding::Damage(self.file.damage(begun, "a record is not whole")));
                }
            }
            self.lost = false;
            let begun = self.begun.unwrap_or(at);
            if self.buffer.len() + fragment.data.len() > RECORD_BYTES_MAX {
                self.begun = None;
                self.lost = true;
                let why = format!("a record is longer than {RECORD_BYTES_MAX} bytes");
                return Next::Finding(Finding::Damage(self.file.damage(begun, why)));
            }
            self.buffer.extend_from_slice(&fragment.data);
            if fragment.kind == 3 {
                continue;
            }
            self.begun = None;
            return match unpack(fragment.packing, &self.buffer, &mut self.unpacked) {
                Ok(true) => Next::Record(begun, &self.unpacked),
                Ok(false) => Next::Record(begun, &self.buffer),
                Err(why) => Next::Finding(Finding::Damage(self.file.damage(begun, why))),
            };
        }
    }

    /// `None`: the rest of the page is empty.
    fn fragment(&mut self) -> Result<Option<Fragment>, Damage> {
        let at = self.at;
        let page_end = (at / PAGE_BYTES + 1) * PAGE_BYTES;
        let kind = self.file.get(at, 1)?[0];
        if kind & TYPE_MASK == 0 {
            let rest = self.file.up_to(at, (page_end - at) as usize)?;
            if rest.iter().any(|b| *b != 0) {
                return Err(self.file.damage(at, "the rest of a page is not empty"));
            }
            self.at = page_end;
            return Ok(None);
        }
        let head = self.file.get(at, HEAD_BYTES as usize)?;
        let mut cursor = Cursor::new(&head[1..]);
        let len = u16::from_be_bytes([head[1], head[2]]);
        cursor.rest = &head[3..];
        let sum = cursor.be32().map_err(|why| self.file.damage(at, why))?;
        let end = at + HEAD_BYTES + u64::from(len);
        if end > page_end {
            return Err(self.file.damage(at, "a record is longer than its page"));
        }
        let data = self.file.get(at + HEAD_BYTES, usize::from(len))?;
        if crc32c::crc32c(&data) != sum {
            return Err(self.file.damage(at, "the checksum of a record is wrong"));
        }
        if kind & TYPE_MASK > 4 || kind >> 5 != 0 {
            return Err(self
                .file
                .damage(at, format_args!("a record of a kind that is not known: {kind:#04x}")));
        }
        self.at = end;
        Ok(Some(Fragment {
            kind: kind & TYPE_MASK,
            packing: kind & (SNAPPY | ZSTD),
            data,
        }))
    }

    /// Where a fragment with a right checksum begins.
    fn next_in_page(&mut self, from: u64, page_end: u64) -> Option<u64> {
        let before = self.at;
        let found = (from..page_end.min(self.file.len)).find(|at| {
            self.at = *at;
            // A fragment of nothing proves nothing.
            matches!(self.fragment(), Ok(Some(fragment)) if !fragment.data.is_empty())
        });
        self.at = before;
        found
    }

    /// Whether what stands here goes beyond the file's end, or has nothing but zeros behind its head.
    fn is_torn(&mut self, at: u64) -> bool {
        let Ok(head) = self.file.up_to(at, HEAD_BYTES as usize) else {
            return false;
        };
        if head.len() < HEAD_BYTES as usize {
            return true;
        }
        let end = at + HEAD_BYTES + u64::from(u16::from_be_bytes([head[1], head[2]]));
        let in_page = end <= (at / PAGE_BYTES + 1) * PAGE_BYTES;
        if !in_page || end <= self.file.len {
            return in_page && self.file.is_zero_from(at + HEAD_BYTES).unwrap_or(false);
        }
        // What is there may be whole, and its length damaged.
        let there = self.file.checksum(at + HEAD_BYTES, self.file.len);
        there.map_or(true, |sum| sum.to_be_bytes() != head[3..7])
    }

    /// The file ends within a record.
    fn ended(&self, begun: u64) -> Finding {
        if self.is_last {
            Finding::Torn {
                file: self.file.path.clone(),
                offset: begun,
                bytes: self.file.len - begun,
            }
        } else {
            Finding::Damage(
                self.file
                    .damage(begun, "the file ends within a record, and another one follows it"),
            )
        }
    }
}

/// `Ok(false)`: it is not packed.
fn unpack(packing: u8, record: &[u8], into: &mut Vec<u8>) -> Result<bool, String> {
    into.clear();
    match packing {
        0 => return Ok(false),
        SNAPPY => {
            let len = snap::raw::decompress_len(record).map_err(|e| e.to_string())?;
            if len > RECORD_BYTES_MAX {
                return Err(format!("a record unpacks to {len} bytes, more than {RECORD_BYTES_MAX}"));
            }
            // Room for no more than snappy can make of so much: a length that lies asks for none.
            if len / 64 > record.len() {
                return Err("the length of a packed record cannot be".to_owned());
            }
            into.resize(len, 0);
            let unpacked = snap::raw::Decoder::new().decompress(record, into);
            into.truncate(unpacked.map_err(|e| format!("a record does not unpack: {e}"))?);
        }
        ZSTD => {
            let failed = |e: std::io::Error| format!("a record does not unpack: {e}");
            let decoder = zstd::Decoder::with_buffer(record).map_err(failed)?;
            decoder
                .take(RECORD_BYTES_MAX as u64 + 1)
                .read_to_end(into)
                .map_err(failed)?;
            if into.len() > RECORD_BYTES_MAX {
                return Err(format!("a record unpacks to more than {RECORD_BYTES_MAX} bytes"));
            }
        }
        _ => return Err("a record is packed in two ways".to_owned()),
    }
    Ok(true)
}

/// One thing that a record says. Series are named by their number.
pub(crate) enum Row<'a> {
    Series(u64, Labels),
    Float(u64, i64, f64),
    Native(u64, &'a Native),
    /// Samples from one time to another were deleted.
    Deleted(u64, i64, i64),
    Exemplar,
    Metadata,
    /// A record of a kind that is not known.
    Unknown,
}

/// Whether a record tells of series (and deletions), or of samples. Others are neither.
pub fn is_of_samples(record: &[u8]) -> bool {
    matches!(record.first(), Some(2 | 7..=13))
}

/// Tells what a record says, in its order.
pub(crate) fn read(record: &[u8], tell: &mut dyn FnMut(Row<'_>)) -> Result<(), Bad> {
    let mut cursor = Cursor::new(record);
    let c = &mut cursor;
    match c.byte()? {
        1 => {
            while !c.rest.is_empty() {
                let id = c.be64()?;
                tell(Row::Series(id, labels(c)?));
            }
        }
        2 => {
            each(c, |c, id, at| {
                tell(Row::Float(id, at, c.double()?));
                Ok(())
            })?;
        }
        3 => {
            while !c.rest.is_empty() {
                tell(Row::Deleted(c.be64()?, c.varint()?, c.varint()?));
            }
        }
        4 => {
            each(c, |c, _, _| {
                c.double()?;
                labels(c)?;
                tell(Row::Exemplar);
                Ok(())
            })?;
        }
        // Which chunks of late samples lie in files by now, and since which time a checkpoint holds samples.
        5 | 14 => {}
        6 => {
            while !c.rest.is_empty() {
                c.uvarint()?;
                c.byte()?;
                for _ in 0..c.uvarint()? {
                    c.text()?;
                    c.text()?;
                }
                tell(Row::Metadata);
            }
        }
        kind @ 7..=10 => {
            each(c, |c, id, at| {
                tell(Row::Native(id, &native(c, at, kind % 2 == 0)?));
                Ok(())
            })?;
        }
        11 => {
            each_2(c, |c, id, at| {
                tell(Row::Float(id, at, c.double()?));
                Ok(())
            })?;
        }
        kind @ 12..=13 => {
            each_2(c, |c, id, at| {
                tell(Row::Native(id, &native(c, at, kind == 13)?));
                Ok(())
            })?;
        }
        _ => tell(Row::Unknown),
    }
    Ok(())
}

type ReadRow<'c> = &'c mut dyn FnMut(&mut Cursor<'_>, u64, i64) -> Result<(), Bad>;

/// Rows whose series and times are differences from those that lead the record.
fn each(c: &mut Cursor<'_>, mut row: impl FnMut(&mut Cursor<'_>, u64, i64) -> Result<(), Bad>) -> Result<(), Bad> {
    if c.rest.is_empty() {
        return Ok(());
    }
    let (id, at) = (c.be64()?, c.be64()? as i64);
    let row: ReadRow<'_> = &mut row;
    while !c.rest.is_empty() {
        let (id_more, at_more) = (c.varint()?, c.varint()?);
        row(c, id.wrapping_add_signed(id_more), at.wrapping_add(at_more))?;
    }
    Ok(())
}

/// Rows that may carry the time at which their series began: series as differences from the row before, times from the first.
fn each_2(c: &mut Cursor<'_>, mut row: impl FnMut(&mut Cursor<'_>, u64, i64) -> Result<(), Bad>) -> Result<(), Bad> {
    if c.rest.is_empty() {
        return Ok(());
    }
    let (mut id, first) = (c.varint()? as u64, c.varint()?);
    c.varint()?;
    let row: ReadRow<'_> = &mut row;
    row(c, id, first)?;
    while !c.rest.is_empty() {
        id = id.wrapping_add_signed(c.varint()?);
        let at = first.wrapping_add(c.varint()?);
        // None, the same as before, or a third one that is written out.
        if c.byte()? > 1 {
            c.varint()?;
        }
        row(c, id, at)?;
    }
    Ok(())
}

fn labels(c: &mut Cursor<'_>) -> Result<Labels, Bad> {
    let n = c.count()?;
    if n > LABELS_MAX {
        return Err(Bad("a series has too many labels"));
    }
    let pairs: Vec<_> = (0..n).map(|_| Ok((c.text()?, c.text()?))).collect::<Result<_, Bad>>()?;
    Ok(Labels::from_sorted(pairs))
}

fn native(c: &mut Cursor<'_>, at_ms: i64, is_float: bool) -> Result<Native, Bad> {
    const TOO_MANY: Bad = Bad("a histogram has too many buckets");
    let hint = hint(u64::from(c.byte()?));
    let schema = c.varint()? as i32;
    let zero_threshold = c.double()?;
    let number = |c: &mut Cursor<'_>| if is_float { c.double() } else { Ok(c.uvarint()? as f64) };
    let (zero_count, count) = (number(c)?, number(c)?);
    let sum = c.double()?;
    let spans = |c: &mut Cursor<'_>| {
        let n = c.count()?;
        if n > NATIVE_COUNTS_MAX {
            return Err(TOO_MANY);
        }
        (0..n)
            .map(|_| Ok((c.varint()? as i32, c.uvarint()? as u32)))
            .collect::<Result<Vec<_>, Bad>>()
    };
    let (positive, negative) = (spans(c)?, spans(c)?);
    let counts = |c: &mut Cursor<'_>| {
        let n = c.count()?;
        if n > NATIVE_COUNTS_MAX {
            return Err(TOO_MANY);
        }
        let mut last = 0i64;
        let count = |_| {
            if is_float {
                return c.double();
            }
            last = last.wrapping_add(c.varint()?);
            Ok(last as f64)
        };
        (0..n).map(count).collect::<Result<Vec<_>, Bad>>()
    };
    let (positive_counts, negative_counts) = (counts(c)?, counts(c)?);
    let custom = if schema == -53 {
        let n = c.count()?;
        if n > NATIVE_COUNTS_MAX {
            return Err(TOO_MANY);
        }
        (0..n).map(|_| c.double()).collect::<Result<Vec<_>, Bad>>()?
    } else {
        vec![]
    };
    Ok(Native::kept(&Kept {
        at_ms,
        count,
        sum,
        is_float,
        schema,
        zero_threshold,
        zero_count,
        positive: (&positive, &positive_counts),
        negative: (&negative, &negative_counts),
        custom: &custom,
        hint,
    }))
}

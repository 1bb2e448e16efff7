//! Immutable files of rows: written once, verified whenever bytes come back. Layout: `FORMAT.md` §2.
//!
//! Invariants
//! - One segment holds one tenant, one kind (samples or lines) and one retention policy.
//! - Series lie in the order of answers; the pages of a series ascend by time. A series' samples strictly ascend.
//! - No byte is used before its CRC32C was compared; BLAKE3 over the file is for transfer and scrub.
//! - The index (label sets, page table) is in memory; rows are read group by group, never the whole file.

use crate::aggregate::Resolution;
use crate::codec::{Bad, Cursor, PAGE_ROWS_MAX, RawLine, put_lines, put_samples, put_signed, put_varint};
use crate::error::{Damage, ReadError, StorageError};
use crate::retention::Policy;
use hindcast_env::{Disk, DiskError, DiskFile, ReadAt};
use hindcast_model::{GroupId, Sample, TenantId, TimestampNs};
use std::ops::Range;
use std::sync::Arc;

pub const MAGIC: &[u8; 8] = b"HCSEGMT\n";
pub const END_MAGIC: &[u8; 8] = b"HCSEGEND";
pub const VERSION: u16 = 2;
pub const GROUP_PAGES_MAX: usize = 64;
/// A group is closed once it holds this much; one page more may exceed it.
const GROUP_BYTES_FULL: usize = 128 * 1024;
/// Text of one page of lines; one line more may exceed it.
const PAGE_BYTES_FULL: usize = 128 * 1024;
/// A table or group larger than this, decompressed, cannot have been written by us.
const RAW_BYTES_MAX: usize = 1 << 30;
const WRITE_BYTES: usize = 1 << 20;
const ZSTD_LEVEL: i32 = 1;
const HEADER_BYTES_MAX: usize = 256;
const FOOTER_BYTES: usize = 76;
const CRC_BYTES: usize = 4;

/// What the header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub tenant: TenantId,
    pub streams: bool,
    /// Rows are columns of windows of this length (`aggregate`). `None`: samples or lines as they came.
    pub resolution: Option<Resolution>,
    pub policy: Policy,
    pub group: GroupId,
    /// Every row was committed in `commits.0..=commits.1` of the group.
    pub commits: (u64, u64),
    /// Every row's event time is in `times.0..=times.1`.
    pub times: (i64, i64),
}

#[derive(Clone, Copy, Debug)]
struct Page {
    group: u32,
    /// In the group's decompressed bytes.
    start: u32,
    len: u32,
    rows: u32,
    times: (i64, i64),
}

#[derive(Clone, Copy, Debug)]
struct Group {
    offset: u64,
    /// With the CRC.
    stored: u32,
    raw: u32,
}

struct SegmentSeries {
    id: u32,
    pages: Range<u32>,
}

/// A finished file, as the manifest names it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FileRef {
    pub number: u64,
    pub bytes: u64,
    pub blake3: [u8; 32],
}

pub fn path_of(dir: &str, number: u64) -> String {
    format!("{dir}/segment-{number:016x}")
}

// ---- writing ----

pub struct Writer {
    file: Box<dyn DiskFile>,
    number: u64,
    hasher: blake3::Hasher,
    written: u64,
    buffer: Vec<u8>,
    raw: Vec<u8>,
    raw_pages: usize,
    series: Vec<SegmentSeries>,
    pages: Vec<Page>,
    groups: Vec<Group>,
    rows: u64,
    head: Head,
}

impl Writer {
    pub fn create(disk: &dyn Disk, dir: &str, number: u64, head: Head) -> Result<Self, DiskError> {
        let mut w = Self {
            file: disk.create(&path_of(dir, number))?,
            number,
            hasher: blake3::Hasher::new(),
            written: 0,
            buffer: vec![],
            raw: vec![],
            raw_pages: 0,
            series: vec![],
            pages: vec![],
            groups: vec![],
            rows: 0,
            head,
        };
        put_head(&mut w.buffer, &w.head);
        Ok(w)
    }

    /// The next series; `samples` are settled.
    pub fn samples(&mut self, id: u32, samples: &[Sample]) -> Result<(), DiskError> {
        debug_assert!(samples.is_sorted_by(|a, b| a.at < b.at));
        self.begin_series(id);
        for page in samples.chunks(PAGE_ROWS_MAX) {
            let start = self.raw.len();
            put_samples(&mut self.raw, page);
            self.end_page(start, page.len(), (page[0].at.0, page[page.len() - 1].at.0))?;
        }
        Ok(())
    }

    /// The next stream; `lines` ascend by time, equal times in the order of commits.
    pub fn lines(&mut self, id: u32, lines: &[RawLine<'_>]) -> Result<(), DiskError> {
        debug_assert!(lines.is_sorted_by_key(|l| l.at));
        self.begin_series(id);
        let mut rest = lines;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest.iter().take(PAGE_ROWS_MAX).take_while(|l| {
                let goes_on = bytes < PAGE_BYTES_FULL;
                bytes += l.bytes();
                goes_on
            });
            let (page, later) = rest.split_at(fits.count());
            let start = self.raw.len();
            put_lines(&mut self.raw, page);
            self.end_page(start, page.len(), (page[0].at, page[page.len() - 1].at))?;
            rest = later;
        }
        Ok(())
    }

    fn begin_series(&mut self, id: u32) {
        let next = self.pages.len() as u32;
        self.series.push(SegmentSeries { id, pages: next..next });
    }

    fn end_page(&mut self, start: usize, rows: usize, times: (i64, i64)) -> Result<(), DiskError> {
        assert!(
            self.head.times.0 <= times.0 && times.1 <= self.head.times.1,
            "rows lie in the span that the header names"
        );
        self.pages.push(Page {
            group: self.groups.len() as u32,
            start: start as u32,
            len: (self.raw.len() - start) as u32,
            rows: rows as u32,
            times,
        });
        if let Some(series) = self.series.last_mut() {
            series.pages.end = self.pages.len() as u32;
        }
        self.rows += rows as u64;
        self.raw_pages += 1;
        if self.raw_pages == GROUP_PAGES_MAX || self.raw.len() >= GROUP_BYTES_FULL {
            self.end_group()?;
        }
        Ok(())
    }

    fn end_group(&mut self) -> Result<(), DiskError> {
        if self.raw_pages == 0 {
            return Ok(());
        }
        let offset = self.written + self.buffer.len() as u64;
        let stored = put_packed(&mut self.buffer, &self.raw);
        self.groups.push(Group {
            offset,
            stored: stored as u32,
            raw: self.raw.len() as u32,
        });
        self.raw.clear();
        self.raw_pages = 0;
        if self.buffer.len() >= WRITE_BYTES {
            self.write_buffer()?;
        }
        Ok(())
    }

    fn write_buffer(&mut self) -> Result<(), DiskError> {
        self.hasher.update(&self.buffer);
        self.file.write_at(self.written, &self.buffer)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Ends and syncs the file, and opens it. Its name is durable once the caller synced the folder.
    pub fn finish(mut self, disk: &dyn Disk, dir: &str) -> Result<Segment, DiskError> {
        self.end_group()?;
        let table = self.table();
        let offset = self.written + self.buffer.len() as u64;
        let stored = put_packed(&mut self.buffer, &table) as u64;
        let footer = self.buffer.len();
        for v in [offset, stored, table.len() as u64, self.rows] {
            self.buffer.extend_from_slice(&v.to_le_bytes());
        }
        let crc = crc32c::crc32c(&self.buffer[footer..]);
        self.buffer.extend_from_slice(&crc.to_le_bytes());
        self.write_buffer()?;
        let blake3 = *self.hasher.finalize().as_bytes();
        let end = [&blake3[..], END_MAGIC].concat();
        self.file.write_at(self.written, &end)?;
        self.file.sync()?;
        let path = path_of(dir, self.number);
        let ids = self.series.iter().zip(0..);
        let mut by_id: Vec<(u32, u32)> = ids.map(|(s, i)| (s.id, i)).collect();
        by_id.sort_unstable();
        Ok(Segment {
            head: self.head,
            file: FileRef {
                number: self.number,
                bytes: self.written + end.len() as u64,
                blake3,
            },
            reader: disk.open_read(&path)?,
            path,
            series: self.series,
            pages: self.pages,
            groups: self.groups,
            by_id,
            rows: self.rows,
        })
    }

    fn table(&self) -> Vec<u8> {
        let mut out = vec![];
        put_varint(&mut out, self.groups.len() as u64);
        for g in &self.groups {
            put_varint(&mut out, u64::from(g.stored));
            put_varint(&mut out, u64::from(g.raw));
        }
        put_varint(&mut out, self.series.len() as u64);
        for s in &self.series {
            put_varint(&mut out, u64::from(s.id));
            put_varint(&mut out, u64::from(s.pages.end - s.pages.start));
        }
        // Pages fill groups from front to back: only lengths and the step to the next group are told.
        let mut group = 0;
        for p in &self.pages {
            put_varint(&mut out, u64::from(p.group - group));
            put_varint(&mut out, u64::from(p.len));
            put_varint(&mut out, u64::from(p.rows));
            put_signed(&mut out, p.times.0.wrapping_sub(self.head.times.0));
            put_signed(&mut out, p.times.1.wrapping_sub(p.times.0));
            group = p.group;
        }
        out
    }
}

/// Kinds of rows: 0 samples, 1 lines, from here on windows by their length.
const KIND_WINDOWS: u8 = 2;

fn put_head(out: &mut Vec<u8>, head: &Head) {
    let start = out.len();
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.push(match (head.resolution, head.streams) {
        (None, streams) => u8::from(streams),
        (Some(resolution), _) => KIND_WINDOWS + resolution as u8,
    });
    out.push(head.policy as u8);
    for v in [head.group.0, head.commits.0, head.commits.1] {
        out.extend_from_slice(&v.to_le_bytes());
    }
    for v in [head.times.0, head.times.1] {
        out.extend_from_slice(&v.to_le_bytes());
    }
    out.push(head.tenant.as_str().len() as u8);
    out.extend_from_slice(head.tenant.as_str().as_bytes());
    let crc = crc32c::crc32c(&out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
}

/// Packs `raw` (one byte: 0 as it is, 1 zstd), adds a CRC32C over both; how many bytes that took.
fn put_packed(out: &mut Vec<u8>, raw: &[u8]) -> usize {
    assert!(raw.len() <= RAW_BYTES_MAX, "a block stays below {RAW_BYTES_MAX} bytes");
    let start = out.len();
    match zstd::bulk::compress(raw, ZSTD_LEVEL) {
        Ok(packed) if packed.len() < raw.len() => {
            out.push(1);
            out.extend_from_slice(&packed);
        }
        _ => {
            out.push(0);
            out.extend_from_slice(raw);
        }
    }
    let crc = crc32c::crc32c(&out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
    out.len() - start
}

fn checked(stored: &[u8]) -> Result<&[u8], Bad> {
    let (body, crc) = stored.split_last_chunk::<CRC_BYTES>().ok_or("ends too early")?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
        return Err("the checksum does not fit");
    }
    Ok(body)
}

fn unpack(stored: &[u8], raw_len: usize) -> Result<Vec<u8>, Bad> {
    let (tag, body) = checked(stored)?.split_first().ok_or("ends too early")?;
    let raw = match tag {
        0 => body.to_vec(),
        1 => zstd::bulk::decompress(body, raw_len).map_err(|_| "does not decompress")?,
        _ => return Err("an unknown packing"),
    };
    if raw.len() != raw_len {
        return Err("has another length than the table says");
    }
    Ok(raw)
}

// ---- reading ----

/// An open segment: its index, and a handle that keeps working when the file's name is gone.
pub struct Segment {
    pub head: Head,
    pub file: FileRef,
    path: String,
    reader: Arc<dyn ReadAt>,
    series: Vec<SegmentSeries>,
    pages: Vec<Page>,
    groups: Vec<Group>,
    /// (series id, place in `series`), by id.
    by_id: Vec<(u32, u32)>,
    rows: u64,
}

fn damage(path: &str, range: Range<u64>, why: impl Into<String>) -> Damage {
    Damage {
        file: path.to_owned(),
        from: range.start,
        to: range.end,
        why: why.into(),
    }
}

/// Reads a range that must be there: too short a file is damage, not a failing disk.
fn read_range(reader: &dyn ReadAt, path: &str, range: Range<u64>) -> Result<bytes::Bytes, ReadError> {
    let len = (range.end - range.start) as usize;
    reader.read_at(range.start, len).map_err(|e| {
        if e.source.kind() == std::io::ErrorKind::UnexpectedEof {
            damage(path, range, "the file is cut short").into()
        } else {
            e.into()
        }
    })
}

impl Segment {
    /// Reads and verifies header, footer and table; label sets become series of `directory`.
    pub fn open(disk: &dyn Disk, dir: &str, file: &FileRef) -> Result<Self, StorageError> {
        let path = path_of(dir, file.number);
        let reader = disk.open_read(&path).map_err(|e| {
            if e.is_not_found() {
                StorageError::Damaged(damage(&path, 0..file.bytes, "the file is missing"))
            } else {
                e.into()
            }
        })?;
        if reader.len() != file.bytes {
            let why = format!("the file has {} bytes, the manifest says {}", reader.len(), file.bytes);
            return Err(damage(&path, 0..file.bytes, why).into());
        }
        let head = read_head(reader.as_ref(), &path)?;
        let (table, rows) = read_table(reader.as_ref(), &path, file)?;
        let mut segment = Self {
            head,
            file: file.clone(),
            path,
            reader,
            series: vec![],
            pages: vec![],
            groups: vec![],
            by_id: vec![],
            rows,
        };
        let parsed = segment.parse_table(&table);
        parsed.map_err(|why| damage(&segment.path, 0..file.bytes, format!("the table: {why}")))?;
        Ok(segment)
    }

    fn parse_table(&mut self, table: &[u8]) -> Result<(), Bad> {
        let c = &mut Cursor(table);
        let mut offset = head_len(&self.head) as u64;
        for _ in 0..c.count()? {
            let (stored, raw): (u32, u32) = (c.number()?, c.number()?);
            if raw as usize > RAW_BYTES_MAX {
                return Err("a group is too large");
            }
            self.groups.push(Group { offset, stored, raw });
            offset += u64::from(stored);
        }
        let mut page_counts = vec![];
        for _ in 0..c.count()? {
            let (id, pages): (u32, u32) = (c.number()?, c.number()?);
            page_counts.push((id, pages));
        }
        let mut page = Page {
            group: 0,
            start: 0,
            len: 0,
            rows: 0,
            times: (0, 0),
        };
        for (id, count) in page_counts {
            let first = self.pages.len() as u32;
            for _ in 0..count {
                page = next_page(c, page, self.head.times.0)?;
                let group = self.groups.get(page.group as usize).ok_or("a page lies in no group")?;
                if u64::from(page.start) + u64::from(page.len) > u64::from(group.raw) {
                    return Err("a page ends behind its group");
                }
                self.pages.push(page);
            }
            let pages = first..self.pages.len() as u32;
            self.by_id.push((id, self.series.len() as u32));
            self.series.push(SegmentSeries { id, pages });
        }
        self.by_id.sort_unstable();
        c.end()
    }

    pub fn rows(&self) -> u64 {
        self.rows
    }

    pub fn ids(&self) -> impl ExactSizeIterator<Item = u32> {
        self.series.iter().map(|s| s.id)
    }

    pub fn times(&self) -> (i64, i64) {
        self.head.times
    }

    /// Pages of a series that may hold rows in `from..=to`.
    pub fn pages_of(&self, id: u32, from: i64, to: i64) -> Range<u32> {
        let Ok(i) = self.by_id.binary_search_by_key(&id, |&(id, _)| id) else {
            return 0..0;
        };
        let all = self.series[self.by_id[i].1 as usize].pages.clone();
        let pages = &self.pages[all.start as usize..all.end as usize];
        let start = pages.partition_point(|p| p.times.1 < from) as u32;
        let end = pages.partition_point(|p| p.times.0 <= to) as u32;
        all.start + start..(all.start + end).max(all.start + start)
    }

    pub fn page_times(&self, page: u32) -> (i64, i64) {
        self.pages[page as usize].times
    }

    pub fn page_rows(&self, page: u32) -> u32 {
        self.pages[page as usize].rows
    }

    /// What is wrong with the file as a whole.
    pub fn damage(&self, why: &str) -> ReadError {
        damage(&self.path, 0..self.file.bytes, why).into()
    }

    fn read_group(&self, number: u32) -> Result<Vec<u8>, ReadError> {
        let g = self.groups[number as usize];
        let range = g.offset..g.offset + u64::from(g.stored);
        let stored = read_range(self.reader.as_ref(), &self.path, range.clone())?;
        unpack(&stored, g.raw as usize).map_err(|why| damage(&self.path, range, why).into())
    }

    /// A decoded page's error, with the place of its group.
    pub fn bad_page(&self, page: u32, why: Bad) -> ReadError {
        let g = self.groups[self.pages[page as usize].group as usize];
        damage(&self.path, g.offset..g.offset + u64::from(g.stored), why).into()
    }

    /// Reads the whole file and compares its BLAKE3.
    pub fn scrub(&self) -> Result<(), ReadError> {
        scrub(self.reader.as_ref(), &self.path, &self.file)
    }
}

/// As `scrub`, for a file that is not open.
pub fn scrub_path(disk: &dyn Disk, path: &str, file: &FileRef) -> Result<(), ReadError> {
    let reader = disk.open_read(path).map_err(|e| {
        if e.is_not_found() {
            damage(path, 0..file.bytes, "the file is missing").into()
        } else {
            ReadError::Disk(e)
        }
    })?;
    scrub(reader.as_ref(), path, file)
}

/// Compares a file's BLAKE3 with what the manifest says.
fn scrub(reader: &dyn ReadAt, path: &str, file: &FileRef) -> Result<(), ReadError> {
    let whole = 0..file.bytes;
    let ends_at = file.bytes.checked_sub((32 + END_MAGIC.len()) as u64);
    let (Some(ends_at), true) = (ends_at, reader.len() == file.bytes) else {
        return Err(damage(path, whole, "the file has another length than the manifest says").into());
    };
    let mut hasher = blake3::Hasher::new();
    let mut at = 0;
    while at < ends_at {
        let end = ends_at.min(at + WRITE_BYTES as u64);
        hasher.update(&read_range(reader, path, at..end)?);
        at = end;
    }
    let end = read_range(reader, path, ends_at..file.bytes)?;
    let fits = *hasher.finalize().as_bytes() == file.blake3 && end[..32] == file.blake3 && &end[32..] == END_MAGIC;
    if fits {
        Ok(())
    } else {
        Err(damage(path, whole, "the BLAKE3 of the file does not fit").into())
    }
}

fn head_len(head: &Head) -> usize {
    let mut out = vec![];
    put_head(&mut out, head);
    out.len()
}

fn read_head(reader: &dyn ReadAt, path: &str) -> Result<Head, StorageError> {
    let end = reader.len().min(HEADER_BYTES_MAX as u64);
    let bytes = read_range(reader, path, 0..end)?;
    let bad = |why: Bad| damage(path, 0..end, format!("the header: {why}"));
    let c = &mut Cursor(&bytes);
    if c.take(8).map_err(bad)? != MAGIC {
        return Err(bad("not a segment").into());
    }
    let version = u16::from_le_bytes([c.byte().map_err(bad)?, c.byte().map_err(bad)?]);
    // The header's layout is the same in all versions, so that damage is not taken for a newer release.
    let head = get_head(c, &bytes).map_err(bad)?;
    if version > VERSION {
        return Err(StorageError::FromTheFuture {
            file: path.to_owned(),
            found: version,
            known: VERSION,
        });
    }
    Ok(head)
}

fn get_head(c: &mut Cursor<'_>, bytes: &[u8]) -> Result<Head, Bad> {
    let (kind, policy) = (c.byte()?, c.byte()?);
    let mut fixed = [0u64; 5];
    for v in &mut fixed {
        *v = u64::from_le_bytes(c.take(8)?.try_into().map_err(|_| "ends too early")?);
    }
    let len = c.byte()?;
    let tenant = c.take(len as usize)?;
    c.take(CRC_BYTES)?;
    checked(&bytes[..bytes.len() - c.0.len()])?;
    let tenant = std::str::from_utf8(tenant).ok().and_then(|t| TenantId::new(t).ok());
    Ok(Head {
        tenant: tenant.ok_or("no tenant's name")?,
        streams: kind == 1,
        resolution: match kind.checked_sub(KIND_WINDOWS) {
            None => None,
            Some(r) => Some(*Resolution::ALL.get(r as usize).ok_or("an unknown kind of rows")?),
        },
        policy: *Policy::ALL.get(policy as usize).ok_or("an unknown policy")?,
        group: GroupId(fixed[0]),
        commits: (fixed[1], fixed[2]),
        times: (fixed[3] as i64, fixed[4] as i64),
    })
}

/// The table and the number of rows, after the footer was verified.
fn read_table(reader: &dyn ReadAt, path: &str, file: &FileRef) -> Result<(Vec<u8>, u64), StorageError> {
    let Some(start) = file.bytes.checked_sub(FOOTER_BYTES as u64) else {
        return Err(damage(path, 0..file.bytes, "the file is cut short").into());
    };
    let footer = read_range(reader, path, start..file.bytes)?;
    let bad = |why: Bad| damage(path, start..file.bytes, format!("the footer: {why}"));
    let (sums, end) = footer.split_at(32 + CRC_BYTES);
    if &end[32..] != END_MAGIC {
        return Err(bad("the end is missing").into());
    }
    if end[..32] != file.blake3 {
        return Err(bad("another file than the manifest names").into());
    }
    let sums = checked(sums).map_err(bad)?;
    let number = |i: usize| u64::from_le_bytes(std::array::from_fn(|b| sums[8 * i + b]));
    let (offset, stored, raw, rows) = (number(0), number(1), number(2), number(3));
    if offset.checked_add(stored) != Some(start) || raw > RAW_BYTES_MAX as u64 {
        return Err(bad("the table lies outside of the file").into());
    }
    let bytes = read_range(reader, path, offset..start)?;
    let table = unpack(&bytes, raw as usize).map_err(|why| damage(path, offset..start, format!("the table: {why}")))?;
    Ok((table, rows))
}

fn next_page(c: &mut Cursor<'_>, before: Page, base: i64) -> Result<Page, Bad> {
    let step: u32 = c.number()?;
    let group = before.group.checked_add(step).ok_or("a number is too large")?;
    let start = if step == 0 {
        before.start.checked_add(before.len)
    } else {
        Some(0)
    };
    let (len, rows) = (c.number()?, c.number()?);
    let first = base.wrapping_add(c.signed()?);
    let last = first.wrapping_add(c.signed()?);
    Ok(Page {
        group,
        start: start.ok_or("a number is too large")?,
        len,
        rows,
        times: (first, last),
    })
}

/// Reads pages of one segment, keeping the last group: neighbours are asked for one after the other.
pub struct Pages<'a> {
    segment: &'a Segment,
    last: Option<(u32, Vec<u8>)>,
}

impl<'a> Pages<'a> {
    pub fn new(segment: &'a Segment) -> Self {
        Self { segment, last: None }
    }

    pub fn bytes(&mut self, page: u32) -> Result<&[u8], ReadError> {
        let p = self.segment.pages[page as usize];
        if self.last.as_ref().is_none_or(|(g, _)| *g != p.group) {
            self.last = Some((p.group, self.segment.read_group(p.group)?));
        }
        let raw = self.last.as_ref().map_or(&[][..], |(_, raw)| raw);
        Ok(&raw[p.start as usize..(p.start + p.len) as usize])
    }

    pub fn samples(&mut self, page: u32) -> Result<Vec<Sample>, ReadError> {
        let segment = self.segment;
        let decoded = crate::codec::get_samples(self.bytes(page)?);
        decoded.map_err(|why| segment.bad_page(page, why))
    }

    pub fn lines(&mut self, page: u32) -> Result<Vec<RawLine<'_>>, ReadError> {
        let segment = self.segment;
        let decoded = crate::codec::get_lines(self.bytes(page)?);
        decoded.map_err(|why| segment.bad_page(page, why))
    }
}

/// The event times of a head as the glossary has them.
impl Head {
    pub fn span(&self) -> (TimestampNs, TimestampNs) {
        (TimestampNs(self.times.0), TimestampNs(self.times.1))
    }
}

//! Segments of samples: pages in groups, their times in a dictionary, found by series id. Layout: `FORMAT.md` §5.
//!
//! Invariants
//! - A series is written once, its pages ascend by time, its times strictly ascend.
//! - The tables are in memory (`memory_bytes`), about 4 bytes a page and 12 a series; pages are read group by group.
//! - Series lie in the order in which they were given: by metric name and labels, so that like lies next to like.

use crate::container::{Block, Container, FileKind, FileRef, FileWriter, Head, Packing, Unpacker};
use crate::cursor::{Bad, Cursor, put_signed, put_varint};
use crate::error::{Damage, ReadError, StorageError};
use crate::metric::page::{self, Encoder, Page, Scratch};
use crate::metric::times::{Dictionary, Entry};
use crate::points::Points;
use crate::retention::{Spans, is_within};
use bytes::Bytes;
use hindcast_env::{Disk, DiskError};
use std::collections::BTreeMap;
use std::ops::Range;

pub const GROUP_PAGES_MAX: usize = 64;
/// Of a group with a page of more than `LONG_ROWS`: one series is then read without unpacking 63 others.
pub const GROUP_LONG_PAGES_MAX: usize = 16;
const LONG_ROWS: usize = 2048;
/// Rows of a page before compaction, which reads and writes it again.
const FLUSH_ROWS_MAX: usize = 2048;
/// A block of the dictionary is closed once it holds this much.
const DICTIONARY_BYTES_FULL: usize = 256 * 1024;
/// Pco must save this part of a group's bytes, or the group is kept without it.
const PCO_SAVES: usize = 20;
const ZSTD_LEVEL: i32 = 3;
const TABLE_PACKING: Packing = Packing::Zstd(ZSTD_LEVEL);
/// What one reader keeps of unpacked dictionary blocks and of decoded times, each.
const TIMES_BYTES_MAX: usize = 16 << 20;

/// How much work goes into small files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Packed bits only: written at every flush.
    Flush,
    /// zstd over groups, pco where it pays, long pages.
    Compacted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Group {
    offset: u64,
    stored: u32,
    first_page: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SeriesAt {
    id: u32,
    first_page: u32,
}

/// Times known to a writer, to be used for any number of series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimesRef {
    places: Vec<u32>,
    rows: usize,
}

// ---- writing ----

pub struct Writer {
    file: FileWriter,
    tier: Tier,
    encoder: Encoder,
    dictionary: Dictionary,
    dictionary_blocks: Vec<Block>,
    tables: Tables,
    group: OpenGroup,
    compressor: Option<zstd::bulk::Compressor<'static>>,
    rows: u64,
}

/// What is kept of an open file, and written as its table.
#[derive(Default)]
struct Tables {
    groups: Vec<Group>,
    series: Vec<SeriesAt>,
    /// The entry of each page's times.
    refs: Vec<u32>,
}

/// Pages that wait for their group to be full.
#[derive(Default)]
struct OpenGroup {
    pages: usize,
    long: bool,
    heads: Vec<u8>,
    bodies: Vec<u8>,
    /// Pages that pco might make smaller, and their values one behind the other.
    candidates: Vec<Candidate>,
    values: Vec<f64>,
}

/// Where a page lies in its open group.
struct Candidate {
    head: Range<usize>,
    body: Range<usize>,
    values: Range<usize>,
}

/// The group once more, with pco where a page likes that better.
#[derive(Default)]
struct BestForm {
    heads: Vec<u8>,
    bodies: Vec<u8>,
    pcos: Vec<u8>,
}

impl Writer {
    pub fn create(disk: &dyn Disk, dir: &str, number: u64, head: Head, tier: Tier) -> Result<Self, DiskError> {
        assert_eq!(head.kind, FileKind::Metric, "samples go to files of samples");
        Ok(Self {
            file: FileWriter::create(disk, dir, number, head)?,
            tier,
            encoder: Encoder::default(),
            dictionary: Dictionary::default(),
            dictionary_blocks: vec![],
            tables: Tables::default(),
            group: OpenGroup::default(),
            compressor: None,
            rows: 0,
        })
    }

    /// The next series, with all its samples. Times strictly ascend and lie in the header's span.
    pub fn series(&mut self, id: u32, times: &[i64], values: &[f64]) -> Result<(), DiskError> {
        let times = self.times(times)?;
        self.series_at(id, &times, values)
    }

    /// Makes times known. Who writes many series of one vector asks once.
    pub fn times(&mut self, times: &[i64]) -> Result<TimesRef, DiskError> {
        let span = self.file.head().times;
        if let [first, .., last] | [first @ last] = times {
            assert!(
                span.0 <= *first && *last <= span.1,
                "rows lie in the span that the header names"
            );
        }
        let mut places = vec![];
        for part in times.chunks(self.page_rows_max()) {
            let best = self.tier == Tier::Compacted;
            places.push(self.dictionary.place(part, best, &mut self.encoder));
            if self.dictionary.block.len() >= DICTIONARY_BYTES_FULL {
                self.end_dictionary_block()?;
            }
        }
        Ok(TimesRef {
            places,
            rows: times.len(),
        })
    }

    /// As `series`, at times that are known.
    pub fn series_at(&mut self, id: u32, times: &TimesRef, values: &[f64]) -> Result<(), DiskError> {
        assert_eq!(times.rows, values.len(), "each value has a time");
        self.tables.series.push(SeriesAt {
            id,
            first_page: self.tables.refs.len() as u32,
        });
        let rows = self.page_rows_max();
        for (part, place) in values.chunks(rows).zip(&times.places) {
            self.page(part, *place)?;
        }
        self.rows += values.len() as u64;
        Ok(())
    }

    /// How long the file is so far, without what waits for its group to be full.
    pub fn bytes(&self) -> u64 {
        self.file.offset()
    }

    fn page_rows_max(&self) -> usize {
        match self.tier {
            Tier::Flush => FLUSH_ROWS_MAX,
            Tier::Compacted => page::PAGE_ROWS_MAX,
        }
    }

    fn page(&mut self, values: &[f64], place: u32) -> Result<(), DiskError> {
        let long = values.len() > LONG_ROWS;
        let full = |g: &OpenGroup, long: bool| {
            g.pages
                >= if g.long || long {
                    GROUP_LONG_PAGES_MAX
                } else {
                    GROUP_PAGES_MAX
                }
        };
        if full(&self.group, long) {
            self.end_group()?;
        }
        self.group.long |= long;
        self.tables.refs.push(place);
        let group = &mut self.group;
        let (head, body) = (group.heads.len(), group.bodies.len());
        self.encoder.parts(values, false, &mut group.heads, &mut group.bodies);
        group.pages += 1;
        let (head, body) = (head..group.heads.len(), body..group.bodies.len());
        // Only what is not small already is worth trying.
        if self.tier == Tier::Compacted && 2 * body.len() > values.len() {
            let start = group.values.len();
            group.values.extend_from_slice(values);
            group.candidates.push(Candidate {
                head,
                body,
                values: start..group.values.len(),
            });
        }
        if full(&self.group, false) {
            self.end_group()?;
        }
        Ok(())
    }

    fn end_group(&mut self) -> Result<(), DiskError> {
        if self.group.pages == 0 {
            return Ok(());
        }
        let mut group = std::mem::take(&mut self.group);
        let pages = group.pages as u32;
        let packed = self.packed(&group.heads, &group.bodies);
        // Where zstd found one page in the others, pco of each alone cannot win: do not try.
        let try_pco = !group.candidates.is_empty() && 2 * packed.len() > group.values.len();
        let best = if try_pco {
            group.with_pco(&mut self.encoder)
        } else {
            None
        };
        let best = best.map(|b| (self.packed(&b.heads, &b.bodies), b));
        let block = match &best {
            Some((other, b)) if (other.len() + b.pcos.len()) * PCO_SAVES < packed.len() * (PCO_SAVES - 1) => {
                self.file.block_of(&[other, &b.pcos], Packing::Plain)?
            }
            _ => self.file.block(&packed, Packing::Plain)?,
        };
        self.tables.groups.push(Group {
            offset: block.offset,
            stored: block.stored,
            first_page: self.tables.refs.len() as u32 - pages,
        });
        // Its memory is used again.
        group.pages = 0;
        group.long = false;
        group.heads.clear();
        group.bodies.clear();
        group.candidates.clear();
        group.values.clear();
        self.group = group;
        Ok(())
    }

    /// Heads and bodies as they lie in a group: raw length, packed length (0: not packed), bytes.
    fn packed(&mut self, heads: &[u8], bodies: &[u8]) -> Vec<u8> {
        let raw = [heads, bodies].concat();
        let mut out = Vec::with_capacity(raw.len() / 2);
        put_varint(&mut out, raw.len() as u64);
        if self.tier == Tier::Compacted {
            if self.compressor.is_none() {
                self.compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL).ok();
            }
            if let Some(Ok(frame)) = self.compressor.as_mut().map(|c| c.compress(&raw))
                && frame.len() < raw.len()
            {
                put_varint(&mut out, frame.len() as u64);
                out.extend_from_slice(&frame);
                return out;
            }
        }
        put_varint(&mut out, 0);
        out.extend_from_slice(&raw);
        out
    }

    fn end_dictionary_block(&mut self) -> Result<(), DiskError> {
        let packing = match self.tier {
            Tier::Flush => Packing::Plain,
            Tier::Compacted => Packing::Zstd(ZSTD_LEVEL),
        };
        let block = self.file.block(&self.dictionary.block, packing)?;
        self.dictionary_blocks.push(block);
        self.dictionary.next_block();
        Ok(())
    }

    /// Ends and syncs the file, and opens it. Its name is durable once the caller synced the folder.
    pub fn finish(mut self, disk: &dyn Disk) -> Result<Segment, DiskError> {
        self.end_group()?;
        if !self.dictionary.block.is_empty() {
            self.end_dictionary_block()?;
        }
        let table = put_table(&self.tables, &self.dictionary_blocks, &self.dictionary.entries);
        let container = self.file.finish(disk, &table, TABLE_PACKING, self.rows)?;
        let Tables { groups, series, refs } = self.tables;
        Ok(Segment {
            by_id: by_id(&series).unwrap_or_else(|| unreachable!("a series is written once")),
            container,
            groups,
            series,
            refs,
            dictionary: self.dictionary_blocks,
            entries: self.dictionary.entries,
        })
    }
}

impl OpenGroup {
    /// `None` if no page gets smaller alone.
    fn with_pco(&self, encoder: &mut Encoder) -> Option<BestForm> {
        let mut best = BestForm::default();
        let (mut head_at, mut body_at) = (0, 0);
        let (mut head, mut body) = (vec![], vec![]);
        for c in &self.candidates {
            head.clear();
            body.clear();
            if encoder.parts(&self.values[c.values.clone()], true, &mut head, &mut body) == page::Body::Packed {
                continue;
            }
            best.heads.extend_from_slice(&self.heads[head_at..c.head.start]);
            best.heads.extend_from_slice(&head);
            best.bodies.extend_from_slice(&self.bodies[body_at..c.body.start]);
            best.pcos.extend_from_slice(&body);
            (head_at, body_at) = (c.head.end, c.body.end);
        }
        best.heads.extend_from_slice(&self.heads[head_at..]);
        best.bodies.extend_from_slice(&self.bodies[body_at..]);
        (!best.pcos.is_empty()).then_some(best)
    }
}

/// Places, by id. `None`: a series comes twice.
fn by_id(series: &[SeriesAt]) -> Option<Vec<u32>> {
    let mut by_id: Vec<u32> = (0..series.len() as u32).collect();
    by_id.sort_unstable_by_key(|&i| series[i as usize].id);
    by_id
        .is_sorted_by(|&a, &b| series[a as usize].id < series[b as usize].id)
        .then_some(by_id)
}

/// Column by column, so that zstd finds like next to like.
fn put_table(tables: &Tables, dictionary: &[Block], entries: &[Entry]) -> Vec<u8> {
    let mut out = vec![];
    let Tables { groups, series, refs } = tables;
    for count in [dictionary.len(), entries.len(), groups.len(), series.len(), refs.len()] {
        put_varint(&mut out, count as u64);
    }
    for b in dictionary {
        put_varint(&mut out, b.offset);
        put_varint(&mut out, u64::from(b.stored));
        put_varint(&mut out, u64::from(b.raw));
    }
    let (mut block, mut first) = (0, 0i64);
    for e in entries {
        put_varint(&mut out, u64::from(e.block - block));
        put_varint(&mut out, u64::from(e.len));
        put_varint(&mut out, u64::from(e.rows));
        put_signed(&mut out, e.first.wrapping_sub(first));
        put_varint(&mut out, e.last.wrapping_sub(e.first) as u64);
        (block, first) = (e.block, e.first);
    }
    let mut end = 0;
    for (g, i) in groups.iter().zip(1..) {
        put_varint(&mut out, g.offset - end);
        put_varint(&mut out, u64::from(g.stored));
        let next = groups.get(i).map_or(refs.len() as u32, |g| g.first_page);
        put_varint(&mut out, u64::from(next - g.first_page));
        end = g.offset + u64::from(g.stored);
    }
    let mut id = 0i64;
    for s in series {
        put_signed(&mut out, i64::from(s.id) - id);
        id = i64::from(s.id);
    }
    for (s, i) in series.iter().zip(1..) {
        let next = series.get(i).map_or(refs.len() as u32, |s| s.first_page);
        put_varint(&mut out, u64::from(next - s.first_page));
    }
    let mut place = 0i64;
    for r in refs {
        put_signed(&mut out, i64::from(*r) - place);
        place = i64::from(*r);
    }
    out
}

// ---- reading ----

/// An open segment: its tables, and a handle that keeps working when the file's name is gone.
pub struct Segment {
    container: Container,
    groups: Vec<Group>,
    series: Vec<SeriesAt>,
    /// Places in `series`, by id.
    by_id: Vec<u32>,
    refs: Vec<u32>,
    dictionary: Vec<Block>,
    entries: Vec<Entry>,
}

impl Segment {
    pub fn open(disk: &dyn Disk, dir: &str, file: &FileRef) -> Result<Self, StorageError> {
        let (container, table) = Container::open(disk, dir, FileKind::Metric, file)?;
        Self::new(container, &table)
    }

    pub fn new(container: Container, table: &[u8]) -> Result<Self, StorageError> {
        let bad = |why: Bad| container.damage(0..container.file.bytes, format!("the table: {why}"));
        let (tables, dictionary, entries) = get_table(table, container.data()).map_err(bad)?;
        let Some(by_id) = by_id(&tables.series) else {
            return Err(bad("a series comes twice").into());
        };
        Ok(Self {
            container,
            groups: tables.groups,
            series: tables.series,
            by_id,
            refs: tables.refs,
            dictionary,
            entries,
        })
    }

    pub fn head(&self) -> &Head {
        &self.container.head
    }

    /// What is wrong with the file as a whole.
    pub fn damage(&self, why: impl Into<String>) -> Damage {
        self.container.damage(0..self.container.file.bytes, why)
    }

    pub fn file(&self) -> &FileRef {
        &self.container.file
    }

    pub fn container(&self) -> &Container {
        &self.container
    }

    pub fn rows(&self) -> u64 {
        self.container.rows
    }

    pub fn immutable_file(&self) -> crate::verify::ImmutableFile {
        let groups = self.groups.iter().map(|g| g.offset..g.offset + u64::from(g.stored));
        let blocks = groups.chain(self.dictionary.iter().map(Block::range)).collect();
        self.container.immutable_file(blocks)
    }

    pub fn scrub(&self) -> Result<(), ReadError> {
        self.container.scrub()
    }

    /// What the tables take in memory.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + size_of_val(&self.groups[..])
            + size_of_val(&self.series[..])
            + size_of_val(&self.by_id[..])
            + size_of_val(&self.refs[..])
            + size_of_val(&self.dictionary[..])
            + size_of_val(&self.entries[..])
    }

    /// All series in file order, each with its pages.
    pub fn series(&self) -> impl ExactSizeIterator<Item = (u32, Range<u32>)> + '_ {
        (0..self.series.len()).map(|i| (self.series[i].id, self.pages_at(i)))
    }

    fn pages_at(&self, i: usize) -> Range<u32> {
        let end = self.series.get(i + 1).map_or(self.refs.len() as u32, |s| s.first_page);
        self.series[i].first_page..end
    }

    /// Pages of a series; none if it is not here.
    pub fn pages_of(&self, id: u32) -> Range<u32> {
        let near = self.near(id);
        match self.by_id[near.clone()].binary_search_by_key(&id, |&i| self.series[i as usize].id) {
            Ok(at) => self.pages_at(self.by_id[near.start + at] as usize),
            Err(_) => 0..0,
        }
    }

    /// Where in `by_id` a series can be. Ids are numbers that are given one after the other: between the first and the last of a file
    /// few are missing, and without any it is one place.
    fn near(&self, id: u32) -> Range<usize> {
        let id_at = |place: Option<&u32>| place.map(|&i| self.series[i as usize].id);
        let (Some(first), Some(last)) = (id_at(self.by_id.first()), id_at(self.by_id.last())) else {
            return 0..0;
        };
        if !(first..=last).contains(&id) {
            return 0..0;
        }
        let count = self.by_id.len();
        let end = (id - first) as usize + 1;
        let start = count.saturating_sub((last - id) as usize + 1);
        start..end.min(count)
    }

    /// Pages of a series that may hold rows in `from..=to`.
    pub fn pages_in(&self, id: u32, from: i64, to: i64) -> Range<u32> {
        let all = self.pages_of(id);
        let refs = &self.refs[all.start as usize..all.end as usize];
        let start = refs.partition_point(|&r| self.entries[r as usize].last < from) as u32;
        let end = refs.partition_point(|&r| self.entries[r as usize].first <= to) as u32;
        all.start + start..all.start + end.max(start)
    }

    fn entry(&self, page: u32) -> &Entry {
        &self.entries[self.refs[page as usize] as usize]
    }

    /// First and last time of a page.
    pub fn page_times(&self, page: u32) -> (i64, i64) {
        let e = self.entry(page);
        (e.first, e.last)
    }

    pub fn page_rows(&self, page: u32) -> usize {
        self.entry(page).rows as usize
    }

    pub fn reader(&self) -> PageReader<'_> {
        PageReader {
            segment: self,
            group: None,
            unpacker: Unpacker::new(),
            scratch: Scratch::default(),
            blocks: BTreeMap::new(),
            block_bytes: 0,
            times: BTreeMap::new(),
            time_bytes: 0,
            values: vec![],
        }
    }

    fn group_of(&self, page: u32) -> usize {
        self.groups.partition_point(|g| g.first_page <= page) - 1
    }

    fn group_pages(&self, group: usize) -> Range<u32> {
        let end = self
            .groups
            .get(group + 1)
            .map_or(self.refs.len() as u32, |g| g.first_page);
        self.groups[group].first_page..end
    }
}

type Parsed = (Tables, Vec<Block>, Vec<Entry>);

fn get_table(table: &[u8], data: Range<u64>) -> Result<Parsed, Bad> {
    let c = &mut Cursor(table);
    let mut counts = [0usize; 5];
    for count in &mut counts {
        *count = c.count()?;
    }
    let [blocks, entries, groups, series, refs] = counts;
    // Each of them takes at least a byte: no count allocates more than a few times the table.
    if counts.iter().sum::<usize>() > c.0.len() {
        return Err("a count is larger than what follows");
    }
    let dictionary = (0..blocks)
        .map(|_| get_block(c, &data))
        .collect::<Result<Vec<_>, Bad>>()?;
    let entries = get_entries(c, entries, &dictionary)?;
    let (groups, pages) = get_groups(c, groups, &data)?;
    let mut tables = Tables {
        groups,
        series: Vec::with_capacity(series),
        refs: Vec::with_capacity(refs),
    };
    let mut id = 0i64;
    for _ in 0..series {
        id = id.checked_add(c.signed()?).ok_or("a number is too large")?;
        let id = u32::try_from(id).map_err(|_| "a number is too large")?;
        tables.series.push(SeriesAt { id, first_page: 0 });
    }
    let mut page = 0u32;
    for s in &mut tables.series {
        s.first_page = page;
        page = page.checked_add(c.number()?).ok_or("a number is too large")?;
    }
    if page as usize != refs || pages as usize != refs {
        return Err("groups and series have other pages than the table");
    }
    let mut place = 0i64;
    for _ in 0..refs {
        place = place.wrapping_add(c.signed()?);
        if usize::try_from(place).map_or(true, |p| p >= entries.len()) {
            return Err("a page has no times");
        }
        tables.refs.push(place as u32);
    }
    c.end()?;
    let ascends = |s: &SeriesAt, end: u32| {
        let refs = &tables.refs[s.first_page as usize..end as usize];
        refs.windows(2)
            .all(|r| entries[r[0] as usize].last < entries[r[1] as usize].first)
    };
    let ends = tables.series.iter().skip(1).map(|s| s.first_page).chain([refs as u32]);
    if !tables.series.iter().zip(ends).all(|(s, end)| ascends(s, end)) {
        return Err("the pages of a series do not ascend");
    }
    Ok((tables, dictionary, entries))
}

fn get_block(c: &mut Cursor<'_>, data: &Range<u64>) -> Result<Block, Bad> {
    let block = Block {
        offset: c.varint()?,
        stored: c.number()?,
        raw: c.number()?,
    };
    let end = block
        .offset
        .checked_add(u64::from(block.stored))
        .ok_or("a number is too large")?;
    if block.offset < data.start || end > data.end {
        return Err("a block lies outside of the file");
    }
    Ok(block)
}

fn get_entries(c: &mut Cursor<'_>, count: usize, dictionary: &[Block]) -> Result<Vec<Entry>, Bad> {
    let mut entries: Vec<Entry> = Vec::with_capacity(count);
    let (mut block, mut start, mut first) = (0u32, 0u32, 0i64);
    for _ in 0..count {
        let step: u32 = c.number()?;
        let (len, rows): (u32, u32) = (c.number()?, c.number()?);
        if step > 0 {
            block = block.checked_add(step).ok_or("a number is too large")?;
            start = 0;
        }
        first = first.wrapping_add(c.signed()?);
        let last = first.wrapping_add(c.varint()? as i64);
        let end = start.checked_add(len).ok_or("a number is too large")?;
        let inside = len == 0 || dictionary.get(block as usize).is_some_and(|b| end <= b.raw);
        let plausible =
            (1..=page::PAGE_ROWS_MAX as u32).contains(&rows) && first <= last && (rows > 1 || first == last);
        if !inside || !plausible {
            return Err("impossible times");
        }
        entries.push(Entry {
            first,
            last,
            block,
            start,
            len,
            rows,
        });
        start = end;
    }
    Ok(entries)
}

fn get_groups(c: &mut Cursor<'_>, count: usize, data: &Range<u64>) -> Result<(Vec<Group>, u32), Bad> {
    let mut groups = Vec::with_capacity(count);
    let (mut end, mut first_page) = (0u64, 0u32);
    for _ in 0..count {
        let offset = end.checked_add(c.varint()?).ok_or("a number is too large")?;
        let (stored, pages): (u32, u32) = (c.number()?, c.number()?);
        end = offset.checked_add(u64::from(stored)).ok_or("a number is too large")?;
        if offset < data.start || end > data.end || pages == 0 || pages as usize > GROUP_PAGES_MAX {
            return Err("an impossible group");
        }
        groups.push(Group {
            offset,
            stored,
            first_page,
        });
        first_page = first_page.checked_add(pages).ok_or("a number is too large")?;
    }
    Ok((groups, first_page))
}

/// Reads pages of one segment, keeping the last group and the times it has decoded.
pub struct PageReader<'a> {
    segment: &'a Segment,
    group: Option<LoadedGroup>,
    unpacker: Unpacker,
    pub(super) scratch: Scratch,
    /// Unpacked blocks of the dictionary.
    blocks: BTreeMap<u32, Bytes>,
    block_bytes: usize,
    /// Decoded times, by entry.
    times: BTreeMap<u32, Vec<i64>>,
    time_bytes: usize,
    values: Vec<f64>,
}

struct LoadedGroup {
    number: usize,
    stored: Bytes,
    /// Heads and bodies, where they had been packed; else they are read out of `stored`.
    unpacked: Vec<u8>,
    pages: Vec<PlaceInGroup>,
}

#[derive(Clone, Copy)]
struct PlaceInGroup {
    head: u32,
    body: u32,
    body_len: u32,
    /// The body lies in `stored`, whatever became of the others.
    pco: bool,
}

impl LoadedGroup {
    fn load(segment: &Segment, number: usize, unpacker: &mut Unpacker, reuse: Vec<u8>) -> Result<Self, ReadError> {
        let g = segment.groups[number];
        let range = g.offset..g.offset + u64::from(g.stored);
        let bad = |why: Bad| ReadError::from(segment.container.damage(range.clone(), why));
        // A group's block is stored plain: tag and CRC aside, all is content.
        let raw = g.stored.checked_sub(5).ok_or("ends too early").map_err(bad)?;
        let stored = segment.container.read_block(Block {
            offset: g.offset,
            stored: g.stored,
            raw,
        })?;
        let mut loaded = Self {
            number,
            stored,
            unpacked: reuse,
            pages: vec![],
        };
        loaded.parse(segment, unpacker).map_err(bad)?;
        Ok(loaded)
    }

    fn parse(&mut self, segment: &Segment, unpacker: &mut Unpacker) -> Result<(), Bad> {
        let stored = self.stored.clone();
        let mut c = Cursor(&stored);
        let (raw_len, frame_len): (usize, usize) = (c.number()?, c.number()?);
        let region = if frame_len > 0 {
            let frame = c.take(frame_len)?;
            unpacker.unpack(frame, raw_len, &mut self.unpacked)?;
            &self.unpacked[..]
        } else {
            self.unpacked.clear();
            let region = c.take(raw_len)?;
            let start = stored.len() - c.0.len() - raw_len;
            self.stored = stored.slice(start..);
            region
        };
        let mut pco = if frame_len > 0 {
            stored.len() - c.0.len()
        } else {
            raw_len
        };
        let mut heads = Cursor(region);
        for page in segment.group_pages(self.number) {
            let head = region.len() - heads.0.len();
            let parsed = Page::head(&mut heads, segment.page_rows(page))?;
            self.pages.push(PlaceInGroup {
                head: head as u32,
                body: 0,
                body_len: u32::try_from(parsed.body_len).map_err(|_| "a number is too large")?,
                pco: parsed.kind == page::Body::Pco,
            });
        }
        let mut body = region.len() - heads.0.len();
        for p in &mut self.pages {
            let at = if p.pco { &mut pco } else { &mut body };
            p.body = *at as u32;
            *at += p.body_len as usize;
        }
        if body != region.len() || pco != self.stored.len() {
            return Err("a group's pages take another length than the group");
        }
        Ok(())
    }

    fn page(&self, slot: usize, rows: usize) -> Result<Page<'_>, Bad> {
        let region = if self.unpacked.is_empty() {
            &self.stored[..]
        } else {
            &self.unpacked[..]
        };
        let p = self.pages[slot];
        let head = Page::head(&mut Cursor(&region[p.head as usize..]), rows)?;
        let bodies = if p.pco { &self.stored[..] } else { region };
        head.with_body(&bodies[p.body as usize..][..p.body_len as usize])
    }
}

impl PageReader<'_> {
    pub fn segment(&self) -> &Segment {
        self.segment
    }

    fn load_group(&mut self, page: u32) -> Result<usize, ReadError> {
        let loaded = self.group.as_ref().map(|g| g.number);
        let number = match loaded {
            Some(n) if self.segment.group_pages(n).contains(&page) => n,
            _ => {
                let n = self.segment.group_of(page);
                let reuse = self.group.take().map(|g| g.unpacked).unwrap_or_default();
                self.group = Some(LoadedGroup::load(self.segment, n, &mut self.unpacker, reuse)?);
                n
            }
        };
        Ok((page - self.segment.groups[number].first_page) as usize)
    }

    fn bad_page(&self, page: u32, why: Bad) -> ReadError {
        let g = self.segment.groups[self.segment.group_of(page)];
        let range = g.offset..g.offset + u64::from(g.stored);
        self.segment.container.damage(range, why).into()
    }

    /// A page, taken apart but not decoded, and the memory to decode it with.
    pub fn page(&mut self, page: u32) -> Result<(Page<'_>, &mut Scratch), ReadError> {
        let slot = self.load_group(page)?;
        let rows = self.segment.page_rows(page);
        if let Err(why) = self.loaded().page(slot, rows) {
            return Err(self.bad_page(page, why));
        }
        let Self { group, scratch, .. } = self;
        let parsed = group.as_ref().map(|g| g.page(slot, rows));
        match parsed {
            Some(Ok(parsed)) => Ok((parsed, scratch)),
            _ => unreachable!("it was parsed a moment ago"),
        }
    }

    fn loaded(&self) -> &LoadedGroup {
        self.group
            .as_ref()
            .unwrap_or_else(|| unreachable!("a group was loaded"))
    }

    /// The times of a page.
    pub fn times(&mut self, page: u32) -> Result<&[i64], ReadError> {
        let place = self.segment.refs[page as usize];
        if !self.times.contains_key(&place) {
            let times = self.decode_times(place)?;
            self.time_bytes += 8 * times.len();
            if self.time_bytes > TIMES_BYTES_MAX {
                self.times.clear();
                self.time_bytes = 8 * times.len();
            }
            self.times.insert(place, times);
        }
        Ok(&self.times[&place])
    }

    fn decode_times(&mut self, place: u32) -> Result<Vec<i64>, ReadError> {
        let e = self.segment.entries[place as usize];
        let mut times = Vec::with_capacity(e.rows as usize);
        if e.len == 0 {
            let straight = e.decode(&[], &mut self.scratch, &mut times);
            let whole = 0..self.segment.container.file.bytes;
            straight.map_err(|why| self.segment.container.damage(whole, why))?;
            return Ok(times);
        }
        let block = self.segment.dictionary[e.block as usize];
        if !self.blocks.contains_key(&e.block) {
            let bytes = self.segment.container.read_block(block)?;
            self.block_bytes += bytes.len();
            if self.block_bytes > TIMES_BYTES_MAX {
                self.blocks.clear();
                self.block_bytes = bytes.len();
            }
            self.blocks.insert(e.block, bytes);
        }
        let bytes = &self.blocks[&e.block][e.start as usize..][..e.len as usize];
        let decoded = e.decode(bytes, &mut self.scratch, &mut times);
        decoded.map_err(|why| self.segment.container.damage(block.range(), why))?;
        Ok(times)
    }

    /// All samples of a page.
    pub fn samples(&mut self, page: u32) -> Result<(&[i64], &[f64]), ReadError> {
        self.times(page)?;
        let mut values = std::mem::take(&mut self.values);
        values.clear();
        let read = self.values_into(page, &mut values);
        self.values = values;
        read?;
        let place = self.segment.refs[page as usize];
        Ok((&self.times[&place], &self.values))
    }

    /// Appends a page's samples that lie in `spans`.
    pub fn append(&mut self, page: u32, spans: &Spans, out: &mut Points) -> Result<(), ReadError> {
        let (first, last) = self.segment.page_times(page);
        if !spans.iter().any(|&(a, b)| a <= last && first <= b) {
            return Ok(());
        }
        let start = out.len();
        out.times.extend_from_slice(self.times(page)?);
        if let Err(e) = self.values_into(page, &mut out.values) {
            out.times.truncate(start);
            return Err(e);
        }
        if !spans.iter().any(|&(a, b)| a <= first && last <= b) {
            out.retain_from(start, |at| is_within(spans, at));
        }
        Ok(())
    }

    /// Appends the values of a page.
    pub fn values_into(&mut self, page: u32, out: &mut Vec<f64>) -> Result<(), ReadError> {
        let (parsed, scratch) = self.page(page)?;
        let decoded = parsed.decode_into(out, scratch);
        decoded.map_err(|why| self.bad_page(page, why))
    }

    /// Rows of a page with times in `from..=to`. Decodes times only where the page reaches beyond.
    pub fn rows_in(&mut self, page: u32, from: i64, to: i64) -> Result<Range<usize>, ReadError> {
        let e = *self.segment.entry(page);
        if from <= e.first && e.last <= to {
            return Ok(0..e.rows as usize);
        }
        let times = self.times(page)?;
        let start = times.partition_point(|t| *t < from);
        Ok(start..times.partition_point(|t| *t <= to).max(start))
    }

    pub(super) fn told(&self, page: u32, why: Bad) -> ReadError {
        self.bad_page(page, why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Function, Running, reference};
    use crate::retention::Policy;
    use hindcast_env::SimDisk;
    use hindcast_model::{GroupId, STALE_NAN_BITS, TenantId};
    use proptest::prelude::*;

    type Rows = (u32, Vec<i64>, Vec<f64>);

    fn head() -> Head {
        Head {
            tenant: TenantId::default(),
            kind: FileKind::Metric,
            policy: Policy::Sms,
            group: GroupId(1),
            commits: (1, 2),
            times: (i64::MIN, i64::MAX),
            extra: vec![],
        }
    }

    fn write(disk: &SimDisk, tier: Tier, all: &[Rows]) -> Segment {
        disk.create_dir_all("d").unwrap();
        let mut w = Writer::create(disk, "d", 1, head(), tier).unwrap();
        for (id, times, values) in all {
            w.series(*id, times, values).unwrap();
        }
        w.finish(disk).unwrap()
    }

    fn read(segment: &Segment, reader: &mut PageReader<'_>, id: u32) -> Result<(Vec<i64>, Vec<u64>), ReadError> {
        let (mut times, mut values) = (vec![], vec![]);
        for page in segment.pages_of(id) {
            assert_eq!(segment.page_rows(page), reader.times(page)?.len());
            let (t, v) = reader.samples(page)?;
            assert_eq!(segment.page_times(page), (t[0], t[t.len() - 1]));
            times.extend_from_slice(t);
            values.extend(v.iter().map(|v| v.to_bits()));
        }
        Ok((times, values))
    }

    fn check(segment: &Segment, all: &[Rows]) {
        assert_eq!(segment.rows(), all.iter().map(|s| s.1.len() as u64).sum::<u64>());
        assert_eq!(
            segment.series().map(|s| s.0).collect::<Vec<_>>(),
            all.iter().map(|s| s.0).collect::<Vec<_>>()
        );
        let mut reader = segment.reader();
        for (id, times, values) in all {
            let bits = values.iter().map(|v| v.to_bits()).collect();
            assert_eq!(read(segment, &mut reader, *id).unwrap(), (times.clone(), bits));
        }
        assert!(segment.pages_of(u32::MAX).is_empty());
    }

    /// Series of every form: of one scrape or with times of their own, some long, with odd values.
    fn sample(rows: usize) -> Vec<Rows> {
        let shared: Vec<i64> = (0..rows as i64).map(|i| 15_000_000_000 * i).collect();
        let jittered: Vec<i64> = shared.iter().map(|t| t + t / 1_000_000 % 997 * 1_000_000).collect();
        let noise = |i: u64| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15)) >> 40;
        let value = |s: u64, i: u64| match s % 6 {
            0 => s as f64,
            1 => (100 * i + noise(i + s) % 16) as f64,
            2 => noise(i * s) as f64 / 100.0,
            3 => (noise(i + s) as f64).sqrt(),
            4 if i % 97 == 90 => f64::from_bits(STALE_NAN_BITS),
            4 => (i * i % 51) as f64 * 4096.0,
            _ => 0.5 * i as f64,
        };
        let mut all: Vec<Rows> = (0..150u32)
            .map(|s| {
                let times = if s % 7 == 3 { &jittered } else { &shared };
                let n = rows - s as usize % 3;
                let values = (0..n as u64).map(|i| value(u64::from(s), i)).collect();
                // Ids come in no order.
                (s * 7919 % 1009, times[..n].to_vec(), values)
            })
            .collect();
        let long: Vec<i64> = (0..9000).map(|i| 1_000_000 * i * i).collect();
        all.push((2000, long, (0..9000).map(|i| noise(i) as f64).collect()));
        all.push((1999, vec![-5], vec![f64::NAN]));
        all
    }

    #[test]
    fn what_was_written_is_read_again_before_and_after_opening() {
        let all = sample(300);
        for tier in [Tier::Flush, Tier::Compacted] {
            let disk = SimDisk::new();
            let made = write(&disk, tier, &all);
            check(&made, &all);
            let opened = Segment::open(&disk, "d", made.file()).unwrap();
            check(&opened, &all);
            opened.scrub().unwrap();
            assert_eq!(opened.memory_bytes(), made.memory_bytes());
            let tables = (
                &opened.groups,
                &opened.series,
                &opened.refs,
                &opened.entries,
                &opened.by_id,
            );
            assert_eq!(
                tables,
                (&made.groups, &made.series, &made.refs, &made.entries, &made.by_id)
            );
        }
    }

    #[test]
    fn compaction_makes_it_smaller_and_an_empty_file_is_one_too() {
        let all = sample(300);
        let bytes = |tier| write(&SimDisk::new(), tier, &all).file().bytes;
        assert!(bytes(Tier::Compacted) * 10 < bytes(Tier::Flush) * 9);
        check(&write(&SimDisk::new(), Tier::Flush, &[]), &[]);
    }

    #[test]
    fn pco_is_taken_for_noise_and_not_where_pages_repeat() {
        let times: Vec<i64> = (0..1000).collect();
        let noise = |i: u64| {
            let z = (i ^ 0x9e37_79b9).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (z ^ (z >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32
        };
        // Small more often than large: what packed bits cannot use.
        let skewed = |i: u64| (noise(2 * i) >> (20 + noise(2 * i + 1) % 12)) as f64;
        let gauge = |s: u64| -> Vec<f64> { (0..1000).map(|i| skewed(1000 * s + i)).collect() };
        let pcos = |differ: u64| {
            let all: Vec<Rows> = (0..64)
                .map(|s| (s, times.clone(), gauge(u64::from(s) % differ)))
                .collect();
            let segment = write(&SimDisk::new(), Tier::Compacted, &all);
            check(&segment, &all);
            let loaded = LoadedGroup::load(&segment, 0, &mut Unpacker::new(), vec![]).unwrap();
            loaded.pages.iter().filter(|p| p.pco).count()
        };
        assert_eq!(pcos(64), 64);
        assert_eq!(pcos(2), 0);
    }

    #[test]
    fn series_are_found_whichever_ids_are_missing() {
        for ids in [&[7][..], &[3, 4, 5], &[0, 1, 4, 9, 10, u32::MAX], &[5, 900, 901, 5_000]] {
            let all: Vec<Rows> = ids.iter().map(|id| (*id, vec![1], vec![f64::from(*id)])).collect();
            let segment = write(&SimDisk::new(), Tier::Flush, &all);
            let around = ids.iter().flat_map(|id| id.saturating_sub(3)..=id.saturating_add(3));
            for id in around {
                let place = ids.iter().position(|i| *i == id).map(|i| i as u32);
                assert_eq!(
                    segment.pages_of(id),
                    place.map_or(0..0, |p| p..p + 1),
                    "{id} of {ids:?}"
                );
            }
        }
        let empty = write(&SimDisk::new(), Tier::Flush, &[]);
        assert_eq!(empty.pages_of(0), 0..0);
    }

    #[test]
    fn times_of_a_scrape_are_kept_once() {
        let disk = SimDisk::new();
        let times: Vec<i64> = (0..480).map(|i| 1_000_000 * (15_000 * i + i * i * i % 911)).collect();
        let all: Vec<Rows> = (0..200).map(|s| (s, times.clone(), vec![1.0; 480])).collect();
        let segment = write(&disk, Tier::Flush, &all);
        assert_eq!(segment.entries.len(), 1);
        let budget = 4.0 * 200.0 + 16.0 * 4.0 + 800.0;
        assert!(
            (segment.file().bytes as f64) < budget + 200.0 * 3.0,
            "{}",
            segment.file().bytes
        );
        assert!(segment.memory_bytes() < 200 * 16 + 1000, "{}", segment.memory_bytes());
    }

    #[test]
    fn pages_of_a_window_are_found() {
        let times: Vec<i64> = (0..20_000).collect();
        let values: Vec<f64> = times.iter().map(|t| *t as f64).collect();
        let segment = write(&SimDisk::new(), Tier::Flush, &[(5, times, values)]);
        let pages = |from, to| segment.pages_in(5, from, to);
        assert_eq!(pages(0, 19_999), 0..10);
        assert_eq!(pages(2048, 4095), 1..2);
        assert_eq!(pages(2047, 4096), 0..3);
        assert_eq!(pages(20_000, 30_000), 10..10);
        assert_eq!(pages(-9, -1), 0..0);
        assert!(segment.pages_in(6, 0, 9).is_empty());
        let mut reader = segment.reader();
        assert_eq!(reader.rows_in(1, 2050, 2052).unwrap(), 2..5);
        assert_eq!(reader.rows_in(1, 0, 2049).unwrap(), 0..2);
    }

    #[test]
    fn a_wrong_bit_is_told_wherever_it_is() {
        let all = sample(60);
        let disk = SimDisk::new();
        let made = write(&disk, Tier::Compacted, &all);
        let bytes = made.file().bytes as usize;
        let path = "d/segment-0000000000000001";
        for at in (0..bytes).step_by(bytes / 200) {
            disk.flip_bit(path, at, (at % 8) as u8).unwrap();
            let looked = Segment::open(&disk, "d", made.file()).and_then(|s| {
                let mut reader = s.reader();
                for (id, ..) in &all {
                    read(&s, &mut reader, *id)?;
                }
                Ok(())
            });
            assert!(matches!(looked, Err(StorageError::Damaged(_))), "byte {at}: {looked:?}");
            disk.flip_bit(path, at, (at % 8) as u8).unwrap();
        }
    }

    const GOLDEN: [(&str, Tier, &[u8]); 2] = [
        (
            "metric-flush",
            Tier::Flush,
            include_bytes!("../../tests/golden/v2/metric-flush"),
        ),
        (
            "metric-compacted",
            Tier::Compacted,
            include_bytes!("../../tests/golden/v2/metric-compacted"),
        ),
    ];

    fn golden_ref(bytes: &[u8]) -> FileRef {
        FileRef {
            number: 1,
            bytes: bytes.len() as u64,
            blake3: *blake3::hash(&bytes[..bytes.len() - 40]).as_bytes(),
        }
    }

    #[test]
    fn golden_files_are_read_and_what_is_written_today_is_the_same() {
        let all = sample(100);
        for (name, tier, bytes) in GOLDEN {
            let disk = SimDisk::new();
            hindcast_env::disk::write_new_file(&disk, "d/segment-0000000000000001", bytes).unwrap();
            check(&Segment::open(&disk, "d", &golden_ref(bytes)).unwrap(), &all);
            // What zstd and pco make of the same input is theirs to improve.
            if tier == Tier::Flush {
                let disk = SimDisk::new();
                let made = write(&disk, tier, &all);
                let today = made.container.read_range(0..made.container.data().end).unwrap();
                assert_eq!(
                    bytes[..today.len()],
                    today,
                    "{name}: a change of bytes raises the version"
                );
            }
        }
    }

    /// Writes the golden files: `cargo test -p hindcast-storage write_golden_metric -- --ignored`.
    #[test]
    #[ignore = "changes files of the source tree"]
    #[allow(clippy::disallowed_methods, reason = "golden files lie in the source tree")]
    fn write_golden_metric() {
        for (name, tier, _) in GOLDEN {
            let disk = SimDisk::new();
            write(&disk, tier, &sample(100));
            let bytes = disk.read("d/segment-0000000000000001").unwrap();
            let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v2");
            std::fs::write(format!("{dir}/{name}"), bytes).unwrap();
        }
    }

    fn rows() -> impl Strategy<Value = Vec<f64>> {
        let value = prop_oneof![
            8 => (0i32..1000).prop_map(f64::from),
            2 => (-900i32..900).prop_map(|i| f64::from(i) / 10.0),
            1 => any::<u64>().prop_map(f64::from_bits),
            1 => Just(f64::from_bits(STALE_NAN_BITS)),
            1 => prop_oneof![Just(-0.0), Just(f64::INFINITY), Just(f64::NAN)],
        ];
        let counter = prop::collection::vec((0u32..50, 0u32..100), 1..700).prop_map(|steps| {
            let mut sum = 0.0;
            let next = |(step, reset): (u32, u32)| {
                sum = if reset == 0 { 0.0 } else { sum + f64::from(step) };
                sum
            };
            steps.into_iter().map(next).collect()
        });
        prop_oneof![
            prop::collection::vec(value.clone(), 1..700),
            counter,
            (value, 1usize..700).prop_map(|(v, n)| vec![v; n]),
            (-50i64..50, -9i64..9, 1usize..700)
                .prop_map(|(first, step, n)| (0..n as i64).map(|i| (first + i * step) as f64).collect()),
        ]
    }

    fn number_bits(v: Option<f64>) -> Option<u64> {
        v.map(|v| if v.is_nan() { f64::NAN.to_bits() } else { v.to_bits() })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn scans_give_the_bits_of_the_rule(
            parts in prop::collection::vec(rows(), 1..5), from in 0usize..2800, len in 0usize..2800, compacted: bool,
        ) {
            // One series per part, read as if it were one: page bounds anywhere.
            let mut at = 0i64;
            let all: Vec<Rows> = parts.iter().zip(0..).map(|(values, id)| {
                let times = values.iter().map(|_| { at += 10; at }).collect();
                (id, times, values.clone())
            }).collect();
            let tier = if compacted { Tier::Compacted } else { Tier::Flush };
            let segment = write(&SimDisk::new(), tier, &all);
            let (from, to) = (10 * from as i64, 10 * (from + len) as i64);
            let inside: Vec<f64> = all.iter().flat_map(|(_, times, values)| times.iter().zip(values))
                .filter(|(t, v)| (from..=to).contains(*t) && v.to_bits() != STALE_NAN_BITS).map(|(_, v)| *v).collect();
            for function in Function::ALL {
                let mut running = Running::new(function);
                segment.reader().scan(0..segment.refs.len() as u32, from, to, &mut running).unwrap();
                let (fast, plain) = (running.finish(), reference::of(function, &inside));
                prop_assert_eq!(number_bits(fast), number_bits(plain), "{:?}", function);
            }
        }

        #[test]
        fn any_table_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = get_table(&bytes, 60..1000);
            let small: Vec<u8> = bytes.iter().map(|b| b % 4).collect();
            let _ = get_table(&small, 0..1000);
        }
    }
}

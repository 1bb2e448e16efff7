//! A file of log blocks: those of each stream in the order of time, streams by id. Layout: `FORMAT-logs.md`.
//!
//! Invariants
//! - A stream's blocks ascend by time and do not overlap, except that the last time of one may be the first of the
//!   next.
//! - Sections are read one by one, each verified by its own CRC32C; the word filters of all blocks lie together behind
//!   the blocks, and are kept in memory once read, up to a bound.

use super::block::{Block, BlockEncoder, BlockInfo, PackedBlock, Piece, Section, Source, fitting};
use super::search::Filter;
use crate::codec::RawLine;
use crate::container::{Container, FileKind, FileWriter, Head, Packing};
use crate::cursor::{Bad, Cursor, put_varint};
use crate::error::{Damage, ReadError, StorageError};
use bytes::Bytes;
use hindcast_env::{Disk, DiskError};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

pub use crate::container::FileRef;

/// Word filters of one segment that are kept in memory; those beyond are read for each search.
pub const FILTERS_BYTES_MAX: usize = 32 << 20;
const TABLE_LEVEL: i32 = 3;

/// Text of a block; one line more may exceed it. Larger blocks are smaller on disk, and what a search unpacks to show
/// one line is a block.
pub const BLOCK_BYTES: usize = 1 << 20;

/// How hard a file is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Of a head: quickly.
    Flush,
    /// Of other files: smaller.
    Compacted,
}

impl Tier {
    pub const fn level(self) -> i32 {
        match self {
            Self::Flush => 1,
            Self::Compacted => 9,
        }
    }
}

/// Writes one file, stream by stream.
pub struct Writer {
    file: FileWriter,
    tier: Tier,
    encoder: BlockEncoder,
    /// Word filters, framed, until they are written behind the blocks.
    filters: Vec<u8>,
    blocks: Vec<(u32, u64, BlockInfo)>,
    rows: u64,
}

impl Writer {
    pub fn create(disk: &dyn Disk, dir: &str, number: u64, head: Head, tier: Tier) -> Result<Self, DiskError> {
        assert_eq!(head.kind, FileKind::Log, "a file of lines says so");
        Ok(Self {
            file: FileWriter::create(disk, dir, number, head)?,
            tier,
            encoder: BlockEncoder::default(),
            filters: vec![],
            blocks: vec![],
            rows: 0,
        })
    }

    /// Lines of a stream, ascending by time. Streams come by ascending id; one may come in several calls in a row.
    pub fn stream<'a>(&mut self, id: u32, lines: impl Iterator<Item = RawLine<'a>>) -> Result<(), DiskError> {
        let mut lines = lines.peekable();
        let follows = |(last, _, info): &(u32, u64, BlockInfo)| {
            let in_order = lines.peek().is_none_or(|l| info.last <= l.at);
            *last < id || (*last == id && in_order)
        };
        assert!(
            self.blocks.last().is_none_or(follows),
            "streams ascend, and so do their lines"
        );
        while lines.peek().is_some() {
            let packed = PackedBlock::encode(&mut self.encoder, fitting(&mut lines, BLOCK_BYTES), self.tier.level());
            self.put(id, &packed)?;
        }
        Ok(())
    }

    /// A block of a stream as it is; under the same rules as `stream`.
    pub fn packed(&mut self, id: u32, packed: &PackedBlock) -> Result<(), DiskError> {
        let follows =
            |(last, _, info): &(u32, u64, BlockInfo)| *last < id || (*last == id && info.last <= packed.info().first);
        assert!(
            self.blocks.last().is_none_or(follows),
            "streams ascend, and so do their blocks"
        );
        self.put(id, packed)
    }

    fn put(&mut self, id: u32, packed: &PackedBlock) -> Result<(), DiskError> {
        let (info, sections) = (packed.info().clone(), packed.sections());
        let offset = self.file.offset();
        let body = info.offset(Section::Words) as usize;
        let mut start = 0;
        for piece in &info.pieces[..Section::Words as usize] {
            let end = start + piece.stored as usize;
            if piece.stored > 0 {
                self.file.framed(&sections[start..end], piece.raw)?;
            }
            start = end;
        }
        self.filters.extend_from_slice(&sections[body..]);
        self.rows += u64::from(info.rows);
        self.blocks.push((id, offset, info));
        Ok(())
    }

    /// Writes filters, table and footer, syncs, and opens the file.
    pub fn finish(mut self, disk: &dyn Disk) -> Result<Segment, StorageError> {
        let filters = self.file.offset();
        let mut start = 0;
        for (_, _, info) in &self.blocks {
            let piece = info.piece(Section::Words);
            let end = start + piece.stored as usize;
            if piece.stored > 0 {
                self.file.framed(&self.filters[start..end], piece.raw)?;
            }
            start = end;
        }
        let (mut table, mut streams) = (vec![], vec![]);
        let base = self.file.head().times.0;
        for (id, _, info) in &self.blocks {
            match streams.last_mut() {
                Some((last, n)) if last == id => *n += 1u64,
                _ => streams.push((*id, 1)),
            }
            info.put(&mut table, base);
        }
        let mut out = vec![];
        put_varint(&mut out, streams.len() as u64);
        let mut before = 0;
        for (id, n) in streams {
            put_varint(&mut out, u64::from(id - before));
            put_varint(&mut out, n);
            before = id;
        }
        out.extend_from_slice(&table);
        let container = self.file.finish(disk, &out, Packing::Zstd(TABLE_LEVEL), self.rows)?;
        let offsets: Vec<u64> = self.blocks.iter().map(|(_, offset, _)| *offset).collect();
        let segment = Segment::new(container, &out)?;
        debug_assert!(segment.filters_at == filters && segment.entries.iter().map(|e| e.offset).eq(offsets));
        Ok(segment)
    }
}

/// What the table says of a block.
struct Entry {
    info: BlockInfo,
    offset: u64,
    /// Where its word filter lies.
    words: u64,
    /// The filter, verified.
    kept: OnceLock<Bytes>,
}

/// An open file of log blocks.
#[derive(Clone)]
pub struct Segment(Arc<Inner>);

impl std::ops::Deref for Segment {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

pub struct Inner {
    container: Container,
    entries: Vec<Entry>,
    /// Ids, ascending, with their blocks.
    streams: Vec<(u32, Range<u32>)>,
    filters_at: u64,
    /// Bytes of filters in memory.
    kept: AtomicUsize,
}

impl Segment {
    pub fn open(disk: &dyn Disk, dir: &str, file: &FileRef) -> Result<Self, StorageError> {
        let (container, table) = Container::open(disk, dir, FileKind::Log, file)?;
        Self::new(container, &table)
    }

    pub fn new(container: Container, table: &[u8]) -> Result<Self, StorageError> {
        match Inner::parse(&container, table) {
            Ok((streams, entries, filters_at)) => Ok(Self(Arc::new(Inner {
                container,
                entries,
                streams,
                filters_at,
                kept: AtomicUsize::new(0),
            }))),
            Err(why) => {
                let whole = 0..container.file.bytes;
                Err(container.damage(whole, format!("the table: {why}")).into())
            }
        }
    }

    /// One block; its sections are read when asked for.
    pub fn block(&self, number: u32) -> Block {
        let info = self.entries[number as usize].info.clone();
        Block::new(
            info,
            Arc::new(InFile {
                segment: self.clone(),
                number,
            }),
        )
    }
}

type Parsed = (Vec<(u32, Range<u32>)>, Vec<Entry>, u64);

impl Inner {
    fn parse(container: &Container, table: &[u8]) -> Result<Parsed, Bad> {
        let c = &mut Cursor(table);
        let n = c.count()?;
        let mut streams: Vec<(u32, Range<u32>)> = Vec::with_capacity(n);
        let (mut id, mut blocks) = (0u32, 0u32);
        for i in 0..n {
            let step: u32 = c.number()?;
            if i > 0 && step == 0 {
                return Err("a stream stands twice");
            }
            id = id.checked_add(step).ok_or("a number is too large")?;
            let end = blocks.checked_add(c.number()?).ok_or("a number is too large")?;
            streams.push((id, blocks..end));
            blocks = end;
        }
        if blocks as usize > c.0.len() {
            return Err("a count is larger than what follows");
        }
        let base = container.head.times.0;
        let mut offset = container.data().start;
        let mut entries = Vec::with_capacity(blocks as usize);
        for _ in 0..blocks {
            let info = BlockInfo::get(c, base)?;
            let next = offset
                .checked_add(info.offset(Section::Words))
                .ok_or("a number is too large")?;
            entries.push(Entry {
                info,
                offset,
                words: 0,
                kept: OnceLock::new(),
            });
            offset = next;
        }
        c.end()?;
        let filters_at = offset;
        for entry in &mut entries {
            entry.words = offset;
            offset += u64::from(entry.info.piece(Section::Words).stored);
        }
        if offset != container.data().end {
            return Err("the blocks have another length than the file");
        }
        if entries.iter().map(|e| u64::from(e.info.rows)).sum::<u64>() != container.rows {
            return Err("the blocks have another number of rows");
        }
        Ok((streams, entries, filters_at))
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

    /// Ids of the streams, ascending.
    pub fn streams(&self) -> impl Iterator<Item = u32> + '_ {
        self.streams.iter().map(|(id, _)| *id)
    }

    /// Numbers of all blocks of a stream, in the order of time.
    pub fn blocks_of(&self, id: u32) -> Range<u32> {
        let found = self.streams.binary_search_by_key(&id, |(id, _)| *id);
        found.map_or(0..0, |i| self.streams[i].1.clone())
    }

    /// Those that may hold lines in `from..=to`.
    pub fn blocks_in(&self, id: u32, from: i64, to: i64) -> Range<u32> {
        let all = self.blocks_of(id);
        let blocks = &self.entries[all.start as usize..all.end as usize];
        let start = blocks.partition_point(|e| e.info.last < from) as u32;
        let end = blocks.partition_point(|e| e.info.first <= to) as u32;
        all.start + start..all.start + end.max(start)
    }

    pub fn info(&self, number: u32) -> &BlockInfo {
        &self.entries[number as usize].info
    }

    /// The file as a scrub reads it, at its own pace.
    pub fn immutable_file(&self) -> crate::verify::ImmutableFile {
        let mut pieces = vec![];
        for entry in &self.entries {
            let mut at = entry.offset;
            for piece in &entry.info.pieces[..Section::Words as usize] {
                pieces.push(at..at + u64::from(piece.stored));
                at += u64::from(piece.stored);
            }
            let words = u64::from(entry.info.piece(Section::Words).stored);
            pieces.push(entry.words..entry.words + words);
        }
        pieces.retain(|p| !p.is_empty());
        self.container.immutable_file(pieces)
    }

    pub fn scrub(&self) -> Result<(), ReadError> {
        self.container.scrub()
    }

    fn piece_at(&self, number: u32, section: Section) -> (u64, Piece) {
        let entry = &self.entries[number as usize];
        let at = match section {
            Section::Words => entry.words,
            _ => entry.offset + entry.info.offset(section),
        };
        (at, entry.info.piece(section))
    }
}

impl Segment {
    /// Numbers of the blocks, of those given, whose words do not rule a filter out.
    pub fn may_match(&self, blocks: impl Iterator<Item = u32>, filter: &Filter) -> Result<Vec<u32>, ReadError> {
        let asked = filter.asks_words();
        let mut left = vec![];
        for number in blocks {
            if !asked || self.block(number).may_match(filter)? {
                left.push(number);
            }
        }
        Ok(left)
    }
}

/// Sections of one block of a file.
struct InFile {
    segment: Segment,
    number: u32,
}

impl Source for InFile {
    fn read(&self, section: Section) -> Result<Bytes, ReadError> {
        let inner = &*self.segment;
        let (at, piece) = inner.piece_at(self.number, section);
        inner.container.read_range(at..at + u64::from(piece.stored))
    }

    fn kept_words(&self) -> Option<Bytes> {
        self.segment.entries[self.number as usize].kept.get().cloned()
    }

    fn keep_words(&self, words: &Bytes) {
        let inner = &*self.segment;
        let kept = &inner.entries[self.number as usize].kept;
        let before = inner.kept.fetch_add(words.len(), Ordering::Relaxed);
        // A copy: the bytes may be a piece of something larger.
        if before + words.len() > FILTERS_BYTES_MAX || kept.set(Bytes::copy_from_slice(words)).is_err() {
            inner.kept.fetch_sub(words.len(), Ordering::Relaxed);
        }
    }

    fn damage(&self, section: Section, why: Bad) -> ReadError {
        let (at, piece) = self.segment.piece_at(self.number, section);
        let range = at..at + u64::from(piece.stored);
        self.segment
            .container
            .damage(range, format!("{section:?} of a log block: {why}"))
            .into()
    }
}

//! What all segment files share: a header, checksummed blocks, one table, a footer. Layout: `FORMAT.md` §2.
//!
//! Invariants
//! - A file is written once, front to back, synced, and never changed.
//! - One file holds one tenant, one kind of rows and one retention policy, of one commit span of one Raft group.
//! - No byte is used before its CRC32C was compared; BLAKE3 over the file is for transfer and scrub.
//!
//! What the blocks mean is the caller's: `Block` says where one lies, and the caller keeps those in the table.

use crate::cursor::{Bad, Cursor, put_bytes, put_varint};
use crate::error::{Damage, ReadError, StorageError};
use crate::retention::Policy;
use bytes::Bytes;
use hindcast_env::fuzz::sum_fits;
use hindcast_env::planted::{Bug, planted};
use hindcast_env::{ColdRef, ColdTier, Disk, DiskError, DiskFile, ReadAt};
use hindcast_model::{GroupId, TenantId, TimestampNs};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub const MAGIC: &[u8; 8] = b"HCSEGMT\n";
pub const END_MAGIC: &[u8; 8] = b"HCSEGEND";
pub const VERSION: u16 = 2;
/// A block larger than this, unpacked, cannot have been written by us: decoders allocate no more for one.
pub const BLOCK_RAW_BYTES_MAX: usize = 1 << 28;
/// What a format may add to the header.
pub const EXTRA_BYTES_MAX: usize = 1024;
const WRITE_BYTES: usize = 1 << 20;
const HEADER_BYTES_MAX: usize = 2048;
const FOOTER_BYTES: usize = 76;
const CRC_BYTES: usize = 4;
/// Before and after the body of a block: tag and CRC.
const BLOCK_FRAME_BYTES: usize = 1 + CRC_BYTES;
const PLAIN: u8 = 0;
const ZSTD: u8 = 1;

/// What the rows of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[repr(u8)]
pub enum FileKind {
    Metric = 0,
    Log = 1,
}

/// What the header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub tenant: TenantId,
    pub kind: FileKind,
    pub policy: Policy,
    pub group: GroupId,
    /// Every row was committed in `commits.0..=commits.1` of the group.
    pub commits: (u64, u64),
    /// Every row's event time is in `times.0..=times.1`.
    pub times: (i64, i64),
    /// The format's own; at most `EXTRA_BYTES_MAX`.
    pub extra: Vec<u8>,
}

impl Head {
    /// The bounds of event time as the glossary has them.
    pub fn span(&self) -> (TimestampNs, TimestampNs) {
        (TimestampNs(self.times.0), TimestampNs(self.times.1))
    }
}

/// A finished file, as the manifest names it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FileRef {
    pub number: u64,
    pub bytes: u64,
    pub blake3: [u8; 32],
}

/// Where a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    pub offset: u64,
    /// In the file, with tag and CRC.
    pub stored: u32,
    /// Unpacked.
    pub raw: u32,
}

impl Block {
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + u64::from(self.stored)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Plain,
    /// At this level; stored plain all the same when that is not larger.
    Zstd(i32),
}

pub fn path_of(dir: &str, number: u64) -> String {
    format!("{dir}/segment-{number:016x}")
}

/// What stays here of a file that went to the cold store: its header, table and footer.
pub fn table_path_of(dir: &str, number: u64) -> String {
    format!("{dir}/table-{number:016x}")
}

// ---- writing ----

/// Writes one file front to back.
pub struct FileWriter {
    file: Box<dyn DiskFile>,
    path: String,
    number: u64,
    hasher: blake3::Hasher,
    /// On the disk already; what follows is in `buffer`.
    written: u64,
    buffer: Vec<u8>,
    zstd: Option<(i32, zstd::bulk::Compressor<'static>)>,
    head: Head,
}

impl FileWriter {
    pub fn create(disk: &dyn Disk, dir: &str, number: u64, head: Head) -> Result<Self, DiskError> {
        let path = path_of(dir, number);
        let mut buffer = Vec::with_capacity(WRITE_BYTES + WRITE_BYTES / 4);
        put_head(&mut buffer, &head);
        Ok(Self {
            file: disk.create(&path)?,
            path,
            number,
            hasher: blake3::Hasher::new(),
            written: 0,
            buffer,
            zstd: None,
            head,
        })
    }

    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Where the next block will lie: also how long the file is so far.
    pub fn offset(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Appends a block. Blocks lie without a gap between them, the first right behind the header.
    pub fn block(&mut self, raw: &[u8], packing: Packing) -> Result<Block, DiskError> {
        self.block_of(&[raw], packing)
    }

    /// As `block`, of parts that lie apart in memory.
    pub fn block_of(&mut self, parts: &[&[u8]], packing: Packing) -> Result<Block, DiskError> {
        let raw_len: usize = parts.iter().map(|p| p.len()).sum();
        assert!(
            raw_len <= BLOCK_RAW_BYTES_MAX,
            "a block stays below {BLOCK_RAW_BYTES_MAX} bytes"
        );
        let (offset, start) = (self.offset(), self.buffer.len());
        match packing {
            Packing::Zstd(level) if self.put_zstd(parts, raw_len, level) => {}
            _ => {
                self.buffer.truncate(start);
                self.buffer.push(PLAIN);
                parts.iter().for_each(|p| self.buffer.extend_from_slice(p));
            }
        }
        let crc = crc32c::crc32c(&self.buffer[start..]);
        self.buffer.extend_from_slice(&crc.to_le_bytes());
        let stored = (self.buffer.len() - start) as u32;
        if self.buffer.len() >= WRITE_BYTES {
            self.write_buffer()?;
        }
        Ok(Block {
            offset,
            stored,
            raw: raw_len as u32,
        })
    }

    /// Appends a block that its caller framed already: tag, body and CRC32C as `block` writes them.
    pub fn framed(&mut self, stored: &[u8], raw: u32) -> Result<Block, DiskError> {
        let offset = self.offset();
        self.buffer.extend_from_slice(stored);
        if self.buffer.len() >= WRITE_BYTES {
            self.write_buffer()?;
        }
        Ok(Block {
            offset,
            stored: stored.len() as u32,
            raw,
        })
    }

    /// Appends tag and frame; false if packing failed or did not pay.
    fn put_zstd(&mut self, parts: &[&[u8]], raw_len: usize, level: i32) -> bool {
        if self.zstd.as_ref().is_none_or(|(l, _)| *l != level) {
            self.zstd = zstd::bulk::Compressor::new(level).ok().map(|c| (level, c));
        }
        let Some((_, compressor)) = &mut self.zstd else {
            return false;
        };
        let joined;
        let raw = match parts {
            [one] => *one,
            _ => {
                joined = parts.concat();
                &joined[..]
            }
        };
        match compressor.compress(raw) {
            Ok(packed) if packed.len() < raw_len => {
                self.buffer.push(ZSTD);
                self.buffer.extend_from_slice(&packed);
                true
            }
            _ => false,
        }
    }

    fn write_buffer(&mut self) -> Result<(), DiskError> {
        self.hasher.update(&self.buffer);
        self.file.write_at(self.written, &self.buffer)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Appends the table and the footer, syncs the file, and opens it. Its name is durable once the caller synced the
    /// folder.
    pub fn finish(
        mut self,
        disk: &dyn Disk,
        table: &[u8],
        packing: Packing,
        rows: u64,
    ) -> Result<Container, DiskError> {
        let table = self.block(table, packing)?;
        let footer = self.buffer.len();
        for v in [table.offset, u64::from(table.stored), u64::from(table.raw), rows] {
            self.buffer.extend_from_slice(&v.to_le_bytes());
        }
        let crc = crc32c::crc32c(&self.buffer[footer..]);
        self.buffer.extend_from_slice(&crc.to_le_bytes());
        self.write_buffer()?;
        let blake3 = *self.hasher.finalize().as_bytes();
        let end = [&blake3[..], END_MAGIC].concat();
        self.file.write_at(self.written, &end)?;
        self.file.sync()?;
        Ok(Container {
            data: head_len(&self.head)..table.offset,
            head: self.head,
            file: FileRef {
                number: self.number,
                bytes: self.written + end.len() as u64,
                blake3,
            },
            rows,
            reader: disk.open_read(&self.path)?,
            path: self.path,
            far: None,
            is_suspect: AtomicBool::new(false),
        })
    }
}

fn put_head(out: &mut Vec<u8>, head: &Head) {
    assert!(
        head.extra.len() <= EXTRA_BYTES_MAX,
        "a header's extra area stays below {EXTRA_BYTES_MAX} bytes"
    );
    let start = out.len();
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.push(head.kind as u8);
    out.push(head.policy as u8);
    for v in [head.group.0, head.commits.0, head.commits.1] {
        out.extend_from_slice(&v.to_le_bytes());
    }
    for v in [head.times.0, head.times.1] {
        out.extend_from_slice(&v.to_le_bytes());
    }
    put_varint(out, head.tenant.as_str().len() as u64);
    out.extend_from_slice(head.tenant.as_str().as_bytes());
    put_bytes(out, &head.extra);
    let crc = crc32c::crc32c(&out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
}

fn head_len(head: &Head) -> u64 {
    let mut out = vec![];
    put_head(&mut out, head);
    out.len() as u64
}

// ---- reading ----

/// An open file: a handle that keeps working when the file's name is gone.
pub struct Container {
    pub head: Head,
    pub file: FileRef,
    pub rows: u64,
    /// Of a cold file: the store's URL and the name there.
    path: String,
    reader: Arc<dyn ReadAt>,
    /// Where blocks may lie: behind the header, before the table.
    data: Range<u64>,
    far: Option<Far>,
    /// A read did not find what was written, and nobody has looked since whether that is so on the disk.
    is_suspect: AtomicBool,
}

/// A file whose bytes are in the cold store, but for its table.
struct Far {
    /// Past the cache.
    whole: Arc<dyn ReadAt>,
    table: Arc<dyn ReadAt>,
    table_path: String,
}

/// Unpacks blocks one after the other; keeps its working memory.
///
/// Readers are made for each read, and a context takes longer to make than a small block to unpack: it is taken when the
/// first block comes, and given back for the thread's next reader.
pub struct Unpacker(Option<zstd::bulk::Decompressor<'static>>);

/// Contexts that a thread keeps for later. A read of many files has as many readers, which come one after the other.
const SPARE_CONTEXTS_MAX: usize = 2;

thread_local! {
    static SPARE_CONTEXTS: RefCell<Vec<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(vec![]) };
}

impl Unpacker {
    pub const fn new() -> Self {
        Self(None)
    }

    /// One zstd frame of exactly `raw_len` bytes, into `out` (cleared before).
    pub fn unpack(&mut self, frame: &[u8], raw_len: usize, out: &mut Vec<u8>) -> Result<(), Bad> {
        if raw_len > BLOCK_RAW_BYTES_MAX {
            return Err("a block is too large");
        }
        out.clear();
        out.reserve(raw_len);
        let context = self.0.get_or_insert_with(|| {
            let spare = SPARE_CONTEXTS.with_borrow_mut(Vec::pop);
            // Fails only when memory is out.
            spare.unwrap_or_else(|| zstd::bulk::Decompressor::new().expect("a zstd context"))
        });
        match context.decompress_to_buffer(frame, out) {
            Ok(n) if n == raw_len => Ok(()),
            Ok(_) => Err("has another length than the table says"),
            Err(_) => Err("does not decompress"),
        }
    }
}

impl Drop for Unpacker {
    fn drop(&mut self) {
        let Some(context) = self.0.take() else { return };
        // A thread that ends has nowhere to keep it.
        let _ = SPARE_CONTEXTS.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE_CONTEXTS_MAX {
                spare.push(context);
            }
        });
    }
}

impl Default for Unpacker {
    fn default() -> Self {
        Self::new()
    }
}

impl Container {
    /// Reads and verifies header, footer and table; gives the table, unpacked.
    pub fn open(disk: &dyn Disk, dir: &str, kind: FileKind, file: &FileRef) -> Result<(Self, Bytes), StorageError> {
        let path = path_of(dir, file.number);
        let reader = open_named(disk, &path, file)?;
        if reader.len() != file.bytes {
            let why = format!("the file has {} bytes, the manifest says {}", reader.len(), file.bytes);
            return Err(damage(&path, 0..file.bytes, why).into());
        }
        let end = reader.len().min(HEADER_BYTES_MAX as u64);
        let head = parse_head(&read_range(reader.as_ref(), &path, 0..end)?, &path, kind)?;
        let (table, rows) = read_footer(reader.as_ref(), &path, file)?;
        let container = Self {
            data: head_len(&head)..table.offset,
            head,
            file: file.clone(),
            rows,
            path,
            reader,
            far: None,
            is_suspect: AtomicBool::new(false),
        };
        let raw = container.read_block(table)?;
        Ok((container, raw))
    }

    /// As `open`, of a file that is in the cold store: reads what is kept of it here, and never the store.
    pub fn open_cold(
        disk: &dyn Disk,
        dir: &str,
        kind: FileKind,
        file: &FileRef,
        (tier, cold): (&ColdTier, &ColdRef),
    ) -> Result<(Self, Bytes), StorageError> {
        let table_path = table_path_of(dir, file.number);
        let kept = open_named(disk, &table_path, file)?;
        let bad = |why: Bad| StorageError::from(damage(&table_path, 0..kept.len(), why));
        if kept.len() > file.bytes || cold.bytes != file.bytes {
            return Err(bad("it is of another file than the manifest names"));
        }
        let bytes = read_range(kept.as_ref(), &table_path, 0..kept.len())?;
        let head = parse_head(&bytes, &table_path, kind)?;
        let data_start = head_len(&head);
        let footer_at = bytes.len().checked_sub(FOOTER_BYTES);
        let footer_at = footer_at.ok_or_else(|| bad("the file is cut short"))?;
        let (table, rows) = parse_footer(&bytes[footer_at..], &table_path, footer_at as u64..kept.len(), file)?;
        if data_start + (file.bytes - table.offset) != kept.len() {
            return Err(bad("it has another length than its header and its table"));
        }
        let stored = bytes.slice(data_start as usize..footer_at);
        let container = Self {
            data: data_start..table.offset,
            head,
            file: file.clone(),
            rows,
            path: tier.path_of(&cold.name),
            reader: tier.open(cold),
            far: Some(Far {
                whole: tier.open_whole(cold),
                table: kept.clone(),
                table_path: table_path.clone(),
            }),
            is_suspect: AtomicBool::new(false),
        };
        let raw = unpack(&stored, &stored, table).map_err(bad)?;
        Ok((container, raw))
    }

    /// What stays here when the file goes to the cold store.
    pub fn table_bytes(&self) -> Result<Vec<u8>, ReadError> {
        let (head, table) = (0..self.data.start, self.data.end..self.file.bytes);
        Ok([self.read_range(head)?, self.read_range(table)?].concat())
    }

    /// The file for who reads all of it: never through a cache.
    pub fn whole(&self) -> &Arc<dyn ReadAt> {
        self.far.as_ref().map_or(&self.reader, |far| &far.whole)
    }

    /// Where blocks may lie: behind the header, before the table.
    pub fn data(&self) -> Range<u64> {
        self.data.clone()
    }

    /// What messages call the file.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// A block's bytes, verified and unpacked.
    pub fn read_block(&self, block: Block) -> Result<Bytes, ReadError> {
        let stored = self.read_range(block.range())?;
        self.unpack_stored(&stored, block.offset, block)
    }

    /// As `read_block`, into memory that is used again.
    #[cfg(test)]
    pub fn read_block_into(&self, block: Block, unpacker: &mut Unpacker, out: &mut Vec<u8>) -> Result<(), ReadError> {
        let stored = self.read_range(block.range())?;
        let bad = |why: Bad| ReadError::from(self.damage(block.range(), why));
        match block_body(&stored, block).map_err(bad)? {
            (PLAIN, body) => {
                out.clear();
                out.extend_from_slice(body);
                Ok(())
            }
            (_, frame) => unpacker.unpack(frame, block.raw as usize, out).map_err(bad),
        }
    }

    /// Bytes as they lie in the file: of one block, or of neighbours that are then taken apart with `unpack_stored`.
    pub fn read_range(&self, range: Range<u64>) -> Result<Bytes, ReadError> {
        if range.start > range.end || range.end > self.file.bytes {
            return Err(self.damage(range, "lies outside of the file").into());
        }
        read_range(self.reader.as_ref(), &self.path, range).inspect_err(|_| self.suspect(true))
    }

    /// Verifies and unpacks one block out of bytes that `read_range` gave for `from..`.
    pub fn unpack_stored(&self, bytes: &Bytes, from: u64, block: Block) -> Result<Bytes, ReadError> {
        let bad = |why: Bad| ReadError::from(self.damage(block.range(), why));
        let start = block.offset.checked_sub(from).and_then(|at| usize::try_from(at).ok());
        let stored = start
            .and_then(|start| bytes.get(start..start.checked_add(block.stored as usize)?))
            .ok_or_else(|| bad("lies outside of the file"))?;
        unpack(bytes, stored, block).map_err(bad)
    }

    /// What to tell of bytes of this file that are not what was written. It is suspect from then on.
    pub fn damage(&self, range: Range<u64>, why: impl Into<String>) -> Damage {
        self.suspect(true);
        damage(&self.path, range, why)
    }

    pub fn suspect(&self, is_suspect: bool) {
        self.is_suspect.store(is_suspect, Ordering::Relaxed);
    }

    pub fn is_suspect(&self) -> bool {
        self.is_suspect.load(Ordering::Relaxed)
    }

    /// The file as a scrub reads it, at its own pace. `blocks` in any order; the table need not be among them.
    pub fn immutable_file(&self, mut blocks: Vec<Range<u64>>) -> crate::verify::ImmutableFile {
        blocks.sort_by_key(|b| b.start);
        let table = self.far.as_ref().map(|far| crate::verify::KeptTable {
            path: far.table_path.clone(),
            reader: far.table.clone(),
            data: self.data.clone(),
        });
        crate::verify::ImmutableFile {
            path: self.path.clone(),
            reader: self.whole().clone(),
            bytes: self.file.bytes,
            blake3: self.file.blake3,
            blocks,
            table,
        }
    }

    /// Reads the whole file and compares its BLAKE3.
    pub fn scrub(&self) -> Result<(), ReadError> {
        scrub(self.whole().as_ref(), &self.path, &self.file)
    }
}

/// As `Container::scrub`, for a file that is not open.
pub fn scrub_path(disk: &dyn Disk, path: &str, file: &FileRef) -> Result<(), ReadError> {
    scrub(open_named(disk, path, file)?.as_ref(), path, file)
}

/// Verifies and unpacks one block, `stored` being a part of `bytes`.
fn unpack(bytes: &Bytes, stored: &[u8], block: Block) -> Result<Bytes, Bad> {
    match block_body(stored, block)? {
        (PLAIN, body) => Ok(bytes.slice_ref(body)),
        (_, frame) => {
            let mut raw = vec![];
            Unpacker::new().unpack(frame, block.raw as usize, &mut raw)?;
            Ok(raw.into())
        }
    }
}

/// Verifies CRC, packing and length; packing and body.
fn block_body(stored: &[u8], block: Block) -> Result<(u8, &[u8]), Bad> {
    let (&tag, body) = checked(stored)?.split_first().ok_or("ends too early")?;
    match tag {
        PLAIN if body.len() != block.raw as usize => Err("has another length than the table says"),
        PLAIN | ZSTD => Ok((tag, body)),
        _ => Err("an unknown packing"),
    }
}

fn checked(stored: &[u8]) -> Result<&[u8], Bad> {
    let (body, crc) = stored.split_last_chunk::<CRC_BYTES>().ok_or("ends too early")?;
    let fits = crc32c::crc32c(body) == u32::from_le_bytes(*crc) || planted(Bug::CrcNotChecked);
    if !sum_fits(fits) {
        return Err("the checksum does not fit");
    }
    Ok(body)
}

fn damage(path: &str, range: Range<u64>, why: impl Into<String>) -> Damage {
    Damage {
        file: path.to_owned(),
        from: range.start,
        to: range.end,
        why: why.into(),
    }
}

fn open_named(disk: &dyn Disk, path: &str, file: &FileRef) -> Result<Arc<dyn ReadAt>, ReadError> {
    disk.open_read(path).map_err(|e| {
        if e.is_not_found() {
            damage(path, 0..file.bytes, "the file is missing").into()
        } else {
            e.into()
        }
    })
}

/// Reads a range that must be there: a file that is too short, or that the medium does not give back, is damage with a place. What
/// else fails is the node's own trouble.
fn read_range(reader: &dyn ReadAt, path: &str, range: Range<u64>) -> Result<Bytes, ReadError> {
    let len = (range.end - range.start) as usize;
    reader.read_at(range.start, len).map_err(|e| {
        if e.source.kind() == std::io::ErrorKind::UnexpectedEof {
            damage(path, range, "the file is cut short").into()
        } else if e.is_unreadable() {
            damage(path, range, "the disk cannot read it").into()
        } else {
            e.into()
        }
    })
}

/// The header that `bytes` begin with.
fn parse_head(bytes: &[u8], path: &str, kind: FileKind) -> Result<Head, StorageError> {
    let end = bytes.len() as u64;
    let bad = |why: Bad| damage(path, 0..end, format!("the header: {why}"));
    let c = &mut Cursor(bytes);
    if c.take(8).map_err(bad)? != MAGIC {
        return Err(bad("not a segment").into());
    }
    let version = u16::from_le_bytes(c.array().map_err(bad)?);
    if version < VERSION {
        return Err(bad("of a version before the first release").into());
    }
    // The header's layout is the same in all versions since, so that damage is not taken for a newer release.
    let head = get_head(c, bytes).map_err(bad)?;
    if version > VERSION {
        return Err(StorageError::FromTheFuture {
            file: path.to_owned(),
            found: version,
            known: VERSION,
        });
    }
    if head.kind != kind {
        let why = format!("holds {:?} rows where {kind:?} rows are expected", head.kind);
        return Err(damage(path, 0..end, why).into());
    }
    Ok(head)
}

fn get_head(c: &mut Cursor<'_>, bytes: &[u8]) -> Result<Head, Bad> {
    let (kind, policy) = (c.byte()?, c.byte()?);
    let (group, commits) = (GroupId(c.u64()?), (c.u64()?, c.u64()?));
    let times = (c.u64()? as i64, c.u64()? as i64);
    let (tenant, extra) = (c.bytes()?, c.bytes()?);
    c.take(CRC_BYTES)?;
    checked(&bytes[..bytes.len() - c.0.len()])?;
    if extra.len() > EXTRA_BYTES_MAX {
        return Err("the header's extra area is too long");
    }
    let tenant = std::str::from_utf8(tenant).ok().and_then(|t| TenantId::new(t).ok());
    Ok(Head {
        tenant: tenant.ok_or("no tenant's name")?,
        kind: match kind {
            0 => FileKind::Metric,
            1 => FileKind::Log,
            _ => return Err("an unknown kind of rows"),
        },
        policy: *Policy::ALL.get(policy as usize).ok_or("an unknown policy")?,
        group,
        commits,
        times,
        extra: extra.to_vec(),
    })
}

/// Where the table lies and the number of rows, after the footer was verified.
fn read_footer(reader: &dyn ReadAt, path: &str, file: &FileRef) -> Result<(Block, u64), StorageError> {
    let Some(start) = file.bytes.checked_sub(FOOTER_BYTES as u64) else {
        return Err(damage(path, 0..file.bytes, "the file is cut short").into());
    };
    let footer = read_range(reader, path, start..file.bytes)?;
    parse_footer(&footer, path, start..file.bytes, file)
}

/// As `read_footer`; `lies_at` is where the footer was read from.
fn parse_footer(footer: &[u8], path: &str, lies_at: Range<u64>, file: &FileRef) -> Result<(Block, u64), StorageError> {
    let bad = |why: Bad| damage(path, lies_at.clone(), format!("the footer: {why}"));
    let start = file.bytes.saturating_sub(FOOTER_BYTES as u64);
    let (sums, end) = footer.split_at(32 + CRC_BYTES);
    if &end[32..] != END_MAGIC {
        return Err(bad("the end is missing").into());
    }
    if end[..32] != file.blake3 {
        return Err(bad("another file than the manifest names").into());
    }
    let c = &mut Cursor(checked(sums).map_err(bad)?);
    let (offset, stored) = (c.u64().map_err(bad)?, c.u64().map_err(bad)?);
    let (raw, rows) = (c.u64().map_err(bad)?, c.u64().map_err(bad)?);
    let fits = offset.checked_add(stored) == Some(start)
        && raw <= BLOCK_RAW_BYTES_MAX as u64
        && (BLOCK_FRAME_BYTES as u64..=u64::from(u32::MAX)).contains(&stored);
    if !fits {
        return Err(bad("the table lies outside of the file").into());
    }
    let table = Block {
        offset,
        stored: stored as u32,
        raw: raw as u32,
    };
    Ok((table, rows))
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

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_env::SimDisk;

    fn head(kind: FileKind) -> Head {
        Head {
            tenant: TenantId::default(),
            kind,
            policy: Policy::Sms,
            group: GroupId(7),
            commits: (3, 9),
            times: (-5, 1 << 60),
            extra: b"more".to_vec(),
        }
    }

    /// Blocks of every packing, one larger than the write buffer.
    fn raws() -> Vec<(Vec<u8>, Packing)> {
        let noise: Vec<u8> = (0..3000u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        vec![
            (vec![], Packing::Plain),
            (b"plain".to_vec(), Packing::Plain),
            (vec![7; WRITE_BYTES + 10], Packing::Zstd(1)),
            (noise, Packing::Zstd(3)),
            (vec![9; WRITE_BYTES + 10], Packing::Plain),
        ]
    }

    fn written(disk: &SimDisk) -> (Container, Vec<Block>) {
        disk.create_dir_all("d").unwrap();
        let mut w = FileWriter::create(disk, "d", 1, head(FileKind::Log)).unwrap();
        let blocks = raws()
            .iter()
            .map(|(raw, packing)| w.block(raw, *packing).unwrap())
            .collect();
        let container = w.finish(disk, b"the table", Packing::Zstd(1), 42).unwrap();
        (container, blocks)
    }

    fn check_all(c: &Container, blocks: &[Block]) -> Result<(), ReadError> {
        let (mut unpacker, mut again) = (Unpacker::new(), vec![]);
        for ((raw, _), block) in raws().iter().zip(blocks) {
            assert_eq!(c.read_block(*block)?, raw[..]);
            c.read_block_into(*block, &mut unpacker, &mut again)?;
            assert_eq!(again, raw[..]);
        }
        let all = c.data();
        let bytes = c.read_range(all.clone())?;
        for ((raw, _), block) in raws().iter().zip(blocks) {
            assert_eq!(c.unpack_stored(&bytes, all.start, *block)?, raw[..]);
        }
        c.scrub()
    }

    #[test]
    fn blocks_head_and_table_come_back() {
        let disk = SimDisk::new();
        let (made, blocks) = written(&disk);
        check_all(&made, &blocks).unwrap();
        let (opened, table) = Container::open(&disk, "d", FileKind::Log, &made.file).unwrap();
        assert_eq!(
            (&table[..], opened.rows, &opened.head),
            (&b"the table"[..], 42, &head(FileKind::Log))
        );
        assert_eq!(opened.data(), made.data());
        assert_eq!(blocks[0].offset, made.data().start);
        assert!(blocks[2].stored < 1000, "zstd packs");
        check_all(&opened, &blocks).unwrap();
        scrub_path(&disk, "d/segment-0000000000000001", &made.file).unwrap();
    }

    #[test]
    fn the_kind_is_compared() {
        let disk = SimDisk::new();
        let file = written(&disk).0.file;
        let told = Container::open(&disk, "d", FileKind::Metric, &file)
            .err()
            .unwrap()
            .to_string();
        assert!(told.contains("Log rows where Metric rows are expected"), "{told}");
    }

    #[test]
    fn a_wrong_bit_is_told_wherever_it_is() {
        let disk = SimDisk::new();
        let (made, blocks) = written(&disk);
        let path = made.path().to_owned();
        // Both ends byte by byte, and the middle in steps.
        let bytes = made.file.bytes as usize;
        let middle = (200..bytes - 200).step_by(bytes / 50);
        for at in (0..200).chain(middle).chain(bytes - 200..bytes) {
            disk.flip_bit(&path, at, (at % 8) as u8).unwrap();
            let told = Container::open(&disk, "d", FileKind::Log, &made.file)
                .and_then(|(c, _)| check_all(&c, &blocks).map_err(StorageError::from));
            let damaged = matches!(&told, Err(StorageError::Damaged(d)) if d.file == path);
            assert!(damaged, "byte {at}: {told:?}");
            disk.flip_bit(&path, at, (at % 8) as u8).unwrap();
        }
        check_all(&made, &blocks).unwrap();
    }

    #[test]
    fn a_short_or_missing_file_is_told() {
        let disk = SimDisk::new();
        let file = written(&disk).0.file;
        disk.cut("d/segment-0000000000000001", file.bytes as usize - 1).unwrap();
        let told = Container::open(&disk, "d", FileKind::Log, &file)
            .err()
            .unwrap()
            .to_string();
        assert!(told.contains("the manifest says"), "{told}");
        assert!(scrub_path(&disk, "d/segment-0000000000000001", &file).is_err());
        disk.remove("d/segment-0000000000000001").unwrap();
        let told = Container::open(&disk, "d", FileKind::Log, &file)
            .err()
            .unwrap()
            .to_string();
        assert!(told.contains("missing"), "{told}");
    }

    #[test]
    fn a_newer_version_is_not_taken_for_damage() {
        let disk = SimDisk::new();
        let file = written(&disk).0.file;
        let path = "d/segment-0000000000000001";
        let mut bytes = disk.read(path).unwrap().to_vec();
        bytes[8] = 3;
        let head_len = head_len(&head(FileKind::Log)) as usize;
        let crc = crc32c::crc32c(&bytes[..head_len - CRC_BYTES]);
        bytes[head_len - CRC_BYTES..head_len].copy_from_slice(&crc.to_le_bytes());
        hindcast_env::disk::write_new_file(&disk, path, &bytes).unwrap();
        let told = Container::open(&disk, "d", FileKind::Log, &file).err().unwrap();
        assert!(
            matches!(told, StorageError::FromTheFuture { found: 3, known: 2, .. }),
            "{told}"
        );
    }
}

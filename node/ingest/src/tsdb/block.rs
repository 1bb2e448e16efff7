//! One block: what its meta file says, what was deleted from it, and its chunks.

use super::decode::Cursor;
use super::index::ChunkPlace;
use super::window::Window;
use super::{Damage, TOMBSTONES_MAX};
use bytes::Bytes;
use hindcast_env::Disk;
use std::collections::HashMap;

const META_BYTES_MAX: usize = 1024 * 1024;
const CHUNK_BYTES_MAX: u64 = 16 * 1024 * 1024;
const CHUNKS_MAGIC: u32 = 0x85BD_40DD;
const TOMBSTONES_MAGIC: u32 = 0x0130_BA30;
/// The longest tombstone.
const TOMBSTONE_BYTES_MAX: usize = 30;
/// Chunk files that are held open.
const SEGMENTS_OPEN_MAX: usize = 16;

#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Meta {
    pub min_time: i64,
    /// The first time that does not belong to it.
    pub max_time: i64,
    #[serde(default)]
    pub stats: Stats,
    #[serde(default)]
    compaction: Compaction,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Stats {
    pub num_samples: u64,
    pub num_series: u64,
    pub num_chunks: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default)]
struct Compaction {
    hints: Vec<String>,
}

impl Meta {
    /// Made of samples that came late: it says nothing of how far the head was written out.
    pub fn is_of_late_samples(&self) -> bool {
        self.compaction.hints.iter().any(|h| h == "from-out-of-order")
    }
}

pub fn meta(disk: &dyn Disk, path: &str) -> Result<Meta, Damage> {
    let mut file = Window::open(disk, path)?;
    if file.len > META_BYTES_MAX as u64 {
        return Err(file.damage(
            0,
            format_args!("{} bytes are too many for what is known of a block", file.len),
        ));
    }
    let bytes = file.get(0, file.len as usize)?;
    serde_json::from_slice(&bytes).map_err(|e| file.damage(0, format_args!("it cannot be read: {e}")))
}

/// Times of which the samples of a series were deleted, both ends included.
#[derive(Clone, Debug, Default)]
pub struct Tombstones {
    by_series: HashMap<u64, Vec<(i64, i64)>>,
    count: usize,
}

impl Tombstones {
    /// `false`: there are too many of them.
    pub fn add(&mut self, series: u64, from_ms: i64, to_ms: i64) -> bool {
        self.count += 1;
        if self.count <= TOMBSTONES_MAX {
            self.by_series.entry(series).or_default().push((from_ms, to_ms));
        }
        self.count <= TOMBSTONES_MAX
    }

    pub fn of(&self, series: u64) -> &[(i64, i64)] {
        self.by_series.get(&series).map_or(&[], |spans| spans)
    }
}

pub fn is_deleted(spans: &[(i64, i64)], at_ms: i64) -> bool {
    spans.iter().any(|(from, to)| (*from..=*to).contains(&at_ms))
}

/// None, when there is no such file.
pub fn tombstones(disk: &dyn Disk, path: &str) -> Result<Tombstones, Damage> {
    let mut found = Tombstones::default();
    if !disk.exists(path) {
        return Ok(found);
    }
    let mut file = Window::open(disk, path)?;
    let head = file.get(0, 5)?;
    if head[..4] != TOMBSTONES_MAGIC.to_be_bytes() || head[4] != 1 {
        return Err(file.damage(0, "this is no list of deletions, or of another version"));
    }
    let Some(end) = file.len.checked_sub(4).filter(|end| *end >= 5) else {
        return Err(file.damage(0, "the file ends too early"));
    };
    if file.checksum(5, end)?.to_be_bytes() != file.get(end, 4)?[..] {
        return Err(file.damage(5, "the checksum of the deletions is wrong"));
    }
    let mut at = 5;
    while at < end {
        let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(TOMBSTONE_BYTES_MAX);
        let bytes = file.get(at, len)?;
        let mut cursor = Cursor::new(&bytes);
        let read = cursor
            .uvarint()
            .and_then(|id| Ok((id, cursor.varint()?, cursor.varint()?)));
        let (id, from, to) = read.map_err(|why| file.damage(at, why))?;
        if !found.add(id, from, to) {
            return Err(file.damage(at, format_args!("more than {TOMBSTONES_MAX} deletions")));
        }
        at += (len - cursor.rest.len()) as u64;
    }
    Ok(found)
}

/// The chunk files of a block.
pub struct Chunks<'d> {
    disk: &'d dyn Disk,
    dir: String,
    open: HashMap<u32, Result<Window, Damage>>,
    /// Heads of files that are wrong. Chunks have checksums of their own, so they are read all the same.
    pub heads: Vec<Damage>,
}

impl<'d> Chunks<'d> {
    pub fn new(disk: &'d dyn Disk, block: &str) -> Self {
        Self {
            disk,
            dir: super::walk::below(block, "chunks"),
            open: HashMap::new(),
            heads: vec![],
        }
    }

    /// The encoding of a chunk and its data, checked.
    pub fn get(&mut self, place: ChunkPlace) -> Result<(u8, Bytes), Damage> {
        // A file is known by its number, so that one that is missing is missed.
        let path = format!("{}/{:06}", self.dir, u64::from(place.segment) + 1);
        if self.open.len() >= SEGMENTS_OPEN_MAX && !self.open.contains_key(&place.segment) {
            self.open.clear();
        }
        let (disk, heads) = (self.disk, &mut self.heads);
        let file = self
            .open
            .entry(place.segment)
            .or_insert_with(|| segment(disk, &path, heads));
        let file = file.as_mut().map_err(|d| d.clone())?;
        let at = u64::from(place.offset);
        let head = file.up_to(at, 5)?;
        let mut cursor = Cursor::new(&head);
        let len = cursor.uvarint().map_err(|why| file.damage(at, why))?;
        if len > CHUNK_BYTES_MAX {
            return Err(file.damage(at, "the length of a chunk cannot be"));
        }
        let start = at + (head.len() - cursor.rest.len()) as u64;
        let bytes = file.get(start, len as usize + 5)?;
        let (covered, sum) = bytes.split_at(len as usize + 1);
        if crc32c::crc32c(covered).to_be_bytes() != sum {
            return Err(file.damage(at, "the checksum of a chunk is wrong"));
        }
        Ok((covered[0], bytes.slice(1..=len as usize)))
    }

    pub fn path(&self, place: ChunkPlace) -> String {
        format!("{}/{:06}", self.dir, u64::from(place.segment) + 1)
    }
}

fn segment(disk: &dyn Disk, path: &str, heads: &mut Vec<Damage>) -> Result<Window, Damage> {
    let mut file = Window::open(disk, path)?;
    let head = file.get(0, 8)?;
    if head[..4] != CHUNKS_MAGIC.to_be_bytes() || head[4] != 1 {
        heads.push(file.damage(0, "this does not begin as a file of chunks of version 1"));
    }
    Ok(file)
}

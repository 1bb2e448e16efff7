//! Checks one immutable file, piece by piece, against its own checksums and the manifest's.
//!
//! The caller decides when the next piece is read, so that a scrub can be slow, can end early, and shares the disk with
//! readers; nothing here waits or holds a lock. One pass compares the CRC32C of every block and the BLAKE3 of the whole.
//!
//! Invariants
//! - A file with one wrong bit has at least one damage, and one that is as it was written has none.
//! - Damages of a file ascend and number at most `DAMAGES_MAX`; a piece that cannot be read is a damage, not the end.
//! - A file in a cold store that cannot be asked is not damaged and not checked: `unchecked` says so.

use crate::container::END_MAGIC;
use crate::error::Damage;
use hindcast_env::ReadAt;
use hindcast_env::cold::{ColdError, cause_in};
use std::ops::Range;
use std::sync::Arc;

/// Bytes of one piece.
pub const PIECE_BYTES_MAX: u64 = 1 << 20;
/// Damages told of one file. What is found further on is told as one with the last.
pub const DAMAGES_MAX: usize = 32;

const CRC_BYTES: u64 = 4;
const HASH_BYTES: u64 = 32;
/// BLAKE3 of all bytes before it, and the mark of the end.
const END_BYTES: u64 = HASH_BYTES + END_MAGIC.len() as u64;

/// A file of a shard that never changes. Stays readable as long as this lives, also after a merge replaced it.
#[derive(Clone)]
pub struct ImmutableFile {
    pub(crate) path: String,
    pub(crate) reader: Arc<dyn ReadAt>,
    /// As the manifest says.
    pub(crate) bytes: u64,
    pub(crate) blake3: [u8; HASH_BYTES as usize],
    /// Where blocks lie, ascending, each ending with the CRC32C of what is before it.
    pub(crate) blocks: Vec<Range<u64>>,
    /// Of a cold file, what is kept here.
    pub(crate) table: Option<KeptTable>,
}

/// All of a cold file but its blocks.
#[derive(Clone)]
pub(crate) struct KeptTable {
    pub path: String,
    pub reader: Arc<dyn ReadAt>,
    /// Where the blocks lie in the cold file: these bytes are not here.
    pub data: Range<u64>,
}

impl KeptTable {
    /// The part of it that lies in a range of the file: where there, and where here.
    fn parts(&self, range: &Range<u64>) -> impl Iterator<Item = (Range<u64>, u64)> {
        let head = range.start..range.end.min(self.data.start);
        let table = range.start.max(self.data.end)..range.end;
        let table_at = table.start.saturating_sub(self.data.end) + self.data.start;
        let parts = [(head.clone(), head.start), (table, table_at)];
        parts.into_iter().filter(|(there, _)| there.start < there.end)
    }
}

impl ImmutableFile {
    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether it is in the cold store.
    pub fn is_cold(&self) -> bool {
        self.table.is_some()
    }

    pub fn check(self) -> FileCheck {
        FileCheck::new(self, PIECE_BYTES_MAX)
    }
}

/// A check under way: `step` until nothing is left, then `finish`.
pub struct FileCheck {
    file: ImmutableFile,
    piece_bytes: u64,
    at: u64,
    hasher: blake3::Hasher,
    /// The last `END_BYTES`.
    end: Vec<u8>,
    /// The block that the next byte lies in or before.
    block: usize,
    /// CRC32C of that block so far, and its own CRC as far as it was read.
    crc: (u32, Vec<u8>),
    /// Up to here nothing could be read lately: blocks that reach into it cannot be compared.
    unread_to: u64,
    has_gaps: bool,
    damages: Vec<Damage>,
    unchecked: Option<String>,
}

impl FileCheck {
    fn new(file: ImmutableFile, piece_bytes: u64) -> Self {
        let mut check = Self {
            piece_bytes,
            at: 0,
            hasher: blake3::Hasher::new(),
            end: vec![],
            block: 0,
            crc: (0, vec![]),
            unread_to: 0,
            has_gaps: false,
            damages: vec![],
            unchecked: None,
            file,
        };
        let (found, named) = (check.file.reader.len(), check.file.bytes);
        if found != named {
            let why = format!("the file has {found} bytes, the manifest says {named}");
            check.damaged(0..named, why);
        }
        check
    }

    /// Bytes that the next step reads; 0 when nothing is left.
    pub fn next_bytes(&self) -> u64 {
        if self.unchecked.is_some() {
            return 0;
        }
        self.piece_bytes.min(self.file.bytes - self.at)
    }

    /// Why the check ended before the file did, if so: its store could not be asked.
    pub fn unchecked(&self) -> Option<&str> {
        self.unchecked.as_deref()
    }

    pub fn file(&self) -> &ImmutableFile {
        &self.file
    }

    /// Reads the next piece.
    pub fn step(&mut self) {
        let range = self.at..self.at + self.next_bytes();
        if range.is_empty() {
            return;
        }
        // What the disk holds is asked for, not what memory remembers of it.
        self.file.reader.forget_cached(range.clone());
        match self
            .file
            .reader
            .read_at(range.start, (range.end - range.start) as usize)
        {
            Ok(bytes) => {
                self.hash(&bytes, range.start);
                self.check_blocks(&bytes, range.clone());
                self.check_table(&bytes, &range);
            }
            Err(e)
                if cause_in(&e)
                    .is_some_and(|c| matches!(c, ColdError::Unavailable { .. } | ColdError::Refused { .. })) =>
            {
                self.unchecked = Some(e.to_string());
                return;
            }
            Err(e) => {
                self.has_gaps = true;
                self.unread_to = range.end;
                self.check_blocks(&[], range.clone());
                self.damaged(range.clone(), format!("it cannot be read: {}", e.source));
            }
        }
        self.at = range.end;
    }

    /// What is wrong with the file; empty: nothing. To be called when nothing is left.
    pub fn finish(mut self) -> Vec<Damage> {
        if !self.has_gaps && self.damages.is_empty() && self.unchecked.is_none() {
            let fits = self.end.len() as u64 == END_BYTES
                && *self.hasher.finalize().as_bytes() == self.file.blake3
                && self.end[..HASH_BYTES as usize] == self.file.blake3
                && &self.end[HASH_BYTES as usize..] == END_MAGIC;
            if !fits {
                self.outside_of_blocks();
            }
        }
        self.damages
    }

    /// Compares what is kept here of a cold file with what is there.
    fn check_table(&mut self, bytes: &[u8], range: &Range<u64>) {
        let Some(table) = self.file.table.clone() else { return };
        for (there, here) in table.parts(range) {
            let len = (there.end - there.start) as usize;
            let kept = table.reader.read_at(here, len);
            let why = match kept {
                Ok(kept) if kept[..] == *overlap(bytes, range, there) => continue,
                Ok(_) => "it is not the table of its file in the cold store".to_owned(),
                Err(e) => format!("it cannot be read: {}", e.source),
            };
            self.damages.push(Damage {
                file: table.path.clone(),
                from: here,
                to: here + len as u64,
                why,
            });
            self.damages.truncate(DAMAGES_MAX);
        }
    }

    fn hash(&mut self, bytes: &[u8], from: u64) {
        let ends_at = self.file.bytes.saturating_sub(END_BYTES);
        let hashed = ends_at.saturating_sub(from).min(bytes.len() as u64) as usize;
        self.hasher.update(&bytes[..hashed]);
        self.end.extend_from_slice(&bytes[hashed..]);
    }

    /// Goes on with the blocks that `range` touches; `bytes` is empty when it could not be read.
    fn check_blocks(&mut self, bytes: &[u8], range: Range<u64>) {
        while let Some(block) = self.file.blocks.get(self.block).cloned() {
            if block.start >= range.end {
                return;
            }
            let body_end = block.end.saturating_sub(CRC_BYTES).max(block.start);
            if !bytes.is_empty() {
                let body = overlap(bytes, &range, block.start..body_end);
                self.crc.0 = crc32c::crc32c_append(self.crc.0, body);
                self.crc
                    .1
                    .extend_from_slice(overlap(bytes, &range, body_end..block.end));
            }
            if block.end > range.end {
                return;
            }
            let whole = self.unread_to <= block.start;
            if whole && self.crc.1 != self.crc.0.to_le_bytes() {
                self.damaged(block, "the checksum does not fit".to_owned());
            }
            self.block += 1;
            self.crc = (0, vec![]);
        }
    }

    /// The BLAKE3 does not fit and every block does: header, table or footer, which lie around the blocks.
    fn outside_of_blocks(&mut self) {
        let why = "the BLAKE3 of the file does not fit, and every block does";
        let first = self.file.blocks.first().map_or(0, |b| b.start);
        let last = self.file.blocks.last().map_or(0, |b| b.end);
        if first > 0 {
            self.damaged(0..first, format!("{why}: this, or what is behind the blocks"));
        }
        self.damaged(last..self.file.bytes, why.to_owned());
    }

    fn damaged(&mut self, range: Range<u64>, why: String) {
        let is_full = self.damages.len() == DAMAGES_MAX;
        match self.damages.last_mut() {
            Some(last) if (last.to == range.start && last.why == why && last.file == self.file.path) || is_full => {
                last.to = last.to.max(range.end);
            }
            _ => self.damages.push(Damage {
                file: self.file.path.clone(),
                from: range.start,
                to: range.end,
                why,
            }),
        }
    }
}

/// The part of `bytes`, which lie at `at`, that lies in `wanted`.
fn overlap<'a>(bytes: &'a [u8], at: &Range<u64>, wanted: Range<u64>) -> &'a [u8] {
    let (from, to) = (wanted.start.max(at.start), wanted.end.min(at.end));
    if from >= to {
        return &[];
    }
    &bytes[(from - at.start) as usize..(to - at.start) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use hindcast_env::{DiskError, disk::DiskResult};
    use proptest::prelude::*;

    /// A file in memory of which one range cannot be read.
    struct Memory(Vec<u8>, Range<u64>);

    impl ReadAt for Memory {
        fn read_at(&self, offset: u64, len: usize) -> DiskResult<Bytes> {
            let end = offset + len as u64;
            if offset < self.1.end && end > self.1.start {
                return Err(DiskError::new("read", "f", std::io::Error::other("bad sector")));
            }
            let eof = || DiskError::new("read", "f", std::io::ErrorKind::UnexpectedEof.into());
            self.0
                .get(offset as usize..end as usize)
                .map(Bytes::copy_from_slice)
                .ok_or_else(eof)
        }
        fn len(&self) -> u64 {
            self.0.len() as u64
        }
    }

    /// A header, blocks of these sizes, a table, an end.
    fn file(sizes: &[usize]) -> (Vec<u8>, Vec<Range<u64>>) {
        let mut bytes = b"a header".to_vec();
        let mut blocks = vec![];
        for (i, size) in sizes.iter().enumerate() {
            let start = bytes.len();
            bytes.extend((0..*size).map(|b| (b * 7 + i) as u8));
            let crc = crc32c::crc32c(&bytes[start..]);
            bytes.extend(crc.to_le_bytes());
            blocks.push(start as u64..bytes.len() as u64);
        }
        bytes.extend(b"table and footer");
        let hash = *blake3::hash(&bytes).as_bytes();
        bytes.extend(hash);
        bytes.extend(END_MAGIC);
        (bytes, blocks)
    }

    fn check(bytes: Vec<u8>, of: &[u8], blocks: &[Range<u64>], bad: Range<u64>, piece: u64) -> Vec<Damage> {
        let mut blake3 = [0; 32];
        let end = of.len() - END_MAGIC.len();
        blake3.copy_from_slice(&of[end - 32..end]);
        let file = ImmutableFile {
            path: "f".to_owned(),
            reader: Arc::new(Memory(bytes, bad)),
            bytes: of.len() as u64,
            blake3,
            blocks: blocks.to_vec(),
            table: None,
        };
        let mut check = FileCheck::new(file, piece);
        while check.next_bytes() > 0 {
            check.step();
        }
        check.finish()
    }

    proptest! {
        #[test]
        fn a_wrong_bit_is_found_where_it_lies_and_a_good_file_is_good(
            sizes in prop::collection::vec(0usize..40, 0..8),
            piece in 1u64..64,
            place in any::<prop::sample::Index>(),
            bit in 0u8..8,
        ) {
            let (good, blocks) = file(&sizes);
            prop_assert_eq!(check(good.clone(), &good, &blocks, 0..0, piece), vec![]);
            let mut wrong = good.clone();
            let at = place.index(good.len());
            wrong[at] ^= 1 << bit;
            let damages = check(wrong, &good, &blocks, 0..0, piece);
            let at = at as u64;
            prop_assert!(damages.iter().any(|d| d.from <= at && at < d.to), "{} {:?}", at, damages);
            if let Some(block) = blocks.iter().find(|b| b.contains(&at)) {
                prop_assert_eq!(damages.iter().map(|d| d.from..d.to).collect::<Vec<_>>(), vec![block.clone()]);
            }
        }

        #[test]
        fn a_bad_sector_is_one_damage_and_what_is_behind_it_is_still_compared(piece in 1u64..40) {
            let (good, blocks) = file(&[30, 30, 30]);
            let bad = blocks[0].start + 3..blocks[0].start + 5;
            prop_assert!(!check(good.clone(), &good, &blocks, bad.clone(), piece).is_empty());
            let mut wrong = good.clone();
            wrong[blocks[2].start as usize + 1] ^= 1;
            let damages = check(wrong, &good, &blocks, bad.clone(), piece);
            prop_assert!(damages.iter().any(|d| d.why.contains("bad sector") && d.from <= bad.start), "{:?}", damages);
            let last = damages.last().map(|d| (d.from..d.to, d.why.as_str()));
            let expected = (blocks[2].clone(), "the checksum does not fit");
            // A piece so large that it holds both cannot be read as a whole.
            prop_assert!(last == Some(expected) || piece > 30, "{:?}", damages);
        }
    }

    #[test]
    fn a_file_that_is_short_or_long_is_told_with_both_lengths() {
        let (good, blocks) = file(&[9]);
        let said = |bytes: Vec<u8>| check(bytes, &good, &blocks, 0..0, 16)[0].to_string();
        let len = good.len();
        let expected = |n: usize| format!("f, bytes 0..{len}: the file has {n} bytes, the manifest says {len}");
        assert_eq!(said(good[..10].to_vec()), expected(10));
        assert_eq!(said([good.clone(), vec![0]].concat()), expected(len + 1));
    }

    #[test]
    fn damages_have_a_bound_and_the_last_reaches_to_the_end_of_what_was_found() {
        let (good, blocks) = file(&[1; 100]);
        let mut wrong = good.clone();
        for b in blocks.iter().step_by(2) {
            wrong[b.start as usize] ^= 1;
        }
        let damages = check(wrong, &good, &blocks, 0..0, 1 << 20);
        assert_eq!(damages.len(), DAMAGES_MAX);
        assert_eq!(damages.last().map(|d| d.to), Some(blocks[98].end));
    }
}

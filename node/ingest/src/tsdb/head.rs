//! Chunks of the head that were written out before their block was.

use super::decode::Cursor;
use super::window::Window;
use super::{Damage, Finding};
use bytes::Bytes;
use hindcast_env::Disk;

const MAGIC: u32 = 0x0130_BC91;
const FILE_HEAD_BYTES: u64 = 8;
/// Series, two times, encoding.
const FIXED_BYTES: usize = 25;
/// The longest length.
const LEN_BYTES_MAX: usize = 5;
const CHUNK_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// How far behind a damaged chunk the next one is looked for, and how long that may be.
const SEARCHED_BYTES_MAX: u64 = 1024 * 1024;
const FOUND_BYTES_MAX: u64 = 64 * 1024;
/// Of the encoding: these samples came late.
const LATE: u8 = 0x80;

/// One chunk, checked.
#[derive(Clone, Debug)]
pub struct HeadChunk {
    pub series: u64,
    pub is_late: bool,
    pub encoding: u8,
    pub offset: u64,
    pub data: Bytes,
}

pub enum Next {
    Chunk(HeadChunk),
    Finding(Finding),
    End,
}

pub struct HeadFile {
    file: Window,
    at: u64,
    is_last: bool,
    head: Option<Damage>,
}

impl HeadFile {
    pub fn open(disk: &dyn Disk, path: &str, is_last: bool) -> Result<Self, Damage> {
        let mut file = Window::open(disk, path)?;
        let head = file.up_to(0, FILE_HEAD_BYTES as usize)?;
        let right = head.len() == 8 && head[..4] == MAGIC.to_be_bytes() && head[4] == 1;
        let fresh = is_last && file.is_zero_from(0)?;
        let damage =
            (!right && !fresh).then(|| file.damage(0, "this does not begin as a file of head chunks of version 1"));
        Ok(Self {
            file,
            at: FILE_HEAD_BYTES,
            is_last,
            head: damage,
        })
    }

    pub fn bytes_read(&self) -> u64 {
        self.at
    }

    pub fn path(&self) -> &str {
        &self.file.path
    }

    pub fn next(&mut self) -> Next {
        if let Some(damage) = self.head.take() {
            return Next::Finding(Finding::Damage(damage));
        }
        if self.at >= self.file.len {
            return Next::End;
        }
        let at = self.at;
        match self.chunk(CHUNK_BYTES_MAX) {
            Ok(Some(chunk)) => Next::Chunk(chunk),
            Ok(None) => {
                self.at = self.file.len;
                Next::End
            }
            Err((damage, end)) => {
                let lost = self.file.len - at;
                let resumed = self.next_after(at + 1);
                self.at = resumed.unwrap_or(self.file.len);
                let unwritten = |end: u64| self.file.is_zero_from(end.saturating_sub(4)).unwrap_or(false);
                // What was still being written has nothing behind it.
                if self.is_last && resumed.is_none() && end.is_none_or(unwritten) {
                    return Next::Finding(Finding::Torn {
                        file: self.file.path.clone(),
                        offset: at,
                        bytes: lost,
                    });
                }
                let damage = match resumed {
                    Some(_) => damage,
                    None => self.file.damage(
                        at,
                        format_args!("{}; the {lost} bytes from here on are not read", damage.why),
                    ),
                };
                Next::Finding(Finding::Damage(damage))
            }
        }
    }

    /// Where a chunk with a right checksum begins.
    fn next_after(&mut self, from: u64) -> Option<u64> {
        let before = self.at;
        let found = (from..self.file.len.min(from + SEARCHED_BYTES_MAX)).find(|at| {
            self.at = *at;
            let found = self.chunk(FOUND_BYTES_MAX);
            matches!(found, Ok(Some(chunk)) if (1..=3).contains(&chunk.encoding) && !chunk.data.is_empty())
        });
        self.at = before;
        found
    }

    /// `None`: only zeros are left. An error says where the chunk would end, if that is in the file.
    fn chunk(&mut self, bytes_max: u64) -> Result<Option<HeadChunk>, (Damage, Option<u64>)> {
        let at = self.at;
        let head = self
            .file
            .up_to(at, FIXED_BYTES + LEN_BYTES_MAX)
            .map_err(|d| (d, None))?;
        if head.iter().all(|b| *b == 0) && self.file.is_zero_from(at).map_err(|d| (d, None))? {
            return Ok(None);
        }
        let mut cursor = Cursor::new(&head);
        let read = (|| {
            let series = cursor.be64()?;
            cursor.take(16)?;
            Ok((series, cursor.byte()?, cursor.uvarint()?))
        })();
        let (series, encoding, len) = read.map_err(|why: super::decode::Bad| (self.file.damage(at, why), None))?;
        let covered = (head.len() - cursor.rest.len()) as u64 + len;
        let end = at + covered.min(CHUNK_BYTES_MAX * 2) + 4;
        if len > bytes_max || end > self.file.len {
            return Err((self.file.damage(at, "a chunk is longer than its file"), None));
        }
        let bytes = self.file.get(at, covered as usize + 4).map_err(|d| (d, None))?;
        if crc32c::crc32c(&bytes[..covered as usize]).to_be_bytes() != bytes[covered as usize..] {
            return Err((self.file.damage(at, "the checksum of a chunk is wrong"), Some(end)));
        }
        self.at = end;
        Ok(Some(HeadChunk {
            series,
            is_late: encoding & LATE != 0,
            encoding: encoding & !LATE,
            offset: at,
            data: bytes.slice((covered - len) as usize..covered as usize),
        }))
    }
}

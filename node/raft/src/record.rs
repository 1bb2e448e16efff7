//! Records of the Raft log as bytes. Layout: `FORMAT.md`. All numbers little-endian; records start at multiples of 8.
//!
//! A record is believed when its CRC32C holds and it names the segment that it is read from: a recycled file is
//! full of good records of other segments.

use bytes::Bytes;
use hindcast_env::fuzz::sum_fits;
use hindcast_model::GroupId;
use raft::eraftpb::{Entry, EntryType};

pub const MAGIC: [u8; 8] = *b"HCRLOG\0\x01";
/// Magic, segment id, CRC32C of both, zeros.
pub const HEADER_BYTES: usize = 64;
/// A record without payload.
pub const RECORD_BYTES_MIN: usize = 48;
pub const END_BYTES: usize = RECORD_BYTES_MIN;
/// Larger than any entry (`limits::ENTRY_BYTES_MAX`) with room for its frame.
const RECORD_BYTES_MAX: usize = 64 << 20;
/// Records start at multiples of this, with zeros between them.
pub const ALIGN_BYTES: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Entry = 1,
    HardState = 2,
    Truncate = 3,
    Reset = 4,
    Announce = 5,
    /// An entry moved here from an older segment: cuts nothing.
    Copy = 6,
    /// The last record of a full segment.
    End = 7,
    Conf = 8,
}

impl Kind {
    fn read(byte: u8) -> Option<Self> {
        use Kind::*;
        [Entry, HardState, Truncate, Reset, Announce, Copy, End, Conf]
            .into_iter()
            .find(|k| *k as u8 == byte)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Body {
    pub kind: Kind,
    pub group: GroupId,
    pub index: u64,
    pub term: u64,
}

pub fn header(segment: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..16].copy_from_slice(&segment.to_le_bytes());
    let crc = crc32c::crc32c(&header[..16]);
    header[16..20].copy_from_slice(&crc.to_le_bytes());
    header
}

pub fn header_is_of(bytes: &[u8], segment: u64) -> bool {
    bytes.get(..HEADER_BYTES) == Some(&header(segment))
}

/// Appends a record. `synced`: up to where the segment was known to be durable when this was written.
pub fn encode(out: &mut Vec<u8>, segment: u64, synced: u64, body: Body, payload: &[u8]) {
    let start = out.len();
    let len = (RECORD_BYTES_MIN - 8 + payload.len()) as u32;
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&segment.to_le_bytes());
    out.extend_from_slice(&(synced as u32).to_le_bytes());
    out.extend_from_slice(&[body.kind as u8, 0, 0, 0]);
    out.extend_from_slice(&body.group.0.to_le_bytes());
    out.extend_from_slice(&body.index.to_le_bytes());
    out.extend_from_slice(&body.term.to_le_bytes());
    out.extend_from_slice(payload);
    let crc = crc_of(&out[start..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    out.resize(out.len().next_multiple_of(ALIGN_BYTES), 0);
}

/// Over the length and everything behind the checksum.
fn crc_of(record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&record[..4]), &record[8..])
}

pub enum Scan {
    /// `len`: without the zeros behind it.
    Record {
        body: Body,
        payload: Bytes,
        len: usize,
    },
    Bad(&'static str),
}

/// Reads the record at `offset` of a segment.
pub fn scan(bytes: &Bytes, offset: usize, segment: u64) -> Scan {
    let Some(head) = bytes.get(offset..offset + RECORD_BYTES_MIN) else {
        return Scan::Bad("the file ends within a record");
    };
    let len = u32_at(head, 0) as usize + 8;
    if !(RECORD_BYTES_MIN..=RECORD_BYTES_MAX).contains(&len) {
        return Scan::Bad("there is no record where one should start");
    }
    if u64_at(head, 8) != segment {
        return Scan::Bad("the record belongs to another segment");
    }
    let Some(record) = bytes.get(offset..offset + len) else {
        return Scan::Bad("the file ends within a record");
    };
    if !sum_fits(crc_of(record) == u32_at(record, 4)) {
        return Scan::Bad("the checksum of the record does not hold");
    }
    let Some(kind) = Kind::read(record[20]) else {
        return Scan::Bad("the record is of an unknown kind");
    };
    let body = Body {
        kind,
        group: GroupId(u64_at(record, 24)),
        index: u64_at(record, 32),
        term: u64_at(record, 40),
    };
    let payload = bytes.slice(offset + RECORD_BYTES_MIN..offset + len);
    Scan::Record { body, payload, len }
}

/// What lies behind a place at which no record can be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beyond {
    /// Something that names this segment: a later write could make it reachable again.
    pub remains: bool,
    /// A whole record of this segment.
    pub record: bool,
    /// One that says the place had been synced before it was written: then its bytes were lost later.
    pub synced: bool,
}

pub fn beyond(bytes: &Bytes, offset: usize, segment: u64) -> Beyond {
    let id = segment.to_le_bytes();
    let mut found = Beyond::default();
    let mut at = offset.next_multiple_of(ALIGN_BYTES);
    while at + RECORD_BYTES_MIN <= bytes.len() {
        if bytes[at + 8..at + 16] == id {
            found.remains = true;
            if let Scan::Record { .. } = scan(bytes, at, segment) {
                found.record = true;
                found.synced |= u32_at(bytes, at + 16) as usize > offset;
            }
        }
        at += ALIGN_BYTES;
    }
    found
}

/// Kind of entry, length of its context, context, data: written into `payload`, which is cleared before.
pub fn entry_payload(entry: &Entry, payload: &mut Vec<u8>) {
    let context_len = u8::try_from(entry.context.len()).expect("a context is a proposal's id");
    payload.clear();
    payload.reserve(2 + entry.context.len() + entry.data.len());
    payload.push(entry.get_entry_type() as u8);
    payload.push(context_len);
    payload.extend_from_slice(&entry.context);
    payload.extend_from_slice(&entry.data);
}

/// Whether the entry of this payload changes the members of its group.
pub fn changes_members(payload: &Bytes) -> bool {
    matches!(payload.first(), Some(1 | 2))
}

pub fn read_entry(body: Body, payload: &Bytes) -> Option<Entry> {
    let kind = match *payload.first()? {
        0 => EntryType::EntryNormal,
        1 => EntryType::EntryConfChange,
        2 => EntryType::EntryConfChangeV2,
        _ => return None,
    };
    let context_end = 2 + usize::from(*payload.get(1)?);
    if payload.len() < context_end {
        return None;
    }
    let mut entry = Entry {
        index: body.index,
        term: body.term,
        context: payload.slice(2..context_end),
        data: payload.slice(context_end..),
        ..Entry::default()
    };
    entry.set_entry_type(kind);
    Some(entry)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

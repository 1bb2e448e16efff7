//! Batches that wait on disk for a node that answers, and how far log files were read into them.
//!
//! Pure over [`Disk`]. Batches that were collected together are one group: they and the places of the log files are written in one
//! write and synced, so that after any end each line is either in a group or read again from its file. The oldest go when there is
//! no room, because the newest say how the host fares now; they are counted.
//!
//! Layout (all numbers little-endian): `<id, 16 hex digits>.spool` begins with [`MAGIC`], then one record after the other. A head of
//! 20 bytes (length of the payload, samples and lines in it, 1 for the last record of a group, CRC-32C of the payload, CRC-32C of
//! the head so far), then the payload: length of the places, the places as JSON, the request packed by zstd. A process never
//! writes into a file of an earlier one. `cursor` says up to where batches were confirmed: CRC-32C in hex, a line feed, JSON.
//!
//! Invariants
//! - A record that ends beyond its file was being written when the process ended: its group is left out and is no damage. A head or
//!   payload that does not fit its checksum is damage: counted and named.
//! - Files take no more than `bytes_max` and the group that is being written; records are no more than [`RECORDS_MAX`].

use super::batcher::items;
use hindcast_env::disk::{parent, replace_file};
use hindcast_env::{Disk, DiskError, DiskFile};
use hindcast_proto::v1;
use prost::Message;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::io::Read;
use std::sync::Arc;

pub const MAGIC: &[u8; 8] = b"HCSPOOL1";
pub const SPOOL_BYTES_DEFAULT: u64 = 512 * 1024 * 1024;
pub const SPOOL_BYTES_MIN: u64 = 16 * 1024 * 1024;
pub const RECORDS_MAX: usize = 200_000;
const SEGMENT_BYTES_MAX: u64 = 4 * 1024 * 1024;
const HEAD_BYTES: u64 = 20;
/// A longer record is none of ours: a batch and the places of some hundred files.
const RECORD_BYTES_MAX: u32 = 32 * 1024 * 1024;
const CURSOR: &str = "cursor";
const ZSTD_LEVEL: i32 = 3;

/// How far each log file was read, by its path: inode and offset; both 0 for one that was not there.
pub type Tails = BTreeMap<String, (u64, u64)>;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Cursor {
    segment: u64,
    offset: u64,
    tails: Tails,
}

/// Names a record until it is confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    segment: u64,
    offset: u64,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    at: Ticket,
    len: u32,
    items: u32,
}

/// What a spool was found to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Of writes that had not ended.
    pub torn_bytes: u64,
    pub damaged_bytes: u64,
    /// Samples and lines in damaged records, where their heads are whole.
    pub lost: u64,
    /// Each damaged place, the first ones.
    pub damaged: Vec<String>,
}

const DAMAGED_SHOWN_MAX: usize = 20;

impl Found {
    fn damage(&mut self, path: &str, offset: u64, bytes: u64, why: &str) {
        self.damaged_bytes += bytes;
        if self.damaged.len() < DAMAGED_SHOWN_MAX {
            self.damaged
                .push(format!("{path} at byte {offset}: {why}; {bytes} bytes are left out"));
        }
    }
}

struct Writing {
    file: Box<dyn DiskFile>,
    id: u64,
    len: u64,
}

pub struct Spool {
    disk: Arc<dyn Disk>,
    bytes_max: u64,
    records: VecDeque<Record>,
    /// Files by id, with their lengths.
    segments: BTreeMap<u64, u64>,
    writing: Option<Writing>,
    next_id: u64,
    tails: Tails,
    waiting: u64,
    /// Samples and lines that had to go and were not yet asked for.
    dropped: u64,
}

fn path(id: u64) -> String {
    format!("{id:016x}.spool")
}

fn id_of(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_suffix(".spool")?, 16).ok()
}

impl Spool {
    /// Reads what an earlier process left.
    pub fn open(disk: Arc<dyn Disk>, bytes_max: u64) -> Result<(Self, Found), DiskError> {
        let mut ids: Vec<u64> = disk.list("")?.iter().filter_map(|n| id_of(n)).collect();
        ids.sort_unstable();
        let mut found = Found::default();
        let cursor = read_cursor(&*disk);
        let mut spool = Self {
            bytes_max,
            records: VecDeque::new(),
            segments: BTreeMap::new(),
            writing: None,
            next_id: ids
                .last()
                .map_or(0, |id| id + 1)
                .max(cursor.as_ref().map_or(0, |c| c.segment + 1)),
            tails: cursor.as_ref().map(|c| c.tails.clone()).unwrap_or_default(),
            waiting: 0,
            dropped: 0,
            disk,
        };
        for id in ids {
            let from = match &cursor {
                Some(c) if id < c.segment => None,
                Some(c) if id == c.segment => Some(c.offset),
                _ => Some(MAGIC.len() as u64),
            };
            match from {
                Some(from) => spool.scan(id, from, &mut found)?,
                // Confirmed, and not yet taken away.
                None => spool.disk.remove(&path(id))?,
            }
        }
        // Only now is it known what waits behind a file.
        for id in spool.segments.keys().copied().collect::<Vec<_>>() {
            // What stays because the disk is full goes the next time.
            let _ = spool.forget_if_done(id);
        }
        Ok((spool, found))
    }

    fn scan(&mut self, id: u64, from: u64, found: &mut Found) -> Result<(), DiskError> {
        let path = path(id);
        let file = self.disk.open_read(&path)?;
        let len = file.len();
        let bytes = file.read_at(0, usize::try_from(len).unwrap_or(usize::MAX))?;
        self.segments.insert(id, len);
        if bytes.len() < MAGIC.len() || bytes.iter().all(|b| *b == 0) {
            found.torn_bytes += len;
            return Ok(());
        }
        if bytes[..MAGIC.len()] != MAGIC[..] {
            found.damage(&path, 0, len, "this does not begin as a file of waiting batches");
            return Ok(());
        }
        let mut at = from;
        let mut group: Vec<Record> = vec![];
        while at < len {
            let rest = &bytes[at as usize..];
            let head = match Head::read(rest) {
                Ok(head) if HEAD_BYTES + u64::from(head.len) <= rest.len() as u64 => head,
                Err(true) => {
                    found.damage(&path, at, len - at, "the checksum of a record's head is wrong");
                    // They are whole; the places of their group may be what is damaged.
                    self.take_in(&mut group);
                    break;
                }
                // Not all of it was written.
                _ => {
                    found.torn_bytes += len - at;
                    break;
                }
            };
            let end = HEAD_BYTES + u64::from(head.len);
            let payload = &rest[HEAD_BYTES as usize..end as usize];
            if crc32c::crc32c(payload) == head.sum {
                group.push(Record {
                    at: Ticket {
                        segment: id,
                        offset: at,
                    },
                    len: head.len,
                    items: head.items,
                });
                if head.closes {
                    if let Some(tails) = tails_of(payload).filter(|t| !t.is_empty()) {
                        self.tails = tails;
                    }
                    self.take_in(&mut group);
                }
            } else {
                found.damage(&path, at, end, "the checksum of a batch is wrong");
                found.lost += u64::from(head.items);
                if head.closes {
                    // What the others of its group say is whole.
                    self.take_in(&mut group);
                }
            }
            at += end;
        }
        // A group without its end: its lines are read again from their files.
        found.torn_bytes += group.iter().map(|r| HEAD_BYTES + u64::from(r.len)).sum::<u64>();
        Ok(())
    }

    fn take_in(&mut self, group: &mut Vec<Record>) {
        self.waiting += group.iter().map(|r| u64::from(r.items)).sum::<u64>();
        self.records.extend(group.drain(..));
    }

    /// Writes batches that were collected together, and up to where log files were read for them. After an error nothing of them is
    /// here. What had to go for it, [`Spool::dropped`] says, also after an error.
    pub fn push(&mut self, group: &[v1::WriteRequest], tails: &Tails) -> Result<(), DiskError> {
        let mut bytes = vec![];
        let mut records = vec![];
        for (i, batch) in group.iter().enumerate() {
            let (samples, lines) = items(batch);
            let offset = bytes.len() as u64;
            let closes = i + 1 == group.len();
            let head = write(batch, (samples + lines) as u32, closes.then_some(tails), &mut bytes);
            records.push((offset, head));
        }
        self.make_room(bytes.len() as u64, records.len())?;
        if self
            .writing
            .as_ref()
            .is_none_or(|w| w.len + bytes.len() as u64 > SEGMENT_BYTES_MAX && w.len > 8)
        {
            self.writing = None;
            self.begin()?;
        }
        let Some(writing) = &mut self.writing else {
            return Ok(());
        };
        let (id, at) = (writing.id, writing.len);
        let written = writing.file.write_at(at, &bytes).and_then(|()| writing.file.sync());
        if let Err(e) = written {
            // An error of a sync is final for a file; what was written of the group must not be read as whole.
            let _ = writing.file.truncate(at);
            self.writing = None;
            let _ = self.forget_if_done(id);
            return Err(e);
        }
        writing.len += bytes.len() as u64;
        self.segments.insert(id, writing.len);
        let mut group: Vec<_> = records
            .into_iter()
            .map(|(offset, (len, items))| Record {
                at: Ticket {
                    segment: id,
                    offset: at + offset,
                },
                len,
                items,
            })
            .collect();
        self.take_in(&mut group);
        self.tails.clone_from(tails);
        Ok(())
    }

    /// Samples and lines that had to go since this was asked last.
    pub fn dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    fn begin(&mut self) -> Result<(), DiskError> {
        let id = self.next_id;
        let path = path(id);
        let mut file = self.disk.create(&path)?;
        self.next_id += 1;
        let written = file.write_at(0, MAGIC).and_then(|()| self.disk.sync_dir(parent(&path)));
        if let Err(e) = written {
            let _ = self.disk.remove(&path);
            return Err(e);
        }
        self.segments.insert(id, MAGIC.len() as u64);
        self.writing = Some(Writing {
            file,
            id,
            len: MAGIC.len() as u64,
        });
        Ok(())
    }

    fn make_room(&mut self, bytes: u64, records: usize) -> Result<(), DiskError> {
        while self.bytes() + bytes > self.bytes_max || self.records.len() + records > RECORDS_MAX {
            let Some((&id, _)) = self.segments.first_key_value() else {
                break;
            };
            while let Some(oldest) = self.records.front().copied().filter(|r| r.at.segment == id) {
                self.records.pop_front();
                self.waiting -= u64::from(oldest.items);
                self.dropped += u64::from(oldest.items);
            }
            if self.writing.as_ref().is_some_and(|w| w.id == id) {
                self.writing = None;
            }
            self.segments.remove(&id);
            self.disk.remove(&path(id))?;
        }
        Ok(())
    }

    /// The oldest batch. Those that cannot be read any more are left out and told.
    pub fn peek(&mut self, found: &mut Found) -> Option<(Ticket, v1::WriteRequest)> {
        while let Some(record) = self.records.front().copied() {
            match self.read(record) {
                Ok(batch) => return Some((record.at, batch)),
                Err(why) => {
                    let bytes = HEAD_BYTES + u64::from(record.len);
                    found.damage(&path(record.at.segment), record.at.offset, bytes, &why);
                    found.lost += u64::from(record.items);
                    self.confirm(record.at);
                }
            }
        }
        None
    }

    fn read(&self, record: Record) -> Result<v1::WriteRequest, String> {
        let file = self
            .disk
            .open_read(&path(record.at.segment))
            .map_err(|e| e.to_string())?;
        let len = HEAD_BYTES as usize + record.len as usize;
        let bytes = file.read_at(record.at.offset, len).map_err(|e| e.to_string())?;
        let (head, payload) = bytes.split_at(HEAD_BYTES as usize);
        let sum = Head::read(head)
            .map_err(|_| "the checksum of a record's head is wrong")?
            .sum;
        if crc32c::crc32c(payload) != sum {
            return Err("the checksum of a batch is wrong".to_owned());
        }
        request_of(payload).ok_or_else(|| "a batch cannot be unpacked".to_owned())
    }

    /// A batch needs no more waiting. `false`: it was dropped meanwhile.
    pub fn confirm(&mut self, ticket: Ticket) -> bool {
        if self.records.front().is_none_or(|r| r.at != ticket) {
            return false;
        }
        let Some(record) = self.records.pop_front() else {
            return false;
        };
        self.waiting -= u64::from(record.items);
        self.save_cursor();
        // What cannot be taken away now is when the next one is opened.
        let _ = self.forget_if_done(ticket.segment);
        true
    }

    /// Up to where everything is confirmed. A cursor that is lost or old only repeats batches, which the server knows.
    fn save_cursor(&self) {
        if let Err(e) = self.write_cursor(false) {
            tracing::debug!(error = %e, "cannot save how far batches were confirmed");
        }
    }

    fn write_cursor(&self, durable: bool) -> Result<(), DiskError> {
        let (segment, offset) = match (self.records.front(), &self.writing) {
            (Some(next), _) => (next.at.segment, next.at.offset),
            (None, Some(w)) => (w.id, w.len),
            (None, None) => (self.next_id, MAGIC.len() as u64),
        };
        let cursor = Cursor {
            segment,
            offset,
            tails: self.tails.clone(),
        };
        let body = serde_json::to_string(&cursor).expect("numbers and texts are JSON");
        let text = format!("{:08x}\n{body}", crc32c::crc32c(body.as_bytes()));
        if durable {
            return replace_file(&*self.disk, CURSOR, text.as_bytes());
        }
        let aside = format!("{CURSOR}.tmp");
        let mut file = self.disk.create(&aside)?;
        file.write_at(0, text.as_bytes())?;
        drop(file);
        self.disk.rename(&aside, CURSOR)
    }

    /// Takes a file away in which nothing waits and nothing is written.
    fn forget_if_done(&mut self, id: u64) -> Result<(), DiskError> {
        // Records are in the order of their files.
        let waits =
            self.records.front().is_some_and(|r| r.at.segment <= id) && self.records.iter().any(|r| r.at.segment == id);
        if waits || self.writing.as_ref().is_some_and(|w| w.id == id) || !self.segments.contains_key(&id) {
            return Ok(());
        }
        // The newest file with a record may be all that says how far log files were read.
        let is_newest = !self.segments.range(id + 1..).any(|(_, len)| *len > MAGIC.len() as u64);
        if let Err(e) = self.write_cursor(true)
            && is_newest
        {
            return Err(e);
        }
        self.segments.remove(&id);
        self.disk.remove(&path(id))
    }

    /// Log files were read on, and what was in them needs no waiting.
    pub fn note(&mut self, tails: Tails) {
        self.tails = tails;
        self.save_cursor();
    }

    /// Where log files are to be read on.
    pub fn tails(&self) -> &Tails {
        &self.tails
    }

    pub fn bytes(&self) -> u64 {
        self.segments.values().sum()
    }

    pub fn batches(&self) -> usize {
        self.records.len()
    }

    /// Samples and lines that wait.
    pub fn waiting(&self) -> u64 {
        self.waiting
    }
}

#[derive(Clone, Copy, Debug)]
struct Head {
    len: u32,
    items: u32,
    closes: bool,
    sum: u32,
}

impl Head {
    /// An error says whether what is there is damaged; else it is not all there.
    fn read(bytes: &[u8]) -> Result<Self, bool> {
        let Some(head) = bytes.get(..HEAD_BYTES as usize) else {
            return Err(false);
        };
        let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("4 bytes"));
        if bytes.iter().all(|b| *b == 0) {
            return Err(false);
        }
        if crc32c::crc32c(&head[..16]) != number(16) || number(0) > RECORD_BYTES_MAX {
            return Err(true);
        }
        Ok(Self {
            len: number(0),
            items: number(4),
            closes: number(8) == 1,
            sum: number(12),
        })
    }
}

/// The length of the payload and what it holds.
fn write(batch: &v1::WriteRequest, items: u32, closes: Option<&Tails>, out: &mut Vec<u8>) -> (u32, u32) {
    let tails = closes.map_or_else(Vec::new, |t| serde_json::to_vec(t).expect("numbers and texts are JSON"));
    let packed = zstd::encode_all(batch.encode_to_vec().as_slice(), ZSTD_LEVEL).expect("memory can be written to");
    let mut payload = (tails.len() as u32).to_le_bytes().to_vec();
    payload.extend(tails);
    payload.extend(packed);
    let at = out.len();
    let len = payload.len() as u32;
    for number in [len, items, u32::from(closes.is_some()), crc32c::crc32c(&payload)] {
        out.extend(number.to_le_bytes());
    }
    out.extend(crc32c::crc32c(&out[at..]).to_le_bytes());
    out.extend(payload);
    (len, items)
}

fn parts(payload: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = payload.split_at_checked(4)?;
    rest.split_at_checked(u32::from_le_bytes(len.try_into().ok()?) as usize)
}

fn tails_of(payload: &[u8]) -> Option<Tails> {
    serde_json::from_slice(parts(payload)?.0).ok()
}

fn request_of(payload: &[u8]) -> Option<v1::WriteRequest> {
    let packed = parts(payload)?.1;
    let mut bytes = vec![];
    let decoder = zstd::Decoder::with_buffer(packed).ok()?;
    decoder
        .take(u64::from(RECORD_BYTES_MAX) + 1)
        .read_to_end(&mut bytes)
        .ok()?;
    v1::WriteRequest::decode(bytes.as_slice()).ok()
}

fn read_cursor(disk: &dyn Disk) -> Option<Cursor> {
    let bytes = disk.read(CURSOR).ok()?;
    let text = std::str::from_utf8(&bytes).ok()?;
    let (sum, body) = text.split_once('\n')?;
    let right = u32::from_str_radix(sum, 16).ok()? == crc32c::crc32c(body.as_bytes());
    serde_json::from_str(body).ok().filter(|_| right)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::batcher::{Batcher, Entry};
    use expect_test::expect;
    use hindcast_env::{Rng, SeededRng, SimDisk};
    use hindcast_model::Labels;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// A request with one line, known by its sequence.
    fn batch(seq: u64, bytes: usize) -> v1::WriteRequest {
        let mut batcher = Batcher::behind(seq - 1, "w", &[]);
        let mut rng = SeededRng::new(seq);
        let entry = Entry {
            at_ns: 1,
            // Text that does not pack.
            line: (0..bytes).map(|_| char::from(33 + rng.below(90) as u8)).collect(),
            metadata: vec![],
        };
        let _ = batcher.line(&Labels::from_pairs([("job", "x")]), entry);
        batcher.finish().unwrap()
    }

    fn tails(offset: u64) -> Tails {
        [("log".to_owned(), (7, offset))].into()
    }

    fn open(disk: &SimDisk) -> (Spool, Found) {
        Spool::open(Arc::new(disk.clone()), SPOOL_BYTES_MIN).unwrap()
    }

    fn drain(spool: &mut Spool) -> Vec<u64> {
        let (mut seqs, mut found) = (vec![], Found::default());
        while let Some((ticket, batch)) = spool.peek(&mut found) {
            seqs.push(batch.seq);
            assert!(spool.confirm(ticket));
        }
        assert_eq!(found, Found::default());
        seqs
    }

    #[test]
    fn what_is_confirmed_is_gone_and_the_rest_waits_for_the_next_process() {
        let disk = SimDisk::new();
        let (mut spool, _) = open(&disk);
        spool.push(&[batch(1, 10), batch(2, 10)], &tails(5)).unwrap();
        spool.push(&[batch(3, 10)], &tails(9)).unwrap();
        let (ticket, first) = spool.peek(&mut Found::default()).unwrap();
        assert_eq!((first, spool.waiting()), (batch(1, 10), 3));
        assert!(spool.confirm(ticket) && !spool.confirm(ticket));
        let (mut next, found) = open(&disk);
        assert_eq!((found, next.waiting(), next.tails()), (Found::default(), 2, &tails(9)));
        next.push(&[batch(4, 10)], &tails(12)).unwrap();
        assert_eq!(drain(&mut next), [2, 3, 4]);
        // Only the file that is written into is left, and the places are known all the same.
        let names: Vec<_> = disk.files().into_iter().map(|f| f.0).collect();
        assert_eq!(names, ["0000000000000001.spool", "cursor"]);
        assert_eq!((open(&disk).0.waiting(), open(&disk).0.tails().clone()), (0, tails(12)));
    }

    #[test]
    fn a_full_spool_drops_the_oldest_files_and_counts_what_was_in_them() {
        let disk = SimDisk::new();
        let (mut spool, _) = open(&disk);
        let mut dropped = 0;
        for seq in 1..=100 {
            spool.push(&[batch(seq, 250_000)], &tails(seq)).unwrap();
            dropped += spool.dropped();
            assert!(spool.bytes() <= SPOOL_BYTES_MIN, "{}", spool.bytes());
        }
        let left = drain(&mut spool);
        assert!(dropped > 10, "{dropped}");
        assert_eq!(left, (dropped + 1..=100).collect::<Vec<_>>());
    }

    #[test]
    fn what_had_to_go_for_a_write_that_then_failed_is_counted_too() {
        let disk = SimDisk::new();
        let (mut spool, _) = open(&disk);
        for seq in 1..=100 {
            spool.push(&[batch(seq, 250_000)], &tails(seq)).unwrap();
        }
        let dropped = spool.dropped();
        let before = spool.batches();
        disk.set_full(true);
        // More than there is room for, so that files have to go first.
        let group: Vec<_> = (101..=130).map(|seq| batch(seq, 250_000)).collect();
        assert!(spool.push(&group, &tails(130)).is_err());
        let gone = spool.dropped();
        assert!(gone > 0 && spool.dropped() == 0, "{gone}");
        assert_eq!(before - spool.batches(), gone as usize);
        disk.set_full(false);
        disk.heal();
        assert_eq!(drain(&mut spool), (dropped + gone + 1..=100).collect::<Vec<_>>());
    }

    #[test]
    fn records_have_a_bound_of_their_own() {
        let disk = SimDisk::new();
        let (mut spool, _) = open(&disk);
        let record = Record {
            at: Ticket { segment: 0, offset: 8 },
            len: 1,
            items: 1,
        };
        spool.push(&[batch(1, 10)], &tails(1)).unwrap();
        while spool.records.len() < RECORDS_MAX {
            spool.take_in(&mut vec![record]);
        }
        spool.push(&[batch(2, 10)], &tails(2)).unwrap();
        assert_eq!(spool.dropped(), RECORDS_MAX as u64);
        assert_eq!(drain(&mut spool), [2]);
    }

    #[test]
    fn a_torn_tail_is_told_apart_from_damage() {
        let disk = SimDisk::new();
        let (mut spool, _) = open(&disk);
        spool.push(&[batch(1, 50)], &tails(5)).unwrap();
        let whole = disk.files()[0].1;
        spool.push(&[batch(2, 50), batch(3, 50)], &tails(9)).unwrap();
        let all = disk.files()[0].1;
        for len in whole + 1..all {
            let disk = disk.fork();
            disk.cut("0000000000000000.spool", len).unwrap();
            let (mut next, found) = open(&disk);
            assert_eq!(
                (found.torn_bytes, found.damaged_bytes),
                ((len - whole) as u64, 0),
                "{len}"
            );
            assert_eq!((drain(&mut next), next.tails()), (vec![1], &tails(5)));
        }
        disk.flip_bit("0000000000000000.spool", whole + 2, 3).unwrap();
        let (mut next, found) = open(&disk);
        expect![[r#"
            [
                "0000000000000000.spool at byte 134: the checksum of a record's head is wrong; 239 bytes are left out",
            ]
        "#]]
        .assert_debug_eq(&found.damaged);
        assert_eq!((found.torn_bytes, drain(&mut next)), (0, vec![1]));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Push(usize),
        Confirm,
        /// The process is killed, and another one begins.
        Kill,
        PowerCut(u64),
        Full(bool),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (1usize..4).prop_map(Op::Push),
            4 => Just(Op::Confirm),
            1 => Just(Op::Kill),
            1 => any::<u64>().prop_map(Op::PowerCut),
            1 => any::<bool>().prop_map(Op::Full),
        ]
    }

    proptest! {
        #[test]
        fn no_end_of_a_process_loses_or_makes_up_a_batch(ops in proptest::collection::vec(op(), 1..60)) {
            let disk = SimDisk::new();
            let (mut spool, _) = open(&disk);
            let (mut seq, mut waiting, mut read) = (0, BTreeSet::new(), 0);
            let mut cut = false;
            for op in ops {
                match op {
                    Op::Push(n) => {
                        let group: Vec<_> = (0..n).map(|i| batch(seq + 1 + i as u64, 20)).collect();
                        seq += n as u64;
                        if spool.push(&group, &tails(seq)).is_ok() {
                            waiting.extend(group.iter().map(|b| b.seq));
                            read = seq;
                        }
                    }
                    Op::Confirm => if let Some((ticket, batch)) = spool.peek(&mut Found::default()) {
                        // After a power cut, or on a full disk, what was confirmed may come once more, under its old sequence.
                        prop_assert!(waiting.remove(&batch.seq) || cut);
                        spool.confirm(ticket);
                    },
                    Op::Full(full) => {
                        disk.set_full(full);
                        if !full {
                            disk.heal();
                        }
                        // Nor can it be written down then what was confirmed.
                        cut |= full;
                    }
                    Op::Kill => spool = open(&disk).0,
                    Op::PowerCut(seed) => {
                        disk.set_full(false);
                        disk.heal();
                        disk.crash(&mut SeededRng::new(seed));
                        cut = true;
                        spool = open(&disk).0;
                    }
                }
                let here: BTreeSet<u64> = spool.records.iter().map(|r| spool.read(*r).unwrap().seq).collect();
                prop_assert!(here.is_superset(&waiting), "{here:?} {waiting:?}");
                prop_assert!(cut || here == waiting);
                prop_assert_eq!(spool.tails().get("log").map_or(0, |t| t.1), read);
            }
        }

        #[test]
        fn a_flipped_bit_loses_what_it_says_and_changes_nothing(at in any::<proptest::sample::Index>(), bit in 0u8..8) {
            let disk = SimDisk::new();
            let (mut spool, _) = open(&disk);
            let batches: Vec<_> = (1..6).map(|seq| batch(seq, 30)).collect();
            for b in &batches {
                spool.push(std::slice::from_ref(b), &tails(b.seq)).unwrap();
            }
            let (path, len) = disk.files()[0].clone();
            disk.flip_bit(&path, at.index(len), bit).unwrap();
            let (mut next, found) = open(&disk);
            let mut seen = 0;
            while let Some((ticket, batch)) = next.peek(&mut Found::default()) {
                prop_assert!(batches.contains(&batch));
                next.confirm(ticket);
                seen += 1;
            }
            prop_assert!(seen == 5 || found.damaged_bytes > 0 && found.torn_bytes == 0, "{seen} {found:?}");
        }
    }
}

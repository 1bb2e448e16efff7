//! Records as brokers keep them: batches of format 2, compressed or not.
//!
//! A batch that cannot be read is passed over as a whole and said, with the offsets that it takes: it is as unreadable the next time.
//! A batch that breaks off at the end of what was fetched is not there yet. Records of transactions that were undone, and the marks
//! that end transactions, are no records.

use crate::wire::{Reader, WireError};
use bytes::Bytes;
use hindcast_env::fuzz::sum_fits;
use hindcast_model::TimestampNs;
use std::collections::BTreeSet;
use std::io::Read;

/// What one batch may come to when it is decompressed.
pub const DECODED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// No further batch is decompressed once so much is there: the rest is asked for again.
pub const READ_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A key that is kept with its line.
pub const KEY_BYTES_MAX: usize = 256;
/// Of a batch before its length counts: offset and length.
const PREFIX: usize = 12;
/// Of a batch up to its records.
const HEAD: usize = 61;
/// What a record takes at least.
const RECORD_BYTES_MIN: usize = 7;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub offset: i64,
    /// As its producer or its broker stamped it; `None`: it did not.
    pub at: Option<TimestampNs>,
    /// As text, where it is text of at most [`KEY_BYTES_MAX`].
    pub key: Option<String>,
    /// `None`: the record says that its key is gone.
    pub value: Option<Bytes>,
}

/// Why offsets were passed over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error(
        "they are in the format from before Kafka 0.11; let the broker write them anew (log.message.format.version), or take them from a new topic"
    )]
    OldFormat,
    #[error("format {0} of records is not known")]
    Format(i8),
    #[error("their checksum is wrong: they are damaged on the broker or on their way")]
    Checksum,
    #[error("compression {0} is not known")]
    Compression(i16),
    #[error("their compression cannot be undone: {0}")]
    Compressed(String),
    #[error(
        "decompressed they take more than {DECODED_BYTES_MAX} bytes; lower batch.size or max.message.bytes of the producer"
    )]
    TooLarge,
    #[error("they cannot be read: {0}")]
    Malformed(#[from] WireError),
}

impl Unreadable {
    /// For counters.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::OldFormat | Self::Format(_) => "format",
            Self::Checksum => "checksum",
            Self::Compression(_) | Self::Compressed(_) => "compression",
            Self::TooLarge => "too_large",
            Self::Malformed(_) => "malformed",
        }
    }
}

/// Offsets that were passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedOver {
    pub from: i64,
    /// Behind the last one.
    pub until: i64,
    /// As the batch says it; at least one.
    pub records: u64,
    pub why: Unreadable,
}

/// What was read of what a broker sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    pub records: Vec<Record>,
    pub passed_over: Vec<PassedOver>,
    /// From where to ask next: behind everything that was read or passed over.
    pub next: i64,
}

impl Fetched {
    fn pass(&mut self, first: i64, until: i64, records: u64, why: Unreadable) {
        if until > self.next {
            self.passed_over.push(PassedOver {
                from: self.next.max(first),
                until,
                records: records.max(1),
                why,
            });
            self.next = until;
        }
    }
}

struct Head {
    first: i64,
    last: i64,
    attributes: i16,
    time_first: i64,
    time_max: i64,
    producer: i64,
    count: usize,
}

impl Head {
    fn until(&self) -> i64 {
        self.last + 1
    }

    const fn is_control(&self) -> bool {
        self.attributes & 0x20 != 0
    }

    const fn is_transactional(&self) -> bool {
        self.attributes & 0x10 != 0
    }
}

/// Reads what was fetched from `from` on. `aborted`: producers and first offsets of transactions that were undone.
pub fn read(bytes: &Bytes, from: i64, aborted: &[(i64, i64)]) -> Fetched {
    let mut out = Fetched {
        next: from,
        ..Fetched::default()
    };
    let mut aborted = Aborted::new(aborted);
    let mut rest = bytes.clone();
    let mut decoded = 0;
    while rest.len() > PREFIX + 5 && decoded < READ_BYTES_MAX {
        let mut r = Reader::new(rest.clone());
        // There are as many bytes.
        let (Ok(first), Ok(len)) = (r.i64("an offset"), r.i32("a length")) else {
            break;
        };
        let Ok(len) = usize::try_from(len) else { break };
        let whole = PREFIX.saturating_add(len);
        if whole > rest.len() {
            break;
        }
        let batch = rest.split_to(whole);
        let behind = rest.get(..8).and_then(|b| b.try_into().ok()).map(i64::from_be_bytes);
        decoded += one(batch, (first, behind), from, &mut aborted, &mut out);
    }
    out
}

/// Reads one batch, which begins at `first`; `next`: where the one behind it begins. How many bytes it came to.
fn one(batch: Bytes, (first, next): (i64, Option<i64>), from: i64, aborted: &mut Aborted, out: &mut Fetched) -> usize {
    // In the old formats the offset is that of the last record.
    let behind = first.saturating_add(1);
    let mut pass = |until: i64, records: usize, why: Unreadable| {
        out.pass(first, until, records as u64, why);
        batch.len()
    };
    let Some(magic) = batch.get(PREFIX + 4) else {
        return pass(behind, 1, WireError::Ends("the head of a batch").into());
    };
    match *magic as i8 {
        2 => {}
        0 | 1 => return pass(behind, 1, Unreadable::OldFormat),
        other => return pass(behind, 1, Unreadable::Format(other)),
    }
    let head = match head(&batch, first) {
        Ok(head) => head,
        Err(why) => return pass(behind, 1, why.into()),
    };
    let (until, count) = (head.until(), head.count);
    let expected = u32::from_be_bytes([batch[17], batch[18], batch[19], batch[20]]);
    if !sum_fits(crc32c::crc32c(&batch[PREFIX + 9..]) == expected) {
        // What its head says may be what is wrong: no good batch is passed over because of it.
        let until = next.filter(|n| *n > first).map_or(until, |n| until.min(n));
        let most = usize::try_from(until.saturating_sub(first)).unwrap_or(usize::MAX);
        return pass(until, count.min(most), Unreadable::Checksum);
    }
    let is_mark = head.is_control();
    if is_mark {
        aborted.mark(&head);
    }
    if is_mark || head.is_transactional() && aborted.has(&head) {
        out.next = out.next.max(until);
        return batch.len();
    }
    let body = match decompressed(head.attributes & 7, batch.slice(HEAD..)) {
        Ok(body) => body,
        Err(why) => return pass(until, count, why),
    };
    let bytes = body.len();
    match records(&head, body) {
        Err(why) => _ = pass(until, count, why.into()),
        Ok(records) => {
            // A broker sends whole batches: the first may begin before what was asked for.
            let first_wanted = from.max(out.next);
            out.records
                .extend(records.into_iter().filter(|r| r.offset >= first_wanted));
            out.next = out.next.max(until);
        }
    }
    bytes
}

fn head(batch: &Bytes, first: i64) -> Result<Head, WireError> {
    if batch.len() < HEAD {
        return Err(WireError::Ends("the head of a batch"));
    }
    let mut r = Reader::new(batch.slice(PREFIX + 9..));
    let attributes = r.i16("attributes")?;
    let delta = r.i32("the last offset")?;
    let (time_first, time_max) = (r.i64("a time")?, r.i64("a time")?);
    let producer = r.i64("a producer")?;
    r.i16("an epoch")?;
    r.i32("a sequence")?;
    let count = usize::try_from(r.i32("a count")?).map_err(|_| WireError::Length("the records"))?;
    // An offset behind the last one is an offset, too.
    let last = first.checked_add(i64::from(delta)).filter(|last| *last < i64::MAX);
    let Some(last) = last.filter(|_| first >= 0 && delta >= 0) else {
        return Err(WireError::Length("the offsets"));
    };
    Ok(Head {
        first,
        last,
        attributes,
        time_first,
        time_max,
        producer,
        count,
    })
}

fn records(head: &Head, body: Bytes) -> Result<Vec<Record>, WireError> {
    if head.count.saturating_mul(RECORD_BYTES_MIN) > body.len() {
        return Err(WireError::Length("the records"));
    }
    let mut r = Reader::new(body);
    let mut out = Vec::with_capacity(head.count);
    let mut behind = head.first;
    for _ in 0..head.count {
        let len = usize::try_from(r.varint("a record")?).map_err(|_| WireError::Length("a record"))?;
        let record = record(head, &mut Reader::new(r.take(len, "a record")?))?;
        // Offsets go up, and stay within the batch: else what is asked for next would be another thing than what was read.
        if record.offset < behind || record.offset > head.last {
            return Err(WireError::Length("an offset"));
        }
        behind = record.offset + 1;
        out.push(record);
    }
    Ok(out)
}

fn record(head: &Head, r: &mut Reader) -> Result<Record, WireError> {
    r.i8("attributes")?;
    let time_delta = r.varint("a time")?;
    let offset = head.first.saturating_add(r.varint("an offset")?);
    let mut blob = |what| -> Result<Option<Bytes>, WireError> {
        match r.varint(what)? {
            -1 => Ok(None),
            len => r
                .take(usize::try_from(len).map_err(|_| WireError::Length(what))?, what)
                .map(Some),
        }
    };
    let (key, value) = (blob("a key")?, blob("a value")?);
    let is_stamped_by_broker = head.attributes & 8 != 0;
    let ms = match is_stamped_by_broker {
        true => head.time_max,
        false => head.time_first.saturating_add(time_delta),
    };
    let key = key.filter(|k| !k.is_empty() && k.len() <= KEY_BYTES_MAX);
    Ok(Record {
        offset,
        at: (ms >= 0).then(|| TimestampNs(ms.saturating_mul(1_000_000))),
        key: key.and_then(|k| std::str::from_utf8(&k).map(str::to_owned).ok()),
        // A part of the answer would keep all of it, with what came for other partitions.
        value: value.map(|v| Bytes::copy_from_slice(&v)),
    })
}

/// Which producers' records are to be left out.
struct Aborted {
    /// By first offset.
    waiting: Vec<(i64, i64)>,
    active: BTreeSet<i64>,
}

impl Aborted {
    fn new(list: &[(i64, i64)]) -> Self {
        let mut waiting: Vec<_> = list.iter().map(|(producer, first)| (*first, *producer)).collect();
        // The next one is at the end.
        waiting.sort_unstable_by(|a, b| b.cmp(a));
        Self {
            waiting,
            active: BTreeSet::new(),
        }
    }

    fn has(&mut self, head: &Head) -> bool {
        while let Some((first, producer)) = self.waiting.last().copied()
            && first <= head.last
        {
            self.active.insert(producer);
            self.waiting.pop();
        }
        self.active.contains(&head.producer)
    }

    /// The end of a transaction.
    fn mark(&mut self, head: &Head) {
        self.has(head);
        // Its records after it are of its next transaction, whichever way this one ended.
        self.active.remove(&head.producer);
    }
}

fn decompressed(kind: i16, body: Bytes) -> Result<Bytes, Unreadable> {
    let failed = |e: &dyn std::fmt::Display| Unreadable::Compressed(e.to_string());
    match kind {
        0 => Ok(body),
        1 => counted(flate2::read::MultiGzDecoder::new(&body[..])),
        2 => snappy(&body),
        3 => counted(lz4_flex::frame::FrameDecoder::new(&body[..])),
        4 => counted(zstd::Decoder::with_buffer(&body[..]).map_err(|e| failed(&e))?),
        other => Err(Unreadable::Compression(other)),
    }
}

fn counted(reader: impl Read) -> Result<Bytes, Unreadable> {
    let mut out = vec![];
    let mut reader = reader.take(DECODED_BYTES_MAX as u64 + 1);
    reader
        .read_to_end(&mut out)
        .map_err(|e| Unreadable::Compressed(e.to_string()))?;
    match out.len() > DECODED_BYTES_MAX {
        true => Err(Unreadable::TooLarge),
        false => Ok(out.into()),
    }
}

/// How Java's snappy begins: pieces follow, each with its length.
const XERIAL: &[u8] = b"\x82SNAPPY\0";
const XERIAL_HEAD: usize = 16;

fn snappy(body: &Bytes) -> Result<Bytes, Unreadable> {
    if !body.starts_with(XERIAL) {
        let mut out = vec![];
        snappy_piece(body, &mut out)?;
        return Ok(out.into());
    }
    let mut r = Reader::new(body.slice(XERIAL_HEAD.min(body.len())..));
    let mut out = vec![];
    while !r.rest().is_empty() {
        snappy_piece(&r.blob("a piece")?, &mut out)?;
    }
    Ok(out.into())
}

fn snappy_piece(piece: &[u8], out: &mut Vec<u8>) -> Result<(), Unreadable> {
    let failed = |e: snap::Error| Unreadable::Compressed(e.to_string());
    let (len, before) = (snap::raw::decompress_len(piece).map_err(failed)?, out.len());
    if before + len > DECODED_BYTES_MAX {
        return Err(Unreadable::TooLarge);
    }
    out.resize(before + len, 0);
    let decoded = snap::raw::Decoder::new().decompress(piece, &mut out[before..]);
    out.truncate(before + decoded.map_err(failed)?);
    Ok(())
}

/// Batches as producers write them, for the fuzzer.
pub(crate) fn samples() -> Vec<Vec<u8>> {
    let records: Vec<Vec<u8>> = (0..3)
        .map(|i| encode::record(i, i, Some(b"key"), Some(b"a value")))
        .collect();
    let plain = encode::Batch::new(4, records.clone());
    let of = |attributes: i16| encode::Batch {
        attributes,
        ..plain.clone()
    };
    let kinds = (0..5).map(|kind| of(kind).bytes());
    kinds
        .chain([of(0x10).bytes(), of(0x30).bytes(), of(8).bytes()])
        .collect()
}

/// How producers write batches: for tests, and for what stands in for a broker in them.
#[doc(hidden)]
pub mod encode {
    use super::HEAD;
    use crate::wire::Put;
    use bytes::BufMut;
    use std::io::Write;

    pub fn record(offset_delta: i64, time_delta: i64, key: Option<&[u8]>, value: Option<&[u8]>) -> Vec<u8> {
        let mut body = vec![0];
        body.put_varint(time_delta);
        body.put_varint(offset_delta);
        for blob in [key, value] {
            body.put_varint(blob.map_or(-1, |b| b.len() as i64));
            body.extend_from_slice(blob.unwrap_or_default());
        }
        body.put_varint(0);
        let mut out = vec![];
        out.put_varint(body.len() as i64);
        out.extend(body);
        out
    }

    #[derive(Clone, Debug)]
    pub struct Batch {
        pub first: i64,
        pub last_delta: i32,
        /// The lowest three bits are the compression.
        pub attributes: i16,
        pub time_ms: i64,
        pub producer: i64,
        pub records: Vec<Vec<u8>>,
    }

    impl Batch {
        pub fn new(first: i64, records: Vec<Vec<u8>>) -> Self {
            Self {
                first,
                last_delta: records.len() as i32 - 1,
                attributes: 0,
                time_ms: 1_700_000_000_000,
                producer: -1,
                records,
            }
        }

        pub fn bytes(&self) -> Vec<u8> {
            let body = compressed(self.attributes & 7, &self.records.concat());
            let mut out = vec![];
            out.put_i64(self.first);
            out.put_i32((HEAD - super::PREFIX + body.len()) as i32);
            out.put_i32(-1);
            out.put_i8(2);
            out.put_u32(0);
            out.put_i16(self.attributes);
            out.put_i32(self.last_delta);
            out.put_i64(self.time_ms);
            out.put_i64(self.time_ms + 1_000);
            out.put_i64(self.producer);
            out.put_i16(-1);
            out.put_i32(-1);
            out.put_i32(self.records.len() as i32);
            out.extend(body);
            let sum = crc32c::crc32c(&out[21..]);
            out[17..21].copy_from_slice(&sum.to_be_bytes());
            out
        }
    }

    /// # Panics
    /// Never: memory takes everything.
    pub fn compressed(kind: i16, body: &[u8]) -> Vec<u8> {
        match kind {
            1 => {
                let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
                gzip.write_all(body).expect("memory takes everything");
                gzip.finish().expect("memory takes everything")
            }
            2 => snap::raw::Encoder::new()
                .compress_vec(body)
                .expect("memory takes everything"),
            3 => {
                let mut lz4 = lz4_flex::frame::FrameEncoder::new(vec![]);
                lz4.write_all(body).expect("memory takes everything");
                lz4.finish().expect("memory takes everything")
            }
            4 => zstd::encode_all(body, 1).expect("memory takes everything"),
            _ => body.to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::encode::{Batch, record};
    use super::*;
    use proptest::prelude::*;

    fn values(read: &Fetched) -> Vec<(i64, &str)> {
        read.records
            .iter()
            .map(|r| {
                (
                    r.offset,
                    r.value.as_ref().map_or("-", |v| std::str::from_utf8(v).unwrap()),
                )
            })
            .collect()
    }

    fn three() -> Vec<Vec<u8>> {
        let one = |i: i64, v: &str| record(i, i * 10, Some(b"k"), Some(v.as_bytes()));
        vec![one(0, "a"), one(1, "b"), one(2, "c")]
    }

    fn of(first: i64, attributes: i16, producer: i64) -> Vec<u8> {
        let batch = Batch {
            attributes,
            producer,
            ..Batch::new(first, three())
        };
        batch.bytes()
    }

    #[test]
    fn each_compression_is_undone_and_records_before_the_first_wanted_are_left_out() {
        for kind in 0..5 {
            let read = read(&of(10, kind, -1).into(), 11, &[]);
            assert_eq!(values(&read), [(11, "b"), (12, "c")], "{kind}");
            assert_eq!((read.next, read.passed_over.len()), (13, 0));
            assert_eq!(read.records[0].at, Some(TimestampNs::from_ms(1_700_000_000_010)));
            assert_eq!(read.records[0].key.as_deref(), Some("k"));
        }
        let stamped = read(&of(0, 8, -1).into(), 0, &[]);
        assert_eq!(stamped.records[0].at, Some(TimestampNs::from_ms(1_700_000_001_000)));
        // Java's snappy comes in pieces.
        let body = three().concat();
        let mut pieces = [XERIAL, &[0, 0, 0, 1, 0, 0, 0, 1]].concat();
        for piece in body.chunks(7) {
            let packed = encode::compressed(2, piece);
            pieces.extend((packed.len() as u32).to_be_bytes());
            pieces.extend(packed);
        }
        assert_eq!(snappy(&pieces.into()).unwrap(), body);
    }

    #[test]
    fn a_batch_that_breaks_off_is_not_there_yet() {
        let both = [of(0, 0, -1), of(3, 4, -1)].concat();
        for len in 0..both.len() {
            let read = read(&Bytes::copy_from_slice(&both[..len]), 0, &[]);
            assert!(read.passed_over.is_empty(), "{len}");
            assert_eq!(read.next, read.records.len() as i64, "{len}");
        }
        assert_eq!(read(&both.into(), 0, &[]).next, 6);
    }

    #[test]
    fn what_cannot_be_read_is_passed_over_with_its_offsets_and_the_rest_is_read() {
        let mut damaged = of(0, 0, -1);
        let end = damaged.len() - 1;
        damaged[end] ^= 1;
        let mut old = of(3, 0, -1);
        old[16] = 1;
        let mut future = of(4, 0, -1);
        future[16] = 9;
        let unknown = of(5, 7, -1);
        // Found by the fuzzer: a batch that says it ends before it says what it is.
        let mut short = 14i64.to_be_bytes().to_vec();
        short.extend([0, 0, 0, 2, 9, 9]);
        let bomb = {
            let body = vec![0; DECODED_BYTES_MAX + 1];
            let mut batch = Batch::new(8, vec![body]);
            (batch.attributes, batch.last_delta) = (4, 1);
            batch.bytes()
        };
        let lies = Batch {
            last_delta: 0,
            ..Batch::new(10, three())
        };
        let all = [
            damaged,
            old,
            future,
            unknown,
            bomb,
            lies.bytes(),
            of(11, 0, -1),
            short,
            of(15, 0, -1),
        ]
        .concat();
        let read = read(&all.into(), 1, &[]);
        assert_eq!(
            values(&read),
            [(11, "a"), (12, "b"), (13, "c"), (15, "a"), (16, "b"), (17, "c")]
        );
        let passed: Vec<String> = read
            .passed_over
            .iter()
            .map(|p| format!("{}..{} {} {}", p.from, p.until, p.records, p.why.reason()))
            .collect();
        expect_test::expect![[r#"
            [
                "1..3 3 checksum",
                "3..4 1 format",
                "4..5 1 format",
                "5..8 3 compression",
                "8..10 1 too_large",
                "10..11 3 malformed",
                "14..15 1 malformed",
            ]
        "#]]
        .assert_debug_eq(&passed);
        assert_eq!(read.next, 18);
    }

    #[test]
    fn records_of_transactions_that_were_undone_are_none() {
        let (transaction, mark) = (0x10, 0x30);
        let all = [
            of(0, transaction, 7),
            of(3, transaction, 8),
            of(6, 0, -1),
            of(9, mark, 7),
            // The next transaction of the same producer ended well.
            of(12, transaction, 7),
            of(15, mark, 8),
        ];
        let read = read(&all.concat().into(), 0, &[(7, 0)]);
        let firsts: Vec<i64> = read.records.iter().map(|r| r.offset).step_by(3).collect();
        assert_eq!((firsts, read.next), (vec![3, 6, 12], 18));
    }

    #[test]
    fn a_key_that_is_long_or_no_text_is_left_out() {
        let (fits, long) = ([b'k'; KEY_BYTES_MAX], [b'k'; KEY_BYTES_MAX + 1]);
        let keys: [&[u8]; 4] = [&fits, &long, b"\xff", b""];
        let records = keys
            .iter()
            .enumerate()
            .map(|(i, k)| record(i as i64, 0, Some(k), Some(b"v")));
        let read = read(&Batch::new(0, records.collect()).bytes().into(), 0, &[]);
        let kept: Vec<_> = read.records.iter().map(|r| r.key.as_ref().map(String::len)).collect();
        assert_eq!(kept, [Some(KEY_BYTES_MAX), None, None, None]);
    }

    #[test]
    fn of_batches_that_come_to_much_only_so_many_are_read_at_once() {
        let big = vec![b'x'; READ_BYTES_MAX / 2];
        let of = |first| {
            let mut batch = Batch::new(first, vec![record(0, 0, None, Some(&big))]);
            batch.attributes = 4;
            batch.bytes()
        };
        let all: Vec<u8> = (0..5).flat_map(of).collect();
        let read = read(&all.into(), 0, &[]);
        assert_eq!((read.records.len(), read.next), (2, 2));
    }

    proptest! {
        #[test]
        fn what_producers_write_comes_back(values in proptest::collection::vec(proptest::option::of(".{0,20}"), 1..30), kind in 0i16..5, first in 0i64..1_000_000) {
            let records: Vec<_> = values.iter().enumerate().map(|(i, v)| record(i as i64, -5, None, v.as_ref().map(String::as_bytes))).collect();
            let batch = Batch { attributes: kind, ..Batch::new(first, records) };
            let read = read(&batch.bytes().into(), first, &[]);
            prop_assert_eq!(read.next, first + values.len() as i64);
            let back: Vec<_> = read.records.into_iter().map(|r| r.value.map(|v| String::from_utf8(v.to_vec()).unwrap())).collect();
            prop_assert_eq!(back, values);
        }
    }
}

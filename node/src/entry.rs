//! What stands in a shard's Raft log: one command per entry.
//!
//! A write folds the batches that waited: each is encoded once, by the node that took it, and forwarded as it is.
//! Series and streams are named by the ids that the shard's directory gave; labels travel only with what had no id
//! yet. Values lie in the entry as they go into the head, row after row, and are read from there without a copy.
//! `FORMAT.md` has the layout.
//!
//! Invariant: decoding never panics and never allocates more than the entry's declared, bounded size.

use crate::codec::{Malformed, Reader, put_bytes, put_signed, put_varint};
use bytes::Bytes;
use hindcast_ingest::intake::{Definition, Group, Intake, Numbers, Share, StreamRows};
use hindcast_model::limits::ENTRY_BYTES_MAX;
use hindcast_model::resource::Edge;
use hindcast_model::{BatchId, Kind, Labels, Owner, Resource, ResourceId, TenantId, TimestampNs, WriterId, codec};
use hindcast_storage::rows::{Run, VALUE_BYTES};
use hindcast_storage::{Floor, Pin, RawLine};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;

const VERSION: u8 = 2;
const KIND_WRITE: u8 = 1;
const KIND_CONTROL: u8 = 2;
const NUMBERS_IDS: u8 = 0;
const NUMBERS_DEFINITIONS: u8 = 1;
const TEXT_PLAIN: u8 = 0;
const TEXT_ZSTD: u8 = 1;
/// Text that gains less than this is left as it is.
const TEXT_PACKED_MIN: usize = 256 * 1024;
/// Room that is made for a list before its members are read.
const AHEAD_MAX: usize = 4096;
/// Speed over size: the shard's segments compress for good.
const ZSTD_LEVEL: i32 = 1;

/// One shard's share of a batch, as it lies in an entry.
#[derive(Clone, Debug, PartialEq)]
pub struct PartView<'a> {
    pub tenant: TenantId,
    pub id: Option<BatchId>,
    /// Of which epoch its ids are.
    pub epoch: u64,
    pub definitions: Vec<Definition>,
    pub groups: Vec<GroupView<'a>>,
    pub streams: Vec<StreamView<'a>>,
    text: Cow<'a, [u8]>,
    pub resources: Vec<Resource>,
    pub edges: Vec<Edge>,
}

/// Samples of series that share their times.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupView<'a> {
    pub numbers: Numbers,
    /// Nanoseconds.
    pub times: Vec<i64>,
    pub runs: Vec<Run>,
    /// Row after row.
    pub values: &'a [u8],
}

/// Lines of one stream.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamView<'a> {
    pub numbers: Numbers,
    pub number: u32,
    heads: &'a [u8],
    /// Where its lines begin in the part's text.
    text_at: usize,
}

impl PartView<'_> {
    /// Whether it names anything by an id, so that the epoch matters.
    pub fn has_ids(&self) -> bool {
        self.groups.iter().any(|g| g.numbers == Numbers::Ids) || self.streams.iter().any(|s| s.numbers == Numbers::Ids)
    }

    /// The lines of one of its streams. Decoding has seen that they are whole.
    pub fn lines(&self, stream: &StreamView<'_>) -> impl Iterator<Item = RawLine<'_>> {
        let mut heads = Reader::new(stream.heads);
        let (mut at, mut rest) = (0i64, &self.text[stream.text_at..]);
        std::iter::from_fn(move || {
            if heads.is_empty() {
                return None;
            }
            let head = read_head(&mut heads).ok()?;
            at = at.wrapping_add(head.delta);
            let (metadata, after) = rest.split_at_checked(head.metadata)?;
            let (line, after) = after.split_at_checked(head.line)?;
            rest = after;
            Some(RawLine { at, line, metadata })
        })
    }

    /// The earliest time of its rows.
    pub fn first(&self) -> Option<TimestampNs> {
        let samples = self.groups.iter().flat_map(|g| g.times.iter().copied());
        let lines = self.streams.iter().flat_map(|s| self.lines(s).map(|l| l.at));
        samples.chain(lines).min().map(TimestampNs)
    }
}

/// What changes answers besides writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Control {
    /// Data below these floors goes, unless pinned.
    Retain {
        floors: Vec<Floor>,
    },
    Pin {
        pin: Pin,
    },
    Unpin {
        id: String,
    },
    /// Reads as of this entry are exact from now on.
    Cut,
    /// The cut at this index is not needed any more.
    DropCut {
        index: u64,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub enum Command<'a> {
    Write(Vec<PartView<'a>>),
    Control(Control),
}

/// A command with the leader's clock, by which batch ids are forgotten.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardEntry<'a> {
    pub at: TimestampNs,
    pub command: Command<'a>,
}

#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("version {0} of a shard entry is not known here; is this node older than the leader?")]
    Version(u8),
    #[error("a shard entry does not decompress: {0}")]
    Zstd(String),
    #[error("a shard entry holds {what} that is none")]
    Content { what: &'static str },
}

/// Strings of one part, each once.
#[derive(Default)]
struct Symbols<'a> {
    index: BTreeMap<&'a str, u64>,
    text: Vec<u8>,
}

impl<'a> Symbols<'a> {
    fn put(&mut self, out: &mut Vec<u8>, s: &'a str) {
        let next = self.index.len() as u64;
        let id = *self.index.entry(s).or_insert_with(|| {
            put_bytes(&mut self.text, s.as_bytes());
            next
        });
        put_varint(out, id);
    }

    fn put_pairs(&mut self, out: &mut Vec<u8>, pairs: impl ExactSizeIterator<Item = (&'a str, &'a str)>) {
        put_varint(out, pairs.len() as u64);
        for (n, v) in pairs {
            self.put(out, n);
            self.put(out, v);
        }
    }
}

fn kind_code(kind: Kind) -> u8 {
    Kind::ALL.iter().position(|k| *k == kind).map_or(0, |p| p as u8)
}

fn put_owner(out: &mut Vec<u8>, owner: &Owner) {
    match owner {
        Owner::None => out.push(0),
        Owner::Resource { id, kind } => {
            out.push(1 + kind_code(*kind));
            out.extend_from_slice(&id.0);
        }
    }
}

fn read_owner(r: &mut Reader<'_>) -> Result<Owner, EntryError> {
    match r.byte()? {
        0 => Ok(Owner::None),
        n => {
            let kind = *Kind::ALL.get(usize::from(n) - 1).ok_or(EntryError::Content {
                what: "a resource kind",
            })?;
            Ok(Owner::Resource {
                id: ResourceId(r.array()?),
                kind,
            })
        }
    }
}

fn put_id(out: &mut Vec<u8>, id: Option<BatchId>) {
    match id {
        None => out.push(0),
        Some(BatchId::Sequenced { writer, seq }) => {
            out.push(1);
            out.extend_from_slice(&writer.0);
            put_varint(out, seq);
        }
        Some(BatchId::Ordered { writer, seq }) => {
            out.push(2);
            out.extend_from_slice(&writer.0);
            put_varint(out, seq);
        }
        Some(BatchId::Hashed(hash)) => {
            out.push(3);
            out.extend_from_slice(&hash);
        }
    }
}

fn read_id(r: &mut Reader<'_>) -> Result<Option<BatchId>, EntryError> {
    Ok(match r.byte()? {
        0 => None,
        1 => Some(BatchId::Sequenced {
            writer: WriterId(r.array()?),
            seq: r.varint()?,
        }),
        2 => Some(BatchId::Ordered {
            writer: WriterId(r.array()?),
            seq: r.varint()?,
        }),
        3 => Some(BatchId::Hashed(r.array()?)),
        _ => return Err(EntryError::Content { what: "a batch id" }),
    })
}

fn put_numbers(out: &mut Vec<u8>, numbers: Numbers) {
    out.push(match numbers {
        Numbers::Ids => NUMBERS_IDS,
        Numbers::Definitions => NUMBERS_DEFINITIONS,
    });
}

fn put_group(out: &mut Vec<u8>, group: &Group) {
    put_numbers(out, group.numbers);
    put_varint(out, group.times_ms.len() as u64);
    let mut before = 0i64;
    for &ms in &group.times_ms {
        put_signed(out, ms.wrapping_sub(before));
        before = ms;
    }
    put_varint(out, group.runs.len() as u64);
    let mut end = 0i64;
    for &(first, len) in &group.runs {
        put_signed(out, i64::from(first) - end);
        put_varint(out, u64::from(len));
        end = i64::from(first) + i64::from(len);
    }
    out.extend_from_slice(&group.values);
}

fn put_stream(out: &mut Vec<u8>, stream: &StreamRows) {
    put_numbers(out, stream.numbers);
    put_varint(out, u64::from(stream.number));
    put_bytes(out, &stream.heads);
}

thread_local! {
    /// Making the tables of a compressor costs more than packing a small text.
    static PACKER: RefCell<zstd::bulk::Compressor<'static>> =
        RefCell::new(zstd::bulk::Compressor::new(ZSTD_LEVEL).expect("level 1 is one of zstd's"));
    static UNPACKER: RefCell<zstd::bulk::Decompressor<'static>> =
        RefCell::new(zstd::bulk::Decompressor::new().expect("a decompressor needs memory only"));
}

fn put_text(out: &mut Vec<u8>, text: &[u8], packed: bool) {
    if packed {
        let frame = PACKER.with_borrow_mut(|p| p.compress(text));
        let frame = frame.expect("compressing into memory cannot fail");
        out.push(TEXT_ZSTD);
        put_varint(out, text.len() as u64);
        put_bytes(out, &frame);
    } else {
        out.push(TEXT_PLAIN);
        put_bytes(out, text);
    }
}

/// Encodes one part; done once, by the node that took the batch.
pub fn encode_part(intake: &Intake, share: &Share) -> Vec<u8> {
    let values: usize = share
        .groups
        .iter()
        .map(|g| g.values.len() + 8 * g.runs.len() + 32)
        .sum();
    let heads: usize = share.streams.iter().map(|s| s.heads.len() + 16).sum();
    let mut symbols = Symbols::default();
    let mut definitions = vec![];
    put_varint(&mut definitions, share.definitions.len() as u64);
    for d in &share.definitions {
        definitions.push(u8::from(d.streams));
        put_owner(&mut definitions, &d.owner);
        symbols.put_pairs(&mut definitions, d.labels.iter());
    }
    let mut out = Vec::with_capacity(symbols.text.len() + definitions.len() + values + heads + share.text.len() + 256);
    put_bytes(&mut out, intake.tenant.as_str().as_bytes());
    put_id(&mut out, intake.id);
    put_varint(&mut out, share.epoch);
    put_varint(&mut out, symbols.index.len() as u64);
    out.extend_from_slice(&symbols.text);
    out.extend_from_slice(&definitions);
    put_varint(&mut out, share.groups.len() as u64);
    share.groups.iter().for_each(|g| put_group(&mut out, g));
    put_varint(&mut out, share.streams.len() as u64);
    share.streams.iter().for_each(|s| put_stream(&mut out, s));
    put_text(&mut out, &share.text, share.text.len() >= TEXT_PACKED_MIN);
    put_facts(&mut out, &share.resources);
    put_facts(&mut out, &share.edges);
    out
}

/// Nothing for an empty list.
fn put_facts<T: Serialize>(out: &mut Vec<u8>, facts: &[T]) {
    if facts.is_empty() {
        out.push(0);
    } else {
        put_bytes(out, &codec::to_bytes(&facts));
    }
}

fn read_facts<T: serde::de::DeserializeOwned>(r: &mut Reader<'_>, what: &'static str) -> Result<Vec<T>, EntryError> {
    let bytes = r.bytes()?;
    if bytes.is_empty() {
        return Ok(vec![]);
    }
    codec::from_bytes(bytes).map_err(|_| EntryError::Content { what })
}

fn read_pairs(r: &mut Reader<'_>, symbols: &[&str]) -> Result<Vec<(String, String)>, EntryError> {
    let n = r.count()?;
    let mut pairs = Vec::with_capacity(n);
    for _ in 0..n {
        let mut symbol = || -> Result<String, EntryError> {
            let id = usize::try_from(r.varint()?).unwrap_or(usize::MAX);
            Ok((*symbols.get(id).ok_or(EntryError::Content { what: "a symbol" })?).to_owned())
        };
        pairs.push((symbol()?, symbol()?));
    }
    Ok(pairs)
}

fn text(bytes: &[u8]) -> Result<&str, EntryError> {
    std::str::from_utf8(bytes).map_err(|_| EntryError::Content { what: "text" })
}

fn read_numbers(r: &mut Reader<'_>) -> Result<Numbers, EntryError> {
    match r.byte()? {
        NUMBERS_IDS => Ok(Numbers::Ids),
        NUMBERS_DEFINITIONS => Ok(Numbers::Definitions),
        _ => Err(EntryError::Content {
            what: "a kind of number",
        }),
    }
}

fn read_definition(r: &mut Reader<'_>, symbols: &[&str]) -> Result<Definition, EntryError> {
    let streams = match r.byte()? {
        0 => false,
        1 => true,
        _ => return Err(EntryError::Content { what: "a kind" }),
    };
    let owner = read_owner(r)?;
    let labels = Labels::new(read_pairs(r, symbols)?);
    Ok(Definition { streams, labels, owner })
}

/// Whether a number stands for a definition of that kind, or is an id of which only the shard can tell.
fn is_defined(definitions: &[Definition], streams: bool, numbers: Numbers, first: u32, len: u32) -> bool {
    let (first, end) = (first as usize, first as usize + len as usize);
    match numbers {
        Numbers::Ids => end <= u32::MAX as usize,
        Numbers::Definitions => definitions
            .get(first..end)
            .is_some_and(|of_run| of_run.iter().all(|d| d.streams == streams)),
    }
}

fn read_group<'a>(r: &mut Reader<'a>, definitions: &[Definition]) -> Result<GroupView<'a>, EntryError> {
    let numbers = read_numbers(r)?;
    let n = r.count()?;
    let mut times = Vec::with_capacity(n);
    let mut ms = 0i64;
    for _ in 0..n {
        ms = ms.wrapping_add(r.signed()?);
        times.push(TimestampNs::from_ms(ms).0);
    }
    let n = r.count()?;
    let mut runs = Vec::with_capacity(n);
    let (mut end, mut width) = (0i64, 0usize);
    for _ in 0..n {
        let bad_run = || EntryError::Content { what: "a run" };
        let first = end.checked_add(r.signed()?).and_then(|f| u32::try_from(f).ok());
        let first = first.ok_or_else(bad_run)?;
        let len = u32::try_from(r.varint()?).ok().filter(|&n| n > 0).ok_or_else(bad_run)?;
        width = width.saturating_add(len as usize);
        // The values are still to come: no list of runs is worth walking that could not have any.
        if width > r.left() / VALUE_BYTES || !is_defined(definitions, false, numbers, first, len) {
            return Err(bad_run());
        }
        end = i64::from(first) + i64::from(len);
        runs.push(Run { first, len });
    }
    let bytes = width.checked_mul(times.len()).and_then(|n| n.checked_mul(VALUE_BYTES));
    // A group without rows is never written.
    let bytes = bytes
        .filter(|&n| n > 0)
        .ok_or(EntryError::Content { what: "a group" })?;
    Ok(GroupView {
        numbers,
        times,
        runs,
        values: r.take(bytes)?,
    })
}

struct HeadOfLine {
    delta: i64,
    metadata: usize,
    line: usize,
}

fn read_head(r: &mut Reader<'_>) -> Result<HeadOfLine, Malformed> {
    let delta = r.signed()?;
    let mut len = || -> Result<usize, Malformed> { Ok(usize::try_from(r.varint()?).unwrap_or(usize::MAX)) };
    Ok(HeadOfLine {
        delta,
        metadata: len()?,
        line: len()?,
    })
}

/// Names and values, each with its length: what storage takes as it is.
fn check_metadata(bytes: &[u8]) -> Result<(), EntryError> {
    let r = &mut Reader::new(bytes);
    while !r.is_empty() {
        text(r.bytes()?)?;
        text(r.bytes()?)?;
    }
    Ok(())
}

/// Reads the text of all streams, and sees that they share it out exactly.
fn read_text<'a>(
    r: &mut Reader<'a>,
    streams: &mut [StreamView<'a>],
    unpacked_bytes_max: &mut usize,
) -> Result<Cow<'a, [u8]>, EntryError> {
    let body: Cow<'a, [u8]> = match r.byte()? {
        TEXT_PLAIN => Cow::Borrowed(r.bytes()?),
        TEXT_ZSTD => {
            let len = usize::try_from(r.varint()?).unwrap_or(usize::MAX);
            if len > *unpacked_bytes_max {
                return Err(EntryError::Content { what: "a size" });
            }
            *unpacked_bytes_max -= len;
            let frame = r.bytes()?;
            let text = UNPACKER.with_borrow_mut(|u| u.decompress(frame, len));
            Cow::Owned(text.map_err(|e| EntryError::Zstd(e.to_string()))?)
        }
        _ => return Err(EntryError::Content { what: "a packing" }),
    };
    let short = || EntryError::Content { what: "text of lines" };
    let mut at = 0usize;
    for stream in streams {
        stream.text_at = at;
        let heads = &mut Reader::new(stream.heads);
        while !heads.is_empty() {
            let head = read_head(heads)?;
            let metadata_end = at.checked_add(head.metadata).ok_or_else(short)?;
            check_metadata(body.get(at..metadata_end).ok_or_else(short)?)?;
            at = metadata_end.checked_add(head.line).ok_or_else(short)?;
        }
    }
    if at == body.len() { Ok(body) } else { Err(short()) }
}

/// Reads one part. What its texts take unpacked is taken off `unpacked_bytes_max`.
pub fn decode_part<'a>(bytes: &'a [u8], unpacked_bytes_max: &mut usize) -> Result<PartView<'a>, EntryError> {
    let r = &mut Reader::new(bytes);
    let tenant = TenantId::new(text(r.bytes()?)?).map_err(|_| EntryError::Content { what: "a tenant" })?;
    let id = read_id(r)?;
    let epoch = r.varint()?;
    let n = r.count()?;
    let mut symbols = Vec::with_capacity(n.min(AHEAD_MAX));
    for _ in 0..n {
        symbols.push(text(r.bytes()?)?);
    }
    let n = r.count()?;
    let mut definitions = Vec::with_capacity(n.min(AHEAD_MAX));
    for _ in 0..n {
        definitions.push(read_definition(r, &symbols)?);
    }
    let n = r.count()?;
    let mut groups = Vec::with_capacity(n.min(AHEAD_MAX));
    for _ in 0..n {
        groups.push(read_group(r, &definitions)?);
    }
    let n = r.count()?;
    let mut streams = Vec::with_capacity(n.min(AHEAD_MAX));
    for _ in 0..n {
        let numbers = read_numbers(r)?;
        let bad_stream = || EntryError::Content { what: "a stream" };
        let number = u32::try_from(r.varint()?).map_err(|_| bad_stream())?;
        if !is_defined(&definitions, true, numbers, number, 1) {
            return Err(bad_stream());
        }
        streams.push(StreamView {
            numbers,
            number,
            heads: r.bytes()?,
            text_at: 0,
        });
    }
    let text = read_text(r, &mut streams, unpacked_bytes_max)?;
    let resources = read_facts(r, "resources")?;
    let edges = read_facts(r, "edges")?;
    if !r.is_empty() {
        return Err(r.malformed().into());
    }
    Ok(PartView {
        tenant,
        id,
        epoch,
        definitions,
        groups,
        streams,
        text,
        resources,
        edges,
    })
}

/// One entry from parts that were encoded before. `at` is the leader's clock.
pub fn encode_write(at: TimestampNs, parts: &[Bytes]) -> Vec<u8> {
    let mut out = Vec::with_capacity(parts.iter().map(|p| p.len() + 4).sum::<usize>() + 24);
    out.extend_from_slice(&[VERSION, KIND_WRITE]);
    put_signed(&mut out, at.0);
    put_varint(&mut out, parts.len() as u64);
    for part in parts {
        put_bytes(&mut out, part);
    }
    out
}

pub fn encode_control(at: TimestampNs, control: &Control) -> Vec<u8> {
    let mut out = vec![VERSION, KIND_CONTROL];
    put_signed(&mut out, at.0);
    out.extend_from_slice(&codec::to_bytes(control));
    out
}

/// Texts of an entry take at most so many bytes unpacked.
pub const TEXT_BYTES_MAX: usize = 4 * ENTRY_BYTES_MAX;

pub fn decode(bytes: &[u8]) -> Result<ShardEntry<'_>, EntryError> {
    let r = &mut Reader::new(bytes);
    let version = r.byte()?;
    if version != VERSION {
        return Err(EntryError::Version(version));
    }
    let kind = r.byte()?;
    let at = TimestampNs(r.signed()?);
    let command = match kind {
        KIND_WRITE => {
            let mut unpacked_bytes_max = TEXT_BYTES_MAX;
            let n = r.count()?;
            let mut parts = Vec::with_capacity(n.min(AHEAD_MAX));
            for _ in 0..n {
                parts.push(decode_part(r.bytes()?, &mut unpacked_bytes_max)?);
            }
            if !r.is_empty() {
                return Err(r.malformed().into());
            }
            Command::Write(parts)
        }
        KIND_CONTROL => Command::Control(codec::from_bytes(r.rest()).map_err(|_| EntryError::Content {
            what: "a control command",
        })?),
        _ => return Err(EntryError::Content { what: "a kind" }),
    };
    Ok(ShardEntry { at, command })
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use hindcast_ingest::Naming;
    use hindcast_ingest::intake::Ids;
    use hindcast_model::resource::{self, metric};
    use hindcast_model::{Batch, LogLine, Sample, SeriesBlock, ShardId, ShardMap, Slot, StreamBlock};
    use proptest::prelude::*;

    /// Shards that know nothing: everything is defined.
    pub struct Nothing(pub ShardMap);

    impl Ids for Nothing {
        fn shard_of(&self, slot: Slot, at: TimestampNs) -> ShardId {
            self.0.shard_of(slot, at)
        }
        fn is_timeless(&self) -> bool {
            self.0.is_single()
        }
        fn epoch(&self, _: ShardId) -> u64 {
            0
        }
        fn ids(&self, _: ShardId, _: &TenantId, _: bool, wanted: &[(&Labels, &Owner)]) -> (u64, Vec<Option<u32>>) {
            (0, vec![None; wanted.len()])
        }
    }

    /// The parts of a batch, each with everything defined.
    pub fn parts_of(batch: &Batch, shards: u64) -> Vec<Bytes> {
        let ids = Nothing(ShardMap::even(shards).unwrap());
        let intake = Intake::of_batch(batch, &ids, Naming::Defined);
        let encode = |share| Bytes::from(encode_part(&intake, share));
        intake.shares.iter().map(encode).collect()
    }

    /// What a part holds, its definitions being all there is.
    pub fn batch_of(part: &PartView<'_>) -> Batch {
        let mut batch = Batch::new(part.tenant.clone());
        batch.id = part.id;
        let of = |number: u32| {
            let d = &part.definitions[number as usize];
            (d.labels.clone(), d.owner)
        };
        for g in &part.groups {
            let width: usize = g.runs.iter().map(|r| r.len as usize).sum();
            for (i, number) in g.runs.iter().flat_map(|r| r.ids()).enumerate() {
                let (labels, owner) = of(number);
                let sample = |(row, at): (usize, &i64)| Sample {
                    at: TimestampNs(*at),
                    value: f64::from_le_bytes(g.values[(row * width + i) * 8..][..8].try_into().unwrap()),
                };
                let samples = g.times.iter().enumerate().map(sample).collect();
                batch.series.push(SeriesBlock { labels, owner, samples });
            }
        }
        for s in &part.streams {
            let (labels, owner) = of(s.number);
            let lines = part.lines(s).map(|l| l.to_line().unwrap()).collect();
            batch.streams.push(StreamBlock { labels, owner, lines });
        }
        (batch.resources, batch.edges) = (part.resources.clone(), part.edges.clone());
        batch
    }

    pub fn batch_strategy() -> impl Strategy<Value = Batch> {
        let tenant = TenantId::default();
        let labels = prop::collection::vec(("[a-c]{1,3}", "[a-zé가]{0,4}"), 0..5);
        let series = (
            labels.clone(),
            prop::collection::vec((any::<i32>(), any::<u64>()), 1..6),
        );
        let line = (
            any::<i64>(),
            any::<Vec<u8>>(),
            prop::collection::vec(("[a-b]", "[x-z]{1,3}"), 0..3),
        );
        let stream = (labels, prop::collection::vec(line, 1..4));
        let id = prop_oneof![
            Just(None),
            any::<[u8; 16]>().prop_map(|h| Some(BatchId::Hashed(h))),
            (any::<[u8; 16]>(), any::<u64>()).prop_map(|(w, seq)| Some(BatchId::Sequenced {
                writer: WriterId(w),
                seq
            })),
            (any::<[u8; 16]>(), any::<u64>()).prop_map(|(w, seq)| Some(BatchId::Ordered {
                writer: WriterId(w),
                seq
            })),
        ];
        let same_times = any::<bool>();
        (
            id,
            prop::collection::vec(series, 0..5),
            prop::collection::vec(stream, 0..3),
            same_times,
        )
            .prop_map(move |(id, series, streams, same_times)| Batch {
                tenant: tenant.clone(),
                id,
                series: series
                    .into_iter()
                    .enumerate()
                    .map(|(i, (pairs, samples))| {
                        let labels = Labels::new(pairs)
                            .with("__name__", &format!("node_load{i}"))
                            .with("instance", "a:1");
                        let owner = resource::owner(&tenant, &labels, &[]);
                        let sample = |(row, (ms, bits)): (usize, (i32, u64))| Sample {
                            at: TimestampNs::from_ms(if same_times { row as i64 } else { i64::from(ms) }),
                            value: f64::from_bits(bits),
                        };
                        SeriesBlock {
                            labels,
                            owner,
                            samples: samples.into_iter().enumerate().map(sample).collect(),
                        }
                    })
                    .collect(),
                streams: streams
                    .into_iter()
                    .map(|(pairs, lines)| StreamBlock {
                        labels: Labels::new(pairs),
                        owner: Owner::None,
                        lines: lines
                            .into_iter()
                            .map(|(at, line, metadata)| LogLine {
                                at: TimestampNs(at),
                                line: line.into(),
                                metadata,
                            })
                            .collect(),
                    })
                    .collect(),
                resources: vec![],
                edges: vec![],
            })
    }

    fn by_series(mut batch: Batch) -> Batch {
        batch.series.sort_by(|a, b| a.labels.cmp(&b.labels));
        batch
    }

    proptest! {
        #[test]
        fn an_entry_reads_back_to_the_bit(batches in prop::collection::vec(batch_strategy(), 0..3), at in any::<i64>()) {
            let batches: Vec<Batch> = batches.into_iter().filter(|b| !b.is_empty()).collect();
            let encoded: Vec<Bytes> = batches.iter().flat_map(|b| parts_of(b, 1)).collect();
            let bytes = encode_write(TimestampNs(at), &encoded);
            let entry = decode(&bytes).unwrap();
            prop_assert_eq!(entry.at, TimestampNs(at));
            let Command::Write(parts) = entry.command else { panic!("a write") };
            let read: Vec<Batch> = parts.iter().map(|p| by_series(batch_of(p))).collect();
            prop_assert_eq!(read, batches.into_iter().map(by_series).collect::<Vec<_>>());
        }

        #[test]
        fn damaged_entries_are_errors_never_panics(batch in batch_strategy(), flip in any::<prop::sample::Index>(), to in any::<u8>(), cut in any::<bool>()) {
            for part in parts_of(&batch, 1) {
                let mut bytes = part.to_vec();
                let i = flip.index(bytes.len());
                if cut { bytes.truncate(i) } else { bytes[i] = to }
                if let Ok(part) = decode_part(&bytes, &mut TEXT_BYTES_MAX.clone()) {
                    for s in &part.streams {
                        part.lines(s).for_each(|l| drop(l.to_line().unwrap()));
                    }
                    let _ = part.first();
                }
                let mut entry = encode_write(TimestampNs(0), &[bytes.into()]);
                let i = flip.index(entry.len());
                entry[i] = to;
                let _ = decode(&entry);
            }
        }
    }

    #[test]
    fn large_texts_are_packed_and_a_bomb_is_refused_by_its_size() {
        let line = LogLine {
            at: TimestampNs(5),
            line: "the same line again and again ".repeat(20_000).into(),
            metadata: vec![("k".into(), "v".into())],
        };
        let mut batch = Batch::new(TenantId::default());
        batch.streams.push(StreamBlock {
            labels: Labels::from_pairs([("job", "a")]),
            owner: Owner::None,
            lines: vec![line],
        });
        let part = &parts_of(&batch, 1)[0];
        assert!(part.len() < 10_000, "{} bytes", part.len());
        assert_eq!(
            batch_of(&decode_part(part, &mut TEXT_BYTES_MAX.clone()).unwrap()),
            batch
        );
        assert!(decode_part(part, &mut 500_000).is_err(), "its text takes 600,002 bytes");
    }

    #[test]
    fn resources_and_controls_travel_along() {
        let tenant = TenantId::default();
        let host = resource::owning_resource(&tenant, &metric("node_load1", &[("instance", "a:1")]), &[]).unwrap();
        let mut batch = Batch::new(tenant);
        batch.resources = vec![host.clone()];
        batch.edges = vec![Edge {
            from: host.id,
            to: host.id,
            kind: resource::EdgeKind::RunsOn,
        }];
        let part = &parts_of(&batch, 1)[0];
        assert_eq!(batch_of(&decode_part(part, &mut 0).unwrap()), batch);
        let control = Control::DropCut { index: 7 };
        let bytes = encode_control(TimestampNs(3), &control);
        assert_eq!(
            decode(&bytes).unwrap(),
            ShardEntry {
                at: TimestampNs(3),
                command: Command::Control(control)
            }
        );
    }
}

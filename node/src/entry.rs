//! What stands in a shard's Raft log: one command per entry.
//!
//! A write folds the batches that waited: each is encoded once, by the node that took it (`WritePart`), forwarded as
//! it is, and compressed once, by the leader. `FORMAT.md` has the layout.
//!
//! Invariant: decoding never panics and never allocates more than the entry's declared, bounded size.

use crate::codec::{Malformed, Reader, put_bytes, put_signed, put_varint};
use bytes::Bytes;
use hindcast_model::limits::ENTRY_BYTES_MAX;
use hindcast_model::resource::Edge;
use hindcast_model::{
    BatchId, Kind, Labels, LogLine, Owner, Resource, ResourceId, Sample, SeriesBlock, StreamBlock, TenantId,
    TimestampNs, WriterId, codec,
};
use hindcast_storage::{Floor, Pin};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const VERSION: u8 = 1;
const KIND_WRITE: u8 = 1;
const KIND_CONTROL: u8 = 2;
/// Speed over size: the shard's segments compress for good.
const ZSTD_LEVEL: i32 = 1;

/// One shard's share of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct WritePart {
    pub tenant: TenantId,
    pub id: Option<BatchId>,
    pub series: Vec<SeriesBlock>,
    pub streams: Vec<StreamBlock>,
    pub resources: Vec<Resource>,
    pub edges: Vec<Edge>,
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
pub enum Command {
    Write(Vec<WritePart>),
    Control(Control),
}

/// A command with the leader's clock, by which batch ids are forgotten.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardEntry {
    pub at: TimestampNs,
    pub command: Command,
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

/// Encodes one part; done once, by the node that took the batch.
pub fn encode_part(part: &WritePart) -> Vec<u8> {
    let mut symbols = Symbols::default();
    let mut body = Vec::with_capacity(64 + 12 * part.series.len());
    put_id(&mut body, part.id);
    put_varint(&mut body, part.series.len() as u64);
    for s in &part.series {
        symbols.put_pairs(&mut body, s.labels.iter());
        put_owner(&mut body, &s.owner);
        put_varint(&mut body, s.samples.len() as u64);
        let mut before = 0i64;
        for sample in &s.samples {
            put_signed(&mut body, sample.at.as_ms().wrapping_sub(before));
            before = sample.at.as_ms();
        }
        for sample in &s.samples {
            body.extend_from_slice(&sample.value.to_bits().to_le_bytes());
        }
    }
    put_varint(&mut body, part.streams.len() as u64);
    for s in &part.streams {
        symbols.put_pairs(&mut body, s.labels.iter());
        put_owner(&mut body, &s.owner);
        put_varint(&mut body, s.lines.len() as u64);
        let mut before = 0i64;
        for line in &s.lines {
            put_signed(&mut body, line.at.0.wrapping_sub(before));
            before = line.at.0;
            put_bytes(&mut body, &line.line);
            symbols.put_pairs(&mut body, line.metadata.iter().map(|(n, v)| (n.as_str(), v.as_str())));
        }
    }
    put_bytes(&mut body, &codec::to_bytes(&part.resources));
    put_bytes(&mut body, &codec::to_bytes(&part.edges));

    let mut out = Vec::with_capacity(symbols.text.len() + body.len() + 32);
    put_bytes(&mut out, part.tenant.as_str().as_bytes());
    put_varint(&mut out, symbols.index.len() as u64);
    out.extend_from_slice(&symbols.text);
    out.extend_from_slice(&body);
    out
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

pub fn decode_part(bytes: &[u8]) -> Result<WritePart, EntryError> {
    let r = &mut Reader::new(bytes);
    let tenant = TenantId::new(text(r.bytes()?)?).map_err(|_| EntryError::Content { what: "a tenant" })?;
    let n = r.count()?;
    let mut symbols = Vec::with_capacity(n);
    for _ in 0..n {
        symbols.push(text(r.bytes()?)?);
    }
    let id = read_id(r)?;
    let n = r.count()?;
    let mut series = Vec::with_capacity(n);
    for _ in 0..n {
        let labels = Labels::new(read_pairs(r, &symbols)?);
        let owner = read_owner(r)?;
        let n = r.count()?;
        let mut samples = Vec::with_capacity(n);
        let mut ms = 0i64;
        for _ in 0..n {
            ms = ms.wrapping_add(r.signed()?);
            samples.push(Sample {
                at: TimestampNs::from_ms(ms),
                value: 0.0,
            });
        }
        for sample in &mut samples {
            sample.value = f64::from_bits(u64::from_le_bytes(r.array()?));
        }
        series.push(SeriesBlock { labels, owner, samples });
    }
    let n = r.count()?;
    let mut streams = Vec::with_capacity(n);
    for _ in 0..n {
        let labels = Labels::new(read_pairs(r, &symbols)?);
        let owner = read_owner(r)?;
        let n = r.count()?;
        let mut lines = Vec::with_capacity(n);
        let mut ns = 0i64;
        for _ in 0..n {
            ns = ns.wrapping_add(r.signed()?);
            let line = Bytes::copy_from_slice(r.bytes()?);
            lines.push(LogLine {
                at: TimestampNs(ns),
                line,
                metadata: read_pairs(r, &symbols)?,
            });
        }
        streams.push(StreamBlock { labels, owner, lines });
    }
    let resources = codec::from_bytes(r.bytes()?).map_err(|_| EntryError::Content { what: "resources" })?;
    let edges = codec::from_bytes(r.bytes()?).map_err(|_| EntryError::Content { what: "edges" })?;
    if !r.is_empty() {
        return Err(r.malformed().into());
    }
    Ok(WritePart {
        tenant,
        id,
        series,
        streams,
        resources,
        edges,
    })
}

/// One entry from parts that were encoded before. `at` is the leader's clock.
pub fn encode_write(at: TimestampNs, parts: &[Bytes]) -> Vec<u8> {
    let mut body = Vec::with_capacity(parts.iter().map(|p| p.len() + 4).sum::<usize>() + 8);
    put_varint(&mut body, parts.len() as u64);
    for part in parts {
        put_bytes(&mut body, part);
    }
    let mut out = vec![VERSION, KIND_WRITE];
    put_signed(&mut out, at.0);
    put_varint(&mut out, body.len() as u64);
    let packed = zstd::bulk::compress(&body, ZSTD_LEVEL).expect("compressing into memory cannot fail");
    out.extend_from_slice(&packed);
    out
}

pub fn encode_control(at: TimestampNs, control: &Control) -> Vec<u8> {
    let mut out = vec![VERSION, KIND_CONTROL];
    put_signed(&mut out, at.0);
    out.extend_from_slice(&codec::to_bytes(control));
    out
}

/// An entry folds at most so many bytes of parts; larger ones are refused when they are proposed.
pub const PARTS_BYTES_MAX: usize = 4 * ENTRY_BYTES_MAX;

pub fn decode(bytes: &[u8]) -> Result<ShardEntry, EntryError> {
    let r = &mut Reader::new(bytes);
    let version = r.byte()?;
    if version != VERSION {
        return Err(EntryError::Version(version));
    }
    let kind = r.byte()?;
    let at = TimestampNs(r.signed()?);
    let command = match kind {
        KIND_WRITE => {
            let len = usize::try_from(r.varint()?).unwrap_or(usize::MAX);
            if len > PARTS_BYTES_MAX {
                return Err(EntryError::Content { what: "a size" });
            }
            let body = zstd::bulk::decompress(r.rest(), len).map_err(|e| EntryError::Zstd(e.to_string()))?;
            let r = &mut Reader::new(&body);
            let n = r.count()?;
            let mut parts = Vec::with_capacity(n);
            for _ in 0..n {
                parts.push(decode_part(r.bytes()?)?);
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
mod tests {
    use super::*;
    use hindcast_model::resource::{self, metric};
    use proptest::prelude::*;

    pub fn part_strategy() -> impl Strategy<Value = WritePart> {
        let tenant = TenantId::default();
        let labels = prop::collection::vec(("[a-c]{1,3}", "[a-zé가]{0,4}"), 0..5);
        let series = (
            labels.clone(),
            prop::collection::vec((any::<i32>(), any::<u64>()), 0..6),
        );
        let line = (
            any::<i64>(),
            any::<Vec<u8>>(),
            prop::collection::vec(("[a-b]", "[x-z]{1,3}"), 0..3),
        );
        let stream = (labels, prop::collection::vec(line, 0..4));
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
        (
            id,
            prop::collection::vec(series, 0..5),
            prop::collection::vec(stream, 0..3),
        )
            .prop_map(move |(id, series, streams)| WritePart {
                tenant: tenant.clone(),
                id,
                series: series
                    .into_iter()
                    .map(|(pairs, samples)| {
                        let labels = Labels::new(pairs)
                            .with("__name__", "node_load1")
                            .with("instance", "a:1");
                        let owner = resource::owner(&tenant, &labels, &[]);
                        let sample = |(ms, bits): (i32, u64)| Sample {
                            at: TimestampNs::from_ms(i64::from(ms)),
                            value: f64::from_bits(bits),
                        };
                        SeriesBlock {
                            labels,
                            owner,
                            samples: samples.into_iter().map(sample).collect(),
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

    proptest! {
        #[test]
        fn an_entry_reads_back_to_the_bit(parts in prop::collection::vec(part_strategy(), 0..3), at in any::<i64>()) {
            let encoded: Vec<Bytes> = parts.iter().map(|p| encode_part(p).into()).collect();
            let entry = decode(&encode_write(TimestampNs(at), &encoded)).unwrap();
            prop_assert_eq!(entry, ShardEntry { at: TimestampNs(at), command: Command::Write(parts) });
        }

        #[test]
        fn damaged_entries_are_errors_never_panics(part in part_strategy(), flip in any::<prop::sample::Index>(), to in any::<u8>()) {
            let mut bytes = encode_part(&part);
            let i = flip.index(bytes.len());
            bytes[i] = to;
            let _ = decode_part(&bytes);
            let mut entry = encode_write(TimestampNs(0), &[bytes.into()]);
            let i = flip.index(entry.len());
            entry[i] = to;
            let _ = decode(&entry);
        }
    }

    #[test]
    fn resources_and_controls_travel_along() {
        let tenant = TenantId::default();
        let host = resource::owning_resource(&tenant, &metric("node_load1", &[("instance", "a:1")]), &[]).unwrap();
        let part = WritePart {
            tenant,
            id: None,
            series: vec![],
            streams: vec![],
            resources: vec![host.clone()],
            edges: vec![Edge {
                from: host.id,
                to: host.id,
                kind: resource::EdgeKind::RunsOn,
            }],
        };
        assert_eq!(decode_part(&encode_part(&part)).unwrap(), part);
        let control = Control::DropCut { index: 7 };
        let entry = decode(&encode_control(TimestampNs(3), &control)).unwrap();
        assert_eq!(
            entry,
            ShardEntry {
                at: TimestampNs(3),
                command: Command::Control(control)
            }
        );
    }
}

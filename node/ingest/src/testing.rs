//! What tests of several adapters share: a replica that gives ids, and intakes read back as batches.

use crate::intake::{Ids, Intake, Numbers, Share};
use crate::{Books, Described, LimitsContext, Naming, SeriesCache};
use hindcast_model::{
    Batch, Labels, LogLine, Owner, Sample, SeriesBlock, ShardId, ShardMap, Slot, StreamBlock, TenantId, TimestampNs,
};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

pub const LIMITS: LimitsContext = LimitsContext {
    now: TimestampNs::MAX,
    floor: None,
    bounds: crate::check::Bounds::DEFAULT,
};

type Name = (ShardId, TenantId, bool, Labels, Owner);

/// Replicas of `shards` shards that give ids in the order of definitions.
pub struct Replica {
    map: ShardMap,
    names: Mutex<Vec<Name>>,
    pub epoch: AtomicU64,
}

impl Replica {
    pub fn new(shards: u64) -> Self {
        Self {
            map: ShardMap::even(shards).unwrap(),
            names: Mutex::default(),
            epoch: AtomicU64::new(3),
        }
    }

    /// Applies an intake: gives ids to its definitions, and reads it back.
    pub fn apply(&self, intake: &Intake) -> Batch {
        let mut names = self.names.lock();
        let mut batch = Batch::new(intake.tenant.clone());
        batch.id = intake.id;
        for share in &intake.shares {
            let of = |streams: bool, numbers: Numbers, number: u32, names: &[Name]| match numbers {
                Numbers::Definitions => {
                    let d = &share.definitions[number as usize];
                    assert_eq!(d.streams, streams);
                    (d.labels.clone(), d.owner)
                }
                Numbers::Ids => {
                    let (shard, tenant, kind, labels, owner) = &names[number as usize];
                    assert_eq!((*shard, tenant, *kind), (share.shard, &intake.tenant, streams));
                    assert_eq!(share.epoch, self.epoch.load(SeqCst));
                    (labels.clone(), *owner)
                }
            };
            for d in &share.definitions {
                let name = (share.shard, intake.tenant.clone(), d.streams, d.labels.clone(), d.owner);
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            for group in &share.groups {
                let numbers: Vec<u32> = group.runs.iter().flat_map(|&(first, len)| first..first + len).collect();
                assert_eq!(numbers.len(), group.width);
                assert_eq!(group.values.len(), group.width * group.times_ms.len() * 8);
                for (i, number) in numbers.iter().enumerate() {
                    let (labels, owner) = of(false, group.numbers, *number, &names);
                    let value = |row: usize| {
                        let bytes = group.values[(row * group.width + i) * 8..].first_chunk::<8>().unwrap();
                        f64::from_le_bytes(*bytes)
                    };
                    let sample = |(row, ms): (usize, &i64)| Sample {
                        at: TimestampNs::from_ms(*ms),
                        value: value(row),
                    };
                    let samples = group.times_ms.iter().enumerate().map(sample).collect();
                    batch.series.push(SeriesBlock { labels, owner, samples });
                }
            }
            let mut text = &share.text[..];
            for stream in &share.streams {
                let (labels, owner) = of(true, stream.numbers, stream.number, &names);
                let mut heads = crate::wire::Reader::new(&stream.heads);
                let (mut at, mut lines) = (0i64, vec![]);
                for _ in 0..stream.lines {
                    let delta = heads.varint().unwrap();
                    at = at.wrapping_add((delta >> 1) as i64 ^ -((delta & 1) as i64));
                    let (metadata, rest) = text.split_at(heads.varint().unwrap() as usize);
                    let (line, rest) = rest.split_at(heads.varint().unwrap() as usize);
                    text = rest;
                    lines.push(LogLine {
                        at: TimestampNs(at),
                        line: line.to_vec().into(),
                        metadata: pairs(metadata),
                    });
                }
                assert_eq!(heads.left(), 0);
                batch.streams.push(StreamBlock { labels, owner, lines });
            }
            assert!(text.is_empty());
            batch.resources.extend(share.resources.clone());
            batch.edges.extend(share.edges.clone());
        }
        assert_eq!((batch.samples(), batch.lines()), (intake.samples, intake.lines));
        batch
    }
}

/// What the new rows of a share take in an entry, as `node/src/entry.rs` writes it: texts once, and numbers of one to three bytes for
/// them.
pub fn entry_bytes(share: &Share) -> usize {
    let mut texts: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut of_texts, mut of_rows) = (0, 0);
    for d in &share.definitions {
        of_rows += 2 + if d.owner == Owner::None { 1 } else { 17 };
        for text in d.labels.iter().flat_map(|(n, v)| [n, v]) {
            let next = texts.len();
            let number = *texts.entry(text).or_insert_with(|| {
                of_texts += text.len() + if text.len() < 128 { 1 } else { 2 };
                next
            });
            of_rows += match number {
                0..128 => 1,
                128..16_384 => 2,
                _ => 3,
            };
        }
    }
    let groups = share
        .groups
        .iter()
        .map(|g| g.values.len() + 16 * g.runs.len() + 10 * g.times_ms.len() + 8);
    of_texts + of_rows + groups.sum::<usize>()
}

fn pairs(metadata: &[u8]) -> Vec<(String, String)> {
    let texts = texts_of(metadata);
    texts.chunks(2).map(|p| (p[0].clone(), p[1].clone())).collect()
}

fn texts_of(mut rest: &[u8]) -> Vec<String> {
    let mut texts = vec![];
    while !rest.is_empty() {
        let mut reader = crate::wire::Reader::new(rest);
        let len = reader.varint().unwrap() as usize;
        let at = rest.len() - reader.left();
        texts.push(String::from_utf8(rest[at..at + len].to_vec()).unwrap());
        rest = &rest[at + len..];
    }
    texts
}

impl Ids for Replica {
    fn shard_of(&self, slot: Slot, at: TimestampNs) -> ShardId {
        self.map.shard_of(slot, at)
    }
    fn is_timeless(&self) -> bool {
        self.map.is_single()
    }
    fn epoch(&self, _: ShardId) -> u64 {
        self.epoch.load(SeqCst)
    }
    fn ids(
        &self,
        shard: ShardId,
        tenant: &TenantId,
        streams: bool,
        wanted: &[(&Labels, &Owner)],
    ) -> (u64, Vec<Option<u32>>) {
        let names = self.names.lock();
        let find = |(labels, owner): &(&Labels, &Owner)| {
            let is = |n: &Name| n.0 == shard && n.1 == *tenant && n.2 == streams && n.3 == **labels && n.4 == **owner;
            names.iter().position(is).map(|at| at as u32)
        };
        (self.epoch(shard), wanted.iter().map(find).collect())
    }
}

/// A node's tables and its replica.
pub struct Desk {
    pub replica: Replica,
    pub cache: SeriesCache,
    pub described: Described,
}

impl Desk {
    pub fn new(shards: u64) -> Self {
        Self {
            replica: Replica::new(shards),
            cache: SeriesCache::default(),
            described: Described::default(),
        }
    }

    pub fn books(&self, naming: Naming) -> Books<'_> {
        Books {
            ids: &self.replica,
            cache: &self.cache,
            described: &self.described,
            naming,
            new_series: None,
            masker: None,
        }
    }

    /// What a confirmed request leaves behind, and the rows it had.
    pub fn confirm(&self, laid: crate::Laid) -> Batch {
        let batch = self.replica.apply(&laid.intake);
        laid.lessons.learn(&laid.intake.tenant, &self.books(Naming::Known));
        batch
    }
}

/// Rows by series and stream, in a fixed order: what two ways of laying out must have in common.
pub fn sorted(mut batch: Batch) -> Batch {
    let mut series: Vec<SeriesBlock> = vec![];
    for block in std::mem::take(&mut batch.series) {
        match series
            .iter_mut()
            .find(|s| s.labels == block.labels && s.owner == block.owner)
        {
            Some(same) => same.samples.extend(block.samples),
            None => series.push(block),
        }
    }
    // Of equal times the order counts, across times it does not.
    series.iter_mut().for_each(|s| s.samples.sort_by_key(|s| s.at));
    series.sort_by(|a, b| a.labels.cmp(&b.labels));
    batch.series = series;
    let mut streams: Vec<StreamBlock> = vec![];
    for block in std::mem::take(&mut batch.streams) {
        match streams
            .iter_mut()
            .find(|s| s.labels == block.labels && s.owner == block.owner)
        {
            Some(same) => same.lines.extend(block.lines),
            None => streams.push(block),
        }
    }
    streams.iter_mut().for_each(|s| s.lines.sort_by_key(|l| l.at));
    streams.sort_by(|a, b| a.labels.cmp(&b.labels));
    batch.streams = streams;
    (batch.resources, batch.edges) = (vec![], vec![]);
    batch
}

//! A request laid out by shard: rows of numbers, lines as slices of text, and labels only of what has no number yet.
//!
//! A series or stream that the local replica knows is named by its id; any other by its place among the share's
//! definitions, which travel with it. Samples stand in groups of series that share their times, in the order in which
//! they came, so that the same scrape gives the same groups and the longest possible runs of numbers each time.
//!
//! Times of samples are whole milliseconds, times of lines nanoseconds.
//!
//! Invariants
//! - Of one series, samples of equal times keep their order.
//! - Every number among `Numbers::Ids` of a share was given in the share's epoch.

use crate::new_series::{CountedSeries, WidestLabel};
use hindcast_model::resource::Edge;
use hindcast_model::{Batch, BatchId, Labels, LogLine, Owner, Resource, Sample, ShardId, Slot, TenantId, TimestampNs};
use std::collections::BTreeMap;

/// How far back a group of the same times is looked for. Requests hold the samples of one target after another.
const GROUPS_BACK_MAX: usize = 8;

/// What the local replicas know: which shard takes what, and which ids its applied state has given.
pub trait Ids: Send + Sync {
    fn shard_of(&self, slot: Slot, at: TimestampNs) -> ShardId;
    /// Whether `shard_of` is the same for all of time.
    fn is_timeless(&self) -> bool;
    /// Counts how often ids of the shard were forgotten. Ids of another epoch mean nothing.
    fn epoch(&self, shard: ShardId) -> u64;
    /// The epoch, and the ids of those that are known, in order.
    fn ids(
        &self,
        shard: ShardId,
        tenant: &TenantId,
        streams: bool,
        wanted: &[(&Labels, &Owner)],
    ) -> (u64, Vec<Option<u32>>);

    /// Whether what is said of the shard is said of a copy on this node; else nothing is known of its series.
    fn is_here(&self, shard: ShardId) -> bool {
        let _ = shard;
        true
    }

    /// Active series of a tenant: looks at all of them.
    fn active_series(&self, tenant: &TenantId, now: TimestampNs) -> CountedSeries {
        let _ = (tenant, now);
        CountedSeries::default()
    }

    /// How many series of a tenant are new since they were counted.
    fn series_since(&self, tenant: &TenantId, counted: &CountedSeries) -> u64 {
        let _ = (tenant, counted);
        0
    }

    /// The label with the most values among a tenant's series: may look at all of these values.
    fn widest_label(&self, tenant: &TenantId) -> Option<WidestLabel> {
        let _ = tenant;
        None
    }
}

/// What numbers stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// Ids of the shard.
    Ids,
    /// Places among the definitions of the same share.
    Definitions,
}

/// A series or stream without a number.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    pub streams: bool,
    pub labels: Labels,
    pub owner: Owner,
}

/// Series that share their times.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    pub numbers: Numbers,
    pub times_ms: Vec<i64>,
    /// First number and length of each run.
    pub runs: Vec<(u32, u32)>,
    /// Series of the group.
    pub width: usize,
    /// Little-endian f64. Row after row once the intake is finished; until then series after series.
    pub values: Vec<u8>,
    /// Several rows, and they stand row after row already.
    turned: bool,
}

impl Group {
    fn new(numbers: Numbers, times_ms: &[i64]) -> Self {
        Self {
            numbers,
            times_ms: times_ms.to_vec(),
            runs: vec![],
            width: 0,
            values: vec![],
            turned: false,
        }
    }

    #[inline]
    fn number(&mut self, number: u32) {
        self.width += 1;
        match self.runs.last_mut() {
            Some((first, len)) if first.checked_add(*len) == Some(number) => *len += 1,
            _ => self.runs.push((number, 1)),
        }
    }

    #[inline]
    fn value(&mut self, bits: u64) {
        self.values.extend_from_slice(&bits.to_le_bytes());
    }

    /// Turns series after series into row after row.
    fn transpose(&mut self) {
        let rows = self.times_ms.len();
        if rows < 2 || self.turned {
            return;
        }
        self.turned = true;
        let mut turned = Vec::with_capacity(self.values.len());
        for row in 0..rows {
            for column in 0..self.width {
                turned.extend_from_slice(&self.values[(column * rows + row) * 8..][..8]);
            }
        }
        self.values = turned;
    }
}

/// Lines of one stream.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamRows {
    pub numbers: Numbers,
    pub number: u32,
    pub lines: usize,
    /// Per line: its time as a signed difference to the one before, the bytes of its metadata and of its text.
    pub heads: Vec<u8>,
    last_ns: i64,
}

/// What one shard takes of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Share {
    pub shard: ShardId,
    pub epoch: u64,
    pub definitions: Vec<Definition>,
    pub groups: Vec<Group>,
    pub streams: Vec<StreamRows>,
    /// Metadata and text of every line of `streams`, in their order.
    pub text: Vec<u8>,
    pub resources: Vec<Resource>,
    pub edges: Vec<Edge>,
}

impl Share {
    fn new(shard: ShardId, epoch: u64) -> Self {
        Self {
            shard,
            epoch,
            definitions: vec![],
            groups: vec![],
            streams: vec![],
            text: vec![],
            resources: vec![],
            edges: vec![],
        }
    }

    /// The group that takes a series with these times. An earlier group is taken up again only when no group of
    /// the series could lie between: samples of equal times keep their order.
    #[inline]
    fn group(&mut self, numbers: Numbers, times_ms: &[i64]) -> usize {
        let fits = |g: &Group| g.numbers == numbers && g.times_ms == times_ms && !g.turned;
        let mut at = self.groups.len();
        for group in self.groups.iter().rev().take(GROUPS_BACK_MAX) {
            at -= 1;
            if fits(group) {
                return at;
            }
            if group.numbers == numbers && (group.times_ms.len() > 1 || times_ms.len() > 1) {
                break;
            }
        }
        self.groups.push(Group::new(numbers, times_ms));
        self.groups.len() - 1
    }

    #[inline]
    pub(crate) fn one(&mut self, numbers: Numbers, number: u32, at_ms: i64, bits: u64) {
        let at = match self.groups.last() {
            Some(g) if g.numbers == numbers && *g.times_ms == [at_ms] => self.groups.len() - 1,
            _ => self.group(numbers, &[at_ms]),
        };
        let group = &mut self.groups[at];
        group.number(number);
        group.value(bits);
    }

    pub(crate) fn many(&mut self, numbers: Numbers, number: u32, times_ms: &[i64], bits: impl Iterator<Item = u64>) {
        let at = self.group(numbers, times_ms);
        let group = &mut self.groups[at];
        group.number(number);
        bits.for_each(|b| group.value(b));
    }

    /// Whole rows at once: `runs` of ids, `values` row after row.
    pub(crate) fn rows(&mut self, times_ms: &[i64], runs: &[(u32, u32)], values: &[u8]) {
        let mut group = Group::new(Numbers::Ids, times_ms);
        for &(first, len) in runs {
            group.width += len as usize;
            match group.runs.last_mut() {
                Some((f, l)) if f.checked_add(*l) == Some(first) => *l += len,
                _ => group.runs.push((first, len)),
            }
        }
        group.values.extend_from_slice(values);
        group.turned = times_ms.len() > 1;
        self.groups.push(group);
    }

    pub(crate) fn define(&mut self, streams: bool, labels: Labels, owner: Owner) -> u32 {
        self.definitions.push(Definition { streams, labels, owner });
        self.definitions.len() as u32 - 1
    }

    /// Begins a run of lines of one stream.
    pub(crate) fn stream(&mut self, numbers: Numbers, number: u32) {
        self.streams.push(StreamRows {
            numbers,
            number,
            lines: 0,
            heads: vec![],
            last_ns: 0,
        });
    }

    /// A line of the stream begun last. `metadata` as [`put_metadata`] wrote it.
    pub(crate) fn line(&mut self, at_ns: i64, line: &[u8], metadata: &[u8]) {
        let Some(stream) = self.streams.last_mut() else { return };
        stream.lines += 1;
        put_signed(&mut stream.heads, at_ns.wrapping_sub(stream.last_ns));
        stream.last_ns = at_ns;
        put_varint(&mut stream.heads, metadata.len() as u64);
        put_varint(&mut stream.heads, line.len() as u64);
        self.text.extend_from_slice(metadata);
        self.text.extend_from_slice(line);
    }

    /// Whether there is anything to store.
    pub fn has_rows(&self) -> bool {
        !self.groups.is_empty() || !self.streams.is_empty()
    }
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

fn put_signed(out: &mut Vec<u8>, v: i64) {
    put_varint(out, ((v << 1) ^ (v >> 63)) as u64);
}

/// Structured metadata as storage keeps it: nothing for none, else each name and value with its length.
pub(crate) fn put_metadata<'a>(out: &mut Vec<u8>, metadata: impl Iterator<Item = (&'a str, &'a str)>) {
    for text in metadata.flat_map(|(n, v)| [n, v]) {
        put_varint(out, text.len() as u64);
        out.extend_from_slice(text.as_bytes());
    }
}

/// Whether ids may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// What the local replica knows is named by id.
    Known,
    /// Everything is defined: what a shard answers as stale is laid out anew like this, and holds in any epoch.
    Defined,
}

/// A request, ready to be encoded for its shards.
#[derive(Clone, Debug, PartialEq)]
pub struct Intake {
    pub tenant: TenantId,
    pub id: Option<BatchId>,
    pub samples: u64,
    pub lines: u64,
    /// By shard, once finished.
    pub shares: Vec<Share>,
    last: usize,
}

impl Intake {
    pub fn new(tenant: TenantId, id: Option<BatchId>) -> Self {
        Self {
            tenant,
            id,
            samples: 0,
            lines: 0,
            shares: vec![],
            last: 0,
        }
    }

    /// Bytes of all lines with their metadata.
    pub fn text_bytes(&self) -> usize {
        self.shares.iter().map(|s| s.text.len()).sum()
    }

    /// Whether there is nothing to store.
    pub fn is_empty(&self) -> bool {
        !self.shares.iter().any(Share::has_rows)
    }

    #[inline]
    pub(crate) fn share(&mut self, shard: ShardId, ids: &dyn Ids) -> &mut Share {
        if self.shares.get(self.last).is_none_or(|s| s.shard != shard) {
            self.last = match self.shares.iter().position(|s| s.shard == shard) {
                Some(at) => at,
                None => {
                    self.shares.push(Share::new(shard, ids.epoch(shard)));
                    self.shares.len() - 1
                }
            };
        }
        &mut self.shares[self.last]
    }

    /// Lays out a whole batch.
    pub fn of_batch(batch: &Batch, ids: &dyn Ids, naming: Naming) -> Self {
        let mut intake = Self::new(batch.tenant.clone(), batch.id);
        let mut pieces = vec![];
        for s in &batch.series {
            split_samples(ids, &s.labels, s.owner, &s.samples, &mut pieces);
        }
        for s in &batch.streams {
            split_lines(ids, &s.labels, s.owner, &s.lines, &mut pieces);
        }
        intake.place(ids, naming, &pieces);
        intake.facts(ids, batch.resources.iter().cloned(), &batch.edges);
        intake.finish();
        intake
    }

    /// Resources and edges are facts of today: they go to the shard that owns the slot now.
    pub(crate) fn facts(&mut self, ids: &dyn Ids, resources: impl Iterator<Item = Resource>, edges: &[Edge]) {
        for resource in resources {
            let shard = ids.shard_of(resource.id.slot(), TimestampNs::MAX);
            self.share(shard, ids).resources.push(resource);
        }
        for edge in edges {
            let shard = ids.shard_of(edge.from.slot(), TimestampNs::MAX);
            self.share(shard, ids).edges.push(*edge);
        }
    }

    /// Adds pieces, by id where the local replica has one; the ids, in order.
    pub(crate) fn place(&mut self, ids: &dyn Ids, naming: Naming, pieces: &[Piece<'_>]) -> Vec<Option<u32>> {
        let known = self.known(ids, naming, pieces);
        for (piece, id) in pieces.iter().zip(&known) {
            let share = self.share(piece.shard, ids);
            let streams = matches!(piece.rows, Rows::Lines(_));
            let (numbers, number) = match *id {
                Some(id) => (Numbers::Ids, id),
                None => {
                    let number = share.define(streams, piece.labels.clone(), piece.owner);
                    (Numbers::Definitions, number)
                }
            };
            match &piece.rows {
                Rows::Samples(samples) => {
                    if let [s] = &samples[..] {
                        share.one(numbers, number, s.at.as_ms(), s.value.to_bits());
                    } else {
                        let times: Vec<i64> = samples.iter().map(|s| s.at.as_ms()).collect();
                        share.many(numbers, number, &times, samples.iter().map(|s| s.value.to_bits()));
                    }
                    self.samples += samples.len() as u64;
                }
                Rows::Lines(lines) => {
                    share.stream(numbers, number);
                    let mut metadata = vec![];
                    for l in lines {
                        metadata.clear();
                        put_metadata(&mut metadata, l.metadata.iter().map(|(n, v)| (n.as_str(), v.as_str())));
                        share.line(l.at.0, &l.line, &metadata);
                    }
                    self.lines += lines.len() as u64;
                }
            }
        }
        known
    }

    fn known(&mut self, ids: &dyn Ids, naming: Naming, pieces: &[Piece<'_>]) -> Vec<Option<u32>> {
        let mut known = vec![None; pieces.len()];
        if naming == Naming::Defined {
            return known;
        }
        let mut by_shard: BTreeMap<(ShardId, bool), Vec<usize>> = BTreeMap::new();
        for (i, p) in pieces.iter().enumerate() {
            let kind = (p.shard, matches!(p.rows, Rows::Lines(_)));
            by_shard.entry(kind).or_default().push(i);
        }
        for ((shard, streams), places) in by_shard {
            let wanted: Vec<_> = places.iter().map(|&i| (pieces[i].labels, &pieces[i].owner)).collect();
            let (epoch, found) = ids.ids(shard, &self.tenant, streams, &wanted);
            // Ids of two epochs never stand in one share.
            if epoch == self.share(shard, ids).epoch {
                for (i, id) in places.into_iter().zip(found) {
                    known[i] = id;
                }
            }
        }
        known
    }

    /// Brings rows and shares into their final order.
    pub(crate) fn finish(&mut self) {
        self.shares
            .retain(|s| s.has_rows() || !s.resources.is_empty() || !s.edges.is_empty());
        self.shares.sort_by_key(|s| s.shard);
        self.last = 0;
        for share in &mut self.shares {
            share.groups.iter_mut().for_each(Group::transpose);
        }
    }
}

/// Rows of one series or stream for one shard.
pub(crate) struct Piece<'a> {
    pub shard: ShardId,
    pub labels: &'a Labels,
    pub owner: Owner,
    pub rows: Rows,
}

pub(crate) enum Rows {
    Samples(Vec<Sample>),
    Lines(Vec<LogLine>),
}

fn split<T: Clone>(ids: &dyn Ids, slot: Slot, rows: &[T], at: impl Fn(&T) -> TimestampNs) -> Vec<(ShardId, Vec<T>)> {
    if ids.is_timeless() {
        return vec![(ids.shard_of(slot, TimestampNs::MAX), rows.to_vec())];
    }
    let mut by_shard: BTreeMap<ShardId, Vec<T>> = BTreeMap::new();
    for row in rows {
        by_shard
            .entry(ids.shard_of(slot, at(row)))
            .or_default()
            .push(row.clone());
    }
    by_shard.into_iter().collect()
}

/// A series whose samples span a change of the shard map is split by time.
pub(crate) fn split_samples<'a>(
    ids: &dyn Ids,
    labels: &'a Labels,
    owner: Owner,
    samples: &[Sample],
    out: &mut Vec<Piece<'a>>,
) {
    if samples.is_empty() {
        return;
    }
    let pieces = split(ids, owner.slot(labels), samples, |s| s.at);
    out.extend(pieces.into_iter().map(|(shard, samples)| Piece {
        shard,
        labels,
        owner,
        rows: Rows::Samples(samples),
    }));
}

pub(crate) fn split_lines<'a>(
    ids: &dyn Ids,
    labels: &'a Labels,
    owner: Owner,
    lines: &[LogLine],
    out: &mut Vec<Piece<'a>>,
) {
    if lines.is_empty() {
        return;
    }
    let pieces = split(ids, owner.slot(labels), lines, |l| l.at);
    out.extend(pieces.into_iter().map(|(shard, lines)| Piece {
        shard,
        labels,
        owner,
        rows: Rows::Lines(lines),
    }));
}

//! One shard in memory, for tests of this crate and of those to its right: a vector of series and of streams.
//!
//! Promises what `shards::Shards` promises, and nothing about speed. `as_of` is not kept: all data is always known.

use crate::load;
use crate::natives::NativeCollector;
use crate::reduce::Collector;
use crate::shards::{
    Columns, ColumnsRequest, Completeness, CountsRequest, LabelsRequest, LinesRequest, NativeSeries, SeriesRequest,
    Shards, ShardsError,
};
use hindcast_model::matcher::matches_all;
use hindcast_model::{GroupId, Labels, LogLine, Matcher, Owner, ResourceId, Sample, ShardId, TenantId, TimestampNs};
use hindcast_storage::points::Points;
use hindcast_storage::read::{Direction, Rolled, SeriesData, StreamCounts, StreamData};
use hindcast_storage::{VisitedSeries, VisitedStream};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What one series or stream is filed under: the order of summation.
type Place = (TenantId, u16, u64, Labels);

#[derive(Clone)]
struct Series {
    owner: Owner,
    samples: BTreeMap<TimestampNs, f64>,
}

#[derive(Clone)]
struct Stream {
    owner: Owner,
    lines: Vec<LogLine>,
}

#[derive(Default)]
struct Data {
    series: BTreeMap<Place, Series>,
    streams: BTreeMap<Place, Stream>,
    complete_to: Option<TimestampNs>,
    missing: Vec<String>,
    writes: u64,
}

/// Series and streams of all tenants, in shard 1.
#[derive(Default)]
pub struct OneShard {
    data: Mutex<Data>,
}

fn place(tenant: &TenantId, owner: &Owner, labels: &Labels) -> Place {
    (
        tenant.clone(),
        owner.slot(labels).0,
        labels.fingerprint(),
        labels.clone(),
    )
}

impl OneShard {
    pub fn new() -> Self {
        Self::default()
    }

    fn data(&self) -> MutexGuard<'_, Data> {
        // A panicking test leaves plain data behind.
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a series without an owner, or samples to it. The last value of a time wins.
    pub fn add(&self, tenant: &TenantId, labels: Labels, samples: impl IntoIterator<Item = Sample>) {
        self.add_owned(tenant, labels, Owner::None, samples);
    }

    pub fn add_owned(
        &self,
        tenant: &TenantId,
        labels: Labels,
        owner: Owner,
        samples: impl IntoIterator<Item = Sample>,
    ) {
        let mut data = self.data();
        data.writes += 1;
        let series = data
            .series
            .entry(place(tenant, &owner, &labels))
            .or_insert_with(|| Series {
                owner,
                samples: BTreeMap::new(),
            });
        series
            .samples
            .extend(samples.into_iter().map(|s| (s.at.floor_ms(), s.value)));
    }

    pub fn add_lines(&self, tenant: &TenantId, labels: Labels, owner: Owner, lines: impl IntoIterator<Item = LogLine>) {
        let mut data = self.data();
        data.writes += 1;
        let stream = data
            .streams
            .entry(place(tenant, &owner, &labels))
            .or_insert_with(|| Stream { owner, lines: vec![] });
        stream.lines.extend(lines);
        stream.lines.sort_by_key(|l| l.at);
    }

    /// What `Shards::complete_to` says. Unset: the newest sample or line.
    pub fn set_complete_to(&self, at: TimestampNs) {
        self.data().complete_to = Some(at);
    }

    /// What answers say is missing.
    pub fn set_missing(&self, missing: Vec<String>) {
        self.data().missing = missing;
    }

    pub fn clear(&self) {
        *self.data() = Data::default();
    }
}

impl Data {
    fn series<'a>(&'a self, r: &'a SeriesRequest) -> impl Iterator<Item = SeriesData> + 'a {
        let found = self.series.iter().filter(|(p, s)| {
            selected(&r.tenant, &r.matchers, p) && owned(r.owners.as_ref(), &s.owner) && !r.skips(&p.3)
        });
        let data = |(p, s): (&Place, &Series)| SeriesData {
            labels: p.3.clone(),
            owner: s.owner,
            slot: s.owner.slot(&p.3),
            samples: s.samples.range(r.from..=r.to).map(sample).collect(),
            has_lasts: false,
        };
        found.map(data).filter(|s| !s.samples.is_empty())
    }

    fn natives(&self, r: &SeriesRequest) -> Vec<NativeSeries> {
        let Some(matchers) = load::of_natives(&r.matchers) else {
            return vec![];
        };
        let mut collector = NativeCollector::new(r);
        let streams = self
            .streams
            .iter()
            .filter(|(p, s)| selected(&r.tenant, &matchers, p) && owned(r.owners.as_ref(), &s.owner));
        'all: for (rank, (p, s)) in streams.enumerate() {
            let stream = VisitedStream {
                labels: &p.3,
                owner: s.owner,
                slot: s.owner.slot(&p.3),
                rank,
            };
            for l in s.lines.iter().filter(|l| r.from <= l.at && l.at <= r.to) {
                if collector.take(stream, l.at, &l.line).is_break() {
                    break 'all;
                }
            }
        }
        collector.finish()
    }

    fn completeness(&self) -> Completeness {
        Completeness {
            missing: self.missing.clone(),
            positions: [(GroupId::from(ShardId(1)), self.writes)].into(),
            ..Completeness::default()
        }
    }
}

fn owned(owners: Option<&BTreeSet<ResourceId>>, owner: &Owner) -> bool {
    owners.is_none_or(|set| owner.id().is_some_and(|id| set.contains(&id)))
}

fn selected(tenant: &TenantId, matchers: &[Matcher], place: &Place) -> bool {
    place.0 == *tenant && matches_all(matchers, &place.3)
}

#[async_trait::async_trait]
impl Shards for OneShard {
    async fn series(&self, r: SeriesRequest) -> Result<(Vec<SeriesData>, Completeness), ShardsError> {
        let data = self.data();
        let mut found = vec![];
        for series in data.series(&r) {
            if r.budget.read(series.samples.len()).is_break() {
                break;
            }
            found.push(series);
        }
        Ok((found, data.completeness()))
    }

    async fn columns(&self, r: ColumnsRequest) -> Result<(Columns, Completeness), ShardsError> {
        let data = self.data();
        let mut collector = Collector::new(&r);
        for (rank, series) in data.series(&r.series).enumerate() {
            let mut points = Points::default();
            series.samples.iter().for_each(|s| points.push(s.at.0, s.value));
            let visited = VisitedSeries {
                labels: &series.labels,
                owner: series.owner,
                slot: series.slot,
                fingerprint: series.labels.fingerprint(),
                rolled: &Rolled::NOTHING,
                rank,
            };
            let taken = collector.take(visited, &points);
            if taken.is_break() {
                break;
            }
        }
        Ok((collector.finish(data.natives(&r.series)), data.completeness()))
    }

    async fn natives(&self, r: SeriesRequest) -> Result<(Vec<NativeSeries>, Completeness), ShardsError> {
        let data = self.data();
        Ok((data.natives(&r), data.completeness()))
    }

    async fn line_counts(&self, r: CountsRequest) -> Result<(Vec<StreamCounts>, Completeness), ShardsError> {
        let data = self.data();
        let found = data
            .streams
            .iter()
            .filter(|(p, s)| selected(&r.tenant, &r.matchers, p) && owned(r.owners.as_ref(), &s.owner));
        let counts = found.map(|(p, s)| {
            let upto = |bound: &TimestampNs| {
                let counted = s.lines.iter().filter(|l| r.from <= l.at && l.at <= *bound);
                counted.filter(|l| r.filter.is_match(&l.line)).count() as u64
            };
            StreamCounts {
                labels: p.3.clone(),
                owner: s.owner,
                slot: s.owner.slot(&p.3),
                counts: r.bounds.iter().map(upto).collect(),
            }
        });
        let counts = counts.filter(|s| s.counts.last().is_some_and(|c| *c > 0)).collect();
        Ok((counts, data.completeness()))
    }

    async fn lines(&self, r: LinesRequest) -> Result<(Vec<StreamData>, Completeness), ShardsError> {
        let data = self.data();
        let mut streams: Vec<StreamData> = data
            .streams
            .iter()
            .filter(|(p, s)| selected(&r.tenant, &r.matchers, p) && owned(r.owners.as_ref(), &s.owner))
            .map(|(p, s)| StreamData {
                labels: p.3.clone(),
                owner: s.owner,
                slot: s.owner.slot(&p.3),
                lines: s.lines.iter().filter(|l| wanted(&r, l)).cloned().collect(),
            })
            .collect();
        if let Some(limit) = r.limit {
            keep_lines(&mut streams, limit, r.direction);
        }
        streams.retain(|s| !s.lines.is_empty());
        Ok((streams, data.completeness()))
    }

    async fn label_sets(&self, r: LabelsRequest) -> Result<(Vec<Labels>, Completeness), ShardsError> {
        let data = self.data();
        let within = |at: &TimestampNs| r.from <= *at && *at <= r.to;
        let places: Vec<&Place> = if r.streams {
            let live = data
                .streams
                .iter()
                .filter(|(_, s)| s.lines.iter().any(|l| within(&l.at)));
            live.map(|(p, _)| p).collect()
        } else {
            let live = data.series.iter().filter(|(_, s)| s.samples.keys().any(within));
            live.map(|(p, _)| p).collect()
        };
        let sets: BTreeSet<Labels> = places
            .into_iter()
            .filter(|p| p.0 == r.tenant && (r.any_of.is_empty() || r.any_of.iter().any(|m| matches_all(m, &p.3))))
            .map(|p| p.3.clone())
            .collect();
        Ok((sets.into_iter().collect(), data.completeness()))
    }

    async fn complete_to(&self, tenant: &TenantId) -> Result<TimestampNs, ShardsError> {
        let data = self.data();
        let samples = data.series.iter().filter(|(p, _)| p.0 == *tenant);
        let lines = data.streams.iter().filter(|(p, _)| p.0 == *tenant);
        let newest = samples.filter_map(|(_, s)| s.samples.keys().last().copied()).max();
        let newest = newest.max(lines.filter_map(|(_, s)| s.lines.last().map(|l| l.at)).max());
        Ok(data.complete_to.or(newest).unwrap_or(TimestampNs::EPOCH))
    }
}

fn sample((at, value): (&TimestampNs, &f64)) -> Sample {
    Sample { at: *at, value: *value }
}

fn wanted(r: &LinesRequest, l: &LogLine) -> bool {
    r.from <= l.at && l.at <= r.to && r.filter.is_match(&l.line)
}

/// Keeps the newest or the oldest `limit` lines over all streams.
fn keep_lines(streams: &mut [StreamData], limit: usize, direction: Direction) {
    let mut order: Vec<(TimestampNs, usize, usize)> = vec![];
    for (s, stream) in streams.iter().enumerate() {
        order.extend(stream.lines.iter().enumerate().map(|(l, line)| (line.at, s, l)));
    }
    order.sort_unstable();
    if direction == Direction::Backward {
        order.reverse();
    }
    let kept: BTreeSet<(usize, usize)> = order.into_iter().take(limit).map(|(_, s, l)| (s, l)).collect();
    for (s, stream) in streams.iter_mut().enumerate() {
        let mut l = 0;
        stream.lines.retain(|_| {
            l += 1;
            kept.contains(&(s, l - 1))
        });
    }
}

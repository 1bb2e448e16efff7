//! The seam through which queries reach data, wherever it is. `ops/hindcast` ties it to the peer transport;
//! `testing::OneShard` and the simulator are the other implementations.

use crate::fold::{Fold, Folded};
use crate::load;
use crate::reduce::Reduction;
use hindcast_model::{
    Class, Classify, Histogram, Labels, Matcher, Owner, Positions, ResourceId, Slot, SpanNs, TenantId, TimestampNs,
};
use hindcast_proto::trace::TRACE_LABEL;
use hindcast_storage::cardinality::{ACTIVE_SPAN, Cardinality};
use hindcast_storage::logs::Filter;
use hindcast_storage::read::{Direction, LabelTexts, SeriesData, StreamCounts, StreamData};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// How much one query may still read, and whether anybody still waits for it. Shared by all its reads: whoever reads
/// asks after each series (of native histograms: after each of them), and stops when told to; what it has found so far is then its answer, and not used.
#[derive(Debug)]
pub struct Budget {
    /// Of all selectors together; of what is read, and again of what is computed while reading.
    pub samples_max: usize,
    /// Of one selector.
    pub series_max: usize,
    samples: AtomicUsize,
    computed: AtomicUsize,
    cancelled: Arc<AtomicBool>,
}

impl Budget {
    pub fn new(samples_max: usize, series_max: usize) -> Self {
        Self {
            samples_max,
            series_max,
            samples: AtomicUsize::new(0),
            computed: AtomicUsize::new(0),
            cancelled: Arc::default(),
        }
    }

    /// For readers that bound themselves.
    pub fn unbounded() -> Self {
        Self::new(usize::MAX, usize::MAX)
    }

    /// For asking again in another way: as much as at the beginning, and ends when the query does.
    pub fn afresh(&self) -> Self {
        Self {
            cancelled: self.cancelled.clone(),
            ..Self::new(self.samples_max, self.series_max)
        }
    }

    /// For reading again what was counted already: ends when the query does.
    pub fn uncounted(&self) -> Self {
        Self {
            cancelled: self.cancelled.clone(),
            ..Self::unbounded()
        }
    }

    fn count(&self, counter: &AtomicUsize, more: usize) -> ControlFlow<()> {
        // The counts are all that is shared: nothing else is read on their word.
        let so_far = counter.fetch_add(more, Ordering::Relaxed).saturating_add(more);
        if so_far > self.samples_max || self.cancelled.load(Ordering::Relaxed) {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    /// So many samples were read.
    pub fn read(&self, samples: usize) -> ControlFlow<()> {
        self.count(&self.samples, samples)
    }

    /// So many values were computed and are kept.
    pub fn computed(&self, values: usize) -> ControlFlow<()> {
        self.count(&self.computed, values)
    }

    /// How many more samples may be read, and values computed.
    pub fn left(&self) -> (usize, usize) {
        let computed = self.computed.load(Ordering::Relaxed);
        let left = |used: usize| self.samples_max.saturating_sub(used);
        (left(self.samples()), left(computed))
    }

    /// Where it is part of another one, of which others use their parts.
    pub fn of_left((samples, computed): (usize, usize), series_max: usize) -> Self {
        let most = samples.max(computed);
        let part = Self::new(most, series_max);
        part.samples.store(most - samples, Ordering::Relaxed);
        part.computed.store(most - computed, Ordering::Relaxed);
        part
    }

    /// Reads elsewhere were stopped because they found too much.
    pub fn exceed(&self) {
        self.samples
            .fetch_max(self.samples_max.saturating_add(1), Ordering::Relaxed);
    }

    pub fn samples(&self) -> usize {
        self.samples.load(Ordering::Relaxed)
    }

    /// Whether reads were stopped because they found too much.
    pub fn is_exceeded(&self) -> bool {
        self.samples().max(self.computed.load(Ordering::Relaxed)) > self.samples_max
    }

    /// Nobody waits any more.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// Which samples, over all shards. `hindcast_storage::read::SelectSeries` with one commit position per shard.
#[derive(Clone, Debug)]
pub struct SeriesRequest {
    pub tenant: TenantId,
    pub matchers: Vec<Matcher>,
    pub from: TimestampNs,
    pub to: TimestampNs,
    /// A cut's positions; a shard that it does not name answers nothing. `None`: all that is known.
    pub as_of: Option<Positions>,
    pub owners: Option<BTreeSet<ResourceId>>,
    /// Of those that match, only these label sets. `None`: all.
    pub only: Option<Arc<BTreeSet<Labels>>>,
    pub budget: Arc<Budget>,
}

impl SeriesRequest {
    /// Whether a series that matches is still not wanted.
    pub fn skips(&self, labels: &Labels) -> bool {
        self.only.as_ref().is_some_and(|only| !only.contains(labels))
    }
}

/// Series, each made one value per step where it is read.
#[derive(Clone, Debug)]
pub struct ColumnsRequest {
    pub series: SeriesRequest,
    pub reduction: Arc<Reduction>,
    /// What is wanted is the aggregation of the columns: who can folds them where they are made, and who cannot gives the columns.
    pub fold: Option<Arc<Fold>>,
}

/// In which other form than rows samples stood that a value was made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OldForms {
    /// Windows, as wholes.
    pub windows: bool,
    /// The last samples of windows.
    pub lasts: bool,
    /// Windows that do not tell exactly: the value is the least that it can be.
    pub least: bool,
}

impl OldForms {
    pub fn merge(&mut self, other: Self) {
        self.windows |= other.windows;
        self.lasts |= other.lasts;
        self.least |= other.least;
    }
}

/// What was made of the samples that one shard has of one series in one slot.
#[derive(Clone, Debug, PartialEq)]
pub struct SeriesColumn {
    pub labels: Labels,
    pub owner: Owner,
    pub slot: Slot,
    /// Of the labels.
    pub fingerprint: u64,
    /// One per step; empty: there are samples, but no value at any step.
    pub values: Vec<f64>,
    pub old: OldForms,
}

/// The native histograms that one shard has of one series in one slot. Nothing is made of them where they lie.
#[derive(Clone, Debug, PartialEq)]
pub struct NativeSeries {
    /// Of the series: without the mark of the stream.
    pub labels: Labels,
    pub owner: Owner,
    pub slot: Slot,
    /// Ascending, in whole milliseconds, each once. `None`: the series ended there.
    pub samples: Vec<(TimestampNs, Option<Arc<Histogram>>)>,
    /// Lines that are no histograms.
    pub unreadable: usize,
}

/// What was made of what was asked for, and native histograms as they are.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    pub columns: Vec<SeriesColumn>,
    pub natives: Vec<NativeSeries>,
    /// In place of columns, of each shard that folded its own.
    pub folded: Vec<Folded>,
}

impl Columns {
    /// Another shard's.
    pub fn extend(&mut self, more: Self) {
        self.columns.extend(more.columns);
        self.natives.extend(more.natives);
        self.folded.extend(more.folded);
    }
}

/// How many lines there are, without the lines.
#[derive(Clone, Debug)]
pub struct CountsRequest {
    pub tenant: TenantId,
    pub matchers: Vec<Matcher>,
    pub from: TimestampNs,
    /// Ascending. Each is counted to, inclusive.
    pub bounds: Vec<TimestampNs>,
    pub as_of: Option<Positions>,
    pub owners: Option<BTreeSet<ResourceId>>,
    pub filter: Filter,
    /// Counts are computed values: one for each bound, of each stream that has a line.
    pub budget: Arc<Budget>,
}

#[derive(Clone, Debug)]
pub struct LinesRequest {
    pub tenant: TenantId,
    pub matchers: Vec<Matcher>,
    pub from: TimestampNs,
    pub to: TimestampNs,
    pub as_of: Option<Positions>,
    pub owners: Option<BTreeSet<ResourceId>>,
    /// Only lines that pass.
    pub filter: Filter,
    /// Over all shards.
    pub limit: Option<usize>,
    pub direction: Direction,
}

#[derive(Clone, Debug)]
pub struct LabelsRequest {
    pub tenant: TenantId,
    pub streams: bool,
    pub any_of: Vec<Vec<Matcher>>,
    pub from: TimestampNs,
    pub to: TimestampNs,
}

/// Whether an answer is whole, and what it had seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Completeness {
    /// What could not be asked, and why; empty: the answer is complete.
    pub missing: Vec<String>,
    /// Applied positions of the shards that answered.
    pub positions: Positions,
    pub freshness: Freshness,
    /// Lines that came from the shards. Those that were tested or counted where they lie are not among them.
    pub lines: LinesRead,
}

/// How much of lines was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinesRead {
    pub lines: u64,
    pub bytes: u64,
}

impl LinesRead {
    pub fn of(streams: &[StreamData]) -> Self {
        let lines = || streams.iter().flat_map(|s| &s.lines);
        Self {
            lines: lines().count() as u64,
            bytes: lines().map(|l| l.line.len() as u64).sum(),
        }
    }

    pub fn merge(&mut self, other: Self) {
        self.lines += other.lines;
        self.bytes += other.bytes;
    }
}

/// What a query asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Everything that was acknowledged before is in the answer.
    #[default]
    Linearizable,
    /// The nearest replica answers at once, and says how old that is.
    StaleOk,
}

impl Consistency {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "linearizable" => Some(Self::Linearizable),
            "stale-ok" => Some(Self::StaleOk),
            _ => None,
        }
    }
}

/// How new an answer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Freshness {
    /// As new as when it was asked for.
    #[default]
    Linearizable,
    /// Everything that was acknowledged `age` ago is in it; `None`: nobody can tell.
    Stale { age: Option<SpanNs> },
}

impl Freshness {
    /// Of two parts of an answer, the older one counts.
    pub fn merge(self, other: Self) -> Self {
        match (self, other) {
            (Self::Linearizable, other) | (other, Self::Linearizable) => other,
            (Self::Stale { age: a }, Self::Stale { age: b }) => Self::Stale {
                age: a.zip(b).map(|(a, b)| a.max(b)),
            },
        }
    }
}

impl Completeness {
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }
    pub fn merge(&mut self, other: Self) {
        self.missing.extend(other.missing);
        self.freshness = self.freshness.merge(other.freshness);
        self.lines.merge(other.lines);
        for (group, index) in other.positions {
            let seen = self.positions.entry(group).or_insert(index);
            // Two reads of one query: the answer as a whole is only as new as the older one.
            *seen = (*seen).min(index);
        }
    }
}

/// Why no answer can be given at all. A shard that cannot be reached is no error: it makes the answer incomplete.
#[derive(Debug, thiserror::Error)]
pub enum ShardsError {
    #[error("{0}")]
    Refused(String),
    #[error("no shard could be asked: {0}")]
    Unavailable(String),
}

impl Classify for ShardsError {
    fn class(&self) -> Class {
        match self {
            Self::Refused(_) => Class::FixRequest,
            Self::Unavailable(_) => Class::Unavailable,
        }
    }
}

#[async_trait::async_trait]
pub trait Shards: Send + Sync {
    /// The same shards, read in another way. `None`: there is no other.
    fn read_with(&self, consistency: Consistency) -> Option<Arc<dyn Shards>> {
        let _ = consistency;
        None
    }
    /// Sorted by (slot, fingerprint, labels): the order of summation. A label set occurs once per slot.
    async fn series(&self, request: SeriesRequest) -> Result<(Vec<SeriesData>, Completeness), ShardsError>;
    /// In any order. A series whose samples lie in several places (slots of several owners, shards before and after a
    /// move of slots) comes once for each: its columns are of no use, who asks must put its samples together.
    async fn columns(&self, request: ColumnsRequest) -> Result<(Columns, Completeness), ShardsError>;
    /// In any order; like columns, a series may come several times.
    async fn natives(&self, request: SeriesRequest) -> Result<(Vec<NativeSeries>, Completeness), ShardsError>;
    /// In any order; counts of one label set that come several times add up. Streams without a line are left out.
    async fn line_counts(&self, request: CountsRequest) -> Result<(Vec<StreamCounts>, Completeness), ShardsError>;
    /// Sorted by (slot, fingerprint, labels).
    async fn lines(&self, request: LinesRequest) -> Result<(Vec<StreamData>, Completeness), ShardsError>;
    /// Sorted, each once.
    async fn label_sets(&self, request: LabelsRequest) -> Result<(Vec<Labels>, Completeness), ShardsError>;
    /// Names of labels, or values of one, of the label sets that `label_sets` gives; sorted, each once. Who can tell
    /// them without all the sets does.
    async fn label_texts(
        &self,
        request: LabelsRequest,
        of: LabelTexts,
    ) -> Result<(Vec<String>, Completeness), ShardsError> {
        let (sets, completeness) = self.label_sets(request).await?;
        let texts: BTreeSet<&str> = match &of {
            LabelTexts::Names => sets.iter().flat_map(|l| l.iter().map(|(n, _)| n)).collect(),
            LabelTexts::Values(name) => sets.iter().filter_map(|l| l.get(name)).collect(),
        };
        Ok((texts.into_iter().map(str::to_owned).collect(), completeness))
    }
    /// What a tenant's active series are; each list with at most so many entries. Who can count without all the sets does.
    async fn cardinality(
        &self,
        tenant: &TenantId,
        now: TimestampNs,
        entries: usize,
    ) -> Result<(Cardinality, Completeness), ShardsError> {
        cardinality_of_sets(self, tenant, now, entries).await
    }
    /// Every source of every shard has sent event time up to here (silent ones aside).
    async fn complete_to(&self, tenant: &TenantId) -> Result<TimestampNs, ShardsError>;

    /// Likewise, but for sources that are too far behind to be waited for: rules wait for it.
    async fn awaited_to(&self, tenant: &TenantId) -> Result<TimestampNs, ShardsError> {
        self.complete_to(tenant).await
    }
}

/// A tenant's active series, told from all their label sets.
pub async fn cardinality_of_sets<S: Shards + ?Sized>(
    shards: &S,
    tenant: &TenantId,
    now: TimestampNs,
    entries: usize,
) -> Result<(Cardinality, Completeness), ShardsError> {
    let request = LabelsRequest {
        tenant: tenant.clone(),
        streams: false,
        any_of: vec![vec![]],
        from: now - ACTIVE_SPAN,
        to: now,
    };
    let natives = LabelsRequest {
        streams: true,
        any_of: load::of_natives(&[]).into_iter().collect(),
        ..request.clone()
    };
    let (mut sets, mut completeness) = shards.label_sets(request).await?;
    let (streams, seen) = shards.label_sets(natives).await?;
    completeness.merge(seen);
    sets.extend(streams.iter().map(|s| s.without(TRACE_LABEL)));
    Ok((Cardinality::of_sets(&sets, entries), completeness))
}

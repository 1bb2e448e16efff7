//! What a read asks a shard for, and what it gets: plain values that also cross the peer protocol.

pub use crate::aggregate::{Resolution, Values, Window};
pub use crate::grain::{Grain, Rolled};
use crate::logs::Filter;
use hindcast_model::{Labels, LogLine, Matcher, Owner, ResourceId, Sample, Slot, TenantId, TimestampNs};
use std::collections::BTreeSet;

/// Samples of every series that matches, with event time in `from..=to`. Below the raw floor each window that is kept
/// gives its last sample (and the staleness marker behind it), at the time at which it stood; at a cut it does not.
#[derive(Clone, Debug)]
pub struct SelectSeries {
    pub tenant: TenantId,
    pub matchers: Vec<Matcher>,
    pub from: TimestampNs,
    pub to: TimestampNs,
    /// Only what was committed in this shard up to and including this index. `None`: everything.
    /// Exact at recorded cuts; elsewhere it is an error of the caller (`ReadError::NoCut`).
    pub as_of: Option<u64>,
    /// Only series owned by one of these. `None`: any owner, or none.
    pub owners: Option<BTreeSet<ResourceId>>,
}

/// One series in an answer. `samples` ascend by time, each time once (the last commit won).
#[derive(Clone, Debug, PartialEq)]
pub struct SeriesData {
    pub labels: Labels,
    pub owner: Owner,
    pub slot: Slot,
    pub samples: Vec<Sample>,
    /// Whether some of them are the last samples of windows, the others of which are gone.
    pub has_lasts: bool,
}

/// Windows of every series that matches, of those that end in `from..=to`. There are windows below the raw floor only:
/// what is newer is asked for as samples.
#[derive(Clone, Debug)]
pub struct SelectAggregates {
    pub tenant: TenantId,
    pub matchers: Vec<Matcher>,
    pub from: TimestampNs,
    pub to: TimestampNs,
    pub resolution: Resolution,
    /// Only series owned by one of these. `None`: any owner, or none.
    pub owners: Option<BTreeSet<ResourceId>>,
}

/// One series' windows, ascending; those without a row are left out. Unlike samples, equal label sets of two owners
/// stay apart.
#[derive(Clone, Debug, PartialEq)]
pub struct AggregateData {
    pub labels: Labels,
    pub owner: Owner,
    pub slot: Slot,
    pub windows: Vec<Window>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Newest first: `limit` keeps the newest.
    Backward,
    /// Oldest first: `limit` keeps the oldest.
    Forward,
}

/// Lines of every stream that matches, with event time in `from..=to`.
#[derive(Clone, Debug)]
pub struct SelectLines {
    pub tenant: TenantId,
    pub matchers: Vec<Matcher>,
    pub from: TimestampNs,
    pub to: TimestampNs,
    pub as_of: Option<u64>,
    pub owners: Option<BTreeSet<ResourceId>>,
    /// Only lines that pass.
    pub filter: Filter,
    /// At most so many lines over all streams, from the end that `direction` names. `None`: all.
    pub limit: Option<usize>,
    pub direction: Direction,
}

/// One stream in an answer. `lines` ascend by (time, commit position, place in the batch), whatever the direction.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamData {
    pub labels: Labels,
    pub owner: Owner,
    pub slot: Slot,
    pub lines: Vec<LogLine>,
}

/// How many lines there are, without the lines.
#[derive(Clone, Debug)]
pub struct CountLines {
    pub tenant: TenantId,
    pub matchers: Vec<Matcher>,
    pub from: TimestampNs,
    /// Ascending. Each is counted to, inclusive.
    pub bounds: Vec<TimestampNs>,
    pub as_of: Option<u64>,
    pub owners: Option<BTreeSet<ResourceId>>,
    pub filter: Filter,
}

/// One stream's count of lines from the beginning to each bound.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamCounts {
    pub labels: Labels,
    pub owner: Owner,
    pub slot: Slot,
    pub counts: Vec<u64>,
}

/// Which label sets exist, without their data.
#[derive(Clone, Debug)]
pub struct SearchLabels {
    pub tenant: TenantId,
    /// Log streams instead of series.
    pub streams: bool,
    /// A label set matches if all matchers of any of these match; empty: all.
    pub any_of: Vec<Vec<Matcher>>,
    pub from: TimestampNs,
    pub to: TimestampNs,
}

impl SearchLabels {
    pub(crate) fn any_of(&self) -> &[Vec<Matcher>] {
        const ALL: &[Vec<Matcher>] = &[vec![]];
        if self.any_of.is_empty() { ALL } else { &self.any_of }
    }
}

/// Which texts of label sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelTexts {
    Names,
    /// Of the label of this name.
    Values(String),
}

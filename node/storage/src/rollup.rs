//! Which windows a shard has, which rows they make superfluous, and how rows become windows.
//!
//! Every replica rolls up for itself, when it likes: what a window says depends on frozen rows alone (`aggregate`), so
//! a window in a file and the same window computed from rows cannot be told apart by a reader.
//!
//! Invariants
//! - A file loses rows below the raw floor only once their windows are in a file, or nobody can ask for them.
//! - A series' windows are stored in the order of time, and without a gap: what comes before the last one stored is
//!   stored, or has no rows. Windows of a series never overlap between files.
//! - Only rows that are in segments are rolled up: they are durable, so that no replay brings one of them again.

use crate::aggregate::{self, COLUMNS, COUNT, Resolution, STALE_AT, Window, column_id, series_of};
use crate::container::{FileKind, Head};
use crate::error::{ReadError, StorageError};
use crate::index::{Catalog, Series};
use crate::metric;
use crate::points::Points;
use crate::retention::{Policy, Reach, Retention, Spans, joined};
use crate::segment::{Segment, Stretch, Tier, extra_of};
use crate::work::in_file_order;
use hindcast_env::{Disk, DiskError};
use hindcast_model::{GroupId, TenantId};
use smallvec::smallvec;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The ends of a series' last windows in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Covered {
    /// Rows up to here have windows of five minutes, or of an hour.
    pub five: i64,
    pub hour: i64,
}

impl Covered {
    pub const NOTHING: Self = Self {
        five: i64::MIN,
        hour: i64::MIN,
    };
}

/// Up to where a series' windows are in files.
pub fn covered(files: &[Arc<Segment>], id: u32) -> Covered {
    let mut covered = Covered::NOTHING;
    for f in files {
        let last = [COUNT, STALE_AT].into_iter().filter_map(|c| {
            let columns = f.metrics()?;
            let pages = columns.pages_of(column_id(id, c)?);
            (!pages.is_empty()).then(|| columns.page_times(pages.end - 1).1)
        });
        let Some(last) = last.max() else { continue };
        covered.five = covered.five.max(last);
        if f.resolution() == Some(Resolution::Hour) {
            covered.hour = covered.hour.max(last);
        }
    }
    covered
}

/// Where the rows of a series must be kept as they came, in segments.
pub fn kept_rows(reach: &Reach, streams: bool, covered: Covered) -> Spans {
    let rows = reach.rows(streams, i64::MIN, i64::MAX);
    if streams || !reach.has_windows() {
        return rows;
    }
    let windowed = reach.windowed().into_iter();
    joined(
        rows.into_iter()
            .chain(windowed.map(|(a, b)| (a.max(covered.five.saturating_add(1)), b))),
    )
}

/// Whether a window must be kept in its file. What is not below the floor yet will be: a replay after a crash goes
/// through lower floors than those that it was made under.
pub fn keeps(reach: &Reach, resolution: Resolution, end: i64, covered: Covered) -> bool {
    let hour = Resolution::Hour.end_of(end);
    end > reach.frozen_to()
        || reach.shows(resolution, end)
        || (resolution == Resolution::FiveMinutes && end > covered.hour && reach.shows(Resolution::Hour, hour))
}

/// Reads windows out of files.
pub struct WindowFiles<'a> {
    files: Vec<(&'a Segment, metric::PageReader<'a>)>,
}

impl<'a> WindowFiles<'a> {
    pub fn new(files: impl IntoIterator<Item = &'a Arc<Segment>>) -> Self {
        let of = |f: &'a Arc<Segment>| Some((f.as_ref(), f.metrics()?.reader()));
        Self {
            files: files.into_iter().filter_map(of).collect(),
        }
    }

    /// A series' windows that end in `from..=to`, ascending.
    pub fn read(&mut self, id: u32, resolution: Resolution, from: i64, to: i64) -> Result<Vec<Window>, ReadError> {
        let mut windows = vec![];
        if from > to {
            return Ok(windows);
        }
        let spans = smallvec![(from, to)];
        let mut points = Points::default();
        let of_it = self
            .files
            .iter_mut()
            .filter(|(f, _)| f.resolution() == Some(resolution));
        for (file, reader) in of_it {
            let mut columns: [Vec<_>; COLUMNS as usize] = std::array::from_fn(|_| vec![]);
            for (column, rows) in (0..).zip(&mut columns) {
                let Some(column) = column_id(id, column) else { continue };
                points.clear();
                for page in reader.segment().pages_in(column, from, to) {
                    reader.append(page, &spans, &mut points)?;
                }
                *rows = points.to_samples();
            }
            let fit = aggregate::from_columns(&columns);
            windows.extend(fit.ok_or_else(|| file.damage("the columns of its windows do not fit together"))?);
        }
        windows.sort_by_key(|w| w.end);
        Ok(windows)
    }
}

/// How much of a file is still needed, about: told by its page table.
#[derive(Clone, Copy, Debug, Default)]
pub struct Share {
    pub rows: u64,
    pub kept: u64,
    /// As `kept`, once all that can be is rolled up.
    pub kept_after: u64,
}

impl Share {
    /// Files of which less than this part is needed are written anew.
    const REWRITE_BELOW: u64 = 2;

    /// `before`: as [`Segment::kept_when_rewritten`].
    pub fn wants_rewrite(&self, before: u64) -> bool {
        self.kept * Self::REWRITE_BELOW < self.rows.min(before)
    }

    pub fn wants_rollup(&self) -> bool {
        self.kept_after * Self::REWRITE_BELOW < self.rows && self.kept_after < self.kept
    }
}

/// What is needed to tell.
pub struct Sources<'a> {
    pub retention: &'a Retention,
    pub catalog: &'a Catalog,
    pub windows: &'a [Arc<Segment>],
}

impl Sources<'_> {
    /// Whether a look at the pages is worth it: half of the file's time lies below the highest floor.
    fn is_old(&self, s: &Segment) -> bool {
        let floors = self.retention.highest(&s.head.tenant, s.head.policy);
        let floor = match (s.resolution(), s.is_of_lines()) {
            (Some(resolution), _) => floors.of(resolution),
            (None, true) => floors.lines,
            (None, false) => floors.raw,
        };
        let (first, last) = s.head.times;
        let middle = (i128::from(first) + i128::from(last)) / 2;
        middle < i128::from(floor.0)
    }

    /// `None`: most of it is needed, surely.
    pub fn share(&self, s: &Segment) -> Option<Share> {
        if !self.is_old(s) {
            return None;
        }
        let mut share = Share::default();
        for stored in s.ids() {
            let id = s.resolution().map_or(stored, |_| series_of(stored));
            let series = self.catalog.get(id);
            let known = series.map(|series| (self.retention.reach(&series), covered(self.windows, id)));
            for stretch in s.stretches(stored) {
                share.rows += stretch.rows;
                let Some((reach, covered)) = &known else { continue };
                let (kept, after) = kept_of(s, reach, *covered, stretch);
                share.kept += kept;
                share.kept_after += after;
            }
        }
        Some(share)
    }

    /// Whether any row of the file is needed.
    pub fn needs(&self, s: &Segment) -> bool {
        s.ids().into_iter().any(|stored| {
            let id = s.resolution().map_or(stored, |_| series_of(stored));
            let Some(series) = self.catalog.get(id) else {
                return false;
            };
            let (reach, covered) = (self.retention.reach(&series), covered(self.windows, id));
            let mut stretches = s.stretches(stored).into_iter();
            stretches.any(|stretch| kept_of(s, &reach, covered, stretch).0 > 0)
        })
    }
}

/// Rows of a stretch that are needed now, and once all is rolled up; never 0 when it may be one.
fn kept_of(s: &Segment, reach: &Reach, covered: Covered, stretch: Stretch) -> (u64, u64) {
    let Stretch { first, last, rows } = stretch;
    let times = (first, last);
    let Some(resolution) = s.resolution() else {
        let now = kept_rows(reach, s.is_of_lines(), covered);
        let rolled = Covered {
            five: covered.five.max(reach.frozen_to()),
            ..covered
        };
        let after = kept_rows(reach, s.is_of_lines(), rolled);
        return (part(rows, times, &now), part(rows, times, &after));
    };
    let span = resolution.span_ns();
    let ends = || {
        (0..)
            .map(|i: i64| times.0.saturating_add(i.saturating_mul(span)))
            .take_while(|end| *end <= times.1)
    };
    let total = (ends().count() as u64).max(1);
    let rolled = Covered {
        hour: i64::MAX,
        ..covered
    };
    let of = |c: Covered| {
        let kept = ends().filter(|end| keeps(reach, resolution, *end, c)).count() as u64;
        (rows * kept).div_ceil(total)
    };
    (of(covered), of(rolled))
}

/// The part of `rows` at `times` that lies in `spans`, told by time; at least 1 where they touch.
fn part(rows: u64, (first, last): (i64, i64), spans: &Spans) -> u64 {
    let width = |a: i64, b: i64| (i128::from(b) - i128::from(a)) as f64 + 1.0;
    let inside = spans.iter().filter(|(a, b)| *a <= last && first <= *b);
    let kept: f64 = inside.map(|(a, b)| width((*a).max(first), (*b).min(last))).sum();
    (rows as f64 * kept / width(first, last)).ceil() as u64
}

/// Makes one file of windows out of a partition's files of rows, or of shorter windows.
pub struct Rollup<'a> {
    pub disk: &'a dyn Disk,
    pub dir: &'a str,
    pub number: u64,
    pub group: GroupId,
    pub tenant: &'a TenantId,
    pub policy: Policy,
    /// Of what is made.
    pub resolution: Resolution,
    pub sources: Sources<'a>,
    /// Of series with frozen rows that are in no segment yet: a time before which there is none.
    pub first_in_heads: &'a BTreeMap<u32, i64>,
}

impl Rollup<'_> {
    /// `None`: there was nothing to do.
    pub fn run(&self, inputs: &[Arc<Segment>]) -> Result<Option<Segment>, StorageError> {
        let is_ours = |s: &&Arc<Segment>| s.head.tenant == *self.tenant && s.head.policy == self.policy;
        let inputs: Vec<&Arc<Segment>> = inputs.iter().filter(is_ours).collect();
        let Some(head) = self.head_of(&inputs) else {
            return Ok(None);
        };
        let ids = inputs.iter().flat_map(|s| s.ids());
        let from_rows = self.resolution == Resolution::FiveMinutes;
        let ids: BTreeSet<u32> = ids.map(|id| if from_rows { id } else { series_of(id) }).collect();
        let metrics = inputs.iter().filter_map(|s| s.metrics());
        let mut readers: Vec<metric::PageReader<'_>> = metrics.map(|s| s.reader()).collect();
        let mut fives = WindowFiles::new(inputs.iter().copied());
        let mut writer = None;
        for (id, series) in in_file_order(self.sources.catalog, ids.into_iter().collect()) {
            let reach = self.sources.retention.reach(&series);
            if !reach.has_windows() || column_id(id, COLUMNS - 1).is_none() {
                continue;
            }
            let covered = covered(self.sources.windows, id);
            let windows = if from_rows {
                self.windows_of_rows(id, &reach, covered, &mut readers)?
            } else {
                let (from, to) = (covered.hour.saturating_add(1), self.hours_to(&series).min(covered.five));
                let fives = fives.read(id, Resolution::FiveMinutes, from, to)?;
                let mut hours = aggregate::hours_of(&fives);
                hours.retain(|w| reach.shows(Resolution::Hour, w.end.0));
                hours
            };
            if windows.is_empty() {
                continue;
            }
            let writer = match &mut writer {
                Some(w) => w,
                none => none.insert(metric::Writer::create(
                    self.disk,
                    self.dir,
                    self.number,
                    head.clone(),
                    metric::Tier::Compacted,
                )?),
            };
            write_windows(writer, id, &windows)?;
        }
        let finished = writer.map(|w| w.finish(self.disk)).transpose()?;
        Ok(finished.map(|s| Segment::of_metrics(s, Tier::Compacted)))
    }

    fn head_of(&self, inputs: &[&Arc<Segment>]) -> Option<Head> {
        let first = inputs.iter().map(|s| s.head.times.0).min()?;
        let last = inputs.iter().map(|s| s.head.times.1).max()?;
        Some(Head {
            tenant: self.tenant.clone(),
            kind: FileKind::Metric,
            policy: self.policy,
            group: self.group,
            commits: (
                inputs.iter().map(|s| s.head.commits.0).min()?,
                inputs.iter().map(|s| s.head.commits.1).max()?,
            ),
            times: (first, self.resolution.end_of(last)),
            extra: extra_of(Some(self.resolution)),
        })
    }

    /// Hours whose windows of five minutes are below those windows' floor.
    fn hours_to(&self, series: &Series<'_>) -> i64 {
        let floors = self.sources.retention.reach(series).floors;
        let last = floors.five_minutes.0.saturating_sub(1);
        last.div_euclid(aggregate::HOUR_NS).saturating_mul(aggregate::HOUR_NS)
    }

    fn windows_of_rows(
        &self,
        id: u32,
        reach: &Reach,
        covered: Covered,
        readers: &mut [metric::PageReader<'_>],
    ) -> Result<Vec<Window>, ReadError> {
        let (from, to) = (covered.five.saturating_add(1), reach.frozen_to());
        if from > to || self.first_in_heads.get(&id).is_some_and(|first| *first <= to) {
            return Ok(vec![]);
        }
        let spans = smallvec![(from, to)];
        let mut rows = Points::default();
        for reader in readers {
            for page in reader.segment().pages_in(id, from, to) {
                reader.append(page, &spans, &mut rows)?;
            }
        }
        rows.settle();
        let mut windows = aggregate::windows_of(&rows.to_samples());
        windows.retain(|w| keeps(reach, Resolution::FiveMinutes, w.end.0, covered));
        Ok(windows)
    }
}

/// The next series of a file of windows.
pub fn write_windows(writer: &mut metric::Writer, id: u32, windows: &[Window]) -> Result<(), DiskError> {
    for c in 0..COLUMNS {
        let samples = aggregate::column(windows, c);
        if let Some(column) = column_id(id, c).filter(|_| !samples.is_empty()) {
            let times: Vec<i64> = samples.iter().map(|s| s.at.0).collect();
            let values: Vec<f64> = samples.iter().map(|s| s.value).collect();
            writer.series(column, &times, &values)?;
        }
    }
    Ok(())
}

/// Windows that readers may see, of those that were read or computed.
pub fn shown(reach: &Reach, resolution: Resolution, windows: &mut Vec<Window>) {
    windows.retain(|w| reach.shows(resolution, w.end.0));
}

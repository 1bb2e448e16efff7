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
use crate::directory::{Directory, Series};
use crate::error::{ReadError, StorageError};
use crate::head::settle;
use crate::retention::{Policy, Reach, Retention, Spans, joined};
use crate::segment::{self, Pages, Segment, Writer};
use hindcast_env::Disk;
use hindcast_model::{GroupId, TenantId};
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
            let pages = f.pages_of(column_id(id, c)?, i64::MIN, i64::MAX);
            (!pages.is_empty()).then(|| f.page_times(pages.end - 1).1)
        });
        let Some(last) = last.max() else { continue };
        covered.five = covered.five.max(last);
        if f.head.resolution == Some(Resolution::Hour) {
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
    files: Vec<(&'a Segment, Pages<'a>)>,
}

impl<'a> WindowFiles<'a> {
    pub fn new(files: impl IntoIterator<Item = &'a Arc<Segment>>) -> Self {
        let files = files.into_iter().map(|f| (f.as_ref(), Pages::new(f)));
        Self { files: files.collect() }
    }

    /// A series' windows that end in `from..=to`, ascending.
    pub fn read(&mut self, id: u32, resolution: Resolution, from: i64, to: i64) -> Result<Vec<Window>, ReadError> {
        let mut windows = vec![];
        let of_it = self
            .files
            .iter_mut()
            .filter(|(f, _)| f.head.resolution == Some(resolution));
        for (file, pages) in of_it {
            let mut columns: [Vec<_>; COLUMNS as usize] = std::array::from_fn(|_| vec![]);
            for (column, rows) in (0..).zip(&mut columns) {
                let Some(column) = column_id(id, column) else { continue };
                for page in file.pages_of(column, from, to) {
                    let read = pages.samples(page)?;
                    rows.extend(read.into_iter().filter(|s| (from..=to).contains(&s.at.0)));
                }
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

    pub fn wants_rewrite(&self) -> bool {
        self.kept * Self::REWRITE_BELOW < self.rows
    }

    pub fn wants_rollup(&self) -> bool {
        self.kept_after * Self::REWRITE_BELOW < self.rows && self.kept_after < self.kept
    }
}

/// What is needed to tell.
pub struct Sources<'a> {
    pub retention: &'a Retention,
    pub directory: &'a Directory,
    pub windows: &'a [Arc<Segment>],
    pub forgotten: &'a BTreeMap<u32, Arc<str>>,
}

impl Sources<'_> {
    /// Whether a look at the pages is worth it: half of the file's time lies below the highest floor.
    fn is_old(&self, s: &Segment) -> bool {
        let floors = self.retention.highest(&s.head.tenant, s.head.policy);
        let floor = match (s.head.resolution, s.head.streams) {
            (Some(resolution), _) => floors.of(resolution),
            (None, true) => floors.lines,
            (None, false) => floors.raw,
        };
        let (first, last) = s.times();
        let middle = (i128::from(first) + i128::from(last)) / 2;
        middle < i128::from(floor.0)
    }

    /// `None`: most of it is needed, surely.
    pub fn share(&self, s: &Segment) -> Option<Share> {
        if !self.is_old(s) {
            return None;
        }
        let mut share = Share::default();
        let ids: Vec<u32> = s.ids().collect();
        for stored in ids {
            let id = s.head.resolution.map_or(stored, |_| series_of(stored));
            let pages = s.pages_of(stored, i64::MIN, i64::MAX);
            let series = self.directory.get(id);
            let known = series.map(|series| (self.retention.reach(&series), covered(self.windows, id)));
            for page in pages {
                let rows = u64::from(s.page_rows(page));
                share.rows += rows;
                let Some((reach, covered)) = &known else { continue };
                let (kept, after) = kept_of_page(s, reach, *covered, s.page_times(page), rows);
                share.kept += kept;
                share.kept_after += after;
            }
        }
        Some(share)
    }

    /// Whether any row of the file is needed.
    pub fn needs(&self, s: &Segment) -> bool {
        let ids: Vec<u32> = s.ids().collect();
        ids.into_iter().any(|stored| {
            let id = s.head.resolution.map_or(stored, |_| series_of(stored));
            let Some(series) = self.directory.get(id) else {
                return false;
            };
            let (reach, covered) = (self.retention.reach(&series), covered(self.windows, id));
            s.pages_of(stored, i64::MIN, i64::MAX).any(|page| {
                let times = s.page_times(page);
                kept_of_page(s, &reach, covered, times, u64::from(s.page_rows(page))).0 > 0
            })
        })
    }
}

/// Rows of a page that are needed now, and once all is rolled up; never 0 when it may be one.
fn kept_of_page(s: &Segment, reach: &Reach, covered: Covered, times: (i64, i64), rows: u64) -> (u64, u64) {
    let Some(resolution) = s.head.resolution else {
        let now = kept_rows(reach, s.head.streams, covered);
        let rolled = Covered {
            five: covered.five.max(reach.frozen_to()),
            ..covered
        };
        let after = kept_rows(reach, s.head.streams, rolled);
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
    /// The first time of what is not in a segment yet, by id.
    pub in_heads: &'a dyn Fn(u32) -> Option<i64>,
}

impl Rollup<'_> {
    /// `None`: there was nothing to do.
    pub fn run(&self, inputs: &[Arc<Segment>]) -> Result<Option<Segment>, StorageError> {
        let is_ours = |s: &&Arc<Segment>| s.head.tenant == *self.tenant && s.head.policy == self.policy;
        let inputs: Vec<&Arc<Segment>> = inputs.iter().filter(is_ours).collect();
        let (Some(first), Some(last)) = (
            inputs.iter().map(|s| s.times().0).min(),
            inputs.iter().map(|s| s.times().1).max(),
        ) else {
            return Ok(None);
        };
        let head = segment::Head {
            tenant: self.tenant.clone(),
            streams: false,
            resolution: Some(self.resolution),
            policy: self.policy,
            group: self.group,
            commits: (
                inputs.iter().map(|s| s.head.commits.0).min().unwrap_or(0),
                inputs.iter().map(|s| s.head.commits.1).max().unwrap_or(0),
            ),
            times: (first, self.resolution.end_of(last)),
        };
        let ids = inputs.iter().flat_map(|s| s.ids());
        let from_rows = self.resolution == Resolution::FiveMinutes;
        let ids: BTreeSet<u32> = ids.map(|id| if from_rows { id } else { series_of(id) }).collect();
        let mut pages: Vec<Pages<'_>> = inputs.iter().map(|s| Pages::new(s)).collect();
        let mut fives = WindowFiles::new(inputs.iter().copied());
        let mut writer = None;
        for (id, series) in crate::shard::in_file_order(self.sources.directory, ids.into_iter().collect()) {
            let reach = self.sources.retention.reach(&series);
            if !reach.has_windows() || column_id(id, COLUMNS - 1).is_none() {
                continue;
            }
            let covered = covered(self.sources.windows, id);
            let windows = if from_rows {
                self.windows_of_rows(id, &reach, covered, &inputs, &mut pages)?
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
            if writer.is_none() {
                writer = Some(Writer::create(self.disk, self.dir, self.number, head.clone())?);
            }
            let writer: &mut Writer = writer.as_mut().expect("it was just made");
            write_windows(writer, id, &windows)?;
        }
        Ok(match writer {
            Some(w) => Some(w.finish(self.disk, self.dir)?),
            None => None,
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
        inputs: &[&Arc<Segment>],
        pages: &mut [Pages<'_>],
    ) -> Result<Vec<Window>, ReadError> {
        let (from, to) = (covered.five.saturating_add(1), reach.frozen_to());
        if from > to || (self.in_heads)(id).is_some_and(|first| first <= to) {
            return Ok(vec![]);
        }
        let mut rows = vec![];
        for (segment, pages) in inputs.iter().zip(pages) {
            for page in segment.pages_of(id, from, to) {
                rows.extend(
                    pages
                        .samples(page)?
                        .into_iter()
                        .filter(|s| (from..=to).contains(&s.at.0)),
                );
            }
        }
        settle(&mut rows);
        let mut windows = aggregate::windows_of(&rows);
        windows.retain(|w| keeps(reach, Resolution::FiveMinutes, w.end.0, covered));
        Ok(windows)
    }
}

/// The next series of a file of windows.
pub fn write_windows(writer: &mut Writer, id: u32, windows: &[Window]) -> Result<(), StorageError> {
    for c in 0..COLUMNS {
        let samples = aggregate::column(windows, c);
        if let Some(column) = column_id(id, c).filter(|_| !samples.is_empty()) {
            writer.samples(column, &samples)?;
        }
    }
    Ok(())
}

/// Windows that readers may see, of those that were read or computed.
pub fn shown(reach: &Reach, resolution: Resolution, windows: &mut Vec<Window>) {
    windows.retain(|w| reach.shows(resolution, w.end.0));
}

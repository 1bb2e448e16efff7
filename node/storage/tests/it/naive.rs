//! What a shard must answer, told as plainly as possible: all rows in one list, one verdict per instant.

use hindcast_model::matcher::matches_all;
use hindcast_model::{
    Domain, GroupId, Kind, Labels, LogLine, Matcher, Owner, ResourceId, Sample, SeriesBlock, StreamBlock, TenantId,
    TimestampNs,
};
use hindcast_storage::logs::Filter;
use hindcast_storage::read::{
    CountLines, Direction, LabelTexts, SearchLabels, SelectLines, SelectSeries, SeriesData, StreamCounts, StreamData,
};
use hindcast_storage::{Floor, Pin, Shard, ShardConfig, ShardReader, TOPOLOGY_LABEL};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

/// Event times in tests: this many instants, one second apart, the first in 1969.
pub const INSTANTS: i64 = 40;

pub fn instant(i: i64) -> TimestampNs {
    TimestampNs::from_secs(i - 10)
}

pub fn tenants() -> [TenantId; 2] {
    [TenantId::default(), TenantId::new("other").unwrap()]
}

pub fn owners() -> [Owner; 3] {
    let t = TenantId::default();
    let owned = |kind, name: &str| Owner::Resource {
        id: ResourceId::new(&t, kind, &[name]),
        kind,
    };
    [Owner::None, owned(Kind::Host, "web-1"), owned(Kind::Database, "db-1")]
}

/// The last one is a topology stream when it is a stream.
pub fn label_sets() -> [Labels; 3] {
    [
        Labels::from_pairs([("__name__", "up"), ("job", "a")]),
        Labels::from_pairs([("__name__", "up"), ("job", "b")]),
        Labels::from_pairs([(TOPOLOGY_LABEL, "resource")]),
    ]
}

/// What the log holds.
#[derive(Clone, Debug)]
pub enum Entry {
    Write {
        tenant: usize,
        series: Vec<SeriesBlock>,
        streams: Vec<StreamBlock>,
    },
    Cut,
    DropCut(u64),
    Pin(Pin),
    Unpin(String),
    Retain(Vec<Floor>),
    Nothing,
}

pub fn give(shard: &mut Shard, index: u64, entry: &Entry) {
    match entry {
        Entry::Write {
            tenant,
            series,
            streams,
        } => {
            // In two calls: an entry may carry several parts.
            shard.write(index, &tenants()[*tenant], series, &[]);
            shard.write(index, &tenants()[*tenant], &[], streams);
        }
        Entry::Cut => shard.cut(index),
        Entry::DropCut(cut) => shard.drop_cut(*cut),
        Entry::Pin(pin) => shard.pin(pin.clone()),
        Entry::Unpin(id) => shard.unpin(id),
        Entry::Retain(floors) => {
            shard.retain(floors.clone());
        }
        Entry::Nothing => {}
    }
    shard.advance(index);
}

#[derive(Clone, Debug)]
struct Row<T> {
    index: u64,
    tenant: TenantId,
    labels: Labels,
    owner: Owner,
    data: T,
}

#[derive(Clone, Debug, Default)]
pub struct Naive {
    samples: Vec<Row<Sample>>,
    lines: Vec<Row<LogLine>>,
    floors: Vec<Floor>,
    /// Floors never go back.
    highest: BTreeMap<(TenantId, Option<Domain>), TimestampNs>,
    pins: BTreeMap<String, Pin>,
    cuts: BTreeMap<u64, bool>,
    /// (tenant, owner, instant) that were let go.
    gone: BTreeSet<(TenantId, Owner, TimestampNs)>,
    pub applied: u64,
}

impl Naive {
    pub fn give(&mut self, index: u64, entry: &Entry) {
        match entry {
            Entry::Write {
                tenant,
                series,
                streams,
            } => self.write(index, &tenants()[*tenant], series, streams),
            Entry::Cut => {
                self.cuts.insert(index, true);
            }
            Entry::DropCut(cut) => {
                self.cuts.entry(*cut).and_modify(|asked| *asked = false);
            }
            Entry::Pin(pin) => {
                self.pins.insert(pin.id.clone(), pin.clone());
            }
            Entry::Unpin(id) => {
                self.pins.remove(id);
            }
            Entry::Retain(floors) => self.floors.clone_from(floors),
            Entry::Nothing => {}
        }
        let pinned: BTreeSet<u64> = self.pins.values().flat_map(|p| p.cuts.clone()).collect();
        self.cuts.retain(|cut, asked| *asked || pinned.contains(cut));
        self.applied = index;
        self.let_go();
    }

    fn write(&mut self, index: u64, tenant: &TenantId, series: &[SeriesBlock], streams: &[StreamBlock]) {
        for b in series {
            self.samples.extend(b.samples.iter().map(|s| Row {
                index,
                tenant: tenant.clone(),
                labels: b.labels.clone(),
                owner: b.owner,
                data: *s,
            }));
        }
        for b in streams {
            self.lines.extend(b.lines.iter().map(|l| Row {
                index,
                tenant: tenant.clone(),
                labels: b.labels.clone(),
                owner: b.owner,
                data: l.clone(),
            }));
        }
    }

    fn floor(&self, tenant: &TenantId, domain: Option<Domain>) -> TimestampNs {
        let fits =
            |f: &&Floor| f.tenant.as_ref().is_none_or(|t| t == tenant) && (f.domain.is_none() || f.domain == domain);
        let best = self.floors.iter().filter(fits);
        best.max_by_key(|f| (f.tenant.is_some(), f.domain.is_some()))
            .map_or(TimestampNs::MIN, |f| f.floors.raw)
    }

    fn is_held(&self, tenant: &TenantId, owner: &Owner, at: TimestampNs) -> bool {
        self.pins.values().any(|p| {
            p.tenant == *tenant
                && p.from <= at
                && at <= p.to
                && p.owners
                    .as_ref()
                    .is_none_or(|o| owner.id().is_some_and(|id| o.contains(&id)))
        })
    }

    /// What neither its floor nor a pin keeps is gone, for good.
    fn let_go(&mut self) {
        for tenant in tenants() {
            for owner in owners() {
                let floor = self.floor(&tenant, owner.domain());
                let highest = self.highest.entry((tenant.clone(), owner.domain())).or_insert(floor);
                *highest = floor.max(*highest);
                let floor = *highest;
                for at in (0..INSTANTS).map(instant) {
                    if at < floor && !self.is_held(&tenant, &owner, at) {
                        self.gone.insert((tenant.clone(), owner, at));
                    }
                }
            }
        }
    }

    pub fn kept_cuts(&self) -> Vec<u64> {
        self.cuts.keys().copied().collect()
    }

    /// Rows of each series in the order of answers, then in the order of commits.
    fn select<'a, T: Clone>(
        &self,
        rows: &'a [Row<T>],
        streams: bool,
        q: (&TenantId, &[Matcher], Option<&BTreeSet<ResourceId>>, Option<u64>),
        at: impl Fn(&T) -> TimestampNs,
    ) -> BTreeMap<(hindcast_model::Slot, u64, Labels, Owner), Vec<&'a T>> {
        let (tenant, matchers, owners, as_of) = q;
        let mut found: BTreeMap<_, Vec<&T>> = BTreeMap::new();
        for r in rows {
            let is_exempt = streams && r.labels.get(TOPOLOGY_LABEL).is_some();
            let is_gone = !is_exempt && self.gone.contains(&(r.tenant.clone(), r.owner, at(&r.data)));
            let is_owned = owners.is_none_or(|o| r.owner.id().is_some_and(|id| o.contains(&id)));
            let is_known = as_of.is_none_or(|i| r.index <= i);
            if r.tenant == *tenant && is_owned && is_known && !is_gone && matches_all(matchers, &r.labels) {
                let key = (
                    r.owner.slot(&r.labels),
                    r.labels.fingerprint(),
                    r.labels.clone(),
                    r.owner,
                );
                found.entry(key).or_default().push(&r.data);
            }
        }
        found
    }

    pub fn series(&self, q: &SelectSeries) -> Vec<SeriesData> {
        let wanted = (&q.tenant, &q.matchers[..], q.owners.as_ref(), q.as_of);
        let mut answer = vec![];
        for ((slot, _, labels, owner), rows) in self.select(&self.samples, false, wanted, |s| s.at) {
            // Of equal times the last one put in stays.
            let by_time: BTreeMap<TimestampNs, Sample> = rows
                .into_iter()
                .filter(|s| q.from <= s.at && s.at <= q.to)
                .map(|s| (s.at, *s))
                .collect();
            if !by_time.is_empty() {
                answer.push(SeriesData {
                    labels,
                    owner,
                    slot,
                    samples: by_time.into_values().collect(),
                    has_lasts: false,
                });
            }
        }
        answer
    }

    pub fn lines(&self, q: &SelectLines) -> Vec<StreamData> {
        let wanted = (&q.tenant, &q.matchers[..], q.owners.as_ref(), q.as_of);
        let mut all = vec![];
        let streams: Vec<_> = self.select(&self.lines, true, wanted, |l| l.at).into_iter().collect();
        for (rank, (_, rows)) in streams.iter().enumerate() {
            for (row, l) in rows.iter().enumerate() {
                if q.from <= l.at && l.at <= q.to && q.filter.is_match(&l.line) {
                    all.push((l.at, rank, row));
                }
            }
        }
        all.sort_unstable();
        let limit = q.limit.unwrap_or(usize::MAX).min(all.len());
        let kept = match q.direction {
            Direction::Forward => &all[..limit],
            Direction::Backward => &all[all.len() - limit..],
        };
        let mut answer = vec![];
        for (rank, ((slot, _, labels, owner), rows)) in streams.iter().enumerate() {
            let of_stream = kept.iter().filter(|(_, r, _)| *r == rank);
            let lines: Vec<LogLine> = of_stream.map(|&(_, _, row)| rows[row].clone()).collect();
            if !lines.is_empty() {
                answer.push(StreamData {
                    labels: labels.clone(),
                    owner: *owner,
                    slot: *slot,
                    lines,
                });
            }
        }
        answer
    }
}

pub fn all_series(tenant: &TenantId) -> SelectSeries {
    SelectSeries {
        tenant: tenant.clone(),
        matchers: vec![],
        from: TimestampNs::MIN,
        to: TimestampNs::MAX,
        as_of: None,
        owners: None,
    }
}

pub fn all_lines(tenant: &TenantId) -> SelectLines {
    SelectLines {
        tenant: tenant.clone(),
        matchers: vec![],
        from: TimestampNs::MIN,
        to: TimestampNs::MAX,
        as_of: None,
        owners: None,
        filter: Filter::all(),
        limit: None,
        direction: Direction::Forward,
    }
}

/// Asks shard and model the same questions, at every kept cut and in windows, and compares.
pub fn compare(reader: &ShardReader, naive: &Naive, window: (i64, i64)) {
    assert_eq!(reader.applied(), naive.applied);
    let as_ofs: Vec<Option<u64>> = naive.kept_cuts().into_iter().map(Some).chain([None]).collect();
    let window = (instant(window.0.min(window.1)), instant(window.0.max(window.1)));
    for tenant in tenants() {
        for &as_of in &as_ofs {
            for (from, to) in [(TimestampNs::MIN, TimestampNs::MAX), window] {
                let q = SelectSeries {
                    from,
                    to,
                    as_of,
                    ..all_series(&tenant)
                };
                assert_eq!(reader.series(&q).unwrap(), naive.series(&q), "{q:?}");
                let q = SelectLines {
                    from,
                    to,
                    as_of,
                    ..all_lines(&tenant)
                };
                assert_eq!(reader.lines(&q).unwrap(), naive.lines(&q), "{q:?}");
                compare_visits(reader, naive, &q);
                compare_labels(reader, naive, &tenant, (from, to));
            }
        }
        compare_narrow(reader, naive, &tenant, window);
    }
}

/// Stream by stream, those of each in the order of commits.
fn compare_visits(reader: &ShardReader, naive: &Naive, q: &SelectLines) {
    let of_streams = SelectSeries {
        tenant: q.tenant.clone(),
        matchers: q.matchers.clone(),
        from: q.from,
        to: q.to,
        as_of: q.as_of,
        owners: q.owners.clone(),
    };
    type Lines = Vec<(TimestampNs, Vec<u8>)>;
    let mut found: Vec<(usize, Labels, Lines)> = vec![];
    let visited = reader.visit_lines(&of_streams, &mut |stream, at, line| {
        if found.last().is_none_or(|(rank, _, _)| *rank != stream.rank) {
            found.push((stream.rank, stream.labels.clone(), vec![]));
        }
        let (rank, _, lines) = found.last_mut().unwrap();
        assert!(*rank <= stream.rank);
        lines.push((at, line.to_vec()));
        ControlFlow::Continue(())
    });
    visited.unwrap();
    let found = found.into_iter().map(|(_, labels, mut lines)| {
        lines.sort_by_key(|(at, _)| *at);
        (labels, lines)
    });
    let expected = naive.lines(q).into_iter().map(|s| {
        let lines = s.lines.into_iter().map(|l| (l.at, l.line.to_vec()));
        (s.labels, lines.collect::<Lines>())
    });
    assert_eq!(
        found.collect::<Vec<_>>(),
        expected.collect::<Vec<_>>(),
        "{of_streams:?}"
    );
}

fn compare_labels(reader: &ShardReader, naive: &Naive, tenant: &TenantId, (from, to): (TimestampNs, TimestampNs)) {
    for streams in [false, true] {
        let q = SearchLabels {
            tenant: tenant.clone(),
            streams,
            any_of: vec![],
            from,
            to,
        };
        let of_series = SelectSeries {
            from,
            to,
            ..all_series(tenant)
        };
        let of_lines = SelectLines {
            from,
            to,
            ..all_lines(tenant)
        };
        let expected: BTreeSet<Labels> = if streams {
            naive.lines(&of_lines).into_iter().map(|s| s.labels).collect()
        } else {
            naive.series(&of_series).into_iter().map(|s| s.labels).collect()
        };
        let names = expected.iter().flat_map(|l| l.iter().map(|(n, _)| n));
        let names: BTreeSet<&str> = names.collect();
        assert_eq!(
            reader.label_texts(&q, &LabelTexts::Names).unwrap(),
            Vec::from_iter(names),
            "{q:?}"
        );
        for name in ["__name__", "job", "none"] {
            let values: BTreeSet<&str> = expected.iter().filter_map(|l| l.get(name)).collect();
            let of = LabelTexts::Values(name.to_owned());
            assert_eq!(
                reader.label_texts(&q, &of).unwrap(),
                Vec::from_iter(values),
                "{q:?} {of:?}"
            );
        }
        assert_eq!(reader.label_sets(&q).unwrap(), Vec::from_iter(expected), "{q:?}");
    }
}

fn compare_narrow(reader: &ShardReader, naive: &Naive, tenant: &TenantId, (from, to): (TimestampNs, TimestampNs)) {
    let owner: BTreeSet<ResourceId> = owners()[1].id().into_iter().collect();
    let q = SelectSeries {
        from,
        to,
        matchers: vec![Matcher::equal("job", "a")],
        owners: Some(owner.clone()),
        ..all_series(tenant)
    };
    assert_eq!(reader.series(&q).unwrap(), naive.series(&q), "{q:?}");
    for direction in [Direction::Forward, Direction::Backward] {
        let filters = [Filter::all(), Filter::contains(b"x"), Filter::contains(b"x").negated()];
        for (limit, filter) in [Some(3), Some(2), Some(0)].into_iter().zip(filters) {
            compare_counts(reader, naive, tenant, (from, to), &filter);
            let q = SelectLines {
                from,
                to,
                limit,
                filter,
                direction,
                ..all_lines(tenant)
            };
            assert_eq!(reader.lines(&q).unwrap(), naive.lines(&q), "{q:?}");
        }
    }
}

/// Counts up to bounds inside and outside of the window.
fn compare_counts(
    reader: &ShardReader,
    naive: &Naive,
    tenant: &TenantId,
    (from, to): (TimestampNs, TimestampNs),
    filter: &Filter,
) {
    let middle = TimestampNs(from.0 / 2 + to.0 / 2);
    let bounds = vec![from.min(middle), middle, to.max(middle)];
    let asked = CountLines {
        tenant: tenant.clone(),
        matchers: vec![],
        from,
        bounds: bounds.clone(),
        as_of: None,
        owners: None,
        filter: filter.clone(),
    };
    let mut kept = 0;
    let counted = reader.count_lines(&asked, &mut |counts| {
        kept += counts;
        ControlFlow::Continue(())
    });
    let upto = bounds[2];
    let lines = naive.lines(&SelectLines {
        from,
        to: upto,
        filter: filter.clone(),
        ..all_lines(tenant)
    });
    let counts = |s: &StreamData| {
        bounds
            .iter()
            .map(|b| s.lines.iter().filter(|l| l.at <= *b).count() as u64)
            .collect()
    };
    let expected: Vec<StreamCounts> = lines
        .iter()
        .map(|s| StreamCounts {
            labels: s.labels.clone(),
            owner: s.owner,
            slot: s.slot,
            counts: counts(s),
        })
        .collect();
    assert_eq!(counted.unwrap(), expected, "{from:?} {bounds:?} {filter:?}");
    // Nothing is kept for streams without a line that counts.
    assert_eq!(kept, expected.len() * bounds.len(), "{from:?} {bounds:?} {filter:?}");
}

/// Merges eagerly, so that small tests see merges.
pub fn config() -> ShardConfig {
    ShardConfig {
        group: GroupId(3),
        compact_segments_min: 2,
        ..ShardConfig::default()
    }
}

//! What the shards are asked for and what they gave, as the evaluator wants it.

use crate::column::{ABSENT, Column, Place, Raw, Steps};
use crate::engine::{OWNER_LABEL, Options, QueryError};
use crate::eval::native;
use crate::gather::canonical;
use crate::plan::{Made, When};
use crate::shards::{NativeSeries, OldForms, SeriesColumn};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use hindcast_logql::{FilterOp, LineFilter};
use hindcast_model::{Labels, MatchOp, Matcher, Owner, Slot, TimestampNs};
use hindcast_proto::trace::{NATIVE, TRACE_LABEL};
use hindcast_storage::logs::{BadFilter, Filter};
use hindcast_storage::read::{SeriesData, StreamCounts};
use std::collections::{BTreeMap, BTreeSet};

fn labels(labels: Labels, owner: &Owner, options: &Options) -> Labels {
    match owner.id() {
        Some(id) if options.owner_label => labels.with(OWNER_LABEL, &id.to_string()),
        _ => labels,
    }
}

/// Series as shards gave them; two of equal labels (of two owners) become one.
pub fn series(given: Vec<SeriesData>, options: &Options, series_max: usize) -> Result<Vec<Raw>, QueryError> {
    let raws = given.into_iter().map(|s| {
        let place = place(s.slot, &s.labels);
        Raw {
            labels: labels(s.labels, &s.owner, options),
            place,
            times: s.samples.iter().map(|s| s.at.as_ms()).collect(),
            values: s.samples.iter().map(|s| s.value).collect(),
            natives: None,
        }
    });
    joined(raws, series_max, merge_by_time)
}

fn place(slot: Slot, stored: &Labels) -> Place {
    Place {
        slot: slot.0,
        fingerprint: stored.fingerprint(),
    }
}

pub fn too_many_series(max: usize) -> QueryError {
    QueryError::TooLarge { what: "series", max }
}

/// The streams that hold the native histograms of the series that a selector means. `None`: it means no such series.
pub fn of_natives(matchers: &[Matcher]) -> Option<Vec<Matcher>> {
    // The mark is no label of the series.
    let (of_mark, mut of_series): (Vec<_>, Vec<_>) = matchers.iter().cloned().partition(|m| m.name == TRACE_LABEL);
    of_series.extend(Matcher::new(TRACE_LABEL, MatchOp::Equal, NATIVE));
    of_mark.iter().all(|m| m.matches_value("")).then_some(of_series)
}

/// Of a series of a classic histogram: the metric that it is of, and how a native one is asked for the same. `None`: the name is of none.
pub fn native_of(name: &str) -> Option<(&str, String)> {
    let of = |suffix| name.strip_suffix(suffix).filter(|metric: &&str| !metric.is_empty());
    let bucket = of("_bucket").map(|m| (m, format!("{m} itself, as in histogram_quantile(0.9, rate({m}[5m]))")));
    let count = || of("_count").map(|m| (m, format!("histogram_count({m})")));
    let sum = || of("_sum").map(|m| (m, format!("histogram_sum({m})")));
    bucket.or_else(count).or_else(sum)
}

/// Native histograms as shards gave them, by the labels with which the series are stored; two of equal labels become one.
pub fn natives(
    given: Vec<NativeSeries>,
    options: &Options,
    series_max: usize,
) -> Result<Vec<(Labels, Raw)>, QueryError> {
    let mut by_labels: BTreeMap<Labels, (Labels, Raw)> = BTreeMap::new();
    for s in given {
        let named = labels(s.labels.clone(), &s.owner, options);
        let raw = Raw {
            place: place(s.slot, &s.labels),
            labels: named.clone(),
            times: s.samples.iter().map(|(at, _)| at.as_ms()).collect(),
            values: vec![ABSENT; s.samples.len()],
            natives: Some(s.samples.into_iter().map(|(_, native)| native).collect()),
        };
        match by_labels.remove(&named) {
            Some((stored, before)) => {
                let (low, high) = if before.place <= raw.place {
                    (before, raw)
                } else {
                    (raw, before)
                };
                by_labels.insert(named, (stored, native::merged(Some(high), low)));
            }
            None if by_labels.len() == series_max => return Err(too_many_series(series_max)),
            None => {
                by_labels.insert(named, (s.labels, raw));
            }
        }
    }
    Ok(by_labels.into_values().collect())
}

/// What shards made of series.
pub struct Columns {
    /// In the order of their shards, each label set once. Those without a value are left out.
    pub whole: Vec<Column>,
    /// Series whose samples lie in several places: their labels, with those that they are stored with.
    pub split: BTreeMap<Labels, Vec<Labels>>,
    /// Of those that are whole.
    pub old: OldForms,
}

/// Columns as shards gave them, in their order. Equal label sets are found by their fingerprints: most queries name many
/// series and have none twice, and putting them in order would cost more than reading them.
pub fn columns(given: Vec<SeriesColumn>, options: &Options, series_max: usize) -> Result<Columns, QueryError> {
    let named = |c: SeriesColumn| {
        let place = Place {
            slot: c.slot.0,
            fingerprint: c.fingerprint,
        };
        let stored = (options.owner_label && c.owner.id().is_some()).then(|| c.labels.clone());
        let column = Column {
            labels: labels(c.labels, &c.owner, options),
            place,
            values: c.values,
            natives: None,
        };
        (column, stored, c.old)
    };
    let named: Vec<_> = given.into_iter().map(named).collect();
    let mut firsts: HashTable<(u64, usize)> = HashTable::with_capacity(named.len());
    let mut repeated: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (i, (column, stored, _)) in named.iter().enumerate() {
        let fingerprint = match stored {
            Some(_) => column.labels.fingerprint(),
            None => column.place.fingerprint,
        };
        match firsts.entry(fingerprint, |(f, _)| *f == fingerprint, |(f, _)| *f) {
            Entry::Vacant(new) => drop(new.insert((fingerprint, i))),
            Entry::Occupied(first) => {
                let same = repeated.entry(fingerprint).or_insert_with(|| vec![first.get().1]);
                same.push(i);
            }
        }
    }
    let mut split: BTreeMap<Labels, Vec<Labels>> = BTreeMap::new();
    let mut repeats = 0;
    for mut same in repeated.into_values() {
        same.sort_by_key(|i| named[*i].0.place);
        // Mostly one label set; two different ones of one fingerprint may be among them.
        let mut by_labels: BTreeMap<&Labels, Vec<&Labels>> = BTreeMap::new();
        for (column, stored, _) in same.iter().map(|i| &named[*i]) {
            let stored = stored.as_ref().unwrap_or(&column.labels);
            by_labels.entry(&column.labels).or_default().push(stored);
        }
        repeats += same.len() - by_labels.len();
        let several = by_labels.into_iter().filter(|(_, stored)| stored.len() > 1);
        split.extend(several.map(|(labels, stored)| (labels.clone(), stored.into_iter().cloned().collect())));
    }
    if named.len() - repeats > series_max {
        return Err(too_many_series(series_max));
    }
    let mut old = OldForms::default();
    let mut whole = Vec::with_capacity(named.len());
    for (column, _, form) in named {
        if !column.values.is_empty() && (split.is_empty() || !split.contains_key(&column.labels)) {
            old.merge(form);
            whole.push(column);
        }
    }
    Ok(Columns { whole, split, old })
}

/// Where the counts of lines must be known for the windows of all steps, and how they become values.
///
/// A window is open at its beginning and closed at its end, so that its count is that up to its end less that up to its
/// beginning. Steps are whole milliseconds; lines are counted by their nanoseconds.
pub struct CountWindows {
    bounds: Vec<TimestampNs>,
    /// Of each step: the bounds at which its window begins and ends.
    ends: Vec<(usize, usize)>,
    /// Seconds that a count is divided by.
    per: Option<f64>,
}

impl CountWindows {
    pub fn new(made: &Made, steps: Steps, when: When) -> Self {
        let Made::Counts { range_ms, per_second } = *made else {
            unreachable!("lines are counted, nothing else is made of them");
        };
        let window = |t| {
            let at = when.at(t);
            [at.saturating_sub(range_ms), at].map(TimestampNs::from_ms)
        };
        let bounds: BTreeSet<TimestampNs> = steps.iter().flat_map(window).collect();
        let bounds: Vec<TimestampNs> = bounds.into_iter().collect();
        let place = |at: TimestampNs| bounds.partition_point(|b| *b < at);
        let ends = steps.iter().map(|t| window(t).map(place).into()).collect();
        Self {
            ends,
            bounds,
            per: per_second.then_some(range_ms as f64 / 1000.0),
        }
    }

    /// The first time that lies in a window.
    pub fn from(&self) -> TimestampNs {
        let open = self.bounds.first().map_or(i64::MAX, |b| b.0);
        TimestampNs(open.saturating_add(1))
    }

    pub fn bounds(&self) -> &[TimestampNs] {
        &self.bounds
    }

    fn values(&self, counts: &[u64]) -> Vec<f64> {
        let value = |&(begin, end): &(usize, usize)| match counts[end] - counts[begin] {
            0 => ABSENT,
            lines => canonical(lines as f64 / self.per.unwrap_or(1.0)),
        };
        self.ends.iter().map(value).collect()
    }
}

/// Counts of lines as columns, sorted by labels; those of equal labels add up.
pub fn counts(
    given: Vec<StreamCounts>,
    windows: &CountWindows,
    options: &Options,
    series_max: usize,
) -> Result<Vec<Column>, QueryError> {
    let mut by_labels: BTreeMap<Labels, (Place, Vec<u64>)> = BTreeMap::new();
    for s in given {
        let at = place(s.slot, &s.labels);
        let labels = labels(s.labels, &s.owner, options);
        let is_full = by_labels.len() == series_max;
        match by_labels.get_mut(&labels) {
            Some((first, counts)) => {
                *first = at.min(*first);
                counts.iter_mut().zip(s.counts).for_each(|(sum, c)| *sum += c);
            }
            None if is_full => return Err(too_many_series(series_max)),
            None => {
                by_labels.insert(labels, (at, s.counts));
            }
        }
    }
    let columns = by_labels.into_iter().map(|(labels, (place, counts))| Column {
        labels,
        place,
        values: windows.values(&counts),
        natives: None,
    });
    Ok(columns.filter(|c| !c.is_empty()).collect())
}

/// Rounded up, so that a line is in `(a, b]` exactly when its millisecond is.
pub fn ms_rounded_up(at: TimestampNs) -> i64 {
    at.0.div_euclid(1_000_000) + i64::from(at.0.rem_euclid(1_000_000) > 0)
}

/// The filters of a selector as the one test that shards make of each line.
///
/// Lines are bytes and are tested as such: a text is held when its bytes are, and a regex's `.` or class takes one
/// encoded character. Bytes that are not UTF-8 are no character: nothing but a gap between matches, never U+FFFD.
pub fn filter(filters: &[LineFilter]) -> Result<Filter, QueryError> {
    let mut all = vec![];
    for f in filters {
        let is_regex = matches!(f.op, FilterOp::Matches | FilterOp::Fails);
        let test = |text: &str| match is_regex {
            true => Filter::regex(text),
            false => Ok(Filter::contains(text.as_bytes())),
        };
        let any = f.texts().map(test).collect::<Result<Vec<Filter>, BadFilter>>();
        // The parser has compiled it already, of text; of bytes it could still be too large.
        let mut any = any.map_err(|e| QueryError::Execution(e.to_string()))?;
        let any = if any.len() == 1 { any.remove(0) } else { Filter::Or(any) };
        all.push(match f.op {
            FilterOp::Contains | FilterOp::Matches => any,
            FilterOp::Lacks | FilterOp::Fails => any.negated(),
            FilterOp::Like | FilterOp::Unlike => unreachable!("patterns are tested when the lines are here"),
        });
    }
    Ok(if all.len() == 1 {
        all.remove(0)
    } else {
        Filter::And(all)
    })
}

fn joined(
    raws: impl Iterator<Item = Raw>,
    series_max: usize,
    merge: impl Fn(&mut Raw, Raw),
) -> Result<Vec<Raw>, QueryError> {
    let mut by_labels: BTreeMap<Labels, Raw> = BTreeMap::new();
    for raw in raws {
        match by_labels.get_mut(&raw.labels) {
            Some(kept) => {
                // The lower slot wins a tie of times, whatever the order of answers.
                let (mut low, high) = if kept.place <= raw.place {
                    (kept.clone(), raw)
                } else {
                    (raw, kept.clone())
                };
                merge(&mut low, high);
                *kept = low;
            }
            None => {
                if by_labels.len() == series_max {
                    return Err(too_many_series(series_max));
                }
                by_labels.insert(raw.labels.clone(), raw);
            }
        }
    }
    Ok(by_labels.into_values().collect())
}

fn merge_by_time(low: &mut Raw, high: Raw) {
    let mut all: BTreeMap<i64, f64> = high.times.into_iter().zip(high.values).collect();
    all.extend(low.times.iter().copied().zip(low.values.iter().copied()));
    (low.times, low.values) = all.into_iter().unzip();
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_logql::Sought;
    use proptest::prelude::*;

    fn passes(text: &str, line: &[u8]) -> bool {
        let Ok(hindcast_logql::Expr::Lines(selector)) = hindcast_logql::parse(&format!("{{a=\"b\"}} {text}")) else {
            panic!("{text}");
        };
        filter(&selector.pushed()).unwrap().is_match(line)
    }

    #[test]
    fn filters_are_tests_of_bytes() {
        let passing = |text: &str| ["ok", "error 7", "ERROR", ""].map(|l| u8::from(passes(text, l.as_bytes())));
        assert_eq!(passing("|= `error`"), [0, 1, 0, 0]);
        assert_eq!(passing("|= `error` or `ok`"), [1, 1, 0, 0]);
        assert_eq!(passing("!= `error` or `ok`"), [0, 0, 1, 1]);
        assert_eq!(passing("|~ `(?i)error` != `7`"), [0, 0, 1, 0]);
        assert_eq!(passing("!~ `[0-9]$` or `^$`"), [1, 0, 1, 0]);
        assert_eq!(passing("|= ``"), [1, 1, 1, 1]);
        assert_eq!(passing(""), [1, 1, 1, 1]);
        let broken = b"caf\xe9 ok";
        assert!(passes("|= `ok`", broken) && passes("|~ `^caf`", broken));
        assert!(!passes("|= `\u{fffd}`", broken) && !passes("|~ `caf.`", broken));
        assert!(passes("|~ `caf.`", "café".as_bytes()));
    }

    proptest! {
        #[test]
        fn on_text_filters_are_those_of_the_language(
            lines in prop::collection::vec("[ab é0]{0,6}", 1..8),
            parts in prop::collection::vec((0usize..4, prop::collection::vec("[ab é0]{0,2}", 1..3)), 0..4),
        ) {
            let ops = [FilterOp::Contains, FilterOp::Lacks, FilterOp::Matches, FilterOp::Fails];
            let filters: Vec<LineFilter> =
                parts
                    .iter()
                    .map(|(op, texts)| {
                        LineFilter::new(ops[*op], texts.iter().cloned().map(Sought::Text).collect()).unwrap()
                    })
                    .collect();
            let asked = filter(&filters).unwrap();
            for line in &lines {
                let naive = filters.iter().all(|f| {
                    let held = f.texts().any(|t| line.contains(t));
                    held == matches!(f.op, FilterOp::Contains | FilterOp::Matches)
                });
                prop_assert_eq!(asked.is_match(line.as_bytes()), naive, "{:?} {:?}", filters, line);
            }
        }
    }
}

//! What the shards gave, as the evaluator wants it.

use crate::column::{Place, Raw};
use crate::engine::{OWNER_LABEL, Options, QueryError};
use hindcast_logql::LineFilter;
use hindcast_model::{Labels, Owner};
use hindcast_storage::read::{SeriesData, StreamData};
use std::collections::BTreeMap;

fn labels(labels: Labels, owner: &Owner, options: &Options) -> Labels {
    match owner.id() {
        Some(id) if options.owner_label => labels.with(OWNER_LABEL, &id.to_string()),
        _ => labels,
    }
}

/// Series as shards gave them; two of equal labels (of two owners) become one.
pub fn series(given: Vec<SeriesData>, options: &Options, series_max: usize) -> Result<Vec<Raw>, QueryError> {
    let raws = given.into_iter().map(|s| {
        let place = Place {
            slot: s.slot.0,
            fingerprint: s.labels.fingerprint(),
        };
        Raw {
            labels: labels(s.labels, &s.owner, options),
            place,
            times: s.samples.iter().map(|s| s.at.as_ms()).collect(),
            values: s.samples.iter().map(|s| s.value).collect(),
        }
    });
    joined(raws, series_max, merge_by_time)
}

/// Lines as samples: 1, or the length of the line in bytes.
pub fn lines(
    given: Vec<StreamData>,
    filters: &[LineFilter],
    bytes: bool,
    options: &Options,
    series_max: usize,
) -> Result<Vec<Raw>, QueryError> {
    let raws = given.into_iter().map(|s| {
        let place = Place {
            slot: s.slot.0,
            fingerprint: s.labels.fingerprint(),
        };
        let kept = s.lines.iter().filter(|l| passes(filters, &l.line));
        // Rounded up, so that a line is in `(a, b]` exactly when its millisecond is.
        let (times, values) = kept
            .map(|l| {
                (
                    l.at.0.div_euclid(1_000_000) + i64::from(l.at.0.rem_euclid(1_000_000) > 0),
                    l.line.len(),
                )
            })
            .map(|(at, len)| (at, if bytes { len as f64 } else { 1.0 }))
            .unzip();
        Raw {
            labels: labels(s.labels, &s.owner, options),
            place,
            times,
            values,
        }
    });
    joined(raws.filter(|r| !r.times.is_empty()), series_max, |a, b| {
        let all = a.times.iter().zip(&a.values).chain(b.times.iter().zip(&b.values));
        let mut all: Vec<(i64, f64)> = all.map(|(t, v)| (*t, *v)).collect();
        all.sort_by_key(|(t, _)| *t);
        (a.times, a.values) = all.into_iter().unzip();
    })
}

/// Whether a line passes all filters. What is not UTF-8 is seen with replacement characters.
pub fn passes(filters: &[LineFilter], line: &[u8]) -> bool {
    filters.is_empty() || {
        let text = String::from_utf8_lossy(line);
        filters.iter().all(|f| f.passes(&text))
    }
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
                    return Err(QueryError::TooLarge {
                        what: "series",
                        max: series_max,
                    });
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

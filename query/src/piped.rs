//! Lines on their way through the stages of a query: to an answer of lines, or to samples.
//!
//! What stages need no more than the line has been tested where the lines lie. The rest happens here, page by page, so
//! that memory is bounded by the answer and a page.

use crate::column::{Place, Raw};
use crate::engine::{OWNER_LABEL, Options, QueryError};
use crate::gather::canonical;
use crate::load;
use crate::logs::Groups;
use crate::plan::{LineValue, Piped, Windows};
use hashbrown::HashTable;
use hindcast_logql::{ERROR, ERROR_DETAILS, Fields, LabelFilter, Origin, Passed, Pipeline, SAMPLE_ERROR};
use hindcast_model::{Labels, LogLine, Owner, TimestampNs};
use hindcast_promql::Grouping;
use hindcast_storage::read::StreamData;
use std::collections::BTreeSet;
use xxhash_rust::xxh3::xxh3_64;

fn begin(pipeline: &mut Pipeline, labels: &Labels, owner: &Owner, options: &Options) {
    match owner.id() {
        Some(id) if options.owner_label => pipeline.begin_stream(&labels.with(OWNER_LABEL, &id.to_string())),
        _ => pipeline.begin_stream(labels),
    }
}

/// Lets the lines of a page through, into groups of equal labels. Gives how many came through.
pub fn lines(pipeline: &mut Pipeline, page: Vec<StreamData>, options: &Options, groups: &mut Groups) -> usize {
    let mut passed = 0;
    for stream in page {
        begin(pipeline, &stream.labels, &stream.owner, options);
        for line in stream.lines {
            let Some(Passed { line: text, fields }) = pipeline.pass(line.at, &line.line, &line.metadata) else {
                continue;
            };
            // Most lines come out as they came in: their bytes are shared, not copied.
            let is_same = text.as_ptr() == line.line.as_ptr() && text.len() == line.line.len();
            let text = if is_same {
                line.line.clone()
            } else {
                text.to_vec().into()
            };
            let labels = fields.labels(|_, origin| origin == Origin::Stream);
            let parsed = fields.labels(|_, origin| origin == Origin::Parsed);
            let metadata = fields.labels(|_, origin| origin == Origin::Metadata);
            groups.entry((labels, parsed)).or_default().push(LogLine {
                at: line.at,
                line: text,
                metadata: metadata.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect(),
            });
            passed += 1;
        }
    }
    passed
}

/// Samples of lines by the labels that are left of them.
pub struct Sampler {
    pipeline: Pipeline,
    piped: Piped,
    windows: Windows,
    by_labels: HashTable<(u64, usize)>,
    series: Vec<Series>,
    series_max: usize,
}

struct Series {
    labels: Labels,
    /// In order of time.
    samples: Vec<(TimestampNs, f64)>,
    /// How many of them are of earlier pages.
    settled: usize,
}

impl Sampler {
    pub fn new(piped: &Piped, windows: Windows, now: TimestampNs, series_max: usize) -> Result<Self, QueryError> {
        let pipeline = Pipeline::new(&piped.stages, wanted(piped), now).map_err(QueryError::Execution)?;
        Ok(Self {
            pipeline,
            piped: piped.clone(),
            windows,
            by_labels: HashTable::new(),
            series: vec![],
            series_max,
        })
    }

    /// Takes the lines of a page; pages ascend by time. Gives how many samples it made of them.
    pub fn take(&mut self, page: &[StreamData], options: &Options) -> Result<usize, QueryError> {
        let mut made = 0;
        for stream in page {
            begin(&mut self.pipeline, &stream.labels, &stream.owner, options);
            for line in &stream.lines {
                if !self.windows.hold(load::ms_rounded_up(line.at)) {
                    continue;
                }
                let metadata = match self.piped.sees_metadata() {
                    true => &line.metadata[..],
                    false => &[],
                };
                let Some(Passed { line: text, fields }) = self.pipeline.pass(line.at, &line.line, metadata) else {
                    continue;
                };
                let value = match &self.piped.value {
                    LineValue::One => Some(1.0),
                    LineValue::Bytes => Some(text.len() as f64),
                    LineValue::Unwrap(unwrap) => unwrapped(unwrap, fields),
                };
                let Some(value) = value else { continue };
                if let Some(error) = fields.error()
                    && !self.piped.keeps_errors
                {
                    return Err(failed(error, line, fields));
                }
                let series = self.series()?;
                self.series[series].samples.push((line.at, value));
                made += 1;
            }
        }
        for series in &mut self.series {
            // Of equal times, streams come in the order of summation: as they do in a page.
            series.samples[series.settled..].sort_by_key(|(at, _)| *at);
            series.settled = series.samples.len();
        }
        Ok(made)
    }

    /// The series of the line that came through last.
    fn series(&mut self) -> Result<usize, QueryError> {
        let fields = self.pipeline.fields();
        let piped = &self.piped;
        let mut kept: Vec<(&str, &str)> = fields
            .iter()
            .filter(|(name, ..)| piped.keeps(name))
            .map(|(name, value, _)| (name, value))
            .collect();
        kept.sort_unstable();
        let mut hash = 0u64;
        for (name, value) in &kept {
            // Names and values apart, in their order.
            hash = hash.rotate_left(5) ^ xxh3_64(name.as_bytes()) ^ xxh3_64(value.as_bytes()).rotate_left(32);
        }
        let series = &self.series;
        let is_same = |(h, i): &(u64, usize)| *h == hash && series[*i].labels.iter().eq(kept.iter().copied());
        if let Some((_, i)) = self.by_labels.find(hash, is_same) {
            return Ok(*i);
        }
        if self.series.len() == self.series_max {
            return Err(QueryError::TooLarge {
                what: "series",
                max: self.series_max,
            });
        }
        let i = self.series.len();
        self.by_labels.insert_unique(hash, (hash, i), |(h, _)| *h);
        let labels = Labels::from_sorted(kept);
        self.series.push(Series {
            labels,
            samples: vec![],
            settled: 0,
        });
        Ok(i)
    }

    pub fn finish(self) -> Vec<Raw> {
        let raws = self.series.into_iter().map(|s| Raw {
            natives: None,
            place: Place::computed(&s.labels),
            labels: s.labels,
            times: s.samples.iter().map(|(at, _)| load::ms_rounded_up(*at)).collect(),
            values: s.samples.iter().map(|(_, v)| *v).collect(),
        });
        raws.collect()
    }
}

/// The labels that somebody looks at in the end. `None`: all.
fn wanted(piped: &Piped) -> Option<BTreeSet<String>> {
    let Some(Grouping { without: false, labels }) = &piped.grouping else {
        return None;
    };
    let mut wanted: BTreeSet<String> = labels.iter().cloned().collect();
    if let LineValue::Unwrap(unwrap) = &piped.value {
        wanted.insert(unwrap.label.clone());
        for filter in &unwrap.filters {
            filter.labels(&mut |label| {
                wanted.insert(label.to_owned());
            });
        }
    }
    Some(wanted)
}

/// The label's value as a number. `None`: there is none, or a filter behind `unwrap` lets the line fall.
fn unwrapped(unwrap: &hindcast_logql::Unwrap, fields: &mut Fields) -> Option<f64> {
    let text = fields.get(&unwrap.label).filter(|t| !t.is_empty())?;
    let value = unwrap.conversion.value(text);
    if value.is_none() {
        let details = format!("the label {} is no number: {text:?}", unwrap.label);
        fields.fail(SAMPLE_ERROR, &details);
    }
    let passes = |filter: &LabelFilter| filter.passes(fields);
    unwrap
        .filters
        .iter()
        .all(passes)
        .then(|| canonical(value.unwrap_or(0.0)))
}

fn failed(error: &str, line: &LogLine, fields: &Fields) -> QueryError {
    let labels = fields.labels(|name, _| name != ERROR && name != ERROR_DETAILS);
    let details = fields.get(ERROR_DETAILS).unwrap_or("");
    QueryError::Execution(format!(
        "pipeline error: {error:?} ({details}) for the line at {} of {labels}; to leave such lines out, add | __error__=\"\"",
        line.at
    ))
}

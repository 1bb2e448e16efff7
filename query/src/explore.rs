//! What there is to ask logs about, for people who look around: how much, which labels and fields, which kinds of lines.
//!
//! Numbers of lines and labels are exact, and volumes, which read all lines. Fields and patterns are those of the newest lines, a
//! bounded number of them; the size of what a selector has is estimated from as many.

use crate::engine::{Engine, LabelsQuery, LogsQuery, Options, QueryError};
use crate::pages::Pages;
use crate::shards::{Budget, Completeness, CountsRequest, LinesRequest};
use crate::value::{Answer, LogsValue, Value};
use crate::{load, logs, piped};
use hindcast_logql::{Expr, LogSelector, Metric, Pipeline, RangeFunction, quantity};
use hindcast_model::{Labels, LogLine, Matcher, SpanNs, TenantId, TimestampNs};
use hindcast_storage::read::Direction;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Lines that an estimate is made of.
pub const SAMPLE_LINES_MAX: usize = 5_000;
/// Kinds of lines that are told apart.
pub const PATTERNS_MAX: usize = 300;
/// Fields that are told apart.
pub const DETECTED_FIELDS_MAX: usize = 10_000;
/// Values of a field that are told apart.
pub const FIELD_VALUES_MAX: usize = 1_000;

/// Which lines, of which time.
#[derive(Clone, Debug)]
pub struct ExploreQuery {
    pub tenant: TenantId,
    /// A log query; empty: all streams.
    pub expr: String,
    pub start: TimestampNs,
    /// Excluded.
    pub end: TimestampNs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub streams: u64,
    pub entries: u64,
    /// Estimated.
    pub bytes: u64,
}

/// A field that the lines themselves have, or their metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Field {
    pub values: BTreeSet<String>,
    pub parsers: BTreeSet<&'static str>,
}

impl Field {
    /// What all of its values are, as Loki names it.
    pub fn kind(&self) -> &'static str {
        let all = |is: fn(&str) -> bool| self.values.iter().all(|v| is(v));
        if all(|v| v.parse::<i64>().is_ok()) {
            "int"
        } else if all(|v| v.parse::<f64>().is_ok()) {
            "float"
        } else if all(|v| matches!(v, "true" | "false")) {
            "boolean"
        } else if all(|v| quantity::duration_ns(v).is_some()) {
            "duration"
        } else if all(|v| quantity::bytes(v).is_some()) {
            "bytes"
        } else {
            "string"
        }
    }
}

/// How much each group of streams has.
#[derive(Clone, Debug, PartialEq)]
pub struct Volume {
    pub labels: Vec<(String, String)>,
    /// Bytes, at the end of each step.
    pub points: Vec<(TimestampNs, f64)>,
}

/// What volumes are added up by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeBy {
    /// Only these labels. Empty: those that the selector names.
    pub targets: Vec<String>,
    /// One group for each label, whatever its value.
    pub names: bool,
    /// The largest so many groups.
    pub limit: usize,
}

impl Engine {
    fn selector(&self, q: &ExploreQuery) -> Result<LogSelector, QueryError> {
        if q.expr.trim().is_empty() || q.expr.trim() == "{}" {
            return Ok(LogSelector {
                matchers: vec![],
                stages: vec![],
            });
        }
        self.check_length(&q.expr)?;
        match hindcast_logql::parse(&q.expr)? {
            Expr::Lines(selector) => Ok(selector),
            Expr::Metric(metric) => innermost(&metric)
                .cloned()
                .ok_or_else(|| QueryError::Parameter("the expression reads no lines".to_owned())),
        }
    }

    fn lines_request(&self, q: &ExploreQuery, selector: &LogSelector) -> Result<LinesRequest, QueryError> {
        Ok(LinesRequest {
            tenant: q.tenant.clone(),
            matchers: logs::meant(&selector.matchers),
            from: q.start,
            to: TimestampNs(q.end.0.saturating_sub(1)),
            as_of: None,
            owners: None,
            filter: load::filter(&selector.pushed())?,
            limit: None,
            direction: Direction::Backward,
        })
    }

    /// The newest lines that come through the query's stages.
    async fn sample(&self, q: &ExploreQuery, lines_max: usize) -> Result<(logs::Groups, Completeness), QueryError> {
        let selector = self.selector(q)?;
        let request = self.lines_request(q, &selector)?;
        let mut pipeline = Pipeline::new(&selector.rest(), None, q.end).map_err(QueryError::Execution)?;
        let mut pages = Pages::new(self.shards.as_ref(), request, lines_max.saturating_add(1));
        let (mut groups, mut passed) = (logs::Groups::new(), 0);
        while passed < lines_max
            && pages.completeness.lines.lines < SAMPLE_LINES_MAX as u64
            && let Some(page) = pages.next().await?
        {
            passed += piped::lines(&mut pipeline, page, &Options::default(), &mut groups);
        }
        let mut kept = logs::Groups::new();
        for stream in logs::streams(groups, lines_max, Direction::Backward) {
            kept.insert((stream.labels, stream.parsed), stream.lines);
        }
        Ok((kept, pages.completeness))
    }

    pub async fn line_stats(&self, q: &ExploreQuery) -> Result<Answer<Stats>, QueryError> {
        if q.end <= q.start {
            return Ok(whole(Stats::default(), Completeness::default()));
        }
        let selector = self.selector(q)?;
        let request = CountsRequest {
            tenant: q.tenant.clone(),
            matchers: logs::meant(&selector.matchers),
            from: q.start,
            bounds: vec![TimestampNs(q.end.0.saturating_sub(1))],
            as_of: None,
            owners: None,
            filter: load::filter(&selector.pushed())?,
            budget: Arc::new(Budget::new(self.limits.samples_max, self.limits.series_max)),
        };
        let (counts, completeness) = self.shards.line_counts(request).await?;
        let entries: u64 = counts.iter().filter_map(|c| c.counts.last()).sum();
        let mut pages = Pages::new(
            self.shards.as_ref(),
            self.lines_request(q, &selector)?,
            SAMPLE_LINES_MAX,
        );
        pages.next().await?;
        let read = pages.completeness.lines;
        let mean = read.bytes as f64 / read.lines.max(1) as f64;
        let stats = Stats {
            streams: counts.len() as u64,
            entries,
            bytes: (entries as f64 * mean).round() as u64,
        };
        Ok(whole(stats, completeness))
    }

    /// Bytes of lines by labels, largest first: one point for the whole time, or one per step.
    pub async fn line_volume(
        &self,
        q: &ExploreQuery,
        step: Option<SpanNs>,
        by: &VolumeBy,
    ) -> Result<Answer<Vec<Volume>>, QueryError> {
        let selector = self.selector(q)?;
        let range_ms = step.map_or(q.end.since(q.start), |s| s).as_ms().max(1);
        let named: Vec<String> = selector.matchers.iter().map(|m: &Matcher| m.name.clone()).collect();
        let metric = Metric::Range {
            function: RangeFunction::BytesOverTime,
            lines: selector,
            unwrap: None,
            param: None,
            grouping: None,
            range_ms: i64::try_from(range_ms).unwrap_or(i64::MAX),
            offset_ms: 0,
        };
        let logs = LogsQuery {
            tenant: q.tenant.clone(),
            expr: String::new(),
            // A point is what came in the step before it.
            start: step.map_or(q.start, |s| q.start + s).min(q.end),
            end: q.end,
            step,
            limit: 0,
            direction: Direction::Backward,
            options: Options::default(),
        };
        let answer = self.log_metric(&logs, &metric).await?;
        Ok(answer.map(|value| volumes(series(value), by, &named)))
    }

    /// Labels of streams, and how many values each has.
    pub async fn detected_labels(&self, q: &LabelsQuery) -> Result<Answer<BTreeMap<String, usize>>, QueryError> {
        let counted = |sets: Vec<Labels>| {
            let mut values: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
            for (name, value) in sets.iter().flat_map(Labels::iter) {
                values.entry(name).or_default().insert(value);
            }
            values.into_iter().map(|(n, v)| (n.to_owned(), v.len())).collect()
        };
        Ok(self.series(q).await?.map(counted))
    }

    /// Fields of the newest lines: of their texts, read as JSON or logfmt, of their metadata, and of the query's stages.
    pub async fn detected_fields(
        &self,
        q: &ExploreQuery,
        lines_max: usize,
    ) -> Result<Answer<BTreeMap<String, Field>>, QueryError> {
        let (groups, completeness) = self.sample(q, lines_max.min(SAMPLE_LINES_MAX)).await?;
        let parsers = [("json", "{a=\"b\"} | json"), ("logfmt", "{a=\"b\"} | logfmt --strict")];
        let mut ready = vec![];
        for (name, text) in parsers {
            if let Expr::Lines(selector) = hindcast_logql::parse(text)? {
                let pipeline = Pipeline::new(&selector.stages, None, q.end).map_err(QueryError::Execution)?;
                ready.push((name, pipeline));
            }
        }
        let mut fields: BTreeMap<String, Field> = BTreeMap::new();
        let mut add = |name: &str, value: &str, parser: Option<&'static str>| {
            if fields.len() >= DETECTED_FIELDS_MAX && !fields.contains_key(name) {
                return;
            }
            let field = fields.entry(name.to_owned()).or_default();
            if field.values.len() < FIELD_VALUES_MAX {
                field.values.insert(value.to_owned());
            }
            field.parsers.extend(parser);
        };
        for ((labels, parsed), lines) in &groups {
            parsed.iter().for_each(|(n, v)| add(n, v, None));
            for line in lines {
                line.metadata.iter().for_each(|(n, v)| add(n, v, None));
                for (name, pipeline) in &mut ready {
                    pipeline.begin_stream(labels);
                    let passed = pipeline.pass(line.at, &line.line, &line.metadata);
                    let Some(passed) = passed.filter(|p| p.fields.error().is_none()) else {
                        continue;
                    };
                    let own = |o| o == hindcast_logql::Origin::Parsed;
                    let mut found = false;
                    for (field, value, _) in passed.fields.iter().filter(|(.., o)| own(*o)) {
                        add(field, value, Some(name));
                        found = true;
                    }
                    if found {
                        break;
                    }
                }
            }
        }
        Ok(whole(fields, completeness))
    }

    /// Kinds of lines among the newest ones: what they have in common, and how many there are in each step.
    pub async fn line_patterns(
        &self,
        q: &ExploreQuery,
        step: SpanNs,
    ) -> Result<Answer<Vec<(String, BTreeMap<i64, u64>)>>, QueryError> {
        let (groups, completeness) = self.sample(q, SAMPLE_LINES_MAX).await?;
        let step_s = i64::try_from(step.as_ms() / 1000).unwrap_or(i64::MAX).max(1);
        let mut patterns: BTreeMap<String, BTreeMap<i64, u64>> = BTreeMap::new();
        for line in groups.values().flatten() {
            let pattern = pattern(line);
            if patterns.len() < PATTERNS_MAX || patterns.contains_key(&pattern) {
                let at = line.at.as_ms().div_euclid(1000).div_euclid(step_s) * step_s;
                *patterns.entry(pattern).or_default().entry(at).or_default() += 1;
            }
        }
        let mut patterns: Vec<_> = patterns.into_iter().collect();
        patterns.sort_by_key(|(_, counts)| std::cmp::Reverse(counts.values().sum::<u64>()));
        Ok(whole(patterns, completeness))
    }
}

/// An answer that nothing is to be said about but how whole it is.
fn whole<T>(value: T, completeness: Completeness) -> Answer<T> {
    Answer {
        value,
        completeness,
        warnings: vec![],
    }
}

/// Points of each series; an expression over lines gives nothing else.
type Series = Vec<(Labels, Vec<(TimestampNs, f64)>)>;

fn series(value: LogsValue) -> Series {
    match value {
        LogsValue::Metric(Value::Vector(samples)) => {
            samples.into_iter().map(|s| (s.labels, vec![(s.at, s.value)])).collect()
        }
        LogsValue::Metric(Value::Matrix(all)) => all.into_iter().map(|s| (s.labels, s.points)).collect(),
        LogsValue::Metric(Value::Scalar(_) | Value::String(_)) | LogsValue::Streams(_) => vec![],
    }
}

fn innermost(metric: &Metric) -> Option<&LogSelector> {
    match metric {
        Metric::Range { lines, .. } => Some(lines),
        Metric::Aggregate { inner, .. } | Metric::Sorted { inner, .. } | Metric::LabelReplace { inner, .. } => {
            innermost(inner)
        }
        Metric::Binary { lhs, rhs, .. } => innermost(lhs).or_else(|| innermost(rhs)),
        Metric::Number(_) | Metric::Vector(_) => None,
    }
}

fn volumes(series: Series, by: &VolumeBy, named: &[String]) -> Vec<Volume> {
    let targets = if by.targets.is_empty() { named } else { &by.targets[..] };
    let is_target = |name: &str| targets.is_empty() || targets.iter().any(|t| t == name);
    let mut groups: BTreeMap<Vec<(String, String)>, BTreeMap<TimestampNs, f64>> = BTreeMap::new();
    for (labels, points) in series {
        let kept: Vec<(String, String)> = labels
            .iter()
            .filter(|(n, _)| is_target(n))
            .map(|(n, v)| (n.to_owned(), v.to_owned()))
            .collect();
        let keys: Vec<Vec<(String, String)>> = if by.names {
            kept.into_iter().map(|(n, _)| vec![(n, String::new())]).collect()
        } else {
            vec![kept]
        };
        for key in keys {
            let sums = groups.entry(key).or_default();
            // Whole numbers: their order does not matter.
            points.iter().for_each(|(at, v)| *sums.entry(*at).or_default() += v);
        }
    }
    let mut volumes: Vec<Volume> = groups
        .into_iter()
        .map(|(labels, points)| Volume {
            labels,
            points: points.into_iter().collect(),
        })
        .collect();
    let total = |v: &Volume| v.points.iter().map(|(_, b)| b).sum::<f64>();
    volumes.sort_by(|a, b| total(b).total_cmp(&total(a)).then_with(|| a.labels.cmp(&b.labels)));
    volumes.truncate(by.limit);
    volumes
}

/// The line with `<_>` for each word that has a digit in it; of `key=value` the key stays.
fn pattern(line: &LogLine) -> String {
    let text = String::from_utf8_lossy(&line.line);
    let mut out = String::with_capacity(text.len().min(256));
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        let has_digit = |t: &str| t.bytes().any(|b| b.is_ascii_digit());
        match word.split_once('=') {
            Some((key, value)) if has_digit(value) && !has_digit(key) => {
                out.push_str(key);
                out.push_str("=<_>");
            }
            _ if has_digit(word) => out.push_str("<_>"),
            _ => out.push_str(word),
        }
    }
    out
}

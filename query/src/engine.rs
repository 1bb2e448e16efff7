//! The one door to data: PromQL, LogQL and label searches over the seam `Shards`.
//!
//! parse → plan → ask the shards once per selector → evaluate. The evaluation itself does no I/O; it gives way to other
//! tasks now and then. Drop the future to cancel: the evaluation ends there, reads in the shards end at the next series.
//! Times are `TimestampNs`, taken at PromQL's resolution: whole milliseconds, rounded down.

use crate::column::{Column, Point, Steps, is_absent};
use crate::eval::{Evaluator, Out};
use crate::fetch::{Cancels, Fetch};
use crate::pages::Pages;
use crate::plan::{self, Plan, Planned};
use crate::shards::{Budget, Completeness, Consistency, LabelsRequest, LinesRead, LinesRequest, Shards, ShardsError};
use crate::value::{Answer, LogsValue, MatrixSeries, Value, VectorSample};
use crate::{load, logs, piped};
use hindcast_logql::{LogSelector, Metric, Pipeline, Stage};
use hindcast_model::{Class, Classify, Labels, MatchOp, Matcher, Positions, ResourceId, SpanNs, TenantId, TimestampNs};
use hindcast_promql::{AggregateOp, Expr, ParseError, QueryRange, ValueType};
use hindcast_proto::trace::{NATIVE, TRACE_LABEL};
use hindcast_storage::cardinality::Cardinality;
use hindcast_storage::read::{Direction, LabelTexts};
use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

/// The virtual label that holds the hex id of a series' owner, when `Options::owner_label` asks for it.
pub const OWNER_LABEL: &str = "__owner__";

/// Lines of the first page that a query with stages asks for, at least.
const PIPED_LINES_FIRST: usize = 500;

/// Bounds of one query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Samples read, points computed, and counts kept of lines that are only counted, which themselves are neither.
    pub samples_max: usize,
    /// Points of one series in a range query.
    pub steps_max: usize,
    /// Series of one selector.
    pub series_max: usize,
    /// Bytes of an expression.
    pub expr_bytes_max: usize,
    /// Log lines of one answer.
    pub lines_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            samples_max: 50_000_000,
            steps_max: 11_000,
            series_max: 1_000_000,
            expr_bytes_max: 64 * 1024,
            lines_max: 100_000,
        }
    }
}

/// What a query may see, beside its text.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// How far back an instant looks for a sample; the instant that far back itself is out.
    pub lookback: SpanNs,
    /// A cut's positions; `None`: all that is known.
    pub as_of: Option<Positions>,
    /// Only data of these resources.
    pub owners: Option<BTreeSet<ResourceId>>,
    /// Adds the virtual label [`OWNER_LABEL`] to every selected series that has an owner.
    pub owner_label: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lookback: SpanNs::from_secs(300),
            as_of: None,
            owners: None,
            owner_label: false,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct InstantQuery {
    pub tenant: TenantId,
    pub expr: String,
    pub at: TimestampNs,
    pub options: Options,
}

#[derive(Clone, Debug, PartialEq)]
pub struct RangeQuery {
    pub tenant: TenantId,
    pub expr: String,
    pub start: TimestampNs,
    /// Included, when a step falls on it.
    pub end: TimestampNs,
    pub step: SpanNs,
    pub options: Options,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LogsQuery {
    pub tenant: TenantId,
    pub expr: String,
    /// Included.
    pub start: TimestampNs,
    /// Of lines: excluded. Of a metric expression: included.
    pub end: TimestampNs,
    /// Of a metric expression: `None` evaluates it once, at `end`. Lines need no step.
    pub step: Option<SpanNs>,
    pub limit: usize,
    pub direction: Direction,
    pub options: Options,
}

/// Which label sets exist.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelsQuery {
    pub tenant: TenantId,
    /// Log streams instead of series.
    pub streams: bool,
    /// Selectors; a set matches when any of them does. Empty: all.
    pub matching: Vec<String>,
    pub start: TimestampNs,
    pub end: TimestampNs,
}

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    #[error("{0}")]
    Parse(#[from] ParseError),
    /// A parameter beside the expression is wrong.
    #[error("{0}")]
    Parameter(String),
    /// The expression is well-formed, but has no value over this data.
    #[error("{0}")]
    Execution(String),
    #[error("the query needs more than {max} {what}; ask for less time, fewer series or a longer step")]
    TooLarge { what: &'static str, max: usize },
    #[error(transparent)]
    Shards(#[from] ShardsError),
}

impl Classify for QueryError {
    fn class(&self) -> Class {
        match self {
            Self::Parse(_) | Self::Parameter(_) | Self::Execution(_) => Class::FixRequest,
            Self::TooLarge { .. } => Class::TooLarge,
            Self::Shards(e) => e.class(),
        }
    }
}

/// Answers queries. Clones are not needed: share it in an `Arc`.
pub struct Engine {
    pub(crate) shards: Arc<dyn Shards>,
    pub(crate) limits: Limits,
}

impl Engine {
    pub fn new(shards: Arc<dyn Shards>, limits: Limits) -> Self {
        Self { shards, limits }
    }

    /// The same engine over shards that are read as a query asks for.
    pub fn with(self: &Arc<Self>, consistency: Consistency) -> Arc<Self> {
        match self.shards.read_with(consistency) {
            Some(shards) => Arc::new(Self::new(shards, self.limits)),
            None => self.clone(),
        }
    }

    /// The value of an expression at one instant.
    pub async fn instant(&self, q: &InstantQuery) -> Result<Answer<Value>, QueryError> {
        let of_instant = QueryRange {
            step_ms: 0,
            range_ms: 0,
        };
        let expr = self.parse(&q.expr, Some(of_instant))?;
        self.at(q, |steps| plan::plan(&expr, steps, lookback_ms(&q.options)))
            .await
    }

    /// The value of a metric expression over logs at one instant.
    pub async fn instant_of_logs(&self, q: &InstantQuery) -> Result<Answer<Value>, QueryError> {
        self.check_length(&q.expr)?;
        match hindcast_logql::parse(&q.expr)? {
            hindcast_logql::Expr::Metric(metric) => self.at(q, |steps| plan::plan_logs(&metric, steps)).await,
            hindcast_logql::Expr::Lines(_) => Err(QueryError::Parameter(
                "the expression gives lines and no values: count them with `count_over_time`".to_owned(),
            )),
        }
    }

    async fn at(&self, q: &InstantQuery, plan: impl FnOnce(Steps) -> Planned) -> Result<Answer<Value>, QueryError> {
        let at = q.at.as_ms();
        let steps = Steps {
            start: at,
            step: 1,
            count: 1,
        };
        let (out, answer) = self.run(&q.tenant, plan(steps), &q.options, steps, false).await?;
        Ok(answer.map(|ordered| instant_value(out, at, ordered)))
    }

    /// The values of an expression at each step from `start` to `end`.
    pub async fn range(&self, q: &RangeQuery) -> Result<Answer<Value>, QueryError> {
        let steps = self.steps(q.start, q.end, q.step)?;
        let of_range = QueryRange {
            step_ms: steps.step,
            range_ms: q.end.as_ms() - q.start.as_ms(),
        };
        let expr = self.parse(&q.expr, Some(of_range))?;
        if !matches!(expr.value_type(), ValueType::Scalar | ValueType::Vector) {
            return Err(QueryError::Parameter(format!(
                "invalid expression type {:?} for range query, must be Scalar or instant Vector",
                expr.value_type().as_str()
            )));
        }
        let planned = plan::plan(&expr, steps, lookback_ms(&q.options));
        let (out, answer) = self.run(&q.tenant, planned, &q.options, steps, true).await?;
        Ok(answer.map(|_| range_value(out, steps)))
    }

    /// Log lines, or the value of a metric expression over them.
    pub async fn logs(&self, q: &LogsQuery) -> Result<Answer<LogsValue>, QueryError> {
        self.check_length(&q.expr)?;
        match hindcast_logql::parse(&q.expr)? {
            hindcast_logql::Expr::Lines(selector) => self.lines(q, &selector).await,
            hindcast_logql::Expr::Metric(metric) => self.log_metric(q, &metric).await,
        }
    }

    /// Whether lines of this expression can be followed as they come.
    pub(crate) fn check_followed(&self, expr: &str) -> Result<(), QueryError> {
        self.check_length(expr)?;
        match hindcast_logql::parse(expr)? {
            hindcast_logql::Expr::Lines(_) => Ok(()),
            hindcast_logql::Expr::Metric(_) => Err(QueryError::Parameter(
                "lines can be followed, values cannot: leave the function away, or ask query_range".to_owned(),
            )),
        }
    }

    async fn lines(&self, q: &LogsQuery, selector: &LogSelector) -> Result<Answer<LogsValue>, QueryError> {
        if q.limit > self.limits.lines_max {
            let message = format!("limit {} is more than {} lines", q.limit, self.limits.lines_max);
            return Err(QueryError::Parameter(message));
        }
        let request = LinesRequest {
            tenant: q.tenant.clone(),
            matchers: logs::meant(&selector.matchers),
            from: q.start,
            to: TimestampNs(q.end.0.saturating_sub(1)),
            as_of: q.options.as_of.clone(),
            owners: q.options.owners.clone(),
            filter: load::filter(&selector.pushed())?,
            limit: Some(q.limit),
            direction: q.direction,
        };
        let stages = selector.rest();
        let (groups, completeness) = if q.start >= q.end || q.limit == 0 {
            (logs::Groups::new(), Completeness::default())
        } else if stages.is_empty() {
            let (streams, mut completeness) = self.shards.lines(request).await?;
            completeness.lines.merge(LinesRead::of(&streams));
            (logs::groups(streams), completeness)
        } else {
            self.piped(q, request, &stages).await?
        };
        Ok(Answer {
            value: LogsValue::Streams(logs::streams(groups, q.limit, q.direction)),
            completeness,
            warnings: vec![],
        })
    }

    /// Lines that come through all stages, from the end that is asked for until there are enough.
    async fn piped(
        &self,
        q: &LogsQuery,
        request: LinesRequest,
        stages: &[Stage],
    ) -> Result<(logs::Groups, Completeness), QueryError> {
        let mut pipeline = Pipeline::new(stages, None, q.end).map_err(QueryError::Execution)?;
        let mut pages = Pages::new(
            self.shards.as_ref(),
            request,
            q.limit.saturating_mul(2).max(PIPED_LINES_FIRST),
        );
        let (mut groups, mut passed) = (logs::Groups::new(), 0);
        while passed < q.limit
            && let Some(page) = pages.next().await?
        {
            passed += piped::lines(&mut pipeline, page, &q.options, &mut groups);
        }
        Ok((groups, pages.completeness))
    }

    pub(crate) async fn log_metric(&self, q: &LogsQuery, metric: &Metric) -> Result<Answer<LogsValue>, QueryError> {
        let steps = match q.step {
            Some(step) => self.steps(q.start, q.end, step)?,
            None => Steps {
                start: q.end.as_ms(),
                step: 1,
                count: 1,
            },
        };
        let planned = plan::plan_logs(metric, steps);
        let (out, answer) = self
            .run(&q.tenant, planned, &q.options, steps, q.step.is_some())
            .await?;
        Ok(answer.map(|ordered| {
            LogsValue::Metric(match q.step {
                Some(_) => range_value(out, steps),
                None => instant_value(out, steps.start, ordered),
            })
        }))
    }

    /// A LogQL expression in the form in which this program writes it.
    pub fn printed(&self, expr: &str) -> Result<String, QueryError> {
        self.check_length(expr)?;
        Ok(hindcast_logql::parse(expr)?.to_string())
    }

    /// Likewise, of PromQL.
    pub fn printed_promql(&self, expr: &str) -> Result<String, QueryError> {
        Ok(self.parse(expr, None)?.to_string())
    }

    /// Label sets, sorted.
    pub async fn series(&self, q: &LabelsQuery) -> Result<Answer<Vec<Labels>>, QueryError> {
        let mut request = self.labels_request(q)?;
        let natives = natives_request(&request);
        if q.streams {
            self.leave_natives_out(&mut request).await?;
        }
        // Both at once: mostly there are no histograms, and nobody is to wait for that.
        let of_natives = async {
            match natives.filter(|_| !q.streams) {
                Some(natives) => self.shards.label_sets(natives).await.map(Some),
                None => Ok(None),
            }
        };
        let ((mut value, mut completeness), natives) = futures::try_join!(self.shards.label_sets(request), of_natives)?;
        if let Some((sets, seen)) = natives {
            completeness.merge(seen);
            if !sets.is_empty() {
                value.extend(sets.iter().map(|set| set.without(TRACE_LABEL)));
                value.sort_unstable();
                value.dedup();
            }
        }
        Ok(Answer {
            value,
            completeness,
            warnings: vec![],
        })
    }

    /// Streams of native histograms are no logs, unless they are asked for by their mark.
    async fn leave_natives_out(&self, request: &mut LabelsRequest) -> Result<(), QueryError> {
        let of_mark = |matchers: &Vec<Matcher>| matchers.iter().any(|m| m.name == TRACE_LABEL);
        if !request.any_of.is_empty() && request.any_of.iter().all(of_mark) {
            return Ok(());
        }
        // Mostly there are none, and then all streams are told faster.
        let marks = LabelsRequest {
            any_of: vec![native_streams()],
            ..request.clone()
        };
        let of = LabelTexts::Values(TRACE_LABEL.to_owned());
        if self.shards.label_texts(marks, of).await?.0.is_empty() {
            return Ok(());
        }
        if request.any_of.is_empty() {
            request.any_of.push(vec![]);
        }
        for matchers in request.any_of.iter_mut().filter(|m| !of_mark(m)) {
            matchers.extend(Matcher::new(TRACE_LABEL, MatchOp::NotEqual, NATIVE));
        }
        Ok(())
    }

    /// What a tenant's active series are.
    pub async fn cardinality(
        &self,
        tenant: &TenantId,
        now: TimestampNs,
        entries: usize,
    ) -> Result<Answer<Cardinality>, QueryError> {
        let (value, completeness) = self.shards.cardinality(tenant, now, entries).await?;
        Ok(Answer {
            value,
            completeness,
            warnings: vec![],
        })
    }

    /// Names of labels, sorted.
    pub async fn label_names(&self, q: &LabelsQuery) -> Result<Answer<Vec<String>>, QueryError> {
        self.label_texts(q, LabelTexts::Names).await
    }

    /// Values of one label, sorted.
    pub async fn label_values(&self, q: &LabelsQuery, name: &str) -> Result<Answer<Vec<String>>, QueryError> {
        self.label_texts(q, LabelTexts::Values(name.to_owned())).await
    }

    async fn label_texts(&self, q: &LabelsQuery, of: LabelTexts) -> Result<Answer<Vec<String>>, QueryError> {
        let mut request = self.labels_request(q)?;
        let natives = natives_request(&request);
        if q.streams {
            self.leave_natives_out(&mut request).await?;
        }
        let of_mark = matches!(&of, LabelTexts::Values(name) if name == TRACE_LABEL);
        let of_natives = async {
            match natives.filter(|_| !q.streams && !of_mark) {
                Some(natives) => self.shards.label_texts(natives, of.clone()).await.map(Some),
                None => Ok(None),
            }
        };
        let ((mut value, mut completeness), natives) =
            futures::try_join!(self.shards.label_texts(request, of.clone()), of_natives)?;
        if let Some((texts, seen)) = natives {
            completeness.merge(seen);
            if !texts.is_empty() {
                value.extend(texts.into_iter().filter(|text| text != TRACE_LABEL));
                value.sort_unstable();
                value.dedup();
            }
        }
        Ok(Answer {
            value,
            completeness,
            warnings: vec![],
        })
    }

    fn labels_request(&self, q: &LabelsQuery) -> Result<LabelsRequest, QueryError> {
        let mut any_of = vec![];
        for text in &q.matching {
            self.check_length(text)?;
            any_of.push(if q.streams {
                hindcast_logql::parse_selector(text)?
            } else {
                hindcast_promql::parse_selector(text)?
            });
        }
        Ok(LabelsRequest {
            tenant: q.tenant.clone(),
            streams: q.streams,
            any_of,
            from: q.start,
            to: q.end,
        })
    }

    pub(crate) fn check_length(&self, text: &str) -> Result<(), QueryError> {
        if text.len() > self.limits.expr_bytes_max {
            return Err(QueryError::TooLarge {
                what: "bytes of text",
                max: self.limits.expr_bytes_max,
            });
        }
        Ok(())
    }

    fn parse(&self, text: &str, query: Option<QueryRange>) -> Result<Expr, QueryError> {
        self.check_length(text)?;
        let parsed = match query {
            Some(query) => hindcast_promql::parse_within(text, query),
            None => hindcast_promql::parse(text),
        };
        Ok(parsed?)
    }

    fn steps(&self, start: TimestampNs, end: TimestampNs, step: SpanNs) -> Result<Steps, QueryError> {
        let refuse = |what: &str| Err(QueryError::Parameter(what.to_owned()));
        let (start, end) = (start.as_ms(), end.as_ms());
        let step = i64::try_from(step.as_ms()).unwrap_or(i64::MAX);
        if step == 0 {
            return refuse("zero or negative query resolution step widths are not accepted. Try a positive integer");
        }
        if end < start {
            return refuse("end timestamp must not be before start time");
        }
        // Milliseconds of nanosecond times: the difference fits.
        let count = (end - start) / step + 1;
        if count > self.limits.steps_max as i64 {
            return Err(QueryError::Parameter(format!(
                "exceeded maximum resolution of {} points per timeseries. Try decreasing the query resolution (?step=XX)",
                self.limits.steps_max
            )));
        }
        Ok(Steps {
            start,
            step,
            count: count as usize,
        })
    }

    /// Loads what the plan reads, all sources at once, and evaluates. The answer's value: whether the order of the
    /// columns is what was asked for.
    async fn run(
        &self,
        tenant: &TenantId,
        planned: Planned,
        options: &Options,
        steps: Steps,
        is_range: bool,
    ) -> Result<(Out, Answer<bool>), QueryError> {
        let budget = Arc::new(Budget::new(self.limits.samples_max, self.limits.series_max));
        let _cancels = Cancels(budget.clone());
        let fetch = Fetch {
            shards: self.shards.as_ref(),
            tenant,
            options,
            limits: self.limits,
            budget: budget.clone(),
            again: OnceLock::new(),
        };
        let sources = planned.sources.iter().map(|s| fetch.source(s));
        let (mut data, mut completeness) = (vec![], Completeness::default());
        let mut notes = vec![];
        for fetched in futures::future::try_join_all(sources).await? {
            completeness.merge(fetched.completeness);
            data.push(fetched.loaded);
            notes.extend(fetched.notes);
        }
        completeness.missing.sort();
        completeness.missing.dedup();
        let mut evaluator = Evaluator::new(data, budget.samples(), self.limits, is_range);
        notes.into_iter().for_each(|n| evaluator.note(n));
        let out = evaluator.eval(&planned.plan, steps).await?;
        let answer = Answer {
            value: gives_order(&planned.plan),
            completeness,
            warnings: evaluator.into_notes(),
        };
        Ok((out, answer))
    }
}

fn native_streams() -> Vec<Matcher> {
    Matcher::new(TRACE_LABEL, MatchOp::Equal, NATIVE).into_iter().collect()
}

/// The streams of native histograms whose series a request for label sets means. `None`: there are none.
fn natives_request(request: &LabelsRequest) -> Option<LabelsRequest> {
    let mut any_of: Vec<_> = request.any_of.iter().filter_map(|m| load::of_natives(m)).collect();
    if request.any_of.is_empty() {
        any_of.push(native_streams());
    }
    (!any_of.is_empty()).then(|| LabelsRequest {
        streams: true,
        any_of,
        ..request.clone()
    })
}

fn lookback_ms(options: &Options) -> i64 {
    i64::try_from(options.lookback.as_ms()).unwrap_or(i64::MAX)
}

/// Whether the root of the plan puts its series in an order of its own.
fn gives_order(plan: &Plan) -> bool {
    match plan {
        Plan::Call { name, .. } => name.starts_with("sort"),
        Plan::Aggregate { op, .. } => matches!(op, AggregateOp::Topk | AggregateOp::Bottomk),
        _ => false,
    }
}

fn instant_value(out: Out, at_ms: i64, ordered: bool) -> Value {
    let at = TimestampNs::from_ms(at_ms);
    match out {
        Out::Scalar(values) => Value::Scalar(values.first().copied().unwrap_or(f64::NAN)),
        Out::Text(text) => Value::String(text),
        Out::Vector(columns) => {
            let sample = |c: Column| {
                let (value, histogram) = match c.at(0)? {
                    Point::Float(v) => (v, None),
                    Point::Native(h) => (f64::NAN, Some(h)),
                };
                Some(VectorSample {
                    labels: c.labels,
                    at,
                    value,
                    histogram,
                })
            };
            let mut samples: Vec<VectorSample> = columns.into_iter().filter_map(sample).collect();
            if !ordered {
                samples.sort_by(|a, b| a.labels.cmp(&b.labels));
            }
            Value::Vector(samples)
        }
        Out::Samples(series) => matrix(series.into_iter().map(|raw| {
            let times = || raw.times.iter().map(|t| TimestampNs::from_ms(*t));
            let points = times().zip(raw.values.iter().copied()).filter(|(_, v)| !is_absent(*v));
            let natives = times().zip(raw.natives.iter().flatten());
            MatrixSeries {
                points: points.collect(),
                histograms: natives.filter_map(|(t, h)| Some((t, h.clone()?))).collect(),
                labels: raw.labels.clone(),
            }
        })),
    }
}

fn range_value(out: Out, steps: Steps) -> Value {
    let points = |values: &[f64]| -> Vec<(TimestampNs, f64)> {
        let present = steps.iter().zip(values).filter(|(_, v)| !is_absent(**v));
        present.map(|(t, v)| (TimestampNs::from_ms(t), *v)).collect()
    };
    match out {
        Out::Scalar(values) => matrix(std::iter::once(MatrixSeries {
            labels: Labels::empty(),
            points: points(&values),
            histograms: vec![],
        })),
        Out::Vector(columns) => matrix(columns.into_iter().map(|c| {
            let natives = steps.iter().zip(c.natives.iter().flatten());
            MatrixSeries {
                points: points(&c.values),
                histograms: natives
                    .filter_map(|(t, h)| Some((TimestampNs::from_ms(t), h.clone()?)))
                    .collect(),
                labels: c.labels,
            }
        })),
        Out::Text(_) | Out::Samples(_) => unreachable!("range queries are checked to be scalars or vectors"),
    }
}

fn matrix(series: impl Iterator<Item = MatrixSeries>) -> Value {
    let mut series: Vec<MatrixSeries> = series
        .filter(|s| !s.points.is_empty() || !s.histograms.is_empty())
        .collect();
    series.sort_by(|a, b| a.labels.cmp(&b.labels));
    Value::Matrix(series)
}

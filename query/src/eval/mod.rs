//! Evaluates a plan over what the shards gave: series by series, a column of step values each.
//!
//! Pure: the data is there before it starts. It is asynchronous only to give way: after [`YIELD_POINTS`] of work it lets
//! other tasks run, and when its future is dropped it ends there.

mod aggregate;
mod binary;
mod functions;
pub mod native;
pub mod rolled;
pub mod window;

use crate::column::{ABSENT, Column, Natives, Raw, Steps, is_absent};
use crate::engine::{Limits, QueryError};
use crate::plan::{Input, Over, Plan};
use crate::reduce::{How, Reducer, Reduction};
use crate::shards::Budget;
use hashbrown::HashTable;
use hindcast_model::{Labels, METRIC_NAME};
use hindcast_promql::Span;
use std::collections::BTreeSet;
use std::future::Future;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Work between two pauses, in points.
const YIELD_POINTS: usize = 1_000_000;

/// What the reader of an answer should know, in words, sorted.
pub type Notes = BTreeSet<String>;

/// A place in the query's text, as Prometheus writes it.
pub fn at(span: Span) -> String {
    format!("(1:{})", span.start + 1)
}

/// The value of a plan node at all steps.
pub enum Out {
    /// One value per step.
    Scalar(Vec<f64>),
    Text(String),
    /// Columns of one value per step, not yet in any order; label sets are unique.
    Vector(Vec<Column>),
    /// Samples of a window, at the last step.
    Samples(Vec<Raw>),
}

/// What a source gave.
pub enum Loaded {
    Samples(Vec<Raw>),
    /// Made by the shards. Label sets are unique, metric names are still there.
    Columns(Vec<Column>),
    /// The aggregation of such columns, folded by the shards.
    Folded {
        columns: Vec<Column>,
        /// The one that the selector names.
        metric: Option<String>,
    },
}

impl Loaded {
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Samples(raws) => raws.is_empty(),
            Self::Columns(columns) | Self::Folded { columns, .. } => columns.is_empty(),
        }
    }
}

pub struct Evaluator {
    /// Of each source of the plan; one node reads it, once.
    data: Vec<Option<Loaded>>,
    limits: Limits,
    /// Of points, loaded and computed.
    budget: Budget,
    turn: Turn,
    /// A range query: some functions have no effect there.
    is_range: bool,
    notes: Notes,
}

pub type Evaluated<'a, T> = Pin<Box<dyn Future<Output = Result<T, QueryError>> + Send + 'a>>;

/// Comes back on the second poll, so that other tasks run in between.
struct GiveWay(bool);

impl Future for GiveWay {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Lets other tasks have their turn, now and then in the midst of work.
#[derive(Default)]
pub struct Turn {
    since: usize,
}

impl Turn {
    /// So many points were gone through.
    pub async fn worked(&mut self, points: usize) {
        self.since += points;
        if self.since >= YIELD_POINTS {
            self.since = 0;
            GiveWay(false).await;
        }
    }
}

/// What work on native histograms is charged to: one of them may be as much as thousands of floats.
pub struct Meter<'a> {
    pub budget: &'a Budget,
    pub turn: &'a mut Turn,
}

impl Meter<'_> {
    /// So much was gone through, and so much of what came of it is kept, both in samples. Breaks when that is too much, or when nobody
    /// waits any more.
    pub async fn spent(&mut self, touched: usize, kept: usize) -> ControlFlow<()> {
        self.turn.worked(touched).await;
        self.budget.computed(kept)
    }
}

impl Evaluator {
    /// `read`: how many samples were read for this.
    pub fn new(data: Vec<Loaded>, read: usize, limits: Limits, is_range: bool) -> Self {
        let budget = Budget::new(limits.samples_max, limits.series_max);
        let _ = budget.computed(read);
        Self {
            data: data.into_iter().map(Some).collect(),
            limits,
            budget,
            turn: Turn::default(),
            is_range,
            notes: Notes::new(),
        }
    }

    /// What the reader should know about the answer, sorted.
    pub fn into_notes(self) -> Vec<String> {
        self.notes.into_iter().collect()
    }

    /// Something that the reader should know about the answer.
    pub fn note(&mut self, text: String) {
        self.notes.insert(text);
    }

    /// Accounts for `points` more; pauses now and then.
    async fn charge(&mut self, points: usize) -> Result<(), QueryError> {
        self.spent(points, points).await
    }

    /// Likewise, when more was gone through than is kept.
    async fn spent(&mut self, touched: usize, kept: usize) -> Result<(), QueryError> {
        match self.meter().spent(touched, kept).await {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(self.too_large()),
        }
    }

    fn meter(&mut self) -> Meter<'_> {
        Meter {
            budget: &self.budget,
            turn: &mut self.turn,
        }
    }

    fn too_large(&self) -> QueryError {
        QueryError::TooLarge {
            what: "samples",
            max: self.limits.samples_max,
        }
    }

    pub fn eval<'a>(&'a mut self, plan: &'a Plan, steps: Steps) -> Evaluated<'a, Out> {
        Box::pin(async move {
            match plan {
                Plan::Number(v) => Ok(Out::Scalar(vec![*v; steps.count])),
                Plan::Text(s) => Ok(Out::Text(s.clone())),
                Plan::Instant { source, .. } => self.made(*source, steps).await.map(Out::Vector),
                Plan::Window { .. } => self.window(plan, steps).await.map(Out::Vector),
                Plan::AbsentOver { over, labels } => self.absent_over(over, labels, steps).await.map(Out::Vector),
                Plan::Samples(over) => self.samples(over, steps).await.map(Out::Samples),
                Plan::Call {
                    name,
                    args,
                    labels,
                    span,
                    spans,
                } => self.call(name, args, labels, (*span, spans), steps).await,
                Plan::Aggregate {
                    op,
                    grouping,
                    param,
                    input,
                    span,
                    input_span,
                } => {
                    let param = match param {
                        Some(p) => Some(self.eval(p, steps).await?),
                        None => None,
                    };
                    if let Some(columns) = self.folded(input, steps).await? {
                        return Ok(Out::Vector(columns));
                    }
                    let input = self.vector(input, steps).await?;
                    self.aggregate(*op, grouping.as_ref(), param, input, (*span, *input_span), steps)
                        .await
                        .map(Out::Vector)
                }
                Plan::Binary {
                    span,
                    op,
                    lhs,
                    rhs,
                    as_bool,
                    matching,
                } => {
                    let lhs = self.eval(lhs, steps).await?;
                    let rhs = self.eval(rhs, steps).await?;
                    self.binary((*op, *span), lhs, rhs, *as_bool, matching.as_ref(), steps)
                        .await
                }
                Plan::Negate(inner) => match self.eval(inner, steps).await? {
                    Out::Scalar(v) => Ok(Out::Scalar(v.into_iter().map(|v| -v).collect())),
                    Out::Vector(columns) => {
                        let mut all = Vec::with_capacity(columns.len());
                        for column in columns {
                            let column = negated(column);
                            let weight = column.weight();
                            self.spent(weight, weight).await?;
                            all.push(column);
                        }
                        Ok(Out::Vector(unique(all)?))
                    }
                    other => Ok(other),
                },
            }
        })
    }

    async fn vector(&mut self, plan: &Plan, steps: Steps) -> Result<Vec<Column>, QueryError> {
        match self.eval(plan, steps).await? {
            Out::Vector(columns) => Ok(columns),
            _ => unreachable!("the type check wants an instant vector here"),
        }
    }

    pub async fn scalar(&mut self, plan: &Plan, steps: Steps) -> Result<Vec<f64>, QueryError> {
        match self.eval(plan, steps).await? {
            Out::Scalar(values) => Ok(values),
            _ => unreachable!("the type check wants a scalar here"),
        }
    }

    fn take(&mut self, source: usize) -> Loaded {
        self.data[source].take().expect("a source is read by one node, once")
    }

    /// The columns that the shards made of a source.
    async fn made(&mut self, source: usize, steps: Steps) -> Result<Vec<Column>, QueryError> {
        let Loaded::Columns(columns) = self.take(source) else {
            unreachable!("the planner has instants made by the shards");
        };
        for _ in &columns {
            self.charge(steps.count).await?;
        }
        Ok(columns)
    }

    /// The aggregation of `input`, if the shards have folded it.
    async fn folded(&mut self, input: &Plan, steps: Steps) -> Result<Option<Vec<Column>>, QueryError> {
        let source = match input {
            Plan::Instant { source, .. } => *source,
            Plan::Window { over, .. } => match over.input {
                Input::Source(source) => source,
                Input::Steps { .. } => return Ok(None),
            },
            _ => return Ok(None),
        };
        let Some(Loaded::Folded { columns, metric }) =
            self.data[source].take_if(|d| matches!(d, Loaded::Folded { .. }))
        else {
            return Ok(None);
        };
        if let Plan::Window { name, params, .. } = input {
            self.window_params(name, params, steps).await?;
            // A group has a value where one of its series has.
            if counts(name) && !columns.is_empty() {
                self.note_counter(metric.as_deref().unwrap_or(""));
            }
        }
        for _ in &columns {
            self.charge(steps.count).await?;
        }
        Ok(Some(columns))
    }

    /// The scalar arguments of a function of a window, one per step or none.
    async fn window_params(&mut self, name: &str, params: &[Plan], steps: Steps) -> Result<[Vec<f64>; 2], QueryError> {
        let mut scalars = [vec![], vec![]];
        for (slot, p) in scalars.iter_mut().zip(params) {
            *slot = self.scalar(p, steps).await?;
        }
        functions::check_window_params(name, &scalars)?;
        Ok(scalars)
    }

    /// The series that windows slide over, staleness markers among their samples.
    async fn over(&mut self, over: &Over) -> Result<Loaded, QueryError> {
        match &over.input {
            Input::Source(source) => Ok(self.take(*source)),
            Input::Steps { plan, steps } => {
                self.charge(steps.count).await?;
                let columns = match self.eval(plan, *steps).await? {
                    Out::Vector(columns) => columns,
                    Out::Scalar(values) => vec![Column::computed(Labels::empty(), values)],
                    _ => unreachable!("the type check wants an instant vector in a subquery"),
                };
                Ok(Loaded::Samples(
                    columns.into_iter().map(|c| as_raw(c, *steps)).collect(),
                ))
            }
        }
    }

    /// One value per step of each series: as the shards made them, or made here by `how`.
    async fn reduced(&mut self, over: &Over, how: How, steps: Steps) -> Result<Vec<Column>, QueryError> {
        let raws = match self.over(over).await? {
            Loaded::Samples(raws) => raws,
            Loaded::Columns(columns) => {
                for _ in &columns {
                    self.charge(steps.count).await?;
                }
                return Ok(columns);
            }
            Loaded::Folded { .. } => unreachable!("an aggregation takes it before its input is asked for"),
        };
        let (when, mut reducer) = (over.when, Reducer::default());
        let reduction = Reduction { how, steps, when };
        let mut columns = vec![];
        for raw in raws {
            self.charge(steps.count).await?;
            let mut meter = Meter {
                budget: &self.budget,
                turn: &mut self.turn,
            };
            let column = raw.reduced(&mut reducer, &reduction, &mut self.notes, &mut meter);
            columns.extend(column.await);
            if self.budget.is_exceeded() {
                return Err(self.too_large());
            }
        }
        Ok(columns)
    }

    async fn window(&mut self, plan: &Plan, steps: Steps) -> Result<Vec<Column>, QueryError> {
        let Plan::Window {
            name,
            span,
            kernel,
            over,
            params,
            keeps_name,
        } = plan
        else {
            unreachable!("called for windows only");
        };
        let how = How::Window {
            name,
            span: *span,
            kernel: *kernel,
            of_windows: None,
            stretch: window::stretch(name),
            range_ms: over.range_ms,
            params: self.window_params(name, params, steps).await?,
        };
        let mut columns = self.reduced(over, how, steps).await?;
        if counts(name) {
            let of_floats = columns.iter().filter(|c| c.values.iter().any(|v| !is_absent(*v)));
            of_floats.for_each(|c| self.note_counter(c.labels.metric_name().unwrap_or("")));
        }
        if *keeps_name {
            // What was read has each label set once.
            return Ok(columns);
        }
        for column in &mut columns {
            column.labels = column.labels.without(METRIC_NAME);
        }
        unique(columns)
    }

    /// What a function of counters is given should be one.
    fn note_counter(&mut self, metric: &str) {
        let looks_like_one = ["_total", "_sum", "_count", "_bucket"]
            .iter()
            .any(|s| metric.ends_with(s));
        if !metric.is_empty() && !looks_like_one {
            self.note(format!(
                "PromQL info: metric might not be a counter, name does not end in _total/_sum/_count/_bucket: {metric:?}"
            ));
        }
    }

    async fn absent_over(
        &mut self,
        over: &Over,
        labels: &[(String, String)],
        steps: Steps,
    ) -> Result<Vec<Column>, QueryError> {
        let how = How::Window {
            name: "present_over_time",
            span: Span::default(),
            kernel: window::kernel("present_over_time").expect("a kernel of the table"),
            of_windows: None,
            stretch: None,
            range_ms: over.range_ms,
            params: Default::default(),
        };
        let mut values = vec![1.0; steps.count];
        for column in self.reduced(over, how, steps).await? {
            for (value, seen) in values.iter_mut().zip(&column.values) {
                if !is_absent(*seen) {
                    *value = ABSENT;
                }
            }
        }
        Ok(non_empty(Column::computed(Labels::new(labels.to_vec()), values)))
    }

    async fn samples(&mut self, over: &Over, steps: Steps) -> Result<Vec<Raw>, QueryError> {
        let at = over.when.at(steps.end());
        let Loaded::Samples(series) = self.over(over).await? else {
            unreachable!("the planner has bare windows read as samples");
        };
        let from = at.saturating_sub(over.range_ms);
        let cut = |mut raw: Raw| {
            raw.cut(from, at);
            raw
        };
        Ok(series.into_iter().map(cut).filter(|r| !r.times.is_empty()).collect())
    }
}

/// Whether it is a function of counters.
fn counts(function: &str) -> bool {
    matches!(function, "rate" | "increase" | "irate")
}

fn as_raw(column: Column, steps: Steps) -> Raw {
    let present = || (0..steps.count).filter(|i| column.is_present(*i));
    let natives = |n: &Natives| present().map(|i| n[i].clone()).collect();
    Raw {
        times: present().map(|i| steps.at(i)).collect(),
        values: present().map(|i| column.values[i]).collect(),
        natives: column.natives.as_ref().map(natives),
        labels: column.labels,
        place: column.place,
    }
}

fn non_empty(column: Column) -> Vec<Column> {
    if column.is_empty() { vec![] } else { vec![column] }
}

/// Applies `f` to every float; metric names go, since the values are no longer of that metric. Histograms go, too.
fn map_values(columns: Vec<Column>, f: impl Fn(f64) -> f64) -> Vec<Column> {
    let mapped = only_floats(columns).map(|mut c| {
        c.labels = c.labels.without(METRIC_NAME);
        c.values.iter_mut().filter(|v| !is_absent(**v)).for_each(|v| *v = f(*v));
        c
    });
    mapped.collect()
}

/// Columns without their histograms, and without those that had nothing else.
fn only_floats(columns: Vec<Column>) -> impl Iterator<Item = Column> {
    columns.into_iter().filter_map(|c| match c.natives {
        None => Some(c),
        Some(_) => Some(c.floats()).filter(|c| !c.is_empty()),
    })
}

fn negated(mut c: Column) -> Column {
    c.labels = c.labels.without(METRIC_NAME);
    c.values.iter_mut().filter(|v| !is_absent(**v)).for_each(|v| *v = -*v);
    for native in c.natives.iter_mut().flatten().flatten() {
        *native = Arc::new(native.times(-1.0));
    }
    c
}

/// Joins columns of equal labels that have no step in common (`a or b`, renamed series); an error if they do.
fn unique(columns: Vec<Column>) -> Result<Vec<Column>, QueryError> {
    // Found by the fingerprints of their labels: in order of labels, a column would cost some ten comparisons.
    let mut by_labels: HashTable<(u64, usize)> = HashTable::with_capacity(columns.len());
    let mut out: Vec<Column> = Vec::with_capacity(columns.len());
    for column in columns {
        let fingerprint = column.labels.fingerprint();
        let is_same = |(f, i): &(u64, usize)| *f == fingerprint && out[*i].labels == column.labels;
        let Some(&(_, i)) = by_labels.find(fingerprint, is_same) else {
            by_labels.insert_unique(fingerprint, (fingerprint, out.len()), |(f, _)| *f);
            out.push(column);
            continue;
        };
        let kept = &mut out[i];
        kept.place = kept.place.min(column.place);
        if kept.natives.is_some() || column.natives.is_some() {
            join_points(kept, &column)?;
            continue;
        }
        for (into, v) in kept.values.iter_mut().zip(&column.values) {
            if is_absent(*v) {
                continue;
            }
            if !is_absent(*into) {
                return Err(same_labels());
            }
            *into = *v;
        }
    }
    Ok(out)
}

fn same_labels() -> QueryError {
    QueryError::Execution("vector cannot contain metrics with the same labelset".to_owned())
}

fn join_points(kept: &mut Column, more: &Column) -> Result<(), QueryError> {
    for i in 0..more.values.len() {
        if let Some(point) = more.at(i) {
            if kept.is_present(i) {
                return Err(same_labels());
            }
            kept.set(i, Some(point));
        }
    }
    Ok(())
}

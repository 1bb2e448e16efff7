//! Evaluates a plan over loaded data: series by series, a column of step values each.
//!
//! Pure: the data is there before it starts. It is asynchronous only to give way: after [`YIELD_POINTS`] of work it lets
//! other tasks run, and when its future is dropped it ends there.

mod aggregate;
mod binary;
mod functions;
pub mod window;

use crate::column::{ABSENT, Column, Raw, Steps, is_absent};
use crate::engine::{Limits, QueryError};
use crate::plan::{Input, Over, Plan, When};
use hindcast_model::{Labels, METRIC_NAME};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use window::Window;

/// Work between two pauses, in points.
const YIELD_POINTS: usize = 1_000_000;

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

pub struct Evaluator {
    /// Series of each source of the plan.
    data: Arc<Vec<Vec<Raw>>>,
    lookback_ms: i64,
    limits: Limits,
    /// Points so far, loaded and computed.
    spent: usize,
    unyielded: usize,
    /// A range query: some functions have no effect there.
    is_range: bool,
    notes: BTreeSet<String>,
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

impl Evaluator {
    pub fn new(data: Vec<Vec<Raw>>, lookback_ms: i64, limits: Limits, is_range: bool) -> Self {
        let spent = data.iter().flatten().map(|r| r.times.len()).sum();
        Self {
            data: Arc::new(data),
            lookback_ms,
            limits,
            spent,
            unyielded: 0,
            is_range,
            notes: BTreeSet::new(),
        }
    }

    /// What the reader should know about the answer, sorted.
    pub fn into_notes(self) -> Vec<String> {
        self.notes.into_iter().collect()
    }

    fn note(&mut self, text: String) {
        self.notes.insert(text);
    }

    /// Accounts for `points` more; pauses now and then.
    async fn charge(&mut self, points: usize) -> Result<(), QueryError> {
        self.spent = self.spent.saturating_add(points);
        if self.spent > self.limits.samples_max {
            return Err(QueryError::TooLarge {
                what: "samples",
                max: self.limits.samples_max,
            });
        }
        self.unyielded += points;
        if self.unyielded >= YIELD_POINTS {
            self.unyielded = 0;
            GiveWay(false).await;
        }
        Ok(())
    }

    pub fn eval<'a>(&'a mut self, plan: &'a Plan, steps: Steps) -> Evaluated<'a, Out> {
        Box::pin(async move {
            match plan {
                Plan::Number(v) => Ok(Out::Scalar(vec![*v; steps.count])),
                Plan::Text(s) => Ok(Out::Text(s.clone())),
                Plan::Instant { source, when } => self.instant(*source, *when, steps).await.map(Out::Vector),
                Plan::Window { .. } => self.window(plan, steps).await.map(Out::Vector),
                Plan::AbsentOver { over, labels } => self.absent_over(over, labels, steps).await.map(Out::Vector),
                Plan::Samples(over) => self.samples(over, steps).await.map(Out::Samples),
                Plan::Call {
                    name,
                    args,
                    labels,
                    span,
                } => self.call(name, args, labels, *span, steps).await,
                Plan::Aggregate {
                    op,
                    grouping,
                    param,
                    input,
                    span,
                } => {
                    let param = match param {
                        Some(p) => Some(self.eval(p, steps).await?),
                        None => None,
                    };
                    let input = self.vector(input, steps).await?;
                    self.aggregate(*op, grouping.as_ref(), param, input, *span, steps)
                        .await
                        .map(Out::Vector)
                }
                Plan::Binary {
                    op,
                    lhs,
                    rhs,
                    as_bool,
                    matching,
                } => {
                    let lhs = self.eval(lhs, steps).await?;
                    let rhs = self.eval(rhs, steps).await?;
                    self.binary(*op, lhs, rhs, *as_bool, matching.as_ref(), steps).await
                }
                Plan::Negate(inner) => match self.eval(inner, steps).await? {
                    Out::Scalar(v) => Ok(Out::Scalar(v.into_iter().map(|v| -v).collect())),
                    Out::Vector(columns) => Ok(Out::Vector(unique(map_values(columns, |v| -v))?)),
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

    async fn scalar(&mut self, plan: &Plan, steps: Steps) -> Result<Vec<f64>, QueryError> {
        match self.eval(plan, steps).await? {
            Out::Scalar(values) => Ok(values),
            _ => unreachable!("the type check wants a scalar here"),
        }
    }

    /// The newest sample in `(t - lookback, t]`, unless it is the staleness marker.
    async fn instant(&mut self, source: usize, when: When, steps: Steps) -> Result<Vec<Column>, QueryError> {
        self.pick(source, when, steps, |raw, i| raw.values[i]).await
    }

    /// For `timestamp`: when that sample is from, in seconds.
    async fn instant_times(&mut self, source: usize, when: When, steps: Steps) -> Result<Vec<Column>, QueryError> {
        self.pick(source, when, steps, |raw, i| raw.times[i] as f64 / 1000.0)
            .await
    }

    async fn pick(
        &mut self,
        source: usize,
        when: When,
        steps: Steps,
        value: fn(&Raw, usize) -> f64,
    ) -> Result<Vec<Column>, QueryError> {
        let data = self.data.clone();
        let mut columns = vec![];
        for raw in &data[source] {
            self.charge(steps.count).await?;
            let mut seen = 0;
            let values = steps.iter().map(|t| {
                let t = when.at(t);
                while seen < raw.times.len() && raw.times[seen] <= t {
                    seen += 1;
                }
                match seen.checked_sub(1) {
                    Some(i) if raw.times[i] > t.saturating_sub(self.lookback_ms) && !is_absent(raw.values[i]) => {
                        value(raw, i)
                    }
                    _ => ABSENT,
                }
            });
            let column = Column {
                labels: raw.labels.clone(),
                place: raw.place,
                values: values.collect(),
            };
            if !column.is_empty() {
                columns.push(column);
            }
        }
        Ok(columns)
    }

    /// The series that windows slide over.
    async fn over(&mut self, over: &Over) -> Result<Arc<Vec<Raw>>, QueryError> {
        match &over.input {
            Input::Source(source) => {
                // Windows never see staleness markers.
                let raw = self.data[*source]
                    .iter()
                    .map(|r| r.without_stale().into_owned())
                    .collect();
                Ok(Arc::new(raw))
            }
            Input::Steps { plan, steps } => {
                self.charge(steps.count).await?;
                let columns = match self.eval(plan, *steps).await? {
                    Out::Vector(columns) => columns,
                    Out::Scalar(values) => vec![Column::computed(Labels::empty(), values)],
                    _ => unreachable!("the type check wants an instant vector in a subquery"),
                };
                Ok(Arc::new(columns.into_iter().map(|c| as_raw(c, *steps)).collect()))
            }
        }
    }

    async fn window(&mut self, plan: &Plan, steps: Steps) -> Result<Vec<Column>, QueryError> {
        let Plan::Window {
            name,
            kernel,
            over,
            params,
            keeps_name,
        } = plan
        else {
            unreachable!("called for windows only");
        };
        let mut scalars = [vec![], vec![]];
        for (slot, p) in scalars.iter_mut().zip(params) {
            *slot = self.scalar(p, steps).await?;
        }
        functions::check_window_params(name, &scalars)?;
        let series = self.over(over).await?;
        let mut columns = vec![];
        for raw in series.iter() {
            self.charge(steps.count).await?;
            let mut values = Vec::with_capacity(steps.count);
            let (mut low, mut high) = (0, 0);
            for (i, now) in steps.iter().enumerate() {
                let at = over.when.at(now);
                high += raw.times[high..].partition_point(|t| *t <= at);
                low += raw.times[low..].partition_point(|t| *t <= at.saturating_sub(over.range_ms));
                let low = low.min(high);
                values.push(kernel(&Window {
                    times: &raw.times[low..high],
                    values: &raw.values[low..high],
                    at,
                    now,
                    range_ms: over.range_ms,
                    params: [0, 1].map(|p| scalars[p].get(i).copied().unwrap_or(0.0)),
                }));
            }
            let column = Column {
                labels: if *keeps_name {
                    raw.labels.clone()
                } else {
                    raw.labels.without(METRIC_NAME)
                },
                place: raw.place,
                values,
            };
            if !column.is_empty() {
                self.note_window(name, &raw.labels);
                columns.push(column);
            }
        }
        unique(columns)
    }

    fn note_window(&mut self, name: &str, labels: &Labels) {
        let counter = matches!(name, "rate" | "increase" | "irate");
        let metric = labels.metric_name().unwrap_or("");
        let looks_like_one = ["_total", "_sum", "_count", "_bucket"]
            .iter()
            .any(|s| metric.ends_with(s));
        if counter && !metric.is_empty() && !looks_like_one {
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
        let series = self.over(over).await?;
        let mut values = vec![1.0; steps.count];
        for raw in series.iter() {
            self.charge(steps.count).await?;
            for (value, t) in values.iter_mut().zip(steps.iter()) {
                let at = over.when.at(t);
                let newest = raw.times.partition_point(|t| *t <= at);
                if newest > 0 && raw.times[newest - 1] > at.saturating_sub(over.range_ms) {
                    *value = ABSENT;
                }
            }
        }
        Ok(non_empty(Column::computed(Labels::new(labels.to_vec()), values)))
    }

    async fn samples(&mut self, over: &Over, steps: Steps) -> Result<Vec<Raw>, QueryError> {
        let at = over.when.at(steps.end());
        let series = self.over(over).await?;
        let within = |raw: &Raw| {
            let high = raw.times.partition_point(|t| *t <= at);
            let low = raw.times.partition_point(|t| *t <= at.saturating_sub(over.range_ms));
            low.min(high)..high
        };
        let cut = |raw: &Raw| Raw {
            labels: raw.labels.clone(),
            place: raw.place,
            times: raw.times[within(raw)].to_vec(),
            values: raw.values[within(raw)].to_vec(),
        };
        Ok(series.iter().map(cut).filter(|r| !r.times.is_empty()).collect())
    }
}

fn as_raw(column: Column, steps: Steps) -> Raw {
    let present = steps.iter().zip(&column.values).filter(|(_, v)| !is_absent(**v));
    let (times, values) = present.map(|(t, v)| (t, *v)).unzip();
    Raw {
        labels: column.labels,
        place: column.place,
        times,
        values,
    }
}

fn non_empty(column: Column) -> Vec<Column> {
    if column.is_empty() { vec![] } else { vec![column] }
}

/// Applies `f` to every present value; metric names go, since the values are no longer of that metric.
fn map_values(columns: Vec<Column>, f: impl Fn(f64) -> f64) -> Vec<Column> {
    let mapped = columns.into_iter().map(|mut c| {
        c.labels = c.labels.without(METRIC_NAME);
        c.values.iter_mut().filter(|v| !is_absent(**v)).for_each(|v| *v = f(*v));
        c
    });
    mapped.collect()
}

/// Joins columns of equal labels that have no step in common (`a or b`, renamed series); an error if they do.
fn unique(columns: Vec<Column>) -> Result<Vec<Column>, QueryError> {
    let mut by_labels: BTreeMap<Labels, usize> = BTreeMap::new();
    let mut out: Vec<Column> = Vec::with_capacity(columns.len());
    for column in columns {
        let Some(&i) = by_labels.get(&column.labels) else {
            by_labels.insert(column.labels.clone(), out.len());
            out.push(column);
            continue;
        };
        let kept = &mut out[i];
        kept.place = kept.place.min(column.place);
        for (into, v) in kept.values.iter_mut().zip(&column.values) {
            if is_absent(*v) {
                continue;
            }
            if !is_absent(*into) {
                return Err(QueryError::Execution(
                    "vector cannot contain metrics with the same labelset".to_owned(),
                ));
            }
            *into = *v;
        }
    }
    Ok(out)
}

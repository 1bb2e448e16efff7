//! A parsed expression as the steps of its evaluation: which data each selector needs, with `@`, offsets and
//! subqueries resolved to milliseconds. Pure.
//!
//! Promise: evaluating the plan at its steps reads no sample outside the time range of its source. Where windows stand
//! for samples, it reads those that end inside of it.

use crate::column::Steps;
use crate::eval::window::{self, Kernel};
use crate::fold::{Fold, is_foldable};
use hindcast_logql as logql;
use hindcast_model::{METRIC_NAME, MatchOp, Matcher};
use hindcast_promql::{AggregateOp, At, BinaryOp, Expr, Grouping, Kind, Matching, Selector, Span};

/// What one selector reads, with event time in `from_ms..=to_ms`.
#[derive(Clone, Debug)]
pub struct Source {
    pub kind: SourceKind,
    pub read: Read,
    pub from_ms: i64,
    pub to_ms: i64,
}

#[derive(Clone, Debug)]
pub enum SourceKind {
    Series(Vec<Matcher>),
    /// Lines that pass the filters. They are counted, or become samples.
    Lines {
        matchers: Vec<Matcher>,
        filters: Vec<logql::LineFilter>,
        piped: Option<Piped>,
    },
}

/// How lines become samples.
#[derive(Clone, Debug)]
pub struct Piped {
    pub stages: Vec<logql::Stage>,
    pub value: LineValue,
    /// Which labels name the series. `None`: all.
    pub grouping: Option<Grouping>,
    /// Somebody asks for `__error__`: a line that is one is a sample like others.
    pub keeps_errors: bool,
}

#[derive(Clone, Debug)]
pub enum LineValue {
    One,
    /// The length of the line.
    Bytes,
    Unwrap(logql::Unwrap),
}

impl Piped {
    /// Whether metadata are labels of the series. Without a stage they are not: lines are then what is counted elsewhere
    /// without being read, by stream.
    pub fn sees_metadata(&self) -> bool {
        !self.stages.is_empty() || matches!(self.value, LineValue::Unwrap(_))
    }

    /// Whether a label is one of those that name the series. What was unwrapped is not.
    pub fn keeps(&self, name: &str) -> bool {
        let is_unwrapped = matches!(&self.value, LineValue::Unwrap(unwrap) if unwrap.label == name);
        match &self.grouping {
            Some(g) if !g.without => g.labels.iter().any(|l| l == name),
            Some(g) => !is_unwrapped && !g.labels.iter().any(|l| l == name),
            None => !is_unwrapped,
        }
    }
}

/// The windows of all steps: of the lines between them nobody asks.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    pub steps: Steps,
    pub range_ms: i64,
    pub when: When,
}

impl Windows {
    /// Whether a time lies in the window of any step.
    pub fn hold(&self, at_ms: i64) -> bool {
        let first = self.when.at(self.steps.start);
        let step = self.steps.step.max(1);
        // The first window that does not end before.
        let k = at_ms.saturating_sub(first).max(0);
        let k = k / step + i64::from(k % step > 0);
        let end = first.saturating_add(k.saturating_mul(step));
        k < self.steps.count as i64 && end.saturating_sub(self.range_ms) < at_ms
    }
}

/// What the evaluator wants of a source.
#[derive(Clone, Debug)]
pub enum Read {
    /// All samples of each series.
    Samples,
    /// Samples of lines, in these windows.
    Sampled(Windows),
    /// One value per step of each series, made where the series is read.
    Columns {
        made: Made,
        steps: Steps,
        when: When,
        /// All that is asked for is their aggregation.
        fold: Option<Fold>,
    },
}

#[derive(Clone, Debug)]
pub enum Made {
    /// The newest sample within the lookback, or its time.
    Newest { lookback_ms: i64, times: bool },
    /// A function of a window; its arguments read nothing.
    Window {
        name: &'static str,
        /// Of the range.
        span: Span,
        kernel: Kernel,
        range_ms: i64,
        params: Vec<Plan>,
    },
    /// Of lines: how many there are in the window, or how many in a second.
    Counts { range_ms: i64, per_second: bool },
}

/// From the instant that is evaluated to the instant that is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct When {
    /// `@`
    pub fixed: Option<i64>,
    pub offset_ms: i64,
}

impl When {
    pub fn at(&self, t: i64) -> i64 {
        self.fixed.unwrap_or(t).saturating_sub(self.offset_ms)
    }
}

#[derive(Clone, Debug)]
pub enum Plan {
    Number(f64),
    Text(String),
    /// The newest sample within the lookback.
    Instant {
        source: usize,
        when: When,
    },
    /// A function of a window.
    Window {
        name: &'static str,
        /// Of the range.
        span: Span,
        kernel: Kernel,
        over: Box<Over>,
        params: Vec<Plan>,
        keeps_name: bool,
    },
    /// 1 where no series has a sample in the window.
    AbsentOver {
        over: Box<Over>,
        labels: Vec<(String, String)>,
    },
    /// A bare window: only as the whole of an instant query.
    Samples(Box<Over>),
    Call {
        name: &'static str,
        args: Vec<Plan>,
        /// `absent`: what the selector says of the labels.
        labels: Vec<(String, String)>,
        span: Span,
        /// Of the arguments.
        spans: Vec<Span>,
    },
    Aggregate {
        op: AggregateOp,
        grouping: Option<Grouping>,
        param: Option<Box<Plan>>,
        input: Box<Plan>,
        span: Span,
        /// Of the input.
        input_span: Span,
    },
    Binary {
        span: Span,
        op: BinaryOp,
        lhs: Box<Plan>,
        rhs: Box<Plan>,
        as_bool: bool,
        matching: Option<Matching>,
    },
    Negate(Box<Plan>),
}

impl Plan {
    /// Whether it is nothing but a little arithmetic: it can be evaluated before any data is there.
    fn reads_nothing(&self) -> bool {
        match self {
            Self::Number(_) | Self::Text(_) => true,
            Self::Negate(inner) => inner.reads_nothing(),
            Self::Call { args, .. } => args.iter().all(Self::reads_nothing),
            Self::Binary { lhs, rhs, .. } => lhs.reads_nothing() && rhs.reads_nothing(),
            Self::Instant { .. }
            | Self::Window { .. }
            | Self::AbsentOver { .. }
            | Self::Samples(_)
            | Self::Aggregate { .. } => false,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Over {
    pub input: Input,
    pub range_ms: i64,
    pub when: When,
}

#[derive(Clone, Debug)]
pub enum Input {
    Source(usize),
    /// A subquery: the inner plan at multiples of a step.
    Steps {
        plan: Plan,
        steps: Steps,
    },
}

/// A plan with what it reads.
#[derive(Clone, Debug)]
pub struct Planned {
    pub plan: Plan,
    pub sources: Vec<Source>,
}

/// Step of a subquery that names none.
pub const SUBQUERY_STEP_MS: i64 = 60_000;

/// The one metric that a selector names, if it does.
pub fn metric_of(matchers: &[Matcher]) -> Option<&str> {
    let named = matchers
        .iter()
        .find(|m| m.name == METRIC_NAME && m.op == MatchOp::Equal);
    named.map(|m| m.value.as_str())
}

struct Planner {
    query: Steps,
    lookback_ms: i64,
    sources: Vec<Source>,
}

/// Plans `expr` at the steps of the query.
pub fn plan(expr: &Expr, query: Steps, lookback_ms: i64) -> Planned {
    let mut p = Planner {
        query,
        lookback_ms,
        sources: vec![],
    };
    let plan = p.expr(expr, query);
    Planned {
        plan,
        sources: p.sources,
    }
}

impl Planner {
    fn when(&self, at: Option<At>, offset_ms: i64) -> When {
        let fixed = at.map(|at| match at {
            At::Ms(ms) => ms,
            At::Start => self.query.start,
            At::End => self.query.end(),
        });
        When { fixed, offset_ms }
    }

    /// A source whose samples in `(at - back, at]` are read, for each step.
    fn source(&mut self, kind: SourceKind, when: When, back_ms: i64, steps: Steps) -> usize {
        self.sources.push(Source {
            kind,
            read: Read::Samples,
            from_ms: when.at(steps.start).saturating_sub(back_ms).saturating_add(1),
            to_ms: when.at(steps.end()),
        });
        self.sources.len() - 1
    }

    /// From now on, `source` is read as columns.
    fn made(&mut self, source: usize, made: Made, steps: Steps, when: When) {
        self.sources[source].read = Read::Columns {
            made,
            steps,
            when,
            fold: None,
        };
    }

    /// A function of a window over plain series is computed where they are read.
    fn push_down(
        &mut self,
        (name, span): (&'static str, Span),
        kernel: Kernel,
        over: &Over,
        params: &[Plan],
        steps: Steps,
    ) {
        let Input::Source(source) = over.input else { return };
        if params.iter().all(Plan::reads_nothing) {
            let made = Made::Window {
                name,
                span,
                kernel,
                range_ms: over.range_ms,
                params: params.to_vec(),
            };
            self.made(source, made, steps, over.when);
        }
    }

    /// An aggregation of columns that are made where series are read is folded there.
    fn push_fold(&mut self, op: AggregateOp, grouping: Option<&Grouping>, input: &Plan) {
        let (source, drops_name) = match input {
            Plan::Instant { source, .. } => (*source, false),
            Plan::Window { over, keeps_name, .. } => match over.input {
                Input::Source(source) => (source, !keeps_name),
                Input::Steps { .. } => return,
            },
            _ => return,
        };
        let Source { kind, read, .. } = &mut self.sources[source];
        let SourceKind::Series(matchers) = kind else { return };
        // Without their names, series of several metrics may be the same, which is an error and seen when all are here.
        if drops_name && metric_of(matchers).is_none() {
            return;
        }
        let Read::Columns { fold, .. } = read else { return };
        if is_foldable(op) {
            *fold = Some(Fold {
                op,
                grouping: grouping.cloned(),
                drops_name,
            });
        }
    }

    fn series(&mut self, s: &Selector, back_ms: i64, steps: Steps) -> (usize, When) {
        let when = self.when(s.at, s.offset_ms);
        (
            self.source(SourceKind::Series(s.matchers.clone()), when, back_ms, steps),
            when,
        )
    }

    fn expr(&mut self, expr: &Expr, steps: Steps) -> Plan {
        match &expr.kind {
            Kind::Number(n) => Plan::Number(n.0),
            Kind::String(s) => Plan::Text(s.clone()),
            Kind::Vector(s) => {
                let (source, when) = self.series(s, self.lookback_ms, steps);
                let made = Made::Newest {
                    lookback_ms: self.lookback_ms,
                    times: false,
                };
                self.made(source, made, steps, when);
                Plan::Instant { source, when }
            }
            Kind::Matrix { .. } | Kind::Subquery { .. } => Plan::Samples(Box::new(self.over(expr, steps))),
            Kind::Call { function, args } => self.call(function.name, args, expr.span, steps),
            Kind::Aggregate {
                op,
                grouping,
                param,
                expr: input,
            } => {
                let param = param.as_ref().map(|p| (p.span, Box::new(self.expr(p, steps))));
                let input_span = input.span;
                let input = self.expr(input, steps);
                self.push_fold(*op, grouping.as_ref(), &input);
                Plan::Aggregate {
                    op: *op,
                    grouping: grouping.clone(),
                    span: param.as_ref().map_or(expr.span, |(span, _)| *span),
                    param: param.map(|(_, p)| p),
                    input: Box::new(input),
                    input_span,
                }
            }
            Kind::Binary {
                op,
                lhs,
                rhs,
                as_bool,
                matching,
            } => Plan::Binary {
                span: expr.span,
                op: *op,
                lhs: Box::new(self.expr(lhs, steps)),
                rhs: Box::new(self.expr(rhs, steps)),
                as_bool: *as_bool,
                matching: matching.clone(),
            },
            Kind::Negate(e) => Plan::Negate(Box::new(self.expr(e, steps))),
            Kind::Plus(e) | Kind::Paren(e) => self.expr(e, steps),
        }
    }

    fn over(&mut self, expr: &Expr, steps: Steps) -> Over {
        match &expr.bare().kind {
            Kind::Matrix { selector, range_ms } => {
                let (source, when) = self.series(selector, *range_ms, steps);
                Over {
                    input: Input::Source(source),
                    range_ms: *range_ms,
                    when,
                }
            }
            Kind::Subquery {
                expr: inner,
                range_ms,
                step_ms,
                offset_ms,
                at,
            } => {
                let when = self.when(*at, *offset_ms);
                let step = step_ms.unwrap_or(SUBQUERY_STEP_MS);
                let (from, to) = (when.at(steps.start).saturating_sub(*range_ms), when.at(steps.end()));
                // The first multiple of the step inside the left-open window.
                let start = (from.div_euclid(step) + 1).saturating_mul(step);
                let count = if to < start {
                    0
                } else {
                    ((to - start) / step + 1) as usize
                };
                let inner_steps = Steps { start, step, count };
                Over {
                    input: Input::Steps {
                        plan: self.expr(inner, inner_steps),
                        steps: inner_steps,
                    },
                    range_ms: *range_ms,
                    when,
                }
            }
            other => unreachable!("the type check let {other:?} through as a range vector"),
        }
    }

    fn call(&mut self, name: &'static str, args: &[Expr], span: Span, steps: Steps) -> Plan {
        if name == "absent_over_time" {
            let over = self.over(&args[0], steps);
            let name = "present_over_time";
            self.push_down(
                (name, args[0].span),
                window::kernel(name).expect("a kernel of the table"),
                &over,
                &[],
                steps,
            );
            return Plan::AbsentOver {
                over: Box::new(over),
                labels: absent_labels(&args[0]),
            };
        }
        if let Some(kernel) = window::kernel(name) {
            let is_window = |a: &&Expr| matches!(a.value_type(), hindcast_promql::ValueType::Matrix);
            let range = args
                .iter()
                .find(is_window)
                .expect("window functions take a range vector");
            let over = self.over(range, steps);
            let params = args
                .iter()
                .filter(|a| !is_window(a))
                .map(|a| self.expr(a, steps))
                .collect::<Vec<Plan>>();
            self.push_down((name, range.span), kernel, &over, &params, steps);
            return Plan::Window {
                name,
                span: range.span,
                kernel,
                over: Box::new(over),
                params,
                keeps_name: window::keeps_name(name),
            };
        }
        let planned: Vec<Plan> = args.iter().map(|a| self.expr(a, steps)).collect();
        if let ("timestamp", [Plan::Instant { source, when }]) = (name, &planned[..]) {
            let made = Made::Newest {
                lookback_ms: self.lookback_ms,
                times: true,
            };
            self.made(*source, made, steps, *when);
        }
        Plan::Call {
            name,
            labels: if name == "absent" {
                absent_labels(&args[0])
            } else {
                vec![]
            },
            args: planned,
            span,
            spans: args.iter().map(|a| a.span).collect(),
        }
    }
}

/// The labels that a selector fixes by equality, as `absent` shows them.
fn absent_labels(arg: &Expr) -> Vec<(String, String)> {
    let matchers = match &arg.bare().kind {
        Kind::Vector(s) | Kind::Matrix { selector: s, .. } => &s.matchers,
        _ => return vec![],
    };
    fixed_labels(matchers)
}

fn fixed_labels(matchers: &[Matcher]) -> Vec<(String, String)> {
    let once = |m: &&Matcher| matchers.iter().filter(|o| o.name == m.name).count() == 1;
    matchers
        .iter()
        .filter(|m| m.op == hindcast_model::MatchOp::Equal && m.name != hindcast_model::METRIC_NAME)
        .filter(once)
        .map(|m| (m.name.clone(), m.value.clone()))
        .collect()
}

/// Plans a LogQL metric expression: the same plan nodes over lines instead of series.
pub fn plan_logs(expr: &logql::Metric, query: Steps) -> Planned {
    let mut p = Planner {
        query,
        lookback_ms: 0,
        sources: vec![],
    };
    let plan = p.metric(expr, query);
    Planned {
        plan,
        sources: p.sources,
    }
}

impl Planner {
    fn metric(&mut self, expr: &logql::Metric, steps: Steps) -> Plan {
        match expr {
            logql::Metric::Number(v) => Plan::Number(*v),
            logql::Metric::Vector(v) => call("vector", vec![Plan::Number(*v)]),
            logql::Metric::Range { .. } => self.log_range(expr, None, steps),
            logql::Metric::Aggregate {
                op,
                grouping,
                param,
                inner,
            } => Plan::Aggregate {
                op: *op,
                grouping: grouping.clone(),
                param: param.map(|p| Box::new(Plan::Number(p))),
                input: Box::new(match **inner {
                    logql::Metric::Range { .. } => self.log_range(inner, Some((*op, grouping)), steps),
                    _ => self.metric(inner, steps),
                }),
                span: Span::default(),
                input_span: Span::default(),
            },
            logql::Metric::Sorted { descending, inner } => {
                let inner = self.metric(inner, steps);
                call(if *descending { "sort_desc" } else { "sort" }, vec![inner])
            }
            logql::Metric::LabelReplace {
                inner,
                target,
                replacement,
                source,
                regex,
            } => {
                let texts = [target, replacement, source, regex].map(|t| Plan::Text(t.clone()));
                let mut args = vec![self.metric(inner, steps)];
                args.extend(texts);
                call("label_replace", args)
            }
            logql::Metric::Binary {
                op,
                lhs,
                rhs,
                as_bool,
                matching,
            } => Plan::Binary {
                span: Span::default(),
                op: *op,
                lhs: Box::new(self.metric(lhs, steps)),
                rhs: Box::new(self.metric(rhs, steps)),
                as_bool: *as_bool,
                matching: matching.clone(),
            },
        }
    }

    /// A function of a range of lines; with the aggregation around it, if there is one.
    fn log_range(
        &mut self,
        range: &logql::Metric,
        around: Option<(AggregateOp, &Option<Grouping>)>,
        steps: Steps,
    ) -> Plan {
        use logql::RangeFunction as F;
        let logql::Metric::Range {
            function,
            lines,
            unwrap,
            param,
            grouping,
            range_ms,
            offset_ms,
        } = range
        else {
            unreachable!("called for ranges only");
        };
        let (function, range_ms) = (*function, *range_ms);
        let when = self.when(None, *offset_ms);
        let stages = lines.rest();
        let counts = stages.is_empty() && unwrap.is_none() && !matches!(function, F::BytesRate | F::BytesOverTime);
        let piped = (!counts).then(|| Piped {
            value: match (unwrap, function) {
                (Some(unwrap), _) => LineValue::Unwrap(unwrap.clone()),
                (None, F::BytesRate | F::BytesOverTime) => LineValue::Bytes,
                (None, _) => LineValue::One,
            },
            keeps_errors: [grouping.as_ref(), around.and_then(|(_, g)| g.as_ref())]
                .into_iter()
                .flatten()
                .any(|g| !g.without && g.labels.iter().any(|l| l == logql::ERROR)),
            grouping: match around {
                _ if grouping.is_some() => grouping.clone(),
                // The sum of sums is a sum: only the labels of the aggregation are needed, which may be far fewer.
                Some((AggregateOp::Sum, outer)) if !stages.is_empty() && is_sum(function) => {
                    Some(outer.clone().unwrap_or(Grouping {
                        without: false,
                        labels: vec![],
                    }))
                }
                _ if function == F::AbsentOverTime => Some(Grouping {
                    without: false,
                    labels: vec![],
                }),
                _ => None,
            },
            stages,
        });
        let kind = SourceKind::Lines {
            matchers: crate::logs::meant(&lines.matchers),
            filters: lines.pushed(),
            piped,
        };
        let source = self.source(kind, when, range_ms, steps);
        if counts {
            let made = Made::Counts {
                range_ms,
                per_second: function == F::Rate,
            };
            self.made(source, made, steps, when);
        } else {
            self.sources[source].read = Read::Sampled(Windows { steps, range_ms, when });
        }
        let over = Box::new(Over {
            input: Input::Source(source),
            range_ms,
            when,
        });
        let name = match function {
            F::AbsentOverTime => {
                let labels = fixed_labels(&lines.matchers);
                return Plan::AbsentOver { over, labels };
            }
            F::Rate | F::BytesRate => "log_rate",
            F::CountOverTime | F::BytesOverTime | F::Sum => "sum_over_time",
            F::RateCounter => "rate",
            F::Avg => "avg_over_time",
            F::Min => "min_over_time",
            F::Max => "max_over_time",
            F::First => "first_over_time",
            F::Last => "last_over_time",
            F::Stddev => "stddev_over_time",
            F::Stdvar => "stdvar_over_time",
            F::Quantile => "quantile_over_time",
        };
        Plan::Window {
            name,
            span: Span::default(),
            kernel: window::kernel(name).expect("a kernel of the table"),
            over,
            params: param.iter().map(|p| Plan::Number(*p)).collect(),
            keeps_name: true,
        }
    }
}

fn call(name: &'static str, args: Vec<Plan>) -> Plan {
    Plan::Call {
        name,
        args,
        labels: vec![],
        span: Span::default(),
        spans: vec![],
    }
}

/// Whether the function of several series together is the sum of its values.
fn is_sum(function: logql::RangeFunction) -> bool {
    use logql::RangeFunction as F;
    matches!(
        function,
        F::Rate | F::CountOverTime | F::BytesRate | F::BytesOverTime | F::Sum
    )
}

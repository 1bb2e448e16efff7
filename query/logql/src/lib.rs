//! LogQL: parser, printer, and the stages of pipelines. Pure: text or a line in, a tree or a line out. Which lines there
//! are, and what becomes of numbers over time, is decided in `hindcast-query`.
//!
//! Here: stream selectors; line filters with `or`, patterns and addresses; the parsers `json`, `logfmt`, `pattern`,
//! `regexp`, `unpack`; label filters; `line_format`, `label_format`, `drop`, `keep`, `decolorize`; `unwrap`; all range and
//! vector aggregations of Loki 3, operators, `label_replace`, `vector`, `sort`.
//!
//! Begin at `stage.rs` (what is written) and `pipeline.rs` (what becomes of a line). The parsers have a module each;
//! `template/` is Go's template language as far as Loki documents it; `fields.rs` holds the labels of one line.
//!
//! Promises
//! - Any text either parses or is refused with the line and column of what is wrong; nothing panics, whatever the line.
//! - `parse(&expr.to_string())` gives the same tree, for every tree that `parse` gave.
//! - A tree has at most [`NODES_MAX`] nodes, a pipeline at most [`STAGES_MAX`] stages, a line at most [`FIELDS_MAX`]
//!   labels; what a template writes is bounded ([`OUTPUT_BYTES_MAX`]), and so is its work.
//!
//! Deliberately absent: time zones other than UTC in templates, and templates that call each other.

mod fields;
mod filter;
mod ip;
mod json;
mod label_filter;
mod logfmt;
mod parser;
mod pattern;
mod pipeline;
mod print;
pub mod quantity;
mod stage;
mod template;

pub use fields::{ERROR, ERROR_DETAILS, EXTRACTED, FIELDS_MAX, Fields, Origin};
pub use filter::{FilterOp, LineFilter, Sought};
use hindcast_model::Matcher;
pub use hindcast_promql::ParseError;
use hindcast_promql::{AggregateOp, BinaryOp, Grouping, Matching};
pub use label_filter::{Amount, Compare, LABEL_FILTER_ERROR, LabelFilter};
pub use parser::{NODES_MAX, parse, parse_selector};
pub use pipeline::{JSON_ERROR, LOGFMT_ERROR, Passed, Pipeline, STAGES_MAX, TEMPLATE_ERROR, TOO_MANY_LABELS};
pub use stage::{Extraction, LabelFormat, Pick, Stage};
pub use template::{OUTPUT_BYTES_MAX, TEMPLATE_BYTES_MAX, TEMPLATE_STEPS_MAX};

#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    Lines(LogSelector),
    Metric(Metric),
}

/// Which lines: of which streams, and what becomes of them.
#[derive(Clone, Debug, PartialEq)]
pub struct LogSelector {
    pub matchers: Vec<Matcher>,
    /// In their order; line filters are stages too.
    pub stages: Vec<Stage>,
}

impl LogSelector {
    /// Filters that whoever has the lines can test: all plain ones before a stage that writes lines anew, since the
    /// stages before them leave the line as it is. And filters that are weaker than others.
    pub fn pushed(&self) -> Vec<LineFilter> {
        let mut pushed = vec![];
        for stage in self.stages.iter().take_while(|s| s.keeps_line()) {
            let Stage::Line(filter) = stage else { continue };
            if filter.is_plain() {
                pushed.push(filter.clone());
            }
            let needed = filter.needed_texts().into_iter().map(|text| LineFilter {
                op: FilterOp::Contains,
                any_of: vec![Sought::Text(text)],
            });
            pushed.extend(needed);
        }
        pushed
    }

    /// The stages that are left when the pushed filters have been tested.
    pub fn rest(&self) -> Vec<Stage> {
        let kept = self.stages.iter().take_while(|s| s.keeps_line()).count();
        let (before, after) = self.stages.split_at(kept);
        let is_left = |s: &&Stage| !matches!(s, Stage::Line(filter) if filter.is_plain());
        before.iter().filter(is_left).chain(after).cloned().collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeFunction {
    Rate,
    RateCounter,
    CountOverTime,
    BytesRate,
    BytesOverTime,
    AbsentOverTime,
    Sum,
    Avg,
    Min,
    Max,
    First,
    Last,
    Stddev,
    Stdvar,
    Quantile,
}

impl RangeFunction {
    const ALL: [(Self, &'static str); 15] = [
        (Self::Rate, "rate"),
        (Self::RateCounter, "rate_counter"),
        (Self::CountOverTime, "count_over_time"),
        (Self::BytesRate, "bytes_rate"),
        (Self::BytesOverTime, "bytes_over_time"),
        (Self::AbsentOverTime, "absent_over_time"),
        (Self::Sum, "sum_over_time"),
        (Self::Avg, "avg_over_time"),
        (Self::Min, "min_over_time"),
        (Self::Max, "max_over_time"),
        (Self::First, "first_over_time"),
        (Self::Last, "last_over_time"),
        (Self::Stddev, "stddev_over_time"),
        (Self::Stdvar, "stdvar_over_time"),
        (Self::Quantile, "quantile_over_time"),
    ];

    pub fn name(self) -> &'static str {
        let (_, name) = Self::ALL.iter().find(|(f, _)| *f == self).expect("the table has all");
        name
    }

    fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, name)| *name == word).map(|(f, _)| *f)
    }

    /// `None`: with and without.
    fn wants_unwrap(self) -> Option<bool> {
        match self {
            Self::Rate | Self::AbsentOverTime => None,
            Self::CountOverTime | Self::BytesRate | Self::BytesOverTime => Some(false),
            _ => Some(true),
        }
    }

    /// Whether `by` and `without` may stand behind it: not where a sum of the whole would be the same.
    fn takes_grouping(self) -> bool {
        matches!(
            self,
            Self::Avg | Self::Min | Self::Max | Self::First | Self::Last | Self::Stddev | Self::Stdvar | Self::Quantile
        )
    }
}

/// How a label's text becomes a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conversion {
    Number,
    /// `duration(…)`
    Seconds,
    /// `bytes(…)`
    Bytes,
}

impl Conversion {
    /// `None`: the text is none.
    pub fn value(self, text: &str) -> Option<f64> {
        match self {
            Self::Number => text.parse().ok(),
            Self::Seconds => quantity::duration_ns(text).map(|ns| ns as f64 / 1e9),
            Self::Bytes => quantity::bytes(text),
        }
    }
}

/// The label whose value is the sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Unwrap {
    pub label: String,
    pub conversion: Conversion,
    /// Behind it: `__error__=""`, say.
    pub filters: Vec<LabelFilter>,
}

/// What a line gets whose unwrapped label is no number.
pub const SAMPLE_ERROR: &str = "SampleExtractionErr";

/// Numbers over time, computed from lines.
#[derive(Clone, Debug, PartialEq)]
pub enum Metric {
    Number(f64),
    /// `vector(1)`
    Vector(f64),
    Range {
        function: RangeFunction,
        lines: LogSelector,
        unwrap: Option<Unwrap>,
        /// Of `quantile_over_time`.
        param: Option<f64>,
        grouping: Option<Grouping>,
        /// Left-open, right-closed.
        range_ms: i64,
        offset_ms: i64,
    },
    Aggregate {
        op: AggregateOp,
        grouping: Option<Grouping>,
        param: Option<f64>,
        inner: Box<Metric>,
    },
    Sorted {
        descending: bool,
        inner: Box<Metric>,
    },
    LabelReplace {
        inner: Box<Metric>,
        target: String,
        replacement: String,
        source: String,
        regex: String,
    },
    Binary {
        op: BinaryOp,
        lhs: Box<Metric>,
        rhs: Box<Metric>,
        as_bool: bool,
        matching: Option<Matching>,
    },
}

impl Metric {
    /// A number at every instant, with no labels.
    pub fn is_scalar(&self) -> bool {
        match self {
            Self::Number(_) => true,
            Self::Binary { lhs, rhs, .. } => lhs.is_scalar() && rhs.is_scalar(),
            Self::Vector(_)
            | Self::Range { .. }
            | Self::Aggregate { .. }
            | Self::Sorted { .. }
            | Self::LabelReplace { .. } => false,
        }
    }
}

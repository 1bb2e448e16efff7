//! What a query answers with: values of the four PromQL types, log streams, and how whole the answer is.
//!
//! Promises: vectors and matrices are in the order that the query asks for, else sorted by labels; points ascend by
//! time; a label set occurs once.

use crate::shards::Completeness;
use hindcast_model::{Histogram, Labels, LogLine, TimestampNs};
use std::sync::Arc;

/// One value at one instant.
#[derive(Clone, Debug, PartialEq)]
pub struct VectorSample {
    pub labels: Labels,
    pub at: TimestampNs,
    /// NaN where there is a histogram.
    pub value: f64,
    /// In place of the value.
    pub histogram: Option<Arc<Histogram>>,
}

/// Values of one series over time.
#[derive(Clone, Debug, PartialEq)]
pub struct MatrixSeries {
    pub labels: Labels,
    pub points: Vec<(TimestampNs, f64)>,
    /// At other times than the points.
    pub histograms: Vec<(TimestampNs, Arc<Histogram>)>,
}

/// The value of a PromQL expression, or of a LogQL metric expression.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Scalar(f64),
    String(String),
    Vector(Vec<VectorSample>),
    Matrix(Vec<MatrixSeries>),
}

impl Value {
    /// As Prometheus names it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Scalar(_) => "scalar",
            Self::String(_) => "string",
            Self::Vector(_) => "vector",
            Self::Matrix(_) => "matrix",
        }
    }
}

/// Lines of one stream, in the direction that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct LogStream {
    pub labels: Labels,
    /// What the stages of the query made of the lines' texts; empty without stages.
    pub parsed: Labels,
    pub lines: Vec<LogLine>,
}

/// The value of a LogQL expression.
#[derive(Clone, Debug, PartialEq)]
pub enum LogsValue {
    Streams(Vec<LogStream>),
    Metric(Value),
}

/// A value, whether all data could be asked, and what the reader should know about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer<T> {
    pub value: T,
    pub completeness: Completeness,
    /// Each starts with `PromQL warning:` or `PromQL info:`.
    pub warnings: Vec<String>,
}

impl<T> Answer<T> {
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Answer<U> {
        Answer {
            value: f(self.value),
            completeness: self.completeness,
            warnings: self.warnings,
        }
    }
}

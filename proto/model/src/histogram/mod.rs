//! Native histograms: one sample that counts observations in buckets, whose bounds follow from a schema or are listed.
//!
//! With a schema of -4 to 8, bucket `i` reaches from `base^(i - 1)` to `base^i`, where base is `2^(2^-schema)`; negative observations
//! have buckets of their own, and those about zero are counted apart. With [`CUSTOM_SCHEMA`] the bounds are listed, and bucket `i`
//! reaches up to the bound `i`; the last one, beyond all bounds, has no upper end.
//!
//! `arithmetic` adds, scales and compares, `estimate` says what the observations were, `line` is the form in which one is stored.
//!
//! Invariants
//! - Buckets ascend by index, each index once, and none of them is empty.
//! - Only [`CUSTOM_SCHEMA`] has bounds, and it has positive buckets alone.

mod arithmetic;
mod estimate;
mod line;
#[cfg(test)]
mod tests;

pub use arithmetic::{Combined, Layout, MixedSchemas};
pub use estimate::Remark;
pub use line::{LINE_BYTES_PER_SAMPLE, NATIVE_BUCKETS_MAX, STALE_LINE, line_samples};

use crate::labels::Labels;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Name and value of the label that marks the streams whose lines are native histograms. Nobody can send it; the other labels of such a
/// stream are those of the series.
pub const MARK: (&str, &str) = ("hindcast_trace", "histogram");

/// Whether the lines of a stream are native histograms.
pub fn is_marked(stream: &Labels) -> bool {
    stream.get(MARK.0) == Some(MARK.1)
}

/// Schemas whose bounds are a rule.
pub const SCHEMAS: RangeInclusive<i32> = -4..=8;
/// The schema whose bounds are listed.
pub const CUSTOM_SCHEMA: i32 = -53;

/// What a histogram takes beside its buckets, in samples of sixteen bytes: a bucket is another one.
pub const BARE_WEIGHT: usize = 12;

/// What the sender says of the sample before this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hint {
    #[default]
    Unknown,
    /// Counting began anew.
    Reset,
    NotReset,
    /// The counts may fall: it is no counter.
    Gauge,
}

/// Buckets of one side in use: index and count.
pub type Buckets = Vec<(i32, f64)>;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    pub schema: i32,
    pub count: f64,
    pub sum: f64,
    /// Observations no farther from zero than this are in `zero_count`.
    pub zero_threshold: f64,
    pub zero_count: f64,
    pub positive: Buckets,
    /// By their distance from zero.
    pub negative: Buckets,
    /// Bounds of [`CUSTOM_SCHEMA`], ascending; none of them is `+Inf`.
    pub custom: Arc<[f64]>,
    pub hint: Hint,
}

/// A bucket with its bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bucket {
    pub lower: f64,
    pub upper: f64,
    pub holds_lower: bool,
    pub holds_upper: bool,
    pub count: f64,
}

impl Histogram {
    pub fn is_custom(&self) -> bool {
        self.schema == CUSTOM_SCHEMA
    }

    /// How many samples it counts as where samples are counted: those that would take as much memory.
    pub fn weight(&self) -> usize {
        BARE_WEIGHT + self.positive.len() + self.negative.len() + self.custom.len()
    }

    /// The upper edge of a positive bucket.
    pub fn edge(&self, index: i32) -> f64 {
        if self.is_custom() {
            return match usize::try_from(index) {
                Ok(i) => self.custom.get(i).copied().unwrap_or(f64::INFINITY),
                Err(_) => f64::NEG_INFINITY,
            };
        }
        edge(self.schema, index)
    }

    fn positive_bucket(&self, (index, count): (i32, f64)) -> Bucket {
        let (lower, upper) = (self.edge(index.saturating_sub(1)), self.edge(index));
        Bucket {
            lower,
            upper,
            holds_lower: if self.is_custom() { index == 0 } else { lower < 0.0 },
            holds_upper: true,
            count,
        }
    }

    /// Buckets in use, ascending.
    pub fn buckets(&self) -> impl DoubleEndedIterator<Item = Bucket> + '_ {
        let threshold = self.zero_threshold;
        let negative = self.negative.iter().rev().map(move |b| {
            let mirrored = self.positive_bucket(*b);
            Bucket {
                lower: -mirrored.upper,
                upper: if mirrored.lower < threshold {
                    -threshold
                } else {
                    -mirrored.lower
                },
                holds_lower: true,
                holds_upper: false,
                count: b.1,
            }
        });
        let zero = (self.zero_count > 0.0).then_some(Bucket {
            lower: -threshold,
            upper: threshold,
            holds_lower: true,
            holds_upper: true,
            count: self.zero_count,
        });
        let positive = self.positive.iter().map(move |b| {
            let mut bucket = self.positive_bucket(*b);
            if bucket.lower > 0.0 && bucket.lower < threshold {
                bucket.lower = threshold;
            }
            bucket
        });
        negative.chain(zero).chain(positive)
    }
}

/// The upper edge of a bucket of a schema that is a rule. The last bucket of finite numbers ends with them.
fn edge(schema: i32, index: i32) -> f64 {
    let (whole, fraction) = if schema <= 0 {
        (i64::from(index) << schema.unsigned_abs().min(32), 0.0)
    } else {
        let parts = 1i64 << schema.min(30);
        let index = i64::from(index);
        (index.div_euclid(parts), index.rem_euclid(parts) as f64 / parts as f64)
    };
    match (whole, fraction == 0.0) {
        (1024, true) => f64::MAX,
        (1024.., _) => f64::INFINITY,
        (..-1074, _) => 0.0,
        _ => power_of_two(whole) * fraction.exp2(),
    }
}

/// Exact, from 2^-1074 to 2^1023.
fn power_of_two(exponent: i64) -> f64 {
    match exponent {
        ..-1022 => f64::from_bits(1u64 << (exponent + 1074)),
        _ => f64::from_bits(((exponent + 1023) as u64) << 52),
    }
}

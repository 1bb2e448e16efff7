//! What observations a histogram stands for: quantiles, fractions, variance.
//!
//! Within a bucket, observations are taken to lie so that each bucket of twice the resolution would hold as many: evenly by their
//! logarithms. Where that has no meaning (listed bounds, the zero bucket) they lie evenly. A histogram with positive buckets only has
//! nothing below zero in its zero bucket, and one with negative buckets only nothing above.

use super::{Bucket, Histogram};

/// What whoever reads an estimate should know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remark {
    /// So many observations are NaN that the quantile is one of them.
    QuantileIsNan,
    /// NaN counts as greater than everything.
    QuantileIsHigh,
    /// NaN is in no fraction.
    FractionWithoutNan,
}

impl Histogram {
    /// The zero bucket between the ends that it has in effect.
    pub(super) fn zero_as_used(&self) -> Bucket {
        let bucket = Bucket {
            lower: -self.zero_threshold,
            upper: self.zero_threshold,
            holds_lower: true,
            holds_upper: true,
            count: self.zero_count,
        };
        self.one_sided(bucket)
    }

    fn one_sided(&self, mut bucket: Bucket) -> Bucket {
        match (self.negative.is_empty(), self.positive.is_empty()) {
            (true, false) => bucket.lower = 0.0,
            (false, true) => bucket.upper = 0.0,
            _ => {}
        }
        bucket
    }

    pub(super) fn is_even(&self, bucket: &Bucket) -> bool {
        self.is_custom() || (bucket.lower <= 0.0 && bucket.upper >= 0.0)
    }

    /// Which part of a bucket lies below a value inside of it.
    pub(super) fn part_below(&self, bucket: &Bucket, value: f64) -> f64 {
        let (lower, upper) = (bucket.lower, bucket.upper);
        if self.is_even(bucket) {
            return match (lower == f64::NEG_INFINITY, upper == f64::INFINITY) {
                // There is no telling: all of the first bucket lies below, nothing of the last.
                (true, _) => 1.0,
                (_, true) => 0.0,
                _ => (value - lower) / (upper - lower),
            };
        }
        let [lower, upper, value] = [lower, upper, value].map(|v| v.abs().log2());
        if bucket.lower > 0.0 {
            (value - lower) / (upper - lower)
        } else {
            1.0 - (value - upper) / (lower - upper)
        }
    }

    /// What stands for the observations between two values of one bucket, in which they lie evenly or not.
    pub(super) fn middle(&self, lower: f64, upper: f64, even: bool) -> f64 {
        if even || lower.is_infinite() || upper.is_infinite() {
            return match (lower.is_finite(), upper.is_finite()) {
                (true, true) => f64::midpoint(lower, upper),
                (true, false) => lower,
                _ if upper > 0.0 => upper / 2.0,
                _ => upper,
            };
        }
        let middle = lower.abs().sqrt() * upper.abs().sqrt();
        if upper < 0.0 { -middle } else { middle }
    }

    /// The value below which the part `q` of the observations lies.
    pub fn quantile(&self, q: f64) -> (f64, Option<Remark>) {
        if q < 0.0 {
            return (f64::NEG_INFINITY, None);
        }
        if q > 1.0 {
            return (f64::INFINITY, None);
        }
        if self.count == 0.0 || q.is_nan() {
            return (f64::NAN, None);
        }
        // NaN is counted, and in no bucket: then the ranks hold from below alone. Else they are taken from the nearer end.
        let from_below = self.sum.is_nan() || q < 0.5;
        let (mut rank, found) = match from_below {
            true => (q * self.count, at_rank(self.buckets(), q * self.count)),
            false => {
                let rank = (1.0 - q) * self.count;
                (rank, at_rank(self.buckets().rev(), rank))
            }
        };
        let (mut bucket, seen) = found;
        if self.is_custom() {
            if bucket.lower == f64::NEG_INFINITY {
                if bucket.upper <= 0.0 {
                    return (bucket.upper, None);
                }
                bucket.lower = 0.0;
            } else if bucket.upper == f64::INFINITY {
                return (bucket.lower, None);
            }
        } else if bucket.lower < 0.0 && bucket.upper > 0.0 {
            bucket = self.one_sided(bucket);
        }
        let seen = seen.min(self.count);
        if seen < rank {
            return match self.sum.is_nan() {
                true => (f64::NAN, Some(Remark::QuantileIsNan)),
                false => (bucket.upper, None),
            };
        }
        rank = match from_below {
            true => rank - (seen - bucket.count),
            false => seen - rank,
        };
        let in_buckets = || self.buckets().map(|b| b.count).sum::<f64>();
        let remark = (self.sum.is_nan() && in_buckets() < self.count).then_some(Remark::QuantileIsHigh);
        let part = rank / bucket.count;
        if self.is_even(&bucket) {
            return (bucket.lower + (bucket.upper - bucket.lower) * part, remark);
        }
        let (lower, upper) = (bucket.lower.abs().log2(), bucket.upper.abs().log2());
        let value = match bucket.lower > 0.0 {
            true => (lower + (upper - lower) * part).exp2(),
            false => -(upper + (lower - upper) * (1.0 - part)).exp2(),
        };
        (value, remark)
    }

    /// Which part of the observations lies between two values.
    pub fn fraction(&self, lower: f64, upper: f64) -> (f64, Option<Remark>) {
        if self.count == 0.0 || lower.is_nan() || upper.is_nan() {
            return (f64::NAN, None);
        }
        if lower >= upper {
            return (0.0, None);
        }
        let has_nan = self.sum.is_nan();
        let in_buckets = || self.buckets().map(|b| b.count).sum::<f64>();
        let count = if has_nan { in_buckets() } else { self.count };
        let remark = (has_nan && count < self.count).then_some(Remark::FractionWithoutNan);
        let below = |value: f64| {
            let mut rank = 0.0;
            for bucket in self.buckets() {
                let bucket = match bucket.lower <= 0.0 && bucket.upper >= 0.0 {
                    true => self.one_sided(bucket),
                    false => bucket,
                };
                if bucket.lower >= value {
                    return rank;
                }
                if bucket.upper > value {
                    return rank + bucket.count * self.part_below(&bucket, value);
                }
                rank += bucket.count;
            }
            count
        };
        let (low, high) = (below(lower).min(count), below(upper).min(count));
        ((high - low) / self.count, remark)
    }

    pub fn average(&self) -> f64 {
        self.sum / self.count
    }

    /// The mean square of the distances from the average; a bucket's observations lie in its middle.
    pub fn variance(&self) -> f64 {
        let mean = self.average();
        let (mut total, mut lost) = (0.0f64, 0.0f64);
        for bucket in self.buckets() {
            let value = match (self.is_custom(), bucket.lower <= 0.0 && bucket.upper >= 0.0) {
                (true, _) => (bucket.upper + bucket.lower) / 2.0,
                (_, true) => 0.0,
                _ => self.middle(bucket.lower, bucket.upper, false),
            };
            let more = bucket.count * (value - mean) * (value - mean);
            let next = total + more;
            lost += match total.abs() >= more.abs() {
                _ if next.is_infinite() => 0.0,
                true => (total - next) + more,
                false => (more - next) + total,
            };
            total = next;
        }
        (total + lost) / self.count
    }
}

/// The first bucket with which the counts reach a rank, else the last one; and the counts up to it.
fn at_rank(buckets: impl Iterator<Item = Bucket>, rank: f64) -> (Bucket, f64) {
    let (mut last, mut seen) = (Bucket::default(), 0.0);
    for bucket in buckets {
        last = bucket;
        seen += bucket.count;
        if seen >= rank {
            break;
        }
    }
    (last, seen)
}

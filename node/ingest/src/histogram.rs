//! Histograms with buckets of growing width, as classic ones: what OpenTelemetry's exponential histograms and Prometheus' native ones
//! have in common.
//!
//! A classic histogram is one series per bound (`_bucket` with `le`, each counting all below), `_sum` and `_count`. Buckets are
//! made coarser to at most four per doubling, so that the bounds stay the same while the sender's scale moves, and so that
//! they stay few (decision 0022).
//!
//! Invariants
//! - A count that was sent is in exactly one bucket, or above all bounds.
//! - A histogram has at most `2 * HISTOGRAM_BUCKETS_MAX + 2` bounds; those of one request take no more than [`Budget`] allows.

use crate::Refusal;
use crate::otlp::names::{derived, number};
use hindcast_model::Labels;
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Buckets of one histogram, or of one of its sides; each becomes a series.
pub const HISTOGRAM_BUCKETS_MAX: usize = 512;
/// The finest scale that is stored: 2^2 buckets per doubling.
pub const SCALE_MAX: i32 = 2;
/// Below it one bucket spans more than all doubles.
pub const SCALE_MIN: i32 = -11;
/// Rows that the histograms of one request may become: a few bytes of a histogram make hundreds.
pub const HISTOGRAM_ROWS_MAX: usize = 200_000;
/// What the labels of these rows may take.
pub const HISTOGRAM_LABEL_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A bucket's upper bound, ordered.
#[derive(Clone, Copy, Debug)]
pub struct Bound(pub f64);

impl PartialEq for Bound {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Bound {}
impl PartialOrd for Bound {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Bound {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// What lies between two bounds each, by the upper one; not yet added up.
pub type Buckets = BTreeMap<Bound, f64>;

pub(crate) fn bad_buckets(why: impl Into<String>) -> Refusal {
    Refusal::BadBuckets { why: why.into() }
}

pub(crate) fn too_many(what: &str, n: u64) -> Refusal {
    bad_buckets(format!("{n} {what}, more than {HISTOGRAM_BUCKETS_MAX}"))
}

/// An exponential histogram. Bucket `i` of a side lies between `base^i` and `base^(i + 1)`, where base is `2^(2^-scale)`.
pub(crate) struct Exponential<P, N> {
    pub scale: i32,
    pub zero_threshold: f64,
    pub zero_count: f64,
    pub positive: P,
    pub negative: N,
}

impl<P: Iterator<Item = (i64, f64)>, N: Iterator<Item = (i64, f64)>> Exponential<P, N> {
    /// Classic buckets: each bound of its own between the first and the last bucket in use, and the lower edge of the
    /// first, so that quantiles are not drawn down to zero.
    pub fn classic(self) -> Result<Buckets, Refusal> {
        if self.scale < SCALE_MIN {
            return Err(bad_buckets(format!("scale {} is less than {SCALE_MIN}", self.scale)));
        }
        let shift = self.scale.saturating_sub(SCALE_MAX).clamp(0, 63) as u32;
        let scale = self.scale.min(SCALE_MAX);
        let edge = |index: i64| (index as f64 * f64::from(-scale).exp2()).exp2();
        let mut buckets = Buckets::new();
        let positive = coarse(self.positive, shift)?;
        for (index, n) in coarse(self.negative, shift)? {
            buckets.insert(Bound(-edge(index)), n);
        }
        if self.zero_count > 0.0 {
            buckets.insert(Bound(self.zero_threshold.max(0.0)), self.zero_count);
        }
        if let Some((first, _)) = positive.first_key_value() {
            buckets.entry(Bound(edge(*first))).or_default();
        }
        for (index, n) in positive {
            *buckets.entry(Bound(edge(index + 1))).or_default() += n;
        }
        buckets.retain(|bound, _| bound.0.is_finite());
        Ok(buckets)
    }
}

/// Counts per coarser bucket, with no gap between the first and the last in use.
fn coarse(side: impl Iterator<Item = (i64, f64)>, shift: u32) -> Result<BTreeMap<i64, f64>, Refusal> {
    let mut counts: BTreeMap<i64, f64> = BTreeMap::new();
    for (index, n) in side.filter(|(_, n)| *n > 0.0) {
        *counts.entry(index >> shift).or_default() += n;
    }
    if let (Some((&first, _)), Some((&last, _))) = (counts.first_key_value(), counts.last_key_value()) {
        let span = last.abs_diff(first) + 1;
        if span > HISTOGRAM_BUCKETS_MAX as u64 {
            return Err(too_many("buckets", span));
        }
        for index in first..=last {
            counts.entry(index).or_default();
        }
    }
    Ok(counts)
}

/// Classic buckets of bounds that the sender chose: `counts` has one more, which lies above all of them.
pub(crate) fn explicit(bounds: &[f64], counts: impl ExactSizeIterator<Item = f64>) -> Result<Buckets, Refusal> {
    if bounds.len() > HISTOGRAM_BUCKETS_MAX {
        return Err(too_many("bounds", bounds.len() as u64));
    }
    let only_count = counts.len() == 0 && bounds.is_empty();
    if !only_count && counts.len() != bounds.len() + 1 {
        return Err(bad_buckets(format!(
            "{} counts for {} bounds",
            counts.len(),
            bounds.len()
        )));
    }
    if !bounds.iter().is_sorted_by(|a, b| a < b) || bounds.iter().any(|b| b.is_nan()) {
        return Err(bad_buckets("the bounds do not rise"));
    }
    // The last count lies above all bounds; `+Inf` is the count of all.
    let finite = bounds.iter().zip(counts).filter(|(b, _)| **b != f64::INFINITY);
    Ok(finite.map(|(b, n)| (Bound(*b), n)).collect())
}

/// The series of a classic histogram with their values, told one by one.
pub(crate) fn rows(base: &Labels, buckets: &Buckets, count: f64, sum: Option<f64>, mut emit: impl FnMut(Labels, f64)) {
    let bucket = |le: String| derived(base, "_bucket", Some(("le", le)));
    let mut below = 0.0;
    for (bound, n) in buckets {
        below += n;
        emit(bucket(number(bound.0)), below);
    }
    emit(bucket("+Inf".to_owned()), count);
    if let Some(sum) = sum {
        emit(derived(base, "_sum", None), sum);
    }
    emit(derived(base, "_count", None), count);
}

/// What the histograms of one request may still become.
pub(crate) struct Budget {
    rows: usize,
    label_bytes: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            rows: HISTOGRAM_ROWS_MAX,
            label_bytes: HISTOGRAM_LABEL_BYTES_MAX,
        }
    }
}

impl Budget {
    /// Takes the rows of one histogram of this many bounds.
    pub fn take(&mut self, base: &Labels, bounds: usize) -> Result<(), Refusal> {
        // `+Inf`, the sum and the count; a bound as a label, and the suffix of the name.
        let rows = bounds + 3;
        let of_one: usize = base.iter().map(|(n, v)| n.len() + v.len() + 4).sum();
        let label_bytes = rows * (of_one + 32);
        if rows > self.rows || label_bytes > self.label_bytes {
            return Err(Refusal::TooManyRows);
        }
        self.rows -= rows;
        self.label_bytes -= label_bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_model::resource::metric;

    #[test]
    fn the_histograms_of_one_request_become_so_many_rows_and_no_more() {
        let base = metric("m", &[("job", "j")]);
        let of_one = HISTOGRAM_BUCKETS_MAX + 3;
        let mut budget = Budget::default();
        for _ in 0..HISTOGRAM_ROWS_MAX / of_one {
            assert_eq!(budget.take(&base, HISTOGRAM_BUCKETS_MAX), Ok(()));
        }
        assert_eq!(budget.take(&base, HISTOGRAM_BUCKETS_MAX), Err(Refusal::TooManyRows));
        let wide = metric("m", &[("job", &"j".repeat(4096))]);
        let mut budget = Budget::default();
        let fit = (0..1000)
            .take_while(|_| budget.take(&wide, HISTOGRAM_BUCKETS_MAX).is_ok())
            .count();
        assert_eq!(
            fit,
            HISTOGRAM_LABEL_BYTES_MAX / (of_one * (4096 + 3 + 4 + 8 + 1 + 4 + 32))
        );
    }
}

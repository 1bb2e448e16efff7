//! Classic histograms of OpenTelemetry: one series per bound (`_bucket` with `le`, each counting all below), `_sum` and `_count`. And
//! what the histograms of one request may take, classic ones and native ones.
//!
//! Invariants
//! - A count that was sent is in exactly one bucket, or above all bounds.
//! - The histograms of one request take no more than [`Budget`] allows.

use crate::Refusal;
use crate::otlp::names::{derived, number};
use hindcast_model::Labels;
use hindcast_model::limits::ENTRY_BYTES_MAX;
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Buckets of one histogram, or of one of its sides; each becomes a series.
pub const HISTOGRAM_BUCKETS_MAX: usize = 512;
/// Rows that the histograms of one request may become: a few bytes of a histogram make hundreds.
pub const HISTOGRAM_ROWS_MAX: usize = 64_000;
/// What the labels of these rows may take in memory.
pub const HISTOGRAM_LABEL_BYTES_MAX: usize = 64 * 1024 * 1024;
/// What these rows may take of an entry of the log when all of them are new: a request that does not fit is refused as a whole,
/// its other rows included. These have the rest of the entry.
pub const HISTOGRAM_ENTRY_BYTES_MAX: usize = ENTRY_BYTES_MAX / 4 * 3;
/// Of a row in an entry: its kind, its owner (17), how many labels it has, its value and the zero at the beginning of a delta.
const ROW_BYTES: usize = 36;
/// Of a label of a row: the numbers of its name and its value in the entry's table of texts.
const LABEL_BYTES: usize = 4;

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

/// How wide a histogram is before it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Width {
    pub bounds: usize,
    /// Of the longest bound.
    pub text_bytes: usize,
}

impl Width {
    pub fn of(buckets: &Buckets) -> Self {
        let texts = buckets.keys().map(|bound| text_bytes_max(bound.0));
        Self {
            bounds: buckets.len(),
            text_bytes: texts.max().unwrap_or_default(),
        }
    }
}

/// No less than what [`number`] writes: without an exponent, the zeros before or behind the digits are all there.
fn text_bytes_max(bound: f64) -> usize {
    let zeros = bound.abs().log10().abs();
    24 + if zeros.is_finite() { zeros as usize } else { 0 }
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
    entry_bytes: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            rows: HISTOGRAM_ROWS_MAX,
            label_bytes: HISTOGRAM_LABEL_BYTES_MAX,
            entry_bytes: HISTOGRAM_ENTRY_BYTES_MAX,
        }
    }
}

impl Budget {
    /// Takes the rows of one histogram.
    pub fn take(&mut self, base: &Labels, width: Width) -> Result<(), Refusal> {
        // `+Inf`, the sum and the count.
        let rows = width.bounds + 3;
        let of_one: usize = base.iter().map(|(n, v)| n.len() + v.len() + 4).sum();
        // A bound as a label, and the suffix of the name.
        let label_bytes = rows * (of_one + width.text_bytes + 16);
        // Texts that rows share travel once; bounds are taken to be new each time.
        let of_row = ROW_BYTES + LABEL_BYTES * (base.len() + 1) + width.text_bytes;
        let entry_bytes = rows * of_row + of_one;
        if rows > self.rows || label_bytes > self.label_bytes || entry_bytes > self.entry_bytes {
            return Err(Refusal::TooManyRows);
        }
        self.rows -= rows;
        self.label_bytes -= label_bytes;
        self.entry_bytes -= entry_bytes;
        Ok(())
    }

    /// Takes a native histogram, which is one line. Labels are taken to be new each time.
    pub fn take_line(&mut self, base: &Labels, line: &str) -> Result<(), Refusal> {
        let of_labels: usize = base.iter().map(|(n, v)| n.len() + v.len() + LABEL_BYTES).sum();
        let entry_bytes = ROW_BYTES + of_labels + line.len();
        if self.rows == 0 || entry_bytes > self.entry_bytes {
            return Err(Refusal::TooManyRows);
        }
        self.rows -= 1;
        self.entry_bytes -= entry_bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_model::resource::metric;
    use proptest::prelude::*;

    const WIDEST: Width = Width {
        bounds: HISTOGRAM_BUCKETS_MAX,
        text_bytes: 20,
    };

    /// How many of the widest histograms of these labels one request may have.
    fn fit(base: &Labels) -> usize {
        let mut budget = Budget::default();
        (0..1000).take_while(|_| budget.take(base, WIDEST).is_ok()).count()
    }

    #[test]
    fn the_histograms_of_one_request_become_so_many_rows_and_no_more() {
        let base = metric("m", &[("job", "j")]);
        let of_one = HISTOGRAM_BUCKETS_MAX + 3;
        let mut budget = Budget::default();
        for _ in 0..HISTOGRAM_ROWS_MAX / of_one {
            assert_eq!(budget.take(&base, WIDEST), Ok(()));
        }
        assert_eq!(budget.take(&base, WIDEST), Err(Refusal::TooManyRows));
        let wide = metric("m", &[("job", &"j".repeat(4096))]);
        let of_labels = 4096 + 3 + 4 + 8 + 1 + 4;
        assert_eq!(fit(&wide), HISTOGRAM_LABEL_BYTES_MAX / (of_one * (of_labels + 20 + 16)));
        let names: Vec<String> = (10..60).map(|i| format!("l{i}")).collect();
        let many: Vec<(&str, &str)> = names.iter().map(|n| (n.as_str(), "v")).collect();
        let of_row = ROW_BYTES + LABEL_BYTES * 52 + 20;
        assert_eq!(
            fit(&metric("m", &many)),
            HISTOGRAM_ENTRY_BYTES_MAX / (of_one * of_row + 50 * 8 + 13)
        );
    }

    proptest! {
        #[test]
        fn a_bound_is_no_longer_than_was_told(bits: u64) {
            let bound = f64::from_bits(bits);
            prop_assert!(bound.is_nan() || number(bound).len() <= text_bytes_max(bound));
        }
    }
}

//! Histograms of different layouts made alike, added, scaled and compared.
//!
//! Two histograms are alike once they have the same schema and zero bucket, or the same bounds. Finer buckets go into coarser ones, a
//! narrower zero bucket takes buckets in, and of bounds those are kept that both have. No count is lost on the way.

use super::{Bucket, Buckets, Hint, Histogram, edge};
use std::borrow::Cow;
use std::sync::Arc;

/// Histograms with a rule for their bounds and such with a list of them have nothing in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MixedSchemas;

/// What several histograms have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    pub schema: i32,
    pub zero_threshold: f64,
    pub custom: Arc<[f64]>,
    /// Their bounds were different: only those remain that all of them have.
    pub reconciled: bool,
}

impl Layout {
    /// The finest layout that all of these fit into. `None`: there are no histograms.
    pub fn common<'h>(all: impl Iterator<Item = &'h Histogram> + Clone) -> Result<Option<Self>, MixedSchemas> {
        let Some(first) = all.clone().next() else {
            return Ok(None);
        };
        let mut layout = Self {
            schema: first.schema,
            zero_threshold: first.zero_threshold,
            custom: first.custom.clone(),
            reconciled: false,
        };
        for h in all.clone() {
            if h.is_custom() != first.is_custom() {
                return Err(MixedSchemas);
            }
            layout.schema = layout.schema.min(h.schema);
            layout.zero_threshold = layout.zero_threshold.max(h.zero_threshold);
            if !same_bounds(&layout.custom, &h.custom) {
                layout.custom = common(&layout.custom, &h.custom).into();
                layout.reconciled = true;
            }
        }
        // A zero bucket must not end within a bucket in use of any of them.
        loop {
            let wider = all.clone().map(|h| h.zero_bucket(layout.zero_threshold).1);
            let wider = wider.fold(layout.zero_threshold, f64::max);
            if wider == layout.zero_threshold {
                return Ok(Some(layout));
            }
            layout.zero_threshold = wider;
        }
    }
}

fn same_bounds(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// What stands in both; they ascend.
fn common(a: &[f64], b: &[f64]) -> Vec<f64> {
    let mut rest = b;
    let is_there = |bound: &&f64| {
        let at = rest.partition_point(|other| other < bound);
        rest = &rest[at..];
        rest.first() == Some(bound)
    };
    a.iter().filter(is_there).copied().collect()
}

/// What became of two histograms.
#[derive(Clone, Debug, PartialEq)]
pub struct Combined {
    pub histogram: Histogram,
    /// One says that counting began anew, the other that it did not.
    pub collision: bool,
    /// Their bounds were different.
    pub reconciled: bool,
}

impl Histogram {
    /// Count and threshold of a zero bucket that reaches at least so far: it takes in whole buckets only.
    fn zero_bucket(&self, threshold: f64) -> (f64, f64) {
        if self.is_custom() || threshold <= self.zero_threshold {
            return (self.zero_count, self.zero_threshold.max(threshold));
        }
        let mut threshold = threshold;
        'again: loop {
            let mut count = self.zero_count;
            for side in [&self.positive, &self.negative] {
                for &(index, n) in side {
                    if edge(self.schema, index.saturating_sub(1)) >= threshold {
                        break;
                    }
                    count += n;
                    let upper = edge(self.schema, index);
                    if upper > threshold {
                        threshold = upper;
                        continue 'again;
                    }
                }
            }
            return (count, threshold);
        }
    }

    fn with_zero_bucket(&self, threshold: f64) -> Self {
        let (zero_count, zero_threshold) = self.zero_bucket(threshold);
        let outside = |side: &Buckets| {
            let kept = side.iter().filter(|(i, _)| edge(self.schema, *i) > zero_threshold);
            kept.copied().collect()
        };
        Self {
            zero_count,
            zero_threshold,
            positive: outside(&self.positive),
            negative: outside(&self.negative),
            ..self.clone()
        }
    }

    /// The same observations in a layout that is no finer.
    pub fn fitted(&self, layout: &Layout) -> Cow<'_, Self> {
        let as_it_is = self.schema == layout.schema
            && self.zero_threshold == layout.zero_threshold
            && same_bounds(&self.custom, &layout.custom);
        if as_it_is {
            return Cow::Borrowed(self);
        }
        if self.is_custom() {
            let place = |index: i32| {
                let upper = self.edge(index);
                layout.custom.partition_point(|b| *b < upper) as i32
            };
            return Cow::Owned(Self {
                positive: moved(&self.positive, place),
                custom: layout.custom.clone(),
                ..self.clone()
            });
        }
        let widened = match self.zero_threshold < layout.zero_threshold {
            true => self.with_zero_bucket(layout.zero_threshold),
            false => self.clone(),
        };
        Cow::Owned(widened.coarser(layout.schema))
    }

    /// At a lower resolution; as it is, when its own is no higher.
    pub fn coarser(mut self, schema: i32) -> Self {
        let shift = self.schema - schema;
        if self.is_custom() || shift <= 0 {
            return self;
        }
        let place = |index: i32| (index.saturating_sub(1) >> shift.min(31)) + 1;
        self.positive = moved(&self.positive, place);
        self.negative = moved(&self.negative, place);
        self.schema = schema;
        self
    }

    pub fn plus(&self, other: &Self) -> Result<Combined, MixedSchemas> {
        self.combined(other, |a, b| a + b)
    }

    pub fn minus(&self, other: &Self) -> Result<Combined, MixedSchemas> {
        self.combined(other, |a, b| a - b)
    }

    fn combined(&self, other: &Self, of: fn(f64, f64) -> f64) -> Result<Combined, MixedSchemas> {
        let layout = Layout::common([self, other].into_iter())?.expect("there are two");
        let (a, b) = (self.fitted(&layout), other.fitted(&layout));
        let (hint, collision) = self.hint.with(other.hint);
        Ok(Combined {
            histogram: Self {
                schema: layout.schema,
                count: of(a.count, b.count),
                sum: of(a.sum, b.sum),
                zero_threshold: layout.zero_threshold,
                zero_count: of(a.zero_count, b.zero_count),
                positive: joined(&a.positive, &b.positive, of),
                negative: joined(&a.negative, &b.negative, of),
                custom: layout.custom,
                hint,
            },
            collision,
            reconciled: layout.reconciled,
        })
    }

    pub fn times(&self, factor: f64) -> Self {
        let scaled = self.mapped(|v| v * factor);
        match factor < 0.0 {
            true => scaled.gauge(),
            false => scaled,
        }
    }

    /// By zero, what is in the buckets has no meaning: they go.
    pub fn over(&self, divisor: f64) -> Self {
        let mut scaled = self.mapped(|v| v / divisor);
        if divisor == 0.0 {
            scaled.positive.clear();
            scaled.negative.clear();
        }
        match divisor < 0.0 {
            true => scaled.gauge(),
            false => scaled,
        }
    }

    /// Marked as one that may fall.
    pub fn gauge(mut self) -> Self {
        self.hint = Hint::Gauge;
        self
    }

    fn mapped(&self, f: impl Fn(f64) -> f64) -> Self {
        let side = |side: &Buckets| {
            let all = side.iter().map(|(i, n)| (*i, f(*n)));
            all.filter(|(_, n)| *n != 0.0).collect()
        };
        Self {
            count: f(self.count),
            sum: f(self.sum),
            zero_count: f(self.zero_count),
            positive: side(&self.positive),
            negative: side(&self.negative),
            ..self.clone()
        }
    }

    /// Whether both have the same layout and, to the bit, the same numbers. What was said of resets does not count.
    pub fn same(&self, other: &Self) -> bool {
        let numbers = |h: &Self| [h.count, h.sum, h.zero_count, h.zero_threshold].map(f64::to_bits);
        let side = |a: &Buckets, b: &Buckets| {
            let pairs = || a.iter().zip(b);
            a.len() == b.len() && pairs().all(|(a, b)| a.0 == b.0 && a.1.to_bits() == b.1.to_bits())
        };
        self.schema == other.schema
            && numbers(self) == numbers(other)
            && same_bounds(&self.custom, &other.custom)
            && side(&self.positive, &other.positive)
            && side(&self.negative, &other.negative)
    }

    /// Whether counting began anew after `before`: as the sender says, else by what can only grow in a counter.
    pub fn is_reset_after(&self, before: &Self) -> bool {
        match self.hint {
            Hint::Reset => return true,
            Hint::NotReset => return false,
            Hint::Unknown | Hint::Gauge => {}
        }
        if self.count < before.count || self.is_custom() != before.is_custom() || self.schema > before.schema {
            return true;
        }
        if self.is_custom() {
            let layout = Layout::common([self, before].into_iter());
            let Ok(Some(layout)) = layout else { return true };
            return falls(&before.fitted(&layout).positive, &self.fitted(&layout).positive);
        }
        if self.zero_threshold < before.zero_threshold {
            return true;
        }
        let (zero_count, threshold) = before.zero_bucket(self.zero_threshold);
        if threshold != self.zero_threshold || self.zero_count < zero_count {
            return true;
        }
        let before = match before.zero_threshold < threshold {
            true => Cow::Owned(before.with_zero_bucket(threshold)),
            false => Cow::Borrowed(before),
        };
        let before = match self.schema < before.schema {
            true => Cow::Owned(before.into_owned().coarser(self.schema)),
            false => before,
        };
        falls(&before.positive, &self.positive) || falls(&before.negative, &self.negative)
    }

    /// Keeps the observations below (`upper`) or above a bound. A bucket that the bound cuts is cut by the rule of quantiles, one
    /// without an end goes as a whole or stays as one. When anything went, the sum is estimated from the middles of what is left.
    pub fn trimmed(&self, bound: f64, upper: bool) -> Self {
        let mut trimmed = self.clone();
        let (mut count, mut sum, mut has_cut) = (0.0, 0.0, false);
        let mut keep = |bucket: Bucket| {
            let (part, middle) = self.cut(&bucket, bound, upper);
            let kept = bucket.count * part;
            has_cut |= part != 1.0;
            if kept != 0.0 {
                sum += kept * middle;
                count += kept;
            }
            kept
        };
        for (index, n) in &mut trimmed.positive {
            *n = keep(self.positive_bucket((*index, *n)));
        }
        for (index, n) in &mut trimmed.negative {
            let mirrored = self.positive_bucket((*index, *n));
            *n = keep(Bucket {
                lower: -mirrored.upper,
                upper: -mirrored.lower,
                ..mirrored
            });
        }
        if self.zero_count > 0.0 {
            trimmed.zero_count = keep(self.zero_as_used());
        }
        for side in [&mut trimmed.positive, &mut trimmed.negative] {
            side.retain(|(_, n)| *n != 0.0);
        }
        if has_cut {
            (trimmed.count, trimmed.sum) = (count, sum);
        }
        trimmed
    }

    /// Which part of a bucket is left, and what stands for it.
    fn cut(&self, bucket: &Bucket, bound: f64, upper: bool) -> (f64, f64) {
        let even = self.is_even(bucket);
        let (low, high) = (bucket.lower, bucket.upper);
        let (is_below, is_above) = (high <= bound, low >= bound);
        if if upper { is_below } else { is_above } {
            return (1.0, self.middle(low, high, even));
        }
        if is_below || is_above || bound.is_nan() {
            return (0.0, 0.0);
        }
        if low == f64::NEG_INFINITY {
            // Whose end is above zero is taken to begin there.
            return match upper {
                true if bound > 0.0 && high.is_finite() => (bound / high, bound / 2.0),
                true if high <= 0.0 => (1.0, bound),
                false if bound >= 0.0 && high.is_finite() => (1.0 - bound / high, f64::midpoint(bound, high)),
                _ => (0.0, 0.0),
            };
        }
        if high == f64::INFINITY {
            return if upper { (0.0, 0.0) } else { (1.0, bound) };
        }
        let below = self.part_below(bucket, bound);
        match upper {
            true => (below, self.middle(low, bound, even)),
            false => (1.0 - below, self.middle(bound, high, even)),
        }
    }
}

impl Hint {
    /// Of a sum or a difference, and whether the two contradict each other.
    pub fn with(self, other: Self) -> (Self, bool) {
        match (self, other) {
            (a, b) if a == b => (a, false),
            (Self::Gauge, _) | (_, Self::Gauge) => (Self::Gauge, false),
            (Self::Unknown, _) | (_, Self::Unknown) => (Self::Unknown, false),
            _ => (Self::Unknown, true),
        }
    }
}

/// Buckets at the places that their indices get; `place` does not fall.
fn moved(side: &Buckets, place: impl Fn(i32) -> i32) -> Buckets {
    let mut out = Buckets::with_capacity(side.len());
    for &(index, n) in side {
        let index = place(index);
        match out.last_mut() {
            Some((last, sum)) if *last == index => *sum += n,
            _ => out.push((index, n)),
        }
    }
    out.retain(|(_, n)| *n != 0.0);
    out
}

/// Two sides of one layout, bucket by bucket; where only one has a bucket, the other counts as zero.
fn joined(a: &Buckets, b: &Buckets, of: fn(f64, f64) -> f64) -> Buckets {
    let mut out = Buckets::with_capacity(a.len().max(b.len()));
    both(a, b, |index, a, b| {
        let n = of(a, b);
        if n != 0.0 {
            out.push((index, n));
        }
    });
    out
}

fn both(a: &Buckets, b: &Buckets, mut take: impl FnMut(i32, f64, f64)) {
    let (mut a, mut b) = (a.iter().copied().peekable(), b.iter().copied().peekable());
    loop {
        match (a.peek().copied(), b.peek().copied()) {
            (None, None) => return,
            (Some((i, x)), right) if right.is_none_or(|(j, _)| i < j) => {
                take(i, x, 0.0);
                a.next();
            }
            (left, Some((j, y))) if left.is_none_or(|(i, _)| j < i) => {
                take(j, 0.0, y);
                b.next();
            }
            (Some((i, x)), Some((_, y))) => {
                take(i, x, y);
                a.next();
                b.next();
            }
            _ => unreachable!("one of them has a bucket"),
        }
    }
}

/// Whether any bucket of `after` holds less than it did.
fn falls(before: &Buckets, after: &Buckets) -> bool {
    let mut any = false;
    both(before, after, |_, before, after| any |= after < before);
    any
}

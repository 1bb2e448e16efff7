//! The evaluator's working form: per series a column of values, one per step; and the raw samples of a selector.

use hindcast_model::{Labels, STALE_NAN_BITS, Slot};

/// "No value at this step". The staleness marker never is a value, so its bits are free for this.
pub const ABSENT: f64 = f64::from_bits(STALE_NAN_BITS);

pub fn is_absent(v: f64) -> bool {
    v.to_bits() == STALE_NAN_BITS
}

/// The instants that an expression is evaluated at, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    pub start: i64,
    pub step: i64,
    pub count: usize,
}

impl Steps {
    pub fn at(&self, i: usize) -> i64 {
        self.start + self.step * i as i64
    }
    pub fn iter(&self) -> impl Iterator<Item = i64> + use<> {
        let s = *self;
        (0..s.count).map(move |i| s.at(i))
    }
    pub fn end(&self) -> i64 {
        self.at(self.count.saturating_sub(1))
    }
}

/// Where a series stands in sums (`gather`). A series computed from one stored series keeps the place of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub slot: u16,
    pub fingerprint: u64,
}

impl Place {
    /// Of a series that no single stored one stands behind.
    pub fn computed(labels: &Labels) -> Self {
        let fingerprint = labels.fingerprint();
        Self {
            slot: Slot::of_hash(fingerprint).0,
            fingerprint,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Column {
    pub labels: Labels,
    pub place: Place,
    pub values: Vec<f64>,
}

impl Column {
    pub fn computed(labels: Labels, values: Vec<f64>) -> Self {
        Self {
            place: Place::computed(&labels),
            labels,
            values,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.values.iter().all(|v| is_absent(*v))
    }
}

/// Samples of one series, ascending by time.
#[derive(Clone, Debug)]
pub struct Raw {
    pub labels: Labels,
    pub place: Place,
    pub times: Vec<i64>,
    pub values: Vec<f64>,
}

impl Raw {
    /// Without staleness markers: how windows see it.
    pub fn without_stale(&self) -> std::borrow::Cow<'_, Self> {
        if !self.values.iter().any(|v| is_absent(*v)) {
            return std::borrow::Cow::Borrowed(self);
        }
        let kept = self.times.iter().zip(&self.values).filter(|(_, v)| !is_absent(**v));
        let (times, values) = kept.map(|(t, v)| (*t, *v)).unzip();
        std::borrow::Cow::Owned(Self {
            labels: self.labels.clone(),
            place: self.place,
            times,
            values,
        })
    }
}

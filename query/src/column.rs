//! The evaluator's working form: per series a column of values, one per step; and the raw samples of a selector.

use crate::reduce::{Reducer, Reduction};
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
    /// Keeps the samples for which `keep` says yes to time and value.
    pub fn retain(&mut self, keep: impl Fn(i64, f64) -> bool) {
        let all = std::mem::take(&mut self.times)
            .into_iter()
            .zip(std::mem::take(&mut self.values));
        (self.times, self.values) = all.filter(|(t, v)| keep(*t, *v)).unzip();
    }

    /// One value per step. `None`: no step has one.
    pub fn reduced(self, reducer: &mut Reducer, reduction: &Reduction) -> Option<Column> {
        let values = reducer.samples(reduction, &self.times, &self.values);
        (!values.is_empty()).then_some(Column {
            labels: self.labels,
            place: self.place,
            values,
        })
    }
}

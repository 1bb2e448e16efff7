//! The evaluator's working form: per series a column of values, one per step; and the raw samples of a selector.
//!
//! Values are floats. A series that has native histograms carries them beside its floats, so that those who have none, nearly all,
//! pay nothing for them. Where there is a histogram there is no float.

use crate::eval::{Meter, Notes, native};
use crate::reduce::{Reducer, Reduction};
use hindcast_model::{Histogram, Labels, STALE_NAN_BITS, Slot};
use std::sync::Arc;

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

/// Native histograms beside values, in the places where these are absent.
pub type Natives = Vec<Option<Arc<Histogram>>>;

#[derive(Clone, Debug)]
pub struct Column {
    pub labels: Labels,
    pub place: Place,
    pub values: Vec<f64>,
    /// As many as values; `None`: there is no histogram at any step.
    pub natives: Option<Natives>,
}

/// A value of either kind.
#[derive(Clone, Debug)]
pub enum Point {
    Float(f64),
    Native(Arc<Histogram>),
}

impl Column {
    pub fn computed(labels: Labels, values: Vec<f64>) -> Self {
        Self {
            place: Place::computed(&labels),
            labels,
            values,
            natives: None,
        }
    }

    /// Without a value at any of so many steps.
    pub fn blank(labels: Labels, place: Place, steps: usize) -> Self {
        Self {
            labels,
            place,
            values: vec![ABSENT; steps],
            natives: None,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.values.iter().all(|v| is_absent(*v)) && !self.has_natives()
    }

    pub fn has_natives(&self) -> bool {
        self.natives.as_ref().is_some_and(|n| n.iter().any(Option::is_some))
    }

    /// What its histograms count as where samples are counted.
    pub fn weight(&self) -> usize {
        let natives = self.natives.iter().flatten().flatten();
        natives.map(|h| h.weight()).sum()
    }

    pub fn native(&self, i: usize) -> Option<&Arc<Histogram>> {
        self.natives.as_ref()?[i].as_ref()
    }

    /// Whether there is a value of either kind.
    pub fn is_present(&self, i: usize) -> bool {
        !is_absent(self.values[i]) || self.native(i).is_some()
    }

    pub fn at(&self, i: usize) -> Option<Point> {
        match self.native(i) {
            Some(native) => Some(Point::Native(native.clone())),
            None => Some(self.values[i]).filter(|v| !is_absent(*v)).map(Point::Float),
        }
    }

    /// Sets a value where none was, or takes away what was there.
    pub fn set(&mut self, i: usize, point: Option<Point>) {
        self.values[i] = ABSENT;
        if let Some(natives) = &mut self.natives {
            natives[i] = None;
        }
        match point {
            None => {}
            Some(Point::Float(v)) => self.values[i] = v,
            Some(Point::Native(native)) => {
                let steps = self.values.len();
                self.natives.get_or_insert_with(|| vec![None; steps])[i] = Some(native);
            }
        }
    }

    /// Its floats alone.
    #[must_use]
    pub fn floats(mut self) -> Self {
        self.natives = None;
        self
    }
}

/// Samples of one series, ascending by time.
#[derive(Clone, Debug)]
pub struct Raw {
    pub labels: Labels,
    pub place: Place,
    pub times: Vec<i64>,
    pub values: Vec<f64>,
    /// As many as values; `None`: no sample is a histogram.
    pub natives: Option<Natives>,
}

impl Raw {
    /// Keeps the samples in `(from, to]`, staleness markers aside.
    pub fn cut(&mut self, from: i64, to: i64) {
        let times = std::mem::take(&mut self.times);
        let values = std::mem::take(&mut self.values);
        let mut natives = self.natives.take().map(Vec::into_iter);
        let mut kept: Natives = vec![];
        for (t, v) in times.into_iter().zip(values) {
            let native = natives.as_mut().and_then(Iterator::next).flatten();
            if from < t && t <= to && (!is_absent(v) || native.is_some()) {
                self.times.push(t);
                self.values.push(v);
                kept.push(native);
            }
        }
        self.natives = kept.iter().any(Option::is_some).then_some(kept);
    }

    /// One value per step. `None`: no step has one. What it takes with histograms is charged to `meter`; when that breaks, so does this.
    pub async fn reduced(
        self,
        reducer: &mut Reducer,
        reduction: &Reduction,
        notes: &mut Notes,
        meter: &mut Meter<'_>,
    ) -> Option<Column> {
        match self.natives {
            Some(_) => native::reduced(self, reduction, notes, meter).await,
            None => self.floats_reduced(reducer, reduction),
        }
    }

    /// Likewise, of floats alone.
    pub fn floats_reduced(self, reducer: &mut Reducer, reduction: &Reduction) -> Option<Column> {
        let values = reducer.samples(reduction, &self.times, &self.values);
        (!values.is_empty()).then_some(Column {
            labels: self.labels,
            place: self.place,
            values,
            natives: None,
        })
    }
}

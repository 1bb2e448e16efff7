//! Time comes in here and nowhere else.

use hindcast_model::{SpanNs, TimestampNs};
use parking_lot::Mutex;
use std::sync::Arc;

pub trait Clock: Send + Sync + 'static {
    /// The wall clock. May step either way.
    fn now(&self) -> TimestampNs;
    /// Since some fixed start; never goes back.
    fn monotonic(&self) -> SpanNs;
}

impl<C: Clock + ?Sized> Clock for Arc<C> {
    fn now(&self) -> TimestampNs {
        (**self).now()
    }
    fn monotonic(&self) -> SpanNs {
        (**self).monotonic()
    }
}

/// A clock that stands still until told otherwise. Clones share the time.
#[derive(Clone, Debug, Default)]
pub struct SimClock(Arc<Mutex<(TimestampNs, SpanNs)>>);

impl SimClock {
    pub fn at(now: TimestampNs) -> Self {
        Self(Arc::new(Mutex::new((now, SpanNs::ZERO))))
    }

    pub fn advance(&self, by: SpanNs) {
        let mut t = self.0.lock();
        t.0 = t.0 + by;
        t.1 = SpanNs(t.1.0.saturating_add(by.0));
    }

    /// Sets the wall clock alone, as an operator or NTP would.
    pub fn step_to(&self, now: TimestampNs) {
        self.0.lock().0 = now;
    }
}

impl Clock for SimClock {
    fn now(&self) -> TimestampNs {
        self.0.lock().0
    }
    fn monotonic(&self) -> SpanNs {
        self.0.lock().1
    }
}

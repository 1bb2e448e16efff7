//! Writes that this node has taken and not answered yet: since when the oldest of them waits.
//!
//! Tells overload of any kind, whatever is short (processor, disk, network, other nodes): what waits longer than its sender does
//! is work for nobody.

use hindcast_env::Clock;
use hindcast_model::SpanNs;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Clones share it.
#[derive(Clone)]
pub struct UnderWay(Arc<Inner>);

struct Inner {
    clock: Arc<dyn Clock>,
    begun: Mutex<Begun>,
}

/// By number, in the order in which they began.
#[derive(Default)]
struct Begun {
    at: BTreeMap<u64, SpanNs>,
    numbers: u64,
}

/// One of them; it has ended when it is dropped.
pub struct OneUnderWay {
    all: UnderWay,
    number: u64,
}

impl UnderWay {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Inner {
            clock,
            begun: Mutex::default(),
        }))
    }

    pub fn begin(&self) -> OneUnderWay {
        let now = self.0.clock.monotonic();
        let mut begun = self.0.begun.lock();
        begun.numbers += 1;
        let number = begun.numbers;
        begun.at.insert(number, now);
        drop(begun);
        OneUnderWay {
            all: self.clone(),
            number,
        }
    }

    /// For how long the oldest one waits; zero without any.
    pub fn oldest(&self) -> SpanNs {
        let begun = self.0.begun.lock().at.first_key_value().map(|(_, at)| *at);
        begun.map_or(SpanNs::ZERO, |at| {
            SpanNs(self.0.clock.monotonic().0.saturating_sub(at.0))
        })
    }
}

impl Drop for OneUnderWay {
    fn drop(&mut self) {
        self.all.0.begun.lock().at.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_env::SimClock;
    use hindcast_model::TimestampNs;

    #[test]
    fn the_oldest_one_counts_until_it_ends() {
        let clock = Arc::new(SimClock::at(TimestampNs::from_secs(1)));
        let all = UnderWay::new(clock.clone());
        assert_eq!(all.oldest(), SpanNs::ZERO);
        let first = all.begin();
        clock.advance(SpanNs::from_secs(2));
        let second = all.begin();
        clock.advance(SpanNs::from_secs(1));
        assert_eq!(all.oldest(), SpanNs::from_secs(3));
        drop(first);
        assert_eq!(all.oldest(), SpanNs::from_secs(1));
        drop(second);
        assert_eq!(all.oldest(), SpanNs::ZERO);
    }
}

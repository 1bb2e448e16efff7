//! Samples of one series as two columns: what readers fill, kernels read and segments store.

use fearless_simd::{Level, dispatch};
use hindcast_model::{Sample, TimestampNs};

/// Times (event time in nanoseconds) and values, as many of each.
#[derive(Clone, Debug, Default)]
pub struct Points {
    pub times: Vec<i64>,
    pub values: Vec<f64>,
}

impl Points {
    pub fn len(&self) -> usize {
        self.times.len()
    }

    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }

    pub fn clear(&mut self) {
        self.times.clear();
        self.values.clear();
    }

    pub fn push(&mut self, at: i64, value: f64) {
        self.times.push(at);
        self.values.push(value);
    }

    pub fn extend(&mut self, other: &Self) {
        self.times.extend_from_slice(&other.times);
        self.values.extend_from_slice(&other.values);
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = (i64, f64)> {
        self.times.iter().copied().zip(self.values.iter().copied())
    }

    pub fn to_samples(&self) -> Vec<Sample> {
        let sample = |(at, value)| Sample {
            at: TimestampNs(at),
            value,
        };
        self.iter().map(sample).collect()
    }

    /// Keeps those from `start` on for which `keep` says yes to their time.
    pub fn retain_from(&mut self, start: usize, keep: impl Fn(i64) -> bool) {
        let mut kept = start;
        for i in start..self.len() {
            if keep(self.times[i]) {
                self.times[kept] = self.times[i];
                self.values[kept] = self.values[i];
                kept += 1;
            }
        }
        self.times.truncate(kept);
        self.values.truncate(kept);
    }

    /// Puts samples that came in the order of commits into the order of time; of equal times the last stays.
    pub fn settle(&mut self) {
        let (level, times) = (Level::new(), self.times.as_slice());
        if dispatch!(level, _simd => is_ascending(times)) {
            return;
        }
        let mut order: Vec<u32> = (0..self.len() as u32).collect();
        order.sort_by_key(|&i| self.times[i as usize]);
        let is_last = |(n, i): &(usize, &u32)| {
            let next = order.get(n + 1);
            next.is_none_or(|&j| self.times[j as usize] != self.times[**i as usize])
        };
        let kept: Vec<usize> = order
            .iter()
            .enumerate()
            .filter(is_last)
            .map(|(_, &i)| i as usize)
            .collect();
        *self = Self {
            times: kept.iter().map(|&i| self.times[i]).collect(),
            values: kept.iter().map(|&i| self.values[i]).collect(),
        };
    }
}

/// True of nearly all: no branch on the way, so that it becomes vector code.
#[inline(always)]
fn is_ascending(times: &[i64]) -> bool {
    let later = times.get(1..).unwrap_or_default();
    !times.iter().zip(later).fold(false, |any, (t, next)| any | (t >= next))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn settled_points_are_those_of_a_map(times in prop::collection::vec(0..20i64, 0..60)) {
            let mut points = Points::default();
            times.iter().enumerate().for_each(|(i, &at)| points.push(at, i as f64));
            let map: BTreeMap<i64, f64> = points.iter().collect();
            points.settle();
            prop_assert!(points.iter().eq(map.into_iter()));
        }
    }
}

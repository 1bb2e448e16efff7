//! Delta sums and histograms as running totals, per series.
//!
//! A series that is new here, or was forgotten, starts from zero; the caller then also stores a zero at the delta's
//! start, so that the first delta counts and the reset is on record. The totals live on the node that took the
//! deltas: a sender that turns to another node, or a restart, is a reset, which `rate` and `increase` handle.
//!
//! A point that starts after the last one ended leaves a gap: its sender restarted, or deltas were lost. The total
//! starts from zero again (OpenTelemetry data model, delta to cumulative).
//!
//! A point at the time of the last one is a retry: it gives the total again and adds nothing. An older one is
//! refused: the totals that followed it are stored already.

use crate::Refusal;
use crate::histogram::Buckets;
use hindcast_model::{Histogram, Labels, SpanNs, TenantId, TimestampNs};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Series (or histogram buckets) summed on one node.
pub const DELTA_SERIES_MAX: usize = 200_000;
/// A series that was quiet for so long may be forgotten when room is needed.
const QUIET_SPAN_MAX: SpanNs = SpanNs::from_secs(3600);
/// How often room is looked for.
const SWEEP_SPAN: SpanNs = SpanNs::from_secs(60);

/// A number, a native histogram, or a classic one whose buckets hold what lies between two bounds (not yet cumulated).
#[derive(Clone, Debug, PartialEq)]
pub enum Amount {
    Number(f64),
    Native(Histogram),
    Histogram {
        buckets: Buckets,
        count: f64,
        sum: Option<f64>,
    },
}

impl Amount {
    fn add(&mut self, delta: &Self) {
        match (&mut *self, delta) {
            (Self::Number(total), Self::Number(d)) => *total += d,
            (
                Self::Histogram { buckets, count, sum },
                Self::Histogram {
                    buckets: more,
                    count: c,
                    sum: s,
                },
            ) => {
                for (bound, n) in more {
                    *buckets.entry(*bound).or_default() += n;
                }
                *count += c;
                *sum = sum.zip(*s).map(|(a, b)| a + b);
            }
            (Self::Native(total), Self::Native(d)) => {
                // Both have a rule for their bounds.
                *total = total.plus(d).map_or_else(|_| d.clone(), |sum| sum.histogram);
            }
            // The metric changed its form: its series start anew.
            (total, delta) => *total = delta.clone(),
        }
    }

    fn weight(&self) -> usize {
        match self {
            Self::Number(_) => 1,
            Self::Native(h) => h.weight(),
            Self::Histogram { buckets, .. } => 2 + buckets.len(),
        }
    }
}

#[derive(Clone)]
struct Running {
    last: TimestampNs,
    touched: TimestampNs,
    total: Amount,
}

/// A running total, and whether it starts here.
#[derive(Clone, Debug, PartialEq)]
pub struct Total {
    pub amount: Amount,
    pub starts: bool,
}

/// Totals as they were before some deltas were added; `None`: there was none.
#[derive(Default)]
pub struct Before(BTreeMap<(TenantId, Labels), Option<Running>>);

/// Running totals of delta series. The shell owns one per node.
pub struct DeltaState {
    series: BTreeMap<(TenantId, Labels), Running>,
    weight: usize,
    /// Kept while what is added may have to be taken back.
    before: Option<Before>,
    series_max: usize,
    swept: Option<TimestampNs>,
}

impl Default for DeltaState {
    fn default() -> Self {
        Self::new(DELTA_SERIES_MAX)
    }
}

impl DeltaState {
    pub fn new(series_max: usize) -> Self {
        Self {
            series: BTreeMap::new(),
            weight: 0,
            before: None,
            series_max,
            swept: None,
        }
    }

    /// Series and buckets held.
    pub fn size(&self) -> usize {
        self.weight
    }

    /// Does something of which it may come out later that it is done again, from the same deltas. What it gives beside is for
    /// [`Self::take_back`] then.
    pub fn keeping<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> (T, Before) {
        self.before = Some(Before::default());
        let done = work(self);
        (done, self.before.take().unwrap_or_default())
    }

    /// Makes totals what they were. What others added to the same series meanwhile goes, too.
    pub fn take_back(&mut self, before: Before) {
        for (key, was) in before.0 {
            let now = match was {
                Some(was) => {
                    self.weight += was.total.weight();
                    self.series.insert(key, was)
                }
                None => self.series.remove(&key),
            };
            self.weight -= now.map_or(0, |now| now.total.weight());
        }
    }

    /// Adds a delta of the time from `start` (`None`: not told) to `at`, and gives the total.
    pub fn add(
        &mut self,
        tenant: &TenantId,
        labels: &Labels,
        (start, at): (Option<TimestampNs>, TimestampNs),
        delta: &Amount,
        now: TimestampNs,
    ) -> Result<Total, Refusal> {
        let key = (tenant.clone(), labels.clone());
        if let Some(Before(before)) = &mut self.before
            && !before.contains_key(&key)
        {
            before.insert(key.clone(), self.series.get(&key).cloned());
        }
        if let Some(running) = self.series.get_mut(&key) {
            running.touched = now;
            let gap = start.is_some_and(|s| s > running.last) && at > running.last;
            match at.cmp(&running.last) {
                Ordering::Less => return Err(Refusal::DeltaOutOfOrder { at, last: running.last }),
                Ordering::Equal => {}
                Ordering::Greater => {
                    let before = running.total.weight();
                    if gap {
                        running.total = delta.clone();
                    } else {
                        running.total.add(delta);
                    }
                    running.last = at;
                    self.weight = self.weight + running.total.weight() - before;
                }
            }
            return Ok(Total {
                amount: running.total.clone(),
                starts: gap,
            });
        }
        let weight = delta.weight();
        if self.weight + weight > self.series_max {
            self.sweep(now);
        }
        if self.weight + weight > self.series_max {
            return Err(Refusal::TooManyDeltas {
                series_max: self.series_max,
            });
        }
        self.weight += weight;
        let total = delta.clone();
        self.series.insert(
            key,
            Running {
                last: at,
                touched: now,
                total: total.clone(),
            },
        );
        Ok(Total {
            amount: total,
            starts: true,
        })
    }

    fn sweep(&mut self, now: TimestampNs) {
        if self.swept.is_some_and(|at| now.since(at) < SWEEP_SPAN) {
            return;
        }
        self.swept = Some(now);
        self.series.retain(|_, r| now.since(r.touched) < QUIET_SPAN_MAX);
        self.weight = self.series.values().map(|r| r.total.weight()).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use hindcast_model::resource::metric;

    #[test]
    fn deltas_that_are_read_a_second_time_come_to_the_same_totals() {
        let mut state = DeltaState::new(10);
        let add = |state: &mut DeltaState, name: &str, secs: i64, delta: f64| {
            let (labels, at) = (metric(name, &[]), TimestampNs::from_secs(secs));
            let total = state.add(&TenantId::default(), &labels, (None, at), &Amount::Number(delta), at);
            total.map(|t| t.amount)
        };
        add(&mut state, "a", 10, 1.0).unwrap();
        let size = state.size();
        let read = |state: &mut DeltaState| {
            state.keeping(|state| {
                let points = [("a", 20, 2.0), ("b", 20, 5.0), ("a", 30, 4.0)];
                points.map(|(name, at, delta)| add(state, name, at, delta))
            })
        };
        let (first, before) = read(&mut state);
        assert!(first.iter().all(Result::is_ok));
        state.take_back(before);
        assert_eq!(state.size(), size);
        assert_eq!(read(&mut state).0, first);
    }
    use proptest::prelude::*;

    /// Each line: time (or start-time), series, delta.
    fn check(series_max: usize, script: &str, expect: Expect) {
        let mut state = DeltaState::new(series_max);
        let mut out = String::new();
        for step in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let parts: Vec<&str> = step.split(' ').collect();
            let secs = |t: &str| TimestampNs::from_secs(t.parse().unwrap());
            let (start, at) = match parts[0].split_once('-') {
                Some((start, at)) => (Some(secs(start)), secs(at)),
                None => (None, secs(parts[0])),
            };
            let delta = Amount::Number(parts[2].parse().unwrap());
            let got = state.add(&TenantId::default(), &metric(parts[1], &[]), (start, at), &delta, at);
            let got = match got {
                Ok(Total {
                    amount: Amount::Number(n),
                    starts,
                }) => format!("{n}{}", if starts { " from zero" } else { "" }),
                Ok(other) => format!("{other:?}"),
                Err(e) => e.code().to_owned(),
            };
            out += &format!("{step} -> {got}\n");
        }
        expect.assert_eq(&out);
    }

    #[test]
    fn deltas_add_up_and_a_retry_adds_nothing() {
        check(
            2,
            "
            10 a 5
            20 a 2
            20 a 2
            15 a 1
            30 b 1
            31 c 1
            4000 a 1
            4200 c 7
            ",
            expect![[r#"
                10 a 5 -> 5 from zero
                20 a 2 -> 7
                20 a 2 -> 7
                15 a 1 -> delta_out_of_order
                30 b 1 -> 1 from zero
                31 c 1 -> too_many_deltas
                4000 a 1 -> 8
                4200 c 7 -> 7 from zero
            "#]],
        );
    }

    #[test]
    fn a_sender_that_restarts_counts_from_zero() {
        check(
            2,
            "
            0-10 a 5
            10-20 a 2
            25-30 a 4
            30-40 a 1
            25-40 a 9
            ",
            expect![[r#"
                0-10 a 5 -> 5 from zero
                10-20 a 2 -> 7
                25-30 a 4 -> 4 from zero
                30-40 a 1 -> 5
                25-40 a 9 -> 5
            "#]],
        );
    }

    proptest! {
        #[test]
        fn the_total_is_the_sum_and_the_bound_holds(deltas in proptest::collection::vec((0u8..8, 0u32..1000), 0..100)) {
            let mut state = DeltaState::new(5);
            let mut sums = BTreeMap::<u8, f64>::new();
            for (i, (series, delta)) in deltas.into_iter().enumerate() {
                let labels = metric("m", &[("s", &series.to_string())]);
                let at = TimestampNs::from_secs(i as i64);
                match state.add(&TenantId::default(), &labels, (None, at), &Amount::Number(delta.into()), at) {
                    Ok(total) => {
                        *sums.entry(series).or_default() += f64::from(delta);
                        prop_assert_eq!(total.amount, Amount::Number(sums[&series]));
                    }
                    Err(e) => prop_assert_eq!(e, Refusal::TooManyDeltas { series_max: 5 }),
                }
                prop_assert!(state.size() <= 5);
            }
        }
    }
}

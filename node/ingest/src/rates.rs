//! How fast tenants write: buckets of tokens, one per tenant and kind.
//!
//! Pure: the buckets, what a request takes, and the time in; whether it may, and when it may come again, out.
//!
//! A bucket holds at most its burst and gains its rate. A request is let in whole or not at all: when there are tokens for it, or when the
//! bucket is full; in the second case the bucket owes what was missing. So a request that is larger than the burst is possible, and:
//!
//! - over any span a tenant is let in at most its burst, its rate times the span, and what its largest request has beyond the burst;
//! - who waits as long as told is let in then, unless others of the tenant came first.

use crate::tenant_limits::Rate;
use hindcast_model::{SpanNs, TenantId};
use std::collections::HashMap;

/// Tenants with buckets of their own, for as long as these are not full; further ones share one.
pub const BUCKETS_MAX: usize = 10_000;
const SECOND: u128 = 1_000_000_000;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Counted {
    Samples,
    LogBytes,
}

impl Counted {
    pub const ALL: [Self; 2] = [Self::Samples, Self::LogBytes];

    /// As the file of limits calls it.
    pub const fn limit(self) -> &'static str {
        match self {
            Self::Samples => "samples_per_second",
            Self::LogBytes => "log_bytes_per_second",
        }
    }

    pub const fn unit(self) -> &'static str {
        match self {
            Self::Samples => "samples",
            Self::LogBytes => "bytes of lines",
        }
    }
}

/// Tokens times 10^9, so that a nanosecond's worth of any rate is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bucket {
    tokens: i128,
    /// Monotonic.
    at: SpanNs,
}

/// The rate of one node: a share of the cluster's, rounded up so that it is never nothing.
pub fn share(rate: Rate, nodes: usize) -> Rate {
    let nodes = nodes.max(1) as u64;
    Rate {
        per_second: rate.per_second.div_ceil(nodes),
        burst: rate.burst.div_ceil(nodes),
    }
}

fn scaled(tokens: u64) -> i128 {
    i128::from(tokens) * SECOND as i128
}

impl Bucket {
    fn full(rate: Rate, now: SpanNs) -> Self {
        Self {
            tokens: scaled(rate.burst),
            at: now,
        }
    }

    /// What came since; also when the rate changed meanwhile.
    fn fill(&mut self, rate: Rate, now: SpanNs) {
        let span = now.0.saturating_sub(self.at.0);
        self.at = self.at.max(now);
        let gained = i128::from(span) * i128::from(rate.per_second);
        self.tokens = self.tokens.saturating_add(gained).min(scaled(rate.burst));
    }

    /// How long it takes until so many are there, or the bucket is full.
    fn missing(&self, rate: Rate, wanted: u64) -> SpanNs {
        let needed = scaled(wanted.min(rate.burst)) - self.tokens;
        if needed <= 0 {
            return SpanNs(0);
        }
        let span = needed.unsigned_abs().div_ceil(u128::from(rate.per_second));
        SpanNs(u64::try_from(span).unwrap_or(u64::MAX))
    }
}

/// The buckets of one node.
#[derive(Debug)]
pub struct Buckets {
    by_tenant: HashMap<TenantId, [Option<Bucket>; Counted::ALL.len()]>,
    /// Of tenants that found no room.
    others: [Option<Bucket>; Counted::ALL.len()],
    tenants_max: usize,
}

impl Default for Buckets {
    fn default() -> Self {
        Self::new(BUCKETS_MAX)
    }
}

/// Rates by what they count; `None`: free.
pub type Rates = [Option<Rate>; Counted::ALL.len()];
/// What a request takes, by what is counted.
pub type Costs = [u64; Counted::ALL.len()];

/// A request that came too early. Nothing was taken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooFast {
    pub counted: Counted,
    pub cost: u64,
    pub retry_after: SpanNs,
}

impl Buckets {
    pub fn new(tenants_max: usize) -> Self {
        Self {
            by_tenant: HashMap::new(),
            others: [None; Counted::ALL.len()],
            tenants_max,
        }
    }

    /// Tenants whose buckets are held.
    pub fn len(&self) -> usize {
        self.by_tenant.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_tenant.is_empty()
    }

    /// Takes what a request costs, of all kinds or of none. `rates` are those of this node; `now` is monotonic.
    pub fn take(&mut self, tenant: &TenantId, rates: &Rates, costs: &Costs, now: SpanNs) -> Result<(), TooFast> {
        let is_counted = |i: usize| rates[i].is_some() && costs[i] > 0;
        if !(0..costs.len()).any(is_counted) {
            return Ok(());
        }
        if !self.by_tenant.contains_key(tenant) && self.by_tenant.len() >= self.tenants_max {
            self.forget_old(now);
        }
        let has_room = self.by_tenant.len() < self.tenants_max;
        let buckets = match self.by_tenant.get_mut(tenant) {
            Some(own) => own,
            None if has_room => self.by_tenant.entry(tenant.clone()).or_default(),
            None => &mut self.others,
        };
        let mut longest: Option<TooFast> = None;
        for (i, counted) in Counted::ALL.into_iter().enumerate() {
            let Some(rate) = rates[i].filter(|_| costs[i] > 0) else {
                continue;
            };
            let bucket = buckets[i].get_or_insert_with(|| Bucket::full(rate, now));
            bucket.fill(rate, now);
            let retry_after = bucket.missing(rate, costs[i]);
            if retry_after.0 > 0 && longest.is_none_or(|l| l.retry_after < retry_after) {
                longest = Some(TooFast {
                    counted,
                    cost: costs[i],
                    retry_after,
                });
            }
        }
        if let Some(too_fast) = longest {
            return Err(too_fast);
        }
        for (i, bucket) in buckets.iter_mut().enumerate() {
            if let Some(bucket) = bucket.as_mut().filter(|_| is_counted(i)) {
                bucket.tokens = bucket.tokens.saturating_sub(scaled(costs[i]));
            }
        }
        Ok(())
    }

    /// Gives back what a request cost that was not stored: it comes again, and is not to pay twice.
    pub fn give_back(&mut self, tenant: &TenantId, costs: &Costs) {
        let buckets = self.by_tenant.get_mut(tenant).unwrap_or(&mut self.others);
        for (bucket, cost) in buckets.iter_mut().zip(costs) {
            if let Some(bucket) = bucket {
                // The next one that asks fills it, and no further than to its brim.
                bucket.tokens = bucket.tokens.saturating_add(scaled(*cost));
            }
        }
    }

    /// Forgets those that nobody asked for in a while: new ones would be like them, or fuller by a burst at most. Who owed then is
    /// remembered for longer, and not for good: else new tenants would share one bucket some day.
    fn forget_old(&mut self, now: SpanNs) {
        const IDLE: u64 = 60 * 1_000_000_000;
        const OWING: u64 = 3_600 * 1_000_000_000;
        self.by_tenant.retain(|_, buckets| {
            let mut held = buckets.iter().flatten();
            held.any(|b| now.0.saturating_sub(b.at.0) < if b.tokens < 0 { OWING } else { IDLE })
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    fn ms(n: u64) -> SpanNs {
        SpanNs::from_ms(n)
    }

    fn of(samples: Option<(u64, u64)>, log_bytes: Option<(u64, u64)>) -> Rates {
        [samples, log_bytes].map(|r| r.map(|(per_second, burst)| Rate { per_second, burst }))
    }

    /// Lines of a time in milliseconds, samples, and bytes of lines.
    fn check(rates: Rates, script: &str, expect: Expect) {
        let mut buckets = Buckets::default();
        let mut out = String::new();
        for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let numbers: Vec<u64> = line.split_whitespace().map(|n| n.parse().unwrap()).collect();
            let taken = buckets.take(&TenantId::default(), &rates, &[numbers[1], numbers[2]], ms(numbers[0]));
            out += &match taken {
                Ok(()) => format!("{line}: taken\n"),
                Err(e) => format!("{line}: {} in {}\n", e.counted.limit(), e.retry_after),
            };
        }
        expect.assert_eq(&out);
    }

    #[test]
    fn a_burst_is_taken_at_once_and_the_rest_at_the_rate() {
        check(
            of(Some((10, 20)), None),
            "
            0 15 999999
            0 6 0
            100 6 0
            100 1 0
            1000 9 0
            60000 20 0
            60000 1 0
            ",
            expect![[r#"
                0 15 999999: taken
                0 6 0: samples_per_second in 100ms
                100 6 0: taken
                100 1 0: samples_per_second in 100ms
                1000 9 0: taken
                60000 20 0: taken
                60000 1 0: samples_per_second in 100ms
            "#]],
        );
    }

    #[test]
    fn a_request_above_the_burst_waits_for_a_full_bucket_and_those_after_it_for_what_it_owes() {
        check(
            of(Some((10, 20)), None),
            "
            0 1 0
            0 50 0
            100 50 0
            100 1 0
            3199 1 0
            3200 1 0
            ",
            expect![[r#"
                0 1 0: taken
                0 50 0: samples_per_second in 100ms
                100 50 0: taken
                100 1 0: samples_per_second in 3s100ms
                3199 1 0: samples_per_second in 1ms
                3200 1 0: taken
            "#]],
        );
    }

    #[test]
    fn what_one_kind_refuses_takes_nothing_of_the_other() {
        check(
            of(Some((10, 10)), Some((100, 100))),
            "
            0 0 100
            0 10 1
            0 10 0
            1000 0 100
            ",
            expect![[r#"
                0 0 100: taken
                0 10 1: log_bytes_per_second in 10ms
                0 10 0: taken
                1000 0 100: taken
            "#]],
        );
    }

    #[test]
    fn nodes_share_a_rate_and_none_is_left_with_nothing() {
        let rate = Rate {
            per_second: 10,
            burst: 3,
        };
        assert_eq!(share(rate, 0), rate);
        assert_eq!(
            share(rate, 3),
            Rate {
                per_second: 4,
                burst: 1
            }
        );
        assert_eq!(
            share(rate, 100),
            Rate {
                per_second: 1,
                burst: 1
            }
        );
    }

    #[test]
    fn tenants_beyond_the_bound_share_a_bucket_until_others_are_idle() {
        let mut buckets = Buckets::new(2);
        let rates = of(Some((1, 5)), None);
        let mut take = |tenant: &str, n, at| {
            let taken = buckets
                .take(&TenantId::new(tenant).unwrap(), &rates, &[n, 0], at)
                .is_ok();
            (taken, buckets.len())
        };
        assert_eq!(take("a", 5, ms(0)), (true, 1));
        assert_eq!(take("b", 9, ms(0)), (true, 2));
        assert_eq!(take("c", 5, ms(0)), (true, 2));
        assert_eq!(take("d", 1, ms(0)), (false, 2), "c took what they share");
        assert_eq!(take("a", 1, ms(0)), (false, 2), "its own");
        assert_eq!(
            take("d", 5, ms(61_000)),
            (true, 2),
            "a is idle and goes, b owes still by its own book"
        );
        assert_eq!(take("e", 5, ms(200_000)), (true, 2));
    }

    proptest! {
        /// Over any span, whatever comes when.
        #[test]
        fn never_more_than_the_burst_the_rate_and_the_largest_beyond_the_burst(
            per_second in 1u64..50,
            burst in 1u64..100,
            steps in prop::collection::vec((0u64..2000, 1u64..150), 1..60),
        ) {
            let (mut buckets, rates) = (Buckets::default(), of(Some((per_second, burst)), None));
            let (mut at, mut taken) = (0, vec![]);
            for (pause, n) in steps {
                at += pause;
                if buckets.take(&TenantId::default(), &rates, &[n, 0], ms(at)).is_ok() {
                    taken.push((at, n));
                }
            }
            for i in 0..taken.len() {
                let (mut sum, mut beyond) = (0, 0);
                for (at, n) in &taken[i..] {
                    sum += n;
                    beyond = beyond.max(n.saturating_sub(burst));
                    let allowed = burst + beyond + (per_second * (at - taken[i].0)).div_ceil(1000);
                    prop_assert!(sum <= allowed, "{sum} of {allowed}");
                }
            }
        }

        #[test]
        fn who_waits_as_told_is_let_in_and_no_earlier(
            per_second in 1u64..1_000_000_000,
            burst in 1u64..1_000_000,
            first in 1u64..10_000_000,
            n in 1u64..10_000_000,
        ) {
            let rates = of(None, Some((per_second, burst)));
            let mut buckets = Buckets::default();
            let tenant = TenantId::default();
            buckets.take(&tenant, &rates, &[0, first], ms(5)).unwrap();
            if let Err(told) = buckets.take(&tenant, &rates, &[0, n], ms(5)) {
                let at = SpanNs(ms(5).0 + told.retry_after.0);
                prop_assert!(buckets.take(&tenant, &rates, &[0, n], SpanNs(at.0 - 1)).is_err());
                prop_assert_eq!(buckets.take(&tenant, &rates, &[0, n], at), Ok(()));
            }
        }
    }
}

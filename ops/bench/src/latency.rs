//! Percentiles of latencies: of very many in little space, and of a few exactly.
//!
//! Pure. Microseconds. A bucket is at most 1/64 of its value wide; a percentile is the upper end of its bucket, or the
//! largest latency seen when that is less.

const SUB_BITS: u32 = 6;
const SUB: u64 = 1 << SUB_BITS;
const BUCKETS: usize = ((64 - SUB_BITS as usize) + 1) << SUB_BITS;

#[derive(Clone, Debug)]
pub struct Latencies {
    counts: Vec<u64>,
    count: u64,
    us_max: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            counts: vec![0; BUCKETS],
            count: 0,
            us_max: 0,
        }
    }
}

fn bucket(us: u64) -> usize {
    if us < SUB {
        return us as usize;
    }
    let shift = us.ilog2() - SUB_BITS;
    (((shift as usize) + 1) << SUB_BITS) + ((us >> shift) - SUB) as usize
}

fn bucket_end(bucket: usize) -> u64 {
    let (round, sub) = (bucket >> SUB_BITS, bucket as u64 & (SUB - 1));
    match round {
        0 => sub,
        // One less than the next bucket's first; the last one ends where u64 does.
        _ => (u128::from(SUB + sub + 1) << (round - 1))
            .saturating_sub(1)
            .min(u128::from(u64::MAX)) as u64,
    }
}

impl Latencies {
    pub fn note(&mut self, us: u64) {
        self.counts[bucket(us)] += 1;
        self.count += 1;
        self.us_max = self.us_max.max(us);
    }

    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.count += other.count;
        self.us_max = self.us_max.max(other.us_max);
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn us_max(&self) -> u64 {
        self.us_max
    }

    /// The nearest rank; 0 when there is none. `share` is of 1.
    pub fn percentile_us(&self, share: f64) -> u64 {
        let mut left = rank(self.count, share);
        if left == 0 {
            return 0;
        }
        for (n, count) in self.counts.iter().enumerate() {
            left = left.saturating_sub(*count);
            if left == 0 {
                return bucket_end(n).min(self.us_max);
            }
        }
        unreachable!("the ranks are counted from the buckets")
    }
}

/// From 1; 0 when there is nothing to rank.
fn rank(count: u64, share: f64) -> u64 {
    ((count as f64 * share).ceil() as u64).clamp(count.min(1), count)
}

/// The nearest rank of a few values, exactly; 0 when there is none.
pub fn percentile_of(us: &[u64], share: f64) -> u64 {
    let mut sorted = us.to_vec();
    sorted.sort_unstable();
    match rank(sorted.len() as u64, share) {
        0 => 0,
        rank => sorted[rank as usize - 1],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn percentiles_of_a_few_are_the_nearest_rank() {
        let us: Vec<u64> = (1..=15).rev().collect();
        assert_eq!(percentile_of(&us, 0.5), 8);
        assert_eq!(percentile_of(&us, 0.95), 15);
        assert_eq!(percentile_of(&[], 0.5), 0);
        assert_eq!(Latencies::default().percentile_us(0.99), 0);
    }

    #[test]
    fn the_longest_latency_has_a_bucket() {
        let mut latencies = Latencies::default();
        latencies.note(u64::MAX);
        assert_eq!(latencies.percentile_us(0.5), u64::MAX);
    }

    proptest! {
        #[test]
        fn a_percentile_is_off_by_a_64th_at_most(
            us in proptest::collection::vec(prop_oneof![0u64..200, 0u64..10_000_000, any::<u64>()], 1..300),
            share in 0.0f64..=1.0,
            cut in any::<prop::sample::Index>(),
        ) {
            let (mut all, mut rest) = (Latencies::default(), Latencies::default());
            let cut = cut.index(us.len());
            us[..cut].iter().for_each(|u| all.note(*u));
            us[cut..].iter().for_each(|u| rest.note(*u));
            all.add(&rest);
            let (exact, near) = (percentile_of(&us, share), all.percentile_us(share));
            prop_assert!(near >= exact, "{} < {}", near, exact);
            prop_assert!(near - exact <= exact / 64, "{} is far from {}", near, exact);
        }
    }
}

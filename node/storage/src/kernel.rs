//! Functions over the samples of one window, with one result to the bit, whatever pages or chunks they come in.
//!
//! The rule (`reference` states it as plainly as can be): 8 lanes count from the first sample of the *window*; sample
//! `i` goes to lane `i % 8`; at the end lanes are combined in lane order. The functions here do the same in chunks of
//! 8, which compilers turn into vector code, and never reorder what a lane adds.
//!
//! The caller leaves out staleness markers; other NaNs are values. `sum` and `increase` of nothing are `None`, like the
//! rest.

/// How many lanes there are, for good: sums depend on it.
pub const LANES: usize = 8;

type Lanes = [f64; LANES];

/// Chunks of a window as runs of up to 8 samples that all start at lane 0, save the first of each chunk.
fn fold<'a>(
    chunks: impl Iterator<Item = &'a [f64]>,
    mut lanes: Lanes,
    each: impl Fn(&mut f64, f64) + Copy,
) -> (Lanes, usize) {
    let mut n = 0;
    for chunk in chunks {
        let lead = ((LANES - n % LANES) % LANES).min(chunk.len());
        let (head, rest) = chunk.split_at(lead);
        for (lane, &v) in lanes[n % LANES..].iter_mut().zip(head) {
            each(lane, v);
        }
        let mut eights = rest.chunks_exact(LANES);
        for eight in &mut eights {
            for (lane, &v) in lanes.iter_mut().zip(eight) {
                each(lane, v);
            }
        }
        for (lane, &v) in lanes.iter_mut().zip(eights.remainder()) {
            each(lane, v);
        }
        n += chunk.len();
    }
    (lanes, n)
}

fn add(lane: &mut f64, v: f64) {
    *lane += v;
}

/// NaN gives way to any number.
fn lower(lane: &mut f64, v: f64) {
    if v < *lane || lane.is_nan() {
        *lane = v;
    }
}

fn raise(lane: &mut f64, v: f64) {
    if v > *lane || lane.is_nan() {
        *lane = v;
    }
}

fn total(lanes: Lanes) -> f64 {
    lanes[1..].iter().fold(lanes[0], |sum, lane| sum + lane)
}

fn best(lanes: Lanes, n: usize, each: impl Fn(&mut f64, f64)) -> Option<f64> {
    let (first, rest) = lanes[..n.min(LANES)].split_first()?;
    let mut best = *first;
    rest.iter().for_each(|&v| each(&mut best, v));
    Some(best)
}

pub fn sum<'a>(chunks: impl Iterator<Item = &'a [f64]>) -> Option<f64> {
    let (lanes, n) = fold(chunks, [0.0; LANES], add);
    (n > 0).then(|| total(lanes))
}

/// The sum, divided by the count.
pub fn avg<'a>(chunks: impl Iterator<Item = &'a [f64]>) -> Option<f64> {
    let (lanes, n) = fold(chunks, [0.0; LANES], add);
    (n > 0).then(|| total(lanes) / n as f64)
}

pub fn min<'a>(chunks: impl Iterator<Item = &'a [f64]>) -> Option<f64> {
    let (lanes, n) = fold(chunks, [f64::NAN; LANES], lower);
    best(lanes, n, lower)
}

pub fn max<'a>(chunks: impl Iterator<Item = &'a [f64]>) -> Option<f64> {
    let (lanes, n) = fold(chunks, [f64::NAN; LANES], raise);
    best(lanes, n, raise)
}

pub fn count<'a>(chunks: impl Iterator<Item = &'a [f64]>) -> usize {
    chunks.map(<[f64]>::len).sum()
}

pub fn last<'a>(chunks: impl Iterator<Item = &'a [f64]>) -> Option<f64> {
    chunks.filter_map(|c| c.last()).last().copied()
}

/// What a counter lost: where it fell, the value before the fall. `0.0` is added where it did not fall.
fn lost(before: f64, now: f64) -> f64 {
    if now < before { before } else { 0.0 }
}

/// How much a counter grew over the window, resets aside: last - first + what was lost at resets.
/// Not extrapolated to the window's ends: that is PromQL's own step.
pub fn increase<'a>(chunks: impl Iterator<Item = &'a [f64]>) -> Option<f64> {
    let (mut lanes, mut n): (Lanes, usize) = ([0.0; LANES], 0);
    let mut ends: Option<(f64, f64)> = None;
    for chunk in chunks.filter(|c| !c.is_empty()) {
        let (first, before) = ends.unwrap_or((chunk[0], chunk[0]));
        lanes[n % LANES] += lost(before, chunk[0]);
        // Two shifted views of one slice: no step waits for the one before.
        let (befores, nows) = (&chunk[..chunk.len() - 1], &chunk[1..]);
        let at = n + 1;
        let lead = ((LANES - at % LANES) % LANES).min(nows.len());
        for (i, lane) in lanes[at % LANES..].iter_mut().enumerate().take(lead) {
            *lane += lost(befores[i], nows[i]);
        }
        let (befores, nows) = (&befores[lead..], &nows[lead..]);
        for (b, v) in befores.chunks(LANES).zip(nows.chunks(LANES)) {
            for ((lane, &b), &v) in lanes.iter_mut().zip(b).zip(v) {
                *lane += lost(b, v);
            }
        }
        n += chunk.len();
        ends = Some((first, chunk[chunk.len() - 1]));
    }
    ends.map(|(first, last)| (last - first) + total(lanes))
}

/// The rule itself, one sample after the other. What the fast forms are compared with.
pub mod reference {
    use super::{LANES, best, lost, lower, raise, total};

    fn lanes(window: &[f64], start: f64, each: impl Fn(&mut f64, f64)) -> [f64; LANES] {
        let mut lanes = [start; LANES];
        for (i, &v) in window.iter().enumerate() {
            each(&mut lanes[i % LANES], v);
        }
        lanes
    }

    pub fn sum(window: &[f64]) -> Option<f64> {
        (!window.is_empty()).then(|| total(lanes(window, 0.0, |lane, v| *lane += v)))
    }
    pub fn avg(window: &[f64]) -> Option<f64> {
        sum(window).map(|s| s / window.len() as f64)
    }
    pub fn min(window: &[f64]) -> Option<f64> {
        best(lanes(window, f64::NAN, lower), window.len(), lower)
    }
    pub fn max(window: &[f64]) -> Option<f64> {
        best(lanes(window, f64::NAN, raise), window.len(), raise)
    }
    pub fn count(window: &[f64]) -> usize {
        window.len()
    }
    pub fn last(window: &[f64]) -> Option<f64> {
        window.last().copied()
    }
    pub fn increase(window: &[f64]) -> Option<f64> {
        let (first, last) = (window.first()?, window.last()?);
        let mut lanes = [0.0; LANES];
        for i in 0..window.len() {
            lanes[i % LANES] += lost(window[i.saturating_sub(1)], window[i]);
        }
        Some((last - first) + total(lanes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Whole = fn(&[f64]) -> Option<f64>;

    fn split<'a>(window: &'a [f64], bounds: &[usize]) -> Vec<&'a [f64]> {
        let mut bounds: Vec<usize> = bounds.iter().map(|b| b % (window.len() + 1)).collect();
        bounds.extend([0, window.len()]);
        bounds.sort_unstable();
        bounds.windows(2).map(|b| &window[b[0]..b[1]]).collect()
    }

    fn values() -> impl Strategy<Value = Vec<f64>> {
        let value = prop_oneof![
            4 => -1e6..1e6f64,
            2 => (0u32..50).prop_map(f64::from),
            1 => any::<f64>(),
            1 => prop_oneof![Just(-0.0), Just(f64::NAN), Just(f64::INFINITY), Just(1e300), Just(1e-300)],
        ];
        prop::collection::vec(value, 0..100)
    }

    /// NaNs are one: which payload survives an addition is the processor's choice.
    fn bits(v: Option<f64>) -> Option<u64> {
        v.map(|v| if v.is_nan() { f64::NAN.to_bits() } else { v.to_bits() })
    }

    proptest! {
        #[test]
        fn any_split_of_a_window_gives_the_same_bits(
            window in values(), bounds in prop::collection::vec(0usize..100, 0..6),
        ) {
            let chunks = split(&window, &bounds);
            let fast = [
                sum(chunks.iter().copied()), avg(chunks.iter().copied()), min(chunks.iter().copied()),
                max(chunks.iter().copied()), last(chunks.iter().copied()), increase(chunks.iter().copied()),
            ];
            let plain: [Whole; 6] = [
                reference::sum, reference::avg, reference::min, reference::max, reference::last, reference::increase,
            ];
            for (fast, plain) in fast.into_iter().zip(plain) {
                prop_assert_eq!(bits(fast), bits(plain(&window)));
            }
            prop_assert_eq!(count(chunks.iter().copied()), reference::count(&window));
        }
    }

    #[test]
    fn a_counter_that_starts_again_loses_nothing() {
        let window = [5.0, 7.0, 1.0, 4.0, 0.0, 2.0];
        assert_eq!(increase([&window[..]].into_iter()), Some(2.0 + 1.0 + 3.0 + 0.0 + 2.0));
        assert_eq!(increase([].into_iter()), None);
        assert_eq!(max([&[f64::NAN, 1.0, -2.0][..]].into_iter()), Some(1.0));
        assert_eq!(min([&[f64::NAN, 1.0, -2.0][..]].into_iter()), Some(-2.0));
    }
}

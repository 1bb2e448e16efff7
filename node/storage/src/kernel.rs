//! Functions over the samples of one window, with one result to the bit, whatever pages or chunks they come in.
//!
//! The rule (`reference` states it as plainly as can be): 8 lanes count from the first sample of the *window*; sample
//! `i` goes to lane `i % 8`; at the end lanes are combined in lane order. The functions here do the same in chunks of
//! 8, which compilers turn into vector code, and never reorder what a lane adds.
//!
//! The caller leaves out staleness markers; other NaNs are values. `sum` and `increase` of nothing are `None`, like the
//! rest.

use fearless_simd::{Level, dispatch};

/// How many lanes there are, for good: sums depend on it.
pub const LANES: usize = 8;

type Lanes = [f64; LANES];

/// Chunks of a window, one after the other.
fn fold<'a>(
    chunks: impl Iterator<Item = &'a [f64]>,
    mut lanes: Lanes,
    each: impl Fn(&mut f64, f64) + Copy,
) -> (Lanes, usize) {
    let mut n = 0;
    for chunk in chunks {
        fold_chunk(&mut lanes, n, chunk, each);
        n += chunk.len();
    }
    (lanes, n)
}

/// A chunk that begins at sample `n` of the window: runs of up to 8 samples that all start at lane 0, save the first.
#[inline(always)]
fn fold_chunk(lanes: &mut Lanes, n: usize, chunk: &[f64], each: impl Fn(&mut f64, f64)) {
    let lead = ((LANES - n % LANES) % LANES).min(chunk.len());
    let (head, rest) = chunk.split_at(lead);
    for (lane, &v) in lanes[n % LANES..].iter_mut().zip(head) {
        each(lane, v);
    }
    let (eights, tail) = rest.as_chunks::<LANES>();
    for eight in eights {
        for (lane, &v) in lanes.iter_mut().zip(eight) {
            each(lane, v);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(tail) {
        each(lane, v);
    }
}

#[inline(always)]
fn add(lane: &mut f64, v: f64) {
    *lane += v;
}

/// NaN gives way to any number.
#[inline(always)]
fn lower(lane: &mut f64, v: f64) {
    if v < *lane || lane.is_nan() {
        *lane = v;
    }
}

#[inline(always)]
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
#[inline(always)]
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
        lost_chunk(&mut lanes, n, before, chunk);
        n += chunk.len();
        ends = Some((first, chunk[chunk.len() - 1]));
    }
    ends.map(|(first, last)| (last - first) + total(lanes))
}

/// Adds what a counter lost in a chunk that begins at sample `n` of the window, behind a sample of `before`.
#[inline(always)]
fn lost_chunk(lanes: &mut Lanes, n: usize, before: f64, chunk: &[f64]) {
    lanes[n % LANES] += lost(before, chunk[0]);
    // Two shifted views of one slice: no step waits for the one before.
    let (befores, nows) = (&chunk[..chunk.len() - 1], &chunk[1..]);
    let at = n + 1;
    let lead = ((LANES - at % LANES) % LANES).min(nows.len());
    for (i, lane) in lanes[at % LANES..].iter_mut().enumerate().take(lead) {
        *lane += lost(befores[i], nows[i]);
    }
    let (befores, nows) = (&befores[lead..], &nows[lead..]);
    let ((b8, b_tail), (n8, n_tail)) = (befores.as_chunks::<LANES>(), nows.as_chunks::<LANES>());
    for (b, v) in b8.iter().zip(n8) {
        for ((lane, &b), &v) in lanes.iter_mut().zip(b).zip(v) {
            *lane += lost(b, v);
        }
    }
    for ((lane, &b), &v) in lanes.iter_mut().zip(b_tail).zip(n_tail) {
        *lane += lost(b, v);
    }
}

/// What can be asked of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    Sum,
    Avg,
    Min,
    Max,
    Count,
    Last,
    Increase,
}

impl Function {
    pub const ALL: [Self; 7] = [
        Self::Sum,
        Self::Avg,
        Self::Min,
        Self::Max,
        Self::Count,
        Self::Last,
        Self::Increase,
    ];
}

/// One function over one window that comes in parts: chunks of samples, or runs whose answer is known without them.
#[derive(Clone, Copy, Debug)]
pub struct Running {
    function: Function,
    level: Level,
    lanes: Lanes,
    n: usize,
    /// First and last sample so far.
    ends: (f64, f64),
}

impl Running {
    pub fn new(function: Function) -> Self {
        let start = match function {
            Function::Min | Function::Max => f64::NAN,
            _ => 0.0,
        };
        Self {
            function,
            level: Level::new(),
            lanes: [start; LANES],
            n: 0,
            ends: (0.0, 0.0),
        }
    }

    pub fn function(&self) -> Function {
        self.function
    }

    pub fn push(&mut self, chunk: &[f64]) {
        let (Some(&first), Some(&last)) = (chunk.first(), chunk.last()) else {
            return;
        };
        let before = if self.n == 0 { first } else { self.ends.1 };
        let (lanes, n) = (&mut self.lanes, self.n);
        match self.function {
            Function::Sum | Function::Avg => dispatch!(self.level, _simd => fold_chunk(lanes, n, chunk, add)),
            Function::Min => dispatch!(self.level, _simd => fold_chunk(lanes, n, chunk, lower)),
            Function::Max => dispatch!(self.level, _simd => fold_chunk(lanes, n, chunk, raise)),
            Function::Increase => dispatch!(self.level, _simd => lost_chunk(lanes, n, before, chunk)),
            Function::Count | Function::Last => {}
        }
        self.advance(first, last, chunk.len());
    }

    fn advance(&mut self, first: f64, last: f64, n: usize) {
        if self.n == 0 {
            self.ends.0 = first;
        }
        self.ends.1 = last;
        self.n += n;
    }

    /// `n` samples of the same value.
    pub fn push_const(&mut self, v: f64, n: usize) {
        if n == 0 {
            return;
        }
        match self.function {
            Function::Sum | Function::Avg => self.add_const(v, n),
            // The second time changes nothing.
            Function::Min => self.each_lane(n.min(LANES), |lane| lower(lane, v)),
            Function::Max => self.each_lane(n.min(LANES), |lane| raise(lane, v)),
            Function::Increase => return self.push_ascending(v, v, n),
            Function::Count | Function::Last => {}
        }
        self.advance(v, v, n);
    }

    /// `n` samples of which none is lower than the one before, no NaN among them. Only of `Increase`.
    pub fn push_ascending(&mut self, first: f64, last: f64, n: usize) {
        assert_eq!(self.function, Function::Increase, "other functions need every sample");
        if n == 0 {
            return;
        }
        // Nothing is lost within, and adding 0.0 changes no lane: none is ever -0.0.
        if self.n > 0 {
            self.lanes[self.n % LANES] += lost(self.ends.1, first);
        }
        self.advance(first, last, n);
    }

    fn each_lane(&mut self, n: usize, each: impl Fn(&mut f64)) {
        (self.n..self.n + n).for_each(|i| each(&mut self.lanes[i % LANES]));
    }

    fn add_const(&mut self, v: f64, n: usize) {
        // Integers below 2^53 add up without rounding, so that a product is the same to the bit.
        const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
        for i in 0..n.min(LANES) {
            let times = (n - i).div_ceil(LANES);
            let lane = &mut self.lanes[(self.n + i) % LANES];
            let product = v * times as f64;
            let exact = v.fract() == 0.0 && lane.fract() == 0.0 && lane.abs() + product.abs() <= EXACT_MAX;
            if exact {
                *lane += product;
            } else {
                (0..times).for_each(|_| *lane += v);
            }
        }
    }

    pub fn finish(&self) -> Option<f64> {
        if self.function == Function::Count {
            return Some(self.n as f64);
        }
        if self.n == 0 {
            return None;
        }
        let (lanes, n) = (self.lanes, self.n);
        match self.function {
            Function::Sum => Some(total(lanes)),
            Function::Avg => Some(total(lanes) / n as f64),
            Function::Min => best(lanes, n, lower),
            Function::Max => best(lanes, n, raise),
            Function::Last => Some(self.ends.1),
            Function::Increase => Some((self.ends.1 - self.ends.0) + total(lanes)),
            Function::Count => Some(n as f64),
        }
    }
}

/// The rule itself, one sample after the other. What the fast forms are compared with.
pub mod reference {
    use super::{Function, LANES, best, lost, lower, raise, total};

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
    pub fn of(function: Function, window: &[f64]) -> Option<f64> {
        match function {
            Function::Sum => sum(window),
            Function::Avg => avg(window),
            Function::Min => min(window),
            Function::Max => max(window),
            Function::Count => Some(count(window) as f64),
            Function::Last => last(window),
            Function::Increase => increase(window),
        }
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
            for function in Function::ALL {
                let mut running = Running::new(function);
                chunks.iter().for_each(|c| running.push(c));
                prop_assert_eq!(bits(running.finish()), bits(reference::of(function, &window)), "{:?}", function);
            }
        }

        #[test]
        fn runs_of_one_value_give_the_same_bits(
            runs in prop::collection::vec((prop_oneof![
                Just(-0.0), Just(0.1), Just(f64::NAN), Just(1e15), Just(f64::INFINITY), (-9i32..99).prop_map(f64::from),
            ], 0usize..40), 0..8),
        ) {
            let window: Vec<f64> = runs.iter().flat_map(|(v, n)| std::iter::repeat_n(*v, *n)).collect();
            for function in Function::ALL {
                let mut running = Running::new(function);
                for (i, (v, n)) in runs.iter().enumerate() {
                    if i % 3 == 2 {
                        running.push(&vec![*v; *n]);
                    } else {
                        running.push_const(*v, *n);
                    }
                }
                prop_assert_eq!(bits(running.finish()), bits(reference::of(function, &window)), "{:?}", function);
            }
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

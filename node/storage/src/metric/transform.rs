//! Floats of one page to small integers and back, exact to the bit.
//!
//! A value is `integer / 10^e` for the least `e` that fits the page; what no `e` fits is an exception. From the integers
//! the first is taken off, then the common divisor; what is left, or its first or second differences, whichever
//! spreads least around its middle, becomes small non-negative numbers. All integer arithmetic wraps.

use crate::cursor::{unzigzag, zigzag};
use crate::metric::pfor::{self, Plan};
use fearless_simd::{Level, dispatch};

/// Exact in an f64, all of them.
pub const POWERS: [f64; 16] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
];
/// With decimals: larger products are no longer all exact, and would not pack well either.
const SCALED_MAX: f64 = 9_007_199_254_740_992.0;
/// Without: below 2^63.
const WHOLE_MAX: f64 = 9_223_372_036_854_774_784.0;
/// Residuals looked at to find their middle.
const SAMPLE: usize = 32;

/// The integer of `v` at a scale, as a float, and whether it gives the bits of `v` back.
#[inline(always)]
fn scaled(v: f64, power: f64, most: f64) -> (f64, bool) {
    // Adding 0.0 makes -0.0 a 0.0, which does not give the bits of -0.0 back.
    let s = (v * power).round_ties_even() + 0.0;
    (s, (s / power).to_bits() == v.to_bits() && s.abs() <= most)
}

#[inline(always)]
fn whole(v: f64) -> (f64, bool) {
    let s = v.round_ties_even() + 0.0;
    (s, s.to_bits() == v.to_bits() && s.abs() <= WHOLE_MAX)
}

/// Converts while all values fit; true if all did.
#[inline(always)]
fn convert(values: &[f64], e: usize, ints: &mut [i64]) -> bool {
    let mut all = true;
    if e == 0 {
        for (i, &v) in ints.iter_mut().zip(values) {
            let (s, fits) = whole(v);
            *i = s as i64;
            all &= fits;
        }
    } else {
        let power = POWERS[e];
        for (i, &v) in ints.iter_mut().zip(values) {
            let (s, fits) = scaled(v, power, SCALED_MAX);
            *i = s as i64;
            all &= fits;
        }
    }
    all
}

fn fits(v: f64, e: usize) -> bool {
    if e == 0 {
        whole(v).1
    } else {
        scaled(v, POWERS[e], SCALED_MAX).1
    }
}

/// Fills `ints` and the places of exceptions; the scale, or `None` if there are more than `n / 20 + 1` exceptions.
pub fn to_ints(level: Level, values: &[f64], ints: &mut Vec<i64>, exceptions: &mut Vec<u32>) -> Option<u8> {
    const STEP: usize = 64;
    let exceptions_max = values.len() / 20 + 1;
    ints.clear();
    ints.resize(values.len(), 0);
    exceptions.clear();
    let (mut e, mut at) = (0, 0);
    'steps: while at < values.len() {
        let end = (at + STEP).min(values.len());
        let (part, into) = (&values[at..end], &mut ints[at..end]);
        if !dispatch!(level, _simd => convert(part, e, into)) {
            for (i, &v) in part.iter().enumerate().filter(|(_, v)| !fits(**v, e)) {
                if let Some(higher) = (e + 1..POWERS.len()).find(|&h| fits(v, h)) {
                    // Begin again: what fitted the lower scale may not fit this one.
                    (e, at) = (higher, 0);
                    exceptions.clear();
                    continue 'steps;
                }
                exceptions.push((at + i) as u32);
                if exceptions.len() > exceptions_max {
                    return None;
                }
            }
        }
        at = end;
    }
    fill_exceptions(ints, exceptions);
    Some(e as u8)
}

/// An exception repeats the integer before it; the first ones, the one behind them.
fn fill_exceptions(ints: &mut [i64], exceptions: &[u32]) {
    let leading = exceptions.iter().zip(0..).take_while(|(at, i)| **at == *i).count();
    if leading < ints.len() {
        let first = ints[leading];
        ints[..leading].fill(first);
    }
    for &at in &exceptions[leading..] {
        ints[at as usize] = ints[at as usize - 1];
    }
}

/// The greatest common divisor of all; 0 if all are 0.
fn common_divisor(ints: &[i64]) -> u64 {
    let mut g = 0u64;
    for x in ints.iter().map(|i| i.unsigned_abs()) {
        let divides = if g.is_power_of_two() {
            x & (g - 1) == 0
        } else {
            g != 0 && x % g == 0
        };
        if !divides {
            g = gcd(g, x);
        }
        if g == 1 {
            break;
        }
    }
    g
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    if a == 0 || b == 0 {
        return a | b;
    }
    let twos = (a | b).trailing_zeros();
    a >>= a.trailing_zeros();
    while b != 0 {
        b >>= b.trailing_zeros();
        (a, b) = (a.min(b), a.abs_diff(b));
    }
    a << twos
}

/// How the packed numbers of a page become its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    pub e: u8,
    pub first: i64,
    pub gcd: u64,
    /// How often to sum up: 0, 1 or 2.
    pub order: u8,
    /// The first difference; only of order 2.
    pub step: i64,
    /// What every residual was lowered by.
    pub base: i64,
    pub zigzag: bool,
}

/// What came of the integers of a page.
pub enum Shape {
    /// All differences equal: only `first`, `step` and `e` count.
    Linear(Recipe),
    Packed(Recipe, Plan),
}

/// Turns `ints` into what `pack` takes, in `words`. `ints` are then without first and divisor.
pub fn shape(level: Level, e: u8, ints: &mut [i64], words: &mut Vec<u64>) -> Shape {
    let first = ints[0];
    ints.iter_mut().for_each(|i| *i = i.wrapping_sub(first));
    let mut recipe = Recipe {
        e,
        first,
        gcd: 1,
        order: 0,
        step: ints.get(1).copied().unwrap_or(0),
        base: 0,
        zigzag: false,
    };
    if ints.windows(2).all(|p| p[1].wrapping_sub(p[0]) == recipe.step) {
        return Shape::Linear(recipe);
    }
    let g = common_divisor(ints);
    if g > 1 && g <= i64::MAX as u64 {
        recipe.gcd = g;
        let g = g as i64;
        if g.count_ones() == 1 {
            let shift = g.trailing_zeros();
            ints.iter_mut().for_each(|i| *i >>= shift);
        } else {
            ints.iter_mut().for_each(|i| *i /= g);
        }
    }
    recipe.step = ints[1];
    words.clear();
    words.resize(ints.len(), 0);
    let middles = middles(ints);
    let costs = dispatch!(level, _simd => costs(ints, middles));
    let order = (0..3).min_by_key(|&o| costs[o]).unwrap_or(0);
    recipe.order = order as u8;
    let (least, most) = dispatch!(level, _simd => residuals(ints, order, words));
    let plan = lower(level, &mut recipe, middles[order], (least, most), words);
    Shape::Packed(recipe, plan)
}

fn difference(ints: &[i64], order: usize, at: usize) -> i64 {
    match order {
        0 => ints[at],
        1 => ints[at].wrapping_sub(ints[at - 1]),
        _ => ints[at]
            .wrapping_sub(ints[at - 1])
            .wrapping_sub(ints[at - 1].wrapping_sub(ints[at - 2])),
    }
}

/// The middle of a sample of the residuals of each order. `ints` has at least 3.
fn middles(ints: &[i64]) -> [i64; 3] {
    let step = (ints.len() / SAMPLE).max(1);
    std::array::from_fn(|order| {
        let mut sample = [0i64; 2 * SAMPLE];
        let mut n = 0;
        let mut at = order.max(1);
        while at < ints.len() && n < sample.len() {
            sample[n] = difference(ints, order, at);
            n += 1;
            at += step;
        }
        if n == 0 {
            return 0;
        }
        *sample[..n].select_nth_unstable(n / 2).1
    })
}

/// Bits that each order's distances from its middle take, and 3 halves more for each that is not 0.
#[inline(always)]
fn costs(ints: &[i64], middles: [i64; 3]) -> [u64; 3] {
    let cost = |r: i64, middle: i64| {
        let far = r.wrapping_sub(middle);
        let far = ((far ^ (far >> 63)) as u64) << 1 | u64::from(far != 0);
        2 * (64 - u64::from(far.leading_zeros())) + 3 * u64::from(far != 0)
    };
    let mut sums = [0u64; 3];
    let (a, b, c) = (&ints[..ints.len() - 2], &ints[1..ints.len() - 1], &ints[2..]);
    for ((&a, &b), &c) in a.iter().zip(b).zip(c) {
        let (before, now) = (b.wrapping_sub(a), c.wrapping_sub(b));
        sums[0] += cost(c, middles[0]);
        sums[1] += cost(now, middles[1]);
        sums[2] += cost(now.wrapping_sub(before), middles[2]);
    }
    sums
}

/// Writes the residuals (those that the recipe tells otherwise are left 0), and gives their least and most.
#[inline(always)]
fn residuals(ints: &[i64], order: usize, words: &mut [u64]) -> (i64, i64) {
    let (mut least, mut most) = (i64::MAX, i64::MIN);
    let n = ints.len();
    let words = &mut words[order..n];
    match order {
        0 => {
            for (w, &i) in words.iter_mut().zip(ints) {
                (least, most) = (least.min(i), most.max(i));
                *w = i as u64;
            }
        }
        1 => {
            for ((w, &a), &b) in words.iter_mut().zip(ints).zip(&ints[1..]) {
                let r = b.wrapping_sub(a);
                (least, most) = (least.min(r), most.max(r));
                *w = r as u64;
            }
        }
        _ => {
            let (a, b, c) = (&ints[..n - 2], &ints[1..n - 1], &ints[2..]);
            for (((w, &a), &b), &c) in words.iter_mut().zip(a).zip(b).zip(c) {
                let r = c.wrapping_sub(b).wrapping_sub(b.wrapping_sub(a));
                (least, most) = (least.min(r), most.max(r));
                *w = r as u64;
            }
        }
    }
    (least, most)
}

/// Makes residuals small and non-negative: above their least, or zigzag around their middle if that is cheaper
/// (few lie far below the others).
fn lower(level: Level, recipe: &mut Recipe, middle: i64, bounds: (i64, i64), words: &mut [u64]) -> Plan {
    let (least, _) = bounds;
    let n = words.len();
    let order = recipe.order as usize;
    let above = |words: &mut [u64], base: i64| {
        words[order..].iter_mut().for_each(|w| *w = w.wrapping_sub(base as u64));
    };
    let around = |words: &mut [u64], base: i64| {
        let each = |w: &mut u64| *w = zigzag((*w as i64).wrapping_sub(base));
        words[order..].iter_mut().for_each(each);
    };
    dispatch!(level, _simd => above(words, least));
    let from_least = pfor::plan(&pfor::histogram(words), n);
    recipe.base = least;
    // A middle in the lower half of the packed width costs at least as much around as above.
    let spread = (middle.wrapping_sub(least)) as u64;
    if from_least.width > 0 && (from_least.exceptions > 0 || spread >> (from_least.width - 1) != 0) {
        let mut other = words.to_vec();
        dispatch!(level, _simd => above(&mut other, least.wrapping_neg()));
        dispatch!(level, _simd => around(&mut other, middle));
        let from_middle = pfor::plan(&pfor::histogram(&other), n);
        if from_middle.cost < from_least.cost {
            words.copy_from_slice(&other);
            recipe.base = middle;
            recipe.zigzag = true;
            return from_middle;
        }
    }
    from_least
}

// ---- back ----

/// Sums and scales of one page, carried from chunk to chunk.
#[derive(Clone, Copy, Debug)]
pub struct Sums {
    recipe: Recipe,
    /// The running difference of order 2, and the running sum of orders 1 and 2.
    difference: i64,
    sum: i64,
}

impl Sums {
    pub fn new(recipe: Recipe) -> Self {
        // Chosen so that integer 0 comes out as 0, and the first difference of order 2 as `step`, from residuals of 0.
        let Recipe { base, step, order, .. } = recipe;
        let (difference, sum) = match order {
            0 => (0, 0),
            1 => (0, base.wrapping_neg()),
            _ => (step.wrapping_sub(base).wrapping_sub(base), base.wrapping_sub(step)),
        };
        Self {
            recipe,
            difference,
            sum,
        }
    }

    /// The values of the next words. `words` is used up; all but a page's last chunk are a multiple of 8 long.
    pub fn values(&mut self, level: Level, words: &mut [u64], out: &mut [f64]) {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        if let Some(avx512) = level.as_avx512() {
            let eights = words.len() / 8 * 8;
            let (front, back) = words.split_at_mut(eights);
            let (out, tail) = out.split_at_mut(eights);
            values_avx512(avx512, self, front, out);
            return values_plain(self, back, tail);
        }
        dispatch!(level, _simd => values_plain(self, words, out));
    }

    /// As `values`, for pages of integers.
    pub fn ints(&mut self, words: &mut [u64], out: &mut [i64]) {
        sum_up(self, words);
        let Recipe { first, gcd, .. } = self.recipe;
        for (i, &w) in out.iter_mut().zip(words.iter()) {
            *i = w.wrapping_mul(gcd).wrapping_add(first as u64) as i64;
        }
    }
}

/// Residuals to integers that lack only divisor and first; goes on where a chunk ended.
#[inline(always)]
fn sum_up(sums: &mut Sums, words: &mut [u64]) {
    let Recipe {
        order, base, zigzag, ..
    } = sums.recipe;
    if zigzag {
        words.iter_mut().for_each(|w| *w = unzigzag(*w) as u64);
    }
    if base != 0 {
        words.iter_mut().for_each(|w| *w = w.wrapping_add(base as u64));
    }
    if order == 2 {
        let mut d = sums.difference as u64;
        for w in words.iter_mut() {
            d = d.wrapping_add(*w);
            *w = d;
        }
        sums.difference = d as i64;
    }
    if order > 0 {
        let mut x = sums.sum as u64;
        for w in words.iter_mut() {
            x = x.wrapping_add(*w);
            *w = x;
        }
        sums.sum = x as i64;
    }
}

#[inline(always)]
fn values_plain(sums: &mut Sums, words: &mut [u64], out: &mut [f64]) {
    sum_up(sums, words);
    let Recipe { first, gcd, e, .. } = sums.recipe;
    if gcd == 1 {
        for (v, &w) in out.iter_mut().zip(words.iter()) {
            *v = w.wrapping_add(first as u64) as i64 as f64;
        }
    } else {
        for (v, &w) in out.iter_mut().zip(words.iter()) {
            *v = w.wrapping_mul(gcd).wrapping_add(first as u64) as i64 as f64;
        }
    }
    if e > 0 {
        let power = POWERS[e as usize];
        out.iter_mut().for_each(|v| *v /= power);
    }
}

#[cfg(target_arch = "x86")]
use std::arch::x86 as arch;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64 as arch;

fearless_simd::kernel!(
    fn values_avx512(avx512: Avx512, sums: &mut Sums, words: &[u64], out: &mut [f64]) {
        use arch::{
            __m512i, _mm512_add_epi64, _mm512_alignr_epi64, _mm512_and_si512, _mm512_cvtepi64_pd, _mm512_div_pd,
            _mm512_mullo_epi64, _mm512_permutexvar_epi64, _mm512_set1_epi64, _mm512_set1_pd, _mm512_setzero_si512,
            _mm512_srli_epi64, _mm512_sub_epi64, _mm512_xor_si512,
        };
        use fearless_simd::prelude::*;
        use fearless_simd::{f64x8, u64x8};
        let recipe = sums.recipe;
        let zero = _mm512_setzero_si512();
        let one = _mm512_set1_epi64(1);
        let last = _mm512_set1_epi64(7);
        let base = _mm512_set1_epi64(recipe.base);
        let first = _mm512_set1_epi64(recipe.first);
        let factor = _mm512_set1_epi64(recipe.gcd as i64);
        let power = _mm512_set1_pd(POWERS[recipe.e as usize]);
        let mut difference = _mm512_set1_epi64(sums.difference);
        let mut sum = _mm512_set1_epi64(sums.sum);
        // Each lane becomes the sum of itself and all before it.
        let prefix = |v: __m512i| {
            let v = _mm512_add_epi64(v, _mm512_alignr_epi64::<7>(v, zero));
            let v = _mm512_add_epi64(v, _mm512_alignr_epi64::<6>(v, zero));
            _mm512_add_epi64(v, _mm512_alignr_epi64::<4>(v, zero))
        };
        for (eight, out) in words.as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<8>().0) {
            let mut v: __m512i = u64x8::from_slice(avx512, eight).into();
            if recipe.zigzag {
                let sign = _mm512_sub_epi64(zero, _mm512_and_si512(v, one));
                v = _mm512_xor_si512(_mm512_srli_epi64::<1>(v), sign);
            }
            v = _mm512_add_epi64(v, base);
            if recipe.order == 2 {
                v = _mm512_add_epi64(prefix(v), difference);
                difference = _mm512_permutexvar_epi64(last, v);
            }
            if recipe.order > 0 {
                v = _mm512_add_epi64(prefix(v), sum);
                sum = _mm512_permutexvar_epi64(last, v);
            }
            if recipe.gcd != 1 {
                v = _mm512_mullo_epi64(v, factor);
            }
            let mut f = _mm512_cvtepi64_pd(_mm512_add_epi64(v, first));
            if recipe.e > 0 {
                f = _mm512_div_pd(f, power);
            }
            let f: f64x8<_> = f.simd_into(avx512);
            f.store_slice(out);
        }
        let lane = |v: __m512i| -> i64 {
            let v: u64x8<_> = v.simd_into(avx512);
            v.as_slice()[0] as i64
        };
        (sums.difference, sums.sum) = (lane(difference), lane(sum));
    }
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_decimal_is_an_exception() {
        let level = Level::new();
        let values = [1.0, -0.0, 2.5, f64::NAN, f64::INFINITY, 5e-324, 3.25];
        let mut values = values.to_vec();
        values.resize(100, 1.0);
        let (mut ints, mut exceptions) = (vec![], vec![]);
        assert_eq!(to_ints(level, &values, &mut ints, &mut exceptions), Some(2));
        assert_eq!(exceptions, [1, 3, 4, 5]);
        assert_eq!(ints[..7], [100, 100, 250, 250, 250, 250, 325]);
    }

    #[test]
    fn too_many_exceptions_are_refused_early() {
        let values: Vec<f64> = (0..100).map(|i| f64::from(i).sqrt()).collect();
        assert_eq!(to_ints(Level::new(), &values, &mut vec![], &mut vec![]), None);
    }

    proptest! {
        #[test]
        fn divisors_are_found(factor in 1u64..10_000, ints in prop::collection::vec(-1000i64..1000, 1..20)) {
            let scaled: Vec<i64> = ints.iter().map(|i| i * factor as i64).collect();
            let g = common_divisor(&scaled);
            prop_assert_eq!(g % factor, 0);
            prop_assert!(scaled.iter().all(|i| (g == 0 && *i == 0) || i.unsigned_abs() % g == 0));
        }

        #[test]
        fn vector_and_plain_code_give_the_same_values(
            words in prop::collection::vec(any::<u64>(), 0..200), e in 0u8..16, first: i64,
            gcd in prop_oneof![Just(1u64), 2u64..5000], order in 0u8..3, step: i64, base in prop_oneof![Just(0), any::<i64>()],
            zigzag: bool, cut in 0usize..25,
        ) {
            let recipe = Recipe { e, first, gcd, order, step, base, zigzag };
            let mut plain = vec![0.0; words.len()];
            values_plain(&mut Sums::new(recipe), &mut words.clone(), &mut plain);
            for level in [Level::new(), Level::baseline()] {
                let (mut sums, mut words) = (Sums::new(recipe), words.clone());
                let mut out = vec![0.0; words.len()];
                let at = (8 * cut).min(words.len());
                let (a, b) = words.split_at_mut(at);
                sums.values(level, a, &mut out[..at]);
                sums.values(level, b, &mut out[at..]);
                let bits = |v: &[f64]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                prop_assert_eq!(bits(&out), bits(&plain));
            }
        }
    }
}

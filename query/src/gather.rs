//! The rule of summation: the same data gives the same bits, wherever it lies.
//!
//! Series of one slot are added in the order of their label fingerprints. Slots are then combined over one fixed binary
//! tree of all 1,024: a node is its left half merged with its right half, an empty half counts for nothing. An aligned
//! run of slots is a node of that tree, a slot a leaf: a shard may send the leaf instead of its series (`fold.rs`), and no
//! result depends on how runs were cut.
//!
//! Every cell here is exact about order, not about rounding: sums are compensated (Neumaier), means of sums that
//! overflow are taken from a sum scaled by a power of two, variances are merged pairwise (Chan).

use crate::column::{ABSENT, is_absent};
use fearless_simd::{Level, dispatch};
use hindcast_model::SLOTS;

/// A compensated sum.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sum {
    total: f64,
    /// What rounding took from `total`.
    lost: f64,
}

impl Sum {
    #[inline(always)]
    pub fn add(&mut self, v: f64) {
        let next = self.total + v;
        // Chosen, not branched to: which of two values is larger nobody can foretell.
        let (large, small) = if self.total.abs() >= v.abs() {
            (self.total, v)
        } else {
            (v, self.total)
        };
        let more = self.lost + ((large - next) + small);
        // Once it is infinite it stays infinite or NaN, and inf - inf must not turn the first into the second.
        self.lost = if next.is_infinite() { 0.0 } else { more };
        self.total = next;
    }

    #[inline(always)]
    pub fn merge(&mut self, right: &Self) {
        self.add(right.total);
        self.lost += right.lost;
    }

    pub fn value(&self) -> f64 {
        canonical(if self.total.is_finite() {
            self.total + self.lost
        } else {
            self.total
        })
    }
}

/// `N` sums of every `N`th value: what `Sum::add` gives for each, to the bit, without a branch, so that it becomes vector
/// code.
pub fn sums<const N: usize>(values: &[f64]) -> [Sum; N] {
    let (mut totals, mut losts) = ([0.0; N], [0.0; N]);
    let (chunks, rest) = values.as_chunks::<N>();
    for chunk in chunks {
        add_each(&mut totals, &mut losts, chunk);
    }
    add_each(&mut totals, &mut losts, rest);
    std::array::from_fn(|i| Sum {
        total: totals[i],
        lost: losts[i],
    })
}

#[inline(always)]
fn add_each<const N: usize>(totals: &mut [f64; N], losts: &mut [f64; N], values: &[f64]) {
    for ((total, lost), &v) in totals.iter_mut().zip(losts).zip(values) {
        let mut sum = Sum {
            total: *total,
            lost: *lost,
        };
        sum.add(v);
        (*total, *lost) = (sum.total, sum.lost);
    }
}

/// NaN with one bit pattern.
pub fn canonical(v: f64) -> f64 {
    if v.is_nan() { f64::NAN } else { v }
}

/// What an aggregation keeps of some values; merging two is the same as having seen the left values, then the right.
pub trait Cell: Clone + Default {
    fn add(&mut self, v: f64);
    fn merge(&mut self, right: &Self);
    /// `None`: no value was seen.
    fn value(&self) -> Option<f64>;
    fn is_empty(&self) -> bool {
        self.value().is_none()
    }
}

/// A cell that can go to another node.
pub trait Words: Cell {
    /// So many words are one cell.
    const WORDS: usize;
    fn put(&self, out: &mut Vec<u64>);
    /// Of `WORDS` words.
    fn get(words: &[u64]) -> Self;
}

/// One cell per step of a query.
pub trait Cells: Sized {
    /// So many words are one cell where it goes to another node.
    const WORDS: usize;
    /// So many cells that have seen nothing.
    fn new(steps: usize) -> Self;
    /// To each cell its value of each series, one series after the other, unless it is absent. A peer may tell fewer values than steps.
    fn add(&mut self, series: &[(u16, &[f64])]);
    /// Merges each cell with its neighbour on the right. One that has seen nothing counts for nothing: `0 + -0` must not turn a sum of
    /// -0 into 0.
    fn merge(&mut self, right: &Self);
    /// As [`merge`](Self::merge), with cells that have seen one series.
    fn merge_series(&mut self, values: &[f64]);
    fn words(&self) -> Vec<u64>;
    /// Of `WORDS` words for each step.
    fn of_words(words: &[u64]) -> Self;
    /// At each step; `None` where no value was seen.
    fn values(&self) -> impl Iterator<Item = Option<f64>>;
}

/// One after the other.
pub struct Plain<C>(Vec<C>);

impl<C: Words> Cells for Plain<C> {
    const WORDS: usize = C::WORDS;
    fn new(steps: usize) -> Self {
        Self(vec![C::default(); steps])
    }
    fn add(&mut self, series: &[(u16, &[f64])]) {
        for (_, values) in series {
            let there = self.0.iter_mut().zip(*values).filter(|(_, v)| !is_absent(**v));
            there.for_each(|(cell, v)| cell.add(*v));
        }
    }
    fn merge(&mut self, right: &Self) {
        self.0.iter_mut().zip(&right.0).for_each(|(l, r)| merge_cell(l, r));
    }
    fn merge_series(&mut self, values: &[f64]) {
        for (cell, v) in self.0.iter_mut().zip(values).filter(|(_, v)| !is_absent(**v)) {
            let mut right = C::default();
            right.add(*v);
            merge_cell(cell, &right);
        }
    }
    fn words(&self) -> Vec<u64> {
        let mut words = Vec::with_capacity(self.0.len() * C::WORDS);
        self.0.iter().for_each(|cell| cell.put(&mut words));
        words
    }
    fn of_words(words: &[u64]) -> Self {
        Self(words.chunks_exact(C::WORDS).map(C::get).collect())
    }
    fn values(&self) -> impl Iterator<Item = Option<f64>> {
        self.0.iter().map(C::value)
    }
}

fn merge_cell<C: Cell>(left: &mut C, right: &C) {
    if right.is_empty() {
        return;
    }
    if left.is_empty() {
        *left = right.clone();
    } else {
        left.merge(right);
    }
}

impl Sum {
    fn words(&self) -> [u64; 2] {
        [self.total, self.lost].map(f64::to_bits)
    }

    fn of_words(words: &[u64]) -> Self {
        Self {
            total: f64::from_bits(words[0]),
            lost: f64::from_bits(words[1]),
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Total {
    count: u64,
    sum: Sum,
}

impl Cell for Total {
    fn add(&mut self, v: f64) {
        self.count += 1;
        self.sum.add(v);
    }
    fn merge(&mut self, right: &Self) {
        self.count += right.count;
        self.sum.merge(&right.sum);
    }
    fn value(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum.value())
    }
    fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// A [`Total`] per step, laid out for vector code: what `Total` gives at each step, to the bit, without a branch.
pub struct Totals {
    steps: usize,
    /// The count of values of each step (whole numbers), then each step's `Sum::total`, then each `Sum::lost`.
    columns: Vec<f64>,
}

impl Totals {
    fn columns(&self) -> [&[f64]; 3] {
        let (counts, sums) = self.columns.split_at(self.steps);
        let (totals, losts) = sums.split_at(self.steps);
        [counts, totals, losts]
    }

    fn columns_mut(&mut self) -> [&mut [f64]; 3] {
        let (counts, sums) = self.columns.split_at_mut(self.steps);
        let (totals, losts) = sums.split_at_mut(self.steps);
        [counts, totals, losts]
    }
}

impl Cells for Totals {
    const WORDS: usize = 3;
    fn new(steps: usize) -> Self {
        Self {
            steps,
            columns: vec![0.0; 3 * steps],
        }
    }
    fn add(&mut self, series: &[(u16, &[f64])]) {
        let (level, steps) = (Level::new(), self.steps);
        if series.iter().any(|(_, values)| values.len() < steps) {
            for (_, values) in series {
                let columns = self.columns_mut().map(|c| &mut c[..values.len().min(steps)]);
                dispatch!(level, _simd => add_blocks(columns, &[(0, values)]));
            }
            return;
        }
        let columns = self.columns_mut();
        dispatch!(level, _simd => add_blocks(columns, series));
    }
    fn merge(&mut self, right: &Self) {
        let (level, columns, right) = (Level::new(), self.columns_mut(), right.columns());
        dispatch!(level, _simd => merge_columns(columns, right));
    }
    /// The sum of one value has lost nothing: merging it is adding the value.
    fn merge_series(&mut self, values: &[f64]) {
        self.add(&[(0, values)]);
    }
    fn words(&self) -> Vec<u64> {
        let [counts, totals, losts] = self.columns();
        let mut words = Vec::with_capacity(3 * self.steps);
        for ((count, total), lost) in counts.iter().zip(totals).zip(losts) {
            words.extend([*count as u64, total.to_bits(), lost.to_bits()]);
        }
        words
    }
    fn of_words(words: &[u64]) -> Self {
        let mut cells = Self::new(words.len() / 3);
        let [counts, totals, losts] = cells.columns_mut();
        let each = counts.iter_mut().zip(totals).zip(losts);
        // One that has seen nothing stays as it is, whatever a peer says of its sum.
        let seen = each.zip(words.chunks_exact(3)).filter(|(_, words)| words[0] > 0);
        for (((count, total), lost), words) in seen {
            *count = words[0] as f64;
            (*total, *lost) = (f64::from_bits(words[1]), f64::from_bits(words[2]));
        }
        cells
    }
    fn values(&self) -> impl Iterator<Item = Option<f64>> {
        let [counts, totals, losts] = self.columns();
        let each = counts.iter().zip(totals).zip(losts);
        each.map(|((&count, &total), &lost)| (count > 0.0).then(|| Sum { total, lost }.value()))
    }
}

/// Steps that are summed at once over all series of a slot.
const BLOCK: usize = 8;

/// Series have at least as many values as the columns have.
#[inline(always)]
fn add_blocks([counts, totals, losts]: [&mut [f64]; 3], series: &[(u16, &[f64])]) {
    let (counts, counts_rest) = counts.as_chunks_mut::<BLOCK>();
    let (totals, totals_rest) = totals.as_chunks_mut::<BLOCK>();
    let (losts, losts_rest) = losts.as_chunks_mut::<BLOCK>();
    let done = counts.len() * BLOCK;
    for (n, ((counts, totals), losts)) in counts.iter_mut().zip(totals).zip(losts).enumerate() {
        let (mut c, mut t, mut l) = (*counts, *totals, *losts);
        for (_, values) in series {
            let values: &[f64; BLOCK] = values[n * BLOCK..][..BLOCK]
                .try_into()
                .expect("as many values as steps");
            for i in 0..BLOCK {
                (c[i], t[i], l[i]) = added(c[i], t[i], l[i], values[i]);
            }
        }
        (*counts, *totals, *losts) = (c, t, l);
    }
    for (_, values) in series {
        let rest = counts_rest.iter_mut().zip(&mut *totals_rest).zip(&mut *losts_rest);
        for (((c, t), l), &v) in rest.zip(&values[done..]) {
            (*c, *t, *l) = added(*c, *t, *l, v);
        }
    }
}

#[inline(always)]
fn added(count: f64, total: f64, lost: f64, v: f64) -> (f64, f64, f64) {
    let mut sum = Sum { total, lost };
    sum.add(v);
    match is_absent(v) {
        true => (count, total, lost),
        false => (count + 1.0, sum.total, sum.lost),
    }
}

#[inline(always)]
fn merge_columns([counts, totals, losts]: [&mut [f64]; 3], [right_counts, right_totals, right_losts]: [&[f64]; 3]) {
    let left = counts.iter_mut().zip(totals).zip(losts);
    let right = right_counts.iter().zip(right_totals).zip(right_losts);
    for (((c, t), l), ((&rc, &rt), &rl)) in left.zip(right) {
        let mut sum = Sum { total: *t, lost: *l };
        sum.merge(&Sum { total: rt, lost: rl });
        let (is_left, is_right) = (*c > 0.0, rc > 0.0);
        let (both_total, both_lost) = if is_right { (sum.total, sum.lost) } else { (*t, *l) };
        (*t, *l) = if is_left { (both_total, both_lost) } else { (rt, rl) };
        *c += rc;
    }
}

/// 2^-64: exact on everything but the smallest numbers, which no overflowing sum has to care for.
const SCALE: f64 = 1.0 / 18_446_744_073_709_551_616.0;

#[derive(Clone, Copy, Debug, Default)]
pub struct Mean {
    count: u64,
    sum: Sum,
    /// The sum of values times 2^-64: still finite when `sum` has overflowed.
    scaled: Sum,
}

impl Mean {
    /// Of so many values at once; theirs must be finite, where the mean of all shall be.
    pub fn add_sum(&mut self, sum: f64, count: u64) {
        self.count += count;
        self.sum.add(sum);
        self.scaled.add(sum * SCALE);
    }
}

impl Words for Mean {
    const WORDS: usize = 5;
    fn put(&self, out: &mut Vec<u64>) {
        out.push(self.count);
        out.extend(self.sum.words());
        out.extend(self.scaled.words());
    }
    fn get(words: &[u64]) -> Self {
        Self {
            count: words[0],
            sum: Sum::of_words(&words[1..]),
            scaled: Sum::of_words(&words[3..]),
        }
    }
}

impl Cell for Mean {
    fn add(&mut self, v: f64) {
        self.count += 1;
        self.sum.add(v);
        self.scaled.add(v * SCALE);
    }
    fn merge(&mut self, right: &Self) {
        self.count += right.count;
        self.sum.merge(&right.sum);
        self.scaled.merge(&right.scaled);
    }
    fn value(&self) -> Option<f64> {
        let sum = self.sum.value();
        let count = self.count as f64;
        (self.count > 0).then(|| {
            canonical(if sum.is_finite() {
                sum / count
            } else {
                self.scaled.value() / count / SCALE
            })
        })
    }
}

/// Population variance.
#[derive(Clone, Copy, Debug, Default)]
pub struct Variance {
    count: u64,
    mean: f64,
    /// Sum of squared distances from the mean.
    squares: f64,
}

impl Words for Variance {
    const WORDS: usize = 3;
    fn put(&self, out: &mut Vec<u64>) {
        out.extend([self.count, self.mean.to_bits(), self.squares.to_bits()]);
    }
    fn get(words: &[u64]) -> Self {
        Self {
            count: words[0],
            mean: f64::from_bits(words[1]),
            squares: f64::from_bits(words[2]),
        }
    }
}

impl Cell for Variance {
    fn add(&mut self, v: f64) {
        self.count += 1;
        let distance = v - self.mean;
        self.mean += distance / self.count as f64;
        self.squares += distance * (v - self.mean);
    }
    fn merge(&mut self, right: &Self) {
        if self.count == 0 {
            *self = *right;
            return;
        }
        if right.count == 0 {
            return;
        }
        let (a, b) = (self.count as f64, right.count as f64);
        let distance = right.mean - self.mean;
        self.mean += distance * (b / (a + b));
        self.squares += right.squares + distance * distance * (a * b / (a + b));
        self.count += right.count;
    }
    fn value(&self) -> Option<f64> {
        (self.count > 0).then(|| canonical(self.squares / self.count as f64))
    }
}

/// The least or the greatest value; NaN only when there is nothing else. Of equal values (0 and -0) the first stays.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extreme<const GREATEST: bool> {
    best: Option<f64>,
}

impl<const GREATEST: bool> Words for Extreme<GREATEST> {
    const WORDS: usize = 1;
    fn put(&self, out: &mut Vec<u64>) {
        out.push(self.best.unwrap_or(ABSENT).to_bits());
    }
    fn get(words: &[u64]) -> Self {
        let best = f64::from_bits(words[0]);
        Self {
            best: (!is_absent(best)).then_some(best),
        }
    }
}

impl<const GREATEST: bool> Cell for Extreme<GREATEST> {
    fn add(&mut self, v: f64) {
        let better = match self.best {
            None => true,
            Some(b) => b.is_nan() || if GREATEST { v > b } else { v < b },
        };
        if better {
            self.best = Some(canonical(v));
        }
    }
    fn merge(&mut self, right: &Self) {
        if let Some(v) = right.best {
            self.add(v);
        }
    }
    fn value(&self) -> Option<f64> {
        self.best
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Count(u64);

impl Words for Count {
    const WORDS: usize = 1;
    fn put(&self, out: &mut Vec<u64>) {
        out.push(self.0);
    }
    fn get(words: &[u64]) -> Self {
        Self(words[0])
    }
}

impl Cell for Count {
    fn add(&mut self, _: f64) {
        self.0 += 1;
    }
    fn merge(&mut self, right: &Self) {
        self.0 += right.0;
    }
    fn value(&self) -> Option<f64> {
        (self.0 > 0).then_some(self.0 as f64)
    }
}

/// An aligned run of slots: `len` is a power of two and divides `first`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub first: u16,
    pub len: u16,
}

impl Run {
    pub const ALL: Self = Self { first: 0, len: SLOTS };

    pub fn is_aligned(self) -> bool {
        self.len.is_power_of_two() && self.first.is_multiple_of(self.len) && self.first < SLOTS && self.len <= SLOTS
    }

    fn halves(self) -> (Self, Self) {
        let len = self.len / 2;
        let right = self.first + len;
        (Self { first: self.first, len }, Self { first: right, len })
    }
}

fn merged<K: Cells>(left: Option<K>, right: Option<K>) -> Option<K> {
    match (left, right) {
        (Some(mut left), Some(right)) => {
            left.merge(&right);
            Some(left)
        }
        (one, other) => one.or(other),
    }
}

/// The node of `run` over series that lie in it, each `(slot, values)`, ordered by (slot, fingerprint). As many values as steps.
/// `None`: no series.
pub fn node<K: Cells>(series: &[(u16, &[f64])], run: Run, steps: usize) -> Option<K> {
    if series.is_empty() {
        return None;
    }
    // What has nothing beside it goes up the tree as it is.
    if run.len == 1 || series.len() == 1 {
        let mut cells = K::new(steps);
        cells.add(series);
        return Some(cells);
    }
    let (left, right) = run.halves();
    let cut = series.partition_point(|(slot, _)| *slot < right.first);
    let (low, high) = series.split_at(cut);
    match (node::<K>(low, left, steps), high) {
        (Some(mut cells), [(_, values)]) => {
            cells.merge_series(values);
            Some(cells)
        }
        (low, high) => merged(low, node(high, right, steps)),
    }
}

/// What lies in a run.
pub enum Part<K> {
    /// One series: as many values as steps.
    Series(Vec<f64>),
    Cells(K),
}

impl<K: Cells> Part<K> {
    fn into_cells(self, steps: usize) -> K {
        match self {
            Self::Series(values) => {
                let mut cells = K::new(steps);
                cells.add(&[(0, &values)]);
                cells
            }
            Self::Cells(cells) => cells,
        }
    }
}

/// Combines disjoint aligned runs, ascending, into the node of `run`.
///
/// # Panics
/// When a run is not aligned or overlaps another: a broken promise of a shard.
pub fn gather<K: Cells>(mut parts: Vec<(Run, Part<K>)>, run: Run, steps: usize) -> Option<K> {
    let first = parts.first()?.0;
    assert!(
        first.is_aligned() && first.len <= run.len,
        "{first:?} is no part of {run:?}"
    );
    // What has nothing beside it goes up the tree as it is.
    if parts.len() == 1 {
        return parts.pop().map(|(_, part)| part.into_cells(steps));
    }
    assert!(first != run, "runs overlap within {run:?}");
    let (left, right) = run.halves();
    let cut = parts.partition_point(|(r, _)| r.first < right.first);
    let high = parts.split_off(cut);
    match (gather::<K>(parts, left, steps), &high[..]) {
        (Some(mut cells), [(_, Part::Series(values))]) => {
            cells.merge_series(values);
            Some(cells)
        }
        (low, _) => merged(low, gather(high, right, steps)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node_of<K: Cells>(series: &[(u16, f64)], run: Run) -> Option<K> {
        let series: Vec<(u16, &[f64])> = series.iter().map(|(s, v)| (*s, std::slice::from_ref(v))).collect();
        node(&series, run, 1)
    }

    /// Every node of the tree made and merged, as the rule says.
    fn plain<C: Cell>(series: &[(u16, f64)], run: Run) -> Option<C> {
        if series.is_empty() || run.len == 1 {
            let mut cell = C::default();
            series.iter().for_each(|(_, v)| cell.add(*v));
            return (!series.is_empty()).then_some(cell);
        }
        let (left, right) = run.halves();
        let (low, high) = series.split_at(series.partition_point(|(slot, _)| *slot < right.first));
        match (plain::<C>(low, left), plain::<C>(high, right)) {
            (Some(mut low), Some(high)) => {
                merge_cell(&mut low, &high);
                Some(low)
            }
            (one, other) => one.or(other),
        }
    }

    #[test]
    fn a_sum_keeps_what_large_numbers_would_swallow() {
        let mut s = Sum::default();
        [1.0, 1e100, 1.0, -1e100].into_iter().for_each(|v| s.add(v));
        assert_eq!(s.value(), 2.0);
        s.add(f64::INFINITY);
        s.add(1.0);
        assert_eq!(s.value(), f64::INFINITY);
        s.add(f64::NEG_INFINITY);
        assert!(s.value().is_nan());
    }

    proptest! {
        #[test]
        fn sums_at_once_are_sums_one_by_one(
            values in prop::collection::vec(of_any_kind(), 0..60),
        ) {
            let mut lanes = [Sum::default(); 8];
            values.iter().enumerate().for_each(|(i, v)| lanes[i % 8].add(*v));
            let bits = |s: Sum| (s.value().to_bits(), canonical(s.total).to_bits(), canonical(s.lost).to_bits());
            prop_assert_eq!(sums::<8>(&values).map(bits), lanes.map(bits));
        }
    }

    #[test]
    fn a_mean_survives_the_overflow_of_its_sum() {
        let mut m = Mean::default();
        [f64::MAX, f64::MAX].into_iter().for_each(|v| m.add(v));
        assert_eq!(m.value(), Some(f64::MAX));
        assert_eq!(Mean::default().value(), None);
    }

    fn value() -> impl Strategy<Value = f64> {
        prop_oneof![
            8 => -1.0e6..1.0e6f64,
            2 => (-300i32..300).prop_map(|e| 1.5 * 10f64.powi(e)),
            1 => Just(-0.0),
            1 => Just(f64::MAX),
        ]
    }

    fn of_any_kind() -> impl Strategy<Value = f64> {
        prop_oneof![
            8 => value(),
            2 => Just(crate::column::ABSENT),
            // NaN of every pattern and both infinities among them.
            1 => prop::num::f64::ANY,
            1 => prop_oneof![Just(f64::INFINITY), Just(f64::NEG_INFINITY), Just(f64::NAN)],
        ]
    }

    /// What a cell of a sum is where it goes to another node: nodes of before read it so, too.
    #[test]
    fn the_words_of_a_sum_are_count_total_and_what_was_lost_of_one_step_after_the_other() {
        let mut cells = Totals::new(2);
        cells.add(&[(0, &[1e100, crate::column::ABSENT]), (0, &[1.0, crate::column::ABSENT])]);
        assert_eq!(cells.words(), [2, 1e100f64.to_bits(), 1.0f64.to_bits(), 0, 0, 0]);
        let mut one = Total::default();
        [1e100, 1.0].into_iter().for_each(|v| one.add(v));
        assert_eq!((one.sum.total, one.sum.lost), (1e100, 1.0));
        // Of a cell that has seen nothing nobody sends a sum; it counts for nothing.
        let mut odd = Totals::of_words(&[0, 5.0f64.to_bits(), 0]);
        odd.merge_series(&[1.0]);
        assert_eq!(odd.values().collect::<Vec<_>>(), [Some(1.0)]);
    }

    /// Cuts 0..1024 into aligned runs: at each node of the tree, `cuts` says whether to go on.
    fn cut(run: Run, cuts: &mut impl Iterator<Item = bool>, out: &mut Vec<Run>) {
        if run.len > 1 && cuts.next().unwrap_or(false) {
            let (l, r) = run.halves();
            cut(l, cuts, out);
            cut(r, cuts, out);
        } else {
            out.push(run);
        }
    }

    fn same_bits_however_cut<C: Cell, K: Cells>(series: &[(u16, f64)], cuts: &[bool]) -> Result<(), TestCaseError> {
        let bits = |value: Option<f64>| value.map(f64::to_bits);
        let first = |cells: Option<K>| cells.and_then(|c| c.values().next().flatten()).map(f64::to_bits);
        let whole = first(node_of::<K>(series, Run::ALL));
        let mut runs = vec![];
        cut(Run::ALL, &mut cuts.iter().copied(), &mut runs);
        let parts: Vec<_> = runs
            .into_iter()
            .filter_map(|run| {
                let start = series.partition_point(|(s, _)| *s < run.first);
                let own = &series[start..series.partition_point(|(s, _)| *s < run.first + run.len)];
                let part = match own {
                    [(_, value)] => Some(Part::Series(vec![*value])),
                    // As it goes from node to node.
                    _ => node_of::<K>(own, run).map(|cells| Part::Cells(K::of_words(&cells.words()))),
                };
                part.map(|part| (run, part))
            })
            .collect();
        prop_assert_eq!(bits(plain::<C>(series, Run::ALL).and_then(|c| c.value())), whole);
        prop_assert_eq!(first(gather(parts, Run::ALL, 1)), whole);
        Ok(())
    }

    proptest! {
        #[test]
        fn any_placement_of_slots_gives_the_same_bits(
            mut series in prop::collection::vec((0u16..SLOTS, value()), 0..200),
            cuts in prop::collection::vec(prop::bool::weighted(0.8), 0..300),
        ) {
            series.sort_by_key(|(slot, _)| *slot);
            same_bits_however_cut::<Total, Totals>(&series, &cuts)?;
            same_bits_however_cut::<Mean, Plain<Mean>>(&series, &cuts)?;
            same_bits_however_cut::<Variance, Plain<Variance>>(&series, &cuts)?;
            same_bits_however_cut::<Extreme<true>, Plain<Extreme<true>>>(&series, &cuts)?;
            same_bits_however_cut::<Count, Plain<Count>>(&series, &cuts)?;
        }

        /// What is absent, infinite or NaN at some steps and not at others: each step alone, as the rule says. A peer may tell fewer
        /// values of a series than there are steps.
        #[test]
        fn many_steps_at_once_are_each_step_alone(
            mut series in prop::collection::vec((0u16..4, prop::collection::vec(of_any_kind(), 19), prop_oneof![3 => Just(19usize), 1 => 0usize..19]), 0..12),
        ) {
            series.sort_by_key(|(slot, ..)| *slot);
            let columns: Vec<(u16, &[f64])> = series.iter().map(|(slot, values, told)| (*slot, &values[..*told])).collect();
            let whole = node::<Totals>(&columns, Run::ALL, 19);
            let sent = whole.as_ref().map(|c| Totals::of_words(&c.words()));
            for step in 0..19 {
                let there = columns.iter().filter_map(|(slot, values)| Some((*slot, *values.get(step)?)));
                let alone: Vec<(u16, f64)> = there.filter(|(_, v)| !is_absent(*v)).collect();
                let wanted = plain::<Total>(&alone, Run::ALL).and_then(|c| c.value()).map(f64::to_bits);
                for cells in [&whole, &sent] {
                    let told = cells.as_ref().and_then(|c| c.values().nth(step).flatten());
                    prop_assert_eq!(told.map(f64::to_bits), wanted);
                }
            }
        }

        #[test]
        fn a_compensated_sum_is_as_good_as_exact_integers(values in prop::collection::vec(-1_000_000_000_000i64..1_000_000_000_000, 0..100)) {
            let series: Vec<_> = values.iter().map(|v| (7, *v as f64 / 1024.0)).collect();
            let sum = node_of::<Totals>(&series, Run::ALL).and_then(|c| c.values().next().flatten()).unwrap_or(0.0);
            prop_assert_eq!(sum, values.iter().sum::<i64>() as f64 / 1024.0);
        }
    }
}

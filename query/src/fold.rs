//! Aggregations folded where the data lies: a shard adds the columns of its series up, group by group and slot by slot, and sends the
//! cells (or the columns of a slot that has fewer than a cell has words); who gathers them merges the slots over the tree of [`gather`].
//!
//! Promise: the values are those of the aggregation of the columns themselves, to the bit. A slot is a leaf of the tree, and its series
//! lie in one shard. Where they do not (a move of slots), or where a label set occurs twice (of two owners) and is one series whose
//! samples must be put together first, the cells are of no use: [`counted`] and [`Fold::gathered`] say so, and the columns are asked for.

use crate::column::{ABSENT, Column, Steps};
use crate::gather::{self, Cells, Count, Extreme, Mean, Part, Plain, Run, Totals, Variance};
use crate::shards::{OldForms, SeriesColumn};
use hashbrown::HashTable;
use hindcast_model::{Labels, METRIC_NAME, SLOTS};
use hindcast_promql::{AggregateOp, Grouping};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_64;

/// An aggregation of columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fold {
    /// One of which cells are kept: see [`with_cell`].
    pub op: AggregateOp,
    pub grouping: Option<Grouping>,
    /// What comes between selector and aggregation takes the metric's name away.
    pub drops_name: bool,
}

/// What one shard's columns add up to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Folded {
    pub groups: Vec<FoldedGroup>,
    /// Fingerprints of the labels of all series, those without a value among them.
    pub series: Vec<u64>,
    pub old: OldForms,
}

#[derive(Clone, Debug, PartialEq)]
pub struct FoldedGroup {
    pub labels: Labels,
    /// Ascending, each once.
    pub slots: Vec<(u16, Leaf)>,
}

/// What the series of one group in one slot are.
#[derive(Clone, Debug, PartialEq)]
pub enum Leaf {
    /// Few series, as they are: one after the other, ordered by fingerprint.
    Series(Vec<f64>),
    /// The words of one cell per step ([`Cells::words`]).
    Cells(Vec<u64>),
}

/// How many series all shards folded, and how many different ones.
pub fn counted(all: &[Folded]) -> (usize, usize) {
    let mut seen: Vec<u64> = all.iter().flat_map(|f| &f.series).copied().collect();
    let count = seen.len();
    seen.sort_unstable();
    seen.dedup();
    (count, seen.len())
}

/// What is done with the cells of an aggregation.
pub trait WithCell {
    type Out;
    /// `finish` makes the aggregation's value of a cell's.
    fn with<K: Cells>(self, finish: fn(f64) -> f64) -> Self::Out;
}

/// `None`: it is no aggregation that one cell per step suffices for.
pub fn with_cell<W: WithCell>(op: AggregateOp, what: W) -> Option<W::Out> {
    Some(match op {
        AggregateOp::Sum => what.with::<Totals>(|v| v),
        AggregateOp::Avg => what.with::<Plain<Mean>>(|v| v),
        AggregateOp::Count => what.with::<Plain<Count>>(|v| v),
        AggregateOp::Group => what.with::<Plain<Count>>(|_| 1.0),
        AggregateOp::Min => what.with::<Plain<Extreme<false>>>(|v| v),
        AggregateOp::Max => what.with::<Plain<Extreme<true>>>(|v| v),
        AggregateOp::Stdvar => what.with::<Plain<Variance>>(|v| v),
        AggregateOp::Stddev => what.with::<Plain<Variance>>(f64::sqrt),
        AggregateOp::Topk
        | AggregateOp::Bottomk
        | AggregateOp::CountValues
        | AggregateOp::Quantile
        | AggregateOp::Limitk
        | AggregateOp::LimitRatio => return None,
    })
}

/// Whether an aggregation can be folded where the data lies.
pub fn is_foldable(op: AggregateOp) -> bool {
    struct Nothing;
    impl WithCell for Nothing {
        type Out = ();
        fn with<K: Cells>(self, _: fn(f64) -> f64) {}
    }
    with_cell(op, Nothing).is_some()
}

/// Tells label sets to their groups, whose labels are made once.
pub struct Grouper<'a> {
    named: &'a [String],
    without: bool,
    drops_name: bool,
    /// Of `by`: the labels that tell groups apart, each once.
    wanted: Vec<&'a str>,
    /// By the hash of what tells them apart, with their places.
    by_texts: HashTable<(u64, usize)>,
    known: Vec<Box<[u8]>>,
    texts: Vec<u8>,
    groups: Vec<Labels>,
}

impl<'a> Grouper<'a> {
    pub fn new(grouping: Option<&'a Grouping>, drops_name: bool) -> Self {
        let named = grouping.map_or(&[][..], |g| &g.labels);
        let mut wanted: Vec<&str> = named.iter().map(String::as_str).collect();
        wanted.retain(|name| !(drops_name && *name == METRIC_NAME));
        wanted.sort_unstable();
        wanted.dedup();
        Self {
            named,
            without: grouping.is_some_and(|g| g.without),
            drops_name,
            wanted,
            by_texts: HashTable::new(),
            known: vec![],
            texts: vec![],
            groups: vec![],
        }
    }

    fn keeps(&self, name: &str) -> bool {
        let is_named = self.named.iter().any(|l| l == name);
        match self.without {
            true => name != METRIC_NAME && !is_named,
            false => is_named && !(self.drops_name && name == METRIC_NAME),
        }
    }

    /// The group of a label set: places count from 0, in the order in which groups were met.
    pub fn place(&mut self, labels: &Labels) -> usize {
        let mut texts = std::mem::take(&mut self.texts);
        texts.clear();
        // 0xff cannot occur in UTF-8, so that texts never run together.
        let mut put = |name: &str, value: &str| {
            for text in [name, value] {
                texts.extend_from_slice(text.as_bytes());
                texts.push(0xff);
            }
        };
        if self.without {
            let kept = labels.iter().filter(|(n, _)| self.keeps(n));
            kept.for_each(|(name, value)| put(name, value));
        } else {
            let kept = self.wanted.iter().filter_map(|n| Some((n, labels.get(n)?)));
            kept.for_each(|(name, value)| put(name, value));
        }
        let hash = xxh3_64(&texts);
        let is_same = |(h, place): &(u64, usize)| *h == hash && *self.known[*place] == *texts;
        let place = match self.by_texts.find(hash, is_same) {
            Some((_, place)) => *place,
            None => {
                let place = self.groups.len();
                self.by_texts.insert_unique(hash, (hash, place), |(h, _)| *h);
                self.groups.push(labels.filtered(|name| self.keeps(name)));
                self.known.push(texts.as_slice().into());
                place
            }
        };
        self.texts = texts;
        place
    }

    /// The labels of the groups, by their places.
    pub fn into_groups(self) -> Vec<Labels> {
        self.groups
    }
}

/// The series of one group and slot, ordered by fingerprint: their cells, or they as they are where cells would be more.
struct Fewest(Vec<Vec<f64>>, usize);

impl WithCell for Fewest {
    type Out = Leaf;
    fn with<K: Cells>(self, _: fn(f64) -> f64) -> Self::Out {
        let Self(mut series, steps) = self;
        if let [alone] = &mut *series {
            return Leaf::Series(std::mem::take(alone));
        }
        if series.len() <= K::WORDS && series.iter().all(|values| values.len() == steps) {
            return Leaf::Series(series.concat());
        }
        let series: Vec<(u16, &[f64])> = series.iter().map(|values| (0, values.as_slice())).collect();
        Leaf::Cells(added::<K>(&series, steps).words())
    }
}

fn added<K: Cells>(series: &[(u16, &[f64])], steps: usize) -> K {
    let mut cells = K::new(steps);
    cells.add(series);
    cells
}

/// The aggregation's value at each step.
fn finished<K: Cells>(cells: Option<K>, finish: fn(f64) -> f64) -> Vec<f64> {
    cells.map_or(vec![], |c| c.values().map(|v| v.map_or(ABSENT, finish)).collect())
}

/// The value of a group at each step, of its slots, which ascend. `None`: they are not what was asked for.
struct Values(Vec<(u16, Leaf)>, usize);

impl WithCell for Values {
    type Out = Option<Vec<f64>>;
    fn with<K: Cells>(self, finish: fn(f64) -> f64) -> Self::Out {
        let Self(slots, steps) = self;
        let mut parts = Vec::with_capacity(slots.len());
        for (slot, leaf) in slots {
            // Words go as their cells come: a group may have a thousand slots of many steps.
            let part = match leaf {
                Leaf::Series(values) if values.len() == steps => Part::Series(values),
                Leaf::Series(values) if steps > 0 && !values.is_empty() && values.len() % steps == 0 => {
                    let series: Vec<(u16, &[f64])> = values.chunks_exact(steps).map(|values| (slot, values)).collect();
                    Part::Cells(added::<K>(&series, steps))
                }
                Leaf::Cells(words) if words.len() == steps * K::WORDS => Part::Cells(K::of_words(&words)),
                _ => return None,
            };
            if slot >= SLOTS {
                return None;
            }
            let run = Run { first: slot, len: 1 };
            parts.push((run, part));
        }
        Some(finished(gather::gather::<K>(parts, Run::ALL, steps), finish))
    }
}

/// Slots and columns of series, ordered by (slot, fingerprint): their aggregation at each step.
pub struct Whole<'a>(pub &'a [(u16, &'a [f64])], pub usize);

impl WithCell for Whole<'_> {
    type Out = Vec<f64>;
    fn with<K: Cells>(self, finish: fn(f64) -> f64) -> Self::Out {
        let Self(series, steps) = self;
        finished(gather::node::<K>(series, Run::ALL, steps), finish)
    }
}

impl Fold {
    /// The columns of one shard, ordered by (slot, fingerprint, labels), folded.
    pub fn folded(&self, mut columns: Vec<SeriesColumn>, steps: usize) -> Folded {
        let mut grouper = Grouper::new(self.grouping.as_ref(), self.drops_name);
        let mut grouped: Vec<Vec<usize>> = vec![];
        let mut old = OldForms::default();
        for (i, c) in columns.iter().enumerate().filter(|(_, c)| !c.values.is_empty()) {
            let place = grouper.place(&c.labels);
            grouped.resize_with(grouped.len().max(place + 1), Vec::new);
            grouped[place].push(i);
            old.merge(c.old);
        }
        let slot_of: Vec<u16> = columns.iter().map(|c| c.slot.0).collect();
        let mut groups = Vec::with_capacity(grouped.len());
        for (labels, of_group) in grouper.into_groups().into_iter().zip(grouped) {
            let mut slots = vec![];
            for of_slot in of_group.chunk_by(|a, b| slot_of[*a] == slot_of[*b]) {
                let slot = slot_of[of_slot[0]];
                // As they are folded, they go.
                let of_slot = of_slot
                    .iter()
                    .map(|i| std::mem::take(&mut columns[*i].values))
                    .collect();
                let leaf = with_cell(self.op, Fewest(of_slot, steps)).unwrap_or(Leaf::Series(vec![]));
                slots.push((slot, leaf));
            }
            groups.push(FoldedGroup { labels, slots });
        }
        Folded {
            groups,
            series: columns.iter().map(|c| c.fingerprint).collect(),
            old,
        }
    }

    /// The aggregation of what all shards folded, each series once ([`counted`]): by labels, without columns that have no value. `None`:
    /// it does not follow from that.
    pub fn gathered(&self, all: Vec<Folded>, steps: Steps) -> Option<(Vec<Column>, OldForms)> {
        let mut old = OldForms::default();
        let mut groups: BTreeMap<Labels, Vec<(u16, Leaf)>> = BTreeMap::new();
        for folded in all {
            old.merge(folded.old);
            for group in folded.groups {
                groups.entry(group.labels).or_default().extend(group.slots);
            }
        }
        let mut columns = Vec::with_capacity(groups.len());
        for (labels, mut slots) in groups {
            slots.sort_unstable_by_key(|(slot, _)| *slot);
            if slots.windows(2).any(|pair| pair[0].0 == pair[1].0) {
                return None;
            }
            let values = with_cell(self.op, Values(slots, steps.count))??;
            columns.extend(Some(Column::computed(labels, values)).filter(|c| !c.is_empty()));
        }
        Some((columns, old))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_model::{Owner, Slot};
    use proptest::prelude::*;

    const OPS: [AggregateOp; 8] = [
        AggregateOp::Sum,
        AggregateOp::Avg,
        AggregateOp::Min,
        AggregateOp::Max,
        AggregateOp::Count,
        AggregateOp::Group,
        AggregateOp::Stddev,
        AggregateOp::Stdvar,
    ];

    fn value() -> impl Strategy<Value = f64> {
        prop_oneof![
            4 => (-1e6..1e6).prop_map(|v: f64| v),
            1 => prop::num::f64::ANY,
            1 => Just(ABSENT),
            1 => Just(-0.0),
        ]
    }

    proptest! {
        /// An average by instance of two series each took two and a half times what the series themselves would have.
        #[test]
        fn what_is_folded_is_never_more_than_the_columns_and_means_the_same(
            steps in 1usize..20,
            values in prop::collection::vec((0u16..3, prop::collection::vec(value(), 19)), 1..24),
        ) {
            let mut values = values;
            values.sort_by_key(|(slot, _)| *slot);
            let column = |(i, (slot, values)): (usize, &(u16, Vec<f64>))| SeriesColumn {
                labels: Labels::from_pairs([("i", i.to_string().as_str())]),
                fingerprint: i as u64,
                owner: Owner::None,
                slot: Slot(*slot),
                values: values[..steps].to_vec(),
                old: OldForms::default(),
            };
            let columns: Vec<SeriesColumn> = values.iter().enumerate().map(column).collect();
            let plain: Vec<(u16, &[f64])> = columns.iter().map(|c| (c.slot.0, c.values.as_slice())).collect();
            for op in OPS {
                let fold = Fold { op, grouping: None, drops_name: false };
                let folded = fold.folded(columns.clone(), steps);
                let words = |leaf: &Leaf| match leaf {
                    Leaf::Series(values) => values.len(),
                    Leaf::Cells(words) => words.len(),
                };
                let kept: usize = folded.groups.iter().flat_map(|g| &g.slots).map(|(_, leaf)| words(leaf)).sum();
                prop_assert!(kept <= columns.len() * steps, "{op:?}: {kept} words of {} series", columns.len());
                let all = Steps { start: 0, step: 1, count: steps };
                let (gathered, _) = fold.gathered(vec![folded], all).unwrap();
                let bits = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                let whole = with_cell(op, Whole(&plain, steps)).unwrap();
                let found = gathered.first().map_or_else(|| vec![ABSENT; steps], |c| c.values.clone());
                prop_assert_eq!(bits(&found), bits(&whole), "{:?}", op);
            }
        }
    }
}

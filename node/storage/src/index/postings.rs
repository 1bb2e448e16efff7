//! Which series have one value of one label.
//!
//! Most values of a large index belong to one series or a few; a bitmap for each would take more memory than all
//! label sets together. So a posting starts as one id in place, goes on as a short list, and becomes a roaring
//! bitmap when the list is full.
//!
//! Invariant: ids ascend and are added in ascending order only.

use roaring::{MultiOps, RoaringBitmap};
use std::borrow::Cow;
use std::ops::Range;

/// Ids of a list; one more makes it a bitmap.
const FEW_MAX: usize = 64;

#[derive(Clone, Debug)]
pub enum Posting {
    One(u32),
    Few(Vec<u32>),
    Many(Box<RoaringBitmap>),
}

impl Default for Posting {
    fn default() -> Self {
        Self::Few(vec![])
    }
}

/// Adds an id above all others. Not by roaring's own `push`: in a dense container that looks for the greatest id from the
/// container's end, through up to 8 KiB of zeros.
pub fn push(ids: &mut RoaringBitmap, id: u32) {
    let new = ids.insert(id);
    debug_assert!(new && ids.max() == Some(id), "ids are added in ascending order");
}

/// As `push`, of ids that follow each other.
pub fn push_run(ids: &mut RoaringBitmap, run: Range<u32>) {
    if run.len() == 1 {
        push(ids, run.start);
    } else {
        ids.insert_range(run);
    }
}

impl Posting {
    /// As `push`, of ids that follow each other.
    pub fn push_run(&mut self, mut run: Range<u32>) {
        loop {
            match self {
                Self::Many(ids) => return push_run(ids, run),
                _ => match run.next() {
                    Some(id) => self.push(id),
                    None => return,
                },
            }
        }
    }

    pub fn push(&mut self, id: u32) {
        match self {
            Self::One(first) => *self = Self::Few(vec![*first, id]),
            Self::Few(ids) if ids.is_empty() => *self = Self::One(id),
            Self::Few(ids) if ids.len() < FEW_MAX => ids.push(id),
            Self::Few(ids) => {
                let mut many: RoaringBitmap = ids.iter().copied().collect();
                push(&mut many, id);
                *self = Self::Many(Box::new(many));
            }
            Self::Many(ids) => push(ids, id),
        }
    }

    pub fn remove(&mut self, id: u32) {
        match self {
            Self::One(only) if *only == id => *self = Self::default(),
            Self::One(_) => {}
            Self::Few(ids) => ids.retain(|i| *i != id),
            Self::Many(ids) => {
                ids.remove(id);
                if ids.is_empty() {
                    *self = Self::default();
                }
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Few(ids) if ids.is_empty())
    }

    /// How many of its ids are in `within`.
    pub fn count_within(&self, within: &RoaringBitmap) -> u64 {
        let few = |ids: &[u32]| ids.iter().filter(|id| within.contains(**id)).count() as u64;
        match self {
            Self::One(id) => few(&[*id]),
            Self::Few(ids) => few(ids),
            Self::Many(ids) => ids.intersection_len(within),
        }
    }

    pub fn as_bitmap(&self) -> Cow<'_, RoaringBitmap> {
        match self {
            Self::One(id) => Cow::Owned(std::iter::once(*id).collect()),
            Self::Few(ids) => Cow::Owned(ids.iter().copied().collect()),
            Self::Many(ids) => Cow::Borrowed(ids),
        }
    }

    /// Ascending.
    pub fn iter(&self) -> Box<dyn Iterator<Item = u32> + '_> {
        match self {
            Self::One(id) => Box::new(std::iter::once(*id)),
            Self::Few(ids) => Box::new(ids.iter().copied()),
            Self::Many(ids) => Box::new(ids.iter()),
        }
    }

    /// A bitmap takes its smallest form.
    pub fn optimize(&mut self) {
        if let Self::Many(ids) = self {
            ids.optimize();
        }
    }

    /// Gives back what growing left over.
    pub fn shrink(&mut self) {
        if let Self::Few(ids) = self {
            ids.shrink_to_fit();
        }
    }

    /// Memory besides the posting itself.
    pub fn heap_bytes(&self) -> usize {
        match self {
            Self::One(_) => 0,
            Self::Few(ids) => ids.capacity() * size_of::<u32>(),
            Self::Many(ids) => size_of::<RoaringBitmap>() + bitmap_bytes(ids),
        }
    }
}

/// Memory of a bitmap besides its handle.
pub fn bitmap_bytes(ids: &RoaringBitmap) -> usize {
    /// A key and a store: three words and a tag.
    const CONTAINER_BYTES: usize = 40;
    let s = ids.statistics();
    let stores = s.n_bytes_array_containers + s.n_bytes_run_containers + s.n_bytes_bitset_containers;
    s.n_containers as usize * CONTAINER_BYTES + stores as usize
}

/// The ids of any of `postings`; those of one label have no id in common.
pub fn union<'a>(postings: impl Iterator<Item = &'a Posting>) -> Cow<'a, RoaringBitmap> {
    let (mut few, mut many) = (vec![], vec![]);
    for p in postings {
        match p {
            Posting::One(id) => few.push(*id),
            Posting::Few(ids) => few.extend_from_slice(ids),
            Posting::Many(ids) => many.push(&**ids),
        }
    }
    if let ([only], true) = (&many[..], few.is_empty()) {
        return Cow::Borrowed(only);
    }
    few.sort_unstable();
    let few = RoaringBitmap::from_sorted_iter(few).expect("sorted, and an id has one value of a label");
    if many.is_empty() {
        return Cow::Owned(few);
    }
    Cow::Owned(many.into_iter().union() | few)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_posting_is_a_set_of_ids(steps in prop::collection::vec((1u32..3000, any::<bool>(), 1u32..100), 0..300)) {
            let (mut posting, mut set, mut next) = (Posting::default(), BTreeSet::new(), 0u32);
            for (step, compact, run) in steps {
                next += step;
                posting.push(next);
                set.insert(next);
                if step % 3 == 0 {
                    posting.push_run(next + 1..next + run);
                    set.extend(next + 1..next + run);
                    next += run;
                }
                if step % 5 == 0 && let Some(first) = set.pop_first() {
                    posting.remove(first);
                }
                if compact {
                    posting.optimize();
                    posting.shrink();
                }
            }
            prop_assert_eq!(posting.as_bitmap().iter().collect::<Vec<_>>(), set.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(posting.is_empty(), set.is_empty());
            prop_assert_eq!(posting.iter().collect::<Vec<_>>(), set.iter().copied().collect::<Vec<_>>());
            while let Some(last) = set.pop_last() {
                posting.remove(last);
            }
            prop_assert!(posting.is_empty());
        }
    }
}

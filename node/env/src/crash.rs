//! What a power cut leaves of writes and names that were not synced: one rule, for the simulated disk and the real one.
//!
//! - A write is kept whole, by its first sectors, or not at all, each by itself: the platter knows no order.
//! - A change of names (a new file, a rename, a removal) is kept or lost by itself, and never in halves.
//! - One cut of four loses everything that was not synced, so that a missing sync cannot hide behind luck.

use crate::disk::parent;
use crate::rng::Rng;
use std::collections::{BTreeMap, BTreeSet};

pub const SECTOR_BYTES: usize = 512;

/// One power cut.
pub struct Cut<'a> {
    rng: &'a mut dyn Rng,
    merciless: bool,
}

/// What is left of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    Whole,
    /// So many bytes of its start.
    Start(usize),
    Nothing,
}

impl<'a> Cut<'a> {
    pub fn new(rng: &'a mut dyn Rng) -> Self {
        let merciless = rng.below(4) == 0;
        Self { rng, merciless }
    }

    /// What is left of a write of `len` bytes; of a change of length (`None`), which is never torn.
    pub fn write(&mut self, len: Option<usize>) -> Kept {
        if self.merciless {
            return Kept::Nothing;
        }
        match (self.rng.below(3), len) {
            (0, _) => Kept::Whole,
            (1, Some(len)) => {
                let sectors = len.div_ceil(SECTOR_BYTES) as u64;
                Kept::Start((self.rng.below(sectors + 1) as usize * SECTOR_BYTES).min(len))
            }
            _ => Kept::Nothing,
        }
    }

    /// Whether a change of names is left.
    pub fn names(&mut self) -> bool {
        !self.merciless && self.rng.below(2) == 0
    }
}

/// Changes of names since their folders were last synced, in order. `N` says which file a name means.
#[derive(Clone, Debug)]
pub struct NameChanges<N>(Vec<NameChange<N>>);

/// What happened as one: it is kept or lost as one.
#[derive(Clone, Debug)]
struct NameChange<N> {
    /// Whose sync makes it durable.
    folder: String,
    /// What each name means afterwards.
    names: Vec<(String, Option<N>)>,
}

impl<N> Default for NameChanges<N> {
    fn default() -> Self {
        Self(vec![])
    }
}

impl<N: Clone> NameChanges<N> {
    /// One name now means `node`, or nothing.
    pub fn set(&mut self, path: &str, node: Option<N>) {
        self.add(parent(path), vec![(path.to_owned(), node)]);
    }

    /// The name goes from one path to the other.
    pub fn moved(&mut self, from: &str, to: &str, node: N) {
        self.add(parent(to), vec![(from.to_owned(), None), (to.to_owned(), Some(node))]);
    }

    /// Several names at once, made durable by a sync of `folder`.
    pub fn add(&mut self, folder: &str, names: Vec<(String, Option<N>)>) {
        self.0.push(NameChange {
            folder: folder.to_owned(),
            names,
        });
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All names that any change is about.
    pub fn paths(&self) -> BTreeSet<&str> {
        let names = self.0.iter().flat_map(|c| &c.names);
        names.map(|(path, _)| path.as_str()).collect()
    }

    /// Files that a change gives a name to.
    pub fn nodes(&self) -> impl Iterator<Item = &N> {
        self.0.iter().flat_map(|c| &c.names).filter_map(|(_, n)| n.as_ref())
    }

    /// A sync of the folder: its changes can no longer be lost.
    pub fn settle(&mut self, folder: &str, durable: &mut BTreeMap<String, N>) {
        let all = std::mem::take(&mut self.0);
        for change in all {
            if change.folder == folder {
                change.apply(durable);
            } else {
                self.0.push(change);
            }
        }
    }

    /// The cut: what is left of the changes goes to `durable`. How many were lost.
    pub fn cut(&mut self, cut: &mut Cut<'_>, durable: &mut BTreeMap<String, N>) -> usize {
        let mut lost = 0;
        for change in std::mem::take(&mut self.0) {
            if cut.names() {
                change.apply(durable);
            } else {
                lost += 1;
            }
        }
        lost
    }
}

impl<N> NameChange<N> {
    fn apply(self, to: &mut BTreeMap<String, N>) {
        for (path, node) in self.names {
            match node {
                Some(node) => drop(to.insert(path, node)),
                None => drop(to.remove(&path)),
            }
        }
    }
}

//! What writers were told, and what readers found: the check of I1 (`acked ⊆ read, each exactly once`).

use std::collections::{BTreeMap, BTreeSet};

/// What happened to the items of one writer. An item is named by its number.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Confirmed: must be there.
    pub acked: BTreeSet<u64>,
    /// Sent, never confirmed: may be there, once.
    pub unknown: BTreeSet<u64>,
}

/// What is wrong with an answer; empty: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub lost: Vec<u64>,
    pub doubled: Vec<u64>,
    /// Never written by this writer.
    pub invented: Vec<u64>,
}

impl Verdict {
    pub fn is_clean(&self) -> bool {
        *self == Self::default()
    }
}

/// Holds what was read against what was written.
pub fn check(written: &Written, read: impl IntoIterator<Item = u64>) -> Verdict {
    let mut counts = BTreeMap::<u64, u32>::new();
    for item in read {
        *counts.entry(item).or_default() += 1;
    }
    Verdict {
        lost: written
            .acked
            .iter()
            .filter(|i| !counts.contains_key(i))
            .copied()
            .collect(),
        doubled: counts.iter().filter(|(_, n)| **n > 1).map(|(i, _)| *i).collect(),
        invented: counts
            .keys()
            .filter(|i| !written.acked.contains(i) && !written.unknown.contains(i))
            .copied()
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_finds_what_is_lost_doubled_and_invented() {
        let written = Written {
            acked: [1, 2, 3].into(),
            unknown: [4].into(),
        };
        assert!(check(&written, [3, 2, 1]).is_clean());
        assert!(check(&written, [1, 2, 3, 4]).is_clean());
        let verdict = check(&written, [1, 1, 3, 9]);
        assert_eq!(
            (verdict.lost, verdict.doubled, verdict.invented),
            (vec![2], vec![1], vec![9])
        );
        assert_eq!(
            check(&written, [1, 2, 3, 4, 4]).doubled,
            [4],
            "what is unknown must not be there twice either"
        );
    }
}

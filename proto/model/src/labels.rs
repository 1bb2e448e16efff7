//! Label sets: what names a series or a log stream.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The label that holds a metric's name.
pub const METRIC_NAME: &str = "__name__";

/// A label set: sorted by name, names unique, no empty value (an empty value means "absent", as in Prometheus).
/// Clones share the set.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "Vec<(String, String)>")]
pub struct Labels(Arc<[(String, String)]>);

impl Labels {
    pub fn empty() -> Self {
        Self(Arc::from([]))
    }

    /// Sorts, drops empty values; of a name given twice the last one stays.
    pub fn new(mut pairs: Vec<(String, String)>) -> Self {
        // Stable, so that the last of equal names is the last given; `dedup_by` keeps the first of a run.
        pairs.reverse();
        pairs.sort_by(|a, b| a.0.cmp(&b.0));
        pairs.dedup_by(|later, kept| later.0 == kept.0);
        pairs.retain(|(_, v)| !v.is_empty());
        Self(pairs.into())
    }

    pub fn from_pairs<const N: usize>(pairs: [(&str, &str); N]) -> Self {
        Self::new(pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect())
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .binary_search_by(|(n, _)| n.as_str().cmp(name))
            .ok()
            .map(|i| self.0[i].1.as_str())
    }

    /// The value, or "" when absent: how matchers see it.
    pub fn value(&self, name: &str) -> &str {
        self.get(name).unwrap_or("")
    }

    pub fn metric_name(&self) -> Option<&str> {
        self.get(METRIC_NAME)
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> + Clone {
        self.0.iter().map(|(n, v)| (n.as_str(), v.as_str()))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The set with `name` = `value`; an empty value removes the label.
    pub fn with(&self, name: &str, value: &str) -> Self {
        let mut pairs = self.0.to_vec();
        pairs.push((name.to_owned(), value.to_owned()));
        Self::new(pairs)
    }

    /// Only the labels that `keep` says yes to.
    pub fn filtered(&self, mut keep: impl FnMut(&str) -> bool) -> Self {
        Self(self.0.iter().filter(|(n, _)| keep(n)).cloned().collect())
    }

    pub fn without(&self, name: &str) -> Self {
        self.filtered(|n| n != name)
    }

    /// 64 bits that name the set: XXH3 over `name 0xff value 0xff …`. Stable over versions and machines;
    /// it decides placement and the order of sums. 0xff cannot occur in UTF-8, so sets never run together.
    pub fn fingerprint(&self) -> u64 {
        let mut h = xxhash_rust::xxh3::Xxh3::new();
        for (n, v) in self.0.iter() {
            h.update(n.as_bytes());
            h.update(&[0xff]);
            h.update(v.as_bytes());
            h.update(&[0xff]);
        }
        h.digest()
    }
}

impl Default for Labels {
    fn default() -> Self {
        Self::empty()
    }
}

impl From<Vec<(String, String)>> for Labels {
    fn from(pairs: Vec<(String, String)>) -> Self {
        Self::new(pairs)
    }
}

impl FromIterator<(String, String)> for Labels {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        Self::new(pairs.into_iter().collect())
    }
}

/// As PromQL writes a series: `up{job="x"}`.
impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.metric_name().unwrap_or(""))?;
        let mut rest = self.iter().filter(|(n, _)| *n != METRIC_NAME).peekable();
        if rest.peek().is_none() && self.metric_name().is_some() {
            return Ok(());
        }
        f.write_str("{")?;
        for (i, (n, v)) in rest.enumerate() {
            write!(f, "{}{n}={v:?}", if i > 0 { ", " } else { "" })?;
        }
        f.write_str("}")
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_sorted_unique_and_without_empty_values() {
        let l = Labels::from_pairs([("b", "1"), ("a", "x"), ("b", "2"), ("c", "")]);
        assert_eq!(l.iter().collect::<Vec<_>>(), [("a", "x"), ("b", "2")]);
        assert_eq!((l.get("b"), l.get("c"), l.value("c")), (Some("2"), None, ""));
        assert_eq!(l.with("a", "").to_string(), "{b=\"2\"}");
    }

    #[test]
    fn the_fingerprint_stays_what_it_was() {
        // Placement of stored series depends on these bits: they never change.
        assert_eq!(
            Labels::from_pairs([(METRIC_NAME, "up"), ("job", "node")]).fingerprint(),
            0x85d6_66c2_8b44_5bb9
        );
        assert_ne!(
            Labels::from_pairs([("ab", "c")]).fingerprint(),
            Labels::from_pairs([("a", "bc")]).fingerprint()
        );
    }
}

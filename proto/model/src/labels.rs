//! Label sets: what names a series or a log stream.
//!
//! Invariants
//! - Pairs ascend by name, names are unique, no value is empty.
//! - A set has exactly one packed form, so equal sets have equal bytes: comparing and hashing never walk the pairs.
//!
//! The packed form is one text: the number of pairs, then for each pair name and value, each behind its length in
//! bytes. Numbers are digits of base 64 below 0x80 (the least first, 0x40 set on all but the last), so the whole is
//! UTF-8 and parts of it are taken without looking at their bytes again. It lives in memory only; what is stored or
//! sent is the list of pairs. The empty set is the empty text.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::iter::FusedIterator;
use std::sync::Arc;

/// The label that holds a metric's name.
pub const METRIC_NAME: &str = "__name__";

/// A label set: sorted by name, names unique, no empty value (an empty value means "absent", as in Prometheus).
/// One allocation; clones share it.
#[derive(Clone, PartialEq, Eq)]
pub struct Labels(Arc<str>);

const DIGIT_BITS: u32 = 6;
/// Set on every digit but the last of a number.
const MORE: u8 = 1 << DIGIT_BITS;

const fn digits(mut n: usize) -> usize {
    let mut digits = 1;
    while n >= MORE as usize {
        n >>= DIGIT_BITS;
        digits += 1;
    }
    digits
}

fn put_number(out: &mut String, mut n: usize) {
    while n >= MORE as usize {
        out.push(char::from(n as u8 & (MORE - 1) | MORE));
        n >>= DIGIT_BITS;
    }
    out.push(char::from(n as u8));
}

fn put_text(out: &mut String, text: &str) {
    put_number(out, text.len());
    out.push_str(text);
}

/// The number that starts at `at`, and where it ends.
fn number(packed: &str, mut at: usize) -> (usize, usize) {
    let (bytes, mut n, mut shift) = (packed.as_bytes(), 0, 0);
    loop {
        let digit = bytes[at];
        at += 1;
        n |= usize::from(digit & (MORE - 1)) << shift;
        if digit < MORE {
            return (n, at);
        }
        shift += DIGIT_BITS;
    }
}

/// The pairs of a set, ascending by name.
#[derive(Clone)]
pub struct Pairs<'a> {
    packed: &'a str,
    at: usize,
    left: usize,
}

impl<'a> Pairs<'a> {
    fn text(&mut self) -> &'a str {
        let (len, start) = number(self.packed, self.at);
        self.at = start + len;
        &self.packed[start..self.at]
    }
}

impl<'a> Iterator for Pairs<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        Some((self.text(), self.text()))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Pairs<'_> {}
impl FusedIterator for Pairs<'_> {}

impl Labels {
    pub fn empty() -> Self {
        // Shared by all empty sets: nothing is allocated.
        Self(Arc::default())
    }

    /// Sorts, drops empty values; of a name given twice the last one stays.
    pub fn new(pairs: Vec<(String, String)>) -> Self {
        Self::from_sorted(pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())))
    }

    pub fn from_pairs<const N: usize>(pairs: [(&str, &str); N]) -> Self {
        Self::from_sorted(pairs)
    }

    /// As `new`, of texts that lie elsewhere. Pairs that are sorted, unique and not empty already (what decoders
    /// give) are copied once; any others are put in order first.
    pub fn from_sorted<'a, I>(pairs: I) -> Self
    where
        I: IntoIterator<Item = (&'a str, &'a str), IntoIter: Clone>,
    {
        let pairs = pairs.into_iter();
        let (mut n, mut bytes, mut last) = (0, 0, None);
        for (name, value) in pairs.clone() {
            if value.is_empty() || last.is_some_and(|l| l >= name) {
                return Self::from_unsorted(pairs.collect());
            }
            last = Some(name);
            n += 1;
            bytes += digits(name.len()) + name.len() + digits(value.len()) + value.len();
        }
        Self::pack(pairs, n, bytes)
    }

    fn from_unsorted(mut pairs: Vec<(&str, &str)>) -> Self {
        // Stable, so that the last of equal names is the last given; `dedup_by` keeps the first of a run.
        pairs.reverse();
        pairs.sort_by(|a, b| a.0.cmp(b.0));
        pairs.dedup_by(|later, kept| later.0 == kept.0);
        pairs.retain(|(_, v)| !v.is_empty());
        // Now they are sorted: this does not come back here.
        Self::from_sorted(pairs)
    }

    /// `n` sorted pairs that take `bytes`.
    fn pack<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>, n: usize, bytes: usize) -> Self {
        if n == 0 {
            return Self::empty();
        }
        let mut packed = String::with_capacity(digits(n) + bytes);
        put_number(&mut packed, n);
        for (name, value) in pairs {
            put_text(&mut packed, name);
            put_text(&mut packed, value);
        }
        Self(packed.into())
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        let mut pairs = self.iter();
        while pairs.left > 0 {
            pairs.left -= 1;
            let (found, value) = (pairs.text(), pairs.text());
            // Most names differ in length: the rest is compared only where it can decide.
            if found.len() == name.len() && found == name {
                return Some(value);
            }
        }
        None
    }

    /// The value, or "" when absent: how matchers see it.
    pub fn value(&self, name: &str) -> &str {
        self.get(name).unwrap_or("")
    }

    pub fn metric_name(&self) -> Option<&str> {
        self.get(METRIC_NAME)
    }

    pub fn iter(&self) -> Pairs<'_> {
        let (left, at) = if self.0.is_empty() { (0, 0) } else { number(&self.0, 0) };
        Pairs {
            packed: &self.0,
            at,
            left,
        }
    }

    pub fn len(&self) -> usize {
        self.iter().left
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of memory that all clones together take, besides the handles.
    pub fn shared_bytes(&self) -> usize {
        // The two counts of an `Arc`.
        const COUNTS: usize = 2 * size_of::<usize>();
        if self.0.is_empty() { 0 } else { COUNTS + self.0.len() }
    }

    /// The set with `name` = `value`; an empty value removes the label.
    pub fn with(&self, name: &str, value: &str) -> Self {
        let mut pairs: Vec<(&str, &str)> = self.iter().filter(|(n, _)| *n != name).collect();
        if !value.is_empty() {
            let at = pairs.partition_point(|(n, _)| *n < name);
            pairs.insert(at, (name, value));
        }
        Self::from_sorted(pairs)
    }

    /// Only the labels that `keep` says yes to.
    pub fn filtered(&self, mut keep: impl FnMut(&str) -> bool) -> Self {
        let kept: Vec<(&str, &str)> = self.iter().filter(|(n, _)| keep(n)).collect();
        if kept.len() == self.len() {
            return self.clone();
        }
        Self::from_sorted(kept)
    }

    pub fn without(&self, name: &str) -> Self {
        self.filtered(|n| n != name)
    }

    /// 64 bits that name the set: XXH3 over `name 0xff value 0xff …`. Stable over versions and machines;
    /// it decides placement and the order of sums. 0xff cannot occur in UTF-8, so sets never run together.
    pub fn fingerprint(&self) -> u64 {
        /// Larger sets are hashed piece by piece, which is slower.
        const WHOLE_BYTES_MAX: usize = 512;
        let mut whole = [0; WHOLE_BYTES_MAX];
        // Every text gives up at least one digit of its length for the 0xff behind it: the packed form is longer.
        if self.0.len() <= WHOLE_BYTES_MAX {
            let mut end = 0;
            for text in self.iter().flat_map(|(n, v)| [n, v]) {
                whole[end..end + text.len()].copy_from_slice(text.as_bytes());
                end += text.len();
                whole[end] = 0xff;
                end += 1;
            }
            return xxhash_rust::xxh3::xxh3_64(&whole[..end]);
        }
        let mut h = xxhash_rust::xxh3::Xxh3::new();
        for text in self.iter().flat_map(|(n, v)| [n, v]) {
            h.update(text.as_bytes());
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

/// By the pairs in their order, name before value.
impl Ord for Labels {
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) {
            return Ordering::Equal;
        }
        self.iter().cmp(other.iter())
    }
}

impl PartialOrd for Labels {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for Labels {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

/// As a list of pairs.
impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        struct List<'a>(&'a Labels);
        impl Serialize for List<'_> {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_seq(self.0.iter())
            }
        }
        s.serialize_newtype_struct("Labels", &List(self))
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Vec::<(String, String)>::deserialize(d).map(Self::new)
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
    use proptest::prelude::*;

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

    #[test]
    fn a_set_is_serialised_as_a_list_of_pairs() {
        let labels = Labels::from_pairs([("b", "1"), ("a", "x")]);
        let list = vec![("a".to_owned(), "x".to_owned()), ("b".to_owned(), "1".to_owned())];
        let bytes = rmp_serde::to_vec(&labels).unwrap();
        assert_eq!(bytes, rmp_serde::to_vec(&list).unwrap());
        assert_eq!(rmp_serde::from_slice::<Labels>(&bytes).unwrap(), labels);
        let unsorted = rmp_serde::to_vec(&[("b", "1"), ("a", "x"), ("c", "")]).unwrap();
        assert_eq!(rmp_serde::from_slice::<Labels>(&unsorted).unwrap(), labels);
    }

    #[test]
    fn empty_sets_share_nothing_and_large_ones_keep_every_byte() {
        assert_eq!((Labels::empty().len(), Labels::empty().shared_bytes()), (0, 0));
        assert_eq!(Labels::from_pairs([("a", "")]), Labels::empty());
        for len in [1, 63, 64, 4095, 4096, 300_000] {
            let value = "x".repeat(len);
            let l = Labels::from_pairs([("b", &value), ("a", "1")]);
            assert_eq!((l.get("b"), l.get("a"), l.len()), (Some(value.as_str()), Some("1"), 2));
        }
        let many = Labels::new((0..5000).map(|i| (format!("l{i:04}"), i.to_string())).collect());
        assert_eq!(
            (many.len(), many.get("l4999"), many.iter().len()),
            (5000, Some("4999"), 5000)
        );
    }

    /// What a set meant before it was packed: the sorted list of its pairs.
    fn listed(mut pairs: Vec<(String, String)>) -> Vec<(String, String)> {
        pairs.reverse();
        pairs.sort_by(|a, b| a.0.cmp(&b.0));
        pairs.dedup_by(|later, kept| later.0 == kept.0);
        pairs.retain(|(_, v)| !v.is_empty());
        pairs
    }

    fn hash_of(l: &Labels) -> u64 {
        let mut h = std::hash::DefaultHasher::new();
        l.hash(&mut h);
        h.finish()
    }

    fn any_pairs() -> impl Strategy<Value = Vec<(String, String)>> {
        let text = prop_oneof!["[ab]{0,2}", ".{0,6}", "\u{1}{60,70}"];
        prop::collection::vec((text.clone(), text), 0..6)
    }

    proptest! {
        #[test]
        fn a_set_is_its_sorted_list(a in any_pairs(), b in any_pairs()) {
            let (x, y) = (Labels::new(a.clone()), Labels::new(b.clone()));
            let (a, b) = (listed(a), listed(b));
            let pairs: Vec<(String, String)> = x.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
            prop_assert_eq!(&pairs, &a);
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
            prop_assert_eq!(x == y, a == b);
            prop_assert_eq!(x == y, hash_of(&x) == hash_of(&y));
            prop_assert_eq!(x.len(), a.len());
            for (n, v) in a.iter().chain(&b) {
                prop_assert_eq!(x.get(n), a.iter().find(|p| p.0 == *n).map(|p| p.1.as_str()));
                let mut with = a.clone();
                with.push((n.clone(), v.clone()));
                prop_assert_eq!(x.with(n, v), Labels::new(with));
            }
        }

        #[test]
        fn the_fingerprint_is_one_of_all_bytes(pairs in prop::collection::vec((".{1,9}", ".{1,90}"), 0..8)) {
            let labels = Labels::new(pairs);
            let text: Vec<u8> = labels.iter()
                .flat_map(|(n, v)| [n.as_bytes(), &[0xff], v.as_bytes(), &[0xff]].concat()).collect();
            prop_assert_eq!(labels.fingerprint(), xxhash_rust::xxh3::xxh3_64(&text));
        }
    }
}

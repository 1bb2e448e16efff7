//! The values of one label: each text once, and the series that have it.
//!
//! Texts are numbered as they come. The order of texts is needed for prefixes only and is made when it is first
//! asked for; values that come later lie behind it and are looked at one by one until there are enough to sort anew.

use super::pattern::Plan;
use super::postings::{Posting, bitmap_bytes, push, push_run, union};
use hashbrown::HashTable;
use hindcast_model::{MatchOp, Matcher};
use roaring::RoaringBitmap;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::OnceLock;
use xxhash_rust::xxh3::xxh3_64;

/// Texts in one run of bytes, numbered from 0, each once.
#[derive(Default)]
pub struct Texts {
    bytes: String,
    ends: Vec<usize>,
    by_text: HashTable<u32>,
}

fn slice<'a>(bytes: &'a str, ends: &[usize], i: u32) -> &'a str {
    let i = i as usize;
    let start = if i == 0 { 0 } else { ends[i - 1] };
    &bytes[start..ends[i]]
}

impl Texts {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn get(&self, i: u32) -> &str {
        slice(&self.bytes, &self.ends, i)
    }

    pub fn find(&self, text: &str) -> Option<u32> {
        let same = |i: &u32| self.get(*i) == text;
        self.by_text.find(xxh3_64(text.as_bytes()), same).copied()
    }

    /// The number of `text`, and whether it is new.
    pub fn find_or_add(&mut self, text: &str) -> (u32, bool) {
        if let Some(known) = self.find(text) {
            return (known, false);
        }
        let i = u32::try_from(self.ends.len()).expect("a label has fewer than 2^32 values");
        self.bytes.push_str(text);
        self.ends.push(self.bytes.len());
        let (bytes, ends) = (&self.bytes, &self.ends);
        let hash_of = |i: &u32| xxh3_64(slice(bytes, ends, *i).as_bytes());
        self.by_text.insert_unique(xxh3_64(text.as_bytes()), i, hash_of);
        (i, true)
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len() as u32).map(|i| self.get(i))
    }

    pub fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
        self.ends.shrink_to_fit();
    }

    pub fn heap_bytes(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<usize>() + self.by_text.allocation_size()
    }
}

/// New values beyond a fixed number, and beyond this part of the sorted ones, are sorted in.
const UNSORTED_PART: usize = 8;
const UNSORTED_MAX: usize = 1024;
/// Below this, all values are looked at: quicker than making their order.
const ORDER_VALUES_MIN: usize = 128;

#[derive(Default)]
pub struct Values {
    texts: Texts,
    postings: Vec<Posting>,
    /// Series that have the label.
    present: RoaringBitmap,
    /// The first values by text.
    order: OnceLock<Vec<u32>>,
    /// Postings without a series.
    empty: usize,
}

/// What a matcher says about series, as far as the index knows without looking at all values.
pub enum Term<'a> {
    /// All match.
    Any,
    /// Only these match.
    Keep(Cow<'a, RoaringBitmap>),
    /// All but these match.
    Drop(Cow<'a, RoaringBitmap>),
    /// All values must be looked at.
    Scan(&'a Values),
}

impl Values {
    pub fn text(&self, value: u32) -> &str {
        self.texts.get(value)
    }

    pub fn value(&mut self, text: &str) -> u32 {
        let (value, new) = self.texts.find_or_add(text);
        if new {
            self.postings.push(Posting::default());
            self.empty += 1;
            self.sort_in();
        }
        value
    }

    pub fn add(&mut self, value: u32, id: u32) {
        let posting = &mut self.postings[value as usize];
        self.empty -= usize::from(posting.is_empty());
        posting.push(id);
        push(&mut self.present, id);
    }

    /// As `add`, of ids that follow each other; `present` is the caller's to tell, by `add_present`.
    pub fn add_run(&mut self, value: u32, ids: Range<u32>) {
        let posting = &mut self.postings[value as usize];
        self.empty -= usize::from(posting.is_empty() && !ids.is_empty());
        posting.push_run(ids);
    }

    /// Ids of series that have the label, whatever its value.
    pub fn add_present(&mut self, ids: Range<u32>) {
        push_run(&mut self.present, ids);
    }

    pub fn remove(&mut self, text: &str, id: u32) {
        let Some(value) = self.texts.find(text) else { return };
        let posting = &mut self.postings[value as usize];
        if !posting.is_empty() {
            posting.remove(id);
            self.empty += usize::from(posting.is_empty());
        }
        self.present.remove(id);
    }

    /// After removals: gives the memory of values back that no series has any more, once they are half of all.
    pub fn tidy(&mut self) {
        if 2 * self.empty <= self.texts.len() {
            return;
        }
        let old = std::mem::take(self);
        self.present = old.present;
        for (text, posting) in old.texts.iter().zip(old.postings).filter(|(_, p)| !p.is_empty()) {
            self.texts.find_or_add(text);
            self.postings.push(posting);
        }
    }

    pub fn present(&self) -> &RoaringBitmap {
        &self.present
    }

    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// The series that have this text.
    pub fn posting(&self, text: &str) -> Option<&Posting> {
        Some(&self.postings[self.texts.find(text)? as usize])
    }

    /// How many texts a series has.
    pub fn live_len(&self) -> usize {
        self.texts.len() - self.empty
    }

    /// Hands on texts by their numbers from `from` on, `at_once` of them; the number to go on with, if there are more.
    pub fn visit(&self, from: usize, at_once: usize, mut each: impl FnMut(&str, &Posting)) -> Option<usize> {
        let end = from.saturating_add(at_once).min(self.texts.len());
        for i in from..end {
            each(self.texts.get(i as u32), &self.postings[i]);
        }
        (end < self.texts.len()).then_some(end)
    }

    /// Texts that a series has, in no particular order.
    pub fn live(&self) -> impl Iterator<Item = (&str, &Posting)> {
        self.texts.iter().zip(&self.postings).filter(|(_, p)| !p.is_empty())
    }

    /// Bitmaps take their smallest form.
    pub fn optimize(&mut self) {
        self.present.optimize();
        self.postings.iter_mut().for_each(Posting::optimize);
    }

    /// Gives back what growing left over.
    pub fn shrink(&mut self) {
        self.optimize();
        self.texts.shrink();
        self.postings.shrink_to_fit();
        self.postings.iter_mut().for_each(Posting::shrink);
    }

    pub fn heap_bytes(&self) -> usize {
        let postings: usize = self.postings.iter().map(Posting::heap_bytes).sum();
        self.texts.heap_bytes()
            + self.postings.capacity() * size_of::<Posting>()
            + postings
            + bitmap_bytes(&self.present)
            + self.order.get().map_or(0, |o| o.capacity() * size_of::<u32>())
    }

    // ---- the order of texts ----

    fn sort_in(&mut self) {
        let Some(order) = self.order.get_mut() else { return };
        let sorted = order.len();
        if self.texts.len() - sorted <= UNSORTED_MAX.max(sorted / UNSORTED_PART) {
            return;
        }
        // A stable sort finds the sorted run and merges the rest into it.
        order.extend(sorted as u32..self.texts.len() as u32);
        order.sort_by(|a, b| self.texts.get(*a).cmp(self.texts.get(*b)));
    }

    fn order(&self) -> &[u32] {
        self.order.get_or_init(|| {
            let mut order: Vec<u32> = (0..self.texts.len() as u32).collect();
            order.sort_unstable_by(|a, b| self.texts.get(*a).cmp(self.texts.get(*b)));
            order
        })
    }

    fn starting_with(&self, prefix: &[u8], mut each: impl FnMut(u32)) {
        let order = self.order();
        let bytes = |v: u32| self.texts.get(v).as_bytes();
        let start = order.partition_point(|v| bytes(*v) < prefix);
        let begins = |v: &u32| bytes(*v).starts_with(prefix);
        order[start..].iter().copied().take_while(begins).for_each(&mut each);
        (order.len() as u32..self.texts.len() as u32)
            .filter(begins)
            .for_each(each);
    }

    // ---- matching ----

    fn posting_of(&self, text: &[u8]) -> Option<&Posting> {
        let value = self.texts.find(std::str::from_utf8(text).ok()?)?;
        Some(&self.postings[value as usize])
    }

    fn union(&self, values: &[u32]) -> Cow<'_, RoaringBitmap> {
        union(values.iter().map(|v| &self.postings[*v as usize]))
    }

    /// The series with a value that `m`, were it not negated, matches; `None` if all values must be looked at.
    fn hits(&self, m: &Matcher) -> Option<Cow<'_, RoaringBitmap>> {
        let none = || Cow::Owned(RoaringBitmap::new());
        if matches!(m.op, MatchOp::Equal | MatchOp::NotEqual) {
            let posting = self.posting_of(m.value.as_bytes());
            return Some(posting.map_or_else(none, Posting::as_bitmap));
        }
        match Plan::of(&m.value) {
            Plan::All => Some(Cow::Borrowed(&self.present)),
            Plan::Exactly(texts) => {
                let texts = texts.iter().filter_map(|t| std::str::from_utf8(t).ok());
                let matching: Vec<u32> = texts
                    .filter(|t| is_hit(m, t))
                    .filter_map(|t| self.texts.find(t))
                    .collect();
                Some(self.union(&matching))
            }
            Plan::Prefixes { of, sure } if self.texts.len() >= ORDER_VALUES_MIN => {
                let mut matching = vec![];
                for prefix in &of {
                    self.starting_with(prefix, |v| {
                        if sure || is_hit(m, self.texts.get(v)) {
                            matching.push(v);
                        }
                    });
                }
                Some(self.union(&matching))
            }
            Plan::Prefixes { .. } | Plan::Scan => None,
        }
    }

    /// Looks at every value.
    fn scan(&self, m: &Matcher) -> Cow<'_, RoaringBitmap> {
        let all = 0..self.texts.len() as u32;
        let (hit, miss): (Vec<u32>, Vec<u32>) = all.partition(|v| is_hit(m, self.texts.get(*v)));
        if hit.len() <= miss.len() {
            self.union(&hit)
        } else if miss.is_empty() {
            Cow::Borrowed(&self.present)
        } else {
            Cow::Owned(&self.present - &*self.union(&miss))
        }
    }

    /// From series with a hit to series that match. A series without the label has the empty value.
    fn term_of<'a>(&'a self, m: &Matcher, hits: Cow<'a, RoaringBitmap>) -> Term<'a> {
        let complement = |hits: Cow<'a, RoaringBitmap>| Cow::Owned(&self.present - &*hits);
        match (is_negative(m), m.matches_empty()) {
            (false, false) => Term::Keep(hits),
            (false, true) => Term::Drop(complement(hits)),
            (true, false) => Term::Keep(complement(hits)),
            (true, true) => Term::Drop(hits),
        }
    }

    pub fn term(&self, m: &Matcher) -> Term<'_> {
        match self.hits(m) {
            Some(hits) => self.term_of(m, hits),
            None => Term::Scan(self),
        }
    }

    /// As `term`, looking at all values.
    pub fn scanned_term(&self, m: &Matcher) -> Term<'_> {
        self.term_of(m, self.scan(m))
    }

    /// Whether it is cheaper to look at the label sets of that many series than at all values: a set costs two or three
    /// times what a value does, but each value that matches has a posting to be united with the others.
    pub fn prefers_sets(&self, series: u64) -> bool {
        series <= self.texts.len() as u64
    }
}

fn is_negative(m: &Matcher) -> bool {
    matches!(m.op, MatchOp::NotEqual | MatchOp::NotRegex)
}

fn is_hit(m: &Matcher, value: &str) -> bool {
    m.matches_value(value) != is_negative(m)
}

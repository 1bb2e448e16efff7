//! What a word is, and which words the filter of a block knows. Ingest and query share this file; the rules are part of
//! the file format.
//!
//! A word is a maximal run of bytes that are no delimiters. Three kinds: *numbers* (digits, perhaps a last `Z`),
//! *mixed* (some digit) and *plain* (no digit). The filter holds at most two keys of a word, each made of six bytes:
//! - its head (the first six bytes, or all of a shorter word): of plain words, of mixed words from six bytes on, of
//!   numbers from eleven bytes on. Short numbers (times, ports, process ids) are most of the words and tell little.
//! - its tail (the last six bytes, or all), if no digit is among them.
//!
//! A needle may start and end inside a word. Its first word is known up to its left end only, its last word up to its
//! right end, so a head serves the last word and a tail the first. A needle that is one word has two open ends; it is
//! looked up only if no word with a digit in the block is longer than it.

use crate::cursor::Bad;
use xorf::{BinaryFuse8, BinaryFuse8Ref, Filter as _, FilterRef as _};

pub const DELIMITER: u8 = 1;
pub const DIGIT: u8 = 2;
/// `a` to `f`.
pub const HEX: u8 = 4;
/// Bytes below are markers of templates.
pub const CONTROL_END: u8 = 4;

/// Kinds of each byte.
pub const KINDS: [u8; 256] = {
    let mut kinds = [0u8; 256];
    let delimiters = b" =,:[](){}<>\"/|#@;.-_\t";
    let mut i = 0;
    while i < delimiters.len() {
        kinds[delimiters[i] as usize] = DELIMITER;
        i += 1;
    }
    let mut b = b'0';
    while b <= b'9' {
        kinds[b as usize] = DIGIT;
        b += 1;
    }
    let mut b = b'a';
    while b <= b'f' {
        kinds[b as usize] = HEX;
        b += 1;
    }
    kinds
};

pub const fn is_delimiter(b: u8) -> bool {
    KINDS[b as usize] & DELIMITER != 0
}

const fn is_digit(b: u8) -> bool {
    b.is_ascii_digit()
}

const KEY_BYTES: usize = 6;
const NUMBER_BYTES_MIN: usize = 11;

/// A key is its own bytes: kind, length, up to six bytes of the word. The filter mixes it.
fn key(kind: u64, bytes: &[u8]) -> u64 {
    let text = bytes.iter().rev().fold(0u64, |k, &b| k << 8 | u64::from(b));
    kind << 56 | (bytes.len() as u64) << 48 | text
}

fn head(word: &[u8]) -> u64 {
    key(1, &word[..word.len().min(KEY_BYTES)])
}

fn tail(word: &[u8]) -> u64 {
    key(2, &word[word.len().saturating_sub(KEY_BYTES)..])
}

/// Whether the filter holds the head of a word.
fn has_head(word: &[u8]) -> bool {
    let digits = match word {
        [digits @ .., b'Z'] if !digits.is_empty() => digits,
        _ => word,
    };
    if digits.iter().copied().all(is_digit) {
        word.len() >= NUMBER_BYTES_MIN
    } else {
        word.len() >= KEY_BYTES || !word.iter().copied().any(is_digit)
    }
}

fn has_tail(word: &[u8]) -> bool {
    !word[word.len().saturating_sub(KEY_BYTES)..]
        .iter()
        .copied()
        .any(is_digit)
}

/// The words of a text, with the place of each.
pub fn each_word<'a>(text: &'a [u8], mut each: impl FnMut(usize, &'a [u8])) {
    let mut i = 0;
    while i < text.len() {
        if is_delimiter(text[i]) {
            i += 1;
            continue;
        }
        let start = i;
        while i < text.len() && !is_delimiter(text[i]) {
            i += 1;
        }
        each(start, &text[start..i]);
    }
}

/// The words of a block while it is encoded.
#[derive(Default)]
pub struct Words {
    /// Each once.
    keys: Vec<u64>,
    /// The same by hash, open addressing; 0: nothing, which is no key. At most half full.
    table: Vec<u64>,
    /// Length of the longest word with a digit.
    longest: usize,
}

const TABLE_MIN: usize = 1 << 10;

impl Words {
    pub fn clear(&mut self) {
        self.keys.clear();
        self.table.fill(0);
        self.longest = 0;
    }

    fn push(&mut self, key: u64) {
        if self.keys.len() * 2 >= self.table.len() {
            self.grow();
        }
        let at = Self::free_place(&self.table, key);
        if self.table[at] == 0 {
            self.table[at] = key;
            self.keys.push(key);
        }
    }

    /// Where a key stands, or would.
    fn free_place(table: &[u64], key: u64) -> usize {
        let mask = table.len() - 1;
        let mut at = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & mask;
        while table[at] != 0 && table[at] != key {
            at = (at + 1) & mask;
        }
        at
    }

    fn grow(&mut self) {
        let len = (self.table.len() * 2).max(TABLE_MIN);
        self.table.clear();
        self.table.resize(len, 0);
        for &key in &self.keys {
            let at = Self::free_place(&self.table, key);
            self.table[at] = key;
        }
    }

    pub fn word(&mut self, word: &[u8]) {
        if has_head(word) {
            self.push(head(word));
        }
        if has_tail(word) {
            self.push(tail(word));
        }
        if word.len() > self.longest && word.iter().copied().any(is_digit) {
            self.longest = word.len();
        }
    }

    /// A word of digits only.
    pub fn number(&mut self, word: &[u8]) {
        self.longest = self.longest.max(word.len());
        if word.len() >= NUMBER_BYTES_MIN {
            self.push(head(word));
        }
    }

    /// A word with a digit, too short for any key.
    pub fn short(&mut self, len: usize) {
        self.longest = self.longest.max(len);
    }

    pub fn text(&mut self, text: &[u8]) {
        each_word(text, |_, word| self.word(word));
    }

    /// Nothing if there are no keys, or in the (never seen) case that no filter could be built: then every search
    /// looks.
    pub fn put_filter(&mut self, out: &mut Vec<u8>) {
        if self.keys.is_empty() {
            return;
        }
        // The same words give the same filter.
        self.keys.sort_unstable();
        let Ok(filter) = BinaryFuse8::try_from(&self.keys[..]) else {
            return;
        };
        let d = &filter.descriptor;
        out.extend_from_slice(&(self.longest.min(u32::MAX as usize) as u32).to_le_bytes());
        out.extend_from_slice(&d.seed.to_le_bytes());
        out.extend_from_slice(&d.segment_length.to_le_bytes());
        out.extend_from_slice(&d.segment_count_length.to_le_bytes());
        out.extend_from_slice(&filter.fingerprints);
    }
}

const FILTER_HEAD_BYTES: usize = 20;

/// The filter of a block over bytes as `put_filter` wrote them.
pub struct WordFilter<'a> {
    longest: usize,
    fuse: BinaryFuse8Ref<'a>,
}

impl<'a> WordFilter<'a> {
    pub fn new(bytes: &'a [u8], descriptor: &'a mut [u8; 20]) -> Result<Self, Bad> {
        let (head, fingerprints) = bytes
            .split_at_checked(FILTER_HEAD_BYTES)
            .ok_or("a filter is cut short")?;
        let number = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| head[at + i]));
        let (segment, count) = (number(12), number(16));
        let needed = u64::from(count) + 2 * u64::from(segment);
        // What the filter's look-up indexes by: anything else could reach outside of the fingerprints.
        let fits = segment.is_power_of_two() && count.is_multiple_of(segment) && needed <= fingerprints.len() as u64;
        if !fits || count == 0 {
            return Err("a filter has an impossible shape");
        }
        descriptor[..8].copy_from_slice(&head[4..12]);
        descriptor[8..12].copy_from_slice(&head[12..16]);
        descriptor[12..16].copy_from_slice(&(segment - 1).to_le_bytes());
        descriptor[16..].copy_from_slice(&head[16..]);
        Ok(Self {
            longest: number(0) as usize,
            fuse: BinaryFuse8Ref::from_dma(descriptor, fingerprints),
        })
    }

    /// False: no line of the block holds the needle.
    pub fn may_hold(&self, probe: &Probe) -> bool {
        if !probe.keys.iter().all(|k| self.fuse.contains(k)) {
            return false;
        }
        match probe.lone {
            Some((len, _)) if len > self.longest => false,
            Some((len, Some(key))) if len == self.longest => self.fuse.contains(&key),
            _ => true,
        }
    }
}

/// What a filter can be asked about a needle.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    keys: Vec<u64>,
    /// The needle is part of one word with a digit: its length, and its key if that word must be it alone.
    lone: Option<(usize, Option<u64>)>,
}

impl Probe {
    pub fn new(needle: &[u8]) -> Self {
        let mut probe = Self::default();
        each_word(needle, |at, word| {
            let (left, right) = (at > 0, at + word.len() < needle.len());
            if left && has_head(word) && (right || word.len() >= KEY_BYTES) {
                probe.keys.push(head(word));
            }
            if right && has_tail(word) && (left || word.len() >= KEY_BYTES) {
                probe.keys.push(tail(word));
            }
            if !left && !right && word.iter().copied().any(is_digit) {
                probe.lone = Some((word.len(), has_head(word).then(|| head(word))));
            }
        });
        probe
    }

    pub const fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.lone.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filter_of(lines: &[Vec<u8>]) -> Vec<u8> {
        let mut words = Words::default();
        lines.iter().for_each(|l| words.text(l));
        let mut out = vec![];
        words.put_filter(&mut out);
        out
    }

    proptest! {
        #[test]
        fn a_needle_cut_from_a_line_is_never_denied(
            lines in prop::collection::vec("[a-c0-3Z. -]{0,40}|[0-9]{8,20}|[a-f0-9]{30,34}", 1..20),
            pick: prop::sample::Index, from: prop::sample::Index, len in 0usize..40,
        ) {
            let lines: Vec<Vec<u8>> = lines.into_iter().map(String::into_bytes).collect();
            let line = pick.get(&lines);
            let from = if line.is_empty() { 0 } else { from.index(line.len()) };
            let needle = &line[from..(from + len).min(line.len())];
            let bytes = filter_of(&lines);
            if !bytes.is_empty() {
                let mut descriptor = [0; 20];
                let filter = WordFilter::new(&bytes, &mut descriptor).unwrap();
                prop_assert!(filter.may_hold(&Probe::new(needle)));
            }
        }

        #[test]
        fn any_bytes_are_a_filter_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), segment in 0u32..8, count in 0u32..64) {
            let mut descriptor = [0; 20];
            let mut bytes = bytes;
            if bytes.len() > 20 {
                bytes[12..16].copy_from_slice(&(1u32 << segment).to_le_bytes());
                bytes[16..20].copy_from_slice(&(count << segment).to_le_bytes());
            }
            if let Ok(filter) = WordFilter::new(&bytes, &mut descriptor) {
                (0..100u64).for_each(|i| {
                    let probe = Probe { keys: vec![i.wrapping_mul(0x9e37_79b9_7f4a_7c15)], lone: None };
                    filter.may_hold(&probe);
                });
            }
        }
    }

    #[test]
    fn absent_words_are_denied() {
        let lines: Vec<Vec<u8>> = (0..2000)
            .map(|i| format!("request {:016x} of user-{i} took {i} ms", i * 0x9e37_79b9_7f4au64).into_bytes())
            .collect();
        let bytes = filter_of(&lines);
        let mut descriptor = [0; 20];
        let filter = WordFilter::new(&bytes, &mut descriptor).unwrap();
        let may = |needle: &str| filter.may_hold(&Probe::new(needle.as_bytes()));
        assert!(may("request 0000"));
        assert!(!may("NEEDLE-7f3a9c"));
        // One word of the length of the longest is that word; a longer one is in no line.
        assert!(!may("f3a9c0017f3a9c00"));
        assert!(!may("0f3a9c0017f3a9c00"));
        // Of these nothing is known.
        for needle in ["quest", "took 7", "", " ", "12"] {
            assert!(may(needle), "{needle}");
        }
    }
}

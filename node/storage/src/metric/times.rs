//! The times of a segment's pages: each distinct vector once. Layout: `FORMAT.md` §5.
//!
//! A straight line (what our own scraper writes) takes no bytes beyond its entry: length, first and last time. Others
//! keep their distances from the line between their ends, packed like a page. Times strictly ascend; any i64 comes back.

use crate::cursor::{Bad, Cursor, put_varint};
use crate::metric::page::{Encoder, PAGE_ROWS_MAX, Page, Scratch};
use hashbrown::HashMap;
use std::collections::VecDeque;
use std::hash::{BuildHasherDefault, Hasher};

const NS_PER_MS: u64 = 1_000_000;
/// Vectors kept to be compared with; those beyond are known by their 128-bit hash, length and ends.
const KNOWN_BYTES_MAX: usize = 64 << 20;

/// What is known of a vector without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub first: i64,
    pub last: i64,
    /// Where its bytes lie: a block of the dictionary, and a range in it. Empty of a straight line.
    pub block: u32,
    pub start: u32,
    pub len: u32,
    pub rows: u32,
}

impl Entry {
    /// The step of a straight line.
    pub fn step(&self) -> Option<u64> {
        (self.len == 0).then(|| span(self.first, self.last) / u64::from(self.rows - 1).max(1))
    }

    /// Appends the vector. `bytes` are the entry's own.
    pub fn decode(&self, bytes: &[u8], scratch: &mut Scratch, out: &mut Vec<i64>) -> Result<(), Bad> {
        let rows = self.rows as usize;
        let line = |step: u64| (0..rows as u64).map(move |i| self.first.wrapping_add(step.wrapping_mul(i) as i64));
        if let Some(step) = self.step() {
            out.extend(line(step));
        } else {
            let mut c = Cursor(bytes);
            let step = c.varint()?;
            let start = out.len();
            out.resize(start + rows, 0);
            Page::parse(c.0, rows)?.decode_ints(&mut out[start..], scratch)?;
            for (t, on_line) in out[start..].iter_mut().zip(line(step)) {
                *t = t.wrapping_add(on_line);
            }
        }
        let decoded = &out[out.len() - rows..];
        if decoded[0] != self.first || decoded[rows - 1] != self.last {
            return Err("times end elsewhere than the table says");
        }
        Ok(())
    }
}

fn span(first: i64, last: i64) -> u64 {
    last.wrapping_sub(first) as u64
}

/// Appends the bytes of a vector; none for a straight line.
fn encode(times: &[i64], best: bool, encoder: &mut Encoder, distances: &mut Vec<i64>, out: &mut Vec<u8>) {
    let (first, last) = (times[0], times[times.len() - 1]);
    let parts = (times.len() as u64 - 1).max(1);
    let step = span(first, last) / parts;
    let straight = times.windows(2).all(|t| span(t[0], t[1]) == step);
    if straight {
        return;
    }
    // In whole milliseconds, where all times are: their common divisor then packs them as milliseconds.
    let ms = times.iter().all(|t| span(first, *t).is_multiple_of(NS_PER_MS));
    let step = if ms { step / NS_PER_MS * NS_PER_MS } else { step };
    put_varint(out, step);
    distances.clear();
    let distance = |(t, i): (&i64, u64)| (span(first, *t)).wrapping_sub(step.wrapping_mul(i)) as i64;
    distances.extend(times.iter().zip(0..).map(distance));
    encoder.encode_ints(distances, best, out);
}

/// The key is a good hash already.
#[derive(Default)]
struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|b| self.0 = self.0.rotate_left(8) ^ u64::from(*b));
    }
    fn write_u128(&mut self, v: u128) {
        self.0 = v as u64;
    }
}

/// Vectors of the segment being written.
#[derive(Default)]
pub struct Dictionary {
    pub entries: Vec<Entry>,
    /// Bytes of the block being filled.
    pub block: Vec<u8>,
    /// How many blocks were taken away full.
    blocks: u32,
    by_hash: HashMap<u128, u32, BuildHasherDefault<Same>>,
    /// The vectors themselves, oldest first, as far as `KNOWN_BYTES_MAX` goes.
    known: VecDeque<Vec<i64>>,
    /// The entry of the first of `known`.
    known_from: u32,
    known_bytes: usize,
    hashed: Vec<u8>,
    distances: Vec<i64>,
}

impl Dictionary {
    /// The place of a vector, which is added if it is new.
    pub fn place(&mut self, times: &[i64], best: bool, encoder: &mut Encoder) -> u32 {
        assert!(
            (1..=PAGE_ROWS_MAX).contains(&times.len()),
            "a page has 1 to {PAGE_ROWS_MAX} values"
        );
        self.hashed.resize(8 * times.len(), 0);
        for (b, t) in self.hashed.as_chunks_mut::<8>().0.iter_mut().zip(times) {
            *b = t.to_le_bytes();
        }
        let hash = xxhash_rust::xxh3::xxh3_128(&self.hashed);
        if let Some(&at) = self.by_hash.get(&hash)
            && self.is(at, times)
        {
            return at;
        }
        assert!(times.is_sorted_by(|a, b| a < b), "times of a series ascend");
        let start = self.block.len();
        encode(times, best, encoder, &mut self.distances, &mut self.block);
        let at = self.entries.len() as u32;
        self.entries.push(Entry {
            first: times[0],
            last: times[times.len() - 1],
            block: self.blocks,
            start: start as u32,
            len: (self.block.len() - start) as u32,
            rows: times.len() as u32,
        });
        self.by_hash.insert(hash, at);
        self.keep(times);
        at
    }

    fn is(&self, at: u32, times: &[i64]) -> bool {
        let known = at.checked_sub(self.known_from).and_then(|i| self.known.get(i as usize));
        let e = &self.entries[at as usize];
        match known {
            Some(vector) => vector == times,
            None => e.rows as usize == times.len() && e.first == times[0] && e.last == times[times.len() - 1],
        }
    }

    fn keep(&mut self, times: &[i64]) {
        self.known.push_back(times.to_vec());
        self.known_bytes += 8 * times.len();
        while self.known_bytes > KNOWN_BYTES_MAX
            && let Some(oldest) = self.known.pop_front()
        {
            self.known_bytes -= 8 * oldest.len();
            self.known_from += 1;
        }
    }

    /// The block in work has been written away.
    pub fn next_block(&mut self) {
        self.block.clear();
        self.blocks += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vector() -> impl Strategy<Value = Vec<i64>> {
        let ascending = |mut v: Vec<i64>| {
            v.sort_unstable();
            v.dedup();
            v
        };
        prop_oneof![
            prop::collection::vec(any::<i64>(), 1..200).prop_map(ascending),
            (any::<i32>(), 1i64..1 << 40, 1i64..300)
                .prop_map(|(start, step, n)| (0..n).map(|i| i64::from(start) + i * step).collect()),
            prop::collection::vec(0i64..900, 1..1300).prop_map(|jitter| {
                let at = |(j, i): (i64, i64)| (1_700_000_000_000 + 15_000 * i + j) * 1_000_000;
                jitter.into_iter().zip(0..).map(at).collect()
            }),
        ]
    }

    proptest! {
        #[test]
        fn times_come_back(vectors in prop::collection::vec(vector(), 1..5), best: bool) {
            let (mut dictionary, mut encoder) = (Dictionary::default(), Encoder::default());
            let places: Vec<u32> = vectors.iter().map(|v| dictionary.place(v, best, &mut encoder)).collect();
            for (v, at) in vectors.iter().zip(places) {
                prop_assert_eq!(dictionary.place(v, best, &mut encoder), at, "known the second time");
                let e = dictionary.entries[at as usize];
                let bytes = &dictionary.block[e.start as usize..][..e.len as usize];
                let mut out = vec![3];
                e.decode(bytes, &mut Scratch::default(), &mut out).unwrap();
                prop_assert_eq!(&out[1..], &v[..]);
            }
        }
    }

    #[test]
    fn straight_lines_take_no_bytes_and_jitter_little() {
        let (mut dictionary, mut encoder) = (Dictionary::default(), Encoder::default());
        let line: Vec<i64> = (0..480).map(|i| 7 + 15_000_000_000 * i).collect();
        dictionary.place(&line, false, &mut encoder);
        assert_eq!(dictionary.block.len(), 0);
        let jittered: Vec<i64> = line.iter().map(|t| t / 1_000_000 % 13 * 1_000_000 + t).collect();
        dictionary.place(&jittered, false, &mut encoder);
        assert!(dictionary.block.len() < 480 * 6 / 8, "{}", dictionary.block.len());
    }
}

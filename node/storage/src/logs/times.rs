//! The times column of a block: ascending nanoseconds in chunks of 128, so that a moment's rank needs one chunk.
//!
//! Layout: first:signed, unit:varint (the greatest common divisor of all distances to the first), chunks:
//! { start from that of the chunk before, least step, bits of a step } as varint, varint, u8; then the steps less the
//! least, packed LSB first, each chunk on a byte boundary.

use crate::cursor::{Bad, Cursor, put_signed, put_varint};

const CHUNK: usize = 128;
/// A packed number is read with one 16-byte load.
const PADDING: usize = 16;

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Times must not descend.
pub fn put_times(out: &mut Vec<u8>, times: &[i64]) {
    let Some(&first) = times.first() else { return };
    let offset = |t: i64| t.wrapping_sub(first) as u64;
    let mut unit = 0;
    for &t in times {
        let d = offset(t);
        if unit == 0 || !d.is_multiple_of(unit) {
            unit = gcd(d, unit);
        }
    }
    let unit = unit.max(1);
    put_signed(out, first);
    put_varint(out, unit);
    let mut before = 0;
    let mut packed = vec![];
    for chunk in times.chunks(CHUNK) {
        let start = offset(chunk[0]) / unit;
        let steps = || chunk.windows(2).map(|w| w[1].wrapping_sub(w[0]) as u64 / unit);
        let least = steps().min().unwrap_or(0);
        let width = steps().max().map_or(0, |most| 64 - (most - least).leading_zeros());
        put_varint(out, start - before);
        put_varint(out, least);
        out.push(width as u8);
        before = start;
        if width > 0 {
            pack(&mut packed, steps().map(|s| s - least), width);
        }
    }
    out.extend_from_slice(&packed);
}

fn pack(out: &mut Vec<u8>, values: impl Iterator<Item = u64>, width: u32) {
    let (mut held, mut bits) = (0u128, 0);
    for v in values {
        held |= u128::from(v) << bits;
        bits += width;
        while bits >= 8 {
            out.push(held as u8);
            held >>= 8;
            bits -= 8;
        }
    }
    if bits > 0 {
        out.push(held as u8);
    }
}

#[derive(Clone, Copy)]
struct Chunk {
    start: u64,
    least: u64,
    width: u32,
    body: usize,
}

/// A block's times, unpacked chunk by chunk.
pub struct Times {
    rows: usize,
    first: i64,
    unit: u64,
    chunks: Vec<Chunk>,
    body: Vec<u8>,
}

impl Times {
    pub fn parse(bytes: &[u8], rows: usize) -> Result<Self, Bad> {
        let c = &mut Cursor(bytes);
        let (first, unit) = (c.signed()?, c.varint()?);
        let (mut start, mut body) = (0u64, 0);
        let mut chunks = Vec::with_capacity(rows.div_ceil(CHUNK).min(bytes.len()));
        for at in (0..rows).step_by(CHUNK) {
            start = start.checked_add(c.varint()?).ok_or("a time is out of range")?;
            let (least, width) = (c.varint()?, u32::from(c.byte()?));
            if width > 64 {
                return Err("a time has too many bits");
            }
            chunks.push(Chunk {
                start,
                least,
                width,
                body,
            });
            body += ((rows - at).min(CHUNK) - 1) * width as usize;
            body = body.next_multiple_of(8);
        }
        if c.0.len() != body / 8 {
            return Err("the times have another length");
        }
        let mut body = c.0.to_vec();
        body.resize(body.len() + PADDING, 0);
        Ok(Self {
            rows,
            first,
            unit,
            chunks,
            body,
        })
    }

    pub const fn rows(&self) -> usize {
        self.rows
    }

    fn time(&self, units: u64) -> i64 {
        self.first.wrapping_add(units.wrapping_mul(self.unit) as i64)
    }

    fn chunk(&self, number: usize, mut each: impl FnMut(i64) -> bool) {
        let Some(&c) = self.chunks.get(number) else { return };
        let n = (self.rows - number * CHUNK).min(CHUNK);
        let mut units = c.start;
        let mask = if c.width == 64 { u64::MAX } else { (1 << c.width) - 1 };
        let mut bit = c.body;
        for i in 0..n {
            if i > 0 {
                let word: [u8; 16] = std::array::from_fn(|b| self.body[bit / 8 + b]);
                let step = (u128::from_le_bytes(word) >> (bit % 8)) as u64 & mask;
                units = units.wrapping_add(c.least).wrapping_add(step);
                bit += c.width as usize;
            }
            if !each(self.time(units)) {
                return;
            }
        }
    }

    pub fn get(&self, row: usize) -> i64 {
        let (mut left, mut found) = (row % CHUNK, self.first);
        self.chunk(row / CHUNK, |t| {
            found = t;
            left = left.wrapping_sub(1);
            left != usize::MAX
        });
        found
    }

    /// The times of rows in any order. Rows of one chunk that follow each other walk it once.
    pub fn pick(&self, rows: &[u32], out: &mut Vec<i64>) {
        let (mut number, mut times) = (usize::MAX, Vec::with_capacity(CHUNK));
        for row in rows.iter().map(|&r| r as usize) {
            if row / CHUNK != number {
                number = row / CHUNK;
                times.clear();
                self.chunk(number, |t| {
                    times.push(t);
                    true
                });
            }
            out.push(times[row % CHUNK]);
        }
    }

    /// The times of some rows, ascending.
    pub fn range(&self, rows: std::ops::Range<usize>, out: &mut Vec<i64>) {
        let mut number = rows.start / CHUNK;
        while number * CHUNK < rows.end.min(self.rows) {
            let mut row = number * CHUNK;
            self.chunk(number, |t| {
                if rows.contains(&row) {
                    out.push(t);
                }
                row += 1;
                row < rows.end
            });
            number += 1;
        }
    }

    /// How many rows lie before a time.
    pub fn before(&self, time: i64) -> usize {
        let later = self.chunks.partition_point(|c| self.time(c.start) < time);
        let Some(number) = later.checked_sub(1) else { return 0 };
        let mut rank = number * CHUNK;
        let c = self.chunks[number];
        let n = (self.rows - rank).min(CHUNK) as u64;
        let step = c.least.wrapping_mul(self.unit);
        if c.width == 0 && step > 0 && c.start.checked_add(c.least.saturating_mul(n)).is_some() {
            // Even steps: no need to walk.
            let distance = time.wrapping_sub(self.time(c.start)) as u64;
            return rank + distance.div_ceil(step).min(n) as usize;
        }
        self.chunk(number, |t| {
            rank += usize::from(t < time);
            t < time
        });
        rank
    }

    /// The rows with times in `from..=to`.
    pub fn rows_in(&self, from: i64, to: i64) -> std::ops::Range<usize> {
        let start = self.before(from);
        let end = to.checked_add(1).map_or(self.rows, |after| self.before(after));
        start..end.max(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn times_come_back_and_are_ranked(
            mut times in prop_oneof![
                prop::collection::vec(any::<i64>(), 1..400),
                prop::collection::vec((0i64..50).prop_map(|t| t * 1_000_000), 1..400),
                (any::<i32>(), 1i64..1_000_000, 1usize..400)
                    .prop_map(|(t, step, n)| (0..n as i64).map(|i| i64::from(t) + i * step).collect()),
            ],
            probes in prop::collection::vec(any::<i64>(), 0..5), pick: prop::sample::Index, near in -1i64..2,
        ) {
            times.sort_unstable();
            let mut out = vec![];
            put_times(&mut out, &times);
            let back = Times::parse(&out, times.len()).unwrap();
            let mut all = vec![];
            back.range(0..times.len(), &mut all);
            prop_assert_eq!(&all, &times);
            let row = pick.index(times.len());
            prop_assert_eq!(back.get(row), times[row]);
            let mut part = vec![];
            back.range(row / 2..row, &mut part);
            prop_assert_eq!(&part[..], &times[row / 2..row]);
            // As a search finds them: forwards, backwards, with gaps.
            let mut rows: Vec<u32> = (0..times.len() as u32).filter(|r| r % 3 != 1).collect();
            rows.extend((0..times.len() as u32).rev());
            let mut picked = vec![];
            back.pick(&rows, &mut picked);
            prop_assert!(picked.iter().eq(rows.iter().map(|r| &times[*r as usize])));
            for t in probes.into_iter().chain([times[row].saturating_add(near)]) {
                prop_assert_eq!(back.before(t), times.partition_point(|&x| x < t));
            }
        }

        #[test]
        fn any_bytes_are_times_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100), rows in 0usize..300) {
            if let Ok(times) = Times::parse(&bytes, rows) {
                let mut all = vec![];
                times.range(0..rows, &mut all);
                times.before(17);
            }
        }
    }

    #[test]
    fn even_steps_take_no_bits() {
        let times: Vec<i64> = (0..10_000)
            .map(|i| 1_700_000_000_000_000_000 + i * 432_000_000)
            .collect();
        let mut out = vec![];
        put_times(&mut out, &times);
        assert!(out.len() < 400, "{}", out.len());
    }
}

//! Bit packing with patched exceptions: most values in `width` bits each, the few larger ones aside.
//!
//! Layout: low bits of all values, LSB first, in `ceil(n * width / 8)` bytes; then, of each value that needs more bits,
//! its place (varint, the distance from the one before) and, behind all places, its high bits (varint).
//!
//! Unpacking runs 8 values at a time out of a 64-byte view: they begin at a byte and none spans more than 8 bytes.
//! There are three ways (AVX-512 with VBMI, AVX2, plain), chosen at run time; tests compare them.

use crate::cursor::{Bad, Cursor, put_varint};
use fearless_simd::{Level, dispatch};

/// So that a value never spans more than 8 bytes.
pub const WIDTH_MAX: u32 = 56;
/// Values unpacked at a time: they stay in the first-level cache until they are floats.
pub const CHUNK: usize = 512;
const VIEW: usize = 64;

/// How many values need how many bits.
pub type Histogram = [u32; 65];

/// Counts bit lengths; four tables, so that equal neighbours do not wait for each other.
pub fn histogram(values: &[u64]) -> Histogram {
    let mut parts = [[0u32; 65]; 4];
    let mut fours = values.chunks_exact(4);
    for four in &mut fours {
        for (part, v) in parts.iter_mut().zip(four) {
            part[bits(*v)] += 1;
        }
    }
    for v in fours.remainder() {
        parts[0][bits(*v)] += 1;
    }
    let [mut sum, rest @ ..] = parts;
    for part in &rest {
        for (s, p) in sum.iter_mut().zip(part) {
            *s += p;
        }
    }
    sum
}

fn bits(v: u64) -> usize {
    64 - v.leading_zeros() as usize
}

/// The width of least cost, how many values exceed it, and about how many bits all take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub width: u32,
    pub exceptions: u32,
    pub cost: u64,
}

pub fn plan(histogram: &Histogram, n: usize) -> Plan {
    let most = (0..=64u32).rfind(|&b| histogram[b as usize] > 0).unwrap_or(0);
    let mut best = Plan {
        width: 0,
        exceptions: 0,
        cost: u64::MAX,
    };
    let mut exceptions = 0;
    // From the widest down: what is wider than `width` has been counted.
    for width in (0..=most).rev() {
        if width <= WIDTH_MAX {
            // A place takes a byte or a little more, high bits a byte per seven.
            let each = 12 + 8 * u64::from(((64 - width) / 8).min(3));
            let cost = n as u64 * u64::from(width) + u64::from(exceptions) * each;
            if cost < best.cost {
                best = Plan {
                    width,
                    exceptions,
                    cost,
                };
            }
        }
        exceptions += histogram[width as usize];
    }
    best
}

pub const fn packed_len(n: usize, width: u32) -> usize {
    (n * width as usize).div_ceil(8)
}

fn mask(width: u32) -> u64 {
    if width == 0 { 0 } else { u64::MAX >> (64 - width) }
}

/// Packs the low bits of all values.
pub fn pack(values: &[u64], width: u32, out: &mut Vec<u8>) {
    if width == 0 {
        return;
    }
    let start = out.len();
    let len = packed_len(values.len(), width);
    out.resize(start + len.div_ceil(8) * 8, 0);
    let mut words = out[start..].chunks_exact_mut(8);
    let (mask, mut word, mut used) = (mask(width), 0u64, 0u32);
    for &v in values {
        let v = v & mask;
        word |= v << used;
        used += width;
        if used >= 64 {
            if let Some(w) = words.next() {
                w.copy_from_slice(&word.to_le_bytes());
            }
            used -= 64;
            // `used` bits of `v` are left; none when `used` is 0, as `width` is below 64.
            word = v >> (width - used);
        }
    }
    if let Some(w) = words.next() {
        w.copy_from_slice(&word.to_le_bytes());
    }
    out.truncate(start + len);
}

/// Appends places and high bits of the values that exceed `width`.
pub fn put_exceptions(values: &[u64], width: u32, out: &mut Vec<u8>, highs: &mut Vec<u8>) {
    highs.clear();
    let mut next = 0;
    for (i, eight) in values.chunks(8).enumerate() {
        if eight.iter().fold(0, |all, v| all | v) >> width == 0 {
            continue;
        }
        for (j, v) in eight.iter().enumerate().filter(|(_, v)| *v >> width != 0) {
            let at = 8 * i + j;
            put_varint(out, (at - next) as u64);
            put_varint(highs, v >> width);
            next = at + 1;
        }
    }
    out.extend_from_slice(highs);
}

/// Walks the exceptions of a page in step with its chunks.
#[derive(Clone, Debug)]
pub struct Patches<'a> {
    places: Cursor<'a>,
    highs: Cursor<'a>,
    left: usize,
    /// Place of the next one, `usize::MAX` when there is none.
    next: usize,
}

impl<'a> Patches<'a> {
    pub fn parse(bytes: &'a [u8], count: usize) -> Result<Self, Bad> {
        let mut highs = Cursor(bytes);
        for _ in 0..count {
            highs.varint()?;
        }
        let mut patches = Self {
            places: Cursor(bytes),
            highs,
            left: count,
            next: 0,
        };
        patches.advance(0)?;
        Ok(patches)
    }

    fn advance(&mut self, from: usize) -> Result<(), Bad> {
        self.next = usize::MAX;
        if self.left > 0 {
            self.left -= 1;
            let step: u32 = self.places.number()?;
            self.next = from + step as usize;
        }
        Ok(())
    }

    /// Adds the high bits to values `start..` of the page.
    pub fn apply(&mut self, start: usize, values: &mut [u64], width: u32) -> Result<(), Bad> {
        while self.next < start + values.len() {
            let high = self.highs.varint()?;
            let value = self.next.checked_sub(start).and_then(|at| values.get_mut(at));
            *value.ok_or("an exception lies outside of its page")? |= high << width;
            self.advance(self.next + 1)?;
        }
        Ok(())
    }
}

/// Where a value's 8 bytes lie in the view, and by how much they are shifted.
const fn place(width: usize, j: usize) -> (usize, usize) {
    (j * width / 8, j * width % 8)
}

/// Unpacks `out.len()` values from the start of `packed`, which must hold at least that many.
pub fn unpack(level: Level, packed: &[u8], width: u32, out: &mut [u64]) {
    assert!(
        width <= WIDTH_MAX && packed.len() >= packed_len(out.len(), width),
        "the caller has compared lengths"
    );
    if width == 0 {
        out.fill(0);
        return;
    }
    // Views reach 64 bytes on: what is nearer to the end is unpacked out of a copy.
    let step = width as usize;
    let whole = match packed.len().checked_sub(VIEW) {
        Some(room) => (room / step + 1).min(out.len() / 8),
        None => 0,
    };
    let (front, back) = out.split_at_mut(8 * whole);
    unpack_views(level, packed, width, front);
    if back.is_empty() {
        return;
    }
    // Less than a view is left of what is needed: views into its copy all end within two.
    let rest = &packed[whole * step..];
    let mut copy = [0u8; 2 * VIEW];
    let take = rest.len().min(VIEW);
    copy[..take].copy_from_slice(&rest[..take]);
    let eights = back.len() / 8;
    let (full, last) = back.split_at_mut(8 * eights);
    unpack_views(level, &copy, width, full);
    if !last.is_empty() {
        let mut eight = [0; 8];
        unpack_views(level, &copy[eights * step..], width, &mut eight);
        last.copy_from_slice(&eight[..last.len()]);
    }
}

/// `out` is a multiple of 8 long, and each of its eights has a 64-byte view in `packed`.
fn unpack_views(level: Level, packed: &[u8], width: u32, out: &mut [u64]) {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    {
        if let Some(avx512) = level.as_avx512() {
            return unpack_avx512(avx512, packed, width as usize, out);
        }
        if let Some(avx2) = level.as_avx2() {
            return unpack_avx2(avx2, packed, width as usize, out);
        }
    }
    dispatch!(level, _simd => unpack_plain(packed, width, out));
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
const fn permutes() -> [[u8; 64]; 57] {
    let mut all = [[0; 64]; 57];
    let mut w = 0;
    while w < all.len() {
        let mut i = 0;
        while i < 64 {
            all[w][i] = (place(w, i / 8).0 + i % 8) as u8;
            i += 1;
        }
        w += 1;
    }
    all
}

const fn shifts() -> [[u64; 8]; 57] {
    let mut all = [[0; 8]; 57];
    let mut w = 0;
    while w < all.len() {
        let mut j = 0;
        while j < 8 {
            all[w][j] = place(w, j).1 as u64;
            j += 1;
        }
        w += 1;
    }
    all
}

/// Byte `i` of the 8 words, taken from byte `PERMUTES[width][i]` of the view.
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
static PERMUTES: [[u8; 64]; 57] = permutes();
static SHIFTS: [[u64; 8]; 57] = shifts();

#[cfg(target_arch = "x86")]
use std::arch::x86 as arch;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64 as arch;

fearless_simd::kernel!(
    fn unpack_avx512(avx512: Avx512, packed: &[u8], width: usize, out: &mut [u64]) {
        use arch::{__m512i, _mm512_and_si512, _mm512_permutexvar_epi8, _mm512_set1_epi64, _mm512_srlv_epi64};
        use fearless_simd::prelude::*;
        use fearless_simd::{u8x64, u64x8};
        let permute: __m512i = u8x64::from_slice(avx512, &PERMUTES[width]).into();
        let shift: __m512i = u64x8::from_slice(avx512, &SHIFTS[width]).into();
        let mask = _mm512_set1_epi64((u64::MAX >> (64 - width)) as i64);
        let mut at = 0;
        for eight in out.as_chunks_mut::<8>().0 {
            let view: __m512i = u8x64::from_slice(avx512, &packed[at..at + VIEW]).into();
            let words = _mm512_permutexvar_epi8(permute, view);
            let values = _mm512_and_si512(_mm512_srlv_epi64(words, shift), mask);
            let values: u64x8<_> = values.simd_into(avx512);
            values.store_slice(eight);
            at += width;
        }
    }
);

/// For each width: where the four pairs of values begin, and which bytes each pair takes from its 16.
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
const fn shuffles() -> [[[u8; 16]; 4]; 57] {
    let mut all = [[[0; 16]; 4]; 57];
    let mut w = 0;
    while w < all.len() {
        let mut pair = 0;
        while pair < 4 {
            let base = place(w, 2 * pair).0;
            let mut i = 0;
            while i < 16 {
                all[w][pair][i] = (place(w, 2 * pair + i / 8).0 - base + i % 8) as u8;
                i += 1;
            }
            pair += 1;
        }
        w += 1;
    }
    all
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
static SHUFFLES: [[[u8; 16]; 4]; 57] = shuffles();

fearless_simd::kernel!(
    fn unpack_avx2(avx2: Avx2, packed: &[u8], width: usize, out: &mut [u64]) {
        use arch::{
            __m128i, __m256i, _mm256_and_si256, _mm256_set_m128i, _mm256_set1_epi64x, _mm256_shuffle_epi8,
            _mm256_srlv_epi64,
        };
        use fearless_simd::prelude::*;
        use fearless_simd::{u8x16, u64x4};
        let pair = |p: usize| -> __m128i { u8x16::from_slice(avx2, &SHUFFLES[width][p]).into() };
        let shuffles = [_mm256_set_m128i(pair(1), pair(0)), _mm256_set_m128i(pair(3), pair(2))];
        let (low, high) = SHIFTS[width].split_at(4);
        let shifts: [__m256i; 2] = [
            u64x4::from_slice(avx2, low).into(),
            u64x4::from_slice(avx2, high).into(),
        ];
        let mask = _mm256_set1_epi64x((u64::MAX >> (64 - width)) as i64);
        let bases: [usize; 4] = [0, place(width, 2).0, place(width, 4).0, place(width, 6).0];
        let mut at = 0;
        for eight in out.as_chunks_mut::<8>().0 {
            let view = &packed[at..at + VIEW];
            for half in 0..2 {
                let (a, b) = (bases[2 * half], bases[2 * half + 1]);
                let first: __m128i = u8x16::from_slice(avx2, &view[a..a + 16]).into();
                let second: __m128i = u8x16::from_slice(avx2, &view[b..b + 16]).into();
                let words = _mm256_shuffle_epi8(_mm256_set_m128i(second, first), shuffles[half]);
                let values = _mm256_and_si256(_mm256_srlv_epi64(words, shifts[half]), mask);
                let values: u64x4<_> = values.simd_into(avx2);
                values.store_slice(&mut eight[4 * half..4 * half + 4]);
            }
            at += width;
        }
    }
);

/// One function per width, so that every place and shift is a constant.
#[inline(always)]
fn unpack_plain(packed: &[u8], width: u32, out: &mut [u64]) {
    macro_rules! by_width {
        ($($w:literal)*) => {
            match width {
                $($w => unpack_width::<$w>(packed, out),)*
                _ => unreachable!("the width was compared with {WIDTH_MAX}"),
            }
        };
    }
    by_width!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38
        39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56);
}

#[inline(always)]
fn unpack_width<const W: usize>(packed: &[u8], out: &mut [u64]) {
    let mask = u64::MAX >> (64 - W);
    let mut at = 0;
    for eight in out.as_chunks_mut::<8>().0 {
        let Some(view) = packed[at..].first_chunk::<VIEW>() else {
            return;
        };
        for (j, v) in eight.iter_mut().enumerate() {
            let (byte, shift) = place(W, j);
            let word = u64::from_le_bytes(std::array::from_fn(|b| view[byte + b]));
            *v = word >> shift & mask;
        }
        at += W;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every way that this machine knows.
    pub fn levels() -> Vec<Level> {
        let mut all = vec![Level::new(), Level::baseline()];
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        all.extend(Level::new().as_avx2().map(Level::Avx2));
        all
    }

    fn values() -> impl Strategy<Value = Vec<u64>> {
        let value = (any::<u64>(), 0u32..64).prop_map(|(v, s)| v >> s);
        prop_oneof![
            prop::collection::vec(value, 0..700),
            (0u32..64).prop_flat_map(|s| prop::collection::vec(any::<u64>().prop_map(move |v| v >> s), 0..700)),
        ]
    }

    proptest! {
        #[test]
        fn all_ways_unpack_what_was_packed(values in values()) {
            let plan = plan(&histogram(&values), values.len());
            let mut packed = vec![];
            pack(&values, plan.width, &mut packed);
            prop_assert_eq!(packed.len(), packed_len(values.len(), plan.width));
            let len = packed.len();
            put_exceptions(&values, plan.width, &mut packed, &mut vec![]);
            for level in levels() {
                // Both with and without bytes behind.
                for bytes in [&packed[..], &packed[..len]] {
                    let mut out = vec![1; values.len()];
                    unpack(level, bytes, plan.width, &mut out);
                    let mut patches = Patches::parse(&packed[len..], plan.exceptions as usize).unwrap();
                    patches.apply(0, &mut out, plan.width).unwrap();
                    prop_assert_eq!(&out, &values);
                }
            }
        }

        #[test]
        fn every_width_unpacks_alike(
            bytes in prop::collection::vec(any::<u8>(), 1..600), width in 1u32..=WIDTH_MAX,
        ) {
            let n = bytes.len() * 8 / width as usize;
            let expected: Vec<u64> = (0..n).map(|i| {
                (0..width as usize).map(|b| i * width as usize + b)
                    .enumerate().fold(0, |v, (b, at)| v | u64::from(bytes[at / 8] >> (at % 8) & 1) << b)
            }).collect();
            for level in levels() {
                let mut out = vec![0; n];
                unpack(level, &bytes, width, &mut out);
                prop_assert_eq!(&out, &expected);
            }
        }

        #[test]
        fn any_bytes_patch_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..60), count in 0usize..30) {
            if let Ok(mut patches) = Patches::parse(&bytes, count) {
                let _ = patches.apply(0, &mut [0; 40], 5);
                let _ = patches.apply(40, &mut [0; 40], 5);
            }
        }
    }
}

//! How rows become bytes: varints, times, values and lines of one page. Layouts: `FORMAT.md`.
//!
//! Lossless to the bit for every i64 time and every f64 bit pattern. Decoders take any bytes: what cannot have been
//! written is an error, never a panic and never an allocation beyond the page's own size.

use bytes::Bytes;
use hindcast_model::{LogLine, Sample, TimestampNs};

/// What is wrong with some bytes.
pub type Bad = &'static str;

/// Rows of one page.
pub const PAGE_ROWS_MAX: usize = 8192;
const NS_PER_MS: i64 = 1_000_000;

pub fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

const fn zigzag(v: i64) -> u64 {
    ((v << 1) ^ (v >> 63)) as u64
}

const fn unzigzag(v: u64) -> i64 {
    (v >> 1) as i64 ^ -((v & 1) as i64)
}

pub fn put_signed(out: &mut Vec<u8>, v: i64) {
    put_varint(out, zigzag(v));
}

pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads from the front of a slice.
#[derive(Clone)]
pub struct Cursor<'a>(pub &'a [u8]);

impl<'a> Cursor<'a> {
    pub fn byte(&mut self) -> Result<u8, Bad> {
        let (&b, rest) = self.0.split_first().ok_or("ends too early")?;
        self.0 = rest;
        Ok(b)
    }

    pub fn take(&mut self, len: usize) -> Result<&'a [u8], Bad> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or("ends too early")?;
        self.0 = rest;
        Ok(taken)
    }

    pub fn varint(&mut self) -> Result<u64, Bad> {
        let mut v = 0;
        for shift in (0..64).step_by(7) {
            let b = self.byte()?;
            let bits = u64::from(b & 0x7f);
            if bits << shift >> shift != bits {
                return Err("a number is too large");
            }
            v |= bits << shift;
            if b < 0x80 {
                return Ok(v);
            }
        }
        Err("a number is too long")
    }

    /// A count of things that take at least one byte each, or a length: never more than what is left.
    pub fn count(&mut self) -> Result<usize, Bad> {
        let v = self.varint()?;
        usize::try_from(v)
            .ok()
            .filter(|&n| n <= self.0.len())
            .ok_or("a count is larger than what follows")
    }

    pub fn number<T: TryFrom<u64>>(&mut self) -> Result<T, Bad> {
        T::try_from(self.varint()?).map_err(|_| "a number is too large")
    }

    pub fn signed(&mut self) -> Result<i64, Bad> {
        Ok(unzigzag(self.varint()?))
    }

    pub fn bytes(&mut self) -> Result<&'a [u8], Bad> {
        let len = self.count()?;
        self.take(len)
    }

    pub fn string(&mut self) -> Result<String, Bad> {
        std::str::from_utf8(self.bytes()?)
            .map(str::to_owned)
            .map_err(|_| "a text is not UTF-8")
    }

    pub fn end(&self) -> Result<(), Bad> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err("bytes are left over")
        }
    }
}

/// Times: unit (0: ns, 1: ms), first, then differences of differences. Wrapping, so that any i64 comes back.
fn put_times(out: &mut Vec<u8>, times: impl Iterator<Item = i64> + Clone) {
    let ms = times.clone().all(|t| t % NS_PER_MS == 0);
    let unit = if ms { NS_PER_MS } else { 1 };
    out.push(u8::from(ms));
    let (mut last, mut step) = (0i64, 0i64);
    for (i, t) in times.enumerate() {
        let t = t / unit;
        let d = t.wrapping_sub(last);
        if i == 0 {
            put_signed(out, t);
        } else {
            put_signed(out, d.wrapping_sub(step));
            step = d;
        }
        last = t;
    }
}

fn get_times(c: &mut Cursor<'_>, n: usize, mut each: impl FnMut(i64)) -> Result<(), Bad> {
    let unit = match c.byte()? {
        0 => 1,
        1 => NS_PER_MS,
        _ => return Err("an unknown unit of time"),
    };
    let (mut last, mut step) = (0i64, 0i64);
    for i in 0..n {
        let v = c.signed()?;
        if i == 0 {
            last = v;
        } else {
            step = step.wrapping_add(v);
            last = last.wrapping_add(step);
        }
        each(last.checked_mul(unit).ok_or("a time is out of range")?);
    }
    Ok(())
}

const CONST: u8 = 0;
const DECIMAL: u8 = 1;
const RAW: u8 = 2;
/// Decimal places tried; most gauges and all counters need fewer.
const PLACES_MAX: u8 = 4;
const POWERS: [f64; PLACES_MAX as usize + 1] = [1.0, 10.0, 100.0, 1000.0, 10_000.0];
/// Integers up to here are exact in an f64.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// `v` as an integer of 10^-places, if exactly its bits come back.
fn as_decimal(v: f64, places: u8) -> Option<i64> {
    let power = POWERS[places as usize];
    let scaled = (v * power).round_ties_even();
    let int = scaled as i64;
    // NaN fails the first test, -0.0 the second.
    let comes_back = scaled.abs() <= EXACT_MAX && decimal(int, power).to_bits() == v.to_bits();
    comes_back.then_some(int)
}

fn decimal(int: i64, power: f64) -> f64 {
    // Divide: multiplying by 10^-places is not exact.
    int as f64 / power
}

fn decimals(samples: &[Sample]) -> Option<(u8, Vec<i64>)> {
    (0..=PLACES_MAX).find_map(|places| {
        let ints: Option<Vec<i64>> = samples.iter().map(|s| as_decimal(s.value, places)).collect();
        ints.map(|ints| (places, ints))
    })
}

/// One page of a series. Times must ascend.
pub fn put_samples(out: &mut Vec<u8>, samples: &[Sample]) {
    debug_assert!(!samples.is_empty() && samples.len() <= PAGE_ROWS_MAX);
    put_varint(out, samples.len() as u64);
    put_times(out, samples.iter().map(|s| s.at.0));
    let first = samples[0].value.to_bits();
    if samples.iter().all(|s| s.value.to_bits() == first) {
        out.push(CONST);
        out.extend_from_slice(&first.to_le_bytes());
    } else if let Some((places, ints)) = decimals(samples) {
        out.extend_from_slice(&[DECIMAL, places]);
        let mut last = 0;
        for int in ints {
            put_signed(out, int - last);
            last = int;
        }
    } else {
        out.push(RAW);
        // Byte planes: exponents lie next to exponents, which zstd likes.
        for plane in 0..8 {
            out.extend(samples.iter().map(|s| s.value.to_bits().to_le_bytes()[plane]));
        }
    }
}

fn rows(c: &mut Cursor<'_>) -> Result<usize, Bad> {
    let n: usize = c.number()?;
    if n == 0 || n > PAGE_ROWS_MAX {
        return Err("a page has an impossible number of rows");
    }
    Ok(n)
}

pub fn get_samples(page: &[u8]) -> Result<Vec<Sample>, Bad> {
    let c = &mut Cursor(page);
    let n = rows(c)?;
    let mut samples = Vec::with_capacity(n);
    get_times(c, n, |at| {
        samples.push(Sample {
            at: TimestampNs(at),
            value: 0.0,
        });
    })?;
    match c.byte()? {
        CONST => {
            let bits: [u8; 8] = c.take(8)?.try_into().map_err(|_| "ends too early")?;
            samples.iter_mut().for_each(|s| s.value = f64::from_le_bytes(bits));
        }
        DECIMAL => {
            let places = c.byte()?;
            let power = *POWERS.get(places as usize).ok_or("too many decimal places")?;
            let mut last = 0i64;
            for s in &mut samples {
                last = last.wrapping_add(c.signed()?);
                s.value = decimal(last, power);
            }
        }
        RAW => {
            let planes = c.take(8 * n)?;
            for (i, s) in samples.iter_mut().enumerate() {
                s.value = f64::from_le_bytes(std::array::from_fn(|p| planes[p * n + i]));
            }
        }
        _ => return Err("an unknown kind of values"),
    }
    c.end()?;
    Ok(samples)
}

/// A line as it lies in a memtable or page.
#[derive(Clone, Copy, Debug)]
pub struct RawLine<'a> {
    pub at: i64,
    pub line: &'a [u8],
    /// As `put_metadata` wrote it.
    pub metadata: &'a [u8],
}

impl RawLine<'_> {
    pub fn to_line(self) -> Result<LogLine, Bad> {
        Ok(LogLine {
            at: TimestampNs(self.at),
            line: Bytes::copy_from_slice(self.line),
            metadata: get_metadata(self.metadata)?,
        })
    }
    pub const fn bytes(&self) -> usize {
        self.line.len() + self.metadata.len()
    }
}

/// Nothing for no metadata; else each name and value.
pub fn put_metadata(out: &mut Vec<u8>, metadata: &[(String, String)]) {
    for (name, value) in metadata {
        put_bytes(out, name.as_bytes());
        put_bytes(out, value.as_bytes());
    }
}

fn get_metadata(bytes: &[u8]) -> Result<Vec<(String, String)>, Bad> {
    let mut c = Cursor(bytes);
    let mut metadata = vec![];
    while !c.0.is_empty() {
        metadata.push((c.string()?, c.string()?));
    }
    Ok(metadata)
}

/// One page of a stream. Times must not descend.
pub fn put_lines(out: &mut Vec<u8>, lines: &[RawLine<'_>]) {
    debug_assert!(!lines.is_empty() && lines.len() <= PAGE_ROWS_MAX);
    put_varint(out, lines.len() as u64);
    put_times(out, lines.iter().map(|l| l.at));
    lines.iter().for_each(|l| put_varint(out, l.line.len() as u64));
    lines.iter().for_each(|l| put_varint(out, l.metadata.len() as u64));
    lines.iter().for_each(|l| out.extend_from_slice(l.metadata));
    lines.iter().for_each(|l| out.extend_from_slice(l.line));
}

pub fn get_lines(page: &[u8]) -> Result<Vec<RawLine<'_>>, Bad> {
    let c = &mut Cursor(page);
    let n = rows(c)?;
    let mut lines = Vec::with_capacity(n);
    get_times(c, n, |at| {
        lines.push(RawLine {
            at,
            line: &[],
            metadata: &[],
        });
    })?;
    let text_lens = (0..n).map(|_| c.number()).collect::<Result<Vec<usize>, Bad>>()?;
    let metadata_lens = (0..n).map(|_| c.number()).collect::<Result<Vec<usize>, Bad>>()?;
    for (l, len) in lines.iter_mut().zip(metadata_lens) {
        l.metadata = c.take(len)?;
    }
    for (l, len) in lines.iter_mut().zip(text_lens) {
        l.line = c.take(len)?;
    }
    c.end()?;
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_model::STALE_NAN_BITS;
    use proptest::prelude::*;

    pub fn any_value() -> impl Strategy<Value = f64> {
        prop_oneof![
            (-1000i32..1000).prop_map(f64::from),
            (-100_000i32..100_000).prop_map(|i| f64::from(i) / 100.0),
            any::<u64>().prop_map(f64::from_bits),
            Just(-0.0),
            Just(f64::INFINITY),
            Just(f64::from_bits(STALE_NAN_BITS)),
        ]
    }

    proptest! {
        #[test]
        fn samples_come_back_to_the_bit(
            values in prop::collection::vec(any_value(), 1..300),
            start: i64, step in prop_oneof![Just(15_000_000_000i64), any::<i64>()],
        ) {
            let samples: Vec<Sample> = values.iter().enumerate()
                .map(|(i, &value)| Sample { at: TimestampNs(start.wrapping_add(step.wrapping_mul(i as i64))), value })
                .collect();
            let mut page = vec![];
            put_samples(&mut page, &samples);
            prop_assert_eq!(get_samples(&page).unwrap(), samples);
        }

        #[test]
        fn one_kind_of_value_per_page_comes_back_too(
            ints in prop::collection::vec(any::<i64>(), 1..50), places in 0u8..7,
        ) {
            let samples: Vec<Sample> = ints.iter()
                .map(|&i| Sample { at: TimestampNs(0), value: i as f64 / 10f64.powi(i32::from(places)) }).collect();
            let mut page = vec![];
            put_samples(&mut page, &samples);
            prop_assert_eq!(get_samples(&page).unwrap(), samples);
        }

        #[test]
        fn lines_come_back_byte_for_byte(
            lines in prop::collection::vec((any::<i64>(), prop::collection::vec(any::<u8>(), 0..40),
                prop::collection::vec((".{0,5}", ".{0,5}"), 0..3)), 1..60),
        ) {
            let metadata: Vec<Vec<u8>> = lines.iter().map(|(_, _, m)| {
                let mut out = vec![];
                put_metadata(&mut out, m);
                out
            }).collect();
            let raw: Vec<RawLine<'_>> = lines.iter().zip(&metadata)
                .map(|((at, line, _), metadata)| RawLine { at: *at, line, metadata }).collect();
            let mut page = vec![];
            put_lines(&mut page, &raw);
            let back: Vec<LogLine> = get_lines(&page).unwrap().into_iter().map(|l| l.to_line().unwrap()).collect();
            let given: Vec<LogLine> = lines.into_iter()
                .map(|(at, line, metadata)| LogLine { at: TimestampNs(at), line: line.into(), metadata }).collect();
            prop_assert_eq!(back, given);
        }

        #[test]
        fn any_bytes_are_read_or_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = get_samples(&bytes);
            if let Ok(lines) = get_lines(&bytes) {
                let _ = lines.into_iter().map(RawLine::to_line).collect::<Vec<_>>();
            }
        }
    }

    #[test]
    fn counters_take_little_room() {
        let samples: Vec<Sample> = (0..480)
            .map(|i| Sample {
                at: TimestampNs::from_secs(15 * i),
                value: (1000 + 3 * i) as f64,
            })
            .collect();
        let mut page = vec![];
        put_samples(&mut page, &samples);
        assert!(page.len() < 1000, "{} bytes", page.len());
    }
}

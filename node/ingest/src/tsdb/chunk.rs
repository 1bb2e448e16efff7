//! Packed samples of one series: floats, and native histograms of both kinds.

use super::decode::{Bad, Bits, Cursor, Xor};
use crate::remote_write::native::{Kept, NATIVE_COUNTS_MAX, Native};
use hindcast_model::STALE_NAN_BITS;
use hindcast_model::histogram::Hint;

pub const FLOATS: u8 = 1;
pub const HISTOGRAMS: u8 = 2;
pub const FLOAT_HISTOGRAMS: u8 = 3;
/// Bounds of its own are written after the spans.
const CUSTOM_SCHEMA: i32 = -53;

/// One sample.
#[derive(Debug)]
pub(crate) enum Value<'a> {
    Float(f64),
    Native(&'a Native),
}

/// Tells the samples of a chunk in their order. `Ok(false)`: its encoding is not known.
pub(crate) fn read(encoding: u8, data: &[u8], tell: &mut dyn FnMut(i64, Value<'_>)) -> Result<bool, Bad> {
    match encoding {
        FLOATS => floats(data, tell)?,
        HISTOGRAMS => histograms(data, false, tell)?,
        FLOAT_HISTOGRAMS => histograms(data, true, tell)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn floats(data: &[u8], tell: &mut dyn FnMut(i64, Value<'_>)) -> Result<(), Bad> {
    let mut head = Cursor::new(data);
    let samples = u16::from_be_bytes(head.take(2)?.try_into().expect("2 bytes were taken"));
    if samples == 0 {
        return Ok(());
    }
    let mut at = head.varint()?;
    let mut value = Xor::first(head.double()?);
    tell(at, Value::Float(value.value));
    if samples == 1 {
        return Ok(());
    }
    let mut step = head.uvarint()? as i64;
    let mut bits = Bits::new(head.rest);
    for i in 1..samples {
        if i > 1 {
            step = step.wrapping_add(bits.time_change()?);
        }
        at = at.wrapping_add(step);
        tell(at, Value::Float(value.next(&mut bits)?));
    }
    Ok(())
}

/// Buckets of one side, over the samples of a chunk.
struct Side {
    spans: Vec<(i32, u32)>,
    /// Integers: differences between neighbours, and how these changed last.
    differences: Vec<(i64, i64)>,
    floats: Vec<Xor>,
    counts: Vec<f64>,
}

impl Side {
    fn new(bits: &mut Bits<'_>) -> Result<Self, Bad> {
        let spans = bits.varbit_uint()?;
        // Each takes two bits at least.
        if spans > (bits.bits_left() / 2).min(NATIVE_COUNTS_MAX) as u64 {
            return Err(Bad("a histogram has more spans than bits"));
        }
        let spans: Vec<_> = (0..spans)
            .map(|_| {
                let length = bits.varbit_uint()?;
                let offset = bits.varbit_int()?;
                match (i32::try_from(offset), u32::try_from(length)) {
                    (Ok(offset), Ok(length)) => Ok((offset, length)),
                    _ => Err(Bad("a span of a histogram is too long")),
                }
            })
            .collect::<Result<_, Bad>>()?;
        let buckets: u64 = spans.iter().map(|s| u64::from(s.1)).sum();
        if buckets > NATIVE_COUNTS_MAX as u64 {
            return Err(Bad("a histogram has too many buckets"));
        }
        let n = buckets as usize;
        Ok(Self {
            spans,
            differences: vec![(0, 0); n],
            floats: vec![Xor::default(); n],
            counts: vec![0.0; n],
        })
    }

    fn next(&mut self, bits: &mut Bits<'_>, is_float: bool, is_first: bool) -> Result<(), Bad> {
        let mut all = 0i64;
        for i in 0..self.counts.len() {
            self.counts[i] = if is_float {
                if is_first {
                    self.floats[i] = Xor::first(f64::from_bits(bits.bits(64)?));
                    self.floats[i].value
                } else {
                    self.floats[i].next(bits)?
                }
            } else {
                let (difference, change) = &mut self.differences[i];
                let read = bits.varbit_int()?;
                if is_first {
                    *difference = read;
                } else {
                    *change = change.wrapping_add(read);
                    *difference = difference.wrapping_add(*change);
                }
                all = all.wrapping_add(*difference);
                all as f64
            };
        }
        Ok(())
    }

    fn shown(&self, stale: bool) -> (&[(i32, u32)], &[f64]) {
        if stale { (&[], &[]) } else { (&self.spans, &self.counts) }
    }
}

/// A count that is written raw, then as a difference, then as a difference of differences; or as a float.
#[derive(Default)]
struct Count {
    whole: u64,
    step: i64,
    float: Xor,
}

impl Count {
    fn next(&mut self, bits: &mut Bits<'_>, is_float: bool, is_first: bool) -> Result<f64, Bad> {
        match (is_float, is_first) {
            (true, true) => {
                self.float = Xor::first(f64::from_bits(bits.bits(64)?));
                Ok(self.float.value)
            }
            (true, false) => self.float.next(bits),
            (false, true) => {
                self.whole = bits.varbit_uint()?;
                Ok(self.whole as f64)
            }
            (false, false) => {
                // The first difference is the change from none.
                self.step = self.step.wrapping_add(bits.varbit_int()?);
                self.whole = self.whole.wrapping_add_signed(self.step);
                Ok(self.whole as f64)
            }
        }
    }
}

/// The bits of a chunk's flags in which gauges are told from counters.
const GAUGES: u8 = 0b1100_0000;

fn histograms(data: &[u8], is_float: bool, tell: &mut dyn FnMut(i64, Value<'_>)) -> Result<(), Bad> {
    let mut head = Cursor::new(data);
    let samples = u16::from_be_bytes(head.take(2)?.try_into().expect("2 bytes were taken"));
    // What else it says of resets is of the chunk's beginning, and told by the counts.
    let hint = match head.byte()? & GAUGES {
        GAUGES => Hint::Gauge,
        _ => Hint::Unknown,
    };
    if samples == 0 {
        return Ok(());
    }
    let mut bits = Bits::new(head.rest);
    let zero_threshold = match bits.bits(8)? as u8 {
        0 => 0.0,
        255 => f64::from_bits(bits.bits(64)?),
        power => f64::from(i32::from(power) - 244).exp2(),
    };
    let schema = bits.varbit_int()? as i32;
    let (mut positive, mut negative) = (Side::new(&mut bits)?, Side::new(&mut bits)?);
    let custom = if schema == CUSTOM_SCHEMA {
        custom(&mut bits)?
    } else {
        vec![]
    };
    let (mut at, mut step) = (0i64, 0i64);
    let (mut count, mut zero_count) = (Count::default(), Count::default());
    let mut sum = Xor::default();
    for i in 0..samples {
        let is_first = i == 0;
        if is_first {
            at = bits.varbit_int()?;
        } else {
            step = step.wrapping_add(bits.varbit_int()?);
            at = at.wrapping_add(step);
        }
        let count = count.next(&mut bits, is_float, is_first)?;
        let zero_count = zero_count.next(&mut bits, is_float, is_first)?;
        if is_first {
            sum = Xor::first(f64::from_bits(bits.bits(64)?));
        } else {
            sum.next(&mut bits)?;
        }
        // After a marker nothing of its sample is written.
        let stale = sum.value.to_bits() == STALE_NAN_BITS;
        if !stale || is_first {
            positive.next(&mut bits, is_float, is_first)?;
            negative.next(&mut bits, is_float, is_first)?;
        }
        let native = Native::kept(&Kept {
            at_ms: at,
            count,
            sum: sum.value,
            is_float,
            schema,
            zero_threshold,
            zero_count,
            positive: positive.shown(stale),
            negative: negative.shown(stale),
            custom: &custom,
            hint,
        });
        tell(at, Value::Native(&native));
    }
    Ok(())
}

fn custom(bits: &mut Bits<'_>) -> Result<Vec<f64>, Bad> {
    let n = bits.varbit_uint()?;
    if n > bits.bits_left().min(NATIVE_COUNTS_MAX) as u64 {
        return Err(Bad("a histogram has more bounds than bits"));
    }
    let bound = |_| {
        // Thousandths and one, or nothing and the bound itself.
        let thousandths = bits.varbit_uint()?;
        match thousandths.checked_sub(1) {
            Some(n) => Ok(n as f64 / 1000.0),
            None => Ok(f64::from_bits(bits.bits(64)?)),
        }
    };
    (0..n).map(bound).collect()
}

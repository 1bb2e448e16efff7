//! Numbers as Go's `encoding/binary` writes them, and bits.

use std::fmt;

/// Why bytes are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bad(pub &'static str);

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

const SHORT: Bad = Bad("it ends too early");

#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a> {
    pub rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub fn take(&mut self, len: usize) -> Result<&'a [u8], Bad> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(SHORT)?;
        self.rest = rest;
        Ok(taken)
    }

    pub fn byte(&mut self) -> Result<u8, Bad> {
        Ok(self.take(1)?[0])
    }

    pub fn be32(&mut self) -> Result<u32, Bad> {
        Ok(u32::from_be_bytes(
            self.take(4)?.try_into().expect("4 bytes were taken"),
        ))
    }

    pub fn be64(&mut self) -> Result<u64, Bad> {
        Ok(u64::from_be_bytes(
            self.take(8)?.try_into().expect("8 bytes were taken"),
        ))
    }

    pub fn double(&mut self) -> Result<f64, Bad> {
        self.be64().map(f64::from_bits)
    }

    pub fn uvarint(&mut self) -> Result<u64, Bad> {
        let mut value = 0;
        for shift in 0..10 {
            let byte = self.byte()?;
            if shift == 9 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << (7 * shift);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Bad("a number is longer than 64 bits"))
    }

    pub fn varint(&mut self) -> Result<i64, Bad> {
        let written = self.uvarint()?;
        Ok((written >> 1) as i64 ^ -((written & 1) as i64))
    }

    /// A count of things that take a byte each at least, so that no count asks for more room than there are bytes.
    pub fn count(&mut self) -> Result<usize, Bad> {
        let count = self.uvarint()?;
        match usize::try_from(count) {
            Ok(count) if count <= self.rest.len() => Ok(count),
            _ => Err(Bad("it has more entries than bytes")),
        }
    }

    pub fn text(&mut self) -> Result<&'a str, Bad> {
        let len = self.count()?;
        std::str::from_utf8(self.take(len)?).map_err(|_| Bad("a text is not UTF-8"))
    }
}

/// Bits, the highest of each byte first.
#[derive(Clone, Copy, Debug)]
pub struct Bits<'a> {
    bytes: &'a [u8],
    /// In bits.
    at: usize,
}

impl<'a> Bits<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub fn bit(&mut self) -> Result<bool, Bad> {
        let byte = *self.bytes.get(self.at / 8).ok_or(SHORT)?;
        let bit = byte >> (7 - self.at % 8) & 1;
        self.at += 1;
        Ok(bit == 1)
    }

    /// At most 64.
    pub fn bits(&mut self, n: u32) -> Result<u64, Bad> {
        let mut left = n;
        let mut value = 0u64;
        while left > 0 {
            let byte = *self.bytes.get(self.at / 8).ok_or(SHORT)?;
            let unread = 8 - (self.at % 8) as u32;
            let now = unread.min(left);
            let part = u64::from(byte) >> (unread - now) & ((1 << now) - 1);
            value = value << now | part;
            self.at += now as usize;
            left -= now;
        }
        Ok(value)
    }

    /// How many ones lead, up to a maximum after which no zero follows.
    fn ones(&mut self, max: usize) -> Result<usize, Bad> {
        for n in 0..max {
            if !self.bit()? {
                return Ok(n);
            }
        }
        Ok(max)
    }

    /// A difference of differences of times in a chunk of floats.
    pub fn time_change(&mut self) -> Result<i64, Bad> {
        const WIDTHS: [u32; 5] = [0, 14, 17, 20, 64];
        let width = WIDTHS[self.ones(4)?];
        Ok(signed(self.bits(width)?, width))
    }

    pub fn varbit_int(&mut self) -> Result<i64, Bad> {
        let width = self.varbit_width()?;
        Ok(signed(self.bits(width)?, width))
    }

    pub fn varbit_uint(&mut self) -> Result<u64, Bad> {
        let width = self.varbit_width()?;
        self.bits(width)
    }

    fn varbit_width(&mut self) -> Result<u32, Bad> {
        const WIDTHS: [u32; 9] = [0, 3, 6, 9, 12, 18, 25, 56, 64];
        Ok(WIDTHS[self.ones(8)?])
    }

    pub fn bits_left(&self) -> usize {
        self.bytes.len() * 8 - self.at
    }
}

/// The upper half of a width stands for negative numbers, but for its lowest one.
fn signed(value: u64, width: u32) -> i64 {
    if width == 0 || width == 64 || value <= 1 << (width - 1) {
        value as i64
    } else {
        value as i64 - (1 << width)
    }
}

/// A float that is written as what differs from the one before.
#[derive(Clone, Copy, Debug)]
pub struct Xor {
    pub value: f64,
    leading: u32,
    meaning: u32,
}

impl Default for Xor {
    fn default() -> Self {
        Self::first(0.0)
    }
}

impl Xor {
    pub fn first(value: f64) -> Self {
        Self {
            value,
            // A Prometheus that opens a chunk again repeats this width without having given it.
            leading: 0,
            meaning: 64,
        }
    }

    pub fn next(&mut self, bits: &mut Bits<'_>) -> Result<f64, Bad> {
        if bits.bit()? {
            if bits.bit()? {
                self.leading = bits.bits(5)? as u32;
                self.meaning = match bits.bits(6)? as u32 {
                    0 => 64,
                    n => n,
                };
            }
            let Some(trailing) = 64u32.checked_sub(self.leading + self.meaning) else {
                return Err(Bad("a value has more than 64 bits"));
            };
            let changed = bits.bits(self.meaning)? << trailing;
            self.value = f64::from_bits(self.value.to_bits() ^ changed);
        }
        Ok(self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads as many values as there are groups of bits: text of ones and zeros, and numbers of a width.
    fn values(first: f64, written: &[&[(u64, u32)]]) -> Result<Vec<f64>, Bad> {
        let all: Vec<bool> = written
            .iter()
            .flat_map(|group| group.iter())
            .flat_map(|(value, width)| (0..*width).rev().map(move |i| value >> i & 1 == 1))
            .collect();
        let byte = |c: &[bool]| {
            c.iter()
                .enumerate()
                .fold(0, |b, (i, bit)| b | u8::from(*bit) << (7 - i))
        };
        let bytes: Vec<u8> = all.chunks(8).map(byte).collect();
        let (mut bits, mut xor) = (Bits::new(&bytes), Xor::first(first));
        written.iter().map(|_| xor.next(&mut bits)).collect()
    }

    fn changed(a: f64, b: f64) -> u64 {
        a.to_bits() ^ b.to_bits()
    }

    #[test]
    fn a_chunk_that_prometheus_opened_again_repeats_the_whole_width_without_having_given_it() {
        let written: &[&[(u64, u32)]] = &[
            &[(0b10, 2), (changed(1.5, -0.1), 64)],
            &[(0, 1)],
            &[(0b10, 2), (changed(-0.1, 7.25), 64)],
        ];
        assert_eq!(values(1.5, written), Ok(vec![-0.1, -0.1, 7.25]));
    }

    #[test]
    fn a_value_may_repeat_the_width_that_was_given_last() {
        // 1.0 and 2.0 and 3.0 differ within the highest 13 bits.
        let top = |a, b| changed(a, b) >> 51;
        let given = [(0b11, 2), (0, 5), (13, 6), (top(1.0, 2.0), 13)];
        let written: &[&[(u64, u32)]] = &[
            &given,
            &[(0b10, 2), (top(2.0, 3.0), 13)],
            &[(0b10, 2), (top(3.0, -1.0), 13)],
        ];
        assert_eq!(values(1.0, written), Ok(vec![2.0, 3.0, -1.0]));
        let too_wide: &[&[(u64, u32)]] = &[&[(0b11, 2), (1, 5), (0, 6), (0, 64)]];
        assert_eq!(values(1.0, too_wide), Err(Bad("a value has more than 64 bits")));
    }
}

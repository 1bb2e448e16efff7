//! Small pieces of binary encoding: varints, length-prefixed bytes, and a reader that never panics.

/// Bytes that cannot be what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bytes end or go wrong at offset {at} of {len}")]
pub struct Malformed {
    pub at: usize,
    pub len: usize,
}

pub fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

/// Small numbers of either sign in few bytes.
pub fn put_signed(out: &mut Vec<u8>, v: i64) {
    put_varint(out, ((v << 1) ^ (v >> 63)) as u64);
}

pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub fn malformed(&self) -> Malformed {
        Malformed {
            at: self.at,
            len: self.bytes.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let end = self
            .at
            .checked_add(len)
            .filter(|&e| e <= self.bytes.len())
            .ok_or_else(|| self.malformed())?;
        let slice = &self.bytes[self.at..end];
        self.at = end;
        Ok(slice)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let slice = self.take(N)?;
        slice.try_into().map_err(|_| self.malformed())
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        let slice = &self.bytes[self.at..];
        self.at = self.bytes.len();
        slice
    }

    pub fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    pub fn varint(&mut self) -> Result<u64, Malformed> {
        let mut v = 0u64;
        for shift in (0..64).step_by(7) {
            let b = self.byte()?;
            v |= u64::from(b & 0x7f) << shift;
            if b < 0x80 {
                return if shift == 63 && b > 1 {
                    Err(self.malformed())
                } else {
                    Ok(v)
                };
            }
        }
        Err(self.malformed())
    }

    pub fn signed(&mut self) -> Result<i64, Malformed> {
        let v = self.varint()?;
        Ok((v >> 1) as i64 ^ -((v & 1) as i64))
    }

    pub fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let len = usize::try_from(self.varint()?).map_err(|_| self.malformed())?;
        self.take(len)
    }

    /// A count of things that take at least one byte each: never larger than what is left.
    pub fn count(&mut self) -> Result<usize, Malformed> {
        let n = usize::try_from(self.varint()?).map_err(|_| self.malformed())?;
        if n > self.bytes.len() - self.at {
            Err(self.malformed())
        } else {
            Ok(n)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_read_back(u in any::<u64>(), i in any::<i64>(), b in any::<Vec<u8>>()) {
            let mut out = vec![];
            put_varint(&mut out, u);
            put_signed(&mut out, i);
            put_bytes(&mut out, &b);
            let mut r = Reader::new(&out);
            prop_assert_eq!((r.varint(), r.signed(), r.bytes()), (Ok(u), Ok(i), Ok(b.as_slice())));
            prop_assert!(r.is_empty());
        }
    }
}

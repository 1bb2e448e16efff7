//! Numbers and byte strings of the files: varints, zigzag, and a reader that takes any bytes.
//!
//! A decoder built on `Cursor` never panics and never allocates more than its input could fill.

/// What is wrong with some bytes.
pub type Bad = &'static str;

pub fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

/// How many bytes `put_varint` takes.
pub const fn varint_len(v: u64) -> usize {
    (70 - (v | 1).leading_zeros() as usize) / 7
}

pub const fn zigzag(v: i64) -> u64 {
    ((v << 1) ^ (v >> 63)) as u64
}

pub const fn unzigzag(v: u64) -> i64 {
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
#[derive(Clone, Debug)]
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

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Bad> {
        let (taken, rest) = self.0.split_first_chunk().ok_or("ends too early")?;
        self.0 = rest;
        Ok(*taken)
    }

    pub fn u64(&mut self) -> Result<u64, Bad> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub fn varint(&mut self) -> Result<u64, Bad> {
        // Most numbers of our tables fit one byte.
        if let Some((&b, rest)) = self.0.split_first()
            && b < 0x80
        {
            self.0 = rest;
            return Ok(u64::from(b));
        }
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

    pub fn text(&mut self) -> Result<&'a str, Bad> {
        std::str::from_utf8(self.bytes()?).map_err(|_| "a text is not UTF-8")
    }

    pub fn end(&self) -> Result<(), Bad> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err("bytes are left over")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_come_back(v in prop_oneof![any::<u64>(), 0u64..1000, (0u32..64).prop_map(|s| u64::MAX >> s)]) {
            let mut out = vec![];
            put_varint(&mut out, v);
            prop_assert_eq!(out.len(), varint_len(v));
            put_signed(&mut out, v as i64);
            let mut c = Cursor(&out);
            prop_assert_eq!(c.varint().unwrap(), v);
            prop_assert_eq!(c.signed().unwrap(), v as i64);
            prop_assert!(c.end().is_ok());
        }

        #[test]
        fn any_bytes_are_a_number_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            let mut c = Cursor(&bytes);
            if let Ok(v) = c.varint() {
                prop_assert!(bytes.len() - c.0.len() >= varint_len(v));
            }
        }
    }
}

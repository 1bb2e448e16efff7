//! The protocol's plain types, as all versions used here write them: big-endian numbers, texts and lists with a length in front.
//!
//! A list whose count says more than its bytes can hold is refused before anything is made room for.

use bytes::{BufMut, Bytes};

/// Why bytes could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("it ends in the middle of {0}")]
    Ends(&'static str),
    #[error("{0} has a length that cannot be")]
    Length(&'static str),
    #[error("{0} is not UTF-8")]
    Text(&'static str),
}

/// Reads from the front.
#[derive(Clone, Debug)]
pub struct Reader {
    bytes: Bytes,
}

impl Reader {
    pub fn new(bytes: Bytes) -> Self {
        Self { bytes }
    }

    /// What is not read yet.
    pub fn rest(&self) -> &Bytes {
        &self.bytes
    }

    pub fn take(&mut self, n: usize, what: &'static str) -> Result<Bytes, WireError> {
        match n <= self.bytes.len() {
            true => Ok(self.bytes.split_to(n)),
            false => Err(WireError::Ends(what)),
        }
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], WireError> {
        let mut out = [0; N];
        out.copy_from_slice(&self.take(N, what)?);
        Ok(out)
    }

    pub fn i8(&mut self, what: &'static str) -> Result<i8, WireError> {
        Ok(i8::from_be_bytes(self.array(what)?))
    }

    pub fn i16(&mut self, what: &'static str) -> Result<i16, WireError> {
        Ok(i16::from_be_bytes(self.array(what)?))
    }

    pub fn i32(&mut self, what: &'static str) -> Result<i32, WireError> {
        Ok(i32::from_be_bytes(self.array(what)?))
    }

    pub fn u32(&mut self, what: &'static str) -> Result<u32, WireError> {
        Ok(u32::from_be_bytes(self.array(what)?))
    }

    pub fn i64(&mut self, what: &'static str) -> Result<i64, WireError> {
        Ok(i64::from_be_bytes(self.array(what)?))
    }

    /// A text, or none.
    pub fn nullable_string(&mut self, what: &'static str) -> Result<Option<String>, WireError> {
        let len = self.i16(what)?;
        if len == -1 {
            return Ok(None);
        }
        let len = usize::try_from(len).map_err(|_| WireError::Length(what))?;
        let bytes = self.take(len, what)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| WireError::Text(what))?;
        Ok(Some(text.to_owned()))
    }

    pub fn string(&mut self, what: &'static str) -> Result<String, WireError> {
        self.nullable_string(what)?.ok_or(WireError::Length(what))
    }

    /// Bytes; none are as no bytes.
    pub fn blob(&mut self, what: &'static str) -> Result<Bytes, WireError> {
        let len = self.i32(what)?;
        if len == -1 {
            return Ok(Bytes::new());
        }
        let len = usize::try_from(len).map_err(|_| WireError::Length(what))?;
        self.take(len, what)
    }

    /// How many entries a list has, of at least `bytes_min` each. No list is as an empty one.
    pub fn count(&mut self, bytes_min: usize, what: &'static str) -> Result<usize, WireError> {
        let count = self.i32(what)?;
        if count == -1 {
            return Ok(0);
        }
        let count = usize::try_from(count).map_err(|_| WireError::Length(what))?;
        match count.checked_mul(bytes_min).is_some_and(|n| n <= self.bytes.len()) {
            true => Ok(count),
            false => Err(WireError::Length(what)),
        }
    }

    /// A list.
    pub fn list<T>(
        &mut self,
        bytes_min: usize,
        what: &'static str,
        mut one: impl FnMut(&mut Self) -> Result<T, WireError>,
    ) -> Result<Vec<T>, WireError> {
        let count = self.count(bytes_min, what)?;
        (0..count).map(|_| one(self)).collect()
    }

    /// A signed number of up to 64 bits, seven bits a byte, as records have them.
    pub fn varint(&mut self, what: &'static str) -> Result<i64, WireError> {
        let mut out = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.i8(what)? as u8;
            out |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok((out >> 1) as i64 ^ -((out & 1) as i64));
            }
        }
        Err(WireError::Length(what))
    }
}

/// What can be written: the same types.
pub trait Put {
    fn put_string(&mut self, text: &str);
    fn put_nullable_string(&mut self, text: Option<&str>);
    fn put_blob(&mut self, bytes: &[u8]);
    fn put_count(&mut self, count: usize);
    fn put_varint(&mut self, value: i64);
}

impl Put for Vec<u8> {
    /// # Panics
    /// If the text is longer than a text of the protocol can be. Configured names are bounded well below.
    fn put_string(&mut self, text: &str) {
        self.put_i16(i16::try_from(text.len()).expect("texts are bounded where they are read"));
        self.put_slice(text.as_bytes());
    }

    fn put_nullable_string(&mut self, text: Option<&str>) {
        match text {
            Some(text) => self.put_string(text),
            None => self.put_i16(-1),
        }
    }

    fn put_blob(&mut self, bytes: &[u8]) {
        self.put_i32(i32::try_from(bytes.len()).expect("blobs are bounded where they are made"));
        self.put_slice(bytes);
    }

    fn put_count(&mut self, count: usize) {
        self.put_i32(i32::try_from(count).expect("lists are bounded where they are made"));
    }

    fn put_varint(&mut self, value: i64) {
        let mut rest = ((value << 1) ^ (value >> 63)) as u64;
        while rest >= 0x80 {
            self.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        self.push(rest as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_list_that_promises_more_than_its_bytes_is_refused() {
        let mut r = Reader::new(Bytes::from_static(&[0x7f, 0xff, 0xff, 0xff, 0, 0]));
        assert_eq!(r.count(2, "a list"), Err(WireError::Length("a list")));
        let mut r = Reader::new(Bytes::from_static(&[0xff; 4]));
        assert_eq!(r.count(2, "a list"), Ok(0));
        let mut r = Reader::new(Bytes::from_static(&[0xff; 11]));
        assert_eq!(r.varint("a number"), Err(WireError::Length("a number")));
    }

    proptest! {
        #[test]
        fn numbers_and_texts_come_back(n in any::<i64>(), text in ".{0,40}", blob in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut out = vec![];
            out.put_varint(n);
            out.put_string(&text);
            out.put_nullable_string(None);
            out.put_blob(&blob);
            let mut r = Reader::new(out.into());
            prop_assert_eq!(r.varint("n"), Ok(n));
            prop_assert_eq!(r.string("t"), Ok(text));
            prop_assert_eq!(r.nullable_string("t"), Ok(None));
            prop_assert_eq!(&r.blob("b").unwrap()[..], &blob[..]);
            prop_assert!(r.rest().is_empty());
        }
    }
}

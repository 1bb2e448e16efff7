//! Reads protobuf fields straight from the request's bytes: no message structs, nothing copied, nothing allocated.
//!
//! Groups, which proto3 does not have, are refused; unknown fields are skipped. Names and values of labels are the
//! fields 1 and 2 of a message in our own protocol, in Prometheus remote write and in Loki's push alike.

use crate::{AdaptError, Protocol};

/// One field's value. 32-bit values are only ever skipped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Field<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

impl<'a> Field<'a> {
    pub fn bytes(self, what: &'static str) -> Result<&'a [u8], WireError> {
        match self {
            Self::Bytes(b) => Ok(b),
            _ => Err(WireError::Type(what)),
        }
    }
    pub fn text(self, what: &'static str) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.bytes(what)?).map_err(|_| WireError::Utf8(what))
    }
    pub fn fixed64(self, what: &'static str) -> Result<u64, WireError> {
        match self {
            Self::Fixed64(v) => Ok(v),
            _ => Err(WireError::Type(what)),
        }
    }
    pub fn varint(self, what: &'static str) -> Result<u64, WireError> {
        match self {
            Self::Varint(v) => Ok(v),
            _ => Err(WireError::Type(what)),
        }
    }
}

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("it ends in the middle of a field")]
    Truncated,
    #[error("a number is longer than 10 bytes")]
    Varint,
    #[error("field number 0 or wire type {0} cannot be")]
    Tag(u8),
    #[error("{0} has the wrong wire type")]
    Type(&'static str),
    #[error("{0} is not UTF-8")]
    Utf8(&'static str),
    #[error("{0}")]
    Shape(&'static str),
    #[error("series reference {0} was not defined on this stream; a reference holds for one call only")]
    UnknownRef(u32),
    #[error("series reference {0} was defined with other labels before; it keeps them for the whole stream")]
    RefTwice(u32),
    #[error("{what} of one stream are more than {max}; open another stream")]
    TooManyRefs { what: &'static str, max: usize },
}

impl WireError {
    pub fn of(self, protocol: Protocol) -> AdaptError {
        AdaptError::Malformed {
            protocol,
            why: self.to_string(),
        }
    }
}

/// Walks over the fields of one message.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// The next field and its number; `None` at the end.
    pub fn next(&mut self) -> Result<Option<(u32, Field<'a>)>, WireError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let (number, wire_type) = (tag >> 3, (tag & 7) as u8);
        if number == 0 || number > u64::from(u32::MAX >> 3) {
            return Err(WireError::Tag(wire_type));
        }
        let field = match wire_type {
            0 => Field::Varint(self.varint()?),
            1 => {
                let bytes = self.take(8)?;
                Field::Fixed64(u64::from_le_bytes(bytes.try_into().expect("8 bytes were taken")))
            }
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_| WireError::Truncated)?;
                Field::Bytes(self.take(len)?)
            }
            5 => {
                self.take(4)?;
                Field::Fixed32
            }
            other => return Err(WireError::Tag(other)),
        };
        Ok(Some((number as u32, field)))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    pub fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0u64;
        for (i, &byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                // The tenth byte holds the 64th bit and no more.
                if i == 9 && byte > 1 {
                    return Err(WireError::Varint);
                }
                self.rest = &self.rest[i + 1..];
                return Ok(value);
            }
        }
        Err(if self.rest.len() < 10 {
            WireError::Truncated
        } else {
            WireError::Varint
        })
    }
}

/// The messages in field `number` of a message, in order. Ends after the first error.
pub fn messages(body: &[u8], number: u32) -> impl Iterator<Item = Result<&[u8], WireError>> {
    let mut reader = Reader::new(body);
    std::iter::from_fn(move || {
        loop {
            match reader.next() {
                Ok(Some((n, field))) if n == number => return Some(field.bytes("a message")),
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(why) => return Some(Err(why)),
            }
        }
    })
}

/// A `Label { name = 1, value = 2 }`.
pub fn label(message: &[u8]) -> Result<(&str, &str), WireError> {
    let (mut name, mut value) = ("", "");
    let mut reader = Reader::new(message);
    while let Some((number, field)) = reader.next()? {
        match number {
            1 => name = field.text("a label's name")?,
            2 => value = field.text("a label's value")?,
            _ => {}
        }
    }
    Ok((name, value))
}

/// The labels (field 1) of a series or stream, and a reader of the rest.
pub struct LabelRun<'a> {
    /// The encoded labels, when they come first and together, as every known sender writes them.
    pub raw: &'a [u8],
    pub rest: Reader<'a>,
}

/// Splits a message whose field 1 is `repeated Label`. `None`: labels also occur later on.
pub fn label_run(message: &[u8]) -> Result<Option<LabelRun<'_>>, WireError> {
    let mut reader = Reader::new(message);
    let mut at = 0;
    let rest = loop {
        let before = reader;
        match reader.next()? {
            Some((1, Field::Bytes(_))) => at = message.len() - reader.left(),
            Some((1, _)) => return Err(WireError::Type("a label")),
            _ => break before,
        }
    };
    let mut later = rest;
    while let Some((number, _)) = later.next()? {
        if number == 1 {
            return Ok(None);
        }
    }
    Ok(Some(LabelRun {
        raw: &message[..at],
        rest,
    }))
}

/// All labels of a message whose field 1 is `repeated Label`, in the order given.
pub fn labels(message: &[u8]) -> Result<Vec<(String, String)>, WireError> {
    let mut pairs = Vec::new();
    let mut reader = Reader::new(message);
    while let Some((number, field)) = reader.next()? {
        if number == 1 {
            let (name, value) = label(field.bytes("a label")?)?;
            pairs.push((name.to_owned(), value.to_owned()));
        }
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn walk(bytes: &[u8]) -> Result<Vec<(u32, String)>, WireError> {
        let mut reader = Reader::new(bytes);
        let mut out = vec![];
        while let Some((number, field)) = reader.next()? {
            out.push((number, format!("{field:?}")));
        }
        Ok(out)
    }

    #[test]
    fn damage_is_named() {
        assert_eq!(walk(b"\x0a\x05ab"), Err(WireError::Truncated));
        assert_eq!(walk(b"\x08\xff"), Err(WireError::Truncated));
        assert_eq!(
            walk(&[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2]),
            Err(WireError::Varint)
        );
        assert_eq!(walk(b"\x0b"), Err(WireError::Tag(3)), "groups");
        assert_eq!(walk(b"\x00\x00"), Err(WireError::Tag(0)), "field number 0");
        assert_eq!(label(b"\x0a\x01\xff"), Err(WireError::Utf8("a label's name")));
        assert_eq!(label(b"\x08\x01"), Err(WireError::Type("a label's name")));
        assert_eq!(walk(b"\x15abcd\x08\x07").unwrap().len(), 2, "32-bit fields are skipped");
    }

    #[test]
    fn labels_after_samples_are_found_too() {
        let run = b"\x0a\x03\x0a\x01a\x12\x00\x0a\x03\x0a\x01b";
        assert!(label_run(run).unwrap().is_none());
        assert_eq!(labels(run).unwrap(), [("a".into(), "".into()), ("b".into(), "".into())]);
        let first = label_run(&run[..7]).unwrap().unwrap();
        assert_eq!((first.raw.len(), first.rest.left()), (5, 2));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic_or_loop(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = walk(&bytes);
            let _ = label(&bytes);
            let _ = label_run(&bytes).map(|_| ());
            let _ = labels(&bytes);
        }
    }
}

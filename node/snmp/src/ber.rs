//! The part of BER that SNMP uses: definite lengths, tags of one byte.
//!
//! Pure. Nothing is allocated for what a length claims: a length beyond the bytes that are there is refused first.

use crate::Oid;
use crate::oid::SUB_IDS_MAX;

pub const INTEGER: u8 = 0x02;
pub const OCTETS: u8 = 0x04;
pub const NULL: u8 = 0x05;
pub const OID: u8 = 0x06;
pub const SEQUENCE: u8 = 0x30;

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Bad(pub &'static str);

/// Reads elements one after the other, and knows where it stands in the whole message.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'m> {
    all: &'m [u8],
    at: usize,
    end: usize,
}

impl<'m> Reader<'m> {
    pub const fn new(all: &'m [u8]) -> Self {
        let end = all.len();
        Self { all, at: 0, end }
    }

    pub const fn is_empty(&self) -> bool {
        self.at >= self.end
    }

    /// Where the next byte stands in the whole message.
    pub const fn at(&self) -> usize {
        self.at
    }

    pub fn rest(&self) -> &'m [u8] {
        &self.all[self.at..self.end]
    }

    pub fn peek(&self) -> Option<u8> {
        self.rest().first().copied()
    }

    fn byte(&mut self) -> Result<u8, Bad> {
        let byte = self.peek().ok_or(Bad("it ends too early"))?;
        self.at += 1;
        Ok(byte)
    }

    fn length(&mut self) -> Result<usize, Bad> {
        let first = self.byte()?;
        if first < 0x80 {
            return Ok(usize::from(first));
        }
        let count = first & 0x7f;
        if count == 0 || count > 4 {
            return Err(Bad("a length is of a form that SNMP does not use"));
        }
        let mut length = 0usize;
        for _ in 0..count {
            length = length << 8 | usize::from(self.byte()?);
        }
        Ok(length)
    }

    /// The next element's tag and what is in it.
    pub fn element(&mut self) -> Result<(u8, Self), Bad> {
        let tag = self.byte()?;
        let length = self.length()?;
        if length > self.end - self.at {
            return Err(Bad("a length is beyond the end"));
        }
        let inner = Self {
            all: self.all,
            at: self.at,
            end: self.at + length,
        };
        self.at = inner.end;
        Ok((tag, inner))
    }

    pub fn expect(&mut self, tag: u8) -> Result<Self, Bad> {
        match self.element()? {
            (found, inner) if found == tag => Ok(inner),
            _ => Err(Bad("an element is of another type than belongs there")),
        }
    }

    pub fn octets(&mut self) -> Result<&'m [u8], Bad> {
        Ok(self.expect(OCTETS)?.rest())
    }

    pub fn integer(&mut self) -> Result<i32, Bad> {
        self.expect(INTEGER)?.as_i32()
    }

    /// The contents as a signed number.
    pub fn as_i32(&self) -> Result<i32, Bad> {
        let bytes = self.rest();
        let (Some(first), true) = (bytes.first(), bytes.len() <= 4) else {
            return Err(Bad("a number has no bytes, or more than four"));
        };
        let sign = if first & 0x80 == 0 { 0 } else { -1 };
        Ok(bytes.iter().fold(sign, |n, b| n << 8 | i32::from(*b)))
    }

    /// The contents as an unsigned number of at most `bytes_max` bytes, beside a leading zero. Some agents leave the zero out.
    pub fn as_unsigned(&self, bytes_max: usize) -> Result<u64, Bad> {
        let bytes = match self.rest() {
            [0, rest @ ..] => rest,
            [] => return Err(Bad("a number has no bytes")),
            bytes => bytes,
        };
        match bytes.len() <= bytes_max {
            true => Ok(bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b))),
            false => Err(Bad("a number has too many bytes")),
        }
    }

    /// The contents as an object's name.
    pub fn as_oid(&self) -> Result<Oid, Bad> {
        let (mut ids, mut id, mut is_open) = (Vec::new(), 0u32, false);
        for byte in self.rest() {
            if id > u32::MAX >> 7 {
                return Err(Bad("a part of an OID is greater than 32 bits hold"));
            }
            id = id << 7 | u32::from(byte & 0x7f);
            is_open = byte & 0x80 != 0;
            if is_open {
                continue;
            }
            if ids.is_empty() {
                let first = (id / 40).min(2);
                ids.extend([first, id - 40 * first]);
            } else if ids.len() == SUB_IDS_MAX {
                return Err(Bad("an OID has more than 128 parts"));
            } else {
                ids.push(id);
            }
            id = 0;
        }
        match is_open {
            true => Err(Bad("an OID ends in the middle of a part")),
            false => Ok(Oid::from(ids)),
        }
    }
}

/// Writes elements.
#[derive(Debug, Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    /// An element whose contents `inner` writes.
    pub fn nest(&mut self, tag: u8, inner: impl FnOnce(&mut Self)) {
        self.0.push(tag);
        let from = self.0.len();
        inner(self);
        let length = self.0.len() - from;
        let mut head = Vec::with_capacity(5);
        match length {
            0..0x80 => head.push(length as u8),
            _ => {
                let bytes = (length as u32).to_be_bytes();
                let zeros = bytes.iter().take_while(|b| **b == 0).count();
                head.push(0x80 | (4 - zeros) as u8);
                head.extend_from_slice(&bytes[zeros..]);
            }
        }
        self.0.splice(from..from, head);
    }

    pub fn raw(&mut self, tag: u8, contents: &[u8]) {
        self.nest(tag, |w| w.0.extend_from_slice(contents));
    }

    pub fn octets(&mut self, contents: &[u8]) {
        self.raw(OCTETS, contents);
    }

    pub fn integer(&mut self, value: i32) {
        let bytes = value.to_be_bytes();
        // The first nine bits are not all the same, but in one byte.
        let spare = (0..3).take_while(|&i| {
            let next = bytes[i + 1] & 0x80 != 0;
            bytes[i] == if next { 0xff } else { 0 }
        });
        self.raw(INTEGER, &bytes[spare.count()..]);
    }

    pub fn unsigned(&mut self, tag: u8, value: u64) {
        let bytes = value.to_be_bytes();
        let zeros = bytes.iter().take_while(|b| **b == 0).count().min(7);
        self.nest(tag, |w| {
            if bytes[zeros] & 0x80 != 0 {
                w.0.push(0);
            }
            w.0.extend_from_slice(&bytes[zeros..]);
        });
    }

    pub fn oid(&mut self, oid: &Oid) {
        self.nest(OID, |w| {
            let ids = oid.ids();
            let head = match ids {
                [] => return,
                [first] => 40 * u64::from(*first),
                [first, second, ..] => 40 * u64::from(*first) + u64::from(*second),
            };
            let rest = ids.iter().skip(2).map(|id| u64::from(*id));
            for id in [head].into_iter().chain(rest) {
                let groups = (1..10).find(|n| id >> (7 * n) == 0).unwrap_or(10);
                for n in (0..groups).rev() {
                    let more = if n == 0 { 0 } else { 0x80 };
                    w.0.push((id >> (7 * n) & 0x7f) as u8 | more);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn written(write: impl FnOnce(&mut Writer)) -> String {
        let mut w = Writer::default();
        write(&mut w);
        hex(&w.0)
    }

    #[test]
    fn numbers_and_names_take_as_few_bytes_as_they_need() {
        for (value, bytes) in [
            (0, "020100"),
            (127, "02017f"),
            (128, "02020080"),
            (-1, "0201ff"),
            (-128, "020180"),
            (-129, "0202ff7f"),
            (i32::MAX, "02047fffffff"),
            (i32::MIN, "020480000000"),
        ] {
            assert_eq!(written(|w| w.integer(value)), bytes);
        }
        assert_eq!(written(|w| w.unsigned(0x41, 0)), "410100");
        assert_eq!(written(|w| w.unsigned(0x41, 0xffff_ffff)), "410500ffffffff");
        assert_eq!(written(|w| w.unsigned(0x46, u64::MAX)), "460900ffffffffffffffff");
        // sysDescr.0, and an enterprise beyond 16 bits.
        assert_eq!(
            written(|w| w.oid(&"1.3.6.1.2.1.1.1.0".parse().unwrap())),
            "06082b06010201010100"
        );
        assert_eq!(
            written(|w| w.oid(&"1.3.6.1.4.1.99999".parse().unwrap())),
            "06082b06010401868d1f"
        );
        assert_eq!(
            written(|w| w.nest(SEQUENCE, |w| w.octets(&[7; 128])))[..12],
            *"308183048180"
        );
    }

    #[test]
    fn what_is_longer_than_it_may_be_is_refused() {
        let said = |bytes: &[u8]| Reader::new(bytes).element().map(|(tag, _)| tag).map_err(|e| e.0);
        assert_eq!(said(&[0x30]), Err("it ends too early"));
        assert_eq!(
            said(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]),
            Err("a length is beyond the end")
        );
        assert_eq!(said(&[0x30, 0x80]), Err("a length is of a form that SNMP does not use"));
        assert_eq!(
            said(&[0x30, 0x85, 0, 0, 0, 0, 0]),
            Err("a length is of a form that SNMP does not use")
        );
        let oid = |bytes: &[u8]| Reader::new(bytes).as_oid().map_err(|e| e.0);
        assert_eq!(oid(&[0x2b, 0x8f, 0xff, 0xff, 0xff, 0x7f]).unwrap().ids()[2], u32::MAX);
        assert_eq!(
            oid(&[0x2b, 0x90, 0x80, 0x80, 0x80, 0]),
            Err("a part of an OID is greater than 32 bits hold")
        );
        assert_eq!(oid(&[0x2b, 0x81]), Err("an OID ends in the middle of a part"));
        assert_eq!(oid(&[1; SUB_IDS_MAX - 1]).unwrap().ids().len(), SUB_IDS_MAX);
        assert_eq!(oid(&[1; SUB_IDS_MAX]), Err("an OID has more than 128 parts"));
        assert!(Reader::new(&[1, 2, 3, 4, 5]).as_i32().is_err() && Reader::new(&[]).as_i32().is_err());
    }

    proptest! {
        #[test]
        fn numbers_and_names_read_back(n: i32, u: u64, first in 0u32..3, ids in proptest::collection::vec(any::<u32>(), 1..126)) {
            let mut w = Writer::default();
            w.integer(n);
            w.unsigned(0x46, u);
            let second = ids[0] % 40;
            let oid = Oid::from([&[first, second], &ids[..]].concat());
            w.oid(&oid);
            let mut r = Reader::new(&w.0);
            prop_assert_eq!(r.integer(), Ok(n));
            prop_assert_eq!(r.expect(0x46).unwrap().as_unsigned(8), Ok(u));
            prop_assert_eq!(r.expect(OID).unwrap().as_oid(), Ok(oid));
            prop_assert!(r.is_empty());
        }
    }
}

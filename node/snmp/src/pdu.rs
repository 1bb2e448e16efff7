//! What is asked and answered (RFC 3416): PDUs, and the message of version 2c around them (RFC 3584).

use crate::Oid;
use crate::ber::{self, Bad, Reader, SEQUENCE, Writer};
use std::fmt;

/// The most that a datagram carries over IPv4.
pub const MESSAGE_BYTES_MAX: usize = 65_507;
/// Values of one message.
pub const VARBINDS_MAX: usize = 4_000;
/// Of a community.
pub const COMMUNITY_BYTES_MAX: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Get,
    GetNext,
    Response,
    GetBulk,
    Inform,
    Trap,
    Report,
}

const KINDS: [(Kind, u8); 7] = [
    (Kind::Get, 0xa0),
    (Kind::GetNext, 0xa1),
    (Kind::Response, 0xa2),
    (Kind::GetBulk, 0xa5),
    (Kind::Inform, 0xa6),
    (Kind::Trap, 0xa7),
    (Kind::Report, 0xa8),
];

impl Kind {
    fn tag(self) -> u8 {
        KINDS.iter().find(|(k, _)| *k == self).map_or(0, |(_, tag)| *tag)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Integer(i32),
    Octets(Vec<u8>),
    Null,
    Oid(Oid),
    IpAddress([u8; 4]),
    Counter32(u32),
    /// Also `Unsigned32`.
    Gauge32(u32),
    TimeTicks(u32),
    Opaque(Vec<u8>),
    Counter64(u64),
    NoSuchObject,
    NoSuchInstance,
    EndOfMibView,
    /// What stands where a value belongs and is none that can be read, tag and length among it. The others of its message can be.
    Unread(Vec<u8>),
}

impl Value {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Bad> {
        let (tag, inner) = reader.element()?;
        // Four bytes at most: it fits.
        let small = || inner.as_unsigned(4).map(|n| n as u32);
        Ok(match tag {
            ber::INTEGER => Self::Integer(inner.as_i32()?),
            ber::OCTETS => Self::Octets(inner.rest().to_vec()),
            ber::NULL => Self::Null,
            ber::OID => Self::Oid(inner.as_oid()?),
            0x40 => Self::IpAddress(
                inner
                    .rest()
                    .try_into()
                    .map_err(|_| Bad("an address has not four bytes"))?,
            ),
            0x41 => Self::Counter32(small()?),
            0x42 => Self::Gauge32(small()?),
            0x43 => Self::TimeTicks(small()?),
            0x44 => Self::Opaque(inner.rest().to_vec()),
            0x46 => Self::Counter64(inner.as_unsigned(8)?),
            0x80 => Self::NoSuchObject,
            0x81 => Self::NoSuchInstance,
            0x82 => Self::EndOfMibView,
            _ => return Err(Bad("a value is of a type that SNMP does not have")),
        })
    }

    fn write(&self, w: &mut Writer) {
        match self {
            Self::Integer(n) => w.integer(*n),
            Self::Octets(bytes) => w.octets(bytes),
            Self::Null => w.raw(ber::NULL, &[]),
            Self::Oid(oid) => w.oid(oid),
            Self::IpAddress(bytes) => w.raw(0x40, bytes),
            Self::Counter32(n) => w.unsigned(0x41, u64::from(*n)),
            Self::Gauge32(n) => w.unsigned(0x42, u64::from(*n)),
            Self::TimeTicks(n) => w.unsigned(0x43, u64::from(*n)),
            Self::Opaque(bytes) => w.raw(0x44, bytes),
            Self::Counter64(n) => w.unsigned(0x46, *n),
            Self::NoSuchObject => w.raw(0x80, &[]),
            Self::NoSuchInstance => w.raw(0x81, &[]),
            Self::EndOfMibView => w.raw(0x82, &[]),
            Self::Unread(bytes) => w.0.extend_from_slice(bytes),
        }
    }

    /// As a sample has it. Counters of 64 bits lose what a float does not hold.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Integer(n) => Some(f64::from(*n)),
            Self::Counter32(n) | Self::Gauge32(n) | Self::TimeTicks(n) => Some(f64::from(*n)),
            Self::Counter64(n) => Some(*n as f64),
            _ => None,
        }
    }

    /// Nothing is there under the name that was asked for.
    pub const fn is_absent(&self) -> bool {
        matches!(
            self,
            Self::NoSuchObject | Self::NoSuchInstance | Self::EndOfMibView | Self::Null
        )
    }
}

/// For people: text as it is, other bytes in hexadecimal.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(n) => write!(f, "{n}"),
            Self::Counter32(n) | Self::Gauge32(n) | Self::TimeTicks(n) => write!(f, "{n}"),
            Self::Counter64(n) => write!(f, "{n}"),
            Self::Oid(oid) => write!(f, "{oid}"),
            Self::IpAddress([a, b, c, d]) => write!(f, "{a}.{b}.{c}.{d}"),
            Self::Octets(bytes) | Self::Opaque(bytes) => f.write_str(&text(bytes)),
            Self::Null => f.write_str("null"),
            Self::NoSuchObject => f.write_str("noSuchObject"),
            Self::NoSuchInstance => f.write_str("noSuchInstance"),
            Self::EndOfMibView => f.write_str("endOfMibView"),
            Self::Unread(bytes) => write!(f, "unread:{}", hex(bytes)),
        }
    }
}

/// Bytes as text where they are text. Agents end some with zeros.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    let shown = std::str::from_utf8(&bytes[..end]).ok();
    match shown.filter(|t| t.chars().all(|c| !c.is_control() || c.is_whitespace())) {
        Some(text) => text.to_owned(),
        None => hex(bytes),
    }
}

fn hex(bytes: &[u8]) -> String {
    let digits: Vec<_> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("0x{}", digits.concat())
}

pub type VarBind = (Oid, Value);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pdu {
    pub kind: Kind,
    pub request_id: i32,
    /// Of a `GetBulk`: how many of the first names are asked for once.
    pub error_status: i32,
    /// Of a `GetBulk`: how many values are wanted of each of the others.
    pub error_index: i32,
    pub varbinds: Vec<VarBind>,
}

impl Pdu {
    /// Reads one element.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, Bad> {
        let (tag, mut inner) = reader.element()?;
        let kind = KINDS.iter().find(|(_, t)| *t == tag);
        let (kind, _) = *kind.ok_or(Bad("a PDU is of a kind that SNMPv2 does not have"))?;
        let (request_id, error_status, error_index) = (inner.integer()?, inner.integer()?, inner.integer()?);
        let (mut list, mut varbinds) = (inner.expect(SEQUENCE)?, vec![]);
        while !list.is_empty() {
            if varbinds.len() == VARBINDS_MAX {
                return Err(Bad("a PDU has more than 4000 values"));
            }
            let mut pair = list.expect(SEQUENCE)?;
            let oid = pair.expect(ber::OID)?.as_oid()?;
            let stands = pair.rest();
            let value = Value::read(&mut pair).unwrap_or_else(|_| Value::Unread(stands.to_vec()));
            varbinds.push((oid, value));
        }
        Ok(Self {
            kind,
            request_id,
            error_status,
            error_index,
            varbinds,
        })
    }

    pub fn write(&self, w: &mut Writer) {
        w.nest(self.kind.tag(), |w| {
            for number in [self.request_id, self.error_status, self.error_index] {
                w.integer(number);
            }
            w.nest(SEQUENCE, |w| {
                for (oid, value) in &self.varbinds {
                    w.nest(SEQUENCE, |w| {
                        w.oid(oid);
                        value.write(w);
                    });
                }
            });
        });
    }

    /// What an inform is answered with.
    pub fn answer(&self) -> Self {
        Self {
            kind: Kind::Response,
            error_status: 0,
            error_index: 0,
            ..self.clone()
        }
    }
}

/// The names of error-status, by number.
const ERRORS: [&str; 19] = [
    "noError",
    "tooBig",
    "noSuchName",
    "badValue",
    "readOnly",
    "genErr",
    "noAccess",
    "wrongType",
    "wrongLength",
    "wrongEncoding",
    "wrongValue",
    "noCreation",
    "inconsistentValue",
    "resourceUnavailable",
    "commitFailed",
    "undoFailed",
    "authorizationError",
    "notWritable",
    "inconsistentName",
];
pub const TOO_BIG: i32 = 1;

pub fn error_name(status: i32) -> String {
    let known = usize::try_from(status).ok().and_then(|n| ERRORS.get(n));
    known.map_or_else(|| format!("error {status}"), |name| (*name).to_owned())
}

/// Which version a message says that it is: 0 for v1, 1 for v2c, 3 for v3.
pub fn version(message: &[u8]) -> Result<i32, Bad> {
    Reader::new(message).expect(SEQUENCE)?.integer()
}

/// A message of version 2c.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Community {
    pub community: Vec<u8>,
    pub pdu: Pdu,
}

impl Community {
    pub fn decode(message: &[u8]) -> Result<Self, Bad> {
        let mut inner = Reader::new(message).expect(SEQUENCE)?;
        if inner.integer()? != 1 {
            return Err(Bad("it is no message of version 2c"));
        }
        let community = inner.octets()?;
        if community.len() > COMMUNITY_BYTES_MAX {
            return Err(Bad("a community has more than 256 bytes"));
        }
        let pdu = Pdu::read(&mut inner)?;
        let community = community.to_vec();
        Ok(Self { community, pdu })
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.nest(SEQUENCE, |w| {
            w.integer(1);
            w.octets(&self.community);
            self.pdu.write(w);
        });
        w.0
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    pub fn bytes(hex: &str) -> Vec<u8> {
        let hex: String = hex.split_whitespace().collect();
        (0..hex.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
            .collect()
    }

    /// One message as it stands on the wire, and what it says.
    fn check(hex: &str, expect: Expect) {
        let message = bytes(hex);
        match Community::decode(&message) {
            Ok(read) => {
                assert_eq!(read.encode(), message, "it is written as it came");
                let Pdu {
                    kind,
                    request_id,
                    error_status,
                    error_index,
                    varbinds,
                } = &read.pdu;
                let community = String::from_utf8_lossy(&read.community);
                let mut out = format!("{community} {kind:?} {request_id} {error_status} {error_index}\n");
                for (oid, value) in varbinds {
                    out.push_str(&format!("{oid} = {value:?}\n"));
                }
                expect.assert_eq(&out);
            }
            Err(why) => expect.assert_eq(&why.to_string()),
        }
    }

    #[test]
    fn a_request_and_its_answer() {
        // GET sysUpTime.0 with request id 1, and 4 minutes 16 s as its answer.
        check(
            "30 26 02 01 01 04 06 7075626c6963 a0 19 02 01 01 02 01 00 02 01 00 30 0e 30 0c 06 08 2b06010201010300 05 00",
            expect![[r#"
                public Get 1 0 0
                1.3.6.1.2.1.1.3.0 = Null
            "#]],
        );
        check(
            "30 28 02 01 01 04 06 7075626c6963 a2 1b 02 01 01 02 01 00 02 01 00 30 10 30 0e 06 08 2b06010201010300 43 02 6400",
            expect![[r#"
                public Response 1 0 0
                1.3.6.1.2.1.1.3.0 = TimeTicks(25600)
            "#]],
        );
    }

    #[test]
    fn all_types_of_values() {
        let values = [
            ("02 01 fe", "-2"),
            ("04 03 657468", "eth"),
            ("04 02 fffe", "0xfffe"),
            ("04 03 417000", "Ap"),
            ("05 00", "null"),
            ("06 03 2b0601", "1.3.6.1"),
            ("40 04 c0000201", "192.0.2.1"),
            ("41 05 00ffffffff", "4294967295"),
            ("41 04 ffffffff", "4294967295"),
            ("42 01 07", "7"),
            ("43 01 08", "8"),
            ("44 02 9f78", "0x9f78"),
            ("46 09 00ffffffffffffffff", "18446744073709551615"),
            ("80 00", "noSuchObject"),
            ("81 00", "noSuchInstance"),
            ("82 00", "endOfMibView"),
        ];
        for (hex, shown) in values {
            let value = Value::read(&mut Reader::new(&bytes(hex))).unwrap();
            assert_eq!(value.to_string(), shown, "{hex}");
        }
        for bad in [
            "40 03 c00002",
            "41 06 010000000000",
            "46 0a 00010000000000000000",
            "47 00",
            "02 00",
            "02 05 0000000000",
        ] {
            assert!(Value::read(&mut Reader::new(&bytes(bad))).is_err(), "{bad}");
        }
    }

    /// A device with one value that it writes wrongly was said to be away.
    #[test]
    fn a_value_that_cannot_be_read_leaves_the_others_of_its_message() {
        // A counter of nine bytes, an IP address of three, a length beyond the end, nothing at all; and 7 between them.
        let unread = ["46 09 313233343536373839", "40 03 c00002", "04 7f 61", ""];
        let mut varbinds = vec![];
        for bad in unread {
            varbinds.push(("1.3.6.1.1".parse().unwrap(), Value::Unread(bytes(bad))));
            varbinds.push(("1.3.6.1.2".parse().unwrap(), Value::Gauge32(7)));
        }
        let pdu = Pdu {
            kind: Kind::Inform,
            request_id: 1,
            error_status: 0,
            error_index: 0,
            varbinds,
        };
        let community = b"public".to_vec();
        let message = Community { community, pdu };
        // An inform is answered with what it said, also where that cannot be read.
        assert_eq!(Community::decode(&message.encode()), Ok(message.clone()));
        assert_eq!(message.pdu.varbinds[2].1.to_string(), "unread:0x4003c00002");
        let unread = &message.pdu.varbinds[2].1;
        assert_eq!((unread.number(), unread.is_absent()), (None, false));
    }

    #[test]
    fn what_is_no_message_says_why() {
        check("30 00", expect!["it ends too early"]);
        check("30 03 02 01 00", expect!["it is no message of version 2c"]);
        check(
            "30 0a 02 01 01 04 01 61 a4 02 0500",
            expect!["a PDU is of a kind that SNMPv2 does not have"],
        );
        check(
            "30 26 02 01 01 04 06 7075626c6963 a0 19 02 01 01 02 01 00",
            expect!["a length is beyond the end"],
        );
    }

    #[test]
    fn a_message_with_too_many_values_is_refused() {
        let pdu = |count| Pdu {
            kind: Kind::Response,
            request_id: 1,
            error_status: 0,
            error_index: 0,
            varbinds: vec![(Oid::from(vec![1, 3]), Value::Null); count],
        };
        let message = |count| {
            Community {
                community: vec![],
                pdu: pdu(count),
            }
            .encode()
        };
        assert!(Community::decode(&message(VARBINDS_MAX)).is_ok());
        assert!(Community::decode(&message(VARBINDS_MAX + 1)).is_err());
        let community = vec![b'a'; COMMUNITY_BYTES_MAX + 1];
        assert!(Community::decode(&Community { community, pdu: pdu(1) }.encode()).is_err());
    }

    fn any_value() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<i32>().prop_map(Value::Integer),
            proptest::collection::vec(any::<u8>(), 0..300).prop_map(Value::Octets),
            Just(Value::Null),
            any_oid().prop_map(Value::Oid),
            any::<[u8; 4]>().prop_map(Value::IpAddress),
            any::<u32>().prop_map(Value::Counter32),
            any::<u32>().prop_map(Value::Gauge32),
            any::<u32>().prop_map(Value::TimeTicks),
            proptest::collection::vec(any::<u8>(), 0..9).prop_map(Value::Opaque),
            any::<u64>().prop_map(Value::Counter64),
            Just(Value::NoSuchObject),
            Just(Value::NoSuchInstance),
            Just(Value::EndOfMibView),
        ]
    }

    fn any_oid() -> impl Strategy<Value = Oid> {
        (0u32..3, 0u32..40, proptest::collection::vec(any::<u32>(), 0..20))
            .prop_map(|(a, b, rest)| Oid::from([&[a, b], &rest[..]].concat()))
    }

    pub fn any_pdu() -> impl Strategy<Value = Pdu> {
        let varbinds = proptest::collection::vec((any_oid(), any_value()), 0..12);
        (0..KINDS.len(), any::<[i32; 3]>(), varbinds).prop_map(
            |(kind, [request_id, error_status, error_index], varbinds)| Pdu {
                kind: KINDS[kind].0,
                request_id,
                error_status,
                error_index,
                varbinds,
            },
        )
    }

    proptest! {
        #[test]
        fn a_message_reads_back_as_it_was_written(pdu in any_pdu(), community in proptest::collection::vec(any::<u8>(), 0..40)) {
            let message = Community { community, pdu };
            prop_assert_eq!(Community::decode(&message.encode()), Ok(message));
        }

        #[test]
        fn no_bytes_panic(mut message in proptest::collection::vec(any::<u8>(), 0..200), pdu in any_pdu(), at in any::<usize>(), byte: u8) {
            let _ = Community::decode(&message);
            message = Community { community: b"public".to_vec(), pdu }.encode();
            let at = at % message.len();
            message[at] = byte;
            let _ = Community::decode(&message);
            message.truncate(at);
            prop_assert!(Community::decode(&message).is_err());
        }
    }
}

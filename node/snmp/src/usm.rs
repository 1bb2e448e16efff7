//! Version 3: users with keys (RFC 3414), hashes of the SHA family (RFC 3414, 7860), AES with 128 bits (RFC 3826).
//!
//! A user's keys are made of passwords, and for each engine (each device) anew, so that a device that is taken gives away no other's.
//! MD5 and DES are not there: what they protect is not protected.
//!
//! Invariants
//! - A signature is compared in constant time, and before anything else of a message is believed.
//! - What is not signed is never decrypted.

use crate::ber::{Bad, OCTETS, Reader, SEQUENCE, Writer};
use crate::pdu::{Kind, MESSAGE_BYTES_MAX, Pdu};
use aes::Aes128;
use cfb_mode::cipher::KeyIvInit;
use cfb_mode::{Decryptor, Encryptor};
use hmac::{Hmac, KeyInit, Mac};
use sha1::{Digest, Sha1};
use sha2::{Sha224, Sha256, Sha384, Sha512};
use std::fmt;
use std::ops::Range;

/// As RFC 3411 has it.
pub const ENGINE_ID_BYTES_MAX: usize = 32;
pub const USER_BYTES_MAX: usize = 32;
/// RFC 3414: shorter ones are refused.
pub const PASSWORD_BYTES_MIN: usize = 8;
pub const PASSWORD_BYTES_MAX: usize = 1024;
/// How far a message's time may be from what is known of its engine's clock, in seconds.
pub const WINDOW_SECS: u32 = 150;

const FLAG_AUTH: u8 = 1;
const FLAG_PRIVACY: u8 = 2;
const FLAG_REPORTABLE: u8 = 4;
const SECURITY_MODEL: i32 = 3;
/// A password is repeated up to here before it is hashed.
const STRETCHED_BYTES: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AuthProtocol {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

impl AuthProtocol {
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::Sha1, "SHA"),
        (Self::Sha224, "SHA-224"),
        (Self::Sha256, "SHA-256"),
        (Self::Sha384, "SHA-384"),
        (Self::Sha512, "SHA-512"),
    ];

    pub fn parse(text: &str) -> Option<Self> {
        let plain = |t: &str| t.to_ascii_uppercase().replace(['-', '_'], "");
        let wanted = match &*plain(text) {
            "SHA1" => "SHA".to_owned(),
            other => other.to_owned(),
        };
        Self::ALL
            .iter()
            .find(|(_, name)| plain(name) == wanted)
            .map(|(p, _)| *p)
    }

    pub fn as_str(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// Bytes of a signature.
    pub const fn mac_bytes(self) -> usize {
        match self {
            Self::Sha1 => 12,
            Self::Sha224 => 16,
            Self::Sha256 => 24,
            Self::Sha384 => 32,
            Self::Sha512 => 48,
        }
    }

    fn hash(self, parts: &[&[u8]]) -> Vec<u8> {
        fn of<D: Digest>(parts: &[&[u8]]) -> Vec<u8> {
            let mut hash = D::new();
            parts.iter().for_each(|p| hash.update(p));
            hash.finalize().to_vec()
        }
        match self {
            Self::Sha1 => of::<Sha1>(parts),
            Self::Sha224 => of::<Sha224>(parts),
            Self::Sha256 => of::<Sha256>(parts),
            Self::Sha384 => of::<Sha384>(parts),
            Self::Sha512 => of::<Sha512>(parts),
        }
    }

    /// The signature of a message whose place for it is zeros; or, with `compared`, whether it is that one.
    fn mac(self, key: &[u8], parts: [&[u8]; 3], compared: Option<&[u8]>) -> Option<Vec<u8>> {
        macro_rules! mac {
            ($hash:ty) => {{
                let mut mac = Hmac::<$hash>::new_from_slice(key).ok()?;
                parts.iter().for_each(|p| mac.update(p));
                match compared {
                    Some(given) => mac.verify_truncated_left(given).ok().map(|()| vec![]),
                    None => Some(mac.finalize().into_bytes()[..self.mac_bytes()].to_vec()),
                }
            }};
        }
        match self {
            Self::Sha1 => mac!(Sha1),
            Self::Sha224 => mac!(Sha224),
            Self::Sha256 => mac!(Sha256),
            Self::Sha384 => mac!(Sha384),
            Self::Sha512 => mac!(Sha512),
        }
    }
}

/// What a password comes to before it is made an engine's. Making one hashes a mebibyte.
#[derive(Clone, PartialEq, Eq)]
pub struct Stretched(Vec<u8>);

impl fmt::Debug for Stretched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

impl Stretched {
    /// # Panics
    /// When the password is empty: whoever reads a configuration refuses it.
    pub fn new(protocol: AuthProtocol, password: &[u8]) -> Self {
        assert!(!password.is_empty(), "a password has a byte at least");
        let round: Vec<u8> = password
            .iter()
            .copied()
            .cycle()
            .take(password.len() * (4096 / password.len() + 1))
            .collect();
        let (whole, rest) = (STRETCHED_BYTES / round.len(), STRETCHED_BYTES % round.len());
        let mut parts = vec![&round[..]; whole];
        parts.push(&round[..rest]);
        Self(protocol.hash(&parts))
    }

    fn localized(&self, protocol: AuthProtocol, engine_id: &[u8]) -> Vec<u8> {
        protocol.hash(&[&self.0, engine_id, &self.0])
    }
}

/// A user that signs, and encrypts with `privacy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub protocol: AuthProtocol,
    pub auth: Stretched,
    pub privacy: Option<Stretched>,
}

/// A user's keys at one engine.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    protocol: AuthProtocol,
    auth: Vec<u8>,
    privacy: Option<[u8; 16]>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

impl Keys {
    /// Of a report: it is signed and not encrypted.
    pub fn signing(&self) -> Self {
        Self {
            privacy: None,
            ..self.clone()
        }
    }
}

impl User {
    pub fn keys(&self, engine_id: &[u8]) -> Keys {
        let privacy = self.privacy.as_ref().map(|p| {
            let mut key = [0; 16];
            // The shortest hash has 20 bytes.
            key.copy_from_slice(&p.localized(self.protocol, engine_id)[..16]);
            key
        });
        Keys {
            protocol: self.protocol,
            auth: self.auth.localized(self.protocol, engine_id),
            privacy,
        }
    }
}

/// An engine and its clock, as a message names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Engine {
    pub id: Vec<u8>,
    pub boots: u32,
    /// Seconds since the last boot.
    pub time: u32,
}

/// What stands around the PDU of version 3.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    pub engine_id: Vec<u8>,
    pub name: Vec<u8>,
}

/// A message of version 3 whose signature was not looked at.
#[derive(Clone, Debug)]
pub struct Sealed<'m> {
    message: &'m [u8],
    pub msg_id: i32,
    flags: u8,
    pub engine: Engine,
    pub user: &'m [u8],
    mac: Range<usize>,
    salt: &'m [u8],
    data: Reader<'m>,
}

/// Why a message is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOpened {
    #[error("it cannot be read: {0}")]
    Bad(#[from] Bad),
    #[error("its user signs or encrypts, and it is not so")]
    Level,
    #[error("its signature is wrong: another password, or another hash")]
    Signature,
    #[error("it cannot be decrypted: another password for privacy")]
    Decryption,
}

impl<'m> Sealed<'m> {
    pub fn read(message: &'m [u8]) -> Result<Self, Bad> {
        let mut all = Reader::new(message).expect(SEQUENCE)?;
        if all.integer()? != 3 {
            return Err(Bad("it is no message of version 3"));
        }
        let mut head = all.expect(SEQUENCE)?;
        let msg_id = head.integer()?;
        head.integer()?;
        let &[flags] = head.octets()? else {
            return Err(Bad("the flags have not one byte"));
        };
        if head.integer()? != SECURITY_MODEL {
            return Err(Bad("the security model is not that of users"));
        }
        let mut security = all.expect(OCTETS)?.expect(SEQUENCE)?;
        let id = security.octets()?;
        let (boots, time) = (security.integer()?, security.integer()?);
        let (user, mac) = (security.octets()?, security.expect(OCTETS)?);
        let salt = security.octets()?;
        if id.len() > ENGINE_ID_BYTES_MAX || user.len() > USER_BYTES_MAX {
            return Err(Bad("the engine's or the user's name is too long"));
        }
        let positive = |n: i32| u32::try_from(n).map_err(|_| Bad("the engine's clock is negative"));
        Ok(Self {
            message,
            msg_id,
            flags,
            engine: Engine {
                id: id.to_vec(),
                boots: positive(boots)?,
                time: positive(time)?,
            },
            user,
            mac: mac.at()..mac.at() + mac.rest().len(),
            salt,
            data: all,
        })
    }

    pub const fn is_signed(&self) -> bool {
        self.flags & FLAG_AUTH != 0
    }

    pub const fn wants_report(&self) -> bool {
        self.flags & FLAG_REPORTABLE != 0
    }

    /// What it says, without any promise of who said it.
    pub fn unsigned(&self) -> Result<(Scope, Pdu), NotOpened> {
        match self.flags & (FLAG_AUTH | FLAG_PRIVACY) {
            0 => Ok(scoped(self.data)?),
            _ => Err(NotOpened::Level),
        }
    }

    fn check(&self, keys: &Keys) -> Result<(), NotOpened> {
        if !self.is_signed() {
            return Err(NotOpened::Level);
        }
        let given = &self.message[self.mac.clone()];
        let zeros = vec![0; given.len()];
        let parts = [
            &self.message[..self.mac.start],
            &zeros[..],
            &self.message[self.mac.end..],
        ];
        let is_whole = given.len() == keys.protocol.mac_bytes();
        match is_whole && keys.protocol.mac(&keys.auth, parts, Some(given)).is_some() {
            true => Ok(()),
            false => Err(NotOpened::Signature),
        }
    }

    /// A report that is signed and in the clear, as it is also for a user that encrypts (RFC 3414, 3.2). Nothing else is taken so.
    pub fn report(&self, keys: &Keys) -> Option<Pdu> {
        if self.flags & FLAG_PRIVACY != 0 {
            return None;
        }
        self.check(keys).ok()?;
        let (_, pdu) = scoped(self.data).ok()?;
        (pdu.kind == Kind::Report).then_some(pdu)
    }

    /// Checks the signature, and decrypts.
    pub fn open(&self, keys: &Keys) -> Result<(Scope, Pdu), NotOpened> {
        self.check(keys)?;
        // Both ways: a message in the clear of a user that encrypts is not as it should be.
        match (self.flags & FLAG_PRIVACY != 0, &keys.privacy) {
            (false, None) => Ok(scoped(self.data)?),
            (true, Some(key)) => {
                let mut data = self.data;
                let mut plain = data.octets()?.to_vec();
                let iv = iv(&self.engine, self.salt).ok_or(NotOpened::Decryption)?;
                Decryptor::<Aes128>::new(key.into(), &iv.into()).decrypt(&mut plain);
                // A wrong key gives bytes without a scope. Where that is there, the key is right.
                let (scope, mut inner) = scope(Reader::new(&plain)).map_err(|_| NotOpened::Decryption)?;
                Ok((scope, Pdu::read(&mut inner)?))
            }
            _ => Err(NotOpened::Level),
        }
    }
}

fn scoped(data: Reader<'_>) -> Result<(Scope, Pdu), Bad> {
    let (scope, mut inner) = scope(data)?;
    Ok((scope, Pdu::read(&mut inner)?))
}

/// And what stands after it: the PDU.
fn scope(mut data: Reader<'_>) -> Result<(Scope, Reader<'_>), Bad> {
    let mut inner = data.expect(SEQUENCE)?;
    let scope = Scope {
        engine_id: inner.octets()?.to_vec(),
        name: inner.octets()?.to_vec(),
    };
    Ok((scope, inner))
}

fn iv(engine: &Engine, salt: &[u8]) -> Option<[u8; 16]> {
    let mut iv = [0; 16];
    iv[..4].copy_from_slice(&engine.boots.to_be_bytes());
    iv[4..8].copy_from_slice(&engine.time.to_be_bytes());
    iv[8..].copy_from_slice(salt.get(..8).filter(|_| salt.len() == 8)?);
    Some(iv)
}

/// What a message of version 3 is made of.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    pub msg_id: i32,
    /// The engine that decides what time it is: the device, or this one for what is sent to it.
    pub engine: &'a Engine,
    pub user: &'a [u8],
    /// Without any, it is not signed.
    pub keys: Option<&'a Keys>,
    pub scope: &'a Scope,
    pub pdu: &'a Pdu,
    pub wants_report: bool,
    /// Another one for each message.
    pub salt: u64,
}

impl Message<'_> {
    pub fn encode(&self) -> Vec<u8> {
        let mut plain = Writer::default();
        plain.nest(SEQUENCE, |w| {
            w.octets(&self.scope.engine_id);
            w.octets(&self.scope.name);
            self.pdu.write(w);
        });
        let privacy = self.keys.and_then(|k| k.privacy.as_ref());
        let salt = self.salt.to_be_bytes();
        let signed = if self.keys.is_some() { FLAG_AUTH } else { 0 };
        let encrypted = if privacy.is_some() { FLAG_PRIVACY } else { 0 };
        let reportable = if self.wants_report { FLAG_REPORTABLE } else { 0 };
        let mac_bytes = self.keys.map_or(0, |k| k.protocol.mac_bytes());
        let mut w = Writer::default();
        w.nest(SEQUENCE, |w| {
            w.integer(3);
            w.nest(SEQUENCE, |w| {
                w.integer(self.msg_id);
                w.integer(MESSAGE_BYTES_MAX as i32);
                w.octets(&[signed | encrypted | reportable]);
                w.integer(SECURITY_MODEL);
            });
            w.nest(OCTETS, |w| {
                w.nest(SEQUENCE, |w| {
                    w.octets(&self.engine.id);
                    w.integer(i32::try_from(self.engine.boots).unwrap_or(i32::MAX));
                    w.integer(i32::try_from(self.engine.time).unwrap_or(i32::MAX));
                    w.octets(self.user);
                    w.octets(&vec![0; mac_bytes]);
                    w.octets(if privacy.is_some() { &salt } else { &[] });
                });
            });
            match privacy.zip(iv(self.engine, &salt)) {
                Some((key, iv)) => {
                    Encryptor::<Aes128>::new(key.into(), &iv.into()).encrypt(&mut plain.0);
                    w.octets(&plain.0);
                }
                None => w.0.extend_from_slice(&plain.0),
            }
        });
        let mut message = w.0;
        // Read as it was written: so the place of the signature is where a reader finds it.
        if let Some(keys) = self.keys
            && let Ok(at) = Sealed::read(&message).map(|sealed| sealed.mac)
            && let Some(mac) = keys.protocol.mac(&keys.auth, [&message, &[], &[]], None)
        {
            message[at].copy_from_slice(&mac);
        }
        message
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::pdu::tests::{any_pdu, bytes};
    use proptest::prelude::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    pub fn user(name: &str, protocol: AuthProtocol, privacy: bool) -> User {
        User {
            name: name.to_owned(),
            protocol,
            auth: Stretched::new(protocol, b"maplesyrup"),
            privacy: privacy.then(|| Stretched::new(protocol, b"another one")),
        }
    }

    impl Keys {
        /// A message that the user sealed, with other bytes in it, and sealed again: as a device does that writes a value wrongly.
        pub fn altered(&self, message: &[u8], alter: &dyn Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
            let sealed = Sealed::read(message).unwrap();
            let mut message = message.to_vec();
            match &self.privacy {
                None => message = alter(&message),
                Some(key) => {
                    let (mut data, iv) = (sealed.data, iv(&sealed.engine, sealed.salt).unwrap());
                    let mut plain = data.octets().unwrap().to_vec();
                    let at = message.len() - plain.len();
                    Decryptor::<Aes128>::new(key.into(), &iv.into()).decrypt(&mut plain);
                    plain = alter(&plain);
                    Encryptor::<Aes128>::new(key.into(), &iv.into()).encrypt(&mut plain);
                    message[at..].copy_from_slice(&plain);
                }
            }
            let at = sealed.mac.clone();
            message[at.clone()].fill(0);
            let mac = self.protocol.mac(&self.auth, [&message, &[], &[]], None).unwrap();
            message[at].copy_from_slice(&mac);
            message
        }
    }

    /// RFC 3414, A.3.2.
    #[test]
    fn a_password_becomes_the_key_of_the_rfc() {
        let stretched = Stretched::new(AuthProtocol::Sha1, b"maplesyrup");
        assert_eq!(hex(&stretched.0), "9fb5cc0381497b3793528939ff788d5d79145211");
        let localized = stretched.localized(AuthProtocol::Sha1, &bytes("00 00 00 00 00 00 00 00 00 00 00 02"));
        assert_eq!(hex(&localized), "6695febc9288e36282235fc7151f128497b38f3f");
    }

    #[test]
    fn hashes_are_found_by_the_names_that_devices_give_them() {
        for (text, protocol) in [
            ("sha", "SHA"),
            ("SHA1", "SHA"),
            ("sha-1", "SHA"),
            ("SHA256", "SHA-256"),
            ("sha_512", "SHA-512"),
        ] {
            assert_eq!(AuthProtocol::parse(text).map(AuthProtocol::as_str), Some(protocol));
        }
        assert!(AuthProtocol::parse("MD5").is_none());
        for (at, (protocol, _)) in AuthProtocol::ALL.into_iter().enumerate() {
            assert_eq!(protocol as usize, at);
        }
    }

    fn engine() -> Engine {
        Engine {
            id: bytes("80 00 1f 88 80 e9 63 00 00"),
            boots: 4,
            time: 4711,
        }
    }

    fn pdu() -> Pdu {
        Pdu {
            kind: Kind::Get,
            request_id: 7,
            error_status: 0,
            error_index: 0,
            varbinds: vec![],
        }
    }

    fn sealed(keys: Option<&Keys>, pdu: &Pdu) -> Vec<u8> {
        let scope = Scope {
            engine_id: engine().id,
            name: vec![],
        };
        Message {
            msg_id: 9,
            engine: &engine(),
            user: b"ops",
            keys,
            scope: &scope,
            pdu,
            wants_report: true,
            salt: 77,
        }
        .encode()
    }

    #[test]
    fn what_is_not_as_the_user_does_it_is_refused() {
        let [signs, encrypts] =
            [false, true].map(|privacy| user("ops", AuthProtocol::Sha256, privacy).keys(&engine().id));
        let other = User {
            auth: Stretched::new(AuthProtocol::Sha256, b"another"),
            ..user("ops", AuthProtocol::Sha256, true)
        }
        .keys(&engine().id);
        let elsewhere = user("ops", AuthProtocol::Sha256, true).keys(b"another engine");
        let wrong = User {
            privacy: Some(Stretched::new(AuthProtocol::Sha256, b"yet another")),
            ..user("ops", AuthProtocol::Sha256, true)
        }
        .keys(&engine().id);
        let open =
            |message: &[u8], keys: &Keys| Sealed::read(message).unwrap().open(keys).map(|(_, pdu)| pdu.request_id);
        assert_eq!(open(&sealed(Some(&encrypts), &pdu()), &encrypts), Ok(7));
        assert_eq!(open(&sealed(Some(&signs), &pdu()), &signs), Ok(7));
        assert_eq!(open(&sealed(Some(&signs), &pdu()), &encrypts), Err(NotOpened::Level));
        assert_eq!(open(&sealed(Some(&encrypts), &pdu()), &signs), Err(NotOpened::Level));
        assert_eq!(open(&sealed(None, &pdu()), &signs), Err(NotOpened::Level));
        assert_eq!(
            open(&sealed(Some(&encrypts), &pdu()), &other),
            Err(NotOpened::Signature)
        );
        assert_eq!(
            open(&sealed(Some(&encrypts), &pdu()), &elsewhere),
            Err(NotOpened::Signature)
        );
        assert_eq!(
            open(&sealed(Some(&encrypts), &pdu()), &wrong),
            Err(NotOpened::Decryption)
        );
        assert!(Sealed::read(&sealed(None, &pdu())).unwrap().unsigned().is_ok());
        assert_eq!(
            Sealed::read(&sealed(Some(&signs), &pdu())).unwrap().unsigned(),
            Err(NotOpened::Level)
        );
    }

    #[test]
    fn nothing_of_a_password_is_shown() {
        let user = user("ops", AuthProtocol::Sha1, true);
        let shown = format!("{user:?} {:?}", user.keys(b"e"));
        assert!(
            shown.contains("<secret>") && !shown.contains("maple") && !shown.contains("159"),
            "{shown}"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_signed_reads_back_and_one_other_byte_does_not(pdu in any_pdu(), privacy: bool, protocol in 0usize..5, at: usize, bit in 0u8..8) {
            let user = user("ops", AuthProtocol::ALL[protocol].0, privacy);
            let keys = user.keys(&engine().id);
            let mut message = sealed(Some(&keys), &pdu);
            let read = Sealed::read(&message).unwrap();
            prop_assert_eq!((read.engine.clone(), read.user, read.msg_id), (engine(), &b"ops"[..], 9));
            prop_assert_eq!(read.open(&keys).unwrap().1, pdu);
            let at = at % message.len();
            message[at] ^= 1 << bit;
            let opened = Sealed::read(&message).ok().and_then(|sealed| sealed.open(&keys).ok());
            prop_assert!(opened.is_none());
            message.truncate(at);
            prop_assert!(Sealed::read(&message).is_err());
        }

        /// Random bytes are hardly ever a message: so these are some with other bytes in them, signed again, or not.
        #[test]
        fn no_bytes_panic_and_what_is_not_signed_again_is_not_believed(
            pdu in any_pdu(),
            privacy: bool,
            signed_again: bool,
            changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4),
            cut in 0usize..3,
        ) {
            let keys = user("ops", AuthProtocol::Sha1, privacy).keys(&engine().id);
            let whole = sealed(Some(&keys), &pdu);
            let change = |bytes: &[u8]| {
                let mut bytes = bytes.to_vec();
                for (at, byte) in &changes {
                    let len = bytes.len();
                    bytes[at % len] = *byte;
                }
                bytes
            };
            if signed_again {
                // What is inside, after the right key: the reader of PDUs sees it.
                let clear = |bytes: &[u8]| {
                    let mut bytes = bytes.to_vec();
                    let tail = bytes.len().min(16);
                    let from = bytes.len() - tail;
                    let changed = change(&bytes[from..]);
                    bytes[from..].copy_from_slice(&changed);
                    bytes
                };
                let message = keys.altered(&whole, &clear);
                if let Ok(sealed) = Sealed::read(&message) {
                    prop_assert!(sealed.open(&keys) != Err(NotOpened::Signature));
                }
            } else {
                let mut message = change(&whole);
                let is_same = message == whole;
                message.truncate(message.len() - cut);
                if let Ok(sealed) = Sealed::read(&message) {
                    let _ = (sealed.unsigned(), sealed.report(&keys));
                    prop_assert_eq!(sealed.open(&keys).is_ok(), is_same && cut == 0);
                }
            }
        }
    }
}

//! Asking one device: what goes out, and whether what comes is the answer.
//!
//! Pure: the shell sends and waits. Of version 3 a session first asks the device for its engine, which keys and times are made of;
//! what it learns it keeps. One question is open at a time; what answers another one is nothing of ours.
//!
//! Times are monotonic.

use crate::Oid;
use crate::ber::Bad;
use crate::pdu::{Community, Kind, Pdu, version};
use crate::usm::{Engine, Keys, Message, NotOpened, Scope, Sealed, User, WINDOW_SECS};
use hindcast_model::SpanNs;
use std::fmt;

/// How often one question is asked anew because of what was learnt, before the device is given up.
pub const LEARNT_MAX: u32 = 4;

/// Below it the counters that a report names: what a device did not like.
const USM_STATS: [u32; 10] = [1, 3, 6, 1, 6, 3, 15, 1, 1, 0];

/// How a device is spoken to.
#[derive(Clone, PartialEq, Eq)]
pub enum Access {
    /// Version 2c.
    Community(Vec<u8>),
    /// Version 3.
    User(User),
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Community(_) => f.write_str("<secret>"),
            Self::User(user) => user.fmt(f),
        }
    }
}

/// Why a device is not asked further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    #[error("the device does not know the user {0:?}; create it there, or correct the list")]
    UnknownUser(String),
    #[error("the device says that the password or the hash of user {0:?} is wrong")]
    WrongPassword(String),
    #[error(
        "the device says that it cannot decrypt what user {0:?} sends: the password for privacy, or the cipher, is another one there"
    )]
    WrongPrivacy(String),
    #[error("the device does not let user {0:?} speak so: with or without privacy, it is set up the other way there")]
    WrongLevel(String),
    #[error("the answer is not to be believed: {0}")]
    NotOpened(NotOpened),
    #[error("the answer is signed as it should be, and cannot be read: {0}")]
    NotRead(Bad),
    #[error("the device reports {0}")]
    Report(Oid),
    #[error("the device and this node do not come to agree on its engine and its clock")]
    NoAgreement,
}

/// What came of a datagram.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    Answer(Pdu),
    /// Something was learnt of the device: the same question can be asked now, without a wait.
    AskAgain,
    /// Nothing that was waited for.
    NotOurs,
    Failed(SessionError),
}

#[derive(Clone, Debug)]
struct Known {
    engine: Engine,
    /// When its clock stood so.
    at: SpanNs,
    keys: Keys,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    msg_id: i32,
    request_id: i32,
}

#[derive(Clone, Debug)]
pub struct Session {
    access: Access,
    known: Option<Known>,
    open: Option<Open>,
    learnt: u32,
    /// Why the last of what came since the question could not be read.
    unread: Option<Bad>,
    /// Numbers of messages and requests, and what encryption begins with: no two are the same.
    next: u64,
}

impl Session {
    /// `seed` is a random number: who cannot see the messages does not guess their numbers.
    pub fn new(access: Access, seed: u64) -> Self {
        Self {
            access,
            known: None,
            open: None,
            learnt: 0,
            unread: None,
            next: seed,
        }
    }

    fn number(&mut self) -> i32 {
        self.next = self.next.wrapping_add(1);
        (self.next & 0x7fff_ffff) as i32
    }

    /// A question that was not asked before: what was learnt for the one before does not count.
    pub fn begin(&mut self) {
        self.learnt = 0;
        self.unread = None;
    }

    /// Why the last datagram that came since [`Self::begin`] and is none of ours could not be read, where that is so.
    pub const fn unread(&self) -> Option<Bad> {
        self.unread
    }

    /// The datagram for a question, whatever its number.
    pub fn ask(&mut self, pdu: &Pdu, now: SpanNs) -> Vec<u8> {
        let (msg_id, request_id) = (self.number(), self.number());
        self.open = Some(Open { msg_id, request_id });
        let pdu = Pdu {
            request_id,
            ..pdu.clone()
        };
        let user = match &self.access {
            Access::Community(community) => {
                let community = community.clone();
                return Community { community, pdu }.encode();
            }
            Access::User(user) => user,
        };
        let Some(known) = &self.known else {
            let nothing = Pdu {
                kind: Kind::Get,
                error_status: 0,
                error_index: 0,
                varbinds: vec![],
                ..pdu
            };
            let (engine, scope) = (Engine::default(), Scope::default());
            return Message {
                msg_id,
                engine: &engine,
                user: b"",
                keys: None,
                scope: &scope,
                pdu: &nothing,
                wants_report: true,
                salt: self.next,
            }
            .encode();
        };
        let passed = u32::try_from(now.0.saturating_sub(known.at.0) / 1_000_000_000).unwrap_or(u32::MAX);
        let engine = Engine {
            time: known.engine.time.saturating_add(passed),
            ..known.engine.clone()
        };
        let scope = Scope {
            engine_id: engine.id.clone(),
            name: vec![],
        };
        Message {
            msg_id,
            engine: &engine,
            user: user.name.as_bytes(),
            keys: Some(&known.keys),
            scope: &scope,
            pdu: &pdu,
            wants_report: true,
            salt: self.next,
        }
        .encode()
    }

    /// What a datagram of the device says.
    pub fn hear(&mut self, datagram: &[u8], now: SpanNs) -> Heard {
        let Some(open) = self.open else {
            return Heard::NotOurs;
        };
        let pdu = match (&self.access, version(datagram)) {
            (Access::Community(_), Ok(1)) => match Community::decode(datagram) {
                Ok(message) => message.pdu,
                Err(why) => return self.not_read(why),
            },
            (Access::User(user), Ok(3)) => {
                let user = user.clone();
                match Sealed::read(datagram) {
                    Ok(sealed) if sealed.msg_id == open.msg_id => match self.unseal(&user, &sealed, now) {
                        Ok(pdu) => pdu,
                        Err(heard) => return heard,
                    },
                    Ok(_) => return Heard::NotOurs,
                    Err(why) => return self.not_read(why),
                }
            }
            (_, Ok(_)) => return self.not_read(Bad("it is of another version than the question")),
            (_, Err(why)) => return self.not_read(why),
        };
        if pdu.kind != Kind::Response || pdu.request_id != open.request_id {
            return Heard::NotOurs;
        }
        self.open = None;
        Heard::Answer(pdu)
    }

    fn not_read(&mut self, why: Bad) -> Heard {
        self.unread = Some(why);
        Heard::NotOurs
    }

    fn unseal(&mut self, user: &User, sealed: &Sealed<'_>, now: SpanNs) -> Result<Pdu, Heard> {
        if !sealed.is_signed() {
            let (_, pdu) = sealed.unsigned().map_err(|why| match why {
                NotOpened::Bad(why) => self.not_read(why),
                _ => Heard::NotOurs,
            })?;
            return Err(self.report(user, sealed, &pdu, now, false));
        }
        let Some(known) = self.known.as_mut().filter(|k| k.engine.id == sealed.engine.id) else {
            return Err(Heard::NotOurs);
        };
        if let Some(pdu) = sealed.report(&known.keys) {
            return Err(self.report(user, sealed, &pdu, now, true));
        }
        let opened = sealed.open(&known.keys);
        let (_, pdu) = opened.map_err(|why| {
            Heard::Failed(match why {
                NotOpened::Bad(why) => SessionError::NotRead(why),
                why => SessionError::NotOpened(why),
            })
        })?;
        if pdu.kind == Kind::Report {
            return Err(self.report(user, sealed, &pdu, now, true));
        }
        let clock = (sealed.engine.boots, sealed.engine.time);
        let latest = (known.engine.boots, known.engine.time);
        // An old answer that somebody kept.
        if clock.0 < latest.0 || clock.0 == latest.0 && clock.1.saturating_add(WINDOW_SECS) < latest.1 {
            return Err(Heard::NotOurs);
        }
        if clock > latest {
            (known.engine.boots, known.engine.time, known.at) = (clock.0, clock.1, now);
        }
        Ok(pdu)
    }

    /// The device did not like the question, and says why.
    fn report(&mut self, user: &User, sealed: &Sealed<'_>, pdu: &Pdu, now: SpanNs, is_signed: bool) -> Heard {
        let Some((oid, _)) = pdu.varbinds.first().filter(|_| pdu.kind == Kind::Report) else {
            return Heard::NotOurs;
        };
        let name = || user.name.clone();
        let which = oid.below(&USM_STATS[..9]).and_then(|rest| rest.first());
        let failed = match which {
            // notInTimeWindows: nobody else may set the clock.
            Some(2) if !is_signed => return Heard::NotOurs,
            // That, and unknownEngineIDs.
            Some(2 | 4) if self.learnt < LEARNT_MAX => {
                self.learnt += 1;
                if sealed.engine.id.is_empty() {
                    return Heard::Failed(SessionError::NoAgreement);
                }
                let engine = sealed.engine.clone();
                match &mut self.known {
                    Some(known) if known.engine.id == engine.id => {
                        // What is not signed says nothing of a clock that is known.
                        if is_signed {
                            (known.engine, known.at) = (engine, now);
                        }
                    }
                    known => {
                        let keys = user.keys(&engine.id);
                        *known = Some(Known { engine, at: now, keys });
                    }
                }
                return Heard::AskAgain;
            }
            Some(2 | 4) => SessionError::NoAgreement,
            Some(1) => SessionError::WrongLevel(name()),
            Some(3) => SessionError::UnknownUser(name()),
            Some(5) => SessionError::WrongPassword(name()),
            Some(6) => SessionError::WrongPrivacy(name()),
            _ => SessionError::Report(oid.clone()),
        };
        self.open = None;
        Heard::Failed(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pdu::Value;
    use crate::usm::AuthProtocol;
    use crate::usm::tests::user;

    const fn secs(s: u64) -> SpanNs {
        SpanNs::from_secs(s)
    }

    fn question() -> Pdu {
        let varbinds = vec![("1.3.6.1.2.1.1.3.0".parse().unwrap(), Value::Null)];
        Pdu {
            kind: Kind::Get,
            request_id: 0,
            error_status: 0,
            error_index: 0,
            varbinds,
        }
    }

    /// A device of version 3, which answers as RFC 3414 says.
    struct Device {
        engine: Engine,
        keys: Keys,
    }

    impl Device {
        fn new(user: &User) -> Self {
            let engine = Engine {
                id: b"the device".to_vec(),
                boots: 3,
                time: 1000,
            };
            Self {
                keys: user.keys(&engine.id),
                engine,
            }
        }

        fn say(&self, msg_id: i32, pdu: &Pdu, signed: bool) -> Vec<u8> {
            let keys = match pdu.kind {
                Kind::Report => self.keys.signing(),
                _ => self.keys.clone(),
            };
            let scope = Scope {
                engine_id: self.engine.id.clone(),
                name: vec![],
            };
            Message {
                msg_id,
                engine: &self.engine,
                user: b"ops",
                keys: signed.then_some(&keys),
                scope: &scope,
                pdu,
                wants_report: false,
                salt: 5,
            }
            .encode()
        }

        fn report(&self, msg_id: i32, which: u32, signed: bool) -> Vec<u8> {
            let oid = Oid::from([&USM_STATS[..9], &[which, 0]].concat());
            let pdu = Pdu {
                kind: Kind::Report,
                varbinds: vec![(oid, Value::Counter32(1))],
                ..question()
            };
            self.say(msg_id, &pdu, signed)
        }

        fn answer(&self, datagram: &[u8]) -> Vec<u8> {
            let sealed = Sealed::read(datagram).unwrap();
            if sealed.engine.id != self.engine.id {
                return self.report(sealed.msg_id, 4, false);
            }
            if sealed.user != b"ops" {
                return self.report(sealed.msg_id, 3, false);
            }
            match sealed.open(&self.keys) {
                Err(NotOpened::Signature) => self.report(sealed.msg_id, 5, false),
                Err(NotOpened::Level) => self.report(sealed.msg_id, 1, false),
                Err(_) => self.report(sealed.msg_id, 6, false),
                Ok(_)
                    if sealed.engine.boots != self.engine.boots
                        || sealed.engine.time.abs_diff(self.engine.time) > WINDOW_SECS =>
                {
                    self.report(sealed.msg_id, 2, true)
                }
                Ok((_, pdu)) => self.say(sealed.msg_id, &pdu.answer(), true),
            }
        }
    }

    fn talk(session: &mut Session, device: &Device, now: SpanNs) -> (u32, Heard) {
        session.begin();
        for n in 1.. {
            let datagram = session.ask(&question(), now);
            match session.hear(&device.answer(&datagram), now) {
                Heard::AskAgain => {}
                heard => return (n, heard),
            }
        }
        unreachable!()
    }

    fn kind(heard: &Heard) -> Option<Kind> {
        match heard {
            Heard::Answer(pdu) => Some(pdu.kind),
            _ => None,
        }
    }

    #[test]
    fn an_engine_is_found_once_and_its_clock_followed() {
        for privacy in [false, true] {
            let user = user("ops", AuthProtocol::Sha1, privacy);
            let (mut device, mut session) = (Device::new(&user), Session::new(Access::User(user), 1));
            let (asked, heard) = talk(&mut session, &device, secs(10));
            assert_eq!((asked, kind(&heard)), (2, Some(Kind::Response)));
            // A minute later its clock is a minute later, too; three hours later without an answer it is as well.
            device.engine.time += 60 + 3 * 3600;
            assert_eq!(talk(&mut session, &device, secs(70 + 3 * 3600)).0, 1);
            // After a restart of the device.
            device.engine = Engine {
                boots: 4,
                time: 2,
                ..device.engine
            };
            let (asked, heard) = talk(&mut session, &device, secs(80 + 3 * 3600));
            assert_eq!((asked, kind(&heard)), (2, Some(Kind::Response)));
            // Another device at the same address.
            device.engine.id = b"another".to_vec();
            device.keys = match &session.access {
                Access::User(user) => user.keys(b"another"),
                Access::Community(_) => unreachable!(),
            };
            assert_eq!(talk(&mut session, &device, secs(90 + 3 * 3600)).0, 2);
        }
    }

    #[test]
    fn what_a_device_does_not_like_is_said_in_words() {
        let right = user("ops", AuthProtocol::Sha1, true);
        let device = Device::new(&right);
        let said = |user: User| match talk(&mut Session::new(Access::User(user), 1), &device, secs(1)).1 {
            Heard::Failed(why) => why,
            other => panic!("{other:?}"),
        };
        let other = user("ops", AuthProtocol::Sha224, true);
        assert_eq!(said(other), SessionError::WrongPassword("ops".to_owned()));
        assert_eq!(
            said(user("nobody", AuthProtocol::Sha1, true)),
            SessionError::UnknownUser("nobody".to_owned())
        );
        assert_eq!(
            said(user("ops", AuthProtocol::Sha1, false)),
            SessionError::WrongLevel("ops".to_owned())
        );
    }

    #[test]
    fn a_device_that_never_agrees_is_given_up() {
        let user = user("ops", AuthProtocol::Sha1, false);
        let (device, mut session) = (Device::new(&user), Session::new(Access::User(user), 1));
        for n in 0..=LEARNT_MAX {
            session.ask(&question(), secs(1));
            let msg_id = session.open.unwrap().msg_id;
            let unsigned = session.hear(&device.report(msg_id, 2, false), secs(1));
            assert_eq!(unsigned, Heard::NotOurs, "nobody else may set the clock");
            let heard = session.hear(&device.report(msg_id, 4, false), secs(1));
            let is_last = n == LEARNT_MAX;
            assert_eq!(heard == Heard::Failed(SessionError::NoAgreement), is_last, "{heard:?}");
        }
    }

    /// Somebody's report, which is signed by nobody, could set the clock of a device ahead, so that its own answers looked old.
    #[test]
    fn a_report_that_nobody_signed_leaves_a_known_clock_as_it_is() {
        let user = user("ops", AuthProtocol::Sha1, true);
        let (device, mut session) = (Device::new(&user), Session::new(Access::User(user.clone()), 1));
        talk(&mut session, &device, secs(1));
        session.begin();
        session.ask(&question(), secs(2));
        let mut somebody = Device::new(&user);
        (somebody.engine.boots, somebody.engine.time) = (99, 1_000_000);
        let heard = session.hear(&somebody.report(session.open.unwrap().msg_id, 4, false), secs(2));
        assert_eq!((heard, session.learnt), (Heard::AskAgain, 1));
        let asked = session.ask(&question(), secs(2));
        assert_eq!(Sealed::read(&asked).unwrap().engine.boots, device.engine.boots);
        let heard = session.hear(&device.answer(&asked), secs(2));
        assert!(matches!(heard, Heard::Answer(_)), "{heard:?}");
    }

    #[test]
    fn what_answers_nothing_that_is_open_is_not_ours() {
        let mut session = Session::new(Access::Community(b"public".to_vec()), 41);
        assert_eq!(session.hear(&[], secs(0)), Heard::NotOurs);
        let asked = Community::decode(&session.ask(&question(), secs(0))).unwrap();
        let answer = |request_id| {
            let pdu = Pdu {
                request_id,
                ..asked.pdu.answer()
            };
            Community { pdu, ..asked.clone() }.encode()
        };
        assert_eq!(session.hear(&answer(asked.pdu.request_id + 1), secs(0)), Heard::NotOurs);
        assert_eq!(session.hear(&asked.encode(), secs(0)), Heard::NotOurs);
        assert_eq!(session.hear(b"x", secs(0)), Heard::NotOurs);
        let right = answer(asked.pdu.request_id);
        assert!(matches!(session.hear(&right, secs(0)), Heard::Answer(_)));
        assert_eq!(session.hear(&right, secs(0)), Heard::NotOurs, "once");
    }

    /// The device was said to be away, or to have another password.
    #[test]
    fn an_answer_that_cannot_be_read_is_what_is_said() {
        let oid: Oid = "1.3.6.1.2.1.31.1.1.1.6.1".parse().unwrap();
        let varbinds = vec![(oid, Value::Octets(b"123456789".to_vec()))];
        let with = |message: &[u8], before: usize, byte: u8| {
            let at = message.windows(9).position(|w| w == b"123456789").unwrap();
            let mut message = message.to_vec();
            message[at - before] = byte;
            message
        };
        // The last part of the name never ends.
        let broken = |message: &[u8]| with(message, 3, 0x81);
        // As a counter of 64 bits, the value has nine bytes and is not below 2^64: that is this value's own affair.
        let odd = |message: &[u8]| with(message, 2, 0x46);
        let is_odd = |heard: Heard| match heard {
            Heard::Answer(pdu) => matches!(pdu.varbinds[..], [(_, Value::Unread(_))]),
            _ => false,
        };
        let mut session = Session::new(Access::Community(b"public".to_vec()), 41);
        session.begin();
        let asked = Community::decode(&session.ask(&question(), secs(0))).unwrap();
        let pdu = Pdu {
            varbinds: varbinds.clone(),
            ..asked.pdu.answer()
        };
        let answer = Community { pdu, ..asked }.encode();
        assert_eq!(session.hear(&broken(&answer), secs(0)), Heard::NotOurs);
        let why = session.unread().unwrap();
        assert!(Community::decode(&broken(&answer)).unwrap_err() == why, "{why}");
        assert!(is_odd(session.hear(&odd(&answer), secs(0))));
        session.begin();
        assert_eq!(session.unread(), None, "of another question");

        for privacy in [false, true] {
            let user = user("ops", AuthProtocol::Sha1, privacy);
            let (device, mut session) = (Device::new(&user), Session::new(Access::User(user), 1));
            talk(&mut session, &device, secs(1));
            session.ask(&question(), secs(2));
            let open = session.open.unwrap();
            let pdu = Pdu {
                request_id: open.request_id,
                varbinds: varbinds.clone(),
                ..question().answer()
            };
            let answer = device.say(open.msg_id, &pdu, true);
            let heard = session.hear(&device.keys.altered(&answer, &broken), secs(2));
            assert_eq!(heard, Heard::Failed(SessionError::NotRead(why)));
            assert!(is_odd(session.hear(&device.keys.altered(&answer, &odd), secs(2))));
        }
    }

    #[test]
    fn an_answer_that_somebody_kept_is_not_believed() {
        let user = user("ops", AuthProtocol::Sha1, true);
        let (mut device, mut session) = (Device::new(&user), Session::new(Access::User(user), 1));
        talk(&mut session, &device, secs(1));
        session.ask(&question(), secs(2));
        let open = session.open.unwrap();
        device.engine.time -= WINDOW_SECS + 1;
        let answer = Pdu {
            request_id: open.request_id,
            ..question().answer()
        };
        assert_eq!(
            session.hear(&device.say(open.msg_id, &answer, true), secs(2)),
            Heard::NotOurs
        );
        device.engine.time += 1;
        assert!(matches!(
            session.hear(&device.say(open.msg_id, &answer, true), secs(2)),
            Heard::Answer(_)
        ));
    }
}

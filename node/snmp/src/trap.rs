//! Traps and informs: who sent one, whether it may be believed, what it says, and how an inform is answered.
//!
//! Pure. A trap of version 3 is of its sender's engine, whose clock is followed once the signature was right; an inform is of this
//! node's own engine, which senders ask for first.
//!
//! Invariants
//! - Nothing is remembered of whom no community or signature vouches for.
//! - A trap that is no newer than the newest one of its engine, and older than [`WINDOW_SECS`] before what its clock stands at by now, is
//!   refused: somebody kept it. A newer one sets the clock, which may be slower than ours (RFC 3414, 3.2, 7b).
//!
//! Bounds: [`ENGINES_MAX`] senders' engines; one more takes the place of the one that was not heard of for longest.

use crate::Oid;
use crate::config::Senders;
use crate::pdu::{Community, Kind, Pdu, Value, VarBind, version};
use crate::usm::{Engine, Keys, Message, NotOpened, Scope, Sealed, User, WINDOW_SECS};
use hindcast_model::SpanNs;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Engines of senders that are remembered.
pub const ENGINES_MAX: usize = 20_000;

const SYS_UP_TIME: [u32; 9] = [1, 3, 6, 1, 2, 1, 1, 3, 0];
const TRAP_OID: [u32; 11] = [1, 3, 6, 1, 6, 3, 1, 1, 4, 1, 0];
const UNKNOWN_ENGINES: [u32; 11] = [1, 3, 6, 1, 6, 3, 15, 1, 1, 4, 0];
const NOT_IN_TIME: [u32; 11] = [1, 3, 6, 1, 6, 3, 15, 1, 1, 2, 0];

/// What a device says by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub trap: Oid,
    /// In hundredths of a second, since the device began.
    pub uptime: Option<u32>,
    /// The others.
    pub varbinds: Vec<VarBind>,
    pub is_inform: bool,
    pub version: &'static str,
    /// Of version 3.
    pub user: Option<String>,
}

/// Why a datagram is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refused {
    /// No message, or not one that tells of something.
    Malformed,
    /// Of version 1.
    Version,
    Community,
    User,
    /// A wrong signature, or a wrong password for privacy.
    Signature,
    /// Not signed or encrypted as the user does it.
    Level,
    /// Older than it may be, or of another boot.
    Time,
}

impl Refused {
    pub const ALL: [(Self, &'static str); 7] = [
        (Self::Malformed, "malformed"),
        (Self::Version, "version"),
        (Self::Community, "community"),
        (Self::User, "user"),
        (Self::Signature, "signature"),
        (Self::Level, "level"),
        (Self::Time, "time"),
    ];

    pub fn as_str(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// What is wrong and whose move is next, in words for people.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Malformed => "it cannot be read as a trap or inform; see what that sender is and what it sends here",
            Self::Version => "it is of version 1, which is not supported; set the sender to 2c or 3",
            Self::Community => {
                "no sender in traps.senders of --snmp-config has its community; correct it there or at the sender"
            }
            Self::User => "no sender in traps.senders of --snmp-config has its user; correct it there or at the sender",
            Self::Signature => {
                "its signature or its encryption does not fit its user in traps.senders of --snmp-config: another password, or another hash"
            }
            Self::Level => {
                "its user signs and encrypts in traps.senders of --snmp-config otherwise than at the sender: set both alike"
            }
            Self::Time => {
                "it is older than it may be: somebody sent it again, or the sender's clock went back without a count of its boots"
            }
        }
    }
}

/// What came of a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// `answer`: to an inform, once it is stored.
    Notice {
        notice: Notice,
        answer: Option<Vec<u8>>,
    },
    /// Somebody asks for this node's engine, or for its clock.
    Answer(Vec<u8>),
    Refused(Refused),
}

#[derive(Clone, Debug)]
struct Known {
    boots: u32,
    /// Of the newest trap.
    time: u32,
    /// When that one came.
    at: SpanNs,
    heard: SpanNs,
}

/// Who listens: its engine, who may send, and what is known of senders.
#[derive(Clone, Debug)]
pub struct Receiver {
    senders: Arc<Senders>,
    id: Vec<u8>,
    boots: u32,
    began: SpanNs,
    engines: BTreeMap<Vec<u8>, Known>,
    engines_max: usize,
    salt: u64,
}

impl Receiver {
    /// `boots` rises with each start. `salt`: a random number.
    pub fn new(id: Vec<u8>, boots: u32, began: SpanNs, salt: u64) -> Self {
        Self {
            senders: Arc::default(),
            id,
            boots,
            began,
            engines: BTreeMap::new(),
            engines_max: ENGINES_MAX,
            salt,
        }
    }

    pub fn set_senders(&mut self, senders: Arc<Senders>) {
        self.senders = senders;
    }

    fn engine(&self, now: SpanNs) -> Engine {
        let secs = now.0.saturating_sub(self.began.0) / 1_000_000_000;
        Engine {
            id: self.id.clone(),
            boots: self.boots,
            time: u32::try_from(secs).unwrap_or(u32::MAX).min(i32::MAX as u32),
        }
    }

    pub fn hear(&mut self, datagram: &[u8], now: SpanNs) -> Heard {
        let heard = match version(datagram) {
            Ok(0) => Err(Refused::Version),
            Ok(1) => self.community(datagram),
            Ok(3) => self.user(datagram, now),
            _ => Err(Refused::Malformed),
        };
        heard.unwrap_or_else(Heard::Refused)
    }

    fn community(&self, datagram: &[u8]) -> Result<Heard, Refused> {
        let message = Community::decode(datagram).map_err(|_| Refused::Malformed)?;
        if !self.senders.communities.iter().any(|c| c.0 == message.community) {
            return Err(Refused::Community);
        }
        let notice = notice(&message.pdu, "2c", None)?;
        let answer = notice.is_inform.then(|| {
            let pdu = message.pdu.answer();
            Community { pdu, ..message }.encode()
        });
        Ok(Heard::Notice { notice, answer })
    }

    fn user(&mut self, datagram: &[u8], now: SpanNs) -> Result<Heard, Refused> {
        let sealed = Sealed::read(datagram).map_err(|_| Refused::Malformed)?;
        let own = self.engine(now);
        let is_own = sealed.engine.id == own.id;
        if sealed.wants_report() && !is_own {
            // An inform, or a question before one: it is to be of our engine.
            return Ok(Heard::Answer(self.report(&sealed, &own, &UNKNOWN_ENGINES, None)));
        }
        let name = std::str::from_utf8(sealed.user).map_err(|_| Refused::User)?;
        let senders = self.senders.clone();
        let user = senders.users.iter().find(|u| u.name == name).ok_or(Refused::User)?;
        if sealed.engine.id.is_empty() {
            return Err(Refused::Malformed);
        }
        let keys = user.keys(&sealed.engine.id);
        let (scope, pdu) = sealed.open(&keys).map_err(|why| match why {
            NotOpened::Bad(_) => Refused::Malformed,
            NotOpened::Level => Refused::Level,
            NotOpened::Signature | NotOpened::Decryption => Refused::Signature,
        })?;
        if is_own {
            let is_near = sealed.engine.time.abs_diff(own.time) <= WINDOW_SECS;
            if sealed.engine.boots != own.boots || !is_near {
                return match sealed.wants_report() {
                    true => Ok(Heard::Answer(self.report(
                        &sealed,
                        &own,
                        &NOT_IN_TIME,
                        Some((user, &keys)),
                    ))),
                    false => Err(Refused::Time),
                };
            }
        } else {
            self.follow(&sealed.engine, now)?;
        }
        let notice = notice(&pdu, "3", Some(name.to_owned()))?;
        // What is answered must be an inform of our own engine; a trap that says so is nothing to answer.
        let answer = (notice.is_inform && is_own).then(|| {
            self.salt = self.salt.wrapping_add(1);
            Message {
                msg_id: sealed.msg_id,
                engine: &own,
                user: sealed.user,
                keys: Some(&keys),
                scope: &scope,
                pdu: &pdu.answer(),
                wants_report: false,
                salt: self.salt,
            }
            .encode()
        });
        Ok(Heard::Notice { notice, answer })
    }

    /// A sender's clock, as its signed messages tell it, never goes back, and goes on while nothing is heard.
    fn follow(&mut self, engine: &Engine, now: SpanNs) -> Result<(), Refused> {
        let (boots, time) = (engine.boots, engine.time);
        if let Some(known) = self.engines.get_mut(&engine.id) {
            if (boots, time) > (known.boots, known.time) {
                (known.boots, known.time, known.at) = (boots, time, now);
            }
            let passed = now.0.saturating_sub(known.at.0) / 1_000_000_000;
            let by_now = u64::from(known.time).saturating_add(passed);
            if boots < known.boots || u64::from(time) + u64::from(WINDOW_SECS) < by_now {
                return Err(Refused::Time);
            }
            known.heard = now;
            return Ok(());
        }
        if self.engines.len() >= self.engines_max
            && let Some(oldest) = self
                .engines
                .iter()
                .min_by_key(|(_, k)| k.heard)
                .map(|(id, _)| id.clone())
        {
            self.engines.remove(&oldest);
        }
        let (at, heard) = (now, now);
        self.engines.insert(engine.id.clone(), Known { boots, time, at, heard });
        Ok(())
    }

    fn report(&mut self, asked: &Sealed<'_>, own: &Engine, why: &[u32], signed: Option<(&User, &Keys)>) -> Vec<u8> {
        self.salt = self.salt.wrapping_add(1);
        let request_id = asked.unsigned().map_or(0, |(_, pdu)| pdu.request_id);
        let scope = Scope {
            engine_id: own.id.clone(),
            name: vec![],
        };
        Message {
            msg_id: asked.msg_id,
            engine: own,
            user: signed.map_or(b"", |(user, _)| user.name.as_bytes()),
            keys: signed.map(|(_, keys)| keys.signing()).as_ref(),
            scope: &scope,
            pdu: &Pdu {
                kind: Kind::Report,
                request_id,
                error_status: 0,
                error_index: 0,
                varbinds: vec![(why.into(), Value::Counter32(1))],
            },
            wants_report: false,
            salt: self.salt,
        }
        .encode()
    }
}

fn notice(pdu: &Pdu, version: &'static str, user: Option<String>) -> Result<Notice, Refused> {
    let is_inform = match pdu.kind {
        Kind::Trap => false,
        Kind::Inform => true,
        _ => return Err(Refused::Malformed),
    };
    let (mut trap, mut uptime, mut varbinds) = (None, None, vec![]);
    for (oid, value) in &pdu.varbinds {
        match value {
            Value::Oid(named) if oid.ids() == TRAP_OID && trap.is_none() => trap = Some(named.clone()),
            Value::TimeTicks(ticks) if oid.ids() == SYS_UP_TIME && uptime.is_none() => uptime = Some(*ticks),
            value => varbinds.push((oid.clone(), value.clone())),
        }
    }
    Ok(Notice {
        trap: trap.ok_or(Refused::Malformed)?,
        uptime,
        varbinds,
        is_inform,
        version,
        user,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config;
    use crate::usm::AuthProtocol;
    use crate::usm::tests::user;
    use proptest::prelude::*;

    pub fn link_down(kind: Kind) -> Pdu {
        let bind = |oid: &str, value| (oid.parse().unwrap(), value);
        Pdu {
            kind,
            request_id: 77,
            error_status: 0,
            error_index: 0,
            varbinds: vec![
                bind("1.3.6.1.2.1.1.3.0", Value::TimeTicks(123)),
                bind(
                    "1.3.6.1.6.3.1.1.4.1.0",
                    Value::Oid("1.3.6.1.6.3.1.1.5.3".parse().unwrap()),
                ),
                bind("1.3.6.1.2.1.2.2.1.1.4", Value::Integer(4)),
            ],
        }
    }

    const OWN: &[u8] = b"this node";

    fn receiver() -> Receiver {
        let senders = Senders {
            communities: vec![config::Community(b"traps".to_vec())],
            users: vec![user("ops", AuthProtocol::Sha256, true)],
            ..Senders::default()
        };
        let mut receiver = Receiver::new(OWN.to_vec(), 9, SpanNs::from_secs(100), 1);
        receiver.set_senders(Arc::new(senders));
        receiver
    }

    fn community(community: &str, kind: Kind) -> Vec<u8> {
        Community {
            community: community.into(),
            pdu: link_down(kind),
        }
        .encode()
    }

    fn signed(user: &User, engine: &Engine, kind: Kind) -> Vec<u8> {
        let scope = Scope {
            engine_id: engine.id.clone(),
            name: vec![],
        };
        let keys = user.keys(&engine.id);
        Message {
            msg_id: 5,
            engine,
            user: user.name.as_bytes(),
            keys: Some(&keys),
            scope: &scope,
            pdu: &link_down(kind),
            wants_report: kind == Kind::Inform,
            salt: 3,
        }
        .encode()
    }

    fn said(heard: &Heard) -> String {
        match heard {
            Heard::Notice { notice, answer } => {
                let answered = if answer.is_some() { ", answered" } else { "" };
                format!(
                    "{} of {:?} version {}{answered}",
                    notice.trap, notice.user, notice.version
                )
            }
            Heard::Answer(_) => "answer".to_owned(),
            Heard::Refused(why) => why.as_str().to_owned(),
        }
    }

    #[test]
    fn a_community_vouches_for_a_trap_and_an_inform_is_answered() {
        let mut r = receiver();
        let mut hear = |datagram: &[u8]| said(&r.hear(datagram, SpanNs::from_secs(200)));
        assert_eq!(
            hear(&community("traps", Kind::Trap)),
            "1.3.6.1.6.3.1.1.5.3 of None version 2c"
        );
        assert_eq!(
            hear(&community("traps", Kind::Inform)),
            "1.3.6.1.6.3.1.1.5.3 of None version 2c, answered"
        );
        assert_eq!(hear(&community("public", Kind::Trap)), "community");
        assert_eq!(hear(&community("", Kind::Trap)), "community");
        assert_eq!(hear(&community("traps", Kind::Get)), "malformed");
        assert_eq!(hear(&[0x30, 3, 2, 1, 0]), "version");
        assert_eq!(hear(b"hello"), "malformed");
        let nameless = Pdu {
            varbinds: vec![],
            ..link_down(Kind::Trap)
        };
        assert_eq!(
            hear(
                &Community {
                    community: b"traps".to_vec(),
                    pdu: nameless
                }
                .encode()
            ),
            "malformed"
        );
    }

    #[test]
    fn a_signature_vouches_for_a_trap_and_an_old_one_is_refused() {
        let (mut r, ops) = (receiver(), user("ops", AuthProtocol::Sha256, true));
        let mut hear = |user: &User, boots, time| {
            let engine = Engine {
                id: b"a switch".to_vec(),
                boots,
                time,
            };
            said(&r.hear(&signed(user, &engine, Kind::Trap), SpanNs::from_secs(200)))
        };
        let taken = "1.3.6.1.6.3.1.1.5.3 of Some(\"ops\") version 3";
        assert_eq!(hear(&ops, 2, 1000), taken);
        assert_eq!(hear(&ops, 2, 1000 - WINDOW_SECS), taken);
        assert_eq!(hear(&ops, 2, 999 - WINDOW_SECS), "time");
        assert_eq!(hear(&ops, 1, 5000), "time");
        assert_eq!(hear(&ops, 3, 0), taken);
        assert_eq!(hear(&user("nobody", AuthProtocol::Sha256, true), 3, 0), "user");
        assert_eq!(hear(&user("ops", AuthProtocol::Sha1, true), 3, 0), "signature");
        assert_eq!(hear(&user("ops", AuthProtocol::Sha256, false), 3, 0), "level");
    }

    /// The last trap of a switch that was quiet since could be sent again for ever, by anybody.
    #[test]
    fn the_newest_trap_of_a_quiet_switch_is_not_taken_again_later() {
        let (mut r, ops) = (receiver(), user("ops", AuthProtocol::Sha256, true));
        let mut hear = |boots, time, now: u64| {
            let engine = Engine {
                id: b"a switch".to_vec(),
                boots,
                time,
            };
            said(&r.hear(&signed(&ops, &engine, Kind::Trap), SpanNs::from_secs(now)))
        };
        let (taken, window) = ("1.3.6.1.6.3.1.1.5.3 of Some(\"ops\") version 3", u64::from(WINDOW_SECS));
        assert_eq!(hear(2, 1000, 200), taken);
        assert_eq!(hear(2, 1000, 200 + window), taken, "on the way for so long it may be");
        assert_eq!(hear(2, 1000, 201 + window), "time");
        assert_eq!(hear(2, 1000, 200 + 1_000_000), "time");
        assert_eq!(hear(2, 999, 200 + 1_000_000), "time");
        // Its own clock lost five minutes in these days: what is new is taken, and the clock followed from there.
        assert_eq!(hear(2, 1000 + 1_000_000 - 300, 200 + 1_000_000), taken);
        assert_eq!(hear(2, 1000 + 1_000_000 - 300, 201 + 1_000_000 + window), "time");
        assert_eq!(hear(3, 0, 500 + 1_000_000), taken);
        assert_eq!(hear(2, 2_000_000, 500 + 1_000_000), "time");
    }

    /// As a sender does it: it asks for our engine, learns the clock, and is answered.
    #[test]
    fn an_inform_is_of_our_engine_and_is_answered_with_a_signature() {
        let (mut r, ops) = (receiver(), user("ops", AuthProtocol::Sha256, true));
        let now = SpanNs::from_secs(160);
        let question = Message {
            msg_id: 1,
            engine: &Engine::default(),
            user: b"",
            keys: None,
            scope: &Scope::default(),
            pdu: &Pdu {
                kind: Kind::Get,
                varbinds: vec![],
                ..link_down(Kind::Get)
            },
            wants_report: true,
            salt: 1,
        };
        let Heard::Answer(report) = r.hear(&question.encode(), now) else {
            panic!()
        };
        let report = Sealed::read(&report).unwrap();
        assert_eq!(
            report.engine,
            Engine {
                id: OWN.to_vec(),
                boots: 9,
                time: 60
            }
        );
        assert_eq!(report.unsigned().unwrap().1.kind, Kind::Report);
        // With a clock of its own it is told ours, signed.
        let wrong = Engine {
            boots: 0,
            ..report.engine.clone()
        };
        let Heard::Answer(in_time) = r.hear(&signed(&ops, &wrong, Kind::Inform), now) else {
            panic!()
        };
        let pdu = Sealed::read(&in_time).unwrap().report(&ops.keys(OWN)).unwrap();
        assert_eq!((pdu.kind, pdu.varbinds[0].0.ids()), (Kind::Report, &NOT_IN_TIME[..]));
        let Heard::Notice {
            answer: Some(answer), ..
        } = r.hear(&signed(&ops, &report.engine, Kind::Inform), now)
        else {
            panic!()
        };
        let (_, pdu) = Sealed::read(&answer).unwrap().open(&ops.keys(OWN)).unwrap();
        assert_eq!((pdu.kind, pdu.request_id), (Kind::Response, 77));
        let Heard::Refused(why) = r.hear(
            &signed(&user("x", AuthProtocol::Sha1, true), &report.engine, Kind::Inform),
            now,
        ) else {
            panic!()
        };
        assert_eq!(why, Refused::User);
    }

    #[test]
    fn engines_are_bounded_and_the_one_not_heard_of_for_longest_goes() {
        let (mut r, ops) = (receiver(), user("ops", AuthProtocol::Sha256, true));
        r.engines_max = 2;
        for (n, id) in ["a", "b", "a", "c"].into_iter().enumerate() {
            let engine = Engine {
                id: id.into(),
                boots: 1,
                time: 1,
            };
            r.hear(&signed(&ops, &engine, Kind::Trap), SpanNs::from_secs(200 + n as u64));
        }
        assert_eq!(r.engines.keys().collect::<Vec<_>>(), [b"a", b"c"]);
        // Who is not vouched for takes no place.
        let engine = Engine {
            id: b"d".to_vec(),
            boots: 1,
            time: 1,
        };
        r.hear(
            &signed(&user("ops", AuthProtocol::Sha1, true), &engine, Kind::Trap),
            SpanNs::from_secs(300),
        );
        assert_eq!(r.engines.len(), 2);
    }

    #[test]
    fn reasons_stand_at_their_places() {
        for (at, (why, _)) in Refused::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, at);
        }
    }

    /// Whoever had a trap refused for its time looked for the mistake in traps.senders.
    #[test]
    fn a_refusal_points_to_the_list_where_the_list_can_be_wrong() {
        let by_list = Refused::ALL
            .iter()
            .filter(|(why, _)| why.advice().contains("traps.senders"));
        let names: Vec<_> = by_list.map(|(_, name)| *name).collect();
        assert_eq!(names, ["community", "user", "signature", "level"]);
        let all: std::collections::BTreeSet<_> = Refused::ALL.iter().map(|(why, _)| why.advice()).collect();
        assert_eq!(all.len(), Refused::ALL.len());
    }

    proptest! {
        #[test]
        fn no_datagram_panics_and_none_without_a_sender_is_taken(datagram in proptest::collection::vec(any::<u8>(), 0..300), at: usize, byte: u8) {
            let mut r = receiver();
            r.hear(&datagram, SpanNs::ZERO);
            let mut own = community("public", Kind::Trap);
            let at = at % own.len();
            own[at] = byte;
            let is_taken = matches!(r.hear(&own, SpanNs::ZERO), Heard::Notice { .. });
            prop_assert!(!is_taken);
        }
    }
}

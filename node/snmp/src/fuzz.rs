//! This crate's readers as fuzz targets. See `hindcast_env::fuzz`.

use crate::config::{self, Elsewhere, Senders};
use crate::line::{Names, line};
use crate::pdu::{Community, Kind, Pdu, Value};
use crate::poll::Poll;
use crate::trap::{Heard, Receiver};
use crate::usm::{AuthProtocol, Engine, Message, Scope, Sealed, Stretched, User};
use hindcast_env::fuzz::Target;
use hindcast_model::SpanNs;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

/// Datagrams, and the file that an operator writes.
pub const TARGETS: &[Target] = &[
    Target {
        name: "snmp-datagram",
        run: datagram,
        seeds: datagram_seeds,
    },
    Target {
        name: "snmp-config",
        run: configuration,
        seeds: configuration_seeds,
    },
];

/// A password is hashed a mebibyte long: once is enough.
fn user() -> &'static User {
    static USER: OnceLock<User> = OnceLock::new();
    USER.get_or_init(|| {
        let stretched = Stretched::new(AuthProtocol::Sha1, b"of the fuzzer");
        User {
            name: "ops".to_owned(),
            protocol: AuthProtocol::Sha1,
            auth: stretched.clone(),
            privacy: Some(stretched),
        }
    })
}

fn datagram(bytes: &[u8]) {
    let senders = Senders {
        communities: vec![config::Community(b"public".to_vec())],
        users: vec![user().clone()],
        ..Senders::default()
    };
    let mut receiver = Receiver::new(b"own".to_vec(), 1, SpanNs::ZERO, 1);
    receiver.set_senders(Arc::new(senders));
    if let Heard::Notice { notice, .. } = receiver.hear(bytes, SpanNs::from_secs(1)) {
        line(&notice, "sw", &BTreeMap::new(), "::1", &mut Names::default());
    }
    if let Ok(sealed) = Sealed::read(bytes) {
        let _ = sealed.unsigned();
    }
    let Ok(message) = Community::decode(bytes) else { return };
    // As the answer to each question of a poll.
    let mut poll = Poll::new(10);
    for _ in 0..4 {
        let Ok(Some(_)) = poll.question() else { break };
        if poll.take(message.pdu.clone()).is_err() {
            break;
        }
    }
    poll.finish();
}

fn datagram_seeds() -> Vec<Vec<u8>> {
    let bind = |oid: &str, value| (oid.parse().unwrap_or_default(), value);
    let pdu = |kind| Pdu {
        kind,
        request_id: 7,
        error_status: 0,
        error_index: 0,
        varbinds: vec![
            bind("1.3.6.1.2.1.1.3.0", Value::TimeTicks(4200)),
            bind(
                "1.3.6.1.6.3.1.1.4.1.0",
                Value::Oid("1.3.6.1.6.3.1.1.5.3".parse().unwrap_or_default()),
            ),
            bind("1.3.6.1.2.1.2.2.1.1.4", Value::Integer(4)),
            bind("1.3.6.1.2.1.31.1.1.1.6.4", Value::Counter64(u64::MAX)),
            bind("1.3.6.1.2.1.2.2.1.2.4", Value::Octets(b"eth0".to_vec())),
            bind("1.3.6.1.2.1.25.2.3.1.6.1", Value::EndOfMibView),
        ],
    };
    let engine = Engine {
        id: b"a switch".to_vec(),
        boots: 1,
        time: 1,
    };
    let scope = Scope {
        engine_id: engine.id.clone(),
        name: vec![],
    };
    let keys = user().keys(&engine.id);
    let sealed = |keys, wants_report| {
        let (pdu, user) = (&pdu(Kind::Trap), &b"ops"[..]);
        let message = Message {
            msg_id: 1,
            engine: &engine,
            user,
            keys,
            scope: &scope,
            pdu,
            wants_report,
            salt: 1,
        };
        message.encode()
    };
    let of_community = |kind| {
        let community = b"public".to_vec();
        Community {
            community,
            pdu: pdu(kind),
        }
        .encode()
    };
    vec![
        of_community(Kind::Trap),
        of_community(Kind::Inform),
        of_community(Kind::Response),
        sealed(Some(&keys), false),
        sealed(None, true),
    ]
}

fn configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let secret = |_: &Elsewhere| Ok("a secret of somebody".to_owned());
    let _ = config::parse("f", text, &secret);
}

fn configuration_seeds() -> Vec<Vec<u8>> {
    let all = "defaults: {community_env: C, interval: 30s, labels: {site: a}}\ndevices:\n- address: 10.0.0.1\n  name: sw-1\n- {address: '[::1]:1161', version: 2c, community: x, retries: 1}\n- {address: sw-2, version: 3, user: ops, auth_protocol: SHA, auth_password_file: a, priv_protocol: AES, priv_password_env: P}\ntraps:\n  tenant: t\n  senders: [{community: x}]\n";
    vec![all.as_bytes().to_vec()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_env::io::SystemClock;

    #[test]
    fn damaged_datagrams_and_lists_are_read_or_refused() {
        hindcast_env::fuzz::check_targets(TARGETS, &SystemClock::new(), SpanNs::from_ms(2000));
    }
}

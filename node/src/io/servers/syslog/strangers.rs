//! Of whom it is said that they may not send. Who forgot a network in `from=` finds its senders in the log; who is scanned
//! finds a few lines there, and the rest in the counters.

use std::collections::BTreeSet;
use std::net::IpAddr;

/// Addresses that one listener names.
pub const SAID_MAX: usize = 16;

const SAID: &str = "syslog of this address is refused: it is not in from= of the listener; add it there if it may send";
const SAID_LAST: &str = "syslog of this address is refused, as of others before: it is not in from= of the listener; further \
                         addresses are only counted (reason=\"source\" in hindcast_syslog_dropped_total and \
                         hindcast_syslog_connections_refused_total)";

/// Addresses that one listener has named.
#[derive(Debug, Default)]
pub(super) struct Strangers(BTreeSet<IpAddr>);

impl Strangers {
    /// What is to be said of a sender that is refused: once of each, and of the first [`SAID_MAX`].
    pub(super) fn meet(&mut self, peer: IpAddr) -> Option<&'static str> {
        if self.0.len() == SAID_MAX || !self.0.insert(peer) {
            return None;
        }
        Some(if self.0.len() < SAID_MAX { SAID } else { SAID_LAST })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A switch whose network was forgotten in `from=` sent for days; only a counter knew, and not which switch it was.
    #[test]
    fn who_is_refused_by_from_is_named_once_and_not_without_end() {
        let mut strangers = Strangers::default();
        let peer = |n: usize| IpAddr::from([192, 0, 2, n as u8]);
        let mut said = vec![];
        for _again in 0..3 {
            said.extend((0..100).filter_map(|n| Some((n, strangers.meet(peer(n))?))));
        }
        let named: Vec<_> = said.iter().map(|(n, _)| *n).collect();
        assert_eq!(named, (0..SAID_MAX).collect::<Vec<_>>());
        let (last, others) = said.split_last().unwrap();
        assert!(others.iter().all(|(_, what)| *what == SAID));
        assert!(last.1.contains("further addresses are only counted"));
    }
}

//! What a certificate says about its holder, and who is let in by it.
//!
//! A name is a URI among the certificate's subject alternative names: `hindcast://<cluster>/ca`,
//! `hindcast://<cluster>/node/<n>` or `hindcast://<cluster>/client/<name>`. That the certificate is signed and in its time was
//! found out before; here only names decide.
//!
//! Invariants
//! - A peer is a node of this cluster, whose number is the one that was expected.
//! - A client's certificate of another cluster is refused, also when the same authority signed it.

use hindcast_model::NodeId;
use std::fmt;

const SCHEME: &str = "hindcast://";
/// Letters of a cluster's id, and of a client's name.
pub const NAME_LETTERS_MAX: usize = 64;

/// Whose certificate it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    Ca,
    Node(NodeId),
    Client(String),
}

/// A name of ours in a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateName {
    pub cluster: String,
    pub holder: Holder,
}

impl fmt::Display for CertificateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/", self.cluster)?;
        match &self.holder {
            Holder::Ca => f.write_str("ca"),
            Holder::Node(id) => write!(f, "node/{id}"),
            Holder::Client(name) => write!(f, "client/{name}"),
        }
    }
}

/// Why somebody with a valid certificate is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameRefusal {
    #[error("its certificate is {found}, of another cluster; this is cluster {own}")]
    OtherCluster { found: String, own: String },
    #[error("its certificate ({found}) is not a node's; peers need one made by `hindcast cert node`")]
    NotANode { found: String },
    #[error("node {expected} was expected there, and its certificate is node {found}'s")]
    OtherNode { expected: NodeId, found: NodeId },
}

impl NameRefusal {
    /// Under which a refusal is counted.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::OtherCluster { .. } => "other_cluster",
            Self::NotANode { .. } => "not_a_node",
            Self::OtherNode { .. } => "other_node",
        }
    }
}

/// Whether `text` can name a cluster or a client: it stands in URIs and in paths of folders.
pub fn is_plain_name(text: &str) -> bool {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !text.is_empty() && text.len() <= NAME_LETTERS_MAX && text.chars().all(fine)
}

/// Reads one URI. `None`: it is none of ours, or not well formed.
pub fn parse(uri: &str) -> Option<CertificateName> {
    let (cluster, holder) = uri.strip_prefix(SCHEME)?.split_once('/')?;
    let holder = match holder.split_once('/') {
        None if holder == "ca" => Holder::Ca,
        Some(("node", n)) => {
            let id: u64 = n.parse().ok()?;
            // One way of writing a number: what is compared as text elsewhere must not differ.
            (id > 0 && id.to_string() == n).then_some(Holder::Node(NodeId(id)))?
        }
        Some(("client", name)) => is_plain_name(name).then(|| Holder::Client(name.to_owned()))?,
        _ => return None,
    };
    is_plain_name(cluster).then(|| CertificateName {
        cluster: cluster.to_owned(),
        holder,
    })
}

/// Our names among the URIs of a certificate.
pub fn names<'a>(uris: impl IntoIterator<Item = &'a str>) -> Vec<CertificateName> {
    uris.into_iter().filter_map(parse).collect()
}

fn shown(names: &[CertificateName]) -> String {
    match names {
        [] => "without a hindcast:// name".to_owned(),
        names => names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

/// Which node a peer is.
pub fn admit_peer(names: &[CertificateName], own: &str, expected: Option<NodeId>) -> Result<NodeId, NameRefusal> {
    if !names.is_empty() && names.iter().all(|n| n.cluster != own) {
        return Err(NameRefusal::OtherCluster {
            found: shown(names),
            own: own.to_owned(),
        });
    }
    let node = names.iter().find_map(|n| match n.holder {
        Holder::Node(id) if n.cluster == own => Some(id),
        _ => None,
    });
    let found = node.ok_or_else(|| NameRefusal::NotANode { found: shown(names) })?;
    match expected {
        Some(expected) if expected != found => Err(NameRefusal::OtherNode { expected, found }),
        _ => Ok(found),
    }
}

/// Who a client is; `None` when its certificate has no name of ours: it may come from the authority of a company.
pub fn admit_client(names: &[CertificateName], own: Option<&str>) -> Result<Option<CertificateName>, NameRefusal> {
    let Some(own) = own else {
        return Ok(names.first().cloned());
    };
    match names.iter().find(|n| n.cluster == own) {
        Some(name) => Ok(Some(name.clone())),
        None if names.is_empty() => Ok(None),
        None => Err(NameRefusal::OtherCluster {
            found: shown(names),
            own: own.to_owned(),
        }),
    }
}

/// Until when a certificate is valid, in seconds since 1970. `None`: it is no certificate that can be read.
pub fn not_after_secs(der: &[u8]) -> Option<i64> {
    let (_, certificate, _) = element(der)?;
    let (_, mut rest, _) = element(certificate)?;
    // Version (tagged [0], may be left out), serial number, algorithm, issuer; then from when and until when.
    let mut skipped = 0;
    while skipped < 3 {
        let (tag, _, after) = element(rest)?;
        skipped += usize::from(tag != 0xa0);
        rest = after;
    }
    let (_, validity, _) = element(rest)?;
    let (_, _, until) = element(validity)?;
    let (tag, text, _) = element(until)?;
    time_secs(tag, text)
}

/// Tag, content and what comes after, of the first DER element.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, len) = (*der.first()?, *der.get(1)?);
    let (len, head) = if len < 0x80 {
        (usize::from(len), 2)
    } else {
        let bytes = usize::from(len & 0x7f);
        if bytes == 0 || bytes > 4 {
            return None;
        }
        let len = der
            .get(2..2 + bytes)?
            .iter()
            .fold(0usize, |n, b| (n << 8) | usize::from(*b));
        (len, 2 + bytes)
    };
    let end = head.checked_add(len)?;
    Some((tag, der.get(head..end)?, der.get(end..)?))
}

/// `UTCTime` (tag 23) has two digits of the year, `GeneralizedTime` (24) four; both end in `Z`.
fn time_secs(tag: u8, text: &[u8]) -> Option<i64> {
    let digits = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let (year, rest) = match tag {
        0x17 if digits.len() == 12 => {
            let short: i64 = digits[..2].parse().ok()?;
            (if short < 50 { 2000 + short } else { 1900 + short }, &digits[2..])
        }
        0x18 if digits.len() == 14 => (digits[..4].parse().ok()?, &digits[4..]),
        _ => return None,
    };
    let part = |at: usize| rest[at..at + 2].parse::<i64>().ok();
    let (month, day, hour, minute, second) = (part(0)?, part(2)?, part(4)?, part(6)?, part(8)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days since 1970 of a date of the Gregorian calendar; the year begins in March, so that the leap day is its last.
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let of_era = shifted.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    fn check(uris: &[&str], expect: Expect) {
        let names = names(uris.iter().copied());
        let peer = match admit_peer(&names, "c-1", Some(NodeId(2))) {
            Ok(id) => format!("node {id}"),
            Err(e) => format!("{}: {e}", e.reason()),
        };
        let client = match admit_client(&names, Some("c-1")) {
            Ok(Some(name)) => name.to_string(),
            Ok(None) => "somebody that the authority knows".to_owned(),
            Err(e) => format!("{}: {e}", e.reason()),
        };
        expect.assert_eq(&format!("as peer 2: {peer}\nas client: {client}"));
    }

    #[test]
    fn only_a_node_of_this_cluster_is_a_peer() {
        check(
            &["hindcast://c-1/node/2"],
            expect![[r#"
                as peer 2: node 2
                as client: hindcast://c-1/node/2"#]],
        );
        check(
            &["hindcast://c-1/node/3"],
            expect![[r#"
                as peer 2: other_node: node 2 was expected there, and its certificate is node 3's
                as client: hindcast://c-1/node/3"#]],
        );
        check(
            &["hindcast://c-9/node/2", "https://example.org"],
            expect![[r#"
                as peer 2: other_cluster: its certificate is hindcast://c-9/node/2, of another cluster; this is cluster c-1
                as client: other_cluster: its certificate is hindcast://c-9/node/2, of another cluster; this is cluster c-1"#]],
        );
        check(
            &["hindcast://c-1/client/agent-7"],
            expect![[r#"
                as peer 2: not_a_node: its certificate (hindcast://c-1/client/agent-7) is not a node's; peers need one made by `hindcast cert node`
                as client: hindcast://c-1/client/agent-7"#]],
        );
        check(
            &["spiffe://c-1/node/2"],
            expect![[r#"
                as peer 2: not_a_node: its certificate (without a hindcast:// name) is not a node's; peers need one made by `hindcast cert node`
                as client: somebody that the authority knows"#]],
        );
    }

    #[test]
    fn a_name_is_written_in_one_way_only() {
        for bad in [
            "hindcast://c-1/node/0",
            "hindcast://c-1/node/02",
            "hindcast://c-1/node/+2",
            "hindcast://c-1/node/2/",
            "hindcast://C-1/node/2",
            "hindcast://../node/2",
            "hindcast:///node/2",
            "hindcast://c-1/ca/x",
            "HINDCAST://c-1/node/2",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn times_of_both_kinds_are_read() {
        let read = |tag, text: &str| time_secs(tag, text.as_bytes());
        assert_eq!(read(0x17, "700101000000Z"), Some(0));
        assert_eq!(read(0x17, "491231235959Z"), Some(2_524_607_999));
        assert_eq!(read(0x18, "20240229120000Z"), Some(1_709_208_000));
        assert_eq!(read(0x18, "20500101000000Z"), Some(2_524_608_000));
        for bad in ["20241301000000Z", "2024010100000Z", "20240101000000", "2024é1010000Z"] {
            assert_eq!(read(0x18, bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_printed_name_reads_the_same(cluster in "[a-z0-9-]{1,64}", node in 1u64.., client in "[a-z0-9-]{1,64}") {
            for holder in [Holder::Ca, Holder::Node(NodeId(node)), Holder::Client(client.clone())] {
                let name = CertificateName { cluster: cluster.clone(), holder };
                prop_assert_eq!(parse(&name.to_string()), Some(name));
            }
        }

        #[test]
        fn bytes_that_are_no_certificate_have_no_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = not_after_secs(&bytes);
        }
    }
}

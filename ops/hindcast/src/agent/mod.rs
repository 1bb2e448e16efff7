//! This host, watched: `/proc` readings and log files become batches, and batches reach a node.
//!
//! Pure here: what a reading means ([`reading`], [`metrics`]), where a log file stands ([`tail`]), what a journal
//! entry says ([`journal`]), how batches are cut ([`batcher`]), kept in memory ([`buffer`]) and on disk ([`spool`]), and retried
//! ([`delivery`]).
//! [`io`] reads files, runs `journalctl`, sends.
//!
//! Promises
//! - A batch keeps its writer and sequence over all retries, so that a retry after a lost answer stores nothing twice
//!   (within the server's dedup window, `limits::DEDUP_SPAN`; samples are harmless beyond it too, lines are not).
//! - With a folder for it, what cannot be sent waits on disk, survives the agent however it ends, and is sent by the next one under
//!   its old writer and sequence. A log file is gone on with where it was left. Without one, or when the disk is full, it waits in
//!   memory up to [`buffer::BUFFER_BYTES_MAX`].
//! - What is more than a bound lets the oldest go first; it is counted and said.
//! - A log file that nothing is known of is followed from its end as found at the start.
//!
//! Times are milliseconds for samples and nanoseconds for lines, as on the wire; both since the Unix epoch.

pub mod batcher;
pub mod buffer;
pub mod delivery;
pub mod io;
pub mod journal;
pub mod metrics;
pub mod reading;
pub mod spool;
pub mod tail;

pub use io::{identity, run, run_watched};

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Endpoints that one client fails over between, at most.
pub const ENDPOINTS_MAX: usize = 16;
pub const INTERVAL_DEFAULT: Duration = Duration::from_secs(5);
pub const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Processes watched because they use the most CPU, unless told otherwise.
pub const PROCESSES_TOP_DEFAULT: usize = 5;

/// Addresses of nodes of one cluster, in the order in which they are tried. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints(Vec<String>);

/// Why a text is no list of endpoints.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadEndpoints {
    #[error("no endpoint given; name one like http://127.0.0.1:7400")]
    None,
    #[error("{text:?} is not an address like http://127.0.0.1:7400")]
    NotAnAddress { text: String },
    #[error("{count} endpoints are more than the {ENDPOINTS_MAX} that one client tries; name fewer")]
    TooMany { count: usize },
}

impl Endpoints {
    /// Reads `http://a:7400,https://b:7400`; without a scheme it is `http`.
    pub fn parse(list: &str) -> Result<Self, BadEndpoints> {
        let mut urls = vec![];
        for text in list.split(',').map(str::trim).filter(|t| !t.is_empty()) {
            let (scheme, bare) = match text.strip_prefix("https://") {
                Some(bare) => ("https", bare),
                None => ("http", text.strip_prefix("http://").unwrap_or(text)),
            };
            let bare = bare.trim_end_matches('/');
            let fine = !bare.is_empty() && !bare.contains("://") && !bare.contains(['/', ' ', '?', '#', '@']);
            let port = bare.rsplit_once(':').map(|(_, p)| p.parse::<u16>());
            if !fine || matches!(port, Some(Err(_))) && !bare.ends_with(']') {
                return Err(BadEndpoints::NotAnAddress { text: text.to_owned() });
            }
            urls.push(format!("{scheme}://{bare}"));
        }
        match urls.len() {
            0 => Err(BadEndpoints::None),
            count if count > ENDPOINTS_MAX => Err(BadEndpoints::TooMany { count }),
            _ => Ok(Self(urls)),
        }
    }

    pub fn urls(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

/// Which host this is, as it is told with every batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub host_name: String,
    pub os_type: String,
}

impl Identity {
    /// Resource attributes by their OpenTelemetry names.
    pub fn attributes(&self) -> Vec<(String, String)> {
        let pair = |n: &str, v: &str| (n.to_owned(), v.to_owned());
        // No `host.id`: alerts name a host by the labels of its series, and those hold its name. One identity for both.
        vec![pair("host.name", &self.host_name), pair("os.type", &self.os_type)]
    }
}

/// A log file to follow. With a service name its lines belong to that service, else to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    pub path: PathBuf,
    pub service: Option<String>,
}

impl LogFile {
    /// Reads `PATH` or `SERVICE=PATH`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (service, path) = match text.split_once('=') {
            Some((service, path)) if !service.is_empty() && !service.contains('/') => (Some(service), path),
            _ => (None, text),
        };
        if path.is_empty() {
            return Err(format!("{text:?} names no file; write PATH or SERVICE=PATH"));
        }
        Ok(Self {
            path: PathBuf::from(path),
            service: service.map(str::to_owned),
        })
    }
}

/// What an agent watches, how often, and where it sends.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentConfig {
    pub endpoints: Endpoints,
    pub tls: crate::tls::TlsArgs,
    pub tenant: String,
    /// Between two readings of `/proc`.
    pub interval: Duration,
    pub identity: Identity,
    pub logs: Vec<LogFile>,
    /// Follow the systemd journal through `journalctl`.
    pub journal: bool,
    /// One series per CPU instead of one for all: `sum` over them gives the aggregate.
    pub per_cpu: bool,
    /// Names of processes that are always watched.
    pub processes: Vec<String>,
    /// How many more are watched because they use the most CPU.
    pub processes_top: usize,
    /// One reading, sent, then the end.
    pub once: bool,
    /// Where batches wait on disk; `None`: in memory.
    pub buffer_dir: Option<PathBuf>,
    pub buffer_bytes_max: u64,
    /// Where the agent tells about itself.
    pub metrics_listen: Option<std::net::SocketAddr>,
}

impl AgentConfig {
    pub fn new(endpoints: Endpoints, identity: Identity) -> Self {
        Self {
            endpoints,
            tls: crate::tls::TlsArgs::default(),
            tenant: "default".to_owned(),
            interval: INTERVAL_DEFAULT,
            identity,
            logs: vec![],
            journal: false,
            per_cpu: false,
            processes: vec![],
            processes_top: PROCESSES_TOP_DEFAULT,
            once: false,
            buffer_dir: None,
            buffer_bytes_max: spool::SPOOL_BYTES_DEFAULT,
            metrics_listen: None,
        }
    }
}

/// What became of everything an agent read, counted from the server's answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct AgentReport {
    pub samples_acked: u64,
    pub lines_acked: u64,
    /// Batches that the server confirmed.
    pub batches: u64,
    /// Sends after the first one of a batch.
    pub retries: u64,
    /// Samples and lines that no room was left for, oldest first, or that the end left unsent.
    pub dropped: u64,
    /// Samples and lines that the server refused for good.
    pub refused: u64,
    /// Samples and lines that the end left on disk, for the next agent.
    pub kept: u64,
    /// Why the last send did not succeed, if one did not.
    pub last_error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(list: &str, expect: Expect) {
        expect.assert_eq(&Endpoints::parse(list).map_or_else(|e| e.to_string(), |e| e.to_string()));
    }

    #[test]
    fn endpoints_are_addresses_with_or_without_scheme() {
        check("http://127.0.0.1:7400/", expect!["http://127.0.0.1:7400"]);
        check("a:1, b:2,", expect!["http://a:1, http://b:2"]);
        check("http://[::1]:7400", expect!["http://[::1]:7400"]);
        check(" ,", expect!["no endpoint given; name one like http://127.0.0.1:7400"]);
        check(
            "a:port",
            expect![[r#""a:port" is not an address like http://127.0.0.1:7400"#]],
        );
        check(
            "ftp://a:1",
            expect![[r#""ftp://a:1" is not an address like http://127.0.0.1:7400"#]],
        );
        check(
            "http://a:1/path",
            expect![[r#""http://a:1/path" is not an address like http://127.0.0.1:7400"#]],
        );
        check("https://a:1", expect!["https://a:1"]);
        check(
            &["a:1"; 17].join(","),
            expect!["17 endpoints are more than the 16 that one client tries; name fewer"],
        );
    }

    #[test]
    fn a_log_file_may_name_its_service() {
        let plain = LogFile::parse("/var/log/a=b.log").unwrap();
        assert_eq!((plain.service, plain.path), (None, PathBuf::from("/var/log/a=b.log")));
        let named = LogFile::parse("shop=/var/log/shop.log").unwrap();
        assert_eq!(
            (named.service.as_deref(), named.path),
            (Some("shop"), PathBuf::from("/var/log/shop.log"))
        );
        assert!(LogFile::parse("shop=").is_err());
    }
}

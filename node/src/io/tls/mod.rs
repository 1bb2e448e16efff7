//! TLS of both ports: the files, the handshakes, and new files while the node runs.
//!
//! `accept.rs` lets connections in, `dial.rs` makes them, `crate::certificate` decides by names. What is refused is counted by
//! reason and said in the log, once a minute per address and reason.
//!
//! Invariants
//! - Files that do not fit together, or that are of another node, never replace those in use.
//! - Every connection shows its certificate: sessions are not resumed.
//! - Connections that stand are not cut when certificates change.

mod accept;
mod dial;
#[cfg(test)]
pub(crate) mod tests;

pub use accept::{Let, Stream, Tcp};
pub use dial::{Dial, DialError, words};

use crate::certificate::{self, CertificateName, Holder};
use hindcast_env::Clock;
use hindcast_model::{NodeId, SpanNs, TimestampNs};
use parking_lot::{Mutex, RwLock};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How often files are looked at.
const LOOK_PAUSE: Duration = Duration::from_secs(2);
/// A certificate that ends sooner is spoken of in the log, once a day.
const EXPIRY_WARNING: SpanNs = SpanNs::from_secs(14 * 24 * 3600);
const EXPIRY_WARNING_PAUSE: SpanNs = SpanNs::from_secs(24 * 3600);
/// The same refusal of the same address is said again after this time.
const SAID_PAUSE: SpanNs = SpanNs::from_secs(60);
/// Refusals that are remembered for that.
const SAID_MAX: usize = 256;
/// Larger files are none of certificates.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Where certificates lie. PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Authorities whose signature lets somebody in. `None` (of the client port only): clients show no certificate.
    pub ca: Option<PathBuf>,
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Which of the two ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    Peers,
    Clients,
}

impl Port {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Peers => "peers",
            Self::Clients => "clients",
        }
    }
}

/// Files that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path} cannot be read: {why}")]
    Unreadable { path: PathBuf, why: String },
    #[error("{path} holds no {what} in PEM form: {why}")]
    NotPem {
        path: PathBuf,
        what: &'static str,
        why: String,
    },
    #[error("the certificate {cert} and the key {key} do not belong together: {why}")]
    Mismatch { cert: PathBuf, key: PathBuf, why: String },
    #[error("{path} cannot be used: {why}")]
    Unusable { path: PathBuf, why: String },
    #[error(
        "the certificate {path} names no node (a URI like hindcast://<cluster>/node/<n>); peers need one made by `hindcast cert node`"
    )]
    NamesNoNode { path: PathBuf },
    #[error("peers need the authority that signs their certificates: name it with --tls-ca or --peer-tls-ca")]
    NoAuthority,
    #[error("the certificate {path} is {found} now, and was {before}; this node stays what it is")]
    AnotherHolder {
        path: PathBuf,
        before: String,
        found: String,
    },
}

/// Certificates in use.
pub(crate) struct Loaded {
    own: Vec<CertificateName>,
    key: Arc<SingleCertAndKey>,
    roots: Option<Arc<RootCertStore>>,
    expires: Option<TimestampNs>,
}

/// What is told on `/metrics`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TlsStats {
    pub handshakes: u64,
    /// By side (`accept`, `dial`) and reason.
    pub refused: BTreeMap<(&'static str, &'static str), u64>,
    pub reloads: u64,
    pub reload_failures: u64,
    pub expires: Option<TimestampNs>,
}

/// TLS of one port. Clones share it.
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tls({}, {})", self.0.port.as_str(), self.0.files.cert.display())
    }
}

struct Inner {
    port: Port,
    files: TlsFiles,
    clock: Arc<dyn Clock>,
    provider: Arc<CryptoProvider>,
    loaded: RwLock<Arc<Loaded>>,
    /// The cluster whose certificates are let in.
    cluster: OnceLock<String>,
    stats: Mutex<TlsStats>,
    said: Mutex<BTreeMap<(IpAddr, &'static str), TimestampNs>>,
    looked: Mutex<Looked>,
}

#[derive(Default)]
struct Looked {
    stamps: Vec<Stamp>,
    warned: Option<TimestampNs>,
}

/// Enough to tell that a file is another one: inode, length, time of change.
type Stamp = Option<(u64, u64, i64, i64)>;

impl Tls {
    /// Reads the files. A peer's certificate must name its node.
    pub fn open(files: TlsFiles, port: Port, clock: Arc<dyn Clock>) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        // Before the files are read: a change in between is seen at the next look.
        let stamps = stamps(&files);
        let loaded = load(&files, &provider)?;
        let cluster = OnceLock::new();
        if port == Port::Peers {
            let path = || files.cert.clone();
            let node = node_of(&loaded.own).ok_or_else(|| TlsError::NamesNoNode { path: path() })?;
            if loaded.roots.is_none() {
                return Err(TlsError::NoAuthority);
            }
            let _ = cluster.set(node.0.to_owned());
        }
        Ok(Self(Arc::new(Inner {
            port,
            files,
            clock,
            provider,
            loaded: RwLock::new(Arc::new(loaded)),
            cluster,
            stats: Mutex::default(),
            said: Mutex::default(),
            looked: Mutex::new(Looked { stamps, warned: None }),
        })))
    }

    /// Cluster and node of a peer's own certificate.
    pub fn own_node(&self) -> Option<(String, NodeId)> {
        let loaded = self.0.loaded.read();
        node_of(&loaded.own).map(|(cluster, id)| (cluster.to_owned(), id))
    }

    /// The cluster that the own certificate names, if it names one.
    pub fn own_cluster(&self) -> Option<String> {
        self.0.loaded.read().own.first().map(|n| n.cluster.clone())
    }

    /// From now on certificates that name another cluster are refused.
    pub fn belongs_to(&self, cluster: &str) {
        let _ = self.0.cluster.set(cluster.to_owned());
    }

    pub fn port(&self) -> Port {
        self.0.port
    }

    pub fn stats(&self) -> TlsStats {
        let stats = self.0.stats.lock().clone();
        let expires = self.0.loaded.read().expires;
        TlsStats { expires, ..stats }
    }

    fn loaded(&self) -> Arc<Loaded> {
        self.0.loaded.read().clone()
    }

    /// Takes new files, if there are any and they can be used. `true`: they are in use.
    pub fn look(&self) -> bool {
        let mut looked = self.0.looked.lock();
        self.warn_of_expiry(&mut looked);
        let now = stamps(&self.0.files);
        if now == looked.stamps {
            return false;
        }
        // What does not fit is said once; the next change is the next try.
        looked.stamps = now;
        let port = self.0.port.as_str();
        match self.reload() {
            Ok(()) => {
                looked.warned = None;
                self.0.stats.lock().reloads += 1;
                tracing::info!(port, cert = %self.0.files.cert.display(), "new certificates are in use");
                true
            }
            Err(error) => {
                self.0.stats.lock().reload_failures += 1;
                tracing::error!(port, %error, "new certificates cannot be used; those from before stay in use");
                false
            }
        }
    }

    fn reload(&self) -> Result<(), TlsError> {
        let fresh = load(&self.0.files, &self.0.provider)?;
        let before = self.loaded();
        let path = || self.0.files.cert.clone();
        if self.0.port == Port::Peers && node_of(&fresh.own) != node_of(&before.own) {
            let shown = |l: &Loaded| l.own.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(TlsError::AnotherHolder {
                path: path(),
                before: shown(&before),
                found: shown(&fresh),
            });
        }
        *self.0.loaded.write() = Arc::new(fresh);
        Ok(())
    }

    fn warn_of_expiry(&self, looked: &mut Looked) {
        let (now, expires) = (self.0.clock.now(), self.0.loaded.read().expires);
        let soon = expires.is_some_and(|e| e < now + EXPIRY_WARNING);
        if soon && looked.warned.is_none_or(|at| now > at + EXPIRY_WARNING_PAUSE) {
            looked.warned = Some(now);
            let expires = expires.map_or(0, |e| e.0 / 1_000_000_000);
            tracing::warn!(
                port = self.0.port.as_str(),
                cert = %self.0.files.cert.display(),
                expires_unix_secs = expires,
                "the certificate ends soon: put a new one in its place, it is taken without a restart"
            );
        }
    }

    /// Looks again and again.
    pub async fn run(self) {
        loop {
            self.look();
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    fn count_refusal(&self, side: &'static str, reason: &'static str, from: Option<IpAddr>, why: &str) {
        *self.0.stats.lock().refused.entry((side, reason)).or_default() += 1;
        let now = self.0.clock.now();
        let from = from.unwrap_or(IpAddr::from([0, 0, 0, 0]));
        let mut said = self.0.said.lock();
        said.retain(|_, at| now < *at + SAID_PAUSE);
        if said.contains_key(&(from, reason)) || said.len() >= SAID_MAX {
            return;
        }
        said.insert((from, reason), now);
        drop(said);
        let port = self.0.port.as_str();
        tracing::warn!(port, side, %from, reason, why, "a connection was refused");
    }
}

fn node_of(names: &[CertificateName]) -> Option<(&str, NodeId)> {
    names.iter().find_map(|n| match n.holder {
        Holder::Node(id) => Some((n.cluster.as_str(), id)),
        _ => None,
    })
}

/// Our names in a certificate.
pub fn names_in(certificate: &CertificateDer<'_>) -> Vec<CertificateName> {
    let read = webpki::EndEntityCert::try_from(certificate);
    read.map_or_else(|_| vec![], |c| certificate::names(c.valid_uri_names()))
}

fn stamps(files: &TlsFiles) -> Vec<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let stamp = |path: &Path| {
        let m = std::fs::metadata(path).ok()?;
        Some((m.ino(), m.len(), m.mtime(), m.mtime_nsec()))
    };
    let all = [files.ca.as_deref(), Some(&files.cert), Some(&files.key)];
    all.into_iter().flatten().map(stamp).collect()
}

#[allow(
    clippy::disallowed_methods,
    reason = "certificates belong to the operator, not to the data directory that a Disk stands for"
)]
fn read_file(path: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |why: String| TlsError::Unreadable {
        path: path.to_owned(),
        why,
    };
    let meta = std::fs::metadata(path).map_err(|e| unreadable(e.to_string()))?;
    if meta.len() > FILE_BYTES_MAX {
        return Err(unreadable(format!("it has more than {FILE_BYTES_MAX} bytes")));
    }
    std::fs::read(path).map_err(|e| unreadable(e.to_string()))
}

/// Certificates of one PEM file, at least one.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let not_pem = |why: String| TlsError::NotPem {
        path: path.to_owned(),
        what: "certificate",
        why,
    };
    let bytes = read_file(path)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let read = read.map_err(|e| not_pem(e.to_string()))?;
    match read.is_empty() {
        true => Err(not_pem("there is none".to_owned())),
        false => Ok(read),
    }
}

/// Authorities of one PEM file.
pub fn read_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots.add(certificate).map_err(|e| TlsError::Unusable {
            path: path.to_owned(),
            why: e.to_string(),
        })?;
    }
    Ok(roots)
}

/// A chain and its key.
pub fn read_key(cert: &Path, key: &Path, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let chain = read_certificates(cert)?;
    let secret = PrivateKeyDer::from_pem_slice(&read_file(key)?).map_err(|e| TlsError::NotPem {
        path: key.to_owned(),
        what: "private key",
        why: e.to_string(),
    })?;
    CertifiedKey::from_der(chain, secret, provider).map_err(|e| TlsError::Mismatch {
        cert: cert.to_owned(),
        key: key.to_owned(),
        why: e.to_string(),
    })
}

fn load(files: &TlsFiles, provider: &CryptoProvider) -> Result<Loaded, TlsError> {
    let key = read_key(&files.cert, &files.key, provider)?;
    warn_of_readers(&files.key);
    let end_entity = &key.cert[0];
    let expires = certificate::not_after_secs(end_entity);
    Ok(Loaded {
        own: names_in(end_entity),
        expires: expires.map(|secs| TimestampNs(secs.saturating_mul(1_000_000_000))),
        roots: files.ca.as_deref().map(read_roots).transpose()?.map(Arc::new),
        key: Arc::new(key.into()),
    })
}

fn warn_of_readers(key: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(key).map_or(0, |m| m.permissions().mode());
    if mode & 0o004 != 0 {
        tracing::warn!(key = %key.display(), "everybody on this machine can read the private key: chmod 600 it");
    }
}

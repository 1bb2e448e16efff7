//! Making connections: to a peer, whose certificate must name the node that was meant, and to a server, whose certificate
//! must name its host.

use super::accept::{Stream, Tcp, signature_valid};
use super::{Tls, TlsError, TlsFiles, names_in, read_key, read_roots};
use crate::certificate::{NameRefusal, admit_peer};
use futures::future::BoxFuture;
use hindcast_model::NodeId;
use hyper::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::SingleCertAndKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Makes connections for tonic and hyper.
#[derive(Clone)]
pub enum Dial {
    /// To a peer without TLS.
    Plain,
    /// To a server without TLS, for commands.
    Command,
    /// To a node of the same cluster; `None` where its number is asked for.
    Peer(Tls, Option<NodeId>),
    /// To a server, for commands: with TLS where the address says `https`.
    Server(Arc<ClientConfig>),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DialError(String);

impl Tls {
    /// Connections to a peer.
    pub fn dial(&self, expected: Option<NodeId>) -> Dial {
        Dial::Peer(self.clone(), expected)
    }

    fn client_config(
        &self,
        expected: Option<NodeId>,
        refused: Arc<Mutex<Option<NameRefusal>>>,
    ) -> Result<ClientConfig, rustls::Error> {
        let loaded = self.loaded();
        let provider = self.0.provider.clone();
        let verifier = PeerServer {
            roots: loaded.roots.clone().unwrap_or_else(|| Arc::new(RootCertStore::empty())),
            cluster: self.0.cluster.get().cloned().unwrap_or_default(),
            expected,
            provider: provider.clone(),
            refused,
        };
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = builder.with_client_cert_resolver(loaded.key.clone());
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

impl Dial {
    /// To a server: authorities of `ca`, or those that browsers trust; with a certificate to show, or without.
    pub fn server(ca: Option<&Path>, own: Option<(&Path, &Path)>) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = match ca {
            Some(path) => read_roots(path)?,
            None => RootCertStore {
                roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
            },
        };
        let unusable = |e: rustls::Error| TlsError::Unusable {
            path: ca.unwrap_or(Path::new("the authorities")).to_owned(),
            why: e.to_string(),
        };
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_root_certificates(roots);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let key = read_key(cert, key, &provider)?;
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)))
            }
        };
        // One connection speaks HTTP/2 (gRPC), another HTTP/1.1: what is spoken is known on both sides without asking.
        config.alpn_protocols = vec![];
        Ok(Self::Server(Arc::new(config)))
    }

    /// Both kinds of files of a client at once.
    pub fn with_files(files: &TlsFiles) -> Result<Self, TlsError> {
        Self::server(files.ca.as_deref(), Some((&files.cert, &files.key)))
    }

    async fn connect(self, uri: Uri) -> Result<TokioIo<Stream>, DialError> {
        let host = uri
            .host()
            .unwrap_or_default()
            .trim_start_matches('[')
            .trim_end_matches(']');
        let is_https = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        let at = |what: &str| DialError(format!("{host}:{port}: {what}"));
        let stream = TcpStream::connect((host, port)).await.map_err(|e| at(&e.to_string()))?;
        let _ = stream.set_nodelay(true);
        let from = stream.peer_addr().ok().map(|a| a.ip());
        let stream = match &self {
            Self::Command | Self::Server(_) => Tcp::quiet(stream),
            Self::Plain | Self::Peer(..) => Tcp::new(stream),
        };
        let refused = Arc::default();
        let config = match &self {
            Self::Server(config) if is_https => config.clone(),
            Self::Peer(tls, expected) => {
                let config = tls.client_config(*expected, Arc::clone(&refused));
                Arc::new(config.map_err(|e| at(&e.to_string()))?)
            }
            _ => return Ok(TokioIo::new(Stream::Plain(stream))),
        };
        let name = ServerName::try_from(host.to_owned()).map_err(|_| at("this is no host name"))?;
        match TlsConnector::from(config).connect(name, stream).await {
            Ok(stream) => Ok(TokioIo::new(Stream::Tls(Box::new(stream.into())))),
            Err(error) => {
                let (mut reason, mut why) = words(&error);
                if let Some(refusal) = refused.lock().take() {
                    (reason, why) = (refusal.reason(), refusal.to_string());
                }
                if let Self::Peer(tls, _) = &self {
                    tls.count_refusal("dial", reason, from, &why);
                }
                Err(at(&why))
            }
        }
    }
}

impl tower::Service<Uri> for Dial {
    type Response = TokioIo<Stream>;
    type Error = DialError;
    type Future = BoxFuture<'static, Result<Self::Response, DialError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

/// Reason and words for a handshake that failed.
pub fn words(error: &std::io::Error) -> (&'static str, String) {
    let tls = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    let Some(tls) = tls else {
        return ("broken_off", error.to_string());
    };
    let of_tls = |reason, text: &str| (reason, text.to_owned());
    match tls {
        rustls::Error::NoCertificatesPresented => {
            of_tls("no_certificate", "it shows no certificate, and one is needed here")
        }
        rustls::Error::InvalidCertificate(e) => match e {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                of_tls("expired", "its certificate is not valid any more")
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                of_tls("not_yet", "its certificate is not valid yet; compare the clocks")
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => of_tls(
                "foreign_ca",
                "its certificate is signed by an authority that is not trusted here",
            ),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => of_tls(
                "other_host",
                "its certificate is not for this host name; `hindcast cert node --host` names more",
            ),
            other => ("bad_certificate", format!("its certificate cannot be used: {other}")),
        },
        rustls::Error::AlertReceived(alert) => (
            "refused_by_other",
            format!("the other side refused it ({alert:?}); its log says why"),
        ),
        rustls::Error::InvalidMessage(_) => of_tls("no_tls", "what answers there does not speak TLS"),
        other => ("handshake", other.to_string()),
    }
}

/// A peer is known by the name in its certificate; where it lives does not matter.
#[derive(Debug)]
struct PeerServer {
    roots: Arc<RootCertStore>,
    cluster: String,
    expected: Option<NodeId>,
    provider: Arc<CryptoProvider>,
    refused: Arc<Mutex<Option<NameRefusal>>>,
}

impl ServerCertVerifier for PeerServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _host: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let read = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&read, &self.roots, intermediates, now, algorithms)?;
        match admit_peer(&names_in(end_entity), &self.cluster, self.expected) {
            Ok(_) => Ok(ServerCertVerified::assertion()),
            Err(refusal) => {
                *self.refused.lock() = Some(refusal);
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        signature_valid(&self.provider, false, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        signature_valid(&self.provider, true, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

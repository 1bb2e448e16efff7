//! Letting connections in.

use super::{Loaded, Port, Tls, dial, names_in};
use crate::certificate::{NameRefusal, admit_client, admit_peer};
use hindcast_model::NodeId;
use parking_lot::Mutex;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsStream};

/// A handshake must be done within this time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// What a TLS connection begins with: a handshake record.
const TLS_RECORD: u8 = 0x16;

/// A connection, with or without TLS.
pub enum Stream {
    Plain(Tcp),
    Tls(Box<TlsStream<Tcp>>),
}

/// A TCP connection. `quiet`: several pieces are written one by one. On a connection that the other side closed, writing them at
/// once raises SIGPIPE, which ends commands (they keep its usual meaning, so that `hindcast … | head` ends quietly).
pub struct Tcp {
    stream: TcpStream,
    quiet: bool,
}

impl Tcp {
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, quiet: false }
    }

    pub fn quiet(stream: TcpStream) -> Self {
        Self { stream, quiet: true }
    }
}

impl AsyncRead for Tcp {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let stream = Pin::new(&mut this.stream);
        if !this.quiet {
            return stream.poll_write_vectored(cx, bufs);
        }
        let first = bufs.iter().find(|b| !b.is_empty()).map_or(&[][..], |b| b);
        stream.poll_write(cx, first)
    }

    fn is_write_vectored(&self) -> bool {
        !self.quiet && self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// What became of a connection.
pub enum Let {
    /// It may go on; a peer's certificate says which node it is.
    In(Stream, Option<NodeId>),
    /// It does not speak TLS. Whoever has a protocol may tell it so.
    Plain(TcpStream),
    /// It is gone, and was counted.
    Refused,
}

/// What one handshake saw: the certificate and why it was not enough.
type Seen = Arc<Mutex<(Vec<String>, Option<NameRefusal>, Option<NodeId>)>>;

impl Tls {
    /// Shakes hands. Errors are counted and said here.
    pub async fn accept(&self, stream: TcpStream, from: SocketAddr) -> Let {
        let refuse = |reason: &'static str, why: &str| {
            self.count_refusal("accept", reason, Some(from.ip()), why);
            Let::Refused
        };
        let mut first = [0];
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, stream.peek(&mut first)).await {
            Ok(Ok(1)) => {}
            // Somebody looked whether the port is open: no refusal.
            Ok(_) => return Let::Refused,
            Err(_) => return refuse("timeout", "nothing came"),
        }
        if first[0] != TLS_RECORD {
            refuse("plain", "it does not speak TLS, and this port does");
            return Let::Plain(stream);
        }
        let seen = Seen::default();
        let config = match self.server_config(&self.loaded(), seen.clone()) {
            Ok(config) => config,
            Err(error) => return refuse("configuration", &error.to_string()),
        };
        let shaken = TlsAcceptor::from(Arc::new(config)).accept(Tcp::new(stream));
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, shaken).await {
            Ok(Ok(stream)) => {
                self.0.stats.lock().handshakes += 1;
                Let::In(Stream::Tls(Box::new(stream.into())), seen.lock().2)
            }
            Err(_) => refuse("timeout", "the handshake was not finished"),
            Ok(Err(error)) => {
                let (names, refusal, _) = seen.lock().clone();
                if let Some(refusal) = refusal {
                    return refuse(refusal.reason(), &refusal.to_string());
                }
                let (reason, why) = dial::words(&error);
                let whose = match names.is_empty() {
                    true => String::new(),
                    false => format!(" (it says it is {})", names.join(", ")),
                };
                refuse(reason, &format!("{why}{whose}"))
            }
        }
    }

    fn server_config(&self, loaded: &Loaded, seen: Seen) -> Result<ServerConfig, rustls::Error> {
        let provider = self.0.provider.clone();
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let builder = match &loaded.roots {
            None => builder.with_no_client_auth(),
            Some(roots) => {
                let chain = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider).build();
                let chain = chain.map_err(|e| rustls::Error::General(e.to_string()))?;
                builder.with_client_cert_verifier(Arc::new(Named {
                    chain,
                    port: self.0.port,
                    cluster: self.0.cluster.get().cloned(),
                    seen,
                }))
            }
        };
        let mut config = builder.with_cert_resolver(loaded.key.clone());
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = match self.0.port {
            Port::Peers => vec![b"h2".to_vec()],
            Port::Clients => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        };
        Ok(config)
    }
}

/// The chain first, then the name. One for each handshake.
#[derive(Debug)]
struct Named {
    chain: Arc<dyn ClientCertVerifier>,
    port: Port,
    cluster: Option<String>,
    seen: Seen,
}

impl ClientCertVerifier for Named {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let names = names_in(end_entity);
        self.seen.lock().0 = names.iter().map(ToString::to_string).collect();
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        let cluster = self.cluster.as_deref();
        let node = match self.port {
            Port::Peers => admit_peer(&names, cluster.unwrap_or_default(), None).map(Some),
            Port::Clients => admit_client(&names, cluster).map(|_| None),
        };
        match node {
            Ok(node) => {
                self.seen.lock().2 = node;
                Ok(verified)
            }
            Err(refusal) => {
                self.seen.lock().1 = Some(refusal);
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
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Signatures as the provider checks them, for verifiers of our own.
pub(super) fn signature_valid(
    provider: &CryptoProvider,
    is_tls13: bool,
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let algorithms = &provider.signature_verification_algorithms;
    match is_tls13 {
        true => rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms),
        false => rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms),
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Self::Tls(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Self::Tls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Self::Tls(s) => Pin::new(s).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(s) => s.is_write_vectored(),
            Self::Tls(s) => s.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_flush(cx),
            Self::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Self::Tls(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

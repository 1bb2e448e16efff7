//! HTTP to targets: one GET, its redirects, its body.
//!
//! Bounds: a body has at most what its job says, compressed and decompressed; of all bodies together [`super::BODIES_BYTES_MAX`] are
//! held, and a scrape waits for room until its time is over.

use base64::Engine as _;
use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use hindcast_scrape::config::{Auth, BODY_BYTES_MAX, Http, Secret, TlsConfig};
use hindcast_scrape::target::Target;
use hindcast_scrape::text::Format;
use http_body_util::{BodyExt, Empty};
use hyper::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, LOCATION, USER_AGENT};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pooled;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::SingleCertAndKey;
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::io::{Cursor, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// As Prometheus asks: OpenMetrics where there is a choice.
const ACCEPTED: &str = "application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;q=0.7,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
const AGENT: &str = concat!("hindcast/", env!("CARGO_PKG_VERSION"));
pub const REDIRECTS_MAX: usize = 10;
/// Of a file with a password or a token.
pub const SECRET_BYTES_MAX: usize = 64 * 1024;
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// Open connections to one host on which nothing is asked.
const IDLE_CONNECTIONS_MAX: usize = 4;
/// How much of a body is decompressed at a time: the first piece, and the largest.
const PIECE_BYTES: usize = 64 * 1024;
const PIECE_BYTES_MAX: usize = 1024 * 1024;

/// Makes connections by one set of TLS settings.
#[derive(Clone, Debug)]
pub struct Client(Pooled<HttpsConnector<HttpConnector>, Empty<Bytes>>);

impl Client {
    /// Reads the files that the settings name.
    pub fn new(settings: &TlsConfig) -> Result<Self, String> {
        let tls = tls(settings)?;
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
        let builder = match &settings.server_name {
            None => builder,
            Some(name) => {
                let name = ServerName::try_from(name.clone())
                    .map_err(|_| format!("tls_config: server_name {name:?} is no host name"))?;
                builder.with_server_name_resolver(FixedServerNameResolver::new(name))
            }
        };
        let connector = builder.enable_http1().wrap_connector(tcp);
        let pooled = Pooled::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .build(connector);
        Ok(Self(pooled))
    }
}

/// What a client of these settings is. Reads the files that they name.
pub(in crate::io::servers) fn tls(settings: &TlsConfig) -> Result<ClientConfig, String> {
    use crate::io::tls::{read_key, read_roots};
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let said = |e: &dyn std::fmt::Display| format!("tls_config: {e}");
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| said(&e))?;
    let builder = if settings.insecure_skip_verify {
        let anybody = Arc::new(Anybody(provider.clone()));
        builder.dangerous().with_custom_certificate_verifier(anybody)
    } else {
        let roots = match &settings.ca_file {
            Some(path) => read_roots(path).map_err(|e| said(&e))?,
            None => RootCertStore {
                roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
            },
        };
        builder.with_root_certificates(roots)
    };
    match (&settings.cert_file, &settings.key_file) {
        (Some(cert), Some(key)) => {
            let key = read_key(cert, key, &provider).map_err(|e| said(&e))?;
            Ok(builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))))
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

/// `insecure_skip_verify`: whoever answers is taken, as the operator said.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A page that came, and the room that it takes.
pub struct Page {
    pub body: Vec<u8>,
    pub format: Format,
    pub room: Option<OwnedSemaphorePermit>,
}

/// Asks a target for its page. The caller bounds the time.
pub async fn fetch(client: &Client, target: &Target, room: &Arc<Semaphore>) -> Result<Page, String> {
    let http = &target.job.http;
    let mut authorization = authorization(http).await?;
    let mut uri: Uri = target
        .url
        .parse()
        .map_err(|e| format!("{} is no address: {e}", target.url))?;
    for _ in 0..=REDIRECTS_MAX {
        let mut request = Request::get(uri.clone())
            .header(ACCEPT, ACCEPTED)
            .header(USER_AGENT, AGENT)
            .header(
                "X-Prometheus-Scrape-Timeout-Seconds",
                (target.timeout.0 as f64 / 1e9).to_string(),
            );
        if target.job.enable_compression {
            request = request.header(ACCEPT_ENCODING, "gzip");
        }
        if let Some(authorization) = &authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(Empty::new()).map_err(|e| e.to_string())?;
        let answer = client.0.request(request).await.map_err(|e| whole(&e))?;
        let status = answer.status();
        if !http.follow_redirects || !is_redirect(status) {
            if status != StatusCode::OK {
                return Err(format!("the server answered {status}"));
            }
            return page(answer, target.job.limits.body_bytes, room).await;
        }
        let next = redirected(&uri, &answer)?;
        if next.authority() != uri.authority() || next.scheme() != uri.scheme() {
            // What was meant for one server is not shown to another.
            authorization = None;
        }
        uri = next;
    }
    Err(format!("more than {REDIRECTS_MAX} redirects"))
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn redirected(from: &Uri, answer: &Response<hyper::body::Incoming>) -> Result<Uri, String> {
    let to = answer.headers().get(LOCATION).and_then(|v| v.to_str().ok());
    let to = to.ok_or("a redirect that does not say where to")?;
    let bad = || format!("a redirect to {to:?}, which is no address");
    let parsed: Uri = to.parse().map_err(|_| bad())?;
    if parsed.scheme().is_some() {
        return match parsed.scheme_str() {
            Some("http" | "https") => Ok(parsed),
            _ => Err(bad()),
        };
    }
    if !to.starts_with('/') {
        return Err(bad());
    }
    let mut parts = from.clone().into_parts();
    parts.path_and_query = Some(to.parse().map_err(|_| bad())?);
    Uri::from_parts(parts).map_err(|_| bad())
}

async fn page(
    answer: Response<hyper::body::Incoming>,
    bytes_max: usize,
    room: &Arc<Semaphore>,
) -> Result<Page, String> {
    let header = |name| {
        answer
            .headers()
            .get(name)
            .and_then(|v: &hyper::header::HeaderValue| v.to_str().ok())
    };
    let format = Format::of_content_type(header(CONTENT_TYPE).unwrap_or_default());
    let is_gzip = match header(CONTENT_ENCODING).unwrap_or_default() {
        "" | "identity" => false,
        given if given.eq_ignore_ascii_case("gzip") => true,
        given => {
            return Err(format!(
                "the answer is compressed as {given:?}, which was not asked for"
            ));
        }
    };
    let mut held = Held::new(room);
    let (mut body, mut wire) = (answer.into_body(), vec![]);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| format!("the answer broke off: {}", whole(&e)))?;
        let Ok(data) = frame.into_data() else { continue };
        if wire.len() + data.len() > bytes_max {
            return Err(too_large(bytes_max));
        }
        held.more(data.len()).await?;
        wire.extend_from_slice(&data);
    }
    let body = match is_gzip {
        false => wire,
        true => gunzip(wire, bytes_max, &mut held).await?,
    };
    Ok(Page {
        body,
        format,
        room: held.permit,
    })
}

/// Piece by piece, on threads that nobody waits for; between two pieces it waits for room, and may be given up.
pub(super) async fn gunzip(wire: Vec<u8>, bytes_max: usize, held: &mut Held) -> Result<Vec<u8>, String> {
    let (mut decoder, mut text) = (MultiGzDecoder::new(Cursor::new(wire)), vec![]);
    let mut piece_bytes = PIECE_BYTES;
    loop {
        held.more(piece_bytes).await?;
        let piece = tokio::task::spawn_blocking(move || {
            let read = (&mut decoder).take(piece_bytes as u64).read_to_end(&mut text);
            (decoder, text, read)
        });
        let read;
        (decoder, text, read) = piece.await.map_err(|e| e.to_string())?;
        let read = read.map_err(|e| format!("the answer does not decompress as gzip: {e}"))?;
        if text.len() > bytes_max {
            return Err(too_large(bytes_max));
        }
        if read < piece_bytes {
            return Ok(text);
        }
        piece_bytes = (piece_bytes * 2).min(PIECE_BYTES_MAX);
    }
}

pub(super) fn too_large(bytes_max: usize) -> String {
    match bytes_max < BODY_BYTES_MAX {
        true => format!("the page has more than {bytes_max} bytes; raise body_size_limit"),
        false => format!("the page has more than {bytes_max} bytes, the most that is read of one answer"),
    }
}

/// Room that a body takes.
pub(super) struct Held {
    room: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Held {
    pub(super) fn new(room: &Arc<Semaphore>) -> Self {
        Self {
            room: room.clone(),
            permit: None,
        }
    }

    async fn more(&mut self, bytes: usize) -> Result<(), String> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let more = self.room.clone().acquire_many_owned(bytes).await;
        let more = more.map_err(|e| e.to_string())?;
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
        Ok(())
    }
}

async fn authorization(http: &Http) -> Result<Option<String>, String> {
    Ok(match &http.auth {
        None => None,
        Some(Auth::Basic { username, password }) => {
            let both = format!("{}:{}", reveal(username).await?, reveal(password).await?);
            let encoded = base64::engine::general_purpose::STANDARD.encode(both);
            Some(format!("Basic {encoded}"))
        }
        Some(Auth::Header { kind, credentials }) => Some(format!("{kind} {}", reveal(credentials).await?)),
    })
}

async fn reveal(secret: &Secret) -> Result<String, String> {
    let path = match secret {
        Secret::Text(text) => return Ok(text.clone()),
        Secret::File(path) => path.clone(),
    };
    let read = tokio::task::spawn_blocking(move || read_text(&path, SECRET_BYTES_MAX)).await;
    let text = read.map_err(|e| e.to_string())??;
    Ok(text.trim().to_owned())
}

/// A file of at most so many bytes.
#[allow(
    clippy::disallowed_methods,
    reason = "files that an operator names are read where they are"
)]
pub(in crate::io::servers) fn read_text(path: &Path, bytes_max: usize) -> Result<String, String> {
    let failed = |why: &dyn std::fmt::Display| format!("{} cannot be read: {why}", path.display());
    let file = std::fs::File::open(path).map_err(|e| failed(&e))?;
    let mut bytes = vec![];
    let read = file.take(bytes_max as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|e| failed(&e))?;
    if bytes.len() > bytes_max {
        return Err(failed(&format!("it has more than {bytes_max} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| failed(&"it is not UTF-8 text"))
}

/// An error with what it came from: the outer one alone says little.
fn whole(error: &dyn std::error::Error) -> String {
    let (mut said, mut source) = (error.to_string(), error.source());
    while let Some(next) = source {
        let more = next.to_string();
        if !said.contains(&more) {
            said = format!("{said}: {more}");
        }
        source = next.source();
    }
    said
}

//! Webhooks: one POST of JSON. The name is resolved once, every address is checked, and the connection goes to a
//! checked address; redirects are not followed. The body is signed when a secret is configured.

use super::{STEP_TIMEOUT, secret};
use crate::address::is_public;
use crate::message;
use bytes::Bytes;
use hindcast_alerting::outbox::{Receipt, Sending};
use hindcast_alerting::route::{Target, WebhookTarget};
use hindcast_alerting::{Channel, SendError};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Of an answer; only the status counts, the words are for the outbox.
const ANSWER_BYTES_MAX: usize = 4 * 1024;
const ADDRESSES_MAX: usize = 8;

/// Calls webhooks.
#[derive(Clone, Copy, Debug, Default)]
pub struct WebhookChannel;

#[async_trait::async_trait]
impl Channel for WebhookChannel {
    async fn send(&self, sending: &Sending) -> Result<Receipt, SendError> {
        let Target::Webhook(target) = &sending.effect.target else {
            return Err(SendError::Rejected("this is no message for a webhook".to_owned()));
        };
        let place = Place::of(&target.url)?;
        let request = request(target, &place, sending).await?;
        let stream = connect(&place, target.allow_private).await?;
        let answer = if place.is_tls {
            post(tls(&place, stream).await?, request).await?
        } else {
            post(stream, request).await?
        };
        judge(&place, answer).await
    }
}

/// A URL, taken apart.
struct Place {
    is_tls: bool,
    host: String,
    port: u16,
    /// As the `Host` header has it.
    authority: String,
    path: String,
}

impl Place {
    fn of(url: &str) -> Result<Self, SendError> {
        let wrong = || SendError::Rejected("the webhook's URL is not like https://host/path".to_owned());
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong()),
        };
        let host = uri.host().ok_or_else(wrong)?.to_owned();
        Ok(Self {
            is_tls,
            port: uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 }),
            authority: uri.authority().ok_or_else(wrong)?.to_string(),
            path: uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string),
            host,
        })
    }

    fn bare_host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }
}

async fn request(target: &WebhookTarget, place: &Place, sending: &Sending) -> Result<Request<Full<Bytes>>, SendError> {
    let body = message::webhook_body(sending);
    let mut builder = Request::post(&place.path)
        .header("host", &place.authority)
        .header("content-type", "application/json")
        .header("user-agent", "hindcast")
        .header("x-hindcast-key", &sending.effect.key.0);
    if let Some(reference) = &target.secret {
        let secret = secret::read(reference).await?;
        builder = builder.header("x-hindcast-signature", message::signature(secret.reveal(), &body));
    }
    builder
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| SendError::Rejected(format!("the request cannot be written: {e}")))
}

async fn connect(place: &Place, allow_private: bool) -> Result<TcpStream, SendError> {
    let busy = |why: String| SendError::Busy(format!("webhook {}: {why}", place.authority));
    let found = timeout(STEP_TIMEOUT, lookup_host((place.bare_host(), place.port)))
        .await
        .map_err(|_| busy("its name was not resolved in time".to_owned()))?
        .map_err(|e| busy(format!("its name cannot be resolved: {e}")))?;
    let addresses: Vec<SocketAddr> = found.take(ADDRESSES_MAX).collect();
    if let Some(inside) = addresses.iter().find(|a| !allow_private && !is_public(a.ip())) {
        return Err(SendError::Rejected(format!(
            "webhook {} leads to {}, an address inside; set `allow_private: true` if that is meant",
            place.authority,
            inside.ip()
        )));
    }
    let mut last = "its name has no address".to_owned();
    for address in addresses {
        match timeout(STEP_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(e)) => last = format!("no connection to {address}: {e}"),
            Err(_) => last = format!("no connection to {address} in time"),
        }
    }
    Err(busy(last))
}

async fn tls(place: &Place, stream: TcpStream) -> Result<tokio_rustls::client::TlsStream<TcpStream>, SendError> {
    let wrong = |why: String| SendError::Rejected(format!("TLS with {}: {why}", place.authority));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = rustls::RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong(e.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name =
        rustls::pki_types::ServerName::try_from(place.bare_host().to_owned()).map_err(|e| wrong(e.to_string()))?;
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
    match timeout(STEP_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => Ok(stream),
        // A certificate can be renewed while the delivery is tried again.
        Ok(Err(e)) => Err(SendError::Busy(format!("TLS with {}: {e}", place.authority))),
        Err(_) => Err(SendError::Busy(format!(
            "TLS with {}: no answer in time",
            place.authority
        ))),
    }
}

async fn post<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Response<hyper::body::Incoming>, SendError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let broken = |e: hyper::Error| SendError::Busy(format!("the webhook's server broke off: {e}"));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // It ends with the response, or with the sender.
    tokio::spawn(async move {
        let _ended = connection.await;
    });
    match timeout(STEP_TIMEOUT, sender.send_request(request)).await {
        Ok(answer) => answer.map_err(broken),
        Err(_) => Err(SendError::Busy(
            "the webhook's server did not answer in time".to_owned(),
        )),
    }
}

async fn judge(place: &Place, answer: Response<hyper::body::Incoming>) -> Result<Receipt, SendError> {
    let status = answer.status();
    let body = timeout(
        STEP_TIMEOUT,
        Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect(),
    )
    .await;
    let words = match body {
        Ok(Ok(body)) => String::from_utf8_lossy(&body.to_bytes()).chars().take(200).collect(),
        _ => String::new(),
    };
    if status.is_success() {
        return Ok(Receipt {
            id: format!("HTTP {}", status.as_u16()),
        });
    }
    let said = format!("webhook {} answers {status} {words}", place.authority);
    // Logins, paths and servers are mended while we try again; what is wrong with the request stays wrong.
    if status.is_server_error() || matches!(status.as_u16(), 401 | 403 | 404 | 408 | 425 | 429) {
        Err(SendError::Busy(said))
    } else {
        Err(SendError::Rejected(said))
    }
}

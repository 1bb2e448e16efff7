//! HTTP for the S3 client: hyper with rustls on ring, as everywhere else in this process.

use futures::TryStreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector as TcpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService,
};
use std::sync::Arc;
use std::time::Duration;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Until the head of an answer is there.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two pieces of an answer.
const PIECE_TIMEOUT: Duration = Duration::from_secs(15);
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const IDLE_CONNECTIONS_MAX: usize = 8;

/// Makes the client that all requests of one store share.
#[derive(Debug)]
pub struct Hyper {
    tls: rustls::ClientConfig,
}

impl Hyper {
    /// Trusts the public roots, and `more` (of a private store).
    pub fn new(more: Vec<rustls::pki_types::CertificateDer<'static>>) -> Result<Self, rustls::Error> {
        let mut roots = rustls::RootCertStore::empty();
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        for certificate in more {
            roots.add(certificate)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls })
    }
}

impl HttpConnector for Hyper {
    fn connect(&self, _: &object_store::ClientOptions) -> object_store::Result<HttpClient> {
        let mut tcp = TcpConnector::new();
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        // Whether plain HTTP may be used is the store's own setting (AWS_ALLOW_HTTP), checked when it is built.
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(self.tls.clone())
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .build(connector);
        Ok(HttpClient::new(Service(client)))
    }
}

#[derive(Debug)]
struct Service(Client<HttpsConnector<TcpConnector>, HttpRequestBody>);

#[async_trait::async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, self.0.request(request)).await;
        let answer = answer.map_err(|e| HttpError::new(HttpErrorKind::Timeout, e))?;
        let (head, body) = answer.map_err(|e| HttpError::new(kind(&e), e))?.into_parts();
        let frames = futures::stream::try_unfold(body, |mut body| async move {
            match tokio::time::timeout(PIECE_TIMEOUT, body.frame()).await {
                Err(e) => Err(HttpError::new(HttpErrorKind::Timeout, e)),
                Ok(None) => Ok(None),
                Ok(Some(Ok(frame))) => Ok(Some((frame, body))),
                Ok(Some(Err(e))) => Err(HttpError::new(HttpErrorKind::Interrupted, e)),
            }
        });
        let body = HttpResponseBody::new(StreamBody::new(frames.into_stream()));
        Ok(HttpResponse::from_parts(head, body))
    }
}

/// What decides whether a request is tried again.
fn kind(e: &hyper_util::client::legacy::Error) -> HttpErrorKind {
    if e.is_connect() {
        return HttpErrorKind::Connect;
    }
    let mut source = std::error::Error::source(e);
    while let Some(s) = source {
        if s.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_user) {
            return HttpErrorKind::Unknown;
        }
        source = s.source();
    }
    HttpErrorKind::Interrupted
}

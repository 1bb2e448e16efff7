//! One port for everything clients speak: gRPC, HTTP APIs and the web UI, over HTTP/1.1 and HTTP/2, with TLS or without.

use super::paced;
use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use hindcast_node::io::tls::{Let, Stream, Tcp, Tls};
use hyper::header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use hyper::{HeaderMap, Method, Request, StatusCode, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Sleep;
use tower::ServiceExt;

/// Connections at once; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4096;
const STREAMS_PER_CONNECTION_MAX: u32 = 1024;
/// A request's headers must be complete within this time (slowloris).
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long somebody without TLS is listened to, on a port that speaks it.
const PLAIN_SPAN_MAX: Duration = Duration::from_secs(5);

/// Serves until `stop` turns true; then finishes what is under way, for at most five seconds.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Tls>,
    grpc: Router,
    http: Router,
    mut stop: tokio::sync::watch::Receiver<bool>,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let graceful = hyper_util::server::graceful::GracefulShutdown::new();
    let mut server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    server
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024)
        .max_frame_size(1024 * 1024)
        .max_pending_accept_reset_streams(64)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|s| *s) => break,
        };
        let Ok((stream, from)) = accepted else {
            // Out of file descriptors, most likely: give the others time to end.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (grpc, http) = (grpc.clone(), http.clone());
        let app = tower::service_fn(move |request: Request<hyper::body::Incoming>| {
            let is_grpc = is_grpc(request.headers());
            let app = if is_grpc { grpc.clone() } else { http.clone() };
            // HTTP/2 asks whether the other side is there, and these hold no place at the door between messages.
            let may_be_silent = is_grpc && SILENT_STREAMS.iter().any(|s| request.uri().path().starts_with(s));
            async move {
                let answer = |r: Request<Body>| async { app.oneshot(r).await.into_response() };
                Ok::<_, Infallible>(match may_be_silent {
                    true => answer(request.map(Body::new)).await,
                    false => paced::in_time(request, is_grpc, answer).await,
                })
            }
        });
        let (server, tls, watcher) = (server.clone(), tls.clone(), graceful.watcher());
        tokio::spawn(async move {
            let stream = match tls {
                None => Stream::Plain(Tcp::new(stream)),
                Some(tls) => match tls.accept(stream, from).await {
                    Let::In(stream, _) => stream,
                    Let::Plain(stream) => {
                        let told = server.serve_connection(TokioIo::new(stream), hyper::service::service_fn(say_tls));
                        let _ = tokio::time::timeout(PLAIN_SPAN_MAX, told).await;
                        return;
                    }
                    Let::Refused => return,
                },
            };
            let stream = TokioIo::new(Begun::new(stream));
            let connection = server.serve_connection_with_upgrades(stream, TowerToHyperService::new(app));
            if let Err(error) = watcher.watch(connection.into_owned()).await {
                tracing::debug!(error, "a client connection ended");
            }
            drop(permit);
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(Duration::from_secs(5), graceful.shutdown()).await;
}

/// Calls whose requests are streams that may be silent for long.
const SILENT_STREAMS: [&str; 2] = ["/hindcast.v1.Ingest/WriteStream", "/grpc.reflection."];

/// What HTTP/2 begins with; whoever begins otherwise speaks HTTP/1, whose headers have a timeout of their own.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection on which it must be said in time what is spoken. Silent ones would hold the places of others.
struct Begun<S> {
    stream: S,
    seen: usize,
    /// `None` once it is known.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl<S> Begun<S> {
    fn new(stream: S) -> Self {
        Self {
            stream,
            seen: 0,
            alarm: Some(Box::pin(tokio::time::sleep(HEADER_TIMEOUT))),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Begun<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        if Pin::new(&mut this.stream).poll_read(context, buffer)?.is_ready() {
            let new = &buffer.filled()[before..];
            let is_preface = PREFACE[this.seen.min(PREFACE.len())..].starts_with(new);
            this.seen += new.len();
            if !is_preface || this.seen >= PREFACE.len() {
                this.alarm = None;
            }
            return Poll::Ready(Ok(()));
        }
        let is_late = |alarm: &mut Pin<Box<Sleep>>| alarm.as_mut().poll(context).is_ready();
        if this.alarm.as_mut().is_some_and(is_late) {
            let why = "nothing was said on the connection";
            return Poll::Ready(Err(std::io::Error::new(std::io::ErrorKind::TimedOut, why)));
        }
        Poll::Pending
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Begun<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// What somebody without TLS hears, in the words of its protocol.
async fn say_tls(request: Request<hyper::body::Incoming>) -> Result<Response, Infallible> {
    const WORDS: &str = "this port speaks TLS: use https://, and name the authority (--tls-ca) and, if it asks for one, your certificate (--tls-cert, --tls-key)";
    let answer = if is_grpc(request.headers()) {
        tonic::Status::unauthenticated(WORDS)
            .into_http::<tonic::body::Body>()
            .map(Body::new)
    } else {
        (
            StatusCode::BAD_REQUEST,
            [(hyper::header::CONNECTION, "close")],
            format!("{WORDS}\n"),
        )
            .into_response()
    };
    Ok(answer)
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"))
}

/// tonic answers messages that it cannot read with codes that blame the server, or tell the client to send them again.
pub async fn blame_the_sender(request: axum::extract::Request, next: axum::middleware::Next) -> Response {
    let response = next.run(request).await;
    let status = tonic::Status::from_header_map(response.headers());
    match status.and_then(|s| hindcast_node::io::servers::sender_fault(&s)) {
        None => response,
        Some((_, text)) => tonic::Status::invalid_argument(text)
            .into_http::<tonic::body::Body>()
            .map(Body::new),
    }
}

/// Until there are users, loopback is the only guard: a browser must not carry requests across it. A name that is
/// not this machine's (DNS rebinding) and a page of another origin that wants to change something are refused.
pub async fn guard_loopback(request: axum::extract::Request, next: axum::middleware::Next) -> Response {
    let headers = request.headers();
    let text = |name: hyper::header::HeaderName| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let host = text(hyper::header::HOST).or_else(|| request.uri().authority().map(ToString::to_string));
    let foreign_host = host.as_deref().is_some_and(|h| !is_loopback(h));
    let origin = text(hyper::header::ORIGIN);
    let foreign_origin = origin
        .as_deref()
        .is_some_and(|o| !o.split_once("://").is_some_and(|(_, h)| is_loopback(h)));
    if foreign_host || (foreign_origin && !request.method().is_safe()) {
        let message = "this server answers loopback names only (127.0.0.1, [::1], localhost), and pages of its own";
        return (
            StatusCode::FORBIDDEN,
            axum::Json(serde_json::json!({"code": "not_allowed", "message": message})),
        )
            .into_response();
    }
    next.run(request).await
}

/// Off loopback everybody shows a certificate, and a browser shows it for pages of others as well: what changes something
/// must come from a page of this server.
pub async fn guard_origin(request: axum::extract::Request, next: axum::middleware::Next) -> Response {
    let headers = request.headers();
    let text = |name: hyper::header::HeaderName| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let host = text(hyper::header::HOST).or_else(|| request.uri().authority().map(ToString::to_string));
    let origin = text(hyper::header::ORIGIN);
    let is_own = origin
        .as_deref()
        .is_none_or(|o| o.split_once("://").map(|(_, h)| h) == host.as_deref());
    if !is_own && !request.method().is_safe() {
        let message = "pages of other origins change nothing here";
        return (
            StatusCode::FORBIDDEN,
            axum::Json(serde_json::json!({"code": "not_allowed", "message": message})),
        )
            .into_response();
    }
    next.run(request).await
}

/// Whether `host` or `host:port` names this machine by loopback.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(""),
        None => host.split(':').next().unwrap_or(""),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The web UI: files by name, and its one page for every other path that is no API.
pub async fn web(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let path = uri.path();
    if path.starts_with("/api/") || path.starts_with("/loki/") || path.starts_with("/v1/") || path.starts_with("/-/") {
        let message = format!("there is no {} here; the README lists the APIs", uri.path());
        return (
            StatusCode::NOT_FOUND,
            axum::Json(serde_json::json!({"code": "not_found", "message": message})),
        )
            .into_response();
    }
    if method != Method::GET && method != Method::HEAD {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    let found = hindcast_web::find(path).or_else(|| {
        if path.starts_with("/assets/") {
            None
        } else {
            hindcast_web::find("/index.html")
        }
    });
    let Some(asset) = found else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let cache = if asset.immutable {
        "public, max-age=31536000, immutable"
    } else {
        "no-cache"
    };
    let known = headers
        .get(IF_NONE_MATCH)
        .is_some_and(|v| v.as_bytes() == asset.etag.as_bytes());
    let status = if known {
        StatusCode::NOT_MODIFIED
    } else {
        StatusCode::OK
    };
    let gzip = headers
        .get(ACCEPT_ENCODING)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.contains("gzip"));
    let mut response = Response::builder()
        .status(status)
        .header(CONTENT_TYPE, asset.content_type)
        .header(CACHE_CONTROL, cache)
        .header(ETAG, asset.etag)
        .header("content-security-policy", hindcast_web::CONTENT_SECURITY_POLICY)
        .header("x-content-type-options", "nosniff");
    if gzip && !known {
        response = response.header(CONTENT_ENCODING, "gzip");
    }
    let body = match (known, gzip) {
        (true, _) => Body::empty(),
        (false, true) => Body::from(asset.gzip),
        (false, false) => Body::from(asset.raw),
    };
    response
        .body(body)
        .unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

#[cfg(test)]
mod tests {
    use super::{guard_origin, is_loopback};
    use axum::routing::post;
    use tower::ServiceExt;

    #[tokio::test]
    async fn a_page_of_another_origin_changes_nothing_off_loopback() {
        let app = axum::Router::new()
            .route("/x", post(|| async { "changed" }).get(|| async { "read" }))
            .layer(axum::middleware::from_fn(guard_origin));
        let ask = |method: &str, origin: Option<&str>| {
            let mut request = hyper::Request::builder()
                .method(method)
                .uri("/x")
                .header("host", "node1.example.org:7400");
            if let Some(origin) = origin {
                request = request.header("origin", origin);
            }
            let request = request.body(axum::body::Body::empty()).unwrap();
            let app = app.clone();
            async move { app.oneshot(request).await.unwrap().status().as_u16() }
        };
        assert_eq!(ask("POST", None).await, 200, "no browser");
        assert_eq!(ask("POST", Some("https://node1.example.org:7400")).await, 200);
        for foreign in [
            "https://evil.example",
            "https://node1.example.org",
            "https://node1.example.org:7400.evil.example",
            "null",
        ] {
            assert_eq!(ask("POST", Some(foreign)).await, 403, "{foreign}");
            assert_eq!(ask("GET", Some(foreign)).await, 200, "{foreign}");
        }
    }

    #[test]
    fn a_rebound_name_is_not_this_machine() {
        for own in [
            "localhost",
            "LOCALHOST:7400",
            "127.0.0.1",
            "127.0.0.1:7400",
            "[::1]:7400",
            "127.8.9.1",
        ] {
            assert!(is_loopback(own), "{own}");
        }
        for foreign in [
            "evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1:7400",
            "[fe80::1]",
            "",
            "localhost.evil",
        ] {
            assert!(!is_loopback(foreign), "{foreign}");
        }
    }
}

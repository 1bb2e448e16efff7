//! `/loki/api/v1/tail`: lines as they come, over a WebSocket, as `logcli query --tail` and Grafana's live view ask for
//! them. The store is asked twice a second; a client that reads slowly gets its lines later, none is dropped.

use super::http::{Refusal, plain};
use super::loki::{refused, streams_merged};
use super::params::{self, Params, tenant};
use crate::engine::{Engine, LogsQuery, Options, QueryError};
use crate::shards::Consistency;
use crate::tail::{Stretch, Tail};
use crate::value::LogsValue;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::{SinkExt, StreamExt};
use hindcast_model::{Class, Classify, SpanNs, TenantId, TimestampNs};
use hindcast_storage::read::Direction;
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};

/// Clients that follow at once, of one node.
pub const TAILS_MAX: usize = 100;
/// Between two questions to the store.
const PAUSE: Duration = Duration::from_millis(500);
/// A client that takes nothing for so long is gone.
const SEND_SPAN_MAX: Duration = Duration::from_secs(60);
/// Between two signs of life, so that proxies and the client keep the connection.
const PING_PAUSE: Duration = Duration::from_secs(15);
/// What a client may send: it has nothing to say but that it goes.
const CLIENT_BYTES_MAX: usize = 4096;
/// As Loki bounds it.
const DELAY_MAX: SpanNs = SpanNs::from_secs(5);
const SINCE_DEFAULT: SpanNs = SpanNs::from_secs(3600);
const LIMIT_DEFAULT: usize = 100;

#[derive(Clone)]
struct Tails {
    engine: Arc<Engine>,
    room: Arc<Semaphore>,
}

pub(super) fn router(engine: Arc<Engine>) -> Router {
    let room = Arc::new(Semaphore::new(TAILS_MAX));
    Router::new()
        .route("/loki/api/v1/tail", get(tail))
        .with_state(Tails { engine, room })
}

/// What a client wants to follow.
struct Wanted {
    tenant: TenantId,
    expr: String,
    start: TimestampNs,
    /// Lines from before now, at most.
    limit: usize,
    delay: SpanNs,
}

async fn tail(State(tails): State<Tails>, request: Request<Body>) -> Response {
    match begin(tails, request).await {
        Ok(response) => response,
        Err(refusal) => refusal.plain(),
    }
}

/// The key of the handshake. `None`: this is no handshake.
fn key(headers: &HeaderMap) -> Option<&[u8]> {
    let holds = |name: header::HeaderName, word: &str| {
        let texts = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
        texts
            .flat_map(|t| t.split(','))
            .any(|w| w.trim().eq_ignore_ascii_case(word))
    };
    let is_handshake = holds(header::CONNECTION, "upgrade")
        && holds(header::UPGRADE, "websocket")
        && holds(header::SEC_WEBSOCKET_VERSION, "13");
    let key = headers.get(header::SEC_WEBSOCKET_KEY)?;
    is_handshake.then_some(key.as_bytes())
}

async fn begin(tails: Tails, mut request: Request<Body>) -> Result<Response, Refusal> {
    let tenant = tenant(request.headers())?;
    let Some(accept) = key(request.headers()).map(derive_accept_key) else {
        return Ok(plain(
            400,
            "this address speaks WebSocket (version 13): follow it with `logcli query --tail`, or ask query_range",
        ));
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let p = Params::read(request).await?;
    let delay = SpanNs::from_secs(p.number("delay_for")?.unwrap_or(0) as u64);
    if delay > DELAY_MAX {
        return Err(Refusal::bad_data("delay_for is at most 5 seconds"));
    }
    let wanted = Wanted {
        tenant,
        expr: p.required("query")?.to_owned(),
        start: p.log_time("start")?.unwrap_or_else(|| params::now() - SINCE_DEFAULT),
        limit: p.number("limit")?.unwrap_or(LIMIT_DEFAULT),
        delay,
    };
    // What is wrong with the query is said before anything is switched.
    tails.engine.check_followed(&wanted.expr).map_err(refused)?;
    let Ok(permit) = tails.room.try_acquire_owned() else {
        return Ok(plain(
            429,
            &format!("{TAILS_MAX} clients follow lines of this node already; end one of them, or ask another node"),
        ));
    };
    tokio::spawn(async move {
        match upgrade.await {
            Ok(stream) => follow(tails.engine, wanted, TokioIo::new(stream), permit).await,
            Err(error) => tracing::debug!(%error, "a client that wanted to follow lines left"),
        }
    });
    let headers = [
        (header::CONNECTION, "Upgrade"),
        (header::UPGRADE, "websocket"),
        (header::SEC_WEBSOCKET_ACCEPT, accept.as_str()),
    ];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

async fn follow<S>(engine: Arc<Engine>, wanted: Wanted, stream: S, _room: OwnedSemaphorePermit)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let config = WebSocketConfig::default()
        .max_message_size(Some(CLIENT_BYTES_MAX))
        .max_frame_size(Some(CLIENT_BYTES_MAX));
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
    let (mut out, mut heard) = socket.split();
    let gone = async {
        while let Some(Ok(message)) = heard.next().await {
            if message.is_close() {
                break;
            }
        }
    };
    let told = async {
        let end = tell(&engine, &wanted, &mut out).await;
        let Some(end) = end else { return };
        let frame = CloseFrame {
            code: CloseCode::Error,
            // A close frame has room for 123 bytes.
            reason: end.chars().take(40).collect::<String>().into(),
        };
        let _ = tokio::time::timeout(PAUSE, out.send(Message::Close(Some(frame)))).await;
    };
    tokio::select! {
        () = gone => {}
        () = told => {}
    }
}

type Out<S> = futures::stream::SplitSink<WebSocketStream<S>, Message>;

/// Ends when the client is gone (`None`), or with what went wrong.
async fn tell<S>(engine: &Arc<Engine>, wanted: &Wanted, out: &mut Out<S>) -> Option<String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let engine = engine.with(Consistency::Linearizable);
    let ask = |stretch: Stretch, direction: Direction| {
        let q = LogsQuery {
            tenant: wanted.tenant.clone(),
            expr: wanted.expr.clone(),
            start: stretch.from,
            end: stretch.to,
            step: None,
            limit: stretch.limit,
            direction,
            options: Options::default(),
        };
        let engine = engine.clone();
        async move {
            match engine.logs(&q).await {
                // What is not there now comes back, and its lines with it: until then nothing is told, so that no
                // stretch is left behind with a part of its lines.
                Ok(found) if !found.completeness.is_complete() => Ok(None),
                Err(QueryError::Shards(e)) if e.class() == Class::Unavailable => Ok(None),
                Ok(found) => match found.value {
                    LogsValue::Streams(streams) => Ok(Some(streams)),
                    LogsValue::Metric(_) => Ok(None),
                },
                Err(e) => Err(e.to_string()),
            }
        }
    };
    // The newest lines of the past, as many as were asked for; everything behind the first of them is then followed.
    let now = params::now() - wanted.delay;
    let past = Stretch {
        from: wanted.start,
        to: now,
        limit: wanted.limit,
    };
    let mut first = None;
    if past.from < past.to && past.limit > 0 {
        let found = loop {
            match ask(past, Direction::Backward).await {
                Ok(Some(found)) => break found,
                Ok(None) => tokio::time::sleep(PAUSE).await,
                Err(why) => return Some(why),
            }
        };
        first = found.iter().flat_map(|s| &s.lines).map(|l| l.at).min();
    }
    let mut tail = Tail::new(first.unwrap_or(now));
    let mut spoke = tokio::time::Instant::now();
    loop {
        let mut more = false;
        if let Some(asked) = tail.next(params::now() - wanted.delay) {
            let found = match ask(asked, Direction::Forward).await {
                Ok(found) => found,
                Err(why) => return Some(why),
            };
            let new;
            (new, more) = found.map_or((vec![], false), |found| tail.take(asked, found));
            if !new.is_empty() {
                let streams = streams_merged(&new, Direction::Forward);
                let text = format!("{{\"streams\":{streams},\"dropped_entries\":null}}");
                if !sent(out, Message::text(text)).await {
                    return None;
                }
                spoke = tokio::time::Instant::now();
            }
        }
        if spoke.elapsed() >= PING_PAUSE {
            if !sent(out, Message::Ping(Default::default())).await {
                return None;
            }
            spoke = tokio::time::Instant::now();
        }
        if !more {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn sent<S>(out: &mut Out<S>, message: Message) -> bool
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    matches!(tokio::time::timeout(SEND_SPAN_MAX, out.send(message)).await, Ok(Ok(())))
}

//! Sends one body, however often it takes, and says what was confirmed.

use super::http::{Http, uri};
use crate::body::Protocol;
use crate::outcome::{Outcome, UNCONFIRMED_SPAN_MAX, attempt, of_grpc_code, of_http_status};
use anyhow::{Context, bail};
use bytes::{Buf, BufMut, Bytes};
use futures::Stream;
use hindcast_proto::edge::TENANT_KEY;
use hindcast_proto::v1;
use hyper::Uri;
use prost::Message;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

/// Longer than an election.
const ANSWER_SPAN_MAX: Duration = Duration::from_secs(10);
const CONNECT_SPAN_MAX: Duration = Duration::from_secs(2);
const WRITE: &str = "/hindcast.v1.Ingest/Write";
const WRITE_STREAM: &str = "/hindcast.v1.Ingest/WriteStream";

/// Bytes as they are on the way out, an answer on the way in.
#[derive(Default)]
struct AsEncoded;

impl Codec for AsEncoded {
    type Encode = Bytes;
    type Decode = v1::WriteResponse;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for AsEncoded {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for AsEncoded {
    type Item = v1::WriteResponse;
    type Error = Status;
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<v1::WriteResponse>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        let answer = v1::WriteResponse::decode(bytes);
        answer
            .map(Some)
            .map_err(|e| Status::internal(format!("the answer is not a WriteResponse: {e}")))
    }
}

/// A call that stays open: bodies go out one after another, and it knows which lots' series were named on it.
struct Open {
    bodies: mpsc::Sender<Bytes>,
    answers: Streaming<v1::WriteResponse>,
    named: BTreeSet<usize>,
}

enum Line {
    Grpc(Channel),
    Stream(Channel, Option<Box<Open>>),
    Http(Box<(Http, Uri)>),
}

/// One writer's connections: one per endpoint.
pub struct Sender {
    lines: Vec<Line>,
    names: Vec<String>,
    tenant: String,
    /// The endpoint that answered last.
    first: usize,
}

/// What came of one body.
pub struct Sent {
    pub samples: u64,
    pub refused: Option<String>,
    pub retries: u64,
}

impl Sender {
    pub fn new(protocol: Protocol, endpoints: &[String], tenant: &str, first: usize) -> anyhow::Result<Self> {
        tenant
            .parse::<AsciiMetadataValue>()
            .with_context(|| format!("the tenant {tenant:?} is not plain ASCII"))?;
        let line = |url: &String| {
            anyhow::Ok(match protocol {
                Protocol::RemoteWrite => Line::Http(Box::new((Http::new(), uri(url, "/api/v1/write")?))),
                Protocol::Grpc | Protocol::GrpcInterned => {
                    uri(url, "/")?;
                    let endpoint = Endpoint::from_shared(url.clone())?
                        .connect_timeout(CONNECT_SPAN_MAX)
                        .tcp_nodelay(true);
                    let channel = endpoint.connect_lazy();
                    match protocol {
                        Protocol::GrpcInterned => Line::Stream(channel, None),
                        _ => Line::Grpc(channel),
                    }
                }
            })
        };
        Ok(Self {
            lines: endpoints.iter().map(line).collect::<Result<_, _>>()?,
            names: endpoints.to_vec(),
            tenant: tenant.to_owned(),
            first: first % endpoints.len(),
        })
    }

    /// Until it is confirmed or refused; an error when nobody confirms it in time.
    /// `definitions` are those of a lot, by its number: said before the body to a stream that does not know them.
    pub async fn send(&mut self, body: &Bytes, definitions: (usize, &Bytes), samples: u64) -> anyhow::Result<Sent> {
        let begun = tokio::time::Instant::now();
        for n in 0.. {
            let (endpoint, pause) = attempt(self.first, self.lines.len(), n);
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            let once = self.once(endpoint, body.clone(), definitions, samples);
            let outcome = match tokio::time::timeout(ANSWER_SPAN_MAX, once).await {
                Ok(outcome) => outcome?,
                Err(_) => Outcome::Again(format!("no answer in {ANSWER_SPAN_MAX:?}")),
            };
            if matches!(outcome, Outcome::Again(_))
                && let Line::Stream(_, open) = &mut self.lines[endpoint]
            {
                // What was named there may be lost with it.
                *open = None;
            }
            let retries = u64::from(n);
            match outcome {
                Outcome::Acked { samples, refused } => {
                    self.first = endpoint;
                    return Ok(Sent {
                        samples,
                        refused,
                        retries,
                    });
                }
                Outcome::Refused(why) => {
                    return Ok(Sent {
                        samples: 0,
                        refused: Some(why),
                        retries,
                    });
                }
                Outcome::Again(why) if begun.elapsed() > UNCONFIRMED_SPAN_MAX => {
                    bail!(
                        "{} and the others did not confirm a batch in {UNCONFIRMED_SPAN_MAX:?}: {why}",
                        self.names[endpoint]
                    )
                }
                Outcome::Again(_) => {}
            }
        }
        unreachable!("attempts end by time")
    }

    /// Errors are of this program only; whatever a server or the network does is an outcome.
    async fn once(
        &mut self,
        endpoint: usize,
        body: Bytes,
        (lot, definitions): (usize, &Bytes),
        samples: u64,
    ) -> anyhow::Result<Outcome> {
        match &mut self.lines[endpoint] {
            Line::Stream(channel, open) => {
                if open.is_none() {
                    match opened(channel.clone(), self.tenant.parse()?).await {
                        Ok(new) => *open = Some(Box::new(new)),
                        Err(status) => return Ok(of_grpc_code(status.code() as i32, status.message())),
                    }
                }
                let Some(open) = open else {
                    bail!("a stream was opened just now");
                };
                let first = open.named.insert(lot);
                // Messages of protobuf that follow each other are one message.
                let whole = if first {
                    [&definitions[..], &body[..]].concat().into()
                } else {
                    body
                };
                if open.bodies.send(whole).await.is_err() {
                    return Ok(Outcome::Again("the stream was closed".to_owned()));
                }
                Ok(match open.answers.message().await {
                    Ok(Some(answer)) if answer.status == 0 => confirmed(answer, samples),
                    Ok(Some(answer)) => of_grpc_code(answer.status, &answer.message),
                    Ok(None) => Outcome::Again("the stream ended".to_owned()),
                    Err(status) => of_grpc_code(status.code() as i32, status.message()),
                })
            }
            Line::Grpc(channel) => {
                let mut grpc = tonic::client::Grpc::new(channel.clone());
                if let Err(e) = grpc.ready().await {
                    return Ok(Outcome::Again(e.to_string()));
                }
                let mut request = Request::new(body);
                request.metadata_mut().insert(TENANT_KEY, self.tenant.parse()?);
                let answer = grpc.unary(request, PathAndQuery::from_static(WRITE), AsEncoded).await;
                Ok(match answer {
                    Ok(answer) => confirmed(answer.into_inner(), samples),
                    Err(status) => of_grpc_code(status.code() as i32, status.message()),
                })
            }
            Line::Http(http) => {
                let (http, uri) = http.as_ref();
                let headers = [
                    ("content-type", "application/x-protobuf"),
                    ("content-encoding", "snappy"),
                    ("x-prometheus-remote-write-version", "0.1.0"),
                    (TENANT_KEY, self.tenant.as_str()),
                ];
                Ok(match http.post(uri, &headers, body).await {
                    Ok((status, text)) => of_http_status(status, samples, &String::from_utf8_lossy(&text)),
                    Err(e) => Outcome::Again(format!("{e:#}")),
                })
            }
        }
    }
}

async fn opened(channel: Channel, tenant: AsciiMetadataValue) -> Result<Open, Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
    let (bodies, outgoing) = mpsc::channel(1);
    let mut request = Request::new(futures_of(outgoing));
    request.metadata_mut().insert(TENANT_KEY, tenant);
    let answers = grpc
        .streaming(request, PathAndQuery::from_static(WRITE_STREAM), AsEncoded)
        .await?;
    Ok(Open {
        bodies,
        answers: answers.into_inner(),
        named: BTreeSet::new(),
    })
}

fn futures_of(bodies: mpsc::Receiver<Bytes>) -> impl Stream<Item = Bytes> + Send {
    futures::stream::unfold(bodies, |mut bodies| async { Some((bodies.recv().await?, bodies)) })
}

fn confirmed(answer: v1::WriteResponse, samples: u64) -> Outcome {
    let refused = answer.rejected.first().map(|r| format!("{}: {}", r.what, r.why));
    // A duplicate is an earlier attempt of ours that was stored, though its answer was lost.
    let samples = if answer.duplicate { samples } else { answer.samples };
    Outcome::Acked { samples, refused }
}

//! Sends batches to whichever node answers. Shell of [`Delivery`](crate::agent::delivery::Delivery).

use crate::agent::Endpoints;
use crate::agent::delivery::{Delivery, Input, Next, Outcome};
use crate::tls::TlsArgs;
use hindcast_model::{SpanNs, TimestampNs};
use hindcast_proto::edge::{TENANT_KEY, retry_info_of};
use hindcast_proto::v1;
use hindcast_proto::v1::ingest_client::IngestClient;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tonic::codec::CompressionEncoding;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// An answer that takes longer counts as none. Longer than an election.
pub const ANSWER_SPAN_MAX: Duration = Duration::from_secs(10);
const CONNECT_SPAN_MAX: Duration = Duration::from_secs(2);

/// What became of a batch.
#[derive(Clone, Debug)]
pub enum Sent {
    Acked(v1::WriteResponse),
    /// It is wrong, and will be on every retry.
    Refused(Status),
    /// Not confirmed by any node; it may be stored.
    GaveUp(Status),
}

/// Why a sender cannot be made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BadSender {
    #[error("{url:?} is not an address like http://127.0.0.1:7400: {why}")]
    Endpoint { url: String, why: String },
    #[error("{0}")]
    Tls(String),
    #[error("the tenant {tenant:?} is not plain ASCII")]
    Tenant { tenant: String },
}

pub struct Sender {
    clients: Vec<IngestClient<Channel>>,
    /// The same, for who does not take packed requests.
    plain: Vec<Option<IngestClient<Channel>>>,
    urls: Vec<String>,
    tenant: AsciiMetadataValue,
    delivery: Delivery,
    /// Sends after the first one of a batch.
    pub retries: u64,
    pub last_error: Option<String>,
    /// Attempts that were not confirmed, while they are under way.
    pub failures: Arc<AtomicU64>,
    patient: bool,
    /// It was said that none of our batches is taken.
    barred_said: bool,
}

impl Sender {
    /// Connects with the first batch. `rounds_max`: rounds over all endpoints before a batch is given up. Who gives up does so at
    /// once where no batch is taken at all; who does not waits until some are.
    pub fn new(endpoints: &Endpoints, tls: &TlsArgs, tenant: &str, rounds_max: Option<u32>) -> Result<Self, BadSender> {
        let dial = tls.dial(endpoints.urls().iter().map(String::as_str));
        let dial = dial.map_err(|e| BadSender::Tls(e.to_string()))?;
        let tenant = tenant.parse().map_err(|_| BadSender::Tenant {
            tenant: tenant.to_owned(),
        })?;
        let (mut clients, mut plain) = (vec![], vec![]);
        for url in endpoints.urls() {
            let endpoint = Endpoint::from_shared(url.clone()).map_err(|e| BadSender::Endpoint {
                url: url.clone(),
                why: e.to_string(),
            })?;
            let endpoint = endpoint.connect_timeout(CONNECT_SPAN_MAX).tcp_nodelay(true);
            let client = IngestClient::new(endpoint.connect_with_connector_lazy(dial.clone()));
            plain.push(Some(client.clone()));
            clients.push(client.send_compressed(CompressionEncoding::Zstd));
        }
        let mut delivery = Delivery::new(clients.len(), rounds_max);
        // Who gives up counts on a pause that is long enough for an election.
        if let (None, Ok(rng)) = (rounds_max, hindcast_env::io::os_rng()) {
            delivery = delivery.with_jitter(rng);
        }
        Ok(Self {
            delivery,
            clients,
            plain,
            urls: endpoints.urls().to_vec(),
            tenant,
            retries: 0,
            last_error: None,
            failures: Arc::default(),
            patient: rounds_max.is_none(),
            barred_said: false,
        })
    }

    /// Ends when the batch is confirmed, refused or given up. Dropping the future leaves the batch unconfirmed.
    pub async fn send(&mut self, batch: &v1::WriteRequest) -> Sent {
        self.delivery.abandon();
        let mut input = Input::Due;
        let mut last: Result<v1::WriteResponse, Status> = Err(Status::unavailable("nothing was sent"));
        let mut sends = 0u64;
        loop {
            input = match self.delivery.step(input, now()) {
                Next::Send { endpoint } => {
                    sends += 1;
                    self.retries += u64::from(sends > 1);
                    last = self.attempt(endpoint, batch).await;
                    match &last {
                        Ok(_) => {
                            self.barred_said = false;
                            Input::Accepted
                        }
                        Err(status) if self.unpack(endpoint, status) => Input::Failed { wait: None },
                        Err(status) => {
                            let text = format!("{}: {}", self.urls[endpoint], describe(status));
                            tracing::debug!(batch = batch.seq, error = %text, "batch not confirmed");
                            self.last_error = Some(text);
                            self.failures.fetch_add(1, Ordering::Relaxed);
                            self.say_barred(endpoint, status);
                            if is_of_batch(status.code()) || is_barred(status.code()) && !self.patient {
                                Input::Refused
                            } else {
                                Input::Failed { wait: wait(status) }
                            }
                        }
                    }
                }
                Next::WakeAt(at) => {
                    tokio::time::sleep(at.since(now()).as_duration()).await;
                    Input::Due
                }
                Next::End(outcome) => {
                    return match (outcome, last) {
                        (Outcome::Delivered, Ok(answer)) => Sent::Acked(answer),
                        (Outcome::Refused, Err(status)) if is_of_batch(status.code()) => Sent::Refused(status),
                        (Outcome::Refused | Outcome::GaveUp, Err(status)) => Sent::GaveUp(status),
                        (outcome, last) => unreachable!("{outcome:?} after {last:?}"),
                    };
                }
            }
        }
    }

    /// Who waits for better days says once what a person has to change.
    fn say_barred(&mut self, endpoint: usize, status: &Status) {
        if self.patient && is_barred(status.code()) && !self.barred_said {
            self.barred_said = true;
            tracing::warn!(
                endpoint = %self.urls[endpoint], code = ?status.code(), error = %describe(status),
                "no batch is taken there: check the address, the tenant and the certificate; batches wait and are sent again"
            );
        }
    }

    /// Whether a node, or what stands before it, does not take packed requests: from now on it gets them plain.
    fn unpack(&mut self, endpoint: usize, status: &Status) -> bool {
        let refused = status.code() == Code::Unimplemented && status.message().contains("compress");
        match self.plain[endpoint].take() {
            Some(plain) if refused => {
                tracing::info!(endpoint = %self.urls[endpoint], "packed batches are not taken there; sending them plain");
                self.clients[endpoint] = plain;
                true
            }
            kept => {
                self.plain[endpoint] = kept;
                false
            }
        }
    }

    async fn attempt(&mut self, endpoint: usize, batch: &v1::WriteRequest) -> Result<v1::WriteResponse, Status> {
        let mut request = Request::new(batch.clone());
        request.metadata_mut().insert(TENANT_KEY, self.tenant.clone());
        match tokio::time::timeout(ANSWER_SPAN_MAX, self.clients[endpoint].write(request)).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded(format!("no answer in {ANSWER_SPAN_MAX:?}"))),
        }
    }
}

/// How long a node asks to be left alone.
fn wait(status: &Status) -> Option<SpanNs> {
    let seconds = || {
        status
            .metadata()
            .get("retry-after")?
            .to_str()
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    };
    let info = retry_info_of(status).map(|d| SpanNs(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)));
    info.or_else(|| seconds().map(|s| SpanNs(s.saturating_mul(1_000_000_000))))
}

/// What a node says of the batch itself; everything else may pass on another node or later.
fn is_of_batch(code: Code) -> bool {
    matches!(code, Code::InvalidArgument | Code::OutOfRange)
}

/// No batch would be taken there, whatever is in it: often a proxy's word, which ends when a person has mended what is wrong.
pub fn is_barred(code: Code) -> bool {
    matches!(
        code,
        Code::NotFound | Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented
    )
}

/// With the cause that tonic hides behind "transport error".
fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(c) = cause {
        let c_text = c.to_string();
        if !text.contains(&c_text) {
            text = format!("{text}: {c_text}");
        }
        cause = c.source();
    }
    if text.is_empty() {
        status.code().to_string()
    } else {
        text
    }
}

/// Samples and lines that an answer confirms of a request.
pub fn acked(request: &v1::WriteRequest, answer: &v1::WriteResponse) -> (u64, u64) {
    if answer.duplicate {
        // An earlier send of ours was stored, though its answer was lost.
        return crate::agent::batcher::items(request);
    }
    (answer.samples, answer.lines)
}

/// This machine's clock.
pub fn now() -> TimestampNs {
    let ns = match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
        Ok(d) => i64::try_from(d.as_nanos()).unwrap_or(i64::MAX),
        Err(e) => -i64::try_from(e.duration().as_nanos()).unwrap_or(i64::MAX),
    };
    TimestampNs(ns)
}

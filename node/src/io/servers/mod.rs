//! The write servers: own gRPC, OTLP over gRPC and HTTP, Prometheus remote write, Loki push.
//!
//! Each reads a request, lets its adapter (`hindcast-ingest`) turn it into a batch, hands that to the [`BatchSink`],
//! and answers in its protocol's words. Parts that may not be stored are refused with a reason while the rest is
//! stored; every refusal is counted. A positive answer is given only for what the sink confirmed.
//!
//! gRPC messages are decoded here and not by tonic, so that malformed ones are `INVALID_ARGUMENT`. Bounds: 4 MiB per
//! request on the wire; decompressed 16 MiB over HTTP and 4 MiB over gRPC (tonic has one limit for both).

mod counters;
mod grpc;
mod http;
#[cfg(test)]
mod tests;

pub use counters::{IngestCounters, IngestSample};
pub use grpc::{
    IngestServer, OtlpLogsServer, OtlpMetricsServer, STREAM_BATCHES_IN_FLIGHT_MAX, ingest_service, otlp_logs_service,
    otlp_metrics_service,
};
pub use http::ingest_router;

use crate::write::{BatchSink, WriteError, Written};
use bytes::Bytes;
use hindcast_env::Clock;
use hindcast_ingest::otlp::{self, DeltaState};
use hindcast_ingest::{AdaptError, Adapted, LimitsContext, OwnerCache, Protocol, Rejections, own, remote_write};
use hindcast_model::ids::BadTenant;
use hindcast_model::{BatchId, Class, Classify, TenantId, TimestampNs};
use parking_lot::Mutex;
use std::sync::Arc;

/// Requests whose labels are looked up at the same time; more wait for a few milliseconds.
const OWNER_CACHES: usize = 4;
/// Refused parts that an answer's text spells out.
const SHOWN_MAX: usize = 5;

/// The oldest instant that a tenant keeps; `None` keeps everything.
pub type FloorOf = Arc<dyn Fn(&TenantId) -> Option<TimestampNs> + Send + Sync>;

/// What the write servers of one node share. Clones share everything.
#[derive(Clone)]
pub struct IngestState {
    pub sink: Arc<dyn BatchSink>,
    pub clock: Arc<dyn Clock>,
    pub floor: FloorOf,
    pub counters: Arc<IngestCounters>,
    owners: Arc<[Mutex<OwnerCache>; OWNER_CACHES]>,
    deltas: Arc<Mutex<DeltaState>>,
}

/// Why a request as a whole was not confirmed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
enum IngestError {
    #[error(transparent)]
    Adapt(#[from] AdaptError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Tenant(#[from] BadTenant),
    #[error("the request's body broke off: {0}")]
    BrokenOff(String),
}

impl Classify for IngestError {
    fn class(&self) -> Class {
        match self {
            Self::Adapt(e) => e.class(),
            Self::Write(e) => e.class(),
            Self::Tenant(_) | Self::BrokenOff(_) => Class::FixRequest,
        }
    }
}

impl IngestError {
    const fn code(&self) -> &'static str {
        match self {
            Self::Adapt(e) => e.code(),
            Self::Write(WriteError::SequenceTooOld { .. }) => "sequence_too_old",
            Self::Write(WriteError::TooLarge { .. }) => "entry_too_large",
            Self::Write(WriteError::QueueFull { .. }) => "queue_full",
            Self::Write(WriteError::DiskFull { .. }) => "disk_full",
            Self::Write(WriteError::NoLeader { .. }) => "no_leader",
            Self::Write(WriteError::Unconfirmed { .. }) => "unconfirmed",
            Self::Write(WriteError::TooOld { .. }) => "batch_too_old",
            Self::Tenant(_) => "bad_tenant",
            Self::BrokenOff(_) => "broken_off",
        }
    }
}

/// A request of which at least the allowed parts are stored.
#[derive(Debug, Default)]
struct Taken {
    written: Written,
    rejected: Rejections,
}

impl IngestState {
    pub fn new(sink: Arc<dyn BatchSink>, clock: Arc<dyn Clock>, floor: FloorOf) -> Self {
        Self {
            sink,
            clock,
            floor,
            counters: Arc::default(),
            owners: Arc::default(),
            deltas: Arc::default(),
        }
    }

    fn limits(&self, tenant: &TenantId) -> LimitsContext {
        LimitsContext {
            now: self.clock.now(),
            floor: (self.floor)(tenant),
        }
    }

    /// The first cache that nobody uses, so that few senders share a warm one.
    fn with_owners<T>(&self, work: impl FnOnce(&mut OwnerCache) -> T) -> T {
        match self.owners.iter().find_map(Mutex::try_lock) {
            Some(mut free) => work(&mut free),
            None => work(&mut self.owners[0].lock()),
        }
    }

    /// A request of our own protocol; the answer's sequence comes back also when it was refused.
    async fn own(&self, tenant: &TenantId, body: &Bytes) -> (u64, Result<Taken, IngestError>) {
        let limits = self.limits(tenant);
        let read = self.with_owners(|owners| own::adapt(tenant, body, &limits, owners));
        match read {
            Ok(request) => (request.seq, self.take(Protocol::Own, Ok(request.adapted)).await),
            Err(why) => (own::seq_of(body), self.take(Protocol::Own, Err(why.into())).await),
        }
    }

    async fn remote_write(&self, tenant: &TenantId, body: &Bytes) -> Result<Taken, IngestError> {
        let limits = self.limits(tenant);
        let read = self.with_owners(|owners| remote_write::adapt(tenant, body, &limits, owners));
        self.take(Protocol::RemoteWrite, read.map_err(Into::into)).await
    }

    /// `wire` is what the id is made of, `request` what was read from it.
    async fn otlp_metrics(
        &self,
        tenant: &TenantId,
        wire: &[u8],
        request: Result<otlp::MetricsRequest, AdaptError>,
    ) -> Result<Taken, IngestError> {
        let limits = self.limits(tenant);
        let read = request.map(|r| otlp::metrics::adapt(tenant, r, &limits, &mut self.deltas.lock()));
        self.take_hashed(Protocol::OtlpMetrics, tenant, wire, read).await
    }

    async fn otlp_logs(
        &self,
        tenant: &TenantId,
        wire: &[u8],
        request: Result<otlp::LogsRequest, AdaptError>,
    ) -> Result<Taken, IngestError> {
        let limits = self.limits(tenant);
        let read = request.map(|r| otlp::logs::adapt(tenant, r, &limits));
        self.take_hashed(Protocol::OtlpLogs, tenant, wire, read).await
    }

    /// Takes a batch of a protocol that has no ids.
    async fn take_hashed(
        &self,
        protocol: Protocol,
        tenant: &TenantId,
        wire: &[u8],
        read: Result<Adapted, AdaptError>,
    ) -> Result<Taken, IngestError> {
        let named = read.map(|mut adapted| {
            adapted.batch.id = Some(BatchId::of_body(tenant, protocol.as_str(), wire));
            adapted
        });
        self.take(protocol, named.map_err(Into::into)).await
    }

    /// Hands on what was read, and counts what became of it.
    async fn take(&self, protocol: Protocol, read: Result<Adapted, IngestError>) -> Result<Taken, IngestError> {
        let taken = match read {
            Ok(Adapted { batch, rejected }) => {
                self.counters.refused(protocol, &rejected);
                // Nothing to store is nothing to commit: an empty request, or one that was refused in all parts.
                let written = if batch.series.is_empty() && batch.streams.is_empty() {
                    Ok(Written::default())
                } else {
                    self.sink.write(batch).await
                };
                written.map(|written| Taken { written, rejected }).map_err(Into::into)
            }
            Err(why) => Err(why),
        };
        match &taken {
            Ok(taken) => self.counters.taken(protocol, &taken.written),
            Err(why) => self.counters.failed(protocol, why.code()),
        }
        taken
    }
}

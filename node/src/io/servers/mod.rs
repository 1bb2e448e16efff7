//! The write servers: own gRPC, OTLP over gRPC and HTTP, Prometheus remote write, Loki push, Influx line protocol, syslog.
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
pub mod kafka;
#[cfg(test)]
mod masking_tests;
pub mod scrape;
pub mod snmp;
pub mod syslog;
pub mod tenants;
#[cfg(test)]
mod tests;

pub use counters::{IngestCounters, IngestSample};
pub use grpc::{
    IngestServer, OtlpLogsServer, OtlpMetricsServer, OtlpTracesServer, STREAM_BATCHES_IN_FLIGHT_MAX, ingest_service,
    otlp_logs_service, otlp_metrics_service, otlp_traces_service, sender_fault,
};
pub use http::ingest_router;

use crate::io::admission::{Admission, IngestPlace, Overload, ingest_cost};
use crate::write::{BatchSink, WriteError, Written};
use bytes::Bytes;
use hindcast_env::Clock;
use hindcast_ingest::new_series::{NewSeries, keep_allowed};
use hindcast_ingest::otlp::{self, Calls, DeltaState, REQUEST_SETS_MAX, RequestTotals, Spans, Ties};
use hindcast_ingest::own::{OwnRequest, SeriesRefs};
use hindcast_ingest::rates::Costs;
use hindcast_ingest::remote_write::Version;
use hindcast_ingest::tenant_limits::Limits;
use hindcast_ingest::{
    AdaptError, Adapted, Books, Bounds, Described, Due, Intake, Laid, LimitsContext, Naming, Protocol, Rejections,
    SeriesCache, influx, loki, own, remote_write,
};
use hindcast_masking::{InForce, Masker};
use hindcast_model::histogram::line_samples;
use hindcast_model::ids::BadTenant;
use hindcast_model::{Batch, BatchId, Class, Classify, LogLine, SpanNs, StreamBlock, TenantId, TimestampNs};
use hindcast_proto::trace::{EXEMPLAR, NATIVE, TRACE_LABEL};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tenants::{SeriesGate, Tenants, TooFastError, costs};

/// Buffers for decompressed bodies that are kept for the next request, and how large a kept one may be.
const BUFFERS_MAX: usize = 8;
const BUFFER_BYTES_KEPT_MAX: usize = 2 * 1024 * 1024;
/// How often request metrics are written.
const REQUESTS_PAUSE: Duration = Duration::from_secs(10);
/// Metadata of a span that is an id: hex digits of a known length, made from the sender's bytes.
const SPAN_IDS: [&str; 3] = ["trace_id", "span_id", "parent_span_id"];
/// By how much the write of what requests say of their metrics may delay an answer, and how long none is tried after one that
/// could not be written so soon.
const DESCRIBE_SPAN_MAX: Duration = Duration::from_millis(250);
const DESCRIBE_PAUSE: SpanNs = SpanNs::from_secs(60);
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
    cache: Arc<SeriesCache>,
    buffers: Arc<Mutex<Vec<Vec<u8>>>>,
    deltas: Arc<Mutex<DeltaState>>,
    ties: Arc<Mutex<Ties>>,
    requests: Arc<Mutex<RequestTotals>>,
    described: Arc<Described>,
    /// Monotonic: descriptions are not written before, since one could not be.
    describe_from: Arc<Mutex<Option<SpanNs>>>,
    admission: Option<Admission>,
    /// What of lines is hidden: all shipped types, until whoever shares it puts other settings in force.
    pub masking: Arc<InForce>,
    /// What tenants may write: anything, until whoever shares it puts limits in force.
    pub tenants: Arc<Tenants>,
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
    #[error(transparent)]
    Overload(#[from] Overload),
    #[error(transparent)]
    TooFast(#[from] TooFastError),
}

impl Classify for IngestError {
    fn class(&self) -> Class {
        match self {
            Self::Adapt(e) => e.class(),
            Self::Write(e) => e.class(),
            Self::Overload(e) => e.class(),
            Self::TooFast(e) => e.class(),
            Self::Tenant(_) | Self::BrokenOff(_) => Class::FixRequest,
        }
    }

    fn retry_after(&self) -> Option<SpanNs> {
        match self {
            Self::TooFast(e) => e.retry_after(),
            _ => None,
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
            Self::Write(WriteError::MemoryFull { .. }) => "memory_full",
            Self::Overload(_) => "overload",
            Self::TooFast(_) => "too_fast",
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
    /// Samples, native histograms and exemplars that are stored, also when they were before.
    samples: u64,
    histograms: u64,
    exemplars: u64,
}

/// What a request has beside its rows.
#[derive(Debug, Default)]
struct Beside {
    due: Due,
    exemplars: u64,
    exemplars_left_out: u64,
}

/// A request of our own protocol that was read, and what it takes to read it again.
struct ReadOwn {
    seq: u64,
    read: Result<OwnRequest, AdaptError>,
    body: Bytes,
    limits: LimitsContext,
    refs: Arc<Mutex<SeriesRefs>>,
    gate: Option<SeriesGate>,
}

fn costs_of(batch: &Batch) -> Costs {
    costs(batch.samples() + natives(batch), log_bytes(batch))
}

fn is_of_exemplars(stream: &StreamBlock) -> bool {
    stream.labels.get(TRACE_LABEL) == Some(EXEMPLAR)
}

/// Bytes of a batch's lines with their metadata, as limits count them: without exemplars, which are none that anybody writes.
fn log_bytes(batch: &Batch) -> usize {
    let streams = batch.streams.iter();
    let lines = streams
        .filter(|s| !is_native(&s.labels) && !is_of_exemplars(s))
        .flat_map(|s| &s.lines);
    let of = |l: &LogLine| l.line.len() + l.metadata.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>();
    lines.map(of).sum()
}

/// Whether the lines of a stream are native histograms.
fn is_native(stream: &hindcast_model::Labels) -> bool {
    stream.get(TRACE_LABEL) == Some(NATIVE)
}

/// What the native histograms of a batch count as: samples, by their size.
fn natives(batch: &Batch) -> u64 {
    let natives = batch.streams.iter().filter(|s| is_native(&s.labels));
    natives.flat_map(|s| &s.lines).map(|l| line_samples(&l.line)).sum()
}

/// Takes out the ids of spans, with their places. They are nobody's data, and some of them look like the number of a card:
/// masked, a span would lose its parent.
fn take_ids_of_spans(stream: &mut StreamBlock) -> Vec<(usize, usize, String)> {
    if stream.labels.get(TRACE_LABEL).is_none() {
        return vec![];
    }
    let mut ids = vec![];
    for (line, l) in stream.lines.iter_mut().enumerate() {
        let entries = l.metadata.iter_mut().enumerate();
        let found = entries.filter(|(_, (name, _))| SPAN_IDS.contains(&name.as_str()));
        ids.extend(found.map(|(entry, (_, id))| (line, entry, std::mem::take(id))));
    }
    ids
}

impl IngestState {
    pub fn new(sink: Arc<dyn BatchSink>, clock: Arc<dyn Clock>, floor: FloorOf) -> Self {
        let requests = RequestTotals::new(clock.now(), "", REQUEST_SETS_MAX);
        Self {
            sink,
            clock,
            floor,
            counters: Arc::default(),
            cache: Arc::default(),
            buffers: Arc::default(),
            deltas: Arc::default(),
            ties: Arc::default(),
            requests: Arc::new(Mutex::new(requests)),
            described: Arc::default(),
            describe_from: Arc::default(),
            admission: None,
            masking: Arc::default(),
            tenants: Arc::default(),
        }
    }

    /// Batches of streams are let in one by one. (Single requests are let in before they come here.)
    pub fn with_admission(self, admission: Admission) -> Self {
        Self {
            admission: Some(admission),
            ..self
        }
    }

    /// Request metrics carry the node's name: each node counts what it takes.
    pub fn counting_as(self, collector: &str) -> Self {
        let requests = RequestTotals::new(self.clock.now(), collector, REQUEST_SETS_MAX);
        Self {
            requests: Arc::new(Mutex::new(requests)),
            ..self
        }
    }

    async fn let_in(&self, bytes: usize) -> Result<Option<IngestPlace>, Overload> {
        match &self.admission {
            Some(admission) => admission.ingest(ingest_cost(Some(bytes), false)).await.map(Some),
            None => Ok(None),
        }
    }

    fn limits(&self, tenant: &TenantId) -> LimitsContext {
        LimitsContext {
            now: self.clock.now(),
            floor: (self.floor)(tenant),
            bounds: self.tenants.bounds(tenant),
        }
    }

    /// Puts limits of tenants in force. What is known was checked against those before, so it is forgotten if they differ.
    pub fn limit(&self, limits: Limits) {
        if self.tenants.replace(limits) {
            self.cache.forget();
        }
    }

    fn charge(&self, tenant: &TenantId, costs: &Costs) -> Result<(), TooFastError> {
        self.tenants.charge(tenant, costs, self.clock.monotonic())
    }

    fn charge_batch(&self, batch: &Batch) -> Result<(), TooFastError> {
        self.charge(&batch.tenant, &costs_of(batch))
    }

    fn refused(&self, protocol: Protocol, tenant: &TenantId, rejected: &Rejections) {
        if !rejected.is_empty() {
            self.counters.refused(protocol, rejected);
            self.tenants.refused_items(tenant, rejected);
        }
    }

    fn gate(&self, tenant: &TenantId) -> Option<SeriesGate> {
        self.tenants.gate(tenant, &self.sink, &self.clock)
    }

    /// `gate`: for new series, where there is a limit.
    fn books<'a>(&'a self, naming: Naming, masker: Option<&'a Masker>, gate: Option<&'a SeriesGate>) -> Books<'a> {
        Books {
            ids: self.sink.ids(),
            cache: &self.cache,
            described: &self.described,
            naming,
            masker,
            new_series: gate.map(|g| g as &dyn NewSeries),
        }
    }

    /// Takes those new series out of a batch for which its tenant has no room.
    fn keep_allowed(&self, batch: &mut Batch, rejected: &mut Rejections) {
        if let Some(gate) = self.gate(&batch.tenant) {
            keep_allowed(self.sink.ids(), &gate, batch, rejected);
        }
    }

    /// Masks the lines and resources of a batch that came as label sets, and cuts lines where they are to be cut: only then nothing of
    /// what is hidden lies across the cut. `mark` says so in the metadata.
    fn mask(&self, batch: &mut Batch, bounds: &Bounds, mark: Option<&str>) {
        self.mask_whole(batch);
        // The line of an exemplar names a series, and that of a histogram is one: a part of it would be none.
        let lines = batch
            .streams
            .iter_mut()
            .filter(|s| !is_native(&s.labels) && !is_of_exemplars(s));
        let cut = lines.map(|s| bounds.cut_lines(&mut s.lines, mark));
        self.tenants.cut(cut.sum());
    }

    fn mask_whole(&self, batch: &mut Batch) {
        let masking = self.masking.current();
        let Some(masker) = masking.of(&batch.tenant) else {
            return;
        };
        let mut session = masker.session();
        // Numbers are nobody's data: nothing of a native histogram is masked.
        let of_lines = batch.streams.iter_mut().filter(|s| !is_native(&s.labels));
        for stream in of_lines {
            let ids = take_ids_of_spans(stream);
            let mut series = vec![];
            if is_of_exemplars(stream) {
                // A series is named as it is stored, and labels of metrics are not masked.
                series.extend(stream.lines.iter_mut().map(|l| std::mem::take(&mut l.line)));
            }
            session.lines(&mut stream.lines);
            for (line, series) in stream.lines.iter_mut().zip(series) {
                line.line = series;
            }
            for (line, entry, id) in ids {
                stream.lines[line].metadata[entry].1 = id;
            }
        }
        session.resources(&mut batch.resources);
    }

    /// Lends a buffer. What was used for a very large body is not kept.
    fn with_buffer<T>(&self, work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let mut buffer = self.buffers.lock().pop().unwrap_or_default();
        let done = work(&mut buffer);
        let mut kept = self.buffers.lock();
        if buffer.capacity() <= BUFFER_BYTES_KEPT_MAX && kept.len() < BUFFERS_MAX {
            kept.push(buffer);
        }
        done
    }

    /// Reads a request of our own protocol. Of one stream they are read in their order: names that one gives hold
    /// for those after it.
    fn read_own(&self, tenant: &TenantId, body: Bytes, refs: Arc<Mutex<SeriesRefs>>) -> ReadOwn {
        let limits = self.limits(tenant);
        let masking = self.masking.current();
        let gate = self.gate(tenant);
        let books = self.books(Naming::Known, masking.of(tenant), gate.as_ref());
        let read = own::adapt(tenant, &body, &limits, &books, &mut refs.lock());
        ReadOwn {
            seq: read.as_ref().map_or_else(|_| own::seq_of(&body), |r| r.seq),
            read,
            body,
            limits,
            refs,
            gate,
        }
    }

    /// A request of our own protocol; the answer's sequence comes back also when it was refused.
    async fn own(&self, tenant: &TenantId, request: ReadOwn) -> (u64, Result<Taken, IngestError>) {
        let ReadOwn {
            seq,
            read,
            body,
            limits,
            refs,
            gate,
        } = request;
        let redo = || {
            let masking = self.masking.current();
            let books = self.books(Naming::Defined, masking.of(tenant), gate.as_ref());
            own::adapt(tenant, &body, &limits, &books, &mut refs.lock()).map(|r| r.laid)
        };
        let taken = self
            .take_laid(Protocol::Own, &limits.bounds, read.map(|r| r.laid), redo)
            .await;
        (seq, taken)
    }

    async fn remote_write(&self, version: Version, tenant: &TenantId, body: &Bytes) -> Result<Taken, IngestError> {
        let limits = self.limits(tenant);
        let gate = self.gate(tenant);
        let read = |naming| {
            let masking = self.masking.current();
            let books = self.books(naming, masking.of(tenant), gate.as_ref());
            self.with_buffer(|buffer| remote_write::adapt(version, tenant, body, &limits, &books, buffer))
        };
        self.take_laid(Protocol::RemoteWrite, &limits.bounds, read(Naming::Known), || {
            read(Naming::Defined)
        })
        .await
    }

    async fn loki_protobuf(&self, tenant: &TenantId, body: &Bytes) -> Result<Taken, IngestError> {
        let limits = self.limits(tenant);
        let read = |naming| {
            let masking = self.masking.current();
            let books = self.books(naming, masking.of(tenant), None);
            self.with_buffer(|buffer| loki::adapt_protobuf(tenant, body, &limits, &books, buffer))
        };
        self.take_laid(Protocol::Loki, &limits.bounds, read(Naming::Known), || {
            read(Naming::Defined)
        })
        .await
    }

    /// Hands on what was laid out, counts what became of it, and remembers its series once they are stored. `again`
    /// lays the same request out with everything defined.
    async fn take_laid(
        &self,
        protocol: Protocol,
        bounds: &Bounds,
        laid: Result<Laid, AdaptError>,
        again: impl Fn() -> Result<Laid, AdaptError> + Send + Sync,
    ) -> Result<Taken, IngestError> {
        let taken = match laid {
            Err(why) => Err(why.into()),
            Ok(Laid {
                intake,
                rejected,
                lessons,
                native,
                due,
                exemplars,
                exemplars_left_out,
                lines_cut,
            }) => {
                let tenant = intake.tenant.clone();
                // A histogram is some samples, not a line.
                let costs = costs(intake.samples + native.samples, intake.text_bytes() - native.bytes);
                if let Err(why) = self.charge(&tenant, &costs) {
                    self.counters.failed(protocol, "too_fast");
                    return Err(why.into());
                }
                self.refused(protocol, &tenant, &rejected);
                self.tenants.cut(lines_cut);
                let samples = intake.samples;
                // Nothing to store is nothing to commit: an empty request, or one that was refused in all parts.
                let written = if intake.is_empty() {
                    Ok(Written::default())
                } else {
                    let empty = Intake::new(tenant.clone(), intake.id);
                    // What could be read once can be read again.
                    let redo = || again().map_or_else(|_| empty.clone(), |laid| laid.intake);
                    self.sink.write_intake(intake, &redo).await
                };
                if written.is_err() {
                    self.tenants.give_back(&tenant, &costs);
                }
                if written.is_ok() && !lessons.is_empty() {
                    lessons.learn(&tenant, &self.books(Naming::Known, None, None));
                    if self.tenants.bounds(&tenant) != *bounds {
                        // Limits were changed meanwhile: these were checked against the old ones.
                        self.cache.forget();
                    }
                }
                if written.is_ok() {
                    let beside = Beside {
                        due,
                        exemplars,
                        exemplars_left_out,
                    };
                    self.beside(&tenant, beside).await;
                }
                let taken = |written| Taken {
                    written,
                    rejected,
                    samples,
                    histograms: native.histograms,
                    exemplars,
                };
                written.map(taken).map_err(Into::into)
            }
        };
        self.count(protocol, &taken);
        taken
    }

    /// Writes what a request says of its metrics, after its rows are stored. When that fails, nothing is lost: the sender says it again,
    /// and so the request is answered as it would be without, [`DESCRIBE_SPAN_MAX`] later at most: descriptions lie on other shards
    /// than the rows, and one that is away must not hold up senders whose own shards are well.
    async fn beside(&self, tenant: &TenantId, beside: Beside) {
        let Beside {
            due,
            exemplars,
            exemplars_left_out,
        } = beside;
        let mut written = 0;
        let began = self.clock.monotonic();
        let is_paused = self.describe_from.lock().is_some_and(|from| began < from);
        if !due.is_empty() && !is_paused {
            let now = self.clock.now();
            let write = self.sink.write(due.batch(tenant, now));
            match tokio::time::timeout(DESCRIBE_SPAN_MAX, write).await {
                Ok(Ok(_)) => {
                    self.described.learn(tenant, &due, now);
                    written = due.len() as u64;
                }
                // Of this request alone; others may be taken.
                Ok(Err(why)) if matches!(why.class(), Class::FixRequest | Class::TooLarge) => {}
                _ => *self.describe_from.lock() = Some(SpanNs(began.0 + DESCRIBE_PAUSE.0)),
            }
        }
        self.counters
            .metadata(written, due.left_out + due.len() as u64 - written);
        self.counters.exemplars(exemplars, exemplars_left_out);
    }

    fn count(&self, protocol: Protocol, taken: &Result<Taken, IngestError>) {
        match taken {
            Ok(taken) => self.counters.taken(protocol, &taken.written),
            Err(why) => self.counters.failed(protocol, why.code()),
        }
    }

    /// `wire` is what the id is made of, `request` what was read from it.
    async fn otlp_metrics(
        &self,
        tenant: &TenantId,
        wire: &[u8],
        request: Result<otlp::MetricsRequest, AdaptError>,
    ) -> Result<Taken, IngestError> {
        let limits = self.limits(tenant);
        let mut beside = Beside::default();
        let read = request.map(|r| {
            let exemplars = otlp::metrics::describe(tenant, &r, &limits, &self.described, &mut beside.due);
            let adapted = otlp::metrics::adapt(tenant, r, &limits, &mut self.deltas.lock());
            let lines: u64 = adapted.batch.streams.iter().map(|s| s.lines.len() as u64).sum();
            // There are no other lines of metrics.
            beside.exemplars = lines - natives(&adapted.batch);
            beside.exemplars_left_out = exemplars - beside.exemplars;
            adapted
        });
        let taken = self.take_hashed(Protocol::OtlpMetrics, tenant, wire, read).await;
        if taken.is_ok() {
            self.beside(tenant, beside).await;
        }
        taken
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

    async fn otlp_traces(
        &self,
        tenant: &TenantId,
        wire: &[u8],
        request: Result<otlp::TracesRequest, AdaptError>,
    ) -> Result<Taken, IngestError> {
        let limits = self.limits(tenant);
        let read = request.map(|r| otlp::spans::adapt(tenant, r, &limits).tied(&mut self.ties.lock()));
        let (read, calls) = match read {
            Ok(Spans { adapted, calls }) => (Ok(adapted), calls),
            Err(why) => (Err(why), vec![]),
        };
        let taken = self.take_hashed(Protocol::OtlpTraces, tenant, wire, read).await;
        // What was stored before was counted before.
        if taken.as_ref().is_ok_and(|t| !t.written.duplicate) {
            self.count_requests(tenant, calls);
        }
        taken
    }

    /// Counts the requests of stored spans. Names become labels, which nothing masks later.
    fn count_requests(&self, tenant: &TenantId, mut calls: Vec<Calls>) {
        let masking = self.masking.current();
        if let Some(masker) = masking.of(tenant) {
            let mut session = masker.session();
            for call in calls.iter_mut().flat_map(|of| &mut of.calls) {
                if let Some(masked) = session.mask_str(&call.name) {
                    call.name = masked.to_owned();
                }
            }
        }
        let mut requests = self.requests.lock();
        requests.add(tenant, calls, self.clock.now());
        self.counters.uncounted_spans(requests.uncounted());
    }

    /// Writes the request metrics that changed. What could not be written is due again.
    async fn write_requests(&self) {
        loop {
            let due = self.requests.lock().due(self.clock.now());
            let Some(batch) = due else { return };
            let written = self.sink.write(batch).await;
            self.requests.lock().settled(written.is_ok());
            match written {
                Ok(written) => self.counters.derived(Protocol::OtlpTraces, &written),
                Err(_) => return,
            }
        }
    }

    /// Writes request metrics for as long as the node runs.
    pub async fn write_requests_regularly(self) {
        loop {
            tokio::time::sleep(REQUESTS_PAUSE).await;
            self.write_requests().await;
        }
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

    /// A decompressed body of line protocol. Texts among its values are counted and nobody's fault.
    async fn influx(
        &self,
        tenant: &TenantId,
        body: Result<Bytes, AdaptError>,
        precision: influx::Precision,
    ) -> Result<Taken, IngestError> {
        let limits = self.limits(tenant);
        let read = body.and_then(|body| influx::adapt(tenant, &body, precision, &limits));
        let mut texts = Rejections::default();
        let read = read.map(|read| {
            texts = read.texts;
            read.adapted
        });
        let taken = self.take(Protocol::Influx, read.map_err(Into::into)).await;
        if taken.is_ok() {
            // What comes again is counted then.
            self.refused(Protocol::Influx, tenant, &texts);
        }
        taken
    }

    /// Hands on what was read, and counts what became of it.
    async fn take(&self, protocol: Protocol, read: Result<Adapted, IngestError>) -> Result<Taken, IngestError> {
        let taken = match read {
            Ok(Adapted {
                mut batch,
                mut rejected,
            }) => {
                self.keep_allowed(&mut batch, &mut rejected);
                let bounds = self.tenants.bounds(&batch.tenant);
                self.mask(&mut batch, &bounds, None);
                let (tenant, costs) = (batch.tenant.clone(), costs_of(&batch));
                if let Err(why) = self.charge(&tenant, &costs) {
                    self.counters.failed(protocol, "too_fast");
                    return Err(why.into());
                }
                self.refused(protocol, &tenant, &rejected);
                // Nothing to store is nothing to commit: an empty request, or one that was refused in all parts.
                let written = if batch.series.is_empty() && batch.streams.is_empty() {
                    Ok(Written::default())
                } else {
                    self.sink.write(batch).await
                };
                if written.is_err() {
                    self.tenants.give_back(&tenant, &costs);
                }
                let taken = |written: Written| Taken {
                    samples: written.samples,
                    written,
                    rejected,
                    histograms: 0,
                    exemplars: 0,
                };
                written.map(taken).map_err(Into::into)
            }
            Err(why) => Err(why),
        };
        self.count(protocol, &taken);
        taken
    }
}

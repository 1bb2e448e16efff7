//! The gRPC services. Messages arrive here as bytes: see the module above.

use super::{IngestError, IngestState, SHOWN_MAX, Taken};
use crate::io::admission::Overload;
use bytes::{Buf, Bytes};
use futures::{StreamExt, stream};
use hindcast_ingest::own::SeriesRefs;
use hindcast_ingest::{AdaptError, Protocol, otlp};
use hindcast_model::limits::REQUEST_WIRE_BYTES_MAX;
use hindcast_model::{Classify, TenantId};
use hindcast_proto::edge;
use hindcast_proto::v1;
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsPartialSuccess, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsPartialSuccess, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceResponse};
use parking_lot::Mutex;
use prost::Message;
use std::convert::Infallible;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::{Request as HttpRequest, Response as HttpResponse};
use tonic::codegen::{Body as HttpBody, BoxFuture, Service, StdError};
use tonic::server::{Grpc, NamedService};
use tonic::{Code, Request, Response, Status, Streaming};

/// Batches of one `WriteStream` that wait for their confirmation at the same time. The next is read when the oldest
/// was answered.
pub const STREAM_BATCHES_IN_FLIGHT_MAX: usize = 32;

/// `hindcast.v1.Ingest`.
pub fn ingest_service(state: IngestState) -> IngestServer {
    IngestServer { state }
}

/// OTLP's `MetricsService`.
pub fn otlp_metrics_service(state: IngestState) -> OtlpMetricsServer {
    OtlpMetricsServer { state }
}

/// OTLP's `LogsService`.
pub fn otlp_logs_service(state: IngestState) -> OtlpLogsServer {
    OtlpLogsServer { state }
}

/// OTLP's `TraceService`.
pub fn otlp_traces_service(state: IngestState) -> OtlpTracesServer {
    OtlpTracesServer { state }
}

/// Takes messages as bytes, gives answers as prost messages.
struct BytesIn<M>(PhantomData<M>);

impl<M> Default for BytesIn<M> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<M: Message + Send + 'static> Codec for BytesIn<M> {
    type Encode = M;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self::default()
    }
    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl<M: Message> Encoder for BytesIn<M> {
    type Item = M;
    type Error = Status;
    fn encode(&mut self, item: M, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer).map_err(|e| Status::internal(e.to_string()))
    }
}

impl<M> Decoder for BytesIn<M> {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

fn grpc<M: Message + Send + 'static>() -> Grpc<BytesIn<M>> {
    Grpc::new(BytesIn::default())
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Zstd)
        .max_decoding_message_size(REQUEST_WIRE_BYTES_MAX)
}

/// What tonic found wrong with a message before it came to us: the sender's fault, and said so.
pub fn sender_fault(status: &Status) -> Option<(&'static str, String)> {
    let text = status.message();
    match status.code() {
        Code::OutOfRange => Some(("wire_too_large", text.to_owned())),
        Code::ResourceExhausted if text.contains("decompressing") => Some(("decoded_too_large", text.to_owned())),
        Code::Internal if text.contains("decompressing") || text.contains("compression") => {
            Some(("compression", text.to_owned()))
        }
        Code::Internal if text.contains("Unexpected EOF") => Some((
            "broken_off",
            "the message is shorter than its frame says; send it again".to_owned(),
        )),
        Code::Internal if text.contains("Missing request message") => {
            Some(("malformed", "the call has no message".to_owned()))
        }
        Code::Internal if text.contains("decode Protobuf") => Some(("malformed", text.to_owned())),
        _ => None,
    }
}

impl IngestState {
    /// tonic answers malformed frames with codes that tell the client to retry, or that blame the server.
    fn corrected(&self, protocol: Protocol, response: HttpResponse<Body>) -> HttpResponse<Body> {
        let fault = Status::from_header_map(response.headers()).and_then(|s| sender_fault(&s));
        match fault {
            None => response,
            Some((code, text)) => {
                self.counters.failed(protocol, code);
                Status::invalid_argument(text).into_http()
            }
        }
    }

    fn tenant(&self, protocol: Protocol, request: &tonic::metadata::MetadataMap) -> Result<TenantId, Status> {
        edge::tenant_of_metadata(request).inspect_err(|_| self.counters.failed(protocol, "bad_tenant"))
    }

    async fn write(self, request: Request<Bytes>) -> Result<Response<v1::WriteResponse>, Status> {
        let tenant = self.tenant(Protocol::Own, request.metadata())?;
        let read = self.read_own(&tenant, request.into_inner(), Arc::default());
        let (seq, taken) = self.own(&tenant, read).await;
        let taken = taken.map_err(|e| edge::status(&e))?;
        Ok(Response::new(answer(seq, taken)))
    }

    async fn write_stream(
        self,
        request: Request<Streaming<Bytes>>,
    ) -> Result<Response<stream::BoxStream<'static, Result<v1::WriteResponse, Status>>>, Status> {
        let tenant = self.tenant(Protocol::Own, request.metadata())?;
        let refs = Arc::<Mutex<SeriesRefs>>::default();
        let door = self.clone();
        let let_in = move |message: Result<Bytes, Status>| {
            let door = door.clone();
            async move {
                let body = message?;
                let place = door.let_in(body.len()).await;
                Ok((body, place))
            }
        };
        let one = move |message: Result<(Bytes, Result<_, Overload>), Status>| {
            let (state, tenant) = (self.clone(), tenant.clone());
            // Read here and not in the future: futures of one stream may run in any order.
            let read = message.map(|(body, place)| match place {
                Ok(place) => Ok((state.read_own(&tenant, body, refs.clone()), place)),
                // The names that it gives are given again with its retry, on whichever stream that comes.
                Err(why) => Err((hindcast_ingest::own::seq_of(&body), why)),
            });
            async move {
                match read {
                    Ok(Err((seq, why))) => {
                        state.counters.failed(Protocol::Own, "overload");
                        Ok(not_confirmed(seq, &why.into()))
                    }
                    Ok(Ok((read, _place))) => {
                        let (seq, taken) = state.own(&tenant, read).await;
                        Ok(taken.map_or_else(|e| not_confirmed(seq, &e), |t| answer(seq, t)))
                    }
                    // The frame itself is broken: what follows cannot be told apart any more, the stream ends.
                    Err(why) => match sender_fault(&why) {
                        Some((code, text)) => {
                            state.counters.failed(Protocol::Own, code);
                            Err(Status::invalid_argument(text))
                        }
                        None => Err(why),
                    },
                }
            }
        };
        // `buffered` keeps the order of the requests.
        let batches = request.into_inner().then(let_in);
        let answers = batches.map(one).buffered(STREAM_BATCHES_IN_FLIGHT_MAX);
        Ok(Response::new(answers.boxed()))
    }

    async fn export_metrics(self, request: Request<Bytes>) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let tenant = self.tenant(Protocol::OtlpMetrics, request.metadata())?;
        let body = request.get_ref();
        let read = otlp::from_protobuf(Protocol::OtlpMetrics, body);
        let taken = self.otlp_metrics(&tenant, body, read).await;
        Ok(Response::new(metrics_answer(&taken.map_err(|e| edge::status(&e))?)))
    }

    async fn export_logs(self, request: Request<Bytes>) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let tenant = self.tenant(Protocol::OtlpLogs, request.metadata())?;
        let body = request.get_ref();
        let read = otlp::from_protobuf(Protocol::OtlpLogs, body);
        let taken = self.otlp_logs(&tenant, body, read).await;
        Ok(Response::new(logs_answer(&taken.map_err(|e| edge::status(&e))?)))
    }

    async fn export_traces(self, request: Request<Bytes>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let tenant = self.tenant(Protocol::OtlpTraces, request.metadata())?;
        let body = request.get_ref();
        let read = otlp::from_protobuf(Protocol::OtlpTraces, body);
        let taken = self.otlp_traces(&tenant, body, read).await;
        Ok(Response::new(traces_answer(&taken.map_err(|e| edge::status(&e))?)))
    }
}

fn answer(seq: u64, taken: Taken) -> v1::WriteResponse {
    let rejected = taken.rejected.listed().iter().map(|r| v1::Rejected {
        what: r.what.clone(),
        items: r.items,
        why: r.why.clone(),
    });
    v1::WriteResponse {
        seq,
        samples: taken.written.samples,
        lines: taken.written.lines,
        duplicate: taken.written.duplicate,
        rejected: rejected.collect(),
        ..Default::default()
    }
}

fn not_confirmed(seq: u64, why: &IngestError) -> v1::WriteResponse {
    v1::WriteResponse {
        seq,
        status: edge::grpc_code(why.class()) as i32,
        message: why.to_string(),
        ..Default::default()
    }
}

pub(super) fn metrics_answer(taken: &Taken) -> ExportMetricsServiceResponse {
    let rejected = &taken.rejected;
    ExportMetricsServiceResponse {
        partial_success: (!rejected.is_empty()).then(|| ExportMetricsPartialSuccess {
            rejected_data_points: rejected.items() as i64,
            error_message: rejected.summary(SHOWN_MAX),
        }),
    }
}

pub(super) fn logs_answer(taken: &Taken) -> ExportLogsServiceResponse {
    let rejected = &taken.rejected;
    ExportLogsServiceResponse {
        partial_success: (!rejected.is_empty()).then(|| ExportLogsPartialSuccess {
            rejected_log_records: rejected.items() as i64,
            error_message: rejected.summary(SHOWN_MAX),
        }),
    }
}

pub(super) fn traces_answer(taken: &Taken) -> ExportTraceServiceResponse {
    let rejected = &taken.rejected;
    ExportTraceServiceResponse {
        partial_success: (!rejected.is_empty()).then(|| ExportTracePartialSuccess {
            rejected_spans: rejected.items() as i64,
            error_message: rejected.summary(SHOWN_MAX),
        }),
    }
}

macro_rules! server {
    ($(#[$doc:meta])* $server:ident, $name:literal, $protocol:expr,
     unary { $($path:literal => $method:ident -> $answer:ty),* },
     streaming { $($stream_path:literal => $stream_method:ident -> $stream_answer:ty),* }) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $server {
            state: IngestState,
        }

        impl NamedService for $server {
            const NAME: &'static str = $name;
        }

        impl<B> Service<HttpRequest<B>> for $server
        where
            B: HttpBody + Send + 'static,
            B::Error: Into<StdError> + Send + 'static,
        {
            type Response = HttpResponse<Body>;
            type Error = Infallible;
            type Future = BoxFuture<HttpResponse<Body>, Infallible>;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, request: HttpRequest<B>) -> Self::Future {
                let state = self.state.clone();
                match request.uri().path() {
                    $(concat!("/", $name, "/", $path) => Box::pin(async move {
                        let inner = state.clone();
                        let method = tower::service_fn(move |r| inner.clone().$method(r));
                        let response = grpc::<$answer>().unary(method, request).await;
                        Ok(state.corrected($protocol, response))
                    }),)*
                    $(concat!("/", $name, "/", $stream_path) => Box::pin(async move {
                        let method = tower::service_fn(move |r| state.clone().$stream_method(r));
                        Ok(grpc::<$stream_answer>().streaming(method, request).await)
                    }),)*
                    other => {
                        let answer = Status::unimplemented(format!("{other} is no method of this service"));
                        Box::pin(async move { Ok(answer.into_http()) })
                    }
                }
            }
        }
    };
}

server! {
    /// `hindcast.v1.Ingest`: `Write` and `WriteStream`.
    IngestServer, "hindcast.v1.Ingest", Protocol::Own,
    unary { "Write" => write -> v1::WriteResponse },
    streaming { "WriteStream" => write_stream -> v1::WriteResponse }
}

server! {
    /// OTLP metrics.
    OtlpMetricsServer, "opentelemetry.proto.collector.metrics.v1.MetricsService", Protocol::OtlpMetrics,
    unary { "Export" => export_metrics -> ExportMetricsServiceResponse },
    streaming {}
}

server! {
    /// OTLP logs.
    OtlpLogsServer, "opentelemetry.proto.collector.logs.v1.LogsService", Protocol::OtlpLogs,
    unary { "Export" => export_logs -> ExportLogsServiceResponse },
    streaming {}
}

server! {
    /// OTLP spans.
    OtlpTracesServer, "opentelemetry.proto.collector.trace.v1.TraceService", Protocol::OtlpTraces,
    unary { "Export" => export_traces -> ExportTraceServiceResponse },
    streaming {}
}

/// The error of a body that is larger than a request may be.
pub(super) fn wire_too_large() -> IngestError {
    IngestError::Adapt(AdaptError::WireTooLarge {
        bytes_max: REQUEST_WIRE_BYTES_MAX,
    })
}

//! Bodies of requests that must keep coming: one that stalls would hold its place at the door, and keep others out.
//!
//! Who was too slow is told to come again, with codes that senders obey: they drop what they hear 408 for.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use hyper::header::{CONNECTION, HeaderValue, RETRY_AFTER};
use hyper::{Request, StatusCode};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// How long the next piece of a body may take.
const PIECE_SPAN_MAX: Duration = Duration::from_secs(10);
/// How long all of a body may take, beside what its bytes take at [`BYTES_PER_SECOND_MIN`].
const BODY_SPAN_MAX: Duration = Duration::from_secs(60);
const BYTES_PER_SECOND_MIN: u32 = 16 * 1024;

fn words() -> String {
    format!(
        "the rest of the body did not come in time: pieces may be {PIECE_SPAN_MAX:?} apart, and after {BODY_SPAN_MAX:?} {} KiB a second must have come; send it again",
        BYTES_PER_SECOND_MIN / 1024
    )
}

/// Fails when it stalls, and says so to whoever holds `late`.
struct Paced<B> {
    inner: B,
    late: Arc<AtomicBool>,
    bytes: u32,
    /// When the body was first waited for.
    began: Option<Instant>,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl<B> HttpBody for Paced<B>
where
    B: HttpBody<Data = Bytes, Error = hyper::Error> + Unpin,
{
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(context) {
            self.alarm = None;
            if let Some(Ok(frame)) = &frame {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                self.bytes = self.bytes.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
            }
            return Poll::Ready(frame.map(|f| f.map_err(Into::into)));
        }
        let now = Instant::now();
        let came = Duration::from_secs(1) * self.bytes / BYTES_PER_SECOND_MIN;
        let end = *self.began.get_or_insert(now) + BODY_SPAN_MAX + came;
        let alarm = self
            .alarm
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end.min(now + PIECE_SPAN_MAX))));
        if alarm.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        self.late.store(true, Relaxed);
        // What a call of gRPC is answered.
        Poll::Ready(Some(Err(tonic::Status::unavailable(words()).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Answers a request whose body must keep coming. When it does not, the answer has the code for that, whatever a handler made of it.
pub async fn in_time<F>(
    request: Request<hyper::body::Incoming>,
    is_grpc: bool,
    app: impl FnOnce(Request<Body>) -> F,
) -> Response
where
    F: Future<Output = Response>,
{
    let late = Arc::<AtomicBool>::default();
    let request = request.map(|inner| {
        Body::new(Paced {
            inner,
            late: late.clone(),
            bytes: 0,
            began: None,
            alarm: None,
        })
    });
    let mut response = app(request).await;
    if late.load(Relaxed) && !is_grpc && !response.status().is_success() {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        let headers = response.headers_mut();
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        // What is still to come belongs to no request.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

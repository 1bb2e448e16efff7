//! Bodies of requests that must keep coming: one that stalls would hold its place at the door, and keep others out.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
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
/// How long all of a body may take: the largest one, at 70 kB/s.
const BODY_SPAN_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
#[error(
    "the rest of the body did not come in time: pieces may be {PIECE_SPAN_MAX:?} apart, all of it may take {BODY_SPAN_MAX:?}; send it again"
)]
struct Late;

/// Fails when it stalls, and says so to whoever holds `late`.
struct Paced<B> {
    inner: B,
    late: Arc<AtomicBool>,
    /// Set when the body is first waited for.
    end: Option<Instant>,
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
            return Poll::Ready(frame.map(|f| f.map_err(Into::into)));
        }
        let now = Instant::now();
        let end = *self.end.get_or_insert(now + BODY_SPAN_MAX);
        let alarm = self
            .alarm
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(end.min(now + PIECE_SPAN_MAX))));
        if alarm.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        self.late.store(true, Relaxed);
        Poll::Ready(Some(Err(Late.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Answers a request whose body must keep coming. When it does not, the answer has the code for that, whatever a handler made of it.
pub async fn in_time<F>(request: Request<hyper::body::Incoming>, app: impl FnOnce(Request<Body>) -> F) -> Response
where
    F: Future<Output = Response>,
{
    let late = Arc::<AtomicBool>::default();
    let request = request.map(|inner| {
        Body::new(Paced {
            inner,
            late: late.clone(),
            end: None,
            alarm: None,
        })
    });
    let mut response = app(request).await;
    if late.load(Relaxed) && !response.status().is_success() {
        *response.status_mut() = StatusCode::REQUEST_TIMEOUT;
        // What is still to come belongs to no request.
        let close = hyper::header::HeaderValue::from_static("close");
        response.headers_mut().insert(hyper::header::CONNECTION, close);
    }
    response.into_response()
}

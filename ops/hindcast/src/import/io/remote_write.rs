//! Bodies of Prometheus remote-write 1.0 requests, one per file, posted as they are.
//!
//! A body is read first, so that a file of another kind is named here and its samples can be counted: the answer of
//! the protocol counts nothing.

use super::super::{BadLine, ImportError};
use super::{FORBIDDEN, Import, NOT_THERE, ROUNDS_MAX, UNAUTHORIZED, bad_line, cannot_read, not_taken, note};
use crate::agent::delivery::{Delivery, Input, Next, Outcome};
use crate::agent::io::send::{ANSWER_SPAN_MAX, now};
use bytes::Bytes;
use hindcast_model::SpanNs;
use hindcast_model::limits::{REQUEST_DECODED_BYTES_MAX, REQUEST_WIRE_BYTES_MAX};
use hindcast_node::io::tls::Dial;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use indicatif::ProgressBar;
use prost::Message;
use std::path::Path;

/// As much of the protocol's messages as counting needs.
#[derive(Clone, PartialEq, Message)]
struct Body {
    #[prost(message, repeated, tag = "1")]
    series: Vec<Series>,
}

#[derive(Clone, PartialEq, Message)]
struct Series {
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    at_ms: i64,
}

/// Samples in a body.
fn samples(body: &[u8]) -> Result<u64, BadLine> {
    if body.len() > REQUEST_WIRE_BYTES_MAX {
        return Err(BadLine::new(format!(
            "more than the {REQUEST_WIRE_BYTES_MAX} bytes of one request"
        )));
    }
    let not_snappy = |e: snap::Error| BadLine::new(format!("not a snappy block: {e}"));
    let decoded_bytes = snap::raw::decompress_len(body).map_err(not_snappy)?;
    if decoded_bytes > REQUEST_DECODED_BYTES_MAX {
        return Err(BadLine::new(format!(
            "{decoded_bytes} bytes decompressed, more than the {REQUEST_DECODED_BYTES_MAX} of one request"
        )));
    }
    let decoded = snap::raw::Decoder::new().decompress_vec(body).map_err(not_snappy)?;
    let body = Body::decode(decoded.as_slice()).map_err(|e| BadLine::new(format!("not a write request: {e}")))?;
    Ok(body.series.iter().map(|s| s.samples.len() as u64).sum())
}

pub async fn send(import: &mut Import<'_>, i: usize, path: &Path, bar: &ProgressBar) -> Result<(), ImportError> {
    let config = import.config;
    let body = Bytes::from(std::fs::read(path).map_err(|e| cannot_read(path, &e))?);
    bar.inc(body.len() as u64);
    let name = format!("remote-write/{}", blake3::hash(&body).to_hex());
    if import.progress.saved.file(i, &name).done {
        return Ok(());
    }
    let report = &mut import.progress.saved.report;
    let samples = match samples(&body) {
        Ok(samples) => samples,
        Err(bad) => return bad_line(report, config, path, 1, &bad),
    };
    let dial = config.tls.dial(config.endpoints.urls().iter().map(String::as_str));
    let dial = dial.map_err(|e| ImportError::Unreachable { why: e.to_string() })?;
    let client: Client<Dial, Full<Bytes>> = Client::builder(TokioExecutor::new()).build(dial);
    let urls = config.endpoints.urls();
    let mut delivery = Delivery::new(urls.len(), Some(ROUNDS_MAX));
    let mut why = String::new();
    let mut input = Input::Due;
    let mut sends = 0u64;
    loop {
        input = match delivery.step(input, now()) {
            Next::Send { endpoint } => {
                sends += 1;
                report.retries += u64::from(sends > 1);
                let mut wait = None;
                match post(&client, &urls[endpoint], &config.tenant, body.clone(), &mut wait).await {
                    Ok(status) if status.is_success() => Input::Accepted,
                    Ok(status) if let Some(todo) = barred(status) => {
                        return Err(not_taken(format!("{}: {status}", urls[endpoint]), todo));
                    }
                    Ok(status) if status.is_client_error() && !is_for_later(status) => {
                        why = format!("{}: {status}", urls[endpoint]);
                        Input::Refused
                    }
                    Ok(status) => {
                        why = format!("{}: {status}", urls[endpoint]);
                        Input::Failed { wait }
                    }
                    Err(e) => {
                        why = format!("{}: {e}", urls[endpoint]);
                        Input::Failed { wait }
                    }
                }
            }
            Next::WakeAt(at) => {
                tokio::time::sleep(at.since(now()).as_duration()).await;
                Input::Due
            }
            Next::End(Outcome::Delivered) => {
                report.batches += 1;
                report.samples_acked += samples;
                return Ok(());
            }
            Next::End(Outcome::Refused) => {
                report.refused += samples;
                note(report, format!("{}: {why}", path.display()));
                return Ok(());
            }
            Next::End(Outcome::GaveUp) => return Err(ImportError::Unreachable { why }),
        }
    }
}

/// It took too long to come, or too much comes at once.
fn is_for_later(status: StatusCode) -> bool {
    matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

/// What to do where no body is taken, whatever is in it.
fn barred(status: StatusCode) -> Option<&'static str> {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::PROXY_AUTHENTICATION_REQUIRED => Some(UNAUTHORIZED),
        StatusCode::FORBIDDEN => Some(FORBIDDEN),
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Some(NOT_THERE),
        _ => None,
    }
}

/// `wait`: how long the node asks to be left alone.
async fn post(
    client: &Client<Dial, Full<Bytes>>,
    url: &str,
    tenant: &str,
    body: Bytes,
    wait: &mut Option<SpanNs>,
) -> anyhow::Result<StatusCode> {
    let request = Request::post(format!("{url}/api/v1/write"))
        .header("content-type", "application/x-protobuf")
        .header("content-encoding", "snappy")
        .header("x-prometheus-remote-write-version", "0.1.0")
        .header(hindcast_proto::edge::TENANT_KEY, tenant)
        .body(Full::new(body))?;
    let answer = tokio::time::timeout(ANSWER_SPAN_MAX, client.request(request)).await??;
    let status = answer.status();
    let seconds = answer
        .headers()
        .get("retry-after")
        .and_then(|v| v.to_str().ok()?.trim().parse::<u64>().ok());
    *wait = seconds.map(|s| SpanNs(s.saturating_mul(1_000_000_000)));
    // Read to its end, so that the connection can be used again.
    let _ = Limited::new(answer.into_body(), 64 * 1024).collect().await;
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_counted_and_anything_else_is_named() {
        let sample = Sample { value: 1.0, at_ms: 5 };
        let body = Body {
            series: vec![
                Series {
                    samples: vec![sample.clone(), sample.clone()],
                },
                Series { samples: vec![sample] },
            ],
        };
        let packed = |bytes: &[u8]| snap::raw::Encoder::new().compress_vec(bytes).unwrap();
        assert_eq!(samples(&packed(&body.encode_to_vec())), Ok(3));
        let said = |body: &[u8]| samples(body).unwrap_err().why;
        assert!(said(b"plain text").starts_with("not a snappy block"));
        assert!(said(&packed(b"plain text")).starts_with("not a write request"));
        assert!(said(&packed(&vec![0; REQUEST_DECODED_BYTES_MAX + 1])).contains("decompressed"));
    }
}

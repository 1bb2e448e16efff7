//! Values as the HTTP APIs of Prometheus and Loki write them.

use crate::number::put_json;
use crate::shards::{Completeness, Freshness};
use crate::value::Value;
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use hindcast_model::{Histogram, Labels, TimestampNs};
use std::fmt::Write;

pub(super) fn response(status: u16, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(super) fn string(text: &str) -> String {
    serde_json::to_string(text).expect("text is always JSON")
}

pub(super) fn strings(texts: &[String]) -> String {
    serde_json::to_string(texts).expect("text is always JSON")
}

pub(super) fn labels(labels: &Labels) -> String {
    let pairs: Vec<String> = labels
        .iter()
        .map(|(n, v)| format!("{}:{}", string(n), string(v)))
        .collect();
    format!("{{{}}}", pairs.join(","))
}

pub(super) fn completeness(c: &Completeness) -> String {
    let positions: Vec<String> = c
        .positions
        .iter()
        .map(|(group, index)| format!("\"{group}\":{index}"))
        .collect();
    let stale = match c.freshness {
        Freshness::Linearizable => String::new(),
        Freshness::Stale { age: None } => ",\"stale\":true,\"age_ms\":null".to_owned(),
        Freshness::Stale { age: Some(age) } => format!(",\"stale\":true,\"age_ms\":{}", age.as_ms()),
    };
    format!(
        "{{\"complete\":{},\"missing\":{},\"positions\":{{{}}}{stale}}}",
        c.is_complete(),
        strings(&c.missing),
        positions.join(",")
    )
}

/// Seconds; the fraction only when there is one.
fn seconds(out: &mut String, at: TimestampNs) {
    let ms = at.as_ms();
    let sign = if ms < 0 { "-" } else { "" };
    let (whole, fraction) = (ms.unsigned_abs() / 1000, ms.unsigned_abs() % 1000);
    let _ = if fraction == 0 {
        write!(out, "{sign}{whole}")
    } else {
        write!(out, "{sign}{whole}.{fraction:03}")
    };
}

fn point(out: &mut String, at: TimestampNs, value: f64) {
    out.push('[');
    seconds(out, at);
    value_after(out, value);
}

/// The rest of a point behind its time.
fn value_after(out: &mut String, value: f64) {
    out.push_str(",\"");
    put_json(out, value);
    out.push_str("\"]");
}

/// A time and a histogram: count, sum and the buckets in use, each with the rule of its bounds (0: the upper one is in it, 1: the lower
/// one, 2: none, 3: both).
fn histogram_at(out: &mut String, at: TimestampNs, h: &Histogram) {
    out.push('[');
    seconds(out, at);
    out.push_str(",{\"count\":\"");
    put_json(out, h.count);
    out.push_str("\",\"sum\":\"");
    put_json(out, h.sum);
    out.push('"');
    for (i, b) in h.buckets().enumerate() {
        let rule = match (b.holds_lower, b.holds_upper) {
            (false, true) => 0,
            (true, false) => 1,
            (false, false) => 2,
            (true, true) => 3,
        };
        out.push_str(if i == 0 { ",\"buckets\":[" } else { "," });
        let _ = write!(out, "[{rule}");
        for v in [b.lower, b.upper, b.count] {
            out.push_str(",\"");
            put_json(out, v);
            out.push('"');
        }
        out.push(']');
    }
    out.push_str(if h.buckets().next().is_some() { "]}]" } else { "}]" });
}

/// `{"resultType":…,"result":…}`. `at` is the time of a scalar or a string.
pub(super) fn query_data(value: &Value, at: TimestampNs) -> String {
    let mut out = format!("{{\"resultType\":\"{}\",\"result\":", value.kind());
    result(&mut out, value, at);
    out.push('}');
    out
}

pub(super) fn result(out: &mut String, value: &Value, at: TimestampNs) {
    match value {
        Value::Scalar(v) => point(out, at, *v),
        Value::String(text) => {
            out.push('[');
            seconds(out, at);
            let _ = write!(out, ",{}]", string(text));
        }
        Value::Vector(samples) => {
            out.push('[');
            for (i, s) in samples.iter().enumerate() {
                let comma = if i > 0 { "," } else { "" };
                let _ = write!(out, "{comma}{{\"metric\":{},", labels(&s.labels));
                match &s.histogram {
                    None => {
                        out.push_str("\"value\":");
                        point(out, s.at, s.value);
                    }
                    Some(h) => {
                        out.push_str("\"histogram\":");
                        histogram_at(out, s.at, h);
                    }
                }
                out.push('}');
            }
            out.push(']');
        }
        Value::Matrix(series) => {
            out.push('[');
            // Most series have the same times, and their text is made once.
            let mut stamps: Vec<(TimestampNs, String)> = vec![];
            for (i, s) in series.iter().enumerate() {
                let comma = if i > 0 { "," } else { "" };
                let _ = write!(out, "{comma}{{\"metric\":{}", labels(&s.labels));
                if !s.points.is_empty() || s.histograms.is_empty() {
                    out.push_str(",\"values\":[");
                }
                for (k, (at, v)) in s.points.iter().enumerate() {
                    if stamps.get(k).is_none_or(|(known, _)| known != at) {
                        let mut text = if k > 0 { ",[" } else { "[" }.to_owned();
                        seconds(&mut text, *at);
                        stamps.truncate(k);
                        stamps.push((*at, text));
                    }
                    out.push_str(&stamps[k].1);
                    value_after(out, *v);
                }
                if !s.points.is_empty() || s.histograms.is_empty() {
                    out.push(']');
                }
                for (k, (at, h)) in s.histograms.iter().enumerate() {
                    out.push_str(if k == 0 { ",\"histograms\":[" } else { "," });
                    histogram_at(out, *at, h);
                }
                out.push_str(if s.histograms.is_empty() { "}" } else { "]}" });
            }
            out.push(']');
        }
    }
}

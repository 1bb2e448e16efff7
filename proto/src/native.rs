//! Native histograms as Prometheus' message `Histogram`, for those that it is sent to.

use hindcast_model::histogram::{Buckets, Hint};
use hindcast_model::{Histogram, STALE_NAN_BITS};
use prost::Message;

#[derive(Clone, PartialEq, Message)]
struct Written {
    #[prost(double, tag = "2")]
    count: f64,
    #[prost(double, tag = "3")]
    sum: f64,
    #[prost(sint32, tag = "4")]
    schema: i32,
    #[prost(double, tag = "5")]
    zero_threshold: f64,
    #[prost(double, tag = "7")]
    zero_count: f64,
    #[prost(message, repeated, tag = "8")]
    negative_spans: Vec<Span>,
    #[prost(double, repeated, tag = "10")]
    negative_counts: Vec<f64>,
    #[prost(message, repeated, tag = "11")]
    positive_spans: Vec<Span>,
    #[prost(double, repeated, tag = "13")]
    positive_counts: Vec<f64>,
    #[prost(int32, tag = "14")]
    reset_hint: i32,
    #[prost(int64, tag = "15")]
    at_ms: i64,
    #[prost(double, repeated, tag = "16")]
    custom: Vec<f64>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Span {
    #[prost(sint32, tag = "1")]
    offset: i32,
    #[prost(uint32, tag = "2")]
    length: u32,
}

/// Runs of neighbours: the gap to the run before, and how long each is. The first gap counts from 0.
fn side(buckets: &Buckets) -> (Vec<Span>, Vec<f64>) {
    let mut spans: Vec<Span> = vec![];
    let mut next = 0;
    for &(index, _) in buckets {
        match spans.last_mut() {
            Some(span) if index == next => span.length += 1,
            _ => spans.push(Span {
                offset: index - next,
                length: 1,
            }),
        }
        next = index + 1;
    }
    (spans, buckets.iter().map(|(_, n)| *n).collect())
}

/// The bytes of the message: a histogram of floats; `None`: the mark of an end.
pub fn message(histogram: Option<&Histogram>, at_ms: i64) -> Vec<u8> {
    let Some(h) = histogram else {
        let stale = f64::from_bits(STALE_NAN_BITS);
        return Written {
            count: stale,
            sum: stale,
            at_ms,
            ..Written::default()
        }
        .encode_to_vec();
    };
    let (positive_spans, positive_counts) = side(&h.positive);
    let (negative_spans, negative_counts) = side(&h.negative);
    let mut bytes = Written {
        count: h.count,
        sum: h.sum,
        schema: h.schema,
        zero_threshold: h.zero_threshold,
        zero_count: h.zero_count,
        negative_spans,
        negative_counts,
        positive_spans,
        positive_counts,
        reset_hint: match h.hint {
            Hint::Unknown => 0,
            Hint::Reset => 1,
            Hint::NotReset => 2,
            Hint::Gauge => 3,
        },
        at_ms,
        custom: h.custom.to_vec(),
    }
    .encode_to_vec();
    if h.count == 0.0 {
        // A zero is left out, and who reads it would take the histogram for one of whole numbers.
        bytes.push(2 << 3 | 1);
        bytes.extend_from_slice(&h.count.to_le_bytes());
    }
    bytes
}

//! Prometheus remote write 1.0: a snappy block of `prometheus.WriteRequest`.
//!
//! Times are milliseconds. Exemplars and metadata are skipped; native histograms are refused with the reason, while
//! the rest of the request is taken, as the protocol's specification asks.

use crate::decompress::snappy_into;
use crate::owners::Scope;
use crate::walk::{Layout, Names, SampleForm};
use crate::wire::{Reader, WireError, messages};
use crate::{AdaptError, Books, Laid, LimitsContext, Protocol};
use hindcast_model::{BatchId, Sample, TenantId, TimestampNs};

/// Lays out a request's body, as it came over the wire. Its id is the hash of that body. `scratch` holds the
/// decompressed body meanwhile.
pub fn adapt(
    tenant: &TenantId,
    body: &[u8],
    limits: &LimitsContext,
    books: &Books<'_>,
    scratch: &mut Vec<u8>,
) -> Result<Laid, AdaptError> {
    let decoded = snappy_into(body, scratch)?;
    let mut laid = read(tenant, decoded, limits, books).map_err(|e| e.of(Protocol::RemoteWrite))?;
    laid.intake.id = Some(BatchId::of_body(tenant, Protocol::RemoteWrite.as_str(), body));
    Ok(laid)
}

fn read(tenant: &TenantId, body: &[u8], limits: &LimitsContext, books: &Books<'_>) -> Result<Laid, WireError> {
    let mut layout = Layout::new(tenant, limits, *books);
    let names = Names {
        attrs: &[],
        scope: Scope::new(tenant, &[], "series").into(),
    };
    layout.series::<Form>(messages(body, 1), &names)?;
    Ok(layout.finish(&[]))
}

struct Form;

impl SampleForm for Form {
    const HISTOGRAMS: bool = true;

    fn usual(mut rest: &[u8], out: &mut Vec<(i64, u64)>) -> bool {
        while let [0x12, len, after @ ..] = rest {
            let Some((message, after)) = after.split_at_checked(usize::from(*len)) else {
                return false;
            };
            let Some(sample) = usual_sample(message) else { return false };
            out.push(sample);
            rest = after;
        }
        rest.is_empty()
    }

    fn general(message: &[u8]) -> Result<Sample, WireError> {
        sample(message)
    }
}

/// Value, then time, each left out when it is zero.
#[inline]
fn usual_sample(message: &[u8]) -> Option<(i64, u64)> {
    if message.len() > 0x7f {
        // Its length takes more than the one byte that was read.
        return None;
    }
    let (bits, rest) = match message {
        [0x09, rest @ ..] => {
            let (bits, rest) = rest.split_first_chunk::<8>()?;
            (u64::from_le_bytes(*bits), rest)
        }
        rest => (0, rest),
    };
    let mut at = match rest {
        [] => return Some((0, bits)),
        [0x10, rest @ ..] => Reader::new(rest),
        _ => return None,
    };
    let at_ms = at.varint().ok()? as i64;
    (at.left() == 0).then_some((at_ms, bits))
}

fn sample(message: &[u8]) -> Result<Sample, WireError> {
    let (mut value, mut at_ms) = (0.0, 0i64);
    let mut reader = Reader::new(message);
    while let Some((number, field)) = reader.next()? {
        match number {
            1 => value = f64::from_bits(field.fixed64("a sample's value")?),
            2 => at_ms = field.varint("a sample's timestamp")? as i64,
            _ => {}
        }
    }
    let at = TimestampNs::from_ms(at_ms);
    Ok(Sample { at, value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_model::STALE_NAN_BITS;
    use proptest::prelude::*;
    use prost::Message;

    /// Prometheus's messages as prost derives them: the reference for our own reader.
    #[derive(Clone, PartialEq, Message)]
    struct Request {
        #[prost(message, repeated, tag = "1")]
        timeseries: Vec<Series>,
    }
    #[derive(Clone, PartialEq, Message)]
    struct Series {
        #[prost(message, repeated, tag = "1")]
        labels: Vec<Label>,
        #[prost(message, repeated, tag = "2")]
        samples: Vec<Point>,
        #[prost(message, repeated, tag = "4")]
        histograms: Vec<Point>,
    }
    #[derive(Clone, PartialEq, Message)]
    struct Label {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(string, tag = "2")]
        value: String,
    }
    #[derive(Clone, Copy, PartialEq, Message)]
    struct Point {
        #[prost(double, tag = "1")]
        value: f64,
        #[prost(int64, tag = "2")]
        at_ms: i64,
    }

    const LIMITS: LimitsContext = LimitsContext {
        now: TimestampNs::MAX,
        floor: None,
    };

    fn series(name: &str, points: Vec<Point>) -> Series {
        let label = |(n, v): (&str, &str)| Label {
            name: n.to_owned(),
            value: v.to_owned(),
        };
        Series {
            labels: [("__name__", name), ("instance", "web-1:9100"), ("job", "node")]
                .map(label)
                .to_vec(),
            samples: points,
            histograms: vec![],
        }
    }

    fn adapted(request: &Request) -> Adapted {
        let body = snap::raw::Encoder::new()
            .compress_vec(&request.encode_to_vec())
            .unwrap();
        adapt(&TenantId::default(), &body.into(), &LIMITS, &mut OwnerCache::default()).unwrap()
    }

    #[test]
    fn special_values_and_times_before_1970_are_kept_bit_by_bit() {
        // -0 cannot be shown with prost: it leaves out whatever equals zero.
        let bits = [STALE_NAN_BITS, f64::NAN.to_bits() | 5, f64::NEG_INFINITY.to_bits(), 1];
        let points = bits.map(|b| Point {
            value: f64::from_bits(b),
            at_ms: -1,
        });
        let mut node = series("node_load1", points.to_vec());
        node.histograms = vec![points[0]; 2];
        let got = adapted(&Request { timeseries: vec![node] });
        let block = &got.batch.series[0];
        assert!(block.samples.iter().map(|s| s.value.to_bits()).eq(bits));
        assert!(block.samples.iter().all(|s| s.at == TimestampNs::from_ms(-1)));
        assert_eq!(got.batch.resources[0].name, "web-1");
        assert_eq!(got.rejected.by_code()["native_histogram"], 2);
    }

    proptest! {
        #[test]
        fn every_sample_arrives(names in proptest::collection::vec("[a-z]{1,9}", 0..9), at_ms in -1i64 << 40..1 << 40, bits: u64) {
            let points = vec![Point { value: f64::from_bits(bits), at_ms }; 2];
            let got = adapted(&Request { timeseries: names.iter().map(|n| series(n, points.clone())).collect() });
            prop_assert_eq!(got.batch.series.len(), names.len());
            let want = Sample { at: TimestampNs::from_ms(at_ms), value: f64::from_bits(bits) };
            for (block, name) in got.batch.series.iter().zip(&names) {
                prop_assert_eq!(block.labels.metric_name(), Some(name.as_str()));
                prop_assert_eq!(&block.samples, &vec![want; 2]);
            }
        }

        #[test]
        fn random_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut owners = OwnerCache::default();
            let _ = read(&TenantId::default(), &body, &LIMITS, &mut owners);
            let _ = adapt(&TenantId::default(), &body.into(), &LIMITS, &mut owners);
        }
    }
}

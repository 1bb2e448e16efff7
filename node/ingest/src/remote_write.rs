//! Prometheus remote write 1.0: a snappy block of `prometheus.WriteRequest`.
//!
//! Times are milliseconds. Exemplars and metadata are skipped; native histograms are refused with the reason, while
//! the rest of the request is taken, as the protocol's specification asks.

use crate::decompress::{Encoding, decompress};
use crate::own::{Names, keep_named, keep_samples, read_samples};
use crate::owners::{Scope, Seen};
use crate::wire::{Reader, WireError};
use crate::{AdaptError, Adapted, LimitsContext, OwnerCache, Protocol, Refusal, Rejections};
use bytes::Bytes;
use hindcast_model::{Batch, BatchId, Sample, TenantId, TimestampNs};

/// Turns a request's body, as it came over the wire, into a batch. Its id is the hash of that body.
pub fn adapt(
    tenant: &TenantId,
    body: &Bytes,
    limits: &LimitsContext,
    owners: &mut OwnerCache,
) -> Result<Adapted, AdaptError> {
    let decoded = decompress(Encoding::Snappy, body)?;
    let mut adapted = read(tenant, &decoded, limits, owners).map_err(|e| e.of(Protocol::RemoteWrite))?;
    adapted.batch.id = Some(BatchId::of_body(tenant, Protocol::RemoteWrite.as_str(), body));
    Ok(adapted)
}

fn read(tenant: &TenantId, body: &[u8], limits: &LimitsContext, owners: &mut OwnerCache) -> Result<Adapted, WireError> {
    let mut batch = Batch::new(tenant.clone());
    let mut rejected = Rejections::default();
    let mut seen = Seen::default();
    let mut names = Names {
        tenant,
        attrs: &[],
        scope: Scope::new(tenant, &[], "series"),
        of_series: true,
        owners,
    };
    let mut reader = Reader::new(body);
    while let Some((number, field)) = reader.next()? {
        if number != 1 {
            continue;
        }
        let message = field.bytes("a time series")?;
        let (named, rest) = names.split(message)?;
        let histograms = native_histograms(rest)?;
        let samples = read_samples(rest, sample)?;
        let items = samples.len() + histograms;
        let Some(named) = keep_named(named, items, &mut rejected, message) else {
            continue;
        };
        if histograms > 0 {
            rejected.add(histograms as u64, &Refusal::NativeHistogram, || {
                named.labels.to_string()
            });
        }
        seen.note(&named.resource);
        batch.series.extend(keep_samples(named, samples, limits, &mut rejected));
    }
    seen.into_batch(&mut batch);
    Ok(Adapted { batch, rejected })
}

fn native_histograms(mut rest: Reader<'_>) -> Result<usize, WireError> {
    let mut count = 0;
    while let Some((number, _)) = rest.next()? {
        count += usize::from(number == 4);
    }
    Ok(count)
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

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

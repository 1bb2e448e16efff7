//! Rows of a scrape as batches.
//!
//! A series that cannot be stored (too many labels, a name or value too long, a time too far ahead) is refused by itself,
//! with the reason; the others of the scrape are stored. The caller names the batches.

use crate::exemplars::Exemplars;
use crate::owners::{Named, Seen};
use crate::{Adapted, Exemplar, LimitsContext, Rejections};
use hindcast_model::{Batch, Labels, Sample, SeriesBlock, TenantId};

/// Makes a batch of rows, in their order. Each series stands there once. Exemplars become its streams; how many were left out.
pub fn adapt(
    tenant: &TenantId,
    rows: &[(Labels, Vec<Sample>)],
    exemplars: &[(Labels, Exemplar)],
    limits: &LimitsContext,
) -> (Adapted, u64) {
    let mut batch = Batch::new(tenant.clone());
    let (mut seen, mut rejected) = (Seen::default(), Rejections::default());
    let mut pairs = vec![];
    for (labels, samples) in rows {
        pairs.clear();
        pairs.extend(labels.iter());
        if let Err(why) = limits.labels(&pairs, true) {
            rejected.add(samples.len() as u64, &why, || labels.to_string());
            continue;
        }
        let mut kept = Vec::with_capacity(samples.len());
        for sample in samples {
            match limits.time(sample.at) {
                Ok(()) => kept.push(Sample {
                    at: sample.at.floor_ms(),
                    value: sample.value,
                }),
                Err(why) => rejected.add(1, &why, || labels.to_string()),
            }
        }
        if kept.is_empty() {
            continue;
        }
        let named = Named::new(tenant, labels.clone(), &[]);
        seen.note(&named.resource);
        batch.series.push(SeriesBlock {
            labels: named.labels,
            owner: named.owner,
            samples: kept,
        });
    }
    let mut kept = Exemplars::default();
    for (labels, exemplar) in exemplars {
        pairs.clear();
        pairs.extend(labels.iter());
        if limits.labels(&pairs, true).is_err() {
            // Its series was refused, too.
            kept.left_out += 1;
            continue;
        }
        let named = Named::new(tenant, labels.clone(), &[]);
        seen.note(&named.resource);
        kept.add(&named.labels, named.owner, exemplar.clone(), limits);
    }
    let left_out = kept.left_out;
    batch.streams.extend(kept.into_blocks());
    seen.into_batch(&mut batch);
    (Adapted { batch, rejected }, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_model::limits::LABEL_VALUE_BYTES_MAX;
    use hindcast_model::{STALE_NAN_BITS, TimestampNs};

    #[test]
    fn what_fits_is_stored_with_its_owner_and_its_bits_and_the_rest_is_refused_by_name() {
        let limits = LimitsContext {
            now: TimestampNs::from_secs(1_000),
            floor: Some(TimestampNs::from_secs(10)),
            bounds: crate::check::Bounds::DEFAULT,
        };
        let sample = |secs, value| Sample {
            at: TimestampNs::from_secs(secs),
            value,
        };
        let load = Labels::from_pairs([("__name__", "node_load1"), ("instance", "web-1:9100"), ("job", "node")]);
        let stale = f64::from_bits(STALE_NAN_BITS);
        let long = "x".repeat(LABEL_VALUE_BYTES_MAX + 1);
        let rows = [
            (load.clone(), vec![sample(100, 1.5), sample(5, 2.0), sample(9_000, 3.0)]),
            (load.with("cpu", "0"), vec![sample(100, stale)]),
            (load.with("path", &long), vec![sample(100, 1.0)]),
        ];
        let exemplar = |secs| Exemplar {
            labels: vec![("trace_id".to_owned(), "a1".to_owned())],
            value: 0.5,
            at: TimestampNs::from_secs(secs),
        };
        let exemplars = [
            (load.clone(), exemplar(100)),
            (load.clone(), exemplar(5)),
            (load.with("path", &long), exemplar(100)),
        ];
        let (Adapted { batch, rejected }, left_out) = adapt(&TenantId::default(), &rows, &exemplars, &limits);
        assert_eq!(left_out, 2);
        let lines: Vec<_> = batch.streams.iter().flat_map(|s| &s.lines).collect();
        assert_eq!(lines.len(), 1);
        assert!(
            String::from_utf8_lossy(&lines[0].line).contains("node_load1"),
            "{lines:?}"
        );
        assert_eq!(batch.streams[0].owner, batch.series[0].owner);
        assert_eq!(batch.series.len(), 2);
        assert_eq!(batch.series[0].samples, [sample(100, 1.5)]);
        assert_eq!(batch.series[1].samples[0].value.to_bits(), STALE_NAN_BITS);
        assert_eq!(batch.resources[0].name, "web-1");
        let counts: Vec<_> = rejected.by_code().iter().map(|(c, n)| (*c, *n)).collect();
        assert_eq!(
            counts,
            [("label_value_too_long", 1), ("too_far_ahead", 1), ("too_old", 1)]
        );
    }
}

//! Rows of a scrape as batches.
//!
//! A series that cannot be stored (too many labels, a name or value too long, a time too far ahead) is refused by itself,
//! with the reason; the others of the scrape are stored. The caller names the batches.

use crate::owners::{Named, Seen};
use crate::{Adapted, LimitsContext, Rejections};
use hindcast_model::{Batch, Labels, Sample, SeriesBlock, TenantId};

/// Makes a batch of rows, in their order. Each series stands there once.
pub fn adapt(tenant: &TenantId, rows: &[(Labels, Vec<Sample>)], limits: &LimitsContext) -> Adapted {
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
    seen.into_batch(&mut batch);
    Adapted { batch, rejected }
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
        let Adapted { batch, rejected } = adapt(&TenantId::default(), &rows, &limits);
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

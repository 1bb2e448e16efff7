//! Which shard takes which part of a batch.

use crate::entry::WritePart;
use hindcast_model::{Batch, BatchId, ShardId, ShardMap, TenantId, TimestampNs};
use std::collections::BTreeMap;

type Parts = BTreeMap<ShardId, WritePart>;

fn take<'a>(parts: &'a mut Parts, shard: ShardId, tenant: &TenantId, id: Option<BatchId>) -> &'a mut WritePart {
    parts.entry(shard).or_insert_with(|| WritePart {
        tenant: tenant.clone(),
        id,
        series: vec![],
        streams: vec![],
        resources: vec![],
        edges: vec![],
    })
}

/// The parts of a batch, one per shard that it touches. Each part carries the batch's id.
///
/// A series whose samples span a change of the shard map is split by time.
pub fn split(map: &ShardMap, batch: Batch) -> BTreeMap<ShardId, WritePart> {
    let mut parts = Parts::new();
    let (tenant, id) = (batch.tenant, batch.id);
    let single = map.is_single();
    for mut series in batch.series {
        let slot = series.owner.slot(&series.labels);
        if single {
            take(&mut parts, map.shard_of(slot, TimestampNs::MAX), &tenant, id)
                .series
                .push(series);
            continue;
        }
        let mut by_shard: BTreeMap<ShardId, Vec<_>> = BTreeMap::new();
        for sample in std::mem::take(&mut series.samples) {
            by_shard.entry(map.shard_of(slot, sample.at)).or_default().push(sample);
        }
        for (shard, samples) in by_shard {
            let mut piece = series.clone();
            piece.samples = samples;
            take(&mut parts, shard, &tenant, id).series.push(piece);
        }
    }
    for mut stream in batch.streams {
        let slot = stream.owner.slot(&stream.labels);
        let mut by_shard: BTreeMap<ShardId, Vec<_>> = BTreeMap::new();
        for line in std::mem::take(&mut stream.lines) {
            by_shard.entry(map.shard_of(slot, line.at)).or_default().push(line);
        }
        for (shard, lines) in by_shard {
            let mut piece = stream.clone();
            piece.lines = lines;
            take(&mut parts, shard, &tenant, id).streams.push(piece);
        }
    }
    // Resources and edges are facts of today: they go to the shard that owns the slot now.
    for resource in batch.resources {
        take(
            &mut parts,
            map.shard_of(resource.id.slot(), TimestampNs::MAX),
            &tenant,
            id,
        )
        .resources
        .push(resource);
    }
    for edge in batch.edges {
        take(
            &mut parts,
            map.shard_of(edge.from.slot(), TimestampNs::MAX),
            &tenant,
            id,
        )
        .edges
        .push(edge);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_model::resource::{metric, owning_resource};
    use hindcast_model::{LogLine, Owner, Sample, SeriesBlock, StreamBlock};

    #[test]
    fn a_resource_lands_whole_in_one_shard_and_nothing_is_lost_on_the_way() {
        let map = ShardMap::even(4).unwrap();
        let mut batch = Batch::new(TenantId::default());
        batch.id = Some(BatchId::Hashed([7; 16]));
        for host in 0..50 {
            let instance = format!("h{host}:9100");
            for name in ["node_load1", "node_load5"] {
                let labels = metric(name, &[("instance", &instance)]);
                let resource = owning_resource(&batch.tenant, &labels, &[]).unwrap();
                let owner = Owner::Resource {
                    id: resource.id,
                    kind: resource.kind,
                };
                let samples = vec![Sample {
                    at: TimestampNs(0),
                    value: 1.0,
                }];
                batch.series.push(SeriesBlock {
                    labels: labels.clone(),
                    owner,
                    samples,
                });
                let line = LogLine {
                    at: TimestampNs(0),
                    line: "x".into(),
                    metadata: vec![],
                };
                batch.streams.push(StreamBlock {
                    labels,
                    owner,
                    lines: vec![line],
                });
                batch.resources.push(resource);
            }
        }
        let parts = split(&map, batch);
        assert_eq!(parts.len(), 4, "fifty hosts touch all four shards");
        assert_eq!(parts.values().map(|p| p.series.len()).sum::<usize>(), 100);
        assert_eq!(parts.values().map(|p| p.streams.len()).sum::<usize>(), 100);
        for (shard, part) in &parts {
            assert_eq!(part.id, Some(BatchId::Hashed([7; 16])));
            let owners = part.series.iter().map(|s| s.owner.id().unwrap());
            for id in owners.chain(part.resources.iter().map(|r| r.id)) {
                assert_eq!(map.shard_of(id.slot(), TimestampNs(0)), *shard);
            }
        }
    }
}

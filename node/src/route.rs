//! Which shard takes which part of a batch, and what its replica on this node knows.

use hindcast_ingest::Ids;
use hindcast_ingest::new_series::{CountedSeries, WidestLabel};
use hindcast_model::{Labels, Owner, ShardId, ShardMap, Slot, TenantId, TimestampNs};
use hindcast_storage::ShardReader;
use hindcast_storage::cardinality::{ACTIVE_SPAN, widest_label};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Whether a copy on this node counts.
pub type IsHere = Arc<dyn Fn(ShardId) -> bool + Send + Sync>;

/// The shard map, and the replicas of this node.
pub struct Replicas {
    map: ShardMap,
    readers: BTreeMap<ShardId, ShardReader>,
    is_here: IsHere,
}

impl Replicas {
    /// All `readers` are of copies that count.
    pub fn new(map: ShardMap, readers: BTreeMap<ShardId, ShardReader>) -> Self {
        Self::of_copies(map, readers, Arc::new(|_| true))
    }

    pub fn of_copies(map: ShardMap, readers: BTreeMap<ShardId, ShardReader>, is_here: IsHere) -> Self {
        Self { map, readers, is_here }
    }

    fn copies(&self) -> impl Iterator<Item = (ShardId, &ShardReader)> {
        let here = self.readers.iter().filter(|(shard, _)| (self.is_here)(**shard));
        here.map(|(shard, reader)| (*shard, reader))
    }

    pub fn map(&self) -> &ShardMap {
        &self.map
    }
}

impl Replicas {
    /// What so many of all shards have, for all of them.
    fn for_all(&self, series: u64, shards: usize) -> u64 {
        let all = self.readers.len() as u64;
        series.saturating_mul(all) / (shards as u64).max(1)
    }
}

impl Ids for Replicas {
    fn shard_of(&self, slot: Slot, at: TimestampNs) -> ShardId {
        self.map.shard_of(slot, at)
    }

    fn is_timeless(&self) -> bool {
        self.map.is_single()
    }

    fn epoch(&self, shard: ShardId) -> u64 {
        self.readers.get(&shard).map_or(0, ShardReader::epoch)
    }

    fn is_here(&self, shard: ShardId) -> bool {
        (self.is_here)(shard)
    }

    /// A shard without a replica here knows nothing: its series travel with their definitions.
    fn ids(
        &self,
        shard: ShardId,
        tenant: &TenantId,
        streams: bool,
        wanted: &[(&Labels, &Owner)],
    ) -> (u64, Vec<Option<u32>>) {
        match self.readers.get(&shard) {
            Some(reader) => reader.ids(tenant, streams, wanted.iter().copied()),
            None => (0, vec![None; wanted.len()]),
        }
    }

    /// Of the shards that have a replica here, as if the others had as many each: series lie evenly in slots, and slots in shards.
    fn active_series(&self, tenant: &TenantId, now: TimestampNs) -> CountedSeries {
        let since = now - ACTIVE_SPAN;
        let mut counted = CountedSeries::default();
        for (shard, reader) in self.copies() {
            let active = reader.active_series(tenant, since.0);
            counted.active += active.ids.len();
            counted.marks.push((shard, active.next_id));
        }
        counted.active = self.for_all(counted.active, counted.marks.len());
        counted
    }

    fn series_since(&self, tenant: &TenantId, counted: &CountedSeries) -> u64 {
        let marks = counted.marks.iter();
        let of = marks.filter_map(|(shard, next_id)| Some(self.readers.get(shard)?.series_since(tenant, *next_id)));
        self.for_all(of.sum(), counted.marks.len())
    }

    fn widest_label(&self, tenant: &TenantId) -> Option<WidestLabel> {
        let readers: Vec<ShardReader> = self.copies().map(|(_, reader)| reader.clone()).collect();
        let (name, values) = widest_label(&readers, tenant)?;
        Some(WidestLabel { name, values })
    }
}

#[cfg(test)]
mod tests {
    use crate::entry::{TEXT_BYTES_MAX, decode_part, tests};
    use hindcast_model::resource::{metric, owning_resource};
    use hindcast_model::{
        Batch, BatchId, LogLine, Owner, Sample, SeriesBlock, ShardMap, StreamBlock, TenantId, TimestampNs,
    };

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
        let encoded = tests::parts_of(&batch, 4);
        assert_eq!(encoded.len(), 4, "fifty hosts touch all four shards");
        let decode = |b| tests::batch_of(&decode_part(b, &mut TEXT_BYTES_MAX.clone()).unwrap());
        let parts: Vec<Batch> = encoded.iter().map(|b| decode(b)).collect();
        assert_eq!(parts.iter().map(|p| p.series.len()).sum::<usize>(), 100);
        assert_eq!(parts.iter().map(|p| p.streams.len()).sum::<usize>(), 100);
        for part in &parts {
            assert_eq!(part.id, Some(BatchId::Hashed([7; 16])));
            let owners = part.series.iter().map(|s| s.owner.id().unwrap());
            let ids: Vec<_> = owners.chain(part.resources.iter().map(|r| r.id)).collect();
            let shard = map.shard_of(ids[0].slot(), TimestampNs(0));
            assert!(ids.iter().all(|id| map.shard_of(id.slot(), TimestampNs(0)) == shard));
        }
    }
}

//! Shards in memory behind the seam, read as a node reads its own.

use hindcast_env::SimDisk;
use hindcast_model::{GroupId, Labels, SeriesBlock, StreamBlock, TenantId, TimestampNs};
use hindcast_query::replica;
use hindcast_query::shards::{
    Columns, ColumnsRequest, Completeness, CountsRequest, LabelsRequest, LinesRequest, NativeSeries, SeriesRequest,
    Shards, ShardsError,
};
use hindcast_storage::read::{SeriesData, StreamCounts, StreamData};
use hindcast_storage::{Shard, ShardConfig};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Shards in memory, read as a node reads its own.
pub struct Real(pub Vec<Shard>);

impl Real {
    pub fn new(shards: u64) -> Self {
        let open = |group: u64| {
            let config = ShardConfig {
                group: GroupId(group),
                ..ShardConfig::default()
            };
            Shard::open(Arc::new(SimDisk::new()), "s", config).unwrap().0
        };
        Self((1..=shards).map(open).collect())
    }

    pub fn write(&mut self, shard: usize, series: &[SeriesBlock], streams: &[StreamBlock]) {
        let index = self.0[shard].applied() + 1;
        self.0[shard].write(index, &TenantId::default(), series, streams);
        self.0[shard].advance(index);
    }

    fn each<T>(&self, read: impl Fn(&Shard) -> Vec<T>) -> (Vec<T>, Completeness) {
        (self.0.iter().flat_map(read).collect(), Completeness::default())
    }
}

pub type Answer<T> = Result<(Vec<T>, Completeness), ShardsError>;

#[async_trait::async_trait]
impl Shards for Real {
    async fn series(&self, r: SeriesRequest) -> Answer<SeriesData> {
        let (all, whole) = self.each(|s| replica::series(&s.reader(), &r, None).unwrap());
        let mut merged: BTreeMap<_, SeriesData> = BTreeMap::new();
        for s in all {
            let key = (s.slot, s.labels.fingerprint(), s.labels.clone());
            match merged.get_mut(&key) {
                Some(first) => {
                    first.samples.extend(s.samples);
                    first.samples.sort_by_key(|s| s.at);
                    first.samples.dedup_by_key(|s| s.at);
                }
                None => drop(merged.insert(key, s)),
            }
        }
        Ok((merged.into_values().collect(), whole))
    }
    async fn columns(&self, r: ColumnsRequest) -> Result<(Columns, Completeness), ShardsError> {
        let mut all = Columns::default();
        for shard in &self.0 {
            all.extend(replica::columns(&shard.reader(), &r, None).unwrap());
        }
        Ok((all, Completeness::default()))
    }
    async fn natives(&self, r: SeriesRequest) -> Answer<NativeSeries> {
        Ok(self.each(|s| replica::natives(&s.reader(), &r, None).unwrap()))
    }
    async fn line_counts(&self, r: CountsRequest) -> Answer<StreamCounts> {
        Ok(self.each(|s| replica::line_counts(&s.reader(), &r, None).unwrap()))
    }
    async fn lines(&self, r: LinesRequest) -> Answer<StreamData> {
        Ok(self.each(|s| replica::lines(&s.reader(), &r, None).unwrap()))
    }
    async fn label_sets(&self, _: LabelsRequest) -> Answer<Labels> {
        unreachable!("no test asks")
    }
    async fn complete_to(&self, _: &TenantId) -> Result<TimestampNs, ShardsError> {
        unreachable!("no test asks")
    }
}

//! Where data lives: 1,024 slots, and which shard owns each.

use crate::ids::ShardId;
use crate::time::TimestampNs;
use serde::{Deserialize, Serialize};

/// How many slots there are, for good: placement of everything stored depends on it.
pub const SLOTS: u16 = 1024;

/// One of 1,024 equal parts of the data, found by hash; a resource lives whole in one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slot(pub u16);

impl Slot {
    /// The top ten bits of a hash.
    pub const fn of_hash(hash: u64) -> Self {
        Self((hash >> 54) as u16)
    }
}

/// Which shard owns which slot, versioned by event time: adding nodes moves new time windows only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardMap {
    /// Ascending by `from`; the first starts at the beginning of time.
    versions: Vec<ShardMapVersion>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ShardMapVersion {
    from: TimestampNs,
    shards: u64,
}

/// Why a number of shards is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} shards are not possible: use a power of two from 1 to 64, so that each shard owns one aligned run of slots"
)]
pub struct BadShardCount(pub u64);

impl ShardMap {
    pub const SHARDS_MAX: u64 = 64;

    /// One version for all of time, slots in equal aligned runs.
    pub fn even(shards: u64) -> Result<Self, BadShardCount> {
        if shards == 0 || shards > Self::SHARDS_MAX || !shards.is_power_of_two() {
            return Err(BadShardCount(shards));
        }
        Ok(Self {
            versions: vec![ShardMapVersion {
                from: TimestampNs::MIN,
                shards,
            }],
        })
    }

    /// The shard that takes data of `slot` with event time `at`.
    pub fn shard_of(&self, slot: Slot, at: TimestampNs) -> ShardId {
        let next = self.versions.partition_point(|v| v.from <= at);
        let v = &self.versions[next.saturating_sub(1)];
        ShardId(u64::from(slot.0) * v.shards / u64::from(SLOTS) + 1)
    }

    /// Whether one version holds for all of time.
    pub fn is_single(&self) -> bool {
        self.versions.len() == 1
    }

    /// Every shard that any version names, ascending.
    pub fn shards(&self) -> Vec<ShardId> {
        let most = self.versions.iter().map(|v| v.shards).max().unwrap_or(0);
        (1..=most).map(ShardId).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shard_owns_one_aligned_run() {
        for shards in [1, 2, 4, 64] {
            let map = ShardMap::even(shards).unwrap();
            let run = SLOTS / shards as u16;
            for slot in 0..SLOTS {
                assert_eq!(
                    map.shard_of(Slot(slot), TimestampNs(0)),
                    ShardId(u64::from(slot / run) + 1)
                );
            }
            assert_eq!(map.shards().len() as u64, shards);
        }
        assert!(ShardMap::even(3).is_err() && ShardMap::even(0).is_err() && ShardMap::even(128).is_err());
    }
}

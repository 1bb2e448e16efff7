//! What was consumed, refused and committed, by source; and how partitions are.

use hindcast_model::NodeId;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Partitions whose lag is told one by one. Those beyond are added up under the partition "others".
pub const LAG_ROWS_MAX: usize = 1_000;
/// Partitions of which a node tells another how they are.
pub const TOLD_MAX: usize = 10_000;

/// Why a record is not stored.
pub const REASONS: [&str; 8] = [
    "checksum",
    "compression",
    "empty",
    "format",
    "malformed",
    "refused",
    "too_large",
    "unreadable",
];

/// Counts of one source since the node started.
#[derive(Debug, Default)]
pub struct SourceStats {
    pub records: AtomicU64,
    pub bytes: AtomicU64,
    pub batches: AtomicU64,
    /// Batches that were stored before.
    pub known_batches: AtomicU64,
    pub refused: [AtomicU64; REASONS.len()],
    pub commits: AtomicU64,
    pub fetches: AtomicU64,
    pub failures: AtomicU64,
    pub rebalances: AtomicU64,
    pub write_waits: AtomicU64,
    /// Offsets that were deleted before they were consumed.
    pub lost_offsets: AtomicU64,
}

impl SourceStats {
    pub(super) fn refused(&self, reason: &str, records: u64) {
        if let Some(i) = REASONS.iter().position(|r| *r == reason) {
            self.refused[i].fetch_add(records, Relaxed);
        }
    }
}

/// How a partition is that this node has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionNow {
    pub source: String,
    pub topic: String,
    pub partition: i32,
    pub node: u64,
    /// Everything before is stored and committed.
    pub offset: i64,
    /// Where the log ends, as the broker said last; -1: it did not yet.
    pub end: i64,
    pub waiting_bytes: u64,
}

impl PartitionNow {
    pub fn lag(&self) -> u64 {
        u64::try_from(self.end.saturating_sub(self.offset)).unwrap_or(0)
    }
}

/// How a source is on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceNow {
    pub source: String,
    pub node: u64,
    pub group: String,
    /// "joining", "consuming", or "failing" with `error`.
    pub state: String,
    pub error: String,
}

/// All that a node says of its consuming.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    pub sources: Vec<SourceNow>,
    pub partitions: Vec<PartitionNow>,
}

/// Of all sources.
#[derive(Default)]
pub struct KafkaStats {
    sources: Mutex<BTreeMap<String, Arc<SourceStats>>>,
    pub(super) states: Mutex<BTreeMap<String, SourceNow>>,
    pub reload_failures: AtomicU64,
}

/// A row of `/metrics`: its name, its labels as they are written, its value.
pub type Row = (&'static str, String, f64);

impl KafkaStats {
    pub(super) fn of(&self, source: &str) -> Arc<SourceStats> {
        self.sources.lock().entry(source.to_owned()).or_default().clone()
    }

    pub(super) fn say(&self, node: NodeId, source: &str, group: &str, state: &str, error: &str) {
        let now = SourceNow {
            source: source.to_owned(),
            node: node.0,
            group: group.to_owned(),
            state: state.to_owned(),
            error: error.to_owned(),
        };
        self.states.lock().insert(source.to_owned(), now);
    }

    /// Every row, in a fixed order.
    pub fn rows(&self, partitions: &[PartitionNow]) -> Vec<Row> {
        let mut rows: Vec<Row> = vec![];
        let sources = self.sources.lock().clone();
        for (source, of) in &sources {
            let by = format!("{{source={source:?}}}");
            for (name, value) in [
                ("hindcast_kafka_batches_total", &of.batches),
                ("hindcast_kafka_bytes_total", &of.bytes),
                ("hindcast_kafka_commits_total", &of.commits),
                ("hindcast_kafka_failures_total", &of.failures),
                ("hindcast_kafka_fetches_total", &of.fetches),
                ("hindcast_kafka_known_batches_total", &of.known_batches),
                ("hindcast_kafka_lost_offsets_total", &of.lost_offsets),
                ("hindcast_kafka_rebalances_total", &of.rebalances),
                ("hindcast_kafka_records_total", &of.records),
                ("hindcast_kafka_write_waits_total", &of.write_waits),
            ] {
                rows.push((name, by.clone(), value.load(Relaxed) as f64));
            }
            for (reason, n) in REASONS.iter().zip(&of.refused) {
                let labels = format!("{{source={source:?},reason=\"{reason}\"}}");
                rows.push(("hindcast_kafka_refused_records_total", labels, n.load(Relaxed) as f64));
            }
            let own = partitions.iter().filter(|p| p.source == *source);
            rows.push(("hindcast_kafka_partitions", by.clone(), own.clone().count() as f64));
            let waiting: u64 = own.map(|p| p.waiting_bytes).sum();
            rows.push(("hindcast_kafka_waiting_bytes", by, waiting as f64));
        }
        for p in partitions.iter().take(LAG_ROWS_MAX) {
            let labels = format!(
                "{{source={:?},topic={:?},partition=\"{}\"}}",
                p.source, p.topic, p.partition
            );
            rows.push(("hindcast_kafka_lag_records", labels, p.lag() as f64));
        }
        if partitions.len() > LAG_ROWS_MAX {
            let rest: u64 = partitions[LAG_ROWS_MAX..].iter().map(PartitionNow::lag).sum();
            let labels = "{source=\"\",topic=\"\",partition=\"others\"}".to_owned();
            rows.push(("hindcast_kafka_lag_records", labels, rest as f64));
        }
        let failures = self.reload_failures.load(Relaxed) as f64;
        rows.push(("hindcast_kafka_reload_failures_total", String::new(), failures));
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lags_beyond_a_number_are_added_up() {
        let partition = |n: i32| PartitionNow {
            source: "s".to_owned(),
            topic: "t".to_owned(),
            partition: n,
            node: 1,
            offset: 10,
            end: if n == 0 { -1 } else { 13 },
            waiting_bytes: 0,
        };
        let partitions: Vec<_> = (0..LAG_ROWS_MAX as i32 + 5).map(partition).collect();
        let rows = KafkaStats::default().rows(&partitions);
        let lags: Vec<_> = rows
            .iter()
            .filter(|(n, ..)| *n == "hindcast_kafka_lag_records")
            .collect();
        assert_eq!(lags.len(), LAG_ROWS_MAX + 1);
        assert_eq!((lags[0].2, lags[1].2, lags[LAG_ROWS_MAX].2), (0.0, 3.0, 15.0));
        assert!(REASONS.is_sorted());
    }
}

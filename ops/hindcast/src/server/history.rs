//! History on its way into the shards: down the write path like any other data, once.

use hindcast_alerting::io::{HistoryWriteError, HistoryWriter};
use hindcast_model::TenantId;
use hindcast_node::io::writer::Writer;
use hindcast_node::write::{BatchSink, history_batch};
use hindcast_raft::HistoryLine;

pub struct ShardHistory {
    writer: Writer,
}

impl ShardHistory {
    pub fn new(writer: Writer) -> Self {
        Self { writer }
    }
}

#[async_trait::async_trait]
impl HistoryWriter for ShardHistory {
    async fn write(&self, tenant: &TenantId, sequence: u64, lines: Vec<HistoryLine>) -> Result<(), HistoryWriteError> {
        let batch = history_batch(tenant, sequence, lines);
        self.writer
            .write(batch)
            .await
            .map(|_| ())
            .map_err(|e| HistoryWriteError {
                sequence,
                why: e.to_string(),
            })
    }
}

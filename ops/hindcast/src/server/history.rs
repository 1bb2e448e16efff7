//! History on its way into the shards: down the write path like any other data, once.

use hindcast_alerting::io::{HistoryWriteError, HistoryWriter};
use hindcast_model::{Batch, BatchId, LogLine, Owner, StreamBlock, TenantId, WriterId};
use hindcast_node::io::writer::Writer;
use hindcast_node::write::BatchSink;
use hindcast_raft::HistoryLine;

/// The name under which History is written; with the meta index as sequence, in order, it is stored once.
const WRITER: &str = "hindcast/history";

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
        let mut batch = Batch::new(tenant.clone());
        batch.id = Some(BatchId::Ordered {
            writer: WriterId::named(tenant, WRITER),
            seq: sequence,
        });
        for line in lines {
            let stored = LogLine {
                at: line.at,
                line: line.line.into(),
                metadata: vec![],
            };
            match batch.streams.iter_mut().find(|s| s.labels == line.labels) {
                Some(stream) => stream.lines.push(stored),
                None => batch.streams.push(StreamBlock {
                    labels: line.labels,
                    owner: Owner::None,
                    lines: vec![stored],
                }),
            }
        }
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

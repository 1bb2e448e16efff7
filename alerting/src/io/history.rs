//! Takes History from the meta group to the shards, exactly once.
//!
//! The leader of the meta group writes the rows of each command as one batch per tenant, in the order of the
//! commands; the command's index is the batch's sequence, so that a repeat by the next leader is known and dropped.
//! Once they are there, the rows go.

use super::pause;
use hindcast_model::{TenantId, codec};
use hindcast_raft::meta::META_PART;
use hindcast_raft::{HistoryLine, MachineCommand, Meta, history_rows};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Rows read at once.
pub const HISTORY_ROWS_MAX: usize = 2_000;
const ROUND: Duration = Duration::from_millis(100);
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(500);

/// Why History was not written; the same lines are offered again.
#[derive(Debug, thiserror::Error)]
#[error("History of command {sequence} was not confirmed: {why}")]
pub struct HistoryWriteError {
    pub sequence: u64,
    pub why: String,
}

/// Who writes lines to the shards. `ops/hindcast` ties it to the node's write path; tests record.
#[async_trait::async_trait]
pub trait HistoryWriter: Send + Sync {
    /// Stores the lines under (the History writer of the tenant, `sequence`): a sequence that is stored already is
    /// confirmed again and stores nothing. Sequences of a tenant come in rising order, a repeat aside.
    async fn write(&self, tenant: &TenantId, sequence: u64, lines: Vec<HistoryLine>) -> Result<(), HistoryWriteError>;
}

/// The shell around History.
pub struct HistoryPump {
    meta: Arc<dyn Meta>,
    writer: Arc<dyn HistoryWriter>,
}

impl HistoryPump {
    pub fn new(meta: Arc<dyn Meta>, writer: Arc<dyn HistoryWriter>) -> Self {
        Self { meta, writer }
    }

    /// Works until told to stop.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut span = ROUND;
        while pause(span, &mut stop).await {
            span = match self.round().await {
                Ok(true) => Duration::ZERO,
                Ok(false) => ROUND,
                Err(why) => {
                    tracing::warn!(why, "History has to wait");
                    PAUSE_AFTER_ERROR
                }
            };
        }
    }

    /// Writes what is there, if this node leads. `true`: there may be more.
    pub async fn round(&self) -> Result<bool, String> {
        if !self.meta.is_leader() {
            return Ok(false);
        }
        let (mut up_to, mut failed) = (None, None);
        for (index, lines) in self.waiting() {
            match self.write(index, lines).await {
                Ok(()) => up_to = Some(index),
                Err(error) => {
                    failed = Some(error.to_string());
                    break;
                }
            }
        }
        // What is there need not be offered again, also when the next command's was not taken.
        if let Some(up_to) = up_to {
            let written = codec::to_bytes(&MachineCommand::HistoryWritten { up_to });
            self.meta.propose(META_PART, written).await.map_err(|e| e.to_string())?;
        }
        match failed {
            Some(why) => Err(why),
            None => Ok(up_to.is_some()),
        }
    }

    /// The lines of one command, a batch for each tenant.
    async fn write(&self, index: u64, lines: Vec<HistoryLine>) -> Result<(), HistoryWriteError> {
        let mut by_tenant: BTreeMap<TenantId, Vec<HistoryLine>> = BTreeMap::new();
        for line in lines {
            by_tenant.entry(line.tenant.clone()).or_default().push(line);
        }
        for (tenant, lines) in by_tenant {
            self.writer.write(&tenant, index, lines).await?;
        }
        Ok(())
    }

    /// The rows that wait, by command. Never a part of a command.
    fn waiting(&self) -> BTreeMap<u64, Vec<HistoryLine>> {
        let read = self.meta.stale();
        let mut limit = HISTORY_ROWS_MAX;
        loop {
            let rows = history_rows(read.as_ref(), limit);
            let is_all = rows.len() < limit;
            let mut commands: BTreeMap<u64, Vec<HistoryLine>> = BTreeMap::new();
            for (index, _, line) in rows {
                commands.entry(index).or_default().push(line);
            }
            if is_all {
                return commands;
            }
            // The last command may go on behind the limit.
            commands.pop_last();
            if !commands.is_empty() {
                return commands;
            }
            limit *= 2;
        }
    }
}

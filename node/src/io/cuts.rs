//! Taking cuts and pins: the steps that reach over several Raft groups.

use super::writer::Writer;
use crate::cluster_part::{CLUSTER_PART, ClusterCommand, CutBegun, CutRow, PinRow, cut};
use crate::entry::Control;
use crate::write::WriteError;
use hindcast_model::{Class, Classify, CutId, codec};
use hindcast_raft::meta::{META_PART, history_key};
use hindcast_raft::{Meta, MetaError};
use hindcast_storage::Pin;
use std::sync::Arc;
use std::time::Duration;

/// How long History may take to reach the shards before a cut is given up.
const HISTORY_TIMEOUT: Duration = Duration::from_secs(10);
const HISTORY_PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub enum CutError {
    #[error("the cut could not be taken: {0}")]
    Meta(#[from] MetaError),
    #[error("the cut could not be taken: {0}")]
    Write(#[from] WriteError),
    #[error("the cut could not be taken: alert and ticket history has not reached the shards within 10 s; try again")]
    HistoryBehind,
    #[error("{0} is no recorded cut")]
    Unknown(CutId),
    #[error("the cluster's own rows cannot be read: {0}")]
    Rows(#[from] codec::DecodeError),
}

impl Classify for CutError {
    fn class(&self) -> Class {
        match self {
            Self::Meta(e) => e.class(),
            Self::Write(e) => e.class(),
            Self::HistoryBehind => Class::Unavailable,
            Self::Unknown(_) => Class::NotFound,
            Self::Rows(_) => Class::Internal,
        }
    }
}

#[derive(Clone)]
pub struct Cuts {
    pub meta: Arc<dyn Meta>,
    pub writer: Writer,
}

impl Cuts {
    /// Takes a cut, or returns the last one when it is young enough and `fresh` is not asked for.
    pub async fn take(&self, reason: &str, fresh: bool) -> Result<CutRow, CutError> {
        let begin = ClusterCommand::BeginCut {
            reason: reason.to_owned(),
            fresh,
        };
        let begun: CutBegun = codec::from_bytes(&self.meta.propose(CLUSTER_PART, codec::to_bytes(&begin)).await?)?;
        if begun.reused {
            return Ok(begun.cut);
        }
        self.history_delivered(begun.cut.meta_index).await?;
        let positions = self.writer.control_all(&Control::Cut).await?;
        let record = ClusterCommand::RecordCut {
            cut: begun.cut.id,
            positions,
        };
        Ok(codec::from_bytes(
            &self.meta.propose(CLUSTER_PART, codec::to_bytes(&record)).await?,
        )?)
    }

    /// A recorded cut by its number.
    pub async fn get(&self, id: CutId) -> Result<CutRow, CutError> {
        let rows = self.meta.read().await?;
        cut(&*rows, id)
            .filter(|c| c.positions.is_some())
            .ok_or(CutError::Unknown(id))
    }

    async fn history_delivered(&self, up_to: u64) -> Result<(), CutError> {
        let delivered = async {
            loop {
                let rows = self.meta.read().await?;
                let first = rows.scan(META_PART, b"history/", None, 1);
                if first.first().is_none_or(|(key, _)| *key >= history_key(up_to + 1, 0)) {
                    return Ok(());
                }
                tokio::time::sleep(HISTORY_PAUSE).await;
            }
        };
        tokio::time::timeout(HISTORY_TIMEOUT, delivered)
            .await
            .unwrap_or(Err(CutError::HistoryBehind))
    }

    /// Protects a window in every shard, then makes it known. Same id: replaced.
    pub async fn pin(&self, row: PinRow) -> Result<(), CutError> {
        let mut cuts = vec![];
        for id in &row.cuts {
            cuts.push(self.get(*id).await?);
        }
        for shard in self.writer.shard_map().shards() {
            let at = |c: &CutRow| c.positions.as_ref().and_then(|p| p.get(&shard.into()).copied());
            let pin = Pin {
                id: row.id.clone(),
                tenant: row.tenant.clone(),
                from: row.from,
                to: row.to,
                owners: None,
                cuts: cuts.iter().filter_map(at).collect(),
            };
            self.writer.control(shard, Control::Pin { pin }).await?;
        }
        self.meta
            .propose(CLUSTER_PART, codec::to_bytes(&ClusterCommand::RecordPin { pin: row }))
            .await?;
        Ok(())
    }
}

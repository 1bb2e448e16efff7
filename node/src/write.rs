//! The write path as its callers see it: one batch in, one honest answer out.

use hindcast_ingest::{Ids, Intake};
use hindcast_model::{
    Batch, BatchId, Class, Classify, LogLine, Owner, ShardId, StreamBlock, TenantId, TimestampNs, WriterId,
};
use hindcast_raft::HistoryLine;

/// The name under which History is written.
const HISTORY_WRITER: &str = "hindcast/history";

/// The History of one meta command as a batch. With the command's index as `sequence`, in order, it is stored once.
pub fn history_batch(tenant: &TenantId, sequence: u64, lines: Vec<HistoryLine>) -> Batch {
    let mut batch = Batch::new(tenant.clone());
    batch.id = Some(BatchId::Ordered {
        writer: WriterId::named(tenant, HISTORY_WRITER),
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
    batch
}

/// What became of a confirmed batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Written {
    pub samples: u64,
    pub lines: u64,
    /// Every part was known already; nothing was stored again.
    pub duplicate: bool,
}

/// Why a batch was not confirmed. Only `Unconfirmed` leaves open whether it is stored.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum WriteError {
    #[error("the batch's sequence is older than what shard {shard} remembers; whether it was stored cannot be told")]
    SequenceTooOld { shard: ShardId },
    #[error(
        "the batch takes {bytes} bytes as one entry of shard {shard}, more than {entry_bytes_max}; send smaller batches"
    )]
    TooLarge {
        shard: ShardId,
        bytes: usize,
        entry_bytes_max: usize,
    },
    #[error("shard {shard} already queues {queued_bytes_max} bytes of writes; retry in a second")]
    QueueFull { shard: ShardId, queued_bytes_max: usize },
    #[error(
        "the disk that shard {shard} is written to has {free} bytes left, and {reserve} are kept free; nothing was stored: keep the batch and send it again, writes are taken as soon as there is room"
    )]
    DiskFull { shard: ShardId, free: u64, reserve: u64 },
    #[error(
        "the leader of shard {shard} uses {used} bytes of memory of at most {limit}; nothing was stored there: retry in a second"
    )]
    MemoryFull { shard: ShardId, used: u64, limit: u64 },
    #[error("shard {shard} has no leader right now; the batch was not stored there, retry with the same id")]
    NoLeader { shard: ShardId },
    #[error("shard {shard} did not confirm in time; the batch may be stored, retry with the same id")]
    Unconfirmed { shard: ShardId },
    #[error("a sample or line at {at} is older than {floor}, the oldest that is kept")]
    TooOld { at: TimestampNs, floor: TimestampNs },
}

impl Classify for WriteError {
    fn class(&self) -> Class {
        match self {
            Self::SequenceTooOld { .. } | Self::TooOld { .. } => Class::FixRequest,
            Self::TooLarge { .. } => Class::TooLarge,
            Self::QueueFull { .. } | Self::MemoryFull { .. } => Class::RetryLater,
            // Not `RetryLater`: a full disk outlasts what senders put up with, and Prometheus drops on 429 what it
            // keeps on 503.
            Self::NoLeader { .. } | Self::DiskFull { .. } => Class::Unavailable,
            Self::Unconfirmed { .. } => Class::RetrySameId,
        }
    }
}

/// Lays the same request out anew with every series defined, for shards in which its ids do not hold.
pub type Redo<'a> = &'a (dyn Fn() -> Intake + Send + Sync);

/// Where adapters hand their requests. The node's router is one; tests record.
#[async_trait::async_trait]
pub trait BatchSink: Send + Sync {
    /// Confirmed means: committed by quorum, fsynced there and applied at the leaders of every shard touched;
    /// else the worst class of its parts.
    async fn write(&self, batch: Batch) -> Result<Written, WriteError>;

    /// What the local replicas know, by which requests are laid out.
    fn ids(&self) -> &dyn Ids;

    /// As [`BatchSink::write`], for a request that is laid out already.
    async fn write_intake(&self, intake: Intake, redo: Redo<'_>) -> Result<Written, WriteError>;
}

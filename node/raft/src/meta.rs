//! The meta machine: parts that each own their rows, changed together by one command.
//!
//! A part is a pure function of (its rows, command or upstream message, cluster time). Within one apply the
//! outputs of a part are inputs of the parts to its right, in the order in which they were given to the machine.
//! All rows that a command changes, and the applied index, are one transaction of the store.
//!
//! Invariants
//! - A part reads and writes its own tree only, plus what `MetaTx` gives to all: nothing else reaches it.
//! - A refused command changes nothing, in any part.

use bytes::Bytes;
use hindcast_model::{Class, Classify, Labels, TenantId, TimestampNs};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Rows of one key range, ascending: (key, value).
pub type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// Reads of the materialised state. Keys are the part's own; trees are named after the part (`cluster`, `gateway`, `desk`).
pub trait MetaRead: Send + Sync {
    fn get(&self, tree: &str, key: &[u8]) -> Option<Vec<u8>>;
    /// Up to `limit` rows whose key starts with `prefix`, from the first key ≥ `from` (or the prefix itself).
    fn scan(&self, tree: &str, prefix: &[u8], from: Option<&[u8]>, limit: usize) -> Rows;
    /// Index of the last command that these reads include.
    fn applied(&self) -> u64;
}

/// An ordered key-value store of trees, changed one transaction at a time. Two implementations: sled, and a map.
pub trait MetaStore: MetaRead {
    /// Makes all changes and the applied index visible together, or none. `None` deletes.
    fn commit(&self, changes: &Changes, applied: u64) -> Result<(), MetaStoreError>;
    /// Reaches the disk; afterwards `durable()` of the machine may rise. A map does nothing.
    fn checkpoint(&self) -> Result<(), MetaStoreError>;
}

/// (tree, key) → new value, or `None` for a deletion.
pub type Changes = BTreeMap<(String, Vec<u8>), Option<Vec<u8>>>;

#[derive(Debug, thiserror::Error)]
#[error("the meta store failed while it should {what}: {why}")]
pub struct MetaStoreError {
    pub what: &'static str,
    pub why: String,
}

/// The transaction of one command: reads see the command's own writes.
pub struct MetaTx<'a> {
    base: &'a dyn MetaRead,
    changes: Changes,
}

impl<'a> MetaTx<'a> {
    pub fn new(base: &'a dyn MetaRead) -> Self {
        Self {
            base,
            changes: Changes::new(),
        }
    }

    pub fn get(&self, tree: &str, key: &[u8]) -> Option<Vec<u8>> {
        match self.changes.get(&(tree.to_owned(), key.to_vec())) {
            Some(changed) => changed.clone(),
            None => self.base.get(tree, key),
        }
    }

    pub fn put(&mut self, tree: &str, key: &[u8], value: Vec<u8>) {
        self.changes.insert((tree.to_owned(), key.to_vec()), Some(value));
    }

    pub fn delete(&mut self, tree: &str, key: &[u8]) {
        self.changes.insert((tree.to_owned(), key.to_vec()), None);
    }

    /// Like `MetaRead::scan`, with the command's own writes merged in.
    pub fn scan(&self, tree: &str, prefix: &[u8], from: Option<&[u8]>, limit: usize) -> Rows {
        let start = from.unwrap_or(prefix).max(prefix).to_vec();
        let own = self.changes.range((tree.to_owned(), start)..);
        let own: Vec<_> = own
            .take_while(|((t, k), _)| t == tree && k.starts_with(prefix))
            .collect();
        if own.is_empty() {
            return self.base.scan(tree, prefix, from, limit);
        }
        // A deletion hides one stored row at most, so that many more are read.
        let mut rows: BTreeMap<_, _> = self
            .base
            .scan(tree, prefix, from, limit.saturating_add(own.len()))
            .into_iter()
            .collect();
        for ((_, key), value) in own {
            match value {
                Some(v) => rows.insert(key.clone(), v.clone()),
                None => rows.remove(key),
            };
        }
        rows.into_iter().take(limit).collect()
    }

    pub fn into_changes(self) -> Changes {
        self.changes
    }
}

/// A command as it stands in the log: which part it is for, and when (cluster time, set by the leader).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetaCommand {
    pub part: String,
    pub at: TimestampNs,
    /// The part's own command, encoded by `hindcast_model::codec`.
    #[serde(with = "as_bytes")]
    pub body: Vec<u8>,
}

/// Byte strings as MessagePack `bin`, not as arrays of numbers.
pub mod as_bytes {
    use serde::{Deserializer, Serializer, de};
    use std::fmt;

    pub fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: de::Error>(self, v: &[u8]) -> Result<Vec<u8>, E> {
                Ok(v.to_vec())
            }
            fn visit_byte_buf<E: de::Error>(self, v: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(v)
            }
        }
        d.deserialize_byte_buf(Visitor)
    }
}

/// What a part may know beyond its rows.
#[derive(Clone, Copy, Debug)]
pub struct ApplyContext {
    /// Index of the command in the meta group's log: unique, rising.
    pub index: u64,
    /// Cluster time of the command; never goes back.
    pub now: TimestampNs,
    /// History records that the command has put out so far, whichever part did: where this part goes on counting.
    pub history: u32,
}

/// What a part is given: a command addressed to it, or what a part to its left put out in the same apply.
#[derive(Clone, Copy, Debug)]
pub enum PartInput<'a> {
    Command(&'a [u8]),
    Upstream { part: &'a str, body: &'a [u8] },
}

/// What a part puts out besides its rows.
#[derive(Debug, Default)]
pub struct PartOutput {
    /// What the proposer is told; only the addressed part's counts.
    pub reply: Bytes,
    /// For the parts to the right, in order, within the same apply.
    pub rightward: Vec<Vec<u8>>,
    /// (part, command) for parts to the left. The machine keeps each as a row of its own tree until it comes back
    /// as a command of its own, which removes the row and applies it in one transaction: exactly once.
    pub leftward: Vec<(String, Vec<u8>)>,
    /// History records, one line each (`hindcast_proto::history`). The machine keeps them as rows under
    /// (index, seq over all parts of the command) until they are known to be in the shards.
    pub history: Vec<HistoryLine>,
}

/// A History record on its way to the shards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryLine {
    pub tenant: TenantId,
    /// The stream it goes to.
    pub labels: Labels,
    pub at: TimestampNs,
    pub line: String,
}

/// The machine's own part: its tree, and the name its commands are addressed to.
pub const META_PART: &str = "meta";

/// Commands that the machine itself understands, addressed to `META_PART`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum MachineCommand {
    /// History of all commands up to and including this index is in the shards: its rows go.
    HistoryWritten { up_to: u64 },
    /// The leftward row of this command comes back: it is removed and applied in one transaction.
    Leftward { index: u64, seq: u32 },
}

/// Key of a History row in the machine's tree; rows sort by (index, seq).
pub fn history_key(index: u64, seq: u32) -> Vec<u8> {
    [b"history/".as_slice(), &index.to_be_bytes(), &seq.to_be_bytes()].concat()
}

/// Key of a leftward row in the machine's tree.
pub fn leftward_key(index: u64, seq: u32) -> Vec<u8> {
    [b"leftward/".as_slice(), &index.to_be_bytes(), &seq.to_be_bytes()].concat()
}

/// A command that is refused: nothing of it is kept, the proposer gets class and words.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub class: Class,
    pub message: String,
}

impl Refusal {
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Self {
            class,
            message: message.into(),
        }
    }
}

impl Classify for Refusal {
    fn class(&self) -> Class {
        self.class
    }
}

/// One owner of rows in the meta machine. Implemented by `cluster` (node), `gateway` (alerting), `desk` (itsm).
pub trait Part: Send + Sync {
    /// The name commands are addressed to and the only tree that the part writes.
    fn name(&self) -> &'static str;
    fn apply(&self, ctx: ApplyContext, input: PartInput<'_>, tx: &mut MetaTx<'_>) -> Result<PartOutput, Refusal>;
}

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the meta group has no leader right now; nothing was changed, try again")]
    NoLeader,
    #[error("the meta group did not answer in time; the change may have been made")]
    Unconfirmed,
}

impl Classify for MetaError {
    fn class(&self) -> Class {
        match self {
            Self::Refused(r) => r.class,
            Self::NoLeader => Class::Unavailable,
            Self::Unconfirmed => Class::RetrySameId,
        }
    }
}

/// How the rest of the program changes and reads the meta group, from any node. Two implementations:
/// the node's (proposes at the leader, wherever it is), and `LocalMeta` (one machine in memory, for tests).
#[async_trait::async_trait]
pub trait Meta: Send + Sync {
    /// Proposes a command of `part`; the reply is the part's.
    async fn propose(&self, part: &'static str, body: Vec<u8>) -> Result<Bytes, MetaError>;
    /// Reads that include every command acknowledged before this call (ReadIndex).
    async fn read(&self) -> Result<std::sync::Arc<dyn MetaRead>, MetaError>;
    /// This node's own applied state: possibly behind, never wrong about its `applied()`.
    fn stale(&self) -> std::sync::Arc<dyn MetaRead>;
    /// Whether this node leads the meta group now. A hint only: commands decide.
    fn is_leader(&self) -> bool;
}

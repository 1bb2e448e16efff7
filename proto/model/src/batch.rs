//! The one form that every ingest protocol is turned into.

use crate::ids::TenantId;
use crate::labels::Labels;
use crate::resource::{Edge, Owner, Resource};
use crate::time::TimestampNs;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A value at an instant. `at` is a whole number of milliseconds (PromQL's resolution), negative before 1970.
/// `value` may have any bits: NaN payloads, the staleness marker, infinities and -0.0 are kept.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub at: TimestampNs,
    pub value: f64,
}

impl PartialEq for Sample {
    /// By bits: two NaNs of the same bits are the same sample.
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at && self.value.to_bits() == other.value.to_bits()
    }
}

/// Samples of one series. The order of samples is the order of arrival; of equal times the last one wins.
#[derive(Clone, Debug, PartialEq)]
pub struct SeriesBlock {
    pub labels: Labels,
    pub owner: Owner,
    pub samples: Vec<Sample>,
}

/// One log line. `line` is UTF-8, returned byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    pub at: TimestampNs,
    pub line: Bytes,
    /// Structured metadata: OTLP attributes, trace and span id. Sorted by name.
    pub metadata: Vec<(String, String)>,
}

/// Lines of one stream, in order of arrival. Equal lines at equal times are all kept.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamBlock {
    pub labels: Labels,
    pub owner: Owner,
    pub lines: Vec<LogLine>,
}

/// Who writes: a hash of the writer's own name within its tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WriterId(pub [u8; 16]);

impl WriterId {
    pub fn named(tenant: &TenantId, writer: &str) -> Self {
        let mut h = blake3::Hasher::new_derive_key("hindcast 2026 writer id");
        h.update(tenant.as_str().as_bytes())
            .update(&[0])
            .update(writer.as_bytes());
        let mut id = [0; 16];
        h.finalize_xof().fill(&mut id);
        Self(id)
    }
}

/// What makes a retry harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum BatchId {
    /// Our own protocol: a writer counts its batches. They may arrive in any order within the dedup window.
    Sequenced { writer: WriterId, seq: u64 },
    /// A writer of ours that writes strictly in order (History, recording rules): its last sequence is kept for good.
    Ordered { writer: WriterId, seq: u64 },
    /// Protocols without an id: the hash of tenant and body.
    Hashed([u8; 16]),
}

impl BatchId {
    /// The id of a request in a protocol that has none. `protocol` keeps equal bodies of two protocols apart.
    pub fn of_body(tenant: &TenantId, protocol: &str, body: &[u8]) -> Self {
        let mut h = blake3::Hasher::new_derive_key("hindcast 2026 batch id");
        h.update(tenant.as_str().as_bytes())
            .update(&[0])
            .update(protocol.as_bytes())
            .update(&[0])
            .update(body);
        let mut id = [0; 16];
        h.finalize_xof().fill(&mut id);
        Self::Hashed(id)
    }
}

/// What adapters hand on: a request of any protocol, after its limits were checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    pub tenant: TenantId,
    /// `None`: a retry may store lines twice (syslog, traps).
    pub id: Option<BatchId>,
    pub series: Vec<SeriesBlock>,
    pub streams: Vec<StreamBlock>,
    /// What the sender said of the things it observes; recorded when it changes.
    pub resources: Vec<Resource>,
    pub edges: Vec<Edge>,
}

impl Batch {
    pub fn new(tenant: TenantId) -> Self {
        Self {
            tenant,
            id: None,
            series: vec![],
            streams: vec![],
            resources: vec![],
            edges: vec![],
        }
    }

    pub fn samples(&self) -> u64 {
        self.series.iter().map(|s| s.samples.len() as u64).sum()
    }

    pub fn lines(&self) -> u64 {
        self.streams.iter().map(|s| s.lines.len() as u64).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.series.is_empty() && self.streams.is_empty() && self.resources.is_empty() && self.edges.is_empty()
    }
}

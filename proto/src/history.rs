//! History: every change of alerts, incidents, tickets and deliveries, as log lines of the shards.
//!
//! A record is one line of canonical JSON (fields in the order of the struct, no optional ones left out) in a stream
//! `{hindcast_history="<kind>"}` of its tenant. So queries, replays, cuts and pins treat it like any other data.
//! The event time is the cluster time of the meta command that made the change.

use hindcast_model::{Labels, TenantId, TimestampNs};
use serde::{Deserialize, Serialize};

/// The label that marks History streams.
pub const HISTORY_LABEL: &str = "hindcast_history";

/// What kind of object a record speaks of. The order is the order within a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HistoryKind {
    Alert,
    Incident,
    Ticket,
    Delivery,
    Rule,
    Cut,
    Pin,
    Audit,
}

impl HistoryKind {
    pub const ALL: [Self; 8] = [
        Self::Alert,
        Self::Incident,
        Self::Ticket,
        Self::Delivery,
        Self::Rule,
        Self::Cut,
        Self::Pin,
        Self::Audit,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alert => "alert",
            Self::Incident => "incident",
            Self::Ticket => "ticket",
            Self::Delivery => "delivery",
            Self::Rule => "rule",
            Self::Cut => "cut",
            Self::Pin => "pin",
            Self::Audit => "audit",
        }
    }

    /// The labels of the stream that holds records of this kind.
    pub fn stream(self) -> Labels {
        Labels::from_pairs([(HISTORY_LABEL, self.as_str())])
    }
}

/// One change. `index` and `seq` name it for good: the meta command that made it, and its place within.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryRecord {
    pub kind: HistoryKind,
    pub tenant: TenantId,
    /// `INC-1`, `T-1`, an alert id, an effect key.
    pub object: String,
    /// Cluster time of the command.
    pub at: TimestampNs,
    /// Index of the command in the meta group's log.
    pub index: u64,
    /// Counts the records of one command, from 0, over all of its parts.
    pub seq: u32,
    /// What happened: `opened`, `firing`, `assigned`, `delivered` …
    pub change: String,
    /// The state after the change, as the owning part writes it for readers (plain JSON, keys in a fixed order).
    pub state: serde_json::Value,
}

/// A history line that cannot be read back.
#[derive(Debug, thiserror::Error)]
#[error("a history record cannot be read: {0}")]
pub struct BadHistory(#[from] serde_json::Error);

impl HistoryRecord {
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).expect("a record is plain data")
    }

    pub fn from_line(line: &[u8]) -> Result<Self, BadHistory> {
        Ok(serde_json::from_slice(line)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let record = HistoryRecord {
            kind: HistoryKind::Incident,
            tenant: TenantId::default(),
            object: "INC-1".into(),
            at: TimestampNs(5),
            index: 7,
            seq: 0,
            change: "opened".into(),
            state: serde_json::json!({"severity": "critical"}),
        };
        let line = record.to_line();
        assert_eq!(
            line,
            r#"{"kind":"incident","tenant":"default","object":"INC-1","at":5,"index":7,"seq":0,"change":"opened","state":{"severity":"critical"}}"#
        );
        assert_eq!(HistoryRecord::from_line(line.as_bytes()).unwrap(), record);
    }
}

//! Who changed what: one record per change, each holding the hash of the one before.
//!
//! Invariants
//! - One chain for the whole desk, over all tenants; sequence numbers start at 1 and have no gaps.
//! - A record's hash covers every field and the previous hash, so that no record can be changed, added or taken
//!   out without every later hash changing; the head row then differs.
//!
//! Values are JSON objects of the fields that changed, keys sorted. Texts of notes appear as their hash.

use hindcast_model::TimestampNs;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    pub seq: u64,
    /// Commit position: index of the command in the meta group's log.
    pub index: u64,
    pub at: TimestampNs,
    pub actor: String,
    pub action: String,
    /// `T-1`.
    pub object: String,
    pub before: String,
    pub after: String,
    pub previous: [u8; 32],
    pub hash: [u8; 32],
}

/// The end of the chain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditHead {
    pub seq: u64,
    pub hash: [u8; 32],
    /// The command of the last record, and how many it has made: kept with the chain, for who reads it.
    pub index: u64,
    pub in_command: u32,
}

/// What a change says of itself; the rest of the record follows from the head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    pub at: TimestampNs,
    pub actor: String,
    pub action: String,
    pub object: String,
    pub before: String,
    pub after: String,
}

impl AuditHead {
    /// Adds a record made by command `index`.
    pub fn append(&mut self, index: u64, entry: AuditEntry) -> AuditRecord {
        let before = if index == self.index { self.in_command } else { 0 };
        let mut record = AuditRecord {
            seq: self.seq + 1,
            index,
            at: entry.at,
            actor: entry.actor,
            action: entry.action,
            object: entry.object,
            before: entry.before,
            after: entry.after,
            previous: self.hash,
            hash: [0; 32],
        };
        record.hash = record.computed_hash();
        *self = Self {
            seq: record.seq,
            hash: record.hash,
            index,
            in_command: before + 1,
        };
        record
    }
}

impl AuditRecord {
    pub fn computed_hash(&self) -> [u8; 32] {
        let mut h = blake3::Hasher::new_derive_key("hindcast 2026 desk audit record");
        h.update(&self.previous)
            .update(&self.seq.to_le_bytes())
            .update(&self.index.to_le_bytes())
            .update(&self.at.0.to_le_bytes());
        for field in [&self.actor, &self.action, &self.object, &self.before, &self.after] {
            h.update(&(field.len() as u64).to_le_bytes()).update(field.as_bytes());
        }
        *h.finalize().as_bytes()
    }

    pub fn hash_hex(&self) -> String {
        blake3::Hash::from_bytes(self.hash).to_hex().to_string()
    }
}

/// Where a chain is broken. Everything before is as it was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokenChain {
    #[error("audit record {seq} is missing: {found} stands in its place")]
    Gap { seq: u64, found: u64 },
    #[error("audit record {seq} does not follow from the one before it")]
    Previous { seq: u64 },
    #[error("audit record {seq} was changed after it was written")]
    Changed { seq: u64 },
    #[error("the chain should end with audit record {head}, but ends with {last}")]
    Head { head: u64, last: u64 },
}

/// Checks records in ascending order, from the first one, against the head.
pub fn verify_chain<'a>(
    records: impl IntoIterator<Item = &'a AuditRecord>,
    head: &AuditHead,
) -> Result<u64, BrokenChain> {
    let (mut last, mut hash) = (0, [0; 32]);
    for record in records {
        let seq = last + 1;
        if record.seq != seq {
            return Err(BrokenChain::Gap { seq, found: record.seq });
        }
        if record.previous != hash {
            return Err(BrokenChain::Previous { seq });
        }
        if record.computed_hash() != record.hash {
            return Err(BrokenChain::Changed { seq });
        }
        (last, hash) = (seq, record.hash);
    }
    if head.seq != last || head.hash != hash {
        return Err(BrokenChain::Head { head: head.seq, last });
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(n: u64) -> (Vec<AuditRecord>, AuditHead) {
        let mut head = AuditHead::default();
        let records = (0..n).map(|i| {
            let entry = AuditEntry {
                at: TimestampNs::from_secs(i as i64),
                actor: "kim".into(),
                action: "note".into(),
                object: format!("T-{i}"),
                before: "{}".into(),
                after: "{}".into(),
            };
            head.append(i / 2, entry)
        });
        (records.collect(), head)
    }

    #[test]
    fn records_of_one_command_are_counted_apart() {
        let mut head = AuditHead::default();
        let entry = chain(1).0.remove(0);
        let entry = AuditEntry {
            at: entry.at,
            actor: entry.actor,
            action: entry.action,
            object: entry.object,
            before: entry.before,
            after: entry.after,
        };
        let counts = [7, 7, 9].map(|i| {
            head.append(i, entry.clone());
            head.in_command
        });
        assert_eq!(counts, [1, 2, 1]);
    }

    #[test]
    fn a_chain_as_written_verifies() {
        let (records, head) = chain(5);
        assert_eq!(verify_chain(&records, &head), Ok(5));
        assert_eq!(verify_chain(&[], &AuditHead::default()), Ok(0));
    }

    #[test]
    fn every_kind_of_tampering_is_found() {
        let (records, head) = chain(5);
        let mut changed = records.clone();
        changed[2].actor = "lee".into();
        assert_eq!(verify_chain(&changed, &head), Err(BrokenChain::Changed { seq: 3 }));
        // Whoever repairs the hash of the record breaks the next one.
        changed[2].hash = changed[2].computed_hash();
        assert_eq!(verify_chain(&changed, &head), Err(BrokenChain::Previous { seq: 4 }));
        let mut removed = records.clone();
        removed.remove(1);
        assert_eq!(
            verify_chain(&removed, &head),
            Err(BrokenChain::Gap { seq: 2, found: 3 })
        );
        let short = &records[..4];
        assert_eq!(verify_chain(short, &head), Err(BrokenChain::Head { head: 5, last: 4 }));
    }
}

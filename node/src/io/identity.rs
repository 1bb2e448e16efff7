//! Who this node is, and which cluster it belongs to: one small file, written once.
//!
//! Invariants
//! - Only the lowest id founds a cluster, once all listed nodes answer and none belongs to one.
//! - A node is welcomed once: one that comes back without its file never gets its old id again, because its votes
//!   and acknowledgements are forgotten.
//! - A node that joins later draws a token first, and gets one id for it, however often it asks.

use crate::placement;
use hindcast_env::disk::{self, Disk, DiskError};
use hindcast_model::{GroupId, NodeId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

const FILE: &str = "identity.json";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Random, shared by all nodes of the cluster.
    pub cluster: String,
    pub node: NodeId,
    /// Peer addresses of the nodes that founded the cluster; empty for a node on its own.
    pub nodes: BTreeMap<NodeId, String>,
    /// Of those that were there when this node joined. Later ones are rows of the meta group.
    #[serde(default)]
    pub known: BTreeMap<NodeId, String>,
    /// Fixed at the first start.
    pub shards: u64,
    pub replicas: u64,
    /// Nodes that have written their own file; kept by the founder.
    pub welcomed: BTreeSet<NodeId>,
}

impl Identity {
    /// Who has a group in the beginning of its log.
    pub fn founders(&self, group: GroupId) -> Vec<NodeId> {
        if self.nodes.is_empty() {
            return vec![self.node];
        }
        let copies = usize::try_from(self.replicas).unwrap_or(usize::MAX);
        placement::founding(group, &self.nodes.keys().copied().collect(), copies.max(1))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(
        "{path} cannot be read ({why}); it says which cluster this data belongs to, restore it or start with an empty data directory"
    )]
    Damaged { path: &'static str, why: String },
}

pub fn load(disk: &dyn Disk) -> Result<Option<Identity>, IdentityError> {
    let bytes = match disk.read(FILE) {
        Ok(bytes) => bytes,
        Err(e) if e.is_not_found() => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let read = serde_json::from_slice(&bytes);
    read.map(Some).map_err(|e| IdentityError::Damaged {
        path: FILE,
        why: e.to_string(),
    })
}

pub fn store(disk: &dyn Disk, identity: &Identity) -> Result<(), IdentityError> {
    let text = serde_json::to_vec_pretty(identity).expect("an identity is plain data");
    Ok(disk::replace_file(disk, FILE, &text)?)
}

const TOKEN_FILE: &str = "joining.json";

/// The token of a node that has no id yet: drawn once, kept until the id is there.
pub fn joining_token(disk: &dyn Disk, draw: impl FnOnce() -> [u8; 16]) -> Result<[u8; 16], IdentityError> {
    match disk.read(TOKEN_FILE) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| IdentityError::Damaged {
            path: TOKEN_FILE,
            why: e.to_string(),
        }),
        Err(e) if e.is_not_found() => {
            let token = draw();
            let text = serde_json::to_vec(&token).expect("a token is plain data");
            disk::replace_file(disk, TOKEN_FILE, &text)?;
            Ok(token)
        }
        Err(e) => Err(e.into()),
    }
}

/// What a node answers to who asks before there is a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub node: NodeId,
    pub cluster: Option<String>,
}

/// What a node without an identity does next, given what the listed nodes answered (itself included).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Founding {
    /// Not all have answered, or the founder has not called yet.
    Wait(String),
    /// This node is the lowest of all, and none belongs to a cluster.
    Found,
    /// It can never start like this.
    Refuse(String),
}

pub fn next_step(me: NodeId, answers: &BTreeMap<String, Option<Hello>>) -> Founding {
    let missing: Vec<&str> = answers
        .iter()
        .filter(|(_, a)| a.is_none())
        .map(|(addr, _)| addr.as_str())
        .collect();
    if !missing.is_empty() {
        return Founding::Wait(format!("waiting for {}", missing.join(", ")));
    }
    let hellos: Vec<&Hello> = answers.values().flatten().collect();
    let ids: BTreeSet<NodeId> = hellos.iter().map(|h| h.node).collect();
    if ids.len() < hellos.len() {
        return Founding::Refuse("two of the listed nodes have the same id; give each its own --id".to_owned());
    }
    if !ids.contains(&me) {
        return Founding::Refuse(format!("the list of --join does not hold this node ({me}) itself"));
    }
    if let Some(member) = hellos.iter().find(|h| h.cluster.is_some()) {
        return Founding::Wait(format!(
            "node {} belongs to a cluster already; waiting to be welcomed (a node that lost its data never is: start it with --join-cluster, and move its old number to the new one)",
            member.node
        ));
    }
    match ids.first() {
        Some(lowest) if *lowest == me => Founding::Found,
        Some(lowest) => Founding::Wait(format!("waiting for node {lowest} to found the cluster")),
        None => Founding::Wait("nobody is listed".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(given: &[(&str, Option<(u64, bool)>)]) -> BTreeMap<String, Option<Hello>> {
        let hello = |(id, member): (u64, bool)| Hello {
            node: NodeId(id),
            cluster: member.then(|| "c".to_owned()),
        };
        given
            .iter()
            .map(|(addr, a)| ((*addr).to_owned(), a.map(hello)))
            .collect()
    }

    #[test]
    fn only_the_lowest_founds_and_only_when_all_are_there_and_free() {
        let free = answers(&[("a", Some((1, false))), ("b", Some((2, false)))]);
        assert_eq!(next_step(NodeId(1), &free), Founding::Found);
        assert!(matches!(next_step(NodeId(2), &free), Founding::Wait(_)));
        let one_missing = answers(&[("a", Some((1, false))), ("b", None)]);
        assert!(matches!(next_step(NodeId(1), &one_missing), Founding::Wait(_)));
        let wiped_lowest = answers(&[("a", Some((1, false))), ("b", Some((2, true)))]);
        assert!(
            matches!(next_step(NodeId(1), &wiped_lowest), Founding::Wait(_)),
            "it never founds a second cluster"
        );
        let twins = answers(&[("a", Some((1, false))), ("b", Some((1, false)))]);
        assert!(matches!(next_step(NodeId(1), &twins), Founding::Refuse(_)));
        assert!(matches!(next_step(NodeId(3), &free), Founding::Refuse(_)));
    }
}

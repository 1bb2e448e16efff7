//! Nodes of the cluster as rows of the meta group: who there is, where, and what is wished of each.
//!
//! Invariants
//! - Ids count up and are never given twice: a node that lost its data comes back under another one.
//! - `Removed` is for good.
//! - A wish is a row: who leads the meta group carries it out, and a new leader goes on with it.

use crate::cluster_part::CLUSTER_PART;
use bytes::Bytes;
use hindcast_model::{Class, GroupId, NodeId, codec};
use hindcast_raft::{MetaRead, MetaTx, Refusal};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Nodes that a cluster may have, those that are gone not counted.
pub const NODES_MAX: usize = 64;

/// What is wished of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wish {
    /// It holds copies and counts for nothing, until somebody says so.
    Waiting,
    /// It counts in all groups.
    Member,
    /// It leads nothing, then counts nowhere; with `replaced_by`, that node takes its places.
    Leaving {
        replaced_by: Option<NodeId>,
    },
    Removed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    pub id: NodeId,
    /// Where its peers reach it.
    pub address: String,
    pub wish: Wish,
    /// Drawn by the node before it asked for its id: who asks twice gets one id. `None`: it founded the cluster.
    pub token: Option<[u8; 16]>,
}

fn key(id: NodeId) -> Vec<u8> {
    [b"node/".as_slice(), &id.0.to_be_bytes()].concat()
}

fn lead_key(group: GroupId) -> Vec<u8> {
    [b"lead/".as_slice(), &group.0.to_be_bytes()].concat()
}

fn internal(e: codec::DecodeError) -> Refusal {
    Refusal::new(Class::Internal, e.to_string())
}

/// All nodes that ever were, by id. Empty until the founders are noted.
pub fn nodes(read: &dyn MetaRead) -> Vec<NodeRow> {
    let rows = read.scan(CLUSTER_PART, b"node/", None, usize::MAX);
    rows.iter().filter_map(|(_, v)| codec::from_bytes(v).ok()).collect()
}

/// Who is wished to lead which group; groups that are not named are spread.
pub fn leads(read: &dyn MetaRead) -> BTreeMap<GroupId, NodeId> {
    let rows = read.scan(CLUSTER_PART, b"lead/", None, usize::MAX);
    let lead = |(key, value): &(Vec<u8>, Vec<u8>)| {
        let group = u64::from_be_bytes(key.strip_prefix(b"lead/".as_slice())?.try_into().ok()?);
        Some((GroupId(group), codec::from_bytes(value).ok()?))
    };
    rows.iter().filter_map(lead).collect()
}

fn all(tx: &MetaTx<'_>) -> Result<Vec<NodeRow>, Refusal> {
    let rows = tx.scan(CLUSTER_PART, b"node/", None, usize::MAX);
    rows.iter()
        .map(|(_, v)| codec::from_bytes(v).map_err(internal))
        .collect()
}

fn put(tx: &mut MetaTx<'_>, row: &NodeRow) {
    tx.put(CLUSTER_PART, &key(row.id), codec::to_bytes(row));
}

/// Notes who founded the cluster, once.
pub fn found(tx: &mut MetaTx<'_>, founders: BTreeMap<NodeId, String>) -> Result<Bytes, Refusal> {
    if all(tx)?.is_empty() {
        for (id, address) in founders {
            let wish = Wish::Member;
            let token = None;
            put(
                tx,
                &NodeRow {
                    id,
                    address,
                    wish,
                    token,
                },
            );
        }
    }
    Ok(Bytes::new())
}

/// Gives a new node its id; the reply is its row.
pub fn join(tx: &mut MetaTx<'_>, token: [u8; 16], address: String) -> Result<Bytes, Refusal> {
    let rows = all(tx)?;
    if rows.is_empty() {
        let why = "the cluster has not noted its first nodes yet; try again in a second";
        return Err(Refusal::new(Class::Unavailable, why));
    }
    if let Some(known) = rows.iter().find(|r| r.token == Some(token)) {
        return match known.wish {
            Wish::Removed => Err(Refusal::new(
                Class::FixRequest,
                format!("node {} was removed; start with an empty data directory", known.id),
            )),
            _ => Ok(codec::to_bytes(known).into()),
        };
    }
    let live = rows.iter().filter(|r| r.wish != Wish::Removed);
    if let Some(same) = live.clone().find(|r| r.address == address) {
        let id = same.id;
        let why = format!(
            "node {id} has the peer address {address}; if its data is lost, remove it first \
             (`hindcast cluster remove {id}`), its id is not given again"
        );
        return Err(Refusal::new(Class::FixRequest, why));
    }
    if live.count() >= NODES_MAX {
        return Err(Refusal::new(
            Class::FixRequest,
            format!("a cluster has at most {NODES_MAX} nodes"),
        ));
    }
    let row = NodeRow {
        id: NodeId(rows.iter().map(|r| r.id.0).max().unwrap_or(0) + 1),
        address,
        wish: Wish::Waiting,
        token: Some(token),
    };
    put(tx, &row);
    Ok(codec::to_bytes(&row).into())
}

/// Writes down what somebody wants of a node. The same wish again changes nothing.
pub fn wish(tx: &mut MetaTx<'_>, id: NodeId, wish: Wish) -> Result<Bytes, Refusal> {
    let mut rows = all(tx)?;
    let fix = |why: String| Refusal::new(Class::FixRequest, why);
    let unknown = |id| {
        Refusal::new(
            Class::NotFound,
            format!("there is no node {id}; `hindcast cluster status` lists those that are"),
        )
    };
    if !rows.iter().any(|r| r.id == id) {
        return Err(unknown(id));
    }
    if let Wish::Leaving { replaced_by: Some(to) } = wish {
        let other = rows.iter_mut().find(|r| r.id == to).ok_or_else(|| unknown(to))?;
        if to == id {
            return Err(fix(format!("node {id} cannot replace itself")));
        }
        if !matches!(other.wish, Wish::Waiting | Wish::Member) {
            return Err(fix(format!("node {to} is leaving or gone; it can replace nobody")));
        }
        other.wish = Wish::Member;
        let other = other.clone();
        put(tx, &other);
    }
    let others = rows.iter().any(|r| r.id != id && r.wish == Wish::Member);
    let row = rows.iter_mut().find(|r| r.id == id).ok_or_else(|| unknown(id))?;
    match (row.wish, wish) {
        (Wish::Removed, _) => return Err(fix(format!("node {id} was removed; a removed node does not come back"))),
        (_, Wish::Leaving { .. }) if !others => {
            return Err(fix(format!("node {id} is the last that counts; add another first")));
        }
        (_, wish) => row.wish = wish,
    }
    let row = row.clone();
    put(tx, &row);
    Ok(codec::to_bytes(&row).into())
}

/// It counts nowhere any more.
pub fn gone(tx: &mut MetaTx<'_>, id: NodeId) -> Result<Bytes, Refusal> {
    let rows = all(tx)?;
    let row = rows.into_iter().find(|r| r.id == id);
    let mut row = row.ok_or_else(|| {
        Refusal::new(
            Class::NotFound,
            format!("there is no node {id}; `hindcast cluster status` lists those that are"),
        )
    })?;
    if let Wish::Leaving { .. } = row.wish {
        row.wish = Wish::Removed;
        put(tx, &row);
        for (key, node) in tx.scan(CLUSTER_PART, b"lead/", None, usize::MAX) {
            if codec::from_bytes::<NodeId>(&node).is_ok_and(|n| n == id) {
                tx.delete(CLUSTER_PART, &key);
            }
        }
    }
    Ok(Bytes::new())
}

/// Who is to lead a group; `None`: it is spread like the others.
pub fn lead(tx: &mut MetaTx<'_>, group: GroupId, node: Option<NodeId>) -> Result<Bytes, Refusal> {
    match node {
        None => tx.delete(CLUSTER_PART, &lead_key(group)),
        Some(node) => {
            if !all(tx)?.iter().any(|r| r.id == node && r.wish == Wish::Member) {
                let why = format!("node {node} does not count; only one that does can lead");
                return Err(Refusal::new(Class::FixRequest, why));
            }
            tx.put(CLUSTER_PART, &lead_key(group), codec::to_bytes(&node));
        }
    }
    Ok(Bytes::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster_part::{ClusterCommand, ClusterPart};
    use hindcast_raft::{LocalMeta, Meta, MetaError};

    async fn ask(meta: &LocalMeta, command: ClusterCommand) -> Result<NodeRow, MetaError> {
        let reply = meta.propose(CLUSTER_PART, codec::to_bytes(&command)).await?;
        Ok(codec::from_bytes(&reply).unwrap_or(NodeRow {
            id: NodeId(0),
            address: String::new(),
            wish: Wish::Removed,
            token: None,
        }))
    }

    async fn join(meta: &LocalMeta, token: u8, address: &str) -> Result<NodeRow, MetaError> {
        let (token, address) = ([token; 16], address.to_owned());
        ask(meta, ClusterCommand::JoinNode { token, address }).await
    }

    async fn wish(meta: &LocalMeta, node: u64, wish: Wish) -> Result<NodeRow, MetaError> {
        let node = NodeId(node);
        ask(meta, ClusterCommand::WishNode { node, wish }).await
    }

    #[tokio::test]
    async fn an_id_is_given_once_and_never_again() {
        let meta = LocalMeta::new(vec![Box::new(ClusterPart)]);
        assert!(join(&meta, 1, "d").await.is_err(), "the founders are not noted yet");
        let nodes = [(1, "a"), (2, "b"), (3, "c")].map(|(id, a)| (NodeId(id), a.to_owned()));
        let nodes = BTreeMap::from(nodes);
        ask(&meta, ClusterCommand::FoundNodes { nodes }).await.unwrap();
        let four = join(&meta, 1, "d").await.unwrap();
        assert_eq!((four.id, four.wish), (NodeId(4), Wish::Waiting));
        assert_eq!(join(&meta, 1, "d").await.unwrap(), four, "asked twice");
        let why = join(&meta, 2, "d").await.unwrap_err().to_string();
        assert!(why.contains("node 4 has the peer address d"), "{why}");
        wish(&meta, 4, Wish::Leaving { replaced_by: None }).await.unwrap();
        ask(&meta, ClusterCommand::NodeGone { node: NodeId(4) }).await.unwrap();
        assert_eq!(
            join(&meta, 2, "d").await.unwrap().id,
            NodeId(5),
            "a wiped node is another one"
        );
        assert!(join(&meta, 1, "d").await.is_err());
        let back = wish(&meta, 4, Wish::Member).await.unwrap_err().to_string();
        assert!(back.contains("does not come back"), "{back}");
    }

    #[tokio::test]
    async fn the_last_that_counts_cannot_leave_and_a_replacement_counts() {
        let meta = LocalMeta::new(vec![Box::new(ClusterPart)]);
        let nodes = BTreeMap::from([(NodeId(1), "a".to_owned())]);
        ask(&meta, ClusterCommand::FoundNodes { nodes }).await.unwrap();
        join(&meta, 1, "b").await.unwrap();
        let leave = Wish::Leaving { replaced_by: None };
        assert!(
            wish(&meta, 1, leave)
                .await
                .unwrap_err()
                .to_string()
                .contains("the last")
        );
        let replaced = Wish::Leaving {
            replaced_by: Some(NodeId(2)),
        };
        wish(&meta, 1, replaced).await.unwrap();
        let wishes: Vec<_> = super::nodes(&*meta.stale()).iter().map(|r| r.wish).collect();
        assert_eq!(wishes, [replaced, Wish::Member]);
    }
}

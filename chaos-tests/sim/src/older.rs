//! Nodes of the version before: what they do not know of, they neither say nor hear.
//!
//! Of all that nodes exchange, reports are what has grown fields: those are as `codec` writes them, with names. A node becomes one
//! of this version when it starts anew.

use hindcast_model::{GroupId, NodeId, codec};
use hindcast_node::membership::GroupReport;
use serde::{Deserialize, Serialize};

/// A report before damage and lack of room were told in it.
#[derive(Serialize, Deserialize)]
struct OlderReport {
    group: GroupId,
    is_leader: bool,
    term: u64,
    voters: Vec<NodeId>,
    learners: Vec<NodeId>,
    outgoing: Vec<NodeId>,
    peers: Vec<OlderPeer>,
    quarantined: Option<String>,
    is_rebuilding: bool,
}

#[derive(Serialize, Deserialize)]
struct OlderPeer {
    node: NodeId,
    lag: u64,
    is_active: bool,
    in_snapshot: bool,
}

/// What arrives of reports when an older node writes or reads them.
pub fn through_older(reports: &[GroupReport]) -> Vec<GroupReport> {
    let older: Vec<OlderReport> = codec::from_bytes(&codec::to_bytes(&reports)).expect("an older node reads it");
    codec::from_bytes(&codec::to_bytes(&older)).expect("a node of this version reads it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_node_neither_says_nor_hears_that_a_disk_is_full() {
        let report = GroupReport {
            group: GroupId(2),
            is_leader: true,
            voters: vec![NodeId(1)],
            is_short_of_room: true,
            ..GroupReport::default()
        };
        let heard = through_older(std::slice::from_ref(&report));
        let without = GroupReport {
            is_short_of_room: false,
            ..report
        };
        assert_eq!(heard, [without]);
    }
}

//! Who has the groups of which this node has no copy that counts, and who leads them.
//!
//! What a node knows of its own groups it knows from Raft. Of others it asks: as long as there is a group of which it has none,
//! everybody is asked a few times a second. Only who answered lately is in the table.

use super::peers::Peers;
use bytes::Bytes;
use futures::future::join_all;
use hindcast_model::{GroupId, NodeId, codec};
use hindcast_raft::RaftHost;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const CALL_COPIES: &str = "copies";
const PAUSE: Duration = Duration::from_millis(200);
const TIMEOUT: Duration = Duration::from_millis(500);
/// Who did not answer in time may only have been slow.
const ROUNDS_KEPT: u64 = 3;

/// A copy that counts, as its node sees the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Copy {
    group: GroupId,
    term: u64,
    leader: Option<NodeId>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Place {
    /// The leader first.
    holders: Vec<NodeId>,
    leader: Option<NodeId>,
}

impl Place {
    fn lead_by(&mut self, leader: NodeId) {
        self.leader = Some(leader);
        self.sort();
    }

    fn sort(&mut self) {
        let leader = self.leader;
        self.holders.sort_by_key(|n| (Some(*n) != leader, *n));
    }
}

/// Clones share it.
#[derive(Clone)]
pub struct Whereabouts(Arc<Inner>);

struct Inner {
    me: NodeId,
    raft: RaftHost,
    peers: Arc<Peers>,
    table: RwLock<BTreeMap<GroupId, Place>>,
}

impl Whereabouts {
    pub fn start(me: NodeId, raft: RaftHost, peers: Arc<Peers>) -> Self {
        let this = Self(Arc::new(Inner {
            me,
            raft,
            peers: peers.clone(),
            table: RwLock::default(),
        }));
        let answers = this.clone();
        peers.register(
            CALL_COPIES,
            Arc::new(move |_, _| {
                let copies = codec::to_bytes(&answers.own());
                Box::pin(async move { Ok(copies.into()) })
            }),
        );
        tokio::spawn(this.clone().run());
        this
    }

    /// Whether this node answers for the group itself.
    pub fn is_here(&self, group: GroupId) -> bool {
        self.0.raft.counts(group)
    }

    /// The nodes that answer for a group which is not here, the leader first.
    pub fn holders(&self, group: GroupId) -> Vec<NodeId> {
        self.0.table.read().get(&group).map_or(vec![], |p| p.holders.clone())
    }

    /// Who leads the group, by what this node knows or was told.
    pub fn leader(&self, group: GroupId) -> Option<NodeId> {
        if !self.is_here(group)
            && let Some(place) = self.0.table.read().get(&group)
        {
            // Nobody, while those who have it elect one: what a copy that does not count heard last never expires.
            return place.leader;
        }
        // What Raft knew is the last word also of a group that is not here any more, until others were asked.
        self.0.raft.status(group).leader
    }

    /// Somebody who was taken for the leader of a group that is not here says who is. Counts until everybody is asked again, so that
    /// writes follow a leader that hands over within milliseconds.
    pub fn told(&self, group: GroupId, leader: NodeId) {
        if let Some(place) = self.0.table.write().get_mut(&group) {
            place.lead_by(leader);
        }
    }

    fn own(&self) -> Vec<Copy> {
        let groups = self.0.raft.groups().into_iter().filter(|g| self.is_here(*g));
        let copy = |group| {
            let status = self.0.raft.status(group);
            Copy {
                group,
                term: status.term,
                leader: status.leader,
            }
        };
        groups.map(copy).collect()
    }

    async fn run(self) {
        let (mut told, mut round) = (BTreeMap::<NodeId, (u64, Vec<Copy>)>::new(), 0);
        loop {
            let groups = self.0.raft.groups();
            round += 1;
            if groups.iter().any(|g| !self.is_here(*g)) {
                for (node, copies) in self.ask_all().await {
                    told.insert(node, (round, copies));
                }
                told.retain(|_, (at, _)| round - *at <= ROUNDS_KEPT);
                let all: Vec<_> = told.iter().map(|(node, (_, copies))| (*node, copies.clone())).collect();
                let mut table = table(&all);
                // Nor do those count of which nobody says anything.
                let elsewhere = groups.iter().filter(|g| !self.is_here(**g));
                elsewhere.for_each(|g| _ = table.entry(*g).or_default());
                *self.0.table.write() = table;
            } else if !told.is_empty() {
                // What was heard long ago would be believed when a group goes.
                told.clear();
                self.0.table.write().clear();
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn ask_all(&self) -> Vec<(NodeId, Vec<Copy>)> {
        let peers = &self.0.peers;
        let asked = peers
            .ids()
            .into_iter()
            .filter(|id| *id != self.0.me)
            .map(|id| async move {
                let answer = peers.call(id, CALL_COPIES, Bytes::new(), TIMEOUT).await.ok()?;
                Some((id, codec::from_bytes(&answer).ok()?))
            });
        join_all(asked).await.into_iter().flatten().collect()
    }
}

/// Of several words about a leader that of the newest term counts.
fn table(told: &[(NodeId, Vec<Copy>)]) -> BTreeMap<GroupId, Place> {
    let mut places = BTreeMap::<GroupId, Place>::new();
    let mut terms = BTreeMap::<GroupId, u64>::new();
    for (node, copies) in told {
        for copy in copies {
            let place = places.entry(copy.group).or_default();
            place.holders.push(*node);
            let newest = terms.entry(copy.group).or_default();
            if copy.term >= *newest && copy.leader.is_some() {
                (*newest, place.leader) = (copy.term, copy.leader);
            }
        }
    }
    places.values_mut().for_each(Place::sort);
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_word_about_a_leader_counts_and_the_leader_is_asked_first() {
        let copy = |term, leader: Option<u64>| Copy {
            group: GroupId(1),
            term,
            leader: leader.map(NodeId),
        };
        let told = [
            (NodeId(2), vec![copy(3, Some(2))]),
            (NodeId(4), vec![copy(5, Some(4))]),
            (NodeId(3), vec![copy(6, None)]),
        ];
        let mut table = table(&told);
        let place = |leader, holders: [u64; 3]| Place {
            holders: holders.map(NodeId).to_vec(),
            leader: Some(NodeId(leader)),
        };
        assert_eq!(table, BTreeMap::from([(GroupId(1), place(4, [4, 2, 3]))]));
        let heard = table.get_mut(&GroupId(1)).unwrap();
        heard.lead_by(NodeId(3));
        assert_eq!(*heard, place(3, [3, 2, 4]));
    }
}

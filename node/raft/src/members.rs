//! Who belongs to a group: the memberships that its log went through, and which change of them may be proposed.
//!
//! A membership is raft's `ConfState`: voters, learners, and while it is joint the voters before. It changes with the
//! entry that changes it being applied, so the one that counts is the one as of the applied index; a snapshot carries
//! the one as of its own index.
//!
//! Invariants
//! - What is written to the log is a membership at or before what the machine holds durably; later ones follow from the
//!   log's own entries. So no crash can leave the two apart.
//! - A change that would take the leader out, leave no voters, or count a node that is far behind is not proposed.

use hindcast_env::buggify::{Point as Rare, buggify};
use hindcast_model::NodeId;
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState};
use serde::{Deserialize, Serialize};

/// One step of a change. All steps of a change take effect together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberStep {
    /// Gets everything and counts for nothing. For a voter: it counts no more.
    Learner(NodeId),
    /// A learner that has caught up counts from now on.
    Voter(NodeId),
    Remove(NodeId),
}

impl MemberStep {
    pub fn node(self) -> NodeId {
        match self {
            Self::Learner(n) | Self::Voter(n) | Self::Remove(n) => n,
        }
    }
}

/// A learner becomes a voter when it is no more entries than this behind what is committed.
pub const PROMOTE_LAG_MAX: u64 = 512;

/// How far another member is, as the leader knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerProgress {
    pub node: NodeId,
    /// It has confirmed the log up to here.
    pub matched: u64,
    /// Committed entries that it has not confirmed.
    pub lag: u64,
    /// It was heard of within the last election timeout.
    pub is_active: bool,
    /// It gets a snapshot now.
    pub in_snapshot: bool,
}

/// The memberships since the one that is written, oldest first: (index of the entry that made it, membership).
#[derive(Clone, Debug)]
pub struct Confs(Vec<(u64, ConfState)>);

impl Confs {
    pub fn new(index: u64, conf: ConfState) -> Self {
        Self(vec![(index, conf)])
    }

    pub fn now(&self) -> &ConfState {
        &self.0[self.0.len() - 1].1
    }

    /// Index of the entry that made the newest one.
    pub fn since(&self) -> u64 {
        self.0[self.0.len() - 1].0
    }

    /// The membership as of an applied index. `None`: from before what is known here.
    pub fn at(&self, index: u64) -> Option<&ConfState> {
        self.0.iter().rev().find(|(i, _)| *i <= index).map(|(_, conf)| conf)
    }

    /// # Panics
    /// When an older membership would follow a newer one.
    pub fn push(&mut self, index: u64, conf: ConfState) {
        assert!(
            index > self.since(),
            "membership of {index} after that of {}",
            self.since()
        );
        self.0.push((index, conf));
    }

    /// Nobody asks for memberships before `index` any more. Returns the one to write, when it is another than before.
    pub fn forget_before(&mut self, index: u64) -> Option<(u64, ConfState)> {
        let kept = self.0.iter().rposition(|(i, _)| *i <= index)?;
        if kept == 0 {
            return None;
        }
        self.0.drain(..kept);
        Some(self.0[0].clone())
    }
}

pub fn is_joint(conf: &ConfState) -> bool {
    !conf.voters_outgoing.is_empty()
}

/// Counts in elections and commits, in either half of a joint membership.
pub fn is_voter(conf: &ConfState, node: NodeId) -> bool {
    conf.voters.contains(&node.0) || conf.voters_outgoing.contains(&node.0)
}

pub fn is_learner(conf: &ConfState, node: NodeId) -> bool {
    conf.learners.contains(&node.0) || conf.learners_next.contains(&node.0)
}

pub fn is_member(conf: &ConfState, node: NodeId) -> bool {
    is_voter(conf, node) || is_learner(conf, node)
}

/// Why a change is not to be proposed; `progress` tells how far another member is.
pub fn misfit(
    conf: &ConfState,
    leader: NodeId,
    steps: &[MemberStep],
    progress: impl Fn(NodeId) -> Option<PeerProgress>,
) -> Option<&'static str> {
    let mut voters = conf.voters.clone();
    for (n, step) in steps.iter().enumerate() {
        let node = step.node();
        if node.0 == 0 {
            return Some("a node's number is at least 1");
        }
        if steps[..n].iter().any(|s| s.node() == node) {
            return Some("a change names a node once");
        }
        if node == leader {
            return Some("the leader cannot be taken out by itself; transfer the leadership first");
        }
        match step {
            MemberStep::Learner(_) if is_learner(conf, node) => return Some("the node is a learner already"),
            MemberStep::Learner(_) => voters.retain(|v| *v != node.0),
            MemberStep::Remove(_) if !is_member(conf, node) => return Some("the node is no member"),
            MemberStep::Remove(_) => voters.retain(|v| *v != node.0),
            MemberStep::Voter(_) if !is_learner(conf, node) => {
                return Some("only a learner becomes a voter; add the node as a learner first");
            }
            MemberStep::Voter(_) => {
                if !progress(node).is_some_and(|p| p.is_active && p.lag <= PROMOTE_LAG_MAX) {
                    return Some("the learner has not caught up yet");
                }
                voters.push(node.0);
            }
        }
    }
    if steps.is_empty() {
        return Some("nothing is to be changed");
    }
    voters.is_empty().then_some("no voter would be left")
}

/// The change as an entry holds it. Whatever touches voters goes through a joint membership, which ends by itself.
pub fn encode(conf: &ConfState, steps: &[MemberStep]) -> Vec<u8> {
    let mut change = ConfChangeV2::default();
    let single = |step: &MemberStep| {
        let mut single = ConfChangeSingle {
            node_id: step.node().0,
            ..ConfChangeSingle::default()
        };
        single.set_change_type(match step {
            MemberStep::Learner(_) => ConfChangeType::AddLearnerNode,
            MemberStep::Voter(_) => ConfChangeType::AddNode,
            MemberStep::Remove(_) => ConfChangeType::RemoveNode,
        });
        single
    };
    change.set_changes(steps.iter().map(single).collect::<Vec<_>>().into());
    let touches_voters = |s: &MemberStep| matches!(s, MemberStep::Voter(_)) || is_voter(conf, s.node());
    if steps.iter().any(touches_voters) {
        change.set_transition(match buggify(Rare::JointStays) {
            true => ConfChangeTransition::Explicit,
            false => ConfChangeTransition::Implicit,
        });
    }
    change.write_to_bytes().expect("a change encodes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(voters: &[u64], learners: &[u64]) -> ConfState {
        let mut conf = ConfState::default();
        conf.set_voters(voters.to_vec());
        conf.set_learners(learners.to_vec());
        conf
    }

    #[test]
    fn a_membership_is_that_of_its_index_and_the_written_one_moves_with_the_cut() {
        let mut confs = Confs::new(0, conf(&[1], &[]));
        confs.push(5, conf(&[1], &[2]));
        confs.push(9, conf(&[1, 2], &[]));
        assert_eq!(confs.at(4), Some(&conf(&[1], &[])));
        assert_eq!(confs.at(5), Some(&conf(&[1], &[2])));
        assert_eq!(confs.at(100), Some(confs.now()));
        assert_eq!(confs.forget_before(4), None, "the first one still counts");
        assert_eq!(confs.forget_before(7), Some((5, conf(&[1], &[2]))));
        assert_eq!(confs.at(4), None);
        assert_eq!(confs.forget_before(8), None, "it is written already");
        assert_eq!(confs.forget_before(9), Some((9, conf(&[1, 2], &[]))));
    }

    #[test]
    fn what_would_hurt_is_not_proposed() {
        use MemberStep::{Learner, Remove, Voter};
        let three = conf(&[1, 2, 3], &[4]);
        let progress = |lag| {
            move |node| {
                Some(PeerProgress {
                    node,
                    matched: 0,
                    lag,
                    is_active: true,
                    in_snapshot: false,
                })
            }
        };
        let why = |steps: &[MemberStep], lag| misfit(&three, NodeId(1), steps, progress(lag));
        assert_eq!(why(&[Learner(NodeId(5))], 0), None);
        assert_eq!(why(&[Voter(NodeId(4))], PROMOTE_LAG_MAX), None);
        assert!(
            why(&[Voter(NodeId(4))], PROMOTE_LAG_MAX + 1)
                .unwrap()
                .contains("caught up")
        );
        assert!(why(&[Voter(NodeId(5))], 0).unwrap().contains("only a learner"));
        assert!(why(&[Remove(NodeId(1))], 0).unwrap().contains("leader"));
        assert!(why(&[Remove(NodeId(9))], 0).unwrap().contains("no member"));
        assert!(why(&[], 0).is_some() && why(&[Remove(NodeId(2)), Learner(NodeId(2))], 0).is_some());
        assert_eq!(
            why(&[Voter(NodeId(4)), Remove(NodeId(2))], 0),
            None,
            "a move is one change"
        );
        let alone = conf(&[2], &[]);
        let why = misfit(&alone, NodeId(1), &[Remove(NodeId(2))], progress(0));
        assert_eq!(why, Some("no voter would be left"));
    }
}

//! Lost nodes and who takes their places: what the `members` task of each node and an operator do, over the real
//! `membership` core and the rows of the meta group.
//!
//! A node whose disk is lost never starts again. A new one asks for an id, which the log gives, and an operator wishes
//! the lost one to be replaced by it; the rest is `next_steps`.

use crate::node::{Fate, NodeEvent, Payload, Running};
use crate::older::through_older;
use crate::plan::{MS, SECOND};
use crate::world::{Event, Then as WorldThen, World};
use hindcast_env::Rng;
use hindcast_model::{GroupId, NodeId, SpanNs, codec};
use hindcast_node::cluster_part::{CLUSTER_PART, ClusterCommand};
use hindcast_node::membership::{GroupReport, Moves, PeerReport, Reports, Step, next_steps};
use hindcast_node::node_rows::{self, NodeRow, Wish};
use hindcast_raft::{Role, decode_reply};
use std::collections::{BTreeMap, BTreeSet};

/// How often a node looks at the cluster.
pub const PAUSE: u64 = 500 * MS;
/// A joining node, and the operator, ask again after this.
const AGAIN: u64 = SECOND;
const GROWN_MAX: u64 = 2;

/// What a call of this side is for.
#[derive(Clone, Copy, Debug)]
pub enum Then {
    Nothing,
    Joined { joiner: u64 },
    Wished { joiner: u64 },
}

/// A node that joins, mostly to take the place of a lost one.
struct Joiner {
    replaces: Option<u64>,
    /// What the log gave it.
    id: Option<NodeId>,
}

#[derive(Default)]
pub struct Members {
    joiners: BTreeMap<u64, Joiner>,
    next_joiner: u64,
    grown: u64,
    /// Lost nodes that no group counts any more, as the log says.
    removed: BTreeSet<u64>,
    /// Of the leader of the meta group, by node and life.
    moves: BTreeMap<(u64, u64), Moves>,
    /// Until when its round is under way: the next one begins after it.
    busy: BTreeMap<(u64, u64), u64>,
}

fn call(world: &mut World, node: u64, command: &ClusterCommand, then: Then) {
    let payload = Payload::Meta {
        part: CLUSTER_PART,
        body: codec::to_bytes(command),
    };
    world.call(node, GroupId::META, payload, WorldThen::Members(then));
}

/// How the groups stand by the word of one node.
fn reports_of(running: &Running) -> Vec<GroupReport> {
    let sorted = |mut nodes: Vec<NodeId>| {
        nodes.sort_unstable();
        nodes
    };
    let report = |group: GroupId| {
        let s = running.status(group);
        let peer = |p: &hindcast_raft::PeerProgress| PeerReport {
            node: p.node,
            lag: p.lag,
            is_active: p.is_active,
            in_snapshot: p.in_snapshot,
            snapshot: None,
        };
        GroupReport {
            group,
            is_leader: s.role == Role::Leader,
            term: s.term,
            peers: s.peers.iter().map(peer).collect(),
            has_state: Some(s.applied > 0 || s.quarantined.is_some() || s.is_rebuilding),
            voters: sorted(s.voters),
            learners: sorted(s.learners),
            outgoing: sorted(s.outgoing),
            quarantined: s.quarantined,
            is_rebuilding: s.is_rebuilding,
            // Nobody scrubs here: damage is found when a node opens its files.
            damaged: None,
            is_short_of_room: running.is_short_of_room(),
        }
    };
    running.groups().into_iter().map(report).collect()
}

impl Members {
    /// A node's look at the cluster; the answers of the others take a while.
    pub fn turn(world: &mut World, node: u64) {
        let Some(running) = world.runs(node) else { return };
        let life = running.life();
        if world.lost().into_iter().any(|n| world.members_ref().counts(n)) {
            let rows = node_rows::nodes(&*running.meta);
            let gone = rows.iter().filter(|r| r.wish == Wish::Removed).map(|r| r.id.0);
            world.members().removed.extend(gone);
        }
        let Some(running) = world.runs(node) else { return };
        if running.leader(GroupId::META) != Some(node) {
            world.members().moves.remove(&(node, life));
            return;
        }
        if node_rows::nodes(&*running.meta).is_empty() {
            let nodes = (1..=world.plan.nodes).map(|n| (NodeId(n), format!("founder {n}")));
            let found = ClusterCommand::FoundNodes { nodes: nodes.collect() };
            return call(world, node, &found, Then::Nothing);
        }
        let now = world.now;
        if world
            .members()
            .busy
            .get(&(node, life))
            .is_some_and(|until| now < *until)
        {
            return;
        }
        let mut reports = Reports::new();
        let mut longest = 0;
        for other in world.living() {
            let (Some(there), Some(back)) = (world.flight(node, other), world.flight(other, node)) else {
                continue;
            };
            if let Some(running) = world.runs(other) {
                longest = longest.max(there + back);
                let said = reports_of(running);
                let is_older = world.is_older(node) || world.is_older(other);
                let heard = if is_older { through_older(&said) } else { said };
                reports.insert(NodeId(other), heard);
            }
        }
        world.members().busy.insert((node, life), now + longest + 1);
        world.at(longest, Event::MembersAct { node, life, reports });
    }

    /// What follows from the answers.
    pub fn act(world: &mut World, node: u64, life: u64, mut reports: Reports) {
        let now = SpanNs(world.now);
        let Some(running) = world.runs(node).filter(|r| r.life() == life) else {
            return;
        };
        // Its own word is the last one that it asks for.
        let own = reports_of(running);
        let own = if world.is_older(node) { through_older(&own) } else { own };
        reports.insert(NodeId(node), own);
        let rows = node_rows::nodes(&*running.meta);
        let (leads, groups) = (node_rows::leads(&*running.meta), running.groups());
        let copies = match world.plan.copies {
            0 => usize::MAX,
            copies => copies as usize,
        };
        let moves = world
            .members()
            .moves
            .entry((node, life))
            .or_insert_with(|| Moves::starting(now));
        for step in next_steps(&rows, &leads, &groups, copies, &reports, now, moves) {
            let to = match &step {
                Step::Gone { node: gone } => {
                    call(world, node, &ClusterCommand::NodeGone { node: *gone }, Then::Nothing);
                    continue;
                }
                Step::Change { leader, .. } | Step::Transfer { leader, .. } => leader.0,
                Step::Rebuild { node, .. } | Step::Release { node, .. } => node.0,
            };
            world.note(|| format!("node {node} has this done by node {to}: {step:?}"));
            if let Some(delay) = world.flight(node, to) {
                // Who does not get it in time does not get it at all: nothing else is ordered before.
                let due = world.now + delay;
                let event = NodeEvent::Step { step, due };
                world.at(delay, Event::Arrive { to, event });
                let until = world.members().busy.entry((node, life)).or_default();
                *until = due.max(*until) + 1;
            }
        }
    }

    /// Somebody brings a new machine.
    pub fn replace(world: &mut World, lost: u64) {
        Self::bring(world, Some(lost));
    }

    /// Somebody brings one more. Not without end: each costs its messages.
    pub fn grow(world: &mut World) {
        if world.members().grown < GROWN_MAX {
            world.members().grown += 1;
            Self::bring(world, None);
        }
    }

    fn bring(world: &mut World, replaces: Option<u64>) {
        let members = world.members();
        // Nobody goes on asking that the one that was lost be a member: of two wishes the later one holds.
        let is_lost = |j: &Joiner| j.replaces.is_none() && j.id.is_some_and(|id| Some(id.0) == replaces);
        members.joiners.retain(|_, j| !is_lost(j));
        members.next_joiner += 1;
        let joiner = members.next_joiner;
        members.joiners.insert(joiner, Joiner { replaces, id: None });
        let delay = 1 + world.rng.below(2 * SECOND);
        world.at(delay, Event::Join { joiner });
    }

    /// Asks for the id, then for the place.
    pub fn join(world: &mut World, joiner: u64) {
        let Some(j) = world.members().joiners.get(&joiner) else {
            return;
        };
        let (replaces, id) = (j.replaces.map(NodeId), j.id);
        world.at(AGAIN, Event::Join { joiner });
        let Some(via) = world.running_node() else { return };
        let mut token = [0; 16];
        token[..8].copy_from_slice(&joiner.to_le_bytes());
        let (command, then) = match id {
            None => (
                ClusterCommand::JoinNode {
                    token,
                    address: format!("joiner {joiner}"),
                },
                Then::Joined { joiner },
            ),
            Some(new) => {
                let (node, wish) = match replaces {
                    Some(lost) => (lost, Wish::Leaving { replaced_by: id }),
                    None => (new, Wish::Member),
                };
                (ClusterCommand::WishNode { node, wish }, Then::Wished { joiner })
            }
        };
        call(world, via, &command, then);
    }

    pub fn answered(world: &mut World, then: Then, fate: Fate) {
        let reply = match fate {
            Fate::Applied { index, reply } => {
                world.ledger.tell(GroupId::META, index);
                decode_reply(&reply).ok()
            }
            Fate::NotLeader | Fate::Unconfirmed => None,
        };
        let row = reply.and_then(|r| codec::from_bytes::<NodeRow>(&r).ok());
        match (then, row) {
            (Then::Joined { joiner }, Some(row)) => {
                let Some(j) = world.members().joiners.get_mut(&joiner).filter(|j| j.id.is_none()) else {
                    return;
                };
                j.id = Some(row.id);
                world.add_node(row.id.0);
                Self::join(world, joiner);
            }
            (Then::Wished { joiner }, Some(_)) => {
                let joined = world.members().joiners.remove(&joiner);
                match joined.and_then(|j| j.replaces) {
                    Some(_) => world.ledger.counts.replaced += 1,
                    None => world.ledger.counts.grown += 1,
                }
            }
            _ => {}
        }
    }

    /// Whether a lost node may still count somewhere.
    pub fn counts(&self, lost: u64) -> bool {
        !self.removed.contains(&lost)
    }

    pub fn unsettled(&self, world: &World) -> Vec<String> {
        let lost = world.lost().into_iter().filter(|n| self.counts(*n));
        let lost = lost.map(|n| format!("lost node {n} is not replaced"));
        let joining = self.joiners.values().filter(|j| j.replaces.is_none());
        lost.chain(joining.map(|j| format!("node {:?} has not joined yet", j.id)))
            .collect()
    }
}

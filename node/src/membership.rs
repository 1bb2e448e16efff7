//! What brings the groups nearer to what is wished of the nodes: the next steps, from wishes, reports and time.
//!
//! Pure. The leader of the meta group asks every node how its groups stand and has the steps carried out; whatever is
//! lost on the way (a step, a report, that leader) is seen again in the next round, because nothing is remembered but
//! when leaders were last moved.
//!
//! Leaders are spread over the members, and go away from a node whose disk is full as long as another one has room.
//!
//! Who has which copies: the meta group is on every node, a shard on as many as there are to be copies of it, and every node has
//! about as many as another. What is there counts first: a copy moves only to make up for one that goes, or to a node that has
//! two fewer. It is there before the other one goes, and that one forgets what it had.
//!
//! Adding: learner, caught up, voter. Leaving: leaders go first, then the voter, in one joint change with the one that
//! takes its place, if any. A copy that lost what it had confirmed is taken out, begins again and comes back the same way.
//! So does a copy with damaged files, which is first told that it counts no more, and only then taken out.
//!
//! Invariants
//! - At most one step per group and round, and none while its membership is joint.
//! - No step leaves a group without a majority that was heard of.
//! - A copy is told to begin again, or to forget what it has, only when its group does not count it any more.
//! - A copy that is not needed goes only when all that are needed count.
//! - A copy with damaged files goes only when the others are a majority without it, the group's leader is sound, no other copy
//!   of the group is lost or on its way back, and no other copy of its node is. The last sound one does not go.

use crate::node_rows::{NodeRow, Wish};
use crate::placement::{self, Wanted};
use hindcast_model::{GroupId, NodeId, SpanNs};
use hindcast_raft::MemberStep;
use hindcast_raft::members::PROMOTE_LAG_MAX;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Groups in which one node catches up at the same time.
pub const CATCHING_UP_MAX: usize = 2;
/// Between two moves of leaders that nobody asked for.
pub const SPREAD_PAUSE: SpanNs = SpanNs::from_secs(5);
/// A group whose leader was moved is left alone for so long.
pub const SPREAD_AGAIN: SpanNs = SpanNs::from_secs(60);
/// A leader that is asked again to hand over.
const TRANSFER_PAUSE: SpanNs = SpanNs::from_secs(2);

/// A group as one node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupReport {
    pub group: GroupId,
    pub is_leader: bool,
    pub term: u64,
    pub voters: Vec<NodeId>,
    pub learners: Vec<NodeId>,
    /// While the membership is joint: the voters before.
    pub outgoing: Vec<NodeId>,
    /// Of the others, when this node leads.
    pub peers: Vec<PeerReport>,
    pub quarantined: Option<String>,
    pub is_rebuilding: bool,
    /// What is damaged of this node's files; the copy takes part nevertheless.
    #[serde(default)]
    pub damaged: Option<String>,
    /// This node takes no writes now, for lack of room on its disk: others had better lead.
    #[serde(default)]
    pub is_short_of_room: bool,
    /// There is something here to forget. `None`: the node is of a version that does not say so.
    #[serde(default)]
    pub has_state: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerReport {
    pub node: NodeId,
    pub lag: u64,
    pub is_active: bool,
    pub in_snapshot: bool,
    /// Bytes of the snapshot that are sent, and all of them, while one is on its way.
    #[serde(default)]
    pub snapshot: Option<(u64, u64)>,
}

/// What the nodes said; who did not answer is not in it.
pub type Reports = BTreeMap<NodeId, Vec<GroupReport>>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// At the group's leader.
    Change {
        group: GroupId,
        leader: NodeId,
        steps: Vec<MemberStep>,
    },
    Transfer {
        group: GroupId,
        leader: NodeId,
        to: NodeId,
    },
    /// At the node whose copy it is.
    Rebuild {
        group: GroupId,
        node: NodeId,
    },
    /// At the node whose copy it is: its group has enough of them.
    Release {
        group: GroupId,
        node: NodeId,
    },
    /// The node counts nowhere any more.
    Gone {
        node: NodeId,
    },
}

/// When leaders were last moved, by the monotonic clock of who asks; and what the last round left as it is.
#[derive(Clone, Debug, Default)]
pub struct Moves {
    last: Option<SpanNs>,
    by_group: BTreeMap<GroupId, SpanNs>,
    waiting: Waiting,
}

/// Damaged copies that are not repaired now, and why.
pub type Waiting = BTreeMap<(GroupId, NodeId), Hindrance>;

/// Why a damaged copy stays as it is: what of it is damaged is refused, the rest is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hindrance {
    /// The others are no majority that was heard of.
    NoMajority,
    /// Nobody can lead the group of whom no damage is known.
    NoSound,
    /// Another copy of the group is lost or on its way back, or damaged and before this one.
    AnotherCopy(NodeId),
    /// Its node has one copy that is on its way back.
    AnotherGroup(GroupId),
    /// Beside the old files a snapshot has to find room on its node's disk, which has none to spare.
    NoRoom,
}

impl std::fmt::Display for Hindrance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoMajority => f.write_str("the other copies that were heard of are no majority without it"),
            Self::NoSound => f.write_str("no copy that can lead is without damage"),
            Self::AnotherCopy(node) => write!(f, "the copy of node {node} comes first"),
            Self::AnotherGroup(group) => write!(f, "its node's copy of group {group} comes first"),
            Self::NoRoom => f.write_str("its node's disk has no room for a snapshot"),
        }
    }
}

impl Moves {
    /// As if leaders had been moved just now.
    pub fn starting(now: SpanNs) -> Self {
        Self {
            last: Some(now),
            ..Self::default()
        }
    }

    /// As of the last round.
    pub fn waiting(&self) -> &Waiting {
        &self.waiting
    }
}

struct Round<'a> {
    wishes: BTreeMap<NodeId, Wish>,
    leads: &'a BTreeMap<GroupId, NodeId>,
    reports: &'a Reports,
    now: SpanNs,
    /// Who is to have a copy of a group.
    wanted: Wanted,
    /// Groups in which a node is a learner that has not caught up.
    catching_up: BTreeMap<NodeId, usize>,
    /// The copy of a node that is on its way back: one at a time.
    coming_back: BTreeMap<NodeId, GroupId>,
    waiting: Waiting,
}

/// The newest leader's report of a group.
pub fn leader_of(reports: &Reports, group: GroupId) -> Option<(NodeId, &GroupReport)> {
    let all = reports
        .iter()
        .flat_map(|(node, groups)| groups.iter().map(|g| (*node, g)));
    let led = all.filter(|(_, g)| g.group == group && g.is_leader && g.quarantined.is_none());
    led.max_by_key(|(_, g)| g.term)
}

/// All that is to be done now, at most one step per group. A shard is to have so many copies, if there are so many nodes.
pub fn next_steps(
    rows: &[NodeRow],
    leads: &BTreeMap<GroupId, NodeId>,
    groups: &[GroupId],
    copies: usize,
    reports: &Reports,
    now: SpanNs,
    moves: &mut Moves,
) -> Vec<Step> {
    let mut round = Round {
        wishes: rows.iter().map(|r| (r.id, r.wish)).collect(),
        leads,
        reports,
        now,
        wanted: placement::wanted(rows, groups, copies, reports),
        catching_up: BTreeMap::new(),
        coming_back: BTreeMap::new(),
        waiting: Waiting::new(),
    };
    for group in groups {
        if let Some((_, report)) = leader_of(reports, *group) {
            for row in rows {
                let has_one = report.voters.contains(&row.id) || report.learners.contains(&row.id);
                if !has_one && !round.is_wanted(row.id, *group) {
                    continue;
                }
                let is_there = match row.wish {
                    Wish::Member => report.voters.contains(&row.id),
                    _ => report.learners.contains(&row.id) || !round.is_damaged(row.id, *group),
                };
                if !is_there || !round.is_well(row.id, *group) {
                    round.coming_back.entry(row.id).or_insert(*group);
                }
            }
            for peer in &report.peers {
                let behind = !peer.is_active || peer.lag > PROMOTE_LAG_MAX;
                if report.learners.contains(&peer.node) && behind {
                    *round.catching_up.entry(peer.node).or_default() += 1;
                }
            }
        }
    }
    let mut steps = vec![];
    for group in groups {
        match round.step(*group, moves) {
            Some(step) => steps.push(step),
            None => steps.extend(round.release(*group)),
        }
    }
    steps.extend(round.gone(groups));
    moves.waiting = round.waiting;
    steps
}

impl Round<'_> {
    fn report(&self, node: NodeId, group: GroupId) -> Option<&GroupReport> {
        self.reports.get(&node)?.iter().find(|g| g.group == group)
    }

    fn is_well(&self, node: NodeId, group: GroupId) -> bool {
        self.report(node, group)
            .is_some_and(|r| r.quarantined.is_none() && !r.is_rebuilding)
    }

    fn has_room(&self, node: NodeId, group: GroupId) -> bool {
        self.report(node, group).is_some_and(|r| !r.is_short_of_room)
    }

    /// It is well, and nothing of it is known to be damaged.
    fn is_sound(&self, node: NodeId, group: GroupId) -> bool {
        self.is_well(node, group) && !self.is_damaged(node, group)
    }

    fn is_damaged(&self, node: NodeId, group: GroupId) -> bool {
        self.report(node, group).is_some_and(|r| r.damaged.is_some())
    }

    fn step(&mut self, group: GroupId, moves: &mut Moves) -> Option<Step> {
        let (leader, report) = leader_of(self.reports, group)?;
        let report = report.clone();
        if !report.outgoing.is_empty() {
            return None;
        }
        let change = |steps| Step::Change { group, leader, steps };
        if let Some(step) = self.take_out(group, leader, &report, moves) {
            return Some(step);
        }
        if let Some(step) = self.heal(group, leader, &report) {
            return Some(step);
        }
        if let Some(step) = self.repair(group, leader, &report, moves) {
            return Some(step);
        }
        let is_member = |n: NodeId| report.voters.contains(&n) || report.learners.contains(&n);
        let wanted: Vec<NodeId> = self.wanted(group).collect();
        for node in &wanted {
            let reached = self.report(*node, group).is_some_and(|r| r.quarantined.is_none());
            let busy = self.catching_up.get(node).copied().unwrap_or(0);
            if !is_member(*node) && reached && busy < CATCHING_UP_MAX {
                *self.catching_up.entry(*node).or_default() += 1;
                return Some(change(vec![MemberStep::Learner(*node)]));
            }
        }
        for node in wanted {
            let counts = self.wishes.get(&node) == Some(&Wish::Member);
            // One that has a snapshot to come has confirmed nothing, whatever came late from its life before.
            let has_begun = self.report(node, group).is_some_and(|own| own.has_state != Some(false));
            let whole = has_begun && self.is_well(node, group) && !self.is_being_repaired(node, group, leader);
            if counts && whole && report.learners.contains(&node) && has_caught_up(&report, node) {
                return Some(change(vec![MemberStep::Voter(node)]));
            }
        }
        if let Some(step) = self.trim(group, leader, &report, moves) {
            return Some(step);
        }
        self.spread(group, leader, &report, moves)
    }

    /// Who is to have a copy.
    fn wanted(&self, group: GroupId) -> impl Iterator<Item = NodeId> {
        self.wanted.get(&group).into_iter().flatten().copied()
    }

    fn is_wanted(&self, node: NodeId, group: GroupId) -> bool {
        self.wanted.get(&group).is_some_and(|w| w.contains(&node))
    }

    fn is_member(&self, node: NodeId) -> bool {
        self.wishes.get(&node) == Some(&Wish::Member)
    }

    /// Copies that the group does not need, once all that it needs count: first they learn, as learners, that they do not.
    fn trim(&self, group: GroupId, leader: NodeId, report: &GroupReport, moves: &mut Moves) -> Option<Step> {
        let has_come = |n: &NodeId| !self.is_member(*n) || report.voters.contains(n);
        if !self.wanted(group).all(|n| has_come(&n)) {
            return None;
        }
        let all = report.voters.iter().chain(&report.learners).copied();
        let stays = |n: &NodeId| matches!(self.wishes.get(n), Some(Wish::Waiting | Wish::Member));
        let change = |step| {
            let steps = vec![step];
            Some(Step::Change { group, leader, steps })
        };
        for node in all.filter(|n| stays(n) && !self.is_wanted(*n, group)) {
            if report.learners.contains(&node) {
                // One that is silent has not heard yet.
                if self.report(node, group).is_some_and(|own| !counts_by_itself(own, node)) {
                    return change(MemberStep::Remove(node));
                }
            } else if node == leader {
                let to = self.best_successor(group, leader, report)?;
                return self.transfer(group, leader, to, TRANSFER_PAUSE, moves);
            } else if self.stays_whole(group, leader, report, &[node], None) && self.others_are_sound(group, node) {
                return change(MemberStep::Learner(node));
            }
        }
        None
    }

    /// What would be left is not only what is damaged.
    fn others_are_sound(&self, group: GroupId, node: NodeId) -> bool {
        !self.is_sound(node, group) || self.wanted(group).any(|n| n != node && self.is_sound(n, group))
    }

    /// A copy that does not count, that nobody needs, and that has something to forget. One that does not know that it does not count
    /// hears of it first, as a learner.
    fn release(&self, group: GroupId) -> Option<Step> {
        let (leader, report) = leader_of(self.reports, group).filter(|_| group != GroupId::META)?;
        if !report.outgoing.is_empty() {
            return None;
        }
        let counts = |n: &NodeId| report.voters.contains(n) || report.learners.contains(n);
        // Who leaves ends soon.
        let stay = self
            .wishes
            .iter()
            .filter(|(_, w)| matches!(w, Wish::Waiting | Wish::Member))
            .map(|(n, _)| *n);
        let others = stay.filter(|n| !counts(n) && !self.is_wanted(*n, group));
        let mut to_go = others.filter_map(|n| Some((n, self.report(n, group)?)));
        let (node, own) = to_go.find(|(_, own)| own.has_state == Some(true))?;
        if counts_by_itself(own, node) {
            let steps = vec![MemberStep::Learner(node)];
            return Some(Step::Change { group, leader, steps });
        }
        Some(Step::Release { group, node })
    }

    /// Those that leave, or are gone and still counted.
    fn take_out(&self, group: GroupId, leader: NodeId, report: &GroupReport, moves: &mut Moves) -> Option<Step> {
        let leaving = report.voters.iter().chain(&report.learners).filter_map(|n| {
            let by = match self.wishes.get(n)? {
                Wish::Leaving { replaced_by } => *replaced_by,
                Wish::Removed => None,
                Wish::Waiting | Wish::Member => return None,
            };
            Some((*n, by))
        });
        let change = |steps| Some(Step::Change { group, leader, steps });
        for (node, by) in leaving {
            // One that is silent may never catch up.
            let comes = |n: &NodeId| self.is_member(*n) && !report.voters.contains(n) && self.reports.contains_key(n);
            let by = by.filter(|b| self.is_wanted(*b, group));
            let by = by.or_else(|| self.wanted(group).find(comes));
            if report.learners.contains(&node) {
                return change(vec![MemberStep::Remove(node)]);
            }
            if node == leader {
                let to = self.best_successor(group, leader, report)?;
                return self.transfer(group, leader, to, TRANSFER_PAUSE, moves);
            }
            if self.leads_anything(node) {
                // It is drained first.
                continue;
            }
            // One that takes its place and has nothing yet is nothing to come back from.
            let whole = by.filter(|n| report.learners.contains(n) && has_caught_up(report, *n));
            let mut left = report.voters.iter().copied().chain(whole).filter(|n| *n != node);
            if self.is_sound(node, group) && !left.any(|n| self.is_sound(n, group)) {
                // The others come back from it first.
                continue;
            }
            match by {
                Some(by)
                    if report.learners.contains(&by)
                        && has_caught_up(report, by)
                        && self.stays_whole(group, leader, report, &[node], Some(by)) =>
                {
                    return change(vec![MemberStep::Voter(by), MemberStep::Remove(node)]);
                }
                // Its place is taken by who is not there yet: that one is added as any other.
                Some(by) if !report.voters.contains(&by) && self.wishes.get(&by) == Some(&Wish::Member) => {}
                _ if self.stays_whole(group, leader, report, &[node], None) => {
                    return change(vec![MemberStep::Remove(node)]);
                }
                _ => {}
            }
        }
        None
    }

    fn leads_anything(&self, node: NodeId) -> bool {
        let groups: BTreeSet<GroupId> = self.reports.values().flatten().map(|g| g.group).collect();
        groups
            .into_iter()
            .any(|g| leader_of(self.reports, g).is_some_and(|(l, _)| l == node))
    }

    /// Copies that lost what they had confirmed.
    fn heal(&self, group: GroupId, leader: NodeId, report: &GroupReport) -> Option<Step> {
        for node in self.wanted(group) {
            let lost = self.report(node, group).is_some_and(|r| r.quarantined.is_some());
            if !lost || node == leader {
                continue;
            }
            let remove = Step::Change {
                group,
                leader,
                steps: vec![MemberStep::Remove(node)],
            };
            if report.learners.contains(&node) {
                return Some(remove);
            }
            if !report.voters.contains(&node) {
                return Some(Step::Rebuild { group, node });
            }
            if self.stays_whole(group, leader, report, &[node], None) {
                return Some(remove);
            }
        }
        None
    }

    /// Copies with damaged files: first told that they count no more, then taken out, then they begin again.
    fn repair(&mut self, group: GroupId, leader: NodeId, report: &GroupReport, moves: &mut Moves) -> Option<Step> {
        let is_led_by_damaged = self.is_damaged(leader, group);
        if is_led_by_damaged && let Some(to) = self.best_successor(group, leader, report) {
            return self.transfer(group, leader, to, TRANSFER_PAUSE, moves);
        }
        for node in self.wanted(group).collect::<Vec<_>>() {
            let own = self.report(node, group);
            let Some(own) = own.filter(|r| r.damaged.is_some() && r.quarantined.is_none() && !r.is_rebuilding) else {
                continue;
            };
            if is_led_by_damaged {
                self.waiting.insert((group, node), Hindrance::NoSound);
                continue;
            }
            let counts_by_itself = own.voters.contains(&node) || own.outgoing.contains(&node);
            let change = |step| {
                Some(Step::Change {
                    group,
                    leader,
                    steps: vec![step],
                })
            };
            if report.voters.contains(&node) {
                if let Some(hindrance) = self.hindrance(node, group, leader, report) {
                    self.waiting.insert((group, node), hindrance);
                    continue;
                }
                self.coming_back.insert(node, group);
                return change(MemberStep::Learner(node));
            }
            let first = *self.coming_back.entry(node).or_insert(group);
            if first != group {
                self.waiting.insert((group, node), Hindrance::AnotherGroup(first));
                continue;
            }
            match report.learners.contains(&node) {
                // It has not heard yet.
                true if counts_by_itself => {}
                true => return change(MemberStep::Remove(node)),
                // It was taken out and does not know: as a learner it hears of it.
                false if counts_by_itself => return change(MemberStep::Learner(node)),
                false => return Some(Step::Rebuild { group, node }),
            }
        }
        None
    }

    /// A damaged copy that counts no more goes all the way, as long as there is a sound one to come back from.
    fn is_being_repaired(&self, node: NodeId, group: GroupId, leader: NodeId) -> bool {
        self.is_damaged(node, group) && self.is_sound(leader, group)
    }

    /// Why a damaged copy that counts has to stay.
    fn hindrance(&self, node: NodeId, group: GroupId, leader: NodeId, report: &GroupReport) -> Option<Hindrance> {
        let members = report.voters.iter().chain(&report.learners).copied();
        let all: BTreeSet<NodeId> = members.chain(self.wanted(group)).filter(|n| *n != node).collect();
        let goes_first = |n: &NodeId| match self.report(*n, group) {
            // Who does not answer is of no majority, below, and nothing else.
            None => false,
            Some(_) if !self.is_well(*n, group) => true,
            Some(_) => self.is_damaged(*n, group) && (*n < node || !report.voters.contains(n)),
        };
        if let Some(other) = all.iter().copied().find(goes_first) {
            return Some(Hindrance::AnotherCopy(other));
        }
        if let Some(other) = self.coming_back.get(&node).filter(|g| **g != group) {
            return Some(Hindrance::AnotherGroup(*other));
        }
        if !self.has_room(node, group) {
            return Some(Hindrance::NoRoom);
        }
        let heard = |n: &&NodeId| {
            let active = report.peers.iter().any(|p| p.node == **n && p.is_active);
            **n != node && (**n == leader || active) && self.is_well(**n, group)
        };
        let others = report.voters.iter().filter(heard).count();
        (others <= report.voters.len() / 2).then_some(Hindrance::NoMajority)
    }

    /// Whether those left are a majority that was heard of, among themselves and, for the joint change, before.
    fn stays_whole(
        &self,
        group: GroupId,
        leader: NodeId,
        report: &GroupReport,
        out: &[NodeId],
        more: Option<NodeId>,
    ) -> bool {
        let heard = |n: &NodeId| {
            let active = report.peers.iter().any(|p| p.node == *n && p.is_active);
            *n == leader || (active && self.is_well(*n, group))
        };
        let before = report.voters.iter().filter(|n| heard(n)).count();
        let left: Vec<NodeId> = report
            .voters
            .iter()
            .copied()
            .filter(|n| !out.contains(n))
            .chain(more)
            .collect();
        let after = left.iter().filter(|n| heard(n)).count();
        before > report.voters.len() / 2 && after > left.len() / 2
    }

    /// A voter that stays, is well and nearest to the leader.
    fn best_successor(&self, group: GroupId, leader: NodeId, report: &GroupReport) -> Option<NodeId> {
        let fit = report.peers.iter().filter(|p| {
            let stays = self.wishes.get(&p.node) == Some(&Wish::Member);
            p.node != leader && stays && report.voters.contains(&p.node) && p.is_active && self.is_sound(p.node, group)
        });
        fit.min_by_key(|p| {
            let goes = !self.is_wanted(p.node, group);
            (goes, !self.has_room(p.node, group), p.lag, p.node)
        })
        .map(|p| p.node)
    }

    fn transfer(&self, group: GroupId, leader: NodeId, to: NodeId, pause: SpanNs, moves: &mut Moves) -> Option<Step> {
        let moved = moves.by_group.get(&group);
        if moved.is_some_and(|at| self.now.0.saturating_sub(at.0) < pause.0) {
            return None;
        }
        moves.by_group.insert(group, self.now);
        moves.last = Some(self.now);
        Some(Step::Transfer { group, leader, to })
    }

    /// Leaders go away from a full disk and to where they are wished, at once; the rest is spread, slowly.
    fn spread(&self, group: GroupId, leader: NodeId, report: &GroupReport, moves: &mut Moves) -> Option<Step> {
        if !self.has_room(leader, group) {
            let to = self.best_successor(group, leader, report);
            let to = to.filter(|to| self.has_room(*to, group))?;
            return self.transfer(group, leader, to, TRANSFER_PAUSE, moves);
        }
        let mut able = report.voters.clone();
        able.retain(|n| self.is_member(*n) && self.is_wanted(*n, group));
        able.sort_unstable();
        let wished = self.leads.get(&group).filter(|n| able.contains(n)).copied();
        let by_turn = able.get((group.0 % able.len().max(1) as u64) as usize).copied();
        let to = wished.or(by_turn)?;
        let near = report
            .peers
            .iter()
            .any(|p| p.node == to && p.is_active && p.lag <= PROMOTE_LAG_MAX);
        if to == leader || !near || !self.is_sound(to, group) || !self.has_room(to, group) {
            return None;
        }
        if wished.is_some() {
            return self.transfer(group, leader, to, TRANSFER_PAUSE, moves);
        }
        let recently = moves
            .last
            .is_some_and(|at| self.now.0.saturating_sub(at.0) < SPREAD_PAUSE.0);
        if recently {
            return None;
        }
        self.transfer(group, leader, to, SPREAD_AGAIN, moves)
    }

    fn gone(&self, groups: &[GroupId]) -> Vec<Step> {
        let leaders: Option<Vec<_>> = groups.iter().map(|g| leader_of(self.reports, *g)).collect();
        let Some(leaders) = leaders else { return vec![] };
        let counted = |node: &NodeId| {
            leaders
                .iter()
                .any(|(_, r)| [&r.voters, &r.learners, &r.outgoing].iter().any(|l| l.contains(node)))
        };
        let leaving = self.wishes.iter().filter(|(_, w)| matches!(w, Wish::Leaving { .. }));
        let out = leaving.filter(|(n, _)| !counted(n));
        out.map(|(node, _)| Step::Gone { node: *node }).collect()
    }
}

/// By its own log; one that is quarantined goes by none.
fn counts_by_itself(own: &GroupReport, node: NodeId) -> bool {
    own.quarantined.is_none() && (own.voters.contains(&node) || own.outgoing.contains(&node))
}

fn has_caught_up(report: &GroupReport, node: NodeId) -> bool {
    let near = |p: &&PeerReport| p.node == node && p.is_active && p.lag <= PROMOTE_LAG_MAX && !p.in_snapshot;
    report.peers.iter().any(|p| near(&p))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use hindcast_env::{Rng, SeededRng};
    use std::fmt::Write as _;

    /// A toy cluster that does what it is told, at once.
    struct World {
        rows: Vec<NodeRow>,
        leads: BTreeMap<GroupId, NodeId>,
        groups: BTreeMap<GroupId, Group>,
        /// Of a shard; the meta group is group 0.
        copies: usize,
        /// Copies with data, whether they count or not.
        stored: BTreeSet<(NodeId, GroupId)>,
        /// Voters and learners as each copy heard of them last; before, it goes by the founders.
        heard: BTreeMap<(NodeId, GroupId), (BTreeSet<NodeId>, BTreeSet<NodeId>)>,
        dead: BTreeSet<NodeId>,
        lost: BTreeSet<(NodeId, GroupId)>,
        damaged: BTreeSet<(NodeId, GroupId)>,
        slow: BTreeSet<NodeId>,
        full: BTreeSet<NodeId>,
        /// They have not heard of changes of members since, and go by what they were founded with.
        deaf: BTreeSet<NodeId>,
        now: SpanNs,
        moves: Moves,
    }

    struct Group {
        leader: NodeId,
        voters: BTreeSet<NodeId>,
        learners: BTreeSet<NodeId>,
    }

    fn row(id: u64, wish: Wish) -> NodeRow {
        NodeRow {
            id: NodeId(id),
            address: format!("n{id}"),
            wish,
            token: None,
        }
    }

    impl World {
        fn new(groups: u64) -> Self {
            let voters: BTreeSet<NodeId> = (1..=3).map(NodeId).collect();
            let group = |g| {
                let group = Group {
                    leader: NodeId(1),
                    voters: voters.clone(),
                    learners: BTreeSet::new(),
                };
                (GroupId(g), group)
            };
            Self {
                rows: (1..=3).map(|n| row(n, Wish::Member)).collect(),
                leads: BTreeMap::new(),
                groups: (0..groups).map(group).collect(),
                copies: usize::MAX,
                stored: BTreeSet::new(),
                heard: BTreeMap::new(),
                dead: BTreeSet::new(),
                lost: BTreeSet::new(),
                damaged: BTreeSet::new(),
                slow: BTreeSet::new(),
                full: BTreeSet::new(),
                deaf: BTreeSet::new(),
                now: SpanNs::from_secs(100),
                moves: Moves::default(),
            }
        }

        fn reports(&self) -> Reports {
            let ids = self.rows.iter().filter(|r| r.wish != Wish::Removed).map(|r| r.id);
            let living = ids.filter(|n| !self.dead.contains(n));
            living
                .map(|n| (n, self.groups.iter().map(|(g, s)| self.report(n, *g, s)).collect()))
                .collect()
        }

        fn report(&self, node: NodeId, group: GroupId, s: &Group) -> GroupReport {
            let lost = self.lost.contains(&(node, group));
            let peer = |n: &NodeId| PeerReport {
                node: *n,
                lag: if self.slow.contains(n) { PROMOTE_LAG_MAX + 1 } else { 0 },
                is_active: !self.dead.contains(n) && !self.lost.contains(&(*n, group)),
                in_snapshot: false,
                snapshot: None,
            };
            let others = s.voters.iter().chain(&s.learners).filter(|n| **n != node);
            let founders = || ((1..=3).map(NodeId).collect(), BTreeSet::new());
            let (voters, learners) = self.heard.get(&(node, group)).cloned().unwrap_or_else(founders);
            GroupReport {
                group,
                is_leader: s.leader == node && !lost,
                term: 1,
                voters: voters.into_iter().collect(),
                learners: learners.into_iter().collect(),
                peers: if s.leader == node {
                    others.map(peer).collect()
                } else {
                    vec![]
                },
                quarantined: lost.then(|| "lost".to_owned()),
                damaged: self.damaged.contains(&(node, group)).then(|| "a file".to_owned()),
                is_short_of_room: self.full.contains(&node),
                has_state: Some(self.stored.contains(&(node, group))),
                ..GroupReport::default()
            }
        }

        /// By group, the voters that have all that they should.
        fn whole(&self) -> BTreeMap<GroupId, BTreeSet<NodeId>> {
            let is_whole = |n: &NodeId, g: GroupId| !self.damaged.contains(&(*n, g)) && !self.lost.contains(&(*n, g));
            let of = |(g, s): (&GroupId, &Group)| (*g, s.voters.iter().filter(|n| is_whole(n, *g)).copied().collect());
            self.groups.iter().map(of).collect()
        }

        fn round(&mut self) -> Vec<Step> {
            let groups: Vec<GroupId> = self.groups.keys().copied().collect();
            for (id, g) in &self.groups {
                let all = g.voters.iter().chain(&g.learners);
                let hear = all.filter(|n| !self.dead.contains(n));
                for node in hear {
                    self.stored.insert((*node, *id));
                    if !self.deaf.contains(node) {
                        self.heard.insert((*node, *id), (g.voters.clone(), g.learners.clone()));
                    }
                }
            }
            let reports = self.reports();
            let copies = self.copies;
            let steps = next_steps(
                &self.rows,
                &self.leads,
                &groups,
                copies,
                &reports,
                self.now,
                &mut self.moves,
            );
            for step in &steps {
                self.carry_out(step);
            }
            self.now = SpanNs(self.now.0 + SpanNs::from_secs(1).0);
            steps
        }

        fn carry_out(&mut self, step: &Step) {
            match step {
                Step::Change { group, leader, steps } => {
                    let g = self.groups.get_mut(group).unwrap();
                    assert_eq!(g.leader, *leader);
                    for s in steps {
                        match s {
                            MemberStep::Learner(n) => {
                                assert_ne!(g.leader, *n, "the leader of {group} was made a learner");
                                g.voters.remove(n);
                                g.learners.insert(*n);
                            }
                            MemberStep::Voter(n) => {
                                assert!(g.learners.remove(n), "{n} was no learner");
                                g.voters.insert(*n);
                            }
                            MemberStep::Remove(n) => {
                                assert_ne!(g.leader, *n, "the leader of {group} was taken out");
                                g.learners.remove(n);
                                g.voters.remove(n);
                            }
                        }
                    }
                }
                Step::Transfer { group, to, .. } => {
                    let g = self.groups.get_mut(group).unwrap();
                    assert!(g.voters.contains(to) && !self.dead.contains(to));
                    g.leader = *to;
                }
                Step::Rebuild { group, node } => {
                    let g = &self.groups[group];
                    assert!(
                        !g.voters.contains(node),
                        "{node} counts in {group} and is told to begin again"
                    );
                    self.lost.remove(&(*node, *group));
                    self.damaged.remove(&(*node, *group));
                }
                Step::Release { group, node } => {
                    let g = &self.groups[group];
                    let counts = g.voters.contains(node) || g.learners.contains(node);
                    assert!(!counts, "{node} counts in {group} and is told to forget it");
                    let heard = self.heard.remove(&(*node, *group)).unwrap_or_default();
                    let is_lost = self.lost.contains(&(*node, *group));
                    assert!(
                        is_lost || !heard.0.contains(node),
                        "{node} does not know that it does not count in {group}"
                    );
                    let founders: BTreeSet<NodeId> = (1..=3).map(NodeId).filter(|n| n != node).collect();
                    self.heard.insert((*node, *group), (founders, BTreeSet::from([*node])));
                    self.stored.remove(&(*node, *group));
                    self.lost.remove(&(*node, *group));
                    self.damaged.remove(&(*node, *group));
                }
                Step::Gone { node } => {
                    let row = self.rows.iter_mut().find(|r| r.id == *node).unwrap();
                    row.wish = Wish::Removed;
                }
            }
        }

        fn wish(&mut self, id: u64, wish: Wish) {
            match self.rows.iter_mut().find(|r| r.id == NodeId(id)) {
                Some(row) => row.wish = wish,
                None => self.rows.push(row(id, wish)),
            }
        }
    }

    fn show(step: &Step) -> String {
        match step {
            Step::Change { group, steps, .. } => {
                let words: Vec<_> = steps
                    .iter()
                    .map(|s| match s {
                        MemberStep::Learner(n) => format!("learner {n}"),
                        MemberStep::Voter(n) => format!("voter {n}"),
                        MemberStep::Remove(n) => format!("remove {n}"),
                    })
                    .collect();
                format!("{group}: {}", words.join(", "))
            }
            Step::Transfer { group, leader, to } => format!("{group}: lead {leader} -> {to}"),
            Step::Rebuild { group, node } => format!("{group}: {node} begins again"),
            Step::Release { group, node } => format!("{group}: {node} forgets"),
            Step::Gone { node } => format!("{node} is gone"),
        }
    }

    /// Commands: `wait N`, `add N`, `remove N`, `move N M`, `die N`, `live N`, `lose N GROUP`, `damage N GROUP`, `slow N`,
    /// `fast N`, `fill N`, `free N`, `deaf N`, `hear N`, `lead GROUP N`, `rounds N`. Told after the rounds: which damaged copies stay, and why.
    fn check(groups: u64, script: &str, expected: Expect) {
        check_copies(usize::MAX, groups, script, expected);
    }

    /// Groups beside the meta group have so many copies.
    fn check_copies(copies: usize, groups: u64, script: &str, expected: Expect) {
        let mut world = World::new(groups);
        world.copies = copies;
        let mut out = String::new();
        for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
            writeln!(out, "{line}").unwrap();
            let words: Vec<_> = line.split_whitespace().collect();
            let number = |n: usize| words[n].parse::<u64>().unwrap();
            match words[0] {
                "wait" => world.wish(number(1), Wish::Waiting),
                "add" => world.wish(number(1), Wish::Member),
                "remove" => world.wish(number(1), Wish::Leaving { replaced_by: None }),
                "move" => {
                    let replaced_by = Some(NodeId(number(2)));
                    world.wish(number(2), Wish::Member);
                    world.wish(number(1), Wish::Leaving { replaced_by });
                }
                "die" => drop(world.dead.insert(NodeId(number(1)))),
                "live" => drop(world.dead.remove(&NodeId(number(1)))),
                "lose" => drop(world.lost.insert((NodeId(number(1)), GroupId(number(2))))),
                "damage" => drop(world.damaged.insert((NodeId(number(1)), GroupId(number(2))))),
                "slow" => drop(world.slow.insert(NodeId(number(1)))),
                "fast" => drop(world.slow.remove(&NodeId(number(1)))),
                "fill" => drop(world.full.insert(NodeId(number(1)))),
                "free" => drop(world.full.remove(&NodeId(number(1)))),
                "deaf" => drop(world.deaf.insert(NodeId(number(1)))),
                "hear" => drop(world.deaf.remove(&NodeId(number(1)))),
                "lead" => drop(world.leads.insert(GroupId(number(1)), NodeId(number(2)))),
                "rounds" => {
                    for n in 1..=number(1) {
                        let steps: Vec<_> = world.round().iter().map(show).collect();
                        if !steps.is_empty() {
                            writeln!(out, "    {n}. {}", steps.join("; ")).unwrap();
                        }
                    }
                    for ((group, node), why) in world.moves.waiting() {
                        writeln!(out, "    {group}: {node} stays damaged: {why}").unwrap();
                    }
                }
                other => panic!("{other}"),
            }
        }
        expected.assert_eq(&out);
    }

    #[test]
    fn a_new_node_catches_up_in_a_few_groups_at_a_time_and_counts_when_it_is_told() {
        check(
            3,
            "
            lead 0 1
            lead 1 1
            lead 2 1
            slow 4
            wait 4
            rounds 3
            fast 4
            rounds 3
            add 4
            rounds 3
            ",
            expect![[r#"
                lead 0 1
                lead 1 1
                lead 2 1
                slow 4
                wait 4
                rounds 3
                    1. 0: learner 4; 1: learner 4
                fast 4
                rounds 3
                    1. 2: learner 4
                add 4
                rounds 3
                    1. 0: voter 4; 1: voter 4; 2: voter 4
            "#]],
        );
    }

    #[test]
    fn a_node_that_leaves_hands_over_first_also_when_its_wish_is_found_by_the_next_leader() {
        check(
            2,
            "
            lead 0 1
            lead 1 1
            rounds 1
            remove 1
            rounds 6
            ",
            expect![[r#"
                lead 0 1
                lead 1 1
                rounds 1
                remove 1
                rounds 6
                    1. 0: lead 1 -> 2; 1: lead 1 -> 2
                    2. 0: remove 1; 1: remove 1
                    3. 1 is gone
            "#]],
        );
    }

    #[test]
    fn a_dead_node_is_replaced_in_one_change() {
        check(
            1,
            "
            die 3
            wait 4
            move 3 4
            rounds 4
            ",
            expect![[r#"
                die 3
                wait 4
                move 3 4
                rounds 4
                    1. 0: learner 4
                    2. 0: voter 4, remove 3
                    3. 3 is gone
            "#]],
        );
    }

    #[test]
    fn nobody_is_taken_out_while_that_would_end_the_majority() {
        check(
            1,
            "
            die 2
            remove 3
            rounds 5
            live 2
            rounds 3
            ",
            expect![[r#"
                die 2
                remove 3
                rounds 5
                live 2
                rounds 3
                    1. 0: remove 3
                    2. 3 is gone
            "#]],
        );
    }

    #[test]
    fn a_copy_that_lost_entries_goes_and_comes_back_by_itself() {
        check(
            2,
            "
            lead 0 1
            lead 1 1
            lose 3 1
            rounds 6
            ",
            expect![[r#"
                lead 0 1
                lead 1 1
                lose 3 1
                rounds 6
                    1. 1: remove 3
                    2. 1: 3 begins again
                    3. 1: learner 3
                    4. 1: voter 3
            "#]],
        );
    }

    #[test]
    fn a_copy_with_damaged_files_counts_no_more_then_goes_and_comes_back_one_of_a_node_at_a_time() {
        check(
            2,
            "
            lead 0 1
            lead 1 1
            damage 3 0
            damage 3 1
            rounds 12
            ",
            expect![[r#"
                lead 0 1
                lead 1 1
                damage 3 0
                damage 3 1
                rounds 12
                    1. 0: learner 3
                    2. 0: remove 3
                    3. 0: 3 begins again
                    4. 0: learner 3
                    5. 0: voter 3
                    6. 1: learner 3
                    7. 1: remove 3
                    8. 1: 3 begins again
                    9. 1: learner 3
                    10. 1: voter 3
            "#]],
        );
    }

    #[test]
    fn a_leader_with_damaged_files_hands_over_to_a_sound_one_first() {
        check(
            1,
            "
            lead 0 1
            damage 1 0
            rounds 9
            ",
            expect![[r#"
                lead 0 1
                damage 1 0
                rounds 9
                    1. 0: lead 1 -> 2
                    2. 0: learner 1
                    3. 0: remove 1
                    4. 0: 1 begins again
                    5. 0: learner 1
                    6. 0: voter 1
                    7. 0: lead 2 -> 1
            "#]],
        );
    }

    #[test]
    fn a_damaged_copy_stays_while_another_is_not_whole_or_the_rest_is_no_majority() {
        check(
            1,
            "
            lead 0 1
            damage 3 0
            die 2
            rounds 2
            ",
            expect![[r#"
                lead 0 1
                damage 3 0
                die 2
                rounds 2
                    0: 3 stays damaged: the other copies that were heard of are no majority without it
            "#]],
        );
        check(
            1,
            "
            lead 0 1
            damage 1 0
            damage 2 0
            damage 3 0
            rounds 2
            ",
            expect![[r#"
                lead 0 1
                damage 1 0
                damage 2 0
                damage 3 0
                rounds 2
                    0: 1 stays damaged: no copy that can lead is without damage
                    0: 2 stays damaged: no copy that can lead is without damage
                    0: 3 stays damaged: no copy that can lead is without damage
            "#]],
        );
        check(
            1,
            "
            lead 0 1
            remove 2
            rounds 2
            damage 3 0
            rounds 2
            ",
            expect![[r#"
                lead 0 1
                remove 2
                rounds 2
                    1. 0: remove 2
                    2. 2 is gone
                damage 3 0
                rounds 2
                    0: 3 stays damaged: the other copies that were heard of are no majority without it
            "#]],
        );
        check(
            1,
            "
            lead 0 1
            lose 2 0
            damage 3 0
            rounds 12
            ",
            expect![[r#"
                lead 0 1
                lose 2 0
                damage 3 0
                rounds 12
                    1. 0: remove 2
                    2. 0: 2 begins again
                    3. 0: learner 2
                    4. 0: voter 2
                    5. 0: learner 3
                    6. 0: remove 3
                    7. 0: 3 begins again
                    8. 0: learner 3
                    9. 0: voter 3
            "#]],
        );
    }

    #[test]
    fn two_damaged_copies_come_back_one_after_the_other_from_the_sound_one() {
        check(
            1,
            "
            lead 0 2
            damage 1 0
            damage 2 0
            rounds 14
            ",
            expect![[r#"
                lead 0 2
                damage 1 0
                damage 2 0
                rounds 14
                    1. 0: lead 1 -> 3
                    2. 0: learner 1
                    3. 0: remove 1
                    4. 0: 1 begins again
                    5. 0: learner 1
                    6. 0: voter 1
                    7. 0: learner 2
                    8. 0: remove 2
                    9. 0: 2 begins again
                    10. 0: learner 2
                    11. 0: voter 2
                    12. 0: lead 3 -> 2
            "#]],
        );
    }

    #[test]
    fn the_last_sound_copy_does_not_leave_before_the_others_came_back_from_it() {
        check(
            1,
            "
            lead 0 1
            damage 2 0
            damage 3 0
            remove 1
            rounds 20
            ",
            expect![[r#"
                lead 0 1
                damage 2 0
                damage 3 0
                remove 1
                rounds 20
                    1. 0: learner 2
                    2. 0: remove 2
                    3. 0: 2 begins again
                    4. 0: learner 2
                    5. 0: voter 2
                    6. 0: lead 1 -> 2
                    7. 0: remove 1
                    8. 1 is gone
                    0: 3 stays damaged: the other copies that were heard of are no majority without it
            "#]],
        );
    }

    #[test]
    fn leaders_are_spread_slowly_and_go_at_once_where_they_are_wished() {
        check(
            4,
            "
            rounds 15
            lead 2 1
            rounds 2
            ",
            expect![[r#"
                rounds 15
                    1. 1: lead 1 -> 2
                    6. 2: lead 1 -> 3
                lead 2 1
                rounds 2
                    1. 2: lead 3 -> 1
            "#]],
        );
    }

    #[test]
    fn a_damaged_copy_that_has_not_heard_that_it_counts_no_more_is_not_told_to_begin_again() {
        check(
            1,
            "
            deaf 3
            damage 3 0
            rounds 3
            hear 3
            rounds 1
            deaf 3
            rounds 2
            hear 3
            rounds 5
            ",
            expect![[r#"
                deaf 3
                damage 3 0
                rounds 3
                    1. 0: learner 3
                hear 3
                rounds 1
                    1. 0: remove 3
                deaf 3
                rounds 2
                    1. 0: 3 begins again
                    2. 0: learner 3
                hear 3
                rounds 5
                    1. 0: voter 3
            "#]],
        );
    }

    #[test]
    fn a_damaged_copy_waits_for_room() {
        check(
            1,
            "
            fill 3
            damage 3 0
            rounds 2
            free 3
            rounds 5
            ",
            expect![[r#"
                fill 3
                damage 3 0
                rounds 2
                    0: 3 stays damaged: its node's disk has no room for a snapshot
                free 3
                rounds 5
                    1. 0: learner 3
                    2. 0: remove 3
                    3. 0: 3 begins again
                    4. 0: learner 3
                    5. 0: voter 3
            "#]],
        );
    }

    #[test]
    fn leaders_go_away_from_a_full_disk_and_come_back_when_there_is_room() {
        check(
            3,
            "
            rounds 15
            fill 2
            rounds 10
            lead 1 2
            rounds 4
            free 2
            rounds 4
            fill 1
            fill 2
            fill 3
            rounds 4
            ",
            expect![[r#"
                rounds 15
                    1. 1: lead 1 -> 2
                    6. 2: lead 1 -> 3
                fill 2
                rounds 10
                    1. 1: lead 2 -> 1
                lead 1 2
                rounds 4
                free 2
                rounds 4
                    1. 1: lead 1 -> 2
                fill 1
                fill 2
                fill 3
                rounds 4
            "#]],
        );
    }

    #[test]
    fn a_node_more_takes_copies_over_until_all_have_about_as_many() {
        check_copies(
            3,
            5,
            "
            lead 0 1
            lead 1 1
            lead 2 1
            lead 3 1
            lead 4 1
            wait 4
            rounds 3
            add 4
            rounds 40
            ",
            expect![[r#"
                lead 0 1
                lead 1 1
                lead 2 1
                lead 3 1
                lead 4 1
                wait 4
                rounds 3
                    1. 0: learner 4
                add 4
                rounds 40
                    1. 0: voter 4; 1: learner 4
                    2. 1: voter 4
                    3. 1: learner 3
                    4. 1: remove 3
                    5. 1: 3 forgets; 2: learner 4
                    6. 2: voter 4
                    7. 2: learner 2
                    8. 2: remove 2
                    9. 2: 2 forgets; 3: learner 4
                    10. 3: voter 4
                    11. 3: lead 1 -> 2
                    12. 3: learner 1
                    13. 3: remove 1
                    14. 3: 1 forgets
            "#]],
        );
    }

    #[test]
    fn a_node_that_leaves_is_made_up_for_before_it_goes() {
        check_copies(
            3,
            3,
            "
            lead 0 1
            lead 1 1
            lead 2 1
            add 4
            rounds 40
            remove 4
            rounds 40
            ",
            expect![[r#"
                lead 0 1
                lead 1 1
                lead 2 1
                add 4
                rounds 40
                    1. 0: learner 4; 1: learner 4
                    2. 0: voter 4; 1: voter 4
                    3. 1: learner 3
                    4. 1: remove 3
                    5. 1: 3 forgets
                remove 4
                rounds 40
                    1. 0: remove 4; 1: learner 3
                    2. 1: voter 3, remove 4
                    3. 4 is gone
            "#]],
        );
    }

    #[test]
    fn a_damaged_or_lost_copy_comes_back_where_it_was_and_one_that_moved_is_forgotten() {
        check_copies(
            3,
            3,
            "
            lead 0 1
            lead 1 1
            lead 2 1
            add 4
            add 5
            rounds 40
            damage 2 2
            rounds 12
            lose 3 2
            rounds 12
            ",
            expect![[r#"
                lead 0 1
                lead 1 1
                lead 2 1
                add 4
                add 5
                rounds 40
                    1. 0: learner 4; 1: learner 4
                    2. 0: learner 5; 1: voter 4
                    3. 0: voter 4; 1: learner 3
                    4. 0: voter 5; 1: remove 3
                    5. 1: learner 5
                    6. 1: voter 5
                    7. 1: learner 2
                    8. 1: remove 2
                    9. 1: 2 forgets
                    10. 1: 3 forgets
                damage 2 2
                rounds 12
                    1. 2: learner 2
                    2. 2: remove 2
                    3. 2: 2 begins again
                    4. 2: learner 2
                    5. 2: voter 2
                lose 3 2
                rounds 12
                    1. 2: remove 3
                    2. 2: 3 begins again
                    3. 2: learner 3
                    4. 2: voter 3
            "#]],
        );
    }

    #[test]
    fn whatever_is_wished_and_dies_the_groups_get_there_and_keep_their_majority() {
        for seed in 0..200 {
            let mut rng = SeededRng::new(seed);
            let mut world = World::new(3);
            if seed % 2 == 1 {
                world.copies = 3;
            }
            let mut next = 4;
            for _ in 0..120 {
                match rng.below(12) {
                    0 if next < 9 => {
                        world.wish(next, if rng.below(2) == 0 { Wish::Waiting } else { Wish::Member });
                        next += 1;
                    }
                    1 => {
                        let members: Vec<u64> = world
                            .rows
                            .iter()
                            .filter(|r| r.wish == Wish::Member)
                            .map(|r| r.id.0)
                            .collect();
                        if members.len() > 2 {
                            let leaves = members[rng.below(members.len() as u64) as usize];
                            let by = members.iter().copied().find(|m| *m != leaves && rng.below(3) == 0);
                            let replaced_by = by.map(NodeId);
                            world.wish(leaves, Wish::Leaving { replaced_by });
                        }
                    }
                    2 => {
                        let node = world.rows[rng.below(world.rows.len() as u64) as usize].id;
                        let leads = world.groups.values().any(|g| g.leader == node);
                        if world.dead.is_empty() && !leads {
                            world.dead.insert(node);
                        }
                    }
                    3 => world.dead.clear(),
                    4 => {
                        let node = world.rows[rng.below(world.rows.len() as u64) as usize].id;
                        let group = GroupId(rng.below(3));
                        if world.lost.is_empty() && world.groups[&group].leader != node {
                            world.lost.insert((node, group));
                        }
                    }
                    5 => {
                        let node = world.rows[rng.below(world.rows.len() as u64) as usize].id;
                        world.damaged.insert((node, GroupId(rng.below(3))));
                    }
                    _ => {}
                }
                let whole = world.whole();
                world.round();
                for (id, g) in &world.groups {
                    let kept = whole[id].is_empty() || whole[id].iter().any(|n| g.voters.contains(n));
                    assert!(kept, "seed {seed}: no good copy of group {id} counts any more");
                    assert!(
                        g.voters.contains(&g.leader),
                        "seed {seed}: group {id} is led by who does not count"
                    );
                }
            }
            world.dead.clear();
            for _ in 0..200 {
                world.round();
            }
            let wished = |wish: Wish| {
                world
                    .rows
                    .iter()
                    .filter(move |r| r.wish == wish)
                    .map(|r| r.id)
                    .collect()
            };
            let (members, waiting): (BTreeSet<NodeId>, BTreeSet<NodeId>) =
                (wished(Wish::Member), wished(Wish::Waiting));
            assert!(
                !world.rows.iter().any(|r| matches!(r.wish, Wish::Leaving { .. })),
                "seed {seed}: somebody still leaves: {:?}",
                world.rows
            );
            let mut loads: BTreeMap<NodeId, usize> = members.iter().map(|n| (*n, 0)).collect();
            for (id, g) in &world.groups {
                if *id == GroupId::META || members.len() + waiting.len() <= world.copies {
                    assert_eq!(g.voters, members, "seed {seed}: voters of group {id}");
                    assert_eq!(g.learners, waiting, "seed {seed}: learners of group {id}");
                    continue;
                }
                let count = (g.voters.len() + g.learners.len(), g.voters.len());
                let wanted = (world.copies, members.len().min(world.copies));
                assert_eq!(count, wanted, "seed {seed}: copies of group {id}, and those that count");
                g.voters.iter().for_each(|n| *loads.get_mut(n).unwrap() += 1);
                let stored = world.stored.iter().filter(|(_, of)| of == id).map(|(n, _)| *n);
                let stored: BTreeSet<NodeId> = stored.filter(|n| members.contains(n)).collect();
                assert!(
                    stored.is_subset(&g.voters),
                    "seed {seed}: group {id} is forgotten elsewhere"
                );
            }
            if waiting.is_empty() && world.damaged.is_empty() && members.len() > world.copies {
                let (least, most) = (loads.values().min(), loads.values().max());
                assert!(most <= least.map(|n| n + 1).as_ref(), "seed {seed}: {loads:?}");
            }
            assert!(world.round().is_empty(), "seed {seed}: and then it is quiet");
            let waiting: BTreeSet<_> = world.moves.waiting().keys().map(|(g, n)| (*n, *g)).collect();
            let gone = |n: &NodeId| world.rows.iter().any(|r| r.id == *n && r.wish == Wish::Removed);
            let has_copy = |(n, g): &(NodeId, GroupId)| {
                let group = &world.groups[g];
                group.voters.contains(n) || group.learners.contains(n)
            };
            let own = |d: &&(NodeId, GroupId)| !gone(&d.0) && !world.lost.contains(*d) && has_copy(d);
            let damaged: BTreeSet<_> = world.damaged.iter().filter(own).copied().collect();
            assert_eq!(waiting, damaged, "seed {seed}: what stays damaged is told");
        }
    }
}

//! Who is to have a copy of which group.
//!
//! Pure. Nothing is written down but the founding, which never changes: later, the members of the groups are what is known, and
//! the wishes of the nodes say where that is to go.

use crate::membership::{GroupReport, Reports, leader_of};
use crate::node_rows::{NodeRow, Wish};
use hindcast_model::{GroupId, NodeId};
use std::collections::{BTreeMap, BTreeSet};

/// Who is to have a copy, by group.
pub type Wanted = BTreeMap<GroupId, BTreeSet<NodeId>>;

/// Copies of a shard, unless somebody says otherwise.
pub const COPIES_DEFAULT: u64 = 3;

/// Who has a group in a new cluster: the meta group all founders, a shard as many as there are to be copies, by turn. The logs
/// of all groups begin with this: it must be the same for all nodes and versions.
pub fn founding(group: GroupId, founders: &BTreeSet<NodeId>, copies: usize) -> Vec<NodeId> {
    if group == GroupId::META || copies >= founders.len() {
        return founders.iter().copied().collect();
    }
    let first = (group.0 - 1) as usize % founders.len();
    let mut holders: Vec<NodeId> = founders.iter().cycle().skip(first).take(copies).copied().collect();
    holders.sort_unstable();
    holders
}

/// Who is to have a copy of each group. Where there are enough nodes a shard has `copies`; while one moves, one more.
pub fn wanted(rows: &[NodeRow], groups: &[GroupId], copies: usize, reports: &Reports) -> Wanted {
    let stay = rows.iter().filter(|r| matches!(r.wish, Wish::Waiting | Wish::Member));
    let stay: BTreeMap<NodeId, Wish> = stay.map(|r| (r.id, r.wish)).collect();
    let everybody: BTreeSet<NodeId> = stay.keys().copied().collect();
    let mut wanted = Wanted::from([(GroupId::META, everybody.clone())]);
    if everybody.len() <= copies {
        wanted.extend(groups.iter().map(|g| (*g, everybody.clone())));
        return wanted;
    }
    let led = groups.iter().filter(|g| **g != GroupId::META);
    let led = led.filter_map(|g| Some((*g, leader_of(reports, *g)?)));
    let led: BTreeMap<GroupId, (NodeId, &GroupReport)> = led.collect();
    let mut plan = Plan {
        rows,
        stay: &stay,
        reports,
        loads: stay.keys().map(|n| (*n, 0)).collect(),
    };
    let can_go = plan.all_tell();
    for (group, (_, report)) in &led {
        let all = [&report.voters, &report.learners, &report.outgoing]
            .into_iter()
            .flatten();
        let held: BTreeSet<NodeId> = all.filter(|n| stay.contains_key(n)).copied().collect();
        held.iter().for_each(|n| plan.add(*n, 1));
        wanted.insert(*group, held);
    }
    for (group, (leader, report)) in &led {
        let held = wanted.entry(*group).or_default();
        while can_go
            && held.len() > copies
            && let Some(node) = plan.dispensable(held, *leader, report)
        {
            held.remove(&node);
            plan.add(node, -1);
        }
        while held.len() < copies
            && let Some(node) = plan.addition(held, *group, report)
        {
            held.insert(node);
            plan.add(node, 1);
        }
        // One that waits stood in for one that counts.
        while let Some(waits) = held.iter().copied().find(|n| plan.waits(*n))
            && let Some(node) = plan.addition(held, *group, report).filter(|n| !plan.waits(*n))
        {
            held.remove(&waits);
            held.insert(node);
            plan.add(waits, -1);
            plan.add(node, 1);
        }
    }
    if can_go
        && led.len() + 1 == groups.len()
        && plan.is_quiet(&led, &wanted)
        && let Some((group, node)) = plan.evened(&led, &wanted)
    {
        wanted.entry(group).or_default().insert(node);
    }
    wanted
}

struct Plan<'a> {
    rows: &'a [NodeRow],
    stay: &'a BTreeMap<NodeId, Wish>,
    reports: &'a Reports,
    /// Copies of shards, by node.
    loads: BTreeMap<NodeId, i64>,
}

impl Plan<'_> {
    fn add(&mut self, node: NodeId, copies: i64) {
        *self.loads.entry(node).or_default() += copies;
    }

    fn load(&self, node: NodeId) -> i64 {
        self.loads.get(&node).copied().unwrap_or(0)
    }

    fn waits(&self, node: NodeId) -> bool {
        self.stay.get(&node) == Some(&Wish::Waiting)
    }

    fn report(&self, node: NodeId, group: GroupId) -> Option<&GroupReport> {
        self.reports.get(&node)?.iter().find(|r| r.group == group)
    }

    /// Everybody answers, and is of a version that knows of copies on some of the nodes: an older one would bring back what goes,
    /// and who is silent would not hear that its copy does not count.
    fn all_tell(&self) -> bool {
        let tells = |n: &NodeId| {
            self.reports
                .get(n)
                .is_some_and(|all| all.iter().all(|r| r.has_state.is_some()))
        };
        self.stay.keys().all(tells)
    }

    /// Of too many. What is damaged goes first. A node with more copies than others goes before one with fewer, so that one that was on its way in stays; of
    /// two that have as many, one that does not count, or does not lead.
    fn dispensable(&self, held: &BTreeSet<NodeId>, leader: NodeId, report: &GroupReport) -> Option<NodeId> {
        let key = |n: &&NodeId| {
            let own = self.report(**n, report.group);
            let is_unsound = own.is_some_and(|r| r.quarantined.is_some() || r.damaged.is_some());
            let is_learner = report.learners.contains(n);
            let follows = **n != leader;
            (self.waits(**n), is_unsound, self.load(**n), is_learner, follows, **n)
        };
        held.iter().max_by_key(key).copied()
    }

    /// Of too few: who was named for it, who is on its way back, who has the least.
    fn addition(&self, held: &BTreeSet<NodeId>, group: GroupId, report: &GroupReport) -> Option<NodeId> {
        let leaves = |r: &&NodeRow| report.voters.contains(&r.id) || report.learners.contains(&r.id);
        let leaving = self.rows.iter().filter(leaves);
        let named: BTreeSet<NodeId> = leaving
            .filter_map(|r| match r.wish {
                Wish::Leaving { replaced_by } => replaced_by,
                _ => None,
            })
            .collect();
        let able = self.stay.keys().filter(|n| !held.contains(n));
        let able = able.filter_map(|n| Some((*n, self.report(*n, group)?)));
        let able = able.filter(|(_, own)| !own.is_short_of_room);
        let key = |(n, own): &(NodeId, &GroupReport)| {
            let comes_back = own.quarantined.is_some() || own.is_rebuilding || own.damaged.is_some();
            (!named.contains(n), self.waits(*n), !comes_back, self.load(*n), *n)
        };
        able.min_by_key(key).map(|(n, _)| n)
    }

    /// Everybody is there, counts where it should and nowhere else: there is time to make things even.
    fn is_quiet(&self, led: &BTreeMap<GroupId, (NodeId, &GroupReport)>, wanted: &Wanted) -> bool {
        let leaves = self.rows.iter().any(|r| matches!(r.wish, Wish::Leaving { .. }));
        let is_well = |r: &GroupReport| r.quarantined.is_none() && !r.is_rebuilding && r.damaged.is_none();
        let is_there = |n: &NodeId| self.reports.get(n).is_some_and(|all| all.iter().all(is_well));
        let settled = |g: &GroupId, r: &GroupReport| {
            let voters: BTreeSet<NodeId> = r.voters.iter().copied().collect();
            r.outgoing.is_empty() && r.learners.is_empty() && wanted.get(g).is_some_and(|w| *w == voters)
        };
        !leaves && self.stay.keys().all(is_there) && led.iter().all(|(g, (_, r))| settled(g, r))
    }

    /// A copy that a node with two fewer takes over from one that has the most: rather one that does not lead.
    fn evened(&self, led: &BTreeMap<GroupId, (NodeId, &GroupReport)>, wanted: &Wanted) -> Option<(GroupId, NodeId)> {
        let members = || self.stay.iter().filter(|(_, w)| **w == Wish::Member).map(|(n, _)| *n);
        let has_room = |n: &NodeId| {
            self.reports
                .get(n)
                .is_some_and(|all| all.iter().all(|r| !r.is_short_of_room))
        };
        let least = members().filter(has_room).min_by_key(|n| (self.load(*n), *n))?;
        let most = members().max_by_key(|n| (self.load(*n), *n))?;
        if self.load(most) < self.load(least) + 2 {
            return None;
        }
        let movable = wanted.iter().filter(|(g, held)| {
            let is_shard = led.contains_key(g);
            is_shard && held.contains(&most) && !held.contains(&least)
        });
        let group = movable.min_by_key(|(g, _)| (led.get(g).is_some_and(|(leader, _)| *leader == most), **g))?;
        Some((*group.0, least))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(nodes: &[u64]) -> BTreeSet<NodeId> {
        nodes.iter().map(|n| NodeId(*n)).collect()
    }

    #[test]
    fn founders_have_copies_by_turn_and_all_have_the_meta_group() {
        let founders = ids(&[1, 2, 5, 7, 9]);
        let of = |g| {
            founding(GroupId(g), &founders, 3)
                .iter()
                .map(|n| n.0)
                .collect::<Vec<_>>()
        };
        assert_eq!(of(0), [1, 2, 5, 7, 9]);
        assert_eq!([of(1), of(2), of(4)], [[1, 2, 5], [2, 5, 7], [1, 7, 9]]);
        assert_eq!(of(6), of(1));
        // As clusters were founded when every node had every shard.
        let three = ids(&[1, 2, 3]);
        for g in 0..5 {
            assert_eq!(founding(GroupId(g), &three, 3), [1, 2, 3].map(NodeId));
        }
    }
}

//! Topology as a function of time, folded from the records that the shards keep of it.
//!
//! Promises: the fold does not depend on the order in which records arrive: they are taken by (time, record). A resource
//! looks as its last record up to an instant says; an edge holds from the first record of it on.

use super::frame::{Change, ChangeKind, ResourceNode, TopologyFrame};
use hindcast_model::resource::Edge;
use hindcast_model::{Kind, ResourceId, TimestampNs};
use hindcast_proto::topology::TopologyRecord;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Records of one tenant's topology that a replay reads.
pub const TOPOLOGY_RECORDS_MAX: usize = 1_000_000;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Look {
    kind: Kind,
    name: String,
    attributes: BTreeMap<String, String>,
}

/// All of a tenant's topology up to the end of a window.
#[derive(Default)]
pub struct World {
    resources: BTreeMap<ResourceId, BTreeSet<(TimestampNs, Look)>>,
    edges: BTreeMap<Edge, TimestampNs>,
    neighbours: BTreeMap<ResourceId, BTreeSet<ResourceId>>,
    pub records: usize,
    pub unreadable: usize,
}

impl World {
    pub fn take(&mut self, at: TimestampNs, line: &[u8]) {
        self.records += 1;
        match TopologyRecord::from_line(line) {
            Ok(TopologyRecord::Resource(r)) => {
                let look = Look {
                    kind: r.kind,
                    name: r.name,
                    attributes: r.attributes,
                };
                self.resources.entry(r.id).or_default().insert((at, look));
            }
            Ok(TopologyRecord::Edge(e)) => {
                let since = self.edges.entry(e).or_insert(at);
                *since = (*since).min(at);
                self.neighbours.entry(e.from).or_default().insert(e.to);
                self.neighbours.entry(e.to).or_default().insert(e.from);
            }
            Err(_) => self.unreadable += 1,
        }
    }

    pub fn knows(&self, id: ResourceId) -> bool {
        self.resources.contains_key(&id)
    }

    /// What kind of thing it is; by its last record, since a kind does not change.
    pub fn kind(&self, id: ResourceId) -> Option<Kind> {
        Some(self.resources.get(&id)?.last()?.1.kind)
    }

    /// The named resources and what is up to `depth` edges away; all resources when none is named. At most `max`, the
    /// near ones first, then by id; also says how many were left out.
    pub fn scope(&self, named: &[ResourceId], depth: u32, max: usize) -> (BTreeSet<ResourceId>, usize) {
        let mut ring: BTreeSet<ResourceId> = named.iter().copied().collect();
        let rings = if named.is_empty() {
            ring = self.resources.keys().copied().collect();
            0
        } else {
            depth
        };
        let (mut scope, mut left_out) = (BTreeSet::new(), BTreeSet::new());
        let mut next = ring;
        for distance in 0..=rings {
            let ring = std::mem::take(&mut next);
            for &id in &ring {
                if scope.len() < max {
                    scope.insert(id);
                } else {
                    left_out.insert(id);
                }
            }
            if distance < rings {
                let around = ring.iter().filter_map(|id| self.neighbours.get(id)).flatten();
                next = around
                    .copied()
                    .filter(|id| !scope.contains(id) && !left_out.contains(id))
                    .collect();
            }
        }
        (scope, left_out.len())
    }

    /// What of the scope was seen by this instant.
    pub fn at(&self, scope: &BTreeSet<ResourceId>, at: TimestampNs) -> TopologyFrame {
        let look = |id: &ResourceId| self.resources.get(id)?.iter().rev().find(|(t, _)| *t <= at);
        let nodes = scope.iter().filter_map(|id| {
            let (_, look) = look(id)?;
            Some(ResourceNode {
                id: *id,
                kind: look.kind,
                name: look.name.clone(),
            })
        });
        let within = |e: &Edge| scope.contains(&e.from) && scope.contains(&e.to);
        let edges = self.edges.iter().filter(|(e, since)| **since <= at && within(e));
        TopologyFrame {
            resources: nodes.collect(),
            edges: edges.map(|(e, _)| *e).collect(),
        }
    }

    /// The resources that are part of this one by edges seen by this instant, in scope or not.
    pub fn members(&self, service: ResourceId, at: TimestampNs) -> impl Iterator<Item = ResourceId> + '_ {
        let around = self.neighbours.get(&service).into_iter().flatten().copied();
        around.filter(move |&member| {
            let edge = Edge {
                from: member,
                to: service,
                kind: hindcast_model::resource::EdgeKind::PartOf,
            };
            self.edges.get(&edge).is_some_and(|since| *since <= at)
        })
    }

    /// What was first seen, or changed its look, after `after` and up to `to`; by (time, kind, object).
    pub fn changes(&self, scope: &BTreeSet<ResourceId>, after: TimestampNs, to: TimestampNs) -> VecDeque<Change> {
        let change = |at, kind, object, what: &str| Change {
            at,
            kind,
            index: 0,
            seq: 0,
            object,
            what: what.to_owned(),
        };
        let within = |at: TimestampNs| after < at && at <= to;
        let mut changes = vec![];
        for (id, looks) in scope.iter().filter_map(|id| Some((id, self.resources.get(id)?))) {
            let mut before: Option<&Look> = None;
            for (at, look) in looks {
                if within(*at) && before != Some(look) {
                    let what = if before.is_some() { "changed" } else { "seen" };
                    changes.push(change(*at, ChangeKind::Resource, id.to_string(), what));
                }
                before = Some(look);
            }
        }
        for (e, since) in &self.edges {
            if within(*since) && scope.contains(&e.from) && scope.contains(&e.to) {
                let kind = match e.kind {
                    hindcast_model::resource::EdgeKind::RunsOn => "runs_on",
                    hindcast_model::resource::EdgeKind::PartOf => "part_of",
                    hindcast_model::resource::EdgeKind::DependsOn => "depends_on",
                    hindcast_model::resource::EdgeKind::ConnectsTo => "connects_to",
                };
                let object = format!("{} {kind} {}", e.from, e.to);
                changes.push(change(*since, ChangeKind::Edge, object, "seen"));
            }
        }
        changes.sort_by(|a, b| (a.at, a.kind, &a.object).cmp(&(b.at, b.kind, &b.object)));
        changes.into()
    }
}

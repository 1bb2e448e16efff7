//! Evidence: retention lets go of what is old, and what incidents pinned stays.
//!
//! The keeper's steps (a cut over all shards, a pin in each, the incident's row) are written again here, one call after
//! the other. At the end a naive model says of every row that was acknowledged whether it must be there: entries in
//! order, each floor and each pin by itself. And reads as of each pinned cut give on every node what they gave when the
//! pin was made.

use crate::check::Ledger;
use crate::node::{BEGIN, Fate, Payload, Running};
use crate::plan::{MS, SECOND};
use crate::world::{Then as WorldThen, World};
use hindcast_alerting::command::{GATEWAY_PART, GatewayCommand};
use hindcast_alerting::rows::{self, CutDue};
use hindcast_model::{CutId, GroupId, MatchOp, Matcher, Positions, SpanNs, TenantId, TimestampNs, codec};
use hindcast_node::cluster_part::{self, CLUSTER_PART, ClusterCommand, CutBegun, CutRow, PinRow};
use hindcast_node::entry::Control;
use hindcast_proto::history::HISTORY_LABEL;
use hindcast_raft::{decode_reply, history_rows};
use hindcast_storage::logs::Filter;
use hindcast_storage::read::{Direction, SelectLines, SelectSeries};
use hindcast_storage::{Floor, Floors, Pin};
use std::collections::BTreeMap;

/// What is pinned around the opening of an incident: little, so that the rest goes.
const BEFORE: SpanNs = SpanNs::from_secs(2);
const AFTER: SpanNs = SpanNs::from_secs(3);
const RETAIN_EVERY: u64 = SECOND;

/// What a call of this side is for.
#[derive(Clone, Copy, Debug)]
pub enum Then {
    Retained,
    Step { number: u64 },
}

/// How far an incident's evidence is.
enum Step {
    Begin,
    /// History up to the cut has to reach the shards first.
    History,
    Cut(usize),
    Record,
    Pin(usize),
    RecordPin,
    Set,
}

struct Keeping {
    /// Of the call under way.
    number: u64,
    due: CutDue,
    step: Step,
    cut: Option<CutRow>,
    positions: Positions,
    pin: Option<PinRow>,
    /// Where the pin stands in each shard.
    pinned_at: Positions,
}

/// Rows of one shard as of a cut, in an order that is equal everywhere.
type Rows = Vec<(i64, String, Vec<u8>)>;

#[derive(Default)]
pub struct Pins {
    keepings: BTreeMap<u64, Keeping>,
    next_number: u64,
    /// Per shard, when its floors were last asked to rise.
    retained: BTreeMap<GroupId, u64>,
    /// What was read when a pin was made.
    first_read: BTreeMap<(String, CutId, GroupId), Rows>,
}

fn tenant() -> TenantId {
    TenantId::default()
}

fn floors_at(now: TimestampNs, keep: u64) -> Vec<Floor> {
    let raw = now - SpanNs(keep);
    let floors = Floors {
        lines: now - SpanNs(2 * keep),
        ..Floors::all(raw)
    };
    vec![Floor {
        floors,
        ..Floor::at(None, None, raw)
    }]
}

impl Pins {
    /// What a node does ten times a second.
    pub fn turn(world: &mut World, node: u64) {
        if world.plan.keep == 0 {
            return;
        }
        let Some(running) = world.runs(node) else { return };
        let (now, leads) = (running.cluster_now(), running.leader(GroupId::META) == Some(node));
        let led: Vec<GroupId> = running.groups();
        let led: Vec<GroupId> = led
            .into_iter()
            .filter(|g| *g != GroupId::META && running.leader(*g) == Some(node))
            .collect();
        let due = leads
            .then(|| rows::cuts_due(&*running.meta, now, 1).ok()?.pop())
            .flatten();
        for group in led {
            let (at, last) = (world.now, world.pins().retained.get(&group).copied().unwrap_or(0));
            if at >= last + RETAIN_EVERY && !world.is_calm() {
                world.pins().retained.insert(group, at);
                let floors = floors_at(now, world.plan.keep);
                let payload = Payload::Control(Control::Retain { floors });
                world.call(node, group, payload, WorldThen::Pins(Then::Retained));
            }
        }
        match (
            world
                .pins()
                .keepings
                .get(&node)
                .map(|k| matches!(k.step, Step::History)),
            due,
        ) {
            (Some(true), _) => Self::step(world, node),
            (None, Some(due)) => {
                let keeping = Keeping {
                    number: 0,
                    due,
                    step: Step::Begin,
                    cut: None,
                    positions: Positions::new(),
                    pin: None,
                    pinned_at: Positions::new(),
                };
                world.pins().keepings.insert(node, keeping);
                Self::step(world, node);
            }
            _ => {}
        }
    }

    /// Asks for what the step needs.
    fn step(world: &mut World, node: u64) {
        let shards: Vec<GroupId> = (1..=world.plan.shards).map(GroupId).collect();
        let Some(running) = world.runs(node) else { return };
        let meta = running.meta.clone();
        let Some(k) = world.pins().keepings.get(&node) else {
            return;
        };
        let cluster = |command: &ClusterCommand| {
            let payload = Payload::Meta {
                part: CLUSTER_PART,
                body: codec::to_bytes(command),
            };
            (GroupId::META, payload)
        };
        let cut = || k.cut.clone().expect("it has begun");
        let (group, payload) = match k.step {
            Step::Begin => cluster(&ClusterCommand::BeginCut {
                reason: format!("{} opened", k.due.incident),
                fresh: true,
            }),
            Step::History => {
                let waits = history_rows(&*meta, 1)
                    .first()
                    .is_some_and(|(at, ..)| *at <= cut().meta_index);
                if waits || meta.applied() < cut().meta_index {
                    return;
                }
                world.pins().keepings.get_mut(&node).expect("just seen").step = Step::Cut(0);
                return Self::step(world, node);
            }
            Step::Cut(n) => (shards[n], Payload::Control(Control::Cut)),
            Step::Record => cluster(&ClusterCommand::RecordCut {
                cut: cut().id,
                positions: k.positions.clone(),
            }),
            Step::Pin(n) => {
                let Some(incident) = rows::incident(&*meta, Some(&k.due.tenant), k.due.incident)
                    .ok()
                    .flatten()
                else {
                    world.pins().keepings.remove(&node);
                    return;
                };
                let row = PinRow {
                    id: format!("{}/{}", k.due.incident, k.due.generation),
                    tenant: k.due.tenant.clone(),
                    incident: Some(k.due.incident),
                    from: incident.opened_at - BEFORE,
                    to: incident.opened_at + AFTER,
                    owner: "gateway".to_owned(),
                    reason: "opened".to_owned(),
                    class: "pin-90d".to_owned(),
                    cuts: vec![cut().id],
                };
                let at = cut().positions.and_then(|p| p.get(&shards[n]).copied());
                let pin = Pin {
                    id: row.id.clone(),
                    tenant: row.tenant.clone(),
                    from: row.from,
                    to: row.to,
                    owners: None,
                    cuts: at.into_iter().collect(),
                };
                world.pins().keepings.get_mut(&node).expect("just seen").pin = Some(row);
                (shards[n], Payload::Control(Control::Pin { pin }))
            }
            Step::RecordPin => cluster(&ClusterCommand::RecordPin {
                pin: k.pin.clone().expect("it stands in the shards"),
            }),
            Step::Set => {
                let set = GatewayCommand::SetCut {
                    incident: k.due.incident,
                    generation: k.due.generation,
                    which: k.due.which,
                    cut: cut().id,
                };
                let body = set.encode();
                (
                    GroupId::META,
                    Payload::Meta {
                        part: GATEWAY_PART,
                        body,
                    },
                )
            }
        };
        let pins = world.pins();
        pins.next_number += 1;
        let number = pins.next_number;
        pins.keepings.get_mut(&node).expect("just seen").number = number;
        world.call(node, group, payload, WorldThen::Pins(Then::Step { number }));
    }

    pub fn answered(world: &mut World, node: u64, then: Then, fate: Fate) {
        let Then::Step { number } = then else { return };
        let shards: Vec<GroupId> = (1..=world.plan.shards).map(GroupId).collect();
        let Some(k) = world.pins().keepings.get_mut(&node).filter(|k| k.number == number) else {
            return;
        };
        let (index, reply) = match fate {
            Fate::Applied { index, reply } => (index, reply),
            // All of it again, as the incident's row still asks for it.
            Fate::NotLeader | Fate::Unconfirmed => {
                world.pins().keepings.remove(&node);
                return;
            }
        };
        let mut told = GroupId::META;
        let row = || decode_reply(&reply).ok();
        let next = match k.step {
            Step::Begin => row().and_then(|r| codec::from_bytes::<CutBegun>(&r).ok()).map(|begun| {
                k.cut = Some(begun.cut);
                Step::History
            }),
            Step::History => None,
            Step::Cut(n) => {
                told = shards[n];
                k.positions.insert(shards[n], index);
                Some(if n + 1 < shards.len() {
                    Step::Cut(n + 1)
                } else {
                    Step::Record
                })
            }
            Step::Record => row().and_then(|r| codec::from_bytes::<CutRow>(&r).ok()).map(|cut| {
                k.cut = Some(cut);
                Step::Pin(0)
            }),
            Step::Pin(n) => {
                told = shards[n];
                k.pinned_at.insert(shards[n], index);
                Some(if n + 1 < shards.len() {
                    Step::Pin(n + 1)
                } else {
                    Step::RecordPin
                })
            }
            Step::RecordPin => row().map(|_| Step::Set),
            Step::Set => None,
        };
        let is_set = matches!(k.step, Step::Set);
        match next {
            Some(next) => {
                k.step = next;
                world.ledger.tell(told, index);
                Self::step(world, node);
            }
            None => {
                let k = world.pins().keepings.remove(&node).expect("just seen");
                if is_set {
                    world.ledger.counts.cuts += 1;
                    Self::read_first(world, node, &k);
                }
            }
        }
    }

    /// What the cut shows while all of it is young, for later comparisons.
    fn read_first(world: &mut World, node: u64, k: &Keeping) {
        let (Some(running), Some(cut), Some(pin)) = (world.runs(node), &k.cut, &k.pin) else {
            return;
        };
        let mut read = vec![];
        for (group, at) in cut.positions.iter().flatten().filter(|(g, _)| **g != GroupId::META) {
            let has_pin = |p: &u64| world.has_copy(running, *group) && running.status(*group).applied >= *p;
            let is_there = k.pinned_at.get(group).is_some_and(has_pin);
            // An error: of a node with damaged files.
            if let Some(Ok(rows)) = is_there.then(|| rows_at(running, *group, *at, (pin.from, pin.to))) {
                read.push(((pin.id.clone(), cut.id, *group), rows));
            }
        }
        let id = cut.id;
        world.note(|| format!("node {node} has read {id} of {}", pin.id));
        world.pins().first_read.extend(read);
    }

    pub fn forget(&mut self, node: u64) {
        self.keepings.remove(&node);
    }

    /// I8, I9: pinned cuts give the same rows on every node, and those that they gave at first.
    pub fn judge(world: &mut World) {
        let mut known: BTreeMap<(String, CutId, GroupId), (u64, Rows)> = BTreeMap::new();
        let (mut count, mut pins, mut findings) = (0, 0, vec![]);
        for (id, running) in world.all_running() {
            let all = cluster_part::pins(&*running.meta);
            pins = all.len() as u64;
            for pin in all {
                for cut in pin.cuts.iter().filter_map(|c| cluster_part::cut(&*running.meta, *c)) {
                    let here = |group: &GroupId| *group != GroupId::META && world.has_copy(running, *group);
                    for (group, at) in cut.positions.iter().flatten().filter(|(g, _)| here(g)) {
                        let rows = match rows_at(running, *group, *at, (pin.from, pin.to)) {
                            Ok(rows) => rows,
                            Err(e) => {
                                findings.push(format!("I8: node {id} cannot read {} of pin {}: {e}", cut.id, pin.id));
                                continue;
                            }
                        };
                        count += rows.len() as u64;
                        let key = (pin.id.clone(), cut.id, *group);
                        let what = |than: &str, other: &Rows| {
                            let first = rows.iter().find(|r| !other.contains(r));
                            let first = first.or_else(|| other.iter().find(|r| !rows.contains(r)));
                            let first = first.map(|(at, labels, row)| format!("{at} {labels} {}", row.escape_ascii()));
                            format!(
                                "I9: {} of pin {} in group {group} gives {} rows on node {id}, {} {than}; first: {}",
                                cut.id,
                                pin.id,
                                rows.len(),
                                other.len(),
                                first.unwrap_or_default()
                            )
                        };
                        if let Some(first) = world.pins_ref().first_read.get(&key).filter(|first| **first != rows) {
                            findings.push(what("when it was pinned", first));
                        }
                        let (by, others) = known.entry(key).or_insert_with(|| (id, rows.clone()));
                        if *others != rows {
                            findings.push(what(&format!("on node {by}"), others));
                        }
                    }
                }
            }
        }
        world.ledger.counts.pins += pins;
        world.ledger.counts.cut_rows += count;
        if let Some(first) = findings.into_iter().next() {
            world.ledger.violated(first);
        }
    }
}

fn rows_at(running: &Running, group: GroupId, at: u64, (from, to): (TimestampNs, TimestampNs)) -> Result<Rows, String> {
    let handle = running.shard(group).ok_or("no such shard")?;
    let (as_of, owners) = (Some(at), None);
    let series = handle.reader.series(&SelectSeries {
        tenant: tenant(),
        matchers: vec![Matcher::equal("job", "node")],
        from,
        to,
        as_of,
        owners: owners.clone(),
    });
    let mut rows = Rows::new();
    for s in series.map_err(|e| e.to_string())? {
        let row = |p: &hindcast_model::Sample| (p.at.0, s.labels.to_string(), p.value.to_bits().to_le_bytes().to_vec());
        rows.extend(s.samples.iter().map(row));
    }
    let history = Matcher::new(HISTORY_LABEL, MatchOp::NotEqual, "").map_err(|e| e.to_string())?;
    for matcher in [Matcher::equal("job", "log"), history] {
        let lines = handle.reader.lines(&SelectLines {
            tenant: tenant(),
            matchers: vec![matcher],
            from,
            to,
            as_of,
            owners: owners.clone(),
            filter: Filter::all(),
            limit: None,
            direction: Direction::Forward,
        });
        for s in lines.map_err(|e| e.to_string())? {
            rows.extend(s.lines.iter().map(|l| (l.at.0, s.labels.to_string(), l.line.to_vec())));
        }
    }
    rows.sort_unstable();
    Ok(rows)
}

/// Which rows of a shard can be read in the end, by its floors and pins in the order of the log. Writers' rows stand at
/// whole steps of time, so that each step is looked at by itself.
pub struct Readable {
    /// Per step: samples, lines.
    steps: Vec<[bool; 2]>,
    floors: [i64; 2],
}

impl Readable {
    pub fn after(ledger: &Ledger, group: GroupId, steps_max: u64) -> Self {
        let at = |step: usize| BEGIN.0 + step as i64 * crate::writers::STEP_MS * MS as i64;
        let count = steps_max as usize + 1;
        let mut floors = [i64::MIN; 2];
        let mut pins: BTreeMap<String, Vec<[bool; 2]>> = BTreeMap::new();
        let now = |floors: &[i64; 2], pins: &BTreeMap<String, Vec<[bool; 2]>>| {
            let of = |step: usize, kind: usize| at(step) >= floors[kind] || pins.values().any(|p| p[step][kind]);
            (0..count).map(|s| [of(s, 0), of(s, 1)]).collect::<Vec<_>>()
        };
        for control in ledger.controls(group) {
            match control {
                Control::Retain { floors: rules } => {
                    let rule = rules[0].floors;
                    floors = [floors[0].max(rule.raw.0), floors[1].max(rule.lines.0)];
                }
                Control::Pin { pin } => {
                    // It holds what can be read, and nothing that is hidden already.
                    let mut holds = now(&floors, &pins);
                    for (step, hold) in holds.iter_mut().enumerate() {
                        let is_within = (pin.from.0..=pin.to.0).contains(&at(step));
                        hold.iter_mut().for_each(|h| *h &= is_within);
                    }
                    pins.insert(pin.id.clone(), holds);
                }
                Control::Unpin { .. } | Control::Cut | Control::DropCut { .. } => {}
            }
        }
        Self {
            steps: now(&floors, &pins),
            floors,
        }
    }

    pub fn has(&self, lines: bool, seq: u64) -> bool {
        self.steps[seq as usize][usize::from(lines)]
    }

    /// Below the floor, whether or not a pin holds it.
    pub fn is_old(&self, lines: bool, at: TimestampNs) -> bool {
        at.0 < self.floors[usize::from(lines)]
    }
}

//! The alerting side: what evaluators, deliverers, the History pump and people do, over the real gateway and desk.
//!
//! Alerts fire and resolve by a script that the seed draws. Receivers accept, refuse for now, or accept without their
//! answer getting back. At the end each incident has one ticket per generation, whatever was reported as delivered did
//! arrive, and History is in the shards once.

use crate::node::{BEGIN, Fate, Payload, Running};
use crate::plan::{MS, Plan, SECOND};
use crate::world::{Then as WorldThen, World};
use bytes::Bytes;
use hindcast_alerting::command::{Evaluation, GATEWAY_PART, GatewayCommand, GatewayReply, GroupKey, RuleResult};
use hindcast_alerting::outbox::{EffectKey, EffectKind, EffectState, Outcome, Receipt, Sending};
use hindcast_alerting::{route, rows, rule};
use hindcast_env::{Rng, SeededRng};
use hindcast_ingest::{Intake, Naming};
use hindcast_itsm::desk::{DESK_PART, DeskCommand, Edit, EditReply};
use hindcast_itsm::ticket::Action;
use hindcast_itsm::view::{TICKETS_LISTED_MAX, TicketFilter, get_ticket, list_tickets, verify_audit};
use hindcast_model::{
    Batch, GroupId, IncidentId, Labels, Matcher, NodeId, Positions, SpanNs, TenantId, TicketId, TimestampNs, codec,
};
use hindcast_node::entry;
use hindcast_node::shard_machine::{Applied, PartApplied};
use hindcast_node::write::history_batch;
use hindcast_proto::history::{HISTORY_LABEL, HistoryRecord};
use hindcast_raft::meta::META_PART;
use hindcast_raft::{MachineCommand, decode_reply, history_rows, leftward_rows};
use hindcast_storage::logs::Filter;
use hindcast_storage::read::{Direction, SelectLines};
use std::collections::{BTreeMap, BTreeSet};

const RULES: &str = "
groups:
- name: g
  interval: 2s
  rules:
  - alert: Down
    expr: up == 0
    labels: {severity: major}
  - alert: Note
    expr: note
    labels: {severity: minor}
";

const ROUTES: &str = "
global: {cool_down: 4s, reopen_window: 10s, delivery_attempts_max: 40, delivery_pause_first: 1s, delivery_pause_max: 2s}
route:
  receiver: mail
  routes:
  - {receiver: desk, matchers: ['severity=\"major\"'], continue: true}
  - {receiver: mail}
receivers:
- name: mail
  email_configs: [{to: ops@example.com, from: hindcast@example.com, smarthost: '127.0.0.1:25'}]
- name: desk
  desk_configs: [{group: web, on_recovery: note}]
";

const SOURCE: &str = "r.yml";
const LEASE: SpanNs = SpanNs::from_secs(6);
const HOSTS: u64 = 3;
/// Rows of each kind that a node takes up in one turn.
const ROWS_MAX: usize = 8;
const AGAIN: u64 = 100 * MS;

/// What a call of this side is for.
#[derive(Clone, Debug)]
pub enum Then {
    Nothing,
    Lease {
        group: GroupKey,
        revision: String,
        instant: TimestampNs,
        set_back_from: Option<TimestampNs>,
    },
    Evaluated {
        busy: String,
    },
    Take {
        key: EffectKey,
    },
    Done(Box<Record>),
    History {
        up_to: u64,
        part: usize,
    },
    HistoryGone,
    Edit {
        number: TicketId,
        text: String,
    },
}

/// An outcome that is to be recorded.
#[derive(Clone, Debug)]
pub struct Record {
    key: EffectKey,
    token: u64,
    outcome: Outcome,
    until: u64,
}

/// What a message under way will meet.
#[derive(Clone, Copy, Debug)]
pub enum Fortune {
    Accepted,
    /// It arrives, and the answer does not.
    AcceptedInSilence,
    Refused,
}

pub enum Timer {
    Arrives {
        node: u64,
        life: u64,
        sending: Box<Sending>,
        fortune: Fortune,
    },
    Record {
        node: u64,
        life: u64,
        record: Box<Record>,
    },
    HistoryPart {
        node: u64,
        life: u64,
        up_to: u64,
        part: usize,
    },
}

/// A message that a receiver has.
#[derive(Clone, Debug)]
struct Arrived {
    key: EffectKey,
    incident: IncidentId,
    generation: u64,
    kind: EffectKind,
    receiver: String,
}

/// History on its way: one command's lines, part by part.
#[derive(Clone)]
struct Pump {
    up_to: u64,
    batch: Batch,
    parts: Vec<(GroupId, Bytes, bool)>,
}

#[derive(Clone, Default)]
pub struct Desk {
    /// Per host: when it is down (ns of the run).
    down: Vec<Vec<(u64, u64)>>,
    inbox: Vec<Arrived>,
    busy: BTreeSet<(u64, String)>,
    pumps: BTreeMap<u64, Pump>,
    notes: Vec<(TicketId, String)>,
    edits: u64,
}

fn tenant() -> TenantId {
    TenantId::default()
}

impl Desk {
    pub fn new(plan: &Plan, rng: &mut SeededRng) -> Self {
        let down = (0..HOSTS).map(|_| {
            let (mut spans, mut at) = (vec![], 2 * SECOND + rng.below(6 * SECOND));
            while at < plan.faulty_until {
                let until = at + SECOND + rng.below(8 * SECOND);
                spans.push((at, until));
                at = until + SECOND + rng.below(12 * SECOND);
            }
            spans
        });
        Self {
            down: down.collect(),
            ..Self::default()
        }
    }

    /// As it is when all processes begin anew.
    pub fn after_restart(&self) -> Self {
        Self {
            busy: BTreeSet::new(),
            pumps: BTreeMap::new(),
            ..self.clone()
        }
    }

    fn is_down(&self, host: u64, at: TimestampNs) -> bool {
        let at = at.0.saturating_sub(BEGIN.0).max(0) as u64;
        self.down[host as usize]
            .iter()
            .any(|(from, to)| (*from..*to).contains(&at))
    }

    /// What the rules' expressions return at an instant.
    fn results(&self, at: TimestampNs) -> Vec<RuleResult> {
        let series =
            |name: &str, host: u64| Labels::from_pairs([("__name__", name), ("instance", &format!("h{host}:9100"))]);
        let down = (0..HOSTS).filter(|h| self.is_down(*h, at));
        let down: Vec<(Labels, f64)> = down.map(|h| (series("up", h), 0.0)).collect();
        let note = if down.len() > 1 {
            vec![(series("note", 0), 1.0)]
        } else {
            vec![]
        };
        vec![RuleResult::Series(down), RuleResult::Series(note)]
    }

    fn leads(running: &Running, node: u64) -> bool {
        running.leader(GroupId::META) == Some(node)
    }

    /// What a node does ten times a second.
    pub fn turn(world: &mut World, node: u64) {
        let Some(running) = world.runs(node) else { return };
        let (now, meta, leads) = (running.cluster_now(), running.meta.clone(), Self::leads(running, node));
        let wall = running.corrected_now();
        let read = &*meta;
        let mut ask: Vec<(&'static str, Vec<u8>, Then, Option<String>)> = vec![];
        if leads {
            if rows::rule_groups(read, None).is_ok_and(|g| g.is_empty()) {
                let routes = GatewayCommand::SetRoutes {
                    tenant: None,
                    revision: "1".into(),
                    routes: route::parse("routes.yml", ROUTES).expect("ours"),
                };
                let rules = GatewayCommand::SetRules {
                    tenant: tenant(),
                    source: SOURCE.into(),
                    revision: "1".into(),
                    groups: rule::parse(SOURCE, RULES).expect("ours").groups,
                };
                ask.push((GATEWAY_PART, routes.encode(), Then::Nothing, None));
                ask.push((GATEWAY_PART, rules.encode(), Then::Nothing, None));
            }
            for row in leftward_rows(read, ROWS_MAX) {
                let command = MachineCommand::Leftward {
                    index: row.index,
                    seq: row.seq,
                };
                ask.push((META_PART, codec::to_bytes(&command), Then::Nothing, None));
            }
            if rows::is_tick_due(read, now) {
                ask.push((GATEWAY_PART, GatewayCommand::Tick.encode(), Then::Nothing, None));
            }
        }
        for group in rows::rule_groups(read, None).unwrap_or_default() {
            let interval = group.group.interval.0 as i64;
            let instant = TimestampNs(wall.0 - wall.0.rem_euclid(interval));
            let late = if leads { 0 } else { SECOND as i64 };
            let is_held = group.lease.is_some_and(|l| now < l.until && l.node.0 != node);
            let set_back_from = group.set_back_from(wall);
            let is_over = group.evaluated_at.is_some_and(|last| instant <= last) && set_back_from.is_none();
            if is_over || wall.0 < instant.0 + late || is_held {
                continue;
            }
            let lease = GatewayCommand::TakeGroupLease {
                group: group.key.clone(),
                node: NodeId(node),
                ttl: LEASE,
            };
            let then = Then::Lease {
                group: group.key.clone(),
                revision: group.revision,
                instant,
                set_back_from,
            };
            ask.push((GATEWAY_PART, lease.encode(), then, Some(format!("group {}", group.key))));
        }
        let patience = if leads { SpanNs::ZERO } else { SpanNs::from_secs(1) };
        for (key, since) in rows::deliveries_due(read, now, ROWS_MAX).unwrap_or_default() {
            if now >= since + patience {
                let take = GatewayCommand::TakeEffect {
                    key: key.clone(),
                    node: NodeId(node),
                    ttl: LEASE,
                };
                ask.push((
                    GATEWAY_PART,
                    take.encode(),
                    Then::Take { key: key.clone() },
                    Some(key.0),
                ));
            }
        }
        if world.rng.below(12) == 0 && !world.is_calm() {
            ask.extend(Self::edit(world, node));
        }
        for (part, body, then, busy) in ask {
            if busy.is_none_or(|name| world.desk().busy.insert((node, name))) {
                world.ledger.counts.meta_commands += 1;
                world.call(node, GroupId::META, Payload::Meta { part, body }, WorldThen::Desk(then));
            }
        }
        if leads && !world.desk_ref().pumps.contains_key(&node) {
            Self::pump(world, node);
        }
    }

    /// Somebody works on a ticket that this node shows.
    fn edit(world: &mut World, node: u64) -> Option<(&'static str, Vec<u8>, Then, Option<String>)> {
        let meta = world.runs(node)?.meta.clone();
        let open = list_tickets(&*meta, &tenant(), TicketFilter::Open, 5).unwrap_or_default();
        if open.is_empty() {
            return None;
        }
        let ticket = &open[world.rng.below(open.len() as u64) as usize];
        world.desk().edits += 1;
        let text = format!("note {}", world.desk_ref().edits);
        let edit = Edit {
            tenant: tenant(),
            number: ticket.number,
            base_version: 0,
            request_id: text.clone(),
            actor: "ana".into(),
            action: Action::Note { text: text.clone() },
        };
        let then = Then::Edit {
            number: ticket.number,
            text,
        };
        Some((DESK_PART, codec::to_bytes(&DeskCommand::Edit(edit)), then, None))
    }

    // ---- History ----

    /// Begins to bring the oldest command's lines to the shards.
    fn pump(world: &mut World, node: u64) {
        let Some(running) = world.runs(node) else { return };
        let rows = history_rows(&*running.meta, 200);
        let Some(&(index, ..)) = rows.first() else { return };
        let lines = rows.into_iter().filter(|(at, ..)| *at == index);
        let batch = history_batch(&tenant(), index, lines.map(|(_, _, line)| line).collect());
        let intake = Intake::of_batch(&batch, running.replicas.as_ref(), Naming::Known);
        let parts = intake
            .shares
            .iter()
            .map(|s| (s.shard.into(), entry::encode_part(&intake, s).into(), false));
        let parts: Vec<_> = parts.collect();
        let count = parts.len();
        world.desk().pumps.insert(
            node,
            Pump {
                up_to: index,
                batch,
                parts,
            },
        );
        (0..count).for_each(|part| Self::send_history(world, node, index, part));
    }

    /// A part of what goes up to this command, unless another one is brought there by now.
    fn send_history(world: &mut World, node: u64, up_to: u64, part: usize) {
        let pump = world.desk_ref().pumps.get(&node);
        let Some(pump) = pump.filter(|p| p.up_to == up_to) else {
            return;
        };
        let (group, bytes, done) = pump.parts[part].clone();
        if !done {
            let then = Then::History { up_to, part };
            world.call(node, group, Payload::Part(bytes), WorldThen::Desk(then));
        }
    }

    fn history_answered(world: &mut World, node: u64, up_to: u64, part: usize, fate: Fate) {
        let Some(running) = world.runs(node) else {
            world.desk().pumps.remove(&node);
            return;
        };
        let (replicas, life) = (running.replicas.clone(), running.life());
        let Some(pump) = world.desk().pumps.get_mut(&node).filter(|p| p.up_to == up_to) else {
            return;
        };
        match fate {
            Fate::Applied { reply, .. } => match codec::from_bytes::<Applied>(&reply) {
                Ok(Applied::Write(answers)) if answers == [PartApplied::Stale] => {
                    let intake = Intake::of_batch(&pump.batch, replicas.as_ref(), Naming::Defined);
                    let group = pump.parts[part].0;
                    let again = intake
                        .shares
                        .iter()
                        .find(|s| GroupId::from(s.shard) == group)
                        .expect("as before");
                    pump.parts[part].1 = entry::encode_part(&intake, again).into();
                    Self::send_history(world, node, up_to, part);
                }
                _ => {
                    pump.parts[part].2 = true;
                    if pump.parts.iter().all(|p| p.2) {
                        let body = codec::to_bytes(&MachineCommand::HistoryWritten { up_to });
                        let payload = Payload::Meta { part: META_PART, body };
                        world.call(node, GroupId::META, payload, WorldThen::Desk(Then::HistoryGone));
                    }
                }
            },
            Fate::NotLeader | Fate::Unconfirmed => {
                let again = Timer::HistoryPart {
                    node,
                    life,
                    up_to,
                    part,
                };
                world.later(AGAIN, again);
            }
        }
    }

    // ---- answers ----

    pub fn answered(world: &mut World, node: u64, then: Then, fate: Fate) {
        if let Then::History { up_to, part } = then {
            return Self::history_answered(world, node, up_to, part, fate);
        }
        let reply = match fate {
            Fate::Applied { index, reply } => {
                world.ledger.tell(GroupId::META, index);
                decode_reply(&reply).ok()
            }
            Fate::NotLeader | Fate::Unconfirmed => None,
        };
        match then {
            Then::Nothing | Then::History { .. } => {}
            Then::HistoryGone => {
                world.desk().pumps.remove(&node);
            }
            Then::Lease {
                group,
                revision,
                instant,
                set_back_from,
            } => {
                let busy = format!("group {group}");
                let token = match reply.and_then(|r| GatewayReply::decode(&r).ok()) {
                    Some(GatewayReply::Lease { token, .. }) if world.runs(node).is_some() => token,
                    _ => {
                        world.desk().busy.remove(&(node, busy));
                        return;
                    }
                };
                let evaluation = Evaluation {
                    group,
                    revision,
                    token,
                    instant,
                    set_back_from,
                    results: world.desk_ref().results(instant),
                    partial: false,
                    missing: vec![],
                    positions: Positions::new(),
                };
                let body = GatewayCommand::Evaluated(evaluation).encode();
                let payload = Payload::Meta {
                    part: GATEWAY_PART,
                    body,
                };
                world.call(node, GroupId::META, payload, WorldThen::Desk(Then::Evaluated { busy }));
            }
            Then::Evaluated { busy } => {
                world.desk().busy.remove(&(node, busy));
            }
            Then::Take { key } => match reply.and_then(|r| GatewayReply::decode(&r).ok()) {
                Some(GatewayReply::Send(sending)) => Self::send(world, node, sending),
                _ => {
                    world.desk().busy.remove(&(node, key.0));
                }
            },
            Then::Done(record) => {
                let life = world.runs(node).map(Running::life);
                match (reply, life) {
                    (None, Some(life)) if world.now < record.until => {
                        world.later(AGAIN, Timer::Record { node, life, record });
                    }
                    _ => {
                        world.desk().busy.remove(&(node, record.key.0));
                    }
                }
            }
            Then::Edit { number, text } => {
                let done = reply.and_then(|r| codec::from_bytes::<EditReply>(&r).ok());
                if done.is_some_and(|d| d.number == number) {
                    world.ledger.counts.edits += 1;
                    world.desk().notes.push((number, text));
                }
            }
        }
    }

    fn send(world: &mut World, node: u64, sending: Box<Sending>) {
        let Some(life) = world.runs(node).map(Running::life) else {
            return;
        };
        let errors = if world.is_calm() { 0 } else { world.plan.receiver_errors };
        let fortune = match world.rng.below(100) {
            n if n < errors / 2 => Fortune::AcceptedInSilence,
            n if n < errors => Fortune::Refused,
            _ => Fortune::Accepted,
        };
        let delay = 1 + world.rng.below(400 * MS);
        world.later(
            delay,
            Timer::Arrives {
                node,
                life,
                sending,
                fortune,
            },
        );
    }

    pub fn timer(world: &mut World, timer: Timer) {
        match timer {
            Timer::Arrives {
                node,
                life,
                sending,
                fortune,
            } => {
                let effect = &sending.effect;
                if !matches!(fortune, Fortune::Refused) {
                    let arrived = Arrived {
                        key: effect.key.clone(),
                        incident: effect.incident,
                        generation: effect.generation,
                        kind: effect.kind,
                        receiver: effect.receiver.to_string(),
                    };
                    let repeat = world.desk_ref().inbox.iter().any(|a| a.key == arrived.key);
                    world.ledger.counts.deliveries += 1;
                    world.ledger.counts.repeats += u64::from(repeat);
                    world.desk().inbox.push(arrived);
                }
                let outcome = match fortune {
                    Fortune::Accepted => Outcome::Delivered {
                        receipt: Receipt { id: "ok".into() },
                    },
                    Fortune::AcceptedInSilence => Outcome::Retry {
                        error: "no answer".into(),
                    },
                    Fortune::Refused => Outcome::Retry { error: "busy".into() },
                };
                let record = Record {
                    key: effect.key.clone(),
                    token: sending.token,
                    outcome,
                    until: world.now + LEASE.0,
                };
                Self::record(world, node, life, Box::new(record));
            }
            Timer::Record { node, life, record } => Self::record(world, node, life, record),
            Timer::HistoryPart {
                node,
                life,
                up_to,
                part,
            } => match world.runs(node).map(Running::life) {
                Some(now) if now == life => Self::send_history(world, node, up_to, part),
                _ => {
                    world.desk().pumps.remove(&node);
                }
            },
        }
    }

    fn record(world: &mut World, node: u64, life: u64, record: Box<Record>) {
        match world.runs(node).map(Running::life) {
            Some(now) if now == life => {}
            // The process that sent it is gone; its lease runs out.
            _ => {
                world.desk().busy.remove(&(node, record.key.0));
                return;
            }
        }
        let done = GatewayCommand::EffectDone {
            key: record.key.clone(),
            token: record.token,
            outcome: record.outcome.clone(),
        };
        let payload = Payload::Meta {
            part: GATEWAY_PART,
            body: done.encode(),
        };
        world.call(node, GroupId::META, payload, WorldThen::Desk(Then::Done(record)));
    }

    /// A process is gone with all that it had under way.
    pub fn forget(&mut self, node: u64) {
        self.busy.retain(|(n, _)| *n != node);
        self.pumps.remove(&node);
    }

    // ---- the end ----

    pub fn unsettled(&self, world: &World) -> Vec<String> {
        let mut busy = vec![];
        let Some((_, running)) = world.all_running().next() else {
            return busy;
        };
        let read = &*running.meta;
        let waiting = rows::all_effects(read, &tenant()).unwrap_or_default();
        let waiting = waiting.iter().filter(|e| !e.state.has_ended()).count();
        if waiting > 0 {
            busy.push(format!("{waiting} messages wait"));
        }
        if !history_rows(read, 1).is_empty() {
            busy.push("History waits".to_owned());
        }
        if !leftward_rows(read, 1).is_empty() {
            busy.push("leftward commands wait".to_owned());
        }
        busy
    }

    pub fn judge(world: &mut World) {
        let mut findings = vec![];
        for (id, running) in world.all_running() {
            if let Err(why) = world.desk_ref().check(running) {
                findings.push(format!("node {id}: {why}"));
            }
        }
        let tickets = world.all_running().next().map_or(0, |(_, r)| {
            list_tickets(&*r.meta, &tenant(), TicketFilter::All, TICKETS_LISTED_MAX).map_or(0, |t| t.len())
        });
        world.ledger.counts.tickets += tickets as u64;
        match Self::check_history(world) {
            Ok(lines) => world.ledger.counts.history_lines += lines,
            Err(why) => findings.push(why),
        }
        if let Some(first) = findings.into_iter().next() {
            world.ledger.violated(first);
        }
    }

    /// I5, I6, I11, on one node.
    fn check(&self, running: &Running) -> Result<(), String> {
        let read = &*running.meta;
        verify_audit(read).map_err(|e| format!("I11: {}", e.message))?;
        let words = |e: &dyn std::fmt::Display| format!("rows cannot be read: {e}");
        let incidents = rows::incidents(read, &tenant(), None, 10_000).map_err(|e| words(&e))?;
        let tickets = list_tickets(read, &tenant(), TicketFilter::All, TICKETS_LISTED_MAX).map_err(|e| e.message)?;
        let mut of: BTreeMap<(IncidentId, u64), Vec<TicketId>> = BTreeMap::new();
        for t in &tickets {
            of.entry((t.incident, t.generation)).or_default().push(t.number);
        }
        for (key, numbers) in &of {
            if numbers.len() > 1 {
                return Err(format!(
                    "I5: incident {} generation {} has tickets {numbers:?}",
                    key.0, key.1
                ));
            }
        }
        for i in &incidents {
            if i.desk_group.is_some() && !of.contains_key(&(i.id, i.generation)) {
                return Err(format!(
                    "I5: {} generation {} is routed to the desk and has no ticket",
                    i.id, i.generation
                ));
            }
        }
        let numbers: BTreeSet<u64> = tickets.iter().map(|t| t.number.0).collect();
        if numbers.len() != tickets.len() || numbers.last().is_some_and(|last| *last != numbers.len() as u64) {
            return Err(format!("I6: ticket numbers are {numbers:?}"));
        }
        for (number, text) in &self.notes {
            let view = get_ticket(read, &tenant(), *number).map_err(|e| e.message)?;
            let view = view.ok_or_else(|| format!("I1: {number} has an acknowledged note and does not exist"))?;
            let times = view.thread.iter().filter(|e| e.text == *text).count();
            if times != 1 {
                return Err(format!(
                    "I1: an acknowledged note is {times} times in the thread of {number}"
                ));
            }
        }
        for e in rows::all_effects(read, &tenant()).map_err(|e| words(&e))? {
            let arrived = self.inbox.iter().any(|a| a.key == e.key);
            if e.state == EffectState::Delivered && !arrived {
                return Err(format!("I5: message {} counts as delivered and never arrived", e.key));
            }
        }
        let first = |a: &Arrived, kind: EffectKind| {
            let same =
                |b: &&Arrived| (b.incident, b.generation, &b.receiver) == (a.incident, a.generation, &a.receiver);
            self.inbox.iter().filter(same).position(|b| b.kind == kind)
        };
        for a in self.inbox.iter().filter(|a| a.kind == EffectKind::Opened) {
            if let (Some(opened), Some(recovered)) = (first(a, EffectKind::Opened), first(a, EffectKind::Recovered))
                && recovered < opened
            {
                return Err(format!(
                    "I5: {} heard of the recovery of {} before its opening",
                    a.receiver, a.incident
                ));
            }
        }
        Ok(())
    }

    /// Every record of History is in the shards once, and none of a command is missing.
    fn check_history(world: &World) -> Result<u64, String> {
        let mut count = 0;
        for (id, running) in world.all_running() {
            let mut seen: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
            count = 0;
            for handle in running.shards.values() {
                // Where it has no copy it asks a node that has one.
                let mut others = world.all_running().filter(|(_, r)| r.counts(handle.group));
                let handle = match world.has_copy(running, handle.group) {
                    true => handle,
                    false => others.find_map(|(_, r)| r.shard(handle.group)).unwrap_or(handle),
                };
                let any = Matcher::new(HISTORY_LABEL, hindcast_model::MatchOp::NotEqual, "").expect("plain");
                let streams = handle.reader.lines(&SelectLines {
                    tenant: tenant(),
                    matchers: vec![any],
                    from: TimestampNs::MIN,
                    to: TimestampNs::MAX,
                    as_of: None,
                    owners: None,
                    filter: Filter::all(),
                    limit: None,
                    direction: Direction::Forward,
                });
                let streams = streams.map_err(|e| format!("P6: node {id} cannot read its History: {e}"))?;
                for line in streams.iter().flat_map(|s| &s.lines) {
                    let record = HistoryRecord::from_line(&line.line).map_err(|e| format!("node {id}: {e:?}"))?;
                    count += 1;
                    if !seen.entry(record.index).or_default().insert(record.seq) {
                        return Err(format!(
                            "I1: node {id} holds record {}.{} of History twice",
                            record.index, record.seq
                        ));
                    }
                }
            }
            for (index, seqs) in seen {
                if seqs.iter().copied().ne(0..seqs.len() as u32) {
                    return Err(format!(
                        "I1: node {id} holds records {seqs:?} only of command {index}'s History"
                    ));
                }
            }
        }
        Ok(count)
    }
}

//! The gateway over a machine in memory: what a user would see, step by step, and what is always true.

use super::GatewayPart;
use crate::command::{CutOf, Evaluation, GATEWAY_PART, GatewayCommand, GatewayReply, GroupKey, RuleResult};
use crate::event::{DeskNotice, IncidentEvent, IncidentState};
use crate::outbox::{EffectKind, EffectState, Outcome, Receipt};
use crate::{route, rows, rule};
use expect_test::{Expect, expect};
use hindcast_model::codec;
use hindcast_model::{CutId, IncidentId, Labels, NodeId, Positions, SpanNs, TenantId, TicketId, TimestampNs};
use hindcast_proto::history::HistoryRecord;
use hindcast_raft::{
    ApplyContext, LocalMeta, Meta, MetaError, MetaTx, Part, PartInput, PartOutput, Refusal, history_rows,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const RULES: &str = "
groups:
- name: g
  interval: 10s
  rules:
  - threshold: Busy
    expr: node_cpu
    levels:
      minor: {above: 0.7, clear: 0.6}
      critical: {above: 0.9}
  - alert: Down
    expr: up == 0
    labels: {severity: major}
  - alert: Note
    expr: note
    labels: {severity: info}
";

const ROUTES: &str = "
global: {cool_down: 60s, reopen_window: 10m, delivery_attempts_max: 3, delivery_pause_first: 4s}
route:
  receiver: mail
  routes:
  - {receiver: desk, matchers: ['severity=~\"major|critical\"'], continue: true}
  - {receiver: mail}
receivers:
- name: mail
  email_configs: [{to: ops@example.com, from: hindcast@example.com, smarthost: '127.0.0.1:25'}]
- name: desk
  desk_configs: [{group: web, on_recovery: note}]
";

/// Stands where the desk stands: keeps the events that it is given.
struct Desk;

impl Part for Desk {
    fn name(&self) -> &'static str {
        "desk"
    }
    fn apply(&self, ctx: ApplyContext, input: PartInput<'_>, tx: &mut MetaTx<'_>) -> Result<PartOutput, Refusal> {
        if let PartInput::Upstream { body, .. } = input {
            let n = tx.scan("desk", b"", None, usize::MAX).len() as u64;
            tx.put(
                "desk",
                &[ctx.index.to_be_bytes(), n.to_be_bytes()].concat(),
                body.to_vec(),
            );
        }
        Ok(PartOutput::default())
    }
}

struct World {
    meta: LocalMeta,
    token: u64,
    history_seen: u64,
    desk_seen: usize,
}

fn secs(s: i64) -> TimestampNs {
    TimestampNs::from_secs(s)
}

fn group() -> GroupKey {
    GroupKey {
        tenant: TenantId::default(),
        source: "r.yml".into(),
        group: "g".into(),
    }
}

impl World {
    fn new() -> Self {
        let meta = LocalMeta::new(vec![Box::new(GatewayPart), Box::new(Desk)]);
        let mut world = Self {
            meta,
            token: 0,
            history_seen: 0,
            desk_seen: 0,
        };
        let routes = route::parse("routes.yml", ROUTES).unwrap();
        world.set(GatewayCommand::SetRoutes {
            tenant: None,
            revision: "1".into(),
            routes,
        });
        world.set_rules(RULES, "1");
        world.lease(1);
        world.news();
        world
    }

    fn propose(&self, command: GatewayCommand) -> Result<GatewayReply, String> {
        match self.meta.apply(GATEWAY_PART, command.encode()) {
            Ok(bytes) => Ok(GatewayReply::decode(&bytes).unwrap()),
            Err(MetaError::Refused(r)) => Err(format!("{:?}: {}", r.class, r.message)),
            Err(e) => panic!("{e}"),
        }
    }

    fn set(&self, command: GatewayCommand) -> GatewayReply {
        self.propose(command).unwrap()
    }

    fn set_rules(&self, text: &str, revision: &str) -> GatewayReply {
        self.set(GatewayCommand::SetRules {
            tenant: TenantId::default(),
            source: "r.yml".into(),
            revision: revision.into(),
            groups: rule::parse("r.yml", text).unwrap().groups,
        })
    }

    fn lease(&mut self, node: u64) -> GatewayReply {
        let reply = self.set(GatewayCommand::TakeGroupLease {
            group: group(),
            node: NodeId(node),
            ttl: SpanNs::from_secs(15),
        });
        if let GatewayReply::Lease { token, .. } = reply {
            self.token = token;
        }
        reply
    }

    /// `busy web-1=0.8 down web-2=0 …`: the series of the rules, by host.
    fn evaluation(&self, words: &[&str]) -> GatewayCommand {
        let mut results: BTreeMap<&str, Vec<(Labels, f64)>> = BTreeMap::new();
        let mut rule = "busy";
        let mut missing = vec![];
        for word in words {
            match word.split_once('=') {
                None if *word == "missing" => missing.push("shard 2".to_owned()),
                None => rule = word,
                Some((host, value)) => {
                    let labels = Labels::from_pairs([("instance", &format!("{host}:9100")), ("job", "node")]);
                    results.entry(rule).or_default().push((labels, value.parse().unwrap()));
                }
            }
        }
        let mut take = |name| RuleResult::Series(results.remove(name).unwrap_or_default());
        let results = vec![take("busy"), take("down"), take("note")];
        let read = self.meta.stale();
        let revision = rows::rule_groups(read.as_ref(), None).unwrap().remove(0).revision;
        GatewayCommand::Evaluated(Evaluation {
            group: group(),
            revision,
            token: self.token,
            instant: self.meta.now(),
            set_back_from: None,
            results,
            partial: !missing.is_empty(),
            missing,
            positions: Positions::new(),
        })
    }

    fn effect(&self, n: usize) -> crate::outbox::EffectRow {
        let mut all = self.effects();
        all.remove(n)
    }

    /// In the order of their making.
    fn effects(&self) -> Vec<crate::outbox::EffectRow> {
        let read = self.meta.stale();
        let mut all = rows::all_effects(read.as_ref(), &TenantId::default()).unwrap();
        all.sort_by_key(|e| (e.created_at, e.incident, e.generation, e.step));
        all
    }

    fn take(&self, n: usize, node: u64) -> GatewayReply {
        self.set(GatewayCommand::TakeEffect {
            key: self.effect(n).key,
            node: NodeId(node),
            ttl: SpanNs::from_secs(10),
        })
    }

    fn done(&self, n: usize, token: u64, word: &str) -> Result<GatewayReply, String> {
        let outcome = match word {
            "ok" => Outcome::Delivered {
                receipt: Receipt { id: "250".into() },
            },
            "busy" => Outcome::Retry { error: "421".into() },
            _ => Outcome::Refused { error: "550".into() },
        };
        self.propose(GatewayCommand::EffectDone {
            key: self.effect(n).key,
            token,
            outcome,
        })
    }

    /// What History and the desk have heard since the last time.
    fn news(&mut self) -> Vec<String> {
        let read = self.meta.stale();
        let mut news = vec![];
        for (index, _, line) in history_rows(read.as_ref(), 100_000) {
            if index <= self.history_seen {
                continue;
            }
            let r = HistoryRecord::from_line(line.line.as_bytes()).unwrap();
            let text = |field: &str| r.state[field].as_str().unwrap_or("-").to_owned();
            news.push(match r.kind.as_str() {
                "alert" => format!(
                    "alert {} {} {}/{} of {}",
                    text("rule"),
                    r.change,
                    text("severity"),
                    r.state["generation"],
                    text("incident")
                ),
                "incident" => format!(
                    "{} {}: {} {} life {} flaps {}",
                    r.object,
                    r.change,
                    text("state"),
                    text("severity"),
                    r.state["generation"],
                    r.state["flaps"]
                ),
                "delivery" => format!(
                    "message {} {} to {} of {}",
                    text("kind"),
                    r.change,
                    text("receiver"),
                    text("incident")
                ),
                kind => format!("{kind} {} {}", r.object, r.change),
            });
        }
        self.history_seen = read.applied();
        let desk = read.scan("desk", b"", None, usize::MAX);
        for (_, body) in desk.iter().skip(self.desk_seen) {
            let event: IncidentEvent = codec::from_bytes(body).unwrap();
            news.push(format!(
                "desk: {:?} {} for {:?}",
                event.kind, event.incident.id, event.incident.desk_group
            ));
        }
        self.desk_seen = desk.len();
        news
    }

    fn incident(&self, id: u64) -> crate::incident::IncidentRow {
        let read = self.meta.stale();
        rows::incident(read.as_ref(), None, IncidentId(id)).unwrap().unwrap()
    }
}

/// `seconds eval …|tick|take N NODE|done N TOKEN ok|…`, and what came of it.
fn check(script: &str, expect: Expect) {
    let mut world = World::new();
    let mut shown = String::new();
    for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let words: Vec<&str> = line.split(' ').collect();
        world.meta.set_now(secs(words[0].parse().unwrap()));
        let number = |i: usize| words[i].parse::<usize>().unwrap();
        let brief = |r: GatewayReply| match r {
            GatewayReply::Send(s) => format!("Send(token {}, attempt {})", s.token, s.effect.attempts),
            GatewayReply::Lease { until, .. } => format!("Lease until {}", until.as_ms() / 1000),
            GatewayReply::Held { by, until } => format!("Held by {by} until {}", until.as_ms() / 1000),
            r => format!("{r:?}"),
        };
        let answer = match words[1] {
            "eval" => world.propose(world.evaluation(&words[2..])),
            // Of an earlier instant than the last one, which lies ahead of clocks: `back INSTANT KNOWN …`.
            "back" => {
                let mut evaluation = world.evaluation(&words[4..]);
                if let GatewayCommand::Evaluated(e) = &mut evaluation {
                    (e.instant, e.set_back_from) = (secs(number(2) as i64), Some(secs(number(3) as i64)));
                }
                world.propose(evaluation)
            }
            "tick" => world.propose(GatewayCommand::Tick),
            "lease" => Ok(world.lease(words[2].parse().unwrap())),
            "rules" => Ok(world.set_rules(&RULES.replace("threshold: Busy", "threshold: Busier"), "2")),
            "take" => Ok(world.take(number(2), number(3) as u64)),
            "done" => world.done(number(2), words[3].parse().unwrap(), words[4]),
            "cut" => world.propose(GatewayCommand::SetCut {
                incident: IncidentId(1),
                generation: 1,
                which: CutOf::Opened,
                cut: CutId(9),
            }),
            "ticket" => world.propose(GatewayCommand::Desk(DeskNotice::TicketOpened {
                incident: IncidentId(1),
                generation: 1,
                ticket: TicketId(5),
            })),
            other => panic!("{other}"),
        };
        let answer = answer.map_or_else(|e| e, brief);
        shown.push_str(&format!("{line} -> {answer}\n"));
        for news in world.news() {
            shown.push_str(&format!("    {news}\n"));
        }
    }
    expect.assert_eq(&shown);
}

#[test]
fn one_command_changes_alert_incident_outbox_and_desk_together() {
    check(
        "
        10 eval busy web-1=0.8
        20 eval busy web-1=0.95
        30 eval busy web-1=0.5
        60 tick
        90 tick
        ",
        expect![[r#"
            10 eval busy web-1=0.8 -> Done
                alert Busy firing minor/1 of INC-1
                message opened queued to mail of INC-1
                INC-1 opened: open minor life 1 flaps 0
            20 eval busy web-1=0.95 -> Done
                alert Busy raised critical/1 of INC-1
                INC-1 raised: open critical life 1 flaps 0
                desk: Opened INC-1 for Some("web")
            30 eval busy web-1=0.5 -> Done
                alert Busy resolved -/1 of INC-1
                message recovered queued to mail of INC-1
                INC-1 recovered: recovered critical life 1 flaps 0
                desk: Recovered INC-1 for Some("web")
            60 tick -> Unchanged
            90 tick -> Done
                INC-1 closed: closed critical life 1 flaps 0
                desk: Closed INC-1 for Some("web")
        "#]],
    );
}

#[test]
fn a_relapse_goes_on_with_the_same_life_and_later_a_new_one_begins() {
    check(
        "
        10 eval busy web-1=0.95
        20 eval busy web-1=0.1
        30 eval busy web-1=0.95
        40 eval busy web-1=0.1
        100 tick
        110 eval busy web-1=0.95
        120 eval busy web-1=0.1
        180 tick
        900 eval busy web-1=0.95
        ",
        expect![[r#"
            10 eval busy web-1=0.95 -> Done
                alert Busy firing critical/1 of INC-1
                message opened queued to mail of INC-1
                INC-1 opened: open critical life 1 flaps 0
                desk: Opened INC-1 for Some("web")
            20 eval busy web-1=0.1 -> Done
                alert Busy resolved -/1 of INC-1
                message recovered queued to mail of INC-1
                INC-1 recovered: recovered critical life 1 flaps 0
                desk: Recovered INC-1 for Some("web")
            30 eval busy web-1=0.95 -> Done
                alert Busy firing critical/1 of INC-1
                message reopened queued to mail of INC-1
                INC-1 reopened: open critical life 1 flaps 1
                desk: Reopened INC-1 for Some("web")
            40 eval busy web-1=0.1 -> Done
                alert Busy resolved -/1 of INC-1
                message recovered queued to mail of INC-1
                INC-1 recovered: recovered critical life 1 flaps 1
                desk: Recovered INC-1 for Some("web")
            100 tick -> Done
                INC-1 closed: closed critical life 1 flaps 1
                desk: Closed INC-1 for Some("web")
            110 eval busy web-1=0.95 -> Done
                alert Busy firing critical/1 of INC-1
                message reopened queued to mail of INC-1
                INC-1 reopened: open critical life 1 flaps 2
                desk: Reopened INC-1 for Some("web")
            120 eval busy web-1=0.1 -> Done
                alert Busy resolved -/1 of INC-1
                message recovered queued to mail of INC-1
                INC-1 recovered: recovered critical life 1 flaps 2
                desk: Recovered INC-1 for Some("web")
            180 tick -> Done
                INC-1 closed: closed critical life 1 flaps 2
                desk: Closed INC-1 for Some("web")
            900 eval busy web-1=0.95 -> Done
                alert Busy firing critical/2 of INC-1
                message opened queued to mail of INC-1
                INC-1 recurred: open critical life 2 flaps 0
                desk: Recurred INC-1 for Some("web")
        "#]],
    );
}

#[test]
fn alerts_of_one_resource_are_one_incident_and_news_is_gathered() {
    check(
        "
        10 eval busy web-1=0.8 web-2=0.8
        20 eval busy web-1=0.8 web-2=0.8 down web-1=0 note web-3=1
        30 eval busy missing
        40 eval busy web-1=0.1 web-2=0.8 down web-1=0
        ",
        expect![[r#"
            10 eval busy web-1=0.8 web-2=0.8 -> Done
                alert Busy firing minor/1 of INC-1
                alert Busy firing minor/1 of INC-2
                message opened queued to mail of INC-1
                INC-1 opened: open minor life 1 flaps 0
                message opened queued to mail of INC-2
                INC-2 opened: open minor life 1 flaps 0
            20 eval busy web-1=0.8 web-2=0.8 down web-1=0 note web-3=1 -> Done
                alert Down firing major/1 of INC-1
                alert Note firing -/1 of -
                INC-1 raised: open major life 1 flaps 0
                desk: Opened INC-1 for Some("web")
            30 eval busy missing -> Done
            40 eval busy web-1=0.1 web-2=0.8 down web-1=0 -> Done
                alert Busy resolved -/1 of INC-1
                alert Note resolved -/1 of -
                INC-1 changed: open major life 1 flaps 0
                desk: Changed { what: "resolved: Busy on web-1" } INC-1 for Some("web")
        "#]],
    );
}

#[test]
fn a_stale_token_or_an_old_instant_changes_nothing() {
    check(
        "
        10 lease 2
        15 lease 2
        20 eval busy web-1=0.8
        20 eval busy web-1=0.95
        25 lease 1
        30 lease 1
        30 eval busy web-1=0.8
        ",
        expect![[r#"
            10 lease 2 -> Held by 1 until 15
            15 lease 2 -> Lease until 30
            20 eval busy web-1=0.8 -> Done
                alert Busy firing minor/1 of INC-1
                message opened queued to mail of INC-1
                INC-1 opened: open minor life 1 flaps 0
            20 eval busy web-1=0.95 -> Conflict: rule group default/r.yml/g: instant 20000 is not after the last one
            25 lease 1 -> Held by 2 until 30
            30 lease 1 -> Lease until 45
            30 eval busy web-1=0.8 -> Done
        "#]],
    );
    let world = World::new();
    world.meta.set_now(secs(20));
    let mut evaluation = world.evaluation(&["busy", "web-1=0.8"]);
    if let GatewayCommand::Evaluated(e) = &mut evaluation {
        e.token += 1;
    }
    let before = world.meta.stale().scan(GATEWAY_PART, b"", None, usize::MAX);
    assert!(
        world
            .propose(evaluation)
            .unwrap_err()
            .contains("is not that of its lease")
    );
    assert_eq!(world.meta.stale().scan(GATEWAY_PART, b"", None, usize::MAX), before);
}

#[test]
fn rules_go_on_after_a_clock_that_was_two_hours_ahead_is_set_right() {
    check(
        "
        7200 eval busy web-1=0.8
        7205 back 20 30 busy web-1=0.8
        7205 back 20 7200 busy web-1=0.8
        7206 back 20 7200 busy web-1=0.5
        7207 back 30 20 busy web-1=0.5
        ",
        expect![[r#"
            7200 eval busy web-1=0.8 -> Done
                alert Busy firing minor/1 of INC-1
                message opened queued to mail of INC-1
                INC-1 opened: open minor life 1 flaps 0
            7205 back 20 30 busy web-1=0.8 -> Conflict: rule group default/r.yml/g: instant 20000 is not after the last one
            7205 back 20 7200 busy web-1=0.8 -> Done
            7206 back 20 7200 busy web-1=0.5 -> Conflict: rule group default/r.yml/g: instant 20000 is not after the last one
            7207 back 30 20 busy web-1=0.5 -> Done
                alert Busy resolved -/1 of INC-1
                message recovered queued to mail of INC-1
                INC-1 recovered: recovered minor life 1 flaps 0
        "#]],
    );
    let read_at = |at: i64| {
        let world = World::new();
        world.meta.set_now(secs(7200));
        world.set(world.evaluation(&["busy"]));
        let group = rows::rule_groups(world.meta.stale().as_ref(), None).unwrap().remove(0);
        group.set_back_from(secs(at))
    };
    assert_eq!(
        (read_at(20), read_at(7198), read_at(7300)),
        (Some(secs(7200)), None, None)
    );
}

#[test]
fn a_delivery_is_leased_retried_and_ends() {
    check(
        "
        10 eval busy web-1=0.8
        10 take 0 1
        11 take 0 2
        12 done 0 99 ok
        12 done 0 5 busy
        13 take 0 2
        16 take 0 2
        27 take 0 1
        28 done 0 8 ok
        40 take 0 3
        ",
        expect![[r#"
            10 eval busy web-1=0.8 -> Done
                alert Busy firing minor/1 of INC-1
                message opened queued to mail of INC-1
                INC-1 opened: open minor life 1 flaps 0
            10 take 0 1 -> Send(token 5, attempt 1)
            11 take 0 2 -> NotNow { why: "node 1 has it until 20000" }
            12 done 0 99 ok -> Conflict: effect cda7036170a63cae09d7ab3f021d5765: token 99 is not that of its lease; somebody else has it
            12 done 0 5 busy -> Done
                message opened retrying to mail of INC-1
            13 take 0 2 -> NotNow { why: "it is due at 16000" }
            16 take 0 2 -> Send(token 10, attempt 2)
            27 take 0 1 -> Send(token 11, attempt 3)
            28 done 0 8 ok -> Conflict: effect cda7036170a63cae09d7ab3f021d5765: token 8 is not that of its lease; somebody else has it
            40 take 0 3 -> Ended { state: GaveUp }
                message opened gave_up to mail of INC-1
        "#]],
    );
}

#[test]
fn a_recovery_waits_for_what_it_recovers_from() {
    check(
        "
        10 eval busy web-1=0.8
        11 take 0 1
        20 eval busy web-1=0.1
        20 take 1 1
        21 done 0 5 refused
        21 take 1 1
        ",
        expect![[r#"
            10 eval busy web-1=0.8 -> Done
                alert Busy firing minor/1 of INC-1
                message opened queued to mail of INC-1
                INC-1 opened: open minor life 1 flaps 0
            11 take 0 1 -> Send(token 5, attempt 1)
            20 eval busy web-1=0.1 -> Done
                alert Busy resolved -/1 of INC-1
                message recovered queued to mail of INC-1
                INC-1 recovered: recovered minor life 1 flaps 0
            20 take 1 1 -> NotNow { why: "an earlier message to this place is under way" }
            21 done 0 5 refused -> Done
                message opened refused to mail of INC-1
            21 take 1 1 -> Send(token 9, attempt 1)
        "#]],
    );
}

#[test]
fn tickets_and_cuts_are_kept_with_the_incident_and_removed_rules_resolve() {
    check(
        "
        10 eval down web-1=0
        11 ticket
        11 cut
        20 rules
        21 eval down web-1=0
        ",
        expect![[r#"
            10 eval down web-1=0 -> Done
                alert Down firing major/1 of INC-1
                message opened queued to mail of INC-1
                INC-1 opened: open major life 1 flaps 0
                desk: Opened INC-1 for Some("web")
            11 ticket -> Done
                INC-1 ticket_opened: open major life 1 flaps 0
            11 cut -> Done
                INC-1 opened_cut: open major life 1 flaps 0
            20 rules -> Done
                rule r.yml set
            21 eval down web-1=0 -> Done
        "#]],
    );
    let world = World::new();
    world.meta.set_now(secs(10));
    world.set(world.evaluation(&["busy", "web-1=0.8"]));
    assert_eq!(
        rows::cuts_due(world.meta.stale().as_ref(), secs(10), 10).unwrap().len(),
        1
    );
    let reply = world.set(GatewayCommand::Desk(DeskNotice::TicketOpened {
        incident: IncidentId(1),
        generation: 1,
        ticket: TicketId(5),
    }));
    assert_eq!(reply, GatewayReply::Done);
    assert_eq!(world.effect(0).notification.ticket, Some(TicketId(5)));
    world.set_rules("groups: []", "3");
    assert_eq!(world.incident(1).state, IncidentState::Recovered);
    assert_eq!(rows::rule_groups(world.meta.stale().as_ref(), None).unwrap(), []);
}

/// One step of a random life: seconds that pass, values of three hosts, what the mail server does.
fn steps() -> impl Strategy<Value = Vec<(i64, [u8; 3], [u8; 2], u8)>> {
    let step = (
        prop_oneof![Just(10i64), Just(60), Just(700)],
        any::<[u8; 3]>(),
        any::<[u8; 2]>(),
        0u8..4,
    );
    proptest::collection::vec(step, 1..20)
}

/// What must hold after every command.
fn assert_invariants(world: &World, ended: &mut BTreeSet<String>) {
    let read = world.meta.stale();
    let tenant = TenantId::default();
    let incidents = rows::incidents(read.as_ref(), &tenant, None, 1_000).unwrap();
    let mut owned = BTreeSet::new();
    for incident in incidents.iter().filter(|i| i.is_live()) {
        for key in &incident.keys {
            assert!(owned.insert(key.clone()), "{key} has two live incidents");
        }
        let any_on = incident.members.iter().any(|m| m.on);
        assert_eq!(any_on, incident.state == IncidentState::Open, "{}", incident.id);
    }
    let effects = world.effects();
    for alert in rows::alerts(read.as_ref(), &tenant).unwrap() {
        if !alert.clock.state.is_on() || alert.clock.severity.is_none() {
            continue;
        }
        let id = alert.incident.expect("a firing alert has an incident");
        let incident = incidents.iter().find(|i| i.id == id).unwrap();
        assert_eq!(incident.state, IncidentState::Open);
        assert!(incident.is_member(&alert.id));
        assert!(Some(incident.severity) >= alert.clock.severity);
        let told = effects
            .iter()
            .any(|e| (e.incident, e.generation) == (id, incident.generation) && e.receiver.name == "mail");
        assert!(told, "nobody is told of {id} life {}", incident.generation);
    }
    for effect in &effects {
        assert!(effect.attempts <= effect.attempts_max);
        if effect.state.has_ended() {
            ended.insert(effect.key.0.clone());
        } else {
            assert!(!ended.contains(&effect.key.0), "an ended delivery came back");
        }
        let is_started = effect.attempts > 0;
        if effect.kind == EffectKind::Recovered && is_started {
            let first = effects
                .iter()
                .find(|e| (e.incident, e.generation, e.step) == (effect.incident, effect.generation, 0));
            assert!(
                first.is_some_and(|f| f.state.has_ended()),
                "a recovery overtook its alarm"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_promises_hold(steps in steps()) {
        let mut world = World::new();
        let (mut now, mut ended) = (0, BTreeSet::new());
        for (pass, busy, down, server) in steps {
            now += pass;
            world.meta.set_now(secs(now));
            world.lease(1);
            let mut words = vec!["busy".to_owned()];
            for (host, value) in busy.iter().enumerate() {
                if *value > 20 {
                    words.push(format!("web-{host}={}", f64::from(*value) / 255.0));
                }
            }
            words.push("down".to_owned());
            words.extend((0..2).filter(|h| down[*h] > 200).map(|h| format!("web-{h}=0")));
            if server == 3 {
                words.push("missing".to_owned());
            }
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            world.set(world.evaluation(&words));
            assert_invariants(&world, &mut ended);
            world.set(GatewayCommand::Tick);
            assert_invariants(&world, &mut ended);
            let due = rows::deliveries_due(world.meta.stale().as_ref(), secs(now), 100).unwrap();
            for (key, _) in due {
                let take = GatewayCommand::TakeEffect { key: key.clone(), node: NodeId(1), ttl: SpanNs::from_secs(5) };
                let GatewayReply::Send(sending) = world.set(take) else { continue };
                let outcome = match server {
                    0 => Outcome::Delivered { receipt: Receipt { id: "x".into() } },
                    1 => Outcome::Retry { error: "busy".into() },
                    2 => Outcome::Refused { error: "no".into() },
                    // The node dies: the lease runs out.
                    _ => continue,
                };
                world.set(GatewayCommand::EffectDone { key, token: sending.token, outcome });
                assert_invariants(&world, &mut ended);
            }
        }
        // With time, everything ends.
        for _ in 0..200 {
            now += 400;
            world.meta.set_now(secs(now));
            let due = rows::deliveries_due(world.meta.stale().as_ref(), secs(now), 100).unwrap();
            for (key, _) in due {
                world.set(GatewayCommand::TakeEffect { key, node: NodeId(2), ttl: SpanNs::from_secs(5) });
            }
            if world.effects().iter().all(|e| e.state.has_ended()) {
                break;
            }
        }
        assert_invariants(&world, &mut ended);
        for effect in world.effects() {
            prop_assert!(effect.state.has_ended(), "{:?} {:?}", effect.kind, effect.state);
            prop_assert_ne!(effect.state, EffectState::Leased);
        }
    }
}

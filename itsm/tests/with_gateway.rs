//! The desk beside the real gateway, on one machine in memory: from what a rule returned to a ticket and back.

use hindcast_alerting::command::{Evaluation, GATEWAY_PART, GatewayCommand, GatewayReply, GroupKey, RuleResult};
use hindcast_alerting::gateway::GatewayPart;
use hindcast_alerting::{route, rows, rule};
use hindcast_itsm::{Action, DESK_PART, DeskCommand, DeskPart, Edit, Status, get_ticket};
use hindcast_model::{IncidentId, Labels, NodeId, Positions, SpanNs, TenantId, TicketId, TimestampNs, codec};
use hindcast_proto::history::HistoryRecord;
use hindcast_raft::{LocalMeta, Meta, history_rows};
use std::collections::BTreeMap;

const RULES: &str = "
groups:
- name: g
  interval: 10s
  rules:
  - threshold: Busy
    expr: node_cpu
    levels:
      critical: {above: 0.9, clear: 0.6}
";

const ROUTES: &str = "
global: {cool_down: 60s, reopen_window: 10m}
route:
  receiver: desk
receivers:
- name: desk
  desk_configs: [{group: web}]
";

struct World {
    meta: LocalMeta,
    token: u64,
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
        let meta = LocalMeta::new(vec![Box::new(GatewayPart), Box::new(DeskPart)]);
        let mut world = Self { meta, token: 0 };
        world.tell(GatewayCommand::SetRoutes {
            tenant: None,
            revision: "1".into(),
            routes: route::parse("routes.yml", ROUTES).unwrap(),
        });
        world.tell(GatewayCommand::SetRules {
            tenant: TenantId::default(),
            source: "r.yml".into(),
            revision: "1".into(),
            groups: rule::parse("r.yml", RULES).unwrap().groups,
        });
        let lease = world.tell(GatewayCommand::TakeGroupLease {
            group: group(),
            node: NodeId(1),
            ttl: SpanNs::from_secs(100_000),
        });
        let GatewayReply::Lease { token, .. } = lease else {
            panic!("{lease:?}");
        };
        world.token = token;
        world
    }

    fn tell(&self, command: GatewayCommand) -> GatewayReply {
        let reply = self.meta.apply(GATEWAY_PART, codec::to_bytes(&command)).unwrap();
        self.meta.settle();
        GatewayReply::decode(&reply).unwrap()
    }

    /// The rule finds `value` on web-1 at `secs`.
    fn busy(&self, secs: i64, value: f64) {
        let instant = TimestampNs::from_secs(secs);
        self.meta.set_now(instant);
        let read = self.meta.stale();
        let revision = rows::rule_groups(read.as_ref(), None).unwrap().remove(0).revision;
        let labels = Labels::from_pairs([("instance", "web-1:9100"), ("job", "node")]);
        self.tell(GatewayCommand::Evaluated(Evaluation {
            group: group(),
            revision,
            token: self.token,
            instant,
            set_back_from: None,
            results: vec![RuleResult::Series(vec![(labels, value)])],
            partial: false,
            missing: vec![],
            positions: Positions::new(),
        }));
    }

    fn tick(&self, secs: i64) {
        self.meta.set_now(TimestampNs::from_secs(secs));
        self.tell(GatewayCommand::Tick);
    }

    fn take(&self, number: u64) {
        let edit = Edit {
            tenant: TenantId::default(),
            number: TicketId(number),
            base_version: 0,
            request_id: String::new(),
            actor: "kim".into(),
            action: Action::Take,
        };
        self.meta
            .apply(DESK_PART, codec::to_bytes(&DeskCommand::Edit(edit)))
            .unwrap();
        self.meta.settle();
    }

    fn ticket(&self, number: u64) -> Option<hindcast_itsm::Ticket> {
        let view = get_ticket(self.meta.stale().as_ref(), &TenantId::default(), TicketId(number)).unwrap();
        view.map(|v| v.ticket)
    }

    fn incident(&self) -> hindcast_alerting::incident::IncidentRow {
        rows::incident(self.meta.stale().as_ref(), None, IncidentId(1))
            .unwrap()
            .unwrap()
    }
}

#[test]
fn an_alert_becomes_a_ticket_that_both_sides_know() {
    let world = World::new();
    world.busy(10, 0.95);
    let ticket = world
        .ticket(1)
        .expect("the command that raised the alert made the ticket");
    assert_eq!(
        (ticket.status, ticket.incident, ticket.group.as_deref()),
        (Status::New, IncidentId(1), Some("web"))
    );
    assert_eq!(world.incident().ticket, Some(TicketId(1)));
    world.busy(20, 0.97);
    assert_eq!(world.ticket(2), None);
    world.take(1);
    assert_eq!(world.incident().taken_by.as_deref(), Some("kim"));
}

#[test]
fn an_untouched_ticket_resolves_by_itself_and_a_relapse_reopens_it() {
    let world = World::new();
    world.busy(10, 0.95);
    world.busy(20, 0.1);
    for secs in [30, 60, 90, 120] {
        world.tick(secs);
    }
    assert_eq!(world.ticket(1).unwrap().status, Status::Resolved);
    world.busy(130, 0.95);
    let ticket = world.ticket(1).unwrap();
    assert_eq!((ticket.status, ticket.flaps), (Status::InProgress, 1));
    assert_eq!(world.ticket(2), None, "the same life has one ticket");
}

#[test]
fn a_later_life_has_a_ticket_of_its_own_that_names_the_first() {
    let world = World::new();
    world.busy(10, 0.95);
    world.busy(20, 0.1);
    for secs in [60, 120, 180] {
        world.tick(secs);
    }
    world.busy(2_000, 0.95);
    let later = world.ticket(2).expect("the reopen window is over");
    assert_eq!(later.recurrence_of, Some(TicketId(1)));
}

#[test]
fn no_two_records_of_one_command_bear_the_same_number() {
    let world = World::new();
    world.busy(10, 0.95);
    let records = history_rows(world.meta.stale().as_ref(), 1_000).into_iter();
    let records = records.map(|(_, _, line)| HistoryRecord::from_line(line.line.as_bytes()).unwrap());
    let mut by_command: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    for r in records {
        by_command.entry(r.index).or_default().push(r.seq);
    }
    // The command that raised the alert made the ticket, too: alert, incident, delivery and ticket each have records.
    let most = by_command.values().max_by_key(|seqs| seqs.len()).unwrap();
    assert!(most.len() >= 3, "{by_command:?}");
    for (index, seqs) in &by_command {
        assert!(
            seqs.iter().copied().eq(0..seqs.len() as u32),
            "command {index}: {seqs:?}"
        );
    }
}

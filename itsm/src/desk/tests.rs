//! Scripts of events and edits on a machine in memory, and a model-free property over random ones.

use super::*;
use crate::rows::IncidentLink;
use crate::ticket::Fields;
use crate::view::{TicketFilter, TicketView, get_ticket, list_tickets, verify_audit};
use expect_test::{Expect, expect};
use hindcast_alerting::event::{Criticality, IncidentState, MemberAlert};
use hindcast_model::{IncidentId, Severity, TimestampNs};
use hindcast_raft::{LocalMeta, Meta, history_rows};
use proptest::prelude::*;
use std::fmt::Write as _;
use std::sync::Arc;

/// Stands where the gateway stands: hands events on to its right, and keeps the notices it gets.
struct Gateway;

impl Part for Gateway {
    fn name(&self) -> &'static str {
        "gateway"
    }

    fn apply(&self, ctx: ApplyContext, input: PartInput<'_>, tx: &mut MetaTx<'_>) -> Result<PartOutput, Refusal> {
        let PartInput::Command(body) = input else {
            unreachable!("nothing stands left of the gateway here");
        };
        let mut out = PartOutput::default();
        match codec::from_bytes::<Vec<IncidentEvent>>(body) {
            Ok(events) => out.rightward.extend(events.iter().map(codec::to_bytes)),
            Err(_) => tx.put("gateway", &ctx.index.to_be_bytes(), body.to_vec()),
        }
        Ok(out)
    }
}

fn meta() -> Arc<LocalMeta> {
    Arc::new(LocalMeta::new(vec![Box::new(Gateway), Box::new(DeskPart)]))
}

/// Options of a script line: `sev=major`, `services=shop:critical,search:low`.
fn option<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    words.iter().find_map(|w| w.strip_prefix(name)?.strip_prefix('='))
}

fn event(words: &[&str]) -> Option<IncidentEvent> {
    let kind = match words[0] {
        "opened" => IncidentEventKind::Opened,
        "changed" => IncidentEventKind::Changed {
            what: option(words, "what").unwrap_or_default().replace('_', " "),
        },
        "recovered" => IncidentEventKind::Recovered,
        "reopened" => IncidentEventKind::Reopened,
        "closed" => IncidentEventKind::Closed,
        "recurred" => IncidentEventKind::Recurred,
        _ => return None,
    };
    let weight = |w: &str| serde_json::from_value::<Criticality>(w.into()).unwrap();
    let services = option(words, "services")
        .unwrap_or_default()
        .split(',')
        .filter_map(|s| s.split_once(':'));
    let incident = IncidentSnapshot {
        id: words[1].parse().unwrap(),
        tenant: TenantId::default(),
        generation: option(words, "gen").map_or(1, |g| g.parse().unwrap()),
        title: "Processor busy on web-1".into(),
        state: IncidentState::Open,
        severity: option(words, "sev").map_or(Severity::Major, |s| Severity::from_label(s).unwrap()),
        opened_at: TimestampNs::EPOCH,
        alerts: vec![MemberAlert {
            id: "a1".into(),
            rule: "cpu_busy".into(),
            severity: Some(Severity::Major),
            labels: BTreeMap::new(),
            summary: "Processor of web-1 is 97 % busy".into(),
        }],
        resources: vec![],
        services: services.map(|(name, w)| (name.to_owned(), weight(w))).collect(),
        desk_group: Some(option(words, "group").unwrap_or("ops").to_owned()).filter(|g| g != "none"),
        on_recovery: match option(words, "rule") {
            Some(rule) => serde_json::from_value(rule.into()).unwrap(),
            None => OnRecovery::default(),
        },
    };
    Some(IncidentEvent { kind, incident })
}

/// `kim take T-1 base=1 id=r1`; words without `=` are the text.
fn edit(words: &[&str]) -> Edit {
    let text: Vec<_> = words[3..].iter().filter(|w| !w.contains('=')).copied().collect();
    let text = text.join(" ");
    let field = |name| option(words, name).map(str::to_owned);
    let action = match words[1] {
        "take" => Action::Take,
        "note" => Action::Note { text },
        "pending" => Action::Pending {
            reason: field("reason").unwrap_or_default(),
            text,
        },
        "resolve" => Action::Resolve {
            code: field("code").unwrap_or_default(),
            text,
        },
        "reopen" => Action::Reopen { text },
        "cancel" => Action::Cancel { text },
        "close" => Action::Close,
        "set" => Action::Set(Fields {
            group: field("group"),
            owner: field("owner"),
            impact: field("impact"),
            urgency: field("urgency"),
        }),
        other => panic!("no action {other}"),
    };
    Edit {
        tenant: field("tenant").map_or_else(TenantId::default, |t| TenantId::new(&t).unwrap()),
        number: words[2].parse().unwrap(),
        base_version: field("base").map_or(0, |b| b.parse().unwrap()),
        request_id: field("id").unwrap_or_default(),
        actor: words[0].to_owned(),
        action,
    }
}

fn run(meta: &LocalMeta, words: &[&str]) -> Result<(), String> {
    let answer = match event(words) {
        Some(event) => meta.apply("gateway", codec::to_bytes(&vec![event])),
        None => meta.apply("desk", codec::to_bytes(&DeskCommand::Edit(edit(words)))),
    };
    answer.map(drop).map_err(|e| match e {
        hindcast_raft::MetaError::Refused(r) => format!("{:?}: {}", r.class, r.message),
        e => e.to_string(),
    })
}

fn all(meta: &LocalMeta) -> Vec<Ticket> {
    list_tickets(
        meta.stale().as_ref(),
        &TenantId::default(),
        TicketFilter::All,
        usize::MAX,
    )
    .unwrap()
}

fn view(meta: &LocalMeta, number: u64) -> TicketView {
    get_ticket(meta.stale().as_ref(), &TenantId::default(), TicketId(number))
        .unwrap()
        .unwrap()
}

fn shown(t: &Ticket) -> String {
    let mut s = format!("{} v{} {} {}", t.number, t.version, t.status, t.priority());
    let parts = [
        ("owner", t.owner.clone()),
        ("waits", t.pending_reason.map(|r| r.as_str().to_owned())),
        ("code", t.resolution_code.clone()),
        ("after", t.recurrence_of.map(|n| n.to_string())),
        ("flaps", Some(t.flaps.to_string()).filter(|_| t.flaps > 0)),
    ];
    for (name, value) in parts {
        if let Some(value) = value {
            write!(s, " {name}={value}").unwrap();
        }
    }
    s
}

/// Runs a script; shows which tickets each line changed, or why it was refused.
fn check(script: &str, expect: Expect) -> Arc<LocalMeta> {
    let meta = meta();
    let mut out = String::new();
    for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let words: Vec<_> = line.split_whitespace().collect();
        let before = all(&meta);
        meta.set_now(TimestampNs(meta.now().0 + 1_000_000_000));
        let answer = run(&meta, &words);
        meta.settle();
        let mut changed: Vec<_> = all(&meta)
            .into_iter()
            .filter(|t| !before.contains(t))
            .map(|t| shown(&t))
            .collect();
        changed.reverse();
        let answer = match answer {
            Err(e) => {
                assert_eq!(all(&meta), before, "a refused command changes nothing");
                e
            }
            Ok(()) if changed.is_empty() => "nothing".to_owned(),
            Ok(()) => changed.join(" | "),
        };
        writeln!(out, "{line}\n    {answer}").unwrap();
    }
    expect.assert_eq(&out);
    verify_audit(meta.stale().as_ref()).unwrap();
    meta
}

#[test]
fn people_walk_a_ticket_through_its_table() {
    check(
        "
        opened INC-1
        kim resolve T-1 code=fixed too early
        kim pending T-1 reason=vendor
        kim take T-1
        kim take T-1
        kim pending T-1
        kim pending T-1 reason=lunch
        kim pending T-1 reason=vendor disk is ordered
        kim pending T-1 reason=change
        kim close T-1
        lee take T-1
        lee resolve T-1 code=fixed
        lee resolve T-1 disk changed
        lee resolve T-1 code=fixed disk changed
        lee take T-1
        lee set T-1 group=db
        lee reopen T-1 not yet
        lee cancel T-1
        lee resolve T-1 code=fixed now it is
        lee close T-1
        lee reopen T-1
        lee take T-1
        lee note T-1 for the record
        ",
        expect![[r#"
            opened INC-1
                T-1 v1 new P4
            kim resolve T-1 code=fixed too early
                FixRequest: T-1 is new and cannot become resolved: take or assign it first
            kim pending T-1 reason=vendor
                FixRequest: T-1 is new and cannot become pending: take or assign it first
            kim take T-1
                T-1 v2 in_progress P4 owner=kim
            kim take T-1
                nothing
            kim pending T-1
                FixRequest: reason is missing: say what is waited for
            kim pending T-1 reason=lunch
                FixRequest: reason "lunch" is not one of customer, vendor, change, maintenance, other
            kim pending T-1 reason=vendor disk is ordered
                T-1 v3 pending P4 owner=kim waits=vendor
            kim pending T-1 reason=change
                FixRequest: T-1 is pending and cannot become pending: take it to go on working, or resolve it
            kim close T-1
                FixRequest: T-1 is pending and cannot become closed: take it to go on working, or resolve it
            lee take T-1
                T-1 v4 in_progress P4 owner=lee
            lee resolve T-1 code=fixed
                FixRequest: text is missing: say what was done
            lee resolve T-1 disk changed
                FixRequest: code is missing: say how it was resolved, in one word (fixed, workaround, false-alarm …)
            lee resolve T-1 code=fixed disk changed
                T-1 v5 resolved P4 owner=lee code=fixed
            lee take T-1
                FixRequest: T-1 is resolved and cannot become in_progress: reopen it first
            lee set T-1 group=db
                FixRequest: T-1 is resolved and cannot be assigned: reopen it first
            lee reopen T-1 not yet
                T-1 v6 in_progress P4 owner=lee code=fixed
            lee cancel T-1
                FixRequest: T-1 is in_progress and cannot become cancelled: look at its present status
            lee resolve T-1 code=fixed now it is
                T-1 v7 resolved P4 owner=lee code=fixed
            lee close T-1
                T-1 v8 closed P4 owner=lee code=fixed
            lee reopen T-1
                FixRequest: T-1 is closed and cannot become in_progress: it is final; a relapse makes a new ticket
            lee take T-1
                FixRequest: T-1 is closed and cannot become in_progress: it is final; a relapse makes a new ticket
            lee note T-1 for the record
                T-1 v9 closed P4 owner=lee code=fixed
        "#]],
    );
}

#[test]
fn assigning_moves_the_ticket_and_hands_it_over() {
    check(
        "
        opened INC-1
        lead set T-1
        lead set T-1 group=db
        lead set T-1 owner=kim
        kim take T-1
        lead set T-1 owner=kim
        kim set T-1 group=net
        lee take T-1
        lee pending T-1 reason=vendor
        lead set T-1 owner=kim
        lead set T-1 impact=huge
        lead cancel T-1
        opened INC-2
        lead cancel T-2 doublet
        lead set T-2 owner=kim
        gateway take T-1
        kim take T-9
        kim take T-1 tenant=other
        ",
        expect![[r#"
            opened INC-1
                T-1 v1 new P4
            lead set T-1
                FixRequest: fields is missing: name a group, a person, an impact or an urgency
            lead set T-1 group=db
                T-1 v2 assigned P4
            lead set T-1 owner=kim
                T-1 v3 assigned P4 owner=kim
            kim take T-1
                T-1 v4 in_progress P4 owner=kim
            lead set T-1 owner=kim
                nothing
            kim set T-1 group=net
                T-1 v5 assigned P4
            lee take T-1
                T-1 v6 in_progress P4 owner=lee
            lee pending T-1 reason=vendor
                T-1 v7 pending P4 owner=lee waits=vendor
            lead set T-1 owner=kim
                T-1 v8 pending P4 owner=kim waits=vendor
            lead set T-1 impact=huge
                FixRequest: impact "huge" is not one of high, medium, low
            lead cancel T-1
                FixRequest: T-1 is pending and cannot become cancelled: take it to go on working, or resolve it
            opened INC-2
                T-2 v1 new P4
            lead cancel T-2 doublet
                T-2 v2 cancelled P4
            lead set T-2 owner=kim
                FixRequest: T-2 is cancelled and cannot be assigned: it is final; a relapse makes a new ticket
            gateway take T-1
                FixRequest: "gateway" is the name of the rules; act under your own
            kim take T-9
                NotFound: there is no ticket T-9
            kim take T-1 tenant=other
                NotFound: there is no ticket T-1
        "#]],
    );
}

#[test]
fn an_incident_has_one_ticket_however_often_it_is_told() {
    let meta = check(
        "
        opened INC-1 group=none
        recovered INC-1 group=none
        changed INC-1 what=2_alerts
        opened INC-1
        recurred INC-1
        opened INC-2
        kim cancel T-2
        opened INC-2
        changed INC-2 sev=critical
        ",
        expect![[r#"
            opened INC-1 group=none
                nothing
            recovered INC-1 group=none
                nothing
            changed INC-1 what=2_alerts
                T-1 v1 new P4
            opened INC-1
                nothing
            recurred INC-1
                nothing
            opened INC-2
                T-2 v1 new P4
            kim cancel T-2
                T-2 v2 cancelled P4
            opened INC-2
                nothing
            changed INC-2 sev=critical
                nothing
        "#]],
    );
    let notices: Vec<_> = meta.stale().scan("gateway", b"", None, 10);
    let opened = DeskNotice::TicketOpened {
        incident: IncidentId(1),
        generation: 1,
        ticket: TicketId(1),
    };
    assert_eq!(notices[0].1, codec::to_bytes(&GatewayCommand::Desk(opened)));
    assert_eq!(notices.len(), 2);
}

#[test]
fn recovery_follows_the_rule_of_the_route() {
    check(
        "
        opened INC-1 rule=note
        recovered INC-1 rule=note
        closed INC-1 rule=note
        opened INC-2
        recovered INC-2
        closed INC-2
        opened INC-3
        kim note T-3 I look at it
        recovered INC-3
        closed INC-3
        opened INC-4 rule=resolve
        kim take T-4
        kim pending T-4 reason=vendor
        closed INC-4 rule=resolve
        closed INC-4 rule=resolve
        ",
        expect![[r#"
            opened INC-1 rule=note
                T-1 v1 new P4
            recovered INC-1 rule=note
                T-1 v2 new P4
            closed INC-1 rule=note
                T-1 v3 new P4
            opened INC-2
                T-2 v1 new P4
            recovered INC-2
                T-2 v2 new P4
            closed INC-2
                T-2 v3 resolved P4 code=recovered
            opened INC-3
                T-3 v1 new P4
            kim note T-3 I look at it
                T-3 v2 new P4
            recovered INC-3
                T-3 v3 new P4
            closed INC-3
                T-3 v4 new P4
            opened INC-4 rule=resolve
                T-4 v1 new P4
            kim take T-4
                T-4 v2 in_progress P4 owner=kim
            kim pending T-4 reason=vendor
                T-4 v3 pending P4 owner=kim waits=vendor
            closed INC-4 rule=resolve
                T-4 v4 resolved P4 owner=kim code=recovered
            closed INC-4 rule=resolve
                T-4 v5 resolved P4 owner=kim code=recovered
        "#]],
    );
}

#[test]
fn a_relapse_reopens_the_same_ticket_unless_it_is_final() {
    let meta = check(
        "
        opened INC-1 rule=resolve
        kim take T-1
        kim resolve T-1 code=fixed restarted it
        reopened INC-1 rule=resolve
        closed INC-1 rule=resolve
        reopened INC-1
        kim resolve T-1 code=fixed restarted it again
        kim close T-1
        reopened INC-1
        opened INC-1
        reopened INC-1
        recurred INC-1 gen=2
        closed INC-1 gen=1 rule=resolve
        recovered INC-1 gen=2
        ",
        expect![[r#"
            opened INC-1 rule=resolve
                T-1 v1 new P4
            kim take T-1
                T-1 v2 in_progress P4 owner=kim
            kim resolve T-1 code=fixed restarted it
                T-1 v3 resolved P4 owner=kim code=fixed
            reopened INC-1 rule=resolve
                T-1 v4 in_progress P4 owner=kim code=fixed flaps=1
            closed INC-1 rule=resolve
                T-1 v5 resolved P4 owner=kim code=fixed flaps=1
            reopened INC-1
                T-1 v6 in_progress P4 owner=kim code=fixed flaps=2
            kim resolve T-1 code=fixed restarted it again
                T-1 v7 resolved P4 owner=kim code=fixed flaps=2
            kim close T-1
                T-1 v8 closed P4 owner=kim code=fixed flaps=2
            reopened INC-1
                T-2 v1 new P4 after=T-1
            opened INC-1
                nothing
            reopened INC-1
                T-2 v2 new P4 after=T-1 flaps=1
            recurred INC-1 gen=2
                T-2 v3 new P4 after=T-1 flaps=1 | T-3 v1 new P4 after=T-2
            closed INC-1 gen=1 rule=resolve
                nothing
            recovered INC-1 gen=2
                T-3 v2 new P4 after=T-2
        "#]],
    );
    // What a person wrote survives the rule that resolved in between.
    assert_eq!(
        view(&meta, 1).ticket.resolution_text.as_deref(),
        Some("restarted it again")
    );
}

#[test]
fn priority_follows_the_incident_until_a_person_fixes_it() {
    let meta = check(
        "
        opened INC-1 sev=minor
        changed INC-1 sev=critical services=shop:critical
        lead set T-1 urgency=low
        changed INC-1 sev=major services=shop:critical
        changed INC-1 sev=major services=search:medium
        lead set T-1 impact=medium
        changed INC-1 sev=critical services=a:low,b:low
        changed INC-1 sev=critical services=a:low,b:low
        ",
        expect![[r#"
            opened INC-1 sev=minor
                T-1 v1 new P5
            changed INC-1 sev=critical services=shop:critical
                T-1 v2 new P1
            lead set T-1 urgency=low
                T-1 v3 new P3
            changed INC-1 sev=major services=shop:critical
                T-1 v4 new P3
            changed INC-1 sev=major services=search:medium
                T-1 v5 new P4
            lead set T-1 impact=medium
                T-1 v6 new P4
            changed INC-1 sev=critical services=a:low,b:low
                T-1 v7 new P4
            changed INC-1 sev=critical services=a:low,b:low
                nothing
        "#]],
    );
    let thread: Vec<_> = view(&meta, 1)
        .thread
        .into_iter()
        .map(|e| format!("{}: {}", e.actor, e.text))
        .collect();
    expect![[r#"
        gateway: Minor trouble since 1970-01-01 00:00:00 UTC.
        - Processor of web-1 is 97 % busy
        No service is known to be affected.
        gateway: Severity rose from minor to critical; priority is now P1 instead of P5
        lead: set urgency to low
        gateway: Severity fell from critical to major; priority stays P3, a person fixed it
        gateway: priority is now P4 instead of P3
        lead: set impact to medium
        gateway: Severity rose from major to critical; priority stays P4, a person fixed it"#]]
    .assert_eq(&thread.join("\n"));
}

#[test]
fn edits_of_different_fields_merge_and_of_equal_ones_conflict() {
    check(
        "
        opened INC-1
        kim set T-1 base=1 impact=high
        lee set T-1 base=1 urgency=high
        ann set T-1 base=1 urgency=low
        ann set T-1 base=1 urgency=high
        ann note T-1 base=1 notes never collide
        kim take T-1 base=1
        lee take T-1 base=1
        lee take T-1 base=7
        lee take T-1 base=99
        lee cancel T-1 base=1
        lee cancel T-1
        ",
        expect![[r#"
            opened INC-1
                T-1 v1 new P4
            kim set T-1 base=1 impact=high
                T-1 v2 new P2
            lee set T-1 base=1 urgency=high
                T-1 v3 new P1
            ann set T-1 base=1 urgency=low
                Conflict: T-1 was changed since version 1: urgency is now "high", you asked for "low"
            ann set T-1 base=1 urgency=high
                nothing
            ann note T-1 base=1 notes never collide
                T-1 v4 new P1
            kim take T-1 base=1
                T-1 v5 in_progress P1 owner=kim
            lee take T-1 base=1
                Conflict: T-1 was changed since version 1: owner is now "kim", you asked for "lee"
            lee take T-1 base=7
                FixRequest: T-1 is at version 5, the edit is based on 7, which does not exist yet
            lee take T-1 base=99
                FixRequest: T-1 is at version 5, the edit is based on 99, which does not exist yet
            lee cancel T-1 base=1
                Conflict: T-1 was changed since version 1: status is now "in_progress", you asked for "cancelled"
            lee cancel T-1
                FixRequest: T-1 is in_progress and cannot become cancelled: look at its present status
        "#]],
    );
}

#[test]
fn a_retry_with_the_same_request_id_changes_nothing() {
    let meta = check(
        "
        opened INC-1
        kim note T-1 id=r1 hello
        kim note T-1 id=r1 hello
        kim note T-1 id=r1 other text
        lee note T-1 id=r1 hello
        kim note T-1 hello
        ",
        expect![[r#"
            opened INC-1
                T-1 v1 new P4
            kim note T-1 id=r1 hello
                T-1 v2 new P4
            kim note T-1 id=r1 hello
                nothing
            kim note T-1 id=r1 other text
                FixRequest: request id "r1" was used for another edit of T-1; use a new one
            lee note T-1 id=r1 hello
                FixRequest: request id "r1" was used for another edit of T-1; use a new one
            kim note T-1 hello
                T-1 v3 new P4
        "#]],
    );
    for n in 0..REQUESTS_MAX + 5 {
        run(&meta, &["kim", "note", "T-1", &format!("id=n{n}"), "x"]).unwrap();
    }
    assert_eq!(view(&meta, 1).ticket.requests.len(), REQUESTS_MAX);
}

#[test]
fn a_taken_ticket_stops_the_paging() {
    let meta = check(
        "
        opened INC-1
        kim note T-1 looking
        kim take T-1
        lee take T-1
        ",
        expect![[r#"
            opened INC-1
                T-1 v1 new P4
            kim note T-1 looking
                T-1 v2 new P4
            kim take T-1
                T-1 v3 in_progress P4 owner=kim
            lee take T-1
                T-1 v4 in_progress P4 owner=lee
        "#]],
    );
    let taken = DeskNotice::TicketTaken {
        incident: IncidentId(1),
        generation: 1,
        ticket: TicketId(1),
        by: "kim".into(),
    };
    let notices = meta.stale().scan("gateway", b"", None, 10);
    assert_eq!(notices.len(), 2, "opened, and taken once");
    assert_eq!(notices[1].1, codec::to_bytes(&GatewayCommand::Desk(taken)));
}

#[test]
fn texts_and_threads_are_bounded() {
    let meta = meta();
    run(&meta, &["opened", "INC-1"]).unwrap();
    let long = "x".repeat(crate::thread::TEXT_BYTES_MAX + 1);
    let refused = run(&meta, &["kim", "note", "T-1", &long]).unwrap_err();
    assert_eq!(refused, "TooLarge: text is longer than 16384 bytes");
    assert!(
        run(&meta, &["kim", "note", "T-1", "a\u{7}b"])
            .unwrap_err()
            .starts_with("FixRequest: text holds")
    );
    for n in 0..SYSTEM_NOTES_MAX + 3 {
        run(&meta, &["changed", "INC-1", &format!("what=change_{n}")]).unwrap();
    }
    let ticket = view(&meta, 1).ticket;
    assert_eq!((ticket.system_notes, ticket.notes_left_out), (SYSTEM_NOTES_MAX, 4));
    for _ in 0..NOTES_MAX {
        run(&meta, &["kim", "note", "T-1", "again"]).unwrap();
    }
    assert!(
        run(&meta, &["kim", "note", "T-1", "again"])
            .unwrap_err()
            .contains("2000 notes, which is the most")
    );
    // Work goes on all the same, and the newest entries are shown.
    run(&meta, &["kim", "take", "T-1"]).unwrap();
    assert_eq!(view(&meta, 1).thread.len(), crate::view::THREAD_SHOWN_MAX);
    assert_eq!(view(&meta, 1).audit.len(), crate::view::AUDIT_SHOWN_MAX);
    assert_eq!(view(&meta, 1).audit.last().unwrap().action, "taken");
    verify_audit(meta.stale().as_ref()).unwrap();
}

#[test]
fn a_change_leaves_an_audit_record_and_a_history_line() {
    let meta = meta();
    for line in ["opened INC-1", "kim take T-1"] {
        run(&meta, &line.split(' ').collect::<Vec<_>>()).unwrap();
    }
    let record = view(&meta, 1).audit.pop().unwrap();
    let text = blake3::hash(b"took the ticket").to_hex();
    assert_eq!(record.before, r#"{"owner":null,"status":"new"}"#);
    let after = format!(r#"{{"owner":"kim","status":"in_progress","text_blake3":"{text}"}}"#);
    assert_eq!(record.after, after);
    let lines = history_rows(meta.stale().as_ref(), 10);
    let last = &lines.last().unwrap().2;
    assert_eq!(last.labels, HistoryKind::Ticket.stream());
    let record = HistoryRecord::from_line(last.line.as_bytes()).unwrap();
    assert_eq!((record.object.as_str(), record.change.as_str()), ("T-1", "taken"));
    assert_eq!(record.state["status"], "in_progress");
}

#[test]
fn several_events_of_one_command_are_told_apart() {
    let meta = meta();
    let events: Vec<_> = ["INC-1", "INC-2"]
        .iter()
        .filter_map(|i| event(&["opened", i]))
        .collect();
    meta.apply("gateway", codec::to_bytes(&events)).unwrap();
    let lines = history_rows(meta.stale().as_ref(), 10);
    let names: Vec<_> = lines
        .iter()
        .map(|(_, _, l)| HistoryRecord::from_line(l.line.as_bytes()).unwrap())
        .map(|r| (r.index, r.seq, r.object))
        .collect();
    assert_eq!(names, [(1, 0, "T-1".into()), (1, 1, "T-2".into())]);
}

#[test]
fn lists_are_by_status_newest_first_and_of_one_tenant() {
    let meta = meta();
    for line in [
        "opened INC-1",
        "opened INC-2",
        "opened INC-3",
        "kim cancel T-2",
        "kim take T-1",
    ] {
        run(&meta, &line.split(' ').collect::<Vec<_>>()).unwrap();
    }
    let read = meta.stale();
    let list = |tenant: &str, status: &str, limit| {
        let tenant = TenantId::new(tenant).unwrap();
        let tickets = list_tickets(read.as_ref(), &tenant, TicketFilter::parse(status).unwrap(), limit).unwrap();
        tickets.iter().map(|t| t.number.0).collect::<Vec<_>>()
    };
    assert_eq!(list("default", "", 10), [3, 2, 1]);
    assert_eq!(list("default", "open", 10), [3, 1]);
    assert_eq!(list("default", "cancelled", 10), [2]);
    assert_eq!(list("default", "", 2), [3, 2]);
    assert_eq!(list("other", "", 10), [] as [u64; 0]);
    assert_eq!(TicketFilter::parse("broken"), None);
    assert!(
        get_ticket(read.as_ref(), &TenantId::new("other").unwrap(), TicketId(1))
            .unwrap()
            .is_none()
    );
}

#[derive(Clone, Debug)]
enum Step {
    Event {
        kind: usize,
        incident: u64,
        generation: u64,
        severity: usize,
        services: usize,
        rule: usize,
    },
    Edit {
        actor: usize,
        number: u64,
        action: usize,
        base_back: u64,
        based: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let event = (0..6usize, 1..3u64, 1..4u64, 0..3usize, 0..3usize, 0..3usize).prop_map(
        |(kind, incident, generation, severity, services, rule)| Step::Event {
            kind,
            incident,
            generation,
            severity,
            services,
            rule,
        },
    );
    let edit = (0..3usize, 1..6u64, 0..9usize, 0..4u64, any::<bool>()).prop_map(
        |(actor, number, action, base_back, based)| Step::Edit {
            actor,
            number,
            action,
            base_back,
            based,
        },
    );
    prop_oneof![event, edit]
}

fn line_of(step: &Step, meta: &LocalMeta) -> String {
    match step {
        Step::Event {
            kind,
            incident,
            generation,
            severity,
            services,
            rule,
        } => {
            let kind = ["opened", "changed", "recovered", "reopened", "closed", "recurred"][*kind];
            let severity = ["minor", "major", "critical"][*severity];
            let services = ["", "shop:critical", "a:low,b:medium"][*services];
            let rule = ["note", "resolve-if-untouched", "resolve"][*rule];
            format!("{kind} INC-{incident} gen={generation} sev={severity} services={services} rule={rule}")
        }
        Step::Edit {
            actor,
            number,
            action,
            base_back,
            based,
        } => {
            let actor = ["kim", "lee", "ann"][*actor];
            let what = [
                "take",
                "note x",
                "pending reason=vendor",
                "resolve code=fixed done",
                "reopen",
                "cancel",
                "close",
                "set owner=kim group=db",
                "set impact=high urgency=low",
            ][*action];
            let (verb, rest) = what.split_once(' ').unwrap_or((what, ""));
            let version = all(meta)
                .iter()
                .find(|t| t.number.0 == *number)
                .map_or(1, |t| t.version);
            let base = if *based { version.saturating_sub(*base_back) } else { 0 };
            format!("{actor} {verb} T-{number} {rest} base={base}")
        }
    }
}

/// What people set: no rule may change it.
const PEOPLES: [Field; 6] = [
    Field::Owner,
    Field::Group,
    Field::Impact,
    Field::Urgency,
    Field::ResolutionCode,
    Field::ResolutionText,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn whatever_happens_the_desk_keeps_its_promises(steps in prop::collection::vec(step(), 1..60)) {
        let meta = meta();
        let mut numbers_seen = 0;
        for step in &steps {
            let before: BTreeMap<_, _> = all(&meta).into_iter().map(|t| (t.number, t)).collect();
            let line = line_of(step, &meta);
            let answer = run(&meta, &line.split_whitespace().collect::<Vec<_>>());
            meta.settle();
            let by_rule = matches!(step, Step::Event { .. });
            prop_assert!(answer.is_ok() || !by_rule, "an event was refused: {line}: {answer:?}");
            let after = all(&meta);
            if answer.is_err() {
                prop_assert!(after.iter().eq(before.values().rev()), "{line}");
            }
            let mut open = std::collections::BTreeSet::new();
            for t in &after {
                prop_assert!(!t.status.is_open() || open.insert((t.incident, t.generation)), "two open tickets: {line}");
                let Some(was) = before.get(&t.number) else {
                    numbers_seen += 1;
                    prop_assert_eq!(t.number.0, numbers_seen, "numbers rise by one");
                    continue;
                };
                prop_assert!(t.version == was.version || t.version == was.version + 1);
                if t.status != was.status {
                    let by = if by_rule { crate::ticket::By::Rule } else { crate::ticket::By::Person };
                    let taken = was.status == Status::New && t.status == Status::InProgress;
                    prop_assert!(was.status.goes_to(t.status, by) || taken && !by_rule, "{line}: {} to {}", was.status, t.status);
                }
                for field in PEOPLES.iter().filter(|f| by_rule && was.by_person.contains(f)) {
                    prop_assert_eq!(t.value(*field), was.value(*field), "{}", line);
                }
                prop_assert_eq!(t.status == Status::Pending, t.pending_reason.is_some());
            }
        }
        let read = meta.stale();
        let tickets = all(&meta);
        let changes: u64 = tickets.iter().map(|t| t.version).sum();
        prop_assert_eq!(verify_audit(read.as_ref()).unwrap(), changes, "one audit record per change");
        prop_assert_eq!(history_rows(read.as_ref(), usize::MAX).len() as u64, changes, "one History line per change");
        for t in &tickets {
            let link: IncidentLink = rows::link(read.as_ref(), t.incident).unwrap().unwrap();
            prop_assert!(link.ticket >= t.number, "the link names the newest");
        }
    }
}

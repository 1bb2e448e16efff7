//! Both faces over a machine in memory.

use super::*;
use crate::desk::DeskPart;
use axum::body::Body;
use axum::http::Request;
use expect_test::{Expect, expect};
use hindcast_alerting::event::{IncidentEvent, IncidentEventKind, IncidentSnapshot, IncidentState, OnRecovery};
use hindcast_model::{IncidentId, Severity, TimestampNs, codec};
use hindcast_proto::v1;
use hindcast_proto::v1::desk_server::Desk;
use hindcast_raft::{ApplyContext, LocalMeta, MetaTx, Part, PartInput, PartOutput, Refusal};
use http_body_util::BodyExt;
use tower::ServiceExt;

/// Any command opens an incident of that number; notices are dropped.
struct Gateway;

impl Part for Gateway {
    fn name(&self) -> &'static str {
        "gateway"
    }
    fn apply(&self, _: ApplyContext, input: PartInput<'_>, _: &mut MetaTx<'_>) -> Result<PartOutput, Refusal> {
        let mut out = PartOutput::default();
        if let PartInput::Command(&[number]) = input {
            let incident = IncidentSnapshot {
                id: IncidentId(number.into()),
                tenant: TenantId::default(),
                generation: 1,
                title: "Processor busy on web-1".into(),
                state: IncidentState::Open,
                severity: Severity::Major,
                opened_at: TimestampNs::EPOCH,
                alerts: vec![],
                resources: vec![],
                services: Default::default(),
                desk_group: Some("ops".into()),
                on_recovery: OnRecovery::default(),
            };
            let kind = IncidentEventKind::Opened;
            out.rightward.push(codec::to_bytes(&IncidentEvent { kind, incident }));
        }
        Ok(out)
    }
}

fn meta_with_ticket() -> Arc<LocalMeta> {
    let meta = LocalMeta::new(vec![Box::new(Gateway), Box::new(DeskPart)]);
    meta.set_now(TimestampNs::from_secs(60));
    meta.apply("gateway", vec![1]).unwrap();
    Arc::new(meta)
}

/// `METHOD path [header: value]… [| body]` → status, ETag, and the fields of the answer that the test names.
async fn ask(router: &Router, line: &str, fields: &[&str]) -> String {
    let (head, body) = line.split_once(" | ").unwrap_or((line, ""));
    let mut words = head.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let mut request = Request::builder()
        .method(method)
        .uri(format!("/api/hindcast/v1/{path}"));
    if !body.is_empty() {
        request = request.header("content-type", "application/json");
    }
    for header in words {
        let (name, value) = header.split_once(':').unwrap();
        request = request.header(name, value);
    }
    let request = request.body(Body::from(body.to_owned())).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let etag = response.headers().get("etag").map(|e| e.to_str().unwrap().to_owned());
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let json: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    let shown: Vec<_> = fields
        .iter()
        .filter(|f| !json[**f].is_null())
        .map(|f| json[*f].to_string())
        .collect();
    format!(
        "{line}\n    {status} {} {}\n",
        etag.unwrap_or_default(),
        shown.join(" ")
    )
}

async fn check(script: &str, expect: Expect) {
    let router = router(meta_with_ticket());
    let fields = [
        "status",
        "owner",
        "group",
        "impact",
        "priority",
        "pending_reason",
        "code",
        "message",
        "conflicts",
        "version",
    ];
    let mut out = String::new();
    for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
        out += &ask(&router, line, &fields).await;
    }
    expect.assert_eq(&out);
}

#[tokio::test]
async fn a_ticket_is_worked_on_over_http() {
    check(
        r#"
        GET tickets/T-1
        POST tickets/T-1/take x-hindcast-actor:%EA%B9%80 | {}
        POST tickets/T-1/notes x-hindcast-actor:kim | {"text":"looking"}
        POST tickets/1/transition | {"to":"pending","reason":"vendor"}
        POST tickets/T-1/transition x-hindcast-actor:lee | {"to":"in_progress"}
        PATCH tickets/T-1 | {"impact":"high","group":"db"}
        POST tickets/T-1/transition | {"to":"resolved","code":"fixed","text":"restarted"}
        POST tickets/T-1/transition | {"to":"in_progress","text":"came back"}
        "#,
        expect![[r#"
            GET tickets/T-1
                200 "1" "new" "ops" "low" "P4" 1
            POST tickets/T-1/take x-hindcast-actor:%EA%B9%80 | {}
                200 "2" "in_progress" "김" "ops" "low" "P4" 2
            POST tickets/T-1/notes x-hindcast-actor:kim | {"text":"looking"}
                200 "3" "in_progress" "김" "ops" "low" "P4" 3
            POST tickets/1/transition | {"to":"pending","reason":"vendor"}
                200 "4" "pending" "김" "ops" "low" "P4" "vendor" 4
            POST tickets/T-1/transition x-hindcast-actor:lee | {"to":"in_progress"}
                200 "5" "in_progress" "lee" "ops" "low" "P4" 5
            PATCH tickets/T-1 | {"impact":"high","group":"db"}
                200 "6" "assigned" "db" "high" "P2" 6
            POST tickets/T-1/transition | {"to":"resolved","code":"fixed","text":"restarted"}
                200 "7" "resolved" "db" "high" "P2" 7
            POST tickets/T-1/transition | {"to":"in_progress","text":"came back"}
                200 "8" "in_progress" "db" "high" "P2" 8
        "#]],
    )
    .await;
}

#[tokio::test]
async fn a_stale_edit_is_told_both_values() {
    check(
        r#"
        PATCH tickets/T-1 if-match:"1" x-hindcast-actor:kim | {"impact":"high"}
        PATCH tickets/T-1 if-match:"1" x-hindcast-actor:lee | {"impact":"medium"}
        PATCH tickets/T-1 if-match:"1" x-hindcast-actor:lee | {"urgency":"low"}
        PATCH tickets/T-1 if-match:banana | {"urgency":"low"}
        "#,
        expect![[r#"
            PATCH tickets/T-1 if-match:"1" x-hindcast-actor:kim | {"impact":"high"}
                200 "2" "new" "ops" "high" "P2" 2
            PATCH tickets/T-1 if-match:"1" x-hindcast-actor:lee | {"impact":"medium"}
                409  "conflict" "T-1 was changed since version 1: impact is now \"high\", you asked for \"medium\"" [{"field":"impact","theirs":"high","yours":"medium"}] 2
            PATCH tickets/T-1 if-match:"1" x-hindcast-actor:lee | {"urgency":"low"}
                200 "3" "new" "ops" "high" "P3" 3
            PATCH tickets/T-1 if-match:banana | {"urgency":"low"}
                400  "invalid" "If-Match \"banana\" is not a version like \"7\", as the ETag of a ticket gives it"
        "#]],
    )
    .await;
}

#[tokio::test]
async fn bad_requests_say_what_to_do() {
    check(
        r#"
        GET tickets/T-9
        GET tickets/banana
        GET tickets?status=broken
        GET tickets?colour=red
        GET tickets x-scope-orgid:a/b
        POST tickets/T-1/take
        POST tickets/T-1/notes | {"text":" "}
        POST tickets/T-1/notes | {"txt":"x"}
        POST tickets/T-1/notes | {"text":
        POST tickets/T-1/transition | {"to":"new"}
        POST tickets/T-1/transition | {"to":"pending"}
        POST tickets/T-1/transition | {"to":"closed"}
        POST tickets/T-1/assign | {}
        POST tickets/T-1/take x-hindcast-actor:100% | {}
        POST tickets/T-1/take x-hindcast-actor:gateway | {}
        GET tickets/T-1 x-scope-orgid:other
        "#,
        expect![[r#"
            GET tickets/T-9
                404  "not_found" "there is no ticket T-9"
            GET tickets/banana
                400  "invalid" "\"banana\" is not an id of this kind; write it like \"T-1\""
            GET tickets?status=broken
                400  "invalid" "\"broken\" is not a status; use one of new, assigned, in_progress, pending, resolved, closed, cancelled, open, or leave it out"
            GET tickets?colour=red
                400  "invalid" "Failed to deserialize query string: colour: unknown field `colour`, expected `status` or `limit`"
            GET tickets x-scope-orgid:a/b
                400  "invalid" "\"a/b\" is not a tenant name: use 1 to 128 of the characters A-Z a-z 0-9 _ . -"
            POST tickets/T-1/take
                400  "invalid" "Expected request with `Content-Type: application/json`"
            POST tickets/T-1/notes | {"text":" "}
                400  "invalid" "text is missing: write what the others should know"
            POST tickets/T-1/notes | {"txt":"x"}
                400  "invalid" "Failed to deserialize the JSON body into the target type: txt: unknown field `txt`, expected `text` or `request_id` at line 1 column 6"
            POST tickets/T-1/notes | {"text":
                400  "invalid" "Failed to parse the request body as JSON: text: EOF while parsing a value at line 1 column 8"
            POST tickets/T-1/transition | {"to":"new"}
                400  "invalid" "a ticket cannot go to \"new\"; use one of in_progress, pending, resolved, closed, cancelled"
            POST tickets/T-1/transition | {"to":"pending"}
                400  "invalid" "reason is missing: say what is waited for"
            POST tickets/T-1/transition | {"to":"closed"}
                400  "invalid" "T-1 is new and cannot become closed: take or assign it first"
            POST tickets/T-1/assign | {}
                400  "invalid" "fields is missing: name a group, a person, an impact or an urgency"
            POST tickets/T-1/take x-hindcast-actor:100% | {}
                400  "invalid" "the actor \"100%\" is not percent-encoded UTF-8"
            POST tickets/T-1/take x-hindcast-actor:gateway | {}
                400  "invalid" "\"gateway\" is the name of the rules; act under your own"
            GET tickets/T-1 x-scope-orgid:other
                404  "not_found" "there is no ticket T-1"
        "#]],
    )
    .await;
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused() {
    let router = router(meta_with_ticket());
    let line = format!(
        "POST tickets/T-1/notes | {{\"text\":\"{}\"}}",
        "x".repeat(BODY_BYTES_MAX)
    );
    let answer = ask(&router, &line, &["code"]).await;
    assert!(
        answer.ends_with("413  \"too_large\"\n"),
        "{}",
        &answer[answer.len() - 80..]
    );
}

#[tokio::test]
async fn a_list_holds_what_the_status_asks_for() {
    let meta = meta_with_ticket();
    meta.apply("gateway", vec![2]).unwrap();
    let router = router(meta);
    let list = async |query: &str| {
        let answer = ask(&router, &format!("GET tickets{query}"), &["tickets"]).await;
        answer.matches("\"number\"").count()
    };
    ask(&router, "POST tickets/T-1/take | {}", &[]).await;
    assert_eq!(list("").await, 2);
    assert_eq!(list("?status=new").await, 1);
    assert_eq!(list("?status=open&limit=1").await, 1);
}

#[tokio::test]
async fn grpc_says_the_same() {
    let meta = meta_with_ticket();
    let service = crate::io::grpc::DeskGrpc::new(meta);
    let mut request = tonic::Request::new(v1::EditTicketRequest {
        number: "T-1".into(),
        base_version: 1,
        request_id: "r1".into(),
        action: Some(v1::edit_ticket_request::Action::Take(v1::edit_ticket_request::Take {})),
    });
    request.metadata_mut().insert(ACTOR_KEY, "kim".parse().unwrap());
    let ticket = service.edit(request).await.unwrap().into_inner();
    assert_eq!(
        (ticket.status.as_str(), ticket.owner.as_str(), ticket.version),
        ("in_progress", "kim", 2)
    );
    assert_eq!(
        (ticket.replay_url.as_str(), ticket.replay_command.as_str()),
        ("/replay/INC-1", "hindcast replay INC-1")
    );
    assert_eq!((ticket.thread.len(), ticket.audit.len()), (2, 2));
    assert_eq!(ticket.created_ms, 60_000);

    let list = service.list(tonic::Request::new(v1::ListTicketsRequest { status: "open".into() }));
    assert_eq!(list.await.unwrap().into_inner().tickets.len(), 1);
    let code = |number: &str, action| {
        let number = number.to_owned();
        let request = v1::EditTicketRequest {
            number,
            base_version: 1,
            request_id: String::new(),
            action,
        };
        let service = &service;
        async move { service.edit(tonic::Request::new(request)).await.unwrap_err().code() }
    };
    use tonic::Code;
    use v1::edit_ticket_request::{Action, Close, Resolve, Take};
    assert_eq!(code("T-1", None).await, Code::InvalidArgument);
    assert_eq!(code("T-9", Some(Action::Close(Close {}))).await, Code::NotFound);
    assert_eq!(code("T-1", Some(Action::Take(Take {}))).await, Code::Aborted);
    let resolve = Resolve {
        code: "fixed".into(),
        text: String::new(),
    };
    assert_eq!(code("T-1", Some(Action::Resolve(resolve))).await, Code::InvalidArgument);
}

//! The shells together, over a meta group and a shard in memory: from a sample to a delivered message and to History.

use hindcast_alerting::command::{GATEWAY_PART, GatewayCommand};
use hindcast_alerting::event::IncidentState;
use hindcast_alerting::io::{Deliverer, Evaluator, HistoryPump, HistoryWriteError, HistoryWriter, http};
use hindcast_alerting::outbox::{EffectKind, EffectState, Receipt, Sending};
use hindcast_alerting::{Channel, Channels, GatewayPart, SendError, route, rows, rule};
use hindcast_env::{Clock, SimClock};
use hindcast_model::{Labels, LogLine, NodeId, Owner, Sample, SpanNs, TenantId, TimestampNs};
use hindcast_query::engine::{Engine, Limits};
use hindcast_query::shards::Shards;
use hindcast_query::testing::OneShard;
use hindcast_raft::{HistoryLine, LocalMeta, Meta, history_rows};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tower::ServiceExt;

/// Keeps what was sent; the first message finds the far side busy.
#[derive(Default)]
struct Recorder(Mutex<Vec<(EffectKind, u32)>>);

#[async_trait::async_trait]
impl Channel for Recorder {
    async fn send(&self, sending: &Sending) -> Result<Receipt, SendError> {
        let mut sent = self.0.lock();
        sent.push((sending.effect.kind, sending.effect.attempts));
        if sent.len() == 1 {
            return Err(SendError::Busy("full".into()));
        }
        Ok(Receipt { id: "ok".into() })
    }
}

/// Keeps lines by sequence; each sequence fails once.
#[derive(Default)]
struct Lines(Mutex<Vec<(u64, usize)>>, Mutex<u64>);

#[async_trait::async_trait]
impl HistoryWriter for Lines {
    async fn write(&self, _: &TenantId, sequence: u64, lines: Vec<HistoryLine>) -> Result<(), HistoryWriteError> {
        let mut failed = self.1.lock();
        if *failed < sequence {
            *failed = sequence;
            let why = "not this time".to_owned();
            return Err(HistoryWriteError { sequence, why });
        }
        self.0.lock().push((sequence, lines.len()));
        Ok(())
    }
}

fn evaluator(meta: Arc<dyn Meta>, shards: Arc<dyn Shards>, clock: Arc<dyn Clock>) -> Evaluator {
    let engine = Arc::new(Engine::new(shards.clone(), Limits::default()));
    Evaluator::new(meta, engine, shards, clock.clone(), clock, NodeId(1))
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..400 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("never: {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sample_becomes_a_message_and_history() {
    let clock = SimClock::at(TimestampNs::from_secs(1_000));
    let meta = Arc::new(LocalMeta::new(vec![Box::new(GatewayPart)]));
    let step = |by: u64| {
        clock.advance(SpanNs::from_secs(by));
        meta.set_now(clock.now());
    };
    step(0);
    let shard = Arc::new(OneShard::new());
    let tenant = TenantId::default();
    let labels = Labels::from_pairs([("__name__", "node_load1"), ("instance", "web-1:9100"), ("job", "node")]);
    let add = |value: f64| {
        let at = clock.now();
        shard.add(&tenant, labels.clone(), [Sample { at, value }]);
    };
    add(9.0);
    let rules = "groups: [{name: g, interval: 10s, rules: [
        {threshold: Loaded, expr: node_load1, levels: {critical: {above: 5, clear: 4}}}]}]";
    let routes =
        "{route: {receiver: hook}, receivers: [{name: hook, webhook_configs: [{url: 'https://example.com/'}]}]}";
    for command in [
        GatewayCommand::SetRoutes {
            tenant: None,
            revision: "1".into(),
            routes: route::parse("routes.yml", routes).unwrap(),
        },
        GatewayCommand::SetRules {
            tenant: tenant.clone(),
            source: "r.yml".into(),
            revision: "1".into(),
            groups: rule::parse("r.yml", rules).unwrap().groups,
        },
    ] {
        meta.propose(GATEWAY_PART, command.encode()).await.unwrap();
    }
    let (stop, stopped) = watch::channel(false);
    let (recorder, lines) = (Arc::new(Recorder::default()), Arc::new(Lines::default()));
    let (as_meta, as_clock): (Arc<dyn Meta>, Arc<dyn Clock>) = (meta.clone(), Arc::new(clock.clone()));
    let evaluator = evaluator(as_meta.clone(), shard.clone(), as_clock.clone());
    let channels = Channels::new().with("webhook", recorder.clone());
    let workers = [
        tokio::spawn(evaluator.run(stopped.clone())),
        tokio::spawn(Deliverer::new(as_meta.clone(), channels, NodeId(1), as_clock).run(stopped.clone())),
        tokio::spawn(HistoryPump::new(as_meta.clone(), lines.clone()).run(stopped)),
    ];
    let read = meta.stale();
    let state = || {
        rows::incidents(read.as_ref(), &tenant, None, 1)
            .unwrap()
            .first()
            .map(|i| i.state)
    };
    until("an incident", || state() == Some(IncidentState::Open)).await;
    until("a busy answer", || recorder.0.lock().len() == 1).await;
    step(5);
    until("the second attempt", || recorder.0.lock().len() == 2).await;
    step(5);
    add(1.0);
    until("a recovery", || state() == Some(IncidentState::Recovered)).await;
    until("the third message", || recorder.0.lock().len() == 3).await;
    step(700);
    until("the close", || state() == Some(IncidentState::Closed)).await;
    until("History", || history_rows(read.as_ref(), 1).is_empty()).await;
    stop.send(true).unwrap();
    for worker in workers {
        worker.await.unwrap();
    }
    let sent = recorder.0.lock().clone();
    assert_eq!(
        sent,
        [
            (EffectKind::Opened, 1),
            (EffectKind::Opened, 2),
            (EffectKind::Recovered, 1)
        ]
    );
    let effects = rows::all_effects(read.as_ref(), &tenant).unwrap();
    assert!(effects.iter().all(|e| e.state == EffectState::Delivered));
    let written = lines.0.lock().clone();
    assert!(
        written.windows(2).all(|w| w[0].0 < w[1].0),
        "in order, each once: {written:?}"
    );
    assert!(written.iter().map(|w| w.1).sum::<usize>() >= 8, "{written:?}");

    let request = axum::http::Request::get("/api/hindcast/v1/incidents/INC-1").body(axum::body::Body::empty());
    let answer = http::router(as_meta).oneshot(request.unwrap()).await.unwrap();
    let body = http_body_util::BodyExt::collect(answer.into_body())
        .await
        .unwrap()
        .to_bytes();
    let shown: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (&shown["title"], &shown["state"]),
        (&"Loaded on web-1".into(), &"closed".into())
    );
    assert_eq!(shown["deliveries"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trap_becomes_an_incident_of_its_interface_until_there_are_no_more() {
    let clock = SimClock::at(TimestampNs::from_secs(1_000));
    let meta = Arc::new(LocalMeta::new(vec![Box::new(GatewayPart)]));
    meta.set_now(clock.now());
    let (shard, tenant) = (Arc::new(OneShard::new()), TenantId::default());
    let stream = [
        ("log_source", "snmptrap"),
        ("trap", "linkDown"),
        ("instance", "sw-1"),
        ("ifIndex", "4"),
    ];
    let line = LogLine {
        at: clock.now(),
        line: "trap 1.3.6.1.6.3.1.1.5.3 linkDown ifIndex=4 ifName=eth0".into(),
        metadata: vec![("ifName".into(), "eth0".into())],
    };
    shard.add_lines(&tenant, Labels::from_pairs(stream), Owner::None, [line]);
    let rules = "groups: [{name: g, type: loki, interval: 10s, rules: [{alert: LinkDown, labels: {severity: error},
        expr: 'sum by (instance, ifIndex) (count_over_time({log_source=\"snmptrap\", trap=\"linkDown\"}[1m])) > 0',
        annotations: {summary: 'interface {{ $labels.ifIndex }} of {{ $labels.instance }} is down, {{ $value }} traps'}}]}]";
    let command = GatewayCommand::SetRules {
        tenant: tenant.clone(),
        source: "r.yml".into(),
        revision: "1".into(),
        groups: rule::parse("r.yml", rules).unwrap().groups,
    };
    meta.propose(GATEWAY_PART, command.encode()).await.unwrap();
    let (stop, stopped) = watch::channel(false);
    let worker = tokio::spawn(evaluator(meta.clone(), shard.clone(), Arc::new(clock.clone())).run(stopped));
    let read = meta.stale();
    let incident = || rows::incidents(read.as_ref(), &tenant, None, 1).unwrap().pop();
    until("an incident", || {
        incident().is_some_and(|i| i.state == IncidentState::Open)
    })
    .await;
    assert_eq!(incident().unwrap().title, "LinkDown on sw-1/4");
    let alert = rows::alerts(read.as_ref(), &tenant).unwrap().pop().unwrap();
    assert_eq!(alert.annotations["summary"], "interface 4 of sw-1 is down, 1 traps");
    clock.advance(SpanNs::from_secs(90));
    meta.set_now(clock.now());
    shard.set_complete_to(clock.now());
    until("a recovery", || {
        incident().is_some_and(|i| i.state == IncidentState::Recovered)
    })
    .await;
    stop.send(true).unwrap();
    worker.await.unwrap();
}

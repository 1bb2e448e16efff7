//! Those who use the cluster while things go wrong: writers, readers, something that raises alarms, and receivers that
//! are told of them. All of it goes into the history.

use crate::history::{FLOOD, Found, History, Phase, What};
use crate::hosts::{Hosts, now};
use anyhow::{Context, Result};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use hindcast::demo::receivers::{Mailbox, SlackDesk};
use hindcast_chaos::workload::{HOSTS, Load, batch, label, now_ms, read_batches};
use hindcast_env::{Rng, SeededRng};
use hindcast_proto::v1;
use hindcast_proto::v1::alerts_client::AlertsClient;
use hindcast_proto::v1::desk_client::DeskClient;
use hindcast_proto::v1::ingest_client::IngestClient;
use hindcast_proto::v1::query_client::QueryClient;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tonic::Code;
use tonic::transport::Channel;

pub const LOAD: Load = Load {
    writers: 8,
    samples_per_batch: 50,
    lines_per_batch: 5,
    pause: Duration::from_millis(50),
    patience: Duration::MAX,
};
/// What a flood sends: from each of [`FLOOD_WRITERS`] a batch every [`FLOOD_PAUSE`], whatever became of those before.
pub const FLOOD_LOAD: Load = Load {
    writers: 0,
    samples_per_batch: 500,
    lines_per_batch: 50,
    pause: Duration::ZERO,
    patience: Duration::ZERO,
};
const FLOOD_WRITERS: u64 = 40;
const FLOOD_PAUSE: Duration = Duration::from_millis(20);
/// Of one writer, without an answer yet; no more are sent while there are so many.
const FLOOD_IN_FLIGHT_MAX: usize = 40;

/// A call that takes longer has an unknown end.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// A node that gave no answer is not asked again for so long, as load balancers do.
const AVOID_SPAN: Duration = Duration::from_secs(3);
const RETRY_PAUSE: Duration = Duration::from_millis(20);
const READ_PAUSE: Duration = Duration::from_millis(100);
const ALARM_PAUSE: Duration = Duration::from_secs(1);
/// As real receivers take their time.
const RECEIVER_DELAY: Duration = Duration::from_millis(50);
pub const RECEIVERS: [&str; 3] = ["webhook", "mail", "slack"];
const ALARM_METRIC: &str = "chaos_alarm";

/// A node and how to reach it; the nodes change when one is replaced.
pub type Nodes = watch::Receiver<Vec<(u64, Channel)>>;

/// What a write's status says of it.
fn phase(status: &tonic::Status) -> Phase {
    match status.code() {
        // Turned away before anything was done.
        Code::ResourceExhausted | Code::InvalidArgument => Phase::Fail,
        _ => Phase::Unknown,
    }
}

/// Which node is asked next: one after the other, but for a while not those that gave no answer.
struct Choice {
    turn: usize,
    avoided: BTreeMap<u64, Instant>,
}

impl Choice {
    fn new(turn: u64) -> Self {
        Self {
            turn: turn as usize,
            avoided: BTreeMap::new(),
        }
    }

    fn next(&mut self, nodes: &Nodes) -> (u64, Channel) {
        self.avoided.retain(|_, since| since.elapsed() < AVOID_SPAN);
        let nodes = nodes.borrow();
        for _ in 0..nodes.len() {
            self.turn += 1;
            let (node, channel) = &nodes[self.turn % nodes.len()];
            if !self.avoided.contains_key(node) {
                return (*node, channel.clone());
            }
        }
        nodes[self.turn % nodes.len()].clone()
    }

    fn note(&mut self, node: u64, answer: &Result<v1::WriteResponse, tonic::Status>) {
        if answer
            .as_ref()
            .is_err_and(|status| status.code() != Code::ResourceExhausted)
        {
            self.avoided.insert(node, now());
        }
    }
}

async fn send(channel: Channel, request: &v1::WriteRequest) -> Result<v1::WriteResponse, tonic::Status> {
    let answer = IngestClient::new(channel).write(request.clone()).await;
    answer.map(tonic::Response::into_inner)
}

/// The numbers of the last batches that were confirmed, by writer from 1.
pub type Acked = Arc<Vec<AtomicU64>>;

/// Writes one batch after the other, each until some node confirms it, until told to stop.
pub async fn write_on(
    writer: u64,
    base_ms: i64,
    nodes: Nodes,
    history: Arc<History>,
    acked: Acked,
    stop: watch::Receiver<bool>,
) {
    let mut choice = Choice::new(writer);
    for seq in 1.. {
        let request = batch(LOAD, writer, seq, base_ms);
        loop {
            if *stop.borrow() {
                return;
            }
            let (node, channel) = choice.next(&nodes);
            let tell = |phase, why| {
                history.tell(What::Write {
                    writer,
                    seq,
                    node,
                    phase,
                    why,
                });
            };
            tell(Phase::Invoke, String::new());
            let answer = send(channel, &request).await;
            choice.note(node, &answer);
            match answer {
                Ok(answer) if answer.rejected.is_empty() => {
                    tell(Phase::Ok, String::new());
                    acked[writer as usize - 1].store(seq, Ordering::SeqCst);
                    break;
                }
                Ok(answer) => tell(Phase::Fail, format!("{:?}", answer.rejected)),
                Err(status) => tell(phase(&status), format!("{:?}: {}", status.code(), status.message())),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        tokio::time::sleep(LOAD.pause).await;
    }
}

/// Batches that a flood sent last, by writer from [`FLOOD`] on.
pub type Flooded = Arc<Mutex<BTreeMap<u64, u64>>>;

/// One batch of a flood; told of when it began and when its end is known.
async fn pour(node: u64, channel: Channel, writer: u64, seq: u64, base_ms: i64, history: Arc<History>) {
    let tell = |phase| {
        history.tell(What::Write {
            writer,
            seq,
            node,
            phase,
            why: String::new(),
        });
    };
    tell(Phase::Invoke);
    let answer = send(channel, &batch(FLOOD_LOAD, writer, seq, base_ms)).await;
    tell(match answer {
        Ok(_) => Phase::Ok,
        Err(status) => phase(&status),
    });
}

/// Sends without regard for answers until told to stop, and never the same twice.
pub async fn flood(base_ms: i64, nodes: Nodes, history: Arc<History>, flooded: Flooded, stop: watch::Receiver<bool>) {
    let mut writers = tokio::task::JoinSet::new();
    for writer in FLOOD..FLOOD + FLOOD_WRITERS {
        let (nodes, history, flooded, stop) = (nodes.clone(), history.clone(), flooded.clone(), stop.clone());
        writers.spawn(async move {
            let mut in_flight = tokio::task::JoinSet::new();
            let first = flooded.lock().expect("plain data").get(&writer).copied().unwrap_or(0) + 1;
            for seq in first.. {
                if *stop.borrow() {
                    break;
                }
                flooded.lock().expect("plain data").insert(writer, seq);
                let (node, channel) = {
                    let nodes = nodes.borrow();
                    nodes[(writer + seq) as usize % nodes.len()].clone()
                };
                in_flight.spawn(pour(node, channel, writer, seq, base_ms, history.clone()));
                tokio::time::sleep(FLOOD_PAUSE).await;
                while in_flight.try_join_next().is_some() {}
                while in_flight.len() >= FLOOD_IN_FLIGHT_MAX {
                    in_flight.join_next().await;
                }
            }
            while in_flight.join_next().await.is_some() {}
        });
    }
    while writers.join_next().await.is_some() {}
}

/// Asks one node after the other for the newest samples of one writer after the other.
pub async fn read_on(base_ms: i64, nodes: Nodes, history: Arc<History>, acked: Acked, stop: watch::Receiver<bool>) {
    let mut rng = SeededRng::new(1);
    for call in 1.. {
        if *stop.borrow() {
            return;
        }
        let writer = rng.below(LOAD.writers) + 1;
        let seq = acked[writer as usize - 1].load(Ordering::SeqCst);
        let (node, channel) = {
            let nodes = nodes.borrow();
            nodes[rng.below(nodes.len() as u64) as usize].clone()
        };
        if seq > 0 {
            let tell = |phase, found| {
                history.tell(What::Read {
                    call,
                    writer,
                    seq,
                    node,
                    phase,
                    found,
                });
            };
            tell(Phase::Invoke, vec![]);
            let request = v1::InstantRequest {
                expr: format!("node_chaos{{writer=\"{writer}\"}}"),
                at_ms: base_ms + (seq * LOAD.samples_per_batch) as i64 - 1,
            };
            match QueryClient::new(channel).instant(request).await {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    let is_whole = answer.completeness.is_some_and(|c| c.complete);
                    let points = answer.series.iter().filter_map(|s| s.points.last());
                    let mut found: Vec<u64> = points.map(|p| p.value() as u64).collect();
                    found.sort_unstable();
                    tell(if is_whole { Phase::Ok } else { Phase::Unknown }, found);
                }
                Err(_) => tell(Phase::Unknown, vec![]),
            }
        }
        tokio::time::sleep(READ_PAUSE).await;
    }
}

/// The series that an alarm's rule watches.
fn alarm_batch(seq: u64, writer: &str, cases: &BTreeSet<String>) -> v1::WriteRequest {
    let series = cases.iter().map(|case| v1::Series {
        labels: vec![
            label("__name__", ALARM_METRIC),
            label("case", case),
            label("instance", format!("{case}:1")),
        ],
        points: vec![v1::Point {
            at_ms: now_ms(),
            value: Some(1.0),
        }],
    });
    v1::WriteRequest {
        writer: writer.to_owned(),
        seq,
        series: series.collect(),
        ..v1::WriteRequest::default()
    }
}

/// Cases that are raised now. Each is written again and again, as a scraper would.
pub type Cases = Arc<Mutex<BTreeSet<String>>>;

pub async fn raise_on(nodes: Nodes, history: Arc<History>, cases: Cases, stop: watch::Receiver<bool>) {
    let mut confirmed = BTreeSet::new();
    let mut choice = Choice::new(0);
    let writer = format!("alarms-{}", now_ms());
    for seq in 1.. {
        if *stop.borrow() {
            return;
        }
        let raised = cases.lock().expect("plain data").clone();
        if !raised.is_empty() {
            let (node, channel) = choice.next(&nodes);
            let answer = send(channel, &alarm_batch(seq, &writer, &raised)).await;
            choice.note(node, &answer);
            if answer.is_ok_and(|a| a.rejected.is_empty()) {
                for case in raised {
                    if confirmed.insert(case.clone()) {
                        let phase = Phase::Ok;
                        history.tell(What::Alarm { case, phase });
                    }
                }
            }
        }
        tokio::time::sleep(ALARM_PAUSE).await;
    }
}

/// Servers that take messages, on an address of their own.
pub struct Receivers {
    mail: Mailbox,
    slack: SlackDesk,
    hook: std::net::SocketAddr,
    seen: (usize, usize),
}

async fn hook(State(history): State<Arc<History>>, body: String) -> StatusCode {
    tokio::time::sleep(RECEIVER_DELAY).await;
    let Ok(body) = serde_json::from_str::<serde_json::Value>(&body) else {
        return StatusCode::BAD_REQUEST;
    };
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let alerts = body["alerts"].as_array().map_or(&[][..], Vec::as_slice);
    history.tell(What::Told {
        receiver: RECEIVERS[0].to_owned(),
        key: text(&body["key"]),
        incident: text(&body["incident"]["id"]),
        kind: text(&body["kind"]),
        cases: alerts.iter().map(|a| text(&a["labels"]["case"])).collect(),
    });
    StatusCode::OK
}

/// The first `INC-1` in a text.
fn incident_in(text: &str) -> Option<String> {
    let from = text.find("INC-")?;
    let digits: String = text[from + 4..].chars().take_while(char::is_ascii_digit).collect();
    (!digits.is_empty()).then(|| format!("INC-{digits}"))
}

impl Receivers {
    pub async fn start(ip: IpAddr, history: Arc<History>) -> Result<Self> {
        let listener = tokio::net::TcpListener::bind((ip, 0)).await?;
        let hook_address = listener.local_addr()?;
        let app = Router::new().route("/hook", post(hook)).with_state(history);
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self {
            mail: Mailbox::start(ip, RECEIVER_DELAY).await?,
            slack: SlackDesk::start(ip, RECEIVER_DELAY).await?,
            hook: hook_address,
            seen: (0, 0),
        })
    }

    /// Who is told of what, for the nodes.
    pub fn routes(&self, token_file: &str) -> String {
        let (mail, slack, hook) = (self.mail.addr(), self.slack.addr(), self.hook);
        format!(
            "global:\n  smtp_from: hindcast@episodes.invalid\n  smtp_smarthost: {mail}\n  smtp_require_tls: false\n\
             route:\n  receiver: everybody\n  group_wait: 0s\n\
             receivers:\n  - name: everybody\n    email_configs:\n      - to: oncall@episodes.invalid\n\
             \x20   slack_configs:\n      - channel: \"#incidents\"\n        api_url: http://{slack}/api\n        token_file: {token_file}\n\
             \x20   webhook_configs:\n      - url: http://{hook}/hook\n        allow_private: true\n\
             \x20   desk_configs:\n      - group: operations\n"
        )
    }

    /// What is alarming.
    pub fn rules() -> String {
        format!(
            "groups:\n  - name: chaos\n    interval: 1s\n    rules:\n      - alert: ChaosAlarm\n        expr: {ALARM_METRIC} > 0\n\
             \x20       labels:\n          severity: critical\n        annotations:\n          summary: \"{{{{ $labels.case }}}}\"\n"
        )
    }

    /// Tells the history of mails and Slack messages that came since the last time.
    pub fn note(&mut self, history: &History) {
        let tell = |receiver: &str, key: String, text: &str| {
            if let Some(incident) = incident_in(text) {
                let (receiver, kind) = (receiver.to_owned(), "message".to_owned());
                history.tell(What::Told {
                    receiver,
                    key,
                    incident,
                    kind,
                    cases: vec![],
                });
            }
        };
        let (mails, messages) = (self.mail.messages(), self.slack.messages());
        for mail in &mails[self.seen.0..] {
            tell(
                RECEIVERS[1],
                mail.message_id.clone(),
                &format!("{}\n{}", mail.subject, mail.text),
            );
        }
        for message in &messages[self.seen.1..] {
            tell(RECEIVERS[2], message.client_msg_id.clone(), &message.body.to_string());
        }
        self.seen = (mails.len(), messages.len());
    }
}

/// Incidents that hold raised cases, as one node has them.
pub async fn incidents(channel: &Channel) -> Result<Vec<(v1::Incident, Vec<String>)>> {
    let mut client = AlertsClient::new(channel.clone());
    let listed = client.list_incidents(v1::ListIncidentsRequest::default()).await?;
    let incidents = listed.into_inner().incidents;
    let alerts = client.list_alerts(v1::ListAlertsRequest {}).await?.into_inner().alerts;
    let mut cases = BTreeMap::<String, Vec<String>>::new();
    for alert in alerts {
        if let (Some(case), false) = (alert.labels.get("case"), alert.incident.is_empty()) {
            cases.entry(alert.incident).or_default().push(case.clone());
        }
    }
    let with_cases = incidents.into_iter().map(|i| {
        let held = cases.remove(&i.id).unwrap_or_default();
        (i, held)
    });
    Ok(with_cases.collect())
}

/// What one node holds of all writers in the end, and its state.
pub async fn tell_node(
    hosts: &Hosts,
    i: usize,
    base_ms: i64,
    asked: &BTreeMap<u64, u64>,
    history: &History,
) -> Result<()> {
    let node = hosts.all[i].id;
    let channel = hosts.channel(hosts.all[i].place, Duration::from_secs(60))?;
    for (&writer, last) in asked {
        let load = if writer < FLOOD { LOAD } else { FLOOD_LOAD };
        let read = read_batches(load, &channel, writer, base_ms, &(0..*last)).await;
        let (samples, lines) = read.with_context(|| format!("writer {writer} on node {node}"))?;
        history.tell(What::Holds {
            node,
            writer,
            samples: Found::new(samples),
            lines: Found::new(lines),
        });
    }
    Ok(())
}

/// (group, applied, digest) of a node's shards. The meta group moves on with every lease.
pub async fn state(hosts: &Hosts, i: usize) -> Result<Vec<(u64, u64, String)>> {
    let status = hosts.status(i).await?;
    let shards = status.groups.into_iter().filter(|g| g.group > 0);
    Ok(shards.map(|g| (g.group, g.applied, g.digest)).collect())
}

/// Alarms, incidents and tickets in the end.
pub async fn tell_desk(channel: &Channel, history: &History) -> Result<()> {
    for (incident, cases) in incidents(channel).await? {
        history.tell(What::Incident {
            id: incident.id,
            generation: incident.generation,
            ticket: incident.ticket,
            cases,
        });
    }
    let listed = DeskClient::new(channel.clone())
        .list(v1::ListTicketsRequest::default())
        .await?;
    for ticket in listed.into_inner().tickets {
        history.tell(What::Ticket {
            number: ticket.number,
            incident: ticket.incident,
            generation: ticket.generation,
            created_ms: ticket.created_ms,
        });
    }
    Ok(())
}

/// Samples of one writer go to so many series in turn.
pub const SERIES: u64 = HOSTS;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incident_is_found_in_a_message() {
        assert_eq!(incident_in("[critical] INC-12: a (opened)").as_deref(), Some("INC-12"));
        assert_eq!(incident_in("INC-"), None);
        assert_eq!(incident_in("nothing"), None);
    }
}

//! The channels against real servers of this process: an SMTP dialogue, a server shaped like Slack's Web API, a sink
//! for webhooks.

use bytes::Bytes;
use hindcast_alerting::event::IncidentState;
use hindcast_alerting::outbox::{
    EffectKey, EffectKind, EffectRow, EffectState, Notification, NotifiedAlert, Receipt, ReceiverRef, Sending,
};
use hindcast_alerting::route::{EmailTarget, SecretRef, SlackTarget, Target, WebhookTarget};
use hindcast_alerting::{Channel, SendError};
use hindcast_model::{IncidentId, Severity, SpanNs, TenantId, TimestampNs};
use hindcast_notify::{channels, message};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

fn sending(target: Target, kind: EffectKind, step: u64) -> Sending {
    let receiver = ReceiverRef {
        name: "r".into(),
        channel: 0,
    };
    let key = EffectKey::new(&TenantId::default(), IncidentId(7), 1, kind, &receiver, step);
    let notification = Notification {
        kind,
        tenant: TenantId::default(),
        incident: IncidentId(7),
        generation: 1,
        title: "Busy on web-1\r\nBcc: everyone@example.com".into(),
        state: IncidentState::Open,
        severity: Severity::Critical,
        opened_at: TimestampNs::from_secs(1_772_000_000),
        at: TimestampNs::from_secs(1_772_000_000),
        flaps: 0,
        ticket: None,
        alerts: vec![NotifiedAlert {
            id: "a".into(),
            rule: "Busy".into(),
            state: "firing".into(),
            severity: Some(Severity::Critical),
            value: f64::NAN,
            summary: "CPU <!channel> 과부하\r\n.\r\nMAIL FROM:<x@y>".into(),
            description: String::new(),
            labels: Default::default(),
        }],
        alerts_total: 1,
    };
    let effect = EffectRow {
        key: key.clone(),
        tenant: TenantId::default(),
        incident: IncidentId(7),
        generation: 1,
        kind,
        receiver,
        step,
        target,
        notification,
        state: EffectState::Leased,
        attempts: 1,
        attempts_max: 5,
        pause_first: SpanNs::from_secs(1),
        pause_max: SpanNs::from_secs(60),
        created_at: TimestampNs::EPOCH,
        due: TimestampNs::EPOCH,
        lease: None,
        after: None,
        last_error: String::new(),
        receipt: None,
        ended_at: None,
    };
    Sending {
        effect,
        token: 1,
        thread_root: key,
        thread_receipt: None,
    }
}

async fn send(sending: &Sending) -> Result<Receipt, SendError> {
    let channel: Arc<dyn Channel> = channels().get(sending.effect.target.channel()).unwrap();
    channel.send(sending).await
}

fn email(address: &str) -> Target {
    Target::Email(EmailTarget {
        to: vec!["ops@example.com".into(), "Second Person <two@example.com>".into()],
        from: "Hindcast <hindcast@example.com>".into(),
        smarthost: address.into(),
        hello: Some("test.example".into()),
        require_tls: false,
        auth: None,
    })
}

/// Speaks SMTP with each comer; what was said, line by line, ends up in the list. `refuse`: what RCPT is answered.
async fn smtp(refuse: Option<&'static str>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, said) = (listener.local_addr().unwrap().to_string(), Arc::new(Mutex::new(vec![])));
    let log = said.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let log = log.clone();
            tokio::spawn(async move {
                let (read, mut write) = stream.into_split();
                let mut lines = BufReader::new(read).lines();
                write.write_all(b"220 test ESMTP\r\n").await.unwrap();
                let mut in_data = false;
                while let Ok(Some(line)) = lines.next_line().await {
                    log.lock().unwrap().push(line.clone());
                    let word = line.split([' ', ':']).next().unwrap_or("").to_uppercase();
                    let answer = match (in_data, word.as_str()) {
                        (true, _) if line == "." => {
                            in_data = false;
                            "250 queued as 42"
                        }
                        (true, _) => continue,
                        (_, "EHLO") => "250-test\r\n250 8BITMIME",
                        (_, "DATA") => {
                            in_data = true;
                            "354 go on"
                        }
                        (_, "RCPT") => refuse.unwrap_or("250 ok"),
                        (_, "QUIT") => "221 bye",
                        _ => "250 ok",
                    };
                    if write.write_all(format!("{answer}\r\n").as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, said)
}

#[tokio::test]
async fn a_mail_arrives_with_its_key_and_later_ones_join_its_thread() {
    let (address, said) = smtp(None).await;
    let first = sending(email(&address), EffectKind::Opened, 0);
    assert_eq!(send(&first).await.unwrap().id, "250 queued as 42");
    let mut second = sending(email(&address), EffectKind::Recovered, 1);
    second.thread_root = first.effect.key.clone();
    send(&second).await.unwrap();
    let said = said.lock().unwrap().clone();
    let count = |text: &str| said.iter().filter(|l| l.contains(text)).count();
    let id = message::message_id(&first.effect.key);
    assert_eq!(count(&format!("Message-ID: {id}")), 1, "{said:?}");
    assert_eq!(count(&format!("References: {id}")), 1);
    assert_eq!(count(&format!("In-Reply-To: {id}")), 1);
    assert_eq!(count("RCPT TO:<two@example.com>"), 2);
    assert_eq!(count(&format!("X-Hindcast-Key: {}", first.effect.key)), 1);
    // Neither a header nor a command was smuggled in.
    assert_eq!(said.iter().filter(|l| l.starts_with("Bcc:")).count(), 0);
    assert_eq!(said.iter().filter(|l| l.starts_with("MAIL FROM")).count(), 2);
}

#[tokio::test]
async fn a_mail_server_that_is_away_is_tried_again_and_one_that_says_no_is_not() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = gone.local_addr().unwrap().to_string();
    drop(gone);
    match send(&sending(email(&address), EffectKind::Opened, 0)).await {
        Err(SendError::Busy(why)) => assert!(why.contains(&address) && why.contains("refused"), "{why}"),
        other => panic!("{other:?}"),
    }
    let (address, _) = smtp(Some("550 no such user")).await;
    match send(&sending(email(&address), EffectKind::Opened, 0)).await {
        Err(SendError::Rejected(why)) => assert!(why.contains("no such user"), "{why}"),
        other => panic!("{other:?}"),
    }
    let (address, _) = smtp(Some("451 later")).await;
    assert!(matches!(
        send(&sending(email(&address), EffectKind::Opened, 0)).await,
        Err(SendError::Busy(_))
    ));
}

/// A request that a server got.
#[derive(Clone, Debug)]
struct Got {
    path: String,
    headers: hyper::HeaderMap,
    body: Bytes,
}

/// Answers each request by `answer(path, number of the request)`.
async fn http(answer: fn(&str, usize) -> (u16, String)) -> (String, Arc<Mutex<Vec<Got>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, got) = (listener.local_addr().unwrap().to_string(), Arc::new(Mutex::new(vec![])));
    let log = got.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let log = log.clone();
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let log = log.clone();
                async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect().await?.to_bytes();
                    let path = parts.uri.path().to_owned();
                    let n = log.lock().unwrap().len();
                    log.lock().unwrap().push(Got {
                        path: path.clone(),
                        headers: parts.headers,
                        body,
                    });
                    let (status, text) = answer(&path, n);
                    let response = Response::builder()
                        .status(status)
                        .header("content-type", "application/json")
                        .header("location", "http://127.0.0.1:1/elsewhere");
                    Ok::<_, hyper::Error>(response.body(Full::new(Bytes::from(text))).unwrap())
                }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (address, got)
}

/// A file with a secret, in the folder that cargo keeps for tests.
#[allow(clippy::disallowed_methods, reason = "a test's own file")]
fn secret(name: &str, text: &str) -> SecretRef {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", std::process::id()));
    std::fs::write(&path, format!("{text}\n")).unwrap();
    SecretRef::File(path.to_string_lossy().into_owned())
}

fn slack(address: &str) -> Target {
    Target::Slack(SlackTarget {
        channel: "#ops".into(),
        api_url: format!("http://{address}/api"),
        token: secret("slack", "xoxb-secret"),
    })
}

fn slack_says(path: &str, n: usize) -> (u16, String) {
    let text = match (path, n) {
        ("/api/chat.postMessage", _) => r#"{"ok":true,"channel":"C1","ts":"17.1","message":{"ts":"17.1","text":"x"}}"#,
        (_, 1) => r#"{"ok":true,"channel":"C1","ts":"17.1","message":{"text":"x"}}"#,
        _ => r#"{"ok":false,"error":"message_not_found"}"#,
    };
    (200, text.to_owned())
}

#[tokio::test]
async fn slack_shows_one_message_that_changes_in_place() {
    let (address, got) = http(slack_says).await;
    let first = sending(slack(&address), EffectKind::Opened, 0);
    let receipt = send(&first).await.unwrap();
    assert_eq!(receipt.id, "C1/17.1");
    let mut second = sending(slack(&address), EffectKind::Recovered, 1);
    second.thread_receipt = Some(receipt);
    send(&second).await.unwrap();
    // The third finds that somebody removed it.
    send(&second).await.unwrap();
    let got = got.lock().unwrap().clone();
    let paths: Vec<_> = got.iter().map(|g| g.path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "/api/chat.postMessage",
            "/api/chat.update",
            "/api/chat.update",
            "/api/chat.postMessage"
        ]
    );
    assert_eq!(got[0].headers["authorization"], "Bearer xoxb-secret");
    let post: serde_json::Value = serde_json::from_slice(&got[0].body).unwrap();
    assert_eq!(post["channel"], "#ops");
    assert_eq!(post["metadata"]["event_payload"]["key"], first.effect.key.0.as_str());
    let text = post["text"].as_str().unwrap();
    assert!(
        text.contains("INC-7") && text.contains("&lt;!channel&gt;") && !text.contains("<!"),
        "{text}"
    );
    let update: serde_json::Value = serde_json::from_slice(&got[1].body).unwrap();
    assert_eq!((&update["channel"], &update["ts"]), (&"C1".into(), &"17.1".into()));
    assert!(update["text"].as_str().unwrap().contains("RECOVERED"));
}

#[tokio::test]
async fn what_slack_says_decides_who_moves_next_and_no_secret_is_shown() {
    let (address, _) = http(|_, n| match n {
        0 => (200, r#"{"ok":false,"error":"invalid_auth"}"#.to_owned()),
        1 => (200, r#"{"ok":false,"error":"msg_too_long"}"#.to_owned()),
        2 => (429, r#"{"ok":false,"error":"ratelimited"}"#.to_owned()),
        _ => (503, "away".to_owned()),
    })
    .await;
    let message = sending(slack(&address), EffectKind::Opened, 0);
    let mut shown = vec![];
    for _ in 0..4 {
        shown.push(format!("{:?}", send(&message).await.unwrap_err()));
    }
    assert!(
        shown[0].contains("Busy") && shown[0].contains("invalid_auth"),
        "{shown:?}"
    );
    assert!(shown[1].contains("Rejected"), "{shown:?}");
    assert!(shown[2].contains("Busy") && shown[3].contains("Busy"), "{shown:?}");
    assert!(!format!("{shown:?}{message:?}").contains("xoxb-secret"));
}

fn webhook(url: String, allow_private: bool) -> Target {
    Target::Webhook(WebhookTarget {
        url,
        secret: Some(secret("webhook", "s3cret")),
        allow_private,
    })
}

#[tokio::test]
async fn a_webhook_gets_a_signed_body_with_its_key() {
    let (address, got) = http(|_, _| (202, String::new())).await;
    let message = sending(webhook(format!("http://{address}/in?x=1"), true), EffectKind::Opened, 0);
    assert_eq!(send(&message).await.unwrap().id, "HTTP 202");
    let got = got.lock().unwrap().remove(0);
    assert_eq!(got.path, "/in");
    assert_eq!(got.headers["x-hindcast-key"], message.effect.key.0.as_str());
    assert_eq!(
        got.headers["x-hindcast-signature"],
        message::signature("s3cret", &got.body).as_str()
    );
    let body: serde_json::Value = serde_json::from_slice(&got.body).unwrap();
    assert_eq!(body["incident"]["id"], "INC-7");
    assert_eq!(body["alerts"][0]["value"], "NaN");
}

#[tokio::test]
async fn a_webhook_goes_nowhere_inside_and_follows_no_redirect() {
    let (address, got) = http(|_, n| (if n == 0 { 302 } else { 500 }, String::new())).await;
    let port = address.rsplit_once(':').unwrap().1;
    for host in [
        address.clone(),
        format!("localhost:{port}"),
        format!("[::ffff:127.0.0.1]:{port}"),
    ] {
        match send(&sending(
            webhook(format!("http://{host}/"), false),
            EffectKind::Opened,
            0,
        ))
        .await
        {
            Err(SendError::Rejected(why)) => assert!(why.contains("allow_private"), "{why}"),
            other => panic!("{host}: {other:?}"),
        }
    }
    assert!(got.lock().unwrap().is_empty(), "nothing was called");
    let message = sending(webhook(format!("http://{address}/"), true), EffectKind::Opened, 0);
    assert!(matches!(send(&message).await, Err(SendError::Rejected(why)) if why.contains("302")));
    assert!(matches!(send(&message).await, Err(SendError::Busy(why)) if why.contains("500")));
}

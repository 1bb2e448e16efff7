//! Two receivers that take what Hindcast delivers, so that a demo counts what arrived and not what was sent.
//!
//! [`Mailbox`] is an SMTP server (RFC 5321: EHLO, MAIL, RCPT, DATA, RSET, NOOP, QUIT; no TLS, no sign-in).
//! [`SlackDesk`] answers the part of Slack's Web API that posting needs (`chat.postMessage`, `chat.update`,
//! `auth.test`) at `http://<addr>/api`, with a bearer token and JSON or form bodies. Both listen on a free port of
//! the given address, keep everything in memory, and end when dropped.
//!
//! Bounds: a mail of [`MAIL_BYTES_MAX`], [`MAILS_MAX`] mails, [`SLACK_MESSAGES_MAX`] messages; beyond them they refuse
//! as the real ones do (552, 452, `rate_limited`), so that nothing is counted that is not held.

use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

pub const MAIL_BYTES_MAX: usize = 4 * 1024 * 1024;
pub const MAILS_MAX: usize = 10_000;
pub const RECIPIENTS_MAX: usize = 100;
/// SMTP's longest line, with room: RFC 5321 has 1,000.
const SMTP_LINE_BYTES_MAX: u64 = 8 * 1024;
const SMTP_IDLE_SPAN_MAX: Duration = Duration::from_secs(300);
pub const SLACK_MESSAGES_MAX: usize = 10_000;
const SLACK_BODY_BYTES_MAX: usize = 1024 * 1024;

/// A mail as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mail {
    /// The envelope's sender and recipients.
    pub from: String,
    pub to: Vec<String>,
    /// Headers, unfolded, with encoded words as they came; empty when absent.
    pub message_id: String,
    pub subject: String,
    /// Header and body, dots unstuffed, lines ended by `\r\n`.
    pub text: String,
}

impl Mail {
    fn new(from: String, to: Vec<String>, text: String) -> Self {
        Self {
            message_id: header(&text, "Message-ID").unwrap_or_default(),
            subject: header(&text, "Subject").unwrap_or_default(),
            from,
            to,
            text,
        }
    }
}

/// A header's value, its folded lines joined.
fn header(text: &str, name: &str) -> Option<String> {
    let mut value: Option<String> = None;
    for line in text.split("\r\n").take_while(|l| !l.is_empty()) {
        match (&mut value, line.starts_with([' ', '\t'])) {
            (Some(v), true) => {
                v.push(' ');
                v.push_str(line.trim());
            }
            (Some(_), false) => break,
            (None, true) => {}
            (None, false) => {
                value = line
                    .split_once(':')
                    .filter(|(n, _)| n.eq_ignore_ascii_case(name))
                    .map(|(_, v)| v.trim().to_owned());
            }
        }
    }
    value
}

/// An SMTP server that keeps what it takes.
#[derive(Debug)]
pub struct Mailbox {
    addr: SocketAddr,
    mails: Arc<Mutex<Vec<Mail>>>,
    server: JoinHandle<()>,
}

impl Mailbox {
    /// `delay`: how long it takes to answer a delivery, as real ones do.
    pub async fn start(ip: IpAddr, delay: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind((ip, 0)).await?;
        let addr = listener.local_addr()?;
        let mails = Arc::new(Mutex::new(vec![]));
        let kept = mails.clone();
        let server = tokio::spawn(async move {
            let mut sessions = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((stream, _)) => _ = sessions.spawn(session(stream, kept.clone(), delay)),
                        // Out of files, for instance: room comes back when a session ends.
                        Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                    },
                    Some(_) = sessions.join_next() => {}
                }
            }
        });
        Ok(Self { addr, mails, server })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// All mails, in the order in which they were taken.
    pub fn messages(&self) -> Vec<Mail> {
        self.mails.lock().clone()
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// What the client has said of the mail that it is about to send.
#[derive(Debug, Default)]
struct Envelope {
    from: Option<String>,
    to: Vec<String>,
}

/// What a command is answered with.
#[derive(Debug, PartialEq, Eq)]
enum Reply {
    Say(String),
    TakeData,
    Bye,
}

impl Envelope {
    fn command(&mut self, line: &str) -> Reply {
        let say = |text: &str| Reply::Say(text.to_owned());
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        match verb.to_ascii_uppercase().as_str() {
            "EHLO" => {
                *self = Self::default();
                Reply::Say(format!(
                    "250-hindcast.demo\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-PIPELINING\r\n250 SIZE {MAIL_BYTES_MAX}"
                ))
            }
            "HELO" => {
                *self = Self::default();
                say("250 hindcast.demo")
            }
            "MAIL" => match path(rest, "FROM:") {
                Some(_) if self.from.is_some() => say("503 a mail is under way already; RSET forgets it"),
                Some(from) => {
                    self.from = Some(from);
                    say("250 fine")
                }
                None => say("501 write MAIL FROM:<address>"),
            },
            "RCPT" => match path(rest, "TO:").filter(|to| !to.is_empty()) {
                _ if self.from.is_none() => say("503 MAIL comes first"),
                None => say("501 write RCPT TO:<address>"),
                Some(_) if self.to.len() >= RECIPIENTS_MAX => say("452 too many recipients"),
                Some(to) => {
                    self.to.push(to);
                    say("250 fine")
                }
            },
            "DATA" if self.to.is_empty() => say("503 RCPT comes first"),
            "DATA" => Reply::TakeData,
            "RSET" => {
                *self = Self::default();
                say("250 forgotten")
            }
            "NOOP" => say("250 fine"),
            "QUIT" => Reply::Bye,
            _ => say("502 not a command that is spoken here"),
        }
    }
}

/// The address in `FROM:<a@b> SIZE=5`.
fn path(rest: &str, keyword: &str) -> Option<String> {
    let rest = rest.trim_start();
    let after = rest.get(..keyword.len()).filter(|k| k.eq_ignore_ascii_case(keyword))?;
    let address = rest[after.len()..].trim_start().strip_prefix('<')?;
    Some(address[..address.find('>')?].to_owned())
}

async fn session(stream: TcpStream, mails: Arc<Mutex<Vec<Mail>>>, delay: Duration) {
    // A client that goes away mid-way has sent no mail: nothing to tell anybody.
    let _ = tokio::time::timeout(SMTP_IDLE_SPAN_MAX, talk(stream, mails, delay)).await;
}

async fn talk(stream: TcpStream, mails: Arc<Mutex<Vec<Mail>>>, delay: Duration) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut envelope = Envelope::default();
    writer.write_all(b"220 hindcast.demo ESMTP\r\n").await?;
    while let Some(line) = line(&mut reader).await? {
        let answer = match envelope.command(String::from_utf8_lossy(&line).trim_end()) {
            Reply::Say(text) => text,
            Reply::Bye => {
                writer.write_all(b"221 bye\r\n").await?;
                return Ok(());
            }
            Reply::TakeData => {
                writer.write_all(b"354 end with a line that is one dot\r\n").await?;
                let envelope = std::mem::take(&mut envelope);
                let text = data(&mut reader).await?;
                tokio::time::sleep(delay).await;
                match text {
                    Some(text) => keep(&mails, envelope, text),
                    None => format!("552 a mail may have {MAIL_BYTES_MAX} bytes"),
                }
            }
        };
        writer.write_all(format!("{answer}\r\n").as_bytes()).await?;
    }
    Ok(())
}

fn keep(mails: &Mutex<Vec<Mail>>, envelope: Envelope, text: Vec<u8>) -> String {
    let mut mails = mails.lock();
    if mails.len() >= MAILS_MAX {
        return "452 the mailbox is full".to_owned();
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    mails.push(Mail::new(envelope.from.unwrap_or_default(), envelope.to, text));
    format!("250 taken as {}", mails.len())
}

/// One line with its end; `None` at the end of the stream. An over-long line is an error: the session ends.
async fn line<R: AsyncBufRead + Unpin>(reader: &mut R) -> io::Result<Option<Vec<u8>>> {
    let mut line = vec![];
    let n = reader.take(SMTP_LINE_BYTES_MAX).read_until(b'\n', &mut line).await?;
    if n == 0 {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Some(line))
}

/// The text up to the lone dot, with stuffed dots removed; `None` when it is too large (read to its end all the same).
async fn data<R: AsyncBufRead + Unpin>(reader: &mut R) -> io::Result<Option<Vec<u8>>> {
    let mut text = vec![];
    let mut fits = true;
    loop {
        let Some(line) = line(reader).await? else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let bare = line
            .strip_suffix(b"\r\n")
            .or_else(|| line.strip_suffix(b"\n"))
            .unwrap_or(&line);
        if bare == b"." {
            return Ok(fits.then_some(text));
        }
        let unstuffed = bare.strip_prefix(b".").unwrap_or(bare);
        fits &= text.len() + unstuffed.len() + 2 <= MAIL_BYTES_MAX;
        if fits {
            text.extend_from_slice(unstuffed);
            text.extend_from_slice(b"\r\n");
        }
    }
}

/// A message in a channel, as it looks now.
#[derive(Clone, Debug, PartialEq)]
pub struct SlackMessage {
    pub channel: String,
    /// Slack's id of a message within its channel.
    pub ts: String,
    /// What the caller named it by, when it did: the same one is posted once.
    pub client_msg_id: String,
    pub text: String,
    /// The whole request, with blocks and attachments; after an update, the update's.
    pub body: Value,
    /// How often `chat.update` changed it.
    pub updates: u32,
}

#[derive(Debug, Default)]
struct Messages {
    all: Vec<SlackMessage>,
}

/// A server that answers as Slack's Web API does, and keeps what was posted.
#[derive(Debug)]
pub struct SlackDesk {
    addr: SocketAddr,
    messages: Arc<Mutex<Messages>>,
    server: JoinHandle<()>,
}

impl SlackDesk {
    /// `delay`: how long it takes to answer a delivery, as real ones do.
    pub async fn start(ip: IpAddr, delay: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind((ip, 0)).await?;
        let addr = listener.local_addr()?;
        let messages = Arc::new(Mutex::new(Messages::default()));
        let app = Router::new()
            .route("/api/{method}", any(slack))
            .layer(DefaultBodyLimit::max(SLACK_BODY_BYTES_MAX))
            .with_state((messages.clone(), delay));
        let server = tokio::spawn(async move {
            if let Err(e) = axum::serve(listener, app).await {
                tracing::warn!(error = %e, "the Slack receiver ended");
            }
        });
        Ok(Self { addr, messages, server })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// All messages, in the order in which they were posted.
    pub fn messages(&self) -> Vec<SlackMessage> {
        self.messages.lock().all.clone()
    }
}

impl Drop for SlackDesk {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn slack(
    State((messages, delay)): State<(Arc<Mutex<Messages>>, Duration)>,
    Path(method): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or("");
    let authorization = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let bearer = authorization.and_then(|v| v.strip_prefix("Bearer ")).map(str::trim);
    tokio::time::sleep(delay).await;
    let mut messages = messages.lock();
    if bearer.is_none_or(str::is_empty) {
        return axum::Json(json!({"ok": false, "error": "not_authed"})).into_response();
    }
    let answer = match (method.as_str(), arguments(content_type, &body)) {
        ("auth.test", _) => Ok(json!({
            "ok": true, "url": "https://demo.slack.com/", "team": "demo", "user": "hindcast",
            "team_id": "T0DEMO", "user_id": "U0HINDCAST", "bot_id": "B0HINDCAST",
        })),
        ("chat.postMessage", Ok(body)) => messages.post(body),
        ("chat.update", Ok(body)) => messages.update(body),
        ("chat.postMessage" | "chat.update", Err(error)) => Err(error),
        _ => Err("unknown_method"),
    };
    match answer {
        Ok(value) => axum::Json(value).into_response(),
        Err("rate_limited") => (
            StatusCode::TOO_MANY_REQUESTS,
            [(header::RETRY_AFTER, "60")],
            axum::Json(json!({"ok": false, "error": "rate_limited"})),
        )
            .into_response(),
        Err(error) => axum::Json(json!({"ok": false, "error": error})).into_response(),
    }
}

/// The arguments of a call: a JSON object, or a form whose fields hold text (and JSON as text, as Slack takes it).
fn arguments(content_type: &str, body: &[u8]) -> Result<Value, &'static str> {
    if content_type.starts_with("application/json") {
        let value: Value = serde_json::from_slice(body).map_err(|_| "invalid_json")?;
        return value.is_object().then_some(value).ok_or("json_not_object");
    }
    if content_type.starts_with("application/x-www-form-urlencoded") {
        let text = std::str::from_utf8(body).map_err(|_| "invalid_form_data")?;
        let mut fields = serde_json::Map::new();
        for pair in text.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (form_text(name)?, form_text(value)?);
            let value = match name.as_str() {
                "blocks" | "attachments" | "metadata" => serde_json::from_str(&value).map_err(|_| "invalid_blocks")?,
                _ => Value::String(value),
            };
            fields.insert(name, value);
        }
        return Ok(Value::Object(fields));
    }
    Err("invalid_post_type")
}

/// `a+b%20c` as text.
fn form_text(coded: &str) -> Result<String, &'static str> {
    const BAD: &str = "invalid_form_data";
    let (mut out, mut bytes) = (vec![], coded.bytes());
    while let Some(b) = bytes.next() {
        out.push(match b {
            b'+' => b' ',
            b'%' => {
                let mut digit = || (bytes.next()? as char).to_digit(16);
                let (high, low) = (digit().ok_or(BAD)?, digit().ok_or(BAD)?);
                (high * 16 + low) as u8
            }
            b => b,
        });
    }
    String::from_utf8(out).map_err(|_| BAD)
}

fn text_of<'a>(body: &'a Value, name: &str) -> &'a str {
    body.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// Slack refuses a message that shows nothing.
fn shows_something(body: &Value) -> bool {
    let filled = |name: &str| body.get(name).and_then(Value::as_array).is_some_and(|a| !a.is_empty());
    !text_of(body, "text").is_empty()
        || !text_of(body, "markdown_text").is_empty()
        || filled("blocks")
        || filled("attachments")
}

impl Messages {
    fn post(&mut self, body: Value) -> Result<Value, &'static str> {
        let channel = text_of(&body, "channel").to_owned();
        if channel.is_empty() {
            return Err("channel_not_found");
        }
        if !shows_something(&body) {
            return Err("no_text");
        }
        let client_msg_id = text_of(&body, "client_msg_id").to_owned();
        let same = |m: &&SlackMessage| m.channel == channel && m.client_msg_id == client_msg_id;
        if !client_msg_id.is_empty() && self.all.iter().any(|m| same(&m)) {
            return Err("duplicate_message_not_allowed");
        }
        if self.all.len() >= SLACK_MESSAGES_MAX {
            return Err("rate_limited");
        }
        // Seconds and six digits, unique and rising, as Slack's are; no clock needed for that.
        let ts = format!("{}.{:06}", 1_700_000_000 + self.all.len(), self.all.len() + 1);
        let message = SlackMessage {
            channel: channel.clone(),
            ts: ts.clone(),
            client_msg_id,
            text: text_of(&body, "text").to_owned(),
            body,
            updates: 0,
        };
        let shown = shown(&message);
        self.all.push(message);
        Ok(json!({"ok": true, "channel": channel, "ts": ts, "message": shown}))
    }

    fn update(&mut self, body: Value) -> Result<Value, &'static str> {
        let (channel, ts) = (text_of(&body, "channel"), text_of(&body, "ts"));
        if !shows_something(&body) {
            return Err("no_text");
        }
        let found = self.all.iter_mut().find(|m| m.channel == channel && m.ts == ts);
        let message = found.ok_or("message_not_found")?;
        message.text = text_of(&body, "text").to_owned();
        message.body = body;
        message.updates += 1;
        Ok(json!({
            "ok": true, "channel": message.channel, "ts": message.ts, "text": message.text,
            "message": shown(message),
        }))
    }
}

/// A message as Slack shows it to its poster.
fn shown(message: &SlackMessage) -> Value {
    let mut shown = json!({
        "type": "message", "ts": message.ts, "text": message.text, "user": "U0HINDCAST", "bot_id": "B0HINDCAST",
    });
    for part in ["blocks", "attachments", "thread_ts"] {
        if let Some(value) = message.body.get(part) {
            shown[part] = value.clone();
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use lettre::transport::smtp::AsyncSmtpTransport;
    use lettre::{AsyncTransport, Message, Tokio1Executor};
    use slack_morphism::prelude::*;
    use std::fmt::Write;
    use std::net::Ipv4Addr;

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// What the client says line by line, and what it is answered.
    async fn check(script: &str, expect: Expect) -> Vec<Mail> {
        let mailbox = Mailbox::start(LOOPBACK, Duration::ZERO).await.unwrap();
        let stream = TcpStream::connect(mailbox.addr()).await.unwrap();
        let (reader, mut writer) = stream.into_split();
        let mut lines = BufReader::new(reader).lines();
        let mut out = String::new();
        writeln!(out, "-> {}", lines.next_line().await.unwrap().unwrap()).unwrap();
        let mut in_data = false;
        for said in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
            writer.write_all(format!("{said}\r\n").as_bytes()).await.unwrap();
            writeln!(out, "{said}").unwrap();
            if in_data && said != "." {
                continue;
            }
            let answer = lines.next_line().await.unwrap().unwrap_or_default();
            in_data = answer.starts_with("354");
            writeln!(out, "-> {answer}").unwrap();
        }
        expect.assert_eq(&out);
        mailbox.messages()
    }

    #[tokio::test]
    async fn a_mail_is_taken_with_its_dots_and_out_of_turn_commands_are_not() {
        let mails = check(
            "
            HELO me
            RCPT TO:<b@x>
            mail from:<a@x> SIZE=10
            DATA
            RCPT TO:<b@x>
            RCPT TO:c@x
            DATA
            Subject: one
            message-id: <1@x>
            X: y

            ..dots
            .
            VRFY b
            QUIT
            ",
            expect![[r#"
                -> 220 hindcast.demo ESMTP
                HELO me
                -> 250 hindcast.demo
                RCPT TO:<b@x>
                -> 503 MAIL comes first
                mail from:<a@x> SIZE=10
                -> 250 fine
                DATA
                -> 503 RCPT comes first
                RCPT TO:<b@x>
                -> 250 fine
                RCPT TO:c@x
                -> 501 write RCPT TO:<address>
                DATA
                -> 354 end with a line that is one dot
                Subject: one
                message-id: <1@x>
                X: y
                ..dots
                .
                -> 250 taken as 1
                VRFY b
                -> 502 not a command that is spoken here
                QUIT
                -> 221 bye
            "#]],
        )
        .await;
        assert_eq!(
            mails,
            [Mail {
                from: "a@x".into(),
                to: vec!["b@x".into()],
                message_id: "<1@x>".into(),
                subject: "one".into(),
                text: "Subject: one\r\nmessage-id: <1@x>\r\nX: y\r\n.dots\r\n".into(),
            }]
        );
    }

    #[tokio::test]
    async fn what_lettre_sends_arrives() {
        let mailbox = Mailbox::start(LOOPBACK, Duration::ZERO).await.unwrap();
        let mailer = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous("127.0.0.1")
            .port(mailbox.addr().port())
            .build();
        let mail = Message::builder()
            .from("Hindcast <hindcast@demo.test>".parse().unwrap())
            .to("sre@demo.test".parse().unwrap())
            .cc("lead@demo.test".parse().unwrap())
            .message_id(Some("<effect-1@hindcast>".to_owned()))
            .subject("INC-1: CPU busy")
            .body(".starts with a dot\r\n한국어".to_owned())
            .unwrap();
        mailer.send(mail).await.unwrap();
        let got = mailbox.messages();
        assert_eq!(got.len(), 1);
        assert_eq!(
            (got[0].message_id.as_str(), got[0].subject.as_str(), got[0].to.len()),
            ("<effect-1@hindcast>", "INC-1: CPU busy", 2)
        );
    }

    #[tokio::test]
    async fn too_large_a_mail_is_refused_and_not_kept() {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let reading = tokio::spawn(async move { data(&mut BufReader::new(server)).await });
        let line = [vec![b'x'; 998], b"\r\n".to_vec()].concat();
        for _ in 0..=MAIL_BYTES_MAX / line.len() {
            client.write_all(&line).await.unwrap();
        }
        client.write_all(b".\r\n").await.unwrap();
        assert_eq!(reading.await.unwrap().unwrap(), None);
    }

    fn session_of(
        desk: &SlackDesk,
    ) -> (
        SlackClient<SlackClientHyperConnector<hyper_util::client::legacy::connect::HttpConnector>>,
        SlackApiToken,
    ) {
        let connector =
            SlackClientHyperConnector::with_connector(hyper_util::client::legacy::connect::HttpConnector::new())
                .with_slack_api_url(&format!("http://{}/api", desk.addr()));
        (SlackClient::new(connector), SlackApiToken::new("xoxb-demo".into()))
    }

    #[tokio::test]
    async fn what_slack_morphism_posts_and_updates_is_held_once() {
        let desk = SlackDesk::start(LOOPBACK, Duration::ZERO).await.unwrap();
        let (client, token) = session_of(&desk);
        let session = client.open_session(&token);
        assert_eq!(session.auth_test().await.unwrap().team, "demo");
        let blocks = slack_blocks![some_into(SlackSectionBlock::new().with_text(md!("*INC-1* open")))];
        let content = SlackMessageContent::new()
            .with_text("INC-1 open".into())
            .with_blocks(blocks);
        let posted = session
            .chat_post_message(&SlackApiChatPostMessageRequest::new("#ops".into(), content))
            .await
            .unwrap();
        session
            .chat_update(&SlackApiChatUpdateRequest::new(
                posted.channel,
                SlackMessageContent::new().with_text("INC-1 recovered".into()),
                posted.ts.clone(),
            ))
            .await
            .unwrap();
        let held = desk.messages();
        assert_eq!(held.len(), 1);
        assert_eq!(
            (held[0].text.as_str(), held[0].updates, held[0].ts.as_str()),
            ("INC-1 recovered", 1, posted.ts.value().as_str())
        );
        let lost = session
            .chat_update(&SlackApiChatUpdateRequest::new(
                "#ops".into(),
                SlackMessageContent::new().with_text("x".into()),
                "1.1".into(),
            ))
            .await;
        assert!(lost.unwrap_err().to_string().contains("message_not_found"));
    }

    #[test]
    fn forms_and_json_are_read_alike() {
        let form = arguments(
            "application/x-www-form-urlencoded",
            b"channel=%23ops&text=a+b%21&blocks=%5B%5D",
        )
        .unwrap();
        let json = arguments(
            "application/json; charset=utf-8",
            br##"{"channel":"#ops","text":"a b!","blocks":[]}"##,
        );
        assert_eq!(form, json.unwrap());
        assert_eq!(arguments("application/json", b"[]"), Err("json_not_object"));
        assert_eq!(arguments("text/plain", b""), Err("invalid_post_type"));
        assert_eq!(form_text("%4"), Err("invalid_form_data"));
    }

    #[test]
    fn a_message_named_by_its_sender_is_posted_once_and_an_empty_one_never() {
        let mut messages = Messages::default();
        let post = |m: &mut Messages, v: Value| m.post(v).map(|v| text_of(&v, "ts").to_owned());
        let named = json!({"channel": "c", "text": "t", "client_msg_id": "k"});
        assert_eq!(post(&mut messages, named.clone()), Ok("1700000000.000001".to_owned()));
        assert_eq!(post(&mut messages, named), Err("duplicate_message_not_allowed"));
        assert_eq!(post(&mut messages, json!({"channel": "c"})), Err("no_text"));
        assert_eq!(post(&mut messages, json!({"text": "t"})), Err("channel_not_found"));
    }
}

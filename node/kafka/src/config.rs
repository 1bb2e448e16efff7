//! From which brokers which topics are consumed, and what their records are.
//!
//! Pure: text in, [`KafkaConfig`] out, or why not, with the line. Passwords that stand elsewhere are asked for once, when the file is read.

use crate::scram::Mechanism;
use hindcast_ingest::influx::Precision;
use hindcast_ingest::records::{Form, LABEL_FIELDS_MAX, Lines, Signal, is_label_name};
use hindcast_model::limits::LABEL_VALUE_BYTES_MAX;
use hindcast_model::setting::{FromText, Parsed};
use hindcast_model::{SpanNs, TenantId};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

pub const CONFIG_BYTES_MAX: usize = 1024 * 1024;
pub const SOURCES_MAX: usize = 64;
/// Brokers that are asked for the others.
pub const BROKERS_MAX: usize = 64;
/// Topics of one source.
pub const TOPICS_MAX: usize = 256;
/// Labels that stand in the file, of one topic.
pub const LABELS_MAX: usize = 16;
pub const PORT_DEFAULT: u16 = 9092;
pub const GROUP_DEFAULT: &str = "hindcast";
/// As long as topics' names may be.
pub const NAME_BYTES_MAX: usize = 249;
pub const USER_BYTES_MAX: usize = 1024;
pub const PASSWORD_BYTES_MAX: usize = 16 * 1024;
/// After so long without a word a broker gives a node's partitions to the others.
pub const SESSION_DEFAULT: SpanNs = SpanNs::from_secs(30);
pub const SESSION_MIN: SpanNs = SpanNs::from_secs(6);
pub const SESSION_MAX: SpanNs = SpanNs::from_secs(300);

/// Why a file is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", self.place())]
pub struct ConfigError {
    pub file: String,
    pub line: Option<usize>,
    pub why: String,
}

impl ConfigError {
    fn place(&self) -> String {
        self.line
            .map_or_else(|| self.file.clone(), |line| format!("{}:{line}", self.file))
    }
}

/// Where a password stands that is not in the file itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elsewhere {
    File(PathBuf),
    Variable(String),
}

/// A password. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(pub String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sasl {
    pub mechanism: Mechanism,
    pub user: String,
    pub password: Password,
}

/// How connections are encrypted. Paths as they are to be opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub server_name: Option<String>,
    pub insecure_skip_verify: bool,
}

/// Where to begin in a partition of which the group knows nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    #[default]
    Earliest,
    Latest,
}

impl Start {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Earliest => "earliest",
            Self::Latest => "latest",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    pub name: String,
    pub tenant: TenantId,
    pub form: Form,
}

/// Brokers, and what is consumed of them under one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub name: String,
    pub brokers: Vec<(String, u16)>,
    pub group: String,
    pub start: Start,
    pub session: SpanNs,
    pub tls: Option<Tls>,
    pub sasl: Option<Sasl>,
    pub topics: Vec<Topic>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KafkaConfig {
    pub sources: Vec<Source>,
}

impl FromText for Mechanism {
    fn from_text(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }
}

impl FromText for Start {
    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            _ => Err(format!("start {text:?} is not known; write earliest or latest")),
        }
    }
}

/// The unit of times of line protocol.
struct Unit(Precision);

impl FromText for Unit {
    fn from_text(text: &str) -> Result<Self, String> {
        Precision::parse(text)
            .map(Self)
            .ok_or_else(|| format!("precision {text:?} is none of ns, us, ms, s, m and h"))
    }
}

/// `format` as it is written.
#[derive(Clone, Copy, PartialEq)]
enum Named {
    Text,
    Json,
    Influx,
    Otlp { signal: Signal, json: bool },
}

const FORMATS: [(&str, Named); 9] = {
    const fn otlp(signal: Signal, json: bool) -> Named {
        Named::Otlp { signal, json }
    }
    [
        ("text", Named::Text),
        ("json", Named::Json),
        ("influx", Named::Influx),
        ("otlp_metrics", otlp(Signal::Metrics, false)),
        ("otlp_logs", otlp(Signal::Logs, false)),
        ("otlp_traces", otlp(Signal::Traces, false)),
        ("otlp_metrics_json", otlp(Signal::Metrics, true)),
        ("otlp_logs_json", otlp(Signal::Logs, true)),
        ("otlp_traces_json", otlp(Signal::Traces, true)),
    ]
};

impl FromText for Named {
    fn from_text(text: &str) -> Result<Self, String> {
        let known = FORMATS.iter().find(|(name, _)| *name == text);
        known.map(|(_, named)| *named).ok_or_else(|| {
            let names: Vec<_> = FORMATS.iter().map(|(name, _)| *name).collect();
            format!("format {text:?} is not known; write one of {}", names.join(", "))
        })
    }
}

/// `host`, `host:port` or `[address]:port`.
struct Address(String, u16);

impl FromText for Address {
    fn from_text(text: &str) -> Result<Self, String> {
        let bad = || format!("the broker {text:?} is not like kafka-1.example.org:9092 or [2001:db8::1]:9092");
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(bad)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
                (
                    host,
                    port.strip_prefix(':')
                        .or(port.is_empty().then_some("9092"))
                        .ok_or_else(bad)?,
                )
            }
            None if text.parse::<std::net::IpAddr>().is_ok() => (text, "9092"),
            None => text.split_once(':').unwrap_or((text, "9092")),
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
        let port = port.parse().ok().filter(|p| *p > 0).ok_or_else(bad)?;
        match !host.is_empty() && host.len() <= 253 && host.chars().all(is_name) {
            true => Ok(Self(host.to_owned(), port)),
            false => Err(bad()),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    sources: Vec<RawSource>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSource {
    name: Option<String>,
    #[serde(default)]
    brokers: Vec<Parsed<Address>>,
    group: Option<String>,
    start: Option<Parsed<Start>>,
    session_timeout: Option<Parsed<SpanNs>>,
    tenant: Option<Parsed<TenantId>>,
    tls: Option<RawTls>,
    sasl: Option<RawSasl>,
    #[serde(default)]
    topics: Vec<RawTopic>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTls {
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    server_name: Option<String>,
    insecure_skip_verify: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSasl {
    mechanism: Option<Parsed<Mechanism>>,
    username: Option<String>,
    password: Option<String>,
    password_file: Option<PathBuf>,
    password_env: Option<String>,
    #[serde(default)]
    without_tls: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTopic {
    topic: Option<String>,
    format: Option<Parsed<Named>>,
    tenant: Option<Parsed<TenantId>>,
    labels: Option<BTreeMap<String, String>>,
    label_fields: Option<BTreeMap<String, String>>,
    time_field: Option<String>,
    precision: Option<Parsed<Unit>>,
}

type Secrets<'a> = &'a dyn Fn(&Elsewhere) -> Result<String, String>;

/// Reads a file. `file` is its name in errors, paths in it are beside `folder`, `secret` gives what stands elsewhere.
pub fn parse(file: &str, text: &str, folder: &Path, secret: Secrets<'_>) -> Result<KafkaConfig, ConfigError> {
    let bad = |line, why: String| ConfigError {
        file: file.to_owned(),
        line,
        why,
    };
    if text.len() > CONFIG_BYTES_MAX {
        return Err(bad(None, format!("it takes more than {CONFIG_BYTES_MAX} bytes")));
    }
    let raw: RawFile = serde_norway::from_str(text).map_err(|e| {
        let line = e.location().map(|l| l.line());
        bad(line, words(&e.to_string()))
    })?;
    resolve(raw, folder, secret).map_err(|why| bad(None, why))
}

/// An error of the reader in words that say what to do.
fn words(said: &str) -> String {
    // The place stands before the words already.
    let said = said.rsplit_once(" at line ").map_or(said, |(words, _)| words);
    match said.split_once("unknown field `") {
        None => said.to_owned(),
        Some((before, after)) => {
            let name = after.split('`').next().unwrap_or_default();
            format!("{before}{name} is not a setting that is known there; take it out or correct it")
        }
    }
}

fn resolve(raw: RawFile, folder: &Path, secret: Secrets<'_>) -> Result<KafkaConfig, String> {
    if raw.sources.is_empty() {
        return Err("it names no sources; write sources: with brokers and topics".to_owned());
    }
    if raw.sources.len() > SOURCES_MAX {
        return Err(format!("there are more than {SOURCES_MAX} sources"));
    }
    let mut names = BTreeSet::new();
    let mut sources = vec![];
    for (n, raw) in (1..).zip(raw.sources) {
        let name = raw.name.clone().unwrap_or_else(|| format!("source-{n}"));
        let at = |why: String| format!("source {name:?}: {why}");
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
            return Err(at(format!(
                "a name has 1 to {NAME_BYTES_MAX} bytes, and no control characters"
            )));
        }
        if !names.insert(name.clone()) {
            return Err(at("another source has this name; give each its own".to_owned()));
        }
        sources.push(source(name.clone(), raw, folder, secret).map_err(at)?);
    }
    Ok(KafkaConfig { sources })
}

fn source(name: String, raw: RawSource, folder: &Path, secret: Secrets<'_>) -> Result<Source, String> {
    if raw.brokers.is_empty() || raw.brokers.len() > BROKERS_MAX {
        return Err(format!(
            "brokers: name 1 to {BROKERS_MAX} of them, like kafka-1.example.org:9092"
        ));
    }
    if raw.topics.is_empty() || raw.topics.len() > TOPICS_MAX {
        return Err(format!("topics: name 1 to {TOPICS_MAX} of them"));
    }
    let group = raw.group.unwrap_or_else(|| GROUP_DEFAULT.to_owned());
    if group.is_empty() || group.len() > NAME_BYTES_MAX {
        return Err(format!("group: a name of 1 to {NAME_BYTES_MAX} bytes is needed"));
    }
    let session = raw.session_timeout.map_or(SESSION_DEFAULT, |s| s.0);
    if !(SESSION_MIN..=SESSION_MAX).contains(&session) {
        return Err(format!(
            "session_timeout: {session} is not between {SESSION_MIN} and {SESSION_MAX}"
        ));
    }
    let tenant = raw.tenant.map(|t| t.0).unwrap_or_default();
    let (mut topics, mut seen) = (vec![], BTreeSet::new());
    for raw in raw.topics {
        let topic = topic(raw, &tenant)?;
        if !seen.insert(topic.name.clone()) {
            return Err(format!(
                "topic {:?} is there twice; its records have one format",
                topic.name
            ));
        }
        topics.push(topic);
    }
    let is_readable_on_the_way = raw.tls.is_none() && raw.sasl.as_ref().is_some_and(|s| !s.without_tls);
    let sasl = raw.sasl.map(|s| sasl(s, folder, secret)).transpose()?;
    if is_readable_on_the_way && sasl.as_ref().is_some_and(|s| s.mechanism == Mechanism::Plain) {
        return Err(
            "sasl: PLAIN sends the password as it is: add tls: {}, or write without_tls: true in sasl where nobody listens".to_owned(),
        );
    }
    Ok(Source {
        name,
        brokers: raw.brokers.into_iter().map(|Parsed(Address(h, p))| (h, p)).collect(),
        group,
        start: raw.start.map(|s| s.0).unwrap_or_default(),
        session,
        tls: raw.tls.map(|t| tls(t, folder)).transpose()?,
        sasl,
        topics,
    })
}

fn tls(raw: RawTls, folder: &Path) -> Result<Tls, String> {
    if raw.cert_file.is_some() != raw.key_file.is_some() {
        return Err("tls: cert_file and key_file belong together; name both or none".to_owned());
    }
    let beside = |path: PathBuf| folder.join(path);
    Ok(Tls {
        ca_file: raw.ca_file.map(beside),
        cert_file: raw.cert_file.map(beside),
        key_file: raw.key_file.map(beside),
        server_name: raw.server_name,
        insecure_skip_verify: raw.insecure_skip_verify,
    })
}

fn sasl(raw: RawSasl, folder: &Path, secret: Secrets<'_>) -> Result<Sasl, String> {
    let mechanism = raw
        .mechanism
        .ok_or("sasl: mechanism is missing; write PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512")?
        .0;
    let user = raw.username.ok_or("sasl: username is missing")?;
    let password = match (raw.password, raw.password_file, raw.password_env) {
        (Some(password), None, None) => password,
        (None, Some(file), None) => {
            let said = secret(&Elsewhere::File(folder.join(file))).map_err(|e| format!("sasl: {e}"))?;
            said.trim_end_matches(['\r', '\n']).to_owned()
        }
        (None, None, Some(name)) => secret(&Elsewhere::Variable(name)).map_err(|e| format!("sasl: {e}"))?,
        _ => return Err("sasl: write one of password, password_file and password_env".to_owned()),
    };
    let fits = |text: &str, max: usize| !text.is_empty() && text.len() <= max && !text.contains('\0');
    if !fits(&user, USER_BYTES_MAX) {
        return Err(format!("sasl: username has 1 to {USER_BYTES_MAX} bytes"));
    }
    if !fits(&password, PASSWORD_BYTES_MAX) {
        return Err(format!("sasl: the password has 1 to {PASSWORD_BYTES_MAX} bytes"));
    }
    Ok(Sasl {
        mechanism,
        user,
        password: Password(password),
    })
}

fn topic(raw: RawTopic, tenant: &TenantId) -> Result<Topic, String> {
    let name = raw.topic.ok_or("topics: each has a topic: with its name")?;
    let at = |why: &str| format!("topic {name:?}: {why}");
    let is_name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(is_name) {
        return Err(at(&format!(
            "a topic's name has 1 to {NAME_BYTES_MAX} letters, digits, dots, underscores and dashes"
        )));
    }
    let format = raw.format.ok_or_else(|| {
        let names: Vec<_> = FORMATS.iter().map(|(name, _)| *name).collect();
        at(&format!("format is missing; write one of {}", names.join(", ")))
    })?;
    let is_lines = matches!(format.0, Named::Text | Named::Json);
    if raw.labels.is_some() && !is_lines {
        return Err(at(
            "labels are for the formats text and json; other records bring their own",
        ));
    }
    if (raw.label_fields.is_some() || raw.time_field.is_some()) && format.0 != Named::Json {
        return Err(at("label_fields and time_field are for the format json"));
    }
    if raw.precision.is_some() && format.0 != Named::Influx {
        return Err(at("precision is for the format influx"));
    }
    let (labels, fields) = (raw.labels.unwrap_or_default(), raw.label_fields.unwrap_or_default());
    if labels.len() > LABELS_MAX || fields.len() > LABEL_FIELDS_MAX {
        return Err(at(&format!(
            "at most {LABELS_MAX} labels and {LABEL_FIELDS_MAX} label_fields"
        )));
    }
    for label in labels.keys().chain(fields.keys()) {
        if !is_label_name(label) || label == TOPIC_LABEL {
            return Err(at(&format!(
                "{label:?} cannot be the name of a label here; write letters, digits and underscores"
            )));
        }
    }
    if let Some(twice) = fields.keys().find(|f| labels.contains_key(*f)) {
        return Err(at(&format!("the label {twice:?} stands in labels and in label_fields")));
    }
    if let Some(long) = labels
        .iter()
        .find(|(_, v)| v.is_empty() || v.len() > LABEL_VALUE_BYTES_MAX)
    {
        return Err(at(&format!(
            "the value of label {:?} has 1 to {LABEL_VALUE_BYTES_MAX} bytes",
            long.0
        )));
    }
    let own = (TOPIC_LABEL.to_owned(), name.clone());
    let lines = Lines {
        labels: labels.into_iter().chain([own]).collect(),
        label_fields: fields.into_iter().collect(),
        time_field: raw.time_field,
    };
    Ok(Topic {
        form: match format.0 {
            Named::Text => Form::Text(lines),
            Named::Json => Form::Json(lines),
            Named::Influx => Form::Influx(raw.precision.map(|p| p.0.0).unwrap_or_default()),
            Named::Otlp { signal, json } => Form::Otlp { signal, json },
        },
        tenant: raw.tenant.map_or_else(|| tenant.clone(), |t| t.0),
        name,
    })
}

/// On every stream of lines.
pub const TOPIC_LABEL: &str = "kafka_topic";

impl Topic {
    /// As the file writes it.
    pub fn format(&self) -> &'static str {
        let named = match &self.form {
            Form::Text(_) => Named::Text,
            Form::Json(_) => Named::Json,
            Form::Influx(_) => Named::Influx,
            Form::Otlp { signal, json } => Named::Otlp {
                signal: *signal,
                json: *json,
            },
        };
        FORMATS.iter().find(|(_, n)| *n == named).map_or("", |(name, _)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn read(text: &str) -> Result<KafkaConfig, ConfigError> {
        parse("kafka.yml", text, Path::new("/etc"), &|elsewhere| match elsewhere {
            Elsewhere::File(path) if path == Path::new("/etc/secret") => Ok("pencil\n".to_owned()),
            Elsewhere::Variable(name) if name == "PASSWORD" => Ok("pencil".to_owned()),
            other => Err(format!("{other:?} is not there")),
        })
    }

    #[test]
    fn a_file_is_read_with_its_defaults_and_shows_no_secret() {
        let text = "
sources:
  - name: plant
    brokers: [kafka-1.example.org, '[::1]:9093']
    tenant: team-a
    tls: {ca_file: ca.pem}
    sasl: {mechanism: scram-sha-512, username: reader, password_file: secret}
    topics:
      - {topic: app-logs, format: text, labels: {service_name: shop}}
      - {topic: events, format: json, label_fields: {service_name: service}, tenant: team-b}
      - {topic: telegraf, format: influx, precision: s}
      - {topic: otlp_spans, format: otlp_traces_json}
";
        let config = read(text).unwrap();
        let shown = format!("{config:?}");
        assert!(!shown.contains("pencil") && shown.contains("<secret>"), "{shown}");
        let source = &config.sources[0];
        assert_eq!(source.sasl.as_ref().unwrap().password.0, "pencil");
        assert_eq!(
            source.brokers,
            [("kafka-1.example.org".to_owned(), 9092), ("::1".to_owned(), 9093)]
        );
        assert_eq!(source.tls.as_ref().unwrap().ca_file, Some("/etc/ca.pem".into()));
        assert_eq!(
            (source.group.as_str(), source.start, source.session),
            ("hindcast", Start::Earliest, SESSION_DEFAULT)
        );
        let topics: Vec<_> = source
            .topics
            .iter()
            .map(|t| format!("{} {} {}", t.name, t.format(), t.tenant))
            .collect();
        expect![[r#"
            [
                "app-logs text team-a",
                "events json team-b",
                "telegraf influx team-a",
                "otlp_spans otlp_traces_json team-a",
            ]
        "#]]
        .assert_debug_eq(&topics);
    }

    #[test]
    fn what_is_wrong_is_named_with_what_to_do() {
        let topics = "topics: [{topic: t, format: text}]";
        let source = |rest: &str| format!("sources:\n  - brokers: [k]\n    {rest}\n");
        let said: Vec<String> = [
            String::new(),
            "sources: []".to_owned(),
            "sauces: []".to_owned(),
            "sources:\n  - brokers: [k]\n".to_owned(),
            "sources:\n  - brokers: ['k:x']\n".to_owned(),
            source("topics: [{topic: t}]"),
            source("topics: [{topic: t, format: avro}]"),
            source("topics: [{topic: 'a b', format: text}]"),
            source("topics: [{topic: t, format: text}, {topic: t, format: json}]"),
            source("topics: [{topic: t, format: influx, labels: {a: b}}]"),
            source("topics: [{topic: t, format: text, time_field: x}]"),
            source("topics: [{topic: t, format: text, precision: s}]"),
            source("topics: [{topic: t, format: text, labels: {kafka_topic: b}}]"),
            source("topics: [{topic: t, format: json, labels: {a: b}, label_fields: {a: c}}]"),
            source(&format!("start: middle\n    {topics}")),
            source(&format!("session_timeout: 1s\n    {topics}")),
            source(&format!("sasl: {{mechanism: GSSAPI}}\n    {topics}")),
            source(&format!("sasl: {{mechanism: PLAIN, username: u}}\n    {topics}")),
            source(&format!(
                "sasl: {{mechanism: PLAIN, username: u, password_env: NO}}\n    {topics}"
            )),
            source(&format!(
                "sasl: {{mechanism: PLAIN, username: u, password: p}}\n    {topics}"
            )),
            source(&format!("tls: {{cert_file: c}}\n    {topics}")),
            source(&format!("tls: {{ca: c}}\n    {topics}")),
            source(&format!("name: ''\n    {topics}")),
            format!("sources:\n  - {{name: a, brokers: [k], {topics}}}\n  - {{name: a, brokers: [k], {topics}}}\n"),
        ]
        .iter()
        .map(|text| read(text).unwrap_err().to_string())
        .collect();
        expect![[r#"
            kafka.yml: it names no sources; write sources: with brokers and topics
            kafka.yml: it names no sources; write sources: with brokers and topics
            kafka.yml:1: sauces is not a setting that is known there; take it out or correct it
            kafka.yml: source "source-1": topics: name 1 to 256 of them
            kafka.yml:2: sources[0].brokers[0]: the broker "k:x" is not like kafka-1.example.org:9092 or [2001:db8::1]:9092
            kafka.yml: source "source-1": topic "t": format is missing; write one of text, json, influx, otlp_metrics, otlp_logs, otlp_traces, otlp_metrics_json, otlp_logs_json, otlp_traces_json
            kafka.yml:3: sources[0].topics[0].format: format "avro" is not known; write one of text, json, influx, otlp_metrics, otlp_logs, otlp_traces, otlp_metrics_json, otlp_logs_json, otlp_traces_json
            kafka.yml: source "source-1": topic "a b": a topic's name has 1 to 249 letters, digits, dots, underscores and dashes
            kafka.yml: source "source-1": topic "t" is there twice; its records have one format
            kafka.yml: source "source-1": topic "t": labels are for the formats text and json; other records bring their own
            kafka.yml: source "source-1": topic "t": label_fields and time_field are for the format json
            kafka.yml: source "source-1": topic "t": precision is for the format influx
            kafka.yml: source "source-1": topic "t": "kafka_topic" cannot be the name of a label here; write letters, digits and underscores
            kafka.yml: source "source-1": topic "t": the label "a" stands in labels and in label_fields
            kafka.yml:3: sources[0].start: start "middle" is not known; write earliest or latest
            kafka.yml: source "source-1": session_timeout: 1s is not between 6s and 5m
            kafka.yml:3: sources[0].sasl.mechanism: mechanism "GSSAPI" is not supported; write PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512
            kafka.yml: source "source-1": sasl: write one of password, password_file and password_env
            kafka.yml: source "source-1": sasl: Variable("NO") is not there
            kafka.yml: source "source-1": sasl: PLAIN sends the password as it is: add tls: {}, or write without_tls: true in sasl where nobody listens
            kafka.yml: source "source-1": tls: cert_file and key_file belong together; name both or none
            kafka.yml:3: sources[0].tls: ca is not a setting that is known there; take it out or correct it
            kafka.yml: source "": a name has 1 to 249 bytes, and no control characters
            kafka.yml: source "a": another source has this name; give each its own"#]].assert_eq(&said.join("\n"));
    }

    #[test]
    fn lists_are_bounded() {
        let many = |n: usize, one: &dyn Fn(usize) -> String| (0..n).map(one).collect::<Vec<_>>().join(",");
        let topics = many(TOPICS_MAX + 1, &|i| format!("{{topic: t{i}, format: text}}"));
        let said = read(&format!("sources: [{{brokers: [k], topics: [{topics}]}}]")).unwrap_err();
        assert!(said.why.contains("1 to 256"), "{said}");
        let brokers = many(BROKERS_MAX + 1, &|i| format!("k{i}"));
        let said = read(&format!(
            "sources: [{{brokers: [{brokers}], topics: [{{topic: t, format: text}}]}}]"
        ))
        .unwrap_err();
        assert!(said.why.contains("1 to 64"), "{said}");
        let sources = many(SOURCES_MAX + 1, &|_| {
            "{brokers: [k], topics: [{topic: t, format: text}]}".to_owned()
        });
        let said = read(&format!("sources: [{sources}]")).unwrap_err();
        assert!(said.why.contains("more than 64"), "{said}");
        let labels = many(LABELS_MAX + 1, &|i| format!("l{i}: x"));
        let said = read(&format!(
            "sources: [{{brokers: [k], topics: [{{topic: t, format: text, labels: {{{labels}}}}}]}}]"
        ));
        assert!(said.unwrap_err().why.contains("at most 16"));
        let fields = many(LABEL_FIELDS_MAX + 1, &|i| format!("l{i}: x"));
        let said = read(&format!(
            "sources: [{{brokers: [k], topics: [{{topic: t, format: json, label_fields: {{{fields}}}}}]}}]"
        ));
        assert!(said.unwrap_err().why.contains("8 label_fields"));
        let long = "#".repeat(CONFIG_BYTES_MAX + 1);
        assert!(read(&long).unwrap_err().why.contains("more than 1048576 bytes"));
    }
}

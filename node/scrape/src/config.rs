//! A Prometheus configuration, as far as it says what is scraped.
//!
//! Pure: text in, [`ScrapeConfig`] out, or why not, with the line. The file may be a whole `prometheus.yml`: sections that
//! have nothing to do with scraping are named in [`ScrapeConfig::warnings`]. Within `global` and `scrape_configs` everything
//! that is not known or not supported is refused by name.
//!
//! Paths are as they stand there until [`ScrapeConfig::below`] takes them from the file's folder.

use crate::relabel::{Action, Rule, RuleText};
use hindcast_model::setting::{FromText, Parsed};
use hindcast_model::{SpanNs, TenantId};
use serde::de::{self, Deserialize, Deserializer};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub const CONFIG_BYTES_MAX: usize = 16 * 1024 * 1024;
pub const JOBS_MAX: usize = 10_000;
/// As Prometheus.
pub const INTERVAL_DEFAULT: SpanNs = SpanNs::from_secs(60);
pub const TIMEOUT_DEFAULT: SpanNs = SpanNs::from_secs(10);
/// Below it, a grid of milliseconds would not be one.
pub const INTERVAL_MIN: SpanNs = SpanNs::from_ms(100);
pub const INTERVAL_MAX: SpanNs = SpanNs::from_secs(86_400);
pub const REFRESH_DEFAULT: SpanNs = SpanNs::from_secs(300);
/// One answer, decompressed, where a job does not say `body_size_limit`; and the most that it may say.
pub const BODY_BYTES_DEFAULT: usize = 16 * 1024 * 1024;
pub const BODY_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Samples of one scrape, whatever `sample_limit` says.
pub const SAMPLES_PER_SCRAPE_MAX: usize = 500_000;

/// Sections of a `prometheus.yml` that say nothing of scraping, and what to do with them here.
const ELSEWHERE: [(&str, &str); 8] = [
    ("rule_files", "name rule files with --rules"),
    ("alerting", "who is told is in --routes"),
    ("remote_write", "samples are stored here"),
    ("remote_read", "samples are read from here"),
    ("storage", "how long data is kept is --retention"),
    ("tracing", "this program sends no traces of its own"),
    ("otlp", "it is taken without settings"),
    ("runtime", "it is of the Go runtime"),
];

/// What Prometheus knows and this program does not do: named for what it is.
const UNSUPPORTED: [&str; 22] = [
    "oauth2",
    "sigv4",
    "azuread",
    "proxy_url",
    "proxy_from_environment",
    "proxy_connect_header",
    "no_proxy",
    "http_headers",
    "scrape_protocols",
    "scrape_classic_histograms",
    "always_scrape_classic_histograms",
    "convert_classic_histograms_to_nhcb",
    "native_histogram_bucket_limit",
    "native_histogram_min_bucket_factor",
    "scrape_native_histograms",
    "metric_name_validation_scheme",
    "metric_name_escaping_scheme",
    "scrape_failure_log_file",
    "extra_scrape_metrics",
    "scrape_config_files",
    "enable_http2",
    "query_log_file",
];

/// Why a configuration is refused.
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

/// What is scraped.
#[derive(Clone, Debug, Default)]
pub struct ScrapeConfig {
    /// Put on every series that does not have them, as Prometheus does when it hands series on.
    pub external_labels: BTreeMap<String, String>,
    pub jobs: Vec<Job>,
    /// Sections that were not read, each with what to do instead.
    pub warnings: Vec<String>,
}

impl ScrapeConfig {
    /// The same with all paths taken from a folder: that of the file.
    pub fn below(mut self, folder: &Path) -> Self {
        let take = |path: &mut PathBuf| *path = folder.join(&*path);
        let take_secret = |secret: &mut Secret| {
            if let Secret::File(path) = secret {
                *path = folder.join(&*path);
            }
        };
        for job in &mut self.jobs {
            for pattern in job.files.iter_mut().flat_map(|f| &mut f.patterns) {
                *pattern = folder.join(&*pattern).to_string_lossy().into_owned();
            }
            let tls = &mut job.http.tls;
            [&mut tls.ca_file, &mut tls.cert_file, &mut tls.key_file]
                .into_iter()
                .flatten()
                .for_each(take);
            match &mut job.http.auth {
                None => {}
                Some(Auth::Basic { username, password }) => [username, password].into_iter().for_each(take_secret),
                Some(Auth::Header { credentials, .. }) => take_secret(credentials),
            }
        }
        self
    }
}

/// One entry of `scrape_configs`, defaults filled in.
#[derive(Clone, Debug)]
pub struct Job {
    pub name: String,
    /// Whose the series are: a setting of our own, `tenant`.
    pub tenant: TenantId,
    pub interval: SpanNs,
    pub timeout: SpanNs,
    pub metrics_path: String,
    pub scheme: String,
    pub params: BTreeMap<String, Vec<String>>,
    pub honor_labels: bool,
    pub honor_timestamps: bool,
    /// Whether series with timestamps of their own get staleness markers, too.
    pub track_timestamps_staleness: bool,
    pub enable_compression: bool,
    pub groups: Vec<Group>,
    pub files: Vec<FileSd>,
    pub http: Http,
    pub relabel: Vec<Rule>,
    pub metric_relabel: Vec<Rule>,
    pub limits: Limits,
}

impl Job {
    /// One that is in no Prometheus configuration: of targets that are polled.
    pub fn of_polls(name: String, tenant: TenantId) -> Self {
        Self {
            name,
            tenant,
            interval: INTERVAL_DEFAULT,
            timeout: INTERVAL_DEFAULT,
            metrics_path: String::new(),
            scheme: String::new(),
            params: BTreeMap::new(),
            honor_labels: false,
            honor_timestamps: false,
            track_timestamps_staleness: false,
            enable_compression: false,
            groups: vec![],
            files: vec![],
            http: Http {
                auth: None,
                tls: TlsConfig::default(),
                follow_redirects: false,
            },
            relabel: vec![],
            metric_relabel: vec![],
            limits: Limits {
                samples: SAMPLES_PER_SCRAPE_MAX,
                body_bytes: 0,
                labels: None,
                label_name_bytes: None,
                label_value_bytes: None,
                targets: None,
                dropped_listed: 0,
            },
        }
    }
}

/// Targets with labels of their own: `static_configs`, and what files say.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    #[serde(default)]
    pub targets: Vec<String>,
    #[serde(default, deserialize_with = "label_map")]
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSd {
    /// The last part may have `*`.
    pub patterns: Vec<String>,
    pub refresh: SpanNs,
}

/// How a target is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    pub auth: Option<Auth>,
    pub tls: TlsConfig,
    pub follow_redirects: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Auth {
    Basic {
        username: Secret,
        password: Secret,
    },
    /// `Authorization: kind credentials`.
    Header {
        kind: String,
        credentials: Secret,
    },
}

/// Said in the file, or read from a file of its own whenever it is used. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    Text(String),
    File(PathBuf),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("<secret>"),
            Self::File(path) => write!(f, "{path:?}"),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub server_name: Option<String>,
    pub insecure_skip_verify: bool,
}

/// What one scrape may bring; beyond it the scrape fails. `None`: no bound but the program's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub samples: usize,
    pub body_bytes: usize,
    pub labels: Option<usize>,
    pub label_name_bytes: Option<usize>,
    pub label_value_bytes: Option<usize>,
    pub targets: Option<usize>,
    /// Dropped targets that are listed.
    pub dropped_listed: usize,
}

/// A number of bytes; all units are of 1024, as Prometheus has it.
struct Bytes(u64);

impl FromText for Bytes {
    fn from_text(text: &str) -> Result<Self, String> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let unit = match text[digits..].trim().to_ascii_uppercase().trim_end_matches("IB") {
            "" | "B" => Some(0),
            "K" | "KB" => Some(10),
            "M" | "MB" => Some(20),
            "G" | "GB" => Some(30),
            _ => None,
        };
        let number = text[..digits].parse::<u64>().ok();
        let bytes = number.zip(unit).and_then(|(n, unit)| n.checked_mul(1 << unit));
        bytes
            .map(Self)
            .ok_or_else(|| format!("{text:?} is no number of bytes; write 10MB or 512KiB"))
    }
}

impl FromText for Action {
    fn from_text(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }
}

struct Scheme(String);

impl FromText for Scheme {
    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "http" | "https" => Ok(Self(text.to_owned())),
            _ => Err(format!("the scheme {text:?} is not known; write http or https")),
        }
    }
}

fn label_map<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let map = BTreeMap::<String, String>::deserialize(deserializer)?;
    match map.keys().find(|n| n.is_empty() || n.chars().any(char::is_control)) {
        Some(name) => Err(de::Error::custom(format!("{name:?} is no label name"))),
        None => Ok(map),
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    global: RawGlobal,
    #[serde(default)]
    scrape_configs: Vec<RawJob>,
    rule_files: Option<de::IgnoredAny>,
    alerting: Option<de::IgnoredAny>,
    remote_write: Option<de::IgnoredAny>,
    remote_read: Option<de::IgnoredAny>,
    storage: Option<de::IgnoredAny>,
    tracing: Option<de::IgnoredAny>,
    otlp: Option<de::IgnoredAny>,
    runtime: Option<de::IgnoredAny>,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawGlobal {
    scrape_interval: Option<Parsed<SpanNs>>,
    scrape_timeout: Option<Parsed<SpanNs>>,
    /// Of rules, which have intervals of their own here.
    evaluation_interval: Option<Parsed<SpanNs>>,
    #[serde(deserialize_with = "label_map")]
    external_labels: BTreeMap<String, String>,
    body_size_limit: Option<Parsed<Bytes>>,
    sample_limit: Option<u64>,
    label_limit: Option<u64>,
    label_name_length_limit: Option<u64>,
    label_value_length_limit: Option<u64>,
    target_limit: Option<u64>,
    keep_dropped_targets: Option<u64>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawJob {
    job_name: String,
    tenant: Option<Parsed<TenantId>>,
    scrape_interval: Option<Parsed<SpanNs>>,
    scrape_timeout: Option<Parsed<SpanNs>>,
    metrics_path: Option<String>,
    scheme: Option<Parsed<Scheme>>,
    #[serde(default)]
    params: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    honor_labels: bool,
    honor_timestamps: Option<bool>,
    #[serde(default)]
    track_timestamps_staleness: bool,
    enable_compression: Option<bool>,
    follow_redirects: Option<bool>,
    fallback_scrape_protocol: Option<Parsed<TextProtocol>>,
    #[serde(default)]
    static_configs: Vec<Group>,
    #[serde(default)]
    file_sd_configs: Vec<RawFileSd>,
    basic_auth: Option<RawBasic>,
    authorization: Option<RawAuthorization>,
    bearer_token: Option<String>,
    bearer_token_file: Option<PathBuf>,
    #[serde(default)]
    tls_config: TlsConfig,
    #[serde(default)]
    relabel_configs: Vec<RawRule>,
    #[serde(default)]
    metric_relabel_configs: Vec<RawRule>,
    body_size_limit: Option<Parsed<Bytes>>,
    sample_limit: Option<u64>,
    label_limit: Option<u64>,
    label_name_length_limit: Option<u64>,
    label_value_length_limit: Option<u64>,
    target_limit: Option<u64>,
    keep_dropped_targets: Option<u64>,
}

/// What an answer without a known type is read as: always a text format here.
struct TextProtocol;

impl FromText for TextProtocol {
    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "PrometheusText0.0.4" | "PrometheusText1.0.0" => Ok(Self),
            _ => Err(format!(
                "fallback_scrape_protocol {text:?} is not supported: what names no type is read as PrometheusText0.0.4"
            )),
        }
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFileSd {
    files: Vec<Parsed<Pattern>>,
    refresh_interval: Option<Parsed<SpanNs>>,
}

struct Pattern(String);

impl FromText for Pattern {
    fn from_text(text: &str) -> Result<Self, String> {
        let (folder, name) = text.rsplit_once('/').unwrap_or(("", text));
        if folder.contains('*') {
            return Err(format!("{text:?}: a * may stand in the last part of a path only"));
        }
        let is_known = [".json", ".yml", ".yaml"].iter().any(|e| name.ends_with(e));
        match is_known {
            true => Ok(Self(text.to_owned())),
            false => Err(format!("{text:?}: such a file ends with .json, .yml or .yaml")),
        }
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBasic {
    username: Option<String>,
    username_file: Option<PathBuf>,
    password: Option<String>,
    password_file: Option<PathBuf>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAuthorization {
    #[serde(rename = "type")]
    kind: Option<String>,
    credentials: Option<String>,
    credentials_file: Option<PathBuf>,
}

/// A rule, checked while it is read: so a mistake has a line.
struct RawRule(Rule);

impl<'de> Deserialize<'de> for RawRule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Raw {
            source_labels: Option<Vec<String>>,
            separator: Option<String>,
            target_label: Option<String>,
            regex: Option<String>,
            modulus: Option<u64>,
            replacement: Option<String>,
            action: Option<Parsed<Action>>,
        }
        let raw = Raw::deserialize(deserializer)?;
        let rule = Rule::new(RuleText {
            source_labels: raw.source_labels,
            separator: raw.separator,
            target_label: raw.target_label,
            regex: raw.regex,
            modulus: raw.modulus,
            replacement: raw.replacement,
            action: raw.action.map(|a| a.0),
        });
        rule.map(Self).map_err(de::Error::custom)
    }
}

/// Reads a configuration; `file` is its name in errors.
pub fn parse(file: &str, text: &str) -> Result<ScrapeConfig, ConfigError> {
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
    // The lines at which jobs are named, for what is found only when a job is whole.
    resolve(raw).map_err(|(job, why)| bad(line_of_job(text, &job), format!("job {job:?}: {why}")))
}

/// An error of the reader in words that say what to do.
fn words(said: &str) -> String {
    // The place stands before the words already.
    let said = said.rsplit_once(" at line ").map_or(said, |(words, _)| words);
    let Some((before, after)) = said.split_once("unknown field `") else {
        return said.to_owned();
    };
    let name = after.split('`').next().unwrap_or_default();
    if name.ends_with("_sd_configs") {
        return format!("{before}{name} is not supported here: write such targets into files for file_sd_configs");
    }
    if UNSUPPORTED.contains(&name) {
        return format!("{before}{name} is not supported here; take it out");
    }
    format!("{before}{name} is not a setting that is known there; take it out or correct it")
}

fn line_of_job(text: &str, job: &str) -> Option<usize> {
    let names = |line: &str| {
        let rest = line
            .trim_start_matches([' ', '-', '{', '['])
            .strip_prefix("job_name:")?;
        let name = rest.split([',', '#', '}']).next()?.trim().trim_matches(['"', '\'']);
        (name == job).then_some(())
    };
    // Of two jobs of one name, the second is the mistake.
    let lines = (1..).zip(text.lines()).filter(|(_, l)| names(l).is_some());
    lines.last().map(|(number, _)| number)
}

/// A job, and what is wrong with it.
type Wrong = (String, String);

fn resolve(raw: RawFile) -> Result<ScrapeConfig, Wrong> {
    let sections = [
        raw.rule_files.is_some(),
        raw.alerting.is_some(),
        raw.remote_write.is_some(),
        raw.remote_read.is_some(),
        raw.storage.is_some(),
        raw.tracing.is_some(),
        raw.otlp.is_some(),
        raw.runtime.is_some(),
    ];
    let there = ELSEWHERE.iter().zip(sections).filter(|(_, is)| *is);
    let mut warnings: Vec<String> = there
        .map(|((name, instead), _)| format!("{name} is not read here: {instead}"))
        .collect();
    if raw.global.evaluation_interval.is_some() {
        warnings
            .push("global.evaluation_interval is not read here: rule groups have intervals of their own".to_owned());
    }
    if raw.scrape_configs.len() > JOBS_MAX {
        return Err((String::new(), format!("there are more than {JOBS_MAX} jobs")));
    }
    let (mut jobs, mut names) = (vec![], BTreeSet::new());
    for job in raw.scrape_configs {
        let name = job.job_name.clone();
        if name.is_empty() {
            return Err((name, "job_name is empty".to_owned()));
        }
        if !names.insert(name.clone()) {
            return Err((name, "another job has this job_name; give each its own".to_owned()));
        }
        jobs.push(resolve_job(job, &raw.global).map_err(|why| (name, why))?);
    }
    Ok(ScrapeConfig {
        external_labels: raw.global.external_labels,
        jobs,
        warnings,
    })
}

fn span(own: Option<Parsed<SpanNs>>) -> Option<SpanNs> {
    own.map(|Parsed(span)| span)
}

fn resolve_job(raw: RawJob, global: &RawGlobal) -> Result<Job, String> {
    let of_global = |given: &Option<Parsed<SpanNs>>| given.as_ref().map(|Parsed(span)| *span);
    let interval = span(raw.scrape_interval).or(of_global(&global.scrape_interval));
    let interval = interval.unwrap_or(INTERVAL_DEFAULT);
    let own_timeout = span(raw.scrape_timeout);
    // A timeout that is not the job's own gives way to a short interval, as in Prometheus.
    let timeout = own_timeout.unwrap_or_else(|| {
        of_global(&global.scrape_timeout)
            .unwrap_or(TIMEOUT_DEFAULT)
            .min(interval)
    });
    check_times(interval, timeout)?;
    let metrics_path = raw.metrics_path.unwrap_or_else(|| "/metrics".to_owned());
    let auth = auth(
        raw.basic_auth,
        raw.authorization,
        raw.bearer_token,
        raw.bearer_token_file,
    )?;
    if raw.tls_config.cert_file.is_some() != raw.tls_config.key_file.is_some() {
        return Err("tls_config: cert_file and key_file belong together".to_owned());
    }
    let bound = |own: Option<u64>, of_all: Option<u64>| {
        // 0 is no bound, as in Prometheus.
        let given = own.or(of_all).filter(|n| *n > 0)?;
        Some(usize::try_from(given).unwrap_or(usize::MAX))
    };
    let body = raw
        .body_size_limit
        .or_else(|| global.body_size_limit.as_ref().map(|b| Parsed(Bytes(b.0.0))));
    let body_bytes = match body.map(|b| b.0.0) {
        None | Some(0) => BODY_BYTES_DEFAULT,
        Some(given) if given > BODY_BYTES_MAX as u64 => {
            return Err(format!(
                "body_size_limit is more than {BODY_BYTES_MAX} bytes, the most that is read of one answer"
            ));
        }
        Some(given) => given as usize,
    };
    for (name, rules) in [
        ("relabel_configs", &raw.relabel_configs),
        ("metric_relabel_configs", &raw.metric_relabel_configs),
    ] {
        if rules.len() > crate::relabel::RULES_MAX {
            return Err(format!("{name} has more than {} rules", crate::relabel::RULES_MAX));
        }
    }
    let _ = raw.fallback_scrape_protocol;
    Ok(Job {
        name: raw.job_name,
        tenant: raw.tenant.map_or_else(TenantId::default, |t| t.0),
        interval,
        timeout,
        metrics_path,
        scheme: raw.scheme.map_or_else(|| "http".to_owned(), |Parsed(Scheme(s))| s),
        params: raw.params,
        honor_labels: raw.honor_labels,
        honor_timestamps: raw.honor_timestamps.unwrap_or(true),
        track_timestamps_staleness: raw.track_timestamps_staleness,
        enable_compression: raw.enable_compression.unwrap_or(true),
        groups: raw.static_configs,
        files: raw
            .file_sd_configs
            .into_iter()
            .map(|f| FileSd {
                patterns: f.files.into_iter().map(|Parsed(Pattern(p))| p).collect(),
                refresh: span(f.refresh_interval).unwrap_or(REFRESH_DEFAULT),
            })
            .collect(),
        http: Http {
            auth,
            tls: raw.tls_config,
            follow_redirects: raw.follow_redirects.unwrap_or(true),
        },
        relabel: raw.relabel_configs.into_iter().map(|r| r.0).collect(),
        metric_relabel: raw.metric_relabel_configs.into_iter().map(|r| r.0).collect(),
        limits: Limits {
            samples: bound(raw.sample_limit, global.sample_limit)
                .unwrap_or(usize::MAX)
                .min(SAMPLES_PER_SCRAPE_MAX),
            body_bytes,
            labels: bound(raw.label_limit, global.label_limit),
            label_name_bytes: bound(raw.label_name_length_limit, global.label_name_length_limit),
            label_value_bytes: bound(raw.label_value_length_limit, global.label_value_length_limit),
            targets: bound(raw.target_limit, global.target_limit),
            dropped_listed: bound(raw.keep_dropped_targets, global.keep_dropped_targets).unwrap_or(usize::MAX),
        },
    })
}

/// What holds for the times of a job, and of a target that relabeling gave its own.
pub fn check_times(interval: SpanNs, timeout: SpanNs) -> Result<(), String> {
    if interval < INTERVAL_MIN || interval > INTERVAL_MAX {
        return Err(format!(
            "the scrape interval {interval} is not between {INTERVAL_MIN} and {INTERVAL_MAX}"
        ));
    }
    if timeout == SpanNs::ZERO {
        return Err("the scrape timeout is zero".to_owned());
    }
    if timeout > interval {
        return Err(format!(
            "the scrape timeout {timeout} is greater than the scrape interval {interval}"
        ));
    }
    Ok(())
}

fn secret(name: &str, text: Option<String>, file: Option<PathBuf>) -> Result<Option<Secret>, String> {
    match (text, file) {
        (Some(_), Some(_)) => Err(format!("{name} and {name}_file: name one of them")),
        (Some(text), None) => Ok(Some(Secret::Text(text))),
        (None, Some(file)) => Ok(Some(Secret::File(file))),
        (None, None) => Ok(None),
    }
}

fn auth(
    basic: Option<RawBasic>,
    authorization: Option<RawAuthorization>,
    token: Option<String>,
    token_file: Option<PathBuf>,
) -> Result<Option<Auth>, String> {
    let token = secret("bearer_token", token, token_file)?;
    let given = [basic.is_some(), authorization.is_some(), token.is_some()];
    if given.iter().filter(|is| **is).count() > 1 {
        return Err("basic_auth, authorization and bearer_token: name one of them".to_owned());
    }
    if let Some(basic) = basic {
        let nothing = || Secret::Text(String::new());
        return Ok(Some(Auth::Basic {
            username: secret("username", basic.username, basic.username_file)?.unwrap_or_else(nothing),
            password: secret("password", basic.password, basic.password_file)?.unwrap_or_else(nothing),
        }));
    }
    if let Some(given) = authorization {
        let kind = given.kind.unwrap_or_else(|| "Bearer".to_owned());
        if kind.eq_ignore_ascii_case("basic") {
            return Err("authorization of type Basic: use basic_auth".to_owned());
        }
        let credentials = secret("credentials", given.credentials, given.credentials_file)?;
        let credentials = credentials.ok_or("authorization has no credentials and no credentials_file")?;
        return Ok(Some(Auth::Header { kind, credentials }));
    }
    Ok(token.map(|credentials| Auth::Header {
        kind: "Bearer".to_owned(),
        credentials,
    }))
}

impl FromStr for ScrapeConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        parse("the configuration", text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(text: &str, expect: Expect) {
        let said = match parse("p.yml", text) {
            Ok(config) => format!("{} jobs, {:?}", config.jobs.len(), config.warnings),
            Err(e) => e.to_string(),
        };
        expect.assert_eq(&said);
    }

    #[test]
    fn a_whole_file_of_prometheus_is_read_and_what_is_elsewhere_is_named() {
        let text = r#"
global:
  scrape_interval: 15s
  evaluation_interval: 15s
  external_labels: { site: seoul, replica: 1 }
alerting: { alertmanagers: [ { static_configs: [ { targets: [ "a:9093" ] } ] } ] }
rule_files: [ "rules/*.yml" ]
remote_write: [ { url: "http://x" } ]
scrape_configs:
  - job_name: node
    static_configs:
      - targets: [ "a:9100", "b:9100" ]
        labels: { rack: 07, on: true }
  - job_name: slow
    scrape_interval: 5m
    scrape_timeout: 1m
    metrics_path: /probe
    scheme: https
    params: { module: [ http_2xx ] }
    honor_labels: true
    honor_timestamps: false
    file_sd_configs: [ { files: [ "targets/*.json", one.yml ], refresh_interval: 1m } ]
    basic_auth: { username: u, password_file: secret }
    tls_config: { ca_file: ca.pem, server_name: x }
    sample_limit: 1000
    body_size_limit: 10MB
    label_limit: 30
    tenant: team-a
"#;
        let config = parse("p.yml", text).unwrap();
        let [node, slow] = &config.jobs[..] else { panic!() };
        assert_eq!(config.external_labels["replica"], "1");
        assert_eq!(node.groups[0].labels["rack"], "07", "as it stands there");
        assert_eq!(
            (node.interval, node.timeout),
            (SpanNs::from_secs(15), SpanNs::from_secs(10))
        );
        assert_eq!(
            (slow.interval, slow.timeout),
            (SpanNs::from_secs(300), SpanNs::from_secs(60))
        );
        assert_eq!(
            (slow.limits.samples, slow.limits.body_bytes, slow.limits.labels),
            (1000, 10 << 20, Some(30))
        );
        assert_eq!(node.limits.samples, SAMPLES_PER_SCRAPE_MAX);
        assert_eq!(slow.files[0].patterns, ["targets/*.json", "one.yml"]);
        assert_eq!(slow.tenant.as_str(), "team-a");
        let Some(Auth::Basic { password, .. }) = &slow.http.auth else {
            panic!()
        };
        assert_eq!(*password, Secret::File("secret".into()));
        expect![[r#"
            [
                "rule_files is not read here: name rule files with --rules",
                "alerting is not read here: who is told is in --routes",
                "remote_write is not read here: samples are stored here",
                "global.evaluation_interval is not read here: rule groups have intervals of their own",
            ]
        "#]]
        .assert_debug_eq(&config.warnings);
    }

    #[test]
    fn what_is_not_known_or_not_supported_is_refused_by_name_and_line() {
        check(
            "scrape_config: []",
            expect!["p.yml:1: scrape_config is not a setting that is known there; take it out or correct it"],
        );
        check(
            "global:\n  scrape_intervall: 1s",
            expect![
                "p.yml:2: global: scrape_intervall is not a setting that is known there; take it out or correct it"
            ],
        );
        check(
            "scrape_configs:\n- job_name: a\n  static_configs: []\n  consul_sd_configs: []",
            expect![
                "p.yml:4: scrape_configs[0]: consul_sd_configs is not supported here: write such targets into files for file_sd_configs"
            ],
        );
        check(
            "scrape_configs:\n- job_name: a\n  proxy_url: x",
            expect!["p.yml:3: scrape_configs[0]: proxy_url is not supported here; take it out"],
        );
        check(
            "scrape_configs:\n- job_name: a\n  static_configs:\n  - target: [a]",
            expect![
                "p.yml:4: scrape_configs[0].static_configs[0]: target is not a setting that is known there; take it out or correct it"
            ],
        );
        check(
            "scrape_configs:\n- job_name: a\n  relabel_configs:\n  - action: keep\n    source_labels: [a]\n    regex: '('",
            expect![[r#"
            p.yml:4: scrape_configs[0].relabel_configs: the regular expression "(" cannot be used: regex parse error:
                (
                ^
            error: unclosed group"#]],
        );
        check(
            "scrape_configs:\n- job_name: a\n  scrape_interval: soon",
            expect![[r#"p.yml:3: scrape_configs[0].scrape_interval: "soon" is no length of time; write 15s or 1m30s"#]],
        );
        check(
            "scrape_configs:\n- job_name: a\n  scheme: ftp",
            expect![[r#"p.yml:3: scrape_configs[0].scheme: the scheme "ftp" is not known; write http or https"#]],
        );
        check(
            "scrape_configs:\n- job_name: a\n  file_sd_configs: [{files: ['*/a.yml']}]",
            expect![[
                r#"p.yml:3: scrape_configs[0].file_sd_configs[0].files[0]: "*/a.yml": a * may stand in the last part of a path only"#
            ]],
        );
        check(
            "scrape_configs:\n- job_name: a\n  file_sd_configs: [{files: ['a.txt']}]",
            expect![[
                r#"p.yml:3: scrape_configs[0].file_sd_configs[0].files[0]: "a.txt": such a file ends with .json, .yml or .yaml"#
            ]],
        );
        check(
            "scrape_configs: [",
            expect!["p.yml:2: did not find expected node content"],
        );
    }

    #[test]
    fn what_is_wrong_with_a_whole_job_names_job_and_line() {
        check(
            "scrape_configs:\n- job_name: a\n- job_name: 'a'",
            expect![[r#"p.yml:3: job "a": another job has this job_name; give each its own"#]],
        );
        check(
            "scrape_configs:\n- scheme: http\n  job_name: \"a b\"\n  scrape_interval: 5s\n  scrape_timeout: 6s",
            expect![[r#"p.yml:3: job "a b": the scrape timeout 6s is greater than the scrape interval 5s"#]],
        );
        check(
            "scrape_configs:\n- job_name: a\n  scrape_interval: 1ms",
            expect![[r#"p.yml:2: job "a": the scrape interval 1ms is not between 100ms and 1d"#]],
        );
        check(
            "scrape_configs:\n- job_name: a\n  body_size_limit: 1GB",
            expect![[
                r#"p.yml:2: job "a": body_size_limit is more than 134217728 bytes, the most that is read of one answer"#
            ]],
        );
        check(
            "scrape_configs:\n- job_name: a\n  basic_auth: {}\n  bearer_token: x",
            expect![[r#"p.yml:2: job "a": basic_auth, authorization and bearer_token: name one of them"#]],
        );
        check(
            "scrape_configs:\n- job_name: a\n  basic_auth: {password: x, password_file: y}",
            expect![[r#"p.yml:2: job "a": password and password_file: name one of them"#]],
        );
        check(
            "scrape_configs:\n- job_name: a\n  authorization: {}",
            expect![[r#"p.yml:2: job "a": authorization has no credentials and no credentials_file"#]],
        );
        check(
            "scrape_configs:\n- job_name: a\n  tls_config: {cert_file: c}",
            expect![[r#"p.yml:2: job "a": tls_config: cert_file and key_file belong together"#]],
        );
    }

    #[test]
    fn a_short_interval_shortens_a_timeout_that_is_not_the_jobs_own() {
        let config = parse("p", "scrape_configs: [{job_name: a, scrape_interval: 2s}]").unwrap();
        assert_eq!(config.jobs[0].timeout, SpanNs::from_secs(2));
    }

    #[test]
    fn secrets_are_not_shown() {
        let text = "scrape_configs: [{job_name: a, authorization: {credentials: 'opensesame'}}, {job_name: b, basic_auth: {password: 'opensesame'}}]";
        assert!(!format!("{:?}", parse("p", text).unwrap()).contains("opensesame"));
    }
}

//! Routes: which receivers an alert goes to, and what a receiver is.
//!
//! Reads a file in the shape of Alertmanager's: `route` (a tree), `receivers`, `global`. What Alertmanager files
//! may hold and is not done here yet (`inhibit_rules`, time intervals, templates) is refused by name.
//!
//! Promises
//! - A label set always finds a receiver: the root route has one and matches everything.
//! - Matching is a walk in file order: the first child that matches takes the alert, unless it says `continue`;
//!   a route whose children take nothing takes the alert itself. Deterministic.
//! - No secret is in here, only where to read it.
//!
//! Receivers follow incidents: `group_by` is read and kept, and shapes nothing yet.

use crate::event::OnRecovery;
use hindcast_model::{Class, Classify, Labels, MatchOp, Matcher, SpanNs};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub const ROUTES_FILE_BYTES_MAX: usize = 1024 * 1024;
pub const ROUTES_MAX: usize = 2_000;
pub const ROUTES_DEPTH_MAX: usize = 16;
pub const RECEIVERS_MAX: usize = 1_000;
/// Channels of one receiver.
pub const CHANNELS_PER_RECEIVER_MAX: usize = 32;

/// After all members resolved an incident stays `recovered` for so long before it closes.
pub const COOL_DOWN_DEFAULT: SpanNs = SpanNs::from_secs(600);
/// So long after the close a relapse takes the same generation back to open.
pub const REOPEN_WINDOW_DEFAULT: SpanNs = SpanNs::from_secs(86_400);
/// News of an open incident is gathered for so long before a further message.
pub const GROUP_INTERVAL_DEFAULT: SpanNs = SpanNs::from_secs(300);
pub const ATTEMPTS_MAX_DEFAULT: u32 = 20;
pub const PAUSE_FIRST_DEFAULT: SpanNs = SpanNs::from_secs(1);
pub const PAUSE_MAX_DEFAULT: SpanNs = SpanNs::from_secs(300);

/// A checked routes file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Routes {
    pub settings: Settings,
    pub root: Route,
    pub receivers: BTreeMap<String, Receiver>,
}

/// What holds for all routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    pub cool_down: SpanNs,
    pub reopen_window: SpanNs,
    pub delivery_attempts_max: u32,
    /// Before the second attempt; doubles with each further one, up to `delivery_pause_max`.
    pub delivery_pause_first: SpanNs,
    pub delivery_pause_max: SpanNs,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cool_down: COOL_DOWN_DEFAULT,
            reopen_window: REOPEN_WINDOW_DEFAULT,
            delivery_attempts_max: ATTEMPTS_MAX_DEFAULT,
            delivery_pause_first: PAUSE_FIRST_DEFAULT,
            delivery_pause_max: PAUSE_MAX_DEFAULT,
        }
    }
}

/// One node of the route tree; what it inherits is filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Route {
    pub receiver: String,
    pub matchers: Vec<RouteMatcher>,
    pub goes_on: bool,
    pub group_by: Vec<String>,
    /// The first message waits for so long, so that more alerts may join it.
    pub group_wait: SpanNs,
    pub group_interval: SpanNs,
    /// While an incident is open and nobody has taken it: remind so often. `None`: never.
    pub repeat_interval: Option<SpanNs>,
    pub routes: Vec<Route>,
}

/// A matcher as it is stored; compiled when it is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteMatcher {
    pub name: String,
    pub op: MatchOp,
    pub value: String,
}

impl RouteMatcher {
    fn matches(&self, labels: &Labels) -> bool {
        match self.op {
            MatchOp::Equal => labels.value(&self.name) == self.value,
            MatchOp::NotEqual => labels.value(&self.name) != self.value,
            // Compiled once when the file was checked, so that it compiles here too.
            op => Matcher::new(&self.name, op, &self.value).is_ok_and(|m| m.matches(labels)),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Receiver {
    pub channels: Vec<ReceiverChannel>,
    pub desk: Option<DeskReceiver>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReceiverChannel {
    /// Whether it hears of recoveries.
    pub send_resolved: bool,
    pub target: Target,
}

/// Our own desk: reached inside the apply, never through the outbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeskReceiver {
    pub group: String,
    pub on_recovery: OnRecovery,
}

/// Where a message goes, and how. The channel of the same kind sends it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    Email(EmailTarget),
    Slack(SlackTarget),
    Webhook(WebhookTarget),
}

impl Target {
    /// The name of the channel that sends it.
    pub const fn channel(&self) -> &'static str {
        match self {
            Self::Email(_) => "email",
            Self::Slack(_) => "slack",
            Self::Webhook(_) => "webhook",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EmailTarget {
    pub to: Vec<String>,
    pub from: String,
    /// `host:port` of the SMTP server.
    pub smarthost: String,
    /// The name we give ourselves; `None`: the channel's default.
    pub hello: Option<String>,
    /// Without it STARTTLS is used where the server offers it, except on loopback.
    pub require_tls: bool,
    pub auth: Option<EmailAuth>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EmailAuth {
    pub username: String,
    pub password: SecretRef,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlackTarget {
    pub channel: String,
    /// Base of the Web API, `https://slack.com/api`.
    pub api_url: String,
    pub token: SecretRef,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WebhookTarget {
    pub url: String,
    /// Signs the body.
    pub secret: Option<SecretRef>,
    /// Whether loopback, link-local and private addresses may be called.
    pub allow_private: bool,
}

/// Where a secret is read, at the moment of use, on the node that uses it. Its text is never kept in here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretRef {
    File(String),
    Env(String),
}

/// One place that a label set is routed to.
#[derive(Clone, Debug, PartialEq)]
pub struct Routed<'a> {
    pub receiver: &'a str,
    pub route: &'a Route,
}

impl Routes {
    /// No file: incidents are kept, nobody is told.
    pub fn none() -> Self {
        let root = Route {
            receiver: "none".into(),
            matchers: vec![],
            goes_on: false,
            group_by: vec![],
            group_wait: SpanNs::ZERO,
            group_interval: GROUP_INTERVAL_DEFAULT,
            repeat_interval: None,
            routes: vec![],
        };
        Self {
            settings: Settings::default(),
            root,
            receivers: [("none".to_owned(), Receiver::default())].into(),
        }
    }

    /// Where a label set goes, in file order, each receiver once. Never empty.
    pub fn route(&self, labels: &Labels) -> Vec<Routed<'_>> {
        let mut found: Vec<Routed<'_>> = vec![];
        walk(&self.root, labels, &mut found);
        let mut seen = std::collections::BTreeSet::new();
        found.retain(|r| seen.insert(r.receiver));
        found
    }
}

fn walk<'a>(route: &'a Route, labels: &Labels, found: &mut Vec<Routed<'a>>) -> bool {
    if !route.matchers.iter().all(|m| m.matches(labels)) {
        return false;
    }
    let mut taken = false;
    for child in &route.routes {
        if walk(child, labels, found) {
            taken = true;
            if !child.goes_on {
                break;
            }
        }
    }
    if !taken {
        found.push(Routed {
            receiver: &route.receiver,
            route,
        });
    }
    true
}

/// Why a routes file is refused, where, and what to change.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{file}{}: {what}; {fix}", line.map(|l| format!(":{l}")).unwrap_or_default())]
pub struct RoutesFileError {
    pub file: String,
    pub line: Option<usize>,
    pub what: String,
    pub fix: String,
}

impl Classify for RoutesFileError {
    fn class(&self) -> Class {
        Class::FixRequest
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    global: RawGlobal,
    route: Option<RawRoute>,
    #[serde(default)]
    receivers: Vec<RawReceiver>,
    // Known to Alertmanager, not done here yet: refused by name instead of as an unknown word.
    #[serde(default)]
    inhibit_rules: Vec<serde_norway::Value>,
    #[serde(default)]
    time_intervals: Vec<serde_norway::Value>,
    #[serde(default)]
    mute_time_intervals: Vec<serde_norway::Value>,
    #[serde(default)]
    templates: Vec<serde_norway::Value>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGlobal {
    smtp_smarthost: Option<String>,
    smtp_from: Option<String>,
    smtp_hello: Option<String>,
    smtp_require_tls: Option<bool>,
    smtp_auth_username: Option<String>,
    smtp_auth_password_file: Option<String>,
    smtp_auth_password_env: Option<String>,
    slack_api_url: Option<String>,
    slack_token_file: Option<String>,
    slack_token_env: Option<String>,
    /// Alertmanager's; rules here resolve by themselves.
    #[serde(rename = "resolve_timeout")]
    _resolve_timeout: Option<String>,
    cool_down: Option<String>,
    reopen_window: Option<String>,
    delivery_attempts_max: Option<u32>,
    delivery_pause_first: Option<String>,
    delivery_pause_max: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRoute {
    receiver: Option<String>,
    #[serde(default)]
    matchers: Vec<String>,
    #[serde(default, rename = "match")]
    equal: BTreeMap<String, String>,
    #[serde(default)]
    match_re: BTreeMap<String, String>,
    #[serde(default, rename = "continue")]
    goes_on: bool,
    group_by: Option<Vec<String>>,
    group_wait: Option<String>,
    group_interval: Option<String>,
    repeat_interval: Option<String>,
    #[serde(default)]
    routes: Vec<RawRoute>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReceiver {
    name: String,
    #[serde(default)]
    email_configs: Vec<RawEmail>,
    #[serde(default)]
    slack_configs: Vec<RawSlack>,
    #[serde(default)]
    webhook_configs: Vec<RawWebhook>,
    #[serde(default)]
    desk_configs: Vec<RawDesk>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEmail {
    to: OneOrMany,
    from: Option<String>,
    smarthost: Option<String>,
    hello: Option<String>,
    require_tls: Option<bool>,
    auth_username: Option<String>,
    auth_password_file: Option<String>,
    auth_password_env: Option<String>,
    send_resolved: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSlack {
    channel: String,
    api_url: Option<String>,
    token_file: Option<String>,
    token_env: Option<String>,
    send_resolved: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWebhook {
    url: String,
    secret_file: Option<String>,
    secret_env: Option<String>,
    #[serde(default)]
    allow_private: bool,
    send_resolved: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDesk {
    group: String,
    #[serde(default)]
    on_recovery: OnRecovery,
}

/// Reads and checks a routes file. `file` is its name in messages.
pub fn parse(file: &str, text: &str) -> Result<Routes, RoutesFileError> {
    let wrong = |line: Option<usize>, what: String, fix: &str| RoutesFileError {
        file: file.to_owned(),
        line,
        what,
        fix: fix.to_owned(),
    };
    if text.len() > ROUTES_FILE_BYTES_MAX {
        let what = format!("the file has {} bytes, more than {ROUTES_FILE_BYTES_MAX}", text.len());
        return Err(wrong(None, what, "make it smaller"));
    }
    let raw: RawFile = serde_norway::from_str(text).map_err(|e| {
        let line = e.location().map(|l| l.line());
        wrong(line, e.to_string(), "correct the YAML at that place")
    })?;
    check(&raw).map_err(|(what, fix)| wrong(None, what, &fix))
}

/// What is wrong, and what to do.
type Wrong = (String, String);

fn wrong<T>(what: impl Into<String>, fix: impl Into<String>) -> Result<T, Wrong> {
    Err((what.into(), fix.into()))
}

fn check(raw: &RawFile) -> Result<Routes, Wrong> {
    let absent = [
        ("inhibit_rules", raw.inhibit_rules.is_empty()),
        ("time_intervals", raw.time_intervals.is_empty()),
        ("mute_time_intervals", raw.mute_time_intervals.is_empty()),
        ("templates", raw.templates.is_empty()),
    ];
    if let Some((name, _)) = absent.iter().find(|(_, is_empty)| !is_empty) {
        return wrong(format!("`{name}` is not supported yet"), "remove it from this file");
    }
    let g = &raw.global;
    let settings = Settings {
        cool_down: span("cool_down", &g.cool_down)?.unwrap_or(COOL_DOWN_DEFAULT),
        reopen_window: span("reopen_window", &g.reopen_window)?.unwrap_or(REOPEN_WINDOW_DEFAULT),
        delivery_attempts_max: g.delivery_attempts_max.unwrap_or(ATTEMPTS_MAX_DEFAULT),
        delivery_pause_first: span("delivery_pause_first", &g.delivery_pause_first)?.unwrap_or(PAUSE_FIRST_DEFAULT),
        delivery_pause_max: span("delivery_pause_max", &g.delivery_pause_max)?.unwrap_or(PAUSE_MAX_DEFAULT),
    };
    if settings.delivery_attempts_max == 0 || settings.delivery_attempts_max > 100 {
        return wrong("`delivery_attempts_max` is out of range", "use 1 to 100");
    }
    if raw.receivers.len() > RECEIVERS_MAX {
        return wrong(format!("more than {RECEIVERS_MAX} receivers"), "merge some of them");
    }
    let mut receivers = BTreeMap::new();
    for receiver in &raw.receivers {
        let name = receiver.name.clone();
        if name.is_empty() || name.chars().any(char::is_control) {
            return wrong(format!("{name:?} cannot name a receiver"), "give it a plain name");
        }
        let checked = check_receiver(receiver, g).map_err(|(what, fix)| (format!("receiver {name:?}: {what}"), fix))?;
        if receivers.insert(name.clone(), checked).is_some() {
            return wrong(format!("receiver {name:?} occurs twice"), "rename one of them");
        }
    }
    let Some(root) = &raw.route else {
        return wrong("`route` is missing", "add `route: {receiver: NAME}`");
    };
    if !(root.matchers.is_empty() && root.equal.is_empty() && root.match_re.is_empty()) {
        return wrong(
            "the root route has matchers",
            "it must match everything; put them on a child",
        );
    }
    let above = Route {
        receiver: String::new(),
        ..Routes::none().root
    };
    let mut count = 0;
    let root = check_route(root, &above, &receivers, 0, &mut count)?;
    Ok(Routes {
        settings,
        root,
        receivers,
    })
}

fn span(field: &str, text: &Option<String>) -> Result<Option<SpanNs>, Wrong> {
    let Some(text) = text else { return Ok(None) };
    match SpanNs::parse(text) {
        Some(span) => Ok(Some(span)),
        None => wrong(
            format!("`{field}: {text}` is no duration"),
            "write it like 30s, 5m or 1h30m",
        ),
    }
}

fn check_route(
    raw: &RawRoute,
    above: &Route,
    receivers: &BTreeMap<String, Receiver>,
    depth: usize,
    count: &mut usize,
) -> Result<Route, Wrong> {
    *count += 1;
    if *count > ROUTES_MAX || depth > ROUTES_DEPTH_MAX {
        let what = format!("more than {ROUTES_MAX} routes, or deeper than {ROUTES_DEPTH_MAX}");
        return wrong(what, "make the tree smaller");
    }
    let receiver = raw.receiver.clone().unwrap_or_else(|| above.receiver.clone());
    if !receivers.contains_key(&receiver) {
        let known: Vec<_> = receivers.keys().take(10).cloned().collect();
        let what = format!("a route names receiver {receiver:?}, which does not exist");
        return wrong(what, format!("use one of: {}", known.join(", ")));
    }
    let mut matchers = vec![];
    for text in &raw.matchers {
        matchers.extend(parse_matchers(text)?);
    }
    let old = |map: &BTreeMap<String, String>, op| {
        map.iter()
            .map(move |(name, value)| RouteMatcher {
                name: name.clone(),
                op,
                value: value.clone(),
            })
            .collect::<Vec<_>>()
    };
    matchers.extend(old(&raw.equal, MatchOp::Equal));
    matchers.extend(old(&raw.match_re, MatchOp::Regex));
    for m in &matchers {
        Matcher::new(&m.name, m.op, &m.value).map_err(|e| (e.to_string(), "correct the matcher".to_owned()))?;
    }
    let mut route = Route {
        receiver,
        matchers,
        goes_on: raw.goes_on,
        group_by: raw.group_by.clone().unwrap_or_else(|| above.group_by.clone()),
        group_wait: span("group_wait", &raw.group_wait)?.unwrap_or(above.group_wait),
        group_interval: span("group_interval", &raw.group_interval)?.unwrap_or(above.group_interval),
        repeat_interval: span("repeat_interval", &raw.repeat_interval)?.or(above.repeat_interval),
        routes: vec![],
    };
    if route.repeat_interval.is_some_and(|r| r < SpanNs::from_secs(1)) {
        return wrong("`repeat_interval` is below 1s", "use a longer one");
    }
    for child in &raw.routes {
        let child = check_route(child, &route, receivers, depth + 1, count)?;
        route.routes.push(child);
    }
    Ok(route)
}

/// `severity="critical"`, `team=~"a|b"`, bare values, several separated by commas, with or without braces.
fn parse_matchers(text: &str) -> Result<Vec<RouteMatcher>, Wrong> {
    let bad = || {
        (
            format!("{text:?} is no matcher"),
            "write it like severity=\"critical\"".to_owned(),
        )
    };
    let trimmed = text.trim();
    let inner = trimmed
        .strip_prefix('{')
        .and_then(|t| t.strip_suffix('}'))
        .unwrap_or(trimmed);
    let (mut rest, mut found) = (inner.trim(), vec![]);
    while !rest.is_empty() {
        let at = rest.find(['=', '!']).ok_or_else(bad)?;
        let name = rest[..at].trim();
        let (op, len) = match &rest[at..] {
            r if r.starts_with("=~") => (MatchOp::Regex, 2),
            r if r.starts_with("!~") => (MatchOp::NotRegex, 2),
            r if r.starts_with("!=") => (MatchOp::NotEqual, 2),
            r if r.starts_with('=') => (MatchOp::Equal, 1),
            _ => return Err(bad()),
        };
        let (value, after) = matcher_value(rest[at + len..].trim_start()).ok_or_else(bad)?;
        let fits = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.".contains(&b));
        if !fits {
            return Err(bad());
        }
        found.push(RouteMatcher {
            name: name.to_owned(),
            op,
            value,
        });
        rest = match after.trim_start() {
            "" => "",
            r => r.strip_prefix(',').ok_or_else(bad)?.trim_start(),
        };
    }
    if found.is_empty() { Err(bad()) } else { Ok(found) }
}

/// A quoted or bare value, and what follows it.
fn matcher_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(',').unwrap_or(text.len());
        return Some((text[..end].trim().to_owned(), &text[end..]));
    };
    let (mut value, mut chars) = (String::new(), quoted.char_indices());
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[i + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                c @ ('"' | '\\') => value.push(c),
                c => value.extend(['\\', c]),
            },
            c => value.push(c),
        }
    }
    None
}

fn check_receiver(raw: &RawReceiver, global: &RawGlobal) -> Result<Receiver, Wrong> {
    let mut channels = vec![];
    for email in &raw.email_configs {
        channels.push(ReceiverChannel {
            send_resolved: email.send_resolved.unwrap_or(true),
            target: Target::Email(check_email(email, global)?),
        });
    }
    for slack in &raw.slack_configs {
        let own = secret("token", &slack.token_file, &slack.token_env)?;
        let token = match own {
            Some(token) => token,
            None => match secret("slack_token", &global.slack_token_file, &global.slack_token_env)? {
                Some(token) => token,
                None => return wrong("slack has no token", "add `token_file:` or `token_env:`"),
            },
        };
        let api_url = slack.api_url.as_ref().or(global.slack_api_url.as_ref());
        let api_url = api_url.map_or("https://slack.com/api", String::as_str);
        check_url(api_url)?;
        channels.push(ReceiverChannel {
            send_resolved: slack.send_resolved.unwrap_or(true),
            target: Target::Slack(SlackTarget {
                channel: slack.channel.clone(),
                api_url: api_url.trim_end_matches('/').to_owned(),
                token,
            }),
        });
    }
    for webhook in &raw.webhook_configs {
        check_url(&webhook.url)?;
        channels.push(ReceiverChannel {
            send_resolved: webhook.send_resolved.unwrap_or(true),
            target: Target::Webhook(WebhookTarget {
                url: webhook.url.clone(),
                secret: secret("secret", &webhook.secret_file, &webhook.secret_env)?,
                allow_private: webhook.allow_private,
            }),
        });
    }
    if channels.len() > CHANNELS_PER_RECEIVER_MAX {
        return wrong(
            format!("more than {CHANNELS_PER_RECEIVER_MAX} channels"),
            "use several receivers",
        );
    }
    if raw.desk_configs.len() > 1 {
        return wrong(
            "more than one entry in `desk_configs`",
            "an incident has one ticket: keep one",
        );
    }
    let desk = raw.desk_configs.first().map(|d| DeskReceiver {
        group: d.group.clone(),
        on_recovery: d.on_recovery,
    });
    Ok(Receiver { channels, desk })
}

fn check_email(email: &RawEmail, global: &RawGlobal) -> Result<EmailTarget, Wrong> {
    let pick = |own: &Option<String>, global: &Option<String>| own.clone().or_else(|| global.clone());
    let to = match &email.to {
        OneOrMany::One(list) => list.split(',').map(|a| a.trim().to_owned()).collect::<Vec<_>>(),
        OneOrMany::Many(list) => list.clone(),
    };
    let Some(from) = pick(&email.from, &global.smtp_from) else {
        return wrong("email has no sender", "add `from:`, or `smtp_from:` under `global`");
    };
    for address in to.iter().chain([&from]) {
        if !address.contains('@') || address.chars().any(char::is_control) {
            return wrong(
                format!("{address:?} is no mail address"),
                "write it like ops@example.com",
            );
        }
    }
    let Some(smarthost) = pick(&email.smarthost, &global.smtp_smarthost) else {
        return wrong(
            "email has no server",
            "add `smarthost: host:port`, or `smtp_smarthost:` under `global`",
        );
    };
    let Some((host, _)) = smarthost.rsplit_once(':').filter(|(_, p)| p.parse::<u16>().is_ok()) else {
        return wrong(
            format!("`smarthost: {smarthost}` has no port"),
            "write it like mail.example.com:587",
        );
    };
    let username = pick(&email.auth_username, &global.smtp_auth_username);
    let own = secret("auth_password", &email.auth_password_file, &email.auth_password_env)?;
    let password = match own {
        Some(p) => Some(p),
        None => secret(
            "smtp_auth_password",
            &global.smtp_auth_password_file,
            &global.smtp_auth_password_env,
        )?,
    };
    let auth = match (username, password) {
        (None, None) => None,
        (Some(username), Some(password)) => Some(EmailAuth { username, password }),
        _ => {
            let fix = "give `auth_username` and `auth_password_file`, or neither";
            return wrong("email has half of a login", fix);
        }
    };
    let is_loopback = is_loopback_host(host);
    let require_tls = email
        .require_tls
        .or(global.smtp_require_tls)
        .unwrap_or(!is_loopback || auth.is_some());
    if auth.is_some() && !require_tls && !is_loopback {
        return wrong("a password would be sent in clear", "set `require_tls: true`");
    }
    Ok(EmailTarget {
        to,
        from,
        smarthost,
        hello: pick(&email.hello, &global.smtp_hello),
        require_tls,
        auth,
    })
}

/// Whether a host's name or address is this machine's own.
pub fn is_loopback_host(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn check_url(url: &str) -> Result<(), Wrong> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let fits = rest.is_some_and(|r| {
        let host = r.split('/').next().unwrap_or("");
        // A login in a URL is a secret in a place where it is shown.
        !host.is_empty() && !host.contains('@') && r.chars().all(|c| c.is_ascii_graphic())
    });
    if fits {
        Ok(())
    } else {
        wrong(
            "a URL is not like https://host/path, or holds a login",
            "correct it; secrets go into files",
        )
    }
}

fn secret(field: &str, file: &Option<String>, env: &Option<String>) -> Result<Option<SecretRef>, Wrong> {
    match (file, env) {
        (None, None) => Ok(None),
        (Some(path), None) => Ok(Some(SecretRef::File(path.clone()))),
        (None, Some(name)) => Ok(Some(SecretRef::Env(name.clone()))),
        (Some(_), Some(_)) => wrong(
            format!("both `{field}_file` and `{field}_env` are given"),
            "keep one of them",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    const RECEIVERS: &str = "
receivers:
- {name: all}
- {name: web, desk_configs: [{group: web}]}
- {name: night}
";

    /// Label sets, one per line, and where they go.
    fn check(tree: &str, sets: &[&[(&str, &str)]], expect: Expect) {
        let routes = parse("routes.yml", &format!("{tree}{RECEIVERS}")).unwrap();
        let mut shown = String::new();
        for set in sets {
            let labels: Labels = set.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
            let found: Vec<_> = routes.route(&labels).iter().map(|r| r.receiver.to_owned()).collect();
            shown.push_str(&format!("{labels} -> {}\n", found.join(", ")));
        }
        expect.assert_eq(&shown);
    }

    #[test]
    fn the_first_child_takes_it_unless_it_goes_on_and_the_root_takes_the_rest() {
        check(
            "
route:
  receiver: all
  routes:
  - {receiver: night, matchers: ['severity=critical'], continue: true}
  - receiver: web
    matchers: ['team=~\"web|shop\", env!=\"test\"']
    routes:
    - {receiver: night, match: {tier: '1'}}
",
            &[
                &[("team", "web")],
                &[("team", "web"), ("severity", "critical")],
                &[("team", "web"), ("tier", "1")],
                &[("team", "web"), ("env", "test")],
                &[("team", "webs")],
            ],
            expect![[r#"
                {team="web"} -> web
                {severity="critical", team="web"} -> night, web
                {team="web", tier="1"} -> night
                {env="test", team="web"} -> all
                {team="webs"} -> all
            "#]],
        );
    }

    fn refused(text: &str, expect: Expect) {
        expect.assert_eq(&parse("routes.yml", text).unwrap_err().to_string());
    }

    #[test]
    fn a_broken_routes_file_says_what_and_how_to_mend_it() {
        refused(
            "{route: {receiver: gone}, receivers: [{name: here}]}",
            expect![[r#"routes.yml: a route names receiver "gone", which does not exist; use one of: here"#]],
        );
        refused(
            "{route: {receiver: a}, receivers: [{name: a}], inhibit_rules: [{}]}",
            expect!["routes.yml: `inhibit_rules` is not supported yet; remove it from this file"],
        );
        refused(
            "{route: {receiver: a}, receivers: [{name: a, slack_configs: [{channel: x}]}]}",
            expect![[r#"routes.yml: receiver "a": slack has no token; add `token_file:` or `token_env:`"#]],
        );
        refused(
            "{route: {receiver: a}, receivers: [{name: a, email_configs: [{to: a@b, from: c@d, smarthost: 'mail:25', \
             require_tls: false, auth_username: u, auth_password_env: P}]}]}",
            expect![[r#"routes.yml: receiver "a": a password would be sent in clear; set `require_tls: true`"#]],
        );
    }
}

//! The list of devices, and who may send traps.
//!
//! Pure: text in, [`SnmpConfig`] out, or why not, with the line. Secrets that stand elsewhere are asked for once, when the file is
//! read: a list whose secrets are not all there is refused like one that cannot be read.

use crate::panel::OWN_LABELS;
use crate::pdu::COMMUNITY_BYTES_MAX;
use crate::poll::{REPETITIONS_DEFAULT, REPETITIONS_MAX};
use crate::session::Access;
use crate::usm::{AuthProtocol, PASSWORD_BYTES_MAX, PASSWORD_BYTES_MIN, Stretched, USER_BYTES_MAX, User};
use hindcast_model::limits::{LABEL_NAME_BYTES_MAX, LABEL_VALUE_BYTES_MAX};
use hindcast_model::setting::{FromText, Parsed};
use hindcast_model::{SpanNs, TenantId};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

pub const CONFIG_BYTES_MAX: usize = 16 * 1024 * 1024;
pub const DEVICES_MAX: usize = 50_000;
/// Communities, and users, that may send traps.
pub const TRAP_SENDERS_MAX: usize = 256;
/// Labels of a device.
pub const LABELS_MAX: usize = 16;
pub const PORT_DEFAULT: u16 = 161;
pub const INTERVAL_DEFAULT: SpanNs = SpanNs::from_secs(60);
pub const INTERVAL_MIN: SpanNs = SpanNs::from_secs(1);
pub const INTERVAL_MAX: SpanNs = SpanNs::from_secs(86_400);
/// Of one question.
pub const TIMEOUT_DEFAULT: SpanNs = SpanNs::from_secs(2);
pub const RETRIES_DEFAULT: u32 = 2;
pub const RETRIES_MAX: u32 = 10;
pub const JOB_DEFAULT: &str = "snmp";

/// Why a list is refused.
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

/// Where a secret stands that is not in the file itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elsewhere {
    File(PathBuf),
    Variable(String),
}

/// One device, defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its `instance`.
    pub name: String,
    /// A host name or an address.
    pub host: String,
    pub port: u16,
    pub access: Access,
    pub job: String,
    pub tenant: TenantId,
    pub interval: SpanNs,
    pub timeout: SpanNs,
    pub retries: u32,
    pub repetitions: i32,
    pub labels: BTreeMap<String, String>,
}

impl Device {
    pub fn version(&self) -> &'static str {
        match self.access {
            Access::Community(_) => "2c",
            Access::User(_) => "3",
        }
    }

    pub fn address(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

/// Who may send traps and informs, and whose they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Senders {
    pub communities: Vec<Community>,
    pub users: Vec<User>,
    /// Of senders that are no devices of the list.
    pub tenant: TenantId,
    /// Devices of the list whose address is written there: names, tenants and labels.
    pub devices: BTreeMap<IpAddr, Sender>,
    /// Devices whose host name stands there: whoever looks it up puts them among the others.
    pub named: Vec<(String, Sender)>,
}

/// A community. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Community(pub Vec<u8>);

impl fmt::Debug for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    pub name: String,
    pub tenant: TenantId,
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnmpConfig {
    pub devices: Vec<Device>,
    pub senders: Senders,
}

impl FromText for AuthProtocol {
    fn from_text(text: &str) -> Result<Self, String> {
        Self::parse(text).ok_or_else(|| match text.to_ascii_uppercase().as_str() {
            "MD5" => "MD5 protects nothing any more and is not supported; set the device to SHA, or better SHA-256"
                .to_owned(),
            _ => format!("auth_protocol {text:?} is not known; write SHA, SHA-224, SHA-256, SHA-384 or SHA-512"),
        })
    }
}

struct Privacy;

impl FromText for Privacy {
    fn from_text(text: &str) -> Result<Self, String> {
        match text.to_ascii_uppercase().replace(['-', '_'], "").as_str() {
            "AES" | "AES128" => Ok(Self),
            "DES" | "3DES" => Err(format!("{text} is not supported; set the device to AES")),
            _ => Err(format!(
                "priv_protocol {text:?} is not supported; write AES (with 128 bits)"
            )),
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Version {
    V2c,
    V3,
}

impl FromText for Version {
    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "2" | "2c" | "v2c" => Ok(Self::V2c),
            "3" | "v3" => Ok(Self::V3),
            "1" | "v1" => Err("version 1 has no counters of 64 bits and is not supported; write 2c or 3".to_owned()),
            _ => Err(format!("version {text:?} is not known; write 2c or 3")),
        }
    }
}

/// `host`, `host:port` or `[address]:port`.
struct Address {
    host: String,
    port: u16,
}

impl FromText for Address {
    fn from_text(text: &str) -> Result<Self, String> {
        let bad = || format!("the address {text:?} is not like 10.0.0.1, sw-1.example.org:1161 or [2001:db8::1]:161");
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(bad)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
                (
                    host,
                    port.strip_prefix(':')
                        .or(port.is_empty().then_some("161"))
                        .ok_or_else(bad)?,
                )
            }
            None if text.parse::<IpAddr>().is_ok() => (text, "161"),
            None => text.split_once(':').unwrap_or((text, "161")),
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
        let port = port.parse().ok().filter(|p| *p > 0).ok_or_else(bad)?;
        match !host.is_empty() && host.len() <= 253 && host.chars().all(is_name) {
            true => Ok(Self {
                host: host.to_owned(),
                port,
            }),
            false => Err(bad()),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    defaults: RawDevice,
    #[serde(default)]
    devices: Vec<RawDevice>,
    #[serde(default)]
    traps: RawTraps,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawDevice {
    address: Option<Parsed<Address>>,
    name: Option<String>,
    version: Option<Parsed<Version>>,
    community: Option<String>,
    community_file: Option<PathBuf>,
    community_env: Option<String>,
    user: Option<String>,
    auth_protocol: Option<Parsed<AuthProtocol>>,
    auth_password: Option<String>,
    auth_password_file: Option<PathBuf>,
    auth_password_env: Option<String>,
    priv_protocol: Option<Parsed<Privacy>>,
    priv_password: Option<String>,
    priv_password_file: Option<PathBuf>,
    priv_password_env: Option<String>,
    interval: Option<Parsed<SpanNs>>,
    timeout: Option<Parsed<SpanNs>>,
    retries: Option<u32>,
    max_repetitions: Option<i32>,
    job: Option<String>,
    tenant: Option<Parsed<TenantId>>,
    labels: BTreeMap<String, Option<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTraps {
    tenant: Option<Parsed<TenantId>>,
    /// Each as a device says how it is spoken to.
    senders: Vec<RawDevice>,
}

/// Reads a list. `file` is its name in errors, `secret` gives what stands elsewhere.
pub fn parse(
    file: &str,
    text: &str,
    secret: &dyn Fn(&Elsewhere) -> Result<String, String>,
) -> Result<SnmpConfig, ConfigError> {
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
    resolve(raw, secret).map_err(|Wrong { at, why }| match at {
        At::File => bad(None, why),
        At::Device(n) => bad(line_of(text, "devices", n), why),
        At::Sender(n) => bad(line_of(text, "senders", n), why),
    })
}

/// An error of the reader in words that say what to do. What stands in the file is not among them: it may be a secret in a wrong place.
fn words(said: &str) -> String {
    // The place stands before the words already.
    let said = said.rsplit_once(" at line ").map_or(said, |(words, _)| words);
    if let Some((before, after)) = said.split_once("unknown field `") {
        let name = after.split('`').next().unwrap_or_default();
        let is_word = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
        return match name.find(|c| !is_word(c)) {
            None => format!("{before}{name} is not a setting that is known there; take it out or correct it"),
            // `community:secret` is one word.
            Some(end) => format!(
                "{before}{} is followed by something else than a colon and a space; correct it",
                &name[..end]
            ),
        };
    }
    for shown in ["invalid type: ", "invalid value: "] {
        if let Some((before, after)) = said.split_once(shown) {
            let wanted = after
                .rsplit_once(", expected ")
                .map_or("something else", |(_, wanted)| wanted);
            return match wanted.starts_with("struct Raw") {
                true => format!("{before}a map of settings is expected there; write each as name: value"),
                false => format!("{before}{wanted} is expected there"),
            };
        }
    }
    said.to_owned()
}

/// The line at which the entry with number `n` of a list begins, where each has a line of its own.
fn line_of(text: &str, list: &str, n: usize) -> Option<usize> {
    let mut lines = (1..).zip(text.lines());
    let (_, head) = lines.find(|(_, l)| l.trim_start().strip_prefix(list).is_some_and(|r| r.starts_with(':')))?;
    let outer = head.len() - head.trim_start().len();
    let indent_of = |l: &str| l.len() - l.trim_start().len();
    let mut items = lines.filter(|(_, l)| l.trim_start().starts_with("- ") || l.trim() == "-");
    let (first, line) = items.next()?;
    let indent = indent_of(line);
    if indent < outer {
        return None;
    }
    let others = items.filter(|(_, l)| indent_of(l) == indent).map(|(number, _)| number);
    [first].into_iter().chain(others).nth(n)
}

enum At {
    File,
    Device(usize),
    Sender(usize),
}

struct Wrong {
    at: At,
    why: String,
}

type Secrets<'a> = &'a dyn Fn(&Elsewhere) -> Result<String, String>;

fn resolve(raw: RawFile, secret: Secrets<'_>) -> Result<SnmpConfig, Wrong> {
    let wrong = |why: String| Wrong { at: At::File, why };
    if raw.defaults.address.is_some() || raw.defaults.name.is_some() {
        return Err(wrong("defaults: address and name belong to a device".to_owned()));
    }
    let (of_user, has_community) = (raw.defaults.of_user(), raw.defaults.has_community());
    if let Some(name) = of_user.filter(|_| has_community || raw.defaults.user.is_none()) {
        return Err(wrong(format!(
            "defaults: {name} is of a user, and none stands beside it; write user there, or take it out"
        )));
    }
    if raw.devices.len() > DEVICES_MAX {
        return Err(wrong(format!("there are more than {DEVICES_MAX} devices")));
    }
    if raw.traps.senders.len() > TRAP_SENDERS_MAX {
        return Err(wrong(format!("traps: there are more than {TRAP_SENDERS_MAX} senders")));
    }
    let mut keys = KeyRing::default();
    let mut config = SnmpConfig::default();
    config.senders.tenant = raw.traps.tenant.map(|t| t.0).unwrap_or_default();
    let (mut names, defaults) = (BTreeSet::new(), &raw.defaults);
    for (n, own) in raw.devices.into_iter().enumerate() {
        let at = |why: String| Wrong { at: At::Device(n), why };
        let device = device(own, defaults, secret, &mut keys).map_err(at)?;
        // What a device is known by: its series would be those of another one.
        if !names.insert((device.tenant.clone(), device.name.clone())) {
            let why = format!(
                "device {:?}: another device has this name; give each its own",
                device.name
            );
            return Err(at(why));
        }
        let sender = Sender {
            name: device.name.clone(),
            tenant: device.tenant.clone(),
            labels: device.labels.clone(),
        };
        match device.host.parse::<IpAddr>() {
            // Of two behind one address, the first.
            Ok(address) => _ = config.senders.devices.entry(address.to_canonical()).or_insert(sender),
            Err(_) => config.senders.named.push((device.host.clone(), sender)),
        }
        config.devices.push(device);
    }
    for (n, sender) in raw.traps.senders.into_iter().enumerate() {
        let at = |why: String| Wrong { at: At::Sender(n), why };
        if let Some(name) = sender.of_device() {
            return Err(at(format!(
                "a sender of traps has a community, or a user with its passwords, and nothing else: {name} is of a device"
            )));
        }
        match access(&sender, &RawDevice::default(), secret, &mut keys).map_err(at)? {
            Access::Community(community) => config.senders.communities.push(Community(community)),
            Access::User(user) if config.senders.users.iter().any(|u| u.name == user.name) => {
                return Err(at(format!("the user {:?} is there twice", user.name)));
            }
            Access::User(user) => config.senders.users.push(user),
        }
    }
    Ok(config)
}

/// Many devices have one password: it is stretched once.
#[derive(Default)]
struct KeyRing(BTreeMap<(AuthProtocol, String), Stretched>);

impl KeyRing {
    fn stretch(&mut self, protocol: AuthProtocol, password: String) -> Stretched {
        let key = (protocol, password);
        if let Some(known) = self.0.get(&key) {
            return known.clone();
        }
        let made = Stretched::new(protocol, key.1.as_bytes());
        self.0.insert(key, made.clone());
        made
    }
}

fn device(own: RawDevice, defaults: &RawDevice, secret: Secrets<'_>, keys: &mut KeyRing) -> Result<Device, String> {
    let Some(Parsed(address)) = &own.address else {
        return Err("a device has no address".to_owned());
    };
    let name = own
        .name
        .as_ref()
        .map_or_else(|| name_of(&address.host), |n| n.trim().to_owned());
    let told = |why: String| format!("device {name:?}: {why}");
    // What looks like a port is no part of what a device is known by.
    let like_port = name
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    if like_port {
        return Err(told(
            "a name does not end like a port; write it without the colon".to_owned(),
        ));
    }
    if name.is_empty() || name.len() > LABEL_NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(told(format!("a name has 1 to {LABEL_NAME_BYTES_MAX} bytes")));
    }
    let span = |own: &Option<Parsed<SpanNs>>, default: &Option<Parsed<SpanNs>>, least| {
        own.as_ref().or(default.as_ref()).map_or(least, |s| s.0)
    };
    let interval = span(&own.interval, &defaults.interval, INTERVAL_DEFAULT);
    let timeout = span(&own.timeout, &defaults.timeout, TIMEOUT_DEFAULT.min(interval));
    if interval < INTERVAL_MIN || interval > INTERVAL_MAX {
        return Err(told(format!(
            "the interval {interval} is not between {INTERVAL_MIN} and {INTERVAL_MAX}"
        )));
    }
    if timeout == SpanNs::ZERO || timeout > interval {
        return Err(told(format!(
            "the timeout {timeout} is zero, or greater than the interval {interval}"
        )));
    }
    let retries = own.retries.or(defaults.retries).unwrap_or(RETRIES_DEFAULT);
    if retries > RETRIES_MAX {
        return Err(told(format!("retries is more than {RETRIES_MAX}")));
    }
    let repetitions = own
        .max_repetitions
        .or(defaults.max_repetitions)
        .unwrap_or(REPETITIONS_DEFAULT);
    if !(1..=REPETITIONS_MAX).contains(&repetitions) {
        return Err(told(format!("max_repetitions is not between 1 and {REPETITIONS_MAX}")));
    }
    let mut labels = BTreeMap::new();
    for (label, value) in defaults.labels.iter().chain(&own.labels) {
        if OWN_LABELS.contains(&&**label) || label.starts_with("__") {
            return Err(told(format!(
                "the label {label} is given by the poll itself; choose another name"
            )));
        }
        let Some(value) = value else {
            return Err(told(format!("the label {label} has no value")));
        };
        let is_long = label.len() > LABEL_NAME_BYTES_MAX || value.len() > LABEL_VALUE_BYTES_MAX;
        if label.is_empty() || is_long || label.chars().any(char::is_control) {
            return Err(told(format!("{label:?} is no label, or its name or value is too long")));
        }
        labels.insert(label.clone(), value.clone());
    }
    if labels.len() > LABELS_MAX {
        return Err(told(format!("it has more than {LABELS_MAX} labels")));
    }
    let job = own
        .job
        .as_ref()
        .or(defaults.job.as_ref())
        .map_or(JOB_DEFAULT, |j| j.trim());
    if job.is_empty() || job.len() > LABEL_NAME_BYTES_MAX || job.chars().any(char::is_control) {
        return Err(told(format!("a job has 1 to {LABEL_NAME_BYTES_MAX} bytes")));
    }
    let tenant = own.tenant.as_ref().or(defaults.tenant.as_ref()).map(|t| t.0.clone());
    Ok(Device {
        access: access(&own, defaults, secret, keys).map_err(told)?,
        host: address.host.clone(),
        port: address.port,
        job: job.to_owned(),
        tenant: tenant.unwrap_or_default(),
        interval,
        timeout,
        retries,
        repetitions,
        labels,
        name,
    })
}

/// What a device is called that has no other name. Of IPv6 with brackets, so that its end is not taken for a port.
pub fn name_of(host: &str) -> String {
    match host.contains(':') {
        true => format!("[{host}]"),
        false => host.to_owned(),
    }
}

/// A secret in one of its three places.
fn read_secret(
    name: &str,
    text: &Option<String>,
    file: &Option<PathBuf>,
    variable: &Option<String>,
    secret: Secrets<'_>,
) -> Result<Option<String>, String> {
    let given = [text.is_some(), file.is_some(), variable.is_some()];
    if given.iter().filter(|is| **is).count() > 1 {
        return Err(format!("{name}, {name}_file and {name}_env: name one of them"));
    }
    let elsewhere = match (text, file, variable) {
        (Some(text), ..) => return Ok(Some(text.clone())),
        (_, Some(file), _) => Elsewhere::File(file.clone()),
        (.., Some(variable)) => Elsewhere::Variable(variable.clone()),
        _ => return Ok(None),
    };
    let read = secret(&elsewhere).map_err(|why| format!("{name}: {why}"))?;
    Ok(Some(read.trim_end_matches(['\r', '\n']).to_owned()))
}

impl RawDevice {
    const fn has_community(&self) -> bool {
        self.community.is_some() || self.community_file.is_some() || self.community_env.is_some()
    }

    const fn speaks(&self) -> bool {
        self.has_community() || self.user.is_some()
    }

    /// A setting that says something of a user only.
    fn of_user(&self) -> Option<&'static str> {
        let all = [
            ("auth_protocol", self.auth_protocol.is_some()),
            ("auth_password", self.auth_password.is_some()),
            ("auth_password_file", self.auth_password_file.is_some()),
            ("auth_password_env", self.auth_password_env.is_some()),
            ("priv_protocol", self.priv_protocol.is_some()),
            ("priv_password", self.priv_password.is_some()),
            ("priv_password_file", self.priv_password_file.is_some()),
            ("priv_password_env", self.priv_password_env.is_some()),
        ];
        all.into_iter().find_map(|(name, is_given)| is_given.then_some(name))
    }

    /// A setting that does not say how something is spoken to.
    fn of_device(&self) -> Option<&'static str> {
        let all = [
            ("address", self.address.is_some()),
            ("name", self.name.is_some()),
            ("interval", self.interval.is_some()),
            ("timeout", self.timeout.is_some()),
            ("retries", self.retries.is_some()),
            ("max_repetitions", self.max_repetitions.is_some()),
            ("job", self.job.is_some()),
            ("tenant", self.tenant.is_some()),
            ("labels", !self.labels.is_empty()),
        ];
        all.into_iter().find_map(|(name, is_given)| is_given.then_some(name))
    }
}

/// How a device is spoken to: as it says itself, or else as the defaults do. Never half of each.
fn access(own: &RawDevice, defaults: &RawDevice, secret: Secrets<'_>, keys: &mut KeyRing) -> Result<Access, String> {
    let from = if own.speaks() { own } else { defaults };
    // What is not looked at would leave a device in the clear of which the list says otherwise.
    if let Some(name) = own.of_user().filter(|_| own.user.is_none()) {
        return Err(match own.has_community() {
            true => format!("{name} is of a user, and beside it stands a community; take one of them out"),
            false => format!(
                "{name} is of a user, and none stands beside it; write user and its passwords there, too: of the defaults \
                 they are taken all or none"
            ),
        });
    }
    let community = read_secret(
        "community",
        &from.community,
        &from.community_file,
        &from.community_env,
        secret,
    )?;
    let version = own.version.as_ref().or(from.version.as_ref()).map(|v| v.0);
    let user = match (community, &from.user) {
        (None, None) => return Err("it has neither a community (version 2c) nor a user (version 3)".to_owned()),
        (Some(_), Some(_)) => return Err("community and user: name one of them".to_owned()),
        (Some(_), None) if version == Some(Version::V3) => {
            return Err("version 3 has a user and not a community".to_owned());
        }
        (Some(community), None) => {
            return match (1..=COMMUNITY_BYTES_MAX).contains(&community.len()) {
                true => Ok(Access::Community(community.into_bytes())),
                false => Err(format!("a community has 1 to {COMMUNITY_BYTES_MAX} bytes")),
            };
        }
        (None, Some(_)) if version == Some(Version::V2c) => {
            return Err("version 2c has a community and not a user".to_owned());
        }
        (None, Some(user)) => user,
    };
    if !(1..=USER_BYTES_MAX).contains(&user.len()) {
        return Err(format!("a user has 1 to {USER_BYTES_MAX} bytes"));
    }
    let auth = read_secret(
        "auth_password",
        &from.auth_password,
        &from.auth_password_file,
        &from.auth_password_env,
        secret,
    )?;
    let privacy = read_secret(
        "priv_password",
        &from.priv_password,
        &from.priv_password_file,
        &from.priv_password_env,
        secret,
    )?;
    let Some(auth) = auth else {
        return Err(format!(
            "user {user:?} has no auth_password: what is not signed may be anybody's, and is not supported"
        ));
    };
    if from.priv_protocol.is_some() && privacy.is_none() {
        return Err(format!("user {user:?} has a priv_protocol and no priv_password"));
    }
    for password in [Some(&auth), privacy.as_ref()].into_iter().flatten() {
        if !(PASSWORD_BYTES_MIN..=PASSWORD_BYTES_MAX).contains(&password.len()) {
            return Err(format!(
                "a password of user {user:?} has not {PASSWORD_BYTES_MIN} to {PASSWORD_BYTES_MAX} bytes"
            ));
        }
    }
    let protocol = from.auth_protocol.as_ref().map_or(AuthProtocol::Sha1, |p| p.0);
    Ok(Access::User(User {
        name: user.clone(),
        protocol,
        auth: keys.stretch(protocol, auth),
        privacy: privacy.map(|p| keys.stretch(protocol, p)),
    }))
}

/// Where a path stands that is not absolute: beside the list.
pub fn beside(elsewhere: &Elsewhere, folder: &Path) -> Elsewhere {
    match elsewhere {
        Elsewhere::File(path) => Elsewhere::File(folder.join(path)),
        Elsewhere::Variable(name) => Elsewhere::Variable(name.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use std::fmt::Write;

    fn secrets(elsewhere: &Elsewhere) -> Result<String, String> {
        match elsewhere {
            Elsewhere::File(path) if path == Path::new("there") => Ok("of the file\n".to_owned()),
            Elsewhere::Variable(name) if name == "THERE" => Ok("of the variable".to_owned()),
            other => Err(format!("{other:?} is not there")),
        }
    }

    fn check(text: &str, expect: Expect) {
        let mut out = String::new();
        match parse("devices.yml", text, &secrets) {
            Err(why) => out = why.to_string(),
            Ok(config) => {
                for d in &config.devices {
                    let access = match &d.access {
                        Access::Community(c) => String::from_utf8_lossy(c).into_owned(),
                        Access::User(u) => format!(
                            "{} {}{}",
                            u.name,
                            u.protocol.as_str(),
                            if u.privacy.is_some() { " AES" } else { "" }
                        ),
                    };
                    writeln!(
                        out,
                        "{} at {} v{} {access:?} every {} within {} again {} by {} {}/{} {:?}",
                        d.name,
                        d.address(),
                        d.version(),
                        d.interval,
                        d.timeout,
                        d.retries,
                        d.repetitions,
                        d.tenant,
                        d.job,
                        d.labels
                    )
                    .unwrap();
                }
                let s = &config.senders;
                writeln!(
                    out,
                    "traps: {} communities, {} users, {:?} of {}",
                    s.communities.len(),
                    s.users.len(),
                    s.devices.keys().collect::<Vec<_>>(),
                    s.tenant
                )
                .unwrap();
            }
        }
        expect.assert_eq(&out);
    }

    #[test]
    fn devices_say_what_differs_from_the_defaults() {
        check(
            "
defaults: {community_env: THERE, interval: 30s, labels: {site: seoul}}
devices:
- address: 10.0.0.1
  name: sw-core-1
  labels: {rack: 7}
- {address: 'sw-2.example.org:1161', version: 2c, community: 12345, interval: 5m, timeout: 1s, retries: 0, max_repetitions: 5}
- address: '[2001:db8::1]:161'
  version: 3
  user: ops
  auth_protocol: sha256
  auth_password_file: there
  priv_protocol: AES
  priv_password_env: THERE
  tenant: team-a
  job: network
traps:
  tenant: team-b
  senders: [{community: traps}, {user: ops, auth_password: long enough}]
",
            expect![[r#"
                sw-core-1 at 10.0.0.1:161 v2c "of the variable" every 30s within 2s again 2 by 20 default/snmp {"rack": "7", "site": "seoul"}
                sw-2.example.org at sw-2.example.org:1161 v2c "12345" every 5m within 1s again 0 by 5 default/snmp {"site": "seoul"}
                [2001:db8::1] at [2001:db8::1]:161 v3 "ops SHA-256 AES" every 30s within 2s again 2 by 20 team-a/network {"site": "seoul"}
                traps: 1 communities, 1 users, [10.0.0.1, 2001:db8::1] of team-b
            "#]],
        );
    }

    #[test]
    fn a_mistake_says_where_it_is_and_what_to_do() {
        for (text, expect) in [
            (
                "devices:\n- address: 10.0.0.1\n  comunity: x\n",
                expect![
                    "devices.yml:3: devices[0]: comunity is not a setting that is known there; take it out or correct it"
                ],
            ),
            (
                "devices:\n- address: 10.0.0.1\n  community: x\n- address: 10.0.0.2\n",
                expect![[
                    r#"devices.yml:4: device "10.0.0.2": it has neither a community (version 2c) nor a user (version 3)"#
                ]],
            ),
            (
                "devices:\n- address: a b\n  community: x\n",
                expect![[
                    r#"devices.yml:2: devices[0].address: the address "a b" is not like 10.0.0.1, sw-1.example.org:1161 or [2001:db8::1]:161"#
                ]],
            ),
            (
                "devices:\n- community: x\n",
                expect!["devices.yml:2: a device has no address"],
            ),
            (
                "devices:\n- address: a\n  interval: fast\n",
                expect![[r#"devices.yml:3: devices[0].interval: "fast" is no length of time; write 15s or 1m30s"#]],
            ),
            (
                "devices:\n- {address: a, community: x}\n- {address: b, name: a, community: x}\n",
                expect![[r#"devices.yml:3: device "a": another device has this name; give each its own"#]],
            ),
            (
                "devices:\n- {address: a, community: x, version: 1}\n",
                expect![
                    "devices.yml:2: devices[0].version: version 1 has no counters of 64 bits and is not supported; write 2c or 3"
                ],
            ),
            (
                "devices:\n- {address: a, community: x, version: 3}\n",
                expect![[r#"devices.yml:2: device "a": version 3 has a user and not a community"#]],
            ),
            (
                "devices:\n- {address: a, community: x, community_env: y}\n",
                expect![[
                    r#"devices.yml:2: device "a": community, community_file and community_env: name one of them"#
                ]],
            ),
            (
                "devices:\n- {address: a, community_env: GONE}\n",
                expect![[r#"devices.yml:2: device "a": community: Variable("GONE") is not there"#]],
            ),
            (
                "devices:\n- {address: a, community: x, labels: {ifName: y}}\n",
                expect![[
                    r#"devices.yml:2: device "a": the label ifName is given by the poll itself; choose another name"#
                ]],
            ),
            (
                "devices:\n- {address: a, community: x, interval: 1s, timeout: 2s}\n",
                expect![[r#"devices.yml:2: device "a": the timeout 2s is zero, or greater than the interval 1s"#]],
            ),
            (
                "devices:\n- {address: a, user: u}\n",
                expect![[
                    r#"devices.yml:2: device "a": user "u" has no auth_password: what is not signed may be anybody's, and is not supported"#
                ]],
            ),
            (
                "devices:\n- {address: a, user: u, auth_password: short}\n",
                expect![[r#"devices.yml:2: device "a": a password of user "u" has not 8 to 1024 bytes"#]],
            ),
            (
                "devices:\n- {address: a, user: u, auth_password: long enough, auth_protocol: MD5}\n",
                expect![
                    "devices.yml:2: devices[0].auth_protocol: MD5 protects nothing any more and is not supported; set the device to SHA, or better SHA-256"
                ],
            ),
            (
                "devices:\n- {address: a, user: u, auth_password: long enough, priv_protocol: DES}\n",
                expect!["devices.yml:2: devices[0].priv_protocol: DES is not supported; set the device to AES"],
            ),
            (
                "traps:\n  senders:\n  - {community: x}\n  - {name: y, community: x}\n",
                expect![
                    "devices.yml:4: a sender of traps has a community, or a user with its passwords, and nothing else: name is of a device"
                ],
            ),
            (
                "devices:\n- {address: a, name: 'b:1', community: x}\n",
                expect![[
                    r#"devices.yml:2: device "b:1": a name does not end like a port; write it without the colon"#
                ]],
            ),
            (
                "defaults: {address: a}\n",
                expect!["devices.yml: defaults: address and name belong to a device"],
            ),
        ] {
            check(text, expect);
        }
    }

    /// It was polled in the clear, though its entry had a password for privacy.
    #[test]
    fn a_password_that_would_be_passed_over_is_refused_with_its_line() {
        let of_user = [
            "auth_protocol: SHA",
            "auth_password: long enough",
            "auth_password_file: there",
            "auth_password_env: THERE",
            "priv_protocol: AES",
            "priv_password: long enough",
            "priv_password_file: there",
            "priv_password_env: THERE",
        ];
        for setting in of_user {
            let name = setting.split(':').next().unwrap();
            for (text, place) in [
                (
                    format!(
                        "defaults: {{user: u, auth_password: long enough}}\ndevices:\n- address: a\n- {{address: b, {setting}}}\n"
                    ),
                    format!("f:4: device \"b\": {name} is of a user, and none stands beside it"),
                ),
                (
                    format!("devices:\n- {{address: a, community: x, {setting}}}\n"),
                    format!("f:2: device \"a\": {name} is of a user, and beside it stands a community"),
                ),
                (
                    format!("traps:\n  senders:\n  - {{community: x, {setting}}}\n"),
                    format!("f:3: {name} is of a user, and beside it stands a community"),
                ),
                (
                    format!("traps:\n  senders:\n  - {{{setting}}}\n"),
                    format!("f:3: {name} is of a user, and none stands beside it"),
                ),
                (
                    format!(
                        "defaults: {{{setting}}}\ndevices: [{{address: a, user: u, auth_password: long enough}}]\n"
                    ),
                    format!("f: defaults: {name} is of a user, and none stands beside it"),
                ),
                (
                    format!("defaults: {{community: x, {setting}}}\n"),
                    format!("f: defaults: {name} is of a user, and none stands beside it"),
                ),
            ] {
                let said = parse("f", &text, &secrets).expect_err(&text).to_string();
                assert!(said.starts_with(&place), "{text}{said}");
            }
        }
    }

    #[test]
    fn a_sender_of_traps_has_nothing_that_would_be_passed_over() {
        for setting in [
            "address: a",
            "name: a",
            "interval: 1s",
            "timeout: 1s",
            "retries: 1",
            "max_repetitions: 1",
            "job: a",
            "tenant: a",
            "labels: {a: b}",
        ] {
            let text = format!("traps:\n  senders:\n  - {{community: x, {setting}}}\n");
            let said = parse("f", &text, &secrets).expect_err(&text).to_string();
            let name = setting.split(':').next().unwrap();
            assert!(
                said.starts_with("f:3: a sender of traps") && said.ends_with(&format!("{name} is of a device")),
                "{said}"
            );
        }
    }

    /// A community of 0x1F was 31 to the device.
    #[test]
    fn a_secret_that_looks_like_a_number_is_what_is_written() {
        for written in [
            "0x1F",
            "0o17",
            "007",
            "1e3",
            "12345678.50",
            "true",
            "+5",
            "12345678901234567890123",
            ".inf",
        ] {
            let text = format!("devices: [{{address: a, community: {written}}}]");
            let config = parse("f", &text, &secrets).expect(written);
            assert_eq!(config.devices[0].access, Access::Community(written.into()));
        }
        let of = |password: &str| {
            let text = format!("devices: [{{address: a, user: u, auth_password: {password}}}]");
            parse("f", &text, &secrets).expect(password).devices[0].access.clone()
        };
        assert_eq!(of("12345678.50"), of("'12345678.50'"));
        assert_ne!(of("12345678.50"), of("12345678.5"));
        let said = parse("f", "devices: [{address: a, community: x, labels: {site: }}]", &secrets).unwrap_err();
        assert!(said.why.ends_with("the label site has no value"), "{said}");
    }

    #[test]
    fn no_error_shows_a_secret() {
        for secret in ["opensesame", "12345678.5", "0x1234567890", "-12345678", "short"] {
            for text in [
                "devices: [{address: a, community: [SECRET]}]",
                "devices: [{address: a, community: {SECRET: SECRET}}]",
                "devices: [{address: a, community: SECRET, user: u}]",
                "devices: [{address: a, community: SECRET, version: 3}]",
                "devices: [{address: a, community: SECRET, community_env: THERE}]",
                "devices: [{address: a, community:SECRET}]",
                "devices: [{address: a, 'community SECRET': x}]",
                "devices: [{address: a, user: u, auth_password: SECRET, priv_protocol: AES}]",
                "devices: [{address: a, user: u, auth_password: SECRET, priv_password: x}]",
                "devices: [{address: a, user: u, auth_password: !!null SECRET}]",
                "devices: [{address: a, community: x, auth_password: SECRET}]",
                "devices: [{address: a, auth_password: SECRET}]",
                "devices:\n- address: a\n  community: SECRET\n   user: u",
                "devices: [SECRET]",
                "devices: SECRET",
                "traps: SECRET",
                "traps: {senders: SECRET}",
                "traps: {senders: [SECRET]}",
                "traps: {senders: [{community: SECRET, tenant: a}]}",
                "traps: {senders: [{community: [SECRET]}]}",
                "traps: {senders: [{user: u, auth_password: SECRET, priv_password: x}]}",
                "SECRET",
            ] {
                let text = text.replace("SECRET", secret);
                let said = parse("f", &text, &secrets).expect_err(&text).to_string();
                assert!(!said.contains(secret) && !said.contains("345678"), "{text}: {said}");
            }
        }
    }

    #[test]
    fn lists_and_labels_are_bounded() {
        let said = |text: &str| parse("f", text, &secrets).unwrap_err().why;
        let many = |n: usize, what: &str| vec![what; n].join(",");
        assert!(said(&format!("devices: [{}]", many(DEVICES_MAX + 1, "{}"))).contains("more than 50000 devices"));
        let senders = format!("traps: {{senders: [{}]}}", many(TRAP_SENDERS_MAX + 1, "{community: x}"));
        assert!(said(&senders).contains("more than 256 senders"));
        let labels: Vec<_> = (0..=LABELS_MAX).map(|n| format!("l{n}: x")).collect();
        let device = format!(
            "devices: [{{address: a, community: x, labels: {{{}}}}}]",
            labels.join(",")
        );
        assert!(said(&device).contains("more than 16 labels"));
        assert!(said(&"#".repeat(CONFIG_BYTES_MAX + 1)).contains("bytes"));
        let community = format!(
            "devices: [{{address: a, community: {}}}]",
            "x".repeat(COMMUNITY_BYTES_MAX + 1)
        );
        assert!(said(&community).contains("1 to 256 bytes"));
    }

    #[test]
    fn secrets_are_not_shown() {
        let text = "devices: [{address: a, community: opensesame}, {address: b, user: u, auth_password: opensesame}]\ntraps: {senders: [{community: opensesame}]}";
        let shown = format!("{:?}", parse("f", text, &secrets).unwrap());
        assert!(!shown.contains("opensesame") && !shown.contains("111, 112"), "{shown}");
    }
}

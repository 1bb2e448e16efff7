//! Rows of the gateway's tree: their keys, their types, and how others read them.
//!
//! Keys: `group/`, `rules/`, `routes/`, `alert/`, `incident/`, `effect/` hold the rows; `alert_of/` (by rule),
//! `incident_of/` (by tenant, newest first), `effect_of/` (by incident), `due/` (deliveries by time), `timer/`,
//! `cut_due/`, `owner/` (correlation keys), `thread/` and `counter/` lead to them. Numbers and times in keys are
//! big-endian, so that the order of keys is theirs.

use crate::alert::AlertRow;
use crate::command::{CutOf, GATEWAY_PART, GroupKey};
use crate::event::IncidentState;
use crate::incident::IncidentRow;
use crate::outbox::{EffectKey, EffectRow, Lease, Receipt, ReceiverRef};
use crate::route::Routes;
use crate::rule::{Rule, RuleGroup};
use hindcast_model::codec::{self, DecodeError};
use hindcast_model::{IncidentId, Labels, SpanNs, TenantId, TimestampNs};
use hindcast_raft::meta::Rows;
use hindcast_raft::{MetaRead, MetaTx};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Rows that one call of a list returns.
pub const LIST_MAX: usize = 10_000;
/// By how much the instant that another node asked about may be ahead of a node's wall clock: corrected clocks differ.
const AHEAD_MAX: SpanNs = SpanNs::from_secs(2);

/// Where rows are read: the applied state, or the transaction of a command.
pub trait RowSource {
    fn row(&self, key: &[u8]) -> Option<Vec<u8>>;
    fn rows(&self, prefix: &[u8], from: Option<&[u8]>, limit: usize) -> Rows;
}

impl RowSource for &dyn MetaRead {
    fn row(&self, key: &[u8]) -> Option<Vec<u8>> {
        MetaRead::get(*self, GATEWAY_PART, key)
    }
    fn rows(&self, prefix: &[u8], from: Option<&[u8]>, limit: usize) -> Rows {
        MetaRead::scan(*self, GATEWAY_PART, prefix, from, limit)
    }
}

impl RowSource for MetaTx<'_> {
    fn row(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.get(GATEWAY_PART, key)
    }
    fn rows(&self, prefix: &[u8], from: Option<&[u8]>, limit: usize) -> Rows {
        self.scan(GATEWAY_PART, prefix, from, limit)
    }
}

/// A rule group, its lease and how its last evaluation went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupRow {
    pub key: GroupKey,
    pub revision: String,
    pub group: RuleGroup,
    pub lease: Option<Lease>,
    /// The last instant that was accepted.
    pub evaluated_at: Option<TimestampNs>,
    pub partial: bool,
    pub missing: Vec<String>,
    /// One per rule, in order.
    pub health: Vec<RuleHealth>,
}

impl GroupRow {
    /// The last accepted instant, where that lies ahead of the wall clock: one ran ahead and was set back.
    pub fn set_back_from(&self, wall: TimestampNs) -> Option<TimestampNs> {
        self.evaluated_at.filter(|last| last.since(wall) > AHEAD_MAX)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleHealth {
    pub series: u64,
    pub firing: u64,
    pub pending: u64,
    pub error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoutesRow {
    pub revision: String,
    pub routes: Routes,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceRow {
    pub tenant: TenantId,
    pub source: String,
    pub revision: String,
    pub groups: Vec<String>,
}

/// All messages about one incident to one channel of a receiver.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThreadRow {
    pub root: EffectKey,
    pub last: EffectKey,
    pub generation: u64,
    /// Messages of this generation so far.
    pub step: u64,
    /// Of the last delivered message of this generation.
    pub receipt: Option<Receipt>,
}

/// What is to happen at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Timer {
    CoolDown { incident: IncidentId, generation: u64 },
    Remind { incident: IncidentId, generation: u64 },
    ForgetEffect { key: EffectKey },
}

/// A cut that an incident waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutDue {
    pub tenant: TenantId,
    pub incident: IncidentId,
    pub generation: u64,
    pub which: CutOf,
    pub due: TimestampNs,
}

/// Which incident owns a correlation key, and when an alert with it fired last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerRow {
    pub incident: IncidentId,
    pub at: TimestampNs,
}

fn time(at: TimestampNs) -> [u8; 8] {
    // Flipping the sign bit puts negative times before positive ones.
    ((at.0 as u64) ^ (1 << 63)).to_be_bytes()
}

fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// Keys of the rows.
pub mod key {
    use super::*;

    pub fn source(tenant: &TenantId, source: &str) -> Vec<u8> {
        joined(&[b"rules/", tenant.as_str().as_bytes(), b"\0", source.as_bytes()])
    }
    pub fn groups_of(tenant: &TenantId, source: &str) -> Vec<u8> {
        joined(&[b"group/", tenant.as_str().as_bytes(), b"\0", source.as_bytes(), b"\0"])
    }
    pub fn group(k: &GroupKey) -> Vec<u8> {
        joined(&[&groups_of(&k.tenant, &k.source), k.group.as_bytes()])
    }
    pub fn routes(tenant: Option<&TenantId>) -> Vec<u8> {
        joined(&[b"routes/", tenant.map_or(b"".as_slice(), |t| t.as_str().as_bytes())])
    }
    pub fn alert(tenant: &TenantId, id: &str) -> Vec<u8> {
        joined(&[b"alert/", tenant.as_str().as_bytes(), b"\0", id.as_bytes()])
    }
    pub fn alerts_of(rule_id: &str) -> Vec<u8> {
        joined(&[b"alert_of/", rule_id.as_bytes(), b"/"])
    }
    pub fn alert_of(rule_id: &str, id: &str) -> Vec<u8> {
        joined(&[&alerts_of(rule_id), id.as_bytes()])
    }
    pub fn incident(id: IncidentId) -> Vec<u8> {
        joined(&[b"incident/", &id.0.to_be_bytes()])
    }
    /// Newest first.
    pub fn incident_of(tenant: &TenantId, id: IncidentId) -> Vec<u8> {
        joined(&[&incidents_of(tenant), &(!id.0).to_be_bytes()])
    }
    pub fn incidents_of(tenant: &TenantId) -> Vec<u8> {
        joined(&[b"incident_of/", tenant.as_str().as_bytes(), b"\0"])
    }
    pub fn effect(key: &EffectKey) -> Vec<u8> {
        joined(&[b"effect/", key.0.as_bytes()])
    }
    pub fn effects_of(incident: IncidentId) -> Vec<u8> {
        joined(&[b"effect_of/", &incident.0.to_be_bytes()])
    }
    /// `index`: of the command that made it, so that effects list in the order of their making.
    pub fn effect_of(incident: IncidentId, made_at: TimestampNs, key: &EffectKey) -> Vec<u8> {
        joined(&[&effects_of(incident), &time(made_at), key.0.as_bytes()])
    }
    pub fn due(at: TimestampNs, key: &EffectKey) -> Vec<u8> {
        joined(&[b"due/", &time(at), key.0.as_bytes()])
    }
    /// `name` keeps timers of one instant apart.
    pub fn timer(at: TimestampNs, name: &str) -> Vec<u8> {
        joined(&[b"timer/", &time(at), name.as_bytes()])
    }
    pub fn cut_due(d: &CutDue) -> Vec<u8> {
        let which = [d.which as u8];
        joined(&[
            b"cut_due/",
            &time(d.due),
            &d.incident.0.to_be_bytes(),
            &d.generation.to_be_bytes(),
            &which,
        ])
    }
    pub fn owner(tenant: &TenantId, key: &str) -> Vec<u8> {
        joined(&[b"owner/", tenant.as_str().as_bytes(), b"\0", key.as_bytes()])
    }
    pub fn thread(incident: IncidentId, receiver: &ReceiverRef) -> Vec<u8> {
        let channel = receiver.channel.to_be_bytes();
        joined(&[
            b"thread/",
            &incident.0.to_be_bytes(),
            &channel,
            receiver.name.as_bytes(),
        ])
    }
    pub const INCIDENT_COUNTER: &[u8] = b"counter/incident";

    /// The time in a key of `due/`, `timer/` or `cut_due/`.
    pub fn time_of(prefix: &[u8], key: &[u8]) -> Option<TimestampNs> {
        let bytes = key.strip_prefix(prefix)?.get(..8)?;
        let flipped = u64::from_be_bytes(bytes.try_into().ok()?) ^ (1 << 63);
        Some(TimestampNs(flipped as i64))
    }
}

/// Names a rule for good; alerts carry it.
pub fn rule_id(group: &GroupKey, rule: &Rule) -> String {
    let mut h = blake3::Hasher::new_derive_key("hindcast 2026 rule id");
    for part in [group.tenant.as_str(), &group.source, &group.group, &rule.name] {
        h.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    h.update(&rule.nth.to_le_bytes());
    h.finalize().to_hex()[..32].to_owned()
}

/// Names an alert for good: its rule and the labels of its series.
pub fn alert_id(rule_id: &str, series: &Labels) -> String {
    let mut h = blake3::Hasher::new_derive_key("hindcast 2026 alert id");
    h.update(rule_id.as_bytes());
    for (name, value) in series.iter() {
        for part in [name, value] {
            h.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
    }
    h.finalize().to_hex()[..32].to_owned()
}

pub(crate) fn load<T: DeserializeOwned>(source: &impl RowSource, key: &[u8]) -> Result<Option<T>, DecodeError> {
    source.row(key).map(|bytes| codec::from_bytes(&bytes)).transpose()
}

fn load_all<T: DeserializeOwned>(rows: Rows) -> Result<Vec<T>, DecodeError> {
    rows.iter().map(|(_, value)| codec::from_bytes(value)).collect()
}

/// Every rule group, of all tenants or of one.
pub fn rule_groups(read: &dyn MetaRead, tenant: Option<&TenantId>) -> Result<Vec<GroupRow>, DecodeError> {
    let prefix = match tenant {
        Some(t) => joined(&[b"group/", t.as_str().as_bytes(), b"\0"]),
        None => b"group/".to_vec(),
    };
    load_all(read.scan(GATEWAY_PART, &prefix, None, LIST_MAX))
}

/// Rule files of a tenant, with their revisions.
pub fn rule_sources(read: &dyn MetaRead, tenant: &TenantId) -> Result<Vec<SourceRow>, DecodeError> {
    load_all(read.scan(GATEWAY_PART, &key::source(tenant, ""), None, LIST_MAX))
}

/// The routes in force for a tenant: its own, or those for all, or none.
pub fn routes(source: &impl RowSource, tenant: &TenantId) -> Result<RoutesRow, DecodeError> {
    if let Some(own) = load(source, &key::routes(Some(tenant)))? {
        return Ok(own);
    }
    Ok(load(source, &key::routes(None))?.unwrap_or_else(|| RoutesRow {
        revision: String::new(),
        routes: Routes::none(),
    }))
}

/// One alert.
pub fn alert(read: &dyn MetaRead, tenant: &TenantId, id: &str) -> Result<Option<AlertRow>, DecodeError> {
    load(&read, &key::alert(tenant, id))
}

/// Alerts of a tenant, by id.
pub fn alerts(read: &dyn MetaRead, tenant: &TenantId) -> Result<Vec<AlertRow>, DecodeError> {
    load_all(read.scan(GATEWAY_PART, &key::alert(tenant, ""), None, LIST_MAX))
}

/// One incident; of another tenant it does not exist. `None` as tenant: of any.
pub fn incident(
    read: &dyn MetaRead,
    tenant: Option<&TenantId>,
    id: IncidentId,
) -> Result<Option<IncidentRow>, DecodeError> {
    let row: Option<IncidentRow> = load(&read, &key::incident(id))?;
    Ok(row.filter(|r| tenant.is_none_or(|t| *t == r.tenant)))
}

/// Incidents of a tenant, newest number first, at most `limit`.
pub fn incidents(
    read: &dyn MetaRead,
    tenant: &TenantId,
    state: Option<IncidentState>,
    limit: usize,
) -> Result<Vec<IncidentRow>, DecodeError> {
    const PAGE: usize = 256;
    let prefix = key::incidents_of(tenant);
    let (mut found, mut from) = (vec![], None);
    loop {
        let page = read.scan(GATEWAY_PART, &prefix, from.as_deref(), PAGE);
        for (index_key, _) in &page {
            let Some(id) = index_key
                .strip_prefix(prefix.as_slice())
                .and_then(|b| b.try_into().ok())
            else {
                continue;
            };
            let id = IncidentId(!u64::from_be_bytes(id));
            if let Some(row) = incident(read, Some(tenant), id)?
                && state.is_none_or(|s| s == row.state)
            {
                found.push(row);
            }
            if found.len() >= limit.min(LIST_MAX) {
                return Ok(found);
            }
        }
        match page.last() {
            Some((last, _)) if page.len() == PAGE => from = Some([last.as_slice(), &[0]].concat()),
            _ => return Ok(found),
        }
    }
}

/// The alerts of an incident's generation, as they are now.
pub fn members(read: &dyn MetaRead, incident: &IncidentRow) -> Result<Vec<AlertRow>, DecodeError> {
    let mut rows = vec![];
    for member in &incident.members {
        rows.extend(alert(read, &incident.tenant, &member.alert)?);
    }
    Ok(rows)
}

/// One effect.
pub fn effect(read: &dyn MetaRead, key: &EffectKey) -> Result<Option<EffectRow>, DecodeError> {
    load(&read, &key::effect(key))
}

/// Effects of an incident, in the order of their making.
pub fn effects(read: &dyn MetaRead, incident: IncidentId) -> Result<Vec<EffectRow>, DecodeError> {
    let prefix = key::effects_of(incident);
    let mut found = vec![];
    for (index_key, _) in read.scan(GATEWAY_PART, &prefix, None, LIST_MAX) {
        let Some(key) = index_key
            .get(prefix.len() + 8..)
            .and_then(|k| std::str::from_utf8(k).ok())
        else {
            continue;
        };
        found.extend(effect(read, &EffectKey(key.to_owned()))?);
    }
    Ok(found)
}

/// Effects of a tenant, by key.
pub fn all_effects(read: &dyn MetaRead, tenant: &TenantId) -> Result<Vec<EffectRow>, DecodeError> {
    let rows: Vec<EffectRow> = load_all(read.scan(GATEWAY_PART, b"effect/", None, LIST_MAX))?;
    Ok(rows.into_iter().filter(|r| r.tenant == *tenant).collect())
}

/// Deliveries that may be taken at `now`, the longest due first, at most `limit`: (key, due since). Those that wait
/// behind an earlier message to the same place are left out.
pub fn deliveries_due(
    read: &dyn MetaRead,
    now: TimestampNs,
    limit: usize,
) -> Result<Vec<(EffectKey, TimestampNs)>, DecodeError> {
    let prefix = b"due/";
    let mut found = vec![];
    for (row_key, _) in read.scan(GATEWAY_PART, prefix, None, LIST_MAX) {
        let due = key::time_of(prefix, &row_key);
        let name = row_key
            .get(prefix.len() + 8..)
            .and_then(|k| std::str::from_utf8(k).ok());
        let (Some(due), Some(name)) = (due, name) else {
            continue;
        };
        if due > now || found.len() >= limit {
            break;
        }
        let name = EffectKey(name.to_owned());
        let Some(row) = effect(read, &name)? else { continue };
        let is_free = match &row.after {
            Some(before) => effect(read, before)?.is_none_or(|e| e.state.has_ended()),
            None => true,
        };
        if is_free {
            found.push((name, due));
        }
    }
    Ok(found)
}

/// Messages that are not sent yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutboxWaiting {
    /// At most `LIST_MAX`, which stands for more.
    pub messages: usize,
    /// When the first of them is, or was, due.
    pub oldest_due: Option<TimestampNs>,
}

pub fn outbox_waiting(read: &dyn MetaRead) -> OutboxWaiting {
    let prefix = b"due/";
    let rows = read.scan(GATEWAY_PART, prefix, None, LIST_MAX);
    OutboxWaiting {
        messages: rows.len(),
        oldest_due: rows.first().and_then(|(k, _)| key::time_of(prefix, k)),
    }
}

/// Whether a `Tick` at `now` would find anything to do.
pub fn is_tick_due(read: &dyn MetaRead, now: TimestampNs) -> bool {
    let prefix = b"timer/";
    let rows = read.scan(GATEWAY_PART, prefix, None, 1);
    rows.first()
        .and_then(|(k, _)| key::time_of(prefix, k))
        .is_some_and(|at| at <= now)
}

/// Cuts that incidents wait for at `now`, at most `limit`: whoever takes one answers with `SetCut`.
pub fn cuts_due(read: &dyn MetaRead, now: TimestampNs, limit: usize) -> Result<Vec<CutDue>, DecodeError> {
    let due: Vec<CutDue> = load_all(read.scan(GATEWAY_PART, b"cut_due/", None, limit))?;
    Ok(due.into_iter().filter(|d| d.due <= now).collect())
}

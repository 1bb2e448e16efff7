//! Which rows may be read, and which files may go: floors, pins and cuts.
//!
//! Pure and replicated: a function of the entries given so far, never of the files that happen to exist. So two
//! replicas answer alike, although one may have deleted a file that the other still holds.
//!
//! Floors come as rules (tenant, label matchers, domain); the most specific one that fits a series decides: one that
//! names the tenant before one that does not, then the one with more matchers, then one that names the domain, then
//! the later one in the list. A list of rules that replaces another begins an *era*; a series goes by the highest
//! floor that any era since its tenant was met gives it.
//!
//! Tiers: raw samples, 5 m windows and 1 h windows of them (see `aggregate`), log lines. A window can be read while it
//! is not older than its tier's floor and lies whole below the raw floor: from then on no row of it changes.
//!
//! Invariants
//! - A floor never goes back for a tenant that the shard knows: what was let go once stays hidden.
//! - A pin holds what could be read when it was made, and nothing that was hidden already.
//! - A row is readable if it is not older than its floor, or a pin holds it; the topology is always readable.
//! - A window that can be read could be read before, or its rows could.

use crate::aggregate::{HOUR_NS, Resolution};
use crate::index::Series;
use hindcast_env::planted::{Bug, planted};
use hindcast_model::{Domain, Labels, Matcher, Owner, ResourceId, TenantId, TimestampNs};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};

/// A label of this name exempts a stream from retention: `hindcast_proto::topology::TOPOLOGY_LABEL`.
pub const TOPOLOGY_LABEL: &str = "hindcast_topology";
/// So does this one: `hindcast_proto::history::HISTORY_LABEL`. What happened to an incident outlives its samples.
pub const HISTORY_LABEL: &str = "hindcast_history";
/// Eras that are told apart; beyond, the oldest one gives all its series its highest floor.
const ERAS_MAX: usize = 256;
/// A floor that goes back by less is a clock's; one that goes back further is a new rule's.
const STEP_BACK_NS: i64 = HOUR_NS;

/// Holds a window against retention, whoever decides it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    pub id: String,
    pub tenant: TenantId,
    pub from: TimestampNs,
    /// Inclusive.
    pub to: TimestampNs,
    /// `None`: everything of the tenant.
    pub owners: Option<BTreeSet<ResourceId>>,
    /// Cuts of this shard that must stay readable.
    pub cuts: Vec<u64>,
}

/// The oldest event times that are kept, by what is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floors {
    /// Samples as they came.
    pub raw: TimestampNs,
    /// 5 m windows of them; as high as `raw`: none.
    pub five_minutes: TimestampNs,
    /// 1 h windows; as high as `five_minutes`: none but those of 5 m windows that are there.
    pub hour: TimestampNs,
    /// Log lines.
    pub lines: TimestampNs,
}

impl Floors {
    pub const NONE: Self = Self::all(TimestampNs::MIN);

    /// One floor for samples and lines, and no windows.
    pub const fn all(at: TimestampNs) -> Self {
        Self {
            raw: at,
            five_minutes: at,
            hour: at,
            lines: at,
        }
    }

    pub fn of(&self, resolution: Resolution) -> TimestampNs {
        match resolution {
            Resolution::FiveMinutes => self.five_minutes,
            Resolution::Hour => self.hour,
        }
    }

    fn max(self, other: Self) -> Self {
        Self {
            raw: self.raw.max(other.raw),
            five_minutes: self.five_minutes.max(other.five_minutes),
            hour: self.hour.max(other.hour),
            lines: self.lines.max(other.lines),
        }
    }

    /// Coarser tiers reach back at least as far. Floors that leave windows behind stand at the start of an hour: then
    /// every window lies whole on one side.
    fn settled(self) -> Self {
        let mut f = self;
        f.five_minutes = f.five_minutes.min(f.raw);
        f.hour = f.hour.min(f.five_minutes);
        if f.hour < f.five_minutes {
            f.five_minutes = TimestampNs(hour_before(f.five_minutes).saturating_add(1));
        }
        if f.hour < f.raw {
            f.raw = TimestampNs(hour_before(f.raw).saturating_add(1));
        }
        f.five_minutes = f.five_minutes.min(f.raw);
        f.hour = f.hour.min(f.five_minutes);
        f
    }

    fn is_back_from(&self, before: &Self) -> bool {
        let pairs = [
            (self.raw, before.raw),
            (self.five_minutes, before.five_minutes),
            (self.hour, before.hour),
            (self.lines, before.lines),
        ];
        pairs
            .iter()
            .any(|(now, before)| now.0 < before.0.saturating_sub(STEP_BACK_NS))
    }
}

/// The end of the last hour before `floor`: windows up to there have no row at or above it.
fn hour_before(floor: TimestampNs) -> i64 {
    floor.0.saturating_sub(1).div_euclid(HOUR_NS).saturating_mul(HOUR_NS)
}

/// A rule of the policy, as it stands at one moment. Which of several counts: see the module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Floor {
    /// Under which what it let go is counted.
    pub name: String,
    /// `None`: every tenant.
    pub tenant: Option<TenantId>,
    /// `None`: every domain, and what belongs to none.
    pub domain: Option<Domain>,
    /// Label matchers that must all hold; empty: every label set.
    pub selector: Vec<Selector>,
    pub floors: Floors,
}

/// A matcher as it stands in the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Selector(pub Matcher);

impl Serialize for Selector {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        (&self.0.name, self.0.op, &self.0.value).serialize(s)
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let (name, op, value): (String, hindcast_model::MatchOp, String) = Deserialize::deserialize(d)?;
        let matcher = Matcher::new(&name, op, &value).map_err(serde::de::Error::custom)?;
        Ok(Self(matcher))
    }
}

impl Floor {
    /// One floor for everything of a tenant and domain.
    pub fn at(tenant: Option<TenantId>, domain: Option<Domain>, floor: TimestampNs) -> Self {
        Self {
            name: "default".to_owned(),
            tenant,
            domain,
            selector: vec![],
            floors: Floors::all(floor),
        }
    }

    fn is_like(&self, other: &Self) -> bool {
        (&self.tenant, self.domain, &self.selector) == (&other.tenant, other.domain, &other.selector)
    }

    fn may_fit(&self, tenant: &TenantId, domain: Option<Domain>) -> bool {
        self.tenant.as_ref().is_none_or(|t| t == tenant) && (self.domain.is_none() || self.domain == domain)
    }

    fn fits(&self, series: &Series<'_>) -> bool {
        let matchers = || self.selector.iter().map(|s| &s.0);
        self.may_fit(series.tenant, series.owner.domain()) && matchers().all(|m| m.matches(series.labels))
    }

    fn rank(&self) -> (bool, usize, bool) {
        (self.tenant.is_some(), self.selector.len(), self.domain.is_some())
    }
}

fn best<'a>(rules: impl Iterator<Item = &'a Floor>) -> Option<&'a Floor> {
    rules.max_by_key(|f| f.rank())
}

/// What files are kept apart by; one segment holds one. Selectors cut finer, inside of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Policy {
    Unowned = 0,
    Sms = 1,
    Dbms = 2,
    Apm = 3,
    Nms = 4,
    /// Exempt.
    Kept = 5,
}

impl Policy {
    pub const ALL: [Self; 6] = [Self::Unowned, Self::Sms, Self::Dbms, Self::Apm, Self::Nms, Self::Kept];

    pub fn of(labels: &Labels, owner: &Owner, streams: bool) -> Self {
        if streams && (labels.get(TOPOLOGY_LABEL).is_some() || labels.get(HISTORY_LABEL).is_some()) {
            return Self::Kept;
        }
        Self::of_domain(owner.domain())
    }

    pub const fn of_domain(domain: Option<Domain>) -> Self {
        match domain {
            None => Self::Unowned,
            Some(Domain::Sms) => Self::Sms,
            Some(Domain::Dbms) => Self::Dbms,
            Some(Domain::Apm) => Self::Apm,
            Some(Domain::Nms) => Self::Nms,
        }
    }

    pub const fn domain(self) -> Option<Domain> {
        match self {
            Self::Unowned | Self::Kept => None,
            Self::Sms => Some(Domain::Sms),
            Self::Dbms => Some(Domain::Dbms),
            Self::Apm => Some(Domain::Apm),
            Self::Nms => Some(Domain::Nms),
        }
    }
}

/// The rules of one era, with the highest floors that they had.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Era {
    number: u32,
    rules: Vec<Floor>,
}

impl Era {
    /// Whether these rules go on with this era.
    fn takes(&self, rules: &[Floor]) -> bool {
        self.rules.len() == rules.len()
            && self
                .rules
                .iter()
                .zip(rules)
                .all(|(old, new)| old.is_like(new) && !new.floors.is_back_from(&old.floors))
    }

    fn floors_of(&self, series: &Series<'_>) -> Floors {
        best(self.rules.iter().filter(|f| f.fits(series))).map_or(Floors::NONE, |f| f.floors)
    }

    /// As high as any series of this tenant and domain may have it.
    fn highest(&self, tenant: &TenantId, domain: Option<Domain>) -> Floors {
        let rules = self.rules.iter().filter(|f| f.may_fit(tenant, domain));
        rules.fold(Floors::NONE, |high, f| high.max(f.floors))
    }
}

/// A part of time that a pin holds, with the floors that held when it was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Area {
    from: TimestampNs,
    to: TimestampNs,
    owners: Option<BTreeSet<ResourceId>>,
    /// Counts `retain`: a lower one has lower floors, or the same.
    version: u64,
    eras: Vec<Era>,
}

impl Area {
    /// Whether it holds all that `other` holds.
    fn covers(&self, other: &Self) -> bool {
        let owners = match (&self.owners, &other.owners) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(ours), Some(theirs)) => theirs.is_subset(ours),
        };
        owners && self.from <= other.from && other.to <= self.to && self.version <= other.version
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Held {
    pin: Pin,
    /// Its own window; and what other pins held below the floors when it was made.
    areas: Vec<Area>,
}

/// Inclusive spans of event time, ascending, not touching.
pub type Spans = SmallVec<[(i64, i64); 1]>;

/// Floors, pins and cuts of one shard at one index.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Retention {
    /// The last one is in force.
    eras: Vec<Era>,
    version: u64,
    /// The first era that counts for a tenant.
    tenants: BTreeMap<TenantId, u32>,
    pins: BTreeMap<String, Held>,
    /// Kept cuts; `false` once nobody but a pin needs it.
    cuts: BTreeMap<u64, bool>,
}

/// How far back a series can be read.
#[derive(Clone, Debug, PartialEq)]
pub struct Reach {
    pub floors: Floors,
    /// What pins hold below: from, to, and the floors when they were made.
    held: Vec<(i64, i64, Floors)>,
}

impl Reach {
    const EVERYTHING: Self = Self {
        floors: Floors::NONE,
        held: vec![],
    };

    /// Whether windows of it can be read, or could.
    pub fn has_windows(&self) -> bool {
        self.floors.hour < self.floors.raw || self.held.iter().any(|(_, _, f)| f.hour < f.raw)
    }

    /// Rows up to here are frozen: windows that end here or before are what they will ever be.
    pub fn frozen_to(&self) -> i64 {
        hour_before(self.floors.raw)
    }

    /// Whether the window that ends at `end` can be read. Once it cannot, it never can again.
    pub fn shows(&self, resolution: Resolution, end: i64) -> bool {
        let start = end.saturating_sub(resolution.span_ns());
        if end > self.frozen_to() {
            return false;
        }
        start >= self.floors.of(resolution).0.saturating_sub(1) && self.floors.hour < self.floors.raw
            || self.held.iter().any(|(from, to, floors)| {
                // A window that was there when the pin was made; later ones have their rows held.
                let was_there = end <= hour_before(floors.raw) && start >= floors.of(resolution).0.saturating_sub(1);
                was_there && *from <= end && start < *to
            })
    }

    /// Where windows can be read: whole ones, as [`Reach::shows`] says of each.
    pub fn shown(&self, resolution: Resolution) -> Spans {
        let frozen_to = self.frozen_to();
        let since = |floors: &Floors| resolution.end_of(floors.of(resolution).0.saturating_sub(1));
        let own = (self.floors.hour < self.floors.raw).then(|| (since(&self.floors).saturating_add(1), frozen_to));
        let held = self.held.iter().map(|(from, to, floors)| {
            let first = resolution.end_of(*from).saturating_sub(resolution.span_ns());
            let last = resolution.end_of(*to).min(hour_before(floors.raw)).min(frozen_to);
            (first.max(since(floors)).saturating_add(1), last)
        });
        joined(own.into_iter().chain(held))
    }

    /// The rows of which windows can be read, or will: those not covered by windows must be kept.
    pub fn windowed(&self) -> Spans {
        let own =
            (self.floors.hour < self.floors.raw).then(|| (self.floors.hour.0, self.floors.raw.0.saturating_sub(1)));
        let held = self
            .held
            .iter()
            .filter(|(_, _, f)| f.hour < f.raw)
            .map(|(from, to, floors)| {
                let first = hour_before(TimestampNs(*from)).saturating_add(1);
                let last = hour_before(TimestampNs(to.saturating_add(HOUR_NS)));
                (first.max(floors.hour.0), last.min(hour_before(floors.raw)))
            });
        joined(own.into_iter().chain(held))
    }

    /// The parts of `from..=to` in which rows as they came may be read.
    pub fn rows(&self, streams: bool, from: i64, to: i64) -> Spans {
        let tier = |f: &Floors| if streams { f.lines.0 } else { f.raw.0 };
        let floor = tier(&self.floors);
        if from >= floor {
            return joined([(from, to)].into_iter());
        }
        let held = self
            .held
            .iter()
            .map(|(a, b, f)| ((*a).max(tier(f)).max(from), (*b).min(to)));
        joined(held.chain([(floor.max(from), to)]))
    }

    /// The oldest row that shows itself or in a window may be of this time.
    fn lowest(&self, streams: bool) -> TimestampNs {
        if streams {
            self.floors.lines
        } else {
            self.floors.hour.min(self.floors.raw)
        }
    }
}

/// Sorted, overlapping and touching ones made one, empty ones left out.
pub fn joined(spans: impl Iterator<Item = (i64, i64)>) -> Spans {
    let mut spans: Spans = spans.filter(|(a, b)| a <= b).collect();
    if spans.len() < 2 {
        return spans;
    }
    spans.sort_unstable();
    let mut joined = Spans::new();
    for (a, b) in spans {
        match joined.last_mut() {
            Some(last) if a <= last.1.saturating_add(1) => last.1 = last.1.max(b),
            _ => joined.push((a, b)),
        }
    }
    joined
}

impl Retention {
    /// A tenant's first write.
    pub fn meet(&mut self, tenant: &TenantId) {
        if !self.tenants.contains_key(tenant) {
            let now = self.eras.last().map_or(0, |e| e.number);
            self.tenants.insert(tenant.clone(), now);
        }
    }

    pub fn tenants(&self) -> impl Iterator<Item = &TenantId> {
        self.tenants.keys()
    }

    /// Replaces the rules. For known tenants floors only rise.
    pub fn retain(&mut self, floors: Vec<Floor>) {
        let mut rules = floors;
        rules.iter_mut().for_each(|f| f.floors = f.floors.settled());
        self.version += 1;
        match self.eras.last_mut() {
            Some(era) if era.takes(&rules) => {
                for (old, new) in era.rules.iter_mut().zip(rules) {
                    let floors = old.floors.max(new.floors);
                    *old = Floor { floors, ..new };
                }
            }
            last => {
                let number = last.map_or(0, |e| e.number + 1);
                self.eras.push(Era { number, rules });
                self.forget_eras();
            }
        }
    }

    /// Eras say nothing any more when nobody goes by them, or when all floors of the one in force are higher.
    fn forget_eras(&mut self) {
        let Some(now) = self.eras.last() else { return };
        let first = self.tenants.values().min().copied().unwrap_or(now.number);
        let catches_all = |f: &&Floor| f.tenant.is_none() && f.domain.is_none() && f.selector.is_empty();
        let lowest = now.rules.iter().find(catches_all).map(|_| {
            let all = now.rules.iter().map(|f| f.floors);
            let least = |a: Floors, b: Floors| Floors {
                raw: a.raw.min(b.raw),
                five_minutes: a.five_minutes.min(b.five_minutes),
                hour: a.hour.min(b.hour),
                lines: a.lines.min(b.lines),
            };
            all.fold(Floors::all(TimestampNs::MAX), least)
        });
        let number = now.number;
        self.eras.retain(|e| {
            let high = e.rules.iter().fold(Floors::NONE, |high, f| high.max(f.floors));
            let is_passed = lowest.is_some_and(|low| low.max(high) == low) || high == Floors::NONE;
            e.number == number || (e.number >= first && !is_passed)
        });
        if self.eras.len() > ERAS_MAX {
            let oldest = self.eras.remove(0);
            let high = oldest.rules.iter().fold(Floors::NONE, |high, f| high.max(f.floors));
            let mut rule = Floor::at(None, None, TimestampNs::MIN);
            rule.floors = high;
            if let Some(next) = self.eras.first_mut() {
                next.rules.iter_mut().for_each(|f| f.floors = f.floors.max(high));
                next.rules.insert(0, rule);
            }
        }
    }

    /// The eras that count for a tenant: all since it was met; for one that is not known, the one in force.
    fn eras_of(&self, tenant: &TenantId) -> impl Iterator<Item = &Era> {
        let now = self.eras.last().map_or(0, |e| e.number);
        let first = self.tenants.get(tenant).copied().unwrap_or(now);
        self.eras.iter().filter(move |e| e.number >= first)
    }

    fn floors_of(&self, series: &Series<'_>) -> Floors {
        let eras = self.eras_of(series.tenant);
        eras.fold(Floors::NONE, |high, e| high.max(e.floors_of(series)))
    }

    /// The floors of what has no label that a rule asks for.
    pub fn plain_floors(&self, tenant: &TenantId, domain: Option<Domain>) -> Floors {
        let plain = |e: &Era| {
            let rules = e
                .rules
                .iter()
                .filter(|f| f.may_fit(tenant, domain) && f.selector.is_empty());
            best(rules).map_or(Floors::NONE, |f| f.floors)
        };
        self.eras_of(tenant).fold(Floors::NONE, |high, e| high.max(plain(e)))
    }

    /// As high as any series of this policy may have it.
    pub fn highest(&self, tenant: &TenantId, policy: Policy) -> Floors {
        if policy == Policy::Kept {
            return Floors::NONE;
        }
        let highest = |e: &Era| e.highest(tenant, policy.domain());
        self.eras_of(tenant).fold(Floors::NONE, |high, e| high.max(highest(e)))
    }

    /// Rows of new entries at this time or later are below no floor that leaves windows behind.
    pub fn frozen_below(&self) -> i64 {
        let floors = self.eras.iter().flat_map(|e| &e.rules).map(|f| f.floors);
        // Of any two eras one may give the raw floor and the other the windows.
        let has_windows = floors.clone().any(|f| f.hour < f.raw);
        let highest = floors.map(|f| f.raw.0).max().unwrap_or(i64::MIN);
        if has_windows { highest } else { i64::MIN }
    }

    /// The name of the rule that lets go what is old of this series.
    pub fn rule_of(&self, series: &Series<'_>) -> &str {
        let now = self.eras.last().map_or(&[][..], |e| &e.rules[..]);
        best(now.iter().filter(|f| f.fits(series))).map_or("default", |f| &f.name)
    }

    pub fn reach(&self, series: &Series<'_>) -> Reach {
        if series.policy == Policy::Kept {
            return Reach::EVERYTHING;
        }
        let pins = self.pins.values().filter(|h| h.pin.tenant == *series.tenant);
        let areas = pins.flat_map(|h| &h.areas).filter(|a| holds(a, &series.owner));
        let held = areas.map(|a| {
            let floors = a
                .eras
                .iter()
                .fold(Floors::NONE, |high, e| high.max(e.floors_of(series)));
            (a.from.0, a.to.0, floors)
        });
        Reach {
            floors: self.floors_of(series),
            held: held.collect(),
        }
    }

    /// A pin of the same id is replaced; what the old one held inside the new window stays held.
    pub fn pin(&mut self, pin: Pin) {
        let own = Area {
            from: pin.from,
            to: pin.to,
            owners: pin.owners.clone(),
            version: self.version,
            eras: self.eras_of(&pin.tenant).cloned().collect(),
        };
        let mut areas: Vec<Area> = vec![];
        for other in self.pins.values().filter(|h| h.pin.tenant == pin.tenant) {
            for a in &other.areas {
                let owners = match (&a.owners, &pin.owners) {
                    (None, o) | (o, None) => o.clone(),
                    (Some(a), Some(b)) => Some(a.intersection(b).copied().collect()),
                };
                let area = Area {
                    from: a.from.max(pin.from),
                    to: a.to.min(pin.to),
                    owners,
                    version: a.version,
                    eras: a.eras.clone(),
                };
                let is_any = area.from <= area.to && area.owners.as_ref().is_none_or(|o| !o.is_empty());
                // As old as the pin itself: it holds nothing that the pin does not.
                if is_any && a.version < self.version && !areas.iter().any(|b| b.covers(&area)) {
                    areas.retain(|b| !area.covers(b));
                    areas.push(area);
                }
            }
        }
        if !areas.iter().any(|b| b.covers(&own)) {
            areas.insert(0, own);
        }
        self.pins.insert(pin.id.clone(), Held { pin, areas });
        self.forget_cuts();
    }

    pub fn unpin(&mut self, id: &str) {
        self.pins.remove(id);
        self.forget_cuts();
    }

    pub fn cut(&mut self, index: u64) {
        self.cuts.insert(index, true);
    }

    pub fn drop_cut(&mut self, index: u64) {
        if let Some(asked) = self.cuts.get_mut(&index) {
            *asked = false;
            self.forget_cuts();
        }
    }

    fn forget_cuts(&mut self) {
        let pinned: BTreeSet<u64> = self.pins.values().flat_map(|h| h.pin.cuts.iter().copied()).collect();
        self.cuts.retain(|cut, asked| *asked || pinned.contains(cut));
    }

    pub fn is_cut(&self, index: u64) -> bool {
        self.cuts.contains_key(&index)
    }

    pub fn last_cut_before(&self, index: u64) -> Option<u64> {
        self.cuts.range(..index).next_back().map(|(c, _)| *c)
    }

    /// Whether a kept cut has `a` on one side and `b` on the other (`a < b`).
    pub fn is_cut_between(&self, a: u64, b: u64) -> bool {
        self.cuts.range(a..b).next().is_some()
    }

    /// Whether no row of a series whose newest one is at `newest` can be read, now or ever after. Told from what was
    /// written alone, never from files, so that all replicas say the same.
    pub fn is_over(&self, series: &Series<'_>, newest: TimestampNs) -> bool {
        if series.policy == Policy::Kept {
            return false;
        }
        // Hours are held whole, beyond both ends of a pin.
        let reaches = |a: &Area| a.from.0.saturating_sub(HOUR_NS) <= newest.0;
        let is_held = |h: &&Held| {
            let mut areas = h.areas.iter().filter(|a| holds(a, &series.owner));
            h.pin.tenant == *series.tenant && areas.any(reaches)
        };
        let floors = self.floors_of(series);
        let reach = Reach { floors, held: vec![] };
        newest < reach.lowest(series.streams) && !self.pins.values().any(|h| is_held(&h))
    }
}

fn holds(area: &Area, owner: &Owner) -> bool {
    if planted(Bug::RetentionIgnoresPins) {
        return false;
    }
    match (&area.owners, owner.id()) {
        (None, _) => true,
        (Some(owners), Some(id)) => owners.contains(&id),
        (Some(_), None) => false,
    }
}

pub fn is_within(spans: &Spans, at: i64) -> bool {
    spans.iter().any(|&(a, b)| a <= at && at <= b)
}

#[cfg(test)]
pub mod testing {
    use super::*;

    /// Of floors and pins told in minutes: the last one that is out; what is held from and to, and its floors.
    pub fn reach(own: [i64; 3], pins: &[(i64, i64, [i64; 3])]) -> Reach {
        let minute = |m: i64| m * 60_000_000_000;
        let floors = |[raw, five, hour]: [i64; 3]| {
            let [raw, five_minutes, hour] = [raw, five, hour].map(|m| TimestampNs(minute(m) + 1));
            Floors {
                raw,
                five_minutes,
                hour,
                lines: raw,
            }
            .settled()
        };
        Reach {
            floors: floors(own),
            held: pins
                .iter()
                .map(|(from, to, f)| (minute(*from) + 1, minute(*to), floors(*f)))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_model::Kind;

    fn at(s: i64) -> TimestampNs {
        TimestampNs(s)
    }

    fn tenant() -> TenantId {
        TenantId::default()
    }

    fn owner(name: &str) -> Owner {
        Owner::Resource {
            id: ResourceId::new(&tenant(), Kind::Host, &[name]),
            kind: Kind::Host,
        }
    }

    /// A series that `owner` has, in what a test says of it.
    fn of(owner: Owner, each: impl FnOnce(&Series<'_>) -> Spans) -> Spans {
        let (tenant, labels) = (tenant(), Labels::from_pairs([("a", "b")]));
        each(&Series {
            id: 0,
            tenant: &tenant,
            streams: false,
            policy: Policy::of(&labels, &owner, false),
            labels: &labels,
            owner,
            slot: owner.slot(&labels),
            fingerprint: labels.fingerprint(),
        })
    }

    fn pin(id: &str, from: i64, to: i64, owner: Option<Owner>, cuts: &[u64]) -> Pin {
        Pin {
            id: id.to_owned(),
            tenant: tenant(),
            from: at(from),
            to: at(to),
            owners: owner.map(|o| o.id().into_iter().collect()),
            cuts: cuts.to_vec(),
        }
    }

    fn all(floor: i64) -> Vec<Floor> {
        vec![Floor::at(None, None, at(floor))]
    }

    fn readable(r: &Retention, owner: Owner) -> Spans {
        of(owner, |s| r.reach(s).rows(false, 0, 100))
    }

    fn raw(r: &Retention, tenant: &TenantId, policy: Policy) -> TimestampNs {
        r.plain_floors(tenant, policy.domain()).raw
    }

    fn rule(name: &str, tenant: bool, selector: &[(&str, &str)], domain: Option<Domain>, floor: i64) -> Floor {
        Floor {
            name: name.to_owned(),
            tenant: tenant.then(self::tenant),
            domain,
            selector: selector.iter().map(|(n, v)| Selector(Matcher::equal(n, v))).collect(),
            floors: Floors::all(at(floor)),
        }
    }

    #[test]
    fn tenant_goes_before_selector_and_selector_before_domain() {
        let mut rules = vec![
            rule("all", false, &[], None, 1),
            rule("domain", false, &[], Some(Domain::Sms), 2),
            rule("selector", false, &[("a", "b")], None, 3),
            rule("selector and domain", false, &[("a", "b")], Some(Domain::Sms), 4),
            rule("two matchers", false, &[("a", "b"), ("gone", "")], None, 5),
            rule("another's", false, &[("a", "c"), ("gone", ""), ("x", "")], None, 6),
            rule("tenant", true, &[], None, 7),
            rule("tenant and domain", true, &[], Some(Domain::Sms), 8),
            rule("tenant and selector", true, &[("a", "b")], None, 9),
            rule("the same, later", true, &[("a", "b")], None, 10),
        ];
        let mut order = vec![];
        while !rules.is_empty() {
            let mut r = Retention::default();
            r.meet(&tenant());
            r.retain(rules.clone());
            of(owner("a"), |s| {
                order.push(format!("{} {}", r.floors_of(s).raw.0, r.rule_of(s)));
                Spans::new()
            });
            let wins = order.last().unwrap().split_once(' ').unwrap().1.to_owned();
            let before = rules.len();
            rules.retain(|f| f.name != wins);
            if rules.len() == before {
                break;
            }
        }
        expect_test::expect![[r#"
            10 the same, later
            9 tenant and selector
            8 tenant and domain
            7 tenant
            5 two matchers
            4 selector and domain
            3 selector
            2 domain
            1 all
            -9223372036854775808 default"#]]
        .assert_eq(&order.join("\n"));
    }

    #[test]
    fn a_rule_that_goes_leaves_its_floor_to_those_who_went_by_it() {
        let mut r = Retention::default();
        r.meet(&tenant());
        let hours = |h: i64| h * HOUR_NS;
        r.retain(vec![
            rule("all", false, &[], None, hours(10)),
            rule("b", false, &[("a", "b")], None, hours(50)),
        ]);
        r.retain(vec![rule("all", false, &[], None, hours(20))]);
        let floor = |r: &Retention| {
            let mut floor = 0;
            of(owner("a"), |s| {
                floor = r.floors_of(s).raw.0 / HOUR_NS;
                Spans::new()
            });
            floor
        };
        assert_eq!(floor(&r), 50, "what the rule hid stays hidden");
        assert_eq!(
            raw(&r, &tenant(), Policy::Sms).0 / HOUR_NS,
            20,
            "others go by what is in force"
        );
        r.retain(vec![rule("all", false, &[], None, hours(51))]);
        assert_eq!((floor(&r), r.eras.len()), (51, 2));
        r.retain(vec![]);
        r.retain(vec![rule("all", false, &[], None, hours(60))]);
        assert_eq!((floor(&r), r.eras.len()), (60, 1), "passed eras are forgotten");
    }

    #[test]
    fn lines_and_samples_have_floors_of_their_own() {
        let mut r = Retention::default();
        r.meet(&tenant());
        let mut rules = all(10);
        rules[0].floors.lines = at(60);
        r.retain(rules);
        assert_eq!(readable(&r, Owner::None).to_vec(), [(10, 100)]);
        of(Owner::None, |s| {
            let s = Series { streams: true, ..*s };
            assert_eq!(r.reach(&s).rows(true, 0, 100).to_vec(), [(60, 100)]);
            Spans::new()
        });
    }

    #[test]
    fn windows_show_whole_below_the_raw_floor_and_above_their_own() {
        use Resolution::{FiveMinutes, Hour};
        let mut r = Retention::default();
        r.meet(&tenant());
        let mut rules = all(0);
        let h = |h: i64| at(h * HOUR_NS);
        rules[0].floors = Floors {
            raw: at(h(30).0 + 5),
            five_minutes: at(h(20).0 + HOUR_NS / 2),
            hour: h(10),
            lines: h(40),
        };
        r.retain(rules);
        let reach = of_reach(&r);
        assert_eq!(
            reach.floors.raw.0,
            h(30).0 + 1,
            "down to the hour, which belongs to the window that it ends"
        );
        assert_eq!(reach.floors.five_minutes.0, h(20).0 + 1);
        let five = h(1).0 / 12;
        assert!(reach.shows(FiveMinutes, h(30).0) && !reach.shows(FiveMinutes, h(30).0 + five));
        assert!(reach.shows(FiveMinutes, h(20).0 + five) && !reach.shows(FiveMinutes, h(20).0));
        assert!(reach.shows(Hour, h(30).0) && reach.shows(Hour, h(11).0) && !reach.shows(Hour, h(10).0));
        // A pin holds windows that are there, also those that it touches only; of later ones it holds the rows.
        r.pin(pin("p", h(15).0 + 7, h(32).0, None, &[]));
        let mut rules = all(0);
        rules[0].floors = Floors::all(h(90));
        r.retain(rules);
        let reach = of_reach(&r);
        assert!(reach.shows(Hour, h(16).0) && reach.shows(Hour, h(30).0) && !reach.shows(Hour, h(15).0));
        assert!(!reach.shows(Hour, h(31).0) && !reach.shows(FiveMinutes, h(20).0));
        assert_eq!(reach.rows(false, h(0).0, h(50).0).to_vec(), [(h(30).0 + 1, h(32).0)]);
    }

    fn of_reach(r: &Retention) -> Reach {
        let mut reach = None;
        of(Owner::None, |s| {
            reach = Some(r.reach(s));
            Spans::new()
        });
        reach.unwrap()
    }

    #[test]
    fn a_pin_made_again_and_again_does_not_grow() {
        let mut r = Retention::default();
        r.meet(&tenant());
        for i in 0..20 {
            r.retain(all(i));
            r.pin(pin("p", 0, 50 + i, None, &[]));
        }
        assert!(r.pins["p"].areas.len() <= 20);
        for i in 0..20 {
            r.retain(all(20 + i));
            r.pin(pin("p", 0, 50, None, &[]));
        }
        assert_eq!(r.pins["p"].areas.len(), 1);
    }

    #[test]
    fn a_pin_holds_its_owners_below_the_floor_and_lets_go_when_it_goes() {
        let mut r = Retention::default();
        r.meet(&tenant());
        r.pin(pin("p", 10, 20, Some(owner("a")), &[]));
        r.retain(all(50));
        assert_eq!(readable(&r, owner("a")).to_vec(), [(10, 20), (50, 100)]);
        assert_eq!(readable(&r, owner("b")).to_vec(), [(50, 100)]);
        r.unpin("p");
        assert_eq!(readable(&r, owner("a")).to_vec(), [(50, 100)]);
    }

    #[test]
    fn a_late_pin_does_not_bring_back_what_was_let_go() {
        let mut r = Retention::default();
        r.meet(&tenant());
        r.retain(all(50));
        r.pin(pin("p", 10, 60, None, &[]));
        r.retain(all(80));
        assert_eq!(readable(&r, Owner::None).to_vec(), [(50, 60), (80, 100)]);
    }

    #[test]
    fn a_pin_made_over_another_pin_goes_on_holding() {
        let mut r = Retention::default();
        r.meet(&tenant());
        r.pin(pin("p", 10, 20, None, &[]));
        r.retain(all(50));
        r.pin(pin("q", 15, 30, Some(owner("a")), &[]));
        r.unpin("p");
        assert_eq!(readable(&r, owner("a")).to_vec(), [(15, 20), (50, 100)]);
        assert_eq!(readable(&r, owner("b")).to_vec(), [(50, 100)]);
        // The same id again: its own hold is carried over.
        r.pin(pin("q", 0, 18, Some(owner("a")), &[]));
        assert_eq!(readable(&r, owner("a")).to_vec(), [(15, 18), (50, 100)]);
    }

    #[test]
    fn a_floor_never_goes_back_and_the_most_specific_one_wins() {
        let mut r = Retention::default();
        r.meet(&tenant());
        let mut floors = all(50);
        floors.push(Floor::at(None, Some(Domain::Sms), at(30)));
        r.retain(floors);
        assert_eq!(raw(&r, &tenant(), Policy::Sms), at(30));
        assert_eq!(raw(&r, &tenant(), Policy::Nms), at(50));
        r.retain(all(40));
        assert_eq!(raw(&r, &tenant(), Policy::Sms), at(40));
        assert_eq!(raw(&r, &tenant(), Policy::Nms), at(50));
        r.retain(vec![]);
        assert_eq!(raw(&r, &tenant(), Policy::Nms), at(50));
        let newcomer = TenantId::new("new").unwrap();
        assert_eq!(raw(&r, &newcomer, Policy::Nms), TimestampNs::MIN);
    }

    #[test]
    fn a_dropped_cut_stays_as_long_as_a_pin_names_it() {
        let mut r = Retention::default();
        r.cut(7);
        r.cut(9);
        r.pin(pin("p", 0, 1, None, &[7, 8]));
        r.drop_cut(7);
        r.drop_cut(9);
        assert!(r.is_cut(7) && !r.is_cut(8) && !r.is_cut(9));
        assert!(r.is_cut_between(7, 8) && !r.is_cut_between(8, 9) && !r.is_cut_between(6, 7));
        r.unpin("p");
        assert!(!r.is_cut(7));
    }

    #[test]
    fn topology_is_exempt() {
        let labels = Labels::from_pairs([(TOPOLOGY_LABEL, "edge")]);
        assert_eq!(Policy::of(&labels, &owner("a"), true), Policy::Kept);
        let labels = Labels::from_pairs([(HISTORY_LABEL, "alert")]);
        assert_eq!(Policy::of(&labels, &owner("a"), true), Policy::Kept);
        assert_eq!(Policy::of(&labels, &owner("a"), false), Policy::Sms);
    }
}

//! Which rows may be read, and which files may go: floors, pins and cuts.
//!
//! Pure and replicated: a function of the entries given so far, never of the files that happen to exist. So two
//! replicas answer alike, although one may have deleted a file that the other still holds.
//!
//! Invariants
//! - A floor never goes back for a tenant that the shard knows: what was let go once stays hidden.
//! - A pin holds what could be read when it was made, and nothing that was hidden already.
//! - A row is readable if it is not older than its floor, or a pin holds it; the topology is always readable.

use crate::index::Series;
use hindcast_model::{Domain, Labels, Owner, ResourceId, TenantId, TimestampNs};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A label of this name exempts a stream from retention: `hindcast_proto::topology::TOPOLOGY_LABEL`.
pub const TOPOLOGY_LABEL: &str = "hindcast_topology";
/// So does this one: `hindcast_proto::history::HISTORY_LABEL`. What happened to an incident outlives its samples.
pub const HISTORY_LABEL: &str = "hindcast_history";

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

/// The oldest event time that is kept. The most specific floor that fits wins: tenant before domain before all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floor {
    /// `None`: every tenant.
    pub tenant: Option<TenantId>,
    /// `None`: every domain, and what belongs to none.
    pub domain: Option<Domain>,
    pub floor: TimestampNs,
}

/// What retention goes by; one segment holds one.
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

/// Policies that have a floor.
const FLOORS: usize = 5;

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

    const fn domain(self) -> Option<Domain> {
        match self {
            Self::Unowned | Self::Kept => None,
            Self::Sms => Some(Domain::Sms),
            Self::Dbms => Some(Domain::Dbms),
            Self::Apm => Some(Domain::Apm),
            Self::Nms => Some(Domain::Nms),
        }
    }
}

type Marks = [TimestampNs; FLOORS];

/// A part of time that a pin holds: of policy `p`, from `floors[p]` on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Area {
    from: TimestampNs,
    to: TimestampNs,
    owners: Option<BTreeSet<ResourceId>>,
    floors: Marks,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    pin: Pin,
    /// Its own window first; then what other pins held below the floors when it was made.
    areas: Vec<Area>,
}

/// Inclusive spans of event time, ascending, not touching.
pub type Spans = Vec<(i64, i64)>;

/// Floors, pins and cuts of one shard at one index.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    floors: Vec<Floor>,
    /// Per tenant the highest floors so far.
    marks: BTreeMap<TenantId, Marks>,
    pins: BTreeMap<String, Held>,
    /// Kept cuts; `false` once nobody but a pin needs it.
    cuts: BTreeMap<u64, bool>,
}

impl Retention {
    /// A tenant's first write.
    pub fn meet(&mut self, tenant: &TenantId) {
        if !self.marks.contains_key(tenant) {
            self.marks.insert(tenant.clone(), self.configured(tenant));
        }
    }

    pub fn tenants(&self) -> impl Iterator<Item = &TenantId> {
        self.marks.keys()
    }

    /// Replaces the floors. For known tenants they only rise.
    pub fn retain(&mut self, floors: Vec<Floor>) {
        self.floors = floors;
        let mut marks = std::mem::take(&mut self.marks);
        for (tenant, marks) in &mut marks {
            for (mark, new) in marks.iter_mut().zip(self.configured(tenant)) {
                *mark = new.max(*mark);
            }
        }
        self.marks = marks;
    }

    fn configured(&self, tenant: &TenantId) -> Marks {
        std::array::from_fn(|p| {
            let domain = Policy::ALL[p].domain();
            let fits = |f: &&Floor| {
                f.tenant.as_ref().is_none_or(|t| t == tenant) && (f.domain.is_none() || f.domain == domain)
            };
            let best = self.floors.iter().filter(fits);
            best.max_by_key(|f| (f.tenant.is_some(), f.domain.is_some()))
                .map_or(TimestampNs::MIN, |f| f.floor)
        })
    }

    fn marks_of(&self, tenant: &TenantId) -> Marks {
        self.marks
            .get(tenant)
            .copied()
            .unwrap_or_else(|| self.configured(tenant))
    }

    pub fn floor_of(&self, tenant: &TenantId, policy: Policy) -> TimestampNs {
        match policy {
            Policy::Kept => TimestampNs::MIN,
            p => self.marks_of(tenant)[p as usize],
        }
    }

    /// A pin of the same id is replaced; what the old one held inside the new window stays held.
    pub fn pin(&mut self, pin: Pin) {
        let floors = self.marks_of(&pin.tenant);
        let mut areas = vec![Area {
            from: pin.from,
            to: pin.to,
            owners: pin.owners.clone(),
            floors,
        }];
        for other in self.pins.values().filter(|h| h.pin.tenant == pin.tenant) {
            for a in &other.areas {
                let (from, to) = (a.from.max(pin.from), a.to.min(pin.to));
                let owners = match (&a.owners, &pin.owners) {
                    (None, o) | (o, None) => o.clone(),
                    (Some(a), Some(b)) => Some(a.intersection(b).copied().collect()),
                };
                let below = a.floors.iter().zip(&floors).any(|(held, now)| from.max(*held) < *now);
                let area = Area {
                    from,
                    to,
                    owners,
                    floors: a.floors,
                };
                if below && from <= to && area.owners.as_ref().is_none_or(|o| !o.is_empty()) && !areas.contains(&area) {
                    areas.push(area);
                }
            }
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

    /// The parts of `from..=to` in which rows of this series may be read.
    pub fn readable(&self, series: &Series<'_>, from: TimestampNs, to: TimestampNs) -> Spans {
        if from > to {
            return vec![];
        }
        let floor = self.floor_of(series.tenant, series.policy);
        if from >= floor {
            return vec![(from.0, to.0)];
        }
        let policy = series.policy as usize;
        let held = self.pins.values().filter(|h| h.pin.tenant == *series.tenant);
        let areas = held.flat_map(|h| &h.areas).filter(|a| holds(a, &series.owner));
        let mut spans: Spans = areas
            .map(|a| (a.from.max(a.floors[policy]).max(from), a.to.min(to)))
            .chain([(floor, to)])
            .filter(|(a, b)| a <= b)
            .map(|(a, b)| (a.0, b.0))
            .collect();
        spans.sort_unstable();
        let mut joined: Spans = vec![];
        for (a, b) in spans {
            match joined.last_mut() {
                Some(last) if a <= last.1.saturating_add(1) => last.1 = last.1.max(b),
                _ => joined.push((a, b)),
            }
        }
        joined
    }

    /// Whether no row of a series whose newest one is at `newest` can be read, now or ever after. Told from what was
    /// written alone, never from files, so that all replicas say the same.
    pub fn is_over(&self, series: &Series<'_>, newest: TimestampNs) -> bool {
        let is_held = |h: &&Held| {
            let mut areas = h.areas.iter().filter(|a| holds(a, &series.owner));
            h.pin.tenant == *series.tenant && areas.any(|a| a.from <= newest)
        };
        newest < self.floor_of(series.tenant, series.policy) && !self.pins.values().any(|h| is_held(&h))
    }

    /// Whether no row of these series in `from..=to` can be read any more, now or ever after.
    pub fn is_gone<'a>(
        &self,
        series: impl IntoIterator<Item = Series<'a>>,
        from: TimestampNs,
        to: TimestampNs,
    ) -> bool {
        series.into_iter().all(|s| self.readable(&s, from, to).is_empty())
    }
}

fn holds(area: &Area, owner: &Owner) -> bool {
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
        vec![Floor {
            tenant: None,
            domain: None,
            floor: at(floor),
        }]
    }

    fn readable(r: &Retention, owner: Owner) -> Spans {
        of(owner, |s| r.readable(s, at(0), at(100)))
    }

    #[test]
    fn a_pin_holds_its_owners_below_the_floor_and_lets_go_when_it_goes() {
        let mut r = Retention::default();
        r.meet(&tenant());
        r.pin(pin("p", 10, 20, Some(owner("a")), &[]));
        r.retain(all(50));
        assert_eq!(readable(&r, owner("a")), [(10, 20), (50, 100)]);
        assert_eq!(readable(&r, owner("b")), [(50, 100)]);
        r.unpin("p");
        assert_eq!(readable(&r, owner("a")), [(50, 100)]);
    }

    #[test]
    fn a_late_pin_does_not_bring_back_what_was_let_go() {
        let mut r = Retention::default();
        r.meet(&tenant());
        r.retain(all(50));
        r.pin(pin("p", 10, 60, None, &[]));
        r.retain(all(80));
        assert_eq!(readable(&r, Owner::None), [(50, 60), (80, 100)]);
    }

    #[test]
    fn a_pin_made_over_another_pin_goes_on_holding() {
        let mut r = Retention::default();
        r.meet(&tenant());
        r.pin(pin("p", 10, 20, None, &[]));
        r.retain(all(50));
        r.pin(pin("q", 15, 30, Some(owner("a")), &[]));
        r.unpin("p");
        assert_eq!(readable(&r, owner("a")), [(15, 20), (50, 100)]);
        assert_eq!(readable(&r, owner("b")), [(50, 100)]);
        // The same id again: its own hold is carried over.
        r.pin(pin("q", 0, 18, Some(owner("a")), &[]));
        assert_eq!(readable(&r, owner("a")), [(15, 18), (50, 100)]);
    }

    #[test]
    fn a_floor_never_goes_back_and_the_most_specific_one_wins() {
        let mut r = Retention::default();
        r.meet(&tenant());
        let mut floors = all(50);
        floors.push(Floor {
            tenant: None,
            domain: Some(Domain::Sms),
            floor: at(30),
        });
        r.retain(floors);
        assert_eq!(r.floor_of(&tenant(), Policy::Sms), at(30));
        assert_eq!(r.floor_of(&tenant(), Policy::Nms), at(50));
        r.retain(all(40));
        assert_eq!(r.floor_of(&tenant(), Policy::Sms), at(40));
        assert_eq!(r.floor_of(&tenant(), Policy::Nms), at(50));
        r.retain(vec![]);
        assert_eq!(r.floor_of(&tenant(), Policy::Nms), at(50));
        let newcomer = TenantId::new("new").unwrap();
        assert_eq!(r.floor_of(&newcomer, Policy::Nms), TimestampNs::MIN);
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

//! What is known of one instant: the parts of a frame, in the order in which they are encoded.
//!
//! Lists are sorted as each field says; whoever builds a frame sorts, the encoder writes what it gets.
//! As JSON (for people and programs, never for digests) a resource id is 32 hex digits, a value that JSON cannot hold
//! is one of the texts `NaN`, `+Inf` and `-Inf`, and an absent value is `null`.

use hindcast_model::resource::Edge;
use hindcast_model::{Domain, IncidentId, Kind, Labels, ResourceId, Severity, TimestampNs};
use serde::Serialize;

/// One instant. Frame 0 of a replay is its spec; these count from 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Frame {
    pub number: u64,
    pub at: TimestampNs,
    /// In the order SMS, DBMS, APM, NMS; those that the spec names.
    pub domains: Vec<DomainFrame>,
    pub topology: TopologyFrame,
    /// Every alert in scope that is not inactive or resolved, by id.
    pub alerts: Vec<AlertFrame>,
    /// Incidents in scope until they are closed, by number.
    pub incidents: Vec<Fact>,
    /// Tickets in scope until they are closed or cancelled, by number.
    pub tickets: Vec<Fact>,
    pub logs: LogsFrame,
    /// What happened after the instant before this one, up to and with this one; by time, index,
    /// kind and place.
    pub changes: Vec<Change>,
    pub left_out: LeftOut,
    /// What could not be asked, and why. Empty: the frame is whole. Sorted, each once.
    pub incomplete: Vec<String>,
}

impl Frame {
    pub fn empty(number: u64, at: TimestampNs) -> Self {
        Self {
            number,
            at,
            domains: vec![],
            topology: TopologyFrame::default(),
            alerts: vec![],
            incidents: vec![],
            tickets: vec![],
            logs: LogsFrame::default(),
            changes: vec![],
            left_out: LeftOut::default(),
            incomplete: vec![],
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DomainFrame {
    pub domain: Domain,
    /// By id. A resource stands in its own domain, and in each domain of which it has a signal.
    pub resources: Vec<ResourceFrame>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ResourceFrame {
    #[serde(serialize_with = "as_hex")]
    pub id: ResourceId,
    pub state: State,
    /// By name, then object. A signal stands here from the first frame in which it has a value.
    pub signals: Vec<SignalFrame>,
}

/// The worst level of the firing alerts on a resource; else no data, when its sources are silent; else ok.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Ok,
    Minor,
    Major,
    Critical,
    NoData,
}

impl State {
    pub const ALL: [Self; 5] = [Self::Ok, Self::Minor, Self::Major, Self::Critical, Self::NoData];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Minor => "minor",
            Self::Major => "major",
            Self::Critical => "critical",
            Self::NoData => "nodata",
        }
    }

    pub const fn of_severity(severity: Severity) -> Self {
        match severity {
            Severity::Minor => Self::Minor,
            Severity::Major => Self::Major,
            Severity::Critical => Self::Critical,
        }
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct SignalFrame {
    /// `sms.cpu.busy`.
    pub name: String,
    /// Which mount, interface, device or pool; empty for a signal of the resource as a whole.
    pub object: String,
    /// Which entry of the binding gave the value, counted from 0.
    pub binding: u8,
    /// `None`: absent at this instant.
    #[serde(serialize_with = "as_number")]
    pub value: Option<f64>,
}

impl PartialEq for SignalFrame {
    /// Values by what a frame keeps of them: their bits, all NaNs alike.
    fn eq(&self, other: &Self) -> bool {
        let bits = |v: Option<f64>| {
            v.map(|v| {
                if v.is_nan() {
                    super::encode::NAN_BITS
                } else {
                    v.to_bits()
                }
            })
        };
        self.name == other.name
            && self.object == other.object
            && self.binding == other.binding
            && bits(self.value) == bits(other.value)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TopologyFrame {
    /// Resources in scope that were seen by this instant, by id.
    pub resources: Vec<ResourceNode>,
    /// Edges between them that were seen by this instant, by (from, to, kind).
    #[serde(serialize_with = "edges_as_hex")]
    pub edges: Vec<Edge>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ResourceNode {
    #[serde(serialize_with = "as_hex")]
    pub id: ResourceId,
    pub kind: Kind,
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AlertFrame {
    pub id: String,
    /// `pending`, `firing`, `nodata`.
    pub phase: String,
    pub severity: Option<Severity>,
    /// When it came to this phase and severity.
    pub since: TimestampNs,
    pub incident: Option<IncidentId>,
    /// The resources it speaks of, by id.
    #[serde(serialize_with = "ids_as_hex")]
    pub resources: Vec<ResourceId>,
    /// The record's state as canonical JSON.
    pub state: String,
}

/// The last change of an incident or a ticket.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fact {
    /// `INC-1`, `T-1`.
    pub object: String,
    pub change: String,
    pub at: TimestampNs,
    /// The record's state as canonical JSON.
    pub state: String,
}

/// Lines after the instant before, up to and with this one.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LogsFrame {
    /// Streams with lines in this step, by (labels, owner), with all their lines counted.
    pub streams: Vec<StreamFrame>,
    /// Streams with lines in this step that `streams` had no room for.
    pub streams_left_out: u32,
    /// Their lines.
    pub lines_left_out_by_level: [u64; Level::ALL.len()],
    /// The worst levels first when there is not room for all; listed by time, then stream, then commit position.
    pub lines: Vec<LineFrame>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StreamFrame {
    #[serde(serialize_with = "labels_as_map")]
    pub labels: Labels,
    #[serde(serialize_with = "maybe_as_hex")]
    pub owner: Option<ResourceId>,
    /// In the order of `Level::ALL`.
    pub lines_by_level: [u64; Level::ALL.len()],
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LineFrame {
    pub at: TimestampNs,
    /// Index in `streams`.
    pub stream: u32,
    pub level: Level,
    /// The line, or its beginning.
    pub line: String,
    /// Length of the whole line.
    pub bytes: u32,
    /// By name.
    pub metadata: Vec<(String, String)>,
}

/// How bad a log line says it is; worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Fatal,
    Error,
    Warn,
    Info,
    Debug,
    Unknown,
}

impl Level {
    pub const ALL: [Self; 6] = [
        Self::Fatal,
        Self::Error,
        Self::Warn,
        Self::Info,
        Self::Debug,
        Self::Unknown,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fatal => "fatal",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Unknown => "unknown",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    pub at: TimestampNs,
    pub kind: ChangeKind,
    /// Index in the meta group's log of the command that made it, and its place within; 0 for topology.
    pub index: u64,
    pub seq: u32,
    pub object: String,
    /// `opened`, `firing`, `delivered`; of topology: `seen`, `changed`.
    pub what: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    Alert,
    Incident,
    Ticket,
    Delivery,
    Rule,
    Cut,
    Pin,
    Resource,
    Edge,
}

impl ChangeKind {
    pub const ALL: [Self; 9] = [
        Self::Alert,
        Self::Incident,
        Self::Ticket,
        Self::Delivery,
        Self::Rule,
        Self::Cut,
        Self::Pin,
        Self::Resource,
        Self::Edge,
    ];
}

/// How many of each the bounds of a frame left out. All 0: nothing is missing for want of room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Resources within reach that the scope had no room for.
    pub resources: u32,
    pub signals: u32,
    pub alerts: u32,
    pub incidents: u32,
    pub tickets: u32,
    pub changes: u32,
}

fn as_hex<S: serde::Serializer>(id: &ResourceId, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(id)
}

fn maybe_as_hex<S: serde::Serializer>(id: &Option<ResourceId>, s: S) -> Result<S::Ok, S::Error> {
    match id {
        Some(id) => s.collect_str(id),
        None => s.serialize_none(),
    }
}

pub(crate) fn ids_as_hex<S: serde::Serializer>(ids: &[ResourceId], s: S) -> Result<S::Ok, S::Error> {
    s.collect_seq(ids.iter().map(ToString::to_string))
}

fn edges_as_hex<S: serde::Serializer>(edges: &[Edge], s: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Shown {
        from: String,
        to: String,
        kind: hindcast_model::resource::EdgeKind,
    }
    s.collect_seq(edges.iter().map(|e| Shown {
        from: e.from.to_string(),
        to: e.to.to_string(),
        kind: e.kind,
    }))
}

fn labels_as_map<S: serde::Serializer>(labels: &Labels, s: S) -> Result<S::Ok, S::Error> {
    s.collect_map(labels.iter())
}

fn as_number<S: serde::Serializer>(value: &Option<f64>, s: S) -> Result<S::Ok, S::Error> {
    match *value {
        None => s.serialize_none(),
        Some(v) if v.is_finite() => s.serialize_f64(v),
        Some(v) if v.is_nan() => s.serialize_str("NaN"),
        Some(v) => s.serialize_str(if v > 0.0 { "+Inf" } else { "-Inf" }),
    }
}

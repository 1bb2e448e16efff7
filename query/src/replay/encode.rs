//! How specs and frames become bytes, and back: the canonical encoding of `FORMAT.md`.
//!
//! Promises
//! - One value has one encoding: fields in a fixed order, lists length-prefixed, no maps, one bit pattern for NaN.
//! - Whatever `decode_*` accepts, encodes to the same bytes again.
//! - No input makes the decoder panic, or allocate more than a small multiple of the input.
//!
//! Integers are little-endian. Times are nanoseconds since the Unix epoch.

use super::frame::{
    AlertFrame, Change, ChangeKind, DomainFrame, Fact, Frame, LeftOut, Level, LineFrame, LogsFrame, ResourceFrame,
    ResourceNode, SignalFrame, State, StreamFrame, TopologyFrame,
};
use super::spec::{AsOf, ReplaySpec};
use hindcast_model::resource::{Edge, EdgeKind};
use hindcast_model::{
    CutId, Domain, GroupId, IncidentId, Kind, Labels, Positions, ResourceId, Severity, SpanNs, TenantId, TimestampNs,
};

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"HCRF";
/// Rises when a byte of an old replay would change its meaning.
pub const FORMAT_VERSION: u8 = 1;
/// The bits of every NaN in a frame.
pub const NAN_BITS: u64 = 0x7ff8_0000_0000_0000;

const KIND_SPEC: u8 = 0;
const KIND_FRAME: u8 = 1;

/// Bytes that are no spec and no frame of a version that this program reads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a replay frame: {what} at byte {at}")]
pub struct BadFrame {
    pub at: usize,
    pub what: &'static str,
}

/// Frame 0.
pub fn encode_spec(spec: &ReplaySpec) -> Vec<u8> {
    let mut w = Writer::start(KIND_SPEC);
    w.text(spec.tenant.as_str());
    w.option(spec.incident, |w, i| w.u64(i.0));
    w.list(&spec.resources, |w, r| w.id(*r));
    w.u32(spec.depth);
    w.i64(spec.from.0);
    w.i64(spec.to.0);
    w.u64(spec.step.0);
    w.list(&spec.domains, |w, d| w.u8(domain_code(*d)));
    match &spec.as_of {
        AsOf::Corrected => w.u8(0),
        AsOf::Cut { id, positions } => {
            w.u8(1);
            w.u64(id.0);
            w.count(positions.len());
            for (group, index) in positions {
                w.u64(group.0);
                w.u64(*index);
            }
        }
    }
    w.u32(spec.binding_revision);
    w.u32(spec.evaluator_version);
    w.out
}

pub fn decode_spec(bytes: &[u8]) -> Result<ReplaySpec, BadFrame> {
    let mut r = Reader::start(bytes, KIND_SPEC)?;
    let tenant = r.text()?;
    let tenant = TenantId::new(&tenant).map_err(|_| r.bad("not a tenant name"))?;
    let spec = ReplaySpec {
        tenant,
        incident: r.option(|r| Ok(IncidentId(r.u64()?)))?,
        resources: r.list(Reader::id)?,
        depth: r.u32()?,
        from: TimestampNs(r.i64()?),
        to: TimestampNs(r.i64()?),
        step: SpanNs(r.u64()?),
        domains: r.list(Reader::domain)?,
        as_of: r.as_of()?,
        binding_revision: r.u32()?,
        evaluator_version: r.u32()?,
    };
    r.end(spec)
}

/// A frame from 1 on.
pub fn encode_frame(frame: &Frame) -> Vec<u8> {
    let mut w = Writer::start(KIND_FRAME);
    w.u64(frame.number);
    w.i64(frame.at.0);
    w.list(&frame.domains, Writer::domain);
    w.list(&frame.topology.resources, |w, n| {
        w.id(n.id);
        w.u8(kind_code(n.kind));
        w.text(&n.name);
    });
    w.list(&frame.topology.edges, |w, e| {
        w.id(e.from);
        w.id(e.to);
        w.u8(edge_code(e.kind));
    });
    w.list(&frame.alerts, Writer::alert);
    w.list(&frame.incidents, Writer::fact);
    w.list(&frame.tickets, Writer::fact);
    w.logs(&frame.logs);
    w.list(&frame.changes, |w, c| {
        w.i64(c.at.0);
        w.u8(change_code(c.kind));
        w.u64(c.index);
        w.u32(c.seq);
        w.text(&c.object);
        w.text(&c.what);
    });
    let LeftOut {
        resources,
        signals,
        alerts,
        incidents,
        tickets,
        changes,
    } = frame.left_out;
    for n in [resources, signals, alerts, incidents, tickets, changes] {
        w.u32(n);
    }
    w.list(&frame.incomplete, |w, m| w.text(m));
    w.out
}

pub fn decode_frame(bytes: &[u8]) -> Result<Frame, BadFrame> {
    let mut r = Reader::start(bytes, KIND_FRAME)?;
    let frame = Frame {
        number: r.u64()?,
        at: TimestampNs(r.i64()?),
        domains: r.list(Reader::domain_frame)?,
        topology: TopologyFrame {
            resources: r.list(|r| {
                Ok(ResourceNode {
                    id: r.id()?,
                    kind: r.kind()?,
                    name: r.text()?,
                })
            })?,
            edges: r.list(|r| {
                Ok(Edge {
                    from: r.id()?,
                    to: r.id()?,
                    kind: r.edge_kind()?,
                })
            })?,
        },
        alerts: r.list(Reader::alert)?,
        incidents: r.list(Reader::fact)?,
        tickets: r.list(Reader::fact)?,
        logs: r.logs()?,
        changes: r.list(|r| {
            Ok(Change {
                at: TimestampNs(r.i64()?),
                kind: r.change_kind()?,
                index: r.u64()?,
                seq: r.u32()?,
                object: r.text()?,
                what: r.text()?,
            })
        })?,
        left_out: LeftOut {
            resources: r.u32()?,
            signals: r.u32()?,
            alerts: r.u32()?,
            incidents: r.u32()?,
            tickets: r.u32()?,
            changes: r.u32()?,
        },
        incomplete: r.list(Reader::text)?,
    };
    r.end(frame)
}

const fn domain_code(d: Domain) -> u8 {
    match d {
        Domain::Sms => 1,
        Domain::Dbms => 2,
        Domain::Apm => 3,
        Domain::Nms => 4,
    }
}

const fn kind_code(k: Kind) -> u8 {
    match k {
        Kind::Host => 1,
        Kind::Container => 2,
        Kind::Vm => 3,
        Kind::Hypervisor => 4,
        Kind::Database => 5,
        Kind::Service => 6,
        Kind::Instance => 7,
        Kind::Device => 8,
        Kind::Interface => 9,
    }
}

const fn edge_code(k: EdgeKind) -> u8 {
    match k {
        EdgeKind::RunsOn => 1,
        EdgeKind::PartOf => 2,
        EdgeKind::DependsOn => 3,
        EdgeKind::ConnectsTo => 4,
    }
}

const fn change_code(k: ChangeKind) -> u8 {
    match k {
        ChangeKind::Alert => 1,
        ChangeKind::Incident => 2,
        ChangeKind::Ticket => 3,
        ChangeKind::Delivery => 4,
        ChangeKind::Rule => 5,
        ChangeKind::Cut => 6,
        ChangeKind::Pin => 7,
        ChangeKind::Resource => 16,
        ChangeKind::Edge => 17,
    }
}

const fn state_code(s: State) -> u8 {
    match s {
        State::Ok => 0,
        State::Minor => 1,
        State::Major => 2,
        State::Critical => 3,
        State::NoData => 4,
    }
}

const fn level_code(l: Level) -> u8 {
    match l {
        Level::Fatal => 0,
        Level::Error => 1,
        Level::Warn => 2,
        Level::Info => 3,
        Level::Debug => 4,
        Level::Unknown => 5,
    }
}

/// The byte of a value, looked up in the same table that wrote it.
fn from_code<T: Copy>(all: &[T], code: impl Fn(T) -> u8, byte: u8) -> Option<T> {
    all.iter().copied().find(|v| code(*v) == byte)
}

struct Writer {
    out: Vec<u8>,
}

impl Writer {
    fn start(kind: u8) -> Self {
        let mut out = MAGIC.to_vec();
        out.extend([FORMAT_VERSION, kind]);
        Self { out }
    }
    fn u8(&mut self, v: u8) {
        self.out.push(v);
    }
    fn u32(&mut self, v: u32) {
        self.out.extend(v.to_le_bytes());
    }
    fn u64(&mut self, v: u64) {
        self.out.extend(v.to_le_bytes());
    }
    fn i64(&mut self, v: i64) {
        self.out.extend(v.to_le_bytes());
    }
    fn f64(&mut self, v: f64) {
        self.u64(if v.is_nan() { NAN_BITS } else { v.to_bits() });
    }
    fn id(&mut self, id: ResourceId) {
        self.out.extend(id.0);
    }
    /// # Panics
    /// Beyond 2^32 items: every list of a frame has a bound far below.
    fn count(&mut self, n: usize) {
        self.u32(u32::try_from(n).expect("lists of a frame are bounded"));
    }
    fn text(&mut self, s: &str) {
        self.count(s.len());
        self.out.extend(s.as_bytes());
    }
    fn list<T>(&mut self, items: &[T], mut each: impl FnMut(&mut Self, &T)) {
        self.count(items.len());
        for item in items {
            each(self, item);
        }
    }
    fn option<T>(&mut self, v: Option<T>, some: impl FnOnce(&mut Self, T)) {
        match v {
            None => self.u8(0),
            Some(v) => {
                self.u8(1);
                some(self, v);
            }
        }
    }
    fn labels(&mut self, labels: &Labels) {
        self.count(labels.len());
        for (n, v) in labels.iter() {
            self.text(n);
            self.text(v);
        }
    }

    fn domain(&mut self, d: &DomainFrame) {
        self.u8(domain_code(d.domain));
        self.list(&d.resources, |w, r| {
            w.id(r.id);
            w.u8(state_code(r.state));
            w.list(&r.signals, |w, s| {
                w.text(&s.name);
                w.text(&s.object);
                w.u8(s.binding);
                w.option(s.value, Self::f64);
            });
        });
    }

    fn alert(&mut self, a: &AlertFrame) {
        self.text(&a.id);
        self.text(&a.phase);
        self.u8(a.severity.map_or(0, Severity::code));
        self.i64(a.since.0);
        self.option(a.incident, |w, i| w.u64(i.0));
        self.list(&a.resources, |w, r| w.id(*r));
        self.text(&a.state);
    }

    fn fact(&mut self, f: &Fact) {
        self.text(&f.object);
        self.text(&f.change);
        self.i64(f.at.0);
        self.text(&f.state);
    }

    fn logs(&mut self, logs: &LogsFrame) {
        self.list(&logs.streams, |w, s| {
            w.labels(&s.labels);
            w.option(s.owner, Self::id);
            for n in s.lines_by_level {
                w.u64(n);
            }
        });
        self.u32(logs.streams_left_out);
        for n in logs.lines_left_out_by_level {
            self.u64(n);
        }
        self.list(&logs.lines, |w, l| {
            w.i64(l.at.0);
            w.u32(l.stream);
            w.u8(level_code(l.level));
            w.text(&l.line);
            w.u32(l.bytes);
            w.list(&l.metadata, |w, (n, v)| {
                w.text(n);
                w.text(v);
            });
        });
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

type Read<T> = Result<T, BadFrame>;

impl<'a> Reader<'a> {
    fn start(bytes: &'a [u8], kind: u8) -> Read<Self> {
        let mut r = Self { bytes, at: 0 };
        if r.take(4)? != MAGIC {
            return Err(BadFrame { at: 0, what: "no HCRF" });
        }
        if r.u8()? != FORMAT_VERSION {
            return Err(BadFrame {
                at: 4,
                what: "a format version from the future",
            });
        }
        if r.u8()? != kind {
            return Err(BadFrame {
                at: 5,
                what: "another kind of frame",
            });
        }
        Ok(r)
    }
    fn end<T>(self, value: T) -> Read<T> {
        if self.at == self.bytes.len() {
            Ok(value)
        } else {
            Err(self.bad("more bytes than fields"))
        }
    }
    fn bad(&self, what: &'static str) -> BadFrame {
        BadFrame { at: self.at, what }
    }
    fn take(&mut self, n: usize) -> Read<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        if n > rest.len() {
            return Err(self.bad("the bytes end early"));
        }
        self.at += n;
        Ok(&rest[..n])
    }
    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("take gives N bytes"))
    }
    fn u8(&mut self) -> Read<u8> {
        Ok(self.array::<1>()?[0])
    }
    fn u32(&mut self) -> Read<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    fn u64(&mut self) -> Read<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    fn i64(&mut self) -> Read<i64> {
        Ok(i64::from_le_bytes(self.array()?))
    }
    fn f64(&mut self) -> Read<f64> {
        let bits = self.u64()?;
        let v = f64::from_bits(bits);
        if v.is_nan() && bits != NAN_BITS {
            return Err(self.bad("a NaN of other bits"));
        }
        Ok(v)
    }
    fn id(&mut self) -> Read<ResourceId> {
        Ok(ResourceId(self.array()?))
    }
    fn text(&mut self) -> Read<String> {
        let n = self.u32()? as usize;
        let bytes = self.take(n)?;
        match std::str::from_utf8(bytes) {
            Ok(s) => Ok(s.to_owned()),
            Err(_) => Err(self.bad("text that is not UTF-8")),
        }
    }
    fn list<T>(&mut self, mut each: impl FnMut(&mut Self) -> Read<T>) -> Read<Vec<T>> {
        let n = self.u32()?;
        // No capacity in advance: the count is a claim, the items are the proof.
        let mut items = vec![];
        for _ in 0..n {
            items.push(each(self)?);
        }
        Ok(items)
    }
    fn option<T>(&mut self, some: impl FnOnce(&mut Self) -> Read<T>) -> Read<Option<T>> {
        match self.u8()? {
            0 => Ok(None),
            1 => Ok(Some(some(self)?)),
            _ => Err(self.bad("neither there nor absent")),
        }
    }
    fn coded<T: Copy>(&mut self, all: &[T], code: impl Fn(T) -> u8, what: &'static str) -> Read<T> {
        let byte = self.u8()?;
        from_code(all, code, byte).ok_or_else(|| self.bad(what))
    }
    fn domain(&mut self) -> Read<Domain> {
        self.coded(&Domain::ALL, domain_code, "an unknown domain")
    }
    fn kind(&mut self) -> Read<Kind> {
        self.coded(&Kind::ALL, kind_code, "an unknown kind of resource")
    }
    fn edge_kind(&mut self) -> Read<EdgeKind> {
        use EdgeKind::{ConnectsTo, DependsOn, PartOf, RunsOn};
        let all = [RunsOn, PartOf, DependsOn, ConnectsTo];
        self.coded(&all, edge_code, "an unknown kind of edge")
    }
    fn change_kind(&mut self) -> Read<ChangeKind> {
        self.coded(&ChangeKind::ALL, change_code, "an unknown kind of change")
    }
    fn labels(&mut self) -> Read<Labels> {
        let pairs = self.list(|r| Ok((r.text()?, r.text()?)))?;
        let given = pairs.clone();
        let labels = Labels::new(pairs);
        let same = labels.iter().eq(given.iter().map(|(n, v)| (n.as_str(), v.as_str())));
        if same {
            Ok(labels)
        } else {
            Err(self.bad("labels out of order"))
        }
    }
    fn as_of(&mut self) -> Read<AsOf> {
        match self.u8()? {
            0 => Ok(AsOf::Corrected),
            1 => {
                let id = CutId(self.u64()?);
                let given = self.list(|r| Ok((GroupId(r.u64()?), r.u64()?)))?;
                let positions: Positions = given.iter().copied().collect();
                if !positions.iter().map(|(g, i)| (*g, *i)).eq(given) {
                    return Err(self.bad("positions out of order"));
                }
                Ok(AsOf::Cut { id, positions })
            }
            _ => Err(self.bad("an unknown as-of")),
        }
    }

    fn domain_frame(&mut self) -> Read<DomainFrame> {
        Ok(DomainFrame {
            domain: self.domain()?,
            resources: self.list(|r| {
                Ok(ResourceFrame {
                    id: r.id()?,
                    state: r.coded(&State::ALL, state_code, "an unknown state")?,
                    signals: r.list(|r| {
                        Ok(SignalFrame {
                            name: r.text()?,
                            object: r.text()?,
                            binding: r.u8()?,
                            value: r.option(Self::f64)?,
                        })
                    })?,
                })
            })?,
        })
    }

    fn alert(&mut self) -> Read<AlertFrame> {
        Ok(AlertFrame {
            id: self.text()?,
            phase: self.text()?,
            severity: match self.u8()? {
                0 => None,
                byte => {
                    let all = [Severity::Minor, Severity::Major, Severity::Critical];
                    let found = from_code(&all, Severity::code, byte);
                    Some(found.ok_or_else(|| self.bad("an unknown severity"))?)
                }
            },
            since: TimestampNs(self.i64()?),
            incident: self.option(|r| Ok(IncidentId(r.u64()?)))?,
            resources: self.list(Self::id)?,
            state: self.text()?,
        })
    }

    fn fact(&mut self) -> Read<Fact> {
        Ok(Fact {
            object: self.text()?,
            change: self.text()?,
            at: TimestampNs(self.i64()?),
            state: self.text()?,
        })
    }

    fn by_level(&mut self) -> Read<[u64; Level::ALL.len()]> {
        let mut counts = [0; Level::ALL.len()];
        for n in &mut counts {
            *n = self.u64()?;
        }
        Ok(counts)
    }

    fn logs(&mut self) -> Read<LogsFrame> {
        let streams = self.list(|r| {
            Ok(StreamFrame {
                labels: r.labels()?,
                owner: r.option(Self::id)?,
                lines_by_level: r.by_level()?,
            })
        })?;
        let streams_left_out = self.u32()?;
        let lines_left_out_by_level = self.by_level()?;
        let lines = self.list(|r| {
            let at = TimestampNs(r.i64()?);
            let stream = r.u32()?;
            if stream as usize >= streams.len() {
                return Err(r.bad("a line of no stream"));
            }
            Ok(LineFrame {
                at,
                stream,
                level: r.coded(&Level::ALL, level_code, "an unknown level")?,
                line: r.text()?,
                bytes: r.u32()?,
                metadata: r.list(|r| Ok((r.text()?, r.text()?)))?,
            })
        })?;
        Ok(LogsFrame {
            streams,
            streams_left_out,
            lines_left_out_by_level,
            lines,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{any_frame, any_spec};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_frame_reads_back_as_it_was_written(frame in any_frame()) {
            let bytes = encode_frame(&frame);
            let back = decode_frame(&bytes).unwrap();
            prop_assert_eq!(&back, &frame);
            prop_assert_eq!(encode_frame(&back), bytes);
        }

        #[test]
        fn a_spec_reads_back_as_it_was_written(spec in any_spec()) {
            let bytes = encode_spec(&spec);
            prop_assert_eq!(decode_spec(&bytes).unwrap(), spec);
        }

        #[test]
        fn random_bytes_are_refused_not_trusted(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for kind in [KIND_SPEC, KIND_FRAME] {
                let mut framed = MAGIC.to_vec();
                framed.extend([FORMAT_VERSION, kind]);
                framed.extend(&bytes);
                // Whatever is accepted is canonical; most is refused, nothing panics.
                if let Ok(f) = decode_frame(&framed) {
                    prop_assert_eq!(encode_frame(&f), framed.clone());
                }
                if let Ok(s) = decode_spec(&framed) {
                    prop_assert_eq!(encode_spec(&s), framed);
                }
            }
            let _ = (decode_frame(&bytes), decode_spec(&bytes));
        }

        #[test]
        fn a_damaged_frame_never_passes_for_another_encoding(
            frame in any_frame(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>(),
        ) {
            let mut bytes = encode_frame(&frame);
            let at = at.index(bytes.len());
            if cut {
                bytes.truncate(at);
            } else {
                bytes[at] = byte;
            }
            if let Ok(f) = decode_frame(&bytes) {
                prop_assert_eq!(encode_frame(&f), bytes);
            }
        }
    }

    #[test]
    fn every_nan_is_written_alike_and_minus_zero_stays() {
        let mut frame = Frame::empty(1, TimestampNs(0));
        let bits = |v: f64, frame: &mut Frame| {
            frame.domains = vec![DomainFrame {
                domain: Domain::Sms,
                resources: vec![ResourceFrame {
                    id: ResourceId([0; 16]),
                    state: State::Ok,
                    signals: vec![SignalFrame {
                        name: "s".into(),
                        object: String::new(),
                        binding: 0,
                        value: Some(v),
                    }],
                }],
            }];
            let back = decode_frame(&encode_frame(frame)).unwrap();
            back.domains[0].resources[0].signals[0].value.unwrap().to_bits()
        };
        for nan in [
            f64::NAN.to_bits(),
            0xfff8_0000_0000_0001,
            hindcast_model::STALE_NAN_BITS,
        ] {
            assert_eq!(bits(f64::from_bits(nan), &mut frame), NAN_BITS);
        }
        assert_eq!(bits(-0.0, &mut frame), (-0.0f64).to_bits());
    }

    #[test]
    fn a_length_that_lies_costs_nothing() {
        let mut bytes = encode_frame(&Frame::empty(1, TimestampNs(0)));
        // The count of domains follows magic, version, kind, number and time.
        bytes[22..26].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(decode_frame(&bytes).is_err());
    }
}

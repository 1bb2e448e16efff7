//! Specs and frames of every shape, for properties.

use super::frame::{
    AlertFrame, Change, ChangeKind, DomainFrame, Fact, Frame, LeftOut, Level, LineFrame, LogsFrame, ResourceFrame,
    ResourceNode, SignalFrame, State, StreamFrame, TopologyFrame,
};
use super::spec::{AsOf, ReplaySpec};
use hindcast_model::resource::{Edge, EdgeKind};
use hindcast_model::{
    CutId, Domain, GroupId, IncidentId, Kind, Labels, ResourceId, Severity, SpanNs, TenantId, TimestampNs,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

fn id() -> impl Strategy<Value = ResourceId> {
    any::<[u8; 16]>().prop_map(ResourceId)
}
fn at() -> impl Strategy<Value = TimestampNs> {
    any::<i64>().prop_map(TimestampNs)
}
fn text() -> impl Strategy<Value = String> {
    "[a-z가-힣\"\\\\ ]{0,6}"
}
fn labels() -> impl Strategy<Value = Labels> {
    vec(("[a-z]{1,4}", "[a-z]{0,4}"), 0..4).prop_map(Labels::new)
}
fn incident() -> impl Strategy<Value = Option<IncidentId>> {
    option::of(any::<u64>().prop_map(IncidentId))
}

pub fn any_spec() -> impl Strategy<Value = ReplaySpec> {
    let positions = btree_map(any::<u64>().prop_map(GroupId), any::<u64>(), 0..4);
    let as_of = prop_oneof![
        Just(AsOf::Corrected),
        (any::<u64>(), positions).prop_map(|(id, positions)| AsOf::Cut {
            id: CutId(id),
            positions
        }),
    ];
    let domains = subsequence(Domain::ALL.to_vec(), 0..=4);
    let window = (at(), at(), any::<u64>());
    let rest = (any::<u32>(), any::<u32>(), any::<u32>());
    (incident(), vec(id(), 0..4), window, domains, as_of, rest).prop_map(
        |(incident, resources, (from, to, step), domains, as_of, (depth, binding_revision, evaluator_version))| {
            ReplaySpec {
                tenant: TenantId::new("team-a").unwrap(),
                incident,
                resources,
                depth,
                from,
                to,
                step: SpanNs(step),
                domains,
                as_of,
                binding_revision,
                evaluator_version,
            }
        },
    )
}

fn any_domain() -> impl Strategy<Value = DomainFrame> {
    let value = option::of(any::<u64>().prop_map(f64::from_bits));
    let signal = (text(), text(), any::<u8>(), value).prop_map(|(name, object, binding, value)| SignalFrame {
        name,
        object,
        binding,
        value,
    });
    let resource = (id(), select(&State::ALL[..]), vec(signal, 0..4)).prop_map(|(id, state, signals)| ResourceFrame {
        id,
        state,
        signals,
    });
    (select(&Domain::ALL[..]), vec(resource, 0..3)).prop_map(|(domain, resources)| DomainFrame { domain, resources })
}

fn any_topology() -> impl Strategy<Value = TopologyFrame> {
    use EdgeKind::{ConnectsTo, DependsOn, PartOf, RunsOn};
    let node = (id(), select(&Kind::ALL[..]), text()).prop_map(|(id, kind, name)| ResourceNode { id, kind, name });
    let kinds = select(vec![RunsOn, PartOf, DependsOn, ConnectsTo]);
    let edge = (id(), id(), kinds).prop_map(|(from, to, kind)| Edge { from, to, kind });
    (vec(node, 0..3), vec(edge, 0..3)).prop_map(|(resources, edges)| TopologyFrame { resources, edges })
}

fn any_alert() -> impl Strategy<Value = AlertFrame> {
    let severity = option::of(select(vec![Severity::Minor, Severity::Major, Severity::Critical]));
    let head = (text(), text(), severity, at());
    (head, incident(), vec(id(), 0..3), text()).prop_map(
        |((id, phase, severity, since), incident, resources, state)| AlertFrame {
            id,
            phase,
            severity,
            since,
            incident,
            resources,
            state,
        },
    )
}

fn any_fact() -> impl Strategy<Value = Fact> {
    (text(), text(), at(), text()).prop_map(|(object, change, at, state)| Fact {
        object,
        change,
        at,
        state,
    })
}

fn any_logs() -> impl Strategy<Value = LogsFrame> {
    let stream =
        (labels(), option::of(id()), any::<[u64; 6]>()).prop_map(|(labels, owner, lines_by_level)| StreamFrame {
            labels,
            owner,
            lines_by_level,
        });
    let metadata = vec((text(), text()), 0..3);
    let line = (
        at(),
        any::<u32>(),
        select(&Level::ALL[..]),
        text(),
        any::<u32>(),
        metadata,
    );
    (vec(stream, 1..4), any::<u32>(), any::<[u64; 6]>(), vec(line, 0..4)).prop_map(
        |(streams, streams_left_out, lines_left_out_by_level, lines)| LogsFrame {
            lines: lines
                .into_iter()
                .map(|(at, stream, level, line, bytes, metadata)| LineFrame {
                    at,
                    stream: stream % streams.len() as u32,
                    level,
                    line,
                    bytes,
                    metadata,
                })
                .collect(),
            streams,
            streams_left_out,
            lines_left_out_by_level,
        },
    )
}

fn any_change() -> impl Strategy<Value = Change> {
    let kind = select(&ChangeKind::ALL[..]);
    (at(), kind, any::<u64>(), any::<u32>(), text(), text()).prop_map(|(at, kind, index, seq, object, what)| Change {
        at,
        kind,
        index,
        seq,
        object,
        what,
    })
}

pub fn any_frame() -> impl Strategy<Value = Frame> {
    let left_out = any::<[u32; 6]>().prop_map(|[resources, signals, alerts, incidents, tickets, changes]| LeftOut {
        resources,
        signals,
        alerts,
        incidents,
        tickets,
        changes,
    });
    let facts = (vec(any_alert(), 0..3), vec(any_fact(), 0..3), vec(any_fact(), 0..3));
    let head = (any::<u64>(), at(), vec(any_domain(), 0..4), any_topology());
    let tail = (any_logs(), vec(any_change(), 0..3), left_out, vec(text(), 0..3));
    (head, facts, tail).prop_map(
        |((number, at, domains, topology), (alerts, incidents, tickets), (logs, changes, left_out, incomplete))| {
            Frame {
                number,
                at,
                domains,
                topology,
                alerts,
                incidents,
                tickets,
                logs,
                changes,
                left_out,
                incomplete,
            }
        },
    )
}

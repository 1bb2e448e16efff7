//! Which labels a resource gives to its series and streams, so that two hosts never share a label set.
//!
//! - `job`: `service.namespace/service.name`; without a service the kind of the owner.
//! - `instance`: `service.instance.id`; without it the host, for what a service says of itself (two copies of a
//!   service share the owner's key), and the owner's name for anything else.
//! - A stream gets a fixed list of attributes as labels, with underscores, as Loki does for OTLP.

use hindcast_model::resource::{Edge, EdgeKind, metric, owning_resource};
use hindcast_model::{Kind, Labels, Resource, TenantId};

/// Attributes that become labels of a stream: those that Loki indexes by default, and the host.
const STREAM_ATTRIBUTES: [&str; 20] = [
    "service.name",
    "service.namespace",
    "service.instance.id",
    "deployment.environment",
    "deployment.environment.name",
    "cloud.region",
    "cloud.availability_zone",
    "k8s.cluster.name",
    "k8s.namespace.name",
    "k8s.pod.name",
    "k8s.container.name",
    "container.name",
    "k8s.replicaset.name",
    "k8s.deployment.name",
    "k8s.statefulset.name",
    "k8s.daemonset.name",
    "k8s.cronjob.name",
    "k8s.job.name",
    "host.name",
    "host.id",
];

pub fn is_stream_attribute(name: &str) -> bool {
    STREAM_ATTRIBUTES.contains(&name)
}

pub fn attribute<'a>(attrs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = attrs.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    found.filter(|v| !v.is_empty())
}

/// `job` and `instance` as the resource itself gives them.
pub fn given(attrs: &[(String, String)]) -> (Option<String>, Option<String>) {
    let job = attribute(attrs, "service.name").map(|name| match attribute(attrs, "service.namespace") {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    });
    (job, attribute(attrs, "service.instance.id").map(str::to_owned))
}

/// `job` and `instance` where the resource does not give them.
pub fn derived(attrs: &[(String, String)], owner: Option<&Resource>) -> (Option<String>, Option<String>) {
    let host = || attribute(attrs, "host.name").or_else(|| attribute(attrs, "host.id"));
    let instance = match owner {
        Some(r) if matches!(r.kind, Kind::Instance | Kind::Service) => Some(host().unwrap_or(&r.name).to_owned()),
        Some(r) => Some(r.name.clone()),
        None => None,
    };
    (owner.map(|r| r.kind.as_str().to_owned()), instance)
}

/// A series' labels with `job` and `instance` where they are absent.
pub fn fill_series(labels: &Labels, attrs: &[(String, String)], owner: Option<&Resource>) -> Labels {
    let (job, instance) = given(attrs);
    let (kind, name) = derived(attrs, owner);
    let mut filled = labels.clone();
    for (label, value) in [("job", job.or(kind)), ("instance", instance.or(name))] {
        if let Some(value) = value.filter(|_| filled.get(label).is_none()) {
            filled = filled.with(label, &value);
        }
    }
    filled
}

/// A stream's labels with the resource's where they are absent.
pub fn fill_stream(labels: &Labels, attrs: &[(String, String)]) -> Labels {
    let absent = stream_pairs(attrs).filter(|(n, _)| labels.get(n).is_none());
    let own = labels.iter().map(|(n, v)| (n.to_owned(), v.to_owned()));
    own.chain(absent).collect()
}

/// The labels that a resource gives to its streams.
pub fn stream_pairs(attrs: &[(String, String)]) -> impl Iterator<Item = (String, String)> {
    let chosen = STREAM_ATTRIBUTES
        .iter()
        .filter_map(|n| Some((*n, attribute(attrs, n)?)));
    chosen.map(|(n, v)| (n.replace('.', "_"), v.to_owned()))
}

/// The resource that owns a series or stream, described by what is said of its own kind: a host that two services
/// share must not look different to each of them.
pub fn owning(tenant: &TenantId, labels: &Labels, attrs: &[(String, String)]) -> Option<Resource> {
    let mut resource = owning_resource(tenant, labels, attrs)?;
    let of_kind: &[&str] = match resource.kind {
        Kind::Host => &["host.", "os.", "cloud."],
        Kind::Container => &["container.", "k8s.", "cloud."],
        Kind::Database => &["db.", "server."],
        _ => &[""],
    };
    resource
        .attributes
        .retain(|name, _| of_kind.iter().any(|prefix| name.starts_with(prefix)));
    Some(resource)
}

/// Who runs on what, and which interface leads to which host, as one resource's attributes tell. The resources of the edges come along, so that both ends
/// are known.
pub fn edges(tenant: &TenantId, attrs: &[(String, String)]) -> (Vec<Edge>, Vec<Resource>) {
    // A metric name that speaks of a kind gives the key of that kind, or of another one when it is not complete.
    let of_kind = |kind: Kind, speaks_of_it: &str| {
        let resource = owning(tenant, &metric(speaks_of_it, &[]), attrs);
        resource.filter(|r| r.kind == kind)
    };
    let Some(host) = of_kind(Kind::Host, "node_") else {
        return (vec![], vec![]);
    };
    let on_host = [
        of_kind(Kind::Instance, "http_"),
        of_kind(Kind::Database, "pg_"),
        of_kind(Kind::Container, "container_"),
    ];
    // What is said of an interface names a host only as the neighbour on its other end.
    let linked = of_kind(Kind::Interface, "ifHC");
    let mut resources: Vec<Resource> = on_host.into_iter().flatten().chain(linked).collect();
    let edge = |r: &Resource| Edge {
        from: r.id,
        to: host.id,
        kind: if r.kind == Kind::Interface {
            EdgeKind::ConnectsTo
        } else {
            EdgeKind::RunsOn
        },
    };
    let edges: Vec<Edge> = resources.iter().map(edge).collect();
    if !edges.is_empty() {
        resources.push(host);
    }
    (edges, resources)
}

//! Which service calls which, by its spans: edges of the topology.
//!
//! - An instance is part of its service.
//! - A service depends on the database that a client span names (`db.system.name`, `server.address`, and the port, which may be left out
//!   where it is the usual one), and on the service that it names (`peer.service`, taken to be of the caller's namespace).
//! - Where neither is named: a service depends on another one when a span of a request that came (server, consumer) has a span of a
//!   request that went (client, producer) as its parent. The two come in different requests, in any order, so spans are
//!   remembered for a while ([`TIES_MAX`]). An address alone names no service.
//!
//! Edges are facts and no counts: that the same ones are found again changes nothing.

use crate::identity;
use hindcast_model::resource::{Edge, EdgeKind, metric};
use hindcast_model::{Kind, Resource, ResourceId, TenantId};
use std::collections::{BTreeMap, VecDeque};

/// Spans remembered on one node, of those that called and of those that were called each; beyond, the oldest go.
pub const TIES_MAX: usize = 50_000;

/// Ports that clients leave out, by the system's name.
const USUAL_PORTS: [(&str, &str); 10] = [
    ("postgresql", "5432"),
    ("mysql", "3306"),
    ("mariadb", "3306"),
    ("oracle.db", "1521"),
    ("microsoft.sql_server", "1433"),
    ("mongodb", "27017"),
    ("redis", "6379"),
    ("cassandra", "9042"),
    ("elasticsearch", "9200"),
    ("clickhouse", "9000"),
];

/// Attributes by which a client span names a database; those of the conventions before come second.
const SYSTEM: [&str; 2] = ["db.system.name", "db.system"];
const ADDRESS: [&str; 2] = ["server.address", "net.peer.name"];
const PORT: [&str; 2] = ["server.port", "net.peer.port"];
const DATABASE: [&str; 2] = ["db.namespace", "db.name"];
/// By which it names a service.
const PEER: &str = "peer.service";

/// Whether an attribute of a client span may say whom it calls.
pub fn names_the_called(attribute: &str) -> bool {
    attribute == PEER || [SYSTEM, ADDRESS, PORT, DATABASE].as_flattened().contains(&attribute)
}

/// The resource of a service as a whole; its instances are part of it.
pub fn service(tenant: &TenantId, namespace: &str, name: &str) -> Resource {
    let mut attributes = BTreeMap::from([("service.name".to_owned(), name.to_owned())]);
    if !namespace.is_empty() {
        attributes.insert("service.namespace".to_owned(), namespace.to_owned());
    }
    Resource {
        id: ResourceId::new(tenant, Kind::Service, &[namespace, name]),
        kind: Kind::Service,
        name: match namespace {
            "" => name.to_owned(),
            _ => format!("{namespace}/{name}"),
        },
        attributes,
    }
}

/// What a span's resource is: a service, and the instance of it.
pub struct Caller {
    pub service: Resource,
    namespace: String,
}

impl Caller {
    /// `None` when the attributes name no service.
    pub fn of(tenant: &TenantId, attrs: &[(String, String)]) -> Option<Self> {
        let name = identity::attribute(attrs, "service.name")?;
        let namespace = identity::attribute(attrs, "service.namespace").unwrap_or_default();
        Some(Self {
            service: service(tenant, namespace, name),
            namespace: namespace.to_owned(),
        })
    }

    /// The database or service that the attributes of a client span name.
    pub fn named(&self, tenant: &TenantId, span: &[(String, String)]) -> Option<Resource> {
        database(tenant, span).or_else(|| {
            let peer = identity::attribute(span, PEER)?;
            Some(service(tenant, &self.namespace, peer))
        })
    }
}

fn either<'a>(attrs: &'a [(String, String)], names: &[&str]) -> Option<&'a str> {
    names.iter().find_map(|name| identity::attribute(attrs, name))
}

fn database(tenant: &TenantId, span: &[(String, String)]) -> Option<Resource> {
    let system = either(span, &SYSTEM)?;
    let address = either(span, &ADDRESS)?;
    let usual = || USUAL_PORTS.iter().find(|(s, _)| *s == system).map(|(_, port)| *port);
    let port = either(span, &PORT).or_else(usual)?;
    let mut attrs = vec![
        ("db.system.name", system),
        ("server.address", address),
        ("server.port", port),
    ];
    attrs.extend(either(span, &DATABASE).map(|name| ("db.namespace", name)));
    let attrs: Vec<_> = attrs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    // The key of a database is one and the same, whoever speaks of it.
    identity::owning(tenant, &metric("pg_", &[]), &attrs).filter(|r| r.kind == Kind::Database)
}

/// Trace and span id, within a tenant.
pub type SpanKey = (TenantId, [u8; 16], [u8; 8]);

/// Services by span, the oldest first.
struct Spans {
    by_span: BTreeMap<SpanKey, ResourceId>,
    order: VecDeque<SpanKey>,
}

impl Spans {
    const fn new() -> Self {
        Self {
            by_span: BTreeMap::new(),
            order: VecDeque::new(),
        }
    }

    fn remember(&mut self, key: SpanKey, service: ResourceId, max: usize) {
        if self.by_span.insert(key.clone(), service).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > max {
            self.order.pop_front().map(|oldest| self.by_span.remove(&oldest));
        }
    }
}

/// One side of a call, as a span tells it.
#[derive(Clone, Debug, PartialEq)]
pub enum Side {
    /// By this span the service calls.
    Calls(SpanKey, ResourceId),
    /// The service was called by this span of another one.
    Called(SpanKey, ResourceId),
}

/// Spans whose other side may still come. The shell owns one per node.
pub struct Ties {
    callers: Spans,
    called: Spans,
    max: usize,
}

impl Default for Ties {
    fn default() -> Self {
        Self::new(TIES_MAX)
    }
}

impl Ties {
    pub const fn new(max: usize) -> Self {
        Self {
            callers: Spans::new(),
            called: Spans::new(),
            max,
        }
    }

    /// The edges of those sides whose other side is known.
    pub fn meet(&mut self, sides: Vec<Side>) -> Vec<Edge> {
        let met = sides.into_iter().filter_map(|side| match side {
            Side::Calls(span, service) => self.calls(span, service),
            Side::Called(parent, service) => self.called(parent, service),
        });
        met.collect()
    }

    /// A span by which `service` calls; who was called by it, if that is known.
    fn calls(&mut self, span: SpanKey, service: ResourceId) -> Option<Edge> {
        let called = self.called.by_span.get(&span).copied();
        self.callers.remember(span, service, self.max);
        tie(service, called?)
    }

    /// A span by which `service` was called; `parent` is the caller's.
    fn called(&mut self, parent: SpanKey, service: ResourceId) -> Option<Edge> {
        let caller = self.callers.by_span.get(&parent).copied();
        self.called.remember(parent, service, self.max);
        tie(caller?, service)
    }
}

/// One service depends on another, or on a database.
pub fn tie(from: ResourceId, to: ResourceId) -> Option<Edge> {
    (from != to).then_some(Edge {
        from,
        to,
        kind: EdgeKind::DependsOn,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    /// Each line: `calls SERVICE SPAN` or `called SERVICE PARENT`.
    fn check(max: usize, script: &str, expect: Expect) {
        let tenant = TenantId::default();
        let mut ties = Ties::new(max);
        let mut out = String::new();
        for step in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let parts: Vec<&str> = step.split(' ').collect();
            let id = service(&tenant, "", parts[1]).id;
            let key = (tenant.clone(), [1; 16], [parts[2].as_bytes()[0]; 8]);
            let edge = match parts[0] {
                "calls" => ties.calls(key, id),
                _ => ties.called(key, id),
            };
            let names = ["shop", "cart", "pay"];
            let name = |id: ResourceId| names.into_iter().find(|n| service(&tenant, "", n).id == id).unwrap();
            let shown = edge.map_or_else(|| "-".to_owned(), |e| format!("{} needs {}", name(e.from), name(e.to)));
            out += &format!("{step} -> {shown}\n");
            assert!(ties.callers.by_span.len() <= max && ties.callers.order.len() <= max);
            assert!(ties.called.by_span.len() <= max && ties.called.order.len() <= max);
        }
        expect.assert_eq(&out);
    }

    #[test]
    fn both_sides_of_a_call_meet_in_any_order_and_again() {
        check(
            2,
            "
            calls shop a
            called cart a
            called cart a
            called pay b
            calls shop b
            calls shop c
            called shop c
            calls shop d
            called cart b
            called cart d
            ",
            expect![[r#"
                calls shop a -> -
                called cart a -> shop needs cart
                called cart a -> shop needs cart
                called pay b -> -
                calls shop b -> shop needs pay
                calls shop c -> -
                called shop c -> -
                calls shop d -> -
                called cart b -> -
                called cart d -> shop needs cart
            "#]],
        );
    }

    #[test]
    fn a_client_span_names_a_database_or_a_service() {
        let tenant = TenantId::default();
        let of = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
        };
        let caller = Caller::of(&tenant, &of(&[("service.name", "shop"), ("service.namespace", "eu")])).unwrap();
        let named = |pairs: &[(&str, &str)]| {
            let found = caller.named(&tenant, &of(pairs));
            found.map_or_else(|| "-".to_owned(), |r| format!("{} {}", r.kind, r.name))
        };
        let address = ("server.address", "db-1");
        assert_eq!(
            named(&[("db.system.name", "postgresql"), address]),
            "database postgresql/db-1/5432"
        );
        assert_eq!(
            named(&[
                ("db.system", "mysql"),
                ("net.peer.name", "db-2"),
                ("net.peer.port", "3307"),
                ("db.name", "orders")
            ]),
            "database mysql/db-2/3307/orders"
        );
        assert_eq!(named(&[("db.system.name", "own"), address]), "-");
        assert_eq!(named(&[address]), "-", "an address alone names no service");
        assert_eq!(named(&[("peer.service", "cart"), address]), "service eu/cart");
        assert!(tie(caller.service.id, caller.service.id).is_none());
        assert!(Caller::of(&tenant, &of(&[("host.name", "a")])).is_none());
    }
}

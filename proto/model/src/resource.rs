//! Anything observed, and which resource owns a series or a stream.
//!
//! The owner follows from tenant, metric name, labels and resource attributes alone, never from configuration,
//! so that a late sample lands where the first one did. The tables here are therefore versioned with the data:
//! an entry may be added for names that had no rule, never changed.

use crate::ids::TenantId;
use crate::labels::{Labels, METRIC_NAME};
use crate::slot::Slot;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// A monitoring field. The order is the order of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Domain {
    Sms,
    Dbms,
    Apm,
    Nms,
}

impl Domain {
    pub const ALL: [Self; 4] = [Self::Sms, Self::Dbms, Self::Apm, Self::Nms];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sms => "SMS",
            Self::Dbms => "DBMS",
            Self::Apm => "APM",
            Self::Nms => "NMS",
        }
    }

    /// In any case.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|d| d.as_str().eq_ignore_ascii_case(text))
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Host,
    Container,
    Vm,
    Hypervisor,
    Database,
    Service,
    Instance,
    Device,
    Interface,
}

impl Kind {
    pub const ALL: [Self; 9] = [
        Self::Host,
        Self::Container,
        Self::Vm,
        Self::Hypervisor,
        Self::Database,
        Self::Service,
        Self::Instance,
        Self::Device,
        Self::Interface,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Container => "container",
            Self::Vm => "vm",
            Self::Hypervisor => "hypervisor",
            Self::Database => "database",
            Self::Service => "service",
            Self::Instance => "instance",
            Self::Device => "device",
            Self::Interface => "interface",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.as_str() == text)
    }

    pub const fn domain(self) -> Domain {
        match self {
            Self::Host | Self::Container | Self::Vm | Self::Hypervisor => Domain::Sms,
            Self::Database => Domain::Dbms,
            Self::Service | Self::Instance => Domain::Apm,
            Self::Device | Self::Interface => Domain::Nms,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A resource's stable name: 128 bits of BLAKE3 over tenant, kind and key. Shown as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ResourceId(pub [u8; 16]);

impl ResourceId {
    pub fn new(tenant: &TenantId, kind: Kind, key: &[&str]) -> Self {
        let mut h = blake3::Hasher::new_derive_key("hindcast 2026 resource id");
        for part in [tenant.as_str(), kind.as_str()].iter().chain(key) {
            h.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        let mut id = [0; 16];
        h.finalize_xof().fill(&mut id);
        Self(id)
    }

    pub fn slot(self) -> Slot {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        Slot::of_hash(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }

    pub fn parse(hex: &str) -> Option<Self> {
        if hex.len() != 32 || !hex.is_ascii() {
            return None;
        }
        let mut id = [0; 16];
        for (i, byte) in id.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).ok()?;
        }
        Some(Self(id))
    }
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is known of a resource. `name` is for people and is the last part of its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    pub id: ResourceId,
    pub kind: Kind,
    pub name: String,
    pub attributes: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EdgeKind {
    RunsOn,
    PartOf,
    DependsOn,
    ConnectsTo,
}

/// A directed relation between resources; stored with the shard of `from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Edge {
    pub from: ResourceId,
    pub to: ResourceId,
    pub kind: EdgeKind,
}

/// Which resource a series or stream belongs to. Without one, the label fingerprint decides the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Owner {
    Resource { id: ResourceId, kind: Kind },
    None,
}

impl Owner {
    /// The least of all owners, for ranges.
    pub const MIN: Self = Self::Resource {
        id: ResourceId([0; 16]),
        kind: Kind::Host,
    };

    pub fn slot(&self, labels: &Labels) -> Slot {
        match self {
            Self::Resource { id, .. } => id.slot(),
            Self::None => Slot::of_hash(labels.fingerprint()),
        }
    }
    pub fn id(&self) -> Option<ResourceId> {
        match self {
            Self::Resource { id, .. } => Some(*id),
            Self::None => None,
        }
    }
    pub fn domain(&self) -> Option<Domain> {
        match self {
            Self::Resource { kind, .. } => Some(kind.domain()),
            Self::None => None,
        }
    }
}

/// Prefixes of stored metric names and the kind that they speak of. Version 1. The longest prefix wins.
const KIND_BY_PREFIX: &[(&str, Kind)] = &[
    ("node_", Kind::Host),
    ("system_", Kind::Host),
    ("process_", Kind::Host),
    ("namedprocess_", Kind::Host),
    ("DCGM_", Kind::Host),
    ("hw_temperature", Kind::Host),
    ("hw_gpu", Kind::Host),
    ("container_", Kind::Container),
    ("vcenter_vm_", Kind::Vm),
    ("vcenter_host_", Kind::Hypervisor),
    ("vmware_vm_", Kind::Vm),
    ("vmware_host_", Kind::Hypervisor),
    ("pg_", Kind::Database),
    ("postgresql_", Kind::Database),
    ("mysql_", Kind::Database),
    ("http_", Kind::Instance),
    ("rpc_", Kind::Instance),
    ("db_client_", Kind::Instance),
    ("jvm_", Kind::Instance),
    ("hikaricp_", Kind::Instance),
    ("ifHC", Kind::Interface),
    ("ifIn", Kind::Interface),
    ("ifOut", Kind::Interface),
    ("ifOper", Kind::Interface),
    ("ifAdmin", Kind::Interface),
    ("ifHigh", Kind::Interface),
    ("hw_network", Kind::Interface),
    ("sysUpTime", Kind::Device),
    ("hrProcessor", Kind::Device),
    ("hrStorage", Kind::Device),
    ("cpmCPU", Kind::Device),
    ("ciscoMemory", Kind::Device),
    // Of our own polling.
    ("ifSpeed", Kind::Interface),
    ("snmp_interface_info", Kind::Interface),
    ("snmp_device_info", Kind::Device),
    ("snmp_up", Kind::Device),
    ("snmp_poll_", Kind::Device),
    ("laLoadInt", Kind::Device),
    ("memTotalReal", Kind::Device),
    ("memAvailReal", Kind::Device),
    ("memTotalSwap", Kind::Device),
    ("memAvailSwap", Kind::Device),
    ("memBuffer", Kind::Device),
    ("memCached", Kind::Device),
];

/// The order in which kinds are tried where no prefix speaks.
const KINDS_IN_ORDER: &[Kind] = &[
    Kind::Container,
    Kind::Database,
    Kind::Instance,
    Kind::Interface,
    Kind::Device,
    Kind::Vm,
    Kind::Hypervisor,
    Kind::Host,
];

/// An attribute, by its OTel name, from the resource attributes or from labels (where dots are underscores).
fn lookup<'a>(labels: &'a Labels, attrs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let in_attrs = attrs.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    in_attrs
        .or_else(|| labels.get(name))
        .or_else(|| name.contains('.').then(|| labels.get(&name.replace('.', "_")))?)
        .filter(|v| !v.is_empty())
}

/// The first complete key of a kind. `told`: the metric's name said which kind it is, so keys that other kinds
/// share (`job` + `instance`) may be used too.
fn key_of(kind: Kind, labels: &Labels, attrs: &[(String, String)], told: bool) -> Option<Vec<String>> {
    let get = |n: &str| lookup(labels, attrs, n).map(str::to_owned);
    let scrape = || Some(vec![get("job")?, get("instance")?]);
    let address = || {
        let instance = get("instance")?;
        let bare = match instance.rsplit_once(':') {
            Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => &instance,
        };
        Some(vec![bare.to_owned()])
    };
    match kind {
        Kind::Host => {
            let named = || Some(vec![get("host.id").or_else(|| get("host.name"))?]);
            named().or_else(address)
        }
        Kind::Container => {
            let in_pod = || Some(vec![get("k8s.pod.uid")?, get("k8s.container.name")?]);
            get("container.id").map(|id| vec![id]).or_else(in_pod)
        }
        Kind::Database => {
            let semantic = || {
                let mut key = vec![get("db.system.name")?, get("server.address")?, get("server.port")?];
                key.extend(get("db.namespace"));
                Some(key)
            };
            semantic().or_else(|| if told { scrape() } else { None })
        }
        Kind::Service => Some(vec![get("service.namespace").unwrap_or_default(), get("service.name")?]),
        Kind::Instance => {
            let semantic = || {
                let mut key = vec![get("service.namespace").unwrap_or_default(), get("service.name")?];
                key.extend(get("service.instance.id"));
                Some(key)
            };
            semantic().or_else(scrape)
        }
        Kind::Interface => Some(vec![get("instance")?, get("ifIndex")?]),
        Kind::Device => {
            let hardware = || Some(vec![get("hw.id")?, get("hw.name")?]);
            // A device by the name under which its syslog comes; its series are known by the same one.
            let by_syslog = || Some(vec![get("syslog.device")?]);
            // So are its traps.
            let by_trap = || Some(vec![get("snmp.device")?]);
            let by_address = || if told { address() } else { None };
            hardware().or_else(by_syslog).or_else(by_trap).or_else(by_address)
        }
        Kind::Vm => Some(vec![get("vcenter.vm.id")?]),
        Kind::Hypervisor => Some(vec![get("vcenter.host.name")?]),
    }
}

/// The resource that owns a series or stream, described, or `None` when no kind has a complete key.
///
/// `attrs` are resource attributes by their OTel names (`host.name`); protocols without them pass `&[]`.
pub fn owning_resource(tenant: &TenantId, labels: &Labels, attrs: &[(String, String)]) -> Option<Resource> {
    let told = labels.metric_name().and_then(|name| {
        let fits = KIND_BY_PREFIX.iter().filter(|(p, _)| name.starts_with(p));
        fits.max_by_key(|(p, _)| p.len()).map(|(_, k)| *k)
    });
    let with_key = |kind: Kind, told: bool| Some((kind, key_of(kind, labels, attrs, told)?));
    let (kind, key) = told
        .and_then(|kind| with_key(kind, true))
        .or_else(|| KINDS_IN_ORDER.iter().find_map(|&kind| with_key(kind, false)))?;
    let parts: Vec<&str> = key.iter().map(String::as_str).collect();
    let id = ResourceId::new(tenant, kind, &parts);
    let name = key
        .iter()
        .filter(|p| !p.is_empty())
        .cloned()
        .collect::<Vec<_>>()
        .join("/");
    Some(Resource {
        id,
        kind,
        name,
        attributes: attrs.iter().cloned().collect(),
    })
}

/// The owner of a series or stream: `owning_resource` without the description.
pub fn owner(tenant: &TenantId, labels: &Labels, attrs: &[(String, String)]) -> Owner {
    match owning_resource(tenant, labels, attrs) {
        Some(Resource { id, kind, .. }) => Owner::Resource { id, kind },
        None => Owner::None,
    }
}

/// Labels of a metric by its name, for tests and importers.
pub fn metric(name: &str, pairs: &[(&str, &str)]) -> Labels {
    let named = std::iter::once((METRIC_NAME, name)).chain(pairs.iter().copied());
    named.map(|(n, v)| (n.to_owned(), v.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(name: &str, pairs: &[(&str, &str)], attrs: &[(&str, &str)], expect: Expect) {
        let attrs: Vec<_> = attrs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let labels = if name.is_empty() {
            pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
        } else {
            metric(name, pairs)
        };
        let got = owning_resource(&TenantId::default(), &labels, &attrs);
        expect.assert_eq(&got.map_or("none".to_owned(), |r| format!("{} {}", r.kind, r.name)));
    }

    #[test]
    fn a_series_belongs_to_what_its_name_speaks_of() {
        let scrape = [("job", "node"), ("instance", "web-1:9100")];
        check("node_load1", &scrape, &[], expect!["host web-1"]);
        check("pg_up", &scrape, &[], expect!["database node/web-1:9100"]);
        check("up", &scrape, &[], expect!["instance node/web-1:9100"]);
        check(
            "ifHCInOctets",
            &[("instance", "sw1"), ("ifIndex", "3")],
            &[],
            expect!["interface sw1/3"],
        );
        check("sysUpTime", &[("instance", "sw1")], &[], expect!["device sw1"]);
        check("ALERTS", &[("alertname", "x")], &[], expect!["none"]);
        check(
            "",
            &[("host_name", "sw1"), ("syslog_device", "sw1")],
            &[],
            expect!["device sw1"],
        );
        // A trap of a device, and one of its interface.
        let of_device = [("instance", "sw1"), ("snmp_device", "sw1"), ("log_source", "snmptrap")];
        check("", &of_device, &[], expect!["device sw1"]);
        let of_interface = [("instance", "sw1"), ("ifIndex", "3"), ("log_source", "snmptrap")];
        check("", &of_interface, &[], expect!["interface sw1/3"]);
        check(
            "snmp_up",
            &[("job", "snmp"), ("instance", "sw1")],
            &[],
            expect!["device sw1"],
        );
    }

    #[test]
    fn resource_attributes_come_before_labels() {
        let host = [("host.name", "web-1"), ("service.name", "shop")];
        check("system_cpu_time_seconds_total", &[], &host, expect!["host web-1"]);
        check(
            "http_server_request_duration_seconds_count",
            &[],
            &host,
            expect!["instance shop"],
        );
        check(
            "",
            &[("service_name", "shop"), ("host_name", "web-1")],
            &[],
            expect!["instance shop"],
        );
        check("", &[("host_name", "web-1")], &[], expect!["host web-1"]);
    }

    #[test]
    fn an_id_reads_back_what_it_shows() {
        let id = ResourceId::new(&TenantId::default(), Kind::Host, &["web-1"]);
        assert_eq!(ResourceId::parse(&id.to_string()), Some(id));
        assert_eq!(id.to_string(), "d3a9f7f4ec7c144d670ceb29c10182c7");
    }
}

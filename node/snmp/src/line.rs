//! A trap as a line: `trap 1.3.6.1.6.3.1.1.5.3 linkDown ifIndex=4 ifName=eth0`.
//!
//! Labels of its stream: `log_source="snmptrap"`, `instance` (the device), `trap` (its name, or its OID), and `ifIndex` where it
//! tells of one interface, which makes the interface own it; else `snmp_device`, and it is the device's. Everything else is
//! metadata: each value under its object's name, or as `oid_1_3_…`.
//!
//! Names of traps of one device that name streams are bounded ([`Names`]).

use crate::Oid;
use crate::panel::name_of;
use crate::pdu::{Value, VarBind};
use crate::trap::Notice;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Traps of one device, beside the standard ones, that name streams of their own; others are `trap="other"`.
pub const TRAPS_PER_DEVICE_MAX: usize = 64;
/// Interfaces of one device that do.
pub const INTERFACES_PER_DEVICE_MAX: usize = 8_192;
/// Devices, traps and interfaces of all devices that do. A device beyond it is `instance="other"`, with its address in the line's
/// metadata.
pub const NAMES_MAX: usize = 200_000;
/// Values of one trap that are metadata; all are in the line.
pub const METADATA_VALUES_MAX: usize = 64;
/// Of one value that is metadata.
pub const METADATA_VALUE_BYTES_MAX: usize = 512;
/// Of a line.
pub const LINE_BYTES_MAX: usize = 64 * 1024;

/// The traps of SNMPv2-MIB, with what they are to people.
const STANDARD: [(u32, &str, &str); 6] = [
    (1, "coldStart", "warn"),
    (2, "warmStart", "warn"),
    (3, "linkDown", "error"),
    (4, "linkUp", "info"),
    (5, "authenticationFailure", "warn"),
    (6, "egpNeighborLoss", "warn"),
];
const STANDARD_PREFIX: [u32; 9] = [1, 3, 6, 1, 6, 3, 1, 1, 5];
const IF_INDEX: [u32; 10] = [1, 3, 6, 1, 2, 1, 2, 2, 1, 1];
/// Beside those of the panel, objects of these traps.
const OTHERS: [(&str, &[u32]); 3] = [
    ("ifIndex", &IF_INDEX),
    ("snmpTrapAddress", &[1, 3, 6, 1, 6, 3, 18, 1, 3]),
    ("snmpTrapEnterprise", &[1, 3, 6, 1, 6, 3, 1, 1, 4, 3]),
];

/// What a line is made of, beside its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrapLine {
    pub labels: Vec<(String, String)>,
    pub metadata: Vec<(String, String)>,
    pub line: String,
}

/// Which names of senders and traps name streams.
#[derive(Debug)]
pub struct Names {
    devices: BTreeMap<String, OfDevice>,
    count: usize,
    names_max: usize,
}

#[derive(Debug, Default)]
struct OfDevice {
    traps: BTreeSet<Oid>,
    interfaces: BTreeSet<u32>,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            devices: BTreeMap::new(),
            count: 0,
            names_max: NAMES_MAX,
        }
    }
}

impl Names {
    /// By which name the device names its streams.
    fn device<'d>(&mut self, device: &'d str) -> &'d str {
        if self.devices.contains_key(device) {
            return device;
        }
        if self.count >= self.names_max {
            return "other";
        }
        self.count += 1;
        self.devices.insert(device.to_owned(), OfDevice::default());
        device
    }

    /// Whether a trap, or an interface, of a device may name a stream.
    fn admit<T: Ord>(&mut self, device: &str, set: fn(&mut OfDevice) -> &mut BTreeSet<T>, max: usize, item: T) -> bool {
        let has_room = self.count < self.names_max;
        // The one for all others is never there.
        let Some(set) = self.devices.get_mut(device).map(set) else {
            return false;
        };
        if set.contains(&item) {
            return true;
        }
        let is_new = has_room && set.len() < max && set.insert(item);
        self.count += usize::from(is_new);
        is_new
    }
}

/// The name of a standard trap, and its level.
pub fn standard(trap: &Oid) -> Option<(&'static str, &'static str)> {
    let [number] = trap.below(&STANDARD_PREFIX)? else {
        return None;
    };
    STANDARD
        .iter()
        .find(|(n, ..)| n == number)
        .map(|(_, name, level)| (*name, *level))
}

fn known(oid: &Oid) -> Option<&'static str> {
    let other = OTHERS
        .iter()
        .find(|(_, prefix)| oid.below(prefix).is_some_and(|row| !row.is_empty()));
    other
        .map(|(name, _)| *name)
        .or_else(|| name_of(oid).map(|(name, _)| name))
}

/// The interface that a trap is of: the only one that its values name.
fn interface(varbinds: &[VarBind]) -> Option<u32> {
    let named = varbinds.iter().filter(|(oid, _)| oid.below(&IF_INDEX).is_some());
    let mut indexes: Vec<_> = named
        .filter_map(|(_, value)| match value {
            Value::Integer(n) => u32::try_from(*n).ok().filter(|n| *n > 0),
            _ => None,
        })
        .collect();
    indexes.dedup();
    match indexes[..] {
        [index] => Some(index),
        _ => None,
    }
}

/// Makes a line of a trap. `device` is who sent it, by the name that its series have; `labels` those of the list; `peer` its
/// address.
pub fn line(
    notice: &Notice,
    device: &str,
    labels: &BTreeMap<String, String>,
    peer: &str,
    names: &mut Names,
) -> TrapLine {
    let oid = notice.trap.to_string();
    let standard = standard(&notice.trap);
    let mut streams = vec![("log_source", "snmptrap".to_owned())];
    let interface = interface(&notice.varbinds);
    let instance = names.device(device);
    let has_name =
        standard.is_some() || names.admit(instance, |d| &mut d.traps, TRAPS_PER_DEVICE_MAX, notice.trap.clone());
    let name = standard.map_or(&*oid, |(name, _)| name);
    let own = interface.filter(|index| names.admit(instance, |d| &mut d.interfaces, INTERFACES_PER_DEVICE_MAX, *index));
    streams.push(("instance", instance.to_owned()));
    streams.push(("trap", if has_name { name } else { "other" }.to_owned()));
    match own {
        Some(index) => streams.push(("ifIndex", index.to_string())),
        None => streams.push(("snmp_device", instance.to_owned())),
    }

    let mut metadata: BTreeMap<String, String> = BTreeMap::new();
    let mut text = format!("trap {oid}");
    if let Some((name, _)) = standard {
        write!(text, " {name}").unwrap_or_default();
    }
    for (n, (oid, value)) in notice.varbinds.iter().enumerate() {
        let shown = value.to_string();
        let name = known(oid).map_or_else(|| oid.to_string(), str::to_owned);
        let quoted = shown.is_empty() || shown.contains(|c: char| c.is_whitespace() || c == '"' || c == '=');
        let written = match quoted {
            true => write!(text, " {name}={shown:?}"),
            false => write!(text, " {name}={shown}"),
        };
        written.unwrap_or_default();
        if n < METADATA_VALUES_MAX {
            let name = known(oid).map_or_else(|| format!("oid_{}", oid.to_string().replace('.', "_")), str::to_owned);
            let kept = &shown[..shown.floor_char_boundary(METADATA_VALUE_BYTES_MAX)];
            metadata.entry(name).or_insert_with(|| kept.to_owned());
        }
    }
    let is_cut = text.len() > LINE_BYTES_MAX;
    text.truncate(text.floor_char_boundary(LINE_BYTES_MAX));
    let mut add = |name: &str, value: String| {
        if !value.is_empty() {
            metadata.insert(name.to_owned(), value);
        }
    };
    add("detected_level", standard.map_or("info", |(_, level)| level).to_owned());
    add("snmp_peer", peer.to_owned());
    add("snmp_trap_oid", oid);
    add("snmp_version", notice.version.to_owned());
    add("snmp_user", notice.user.clone().unwrap_or_default());
    add("snmp_uptime", notice.uptime.map_or_else(String::new, |t| t.to_string()));
    add("snmp_cut", if is_cut { "true".to_owned() } else { String::new() });
    let own_labels = labels.iter().map(|(n, v)| (n.clone(), v.clone()));
    let streams = streams.into_iter().map(|(n, v)| (n.to_owned(), v));
    // Those that name the stream come last: they win.
    let all: BTreeMap<_, _> = own_labels.chain(streams).collect();
    TrapLine {
        labels: all.into_iter().collect(),
        metadata: metadata.into_iter().collect(),
        line: text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn notice(trap: &str, varbinds: &[(&str, Value)]) -> Notice {
        Notice {
            trap: trap.parse().unwrap(),
            uptime: Some(4200),
            varbinds: varbinds
                .iter()
                .map(|(oid, v)| (oid.parse().unwrap(), v.clone()))
                .collect(),
            is_inform: false,
            version: "2c",
            user: None,
        }
    }

    fn made(notice: &Notice, names: &mut Names) -> TrapLine {
        let labels = BTreeMap::from([
            ("site".to_owned(), "seoul".to_owned()),
            ("trap".to_owned(), "x".to_owned()),
        ]);
        line(notice, "sw-1", &labels, "10.0.0.1", names)
    }

    fn check(notice: &Notice, expect: Expect) {
        let TrapLine { labels, metadata, line } = made(notice, &mut Names::default());
        let pairs = |p: Vec<(String, String)>| {
            p.into_iter()
                .map(|(n, v)| format!("{n}={v:?}"))
                .collect::<Vec<_>>()
                .join(" ")
        };
        expect.assert_eq(&format!("{}\n{}\n{}\n", line, pairs(labels), pairs(metadata)));
    }

    fn octets(text: &str) -> Value {
        Value::Octets(text.as_bytes().to_vec())
    }

    #[test]
    fn a_link_that_goes_down_is_the_interfaces() {
        let varbinds = [
            ("1.3.6.1.2.1.2.2.1.1.4", Value::Integer(4)),
            ("1.3.6.1.2.1.2.2.1.8.4", Value::Integer(2)),
            ("1.3.6.1.2.1.31.1.1.1.1.4", octets("eth0")),
        ];
        check(
            &notice("1.3.6.1.6.3.1.1.5.3", &varbinds),
            expect![[r#"
            trap 1.3.6.1.6.3.1.1.5.3 linkDown ifIndex=4 ifOperStatus=2 ifName=eth0
            ifIndex="4" instance="sw-1" log_source="snmptrap" site="seoul" trap="linkDown"
            detected_level="error" ifIndex="4" ifName="eth0" ifOperStatus="2" snmp_peer="10.0.0.1" snmp_trap_oid="1.3.6.1.6.3.1.1.5.3" snmp_uptime="4200" snmp_version="2c"
        "#]],
        );
    }

    #[test]
    fn a_trap_of_a_vendor_is_the_devices_under_its_oid() {
        let varbinds = [
            ("1.3.6.1.4.1.99.1.0", octets("fan 2 \"failed\"")),
            ("1.3.6.1.4.1.99.2.0", Value::Octets(vec![0xff, 1])),
            ("1.3.6.1.6.3.18.1.3.0", Value::IpAddress([10, 0, 0, 9])),
            ("1.3.6.1.4.1.99.3.0", octets("")),
        ];
        check(
            &notice("1.3.6.1.4.1.99.0.7", &varbinds),
            expect![[r#"
            trap 1.3.6.1.4.1.99.0.7 1.3.6.1.4.1.99.1.0="fan 2 \"failed\"" 1.3.6.1.4.1.99.2.0=0xff01 snmpTrapAddress=10.0.0.9 1.3.6.1.4.1.99.3.0=""
            instance="sw-1" log_source="snmptrap" site="seoul" snmp_device="sw-1" trap="1.3.6.1.4.1.99.0.7"
            detected_level="info" oid_1_3_6_1_4_1_99_1_0="fan 2 \"failed\"" oid_1_3_6_1_4_1_99_2_0="0xff01" oid_1_3_6_1_4_1_99_3_0="" snmpTrapAddress="10.0.0.9" snmp_peer="10.0.0.1" snmp_trap_oid="1.3.6.1.4.1.99.0.7" snmp_uptime="4200" snmp_version="2c"
        "#]],
        );
    }

    #[test]
    fn a_trap_of_two_interfaces_is_the_devices() {
        let varbinds = [
            ("1.3.6.1.2.1.2.2.1.1.4", Value::Integer(4)),
            ("1.3.6.1.2.1.2.2.1.1.5", Value::Integer(5)),
        ];
        check(
            &notice("1.3.6.1.6.3.1.1.5.4", &varbinds),
            expect![[r#"
            trap 1.3.6.1.6.3.1.1.5.4 linkUp ifIndex=4 ifIndex=5
            instance="sw-1" log_source="snmptrap" site="seoul" snmp_device="sw-1" trap="linkUp"
            detected_level="info" ifIndex="4" snmp_peer="10.0.0.1" snmp_trap_oid="1.3.6.1.6.3.1.1.5.4" snmp_uptime="4200" snmp_version="2c"
        "#]],
        );
    }

    #[test]
    fn names_and_lengths_are_bounded() {
        let value =
            |labels: &[(String, String)], name: &str| labels.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        let mut names = Names::default();
        let shown: Vec<_> = (0..=TRAPS_PER_DEVICE_MAX)
            .map(|n| {
                value(
                    &made(&notice(&format!("1.3.6.1.4.1.99.0.{n}"), &[]), &mut names).labels,
                    "trap",
                )
                .unwrap()
            })
            .collect();
        assert_eq!(shown[TRAPS_PER_DEVICE_MAX - 1], "1.3.6.1.4.1.99.0.63");
        assert_eq!(shown[TRAPS_PER_DEVICE_MAX], "other");
        for index in 1..=INTERFACES_PER_DEVICE_MAX as i32 + 1 {
            let of = notice(
                "1.3.6.1.6.3.1.1.5.3",
                &[("1.3.6.1.2.1.2.2.1.1.1", Value::Integer(index))],
            );
            let labels = made(&of, &mut names).labels;
            let is_within = index <= INTERFACES_PER_DEVICE_MAX as i32;
            assert_eq!(value(&labels, "ifIndex").is_some(), is_within, "{index}");
        }
        names.names_max = names.count;
        let other = line(
            &notice("1.3.6.1.4.1.99.0.1", &[]),
            "sw-2",
            &BTreeMap::new(),
            "10.0.0.2",
            &mut names,
        );
        assert_eq!(value(&other.labels, "instance").as_deref(), Some("other"));
        assert_eq!(value(&other.metadata, "snmp_peer").as_deref(), Some("10.0.0.2"));
        assert_eq!(value(&other.labels, "trap").as_deref(), Some("other"));
        assert_eq!((names.devices.len(), names.count), (1, names.names_max));

        let long: Vec<_> = (0..400)
            .map(|n| (format!("1.3.6.1.4.1.99.{n}"), octets(&"가".repeat(300))))
            .collect();
        let long: Vec<_> = long.iter().map(|(oid, v)| (oid.as_str(), v.clone())).collect();
        let made = made(&notice("1.3.6.1.4.1.99.0.1", &long), &mut Names::default());
        assert!(made.line.len() <= LINE_BYTES_MAX && made.metadata.len() <= METADATA_VALUES_MAX + 7);
        assert_eq!(value(&made.metadata, "snmp_cut").as_deref(), Some("true"));
        assert!(made.metadata.iter().all(|(_, v)| v.len() <= METADATA_VALUE_BYTES_MAX));
    }
}

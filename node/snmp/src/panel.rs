//! What is asked of a device: the objects behind the network's panels and signals, under the names that Prometheus exporters
//! give them, so that rules and panels fit whoever polled.
//!
//! IF-MIB (interfaces), SNMPv2-MIB (the system), HOST-RESOURCES-MIB (processors, storage), UCD-SNMP-MIB (load and memory of Unix
//! systems), and two Cisco MIBs. What a device does not have is left out of its samples.

/// A table, by what its rows are known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    Interfaces,
    Processors,
    Storage,
    Loads,
    CiscoProcessors,
    CiscoMemory,
}

impl Table {
    /// The label that tells rows apart.
    pub const fn index_label(self) -> &'static str {
        match self {
            Self::Interfaces => "ifIndex",
            Self::Processors => "hrDeviceIndex",
            Self::Storage => "hrStorageIndex",
            Self::Loads => "laIndex",
            Self::CiscoProcessors => "cpmCPUTotalIndex",
            Self::CiscoMemory => "ciscoMemoryPoolType",
        }
    }
}

/// What becomes of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A sample under its name.
    Sample,
    /// A label of the samples of its row, under its name.
    Label,
    /// A label of the series that describes the row, or the device.
    Info,
}

#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Columns of one number are asked for together.
    pub group: u8,
    pub table: Table,
    pub name: &'static str,
    pub oid: &'static [u32],
    pub of: Use,
}

#[derive(Clone, Copy, Debug)]
pub struct Scalar {
    pub name: &'static str,
    pub oid: &'static [u32],
    pub of: Use,
}

/// The group that is asked for only when [`WIDE_COUNTERS`] came to nothing: a device without counters of 64 bits.
pub const NARROW_COUNTERS: u8 = 3;
pub const WIDE_COUNTERS: u8 = 2;
pub const GROUPS: u8 = 6;

/// Describes the device; its value is 1.
pub const DEVICE_INFO: &str = "snmp_device_info";
/// Describes an interface; its value is 1.
pub const INTERFACE_INFO: &str = "snmp_interface_info";

/// Labels that samples have of their own: a device of the list has no others of these names.
pub const OWN_LABELS: [&str; 19] = [
    "job",
    "instance",
    "ifIndex",
    "ifName",
    "ifDescr",
    "ifAlias",
    "ifType",
    "hrDeviceIndex",
    "hrStorageIndex",
    "hrStorageDescr",
    "laIndex",
    "laNames",
    "cpmCPUTotalIndex",
    "ciscoMemoryPoolType",
    "ciscoMemoryPoolName",
    "sysName",
    "sysDescr",
    "sysObjectID",
    "sysLocation",
];

const fn scalar(name: &'static str, oid: &'static [u32], of: Use) -> Scalar {
    Scalar { name, oid, of }
}

/// Each list is asked for in one request.
pub const SCALARS: [&[Scalar]; 2] = [
    &[
        scalar("sysDescr", &[1, 3, 6, 1, 2, 1, 1, 1, 0], Use::Info),
        scalar("sysObjectID", &[1, 3, 6, 1, 2, 1, 1, 2, 0], Use::Info),
        scalar("sysUpTime", &[1, 3, 6, 1, 2, 1, 1, 3, 0], Use::Sample),
        scalar("sysName", &[1, 3, 6, 1, 2, 1, 1, 5, 0], Use::Info),
        scalar("sysLocation", &[1, 3, 6, 1, 2, 1, 1, 6, 0], Use::Info),
    ],
    &[
        scalar("memTotalSwap", &[1, 3, 6, 1, 4, 1, 2021, 4, 3, 0], Use::Sample),
        scalar("memAvailSwap", &[1, 3, 6, 1, 4, 1, 2021, 4, 4, 0], Use::Sample),
        scalar("memTotalReal", &[1, 3, 6, 1, 4, 1, 2021, 4, 5, 0], Use::Sample),
        scalar("memAvailReal", &[1, 3, 6, 1, 4, 1, 2021, 4, 6, 0], Use::Sample),
        scalar("memBuffer", &[1, 3, 6, 1, 4, 1, 2021, 4, 14, 0], Use::Sample),
        scalar("memCached", &[1, 3, 6, 1, 4, 1, 2021, 4, 15, 0], Use::Sample),
    ],
];

const fn column(group: u8, table: Table, name: &'static str, oid: &'static [u32], of: Use) -> Column {
    Column {
        group,
        table,
        name,
        oid,
        of,
    }
}

use Table::{CiscoMemory, CiscoProcessors, Interfaces, Loads, Processors, Storage};

pub const COLUMNS: [Column; 31] = [
    column(0, Interfaces, "ifDescr", &[1, 3, 6, 1, 2, 1, 2, 2, 1, 2], Use::Info),
    column(0, Interfaces, "ifType", &[1, 3, 6, 1, 2, 1, 2, 2, 1, 3], Use::Info),
    column(0, Interfaces, "ifName", &[1, 3, 6, 1, 2, 1, 31, 1, 1, 1, 1], Use::Label),
    column(
        0,
        Interfaces,
        "ifAlias",
        &[1, 3, 6, 1, 2, 1, 31, 1, 1, 1, 18],
        Use::Info,
    ),
    column(
        0,
        Interfaces,
        "ifHighSpeed",
        &[1, 3, 6, 1, 2, 1, 31, 1, 1, 1, 15],
        Use::Sample,
    ),
    column(
        1,
        Interfaces,
        "ifAdminStatus",
        &[1, 3, 6, 1, 2, 1, 2, 2, 1, 7],
        Use::Sample,
    ),
    column(
        1,
        Interfaces,
        "ifOperStatus",
        &[1, 3, 6, 1, 2, 1, 2, 2, 1, 8],
        Use::Sample,
    ),
    column(
        1,
        Interfaces,
        "ifInDiscards",
        &[1, 3, 6, 1, 2, 1, 2, 2, 1, 13],
        Use::Sample,
    ),
    column(
        1,
        Interfaces,
        "ifInErrors",
        &[1, 3, 6, 1, 2, 1, 2, 2, 1, 14],
        Use::Sample,
    ),
    column(
        1,
        Interfaces,
        "ifOutDiscards",
        &[1, 3, 6, 1, 2, 1, 2, 2, 1, 19],
        Use::Sample,
    ),
    column(
        1,
        Interfaces,
        "ifOutErrors",
        &[1, 3, 6, 1, 2, 1, 2, 2, 1, 20],
        Use::Sample,
    ),
    column(
        2,
        Interfaces,
        "ifHCInOctets",
        &[1, 3, 6, 1, 2, 1, 31, 1, 1, 1, 6],
        Use::Sample,
    ),
    column(
        2,
        Interfaces,
        "ifHCInUcastPkts",
        &[1, 3, 6, 1, 2, 1, 31, 1, 1, 1, 7],
        Use::Sample,
    ),
    column(
        2,
        Interfaces,
        "ifHCOutOctets",
        &[1, 3, 6, 1, 2, 1, 31, 1, 1, 1, 10],
        Use::Sample,
    ),
    column(
        2,
        Interfaces,
        "ifHCOutUcastPkts",
        &[1, 3, 6, 1, 2, 1, 31, 1, 1, 1, 11],
        Use::Sample,
    ),
    column(3, Interfaces, "ifSpeed", &[1, 3, 6, 1, 2, 1, 2, 2, 1, 5], Use::Sample),
    column(
        3,
        Interfaces,
        "ifInOctets",
        &[1, 3, 6, 1, 2, 1, 2, 2, 1, 10],
        Use::Sample,
    ),
    column(
        3,
        Interfaces,
        "ifInUcastPkts",
        &[1, 3, 6, 1, 2, 1, 2, 2, 1, 11],
        Use::Sample,
    ),
    column(
        3,
        Interfaces,
        "ifOutOctets",
        &[1, 3, 6, 1, 2, 1, 2, 2, 1, 16],
        Use::Sample,
    ),
    column(
        3,
        Interfaces,
        "ifOutUcastPkts",
        &[1, 3, 6, 1, 2, 1, 2, 2, 1, 17],
        Use::Sample,
    ),
    column(
        4,
        Processors,
        "hrProcessorLoad",
        &[1, 3, 6, 1, 2, 1, 25, 3, 3, 1, 2],
        Use::Sample,
    ),
    column(
        4,
        Storage,
        "hrStorageDescr",
        &[1, 3, 6, 1, 2, 1, 25, 2, 3, 1, 3],
        Use::Label,
    ),
    column(
        4,
        Storage,
        "hrStorageAllocationUnits",
        &[1, 3, 6, 1, 2, 1, 25, 2, 3, 1, 4],
        Use::Sample,
    ),
    column(
        4,
        Storage,
        "hrStorageSize",
        &[1, 3, 6, 1, 2, 1, 25, 2, 3, 1, 5],
        Use::Sample,
    ),
    column(
        4,
        Storage,
        "hrStorageUsed",
        &[1, 3, 6, 1, 2, 1, 25, 2, 3, 1, 6],
        Use::Sample,
    ),
    column(5, Loads, "laNames", &[1, 3, 6, 1, 4, 1, 2021, 10, 1, 2], Use::Label),
    column(5, Loads, "laLoadInt", &[1, 3, 6, 1, 4, 1, 2021, 10, 1, 5], Use::Sample),
    column(
        5,
        CiscoProcessors,
        "cpmCPUTotal5minRev",
        &[1, 3, 6, 1, 4, 1, 9, 9, 109, 1, 1, 1, 1, 8],
        Use::Sample,
    ),
    column(
        5,
        CiscoMemory,
        "ciscoMemoryPoolName",
        &[1, 3, 6, 1, 4, 1, 9, 9, 48, 1, 1, 1, 2],
        Use::Label,
    ),
    column(
        5,
        CiscoMemory,
        "ciscoMemoryPoolUsed",
        &[1, 3, 6, 1, 4, 1, 9, 9, 48, 1, 1, 1, 5],
        Use::Sample,
    ),
    column(
        5,
        CiscoMemory,
        "ciscoMemoryPoolFree",
        &[1, 3, 6, 1, 4, 1, 9, 9, 48, 1, 1, 1, 6],
        Use::Sample,
    ),
];

/// The name of an object that is known here, and what stands behind it (the row).
pub fn name_of(oid: &crate::Oid) -> Option<(&'static str, &[u32])> {
    let columns = COLUMNS.iter().map(|c| (c.name, c.oid));
    let scalars = SCALARS
        .iter()
        .copied()
        .flatten()
        .map(|s| (s.name, &s.oid[..s.oid.len() - 1]));
    let mut all = columns.chain(scalars);
    all.find_map(|(name, prefix)| Some((name, oid.below(prefix)?)).filter(|(_, row)| !row.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_model::resource::{metric, owning_resource};
    use hindcast_model::{Kind, TenantId};

    #[test]
    fn groups_are_numbered_without_a_gap_and_each_object_is_asked_for_once() {
        let groups: std::collections::BTreeSet<_> = COLUMNS.iter().map(|c| c.group).collect();
        assert_eq!(groups, (0..GROUPS).collect());
        let names: std::collections::BTreeSet<_> = COLUMNS.iter().map(|c| c.name).collect();
        assert_eq!(names.len(), COLUMNS.len());
        let (name, row) = name_of(&"1.3.6.1.2.1.2.2.1.8.3".parse().unwrap())
            .map(|(n, r)| (n, r.to_vec()))
            .unwrap();
        assert_eq!((name, &row[..]), ("ifOperStatus", &[3][..]));
        assert!(name_of(&"1.3.6.1.2.1.2.2.1.8".parse().unwrap()).is_none());
    }

    /// A series that belonged to nobody, or to a service, would be on no panel of the network.
    #[test]
    fn every_series_belongs_to_the_device_or_to_its_interface() {
        let samples = COLUMNS
            .iter()
            .filter(|c| c.of == Use::Sample)
            .map(|c| (c.name, c.table == Interfaces));
        let scalars = SCALARS
            .iter()
            .copied()
            .flatten()
            .filter(|s| s.of == Use::Sample)
            .map(|s| (s.name, false));
        let others = [
            (DEVICE_INFO, false),
            (INTERFACE_INFO, true),
            ("snmp_up", false),
            ("snmp_poll_duration_seconds", false),
        ];
        for (name, is_interface) in samples.chain(scalars).chain(others) {
            let labels = metric(name, &[("job", "snmp"), ("instance", "sw1"), ("ifIndex", "3")]);
            let owner = owning_resource(&TenantId::default(), &labels, &[]).unwrap();
            let wanted = if is_interface {
                (Kind::Interface, "sw1/3")
            } else {
                (Kind::Device, "sw1")
            };
            assert_eq!((owner.kind, &*owner.name), wanted, "{name}");
        }
    }
}

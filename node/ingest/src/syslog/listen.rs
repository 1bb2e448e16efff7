//! Where syslog is taken, from whom, and how it is read: `udp://0.0.0.0:5514?zone=Asia/Seoul&from=10.0.0.0/8`.
//!
//! Options are those of a URL: each is given once, with a value, in which `%2B` stands for `+`.

use super::{DEVICE_PATTERNS_MAX, Devices, Settings, parse};
use encoding_rs::Encoding;
use hindcast_model::TenantId;
use jiff::tz::{Offset, TimeZone};
use percent_encoding::percent_decode_str;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Networks that one listener names.
pub const SOURCES_MAX: usize = 256;
/// Listeners of one node.
pub const LISTENERS_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    Udp,
    Tcp,
    Tls,
}

impl Transport {
    pub const ALL: [Self; 3] = [Self::Udp, Self::Tcp, Self::Tls];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }
}

/// Who may send.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Sources {
    #[default]
    Anybody,
    /// Addresses and the bits of them that count.
    Networks(Vec<(IpAddr, u8)>),
}

impl Sources {
    pub fn has(&self, peer: IpAddr) -> bool {
        match self {
            Self::Anybody => true,
            Self::Networks(networks) => networks
                .iter()
                .any(|(net, bits)| is_within(peer.to_canonical(), *net, *bits)),
        }
    }
}

fn is_within(peer: IpAddr, network: IpAddr, bits: u8) -> bool {
    let shared = match (peer, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => return false,
    };
    shared >= u32::from(bits)
}

fn network(text: &str) -> Option<(IpAddr, u8)> {
    let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.map_or(Some(most), |b| b.parse().ok())?;
    (bits <= most).then_some((address, bits))
}

/// A place where syslog is taken.
#[derive(Clone, Debug)]
pub struct Listen {
    pub transport: Transport,
    pub address: SocketAddr,
    pub sources: Sources,
    pub settings: Settings,
}

/// As it is written, without what it says of reading.
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.transport.as_str(), self.address)
    }
}

impl PartialEq for Listen {
    fn eq(&self, other: &Self) -> bool {
        format!("{self:?}") == format!("{other:?}")
    }
}

/// Why a text names no such place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("syslog listener {given:?}: {why}")]
pub struct BadListen {
    pub given: String,
    pub why: String,
}

impl Listen {
    /// `local` is the machine's own zone, in which times without one are unless the text says otherwise.
    pub fn parse(given: &str, local: &TimeZone) -> Result<Self, BadListen> {
        read(given.trim(), local).map_err(|why| BadListen {
            given: given.to_owned(),
            why,
        })
    }
}

fn read(given: &str, local: &TimeZone) -> Result<Listen, String> {
    let form = "write udp://ADDRESS:PORT, tcp://ADDRESS:PORT or tls://ADDRESS:PORT";
    let (scheme, rest) = given.split_once("://").ok_or(form)?;
    let transport = Transport::ALL.into_iter().find(|t| t.as_str() == scheme);
    let transport = transport.ok_or_else(|| format!("{scheme:?} is none of udp, tcp and tls"))?;
    let (address, options) = rest.split_once('?').unwrap_or((rest, ""));
    let address = address.strip_suffix('/').unwrap_or(address);
    let address = address
        .parse()
        .map_err(|_| format!("{address:?} is no address with a port, like 0.0.0.0:5514 or [::]:5514; {form}"))?;
    let mut listen = Listen {
        transport,
        address,
        sources: Sources::Anybody,
        settings: Settings {
            tenant: TenantId::default(),
            zone: local.clone(),
            charset: None,
            devices: Devices::default(),
        },
    };
    let mut given = BTreeSet::new();
    for option in options.split('&').filter(|o| !o.is_empty()) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        // The bar between items is looked for first, so that one that is escaped is none.
        let items = value.split('|').map(|item| {
            let item = percent_decode_str(item).decode_utf8();
            item.map_err(|_| format!("{name}: {value:?} is not UTF-8 behind its percent signs"))
        });
        let items = items.collect::<Result<Vec<_>, _>>()?;
        set(&mut listen, name, &items)?;
        if !given.insert(name) {
            return Err(format!("{name} is given twice; give it once"));
        }
    }
    Ok(listen)
}

fn set(listen: &mut Listen, name: &str, items: &[Cow<'_, str>]) -> Result<(), String> {
    let settings = &mut listen.settings;
    let value = &*items.join("|");
    let items = || items.iter().map(|i| &**i).filter(|v| !v.is_empty());
    match name {
        "tenant" => settings.tenant = TenantId::new(value).map_err(|e| e.to_string())?,
        "zone" => {
            if value != "local" {
                settings.zone = zone(value)?;
            }
        }
        "charset" => {
            let found = Encoding::for_label(value.as_bytes());
            settings.charset =
                Some(found.ok_or_else(|| format!("charset={value}: no such charset is known; write euc-kr"))?);
        }
        "from" if value == "any" => listen.sources = Sources::Anybody,
        "from" => {
            let networks = items().map(|n| {
                network(n).ok_or_else(|| format!("from={n}: write an address, or a network like 10.0.0.0/8, or any"))
            });
            let networks = networks.collect::<Result<Vec<_>, _>>()?;
            if networks.is_empty() || networks.len() > SOURCES_MAX {
                return Err(format!(
                    "from: name one to {SOURCES_MAX} networks, with | between them, or any"
                ));
            }
            listen.sources = Sources::Networks(networks);
        }
        "devices" => {
            settings.devices.hosts = items().map(str::to_owned).collect();
            if !(1..=DEVICE_PATTERNS_MAX).contains(&settings.devices.hosts.len()) {
                return Err(format!(
                    "devices: name one to {DEVICE_PATTERNS_MAX} hosts, like sw-*|10.0.9.*, with | between them"
                ));
            }
        }
        "device_facilities" => {
            if items().next().is_none() {
                return Err("device_facilities: name facilities, like local6|local7, with | between them".to_owned());
            }
            for item in items() {
                let number =
                    parse::facility(item).ok_or_else(|| format!("device_facilities: {item:?} is no facility"))?;
                settings.devices.facilities |= 1 << number;
            }
        }
        _ => {
            return Err(format!(
                "{name:?} is none of tenant, zone, charset, from, devices and device_facilities"
            ));
        }
    }
    Ok(())
}

/// `UTC`, `+09:00`, or a name of the zone database.
fn zone(text: &str) -> Result<TimeZone, String> {
    let bad = || format!("zone={text}: write local, UTC, +09:00, or a name like Asia/Seoul");
    let Some(east) = text.strip_prefix(['+', '-', ' ']) else {
        return TimeZone::get(text).map_err(|_| bad());
    };
    let (hours, minutes) = east.split_once(':').unwrap_or((east, "0"));
    let (hours, minutes): (i32, i32) = (hours.parse().map_err(|_| bad())?, minutes.parse().map_err(|_| bad())?);
    if !(0..=23).contains(&hours) || !(0..=59).contains(&minutes) {
        return Err(bad());
    }
    let sign = if text.starts_with('-') { -60 } else { 60 };
    let offset = Offset::from_seconds((hours * 60 + minutes) * sign).map_err(|_| bad())?;
    Ok(TimeZone::fixed(offset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(given: &str, expect: Expect) {
        let shown = match Listen::parse(given, &TimeZone::UTC) {
            Err(e) => e.to_string(),
            Ok(l) => {
                let s = &l.settings;
                let zone = s
                    .zone
                    .iana_name()
                    .map_or_else(|| format!("{:?}", s.zone), str::to_owned);
                let charset = s.charset.map_or("-", Encoding::name);
                let devices = format!("{:?} {:#x}", s.devices.hosts, s.devices.facilities);
                format!("{l} {} {zone} {charset} {devices} {:?}", s.tenant.as_str(), l.sources)
            }
        };
        expect.assert_eq(&shown);
    }

    #[test]
    fn a_listener_is_read_from_one_text() {
        check(
            "udp://0.0.0.0:5514",
            expect![[r#"udp://0.0.0.0:5514 default UTC - [] 0x0 Anybody"#]],
        );
        check(
            "tls://[::]:6514/?tenant=team-a&zone=Asia/Seoul&charset=euc-kr&from=10.0.0.0/8|::1&devices=sw-*|r1&device_facilities=local7|kern",
            expect![[
                r#"tls://[::]:6514 team-a Asia/Seoul EUC-KR ["sw-*", "r1"] 0x800001 Networks([(10.0.0.0, 8), (::1, 128)])"#
            ]],
        );
        check(
            "tcp://127.0.0.1:1?zone=local&from=any",
            expect!["tcp://127.0.0.1:1 default UTC - [] 0x0 Anybody"],
        );
        let offset = |text: &str| zone(text).unwrap().to_fixed_offset().unwrap().seconds();
        assert_eq!(
            (offset("+09:00"), offset("-3:30"), offset("+9")),
            (32_400, -12_600, 32_400)
        );
    }

    /// `zone=%2B09:00`, as a program writes it that knows how URLs are written, was refused.
    #[test]
    fn what_stands_behind_percent_signs_is_read() {
        check(
            "udp://0.0.0.0:5514?zone=Asia%2FSeoul&devices=a%7Cb|fe80::1%25eth0|x%|fe80::2%et*&from=10.0.0.0%2F8",
            expect![[
                r#"udp://0.0.0.0:5514 default Asia/Seoul - ["a|b", "fe80::1%eth0", "x%", "fe80::2%et*"] 0x0 Networks([(10.0.0.0, 8)])"#
            ]],
        );
        let east = Listen::parse("udp://0.0.0.0:5514?zone=%2B09:00", &TimeZone::UTC).unwrap();
        assert_eq!(east.settings.zone.to_fixed_offset().unwrap().seconds(), 32_400);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (given, why) in [
            ("0.0.0.0:514", "write udp://"),
            ("http://0.0.0.0:514", "none of udp"),
            ("udp://localhost:514", "no address with a port"),
            ("udp://0.0.0.0", "no address with a port"),
            ("udp://0.0.0.0:514?zone=Mars", "Asia/Seoul"),
            ("udp://0.0.0.0:514?zone=+99:00", "Asia/Seoul"),
            ("udp://0.0.0.0:514?charset=klingon", "no such charset"),
            ("udp://0.0.0.0:514?from=10.0.0.0/33", "10.0.0.0/8"),
            ("udp://0.0.0.0:514?from=", "name one to"),
            ("udp://0.0.0.0:514?device_facilities=local9", "no facility"),
            ("udp://0.0.0.0:514?tenant=a%20b", "tenant"),
            ("udp://0.0.0.0:514?speed=9", "none of tenant"),
            ("udp://0.0.0.0:514?devices=", "devices: name one to 256"),
            ("udp://0.0.0.0:514?devices=|", "devices: name one to 256"),
            ("udp://0.0.0.0:514?device_facilities=", "like local6|local7"),
            ("udp://0.0.0.0:514?zone=", "Asia/Seoul"),
            ("udp://0.0.0.0:514?tenant", "tenant"),
            ("udp://0.0.0.0:514?charset=", "write euc-kr"),
            ("udp://0.0.0.0:514?zone=UTC&zone=Asia/Seoul", "zone is given twice"),
            ("udp://0.0.0.0:514?zone=UTC&from=any&zone=UTC", "zone is given twice"),
            ("udp://0.0.0.0:514?devices=%ff", "not UTF-8"),
        ] {
            let said = Listen::parse(given, &TimeZone::UTC).unwrap_err().to_string();
            assert!(said.contains(why) && said.contains(given), "{said}");
        }
        let many = vec!["10.0.0.1"; SOURCES_MAX + 1].join("|");
        assert!(Listen::parse(&format!("udp://0.0.0.0:1?from={many}"), &TimeZone::UTC).is_err());
        let many = vec!["d"; DEVICE_PATTERNS_MAX + 1].join("|");
        assert!(Listen::parse(&format!("udp://0.0.0.0:1?devices={many}"), &TimeZone::UTC).is_err());
    }

    #[test]
    fn sources_are_networks() {
        let sources = Sources::Networks(vec![network("10.1.0.0/16").unwrap(), network("fd00::/8").unwrap()]);
        for (peer, is_in) in [
            ("10.1.255.1", true),
            ("10.2.0.1", false),
            ("::ffff:10.1.0.1", true),
            ("fd12::1", true),
            ("fe80::1", false),
        ] {
            assert_eq!(sources.has(peer.parse().unwrap()), is_in, "{peer}");
        }
        assert!(Sources::Networks(vec![network("0.0.0.0/0").unwrap()]).has("1.2.3.4".parse().unwrap()));
        assert!(Sources::Anybody.has("::1".parse().unwrap()));
    }
}

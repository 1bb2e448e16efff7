//! A network of hosts on one machine: a namespace for each, and a switch in this process that carries every packet.
//!
//! Each host has a TUN device in a network namespace of its own; the tests themselves sit behind one more device in
//! the namespace that they run in, with two addresses: one of clients, one of receivers. The switch reads a packet,
//! looks at the link between its two addresses, and drops it, doubles it, holds it back, or passes it on. So all faults
//! of packets are one mechanism, which needs nothing of the kernel but TUN (not every kernel has `netem`).

use anyhow::{Context, Result, ensure};
use hindcast_env::{Rng, SeededRng};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::collections::{BTreeMap, BinaryHeap};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use tun_rs::{DeviceBuilder, SyncDevice};

/// The last octet of an address names who has it.
pub type Place = u8;
/// Where the tests' clients sit.
pub const CLIENTS: Place = 254;
/// Where the tests' receivers sit.
pub const RECEIVERS: Place = 253;

/// Large, so that few packets carry much: the switch costs per packet.
const MTU: u16 = 9000;
/// Packets held back at once; more are dropped, as a full queue does.
const HELD_PACKETS_MAX: usize = 20_000;
const SWITCH_SEED: u64 = 0x5717_c400;

/// What happens to packets from one place to another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    pub is_cut: bool,
    /// Parts of a thousand.
    pub lost: u64,
    pub doubled: u64,
    /// Held back for at least and at most so long: packets overtake each other.
    pub delay: (Duration, Duration),
}

impl Link {
    pub const GOOD: Self = Self {
        is_cut: false,
        lost: 0,
        doubled: 0,
        delay: (Duration::ZERO, Duration::ZERO),
    };
    pub const CUT: Self = Self {
        is_cut: true,
        ..Self::GOOD
    };

    /// How long each copy of a packet is held back; none: it is lost.
    fn copies(&self, rng: &mut impl Rng) -> Vec<Duration> {
        if self.is_cut || rng.below(1000) < self.lost {
            return vec![];
        }
        let count = if rng.below(1000) < self.doubled { 2 } else { 1 };
        let (least, most) = self.delay;
        let spread_us = most.saturating_sub(least).as_micros() as u64;
        (0..count)
            .map(|_| least + Duration::from_micros(rng.below(spread_us + 1)))
            .collect()
    }
}

/// Sender and receiver of an IPv4 packet; `None` for anything else.
fn ends(packet: &[u8]) -> Option<(Place, Place)> {
    (packet.len() >= 20 && packet[0] >> 4 == 4).then(|| (packet[15], packet[19]))
}

struct Held {
    until: Instant,
    number: u64,
    to: Arc<SyncDevice>,
    packet: Vec<u8>,
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Held {}
impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Held {
    /// The next one is the greatest.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.until, other.number).cmp(&(self.until, self.number))
    }
}

#[derive(Default)]
struct Waiting {
    packets: BinaryHeap<Held>,
    numbers: u64,
}

struct Shared {
    links: Mutex<BTreeMap<(Place, Place), Link>>,
    devices: Mutex<BTreeMap<Place, Arc<SyncDevice>>>,
    waiting: Mutex<Waiting>,
    comes: Condvar,
}

/// The hosts' network. Namespaces go with it.
pub struct Net {
    shared: Arc<Shared>,
    /// The third octet: so that runs beside each other do not meet.
    number: u8,
    namespaces: Vec<String>,
}

pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output();
    let output = output.with_context(|| format!("{program} cannot be started"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", args.join(" "), said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Net {
    /// A network with nobody in it but the tests themselves.
    pub fn new(number: u8) -> Result<Self> {
        let shared = Arc::new(Shared {
            links: Mutex::default(),
            devices: Mutex::default(),
            waiting: Mutex::default(),
            comes: Condvar::new(),
        });
        let holding = shared.clone();
        std::thread::spawn(move || pass_on(&holding));
        let net = Self {
            shared,
            number,
            namespaces: vec![],
        };
        let device = format!("hct{number}");
        let made = DeviceBuilder::new().name(device.as_str()).build_sync();
        let made = Arc::new(made.context("no TUN device: is /dev/net/tun there, and are you root?")?);
        for place in [CLIENTS, RECEIVERS] {
            let address = format!("{}/24", net.address(place));
            run("ip", &["addr", "add", &address, "dev", &device])?;
            net.attach(place, made.clone());
        }
        run("ip", &["link", "set", &device, "up", "mtu", &MTU.to_string()])?;
        net.carry(made, CLIENTS);
        Ok(net)
    }

    pub fn address(&self, place: Place) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.number, place)
    }

    /// The namespace of a host.
    pub fn namespace(&self, place: Place) -> String {
        format!("hindcast-{}-{place}", self.number)
    }

    /// Puts one more host into the network.
    pub fn add(&mut self, place: Place) -> Result<()> {
        let name = self.namespace(place);
        // Left by a run that was killed.
        let _ = run("ip", &["netns", "del", &name]);
        run("ip", &["netns", "add", &name])?;
        self.namespaces.push(name.clone());
        run("ip", &["-n", &name, "link", "set", "lo", "up"])?;
        let inside = name.clone();
        let made = std::thread::spawn(move || -> Result<SyncDevice> {
            let namespace = rustix::fs::open(
                format!("/run/netns/{inside}"),
                rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            )?;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(DeviceBuilder::new().name("hct").build_sync()?)
        });
        let made = made.join().map_err(|_| anyhow::anyhow!("no TUN device in {name}"))?;
        let made = Arc::new(made.with_context(|| format!("no TUN device in {name}"))?);
        let address = format!("{}/24", self.address(place));
        run("ip", &["-n", &name, "addr", "add", &address, "dev", "hct"])?;
        run(
            "ip",
            &["-n", &name, "link", "set", "hct", "up", "mtu", &MTU.to_string()],
        )?;
        self.attach(place, made.clone());
        self.carry(made, place);
        Ok(())
    }

    fn attach(&self, place: Place, device: Arc<SyncDevice>) {
        self.shared.devices.lock().expect("plain data").insert(place, device);
    }

    fn carry(&self, device: Arc<SyncDevice>, place: Place) {
        let shared = self.shared.clone();
        let rng = SeededRng::new(SWITCH_SEED + u64::from(place));
        std::thread::spawn(move || carry(&shared, &device, rng));
    }

    /// What happens from now on to packets of one place to another.
    pub fn set(&self, from: Place, to: Place, link: Link) {
        self.shared.links.lock().expect("plain data").insert((from, to), link);
    }

    /// All links are good again.
    pub fn heal(&self) {
        self.shared.links.lock().expect("plain data").clear();
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in &self.namespaces {
            if let Err(e) = run("ip", &["netns", "del", name]) {
                eprintln!("{e:#}");
            }
        }
    }
}

/// Reads what a device sends until it is gone.
fn carry(shared: &Shared, device: &SyncDevice, mut rng: SeededRng) {
    let mut buffer = vec![0; usize::from(MTU) + 64];
    while let Ok(len) = device.recv(&mut buffer) {
        let packet = &buffer[..len];
        let Some((from, to)) = ends(packet) else { continue };
        let link = shared.links.lock().expect("plain data").get(&(from, to)).copied();
        let Some(device) = shared.devices.lock().expect("plain data").get(&to).cloned() else {
            continue;
        };
        for delay in link.unwrap_or(Link::GOOD).copies(&mut rng) {
            if delay.is_zero() {
                // A full queue of a device drops, like any other.
                let _ = device.send(packet);
            } else {
                hold(shared, device.clone(), packet, delay);
            }
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "packets wait in real time")]
fn hold(shared: &Shared, to: Arc<SyncDevice>, packet: &[u8], delay: Duration) {
    let mut waiting = shared.waiting.lock().expect("plain data");
    if waiting.packets.len() >= HELD_PACKETS_MAX {
        return;
    }
    waiting.numbers += 1;
    let number = waiting.numbers;
    waiting.packets.push(Held {
        until: Instant::now() + delay,
        number,
        to,
        packet: packet.to_vec(),
    });
    shared.comes.notify_one();
}

/// Passes on what was held back, when its time has come.
#[allow(clippy::disallowed_methods, reason = "packets wait in real time")]
fn pass_on(shared: &Shared) {
    let mut waiting = shared.waiting.lock().expect("plain data");
    loop {
        let now = Instant::now();
        let wait = waiting.packets.peek().map(|p| p.until.saturating_duration_since(now));
        match wait {
            Some(Duration::ZERO) => {
                if let Some(held) = waiting.packets.pop() {
                    let _ = held.to.send(&held.packet);
                }
            }
            Some(wait) => waiting = shared.comes.wait_timeout(waiting, wait).expect("plain data").0,
            None => waiting = shared.comes.wait(waiting).expect("plain data"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_loses_doubles_and_holds_back_as_told() {
        let rng = &mut SeededRng::new(1);
        assert_eq!(Link::GOOD.copies(rng), [Duration::ZERO]);
        assert!(Link::CUT.copies(rng).is_empty());
        let delay = (Duration::from_millis(5), Duration::from_millis(20));
        let bad = Link {
            lost: 200,
            doubled: 100,
            delay,
            ..Link::GOOD
        };
        let all: Vec<Vec<Duration>> = (0..10_000).map(|_| bad.copies(rng)).collect();
        let of = |count: usize| all.iter().filter(|c| c.len() == count).count();
        assert!((1_800..2_200).contains(&of(0)), "lost: {}", of(0));
        assert!((640..960).contains(&of(2)), "doubled: {}", of(2));
        assert!(all.iter().flatten().all(|d| (delay.0..=delay.1).contains(d)));
    }

    #[test]
    fn only_ipv4_packets_have_ends() {
        let mut packet = [0_u8; 20];
        assert_eq!(ends(&packet), None);
        (packet[0], packet[15], packet[19]) = (0x45, 1, 2);
        assert_eq!(ends(&packet), Some((1, 2)));
        assert_eq!(ends(&packet[..19]), None);
    }
}

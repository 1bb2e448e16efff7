//! A made-up fleet of hosts: which series each host has, and how their values move.
//!
//! Pure: a host's labels and values are functions of the seed, the host's number and the sweep.
//!
//! Invariants
//! - No two series of a fleet have the same labels, and a series' labels are sorted by name.
//! - A counter never falls; a gauge stays within its bounds.
//!
//! A sweep is one value of every series, as one scrape of the whole fleet would bring.

/// Label names and values, sorted by name.
pub type LabelPairs = Vec<(String, String)>;

/// SplitMix64: small, fast, and the same on every machine.
#[derive(Clone, Debug)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// From 0 up to, not including, 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// How the values of a family move from one sweep to the next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Motion {
    /// Grows by up to twice `mean`, in whole multiples of `grain`; stands still in `idle` of the sweeps.
    Counter { mean: f64, grain: f64, idle: f64 },
    /// Walks by up to `step` between 0 and `max`, in whole multiples of `grain`.
    Gauge { max: f64, step: f64, grain: f64 },
    /// Set once.
    Fixed(f64),
}

/// When in a host's list the next instance of a family comes.
#[derive(Clone, Copy, PartialEq)]
enum Comes {
    Once,
    /// For each of these values of the label.
    OfEach(&'static [&'static str]),
    PerCpu,
    PerDevice,
    PerDisk,
    PerMount,
}

struct Family {
    name: &'static str,
    /// The label of `Comes::OfEach`, beside the label of the instance.
    label: &'static str,
    comes: Comes,
    motion: Motion,
}

const fn counter(name: &'static str, comes: Comes, mean: f64, idle: f64) -> Family {
    let motion = Motion::Counter { mean, grain: 1.0, idle };
    Family {
        name,
        label: "",
        comes,
        motion,
    }
}

const fn seconds(name: &'static str, comes: Comes, mean: f64) -> Family {
    let motion = Motion::Counter {
        mean,
        grain: 0.01,
        idle: 0.3,
    };
    Family {
        name,
        label: "",
        comes,
        motion,
    }
}

const fn bytes(name: &'static str, comes: Comes, max: f64) -> Family {
    let motion = Motion::Gauge {
        max,
        step: max / 500.0,
        grain: 4096.0,
    };
    Family {
        name,
        label: "",
        comes,
        motion,
    }
}

const fn gauge(name: &'static str, comes: Comes, max: f64, step: f64, grain: f64) -> Family {
    Family {
        name,
        label: "",
        comes,
        motion: Motion::Gauge { max, step, grain },
    }
}

const MODES: Comes = Comes::OfEach(&["idle", "iowait", "irq", "nice", "softirq", "steal", "system", "user"]);
const STATES: Comes = Comes::OfEach(&["active", "activating", "deactivating", "failed", "inactive"]);
const GIB: f64 = 1_073_741_824.0;

/// Families in the manner of a node exporter. Those that come once are first; the others repeat until a host is full.
const FAMILIES: &[Family] = &[
    gauge("node_load1", Comes::Once, 32.0, 0.4, 0.01),
    gauge("node_load5", Comes::Once, 32.0, 0.1, 0.01),
    gauge("node_load15", Comes::Once, 32.0, 0.04, 0.01),
    bytes("node_memory_MemAvailable_bytes", Comes::Once, 64.0 * GIB),
    bytes("node_memory_MemFree_bytes", Comes::Once, 64.0 * GIB),
    bytes("node_memory_Cached_bytes", Comes::Once, 32.0 * GIB),
    bytes("node_memory_Buffers_bytes", Comes::Once, 2.0 * GIB),
    bytes("node_memory_Active_bytes", Comes::Once, 32.0 * GIB),
    bytes("node_memory_Inactive_bytes", Comes::Once, 32.0 * GIB),
    bytes("node_memory_AnonPages_bytes", Comes::Once, 32.0 * GIB),
    bytes("node_memory_Mapped_bytes", Comes::Once, 4.0 * GIB),
    bytes("node_memory_Slab_bytes", Comes::Once, 2.0 * GIB),
    bytes("node_memory_PageTables_bytes", Comes::Once, GIB),
    bytes("node_memory_Committed_AS_bytes", Comes::Once, 64.0 * GIB),
    Family {
        name: "node_memory_MemTotal_bytes",
        label: "",
        comes: Comes::Once,
        motion: Motion::Fixed(64.0 * GIB),
    },
    Family {
        name: "node_memory_SwapTotal_bytes",
        label: "",
        comes: Comes::Once,
        motion: Motion::Fixed(8.0 * GIB),
    },
    Family {
        name: "node_boot_time_seconds",
        label: "",
        comes: Comes::Once,
        motion: Motion::Fixed(1_700_000_000.0),
    },
    Family {
        name: "up",
        label: "",
        comes: Comes::Once,
        motion: Motion::Fixed(1.0),
    },
    counter("node_context_switches_total", Comes::Once, 90_000.0, 0.0),
    counter("node_intr_total", Comes::Once, 60_000.0, 0.0),
    counter("node_forks_total", Comes::Once, 40.0, 0.1),
    counter("node_vmstat_pgfault", Comes::Once, 20_000.0, 0.0),
    counter("node_vmstat_pgmajfault", Comes::Once, 2.0, 0.8),
    counter("node_vmstat_pswpin", Comes::Once, 1.0, 0.95),
    counter("node_netstat_Tcp_InSegs", Comes::Once, 12_000.0, 0.0),
    counter("node_netstat_Tcp_OutSegs", Comes::Once, 14_000.0, 0.0),
    counter("node_netstat_Tcp_RetransSegs", Comes::Once, 3.0, 0.5),
    gauge("node_netstat_Tcp_CurrEstab", Comes::Once, 4000.0, 25.0, 1.0),
    gauge("node_sockstat_TCP_inuse", Comes::Once, 4000.0, 20.0, 1.0),
    gauge("node_filefd_allocated", Comes::Once, 90_000.0, 96.0, 32.0),
    gauge("node_procs_running", Comes::Once, 64.0, 3.0, 1.0),
    gauge("node_procs_blocked", Comes::Once, 8.0, 1.0, 1.0),
    gauge("node_entropy_available_bits", Comes::Once, 4096.0, 60.0, 1.0),
    gauge("node_timex_offset_seconds", Comes::Once, 0.01, 0.000_05, 0.000_000_001),
    Family {
        name: "node_cpu_seconds_total",
        label: "mode",
        comes: MODES,
        motion: Motion::Counter {
            mean: 1.8,
            grain: 0.01,
            idle: 0.2,
        },
    },
    counter("node_softnet_processed_total", Comes::PerCpu, 9_000.0, 0.0),
    counter("node_softnet_times_squeezed_total", Comes::PerCpu, 1.0, 0.9),
    counter("node_schedstat_timeslices_total", Comes::PerCpu, 30_000.0, 0.0),
    seconds("node_schedstat_waiting_seconds_total", Comes::PerCpu, 0.2),
    gauge("node_cpu_scaling_frequency_hertz", Comes::PerCpu, 3.6e9, 2e8, 1e5),
    counter("node_network_receive_bytes_total", Comes::PerDevice, 4_000_000.0, 0.05),
    counter("node_network_transmit_bytes_total", Comes::PerDevice, 5_000_000.0, 0.05),
    counter("node_network_receive_packets_total", Comes::PerDevice, 6_000.0, 0.05),
    counter("node_network_transmit_packets_total", Comes::PerDevice, 7_000.0, 0.05),
    counter("node_network_receive_drop_total", Comes::PerDevice, 1.0, 0.97),
    counter("node_network_transmit_errs_total", Comes::PerDevice, 1.0, 0.99),
    Family {
        name: "node_network_up",
        label: "",
        comes: Comes::PerDevice,
        motion: Motion::Fixed(1.0),
    },
    counter("node_disk_reads_completed_total", Comes::PerDisk, 120.0, 0.3),
    counter("node_disk_writes_completed_total", Comes::PerDisk, 400.0, 0.1),
    counter("node_disk_read_bytes_total", Comes::PerDisk, 2_000_000.0, 0.3),
    counter("node_disk_written_bytes_total", Comes::PerDisk, 6_000_000.0, 0.1),
    seconds("node_disk_io_time_seconds_total", Comes::PerDisk, 1.5),
    gauge("node_disk_io_now", Comes::PerDisk, 32.0, 2.0, 1.0),
    bytes("node_filesystem_avail_bytes", Comes::PerMount, 400.0 * GIB),
    bytes("node_filesystem_free_bytes", Comes::PerMount, 400.0 * GIB),
    gauge("node_filesystem_files_free", Comes::PerMount, 2.6e7, 900.0, 1.0),
    Family {
        name: "node_filesystem_size_bytes",
        label: "",
        comes: Comes::PerMount,
        motion: Motion::Fixed(400.0 * GIB),
    },
    Family {
        name: "node_systemd_unit_state",
        label: "state",
        comes: STATES,
        motion: Motion::Fixed(0.0),
    },
];

/// One series of a host: what it is called and how it moves.
#[derive(Clone, Debug)]
pub struct SeriesSpec {
    pub labels: LabelPairs,
    pub motion: Motion,
}

/// The instances of a family in round `round`: extra labels of each.
fn instances(family: &Family, round: usize) -> Vec<LabelPairs> {
    let one = |name: &str, value: String| vec![(name.to_owned(), value)];
    match family.comes {
        Comes::Once if round == 0 => vec![vec![]],
        Comes::Once => vec![],
        Comes::OfEach(values) => {
            let of = if family.label == "mode" {
                ("cpu", round.to_string())
            } else {
                ("name", format!("app-{round}.service"))
            };
            let each = |v: &&str| {
                vec![
                    (family.label.to_owned(), (*v).to_owned()),
                    (of.0.to_owned(), of.1.clone()),
                ]
            };
            values.iter().map(each).collect()
        }
        Comes::PerCpu => vec![one("cpu", round.to_string())],
        Comes::PerDevice => vec![one("device", format!("eth{round}"))],
        Comes::PerDisk => vec![one("device", format!("nvme{round}n1"))],
        Comes::PerMount => {
            let mut labels = one("mountpoint", format!("/srv/data{round}"));
            labels.push(("device".to_owned(), format!("/dev/nvme{round}n1p1")));
            labels.push(("fstype".to_owned(), "ext4".to_owned()));
            vec![labels]
        }
    }
}

/// The name that host number `host` of the fleet with this seed goes by.
pub fn host_name(seed: u64, host: usize) -> String {
    format!("n{host:05}.s{seed}.fleet.example")
}

/// The first `count` series of a host.
pub fn series_of(seed: u64, host: usize, count: usize) -> Vec<SeriesSpec> {
    let instance = format!("{}:9100", host_name(seed, host));
    let mut list = Vec::with_capacity(count);
    for round in 0.. {
        for family in FAMILIES {
            for mut labels in instances(family, round) {
                if list.len() == count {
                    return list;
                }
                labels.push(("__name__".to_owned(), family.name.to_owned()));
                labels.push(("instance".to_owned(), instance.clone()));
                labels.push(("job".to_owned(), "node".to_owned()));
                labels.sort();
                list.push(SeriesSpec {
                    labels,
                    motion: family.motion,
                });
            }
        }
    }
    unreachable!("the rounds have no end")
}

/// The values of some series, sweep after sweep.
#[derive(Clone, Debug)]
pub struct Values {
    dice: Dice,
    /// In grains, so that nothing is lost by rounding; a fixed value as it is.
    now: Vec<(Motion, f64)>,
}

impl Values {
    /// `stream` keeps the values of different batches apart.
    pub fn new(seed: u64, stream: u64, motions: impl Iterator<Item = Motion>) -> Self {
        let mut dice = Dice(seed ^ stream.wrapping_mul(0xd134_2543_de82_ef95));
        let now = motions
            .map(|motion| {
                let start = match motion {
                    // As if the host had been up for a while.
                    Motion::Counter { mean, grain, .. } => (dice.share() * mean / grain * 20_000.0).floor(),
                    Motion::Gauge { max, grain, .. } => (dice.share() * max / grain).floor(),
                    Motion::Fixed(value) => value,
                };
                (motion, start)
            })
            .collect();
        Self { dice, now }
    }

    /// The values of the next sweep, in the order of the series.
    pub fn sweep(&mut self) -> impl Iterator<Item = f64> + '_ {
        let dice = &mut self.dice;
        self.now.iter_mut().map(move |(motion, now)| match *motion {
            Motion::Counter { mean, grain, idle } => {
                if dice.share() >= idle {
                    *now += (dice.share() * 2.0 * mean / grain).round();
                }
                *now * grain
            }
            Motion::Gauge { max, step, grain } => {
                let walk = ((dice.share() * 2.0 - 1.0) * step / grain).round();
                *now = (*now + walk).clamp(0.0, (max / grain).floor());
                *now * grain
            }
            Motion::Fixed(value) => value,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_host_looks_like_one() {
        let mut out = String::new();
        for spec in series_of(7, 3, 500).iter().step_by(61) {
            let labels: Vec<String> = spec.labels.iter().map(|(n, v)| format!("{n}={v}")).collect();
            out += &labels.join(" ");
            out.push('\n');
        }
        expect![[r#"
            __name__=node_load1 instance=n00003.s7.fleet.example:9100 job=node
            __name__=node_filesystem_free_bytes device=/dev/nvme0n1p1 fstype=ext4 instance=n00003.s7.fleet.example:9100 job=node mountpoint=/srv/data0
            __name__=node_network_transmit_errs_total device=eth2 instance=n00003.s7.fleet.example:9100 job=node
            __name__=node_softnet_times_squeezed_total cpu=4 instance=n00003.s7.fleet.example:9100 job=node
            __name__=node_cpu_seconds_total cpu=6 instance=n00003.s7.fleet.example:9100 job=node mode=idle
            __name__=node_filesystem_avail_bytes device=/dev/nvme7n1p1 fstype=ext4 instance=n00003.s7.fleet.example:9100 job=node mountpoint=/srv/data7
            __name__=node_network_receive_drop_total device=eth9 instance=n00003.s7.fleet.example:9100 job=node
            __name__=node_softnet_processed_total cpu=11 instance=n00003.s7.fleet.example:9100 job=node
            __name__=node_systemd_unit_state instance=n00003.s7.fleet.example:9100 job=node name=app-12.service state=inactive
        "#]].assert_eq(&out);
    }

    #[test]
    fn the_same_seed_makes_the_same_values_and_another_seed_others() {
        let values = |seed| {
            let specs = series_of(1, 0, 200);
            let mut values = Values::new(seed, 0, specs.iter().map(|s| s.motion));
            (0..5)
                .flat_map(|_| values.sweep().collect::<Vec<_>>())
                .map(f64::to_bits)
                .collect::<Vec<_>>()
        };
        assert_eq!(values(1), values(1));
        assert_ne!(values(1), values(2));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn series_are_as_many_as_asked_for_and_all_different(seed: u64, hosts in 1usize..5, count in 1usize..1200) {
            let mut seen = BTreeSet::new();
            for host in 0..hosts {
                let specs = series_of(seed, host, count);
                prop_assert_eq!(specs.len(), count);
                for spec in specs {
                    prop_assert!(spec.labels.is_sorted_by(|a, b| a.0 < b.0));
                    prop_assert!(seen.insert(spec.labels));
                }
            }
        }

        #[test]
        fn counters_never_fall_and_gauges_keep_their_bounds(seed: u64, stream: u64) {
            let motions: Vec<Motion> = series_of(0, 0, 120).iter().map(|s| s.motion).collect();
            let mut values = Values::new(seed, stream, motions.iter().copied());
            let mut before: Vec<f64> = values.sweep().collect();
            for _ in 0..50 {
                let after: Vec<f64> = values.sweep().collect();
                for ((motion, a), b) in motions.iter().zip(&before).zip(&after) {
                    match motion {
                        Motion::Counter { .. } => prop_assert!(b >= a && *b < 1e15),
                        Motion::Gauge { max, .. } => prop_assert!(*b >= 0.0 && *b <= max * 1.000_001),
                        Motion::Fixed(value) => prop_assert_eq!(b, value),
                    }
                }
                before = after;
            }
        }
    }
}

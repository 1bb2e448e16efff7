//! What the texts under `/proc` say about a host at one instant.
//!
//! Pure: [`Reading::parse`] is a function of the texts. A text that is missing or does not parse leaves its part of
//! the reading empty and is named in `unread`; the other parts stay whole. Times here are seconds, sizes bytes.

use procfs::FromRead;
use std::collections::{BTreeMap, BTreeSet};

pub const MOUNTS_MAX: usize = 64;
pub const DISKS_MAX: usize = 128;
pub const INTERFACES_MAX: usize = 64;

/// File systems that hold no data of their own, or show another one's.
const FS_TYPES_LEFT_OUT: &[&str] = &[
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "iso9660",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "ramfs",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "squashfs",
    "sysfs",
    "tmpfs",
    "tracefs",
];

/// Texts as they were read, and the units that they count in.
#[derive(Clone, Debug, Default)]
pub struct Texts {
    pub stat: Option<String>,
    pub loadavg: Option<String>,
    pub meminfo: Option<String>,
    pub vmstat: Option<String>,
    pub diskstats: Option<String>,
    pub net_dev: Option<String>,
    pub uptime: Option<String>,
    /// `/proc/<pid>/stat` of every process.
    pub processes: Vec<String>,
    /// Space of each mount that [`mounts`] named.
    pub filesystems: Vec<Filesystem>,
    pub ticks_per_second: u64,
    pub page_bytes: u64,
}

/// CPU time by mode since the boot, in seconds. Guest time is part of user and nice already.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cpu {
    pub user: f64,
    pub nice: f64,
    pub system: f64,
    pub idle: f64,
    pub iowait: f64,
    pub interrupt: f64,
    pub softirq: f64,
    pub steal: f64,
}

impl Cpu {
    pub fn modes(&self) -> [(&'static str, f64); 8] {
        [
            ("user", self.user),
            ("nice", self.nice),
            ("system", self.system),
            ("idle", self.idle),
            ("iowait", self.iowait),
            ("interrupt", self.interrupt),
            ("softirq", self.softirq),
            ("steal", self.steal),
        ]
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    pub total: u64,
    pub free: u64,
    pub buffers: u64,
    /// Page cache and reclaimable slab, as `free(1)` counts it.
    pub cached: u64,
    /// Total without free, buffers and cached: the four states sum up to the total.
    pub used: u64,
    pub available: Option<u64>,
    pub swap_total: u64,
    pub swap_free: u64,
}

/// Pages since the boot.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Paging {
    pub swapped_in: u64,
    pub swapped_out: u64,
    pub faults: u64,
    pub faults_major: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Disk {
    pub device: String,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub reads: u64,
    pub writes: u64,
    pub read_seconds: f64,
    pub write_seconds: f64,
    /// Time in which at least one operation was under way.
    pub busy_seconds: f64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Interface {
    pub name: String,
    pub receive: Flow,
    pub transmit: Flow,
    pub collisions: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Flow {
    pub bytes: u64,
    pub packets: u64,
    pub errors: u64,
    pub dropped: u64,
}

/// A mount worth showing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub device: String,
    pub mountpoint: String,
    pub fs_type: String,
    pub read_only: bool,
}

/// Space of a mount: used + reserved + free = limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filesystem {
    pub mount: Mount,
    pub limit: u64,
    pub used: u64,
    /// For what runs without privileges.
    pub free: u64,
    /// Kept back for root.
    pub reserved: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    pub pid: i32,
    pub name: String,
    pub state: char,
    pub user_seconds: f64,
    pub system_seconds: f64,
    pub memory_bytes: u64,
    /// After the boot.
    pub started_seconds: f64,
}

impl Process {
    fn cpu_seconds(&self) -> f64 {
        self.user_seconds + self.system_seconds
    }

    /// By OpenTelemetry's names of `process.state`.
    pub fn state_name(&self) -> &'static str {
        match self.state {
            'R' => "running",
            'Z' | 'X' => "defunct",
            'T' | 't' => "stopped",
            'D' => "blocked",
            _ => "sleeping",
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// All CPUs together, then each by its number.
    pub cpu: Option<Cpu>,
    pub cpus: BTreeMap<u32, Cpu>,
    pub procs_running: Option<u64>,
    pub procs_blocked: Option<u64>,
    pub load: Option<[f64; 3]>,
    pub memory: Option<Memory>,
    pub paging: Option<Paging>,
    pub disks: Vec<Disk>,
    pub interfaces: Vec<Interface>,
    pub filesystems: Vec<Filesystem>,
    pub uptime_seconds: Option<f64>,
    pub processes: Vec<Process>,
    /// Texts that are missing or not understood.
    pub unread: BTreeSet<&'static str>,
}

impl Reading {
    pub fn parse(texts: &Texts) -> Self {
        let mut r = Self::default();
        let ticks = texts.ticks_per_second.max(1) as f64;
        match texts.stat.as_deref() {
            Some(stat) => r.read_stat(stat, ticks),
            None => _ = r.unread.insert("stat"),
        }
        r.load = r.or_unread("loadavg", texts.loadavg.as_deref().and_then(load));
        r.memory = r.or_unread("meminfo", texts.meminfo.as_deref().and_then(memory));
        r.paging = r.or_unread("vmstat", texts.vmstat.as_deref().and_then(paging));
        r.uptime_seconds = r.or_unread(
            "uptime",
            texts
                .uptime
                .as_deref()
                .and_then(|t| t.split_whitespace().next()?.parse().ok()),
        );
        r.disks = r
            .or_unread("diskstats", texts.diskstats.as_deref().and_then(disks))
            .unwrap_or_default();
        r.interfaces = r
            .or_unread("net/dev", texts.net_dev.as_deref().and_then(interfaces))
            .unwrap_or_default();
        r.filesystems = texts.filesystems.clone();
        r.processes = texts
            .processes
            .iter()
            .filter_map(|stat| process(stat, ticks, texts.page_bytes))
            .collect();
        r.processes.sort_by_key(|p| p.pid);
        r
    }

    fn or_unread<T>(&mut self, what: &'static str, read: Option<T>) -> Option<T> {
        if read.is_none() {
            self.unread.insert(what);
        }
        read
    }

    fn read_stat(&mut self, stat: &str, ticks: f64) {
        for line in stat.lines() {
            let Some((key, rest)) = line.split_once(char::is_whitespace) else {
                continue;
            };
            if key == "procs_running" {
                self.procs_running = rest.trim().parse().ok();
            } else if key == "procs_blocked" {
                self.procs_blocked = rest.trim().parse().ok();
            } else if let Some(number) = key.strip_prefix("cpu") {
                let Some(cpu) = cpu(rest, ticks) else { continue };
                match number.parse() {
                    Ok(n) => _ = self.cpus.insert(n, cpu),
                    Err(_) => self.cpu = Some(cpu),
                }
            }
        }
        if self.cpu.is_none() {
            self.unread.insert("stat");
        }
    }

    /// How many processes are in which state.
    pub fn process_states(&self) -> BTreeMap<&'static str, u64> {
        let mut states = BTreeMap::from([
            ("running", 0),
            ("sleeping", 0),
            ("blocked", 0),
            ("stopped", 0),
            ("defunct", 0),
        ]);
        for p in &self.processes {
            *states.entry(p.state_name()).or_default() += 1;
        }
        states
    }
}

/// Old kernels leave columns out at the end: those modes are zero there.
fn cpu(columns: &str, ticks: f64) -> Option<Cpu> {
    let all: Vec<f64> = columns
        .split_whitespace()
        .map(|c| c.parse::<u64>().map(|n| n as f64 / ticks))
        .collect::<Result<_, _>>()
        .ok()?;
    let at = |i: usize| all.get(i).copied().unwrap_or(0.0);
    (all.len() >= 4).then(|| Cpu {
        user: at(0),
        nice: at(1),
        system: at(2),
        idle: at(3),
        iowait: at(4),
        interrupt: at(5),
        softirq: at(6),
        steal: at(7),
    })
}

/// Parsed here and not by `procfs`, whose `f32` would turn 0.53 into 0.5299999713897705.
fn load(text: &str) -> Option<[f64; 3]> {
    let mut columns = text.split_whitespace().map(|c| c.parse().ok());
    Some([columns.next()??, columns.next()??, columns.next()??])
}

fn memory(text: &str) -> Option<Memory> {
    // procfs cuts names by bytes.
    let text = Some(text).filter(|t| t.is_ascii())?;
    let m = procfs::Meminfo::from_read(text.as_bytes()).ok()?;
    let cached = m.cached.saturating_add(m.s_reclaimable.unwrap_or(0));
    Some(Memory {
        total: m.mem_total,
        free: m.mem_free,
        buffers: m.buffers,
        cached,
        used: [m.mem_free, m.buffers, cached]
            .into_iter()
            .fold(m.mem_total, u64::saturating_sub),
        available: m.mem_available,
        swap_total: m.swap_total,
        swap_free: m.swap_free,
    })
}

fn paging(text: &str) -> Option<Paging> {
    let values: BTreeMap<&str, u64> = text
        .lines()
        .filter_map(|l| {
            let (name, value) = l.split_once(' ')?;
            Some((name, value.trim().parse().ok()?))
        })
        .collect();
    let get = |name: &str| values.get(name).copied();
    Some(Paging {
        swapped_in: get("pswpin")?,
        swapped_out: get("pswpout")?,
        faults: get("pgfault")?,
        faults_major: get("pgmajfault")?,
    })
}

/// Whole disks only (a partition's work is its disk's), and only those that ever did something.
fn disks(text: &str) -> Option<Vec<Disk>> {
    const SECTOR_BYTES: u64 = 512;
    let seconds = |ms: u64| ms as f64 / 1000.0;
    let mut disks = vec![];
    for line in text.lines().filter(|l| !l.trim().is_empty()) {
        let d = procfs::DiskStat::from_line(line).ok()?;
        if (d.reads == 0 && d.writes == 0) || !is_whole_disk(&d.name) {
            continue;
        }
        disks.push(Disk {
            device: d.name,
            read_bytes: d.sectors_read.saturating_mul(SECTOR_BYTES),
            write_bytes: d.sectors_written.saturating_mul(SECTOR_BYTES),
            reads: d.reads,
            writes: d.writes,
            read_seconds: seconds(d.time_reading),
            write_seconds: seconds(d.time_writing),
            busy_seconds: seconds(d.time_in_progress),
        });
    }
    disks.sort_by(|a, b| a.device.cmp(&b.device));
    disks.truncate(DISKS_MAX);
    Some(disks)
}

fn is_whole_disk(name: &str) -> bool {
    let numbered = |prefix: &str| {
        name.strip_prefix(prefix)
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
    };
    if ["ram", "loop", "fd", "sr", "zram"].into_iter().any(numbered) {
        return false;
    }
    let without_number = name.trim_end_matches(|c: char| c.is_ascii_digit());
    if without_number == name {
        return true;
    }
    // sda1, vdb2, xvda1: letters, then the partition. nvme0n1p2, mmcblk0p1: a `p` before it.
    let lettered = ["sd", "hd", "vd", "xvd"]
        .iter()
        .any(|p| name.starts_with(p) && without_number[p.len()..].bytes().all(|b| b.is_ascii_lowercase()));
    let after_p = (name.starts_with("nvme") || name.starts_with("mmcblk"))
        && without_number.ends_with('p')
        && without_number[..without_number.len() - 1].ends_with(|c: char| c.is_ascii_digit());
    !lettered && !after_p
}

fn interfaces(text: &str) -> Option<Vec<Interface>> {
    let devices = procfs::net::InterfaceDeviceStatus::from_read(text.as_bytes()).ok()?;
    let mut interfaces: Vec<_> = devices
        .0
        .into_values()
        .map(|d| Interface {
            name: d.name,
            receive: Flow {
                bytes: d.recv_bytes,
                packets: d.recv_packets,
                errors: d.recv_errs,
                dropped: d.recv_drop,
            },
            transmit: Flow {
                bytes: d.sent_bytes,
                packets: d.sent_packets,
                errors: d.sent_errs,
                dropped: d.sent_drop,
            },
            collisions: d.sent_colls,
        })
        .collect();
    interfaces.sort_by(|a, b| a.name.cmp(&b.name));
    interfaces.truncate(INTERFACES_MAX);
    Some(interfaces)
}

fn process(stat: &str, ticks: f64, page_bytes: u64) -> Option<Process> {
    // `procfs` trusts the kernel to write `pid (name) state`, and panics where it did not.
    let (pid, rest) = stat.trim().split_once(" (")?;
    let (_, after) = rest.rsplit_once(')')?;
    if !pid.bytes().all(|b| b.is_ascii_digit()) || !after.starts_with(' ') {
        return None;
    }
    let p = procfs::process::Stat::from_read(stat.as_bytes()).ok()?;
    Some(Process {
        pid: p.pid,
        name: p.comm,
        state: p.state,
        user_seconds: p.utime as f64 / ticks,
        system_seconds: p.stime as f64 / ticks,
        memory_bytes: p.rss.saturating_mul(page_bytes),
        started_seconds: p.starttime as f64 / ticks,
    })
}

/// The mounts of `/proc/self/mountinfo` that hold data; of a device mounted more than once, the shortest mount point.
pub fn mounts(mountinfo: &str) -> Option<Vec<Mount>> {
    let infos = procfs::process::MountInfos::from_read(mountinfo.as_bytes()).ok()?;
    let mut by_device: BTreeMap<String, Mount> = BTreeMap::new();
    for m in infos {
        if FS_TYPES_LEFT_OUT.contains(&m.fs_type.as_str()) {
            continue;
        }
        let mount = Mount {
            device: m.mount_source.unwrap_or_default(),
            mountpoint: m.mount_point.to_string_lossy().into_owned(),
            fs_type: m.fs_type,
            read_only: m.mount_options.contains_key("ro"),
        };
        let kept = by_device.entry(m.majmin).or_insert_with(|| mount.clone());
        let rank = |m: &Mount| (m.mountpoint.len(), m.mountpoint.clone());
        if rank(&mount) < rank(kept) {
            *kept = mount;
        }
    }
    let mut mounts: Vec<_> = by_device.into_values().collect();
    mounts.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
    mounts.truncate(MOUNTS_MAX);
    Some(mounts)
}

/// Younger processes are not watched for their CPU use alone: a compiler run would make a series per file.
pub const PROCESS_AGE_SECONDS_MIN: f64 = 10.0;

/// The processes to show: those named, and the `top` that used the most CPU since `before`.
pub fn watched<'a>(now: &'a Reading, before: Option<&Reading>, names: &[String], top: usize) -> Vec<&'a Process> {
    let earlier: BTreeMap<i32, &Process> = before
        .into_iter()
        .flat_map(|r| &r.processes)
        .map(|p| (p.pid, p))
        .collect();
    // A pid may have been given to another process meanwhile: the start tells them apart.
    let used = |p: &Process| match earlier.get(&p.pid) {
        Some(e) if e.started_seconds == p.started_seconds => p.cpu_seconds() - e.cpu_seconds(),
        _ => p.cpu_seconds(),
    };
    let uptime = now.uptime_seconds.unwrap_or(f64::MAX);
    let (mut shown, mut rest): (Vec<_>, Vec<_>) = now.processes.iter().partition(|p| names.contains(&p.name));
    rest.retain(|p| uptime - p.started_seconds >= PROCESS_AGE_SECONDS_MIN && used(p) > 0.0);
    rest.sort_by(|a, b| used(b).total_cmp(&used(a)).then(a.pid.cmp(&b.pid)));
    rest.truncate(top);
    shown.append(&mut rest);
    shown.sort_by_key(|p| p.pid);
    shown
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use expect_test::expect;
    use proptest::prelude::*;

    /// A host of two CPUs, recorded; longer files shortened to what is read.
    pub fn recorded() -> Texts {
        let text = |t: &str| Some(t.to_owned());
        let mount = |device: &str, mountpoint: &str| Mount {
            device: device.to_owned(),
            mountpoint: mountpoint.to_owned(),
            fs_type: "ext4".to_owned(),
            read_only: false,
        };
        Texts {
            stat: text(include_str!("testdata/stat")),
            loadavg: text("0.68 0.62 0.64 2/127 27256\n"),
            meminfo: text(include_str!("testdata/meminfo")),
            vmstat: text(include_str!("testdata/vmstat")),
            diskstats: text(include_str!("testdata/diskstats")),
            net_dev: text(include_str!("testdata/net_dev")),
            uptime: text("2614.76 3707.75\n"),
            processes: include_str!("testdata/pid_stat").lines().map(str::to_owned).collect(),
            filesystems: vec![Filesystem {
                mount: mount("/dev/vda", "/"),
                limit: 1000,
                used: 600,
                free: 350,
                reserved: 50,
            }],
            ticks_per_second: 100,
            page_bytes: 4096,
        }
    }

    #[test]
    fn a_recorded_host_reads_as_what_it_was() {
        let r = Reading::parse(&recorded());
        assert!(r.unread.is_empty(), "{:?}", r.unread);
        expect![[r#"
            Cpu { user: 1188.73, nice: 0.0, system: 260.13, idle: 3707.75, iowait: 45.26, interrupt: 0.0, softirq: 4.19, steal: 4.68 }
            cpus [0, 1], running Some(2), blocked Some(0), load Some([0.68, 0.62, 0.64])
            Some(Memory { total: 25276502016, free: 24185098240, buffers: 7974912, cached: 631099392, used: 452329472, available: Some(24614682624), swap_total: 0, swap_free: 0 })
            Some(Paging { swapped_in: 0, swapped_out: 0, faults: 16237961, faults_major: 1907 })
            [Disk { device: "vda", read_bytes: 468992000, write_bytes: 1433935872, reads: 10533, writes: 27846, read_seconds: 3.706, write_seconds: 41.27, busy_seconds: 22.172 }]
            eth0 receive Flow { bytes: 138240920, packets: 99021, errors: 0, dropped: 3 } transmit Flow { bytes: 618221, packets: 8001, errors: 1, dropped: 0 } collisions 2
            lo receive Flow { bytes: 31058112, packets: 175738, errors: 0, dropped: 0 } transmit Flow { bytes: 31058112, packets: 175738, errors: 0, dropped: 0 } collisions 0
            {"blocked": 0, "defunct": 1, "running": 1, "sleeping": 2, "stopped": 0}
        "#]]
        .assert_eq(&{
            use std::fmt::Write;
            let mut out = format!("{:?}\n", r.cpu.unwrap());
            writeln!(
                out,
                "cpus {:?}, running {:?}, blocked {:?}, load {:?}",
                r.cpus.keys().collect::<Vec<_>>(),
                r.procs_running,
                r.procs_blocked,
                r.load
            )
            .unwrap();
            writeln!(out, "{:?}\n{:?}\n{:?}", r.memory, r.paging, r.disks).unwrap();
            for i in &r.interfaces {
                writeln!(
                    out,
                    "{} receive {:?} transmit {:?} collisions {}",
                    i.name, i.receive, i.transmit, i.collisions
                )
                .unwrap();
            }
            writeln!(out, "{:?}", r.process_states()).unwrap();
            out
        });
    }

    #[test]
    fn a_missing_or_broken_text_takes_only_its_own_part_along() {
        let mut texts = recorded();
        texts.meminfo = Some("MemTotal: lots\n".to_owned());
        texts.diskstats = None;
        texts.processes.push("garbage".to_owned());
        let r = Reading::parse(&texts);
        assert_eq!(r.unread.iter().copied().collect::<Vec<_>>(), ["diskstats", "meminfo"]);
        assert!(r.cpu.is_some() && r.memory.is_none() && r.disks.is_empty() && r.processes.len() == 4);
    }

    #[test]
    fn partitions_and_memory_disks_are_part_of_no_sum() {
        let kept: Vec<_> = [
            "sda",
            "sda1",
            "vdb",
            "vdb12",
            "xvda1",
            "nvme0n1",
            "nvme0n1p2",
            "mmcblk0",
            "mmcblk0p1",
            "loop3",
            "ram0",
            "dm-0",
            "md127",
            "sr0",
            "zram0",
        ]
        .into_iter()
        .filter(|d| is_whole_disk(d))
        .collect();
        assert_eq!(kept, ["sda", "vdb", "nvme0n1", "mmcblk0", "dm-0", "md127"]);
    }

    #[test]
    fn a_device_mounted_twice_is_shown_once() {
        let found = mounts(
            "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
             28 27 254:0 /srv /mnt/srv ro,relatime - ext4 /dev/vda rw\n\
             22 27 0:21 / /proc rw,relatime - proc proc rw\n\
             29 27 254:16 / /data ro - xfs /dev/vdb rw\n",
        )
        .unwrap();
        let shown: Vec<_> = found.iter().map(|m| (m.mountpoint.as_str(), m.read_only)).collect();
        assert_eq!(shown, [("/", false), ("/data", true)]);
    }

    #[test]
    fn the_busiest_since_the_last_reading_are_watched_and_the_named_always() {
        let process = |pid, name: &str, cpu, started| Process {
            pid,
            name: name.to_owned(),
            state: 'S',
            user_seconds: cpu,
            system_seconds: 0.0,
            memory_bytes: 1,
            started_seconds: started,
        };
        let reading = |processes| Reading {
            uptime_seconds: Some(1000.0),
            processes,
            ..Reading::default()
        };
        let before = reading(vec![process(1, "init", 500.0, 0.0), process(7, "old", 90.0, 5.0)]);
        let now = reading(vec![
            process(1, "init", 500.1, 0.0),
            process(7, "reused", 3.0, 900.0),
            process(8, "burn", 2.0, 950.0),
            process(9, "cc1", 9.0, 999.0),
            process(10, "idle", 0.0, 1.0),
        ]);
        let pids = |before, names: &[String], top| -> Vec<i32> {
            watched(&now, before, names, top).iter().map(|p| p.pid).collect()
        };
        assert_eq!(pids(Some(&before), &[], 2), [7, 8]);
        assert_eq!(pids(None, &[], 2), [1, 7]);
        assert_eq!(
            pids(Some(&before), &["idle".to_owned(), "cc1".to_owned()], 1),
            [7, 9, 10]
        );
    }

    #[test]
    fn a_meminfo_with_letters_that_are_none_of_the_kernels_is_unread() {
        let texts = Texts {
            meminfo: Some("\u{a1}\t0".to_owned()),
            ..Texts::default()
        };
        assert!(Reading::parse(&texts).unread.contains("meminfo"));
    }

    proptest! {
        #[test]
        fn no_text_is_too_broken_to_survive(texts in proptest::collection::vec(".{0,200}", 8)) {
            let [stat, loadavg, meminfo, vmstat, diskstats, net_dev, uptime, process] = texts.try_into().unwrap();
            let _ = mounts(&process);
            let some = Some;
            let _ = Reading::parse(&Texts {
                stat: some(stat), loadavg: some(loadavg), meminfo: some(meminfo), vmstat: some(vmstat),
                diskstats: some(diskstats), net_dev: some(net_dev), uptime: some(uptime), processes: vec![process],
                filesystems: vec![], ticks_per_second: 0, page_bytes: 0,
            });
        }
    }
}

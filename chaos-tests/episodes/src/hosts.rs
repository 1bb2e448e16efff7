//! Hosts: a namespace, a disk of its own with a real file system, a clock, and a node that is started again when it
//! ends, as a service manager does.

use crate::history::{History, What};
use crate::net::{Net, Place, run};
use anyhow::{Context, Result, bail};
use hindcast::tls::TlsArgs;
use hindcast_proto::v1;
use hindcast_proto::v1::cluster_client::ClusterClient;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};

const CLIENT_PORT: u16 = 7400;
const PEER_PORT: u16 = 7401;
/// Sparse: what is not written takes no room.
const DISK_BYTES: u64 = 1 << 30;
/// What control groups bound, and in which file, of version 1 and 2.
struct Resource {
    name: &'static str,
    /// The file of the bound, and what stands in it for none.
    v1: (&'static str, &'static str),
    v2: (&'static str, &'static str),
}
const MEMORY: Resource = Resource {
    name: "memory",
    v1: ("memory.limit_in_bytes", "-1"),
    v2: ("memory.max", "max"),
};
const CPU: Resource = Resource {
    name: "cpu",
    v1: ("cpu.cfs_quota_us", "-1"),
    v2: ("cpu.max", "max"),
};
/// What a host has of memory, where control groups bound it.
pub const HOST_MEMORY_BYTES: u64 = 512 << 20;
/// A node that ended by itself is started again after this.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// Certificates are made for so many nodes at most, replaced ones included.
pub const NODES_MAX: u64 = 9;
/// Clocks are off by less.
const CERTIFICATES_BACKDATED: &str = "-1d";

/// What the disk of a host does: the numbers that `faults/disk.c` reads.
#[derive(Clone, Copy, Debug)]
pub enum DiskFault {
    SyncErrno = 0,
    WriteErrno = 1,
    SyncDelayMs = 3,
    ShortWrites = 5,
}

pub const EIO: u32 = 5;

pub struct Host {
    pub id: u64,
    pub place: Place,
    dir: PathBuf,
    args: Vec<String>,
    is_xfs: bool,
    child: Option<Child>,
    is_wanted: bool,
    ended: Option<Instant>,
    pub power_cuts: u64,
}

/// All hosts of a run, their network, and how to talk to their nodes.
pub struct Hosts {
    pub net: Net,
    pub all: Vec<Host>,
    pub history: Arc<History>,
    program: PathBuf,
    dir: PathBuf,
    clock_library: Option<PathBuf>,
    disk_library: PathBuf,
    more: Vec<String>,
}

/// What stands on the machine and what does not.
pub struct Tools {
    pub clock_library: Option<PathBuf>,
}

/// Names what is missing for everything (an error), and for some faults only.
pub fn look_for_tools() -> Result<Tools> {
    let is_there = |name: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(name).exists())
    };
    let mut missing = vec![];
    if !rustix::process::geteuid().is_root() {
        missing.push("root");
    }
    if !Path::new("/dev/net/tun").exists() {
        missing.push("/dev/net/tun");
    }
    for (tool, package) in [
        ("ip", "ip (iproute2)"),
        ("nsenter", "nsenter (util-linux)"),
        ("mkfs.ext4", "mkfs.ext4 (e2fsprogs)"),
        ("mkfs.xfs", "mkfs.xfs (xfsprogs)"),
        ("xfs_io", "xfs_io (xfsprogs)"),
        ("cc", "cc (gcc)"),
    ] {
        if !is_there(tool) {
            missing.push(package);
        }
    }
    if !missing.is_empty() {
        bail!(
            "SKIPPED: no host can be made here; missing: {}. Nothing of hosts, links, disks and clocks was tested.",
            missing.join(", ")
        );
    }
    let places = [
        "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
        "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    ];
    let clock_library = places.iter().map(PathBuf::from).find(|p| p.exists());
    Ok(Tools { clock_library })
}

impl Host {
    fn image(&self) -> PathBuf {
        self.dir.join("disk.img")
    }
    fn disk(&self) -> PathBuf {
        self.dir.join("disk")
    }
    fn faults(&self) -> PathBuf {
        self.dir.join("faults")
    }
    fn clock(&self) -> PathBuf {
        self.dir.join("clock")
    }
    fn filler(&self) -> PathBuf {
        self.disk().join("filler")
    }

    fn make_disk(&self) -> Result<()> {
        fs::create_dir_all(self.disk())?;
        let (image, disk) = (self.image().display().to_string(), self.disk().display().to_string());
        let _ = fs::remove_file(&image);
        run("truncate", &["-s", &DISK_BYTES.to_string(), &image])?;
        match self.is_xfs {
            true => run("mkfs.xfs", &["-q", "-f", &image])?,
            false => run("mkfs.ext4", &["-q", "-F", &image])?,
        };
        run("mount", &["-o", "loop", &image, &disk])?;
        fs::create_dir_all(self.disk().join("data"))?;
        Ok(())
    }

    fn unmount(&self) -> Result<()> {
        let disk = self.disk().display().to_string();
        let started = now();
        loop {
            match run("umount", &[&disk]) {
                Ok(_) => return Ok(()),
                Err(e) if started.elapsed() > Duration::from_secs(10) => return Err(e),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("the node does not run")?;
        let pid = Pid::from_raw(child.id().cast_signed()).context("no process")?;
        Ok(kill_process(pid, signal)?)
    }

    /// What the node has written to its log since its start.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// The most that the node's process has had in memory, in bytes.
    pub fn memory_peak(&self) -> Result<u64> {
        let child = self.child.as_ref().context("the node does not run")?;
        let status = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let kib: u64 = line
            .and_then(|l| l.split_whitespace().next()?.parse().ok())
            .context("no VmHWM")?;
        Ok(kib << 10)
    }

    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    pub fn is_wanted(&self) -> bool {
        self.is_wanted
    }
}

#[allow(clippy::disallowed_methods, reason = "hosts live in real time")]
pub fn now() -> Instant {
    Instant::now()
}

#[allow(clippy::disallowed_methods, reason = "a harness writes the files of its hosts")]
fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
}

impl Hosts {
    /// Makes the network, the certificates and `count` hosts; their nodes are not started yet. `more`: arguments of all
    /// nodes.
    pub fn new(dir: &Path, number: u8, count: u64, tools: &Tools, history: Arc<History>) -> Result<Self> {
        let disk_library = dir.join("disk.so");
        let source = dir.join("disk.c");
        write(&source, include_str!("../faults/disk.c"))?;
        let (from, to) = (source.display().to_string(), disk_library.display().to_string());
        run("cc", &["-O2", "-shared", "-fPIC", "-o", &to, &from, "-ldl"])?;
        let mut hosts = Self {
            net: Net::new(number)?,
            all: vec![],
            history,
            program: std::env::current_exe()?,
            dir: dir.to_owned(),
            clock_library: tools.clock_library.clone(),
            disk_library,
            more: vec![],
        };
        hosts.certify()?;
        let founders: Vec<Place> = (1..=count).map(|id| id as Place).collect();
        let join: Vec<String> = founders.iter().map(|p| hosts.peer(*p)).collect();
        for id in 1..=count {
            hosts.add(id, &["--join", &join.join(",")], true)?;
        }
        Ok(hosts)
    }

    /// Arguments that every node gets from its next start on.
    pub fn give_all(&mut self, more: &[String]) {
        self.more = more.to_vec();
    }

    fn peer(&self, place: Place) -> String {
        format!("{}:{PEER_PORT}", self.net.address(place))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join("certs").join(name)
    }

    fn certify(&self) -> Result<()> {
        let dir = self.dir.join("certs").display().to_string();
        let sign = |args: &[&str]| -> Result<()> {
            let mut command = Command::new(&self.program);
            command
                .env(crate::AS_NODE, "1")
                .args(["cert"])
                .args(args)
                .args(["--dir", &dir]);
            if let Some(library) = &self.clock_library {
                // So that a clock that is late does not find them not valid yet.
                command
                    .env("LD_PRELOAD", library)
                    .env("FAKETIME", CERTIFICATES_BACKDATED);
            }
            let output = command.output()?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            anyhow::ensure!(output.status.success(), "cert {args:?}: {said}");
            Ok(())
        };
        sign(&["ca"])?;
        for id in 1..=NODES_MAX {
            let host = self.net.address(id as Place).to_string();
            sign(&["node", "--id", &id.to_string(), "--host", &host])?;
        }
        sign(&["client", "--name", "episodes"])
    }

    /// One more host, for the node of this number.
    pub fn add(&mut self, id: u64, args: &[&str], is_founder: bool) -> Result<usize> {
        let place = id as Place;
        self.net.add(place)?;
        let dir = self.dir.join(format!("host-{id}"));
        fs::create_dir_all(&dir)?;
        let mut host = Host {
            id,
            place,
            dir,
            args: vec!["server".into()],
            // Both kinds of file systems stand in every run.
            is_xfs: id.is_multiple_of(3),
            child: None,
            is_wanted: false,
            ended: None,
            power_cuts: 0,
        };
        host.make_disk()?;
        write(&host.faults(), [0; 64])?;
        write(&host.clock(), "+0")?;
        let path = |p: PathBuf| p.display().to_string();
        let mut flags = vec![
            ("--data-dir", path(host.disk().join("data"))),
            ("--listen", format!("{}:{CLIENT_PORT}", self.net.address(place))),
            ("--peer-listen", self.peer(place)),
            ("--tls-ca", path(self.file("ca.pem"))),
            ("--tls-cert", path(self.file(&format!("node-{id}.pem")))),
            ("--tls-key", path(self.file(&format!("node-{id}-key.pem")))),
        ];
        if is_founder {
            flags.push(("--id", id.to_string()));
        }
        host.args
            .extend(flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
        host.args.extend(args.iter().map(|a| (*a).to_owned()));
        self.all.push(host);
        Ok(self.all.len() - 1)
    }

    /// One more host, whose node asks the others for its number and joins.
    pub fn add_joining(&mut self, id: u64) -> Result<usize> {
        let others: Vec<String> = self
            .all
            .iter()
            .filter(|h| h.is_wanted)
            .map(|h| self.peer(h.place))
            .collect();
        self.add(id, &["--join-cluster", &others.join(",")], false)
    }

    /// The control group of a host for one resource, with a bound of it, or none.
    fn group(&self, i: usize, of: &Resource, bound: Option<u64>) -> Result<PathBuf> {
        let v1 = Path::new("/sys/fs/cgroup").join(of.name);
        let (root, (file, none)) = match v1.exists() {
            true => (v1, of.v1),
            false => ("/sys/fs/cgroup".into(), of.v2),
        };
        let bound = bound.map_or(none.to_owned(), |b| b.to_string());
        let group = root.join(self.net.namespace(self.all[i].place));
        let made = fs::create_dir_all(&group).map_err(anyhow::Error::from);
        made.and_then(|()| write(&group.join(file), bound))
            .with_context(|| format!("no control group for {} at {}", of.name, group.display()))?;
        Ok(group)
    }

    fn groups(&self, i: usize) -> Result<[PathBuf; 2]> {
        let memory = self.group(i, &MEMORY, Some(HOST_MEMORY_BYTES))?;
        Ok([memory, self.group(i, &CPU, None)?])
    }

    /// A host's share of one processor, in percent; `None`: all of all.
    pub fn set_cpu(&self, i: usize, percent: Option<u32>) -> Result<()> {
        // In microseconds, of each 100 ms.
        let quota = percent.map(|p| u64::from(p) * 1000);
        self.group(i, &CPU, quota).map(drop)
    }

    pub fn start(&mut self, i: usize) -> Result<()> {
        let namespace = self.net.namespace(self.all[i].place);
        let host = &self.all[i];
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(host.dir.join("log"))?;
        // Not `ip netns exec`: that makes a namespace of mounts, too, in which other hosts' disks would stay mounted.
        let [memory, cpu] = self.groups(i)?;
        let host = &mut self.all[i];
        let mut command = Command::new("sh");
        // The shell puts itself into the groups and becomes the node.
        command.args(["-c", "echo $$ > \"$0\" && echo $$ > \"$1\" && shift && exec \"$@\""]);
        command.arg(memory.join("cgroup.procs")).arg(cpu.join("cgroup.procs"));
        command
            .args(["nsenter", &format!("--net=/run/netns/{namespace}")])
            .arg(&self.program);
        command.args(&host.args).args(&self.more);
        let libraries: Vec<&PathBuf> = [&self.disk_library].into_iter().chain(&self.clock_library).collect();
        let libraries: Vec<String> = libraries.iter().map(|l| l.display().to_string()).collect();
        command.env("LD_PRELOAD", libraries.join(":")).env(crate::AS_NODE, "1");
        command
            .env("HINDCAST_FAULT_DIR", host.disk())
            .env("HINDCAST_FAULT_FILE", host.faults());
        command
            .env("FAKETIME_TIMESTAMP_FILE", host.clock())
            .env("FAKETIME_CACHE_DURATION", "1");
        command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        host.child = Some(command.spawn().context("the node cannot be started")?);
        host.is_wanted = true;
        host.ended = None;
        Ok(())
    }

    /// Starts again what ended by itself. Called often.
    pub fn tend(&mut self) -> Result<()> {
        for i in 0..self.all.len() {
            let host = &mut self.all[i];
            if let Some(how) = host.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
                host.child = None;
                host.ended = Some(now());
                let (node, how) = (host.id, how.to_string());
                println!("           node {node} ended by itself: {how}");
                self.history.tell(What::Ended { node, how });
            }
            let is_due = self.all[i].ended.is_some_and(|at| at.elapsed() > RESTART_PAUSE);
            if is_due && self.all[i].is_wanted {
                self.start(i)?;
            }
        }
        Ok(())
    }

    /// kill -9, and it stays down until it is started.
    pub fn kill(&mut self, i: usize) {
        let host = &mut self.all[i];
        host.is_wanted = false;
        if let Some(mut child) = host.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM: an orderly end.
    pub fn stop(&mut self, i: usize) -> Result<()> {
        let host = &mut self.all[i];
        host.is_wanted = false;
        host.signal(Signal::TERM)?;
        let started = now();
        while let Some(child) = host.child.as_mut() {
            if child.try_wait()?.is_some() {
                host.child = None;
            } else if started.elapsed() > Duration::from_secs(30) {
                bail!("node {} does not end:\n{}", host.id, host.log_tail());
            } else {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    pub fn pause(&self, i: usize) -> Result<()> {
        self.all[i].signal(Signal::STOP)
    }

    pub fn resume(&self, i: usize) -> Result<()> {
        self.all[i].signal(Signal::CONT)
    }

    /// The power of a host fails: its file system is shut down without writing anything more, the process dies, and the
    /// disk comes back as it was on the platter. The node stays down until it is started.
    pub fn cut_power(&mut self, i: usize) -> Result<()> {
        let disk = self.all[i].disk();
        run("xfs_io", &["-x", "-c", "shutdown", &disk.display().to_string()])?;
        self.kill(i);
        let host = &mut self.all[i];
        host.unmount()?;
        let (image, disk) = (host.image().display().to_string(), disk.display().to_string());
        run("mount", &["-o", "loop", &image, &disk])?;
        // The machine has booted since: it is told to the node as a boot id that is not the last one.
        host.power_cuts += 1;
        write(
            &host.disk().join("data").join("boot_id"),
            format!("boot {}\n", host.power_cuts),
        )
    }

    /// The disk is gone, with all that was on it.
    pub fn wipe(&mut self, i: usize) -> Result<()> {
        self.kill(i);
        let host = &self.all[i];
        host.unmount()?;
        Ok(fs::remove_file(host.image())?)
    }

    /// Another file takes all the room that is left.
    pub fn fill_disk(&self, i: usize) -> Result<()> {
        let host = &self.all[i];
        let free = rustix::fs::statvfs(host.disk())?;
        let bytes = (free.f_bavail * free.f_frsize).to_string();
        let filler = host.filler().display().to_string();
        if run("fallocate", &["-l", &bytes, &filler]).is_err() {
            // Some of it goes to the file's own bookkeeping.
            let less = (free.f_bavail.saturating_sub(256) * free.f_frsize).to_string();
            run("fallocate", &["-l", &less, &filler])?;
        }
        Ok(())
    }

    pub fn free_disk(&self, i: usize) -> Result<()> {
        Ok(fs::remove_file(self.all[i].filler())?)
    }

    pub fn set_disk(&self, i: usize, fault: DiskFault, value: u32) -> Result<()> {
        let file = fs::OpenOptions::new().write(true).open(self.all[i].faults())?;
        Ok(file.write_all_at(&value.to_ne_bytes(), 4 * fault as u64)?)
    }

    /// The wall clock of a host is off by so many seconds.
    pub fn set_clock(&self, i: usize, seconds: i64) -> Result<()> {
        write(&self.all[i].clock(), format!("{seconds:+}"))
    }

    pub fn has_clocks(&self) -> bool {
        self.clock_library.is_some()
    }

    /// Nothing is wrong with links, disks and clocks any more.
    pub fn heal(&self) -> Result<()> {
        self.net.heal();
        for host in &self.all {
            write(&host.clock(), "+0")?;
            let file = fs::OpenOptions::new().write(true).open(host.faults())?;
            file.write_all_at(&[0; 24], 0)?;
        }
        Ok(())
    }

    pub fn url(&self, place: Place) -> String {
        format!("https://{}:{CLIENT_PORT}", self.net.address(place))
    }

    /// The files that a client shows and goes by.
    fn client_files(&self) -> TlsArgs {
        TlsArgs {
            tls_ca: Some(self.file("ca.pem")),
            tls_cert: Some(self.file("client-episodes.pem")),
            tls_key: Some(self.file("client-episodes-key.pem")),
        }
    }

    /// A channel that connects when it is first used.
    pub fn channel(&self, place: Place, timeout: Duration) -> Result<Channel> {
        let url = self.url(place);
        let dial = self.client_files().dial([url.as_str()])?;
        let endpoint = Endpoint::from_shared(url)?.connect_timeout(Duration::from_secs(2));
        Ok(endpoint.timeout(timeout).connect_with_connector_lazy(dial))
    }

    /// The program, as an operator runs it against one node.
    pub fn command(&self, i: usize, args: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.program);
        command
            .env(crate::AS_NODE, "1")
            .args(args)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command.args(["--endpoint", &self.url(self.all[i].place)]);
        let files = self.client_files();
        for (flag, file) in [
            ("--tls-ca", files.tls_ca),
            ("--tls-cert", files.tls_cert),
            ("--tls-key", files.tls_key),
        ] {
            command.arg(flag).args(file);
        }
        command
    }

    pub async fn status(&self, i: usize) -> Result<v1::StatusResponse> {
        let channel = self.channel(self.all[i].place, Duration::from_secs(2))?;
        let mut cluster = ClusterClient::new(channel);
        Ok(cluster.status(v1::StatusRequest {}).await?.into_inner())
    }

    /// The place in `all` of the running node that leads a group, if somebody knows it.
    pub async fn leader(&self, group: u64) -> Option<usize> {
        for i in 0..self.all.len() {
            if !self.all[i].is_running() {
                continue;
            }
            let Ok(status) = self.status(i).await else { continue };
            let led = status.groups.iter().find(|g| g.group == group).map_or(0, |g| g.leader);
            let at = self.all.iter().position(|h| h.id == led && h.is_running());
            if at.is_some() {
                return at;
            }
        }
        None
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for i in 0..self.all.len() {
            self.kill(i);
            for group in self.groups(i).into_iter().flatten() {
                let _ = fs::remove_dir(group);
            }
            if self.all[i].image().exists()
                && let Err(e) = self.all[i].unmount()
            {
                eprintln!("{e:#}");
            }
        }
    }
}

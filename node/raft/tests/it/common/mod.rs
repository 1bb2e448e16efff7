//! Three hosts of one process, joined by a switch in memory; each with a disk that forgets what was not synced.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::disallowed_methods, reason = "these tests run the real shell")]

use bytes::Bytes;
use hindcast_env::disk::{DiskError, replace_file, write_new_file};
use hindcast_env::io::SystemClock;
use hindcast_env::{Disk, SeededRng, SimDisk};
use hindcast_model::{GroupId, NodeId};
use hindcast_raft::{
    Entry, GroupSpec, GroupStatus, LogConfig, Machine, MachineError, ProposeError, RaftConfig, RaftHost, SnapshotCheck,
    Transport, WireMessage, Work,
};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Appends every entry to a list; durable as of the last `maintain`. Anyone may look into the list.
pub struct ListMachine {
    disk: SimDisk,
    path: String,
    lines: Arc<Mutex<Vec<Bytes>>>,
    applied: u64,
    durable: u64,
    /// How far the state may run ahead of its file.
    save_every: u64,
    full: Arc<AtomicU64>,
}

fn encode(applied: u64, lines: &[Bytes]) -> Vec<u8> {
    let mut out = applied.to_le_bytes().to_vec();
    for line in lines {
        out.extend_from_slice(&(line.len() as u32).to_le_bytes());
        out.extend_from_slice(line);
    }
    out
}

fn decode(bytes: &Bytes) -> (u64, Vec<Bytes>) {
    let applied = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let (mut lines, mut at) = (vec![], 8);
    while at < bytes.len() {
        let len = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        lines.push(bytes.slice(at + 4..at + 4 + len));
        at += 4 + len;
    }
    (applied, lines)
}

impl ListMachine {
    pub fn open(
        disk: SimDisk,
        path: &str,
        lines: Arc<Mutex<Vec<Bytes>>>,
        save_every: u64,
        full: Arc<AtomicU64>,
    ) -> Self {
        let (applied, stored) = match disk.read(path) {
            Ok(bytes) => decode(&bytes),
            Err(_) => (0, vec![]),
        };
        *lines.lock() = stored;
        Self {
            disk,
            path: path.to_owned(),
            lines,
            applied,
            durable: applied,
            save_every,
            full,
        }
    }
}

impl Machine for ListMachine {
    fn applied(&self) -> u64 {
        self.applied
    }
    fn apply(&mut self, entry: &Entry) -> Result<Bytes, MachineError> {
        assert!(entry.index > self.applied && !entry.data.is_empty());
        self.applied = entry.index;
        let mut lines = self.lines.lock();
        lines.push(entry.data.clone());
        Ok(lines.len().to_string().into())
    }
    fn durable(&self) -> u64 {
        self.durable
    }
    fn maintain(&mut self, _begin: &mut dyn FnMut(Work)) -> Result<(), MachineError> {
        if self.applied >= self.durable + self.save_every {
            replace_file(&self.disk, &self.path, &encode(self.applied, &self.lines.lock()))?;
            self.durable = self.applied;
        }
        Ok(())
    }
    fn export(&mut self, dir: &str) -> Result<(), MachineError> {
        let bytes = encode(self.applied, &self.lines.lock());
        Ok(write_new_file(&self.disk, &format!("{dir}/list"), &bytes)?)
    }
    fn snapshot_check(&self) -> SnapshotCheck {
        Arc::new(|_| Ok(()))
    }
    fn install(&mut self, dir: &str, index: u64) -> Result<(), MachineError> {
        let is_full = |n: u64| n.checked_sub(1);
        if self
            .full
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, is_full)
            .is_ok()
        {
            return Err(DiskError::new("write", &self.path, std::io::ErrorKind::StorageFull.into()).into());
        }
        let bytes = self.disk.read(&format!("{dir}/list"))?;
        let (applied, lines) = decode(&bytes);
        assert!(applied <= index);
        replace_file(&self.disk, &self.path, &encode(index, &lines))?;
        *self.lines.lock() = lines;
        (self.applied, self.durable) = (index, index);
        Ok(())
    }
    fn forget(&mut self) -> Result<(), MachineError> {
        replace_file(&self.disk, &self.path, &encode(0, &[]))?;
        self.lines.lock().clear();
        (self.applied, self.durable) = (0, 0);
        Ok(())
    }
    fn digest(&self) -> [u8; 32] {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&(self.lines.lock().len() as u64).to_le_bytes());
        digest
    }
}

#[derive(Default)]
struct Wires {
    hosts: BTreeMap<NodeId, RaftHost>,
    disks: BTreeMap<NodeId, SimDisk>,
    cut: BTreeSet<NodeId>,
    received: u64,
}

/// Connects the hosts; a node that is cut off neither sends nor receives.
#[derive(Clone, Default)]
pub struct Switch {
    wires: Arc<Mutex<Wires>>,
    pub snapshots: Arc<AtomicU64>,
}

struct Port {
    from: NodeId,
    switch: Switch,
}

impl Switch {
    pub fn cut(&self, node: u64, cut: bool) {
        let mut wires = self.wires.lock();
        match cut {
            true => wires.cut.insert(NodeId(node)),
            false => wires.cut.remove(&NodeId(node)),
        };
    }

    fn target(&self, from: NodeId, to: NodeId) -> Option<RaftHost> {
        let wires = self.wires.lock();
        let open = !wires.cut.contains(&from) && !wires.cut.contains(&to);
        wires.hosts.get(&to).filter(|_| open).cloned()
    }
}

impl Transport for Port {
    fn send(&self, to: NodeId, messages: Vec<WireMessage>) {
        if let Some(host) = self.switch.target(self.from, to) {
            host.receive(self.from, messages);
        }
    }
    fn send_snapshot(
        &self,
        to: NodeId,
        group: GroupId,
        message: Bytes,
        dir: String,
        done: Box<dyn FnOnce(bool) + Send>,
    ) {
        let Some(host) = self.switch.target(self.from, to) else {
            return done(false);
        };
        let into = {
            let mut wires = self.switch.wires.lock();
            wires.received += 1;
            let into = format!("received/{}", wires.received);
            let (source, target) = (&wires.disks[&self.from], &wires.disks[&to]);
            for name in source.list(&dir).unwrap() {
                let bytes = source.read(&format!("{dir}/{name}")).unwrap();
                write_new_file(target, &format!("{into}/{name}"), &bytes).unwrap();
            }
            into
        };
        self.switch.snapshots.fetch_add(1, Ordering::Relaxed);
        done(host.receive_snapshot(group, message, into).is_ok());
    }
}

pub type Lines = Arc<Mutex<Vec<Bytes>>>;

pub struct Cluster {
    pub nodes: u64,
    pub groups: u64,
    pub switch: Switch,
    pub disks: BTreeMap<u64, SimDisk>,
    pub hosts: BTreeMap<u64, RaftHost>,
    pub lines: BTreeMap<(u64, u64), Lines>,
    pub config: RaftConfig,
    pub save_every: u64,
    /// How many snapshots find the disk full.
    pub full: Arc<AtomicU64>,
    pub starts: u64,
}

impl Cluster {
    pub fn new(nodes: u64, groups: u64) -> Self {
        let config = RaftConfig {
            tick: Duration::from_millis(20),
            log: LogConfig {
                segment_bytes_max: 256 << 10,
                prewrite_bytes: 64 << 10,
                free_segments_max: 2,
                segments_max: 6,
                cache_bytes_max: 64 << 10,
            },
            tail_bytes: 1 << 20,
            ..RaftConfig::default()
        };
        Self {
            nodes,
            groups,
            switch: Switch::default(),
            disks: (1..=nodes).map(|n| (n, SimDisk::new())).collect(),
            hosts: BTreeMap::new(),
            lines: BTreeMap::new(),
            config,
            save_every: 50,
            full: Arc::default(),
            starts: 0,
        }
    }

    pub fn started(nodes: u64, groups: u64) -> Self {
        let mut cluster = Self::new(nodes, groups);
        for node in 1..=nodes {
            cluster.start(node);
        }
        cluster
    }

    pub fn start(&mut self, node: u64) {
        self.starts += 1;
        let disk = self.disks[&node].clone();
        let groups = (0..self.groups).map(|g| {
            let lines = Lines::default();
            self.lines.insert((node, g), lines.clone());
            let machine = ListMachine::open(
                disk.clone(),
                &format!("machine/{g}"),
                lines,
                self.save_every,
                self.full.clone(),
            );
            GroupSpec {
                group: GroupId(g),
                voters: (1..=self.nodes).map(NodeId).collect(),
                machine: Box::new(machine),
            }
        });
        let groups: Vec<_> = groups.collect();
        let transport = Arc::new(Port {
            from: NodeId(node),
            switch: self.switch.clone(),
        });
        let config = RaftConfig {
            node: NodeId(node),
            ..self.config.clone()
        };
        let rng = SeededRng::new(self.starts * 100 + node);
        let clock = Arc::new(SystemClock::new());
        let host = RaftHost::start(Arc::new(disk.clone()), "raft", config, groups, transport, clock, rng).unwrap();
        let mut wires = self.switch.wires.lock();
        wires.hosts.insert(NodeId(node), host.clone());
        wires.disks.insert(NodeId(node), disk);
        drop(wires);
        self.hosts.insert(node, host);
    }

    /// Power off: threads end, and the disk forgets what was not synced.
    pub fn kill(&mut self, node: u64) {
        self.switch.wires.lock().hosts.remove(&NodeId(node));
        let host = self.hosts.remove(&node).expect("the node runs");
        host.shutdown();
        self.disks[&node].crash(&mut SeededRng::new(self.starts));
    }

    pub async fn leader(&self, group: u64) -> u64 {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            for (&node, host) in &self.hosts {
                if host.is_leader(GroupId(group)) {
                    return node;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("group {group} has no leader after 10 s");
    }

    /// Proposes at whoever leads until it is confirmed; other errors than "not leader" end it.
    pub async fn propose(&self, group: u64, data: &str) -> Result<u64, ProposeError> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let leader = self.leader(group).await;
            let host = &self.hosts[&leader];
            match host.propose(GroupId(group), data.into(), Duration::from_secs(5)).await {
                Ok((index, _)) => return Ok(index),
                Err(ProposeError::NotLeader { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(e) => return Err(e),
            }
        }
    }

    pub fn status(&self, node: u64, group: u64) -> GroupStatus {
        self.hosts[&node].status(GroupId(group))
    }

    pub fn lines(&self, node: u64, group: u64) -> Vec<String> {
        let lines = self.lines[&(node, group)].lock();
        lines.iter().map(|l| String::from_utf8(l.to_vec()).unwrap()).collect()
    }

    /// Waits until every running node holds the same list.
    pub async fn converge(&self, group: u64) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            let lists: Vec<_> = self.hosts.keys().map(|n| self.lines(*n, group)).collect();
            let commits: BTreeSet<_> = self.hosts.keys().map(|n| self.status(*n, group).applied).collect();
            if lists.windows(2).all(|w| w[0] == w[1]) && commits.len() == 1 {
                return lists.into_iter().next().unwrap();
            }
            if Instant::now() >= deadline {
                let counts: Vec<_> = lists.iter().map(Vec::len).collect();
                let status: Vec<_> = self.hosts.keys().map(|n| self.status(*n, group)).collect();
                panic!("group {group} does not converge: {counts:?} lines, {status:#?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

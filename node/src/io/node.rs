//! Starting one node: identity, Raft groups, write path, meta client.

use super::admission::Admission;
use super::cold::jobs::ColdThread;
use super::cuts::Cuts;
use super::disk_watch::DiskWatch;
use super::identity::{self, Founding, Hello, Identity, IdentityError};
use super::members::{self, Members};
use super::memory_watch::MemoryWatch;
use super::meta_client::MetaClient;
use super::peers::{CALL_FOUND, CALL_HELLO, Peers, accept_peers, call_address, peer_service};
use super::tls::Tls;
use super::under_way::UnderWay;
use super::whereabouts::Whereabouts;
use super::writer::{Groups, Room, Writer};
use crate::cluster_part::ClusterPart;
use crate::cold_moves::Jobs;
use crate::entry::Control;
use crate::placement::COPIES_DEFAULT;
use crate::shard_machine::{ShardHandle, ShardMachine};
use bytes::Bytes;
use hindcast_env::io::{FolderLock, PowerCutDisk, RealDisk, SystemClock, os_rng};
use hindcast_env::{Clock, ColdTier, Disk, DiskError, Rng, SeededRng};
use hindcast_model::slot::BadShardCount;
use hindcast_model::{GroupId, NodeId, RetentionRule, ShardMap, SpanNs, TenantId, TimestampNs, retention};
use hindcast_raft::io::{GroupSpec, RaftConfig, RaftHost, SledConfig, SledStores};
use hindcast_raft::{LogConfig, MachineError, MetaFile, MetaMachine, MetaMachineConfig, Part, RaftError};
use hindcast_storage::{Cold, ColdRule, Floor, Floors, Selector, ShardConfig, StorageError};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tonic::Status;

/// How often the oldest data is looked at.
const RETENTION_PAUSE: Duration = Duration::from_secs(60);
/// Who changed a policy and started the node again sees what it does soon.
const RETENTION_PAUSE_FIRST: Duration = Duration::from_secs(10);
const PEER_KEEPALIVE: Duration = Duration::from_secs(10);
const FOUNDING_PAUSE: Duration = Duration::from_millis(200);

/// What a node must be told.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    pub id: NodeId,
    pub data_dir: PathBuf,
    /// Peer addresses of all nodes, this one included; empty: a node on its own.
    pub join: Vec<String>,
    /// Peer addresses of some nodes of a cluster that is there already: this one asks them for its id, and `id` counts for
    /// nothing.
    pub join_cluster: Vec<String>,
    pub shards: u64,
    /// Nodes that have a copy of each shard. `None`: 3, or all when there are fewer.
    pub replicas: Option<u64>,
    pub retention: Vec<RetentionRule>,
    pub test_only: TestOnly,
    /// Bytes of the disk that writes leave free; `None`: by its size.
    pub disk_reserve: Option<u64>,
    pub cold: Option<NodeCold>,
    /// Of the peer port; `None`: peers speak without TLS.
    pub peer_tls: Option<Tls>,
    /// The cluster that the client port's certificate names: a node on its own founds that one.
    pub client_cluster: Option<String>,
    /// Bytes that this process may use; `None`: by the machine's memory.
    pub memory_limit: Option<u64>,
}

/// Where old files go. Below the store's root, each replica keeps its own: how rows lie in files is its own business.
#[derive(Clone, Debug)]
pub struct NodeCold {
    pub tier: ColdTier,
    pub rules: Vec<ColdRule>,
}

impl NodeConfig {
    fn retention_pause(&self) -> Duration {
        if self.test_only.small_files && self.cold.is_some() {
            // A test that waits until objects are let go does not wait for minutes.
            Duration::from_millis(500)
        } else {
            RETENTION_PAUSE
        }
    }
}

impl NodeCold {
    fn of(&self, identity: &Identity, group: GroupId) -> Cold {
        let folder = format!("{}/node-{}/shard-{group}", identity.cluster, identity.node);
        Cold::new(self.tier.clone(), folder, self.rules.clone())
    }
}

/// What only tests ask for: a node that does not treat its data well, so that every path is gone in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TestOnly {
    /// The power can be cut: what was not synced is lost then (`hindcast_env::io::power_cut`).
    pub power_cut: bool,
    /// Flushes, merges, snapshots and log segments after kilobytes.
    pub small_files: bool,
}

impl TestOnly {
    fn shard(self, group: GroupId) -> ShardConfig {
        let usual = ShardConfig {
            group,
            ..ShardConfig::default()
        };
        if !self.small_files {
            return usual;
        }
        ShardConfig {
            flush_bytes_max: 64 << 10,
            flush_age_max: SpanNs::from_secs(1),
            compact_segments_min: 2,
            compact_segments_max: 4,
            ..usual
        }
    }

    fn meta(self, usual: MetaMachineConfig) -> MetaMachineConfig {
        if !self.small_files {
            return usual;
        }
        MetaMachineConfig {
            snapshot_every_commands: 20,
            ..usual
        }
    }

    fn raft(self, usual: RaftConfig) -> RaftConfig {
        if !self.small_files {
            return usual;
        }
        RaftConfig {
            tail_bytes: 64 << 10,
            log: LogConfig {
                segment_bytes_max: 128 << 10,
                prewrite_bytes: 16 << 10,
                free_segments_max: 2,
                segments_max: 4,
                cache_bytes_max: 64 << 10,
            },
            ..usual
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(
        "{data_dir} belongs to node {stored}, not to node {given}; start it with --id {stored}, or use another --data-dir"
    )]
    WrongNode {
        data_dir: PathBuf,
        stored: NodeId,
        given: NodeId,
    },
    #[error("{0} is in use by another server; stop that one, or use another --data-dir")]
    InUse(PathBuf),
    #[error("this cluster cannot be founded: {0}")]
    Founding(String),
    #[error("this node cannot join: {0}")]
    Joining(String),
    #[error("{what} takes addresses of a cluster, and this node listens for no peers")]
    NoPeerPort { what: &'static str },
    #[error(transparent)]
    Shards(#[from] BadShardCount),
    #[error("{replicas} copies of each shard are not kept on {nodes} nodes: {}", replicas_hint(*nodes))]
    Replicas { replicas: u64, nodes: u64 },
    #[error("shard {group} does not open: {source}")]
    Shard { group: GroupId, source: StorageError },
    #[error("the meta group does not open: {0}")]
    Meta(MachineError),
    #[error(transparent)]
    Raft(#[from] RaftError),
    #[error("no peer address of {0:?} can be used: {1}")]
    Peer(String, String),
    #[error("no randomness from the operating system: {0}")]
    Entropy(std::io::Error),
    #[error("no thread for the work with the cold store can be started: {0}")]
    Cold(std::io::Error),
    #[error("the peer certificate is node {certificate}'s, and this is node {given}; name the right one")]
    OtherNodesCertificate { certificate: NodeId, given: NodeId },
    #[error(
        "the peer certificate is of cluster {certificate}, and the data is of cluster {data}; make an authority for it with `hindcast cert ca --cluster {data}`"
    )]
    OtherClustersCertificate { certificate: String, data: String },
}

fn replicas_hint(nodes: u64) -> String {
    match nodes {
        1 => "one node keeps one; list the addresses of more with --join, or leave --replicas out".to_owned(),
        _ => format!("say --replicas from 2 to {nodes}, list more addresses with --join, or leave --replicas out"),
    }
}

/// A running node. Clones share it.
#[derive(Clone)]
pub struct Node {
    pub identity: Arc<Identity>,
    pub raft: RaftHost,
    pub peers: Arc<Peers>,
    pub meta: MetaClient,
    pub writer: Writer,
    pub cuts: Cuts,
    pub members: Members,
    pub whereabouts: Whereabouts,
    pub shards: Arc<BTreeMap<GroupId, ShardHandle>>,
    pub meta_file: MetaFile,
    pub clock: Arc<dyn Clock>,
    pub disk: DiskWatch,
    pub admission: Admission,
    pub cold: Option<ColdTier>,
    retention: Arc<Vec<RetentionRule>>,
    /// The data directory belongs to this process as long as any part of the node lives.
    _lock: Arc<FolderLock>,
}

impl Node {
    /// Starts the node; returns once its groups run, not once they have leaders. `peers` is the bound peer port,
    /// when there are peers. `parts` stand to the right of the cluster's own, in folder order.
    pub async fn start(
        config: NodeConfig,
        peer_listener: Option<TcpListener>,
        parts: Vec<Box<dyn Part>>,
    ) -> Result<Self, StartError> {
        let retention_pause = config.retention_pause();
        let folder = RealDisk::new(&config.data_dir)?;
        let Some(lock) = folder.lock()? else {
            return Err(StartError::InUse(config.data_dir));
        };
        let disk: Arc<dyn Disk> = if config.test_only.power_cut {
            tracing::warn!(
                data_dir = %config.data_dir.display(),
                "TEST ONLY: this node loses data on purpose when its power is cut; never use it for data that you need"
            );
            Arc::new(PowerCutDisk::new(folder)?)
        } else {
            Arc::new(folder)
        };
        // Names that a killed process left behind may have been seen by nobody but the kernel's memory.
        disk.sync_dir("")?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let mut rng = os_rng().map_err(StartError::Entropy)?;
        disk.remove_dir_all("incoming")?;

        let config = match &config.join_cluster[..] {
            [] => config,
            addresses => {
                let listener = peer_listener.as_ref();
                let own = listener.and_then(|l| l.local_addr().ok());
                let own = own.ok_or(StartError::NoPeerPort { what: "--join-cluster" })?;
                let tls = config.peer_tls.as_ref();
                let id = members::known_or_joined(addresses, &own.to_string(), tls, &*disk, &mut rng).await?;
                NodeConfig { id, ..config }
            }
        };
        let peers = Peers::new(config.id, disk.clone(), config.peer_tls.clone());
        let identity = known_identity(&config, &*disk)?;
        check_certificate(&config, identity.as_ref())?;
        if let Some(tls) = &config.peer_tls {
            tokio::spawn(tls.clone().run());
        }
        let identity = match (identity, peer_listener) {
            (known, Some(listener)) => {
                let shared = Arc::new(parking_lot::Mutex::new(known));
                register_founding(&peers, config.id, disk.clone(), shared.clone());
                serve_peers(peers.clone(), listener);
                found_or_wait(&config, &*disk, shared, &mut rng).await?
            }
            (Some(known), None) => known,
            (None, None) => {
                let alone = new_identity(&config, BTreeMap::new(), &mut rng)?;
                identity::store(&*disk, &alone)?;
                alone
            }
        };
        let mut addresses = identity.known.clone();
        addresses.extend(identity.nodes.clone());
        peers
            .join(&identity.cluster, &addresses)
            .map_err(|e| StartError::Peer(format!("{:?}", identity.nodes), e.to_string()))?;
        if identity.welcomed.contains(&config.id) && identity.welcomed.len() < identity.nodes.len() {
            tokio::spawn(welcome_rest(identity.clone(), disk.clone(), peers.clone()));
        }

        let map = ShardMap::even(identity.shards)?;
        let watch = DiskWatch::new(disk.clone(), clock.clone(), config.disk_reserve)?;
        tokio::spawn(watch.clone().run());
        let memory = MemoryWatch::new(clock.clone(), config.memory_limit);
        let mut groups = vec![];
        let mut shards = BTreeMap::new();
        let shard_config = |group| ShardConfig {
            reserve_bytes: watch.reserve(),
            cold: config.cold.as_ref().map(|c| c.of(&identity, group)),
            ..config.test_only.shard(group)
        };
        let jobs: Option<Arc<dyn Jobs>> = match &config.cold {
            Some(_) => Some(Arc::new(ColdThread::start().map_err(StartError::Cold)?)),
            None => None,
        };
        let has_others = identity.nodes.keys().any(|n| *n != identity.node);
        for mut machine in open_shards(&map, &shard_config, &disk, &clock, has_others)? {
            if let Some(jobs) = &jobs {
                machine = machine.with_cold_jobs(jobs.clone());
            }
            let handle = machine.handle();
            groups.push(GroupSpec {
                group: handle.group,
                voters: identity.founders(handle.group),
                machine: Box::new(machine),
            });
            shards.insert(handle.group, handle);
        }
        let shards = Arc::new(shards);
        let (held, checked) = (shards.clone(), disk.clone());
        peers.check_snapshots(Box::new(move |group, dir| check_snapshot(&held, &*checked, group, dir)));
        let mut all_parts: Vec<Box<dyn Part>> = vec![Box::new(ClusterPart)];
        all_parts.extend(parts);
        let meta_config = config.test_only.meta(MetaMachineConfig {
            verify_rows: machine_restarted(&*disk)?,
            ..MetaMachineConfig::new("meta")
        });
        let stores = SledStores::new(SledConfig::new(config.data_dir.join("meta").join("sled")));
        let machine = MetaMachine::open(disk.clone(), stores, all_parts, meta_config).map_err(StartError::Meta)?;
        let (rows, meta_file) = (machine.reader(), machine.file());
        groups.insert(
            0,
            GroupSpec {
                group: GroupId::META,
                voters: identity.founders(GroupId::META),
                machine: Box::new(machine),
            },
        );

        let raft_config = config.test_only.raft(RaftConfig {
            node: config.id,
            ..RaftConfig::default()
        });
        let raft = RaftHost::start(disk, "raft", raft_config, groups, peers.clone(), clock.clone(), rng)?;
        peers.attach(raft.clone());

        let meta = MetaClient::new(config.id, raft.clone(), peers.clone(), clock.clone(), rows);
        let readers = map.shards().into_iter().filter_map(|shard| {
            let handle = shards.get(&GroupId::from(shard))?;
            Some((shard, handle.reader.clone()))
        });
        let readers = readers.collect();
        let under_way = UnderWay::new(clock.clone());
        let whereabouts = Whereabouts::start(config.id, raft.clone(), peers.clone());
        let writer = Writer::new(
            config.id,
            map,
            readers,
            Groups {
                raft: raft.clone(),
                whereabouts: whereabouts.clone(),
            },
            peers.clone(),
            Arc::new(meta.clone()),
            Room {
                disk: watch.clone(),
                memory: memory.clone(),
                under_way: under_way.clone(),
            },
        );
        let cuts = Cuts {
            meta: Arc::new(meta.clone()),
            writer: writer.clone(),
        };
        let identity = Arc::new(identity);
        let members = Members::start(
            identity.clone(),
            raft.clone(),
            peers.clone(),
            meta.clone(),
            shards.clone(),
            watch.clone(),
            clock.clone(),
        );
        let node = Self {
            identity,
            raft,
            peers,
            meta,
            writer,
            cuts,
            members,
            whereabouts,
            shards,
            meta_file,
            admission: Admission::new(memory.clone(), under_way, clock.clone()),
            clock,
            disk: watch,
            cold: config.cold.map(|c| c.tier),
            retention: Arc::new(config.retention),
            _lock: Arc::new(lock),
        };
        tokio::spawn(node.clone().retain(retention_pause));
        let heads = node.shards.clone();
        // What is in files needs no memory.
        let relieve = move || {
            for shard in heads.values() {
                shard.ask_flush();
            }
        };
        let (shards, writer, admission) = (node.shards.clone(), node.writer.clone(), node.admission.clone());
        let held = move || {
            let heads: u64 = shards.values().map(|s| s.stats().head_bytes as u64).sum();
            let parts: u64 = writer.queued_bytes().iter().map(|(_, bytes)| *bytes as u64).sum();
            // What a running query takes is not known before it ends.
            let queries = if admission.queries().0 > 0 { u64::MAX / 4 } else { 0 };
            heads + parts + admission.ingest_bytes().0 as u64 + queries
        };
        tokio::spawn(memory.run(held, relieve));
        Ok(node)
    }

    pub fn id(&self) -> NodeId {
        self.identity.node
    }

    /// Every group has a leader, and this node has applied what it had committed of those that it has: reads and writes will be
    /// answered.
    pub fn is_ready(&self) -> bool {
        let mut groups = std::iter::once(GroupId::META).chain(self.shards.keys().copied());
        groups.all(|g| self.is_ready_for(g))
    }

    pub fn is_ready_for(&self, group: GroupId) -> bool {
        if group != GroupId::META && !self.whereabouts.is_here(group) {
            return self.whereabouts.leader(group).is_some();
        }
        let status = self.raft.status(group);
        status.leader.is_some() && !status.is_rebuilding && status.applied >= status.commit
    }

    /// The oldest instant that is accepted and kept for a tenant; `None`: any.
    pub fn floor(&self, tenant: &TenantId) -> Option<TimestampNs> {
        let longest = retention::longest_for(&self.retention, tenant)?;
        Some(self.meta.cluster_now() - longest)
    }

    /// Proposes, for shards led here, what may go.
    async fn retain(self, pause: Duration) {
        let mut next = pause.min(RETENTION_PAUSE_FIRST);
        loop {
            tokio::time::sleep(next).await;
            next = pause;
            let now = self.meta.cluster_now();
            let floors = floors_at(&self.retention, now);
            if floors.iter().all(|f| f.floors == Floors::NONE) {
                continue;
            }
            for shard in self.writer.led_here() {
                if let Err(e) = self
                    .writer
                    .control(shard, Control::Retain { floors: floors.clone() })
                    .await
                {
                    tracing::warn!(%shard, error = %e, "retention could not be proposed; tried again in a minute");
                }
            }
        }
    }
}

/// A receiver has refused a snapshot. A file went into it under the name that it has here: when it is not what was written, it is
/// this node's copy that needs another one.
fn check_snapshot(
    shards: &BTreeMap<GroupId, ShardHandle>,
    disk: &dyn Disk,
    group: GroupId,
    dir: &str,
) -> Result<(), String> {
    let Some(shard) = shards.get(&group) else {
        return Ok(());
    };
    hindcast_storage::check_export(disk, dir).map_err(|e| {
        if let StorageError::Damaged(damage) = &e
            && let Some((_, name)) = damage.file.rsplit_once('/')
        {
            shard.reader.suspect(&format!("shard-{group}/{name}"));
        }
        e.to_string()
    })
}

/// Files of a shard that does not open go here, until another node's snapshot is in force.
fn aside(dir: &str) -> String {
    format!("{dir}.damaged")
}

/// A cut on the way leaves a folder that does not open either, or is empty.
fn set_aside(disk: &dyn Disk, dir: &str) -> Result<(), DiskError> {
    let aside = aside(dir);
    disk.create_dir_all(&aside)?;
    for name in disk.list(dir)? {
        disk.rename(&format!("{dir}/{name}"), &format!("{aside}/{name}"))?;
    }
    disk.sync_dir(&aside)?;
    disk.sync_dir(dir)?;
    disk.sync_dir("")
}

/// Opens all shards, each on a thread of its own: label indexes are rebuilt meanwhile, which is all work. One that is damaged
/// begins empty where there are other nodes: its log begins after that, so the copy takes no part until it is rebuilt.
fn open_shards(
    map: &ShardMap,
    config: &(dyn Fn(GroupId) -> ShardConfig + Sync),
    disk: &Arc<dyn Disk>,
    clock: &Arc<dyn Clock>,
    has_others: bool,
) -> Result<Vec<ShardMachine>, StartError> {
    let open = |group: GroupId| {
        let dir = format!("shard-{group}");
        let open = || ShardMachine::open(disk.clone(), &dir, config(group), clock.clone());
        let mut opened = open();
        if let Err(StorageError::Damaged(damage)) = &opened
            && has_others
        {
            tracing::error!(%group, %damage, "a shard does not open; its files are moved aside, and it is rebuilt from another node");
            set_aside(&**disk, &dir)?;
            opened = open();
        }
        let machine = opened.map_err(|source| StartError::Shard { group, source })?;
        let aside = aside(&dir);
        Ok(match disk.exists(&aside) {
            true => machine.with_aside(disk.clone(), aside),
            false => machine,
        })
    };
    std::thread::scope(|threads| {
        let shards = map.shards().into_iter().map(GroupId::from);
        let opening: Vec<_> = shards.map(|group| threads.spawn(move || open(group))).collect();
        let joined = opening.into_iter().map(|t| t.join());
        joined
            .map(|opened| opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

/// What the rules come to at one moment. Native histograms, whose samples are lines, have rules of their own among them: so the entries
/// of the log say how long they are kept, and shards apply older ones as they were meant.
fn floors_at(rules: &[RetentionRule], now: TimestampNs) -> Vec<Floor> {
    let floor = |keep: Option<SpanNs>| keep.map_or(TimestampNs::MIN, |keep| now - keep);
    let of_rule = |r: &RetentionRule| Floor {
        name: r.name.clone(),
        tenant: r.tenant.clone(),
        domain: r.domain,
        selector: r.selector.iter().cloned().map(Selector).collect(),
        floors: Floors {
            raw: floor(r.keeps.raw),
            five_minutes: floor(r.keeps.five_minutes),
            hour: floor(r.keeps.hour),
            lines: floor(r.keeps.logs),
        },
    };
    if rules.is_empty() {
        return vec![Floor::at(None, None, floor(Some(retention::KEEP_DEFAULT)))];
    }
    retention::with_natives(rules).iter().map(of_rule).collect()
}

fn known_identity(config: &NodeConfig, disk: &dyn Disk) -> Result<Option<Identity>, StartError> {
    let known = identity::load(disk)?;
    match &known {
        Some(k) if k.node != config.id => Err(StartError::WrongNode {
            data_dir: config.data_dir.clone(),
            stored: k.node,
            given: config.id,
        }),
        _ => Ok(known),
    }
}

/// A certificate of another node, or of another cluster than the data, would be refused by everybody.
fn check_certificate(config: &NodeConfig, identity: Option<&Identity>) -> Result<(), StartError> {
    let Some((cluster, node)) = config.peer_tls.as_ref().and_then(Tls::own_node) else {
        return Ok(());
    };
    if node != config.id {
        return Err(StartError::OtherNodesCertificate {
            certificate: node,
            given: config.id,
        });
    }
    match identity {
        Some(known) if known.cluster != cluster => Err(StartError::OtherClustersCertificate {
            certificate: cluster,
            data: known.cluster.clone(),
        }),
        _ => Ok(()),
    }
}

fn new_identity(
    config: &NodeConfig,
    nodes: BTreeMap<NodeId, String>,
    rng: &mut SeededRng,
) -> Result<Identity, StartError> {
    ShardMap::even(config.shards)?;
    let count = nodes.len().max(1) as u64;
    let replicas = config.replicas.unwrap_or(COPIES_DEFAULT.min(count));
    // What is on one of several nodes only is lost with that one.
    if replicas < count.min(2) || replicas > count {
        return Err(StartError::Replicas { replicas, nodes: count });
    }
    Ok(Identity {
        cluster: match config.peer_tls.as_ref().and_then(Tls::own_node) {
            // The certificates were made first, and name the cluster.
            Some((cluster, _)) => cluster,
            None if config.join.is_empty() && config.client_cluster.is_some() => {
                config.client_cluster.clone().unwrap_or_default()
            }
            None => format!("{:016x}{:016x}", rng.next_u64(), rng.next_u64()),
        },
        node: config.id,
        nodes,
        known: BTreeMap::new(),
        shards: config.shards,
        replicas,
        welcomed: BTreeSet::from([config.id]),
    })
}

type SharedIdentity = Arc<parking_lot::Mutex<Option<Identity>>>;

/// Answers who this node is, and takes the identity that the founder sends.
fn register_founding(peers: &Arc<Peers>, me: NodeId, disk: Arc<dyn Disk>, shared: SharedIdentity) {
    let own = shared.clone();
    let certified = peers.tls().and_then(Tls::own_node).map(|(cluster, _)| cluster);
    peers.register(
        CALL_HELLO,
        Arc::new(move |_, _| {
            let hello = Hello {
                node: me,
                cluster: own.lock().as_ref().map(|i| i.cluster.clone()),
            };
            Box::pin(async move { Ok(Bytes::from(hindcast_model::codec::to_bytes(&hello))) })
        }),
    );
    peers.register(
        CALL_FOUND,
        Arc::new(move |_, body| {
            let (disk, shared, certified) = (disk.clone(), shared.clone(), certified.clone());
            Box::pin(async move {
                let sent: Identity =
                    hindcast_model::codec::from_bytes(&body).map_err(|e| Status::invalid_argument(e.to_string()))?;
                if certified.is_some_and(|own| own != sent.cluster) {
                    return Err(Status::failed_precondition(
                        "this node's certificate is of another cluster",
                    ));
                }
                let mut own = shared.lock();
                match own.as_ref() {
                    Some(known) if known.cluster == sent.cluster => Ok(Bytes::new()),
                    Some(_) => Err(Status::failed_precondition("this node belongs to another cluster")),
                    None => {
                        let mine = Identity {
                            node: me,
                            welcomed: BTreeSet::new(),
                            ..sent
                        };
                        identity::store(&*disk, &mine).map_err(|e| Status::internal(e.to_string()))?;
                        *own = Some(mine);
                        Ok(Bytes::new())
                    }
                }
            })
        }),
    );
}

fn serve_peers(peers: Arc<Peers>, listener: TcpListener) {
    let server = tonic::transport::Server::builder()
        .initial_stream_window_size(16 * 1024 * 1024)
        .initial_connection_window_size(32 * 1024 * 1024)
        .max_frame_size(1024 * 1024)
        .tcp_nodelay(true)
        // A peer that stands still holds no answers.
        .http2_keepalive_interval(Some(PEER_KEEPALIVE))
        .http2_keepalive_timeout(Some(PEER_KEEPALIVE))
        .add_service(peer_service(peers.clone()));
    tokio::spawn(async move {
        let incoming = accept_peers(listener, peers.tls().cloned());
        if let Err(error) = server.serve_with_incoming(incoming).await {
            tracing::error!(%error, "the peer port closed");
        }
    });
}

async fn hello(me: NodeId, address: &str, tls: Option<&Tls>) -> Option<Hello> {
    let answer = call_address(address, tls, me, CALL_HELLO, Bytes::new()).await.ok()?;
    hindcast_model::codec::from_bytes(&answer).ok()
}

async fn found_or_wait(
    config: &NodeConfig,
    disk: &dyn Disk,
    shared: SharedIdentity,
    rng: &mut SeededRng,
) -> Result<Identity, StartError> {
    let mut said = String::new();
    loop {
        if let Some(known) = shared.lock().clone() {
            return Ok(known);
        }
        let mut answers = BTreeMap::new();
        for address in &config.join {
            answers.insert(
                address.clone(),
                hello(config.id, address, config.peer_tls.as_ref()).await,
            );
        }
        match identity::next_step(config.id, &answers) {
            Founding::Refuse(why) => return Err(StartError::Founding(why)),
            Founding::Wait(why) => {
                if why != said {
                    tracing::info!("{why}");
                    said = why;
                }
                tokio::time::sleep(FOUNDING_PAUSE).await;
            }
            Founding::Found => {
                let nodes = answers
                    .into_iter()
                    .filter_map(|(addr, h)| Some((h?.node, addr)))
                    .collect();
                let founded = new_identity(config, nodes, rng)?;
                // The founder's own file first: after a crash it welcomes the rest and never founds again.
                identity::store(disk, &founded)?;
                *shared.lock() = Some(founded.clone());
                tracing::info!(
                    cluster = founded.cluster,
                    nodes = founded.nodes.len(),
                    "founded a cluster"
                );
                return Ok(founded);
            }
        }
    }
}

/// Sends the identity to nodes that have none yet, each once.
async fn welcome_rest(mut identity: Identity, disk: Arc<dyn Disk>, peers: Arc<Peers>) {
    let body = Bytes::from(hindcast_model::codec::to_bytes(&identity));
    while identity.welcomed.len() < identity.nodes.len() {
        let rest: Vec<_> = identity
            .nodes
            .iter()
            .filter(|(id, _)| !identity.welcomed.contains(id))
            .map(|(i, a)| (*i, a.clone()))
            .collect();
        for (id, address) in rest {
            match call_address(&address, peers.tls(), identity.node, CALL_FOUND, body.clone()).await {
                Ok(_) => {
                    identity.welcomed.insert(id);
                    if let Err(error) = identity::store(&*disk, &identity) {
                        tracing::error!(%error, "the identity file cannot be written");
                        return;
                    }
                }
                Err(status) => tracing::debug!(%id, %status, "not welcomed yet"),
            }
        }
        tokio::time::sleep(FOUNDING_PAUSE).await;
    }
}

/// Whether the machine has booted since this data was last open: then what was not synced may be gone, and every
/// row is compared. Notes the boot for the next start.
fn machine_restarted(disk: &dyn Disk) -> Result<bool, DiskError> {
    const FILE: &str = "boot_id";
    let boot = RealDisk::new("/proc/sys/kernel/random").and_then(|d| d.read("boot_id"));
    // Without a boot id nothing can be ruled out.
    let Ok(boot) = boot else { return Ok(true) };
    let before = disk.read(FILE).ok();
    if before.as_ref() == Some(&boot) {
        return Ok(false);
    }
    hindcast_env::disk::replace_file(disk, FILE, &boot)?;
    Ok(before.is_some())
}

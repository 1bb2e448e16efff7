//! What a server must be told: one TOML file, each key also a flag and an environment variable. Flags win.

use hindcast_env::cold_cache::CACHE_BYTES_DEFAULT;
use hindcast_ingest::syslog::listen::{LISTENERS_MAX, Listen, Transport};
use hindcast_masking::{Counts, Masking, Settings, SettingsError};
use hindcast_model::{Domain, Keeps, RetentionRule, SpanNs, TenantId};
use hindcast_node::io::node::TestOnly;
use hindcast_node::io::tls::TlsFiles;
use hindcast_node::memory_guard::LIMIT_BYTES_MIN;
use hindcast_storage::ColdRule;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// What is kept when nothing is said.
const KEEP_DEFAULT: &str = "30d";

/// Arguments of `hindcast server`.
#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[command(after_help = "Examples:
  hindcast server --data-dir /var/lib/hindcast
      one node on loopback: no config file, no user, no token
  hindcast server --id 1 --data-dir n1 --listen 127.0.0.1:7400 --peer-listen 127.0.0.1:7401 \\
                  --join 127.0.0.1:7401,127.0.0.1:7411,127.0.0.1:7421
      one of three nodes; start the others with their own --id, --data-dir, --listen and --peer-listen
  hindcast server --data-dir n4 --listen 127.0.0.1:7430 --peer-listen 127.0.0.1:7431 --join-cluster 127.0.0.1:7401
      one more node for a cluster that runs: it gets its number there, and waits for `hindcast cluster add`
  hindcast server --data-dir d --retention none
      keeps and accepts data of every age, back to 1970
  hindcast server --data-dir d --retention 30d,DBMS=90d,team-a=1y,team-a/SMS=7d
      by domain, by tenant, by both
  hindcast server --data-dir d --syslog-listen 'udp://0.0.0.0:5514?zone=Asia/Seoul&from=10.0.0.0/8,tcp://0.0.0.0:5514'
      takes syslog of the network 10.0.0.0/8 by UDP, and of anybody by TCP
  hindcast server --data-dir d --scrape-config prometheus.yml
      scrapes what the file names; `hindcast scrape check prometheus.yml` shows it before
  hindcast server --data-dir d --snmp-config devices.yml --snmp-trap-listen 0.0.0.0:162
      polls the devices that the file names, and takes their traps; `hindcast snmp check devices.yml` shows them before
  hindcast server --data-dir d --kafka kafka.yml
      consumes the topics that the file names; `hindcast kafka check kafka.yml` shows them before
  hindcast server --data-dir d --retention 1y --cold-store s3://bucket/prefix --cold-after 30d
      files whose newest row is older than 30 days go to a bucket; AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION
      and AWS_ENDPOINT say how to reach it")]
pub struct ServerArgs {
    /// A TOML file with these keys (underscores for dashes).
    #[arg(long, env = "HINDCAST_CONFIG")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// This node's number in the cluster, from 1 [default: 1].
    #[arg(long, env = "HINDCAST_ID")]
    pub id: Option<u64>,
    /// Where everything is kept [default: hindcast-data].
    #[arg(long, env = "HINDCAST_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address for clients: gRPC, HTTP and the web UI; port 0 picks a free one [default: 127.0.0.1:7400].
    #[arg(long, env = "HINDCAST_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Address for the other nodes [default: 127.0.0.1:7401]; without --join nothing listens there.
    #[arg(long, env = "HINDCAST_PEER_LISTEN")]
    pub peer_listen: Option<SocketAddr>,
    /// Peer addresses of all nodes, this one included.
    #[arg(long, env = "HINDCAST_JOIN", value_delimiter = ',')]
    pub join: Vec<String>,
    /// Peer addresses of some nodes of a cluster that runs already: this node asks them for its number and joins. Instead
    /// of --join and --id; the same on every start.
    #[arg(long, env = "HINDCAST_JOIN_CLUSTER", value_delimiter = ',', conflicts_with_all = ["join", "id"])]
    pub join_cluster: Vec<String>,
    /// Who signs the certificates of clients, and of peers unless --peer-tls-ca says otherwise (PEM). With it, clients must
    /// show a certificate.
    #[arg(long, env = "HINDCAST_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// This node's certificate (PEM), made by `hindcast cert node`: both ports speak TLS then.
    #[arg(long, env = "HINDCAST_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, env = "HINDCAST_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// For the peer port only [default: --tls-ca].
    #[arg(long, env = "HINDCAST_PEER_TLS_CA", value_name = "FILE")]
    pub peer_tls_ca: Option<PathBuf>,
    /// For the peer port only [default: --tls-cert].
    #[arg(long, env = "HINDCAST_PEER_TLS_CERT", value_name = "FILE")]
    pub peer_tls_cert: Option<PathBuf>,
    /// For the peer port only [default: --tls-key].
    #[arg(long, env = "HINDCAST_PEER_TLS_KEY", value_name = "FILE")]
    pub peer_tls_key: Option<PathBuf>,
    /// Shards; fixed at the first start: a power of two up to 64 [default: 4].
    #[arg(long, env = "HINDCAST_SHARDS")]
    pub shards: Option<u64>,
    /// Nodes that have a copy of each shard; fixed at the first start [default: 3, or all when there are fewer].
    #[arg(long, env = "HINDCAST_REPLICAS")]
    pub replicas: Option<u64>,
    /// Rule files, `*` allowed in the file name; may be given more than once.
    #[arg(long, env = "HINDCAST_RULES", value_delimiter = ',')]
    pub rules: Vec<String>,
    /// The routes file: who is told what.
    #[arg(long, env = "HINDCAST_ROUTES")]
    pub routes: Option<PathBuf>,
    /// How long data is kept: `30d`, `none` for ever, or a list by domain and tenant [default: 30d].
    #[arg(long, env = "HINDCAST_RETENTION")]
    pub retention: Option<String>,
    /// Rules of their own, in the file only: `[[policy]]` tables.
    #[arg(skip)]
    pub policy: Vec<PolicyArgs>,
    /// What personal data is hidden in lines, in the file only: `[masking]`.
    #[arg(skip)]
    #[serde(deserialize_with = "masking_table")]
    pub masking: Settings,
    /// What writes leave free of the disk, like 2GiB or 500MB; below it they are refused and reads go on
    /// [default: a tenth of the disk, at least 128 MiB and at most 1 GiB].
    #[arg(long, env = "HINDCAST_DISK_RESERVE")]
    pub disk_reserve: Option<String>,
    /// What this process may use of memory, like 8GiB; near it queries are refused, then writes, never alerts and tickets; `none`
    /// for no bound [default: three quarters of the machine's, or 85 % of what its control group allows].
    #[arg(long, env = "HINDCAST_MEMORY_LIMIT", value_name = "BYTES")]
    pub memory_limit: Option<String>,
    /// Where syslog is taken: udp://0.0.0.0:5514, tcp://… (counted or by lines) or tls://… (with --tls-cert); may be given more than
    /// once. Behind a `?`, with `&` between: zone=Asia/Seoul for times without one [default: local], from=10.0.0.0/8|192.0.2.7 for who
    /// may send [default: any], tenant=NAME, charset=euc-kr for what is not UTF-8, devices=sw-*|10.0.9.* and
    /// device_facilities=local7 for senders that are devices of a network and not hosts.
    #[arg(long, env = "HINDCAST_SYSLOG_LISTEN", value_name = "URL", value_delimiter = ',')]
    #[serde(deserialize_with = "listeners")]
    pub syslog_listen: Vec<String>,
    /// A Prometheus configuration (`scrape_configs`, static_configs and file_sd_configs): what this cluster scrapes. Give all nodes the
    /// same file; they share the targets.
    #[arg(long, env = "HINDCAST_SCRAPE_CONFIG", value_name = "FILE")]
    pub scrape_config: Option<PathBuf>,
    /// What each tenant may write (YAML): rates, active series, labels, lengths; `hindcast limits check FILE` shows it. Give all nodes
    /// the same file.
    #[arg(long, env = "HINDCAST_LIMITS", value_name = "FILE")]
    pub limits: Option<PathBuf>,
    /// A list of devices (YAML) that are polled by SNMP, and of who may send traps. Give all nodes the same file; they share the
    /// devices.
    #[arg(long, env = "HINDCAST_SNMP_CONFIG", value_name = "FILE")]
    pub snmp_config: Option<PathBuf>,
    /// Where traps and informs are taken by UDP, like 0.0.0.0:162; may be given more than once. Who may send them is in
    /// --snmp-config.
    #[arg(
        long,
        env = "HINDCAST_SNMP_TRAP_LISTEN",
        value_name = "ADDRESS",
        value_delimiter = ','
    )]
    pub snmp_trap_listen: Vec<SocketAddr>,
    /// Brokers and topics of Kafka that are consumed (YAML). Give all nodes the same file; the group's partitions are shared out among them.
    #[arg(long, env = "HINDCAST_KAFKA", value_name = "FILE")]
    pub kafka: Option<PathBuf>,
    /// Where files of old rows go: file:///an/absolute/folder or s3://bucket/prefix. Every node has its own part of it.
    #[arg(long, env = "HINDCAST_COLD_STORE", value_name = "URL")]
    pub cold_store: Option<String>,
    /// From which age on, like 30d; `none` or nothing: what is in the store is read, and no more goes there.
    #[arg(long, env = "HINDCAST_COLD_AFTER", value_name = "SPAN")]
    pub cold_after: Option<String>,
    /// What is held in memory of files in the store [default: 256MiB].
    #[arg(long, env = "HINDCAST_COLD_CACHE_BYTES", value_name = "BYTES")]
    pub cold_cache_bytes: Option<String>,
    /// For tests of this program only: the node forgets what it did not sync when the power is cut.
    #[arg(long, env = "HINDCAST_TEST_ONLY_POWER_CUT", hide = true)]
    #[serde(skip)]
    pub test_only_power_cut: bool,
    /// For tests of this program only: everything happens after kilobytes instead of megabytes.
    #[arg(long, env = "HINDCAST_TEST_ONLY_SMALL_FILES", hide = true)]
    #[serde(skip)]
    pub test_only_small_files: bool,
}

/// A retention rule in the file. What is not said is kept as long as what it is made of: `keep_5m` as `keep`, `keep_1h`
/// as `keep_5m`, `keep_logs` as `keep`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyArgs {
    /// Under which what it lets go is counted.
    pub name: String,
    pub tenant: Option<String>,
    pub domain: Option<String>,
    /// Label matchers as in queries: `{job="debug"}`.
    pub selector: Option<String>,
    /// Samples as they came; `none`: for ever.
    pub keep: String,
    /// Windows of five minutes.
    pub keep_5m: Option<String>,
    /// Windows of one hour.
    pub keep_1h: Option<String>,
    /// Log lines.
    pub keep_logs: Option<String>,
    /// From which age on files go to the cold store; `none`: never. Only without a selector: a file holds many series.
    pub cold_after: Option<String>,
}

/// A configuration that cannot be used: exit code 2.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ConfigError {
    #[error("{path}: {why}")]
    File { path: String, why: String },
    #[error(
        "{address} is not a loopback address: clients come in there only with TLS and a certificate of theirs; name --tls-ca, --tls-cert and --tls-key (`hindcast cert` makes them), or use 127.0.0.1 or [::1]"
    )]
    OffLoopback { address: SocketAddr },
    #[error(
        "{address} is not a loopback address: peers speak there only with TLS; name --tls-ca, --tls-cert and --tls-key (`hindcast cert` makes them), or use 127.0.0.1 or [::1]"
    )]
    PeersOffLoopback { address: SocketAddr },
    #[error("{cert} and {key} belong together: name both")]
    HalfOfTls { cert: &'static str, key: &'static str },
    #[error("{ca} says whose certificates are taken; name {cert} and {key}, too")]
    OnlyAuthority {
        ca: &'static str,
        cert: &'static str,
        key: &'static str,
    },
    #[error("peers need the authority that signs their certificates: name it with --tls-ca or --peer-tls-ca")]
    NoPeerAuthority,
    #[error(
        "retention {given:?} is not understood: write 30d, none, or a list like 30d,DBMS=90d,team-a=1y,team-a/SMS=7d"
    )]
    Retention { given: String },
    #[error("policy {name:?}: {why}")]
    Policy { name: String, why: String },
    #[error("disk reserve {given:?} is not understood: write bytes, or a number with KiB, MiB, GiB, KB, MB or GB")]
    DiskReserve { given: String },
    #[error(
        "memory limit {given:?} is not understood: write bytes, or a number with KiB, MiB, GiB, KB, MB or GB, at least 64MiB, or none"
    )]
    MemoryLimit { given: String },
    #[error("cold store: {0}")]
    Cold(String),
    #[error("{0}")]
    Syslog(String),
    #[error("--snmp-trap-listen takes traps only of those whom --snmp-config names (traps: senders:): name the file")]
    TrapsOfNobody,
    #[error("--snmp-trap-listen: at most {LISTENERS_MAX} addresses")]
    TrapListeners,
    #[error(transparent)]
    Masking(#[from] SettingsError),
    #[error("--id must be at least 1; 0 means nobody")]
    NodeZero,
    #[error("--join founds a cluster and --join-cluster enters one that runs; give one of them")]
    JoinTwice,
}

/// One listener looks as if it could stand alone.
fn listeners<'de, D: serde::Deserializer<'de>>(given: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given {
        List(Vec<String>),
        Other(serde::de::IgnoredAny),
    }
    match Given::deserialize(given)? {
        Given::List(list) => Ok(list),
        Given::Other(_) => Err(serde::de::Error::custom(
            "syslog_listen is a list of texts: write syslog_listen = [\"udp://0.0.0.0:5514\", \"tcp://0.0.0.0:5514\"]",
        )),
    }
}

/// What is used, defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerConfig {
    pub id: u64,
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    pub peer_listen: SocketAddr,
    pub join: Vec<String>,
    pub join_cluster: Vec<String>,
    pub shards: u64,
    pub replicas: Option<u64>,
    pub rules: Vec<String>,
    pub routes: Option<PathBuf>,
    pub retention: Vec<RetentionRule>,
    /// The file that was read, to read it again at a reload.
    pub file: Option<PathBuf>,
    pub masking: Settings,
    pub test_only: TestOnly,
    /// `None`: by the disk's size.
    pub disk_reserve: Option<u64>,
    /// `None`: by the machine's memory; `u64::MAX`: no bound.
    pub memory_limit: Option<u64>,
    pub cold: Option<ColdConfig>,
    pub syslog: Vec<Listen>,
    /// What is scraped: a Prometheus configuration.
    pub scrape: Option<PathBuf>,
    /// What tenants may write.
    pub limits: Option<PathBuf>,
    /// Which devices are polled, and who may send traps.
    pub snmp: Option<PathBuf>,
    pub snmp_traps: Vec<SocketAddr>,
    /// Which topics are consumed.
    pub kafka: Option<PathBuf>,
    /// Of the client port; `None`: without TLS.
    pub tls: Option<TlsFiles>,
    /// Of the peer port; `None`: without TLS, or there are no peers.
    pub peer_tls: Option<TlsFiles>,
}

impl ServerConfig {
    /// Whether there are other nodes, now or soon.
    pub fn has_peers(&self) -> bool {
        !self.join.is_empty() || !self.join_cluster.is_empty()
    }
}

/// Where old files go, and when.
#[derive(Clone, Debug, PartialEq)]
pub struct ColdConfig {
    pub url: String,
    pub cache_bytes_max: usize,
    pub rules: Vec<ColdRule>,
}

/// Reads `[masking]`; what is no table is answered with one.
fn masking_table<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Settings, D::Error> {
    use serde::de::value::MapAccessDeserializer;
    use serde::de::{Error, MapAccess, SeqAccess, Visitor};

    struct Table;

    fn no_table<E: Error>(on: bool) -> E {
        E::custom(format!("masking is a table; write\n\n[masking]\non = {on}\n"))
    }

    impl<'de> Visitor<'de> for Table {
        type Value = Settings;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("the table [masking]")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Settings, A::Error> {
            serde::Deserialize::deserialize(MapAccessDeserializer::new(map))
        }

        fn visit_bool<E: Error>(self, on: bool) -> Result<Settings, E> {
            Err(no_table(on))
        }

        fn visit_str<E: Error>(self, _: &str) -> Result<Settings, E> {
            Err(no_table(true))
        }

        fn visit_i64<E: Error>(self, _: i64) -> Result<Settings, E> {
            Err(no_table(true))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Settings, A::Error> {
            Err(no_table(true))
        }
    }

    deserializer.deserialize_any(Table)
}

impl ServerArgs {
    /// Reads the file, if one is named; what was given as a flag or variable stays.
    pub fn with_file(self) -> Result<Self, ConfigError> {
        let Some(path) = &self.config else { return Ok(self) };
        let file = Self::read_file(path)?;
        Ok(Self {
            config: self.config,
            id: self.id.or(file.id),
            data_dir: self.data_dir.or(file.data_dir),
            listen: self.listen.or(file.listen),
            peer_listen: self.peer_listen.or(file.peer_listen),
            join: if self.join.is_empty() { file.join } else { self.join },
            join_cluster: if self.join_cluster.is_empty() {
                file.join_cluster
            } else {
                self.join_cluster
            },
            tls_ca: self.tls_ca.or(file.tls_ca),
            tls_cert: self.tls_cert.or(file.tls_cert),
            tls_key: self.tls_key.or(file.tls_key),
            peer_tls_ca: self.peer_tls_ca.or(file.peer_tls_ca),
            peer_tls_cert: self.peer_tls_cert.or(file.peer_tls_cert),
            peer_tls_key: self.peer_tls_key.or(file.peer_tls_key),
            shards: self.shards.or(file.shards),
            replicas: self.replicas.or(file.replicas),
            rules: if self.rules.is_empty() { file.rules } else { self.rules },
            routes: self.routes.or(file.routes),
            retention: self.retention.or(file.retention),
            test_only_power_cut: self.test_only_power_cut,
            test_only_small_files: self.test_only_small_files,
            policy: file.policy,
            masking: file.masking,
            disk_reserve: self.disk_reserve.or(file.disk_reserve),
            memory_limit: self.memory_limit.or(file.memory_limit),
            syslog_listen: if self.syslog_listen.is_empty() {
                file.syslog_listen
            } else {
                self.syslog_listen
            },
            scrape_config: self.scrape_config.or(file.scrape_config),
            limits: self.limits.or(file.limits),
            snmp_config: self.snmp_config.or(file.snmp_config),
            snmp_trap_listen: if self.snmp_trap_listen.is_empty() {
                file.snmp_trap_listen
            } else {
                self.snmp_trap_listen
            },
            kafka: self.kafka.or(file.kafka),
            cold_store: self.cold_store.or(file.cold_store),
            cold_after: self.cold_after.or(file.cold_after),
            cold_cache_bytes: self.cold_cache_bytes.or(file.cold_cache_bytes),
        })
    }

    fn read_file(path: &Path) -> Result<Self, ConfigError> {
        let bad = |why: String| ConfigError::File {
            path: path.display().to_string(),
            why,
        };
        let text = read_text(path).map_err(bad)?;
        toml::from_str(&text).map_err(|e| bad(e.to_string()))
    }

    /// What a file says of masking, checked.
    pub fn masking_of(path: &Path) -> Result<Settings, ConfigError> {
        let settings = Self::read_file(path)?.masking;
        Masking::new(settings.clone(), &Counts::default())?;
        Ok(settings)
    }

    /// Checks everything that can be checked without the outside.
    pub fn resolve(self) -> Result<ServerConfig, ConfigError> {
        let retention = all_rules(self.retention.as_deref(), &self.policy)?;
        let cold = self.cold()?;
        if let Some(cold) = &cold {
            check_cold_is_reached(&cold.rules, &retention)?;
        }
        let (tls, peer_tls) = self.tls()?;
        let syslog = self.syslog(tls.is_some())?;
        Masking::new(self.masking.clone(), &Counts::default())?;
        let address = |given: Option<SocketAddr>, port: u16| given.unwrap_or(SocketAddr::from(([127, 0, 0, 1], port)));
        let config = ServerConfig {
            id: self.id.unwrap_or(1),
            data_dir: self.data_dir.unwrap_or_else(|| "hindcast-data".into()),
            listen: address(self.listen, 7400),
            peer_listen: address(self.peer_listen, 7401),
            join: self.join,
            join_cluster: self.join_cluster,
            shards: self.shards.unwrap_or(4),
            replicas: self.replicas,
            rules: self.rules,
            routes: self.routes,
            retention,
            syslog,
            scrape: self.scrape_config,
            limits: self.limits,
            snmp: self.snmp_config,
            snmp_traps: self.snmp_trap_listen,
            kafka: self.kafka,
            file: self.config,
            masking: self.masking,
            disk_reserve: self
                .disk_reserve
                .as_deref()
                .map(|given| {
                    parse_bytes(given).ok_or_else(|| ConfigError::DiskReserve {
                        given: given.to_owned(),
                    })
                })
                .transpose()?,
            memory_limit: self.memory_limit.as_deref().map(parse_memory_limit).transpose()?,
            cold,
            tls,
            peer_tls,
            test_only: TestOnly {
                power_cut: self.test_only_power_cut,
                small_files: self.test_only_small_files,
            },
        };
        if config.id == 0 {
            return Err(ConfigError::NodeZero);
        }
        if !config.snmp_traps.is_empty() && config.snmp.is_none() {
            return Err(ConfigError::TrapsOfNobody);
        }
        if config.snmp_traps.len() > LISTENERS_MAX {
            return Err(ConfigError::TrapListeners);
        }
        if !config.join.is_empty() && !config.join_cluster.is_empty() {
            return Err(ConfigError::JoinTwice);
        }
        let is_guarded = config.tls.as_ref().is_some_and(|t| t.ca.is_some());
        if !config.listen.ip().is_loopback() && !is_guarded {
            return Err(ConfigError::OffLoopback { address: config.listen });
        }
        if config.has_peers() && !config.peer_listen.ip().is_loopback() && config.peer_tls.is_none() {
            let address = config.peer_listen;
            return Err(ConfigError::PeersOffLoopback { address });
        }
        Ok(config)
    }

    /// Files of the client port and of the peer port. Peers take those of clients unless they have their own.
    fn tls(&self) -> Result<(Option<TlsFiles>, Option<TlsFiles>), ConfigError> {
        let clients = files(
            [&self.tls_ca, &self.tls_cert, &self.tls_key],
            ["--tls-ca", "--tls-cert", "--tls-key"],
        )?;
        let own = files(
            [&self.peer_tls_ca, &self.peer_tls_cert, &self.peer_tls_key],
            ["--peer-tls-ca", "--peer-tls-cert", "--peer-tls-key"],
        )?;
        if self.join.is_empty() && self.join_cluster.is_empty() {
            return Ok((clients, None));
        }
        let peers = match own {
            Some(own) => Some(TlsFiles {
                ca: own.ca.or_else(|| self.tls_ca.clone()),
                ..own
            }),
            None => clients.clone(),
        };
        match peers {
            Some(TlsFiles { ca: None, .. }) => Err(ConfigError::NoPeerAuthority),
            peers => Ok((clients, peers)),
        }
    }

    fn syslog(&self, has_tls: bool) -> Result<Vec<Listen>, ConfigError> {
        let bad = |why: String| ConfigError::Syslog(why);
        if self.syslog_listen.len() > LISTENERS_MAX {
            return Err(bad(format!("--syslog-listen: at most {LISTENERS_MAX} listeners")));
        }
        let local = jiff::tz::TimeZone::system();
        let read = |given: &String| {
            let listen = Listen::parse(given, &local).map_err(|e| bad(e.to_string()))?;
            match listen.transport == Transport::Tls && !has_tls {
                true => Err(bad(format!(
                    "{listen} speaks TLS: name --tls-cert and --tls-key (`hindcast cert` makes them)"
                ))),
                false => Ok(listen),
            }
        };
        self.syslog_listen.iter().map(read).collect()
    }

    fn cold(&self) -> Result<Option<ColdConfig>, ConfigError> {
        let bad = |why: String| ConfigError::Cold(why);
        let after = |given: &str| match given {
            "none" => Ok(None),
            text => SpanNs::parse(text)
                .filter(|k| *k > SpanNs::ZERO)
                .map(Some)
                .ok_or_else(|| bad(format!("{text:?} is no age: write 30d, 12h, or none for never"))),
        };
        let mut rules = vec![ColdRule {
            tenant: None,
            domain: None,
            after: self.cold_after.as_deref().map(after).transpose()?.flatten(),
        }];
        for p in &self.policy {
            let Some(given) = &p.cold_after else { continue };
            if p.selector.is_some() {
                let why = "a file holds many series and goes whole; take the selector out, or cold_after";
                return Err(bad(format!("policy {:?}: {why}", p.name)));
            }
            let RetentionRule { tenant, domain, .. } = parse_policy(p)?;
            rules.push(ColdRule {
                tenant,
                domain,
                after: after(given)?,
            });
        }
        let moves = rules.iter().any(|r| r.after.is_some());
        let Some(url) = self.cold_store.clone() else {
            return match moves {
                true => Err(bad(
                    "--cold-after says when files go, and --cold-store not where to".to_owned()
                )),
                false => Ok(None),
            };
        };
        let cache = self.cold_cache_bytes.as_deref().map(|given| {
            let bytes = parse_bytes(given).and_then(|b| usize::try_from(b).ok());
            bytes.ok_or_else(|| {
                bad(format!(
                    "--cold-cache-bytes {given:?}: write bytes, or a number with KiB, MiB or GiB"
                ))
            })
        });
        Ok(Some(ColdConfig {
            url,
            cache_bytes_max: cache.transpose()?.unwrap_or(CACHE_BYTES_DEFAULT),
            rules,
        }))
    }
}

/// One set of files: certificate and key, with or without an authority; or nothing.
fn files(given: [&Option<PathBuf>; 3], names: [&'static str; 3]) -> Result<Option<TlsFiles>, ConfigError> {
    let [ca, cert, key] = names;
    match given {
        [ca, Some(cert), Some(key)] => Ok(Some(TlsFiles {
            ca: ca.clone(),
            cert: cert.clone(),
            key: key.clone(),
        })),
        [None, None, None] => Ok(None),
        [Some(_), None, None] => Err(ConfigError::OnlyAuthority { ca, cert, key }),
        _ => Err(ConfigError::HalfOfTls { cert, key }),
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "the configuration is read once, before there is a disk to inject"
)]
fn read_text(path: &Path) -> Result<String, String> {
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())
}

/// `30d`, `none`, `DBMS=90d`, `team=1y`, `team/SMS=7d`, separated by commas.
pub fn parse_retention(given: &str) -> Result<Vec<RetentionRule>, ConfigError> {
    let bad = || ConfigError::Retention {
        given: given.to_owned(),
    };
    let mut rules = vec![];
    for item in given.split(',').map(str::trim) {
        let (scope, keep) = item.rsplit_once('=').map_or((None, item), |(s, k)| (Some(s), k));
        let keep = match keep {
            "none" => None,
            text => Some(SpanNs::parse(text).filter(|k| *k > SpanNs::ZERO).ok_or_else(bad)?),
        };
        let (tenant, domain) = match scope {
            None => (None, None),
            Some(scope) => match (Domain::parse(scope), scope.rsplit_once('/')) {
                (Some(domain), _) => (None, Some(domain)),
                (None, Some((tenant, domain))) => (Some(tenant), Some(Domain::parse(domain).ok_or_else(bad)?)),
                (None, None) => (Some(scope), None),
            },
        };
        let tenant = tenant.map(TenantId::new).transpose().map_err(|_| bad())?;
        rules.push(RetentionRule {
            name: scope.unwrap_or("default").to_owned(),
            tenant,
            domain,
            selector: vec![],
            keeps: Keeps::all(keep),
        });
    }
    Ok(rules)
}

/// The default, then the file's policies, then what the short form says: of equals the later one decides.
fn all_rules(short: Option<&str>, policies: &[PolicyArgs]) -> Result<Vec<RetentionRule>, ConfigError> {
    let mut rules = parse_retention(KEEP_DEFAULT)?;
    for p in policies {
        rules.push(parse_policy(p)?);
    }
    if let Some(short) = short {
        rules.extend(parse_retention(short)?);
    }
    // One that stands for everything suffices: the last one.
    let stands_for_all = |r: &RetentionRule| r.tenant.is_none() && r.domain.is_none() && r.selector.is_empty();
    let last = rules.iter().rposition(stands_for_all);
    let placed = rules.into_iter().enumerate();
    Ok(placed
        .filter(|(i, r)| Some(*i) == last || !stands_for_all(r))
        .map(|(_, r)| r)
        .collect())
}

/// Nothing would ever go to a store if all of it was let go before.
fn check_cold_is_reached(cold: &[ColdRule], retention: &[RetentionRule]) -> Result<(), ConfigError> {
    let longest = |k: &Keeps| Some(k.raw?.max(k.five_minutes?).max(k.hour?).max(k.logs?));
    let keeps: Option<Vec<SpanNs>> = retention.iter().map(|r| longest(&r.keeps)).collect();
    let kept_for = keeps.and_then(|k| k.into_iter().max());
    let first = cold.iter().filter_map(|r| r.after).min();
    match (kept_for, first) {
        (Some(kept), Some(first)) if kept <= first => Err(ConfigError::Cold(format!(
            "nothing is kept longer than {kept}, so that nothing would go there after {first}; raise --retention or lower --cold-after"
        ))),
        _ => Ok(()),
    }
}

fn parse_policy(p: &PolicyArgs) -> Result<RetentionRule, ConfigError> {
    let bad = |why: String| ConfigError::Policy {
        name: p.name.clone(),
        why,
    };
    let keep = |text: &str| match text {
        "none" => Ok(None),
        text => SpanNs::parse(text)
            .filter(|k| *k > SpanNs::ZERO)
            .map(Some)
            .ok_or_else(|| bad(format!("{text:?} is no span of time: write 30d, 12h, or none for ever"))),
    };
    let or = |text: &Option<String>, other: Option<SpanNs>| text.as_deref().map_or(Ok(other), keep);
    let raw = keep(&p.keep)?;
    let five_minutes = or(&p.keep_5m, raw)?;
    let keeps = Keeps {
        raw,
        five_minutes,
        hour: or(&p.keep_1h, five_minutes)?,
        logs: or(&p.keep_logs, raw)?,
    };
    let is_shorter = |coarse: Option<SpanNs>, fine: Option<SpanNs>| coarse.is_some_and(|c| fine.is_none_or(|f| c < f));
    if is_shorter(keeps.five_minutes, keeps.raw) || is_shorter(keeps.hour, keeps.five_minutes) {
        return Err(bad(
            "windows are kept at least as long as what they are made of: keep <= keep_5m <= keep_1h".to_owned(),
        ));
    }
    let domain = |d: &String| Domain::parse(d).ok_or_else(|| bad(format!("{d:?} is none of SMS, DBMS, APM, NMS")));
    let selector = |s: &String| hindcast_promql::parse_selector(s).map_err(|e| bad(e.to_string()));
    Ok(RetentionRule {
        name: p.name.clone(),
        tenant: p
            .tenant
            .as_deref()
            .map(TenantId::new)
            .transpose()
            .map_err(|e| bad(e.to_string()))?,
        domain: p.domain.as_ref().map(domain).transpose()?,
        selector: p.selector.as_ref().map(selector).transpose()?.unwrap_or_default(),
        keeps,
    })
}

fn parse_memory_limit(given: &str) -> Result<u64, ConfigError> {
    let parsed = match given {
        "none" => Some(u64::MAX),
        text => parse_bytes(text).filter(|b| *b >= LIMIT_BYTES_MIN),
    };
    parsed.ok_or_else(|| ConfigError::MemoryLimit {
        given: given.to_owned(),
    })
}

/// A number of bytes, with or without a unit.
fn parse_bytes(given: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 7] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("", 1),
    ];
    let scaled = |(unit, size): (&str, u64)| {
        let number: u64 = given.trim().strip_suffix(unit)?.trim_end().parse().ok()?;
        number.checked_mul(size)
    };
    UNITS.into_iter().find_map(scaled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_model::retention::keeps_for;

    #[test]
    fn the_embedded_default_needs_nothing() {
        let c = ServerArgs::default().resolve().unwrap();
        assert_eq!(
            (c.id, c.listen.to_string().as_str(), c.shards),
            (1, "127.0.0.1:7400", 4)
        );
        let keeps = keeps_for(&c.retention, &TenantId::default(), None);
        assert_eq!((keeps.raw, keeps.logs), (SpanNs::parse("30d"), SpanNs::parse("30d")));
    }

    #[test]
    fn a_damaged_file_is_read_or_refused() {
        use hindcast_env::fuzz::{Target, check_targets};
        let target = Target {
            name: "server-config",
            run: |bytes| {
                if let Ok(args) = toml::from_str::<ServerArgs>(&String::from_utf8_lossy(bytes)) {
                    drop(args.resolve());
                }
            },
            seeds: || {
                let text = "listen = \"127.0.0.1:1\"\nretention = \"30d,DBMS=90d\"\nshards = 4\nmemory_limit = \"2GiB\"\n[masking]\ncharacter = \"#\"\n\
                            [[masking.type]]\nname = \"e\"\npattern = 'EMP-\\d{6}'\n[[policy]]\nname = \"p\"\nkeep = \"7d\"\nselector = \"{job=\\\"x\\\"}\"\n";
                vec![text.as_bytes().to_vec()]
            },
        };
        for seed in (target.seeds)() {
            let args: ServerArgs = toml::from_str(&String::from_utf8(seed).unwrap()).unwrap();
            args.resolve().unwrap();
        }
        check_targets(&[target], &hindcast_env::io::SystemClock::new(), SpanNs::from_ms(2000));
    }

    #[test]
    fn masking_stands_in_the_file_and_is_checked() {
        let of = |text: &str| toml::from_str::<ServerArgs>(text).map_err(|e| e.to_string());
        assert!(
            ServerArgs::default().resolve().unwrap().masking.on,
            "on when nothing is said"
        );
        let args = of(r##"
            [masking]
            character = "#"
            [[masking.type]]
            name = "email"
            on = false
            [[masking.type]]
            name = "employee"
            pattern = 'EMP-\d{6}'
            keep_first = 3
            [[masking.exempt]]
            tenant = "team-a"
            types = ["phone"]
            "##);
        let masking = args.unwrap().resolve().unwrap().masking;
        assert_eq!(
            (masking.character, masking.types.len(), masking.exempt.len()),
            ('#', 2, 1)
        );
        // A file that says it in one word: the table is shown.
        for text in [
            "masking = true",
            "masking = false",
            "masking = \"on\"",
            "masking = 1",
            "[[masking]]\non = true",
        ] {
            let why = of(text).unwrap_err();
            assert!(
                why.contains("masking is a table; write\n\n[masking]\non = "),
                "{text}: {why}"
            );
            assert!(why.contains("line 1"), "{why}");
        }
        assert!(of("masking = false").unwrap_err().contains("on = false"));
        let unknown = of("[masking]\nof = false").unwrap_err();
        assert!(unknown.contains("unknown field `of`"), "{unknown}");
        let bad = of("[[masking.type]]\nname = \"x\"").unwrap().resolve().unwrap_err();
        assert_eq!(
            bad.to_string(),
            "masking type \"x\" is not shipped and needs a pattern; shipped are rrn, phone, email, card, address, passport"
        );
    }

    fn with_tls(ca: bool) -> ServerArgs {
        ServerArgs {
            tls_ca: ca.then(|| "ca.pem".into()),
            tls_cert: Some("node-1.pem".into()),
            tls_key: Some("node-1-key.pem".into()),
            ..ServerArgs::default()
        }
    }

    #[test]
    fn off_loopback_clients_and_peers_need_certificates() {
        let open = |args: ServerArgs| ServerArgs {
            listen: "0.0.0.0:7400".parse().ok(),
            peer_listen: "0.0.0.0:7401".parse().ok(),
            join: vec!["node1:7401".into(), "node2:7401".into()],
            ..args
        };
        let c = open(with_tls(true)).resolve().unwrap();
        assert_eq!(c.tls, c.peer_tls);
        assert_eq!(c.tls.unwrap().ca, Some("ca.pem".into()));
        // Who may come in is said by the authority: TLS alone keeps nobody out.
        let anybody = ServerArgs {
            peer_tls_ca: Some("peers.pem".into()),
            peer_tls_cert: Some("peer-1.pem".into()),
            peer_tls_key: Some("peer-1-key.pem".into()),
            ..open(with_tls(false))
        };
        assert!(matches!(
            anybody.clone().resolve(),
            Err(ConfigError::OffLoopback { .. })
        ));
        let behind = ServerArgs {
            listen: None,
            ..anybody.clone()
        };
        assert_eq!(behind.resolve().unwrap().peer_tls.unwrap().ca, Some("peers.pem".into()));
        let plain_peers = ServerArgs {
            listen: None,
            ..open(ServerArgs::default())
        };
        assert!(matches!(
            plain_peers.resolve(),
            Err(ConfigError::PeersOffLoopback { .. })
        ));
    }

    #[test]
    fn half_of_the_files_is_named() {
        let said = |args: ServerArgs| args.resolve().unwrap_err().to_string();
        let half = ServerArgs {
            tls_key: None,
            ..with_tls(true)
        };
        assert!(said(half).contains("--tls-cert and --tls-key belong together"));
        let only = ServerArgs {
            tls_ca: Some("ca.pem".into()),
            ..ServerArgs::default()
        };
        assert!(said(only).contains("--tls-ca says whose"));
        let peers = ServerArgs {
            join: vec!["127.0.0.1:1".into()],
            ..with_tls(false)
        };
        assert_eq!(peers.resolve(), Err(ConfigError::NoPeerAuthority));
        assert!(with_tls(false).resolve().unwrap().tls.is_some(), "alone on loopback");
    }

    #[test]
    fn an_address_off_loopback_is_refused_without_tls() {
        let args = ServerArgs {
            listen: "0.0.0.0:7400".parse().ok(),
            ..ServerArgs::default()
        };
        assert!(matches!(args.resolve(), Err(ConfigError::OffLoopback { .. })));
        let unused = ServerArgs {
            peer_listen: "0.0.0.0:7401".parse().ok(),
            ..ServerArgs::default()
        };
        assert!(unused.clone().resolve().is_ok(), "nothing listens there without --join");
        let joined = ServerArgs {
            join: vec!["127.0.0.1:1".into()],
            ..unused
        };
        assert!(joined.resolve().is_err());
    }

    #[test]
    fn retention_reads_by_domain_and_tenant() {
        let rules = parse_retention("30d,DBMS=90d,team-a=1y,team-a/SMS=none").unwrap();
        let a = TenantId::new("team-a").unwrap();
        let keep = |t: &TenantId, d| keeps_for(&rules, t, d).raw.map(|k| k.to_string());
        assert_eq!(keep(&TenantId::default(), None).as_deref(), Some("30d"));
        assert_eq!(keep(&TenantId::default(), Some(Domain::Dbms)).as_deref(), Some("90d"));
        assert_eq!(keep(&a, None).as_deref(), Some("365d"));
        assert_eq!(keep(&a, Some(Domain::Sms)), None);
        for bad in ["", "30", "x=1", "a/b=1d", "0"] {
            assert!(parse_retention(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn policies_of_the_file_name_labels_and_tiers() {
        let file = r#"
            retention = "90d"
            [[policy]]
            name = "debug"
            selector = '{job="debug", env!="prod"}'
            domain = "SMS"
            keep = "1d"
            keep_5m = "7d"
            keep_logs = "12h"
            [[policy]]
            name = "audit"
            tenant = "team-a"
            keep = "1y"
            keep_1h = "none"
        "#;
        let args: ServerArgs = toml::from_str(file).unwrap();
        let rules = args.resolve().unwrap().retention;
        let shown = rules.iter().map(|r| {
            let keep = |k: Option<SpanNs>| k.map_or("for ever".to_owned(), |k| k.to_string());
            let k = r.keeps;
            format!(
                "{} {:?} {:?} {:?}: {}, {}, {}, logs {}",
                r.name,
                r.tenant.as_ref().map(TenantId::as_str),
                r.domain,
                r.selector,
                keep(k.raw),
                keep(k.five_minutes),
                keep(k.hour),
                keep(k.logs)
            )
        });
        expect_test::expect![[r#"
            debug None Some(Sms) [job="debug", env!="prod"]: 1d, 7d, 7d, logs 12h
            audit Some("team-a") None []: 365d, 365d, for ever, logs 365d
            default None None []: 90d, 90d, 90d, logs 90d"#]]
        .assert_eq(&shown.collect::<Vec<_>>().join("\n"));
        for bad in [
            "name = 'x'\nkeep = '7d'\nkeep_5m = '1d'",
            "name = 'x'\nkeep = 'none'\nkeep_1h = '1y'",
            "name = 'x'\nkeep = '7d'\nselector = '{job='",
            "name = 'x'\nkeep = '7d'\ndomain = 'XYZ'",
            "name = 'x'\nkeep = 'soon'",
        ] {
            let args: ServerArgs = toml::from_str(&format!("[[policy]]\n{bad}")).unwrap();
            let refused = args.resolve().unwrap_err();
            assert!(matches!(refused, ConfigError::Policy { .. }), "{bad}");
        }
    }

    #[test]
    fn a_reserve_has_a_unit_or_is_in_bytes() {
        let read = ["2GiB", "500 MB", "4096", " 1KiB"].map(|t| parse_bytes(t).unwrap());
        assert_eq!(read, [2 << 30, 500_000_000, 4096, 1024]);
        for bad in ["", "GiB", "-1", "1.5GiB", "99999999999GiB", "10%"] {
            assert!(parse_bytes(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_memory_limit_is_in_bytes_or_none() {
        let read = ["2GiB", "67108864", "none"].map(|t| parse_memory_limit(t).unwrap());
        assert_eq!(read, [2 << 30, 64 << 20, u64::MAX]);
        for bad in ["", "1MiB", "much", "0"] {
            assert!(parse_memory_limit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_cold_store_has_an_age_and_policies_may_have_their_own() {
        let read = |text: &str| toml::from_str::<ServerArgs>(text).unwrap().resolve().map(|c| c.cold);
        assert_eq!(read(""), Ok(None));
        let cold = read(
            r#"
            retention = "90d"
            cold_store = "s3://bucket/prefix"
            cold_after = "30d"
            cold_cache_bytes = "64MiB"
            [[policy]]
            name = "databases"
            domain = "DBMS"
            keep = "1y"
            cold_after = "7d"
            [[policy]]
            name = "audit"
            tenant = "team-a"
            keep = "none"
            cold_after = "none"
            "#,
        );
        let cold = cold.unwrap().unwrap();
        let shown = cold.rules.iter().map(|r| {
            let after = r.after.map_or("never".to_owned(), |a| a.to_string());
            format!("{:?} {:?}: {after}", r.tenant.as_ref().map(TenantId::as_str), r.domain)
        });
        expect_test::expect![[r#"
            None None: 30d
            None Some(Dbms): 7d
            Some("team-a") None: never"#]]
        .assert_eq(&shown.collect::<Vec<_>>().join("\n"));
        assert_eq!((&cold.url[..], cold.cache_bytes_max), ("s3://bucket/prefix", 64 << 20));
        let only_read = read("cold_store = 'file:///cold'").unwrap().unwrap();
        assert!(only_read.rules.iter().all(|r| r.after.is_none()));
        for (bad, says) in [
            ("cold_after = '30d'", "--cold-store"),
            ("cold_store = 'file:///cold'\ncold_after = 'soon'", "soon"),
            ("cold_store = 'file:///cold'\ncold_after = '30d'", "raise --retention"),
            ("cold_store = 'file:///cold'\ncold_cache_bytes = 'much'", "much"),
            (
                "[[policy]]\nname = 'x'\nkeep = '7d'\nselector = '{a=\"b\"}'\ncold_after = '1d'",
                "selector",
            ),
        ] {
            let said = read(bad).unwrap_err().to_string();
            assert!(said.contains(says), "{bad}: {said}");
        }
    }

    #[test]
    fn traps_are_taken_only_of_those_whom_a_list_names() {
        let read = |text: &str| toml::from_str::<ServerArgs>(text).unwrap().resolve();
        let both = read("snmp_config = 'devices.yml'\nsnmp_trap_listen = ['0.0.0.0:162', '[::]:162']").unwrap();
        assert_eq!((both.snmp_traps.len(), both.snmp), (2, Some("devices.yml".into())));
        let why = read("snmp_trap_listen = ['0.0.0.0:162']").unwrap_err().to_string();
        assert!(why.contains("name the file"), "{why}");
        let many = vec!["'0.0.0.0:162'"; LISTENERS_MAX + 1].join(",");
        let why = read(&format!("snmp_config = 'd'\nsnmp_trap_listen = [{many}]"))
            .unwrap_err()
            .to_string();
        assert!(why.contains("at most 64"), "{why}");
    }

    #[test]
    fn syslog_is_taken_where_it_is_said_and_with_tls_only_with_certificates() {
        let read = |text: &str| toml::from_str::<ServerArgs>(text).unwrap().resolve().map(|c| c.syslog);
        assert_eq!(read(""), Ok(vec![]));
        let two = read("syslog_listen = ['udp://0.0.0.0:5514?zone=+09:00', 'tcp://[::1]:5514?tenant=team-a']").unwrap();
        let shown: Vec<_> = two.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["udp://0.0.0.0:5514", "tcp://[::1]:5514"]);
        let certificates = "tls_cert = 'node-1.pem'\ntls_key = 'node-1-key.pem'\n";
        assert!(read(&format!("{certificates}syslog_listen = ['tls://127.0.0.1:6514']")).is_ok());
        let many = vec!["'udp://127.0.0.1:1'"; LISTENERS_MAX + 1].join(",");
        for (bad, says) in [
            ("syslog_listen = ['tls://127.0.0.1:6514']", "--tls-cert"),
            ("syslog_listen = ['udp://127.0.0.1']", "with a port"),
            ("syslog_listen = ['udp://127.0.0.1:1?zone=UTC&zone=UTC']", "given twice"),
            (&format!("syslog_listen = [{many}]"), "at most 64"),
        ] {
            let said = read(bad).unwrap_err().to_string();
            assert!(said.contains(says), "{bad}: {said}");
        }
    }

    /// "invalid type: string, expected a sequence" was all that was said.
    #[test]
    fn one_listener_that_is_not_in_a_list_is_answered_with_an_example() {
        for bad in ["'udp://0.0.0.0:5514'", "5514", "[5514]", "{ udp = '0.0.0.0:5514' }"] {
            let read: Result<ServerArgs, _> = toml::from_str(&format!("syslog_listen = {bad}"));
            let said = read.unwrap_err().to_string();
            assert!(said.contains("write syslog_listen = [\"udp://0.0.0.0:5514\""), "{said}");
        }
    }

    #[test]
    fn a_key_that_is_none_is_named() {
        let read: Result<ServerArgs, _> = toml::from_str("shrads = 4");
        assert!(read.unwrap_err().to_string().contains("shrads"));
    }
}

//! `hindcast server`: one node, all its parts wired together.

mod admit;
pub mod cardinality;
pub mod catalog;
pub mod cluster;
pub mod config;
mod history;
pub mod kafka;
mod keeper;
pub mod limits;
mod maintain;
pub mod masking;
mod metrics;
mod paced;
mod rules;
pub mod scrape;
mod serve;
pub mod shards;

use crate::cli::{Done, Failure};
use catalog::Catalog;
use config::ServerArgs;
pub use config::ServerConfig;
use hindcast_alerting::gateway::GatewayPart;
use hindcast_env::io::{SystemClock, os_rng};
use hindcast_env::{Clock, ColdTier, Rng};
use hindcast_ingest::syslog::listen::{Sources, Transport};
use hindcast_itsm::DeskPart;
use hindcast_model::NodeId;
use hindcast_node::io::cold::ObjectCold;
use hindcast_node::io::node::{Node, NodeCold, NodeConfig};
use hindcast_node::io::servers::kafka::{self as consuming, Kafka};
use hindcast_node::io::servers::scrape::{self as scraping, Scraper};
use hindcast_node::io::servers::snmp::{self, BoundTraps, Traps};
use hindcast_node::io::servers::syslog::{Bound, Bounds, Syslog};
use hindcast_node::io::servers::{
    IngestState, ingest_router, ingest_service, otlp_logs_service, otlp_metrics_service, otlp_traces_service,
};
use hindcast_node::io::tls::{Port, Tls, TlsFiles};
use hindcast_query::shards::Shards;
use hindcast_query::{Engine, Limits, replay::Player};
use hindcast_raft::{Meta, Part};
use shards::ClusterShards;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// The command: runs until it is told to stop (Ctrl-C, SIGTERM), or until the node cannot go on.
pub async fn run(args: ServerArgs) -> Done {
    let usage = |e: config::ConfigError| Failure::usage(e.to_string());
    let config = args.with_file().map_err(usage)?.resolve().map_err(usage)?;
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        wait_for_signal().await;
        let _ = stop.send(true);
    });
    start(config, stopped).await
}

/// Returns at Ctrl-C or SIGTERM.
pub async fn wait_for_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut term) => tokio::select! {
            _ = term.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        },
        Err(_) => {
            let _ = tokio::signal::ctrl_c().await;
        }
    }
}

async fn bind(what: &str, address: std::net::SocketAddr) -> Result<TcpListener, Failure> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|e| {
        Failure::usage(format!(
            "the {what} address {address} cannot be used: {e}; choose another"
        ))
    })
}

/// Ports below 1024 need rights: that is found out before anything is opened.
async fn bind_syslog(config: &ServerConfig) -> Result<Vec<Bound>, Failure> {
    let mut bound = vec![];
    for listen in &config.syslog {
        let one = Bound::bind(listen.clone()).await;
        bound.push(one.map_err(|e| {
            Failure::usage(format!(
                "the syslog address {listen} cannot be used: {e}; choose another"
            ))
        })?);
    }
    Ok(bound)
}

async fn bind_traps(config: &ServerConfig) -> Result<Vec<BoundTraps>, Failure> {
    let mut bound = vec![];
    for address in &config.snmp_traps {
        let one = BoundTraps::bind(*address).await;
        bound.push(one.map_err(|e| {
            Failure::usage(format!(
                "the address for traps {address} cannot be used: {e}; choose another"
            ))
        })?);
    }
    Ok(bound)
}

/// Batches of syslog and of scrapes are numbered anew with each start, so each start has a name of its own.
fn writer_of(what: &str, node: NodeId) -> Result<String, Failure> {
    let mut rng = os_rng().map_err(|e| Failure::no(format!("the machine gives no random numbers: {e}")))?;
    Ok(format!("hindcast/{what}/{node}/{:016x}", rng.next_u64()))
}

/// What is scraped and what is polled. `None`: neither is named.
fn load_targets(config: &ServerConfig) -> Result<Option<scraping::Loaded>, String> {
    let scraped = load_scrape(config).map_err(|e| e.to_string())?;
    let Some(list) = &config.snmp else { return Ok(scraped) };
    let devices = snmp::load(list).map_err(|e| e.to_string())?;
    Ok(Some(scraped.unwrap_or_default().with_devices(devices)))
}

fn load_kafka(config: &ServerConfig) -> Result<Option<consuming::Loaded>, String> {
    let loaded = config.kafka.as_deref().map(consuming::load).transpose();
    loaded.map_err(|e| e.to_string())
}

/// Who may send traps from now on, and how devices are called.
fn put_senders(traps: Option<&Traps>, loaded: Option<&scraping::Loaded>) {
    let (Some(traps), Some(loaded)) = (traps, loaded) else {
        return;
    };
    let senders = loaded.devices().senders().clone();
    if senders.communities.is_empty() && senders.users.is_empty() {
        tracing::warn!("traps of everybody are refused: nobody is named in traps.senders of --snmp-config");
    }
    traps.set_senders(senders);
}

fn load_scrape(config: &ServerConfig) -> Result<Option<scraping::Loaded>, scraping::LoadError> {
    let loaded = config.scrape.as_deref().map(scraping::load).transpose()?;
    for warning in loaded.iter().flat_map(|l| &l.config.warnings) {
        tracing::warn!(
            "{}: {warning}",
            config.scrape.as_deref().unwrap_or("".as_ref()).display()
        );
    }
    Ok(loaded)
}

fn announce_syslog(bound: &[Bound], config: &ServerConfig) {
    let has_authority = config.tls.as_ref().is_some_and(|t| t.ca.is_some());
    for one in bound {
        let listen = one.listen();
        println!("syslog on {}://{}", listen.transport.as_str(), one.address());
        let is_open = listen.sources == Sources::Anybody && !one.address().ip().is_loopback();
        let is_guarded = listen.transport == Transport::Tls && has_authority;
        if is_open && !is_guarded {
            tracing::warn!(%listen, "anybody who reaches this address may write lines: name who may with ?from=10.0.0.0/8");
        }
    }
}

/// Starts the node and serves until `stopped` turns true.
pub async fn start(config: ServerConfig, mut stopped: watch::Receiver<bool>) -> Done {
    // A broken file is found before anything is opened.
    let files = rules::read(&config).map_err(|e| Failure::usage(e.to_string()))?;
    let scrape = load_targets(&config).map_err(Failure::usage)?;
    let limits = limits::load(config.limits.as_deref()).map_err(Failure::usage)?;
    let topics = load_kafka(&config).map_err(Failure::usage)?;
    let open = |files: &Option<TlsFiles>, port| {
        let opened = files.clone().map(|f| Tls::open(f, port, Arc::new(SystemClock::new())));
        opened.transpose().map_err(|e| Failure::usage(e.to_string()))
    };
    let tls = open(&config.tls, Port::Clients)?;
    let peer_tls = open(&config.peer_tls, Port::Peers)?;
    let listener = bind("client", config.listen).await?;
    let address = listener.local_addr().map_err(|e| Failure::no(e.to_string()))?;
    let peer_listener = match config.has_peers() {
        true => Some(bind("peer", config.peer_listen).await?),
        false => None,
    };

    let syslog_bound = bind_syslog(&config).await?;
    let traps_bound = bind_traps(&config).await?;

    let parts: Vec<Box<dyn Part>> = vec![Box::new(GatewayPart), Box::new(DeskPart)];
    let node_config = NodeConfig {
        id: NodeId(config.id),
        data_dir: config.data_dir.clone(),
        join: config.join.clone(),
        join_cluster: config.join_cluster.clone(),
        shards: config.shards,
        replicas: config.replicas,
        retention: config.retention.clone(),
        test_only: config.test_only,
        disk_reserve: config.disk_reserve,
        cold: open_cold(&config)?,
        peer_tls,
        memory_limit: config.memory_limit,
        client_cluster: tls.as_ref().and_then(Tls::own_cluster),
    };
    let starting = Node::start(node_config, peer_listener, parts);
    let node = tokio::select! {
        node = starting => node.map_err(|e| Failure::usage(e.to_string()))?,
        _ = stopped.wait_for(|s| *s) => return Ok(ExitCode::SUCCESS),
    };

    if let Some(tls) = &tls {
        let own = &node.identity.cluster;
        if let Some(named) = tls.own_cluster().filter(|named| named != own) {
            return Err(Failure::usage(format!(
                "the certificate of the client port is of cluster {named}, and this is cluster {own}: its clients would be refused; make an authority for it with `hindcast cert ca --cluster {own}`"
            )));
        }
        tls.belongs_to(own);
        tokio::spawn(tls.clone().run());
    }

    let meta: Arc<dyn Meta> = Arc::new(node.meta.clone());
    let clients = ClientThreads::start()?;
    let shards: Arc<dyn Shards> = Arc::new(ClusterShards::new(node.clone(), clients.handle().clone()));
    let engine = Arc::new(Engine::new(shards.clone(), Limits::default()));
    let floor_node = node.clone();
    let ingest = IngestState::new(
        Arc::new(node.writer.clone()),
        node.clock.clone(),
        Arc::new(move |tenant| floor_node.floor(tenant)),
    )
    .with_admission(node.admission.clone())
    .counting_as(&node.id().to_string());
    tokio::spawn(ingest.clone().write_requests_regularly());
    ingest.limit(limits);
    let counts = ingest.tenants.clone();
    tokio::spawn(counts.count_series_regularly(ingest.sink.clone(), node.clock.clone()));
    if config.has_peers() {
        let hears = ingest
            .tenants
            .clone()
            .hear_of_nodes(node.peers.clone(), node.clock.clone());
        tokio::spawn(hears);
    }
    let masks = ingest.masking.clone();
    masks
        .replace(config.masking.clone())
        .map_err(|e| Failure::usage(e.to_string()))?;
    let syslog = Syslog {
        ingest: ingest.clone(),
        stats: Arc::default(),
        tls: tls.clone(),
        writer: writer_of("syslog", node.id())?,
        bounds: Bounds::default(),
    };
    let traps = match traps_bound.is_empty() {
        true => None,
        false => {
            let engine = format!("{}/{}", node.identity.cluster, node.id());
            let traps = Traps::new(ingest.clone(), &engine, writer_of("snmp", node.id())?);
            Some(traps.map_err(|e| Failure::no(format!("the machine gives no random numbers: {e}")))?)
        }
    };
    put_senders(traps.as_ref(), scrape.as_ref());
    let scraper = match scrape {
        None => None,
        Some(loaded) => Some(Scraper::new(
            loaded,
            ingest.clone(),
            config.has_peers().then(|| node.peers.clone()),
            node.id(),
            // Corrected: all nodes agree on when a target is due, and samples bear the time that people call now.
            node.meta.wall(),
            writer_of("scrape", node.id())?,
        )),
    };
    let peers = config.has_peers().then(|| node.peers.clone());
    let kafka = topics.map(|loaded| Kafka::new(loaded, ingest.clone(), peers, node.id()));
    let player = Arc::new(Player::new(engine.clone(), shards.clone()));
    let replay_catalog = Arc::new(Catalog {
        cuts: node.cuts.clone(),
    });
    let requests = Arc::<admit::Requests>::default();
    let sends = spawn_workers(&node, &meta, &engine, &shards, files, &stopped);
    let view = cluster::View::new(
        node.clone(),
        address.to_string(),
        &ingest,
        syslog.stats.clone(),
        tls.clone(),
        requests.clone(),
        sends,
    )
    .with_scraper(scraper.clone())
    .with_traps(traps.clone())
    .with_kafka(kafka.clone());

    let maintenance = view.maintenance.clone();
    tokio::spawn(maintenance.clone().look_at_suspects(node.clone()));
    tokio::spawn(maintenance.scrub_in_background(node.clone(), config.test_only.small_files));

    announce(&config, node.id(), address);
    announce_syslog(&syslog_bound, &config);
    for one in &traps_bound {
        println!("SNMP traps on udp://{}", one.address());
    }
    let (health, health_service) = tonic_health::server::health_reporter();
    tokio::spawn(report_health(node.clone(), health));
    let describe = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(hindcast_proto::DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let unusable = |e: tonic_reflection::server::Error| Failure::no(format!("gRPC reflection cannot be set up: {e}"));
    let reflection = describe().build_v1().map_err(unusable)?;
    // Older clients (Python's helper among them) ask the alpha version.
    let reflection_alpha = describe().build_v1alpha().map_err(unusable)?;
    let grpc = tonic::service::Routes::new(ingest_service(ingest.clone()))
        .add_service(otlp_metrics_service(ingest.clone()))
        .add_service(otlp_logs_service(ingest.clone()))
        .add_service(otlp_traces_service(ingest.clone()))
        .add_service(hindcast_query::io::grpc::query_service(engine.clone()))
        .add_service(hindcast_query::io::replay::replay_service(player, replay_catalog))
        .add_service(hindcast_alerting::io::grpc::alerts_service(meta.clone()))
        .add_service(hindcast_itsm::desk_service(meta.clone()))
        .add_service(cluster::service(view.clone()))
        .add_service(health_service)
        .add_service(reflection)
        .add_service(reflection_alpha)
        .into_axum_router();
    let door = admit::Door {
        admission: node.admission.clone(),
        requests,
        clock: node.clock.clone(),
    };
    let admit = axum::middleware::from_fn_with_state(door, admit::admit);
    let grpc = grpc
        .layer(axum::middleware::from_fn(serve::blame_the_sender))
        .layer(admit.clone());
    let reload_config = config.clone();
    let reload_meta = meta.clone();
    let tenants = ingest.tenants.clone();
    let reloaded = Reloaded {
        ingest: ingest.clone(),
        scraper: scraper.clone(),
        traps: traps.clone(),
        kafka: kafka.clone(),
    };
    let http = axum::Router::new()
        .merge(ingest_router(ingest))
        .merge(hindcast_query::io::http::prometheus_router(engine.clone()))
        .merge(cardinality::router(engine.clone(), tenants, node.clock.clone()))
        .merge(hindcast_query::io::loki::loki_router(engine))
        .merge(hindcast_alerting::io::http::router(meta.clone()))
        .merge(hindcast_itsm::router(meta))
        .merge(cluster::router(view))
        .merge(masking::router(masks))
        .merge(scrape::router(scraper.clone()))
        .merge(kafka::router(kafka.clone()))
        .route(
            "/-/reload",
            axum::routing::post(move || reload(reload_config, reload_meta, reloaded)),
        )
        .fallback(serve::web)
        .layer(admit);
    let http = match config.listen.ip().is_loopback() {
        true => http.layer(axum::middleware::from_fn(serve::guard_loopback)),
        false => http.layer(axum::middleware::from_fn(serve::guard_origin)),
    };

    let mut fatal = node.raft.fatal();
    let (end, ended) = watch::channel(false);
    let taking_syslog = clients.spawn(syslog.serve(syslog_bound, ended.clone()));
    let scraping = scraper.map(|s| clients.spawn(s.run(ended.clone())));
    let taking_traps = traps.map(|t| clients.spawn(t.serve(traps_bound, ended.clone())));
    let consuming = kafka.map(|k| clients.spawn(k.run(ended.clone())));
    let serving = clients.spawn(serve::serve(listener, tls, grpc, http, ended));
    let mut removed = node.peers.removed();
    let failure = tokio::select! {
        _ = removed.wait_for(|r| *r) => {
            println!(
                "hindcast node {} was removed from its cluster and ends; its data directory {} is not needed any more",
                node.id(),
                config.data_dir.display()
            );
            None
        }
        _ = stopped.wait_for(|s| *s) => None,
        broken = fatal.wait_for(Option::is_some) => broken.ok().and_then(|b| b.clone()),
    };
    let _ = end.send(true);
    let _ = serving.await;
    let _ = taking_syslog.await;
    if let Some(scraping) = scraping {
        let _ = scraping.await;
    }
    if let Some(taking) = taking_traps {
        let _ = taking.await;
    }
    if let Some(consuming) = consuming {
        let _ = consuming.await;
    }
    drop(clients);
    node.raft.shutdown();
    match failure {
        None => Ok(ExitCode::SUCCESS),
        Some(why) => Err(Failure::no(format!("this node cannot go on: {why}"))),
    }
}

/// How much less of a busy processor threads of clients get: about a third of what others do.
const CLIENTS_NICE: i32 = 5;

/// Threads for whatever clients ask. Apart from those that carry messages of peers, alerts and tickets: however many clients ask, these
/// are not behind them in one queue.
struct ClientThreads(Option<tokio::runtime::Runtime>);

impl ClientThreads {
    fn start() -> Result<Self, Failure> {
        let threads = tokio::runtime::Builder::new_multi_thread()
            .thread_name("clients")
            .on_thread_start(|| {
                // Where it is not allowed, they are equals.
                let _ = rustix::process::nice(CLIENTS_NICE);
            })
            .enable_all()
            .build();
        let threads = threads.map_err(|e| Failure::no(format!("no threads for clients can be started: {e}")))?;
        Ok(Self(Some(threads)))
    }
}

impl std::ops::Deref for ClientThreads {
    type Target = tokio::runtime::Runtime;

    fn deref(&self) -> &Self::Target {
        self.0.as_ref().expect("taken in `drop` only")
    }
}

/// From within other threads of tokio one may not wait for them.
impl Drop for ClientThreads {
    fn drop(&mut self) {
        if let Some(threads) = self.0.take() {
            threads.shutdown_background();
        }
    }
}

/// Nobody is asked yet: a node starts while its store is away.
fn open_cold(config: &ServerConfig) -> Result<Option<NodeCold>, Failure> {
    let Some(cold) = &config.cold else { return Ok(None) };
    let variables = std::env::vars_os().filter_map(|(n, v)| Some((n.into_string().ok()?, v.into_string().ok()?)));
    let store = ObjectCold::open(&cold.url, variables).map_err(|e| Failure::usage(e.to_string()))?;
    Ok(Some(NodeCold {
        tier: ColdTier::new(Arc::new(store), cold.cache_bytes_max),
        rules: cold.rules.clone(),
    }))
}

fn announce(config: &ServerConfig, node: NodeId, address: std::net::SocketAddr) {
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    println!("hindcast node {node} listens on {scheme}://{address} (gRPC, HTTP and web UI)");
    match &config.tls {
        Some(TlsFiles { ca: Some(ca), .. }) => println!("clients show a certificate signed by {}", ca.display()),
        _ => println!("no user and no token needed, because only this machine can reach it"),
    }
    if !config.join_cluster.is_empty() {
        println!(
            "peers on {}: joined at {}",
            config.peer_listen,
            config.join_cluster.join(", ")
        );
    } else if config.join.is_empty() {
        println!("alone: no peers");
    } else {
        let how = if config.peer_tls.is_some() {
            "with TLS"
        } else {
            "without TLS, on loopback"
        };
        println!("peers on {}, {how}: {}", config.peer_listen, config.join.join(", "));
    }
    println!("data in {}", config.data_dir.display());
    if let Some(cold) = &config.cold {
        println!("files of old rows in {}", cold.url);
    }
}

/// What of this node alone a reload replaces.
#[derive(Clone)]
struct Reloaded {
    ingest: IngestState,
    scraper: Option<Scraper>,
    traps: Option<Traps>,
    kafka: Option<Kafka>,
}

/// Masking, limits and what is scraped are this node's own affair and come into force at once; rules and routes are the cluster's.
async fn reload(
    config: ServerConfig,
    meta: Arc<dyn Meta>,
    Reloaded {
        ingest,
        scraper,
        traps,
        kafka,
    }: Reloaded,
) -> (axum::http::StatusCode, String) {
    use axum::http::StatusCode;
    let masks = &ingest.masking;
    let unchanged = |e: &dyn std::fmt::Display| {
        tracing::warn!(error = %e, "a reload was refused: nothing was changed");
        (StatusCode::BAD_REQUEST, format!("{e}\nnothing was changed\n"))
    };
    let commands = match rules::read(&config) {
        Ok(commands) => commands,
        Err(e) => return unchanged(&e),
    };
    let loading = config.clone();
    // Passwords of many devices take a while.
    let loaded = tokio::task::spawn_blocking(move || load_targets(&loading)).await;
    let scrape = match loaded.unwrap_or_else(|e| Err(format!("the targets cannot be read: {e}"))) {
        Ok(scrape) => scrape,
        Err(e) => {
            scraper.iter().for_each(Scraper::reload_failed);
            return unchanged(&e);
        }
    };
    let limits = match limits::load(config.limits.as_deref()) {
        Ok(limits) => limits,
        Err(e) => return unchanged(&e),
    };
    let topics = match load_kafka(&config) {
        Ok(topics) => topics,
        Err(e) => {
            kafka.iter().for_each(Kafka::reload_failed);
            return unchanged(&e);
        }
    };
    if let Some(file) = &config.file {
        let before = masks.current();
        let replaced = ServerArgs::masking_of(file).and_then(|settings| Ok(masks.replace(settings)?));
        if let Err(e) = replaced {
            return unchanged(&e);
        }
        let after = masks.current();
        if before.settings().on && !after.settings().on {
            tracing::warn!("masking is off from now on: lines are stored as they come");
        }
    }
    ingest.limit(limits);
    put_senders(traps.as_ref(), scrape.as_ref());
    if let (Some(kafka), Some(loaded)) = (&kafka, topics) {
        kafka.replace(loaded);
    }
    if let (Some(scraper), Some(loaded)) = (&scraper, scrape) {
        // It reads the files of targets.
        let scraper = scraper.clone();
        if let Err(e) = tokio::task::spawn_blocking(move || scraper.replace(loaded)).await {
            return (
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("the targets could not be replaced: {e}\n"),
            );
        }
    }
    match rules::replace(&*meta, &config, commands).await {
        Ok(()) => {
            tracing::info!("rules, routes, masking, limits, targets and topics are as the files say");
            let said = "reloaded: rules, routes, masking, limits, targets and topics; what else the file says needs a restart\n";
            (StatusCode::OK, said.to_owned())
        }
        Err(e) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!(
                "{e}\nmasking, limits, targets and topics are as the files say; rules and routes are as they were, or partly new: reload again\n"
            ),
        ),
    }
}

/// What health can be asked about: the node, and each service by its name.
const HEALTH_NAMES: &[&str] = &[
    "",
    "hindcast.v1.Ingest",
    "hindcast.v1.Query",
    "hindcast.v1.Replay",
    "hindcast.v1.Alerts",
    "hindcast.v1.Desk",
    "hindcast.v1.Cluster",
];

async fn report_health(node: Node, health: tonic_health::server::HealthReporter) {
    let mut ready = None;
    loop {
        let now = node.is_ready();
        if ready != Some(now) {
            let status = if now {
                tonic_health::ServingStatus::Serving
            } else {
                tonic_health::ServingStatus::NotServing
            };
            for service in HEALTH_NAMES {
                health.set_service_status(*service, status).await;
            }
            ready = Some(now);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Evaluation, delivery, History, cuts and pins: each knows by itself when it is this node's turn.
fn spawn_workers(
    node: &Node,
    meta: &Arc<dyn Meta>,
    engine: &Arc<Engine>,
    shards: &Arc<dyn Shards>,
    files: Vec<hindcast_alerting::command::GatewayCommand>,
    stopped: &watch::Receiver<bool>,
) -> hindcast_alerting::io::Sends {
    use hindcast_alerting::io::{Deliverer, Evaluator, HistoryPump};
    // Of the cluster: what is due was stamped by it, and a clock that is off makes nobody late.
    let clock: Arc<dyn Clock> = Arc::new(node.meta.clone());
    let evaluator = Evaluator::new(
        meta.clone(),
        engine.clone(),
        shards.clone(),
        clock.clone(),
        node.meta.wall(),
        node.id(),
    );
    tokio::spawn(evaluator.run(stopped.clone()));
    let channels = hindcast_notify::channels();
    let deliverer = Deliverer::new(meta.clone(), channels, node.id(), clock);
    let sends = deliverer.sends();
    tokio::spawn(deliverer.run(stopped.clone()));
    let writer = Arc::new(history::ShardHistory::new(node.writer.clone()));
    tokio::spawn(HistoryPump::new(meta.clone(), writer).run(stopped.clone()));
    tokio::spawn(keeper::run(node.clone()));
    let meta = meta.clone();
    tokio::spawn(async move {
        while let Err(error) = rules::put_in_force(&*meta, files.clone()).await {
            tracing::warn!(%error, "rules and routes are not in force yet; tried again");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    sends
}

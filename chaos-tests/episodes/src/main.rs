//! Real nodes on hosts of their own on this machine, and everything that can go wrong with hosts: kills, power cuts,
//! cut and bad links, full and broken disks, pauses, wrong clocks, deaf receivers. Writers, readers and alarms go on
//! meanwhile; what all of them were told is written down and judged in the end.
//!
//! Needs root: network namespaces, TUN devices, loop mounts. Says so, and that nothing was tested, when it cannot run.

mod clients;
mod history;
mod hosts;
mod judge;
mod net;
mod script;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use clients::{CALL_TIMEOUT, Cases, FLOOD_LOAD, LOAD, Nodes};
use hindcast_chaos::workload::base_ms;
use hindcast_env::{Rng, SeededRng};
use hindcast_proto::v1;
use hindcast_proto::v1::alerts_client::AlertsClient;
use history::{History, What};
use hosts::{Hosts, now};
use script::{DEFAULT, Episode, Stage};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, watch};

/// Set for child processes: this program is the node then. So what is tested is what was built.
pub const AS_NODE: &str = "HINDCAST_EPISODES_NODE";

const NODES: u64 = 3;
const TEND_PAUSE: Duration = Duration::from_millis(100);
/// An alarm begins so long after its episode.
const ALARM_AFTER: Duration = Duration::from_secs(3);
const HEAL_TIMEOUT: Duration = Duration::from_secs(90);
const AGREE_TIMEOUT: Duration = Duration::from_secs(30);
/// What a long run draws from: storms make most of the kills.
const SOAK: [Episode; 17] = [
    Episode::Storm,
    Episode::Storm,
    Episode::Storm,
    Episode::Storm,
    Episode::Storm,
    Episode::LeaderKill,
    Episode::OneWay,
    Episode::Split,
    Episode::PowerCut,
    Episode::DiskFull,
    Episode::FsyncError,
    Episode::Pause,
    Episode::Clock,
    Episode::RollingRestart,
    Episode::Loss,
    Episode::SlowDisk,
    Episode::Receivers,
];

#[derive(Debug, Parser)]
#[command(
    about = "Plays what can go wrong with hosts on real nodes, and judges what they promised meanwhile",
    after_help = "Examples:\n  episodes                                 the eight default ones, under five minutes\n  \
                  episodes --episodes split,clock --seed 7\n  episodes --soak 30                       half an hour of everything\n  \
                  episodes --judge /tmp/run/history.jsonl  judges a kept history again"
)]
struct Args {
    /// Which ones, in this order [default: eight of them].
    #[arg(long, value_delimiter = ',', value_enum)]
    episodes: Vec<Episode>,
    /// Goes on with episodes drawn at random for so many minutes.
    #[arg(long, value_name = "MINUTES", conflicts_with = "episodes")]
    soak: Option<u64>,
    /// What is drawn at random comes from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Keeps history, logs and disks here; else they are kept only when a promise was broken.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Runs nothing: judges this history.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["episodes", "soak", "keep"])]
    judge: Option<PathBuf>,
}

fn main() -> ExitCode {
    if std::env::var_os(AS_NODE).is_some() {
        return hindcast::main();
    }
    let args = Args::parse();
    let outcome = match &args.judge {
        Some(file) => verdict(file),
        None => match hosts::look_for_tools() {
            Err(missing) => {
                eprintln!("\n*** {missing}\n");
                return ExitCode::from(2);
            }
            Ok(tools) => {
                let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
                runtime
                    .map_err(anyhow::Error::from)
                    .and_then(|r| r.block_on(run(&args, &tools)))
            }
        },
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Judges a history and prints what came of it; whether all promises were kept.
fn verdict(file: &Path) -> Result<bool> {
    let records = history::read(file)?;
    let (sum, broken) = judge::judge(&records);
    println!("\nfaults: {:?}", history::counts(&records));
    println!("{}", serde_json::to_string(&sum)?);
    for one in &broken {
        println!("BROKEN {one}");
    }
    if broken.is_empty() {
        println!("all promises kept");
    }
    Ok(broken.is_empty())
}

#[allow(
    clippy::disallowed_methods,
    reason = "a harness writes the files that its nodes are given"
)]
async fn run(args: &Args, tools: &hosts::Tools) -> Result<bool> {
    let temporary = std::env::temp_dir().join(format!("hindcast-episodes-{}", std::process::id()));
    let dir = args.keep.clone().unwrap_or(temporary);
    std::fs::create_dir_all(&dir).with_context(|| format!("{} cannot be made", dir.display()))?;
    let dir = std::fs::canonicalize(dir)?;
    let file = dir.join("history.jsonl");
    let history = Arc::new(History::create(&file)?);
    history.tell(What::Run {
        seed: args.seed,
        samples_per_batch: LOAD.samples_per_batch,
        lines_per_batch: LOAD.lines_per_batch,
        flood_samples_per_batch: FLOOD_LOAD.samples_per_batch,
        flood_lines_per_batch: FLOOD_LOAD.lines_per_batch,
        series: clients::SERIES,
        receivers: clients::RECEIVERS.map(str::to_owned).to_vec(),
    });
    // Runs beside each other get networks of their own.
    let number = (std::process::id() % 250) as u8 + 1;
    let hosts = Hosts::new(&dir, number, NODES, tools, history.clone())?;
    if !hosts.has_clocks() {
        println!("*** libfaketime is missing (package faketime): no clock was turned");
    }
    let receivers_ip = IpAddr::V4(hosts.net.address(net::RECEIVERS));
    let receivers = clients::Receivers::start(receivers_ip, history.clone()).await?;
    let token = dir.join("slack-token");
    std::fs::write(&token, "xoxb-episodes")?;
    std::fs::write(dir.join("routes.yml"), receivers.routes(&token.display().to_string()))?;
    std::fs::write(dir.join("rules.yml"), clients::Receivers::rules())?;

    let played = play(args, &dir, hosts, receivers, history.clone()).await;
    history.flush();
    let is_kept = verdict(&file)?;
    if let Err(e) = &played {
        println!("the run did not get to its end: {e:#}");
    }
    let is_good = is_kept && played.is_ok();
    if !is_good || args.keep.is_some() {
        println!("history and logs: {}", dir.display());
    } else {
        std::fs::remove_dir_all(&dir)?;
    }
    Ok(is_good)
}

/// Waits until `look` finds nothing amiss; what was amiss last when it took too long.
async fn until_good<F: Future<Output = Result<()>>>(timeout: Duration, mut look: impl FnMut() -> F) -> Result<()> {
    let started = now();
    loop {
        match look().await {
            Ok(()) => return Ok(()),
            Err(e) if started.elapsed() > timeout => return Err(e),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

/// All nodes that should run do, and are ready.
async fn all_ready(hosts: &Mutex<Hosts>) -> Result<()> {
    let hosts = hosts.lock().await;
    for i in 0..hosts.all.len() {
        let host = &hosts.all[i];
        let status = hosts.status(i).await;
        let status = status.with_context(|| format!("node {}:\n{}", host.id, host.log_tail()))?;
        ensure!(status.ready, "node {} is not ready:\n{}", host.id, host.log_tail());
    }
    Ok(())
}

/// A case is in an incident, and everybody was told of it.
async fn is_told(channel: &tonic::transport::Channel, case: &str) -> Result<()> {
    let incidents = clients::incidents(channel).await?;
    let home = incidents.iter().find(|(_, cases)| cases.iter().any(|c| c == case));
    let (incident, _) = home.with_context(|| format!("the alarm {case} is in no incident"))?;
    let asked = v1::ListDeliveriesRequest {
        incident: incident.id.clone(),
    };
    let listed = AlertsClient::new(channel.clone())
        .list_deliveries(asked)
        .await?
        .into_inner();
    ensure!(!listed.deliveries.is_empty(), "nobody is to be told of {}", incident.id);
    for delivery in listed.deliveries {
        let (state, error) = (&delivery.state, &delivery.last_error);
        ensure!(state == "delivered", "{}: {state} {error}", delivery.key);
    }
    Ok(())
}

async fn nodes(hosts: &Mutex<Hosts>) -> Result<Vec<(u64, tonic::transport::Channel)>> {
    let hosts = hosts.lock().await;
    let all = hosts
        .all
        .iter()
        .map(|h| Ok((h.id, hosts.channel(h.place, CALL_TIMEOUT)?)));
    all.collect()
}

async fn play(
    args: &Args,
    dir: &Path,
    mut hosts: Hosts,
    mut receivers: clients::Receivers,
    history: Arc<History>,
) -> Result<()> {
    let path = |name: &str| dir.join(name).display().to_string();
    hosts.give_all(&[
        "--rules".into(),
        path("rules.yml"),
        "--routes".into(),
        path("routes.yml"),
    ]);
    for i in 0..hosts.all.len() {
        hosts.start(i)?;
    }
    let has_clocks = hosts.has_clocks();
    let hosts = Arc::new(Mutex::new(hosts));
    let (stop, stopped) = watch::channel(false);
    let (hosts_tended, mut end) = (hosts.clone(), stopped.clone());
    tokio::spawn(async move {
        while !*end.borrow_and_update() {
            if let Err(e) = hosts_tended.lock().await.tend() {
                eprintln!("a node cannot be started again: {e:#}");
            }
            tokio::time::sleep(TEND_PAUSE).await;
        }
    });
    until_good(HEAL_TIMEOUT, || all_ready(&hosts))
        .await
        .context("the nodes did not get ready")?;
    println!("{NODES} nodes on hosts of their own are ready");

    let base_ms = base_ms();
    let (nodes_told, nodes_known) = watch::channel(nodes(&hosts).await?);
    let acked: clients::Acked = Arc::new((0..LOAD.writers).map(|_| AtomicU64::new(0)).collect());
    let cases = Cases::default();
    let spawn_clients = |known: &Nodes| {
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 1..=LOAD.writers {
            let (history, acked) = (history.clone(), acked.clone());
            tasks.spawn(clients::write_on(
                writer,
                base_ms,
                known.clone(),
                history,
                acked,
                stopped.clone(),
            ));
        }
        let (read_history, acked) = (history.clone(), acked.clone());
        tasks.spawn(clients::read_on(
            base_ms,
            known.clone(),
            read_history,
            acked,
            stopped.clone(),
        ));
        tasks.spawn(clients::raise_on(
            known.clone(),
            history.clone(),
            cases.clone(),
            stopped.clone(),
        ));
        tasks
    };
    let mut tasks = spawn_clients(&nodes_known);
    tokio::time::sleep(Duration::from_secs(2)).await;

    let mut stage = Stage {
        hosts: hosts.clone(),
        rng: SeededRng::new(args.seed),
        is_long: args.soak.is_some(),
        cases: cases.clone(),
        nodes: nodes_known.clone(),
        flooded: clients::Flooded::default(),
        base_ms,
    };
    let started = now();
    let mut number = 0;
    loop {
        let episode = match args.soak {
            Some(minutes) if started.elapsed() >= Duration::from_secs(60 * minutes) => break,
            // Hosts are few: every 40th trouble is a fire.
            Some(_) if number % 40 == 20 => Episode::Replace,
            Some(_) => SOAK[stage.rng.below(SOAK.len() as u64) as usize],
            None => {
                let chosen = if args.episodes.is_empty() {
                    &DEFAULT[..]
                } else {
                    &args.episodes
                };
                match chosen.get(number) {
                    Some(episode) => *episode,
                    None => break,
                }
            }
        };
        number += 1;
        if episode == Episode::Clock && !has_clocks {
            continue;
        }
        let name = format!("{number}-{}", episode.name());
        println!("{name}");
        history.tell(What::Episode { name: name.clone() });
        let (raised, case) = (cases.clone(), name.clone());
        let alarm = tokio::spawn(async move {
            tokio::time::sleep(ALARM_AFTER).await;
            raised.lock().expect("plain data").insert(case);
        });
        let played = stage.play(episode).await;
        if let Err(e) = &played {
            println!("  the episode itself failed: {e:#}");
            history.tell(script::failed(&name, e));
        }
        hosts.lock().await.heal()?;
        alarm.await?;
        nodes_told.send_replace(nodes(&hosts).await?);
        let healing = now();
        let healed = until_good(HEAL_TIMEOUT, || async {
            all_ready(&hosts).await?;
            let (_, first) = nodes_known.borrow()[0].clone();
            is_told(&first, &name).await
        });
        let missing = healed.await.err().map(|e| format!("{e:#}")).unwrap_or_default();
        let took_ms = healing.elapsed().as_millis() as u64;
        println!("  healed after {:.1} s {missing}", took_ms as f64 / 1000.0);
        cases.lock().expect("plain data").clear();
        receivers.note(&history);
        history.tell(What::Healed { name, took_ms, missing });
    }

    let _ = stop.send(true);
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    // One batch more than what was confirmed: it may be there.
    let last = |(writer, acked): (u64, &AtomicU64)| (writer, acked.load(Ordering::SeqCst) + 1);
    let mut asked: BTreeMap<u64, u64> = (1..).zip(acked.iter()).map(last).collect();
    asked.extend(stage.flooded.lock().expect("plain data").iter());
    tell_the_end(&hosts, base_ms, &asked, &history).await?;
    receivers.note(&history);
    Ok(())
}

/// What everybody holds, once all of them have applied the same.
async fn tell_the_end(hosts: &Mutex<Hosts>, base_ms: i64, asked: &BTreeMap<u64, u64>, history: &History) -> Result<()> {
    // The tending has ended with the clients: whoever does not run now is missed.
    let hosts = hosts.lock().await;
    let count = hosts.all.len();
    let mut states = vec![];
    let started = now();
    loop {
        states.clear();
        for i in 0..count {
            states.push(clients::state(&hosts, i).await?);
        }
        // Entries may still be under way: a difference counts when it stays.
        if states.windows(2).all(|w| w[0] == w[1]) || started.elapsed() > AGREE_TIMEOUT {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (host, state) in hosts.all.iter().zip(states) {
        for (group, applied, digest) in state {
            history.tell(What::State {
                node: host.id,
                group,
                applied,
                digest,
            });
        }
    }
    for i in 0..count {
        clients::tell_node(&hosts, i, base_ms, asked, history).await?;
    }
    clients::tell_desk(&hosts.channel(hosts.all[0].place, CALL_TIMEOUT)?, history).await
}

//! `hindcast demo`: the whole story on this machine, on live data.
//!
//! Three nodes as child processes, an agent that watches this host, a small recorded world beside it, receivers for
//! mail and Slack. A CPU burn makes a real incident; the leader dies by SIGKILL while people are being told; the
//! replay is then played from every node. Every number of the summary is counted from what nodes and receivers hold.

mod cluster;
pub mod receivers;
mod world;

use crate::agent::{self, AgentConfig, Endpoints};
use crate::cli::{Done, Failure};
use cluster::{Cluster, digest_hex};
use hindcast_proto::v1;
use receivers::{Mailbox, SlackDesk};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  hindcast demo\n  hindcast demo --once\n  hindcast demo --data-dir /tmp/demo")]
pub struct DemoArgs {
    /// End by itself, with a JSON summary as the last line.
    #[arg(long)]
    once: bool,
    /// How many nodes: 1 shows no dead leader.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=7))]
    nodes: u64,
    /// Where the nodes keep their data; else a temporary folder that goes with the demo.
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

/// Each wait of the story ends after this at the latest, with words about what did not happen.
const STEP_TIMEOUT: Duration = Duration::from_secs(90);
const POLL_PAUSE: Duration = Duration::from_millis(50);
const AGENT_INTERVAL: Duration = Duration::from_secs(1);
/// The receivers take their time, as real ones do: so the leader dies while they are being told.
const RECEIVER_DELAY: Duration = Duration::from_millis(700);
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Tells what happens, with the time since the start.
struct Story(Instant);

impl Story {
    fn say(&self, what: impl std::fmt::Display) {
        println!("[{:5.1} s] {what}", self.0.elapsed().as_secs_f64());
    }
}

/// Keeps all CPUs busy until told to stop; leaves a tenth to others, so that the cluster can breathe.
struct Burn(Arc<AtomicBool>);

impl Burn {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let cpus = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        for _ in 0..cpus {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    #[allow(clippy::disallowed_methods, reason = "burning time is the point")]
                    let until = Instant::now() + Duration::from_millis(45);
                    #[allow(clippy::disallowed_methods, reason = "burning time is the point")]
                    while Instant::now() < until {
                        std::hint::spin_loop();
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
        }
        Self(stop)
    }
}

impl Drop for Burn {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn routes(mail: &Mailbox, slack: &SlackDesk, token_file: &std::path::Path) -> String {
    include_str!("data/routes.yml")
        .replace("SMARTHOST", &mail.addr().to_string())
        .replace("SLACK_API_URL", &format!("http://{}/api", slack.addr()))
        .replace("TOKEN_FILE", &token_file.display().to_string())
}

#[allow(
    clippy::disallowed_methods,
    reason = "the demo writes the files that its nodes are given"
)]
fn write(path: &std::path::Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|e| Failure::usage(format!("{} cannot be written: {e}", path.display())))
}

/// Polls until `look` finds something; `what` is said when it never does.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> Result<T, Failure> {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(POLL_PAUSE).await;
        }
    };
    let waited = tokio::time::timeout(STEP_TIMEOUT, found).await;
    waited.map_err(|_| Failure::no(format!("{what} did not happen within {} s", STEP_TIMEOUT.as_secs())))
}

#[allow(clippy::disallowed_methods, reason = "the demo tells how long it took")]
pub async fn run(args: DemoArgs) -> Done {
    let story = Story(Instant::now());
    let temporary;
    let dir = match &args.data_dir {
        Some(dir) => dir.clone(),
        None => {
            temporary = TemporaryDir::new()?;
            temporary.0.clone()
        }
    };
    std::fs::create_dir_all(&dir).map_err(|e| Failure::usage(format!("{} cannot be made: {e}", dir.display())))?;
    let failed = |e: std::io::Error| Failure::no(format!("a local receiver cannot be started: {e}"));
    let mail = Mailbox::start(LOOPBACK, RECEIVER_DELAY).await.map_err(failed)?;
    let slack = SlackDesk::start(LOOPBACK, RECEIVER_DELAY).await.map_err(failed)?;
    story.say(format!(
        "a mailbox listens on {}, a Slack-shaped API on {}",
        mail.addr(),
        slack.addr()
    ));
    write(&dir.join("rules.yml"), include_str!("data/rules-first.yml"))?;
    let token_file = dir.join("slack-token");
    write(&token_file, "xoxb-demo")?;
    write(&dir.join("routes.yml"), &routes(&mail, &slack, &token_file))?;

    let mut cluster = Cluster::start(&dir, args.nodes).await?;
    cluster.wait_ready().await?;
    story.say(format!(
        "{} nodes are one cluster and ready; data in {}",
        args.nodes,
        dir.display()
    ));

    // A signal ends the story, and with it the nodes and the temporary folder.
    let outcome = tokio::select! {
        outcome = tell(&args, &story, &dir, &mut cluster, &mail, &slack) => Some(outcome),
        () = crate::server::wait_for_signal() => None,
    };
    let Some(outcome) = outcome else {
        cluster.stop().await;
        return Err(Failure::no("the demo was stopped before its end"));
    };
    if outcome.is_err() {
        cluster.print_logs();
    }
    let summary = serde_json::to_string(&outcome?).map_err(|e| Failure::no(e.to_string()))?;
    if args.once {
        cluster.stop().await;
        println!("{summary}");
        return Ok(ExitCode::SUCCESS);
    }
    println!("\n{summary}\n");
    println!("The nodes go on until Ctrl-C. Look around:");
    println!("  web UI        {}/incidents", cluster.url(1));
    println!("  the replay    hindcast replay INC-1 --endpoint {}", cluster.url(1));
    println!("  the ticket    hindcast ticket show T-1 --endpoint {}", cluster.url(1));
    println!(
        "  a query       hindcast query 'sum by (cpu_mode) (rate(system_cpu_time_seconds_total[30s]))' --endpoint {}",
        cluster.url(1)
    );
    crate::server::wait_for_signal().await;
    cluster.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// From live data to the replay; the summary as JSON.
async fn tell(
    args: &DemoArgs,
    story: &Story,
    dir: &std::path::Path,
    cluster: &mut Cluster,
    mail: &Mailbox,
    slack: &SlackDesk,
) -> Result<Summary, Failure> {
    let (stop, stopped) = watch::channel(false);
    let endpoints = Endpoints::parse(&cluster.urls().join(",")).map_err(|e| Failure::no(e.to_string()))?;
    let mut config = AgentConfig::new(endpoints.clone(), agent::identity(None));
    config.interval = AGENT_INTERVAL;
    let host = config.identity.host_name.clone();
    let agent = tokio::spawn(agent::run(config, stopped.clone()));
    let world = tokio::spawn(world::run(endpoints, host.clone(), stopped));
    story.say(format!(
        "an agent watches this host ({host}); a database, a web shop and a switch send beside it"
    ));
    tokio::time::sleep(AGENT_INTERVAL * 6).await;

    // The CPU rule comes in force now: on a busy machine it must not fire before the story gets there.
    write(&dir.join("rules.yml"), include_str!("data/rules.yml"))?;
    cluster.reload(1).await?;
    let burn = Burn::start();
    story.say("a CPU rule is in force, and all CPUs burn now: a real incident begins");
    let incident = until("an incident", || cluster.first_incident()).await?;
    story.say(format!(
        "{} opened: {} ({})",
        incident.id, incident.title, incident.severity
    ));

    let leader_killed = args.nodes >= 3;
    let mut killed = None;
    if leader_killed {
        let leader = until("a leader of the meta group", || cluster.meta_leader()).await?;
        let undelivered = cluster.undelivered(&incident.id).await;
        cluster.kill(leader).await;
        story.say(format!(
            "node {leader}, the leader, died by kill -9 with {undelivered} effects not delivered yet"
        ));
        killed = Some(leader);
    }
    drop(burn);
    let next = until("a new leader", || cluster.meta_leader()).await?;
    story.say(format!("node {next} leads the meta group"));

    until("delivery to mail, Slack and the desk", || async {
        let told = !mail.messages().is_empty() && !slack.messages().is_empty();
        let all = cluster.undelivered(&incident.id).await == 0;
        (told && all && !cluster.tickets().await.is_empty()).then_some(())
    })
    .await?;
    story.say(format!(
        "told: {} mail, {} Slack message, {} ticket",
        mail.messages().len(),
        slack.messages().len(),
        cluster.tickets().await.len()
    ));
    if let Some(id) = killed {
        cluster.restart(id).await?;
        cluster.wait_ready().await?;
        story.say(format!("node {id} is back and has caught up"));
    }

    let _ = stop.send(true);
    let agent = agent
        .await
        .map_err(|e| Failure::no(format!("the agent ended early: {e}")))?;
    let world = world
        .await
        .map_err(|e| Failure::no(format!("the recorded world ended early: {e}")))?;
    let samples_acked = agent.samples_acked + world.samples_acked;
    let logs_acked = agent.lines_acked + world.lines_acked;
    story.say(format!(
        "{samples_acked} samples and {logs_acked} log lines were acknowledged; each node is asked for them"
    ));
    let mut counts = vec![];
    for id in cluster.ids() {
        counts.push(cluster.counts(id).await?);
    }
    let samples_read_back = counts.iter().map(|c| c.0).min().unwrap_or(0);
    let logs_read_back = counts.iter().map(|c| c.1).min().unwrap_or(0);
    let acked_lost = samples_acked.saturating_sub(samples_read_back) + logs_acked.saturating_sub(logs_read_back);

    let cut = cluster.cut_for(&incident.id).await?;
    story.say(format!(
        "{cut} is taken; every node plays {} as it was known then",
        incident.id
    ));
    let mut digests = vec![];
    let mut frames = 0;
    for id in cluster.ids() {
        let (digest, count) = cluster.play(id, &incident.id, &cut).await?;
        story.say(format!("node {id}: {count} frames, digest {}", digest_hex(&digest)));
        digests.push(digest_hex(&digest));
        frames = count;
    }
    let tickets = cluster.tickets().await;
    let alert = cluster.alert_of(&incident).await?;
    if acked_lost > 0 || digests.windows(2).any(|w| w[0] != w[1]) || tickets.len() != 1 {
        return Err(Failure::no(format!(
            "the story does not hold: {acked_lost} acknowledged items lost, digests {digests:?}, {} tickets",
            tickets.len()
        )));
    }
    Ok(Summary {
        nodes: args.nodes,
        samples_acked,
        samples_read_back,
        logs_acked,
        logs_read_back,
        alert,
        incident: incident.id,
        tickets: tickets.len(),
        ticket: tickets
            .first()
            .map(|t: &v1::Ticket| t.number.clone())
            .unwrap_or_default(),
        emails: mail.messages().len(),
        slack_messages: slack.messages().len(),
        leader_killed,
        acked_lost,
        replay_frames: frames,
        replay_digests: digests,
        seconds: (story.0.elapsed().as_secs_f64() * 10.0).round() / 10.0,
    })
}

/// The last line of `--once`: counted from what the receivers and the nodes hold.
#[derive(Debug, serde::Serialize)]
struct Summary {
    nodes: u64,
    samples_acked: u64,
    samples_read_back: u64,
    logs_acked: u64,
    logs_read_back: u64,
    alert: String,
    incident: String,
    tickets: usize,
    ticket: String,
    emails: usize,
    slack_messages: usize,
    leader_killed: bool,
    acked_lost: u64,
    replay_frames: u64,
    replay_digests: Vec<String>,
    seconds: f64,
}

/// A folder that goes when the demo ends.
struct TemporaryDir(PathBuf);

impl TemporaryDir {
    fn new() -> Result<Self, Failure> {
        let dir = std::env::temp_dir().join(format!("hindcast-demo-{}", std::process::id()));
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Failure::usage(format!("{} is in the way: {e}", dir.display())))
            }
            _ => Ok(Self(dir)),
        }
    }
}

impl Drop for TemporaryDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

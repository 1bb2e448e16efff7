//! `hindcast agent`: watches this host and sends what it sees.

use super::{Client, Done, Failure};
use crate::agent::spool::{SPOOL_BYTES_DEFAULT, SPOOL_BYTES_MIN};
use crate::agent::{self, AgentConfig, Endpoints, INTERVAL_DEFAULT, INTERVAL_MIN, LogFile, PROCESSES_TOP_DEFAULT};
use hindcast_model::SpanNs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const MIB: u64 = 1024 * 1024;

/// This host's metrics and log files over gRPC. `--endpoint` takes several addresses, separated by commas.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  hindcast agent
  hindcast agent --endpoint http://10.0.0.1:7400,http://10.0.0.2:7400 --journal
  hindcast agent --log shop=/var/log/shop.log --buffer-dir /var/lib/hindcast-agent
      batches outlive the agent and a cluster that cannot be reached")]
pub struct AgentArgs {
    #[command(flatten)]
    pub client: Client,
    /// Between two readings.
    #[arg(long, default_value_t = interval_default(), value_parser = span)]
    pub interval: SpanNs,
    /// A log file to follow, from its end: PATH, or SERVICE=PATH. May be given more than once.
    #[arg(long, value_parser = LogFile::parse)]
    pub log: Vec<LogFile>,
    /// Follow the systemd journal.
    #[arg(long)]
    pub journal: bool,
    /// The name that this host goes by; else its own.
    #[arg(long, value_name = "HOST")]
    pub name: Option<String>,
    /// A process that is always watched, by its executable's name. May be given more than once.
    #[arg(long, value_name = "NAME")]
    pub process: Vec<String>,
    /// How many more processes are watched because they use the most CPU.
    #[arg(long, default_value_t = PROCESSES_TOP_DEFAULT)]
    pub top: usize,
    /// One series per CPU instead of one for all of them together.
    #[arg(long)]
    pub per_cpu: bool,
    /// A folder in which batches wait for a node, also while no agent runs; without it they wait in memory. Log files are then gone
    /// on with where the last agent left them.
    #[arg(long, value_name = "DIR")]
    pub buffer_dir: Option<PathBuf>,
    /// What may wait in that folder; beyond it the oldest goes.
    #[arg(long, value_name = "MIB", default_value_t = SPOOL_BYTES_DEFAULT / MIB, value_parser = clap::value_parser!(u64).range(SPOOL_BYTES_MIN / MIB..1 << 24))]
    pub buffer_mib_max: u64,
    /// An address for /metrics of the agent itself, like 127.0.0.1:7409.
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_listen: Option<std::net::SocketAddr>,
    /// Send one reading and end.
    #[arg(long)]
    pub once: bool,
}

fn interval_default() -> SpanNs {
    SpanNs::from_secs(INTERVAL_DEFAULT.as_secs())
}

fn span(text: &str) -> Result<SpanNs, String> {
    let min = SpanNs::from_ms(INTERVAL_MIN.as_millis() as u64);
    match SpanNs::parse(text) {
        Some(span) if span >= min => Ok(span),
        Some(_) => Err(format!("shorter than {min}")),
        None => Err("not a span of time like 5s or 500ms".to_owned()),
    }
}

pub async fn run(args: AgentArgs) -> Done {
    let endpoints = Endpoints::parse(&args.client.endpoint).map_err(|e| Failure::usage(e.to_string()))?;
    let config = AgentConfig {
        endpoints,
        tls: args.client.tls,
        tenant: args.client.tenant,
        interval: Duration::from_nanos(args.interval.0),
        identity: agent::identity(args.name),
        logs: args.log,
        journal: args.journal,
        per_cpu: args.per_cpu,
        processes: args.process,
        processes_top: args.top,
        once: args.once,
        buffer_dir: args.buffer_dir,
        buffer_bytes_max: args.buffer_mib_max * MIB,
        metrics_listen: args.metrics_listen,
    };
    eprintln!("{}", what_it_does(&config));
    let (stopper, stop) = tokio::sync::watch::channel(false);
    let signals = tokio::spawn(async move {
        asked_to_stop().await;
        let _ = stopper.send(true);
    });
    let report = agent::run(config, stop).await;
    signals.abort();
    eprintln!(
        "{} samples and {} lines confirmed in {} batches; {} retries, {} dropped, {} refused, {} kept on disk",
        report.samples_acked,
        report.lines_acked,
        report.batches,
        report.retries,
        report.dropped,
        report.refused,
        report.kept
    );
    match report.last_error {
        Some(error) if report.batches == 0 && report.kept == 0 => {
            Err(Failure::unreachable(format!("nothing was confirmed: {error}")))
        }
        Some(error) if report.dropped + report.refused > 0 => Err(Failure::no(format!("not all was stored: {error}"))),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Ctrl-C or SIGTERM.
async fn asked_to_stop() {
    let Ok(mut terminate) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

fn what_it_does(config: &AgentConfig) -> String {
    let mut text = format!("watching host {}", config.identity.host_name);
    if config.once {
        text += ", once";
    } else {
        text += &format!(" every {:?}", config.interval);
    }
    for log in &config.logs {
        text += &format!(", log {}", log.path.display());
    }
    if config.journal {
        text += ", the journal";
    }
    if let Some(dir) = &config.buffer_dir {
        text += &format!(", buffered in {}", dir.display());
    }
    text + &format!("; sending to {}", config.endpoints)
}

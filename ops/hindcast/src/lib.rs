//! The hindcast binary as a library: command line, configuration, wiring.

pub mod agent;
pub mod cli;
pub mod demo;
pub mod export;
pub mod import;
pub mod server;
pub mod tls;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::process::ExitCode;

/// Here and not in the program, so that programs which tests build around this library are what is shipped in this, too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(
    name = "hindcast",
    version,
    about = "See the moment again: metrics, logs, alerts and tickets of past incidents",
    after_help = "Start here:
  hindcast demo                        the whole story on this machine, on live data
  hindcast server --data-dir D         one node on loopback, ready in two seconds
  hindcast agent                       this host's metrics and logs into it
  hindcast query 'system_cpu_load_average_1m'"
)]
struct Args {
    /// How the log is written to standard error; HINDCAST_LOG says what of it (like `info,hindcast_node=debug`).
    #[arg(long, global = true, env = "HINDCAST_LOG_FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The whole story on this machine: three nodes, an incident, a dead leader, mail, Slack, a ticket, the replay.
    Demo(demo::DemoArgs),
    /// Runs a node.
    Server(Box<server::config::ServerArgs>),
    /// Sends this host's metrics and log files.
    Agent(cli::agent::AgentArgs),
    /// Brings files in: OpenMetrics pages, CSV, JSON lines, remote-write bodies, the data directory of a Prometheus.
    Import(cli::import::ImportArgs),
    /// Writes a range of metrics and logs as Parquet files, for DuckDB, Spark, Trino and others.
    Export(cli::export::ExportArgs),
    /// Evaluates a PromQL expression.
    Query(cli::query::QueryArgs),
    /// Searches logs with a LogQL expression.
    Logs(cli::query::LogsArgs),
    /// Lists and shows incidents.
    Incident(cli::incident::IncidentArgs),
    /// Lists alerts as they are now.
    Alerts(cli::incident::AlertsArgs),
    /// Plays a past incident again, frame by frame.
    Replay(cli::replay::ReplayArgs),
    /// Works on tickets.
    Ticket(cli::ticket::TicketArgs),
    /// Shows what personal data is hidden in lines, and tries it.
    Masking(cli::masking::MaskingArgs),
    /// Checks rule files.
    Rules(cli::rules::RulesArgs),
    /// Shows what a Prometheus configuration would scrape.
    Scrape(cli::scrape::ScrapeArgs),
    /// Counts a tenant's active series by metric and label, against its limit.
    Cardinality(cli::cardinality::CardinalityArgs),
    /// Checks a file of limits of tenants.
    Limits(cli::limits::LimitsArgs),
    /// Shows which devices a list would poll by SNMP.
    Snmp(cli::snmp::SnmpArgs),
    /// Shows which topics of Kafka a file would consume, and how far nodes have come.
    Kafka(cli::kafka::KafkaArgs),
    /// Shows nodes and Raft groups; adds, moves and removes nodes.
    Cluster(cli::cluster::ClusterArgs),
    /// Makes certificates: for a cluster, its nodes and its clients.
    Cert(cli::cert::CertArgs),
    /// Flushes, compacts and checks the files of a live node.
    Storage(cli::storage::StorageArgs),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

fn set_up_logging(format: LogFormat) {
    use tracing_subscriber::EnvFilter;
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let filter = EnvFilter::try_from_env("HINDCAST_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Json => logs.json().init(),
        LogFormat::Text => logs.init(),
    }
}

/// The allocator asks for pages of 2 MiB. Each counts as a whole once one byte of it is touched, and is cleared as a whole:
/// a third of the processor time of a push of logs, and a fifth more resident memory after one of metrics.
fn use_small_pages() {
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "the kernel may back memory with large pages");
    }
}

/// The command line. A command that gives no examples of its own gets those that the command above it has for it.
fn command_line() -> clap::Command {
    fn of(examples: &str, name: &str) -> String {
        let start = format!("  hindcast {name} ");
        let mut is_its = false;
        let its = examples.lines().filter(|line| {
            // What is said of an example is indented below it.
            let is_more = line.starts_with("      ") && !line.trim().is_empty();
            is_its = (is_its && is_more) || format!("{line} ").starts_with(&start);
            is_its
        });
        its.collect::<Vec<_>>().join("\n")
    }
    let mut all = Args::command();
    let groups: Vec<String> = all.get_subcommands().map(|c| c.get_name().to_owned()).collect();
    for group in groups {
        all = all.mut_subcommand(&group, |mut command| {
            let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let names: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
            for name in names {
                let its = of(&examples, &format!("{group} {name}"));
                command = command.mut_subcommand(&name, |leaf| match leaf.get_after_help() {
                    None if !its.is_empty() => leaf.after_help(format!("Examples:\n{its}")),
                    _ => leaf,
                });
            }
            command
        });
    }
    all
}

/// Parses the command line and runs it.
pub fn main() -> ExitCode {
    use_small_pages();
    let args = Args::from_arg_matches(&command_line().get_matches()).unwrap_or_else(|e| e.exit());
    if !matches!(args.command, Command::Server(_) | Command::Demo(_)) {
        // `hindcast … | head` ends quietly, as other tools do.
        sigpipe::reset();
    }
    set_up_logging(args.log_format);
    // One provider of cryptography for everything that speaks TLS (SMTP, Slack); without it rustls panics at first use.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("a rustls provider was installed already");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("hindcast: no threads can be started: {e}");
            return ExitCode::from(1);
        }
    };
    let done = runtime.block_on(run(args.command));
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    match done {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("hindcast: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

async fn run(command: Command) -> cli::Done {
    match command {
        Command::Demo(args) => demo::run(args).await,
        Command::Server(args) => server::run(*args).await,
        Command::Agent(args) => cli::agent::run(args).await,
        Command::Import(args) => cli::import::run(args).await,
        Command::Export(args) => cli::export::run(args).await,
        Command::Query(args) => cli::query::run_query(args).await,
        Command::Logs(args) => cli::query::run_logs(args).await,
        Command::Incident(args) => cli::incident::run(args).await,
        Command::Alerts(args) => cli::incident::run_alerts(args).await,
        Command::Replay(args) => cli::replay::run(args).await,
        Command::Ticket(args) => cli::ticket::run(args).await,
        Command::Masking(args) => cli::masking::run(args).await,
        Command::Rules(args) => cli::rules::run(args).await,
        Command::Scrape(args) => cli::scrape::run(args).await,
        Command::Cardinality(args) => cli::cardinality::run(args).await,
        Command::Limits(args) => cli::limits::run(args),
        Command::Snmp(args) => cli::snmp::run(args).await,
        Command::Kafka(args) => cli::kafka::run(args).await,
        Command::Cluster(args) => cli::cluster::run(args).await,
        Command::Cert(args) => cli::cert::run(args),
        Command::Storage(args) => cli::storage::run(args).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Newcomers looked at `hindcast ticket note --help`, and found neither an example nor what NUMBER is.
    #[test]
    fn every_command_says_what_its_arguments_are_and_gives_an_example() {
        fn look(command: &clap::Command, path: &str, missing: &mut Vec<String>) {
            let mut told = command.clone().render_long_help().to_string();
            if let Some(long) = command.get_after_long_help() {
                told.push_str(&long.to_string());
            }
            if !told.contains(&format!("  {path}")) && command.get_name() != "hindcast" {
                missing.push(format!("{path}: an example"));
            }
            for arg in command.get_arguments().filter(|a| !a.is_hide_set()) {
                // Of a choice, what each means says enough.
                let is_choice = arg.get_possible_values().iter().any(|v| v.get_help().is_some());
                if !is_choice && arg.get_help().is_none() && arg.get_long_help().is_none() {
                    missing.push(format!("{path}: what {} is", arg.get_id()));
                }
            }
            for below in command.get_subcommands() {
                look(below, &format!("{path} {}", below.get_name()), missing);
            }
        }
        let mut missing = vec![];
        look(&command_line(), "hindcast", &mut missing);
        assert!(missing.is_empty(), "{}", missing.join("\n"));
    }

    #[test]
    fn a_command_gets_its_examples_from_the_one_above_it() {
        let mut all = command_line();
        let mut help = |group: &str, name: &str| {
            let group = all.find_subcommand_mut(group).unwrap();
            let leaf = group.find_subcommand_mut(name).unwrap();
            leaf.get_after_help().unwrap().to_string()
        };
        let status = help("kafka", "status");
        assert!(
            status.starts_with("Examples:\n  hindcast kafka status\n      which node"),
            "{status}"
        );
        assert!(!status.contains("kafka check"), "{status}");
        assert!(help("cluster", "add").starts_with("Example:"), "its own");
    }
}

//! `hindcast import`: files of other tools, into a cluster.

use super::{Client, Done, Failure, Output};
use crate::agent::Endpoints;
use crate::import::{self, Format, ImportConfig, ImportError, when};
use hindcast_ingest::tsdb::Tally;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Between two lines about how far it is, where no bar is drawn.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// Backfill from files. `--endpoint` takes several addresses, separated by commas.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  hindcast import --format openmetrics metrics.txt
  hindcast import --format csv --metric room_temperature --label site=seoul rooms.csv
  hindcast import --format jsonl --resource host.name=web-1 app.jsonl
  hindcast import --format tsdb /var/lib/prometheus
      begun again after an interruption, it goes on where it ended")]
pub struct ImportArgs {
    #[command(flatten)]
    pub client: Client,
    /// What the files are.
    #[arg(long, value_enum)]
    pub format: Format,
    /// The metric's name, for CSV.
    #[arg(long, required_if_eq("format", "csv"))]
    pub metric: Option<String>,
    /// A label for all series and streams that do not have it. May be given more than once.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub label: Vec<(String, String)>,
    /// A resource attribute, by its OpenTelemetry name. May be given more than once.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub resource: Vec<(String, String)>,
    /// The time of samples that name none (Unix time or RFC 3339); else the file's time of change.
    #[arg(long, value_name = "TIME", value_parser = time, allow_negative_numbers = true)]
    pub at: Option<i64>,
    /// End at the first line that is not understood.
    #[arg(long)]
    pub strict: bool,
    /// Where progress is kept; else below $XDG_STATE_HOME or ~/.local/state.
    #[arg(long, value_name = "DIR")]
    pub progress_dir: Option<PathBuf>,
    /// Begin anew instead of going on where an earlier import of the same files ended.
    #[arg(long)]
    pub restart: bool,
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    /// Files; of a Prometheus its data directory, or blocks of it.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

fn time(text: &str) -> Result<i64, String> {
    when::time_ms(text).map_err(|e| e.to_string())
}

fn progress_dir() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let state = var("XDG_STATE_HOME").or_else(|| Some(var("HOME")?.join(".local/state")))?;
    Some(state.join("hindcast"))
}

/// Lines on stderr while no bar can be drawn there.
async fn tell_progress(bar: ProgressBar) {
    loop {
        tokio::time::sleep(PROGRESS_INTERVAL).await;
        let (done, all) = (bar.position(), bar.length().unwrap_or_default());
        let share = if all == 0 {
            0.0
        } else {
            100.0 * done as f64 / all as f64
        };
        eprintln!("{share:.1} % of {} read: {}", HumanBytes(all), bar.message());
    }
}

pub async fn run(args: ImportArgs) -> Done {
    let config = ImportConfig {
        format: args.format,
        files: args.files,
        endpoints: Endpoints::parse(&args.client.endpoint).map_err(|e| Failure::usage(e.to_string()))?,
        tls: args.client.tls,
        tenant: args.client.tenant,
        metric: args.metric,
        labels: args.label,
        resource: args.resource,
        at_ms: args.at,
        strict: args.strict,
        progress_dir: args.progress_dir.or_else(progress_dir),
        restart: args.restart,
    };
    // Draws on stderr, and only when that is a terminal.
    let bar = ProgressBar::no_length();
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {eta} {msg}") {
        bar.set_style(style);
    }
    let telling = bar.is_hidden().then(|| tokio::spawn(tell_progress(bar.clone())));
    let done = import::run(&config, &bar).await;
    if let Some(telling) = telling {
        telling.abort();
    }
    bar.finish_and_clear();
    let report = done.map_err(|e| match e {
        ImportError::Unreachable { .. } => Failure::unreachable(e.to_string()),
        ImportError::BadLine { .. } | ImportError::NotTaken { .. } => Failure::no(e.to_string()),
        ImportError::Read { .. } | ImportError::Usage { .. } => Failure::usage(e.to_string()),
    })?;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string(&report).map_err(anyhow::Error::from)?),
        Output::Table => {
            for text in report.found.iter().chain(&report.bad) {
                eprintln!("{text}");
            }
            if report.resumed > 0 {
                println!("went on where an earlier run had ended; these are the numbers of all its runs");
            }
            if let Some(tally) = &report.tsdb {
                println!("{}", of_tsdb(tally));
            }
            println!(
                "{} samples and {} lines confirmed in {} batches from {} files; {} batches known already, {} bad lines, {} refused",
                report.samples_acked,
                report.lines_acked,
                report.batches,
                report.files,
                report.duplicates,
                report.bad_lines,
                report.refused
            );
        }
    }
    // What was given is not what is stored, whatever the reason.
    if report.refused + report.bad_lines + report.damaged > 0 {
        let damaged = match report.damaged {
            0 => String::new(),
            n => format!("{n} places of the files are damaged, "),
        };
        return Err(Failure::no(format!(
            "{damaged}{} lines could not be read, {} samples and lines were refused; all others are stored",
            report.bad_lines, report.refused
        )));
    }
    Ok(ExitCode::SUCCESS)
}

/// What was met in Prometheus' data directories.
fn of_tsdb(tally: &Tally) -> String {
    let mut text = format!(
        "{} blocks and {} series read: {} samples",
        tally.blocks, tally.series, tally.samples
    );
    let mut more = |n: u64, what: &str| {
        if n > 0 {
            text += &format!(", {n} {what}");
        }
    };
    more(tally.histograms, "native histograms");
    more(tally.in_blocks, "samples of the head that blocks have, too");
    more(tally.deleted, "samples that were deleted (left out)");
    more(tally.exemplars, "exemplars (not kept)");
    more(tally.metadata, "descriptions of metrics (not kept)");
    text
}

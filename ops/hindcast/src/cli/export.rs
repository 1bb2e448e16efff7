//! `hindcast export`: a range of a live node's data as Parquet files.

use super::query::{Time, parse_time};
use super::{Client, Done, Failure, Output};
use crate::export::{self, ExportConfig, ExportError, Kind, Precision};
use clap::ValueEnum;
use hindcast_env::Clock;
use hindcast_env::io::SystemClock;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Apache Parquet, packed with zstd, in folders by kind, domain and UTC day.
    Parquet,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Kinds {
    /// Samples and lines.
    #[default]
    All,
    Metrics,
    Logs,
}

// Times as for `hindcast query`.
/// Writes samples and log lines as files for other tools.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  hindcast export --format parquet --from now-1d --out export
  hindcast export --format parquet --kind metrics --match '{job=\"node\"}' --from 2026-11-01T00:00:00Z --to 2026-11-08T00:00:00Z --promote job,instance --out week
  hindcast export --format parquet --kind logs --match '{service_name=\"shop\"}' --from now-6h --out lines -o json

Then, in DuckDB:
  SELECT day, labels['instance'], max(value) FROM 'export/kind=metrics/**/*.parquet' WHERE metric = 'up' GROUP BY ALL")]
pub struct ExportArgs {
    #[arg(long, value_enum)]
    format: Format,
    /// What to export.
    #[arg(long, value_enum, default_value_t)]
    kind: Kinds,
    /// Only what these matchers match. Default: everything of the tenant.
    #[arg(long = "match", value_name = "{…}", default_value = "", hide_default_value = true)]
    selector: String,
    /// From here on …
    #[arg(long, value_parser = parse_time)]
    from: Time,
    /// … up to here, excluded. Default: now.
    #[arg(long, value_parser = parse_time)]
    to: Option<Time>,
    /// The folder to make. It shows up whole, when everything is written.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Replace an earlier export in that folder.
    #[arg(long)]
    overwrite: bool,
    /// Labels that get a column of their own, beside the map of labels: quicker to filter by. Separated by commas.
    #[arg(long, value_name = "LABELS", value_delimiter = ',')]
    promote: Vec<String>,
    /// The unit of the column `ts`.
    #[arg(long, value_enum, default_value_t)]
    timestamps: Precision,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    client: Client,
}

pub async fn run(args: ExportArgs) -> Done {
    let Format::Parquet = args.format;
    let now = SystemClock::new().now();
    let config = ExportConfig {
        kinds: match args.kind {
            Kinds::All => vec![Kind::Metrics, Kind::Logs],
            Kinds::Metrics => vec![Kind::Metrics],
            Kinds::Logs => vec![Kind::Logs],
        },
        selector: args.selector,
        from: args.from.fixed(now),
        to: args.to.map_or(now, |t| t.fixed(now)),
        out: args.out,
        overwrite: args.overwrite,
        promote: args.promote,
        precision: args.timestamps,
    };
    let channel = args.client.connect().await?;
    // Draws on stderr, and only when that is a terminal.
    let bar = ProgressBar::no_length();
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent}% {eta} {msg}") {
        bar.set_style(style);
    }
    let done = tokio::select! {
        done = export::io::run(&config, channel, &bar) => done,
        // What was written so far goes with the future.
        _ = tokio::signal::ctrl_c() => {
            bar.finish_and_clear();
            return Err(Failure::no("interrupted; the target was left as it was"));
        }
    };
    bar.finish_and_clear();
    let report = done.map_err(failure)?;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string(&report).map_err(anyhow::Error::from)?),
        Output::Table => println!(
            "{} samples and {} lines in {} files, {} bytes, in {}",
            report.samples,
            report.lines,
            report.files,
            report.bytes,
            config.out.display()
        ),
    }
    Ok(ExitCode::SUCCESS)
}

fn failure(e: ExportError) -> Failure {
    let message = e.to_string();
    match e {
        ExportError::Usage(_) => Failure::usage(message),
        ExportError::Incomplete(_) => Failure::unreachable(message),
        ExportError::Server(status) => Failure {
            message,
            ..Failure::from(status)
        },
        ExportError::File { .. } | ExportError::Parquet { .. } => Failure::no(message),
    }
}

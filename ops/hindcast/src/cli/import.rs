//! `hindcast import`: files of other tools, into a cluster.

use super::{Client, Done, Failure, Output};
use crate::agent::Endpoints;
use crate::import::{self, Format, ImportConfig, ImportError, when};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;
use std::process::ExitCode;

/// Backfill from files. `--endpoint` takes several addresses, separated by commas.
#[derive(Clone, Debug, clap::Args)]
pub struct ImportArgs {
    #[command(flatten)]
    pub client: Client,
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
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
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
    };
    // Draws on stderr, and only when that is a terminal.
    let bar = ProgressBar::no_length();
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {eta} {msg}") {
        bar.set_style(style);
    }
    let done = import::run(&config, &bar).await;
    bar.finish_and_clear();
    let report = done.map_err(|e| match e {
        ImportError::Unreachable { .. } => Failure::unreachable(e.to_string()),
        ImportError::BadLine { .. } => Failure::no(e.to_string()),
        ImportError::Read { .. } | ImportError::Usage { .. } => Failure::usage(e.to_string()),
    })?;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string(&report).map_err(anyhow::Error::from)?),
        Output::Table => {
            for bad in &report.bad {
                eprintln!("{bad}");
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
    if report.refused + report.bad_lines > 0 {
        return Err(Failure::no(format!(
            "{} lines could not be read, {} samples and lines were refused; all others are stored",
            report.bad_lines, report.refused
        )));
    }
    Ok(ExitCode::SUCCESS)
}

//! `hindcast-bench`.

use clap::Parser;
use hindcast_bench::cli::{Cli, Command};
use hindcast_bench::io;
use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Ingest(args) => io::ingest::run(args).await,
        Command::Query(args) => io::query::run(args).await,
    };
    done.unwrap_or_else(|e| {
        eprintln!("hindcast-bench: {e:#}");
        ExitCode::FAILURE
    })
}

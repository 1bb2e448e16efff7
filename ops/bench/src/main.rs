//! `hindcast-bench`.

use clap::Parser;
use hindcast_bench::cli::{Cli, Command};
use hindcast_bench::io;
use std::process::ExitCode;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Ingest(args) => io::ingest::run(args).await,
        Command::Query(args) => io::query::run(args).await,
    }
}

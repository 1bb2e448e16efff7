//! Chores of the project: `cargo xtask tidy`, `cargo xtask prove`.

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use xtask::{prove, tidy};

#[derive(Parser)]
#[command(
    about = "Chores of the project",
    after_help = "Examples:\n  cargo xtask tidy\n  cargo xtask prove\n  cargo xtask prove chaos --rounds 100\n  cargo xtask prove fuzz --seconds 60"
)]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Checks folder order and purity of the sources; also part of `cargo test`.
    Tidy,
    /// Runs the long proofs and prints a summary; all of them take about an hour on two cores.
    Prove {
        /// Only the proof of this name; `list` names them.
        level: Option<String>,
        /// Time for each fuzz target [default: 5].
        #[arg(long)]
        seconds: Option<u64>,
        /// Rounds of power cuts, with one node and with three [default: 20].
        #[arg(long)]
        rounds: Option<u64>,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    match Args::parse().chore {
        Chore::Tidy => {
            let findings = tidy::check(&tidy::read_tree(&tidy::root())?);
            for f in &findings {
                eprintln!("{f}");
            }
            println!("{}", if findings.is_empty() { "tidy" } else { "not tidy" });
            Ok(if findings.is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
        Chore::Prove { level, seconds, rounds } => {
            let lengths = prove::Lengths {
                fuzz_seconds: seconds,
                rounds,
            };
            prove::run(level.as_deref(), lengths)
        }
    }
}

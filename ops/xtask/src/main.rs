//! Chores of the project: `cargo xtask tidy`, `cargo xtask prove`.

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use xtask::{prove, tidy};

#[derive(Parser)]
#[command(
    about = "Chores of the project",
    after_help = "Examples:\n  cargo xtask tidy\n  cargo xtask prove\n  cargo xtask prove chaos"
)]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Checks folder order and purity of the sources; also part of `cargo test`.
    Tidy,
    /// Runs the long proofs and prints a summary; takes minutes.
    Prove {
        /// Only the proof of this name; `list` names them.
        level: Option<String>,
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
        Chore::Prove { level } => prove::run(level.as_deref()),
    }
}

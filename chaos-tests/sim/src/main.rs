//! `sim`: runs seeds of the simulator, one again with its trace, or the proof that planted bugs are found.

use clap::Parser;
use hindcast_env::planted::Bug;
use hindcast_env::reached::Mark;
use hindcast_sim::Plan;
use hindcast_sim::campaign::{Budget, Outcome, hunt, run_guarded, seed_of_commit};
use std::process::ExitCode;
use std::time::Duration;

/// One seed of some hundred comes by these: three minutes on a busy machine may miss them. They are told all the same.
const RARE: [Mark; 1] = [Mark::RemovedSteppedDown];

/// `cargo test` begins at the seed of the commit, and never comes so far.
const BESIDE_TESTS: u64 = 1 << 20;

/// Simulates whole clusters from seeds and checks what they promise.
#[derive(Parser)]
#[command(after_help = "Examples:
  sim --seeds 1000              a thousand seeds, from the first one
  sim --minutes 30 --from 77    as many as fit into half an hour
  HINDCAST_SEED=42 sim          one seed, with everything that happens in it
  sim --planted                 every planted bug must be found (needs --features planted-bugs)")]
struct Cli {
    /// One seed, run with its trace.
    #[arg(long, env = "HINDCAST_SEED")]
    seed: Option<u64>,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Begins at a seed of this commit: other seeds for each, the same ones for all who look at it, and not those of `cargo test`.
    #[arg(long, conflicts_with = "from")]
    of_commit: bool,
    /// How many seeds.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// Ends after so many minutes, whatever is left.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Fails when fewer seeds a minute were run.
    #[arg(long, default_value_t = 0)]
    rate_min: u64,
    /// Fails when a place that a campaign must come by was never reached.
    #[arg(long)]
    reach_all: bool,
    /// Runs until stopped or until a seed fails, for at most so many hours.
    #[arg(long, value_name = "HOURS")]
    soak: Option<u64>,
    /// Seeds at the same time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Switches each planted bug on and asks for a seed that finds it; or one of them.
    #[arg(long, value_name = "BUG", num_args = 0..=1, default_missing_value = "all")]
    planted: Option<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(seed) = cli.seed {
        return one(seed);
    }
    let budget = Budget {
        first: if cli.of_commit {
            seed_of_commit() + BESIDE_TESTS
        } else {
            cli.from
        },
        seeds: cli.soak.map_or(cli.seeds, |_| u64::MAX),
        time: Duration::from_secs(cli.soak.map_or(60 * cli.minutes, |h| 3600 * h)),
        seeds_min: 0,
        jobs: cli.jobs,
    };
    match &cli.planted {
        Some(which) => planted(which, budget),
        None => told(&hunt(&hindcast_sim::kept_seeds(), budget, None, true), &cli),
    }
}

fn one(seed: u64) -> ExitCode {
    let plan = Plan::draw(seed);
    println!("{plan:#?}");
    let report = run_guarded(plan, true);
    println!("{:#?}", report.counts);
    match report.violation {
        None => {
            println!("seed {seed}: everything holds; fingerprint {:016x}", report.fingerprint);
            ExitCode::SUCCESS
        }
        Some(why) => {
            println!("seed {seed} FAILS: {why}");
            ExitCode::FAILURE
        }
    }
}

fn told(outcome: &Outcome, cli: &Cli) -> ExitCode {
    let seconds = outcome.took.as_secs_f64();
    let rate = outcome.runs as f64 * 60.0 / seconds;
    println!("{} seeds in {seconds:.1} s, {rate:.0} a minute", outcome.runs);
    println!("{:#?}", outcome.counts);
    for mark in Mark::ALL {
        println!("{:>10} {mark:?}", outcome.reached.times(*mark));
    }
    let Some(failure) = &outcome.failure else {
        let (is_slow, missed) = (rate < cli.rate_min as f64, outcome.reached.missed());
        if is_slow {
            println!("TOO SLOW: fewer than {} seeds a minute", cli.rate_min);
        }
        let misses = cli.reach_all && missed.iter().any(|m| !RARE.contains(m));
        if cli.reach_all && !missed.is_empty() {
            println!("NEVER REACHED: {missed:?}; see hindcast_env::reached for what they are");
        }
        return ExitCode::from(u8::from(is_slow || misses));
    };
    failure.report.trace.iter().for_each(|line| println!("{line}"));
    println!("with the faults only that it needs: {:#?}", failure.simplest);
    println!("FAILS: {}", failure.report.violation.as_deref().unwrap_or_default());
    println!("{}", failure.command());
    ExitCode::FAILURE
}

fn planted(which: &str, budget: Budget) -> ExitCode {
    if !cfg!(feature = "planted-bugs") {
        eprintln!("this program was built without planted bugs; build it with --features planted-bugs");
        return ExitCode::from(2);
    }
    // Some bugs end in panics, again and again while their seed is made simpler; each is told below.
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = vec![];
    for bug in Bug::ALL.iter().filter(|b| which == "all" || b.as_str() == which) {
        let budget = Budget {
            seeds: bug.seeds_max(),
            ..budget
        };
        let outcome = hunt(&[], budget, Some(*bug), false);
        let took = outcome.took.as_secs_f64();
        match &outcome.failure {
            Some(f) => println!(
                "{:<28} found after {:>5} seeds, {took:>5.1} s: {}",
                bug.as_str(),
                outcome.runs,
                f.report.violation.as_deref().unwrap_or_default()
            ),
            None => {
                println!("{:<28} NOT FOUND in {} seeds, {took:.1} s", bug.as_str(), outcome.runs);
                missed.push(bug.as_str());
            }
        }
    }
    if missed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

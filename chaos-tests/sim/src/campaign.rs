//! Many seeds one after the other, on several threads; what fails is made simpler before it is told.

#![allow(
    clippy::disallowed_methods,
    reason = "a campaign measures its own time; what runs in a seed has virtual time"
)]

use crate::check::Counts;
use crate::plan::Plan;
use crate::world::{Report, run};
use hindcast_env::buggify::Point;
use hindcast_env::planted::{self, Bug};
use hindcast_env::reached::Reached;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How often a long campaign says how far it is.
const TOLD_EVERY: Duration = Duration::from_secs(20);

/// Other seeds for each commit; the same ones for all who look at it. The first one where there is no commit.
pub fn seed_of_commit() -> u64 {
    let head = Command::new("git").args(["rev-parse", "HEAD"]).output();
    let head = head
        .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
        .unwrap_or_default();
    u64::from_str_radix(head.get(..12).unwrap_or("1"), 16).unwrap_or(1)
}

/// When a campaign ends, if nothing fails before.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    pub first: u64,
    pub seeds: u64,
    pub time: Duration,
    /// So many run also when the time is over: a busy machine makes a campaign longer, not emptier.
    pub seeds_min: u64,
    pub jobs: usize,
}

#[derive(Debug, Default)]
pub struct Outcome {
    pub runs: u64,
    pub counts: Counts,
    pub reached: Reached,
    pub failure: Option<Failure>,
    pub took: Duration,
}

#[derive(Debug)]
pub struct Failure {
    pub report: Report,
    /// With the faults only that the failure needs.
    pub simplest: Plan,
}

impl Failure {
    /// How to see it again.
    pub fn command(&self) -> String {
        format!("HINDCAST_SEED={} cargo run --release -p hindcast-sim", self.report.seed)
    }
}

/// One seed; a panic is a violation like any other.
pub fn run_guarded(plan: Plan, verbose: bool) -> Report {
    let seed = plan.seed;
    catch_unwind(AssertUnwindSafe(|| run(plan, verbose))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Report {
            seed,
            violation: Some(format!("a panic: {}", text.unwrap_or_default())),
            counts: Counts::default(),
            reached: Reached::default(),
            trace: vec![],
            fingerprint: 0,
        }
    })
}

struct Progress {
    outcome: Outcome,
    told: Instant,
}

fn lock(progress: &Mutex<Progress>) -> MutexGuard<'_, Progress> {
    progress.lock().expect("nothing panics while it holds this")
}

/// Runs the given seeds, then fresh ones, until the budget is spent or one fails. `bug` is switched on meanwhile.
pub fn hunt(kept: &[u64], budget: Budget, bug: Option<Bug>, tell: bool) -> Outcome {
    let began = Instant::now();
    let (next, found) = (AtomicU64::new(0), AtomicBool::new(false));
    let progress = Mutex::new(Progress {
        outcome: Outcome::default(),
        told: began,
    });
    let work = || {
        let _on = bug.map(planted::switch_on);
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let is_late = n >= budget.seeds_min && began.elapsed() >= budget.time;
            if n >= budget.seeds || is_late || found.load(Ordering::Relaxed) {
                return;
            }
            let fresh = || budget.first.wrapping_add(n - kept.len() as u64);
            let plan = Plan::draw(kept.get(n as usize).copied().unwrap_or_else(fresh));
            let report = run_guarded(plan.clone(), false);
            let failed = report.violation.is_some();
            let is_first = failed && !found.swap(true, Ordering::Relaxed);
            let failure = is_first.then(|| Failure {
                simplest: simplified(plan),
                report: report.clone(),
            });
            let mut p = lock(&progress);
            p.outcome.runs += 1;
            p.outcome.counts.add(&report.counts);
            p.outcome.reached.add(&report.reached);
            p.outcome.failure = p.outcome.failure.take().or(failure);
            if tell && p.told.elapsed() >= TOLD_EVERY {
                p.told = Instant::now();
                eprintln!(
                    "{} seeds in {} s, none fails",
                    p.outcome.runs,
                    began.elapsed().as_secs()
                );
            }
        }
    };
    std::thread::scope(|scope| (0..budget.jobs.max(1)).for_each(|_| drop(scope.spawn(work))));
    let mut outcome = progress
        .into_inner()
        .expect("nothing panics while it holds this")
        .outcome;
    outcome.took = began.elapsed();
    outcome
}

/// Takes faults out as long as the run still fails.
fn simplified(mut plan: Plan) -> Plan {
    let without: [fn(&mut Plan); 21] = [
        |p| p.loss = 0,
        |p| p.duplicates = 0,
        |p| p.late = 0,
        |p| p.partition_every = 0,
        |p| p.one_way = false,
        |p| p.crash_every = 0,
        |p| p.all_crash = false,
        |p| p.pause_every = 0,
        |p| p.transfer_every = 0,
        |p| (p.change_every, p.spare) = (0, false),
        |p| (p.clock_off, p.clock_steps) = (0, false),
        |p| p.sync_errors_every = 0,
        |p| p.full_every = 0,
        |p| p.wipe_every = 0,
        |p| p.rot_every = 0,
        |p| p.log_rot_every = 0,
        |p| p.bad_reads = 0,
        |p| p.keep = 0,
        |p| p.receiver_errors = 0,
        |p| p.older = 0,
        |p| p.bends.clear(),
    ];
    let mut try_without = |take_out: &dyn Fn(&mut Plan)| {
        let mut simpler = plan.clone();
        take_out(&mut simpler);
        if run_guarded(simpler.clone(), false).violation.is_some() {
            plan = simpler;
        }
    };
    without.iter().for_each(|take_out| try_without(take_out));
    for point in Point::ALL {
        try_without(&|p| p.bends.retain(|(of, _)| *of != point));
    }
    plan
}

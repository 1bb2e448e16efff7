//! When a shard looks for what to do with its cold store, and how long it waits after a failure.
//!
//! Decides the times; what is done is the shard's business (`Shard::begin_cold`), and where, a thread's: work with the
//! store waits for a network and never runs where entries are applied. One piece of work of a shard at a time.

use hindcast_model::{SpanNs, TimestampNs};
use hindcast_storage::{ColdDone, Shard, StorageError};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

/// How often a shard that has nothing to move looks again.
const LOOK_SPAN: SpanNs = SpanNs::from_secs(5);
/// The pause after a failure; doubled with each further one.
const FAILED_PAUSE: SpanNs = SpanNs::from_secs(5);
const FAILED_PAUSE_MAX: SpanNs = SpanNs::from_secs(300);

/// Where work runs that may wait.
pub trait Jobs: Send + Sync {
    fn run(&self, job: Box<dyn FnOnce() + Send>);
}

/// One shard's work with the cold store.
pub struct Moves {
    jobs: Arc<dyn Jobs>,
    /// Of the job that is under way.
    done: Option<Receiver<ColdDone>>,
    look_after: SpanNs,
    failures: u32,
}

impl Moves {
    pub fn new(jobs: Arc<dyn Jobs>) -> Self {
        Self {
            jobs,
            done: None,
            look_after: SpanNs::ZERO,
            failures: 0,
        }
    }

    /// To be called now and then: takes what came of the last job, and begins another.
    pub fn step(&mut self, shard: &mut Shard, monotonic: SpanNs, now: TimestampNs) -> Result<(), StorageError> {
        if let Some(done) = &self.done {
            match done.try_recv() {
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => {
                    shard.abandon_cold();
                    self.failed(monotonic);
                    tracing::error!("work with the cold store ended without an answer; it is tried again");
                }
                Ok(answer) => self.finish(shard, answer, monotonic)?,
            }
            self.done = None;
        }
        if monotonic < self.look_after {
            return Ok(());
        }
        let Some(job) = shard.begin_cold(now) else {
            self.look_after = SpanNs(monotonic.0.saturating_add(LOOK_SPAN.0));
            return Ok(());
        };
        let (tell, told) = sync_channel(1);
        self.done = Some(told);
        self.jobs.run(Box::new(move || {
            // Who asked may have ended.
            let _ = tell.send(job.run());
        }));
        Ok(())
    }

    fn finish(&mut self, shard: &mut Shard, answer: ColdDone, monotonic: SpanNs) -> Result<(), StorageError> {
        self.done = None;
        let report = match shard.finish_cold(answer) {
            Ok(report) => report,
            Err(e) => {
                self.failed(monotonic);
                return Err(e);
            }
        };
        if report.moved_bytes > 0 {
            tracing::debug!(bytes = report.moved_bytes, "a file went to the cold store");
        }
        match report.failed {
            Some(why) => {
                self.failed(monotonic);
                let pause = SpanNs(self.look_after.0 - monotonic.0);
                tracing::warn!("{why}; it is tried again in {pause}");
            }
            // There may be more of it.
            None => (self.failures, self.look_after) = (0, SpanNs::ZERO),
        }
        Ok(())
    }

    fn failed(&mut self, monotonic: SpanNs) {
        let pause = pause_after(self.failures);
        self.failures = self.failures.saturating_add(1);
        self.look_after = SpanNs(monotonic.0.saturating_add(pause.0));
    }
}

fn pause_after(failures: u32) -> SpanNs {
    let doubled = FAILED_PAUSE.0.saturating_mul(1 << failures.min(16));
    SpanNs(doubled.min(FAILED_PAUSE_MAX.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use hindcast_env::{ColdTier, SimCold, SimDisk};
    use hindcast_model::{Labels, Owner, Sample, SeriesBlock, TenantId};
    use hindcast_storage::{Cold, ColdRule, ShardConfig};
    use parking_lot::Mutex;
    use std::fmt::Write as _;

    /// Work that is done when the test says so.
    #[derive(Default)]
    struct Held(Mutex<Vec<Box<dyn FnOnce() + Send>>>);

    impl Jobs for Held {
        fn run(&self, job: Box<dyn FnOnce() + Send>) {
            self.0.lock().push(job);
        }
    }

    /// A shard with two old files: what its work comes to, line by line. `N` steps at second N; `run` does the work that
    /// waits, `die` drops it; `away` and `back` are the store's.
    fn check(script: &str, expected: Expect) {
        let (disk, store, jobs) = (SimDisk::new(), SimCold::default(), Arc::new(Held::default()));
        let rule = ColdRule {
            tenant: None,
            domain: None,
            after: Some(SpanNs::from_secs(10)),
        };
        let tier = ColdTier::new(Arc::new(store.clone()), 1 << 20);
        let config = ShardConfig {
            cold: Some(Cold::new(tier, "c/node-1/shard-1".to_owned(), vec![rule])),
            ..ShardConfig::default()
        };
        let (mut shard, _) = Shard::open(Arc::new(disk), "s", config).unwrap();
        for (index, tenant) in (1..).zip(["a", "b"]) {
            let block = SeriesBlock {
                labels: Labels::from_pairs([("__name__", "up")]),
                owner: Owner::None,
                samples: vec![Sample {
                    at: TimestampNs::from_secs(1),
                    value: 1.0,
                }],
            };
            shard.write(index, &TenantId::new(tenant).unwrap(), &[block], &[]);
            shard.advance(index);
        }
        shard.flush(b"").unwrap();
        while shard.compact_fully().unwrap().is_some() {}
        let mut moves = Moves::new(jobs.clone());
        let mut told = String::new();
        for line in script.split_whitespace() {
            match line {
                "run" => std::mem::take(&mut *jobs.0.lock()).into_iter().for_each(|job| job()),
                "die" => jobs.0.lock().clear(),
                "away" => store.fail_after(0, false),
                "back" => store.heal(),
                second => {
                    let now = SpanNs::from_secs(second.parse().unwrap());
                    moves.step(&mut shard, now, TimestampNs::from_secs(100)).unwrap();
                }
            }
            let stats = shard.stats();
            let _ = writeln!(
                told,
                "{line:<4} {} waiting, {} of {} cold, {} failures, nothing before {}",
                jobs.0.lock().len(),
                stats.cold_segments,
                stats.segments,
                stats.cold.failures,
                moves.look_after,
            );
        }
        expected.assert_eq(&told);
    }

    #[test]
    fn one_piece_of_work_at_a_time_and_never_here() {
        check(
            "0 0 run 1 1 run 1 run 2 run 2 2 6 8",
            expect![[r#"
                0    1 waiting, 0 of 2 cold, 0 failures, nothing before 0s
                0    1 waiting, 0 of 2 cold, 0 failures, nothing before 0s
                run  0 waiting, 0 of 2 cold, 0 failures, nothing before 0s
                1    1 waiting, 0 of 2 cold, 0 failures, nothing before 0s
                1    1 waiting, 0 of 2 cold, 0 failures, nothing before 0s
                run  0 waiting, 0 of 2 cold, 0 failures, nothing before 0s
                1    1 waiting, 1 of 2 cold, 0 failures, nothing before 0s
                run  0 waiting, 1 of 2 cold, 0 failures, nothing before 0s
                2    0 waiting, 2 of 2 cold, 0 failures, nothing before 7s
                run  0 waiting, 2 of 2 cold, 0 failures, nothing before 7s
                2    0 waiting, 2 of 2 cold, 0 failures, nothing before 7s
                2    0 waiting, 2 of 2 cold, 0 failures, nothing before 7s
                6    0 waiting, 2 of 2 cold, 0 failures, nothing before 7s
                8    0 waiting, 2 of 2 cold, 0 failures, nothing before 13s
            "#]],
        );
    }

    #[test]
    fn failures_are_waited_out_longer_and_longer() {
        check(
            "away 0 run 1 4 6 run 7 16 17 run 18 back 38 run 39 run 40 run 41",
            expect![[r#"
                away 0 waiting, 0 of 2 cold, 0 failures, nothing before 0s
                0    1 waiting, 0 of 2 cold, 0 failures, nothing before 0s
                run  0 waiting, 0 of 2 cold, 0 failures, nothing before 0s
                1    0 waiting, 0 of 2 cold, 1 failures, nothing before 6s
                4    0 waiting, 0 of 2 cold, 1 failures, nothing before 6s
                6    1 waiting, 0 of 2 cold, 1 failures, nothing before 6s
                run  0 waiting, 0 of 2 cold, 1 failures, nothing before 6s
                7    0 waiting, 0 of 2 cold, 2 failures, nothing before 17s
                16   0 waiting, 0 of 2 cold, 2 failures, nothing before 17s
                17   1 waiting, 0 of 2 cold, 2 failures, nothing before 17s
                run  0 waiting, 0 of 2 cold, 2 failures, nothing before 17s
                18   0 waiting, 0 of 2 cold, 3 failures, nothing before 38s
                back 0 waiting, 0 of 2 cold, 3 failures, nothing before 38s
                38   1 waiting, 0 of 2 cold, 3 failures, nothing before 38s
                run  0 waiting, 0 of 2 cold, 3 failures, nothing before 38s
                39   1 waiting, 0 of 2 cold, 3 failures, nothing before 0s
                run  0 waiting, 0 of 2 cold, 3 failures, nothing before 0s
                40   1 waiting, 1 of 2 cold, 3 failures, nothing before 0s
                run  0 waiting, 1 of 2 cold, 3 failures, nothing before 0s
                41   0 waiting, 2 of 2 cold, 3 failures, nothing before 46s
            "#]],
        );
    }

    #[test]
    fn work_that_ends_without_an_answer_is_begun_again() {
        check(
            "0 run 1 die 2 7 run 8 run 9 run 10",
            expect![[r#"
                0    1 waiting, 0 of 2 cold, 0 failures, nothing before 0s
                run  0 waiting, 0 of 2 cold, 0 failures, nothing before 0s
                1    1 waiting, 0 of 2 cold, 0 failures, nothing before 0s
                die  0 waiting, 0 of 2 cold, 0 failures, nothing before 0s
                2    0 waiting, 0 of 2 cold, 1 failures, nothing before 7s
                7    1 waiting, 0 of 2 cold, 1 failures, nothing before 7s
                run  0 waiting, 0 of 2 cold, 1 failures, nothing before 7s
                8    1 waiting, 0 of 2 cold, 1 failures, nothing before 0s
                run  0 waiting, 0 of 2 cold, 1 failures, nothing before 0s
                9    1 waiting, 1 of 2 cold, 1 failures, nothing before 0s
                run  0 waiting, 1 of 2 cold, 1 failures, nothing before 0s
                10   0 waiting, 2 of 2 cold, 1 failures, nothing before 15s
            "#]],
        );
    }

    #[test]
    fn no_pause_is_longer_than_the_longest() {
        let pauses: Vec<u64> = (0..9).map(|f| pause_after(f).0 / 1_000_000_000).collect();
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
        assert_eq!(pause_after(u32::MAX), FAILED_PAUSE_MAX);
    }
}

//! The thread on which all shards of a node do their work with the cold store, one piece after the other: so one upload
//! at a time takes its share of disk and network.

use crate::cold_moves::Jobs;
use hindcast_model::ShardMap;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};

type Job = Box<dyn FnOnce() + Send>;

/// Work that waits: each shard has one piece at most.
const QUEUE_MAX: usize = ShardMap::SHARDS_MAX as usize;

/// Ends with its last handle, after the work that it was given.
pub struct ColdThread(SyncSender<Job>);

impl ColdThread {
    pub fn start() -> std::io::Result<Self> {
        let (give, given) = sync_channel::<Job>(QUEUE_MAX);
        std::thread::Builder::new()
            .name("cold-moves".to_owned())
            .spawn(move || {
                for job in given {
                    // Who waits for its answer sees that none comes.
                    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
                        tracing::error!("work with the cold store panicked");
                    }
                }
            })?;
        Ok(Self(give))
    }
}

impl Jobs for ColdThread {
    fn run(&self, job: Job) {
        match self.0.try_send(job) {
            Ok(()) => {}
            // Dropped, which its shard sees and tries again.
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                tracing::warn!("work with the cold store has to wait");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn work_that_panics_is_not_the_end_of_the_thread() {
        let jobs = ColdThread::start().unwrap();
        let (tell, told) = channel();
        for n in 0..3 {
            let tell = tell.clone();
            jobs.run(Box::new(move || {
                assert!(n != 1, "a bug of ours");
                let _ = tell.send(n);
            }));
        }
        drop(tell);
        assert_eq!(told.iter().collect::<Vec<_>>(), [0, 2]);
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_its_owner_sees_it() {
        let jobs = ColdThread::start().unwrap();
        let (go, gone) = channel::<()>();
        jobs.run(Box::new(move || {
            let _ = gone.recv();
        }));
        let mut told = vec![];
        for n in 0..QUEUE_MAX + 5 {
            let (tell, answer) = channel();
            jobs.run(Box::new(move || {
                let _ = tell.send(n);
            }));
            told.push(answer);
        }
        drop(go);
        let answered = told.iter().filter(|a| a.recv().is_ok()).count();
        // The first may have been taken from the queue already, or not.
        assert!((QUEUE_MAX - 1..=QUEUE_MAX).contains(&answered), "{answered}");
    }
}

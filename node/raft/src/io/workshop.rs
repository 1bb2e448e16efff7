//! Threads for what machines begin and do not wait for: one for flushes, one for merges.
//!
//! Both end when the last worker that hands them work has ended, after what they hold is done.

use crate::machine::{Work, WorkKind};
use std::sync::mpsc::{Receiver, Sender, channel};

/// Clones hand work to the same threads.
#[derive(Clone)]
pub struct Workshop {
    flushes: Sender<Work>,
    merges: Sender<Work>,
}

/// What one of the threads does until no work can come any more.
pub struct Bench(Receiver<Work>);

impl Workshop {
    /// The workshop, and the two benches to be run on threads of their own: flushes, merges.
    pub fn new() -> (Self, Bench, Bench) {
        let (flushes, flush_queue) = channel();
        let (merges, merge_queue) = channel();
        (Self { flushes, merges }, Bench(flush_queue), Bench(merge_queue))
    }

    /// A machine has at most one piece of work of each kind under way, which bounds the queues.
    pub fn take(&self, work: Work) {
        let queue = match work.kind {
            WorkKind::Flush => &self.flushes,
            WorkKind::Merge => &self.merges,
        };
        // A bench is gone only when it panicked, and the node ends then.
        let _ = queue.send(work);
    }
}

impl Bench {
    pub fn run(self) {
        for work in self.0 {
            (work.run)();
        }
    }
}

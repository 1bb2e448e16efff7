//! A piece of work that goes on beside its owner: begun by it, done by whoever comes first, ended by it.
//!
//! Invariants
//! - The work is done once, by the thread it was handed to or by the owner that waits for it.
//! - At most one piece is under way.

use parking_lot::{Condvar, Mutex};
use std::sync::Arc;

enum Slot<D> {
    Idle,
    Waiting(Box<dyn FnOnce() -> D + Send>),
    Running,
    Done(D),
    /// It panicked.
    Lost,
}

struct Shared<D> {
    slot: Mutex<Slot<D>>,
    ended: Condvar,
}

/// The owner's side.
pub struct Beside<D>(Arc<Shared<D>>);

impl<D> Default for Beside<D> {
    fn default() -> Self {
        Self(Arc::new(Shared {
            slot: Mutex::new(Slot::Idle),
            ended: Condvar::new(),
        }))
    }
}

impl<D: Send + 'static> Beside<D> {
    pub fn is_idle(&self) -> bool {
        matches!(*self.0.slot.lock(), Slot::Idle)
    }

    /// What is returned does the work, unless the owner did so by then.
    ///
    /// # Panics
    /// When work is under way.
    pub fn begin(&self, work: impl FnOnce() -> D + Send + 'static) -> Box<dyn FnOnce() + Send> {
        let mut slot = self.0.slot.lock();
        assert!(matches!(*slot, Slot::Idle), "one piece of work at a time");
        *slot = Slot::Waiting(Box::new(work));
        drop(slot);
        let shared = self.0.clone();
        Box::new(move || shared.run())
    }

    /// What the work came to, once.
    ///
    /// # Panics
    /// When the work did.
    pub fn take(&self) -> Option<D> {
        let mut slot = self.0.slot.lock();
        match std::mem::replace(&mut *slot, Slot::Idle) {
            Slot::Done(done) => Some(done),
            Slot::Lost => panic!("work beside the applies has panicked"),
            other => {
                *slot = other;
                None
            }
        }
    }

    /// As `take`, after the end of the work; does it here when nobody has begun. `None`: there is none.
    pub fn wait(&self) -> Option<D> {
        self.0.run();
        let mut slot = self.0.slot.lock();
        while matches!(*slot, Slot::Running) {
            self.0.ended.wait(&mut slot);
        }
        drop(slot);
        self.take()
    }
}

impl<D> Shared<D> {
    fn run(&self) {
        let mut slot = self.slot.lock();
        let work = match std::mem::replace(&mut *slot, Slot::Running) {
            Slot::Waiting(work) => work,
            other => {
                *slot = other;
                return;
            }
        };
        drop(slot);
        let mut ending = Ending {
            shared: self,
            done: None,
        };
        ending.done = Some(work());
    }
}

/// Tells the owner of the end, also when it is a panic.
struct Ending<'a, D> {
    shared: &'a Shared<D>,
    done: Option<D>,
}

impl<D> Drop for Ending<'_, D> {
    fn drop(&mut self) {
        *self.shared.slot.lock() = self.done.take().map_or(Slot::Lost, Slot::Done);
        self.shared.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn who_comes_first_does_the_work_and_the_owner_takes_its_end_once() {
        let beside = Beside::default();
        let times = Arc::new(AtomicU32::new(0));
        for handed_first in [true, false] {
            let counted = times.clone();
            let run = beside.begin(move || counted.fetch_add(1, Ordering::SeqCst));
            assert!(!beside.is_idle() && beside.take().is_none(), "it was only begun");
            let ended = if handed_first {
                run();
                beside.take()
            } else {
                let ended = beside.wait();
                run();
                ended
            };
            assert_eq!(ended, Some(u32::from(!handed_first)));
            assert!(beside.is_idle() && beside.wait().is_none());
        }
        assert_eq!(times.load(Ordering::SeqCst), 2);
    }

    #[test]
    #[should_panic(expected = "has panicked")]
    fn an_owner_does_not_wait_for_ever_for_work_that_panicked() {
        let beside = Beside::<()>::default();
        let run = beside.begin(|| panic!("a defect"));
        let handed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        assert!(handed.is_err());
        beside.wait();
    }
}

//! Looks at the disk every second, and tells writers, `/-/ready` and `/metrics` what it saw.

use crate::disk_guard::{DiskGuard, DiskState, reserve_for};
use hindcast_env::disk::DiskResult;
use hindcast_env::{Clock, Disk};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// How often the disk is looked at. A node that takes 300 MB/s fills a third of the default reserve in between.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// What the disk had free when it was last looked at. Clones share it.
#[derive(Clone)]
pub struct DiskWatch(Arc<Inner>);

struct Inner {
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    seen: Mutex<Seen>,
    refused: AtomicU64,
}

struct Seen {
    guard: DiskGuard,
    state: DiskState,
    free: u64,
}

impl DiskWatch {
    /// Looks at the disk for the first time. `reserve`: `None` for what fits its size.
    pub fn new(disk: Arc<dyn Disk>, clock: Arc<dyn Clock>, reserve: Option<u64>) -> DiskResult<Self> {
        let reserve = match reserve {
            Some(bytes) => bytes,
            None => reserve_for(disk.capacity_bytes()?),
        };
        let watch = Self(Arc::new(Inner {
            disk,
            clock,
            seen: Mutex::new(Seen {
                guard: DiskGuard::new(reserve),
                state: DiskState::Open,
                free: 0,
            }),
            refused: AtomicU64::new(0),
        }));
        watch.look()?;
        Ok(watch)
    }

    /// Looks now. What cannot be measured changes nothing.
    pub fn look(&self) -> DiskResult<DiskState> {
        let free = self.0.disk.free_bytes()?;
        let mut seen = self.0.seen.lock();
        let before = seen.state;
        seen.free = free;
        seen.state = seen.guard.see(free, self.0.clock.monotonic());
        match (before, seen.state) {
            (DiskState::Open, DiskState::Refuse { free, reserve }) => {
                tracing::error!(
                    free,
                    reserve,
                    "the disk is almost full: writes are refused, reads go on; free some space, keep less (--retention), or keep less free (--disk-reserve)"
                );
            }
            (DiskState::Refuse { .. }, DiskState::Open) => {
                tracing::info!(free, "the disk has room again: writes are taken");
            }
            _ => {}
        }
        Ok(seen.state)
    }

    pub fn state(&self) -> DiskState {
        self.0.seen.lock().state
    }

    /// As `state`, by a writer: a refusal is counted.
    pub fn admit(&self) -> DiskState {
        let state = self.state();
        if state != DiskState::Open {
            self.0.refused.fetch_add(1, Relaxed);
        }
        state
    }

    pub fn free(&self) -> u64 {
        self.0.seen.lock().free
    }

    pub fn reserve(&self) -> u64 {
        self.0.seen.lock().guard.reserve()
    }

    /// Parts of batches that were refused since the node started.
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Relaxed)
    }

    pub async fn run(self) {
        loop {
            tokio::time::sleep(LOOK_PAUSE).await;
            if let Err(error) = self.look() {
                tracing::warn!(%error, "the disk's free space cannot be measured; what was seen last holds");
            }
        }
    }
}

//! Looks at how much memory this process uses, several times a second, and tells admission and `/metrics` what it saw.

#![allow(
    clippy::disallowed_methods,
    reason = "the kernel tells about a process in files below /proc and /sys, which no Disk stands for"
)]

use crate::memory_guard::{MemoryGuard, Pressure, Work, cgroup_files, limit_for, meminfo_bytes};
use hindcast_env::Clock;
use hindcast_model::SpanNs;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked at while there is plenty, and else.
const LOOK_PAUSE: Duration = Duration::from_millis(250);
const LOOK_PAUSE_CLOSE: Duration = Duration::from_millis(50);
/// A process is at rest while it holds less than this part of its limit for others.
const REST_SHARE: u64 = 64;
/// Heads go to disk at most so often because of memory.
const RELIEF_PAUSE: SpanNs = SpanNs::from_secs(5);

/// Memory as it was last seen. Clones share it.
#[derive(Clone)]
pub struct MemoryWatch(Arc<Inner>);

struct Inner {
    clock: Arc<dyn Clock>,
    seen: Mutex<Seen>,
}

struct Seen {
    guard: MemoryGuard,
    pressure: Pressure,
    used: u64,
    used_max: u64,
    relieved: Option<SpanNs>,
}

/// What this machine, or the control group this process is in, leaves to it.
pub fn limit_default() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let machine = meminfo_bytes(&read("/proc/meminfo"), "MemTotal").unwrap_or(u64::MAX);
    let bounds = cgroup_files(&read("/proc/self/cgroup"));
    let cgroup = bounds.iter().filter_map(|f| read(f).trim().parse().ok()).min();
    limit_for(machine, cgroup)
}

/// Bytes of this process that are in memory.
fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    // Not the pages of the program itself, which the kernel can drop and read again.
    meminfo_bytes(&text, "RssAnon").or_else(|| meminfo_bytes(&text, "VmRSS"))
}

impl MemoryWatch {
    /// `limit`: `None` for what fits the machine.
    pub fn new(clock: Arc<dyn Clock>, limit: Option<u64>) -> Self {
        let watch = Self(Arc::new(Inner {
            clock,
            seen: Mutex::new(Seen {
                guard: MemoryGuard::new(limit.unwrap_or_else(limit_default)),
                pressure: Pressure::Calm,
                used: 0,
                used_max: 0,
                relieved: None,
            }),
        }));
        watch.look(false);
        watch
    }

    /// Looks now; whether heads should go to disk. What cannot be measured changes nothing. `at_rest`: next to nothing is held
    /// for anybody.
    pub fn look(&self, at_rest: bool) -> bool {
        let Some(used) = resident() else { return false };
        let now = self.0.clock.monotonic();
        let mut seen = self.0.seen.lock();
        let before = seen.pressure;
        (seen.used, seen.used_max) = (used, seen.used_max.max(used));
        seen.pressure = seen.guard.see(used, at_rest, now);
        let (pressure, limit) = (seen.pressure, seen.guard.limit());
        if pressure > before {
            tracing::warn!(
                used,
                limit,
                ?pressure,
                "memory is short: some requests are refused until there is room; send less, or raise --memory-limit"
            );
        } else if pressure < before {
            tracing::info!(used, limit, ?pressure, "memory has room again");
        }
        let due = seen
            .relieved
            .is_none_or(|at| now.0.saturating_sub(at.0) >= RELIEF_PAUSE.0);
        let relieve = pressure != Pressure::Calm && due;
        if relieve {
            seen.relieved = Some(now);
        }
        relieve
    }

    pub fn pressure(&self) -> Pressure {
        self.0.seen.lock().pressure
    }

    pub fn admits(&self, work: Work) -> bool {
        self.pressure().admits(work)
    }

    pub fn used(&self) -> u64 {
        self.0.seen.lock().used
    }

    /// The most that was seen since the start.
    pub fn used_max(&self) -> u64 {
        self.0.seen.lock().used_max
    }

    pub fn limit(&self) -> u64 {
        self.0.seen.lock().guard.limit()
    }

    /// Looks again and again; `held` is what is held for somebody, in bytes, `relieve` sends heads to disk.
    pub async fn run(self, held: impl Fn() -> u64 + Send, relieve: impl Fn() + Send) {
        loop {
            if self.look(held() < self.limit() / REST_SHARE) {
                relieve();
            }
            let close = self.used() >= self.limit() / 2;
            tokio::time::sleep(if close { LOOK_PAUSE_CLOSE } else { LOOK_PAUSE }).await;
        }
    }
}

//! The real side: the machine's clock, entropy and file system.

mod fs;
pub mod power_cut;

pub use fs::{FolderLock, RealDisk};
pub use power_cut::PowerCutDisk;

use crate::clock::Clock;
use crate::rng::SeededRng;
use hindcast_model::{SpanNs, TimestampNs};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The machine's clocks.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    started: Instant,
}

impl SystemClock {
    #[allow(clippy::disallowed_methods, reason = "this is the door")]
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "this is the door")]
    fn now(&self) -> TimestampNs {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        TimestampNs(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
    }
    fn monotonic(&self) -> SpanNs {
        SpanNs(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

/// A generator seeded by the operating system.
#[allow(clippy::disallowed_methods, reason = "this is the door")]
pub fn os_rng() -> std::io::Result<SeededRng> {
    use std::io::Read;
    let mut seed = [0; 8];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut seed)?;
    Ok(SeededRng::new(u64::from_le_bytes(seed)))
}

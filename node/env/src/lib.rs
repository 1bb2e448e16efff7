//! The seams to the outside world: clock, randomness, disk, cold store, and their simulated side.
//!
//! Cores take these as traits; the real ones live in `io` and are handed in by `ops/hindcast`.

pub mod buggify;
pub mod clock;
pub mod cold;
pub mod cold_cache;
pub mod cold_tier;
pub mod crash;
pub mod disk;
#[doc(hidden)]
pub mod fuzz;
pub mod io;
pub mod planted;
pub mod reached;
pub mod rng;
pub mod sim_disk;

pub use clock::{Clock, SimClock};
pub use cold::{ColdEntry, ColdError, ColdRef, ColdStore, SimCold};
pub use cold_cache::ColdCache;
pub use cold_tier::ColdTier;
pub use disk::{Disk, DiskError, DiskFile, ReadAt};
pub use rng::{Rng, SeededRng};
pub use sim_disk::SimDisk;

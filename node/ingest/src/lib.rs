//! Adapters that turn each protocol into one batch type.
//!
//! Pure: bytes, limits and the time in; a batch and a list of what was refused out. They hold no opinion about where
//! data goes, and keep no state but two bounded caches that the shell owns: [`OwnerCache`] (labels already seen) and
//! [`DeltaState`](otlp::DeltaState) (running totals of delta counters).
//!
//! Promises
//! - No input panics, and none makes memory grow beyond a named bound: sizes are checked before bytes are decoded.
//! - Whatever is not in the batch is in [`Rejections`], counted exactly, each with a reason; only a request that
//!   cannot be read at all is an [`AdaptError`].
//! - Sample values keep their bits (NaN payloads, staleness markers, infinities, -0). Sample times are floored to
//!   whole milliseconds; times of lines are kept to the nanosecond.

pub mod check;
pub mod decompress;
mod error;
mod identity;
pub mod loki;
pub mod otlp;
pub mod own;
mod owners;
pub mod remote_write;
mod wire;

pub use check::{LimitsContext, Refusal, Rejected, Rejections};
pub use error::{AdaptError, Protocol};
pub use owners::OwnerCache;

use hindcast_model::Batch;

/// A request as the rest of the node sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapted {
    /// What may be stored. Its `id` is set as the protocol says.
    pub batch: Batch,
    /// What may not, and why.
    pub rejected: Rejections,
}

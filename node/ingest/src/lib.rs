//! Adapters that turn each protocol into one batch type.
//!
//! Pure: bytes, limits and the time in; rows and a list of what was refused out. Two forms of rows: an [`Intake`],
//! laid out by shard with ids in place of labels where the local replica knows them ([`Ids`]), for the protocols that
//! carry most; and a [`Batch`] of label sets for the others. State is kept only in bounded tables that the shell owns:
//! [`SeriesCache`] (labels already seen), [`SeriesRefs`](own::SeriesRefs) (a stream's own names for series) and
//! [`DeltaState`](otlp::DeltaState) (running totals of delta counters).
//!
//! Promises
//! - No input panics, and none makes memory grow beyond a named bound: sizes are checked before bytes are decoded.
//! - Whatever is not among the rows is in [`Rejections`], counted exactly, each with a reason; only a request that
//!   cannot be read at all is an [`AdaptError`].
//! - What personal data is in lines is hidden as [`Books`] say, before they are laid out.
//! - Sample values keep their bits (NaN payloads, staleness markers, infinities, -0). Sample times are floored to
//!   whole milliseconds; times of lines are kept to the nanosecond.

pub mod check;
pub mod decompress;
pub mod described;
mod error;
mod exemplars;
#[doc(hidden)]
pub mod fuzz;
pub mod histogram;
mod identity;
pub mod influx;
pub mod intake;
mod known;
pub mod loki;
pub mod new_series;
pub mod otlp;
pub mod own;
mod owners;
pub mod rates;
pub mod records;
pub mod remote_write;
pub mod scraped;
pub mod syslog;
pub mod tenant_limits;
#[cfg(test)]
pub(crate) mod testing;
pub mod traps;
pub mod tsdb;
mod walk;
mod wire;

pub use check::{Bounds, LimitsContext, Refusal, Rejected, Rejections};
pub use described::{Described, Due};
pub use error::{AdaptError, Protocol};
pub use exemplars::{EXEMPLAR_CHARS_MAX, EXEMPLARS_BYTES_MAX, EXEMPLARS_MAX, Exemplar};
pub use intake::{Ids, Intake, Naming};
pub use known::{SERIES_CACHE_BYTES_MAX, SeriesCache};
pub use walk::{Books, Laid, Lessons, Native};

use hindcast_model::Batch;

/// A request as label sets with their rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapted {
    /// What may be stored. Its `id` is set as the protocol says.
    pub batch: Batch,
    /// What may not, and why.
    pub rejected: Rejections,
}

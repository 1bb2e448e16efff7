//! A Prometheus' data directory, read: blocks, the write-ahead logs and the chunks of the head.
//!
//! Begin at [`Walk`]: it goes over everything once and tells it row by row. `index` and `block` read what is compacted,
//! `wal` and `head` what is not yet, `chunk` packed samples. The layouts are those of Prometheus' `tsdb/docs/format`.
//!
//! Pure: files come through [`Disk`](hindcast_env::Disk).
//!
//! Promises
//! - Whatever has a checksum is checked. What does not hold is a [`Damage`] with file and offset; the rest is read on.
//! - Memory is bounded by the names below, however large the directory is: series are read one after the other, and the
//!   series of a write-ahead log in as many passes as their table needs.
//! - A sample of the head that a block holds too is told once when all blocks are whole. Within the head, equal times of a
//!   series may be told twice, with the same value.
//!
//! Times are milliseconds since the Unix epoch, as in the files.

pub(crate) mod block;
pub(crate) mod chunk;
mod decode;
pub(crate) mod head;
pub(crate) mod index;
#[cfg(test)]
mod tests;
pub(crate) mod wal;
mod walk;
mod window;

pub use walk::{Flow, NoWalk, Place, Sink, Tally, Walk};

use std::fmt;

/// What the labels of the series in one pass over a write-ahead log may take.
pub const SERIES_TABLE_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Deletions of one block, or of the head.
pub const TOMBSTONES_MAX: usize = 1_000_000;
/// Entries of one folder that are looked at.
pub const NAMES_MAX: usize = 1_000_000;

/// Something in a file that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file} at byte {offset}: {why}")]
pub struct Damage {
    /// Below the data directory.
    pub file: String,
    pub offset: u64,
    pub why: String,
}

impl Damage {
    fn new(file: &str, offset: u64, why: impl fmt::Display) -> Self {
        Self {
            file: file.to_owned(),
            offset,
            why: why.to_string(),
        }
    }
}

/// What is to be known of a directory besides its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Damage(Damage),
    /// The last file ends within something that was being written: what a killed Prometheus, or a copy of a live one, leaves.
    Torn {
        file: String,
        offset: u64,
        bytes: u64,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damage(damage) => damage.fmt(f),
            Self::Torn { file, offset, bytes } => {
                write!(
                    f,
                    "{file} ends in the middle of a write: {bytes} bytes from byte {offset} on were never confirmed"
                )
            }
        }
    }
}

//! The directory of a shard: every series and stream, its dense id, and the label index that finds it.
//!
//! Pure and replicated: ids are given in the order of first definition in the Raft log, so all replicas give the
//! same. Label sets live here and nowhere else in the shard; log entries, head and segments speak of ids.
//! Definitions are written to files of their own (`FORMAT-index.md`); postings are not stored, they are rebuilt
//! while a file is loaded, which takes less time than reading them would save.

mod directory;
mod file;
mod pattern;
mod postings;
#[cfg(test)]
mod tests;
mod values;

pub use directory::{Catalog, Directory, Series};
pub use postings::Posting;

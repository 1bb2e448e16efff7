//! Files of other tools, read into write requests.
//!
//! Pure here: what a line says ([`openmetrics`], [`csv`], [`jsonl`]), how texts become times ([`when`]), how far an import has come
//! ([`resume`]). [`io`] reads files (also gzipped ones) and Prometheus' data directories, shows progress, sends.
//!
//! Promises
//! - An import that ended early, even by `kill -9`, goes on where it was when it is run again.
//! - A line that is not understood is named by file and line number and counted; the rest of the file is imported.
//! - Equal files with equal options give the same writer and the same batches, so that importing a file again within
//!   the server's dedup window (`limits::DEDUP_SPAN`) stores nothing twice. After it, samples overwrite themselves;
//!   log lines are stored again.

pub mod csv;
pub mod io;
pub mod jsonl;
pub mod openmetrics;
pub mod resume;
pub mod when;

pub use hindcast_scrape::text::{BadLine, float};
pub use io::run;

use crate::agent::Endpoints;
use crate::agent::batcher::Entry;
use hindcast_ingest::tsdb::Tally;
use hindcast_model::Labels;
use std::path::PathBuf;

/// A longer line of a file is a bad line.
pub const INPUT_LINE_BYTES_MAX: usize = 1024 * 1024;
/// Bad lines that are printed; all are counted.
pub const BAD_LINES_SHOWN_MAX: usize = 20;
/// Damaged places that are printed; all are counted.
pub const FOUND_SHOWN_MAX: usize = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Prometheus or OpenMetrics text; pages may be headed by `#T <unix ms>`.
    Openmetrics,
    /// `timestamp,value` with a header or without; more columns become labels.
    Csv,
    /// Log lines: `{"ts": …, "line": "…", "labels": {…}}`.
    Jsonl,
    /// Bodies of Prometheus remote-write requests, sent as they are.
    RemoteWrite,
    /// Data directories of a Prometheus (`--storage.tsdb.path`), or single blocks: blocks, WAL and head.
    Tsdb,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ImportConfig {
    pub format: Format,
    pub files: Vec<PathBuf>,
    pub endpoints: Endpoints,
    pub tls: crate::tls::TlsArgs,
    pub tenant: String,
    /// The metric of a CSV file.
    pub metric: Option<String>,
    /// Put on every series and stream that does not have them.
    pub labels: Vec<(String, String)>,
    /// Resource attributes, by their OpenTelemetry names.
    pub resource: Vec<(String, String)>,
    /// The time of samples that name none, in milliseconds; else the file's own time of change.
    pub at_ms: Option<i64>,
    /// The first bad line ends the import.
    pub strict: bool,
    /// Where progress is kept, so that the same import goes on after an end; `None`: nowhere.
    pub progress_dir: Option<PathBuf>,
    /// What an earlier import left is forgotten.
    pub restart: bool,
}

/// What an import did, counted from the server's answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct ImportReport {
    pub files: u64,
    pub samples_acked: u64,
    pub lines_acked: u64,
    pub batches: u64,
    /// Batches that the server knew already.
    pub duplicates: u64,
    pub retries: u64,
    pub bad_lines: u64,
    /// Samples and lines that the server refused.
    pub refused: u64,
    /// `file:line: why`, the first ones.
    pub bad: Vec<String>,
    /// Times that an earlier run was gone on with.
    pub resumed: u64,
    /// Places of a Prometheus' files that are not as they were written.
    pub damaged: u64,
    /// Damage and ends within a write, the first ones.
    pub found: Vec<String>,
    /// What was met in Prometheus' data directories.
    pub tsdb: Option<Tally>,
}

/// Why an import ended early. What was confirmed until then stays.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("cannot read {file}: {why}")]
    Read { file: String, why: String },
    #[error("{line}; without --strict it would be skipped")]
    BadLine { line: String },
    #[error("no endpoint confirmed a batch: {why}; run the same command again once one answers: it goes on here")]
    Unreachable { why: String },
    #[error("no batch is taken there: {why}; {todo}, then run the same command again")]
    NotTaken { why: String, todo: &'static str },
    #[error("{why}")]
    Usage { why: String },
}

/// What one line of a file says.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// Nothing: a comment, an empty line, a header.
    Nothing,
    /// The lines that follow are of this time.
    PageTime(i64),
    Sample {
        labels: Labels,
        /// `None`: the page's time.
        at_ms: Option<i64>,
        value: f64,
    },
    Line {
        labels: Labels,
        entry: Entry,
    },
}

/// Labels of a line: its own, and those given for all where it has none.
pub fn joined(own: Labels, given: &[(String, String)]) -> Labels {
    if given.iter().all(|(n, _)| own.get(n).is_some()) {
        return own;
    }
    let own = own.iter().map(|(n, v)| (n.to_owned(), v.to_owned()));
    given.iter().cloned().chain(own).collect()
}

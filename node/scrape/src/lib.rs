//! What is scraped, when, by which node, and what a scrape says.
//!
//! Pure: texts of files, bodies of answers, limits and the time in; targets, tasks and rows out. Files and HTTP are the
//! shell's (`hindcast_node::io::servers::scrape`).
//!
//! - [`text`] reads lines and pages of the Prometheus text format and of OpenMetrics.
//! - [`config`] reads a Prometheus configuration, [`relabel`] its rules, [`discovery`] the files of `file_sd_configs`.
//! - [`target`] says what becomes of what was found: targets, and targets that were dropped.
//! - [`pool`] decides which target is due, and which node's it is.
//! - [`scrape`] turns one answer, or its absence, into rows.
//!
//! Promises
//! - A configuration is taken whole or not at all. A setting that is not known or not supported is refused by name.
//! - A target that two nodes scrape has the same times and series at both.
//! - A series that was there in the last scrape and is not in this one gets a staleness marker, once.

pub mod config;
pub mod discovery;
#[doc(hidden)]
pub mod fuzz;
mod pairs;
pub mod pool;
pub mod relabel;
pub mod scrape;
pub mod target;
pub mod text;

pub use config::{ConfigError, Job, ScrapeConfig};
pub use pairs::Pairs;

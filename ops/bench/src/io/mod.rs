//! The door: sockets, clocks, `/proc`.

mod http;
pub mod ingest;
pub mod query;
mod send;

use crate::proc::{Usage, usage};
use anyhow::Context;

/// What the kernel says of a process now.
fn usage_of(pid: &str) -> anyhow::Result<Usage> {
    let read = |file: &str| {
        let path = format!("/proc/{pid}/{file}");
        std::fs::read_to_string(&path).with_context(|| format!("{path}: is the process still there?"))
    };
    usage(&read("stat")?, &read("status")?).with_context(|| format!("/proc/{pid} is not as Linux writes it"))
}

/// Milliseconds since the Unix epoch.
fn now_ms() -> i64 {
    #[allow(clippy::disallowed_methods, reason = "the tool's one wall clock")]
    let now = std::time::SystemTime::now();
    let since = now.duration_since(std::time::SystemTime::UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

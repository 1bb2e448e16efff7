//! What the agent tells about itself, in Prometheus' text format.

use super::queue::{Counts, Queue};
use crate::agent::AgentReport;
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub async fn serve(
    at: SocketAddr,
    queue: Arc<Queue>,
    failures: Arc<AtomicU64>,
    report: watch::Receiver<AgentReport>,
) -> std::io::Result<JoinHandle<()>> {
    let listener = tokio::net::TcpListener::bind(at).await?;
    let page = move || {
        let text = page(&report.borrow(), &queue.counts(), failures.load(Ordering::Relaxed));
        std::future::ready(([(CONTENT_TYPE, "text/plain; version=0.0.4")], text))
    };
    let router = Router::new().route("/metrics", get(page));
    Ok(tokio::spawn(async move {
        if let Err(e) = axum::serve(listener, router).await {
            tracing::warn!(error = %e, "the agent's /metrics ended");
        }
    }))
}

fn page(report: &AgentReport, counts: &Counts, failures: u64) -> String {
    let mut out = String::new();
    let mut row = |name: &str, kind: &str, help: &str, value: u64| {
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
    };
    row(
        "hindcast_agent_samples_confirmed_total",
        "counter",
        "Samples that a node confirmed.",
        report.samples_acked,
    );
    row(
        "hindcast_agent_lines_confirmed_total",
        "counter",
        "Lines that a node confirmed.",
        report.lines_acked,
    );
    row(
        "hindcast_agent_batches_confirmed_total",
        "counter",
        "Batches that a node confirmed.",
        report.batches,
    );
    row(
        "hindcast_agent_send_failures_total",
        "counter",
        "Attempts to send that were not confirmed.",
        failures,
    );
    row(
        "hindcast_agent_dropped_total",
        "counter",
        "Samples and lines that no room was left for, oldest first, or that lay in damaged files.",
        counts.dropped,
    );
    row(
        "hindcast_agent_refused_total",
        "counter",
        "Samples and lines that a node refused for good.",
        report.refused,
    );
    row(
        "hindcast_agent_waiting",
        "gauge",
        "Samples and lines that wait to be sent.",
        counts.waiting,
    );
    row(
        "hindcast_agent_buffer_disk_bytes",
        "gauge",
        "Bytes of files in the buffer's folder.",
        counts.disk_bytes,
    );
    row(
        "hindcast_agent_buffer_disk_batches",
        "gauge",
        "Batches that wait on disk.",
        counts.disk_batches as u64,
    );
    row(
        "hindcast_agent_buffer_memory_bytes",
        "gauge",
        "Bytes of batches that wait in memory.",
        counts.memory_bytes as u64,
    );
    row(
        "hindcast_agent_buffer_memory_batches",
        "gauge",
        "Batches that wait in memory.",
        counts.memory_batches as u64,
    );
    row(
        "hindcast_agent_buffer_write_failures_total",
        "counter",
        "Writes that the buffer's disk did not take.",
        counts.disk_failures,
    );
    row(
        "hindcast_agent_buffer_torn_bytes_total",
        "counter",
        "Bytes of writes that an end had cut short; left out.",
        counts.torn_bytes,
    );
    row(
        "hindcast_agent_buffer_damaged_bytes_total",
        "counter",
        "Bytes of the buffer that did not fit their checksum; left out.",
        counts.damaged_bytes,
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_in_the_list_for_people() {
        let page = page(&AgentReport::default(), &Counts::default(), 3);
        assert!(page.contains("\nhindcast_agent_send_failures_total 3\n"));
        let list = include_str!("../../../METRICS.md");
        for name in page
            .lines()
            .filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next())
        {
            assert!(list.contains(&format!("`{name}`")), "{name} is missing in METRICS.md");
        }
    }
}

//! What the write servers took and refused, by protocol and reason.

use crate::write::Written;
use hindcast_ingest::{Protocol, Refusal, Rejections};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Reasons why whole requests fail.
const FAILURES: [&str; 18] = [
    "malformed",
    "compression",
    "wire_too_large",
    "decoded_too_large",
    "unknown_encoding",
    "unknown_type",
    "sequence_too_old",
    "entry_too_large",
    "queue_full",
    "disk_full",
    "memory_full",
    "overload",
    "too_fast",
    "no_leader",
    "unconfirmed",
    "batch_too_old",
    "bad_tenant",
    "broken_off",
];
const PROTOCOLS: usize = Protocol::ALL.len();
const REFUSALS: usize = Refusal::CODES.len();

#[derive(Default)]
struct OfProtocol {
    requests: AtomicU64,
    samples: AtomicU64,
    lines: AtomicU64,
    duplicates: AtomicU64,
    failed: [AtomicU64; FAILURES.len()],
    refused: [AtomicU64; REFUSALS],
}

/// Counts since the node started.
#[derive(Default)]
pub struct IngestCounters {
    by_protocol: [OfProtocol; PROTOCOLS],
    uncounted_spans: AtomicU64,
    metadata_written: AtomicU64,
    metadata_left_out: AtomicU64,
    exemplars: AtomicU64,
    exemplars_left_out: AtomicU64,
}

/// One counter as `/metrics` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngestSample {
    pub name: &'static str,
    pub labels: Vec<(&'static str, &'static str)>,
    pub value: u64,
}

impl IngestCounters {
    fn of(&self, protocol: Protocol) -> &OfProtocol {
        &self.by_protocol[protocol as usize]
    }

    pub(super) fn taken(&self, protocol: Protocol, written: &Written) {
        let of = self.of(protocol);
        of.requests.fetch_add(1, Relaxed);
        if written.duplicate {
            of.duplicates.fetch_add(1, Relaxed);
        } else {
            of.samples.fetch_add(written.samples, Relaxed);
            of.lines.fetch_add(written.lines, Relaxed);
        }
    }

    /// Samples that were made here, from what a protocol brought.
    pub(super) fn derived(&self, protocol: Protocol, written: &Written) {
        self.of(protocol).samples.fetch_add(written.samples, Relaxed);
    }

    pub(super) fn uncounted_spans(&self, spans: u64) {
        self.uncounted_spans.store(spans, Relaxed);
    }

    pub(super) fn failed(&self, protocol: Protocol, code: &'static str) {
        let of = self.of(protocol);
        of.requests.fetch_add(1, Relaxed);
        if let Some(i) = FAILURES.iter().position(|c| *c == code) {
            of.failed[i].fetch_add(1, Relaxed);
        }
    }

    pub(super) fn refused(&self, protocol: Protocol, rejected: &Rejections) {
        for (code, items) in rejected.by_code() {
            if let Some(i) = Refusal::CODES.iter().position(|c| c == code) {
                self.of(protocol).refused[i].fetch_add(*items, Relaxed);
            }
        }
    }

    /// Descriptions of metrics that were written, and that found no room.
    pub(super) fn metadata(&self, written: u64, left_out: u64) {
        self.metadata_written.fetch_add(written, Relaxed);
        self.metadata_left_out.fetch_add(left_out, Relaxed);
    }

    pub(super) fn exemplars(&self, written: u64, left_out: u64) {
        self.exemplars.fetch_add(written, Relaxed);
        self.exemplars_left_out.fetch_add(left_out, Relaxed);
    }

    /// Every counter that is not zero, and the plain ones in any case, in a fixed order.
    pub fn list(&self) -> Vec<IngestSample> {
        let mut list = vec![];
        let mut add = |name, labels: &[(&'static str, &'static str)], value: &AtomicU64, always: bool| {
            let value = value.load(Relaxed);
            if always || value > 0 {
                let labels = labels.to_vec();
                list.push(IngestSample { name, labels, value });
            }
        };
        for (name, value) in [
            ("hindcast_ingest_metadata_written_total", &self.metadata_written),
            ("hindcast_ingest_metadata_left_out_total", &self.metadata_left_out),
            ("hindcast_ingest_exemplars_written_total", &self.exemplars),
            ("hindcast_ingest_exemplars_left_out_total", &self.exemplars_left_out),
        ] {
            add(name, &[], value, true);
        }
        for protocol in Protocol::ALL {
            let (of, by) = (self.of(protocol), ("protocol", protocol.as_str()));
            add("hindcast_ingest_requests_total", &[by], &of.requests, true);
            add("hindcast_ingest_samples_total", &[by], &of.samples, true);
            add("hindcast_ingest_lines_total", &[by], &of.lines, true);
            add("hindcast_ingest_duplicate_batches_total", &[by], &of.duplicates, true);
            for (code, value) in FAILURES.iter().zip(&of.failed) {
                add(
                    "hindcast_ingest_failed_requests_total",
                    &[by, ("reason", code)],
                    value,
                    false,
                );
            }
            for (code, value) in Refusal::CODES.iter().zip(&of.refused) {
                add(
                    "hindcast_ingest_refused_items_total",
                    &[by, ("reason", code)],
                    value,
                    false,
                );
            }
        }
        add(
            "hindcast_ingest_uncounted_spans_total",
            &[],
            &self.uncounted_spans,
            true,
        );
        list
    }
}

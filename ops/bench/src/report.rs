//! The figures of a run, derived and put into words.
//!
//! Pure. A figure that was not measured is absent, not zero.

use crate::body::Protocol;
use crate::latency::{Latencies, percentile_of};
use crate::proc::Usage;
use serde::Serialize;

/// Points of `per_second` in a report: an hour and a bit.
pub const PER_SECOND_MAX: usize = 4096;

/// What all writers together saw.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub acked: u64,
    pub requests: u64,
    pub retries: u64,
    /// Samples that a server refused; of a remote-write request that was refused in part, all.
    pub refused: u64,
    pub refused_first: Option<String>,
    pub bytes: u64,
    pub latencies: Latencies,
    pub data_from_ms: Option<i64>,
    pub data_to_ms: Option<i64>,
    /// The present was reached before the run's end.
    pub ran_out: bool,
}

impl Tally {
    pub fn note_time(&mut self, at_ms: i64) {
        self.data_from_ms = Some(self.data_from_ms.map_or(at_ms, |t| t.min(at_ms)));
        self.data_to_ms = Some(self.data_to_ms.map_or(at_ms, |t| t.max(at_ms)));
    }

    pub fn add(&mut self, other: Self) {
        self.acked += other.acked;
        self.requests += other.requests;
        self.retries += other.retries;
        self.refused += other.refused;
        self.refused_first = self.refused_first.take().or(other.refused_first);
        self.bytes += other.bytes;
        self.latencies.add(&other.latencies);
        self.ran_out |= other.ran_out;
        for at_ms in [other.data_from_ms, other.data_to_ms].into_iter().flatten() {
            self.note_time(at_ms);
        }
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct IngestReport {
    pub protocol: Protocol,
    pub endpoints: usize,
    pub writers: usize,
    pub series: usize,
    pub samples_per_request: usize,
    pub samples_acked: u64,
    pub samples_refused: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused_first: Option<String>,
    pub requests: u64,
    pub retries: u64,
    pub seconds: f64,
    pub samples_per_second: f64,
    pub wire_mb_per_second: f64,
    pub request_p50_ms: f64,
    pub request_p99_ms: f64,
    pub request_max_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cpu_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<ServerReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_cpu_seconds_per_million: Option<f64>,
    /// Unix milliseconds of the earliest and latest sample.
    pub data_from_ms: Option<i64>,
    pub data_to_ms: Option<i64>,
    /// The made-up times reached the present, so that writers ended early.
    pub ran_out: bool,
    /// Confirmed samples in each whole second of the run.
    pub per_second: Vec<u64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct ServerReport {
    pub pid: u32,
    /// During the run.
    pub cpu_seconds: f64,
    pub rss_mb: f64,
    pub rss_mb_max: f64,
}

/// 0 rather than not-a-number for a run without a single answer.
fn per(amount: f64, of: f64) -> f64 {
    if of > 0.0 { amount / of } else { 0.0 }
}

fn mb(kib: u64) -> f64 {
    kib as f64 * 1024.0 / 1e6
}

pub fn server(pid: u32, before: Usage, after: Usage) -> ServerReport {
    ServerReport {
        pid,
        cpu_seconds: after.cpu_seconds - before.cpu_seconds,
        rss_mb: mb(after.rss_kib),
        rss_mb_max: mb(after.rss_kib_max),
    }
}

/// What a run was, beside what came of it.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub protocol: Protocol,
    pub endpoints: usize,
    pub writers: usize,
    pub series: usize,
    pub samples_per_request: usize,
}

impl IngestReport {
    pub fn new(
        shape: Shape,
        tally: Tally,
        seconds: f64,
        client_cpu_seconds: Option<f64>,
        servers: Vec<ServerReport>,
        per_second: Vec<u64>,
    ) -> Self {
        let ms = |us: u64| us as f64 / 1000.0;
        let cpu: f64 = servers.iter().map(|s| s.cpu_seconds).sum();
        let measured = !servers.is_empty() && tally.acked > 0;
        Self {
            protocol: shape.protocol,
            endpoints: shape.endpoints,
            writers: shape.writers,
            series: shape.series,
            samples_per_request: shape.samples_per_request,
            samples_acked: tally.acked,
            samples_refused: tally.refused,
            refused_first: tally.refused_first,
            requests: tally.requests,
            retries: tally.retries,
            seconds,
            samples_per_second: per(tally.acked as f64, seconds),
            wire_mb_per_second: per(tally.bytes as f64 / 1e6, seconds),
            request_p50_ms: ms(tally.latencies.percentile_us(0.5)),
            request_p99_ms: ms(tally.latencies.percentile_us(0.99)),
            request_max_ms: ms(tally.latencies.us_max()),
            client_cpu_seconds,
            server_cpu_seconds_per_million: measured.then(|| cpu / (tally.acked as f64 / 1e6)),
            servers,
            data_from_ms: tally.data_from_ms,
            data_to_ms: tally.data_to_ms,
            ran_out: tally.ran_out,
            per_second,
        }
    }

    /// One line for a table of results.
    pub fn line(&self) -> String {
        let mut line = format!(
            "{:.0} samples/s acknowledged ({} in {:.1} s), {} series, {} requests of {}, p50 {:.1} ms, p99 {:.1} ms",
            self.samples_per_second,
            self.samples_acked,
            self.seconds,
            self.series,
            self.requests,
            self.samples_per_request,
            self.request_p50_ms,
            self.request_p99_ms,
        );
        if let Some(cpu) = self.client_cpu_seconds {
            line += &format!(", client CPU {cpu:.1} s");
        }
        if let Some(cpu) = self.server_cpu_seconds_per_million {
            line += &format!(", server CPU {cpu:.2} s per million samples");
        }
        if !self.servers.is_empty() {
            let rss: Vec<String> = self.servers.iter().map(|s| format!("{:.0}", s.rss_mb)).collect();
            line += &format!(", server RSS {} MB", rss.join(" + "));
        }
        line += &format!(", {} retries", self.retries);
        if self.samples_refused > 0 {
            line += &format!(", {} samples REFUSED", self.samples_refused);
        }
        if self.ran_out {
            line += ", ended early: its times reached the present";
        }
        line
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct QueryReport {
    pub expr: String,
    pub runs: usize,
    /// The run before the timed ones.
    pub first_ms: f64,
    pub p50_ms: f64,
    pub p95_ms: f64,
    pub min_ms: f64,
    pub max_ms: f64,
    pub series: usize,
    pub answer_bytes: usize,
}

impl QueryReport {
    pub fn new(expr: String, first_us: u64, us: &[u64], series: usize, answer_bytes: usize) -> Self {
        let ms = |us: u64| us as f64 / 1000.0;
        Self {
            expr,
            runs: us.len(),
            first_ms: ms(first_us),
            p50_ms: ms(percentile_of(us, 0.5)),
            p95_ms: ms(percentile_of(us, 0.95)),
            min_ms: ms(percentile_of(us, 0.0)),
            max_ms: ms(percentile_of(us, 1.0)),
            series,
            answer_bytes,
        }
    }

    pub fn line(&self) -> String {
        format!(
            "p50 {:.2} ms, p95 {:.2} ms, first {:.2} ms, {} runs, {} series, {} bytes: {}",
            self.p50_ms, self.p95_ms, self.first_ms, self.runs, self.series, self.answer_bytes, self.expr
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn shape() -> Shape {
        Shape {
            protocol: Protocol::Grpc,
            endpoints: 1,
            writers: 4,
            series: 50_000,
            samples_per_request: 2500,
        }
    }

    fn usage(cpu_seconds: f64, mib: u64) -> Usage {
        Usage {
            cpu_seconds,
            rss_kib: mib * 1000,
            rss_kib_max: mib * 2000,
        }
    }

    #[test]
    fn two_writers_and_two_servers_add_up() {
        let mut tally = Tally::default();
        for n in 1..=2i64 {
            let mut one = Tally {
                acked: 1_000_000,
                requests: 400,
                ..Tally::default()
            };
            (0..400).for_each(|_| one.latencies.note(n as u64 * 4000));
            one.note_time(n * 15_000);
            tally.add(one);
        }
        let servers = vec![
            server(7, usage(1.0, 100), usage(4.0, 200)),
            server(8, usage(0.0, 50), usage(1.0, 100)),
        ];
        let report = IngestReport::new(shape(), tally, 8.0, Some(0.8), servers, vec![]);
        assert_eq!((report.data_from_ms, report.data_to_ms), (Some(15_000), Some(30_000)));
        expect!["250000 samples/s acknowledged (2000000 in 8.0 s), 50000 series, 800 requests of 2500, p50 4.0 ms, p99 8.0 ms, client CPU 0.8 s, server CPU 2.00 s per million samples, server RSS 205 + 102 MB, 0 retries"].assert_eq(&report.line());
    }

    #[test]
    fn a_run_without_an_answer_claims_nothing() {
        let tally = Tally {
            refused: 5,
            ran_out: true,
            ..Tally::default()
        };
        let report = IngestReport::new(shape(), tally, 0.0, None, vec![], vec![]);
        assert_eq!(report.server_cpu_seconds_per_million, None);
        expect!["0 samples/s acknowledged (0 in 0.0 s), 50000 series, 0 requests of 2500, p50 0.0 ms, p99 0.0 ms, 0 retries, 5 samples REFUSED, ended early: its times reached the present"].assert_eq(&report.line());
    }

    #[test]
    fn a_query_in_a_line() {
        let us: Vec<u64> = (1..=15).map(|n| n * 1000).collect();
        expect!["p50 8.00 ms, p95 15.00 ms, first 30.00 ms, 15 runs, 1 series, 70 bytes: sum(up)"]
            .assert_eq(&QueryReport::new("sum(up)".into(), 30_000, &us, 1, 70).line());
    }
}

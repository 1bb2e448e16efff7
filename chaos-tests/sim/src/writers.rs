//! Clients that write batches with unique content, and that know at the end what must be there.

use crate::node::BEGIN;
use hindcast_env::Rng;
use hindcast_model::{
    Batch, BatchId, Labels, LogLine, Owner, Sample, SeriesBlock, StreamBlock, TenantId, TimestampNs, WriterId, resource,
};

/// Series of one batch of one host.
const SERIES: u64 = 3;
const HOSTS: u64 = 5;
/// Batches of one writer stand so far apart.
pub const STEP_MS: i64 = 100;

/// What a batch is made of; everything else follows from it.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub writer: u64,
    pub seq: u64,
    pub hosts: u64,
    pub lines: u64,
    pub long: bool,
}

impl Shape {
    pub fn draw(writer: u64, seq: u64, rng: &mut dyn Rng) -> Self {
        Self {
            writer,
            seq,
            hosts: 1 + rng.below(2),
            lines: rng.below(4),
            long: rng.below(12) == 0,
        }
    }

    pub fn at(&self) -> TimestampNs {
        TimestampNs(BEGIN.0 + (self.seq as i64) * STEP_MS * 1_000_000)
    }

    fn host(&self, n: u64) -> String {
        format!("h{}:9100", (self.seq + n) % HOSTS)
    }

    fn value(&self, host: u64, series: u64) -> f64 {
        (self.writer * 1_000_000 + self.seq * 100 + host * 10 + series) as f64
    }

    fn series(&self, host: u64, series: u64) -> Labels {
        Labels::from_pairs([
            ("__name__", format!("m{series}").as_str()),
            ("instance", &self.host(host)),
            ("job", "node"),
            ("writer", &format!("w{}", self.writer)),
        ])
    }

    fn stream(&self, host: u64) -> Labels {
        Labels::from_pairs([
            ("instance", self.host(host).as_str()),
            ("job", "log"),
            ("writer", &format!("w{}", self.writer)),
        ])
    }

    fn line(&self, host: u64, n: u64) -> String {
        let more = if self.long { "x7 ".repeat(400) } else { String::new() };
        format!("writer {} batch {} host {host} line {n} {more}", self.writer, self.seq)
    }

    pub fn batch(&self) -> Batch {
        let tenant = TenantId::default();
        let mut batch = Batch::new(tenant.clone());
        batch.id = Some(BatchId::Sequenced {
            writer: WriterId::named(&tenant, &format!("w{}", self.writer)),
            seq: self.seq,
        });
        for host in 0..self.hosts {
            for n in 0..SERIES {
                let labels = self.series(host, n);
                let owner = resource::owner(&tenant, &labels, &[]);
                let samples = vec![Sample {
                    at: self.at(),
                    value: self.value(host, n),
                }];
                batch.series.push(SeriesBlock { labels, owner, samples });
            }
            if self.lines > 0 {
                let line = |n| LogLine {
                    at: self.at(),
                    line: self.line(host, n).into(),
                    metadata: vec![],
                };
                batch.streams.push(StreamBlock {
                    labels: self.stream(host),
                    owner: Owner::None,
                    lines: (0..self.lines).map(line).collect(),
                });
            }
        }
        batch
    }

    /// Every sample of it: labels, time, value.
    pub fn samples(&self) -> impl Iterator<Item = (Labels, TimestampNs, u64)> {
        let of_host =
            move |host| (0..SERIES).map(move |n| (self.series(host, n), self.at(), self.value(host, n).to_bits()));
        (0..self.hosts).flat_map(of_host)
    }

    /// Every line of it: labels, time, text.
    pub fn lines(&self) -> impl Iterator<Item = (Labels, TimestampNs, String)> {
        let of_host = move |host| (0..self.lines).map(move |n| (self.stream(host), self.at(), self.line(host, n)));
        (0..self.hosts).flat_map(of_host)
    }
}

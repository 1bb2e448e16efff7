//! Samples and lines, in order of arrival, cut into write requests that no limit refuses.
//!
//! Pure. A request is full at [`BATCH_SAMPLES_MAX`] samples, [`BATCH_LINES_MAX`] lines or about [`BATCH_BYTES_MAX`]
//! bytes. Its sequence counts from 1, so that equal input gives equal requests: what makes a repeated import harmless.

use hindcast_model::{Histogram, Labels};
use hindcast_proto::edge::labels_to_wire;
use hindcast_proto::v1;
use std::collections::BTreeMap;

pub const BATCH_SAMPLES_MAX: usize = 10_000;
pub const BATCH_LINES_MAX: usize = 5_000;
/// Estimated wire bytes; well below what one request may have (`limits::REQUEST_WIRE_BYTES_MAX`), one line included.
pub const BATCH_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Framing of one message or string on the wire, rounded up.
const FRAMING_BYTES: usize = 8;
const POINT_BYTES: usize = 20;

/// One log line on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub at_ns: i64,
    pub line: String,
    pub metadata: Vec<(String, String)>,
}

#[derive(Clone, Debug)]
pub struct Batcher {
    writer: String,
    seq: u64,
    resource: Vec<v1::Label>,
    series: BTreeMap<Labels, Vec<v1::Point>>,
    natives: BTreeMap<Labels, Vec<Vec<u8>>>,
    streams: BTreeMap<Labels, Vec<v1::Line>>,
    samples: usize,
    lines: usize,
    bytes: usize,
}

pub fn label(name: &str, value: &str) -> v1::Label {
    v1::Label {
        name: name.to_owned(),
        value: value.to_owned(),
    }
}

fn labels_bytes(labels: &Labels) -> usize {
    labels.iter().map(|(n, v)| n.len() + v.len() + FRAMING_BYTES).sum()
}

impl Batcher {
    pub fn new(writer: impl Into<String>, resource: &[(String, String)]) -> Self {
        Self::behind(0, writer, resource)
    }

    /// Goes on behind a batch that was cut before.
    pub fn behind(seq: u64, writer: impl Into<String>, resource: &[(String, String)]) -> Self {
        Self {
            writer: writer.into(),
            seq,
            resource: resource.iter().map(|(n, v)| label(n, v)).collect(),
            series: BTreeMap::new(),
            natives: BTreeMap::new(),
            streams: BTreeMap::new(),
            samples: 0,
            lines: 0,
            bytes: 0,
        }
    }

    /// Takes a sample; gives the request that it filled.
    pub fn sample(&mut self, labels: &Labels, at_ms: i64, value: f64) -> Option<v1::WriteRequest> {
        let point = v1::Point {
            at_ms,
            value: Some(value),
        };
        match self.series.get_mut(labels) {
            Some(points) => points.push(point),
            None => {
                self.bytes += labels_bytes(labels);
                self.series.insert(labels.clone(), vec![point]);
            }
        }
        self.samples += 1;
        self.bytes += POINT_BYTES;
        self.cut_when_full()
    }

    /// Takes a native histogram, `None` where its series ended; gives the request that it filled.
    pub fn native(&mut self, labels: &Labels, at_ms: i64, histogram: Option<&Histogram>) -> Option<v1::WriteRequest> {
        let message = hindcast_proto::native::message(histogram, at_ms);
        self.samples += 1;
        self.bytes += message.len() + POINT_BYTES;
        match self.natives.get_mut(labels) {
            Some(messages) => messages.push(message),
            None => {
                self.bytes += labels_bytes(labels);
                self.natives.insert(labels.clone(), vec![message]);
            }
        }
        self.cut_when_full()
    }

    /// Takes a line; gives the request that it filled.
    pub fn line(&mut self, labels: &Labels, entry: Entry) -> Option<v1::WriteRequest> {
        let metadata: Vec<_> = entry.metadata.iter().map(|(n, v)| label(n, v)).collect();
        self.lines += 1;
        self.bytes += entry.line.len() + POINT_BYTES;
        self.bytes += metadata
            .iter()
            .map(|l| l.name.len() + l.value.len() + FRAMING_BYTES)
            .sum::<usize>();
        let line = v1::Line {
            at_ns: entry.at_ns,
            line: entry.line,
            metadata,
        };
        match self.streams.get_mut(labels) {
            Some(lines) => lines.push(line),
            None => {
                self.bytes += labels_bytes(labels);
                self.streams.insert(labels.clone(), vec![line]);
            }
        }
        self.cut_when_full()
    }

    /// Of the last request that was cut.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Whatever is left, as a last, smaller request.
    pub fn finish(&mut self) -> Option<v1::WriteRequest> {
        (self.samples + self.lines > 0).then(|| self.cut())
    }

    fn cut_when_full(&mut self) -> Option<v1::WriteRequest> {
        let full = self.samples >= BATCH_SAMPLES_MAX || self.lines >= BATCH_LINES_MAX || self.bytes >= BATCH_BYTES_MAX;
        full.then(|| self.cut())
    }

    fn cut(&mut self) -> v1::WriteRequest {
        self.seq += 1;
        (self.samples, self.lines, self.bytes) = (0, 0, 0);
        v1::WriteRequest {
            writer: self.writer.clone(),
            seq: self.seq,
            resource: self.resource.clone(),
            series: std::mem::take(&mut self.series)
                .into_iter()
                .map(|(labels, points)| v1::Series {
                    labels: labels_to_wire(&labels),
                    points,
                })
                .collect(),
            histograms: std::mem::take(&mut self.natives)
                .into_iter()
                .map(|(labels, histograms)| v1::HistogramSeries {
                    labels: labels_to_wire(&labels),
                    histograms: histograms.into_iter().map(Into::into).collect(),
                })
                .collect(),
            streams: std::mem::take(&mut self.streams)
                .into_iter()
                .map(|(labels, lines)| v1::Stream {
                    labels: labels_to_wire(&labels),
                    lines,
                })
                .collect(),
            ..v1::WriteRequest::default()
        }
    }
}

/// Samples and lines in a request.
pub fn items(request: &v1::WriteRequest) -> (u64, u64) {
    let floats: u64 = request.series.iter().map(|s| s.points.len() as u64).sum();
    let natives: u64 = request.histograms.iter().map(|s| s.histograms.len() as u64).sum();
    let lines = request.streams.iter().map(|s| s.lines.len() as u64).sum();
    (floats + natives, lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_model::limits::{LINE_BYTES_MAX, REQUEST_WIRE_BYTES_MAX};
    use hindcast_model::resource::metric;
    use proptest::prelude::*;
    use prost::Message;

    #[test]
    fn native_histograms_travel_beside_samples_and_are_counted_with_them() {
        let labels = metric("h", &[]);
        let one = Histogram {
            count: 2.0,
            positive: vec![(1, 2.0)],
            ..Histogram::default()
        };
        let mut batcher = Batcher::new("w", &[]);
        assert!(batcher.sample(&labels, 1, 1.0).is_none());
        assert!(batcher.native(&labels, 2, Some(&one)).is_none());
        assert!(batcher.native(&labels, 3, None).is_none());
        let request = batcher.finish().unwrap();
        assert_eq!(items(&request), (3, 0));
        assert_eq!(
            (
                request.series.len(),
                request.histograms.len(),
                request.histograms[0].histograms.len()
            ),
            (1, 1, 2)
        );
        let full = (0..).find_map(|at| batcher.native(&labels, at, Some(&one))).unwrap();
        assert_eq!(items(&full), (BATCH_SAMPLES_MAX as u64, 0));
    }

    #[test]
    fn a_request_is_cut_at_each_of_its_bounds() {
        let labels = metric("up", &[]);
        let mut b = Batcher::new("w", &[]);
        let mut cut = None;
        for i in 0..BATCH_SAMPLES_MAX {
            assert!(cut.is_none());
            cut = b.sample(&labels, i as i64, 1.0);
        }
        assert_eq!(
            cut.map(|r| (r.seq, items(&r))),
            Some((1, (BATCH_SAMPLES_MAX as u64, 0)))
        );

        let entry = |line: String| Entry {
            at_ns: 1,
            line,
            metadata: vec![],
        };
        for _ in 1..BATCH_LINES_MAX {
            assert!(b.line(&labels, entry("x".into())).is_none());
        }
        assert_eq!(b.line(&labels, entry("x".into())).map(|r| r.seq), Some(2));

        let big = "x".repeat(LINE_BYTES_MAX);
        let full = std::iter::repeat_with(|| b.line(&labels, entry(big.clone())))
            .find_map(|r| r)
            .unwrap();
        assert_eq!(items(&full).1, 8);
        assert!(full.encoded_len() < REQUEST_WIRE_BYTES_MAX);
        assert!(b.finish().is_none());
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_reordered_within_a_series(values in proptest::collection::vec((0u8..4, any::<i64>()), 0..300)) {
            let mut b = Batcher::new("w", &[]);
            let mut sent: BTreeMap<String, Vec<i64>> = BTreeMap::new();
            let mut requests = vec![];
            for (series, at) in &values {
                let name = format!("m{series}");
                sent.entry(name.clone()).or_default().push(*at);
                requests.extend(b.sample(&metric(&name, &[]), *at, 0.0));
            }
            requests.extend(b.finish());
            let mut got: BTreeMap<String, Vec<i64>> = BTreeMap::new();
            for s in requests.into_iter().flat_map(|r| r.series) {
                got.entry(s.labels[0].value.clone()).or_default().extend(s.points.iter().map(|p| p.at_ms));
            }
            prop_assert_eq!(got, sent);
        }
    }
}

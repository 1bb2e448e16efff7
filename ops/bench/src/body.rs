//! Request bodies, encoded once and then only filled in: times and values have a fixed place in the bytes.
//!
//! Pure. Making a body of a new sweep is one copy and two short writes per sample, so that the generator takes little
//! of the processor that it shares with the server it measures. Times are milliseconds since the Unix epoch.

use crate::fleet::LabelPairs;
use bytes::{BufMut, Bytes, BytesMut};
use hindcast_model::limits::{REQUEST_DECODED_BYTES_MAX, REQUEST_WIRE_BYTES_MAX};
use hindcast_proto::v1;
use prost::Message;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// hindcast.v1.Ingest/Write.
    Grpc,
    /// Prometheus remote write 1.0: snappy over HTTP.
    RemoteWrite,
    /// hindcast.v1.Ingest/WriteStream with series named once per stream: `--interned`.
    #[value(skip)]
    GrpcInterned,
}

/// Remote write's messages, field numbers as its specification gives them.
mod prometheus {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct TimeSeries {
        #[prost(message, repeated, tag = "1")]
        pub labels: Vec<Label>,
        #[prost(message, repeated, tag = "2")]
        pub samples: Vec<Sample>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Label {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(string, tag = "2")]
        pub value: String,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Sample {
        #[prost(double, tag = "1")]
        pub value: f64,
        #[prost(int64, tag = "2")]
        pub at_ms: i64,
    }
}

/// A varint of six bytes holds from here (2004) …
pub const AT_MS_MIN: i64 = 1 << 40;
/// … to, not including, here (2109).
pub const AT_MS_END: i64 = 1 << 42;

#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("a batch of {bytes} bytes is larger than the {max} that a server accepts; use fewer --batch-hosts")]
    TooLarge { bytes: usize, max: usize },
    #[error("the time {at_ms} ms is not between 2004 and 2109")]
    Time { at_ms: i64 },
    #[error("snappy: {0}")]
    Snappy(#[from] snap::Error),
}

/// One batch of series with one sample each.
#[derive(Clone, Debug)]
pub struct Template {
    protocol: Protocol,
    bytes: Vec<u8>,
    /// Where each series ends; its sample's time and value are the last bytes before. Interned, where each value does.
    ends: Vec<usize>,
    /// What names the series on a new stream; empty for protocols that say the labels each time.
    definitions: Bytes,
}

impl Template {
    /// `first_ref`: the reference of the first series, where there are references.
    pub fn new(protocol: Protocol, series: &[LabelPairs], first_ref: u32) -> Result<Self, BodyError> {
        if protocol == Protocol::GrpcInterned {
            return Self::interned(series, first_ref);
        }
        let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(series.len()));
        for labels in series {
            let (number, message) = match protocol {
                Protocol::RemoteWrite => (1, foreign(labels)),
                _ => (4, own(labels)),
            };
            prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, &mut bytes);
            prost::encoding::encode_varint(message.len() as u64, &mut bytes);
            bytes.extend_from_slice(&message);
            ends.push(bytes.len());
        }
        let max = match protocol {
            Protocol::RemoteWrite => REQUEST_DECODED_BYTES_MAX,
            // Not compressed: what is decoded is what came over the wire. Room for the writer's name.
            _ => REQUEST_WIRE_BYTES_MAX - 1024,
        };
        if bytes.len() > max {
            return Err(BodyError::TooLarge {
                bytes: bytes.len(),
                max,
            });
        }
        Ok(Self {
            protocol,
            bytes,
            ends,
            definitions: Bytes::new(),
        })
    }

    /// One row: a time, one run of references, a value for each.
    fn interned(series: &[LabelPairs], first_ref: u32) -> Result<Self, BodyError> {
        let reference = |(labels, n): (&LabelPairs, u32)| v1::SeriesRef {
            labels: labels.iter().map(label).collect(),
            r#ref: n,
        };
        let definitions = v1::WriteRequest {
            definitions: series.iter().zip(first_ref..).map(reference).collect(),
            ..v1::WriteRequest::default()
        };
        let rows = v1::Rows {
            at_ms: vec![AT_MS_MIN],
            runs: vec![first_ref, series.len() as u32],
            // The last field, so that the values are the last bytes.
            values: vec![1.0; series.len()],
        };
        let row = v1::WriteRequest {
            rows: vec![rows],
            ..v1::WriteRequest::default()
        };
        let (definitions, bytes) = (Bytes::from(definitions.encode_to_vec()), row.encode_to_vec());
        let (both, max) = (definitions.len() + bytes.len(), REQUEST_WIRE_BYTES_MAX - 1024);
        if both > max {
            return Err(BodyError::TooLarge { bytes: both, max });
        }
        let values_at = bytes.len() - 8 * series.len();
        Ok(Self {
            protocol: Protocol::GrpcInterned,
            ends: (1..=series.len()).map(|n| values_at + 8 * n).collect(),
            bytes,
            definitions,
        })
    }

    /// What a new stream is to be told before the first body, or with it.
    pub fn definitions(&self) -> &Bytes {
        &self.definitions
    }

    pub fn samples(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of a body before compression, without the writer's name and number.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The body of a sweep, ready to send. `writer` and `seq` go into our own protocol only.
    pub fn fill(
        &mut self,
        writer: &str,
        seq: u64,
        at_ms: i64,
        values: impl Iterator<Item = f64>,
    ) -> Result<Bytes, BodyError> {
        if !(AT_MS_MIN..AT_MS_END).contains(&at_ms) {
            return Err(BodyError::Time { at_ms });
        }
        if self.protocol == Protocol::GrpcInterned {
            // `at_ms` stands before the runs: a tag, a length, eight bytes, and then those.
            let at = self.row_time_at();
            self.bytes[at..at + 8].copy_from_slice(&at_ms.to_le_bytes());
        }
        let mut given = 0;
        for (end, value) in self.ends.iter().zip(values) {
            given += 1;
            let (at, tail) = match self.protocol {
                Protocol::Grpc => (end - 17, end - 8),
                Protocol::RemoteWrite => (end - 6, end - 15),
                Protocol::GrpcInterned => (0, end - 8),
            };
            match self.protocol {
                Protocol::GrpcInterned => {}
                Protocol::Grpc => self.bytes[at..at + 8].copy_from_slice(&at_ms.to_le_bytes()),
                Protocol::RemoteWrite => self.bytes[at..at + 6].copy_from_slice(&varint_6(at_ms)),
            }
            self.bytes[tail..tail + 8].copy_from_slice(&value.to_le_bytes());
        }
        assert_eq!(given, self.ends.len(), "one value for each series");
        match self.protocol {
            Protocol::Grpc | Protocol::GrpcInterned => {
                let head = v1::WriteRequest {
                    writer: writer.to_owned(),
                    seq,
                    ..v1::WriteRequest::default()
                };
                let mut body = BytesMut::with_capacity(head.encoded_len() + self.bytes.len());
                head.encode_raw(&mut body);
                body.put_slice(&self.bytes);
                Ok(body.freeze())
            }
            Protocol::RemoteWrite => {
                let body = snap::raw::Encoder::new().compress_vec(&self.bytes)?;
                match body.len() {
                    bytes if bytes > REQUEST_WIRE_BYTES_MAX => Err(BodyError::TooLarge {
                        bytes,
                        max: REQUEST_WIRE_BYTES_MAX,
                    }),
                    _ => Ok(body.into()),
                }
            }
        }
    }
}

impl Template {
    /// Where the row's time lies: the body is `rows`, and begins with `at_ms`.
    fn row_time_at(&self) -> usize {
        let mut rest = &self.bytes[1..];
        let before = self.bytes.len() - rest.len();
        let len_bytes = prost::encoding::decode_varint(&mut rest).map_or(0, |_| self.bytes.len() - before - rest.len());
        before + len_bytes + 2
    }
}

fn label((name, value): &(String, String)) -> v1::Label {
    v1::Label {
        name: name.as_str().into(),
        value: value.as_str().into(),
    }
}

/// With a sample that has all its bytes: protobuf leaves zeros out.
fn own(labels: &LabelPairs) -> Vec<u8> {
    let points = vec![v1::Point {
        at_ms: AT_MS_MIN,
        value: Some(1.0),
    }];
    v1::Series {
        labels: labels.iter().map(label).collect(),
        points,
    }
    .encode_to_vec()
}

fn foreign(labels: &LabelPairs) -> Vec<u8> {
    let label = |(name, value): &(String, String)| prometheus::Label {
        name: name.clone(),
        value: value.clone(),
    };
    let samples = vec![prometheus::Sample {
        value: 1.0,
        at_ms: AT_MS_MIN,
    }];
    prometheus::TimeSeries {
        labels: labels.iter().map(label).collect(),
        samples,
    }
    .encode_to_vec()
}

fn varint_6(at_ms: i64) -> [u8; 6] {
    let mut bytes = [0; 6];
    for (n, byte) in bytes.iter_mut().enumerate() {
        *byte = (at_ms >> (7 * n)) as u8 & 0x7f | if n < 5 { 0x80 } else { 0 };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::series_of;
    use proptest::prelude::*;

    #[derive(Clone, PartialEq, prost::Message)]
    struct Request {
        #[prost(message, repeated, tag = "1")]
        timeseries: Vec<prometheus::TimeSeries>,
    }

    /// What a decoder that knows nothing of templates reads: labels, time, bits of the value.
    fn read(protocol: Protocol, body: Bytes) -> Vec<(LabelPairs, i64, u64)> {
        match protocol {
            Protocol::Grpc => {
                let request = v1::WriteRequest::decode(body).unwrap();
                assert_eq!((request.writer.as_str(), request.seq), ("w", 300));
                let series = |s: v1::Series| {
                    assert_eq!(s.points.len(), 1);
                    let labels = s
                        .labels
                        .iter()
                        .map(|l| (l.name.to_string(), l.value.to_string()))
                        .collect();
                    (labels, s.points[0].at_ms, s.points[0].value().to_bits())
                };
                request.series.into_iter().map(series).collect()
            }
            Protocol::GrpcInterned => unreachable!("read by its own test"),
            Protocol::RemoteWrite => {
                let plain = snap::raw::Decoder::new().decompress_vec(&body).unwrap();
                let series = |s: prometheus::TimeSeries| {
                    assert_eq!(s.samples.len(), 1);
                    let labels = s.labels.into_iter().map(|l| (l.name, l.value)).collect();
                    (labels, s.samples[0].at_ms, s.samples[0].value.to_bits())
                };
                Request::decode(plain.as_slice())
                    .unwrap()
                    .timeseries
                    .into_iter()
                    .map(series)
                    .collect()
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn a_filled_body_reads_back_sweep_after_sweep(
            grpc: bool,
            sweeps in proptest::collection::vec((AT_MS_MIN..AT_MS_END, proptest::collection::vec(any::<u64>(), 7)), 1..4),
        ) {
            let protocol = if grpc { Protocol::Grpc } else { Protocol::RemoteWrite };
            let labels: Vec<LabelPairs> = series_of(1, 2, 7).into_iter().map(|s| s.labels).collect();
            let mut template = Template::new(protocol, &labels, 0).unwrap();
            for (at_ms, bits) in sweeps {
                let body = template.fill("w", 300, at_ms, bits.iter().map(|b| f64::from_bits(*b))).unwrap();
                let want: Vec<_> = labels.iter().zip(&bits).map(|(l, b)| (l.clone(), at_ms, *b)).collect();
                prop_assert_eq!(read(protocol, body), want);
            }
        }
    }

    #[test]
    fn interned_bodies_name_their_series_once() {
        let labels: Vec<LabelPairs> = series_of(1, 2, 300).into_iter().map(|s| s.labels).collect();
        let mut template = Template::new(Protocol::GrpcInterned, &labels, 700).unwrap();
        let said = v1::WriteRequest::decode(template.definitions().clone()).unwrap();
        assert_eq!((said.definitions.len(), said.definitions[299].r#ref), (300, 999));
        for at_ms in [AT_MS_MIN, AT_MS_END - 1] {
            let body = template.fill("w", 3, at_ms, (0..300).map(f64::from)).unwrap();
            let rows = v1::WriteRequest::decode(body).unwrap().rows;
            assert_eq!(
                (rows[0].at_ms.as_slice(), rows[0].runs.as_slice()),
                (&[at_ms][..], &[700, 300][..])
            );
            assert!(rows[0].values.iter().copied().eq((0..300).map(f64::from)));
        }
    }

    #[test]
    fn what_a_server_would_refuse_is_not_sent() {
        let labels: Vec<LabelPairs> = series_of(1, 2, 40_000).into_iter().map(|s| s.labels).collect();
        assert!(matches!(
            Template::new(Protocol::Grpc, &labels, 0),
            Err(BodyError::TooLarge { .. })
        ));
        let mut one = Template::new(Protocol::Grpc, &labels[..1], 0).unwrap();
        let early = one.fill("w", 1, AT_MS_MIN - 1, std::iter::once(0.0));
        assert!(matches!(early, Err(BodyError::Time { .. })));
    }
}

//! `hindcast.v1.WriteRequest` to a batch. Read field by field, so that a writer's repeated series cost little.
//!
//! Point times are milliseconds, line times nanoseconds. With resource attributes, a series without `job` or
//! `instance` gets them from its owner, and a stream gets the labels that OTLP logs would get.

use crate::owners::{Named, Scope, Seen, name_labels};
use crate::wire::{Field, Reader, WireError, label, label_run, labels};
use crate::{Adapted, LimitsContext, OwnerCache, Protocol, Refusal, Rejections, check, identity};
use bytes::Bytes;
use hindcast_model::{Batch, BatchId, LogLine, Sample, SeriesBlock, StreamBlock, TenantId, TimestampNs, WriterId};

/// A batch and the number that its writer gave it.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnRequest {
    pub seq: u64,
    pub adapted: Adapted,
}

/// The parts of a request, still encoded.
#[derive(Default)]
struct Parts<'a> {
    writer: &'a str,
    seq: u64,
    resource: Vec<(String, String)>,
    series: Vec<&'a [u8]>,
    streams: Vec<&'a [u8]>,
}

fn parts(body: &[u8]) -> Result<Parts<'_>, WireError> {
    let mut parts = Parts::default();
    let mut reader = Reader::new(body);
    while let Some((number, field)) = reader.next()? {
        match number {
            1 => parts.writer = field.text("writer")?,
            2 => parts.seq = field.varint("seq")?,
            3 => {
                let (name, value) = label(field.bytes("resource")?)?;
                parts.resource.push((name.to_owned(), value.to_owned()));
            }
            4 => parts.series.push(field.bytes("series")?),
            5 => parts.streams.push(field.bytes("streams")?),
            _ => {}
        }
    }
    Ok(parts)
}

/// The request's sequence as far as it can be read; 0 when not. For answers about requests that are not readable.
pub fn seq_of(body: &[u8]) -> u64 {
    let mut reader = Reader::new(body);
    let mut seq = 0;
    while let Ok(Some((number, field))) = reader.next() {
        if let (2, Field::Varint(v)) = (number, field) {
            seq = v;
        }
    }
    seq
}

/// Turns an encoded `WriteRequest` into a batch.
pub fn adapt(
    tenant: &TenantId,
    body: &Bytes,
    limits: &LimitsContext,
    owners: &mut OwnerCache,
) -> Result<OwnRequest, crate::AdaptError> {
    read(tenant, body, limits, owners).map_err(|e| e.of(Protocol::Own))
}

fn read(
    tenant: &TenantId,
    body: &Bytes,
    limits: &LimitsContext,
    owners: &mut OwnerCache,
) -> Result<OwnRequest, WireError> {
    let parts = parts(body)?;
    let mut batch = Batch::new(tenant.clone());
    let mut rejected = Rejections::default();
    let mut seen = Seen::default();
    if !parts.writer.is_empty() {
        let writer = WriterId::named(tenant, parts.writer);
        batch.id = Some(BatchId::Sequenced { writer, seq: parts.seq });
    }
    let mut names = Names {
        tenant,
        attrs: &parts.resource,
        scope: Scope::new(tenant, &parts.resource, "series"),
        of_series: true,
        owners,
    };
    batch.series.reserve_exact(parts.series.len());
    for message in &parts.series {
        let (named, points) = names.split(message)?;
        let samples = read_samples(points, point)?;
        if let Some(named) = keep_named(named, samples.len(), &mut rejected, message) {
            seen.note(&named.resource);
            batch.series.extend(keep_samples(named, samples, limits, &mut rejected));
        }
    }
    names.scope = Scope::new(tenant, &parts.resource, "stream");
    names.of_series = false;
    for message in &parts.streams {
        let (named, rest) = names.split(message)?;
        let lines = read_lines(rest, body)?;
        if let Some(named) = keep_named(named, lines.len(), &mut rejected, message) {
            seen.note(&named.resource);
            batch.streams.extend(keep_lines(named, lines, limits, &mut rejected));
        }
    }
    if !parts.resource.is_empty() {
        let (edges, ends) = identity::edges(tenant, &parts.resource);
        ends.into_iter().for_each(|r| seen.note(&Some(r.into())));
        batch.edges = edges;
    }
    seen.into_batch(&mut batch);
    Ok(OwnRequest {
        seq: parts.seq,
        adapted: Adapted { batch, rejected },
    })
}

/// How label lists become named sets within one request.
pub(crate) struct Names<'r> {
    pub tenant: &'r TenantId,
    pub attrs: &'r [(String, String)],
    pub scope: Scope,
    pub of_series: bool,
    pub owners: &'r mut OwnerCache,
}

/// Why labels gave no set: the message is broken, or the set is not allowed.
enum NotNamed {
    Wire(WireError),
    Refused(Refusal),
}

impl Names<'_> {
    /// The named set of a message whose field 1 is `repeated Label`, and a reader of its other fields.
    pub fn split<'m>(&mut self, message: &'m [u8]) -> Result<(Result<Named, Refusal>, Reader<'m>), WireError> {
        let name = |tenant, attrs, of_series| {
            let pairs = labels(message).map_err(NotNamed::Wire)?;
            name_labels(tenant, pairs, attrs, of_series).map_err(NotNamed::Refused)
        };
        let (named, rest) = match label_run(message)? {
            Some(run) => {
                let make = || name(self.tenant, self.attrs, self.of_series);
                (self.owners.named(&self.scope, run.raw, make), run.rest)
            }
            // Labels between the samples: no sender that we know does it, but it is allowed.
            None => (name(self.tenant, self.attrs, self.of_series), Reader::new(message)),
        };
        match named {
            Ok(named) => Ok((Ok(named), rest)),
            Err(NotNamed::Refused(why)) => Ok((Err(why), rest)),
            Err(NotNamed::Wire(why)) => Err(why),
        }
    }
}

pub(crate) fn keep_named(
    named: Result<Named, Refusal>,
    items: usize,
    rejected: &mut Rejections,
    message: &[u8],
) -> Option<Named> {
    let shown = || {
        let pairs = labels(message).unwrap_or_default();
        hindcast_model::Labels::new(pairs).to_string()
    };
    named.inspect_err(|why| rejected.add(items as u64, why, shown)).ok()
}

/// Samples of a series message: its fields number 2, each read by `one`.
pub(crate) fn read_samples(
    mut rest: Reader<'_>,
    one: fn(&[u8]) -> Result<Sample, WireError>,
) -> Result<Vec<Sample>, WireError> {
    // A sample takes 18 to 20 bytes, unless its value or time is 0.
    let mut samples = Vec::with_capacity(rest.left() / 16 + 1);
    while let Some((number, field)) = rest.next()? {
        if number == 2 {
            samples.push(one(field.bytes("a sample")?)?);
        }
    }
    Ok(samples)
}

fn point(message: &[u8]) -> Result<Sample, WireError> {
    let (mut at_ms, mut value) = (0i64, 0.0);
    let mut reader = Reader::new(message);
    while let Some((number, field)) = reader.next()? {
        match number {
            1 => at_ms = field.fixed64("at_ms")? as i64,
            2 => value = f64::from_bits(field.fixed64("value")?),
            _ => {}
        }
    }
    let at = TimestampNs::from_ms(at_ms);
    Ok(Sample { at, value })
}

/// The block of those samples whose times are allowed; `None` when there are none.
pub(crate) fn keep_samples(
    named: Named,
    mut samples: Vec<Sample>,
    limits: &LimitsContext,
    rejected: &mut Rejections,
) -> Option<SeriesBlock> {
    samples.retain(|s| match limits.time(s.at) {
        Ok(()) => true,
        Err(why) => {
            rejected.add(1, &why, || named.labels.to_string());
            false
        }
    });
    (!samples.is_empty()).then_some(SeriesBlock {
        labels: named.labels,
        owner: named.owner,
        samples,
    })
}

fn read_lines(mut rest: Reader<'_>, body: &Bytes) -> Result<Vec<LogLine>, WireError> {
    let mut lines = Vec::new();
    while let Some((number, field)) = rest.next()? {
        if number == 2 {
            lines.push(line(field.bytes("a line")?, body)?);
        }
    }
    Ok(lines)
}

fn line(message: &[u8], body: &Bytes) -> Result<LogLine, WireError> {
    let (mut at, mut text, mut metadata) = (0, "", Vec::new());
    let mut reader = Reader::new(message);
    while let Some((number, field)) = reader.next()? {
        match number {
            1 => at = field.fixed64("at_ns")? as i64,
            2 => text = field.text("a line's text")?,
            3 => {
                let (name, value) = label(field.bytes("metadata")?)?;
                metadata.push((name.to_owned(), value.to_owned()));
            }
            _ => {}
        }
    }
    metadata.sort();
    Ok(LogLine {
        at: TimestampNs(at),
        // A slice of the request: nothing is copied.
        line: if text.is_empty() {
            Bytes::new()
        } else {
            body.slice_ref(text.as_bytes())
        },
        metadata,
    })
}

/// The block of those lines that are allowed; `None` when there are none.
pub(crate) fn keep_lines(
    named: Named,
    mut lines: Vec<LogLine>,
    limits: &LimitsContext,
    rejected: &mut Rejections,
) -> Option<StreamBlock> {
    lines.retain(|l| {
        let fits = limits.time(l.at).and_then(|()| check::line(l.line.len(), &l.metadata));
        fits.inspect_err(|why| rejected.add(1, why, || named.labels.to_string()))
            .is_ok()
    });
    (!lines.is_empty()).then_some(StreamBlock {
        labels: named.labels,
        owner: named.owner,
        lines,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_proto::v1;
    use proptest::prelude::*;
    use prost::Message;

    const LIMITS: LimitsContext = LimitsContext {
        now: TimestampNs::MAX,
        floor: None,
    };

    fn text() -> impl Strategy<Value = String> {
        proptest::collection::vec(any::<char>(), 0..8).prop_map(|c| c.into_iter().filter(|c| !c.is_control()).collect())
    }

    /// Labels `l0…`, the first of them a name.
    fn labels_of() -> impl Strategy<Value = Vec<v1::Label>> {
        let label = |(i, value): (usize, String)| v1::Label {
            name: if i == 0 { "__name__".to_owned() } else { format!("l{i}") },
            value: format!("v{value}"),
        };
        proptest::collection::vec(text(), 1..5).prop_map(move |v| v.into_iter().enumerate().map(label).collect())
    }

    fn request() -> impl Strategy<Value = v1::WriteRequest> {
        let ms = -9_000_000_000_000i64..9_000_000_000_000;
        let point = (ms, any::<u64>()).prop_map(|(at_ms, bits)| v1::Point {
            at_ms,
            value: f64::from_bits(bits),
        });
        let series = (labels_of(), proptest::collection::vec(point, 1..4));
        let series = series.prop_map(|(labels, points)| v1::Series { labels, points });
        let line = (any::<i64>(), text(), labels_of());
        let line = line.prop_map(|(at_ns, line, metadata)| v1::Line { at_ns, line, metadata });
        let stream = (labels_of(), proptest::collection::vec(line, 1..4));
        let stream = stream.prop_map(|(labels, lines)| v1::Stream { labels, lines });
        let parts = (
            any::<u64>(),
            proptest::collection::vec(series, 0..4),
            proptest::collection::vec(stream, 0..3),
        );
        parts.prop_map(|(seq, series, streams)| v1::WriteRequest {
            writer: "w".to_owned(),
            seq,
            resource: vec![],
            series,
            streams,
        })
    }

    proptest! {
        #[test]
        fn an_encoded_request_is_read_back_whole_also_from_a_warm_cache(request in request()) {
            let tenant = TenantId::default();
            let body = Bytes::from(request.encode_to_vec());
            let mut owners = OwnerCache::default();
            let cold = adapt(&tenant, &body, &LIMITS, &mut owners).unwrap();
            prop_assert_eq!(&adapt(&tenant, &body, &LIMITS, &mut owners).unwrap(), &cold);
            prop_assert_eq!(cold.seq, request.seq);
            prop_assert!(cold.adapted.rejected.is_empty(), "{:?}", cold.adapted.rejected);
            let named = hindcast_proto::edge::labels_from_wire;
            for (got, sent) in cold.adapted.batch.series.iter().zip(request.series) {
                prop_assert_eq!(&got.labels, &named(sent.labels));
                let sample = |p: v1::Point| Sample { at: TimestampNs::from_ms(p.at_ms), value: p.value };
                prop_assert_eq!(&got.samples, &sent.points.into_iter().map(sample).collect::<Vec<_>>());
            }
            for (got, sent) in cold.adapted.batch.streams.iter().zip(request.streams) {
                prop_assert_eq!(&got.labels, &named(sent.labels));
                for (line, sent) in got.lines.iter().zip(sent.lines) {
                    prop_assert_eq!((line.at, &line.line[..]), (TimestampNs(sent.at_ns), sent.line.as_bytes()));
                    prop_assert_eq!(line.metadata.len(), sent.metadata.len());
                }
            }
        }

        #[test]
        fn a_damaged_request_is_refused_or_read_but_never_a_panic(request in request(), at in 0usize..400, byte: u8, cut: bool) {
            let mut body = request.encode_to_vec();
            if cut {
                body.truncate(at);
            } else if let Some(hit) = body.get_mut(at) {
                *hit = byte;
            }
            let body = Bytes::from(body);
            let _ = adapt(&TenantId::default(), &body, &LIMITS, &mut OwnerCache::default());
            let _ = seq_of(&body);
        }
    }

    #[test]
    fn a_host_that_speaks_of_itself_names_its_series_and_streams() {
        let label = |n: &str, v: &str| v1::Label {
            name: n.to_owned(),
            value: v.to_owned(),
        };
        let request = v1::WriteRequest {
            resource: vec![label("host.name", "web-1"), label("os.type", "linux")],
            series: vec![v1::Series {
                labels: vec![label("__name__", "system_memory_usage_bytes")],
                points: vec![v1::Point::default()],
            }],
            streams: vec![v1::Stream {
                labels: vec![label("unit", "sshd")],
                lines: vec![v1::Line::default()],
            }],
            ..Default::default()
        };
        let body = Bytes::from(request.encode_to_vec());
        let read = adapt(&TenantId::default(), &body, &LIMITS, &mut OwnerCache::default()).unwrap();
        let batch = read.adapted.batch;
        let series = batch.series[0].labels.to_string();
        assert_eq!(series, r#"system_memory_usage_bytes{instance="web-1", job="host"}"#);
        assert_eq!(
            batch.streams[0].labels.to_string(),
            r#"{host_name="web-1", unit="sshd"}"#
        );
        assert_eq!(batch.resources.len(), 1, "{:?}", batch.resources);
        assert_eq!(batch.resources[0].attributes["os.type"], "linux");
        assert_eq!(batch.id, None, "without a writer there is no id");
    }
}

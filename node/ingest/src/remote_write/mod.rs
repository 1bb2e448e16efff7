//! Prometheus remote write 1.0 (a snappy block of `prometheus.WriteRequest`) and 2.0 (`version_2`).
//!
//! Times are milliseconds. Native histograms become classic ones (`native`). What a request says of its metrics is compared with what was
//! written (`crate::described`). Exemplars become lines (`crate::exemplars`).

pub(crate) mod native;
mod version_2;

pub use native::NATIVE_COUNTS_MAX;
pub use version_2::{SPELLED_BYTES_MAX, SYMBOLS_MAX};

use crate::decompress::snappy_into;
use crate::described::{Due, Metric, MetricType};
use crate::exemplars::Exemplar;
use crate::owners::Scope;
use crate::walk::{Layout, Names, SampleForm};
use crate::wire::{Field, Reader, WireError};
use crate::{AdaptError, Books, Laid, LimitsContext, Protocol};
use hindcast_model::{BatchId, Sample, TenantId, TimestampNs};
use version_2::Why;

/// Which message a body holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `prometheus.WriteRequest`.
    One,
    /// `io.prometheus.write.v2.Request`.
    Two,
}

/// Lays out a request's body, as it came over the wire. Its id is the hash of that body. `scratch` holds the
/// decompressed body meanwhile.
pub fn adapt(
    version: Version,
    tenant: &TenantId,
    body: &[u8],
    limits: &LimitsContext,
    books: &Books<'_>,
    scratch: &mut Vec<u8>,
) -> Result<Laid, AdaptError> {
    let decoded = snappy_into(body, scratch)?;
    let read = match version {
        Version::One => read(tenant, decoded, limits, books).map_err(Why::Wire),
        Version::Two => read_2(tenant, decoded, limits, books),
    };
    let mut laid = read.map_err(|why| match why {
        Why::Wire(why) => why.of(Protocol::RemoteWrite),
        Why::TooLarge => AdaptError::DecodedTooLarge {
            bytes_max: SPELLED_BYTES_MAX,
        },
    })?;
    laid.intake.id = Some(BatchId::of_body(tenant, Protocol::RemoteWrite.as_str(), body));
    Ok(laid)
}

fn names(tenant: &TenantId) -> Names<'_> {
    Names {
        attrs: &[],
        scope: Scope::new(tenant, &[], "series").into(),
    }
}

fn read(tenant: &TenantId, body: &[u8], limits: &LimitsContext, books: &Books<'_>) -> Result<Laid, WireError> {
    let mut layout = Layout::new(tenant, limits, *books);
    let mut due = Due::default();
    let look = |metadata| {
        books.described.look(tenant, &metric(metadata)?, limits, &mut due);
        Ok(())
    };
    layout.series::<Form>(series(body, look), &names(tenant))?;
    layout.due = due;
    Ok(layout.finish(&[]))
}

/// The series (field 1) of a request, in order; on the way `metadata` has the descriptions of metrics (3).
fn series<'m>(
    body: &'m [u8],
    mut metadata: impl FnMut(&'m [u8]) -> Result<(), WireError>,
) -> impl Iterator<Item = Result<&'m [u8], WireError>> {
    let mut reader = Reader::new(body);
    std::iter::from_fn(move || {
        loop {
            match reader.next() {
                Ok(Some((1, field))) => return Some(field.bytes("a message")),
                Ok(Some((3, field))) => {
                    if let Err(why) = field.bytes("a message").and_then(&mut metadata) {
                        return Some(Err(why));
                    }
                }
                // Skipped as a field that nobody knows, all of its samples would be lost without a word.
                Ok(Some((5, Field::Bytes(_)))) => return Some(Err(WireError::Shape(version_2::IS_TWO))),
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(why) => return Some(Err(why)),
            }
        }
    })
}

fn read_2(tenant: &TenantId, body: &[u8], limits: &LimitsContext, books: &Books<'_>) -> Result<Laid, Why> {
    let mut layout = Layout::new(tenant, limits, *books);
    let spelled = version_2::spell(body, &mut layout)?;
    layout.series::<Form>(spelled.messages(), &names(tenant))?;
    Ok(layout.finish(&[]))
}

/// Reads a `MetricMetadata`.
fn metric(message: &[u8]) -> Result<Metric<'_>, WireError> {
    let mut metric = Metric {
        name: "",
        kind: MetricType::Unknown,
        help: "",
        unit: "",
    };
    let mut reader = Reader::new(message);
    while let Some((number, field)) = reader.next()? {
        match number {
            1 => metric.kind = MetricType::of_number(field.varint("a metric's type")?),
            2 => metric.name = field.text("a metric's name")?,
            4 => metric.help = field.text("a help text")?,
            5 => metric.unit = field.text("a unit")?,
            _ => {}
        }
    }
    Ok(metric)
}

/// Reads an `Exemplar`.
pub(crate) fn exemplar(message: &[u8]) -> Result<Exemplar, WireError> {
    let mut exemplar = Exemplar {
        labels: crate::wire::labels(message)?,
        ..Exemplar::default()
    };
    let mut reader = Reader::new(message);
    while let Some((number, field)) = reader.next()? {
        match number {
            2 => exemplar.value = f64::from_bits(field.fixed64("an exemplar's value")?),
            3 => exemplar.at = TimestampNs::from_ms(field.varint("an exemplar's timestamp")? as i64),
            _ => {}
        }
    }
    Ok(exemplar)
}

struct Form;

impl SampleForm for Form {
    const HISTOGRAMS: bool = true;

    fn usual(mut rest: &[u8], out: &mut Vec<(i64, u64)>) -> bool {
        while let [0x12, len, after @ ..] = rest {
            let Some((message, after)) = after.split_at_checked(usize::from(*len)) else {
                return false;
            };
            let Some(sample) = usual_sample(message) else {
                return false;
            };
            out.push(sample);
            rest = after;
        }
        rest.is_empty()
    }

    fn general(message: &[u8]) -> Result<Sample, WireError> {
        sample(message)
    }
}

/// Value, then time, each left out when it is zero.
#[inline]
fn usual_sample(message: &[u8]) -> Option<(i64, u64)> {
    if message.len() > 0x7f {
        // Its length takes more than the one byte that was read.
        return None;
    }
    let (bits, rest) = match message {
        [0x09, rest @ ..] => {
            let (bits, rest) = rest.split_first_chunk::<8>()?;
            (u64::from_le_bytes(*bits), rest)
        }
        rest => (0, rest),
    };
    let mut at = match rest {
        [] => return Some((0, bits)),
        [0x10, rest @ ..] => Reader::new(rest),
        _ => return None,
    };
    let at_ms = at.varint().ok()? as i64;
    (at.left() == 0).then_some((at_ms, bits))
}

fn sample(message: &[u8]) -> Result<Sample, WireError> {
    let (mut value, mut at_ms) = (0.0, 0i64);
    let mut reader = Reader::new(message);
    while let Some((number, field)) = reader.next()? {
        match number {
            1 => value = f64::from_bits(field.fixed64("a sample's value")?),
            2 => at_ms = field.varint("a sample's timestamp")? as i64,
            _ => {}
        }
    }
    let at = TimestampNs::from_ms(at_ms);
    Ok(Sample { at, value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Naming;
    use crate::testing::{Desk, LIMITS, sorted};
    use hindcast_model::{STALE_NAN_BITS, ShardId};
    use proptest::prelude::*;
    use prost::Message;

    /// Prometheus's messages as prost derives them: the reference for our own reader.
    #[derive(Clone, PartialEq, Message)]
    struct Request {
        #[prost(message, repeated, tag = "1")]
        timeseries: Vec<Series>,
    }
    #[derive(Clone, PartialEq, Message)]
    struct Series {
        #[prost(message, repeated, tag = "1")]
        labels: Vec<Label>,
        #[prost(message, repeated, tag = "2")]
        samples: Vec<Point>,
        #[prost(message, repeated, tag = "4")]
        histograms: Vec<native::tests::Histogram>,
    }
    #[derive(Clone, PartialEq, Message)]
    struct Label {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(string, tag = "2")]
        value: String,
    }
    #[derive(Clone, Copy, PartialEq, Message)]
    struct Point {
        #[prost(double, tag = "1")]
        value: f64,
        #[prost(int64, tag = "2")]
        at_ms: i64,
    }

    fn series(name: &str, points: Vec<Point>) -> Series {
        let label = |(n, v): (&str, &str)| Label {
            name: n.to_owned(),
            value: v.to_owned(),
        };
        Series {
            labels: [("__name__", name), ("instance", "web-1:9100"), ("job", "node")]
                .map(label)
                .to_vec(),
            samples: points,
            histograms: vec![],
        }
    }

    fn body(request: &Request) -> Vec<u8> {
        snap::raw::Encoder::new()
            .compress_vec(&request.encode_to_vec())
            .unwrap()
    }

    fn laid(desk: &Desk, request: &Request, naming: Naming) -> Laid {
        let (tenant, mut scratch) = (TenantId::default(), vec![]);
        let books = desk.books(naming);
        adapt(Version::One, &tenant, &body(request), &LIMITS, &books, &mut scratch).unwrap()
    }

    #[test]
    fn special_values_and_times_before_1970_are_kept_bit_by_bit() {
        // -0 cannot be shown with prost: it leaves out whatever equals zero.
        let bits = [STALE_NAN_BITS, f64::NAN.to_bits() | 5, f64::NEG_INFINITY.to_bits(), 1];
        let points = bits.map(|b| Point {
            value: f64::from_bits(b),
            at_ms: -1,
        });
        let mut node = series("node_load1", points.to_vec());
        let unknown = native::tests::Histogram {
            schema: 9,
            ..Default::default()
        };
        node.histograms = vec![unknown; 2];
        let request = Request { timeseries: vec![node] };
        let desk = Desk::new(1);
        for _ in 0..2 {
            let got = laid(&desk, &request, Naming::Known);
            assert_eq!(got.rejected.by_code()["native_histogram"], 2, "each time");
            let batch = desk.confirm(got);
            let block = &batch.series[0];
            assert!(block.samples.iter().map(|s| s.value.to_bits()).eq(bits));
            assert!(block.samples.iter().all(|s| s.at == TimestampNs::from_ms(-1)));
            assert_eq!(batch.resources[0].name, "web-1");
        }
    }

    #[test]
    fn what_a_request_says_of_its_metrics_is_due_and_its_exemplars_become_lines() {
        let point = Point { value: 1.5, at_ms: 7 };
        let request = Request {
            timeseries: vec![series("up", vec![point])],
        };
        let mut plain = request.encode_to_vec();
        // Of the series: an exemplar behind its sample.
        let inner = request.timeseries[0].encode_to_vec();
        plain.truncate(plain.len() - inner.len() - 1);
        let exemplar = b"\x1a\x1b\x0a\x0e\x0a\x08trace_id\x12\x02a1\x11\0\0\0\0\0\0\xe0\x3f\x18\x07";
        plain.push((inner.len() + exemplar.len()) as u8);
        plain.extend_from_slice(&inner);
        plain.extend_from_slice(exemplar);
        // Of the request: a gauge, and a metric of which nothing is said.
        plain.extend_from_slice(b"\x1a\x0d\x08\x02\x12\x02up\x22\x05Is up\x1a\x04\x12\x02xy");
        let (desk, tenant) = (Desk::new(1), TenantId::default());
        let laid = read(&tenant, &plain, &LIMITS, &desk.books(Naming::Known)).unwrap();
        assert_eq!((laid.exemplars, laid.exemplars_left_out), (1, 0));
        assert_eq!((laid.intake.samples, laid.intake.lines), (1, 1));
        let described = laid.due.batch(&tenant, TimestampNs::from_secs(9)).series;
        let shown: Vec<_> = described
            .iter()
            .map(|s| format!("{} {}", s.labels, s.samples[0].value))
            .collect();
        assert_eq!(
            shown,
            [r#"hindcast_metric_info{help="Is up", metric="up", type="gauge"} 9"#]
        );
        let stored = desk.confirm(laid);
        let line = &stored.streams[0].lines[0];
        assert_eq!(
            stored.streams[0].labels.to_string(),
            r#"{hindcast_metric="up", hindcast_trace="exemplar"}"#
        );
        assert_eq!(stored.streams[0].owner, stored.series[0].owner);
        let of_line = hindcast_proto::trace::read_exemplar_line(&line.line);
        assert_eq!(of_line, Some((stored.series[0].labels.clone(), "0.5".to_owned())));
        assert_eq!(line.at, TimestampNs::from_ms(7));
        assert_eq!(line.metadata, [("trace_id".to_owned(), "a1".to_owned())]);
        plain.extend_from_slice(b"\x1a\x02\x12\x07");
        let broken = read(&tenant, &plain, &LIMITS, &desk.books(Naming::Known));
        assert_eq!(broken.err(), Some(WireError::Truncated));
    }

    #[test]
    fn a_body_under_the_headers_of_the_other_version_is_refused_and_not_taken_for_empty() {
        let (desk, tenant) = (Desk::new(1), TenantId::default());
        let books = desk.books(Naming::Known);
        let of_one = Request {
            timeseries: vec![series("up", vec![Point { value: 1.5, at_ms: 7 }])],
        };
        let of_two = b"\x22\x00\x22\x08__name__\x22\x02up\x2a\x04\x0a\x02\x01\x02";
        let sent = |version, plain: &[u8]| {
            let body = snap::raw::Encoder::new().compress_vec(plain).unwrap();
            let why = adapt(version, &tenant, &body, &LIMITS, &books, &mut vec![]).err();
            why.map(|why| why.to_string()).unwrap_or_default()
        };
        let why = sent(Version::Two, &of_one.encode_to_vec());
        assert!(why.contains("proto=prometheus.WriteRequest"), "{why}");
        let why = sent(Version::One, of_two);
        assert!(why.contains("proto=io.prometheus.write.v2.Request"), "{why}");
    }

    #[test]
    fn a_scrape_becomes_one_run_and_its_labels_travel_once() {
        let desk = Desk::new(1);
        let point = |at_ms| Point { value: 1.5, at_ms };
        let scrape = |at_ms: i64| {
            let of = |i: i64| series(&format!("m{i}"), vec![point(at_ms + i / 10)]);
            Request {
                timeseries: (0..20).map(of).collect(),
            }
        };
        let first = laid(&desk, &scrape(1_000), Naming::Known);
        assert_eq!(first.intake.shares[0].definitions.len(), 20);
        assert!(!first.intake.shares[0].resources.is_empty());
        // Not confirmed: it all travels again.
        let again = laid(&desk, &scrape(1_000), Naming::Known);
        assert_eq!(again.intake, first.intake);
        desk.confirm(again);
        let second = laid(&desk, &scrape(2_000), Naming::Known);
        let share = &second.intake.shares[0];
        assert!(share.definitions.is_empty() && share.resources.is_empty() && second.lessons.is_empty());
        let runs: Vec<_> = share
            .groups
            .iter()
            .map(|g| (g.times_ms.clone(), g.runs.clone()))
            .collect();
        assert_eq!(runs, [(vec![2_000], vec![(0, 10)]), (vec![2_001], vec![(10, 10)])]);
        // The shard forgot its ids: nothing is named by them any more.
        desk.replica.epoch.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let third = laid(&desk, &scrape(3_000), Naming::Known);
        assert_eq!(third.intake.samples, 20);
        assert_eq!(desk.confirm(third).samples(), 20);
    }

    /// Requests whose series repeat in any order, with all that is unusual.
    fn requests() -> impl Strategy<Value = Vec<Request>> {
        let point = (any::<u64>(), prop_oneof![0i64..3, -1i64 << 40..1 << 40]).prop_map(|(bits, at_ms)| Point {
            value: f64::from_bits(bits),
            at_ms,
        });
        let one = (0u8..9, proptest::collection::vec(point, 0..4), 0u8..12);
        let series = one.prop_map(|(name, samples, odd)| {
            let mut s = series(&format!("m{name}"), samples.clone());
            match odd {
                0 => s.histograms = samples.iter().map(|p| native::tests::few(p.at_ms)).collect(),
                1 => s.labels.clear(),
                2 => s.labels.push(s.labels[0].clone()),
                // A longer list that begins like a known one.
                3 => s.labels.push(Label {
                    name: "zone".into(),
                    value: "z".into(),
                }),
                _ => {}
            }
            s
        });
        let request = proptest::collection::vec(series, 0..12).prop_map(|timeseries| Request { timeseries });
        proptest::collection::vec(request, 1..5)
    }

    proptest! {
        /// The known way and the general way give the same rows and the same refusals, whatever came before.
        #[test]
        fn the_known_way_is_the_general_way(requests in requests(), shards in prop_oneof![Just(1u64), Just(4)], now_ms in 0i64..1 << 40) {
            let desk = Desk::new(shards);
            let limits = LimitsContext { now: TimestampNs::from_ms(now_ms), floor: Some(TimestampNs::from_ms(-1 << 39)), bounds: crate::check::Bounds::DEFAULT };
            let (tenant, mut scratch) = (TenantId::default(), vec![]);
            for request in requests.iter().chain(&requests) {
                let body = body(request);
                let mut read = |naming| {
                    adapt(Version::One, &tenant, &body, &limits, &desk.books(naming), &mut scratch).unwrap()
                };
                let (known, general) = (read(Naming::Known), read(Naming::Defined));
                prop_assert_eq!(known.rejected.by_code(), general.rejected.by_code());
                let mut shown = [&known, &general].map(|l| l.rejected.listed().to_vec());
                shown.iter_mut().for_each(|s| s.sort_by(|a, b| (&a.what, a.code).cmp(&(&b.what, b.code))));
                prop_assert_eq!(&shown[0], &shown[1]);
                let general = sorted(desk.replica.apply(&general.intake));
                prop_assert_eq!(sorted(desk.confirm(known)), general);
            }
        }

        #[test]
        fn random_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (desk, tenant) = (Desk::new(1), TenantId::default());
            let books = desk.books(Naming::Known);
            let _ = read(&tenant, &body, &LIMITS, &books);
            let _ = read_2(&tenant, &body, &LIMITS, &books);
            let _ = adapt(Version::Two, &tenant, &body, &LIMITS, &books, &mut vec![]);
        }

        /// Damage to a request whose series are known: refused or read alike both ways, never a panic.
        #[test]
        fn damage_is_the_same_both_ways(at in 0usize..400, byte: u8) {
            let desk = Desk::new(1);
            let point = Point { value: 2.5, at_ms: 1_700_000_000_000 };
            let request = Request { timeseries: (0..4).map(|i| series(&format!("m{i}"), vec![point])).collect() };
            desk.confirm(laid(&desk, &request, Naming::Known));
            let mut bytes = request.encode_to_vec();
            let at = at % bytes.len();
            bytes[at] = byte;
            let tenant = TenantId::default();
            let known = read(&tenant, &bytes, &LIMITS, &desk.books(Naming::Known));
            let general = read(&tenant, &bytes, &LIMITS, &desk.books(Naming::Defined));
            match (known, general) {
                (Ok(known), Ok(general)) => {
                    let general = sorted(desk.replica.apply(&general.intake));
                    prop_assert_eq!(sorted(desk.replica.apply(&known.intake)), general);
                }
                (Err(_), Err(_)) => {}
                _ => prop_assert!(false, "one way read it, the other did not"),
            }
        }
    }

    #[test]
    fn shards_take_their_own_series() {
        let desk = Desk::new(4);
        let point = Point { value: 1.0, at_ms: 7 };
        let of = |i: usize| {
            let mut s = series("up", vec![point]);
            s.labels[1].value = format!("h{i}:9100");
            s
        };
        let request = Request {
            timeseries: (0..40).map(of).collect(),
        };
        for _ in 0..2 {
            let got = laid(&desk, &request, Naming::Known);
            let shards: Vec<ShardId> = got.intake.shares.iter().map(|s| s.shard).collect();
            assert_eq!(shards, [1, 2, 3, 4].map(ShardId));
            assert_eq!(desk.confirm(got).samples(), 40);
        }
    }
}

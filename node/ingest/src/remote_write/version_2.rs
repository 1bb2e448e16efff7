//! Prometheus remote write 2.0: a snappy block of `io.prometheus.write.v2.Request`, whose texts stand in a table.
//!
//! The request is written out as one of version 1.0, series by series, and laid out as such: so a series is known by the same
//! bytes whichever version it comes in. What a series says that cannot be written out (references beyond the table, labels that
//! are not sorted) is refused with its name; the other series are taken. Start times of counters are not kept, as Prometheus
//! does not keep them unless it is told to.
//!
//! Layout of the message: symbols are field 4, series field 5. A series has `labels_refs` (1), samples (2), histograms (3),
//! exemplars (4) and metadata (5).

use crate::described::{Metric, MetricType};
use crate::exemplars::EXEMPLAR_CHARS_MAX;
use crate::intake::put_varint;
use crate::walk::Layout;
use crate::wire::{Field, Reader, WireError, messages};
use crate::{Refusal, check};
use hindcast_model::limits::LABELS_MAX;
use hindcast_model::{Labels, METRIC_NAME};
use std::collections::BTreeSet;
use std::ops::Range;

/// Texts of one request's table.
pub const SYMBOLS_MAX: usize = 1_000_000;
/// What the series of one request may take, written out: their labels, samples and histograms.
pub const SPELLED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// An exemplar, written out: four bytes of a character at most, and what is around each label.
const EXEMPLAR_BYTES_MAX: usize = 10 * EXEMPLAR_CHARS_MAX + 32;
/// A sample, written out.
const SAMPLE_BYTES_MAX: usize = 24;

/// Why a request is not laid out.
pub(super) enum Why {
    Wire(WireError),
    TooLarge,
}

impl From<WireError> for Why {
    fn from(why: WireError) -> Self {
        Self::Wire(why)
    }
}

/// What a sender hears who says one version and sends the other.
pub(super) const IS_TWO: &str =
    "it is one of version 2.0; say so: Content-Type: application/x-protobuf;proto=io.prometheus.write.v2.Request";
const IS_ONE: &str =
    "it is one of version 1.0; say so: Content-Type: application/x-protobuf;proto=prometheus.WriteRequest";

/// The request's series as messages of version 1.0, one after another.
#[derive(Default)]
pub(super) struct Spelled {
    bytes: Vec<u8>,
    series: Vec<Range<usize>>,
}

impl Spelled {
    pub fn messages(&self) -> impl Iterator<Item = Result<&[u8], WireError>> {
        self.series.iter().map(|range| Ok(&self.bytes[range.clone()]))
    }
}

struct Table<'m>(Vec<&'m str>);

impl<'m> Table<'m> {
    fn read(body: &'m [u8]) -> Result<Self, WireError> {
        if let Some(first) = messages(body, 1).next() {
            first?;
            return Err(WireError::Shape(IS_ONE));
        }
        let mut symbols = vec![];
        for symbol in messages(body, 4) {
            if symbols.len() == SYMBOLS_MAX {
                return Err(WireError::Shape(
                    "its table has more than 1000000 symbols; send smaller requests",
                ));
            }
            symbols.push(std::str::from_utf8(symbol?).map_err(|_| WireError::Utf8("a symbol"))?);
        }
        match symbols.first() {
            Some(first) if !first.is_empty() => Err(WireError::Shape(
                "its table of symbols does not begin with the empty text",
            )),
            _ => Ok(Self(symbols)),
        }
    }

    fn get(&self, reference: u64) -> Result<&'m str, Refusal> {
        let found = usize::try_from(reference).ok().and_then(|i| self.0.get(i));
        found.copied().ok_or_else(|| Refusal::BadSymbols {
            why: format!("reference {reference} of a table of {}", self.0.len()),
        })
    }

    /// The labels that `references` name, and what is wrong with them.
    fn labels(&self, references: &[u64]) -> (Vec<(&'m str, &'m str)>, Result<(), Refusal>) {
        if references.len() > 2 * LABELS_MAX {
            let labels = references.len() / 2;
            return (
                vec![],
                Err(Refusal::TooManyLabels {
                    labels,
                    max: LABELS_MAX,
                }),
            );
        }
        let mut pairs = Vec::with_capacity(references.len() / 2);
        for pair in references.chunks(2) {
            match (self.get(pair[0]), pair.get(1).map(|r| self.get(*r))) {
                (Ok(name), Some(Ok(value))) => pairs.push((name, value)),
                (Err(why), _) | (_, Some(Err(why))) => return (pairs, Err(why)),
                (Ok(_), None) => {
                    let why = format!("{} of them, and a label takes two", references.len());
                    return (pairs, Err(Refusal::BadSymbols { why }));
                }
            }
        }
        let sorted = || {
            for (name, _) in &pairs {
                if name.is_empty() {
                    return Err(Refusal::BadLabelName { name: String::new() });
                }
            }
            for two in pairs.windows(2) {
                let name = check::shown(two[1].0);
                match two[0].0.cmp(two[1].0) {
                    std::cmp::Ordering::Less => {}
                    std::cmp::Ordering::Equal => return Err(Refusal::LabelTwice { name }),
                    std::cmp::Ordering::Greater => return Err(Refusal::LabelsUnsorted { name }),
                }
            }
            Ok(())
        };
        let sorted = sorted();
        (pairs, sorted)
    }
}

/// Packed or one by one. What is beyond any number of labels is not read.
fn references(field: Field<'_>, out: &mut Vec<u64>) -> Result<(), WireError> {
    match field {
        Field::Bytes(packed) => {
            let mut reader = Reader::new(packed);
            while reader.left() > 0 && out.len() <= 2 * LABELS_MAX + 1 {
                out.push(reader.varint()?);
            }
        }
        one => {
            let reference = one.varint("a label's reference")?;
            if out.len() <= 2 * LABELS_MAX + 1 {
                out.push(reference);
            }
        }
    }
    Ok(())
}

fn put_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_label(out: &mut Vec<u8>, name: &str, value: &str) {
    let len_of = |text: &str| 1 + varint_len(text.len()) + text.len();
    out.push(0x0a);
    put_varint(out, (len_of(name) + len_of(value)) as u64);
    put_bytes(out, 0x0a, name.as_bytes());
    put_bytes(out, 0x12, value.as_bytes());
}

fn varint_len(value: usize) -> usize {
    (usize::BITS - (value | 1).leading_zeros()).div_ceil(7) as usize
}

/// A sample as version 1.0 has it: without its start time.
fn put_sample(out: &mut Vec<u8>, message: &[u8]) -> Result<(), WireError> {
    let (mut bits, mut at_ms) = (0, 0);
    let mut reader = Reader::new(message);
    while let Some((number, field)) = reader.next()? {
        match number {
            1 => bits = field.fixed64("a sample's value")?,
            2 => at_ms = field.varint("a sample's timestamp")?,
            _ => {}
        }
    }
    out.push(0x12);
    out.push((10 + varint_len(at_ms as usize)) as u8);
    out.push(0x09);
    out.extend_from_slice(&u64::to_le_bytes(bits));
    out.push(0x10);
    put_varint(out, at_ms);
    Ok(())
}

/// An exemplar as version 1.0 has it. `false`: its labels cannot be, or are too long.
fn put_exemplar(out: &mut Vec<u8>, message: &[u8], table: &Table<'_>) -> Result<bool, WireError> {
    let (mut refs, mut bits, mut at_ms) = (vec![], 0, 0);
    let mut reader = Reader::new(message);
    while let Some((number, field)) = reader.next()? {
        match number {
            1 => references(field, &mut refs)?,
            2 => bits = field.fixed64("an exemplar's value")?,
            3 => at_ms = field.varint("an exemplar's timestamp")?,
            _ => {}
        }
    }
    let (pairs, checked) = table.labels(&refs);
    let chars: usize = pairs.iter().map(|(n, v)| n.chars().count() + v.chars().count()).sum();
    if checked.is_err() || pairs.len() > EXEMPLAR_CHARS_MAX || chars > EXEMPLAR_CHARS_MAX {
        return Ok(false);
    }
    let mut exemplar = vec![];
    for (name, value) in &pairs {
        put_label(&mut exemplar, name, value);
    }
    exemplar.push(0x11);
    exemplar.extend_from_slice(&u64::to_le_bytes(bits));
    exemplar.push(0x18);
    put_varint(&mut exemplar, at_ms);
    put_bytes(out, 0x1a, &exemplar);
    Ok(true)
}

/// What a series says of its metric: type, and references of help and unit.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Said {
    kind: u64,
    help: u64,
    unit: u64,
}

fn said(message: &[u8]) -> Result<Said, WireError> {
    let mut said = Said::default();
    let mut reader = Reader::new(message);
    while let Some((number, field)) = reader.next()? {
        match number {
            1 => said.kind = field.varint("a metric's type")?,
            3 => said.help = field.varint("a help text's reference")?,
            4 => said.unit = field.varint("a unit's reference")?,
            _ => {}
        }
    }
    Ok(said)
}

/// Writes the request's series out. What of them cannot be is refused in `layout`, which is also told of their metrics.
pub(super) fn spell(body: &[u8], layout: &mut Layout<'_>) -> Result<Spelled, Why> {
    let table = Table::read(body)?;
    let mut spelled = Spelled::default();
    let mut told = BTreeSet::new();
    let mut refs = vec![];
    for series in messages(body, 5) {
        let series = series?;
        refs.clear();
        let (mut samples, mut histograms, mut exemplars, mut of_metric) = (0, 0, 0, None);
        let mut reader = Reader::new(series);
        while let Some((number, field)) = reader.next()? {
            match number {
                1 => references(field, &mut refs)?,
                2 => samples += 1,
                3 => histograms += 1,
                4 => exemplars += 1,
                5 => of_metric = Some(said(field.bytes("a metric's metadata")?)?),
                _ => {}
            }
        }
        let (pairs, checked) = table.labels(&refs);
        if let Err(why) = checked {
            let shown = || Labels::new(pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect());
            layout.rejected.add(samples + histograms, &why, || shown().to_string());
            layout.exemplars.left_out += exemplars;
            continue;
        }
        let before = spelled.bytes.len();
        let labels_bytes: usize = pairs.iter().map(|(n, v)| n.len() + v.len() + 16).sum();
        let rows_bytes = samples as usize * SAMPLE_BYTES_MAX + exemplars as usize * EXEMPLAR_BYTES_MAX + series.len();
        if before + labels_bytes + rows_bytes > SPELLED_BYTES_MAX {
            return Err(Why::TooLarge);
        }
        for (name, value) in &pairs {
            put_label(&mut spelled.bytes, name, value);
        }
        let mut reader = Reader::new(series);
        while let Some((number, field)) = reader.next()? {
            match number {
                2 => put_sample(&mut spelled.bytes, field.bytes("a sample")?)?,
                3 => put_bytes(&mut spelled.bytes, 0x22, field.bytes("a histogram")?),
                4 => {
                    let is_put = put_exemplar(&mut spelled.bytes, field.bytes("an exemplar")?, &table)?;
                    layout.exemplars.left_out += u64::from(!is_put);
                }
                _ => {}
            }
        }
        spelled.series.push(before..spelled.bytes.len());
        let name = pairs.iter().find(|(n, _)| *n == METRIC_NAME).map(|(_, name)| *name);
        if let (Some(name), Some(said)) = (name, of_metric)
            && told.insert((name, said))
        {
            let kind = MetricType::of_number(said.kind);
            match (table.get(said.help), table.get(said.unit)) {
                (Ok(help), Ok(unit)) => layout.describe(&Metric {
                    name: kind.family_of(name),
                    kind,
                    help,
                    unit,
                }),
                // The samples are not to blame: told, and nothing is counted as lost.
                (Err(why), _) | (_, Err(why)) => layout.rejected.add(0, &why, || format!("metadata of {name}")),
            }
        }
    }
    Ok(spelled)
}

#[cfg(test)]
mod tests {
    use super::super::{Version, adapt, read, read_2};
    use super::*;
    use crate::testing::{Desk, LIMITS, sorted};
    use crate::{AdaptError, Laid, Naming};
    use expect_test::{Expect, expect};
    use hindcast_model::TenantId;
    use proptest::prelude::*;
    use prost::Message;

    /// Messages as prost derives them: the reference for our own reader.
    #[derive(Clone, PartialEq, Message)]
    struct Request {
        #[prost(string, repeated, tag = "4")]
        symbols: Vec<String>,
        #[prost(message, repeated, tag = "5")]
        timeseries: Vec<Series>,
    }
    #[derive(Clone, PartialEq, Message)]
    struct Series {
        #[prost(uint32, repeated, tag = "1")]
        labels_refs: Vec<u32>,
        #[prost(message, repeated, tag = "2")]
        samples: Vec<Sample>,
        #[prost(message, repeated, tag = "3")]
        histograms: Vec<super::super::native::tests::Histogram>,
        #[prost(message, repeated, tag = "4")]
        exemplars: Vec<Exemplar>,
        #[prost(message, optional, tag = "5")]
        metadata: Option<Metadata>,
        #[prost(int64, tag = "6")]
        created: i64,
    }
    #[derive(Clone, Copy, PartialEq, Message)]
    struct Sample {
        #[prost(double, tag = "1")]
        value: f64,
        #[prost(int64, tag = "2")]
        at_ms: i64,
        #[prost(int64, tag = "3")]
        start_ms: i64,
    }
    #[derive(Clone, PartialEq, Message)]
    struct Exemplar {
        #[prost(uint32, repeated, tag = "1")]
        labels_refs: Vec<u32>,
        #[prost(double, tag = "2")]
        value: f64,
        #[prost(int64, tag = "3")]
        at_ms: i64,
    }
    #[derive(Clone, Copy, PartialEq, Message)]
    struct Metadata {
        #[prost(int32, tag = "1")]
        kind: i32,
        #[prost(uint32, tag = "3")]
        help: u32,
        #[prost(uint32, tag = "4")]
        unit: u32,
    }

    fn series(labels_refs: &[u32]) -> Series {
        Series {
            labels_refs: labels_refs.to_vec(),
            samples: vec![Sample {
                value: 1.5,
                at_ms: 7,
                start_ms: 3,
            }],
            ..Default::default()
        }
    }

    fn request(timeseries: Vec<Series>) -> Request {
        let symbols = [
            "",
            "__name__",
            "up",
            "job",
            "a",
            "lag_bucket",
            "How far behind",
            "seconds",
        ];
        Request {
            symbols: symbols.map(str::to_owned).to_vec(),
            timeseries,
        }
    }

    fn laid(desk: &Desk, request: &Request) -> Result<Laid, AdaptError> {
        let body = snap::raw::Encoder::new()
            .compress_vec(&request.encode_to_vec())
            .unwrap();
        adapt(
            Version::Two,
            &TenantId::default(),
            &body,
            &LIMITS,
            &desk.books(Naming::Known),
            &mut vec![],
        )
    }

    /// What is stored, what is refused, what is said of metrics.
    fn check(request: &Request, expect: Expect) {
        let desk = Desk::new(1);
        let mut shown = String::new();
        match laid(&desk, request) {
            Err(why) => shown += &format!("{why}\n"),
            Ok(laid) => {
                for r in laid.rejected.listed() {
                    shown += &format!("refused {} ({}) {}: {}\n", r.what, r.items, r.code, r.why);
                }
                for s in laid.due.batch(&TenantId::default(), LIMITS.now).series {
                    shown += &format!("{}\n", s.labels);
                }
                let (exemplars, left_out) = (laid.exemplars, laid.exemplars_left_out);
                shown += &format!("{exemplars} exemplars, {left_out} left out\n");
                let stored = desk.confirm(laid);
                for l in stored.streams.iter().flat_map(|s| &s.lines) {
                    shown += &format!("{} {:?}\n", String::from_utf8_lossy(&l.line), l.metadata);
                }
                for s in stored.series {
                    shown += &format!(
                        "{} {:?}\n",
                        s.labels,
                        s.samples.iter().map(|s| s.value).collect::<Vec<_>>()
                    );
                }
            }
        }
        expect.assert_eq(&shown);
    }

    #[test]
    fn a_request_is_stored_and_its_metrics_are_described() {
        let mut up = series(&[1, 2, 3, 4]);
        up.created = 5;
        let exemplar = |labels_refs: &[u32]| Exemplar {
            labels_refs: labels_refs.to_vec(),
            value: 0.5,
            at_ms: 7,
        };
        // The last one has a label without a value.
        up.exemplars = vec![exemplar(&[3, 4]), exemplar(&[]), exemplar(&[3])];
        let lag = Series {
            metadata: Some(Metadata {
                kind: 3,
                help: 6,
                unit: 7,
            }),
            ..series(&[1, 5, 3, 4])
        };
        check(
            &request(vec![up, lag.clone(), lag]),
            expect![[r#"
                hindcast_metric_info{help="How far behind", metric="lag", type="histogram", unit="seconds"}
                2 exemplars, 1 left out
                {"series":{"__name__":"up","job":"a"},"value":"0.5"} [("job", "a")]
                {"series":{"__name__":"up","job":"a"},"value":"0.5"} []
                up{job="a"} [1.5]
                lag_bucket{job="a"} [1.5]
                lag_bucket{job="a"} [1.5]
            "#]],
        );
    }

    #[test]
    fn what_cannot_be_followed_is_refused_by_name_and_the_rest_is_stored() {
        let mut both = series(&[1, 2, 99, 4]);
        both.histograms = vec![super::super::native::tests::few(7)];
        let vague = Series {
            metadata: Some(Metadata {
                kind: 1,
                help: 77,
                unit: 0,
            }),
            ..series(&[1, 2, 3, 4])
        };
        check(
            &request(vec![
                both,
                series(&[1, 2, 3]),
                series(&[0, 2]),
                series(&[3, 4, 1, 2]),
                series(&[1, 2, 1, 2]),
                series(&[3, 4]),
                series(&[1; 2 * LABELS_MAX + 2]),
                vague,
            ]),
            expect![[r#"
                refused up (3) bad_symbols: its references into the table of symbols cannot be followed: reference 99 of a table of 8
                refused {="up"} (1) bad_label_name: a label name is empty or has control characters: ""
                refused up{job="a"} (1) labels_unsorted: the label "__name__" stands behind one that sorts after it; labels of remote write 2.0 are sorted by name
                refused up (1) label_twice: the label "__name__" is given twice
                refused {} (1) too_many_labels: it has 65 labels, more than 64
                refused metadata of up (0) bad_symbols: its references into the table of symbols cannot be followed: reference 77 of a table of 8
                refused {job="a"} (1) no_name: it has no label __name__
                0 exemplars, 0 left out
                up{job="a"} [1.5]
            "#]],
        );
    }

    #[test]
    fn a_table_without_the_empty_text_is_none() {
        let mut wrong = request(vec![series(&[1, 2])]);
        wrong.symbols.remove(0);
        check(
            &wrong,
            expect![[r#"
                the body is not a readable remote_write request: its table of symbols does not begin with the empty text
            "#]],
        );
    }

    #[test]
    fn a_small_request_does_not_become_a_large_one() {
        let mut large = request(vec![]);
        large.symbols.push("v".repeat(4096));
        let many = SPELLED_BYTES_MAX / (4096 * 10) + 1;
        let refs: Vec<u32> = [1, 2].into_iter().chain([3, 8].repeat(10)).collect();
        // Refused before they are written out: a label given twice.
        large.timeseries = vec![series(&refs); many];
        assert_eq!(
            laid(&Desk::new(1), &large).unwrap().rejected.by_code()["label_twice"],
            many as u64
        );
        for i in 0..10 {
            large.symbols.push(format!("l{i}"));
        }
        let refs: Vec<u32> = [1, 2].into_iter().chain((0..10).flat_map(|i| [9 + i, 8])).collect();
        large.timeseries = vec![series(&refs); many];
        let bytes_max = SPELLED_BYTES_MAX;
        assert_eq!(
            laid(&Desk::new(1), &large).err(),
            Some(AdaptError::DecodedTooLarge { bytes_max })
        );
        large.timeseries.truncate(many - 10);
        assert!(laid(&Desk::new(1), &large).is_ok());

        let mut symbols = vec![0x22, 0];
        symbols = symbols.repeat(SYMBOLS_MAX + 1);
        let desk = Desk::new(1);
        let read = |bytes: &[u8]| read_2(&TenantId::default(), bytes, &LIMITS, &desk.books(Naming::Known)).is_ok();
        assert!(read(&symbols[2..]) && !read(&symbols));
    }

    fn samples() -> impl Strategy<Value = Vec<(u64, i64)>> {
        proptest::collection::vec((any::<u64>(), prop_oneof![0i64..3, -1i64 << 40..1 << 40]), 0..4)
    }

    proptest! {
        /// The same series in both versions become the same rows, whichever came first.
        #[test]
        fn both_versions_say_the_same(all in proptest::collection::vec((0u32..5, samples()), 0..8), first: bool) {
            let mut two = Request { symbols: vec![String::new(), "__name__".into(), "job".into()], ..Default::default() };
            two.symbols.extend((0..5).map(|i| format!("m{i}")));
            let mut one = vec![];
            for (name, samples) in &all {
                two.timeseries.push(Series {
                    labels_refs: vec![1, 3 + name, 2, 3],
                    samples: samples.iter().map(|s| Sample { value: f64::from_bits(s.0), at_ms: s.1, start_ms: 1 }).collect(),
                    ..Default::default()
                });
                let mut series = vec![];
                put_label(&mut series, "__name__", &format!("m{name}"));
                put_label(&mut series, "job", "m0");
                for (bits, at_ms) in samples {
                    put_sample(&mut series, &Sample { value: f64::from_bits(*bits), at_ms: *at_ms, start_ms: 0 }.encode_to_vec()).unwrap();
                }
                put_bytes(&mut one, 0x0a, &series);
            }
            let (desk, tenant) = (Desk::new(4), TenantId::default());
            let two = two.encode_to_vec();
            let books = desk.books(Naming::Known);
            let of_one = || read(&tenant, &one, &LIMITS, &books).ok().unwrap();
            let of_two = || read_2(&tenant, &two, &LIMITS, &books).ok().unwrap();
            let (a, b) = match first {
                true => (sorted(desk.confirm(of_one())), sorted(desk.confirm(of_two()))),
                false => (sorted(desk.confirm(of_two())), sorted(desk.confirm(of_one()))),
            };
            let bits = |b: &hindcast_model::Batch| -> Vec<_> {
                let of = |s: &hindcast_model::SeriesBlock| {
                    (s.labels.clone(), s.samples.iter().map(|s| (s.at, s.value.to_bits())).collect::<Vec<_>>())
                };
                b.series.iter().map(of).collect()
            };
            prop_assert_eq!(bits(&a), bits(&b));
        }

        #[test]
        fn damage_never_panics(at in 0usize..200, byte: u8) {
            let mut bytes = request(vec![series(&[1, 2, 3, 4]), series(&[1, 5])]).encode_to_vec();
            let at = at % bytes.len();
            bytes[at] = byte;
            let desk = Desk::new(1);
            let _ = read_2(&TenantId::default(), &bytes, &LIMITS, &desk.books(Naming::Known));
        }
    }
}

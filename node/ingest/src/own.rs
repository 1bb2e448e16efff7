//! `hindcast.v1.WriteRequest`, laid out. Read field by field, so that a writer's repeated series cost little.
//!
//! Point times are milliseconds, line times nanoseconds. With resource attributes, a series without `job` or
//! `instance` gets them from its owner, and a stream gets the labels that OTLP logs would get.
//!
//! A writer may name series by numbers of its own ([`SeriesRefs`]) and send rows of values for them: then a sample
//! costs its eight bytes and little more.

use crate::intake::{Naming, Numbers};
use crate::owners::Scope;
use crate::walk::{Layout, LineForm, LineView, Names, SampleForm, shown_labels};
use crate::wire::{Field, Reader, WireError, label, label_run, labels};
use crate::{AdaptError, Books, Laid, LimitsContext, Protocol, Refusal, identity};
use hindcast_model::{BatchId, Sample, ShardId, TenantId, TimestampNs, WriterId};
use std::borrow::Cow;
use std::sync::Arc;

/// References are numbers below this: so many series one stream may name.
pub const SERIES_REFS_MAX: usize = 262_144;
/// Encoded labels that one stream may define.
pub const SERIES_REFS_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Sets of resource attributes that one stream may define series under.
pub const SERIES_REFS_RESOURCES_MAX: usize = 4_096;

/// A request laid out, and the number that its writer gave it.
pub struct OwnRequest {
    pub seq: u64,
    pub laid: Laid,
}

/// The parts of a request, still encoded.
#[derive(Default)]
struct Parts<'a> {
    writer: &'a str,
    seq: u64,
    resource: Vec<(String, String)>,
    series: Vec<&'a [u8]>,
    streams: Vec<&'a [u8]>,
    definitions: Vec<&'a [u8]>,
    rows: Vec<&'a [u8]>,
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
            6 => parts.definitions.push(field.bytes("definitions")?),
            7 => parts.rows.push(field.bytes("rows")?),
            // A series that has no points.
            8 => parts.series.push(field.bytes("histograms")?),
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

/// Lays out an encoded `WriteRequest`. `refs` are the names that earlier requests of the same stream gave; those
/// that this one gives are added, if it can be read as a whole.
pub fn adapt(
    tenant: &TenantId,
    body: &[u8],
    limits: &LimitsContext,
    books: &Books<'_>,
    refs: &mut SeriesRefs,
) -> Result<OwnRequest, AdaptError> {
    let mark = refs.mark();
    read(tenant, body, limits, books, refs)
        .inspect_err(|_| refs.take_back(mark))
        .map_err(|e| e.of(Protocol::Own))
}

fn read(
    tenant: &TenantId,
    body: &[u8],
    limits: &LimitsContext,
    books: &Books<'_>,
    refs: &mut SeriesRefs,
) -> Result<OwnRequest, WireError> {
    let parts = parts(body)?;
    let mut layout = Layout::new(tenant, limits, *books);
    if !parts.writer.is_empty() {
        let writer = WriterId::named(tenant, parts.writer);
        layout.intake.id = Some(BatchId::Sequenced { writer, seq: parts.seq });
    }
    let names_of = |role| Names {
        attrs: &parts.resource,
        scope: Scope::new(tenant, &parts.resource, role).into(),
    };
    let names = names_of("series");
    refs.define(&parts.definitions, &names)?;
    layout.series::<Form>(parts.series.iter().map(|m| Ok(*m)), &names)?;
    for message in &parts.rows {
        Rows::read(message)?.lay(&mut layout, refs)?;
    }
    layout.text_bytes = parts.streams.iter().map(|m| m.len()).sum();
    layout.streams::<Form>(parts.streams.iter().map(|m| Ok(*m)), &names_of("stream"))?;
    let mut edges = vec![];
    // Who runs on what is told with what is new, as resources are.
    if !parts.resource.is_empty() && layout.is_news {
        let ends;
        (edges, ends) = identity::edges(tenant, &parts.resource);
        layout.note_ends(ends);
    }
    Ok(OwnRequest {
        seq: parts.seq,
        laid: layout.finish(&edges),
    })
}

struct Form;

impl SampleForm for Form {
    const HISTOGRAMS: bool = true;

    fn usual(mut rest: &[u8], out: &mut Vec<(i64, u64)>) -> bool {
        while let [0x12, len, after @ ..] = rest {
            let Some((message, after)) = after.split_at_checked(usize::from(*len)) else {
                return false;
            };
            // A length of more bytes than one is above every usual one.
            let (at, message) = fixed64(message, 0x09);
            let (value, message) = fixed64(message, 0x11);
            if !message.is_empty() {
                return false;
            }
            out.push((at as i64, value));
            rest = after;
        }
        rest.is_empty()
    }

    fn general(message: &[u8]) -> Result<Sample, WireError> {
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
}

/// The field with this tag, if the message begins with it; senders leave out what is zero.
#[inline]
fn fixed64(message: &[u8], tag: u8) -> (u64, &[u8]) {
    let value = message.strip_prefix(&[tag]).and_then(|m| m.split_first_chunk::<8>());
    value.map_or((0, message), |(bytes, rest)| (u64::from_le_bytes(*bytes), rest))
}

impl LineForm for Form {
    fn line<'m>(message: &'m [u8], into: &mut LineView<'m>) -> Result<(), WireError> {
        (into.at_ns, into.text) = (0, "");
        into.metadata.clear();
        let mut reader = Reader::new(message);
        while let Some((number, field)) = reader.next()? {
            match number {
                1 => into.at_ns = field.fixed64("at_ns")? as i64,
                2 => into.text = field.text("a line's text")?,
                3 => into.metadata.push(label(field.bytes("metadata")?)?),
                _ => {}
            }
        }
        into.metadata.sort_unstable();
        Ok(())
    }

    fn labels(message: &[u8]) -> Result<Result<Vec<(String, String)>, Refusal>, WireError> {
        Ok(Ok(labels(message)?))
    }

    fn shown(message: &[u8]) -> String {
        shown_labels(message)
    }
}

/// A series that a stream has named.
#[derive(Clone, Copy)]
struct Ref {
    /// Where its encoded labels lie.
    at: u32,
    len: u32,
    resource: u32,
    shard: ShardId,
    /// Low half of the epoch, and the id.
    id: Option<(u32, u32)>,
}

struct OfResource {
    attrs: Vec<(String, String)>,
    scope: Arc<Scope>,
}

/// Names that a writer gave to its series, for the length of one stream.
///
/// Invariant: a reference means the same series from its definition to the end of the stream.
#[derive(Default)]
pub struct SeriesRefs {
    by_ref: Vec<Option<Ref>>,
    raw: Vec<u8>,
    resources: Vec<OfResource>,
    /// References in the order of their definitions.
    order: Vec<u32>,
}

impl SeriesRefs {
    fn mark(&self) -> usize {
        self.order.len()
    }

    /// Forgets what was defined since the mark.
    fn take_back(&mut self, mark: usize) {
        for number in self.order.drain(mark..) {
            if let Some(taken) = self.by_ref[number as usize].take() {
                self.raw.truncate(self.raw.len().min(taken.at as usize));
            }
        }
    }

    fn define(&mut self, definitions: &[&[u8]], names: &Names<'_>) -> Result<(), WireError> {
        if definitions.is_empty() {
            return Ok(());
        }
        let resource = self.resource(names)?;
        for message in definitions {
            let run = label_run(message)?.filter(|r| !r.raw.is_empty());
            let run = run.ok_or(WireError::Shape("a definition begins with its labels"))?;
            labels(run.raw)?;
            let mut number = 0;
            let mut rest = run.rest;
            while let Some((n, field)) = rest.next()? {
                if n == 2 {
                    number = field.varint("a series reference")?;
                }
            }
            if number >= SERIES_REFS_MAX as u64 {
                return Err(WireError::TooManyRefs {
                    what: "series references",
                    max: SERIES_REFS_MAX,
                });
            }
            self.add(number as u32, run.raw, resource)?;
        }
        Ok(())
    }

    fn resource(&mut self, names: &Names<'_>) -> Result<u32, WireError> {
        // The last one is the usual one; senders that mix many are few.
        if let Some(at) = self.resources.iter().rposition(|r| r.attrs == names.attrs) {
            return Ok(at as u32);
        }
        if self.resources.len() == SERIES_REFS_RESOURCES_MAX {
            return Err(WireError::TooManyRefs {
                what: "sets of resource attributes",
                max: SERIES_REFS_RESOURCES_MAX,
            });
        }
        self.resources.push(OfResource {
            attrs: names.attrs.to_vec(),
            scope: names.scope.clone(),
        });
        Ok(self.resources.len() as u32 - 1)
    }

    fn add(&mut self, number: u32, raw: &[u8], resource: u32) -> Result<(), WireError> {
        if let Some(Some(known)) = self.by_ref.get(number as usize) {
            // Said again: a retry.
            let same = known.resource == resource && *self.raw_of(known) == *raw;
            return if same { Ok(()) } else { Err(WireError::RefTwice(number)) };
        }
        if self.raw.len() + raw.len() > SERIES_REFS_BYTES_MAX {
            return Err(WireError::TooManyRefs {
                what: "bytes of labels",
                max: SERIES_REFS_BYTES_MAX,
            });
        }
        if self.by_ref.len() <= number as usize {
            self.by_ref.resize(number as usize + 1, None);
        }
        self.by_ref[number as usize] = Some(Ref {
            at: self.raw.len() as u32,
            len: raw.len() as u32,
            resource,
            shard: ShardId(0),
            id: None,
        });
        self.raw.extend_from_slice(raw);
        self.order.push(number);
        Ok(())
    }

    fn raw_of(&self, r: &Ref) -> &[u8] {
        &self.raw[r.at as usize..][..r.len as usize]
    }

    /// The reference, with its id if the node knows one.
    fn get(&mut self, number: u32, layout: &Layout<'_>) -> Result<Ref, WireError> {
        let known = self.by_ref.get(number as usize).copied().flatten();
        let mut r = known.ok_or(WireError::UnknownRef(number))?;
        if layout.books.naming == Naming::Known {
            let ids = layout.books.ids;
            let epoch = |shard| ids.epoch(shard);
            if r.id.is_none_or(|(of, _)| of != epoch(r.shard) as u32) {
                let scope = &self.resources[r.resource as usize].scope;
                if let Some(hit) = layout.books.cache.lookup(scope).find(self.raw_of(&r)) {
                    let now = epoch(hit.shard);
                    (r.shard, r.id) = (hit.shard, hit.id(now).map(|id| (now as u32, id)));
                    self.by_ref[number as usize] = Some(r);
                }
            }
        }
        Ok(r)
    }
}

/// A `Rows` message.
struct Rows<'m> {
    times_ms: Vec<i64>,
    runs: Vec<(u32, u32)>,
    width: usize,
    values: Cow<'m, [u8]>,
}

impl<'m> Rows<'m> {
    fn read(message: &'m [u8]) -> Result<Self, WireError> {
        let (mut times_ms, mut numbers, mut values) = (vec![], vec![], Cow::Borrowed(&[][..]));
        let mut reader = Reader::new(message);
        while let Some((number, field)) = reader.next()? {
            match (number, field) {
                (1, Field::Fixed64(at)) => times_ms.push(at as i64),
                (1, Field::Bytes(packed)) => {
                    let (whole, cut) = packed.as_chunks::<8>();
                    if !cut.is_empty() {
                        return Err(WireError::Shape("at_ms is not a list of 8-byte numbers"));
                    }
                    times_ms.extend(whole.iter().map(|b| i64::from_le_bytes(*b)));
                }
                (2, Field::Varint(n)) => numbers.push(n),
                (2, Field::Bytes(packed)) => {
                    let mut packed = Reader::new(packed);
                    while packed.left() > 0 {
                        numbers.push(packed.varint()?);
                    }
                }
                (3, Field::Fixed64(bits)) => values.to_mut().extend_from_slice(&bits.to_le_bytes()),
                (3, Field::Bytes(packed)) if values.is_empty() => values = Cow::Borrowed(packed),
                (3, Field::Bytes(packed)) => values.to_mut().extend_from_slice(packed),
                (1..=3, _) => return Err(WireError::Type("rows")),
                _ => {}
            }
        }
        let (pairs, odd) = numbers.as_chunks::<2>();
        let mut rows = Self {
            times_ms,
            runs: vec![],
            width: 0,
            values,
        };
        for &[first, len] in pairs {
            let end = first.saturating_add(len);
            if end > SERIES_REFS_MAX as u64 {
                return Err(WireError::UnknownRef(u32::try_from(end - 1).unwrap_or(u32::MAX)));
            }
            rows.width += len as usize;
            rows.runs.push((first as u32, len as u32));
        }
        let fits = rows
            .width
            .checked_mul(rows.times_ms.len())
            .and_then(|n| n.checked_mul(8));
        if !odd.is_empty() || fits != Some(rows.values.len()) {
            return Err(WireError::Shape(
                "rows do not hold a value for each of their times and references",
            ));
        }
        Ok(rows)
    }

    fn lay(&self, layout: &mut Layout<'_>, refs: &mut SeriesRefs) -> Result<(), WireError> {
        if self.values.is_empty() {
            return Ok(());
        }
        let mut columns = Vec::with_capacity(self.width);
        for &(first, len) in &self.runs {
            for number in first..first + len {
                columns.push(refs.get(number, layout)?);
            }
        }
        let at = |ms: &i64| TimestampNs::from_ms(*ms);
        let ids = layout.books.ids;
        let shard = columns[0].shard;
        let plain = ids.is_timeless() && self.times_ms.iter().all(|ms| layout.limits.time(at(ms)).is_ok());
        if plain && layout.books.naming == Naming::Known && columns.iter().all(|c| c.shard == shard && c.id.is_some()) {
            let share = layout.intake.share(shard, ids);
            let of_epoch = |r: &Ref| r.id.filter(|(epoch, _)| *epoch == share.epoch as u32);
            let mut runs: Vec<(u32, u32)> = vec![];
            for column in &columns {
                match (of_epoch(column), runs.last_mut()) {
                    (Some((_, id)), Some((first, len))) if first.checked_add(*len) == Some(id) => *len += 1,
                    (Some((_, id)), _) => runs.push((id, 1)),
                    (None, _) => return self.lay_columns(layout, refs, &columns),
                }
            }
            let times_ms: Vec<i64> = self.times_ms.iter().map(|ms| at(ms).as_ms()).collect();
            share.rows(&times_ms, &runs, &self.values);
            layout.intake.samples += (self.width * times_ms.len()) as u64;
            return Ok(());
        }
        self.lay_columns(layout, refs, &columns)
    }

    /// Column by column: what is known goes by its id, the rest by its labels.
    fn lay_columns(&self, layout: &mut Layout<'_>, refs: &SeriesRefs, columns: &[Ref]) -> Result<(), WireError> {
        let ids = layout.books.ids;
        let mut general = std::collections::BTreeMap::<u32, Vec<_>>::new();
        for (i, column) in columns.iter().enumerate() {
            let sample = |(row, ms): (usize, &i64)| {
                let bits = self.values[(row * self.width + i) * 8..].first_chunk::<8>();
                Sample {
                    at: TimestampNs::from_ms(*ms),
                    value: f64::from_bits(bits.map_or(0, |b| u64::from_le_bytes(*b))),
                }
            };
            let samples: Vec<Sample> = self.times_ms.iter().enumerate().map(sample).collect();
            let plain = layout.books.naming == Naming::Known
                && ids.is_timeless()
                && samples.iter().all(|s| layout.limits.time(s.at).is_ok());
            if let (true, Some((epoch, id))) = (plain, column.id) {
                let share = layout.intake.share(column.shard, ids);
                if share.epoch as u32 == epoch {
                    let times: Vec<i64> = samples.iter().map(|s| s.at.as_ms()).collect();
                    share.many(Numbers::Ids, id, &times, samples.iter().map(|s| s.value.to_bits()));
                    layout.intake.samples += samples.len() as u64;
                    continue;
                }
            }
            let resource = &refs.resources[column.resource as usize];
            let names = Names {
                attrs: &resource.attrs,
                scope: resource.scope.clone(),
            };
            let block = layout.one_series(refs.raw_of(column), samples, &names)?;
            general.entry(column.resource).or_default().extend(block);
        }
        for (resource, blocks) in general {
            layout.place_blocks(blocks, &refs.resources[resource as usize].scope);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Desk, LIMITS, sorted};
    use hindcast_model::Batch;
    use hindcast_proto::v1;
    use proptest::prelude::*;
    use prost::Message;

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
            value: Some(f64::from_bits(bits)),
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
            ..Default::default()
        })
    }

    fn adapted(desk: &Desk, request: &v1::WriteRequest, refs: &mut SeriesRefs, naming: Naming) -> OwnRequest {
        let body = request.encode_to_vec();
        adapt(&TenantId::default(), &body, &LIMITS, &desk.books(naming), refs).unwrap()
    }

    fn label_of(n: &str, v: &str) -> v1::Label {
        v1::Label {
            name: n.to_owned(),
            value: v.to_owned(),
        }
    }

    /// The rows of a request, straight from its messages.
    fn want(request: &v1::WriteRequest) -> Batch {
        let mut batch = Batch::new(TenantId::default());
        let named = hindcast_proto::edge::labels_from_wire;
        for s in &request.series {
            let sample = |p: &v1::Point| Sample {
                at: TimestampNs::from_ms(p.at_ms),
                value: p.value(),
            };
            let labels = named(s.labels.clone());
            let owner = crate::owners::Named::new(&batch.tenant, labels.clone(), &[]).owner;
            let samples = s.points.iter().map(sample).collect();
            batch
                .series
                .push(hindcast_model::SeriesBlock { labels, owner, samples });
        }
        for s in &request.streams {
            let line = |l: &v1::Line| {
                let mut metadata: Vec<_> = l.metadata.iter().map(|m| (m.name.clone(), m.value.clone())).collect();
                metadata.sort();
                hindcast_model::LogLine {
                    at: TimestampNs(l.at_ns),
                    line: l.line.clone().into(),
                    metadata,
                }
            };
            let labels = named(s.labels.clone());
            let owner = crate::owners::Named::new(&batch.tenant, labels.clone(), &[]).owner;
            let lines = s.lines.iter().map(line).collect();
            batch.streams.push(hindcast_model::StreamBlock { labels, owner, lines });
        }
        batch
    }

    proptest! {
        #[test]
        fn an_encoded_request_is_read_back_whole_also_when_it_is_known(request in request(), shards in prop_oneof![Just(1u64), Just(4)]) {
            let desk = Desk::new(shards);
            for _ in 0..3 {
                let read = adapted(&desk, &request, &mut SeriesRefs::default(), Naming::Known);
                prop_assert_eq!(read.seq, request.seq);
                prop_assert!(read.laid.rejected.is_empty(), "{:?}", read.laid.rejected);
                let mut batch = desk.confirm(read.laid);
                let is_named = matches!(batch.id, Some(BatchId::Sequenced { seq, .. }) if seq == request.seq);
                prop_assert!(is_named);
                batch.id = None;
                prop_assert_eq!(sorted(batch), sorted(want(&request)));
            }
        }

        #[test]
        fn a_damaged_request_is_refused_or_read_but_never_a_panic(request in request(), at in 0usize..400, byte: u8, cut: bool) {
            let desk = Desk::new(1);
            desk.confirm(adapted(&desk, &request, &mut SeriesRefs::default(), Naming::Known).laid);
            let mut request = request;
            request.definitions = vec![v1::SeriesRef { labels: vec![label_of("__name__", "m")], r#ref: 1 }];
            request.rows = vec![v1::Rows { at_ms: vec![5, 6], runs: vec![1, 1], values: vec![1.0, 2.0] }];
            let mut body = request.encode_to_vec();
            if cut {
                body.truncate(at);
            } else if let Some(hit) = body.get_mut(at) {
                *hit = byte;
            }
            let mut refs = SeriesRefs::default();
            let _ = adapt(&TenantId::default(), &body, &LIMITS, &desk.books(Naming::Known), &mut refs);
            let _ = seq_of(&body);
        }

        /// Rows by reference store what the same points by labels store, known or not, one shard or more.
        #[test]
        fn rows_of_references_are_points_of_series(
            shards in prop_oneof![Just(1u64), Just(4)],
            blocks in proptest::collection::vec((proptest::collection::vec((0u32..12, 1u32..4), 1..4), proptest::collection::vec(0i64..9, 1..4)), 1..6),
            confirmed in any::<bool>(),
        ) {
            let desk = Desk::new(shards);
            let mut refs = SeriesRefs::default();
            let labels = |n: u32| vec![label_of("__name__", "up"), label_of("instance", &format!("h{n}:1"))];
            let definitions = (0..16).map(|n| v1::SeriesRef { labels: labels(n), r#ref: n }).collect();
            let mut request = v1::WriteRequest { definitions, ..Default::default() };
            let mut value = 0.0;
            for (runs, at_ms) in blocks {
                let numbers: Vec<u32> = runs.iter().flat_map(|&(first, len)| first..first + len).collect();
                let values: Vec<f64> = (0..numbers.len() * at_ms.len()).map(|_| { value += 1.0; value }).collect();
                let mut by_labels = v1::WriteRequest::default();
                for (i, n) in numbers.iter().enumerate() {
                    let point = |(row, at_ms): (usize, &i64)| v1::Point { at_ms: *at_ms, value: Some(values[row * numbers.len() + i]) };
                    by_labels.series.push(v1::Series { labels: labels(*n), points: at_ms.iter().enumerate().map(point).collect() });
                }
                let runs = runs.iter().flat_map(|&(first, len)| [first, len]).collect();
                request.rows = vec![v1::Rows { at_ms, runs, values }];
                let read = adapted(&desk, &request, &mut refs, Naming::Known).laid;
                let redone = adapted(&desk, &request, &mut refs, Naming::Defined).laid;
                let redone = sorted(desk.replica.apply(&redone.intake));
                let batch = if confirmed { desk.confirm(read) } else { desk.replica.apply(&read.intake) };
                prop_assert_eq!(sorted(batch), sorted(want(&by_labels)));
                prop_assert_eq!(redone, sorted(want(&by_labels)));
                request.definitions.clear();
            }
        }
    }

    /// Protobuf leaves a zero out, and -0 passed for one.
    #[test]
    fn a_negative_zero_keeps_its_sign_on_the_way_in() {
        let desk = Desk::new(1);
        let odd = [
            -0.0,
            0.0,
            f64::INFINITY,
            f64::from_bits(0x7ff0_0000_0000_0001),
            f64::from_bits(hindcast_model::STALE_NAN_BITS),
        ];
        let point = |(i, value): (usize, &f64)| v1::Point {
            at_ms: i as i64,
            value: Some(*value),
        };
        let mut request = v1::WriteRequest {
            series: vec![v1::Series {
                labels: vec![label_of("__name__", "m")],
                points: odd.iter().enumerate().map(point).collect(),
            }],
            ..Default::default()
        };
        // A writer of before, whose zeros are left out.
        request.series[0].points[1].value = None;
        let laid = adapted(&desk, &request, &mut SeriesRefs::default(), Naming::Known).laid;
        let batch = desk.replica.apply(&laid.intake);
        let bits = batch.series[0].samples.iter().map(|s| s.value.to_bits());
        assert!(bits.eq(odd.map(f64::to_bits)));
    }

    #[test]
    fn a_host_that_speaks_of_itself_names_its_series_and_streams() {
        let request = v1::WriteRequest {
            resource: vec![label_of("host.name", "web-1"), label_of("os.type", "linux")],
            series: vec![v1::Series {
                labels: vec![label_of("__name__", "system_memory_usage_bytes")],
                points: vec![v1::Point::default()],
            }],
            streams: vec![v1::Stream {
                labels: vec![label_of("unit", "sshd")],
                lines: vec![v1::Line::default()],
            }],
            ..Default::default()
        };
        let desk = Desk::new(1);
        for told in [1, 0] {
            let batch = desk.confirm(adapted(&desk, &request, &mut SeriesRefs::default(), Naming::Known).laid);
            let series = batch.series[0].labels.to_string();
            assert_eq!(series, r#"system_memory_usage_bytes{instance="web-1", job="host"}"#);
            assert_eq!(
                batch.streams[0].labels.to_string(),
                r#"{host_name="web-1", unit="sshd"}"#
            );
            assert_eq!(batch.resources.len(), told, "{:?}", batch.resources);
            assert_eq!(batch.id, None, "without a writer there is no id");
        }
    }

    fn refused(desk: &Desk, refs: &mut SeriesRefs, request: &v1::WriteRequest) -> String {
        let body = request.encode_to_vec();
        let read = adapt(&TenantId::default(), &body, &LIMITS, &desk.books(Naming::Known), refs);
        read.err().map_or_else(|| "read".to_owned(), |e| e.to_string())
    }

    #[test]
    fn references_hold_as_they_were_given_and_others_are_named() {
        let (desk, mut refs) = (Desk::new(1), SeriesRefs::default());
        let define = |number, name: &str| v1::WriteRequest {
            definitions: vec![v1::SeriesRef {
                labels: vec![label_of("__name__", name)],
                r#ref: number,
            }],
            ..Default::default()
        };
        let rows = |runs: &[u32], values: usize| v1::WriteRequest {
            rows: vec![v1::Rows {
                at_ms: vec![1],
                runs: runs.to_vec(),
                values: vec![1.0; values],
            }],
            ..Default::default()
        };
        let mut check = |request: &v1::WriteRequest, want: &str| {
            assert_eq!(
                refused(&desk, &mut refs, request).replace("the body is not a readable own request: ", ""),
                want
            );
        };
        let unknown =
            |n| format!("series reference {n} was not defined on this stream; a reference holds for one call only");
        check(&rows(&[0, 1], 1), &unknown(0));
        check(&define(0, "a"), "read");
        check(&define(0, "a"), "read");
        check(&rows(&[0, 1], 1), "read");
        check(&rows(&[0, 2], 2), &unknown(1));
        check(&rows(&[u32::MAX, u32::MAX], 1), &unknown(u32::MAX));
        check(
            &rows(&[0, 1], 2),
            "rows do not hold a value for each of their times and references",
        );
        check(
            &rows(&[0, 1, 7], 1),
            "rows do not hold a value for each of their times and references",
        );
        check(
            &define(0, "b"),
            "series reference 0 was defined with other labels before; it keeps them for the whole stream",
        );
        check(
            &define(SERIES_REFS_MAX as u32, "b"),
            "series references of one stream are more than 262144; open another stream",
        );
        // What cannot be read as a whole defines nothing.
        let mut broken = define(5, "c");
        broken.rows = rows(&[9, 1], 1).rows;
        check(&broken, &unknown(9));
        check(&rows(&[5, 1], 1), &unknown(5));
        check(&define(5, "other"), "read");
    }

    #[test]
    fn a_series_of_a_reference_may_be_refused_and_is_told_each_time() {
        let (desk, mut refs) = (Desk::new(1), SeriesRefs::default());
        let request = v1::WriteRequest {
            definitions: vec![v1::SeriesRef {
                labels: vec![label_of("job", "nameless")],
                r#ref: 3,
            }],
            rows: vec![v1::Rows {
                at_ms: vec![1, 2],
                runs: vec![3, 1],
                values: vec![1.0, 2.0],
            }],
            ..Default::default()
        };
        for _ in 0..2 {
            let laid = adapted(&desk, &request, &mut refs, Naming::Known).laid;
            assert_eq!(laid.rejected.by_code()["no_name"], 2);
            assert!(laid.intake.is_empty());
        }
    }
}

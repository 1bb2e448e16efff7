//! OTLP spans to lines: one per span, at its start, in the stream of its resource that is marked as one of spans.
//!
//! The line says in logfmt what a person looks for; the metadata has everything: ids in hex, name, kind, status, duration
//! (as `12.3ms`, so that it compares), attributes of span, resource and scope, events and links as JSON. An attribute that is called
//! like one of ours is kept as `attribute_…`.
//!
//! From the spans of requests (server, consumer, client, producer) come edges between services and to databases
//! (`ties.rs`), and what is counted of them (`requests.rs`).
//!
//! A span is taken whole or refused whole. Ids have 16 and 8 bytes and are not all zeros; a parent may be absent.

use super::logs::shared_metadata;
use super::names::label_name;
use super::streams::{Streams, stream_pairs};
use super::ties::{self, Caller, Side, SpanKey, Ties};
use super::{Call, Calls, as_text, attributes_of, values};
use crate::owners::{Named, owner_of};
use crate::{Adapted, LimitsContext, Refusal, Rejections, identity};
use bytes::Bytes;
use hindcast_model::resource::{Edge, EdgeKind, metric};
use hindcast_model::{Batch, Kind, Labels, LogLine, Resource, ResourceId, SpanNs, TenantId, TimestampNs};
use hindcast_proto::trace::{SPAN, TRACE_LABEL};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use serde_json::{Map, Value as Json, json};
use std::collections::{BTreeMap, BTreeSet};

const TRACE_ID_BYTES: usize = 16;
const SPAN_ID_BYTES: usize = 8;

/// Names of metadata that say what the span itself says; attributes of these names step aside.
const OWN: [&str; 16] = [
    "trace_id",
    "span_id",
    "parent_span_id",
    "trace_state",
    "span_name",
    "span_kind",
    "span_status",
    "span_status_message",
    "duration",
    "detected_level",
    "events",
    "links",
    "dropped_attributes",
    "dropped_events",
    "dropped_links",
    "span_flags",
];

/// What a request of spans is.
#[derive(Clone, Debug, PartialEq)]
pub struct Spans {
    pub adapted: Adapted,
    /// What is counted of them once they are stored. Names are as they came: whoever counts masks them first.
    pub calls: Vec<Calls>,
}

/// A request of spans that does not know yet with whom its services speak.
#[derive(Clone, Debug, PartialEq)]
pub struct Untied {
    spans: Spans,
    sides: Vec<Side>,
}

impl Untied {
    /// Adds the edges between services. All requests of a node share `ties`, so nothing else is done here.
    pub fn tied(self, ties: &mut Ties) -> Spans {
        let Self { mut spans, sides } = self;
        let edges = &mut spans.adapted.batch.edges;
        edges.extend(ties.meet(sides));
        edges.sort();
        edges.dedup();
        spans
    }
}

/// Turns a request into a batch without an id: the shell adds the hash of the body that it came from.
pub fn adapt(tenant: &TenantId, request: ExportTraceServiceRequest, limits: &LimitsContext) -> Untied {
    let mut rejected = Rejections::default();
    let mut streams = Streams::default();
    let (mut counted, mut sides) = (vec![], vec![]);
    for of_resource in request.resource_spans {
        let attrs = attributes_of(of_resource.resource);
        let spans = of_resource.scope_spans.iter().map(|s| s.spans.len() as u64).sum();
        let mut pairs = stream_pairs(&attrs);
        if let Err(why) = limits.labels(&pairs, false) {
            rejected.add(spans, &why, || Labels::new(pairs).to_string());
            continue;
        }
        pairs.push((TRACE_LABEL.to_owned(), SPAN.to_owned()));
        let named = Named::new(tenant, Labels::new(pairs), &attrs);
        let mut one = OneResource::new(tenant, &attrs);
        let mut lines = Vec::with_capacity(spans as usize);
        for of_scope in of_resource.scope_spans {
            let shared = stepped_aside(shared_metadata(&attrs, of_scope.scope));
            for span in of_scope.spans {
                let mut refuse = |name: &str, why: &Refusal| {
                    rejected.add(1, why, || format!("span {name:?} of {}", named.labels));
                };
                if let Err(why) = sound(&span, limits) {
                    refuse(&span.name, &why);
                    continue;
                }
                let said = one.said(&span);
                let line = line(span, &shared);
                if let Err(why) = limits.line(line.line.len(), &line.metadata) {
                    refuse(name_in(&line), &why);
                    continue;
                }
                one.take(said);
                lines.push(line);
            }
        }
        if lines.is_empty() {
            continue;
        }
        counted.extend(Some(one.calls).filter(|c| !c.calls.is_empty()));
        sides.append(&mut one.sides);
        streams.know(one.resources.into_values(), one.edges);
        streams.add(tenant, &attrs, named, lines);
    }
    let mut batch = Batch::new(tenant.clone());
    streams.into_batch(&mut batch);
    let spans = Spans {
        adapted: Adapted { batch, rejected },
        calls: counted,
    };
    Untied { spans, sides }
}

/// What the spans of one resource say besides being lines.
struct OneResource<'r> {
    tenant: &'r TenantId,
    caller: Option<Caller>,
    calls: Calls,
    resources: BTreeMap<ResourceId, Resource>,
    edges: BTreeSet<Edge>,
    sides: Vec<Side>,
}

/// What one of them says.
struct Said {
    call: Call,
    side: Option<Side>,
    /// Whom it names as the one that it calls.
    called: Option<Resource>,
}

impl<'r> OneResource<'r> {
    fn new(tenant: &'r TenantId, attrs: &[(String, String)]) -> Self {
        // Requests are the instance's, as those are that its own metrics count.
        let instance = identity::owning(tenant, &metric("http_", &[]), attrs);
        let of_service = ["service.name", "service.namespace"].iter().filter_map(|name| {
            let value = identity::attribute(attrs, name)?;
            Some((label_name(name), value.to_owned()))
        });
        let labels = identity::fill_series(&of_service.collect(), attrs, instance.as_ref());
        let caller = Caller::of(tenant, attrs);
        let (mut resources, mut edges) = (BTreeMap::new(), BTreeSet::new());
        if let Some(caller) = &caller {
            resources.insert(caller.service.id, caller.service.clone());
        }
        let owner = owner_of(instance.as_ref());
        if let (Some(caller), Some(instance)) = (&caller, instance.filter(|r| r.kind == Kind::Instance)) {
            edges.insert(Edge {
                from: instance.id,
                to: caller.service.id,
                kind: EdgeKind::PartOf,
            });
            resources.insert(instance.id, instance);
        }
        Self {
            tenant,
            caller,
            calls: Calls {
                labels,
                owner,
                calls: vec![],
            },
            resources,
            edges,
            sides: vec![],
        }
    }

    /// What a sound span says; `None` when it is no request.
    fn said(&self, span: &Span) -> Option<Said> {
        let (kind, goes_out) = match SpanKind::try_from(span.kind) {
            Ok(kind @ (SpanKind::Client | SpanKind::Producer)) => (kind, true),
            Ok(kind @ (SpanKind::Server | SpanKind::Consumer)) => (kind, false),
            _ => return None,
        };
        let status = span.status.as_ref().map_or(StatusCode::Unset, |s| s.code());
        let (start, end) = (span.start_time_unix_nano, span.end_time_unix_nano);
        Some(Said {
            call: Call {
                name: span.name.clone(),
                kind: kind.as_str_name(),
                status: status.as_str_name(),
                end: time(end),
                took: SpanNs(end - start),
            },
            side: self.side(span, goes_out),
            called: self.caller.as_ref().filter(|_| goes_out).and_then(|caller| {
                let attributes = span.attributes.iter();
                let naming = attributes.filter(|kv| ties::names_the_called(&kv.key)).cloned();
                caller.named(self.tenant, &as_text(naming.collect()))
            }),
        })
    }

    fn side(&self, span: &Span, goes_out: bool) -> Option<Side> {
        let own = self.caller.as_ref()?.service.id;
        let key = |id: &[u8]| -> Option<SpanKey> {
            let trace = span.trace_id.as_slice().try_into().ok()?;
            Some((self.tenant.clone(), trace, id.try_into().ok()?))
        };
        if goes_out {
            return Some(Side::Calls(key(&span.span_id)?, own));
        }
        let parent = Some(span.parent_span_id.as_slice()).filter(|id| !is_zero(id))?;
        Some(Side::Called(key(parent)?, own))
    }

    /// What a span says that is kept.
    fn take(&mut self, said: Option<Said>) {
        let Some(Said { call, side, called }) = said else {
            return;
        };
        self.calls.calls.push(call);
        self.sides.extend(side);
        if let (Some(caller), Some(called)) = (&self.caller, called) {
            self.edges.extend(ties::tie(caller.service.id, called.id));
            self.resources.insert(called.id, called);
        }
    }
}

/// The name of the span that became this line; none is "".
fn name_in(line: &LogLine) -> &str {
    let found = line.metadata.iter().find(|(n, _)| n == "span_name");
    found.map_or("", |(_, name)| name)
}

/// Whether ids and times are such that the span can be found again.
fn sound(span: &Span, limits: &LimitsContext) -> Result<(), Refusal> {
    let bad = |why: String| Err(Refusal::BadSpan { why });
    for (what, id, bytes) in [
        ("trace", &span.trace_id, TRACE_ID_BYTES),
        ("span", &span.span_id, SPAN_ID_BYTES),
    ] {
        if id.len() != bytes {
            return bad(format!("its {what} id has {} bytes, not {bytes}", id.len()));
        }
        if is_zero(id) {
            return bad(format!("its {what} id is all zeros"));
        }
    }
    let parent = &span.parent_span_id;
    if !parent.is_empty() && parent.len() != SPAN_ID_BYTES {
        return bad(format!(
            "its parent's id has {} bytes, not {SPAN_ID_BYTES}",
            parent.len()
        ));
    }
    let (start, end) = (span.start_time_unix_nano, span.end_time_unix_nano);
    if start == 0 || end == 0 {
        return bad(format!("it has no {}", if start == 0 { "start" } else { "end" }));
    }
    limits.time(time(start))?;
    limits.time(time(end))?;
    if end < start {
        return bad(format!("it ends at {}, before it starts at {}", time(end), time(start)));
    }
    Ok(())
}

fn is_zero(id: &[u8]) -> bool {
    id.iter().all(|b| *b == 0)
}

fn time(ns: u64) -> TimestampNs {
    TimestampNs(i64::try_from(ns).unwrap_or(i64::MAX))
}

/// Attributes under names that no record of ours has.
fn stepped_aside(attributes: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let aside = |(name, value): (String, String)| match OWN.contains(&name.as_str()) {
        true => (format!("attribute_{name}"), value),
        false => (name, value),
    };
    attributes.into_iter().map(aside).collect()
}

fn line(span: Span, shared: &BTreeMap<String, String>) -> LogLine {
    let kind = kind_of(span.kind);
    let (status, message) = status_of(&span);
    let duration = values::duration(span.end_time_unix_nano - span.start_time_unix_nano);
    let mut text = format!(
        "span={} kind={kind} duration={duration} status={status}",
        quoted(&span.name)
    );
    if !message.is_empty() {
        text += &format!(" message={}", quoted(&message));
    }
    let count = |n: u32| if n == 0 { String::new() } else { n.to_string() };
    let parent = Some(&span.parent_span_id).filter(|id| !is_zero(id));
    let own = [
        ("trace_id", values::hex(&span.trace_id)),
        ("span_id", values::hex(&span.span_id)),
        ("parent_span_id", parent.map(|id| values::hex(id)).unwrap_or_default()),
        ("trace_state", span.trace_state),
        ("span_name", span.name),
        ("span_kind", kind.to_owned()),
        ("span_status", status.to_owned()),
        ("span_status_message", message),
        ("duration", duration),
        (
            "detected_level",
            if status == "error" {
                "error".to_owned()
            } else {
                String::new()
            },
        ),
        ("events", events(span.events)),
        ("links", links(span.links)),
        ("dropped_attributes", count(span.dropped_attributes_count)),
        ("dropped_events", count(span.dropped_events_count)),
        ("dropped_links", count(span.dropped_links_count)),
        ("span_flags", count(span.flags)),
    ];
    let attributes = as_text(span.attributes).into_iter().map(|(n, v)| (label_name(&n), v));
    let mut metadata = shared.clone();
    metadata.extend(stepped_aside(attributes.collect()));
    metadata.extend(own.map(|(n, v)| (n.to_owned(), v)));
    metadata.retain(|_, v| !v.is_empty());
    LogLine {
        at: time(span.start_time_unix_nano),
        line: Bytes::from(text),
        metadata: metadata.into_iter().collect(),
    }
}

/// A value of logfmt.
fn quoted(text: &str) -> String {
    Json::String(text.to_owned()).to_string()
}

fn kind_of(number: i32) -> &'static str {
    match SpanKind::try_from(number) {
        Ok(SpanKind::Internal) => "internal",
        Ok(SpanKind::Server) => "server",
        Ok(SpanKind::Client) => "client",
        Ok(SpanKind::Producer) => "producer",
        Ok(SpanKind::Consumer) => "consumer",
        Ok(SpanKind::Unspecified) | Err(_) => "unspecified",
    }
}

/// The status as a word, and what the sender says about it.
fn status_of(span: &Span) -> (&'static str, String) {
    let Some(status) = &span.status else {
        return ("unset", String::new());
    };
    let word = match StatusCode::try_from(status.code) {
        Ok(StatusCode::Ok) => "ok",
        Ok(StatusCode::Error) => "error",
        Ok(StatusCode::Unset) | Err(_) => "unset",
    };
    (word, status.message.clone())
}

fn events(events: Vec<Event>) -> String {
    let one = |e: Event| json!({ "timeUnixNano": e.time_unix_nano.to_string(), "name": e.name, "attributes": object(e.attributes) });
    list(events.into_iter().map(one).collect())
}

fn links(links: Vec<Link>) -> String {
    let one = |l: Link| json!({ "traceId": values::hex(&l.trace_id), "spanId": values::hex(&l.span_id), "attributes": object(l.attributes) });
    list(links.into_iter().map(one).collect())
}

fn list(entries: Vec<Json>) -> String {
    match entries.is_empty() {
        true => String::new(),
        false => Json::Array(entries).to_string(),
    }
}

fn object(attributes: Vec<KeyValue>) -> Json {
    let pairs = attributes.into_iter().map(|kv| (kv.key, values::json(kv.value)));
    Json::Object(pairs.collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;
    use prost::Message;

    const NOW: TimestampNs = TimestampNs(1_700_000_000_000_000_000);
    const LIMITS: LimitsContext = LimitsContext {
        now: NOW,
        floor: Some(TimestampNs(NOW.0 - 86_400_000_000_000)),
        bounds: crate::check::Bounds::DEFAULT,
    };

    /// Spans of one resource, as JSON.
    fn check(attributes: &str, spans: &str, expect: Expect) {
        let body = format!(
            r#"{{"resourceSpans":[{{"resource":{{"attributes":[{attributes}]}},
                "scopeSpans":[{{"scope":{{"name":"lib","version":"1"}},"spans":[{spans}]}}]}}]}}"#
        );
        let request = crate::otlp::from_json(crate::Protocol::OtlpTraces, body.as_bytes()).unwrap();
        let Spans { adapted, .. } = adapt(&TenantId::default(), request, &LIMITS).tied(&mut Ties::default());
        let Adapted { batch, rejected } = adapted;
        let mut out = String::new();
        for stream in &batch.streams {
            for l in &stream.lines {
                out += &format!(
                    "{} {}\n{}\n",
                    l.at.0 - NOW.0,
                    stream.labels,
                    String::from_utf8_lossy(&l.line)
                );
                for (n, v) in &l.metadata {
                    out += &format!("  {n} = {v}\n");
                }
            }
        }
        for r in rejected.listed() {
            out += &format!("{} x{}: {}\n", r.what, r.items, r.why);
        }
        expect.assert_eq(&out);
    }

    const SHOP: &str =
        r#"{"key":"service.name","value":{"stringValue":"shop"}},{"key":"os.type","value":{"stringValue":"linux"}}"#;

    #[test]
    fn a_span_becomes_a_line_with_everything_it_says() {
        check(
            SHOP,
            r#"{"traceId":"5B8EFFF798038103D269B633813FC60C","spanId":"EEE19B7EC3C1B174","parentSpanId":"EEE19B7EC3C1B173",
                "name":"GET /cart \"x\"","kind":2,"startTimeUnixNano":"1700000000000000007","endTimeUnixNano":"1700000000012300007",
                "traceState":"a=b","flags":257,"droppedEventsCount":2,
                "attributes":[{"key":"http.route","value":{"stringValue":"/cart"}},{"key":"duration","value":{"intValue":"3"}}],
                "events":[{"timeUnixNano":"1700000000000000008","name":"retry","attributes":[{"key":"n","value":{"intValue":"2"}}]}],
                "links":[{"traceId":"5B8EFFF798038103D269B633813FC60D","spanId":"EEE19B7EC3C1B175"}],
                "status":{"code":2,"message":"dead lock"}}"#,
            expect![[r#"
                7 {hindcast_trace="span", service_name="shop"}
                span="GET /cart \"x\"" kind=server duration=12.3ms status=error message="dead lock"
                  attribute_duration = 3
                  detected_level = error
                  dropped_events = 2
                  duration = 12.3ms
                  events = [{"attributes":{"n":2},"name":"retry","timeUnixNano":"1700000000000000008"}]
                  http_route = /cart
                  links = [{"attributes":{},"spanId":"eee19b7ec3c1b175","traceId":"5b8efff798038103d269b633813fc60d"}]
                  os_type = linux
                  parent_span_id = eee19b7ec3c1b173
                  scope_name = lib
                  scope_version = 1
                  span_flags = 257
                  span_id = eee19b7ec3c1b174
                  span_kind = server
                  span_name = GET /cart "x"
                  span_status = error
                  span_status_message = dead lock
                  trace_id = 5b8efff798038103d269b633813fc60c
                  trace_state = a=b
            "#]],
        );
    }

    #[test]
    fn what_cannot_be_found_again_is_refused_span_by_span() {
        let ids = r#""traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174""#;
        let times = r#""startTimeUnixNano":"1700000000000000000","endTimeUnixNano":"1700000000000000000""#;
        let spans = [
            format!(r#"{{"name":"root","parentSpanId":"0000000000000000",{ids},{times}}}"#),
            format!(r#"{{"name":"a","spanId":"eee19b7ec3c1b174",{times}}}"#),
            format!(
                r#"{{"name":"b","traceId":"00000000000000000000000000000000","spanId":"eee19b7ec3c1b174",{times}}}"#
            ),
            format!(r#"{{"name":"c","traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee1",{times}}}"#),
            format!(
                r#"{{"name":"d","traceId":"5b8efff798038103d269b633813fc60c","spanId":"0000000000000000",{times}}}"#
            ),
            format!(r#"{{"name":"e","parentSpanId":"ee",{ids},{times}}}"#),
            format!(r#"{{"name":"f",{ids},"endTimeUnixNano":"1700000000000000000"}}"#),
            format!(r#"{{"name":"g",{ids},"startTimeUnixNano":"1700000000000000000"}}"#),
            format!(
                r#"{{"name":"h",{ids},"startTimeUnixNano":"1700000000000000001","endTimeUnixNano":"1700000000000000000"}}"#
            ),
            format!(
                r#"{{"name":"i",{ids},"startTimeUnixNano":"1700000000000000000","endTimeUnixNano":"1700000601000000000"}}"#
            ),
            format!(
                r#"{{"name":"j",{ids},"startTimeUnixNano":"1600000000000000000","endTimeUnixNano":"1700000000000000000"}}"#
            ),
        ];
        check(
            "",
            &spans.join(","),
            expect![[r#"
                0 {hindcast_trace="span", service_name="unknown_service"}
                span="root" kind=unspecified duration=0ns status=unset
                  duration = 0ns
                  scope_name = lib
                  scope_version = 1
                  span_id = eee19b7ec3c1b174
                  span_kind = unspecified
                  span_name = root
                  span_status = unset
                  trace_id = 5b8efff798038103d269b633813fc60c
                span "a" of {hindcast_trace="span", service_name="unknown_service"} x1: the span cannot be kept: its trace id has 0 bytes, not 16
                span "b" of {hindcast_trace="span", service_name="unknown_service"} x1: the span cannot be kept: its trace id is all zeros
                span "c" of {hindcast_trace="span", service_name="unknown_service"} x1: the span cannot be kept: its span id has 2 bytes, not 8
                span "d" of {hindcast_trace="span", service_name="unknown_service"} x1: the span cannot be kept: its span id is all zeros
                span "e" of {hindcast_trace="span", service_name="unknown_service"} x1: the span cannot be kept: its parent's id has 1 bytes, not 8
                span "f" of {hindcast_trace="span", service_name="unknown_service"} x1: the span cannot be kept: it has no start
                span "g" of {hindcast_trace="span", service_name="unknown_service"} x1: the span cannot be kept: it has no end
                span "h" of {hindcast_trace="span", service_name="unknown_service"} x1: the span cannot be kept: it ends at 1700000000.000, before it starts at 1700000000.000
                span "i" of {hindcast_trace="span", service_name="unknown_service"} x1: its time 2023-11-14T22:23:21Z is more than 10m ahead of 2023-11-14T22:13:20Z; check the sender's clock
                span "j" of {hindcast_trace="span", service_name="unknown_service"} x1: its time 2020-09-13T12:26:40Z is older than 2023-11-13T22:13:20Z, the oldest that is kept
            "#]],
        );
    }

    #[test]
    fn a_span_that_says_too_much_is_refused_by_its_name_and_counts_for_nothing() {
        let ids = r#""traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174""#;
        let times = r#""startTimeUnixNano":"1700000000000000000","endTimeUnixNano":"1700000000000000000""#;
        let long = "x".repeat(crate::check::METADATA_BYTES_MAX);
        let span = |name: &str| {
            format!(
                r#"{{{name}"kind":3,{ids},{times},"attributes":[{{"key":"a","value":{{"stringValue":"{long}"}}}},
                    {{"key":"peer.service","value":{{"stringValue":"cart"}}}}]}}"#
            )
        };
        let spans = [span(r#""name":"GET /","#), span("")].join(",");
        check(
            SHOP,
            &spans,
            expect![[r#"
                span "GET /" of {hindcast_trace="span", service_name="shop"} x1: the line has 11 metadata entries of 65711 bytes, more than 128 or 65536 bytes
                span "" of {hindcast_trace="span", service_name="shop"} x1: the line has 10 metadata entries of 65697 bytes, more than 128 or 65536 bytes
            "#]],
        );
    }

    #[test]
    fn spans_tell_who_depends_on_whom_and_what_is_counted() {
        let trace = "5b8efff798038103d269b633813fc60c";
        let span = |id: &str, parent: &str, kind: u8, attributes: &str| {
            format!(
                r#"{{"traceId":"{trace}","spanId":"{id}","parentSpanId":"{parent}","name":"n{id}","kind":{kind},
                    "startTimeUnixNano":"1700000000000000000","endTimeUnixNano":"1700000000002000000","attributes":[{attributes}]}}"#
            )
        };
        let attribute = |name: &str, value: &str| format!(r#"{{"key":"{name}","value":{{"stringValue":"{value}"}}}}"#);
        let db = [
            attribute("db.system.name", "postgresql"),
            attribute("server.address", "db-1"),
        ]
        .join(",");
        let resource = |attributes: &[String], spans: &[String]| {
            format!(
                r#"{{"resource":{{"attributes":[{}]}},"scopeSpans":[{{"spans":[{}]}}]}}"#,
                attributes.join(","),
                spans.join(",")
            )
        };
        let shop = [
            attribute("service.name", "shop"),
            attribute("service.namespace", "eu"),
            attribute("service.instance.id", "1"),
        ];
        let shop = resource(
            &shop,
            &[
                span("aaaaaaaaaaaaaaaa", "", 2, ""),
                span("bbbbbbbbbbbbbbbb", "aaaaaaaaaaaaaaaa", 3, &db),
                span(
                    "cccccccccccccccc",
                    "aaaaaaaaaaaaaaaa",
                    3,
                    &attribute("server.address", "cart"),
                ),
                span("dddddddddddddddd", "aaaaaaaaaaaaaaaa", 1, ""),
                span(
                    "eeeeeeeeeeeeeeee",
                    "aaaaaaaaaaaaaaaa",
                    4,
                    &attribute("peer.service", "mail"),
                ),
            ],
        );
        let cart = resource(
            &[attribute("service.name", "cart"), attribute("host.name", "h1")],
            &[span("ffffffffffffffff", "cccccccccccccccc", 2, "")],
        );
        let (tenant, mut ties) = (TenantId::default(), Ties::default());
        let mut out = String::new();
        // The one that was called comes first, and in a request of its own.
        for body in [&cart, &shop] {
            let body = format!(r#"{{"resourceSpans":[{body}]}}"#);
            let request = crate::otlp::from_json(crate::Protocol::OtlpTraces, body.as_bytes()).unwrap();
            let Spans { adapted, calls } = adapt(&tenant, request, &LIMITS).tied(&mut ties);
            let mut names: BTreeMap<ResourceId, String> = BTreeMap::new();
            names.insert(ties::service(&tenant, "", "cart").id, "service cart".to_owned());
            names.extend(
                adapted
                    .batch
                    .resources
                    .iter()
                    .map(|r| (r.id, format!("{} {}", r.kind, r.name))),
            );
            let edges = adapted.batch.edges.iter();
            let mut lines: Vec<String> = edges
                .map(|e| {
                    format!(
                        "{} {:?} {}
",
                        names[&e.from], e.kind, names[&e.to]
                    )
                })
                .collect();
            lines.sort();
            out += &lines.concat();
            for of in calls {
                out += &format!(
                    "{} {:?}
",
                    of.labels,
                    of.owner.domain()
                );
                for c in of.calls {
                    out += &format!(
                        "  {} {} {} {}
",
                        c.name, c.kind, c.status, c.took
                    );
                }
            }
        }
        expect![[r#"
            instance cart PartOf service cart
            instance cart RunsOn host h1
            {instance="h1", job="cart", service_name="cart"} Some(Apm)
              nffffffffffffffff SPAN_KIND_SERVER STATUS_CODE_UNSET 2ms
            instance eu/shop/1 PartOf service eu/shop
            service eu/shop DependsOn database postgresql/db-1/5432
            service eu/shop DependsOn service cart
            service eu/shop DependsOn service eu/mail
            {instance="1", job="eu/shop", service_name="shop", service_namespace="eu"} Some(Apm)
              naaaaaaaaaaaaaaaa SPAN_KIND_SERVER STATUS_CODE_UNSET 2ms
              nbbbbbbbbbbbbbbbb SPAN_KIND_CLIENT STATUS_CODE_UNSET 2ms
              ncccccccccccccccc SPAN_KIND_CLIENT STATUS_CODE_UNSET 2ms
              neeeeeeeeeeeeeeee SPAN_KIND_PRODUCER STATUS_CODE_UNSET 2ms
        "#]]
        .assert_eq(&out);
    }

    fn any_span() -> impl Strategy<Value = Span> {
        let id = |bytes: usize| {
            prop_oneof![
                4 => prop::collection::vec(any::<u8>(), bytes),
                1 => prop::collection::vec(0u8..2, 0..bytes + 2),
            ]
        };
        let at = || prop_oneof![4 => (0u64..2_000).prop_map(|s| NOW.0 as u64 - s), 1 => any::<u64>()];
        (id(16), id(8), id(8), ".{0,9}", -1i32..7, at(), at()).prop_map(
            |(trace_id, span_id, parent, name, kind, a, b)| Span {
                trace_id,
                span_id,
                parent_span_id: parent,
                name,
                kind,
                start_time_unix_nano: a,
                end_time_unix_nano: b,
                ..Default::default()
            },
        )
    }

    proptest! {
        /// Every span is a line or a refusal, and a line has ids by which it is found.
        #[test]
        fn each_span_is_kept_or_refused(spans in prop::collection::vec(any_span(), 0..20)) {
            let sent = spans.len() as u64;
            let mut request = ExportTraceServiceRequest::default();
            request.resource_spans.push(Default::default());
            request.resource_spans[0].scope_spans.push(Default::default());
            request.resource_spans[0].scope_spans[0].spans = spans;
            let Spans { adapted, calls } = adapt(&TenantId::default(), request, &LIMITS).tied(&mut Ties::new(3));
            let Adapted { batch, rejected } = adapted;
            prop_assert!(calls.iter().map(|c| c.calls.len() as u64).sum::<u64>() <= batch.lines());
            prop_assert_eq!(batch.lines() + rejected.items(), sent);
            for l in batch.streams.iter().flat_map(|s| &s.lines) {
                let is_hex = |name: &str, digits: usize| l.metadata.iter().any(|(n, v)| {
                    n == name && v.len() == digits && v.bytes().all(|b| b.is_ascii_hexdigit())
                });
                prop_assert!(is_hex("trace_id", 32) && is_hex("span_id", 16));
                prop_assert!(l.metadata.is_sorted());
            }
        }

        #[test]
        fn random_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(request) = ExportTraceServiceRequest::decode(&body[..]) {
                adapt(&TenantId::default(), request, &LIMITS).tied(&mut Ties::new(3));
            }
        }
    }
}

//! Loki's push: JSON, or a snappy block of `logproto.PushRequest`. Times are nanoseconds.

use crate::decompress::snappy_into;
use crate::owners::{Scope, Seen, name_labels};
use crate::walk::{Layout, LineForm, LineView, Names, keep_lines};
use crate::wire::{Reader, WireError, label, messages};
use crate::{AdaptError, Adapted, Books, Laid, LimitsContext, Protocol, Refusal, Rejections};
use hindcast_model::{Batch, BatchId, LogLine, TenantId, TimestampNs};
use serde::Deserialize;

/// One stream as it came.
struct Pushed {
    /// What the sender wrote, for messages.
    shown: String,
    labels: Vec<(String, String)>,
    lines: Vec<LogLine>,
}

/// Lays out a protobuf body, as it came over the wire. Its id is the hash of that body. `scratch` holds the
/// decompressed body meanwhile.
pub fn adapt_protobuf(
    tenant: &TenantId,
    body: &[u8],
    limits: &LimitsContext,
    books: &Books<'_>,
    scratch: &mut Vec<u8>,
) -> Result<Laid, AdaptError> {
    let decoded = snappy_into(body, scratch)?;
    let mut laid = read_protobuf(tenant, decoded, limits, books).map_err(|e| e.of(Protocol::Loki))?;
    laid.intake.id = Some(BatchId::of_body(tenant, Protocol::Loki.as_str(), body));
    Ok(laid)
}

fn read_protobuf(tenant: &TenantId, body: &[u8], limits: &LimitsContext, books: &Books<'_>) -> Result<Laid, WireError> {
    let mut layout = Layout::new(tenant, limits, *books);
    layout.text_bytes = body.len();
    let names = Names {
        attrs: &[],
        // Labels as text are no label lists, so they are remembered apart.
        scope: Scope::new(tenant, &[], "loki").into(),
    };
    layout.streams::<Form>(messages(body, 1), &names)?;
    Ok(layout.finish(&[]))
}

struct Form;

impl LineForm for Form {
    fn line<'m>(message: &'m [u8], into: &mut LineView<'m>) -> Result<(), WireError> {
        (into.at_ns, into.text) = (0, "");
        into.metadata.clear();
        let mut reader = Reader::new(message);
        while let Some((number, field)) = reader.next()? {
            match number {
                1 => into.at_ns = time(field.bytes("a timestamp")?)?,
                2 => into.text = field.text("a line")?,
                3 => into.metadata.push(label(field.bytes("structured metadata")?)?),
                _ => {}
            }
        }
        into.metadata.sort_unstable();
        Ok(())
    }

    fn labels(message: &[u8]) -> Result<Result<Vec<(String, String)>, Refusal>, WireError> {
        Ok(parse_labels(labels_text(message)?).map_err(|why| Refusal::BadLabels { why }))
    }

    fn shown(message: &[u8]) -> String {
        labels_text(message).unwrap_or_default().to_owned()
    }
}

/// The text of a stream's labels; of several the last.
fn labels_text(message: &[u8]) -> Result<&str, WireError> {
    let mut text = "";
    let mut reader = Reader::new(message);
    while let Some((number, field)) = reader.next()? {
        if number == 1 {
            text = field.text("a stream's labels")?;
        }
    }
    Ok(text)
}

/// Turns a decompressed JSON body into a batch without an id.
pub fn adapt_json(tenant: &TenantId, body: &[u8], limits: &LimitsContext) -> Result<Adapted, AdaptError> {
    let malformed = |why: String| AdaptError::Malformed {
        protocol: Protocol::Loki,
        why,
    };
    let push: JsonPush = serde_json::from_slice(body).map_err(|e| malformed(e.to_string()))?;
    let mut pushed = Vec::with_capacity(push.streams.len());
    for stream in push.streams {
        let mut lines = Vec::with_capacity(stream.values.len());
        for JsonLine(at, line, metadata) in stream.values {
            let at = at
                .parse()
                .map_err(|_| malformed(format!("{at:?} is not a time in nanoseconds")))?;
            lines.push(LogLine {
                at: TimestampNs(at),
                line: line.into(),
                metadata: metadata.sorted(),
            });
        }
        pushed.push(Pushed {
            shown: shown(&stream.stream.0),
            labels: stream.stream.0,
            lines,
        });
    }
    Ok(to_batch(tenant, pushed, limits))
}

#[derive(Deserialize)]
struct JsonPush {
    streams: Vec<JsonStream>,
}

#[derive(Deserialize)]
struct JsonStream {
    stream: Pairs,
    values: Vec<JsonLine>,
}

/// An object of texts, in the order in which they came: a name that comes twice is for the checks to see, and not for a map to fold.
#[derive(Default)]
struct Pairs(Vec<(String, String)>);

impl Pairs {
    fn sorted(mut self) -> Vec<(String, String)> {
        self.0.sort();
        self.0
    }
}

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Pairs;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object whose values are texts")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = vec![];
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        d.deserialize_map(Visitor)
    }
}

fn shown(labels: &[(String, String)]) -> String {
    let pairs: Vec<String> = labels.iter().map(|(n, v)| format!("{n}={v:?}")).collect();
    format!("{{{}}}", pairs.join(", "))
}

/// `["<ns>", "<line>"]` or `["<ns>", "<line>", {metadata}]`.
struct JsonLine(String, String, Pairs);

impl<'de> Deserialize<'de> for JsonLine {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = r#"a line is ["1700000000000000000", "text"], both as texts, or has an object of texts behind them"#
        )]
        enum Form {
            Bare((String, String)),
            Full((String, String, Pairs)),
        }
        Ok(match Form::deserialize(d)? {
            Form::Bare((at, line)) => Self(at, line, Pairs::default()),
            Form::Full((at, line, metadata)) => Self(at, line, metadata),
        })
    }
}

/// A `google.protobuf.Timestamp`, in nanoseconds; saturates.
fn time(message: &[u8]) -> Result<i64, WireError> {
    let (mut seconds, mut nanos) = (0i64, 0i64);
    let mut reader = Reader::new(message);
    while let Some((number, field)) = reader.next()? {
        match number {
            1 => seconds = field.varint("seconds")? as i64,
            2 => nanos = field.varint("nanos")? as i64,
            _ => {}
        }
    }
    Ok(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

fn to_batch(tenant: &TenantId, pushed: Vec<Pushed>, limits: &LimitsContext) -> Adapted {
    let mut batch = Batch::new(tenant.clone());
    let mut rejected = Rejections::default();
    let mut seen = Seen::default();
    for Pushed { shown, labels, lines } in pushed {
        match name_labels(tenant, labels, &[], false, limits) {
            Ok(named) => {
                seen.note(&named.resource);
                batch.streams.extend(keep_lines(named, lines, limits, &mut rejected));
            }
            Err(why) => rejected.add(lines.len() as u64, &why, || shown),
        }
    }
    seen.into_batch(&mut batch);
    Adapted { batch, rejected }
}

/// Labels as Loki's clients write them: `{job="a", host="b"}`, values quoted as in JSON, Go or backticks.
fn parse_labels(text: &str) -> Result<Vec<(String, String)>, String> {
    let inner = text.trim().strip_prefix('{').and_then(|t| t.strip_suffix('}'));
    let mut rest = inner.ok_or("labels stand in braces")?.trim();
    let mut pairs = vec![];
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').ok_or("a label has no '='")?;
        let (value, after) = quoted(after.trim_start())?;
        pairs.push((name.trim().to_owned(), value));
        rest = after.trim_start();
        if !rest.is_empty() {
            rest = rest
                .strip_prefix(',')
                .ok_or("labels are parted by commas")?
                .trim_start();
        }
    }
    Ok(pairs)
}

fn quoted(text: &str) -> Result<(String, &str), String> {
    if let Some(raw) = text.strip_prefix('`') {
        let (value, rest) = raw.split_once('`').ok_or("a value does not end")?;
        return Ok((value.to_owned(), rest));
    }
    let mut chars = text.strip_prefix('"').ok_or("a value stands in quotes")?.char_indices();
    let mut value = String::new();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &text[at + 2..])),
            '\\' => value.push(match chars.next().ok_or("a value does not end")?.1 {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                'x' => hex_char(&mut chars, 2)?,
                'u' => hex_char(&mut chars, 4)?,
                'U' => hex_char(&mut chars, 8)?,
                c @ ('"' | '\\' | '\'') => c,
                other => return Err(format!("\\{other} is no escape")),
            }),
            c => value.push(c),
        }
    }
    Err("a value does not end".to_owned())
}

fn hex_char(chars: &mut std::str::CharIndices<'_>, digits: usize) -> Result<char, String> {
    let hex: String = chars.take(digits).map(|(_, c)| c).collect();
    let code = (hex.len() == digits)
        .then(|| u32::from_str_radix(&hex, 16).ok())
        .flatten();
    code.and_then(char::from_u32)
        .ok_or_else(|| format!("{hex:?} is no character"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::LIMITS;
    use proptest::prelude::*;

    #[test]
    fn a_label_twice_in_a_stream_of_json_is_refused_and_not_one_of_them_kept() {
        let push = r#"{"streams":[{"stream":{"job":"a","job":"b"},"values":[["1700000000000000000","x"]]},
            {"stream":{"job":"c"},"values":[["1700000000000000000","y",{"k":"v"}]]}]}"#;
        let read = adapt_json(&TenantId::default(), push.as_bytes(), &LIMITS).unwrap();
        assert_eq!((read.batch.lines(), read.rejected.by_code()["label_twice"]), (1, 1));
        assert!(
            read.rejected.summary(9).contains(r#"{job="a", job="b"}"#),
            "{}",
            read.rejected.summary(9)
        );
        let number = br#"{"streams":[{"stream":{"job":"a"},"values":[[1700000000000000000,"x"]]}]}"#;
        let why = adapt_json(&TenantId::default(), number, &LIMITS)
            .unwrap_err()
            .to_string();
        assert!(why.contains(r#"a line is ["1700000000000000000", "text"]"#), "{why}");
    }

    #[test]
    fn labels_are_read_as_clients_write_them() {
        let pairs = parse_labels(r#"{job="a\"b", path=`C:\x`, u="\u00e9\n",}"#).unwrap();
        let want = [("job", "a\"b"), ("path", "C:\\x"), ("u", "é\n")];
        assert!(
            pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())).eq(want),
            "{pairs:?}"
        );
        for bad in ["", "{", "{a}", "{a=b}", r#"{a="b}"#, r#"{a="b" c="d"}"#, r#"{a="\q"}"#] {
            assert!(parse_labels(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn random_input_never_panics(text in ".{0,60}", body in proptest::collection::vec(any::<u8>(), 0..100)) {
            let limits = LimitsContext { now: TimestampNs(0), floor: None, bounds: crate::check::Bounds::DEFAULT };
            let _ = parse_labels(&text);
            let _ = parse_labels(&format!("{{a=\"{text}"));
            let _ = adapt_json(&TenantId::default(), text.as_bytes(), &limits);
            let desk = crate::testing::Desk::new(1);
            let _ = read_protobuf(&TenantId::default(), &body, &limits, &desk.books(crate::Naming::Known));
        }
    }

    /// `logproto.PushRequest` as prost derives it.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Push {
        #[prost(message, repeated, tag = "1")]
        streams: Vec<PushedStream>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    struct PushedStream {
        #[prost(string, tag = "1")]
        labels: String,
        #[prost(message, repeated, tag = "2")]
        entries: Vec<Entry>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    struct Entry {
        #[prost(message, optional, tag = "1")]
        at: Option<prost_time::Time>,
        #[prost(string, tag = "2")]
        line: String,
        #[prost(message, repeated, tag = "3")]
        metadata: Vec<Pair>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    struct Pair {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(string, tag = "2")]
        value: String,
    }
    mod prost_time {
        #[derive(Clone, Copy, PartialEq, prost::Message)]
        pub struct Time {
            #[prost(int64, tag = "1")]
            pub seconds: i64,
            #[prost(int32, tag = "2")]
            pub nanos: i32,
        }
    }

    proptest! {
        /// Lines of known streams are the lines of the same streams when they were new.
        #[test]
        fn the_known_way_is_the_general_way(
            streams in proptest::collection::vec((0u8..5, proptest::collection::vec((0i64..1 << 33, "[a-z가]{0,9}", 0usize..3), 0..5)), 0..6),
        ) {
            let entry = |(seconds, line, n): &(i64, String, usize)| Entry {
                at: Some(prost_time::Time { seconds: *seconds, nanos: 7 }),
                line: line.clone(),
                // The last one is refused: its name is empty.
                metadata: (0..*n).map(|i| Pair { name: if line.len() == 8 { String::new() } else { format!("k{}", 9 - i) }, value: "v".into() }).collect(),
            };
            let of = |(n, lines): &(u8, Vec<_>)| PushedStream {
                labels: if *n == 4 { "broken".to_owned() } else { format!("{{job=\"j{n}\"}}") },
                entries: lines.iter().map(entry).collect(),
            };
            let push = Push { streams: streams.iter().map(of).collect() };
            let body = prost::Message::encode_to_vec(&push);
            let limits = LimitsContext { now: TimestampNs::from_secs(1 << 32), floor: None, bounds: crate::check::Bounds::DEFAULT };
            let (desk, tenant) = (crate::testing::Desk::new(1), TenantId::default());
            for _ in 0..2 {
                let read = |naming| read_protobuf(&tenant, &body, &limits, &desk.books(naming)).unwrap();
                let (known, general) = (read(crate::Naming::Known), read(crate::Naming::Defined));
                prop_assert_eq!(known.rejected.by_code(), general.rejected.by_code());
                let general = crate::testing::sorted(desk.replica.apply(&general.intake));
                prop_assert_eq!(crate::testing::sorted(desk.confirm(known)), general);
            }
        }
    }
}

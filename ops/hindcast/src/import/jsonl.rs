//! Log lines as JSON objects, one per line: `{"ts": …, "line": "…", "labels": {…}, "metadata": {…}}`.
//!
//! Pure. `ts` is a number or a text, read as [`when`](super::when) says. `labels` and `metadata` may be absent; their
//! values are texts, numbers or booleans.

use super::{BadLine, Item, when};
use crate::agent::batcher::Entry;
use hindcast_model::Labels;
use hindcast_model::limits::LINE_BYTES_MAX;
use serde_json::Value;

pub fn parse(line: &str) -> Result<Item, BadLine> {
    if line.trim().is_empty() {
        return Ok(Item::Nothing);
    }
    let value: Value = serde_json::from_str(line).map_err(|e| BadLine::new(format!("not JSON: {e}")))?;
    let Value::Object(fields) = value else {
        return Err(BadLine::new("not a JSON object"));
    };
    let at_ns = match fields.get("ts") {
        Some(Value::String(text)) => when::time_ns(text)?,
        Some(Value::Number(n)) => {
            when::number_ns(&n.to_string()).ok_or_else(|| BadLine::new(format!("\"ts\": {n} is not a time")))?
        }
        Some(other) => return Err(BadLine::new(format!("\"ts\": {other} is not a time"))),
        None => return Err(BadLine::new("no \"ts\"")),
    };
    let text = match fields.get("line") {
        Some(Value::String(text)) => text.clone(),
        Some(_) => return Err(BadLine::new("\"line\" is not a text")),
        None => return Err(BadLine::new("no \"line\"")),
    };
    if text.len() > LINE_BYTES_MAX {
        return Err(BadLine::new(format!(
            "{} bytes are more than the {LINE_BYTES_MAX} of a line",
            text.len()
        )));
    }
    Ok(Item::Line {
        labels: Labels::new(pairs(&fields, "labels")?),
        entry: Entry {
            at_ns,
            line: text,
            metadata: pairs(&fields, "metadata")?,
        },
    })
}

fn pairs(fields: &serde_json::Map<String, Value>, name: &str) -> Result<Vec<(String, String)>, BadLine> {
    let object = match fields.get(name) {
        None | Some(Value::Null) => return Ok(vec![]),
        Some(Value::Object(object)) => object,
        Some(_) => return Err(BadLine::new(format!("{name:?} is not an object"))),
    };
    let mut pairs = vec![];
    for (n, v) in object {
        let v = match v {
            Value::String(text) => text.clone(),
            Value::Number(_) | Value::Bool(_) => v.to_string(),
            _ => return Err(BadLine::new(format!("{n:?} in {name:?} is not a text"))),
        };
        pairs.push((n.clone(), v));
    }
    pairs.sort();
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    fn check(line: &str, expect: Expect) {
        let shown = match parse(line) {
            Ok(Item::Line { labels, entry }) => {
                format!("{labels} {} {:?} {:?}", entry.at_ns, entry.line, entry.metadata)
            }
            Ok(item) => format!("{item:?}"),
            Err(e) => format!("bad: {e}"),
        };
        expect.assert_eq(&shown);
    }

    #[test]
    fn lines_carry_time_labels_and_metadata() {
        check(
            r#"{"ts":1700000000123456789,"line":"a\nb","labels":{"job":"x","n":1},"metadata":{"trace_id":"t"}}"#,
            expect![[r#"{job="x", n="1"} 1700000000123456789 "a\nb" [("trace_id", "t")]"#]],
        );
        check(
            r#"{"ts":"2026-01-01T00:00:00Z","line":""}"#,
            expect![[r#"{} 1767225600000000000 "" []"#]],
        );
        check(
            r#"{"ts":1700000000.5,"line":"x"}"#,
            expect![[r#"{} 1700000000500000000 "x" []"#]],
        );
        check("", expect!["Nothing"]);
        check("[]", expect!["bad: not a JSON object"]);
        check(r#"{"line":"x"}"#, expect![[r#"bad: no "ts""#]]);
        check(
            r#"{"ts":null,"line":"x"}"#,
            expect![[r#"bad: "ts": null is not a time"#]],
        );
        check(r#"{"ts":1}"#, expect![[r#"bad: no "line""#]]);
        check(
            r#"{"ts":1,"line":"x","labels":{"a":[]}}"#,
            expect![[r#"bad: "a" in "labels" is not a text"#]],
        );
    }

    proptest! {
        #[test]
        fn nanoseconds_are_kept_whole(ns in 100_000_000_000_000_000i64..i64::MAX, line in ".{0,40}") {
            let json = serde_json::json!({"ts": ns, "line": line}).to_string();
            match parse(&json) {
                Ok(Item::Line { entry, .. }) => prop_assert_eq!((entry.at_ns, entry.line), (ns, line)),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}

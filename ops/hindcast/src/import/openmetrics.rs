//! One line of a Prometheus or OpenMetrics text page.
//!
//! Pure. A line is `name{label="value",…} value [timestamp] [# exemplar]`; names may stand quoted inside the braces.
//! Timestamps are milliseconds (Prometheus) or seconds (OpenMetrics): told apart by size (`when`). Exemplars are left
//! out. `#T <unix ms>` begins a page of that time; every other line that starts with `#` is a comment here, since
//! types and help texts do not change what is stored.

use super::{BadLine, Item, float, when};
use hindcast_model::Labels;
use hindcast_model::labels::METRIC_NAME;

pub fn parse(line: &str) -> Result<Item, BadLine> {
    let line = line.trim();
    if let Some(page) = line.strip_prefix("#T ") {
        return Ok(Item::PageTime(when::time_ms(page)?));
    }
    if line.is_empty() || line.starts_with('#') {
        return Ok(Item::Nothing);
    }
    let name_end = line.find(['{', ' ', '\t']).ok_or_else(|| BadLine::new("no value"))?;
    let (name, rest) = line.split_at(name_end);
    let mut pairs = vec![];
    if !name.is_empty() {
        pairs.push((METRIC_NAME.to_owned(), metric_name(name)?.to_owned()));
    }
    let rest = match rest.trim_start().strip_prefix('{') {
        Some(inside) => labels(inside, &mut pairs)?,
        None => rest,
    };
    if !pairs.iter().any(|(n, _)| n == METRIC_NAME) {
        return Err(BadLine::new("no metric name"));
    }
    let mut words = rest.split_whitespace();
    let value = float(words.next().ok_or_else(|| BadLine::new("no value"))?)?;
    let at_ms = match words.next() {
        None | Some("#") => None,
        Some(t) => {
            if words.next().is_some_and(|w| w != "#") {
                return Err(BadLine::new("more than a value and a timestamp"));
            }
            let ns = when::number_ns(t).ok_or_else(|| BadLine::new(format!("{t:?} is not a timestamp")))?;
            Some(ns.div_euclid(1_000_000))
        }
    };
    Ok(Item::Sample {
        labels: Labels::new(pairs),
        at_ms,
        value,
    })
}

fn metric_name(name: &str) -> Result<&str, BadLine> {
    let fits = |(i, c): (usize, char)| c.is_ascii_alphabetic() || c == '_' || c == ':' || i > 0 && c.is_ascii_digit();
    if name.char_indices().all(fits) {
        return Ok(name);
    }
    Err(BadLine::new(format!("{name:?} is not a metric name")))
}

/// Reads up to and with the closing brace; gives what follows.
fn labels<'a>(mut rest: &'a str, pairs: &mut Vec<(String, String)>) -> Result<&'a str, BadLine> {
    let open = || BadLine::new("the labels do not end");
    loop {
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix('}') {
            return Ok(after);
        }
        let (name, after) = match rest.strip_prefix('"') {
            Some(quoted) => {
                let (name, after) = text(quoted)?;
                (name, after.trim_start())
            }
            None => {
                let end = rest.find('=').ok_or_else(open)?;
                let name = rest[..end].trim();
                if name.is_empty() || metric_name(name).is_err() {
                    return Err(BadLine::new(format!("{name:?} is not a label name")));
                }
                (name.to_owned(), &rest[end..])
            }
        };
        rest = match after.strip_prefix('=') {
            Some(value) => {
                let quoted = value.trim_start().strip_prefix('"');
                let quoted = quoted.ok_or_else(|| BadLine::new(format!("the value of {name:?} is not quoted")))?;
                let (value, after) = text(quoted)?;
                if pairs.iter().any(|(n, _)| *n == name) {
                    return Err(BadLine::new(format!("label {name:?} is given twice")));
                }
                pairs.push((name, value));
                after.trim_start()
            }
            // A quoted text alone is the metric's name.
            None if pairs.iter().all(|(n, _)| n != METRIC_NAME) => {
                pairs.push((METRIC_NAME.to_owned(), name));
                after
            }
            None => return Err(BadLine::new("a second metric name")),
        };
        if let Some(after) = rest.strip_prefix(',') {
            rest = after;
        } else if !rest.starts_with('}') {
            return Err(open());
        }
    }
}

/// A quoted text after its first quote, and what follows its last one.
fn text(quoted: &str) -> Result<(String, &str), BadLine> {
    let mut out = String::new();
    let mut chars = quoted.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Ok((out, &quoted[i + 1..])),
            '\\' => match chars.next() {
                Some((_, 'n')) => out.push('\n'),
                Some((_, c @ ('\\' | '"'))) => out.push(c),
                // As Prometheus: an unknown escape stays as it is.
                Some((_, c)) => out.extend(['\\', c]),
                None => break,
            },
            c => out.push(c),
        }
    }
    Err(BadLine::new("a quote is not closed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use hindcast_model::resource::metric;
    use proptest::prelude::*;
    use std::fmt::Write;

    fn check(page: &str, expect: Expect) {
        let mut out = String::new();
        for line in page.lines().map(str::trim).filter(|l| !l.is_empty()) {
            match parse(line) {
                Ok(Item::Sample { labels, at_ms, value }) => writeln!(out, "{labels} {value} {at_ms:?}"),
                Ok(Item::PageTime(ms)) => writeln!(out, "page of {ms}"),
                Ok(Item::Nothing) => writeln!(out, "nothing"),
                Ok(item) => writeln!(out, "{item:?}"),
                Err(e) => writeln!(out, "bad: {e}"),
            }
            .unwrap();
        }
        expect.assert_eq(&out);
    }

    #[test]
    fn pages_of_both_formats_are_read() {
        check(
            r##"
            # TYPE a counter
            #T 1795341521872
            go_gc_duration_seconds{quantile="0.25"} 3.1e-05
            up 1
            up{ job = "a b" , instance="x:1",} NaN 1395066363000
            http_total{code="200"} 1027 1395066363.5 # {trace_id="x"} 0.67 1395066363
            path{p="C:\\DIR\\",q="a\"b\nc",r="\d"} +Inf
            {"my.metric", "a label"="v"} -0
            b{} 1 # {} 2
            # EOF
            "##,
            expect![[r#"
                nothing
                page of 1795341521872
                go_gc_duration_seconds{quantile="0.25"} 0.000031 None
                up 1 None
                up{instance="x:1", job="a b"} NaN Some(1395066363000)
                http_total{code="200"} 1027 Some(1395066363500)
                path{p="C:\\DIR\\", q="a\"b\nc", r="\\d"} inf None
                my.metric{a label="v"} -0 None
                b 1 None
                nothing
            "#]],
        );
    }

    #[test]
    fn a_bad_line_says_what_is_wrong() {
        check(
            r##"
            up
            up one
            up 1 now
            up 1 2 3
            9up 1
            {job="x"} 1
            up{job="x} 1
            up{job="x" 1
            up{job=x} 1
            up{job="x",job="y"} 1
            up{"a","b"} 1
            #T soon
            "##,
            expect![[r#"
                bad: no value
                bad: "one" is not a number
                bad: "now" is not a timestamp
                bad: more than a value and a timestamp
                bad: "9up" is not a metric name
                bad: no metric name
                bad: a quote is not closed
                bad: the labels do not end
                bad: the value of "job" is not quoted
                bad: label "job" is given twice
                bad: a second metric name
                bad: "soon" is not a time (Unix time, RFC 3339, or YYYY-MM-DD HH:MM:SS in UTC)
            "#]],
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            pairs in proptest::collection::btree_map("[a-z_][a-z0-9_]{0,6}", "[^\0]{1,12}", 0..5), value in any::<f64>(), at in proptest::option::of(100_000_000_000i64..4_000_000_000_000),
        ) {
            let escape = |v: &str| v.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let inside: Vec<_> = pairs.iter().map(|(n, v)| format!("{n}=\"{}\"", escape(v))).collect();
            let stamp = at.map_or(String::new(), |at| format!(" {at}"));
            let line = format!("m{{{}}} {value}{stamp}", inside.join(","));
            // The line reader cuts at line feeds only.
            prop_assume!(!line.contains(['\r', '\u{85}', '\u{2028}']));
            let expected: Vec<_> = pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            match parse(&line) {
                Ok(Item::Sample { labels, at_ms, value: got }) => {
                    prop_assert_eq!(labels, metric("m", &expected));
                    prop_assert!(got.to_bits() == value.to_bits() || got.is_nan() && value.is_nan());
                    prop_assert_eq!(at_ms, at);
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }

        #[test]
        fn no_line_is_too_odd(line in r#"[a-z{}=", \\#0-9.é]{0,60}"#) { let _ = parse(&line); }
    }
}

//! One line of a Prometheus or OpenMetrics text page in a file.
//!
//! Pure. Lines are read as those of a scrape ([`hindcast_scrape::text`]). Timestamps are milliseconds (Prometheus) or seconds
//! (OpenMetrics): told apart by size (`when`), since a file may be of either. `#T <unix ms>` begins a page of that time; every
//! other line that starts with `#` is a comment here.

use super::{BadLine, Item, when};
use hindcast_model::Labels;
use hindcast_scrape::text::{self, Line, SampleLine};

pub fn parse(line: &str) -> Result<Item, BadLine> {
    let line = line.trim();
    if let Some(page) = line.strip_prefix("#T ") {
        return Ok(Item::PageTime(when::time_ms(page)?));
    }
    match text::parse(line)? {
        Line::Nothing | Line::End => Ok(Item::Nothing),
        Line::Sample(SampleLine {
            pairs, value, stamp, ..
        }) => {
            let at_ms = match stamp {
                None => None,
                Some(t) => {
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
    }
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

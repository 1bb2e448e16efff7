//! LogQL over lines, as who asks sees it: a script of queries and what came of them.

use expect_test::{Expect, expect};
use futures::executor::block_on;
use hindcast_model::{Labels, LogLine, Owner, SpanNs, TenantId, TimestampNs};
use hindcast_query::testing::OneShard;
use hindcast_query::{Engine, Limits, LogsQuery, LogsValue, Options, Value};
use hindcast_storage::read::Direction;
use proptest::prelude::*;
use std::fmt::Write;
use std::sync::Arc;

/// Two streams: logfmt with metadata each 10 s, and JSON with one broken line each 20 s.
fn engine() -> Engine {
    let (shard, tenant) = (OneShard::new(), TenantId::default());
    let line = |s: i64, text: String, trace: Option<i64>| LogLine {
        at: TimestampNs::from_secs(s),
        line: text.into(),
        metadata: trace
            .map(|t| ("trace".to_owned(), format!("t{t}")))
            .into_iter()
            .collect(),
    };
    let api = (0..6).map(|i| {
        let level = if i % 3 == 2 { "error" } else { "info" };
        let text = format!("level={level} seq={i} dur={}ms size={i}KB app=inner", 10 * i);
        line(10 * i, text, (i % 2 == 0).then_some(i / 2))
    });
    shard.add_lines(&tenant, Labels::from_pairs([("app", "api")]), Owner::None, api);
    let web = (0..3).map(|i| {
        let text = match i {
            1 => "broken {".to_owned(),
            i => format!("{{\"level\":\"info\",\"req\":{{\"n\":{i}}},\"took\":\"{i}.5s\"}}"),
        };
        line(20 * i + 5, text, None)
    });
    shard.add_lines(&tenant, Labels::from_pairs([("app", "web")]), Owner::None, web);
    Engine::new(Arc::new(shard), Limits::default())
}

fn labels(labels: &Labels) -> String {
    let pairs: Vec<String> = labels.iter().map(|(n, v)| format!("{n}={v:?}")).collect();
    format!("{{{}}}", pairs.join(","))
}

fn ask(engine: &Engine, expr: &str, limit: usize, direction: Direction, step: Option<u64>) -> String {
    let q = LogsQuery {
        tenant: TenantId::default(),
        expr: expr.to_owned(),
        start: TimestampNs::from_secs(0),
        end: TimestampNs::from_secs(60),
        step: step.map(SpanNs::from_secs),
        limit,
        direction,
        options: Options::default(),
    };
    let mut out = String::new();
    match block_on(engine.logs(&q)).map(|a| a.value) {
        Err(e) => out = format!("error: {e}\n"),
        Ok(LogsValue::Streams(streams)) => {
            for s in streams {
                let _ = writeln!(out, "{} {}", labels(&s.labels), labels(&s.parsed));
                for l in s.lines {
                    let metadata = labels(&Labels::new(l.metadata));
                    let text = String::from_utf8_lossy(&l.line).into_owned();
                    let _ = writeln!(out, "  {} {metadata} {text}", l.at.as_ms() / 1000);
                }
            }
        }
        Ok(LogsValue::Metric(value)) => match value {
            Value::Scalar(v) => out = format!("{v}\n"),
            Value::Vector(samples) => {
                for s in samples {
                    let _ = writeln!(out, "{} {}", labels(&s.labels), s.value);
                }
            }
            Value::Matrix(all) => {
                for s in all {
                    let points: Vec<String> = s
                        .points
                        .iter()
                        .map(|(t, v)| format!("{}:{v}", t.as_ms() / 1000))
                        .collect();
                    let _ = writeln!(out, "{} {}", labels(&s.labels), points.join(" "));
                }
            }
            Value::String(text) => out = text,
        },
    }
    out
}

/// Each line is a query; `<` before it asks from the old end, a number limits the lines, `@20` sets a step.
fn check(queries: &str, expected: Expect) {
    let engine = engine();
    let mut shown = String::new();
    for line in queries.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let (mut direction, mut limit, mut step, mut expr) = (Direction::Backward, 100, None, line);
        while let Some((word, rest)) = expr.split_once(' ') {
            if word == "<" {
                direction = Direction::Forward;
            } else if let Ok(n) = word.parse() {
                limit = n;
            } else if let Some(s) = word.strip_prefix('@') {
                step = s.parse().ok();
            } else {
                break;
            }
            expr = rest;
        }
        let _ = write!(shown, "{line}\n{}", ask(&engine, expr, limit, direction, step));
    }
    expected.assert_eq(&shown);
}

#[test]
fn lines_go_through_stages_until_there_are_enough() {
    check(
        r#"
        2 {app="api"} | logfmt | level="info" | keep level, trace
        < 2 {app="api"} | logfmt | level="info" | keep level, trace
        {app=~".+"} | json | __error__!="" | drop __error_details__
        {app="api"} | logfmt | dur >= 40ms | line_format "{{.seq}} {{.trace}} {{.app_extracted}}" | keep app
        {app="api"} | trace="t1"
        {app="web"} | json | req_n > 1 | label_format took="{{ .took }}!", app="x"
        0 {app="api"} | logfmt
        "#,
        expect![[r#"
            2 {app="api"} | logfmt | level="info" | keep level, trace
            {} {level="info"}
              40 {trace="t2"} level=info seq=4 dur=40ms size=4KB app=inner
              30 {} level=info seq=3 dur=30ms size=3KB app=inner
            < 2 {app="api"} | logfmt | level="info" | keep level, trace
            {} {level="info"}
              0 {trace="t0"} level=info seq=0 dur=0ms size=0KB app=inner
              10 {} level=info seq=1 dur=10ms size=1KB app=inner
            {app=~".+"} | json | __error__!="" | drop __error_details__
            {app="api"} {__error__="JSONParserErr"}
              50 {} level=error seq=5 dur=50ms size=5KB app=inner
              40 {trace="t2"} level=info seq=4 dur=40ms size=4KB app=inner
              30 {} level=info seq=3 dur=30ms size=3KB app=inner
              20 {trace="t1"} level=error seq=2 dur=20ms size=2KB app=inner
              10 {} level=info seq=1 dur=10ms size=1KB app=inner
              0 {trace="t0"} level=info seq=0 dur=0ms size=0KB app=inner
            {app="web"} {__error__="JSONParserErr"}
              25 {} broken {
            {app="api"} | logfmt | dur >= 40ms | line_format "{{.seq}} {{.trace}} {{.app_extracted}}" | keep app
            {app="api"} {}
              50 {} 5  inner
              40 {} 4 t2 inner
            {app="api"} | trace="t1"
            {app="api"} {}
              20 {trace="t1"} level=error seq=2 dur=20ms size=2KB app=inner
            {app="web"} | json | req_n > 1 | label_format took="{{ .took }}!", app="x"
            {} {__error__="JSONParserErr",__error_details__="expected an object",app="x",took="!"}
              25 {} broken {
            {} {app="x",level="info",req_n="2",took="2.5s!"}
              45 {} {"level":"info","req":{"n":2},"took":"2.5s"}
            0 {app="api"} | logfmt
        "#]],
    );
}

#[test]
fn numbers_come_of_lines_that_went_through_stages() {
    check(
        r#"
        sum by (level) (count_over_time({app="api"} | logfmt [1m]))
        @20 sum(rate({app="api"} | logfmt | level="info" [20s]))
        sum_over_time({app="api"} | logfmt | unwrap seq [1m]) by (level)
        sum(sum_over_time({app="api"} | logfmt | unwrap seq [1m]))
        max_over_time({app="api"} | logfmt | unwrap duration(dur) [1m]) by (level)
        avg_over_time({app="api"} | logfmt | unwrap bytes(size) [1m]) without (level, seq, dur, trace, app_extracted)
        quantile_over_time(0.5, {app="api"} | logfmt | unwrap seq [1m]) by (app)
        first_over_time({app="api"} | logfmt | unwrap seq [1m]) by (level)
        rate({app="api"} | logfmt | keep app, seq | unwrap seq [1m])
        rate_counter({app="api"} | logfmt | keep app, seq | unwrap seq [1m])
        bytes_over_time({app="web"} | json | __error__="" | line_format "four" | keep app [1m])
        bytes_over_time({app="api"}[1m])
        absent_over_time({app="web"} | json | level="nosuch" [1m])
        absent_over_time({app="web"}[1m] | json | __error__="")
        count_over_time({app="web"} | json [1m])
        sum by (__error__) (count_over_time({app="web"} | json [1m]))
        sum(sum_over_time({app="api"} | logfmt | unwrap level [1m]))
        sum(sum_over_time({app="api"} | logfmt | unwrap level | __error__="" [1m]))
        count_over_time({app="api"} | logfmt | unwrap seq [1m])
        label_replace(sum by (app) (count_over_time({app=~".+"}[1m])), "x", "$1-", "app", "(.).*") > 3
        sum by (app) (bytes_rate({app="api"}[1m])) / on (app) sum by (app) (rate({app="api"}[1m]))
        sort_desc(sum by (level) (count_over_time({app="api"} | logfmt [1m] offset 10s)))
        approx_topk(1, sum by (level) (count_over_time({app="api"} | logfmt [1m])))
        "#,
        expect![[r#"
            sum by (level) (count_over_time({app="api"} | logfmt [1m]))
            {level="error"} 2
            {level="info"} 3
            @20 sum(rate({app="api"} | logfmt | level="info" [20s]))
            {} 0:0.05 20:0.05 40:0.1
            sum_over_time({app="api"} | logfmt | unwrap seq [1m]) by (level)
            error: 1:55: parse error: unexpected "by"
            sum(sum_over_time({app="api"} | logfmt | unwrap seq [1m]))
            {} 15
            max_over_time({app="api"} | logfmt | unwrap duration(dur) [1m]) by (level)
            {level="error"} 0.05
            {level="info"} 0.04
            avg_over_time({app="api"} | logfmt | unwrap bytes(size) [1m]) without (level, seq, dur, trace, app_extracted)
            {app="api"} 3000
            quantile_over_time(0.5, {app="api"} | logfmt | unwrap seq [1m]) by (app)
            {app="api"} 3
            first_over_time({app="api"} | logfmt | unwrap seq [1m]) by (level)
            {level="error"} 2
            {level="info"} 1
            rate({app="api"} | logfmt | keep app, seq | unwrap seq [1m])
            {app="api"} 0.25
            rate_counter({app="api"} | logfmt | keep app, seq | unwrap seq [1m])
            {app="api"} 0.1
            bytes_over_time({app="web"} | json | __error__="" | line_format "four" | keep app [1m])
            {app="web"} 8
            bytes_over_time({app="api"}[1m])
            {app="api"} 222
            absent_over_time({app="web"} | json | level="nosuch" [1m])
            {app="web"} 1
            absent_over_time({app="web"}[1m] | json | __error__="")
            count_over_time({app="web"} | json [1m])
            error: pipeline error: "JSONParserErr" (expected an object) for the line at 25.000 of {app="web"}; to leave such lines out, add | __error__=""
            sum by (__error__) (count_over_time({app="web"} | json [1m]))
            {} 2
            {__error__="JSONParserErr"} 1
            sum(sum_over_time({app="api"} | logfmt | unwrap level [1m]))
            error: pipeline error: "SampleExtractionErr" (the label level is no number: "info") for the line at 10.000 of {app="api", level="info"}; to leave such lines out, add | __error__=""
            sum(sum_over_time({app="api"} | logfmt | unwrap level | __error__="" [1m]))
            count_over_time({app="api"} | logfmt | unwrap seq [1m])
            error: 1:1: parse error: count_over_time counts lines and takes no unwrap
            label_replace(sum by (app) (count_over_time({app=~".+"}[1m])), "x", "$1-", "app", "(.).*") > 3
            {app="api",x="a-"} 5
            sum by (app) (bytes_rate({app="api"}[1m])) / on (app) sum by (app) (rate({app="api"}[1m]))
            {app="api"} 44.400000000000006
            sort_desc(sum by (level) (count_over_time({app="api"} | logfmt [1m] offset 10s)))
            {level="info"} 4
            {level="error"} 2
            approx_topk(1, sum by (level) (count_over_time({app="api"} | logfmt [1m])))
            {level="info"} 3
        "#]],
    );
}

proptest! {
    /// A query with stages over many lines gives what the lines give one by one, however many come at a time.
    #[test]
    fn a_limit_counts_lines_that_passed(
        // Up to some pages: the first one has 500 lines.
        lines in prop_oneof![
            prop::collection::vec((0i64..50, 0u8..4), 0..200),
            prop::collection::vec((0i64..50, 0u8..4), 1_000..2_500),
        ],
        limit in 1usize..20,
        forward in any::<bool>(),
    ) {
        let (shard, tenant) = (OneShard::new(), TenantId::default());
        for (i, (at, kind)) in lines.iter().enumerate() {
            let line = LogLine { at: TimestampNs::from_secs(*at), line: format!("k={kind} i={i}").into(), metadata: vec![] };
            shard.add_lines(&tenant, Labels::from_pairs([("app", "a")]), Owner::None, [line]);
        }
        let engine = Engine::new(Arc::new(shard), Limits::default());
        let direction = if forward { Direction::Forward } else { Direction::Backward };
        let got = ask(&engine, "{app=\"a\"} | logfmt | k=3 | keep app", limit, direction, None);
        let mut wanted: Vec<(i64, usize)> = lines
            .iter()
            .enumerate()
            .filter(|(_, (_, kind))| *kind == 3)
            .map(|(i, (at, _))| (*at, i))
            .collect();
        wanted.sort_unstable();
        if !forward {
            wanted.reverse();
        }
        let wanted: Vec<String> = wanted.into_iter().take(limit).map(|(at, i)| format!("  {at} {{}} k=3 i={i}")).collect();
        prop_assert_eq!(got.lines().skip(1).collect::<Vec<_>>(), wanted);
    }
}

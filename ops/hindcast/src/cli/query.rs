//! `hindcast query` and `hindcast logs`: PromQL and LogQL against a server, as a table, JSON or CSV.
//!
//! Results go to standard output, what the reader should know about them (an incomplete answer) to standard error.

use super::{Client, Done, Failure};
use clap::ValueEnum;
use hindcast_env::Clock;
use hindcast_env::io::SystemClock;
use hindcast_model::{Labels, LogLine, SpanNs, TimestampNs};
use hindcast_proto::{edge, v1};
use hindcast_query::tail::{Stretch, Tail};
use hindcast_query::value::LogStream;
use serde_json::json;
use std::fmt::Write;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

// Times are RFC 3339, Unix seconds, `now`, or a time before now like `now-15m`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  hindcast query 'up'
  hindcast query 'rate(system_cpu_time_seconds_total[5m])' --at 2026-03-02T09:00:00Z
  hindcast query 'sum by (host_name) (system_memory_usage_bytes)' --start now-1h --end now --step 1m -o csv")]
pub struct QueryArgs {
    /// A PromQL expression.
    expr: String,
    /// Evaluate at this instant. Default: now.
    #[arg(long, value_parser = parse_time, conflicts_with_all = ["start", "end", "step"])]
    at: Option<Time>,
    /// Evaluate over a range: from here …
    #[arg(long, value_parser = parse_time, requires = "step")]
    start: Option<Time>,
    /// … to here (default: now) …
    #[arg(long, value_parser = parse_time, requires = "start")]
    end: Option<Time>,
    /// … at each multiple of this (30s, 5m).
    #[arg(long, value_parser = parse_span, requires = "start")]
    step: Option<SpanNs>,
    /// How results are printed.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Answers at once from the node that is asked, and says how old that may be; works without a majority, too.
    #[arg(long)]
    stale_ok: bool,
    #[command(flatten)]
    client: Client,
}

// Times as for `hindcast query`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  hindcast logs '{service_name=\"db\"} |= \"error\"'
  hindcast logs '{host_name=\"web-1\"} |~ \"(?i)timeout\"' --start now-15m --limit 20 -o json
  hindcast logs '{service_name=\"db\"}' --follow
  hindcast logs 'sum(rate({host_name=~\".+\"}[5m]))' --start now-6h --step 10m")]
pub struct LogsArgs {
    /// A LogQL expression.
    expr: String,
    /// From here on. Default: an hour before the end.
    #[arg(long, value_parser = parse_time)]
    start: Option<Time>,
    /// Up to here. Default: now.
    #[arg(long, value_parser = parse_time)]
    end: Option<Time>,
    /// For metric expressions: evaluate at each multiple of this. Without it: once, at the end.
    #[arg(long, value_parser = parse_span)]
    step: Option<SpanNs>,
    /// At most so many lines.
    #[arg(long, default_value_t = 100)]
    limit: u32,
    /// Oldest lines first.
    #[arg(long)]
    forward: bool,
    /// Goes on with lines as they come, until it is interrupted; with `-o json` one object a line.
    #[arg(short, long, conflicts_with_all = ["end", "step", "forward", "stale_ok"])]
    follow: bool,
    /// How results are printed.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Answers at once from the node that is asked, and says how old that may be; works without a majority, too.
    #[arg(long)]
    stale_ok: bool,
    #[command(flatten)]
    client: Client,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// Comma-separated values with a header.
    Csv,
}

/// A point in time as it was given: relative ones are fixed when the command runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Time {
    At(TimestampNs),
    BeforeNow(SpanNs),
}

impl Time {
    pub(super) fn fixed(self, now: TimestampNs) -> TimestampNs {
        match self {
            Self::At(at) => at,
            Self::BeforeNow(span) => now - span,
        }
    }
}

pub(super) fn parse_time(text: &str) -> Result<Time, String> {
    if text == "now" {
        return Ok(Time::BeforeNow(SpanNs::ZERO));
    }
    if let Some(span) = text.strip_prefix("now-").and_then(SpanNs::parse) {
        return Ok(Time::BeforeNow(span));
    }
    if let Ok(seconds) = text.parse::<f64>()
        && seconds.abs() <= 9.2e9
    {
        return Ok(Time::At(TimestampNs::from_ms((seconds * 1000.0).round() as i64)));
    }
    let at: Option<jiff::Timestamp> = text.parse().ok();
    at.and_then(|at| i64::try_from(at.as_nanosecond()).ok())
        .map(|ns| Time::At(TimestampNs(ns)))
        .ok_or_else(|| "use RFC 3339 (2026-03-02T09:00:00Z), Unix seconds, now, or now-15m".to_owned())
}

fn parse_span(text: &str) -> Result<SpanNs, String> {
    SpanNs::parse(text)
        .filter(|s| s.as_ms() > 0)
        .ok_or_else(|| "use a length like 30s, 5m or 1h30m".to_owned())
}

pub async fn run_query(args: QueryArgs) -> Done {
    let now = SystemClock::new().now();
    let mut client = v1::query_client::QueryClient::new(args.client.connect().await?);
    let response = match (args.start, args.step) {
        (Some(start), Some(step)) => {
            let request = v1::RangeRequest {
                expr: args.expr,
                start_ms: start.fixed(now).as_ms(),
                end_ms: args.end.map_or(now, |end| end.fixed(now)).as_ms(),
                step_ms: step.as_ms(),
            };
            client.range(asked(request, args.stale_ok)).await?
        }
        _ => {
            let request = v1::InstantRequest {
                expr: args.expr,
                at_ms: args.at.map_or(now, |at| at.fixed(now)).as_ms(),
            };
            client.instant(asked(request, args.stale_ok)).await?
        }
    };
    let answer = response.into_inner();
    tell(answer.completeness.as_ref());
    for note in &answer.notes {
        eprintln!("hindcast: {note}");
    }
    print!(
        "{}",
        shown_values(
            &answer.kind,
            answer.series,
            &answer.text,
            answer.completeness.as_ref(),
            args.output
        )
    );
    Ok(ExitCode::SUCCESS)
}

pub async fn run_logs(args: LogsArgs) -> Done {
    if args.follow {
        return follow(args).await;
    }
    let now = SystemClock::new().now();
    let end = args.end.map_or(now, |end| end.fixed(now));
    let start = args
        .start
        .map_or(end - SpanNs::from_secs(3600), |start| start.fixed(now));
    if end < start {
        return Err(Failure::usage("--end lies before --start"));
    }
    let mut client = v1::query_client::QueryClient::new(args.client.connect().await?);
    let request = v1::LogsRequest {
        expr: args.expr,
        start_ns: start.0,
        end_ns: end.0,
        limit: args.limit,
        forward: args.forward,
        step_ms: args.step.map_or(0, SpanNs::as_ms),
    };
    let answer = client.logs(asked(request, args.stale_ok)).await?.into_inner();
    tell(answer.completeness.as_ref());
    let shown = if answer.series.is_empty() {
        shown_lines(answer.streams, args.forward, answer.completeness.as_ref(), args.output)
    } else {
        let kind = if args.step.is_some() { "matrix" } else { "vector" };
        shown_values(kind, answer.series, "", answer.completeness.as_ref(), args.output)
    };
    print!("{shown}");
    Ok(ExitCode::SUCCESS)
}

/// Between two questions to the server.
const FOLLOW_PAUSE: Duration = Duration::from_millis(500);

/// Tells the newest lines, and then those that come, each once.
async fn follow(args: LogsArgs) -> Done {
    let clock = SystemClock::new();
    let mut client = v1::query_client::QueryClient::new(args.client.connect().await?);
    let request = |stretch: Stretch, forward: bool| v1::LogsRequest {
        expr: args.expr.clone(),
        start_ns: stretch.from.0,
        end_ns: stretch.to.0,
        limit: u32::try_from(stretch.limit).unwrap_or(u32::MAX),
        forward,
        step_ms: 0,
    };
    let now = clock.now();
    let from = args
        .start
        .map_or(now - SpanNs::from_secs(3600), |start| start.fixed(now));
    let limit = args.limit as usize;
    let past = Stretch { from, to: now, limit };
    let found = client.logs(asked(request(past, false), false)).await?.into_inner();
    if !found.series.is_empty() {
        return Err(Failure::usage(
            "lines can be followed, values cannot: leave --follow away",
        ));
    }
    let entries = found.streams.iter().flat_map(|s| &s.entries);
    let first = entries.map(|e| TimestampNs(e.at_ns)).min();
    let mut tail = Tail::new(first.unwrap_or(now));
    if args.output == Format::Csv {
        println!("{CSV_HEADER}");
    }
    let mut is_away = false;
    loop {
        let mut more = false;
        if let Some(stretch) = tail.next(clock.now()) {
            match client.logs(asked(request(stretch, true), false)).await {
                Ok(found) => {
                    let found = found.into_inner();
                    let is_whole = found.completeness.as_ref().is_some_and(|c| c.complete);
                    // What is missing comes back: a stretch is told with all of its lines.
                    if is_whole {
                        let streams = found.streams.into_iter().map(edge_stream).collect();
                        let new;
                        (new, more) = tail.take(stretch, streams);
                        let mut out = std::io::stdout().lock();
                        let shown = shown_new(new, args.output);
                        if out.write_all(shown.as_bytes()).and_then(|()| out.flush()).is_err() {
                            // Whoever read has gone.
                            return Ok(ExitCode::SUCCESS);
                        }
                    }
                    if is_away == is_whole {
                        is_away = !is_whole;
                        eprintln!(
                            "hindcast: {}",
                            if is_away {
                                "a part of the data cannot be read now; waiting"
                            } else {
                                "going on"
                            }
                        );
                    }
                }
                Err(status) if status.code() == tonic::Code::Unavailable => {
                    if !is_away {
                        eprintln!("hindcast: the server does not answer ({}); waiting", status.message());
                    }
                    is_away = true;
                }
                Err(status) => return Err(status.into()),
            }
        }
        if !more {
            tokio::time::sleep(FOLLOW_PAUSE).await;
        }
    }
}

fn edge_stream(s: v1::StreamResult) -> LogStream {
    let lines = s.entries.into_iter().map(|e| LogLine {
        at: TimestampNs(e.at_ns),
        line: e.line.into(),
        metadata: e.metadata.into_iter().map(|l| (l.name, l.value)).collect(),
    });
    LogStream {
        labels: edge::labels_from_wire(s.labels),
        parsed: Labels::empty(),
        lines: lines.collect(),
    }
}

fn shown_new(new: Vec<LogStream>, format: Format) -> String {
    let mut lines: Vec<(Labels, LogLine)> = vec![];
    for s in new {
        lines.extend(s.lines.into_iter().map(|l| (s.labels.clone(), l)));
    }
    lines.sort_by_key(|(_, l)| l.at);
    let shown = lines.into_iter().map(|(labels, l)| {
        let line = String::from_utf8_lossy(&l.line);
        match format {
            Format::Json => format!(
                "{}\n",
                line_json(&labels, l.at, &line, &Labels::new(l.metadata.clone()))
            ),
            Format::Csv => line_csv(&labels, l.at, &line),
            Format::Table => line_for_people(&labels, l.at, &line),
        }
    });
    shown.collect()
}

const CSV_HEADER: &str = "time,stream,line";

fn line_json(labels: &Labels, at: TimestampNs, line: &str, metadata: &Labels) -> serde_json::Value {
    json!({"at_ns": at.0, "labels": labels_json(labels), "line": line, "metadata": labels_json(metadata)})
}

fn line_csv(labels: &Labels, at: TimestampNs, line: &str) -> String {
    format!(
        "{},{},{}\n",
        rfc3339(at),
        csv_field(&labels.to_string()),
        csv_field(line)
    )
}

fn line_for_people(labels: &Labels, at: TimestampNs, line: &str) -> String {
    format!("{}  {labels}  {line}\n", rfc3339(at))
}

fn asked<T>(message: T, stale_ok: bool) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if stale_ok {
        let value = tonic::metadata::MetadataValue::from_static("stale-ok");
        request
            .metadata_mut()
            .insert(hindcast_proto::edge::CONSISTENCY_KEY, value);
    }
    request
}

/// Says what is missing from an answer, and how old it is.
fn tell(completeness: Option<&v1::Completeness>) {
    match completeness {
        Some(v1::Completeness {
            stale: true,
            age_ms: Some(ms),
            ..
        }) => {
            eprintln!("hindcast: everything acknowledged {ms} ms ago is in this answer");
        }
        Some(v1::Completeness { stale: true, .. }) => {
            eprintln!("hindcast: how old this answer is cannot be told: no leader was heard of");
        }
        _ => {}
    }
    for missing in completeness.iter().flat_map(|c| &c.missing) {
        eprintln!("hindcast: the answer is incomplete: {missing}");
    }
}

fn completeness_json(c: Option<&v1::Completeness>) -> serde_json::Value {
    json!({
        "complete": c.is_some_and(|c| c.complete),
        "missing": c.map(|c| c.missing.as_slice()).unwrap_or_default(),
        "positions": c.map(positions_json).unwrap_or_default(),
        "stale": c.is_some_and(|c| c.stale),
        "age_ms": c.and_then(|c| c.age_ms),
    })
}

/// Applied positions by Raft group.
fn positions_json(c: &v1::Completeness) -> serde_json::Map<String, serde_json::Value> {
    c.positions
        .iter()
        .map(|p| (p.group.to_string(), json!(p.index)))
        .collect()
}

fn labels_json(labels: &Labels) -> serde_json::Value {
    labels
        .iter()
        .map(|(n, v)| (n.to_owned(), json!(v)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// JSON has no NaN and no infinity: those become text.
fn number_json(v: f64) -> serde_json::Value {
    if v.is_finite() {
        json!(v)
    } else {
        json!(hindcast_query::number::go_fixed(v))
    }
}

fn rfc3339(at: TimestampNs) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(at.0)).map_or_else(|_| at.to_string(), |t| t.to_string())
}

fn csv_field(text: &str) -> String {
    if text.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

fn shown_values(
    kind: &str,
    series: Vec<v1::SeriesResult>,
    text: &str,
    completeness: Option<&v1::Completeness>,
    format: Format,
) -> String {
    let series: Vec<(Labels, Vec<v1::ResultPoint>)> = series
        .into_iter()
        .map(|s| (edge::labels_from_wire(s.labels), s.points))
        .collect();
    let value = |p: &v1::ResultPoint| match p.histogram.as_str() {
        "" => hindcast_query::number::go_fixed(p.value()),
        histogram => histogram.to_owned(),
    };
    let mut out = String::new();
    match format {
        Format::Json => {
            let series: Vec<_> = series
                .iter()
                .map(|(labels, points)| {
                    let points: Vec<_> = points
                        .iter()
                        .map(|p| match p.histogram.as_str() {
                            "" => json!([p.at_ms, number_json(p.value())]),
                            histogram => json!([p.at_ms, histogram]),
                        })
                        .collect();
                    json!({"labels": labels_json(labels), "points": points})
                })
                .collect();
            let answer = json!({
                "kind": kind, "series": series, "text": text, "completeness": completeness_json(completeness),
            });
            let _ = writeln!(out, "{answer}");
        }
        Format::Csv => {
            out.push_str("series,time,value\n");
            for (labels, points) in &series {
                for p in points {
                    let at = rfc3339(TimestampNs::from_ms(p.at_ms));
                    let _ = writeln!(out, "{},{at},{}", csv_field(&labels.to_string()), csv_field(&value(p)));
                }
            }
        }
        Format::Table => match kind {
            "string" => {
                let _ = writeln!(out, "{text}");
            }
            "matrix" => {
                for (labels, points) in &series {
                    let _ = writeln!(out, "{labels}");
                    for p in points {
                        let _ = writeln!(out, "  {}  {}", rfc3339(TimestampNs::from_ms(p.at_ms)), value(p));
                    }
                }
            }
            _ => {
                let names: Vec<String> = series.iter().map(|(labels, _)| labels.to_string()).collect();
                let width = names.iter().map(|n| n.chars().count()).max().unwrap_or(0);
                for (name, (_, points)) in names.iter().zip(&series) {
                    for p in points {
                        let _ = writeln!(out, "{name:<width$}  {}", value(p));
                    }
                }
            }
        },
    }
    out
}

fn shown_lines(
    streams: Vec<v1::StreamResult>,
    forward: bool,
    completeness: Option<&v1::Completeness>,
    format: Format,
) -> String {
    let mut lines: Vec<(Labels, v1::LogEntry)> = vec![];
    for s in streams {
        let labels = edge::labels_from_wire(s.labels);
        lines.extend(s.entries.into_iter().map(|e| (labels.clone(), e)));
    }
    // Over all streams in one order; within a stream the server's order stays.
    lines.sort_by_key(|(_, e)| {
        if forward {
            i128::from(e.at_ns)
        } else {
            -i128::from(e.at_ns)
        }
    });
    let mut out = String::new();
    match format {
        Format::Json => {
            let lines: Vec<_> = lines
                .into_iter()
                .map(|(labels, e)| {
                    let metadata = edge::labels_from_wire(e.metadata);
                    line_json(&labels, TimestampNs(e.at_ns), &e.line, &metadata)
                })
                .collect();
            let answer = json!({"kind": "lines", "lines": lines, "completeness": completeness_json(completeness)});
            let _ = writeln!(out, "{answer}");
        }
        Format::Csv => {
            let _ = writeln!(out, "{CSV_HEADER}");
            for (labels, e) in &lines {
                out.push_str(&line_csv(labels, TimestampNs(e.at_ns), &e.line));
            }
        }
        Format::Table => {
            for (labels, e) in &lines {
                out.push_str(&line_for_people(labels, TimestampNs(e.at_ns), &e.line));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn answer() -> Vec<v1::SeriesResult> {
        let label = |name: &str, value: &str| v1::Label {
            name: name.to_owned(),
            value: value.to_owned(),
        };
        let series = |job: &str, value: f64| v1::SeriesResult {
            labels: vec![label("__name__", "up"), label("job", job)],
            points: vec![v1::ResultPoint {
                at_ms: 1500,
                value: Some(value),
                histogram: String::new(),
            }],
        };
        vec![series("a", 1.0), series("a, \"b\"", f64::NAN)]
    }

    #[test]
    fn values_are_shown_for_people_and_for_programs() {
        let shown = [
            ("vector", Format::Table),
            ("matrix", Format::Table),
            ("vector", Format::Csv),
        ]
        .map(|(kind, format)| shown_values(kind, answer(), "", None, format))
        .join("--\n");
        expect![[r#"
            up{job="a"}         1
            up{job="a, \"b\""}  NaN
            --
            up{job="a"}
              1970-01-01T00:00:01.5Z  1
            up{job="a, \"b\""}
              1970-01-01T00:00:01.5Z  NaN
            --
            series,time,value
            "up{job=""a""}",1970-01-01T00:00:01.5Z,1
            "up{job=""a, \""b\""""}",1970-01-01T00:00:01.5Z,NaN
        "#]]
        .assert_eq(&shown);
        let json = shown_values("vector", answer(), "", None, Format::Json);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["series"][1]["points"], json!([[1500, "NaN"]]));
        assert_eq!(json["series"][0]["labels"], json!({"__name__": "up", "job": "a"}));
    }

    #[test]
    fn followed_lines_come_in_the_order_of_time_and_one_object_a_line() {
        let stream = |app: &str, lines: &[(i64, &str)]| LogStream {
            labels: Labels::from_pairs([("app", app)]),
            parsed: Labels::empty(),
            lines: lines
                .iter()
                .map(|(s, text)| LogLine {
                    at: TimestampNs::from_secs(*s),
                    line: (*text).to_owned().into(),
                    metadata: vec![("trace_id".to_owned(), "t1".to_owned())],
                })
                .collect(),
        };
        let shown = [Format::Table, Format::Csv, Format::Json]
            .map(|format| {
                shown_new(
                    vec![stream("a", &[(1, "x"), (3, "z")]), stream("b", &[(2, "y, \"y\"")])],
                    format,
                )
            })
            .join("--\n");
        expect![[r#"
            1970-01-01T00:00:01Z  {app="a"}  x
            1970-01-01T00:00:02Z  {app="b"}  y, "y"
            1970-01-01T00:00:03Z  {app="a"}  z
            --
            1970-01-01T00:00:01Z,"{app=""a""}",x
            1970-01-01T00:00:02Z,"{app=""b""}","y, ""y"""
            1970-01-01T00:00:03Z,"{app=""a""}",z
            --
            {"at_ns":1000000000,"labels":{"app":"a"},"line":"x","metadata":{"trace_id":"t1"}}
            {"at_ns":2000000000,"labels":{"app":"b"},"line":"y, \"y\"","metadata":{"trace_id":"t1"}}
            {"at_ns":3000000000,"labels":{"app":"a"},"line":"z","metadata":{"trace_id":"t1"}}
        "#]]
        .assert_eq(&shown);
    }

    #[test]
    fn times_are_read_in_the_forms_that_the_help_names() {
        assert_eq!(parse_time("now-15m"), Ok(Time::BeforeNow(SpanNs::from_secs(900))));
        assert_eq!(parse_time("1.5"), Ok(Time::At(TimestampNs::from_ms(1500))));
        assert_eq!(
            parse_time("1970-01-01T00:00:02Z"),
            Ok(Time::At(TimestampNs::from_secs(2)))
        );
        assert!(parse_time("yesterday").is_err() && parse_span("0s").is_err() && parse_span("5").is_err());
    }
}

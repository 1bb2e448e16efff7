//! Runs `tests/scripts/*.test`: PromQL cases in the script language that Prometheus uses for its own.
//!
//!     load 1m                          series follow; sample k lies at k × 1m
//!       metric{label="v"} 1 2 _ 4      also `5x2` (three samples of 5), `1+2x3` (1 3 5 7), `_x3`, `stale`
//!     clear
//!     eval instant at 5m EXPR          expected lines follow, up to an empty line:
//!       {label="v"} 4                  series with its value, a bare number for a scalar, or
//!       expect fail msg: TEXT          the whole message, `expect ordered`, `expect warn`, `expect info`,
//!     eval range from 0 to 5m step 1m EXPR    `expect string "…"`
//!
//! Values are compared within 1e-9 of their size; label sets exactly; no series more, none less.

use hindcast_model::{Labels, STALE_NAN_BITS, Sample, SpanNs, TenantId, TimestampNs};
use hindcast_query::testing::OneShard;
use hindcast_query::{Answer, Engine, InstantQuery, Limits, Options, QueryError, RangeQuery, Value};
use std::path::Path;
use std::sync::Arc;

fn duration_ms(text: &str) -> i64 {
    let (sign, text) = text.strip_prefix('-').map_or((1, text), |t| (-1, t));
    let ms = SpanNs::parse(text).map(|s| s.as_ms() as i64);
    sign * ms
        .or_else(|| text.parse::<f64>().ok().map(|s| (s * 1000.0) as i64))
        .unwrap_or_else(|| panic!("duration {text:?}"))
}

fn number(text: &str) -> f64 {
    text.parse().unwrap_or_else(|_| panic!("number {text:?}"))
}

/// One item of a value sequence; `None`: no sample.
fn values(text: &str) -> Vec<Option<f64>> {
    let mut out = vec![];
    for item in text.split_whitespace() {
        let (base, times) = match item.rsplit_once('x') {
            Some((base, n)) => (base, n.parse::<usize>().ok()),
            None => (item, None),
        };
        let count = times.map_or(1, |n| n + 1);
        // A sign inside the item (not its first character, nor an exponent's) starts the increment.
        let signs = base
            .char_indices()
            .skip(1)
            .filter(|(i, c)| "+-".contains(*c) && !"eE".contains(&base[i - 1..*i]));
        match (base, signs.last()) {
            ("_", _) => out.extend(std::iter::repeat_n(None, times.unwrap_or(1))),
            ("stale", _) => out.extend(std::iter::repeat_n(Some(f64::from_bits(STALE_NAN_BITS)), count)),
            (base, Some((i, _))) => {
                let (mut v, step) = (number(&base[..i]), number(&base[i..]));
                for _ in 0..count {
                    out.push(Some(v));
                    v += step;
                }
            }
            (base, None) => out.extend(std::iter::repeat_n(Some(number(base)), count)),
        }
    }
    out
}

/// `metric{a="b"} 1 2 3`
fn series(line: &str) -> (Labels, Vec<Option<f64>>) {
    let end = line
        .rfind('}')
        .map_or_else(|| line.find(' ').unwrap_or(line.len()), |i| i + 1);
    let (written, rest) = line.split_at(end);
    if written == "{}" {
        return (Labels::empty(), values(rest));
    }
    let matchers = hindcast_promql::parse_selector(written).unwrap_or_else(|e| panic!("{line:?}: {e}"));
    (matchers.into_iter().map(|m| (m.name, m.value)).collect(), values(rest))
}

fn close(a: f64, b: f64) -> bool {
    (a.is_nan() && b.is_nan()) || a == b || (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

struct Case<'a> {
    at: String,
    expr: &'a str,
    /// Start and step of the expected values.
    start: i64,
    step: i64,
    expected: Vec<&'a str>,
}

fn check(case: &Case, got: Result<Answer<Value>, QueryError>) {
    let at = &case.at;
    let mut wanted = vec![];
    let (mut fail, mut ordered, mut text, mut scalar) = (None, false, None, None);
    let (mut warn, mut info) = (false, false);
    for line in &case.expected {
        match line.strip_prefix("expect ") {
            Some("ordered") => ordered = true,
            Some("warn") => warn = true,
            Some("info") => info = true,
            Some(rest) if rest.starts_with("fail") => {
                fail = Some(rest["fail".len()..].trim().trim_start_matches("msg:").trim())
            }
            Some(rest) if rest.starts_with("string ") => text = Some(rest["string ".len()..].trim().trim_matches('"')),
            Some(other) => panic!("{at}: unknown expectation {other:?}"),
            None if line.split_whitespace().count() == 1 && line.parse::<f64>().is_ok() => scalar = Some(number(line)),
            None => wanted.push(series(line)),
        }
    }
    let answer = match (got, fail) {
        (Ok(a), Some(_)) => panic!("{at}: {} should fail, got {:?}", case.expr, a.value),
        (Err(e), None) => panic!("{at}: {}: {e}", case.expr),
        (Err(e), Some(message)) => {
            assert!(
                message.is_empty() || e.to_string() == message,
                "{at}: {e:?}, wanted {message:?}"
            );
            return;
        }
        (Ok(answer), None) => answer,
    };
    let noted = |what: &str| answer.warnings.iter().any(|w| w.starts_with(what));
    assert_eq!(
        (noted("PromQL warning"), noted("PromQL info")),
        (warn, info),
        "{at}: {:?}",
        answer.warnings
    );
    let mut found: Vec<(Labels, Vec<(i64, f64)>)> = match answer.value {
        Value::Scalar(v) => {
            assert!(scalar.is_some_and(|s| close(s, v)), "{at}: {v}, wanted {scalar:?}");
            return;
        }
        Value::String(s) => {
            assert_eq!(Some(s.as_str()), text, "{at}");
            return;
        }
        Value::Vector(samples) => samples
            .into_iter()
            .map(|s| (s.labels, vec![(s.at.as_ms(), s.value)]))
            .collect(),
        Value::Matrix(all) => all
            .into_iter()
            .map(|s| (s.labels, s.points.iter().map(|(t, v)| (t.as_ms(), *v)).collect()))
            .collect(),
    };
    let mut wanted: Vec<(Labels, Vec<(i64, f64)>)> = wanted
        .into_iter()
        .map(|(labels, values)| {
            let at = |(i, v): (usize, Option<f64>)| v.map(|v| (case.start + case.step * i as i64, v));
            (labels, values.into_iter().enumerate().filter_map(at).collect())
        })
        .collect();
    if !ordered {
        found.sort_by(|a, b| a.0.cmp(&b.0));
        wanted.sort_by(|a, b| a.0.cmp(&b.0));
    }
    let same = found.len() == wanted.len()
        && found.iter().zip(&wanted).all(|((l, p), (m, q))| {
            l == m && p.len() == q.len() && p.iter().zip(q).all(|((t, v), (u, w))| t == u && close(*v, *w))
        });
    assert!(same, "{at}: {}\n   got {found:?}\nwanted {wanted:?}", case.expr);
}

/// Runs one script; gives the number of its cases.
fn run(path: &Path) -> usize {
    let text = std::fs::read_to_string(path).unwrap();
    let lines: Vec<&str> = text
        .lines()
        .map(|l| if l.trim_start().starts_with('#') { "" } else { l.trim() })
        .collect();
    let (shard, tenant) = (Arc::new(OneShard::new()), TenantId::default());
    let engine = Engine::new(shard.clone(), Limits::default());
    let (mut i, mut cases) = (0, 0);
    while i < lines.len() {
        let line = lines[i];
        let block: Vec<&str> = lines[i + 1..].iter().take_while(|l| !l.is_empty()).copied().collect();
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |n: usize| {
            let mut rest = line;
            for w in &words[..n] {
                rest = rest[rest.find(w).unwrap_or(0) + w.len()..].trim_start();
            }
            rest
        };
        match &words[..] {
            [] => {
                i += 1;
                continue;
            }
            ["clear"] => {
                shard.clear();
                i += 1;
                continue;
            }
            ["load", step] => {
                let step = duration_ms(step);
                for line in &block {
                    let (labels, values) = series(line);
                    let sample = |(k, v): (usize, Option<f64>)| {
                        v.map(|value| Sample {
                            at: TimestampNs::from_ms(k as i64 * step),
                            value,
                        })
                    };
                    shard.add(&tenant, labels, values.into_iter().enumerate().filter_map(sample));
                }
            }
            ["eval", "instant", "at", at, ..] => {
                let ms = duration_ms(at);
                let case = Case {
                    at: format!("{}:{}", path.display(), i + 1),
                    expr: after(4),
                    start: ms,
                    step: 1,
                    expected: block.clone(),
                };
                let q = InstantQuery {
                    tenant: tenant.clone(),
                    expr: case.expr.to_owned(),
                    at: TimestampNs::from_ms(ms),
                    options: Options::default(),
                };
                check(&case, futures::executor::block_on(engine.instant(&q)));
                cases += 1;
            }
            ["eval", "range", "from", from, "to", to, "step", step, ..] => {
                let case = Case {
                    at: format!("{}:{}", path.display(), i + 1),
                    expr: after(8),
                    start: duration_ms(from),
                    step: duration_ms(step),
                    expected: block.clone(),
                };
                let q = RangeQuery {
                    tenant: tenant.clone(),
                    expr: case.expr.to_owned(),
                    start: TimestampNs::from_ms(case.start),
                    end: TimestampNs::from_ms(duration_ms(to)),
                    step: SpanNs::from_ms(case.step as u64),
                    options: Options::default(),
                };
                check(&case, futures::executor::block_on(engine.range(&q)));
                cases += 1;
            }
            other => panic!("{}:{}: unknown command {other:?}", path.display(), i + 1),
        }
        i += 1 + block.len();
    }
    cases
}

#[test]
fn scripts_give_what_they_expect() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    let cases: usize = paths.iter().map(|p| run(p)).sum();
    assert!(
        paths.len() >= 8 && cases >= 80,
        "{} scripts, {cases} cases",
        paths.len()
    );
}

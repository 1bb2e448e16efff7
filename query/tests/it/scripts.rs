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
//! A native histogram is written as its line is, `{{s=0 c=3 sum=2 p=1:3}}`; `expect warn msg: TEXT` wants these words.
//!
//! Values are compared within 1e-9 of their size; label sets exactly; no series more, none less.

use hindcast_model::{Histogram, Labels, LogLine, Owner, STALE_NAN_BITS, Sample, SpanNs, TenantId, TimestampNs};
use hindcast_proto::trace::{NATIVE, TRACE_LABEL};
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

#[derive(Clone, Debug)]
enum Item {
    Float(f64),
    Native(Histogram),
}

/// Value sequences; `None`: no sample.
fn values(text: &str) -> Vec<Option<Item>> {
    let (mut out, mut rest) = (vec![], text.trim());
    while !rest.is_empty() {
        let end = match rest.starts_with("{{") {
            // A step may follow, and how often.
            true => {
                let mut end = rest.find("}}").unwrap() + 2;
                if rest[end..].starts_with("+{{") {
                    end += rest[end..].find("}}").unwrap() + 2;
                }
                end + rest[end..].find(' ').unwrap_or(rest.len() - end)
            }
            false => rest.find(' ').unwrap_or(rest.len()),
        };
        let (item, after) = rest.split_at(end);
        if item.starts_with("{{") {
            out.extend(natives(item).into_iter().map(|h| Some(Item::Native(h))));
        } else {
            out.extend(floats(item).into_iter().map(|v| v.map(Item::Float)));
        }
        rest = after.trim();
    }
    out
}

/// `{{s=0 c=1 p=0:1}}`, as lines have it; `{{…}}x3` four times, `{{…}}+{{…}}x3` with a step.
fn natives(item: &str) -> Vec<Histogram> {
    let (times, body) = match item.rsplit_once('x') {
        Some((body, n)) => (n.parse::<usize>().unwrap() + 1, body),
        None => (1, item),
    };
    let of = |text: &str| {
        let line = format!("h1 {}", text.trim_start_matches("{{").trim_end_matches("}}"));
        Histogram::of_line(line.as_bytes())
            .unwrap_or_else(|e| panic!("{line}: {e}"))
            .unwrap()
    };
    let (first, step) = match body.split_once("}}+{{") {
        Some((first, step)) => (of(first), Some(of(step))),
        None => (of(body), None),
    };
    let next = |h: &Histogram| {
        Some(
            step.as_ref()
                .map_or_else(|| h.clone(), |s| h.plus(s).unwrap().histogram),
        )
    };
    std::iter::successors(Some(first), next).take(times).collect()
}

fn floats(text: &str) -> Vec<Option<f64>> {
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
fn series(line: &str) -> (Labels, Vec<Option<Item>>) {
    let named = &line[..line.find(" {{").unwrap_or(line.len())];
    let end = named
        .rfind('}')
        .map_or_else(|| named.find(' ').unwrap_or(named.len()), |i| i + 1);
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

fn alike(a: &Item, b: &Item) -> bool {
    match (a, b) {
        (Item::Float(a), Item::Float(b)) => close(*a, *b),
        (Item::Native(a), Item::Native(b)) => {
            let numbers = |h: &Histogram| -> Vec<f64> {
                let buckets = h.buckets().flat_map(|b| [b.lower, b.upper, b.count]);
                [h.count, h.sum].into_iter().chain(buckets).collect()
            };
            let (a, b) = (numbers(a), numbers(b));
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| close(*a, b))
        }
        _ => false,
    }
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
    let mut said = vec![];
    for line in &case.expected {
        match line.strip_prefix("expect ") {
            Some("ordered") => ordered = true,
            Some("warn") => warn = true,
            Some("info") => info = true,
            Some(rest) if rest.starts_with("warn msg: ") || rest.starts_with("info msg: ") => {
                *if rest.starts_with("warn") { &mut warn } else { &mut info } = true;
                said.push(&rest["warn msg: ".len()..]);
            }
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
    for text in said {
        assert!(answer.warnings.iter().any(|w| w == text), "{at}: {:?}", answer.warnings);
    }
    let mut found: Vec<(Labels, Vec<(i64, Item)>)> = match answer.value {
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
            .map(|s| {
                let item = s
                    .histogram
                    .map_or(Item::Float(s.value), |h| Item::Native(Histogram::clone(&h)));
                (s.labels, vec![(s.at.as_ms(), item)])
            })
            .collect(),
        Value::Matrix(all) => all
            .into_iter()
            .map(|s| {
                let floats = s.points.iter().map(|(t, v)| (t.as_ms(), Item::Float(*v)));
                let natives = s
                    .histograms
                    .iter()
                    .map(|(t, h)| (t.as_ms(), Item::Native(Histogram::clone(h))));
                let mut all: Vec<(i64, Item)> = floats.chain(natives).collect();
                all.sort_by_key(|(t, _)| *t);
                (s.labels, all)
            })
            .collect(),
    };
    let mut wanted: Vec<(Labels, Vec<(i64, Item)>)> = wanted
        .into_iter()
        .map(|(labels, values)| {
            let at = |(i, v): (usize, Option<Item>)| v.map(|v| (case.start + case.step * i as i64, v));
            (labels, values.into_iter().enumerate().filter_map(at).collect())
        })
        .collect();
    if !ordered {
        found.sort_by(|a, b| a.0.cmp(&b.0));
        wanted.sort_by(|a, b| a.0.cmp(&b.0));
    }
    let same = found.len() == wanted.len()
        && found.iter().zip(&wanted).all(|((l, p), (m, q))| {
            l == m && p.len() == q.len() && p.iter().zip(q).all(|((t, v), (u, w))| t == u && alike(v, w))
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
                    for (k, item) in values.into_iter().enumerate() {
                        let at = TimestampNs::from_ms(k as i64 * step);
                        match item {
                            None => {}
                            Some(Item::Float(value)) => shard.add(&tenant, labels.clone(), [Sample { at, value }]),
                            Some(Item::Native(h)) => {
                                let line = LogLine {
                                    at,
                                    line: h.to_line().unwrap().into(),
                                    metadata: vec![],
                                };
                                shard.add_lines(&tenant, labels.with(TRACE_LABEL, NATIVE), Owner::None, [line]);
                            }
                        }
                    }
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

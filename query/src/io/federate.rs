//! `/federate`: the newest sample of each series that matches, in Prometheus' text format, for a Prometheus that scrapes it.
//!
//! As of now, or of the parameter `time`, which Prometheus does not have. Without a `match[]` the answer is empty.

use super::http::Refusal;
use super::params::{Params, now, tenant};
use super::remote_read::samples_as_they_came;
use crate::engine::{Engine, Options};
use crate::number::go_json;
use crate::shards::Budget;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use hindcast_model::{Labels, TimestampNs, is_stale};
use std::collections::BTreeMap;
use std::sync::Arc;

const NAME: &str = "__name__";
const INSTANCE: &str = "instance";

/// The text format's escapes within a label's value.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// One series; `None`: it has no name, and the format no place for it.
fn line(labels: &Labels, value: f64, at_ms: i64) -> Option<(String, String)> {
    let name = labels.get(NAME)?;
    // Without one, whoever scrapes this would put its own on the series, also with `honor_labels`.
    let none = labels.get(INSTANCE).is_none().then_some((INSTANCE, ""));
    let others = labels.iter().filter(|(n, _)| *n != NAME).chain(none);
    let pairs: Vec<String> = others.map(|(n, v)| format!("{n}=\"{}\"", escaped(v))).collect();
    let pairs = pairs.join(",");
    Some((
        name.to_owned(),
        format!("{name}{{{pairs}}} {} {at_ms}\n", go_json(value)),
    ))
}

async fn text(engine: &Arc<Engine>, request: Request<Body>) -> Result<Response, Refusal> {
    let tenant = tenant(request.headers())?;
    let params = Params::read(request).await?;
    let engine = engine.with(params.consistency()?);
    let at = params.time("time")?.unwrap_or_else(now);
    let budget = Arc::new(Budget::new(engine.limits.samples_max, engine.limits.series_max));
    // A series that two selectors match is there once.
    let mut found = BTreeMap::new();
    for selector in params.all("match[]") {
        let matchers = hindcast_promql::parse_selector(selector).map_err(|e| Refusal::bad_data(e.to_string()))?;
        // A window of PromQL does not hold its start.
        let from = TimestampNs(
            at.0.saturating_sub_unsigned(Options::default().lookback.0)
                .saturating_add(1),
        );
        for series in samples_as_they_came(&engine, &tenant, matchers, (from, at), &budget).await? {
            if let Some(last) = series.samples.last().filter(|s| !is_stale(s.value)) {
                found.insert(series.labels, (last.value, last.at.as_ms()));
            }
        }
    }
    let mut lines: Vec<(String, String)> = found.iter().filter_map(|(l, (v, at))| line(l, *v, *at)).collect();
    lines.sort();
    let (mut body, mut last) = (String::new(), None);
    for (name, line) in &lines {
        if last != Some(name) {
            body.push_str(&format!("# TYPE {name} untyped\n"));
            last = Some(name);
        }
        body.push_str(line);
    }
    let mut response = Response::new(Body::from(body));
    let plain = "text/plain; version=0.0.4; charset=utf-8";
    response
        .headers_mut()
        .insert(CONTENT_TYPE, plain.parse().expect("plain text"));
    Ok(response)
}

pub(super) async fn federate(State(engine): State<Arc<Engine>>, request: Request<Body>) -> Response {
    text(&engine, request).await.unwrap_or_else(|refusal| refusal.plain())
}

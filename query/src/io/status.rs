//! What clients ask beside queries: descriptions of metrics, what holds the most series, and what a Prometheus says of itself.
//!
//! Where this program has nothing of what is asked (targets of its own, other alert managers), the answer is the empty one
//! that a Prometheus gives which has none either.

use super::http::{Refusal, answer, in_time, success};
use super::json;
use super::params::{Params, now, tenant};
use crate::engine::{Engine, InstantQuery, Options};
use crate::exemplars::ExemplarsQuery;
use crate::value::{Answer, Value};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::get;
use hindcast_model::{Labels, SpanNs, TimestampNs};
use hindcast_proto::metric_info::{FORGET_SPAN, HELP, METRIC, METRIC_INFO, TYPE, UNIT};
use hindcast_storage::cardinality::{ACTIVE_SPAN, Cardinality, REPORT_ENTRIES_MAX};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Entries of each list of the report on series, unless the client says how many.
const REPORTED_DEFAULT: usize = 10;
/// And at most.
const REPORTED_MAX: usize = REPORT_ENTRIES_MAX;

#[derive(Clone)]
struct Status {
    engine: Arc<Engine>,
    started: TimestampNs,
}

pub(super) fn router(engine: Arc<Engine>) -> Router {
    let status = Status { engine, started: now() };
    Router::new()
        .route("/api/v1/metadata", get(metadata))
        .route("/api/v1/targets/metadata", get(nothing))
        .route("/api/v1/query_exemplars", get(exemplars).post(exemplars))
        .route("/api/v1/alertmanagers", get(alertmanagers))
        .route("/api/v1/status/runtimeinfo", get(runtime_info))
        .route("/api/v1/status/flags", get(flags))
        .route("/api/v1/status/config", get(config))
        .route("/api/v1/status/tsdb", get(tsdb))
        .with_state(status)
}

fn plain_success(data: &serde_json::Value) -> Response {
    json::response(200, format!("{{\"status\":\"success\",\"data\":{data}}}"))
}

/// A description, newest first.
struct Described {
    written: f64,
    json: serde_json::Value,
}

/// Type, help text and unit of metrics, by name.
async fn metadata(State(status): State<Status>, request: Request<Body>) -> Response {
    answer(async {
        let tenant = tenant(request.headers())?;
        let params = Params::read(request).await?;
        let (limit, per_metric) = (params.signed("limit")?, params.signed("limit_per_metric")?);
        let wanted = params
            .get("metric")
            .map(|m| format!("{{{METRIC}={}}}", json::string(m)));
        let q = InstantQuery {
            tenant,
            expr: format!(
                "last_over_time({METRIC_INFO}{}[{FORGET_SPAN}])",
                wanted.unwrap_or_default()
            ),
            at: now(),
            options: Options::default(),
        };
        let found = in_time(&params, status.engine.with(params.consistency()?).instant(&q)).await?;
        let rows = match &found.value {
            Value::Vector(rows) => &rows[..],
            _ => &[],
        };
        let mut by_name: BTreeMap<&str, Vec<Described>> = BTreeMap::new();
        for row in rows {
            let value = |name: &str| row.labels.value(name).to_owned();
            let json = serde_json::json!({ "type": value(TYPE), "help": value(HELP), "unit": value(UNIT) });
            let written = row.value;
            by_name
                .entry(row.labels.value(METRIC))
                .or_default()
                .push(Described { written, json });
        }
        let shown: serde_json::Map<String, serde_json::Value> = by_name
            .into_iter()
            .take(cut(limit))
            .map(|(name, mut of_name)| {
                of_name.sort_by(|a, b| b.written.total_cmp(&a.written));
                let of_name = of_name.into_iter().map(|d| d.json).take(cut(per_metric));
                (name.to_owned(), of_name.collect())
            })
            .collect();
        Ok(success(&found, &serde_json::Value::Object(shown).to_string()))
    })
    .await
}

/// As Prometheus reads limits of metadata: none, a negative one and 0 are no limit.
fn cut(limit: Option<i64>) -> usize {
    let given = limit.filter(|l| *l > 0).and_then(|l| usize::try_from(l).ok());
    given.unwrap_or(usize::MAX)
}

/// Descriptions are kept by metric, not by target.
async fn nothing() -> Response {
    plain_success(&serde_json::json!([]))
}

async fn exemplars(State(status): State<Status>, request: Request<Body>) -> Response {
    answer(async {
        let tenant = tenant(request.headers())?;
        let params = Params::read(request).await?;
        let q = ExemplarsQuery {
            tenant,
            expr: params.required("query")?.to_owned(),
            start: params.time("start")?.unwrap_or(TimestampNs::MIN),
            end: params.time("end")?.unwrap_or(TimestampNs::MAX),
        };
        let found = in_time(&params, status.engine.with(params.consistency()?).exemplars(&q)).await?;
        let map = |labels: &Labels| serde_json::json!(labels.iter().collect::<BTreeMap<_, _>>());
        let of_series = found.value.iter().map(|(series, exemplars)| {
            let shown = exemplars.iter().map(|e| {
                let seconds = e.at.as_ms() as f64 / 1000.0;
                serde_json::json!({ "labels": map(&e.labels), "value": e.value, "timestamp": seconds })
            });
            serde_json::json!({ "seriesLabels": map(series), "exemplars": shown.collect::<Vec<_>>() })
        });
        let data = serde_json::Value::Array(of_series.collect());
        Ok(success(&found, &data.to_string()))
    })
    .await
}

async fn alertmanagers() -> Response {
    plain_success(&serde_json::json!({ "activeAlertmanagers": [], "droppedAlertmanagers": [] }))
}

async fn runtime_info(State(status): State<Status>) -> Response {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    plain_success(&serde_json::json!({
        "startTime": rfc3339(status.started),
        "serverTime": rfc3339(now()),
        "GOMAXPROCS": threads,
    }))
}

fn rfc3339(at: TimestampNs) -> String {
    jiff::Timestamp::from_nanosecond(at.0.into()).map_or_else(|_| String::new(), |at| at.to_string())
}

/// Prometheus' names of the bounds that are the same here.
async fn flags(State(status): State<Status>) -> Response {
    let timeout = SpanNs::from_ms(super::http::QUERY_SPAN_MAX.as_millis() as u64);
    plain_success(&serde_json::json!({
        "query.lookback-delta": Options::default().lookback.to_string(),
        "query.max-samples": status.engine.limits.samples_max.to_string(),
        "query.timeout": timeout.to_string(),
    }))
}

/// Settings of this program are no YAML of Prometheus'.
async fn config() -> Response {
    plain_success(&serde_json::json!({ "yaml": "" }))
}

/// What holds the most series: by metric, by label, by pair of label and value.
async fn tsdb(State(status): State<Status>, request: Request<Body>) -> Response {
    answer(async {
        let tenant = tenant(request.headers())?;
        let params = Params::read(request).await?;
        let limit = params.number("limit")?.unwrap_or(REPORTED_DEFAULT);
        if !(1..=REPORTED_MAX).contains(&limit) {
            return Err(Refusal::bad_data(format!(
                "invalid parameter \"limit\": {limit} is not between 1 and {REPORTED_MAX}"
            )));
        }
        let end = now();
        let engine = status.engine.with(params.consistency()?);
        let found = in_time(&params, engine.cardinality(&tenant, end, limit)).await?;
        let report = report(&found.value, limit, (end - ACTIVE_SPAN, end)).to_string();
        let found: Answer<()> = found.map(|_| ());
        Ok(success(&found, &report))
    })
    .await
}

/// In Prometheus' form.
fn report(of: &Cardinality, limit: usize, (start, end): (TimestampNs, TimestampNs)) -> serde_json::Value {
    let row = |name: &str, value: u64| serde_json::json!({ "name": name, "value": value });
    let metrics = of.metrics.iter().map(|(name, n)| row(name, *n));
    let values = of.labels.iter().take(limit).map(|l| row(&l.name, l.values));
    let mut bytes: Vec<_> = of.labels.iter().collect();
    bytes.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
    let bytes = bytes.into_iter().take(limit).map(|l| row(&l.name, l.bytes));
    let pairs = of
        .pairs
        .iter()
        .map(|((name, value), n)| row(&format!("{name}={value}"), *n));
    serde_json::json!({
        "headStats": {
            "numSeries": of.series,
            "numLabelPairs": of.label_pairs,
            "minTime": start.as_ms(),
            "maxTime": end.as_ms(),
        },
        "seriesCountByMetricName": metrics.collect::<Vec<_>>(),
        "labelValueCountByLabelName": values.collect::<Vec<_>>(),
        "memoryInBytesByLabelName": bytes.collect::<Vec<_>>(),
        "seriesCountByLabelValuePair": pairs.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use hindcast_model::{Labels, METRIC_NAME};

    #[test]
    fn a_report_names_what_holds_the_most_series() {
        let series = |name: &str, n: usize| -> Vec<Labels> {
            let of = |i: usize| {
                Labels::from_pairs([
                    (METRIC_NAME, name),
                    ("job", "takes-the-most-bytes"),
                    ("i", &i.to_string()),
                ])
            };
            (0..n).map(of).collect()
        };
        let sets = [series("many", 3), series("few", 2)].concat();
        let shown = report(
            &Cardinality::of_sets(&sets, 2),
            2,
            (TimestampNs(0), TimestampNs::from_secs(1)),
        );
        expect![[r#"
            {
              "headStats": {
                "maxTime": 1000,
                "minTime": 0,
                "numLabelPairs": 6,
                "numSeries": 5
              },
              "labelValueCountByLabelName": [
                {
                  "name": "i",
                  "value": 3
                },
                {
                  "name": "__name__",
                  "value": 2
                }
              ],
              "memoryInBytesByLabelName": [
                {
                  "name": "job",
                  "value": 20
                },
                {
                  "name": "__name__",
                  "value": 7
                }
              ],
              "seriesCountByLabelValuePair": [
                {
                  "name": "job=takes-the-most-bytes",
                  "value": 5
                },
                {
                  "name": "__name__=many",
                  "value": 3
                }
              ],
              "seriesCountByMetricName": [
                {
                  "name": "many",
                  "value": 3
                },
                {
                  "name": "few",
                  "value": 2
                }
              ]
            }"#]]
        .assert_eq(&serde_json::to_string_pretty(&shown).unwrap());
    }
}

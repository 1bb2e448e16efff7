//! Every call of Grafana's data sources (`grafana.calls`) is answered, in the shape that Grafana reads.

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use expect_test::expect;
use hindcast_env::Clock;
use hindcast_env::io::SystemClock;
use hindcast_model::{Labels, LogLine, Owner, Sample, TenantId, TimestampNs};
use hindcast_proto::trace::{EXEMPLAR, METRIC_LABEL, TRACE_LABEL, exemplar_line};
use hindcast_query::io::{loki_router, prometheus_router};
use hindcast_query::testing::OneShard;
use hindcast_query::{Engine, Limits};
use http_body_util::BodyExt;
use serde_json::Value;
use std::sync::Arc;
use tower::ServiceExt;

const CALLS: &str = include_str!("../grafana.calls");

/// An engine with a minute of data before `now`.
fn app(now: TimestampNs) -> Router {
    let (shard, tenant) = (OneShard::new(), TenantId::default());
    let ago = |secs: i64| TimestampNs(now.0 - secs * 1_000_000_000).floor_ms();
    let sample = |secs, value| Sample { at: ago(secs), value };
    shard.add(
        &tenant,
        Labels::from_pairs([("__name__", "up"), ("job", "a")]),
        [sample(60, 1.0), sample(30, 1.0), sample(1, 1.0)],
    );
    let described = |help: &str, secs: i64| {
        let labels = [
            ("__name__", "hindcast_metric_info"),
            ("metric", "up"),
            ("type", "gauge"),
            ("help", help),
        ];
        let at = ago(secs);
        let value = (at.as_ms() / 1000) as f64;
        shard.add(&tenant, Labels::from_pairs(labels), [Sample { at, value }]);
    };
    described("Whether it answers", 7200);
    described("Whether the target answers", 3600);
    let line = |secs, text: &'static str| LogLine {
        at: ago(secs),
        line: text.into(),
        metadata: vec![("trace".to_owned(), "t1".to_owned())],
    };
    let lines = [line(50, "error: disk"), line(20, "error: net")];
    shard.add_lines(&tenant, Labels::from_pairs([("app", "db")]), Owner::None, lines);
    let series = Labels::from_pairs([("__name__", "up"), ("job", "a")]);
    let exemplar = LogLine {
        at: ago(30),
        line: exemplar_line(&series, 1.0).into(),
        metadata: vec![("trace_id".to_owned(), "t1".to_owned())],
    };
    let of_exemplars = Labels::from_pairs([(TRACE_LABEL, EXEMPLAR), (METRIC_LABEL, "up")]);
    shard.add_lines(&tenant, of_exemplars, Owner::None, [exemplar]);
    let engine = Arc::new(Engine::new(Arc::new(shard), Limits::default()));
    prometheus_router(engine.clone()).merge(loki_router(engine))
}

/// Status and JSON of one call.
async fn ask(app: &Router, call: &str) -> (u16, Value) {
    let mut words = call.splitn(3, ' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let form = words.next().unwrap_or_default().to_owned();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Body::from(form))
        .unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::String(text)))
}

/// What of `answer` is not as `shape` has it.
fn differs(at: &str, shape: &Value, answer: &Value) -> Vec<String> {
    match (shape, answer) {
        (Value::Object(shape), Value::Object(answer)) => shape
            .iter()
            .flat_map(|(name, shape)| match answer.get(name) {
                Some(answer) => differs(&format!("{at}.{name}"), shape, answer),
                None => vec![format!("{at} has no {name}")],
            })
            .collect(),
        (Value::Array(shape), Value::Array(answer)) => match &shape[..] {
            [] if answer.is_empty() => vec![],
            [] => vec![format!("{at} is not empty")],
            _ if answer.is_empty() => vec![format!("{at} is empty")],
            [one] => answer
                .iter()
                .flat_map(|a| differs(&format!("{at}[]"), one, a))
                .collect(),
            many if many.len() == answer.len() => {
                let pairs = many.iter().zip(answer);
                pairs.flat_map(|(s, a)| differs(&format!("{at}[]"), s, a)).collect()
            }
            many => vec![format!("{at} has {} entries, not {}", answer.len(), many.len())],
        },
        (Value::String(_), Value::String(_)) | (Value::Number(_), Value::Number(_)) => vec![],
        (shape, answer) => vec![format!("{at} is {answer}, not like {shape}")],
    }
}

#[tokio::test]
async fn each_call_is_answered_in_the_shape_that_grafana_reads() {
    let now = SystemClock::new().now();
    let app = app(now);
    let (now_s, ago_s) = (now.0 / 1_000_000_000, now.0 / 1_000_000_000 - 600);
    let lines: Vec<&str> = CALLS.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).collect();
    let mut wrong = vec![];
    for pair in lines.chunks(2) {
        let [call, shape] = pair else {
            panic!("{} has no shape", pair[0])
        };
        let call = call
            .replace("{now_ns}", &now.0.to_string())
            .replace("{ago_ns}", &(ago_s * 1_000_000_000).to_string())
            .replace("{now}", &now_s.to_string())
            .replace("{ago}", &ago_s.to_string());
        let shape: Value = serde_json::from_str(shape).unwrap_or_else(|e| panic!("the shape of {call}: {e}"));
        let (status, answer) = ask(&app, &call).await;
        let differences = differs("it", &shape, &answer);
        if status != 200 || !differences.is_empty() {
            wrong.push(format!("{call}\n  {status} {}\n  {answer}", differences.join(", ")));
        }
    }
    assert!(lines.len() > 60, "the list was read");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn descriptions_of_a_metric_come_newest_first_and_as_many_as_were_asked_for() {
    let app = app(SystemClock::new().now());
    let mut shown = String::new();
    for call in [
        "GET /api/v1/metadata",
        "GET /api/v1/metadata?limit_per_metric=1",
        "GET /api/v1/metadata?metric=up&limit=0",
        "GET /api/v1/metadata?metric=up&limit=-1&limit_per_metric=-1",
        "GET /api/v1/metadata?metric=%22%7D%20or%20up",
        "GET /api/v1/metadata?limit=x",
        "GET /api/v1/status/tsdb?limit=0",
        "GET /api/v1/query_exemplars?query=up%7B",
    ] {
        let (status, mut answer) = ask(&app, call).await;
        if let Some(answer) = answer.as_object_mut() {
            answer.remove("completeness");
        }
        shown += &format!("{call}\n    {status} {answer}\n");
    }
    expect![[r#"
        GET /api/v1/metadata
            200 {"data":{"up":[{"help":"Whether the target answers","type":"gauge","unit":""},{"help":"Whether it answers","type":"gauge","unit":""}]},"status":"success"}
        GET /api/v1/metadata?limit_per_metric=1
            200 {"data":{"up":[{"help":"Whether the target answers","type":"gauge","unit":""}]},"status":"success"}
        GET /api/v1/metadata?metric=up&limit=0
            200 {"data":{"up":[{"help":"Whether the target answers","type":"gauge","unit":""},{"help":"Whether it answers","type":"gauge","unit":""}]},"status":"success"}
        GET /api/v1/metadata?metric=up&limit=-1&limit_per_metric=-1
            200 {"data":{"up":[{"help":"Whether the target answers","type":"gauge","unit":""},{"help":"Whether it answers","type":"gauge","unit":""}]},"status":"success"}
        GET /api/v1/metadata?metric=%22%7D%20or%20up
            200 {"data":{},"status":"success"}
        GET /api/v1/metadata?limit=x
            400 {"error":"invalid parameter \"limit\": cannot parse \"x\" to a valid number","errorType":"bad_data","status":"error"}
        GET /api/v1/status/tsdb?limit=0
            400 {"error":"invalid parameter \"limit\": 0 is not between 1 and 10000","errorType":"bad_data","status":"error"}
        GET /api/v1/query_exemplars?query=up%7B
            400 {"error":"invalid parameter \"query\": 1:4: parse error: unexpected end of input in label matching, expected identifier or \"}\"","errorType":"bad_data","status":"error"}
    "#]]
    .assert_eq(&shown);
}

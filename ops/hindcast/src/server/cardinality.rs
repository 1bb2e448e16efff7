//! `/api/hindcast/v1/cardinality`: how many active series a tenant has, what makes them many, and how many it may have.

use super::limits::limits_json;
use axum::Json;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hindcast_env::Clock;
use hindcast_model::{Classify, TenantId};
use hindcast_node::io::servers::tenants::Tenants;
use hindcast_proto::edge::{TENANT_KEY, http_status, tenant_of_header};
use hindcast_query::Engine;
use hindcast_storage::cardinality::{Cardinality, REPORT_ENTRIES_MAX};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// Entries of each list, where nobody says how many.
const ENTRIES_DEFAULT: usize = 10;
/// The label that drives growth is the widest, or the second after the names of metrics.
const DRIVING_MIN: usize = 2;

#[derive(Clone)]
struct Served {
    engine: Arc<Engine>,
    tenants: Arc<Tenants>,
    clock: Arc<dyn Clock>,
}

pub fn router(engine: Arc<Engine>, tenants: Arc<Tenants>, clock: Arc<dyn Clock>) -> axum::Router {
    axum::Router::new()
        .route("/api/hindcast/v1/cardinality", get(report))
        .with_state(Served { engine, tenants, clock })
}

#[derive(Debug, Deserialize)]
struct Wanted {
    limit: Option<usize>,
}

fn refusal(status: u16, code: &str, message: impl Into<String>) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    (status, Json(json!({"code": code, "message": message.into()}))).into_response()
}

async fn report(State(served): State<Served>, Query(wanted): Query<Wanted>, headers: HeaderMap) -> Response {
    let value = headers.get(TENANT_KEY).map(|v| v.to_str().unwrap_or("?"));
    let tenant = match tenant_of_header(value) {
        Ok(tenant) => tenant,
        Err(why) => return refusal(400, "invalid", why.to_string()),
    };
    let entries = wanted.limit.unwrap_or(ENTRIES_DEFAULT);
    if !(1..=REPORT_ENTRIES_MAX).contains(&entries) {
        let why = format!("limit {entries} is not between 1 and {REPORT_ENTRIES_MAX}");
        return refusal(400, "invalid", why);
    }
    let now = served.clock.now();
    let found = served.engine.cardinality(&tenant, now, entries.max(DRIVING_MIN)).await;
    match found {
        Ok(found) => {
            let limits = served.tenants.limits.current();
            let mut shown = shown(&tenant, &found.value, entries);
            shown["limits"] = limits_json(limits.of(&tenant));
            shown["missing"] = found.completeness.missing.into();
            Json(shown).into_response()
        }
        Err(why) => refusal(http_status(why.class()), "refused", why.to_string()),
    }
}

fn shown(tenant: &TenantId, of: &Cardinality, entries: usize) -> Value {
    let metrics = of.metrics.iter().map(|(name, n)| json!({"name": name, "series": n}));
    let label =
        |l: &hindcast_storage::cardinality::LabelCount| json!({"name": l.name, "values": l.values, "series": l.series});
    let pairs = of
        .pairs
        .iter()
        .map(|((name, value), n)| json!({"name": name, "value": value, "series": n}));
    json!({
        "tenant": tenant,
        "series": of.series,
        "label_pairs": of.label_pairs,
        "driving_label": of.driving().map(label),
        "metrics": metrics.take(entries).collect::<Vec<_>>(),
        "labels": of.labels.iter().take(entries).map(label).collect::<Vec<_>>(),
        "pairs": pairs.take(entries).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_model::{Labels, METRIC_NAME};

    #[test]
    fn a_report_names_the_label_that_makes_series_many() {
        let set = |i: usize| {
            let id = i.to_string();
            Labels::from_pairs([(METRIC_NAME, "requests_total"), ("job", "shop"), ("request_id", &id)])
        };
        let of = Cardinality::of_sets(&(0..3).map(set).collect::<Vec<_>>(), 2);
        let shown = shown(&TenantId::default(), &of, 2);
        expect_test::expect![[r#"
            {
              "driving_label": {
                "name": "request_id",
                "series": 3,
                "values": 3
              },
              "label_pairs": 5,
              "labels": [
                {
                  "name": "request_id",
                  "series": 3,
                  "values": 3
                },
                {
                  "name": "__name__",
                  "series": 3,
                  "values": 1
                }
              ],
              "metrics": [
                {
                  "name": "requests_total",
                  "series": 3
                }
              ],
              "pairs": [
                {
                  "name": "__name__",
                  "series": 3,
                  "value": "requests_total"
                },
                {
                  "name": "job",
                  "series": 3,
                  "value": "shop"
                }
              ],
              "series": 3,
              "tenant": "default"
            }"#]]
        .assert_eq(&format!("{shown:#}"));
        let table = crate::cli::cardinality::table(&shown);
        expect_test::expect![[r#"
            tenant default: 3 active series, no limit
            label request_id makes them many: 3 values in 3 series

                values     series  label
                     3          3  request_id
                     1          3  __name__

                series  metric
                     3  requests_total

                series  label and value
                     3  __name__="requests_total"
                     3  job="shop"
        "#]]
        .assert_eq(&table);
    }
}

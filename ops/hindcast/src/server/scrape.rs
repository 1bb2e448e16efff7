//! `/api/v1/targets`, as Prometheus has it, with the node that scrapes each target.
//!
//! Every node answers for all: how the targets of others are, it asks them. Lists of dropped targets are bounded where they are made.

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hindcast_model::TimestampNs;
use hindcast_node::io::servers::scrape::{NotScraped, Scraper};
use hindcast_scrape::pool::Told;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Without a scraper there are no targets.
pub fn router(scraper: Option<Scraper>) -> axum::Router {
    axum::Router::new()
        .route("/api/v1/targets", get(targets))
        .route("/api/v1/scrape_pools", get(pools))
        .with_state(scraper)
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Wanted {
    state: Option<String>,
    #[serde(rename = "scrapePool")]
    pool: Option<String>,
}

async fn targets(State(scraper): State<Option<Scraper>>, Query(wanted): Query<Wanted>) -> Response {
    let (active, dropped) = match wanted.state.as_deref() {
        None | Some("any" | "") => (true, true),
        Some("active") => (true, false),
        Some("dropped") => (false, true),
        Some(other) => {
            let error = format!("the state {other:?} is not known; write active, dropped or any");
            let body = json!({"status": "error", "errorType": "bad_data", "error": error});
            return (StatusCode::BAD_REQUEST, Json(body)).into_response();
        }
    };
    let is_wanted = |pool: &str| wanted.pool.as_deref().is_none_or(|w| w.is_empty() || w == pool);
    let (mut told, mut not_scraped) = match &scraper {
        Some(scraper) => (scraper.told().await, scraper.not_scraped()),
        None => (vec![], BTreeMap::new()),
    };
    told.retain(|t| active && is_wanted(&t.target.job.name));
    not_scraped.retain(|job, _| dropped && is_wanted(job));
    Json(json!({"status": "success", "data": answer(&told, &not_scraped)})).into_response()
}

async fn pools(State(scraper): State<Option<Scraper>>) -> Json<Value> {
    let names: Vec<String> = scraper.map_or(vec![], |s| s.not_scraped().into_keys().collect());
    Json(json!({"status": "success", "data": {"scrapePools": names}}))
}

fn rfc3339(at: TimestampNs) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(at.0)).map_or_else(|_| at.to_string(), |t| t.to_string())
}

/// The same form for the server and the command line.
pub fn answer(told: &[Told], not_scraped: &BTreeMap<String, NotScraped>) -> Value {
    let dropped = not_scraped.iter().flat_map(|(job, not)| {
        not.dropped
            .iter()
            .map(move |labels| json!({"discoveredLabels": labels, "scrapePool": job}))
    });
    let counts: Map<String, Value> = not_scraped
        .iter()
        .map(|(job, not)| (job.clone(), not.dropped_count.into()))
        .collect();
    let bad: Vec<&String> = not_scraped.values().flat_map(|n| &n.bad).collect();
    json!({
        "activeTargets": told.iter().map(active).collect::<Vec<_>>(),
        "droppedTargets": dropped.collect::<Vec<_>>(),
        "droppedTargetCounts": counts,
        "badTargets": bad,
    })
}

fn active(told: &Told) -> Value {
    let target = &told.target;
    let labels: Map<String, Value> = target.labels.iter().map(|(n, v)| (n.to_owned(), v.into())).collect();
    let last = told.last.as_ref();
    let health = match last {
        None => "unknown",
        Some(last) if last.error.is_none() => "up",
        Some(_) => "down",
    };
    json!({
        "discoveredLabels": target.discovered,
        "labels": labels,
        "scrapePool": target.job.name,
        "scrapeUrl": target.url,
        "globalUrl": target.url,
        "lastError": last.and_then(|l| l.error.as_deref()).unwrap_or_default(),
        "lastScrape": last.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), |l| rfc3339(l.at)),
        "lastScrapeDuration": last.map_or(0.0, |l| l.took.0 as f64 / 1e9),
        "health": health,
        "scrapeInterval": target.interval.to_string(),
        "scrapeTimeout": target.timeout.to_string(),
        "node": told.node.0,
    })
}

//! `/api/hindcast/v1/kafka`: which node consumes what, and how far it has come.
//!
//! Every node answers for all that it reaches.

use axum::Json;
use axum::extract::State;
use axum::routing::get;
use hindcast_node::io::servers::kafka::{Kafka, Told};
use serde_json::{Value, json};

/// Without a file nothing is consumed.
pub fn router(kafka: Option<Kafka>) -> axum::Router {
    axum::Router::new()
        .route("/api/hindcast/v1/kafka", get(told))
        .with_state(kafka)
}

async fn told(State(kafka): State<Option<Kafka>>) -> Json<Value> {
    let told = match &kafka {
        Some(kafka) => kafka.told().await,
        None => Told::default(),
    };
    Json(answer(&told))
}

pub fn answer(told: &Told) -> Value {
    let sources = told
        .sources
        .iter()
        .map(|s| json!({"source": s.source, "node": s.node, "group": s.group, "state": s.state, "error": s.error}));
    let partitions = told.partitions.iter().map(|p| {
        json!({
            "source": p.source,
            "topic": p.topic,
            "partition": p.partition,
            "node": p.node,
            "offset": p.offset,
            "end": p.end,
            "lag": p.lag(),
        })
    });
    json!({"sources": sources.collect::<Vec<_>>(), "partitions": partitions.collect::<Vec<_>>()})
}

//! A node on its own with the write servers only, to measure and profile the write path without the rest.
//!
//! `cargo run --release -p hindcast-node --example ingest_node -- <data-dir> <address>`

use hindcast_model::NodeId;
use hindcast_node::io::node::{Node, NodeConfig, TestOnly};
use hindcast_node::io::servers::{
    IngestState, ingest_router, ingest_service, otlp_logs_service, otlp_metrics_service, otlp_traces_service,
};
use std::sync::Arc;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(data_dir), Some(address)) = (args.next(), args.next()) else {
        return Err("say a data directory and an address".into());
    };
    let config = NodeConfig {
        id: NodeId(1),
        data_dir: data_dir.into(),
        join: vec![],
        join_cluster: vec![],
        shards: 1,
        replicas: None,
        retention: vec![],
        test_only: TestOnly::default(),
        disk_reserve: None,
        cold: None,
        peer_tls: None,
        memory_limit: None,
        client_cluster: None,
    };
    let node = Node::start(config, None, vec![]).await?;
    let floor = node.clone();
    let sink = Arc::new(node.writer.clone());
    let state = IngestState::new(sink, node.clock.clone(), Arc::new(move |tenant| floor.floor(tenant)));
    let grpc = tonic::service::Routes::new(ingest_service(state.clone()))
        .add_service(otlp_metrics_service(state.clone()))
        .add_service(otlp_logs_service(state.clone()))
        .add_service(otlp_traces_service(state.clone()));
    let app = grpc.into_axum_router().merge(ingest_router(state));
    axum::serve(tokio::net::TcpListener::bind(address).await?, app).await?;
    Ok(())
}

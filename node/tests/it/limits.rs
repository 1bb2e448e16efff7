//! Limits of tenants on three nodes that are one cluster: what one let in, the others count.

#![allow(clippy::unwrap_used, reason = "a test")]

use axum::body::Body;
use hindcast_ingest::tenant_limits::parse;
use hindcast_model::NodeId;
use hindcast_node::io::node::{Node, NodeConfig, TestOnly};
use hindcast_node::io::servers::{IngestState, ingest_router};
use http_body_util::BodyExt;
use std::sync::Arc;
use std::time::Duration;
use tower::ServiceExt;

const LIMIT: usize = 60;
const SOON: Duration = Duration::from_secs(20);

struct Member {
    node: Node,
    state: IngestState,
    app: axum::Router,
    _dir: tempfile::TempDir,
}

async fn start(id: u64, listener: tokio::net::TcpListener, join: Vec<String>) -> Member {
    let dir = tempfile::tempdir().unwrap();
    let config = NodeConfig {
        id: NodeId(id),
        data_dir: dir.path().to_path_buf(),
        join,
        join_cluster: vec![],
        shards: 2,
        replicas: None,
        retention: vec![],
        test_only: TestOnly::default(),
        disk_reserve: None,
        cold: None,
        peer_tls: None,
        memory_limit: None,
        client_cluster: None,
    };
    let node = Node::start(config, Some(listener), vec![]).await.unwrap();
    let state = IngestState::new(Arc::new(node.writer.clone()), node.clock.clone(), Arc::new(|_| None));
    tokio::spawn(
        state
            .tenants
            .clone()
            .hear_of_nodes(node.peers.clone(), node.clock.clone()),
    );
    Member {
        app: ingest_router(state.clone()),
        node,
        state,
        _dir: dir,
    }
}

impl Member {
    /// Writes series of these numbers, one sample each; status and text.
    async fn write(&self, numbers: std::ops::Range<usize>) -> (u16, String) {
        let line = |n| format!("m,host=h{},request_id=r{n} value=1\n", n % 7);
        let body: String = numbers.map(line).collect();
        let request = hyper::Request::post("/write").body(Body::from(body)).unwrap();
        let answer = self.app.clone().oneshot(request).await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&text).into_owned())
    }

    async fn wait(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let waited = tokio::time::timeout(SOON, async {
            while !is(self) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(waited.await.is_ok(), "node {}: {what}", self.node.id());
    }

    /// Series of the tenant that this node's replicas know.
    fn known(&self) -> u64 {
        let tenant = hindcast_model::TenantId::default();
        let of = |s: &hindcast_node::shard_machine::ShardHandle| s.reader.series_since(&tenant, 0);
        self.node.shards.values().map(of).sum()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_a_cluster_share_limits() {
    let mut listeners = vec![];
    for _ in 0..3 {
        listeners.push(tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let join: Vec<String> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
    let starting = (1..).zip(listeners).map(|(id, l)| start(id, l, join.clone()));
    let members = futures::future::join_all(starting).await;
    for m in &members {
        m.wait("ready", |m| m.node.is_ready()).await;
        m.wait("it hears of the others", |m| m.state.tenants.nodes() == 3).await;
        let limits = format!("default: {{active_series_max: {LIMIT}, samples_per_second: 3000, samples_burst: 3000}}");
        m.state.limit(parse("f", &limits).unwrap());
    }

    // One after the other, each time once the other nodes have seen what was let in: then the limit holds exactly.
    assert_eq!(members[0].write(0..25).await.0, 204);
    members[1].wait("sees the first", |m| m.known() == 25).await;
    assert_eq!(members[1].write(20..50).await.0, 204);
    members[2].wait("sees the second", |m| m.known() == 50).await;
    let (status, text) = members[2].write(45..80).await;
    assert_eq!(status, 400, "{text}");
    assert!(text.contains("20 refused") && text.contains("dropped=20"), "{text}");
    assert!(text.contains(r#"label \"request_id\" has "#), "{text}");
    for m in &members {
        m.wait("sees the third", |m| m.known() == LIMIT as u64).await;
        assert_eq!(m.write(0..LIMIT).await.0, 204, "known series are taken everywhere");
        assert!(m.write(70..75).await.1.contains("5 refused"));
    }

    // Of the cluster's 3,000 at once each node gives its third, less what was taken before.
    let mut given = 0;
    for round in 0..60 {
        for m in &members {
            if m.write(0..LIMIT).await.0 == 204 {
                given += LIMIT;
            }
        }
        if round == 59 {
            assert!(
                members[0]
                    .state
                    .tenants
                    .refused()
                    .keys()
                    .any(|(_, l)| *l == "samples_per_second")
            );
        }
    }
    assert!((2_000..10_000).contains(&given), "{given}");
}

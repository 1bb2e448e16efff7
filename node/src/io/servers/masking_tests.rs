//! Lines over every protocol into a real node: what is read back is masked, and what was sent is nowhere on its disk.

use super::*;
use crate::io::node::{Node, NodeConfig, TestOnly};
use hindcast_masking::{Exemption, Settings};
use hindcast_model::{Matcher, NodeId};
use hindcast_proto::v1;
use hindcast_proto::v1::ingest_client::IngestClient;
use hindcast_storage::logs::Filter;
use hindcast_storage::read::{Direction, SelectLines};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use prost::Message;
use std::path::Path;

/// What is sent in a line and in its metadata, and may not be found again.
const SENT: [&str; 4] = ["961219-1234567", "010-1234-5678", "성수이로", "gildong.hong@"];
/// A word of every line that is found, wherever lines are written as they are.
const MARK: &str = "plainword";
const MASKED: &str = "plainword 961219-******* 010-****-5678 서울시 성동구 ****";

fn line() -> String {
    format!("{MARK} 961219-1234567 010-1234-5678 서울시 성동구 성수이로")
}

struct Served {
    node: Node,
    state: IngestState,
    base: String,
    seconds: i64,
}

impl Served {
    async fn start(dir: &Path) -> Self {
        let config = NodeConfig {
            id: NodeId(1),
            data_dir: dir.to_path_buf(),
            join: vec![],
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
        let node = Node::start(config, None, vec![]).await.unwrap();
        let state = IngestState::new(Arc::new(node.writer.clone()), node.clock.clone(), Arc::new(|_| None));
        let routes =
            tonic::service::Routes::new(ingest_service(state.clone())).add_service(otlp_logs_service(state.clone()));
        let app = routes.into_axum_router().merge(ingest_router(state.clone()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        let seconds = node.clock.now().0 / 1_000_000_000;
        Self {
            node,
            state,
            base,
            seconds,
        }
    }

    async fn post(&self, path: &str, kind: &str, body: impl Into<Bytes>) -> u16 {
        let request = hyper::Request::post(format!("{}{path}", self.base)).header("content-type", kind);
        let request = request.body(Full::new(body.into())).unwrap();
        let client = Client::builder(TokioExecutor::new()).build_http();
        client.request(request).await.unwrap().status().as_u16()
    }

    /// Lines of a job, with their metadata, sorted.
    fn lines(&self, tenant: &str, job: &str) -> Vec<(String, Vec<(String, String)>)> {
        let mut found = vec![];
        for shard in self.node.shards.values() {
            let streams = shard.reader.lines(&SelectLines {
                tenant: TenantId::new(tenant).unwrap(),
                matchers: vec![Matcher::equal("service_name", job)],
                from: TimestampNs::MIN,
                to: TimestampNs::MAX,
                as_of: None,
                owners: None,
                filter: Filter::all(),
                limit: None,
                direction: Direction::Forward,
            });
            let lines = streams.unwrap().into_iter().flat_map(|s| s.lines);
            found.extend(lines.map(|l| (String::from_utf8_lossy(&l.line).into_owned(), l.metadata)));
        }
        found.sort();
        found
    }
}

fn pair(name: &str, value: &str) -> v1::Label {
    v1::Label {
        name: name.to_owned(),
        value: value.to_owned(),
    }
}

fn own(seq: u64, at_secs: i64) -> v1::WriteRequest {
    let line = v1::Line {
        at_ns: at_secs * 1_000_000_000 + seq as i64,
        line: line(),
        metadata: vec![pair("mail", "gildong.hong@example.com"), pair("n", &seq.to_string())],
    };
    v1::WriteRequest {
        writer: "w".into(),
        seq,
        streams: vec![v1::Stream {
            labels: vec![pair("service_name", "own")],
            lines: vec![line],
        }],
        ..Default::default()
    }
}

/// `logproto.PushRequest` with one line.
fn loki_push(at_secs: i64, nanos: i64) -> Vec<u8> {
    fn field(number: u8, body: &[u8], out: &mut Vec<u8>) {
        out.push(number << 3 | 2);
        prost::encoding::encode_varint(body.len() as u64, out);
        out.extend_from_slice(body);
    }
    let mut at = vec![0x08];
    prost::encoding::encode_varint(at_secs as u64, &mut at);
    at.push(0x10);
    prost::encoding::encode_varint(nanos as u64, &mut at);
    let (mut metadata, mut entry, mut stream, mut push) = (vec![], vec![], vec![], vec![]);
    field(1, b"mail", &mut metadata);
    field(2, b"gildong.hong@example.com", &mut metadata);
    field(1, &at, &mut entry);
    field(2, line().as_bytes(), &mut entry);
    field(3, &metadata, &mut entry);
    field(1, br#"{service_name="loki-protobuf"}"#, &mut stream);
    field(2, &entry, &mut stream);
    field(1, &stream, &mut push);
    let mut block = vec![];
    prost::encoding::encode_varint(push.len() as u64, &mut block);
    for chunk in push.chunks(60) {
        block.push((chunk.len() as u8 - 1) << 2);
        block.extend(chunk);
    }
    block
}

/// Whether any file below the folder holds the text.
fn holds(dir: &Path, text: &str) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            return holds(&entry.path(), text);
        }
        #[allow(
            clippy::disallowed_methods,
            reason = "a test looks at the bytes as they are on the disk"
        )]
        let bytes = std::fs::read(entry.path()).unwrap();
        memchr::memmem::find(&bytes, text.as_bytes()).is_some()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_over_any_protocol_is_nowhere_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path()).await;
    let at = served.seconds;

    // Own protocol: a new stream, the same one known, and a retry.
    let mut client = IngestClient::connect(served.base.clone()).await.unwrap();
    for (seq, duplicate) in [(1, false), (2, false), (2, true), (1, true)] {
        let answer = client.write(own(seq, at)).await.unwrap().into_inner();
        assert_eq!((answer.lines, answer.duplicate), (1, duplicate), "{seq}");
    }
    let requests = futures::stream::iter([own(3, at), own(4, at)]);
    let mut answers = client.write_stream(requests).await.unwrap().into_inner();
    while let Some(answer) = answers.message().await.unwrap() {
        assert_eq!(answer.status, 0, "{answer:?}");
    }

    // OTLP: text, structured body and attributes; over HTTP twice, which is once.
    let logs = |name: &str| {
        format!(
            r#"{{"resourceLogs":[{{"resource":{{"attributes":[{{"key":"service.name","value":{{"stringValue":"{name}"}}}},
            {{"key":"owner.mail","value":{{"stringValue":"gildong.hong@example.com"}}}}]}},"scopeLogs":[{{"logRecords":[
            {{"timeUnixNano":"{at}000000007","body":{{"stringValue":"{}"}},"attributes":[{{"key":"mail","value":{{"stringValue":"gildong.hong@example.com"}}}}]}},
            {{"timeUnixNano":"{at}000000008","body":{{"kvlistValue":{{"values":[{{"key":"k","value":{{"stringValue":"{}"}}}}]}}}}}}]}}]}}]}}"#,
            line(),
            line()
        )
    };
    for _ in 0..2 {
        assert_eq!(
            served.post("/v1/logs", "application/json", logs("otlp-json")).await,
            200
        );
    }
    let request: otlp::LogsRequest = serde_json::from_str(&logs("otlp-http")).unwrap();
    assert_eq!(
        served
            .post("/v1/logs", "application/x-protobuf", request.encode_to_vec())
            .await,
        200
    );
    let request: otlp::LogsRequest = serde_json::from_str(&logs("otlp-grpc")).unwrap();
    let mut client = LogsServiceClient::connect(served.base.clone()).await.unwrap();
    client.export(request).await.unwrap();

    // Loki: JSON, and protobuf of a new stream and of a known one.
    let push = format!(
        r#"{{"streams":[{{"stream":{{"service_name":"loki-json"}},"values":[["{at}000000001","{}",{{"mail":"gildong.hong@example.com"}}]]}}]}}"#,
        line()
    );
    for _ in 0..2 {
        assert_eq!(
            served.post("/loki/api/v1/push", "application/json", push.clone()).await,
            204
        );
    }
    for nanos in [1, 2, 2] {
        let body = loki_push(at, nanos);
        assert_eq!(
            served.post("/loki/api/v1/push", "application/x-protobuf", body).await,
            204
        );
    }

    let mail = ("mail".to_owned(), "gi**********@example.com".to_owned());
    for (job, lines) in [
        ("own", 4),
        ("otlp-json", 2),
        ("otlp-http", 2),
        ("otlp-grpc", 2),
        ("loki-json", 1),
        ("loki-protobuf", 2),
    ] {
        let found = served.lines("default", job);
        assert_eq!(found.len(), lines, "{job}: {found:?}");
        for (text, metadata) in found {
            assert!(
                text == MASKED || text == format!(r#"{{"k":"{MASKED}"}}"#),
                "{job}: {text}"
            );
            let is_masked = metadata.contains(&mail) || metadata.iter().any(|(n, v)| n == "owner_mail" && *v == mail.1);
            assert!(is_masked, "{job}: {metadata:?}");
        }
    }
    let counts = served.state.masking.counts();
    assert!(
        counts
            .by_type()
            .iter()
            .all(|(name, n)| (*n > 12) == ["address", "email", "phone", "rrn"].contains(&name.as_str()))
    );

    assert!(holds(dir.path(), MARK), "the log has lines as they are");
    flush(&served.node).await;
    for sent in SENT {
        assert!(!holds(dir.path(), sent), "{sent} is on the disk");
    }
    served.node.raft.shutdown();
}

async fn flush(node: &Node) {
    for shard in node.shards.values() {
        let ticket = shard.ask_flush();
        while !shard.flushed(ticket) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

/// Other settings count from the next request on. A retry that is masked otherwise is still the same batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_change_while_writers_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path()).await;
    let at = served.seconds;
    let mut client = IngestClient::connect(served.base.clone()).await.unwrap();
    client.write(own(1, at)).await.unwrap();
    let off = Settings {
        on: false,
        ..Settings::default()
    };
    served.state.masking.replace(off).unwrap();
    let retried = client.write(own(1, at)).await.unwrap().into_inner();
    assert!(retried.duplicate);
    client.write(own(2, at)).await.unwrap();
    let texts: Vec<_> = served
        .lines("default", "own")
        .into_iter()
        .map(|(text, _)| text)
        .collect();
    assert_eq!(texts, [MASKED.to_owned(), line()]);

    let exempt = Settings {
        exempt: vec![Exemption {
            tenant: "open".into(),
            types: vec!["rrn".into(), "address".into()],
        }],
        ..Settings::default()
    };
    served.state.masking.replace(exempt).unwrap();
    let mut request = tonic::Request::new(own(3, at));
    request
        .metadata_mut()
        .insert(hindcast_proto::edge::TENANT_KEY, "open".parse().unwrap());
    client.write(request).await.unwrap();
    let texts: Vec<_> = served.lines("open", "own").into_iter().map(|(text, _)| text).collect();
    assert_eq!(texts, [line().replace("1234-5678", "****-5678")]);
    served.node.raft.shutdown();
}

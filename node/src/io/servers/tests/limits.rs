//! What each protocol answers when a tenant reaches its limits.

use super::*;
use hindcast_ingest::tenant_limits::parse;

const PROTOBUF: (&str, &str) = ("content-type", "application/x-protobuf");
const JSON: (&str, &str) = ("content-type", "application/json");

async fn limited(yaml: &str) -> Served {
    let served = serve().await;
    served.state.limit(parse("limits.yml", yaml).unwrap());
    served
}

/// Status, `Retry-After`, and the text.
async fn told(served: &Served, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> String {
    let mut request = hyper::Request::post(format!("{}{path}", served.base));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let client = Client::builder(TokioExecutor::new()).build_http();
    let request = request.body(Full::new(body.into())).unwrap();
    let answer = client.request(request).await.unwrap();
    let retry = answer
        .headers()
        .get("retry-after")
        .map(|v| v.to_str().unwrap().to_owned());
    let status = answer.status().as_u16();
    let text = answer.into_body().collect().await.unwrap().to_bytes();
    let text: String = String::from_utf8_lossy(&text)
        .chars()
        .filter(|c| !c.is_control())
        .collect();
    let retry = retry.map_or(String::new(), |secs| format!(" in {secs} s"));
    format!("{status}{retry} {text}").trim().to_owned()
}

fn loki(lines: &[&str]) -> String {
    let at = (NOW_SECS * 1_000_000_000).to_string();
    let values: Vec<_> = lines.iter().map(|l| serde_json::json!([at, l])).collect();
    serde_json::json!({"streams": [{"stream": {"app": "shop"}, "values": values}]}).to_string()
}

#[tokio::test]
async fn who_writes_too_fast_is_told_in_every_protocol_when_to_come_again() {
    let served =
        limited("default: {samples_per_second: 1, samples_burst: 1, log_bytes_per_second: 2, log_bytes_burst: 4}")
            .await;
    let s = &served;
    let snappy_headers = [PROTOBUF, ("content-encoding", "snappy")];
    assert_eq!(
        told(s, "/api/v1/write", &snappy_headers, snappy(&remote_body())).await,
        "204"
    );
    let stored = served.stored();
    expect!["429 in 1 s tenant default writes faster than its limit samples_per_second allows: 1 samples per second and 1 at once; this request has 1. Retry in 1000 ms, or raise the limit in the file that --limits names"].assert_eq(&told(s, "/api/v1/write", &snappy_headers, snappy(&remote_body())).await);
    let is = |t: &&hindcast_env::fuzz::Target| t.name == "ingest-remote-write-2";
    let seeds = (hindcast_ingest::fuzz::TARGETS.iter().find(is).unwrap().seeds)();
    expect!["429 0 0 0 retry: true tenant default writes faster than its limit samples_per_second allows: 1 samples per second and 1 at once; this request has 7. Retry in 1000 ms, or raise the limit in the file that --limits names"].assert_eq(&remote_write_2(s, &seeds[0]).await);
    expect![[r#"429 in 1 s {"code":"too many requests","message":"tenant default writes faster than its limit samples_per_second allows: 1 samples per second and 1 at once; this request has 1. Retry in 1000 ms, or raise the limit in the file that --limits names"}"#]].assert_eq(&told(s, "/api/v2/write", &[], "a v=1").await);
    expect![[r#"429 in 1 s {"code":8,"message":"tenant default writes faster than its limit samples_per_second allows: 1 samples per second and 1 at once; this request has 9. Retry in 1000 ms, or raise the limit in the file that --limits names"}"#]].assert_eq(&told(s, "/v1/metrics", &[JSON], OTLP_METRICS).await);
    let raw = otlp::MetricsRequest::encode_to_vec(&serde_json::from_str(OTLP_METRICS).unwrap());
    let status = MetricsServiceClient::connect(served.base.clone())
        .await
        .unwrap()
        .export(otlp::MetricsRequest::decode(raw.as_slice()).unwrap())
        .await
        .unwrap_err();
    let delay = hindcast_proto::edge::retry_info_of(&status);
    assert_eq!(
        (status.code(), delay),
        (Code::ResourceExhausted, Some(std::time::Duration::from_secs(1)))
    );
    let request = write_request(1, vec![series("up", &[NOW_SECS])]);
    let status = served.ingest().await.write(request.clone()).await.unwrap_err();
    let delay = hindcast_proto::edge::retry_info_of(&status);
    assert_eq!(
        (status.code(), delay),
        (Code::ResourceExhausted, Some(std::time::Duration::from_secs(1)))
    );
    let answers = served
        .ingest()
        .await
        .write_stream(futures::stream::iter([request]))
        .await;
    let answer = answers.unwrap().into_inner().message().await.unwrap().unwrap();
    assert_eq!((answer.seq, answer.status), (1, Code::ResourceExhausted as i32));
    assert!(answer.message.contains("samples_per_second"), "{}", answer.message);
    assert_eq!(served.stored(), stored, "nothing of what was refused");

    // Lines have a bucket of their own. The first one owes for two seconds.
    assert_eq!(told(s, "/loki/api/v1/push", &[JSON], loki(&["eightish"])).await, "204");
    expect!["429 in 3 s tenant default writes faster than its limit log_bytes_per_second allows: 2 bytes of lines per second and 4 at once; this request has 1. Retry in 2500 ms, or raise the limit in the file that --limits names"].assert_eq(&told(s, "/loki/api/v1/push", &[JSON], loki(&["b"])).await);
    // The same as protobuf: one stream `{app="shop"}` with a line of one byte.
    let push = {
        let entry = [&b"\x0a\x06\x08"[..], &[0x80, 0xe2, 0xcf, 0xaa, 0x06], b"\x12\x01b"].concat();
        let stream = [&b"\x0a\x0c{app=\"shop\"}"[..], &[0x12, entry.len() as u8], &entry].concat();
        snappy(&[&[0x0a, stream.len() as u8], &stream[..]].concat())
    };
    expect!["429 in 3 s tenant default writes faster than its limit log_bytes_per_second allows: 2 bytes of lines per second and 4 at once; this request has 1. Retry in 2500 ms, or raise the limit in the file that --limits names"].assert_eq(&told(s, "/loki/api/v1/push", &[PROTOBUF], push).await);
    assert_eq!(served.counted("hindcast_ingest_failed_requests_total", "too_fast"), 9);
    let refused = served.state.tenants.refused();
    let requests: Vec<_> = refused.iter().map(|((t, l), r)| (t.as_str(), *l, r.requests)).collect();
    assert_eq!(
        requests,
        [
            ("default", "log_bytes_per_second", 2),
            ("default", "samples_per_second", 7)
        ]
    );
    // Another tenant's bucket is full.
    let other = [PROTOBUF, ("content-encoding", "snappy"), ("x-scope-orgid", "other")];
    assert_eq!(told(s, "/api/v1/write", &other, snappy(&remote_body())).await, "204");
}

#[tokio::test]
async fn who_is_told_to_send_again_does_not_pay_twice() {
    let served =
        limited("default: {samples_per_second: 1, samples_burst: 1, log_bytes_per_second: 1, log_bytes_burst: 1}")
            .await;
    let full = || WriteError::QueueFull {
        shard: ShardId(1),
        queued_bytes_max: 9,
    };
    let headers = [PROTOBUF, ("content-encoding", "snappy")];
    let write = async || told(&served, "/api/v1/write", &headers, snappy(&remote_body())).await;
    let push = async || told(&served, "/loki/api/v1/push", &[JSON], loki(&["b"])).await;
    let own = async || {
        let request = write_request(1, vec![series("up", &[NOW_SECS])]);
        served
            .ingest()
            .await
            .write(request)
            .await
            .map_err(|s| s.message().to_owned())
    };
    served.recorder.fails.lock().extend([full(), full(), full()]);
    for answer in [write().await, push().await, own().await.unwrap_err()] {
        assert!(!answer.contains("faster"), "{answer}");
    }
    let (written, pushed) = (write().await, push().await);
    assert_eq!((written.as_str(), pushed.as_str()), ("204", "204"));
    let answer = own().await.unwrap_err();
    assert!(answer.contains("samples_per_second"), "it was paid for: {answer}");
}

#[tokio::test]
async fn an_exemplar_keeps_its_series_whatever_is_masked_or_cut() {
    let served = limited("default: {line_bytes_max: 10, lines_too_long: cut}").await;
    let exemplar = {
        let label = b"\x0a\x0a\x0a\x04user\x12\x02me";
        let at = (NOW_SECS * 1000) as u64;
        let mut message = [&label[..], b"\x11", &0.5f64.to_le_bytes(), b"\x18"].concat();
        prost::encoding::encode_varint(at, &mut message);
        [&[0x1a, message.len() as u8], &message[..]].concat()
    };
    let labels = [
        ("__name__", "up"),
        ("contact", "gildong.hong@example.com"),
        ("job", "j"),
    ];
    let mut body = remote_series(&labels, NOW_SECS);
    // The series is the only field of the request, and its length takes one byte.
    assert_eq!(body[1] as usize, body.len() - 2);
    body[1] += exemplar.len() as u8;
    body.extend(&exemplar);
    let headers = [PROTOBUF, ("content-encoding", "snappy")];
    assert_eq!(told(&served, "/api/v1/write", &headers, snappy(&body)).await, "204");
    expect![[r#"
        up{contact="gildong.hong@example.com", job="j"} = 1.5@1700000000.000
        {hindcast_metric="up", hindcast_trace="exemplar"} "{\"series\":{\"__name__\":\"up\",\"contact\":\"gildong.hong@example.com\",\"job\":\"j\"},\"value\":\"0.5\"}" [("user", "me")]
    "#]].assert_eq(&served.stored());
}

#[tokio::test]
async fn what_is_too_long_is_refused_by_itself_under_the_name_of_the_limit() {
    let served = limited("tenants: {default: {labels_max: 4, label_value_bytes_max: 64, line_bytes_max: 10}}").await;
    let long = "v".repeat(65);
    let labels = |value: &str, more: usize| {
        let more = (0..more).map(|i| (format!("l{i}"), "v".to_owned()));
        let named = [("__name__", "up"), ("job", value)].map(|(n, v)| (n.to_owned(), v.to_owned()));
        let all: Vec<_> = named.into_iter().chain(more).collect();
        let all: Vec<_> = all.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        remote_series(&all, NOW_SECS)
    };
    let body = [labels("a", 2), labels(&long, 0), labels("b", 3)].concat();
    let headers = [PROTOBUF, ("content-encoding", "snappy")];
    expect![[r#"400 2 refused: up{job="vvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvv"} (1): the value of label "job" takes 65 bytes, more than 64 (label_value_bytes_max in the file of limits); up{job="b", l0="v", l1="v", l2="v"} (1): it has 5 labels, more than 4 (labels_max in the file of limits)"#]].assert_eq(&told(&served, "/api/v1/write", &headers, snappy(&body)).await);
    expect![[r#"400 1 refused: {app="shop"} (1): the line takes 11 bytes, more than 10 (line_bytes_max in the file of limits)"#]].assert_eq(&told(&served, "/loki/api/v1/push", &[JSON], loki(&["ten bytes.", "eleven byte"])).await);
    expect![[r#"
        up{job="a", l0="v", l1="v"} = 1.5@1700000000.000
        {app="shop"} "ten bytes." []
    "#]]
    .assert_eq(&served.stored());
    let refused = served.state.tenants.refused();
    let items: Vec<_> = refused.iter().map(|((_, l), r)| (*l, r.items)).collect();
    assert_eq!(
        items,
        [("label_value_bytes_max", 1), ("labels_max", 1), ("line_bytes_max", 1)]
    );

    // Another tenant has no such limit, and what is known is checked anew when limits come.
    let other = [PROTOBUF, ("content-encoding", "snappy"), ("x-scope-orgid", "other")];
    let many = snappy(&labels("a", 9));
    for _ in 0..2 {
        assert_eq!(told(&served, "/api/v1/write", &other, many.clone()).await, "204");
    }
    served
        .state
        .limit(parse("limits.yml", "default: {labels_max: 4}").unwrap());
    assert!(
        told(&served, "/api/v1/write", &other, many)
            .await
            .starts_with("400 1 refused")
    );
}

#[tokio::test]
async fn lines_are_cut_once_they_are_masked_whichever_way_they_come() {
    let served = limited("default: {line_bytes_max: 12, lines_too_long: cut}").await;
    // The number begins within what is kept and ends beyond it.
    let line = "tel 010-1234-5678";
    let lines = [line, "가나다라마바", "as it came"];
    assert_eq!(told(&served, "/loki/api/v1/push", &[JSON], loki(&lines)).await, "204");
    let stream = |text: &str| v1::Stream {
        labels: vec![label("app", "own")],
        lines: vec![v1::Line {
            at_ns: NOW_SECS * 1_000_000_000,
            line: text.to_owned(),
            metadata: vec![],
        }],
    };
    // The first is new here, the second known.
    for seq in 1..3 {
        let mut request = write_request(seq, vec![]);
        request.streams.push(stream(line));
        let answer = served.ingest().await.write(request).await.unwrap().into_inner();
        assert_eq!((answer.lines, answer.rejected.len()), (1, 0));
    }
    expect![[r#"
        {app="shop"} "tel 010-****" []
        {app="shop"} "가나다라" []
        {app="shop"} "as it came" []
        {app="own"} "tel 010-****" []
        {app="own"} "tel 010-****" []
    "#]]
    .assert_eq(&served.stored());
    assert_eq!(served.state.tenants.lines_cut(), 4);
}

fn many(names: std::ops::Range<usize>) -> Vec<u8> {
    let one = |i| {
        remote_series(
            &[("__name__", "m"), ("job", "j"), ("request_id", &format!("r{i}"))],
            NOW_SECS,
        )
    };
    names.flat_map(one).collect()
}

#[tokio::test]
async fn a_new_series_beyond_the_limit_is_refused_by_itself_with_the_label_that_makes_them_many() {
    let served = limited("default: {active_series_max: 5}").await;
    let headers = [PROTOBUF, ("content-encoding", "snappy")];
    let write = async |body: Vec<u8>| told(&served, "/api/v1/write", &headers, snappy(&body)).await;
    assert_eq!(write(many(0..4)).await, "204");
    // One more fits. Those that are known are stored in any case, and the answer names the others.
    expect![[r#"400 3 refused: m{job="j", request_id="r5"} (1): it would be a new series, and the tenant has its 5 active ones (active_series_max in the file of limits): label "request_id" has 4 values; m{job="j", request_id="r6"} (1): it would be a new series, and the tenant has its 5 active ones (active_series_max in the file of limits): label "request_id" has 4 values; m{job="j", request_id="r7"} (1): it would be a new series, and the tenant has its 5 active ones (active_series_max in the file of limits): label "request_id" has 4 values"#]].assert_eq(&write(many(0..8)).await);
    expect![[r#"400 1 refused: m{job="j", request_id="r6"} (1): it would be a new series, and the tenant has its 5 active ones (active_series_max in the file of limits): label "request_id" has 4 values"#]].assert_eq(&write(many(6..7)).await);
    assert_eq!(write(many(0..5)).await, "204");

    expect![[r#"200 {"partialSuccess":{"rejectedDataPoints":10,"errorMessage":"10 refused: latency_milliseconds{instance=\"web-1\", job=\"shop\"} (1): its buckets are not readable: 1 counts for 1 bounds; requests_total{instance=\"web-1\", job=\"shop\"} (3): it would be a new series, and the tenant has its 5 active ones (active_series_max in the file of limits): label \"request_id\" has 4 values; latency_milliseconds_bucket{instance=\"web-1\", job=\"shop\", le=\"5\"} (1): it would be a new series, and the tenant has its 5 active ones (active_series_max in the file of limits): label \"request_id\" has 4 values; latency_milliseconds_bucket{instance=\"web-1\", job=\"shop\", le=\"+Inf\"} (1): it would be a new series, and the tenant has its 5 active ones (active_series_max in the file of limits): label \"request_id\" has 4 values; latency_milliseconds_sum{instance=\"web-1\", job=\"shop\"} (1): it would be a new series, and the tenant has its 5 active ones (active_series_max in the file of limits): label \"request_id\" has 4 values; …"}}"#]].assert_eq(&told(&served, "/v1/metrics", &[JSON], OTLP_METRICS).await);
    let raw: otlp::MetricsRequest = serde_json::from_str(OTLP_METRICS).unwrap();
    let answer = MetricsServiceClient::connect(served.base.clone())
        .await
        .unwrap()
        .export(raw)
        .await;
    let partial = answer.unwrap().into_inner().partial_success.unwrap();
    assert!(partial.rejected_data_points >= 9, "{}", partial.error_message);
    let request = write_request(1, vec![series("new", &[NOW_SECS, NOW_SECS + 1])]);
    let answer = served.ingest().await.write(request).await.unwrap().into_inner();
    assert_eq!((answer.samples, answer.rejected[0].items), (0, 2));
    let is = |t: &&hindcast_env::fuzz::Target| t.name == "ingest-remote-write-2";
    let seeds = (hindcast_ingest::fuzz::TARGETS.iter().find(is).unwrap().seeds)();
    expect![[r#"400 0 0 0 retry: false 7 refused: lag{instance="a:1", job="j"} (1): it would be a new series, and the tenant has its 5 active ones (active_series_max in the file of limits): label "request_id" has 4 values; up{instance="a:1", job="j"} (3): it would be a new series, and the tenant has its 5 active ones (active_series_max in the file of limits): label "request_id" has 4 values; lag{instance="a:1", job="j"} (3): it would be a new series, and the tenant has its 5 active ones (active_series_max in the file of limits): label "request_id" has 4 values"#]].assert_eq(&remote_write_2(&served, &seeds[0]).await);
    expect![[r#"400 {"code":"invalid","message":"partial write: 1 refused: a_v (1): it would be a new series, and the tenant has its 5 active ones (active_series_max in the file of limits): label \"request_id\" has 4 values dropped=1"}"#]].assert_eq(&told(&served, "/api/v2/write", &[], "a v=1").await);
    assert_eq!(
        served.counted("hindcast_ingest_refused_items_total", "too_many_series"),
        served.state.tenants.refused()[&("default".to_owned(), "active_series_max")].items
    );

    // What a shard finds stale is laid out again, and what was refused stays so.
    served.recorder.shard.epoch.fetch_add(1, Ordering::SeqCst);
    assert!(write(many(0..9)).await.starts_with("400 4 refused"));
    assert_eq!(served.recorder.shard.stale.load(Ordering::SeqCst), 1);
    let last = served.recorder.batches.lock().last().unwrap().series.len();
    assert_eq!(last, 5);
    served.recorder.shard.epoch.fetch_sub(1, Ordering::SeqCst);

    // A higher limit holds at once. (What was said of metrics has become series, too.)
    let active = served.state.tenants.series(served.recorder.ids())[&TenantId::default()].active;
    let higher = format!("default: {{active_series_max: {}}}", active + 1);
    served.state.limit(parse("limits.yml", &higher).unwrap());
    assert!(write(many(0..8)).await.starts_with("400 2 refused"));
    // Other tenants have their own count.
    let other = [PROTOBUF, ("content-encoding", "snappy"), ("x-scope-orgid", "other")];
    assert_eq!(told(&served, "/api/v1/write", &other, snappy(&many(0..6))).await, "204");
}

//! The HTTP faces, request by request, as clients see them.

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use expect_test::{Expect, expect};
use hindcast_env::clock::Clock;
use hindcast_env::io::SystemClock;
use hindcast_model::{Labels, LogLine, Owner, Sample, TenantId, TimestampNs};
use hindcast_query::io::{loki_router, prometheus_router};
use hindcast_query::testing::OneShard;
use hindcast_query::{Engine, Limits};
use http_body_util::BodyExt;
use std::sync::Arc;
use tower::ServiceExt;

fn app() -> Router {
    let (shard, tenant) = (OneShard::new(), TenantId::default());
    let sample = |s: i64, value| Sample {
        at: TimestampNs::from_secs(s),
        value,
    };
    shard.add(
        &tenant,
        Labels::from_pairs([("__name__", "up"), ("job", "a")]),
        [sample(0, 1.0), sample(60, 0.0)],
    );
    shard.add(
        &tenant,
        Labels::from_pairs([("__name__", "odd"), ("q", "\"")]),
        [sample(0, f64::INFINITY), sample(60, 1e-9)],
    );
    let line = |s: i64, text: &'static str, metadata: &[(&str, &str)]| LogLine {
        at: TimestampNs::from_secs(s),
        line: text.into(),
        metadata: metadata
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect(),
    };
    let lines = [
        line(10, "ok", &[]),
        line(20, "error: disk", &[("trace", "t1")]),
        line(30, "error: net", &[]),
    ];
    shard.add_lines(&tenant, Labels::from_pairs([("app", "db")]), Owner::None, lines);
    let engine = Arc::new(Engine::new(Arc::new(shard), Limits::default()));
    prometheus_router(engine.clone()).merge(loki_router(engine))
}

/// Each line: `GET path` or `POST path body`, or `GET @tenant path`.
fn check(requests: &str, expected: Expect) {
    check_on(app(), requests, expected);
}

fn check_on(app: Router, requests: &str, expected: Expect) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut shown = String::new();
    for request in requests.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let mut words = request.split(' ').peekable();
        let method = words.next().unwrap();
        let mut built = Request::builder().method(method);
        if let Some(tenant) = words.peek().and_then(|w| w.strip_prefix('@')) {
            built = built.header("X-Scope-OrgID", tenant);
            words.next();
        }
        built = built.uri(words.next().unwrap());
        let body = words.next().unwrap_or("").to_owned();
        if method == "POST" {
            built = built.header("content-type", "application/x-www-form-urlencoded");
        }
        let response = runtime
            .block_on(app.clone().oneshot(built.body(Body::from(body)).unwrap()))
            .unwrap();
        let status = response.status().as_u16();
        let bytes = runtime.block_on(response.into_body().collect()).unwrap().to_bytes();
        shown.push_str(&format!(
            "{request}\n    {status} {}\n",
            String::from_utf8_lossy(&bytes)
        ));
    }
    expected.assert_eq(&shown);
}

/// A native histogram beside a float series and a stream of logs.
fn app_with_histograms() -> Router {
    let (shard, tenant) = (OneShard::new(), TenantId::default());
    let at = TimestampNs::from_secs;
    let float = Sample { at: at(0), value: 1.0 };
    shard.add(&tenant, Labels::from_pairs([("__name__", "up"), ("job", "a")]), [float]);
    let line = |s: i64, text: &'static str| LogLine {
        at: at(s),
        line: text.into(),
        metadata: vec![],
    };
    let stream = Labels::from_pairs([("__name__", "h"), ("hindcast_trace", "histogram"), ("path", "/")]);
    let samples = [
        line(0, "h1 s=0 c=9 sum=12.5 zt=0.001 zc=1 p=0:2,3,0,1 n=0:2"),
        line(60, "h1 s=0"),
        line(120, "what?"),
    ];
    shard.add_lines(&tenant, stream, Owner::None, samples);
    shard.add_lines(
        &tenant,
        Labels::from_pairs([("app", "db")]),
        Owner::None,
        [line(10, "ok")],
    );
    let engine = Arc::new(Engine::new(Arc::new(shard), Limits::default()));
    prometheus_router(engine.clone()).merge(loki_router(engine))
}

#[test]
fn native_histograms_are_answered_as_prometheus_does_and_are_no_logs() {
    check_on(
        app_with_histograms(),
        "
        GET /api/v1/query?query=h&time=0
        GET /api/v1/query_range?query=h&start=0&end=60&step=60
        GET /api/v1/query?query={__name__=~%22h|up%22}[2m]&time=60
        GET /api/v1/query?query=histogram_count(h)&time=60
        GET /api/v1/query?query=count_over_time(h[5m])&time=120
        GET /api/v1/query?query={hindcast_trace=%22x%22}&time=0
        GET /api/v1/series?match[]={__name__=~%22.%2B%22,path!=%22x%22}
        GET /api/v1/labels
        GET /api/v1/label/__name__/values
        GET /api/v1/label/hindcast_trace/values
        GET /loki/api/v1/labels?start=0&end=100
        GET /loki/api/v1/label/app/values?start=0&end=100
        GET /loki/api/v1/series?match[]={path=%22/%22}&match[]={hindcast_trace=%22span%22}&start=0&end=100
        GET /loki/api/v1/series?match[]={app=%22db%22}&start=0&end=100
        GET /loki/api/v1/query_range?query={path=%22/%22}&start=0&end=100
        GET /loki/api/v1/query_range?query={hindcast_trace=%22histogram%22}&start=0&end=50
        GET /federate?match[]={__name__=~%22.%2B%22,path!=%22x%22}&time=60
        ",
        expect![[r#"
            GET /api/v1/query?query=h&time=0
                200 {"status":"success","data":{"resultType":"vector","result":[{"metric":{"__name__":"h","path":"/"},"histogram":[0,{"count":"9","sum":"12.5","buckets":[[1,"-1","-0.5","2"],[3,"-0.001","0.001","1"],[0,"0.5","1","2"],[0,"1","2","3"],[0,"4","8","1"]]}]}]},"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /api/v1/query_range?query=h&start=0&end=60&step=60
                200 {"status":"success","data":{"resultType":"matrix","result":[{"metric":{"__name__":"h","path":"/"},"histograms":[[0,{"count":"9","sum":"12.5","buckets":[[1,"-1","-0.5","2"],[3,"-0.001","0.001","1"],[0,"0.5","1","2"],[0,"1","2","3"],[0,"4","8","1"]]}],[60,{"count":"0","sum":"0"}]]}]},"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /api/v1/query?query={__name__=~%22h|up%22}[2m]&time=60
                200 {"status":"success","data":{"resultType":"matrix","result":[{"metric":{"__name__":"h","path":"/"},"histograms":[[0,{"count":"9","sum":"12.5","buckets":[[1,"-1","-0.5","2"],[3,"-0.001","0.001","1"],[0,"0.5","1","2"],[0,"1","2","3"],[0,"4","8","1"]]}],[60,{"count":"0","sum":"0"}]]},{"metric":{"__name__":"up","job":"a"},"values":[[0,"1"]]}]},"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /api/v1/query?query=histogram_count(h)&time=60
                200 {"status":"success","data":{"resultType":"vector","result":[{"metric":{"path":"/"},"value":[60,"0"]}]},"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /api/v1/query?query=count_over_time(h[5m])&time=120
                200 {"status":"success","data":{"resultType":"vector","result":[{"metric":{"path":"/"},"value":[120,"2"]}]},"warnings":["PromQL warning: 1 native histograms could not be read and were left out"],"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /api/v1/query?query={hindcast_trace=%22x%22}&time=0
                200 {"status":"success","data":{"resultType":"vector","result":[]},"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /api/v1/series?match[]={__name__=~%22.%2B%22,path!=%22x%22}
                200 {"status":"success","data":[{"__name__":"h","path":"/"},{"__name__":"up","job":"a"}],"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /api/v1/labels
                200 {"status":"success","data":["__name__","job","path"],"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /api/v1/label/__name__/values
                200 {"status":"success","data":["h","up"],"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /api/v1/label/hindcast_trace/values
                200 {"status":"success","data":[],"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /loki/api/v1/labels?start=0&end=100
                200 {"status":"success","data":["app"],"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /loki/api/v1/label/app/values?start=0&end=100
                200 {"status":"success","data":["db"],"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /loki/api/v1/series?match[]={path=%22/%22}&match[]={hindcast_trace=%22span%22}&start=0&end=100
                200 {"status":"success","data":[],"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /loki/api/v1/series?match[]={app=%22db%22}&start=0&end=100
                200 {"status":"success","data":[{"app":"db"}],"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /loki/api/v1/query_range?query={path=%22/%22}&start=0&end=100
                200 {"status":"success","data":{"resultType":"streams","result":[],"stats":{"summary":{"totalLinesProcessed":0,"totalBytesProcessed":0,"totalEntriesReturned":0}}},"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /loki/api/v1/query_range?query={hindcast_trace=%22histogram%22}&start=0&end=50
                200 {"status":"success","data":{"resultType":"streams","result":[{"stream":{"__name__":"h","hindcast_trace":"histogram","path":"/"},"values":[["0","h1 s=0 c=9 sum=12.5 zt=0.001 zc=1 p=0:2,3,0,1 n=0:2"]]}],"stats":{"summary":{"totalLinesProcessed":1,"totalBytesProcessed":51,"totalEntriesReturned":1}}},"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /federate?match[]={__name__=~%22.%2B%22,path!=%22x%22}&time=60
                200 # TYPE up untyped
            up{job="a",instance=""} 1 0

        "#]],
    );
}

#[test]
fn prometheus_clients_get_prometheus_envelopes() {
    check(
        "
        GET /api/v1/query?query=up&time=60
        POST /api/v1/query query=odd&time=1970-01-01T00:01:00.5Z
        GET /api/v1/query?query=1%2B1&time=1.5
        GET /api/v1/query?query=%22text%22&time=0
        GET /api/v1/query_range?query=up&start=0&end=120&step=1m
        GET /api/v1/query?query=rate(up[5m])&time=60
        GET /api/v1/series?match[]=up
        GET /api/v1/labels
        GET /api/v1/label/job/values?start=0&end=10
        GET /api/v1/labels?limit=1
        GET @other /api/v1/labels
        ",
        expect![[r#"
            GET /api/v1/query?query=up&time=60
                200 {"status":"success","data":{"resultType":"vector","result":[{"metric":{"__name__":"up","job":"a"},"value":[60,"0"]}]},"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            POST /api/v1/query query=odd&time=1970-01-01T00:01:00.5Z
                200 {"status":"success","data":{"resultType":"vector","result":[{"metric":{"__name__":"odd","q":"\""},"value":[60.500,"1e-09"]}]},"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /api/v1/query?query=1%2B1&time=1.5
                200 {"status":"success","data":{"resultType":"scalar","result":[1.500,"2"]},"completeness":{"complete":true,"missing":[],"positions":{}}}
            GET /api/v1/query?query=%22text%22&time=0
                200 {"status":"success","data":{"resultType":"string","result":[0,"text"]},"completeness":{"complete":true,"missing":[],"positions":{}}}
            GET /api/v1/query_range?query=up&start=0&end=120&step=1m
                200 {"status":"success","data":{"resultType":"matrix","result":[{"metric":{"__name__":"up","job":"a"},"values":[[0,"1"],[60,"0"],[120,"0"]]}]},"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /api/v1/query?query=rate(up[5m])&time=60
                200 {"status":"success","data":{"resultType":"vector","result":[{"metric":{"job":"a"},"value":[60,"0"]}]},"infos":["PromQL info: metric might not be a counter, name does not end in _total/_sum/_count/_bucket: \"up\""],"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /api/v1/series?match[]=up
                200 {"status":"success","data":[{"__name__":"up","job":"a"}],"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /api/v1/labels
                200 {"status":"success","data":["__name__","job","q"],"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /api/v1/label/job/values?start=0&end=10
                200 {"status":"success","data":["a"],"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /api/v1/labels?limit=1
                200 {"status":"success","data":["__name__"],"warnings":["results truncated due to limit"],"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET @other /api/v1/labels
                200 {"status":"success","data":[],"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
        "#]],
    );
}

#[test]
fn prometheus_clients_get_prometheus_errors() {
    check(
        "
        GET /api/v1/query?query=up%7B&time=0
        GET /api/v1/query?time=0
        GET /api/v1/query?query=up&time=x
        GET /api/v1/query_range?query=up&start=0&end=10&step=0
        GET /api/v1/query_range?query=up&start=0&end=10
        GET /api/v1/query?query=topk(NaN,up)&time=0
        GET /api/v1/series
        GET @.. /api/v1/labels
        ",
        expect![[r#"
            GET /api/v1/query?query=up%7B&time=0
                400 {"status":"error","errorType":"bad_data","error":"invalid parameter \"query\": 1:4: parse error: unexpected end of input in label matching, expected identifier or \"}\""}
            GET /api/v1/query?time=0
                400 {"status":"error","errorType":"bad_data","error":"invalid parameter \"query\": it is missing"}
            GET /api/v1/query?query=up&time=x
                400 {"status":"error","errorType":"bad_data","error":"invalid parameter \"time\": cannot parse \"x\" to a valid timestamp"}
            GET /api/v1/query_range?query=up&start=0&end=10&step=0
                400 {"status":"error","errorType":"bad_data","error":"zero or negative query resolution step widths are not accepted. Try a positive integer"}
            GET /api/v1/query_range?query=up&start=0&end=10
                400 {"status":"error","errorType":"bad_data","error":"invalid parameter \"step\": it is missing"}
            GET /api/v1/query?query=topk(NaN,up)&time=0
                422 {"status":"error","errorType":"execution","error":"Parameter value is NaN"}
            GET /api/v1/series
                400 {"status":"error","errorType":"bad_data","error":"no match[] parameter provided"}
            GET @.. /api/v1/labels
                400 {"status":"error","errorType":"bad_data","error":"\"..\" is not a tenant name: use 1 to 128 of the characters A-Z a-z 0-9 _ . -"}
        "#]],
    );
}

#[test]
fn grafana_looks_around_in_logs() {
    check(
        "
        GET /loki/api/v1/query_range?query=%7Bapp=%22db%22%7D%20%7C%20pattern%20%22%3Ckind%3E:%20%3Cwhat%3E%22&start=0&end=31&limit=2
        GET /loki/api/v1/query_range?query=%7Bapp=%22db%22%7D%20%7C%20josn&start=0&end=31
        GET /loki/api/v1/query?query=sum(count_over_time(%7Bapp=%22db%22%7D%20%7C%20json[1m]))&time=31
        GET /loki/api/v1/index/stats?query=%7Bapp=%22db%22%7D&start=0&end=31
        GET /loki/api/v1/index/volume?query=%7Bapp=~%22.%2B%22%7D&start=0&end=31
        GET /loki/api/v1/index/volume?query=%7Bapp=~%22.%2B%22%7D&start=0&end=31&aggregateBy=labels
        GET /loki/api/v1/index/volume_range?query=%7Bapp=~%22.%2B%22%7D&start=0&end=40&step=20
        GET /loki/api/v1/patterns?query=%7Bapp=%22db%22%7D&start=0&end=31&step=15
        GET /loki/api/v1/detected_labels?start=0&end=31
        GET /loki/api/v1/detected_fields?query=%7Bapp=%22db%22%7D&start=0&end=31
        GET /loki/api/v1/detected_field/trace/values?query=%7Bapp=%22db%22%7D&start=0&end=31
        GET /loki/api/v1/format_query?query=sum(rate(%7Bapp=%22db%22%7D%7Clogfmt%7Ca%3E1s[60s]))%2B1
        GET /loki/api/v1/status/buildinfo
        ",
        expect![[r#"
            GET /loki/api/v1/query_range?query=%7Bapp=%22db%22%7D%20%7C%20pattern%20%22%3Ckind%3E:%20%3Cwhat%3E%22&start=0&end=31&limit=2
                200 {"status":"success","data":{"resultType":"streams","result":[{"stream":{"app":"db","kind":"error","trace":"t1","what":"disk"},"values":[["20000000000","error: disk"]]},{"stream":{"app":"db","kind":"error","what":"net"},"values":[["30000000000","error: net"]]}],"stats":{"summary":{"totalLinesProcessed":3,"totalBytesProcessed":23,"totalEntriesReturned":2}}},"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /loki/api/v1/query_range?query=%7Bapp=%22db%22%7D%20%7C%20josn&start=0&end=31
                400 1:14: parse error: "josn" is no stage, and a label is compared with something
            GET /loki/api/v1/query?query=sum(count_over_time(%7Bapp=%22db%22%7D%20%7C%20json[1m]))&time=31
                400 pipeline error: "JSONParserErr" (expected an object) for the line at 10.000 of {app="db"}; to leave such lines out, add | __error__=""
            GET /loki/api/v1/index/stats?query=%7Bapp=%22db%22%7D&start=0&end=31
                200 {"streams":1,"chunks":1,"entries":3,"bytes":23,"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /loki/api/v1/index/volume?query=%7Bapp=~%22.%2B%22%7D&start=0&end=31
                200 {"status":"success","data":{"resultType":"vector","result":[{"metric":{"app":"db"},"value":[31.000,"23"]}],"stats":{}},"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /loki/api/v1/index/volume?query=%7Bapp=~%22.%2B%22%7D&start=0&end=31&aggregateBy=labels
                200 {"status":"success","data":{"resultType":"vector","result":[{"metric":{"app":""},"value":[31.000,"23"]}],"stats":{}},"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /loki/api/v1/index/volume_range?query=%7Bapp=~%22.%2B%22%7D&start=0&end=40&step=20
                200 {"status":"success","data":{"resultType":"matrix","result":[{"metric":{"app":"db"},"values":[[20.000,"13"],[40.000,"10"]]}],"stats":{}},"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /loki/api/v1/patterns?query=%7Bapp=%22db%22%7D&start=0&end=31&step=15
                200 {"status":"success","data":[{"pattern":"error: disk","samples":[[15,1]]},{"pattern":"error: net","samples":[[30,1]]},{"pattern":"ok","samples":[[0,1]]}],"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /loki/api/v1/detected_labels?start=0&end=31
                200 {"detectedLabels":[{"label":"app","cardinality":1}],"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /loki/api/v1/detected_fields?query=%7Bapp=%22db%22%7D&start=0&end=31
                200 {"fields":[{"label":"trace","type":"string","cardinality":1,"parsers":null}],"limit":1000,"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /loki/api/v1/detected_field/trace/values?query=%7Bapp=%22db%22%7D&start=0&end=31
                200 {"values":["t1"],"limit":1000,"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /loki/api/v1/format_query?query=sum(rate(%7Bapp=%22db%22%7D%7Clogfmt%7Ca%3E1s[60s]))%2B1
                200 {"status":"success","data":"sum(rate({app=\"db\"} | logfmt | a > 1s [1m])) + 1"}
            GET /loki/api/v1/status/buildinfo
                200 {"version":"3.5.0","revision":"","branch":"","buildUser":"","buildDate":"","goVersion":""}
        "#]],
    );
}

#[test]
fn loki_clients_get_lokis_shapes() {
    check(
        "
        GET /loki/api/v1/query_range?query=%7Bapp=%22db%22%7D&start=0&end=31
        GET /loki/api/v1/query_range?query=%7Bapp=%22db%22%7D%20%7C=%20%22error%22&start=0&end=30&limit=1&direction=forward
        GET /loki/api/v1/query_range?query=sum(count_over_time(%7Bapp=%22db%22%7D[20s]))&start=20&end=40&step=20
        GET /loki/api/v1/query?query=rate(%7Bapp=%22db%22%7D[10s])&time=30
        GET /loki/api/v1/query?query=%7Bapp=%22db%22%7D&time=30
        GET /loki/api/v1/query?query=%7Bapp=%22db%22&time=30
        GET /loki/api/v1/labels?start=0&end=100
        GET /loki/api/v1/label/app/values?start=0&end=100
        GET /loki/api/v1/series?match[]=%7Bapp=%22db%22%7D&start=0&end=100
        ",
        expect![[r#"
            GET /loki/api/v1/query_range?query=%7Bapp=%22db%22%7D&start=0&end=31
                200 {"status":"success","data":{"resultType":"streams","result":[{"stream":{"app":"db"},"values":[["30000000000","error: net"],["10000000000","ok"]]},{"stream":{"app":"db","trace":"t1"},"values":[["20000000000","error: disk"]]}],"stats":{"summary":{"totalLinesProcessed":3,"totalBytesProcessed":23,"totalEntriesReturned":3}}},"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /loki/api/v1/query_range?query=%7Bapp=%22db%22%7D%20%7C=%20%22error%22&start=0&end=30&limit=1&direction=forward
                200 {"status":"success","data":{"resultType":"streams","result":[{"stream":{"app":"db","trace":"t1"},"values":[["20000000000","error: disk"]]}],"stats":{"summary":{"totalLinesProcessed":1,"totalBytesProcessed":11,"totalEntriesReturned":1}}},"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /loki/api/v1/query_range?query=sum(count_over_time(%7Bapp=%22db%22%7D[20s]))&start=20&end=40&step=20
                200 {"status":"success","data":{"resultType":"matrix","result":[{"metric":{},"values":[[20,"2"],[40,"1"]]}],"stats":{"summary":{"totalLinesProcessed":0,"totalBytesProcessed":0,"totalEntriesReturned":0}}},"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /loki/api/v1/query?query=rate(%7Bapp=%22db%22%7D[10s])&time=30
                200 {"status":"success","data":{"resultType":"vector","result":[{"metric":{"app":"db"},"value":[30,"0.1"]}],"stats":{"summary":{"totalLinesProcessed":0,"totalBytesProcessed":0,"totalEntriesReturned":0}}},"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /loki/api/v1/query?query=%7Bapp=%22db%22%7D&time=30
                400 log queries are not supported as an instant query type, use query_range
            GET /loki/api/v1/query?query=%7Bapp=%22db%22&time=30
                400 1:10: parse error: unexpected end of input, expected "}"
            GET /loki/api/v1/labels?start=0&end=100
                200 {"status":"success","data":["app"],"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /loki/api/v1/label/app/values?start=0&end=100
                200 {"status":"success","data":["db"],"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
            GET /loki/api/v1/series?match[]=%7Bapp=%22db%22%7D&start=0&end=100
                200 {"status":"success","data":[{"app":"db"}],"completeness":{"complete":true,"missing":[],"positions":{"1":3}}}
        "#]],
    );
}

#[test]
fn another_prometheus_scrapes_the_newest_samples() {
    check(
        "
        GET /federate?match[]=up&match[]=%7Bjob%3D%22a%22%7D&match[]=%7Bq%3D~%22.%2B%22%7D&time=61
        GET /federate?match[]=up&time=400
        GET /federate?time=61
        GET /federate?match[]=sum(up)&time=61
        ",
        expect![[r#"
            GET /federate?match[]=up&match[]=%7Bjob%3D%22a%22%7D&match[]=%7Bq%3D~%22.%2B%22%7D&time=61
                200 # TYPE odd untyped
            odd{q="\"",instance=""} 1e-09 60000
            # TYPE up untyped
            up{job="a",instance=""} 0 60000

            GET /federate?match[]=up&time=400
                200 
            GET /federate?time=61
                200 
            GET /federate?match[]=sum(up)&time=61
                400 1:1: parse error: expected a series selector
        "#]],
    );
}

#[test]
fn an_expression_is_written_as_this_program_writes_it() {
    check(
        "
        GET /api/v1/format_query?query=sum+by(job)(rate(up[5m]))%3E1
        GET /api/v1/format_query?query=sum(
        ",
        expect![[r#"
            GET /api/v1/format_query?query=sum+by(job)(rate(up[5m]))%3E1
                200 {"status":"success","data":"sum by (job) (rate(up[5m])) > 1"}
            GET /api/v1/format_query?query=sum(
                400 {"status":"error","errorType":"bad_data","error":"invalid parameter \"query\": 1:5: parse error: unexpected end of input"}
        "#]],
    );
}

#[tokio::test]
async fn a_client_follows_lines_as_they_come() {
    use futures::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::Message;
    let shard = Arc::new(OneShard::new());
    let put = |text: &'static str| {
        let line = LogLine {
            at: SystemClock::new().now(),
            line: text.into(),
            metadata: vec![],
        };
        let labels = Labels::from_pairs([("app", "db")]);
        shard.add_lines(&TenantId::default(), labels, Owner::None, [line]);
    };
    put("first");
    put("not an e");
    put("error: before");
    let app = loki_router(Arc::new(Engine::new(shard.clone(), Limits::default())));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = hyper_util::service::TowerToHyperService::new(app);
        let stream = hyper_util::rt::TokioIo::new(stream);
        let server = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
        server.serve_connection_with_upgrades(stream, service).await.unwrap();
    });
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let url = format!("ws://{address}/loki/api/v1/tail?query=%7Bapp%3D%22db%22%7D%7C%3D%22error%22&limit=1");
    let (mut socket, answer) = tokio_tungstenite::client_async(url, stream).await.unwrap();
    assert_eq!(answer.status().as_u16(), 101);
    let mut next = async || loop {
        let message = tokio::time::timeout(std::time::Duration::from_secs(20), socket.next()).await;
        match message.unwrap().unwrap().unwrap() {
            Message::Text(text) => {
                let told: serde_json::Value = serde_json::from_str(&text).unwrap();
                assert_eq!(told["streams"][0]["stream"]["app"], "db");
                break told["streams"][0]["values"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|v| v[1].to_string())
                    .collect::<Vec<_>>();
            }
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(next().await, ["\"error: before\""]);
    put("fine");
    put("error: now");
    assert_eq!(next().await, ["\"error: now\""]);
    put("error: later");
    assert_eq!(next().await, ["\"error: later\""]);
    socket.send(Message::Close(None)).await.unwrap();
    while let Some(Ok(message)) = socket.next().await {
        assert!(message.is_close() || message.is_ping(), "{message:?}");
    }
}

#[test]
fn whoever_cannot_follow_is_told_why() {
    check(
        "
        GET /loki/api/v1/tail?query=%7Bapp%3D%22db%22%7D
        ",
        expect![[r#"
            GET /loki/api/v1/tail?query=%7Bapp%3D%22db%22%7D
                400 this address speaks WebSocket (version 13): follow it with `logcli query --tail`, or ask query_range
        "#]],
    );
}

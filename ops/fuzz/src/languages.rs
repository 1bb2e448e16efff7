//! The query languages as fuzz targets. What parses must print to text that parses to the same tree.

use hindcast_env::fuzz::Target;

pub const TARGETS: &[Target] = &[
    Target {
        name: "query-promql",
        run: promql,
        seeds: promql_seeds,
    },
    Target {
        name: "query-logql",
        run: logql,
        seeds: logql_seeds,
    },
];

fn promql(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(tree) = hindcast_promql::parse(&text) {
        let printed = tree.to_string();
        match hindcast_promql::parse(&printed) {
            // NaN is unequal to itself: printed once more, the trees are the same texts.
            Ok(again) => assert_eq!(again.to_string(), printed, "{text:?} prints to another tree"),
            Err(e) => panic!("{text:?} prints to {printed:?}, which does not parse: {e}"),
        }
    }
    let _ = hindcast_promql::parse_selector(&text);
}

fn promql_seeds() -> Vec<Vec<u8>> {
    let texts = [
        r#"sum by (job, instance) (rate(http_requests_total{code=~"5..", job!="x"}[5m] offset -1m)) / 2 ^ 3"#,
        r#"histogram_quantile(0.99, sum without (pod) (increase(d_bucket[1h30m]))) > bool 0.5 and on (a) up"#,
        r#"topk(3, avg_over_time(m[10m:1m] @ 1700000000.5)) unless ignoring (b) group_left (c) -{__name__="é가"}"#,
        r#"label_replace(up, "a", "$1", "b", "(.*)") or vector(NaN) == +Inf"#,
        "count_values(\"v\", {\"quoted.name\", a='\\x41\\n'}) # comment\n",
        "1 + 2 * -3 % 4 - (0x1F) <= 1e-9",
    ];
    texts.map(|t| t.as_bytes().to_vec()).into()
}

fn logql(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = hindcast_logql::parse(&text);
    let _ = hindcast_logql::parse_selector(&text);
}

fn logql_seeds() -> Vec<Vec<u8>> {
    let texts = [
        r#"{job="app", host=~"a|b"} |= "error" != `x` |~ "(?i)time.?out" !~ "ok""#,
        r#"sum by (job) (rate({job="app"} |= "é가" [5m] offset 1m)) / 100 > bool 0.5"#,
        r#"topk(3, count_over_time({a!="b"}[1h])) or vector(1)"#,
        r#"sort_desc(absent_over_time({a="b"}[1m])) - bytes_rate({a="b"}[1m])"#,
    ];
    texts.map(|t| t.as_bytes().to_vec()).into()
}

//! Lines on their way through stages, and texts on their way to trees and back: scripts and properties.

use super::*;
use crate::{Expr, LogSelector, parse};
use expect_test::{Expect, expect};
use proptest::prelude::*;

fn selector(stages: &str) -> LogSelector {
    match parse(&format!("{{app=\"a\"}} {stages}")) {
        Ok(Expr::Lines(selector)) => selector,
        other => panic!("{stages}: {other:?}"),
    }
}

/// The stages on lines of one stream with one piece of metadata: the line and its labels, or that it fell.
fn check(stages: &str, lines: &[&str], expected: Expect) {
    let stream = Labels::from_pairs([("app", "api"), ("env", "prod")]);
    let mut pipeline = Pipeline::new(&selector(stages).stages, None, TimestampNs::from_ms(2000)).unwrap();
    pipeline.begin_stream(&stream);
    let metadata = [("trace".to_owned(), "t1".to_owned())];
    let mut shown = String::new();
    for line in lines {
        match pipeline.pass(TimestampNs::from_ms(1000), line.as_bytes(), &metadata) {
            None => shown.push_str("-\n"),
            Some(Passed { line, fields }) => {
                let labels = fields.labels(|_, _| true);
                let labels: Vec<String> = labels.iter().map(|(n, v)| format!("{n}={v:?}")).collect();
                shown.push_str(&format!("{} {}\n", String::from_utf8_lossy(line), labels.join(" ")));
            }
        }
    }
    expected.assert_eq(&shown);
}

#[test]
fn json_makes_labels_of_everything_or_of_what_paths_lead_to() {
    let lines = [
        r#"{"a":"x\ny","env":"inner","trace":"t2","n":1.50,"o":{"p-q":{"r":true}},"l":[1,2],"z":null,"1d":"e"}"#,
        r#"{"a":"kept","b":"#,
        "no json",
    ];
    check(
        "| json",
        &lines,
        expect![[r#"
        {"a":"x\ny","env":"inner","trace":"t2","n":1.50,"o":{"p-q":{"r":true}},"l":[1,2],"z":null,"1d":"e"} _1d="e" a="x\ny" app="api" env="prod" env_extracted="inner" n="1.50" o_p_q_r="true" trace="t1" trace_extracted="t2"
        {"a":"kept","b": __error__="JSONParserErr" __error_details__="expected a value" a="kept" app="api" env="prod" trace="t1"
        no json __error__="JSONParserErr" __error_details__="expected an object" app="api" env="prod" trace="t1"
    "#]],
    );
    check(
        r#"| json first="l[0]", r="o[\"p-q\"].r", whole="o", none="x.y", a"#,
        &lines,
        expect![[r#"
            {"a":"x\ny","env":"inner","trace":"t2","n":1.50,"o":{"p-q":{"r":true}},"l":[1,2],"z":null,"1d":"e"} a="x\ny" app="api" env="prod" first="1" r="true" trace="t1" whole="{\"p-q\":{\"r\":true}}"
            {"a":"kept","b": __error__="JSONParserErr" __error_details__="expected a value" app="api" env="prod" trace="t1"
            no json __error__="JSONParserErr" __error_details__="expected an object or an array" app="api" env="prod" trace="t1"
        "#]],
    );
}

#[test]
fn logfmt_skips_what_it_cannot_read_unless_it_is_strict() {
    let lines = [
        r#"level=warn dur=1.5s msg="a \"b\"" flag empty= env=inner x-y=1"#,
        r#"a=1 b="c d=2 e=f=g h=3"#,
        "a=1 =2 b=3",
    ];
    check(
        "| logfmt",
        &lines,
        expect![[r#"
        level=warn dur=1.5s msg="a \"b\"" flag empty= env=inner x-y=1 app="api" dur="1.5s" env="prod" env_extracted="inner" level="warn" msg="a \"b\"" trace="t1" x_y="1"
        a=1 b="c d=2 e=f=g h=3 a="1" app="api" env="prod" trace="t1"
        a=1 =2 b=3 a="1" app="api" b="3" env="prod" trace="t1"
    "#]],
    );
    check(
        "| logfmt --strict",
        &lines,
        expect![[r#"
        level=warn dur=1.5s msg="a \"b\"" flag empty= env=inner x-y=1 app="api" dur="1.5s" env="prod" env_extracted="inner" level="warn" msg="a \"b\"" trace="t1" x_y="1"
        a=1 b="c d=2 e=f=g h=3 __error__="LogfmtParserErr" __error_details__="logfmt syntax error at pos 23 : unterminated quoted value" a="1" app="api" env="prod" trace="t1"
        a=1 =2 b=3 __error__="LogfmtParserErr" __error_details__="logfmt syntax error at pos 5 : unexpected '='" a="1" app="api" env="prod" trace="t1"
    "#]],
    );
    check(
        "| logfmt level, took=\"dur\"",
        &lines,
        expect![[r#"
        level=warn dur=1.5s msg="a \"b\"" flag empty= env=inner x-y=1 app="api" env="prod" level="warn" took="1.5s" trace="t1"
        a=1 b="c d=2 e=f=g h=3 app="api" env="prod" trace="t1"
        a=1 =2 b=3 app="api" env="prod" trace="t1"
    "#]],
    );
}

#[test]
fn patterns_and_regexes_capture_by_name() {
    let lines = ["10.0.0.1 - bob GET /a", "10.0.0.2 no more"];
    check(
        "| pattern `<ip> - <_> <method> <path>`",
        &lines,
        expect![[r#"
        10.0.0.1 - bob GET /a app="api" env="prod" ip="10.0.0.1" method="GET" path="/a" trace="t1"
        10.0.0.2 no more app="api" env="prod" ip="10.0.0.2 no more" trace="t1"
    "#]],
    );
    check(
        "| regexp `(?P<ip>[0-9.]+) - (?P<user>[a-z]*)`",
        &lines,
        expect![[r#"
        10.0.0.1 - bob GET /a app="api" env="prod" ip="10.0.0.1" trace="t1" user="bob"
        10.0.0.2 no more app="api" env="prod" trace="t1"
    "#]],
    );
    check(
        "|> `<_> - <_> GET <_>`",
        &lines,
        expect![[r#"
        10.0.0.1 - bob GET /a app="api" env="prod" trace="t1"
        -
    "#]],
    );
    check(
        "!> `<_> - <_> GET <_>` |= ip(\"10.0.0.0/24\")",
        &lines,
        expect![[r#"
        -
        10.0.0.2 no more app="api" env="prod" trace="t1"
    "#]],
    );
}

#[test]
fn unpack_gives_back_the_line_that_was_packed() {
    check(
        "| unpack",
        &[r#"{"_entry":"the line","pod":"p1","env":"other","n":1}"#, "not packed"],
        expect![[r#"
            the line app="api" env="prod" env_extracted="other" pod="p1" trace="t1"
            not packed __error__="JSONParserErr" __error_details__="expected an object" app="api" env="prod" trace="t1"
        "#]],
    );
}

#[test]
fn label_filters_compare_texts_numbers_lengths_and_sizes() {
    let lines = [
        "level=error dur=1.5s size=2KB n=7",
        "level=info dur=20ms size=10B n=x",
        "level=warn",
    ];
    check(
        "| logfmt | level=\"error\" or dur < 1s and size < 1KB",
        &lines,
        expect![[r#"
        level=error dur=1.5s size=2KB n=7 app="api" dur="1.5s" env="prod" level="error" n="7" size="2KB" trace="t1"
        level=info dur=20ms size=10B n=x app="api" dur="20ms" env="prod" level="info" n="x" size="10B" trace="t1"
        -
    "#]],
    );
    check(
        "| logfmt | n > 5",
        &lines,
        expect![[r#"
        level=error dur=1.5s size=2KB n=7 app="api" dur="1.5s" env="prod" level="error" n="7" size="2KB" trace="t1"
        level=info dur=20ms size=10B n=x __error__="LabelFilterErr" __error_details__="the label n is no number: \"x\"" app="api" dur="20ms" env="prod" level="info" n="x" size="10B" trace="t1"
        -
    "#]],
    );
    check(
        "| logfmt | n > 5 | __error__=\"\"",
        &lines,
        expect![[r#"
        level=error dur=1.5s size=2KB n=7 app="api" dur="1.5s" env="prod" level="error" n="7" size="2KB" trace="t1"
        -
        -
    "#]],
    );
    check(
        "| logfmt | level=~\"e.*|w.*\", level!=\"warn\"",
        &lines,
        expect![[r#"
        level=error dur=1.5s size=2KB n=7 app="api" dur="1.5s" env="prod" level="error" n="7" size="2KB" trace="t1"
        -
        -
    "#]],
    );
    check(
        "| logfmt | (n == 7 or level=\"info\") dur >= 20ms",
        &lines,
        expect![[r#"
        level=error dur=1.5s size=2KB n=7 app="api" dur="1.5s" env="prod" level="error" n="7" size="2KB" trace="t1"
        level=info dur=20ms size=10B n=x __error__="LabelFilterErr" __error_details__="the label n is no number: \"x\"" app="api" dur="20ms" env="prod" level="info" n="x" size="10B" trace="t1"
        -
    "#]],
    );
}

#[test]
fn lines_and_labels_are_formatted() {
    let lines = ["seq=5 level=info", "seq=x"];
    check(
        "| logfmt | line_format \"{{.level}}/{{.app}} {{ __line__ }}\" | label_format lvl=level, n=\"no {{.seq}}\", again=\"{{.n}}\"",
        &lines,
        expect![[r#"
            info/api seq=5 level=info app="api" env="prod" lvl="info" n="no 5" seq="5" trace="t1"
            /api seq=x app="api" env="prod" n="no x" seq="x" trace="t1"
        "#]],
    );
    check(
        "| line_format `{{ div 1 0 }}`",
        &lines[..1],
        expect![[r#"
        seq=5 level=info __error__="TemplateFormatErr" __error_details__="div: integer divide by zero" app="api" env="prod" trace="t1"
    "#]],
    );
    check(
        "| logfmt | drop seq=\"5\", env | keep app, seq",
        &lines,
        expect![[r#"
        seq=5 level=info app="api"
        seq=x app="api" seq="x"
    "#]],
    );
    check(
        "| json | drop __error__",
        &["x"],
        expect![[r#"
        x app="api" env="prod" trace="t1"
    "#]],
    );
    check(
        "| decolorize",
        &["\x1b[31mred\x1b[0m and \x1b[1;32mgreen\x1b[m"],
        expect![[r#"
        red and green app="api" env="prod" trace="t1"
    "#]],
    );
}

#[test]
fn filters_before_a_new_line_can_be_pushed_to_where_the_lines_are() {
    let s = selector("|= \"a\" | logfmt |~ \"b\" |> \"c<_>d\" | line_format \"x\" |= \"e\"");
    let pushed: Vec<String> = s.pushed().iter().map(|f| f.to_string()).collect();
    assert_eq!(pushed, ["|= \"a\"", "|~ \"b\"", "|= \"c\"", "|= \"d\""]);
    let rest: Vec<String> = s.rest().iter().map(|s| s.to_string()).collect();
    assert_eq!(rest, ["| logfmt", "|> \"c<_>d\"", "| line_format \"x\"", "|= \"e\""]);
}

#[test]
fn a_line_of_too_many_labels_is_an_error_and_goes_on() {
    let line: String = (0..FIELDS_MAX + 1).map(|i| format!("k{i}=v ")).collect();
    let mut pipeline = Pipeline::new(&selector("| logfmt").stages, None, TimestampNs::EPOCH).unwrap();
    pipeline.begin_stream(&Labels::empty());
    let passed = pipeline.pass(TimestampNs::EPOCH, line.as_bytes(), &[]).unwrap();
    assert_eq!(passed.fields.error(), Some(TOO_MANY_LABELS));
    assert!(passed.fields.iter().count() <= FIELDS_MAX + 2);
}

#[test]
fn a_line_cannot_set_what_is_wrong_with_it() {
    check(
        "| json",
        &[r#"{"__error__":"x","__error_details__":"y","a":"b"}"#],
        expect![[r#"
            {"__error__":"x","__error_details__":"y","a":"b"} __error___extracted="x" __error_details___extracted="y" a="b" app="api" env="prod" trace="t1"
        "#]],
    );
    check(
        r#"| logfmt | __error__="""#,
        &["__error__=x a=b"],
        expect![[r#"
            __error__=x a=b __error___extracted="x" a="b" app="api" env="prod" trace="t1"
        "#]],
    );
}

#[test]
fn names_as_long_as_lines_do_not_fill_the_memory() {
    let key = "k".repeat(128 * 1024);
    let line: Vec<String> = (0..100).map(|i| format!("{key}{i}=v")).collect();
    let stream = Labels::from_pairs([("app", "api")]);
    let mut pipeline = Pipeline::new(&selector("| logfmt").stages, None, TimestampNs::EPOCH).unwrap();
    pipeline.begin_stream(&stream);
    let line = line.join(" ");
    let passed = pipeline
        .pass(TimestampNs::EPOCH, line.as_bytes(), &[])
        .expect("it passes");
    let labels = passed.fields.labels(|_, _| true);
    let bytes: usize = labels.iter().map(|(n, v)| n.len() + v.len()).sum();
    assert!(bytes <= FIELDS_BYTES_MAX + 1024, "{bytes}");
    assert_eq!(passed.fields.get(ERROR), Some(TOO_MANY_LABELS));
}

#[test]
fn a_comma_and_nothing_at_all_bind_as_and_does() {
    let lines = ["a=1 b=2 c=3", "a=1 b=0 c=0", "a=0 b=2 c=3", "a=0 b=2 c=0"];
    let passes = |stages: &str| {
        let mut pipeline = Pipeline::new(&selector(stages).stages, None, TimestampNs::EPOCH).unwrap();
        pipeline.begin_stream(&Labels::default());
        lines.map(|l| pipeline.pass(TimestampNs::EPOCH, l.as_bytes(), &[]).is_some())
    };
    for between in [" and ", ", ", " "] {
        let stages = format!("| logfmt | a=1 or b=2{between}c=3");
        assert_eq!(passes(&stages), [true, true, true, false], "{stages}");
        let stages = format!("| logfmt | (a=1 or b=2){between}c=3");
        assert_eq!(passes(&stages), [true, false, true, false], "{stages}");
    }
}

const WORDS: [&str; 60] = [
    "{",
    "}",
    "a=\"b\"",
    "|=",
    "!~",
    "\"x\"",
    "rate",
    "(",
    ")",
    "[5m]",
    "sum",
    "by",
    "(a)",
    "topk",
    ",",
    "1",
    "^",
    "or",
    "offset",
    "|",
    "json",
    "logfmt",
    "--strict",
    "--keep-empty",
    "pattern",
    "`<a> <_>`",
    "regexp",
    "`(?P<a>.)`",
    "unpack",
    "line_format",
    "\"{{.a}}\"",
    "label_format",
    "a=b",
    "drop",
    "keep",
    "decolorize",
    "unwrap",
    "duration(a)",
    "a",
    ">",
    "5s",
    "1KB",
    "and",
    "|>",
    "!>",
    "ip(\"10.0.0.0/8\")",
    "sum_over_time",
    "quantile_over_time",
    "0.9",
    "label_replace",
    "vector",
    "==",
    "bool",
    "on",
    "group_left",
    "unless",
    "sort_desc",
    "max_over_time",
    "{a=\"b\"}",
    "-",
];

/// Expressions that mostly parse.
fn expressions() -> impl Strategy<Value = String> {
    let stage = prop::sample::select(vec![
        "|= \"x\" or ip(\"10.0.0.0/8\")",
        "!~ `a.b`",
        "|> \"a <_>\"",
        "| json",
        "| json a=\"b.c\", d",
        "| logfmt --strict a, b=\"c\"",
        "| logfmt --keep-empty",
        "| pattern \"<a> - <_>\"",
        "| regexp \"(?P<n>[0-9]+)\"",
        "| unpack",
        "| decolorize",
        "| line_format \"{{.a}} \\\"q\\\"\"",
        "| label_format a=b, c=\"{{.d}}\"",
        "| drop a, b=~\"c\"",
        "| keep a!=\"b\"",
        "| a=\"b\" or c>5, d<=1.5s and (e!=20MB or f=ip(\"::1\"))",
        "| a=\"b\" c==-7",
    ]);
    let stages = prop::collection::vec(stage, 0..5).prop_map(|s| s.join(" "));
    let range = (stages.clone(), 0usize..6).prop_map(|(s, i)| match i {
        0 => format!("rate({{a=\"b\"}} {s} [5m])"),
        1 => format!("sum_over_time({{a=~\"b\"}} {s} | unwrap duration(x) | __error__=\"\" [90s] offset -1h)"),
        2 => format!("quantile_over_time(0.9, {{a=\"b\"}} {s} | unwrap x [5m]) without (c, d)"),
        3 => format!("absent_over_time(({{a=\"b\"}}[5m] {s}))"),
        4 => format!("label_replace(count_over_time({{a=\"b\"}}[5m] offset 1m {s}), \"x\", \"$1\", \"y\", \"(.*)\")"),
        _ => format!("topk by (x) (2, max_over_time({{a=\"b\"}} {s} | unwrap bytes(y) [1d]) by (z))"),
    });
    let metric = (range.clone(), range, 0usize..6).prop_map(|(a, b, i)| match i {
        0 => a,
        1 => format!("{a} / on (x) group_left (y) {b} > bool 1"),
        2 => format!("sum by (x) ({a}) or vector(0) unless {b}"),
        3 => format!("sort_desc({a} + 2 ^ 3 ^ -1)"),
        4 => format!("({a} - ({b} - 1)) * 2e30"),
        _ => format!("avg without () ({a}) % {b}"),
    });
    prop_oneof![stages.prop_map(|s| format!("({{a=\"b\", c!~`d\\d\"`}}) {s}")), metric]
}

proptest! {
    #[test]
    fn no_text_panics(text in "[ -~\u{80}-\u{ff}]{0,60}", words in prop::collection::vec(prop::sample::select(WORDS.to_vec()), 0..30)) {
        let _ = parse(&text);
        let _ = parse(&words.join(" "));
        let _ = parse(&format!("{{a=\"b\"}} {}", words.join(" ")));
    }

    #[test]
    fn a_printed_tree_parses_to_itself(text in expressions(), words in prop::collection::vec(prop::sample::select(WORDS.to_vec()), 0..8)) {
        let tree = parse(&text);
        prop_assert!(tree.is_ok(), "{}: {:?}", text, tree);
        for text in [text, format!("{{a=\"b\"}} {}", words.join(" "))] {
            if let Ok(tree) = parse(&text) {
                let printed = tree.to_string();
                prop_assert_eq!(parse(&printed), Ok(tree), "{} printed as {}", text, printed);
            }
        }
    }

    #[test]
    fn no_line_panics_and_unwanted_labels_change_nothing(
        line in prop_oneof![
            "[ -~\u{e9}\n]{0,40}".prop_map(String::into_bytes),
            "[{}\\[\\]\":,a-c\\\\u0-9. =]{0,40}".prop_map(String::into_bytes),
            prop::collection::vec(any::<u8>(), 0..30),
            Just(br#"{"a":{"b":"c"},"x":"1s","_entry":"a=1 b=\"2\""}"#.to_vec()),
        ],
        stages in prop::collection::vec(prop::sample::select(vec![
            "| json", "| logfmt", "| logfmt --strict", "| unpack", "| pattern `<a> <b>`", "| regexp `(?P<a>.)(?P<x>.*)`",
            "| json a=\"a.b[0]\"", "| logfmt a, c=\"x\"", "| a > 1", "| x < 1s or a != 5KB", "| line_format `{{.a}}{{.b}}`",
            "| label_format q=a, b=\"{{.x}}\"", "| drop c", "| keep a, b, x, a_b", "| decolorize", "|> `<_>a<_>`", "!= ip(\"::/0\")",
        ]), 0..6),
    ) {
        let stages = selector(&stages.join(" ")).stages;
        let stream = Labels::from_pairs([("a", "given"), ("app", "a")]);
        let pass = |wanted: Option<BTreeSet<String>>| {
            let mut pipeline = Pipeline::new(&stages, wanted, TimestampNs::EPOCH).unwrap();
            pipeline.begin_stream(&stream);
            // Twice: what the first line left behind must not show.
            pipeline.pass(TimestampNs::EPOCH, b"a=9 zz=1", &[]);
            pipeline.pass(TimestampNs::EPOCH, &line, &[]).map(|p| {
                let asked = |n: &str| matches!(n, "a" | "x" | "a_extracted" | ERROR);
                (p.line.to_vec(), p.fields.labels(|n, _| asked(n)))
            })
        };
        let wanted = ["a", "x", "a_extracted"].map(str::to_owned).into();
        prop_assert_eq!(pass(None), pass(Some(wanted)));
    }
}

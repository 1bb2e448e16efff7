//! What templates give, and that none of them panics.

use super::*;
use expect_test::expect;
use hindcast_model::Labels;
use proptest::prelude::*;

fn run(template: &str) -> String {
    let mut fields = Fields::default();
    fields.begin_stream(&Labels::from_pairs([
        ("app", "api"),
        ("dur", "1.5s"),
        ("json", r#"{"list":[{"n":"a"},{"n":"b"}],"x":2}"#),
        ("path", "/v1/orders"),
        ("seq", "7"),
    ]));
    fields.begin_line(&[]);
    let sight = Sight {
        fields: &fields,
        line: b"a line",
        at: TimestampNs(1_700_000_000_123_456_789),
        now: TimestampNs(1_700_000_060_000_000_000),
    };
    let mut out = String::new();
    match Template::new(template).and_then(|t| t.run(&sight, &mut out)) {
        Ok(()) => out,
        Err(why) => format!("error: {why}"),
    }
}

#[test]
fn templates_give_what_go_and_loki_give() {
    let mut shown = String::new();
    for template in [
        "{{.app}}/{{ .nosuch }}|{{.path | upper}}",
        "{{- \"a\" -}}  b  {{- /* no */ -}} c",
        "{{ trimPrefix \"/v1\" .path }} {{ len .path }} {{ replace \"/\" \"_\" .path }} {{ Replace .path \"/\" \"_\" 1 }}",
        "{{ if eq .app \"api\" }}yes{{ else if .x }}x{{ else }}no{{ end }} {{ with .nosuch }}a{{ else }}b{{ end }}",
        "{{ range $i, $e := (fromJson .json).list }}{{ $i }}={{ $e.n }},{{ else }}none{{ end }}",
        "{{ $x := add .seq 1 }}{{ $x }} {{ mul 2 3 4 }} {{ div 7 2 }} {{ mod 7 2 }} {{ sub 1 3 }} {{ divf 1 4 }} {{ round 1.256 2 }}",
        "{{ __line__ }} {{ __timestamp__ | date \"2006-01-02T15:04:05.000Z07:00\" }} {{ __timestamp__ | unixEpochMillis }}",
        "{{ printf \"%5d|%-5s|%05.1f|%q|%v|%d\" 42 \"ab\" 3.14159 \"q\" .seq .seq }}",
        "{{ alignLeft 5 .path }}|{{ alignRight 5 .path }}|{{ alignLeft 4 .seq }}|{{ trunc 3 .path }}|{{ trunc -3 .path }}|{{ substr 1 3 .path }}",
        "{{ duration .dur }} {{ bytes \"1KB\" }} {{ regexReplaceAll \"(o)r\" .path \"<${1}>\" }} {{ count \"/\" .path }}",
        "{{ b64enc \"hello\" }} {{ b64dec \"aGVsbG8=\" }} {{ urlencode \"a b&c\" }} {{ urldecode \"a+b%26c\" }}",
        "{{ default \"-\" .nosuch }} {{ .seq | int | max 3 }} {{ and .seq .app }} {{ or .nosuch .app }} {{ not .app }} {{ title \"hello world\" }}",
        "{{ toDate \"2006-01-02\" \"2023-11-15\" | unixEpoch }} {{ unixToTime \"1700000000\" | date \"Mon Jan _2 3:04PM\" }} {{ now | unixEpoch }}",
        "{{ div 1 0 }}",
        "{{ repeat 1000000 .path }}",
        "{{ eq .seq 7 }}",
        "{{ .a",
        "{{ nosuch .a }}",
        "{{ if .a }}",
        "{{ end }}",
    ] {
        shown.push_str(&format!("{}\n", run(template)));
    }
    expect![[r#"
        api/|/V1/ORDERS
        abc
        /orders 10 _v1_orders _v1/orders
        yes b
        0=a,1=b,
        8 24 3 1 -2 0.25 1.26
        a line 2023-11-14T22:13:20.123Z 1700000000123
           42|ab   |003.1|"q"|7|%!d(string=7)
        /v1/o|rders|7   |/v1|ers|v1
        1.5 1000 /v1/<o>ders 2
        aGVsbG8= hello a+b%26c a b&c
        - 7 api api false Hello World
        1700006400 Tue Nov 14 10:13PM 1700000060
        error: div: integer divide by zero
        error: repeat gives more than 262144 bytes
        error: incompatible types for comparison: string and int64
        error: the template "{{ .a" cannot be used: unclosed action
        error: the template "{{ nosuch .a }}" cannot be used: function "nosuch" not defined
        error: the template "{{ if .a }}" cannot be used: {{if}} has no {{end}}
        error: the template "{{ end }}" cannot be used: unexpected {{end}}
    "#]]
    .assert_eq(&shown);
}

#[test]
fn what_a_template_looks_at_is_known() {
    let fields = |t: &str| {
        Template::new(t)
            .unwrap()
            .fields()
            .map(|f| f.iter().cloned().collect::<Vec<_>>())
    };
    assert_eq!(
        fields("{{.a}} {{ if .b }}{{ upper .c | printf .d }}{{ end }}{{ $.e }}").unwrap(),
        ["a", "b", "c", "d", "e"]
    );
    assert_eq!(fields("{{ . }}"), None);
    assert_eq!(fields("{{ index $ \"a\" }}"), None);
}

/// A few dozen characters of template must not cost the node its memory or its time.
#[test]
fn a_small_template_does_no_large_work() {
    let doubled = "{{ $x = print $x $x }}".repeat(40);
    let mut shown = String::new();
    for (template, what) in [
        (
            "{{ regexReplaceAll \"\" (repeat 2000 .app) (repeat 2000 .path) }}".to_owned(),
            "a regex that matches everywhere",
        ),
        (
            format!("{{{{ regexReplaceAll \"(.+)\" (repeat 2000 .app) \"{}\" }}}}", "${1}".repeat(48)),
            "a group many times over",
        ),
        (format!("{{{{ $x := .path }}}}{doubled}"), "a text doubled again and again"),
        (
            "{{ $x := repeat 20000 .path }}{{ range $ }}{{ range $ }}{{ range $ }}{{ $y := $x }}{{ end }}{{ end }}{{ end }}".to_owned(),
            "copies of a text that nobody writes",
        ),
        (
            "{{ range $ }}{{ range $ }}{{ range $ }}{{ range $ }}{{ range $ }}{{ range $ }}{{ end }}{{ end }}{{ end }}{{ end }}{{ end }}{{ end }}".to_owned(),
            "empty rounds in rounds",
        ),
        (
            "{{ $p := .app }}{{ range $ }}{{ range $ }}{{ range $ }}{{ regexReplaceAll $p $.path \"\" }}{{ end }}{{ end }}{{ end }}".to_owned(),
            "a regex made anew each time",
        ),
        ("{{ len (printf \"%.65535f\" 1.5) }}".to_owned(), "digits beyond what a float has"),
        ("{{ len (printf \"%65536d\" 1) }}".to_owned(), "a wide number"),
    ] {
        let out = run(&template);
        shown.push_str(&format!("{what}: {}\n", &out[..out.len().min(80)]));
    }
    expect![[r#"
        a regex that matches everywhere: error: a replacement gives more than 262144 bytes
        a group many times over: error: a replacement gives more than 262144 bytes
        a text doubled again and again: error: print gives more than 262144 bytes
        copies of a text that nobody writes: error: the template handles more than 4194304 bytes of values
        empty rounds in rounds: error: the template takes more than 20000 steps
        a regex made anew each time: error: the template handles more than 4194304 bytes of values
        digits beyond what a float has: 1102
        a wide number: 65535
    "#]]
    .assert_eq(&shown);
}

#[test]
fn a_range_goes_over_the_labels_by_name() {
    assert_eq!(
        run("{{ range $name, $value := . }}{{ if ne $name \"json\" }}{{ $name }}={{ $value }} {{ end }}{{ end }}"),
        "app=api dur=1.5s path=/v1/orders seq=7 "
    );
}

proptest! {
    #[test]
    fn no_template_panics(
        text in "[ -~\n\u{e9}]{0,60}",
        words in prop::collection::vec(prop::sample::select(vec![
            "{{", "}}", "{{-", "-}}", ".app", ".", "|", "(", ")", "$", "$x", ":=", "if", "else", "end", "range", "with", "\"é\"", "7", "-1", "1.5",
            "trunc", "substr", "printf", "\"%5d%s\"", "index", "slice", "fromJson", ".json", "repeat", "date", "toDate", "alignLeft", "add", "div",
            "unixToTime", "round", "b64dec", "count", "eq", "and", "default", "indent", "now",
        ]), 0..25),
    ) {
        run(&text);
        run(&words.join(" "));
        run(&format!("{{{{ {} }}}}", words.join(" ")));
    }
}

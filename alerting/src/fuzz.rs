//! This crate's readers as fuzz targets: what operators write. See `hindcast_env::fuzz`.

use crate::template::{self, TEXT_BYTES_MAX};
use crate::{route, rule};
use hindcast_env::fuzz::Target;
use hindcast_model::Labels;

pub const TARGETS: &[Target] = &[
    Target {
        name: "alerting-rules",
        run: rules,
        seeds: rule_seeds,
    },
    Target {
        name: "alerting-routes",
        run: routes,
        seeds: route_seeds,
    },
    Target {
        name: "alerting-template",
        run: templates,
        seeds: template_seeds,
    },
];

const FILE: &str = "the-file.yml";

fn labels() -> Labels {
    Labels::from_pairs([("instance", "db-1"), ("job", "é가"), ("severity", "critical")])
}

/// A refusal names the file, and what was taken is rendered for an alert.
fn rules(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match rule::parse(FILE, &text) {
        Ok(file) => {
            for rule in file.groups.iter().flat_map(|g| &g.rules) {
                for (_, text) in rule.labels.iter().chain(&rule.annotations) {
                    rendered(text);
                }
            }
        }
        Err(e) => assert!(e.to_string().contains(FILE), "{e}"),
    }
}

fn rule_seeds() -> Vec<Vec<u8>> {
    let texts = [
        "groups:\n  - name: g\n    interval: 30s\n    labels: {team: db}\n    rules:\n      - alert: Down\n        expr: up{job=\"x\"} == 0\n        for: 5m\n        keep_firing_for: 1m\n        labels: {severity: critical}\n        annotations: {summary: \"{{ $labels.instance }} is down: {{ $value | humanize }}\"}\n",
        "groups:\n  - name: t\n    rules:\n      - threshold: Disk\n        expr: 1 - node_filesystem_avail_bytes / node_filesystem_size_bytes\n        levels:\n          minor: {above: 0.8, for: 10m, clear: 0.75}\n          critical: {above: 0.95}\n",
        "groups: [{name: a, rules: []}, {name: b, rules: [{alert: X, expr: 'vector(1)', labels: {n: 1, t: true}}]}]",
        "groups: [{name: l, type: loki, rules: [{alert: X, expr: 'sum by (a) (count_over_time({a=\"b\"} |= \"c\" [5m])) > 0'}]}]",
    ];
    texts.map(|t| t.as_bytes().to_vec()).into()
}

fn routes(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Err(e) = route::parse(FILE, &text) {
        assert!(e.to_string().contains(FILE), "{e}");
    }
}

fn route_seeds() -> Vec<Vec<u8>> {
    let texts = [
        "global: {cool_down: 10m, reopen_window: 1h, delivery_attempts_max: 5}\nroute:\n  receiver: desk\n  group_by: [alertname, job]\n  group_wait: 30s\n  group_interval: 5m\n  repeat_interval: 4h\n  routes:\n    - {receiver: mail, matchers: ['severity=~\"crit.*\"', 'team!=\"x\"'], continue: true}\nreceivers:\n  - name: desk\n    desk_configs: [{group: ops}]\n  - name: mail\n    email_configs: [{to: a@b.example, from: h@b.example, smarthost: 'm.example:25'}]\n  - name: chat\n    slack_configs: [{channel: '#ops', token_env: T}]\n  - name: hook\n    webhook_configs: [{url: 'https://h.example/x', secret_file: s}]\n",
        "route: {receiver: a}\nreceivers: [{name: a}]\n",
    ];
    texts.map(|t| t.as_bytes().to_vec()).into()
}

fn templates(bytes: &[u8]) {
    rendered(&String::from_utf8_lossy(bytes));
}

/// Whatever is written, there is a text, and it has its bound.
fn rendered(text: &str) {
    let _ = template::check(text);
    for value in [0.0, 1234.5, -1e300, f64::NAN, f64::INFINITY] {
        let rendered = template::or_plain(text, "Rule", &labels(), value);
        assert!(rendered.len() <= TEXT_BYTES_MAX, "{} bytes", rendered.len());
    }
}

fn template_seeds() -> Vec<Vec<u8>> {
    let texts = [
        "{{ $labels.instance }} of {{ .Labels.job }} has {{ $value | humanize }}",
        "{{- printf \"%.2f\" $value | toUpper -}} {{ humanizeDuration 61.5 }} {{ .Value | humanizePercentage }}",
        "{{ \"aB\" | toLower }}{{ 1024 | humanize1024 }}é가",
    ];
    texts.map(|t| t.as_bytes().to_vec()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_env::io::SystemClock;
    use hindcast_model::SpanNs;

    #[test]
    fn damaged_files_are_read_or_refused_by_name() {
        hindcast_env::fuzz::check_targets(TARGETS, &SystemClock::new(), SpanNs::from_ms(2000));
    }

    #[test]
    fn seeds_are_files_that_are_taken() {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        for seed in rule_seeds() {
            rule::parse(FILE, &text(seed)).unwrap();
        }
        for seed in route_seeds() {
            route::parse(FILE, &text(seed)).unwrap();
        }
        for seed in template_seeds() {
            template::check(&text(seed)).unwrap();
        }
    }
}

//! This crate's readers as fuzz targets. See `hindcast_env::fuzz`.

use crate::scrape::{Answer, Series, take};
use crate::text::Format;
use crate::{config, discovery, target};
use hindcast_env::fuzz::Target;
use hindcast_model::{SpanNs, TimestampNs};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Pages of targets, and the files that an operator writes.
pub const TARGETS: &[Target] = &[
    Target {
        name: "scrape-page",
        run: page,
        seeds: page_seeds,
    },
    Target {
        name: "scrape-config",
        run: configuration,
        seeds: configuration_seeds,
    },
    Target {
        name: "scrape-discovery",
        run: files,
        seeds: files_seeds,
    },
];

const CONFIG: &str = "scrape_configs: [{job_name: j, static_configs: [{targets: ['a:1']}], metric_relabel_configs: [{source_labels: [a], target_label: b, regex: '(.)(.*)', replacement: '$2$1'}]}]";

fn page(bytes: &[u8]) {
    let Ok(config) = config::parse("f", CONFIG) else { return };
    let job = Arc::new(config.jobs[0].clone());
    let found = target::find(&job, &job.groups, 1);
    for format in [Format::Prometheus, Format::OpenMetrics] {
        let mut series = Series::default();
        // Twice: what is remembered of the first is compared with the second.
        for second in 1..3 {
            let answer = Ok(Answer::Page { body: bytes, format });
            let at = TimestampNs::from_secs(second);
            take(
                &found.active[0],
                &BTreeMap::new(),
                answer,
                at,
                SpanNs::ZERO,
                &mut series,
            );
        }
    }
}

fn page_seeds() -> Vec<Vec<u8>> {
    let pages = [
        "# HELP a b\n# TYPE a counter\na{b=\"c\\\\d\\n\",e=\"\"} 1.5e3 1395066363000\nup 1\nh_bucket{le=\"+Inf\"} NaN\n",
        "http_total{code=\"200\"} 1027 1395066363.5 # {trace_id=\"x\"} 0.67\n{\"my.metric\",\"a b\"=\"v\"} -0\n# EOF\n",
    ];
    pages.map(|p| p.as_bytes().to_vec()).to_vec()
}

fn configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(config) = config::parse("f", text) else { return };
    for job in config.jobs.into_iter().map(Arc::new) {
        target::find(&job, &job.groups, 1000);
    }
}

fn configuration_seeds() -> Vec<Vec<u8>> {
    let whole = "global: {scrape_interval: 15s, external_labels: {a: b}}\nscrape_configs:\n- job_name: a\n  static_configs:\n  - targets: ['x:1', y]\n    labels: {z: '1'}\n  relabel_configs:\n  - {source_labels: [__address__], regex: '(.*):.*', target_label: host, replacement: '$1'}\n  - {action: hashmod, source_labels: [host], target_label: h, modulus: 4}\n  - {action: labelmap, regex: 'z(.*)', replacement: 'q$1'}\n  basic_auth: {username: u, password: p}\n  body_size_limit: 10MB\n";
    [CONFIG, whole].map(|c| c.as_bytes().to_vec()).to_vec()
}

fn files(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for path in ["a.json", "a.yml"] {
        let _ = discovery::parse(path, text);
    }
}

fn files_seeds() -> Vec<Vec<u8>> {
    let both = [
        r#"[{"targets": ["a:1", "b:1"], "labels": {"rack": "7"}}]"#,
        "- targets: [a:1]\n  labels: {rack: 7}\n",
    ];
    both.map(|c| c.as_bytes().to_vec()).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_env::io::SystemClock;

    #[test]
    fn damaged_pages_and_files_are_read_or_refused() {
        hindcast_env::fuzz::check_targets(TARGETS, &SystemClock::new(), SpanNs::from_ms(2000));
    }
}

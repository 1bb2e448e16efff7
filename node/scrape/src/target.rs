//! What becomes of what was found: targets with their labels and addresses, and those that relabeling dropped.
//!
//! Pure: the same job and groups give the same targets on every node. A target is known by its job, tenant, labels and URL
//! ([`Target::key`]); where else its settings change, it stays the same target. Another scheme, path or parameter makes another
//! target of it, which takes its series over ([`crate::pool`]).

use crate::Pairs;
use crate::config::{Group, Job, check_times};
use crate::relabel;
use crate::scrape::{OF_POLL, OF_SCRAPE};
use hindcast_model::{Labels, METRIC_NAME, SpanNs};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// Of one node's configuration, in all jobs.
pub const TARGETS_MAX: usize = 100_000;
/// Dropped targets of one job that are listed; all are counted.
pub const DROPPED_LISTED_MAX: usize = 1000;
/// Targets that cannot be used and are listed; all are counted.
pub const BAD_LISTED_MAX: usize = 20;

/// Something that is asked for its samples again and again.
#[derive(Clone, Debug)]
pub struct Target {
    pub key: u64,
    pub job: Arc<Job>,
    /// Of its series, `job` and `instance` among them.
    pub labels: Labels,
    /// Before relabeling.
    pub discovered: BTreeMap<String, String>,
    pub url: String,
    pub interval: SpanNs,
    pub timeout: SpanNs,
    /// Why it is not asked at all: its job has more targets than it may have.
    pub refused: Option<String>,
    /// The names under which its scrapes speak of themselves.
    pub of_itself: &'static [&'static str],
}

/// A target that is polled and not scraped: it is due, shared and ended like others, and whoever asks it knows how.
pub fn polled(job: &Arc<Job>, url: String, labels: Labels, interval: SpanNs) -> Target {
    Target {
        key: key(job, &url, &labels),
        job: job.clone(),
        discovered: labels.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect(),
        labels,
        url,
        interval,
        timeout: interval,
        refused: None,
        of_itself: OF_POLL,
    }
}

/// What one job's groups came to.
#[derive(Clone, Debug, Default)]
pub struct Found {
    pub active: Vec<Arc<Target>>,
    /// The first ones, as they were before relabeling.
    pub dropped: Vec<BTreeMap<String, String>>,
    pub dropped_count: u64,
    /// Targets that cannot be used, with reasons; the first ones.
    pub bad: Vec<String>,
    pub bad_count: u64,
}

/// The targets of a job. `room`: how many more the node takes.
pub fn find<'a>(job: &Arc<Job>, groups: impl IntoIterator<Item = &'a Group>, room: usize) -> Found {
    let (mut found, mut keys) = (Found::default(), BTreeSet::new());
    for group in groups {
        for address in &group.targets {
            let discovered = discovered(job, group, address);
            match target(job, &discovered) {
                Err(why) => found.refuse(format!("{address:?}: {why}")),
                Ok(None) => {
                    found.dropped_count += 1;
                    if found.dropped.len() < DROPPED_LISTED_MAX.min(job.limits.dropped_listed) {
                        found.dropped.push(discovered.to_map());
                    }
                }
                Ok(Some(target)) if found.active.len() < room => {
                    // The same target twice is one.
                    if keys.insert(target.key) {
                        found.active.push(Arc::new(target));
                    }
                }
                Ok(Some(_)) => found.refuse(format!(
                    "{address:?}: a node has at most {TARGETS_MAX} targets, and it has them already"
                )),
            }
        }
    }
    if let Some(max) = job.limits.targets.filter(|max| found.active.len() > *max) {
        let why = format!(
            "the job has {} targets, more than its target_limit {max}",
            found.active.len()
        );
        for target in &mut found.active {
            Arc::make_mut(target).refused = Some(why.clone());
        }
    }
    found
}

impl Found {
    fn refuse(&mut self, why: String) {
        self.bad_count += 1;
        if self.bad.len() < BAD_LISTED_MAX {
            self.bad.push(why);
        }
    }
}

/// What relabeling begins with.
fn discovered(job: &Job, group: &Group, address: &str) -> Pairs {
    let mut labels: Pairs = group.labels.clone().into_iter().collect();
    labels.set("__address__", address);
    labels.set_absent("job", job.name.clone());
    labels.set_absent("__scheme__", job.scheme.clone());
    labels.set_absent("__metrics_path__", job.metrics_path.clone());
    labels.set_absent("__scrape_interval__", job.interval.to_string());
    labels.set_absent("__scrape_timeout__", job.timeout.to_string());
    for (name, values) in &job.params {
        if let Some(first) = values.first() {
            labels.set_absent(&format!("__param_{name}"), first.clone());
        }
    }
    labels
}

/// `None`: dropped.
fn target(job: &Arc<Job>, discovered: &Pairs) -> Result<Option<Target>, String> {
    let mut labels = discovered.clone();
    if !relabel::apply(&job.relabel, &mut labels) {
        return Ok(None);
    }
    let address = labels.value("__address__").to_owned();
    if address.is_empty() {
        return Err("it has no address".to_owned());
    }
    if address.contains(['/', '?', '#', '@', ' ']) {
        return Err(format!(
            "the address {address:?} is not like host:port; path and scheme are settings of their own"
        ));
    }
    let span = |name: &str| {
        let text = labels.value(name);
        SpanNs::parse(text).ok_or_else(|| format!("{name} {text:?} is no length of time"))
    };
    let (interval, timeout) = (span("__scrape_interval__")?, span("__scrape_timeout__")?);
    check_times(interval, timeout)?;
    let scheme = labels.value("__scheme__");
    if scheme != "http" && scheme != "https" {
        return Err(format!("the scheme {scheme:?} is not known; http and https are"));
    }
    let url = url(
        scheme,
        &address,
        labels.value("__metrics_path__"),
        &params(job, &labels),
    );
    labels.retain(|name| !name.starts_with("__"));
    if labels.value("instance").is_empty() {
        labels.set("instance", address);
    }
    let labels = labels.into_labels();
    Ok(Some(Target {
        key: key(job, &url, &labels),
        job: job.clone(),
        labels,
        discovered: discovered.to_map(),
        url,
        interval,
        timeout,
        refused: None,
        of_itself: OF_SCRAPE,
    }))
}

fn key(job: &Job, url: &str, labels: &Labels) -> u64 {
    let mut bytes = vec![];
    let pairs = labels.iter().flat_map(|(n, v)| [n, v]);
    for text in [job.name.as_str(), job.tenant.as_str(), url].into_iter().chain(pairs) {
        bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
    }
    xxh3_64(&bytes)
}

/// The job's parameters, of which a label `__param_x` has the first.
fn params(job: &Job, labels: &Pairs) -> Vec<(String, String)> {
    let mut all = job.params.clone();
    for (name, value) in labels.iter() {
        if let Some(name) = name.strip_prefix("__param_") {
            let values = all.entry(name.to_owned()).or_default();
            match values.first_mut() {
                Some(first) => value.clone_into(first),
                None => values.push(value.to_owned()),
            }
        }
    }
    let pairs = all
        .into_iter()
        .flat_map(|(n, vs)| vs.into_iter().map(move |v| (n.clone(), v)));
    pairs.collect()
}

fn url(scheme: &str, address: &str, path: &str, params: &[(String, String)]) -> String {
    let slash = if path.starts_with('/') { "" } else { "/" };
    let mut url = format!("{scheme}://{address}{slash}{}", escaped(path, "/:@!$&'()*+,;="));
    for (i, (name, value)) in params.iter().enumerate() {
        url.push(if i == 0 { '?' } else { '&' });
        url.push_str(&escaped(name, ""));
        url.push('=');
        url.push_str(&escaped(value, ""));
    }
    url
}

fn escaped(text: &str, plain: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "-._~".contains(c) || byte.is_ascii() && plain.contains(c) {
            out.push(c);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Labels of a metric that a target has by itself, like `up`.
pub fn named(target: &Labels, name: &str) -> Labels {
    target.with(METRIC_NAME, name)
}

/// What nodes compare to know whether they know the same targets.
pub fn digest<'a>(targets: impl Iterator<Item = &'a u64>) -> u64 {
    // The keys come sorted, as those of a map.
    let bytes: Vec<u8> = targets.flat_map(|key| key.to_le_bytes()).collect();
    xxh3_64(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use std::fmt::Write;

    fn jobs(yaml: &str) -> Vec<Arc<Job>> {
        let config = crate::config::parse("f", &format!("scrape_configs: [{yaml}]")).unwrap();
        config.jobs.into_iter().map(Arc::new).collect()
    }

    fn check(yaml: &str, expect: Expect) {
        let mut out = String::new();
        for job in jobs(yaml) {
            let found = find(&job, &job.groups, TARGETS_MAX);
            for t in found.active {
                writeln!(out, "{} {} every {} within {}", t.url, t.labels, t.interval, t.timeout).unwrap();
                if let Some(why) = &t.refused {
                    writeln!(out, "  refused: {why}").unwrap();
                }
            }
            for d in found.dropped {
                writeln!(out, "dropped {d:?}").unwrap();
            }
            for b in found.bad {
                writeln!(out, "bad {b}").unwrap();
            }
        }
        expect.assert_eq(&out);
    }

    #[test]
    fn targets_get_job_instance_and_address() {
        check(
            "{job_name: node, scheme: https, params: {'collect[]': [cpu, a b]}, static_configs: [{targets: ['a:9100', '[::1]:9100', 'a:9100'], labels: {rack: 7}}]}",
            expect![[r#"
                https://a:9100/metrics?collect%5B%5D=cpu&collect%5B%5D=a%20b {instance="a:9100", job="node", rack="7"} every 1m within 10s
                https://[::1]:9100/metrics?collect%5B%5D=cpu&collect%5B%5D=a%20b {instance="[::1]:9100", job="node", rack="7"} every 1m within 10s
            "#]],
        );
    }

    #[test]
    fn relabeling_changes_everything_of_a_target() {
        check(
            r#"{job_name: probe, metrics_path: probe, params: {module: [http]}, static_configs: [{targets: ['https://x.org/?a=b', y.org, z.org]}], relabel_configs: [
                {source_labels: [__address__], target_label: __param_target},
                {source_labels: [__param_target], target_label: instance},
                {target_label: __address__, replacement: 'blackbox:9115'},
                {source_labels: [instance], regex: 'y.*', target_label: __scrape_interval__, replacement: 2m},
                {source_labels: [instance], regex: 'y.*', target_label: __param_module, replacement: icmp},
                {source_labels: [instance], regex: 'z.*', action: drop}]}"#,
            expect![[r#"
                http://blackbox:9115/probe?module=http&target=https%3A%2F%2Fx.org%2F%3Fa%3Db {instance="https://x.org/?a=b", job="probe"} every 1m within 10s
                http://blackbox:9115/probe?module=icmp&target=y.org {instance="y.org", job="probe"} every 2m within 10s
                dropped {"__address__": "z.org", "__metrics_path__": "probe", "__param_module": "http", "__scheme__": "http", "__scrape_interval__": "1m", "__scrape_timeout__": "10s", "job": "probe"}
            "#]],
        );
    }

    #[test]
    fn a_target_that_cannot_be_used_is_said_and_the_others_stay() {
        check(
            r#"{job_name: j, static_configs: [{targets: ['', 'http://a/metrics', 'b:1'], labels: {__scrape_timeout__: 5s}}, {targets: [c], labels: {__scrape_timeout__: 5m}}, {targets: [d], labels: {__scheme__: ftp}}]}"#,
            expect![[r#"
                http://b:1/metrics {instance="b:1", job="j"} every 1m within 5s
                bad "": it has no address
                bad "http://a/metrics": the address "http://a/metrics" is not like host:port; path and scheme are settings of their own
                bad "c": the scrape timeout 5m is greater than the scrape interval 1m
                bad "d": the scheme "ftp" is not known; http and https are
            "#]],
        );
    }

    #[test]
    fn more_targets_than_a_job_may_have_are_not_asked() {
        check(
            "{job_name: j, target_limit: 1, static_configs: [{targets: [a, b]}]}",
            expect![[r#"
            http://a/metrics {instance="a", job="j"} every 1m within 10s
              refused: the job has 2 targets, more than its target_limit 1
            http://b/metrics {instance="b", job="j"} every 1m within 10s
              refused: the job has 2 targets, more than its target_limit 1
        "#]],
        );
        let job = &jobs("{job_name: j, static_configs: [{targets: [a, b, c]}]}")[0];
        let found = find(job, &job.groups, 2);
        assert_eq!((found.active.len(), found.bad_count), (2, 1));
    }

    #[test]
    fn lists_of_what_is_dropped_are_bounded_and_counts_are_not() {
        let yaml = "{job_name: j, relabel_configs: [{action: drop, source_labels: [__address__], regex: 'x.*'}]}";
        let job = &jobs(yaml)[0];
        let targets = |c: char, n: usize| Group {
            targets: (0..n).map(|i| format!("{c}{i}")).collect(),
            labels: BTreeMap::new(),
        };
        let found = find(
            job,
            &[targets('x', DROPPED_LISTED_MAX + 5), targets('/', BAD_LISTED_MAX + 5)],
            10,
        );
        assert_eq!(
            (found.dropped.len(), found.dropped_count),
            (DROPPED_LISTED_MAX, DROPPED_LISTED_MAX as u64 + 5)
        );
        assert_eq!(
            (found.bad.len(), found.bad_count),
            (BAD_LISTED_MAX, BAD_LISTED_MAX as u64 + 5)
        );
    }

    #[test]
    fn another_interval_leaves_a_target_what_it_is() {
        let key = |interval: &str| {
            let job = &jobs(&format!(
                "{{job_name: j, scrape_interval: {interval}, static_configs: [{{targets: [a]}}]}}"
            ))[0];
            find(job, &job.groups, 10).active[0].key
        };
        assert_eq!(key("15s"), key("1m"));
    }
}

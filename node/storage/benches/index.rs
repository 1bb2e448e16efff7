//! The directory with a million series: `cargo bench -p hindcast-storage --bench index`.
//!
//! First the sizes and the times of whole passes (CPU time of the thread, best of three), then criterion's figures for
//! single searches. Three shapes of a million series:
//! - `scrapes`: 1,000 targets of 1,000 series each, 7 to 9 labels, as one scrape after the other defines them;
//! - `pods`: 100,000 pods with 10 series each, a pod's name being random text;
//! - `ids`: every series has an id of 32 hex digits of its own.

#![allow(
    clippy::disallowed_methods,
    reason = "a bench reads the clock and the kernel's counters"
)]

use criterion::{Criterion, criterion_group};
use hindcast_model::resource::owner;
use hindcast_model::{Labels, MatchOp, Matcher, TenantId};
use hindcast_storage::index::Directory;
use std::hint::black_box;

const SERIES: u64 = 1_000_000;

fn mixed(i: u64) -> u64 {
    let x = (i ^ (i >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb)
}

type Pairs = Vec<(&'static str, String)>;

fn common(metric: String, target: u64) -> Pairs {
    vec![
        ("__name__", metric),
        ("instance", format!("10.{}.{}.17:9100", target / 250, target % 250)),
        (
            "job",
            ["node-exporter", "kube-state-metrics", "checkout"][target as usize % 3].to_owned(),
        ),
        (
            "cluster",
            format!("prod-eu-central-1{}", ["a", "b", "c"][target as usize % 3]),
        ),
        ("namespace", format!("team-{}", target % 40)),
    ]
}

fn scrapes(i: u64) -> Pairs {
    let (target, s) = (i / 1000, i % 1000);
    let mut pairs = common(format!("node_subsystem{}_metric{}_total", s % 10, s / 10), target);
    pairs.push(("node", format!("ip-10-{}-{}", target / 250, target % 250)));
    pairs.push(("device", format!("nvme{}n1", s % 10)));
    if s % 3 > 0 {
        pairs.push(("mode", ["idle", "system", "user", "iowait"][s as usize % 4].to_owned()));
    }
    if s % 3 > 1 {
        pairs.push(("le", format!("{}", (1u64 << (s % 12)) as f64 / 100.0)));
    }
    pairs
}

fn pods(i: u64) -> Pairs {
    let (pod, s) = (i / 10, i % 10);
    let mut pairs = common(format!("container_metric{s}_seconds_total"), pod / 100);
    let hash = mixed(pod);
    let service = pod % 1000;
    pairs.push(("pod", format!("svc-{service}-{:08x}-{:05x}", hash as u32, hash >> 44)));
    pairs.push(("container", format!("svc-{service}")));
    pairs.push(("node", format!("ip-10-0-{}", hash % 500)));
    pairs
}

fn ids(i: u64) -> Pairs {
    let mut pairs = common(format!("request_metric{}_total", i % 10), i / 1000);
    pairs.push(("id", format!("{:016x}{:016x}", mixed(i), mixed(!i))));
    pairs.push(("path", format!("/api/v{}", i % 20)));
    pairs
}

/// Of this thread, in milliseconds.
fn cpu_ms() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ns = text.split(' ').next().and_then(|n| n.parse::<f64>().ok());
    ns.unwrap_or(0.0) / 1e6
}

fn timed<T>(what: &str, rounds: usize, mut work: impl FnMut() -> T) -> T {
    let (mut best, mut last) = (f64::MAX, None);
    for _ in 0..rounds {
        drop(last.take());
        let start = cpu_ms();
        last = Some(black_box(work()));
        best = best.min(cpu_ms() - start);
    }
    println!("  {what}: {best:.0} ms");
    last.expect("there is a round")
}

fn filled(shape: fn(u64) -> Pairs) -> Directory {
    let mut d = Directory::default();
    let tenant = TenantId::default();
    let mut adding = 0.0;
    for first in (0..SERIES).step_by(10_000) {
        let sets: Vec<Labels> = (first..first + 10_000)
            .map(|i| shape(i).into_iter().map(|(n, v)| (n.to_owned(), v)).collect())
            .collect();
        let owners: Vec<_> = sets.iter().map(|l| owner(&tenant, l, &[])).collect();
        let start = cpu_ms();
        for (labels, owner) in sets.iter().zip(&owners) {
            d.find_or_add(&tenant, false, labels, owner);
        }
        adding += cpu_ms() - start;
    }
    println!("  find_or_add of new series: {adding:.0} ms");
    d
}

fn sized(name: &str, shape: fn(u64) -> Pairs) -> Directory {
    println!("{name}:");
    let added = filled(shape);
    let some: Vec<u32> = (0..SERIES as u32).step_by(7).collect();
    let tenant = TenantId::default();
    timed("find of 142,858 known series", 3, || {
        some.iter()
            .filter_map(|id| added.get(*id))
            .filter(|s| added.find(&tenant, false, s.labels(), &s.owner) == Some(s.id))
            .count()
    });
    let bytes = timed("encode", 3, || added.encode_from(0));
    let added_bytes = added.memory_bytes();
    drop(added);
    let d = timed("load", 3, || {
        let mut d = Directory::default();
        d.load(&bytes).expect("what was written is read");
        d
    });
    let n = SERIES as f64;
    println!("  file: {:.2} bytes a series", bytes.len() as f64 / n);
    println!(
        "  memory: {:.0} bytes a series loaded, {:.0} added",
        d.memory_bytes() as f64 / n,
        added_bytes as f64 / n
    );
    let labels: usize = (0..SERIES as u32)
        .filter_map(|i| d.get(i))
        .map(|s| s.labels().shared_bytes())
        .sum();
    println!("  of it label sets: {:.0} bytes a series", labels as f64 / n);
    d
}

fn searches(c: &mut Criterion) {
    use MatchOp::{Equal, NotEqual, NotRegex, Regex};
    let tenant = TenantId::default();
    type Search = (&'static str, &'static [(&'static str, MatchOp, &'static str)]);
    let run = |c: &mut Criterion, name: &str, shape: fn(u64) -> Pairs, searches: &[Search]| {
        let d = sized(name, shape);
        let mut group = c.benchmark_group(name);
        group
            .sample_size(10)
            .warm_up_time(std::time::Duration::from_millis(200));
        group.measurement_time(std::time::Duration::from_millis(800));
        for (what, matchers) in searches {
            let one = |(n, op, v): &(&str, MatchOp, &str)| Matcher::new(n, *op, v).expect("a matcher");
            let set = [matchers.iter().map(one).collect::<Vec<_>>()];
            let start = cpu_ms();
            let found = d.select(&tenant, false, &set).len();
            println!("{what}: {found} found, {:.2} ms the first time", cpu_ms() - start);
            group.bench_function(*what, |b| b.iter(|| black_box(d.select(&tenant, false, &set))));
        }
        group.finish();
    };
    let scrape_searches: &[Search] = &[
        (
            "equal, equal",
            &[
                ("__name__", Equal, "node_subsystem3_metric7_total"),
                ("instance", Equal, "10.2.30.17:9100"),
            ],
        ),
        ("one metric", &[("__name__", Equal, "node_subsystem3_metric7_total")]),
        (
            "metric, not namespace",
            &[
                ("__name__", Equal, "node_subsystem3_metric7_total"),
                ("namespace", NotEqual, "team-7"),
            ],
        ),
        (
            "metric, a|b|c",
            &[
                ("__name__", Equal, "node_subsystem3_metric7_total"),
                ("namespace", Regex, "team-1|team-2|team-3"),
            ],
        ),
        (
            "instance, metric by .*x.*",
            &[
                ("instance", Equal, "10.2.30.17:9100"),
                ("__name__", Regex, ".*metric7.*"),
            ],
        ),
        ("all of one cluster", &[("cluster", Equal, "prod-eu-central-1a")]),
    ];
    run(c, "scrapes", scrapes, scrape_searches);
    let pod_searches: &[Search] = &[
        (
            "prefix",
            &[
                ("pod", Regex, "svc-123-.*"),
                ("__name__", Equal, "container_metric3_seconds_total"),
            ],
        ),
        ("prefix and more", &[("pod", Regex, "svc-(123|7)-.*[0-7]")]),
        ("a|b|c", &[("container", Regex, "svc-1|svc-2|svc-3")]),
        ("anywhere", &[("pod", Regex, ".*-beef.*")]),
        (
            "metric, not prefix",
            &[
                ("__name__", Equal, "container_metric3_seconds_total"),
                ("pod", NotRegex, "svc-1.*"),
            ],
        ),
    ];
    run(c, "pods", pods, pod_searches);
    let id_searches: &[Search] = &[
        ("prefix", &[("id", Regex, "beef.*")]),
        ("anywhere", &[("id", Regex, ".*beefbe.*")]),
        ("one", &[("id", Equal, "beefbeefbeefbeefbeefbeefbeefbeef")]),
        (
            "few sets, anywhere",
            &[("instance", Equal, "10.2.30.17:9100"), ("id", Regex, ".*beef.*")],
        ),
    ];
    run(c, "ids", ids, id_searches);
}

criterion_group!(benches, searches);

fn main() {
    benches();
}

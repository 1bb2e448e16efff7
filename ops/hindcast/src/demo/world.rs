//! What sends beside this host in the demo: a database, a web shop and a switch.
//!
//! The database and the switch play pages of real exporters in a loop (`data/README.md`): gauges step, counters rise
//! on over the loop's end. The shop's series follow formulas of our own. [`Feed`] is pure: its rows and lines are a
//! function of the time alone. [`run`] pushes them through `hindcast.v1.Ingest`, first the half hour before, then live.
//!
//! Times are milliseconds for rows and nanoseconds for lines, since the Unix epoch. No series gets two samples of one
//! instant, so that what is acknowledged is what can be read back.

use crate::agent::batcher::{Batcher, Entry};
use crate::agent::io::asked_to_stop;
use crate::agent::io::send::{Sender, Sent, acked, now};
use crate::agent::{Endpoints, identity};
use crate::import::{Item, openmetrics};
use flate2::read::GzDecoder;
use hindcast_model::Labels;
use hindcast_model::resource::metric;
use std::collections::{BTreeMap, BTreeSet};
use std::f64::consts::TAU;
use std::io::Read;
use std::time::Duration;
use tokio::sync::watch;

const PUSH_INTERVAL: Duration = Duration::from_secs(2);
const BACKFILL_MS: i64 = 30 * 60 * 1000;
const BACKFILL_STEP_MS: i64 = 15 * 1000;

const DATABASE: &str = "shop-db";
const DATABASE_PORT: &str = "5432";
const SERVICE: &str = "shop";
const SERVICE_INSTANCE: &str = "shop-1";
const SWITCH: &str = "sw-core-1";

type Attributes = Vec<(String, String)>;
type Row = (Labels, f64);

fn owned(pairs: &[(&str, &str)]) -> Attributes {
    pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
}

/// One recorded page: its distance from the first one, and its rows.
#[derive(Clone, Debug)]
struct Page {
    offset_ms: i64,
    rows: BTreeMap<Labels, f64>,
}

/// Recorded pages that play in a loop.
#[derive(Clone, Debug)]
pub struct Recording {
    pages: Vec<Page>,
    /// Counters, and by how much each rises from its first page to its last, in millionths.
    risen: BTreeMap<Labels, i128>,
}

/// Whole numbers, so that a counter does not fall by the last bit where the loop begins again: that would be a reset.
fn millionths(value: f64) -> i128 {
    (value * 1e6).round() as i128
}

impl Recording {
    /// Reads pages headed by `#T`; a series gets `labels` beside its own. At least two pages, in order of time.
    pub fn parse(text: &str, labels: &[(&str, &str)]) -> Result<Self, String> {
        let mut counters = BTreeSet::new();
        let mut pages: Vec<Page> = vec![];
        let mut first_ms = None;
        for (number, line) in text.lines().enumerate() {
            if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|t| t.split_once(' ')) {
                if kind == "counter" {
                    counters.insert(name.to_owned());
                }
                continue;
            }
            match openmetrics::parse(line).map_err(|e| format!("line {}: {e}", number + 1))? {
                Item::PageTime(ms) => {
                    let offset_ms = ms - *first_ms.get_or_insert(ms);
                    if pages.last().is_some_and(|p| p.offset_ms >= offset_ms) {
                        return Err(format!("line {}: the pages are not in order of time", number + 1));
                    }
                    pages.push(Page {
                        offset_ms,
                        rows: BTreeMap::new(),
                    });
                }
                Item::Sample { labels: own, value, .. } => {
                    let page = pages.last_mut().ok_or("a row before the first page")?;
                    let given = labels.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
                    let own = own.iter().map(|(n, v)| (n.to_owned(), v.to_owned()));
                    page.rows.insert(own.chain(given).collect(), value);
                }
                Item::Nothing | Item::Line { .. } => {}
            }
        }
        if pages.len() < 2 {
            return Err("a recording needs two pages".to_owned());
        }
        let mut risen = BTreeMap::new();
        let mut first: BTreeMap<&Labels, f64> = BTreeMap::new();
        for (labels, value) in pages.iter().flat_map(|p| &p.rows) {
            if labels.metric_name().is_some_and(|n| counters.contains(n)) {
                let from = *first.entry(labels).or_insert(*value);
                risen.insert(labels.clone(), millionths(*value) - millionths(from));
            }
        }
        Ok(Self { pages, risen })
    }

    pub fn span_ms(&self) -> i64 {
        self.pages[self.pages.len() - 1].offset_ms
    }

    /// The rows after `elapsed_ms` of playing.
    pub fn rows(&self, elapsed_ms: i64) -> Vec<Row> {
        let (loops, place_ms) = (
            elapsed_ms.div_euclid(self.span_ms()),
            elapsed_ms.rem_euclid(self.span_ms()),
        );
        let at = self.pages.partition_point(|p| p.offset_ms <= place_ms) - 1;
        let (page, next) = (&self.pages[at], &self.pages[(at + 1).min(self.pages.len() - 1)]);
        let step_ms = i128::from((next.offset_ms - page.offset_ms).max(1));
        let row = |(labels, value): (&Labels, &f64)| {
            let Some(risen) = self.risen.get(labels) else {
                return (labels.clone(), *value);
            };
            let ahead = next
                .rows
                .get(labels)
                .map_or(0, |to| (millionths(*to) - millionths(*value)).max(0));
            let mut on_the_way = ahead * i128::from(place_ms - page.offset_ms) / step_ms;
            if millionths(*value) % 1_000_000 == 0 && ahead % 1_000_000 == 0 {
                // What counts whole things has no half ones in between.
                on_the_way -= on_the_way % 1_000_000;
            }
            let sum = millionths(*value) + on_the_way + i128::from(loops) * risen;
            (labels.clone(), sum as f64 / 1e6)
        };
        page.rows.iter().map(row).collect()
    }
}

/// Something that sends: its resource, its rows, its log.
#[derive(Clone, Debug)]
struct Source {
    name: &'static str,
    attributes: Attributes,
    rows: Rows,
    stream: Labels,
    log: Log,
}

#[derive(Clone, Debug)]
enum Rows {
    Recorded(Recording),
    Shop,
    None,
}

#[derive(Clone, Debug)]
enum Log {
    /// Distance from the recording's start, and the line; repeated with the recording.
    Recorded {
        lines: Vec<(i64, String)>,
        span_ms: i64,
    },
    Shop,
    Switch,
    Silent,
}

/// All that the world says, as a function of time. Starts at `anchor_ms`.
#[derive(Clone, Debug)]
pub struct Feed {
    anchor_ms: i64,
    sources: Vec<Source>,
}

impl Feed {
    /// `host`: attributes of the host that database and shop run on.
    pub fn new(anchor_ms: i64, host: &[(String, String)]) -> Result<Self, String> {
        let instance = format!("{DATABASE}:{DATABASE_PORT}");
        let database = Recording::parse(
            &unpacked(include_bytes!("data/postgres.txt.gz"))?,
            &[("job", "postgres"), ("instance", &instance)],
        )?;
        let switch = Recording::parse(
            &unpacked(include_bytes!("data/snmp.txt.gz"))?,
            &[("job", "snmp"), ("instance", SWITCH)],
        )?;
        let on_host = |pairs: &[(&str, &str)]| [owned(pairs), host.to_vec()].concat();
        let log = Log::Recorded {
            lines: postgres_log(include_str!("data/postgresql.log"))?,
            span_ms: database.span_ms(),
        };
        Ok(Self {
            anchor_ms,
            sources: vec![
                Source {
                    name: "database",
                    attributes: on_host(&[
                        ("db.system.name", "postgresql"),
                        ("server.address", DATABASE),
                        ("server.port", DATABASE_PORT),
                    ]),
                    rows: Rows::Recorded(database),
                    stream: Labels::from_pairs([("log_file_name", "postgresql.log"), ("server_address", DATABASE)]),
                    log,
                },
                Source {
                    name: "shop",
                    attributes: on_host(&[("service.name", SERVICE), ("service.instance.id", SERVICE_INSTANCE)]),
                    rows: Rows::Shop,
                    stream: Labels::from_pairs([("log_file_name", "shop.log"), ("service_name", SERVICE)]),
                    log: Log::Shop,
                },
                Source {
                    name: "switch",
                    attributes: vec![],
                    rows: Rows::Recorded(switch),
                    stream: Labels::empty(),
                    log: Log::Silent,
                },
                Source {
                    name: "switch-port",
                    // The port that this host hangs on: what a port's neighbour table says, as an edge of the topology.
                    attributes: on_host(&[("instance", SWITCH), ("ifIndex", "4")]),
                    rows: Rows::None,
                    // No `job`: with one it would be a service's stream, not the interface's.
                    stream: Labels::from_pairs([("instance", SWITCH), ("ifIndex", "4"), ("log_source", "snmptrap")]),
                    log: Log::Switch,
                },
            ],
        })
    }

    fn rows(&self, source: &Source, at_ms: i64) -> Vec<Row> {
        let elapsed_ms = at_ms - self.anchor_ms;
        match &source.rows {
            Rows::Recorded(recording) => recording.rows(elapsed_ms),
            Rows::Shop => shop_rows(elapsed_ms as f64 / 1000.0),
            Rows::None => vec![],
        }
    }

    /// Lines of the time from `from_ms`, which is left out, to `to_ms`.
    fn lines(&self, source: &Source, from_ms: i64, to_ms: i64) -> Vec<Entry> {
        let (from, to) = (from_ms - self.anchor_ms, to_ms - self.anchor_ms);
        let entry = |elapsed_ms: i64, line: String, severity: &str| Entry {
            at_ns: (self.anchor_ms + elapsed_ms).saturating_mul(1_000_000),
            line,
            metadata: owned(&[("severity_text", severity)]),
        };
        match &source.log {
            Log::Recorded { lines, span_ms } => {
                let mut out = vec![];
                for turn in from.div_euclid(*span_ms)..=to.div_euclid(*span_ms) {
                    for (offset, line) in lines {
                        let at = turn * span_ms + offset;
                        if from < at && at <= to {
                            let slow = line.contains("duration:");
                            out.push(entry(at, line.clone(), if slow { "WARN" } else { "INFO" }));
                        }
                    }
                }
                out
            }
            Log::Shop => every(7_000, from, to)
                .map(|n| match n % 9 {
                    8 => entry(
                        n * 7_000,
                        format!("payment of order {} declined: card_expired", 1000 + n),
                        "WARN",
                    ),
                    _ => entry(
                        n * 7_000,
                        format!("order {} placed, {} items", 1000 + n, n % 5 + 1),
                        "INFO",
                    ),
                })
                .collect(),
            Log::Silent => vec![],
            Log::Switch => every(90_000, from, to)
                .map(|n| {
                    // linkDown and linkUp of SNMPv2-MIB, four seconds apart in their own clock.
                    let (oid, name) = if n % 2 == 0 { ("3", "linkDown") } else { ("4", "linkUp") };
                    let line = format!("trap 1.3.6.1.6.3.1.1.5.{oid} {name} ifIndex=4 ifName=eth0");
                    entry(n * 90_000, line, if n % 2 == 0 { "WARN" } else { "INFO" })
                })
                .collect(),
        }
    }
}

/// The numbers of the ticks of a clock in `(from, to]`.
fn every(step_ms: i64, from: i64, to: i64) -> impl Iterator<Item = i64> {
    from.div_euclid(step_ms) + 1..=to.div_euclid(step_ms)
}

fn unpacked(gz: &[u8]) -> Result<String, String> {
    let mut text = String::new();
    let read = GzDecoder::new(gz).read_to_string(&mut text);
    read.map(|_| text)
        .map_err(|e| format!("the recording cannot be unpacked: {e}"))
}

/// Distance from the log's first line in milliseconds, and the line without its time.
fn postgres_log(text: &str) -> Result<Vec<(i64, String)>, String> {
    let mut lines = vec![];
    let mut first_ms = None;
    for line in text.lines() {
        let (time, rest) = line.split_once(" UTC ").ok_or("a line without its time")?;
        let ms = crate::import::when::time_ms(time).map_err(|e| e.to_string())?;
        lines.push((ms - *first_ms.get_or_insert(ms), rest.to_owned()));
    }
    Ok(lines)
}

/// Upper bounds of OpenTelemetry's advised buckets for durations in seconds, and which share of requests lies below.
const BUCKETS: [(&str, f64); 15] = [
    ("0.005", 0.05),
    ("0.01", 0.22),
    ("0.025", 0.51),
    ("0.05", 0.74),
    ("0.075", 0.85),
    ("0.1", 0.91),
    ("0.25", 0.97),
    ("0.5", 0.988),
    ("0.75", 0.993),
    ("1", 0.996),
    ("2.5", 0.999),
    ("5", 1.0),
    ("7.5", 1.0),
    ("10", 1.0),
    ("+Inf", 1.0),
];

/// Events up to `seconds` at a rate that swings by 30 % every ten minutes: the rate's integral, so it never falls.
fn events(per_second: f64, seconds: f64) -> f64 {
    const PERIOD: f64 = 600.0;
    let swing = 0.3 * PERIOD / TAU * (1.0 - (TAU * seconds / PERIOD).cos());
    (per_second * (seconds + swing)).max(0.0).floor()
}

struct ShopRows(Vec<Row>);

impl ShopRows {
    fn put(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let all = [&[("job", SERVICE), ("instance", SERVICE_INSTANCE)], labels].concat();
        self.0.push((metric(name, &all), value));
    }

    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], count: f64, mean: f64) {
        for (le, share) in BUCKETS {
            let labels = [labels, &[("le", le)]].concat();
            self.put(&format!("{name}_bucket"), &labels, (count * share).floor());
        }
        self.put(&format!("{name}_count"), labels, count);
        self.put(&format!("{name}_sum"), labels, count * mean);
    }
}

/// The shop's series after so many seconds.
fn shop_rows(seconds: f64) -> Vec<Row> {
    const MIB: f64 = 1024.0 * 1024.0;
    let mut out = ShopRows(vec![]);
    for (method, route, status, error, rate, mean) in [
        ("GET", "/items/{id}", "200", "", 24.0, 0.031),
        ("POST", "/orders", "201", "", 5.0, 0.058),
        ("POST", "/orders", "500", "500", 0.04, 0.11),
    ] {
        let labels = [
            ("http_request_method", method),
            ("http_route", route),
            ("http_response_status_code", status),
            ("error_type", error),
        ];
        out.histogram(
            "http_server_request_duration_seconds",
            &labels,
            events(rate, seconds),
            mean,
        );
    }
    let peer = [
        ("db_system_name", "postgresql"),
        ("server_address", DATABASE),
        ("server_port", DATABASE_PORT),
    ];
    for (operation, summary, rate, mean) in [
        ("SELECT", "SELECT accounts", 29.0, 0.004),
        ("INSERT", "INSERT history", 5.0, 0.009),
    ] {
        let labels = [
            &peer[..],
            &[("db_operation_name", operation), ("db_query_summary", summary)],
        ]
        .concat();
        out.histogram(
            "db_client_operation_duration_seconds",
            &labels,
            events(rate, seconds),
            mean,
        );
    }
    let wave = |period: f64| (1.0 + (TAU * seconds / period).sin()) / 2.0;
    out.put(
        "http_server_active_requests",
        &[("http_request_method", "GET")],
        (4.0 * wave(47.0)).round(),
    );
    let used = 2.0 + (6.0 * wave(61.0)).round();
    let pool = ("db_client_connection_pool_name", "orders");
    for (state, count) in [("used", used), ("idle", 10.0 - used)] {
        out.put(
            "db_client_connection_count",
            &[pool, ("db_client_connection_state", state)],
            count,
        );
    }
    out.put(
        "db_client_connection_pending_requests",
        &[pool],
        (wave(61.0) - 0.9).max(0.0).ceil(),
    );
    // A young generation that fills in 20 s, and an old one that grows by what survives, emptied every 10 min.
    let (young, old) = (seconds.rem_euclid(20.0) / 20.0, seconds.rem_euclid(600.0) / 600.0);
    for (name, used, after_gc, limit) in [
        ("G1 Eden Space", 8.0 + 180.0 * young, 0.0, 200.0),
        ("G1 Old Gen", 90.0 + 120.0 * old, 90.0, 512.0),
    ] {
        let labels = [("jvm_memory_type", "heap"), ("jvm_memory_pool_name", name)];
        out.put("jvm_memory_used_bytes", &labels, (used * MIB).floor());
        out.put("jvm_memory_used_after_last_gc_bytes", &labels, after_gc * MIB);
        out.put("jvm_memory_limit_bytes", &labels, limit * MIB);
    }
    for (name, action, every, mean) in [
        ("G1 Young Generation", "end of minor GC", 20.0, 0.012),
        ("G1 Old Generation", "end of major GC", 600.0, 0.18),
    ] {
        let labels = [("jvm_gc_name", name), ("jvm_gc_action", action)];
        let count = (seconds / every).max(0.0).floor();
        out.put("jvm_gc_duration_seconds_count", &labels, count);
        out.put("jvm_gc_duration_seconds_sum", &labels, count * mean);
    }
    for (state, count) in [("runnable", 6.0 + used), ("waiting", 14.0), ("timed_waiting", 9.0)] {
        out.put("jvm_thread_count", &[("jvm_thread_state", state)], count);
    }
    out.0
}

/// What became of it, counted from the server's answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorldReport {
    pub samples_acked: u64,
    pub lines_acked: u64,
    pub batches: u64,
    pub retries: u64,
    pub refused: u64,
}

/// Sends the half hour before now, then what is live, until `stop` turns true. `host`: the name of the host that the
/// agent watches; database and shop run on it.
pub async fn run(endpoints: Endpoints, host: String, mut stop: watch::Receiver<bool>) -> WorldReport {
    let this = identity(None);
    let host = if this.host_name == host {
        this.attributes()
    } else {
        identity(Some(host)).attributes()
    };
    let start_ms = now().as_ms();
    let feed = Feed::new(start_ms - BACKFILL_MS, &host).expect("the recordings are part of the binary and tested");
    let sender = Sender::new(&endpoints, &crate::tls::TlsArgs::default(), "default", None)
        .expect("the default tenant is ASCII, endpoints are parsed");
    let mut push = Push {
        batchers: feed
            .sources
            .iter()
            .map(|s| Batcher::new(format!("world/{}/{start_ms}", s.name), &s.attributes))
            .collect(),
        feed,
        sender,
        report: WorldReport::default(),
    };
    tokio::select! {
        biased;
        // What is under way then stays unconfirmed, and uncounted.
        () = asked_to_stop(&mut stop) => {}
        () = push.all(start_ms) => {}
    }
    push.report.retries = push.sender.retries;
    push.report
}

struct Push {
    feed: Feed,
    batchers: Vec<Batcher>,
    sender: Sender,
    report: WorldReport,
}

impl Push {
    async fn all(&mut self, start_ms: i64) {
        let mut before_ms = self.feed.anchor_ms - 1;
        let mut at_ms = self.feed.anchor_ms;
        while at_ms < start_ms {
            self.take(before_ms, at_ms).await;
            before_ms = at_ms;
            at_ms += BACKFILL_STEP_MS;
        }
        self.flush().await;
        let mut ticks = tokio::time::interval(PUSH_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // A clock that was set back must not write over what was sent.
            let at_ms = now().as_ms().max(before_ms + 1);
            self.take(before_ms, at_ms).await;
            self.flush().await;
            before_ms = at_ms;
        }
    }

    /// Batches the rows of an instant, and the lines since the one before.
    async fn take(&mut self, before_ms: i64, at_ms: i64) {
        let mut filled = vec![];
        for (source, batcher) in self.feed.sources.iter().zip(&mut self.batchers) {
            for (labels, value) in self.feed.rows(source, at_ms) {
                filled.extend(batcher.sample(&labels, at_ms, value));
            }
            for entry in self.feed.lines(source, before_ms, at_ms) {
                filled.extend(batcher.line(&source.stream, entry));
            }
        }
        self.send(filled).await;
    }

    async fn flush(&mut self) {
        let rest = self.batchers.iter_mut().filter_map(Batcher::finish).collect();
        self.send(rest).await;
    }

    async fn send(&mut self, batches: Vec<hindcast_proto::v1::WriteRequest>) {
        for batch in batches {
            match self.sender.send(&batch).await {
                Sent::Acked(answer) => {
                    let (samples, lines) = acked(&batch, &answer);
                    self.report.batches += 1;
                    self.report.samples_acked += samples;
                    self.report.lines_acked += lines;
                    self.report.refused += answer.rejected.iter().map(|r| r.items).sum::<u64>();
                }
                Sent::Refused(status) | Sent::GaveUp(status) => {
                    let (samples, lines) = crate::agent::batcher::items(&batch);
                    self.report.refused += samples + lines;
                    tracing::warn!(error = %status.message(), "a batch of the world was refused");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use hindcast_model::TenantId;
    use hindcast_model::resource::owning_resource;
    use proptest::prelude::*;
    use std::fmt::Write;

    const ANCHOR_MS: i64 = 1_800_000_000_000;

    /// Unpacked once: it is a million bytes.
    fn feed() -> &'static Feed {
        static FEED: std::sync::LazyLock<Feed> = std::sync::LazyLock::new(|| {
            Feed::new(ANCHOR_MS, &owned(&[("host.name", "demo-host"), ("host.id", "42")])).unwrap()
        });
        &FEED
    }

    /// Series of one recording at these times.
    fn check(pages: &str, times_ms: &[i64], expect: Expect) {
        let recording = Recording::parse(pages, &[("job", "j")]).unwrap();
        let mut out = String::new();
        for at in times_ms {
            let rows: Vec<_> = recording.rows(*at).iter().map(|(l, v)| format!("{l} {v}")).collect();
            writeln!(out, "{at}: {}", rows.join(", ")).unwrap();
        }
        expect.assert_eq(&out);
    }

    #[test]
    fn a_loop_goes_on_where_it_ended() {
        check(
            "# TYPE c counter\n#T 1000\nc 10\ng 5\n#T 2000\nc 20\ng 6\n#T 3000\nc 40\ng 7\n",
            &[0, 500, 1000, 1999, 2000, 2500, 4000],
            expect![[r#"
                0: c{job="j"} 10, g{job="j"} 5
                500: c{job="j"} 10, g{job="j"} 5
                1000: c{job="j"} 10, g{job="j"} 5
                1999: c{job="j"} 10, g{job="j"} 5
                2000: c{job="j"} 10, g{job="j"} 5
                2500: c{job="j"} 10, g{job="j"} 5
                4000: c{job="j"} 10, g{job="j"} 5
            "#]],
        );
    }

    #[test]
    fn the_world_fills_the_three_domains_that_no_agent_sees() {
        let feed = feed();
        let mut owners: BTreeMap<String, usize> = BTreeMap::new();
        let mut names = BTreeSet::new();
        for source in &feed.sources {
            for (labels, _) in feed.rows(source, ANCHOR_MS + 60_000) {
                let owner = owning_resource(&TenantId::default(), &labels, &source.attributes).unwrap();
                *owners
                    .entry(format!("{} {} {}", owner.kind.domain(), owner.kind, owner.name))
                    .or_default() += 1;
                names.insert(labels.metric_name().unwrap().to_owned());
            }
            if matches!(source.log, Log::Silent) {
                continue;
            }
            let owner = owning_resource(&TenantId::default(), &source.stream, &source.attributes).unwrap();
            let lines = feed.lines(source, ANCHOR_MS, ANCHOR_MS + 600_000).len();
            *owners
                .entry(format!("{} {} {} lines", owner.kind.domain(), owner.kind, owner.name))
                .or_default() += lines;
        }
        let shown: String = owners.iter().map(|(o, n)| format!("{o}: {n}\n")).collect();
        expect![[r#"
            APM instance shop/shop-1: 102
            APM instance shop/shop-1 lines: 85
            DBMS database postgresql/shop-db/5432: 102
            DBMS database postgresql/shop-db/5432 lines: 31
            NMS device sw-core-1: 7
            NMS interface sw-core-1/1: 9
            NMS interface sw-core-1/2: 9
            NMS interface sw-core-1/3: 9
            NMS interface sw-core-1/4: 9
            NMS interface sw-core-1/4 lines: 6
        "#]]
        .assert_eq(&shown);
        for name in [
            "pg_up",
            "pg_stat_database_xact_commit",
            "pg_locks_count",
            "pg_stat_activity_max_tx_duration",
            "pg_stat_statements_seconds_total",
            "http_server_request_duration_seconds_bucket",
            "jvm_memory_used_bytes",
            "db_client_operation_duration_seconds_count",
            "ifHCInOctets",
            "ifOperStatus",
            "ifHighSpeed",
            "sysUpTime",
        ] {
            assert!(names.contains(name), "{name}");
        }
    }

    #[test]
    fn the_world_can_run_as_a_task() {
        fn sendable<T: Send>(_: &T) {}
        let (_stop, stopped) = watch::channel(true);
        sendable(&run(Endpoints::parse("127.0.0.1:1").unwrap(), "h".to_owned(), stopped));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

        #[test]
        fn counters_never_fall_and_no_series_comes_twice(at in 0i64..4_000_000, later in 0i64..2_000_000) {
            let feed = feed();
            for source in &feed.sources {
                let counts = |labels: &Labels| match &source.rows {
                    Rows::Recorded(r) => r.risen.contains_key(labels),
                    Rows::Shop => {
                        let name = labels.metric_name().unwrap();
                        let gauge = name.contains("connection") || name.contains("thread");
                        !gauge && ["_bucket", "_count", "_sum"].iter().any(|s| name.ends_with(s))
                    }
                    Rows::None => false,
                };
                let rows = feed.rows(source, ANCHOR_MS + at);
                let first: BTreeMap<_, _> = rows.iter().cloned().collect();
                prop_assert_eq!(first.len(), rows.len());
                for (labels, value) in feed.rows(source, ANCHOR_MS + at + later) {
                    if let Some(before) = first.get(&labels).filter(|_| counts(&labels)) {
                        prop_assert!(value >= *before, "{} {} {}", labels, before, value);
                    }
                }
            }
        }

        #[test]
        fn every_line_comes_once_however_the_time_is_cut(cut in 1i64..2_000_000) {
            let feed = feed();
            for source in &feed.sources {
                let whole = feed.lines(source, ANCHOR_MS - 1, ANCHOR_MS + 2_000_000);
                let mut parts = feed.lines(source, ANCHOR_MS - 1, ANCHOR_MS + cut);
                parts.extend(feed.lines(source, ANCHOR_MS + cut, ANCHOR_MS + 2_000_000));
                prop_assert_eq!(parts, whole);
            }
        }
    }
}

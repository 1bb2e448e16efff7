//! Whole replays over a tiny world in memory: scripts, golden frames, and what is always true.

use super::frame::{
    AlertFrame, Change, ChangeKind, DomainFrame, Fact, Frame, LeftOut, Level, LineFrame, LogsFrame, ResourceFrame,
    ResourceNode, SignalFrame, State, StreamFrame, TopologyFrame,
};
use super::play::{Loading, PlayedFrame, Player};
use super::spec::{AsOf, ReplaySpec};
use super::{ReplayError, chained, decode_frame, decode_spec, encode_frame, encode_spec};
use crate::engine::{Engine, Limits};
use crate::shards::{
    Columns, ColumnsRequest, Completeness, CountsRequest, LabelsRequest, LinesRequest, NativeSeries, SeriesRequest,
    Shards, ShardsError,
};
use crate::testing::OneShard;
use expect_test::{Expect, expect, expect_file};
use hindcast_model::resource::{Edge, EdgeKind};
use hindcast_model::{
    Class, Classify, CutId, Domain, GroupId, IncidentId, Kind, Labels, LogLine, Owner, Resource, ResourceId, Sample,
    Severity, SpanNs, TenantId, TimestampNs,
};
use hindcast_proto::history::{HistoryKind, HistoryRecord};
use hindcast_proto::topology::TopologyRecord;
use hindcast_proto::trace::{NATIVE, TRACE_LABEL};
use hindcast_storage::read::{SeriesData, StreamCounts, StreamData};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

/// What was known at the cut, and what is known now.
#[derive(Default)]
struct TwoWorlds {
    then: OneShard,
    now: OneShard,
}

impl TwoWorlds {
    fn of(&self, as_of: Option<&hindcast_model::Positions>) -> &OneShard {
        if as_of.is_some() { &self.then } else { &self.now }
    }
}

#[async_trait::async_trait]
impl Shards for TwoWorlds {
    async fn series(&self, r: SeriesRequest) -> Result<(Vec<SeriesData>, Completeness), ShardsError> {
        self.of(r.as_of.as_ref()).series(r).await
    }
    async fn columns(&self, r: ColumnsRequest) -> Result<(Columns, Completeness), ShardsError> {
        self.of(r.series.as_of.as_ref()).columns(r).await
    }
    async fn natives(&self, r: SeriesRequest) -> Result<(Vec<NativeSeries>, Completeness), ShardsError> {
        self.of(r.as_of.as_ref()).natives(r).await
    }
    async fn line_counts(&self, r: CountsRequest) -> Result<(Vec<StreamCounts>, Completeness), ShardsError> {
        self.of(r.as_of.as_ref()).line_counts(r).await
    }
    async fn lines(&self, r: LinesRequest) -> Result<(Vec<StreamData>, Completeness), ShardsError> {
        self.of(r.as_of.as_ref()).lines(r).await
    }
    async fn label_sets(&self, r: LabelsRequest) -> Result<(Vec<Labels>, Completeness), ShardsError> {
        self.now.label_sets(r).await
    }
    async fn complete_to(&self, tenant: &TenantId) -> Result<TimestampNs, ShardsError> {
        self.now.complete_to(tenant).await
    }
}

/// One line of a script. Times are seconds.
///
///     T host|database|service|instance|device NAME          first seen
///     T edge FROM KIND TO                                    first seen
///     T sample NAME METRIC{a="b"} VALUE                      `stale` ends the series
///     T histogram NAME METRIC{a="b"} LINE…                   a native one, as it is stored
///     T log NAME LEVEL TEXT…
///     T alert ID PHASE SEVERITY RESOURCE INCIDENT            `-` for none
///     T incident|ticket|delivery ID CHANGE RESOURCE|INCIDENT
///     T rule ID CHANGE
///
/// A line that starts with `late` became known after the cut.
struct Script {
    shards: Arc<TwoWorlds>,
    resources: BTreeMap<String, (ResourceId, Kind)>,
    commands: u64,
}

fn tenant() -> TenantId {
    TenantId::default()
}

impl Script {
    fn new(script: &str) -> Self {
        let mut s = Self {
            shards: Arc::default(),
            resources: BTreeMap::new(),
            commands: 0,
        };
        for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
            s.line(line);
        }
        s
    }

    fn line(&mut self, line: &str) {
        let (late, line) = line.strip_prefix("late ").map_or((false, line), |l| (true, l));
        let words: Vec<&str> = line.split_whitespace().collect();
        let seconds: f64 = words[0].parse().expect("a line starts with a time");
        let at = TimestampNs((seconds * 1e9) as i64);
        let kinds = ["alert", "incident", "ticket", "delivery", "rule"];
        match (words[1], &words[2..]) {
            ("edge", [from, kind, to]) => {
                let kind: EdgeKind = serde_json::from_value((*kind).into()).unwrap();
                let (from, to) = (self.resources[*from].0, self.resources[*to].0);
                self.topology(late, at, from, &TopologyRecord::Edge(Edge { from, to, kind }));
            }
            ("sample", [name, series, value]) => {
                let value = match *value {
                    "stale" => f64::from_bits(hindcast_model::STALE_NAN_BITS),
                    v => v.parse().unwrap(),
                };
                let owner = self.owner(name);
                let labels = series_labels(series).with("instance", name);
                for shard in self.worlds(late) {
                    shard.add_owned(&tenant(), labels.clone(), owner, [Sample { at, value }]);
                }
            }
            ("histogram", [name, series, text @ ..]) => {
                let line = LogLine {
                    at,
                    line: text.join(" ").into(),
                    metadata: vec![],
                };
                let labels = series_labels(series).with("instance", name).with(TRACE_LABEL, NATIVE);
                let owner = self.owner(name);
                self.add_line(late, labels, owner, line);
            }
            ("log", [name, level, text @ ..]) => {
                let line = LogLine {
                    at,
                    line: text.join(" ").into(),
                    metadata: vec![("level".into(), (*level).into())],
                };
                let labels = Labels::from_pairs([("service_name", name)]);
                let owner = self.owner(name);
                self.add_line(late, labels, owner, line);
            }
            (kind, rest) if kinds.contains(&kind) => self.history(late, at, kind, rest),
            (kind, [name]) => {
                let kind = Kind::parse(kind).unwrap_or_else(|| panic!("no kind {kind:?} in {line:?}"));
                let id = ResourceId::new(&tenant(), kind, &[name]);
                self.resources.insert((*name).to_owned(), (id, kind));
                let resource = Resource {
                    id,
                    kind,
                    name: (*name).to_owned(),
                    attributes: BTreeMap::new(),
                };
                self.topology(late, at, id, &TopologyRecord::Resource(resource));
            }
            _ => panic!("cannot read {line:?}"),
        }
    }

    fn history(&mut self, late: bool, at: TimestampNs, kind: &str, words: &[&str]) {
        self.commands += 1;
        let (object, change) = (words[0], words[1]);
        let ids = |names: &str| -> Vec<String> {
            let known = names.split(',').filter_map(|n| self.resources.get(n));
            known.map(|(id, _)| id.to_string()).collect()
        };
        let (kind, state) = match (kind, &words[2..]) {
            ("alert", [severity, resource, incident]) => (
                HistoryKind::Alert,
                serde_json::json!({"state": change, "severity": severity, "resources": ids(resource),
                    "incident": if *incident == "-" { "" } else { incident }}),
            ),
            ("incident", [resource]) => (
                HistoryKind::Incident,
                serde_json::json!({"state": change, "resources": ids(resource)}),
            ),
            ("ticket", [incident]) => (
                HistoryKind::Ticket,
                serde_json::json!({"status": change, "incident": incident}),
            ),
            ("delivery", [incident]) => (HistoryKind::Delivery, serde_json::json!({"incident": incident})),
            ("rule", []) => (HistoryKind::Rule, serde_json::json!({})),
            other => panic!("cannot read {other:?}"),
        };
        let record = HistoryRecord {
            kind,
            tenant: tenant(),
            object: object.to_owned(),
            at,
            index: self.commands,
            seq: 0,
            change: change.to_owned(),
            state,
        };
        let line = LogLine {
            at,
            line: record.to_line().into(),
            metadata: vec![],
        };
        self.add_line(late, kind.stream(), Owner::None, line);
    }

    fn topology(&self, late: bool, at: TimestampNs, id: ResourceId, record: &TopologyRecord) {
        let (_, kind) = self
            .resources
            .values()
            .find(|(known, _)| *known == id)
            .expect("named before");
        let line = LogLine {
            at,
            line: record.to_line().into(),
            metadata: vec![],
        };
        self.add_line(late, record.stream(), Owner::Resource { id, kind: *kind }, line);
    }

    fn add_line(&self, late: bool, labels: Labels, owner: Owner, line: LogLine) {
        for shard in self.worlds(late) {
            shard.add_lines(&tenant(), labels.clone(), owner, [line.clone()]);
        }
    }

    fn worlds(&self, late: bool) -> impl Iterator<Item = &OneShard> {
        (!late)
            .then_some(&self.shards.then)
            .into_iter()
            .chain([&self.shards.now])
    }

    fn owner(&self, name: &str) -> Owner {
        match self.resources.get(name) {
            Some((id, kind)) => Owner::Resource { id: *id, kind: *kind },
            None => Owner::None,
        }
    }

    fn spec(&self, scope: &[&str], from: i64, to: i64) -> ReplaySpec {
        let resources = scope.iter().map(|n| self.resources[*n].0).collect();
        let window = (TimestampNs::from_secs(from), TimestampNs::from_secs(to));
        let as_of = AsOf::Cut {
            id: CutId(1),
            positions: [(GroupId(1), 7)].into(),
        };
        let step = SpanNs::from_secs(10);
        ReplaySpec::new(tenant(), Some(IncidentId(1)), resources, window, step, vec![], as_of).unwrap()
    }

    fn play(&self, spec: &ReplaySpec, loading: Loading) -> Result<Vec<PlayedFrame>, ReplayError> {
        let shards: Arc<dyn Shards> = self.shards.clone();
        let engine = Arc::new(Engine::new(shards.clone(), Limits::default()));
        let mut playing = Player::new(engine, shards).loading(loading).play(spec.clone())?;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut frames = vec![];
            while let Some(frame) = playing.next().await? {
                frames.push(frame);
            }
            Ok(frames)
        })
    }

    /// Frames as text, with names for ids; checks numbers, digests and the mark of the last frame on the way.
    fn shown(&self, spec: &ReplaySpec) -> String {
        let frames = self.play(spec, Loading::default()).unwrap();
        assert_eq!(decode_spec(&frames[0].bytes).unwrap(), *spec);
        let mut digest = None;
        for (n, frame) in frames.iter().enumerate() {
            digest = Some(chained(digest, &frame.bytes));
            assert_eq!((frame.number, Some(frame.digest)), (n as u64, digest));
            assert_eq!(frame.last, n + 1 == frames.len());
        }
        let decoded = frames[1..].iter().map(|f| decode_frame(&f.bytes).unwrap());
        decoded.map(|f| self.one(&f)).collect()
    }

    fn name(&self, id: ResourceId) -> String {
        let found = self.resources.iter().find(|(_, (known, _))| *known == id);
        found.map_or_else(|| id.to_string(), |(name, _)| name.clone())
    }

    fn one(&self, f: &Frame) -> String {
        let mut out = format!("{}\n", f.at.0 / 1_000_000_000);
        for d in f.domains.iter().filter(|d| !d.resources.is_empty()) {
            write!(out, "  {}", d.domain).unwrap();
            let mut resources: Vec<_> = d.resources.iter().map(|r| (self.name(r.id), r)).collect();
            resources.sort_by(|a, b| a.0.cmp(&b.0));
            for (name, r) in resources {
                write!(out, " [{name} {}", r.state.as_str()).unwrap();
                for s in &r.signals {
                    let value = s.value.map_or("absent".to_owned(), |v| v.to_string());
                    let object = if s.object.is_empty() {
                        String::new()
                    } else {
                        format!("({})", s.object)
                    };
                    write!(out, " {}{object}#{}={value}", s.name, s.binding).unwrap();
                }
                out.push(']');
            }
            out.push('\n');
        }
        let mut nodes: Vec<String> = f.topology.resources.iter().map(|n| n.name.clone()).collect();
        nodes.sort();
        let edges = f
            .topology
            .edges
            .iter()
            .map(|e| format!("{}-{}", self.name(e.from), self.name(e.to)));
        nodes.extend(edges);
        writeln!(out, "  topology {}", nodes.join(" ")).unwrap();
        for a in &f.alerts {
            let severity = a.severity.map_or("-", Severity::as_str);
            let since = a.since.0 / 1_000_000_000;
            writeln!(out, "  alert {} {} {severity} since {since}", a.id, a.phase).unwrap();
        }
        for fact in f.incidents.iter().chain(&f.tickets) {
            writeln!(out, "  {} {}", fact.object, fact.change).unwrap();
        }
        for s in &f.logs.streams {
            let lines: Vec<String> = s.lines_by_level.iter().map(ToString::to_string).collect();
            writeln!(out, "  stream {} {}", s.labels, lines.join(" ")).unwrap();
        }
        for l in &f.logs.lines {
            writeln!(out, "  log {} {}", l.level.as_str(), l.line).unwrap();
        }
        for c in &f.changes {
            let object: Vec<String> = c
                .object
                .split(' ')
                .map(|w| ResourceId::parse(w).map_or_else(|| w.to_owned(), |id| self.name(id)))
                .collect();
            writeln!(out, "  change {:?} {} {}", c.kind, object.join(" "), c.what).unwrap();
        }
        if f.left_out != LeftOut::default() {
            writeln!(out, "  left out {:?}", f.left_out).unwrap();
        }
        for m in &f.incomplete {
            writeln!(out, "  incomplete {m}").unwrap();
        }
        out
    }
}

fn series_labels(text: &str) -> Labels {
    let (name, rest) = text.split_once('{').unwrap_or((text, ""));
    let pairs = rest.trim_end_matches('}').split(',').filter(|p| !p.is_empty());
    let mut all: Vec<(String, String)> = pairs
        .map(|p| p.split_once('=').expect("label=value"))
        .map(|(n, v)| (n.to_owned(), v.trim_matches('"').to_owned()))
        .collect();
    all.push(("__name__".to_owned(), name.to_owned()));
    Labels::new(all)
}

fn check(script: &str, scope: &[&str], (from, to): (i64, i64), expect: Expect) {
    let s = Script::new(script);
    expect.assert_eq(&s.shown(&s.spec(scope, from, to)));
}

/// A web server and its database fall over together.
const STORY: &str = r#"
    0 host web-1
    0 service shop
    0 instance shop/1
    0 database orders
    0 device far-away
    0 edge shop/1 runs_on web-1
    0 edge shop/1 part_of shop
    5 edge shop/1 depends_on orders
    600 sample web-1 node_load1 0.5
    610 sample web-1 node_load1 4
    620 sample web-1 node_load1 9
    600 sample web-1 node_filesystem_size_bytes{mountpoint="/"} 100
    600 sample web-1 node_filesystem_avail_bytes{mountpoint="/"} 25
    600 sample orders postgresql_backends{db="a"} 3
    600 sample orders postgresql_backends{db="b"} 4
    600 sample orders pg_stat_database_numbackends 99
    600 sample shop/1 http_server_active_requests 2
    600 sample far-away sysUpTime 100
    601 log shop/1 info hello
    612 log shop/1 info busy
    613 log web-1 error out of memory
    613 log shop/1 error no answer from orders
    300 rule high-load loaded
    611 alert A1 pending - web-1 -
    615 alert A1 firing critical web-1 INC-1
    615 incident INC-1 open web-1
    615 ticket T-1 new INC-1
    616 delivery mail-1 delivered INC-1
    616 alert A2 firing critical far-away INC-2
    621 ticket T-1 in_progress INC-1
"#;

#[test]
fn a_story_is_told_frame_by_frame() {
    check(
        STORY,
        &["shop/1"],
        (600, 620),
        expect![[r#"
        600
          SMS [web-1 ok sms.fs.used(/)#3=0.75 sms.load.1m#1=0.5]
          DBMS [orders ok dbms.conn.used#0=7]
          APM [shop ok] [shop/1 ok apm.req.active#0=2]
          topology orders shop shop/1 web-1 shop/1-shop shop/1-orders shop/1-web-1
        610
          SMS [web-1 ok sms.fs.used(/)#3=0.75 sms.load.1m#1=4]
          DBMS [orders ok dbms.conn.used#0=7]
          APM [shop ok] [shop/1 ok apm.req.active#0=2]
          topology orders shop shop/1 web-1 shop/1-shop shop/1-orders shop/1-web-1
          stream {service_name="shop/1"} 0 0 0 1 0 0
          log info hello
        620
          SMS [web-1 critical sms.fs.used(/)#3=0.75 sms.load.1m#1=9]
          DBMS [orders ok dbms.conn.used#0=7]
          APM [shop ok] [shop/1 ok apm.req.active#0=2]
          topology orders shop shop/1 web-1 shop/1-shop shop/1-orders shop/1-web-1
          alert A1 firing critical since 615
          INC-1 open
          T-1 new
          stream {service_name="shop/1"} 0 1 0 1 0 0
          stream {service_name="web-1"} 0 1 0 0 0 0
          log info busy
          log error no answer from orders
          log error out of memory
          change Alert A1 pending
          change Alert A1 firing
          change Incident INC-1 open
          change Ticket T-1 new
          change Delivery mail-1 delivered
    "#]],
    );
}

#[test]
fn a_story_gives_the_same_bytes_for_ever() {
    let s = Script::new(STORY);
    // As it was made with the table of its day.
    let spec = ReplaySpec {
        binding_revision: 1,
        ..s.spec(&["shop/1"], 600, 620)
    };
    let frames = s.play(&spec, Loading::default()).unwrap();
    let mut golden = String::new();
    for f in &frames {
        let hex: String = f.bytes.iter().map(|b| format!("{b:02x}")).collect();
        writeln!(golden, "{} {} {hex}", f.number, f.digest).unwrap();
    }
    expect_file!["../../tests/golden/replay_story_v1.txt"].assert_eq(&golden);
}

#[test]
fn late_evidence_is_hidden_as_of_the_cut_and_shown_when_corrected() {
    let s = Script::new(
        "
        0 host web-1
        600 sample web-1 node_load1 1
        late 605 sample web-1 node_load1 2
        late 606 log web-1 error it was me
        late 0 host web-2
        late 604 edge web-1 connects_to web-2
        ",
    );
    let then = s.spec(&["web-1"], 600, 610);
    let mut corrected = then.clone();
    corrected.as_of = AsOf::Corrected;
    expect![[r#"
        600
          SMS [web-1 ok sms.load.1m#1=1]
          topology web-1
        610
          SMS [web-1 ok sms.load.1m#1=1]
          topology web-1
    "#]]
    .assert_eq(&s.shown(&then));
    expect![[r#"
        600
          SMS [web-1 ok sms.load.1m#1=1] [web-2 nodata]
          topology web-1 web-2
        610
          SMS [web-1 ok sms.load.1m#1=2] [web-2 nodata]
          topology web-1 web-2 web-1-web-2
          stream {service_name="web-1"} 0 1 0 0 0 0
          log error it was me
          change Edge web-1 connects_to web-2 seen
    "#]]
    .assert_eq(&s.shown(&corrected));
    let digest = |spec| s.play(spec, Loading::default()).unwrap().last().unwrap().digest;
    assert_ne!(digest(&then), digest(&corrected));
}

#[test]
fn what_cannot_be_read_is_named_and_never_filled() {
    let s = Script::new(
        "
        0 host web-1
        600 sample web-1 node_load1 1
        ",
    );
    let whole = s.shown(&s.spec(&["web-1"], 600, 600));
    let gone = vec!["shard 2: samples from 500.000 to 700.000 are damaged on every replica".to_owned()];
    s.shards.then.set_missing(gone);
    let partial = s.shown(&s.spec(&["web-1"], 600, 600));
    expect![[r#"
        600
          SMS [web-1 ok sms.load.1m#1=1]
          topology web-1
          incomplete history: shard 2: samples from 500.000 to 700.000 are damaged on every replica
          incomplete logs: shard 2: samples from 500.000 to 700.000 are damaged on every replica
          incomplete metrics: shard 2: samples from 500.000 to 700.000 are damaged on every replica
          incomplete topology: shard 2: samples from 500.000 to 700.000 are damaged on every replica
    "#]]
    .assert_eq(&partial);
    assert!(partial.starts_with(&whole), "what is left is shown as it is");
}

#[test]
fn a_signal_that_ends_is_absent_not_zero_and_a_silent_host_has_no_data() {
    check(
        "
        0 host web-1
        600 sample web-1 node_load1 1
        611 sample web-1 node_load1 stale
        ",
        &["web-1"],
        (590, 620),
        expect![[r#"
            590
              SMS [web-1 nodata]
              topology web-1
            600
              SMS [web-1 ok sms.load.1m#1=1]
              topology web-1
            610
              SMS [web-1 ok sms.load.1m#1=1]
              topology web-1
            620
              SMS [web-1 nodata sms.load.1m#1=absent]
              topology web-1
        "#]],
    );
}

#[test]
fn the_first_source_with_data_anywhere_in_the_window_wins() {
    // OpenTelemetry's name comes first in the binding, though its only sample comes last.
    check(
        "
        0 host web-1
        0 host web-2
        0 edge web-1 connects_to web-2
        600 sample web-1 node_load1 1
        600 sample web-2 node_load1 1
        700 sample web-1 system_cpu_load_average_1m 7
        ",
        &["web-1"],
        (690, 700),
        expect![[r#"
            690
              SMS [web-1 nodata] [web-2 ok sms.load.1m#1=1]
              topology web-1 web-2 web-1-web-2
            700
              SMS [web-1 ok sms.load.1m#0=7] [web-2 ok sms.load.1m#1=1]
              topology web-1 web-2 web-1-web-2
        "#]],
    );
}

#[test]
fn counters_are_read_as_rates_per_object() {
    let mut script = "0 host web-1\n".to_owned();
    for (seconds, busy, read) in [(0, 0.0, 0.0), (60, 45.0, 6e6), (120, 90.0, 12e6)] {
        let idle = f64::from(seconds) - busy;
        writeln!(
            script,
            "{seconds} sample web-1 system_cpu_time_seconds_total{{cpu_mode=\"idle\"}} {idle}
             {seconds} sample web-1 system_cpu_time_seconds_total{{cpu_mode=\"user\"}} {busy}
             {seconds} sample web-1 node_disk_read_bytes_total{{device=\"sda\"}} {read}
             {seconds} sample web-1 node_disk_read_bytes_total{{device=\"sdb\"}} 0
             {seconds} sample web-1 node_hwmon_temp_celsius{{chip=\"c\",sensor=\"s\"}} 40"
        )
        .unwrap();
    }
    check(
        &script,
        &["web-1"],
        (120, 120),
        expect![[r#"
        120
          SMS [web-1 ok sms.cpu.busy#0=0.75 sms.cpu.user#0=0.75 sms.disk.read(sda)#2=100000 sms.disk.read(sdb)#2=0 sms.temp(c/s)#1=40]
          topology web-1
    "#]],
    );
}

#[test]
fn a_service_of_native_histograms_or_of_spans_alone_has_its_signals() {
    let script = r#"
        0 service shop
        0 service cart
        0 device sw-1
        0 histogram shop http_server_request_duration_seconds{http_route="/"} h1 s=0
        60 histogram shop http_server_request_duration_seconds{http_route="/"} h1 s=0 c=60 sum=45 p=0:60
        120 histogram shop http_server_request_duration_seconds{http_route="/"} h1 s=0 c=120 sum=90 p=0:120
        0 sample cart traces_span_metrics_calls_total{span_kind="SPAN_KIND_SERVER",status_code="STATUS_CODE_ERROR"} 0
        60 sample cart traces_span_metrics_calls_total{span_kind="SPAN_KIND_SERVER",status_code="STATUS_CODE_ERROR"} 30
        120 sample cart traces_span_metrics_calls_total{span_kind="SPAN_KIND_SERVER",status_code="STATUS_CODE_ERROR"} 60
        120 sample sw-1 snmp_up 1
    "#;
    check(
        script,
        &["shop", "cart", "sw-1"],
        (120, 120),
        expect![[r#"
        120
          APM [cart ok apm.req.errors#4=0.5 apm.req.rate#2=0.5] [shop ok apm.req.p50#1=0.7071067811865476 apm.req.p95#1=0.9659363289248455 apm.req.p99#1=0.9930924954370359 apm.req.rate#1=1]
          NMS [sw-1 ok nms.reach#1=1]
          topology cart shop sw-1
    "#]],
    );
    // A replay that was made before plays as it did.
    let s = Script::new(script);
    let spec = ReplaySpec {
        binding_revision: 1,
        ..s.spec(&["shop", "cart", "sw-1"], 120, 120)
    };
    expect![[r#"
        120
          APM [cart nodata] [shop nodata]
          NMS [sw-1 nodata]
          topology cart shop sw-1
    "#]]
    .assert_eq(&s.shown(&spec));
}

#[test]
fn what_comes_into_scope_later_is_known_from_before() {
    // The ticket was made while its incident touched nothing in scope.
    check(
        "
        0 host web-1
        0 host web-2
        10 incident INC-2 open web-2
        10 ticket T-2 new INC-2
        20 incident INC-2 open web-2,web-1
        ",
        &["web-1"],
        (10, 20),
        expect![[r#"
            10
              SMS [web-1 nodata]
              topology web-1
            20
              SMS [web-1 nodata]
              topology web-1
              INC-2 open
              T-2 new
              change Incident INC-2 open
        "#]],
    );
}

#[test]
fn a_service_is_as_bad_as_its_worst_member_in_scope_or_not() {
    check(
        "
        0 service shop
        0 instance shop/1
        0 instance shop/2
        0 edge shop/1 part_of shop
        0 edge shop/2 part_of shop
        0 edge shop depends_on shop
        10 alert A firing major shop/2 -
        20 alert A resolved - shop/2 -
        20 sample shop/1 http_server_active_requests 1
        ",
        &["shop/1"],
        (10, 20),
        expect![[r#"
            10
              APM [shop major] [shop/1 nodata]
              topology shop shop/1 shop-shop shop/1-shop
            20
              APM [shop ok] [shop/1 ok apm.req.active#0=1]
              topology shop shop/1 shop-shop shop/1-shop
        "#]],
    );
}

#[test]
fn an_alert_moves_between_levels_and_ends() {
    check(
        "
        0 host web-1
        10 alert A firing minor web-1 -
        20 alert A firing critical web-1 -
        30 alert A resolved - web-1 -
        40 alert A nodata - web-1 -
        ",
        &["web-1"],
        (10, 40),
        expect![[r#"
            10
              SMS [web-1 minor]
              topology web-1
              alert A firing minor since 10
              change Alert A firing
            20
              SMS [web-1 critical]
              topology web-1
              alert A firing critical since 20
              change Alert A firing
            30
              SMS [web-1 nodata]
              topology web-1
              change Alert A resolved
            40
              SMS [web-1 nodata]
              topology web-1
              alert A nodata - since 40
              change Alert A nodata
        "#]],
    );
}

#[test]
fn a_closed_incident_and_its_ticket_leave_the_frames() {
    check(
        "
        0 host web-1
        10 incident INC-1 open web-1
        10 ticket T-1 new INC-1
        20 incident INC-1 recovered web-1
        30 incident INC-1 closed web-1
        35 ticket T-1 closed INC-1
        ",
        &["web-1"],
        (20, 40),
        expect![[r#"
            20
              SMS [web-1 nodata]
              topology web-1
              INC-1 recovered
              T-1 new
              change Incident INC-1 recovered
            30
              SMS [web-1 nodata]
              topology web-1
              T-1 new
              change Incident INC-1 closed
            40
              SMS [web-1 nodata]
              topology web-1
              change Ticket T-1 closed
        "#]],
    );
}

#[test]
fn a_flood_of_lines_is_counted_and_its_errors_are_kept() {
    let mut script = "0 host web-1\n0 host web-2\n0 edge web-1 connects_to web-2\n".to_owned();
    for i in 0..500 {
        writeln!(script, "{} log web-1 info line {i}", 600.0 + f64::from(i) / 100.0).unwrap();
    }
    script.push_str("609 log web-2 error the one that matters\n");
    let s = Script::new(&script);
    let frames = s.play(&s.spec(&["web-1"], 610, 610), Loading::default()).unwrap();
    let logs = decode_frame(&frames[1].bytes).unwrap().logs;
    let counted: u64 = logs.streams.iter().flat_map(|s| s.lines_by_level).sum();
    // The line at 600.000 belongs to the frame before.
    assert_eq!((counted, logs.lines.len()), (500, super::logs::FRAME_LINES_MAX));
    let last = logs.lines.last().unwrap();
    assert_eq!((last.level, last.line.as_str()), (Level::Error, "the one that matters"));
    assert!(logs.lines.is_sorted_by_key(|l| l.at));
    assert_eq!(logs.lines[0].line, "line 1");
}

#[test]
fn a_line_is_cut_at_a_character_and_says_how_long_it_was() {
    let long = "가".repeat(2_000);
    let s = Script::new(&format!("0 host web-1\n605 log web-1 info {long}"));
    let frames = s.play(&s.spec(&["web-1"], 610, 610), Loading::default()).unwrap();
    let line = decode_frame(&frames[1].bytes).unwrap().logs.lines.remove(0);
    assert_eq!((line.bytes, line.line.len()), (6_000, 4_095));
}

#[test]
fn more_streams_than_a_frame_lists_are_counted() {
    let mut script = "0 host web-1\n".to_owned();
    for i in 0..300 {
        writeln!(script, "605 log stranger-{i:03} info x").unwrap();
    }
    let s = Script::new(&script);
    let frames = s.play(&s.spec(&[], 610, 610), Loading::default()).unwrap();
    let logs = decode_frame(&frames[1].bytes).unwrap().logs;
    assert_eq!((logs.streams.len(), logs.streams_left_out), (200, 100));
    assert_eq!(logs.lines_left_out_by_level, [0, 0, 0, 100, 0, 0]);
}

#[test]
fn a_scope_beyond_its_bound_keeps_the_nearest_and_says_how_many_are_left_out() {
    let mut world = super::world::World::default();
    let id = |n: u128| ResourceId(n.to_be_bytes());
    for n in 1..=10 {
        let edge = Edge {
            from: id(100 + n),
            to: id(0),
            kind: EdgeKind::PartOf,
        };
        world.take(TimestampNs(0), TopologyRecord::Edge(edge).to_line().as_bytes());
        let far = Edge {
            from: id(n),
            to: id(100 + n),
            kind: EdgeKind::RunsOn,
        };
        world.take(TimestampNs(0), TopologyRecord::Edge(far).to_line().as_bytes());
    }
    let scope = |depth, max| {
        let (scope, left_out) = world.scope(&[id(0)], depth, max);
        (
            scope.into_iter().map(|i| u128::from_be_bytes(i.0)).collect::<Vec<_>>(),
            left_out,
        )
    };
    assert_eq!(scope(0, 99), (vec![0], 0));
    assert_eq!(scope(1, 4), (vec![0, 101, 102, 103], 7));
    assert_eq!(
        scope(2, 12),
        (vec![0, 1, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110], 9)
    );
    assert_eq!(scope(2, 99).0.len(), 21);
}

#[test]
fn a_resource_that_nobody_saw_is_named() {
    let s = Script::new("0 host web-1");
    let mut spec = s.spec(&["web-1"], 0, 0);
    spec.resources = vec![ResourceId([1; 16])];
    expect![[r#"
        0
          topology 
          incomplete topology: resource 01010101010101010101010101010101 was never seen
    "#]]
    .assert_eq(&s.shown(&spec));
}

#[test]
fn records_that_cannot_be_read_are_counted() {
    let s = Script::new("0 host web-1");
    for labels in [
        HistoryKind::Alert.stream(),
        Labels::from_pairs([("hindcast_topology", "resource")]),
    ] {
        let line = LogLine {
            at: TimestampNs(1),
            line: "{".into(),
            metadata: vec![],
        };
        s.add_line(false, labels, Owner::None, line);
    }
    let frames = s.play(&s.spec(&["web-1"], 10, 10), Loading::default()).unwrap();
    let marks = decode_frame(&frames[1].bytes).unwrap().incomplete;
    assert_eq!(
        marks,
        [
            "history: 1 records cannot be read",
            "topology: 1 records cannot be read"
        ]
    );
}

#[test]
fn an_error_says_whose_move_it_is() {
    assert_eq!(ReplayError::NoSuchCut(CutId(3)).class(), Class::NotFound);
    assert_eq!(ReplayError::Unavailable(String::new()).class(), Class::Unavailable);
    let refused = ReplayError::Shards(ShardsError::Refused("no such cut".into()));
    assert_eq!(refused.class(), Class::FixRequest);
}

/// A frame with something in every field, and its bytes as version 1 wrote them.
#[test]
fn version_1_still_reads() {
    let golden = include_str!("../../tests/golden/replay_fields_v1.txt");
    let hex = |line: &str| -> Vec<u8> {
        let digits = |i| u8::from_str_radix(&line[i..i + 2], 16).unwrap();
        (0..line.len()).step_by(2).map(digits).collect()
    };
    let mut lines = golden.lines().map(hex);
    let (spec, frame) = (lines.next().unwrap(), lines.next().unwrap());
    assert_eq!(decode_spec(&spec).unwrap(), full_spec());
    assert_eq!(decode_frame(&frame).unwrap(), full_frame());
}

#[test]
fn version_1_is_still_written() {
    let hex = |bytes: Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let golden = format!(
        "{}\n{}\n",
        hex(encode_spec(&full_spec())),
        hex(encode_frame(&full_frame()))
    );
    expect_file!["../../tests/golden/replay_fields_v1.txt"].assert_eq(&golden);
}

fn full_spec() -> ReplaySpec {
    ReplaySpec {
        tenant: TenantId::new("team-a").unwrap(),
        incident: Some(IncidentId(1)),
        resources: vec![ResourceId([1; 16]), ResourceId([2; 16])],
        depth: 1,
        from: TimestampNs(1_000_000_000),
        to: TimestampNs(2_000_000_000),
        step: SpanNs(500_000_000),
        domains: vec![Domain::Sms, Domain::Apm],
        as_of: AsOf::Cut {
            id: CutId(9),
            positions: [(GroupId(0), 5), (GroupId(1), 6)].into(),
        },
        binding_revision: 1,
        evaluator_version: 1,
    }
}

fn full_frame() -> Frame {
    let id = |n| ResourceId([n; 16]);
    let signal = |value| SignalFrame {
        name: "sms.fs.used".into(),
        object: "/var".into(),
        binding: 3,
        value,
    };
    let fact = |object: &str| Fact {
        object: object.into(),
        change: "opened".into(),
        at: TimestampNs(3),
        state: "{}".into(),
    };
    Frame {
        number: 2,
        at: TimestampNs(1_500_000_000),
        domains: vec![DomainFrame {
            domain: Domain::Sms,
            resources: vec![ResourceFrame {
                id: id(1),
                state: State::Major,
                signals: vec![signal(Some(0.5)), signal(Some(f64::NAN)), signal(None)],
            }],
        }],
        topology: TopologyFrame {
            resources: vec![ResourceNode {
                id: id(1),
                kind: Kind::Host,
                name: "웹-1".into(),
            }],
            edges: vec![Edge {
                from: id(1),
                to: id(2),
                kind: EdgeKind::DependsOn,
            }],
        },
        alerts: vec![AlertFrame {
            id: "a".into(),
            phase: "firing".into(),
            severity: Some(Severity::Major),
            since: TimestampNs(7),
            incident: Some(IncidentId(1)),
            resources: vec![id(1)],
            state: "{}".into(),
        }],
        incidents: vec![fact("INC-1")],
        tickets: vec![fact("T-1")],
        logs: LogsFrame {
            streams: vec![StreamFrame {
                labels: Labels::from_pairs([("job", "x")]),
                owner: Some(id(1)),
                lines_by_level: [0, 1, 0, 2, 0, 0],
            }],
            streams_left_out: 4,
            lines_left_out_by_level: [0, 0, 0, 4, 0, 1],
            lines: vec![LineFrame {
                at: TimestampNs(1_400_000_000),
                stream: 0,
                level: Level::Error,
                line: "no".into(),
                bytes: 2,
                metadata: vec![("k".into(), "v".into())],
            }],
        },
        changes: vec![Change {
            at: TimestampNs(1_300_000_000),
            kind: ChangeKind::Delivery,
            index: 77,
            seq: 2,
            object: "key".into(),
            what: "delivered".into(),
        }],
        left_out: LeftOut {
            resources: 1,
            signals: 2,
            alerts: 3,
            incidents: 4,
            tickets: 5,
            changes: 6,
        },
        incomplete: vec!["logs: shard 2 was not reached".into()],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Neither the runs in which frames are loaded, nor the pages in which lines are read, nor the order in which data
    /// reached the shards leave a trace in the digest.
    #[test]
    fn the_digest_depends_on_the_data_alone(
        first_run in 1u64..9,
        run in 1u64..9,
        page_lines in 1usize..12,
        order in Just((0..40).collect::<Vec<usize>>()).prop_shuffle(),
        whole_tenant in any::<bool>(),
    ) {
        let scope: &[&str] = if whole_tenant { &[] } else { &["shop/1"] };
        let s = Script::new(STORY);
        let spec = s.spec(scope, 560, 640);
        let proof = |s: &Script, loading| s.play(&spec, loading).unwrap().last().unwrap().digest;
        let expected = proof(&s, Loading::default());
        // What names things comes first; data arrives in any order.
        let lines: Vec<&str> = STORY.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        let is_data = |l: &&&str| l.contains(" sample ") || l.contains(" log ");
        let mut shuffled: Vec<&str> = lines.iter().filter(|l| !is_data(l)).copied().collect();
        let data: Vec<&str> = lines.iter().filter(is_data).copied().collect();
        shuffled.extend(order.iter().filter_map(|i| data.get(*i)).copied());
        let other = Script::new(&shuffled.join("\n"));
        prop_assert_eq!(proof(&other, Loading { first_run, run, page_lines }), expected);
    }
}

//! Plays a spec: loads run by run, builds frame by frame, chains the digests.
//!
//! Promises
//! - Memory is bounded by the runs and pages in flight and by the named maxima, not by the window.
//! - The frames of a whole answer do not depend on the length of the runs. Marks of what is missing are those of the run.
//! - Nothing is read before it is asked for: whoever stops asking stops the replay.

use super::encode::{encode_frame, encode_spec};
use super::frame::{AlertFrame, Change, DomainFrame, Fact, Frame, LeftOut, ResourceFrame, State, TopologyFrame};
use super::logs::LogReader;
use super::pages::{PAGE_LINES_MAX, Pages};
use super::past::{PastReader, Scope};
use super::plan::{self, Bound, Column, LOOKBACK, Run, Values};
use super::spec::ReplaySpec;
use super::world::{TOPOLOGY_RECORDS_MAX, World};
use super::{BadSpec, ReplayError};
use crate::engine::Engine;
use crate::shards::{LinesRequest, Shards};
use bytes::Bytes;
use futures::Stream;
use hindcast_model::{Domain, Kind, MatchOp, Matcher, ResourceId, TimestampNs};
use hindcast_proto::history::{HISTORY_LABEL, HistoryKind};
use hindcast_proto::topology::TOPOLOGY_LABEL;
use hindcast_proto::trace::TRACE_LABEL;
use hindcast_storage::logs::Filter;
use hindcast_storage::read::Direction;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

/// Resources in one replay.
pub const SCOPE_RESOURCES_MAX: usize = 1_000;
/// Signals (by resource and object) in one replay.
pub const COLUMNS_MAX: usize = 100_000;
/// Alerts, incidents and tickets shown by one frame, each.
pub const FRAME_FACTS_MAX: usize = 500;
/// Changes shown by one frame.
pub const FRAME_CHANGES_MAX: usize = 1_000;
/// Marks of what is missing in one frame; a last one counts the rest.
pub const FRAME_MARKS_MAX: usize = 100;
/// Frames loaded at once: the first run is short so that the first frame comes fast.
const FIRST_RUN_FRAMES: u64 = 6;
const RUN_FRAMES_MAX: u64 = 60;

/// BLAKE3 over the digest before and the bytes of a frame.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The digest of a frame; the spec (frame 0) has none before it.
pub fn chained(before: Option<Digest>, bytes: &[u8]) -> Digest {
    let mut h = blake3::Hasher::new();
    if let Some(Digest(before)) = before {
        h.update(&before);
    }
    Digest(*h.update(bytes).finalize().as_bytes())
}

/// A frame as it is sent: number, canonical bytes, and the proof of everything up to here.
#[derive(Clone, Debug, PartialEq)]
pub struct PlayedFrame {
    /// 0 is the spec.
    pub number: u64,
    pub bytes: Bytes,
    pub digest: Digest,
    pub last: bool,
}

/// How many frames are loaded at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loading {
    pub first_run: u64,
    pub run: u64,
    pub page_lines: usize,
}

impl Default for Loading {
    fn default() -> Self {
        Self {
            first_run: FIRST_RUN_FRAMES,
            run: RUN_FRAMES_MAX,
            page_lines: PAGE_LINES_MAX,
        }
    }
}

/// Plays specs over one cluster's data.
pub struct Player {
    engine: Arc<Engine>,
    shards: Arc<dyn Shards>,
    loading: Loading,
}

impl Player {
    pub fn new(engine: Arc<Engine>, shards: Arc<dyn Shards>) -> Self {
        let loading = Loading::default();
        Self {
            engine,
            shards,
            loading,
        }
    }

    #[cfg(test)]
    pub(super) fn loading(mut self, loading: Loading) -> Self {
        self.loading = loading;
        self
    }

    /// Starts; nothing is read yet.
    pub fn play(&self, spec: ReplaySpec) -> Result<Playing, BadSpec> {
        spec.check()?;
        Ok(Playing {
            engine: Arc::clone(&self.engine),
            shards: Arc::clone(&self.shards),
            loading: self.loading,
            spec,
            next: 0,
            digest: None,
            loaded: None,
        })
    }
}

/// A replay under way.
pub struct Playing {
    engine: Arc<Engine>,
    shards: Arc<dyn Shards>,
    loading: Loading,
    spec: ReplaySpec,
    /// Number of the frame that comes next.
    next: u64,
    digest: Option<Digest>,
    loaded: Option<Loaded>,
}

/// What stands for the whole window, and how far the readers have come.
struct Loaded {
    world: World,
    scope: BTreeSet<ResourceId>,
    scope_left_out: usize,
    bound: Vec<Bound>,
    /// Signals that have had a value, and the entry that gave it.
    columns: BTreeMap<Column, u8>,
    topology_changes: VecDeque<Change>,
    past: PastReader,
    logs: LogReader,
    /// When a resource was last heard of by a log line.
    heard: BTreeMap<ResourceId, TimestampNs>,
    run: Run,
    values: Values,
    run_missing: BTreeSet<String>,
    /// What is missing from every frame.
    missing: BTreeSet<String>,
}

impl Playing {
    pub const fn spec(&self) -> &ReplaySpec {
        &self.spec
    }

    /// The next frame; `None` after the last one.
    pub async fn next(&mut self) -> Result<Option<PlayedFrame>, ReplayError> {
        let (number, last) = (self.next, self.spec.frames());
        if number > last {
            return Ok(None);
        }
        let bytes = if number == 0 {
            encode_spec(&self.spec)
        } else {
            encode_frame(&self.frame(number).await?)
        };
        let digest = chained(self.digest, &bytes);
        self.digest = Some(digest);
        self.next += 1;
        Ok(Some(PlayedFrame {
            number,
            bytes: bytes.into(),
            digest,
            last: number == last,
        }))
    }

    /// All frames, in order, up to the last one or the first error.
    pub fn stream(self) -> impl Stream<Item = Result<PlayedFrame, ReplayError>> + Send + 'static {
        futures::stream::try_unfold(self, |mut playing| async move {
            let frame = playing.next().await?;
            Ok(frame.map(|f| (f, playing)))
        })
    }

    async fn frame(&mut self, number: u64) -> Result<Frame, ReplayError> {
        let (spec, shards) = (&self.spec, &*self.shards);
        if self.loaded.is_none() {
            self.loaded = Some(load(&self.engine, shards, spec, self.loading).await?);
        }
        let l = self.loaded.as_mut().expect("loaded above");
        if number > l.run.last {
            let frames = if number == 1 {
                self.loading.first_run
            } else {
                self.loading.run
            };
            let last = (number + frames.max(1) - 1).min(spec.frames());
            l.run = Run { first: number, last };
            (l.values, l.run_missing) = plan::read(&self.engine, spec, &l.bound, l.run).await?;
        }
        let at = spec.instant(number);
        let happened = l.past.advance(shards, at).await?;
        let (logs, heard) = l.logs.step(shards, at).await?;
        l.heard.extend(heard.into_iter().map(|id| (id, at)));

        let mut frame = Frame::empty(number, at);
        frame.left_out.resources = count(l.scope_left_out);
        frame.topology = l.world.at(&l.scope, at);
        frame.logs = logs;
        let changes = l.changes(at, happened);
        (frame.changes, frame.left_out.changes) = first_of(changes, FRAME_CHANGES_MAX);
        (frame.alerts, frame.left_out.alerts) = worst_of(l.past.alerts(), FRAME_FACTS_MAX);
        (frame.incidents, frame.left_out.incidents) = newest_of(l.past.incidents(), FRAME_FACTS_MAX);
        (frame.tickets, frame.left_out.tickets) = newest_of(l.past.tickets(), FRAME_FACTS_MAX);
        frame.domains = l.domains(spec, number, &frame.topology, &mut frame.left_out);
        frame.incomplete = l.marks();
        Ok(frame)
    }
}

/// Reads the topology, finds the scope, binds the signals, and winds History to the window's start.
async fn load(
    engine: &Engine,
    shards: &dyn Shards,
    spec: &ReplaySpec,
    loading: Loading,
) -> Result<Loaded, ReplayError> {
    let mut missing = BTreeSet::new();
    let world = read_world(shards, spec, loading, &mut missing).await?;
    let (scope, scope_left_out) = world.scope(&spec.resources, spec.depth, SCOPE_RESOURCES_MAX);
    let unknown = spec.resources.iter().filter(|id| !world.knows(**id));
    missing.extend(unknown.map(|id| format!("topology: resource {id} was never seen")));
    let (bound, gone) = plan::bind(engine, spec, &world, &scope).await?;
    missing.extend(gone.into_iter().map(|m| format!("metrics: {m}")));

    let before = TimestampNs(spec.from.0.saturating_sub_unsigned(spec.step.0));
    let whole_tenant = spec.resources.is_empty();
    // Who did what is not read at all: it is for auditors.
    let audit = Matcher::new(HISTORY_LABEL, MatchOp::NotEqual, HistoryKind::Audit.as_str());
    let history = vec![any_of(HISTORY_LABEL), audit.expect("an inequality has no pattern")];
    let mut past = PastReader::new(
        Pages::new(lines(spec, history, TimestampNs::MIN), loading.page_lines),
        Scope {
            resources: (!whole_tenant).then(|| scope.clone()),
            incident: spec.incident,
        },
    );
    // What happened before the window is known, but it is no change of a frame.
    past.advance(shards, before).await?;
    // Spans would leave no room for what people wrote.
    let own = vec![none_of(HISTORY_LABEL), none_of(TOPOLOGY_LABEL), none_of(TRACE_LABEL)];
    let mut request = lines(spec, own, TimestampNs(before.0.saturating_add(1)));
    request.owners = (!whole_tenant).then(|| scope.clone());
    Ok(Loaded {
        topology_changes: world.changes(&scope, before, spec.to),
        world,
        scope,
        scope_left_out,
        bound,
        columns: BTreeMap::new(),
        past,
        logs: LogReader::new(Pages::new(request, loading.page_lines)),
        heard: BTreeMap::new(),
        run: Run { first: 0, last: 0 },
        values: Values::new(),
        run_missing: BTreeSet::new(),
        missing,
    })
}

async fn read_world(
    shards: &dyn Shards,
    spec: &ReplaySpec,
    loading: Loading,
    missing: &mut BTreeSet<String>,
) -> Result<World, ReplayError> {
    let mut world = World::default();
    let request = lines(spec, vec![any_of(TOPOLOGY_LABEL)], TimestampNs::MIN);
    let mut pages = Pages::new(request, loading.page_lines);
    while let Some(page) = pages.next(shards).await? {
        missing.extend(page.missing.into_iter().map(|m| format!("topology: {m}")));
        for line in page.streams.iter().flat_map(|s| &s.lines) {
            world.take(line.at, &line.line);
        }
        if world.records > TOPOLOGY_RECORDS_MAX {
            missing.insert(format!(
                "topology: only its first {TOPOLOGY_RECORDS_MAX} records were read"
            ));
            break;
        }
    }
    if world.unreadable > 0 {
        missing.insert(format!("topology: {} records cannot be read", world.unreadable));
    }
    Ok(world)
}

fn lines(spec: &ReplaySpec, matchers: Vec<Matcher>, from: TimestampNs) -> LinesRequest {
    LinesRequest {
        tenant: spec.tenant.clone(),
        matchers,
        from,
        to: spec.instant(spec.frames()),
        as_of: spec.as_of.positions().cloned(),
        owners: None,
        filter: Filter::all(),
        limit: None,
        direction: Direction::Forward,
    }
}

fn any_of(label: &str) -> Matcher {
    Matcher::new(label, MatchOp::Regex, ".+").expect("a fixed pattern compiles")
}

fn none_of(label: &str) -> Matcher {
    Matcher::new(label, MatchOp::Equal, "").expect("an equality has no pattern")
}

impl Loaded {
    fn changes(&mut self, at: TimestampNs, happened: Vec<Change>) -> Vec<Change> {
        let mut changes = happened;
        while self.topology_changes.front().is_some_and(|c| c.at <= at) {
            changes.extend(self.topology_changes.pop_front());
        }
        changes
            .sort_by(|a, b| (a.at, a.index, a.kind, a.seq, &a.object).cmp(&(b.at, b.index, b.kind, b.seq, &b.object)));
        changes
    }

    /// Every domain of the spec: the resources that stand in it, with their states and signals.
    fn domains(
        &mut self,
        spec: &ReplaySpec,
        number: u64,
        topology: &TopologyFrame,
        left_out: &mut LeftOut,
    ) -> Vec<DomainFrame> {
        let place = (number - self.run.first) as usize;
        let mut spoke = BTreeSet::new();
        for (column, (entry, row)) in &self.values {
            if row[place].is_none() {
                continue;
            }
            spoke.insert(column.resource);
            if self.columns.contains_key(column) {
                continue;
            }
            if self.columns.len() < COLUMNS_MAX {
                self.columns.insert(column.clone(), *entry);
            } else {
                left_out.signals += 1;
            }
        }
        let mut standing: BTreeMap<(Domain, ResourceId), Vec<_>> = BTreeMap::new();
        let seen = topology.resources.iter().map(|n| n.id);
        for id in seen.chain(spec.resources.iter().copied()) {
            if let Some(kind) = self.world.kind(id) {
                standing.entry((kind.domain(), id)).or_default();
            }
        }
        for (column, entry) in &self.columns {
            let value = self.values.get(column).and_then(|(_, row)| row[place]);
            let signals = standing.entry((column.domain, column.resource)).or_default();
            signals.push(column.frame(*entry, value));
        }
        let at = spec.instant(number);
        let states = self.states(at, &spoke);
        let domain = |&domain: &Domain| DomainFrame {
            domain,
            resources: standing
                .range((domain, ResourceId([0; 16]))..=(domain, ResourceId([u8::MAX; 16])))
                .map(|((_, id), signals)| ResourceFrame {
                    id: *id,
                    state: states.get(id).copied().unwrap_or(State::NoData),
                    signals: signals.clone(),
                })
                .collect(),
        };
        spec.domains.iter().map(domain).collect()
    }

    /// The worst level of the firing alerts on each resource in scope; else no data, when its sources are silent or a
    /// rule says so; else ok. Of a service: of it and its members.
    fn states(&self, at: TimestampNs, spoke: &BTreeSet<ResourceId>) -> BTreeMap<ResourceId, State> {
        let mut firing: BTreeMap<ResourceId, hindcast_model::Severity> = BTreeMap::new();
        let mut silent: BTreeSet<ResourceId> = BTreeSet::new();
        for alert in self.past.all_alerts() {
            for id in &alert.resources {
                match alert.phase.as_str() {
                    "firing" => {
                        let worst = firing.get(id).copied().max(alert.severity);
                        firing.extend(worst.map(|w| (*id, w)));
                    }
                    "nodata" => drop(silent.insert(*id)),
                    _ => {}
                }
            }
        }
        let live = |id: &ResourceId| {
            let heard = self.heard.get(id).is_some_and(|t| at.since(*t) < LOOKBACK);
            !silent.contains(id) && (heard || spoke.contains(id))
        };
        let state = |id: &ResourceId| {
            let members: Vec<ResourceId> = if self.world.kind(*id) == Some(Kind::Service) {
                self.world.members(*id, at).collect()
            } else {
                vec![]
            };
            let levels = members.iter().chain([id]).filter_map(|m| firing.get(m));
            match levels.max() {
                Some(worst) => State::of_severity(*worst),
                None if live(id) || members.iter().any(live) => State::Ok,
                None => State::NoData,
            }
        };
        self.scope.iter().map(|id| (*id, state(id))).collect()
    }

    fn marks(&self) -> Vec<String> {
        let mut marks = self.missing.clone();
        let named = |what: &'static str, all: &BTreeSet<String>| -> Vec<String> {
            all.iter().map(|m| format!("{what}: {m}")).collect()
        };
        marks.extend(named("metrics", &self.run_missing));
        marks.extend(named("logs", &self.logs.missing));
        marks.extend(named("history", &self.past.missing));
        if self.past.unreadable > 0 {
            marks.insert(format!("history: {} records cannot be read", self.past.unreadable));
        }
        let more = marks.len().saturating_sub(FRAME_MARKS_MAX);
        let mut marks: Vec<String> = marks.into_iter().take(FRAME_MARKS_MAX).collect();
        if more > 0 {
            marks.push(format!("~ and {more} more"));
        }
        marks
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn first_of(mut all: Vec<Change>, max: usize) -> (Vec<Change>, u32) {
    let left_out = all.len().saturating_sub(max);
    all.truncate(max);
    (all, count(left_out))
}

/// The worst alerts, and of equally bad ones the first by id; listed by id.
fn worst_of<'a>(all: impl Iterator<Item = &'a AlertFrame>, max: usize) -> (Vec<AlertFrame>, u32) {
    let mut all: Vec<&AlertFrame> = all.collect();
    let left_out = all.len().saturating_sub(max);
    if left_out > 0 {
        let firing = |a: &AlertFrame| (a.phase == "firing").then_some(a.severity);
        all.sort_by(|a, b| firing(b).cmp(&firing(a)).then_with(|| a.id.cmp(&b.id)));
        all.truncate(max);
        all.sort_by(|a, b| a.id.cmp(&b.id));
    }
    (all.into_iter().cloned().collect(), count(left_out))
}

/// The ones with the highest numbers; listed by number.
fn newest_of<'a>(all: impl Iterator<Item = &'a Fact>, max: usize) -> (Vec<Fact>, u32) {
    let all: Vec<&Fact> = all.collect();
    let left_out = all.len().saturating_sub(max);
    (all[left_out..].iter().map(|f| (*f).clone()).collect(), count(left_out))
}

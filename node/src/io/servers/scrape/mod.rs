//! Scraping: asks targets when they are due, and stores what they say.
//!
//! What is scraped, when and by which node is decided in `hindcast_scrape`; here are the files, the connections, and the clock.
//! Nodes that scrape tell each other each second which targets they know (a digest), and share those that they both know.
//!
//! What takes long (files, pages) is done on threads of its own: those that wait for connections answer also while a disk or a page
//! is slow. One lock holds the targets and what is in force with them, and nobody waits while he has it.
//!
//! Devices of SNMP are targets like others: only how they are asked is another way ([`super::snmp`]).
//!
//! Bounds, of a node: [`SCRAPES_MAX`] at a time, [`BODIES_BYTES_MAX`] of pages that are not stored yet, [`BATCH_ROWS_MAX`] series in a
//! batch. A write that is refused for being too busy, or not confirmed, is tried again once; then the scrape's samples are lost,
//! and counted. What is due while all places are taken waits for one.

pub(super) mod fetch;
mod files;
#[cfg(test)]
mod tests;

pub use files::{AllFound, Files, LoadError, Loaded, NotScraped, load};

use super::snmp::{self, PollStats, Polling};
use super::{IngestError, IngestState};
use crate::io::peers::Peers;
use fetch::{Client, fetch};
use hindcast_env::Clock;
use hindcast_ingest::{Adapted, Exemplar, Intake, Naming, Protocol, scraped};
use hindcast_model::{
    Batch, BatchId, Class, Classify, Labels, NodeId, STALE_NAN_BITS, Sample, SpanNs, TenantId, TimestampNs, WriterId,
    codec,
};
use hindcast_scrape::pool::{Last, Pool, Task, Told, sample_time};
use hindcast_scrape::scrape::{Answer, OF_POLL, Series, Taken, end, take};
use hindcast_scrape::target::Target;
use hindcast_scrape::text::PageExemplar;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

/// Scrapes under way.
pub const SCRAPES_MAX: usize = 512;
/// Pages that came and are not stored.
pub const BODIES_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Series of one batch.
pub const BATCH_ROWS_MAX: usize = 10_000;
/// Targets of which a node tells another how they are.
pub const TOLD_MAX: usize = 10_000;
/// Before a write that was refused is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// A limit may say when there is room; it is not waited for longer.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);
/// How often files are looked at.
const FILES_PAUSE: Duration = Duration::from_secs(5);
/// How often other nodes are asked what they scrape, and how long they may take.
const PEERS_PAUSE: Duration = Duration::from_secs(1);
const PEERS_TIMEOUT: Duration = Duration::from_secs(1);
/// The longest sleep: a clock may step.
const SLEEP_MAX: Duration = Duration::from_millis(100);
/// While all places are taken.
const PLACE_PAUSE: Duration = Duration::from_millis(10);

/// What is told of a scrape that panicked.
const BROKE_OFF: &str = "the scrape broke off by a mistake of this program; its log says more";

const CALL_SCRAPES: &str = "scrapes";
const CALL_TOLD: &str = "scrapes-told";

/// Counts since the node started.
#[derive(Debug, Default)]
pub struct ScrapeStats {
    pub scrapes: AtomicU64,
    pub failed: AtomicU64,
    pub retried: AtomicU64,
    /// Samples that are lost because they could not be stored.
    pub lost_samples: AtomicU64,
    pub doubled_samples: AtomicU64,
    /// Those that were stored.
    pub stale_markers: AtomicU64,
    pub reload_failures: AtomicU64,
    pub polls: PollStats,
}

/// What nodes say of a target that they scrape.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct ToldByPeer {
    key: u64,
    at: TimestampNs,
    took: SpanNs,
    error: Option<String>,
}

/// Of `/metrics`.
#[derive(Clone, Copy, Debug)]
pub struct Gauges {
    pub targets: usize,
    pub up: usize,
    pub down: usize,
    pub unknown: usize,
    pub dropped_targets: u64,
    pub bad_targets: u64,
    pub sharing: usize,
    pub under_way: usize,
    pub bodies_bytes: usize,
    pub series: usize,
    pub forgotten: u64,
    pub skipped: u64,
    pub file_failures: u64,
}

/// A configuration, and what it came to.
struct InForce {
    loaded: Arc<Loaded>,
    not_scraped: BTreeMap<String, NotScraped>,
}

/// What is given out together: a target, and the clients and labels of the configuration that it is of.
struct State {
    pool: Pool,
    in_force: Arc<InForce>,
}

struct Inner {
    ingest: IngestState,
    peers: Option<Arc<Peers>>,
    /// Of the cluster: nodes agree on when a target is due.
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Held as long as files are read, by threads that may wait. It is taken before `state`.
    files: Mutex<Files>,
    /// Of the files, for those who cannot wait for them.
    file_failures: AtomicU64,
    places: Arc<Semaphore>,
    room: Arc<Semaphore>,
    /// Names this start of this node: its batches are numbered under it.
    writer: String,
    seq: AtomicU64,
    stats: ScrapeStats,
    wake: Notify,
}

type Row = (Labels, Vec<Sample>);

/// One scrape.
#[derive(Clone)]
struct Scrape {
    target: Arc<Target>,
    in_force: Arc<InForce>,
    at: TimestampNs,
    took: SpanNs,
}

/// What a target answered.
enum Fetched {
    Page(fetch::Page),
    Polling(Polling),
}

/// What was read of an answer.
struct Read {
    taken: Taken,
    series: Series,
    first: Option<Part>,
    /// Of the page: given back when all is stored.
    room: Option<OwnedSemaphorePermit>,
}

/// Rows as a batch, and as its shards take it.
struct Part {
    batch: Batch,
    intake: Intake,
}

impl Part {
    fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.batch.series.iter().flat_map(|s| &s.samples)
    }

    /// What it takes in memory, about.
    fn bytes(&self) -> usize {
        let of = |labels: &Labels| labels.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>();
        let series = self.batch.series.iter();
        let samples: usize = series.map(|s| 16 * s.samples.len() + 64 + of(&s.labels)).sum();
        let lines = self.batch.streams.iter().flat_map(|s| &s.lines);
        samples + lines.map(|l| l.line.len() + 128).sum::<usize>()
    }
}

/// A target whose scrape is under way. It goes back whatever happens, also when the scrape panics: else it would be under way for ever.
struct UnderWay<'a> {
    scraper: &'a Scraper,
    key: u64,
    series: Series,
    last: Last,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let (series, last) = (std::mem::take(&mut self.series), self.last.clone());
        self.scraper.0.state.lock().pool.finish(self.key, series, last);
    }
}

/// The scraping of one node. Clones share it.
#[derive(Clone)]
pub struct Scraper(Arc<Inner>);

impl Scraper {
    /// `peers`: of a cluster. Files are read, and targets scraped, from [`Scraper::run`] on.
    pub fn new(
        loaded: Loaded,
        ingest: IngestState,
        peers: Option<Arc<Peers>>,
        me: NodeId,
        clock: Arc<dyn Clock>,
        writer: String,
    ) -> Self {
        let in_force = InForce {
            loaded: Arc::new(loaded),
            not_scraped: BTreeMap::new(),
        };
        let scraper = Self(Arc::new(Inner {
            ingest,
            peers,
            clock,
            state: Mutex::new(State {
                pool: Pool::new(me),
                in_force: Arc::new(in_force),
            }),
            files: Mutex::default(),
            file_failures: AtomicU64::new(0),
            places: Arc::new(Semaphore::new(SCRAPES_MAX)),
            room: Arc::new(Semaphore::new(BODIES_BYTES_MAX)),
            writer,
            seq: AtomicU64::new(0),
            stats: ScrapeStats::default(),
            wake: Notify::new(),
        }));
        scraper.register();
        scraper
    }

    fn register(&self) {
        let Some(peers) = &self.0.peers else { return };
        let s = self.clone();
        peers.register(
            CALL_SCRAPES,
            Arc::new(move |_, _| {
                let digest = codec::to_bytes(&s.0.state.lock().pool.digest());
                Box::pin(async move { Ok(digest.into()) })
            }),
        );
        let s = self.clone();
        peers.register(
            CALL_TOLD,
            Arc::new(move |_, _| {
                let told = s.0.state.lock().pool.told();
                let own = told.into_iter().filter_map(|t| {
                    let last = t.last?;
                    Some(ToldByPeer {
                        key: t.target.key,
                        at: last.at,
                        took: last.took,
                        error: last.error,
                    })
                });
                let own = codec::to_bytes(&own.take(TOLD_MAX).collect::<Vec<_>>());
                Box::pin(async move { Ok(own.into()) })
            }),
        );
    }

    /// Puts a configuration in force that was loaded, with its targets. Reads all files of targets first, and waits for whoever reads
    /// them already: it blocks, and is nothing for a thread that others wait for.
    pub fn replace(&self, loaded: Loaded) {
        self.put_in_force(Some(Arc::new(loaded)), true);
    }

    pub fn reload_failed(&self) {
        self.0.stats.reload_failures.fetch_add(1, Relaxed);
    }

    pub fn stats(&self) -> &ScrapeStats {
        &self.0.stats
    }

    pub fn path(&self) -> std::path::PathBuf {
        self.in_force().loaded.path.clone()
    }

    /// Works until told to stop.
    pub async fn run(self, stop: watch::Receiver<bool>) {
        let this = self.clone();
        blocking(move || this.look(true)).await;
        self.ask_peers().await;
        let tasks = [
            tokio::spawn(self.clone().files(stop.clone())),
            tokio::spawn(self.clone().peers(stop.clone())),
        ];
        self.targets(stop).await;
        for task in tasks {
            let _ = task.await;
        }
    }

    fn in_force(&self) -> Arc<InForce> {
        self.0.state.lock().in_force.clone()
    }

    /// Reads files, and puts their targets in force where they changed. Blocks.
    fn look(&self, everything: bool) {
        self.put_in_force(None, everything);
    }

    /// `replaced`: instead of the configuration that is in force.
    fn put_in_force(&self, replaced: Option<Arc<Loaded>>, everything: bool) {
        let mut files = self.0.files.lock();
        let loaded = replaced.unwrap_or_else(|| self.in_force().loaded.clone());
        let changed = files.look(&loaded.jobs, everything);
        self.0.file_failures.store(files.failures, Relaxed);
        if !changed && !everything {
            return;
        }
        let AllFound {
            mut targets,
            mut not_scraped,
        } = files.find(&loaded.jobs);
        for target in loaded.devices.targets() {
            not_scraped.entry(target.job.name.clone()).or_default();
            targets.push(target.clone());
        }
        for (job, not) in not_scraped.iter().filter(|(_, not)| not.bad_count > 0) {
            let why = not.bad.join("; ");
            tracing::warn!(job, targets = not.bad_count, why, "targets cannot be scraped");
        }
        let in_force = Arc::new(InForce { loaded, not_scraped });
        {
            let mut state = self.0.state.lock();
            state.in_force = in_force;
            state.pool.set_targets(targets, self.0.clock.now());
        }
        self.0.wake.notify_one();
    }

    async fn files(self, mut stop: watch::Receiver<bool>) {
        let mut seen = self.0.clock.monotonic();
        while pause(FILES_PAUSE, &mut stop).await {
            let now = self.0.clock.monotonic();
            let refresh = {
                let in_force = self.in_force();
                let all = in_force.loaded.jobs.iter().flat_map(|j| &j.files).map(|f| f.refresh);
                all.min()
            };
            let everything = refresh.is_some_and(|r| now.0.saturating_sub(seen.0) >= r.0);
            if everything {
                seen = now;
            }
            let this = self.clone();
            blocking(move || this.look(everything)).await;
        }
    }

    async fn peers(self, mut stop: watch::Receiver<bool>) {
        let mut said = 0;
        while pause(PEERS_PAUSE, &mut stop).await {
            let others = self.ask_peers().await;
            if others != said && others > 0 {
                tracing::warn!(
                    nodes = others,
                    "nodes know other targets than this one: what may be theirs is scraped here, too; give all nodes the same files"
                );
            }
            said = others;
        }
    }

    /// How many nodes know other targets.
    async fn ask_peers(&self) -> usize {
        if let Some(peers) = &self.0.peers {
            let asked = peers.ids().into_iter().map(|id| async move {
                let answer = peers.call(id, CALL_SCRAPES, bytes::Bytes::new(), PEERS_TIMEOUT).await;
                Some((id, codec::from_bytes::<u64>(&answer.ok()?).ok()?))
            });
            let heard = futures::future::join_all(asked).await;
            let now = self.0.clock.monotonic();
            let mut state = self.0.state.lock();
            for (id, digest) in heard.into_iter().flatten() {
                state.pool.hear(id, digest, now);
            }
        }
        self.0.state.lock().pool.share(self.0.clock.monotonic())
    }

    async fn targets(self, mut stop: watch::Receiver<bool>) {
        loop {
            let now = self.0.clock.now();
            let (tasks, next, in_force) = {
                let mut state = self.0.state.lock();
                let tasks = state.pool.due(now, self.0.places.available_permits());
                (tasks, state.pool.next_at(), state.in_force.clone())
            };
            for task in tasks {
                let place = self.0.places.clone().try_acquire_owned();
                let (this, in_force) = (self.clone(), in_force.clone());
                tokio::spawn(async move {
                    // It was there when tasks were taken, and nobody else takes places.
                    let _place = place;
                    this.work(task, in_force).await;
                });
            }
            let sleep = match next {
                None => SLEEP_MAX,
                Some(next) if next <= now => PLACE_PAUSE,
                Some(next) => next.since(self.0.clock.now()).as_duration().min(SLEEP_MAX),
            };
            tokio::select! {
                () = tokio::time::sleep(sleep) => {}
                () = self.0.wake.notified() => {}
                _ = stop.wait_for(|s| *s) => return,
            }
        }
    }

    async fn work(&self, task: Task, in_force: Arc<InForce>) {
        let Task {
            target,
            due,
            series,
            is_over,
        } = task;
        let tenant = target.job.tenant.clone();
        if is_over {
            let (this, of) = (self.clone(), tenant.clone());
            let laid = blocking(move || {
                let rows = end(series, due);
                let first = this.lay(&of, &rows, 0, &[]);
                (rows, first)
            });
            if let Some((rows, first)) = laid.await {
                self.store(&tenant, rows, first).await;
            }
            return;
        }
        let mut under_way = UnderWay {
            scraper: self,
            key: target.key,
            series: Series::default(),
            last: Last {
                at: due,
                took: SpanNs::ZERO,
                error: Some(BROKE_OFF.to_owned()),
            },
        };
        let (began, started) = (self.0.clock.now(), self.0.clock.monotonic());
        let at = sample_time(due, began, target.interval);
        let loaded = &in_force.loaded;
        let fetched = match (&target.refused, loaded.clients.get(&target.job.http.tls)) {
            (Some(why), _) => Err(why.clone()),
            _ if target.of_itself == OF_POLL => self.poll(loaded, &target).await.map(Fetched::Polling),
            // It came into force with its clients.
            (None, None) => Err("its job has no client".to_owned()),
            (None, Some(client)) => self.fetch(client, &target).await.map(Fetched::Page),
        };
        let took = SpanNs(self.0.clock.monotonic().0.saturating_sub(started.0));
        let scrape = Scrape {
            target: target.clone(),
            in_force,
            at,
            took,
        };
        let Some(read) = self.read(scrape, fetched, series).await else {
            return;
        };
        let stats = &self.0.stats;
        stats.scrapes.fetch_add(1, Relaxed);
        stats.doubled_samples.fetch_add(read.taken.doubled, Relaxed);
        if let Some(error) = &read.taken.error {
            stats.failed.fetch_add(1, Relaxed);
            tracing::debug!(url = target.url, error, "a scrape failed");
        }
        self.store(&tenant, read.taken.rows, read.first).await;
        drop(read.room);
        let error = read.taken.error;
        (under_way.series, under_way.last) = (read.series, Last { at, took, error });
    }

    async fn fetch(&self, client: &Client, target: &Target) -> Result<fetch::Page, String> {
        let timeout = target.timeout;
        match tokio::time::timeout(timeout.as_duration(), fetch(client, target, &self.0.room)).await {
            Ok(fetched) => fetched,
            Err(_) => Err(format!("no answer within the scrape timeout of {timeout}")),
        }
    }

    async fn poll(&self, loaded: &Loaded, target: &Target) -> Result<Polling, String> {
        // It came into force with its device.
        let device = loaded.devices.get(target.key).ok_or("its device is not there")?;
        let (timeout, stats) = (target.timeout, &self.0.stats.polls);
        let polling = snmp::poll(device, &*self.0.clock, &self.0.room, stats);
        let polled = match tokio::time::timeout(timeout.as_duration(), polling).await {
            Ok(polled) => polled,
            // It may have been its name, its answers, or the room for them.
            Err(_) => Err(format!(
                "the poll was not done within its interval of {timeout}: the device answers slowly or has much, or its name or room for it \
                 was waited for; give it a longer interval, or fewer retries"
            )),
        };
        stats.polls.fetch_add(1, Relaxed);
        stats.failed.fetch_add(u64::from(polled.is_err()), Relaxed);
        polled
    }

    /// Large pages take long to read. One that cannot be read for a mistake of this program is a failed scrape.
    async fn read(&self, scrape: Scrape, fetched: Result<Fetched, String>, series: Series) -> Option<Read> {
        let again = (self.clone(), scrape.clone());
        let this = self.clone();
        if let Some(read) = blocking(move || this.read_now(&scrape, fetched, series)).await {
            return Some(read);
        }
        let (this, scrape) = again;
        blocking(move || this.read_now(&scrape, Err(BROKE_OFF.to_owned()), Series::default())).await
    }

    fn read_now(&self, scrape: &Scrape, fetched: Result<Fetched, String>, mut series: Series) -> Read {
        let (target, external) = (&scrape.target, &scrape.in_force.loaded.config.external_labels);
        let mut take = |answer| take(target, external, answer, scrape.at, scrape.took, &mut series);
        let (taken, room) = match fetched {
            Err(why) => (take(Err(why)), None),
            Ok(Fetched::Page(fetch::Page { body, format, room })) => {
                let body = &body[..];
                (take(Ok(Answer::Page { body, format })), room)
            }
            Ok(Fetched::Polling(polling)) => {
                let (samples, room) = polling.into_samples();
                (take(Ok(Answer::Samples(samples))), room)
            }
        };
        let ingest = &self.0.ingest;
        ingest.counters.exemplars(0, taken.exemplars_left_out);
        let of = |(labels, exemplar): &(Labels, PageExemplar)| {
            let exemplar = Exemplar {
                labels: exemplar.labels.clone(),
                value: exemplar.value,
                at: exemplar.at_ms.map_or(scrape.at, TimestampNs::from_ms),
            };
            (labels.clone(), exemplar)
        };
        let exemplars: Vec<_> = taken.exemplars.iter().map(of).collect();
        Read {
            first: self.lay(&target.job.tenant, &taken.rows, 0, &exemplars),
            taken,
            series,
            room,
        }
    }

    /// The batch of the rows from `from` on. `None`: nothing of them is stored.
    fn lay(&self, tenant: &TenantId, rows: &[Row], from: usize, exemplars: &[(Labels, Exemplar)]) -> Option<Part> {
        let ingest = &self.0.ingest;
        let rows = &rows[from..rows.len().min(from + BATCH_ROWS_MAX)];
        let limits = ingest.limits(tenant);
        let (adapted, left_out) = scraped::adapt(tenant, rows, exemplars, &limits);
        let Adapted {
            mut batch,
            mut rejected,
        } = adapted;
        ingest.keep_allowed(&mut batch, &mut rejected);
        if !batch.streams.is_empty() {
            ingest.mask(&mut batch, &limits.bounds, None);
        }
        ingest.counters.exemplars(0, left_out);
        ingest.refused(Protocol::Scrape, tenant, &rejected);
        if batch.series.is_empty() && batch.streams.is_empty() {
            return None;
        }
        batch.id = Some(BatchId::Sequenced {
            writer: WriterId::named(tenant, &self.0.writer),
            seq: self.0.seq.fetch_add(1, Relaxed) + 1,
        });
        let intake = Intake::of_batch(&batch, ingest.sink.ids(), Naming::Known);
        Some(Part { batch, intake })
    }

    /// `first`: of the rows, laid out already.
    async fn store(&self, tenant: &TenantId, rows: Vec<Row>, first: Option<Part>) {
        let (rows, mut part) = (Arc::new(rows), first);
        for next in (BATCH_ROWS_MAX..).step_by(BATCH_ROWS_MAX) {
            if let Some(part) = part {
                self.put(part).await;
            }
            if next >= rows.len() {
                return;
            }
            let (this, tenant, rows) = (self.clone(), tenant.clone(), rows.clone());
            part = blocking(move || this.lay(&tenant, &rows, next, &[])).await.flatten();
        }
    }

    /// Writes a batch, and once more where that may help.
    async fn put(&self, part: Part) {
        let (stats, ingest) = (&self.0.stats, &self.0.ingest);
        let (bytes, samples) = (part.bytes(), part.samples().count() as u64);
        let is_marker = |s: &&Sample| s.value.to_bits() == STALE_NAN_BITS;
        // They are the only lines of scrapes.
        let exemplars = part.batch.streams.iter().map(|s| s.lines.len() as u64).sum();
        let markers = part.samples().filter(is_marker).count() as u64;
        let batch = Arc::new(part.batch);
        let mut is_charged = false;
        let mut written = write(ingest, &batch, part.intake, bytes, &mut is_charged).await;
        if let Err(why) = &written
            && !matches!(why.class(), Class::FixRequest | Class::TooLarge)
        {
            stats.retried.fetch_add(1, Relaxed);
            let told = why.retry_after().map_or(RETRY_PAUSE, SpanNs::as_duration);
            tokio::time::sleep(told.clamp(RETRY_PAUSE, RETRY_PAUSE_MAX)).await;
            let (of, again) = (self.0.ingest.clone(), batch.clone());
            if let Some(intake) = blocking(move || Intake::of_batch(&again, of.sink.ids(), Naming::Known)).await {
                written = write(ingest, &batch, intake, bytes, &mut is_charged).await;
            }
        }
        match written {
            Ok(written) => {
                ingest.counters.taken(Protocol::Scrape, &written);
                ingest.counters.exemplars(exemplars, 0);
                stats.stale_markers.fetch_add(markers, Relaxed);
            }
            Err(why) => {
                stats.lost_samples.fetch_add(samples, Relaxed);
                ingest.counters.failed(Protocol::Scrape, why.code());
                tracing::warn!(%why, samples, "samples of a scrape are lost");
            }
        }
    }

    /// All targets. What other nodes scrape is as they say it.
    pub async fn told(&self) -> Vec<Told> {
        let mut told = self.0.state.lock().pool.told();
        if let Some(peers) = &self.0.peers {
            let mut nodes: Vec<_> = told.iter().map(|t| t.node).collect();
            nodes.sort_unstable();
            nodes.dedup();
            let ids = peers.ids();
            let asked = nodes.into_iter().filter(|n| ids.contains(n)).map(|id| async move {
                let answer = peers
                    .call(id, CALL_TOLD, bytes::Bytes::new(), PEERS_TIMEOUT)
                    .await
                    .ok()?;
                codec::from_bytes::<Vec<ToldByPeer>>(&answer)
                    .ok()
                    .map(|told| (id, told))
            });
            let answers = futures::future::join_all(asked).await;
            let said: BTreeMap<(u64, NodeId), ToldByPeer> = answers
                .into_iter()
                .flatten()
                .flat_map(|(id, told)| told.into_iter().map(move |t| ((t.key, id), t)))
                .collect();
            for target in &mut told {
                if let Some(said) = said.get(&(target.target.key, target.node)) {
                    target.last = Some(Last {
                        at: said.at,
                        took: said.took,
                        error: said.error.clone(),
                    });
                }
            }
        }
        told
    }

    /// By job.
    pub fn not_scraped(&self) -> BTreeMap<String, NotScraped> {
        self.in_force().not_scraped.clone()
    }

    pub fn gauges(&self) -> Gauges {
        let state = self.0.state.lock();
        let (pool, jobs) = (&state.pool, state.in_force.not_scraped.values());
        let (dropped_targets, bad_targets) = jobs.fold((0, 0), |(d, b), j| (d + j.dropped_count, b + j.bad_count));
        let (up, down, unknown) = pool.health();
        Gauges {
            targets: pool.len(),
            up,
            down,
            unknown,
            dropped_targets,
            bad_targets,
            sharing: pool.sharing().len(),
            under_way: SCRAPES_MAX - self.0.places.available_permits(),
            bodies_bytes: BODIES_BYTES_MAX - self.0.room.available_permits(),
            series: pool.series(),
            forgotten: pool.forgotten,
            skipped: pool.skipped,
            file_failures: self.0.file_failures.load(Relaxed),
        }
    }
}

/// False: the node stops.
async fn pause(span: Duration, stop: &mut watch::Receiver<bool>) -> bool {
    tokio::select! {
        () = tokio::time::sleep(span) => true,
        _ = stop.wait_for(|s| *s) => false,
    }
}

/// Work that takes long, away from threads that others wait for. `None`: it panicked, which is said in the log; or the program ends.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let done = tokio::task::spawn_blocking(work).await;
    if let Err(why) = &done
        && why.is_panic()
    {
        tracing::error!(%why, "a step of scraping broke off by a mistake of this program");
    }
    done.ok()
}

async fn write(
    ingest: &IngestState,
    batch: &Batch,
    intake: Intake,
    bytes: usize,
    is_charged: &mut bool,
) -> Result<crate::write::Written, IngestError> {
    if !*is_charged {
        ingest.charge_batch(batch)?;
        *is_charged = true;
    }
    let _place = ingest.let_in(bytes).await?;
    let redo = || Intake::of_batch(batch, ingest.sink.ids(), Naming::Defined);
    ingest.sink.write_intake(intake, &redo).await.map_err(Into::into)
}

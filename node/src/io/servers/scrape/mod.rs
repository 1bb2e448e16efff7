//! Scraping: asks targets when they are due, and stores what they say.
//!
//! What is scraped, when and by which node is decided in `hindcast_scrape`; here are the files, the connections, and the clock.
//! Nodes that scrape tell each other each second which targets they know (a digest), and share those that they both know.
//!
//! Bounds, of a node: [`SCRAPES_MAX`] at a time, [`BODIES_BYTES_MAX`] of pages that are not stored yet, [`BATCH_ROWS_MAX`] series in a
//! batch. A write that is refused for being too busy, or not confirmed, is tried again once; then the scrape's samples are lost,
//! and counted. What is due while all places are taken waits for one.

mod fetch;
mod files;
#[cfg(test)]
mod tests;

pub use files::{Files, LoadError, Loaded, load};

use super::{IngestError, IngestState};
use crate::io::peers::Peers;
use fetch::{Client, fetch};
use hindcast_env::Clock;
use hindcast_ingest::{Adapted, Intake, Naming, Protocol, scraped};
use hindcast_model::{
    Batch, BatchId, Class, Classify, Labels, NodeId, Sample, SpanNs, TenantId, TimestampNs, WriterId, codec,
};
use hindcast_scrape::pool::{Last, Pool, Task, Told, sample_time};
use hindcast_scrape::scrape::{Answer, end, take};
use hindcast_scrape::target::TARGETS_MAX;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, watch};

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
/// How often files are looked at.
const FILES_PAUSE: Duration = Duration::from_secs(5);
/// How often other nodes are asked what they scrape, and how long they may take.
const PEERS_PAUSE: Duration = Duration::from_secs(1);
const PEERS_TIMEOUT: Duration = Duration::from_secs(1);
/// The longest sleep: a clock may step.
const SLEEP_MAX: Duration = Duration::from_millis(100);
/// While all places are taken.
const PLACE_PAUSE: Duration = Duration::from_millis(10);

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
    pub stale_markers: AtomicU64,
    pub reload_failures: AtomicU64,
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

/// Targets of a job that are not scraped.
#[derive(Clone, Debug, Default)]
pub struct NotScraped {
    pub dropped: Vec<BTreeMap<String, String>>,
    pub dropped_count: u64,
    pub bad: Vec<String>,
    pub bad_count: u64,
}

struct InForce {
    loaded: Loaded,
    files: Files,
    not_scraped: BTreeMap<String, NotScraped>,
}

struct Inner {
    ingest: IngestState,
    peers: Option<Arc<Peers>>,
    /// Of the cluster: nodes agree on when a target is due.
    clock: Arc<dyn Clock>,
    pool: Mutex<Pool>,
    in_force: Mutex<InForce>,
    places: Arc<Semaphore>,
    room: Arc<Semaphore>,
    /// Names this start of this node: its batches are numbered under it.
    writer: String,
    seq: AtomicU64,
    stats: ScrapeStats,
    wake: Notify,
}

/// The scraping of one node. Clones share it.
#[derive(Clone)]
pub struct Scraper(Arc<Inner>);

impl Scraper {
    /// `peers`: of a cluster. Nothing is scraped before [`Scraper::run`].
    pub fn new(
        loaded: Loaded,
        ingest: IngestState,
        peers: Option<Arc<Peers>>,
        me: NodeId,
        clock: Arc<dyn Clock>,
        writer: String,
    ) -> Self {
        let in_force = InForce {
            loaded,
            files: Files::default(),
            not_scraped: BTreeMap::new(),
        };
        let scraper = Self(Arc::new(Inner {
            ingest,
            peers,
            clock,
            pool: Mutex::new(Pool::new(me)),
            in_force: Mutex::new(in_force),
            places: Arc::new(Semaphore::new(SCRAPES_MAX)),
            room: Arc::new(Semaphore::new(BODIES_BYTES_MAX)),
            writer,
            seq: AtomicU64::new(0),
            stats: ScrapeStats::default(),
            wake: Notify::new(),
        }));
        scraper.look(true);
        scraper.register();
        scraper
    }

    fn register(&self) {
        let Some(peers) = &self.0.peers else { return };
        let s = self.clone();
        peers.register(
            CALL_SCRAPES,
            Arc::new(move |_, _| {
                let digest = codec::to_bytes(&s.0.pool.lock().digest());
                Box::pin(async move { Ok(digest.into()) })
            }),
        );
        let s = self.clone();
        peers.register(
            CALL_TOLD,
            Arc::new(move |_, _| {
                let told = s.0.pool.lock().told();
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

    /// Puts a configuration in force that was loaded.
    pub fn replace(&self, loaded: Loaded) {
        self.0.in_force.lock().loaded = loaded;
        self.look(true);
    }

    pub fn reload_failed(&self) {
        self.0.stats.reload_failures.fetch_add(1, Relaxed);
    }

    pub fn stats(&self) -> &ScrapeStats {
        &self.0.stats
    }

    pub fn path(&self) -> std::path::PathBuf {
        self.0.in_force.lock().loaded.path.clone()
    }

    /// Works until told to stop.
    pub async fn run(self, stop: watch::Receiver<bool>) {
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

    /// Reads files, and puts their targets in force where they changed.
    fn look(&self, everything: bool) {
        let mut in_force = self.0.in_force.lock();
        let jobs = in_force.loaded.jobs.clone();
        let changed = in_force.files.look(&jobs, everything);
        if !changed && !everything {
            return;
        }
        let (mut targets, mut not_scraped) = (vec![], BTreeMap::new());
        for job in &jobs {
            let found = in_force.files.find(job, TARGETS_MAX - targets.len());
            targets.extend(found.active);
            if found.bad_count > 0 {
                let why = found.bad.join("; ");
                tracing::warn!(
                    job = job.name,
                    targets = found.bad_count,
                    why,
                    "targets cannot be scraped"
                );
            }
            let not = NotScraped {
                dropped: found.dropped,
                dropped_count: found.dropped_count,
                bad: found.bad,
                bad_count: found.bad_count,
            };
            not_scraped.insert(job.name.clone(), not);
        }
        in_force.not_scraped = not_scraped;
        self.0.pool.lock().set_targets(targets, self.0.clock.now());
        drop(in_force);
        self.0.wake.notify_one();
    }

    async fn files(self, mut stop: watch::Receiver<bool>) {
        let mut seen = self.0.clock.monotonic();
        while pause(FILES_PAUSE, &mut stop).await {
            let now = self.0.clock.monotonic();
            let refresh = {
                let in_force = self.0.in_force.lock();
                let all = in_force.loaded.jobs.iter().flat_map(|j| &j.files).map(|f| f.refresh);
                all.min()
            };
            let everything = refresh.is_some_and(|r| now.0.saturating_sub(seen.0) >= r.0);
            if everything {
                seen = now;
            }
            let this = self.clone();
            let _ = tokio::task::spawn_blocking(move || this.look(everything)).await;
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
            let mut pool = self.0.pool.lock();
            for (id, digest) in heard.into_iter().flatten() {
                pool.hear(id, digest, now);
            }
        }
        self.0.pool.lock().share(self.0.clock.monotonic())
    }

    async fn targets(self, mut stop: watch::Receiver<bool>) {
        loop {
            let now = self.0.clock.now();
            let (tasks, next) = {
                let mut pool = self.0.pool.lock();
                let tasks = pool.due(now, self.0.places.available_permits());
                (tasks, pool.next_at())
            };
            for task in tasks {
                let place = self.0.places.clone().try_acquire_owned();
                let this = self.clone();
                tokio::spawn(async move {
                    // It was there when tasks were taken, and nobody else takes places.
                    let _place = place;
                    this.work(task).await;
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

    async fn work(&self, task: Task) {
        let Task {
            target,
            due,
            mut series,
            is_over,
        } = task;
        let tenant = target.job.tenant.clone();
        let (config, client) = {
            let in_force = self.0.in_force.lock();
            let client = in_force.loaded.clients.get(&target.job.http.tls).cloned();
            (in_force.loaded.config.clone(), client)
        };
        if is_over {
            let taken = end(&target, &config.external_labels, series, due);
            self.0.stats.stale_markers.fetch_add(taken.stale as u64, Relaxed);
            return self.store(&tenant, &taken.rows).await;
        }
        let (began, started) = (self.0.clock.now(), self.0.clock.monotonic());
        let at = sample_time(due, began, target.interval);
        let fetched = match (&target.refused, client) {
            (Some(why), _) => Err(why.clone()),
            (None, None) => Err("its job is not in force any more".to_owned()),
            (None, Some(client)) => self.fetch(&client, &target).await,
        };
        let took = SpanNs(self.0.clock.monotonic().0.saturating_sub(started.0));
        // Large pages take long to read, and other work waits for this thread.
        let of_page = target.clone();
        let read = tokio::task::spawn_blocking(move || {
            let answer = fetched.as_ref().map_err(Clone::clone).map(|page| Answer {
                body: &page.body,
                format: page.format,
            });
            let taken = take(&of_page, &config.external_labels, answer, at, took, &mut series);
            // Its place is kept until what it says is stored.
            let room = fetched.ok().and_then(|page| page.room);
            (taken, series, room)
        });
        let Ok((taken, series, room)) = read.await else {
            // Only at the end of the program.
            return;
        };
        let stats = &self.0.stats;
        stats.scrapes.fetch_add(1, Relaxed);
        stats.doubled_samples.fetch_add(taken.doubled, Relaxed);
        stats.stale_markers.fetch_add(taken.stale as u64, Relaxed);
        if let Some(error) = &taken.error {
            stats.failed.fetch_add(1, Relaxed);
            tracing::debug!(url = target.url, error, "a scrape failed");
        }
        self.store(&tenant, &taken.rows).await;
        drop(room);
        let error = taken.error;
        self.0.pool.lock().finish(target.key, series, Last { at, took, error });
    }

    async fn fetch(&self, client: &Client, target: &hindcast_scrape::target::Target) -> Result<fetch::Page, String> {
        let timeout = target.timeout;
        match tokio::time::timeout(timeout.as_duration(), fetch(client, target, &self.0.room)).await {
            Ok(fetched) => fetched,
            Err(_) => Err(format!("no answer within the scrape timeout of {timeout}")),
        }
    }

    async fn store(&self, tenant: &TenantId, rows: &[(Labels, Vec<Sample>)]) {
        for part in rows.chunks(BATCH_ROWS_MAX) {
            let limits = self.0.ingest.limits(tenant);
            let Adapted { mut batch, rejected } = scraped::adapt(tenant, part, &limits);
            self.0.ingest.counters.refused(Protocol::Scrape, &rejected);
            if batch.series.is_empty() {
                continue;
            }
            batch.id = Some(BatchId::Sequenced {
                writer: WriterId::named(tenant, &self.0.writer),
                seq: self.0.seq.fetch_add(1, Relaxed) + 1,
            });
            if let Err(why) = self.write(&batch).await {
                let samples: usize = batch.series.iter().map(|s| s.samples.len()).sum();
                self.0.stats.lost_samples.fetch_add(samples as u64, Relaxed);
                self.0.ingest.counters.failed(Protocol::Scrape, why.code());
                tracing::warn!(%why, samples, "samples of a scrape are lost");
            }
        }
    }

    /// Writes a batch, and once more where that may help.
    async fn write(&self, batch: &Batch) -> Result<(), IngestError> {
        let bytes = batch.series.iter().map(|s| 16 * s.samples.len() + 64).sum();
        let once = || write(&self.0.ingest, batch, bytes);
        let mut written = once().await;
        if let Err(why) = &written
            && !matches!(why.class(), Class::FixRequest | Class::TooLarge)
        {
            self.0.stats.retried.fetch_add(1, Relaxed);
            tokio::time::sleep(RETRY_PAUSE).await;
            written = once().await;
        }
        self.0.ingest.counters.taken(Protocol::Scrape, &written?);
        Ok(())
    }

    /// All targets. What other nodes scrape is as they say it.
    pub async fn told(&self) -> Vec<Told> {
        let mut told = self.0.pool.lock().told();
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
        self.0.in_force.lock().not_scraped.clone()
    }

    pub fn gauges(&self) -> Gauges {
        let (dropped_targets, bad_targets, file_failures) = {
            let in_force = self.0.in_force.lock();
            let jobs = in_force.not_scraped.values();
            let sums = jobs.fold((0, 0), |(d, b), j| (d + j.dropped_count, b + j.bad_count));
            (sums.0, sums.1, in_force.files.failures)
        };
        let pool = self.0.pool.lock();
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
            file_failures,
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

async fn write(ingest: &IngestState, batch: &Batch, bytes: usize) -> Result<crate::write::Written, IngestError> {
    let _place = ingest.let_in(bytes).await?;
    let lay = |naming| Intake::of_batch(batch, ingest.sink.ids(), naming);
    let written = ingest
        .sink
        .write_intake(lay(Naming::Known), &|| lay(Naming::Defined))
        .await;
    written.map_err(Into::into)
}

//! Who is let in: asked before a request's body is read, let alone decompressed.
//!
//! Four bounds: what the process uses (`crate::memory_guard`), write requests under way (`crate::window`; others wait at the door,
//! in their order), how long the oldest of them waits for its confirmation, and queries under way. Each kind of work has its own, so that many writers do not keep a reader out, nor readers a writer; alerting and the desk have none,
//! because their requests are small and their number is that of rules and people.

use super::memory_watch::MemoryWatch;
use super::under_way::UnderWay;
use crate::memory_guard::Work;
use crate::window::Window;
use hindcast_env::Clock;
use hindcast_model::limits::{REQUEST_DECODED_BYTES_MAX, REQUEST_WIRE_BYTES_MAX};
use hindcast_model::{Class, Classify, SpanNs};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Of the memory limit, for write requests under way: one in so many.
const INGEST_SHARE: u64 = 8;
const INGEST_BYTES_MIN: u64 = 4 * (REQUEST_WIRE_BYTES_MAX + REQUEST_DECODED_BYTES_MAX) as u64;
const INGEST_BYTES_MAX: u64 = 512 << 20;
/// Write requests whose length is not told beforehand count for so much.
const UNKNOWN_BYTES: usize = 256 * 1024;
/// A compressed byte becomes about so many, and never more than a request may have.
const DECODED_FACTOR: usize = 5;
/// While a write that was taken waits longer, no more are: senders give up after five seconds or ten, and what they gave up is
/// work for nobody.
pub const WRITE_WAIT_MAX: SpanNs = SpanNs::from_secs(2);
/// Write requests that wait at the door, unread, and for how long.
pub const WRITES_WAITING_MAX: usize = 512;
const DOOR_WAIT_MAX: Duration = Duration::from_secs(2);
/// Who is first at the door looks again: the window grows also when nothing ends.
const DOOR_PAUSE: Duration = Duration::from_millis(50);
/// Queries that run at the same time.
pub const QUERIES_AT_ONCE_MAX: usize = 32;
/// Queries that wait for a place, and for how long.
pub const QUERIES_WAITING_MAX: usize = 256;
const QUERY_WAIT_MAX: Duration = Duration::from_secs(5);

/// Why a request is turned away. Nothing of it was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Overload {
    #[error("this node uses {used} bytes of memory of at most {limit}, and takes no {} now; retry in a second", work.as_str())]
    Memory { work: Work, used: u64, limit: u64 },
    #[error(
        "write requests of {bytes_max} bytes are under way on this node, as many as it finishes in time, and others wait; retry in a second"
    )]
    IngestBytes { bytes_max: usize },
    #[error("a write that this node took waits for {waited_ms} ms, and no more are taken meanwhile; retry in a second")]
    SlowWrites { waited_ms: u64 },
    #[error(
        "{QUERIES_AT_ONCE_MAX} queries run on this node already, and {QUERIES_WAITING_MAX} wait; retry in a second"
    )]
    Queries,
}

impl Classify for Overload {
    fn class(&self) -> Class {
        Class::RetryLater
    }
}

impl Overload {
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Memory { .. } => "memory",
            Self::IngestBytes { .. } => "ingest_bytes",
            Self::SlowWrites { .. } => "slow_writes",
            Self::Queries => "queries",
        }
    }
}

const REASONS: [&str; 4] = ["memory", "ingest_bytes", "slow_writes", "queries"];

/// Clones share the bounds.
#[derive(Clone)]
pub struct Admission(Arc<Inner>);

struct Inner {
    memory: MemoryWatch,
    under_way: UnderWay,
    ingest_bytes: AtomicUsize,
    ingest_bytes_max: usize,
    window: Mutex<Window>,
    clock: Arc<dyn Clock>,
    /// The first of those who wait at the door holds it.
    first: tokio::sync::Mutex<()>,
    ended: Notify,
    writes_waiting: AtomicUsize,
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// By work and reason.
    refused: [[AtomicU64; REASONS.len()]; Work::ALL.len()],
}

/// Bytes of a write request; given back when it is dropped.
pub struct IngestPlace {
    admission: Admission,
    bytes: usize,
}

impl Drop for IngestPlace {
    fn drop(&mut self) {
        let inner = &self.admission.0;
        inner.ingest_bytes.fetch_sub(self.bytes, Relaxed);
        inner.window.lock().finish(self.bytes, inner.clock.monotonic());
        inner.ended.notify_one();
    }
}

/// A query's place.
pub struct QueryPlace(#[allow(dead_code, reason = "it is given back when it is dropped")] OwnedSemaphorePermit);

/// What a write request may take in memory, from what its head says: the body as it came, and decompressed.
pub fn ingest_cost(length: Option<usize>, compressed: bool) -> usize {
    let wire = length.unwrap_or(UNKNOWN_BYTES).min(REQUEST_WIRE_BYTES_MAX);
    let decoded = if compressed {
        wire.saturating_mul(DECODED_FACTOR)
    } else {
        wire
    };
    wire + decoded.min(REQUEST_DECODED_BYTES_MAX)
}

impl Admission {
    pub fn new(memory: MemoryWatch, under_way: UnderWay, clock: Arc<dyn Clock>) -> Self {
        let share = (memory.limit() / INGEST_SHARE).clamp(INGEST_BYTES_MIN, INGEST_BYTES_MAX);
        Self(Arc::new(Inner {
            memory,
            under_way,
            ingest_bytes: AtomicUsize::new(0),
            ingest_bytes_max: share as usize,
            window: Mutex::default(),
            clock,
            first: tokio::sync::Mutex::default(),
            ended: Notify::new(),
            writes_waiting: AtomicUsize::new(0),
            places: Arc::new(Semaphore::new(QUERIES_AT_ONCE_MAX)),
            waiting: AtomicUsize::new(0),
            refused: Default::default(),
        }))
    }

    pub fn memory(&self) -> &MemoryWatch {
        &self.0.memory
    }

    fn refuse(&self, work: Work, why: Overload) -> Overload {
        let reason = REASONS.iter().position(|r| *r == why.reason()).unwrap_or(0);
        self.0.refused[work as usize][reason].fetch_add(1, Relaxed);
        why
    }

    /// Only by what memory is left.
    pub fn memory_for(&self, work: Work) -> Result<(), Overload> {
        let memory = &self.0.memory;
        if memory.admits(work) {
            return Ok(());
        }
        let (used, limit) = (memory.used(), memory.limit());
        Err(self.refuse(work, Overload::Memory { work, used, limit }))
    }

    /// A write request that takes about so many bytes while it is under way: waits at the door while there are too many, for a
    /// while.
    pub async fn ingest(&self, bytes: usize) -> Result<IngestPlace, Overload> {
        self.ingest_now()?;
        if self.0.writes_waiting.load(Relaxed) == 0
            && let Some(place) = self.take(bytes)
        {
            return Ok(place);
        }
        let bytes_max = self.ingest_bytes().1;
        let refused = || self.refuse(Work::Ingest, Overload::IngestBytes { bytes_max });
        let waiting = Waiting::new(&self.0.writes_waiting);
        if waiting.before >= WRITES_WAITING_MAX {
            return Err(refused());
        }
        let place = tokio::time::timeout(DOOR_WAIT_MAX, self.turn(bytes)).await;
        drop(waiting);
        let place = place.map_err(|_| refused())?;
        // It may have become worse meanwhile.
        self.ingest_now()?;
        Ok(place)
    }

    /// By what memory is left, and by how long the oldest write waits.
    fn ingest_now(&self) -> Result<(), Overload> {
        self.memory_for(Work::Ingest)?;
        let waited = self.0.under_way.oldest();
        if waited > WRITE_WAIT_MAX {
            let waited_ms = waited.0 / 1_000_000;
            return Err(self.refuse(Work::Ingest, Overload::SlowWrites { waited_ms }));
        }
        Ok(())
    }

    /// One that is larger than the window goes alone.
    fn take(&self, bytes: usize) -> Option<IngestPlace> {
        let (held, bytes_max) = (&self.0.ingest_bytes, self.ingest_bytes().1);
        let fits = |held: usize| (held == 0 || held + bytes <= bytes_max).then(|| held + bytes);
        held.fetch_update(Relaxed, Relaxed, fits).ok()?;
        Some(IngestPlace {
            admission: self.clone(),
            bytes,
        })
    }

    /// Waits behind those who came before.
    async fn turn(&self, bytes: usize) -> IngestPlace {
        let _first = self.0.first.lock().await;
        loop {
            if let Some(place) = self.take(bytes) {
                return place;
            }
            // One that ended before this is remembered.
            let _ = tokio::time::timeout(DOOR_PAUSE, self.0.ended.notified()).await;
        }
    }

    /// A query: waits for a place, for a while.
    pub async fn query(&self) -> Result<QueryPlace, Overload> {
        self.memory_for(Work::Queries)?;
        if let Ok(place) = self.0.places.clone().try_acquire_owned() {
            return Ok(QueryPlace(place));
        }
        let refused = || self.refuse(Work::Queries, Overload::Queries);
        let waiting = Waiting::new(&self.0.waiting);
        if waiting.before >= QUERIES_WAITING_MAX {
            return Err(refused());
        }
        let place = tokio::time::timeout(QUERY_WAIT_MAX, self.0.places.clone().acquire_owned()).await;
        drop(waiting);
        match place {
            Ok(Ok(place)) => {
                // Memory may have become short meanwhile.
                self.memory_for(Work::Queries)?;
                Ok(QueryPlace(place))
            }
            _ => Err(refused()),
        }
    }

    /// Bytes of write requests under way, and how many there may be now.
    pub fn ingest_bytes(&self) -> (usize, usize) {
        let now = self.0.clock.monotonic();
        let bytes_max = self.0.window.lock().bytes_max(self.0.ingest_bytes_max, now);
        (self.0.ingest_bytes.load(Relaxed), bytes_max)
    }

    /// Write requests that wait at the door.
    pub fn writes_waiting(&self) -> usize {
        self.0.writes_waiting.load(Relaxed)
    }

    /// Queries that run, and that wait.
    pub fn queries(&self) -> (usize, usize) {
        let running = QUERIES_AT_ONCE_MAX - self.0.places.available_permits().min(QUERIES_AT_ONCE_MAX);
        (running, self.0.waiting.load(Relaxed))
    }

    /// Refusals since the start: work, reason, how many.
    pub fn refused(&self) -> Vec<(&'static str, &'static str, u64)> {
        let of_work = |work: Work| {
            let counts = self.0.refused[work as usize].iter().zip(REASONS);
            counts.map(move |(n, reason)| (work.as_str(), reason, n.load(Relaxed)))
        };
        let all = Work::ALL.into_iter().flat_map(of_work);
        all.filter(|(.., n)| *n > 0).collect()
    }
}

/// Counts who waits, also when it is given up.
struct Waiting<'a> {
    all: &'a AtomicUsize,
    before: usize,
}

impl<'a> Waiting<'a> {
    fn new(all: &'a AtomicUsize) -> Self {
        let before = all.fetch_add(1, Relaxed);
        Self { all, before }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_env::SimClock;

    fn admission(limit: u64) -> Admission {
        let clock = Arc::new(SimClock::at(hindcast_model::TimestampNs(0)));
        Admission::new(
            MemoryWatch::new(clock.clone(), Some(limit)),
            UnderWay::new(clock.clone()),
            clock,
        )
    }

    #[tokio::test]
    async fn no_more_writes_are_taken_while_one_waits_for_longer_than_its_sender_may() {
        let clock = Arc::new(SimClock::at(hindcast_model::TimestampNs(0)));
        let under_way = UnderWay::new(clock.clone());
        let admission = Admission::new(
            MemoryWatch::new(clock.clone(), Some(u64::MAX)),
            under_way.clone(),
            clock.clone(),
        );
        let one = under_way.begin();
        clock.advance(WRITE_WAIT_MAX);
        assert!(admission.ingest(1).await.is_ok());
        clock.advance(SpanNs::from_ms(1));
        let waited_ms = 2001;
        assert_eq!(
            admission.ingest(1).await.err(),
            Some(Overload::SlowWrites { waited_ms })
        );
        drop(one);
        assert!(admission.ingest(1).await.is_ok());
    }

    #[tokio::test]
    async fn writes_that_are_too_many_wait_at_the_door_in_their_order_and_for_a_while() {
        let admission = admission(u64::MAX);
        let (_, bytes_max) = admission.ingest_bytes();
        let half = admission.ingest(bytes_max / 2).await.ok().unwrap();
        let rest = admission.ingest(bytes_max / 2).await.ok().unwrap();
        let order = Arc::new(Mutex::new(vec![]));
        let late: Vec<_> = (0..2)
            .map(|n| {
                let (admission, order) = (admission.clone(), order.clone());
                tokio::spawn(async move {
                    let place = admission.ingest(bytes_max / 2).await;
                    order.lock().push(n);
                    place
                })
            })
            .collect();
        tokio::task::yield_now().await;
        assert_eq!((admission.writes_waiting(), admission.ingest_bytes().0), (2, bytes_max));
        drop(half);
        drop(rest);
        for one in late {
            assert!(one.await.unwrap().is_ok());
        }
        assert_eq!(*order.lock(), [0, 1]);
        assert_eq!((admission.writes_waiting(), admission.ingest_bytes().0), (0, 0));

        let _all = admission.ingest(usize::MAX / 2).await.ok().unwrap();
        let why = admission.ingest(1).await.err().unwrap();
        assert_eq!((why.class(), why.reason()), (Class::RetryLater, "ingest_bytes"));
        assert_eq!(admission.refused(), [("ingest", "ingest_bytes", 1)]);
        let crowd: Vec<_> = (0..WRITES_WAITING_MAX)
            .map(|_| {
                let admission = admission.clone();
                tokio::spawn(async move { admission.ingest(1).await.is_ok() })
            })
            .collect();
        while admission.writes_waiting() < WRITES_WAITING_MAX {
            tokio::task::yield_now().await;
        }
        assert_eq!(
            admission.ingest(1).await.err().map(|e| e.reason()),
            Some("ingest_bytes"),
            "at once"
        );
        crowd.iter().for_each(tokio::task::JoinHandle::abort);
        for one in crowd {
            let _ = one.await;
        }
        assert_eq!(admission.writes_waiting(), 0, "who gives up waits no more");
    }

    #[tokio::test]
    async fn a_process_above_its_limit_takes_neither_writes_nor_queries() {
        // This process uses more than a byte.
        let admission = admission(1);
        let refused = admission.ingest(1).await.err().unwrap();
        assert_eq!((refused.class(), refused.reason()), (Class::RetryLater, "memory"));
        assert!(refused.to_string().contains("takes no ingest now"), "{refused}");
        assert!(admission.memory_for(Work::Alerting).is_ok());
        assert!(admission.memory_for(Work::Desk).is_ok());
    }

    #[tokio::test]
    async fn a_query_waits_for_a_place_and_too_many_are_refused() {
        let admission = admission(u64::MAX);
        let mut places = vec![];
        for _ in 0..QUERIES_AT_ONCE_MAX {
            places.push(admission.query().await.ok().unwrap());
        }
        assert_eq!(admission.queries(), (QUERIES_AT_ONCE_MAX, 0));
        let waiting = tokio::spawn({
            let admission = admission.clone();
            async move { admission.query().await.is_ok() }
        });
        while admission.queries().1 == 0 {
            tokio::task::yield_now().await;
        }
        drop(places.pop());
        assert!(waiting.await.unwrap());
        let crowd: Vec<_> = (0..QUERIES_WAITING_MAX)
            .map(|_| {
                let admission = admission.clone();
                tokio::spawn(async move { admission.query().await.is_ok() })
            })
            .collect();
        places.push(admission.query().await.ok().unwrap());
        while admission.queries().1 < QUERIES_WAITING_MAX {
            tokio::task::yield_now().await;
        }
        assert_eq!(admission.query().await.err(), Some(Overload::Queries));
        crowd.iter().for_each(tokio::task::JoinHandle::abort);
        for one in crowd {
            let _ = one.await;
        }
        assert_eq!(admission.queries().1, 0, "who gives up waits no more");
    }

    #[test]
    fn what_a_request_may_take_follows_from_its_head() {
        assert_eq!(ingest_cost(Some(1000), false), 2000);
        assert_eq!(ingest_cost(Some(1000), true), 6000);
        assert_eq!(ingest_cost(None, false), 2 * UNKNOWN_BYTES);
        let most = ingest_cost(Some(usize::MAX), true);
        assert_eq!(most, REQUEST_WIRE_BYTES_MAX + REQUEST_DECODED_BYTES_MAX);
    }
}

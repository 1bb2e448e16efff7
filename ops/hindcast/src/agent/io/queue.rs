//! What was collected and not yet confirmed: on disk, and in memory when there is no disk or no room on it.

use crate::agent::batcher::items;
use crate::agent::buffer::Buffer;
use crate::agent::spool::{Found, SPOOL_BYTES_MIN, Spool, Tails, Ticket};
use hindcast_env::Disk;
use hindcast_env::io::{FolderLock, RealDisk};
use hindcast_proto::v1;
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// After a failure the disk is left alone for this long: each try may let older batches go to make room.
const SPILL_PAUSE: Duration = Duration::from_secs(5);
const FULL: &str = "the buffer is full; the oldest batches were dropped";

/// Where a batch is that is being sent.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    Disk(Ticket),
    Memory,
}

#[derive(Default)]
pub struct Queue {
    held: Mutex<Held>,
    /// Nothing more will come.
    pub complete: AtomicBool,
    pub filled: Notify,
    _lock: Option<FolderLock>,
}

#[derive(Default)]
struct Held {
    spool: Option<Spool>,
    memory: Buffer,
    /// How far log files were read for what came into memory because the disk took nothing.
    memory_tails: Option<Tails>,
    /// The disk takes nothing at present, which was said. It is not tried again before this.
    failing: Option<Instant>,
    counts: Counts,
}

/// For the report and `/metrics`.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub dropped: u64,
    /// Writes that the disk did not take.
    pub disk_failures: u64,
    pub torn_bytes: u64,
    pub damaged_bytes: u64,
    pub disk_bytes: u64,
    pub disk_batches: usize,
    pub memory_bytes: usize,
    pub memory_batches: usize,
    /// Samples and lines.
    pub waiting: u64,
}

impl Held {
    fn find(&mut self, found: Found) {
        for text in found.damaged {
            tracing::error!("the buffer is damaged: {text}");
        }
        if found.torn_bytes > 0 {
            tracing::info!(
                bytes = found.torn_bytes,
                "the buffer ended within a write, which is left out"
            );
        }
        self.counts.torn_bytes += found.torn_bytes;
        self.counts.damaged_bytes += found.damaged_bytes;
        self.drop_items(found.lost, "the buffer is damaged; batches are lost");
    }

    /// `false`: the disk took nothing of it.
    fn write(&mut self, group: &[v1::WriteRequest], tails: &Tails) -> bool {
        let Some(spool) = &mut self.spool else { return false };
        let written = spool.push(group, tails);
        let dropped = spool.dropped();
        self.drop_items(dropped, FULL);
        match written {
            Ok(()) => {
                if self.failing.take().is_some() {
                    tracing::info!("the buffer's disk takes batches again");
                }
                true
            }
            Err(e) => {
                self.counts.disk_failures += 1;
                if self.failing.replace(Instant::now() + SPILL_PAUSE).is_none() {
                    tracing::warn!(error = %e, "the buffer's disk takes nothing; batches wait in memory until it does");
                }
                false
            }
        }
    }

    fn drop_items(&mut self, dropped: u64, why: &str) {
        if dropped > 0 {
            self.counts.dropped += dropped;
            tracing::warn!(dropped, dropped_in_all = self.counts.dropped, "{why}");
        }
    }

    /// What waits in memory is older than what comes now. One group, so that its lines and the places of their files stay together.
    fn spill(&mut self) -> bool {
        let Some(spool) = &mut self.spool else { return false };
        let tails = self.memory_tails.take();
        if self.memory.is_empty() {
            // All of it was confirmed meanwhile.
            if let Some(tails) = tails {
                spool.note(tails);
            }
            return true;
        }
        let now = tails.clone().unwrap_or_else(|| spool.tails().clone());
        let group: Vec<_> = std::iter::from_fn(|| self.memory.take()).collect();
        if self.write(&group, &now) {
            return true;
        }
        self.memory_tails = tails;
        for batch in group.into_iter().rev() {
            let dropped = self.memory.put_back(batch);
            self.drop_items(dropped, FULL);
        }
        false
    }

    fn push(&mut self, group: Vec<v1::WriteRequest>, tails: Tails) {
        let is_left_alone = self.failing.is_some_and(|until| Instant::now() < until);
        if !is_left_alone && self.spill() && self.write(&group, &tails) {
            return;
        }
        for batch in group {
            let dropped = self.memory.push(batch);
            self.drop_items(dropped, FULL);
        }
        self.memory_tails = Some(tails);
    }

    fn take(&mut self) -> Option<(Place, v1::WriteRequest)> {
        let mut found = Found::default();
        let oldest = self.spool.as_mut().and_then(|s| s.peek(&mut found));
        self.find(found);
        match oldest {
            Some((ticket, batch)) => Some((Place::Disk(ticket), batch)),
            // It stays in front until it is confirmed: what is read on meanwhile must not be noted as read without it.
            None => Some((Place::Memory, self.memory.oldest()?.clone())),
        }
    }

    /// `false`: it was dropped meanwhile.
    fn confirm(&mut self, place: Place, batch: &v1::WriteRequest) -> bool {
        let is_it = |other: &v1::WriteRequest| (&other.writer, other.seq) == (&batch.writer, batch.seq);
        let ticket = match place {
            Place::Disk(ticket) => Some(ticket),
            Place::Memory if self.memory.oldest().is_some_and(is_it) => {
                self.memory.take();
                return true;
            }
            // It may have come to disk while it was on its way.
            Place::Memory => {
                let mut found = Found::default();
                let oldest = self.spool.as_mut().and_then(|s| s.peek(&mut found));
                self.find(found);
                oldest.filter(|(_, other)| is_it(other)).map(|(ticket, _)| ticket)
            }
        };
        match (&mut self.spool, ticket) {
            (Some(spool), Some(ticket)) => spool.confirm(ticket),
            _ => false,
        }
    }
}

impl Queue {
    /// An error says what to do.
    pub fn open(dir: Option<&Path>, bytes_max: u64) -> Result<Self, String> {
        let Some(dir) = dir else { return Ok(Self::default()) };
        let disk = RealDisk::new(dir).map_err(|e| e.to_string())?;
        let lock = disk.lock().map_err(|e| e.to_string())?;
        let Some(lock) = lock else {
            return Err(format!(
                "another agent uses {}; give this one a --buffer-dir of its own",
                dir.display()
            ));
        };
        let mut queue = Self::on(Arc::new(disk), bytes_max)?;
        queue._lock = Some(lock);
        Ok(queue)
    }

    pub fn on(disk: Arc<dyn Disk>, bytes_max: u64) -> Result<Self, String> {
        let (spool, found) = Spool::open(disk, bytes_max.max(SPOOL_BYTES_MIN)).map_err(|e| e.to_string())?;
        let queue = Self::default();
        {
            let mut held = queue.held.lock();
            held.find(found);
            held.spool = Some(spool);
        }
        Ok(queue)
    }

    /// Up to where an earlier agent read a log file.
    pub fn tail(&self, path: &Path) -> Option<(u64, u64)> {
        let held = self.held.lock();
        held.spool.as_ref()?.tails().get(&*path.to_string_lossy()).copied()
    }

    pub async fn push(self: Arc<Self>, group: Vec<v1::WriteRequest>, tails: Tails) {
        blocking(move || {
            self.held.lock().push(group, tails);
            self.filled.notify_one();
        })
        .await;
    }

    pub async fn take(self: Arc<Self>) -> Option<(Place, v1::WriteRequest)> {
        blocking(move || self.held.lock().take()).await
    }

    /// A batch was confirmed, or refused for good.
    pub async fn confirm(self: Arc<Self>, place: Place, batch: v1::WriteRequest) {
        let (samples, lines) = items(&batch);
        blocking(move || {
            let mut held = self.held.lock();
            if !held.confirm(place, &batch) {
                // It was dropped while it was on its way, and has arrived all the same.
                held.counts.dropped = held.counts.dropped.saturating_sub(samples + lines);
            }
        })
        .await;
    }

    pub fn is_empty(&self) -> bool {
        let held = self.held.lock();
        held.memory.is_empty() && held.spool.as_ref().is_none_or(|s| s.batches() == 0)
    }

    pub fn dropped(&self) -> u64 {
        self.held.lock().counts.dropped
    }

    /// Samples and lines that wait: on disk, and in memory.
    pub fn left(&self) -> (u64, u64) {
        let mut held = self.held.lock();
        // The disk may take by now what it did not.
        held.spill();
        (held.spool.as_ref().map_or(0, Spool::waiting), held.memory.waiting())
    }

    pub fn counts(&self) -> Counts {
        let held = self.held.lock();
        let spool = held.spool.as_ref();
        Counts {
            disk_bytes: spool.map_or(0, Spool::bytes),
            disk_batches: spool.map_or(0, Spool::batches),
            memory_bytes: held.memory.bytes(),
            memory_batches: held.memory.batches(),
            waiting: held.memory.waiting() + spool.map_or(0, Spool::waiting),
            ..held.counts.clone()
        }
    }
}

/// Off the runtime's threads: a disk may take its time.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) => std::panic::resume_unwind(e.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::batcher::{Batcher, Entry};
    use hindcast_env::SimDisk;
    use hindcast_model::Labels;

    fn group(batcher: &mut Batcher, line: &str) -> Vec<v1::WriteRequest> {
        let entry = Entry {
            at_ns: 1,
            line: line.to_owned(),
            metadata: vec![],
        };
        let _ = batcher.line(&Labels::from_pairs([("job", "x")]), entry);
        batcher.finish().into_iter().collect()
    }

    fn tails(offset: u64) -> Tails {
        [("log".to_owned(), (7, offset))].into()
    }

    async fn drain(queue: &Arc<Queue>) -> Vec<u64> {
        let mut seqs = vec![];
        while let Some((place, batch)) = queue.clone().take().await {
            seqs.push(batch.seq);
            queue.clone().confirm(place, batch).await;
        }
        seqs
    }

    #[tokio::test]
    async fn lines_of_a_batch_on_its_way_from_memory_survive_a_kill_once_the_disk_takes_batches_again() {
        let disk = SimDisk::new();
        let queue = Arc::new(Queue::on(Arc::new(disk.clone()), 0).unwrap());
        let mut batcher = Batcher::new("w", &[]);
        disk.set_full(true);
        queue.clone().push(group(&mut batcher, "one"), tails(1)).await;
        let (place, on_its_way) = queue.clone().take().await.unwrap();
        assert!(matches!(place, Place::Memory) && on_its_way.seq == 1);
        disk.set_full(false);
        disk.heal();
        queue.held.lock().failing = Some(Instant::now());
        queue.clone().push(group(&mut batcher, "two"), tails(2)).await;
        // What counts as read when the process is killed now is on disk, all of it.
        let killed = Arc::new(Queue::on(Arc::new(disk.fork()), 0).unwrap());
        assert_eq!(killed.tail(Path::new("log")), Some((7, 2)));
        assert_eq!(drain(&killed).await, [1, 2]);
        // Confirmed after all, it is not sent once more.
        queue.clone().confirm(place, on_its_way).await;
        assert_eq!(drain(&queue).await, [2]);
        assert_eq!((queue.dropped(), queue.left()), (0, (0, 0)));
    }

    #[tokio::test]
    async fn a_batch_that_has_to_go_while_it_is_on_its_way_and_arrives_counts_as_arrived() {
        let queue = Arc::new(Queue::default());
        queue.held.lock().memory = Buffer::bounded(1, usize::MAX);
        let mut batcher = Batcher::new("w", &[]);
        queue.clone().push(group(&mut batcher, "one"), tails(1)).await;
        let (place, on_its_way) = queue.clone().take().await.unwrap();
        queue.clone().push(group(&mut batcher, "two"), tails(2)).await;
        assert_eq!(queue.dropped(), 1);
        queue.clone().confirm(place, on_its_way).await;
        assert_eq!((queue.dropped(), drain(&queue).await), (0, vec![2]));
    }

    #[tokio::test]
    async fn a_full_disk_makes_batches_wait_in_memory_until_it_has_room_again() {
        let disk = SimDisk::new();
        let queue = Arc::new(Queue::on(Arc::new(disk.clone()), 0).unwrap());
        let mut batcher = Batcher::new("w", &[]);
        let mut push = async |line: &str, offset| {
            queue.clone().push(group(&mut batcher, line), tails(offset)).await;
            let counts = queue.counts();
            (counts.disk_batches, counts.memory_batches, counts.disk_failures)
        };
        assert_eq!(push("one", 1).await, (1, 0, 0));
        disk.set_full(true);
        assert_eq!(push("two", 2).await, (1, 1, 1));
        assert_eq!(push("three", 3).await.1, 2);
        // Nothing of what the disk did not take counts as read when the process ends now.
        let killed = Queue::on(Arc::new(disk.fork()), 0).unwrap();
        assert_eq!(
            (killed.tail(Path::new("log")), killed.counts().disk_batches),
            (Some((7, 1)), 1)
        );
        disk.set_full(false);
        disk.heal();
        // Each try may let older batches go: there is a pause between two.
        assert_eq!(push("four", 4).await, (1, 3, 1));
        queue.held.lock().failing = Some(Instant::now());
        let (on_disk, in_memory, _) = push("five", 5).await;
        assert_eq!((on_disk, in_memory), (5, 0));
        let killed = Arc::new(Queue::on(Arc::new(disk.fork()), 0).unwrap());
        assert_eq!(killed.tail(Path::new("log")), Some((7, 5)));
        assert_eq!(drain(&killed).await, [1, 2, 3, 4, 5]);
        assert_eq!(drain(&queue).await, [1, 2, 3, 4, 5]);
        assert_eq!((queue.dropped(), queue.left()), (0, (0, 0)));
    }
}

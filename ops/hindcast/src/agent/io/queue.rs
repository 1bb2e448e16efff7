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
use tokio::sync::Notify;

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
    /// The disk takes nothing at present, which was said.
    failing: bool,
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
            // All of it was sent meanwhile.
            if let Some(tails) = tails {
                spool.note(tails);
            }
            return true;
        }
        let group: Vec<_> = std::iter::from_fn(|| self.memory.take()).collect();
        let now = tails.clone().unwrap_or_else(|| spool.tails().clone());
        let why = match spool.push(&group, &now) {
            Ok(dropped) => {
                self.drop_items(dropped, FULL);
                return true;
            }
            Err(e) => e.to_string(),
        };
        self.memory_tails = tails;
        for batch in group.into_iter().rev() {
            let dropped = self.memory.put_back(batch);
            self.drop_items(dropped, FULL);
        }
        self.failed(&why);
        false
    }

    fn failed(&mut self, why: &str) {
        self.counts.disk_failures += 1;
        if !self.failing {
            self.failing = true;
            tracing::warn!(error = %why, "the buffer's disk takes nothing; batches wait in memory until it does");
        }
    }

    fn push(&mut self, group: Vec<v1::WriteRequest>, tails: Tails) {
        if self.spill()
            && let Some(spool) = &mut self.spool
        {
            match spool.push(&group, &tails) {
                Ok(dropped) => {
                    if std::mem::take(&mut self.failing) {
                        tracing::info!("the buffer's disk takes batches again");
                    }
                    return self.drop_items(dropped, FULL);
                }
                Err(e) => self.failed(&e.to_string()),
            }
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
            None => Some((Place::Memory, self.memory.take()?)),
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
    pub async fn confirm(self: Arc<Self>, place: Place, batch: &v1::WriteRequest) {
        let Place::Disk(ticket) = place else { return };
        let (samples, lines) = items(batch);
        blocking(move || {
            let mut held = self.held.lock();
            let there = held.spool.as_mut().is_some_and(|s| s.confirm(ticket));
            if !there {
                // It was dropped while it was on its way, and has arrived all the same.
                held.counts.dropped = held.counts.dropped.saturating_sub(samples + lines);
            }
        })
        .await;
    }

    /// A batch on its way when the end came. On disk it still is.
    pub fn give_back(&self, place: Place, batch: v1::WriteRequest) {
        if let Place::Memory = place {
            let mut held = self.held.lock();
            let dropped = held.memory.put_back(batch);
            held.drop_items(dropped, FULL);
        }
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
            queue.clone().confirm(place, &batch).await;
        }
        seqs
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
        let (on_disk, in_memory, _) = push("four", 4).await;
        assert_eq!((on_disk, in_memory), (4, 0));
        let killed = Arc::new(Queue::on(Arc::new(disk.fork()), 0).unwrap());
        assert_eq!(killed.tail(Path::new("log")), Some((7, 4)));
        assert_eq!(drain(&killed).await, [1, 2, 3, 4]);
        assert_eq!(drain(&queue).await, [1, 2, 3, 4]);
        assert_eq!((queue.dropped(), queue.left()), (0, (0, 0)));
    }
}

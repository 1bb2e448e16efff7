//! An apply worker: owns the machines of its groups, feeds them committed entries, keeps them in shape.

use super::host::GroupShared;
use super::raft_thread::{Event, Fatal};
use super::workshop::Workshop;
use crate::driver::{Input, is_for_machine, proposal_id};
use crate::machine::{Entry, Machine, MachineError, Work};
use hindcast_env::{Clock, Disk};
use hindcast_model::{GroupId, NodeId, SpanNs};
use raft::eraftpb;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

pub enum Job {
    Apply(GroupId, Vec<eraftpb::Entry>),
    Export { group: GroupId, to: NodeId, dir: String },
    Install { group: GroupId, index: u64, dir: String },
    Discard { dir: String },
    Forget(GroupId),
    Stop,
}

pub struct Owned {
    pub machine: Box<dyn Machine>,
    pub shared: Arc<GroupShared>,
    pub durable: u64,
    /// No maintenance before, after the disk was full.
    pub maintain_after: SpanNs,
    /// A snapshot (index, folder) that waits for room: nothing is applied before it.
    pub install: Option<(u64, String)>,
    /// It was told to forget what it has, and waits for room.
    pub forgets: bool,
    /// Snapshots for peers that wait until the machine is ready, and since when.
    pub exports: Vec<(NodeId, String, SpanNs)>,
    /// Index and time of the last digest.
    pub digested: Option<(u64, SpanNs)>,
}

/// Maintenance, or a snapshot, that found the disk full is tried again after this.
const FULL_PAUSE: SpanNs = SpanNs::from_secs(2);
/// A machine that does not get ready is exported as it is.
const EXPORT_WAIT_MAX: SpanNs = SpanNs::from_secs(10);
/// A digest may cost a walk over the state; it is refreshed no more often than this.
const DIGEST_EVERY: SpanNs = SpanNs::from_ms(1000);

pub struct Worker {
    pub machines: BTreeMap<GroupId, Owned>,
    pub jobs: Receiver<Job>,
    pub events: Sender<Event>,
    pub disk: Arc<dyn Disk>,
    pub clock: Arc<dyn Clock>,
    pub maintain_every: Duration,
    pub workshop: Workshop,
    pub fatal: Fatal,
}

impl Worker {
    pub fn run(mut self) {
        let every = SpanNs(self.maintain_every.as_nanos() as u64);
        let mut maintained = self.clock.monotonic();
        loop {
            let job = match self.jobs.recv_timeout(self.maintain_every) {
                Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => None,
            };
            let applied = match job {
                Some(Job::Apply(group, _)) => Some(group),
                _ => None,
            };
            if let Err((group, e)) = self.work(job) {
                return self.fatal.set(format!("group {group} cannot go on: {e}"));
            }
            let now = self.clock.monotonic();
            let all = now.0.saturating_sub(maintained.0) >= every.0;
            let groups: Vec<_> = match applied {
                _ if all => self.machines.keys().copied().collect(),
                Some(group) => vec![group],
                None => vec![],
            };
            if all {
                maintained = now;
            }
            for group in groups {
                if let Err(e) = self.maintain(group, now) {
                    return self.fatal.set(format!("group {group} cannot go on: {e}"));
                }
            }
        }
    }

    fn work(&mut self, job: Option<Job>) -> Result<(), (GroupId, MachineError)> {
        match job {
            Some(Job::Apply(group, entries)) => self.apply(group, entries).map_err(|e| (group, e)),
            Some(Job::Export { group, to, dir }) => {
                let now = self.clock.monotonic();
                self.owned(group).exports.push((to, dir, now));
                self.export_ready(group, now);
                Ok(())
            }
            Some(Job::Install { group, index, dir }) => {
                self.owned(group).install = Some((index, dir));
                let now = self.clock.monotonic();
                self.install(group, now).map_err(|e| (group, e))
            }
            Some(Job::Discard { dir }) => {
                for owned in self.machines.values_mut() {
                    owned.install.take_if(|(_, waits)| *waits == dir);
                }
                if let Err(e) = self.disk.remove_dir_all(&dir) {
                    tracing::warn!(dir, error = %e, "files of a snapshot stay behind until the next start");
                }
                Ok(())
            }
            Some(Job::Forget(group)) => {
                // A snapshot that waits is of before; one that comes now is of a copy that is a member again.
                let owned = self.owned(group);
                (owned.forgets, owned.install) = (true, None);
                let now = self.clock.monotonic();
                self.forget(group, now).map_err(|e| (group, e))
            }
            Some(Job::Stop) | None => Ok(()),
        }
    }

    fn owned(&mut self, group: GroupId) -> &mut Owned {
        self.machines
            .get_mut(&group)
            .expect("jobs come to the worker that owns the group")
    }

    fn tell(&self, group: GroupId, input: Input) {
        // The raft thread may be gone already; then nobody waits.
        let _ = self.events.send(Event::Inputs(vec![(group, input)]));
    }

    fn apply(&mut self, group: GroupId, entries: Vec<eraftpb::Entry>) -> Result<(), MachineError> {
        let owned = self.owned(group);
        let index = entries.last().map_or(0, |e| e.index);
        let mut replies = Vec::new();
        let mut bytes = 0;
        for raw in entries {
            bytes += raw.data.len();
            if !is_for_machine(&raw) || raw.index <= owned.machine.applied() {
                continue;
            }
            let entry = Entry {
                index: raw.index,
                term: raw.term,
                data: raw.data.clone(),
            };
            let reply = owned.machine.apply(&entry)?;
            if let Some(id) = proposal_id(&raw) {
                replies.push((raw.index, id, reply));
            }
        }
        owned.shared.backlog_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.tell(group, Input::Applied { index, replies });
        Ok(())
    }

    /// One at a time, so that applies come in between.
    fn export_ready(&mut self, group: GroupId, now: SpanNs) {
        let owned = self.owned(group);
        let Some((_, _, since)) = owned.exports.first() else {
            return;
        };
        let is_late = now.0.saturating_sub(since.0) >= EXPORT_WAIT_MAX.0;
        if !owned.machine.is_ready_to_export() && !is_late {
            return;
        }
        let (to, dir, _) = owned.exports.remove(0);
        let result = self.export(group, &dir);
        if let Err(e) = &result {
            // The peer is asked to wait; raft asks again.
            tracing::warn!(%group, %to, error = %e, "snapshot for a peer failed");
            let _ = self.disk.remove_dir_all(&dir);
        }
        let result = result.ok().map(|index| (index, dir));
        self.tell(group, Input::Exported { to, result });
    }

    fn export(&mut self, group: GroupId, dir: &str) -> Result<u64, MachineError> {
        self.disk.remove_dir_all(dir)?;
        self.disk.create_dir_all(dir)?;
        let machine = &mut self.owned(group).machine;
        machine.export(dir)?;
        Ok(machine.applied())
    }

    fn install(&mut self, group: GroupId, now: SpanNs) -> Result<(), MachineError> {
        let owned = self.owned(group);
        // What is to be forgotten goes first: it would take the snapshot with it.
        let Some((index, dir)) = owned.install.take_if(|_| !owned.forgets) else {
            return Ok(());
        };
        match owned.machine.install(&dir, index) {
            // Nothing of it is in force, and its files are still there.
            Err(MachineError::Disk(e)) if e.is_full() => {
                tracing::warn!(%group, index, error = %e, "the disk is full: a snapshot of the leader waits for room; it is tried again in {}", FULL_PAUSE);
                owned.install = Some((index, dir));
                owned.maintain_after = SpanNs(now.0.saturating_add(FULL_PAUSE.0));
            }
            done => {
                done?;
                self.tell(group, Input::Installed { index });
            }
        }
        Ok(())
    }

    /// Its manifest needs a little room, before much of it comes free.
    fn forget(&mut self, group: GroupId, now: SpanNs) -> Result<(), MachineError> {
        let owned = self.owned(group);
        if !owned.forgets {
            return Ok(());
        }
        match owned.machine.forget() {
            Err(MachineError::Disk(e)) if e.is_full() => {
                tracing::warn!(%group, error = %e, "the disk is full: a copy that is not needed stays for now; it is tried again in {}", FULL_PAUSE);
                owned.maintain_after = SpanNs(now.0.saturating_add(FULL_PAUSE.0));
            }
            done => {
                done?;
                (owned.forgets, owned.durable) = (false, 0);
                self.tell(group, Input::Forgotten);
            }
        }
        Ok(())
    }

    fn maintain(&mut self, group: GroupId, now: SpanNs) -> Result<(), MachineError> {
        let workshop = self.workshop.clone();
        if now >= self.owned(group).maintain_after {
            self.forget(group, now)?;
            self.install(group, now)?;
        }
        self.export_ready(group, now);
        let owned = self.owned(group);
        if now >= owned.maintain_after && owned.install.is_none() && !owned.forgets {
            match owned.machine.maintain(&mut |work: Work| workshop.take(work)) {
                // Everything is as it was: the log keeps what is not on disk outside of it.
                Err(MachineError::Disk(e)) if e.is_full() => {
                    tracing::warn!(%group, error = %e, "the disk is full: a flush or merge left everything as it was; it is tried again in {}", FULL_PAUSE);
                    owned.maintain_after = SpanNs(now.0.saturating_add(FULL_PAUSE.0));
                }
                done => done?,
            }
        }
        let (durable, applied) = (owned.machine.durable(), owned.machine.applied());
        let due = owned
            .digested
            .is_none_or(|(at, time)| at != applied && now.0 - time.0 >= DIGEST_EVERY.0);
        if due {
            owned.digested = Some((applied, now));
            let digest = owned.machine.digest();
            *owned.shared.digest.lock() = (applied, digest);
        }
        if durable != owned.durable {
            owned.durable = durable;
            self.tell(group, Input::Durable { index: durable });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::SnapshotCheck;
    use bytes::Bytes;
    use hindcast_env::{DiskError, SimClock, SimDisk};
    use hindcast_model::TimestampNs;
    use parking_lot::Mutex;
    use std::io;
    use std::sync::atomic::{AtomicBool, AtomicUsize};
    use std::sync::mpsc::channel;
    use tokio::sync::watch;

    /// Its index is all that it has; a full disk takes nothing.
    struct Indexed {
        applied: u64,
        is_full: Arc<AtomicBool>,
    }

    impl Indexed {
        fn set(&mut self, applied: u64) -> Result<(), MachineError> {
            if self.is_full.load(Ordering::Relaxed) {
                let full = io::ErrorKind::StorageFull.into();
                return Err(DiskError::new("write", "manifest", full).into());
            }
            self.applied = applied;
            Ok(())
        }
    }

    impl Machine for Indexed {
        fn applied(&self) -> u64 {
            self.applied
        }
        fn apply(&mut self, entry: &Entry) -> Result<Bytes, MachineError> {
            self.applied = entry.index;
            Ok(Bytes::new())
        }
        fn durable(&self) -> u64 {
            self.applied
        }
        fn maintain(&mut self, _: &mut dyn FnMut(Work)) -> Result<(), MachineError> {
            Ok(())
        }
        fn export(&mut self, _: &str) -> Result<(), MachineError> {
            Ok(())
        }
        fn snapshot_check(&self) -> SnapshotCheck {
            Arc::new(|_| Ok(()))
        }
        fn install(&mut self, _: &str, index: u64) -> Result<(), MachineError> {
            self.set(index)
        }
        fn forget(&mut self) -> Result<(), MachineError> {
            self.set(0)
        }
        fn digest(&self) -> [u8; 32] {
            [0; 32]
        }
    }

    const GROUP: GroupId = GroupId(1);

    /// Jobs come while the disk is full, then it has room for others: what the machine has, and what was told.
    fn after(while_full: Vec<Job>, then: Vec<Job>) -> (u64, Vec<String>) {
        let is_full = Arc::new(AtomicBool::new(true));
        let machine = Indexed {
            applied: 25,
            is_full: is_full.clone(),
        };
        let owned = Owned {
            machine: Box::new(machine),
            shared: Arc::new(GroupShared {
                status: Mutex::default(),
                digest: Mutex::default(),
                leadership: watch::Sender::default(),
                backlog_bytes: AtomicUsize::new(0),
                counts: AtomicBool::new(false),
                is_alone: AtomicBool::new(false),
            }),
            durable: 25,
            maintain_after: SpanNs::ZERO,
            install: None,
            forgets: false,
            exports: vec![],
            digested: None,
        };
        let ((events, told), (_jobs, queue)) = (channel(), channel());
        let mut worker = Worker {
            machines: BTreeMap::from([(GROUP, owned)]),
            jobs: queue,
            events: events.clone(),
            disk: Arc::new(SimDisk::new()),
            clock: Arc::new(SimClock::at(TimestampNs(0))),
            maintain_every: Duration::from_secs(1),
            workshop: Workshop::new().0,
            fatal: Fatal {
                told: Arc::default(),
                events,
            },
        };
        for job in while_full {
            worker.work(Some(job)).unwrap();
        }
        is_full.store(false, Ordering::Relaxed);
        for job in then {
            worker.work(Some(job)).unwrap();
        }
        for round in 1..3 {
            worker.maintain(GROUP, SpanNs(round * FULL_PAUSE.0)).unwrap();
        }
        let told = told.try_iter().filter_map(|event| match event {
            Event::Inputs(inputs) => Some(inputs),
            _ => None,
        });
        let told = told.flatten().filter_map(|(_, input)| match input {
            Input::Forgotten => Some("forgotten".to_owned()),
            Input::Installed { index } => Some(format!("installed {index}")),
            _ => None,
        });
        (worker.machines[&GROUP].machine.applied(), told.collect())
    }

    fn install(index: u64) -> Job {
        let dir = format!("snapshot-{index}");
        Job::Install {
            group: GROUP,
            index,
            dir,
        }
    }

    /// The disk was full when a copy was let go; it became a member again, and what it got then was forgotten with what it had before.
    #[test]
    fn a_snapshot_of_a_copy_that_is_a_member_again_outlives_the_forgetting_that_waited_for_room() {
        let told = |told: &[&str]| told.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        let both = (40, told(&["forgotten", "installed 40"]));
        assert_eq!(after(vec![Job::Forget(GROUP)], vec![install(40)]), both);
        assert_eq!(after(vec![Job::Forget(GROUP), install(40)], vec![]), both);
        // One that waited before is of what is given up.
        assert_eq!(after(vec![install(30), Job::Forget(GROUP)], vec![install(40)]), both);
        let forgotten = (0, told(&["forgotten"]));
        assert_eq!(after(vec![install(30), Job::Forget(GROUP)], vec![]), forgotten);
        let dir = "snapshot-30".to_owned();
        assert_eq!(after(vec![install(30), Job::Discard { dir }], vec![]), (25, vec![]));
    }
}

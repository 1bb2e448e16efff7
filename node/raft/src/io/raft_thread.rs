//! The raft thread: all groups of the node, one loop. Never blocks on disk, network or a machine.

use super::host::{GroupShared, Leadership, ProposeError, Transport};
use super::log_thread::{LogJob, bytes_of};
use super::worker::Job;
use crate::driver::{Driver, Input, Outcome, Output, ProposalId, Pulse, Refused};
use crate::members::MemberStep;
use crate::wire::{self, WireMessage};
use bytes::Bytes;
use hindcast_env::{Clock, Disk};
use hindcast_model::{GroupId, NodeId, SpanNs};
use raft::eraftpb::{Message, MessageType};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

pub type ProposeReply = oneshot::Sender<Result<(u64, Bytes), ProposeError>>;

pub enum Event {
    Inputs(Vec<(GroupId, Input)>),
    /// From a peer, counted in `receive_queue_bytes`.
    Received {
        bytes: usize,
        messages: Vec<(GroupId, Message)>,
    },
    Propose {
        group: GroupId,
        id: ProposalId,
        data: Vec<u8>,
        reply: ProposeReply,
    },
    Read {
        group: GroupId,
        reply: oneshot::Sender<u64>,
    },
    Change {
        group: GroupId,
        id: ProposalId,
        steps: Vec<MemberStep>,
        reply: ProposeReply,
    },
    Stop,
}

/// The first reason why the process must end.
#[derive(Clone)]
pub struct Fatal {
    pub told: Arc<watch::Sender<Option<String>>>,
    pub events: Sender<Event>,
}

impl Fatal {
    pub fn set(&self, why: String) {
        tracing::error!(why, "replication stops");
        self.told.send_modify(|told| {
            told.get_or_insert(why);
        });
        let _ = self.events.send(Event::Stop);
    }
}

/// Reports a snapshot as failed unless told otherwise, also when the transport forgets about it.
struct SnapshotReport {
    group: GroupId,
    to: NodeId,
    ok: bool,
    dir: String,
    disk: Arc<dyn Disk>,
    events: Sender<Event>,
}

impl Drop for SnapshotReport {
    fn drop(&mut self) {
        if let Err(e) = self.disk.remove_dir_all(&self.dir) {
            tracing::warn!(dir = self.dir, error = %e, "files of a snapshot stay behind until the next start");
        }
        let input = Input::SnapshotSent {
            to: self.to,
            ok: self.ok,
        };
        let _ = self.events.send(Event::Inputs(vec![(self.group, input)]));
    }
}

pub struct RaftThread {
    pub drivers: BTreeMap<GroupId, Driver>,
    pub shared: BTreeMap<GroupId, Arc<GroupShared>>,
    pub events: Receiver<Event>,
    pub sender: Sender<Event>,
    pub log: Sender<LogJob>,
    pub workers: Vec<Sender<Job>>,
    pub transport: Arc<dyn Transport>,
    pub disk: Arc<dyn Disk>,
    pub clock: Arc<dyn Clock>,
    pub tick: SpanNs,
    pub snapshot_dir: String,
    pub apply_backlog_bytes_max: usize,
    pub receive_queue_bytes: Arc<AtomicUsize>,
    pub proposal_queue_bytes: Arc<AtomicUsize>,
    /// Entries that wait for the log thread.
    pub log_queue_bytes: Arc<AtomicUsize>,
    pub proposals: BTreeMap<ProposalId, ProposeReply>,
    pub reads: BTreeMap<u64, oneshot::Sender<u64>>,
    pub read_seq: u64,
    pub exports: u64,
    pub beats: Beats,
    /// What was last published of each group, and at which tick.
    pub published: BTreeMap<GroupId, (Pulse, u64)>,
    pub ticks: u64,
}

/// Heartbeats and their answers that wait for company: a batch to their node, or the tick at which all go. They carry no
/// read's question and promise nothing, so they may be late by less than the pause between two heartbeats; a batch costs
/// the same with one of them or with those of all groups.
#[derive(Default)]
pub struct Beats(BTreeMap<u64, Vec<(GroupId, Message)>>);

impl Beats {
    fn is_one(message: &Message) -> bool {
        let is_beat = matches!(
            message.get_msg_type(),
            MessageType::MsgHeartbeat | MessageType::MsgHeartbeatResponse
        );
        is_beat && message.context.is_empty()
    }

    /// Keeps beats back; the rest goes, with what waits for the same nodes.
    fn sort(&mut self, messages: Vec<(GroupId, Message)>) -> Vec<(GroupId, Message)> {
        let (beats, mut go): (Vec<_>, Vec<_>) = messages.into_iter().partition(|(_, m)| Self::is_one(m));
        for (group, beat) in beats {
            self.0.entry(beat.to).or_default().push((group, beat));
        }
        let receivers: BTreeSet<u64> = go.iter().map(|(_, m)| m.to).collect();
        go.extend(receivers.into_iter().filter_map(|to| self.0.remove(&to)).flatten());
        go
    }

    fn all(&mut self) -> Vec<(GroupId, Message)> {
        std::mem::take(&mut self.0).into_values().flatten().collect()
    }
}

/// Events taken before the clock is looked at again.
const EVENTS_PER_LOOP_MAX: usize = 4096;
/// After a pause of the process not every missed tick is made up for: peers may have been heard of meanwhile.
const TICKS_PER_LOOP_MAX: u64 = 2;
const FORGET_EVERY_TICKS: u64 = 20;
/// A group in which nothing happens tells how it stands every so many ticks.
const PUBLISH_EVERY_TICKS: u64 = 8;
/// All heartbeats that wait go at every second tick.
const BEAT_EVERY_TICKS: u64 = 2;

impl RaftThread {
    pub fn run(mut self) {
        let groups: BTreeSet<_> = self.drivers.keys().copied().collect();
        self.settle(&groups);
        let mut next_tick = self.clock.monotonic().0 + self.tick.0;
        loop {
            let wait = next_tick.saturating_sub(self.clock.monotonic().0);
            let mut touched = BTreeSet::new();
            match self.events.recv_timeout(Duration::from_nanos(wait)) {
                Ok(event) => {
                    let mut event = Some(event);
                    let mut taken = 0;
                    while let Some(e) = event.take() {
                        if !self.take(e, &mut touched) {
                            return self.stop();
                        }
                        taken += 1;
                        if taken < EVENTS_PER_LOOP_MAX {
                            event = self.events.try_recv().ok();
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.stop(),
            }
            let (now, ticks_before) = (self.clock.monotonic().0, self.ticks);
            let due = now.saturating_sub(next_tick) / self.tick.0 + u64::from(now >= next_tick);
            if due > 0 {
                let ticks = due.min(TICKS_PER_LOOP_MAX);
                for _ in 0..ticks {
                    self.drivers.values_mut().for_each(|d| d.step(Input::Tick));
                }
                next_tick += due * self.tick.0;
                self.ticks += ticks;
                touched.extend(self.drivers.keys().copied());
                if self.ticks / FORGET_EVERY_TICKS != ticks_before / FORGET_EVERY_TICKS {
                    self.forget_abandoned();
                }
            }
            self.settle(&touched);
            if self.ticks / BEAT_EVERY_TICKS != ticks_before / BEAT_EVERY_TICKS {
                send_messages(self.transport.as_ref(), self.beats.all());
            }
        }
    }

    fn stop(self) {
        for shared in self.shared.values() {
            // What comes now is not applied here.
            shared.is_alone.store(false, Ordering::Release);
        }
        let _ = self.log.send(LogJob::Stop);
        for worker in &self.workers {
            let _ = worker.send(Job::Stop);
        }
    }

    fn forget_abandoned(&mut self) {
        self.proposals.retain(|_, reply| !reply.is_closed());
        self.reads.retain(|_, reply| !reply.is_closed());
    }

    /// False: the end.
    fn take(&mut self, event: Event, touched: &mut BTreeSet<GroupId>) -> bool {
        match event {
            Event::Inputs(inputs) => {
                for (group, input) in inputs {
                    self.step(group, input, touched);
                }
            }
            Event::Received { bytes, messages } => {
                self.receive_queue_bytes.fetch_sub(bytes, Ordering::Relaxed);
                for (group, message) in messages {
                    let overloaded = self.overloaded(group) && message.get_msg_type() == MessageType::MsgAppend;
                    // An append that cannot be applied in time only takes memory; the leader sends it again.
                    if !overloaded || message.get_entries().is_empty() {
                        self.step(group, Input::Message(message), touched);
                    }
                }
            }
            Event::Propose { group, id, data, reply } => {
                self.proposal_queue_bytes.fetch_sub(data.len(), Ordering::Relaxed);
                if reply.is_closed() {
                    return true;
                }
                if self.overloaded(group) {
                    let _ = reply.send(Err(ProposeError::Full));
                    return true;
                }
                self.proposals.insert(id, reply);
                self.step(group, Input::Propose { id, data }, touched);
            }
            Event::Read { group, reply } => {
                self.read_seq += 1;
                let id = self.read_seq;
                self.reads.insert(id, reply);
                self.step(group, Input::Read { id }, touched);
            }
            Event::Change {
                group,
                id,
                steps,
                reply,
            } => {
                self.proposals.insert(id, reply);
                self.step(group, Input::Change { id, steps }, touched);
            }
            Event::Stop => return false,
        }
        true
    }

    fn overloaded(&self, group: GroupId) -> bool {
        let backlog = self.shared.get(&group).map(|s| s.backlog_bytes.load(Ordering::Relaxed));
        backlog.is_some_and(|bytes| bytes > self.apply_backlog_bytes_max)
    }

    fn step(&mut self, group: GroupId, input: Input, touched: &mut BTreeSet<GroupId>) {
        if let Some(driver) = self.drivers.get_mut(&group) {
            driver.step(input);
            touched.insert(group);
        }
    }

    /// Carries out what the touched groups want: messages first, so that peers work while this disk does.
    fn settle(&mut self, touched: &BTreeSet<GroupId>) {
        let mut messages = Vec::new();
        let mut round = Vec::new();
        for &group in touched {
            let Some(driver) = self.drivers.get_mut(&group) else {
                continue;
            };
            let outputs = driver.ready();
            let is_quiet = outputs.iter().all(|o| matches!(o, Output::Send(_)));
            for output in outputs {
                match output {
                    Output::Send(message) => messages.push((group, message)),
                    Output::Write(task) => round.push((group, task)),
                    other => self.carry_out(group, other),
                }
            }
            if !is_quiet || self.has_news(group) {
                self.publish(group);
            }
        }
        send_messages(self.transport.as_ref(), self.beats.sort(messages));
        if !round.is_empty() {
            self.log_queue_bytes.fetch_add(bytes_of(&round), Ordering::Relaxed);
            let _ = self.log.send(LogJob::Round(round));
        }
    }

    fn carry_out(&mut self, group: GroupId, output: Output) {
        match output {
            Output::Apply(entries) => {
                let bytes = entries.iter().map(|e| e.data.len()).sum();
                self.shared[&group].backlog_bytes.fetch_add(bytes, Ordering::Relaxed);
                self.work(group, Job::Apply(group, entries));
            }
            Output::Install { index, dir } => self.work(group, Job::Install { group, index, dir }),
            Output::Export { to } => {
                self.exports += 1;
                let dir = format!("{}/out-{group}-{to}-{}", self.snapshot_dir, self.exports);
                self.work(group, Job::Export { group, to, dir });
            }
            Output::Discard { dir } => self.work(group, Job::Discard { dir }),
            Output::Forget => self.work(group, Job::Forget(group)),
            Output::SendSnapshot { to, message, dir } => self.send_snapshot(group, to, message, dir),
            Output::Answer { id, outcome } => {
                if let Some(reply) = self.proposals.remove(&id) {
                    let _ = reply.send(match outcome {
                        Outcome::Applied { index, reply } => Ok((index, reply)),
                        Outcome::Refused(Refused::Full) => Err(ProposeError::Full),
                        Outcome::Refused(Refused::ChangePending) => Err(ProposeError::ChangePending),
                        Outcome::Refused(Refused::Misfit(why)) => Err(ProposeError::Misfit(why)),
                        Outcome::Refused(Refused::NotLeader(leader)) | Outcome::Lost(leader) => {
                            Err(ProposeError::NotLeader { leader })
                        }
                        Outcome::Unknown => Err(ProposeError::Unconfirmed),
                    });
                }
            }
            Output::ReadReady { id, index } => {
                if let Some(reply) = self.reads.remove(&id) {
                    let _ = reply.send(index);
                }
            }
            Output::Send(_) | Output::Write(_) => unreachable!("collected by the caller"),
        }
    }

    fn work(&self, group: GroupId, job: Job) {
        let worker = (group.0 % self.workers.len() as u64) as usize;
        let _ = self.workers[worker].send(job);
    }

    fn send_snapshot(&self, group: GroupId, to: NodeId, message: Message, dir: String) {
        let mut report = SnapshotReport {
            group,
            to,
            ok: false,
            dir: dir.clone(),
            disk: self.disk.clone(),
            events: self.sender.clone(),
        };
        let head = wire::pack(group, message).head;
        let done = Box::new(move |ok| {
            report.ok = ok;
            drop(report);
        });
        self.transport.send_snapshot(to, group, head, dir, done);
    }

    /// Whether somebody may wait for what changed, or it is time to tell again.
    fn has_news(&self, group: GroupId) -> bool {
        let pulse = self.drivers[&group].pulse();
        let told = self.published.get(&group);
        told.is_none_or(|(before, at)| *before != pulse || self.ticks - at >= PUBLISH_EVERY_TICKS)
    }

    fn publish(&mut self, group: GroupId) {
        let pulse = self.drivers[&group].pulse();
        let is_alone = pulse.is_alone;
        self.published.insert(group, (pulse, self.ticks));
        let status = self.drivers[&group].status();
        let shared = &self.shared[&group];
        let is_whole = status.quarantined.is_none() && !status.is_rebuilding;
        let me = self.drivers[&group].node_id();
        // Before it is told who leads: who waits for that asks for this next.
        shared
            .counts
            .store(is_whole && status.voters.contains(&me), Ordering::Release);
        let leadership = Leadership {
            role: status.role,
            leader: status.leader,
            term: status.term,
        };
        shared.leadership.send_if_modified(|old| {
            let changed = *old != leadership;
            *old = leadership;
            changed
        });
        let mut published = shared.status.lock();
        if let (None, Some(why)) = (&published.quarantined, &status.quarantined) {
            tracing::error!(%group, why, "this node lost confirmed entries");
        }
        *published = status;
        // After the index that a reader is told. Before anything is sent: whom this node votes for is not leading yet.
        shared.is_alone.store(is_alone, Ordering::Release);
    }
}

/// Groups messages by receiver; a batch is bounded by bytes, never by number alone.
pub fn send_messages(transport: &dyn Transport, messages: Vec<(GroupId, Message)>) {
    const BATCH_BYTES_MAX: usize = 1 << 20;
    let mut by_node: BTreeMap<u64, (usize, Vec<WireMessage>)> = BTreeMap::new();
    for (group, message) in messages {
        let to = message.to;
        let packed = wire::pack(group, message);
        let (bytes, batch) = by_node.entry(to).or_default();
        *bytes += packed.bytes();
        batch.push(packed);
        if *bytes >= BATCH_BYTES_MAX {
            *bytes = 0;
            transport.send(NodeId(to), std::mem::take(batch));
        }
    }
    for (to, (_, batch)) in by_node {
        if !batch.is_empty() {
            transport.send(NodeId(to), batch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: MessageType, to: u64, context: &'static [u8]) -> (GroupId, Message) {
        let mut message = Message {
            to,
            context: Bytes::from_static(context),
            ..Message::default()
        };
        message.set_msg_type(kind);
        (GroupId(to), message)
    }

    #[test]
    fn heartbeats_wait_for_company_unless_a_read_asks_by_them() {
        use MessageType::{MsgAppend, MsgHeartbeat, MsgHeartbeatResponse};
        let mut beats = Beats::default();
        let kinds = |messages: &[(GroupId, Message)]| {
            let kind = |(_, m): &(GroupId, Message)| (m.to, m.get_msg_type());
            messages.iter().map(kind).collect::<Vec<_>>()
        };
        let idle = vec![message(MsgHeartbeat, 2, b""), message(MsgHeartbeatResponse, 3, b"")];
        assert!(beats.sort(idle).is_empty());
        let went = beats.sort(vec![message(MsgHeartbeat, 3, b"read 7"), message(MsgHeartbeat, 2, b"")]);
        assert_eq!(kinds(&went), [(3, MsgHeartbeat), (3, MsgHeartbeatResponse)]);
        let went = beats.sort(vec![message(MsgAppend, 2, b"")]);
        assert_eq!(kinds(&went), [(2, MsgAppend), (2, MsgHeartbeat), (2, MsgHeartbeat)]);
        assert!(beats.all().is_empty());
        beats.sort(vec![message(MsgHeartbeat, 2, b"")]);
        assert_eq!(kinds(&beats.all()), [(2, MsgHeartbeat)], "at the tick at which all go");
    }
}

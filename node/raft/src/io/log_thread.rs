//! The log thread: takes all waiting tasks of all groups, writes them, syncs once, then lets their messages go.

use super::host::Transport;
use super::raft_thread::{Event, Fatal, send_messages};
use super::times::Times;
use crate::driver::{Input, WriteTask};
use crate::log::{LogError, LogStore, LogWrite};
use hindcast_env::Clock;
use hindcast_model::{GroupId, SpanNs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender};

pub enum LogJob {
    Round(Vec<(GroupId, WriteTask)>),
    Stop,
}

/// More than this in one round would hold back the first writers for too long.
const ROUND_BYTES_MAX: usize = 32 << 20;

pub struct LogThread {
    pub store: LogStore,
    pub jobs: Receiver<LogJob>,
    pub events: Sender<Event>,
    pub transport: Arc<dyn Transport>,
    pub fatal: Fatal,
    pub clock: Arc<dyn Clock>,
    pub syncs: Arc<Times>,
    /// Bytes of entries in rounds that wait; the sender adds.
    pub queued_bytes: Arc<AtomicUsize>,
}

impl LogThread {
    pub fn run(mut self) {
        loop {
            let Ok(LogJob::Round(mut tasks)) = self.jobs.recv() else {
                return;
            };
            let mut stop = false;
            let mut bytes = bytes_of(&tasks);
            while bytes < ROUND_BYTES_MAX {
                match self.jobs.try_recv() {
                    Ok(LogJob::Round(more)) => {
                        bytes += bytes_of(&more);
                        tasks.extend(more);
                    }
                    Ok(LogJob::Stop) => {
                        stop = true;
                        break;
                    }
                    Err(_) => break,
                }
            }
            let done = self.round(tasks);
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            if let Err(e) = done {
                // After a failed sync nobody can say what is on the disk: never try again, never go on.
                return self.fatal.set(format!("the Raft log cannot be written: {e}"));
            }
            if stop {
                return;
            }
        }
    }

    fn round(&mut self, tasks: Vec<(GroupId, WriteTask)>) -> Result<(), LogError> {
        let mut sync = false;
        let mut messages = Vec::new();
        let mut done = Vec::new();
        let mut freed = false;
        for (group, task) in tasks {
            sync |= task.sync;
            for write in task.writes {
                freed |= matches!(write, LogWrite::Truncate(_) | LogWrite::Reset(_));
                self.store.write(group, write)?;
            }
            messages.extend(task.messages.into_iter().map(|m| (group, m)));
            if let Some(number) = task.number {
                done.push((group, Input::Persisted { number }));
            }
            if task.announces {
                done.push((group, Input::Announced));
            }
        }
        let began = self.clock.monotonic();
        self.store.commit(sync)?;
        if sync {
            self.syncs.add(SpanNs(self.clock.monotonic().0.saturating_sub(began.0)));
        }
        send_messages(self.transport.as_ref(), messages);
        // The raft thread may be gone already; then nobody waits.
        let _ = self.events.send(Event::Inputs(done));
        if freed {
            self.store.reclaim()?;
        }
        Ok(())
    }
}

pub fn bytes_of(tasks: &[(GroupId, WriteTask)]) -> usize {
    let writes = tasks.iter().flat_map(|(_, task)| &task.writes);
    let entries = writes.map(|write| match write {
        LogWrite::Entries { entries, .. } => entries.iter().map(|e| e.data.len()).sum(),
        _ => 0,
    });
    entries.sum()
}

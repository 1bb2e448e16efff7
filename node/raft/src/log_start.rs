//! Opens a node's Raft log, and finds out whether what the node voted and confirmed is still in it.
//!
//! Pure over `Disk`: the node and the simulator start the same way.
//!
//! Invariants
//! - A log that was taken away, or is damaged before its end, counts as lost as a whole. Until a copy is rebuilt, it does not
//!   look like one that never began, whatever ends the process on the way.
//! - A damaged log is kept in `log.damaged` for a person.
//! - A node on its own does not start from a damaged log: there is nobody to rebuild it from.

use crate::log::{LogConfig, LogError, LogStore};
use hindcast_env::disk::write_new_file;
use hindcast_env::reached::{Mark, reached};
use hindcast_env::{Disk, DiskError};
use hindcast_model::GroupId;
use std::sync::Arc;

/// While this file is there, what is left of the log belongs aside: a part of it would look like a whole one.
const LOG_GOES_ASIDE: &str = "log-goes-aside";

pub struct OpenedLog {
    pub store: LogStore,
    dir: String,
    is_lost: bool,
}

impl OpenedLog {
    /// Opens or creates `{dir}/log`. `has_others`: there are nodes that a copy can be rebuilt from.
    pub fn open(disk: &Arc<dyn Disk>, dir: &str, config: &LogConfig, has_others: bool) -> Result<Self, LogError> {
        let (log, begun, lost) = (format!("{dir}/log"), format!("{dir}/begun"), format!("{dir}/lost"));
        if disk.exists(&format!("{dir}/{LOG_GOES_ASIDE}")) {
            set_aside(disk.as_ref(), dir)?;
        }
        let has_begun = disk.exists(&begun);
        if has_begun && !LogStore::has_segments(disk.as_ref(), &log)? && !disk.exists(&lost) {
            // Before a new log is there: until a copy is rebuilt, it must not look like one that never began.
            write_new_file(disk.as_ref(), &lost, b"the Raft log was taken away\n")?;
        }
        let mut opened = LogStore::open(disk.clone(), &log, config.clone());
        if let Err(e @ (LogError::Damaged { .. } | LogError::Gap { .. })) = &opened
            && has_others
        {
            reached(Mark::LogSetAside);
            tracing::error!(error = %e, "the log is moved aside; its groups begin again from snapshots of the others");
            set_aside(disk.as_ref(), dir)?;
            opened = LogStore::open(disk.clone(), &log, config.clone());
        }
        let store = opened?;
        let is_lost = disk.exists(&lost);
        if !has_begun {
            // From here on there is always a segment: a log without any is one that was taken away, with its votes.
            write_new_file(disk.as_ref(), &begun, b"the Raft log was begun\n")?;
        }
        Ok(Self {
            store,
            dir: dir.to_owned(),
            is_lost,
        })
    }

    /// Why what this copy voted and confirmed counts as lost, if it does: its driver is to be told (`Input::Lost`).
    pub fn loss_of(&self, group: GroupId) -> Option<String> {
        // One that was rebuilt has a hard state again.
        let is_lost = self.is_lost && !self.store.recovered(group).has_hard;
        is_lost.then(|| {
            let dir = &self.dir;
            format!("the Raft log that {dir}/log held is gone, and with it what this node voted and confirmed")
        })
    }
}

/// A log that is damaged before its end is of no use here, but perhaps to a person: it goes to `log.damaged`, and what this
/// node voted and confirmed counts as lost.
fn set_aside(disk: &dyn Disk, dir: &str) -> Result<(), DiskError> {
    let (log, aside) = (format!("{dir}/log"), format!("{dir}/log.damaged"));
    let (goes, lost) = (format!("{dir}/{LOG_GOES_ASIDE}"), format!("{dir}/lost"));
    if !disk.exists(&goes) {
        disk.remove_dir_all(&aside)?;
        write_new_file(disk, &goes, b"the Raft log is damaged\n")?;
    }
    if !disk.exists(&lost) {
        write_new_file(disk, &lost, b"the Raft log was damaged\n")?;
    }
    disk.create_dir_all(&aside)?;
    for name in disk.list(&log)? {
        disk.rename(&format!("{log}/{name}"), &format!("{aside}/{name}"))?;
    }
    disk.sync_dir(&aside)?;
    disk.sync_dir(&log)?;
    disk.remove(&goes)?;
    disk.sync_dir(dir)
}

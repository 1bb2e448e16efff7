//! Snapshots on their way between nodes: how fast, how far, and what a broken one leaves for the next try.
//!
//! A snapshot is a list of files with their hashes. Files that arrived whole before a stream broke are kept, one try's
//! worth per group, and are not sent again to the next try that names the same content.

use crate::pace::{Owed, Pace};
use bytes::Bytes;
use hindcast_env::{Clock, Disk, DiskError};
use hindcast_model::{GroupId, NodeId};
use hindcast_proto::v1;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// All snapshots that this node sends, together: they must not starve what is written meanwhile. Each leader of a group that a new
/// node joins sends at this pace.
const PACE: Pace = Pace {
    bytes_per_second: 32 << 20,
    burst_bytes: 2 << 20,
};

/// How far a snapshot for another node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub bytes_sent: u64,
    pub bytes: u64,
}

#[derive(Default)]
pub struct Courier {
    owed: Mutex<Owed>,
    sending: Mutex<BTreeMap<(GroupId, NodeId), Progress>>,
    kept: Mutex<BTreeMap<GroupId, Kept>>,
}

/// Whole files of a try that broke: hash → path.
struct Kept {
    dir: String,
    files: BTreeMap<Bytes, String>,
}

impl Courier {
    /// Notes what is about to be sent and for how long to wait before.
    pub fn send(&self, to: (GroupId, NodeId), bytes: u64, clock: &dyn Clock) -> Duration {
        if let Some(progress) = self.sending.lock().get_mut(&to) {
            progress.bytes_sent += bytes;
        }
        let mut owed = self.owed.lock();
        let (next, wait) = PACE.take(*owed, bytes, clock.monotonic());
        *owed = next;
        wait.as_duration()
    }

    pub fn begin(&self, to: (GroupId, NodeId), bytes: u64) {
        self.sending.lock().insert(to, Progress { bytes_sent: 0, bytes });
    }

    pub fn end(&self, to: (GroupId, NodeId)) {
        self.sending.lock().remove(&to);
    }

    /// How far the snapshot of a group for a node is, if one is on its way.
    pub fn progress(&self, group: GroupId, to: NodeId) -> Option<Progress> {
        self.sending.lock().get(&(group, to)).copied()
    }

    /// Names of the files that need not be sent.
    pub fn have(&self, group: GroupId, files: &[v1::SnapshotFile]) -> Vec<String> {
        let kept = self.kept.lock();
        let Some(kept) = kept.get(&group) else { return vec![] };
        let have = files.iter().filter(|f| kept.files.contains_key(&f.hash));
        have.map(|f| f.name.clone()).collect()
    }

    /// Brings kept files of this content into `dir`; the names of those that are there now.
    pub fn reuse(
        &self,
        disk: &dyn Disk,
        group: GroupId,
        files: &[v1::SnapshotFile],
        dir: &str,
    ) -> Result<BTreeSet<String>, DiskError> {
        let mut there = BTreeSet::new();
        let Some(mut kept) = self.kept.lock().remove(&group) else {
            return Ok(there);
        };
        for f in files {
            if let Some(path) = kept.files.remove(&f.hash) {
                disk.rename(&path, &format!("{dir}/{}", f.name))?;
                there.insert(f.name.clone());
            }
        }
        disk.remove_dir_all(&kept.dir)?;
        Ok(there)
    }

    /// A try broke: `whole` are the names of files in `dir` that arrived and were verified.
    pub fn keep(
        &self,
        disk: &dyn Disk,
        group: GroupId,
        files: &[v1::SnapshotFile],
        dir: String,
        whole: &BTreeSet<String>,
    ) {
        let whole = files.iter().filter(|f| whole.contains(&f.name));
        let files = whole.map(|f| (f.hash.clone(), format!("{dir}/{}", f.name))).collect();
        let older = self.kept.lock().insert(group, Kept { dir, files });
        if let Some(older) = older
            && let Err(error) = disk.remove_dir_all(&older.dir)
        {
            tracing::warn!(dir = older.dir, %error, "files of a broken snapshot stay behind until the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_env::disk::write_new_file;
    use hindcast_env::{SimClock, SimDisk};
    use hindcast_model::SpanNs;

    fn file(name: &str, content: &str) -> v1::SnapshotFile {
        v1::SnapshotFile {
            name: name.to_owned(),
            bytes: content.len() as u64,
            hash: Bytes::copy_from_slice(blake3::hash(content.as_bytes()).as_bytes()),
        }
    }

    #[test]
    fn whole_files_of_a_broken_snapshot_are_not_sent_again_under_whatever_name() {
        let (disk, courier) = (SimDisk::new(), Courier::default());
        let files = [file("a", "one"), file("b", "two")];
        write_new_file(&disk, "incoming/1-1/a", b"one").unwrap();
        write_new_file(&disk, "incoming/1-1/b", b"tw").unwrap();
        let whole = BTreeSet::from(["a".to_owned()]);
        courier.keep(&disk, GroupId(1), &files, "incoming/1-1".to_owned(), &whole);
        let again = [file("c", "two"), file("d", "one")];
        assert_eq!(courier.have(GroupId(1), &again), ["d"]);
        assert!(
            courier.have(GroupId(2), &again).is_empty(),
            "another group's files are another's"
        );
        disk.create_dir_all("incoming/1-2").unwrap();
        let there = courier.reuse(&disk, GroupId(1), &again, "incoming/1-2").unwrap();
        assert_eq!(there, BTreeSet::from(["d".to_owned()]));
        assert_eq!(disk.read("incoming/1-2/d").unwrap(), "one");
        assert!(disk.list("incoming/1-1").unwrap().is_empty(), "the rest is gone");
        assert!(courier.have(GroupId(1), &again).is_empty(), "it is used once");
    }

    #[test]
    fn snapshots_share_one_rate_and_tell_how_far_they_are() {
        let clock = SimClock::at(hindcast_model::TimestampNs(0));
        let courier = Courier::default();
        let to = (GroupId(1), NodeId(2));
        courier.begin(to, 100 << 20);
        assert_eq!(courier.send(to, PACE.burst_bytes, &clock), Duration::ZERO, "the burst");
        assert_eq!(
            courier.send(to, PACE.bytes_per_second, &clock),
            SpanNs::from_secs(1).as_duration()
        );
        let progress = courier.progress(GroupId(1), NodeId(2)).unwrap();
        assert_eq!(
            (progress.bytes_sent, progress.bytes),
            (PACE.burst_bytes + PACE.bytes_per_second, 100 << 20)
        );
        courier.end(to);
        assert_eq!(courier.progress(GroupId(1), NodeId(2)), None);
    }
}

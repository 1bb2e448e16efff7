//! When a segment goes to the cold store, in which steps, and when what is there may be deleted.
//!
//! `Shard::begin_cold` chooses the next piece of work (cheap); `ColdJob::run` does it on a thread that may wait for the
//! network, without the shard; `Shard::finish_cold` makes it so (cheap: one manifest). A file goes whole: put and read
//! back, its table written here, then named as cold by a manifest. Its local bytes go with the usual sweep, once
//! neither of the last two manifests needs them. Cold files take no part in merges, but are written anew, here, when
//! most of their rows were let go.
//!
//! Invariants
//! - An object that the manifest in force, the one before, or one that may be in force after a crash names is never
//!   deleted; nor one that a reader still has open.
//! - A name holds the hash of its file's bytes: one name never means two files.
//! - Answers are the same before and after. What cannot be read since the store is away is an error, never left out.
//!
//! One job of a shard at a time; a job holds the bytes of a table, and what the store holds for a put.

use crate::container::{self, Container};
use crate::error::{Damage, ReadError, StorageError};
use crate::manifest::Manifest;
use crate::retention::Policy;
use crate::rollup::Sources;
use crate::segment::{Segment, SegmentRef, Tier};
use hindcast_env::cold::{ColdError, check_name};
use hindcast_env::disk::replace_file;
use hindcast_env::{ColdTier, Disk, DiskError};
use hindcast_model::{Domain, SpanNs, TenantId, TimestampNs};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Weak};

/// Objects that one job deletes.
const DELETES_MAX: usize = 64;
/// Bytes of a file's hash in its object's name.
const NAME_HASH_BYTES: usize = 8;
/// What is read at once of a file that comes back.
const COPY_BYTES: u64 = 4 << 20;

/// From which age on files of a tenant and domain are cold. The most specific rule decides: tenant before domain; of
/// equals the later one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColdRule {
    /// `None`: every tenant.
    pub tenant: Option<TenantId>,
    /// `None`: every domain, and what belongs to none.
    pub domain: Option<Domain>,
    /// `None`: never.
    pub after: Option<SpanNs>,
}

/// The cold store as one shard uses it.
#[derive(Clone, Debug)]
pub struct Cold {
    pub tier: ColdTier,
    /// Where this shard's objects lie, and nobody else's: names cluster, node and group.
    pub folder: String,
    /// None: what is cold is read, and nothing more goes there.
    pub rules: Vec<ColdRule>,
}

impl Cold {
    /// # Panics
    /// When the folder is no name that a store takes.
    pub fn new(tier: ColdTier, folder: String, rules: Vec<ColdRule>) -> Self {
        assert!(check_name(&folder).is_ok(), "{folder:?} is a folder of a cold store");
        Self { tier, folder, rules }
    }

    fn after(&self, tenant: &TenantId, domain: Option<Domain>) -> Option<SpanNs> {
        let fits =
            |r: &&ColdRule| r.tenant.as_ref().is_none_or(|t| t == tenant) && r.domain.is_none_or(|d| Some(d) == domain);
        let rules = self.rules.iter().filter(fits);
        rules.max_by_key(|r| (r.tenant.is_some(), r.domain.is_some()))?.after
    }

    /// Whether all of a file's rows are old enough, and the file as small as it gets.
    fn wants(&self, s: &Segment, now: TimestampNs) -> bool {
        // What is exempt from retention is asked for all the time.
        let may_go = s.cold.is_none() && s.tier == Tier::Compacted && s.head.policy != Policy::Kept;
        may_go
            && !s.is_set_aside()
            && self
                .after(&s.head.tenant, s.head.policy.domain())
                .is_some_and(|after| s.head.span().1 < now - after)
    }

    /// The name of a file's object.
    fn name_of(&self, s: &Segment) -> String {
        let mut name = format!("{}/segment-{:016x}-", self.folder, s.file.number);
        for byte in &s.file.blake3[..NAME_HASH_BYTES] {
            let _ = write!(name, "{byte:02x}");
        }
        name
    }
}

/// What went to the store and came from there, since the shard was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ColdCounts {
    pub puts: u64,
    pub put_bytes: u64,
    pub deletes: u64,
    /// Of jobs.
    pub failures: u64,
}

/// A piece of work for a thread that may wait.
pub struct ColdJob {
    tier: ColdTier,
    disk: Arc<dyn Disk>,
    dir: String,
    work: Work,
}

enum Work {
    Put { segment: Arc<Segment>, name: String },
    Delete(Vec<String>),
    FindOrphans { folder: String, named: BTreeSet<String> },
}

/// What came of a job: for `Shard::finish_cold`.
pub struct ColdDone(Outcome);

enum Outcome {
    Put {
        name: String,
        moved: Result<Box<Segment>, NotMoved>,
    },
    Deleted {
        names: Vec<String>,
        failed: Option<ColdError>,
    },
    Orphans(Result<Vec<String>, ColdError>),
}

/// Why a file did not go.
#[derive(Debug, thiserror::Error)]
enum NotMoved {
    #[error("the file is damaged here: {0}")]
    Damaged(Damage),
    #[error(transparent)]
    Store(#[from] ColdError),
    #[error("its table cannot be kept here: {0}")]
    Table(StorageError),
}

impl From<ReadError> for NotMoved {
    fn from(e: ReadError) -> Self {
        match e.into() {
            StorageError::Damaged(d) => Self::Damaged(d),
            e => Self::Table(e),
        }
    }
}

impl ColdJob {
    /// Waits for the network. Whatever happens, the shard's files and manifests are as they were.
    pub fn run(self) -> ColdDone {
        ColdDone(match &self.work {
            Work::Put { segment, name } => Outcome::Put {
                name: name.clone(),
                moved: self.put(segment, name).map(Box::new),
            },
            Work::Delete(names) => self.delete(names),
            Work::FindOrphans { folder, named } => {
                let found = self.tier.orphans(folder, named);
                Outcome::Orphans(found.map(|all| all.into_iter().map(|e| e.name).collect()))
            }
        })
    }

    fn put(&self, segment: &Segment, name: &str) -> Result<Segment, NotMoved> {
        // The store is compared with what is sent; that this is what was written is for us to know.
        segment.scrub()?;
        let cold = self.tier.put(name, segment.container().whole().as_ref())?;
        let table = segment.container().table_bytes()?;
        let path = container::table_path_of(&self.dir, segment.file.number);
        // An earlier try's may be named by a manifest that a crash would bring in force: never a torn one in its place.
        replace_file(self.disk.as_ref(), &path, &table).map_err(|e| NotMoved::Table(e.into()))?;
        let named = SegmentRef {
            cold: Some(cold),
            ..segment.named()
        };
        Segment::open(self.disk.as_ref(), &self.dir, &named, Some(&self.tier)).map_err(NotMoved::Table)
    }

    fn delete(&self, names: &[String]) -> Outcome {
        let (mut deleted, mut failed) = (vec![], None);
        for name in names {
            match self.tier.delete(name) {
                Ok(()) => deleted.push(name.clone()),
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            }
        }
        Outcome::Deleted { names: deleted, failed }
    }
}

/// What came of a job, told.
#[derive(Debug, Default)]
pub struct ColdReport {
    /// Bytes that went to the store.
    pub moved_bytes: u64,
    pub deleted: usize,
    /// Why it did not work; it is tried again.
    pub failed: Option<String>,
}

/// Which objects are needed, and by whom. Pure.
#[derive(Default)]
pub(crate) struct Ledger {
    /// Named by the manifest in force, by the one before, and by ones whose writing failed, so that nobody knows.
    in_force: BTreeSet<String>,
    before: BTreeSet<String>,
    tried: BTreeSet<String>,
    /// Needed by no manifest any more.
    doomed: BTreeSet<String>,
    /// Readers may have these open.
    open: BTreeMap<String, Weak<Segment>>,
    /// A job is under way; the number of the file whose table it may write.
    busy: Option<Option<u64>>,
    /// Puts of an earlier life whose manifest never came are to be looked for.
    orphans_due: bool,
    /// The store did not answer lately: merges leave cold files alone.
    pub is_away: bool,
    pub counts: ColdCounts,
}

impl Ledger {
    /// Of a new shard.
    pub fn new() -> Self {
        Self {
            orphans_due: true,
            ..Self::default()
        }
    }

    /// After the shard was opened.
    pub fn opened(in_force: &Manifest, before: Option<&Manifest>, segments: &[Arc<Segment>]) -> Self {
        let names = |m: &Manifest| m.cold_names().map(str::to_owned).collect();
        let mut ledger = Self {
            in_force: names(in_force),
            before: before.map(names).unwrap_or_default(),
            ..Self::new()
        };
        segments.iter().for_each(|s| ledger.has_open(s));
        ledger
    }

    pub fn has_open(&mut self, s: &Arc<Segment>) {
        if let Some(cold) = &s.cold {
            self.open.insert(cold.name.clone(), Arc::downgrade(s));
        }
    }

    /// A manifest is about to be written.
    pub fn tries(&mut self, manifest: &Manifest) {
        self.tried.extend(manifest.cold_names().map(str::to_owned));
    }

    /// It is in force.
    pub fn published(&mut self, manifest: &Manifest, keeps_previous: bool) {
        let now = manifest.cold_names().map(str::to_owned).collect();
        let mut last = std::mem::replace(&mut self.in_force, now);
        last.append(&mut self.tried);
        let mut gone = std::mem::take(&mut self.before);
        if keeps_previous {
            self.before = last;
        } else {
            gone.append(&mut last);
        }
        self.doomed.append(&mut gone);
        self.doomed
            .retain(|n| !self.in_force.contains(n) && !self.before.contains(n));
    }

    /// Names of objects that may go now.
    fn deletable(&mut self) -> Vec<String> {
        self.open.retain(|_, segment| segment.strong_count() > 0);
        let is_free = |n: &&String| !self.tried.contains(*n) && !self.open.contains_key(*n);
        let free = self.doomed.iter().filter(is_free);
        free.take(DELETES_MAX).cloned().collect()
    }

    fn named(&self) -> BTreeSet<String> {
        let manifests = self.in_force.iter().chain(&self.before).chain(&self.tried);
        let open = self.open.iter().filter(|(_, s)| s.strong_count() > 0);
        manifests.chain(open.map(|(name, _)| name)).cloned().collect()
    }

    /// Whether a job under way may be writing this file.
    pub fn spares(&self, name: &str) -> bool {
        let Some(Some(number)) = self.busy else { return false };
        name.starts_with(&format!("table-{number:016x}"))
    }

    /// What there is to do. `segments` in any order.
    pub fn begin(
        &mut self,
        cold: &Cold,
        disk: &Arc<dyn Disk>,
        dir: &str,
        segments: &[Arc<Segment>],
        sources: &Sources<'_>,
        now: TimestampNs,
    ) -> Option<ColdJob> {
        if self.busy.is_some() {
            return None;
        }
        let work = self.next(cold, segments, sources, now)?;
        self.busy = Some(match &work {
            Work::Put { segment, .. } => Some(segment.file.number),
            Work::Delete(_) | Work::FindOrphans { .. } => None,
        });
        Some(ColdJob {
            tier: cold.tier.clone(),
            disk: disk.clone(),
            dir: dir.to_owned(),
            work,
        })
    }

    fn next(
        &mut self,
        cold: &Cold,
        segments: &[Arc<Segment>],
        sources: &Sources<'_>,
        now: TimestampNs,
    ) -> Option<Work> {
        // A store that was away is asked for a list before anybody relies on it again.
        if self.orphans_due || self.is_away {
            return Some(Work::FindOrphans {
                folder: cold.folder.clone(),
                named: self.named(),
            });
        }
        let free = self.deletable();
        if !free.is_empty() {
            return Some(Work::Delete(free));
        }
        // What a merge is about to write anew stays for that.
        let stays = |s: &Segment| {
            let share = sources.share(s);
            share.is_some_and(|share| share.wants_rewrite(s.kept_when_rewritten()) || share.wants_rollup())
        };
        let wanting = segments.iter().filter(|s| cold.wants(s, now) && !stays(s));
        let oldest = wanting.min_by_key(|s| (s.head.times, s.file.number))?;
        let name = cold.name_of(oldest);
        self.doomed.remove(&name);
        Some(Work::Put {
            segment: oldest.clone(),
            name,
        })
    }

    /// Notes what came of a job; the file that went, for a manifest that names it.
    pub fn end(&mut self, done: ColdDone, report: &mut ColdReport) -> Result<Option<Segment>, Damage> {
        self.busy = None;
        let mut moved_file = None;
        let failed = match done.0 {
            Outcome::Put { name, moved } => match moved {
                Ok(segment) => {
                    moved_file = Some(*segment);
                    None
                }
                Err(NotMoved::Damaged(damage)) => {
                    self.counts.failures += 1;
                    return Err(damage);
                }
                Err(e) => {
                    // It may be there all the same: deleted, unless the next try puts it again.
                    let words = format!("{name} was not moved: {e}");
                    self.forsake(name);
                    Some(words)
                }
            },
            Outcome::Deleted { names, failed } => {
                self.counts.deletes += names.len() as u64;
                report.deleted = names.len();
                self.doomed.retain(|n| !names.contains(n));
                failed.map(|e| format!("files that nobody needs were not deleted: {e}"))
            }
            Outcome::Orphans(Ok(found)) => {
                self.orphans_due = false;
                found.into_iter().for_each(|name| self.forsake(name));
                None
            }
            Outcome::Orphans(Err(e)) => Some(format!("files that nobody needs were not looked for: {e}")),
        };
        match &failed {
            None => self.is_away = false,
            Some(_) => self.counts.failures += 1,
        }
        report.failed = failed;
        Ok(moved_file)
    }

    /// The thread of a job ended without an answer.
    pub fn abandon(&mut self) {
        self.busy = None;
        // It may have put what nobody names.
        self.orphans_due = true;
        self.counts.failures += 1;
    }

    /// A file went whose like is not here any more.
    pub fn forsake_moved(&mut self, moved: &Segment) {
        if let Some(cold) = &moved.cold {
            self.open.remove(&cold.name);
            self.forsake(cold.name.clone());
        }
    }

    /// An object that no manifest came to name.
    pub fn forsake(&mut self, name: String) {
        if !self.named().contains(&name) {
            self.doomed.insert(name);
        }
    }
}

/// Writes a cold file here again, synced, its name not yet; for a snapshot.
pub(crate) fn bring_down(disk: &dyn Disk, from: &Container, to: &str) -> Result<(), StorageError> {
    let mut file = disk.create(to)?;
    let mut at = 0;
    while at < from.file.bytes {
        let len = COPY_BYTES.min(from.file.bytes - at);
        file.write_at(at, &from.whole().read_at(at, len as usize)?)?;
        at += len;
    }
    file.sync()?;
    drop(file);
    // What came over a network is compared before anybody relies on it.
    Ok(container::scrub_path(disk, to, &from.file)?)
}

/// Whether files of the manifest before went to the cold store with this one: they are here until the next one.
pub(crate) fn has_moved(now: &Manifest, before: &Manifest) -> bool {
    let here = before.segments.iter().filter(|s| s.cold.is_none());
    let here: BTreeSet<u64> = here.map(|s| s.file.number).collect();
    let mut cold = now.segments.iter().filter(|s| s.cold.is_some());
    cold.any(|s| here.contains(&s.file.number))
}

/// Whether an operation of a shard failed because the cold store did.
pub(crate) fn is_of_store(e: &StorageError) -> bool {
    matches!(e, StorageError::Disk(e) if hindcast_env::cold::is_cold(e))
}

/// A snapshot that names files of another node's folder cannot be used.
pub(crate) fn check_snapshot(dir: &str, manifest: &Manifest) -> Result<(), StorageError> {
    let Some(name) = manifest.cold_names().next() else {
        return Ok(());
    };
    let why = format!("{name} is in another node's part of a cold store; a snapshot brings its files along");
    Err(DiskError::new("install", dir, std::io::Error::other(why)).into())
}

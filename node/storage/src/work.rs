//! Flushes and merges as pieces of work: begun by the shard's owner, done anywhere, ended by the owner.
//!
//! A piece of work has a view of the shard as it was when it began: heads and files that change no more, a clone of
//! the rules and of the catalog. It writes files that nothing names yet. Only its end, at the owner, puts them in force.
//!
//! Invariants
//! - Work changes nothing but new files under numbers of its own; what it wrote in vain is removed.
//! - What its view lacks (later entries) only adds to what it leaves alone: floors rise, and a cut comes after all files.

use crate::compaction::{self, Effort, LetGo, Merge};
use crate::container::{self, FileKind, FileRef};
use crate::error::{Damage, StorageError};
use crate::head::Head;
use crate::index::{Catalog, Series};
use crate::manifest::{self, Side};
use crate::retention::{Policy, Retention};
use crate::rollup::{Rollup, Sources};
use crate::segment::Segment;
use crate::shard::{CompactReport, FlushReport, ShardConfig, write_lines, write_metrics};
use hindcast_env::{Disk, DiskError};
use hindcast_model::TenantId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers of new files, and those that were taken for one piece of work.
#[derive(Debug)]
pub struct Numbers {
    next: Arc<AtomicU64>,
    taken: Vec<u64>,
}

impl Numbers {
    pub fn new(next: &Arc<AtomicU64>) -> Self {
        Self {
            next: next.clone(),
            taken: vec![],
        }
    }

    pub fn take(&mut self) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.taken.push(number);
        number
    }

    /// Removes the files of these numbers: a full disk must not fill further with every try.
    pub fn discard(&self, disk: &dyn Disk, dir: &str) {
        for &n in &self.taken {
            let sides = [Side::Aux, Side::Series, Side::Newest].map(|s| format!("{dir}/{}", s.name(n)));
            for path in sides.into_iter().chain([container::path_of(dir, n)]) {
                // What stays is an orphan, and goes when the next manifest is there.
                let _ = disk.remove(&path);
            }
        }
    }
}

/// The files beside the segments, and how much of the directory they hold.
#[derive(Clone, Default)]
pub struct Sides {
    pub series: Vec<FileRef>,
    pub next_id: u32,
    pub epoch: u64,
    pub newest: Option<FileRef>,
    pub aux: Option<FileRef>,
}

/// What the files beside the segments shall hold: of one moment, not written yet.
pub struct SideBytes {
    /// Files of earlier definitions that stay.
    pub kept: Vec<FileRef>,
    pub next_id: u32,
    pub epoch: u64,
    /// Empty: nothing to write, as with the others.
    pub series: Vec<u8>,
    pub newest: Vec<u8>,
    pub aux: Vec<u8>,
}

impl SideBytes {
    pub fn write(&self, disk: &dyn Disk, dir: &str, numbers: &mut Numbers) -> Result<Sides, DiskError> {
        let mut put = |side, bytes: &[u8]| manifest::write_side(disk, dir, side, numbers.take(), bytes);
        let mut series = self.kept.clone();
        series.extend(put(Side::Series, &self.series)?);
        Ok(Sides {
            series,
            next_id: self.next_id,
            epoch: self.epoch,
            newest: put(Side::Newest, &self.newest)?,
            aux: put(Side::Aux, &self.aux)?,
        })
    }
}

/// What a piece of work knows of its shard.
pub struct Seen {
    pub disk: Arc<dyn Disk>,
    pub dir: String,
    pub config: ShardConfig,
    pub retention: Retention,
    pub catalog: Catalog,
    pub numbers: Numbers,
    /// How often the shard was replaced as a whole before: what was begun in an earlier life is of no use.
    pub life: u64,
}

impl Seen {
    fn sync_dir(&self) -> Result<(), DiskError> {
        self.disk.sync_dir(&self.dir)
    }

    fn discard(&self) {
        self.numbers.discard(self.disk.as_ref(), &self.dir);
    }
}

/// Sealed heads on their way into segments.
#[must_use = "the shard waits for its end"]
pub struct FlushWork {
    pub(crate) seen: Seen,
    pub(crate) heads: Vec<Arc<Head>>,
    pub(crate) applied: u64,
    pub(crate) sides: SideBytes,
    pub(crate) newest: Vec<i64>,
}

/// For [`Shard::end_flush`](crate::Shard::end_flush).
#[must_use = "the shard waits for it"]
pub struct FlushDone {
    pub(crate) seen: Seen,
    pub(crate) heads: usize,
    pub(crate) newest: Vec<i64>,
    pub(crate) report: FlushReport,
    pub(crate) written: Result<(Vec<Segment>, Sides), StorageError>,
}

impl FlushWork {
    pub fn run(mut self) -> FlushDone {
        let written = self.write();
        if written.is_err() {
            self.seen.discard();
        }
        let mut report = FlushReport {
            applied: self.applied,
            ..FlushReport::default()
        };
        for segment in written.iter().flat_map(|(segments, _)| segments) {
            report.segments += 1;
            report.bytes += segment.file.bytes;
            report.rows += segment.row_count();
        }
        FlushDone {
            seen: self.seen,
            heads: self.heads.len(),
            newest: self.newest,
            report,
            written,
        }
    }

    fn write(&mut self) -> Result<(Vec<Segment>, Sides), StorageError> {
        let segments = write_heads(&mut self.seen, &self.heads)?;
        let seen = &mut self.seen;
        let sides = self.sides.write(seen.disk.as_ref(), &seen.dir, &mut seen.numbers)?;
        seen.sync_dir()?;
        Ok((segments, sides))
    }
}

/// One segment per head, tenant, kind and policy; synced, their names not yet.
pub fn write_heads(seen: &mut Seen, heads: &[Arc<Head>]) -> Result<Vec<Segment>, StorageError> {
    let mut written = vec![];
    for head in heads {
        for streams in [false, true] {
            let mut parts: BTreeMap<(&TenantId, Policy), Vec<(u32, Series<'_>)>> = BTreeMap::new();
            for (id, series) in in_file_order(&seen.catalog, head.ids(streams)) {
                parts
                    .entry((series.tenant, series.policy))
                    .or_default()
                    .push((id, series));
            }
            for ((tenant, policy), series) in parts {
                let times = series.iter().filter_map(|(id, _)| head.times_of(*id));
                let Some(times) = times.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))) else {
                    continue;
                };
                let file_head = container::Head {
                    tenant: tenant.clone(),
                    kind: if streams { FileKind::Log } else { FileKind::Metric },
                    policy,
                    group: seen.config.group,
                    commits: head.commits().unwrap_or((0, 0)),
                    times,
                    extra: vec![],
                };
                let number = seen.numbers.take();
                let disk = seen.disk.as_ref();
                written.push(if streams {
                    write_lines(disk, &seen.dir, number, file_head, head, &series)?
                } else {
                    write_metrics(disk, &seen.dir, number, file_head, head, &series)?
                });
            }
        }
    }
    Ok(written)
}

/// Nothing is begun whose output would not fit beside what is kept free.
pub fn check_room(disk: &dyn Disk, dir: &str, bytes: u64, reserve: u64) -> Result<(), StorageError> {
    if reserve == 0 {
        return Ok(());
    }
    let free = disk.free_bytes()?;
    if free.saturating_sub(bytes) >= reserve {
        return Ok(());
    }
    let why = format!("it may take {bytes} bytes, {free} are free and {reserve} are to stay free");
    let full = std::io::Error::new(std::io::ErrorKind::StorageFull, why);
    Err(DiskError::new("write files in", dir, full).into())
}

/// Neighbours in a file pack together: series of one metric, whatever target they are of.
pub fn in_file_order(catalog: &Catalog, mut ids: Vec<u32>) -> Vec<(u32, Series<'_>)> {
    ids.sort_unstable();
    ids.dedup();
    let mut series: Vec<(u32, Series<'_>)> = ids.into_iter().filter_map(|id| Some((id, catalog.get(id)?))).collect();
    let order = |s: &Series<'_>| (s.labels.metric_name().map(str::to_owned), s.labels.clone(), s.owner);
    series.sort_by_cached_key(|(_, s)| order(s));
    series
}

/// What is worth being merged or rolled up, if anything is: found and done in one piece of work.
#[must_use = "the shard waits for its end"]
pub struct MergeWork {
    pub(crate) seen: Seen,
    pub(crate) effort: Effort,
    pub(crate) segments: Vec<Arc<Segment>>,
    pub(crate) windows: Vec<Arc<Segment>>,
    /// Of series with frozen rows that are in no segment yet: a time before which there is none.
    pub(crate) first_in_heads: BTreeMap<u32, i64>,
    /// The cold store does not answer: only what is here is merged.
    pub(crate) without_cold: bool,
}

pub(crate) enum Made {
    Nothing,
    Merged {
        run: Vec<Arc<Segment>>,
        merged: Option<Segment>,
        let_go: Vec<LetGo>,
        rewrites: usize,
    },
    Windows(Segment),
}

/// For [`Shard::end_merge`](crate::Shard::end_merge).
#[must_use = "the shard waits for it"]
pub struct MergeDone {
    pub(crate) seen: Seen,
    pub(crate) made: Result<Made, StorageError>,
    /// Met on the way, in files of the shard that are left alone from now on.
    pub(crate) damage: Vec<Damage>,
}

/// What an ended merge was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// There is nothing left to merge.
    Nothing,
    Done(CompactReport),
    /// It came to nothing, since it met damage or its files were let go meanwhile; the next one may fare better.
    InVain,
}

impl MergeWork {
    pub fn run(mut self) -> MergeDone {
        let mut damage = vec![];
        let rolled = self.roll_up();
        let made = match self.unless_damaged(rolled, &mut damage) {
            Ok(Some(Some(windows))) => Ok(Made::Windows(windows)),
            Ok(_) => {
                let merged = self.merge();
                self.unless_damaged(merged, &mut damage)
                    .map(|made| made.unwrap_or(Made::Nothing))
            }
            Err(e) => Err(e),
        };
        if matches!(made, Err(_) | Ok(Made::Nothing)) {
            self.seen.discard();
        }
        MergeDone {
            seen: self.seen,
            made,
            damage,
        }
    }

    /// `None`: it met damage in one of the shard's files.
    fn unless_damaged<T>(
        &self,
        done: Result<T, StorageError>,
        damage: &mut Vec<Damage>,
    ) -> Result<Option<T>, StorageError> {
        match done {
            Err(StorageError::Damaged(met)) if self.all().iter().any(|s| s.path() == met.file) => {
                damage.push(met);
                Ok(None)
            }
            done => done.map(Some),
        }
    }

    fn all(&self) -> Vec<Arc<Segment>> {
        self.segments.iter().chain(&self.windows).cloned().collect()
    }

    fn sources(&self) -> Sources<'_> {
        Sources {
            retention: &self.seen.retention,
            catalog: &self.seen.catalog,
            windows: &self.windows,
        }
    }

    fn check_room(&self, bytes: u64, reserve: u64) -> Result<(), StorageError> {
        check_room(self.seen.disk.as_ref(), &self.seen.dir, bytes, reserve)
    }

    fn merge(&mut self) -> Result<Made, StorageError> {
        let (segments, reserve) = (self.all(), self.seen.config.reserve_bytes);
        let chosen = compaction::choose(&segments, &self.seen.retention, &self.seen.config, self.effort);
        let (run, rewrites) = match chosen {
            Some(run) => {
                self.check_room(run.iter().map(|s| s.file.bytes).sum(), reserve)?;
                (run, 0)
            }
            None => match compaction::choose_lone(&segments, &self.sources(), self.without_cold) {
                // What is left is less than half, and its room comes back: it may go below what is kept free.
                Some(s) => {
                    self.check_room(s.file.bytes / 2, reserve / 2)?;
                    (vec![s], 1)
                }
                None => return Ok(Made::Nothing),
            },
        };
        let mut let_go = vec![];
        let merged = Merge {
            disk: self.seen.disk.as_ref(),
            dir: &self.seen.dir,
            number: self.seen.numbers.take(),
            retention: &self.seen.retention,
            catalog: &self.seen.catalog,
            windows: &self.windows,
        }
        .run(&run, &mut let_go)?;
        self.seen.sync_dir()?;
        if let Some(left) = merged.as_ref().filter(|_| rewrites > 0) {
            left.rewritten(self.sources().share(left).map_or(u64::MAX, |share| share.kept));
        }
        Ok(Made::Merged {
            run,
            merged,
            let_go,
            rewrites,
        })
    }

    /// Makes windows of rows that keep files from going. Changes no answer.
    fn roll_up(&mut self) -> Result<Option<Segment>, StorageError> {
        let segments = self.all();
        let Some((from, resolution)) = compaction::choose_rollup(&segments, &self.sources(), self.without_cold) else {
            return Ok(None);
        };
        let is_input = |s: &&Arc<Segment>| !s.is_of_lines() && s.resolution() == from.resolution();
        let inputs: Vec<Arc<Segment>> = segments.iter().filter(is_input).cloned().collect();
        self.check_room(from.file.bytes, self.seen.config.reserve_bytes / 2)?;
        let number = self.seen.numbers.take();
        let made = Rollup {
            disk: self.seen.disk.as_ref(),
            dir: &self.seen.dir,
            number,
            group: self.seen.config.group,
            tenant: &from.head.tenant,
            policy: from.head.policy,
            resolution,
            sources: self.sources(),
            first_in_heads: &self.first_in_heads,
        }
        .run(&inputs)?;
        if made.is_some() {
            self.seen.sync_dir()?;
        }
        Ok(made)
    }
}

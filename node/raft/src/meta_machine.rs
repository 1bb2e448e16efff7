//! The meta machine: decodes commands, runs the parts, and keeps rows, clock, hashes and applied index together.
//!
//! The store is a queryable form of what the snapshot file and the Raft log hold; whenever it does not open or
//! verify it is moved aside and rebuilt from them.
//!
//! Invariants
//! - All changes of one command, the hashes of the trees they touch and the applied index are one transaction.
//! - A refused command changes nothing but the applied index. A leftward row is gone once it came back, whatever
//!   the part answered: a command that is refused once more and more would never leave.
//! - Cluster time never goes back.
//! - `durable()` is the index of a snapshot file that was complete and synced before the number rose.

use crate::machine::{Entry, Machine, MachineError, SnapshotCheck, Work};
use crate::meta::{
    ApplyContext, Changes, HistoryLine, META_PART, MachineCommand, MetaCommand, MetaRead, MetaStore, MetaStoreError,
    MetaTx, Part, PartInput, PartOutput, Refusal, Rows, as_bytes, history_key, leftward_key,
};
use crate::meta_snapshot::{self, Exporter, SUM_TREE, SnapshotFile, SnapshotFileError, export_all};
use bytes::Bytes;
use hindcast_env::buggify::{Point as Rare, buggify};
use hindcast_env::disk::{Disk, make_dir, replace_file};
use hindcast_env::reached::{Mark, reached};
use hindcast_model::{Class, TimestampNs, codec};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Opens the store, and gets it out of the way when it is not to be trusted.
pub trait StoreFactory: Send + 'static {
    type Store: MetaStore + 'static;
    fn open(&self) -> Result<Self::Store, MetaStoreError>;
    /// Afterwards `open` gives an empty store. Every store opened before has been dropped by then, or is dead.
    fn move_aside(&self) -> Result<(), MetaStoreError>;
}

#[derive(Clone, Debug)]
pub struct MetaMachineConfig {
    /// Folder of the snapshot file, on the machine's disk.
    pub dir: String,
    /// A snapshot file is written after so many commands.
    pub snapshot_every_commands: u64,
    /// Compare every row with the hash of its tree at open; needed when the machine itself went down.
    pub verify_rows: bool,
    /// Rows written per `maintain` while a snapshot file is being made.
    pub export_rows_per_step_max: usize,
}

impl MetaMachineConfig {
    pub fn new(dir: &str) -> Self {
        Self {
            dir: dir.to_owned(),
            snapshot_every_commands: 50_000,
            verify_rows: false,
            export_rows_per_step_max: 20_000,
        }
    }
}

/// What a proposer gets back through the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum MetaReply {
    Ok(#[serde(with = "as_bytes")] Vec<u8>),
    Refused { class: Class, message: String },
}

/// Reads a reply of the meta machine: the part's own bytes, or its refusal.
pub fn decode_reply(reply: &[u8]) -> Result<Bytes, Refusal> {
    match codec::from_bytes(reply) {
        Ok(MetaReply::Ok(bytes)) => Ok(bytes.into()),
        Ok(MetaReply::Refused { class, message }) => Err(Refusal { class, message }),
        Err(e) => Err(Refusal::new(Class::Internal, e.to_string())),
    }
}

/// A leftward command that waits to come back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeftwardCommand {
    pub part: String,
    #[serde(with = "as_bytes")]
    pub body: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftwardRow {
    pub index: u64,
    pub seq: u32,
}

/// Leftward rows that wait, oldest first. The meta leader brings each back as `MachineCommand::Leftward`.
pub fn leftward_rows(read: &dyn MetaRead, limit: usize) -> Vec<LeftwardRow> {
    let rows = read.scan(META_PART, b"leftward/", None, limit);
    let keys = rows.iter().filter_map(|(key, _)| row_key(key, b"leftward/"));
    keys.map(|(index, seq)| LeftwardRow { index, seq }).collect()
}

/// History rows that wait for the shards, oldest first, as (index, seq, line).
pub fn history_rows(read: &dyn MetaRead, limit: usize) -> Vec<(u64, u32, HistoryLine)> {
    let rows = read.scan(META_PART, b"history/", None, limit);
    let lines = rows.iter().filter_map(|(key, value)| {
        let (index, seq) = row_key(key, b"history/")?;
        Some((index, seq, codec::from_bytes(value).ok()?))
    });
    lines.collect()
}

fn row_key(key: &[u8], prefix: &[u8]) -> Option<(u64, u32)> {
    let rest = key.strip_prefix(prefix)?;
    let index = u64::from_be_bytes(rest.get(..8)?.try_into().ok()?);
    let seq = u32::from_be_bytes(rest.get(8..12)?.try_into().ok()?);
    Some((index, seq))
}

const CLOCK_KEY: &[u8] = b"clock";
const SNAPSHOT_FILE: &str = "meta.snapshot";
/// Of one transaction while a snapshot file is loaded: rows, and bytes of their values.
const LOAD_ROWS_MAX: usize = 256;
const LOAD_BYTES_MAX: usize = 256 << 10;

/// Sum of the hashes of a tree's rows: order-independent, kept up to date row by row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum([u64; 4]);

impl Sum {
    fn of_row(tree: &str, key: &[u8], value: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for field in [tree.as_bytes(), key, value] {
            hasher.update(&(field.len() as u64).to_le_bytes());
            hasher.update(field);
        }
        Self::read(hasher.finalize().as_bytes()).expect("a hash has 32 bytes")
    }
    fn read(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 32] = bytes.try_into().ok()?;
        let mut lanes = [0; 4];
        for (lane, bytes) in lanes.iter_mut().zip(bytes.chunks_exact(8)) {
            *lane = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        }
        Some(Self(lanes))
    }
    fn to_bytes(self) -> Vec<u8> {
        self.0.iter().flat_map(|lane| lane.to_le_bytes()).collect()
    }
    fn add(&mut self, row: Self) {
        for (lane, by) in self.0.iter_mut().zip(row.0) {
            *lane = lane.wrapping_add(by);
        }
    }
    fn remove(&mut self, row: Self) {
        for (lane, by) in self.0.iter_mut().zip(row.0) {
            *lane = lane.wrapping_sub(by);
        }
    }
}

type Sums = BTreeMap<String, Sum>;

/// What readers hold: follows the machine when a snapshot replaces the store under it. Empty only meanwhile, with
/// the lock held, so that a reader waits instead of seeing nothing.
struct SharedStore<S>(RwLock<Option<S>>);

impl<S: MetaStore> SharedStore<S> {
    fn with<T>(&self, f: impl FnOnce(&S) -> T) -> T {
        f(self
            .0
            .read()
            .as_ref()
            .expect("a store is open, or the machine has failed and stopped the node"))
    }
}

impl<S: MetaStore> MetaRead for SharedStore<S> {
    fn get(&self, tree: &str, key: &[u8]) -> Option<Vec<u8>> {
        self.with(|s| s.get(tree, key))
    }
    fn scan(&self, tree: &str, prefix: &[u8], from: Option<&[u8]>, limit: usize) -> Rows {
        self.with(|s| s.scan(tree, prefix, from, limit))
    }
    fn applied(&self) -> u64 {
        self.with(MetaRead::applied)
    }
}

pub struct MetaMachine<S: MetaStore + 'static> {
    disk: Arc<dyn Disk>,
    stores: Box<dyn StoreFactory<Store = S>>,
    shared: Arc<SharedStore<S>>,
    parts: Vec<Box<dyn Part>>,
    config: MetaMachineConfig,
    now: TimestampNs,
    sums: Sums,
    applied: u64,
    durable: u64,
    exporter: Option<Exporter>,
    snapshot_wanted: bool,
    file_wanted: Arc<AtomicBool>,
}

/// The snapshot file of a meta machine that goes on meanwhile: between restarts nobody else reads it.
#[derive(Clone)]
pub struct MetaFile {
    disk: Arc<dyn Disk>,
    path: String,
    wanted: Arc<AtomicBool>,
}

impl MetaFile {
    /// Reads it as the disk has it and verifies it; the error names it. One that is not there is no damage.
    pub fn check(&self) -> Result<(), SnapshotFileError> {
        if let Ok(file) = self.disk.open_read(&self.path) {
            file.forget_cached(0..file.len());
        }
        SnapshotFile::open(self.disk.as_ref(), &self.path).map(drop)
    }

    /// Has it written anew from the store.
    pub fn renew(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }
}

impl<S: MetaStore + 'static> MetaMachine<S> {
    /// Opens the store, or rebuilds it from the snapshot file. The log then replays from `applied() + 1`.
    ///
    /// # Panics
    /// When two parts share a name, or one takes the machine's.
    pub fn open(
        disk: Arc<dyn Disk>,
        stores: impl StoreFactory<Store = S>,
        parts: Vec<Box<dyn Part>>,
        config: MetaMachineConfig,
    ) -> Result<Self, MachineError> {
        let names: BTreeSet<_> = parts.iter().map(|p| p.name()).chain([META_PART, SUM_TREE]).collect();
        assert_eq!(names.len(), parts.len() + 2, "each part has a name of its own");
        make_dir(disk.as_ref(), &config.dir)?;
        // The log was cut by what the snapshot file holds: its name must be there after the next crash too.
        disk.sync_dir(&config.dir)?;
        let snapshot = SnapshotFile::open(disk.as_ref(), &snapshot_path(&config)).map_err(damaged)?;
        let durable = snapshot.as_ref().map_or(0, SnapshotFile::applied);
        let trusted = stores.open().map_err(|e| e.to_string()).and_then(|store| {
            let sums = check_store(&store, config.verify_rows)?;
            // The log is cut up to the snapshot file, so an older store has no way to catch up.
            match store.applied() {
                applied if applied < durable => Err(format!("it ends at {applied}, before the snapshot at {durable}")),
                _ => Ok((store, sums)),
            }
        });
        let (store, sums) = match trusted {
            Ok(opened) => opened,
            Err(why) => {
                tracing::warn!(
                    dir = config.dir,
                    why,
                    durable,
                    "meta store is rebuilt from snapshot file and log"
                );
                rebuild(&stores, snapshot)?
            }
        };
        Ok(Self {
            now: stored_clock(&store),
            applied: store.applied(),
            shared: Arc::new(SharedStore(RwLock::new(Some(store)))),
            disk,
            stores: Box::new(stores),
            parts,
            config,
            sums,
            durable,
            exporter: None,
            snapshot_wanted: false,
            file_wanted: Arc::default(),
        })
    }

    /// Reads of the applied state, from any thread, over the machine's whole life.
    pub fn reader(&self) -> Arc<dyn MetaRead> {
        self.shared.clone()
    }

    /// Asks for a snapshot file now; the next calls of `maintain` write it.
    pub fn request_snapshot(&mut self) {
        self.snapshot_wanted = true;
    }

    /// The snapshot file, for other threads.
    pub fn file(&self) -> MetaFile {
        MetaFile {
            disk: self.disk.clone(),
            path: snapshot_path(&self.config),
            wanted: self.file_wanted.clone(),
        }
    }

    fn run(&self, entry: &Entry) -> (MetaReply, Changes) {
        let refused = |r: Refusal| MetaReply::Refused {
            class: r.class,
            message: r.message,
        };
        let command: MetaCommand = match codec::from_bytes(&entry.data) {
            Ok(command) => command,
            Err(e) => return (refused(Refusal::new(Class::FixRequest, e.to_string())), Changes::new()),
        };
        let ctx = ApplyContext {
            index: entry.index,
            history: 0,
            now: self.now.max(command.at),
        };
        let mut tx = MetaTx::new(self.shared.as_ref());
        if ctx.now > self.now {
            tx.put(META_PART, CLOCK_KEY, ctx.now.0.to_be_bytes().to_vec());
        }
        let done = match command.part.as_str() {
            META_PART => match codec::from_bytes(&command.body) {
                Ok(MachineCommand::HistoryWritten { up_to }) => {
                    forget_history(&mut tx, up_to);
                    Ok(Bytes::new())
                }
                Ok(MachineCommand::Leftward { index, seq }) => return self.run_leftward(ctx, tx, index, seq),
                Err(e) => Err(Refusal::new(Class::FixRequest, e.to_string())),
            },
            part => self.run_parts(ctx, part, &command.body, &mut tx),
        };
        match done {
            Ok(reply) => (MetaReply::Ok(reply.into()), tx.into_changes()),
            Err(r) => (refused(r), Changes::new()),
        }
    }

    fn run_leftward(&self, ctx: ApplyContext, mut tx: MetaTx<'_>, index: u64, seq: u32) -> (MetaReply, Changes) {
        let key = leftward_key(index, seq);
        let Some(row) = tx.get(META_PART, &key) else {
            return (MetaReply::Ok(b"already done".to_vec()), Changes::new());
        };
        tx.delete(META_PART, &key);
        let command =
            codec::from_bytes::<LeftwardCommand>(&row).map_err(|e| Refusal::new(Class::Internal, e.to_string()));
        match command.and_then(|c| self.run_parts(ctx, &c.part, &c.body, &mut tx)) {
            Ok(reply) => (MetaReply::Ok(reply.into()), tx.into_changes()),
            Err(Refusal { class, message }) => {
                let gone = Changes::from([((META_PART.to_owned(), key), None)]);
                (MetaReply::Refused { class, message }, gone)
            }
        }
    }

    /// Runs the addressed part, then the parts to its right with everything put out to their left.
    fn run_parts(&self, ctx: ApplyContext, part: &str, body: &[u8], tx: &mut MetaTx<'_>) -> Result<Bytes, Refusal> {
        let Some(addressed) = self.parts.iter().position(|p| p.name() == part) else {
            let message = format!("no part is called {part:?}; this node may be older than the sender");
            return Err(Refusal::new(Class::FixRequest, message));
        };
        let mut kept = Kept::default();
        let mut rightward: Vec<(&'static str, Vec<u8>)> = Vec::new();
        let ctx_now = |kept: &Kept| ApplyContext {
            history: kept.history,
            ..ctx
        };
        let output = self.parts[addressed].apply(ctx_now(&kept), PartInput::Command(body), tx)?;
        let reply = output.reply.clone();
        self.keep(ctx, addressed, output, &mut kept, &mut rightward, tx)?;
        for right in addressed + 1..self.parts.len() {
            for at in 0..rightward.len() {
                let (from, body) = rightward[at].clone();
                let input = PartInput::Upstream {
                    part: from,
                    body: &body,
                };
                let output = self.parts[right].apply(ctx_now(&kept), input, tx)?;
                self.keep(ctx, right, output, &mut kept, &mut rightward, tx)?;
            }
        }
        Ok(reply)
    }

    fn keep(
        &self,
        ctx: ApplyContext,
        part: usize,
        output: PartOutput,
        kept: &mut Kept,
        rightward: &mut Vec<(&'static str, Vec<u8>)>,
        tx: &mut MetaTx<'_>,
    ) -> Result<(), Refusal> {
        let name = self.parts[part].name();
        rightward.extend(output.rightward.into_iter().map(|body| (name, body)));
        for (to, body) in output.leftward {
            if !self.parts[..part].iter().any(|p| p.name() == to) {
                let message = format!("part {name} put out a leftward command for {to:?}, which is not to its left");
                return Err(Refusal::new(Class::Internal, message));
            }
            let row = LeftwardCommand { part: to, body };
            tx.put(
                META_PART,
                &leftward_key(ctx.index, kept.leftward),
                codec::to_bytes(&row),
            );
            kept.leftward += 1;
        }
        for line in output.history {
            tx.put(META_PART, &history_key(ctx.index, kept.history), codec::to_bytes(&line));
            kept.history += 1;
        }
        Ok(())
    }

    /// Adds the new hashes of the touched trees to the changes.
    fn sum_up(&self, changes: &mut Changes) -> Sums {
        let mut touched = Sums::new();
        for ((tree, key), value) in changes.iter() {
            if !touched.contains_key(tree) {
                touched.insert(tree.clone(), self.sums.get(tree).copied().unwrap_or_default());
            }
            let sum = touched.get_mut(tree).expect("just put in");
            if let Some(old) = self.shared.get(tree, key) {
                sum.remove(Sum::of_row(tree, key, &old));
            }
            if let Some(new) = value {
                sum.add(Sum::of_row(tree, key, new));
            }
        }
        for (tree, sum) in &touched {
            changes.insert((SUM_TREE.to_owned(), tree.clone().into_bytes()), Some(sum.to_bytes()));
        }
        touched
    }
}

/// How many rows of each kind the command has put out so far.
#[derive(Default)]
struct Kept {
    leftward: u32,
    history: u32,
}

fn forget_history(tx: &mut MetaTx<'_>, up_to: u64) {
    const ROWS: usize = 1024;
    let mut from = b"history/".to_vec();
    loop {
        let rows = tx.scan(META_PART, b"history/", Some(&from), ROWS);
        let all = rows.len() == ROWS;
        for (key, _) in rows {
            match row_key(&key, b"history/") {
                Some((index, _)) if index <= up_to => tx.delete(META_PART, &key),
                _ => return,
            }
            from = key;
        }
        if !all {
            return;
        }
    }
}

fn snapshot_path(config: &MetaMachineConfig) -> String {
    format!("{}/{SNAPSHOT_FILE}", config.dir)
}

/// Cluster time as the last command left it; it never goes back.
pub fn stored_clock(store: &dyn MetaRead) -> TimestampNs {
    let row = store.get(META_PART, CLOCK_KEY).and_then(|v| v.try_into().ok());
    // Before the first command there is no time; negative ones are as good as any.
    row.map_or(TimestampNs::MIN, |bytes| TimestampNs(i64::from_be_bytes(bytes)))
}

/// Reads the sums; with `rows`, compares them with every row.
fn check_store(store: &dyn MetaRead, rows: bool) -> Result<Sums, String> {
    let mut sums = Sums::new();
    for (tree, sum) in store.scan(SUM_TREE, b"", None, usize::MAX) {
        let tree = String::from_utf8(tree).map_err(|_| "a tree name is not UTF-8".to_owned())?;
        let sum = Sum::read(&sum).ok_or_else(|| format!("the hash of tree {tree} is not 32 bytes"))?;
        sums.insert(tree, sum);
    }
    for (tree, stored) in sums.iter().filter(|_| rows) {
        let mut counted = Sum::default();
        let mut from = Vec::new();
        loop {
            let rows = store.scan(tree, b"", Some(&from), LOAD_ROWS_MAX);
            for (key, value) in &rows {
                counted.add(Sum::of_row(tree, key, value));
            }
            match rows.into_iter().last() {
                Some((key, _)) => from = [key.as_slice(), b"\0"].concat(),
                None => break,
            }
        }
        if counted != *stored {
            return Err(format!("the rows of tree {tree} differ from its hash"));
        }
    }
    Ok(sums)
}

fn damaged(e: impl std::fmt::Display) -> MachineError {
    MachineError::Damaged(e.to_string())
}

/// Loads a verified snapshot file into an empty store. The applied index is set by the last transaction only.
fn rebuild<S: MetaStore + 'static>(
    stores: &dyn StoreFactory<Store = S>,
    snapshot: Option<SnapshotFile>,
) -> Result<(S, Sums), MachineError> {
    stores.move_aside().map_err(damaged)?;
    let store = stores.open().map_err(damaged)?;
    let Some(mut snapshot) = snapshot else {
        return Ok((store, Sums::new()));
    };
    reached(Mark::RowsRebuilt);
    let path = snapshot.path().to_owned();
    let mut counted = Sums::new();
    let (mut changes, mut bytes) = (Changes::new(), 0);
    while let Some((tree, key, value)) = snapshot.next_row().map_err(damaged)? {
        if tree != SUM_TREE {
            let row = Sum::of_row(&tree, &key, &value);
            match counted.get_mut(&tree) {
                Some(sum) => sum.add(row),
                None => drop(counted.insert(tree.clone(), row)),
            }
        }
        bytes += value.len();
        changes.insert((tree, key), Some(value));
        if changes.len() >= LOAD_ROWS_MAX || bytes >= LOAD_BYTES_MAX {
            store.commit(&changes, 0).map_err(damaged)?;
            (changes, bytes) = (Changes::new(), 0);
        }
    }
    store.commit(&changes, snapshot.applied()).map_err(damaged)?;
    store.checkpoint().map_err(damaged)?;
    let sums = check_store(&store, false).map_err(damaged)?;
    for (tree, sum) in &sums {
        if counted.get(tree).copied().unwrap_or_default() != *sum {
            return Err(damaged(format!("{path}: rows of tree {tree} differ from its hash")));
        }
    }
    Ok((store, sums))
}

impl<S: MetaStore + 'static> MetaMachine<S> {
    fn step_export(&mut self) -> Result<(), MachineError> {
        if let Some(exporter) = &mut self.exporter
            && exporter.step(self.shared.as_ref(), self.config.export_rows_per_step_max)?
            && let Some(exporter) = self.exporter.take()
        {
            self.durable = exporter.finish()?;
            self.shared.with(MetaStore::checkpoint).map_err(damaged)?;
        }
        Ok(())
    }
}

impl<S: MetaStore + 'static> Machine for MetaMachine<S> {
    fn applied(&self) -> u64 {
        self.applied
    }

    fn apply(&mut self, entry: &Entry) -> Result<Bytes, MachineError> {
        assert!(entry.index > self.applied, "index {} was applied already", entry.index);
        let (reply, mut changes) = self.run(entry);
        let touched = self.sum_up(&mut changes);
        if let Some(exporter) = &mut self.exporter {
            exporter.before_change(&changes, self.shared.as_ref());
        }
        self.shared.with(|s| s.commit(&changes, entry.index)).map_err(damaged)?;
        self.sums.extend(touched);
        if let Some(Some(now)) = changes.get(&(META_PART.to_owned(), CLOCK_KEY.to_vec())) {
            let bytes = now.as_slice().try_into().expect("the clock has eight bytes");
            self.now = TimestampNs(i64::from_be_bytes(bytes));
        }
        self.applied = entry.index;
        Ok(codec::to_bytes(&reply).into())
    }

    fn durable(&self) -> u64 {
        self.durable
    }

    fn maintain(&mut self, _begin: &mut dyn FnMut(Work)) -> Result<(), MachineError> {
        let behind = self.applied - self.durable;
        let is_damaged = self.exporter.is_none() && self.file_wanted.swap(false, Ordering::Relaxed);
        let is_wanted = self.snapshot_wanted || buggify(Rare::EarlySnapshot);
        let due = is_damaged || behind >= self.config.snapshot_every_commands || (is_wanted && behind > 0);
        if self.exporter.is_none() && due {
            self.snapshot_wanted = false;
            let path = snapshot_path(&self.config);
            self.exporter = Some(Exporter::start(self.disk.clone(), &path, self.shared.as_ref())?);
        }
        let stepped = self.step_export();
        if stepped.is_err() {
            // A half-written file is of no use: the next try begins anew.
            (self.exporter, self.snapshot_wanted) = (None, true);
        }
        stepped
    }

    fn export(&mut self, dir: &str) -> Result<(), MachineError> {
        export_all(
            self.disk.clone(),
            &format!("{dir}/{SNAPSHOT_FILE}"),
            self.shared.as_ref(),
        )?;
        Ok(())
    }

    fn snapshot_check(&self) -> SnapshotCheck {
        let disk = self.disk.clone();
        Arc::new(move |dir| {
            let from = format!("{dir}/{SNAPSHOT_FILE}");
            match SnapshotFile::open(disk.as_ref(), &from).map_err(damaged)? {
                Some(_) => Ok(()),
                None => Err(damaged(format!("{from} is missing from the snapshot"))),
            }
        })
    }

    /// The file comes first, durably; a stop in between finds a store older than its snapshot and rebuilds it.
    fn install(&mut self, dir: &str, index: u64) -> Result<(), MachineError> {
        let (from, path) = (format!("{dir}/{SNAPSHOT_FILE}"), snapshot_path(&self.config));
        // Read once: what is written below is what was verified here.
        let bytes = self.disk.read(&from)?;
        let incoming = SnapshotFile::of(&from, bytes.clone()).map_err(damaged)?;
        if incoming.applied() > index {
            return Err(damaged(format!(
                "{from} holds index {}, beyond {index}",
                incoming.applied()
            )));
        }
        self.exporter = None;
        // Entries between the two hold nothing for the machine, such as changes of members.
        replace_file(self.disk.as_ref(), &path, &meta_snapshot::as_of(&bytes, index))?;
        let incoming = SnapshotFile::open(self.disk.as_ref(), &path)
            .map_err(damaged)?
            .ok_or_else(|| damaged(format!("{path} is missing")))?;
        let mut shared = self.shared.0.write();
        // The old store closes here: no reader holds it beyond one call.
        *shared = None;
        let (store, sums) = rebuild(self.stores.as_ref(), Some(incoming))?;
        self.now = stored_clock(&store);
        *shared = Some(store);
        drop(shared);
        self.sums = sums;
        self.applied = index;
        self.durable = index;
        Ok(())
    }

    fn forget(&mut self) -> Result<(), MachineError> {
        // `RaftHost::release` does not ask for it.
        Err(MachineError::Damaged(
            "the meta group is on every node and is not given up".into(),
        ))
    }

    fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.applied.to_le_bytes());
        // A tree that lost its last row has the hash of no rows, like one that never was.
        for (tree, sum) in self.sums.iter().filter(|(_, sum)| **sum != Sum::default()) {
            hasher.update(&(tree.len() as u64).to_le_bytes());
            hasher.update(tree.as_bytes());
            hasher.update(&sum.to_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}

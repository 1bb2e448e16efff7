//! The way over a data directory: blocks by their times, then the head.
//!
//! A [`Place`] says how far it has come; a walk that begins there tells the rest. Items are the series of a block, and the chunks and
//! records of the head.

use super::block::{self, Chunks, Meta, Tombstones, is_deleted};
use super::chunk::{self, Value};
use super::decode::Bad;
use super::head::{self, HeadChunk, HeadFile};
use super::index::{Index, Series};
use super::wal::{self, Row, Segment};
use super::{Damage, Finding, NAMES_MAX, SERIES_TABLE_BYTES_MAX, TOMBSTONES_MAX};
use crate::remote_write::native::{Native, line_of};
use hindcast_env::{Disk, DiskError};
use hindcast_model::{Histogram, Labels};
use std::collections::HashMap;
use std::ops::ControlFlow;
use xxhash_rust::xxh3::Xxh3;

/// Whether to go on.
pub type Flow = ControlFlow<()>;

const GO_ON: Flow = Flow::Continue(());
/// Of a series in the table of a pass, besides its labels.
const TABLE_ROW_BYTES: usize = 64;
/// Passes over the logs of a head: so many times what one table holds.
const PASSES_MAX: usize = 1024;

/// How far a walk has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Place {
    /// Which block, or behind all of them: which pass over the head.
    pub part: usize,
    /// Items of it that were told.
    pub item: u64,
    /// Of a block: where its next series begins.
    pub offset: u64,
    /// No damage was seen in any block.
    pub whole: bool,
    /// Up to here blocks hold what the head held.
    pub written_ms: Option<i64>,
}

/// What a walk has met.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Tally {
    pub blocks: u64,
    pub series: u64,
    pub samples: u64,
    /// Native histograms that became classic ones.
    pub histograms: u64,
    /// Those that cannot become classic ones, with the first reason.
    pub histograms_refused: u64,
    pub histograms_why: String,
    /// Samples that were deleted in Prometheus.
    pub deleted: u64,
    /// Samples of the head that a block holds, too.
    pub in_blocks: u64,
    /// Samples of the head whose series is told nowhere.
    pub of_unknown_series: u64,
    pub exemplars: u64,
    pub metadata: u64,
    /// Chunks of kinds that are not known.
    pub unknown: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.blocks += other.blocks;
        self.series += other.series;
        self.samples += other.samples;
        self.histograms += other.histograms;
        self.histograms_refused += other.histograms_refused;
        if self.histograms_why.is_empty() {
            self.histograms_why.clone_from(&other.histograms_why);
        }
        self.deleted += other.deleted;
        self.in_blocks += other.in_blocks;
        self.of_unknown_series += other.of_unknown_series;
        self.exemplars += other.exemplars;
        self.metadata += other.metadata;
        self.unknown += other.unknown;
    }
}

/// Who is told.
pub trait Sink {
    fn row(&mut self, labels: &Labels, at_ms: i64, value: f64) -> Flow;
    /// A native histogram; `None`: the series ended.
    fn native(&mut self, labels: &Labels, at_ms: i64, histogram: Option<&Histogram>) -> Flow;
    /// All rows before this place were told.
    fn at(&mut self, place: &Place, tally: &Tally, bytes: u64) -> Flow;
    fn found(&mut self, finding: Finding);
}

/// A path below a folder, which may be the root.
pub(super) fn below(dir: &str, name: &str) -> String {
    if dir.is_empty() {
        name.to_owned()
    } else {
        format!("{dir}/{name}")
    }
}

struct BlockDir {
    dir: String,
    /// `None`: it cannot be read, which was told.
    meta: Option<Meta>,
    bytes: u64,
}

/// A data directory that was looked at, not yet read.
pub struct Walk<'d> {
    disk: &'d dyn Disk,
    blocks: Vec<BlockDir>,
    damaged: Vec<Damage>,
    head: Head,
    names: Xxh3,
    table_bytes_max: usize,
}

/// What no block holds yet, or not alone.
#[derive(Default)]
struct Head {
    files: Vec<String>,
    /// Segments in their order, those of the last checkpoint first.
    logs: Vec<String>,
    /// Logs of samples that came late.
    late: Vec<String>,
    bytes: u64,
}

/// Why there is nothing to walk over.
#[derive(Debug, thiserror::Error)]
pub enum NoWalk {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(
        "there is neither a block (a folder with an index) nor a wal in it; name the folder that Prometheus was given as --storage.tsdb.path"
    )]
    Nothing,
    #[error("{dir} has more than {NAMES_MAX} entries")]
    TooMany { dir: String },
}

impl<'d> Walk<'d> {
    /// Looks at a data directory, or at a single block.
    pub fn open(disk: &'d dyn Disk) -> Result<Self, NoWalk> {
        let mut walk = Self {
            disk,
            blocks: vec![],
            damaged: vec![],
            head: Head::default(),
            names: Xxh3::new(),
            table_bytes_max: SERIES_TABLE_BYTES_MAX,
        };
        if disk.exists("index") {
            walk.block("");
        } else {
            for name in walk.list("")? {
                if is_ulid(&name) {
                    walk.block(&name);
                }
            }
            walk.head = walk.find_head()?;
        }
        // Whatever is damaged sorts first: its times are not known.
        walk.blocks
            .sort_by_key(|b| b.meta.as_ref().map(|m| (m.min_time, m.max_time)));
        if walk.blocks.is_empty() && walk.head.logs.is_empty() && walk.head.files.is_empty() {
            return Err(NoWalk::Nothing);
        }
        Ok(walk)
    }

    #[cfg(test)]
    pub fn with_table(mut self, bytes_max: usize) -> Self {
        self.table_bytes_max = bytes_max;
        self
    }

    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Of all files, as far as a walk's progress is measured in them.
    pub fn bytes(&self) -> u64 {
        self.blocks.iter().map(|b| b.bytes).sum::<u64>() + self.head.bytes
    }

    /// Differs when files were added, taken away, or changed their length.
    pub fn fingerprint(&self) -> u64 {
        self.names.digest()
    }

    fn list(&self, dir: &str) -> Result<Vec<String>, NoWalk> {
        let names = self.disk.list(dir)?;
        if names.len() > NAMES_MAX {
            return Err(NoWalk::TooMany { dir: dir.to_owned() });
        }
        Ok(names)
    }

    /// The length of a file, noted.
    fn note(&mut self, path: &str) -> u64 {
        let len = self.disk.open_read(path).map_or(0, |f| f.len());
        self.names.update(path.as_bytes());
        self.names.update(&len.to_le_bytes());
        len
    }

    fn block(&mut self, dir: &str) {
        let meta = match block::meta(self.disk, &below(dir, "meta.json")) {
            Ok(meta) => Some(meta),
            Err(damage) => {
                self.damaged.push(damage);
                None
            }
        };
        let mut bytes = self.note(&below(dir, "index"));
        self.note(&below(dir, "tombstones"));
        let chunks = below(dir, "chunks");
        for name in self.disk.list(&chunks).unwrap_or_default().into_iter().take(NAMES_MAX) {
            bytes += self.note(&below(&chunks, &name));
        }
        self.blocks.push(BlockDir {
            dir: dir.to_owned(),
            meta,
            bytes,
        });
    }

    fn find_head(&mut self) -> Result<Head, NoWalk> {
        let mut head = Head::default();
        let names = self.list("wal")?;
        let checkpoints = names
            .iter()
            .filter_map(|n| Some((n.strip_prefix("checkpoint.")?.parse::<u64>().ok()?, n)));
        // What the last checkpoint kept of the segments up to its number.
        let checkpoint = checkpoints.max();
        if let Some((_, name)) = checkpoint {
            let dir = below("wal", name);
            head.logs.extend(self.segments(&dir, None)?);
        }
        head.logs.extend(self.segments("wal", checkpoint.map(|(n, _)| n))?);
        head.late = self.segments("wbl", None)?;
        head.files = self.segments("chunks_head", None)?;
        for path in head.logs.iter().chain(&head.late).chain(&head.files) {
            head.bytes += self.note(path);
        }
        Ok(head)
    }

    /// Numbered files of a folder in their order, those behind a number. One that is missing in between is told.
    fn segments(&mut self, dir: &str, behind: Option<u64>) -> Result<Vec<String>, NoWalk> {
        let numbered = |name: &str| name.parse::<u64>().ok().filter(|n| behind.is_none_or(|b| *n > b));
        let mut found: Vec<_> = self
            .list(dir)?
            .into_iter()
            .filter_map(|name| Some((numbered(&name)?, name)))
            .collect();
        found.sort();
        let mut before = behind;
        for (number, name) in &found {
            if let Some(missing) = before.map(|b| b + 1).filter(|next| next < number) {
                let missing = format!("{dir}/{missing:0width$}", width = name.len());
                self.damaged.push(Damage::new(
                    &missing,
                    0,
                    format_args!("it is missing, and {name} follows it"),
                ));
            }
            before = Some(*number);
        }
        Ok(found.into_iter().map(|(_, name)| below(dir, &name)).collect())
    }

    /// Tells everything from a place on. Ends early only when the sink says so.
    pub fn run(&self, from: Place, tally: Tally, sink: &mut dyn Sink) -> Flow {
        let mut run = Run {
            walk: self,
            place: from,
            tally,
            sink,
            bytes: 0,
        };
        for damage in &self.damaged {
            run.sink.found(Finding::Damage(damage.clone()));
        }
        for (i, block) in self.blocks.iter().enumerate() {
            if i >= run.place.part {
                run.place.whole &= block.meta.is_some();
                run.block(block)?;
                run.tally.blocks += 1;
                run.place = Place {
                    part: i + 1,
                    item: 0,
                    offset: 0,
                    ..run.place
                };
            }
            run.bytes += block.bytes;
            run.told(run.bytes)?;
        }
        run.head()
    }
}

impl Place {
    pub const START: Self = Self {
        part: 0,
        item: 0,
        offset: 0,
        whole: true,
        written_ms: None,
    };
}

fn is_ulid(name: &str) -> bool {
    name.len() == 26 && name.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase())
}

struct Run<'r> {
    walk: &'r Walk<'r>,
    place: Place,
    tally: Tally,
    sink: &'r mut dyn Sink,
    /// Of all parts before this one.
    bytes: u64,
}

impl Run<'_> {
    fn told(&mut self, bytes: u64) -> Flow {
        self.sink.at(&self.place, &self.tally, bytes)
    }

    /// Damage in a block.
    fn damaged(&mut self, damage: Damage) {
        self.place.whole = false;
        self.sink.found(Finding::Damage(damage));
    }

    fn block(&mut self, block: &BlockDir) -> Flow {
        let disk = self.walk.disk;
        let stones = match block::tombstones(disk, &below(&block.dir, "tombstones")) {
            Ok(stones) => stones,
            Err(mut damage) => {
                damage.why += "; its block is left out, since nothing says what was deleted from it (take the file away to import all of it)";
                self.damaged(damage);
                return GO_ON;
            }
        };
        let mut index = match Index::open(disk, &below(&block.dir, "index")) {
            Ok(index) => index,
            Err(mut damage) => {
                damage.why += "; its block is left out";
                self.damaged(damage);
                return GO_ON;
            }
        };
        let mut seen = self.place.whole;
        index.check_lists(&mut |damage| self.sink.found(Finding::Damage(damage)));
        let mut chunks = Chunks::new(disk, &block.dir);
        let (start, end) = (index.series.start, index.series.end.max(index.series.start + 1));
        loop {
            match index.next(self.place.offset) {
                Ok(None) => break,
                Err((damage, next)) => {
                    self.damaged(damage);
                    self.place.offset = next;
                }
                Ok(Some((series, next))) => {
                    self.series(&series, &stones, &mut chunks)?;
                    if let Some(meta) = block.meta.as_ref().filter(|m| !m.is_of_late_samples()) {
                        // A time that the meta file alone names has no checksum.
                        let to_ms = series.chunks.iter().map(|c| c.to_ms.saturating_add(1)).max();
                        self.place.written_ms = self.place.written_ms.max(to_ms.map(|ms| ms.min(meta.max_time)));
                    }
                    self.place.offset = next;
                    self.place.item += 1;
                    self.tally.series += 1;
                    let share = (next - start) as f64 / (end - start) as f64;
                    self.told(self.bytes + (block.bytes as f64 * share.min(1.0)) as u64)?;
                }
            }
        }
        seen &= self.place.whole;
        let told = block
            .meta
            .as_ref()
            .map(|m| m.stats.num_series)
            .filter(|n| *n != 0 && *n != self.place.item);
        if let Some(n) = told.filter(|_| seen) {
            let why = format!("it tells of {n} series, and there are {}", self.place.item);
            self.damaged(Damage::new(&below(&block.dir, "meta.json"), 0, why));
        }
        GO_ON
    }

    fn series(&mut self, series: &Series, stones: &Tombstones, chunks: &mut Chunks<'_>) -> Flow {
        for place in &series.chunks {
            let got = chunks.get(*place);
            for damage in chunks.heads.drain(..) {
                self.sink.found(Finding::Damage(damage));
            }
            let (encoding, data) = match got {
                Ok(got) => got,
                Err(damage) => {
                    self.damaged(damage);
                    continue;
                }
            };
            let deleted = stones.of(series.id);
            let (read, flow) = self.chunk(encoding, &data, &series.labels, deleted, None);
            flow?;
            if let Err(why) = read {
                self.damaged(Damage::new(&chunks.path(*place), u64::from(place.offset), why));
            }
        }
        GO_ON
    }

    /// Tells the samples of a chunk that were not deleted, and are not before a time.
    fn chunk(
        &mut self,
        encoding: u8,
        data: &[u8],
        labels: &Labels,
        deleted: &[(i64, i64)],
        from_ms: Option<i64>,
    ) -> (Result<(), Bad>, Flow) {
        let mut flow = GO_ON;
        let read = chunk::read(encoding, data, &mut |at_ms, value| {
            if flow.is_continue() {
                flow = self.sample(labels, at_ms, value, deleted, from_ms);
            }
        });
        let read = match read {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.tally.unknown += 1;
                Err(Bad("its samples are packed in a way that is not known here"))
            }
            Err(bad) => Err(bad),
        };
        (read, flow)
    }

    fn sample(
        &mut self,
        labels: &Labels,
        at_ms: i64,
        value: Value<'_>,
        deleted: &[(i64, i64)],
        from_ms: Option<i64>,
    ) -> Flow {
        if from_ms.is_some_and(|from| at_ms < from) {
            self.tally.in_blocks += 1;
            return GO_ON;
        }
        if is_deleted(deleted, at_ms) {
            self.tally.deleted += 1;
            return GO_ON;
        }
        match value {
            Value::Float(value) => {
                self.tally.samples += 1;
                self.sink.row(labels, at_ms, value)
            }
            Value::Native(native) => self.native(labels, at_ms, native),
        }
    }

    /// As remote write takes them.
    fn native(&mut self, labels: &Labels, at_ms: i64, native: &Native) -> Flow {
        // What has no line is refused by whoever stores it.
        match native
            .histogram()
            .and_then(|h| h.as_ref().map_or(Ok(()), |h| line_of(h).map(drop)).map(|()| h))
        {
            Ok(histogram) => {
                self.tally.histograms += 1;
                self.sink.native(labels, at_ms, histogram.as_ref())
            }
            Err(why) => {
                self.tally.histograms_refused += 1;
                if self.tally.histograms_why.is_empty() {
                    self.tally.histograms_why = format!("{labels}: {why}");
                }
                GO_ON
            }
        }
    }

    fn head(&mut self) -> Flow {
        let Some((label_bytes, stones)) = self.scan() else {
            return GO_ON;
        };
        let passes = label_bytes.div_ceil(self.walk.table_bytes_max).clamp(1, PASSES_MAX);
        let blocks = self.walk.blocks.len();
        for pass in self.place.part - blocks..passes {
            self.pass(pass, passes, &stones)?;
            self.place = Place {
                part: blocks + pass + 1,
                item: 0,
                ..self.place
            };
            self.told(self.bytes + self.walk.head.bytes / passes as u64 * (pass as u64 + 1))?;
        }
        GO_ON
    }

    /// Reads all logs once: what their series take, and what was deleted. `None`: nothing of them can be told.
    fn scan(&mut self) -> Option<(usize, Tombstones)> {
        let (mut label_bytes, mut stones, mut fits) = (0usize, Tombstones::default(), true);
        let mut tally = Tally::default();
        let head = &self.walk.head;
        for logs in [&head.logs, &head.late] {
            for (i, path) in logs.iter().enumerate() {
                let mut segment = match Segment::open(self.walk.disk, path, i + 1 == logs.len()) {
                    Ok(segment) => segment,
                    Err(damage) => {
                        self.sink.found(Finding::Damage(damage));
                        continue;
                    }
                };
                loop {
                    let (at, read) = match segment.next() {
                        wal::Next::End => break,
                        wal::Next::Finding(finding) => {
                            self.sink.found(finding);
                            continue;
                        }
                        wal::Next::Record(at, record) => {
                            let mut unknown = false;
                            let read = wal::read(record, &mut |row| match row {
                                Row::Series(_, labels) => label_bytes += labels.shared_bytes() + TABLE_ROW_BYTES,
                                Row::Deleted(series, from, to) => fits &= stones.add(series, from, to),
                                Row::Exemplar => tally.exemplars += 1,
                                Row::Metadata => tally.metadata += 1,
                                Row::Unknown => unknown = true,
                                Row::Float(..) | Row::Native(..) => {}
                            });
                            (
                                at,
                                read.and(if unknown {
                                    Err(Bad("a record of a kind that is not known here"))
                                } else {
                                    Ok(())
                                }),
                            )
                        }
                    };
                    if let Err(why) = read {
                        self.sink.found(Finding::Damage(Damage::new(path, at, why)));
                    }
                }
            }
        }
        // Counted with each scan, not summed over those of a walk that is taken up again.
        self.tally.exemplars = tally.exemplars;
        self.tally.metadata = tally.metadata;
        if !fits {
            let why = format!("more than {TOMBSTONES_MAX} deletions; the head is left out");
            self.sink.found(Finding::Damage(Damage::new("wal", 0, why)));
            return None;
        }
        Some((label_bytes, stones))
    }

    /// Tells the samples of those series whose number leaves this remainder.
    fn pass(&mut self, pass: usize, passes: usize, stones: &Tombstones) -> Flow {
        let walk = self.walk;
        let is_mine = |series: u64| series % passes as u64 == pass as u64;
        let mut table: HashMap<u64, Labels> = HashMap::new();
        for path in walk.head.logs.iter() {
            each_record(walk.disk, path, &mut |_, record, _| {
                if !wal::is_of_samples(record) {
                    // What cannot be read was told by the scan.
                    let _ = wal::read(record, &mut |row| match row {
                        Row::Series(series, labels) if is_mine(series) => {
                            table.insert(series, labels);
                        }
                        _ => {}
                    });
                }
                GO_ON
            })?;
        }
        self.tally.series += if self.place.item == 0 { table.len() as u64 } else { 0 };
        let from_ms = if self.place.whole { self.place.written_ms } else { None };
        let (told_before, mut item, mut done) = (self.place.item, 0u64, 0u64);
        for (i, path) in walk.head.files.iter().enumerate() {
            let mut file = match HeadFile::open(walk.disk, path, i + 1 == walk.head.files.len()) {
                Ok(file) => file,
                Err(damage) => {
                    self.sink.found(Finding::Damage(damage));
                    continue;
                }
            };
            loop {
                match file.next() {
                    head::Next::End => break,
                    head::Next::Finding(finding) => self.sink.found(finding),
                    head::Next::Chunk(chunk) if is_mine(chunk.series) => {
                        item += 1;
                        if item > told_before {
                            self.head_chunk(&chunk, file.path(), &table, stones, from_ms)?;
                            self.place.item = item;
                            let read = done + file.bytes_read();
                            self.told(self.bytes + (walk.head.bytes * pass as u64 + read) / passes as u64)?;
                        }
                    }
                    head::Next::Chunk(_) => {}
                }
            }
            done += file.bytes_read();
        }
        for (logs, from_ms) in [(&walk.head.logs, from_ms), (&walk.head.late, None)] {
            for path in logs {
                let mut last = 0;
                each_record(walk.disk, path, &mut |_, record, read| {
                    last = read;
                    item += 1;
                    if item <= told_before || !wal::is_of_samples(record) {
                        return GO_ON;
                    }
                    self.record(record, &table, stones, from_ms, &is_mine)?;
                    self.place.item = item;
                    self.told(self.bytes + (walk.head.bytes * pass as u64 + done + read) / passes as u64)
                })?;
                done += last;
            }
        }
        GO_ON
    }

    fn head_chunk(
        &mut self,
        chunk: &HeadChunk,
        path: &str,
        table: &HashMap<u64, Labels>,
        stones: &Tombstones,
        from_ms: Option<i64>,
    ) -> Flow {
        let Some(labels) = table.get(&chunk.series) else {
            let samples = chunk
                .data
                .get(..2)
                .map_or(0, |n| u64::from(u16::from_be_bytes([n[0], n[1]])));
            self.tally.of_unknown_series += samples;
            return GO_ON;
        };
        let from_ms = from_ms.filter(|_| !chunk.is_late);
        let deleted = stones.of(chunk.series);
        let (read, flow) = self.chunk(chunk.encoding, &chunk.data, labels, deleted, from_ms);
        if let Err(why) = read {
            self.sink.found(Finding::Damage(Damage::new(path, chunk.offset, why)));
        }
        flow
    }

    fn record(
        &mut self,
        record: &[u8],
        table: &HashMap<u64, Labels>,
        stones: &Tombstones,
        from_ms: Option<i64>,
        is_mine: &dyn Fn(u64) -> bool,
    ) -> Flow {
        let mut flow = GO_ON;
        let mut tell = |series: u64, at_ms: i64, value: Value<'_>| {
            if flow.is_break() || !is_mine(series) {
                return;
            }
            match table.get(&series) {
                Some(labels) => flow = self.sample(labels, at_ms, value, stones.of(series), from_ms),
                None => self.tally.of_unknown_series += 1,
            }
        };
        // What cannot be read was told by the scan.
        let _ = wal::read(record, &mut |row| match row {
            Row::Float(series, at, value) => tell(series, at, Value::Float(value)),
            Row::Native(series, native) => tell(series, native.at.as_ms(), Value::Native(native)),
            _ => {}
        });
        flow
    }
}

/// The records of a segment with their places, and how far it was read. Findings were told by the scan.
fn each_record(disk: &dyn Disk, path: &str, tell: &mut dyn FnMut(u64, &[u8], u64) -> Flow) -> Flow {
    let Ok(mut segment) = Segment::open(disk, path, true) else {
        return GO_ON;
    };
    loop {
        let read = segment.bytes_read();
        match segment.next() {
            wal::Next::End => return GO_ON,
            wal::Next::Finding(_) => {}
            wal::Next::Record(at, record) => tell(at, record, read)?,
        }
    }
}

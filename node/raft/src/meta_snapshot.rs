//! The meta state as one file: a header, all rows as one zstd stream, a BLAKE3 footer. Layout: `FORMAT.md`.
//!
//! Invariants
//! - A file holds exactly the rows as of one applied index, though it is written in steps between commands: a row
//!   that changes ahead of the walk is handed over with its old value first (`Exporter::before_change`).
//! - What does not verify is never loaded: footer over all bytes, then the hash of each tree over its rows.

use crate::meta::{Changes, MetaRead};
use bytes::Bytes;
use hindcast_env::disk::{Disk, DiskError, DiskFile, parent};
use hindcast_env::fuzz::sum_fits;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

pub const MAGIC: [u8; 8] = *b"HCMETA\0\x01";
/// Magic, then the applied index.
const HEADER_BYTES: usize = 16;
const FOOTER_BYTES: usize = 32;
/// Compressed bytes are handed to the disk in pieces of about this size.
const CHUNK_BYTES: usize = 1 << 20;
const ZSTD_LEVEL: i32 = 1;
/// A row larger than this in a file is damage, not data.
const ROW_BYTES_MAX: usize = 64 << 20;

/// The tree that holds one row per tree: (tree name) → sum of its row hashes.
pub const SUM_TREE: &str = "sum";

/// Why a snapshot file is not loaded.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotFileError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("{path} does not verify: {why}")]
    Damaged { path: String, why: String },
}

/// A snapshot file being written.
pub struct Exporter {
    path: String,
    aside: String,
    disk: Arc<dyn Disk>,
    file: Box<dyn DiskFile>,
    written: u64,
    hasher: blake3::Hasher,
    encoder: zstd::stream::write::Encoder<'static, Vec<u8>>,
    applied: u64,
    /// Trees still to walk, the current one last.
    trees: Vec<String>,
    /// First key of the current tree that is not yet in the file.
    next_key: Vec<u8>,
    /// Rows ahead of the walk that have changed since it began: what they were then.
    held: BTreeMap<(String, Vec<u8>), Option<Vec<u8>>>,
}

impl Exporter {
    /// Starts a file of the state that `store` shows now.
    pub fn start(disk: Arc<dyn Disk>, path: &str, store: &dyn MetaRead) -> Result<Self, DiskError> {
        let aside = format!("{path}.tmp");
        let mut file = disk.create(&aside)?;
        let applied = store.applied();
        let header = [MAGIC.as_slice(), &applied.to_be_bytes()].concat();
        file.write_at(0, &header)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&header);
        // The walk takes trees from the end: sums come last in the file, so that a reader checks rows against them.
        let mut trees = vec![SUM_TREE.to_owned()];
        let sums = store.scan(SUM_TREE, b"", None, usize::MAX);
        trees.extend(sums.iter().rev().map(|(t, _)| String::from_utf8_lossy(t).into_owned()));
        let encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)
            .map_err(|e| DiskError::new("compress into", &aside, e))?;
        Ok(Self {
            path: path.to_owned(),
            aside,
            disk,
            file,
            written: HEADER_BYTES as u64,
            hasher,
            encoder,
            applied,
            trees,
            next_key: Vec::new(),
            held: BTreeMap::new(),
        })
    }

    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Must see every change before the store does.
    pub fn before_change(&mut self, changes: &Changes, store: &dyn MetaRead) {
        for (tree, key) in changes.keys() {
            let ahead = match self.trees.last() {
                Some(current) if current == tree => *key >= self.next_key,
                _ => self.trees.contains(tree),
            };
            if ahead && !self.held.contains_key(&(tree.clone(), key.clone())) {
                self.held.insert((tree.clone(), key.clone()), store.get(tree, key));
            }
        }
    }

    /// Writes up to `rows_max` rows; true once all rows are in the file.
    pub fn step(&mut self, store: &dyn MetaRead, rows_max: usize) -> Result<bool, DiskError> {
        let Some(tree) = self.trees.last().cloned() else {
            return Ok(true);
        };
        let rows = store.scan(&tree, b"", Some(&self.next_key), rows_max);
        let last = rows.len() < rows_max;
        let end = rows.last().map(|(key, _)| [key.as_slice(), b"\0"].concat());
        let mut rows: BTreeMap<_, _> = rows.into_iter().collect();
        let held_to = if last { None } else { end.clone() };
        for (key, old) in self.take_held(&tree, held_to.as_deref()) {
            match old {
                Some(value) => rows.insert(key, value),
                None => rows.remove(&key),
            };
        }
        // Framed here: the encoder takes small pieces slowly.
        let mut framed = Vec::new();
        for (key, value) in &rows {
            for field in [tree.as_bytes(), key, value] {
                framed.extend_from_slice(&(field.len() as u32).to_be_bytes());
                framed.extend_from_slice(field);
            }
        }
        self.encoder.write_all(&framed).map_err(|e| self.compress_error(e))?;
        if self.encoder.get_ref().len() >= CHUNK_BYTES {
            self.spill()?;
        }
        if last {
            self.trees.pop();
            self.next_key.clear();
        } else if let Some(end) = end {
            self.next_key = end;
        }
        Ok(self.trees.is_empty())
    }

    /// Seals the file, makes it durable and puts it in place. Returns its index.
    pub fn finish(mut self) -> Result<u64, DiskError> {
        assert!(self.trees.is_empty(), "all rows are written before the footer");
        self.encoder.flush().map_err(|e| self.compress_error(e))?;
        let empty = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL).map_err(|e| self.compress_error(e))?;
        let rest = std::mem::replace(&mut self.encoder, empty).finish();
        let rest = rest.map_err(|e| self.compress_error(e))?;
        self.write(&rest)?;
        let footer = self.hasher.finalize();
        self.file.write_at(self.written, footer.as_bytes())?;
        self.file.sync()?;
        drop(self.file);
        self.disk.rename(&self.aside, &self.path)?;
        self.disk.sync_dir(parent(&self.path))?;
        Ok(self.applied)
    }

    fn take_held(&mut self, tree: &str, to: Option<&[u8]>) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let start = (tree.to_owned(), self.next_key.clone());
        let within = self.held.range(start..).map(|(k, _)| k);
        let keys: Vec<_> = within
            .take_while(|(t, key)| t == tree && to.is_none_or(|end| key.as_slice() < end))
            .cloned()
            .collect();
        let taken = keys.into_iter().filter_map(|k| self.held.remove_entry(&k));
        taken.map(|((_, key), old)| (key, old)).collect()
    }

    fn spill(&mut self) -> Result<(), DiskError> {
        let bytes = std::mem::take(self.encoder.get_mut());
        self.write(&bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        self.file.write_at(self.written, bytes)?;
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn compress_error(&self, e: io::Error) -> DiskError {
        DiskError::new("compress into", &self.aside, e)
    }
}

/// Writes the whole state at once.
pub fn export_all(disk: Arc<dyn Disk>, path: &str, store: &dyn MetaRead) -> Result<u64, DiskError> {
    const ROWS_PER_STEP: usize = 4096;
    let mut exporter = Exporter::start(disk, path, store)?;
    while !exporter.step(store, ROWS_PER_STEP)? {}
    exporter.finish()
}

/// A verified file as that of a later index, at which the state is the same.
pub fn as_of(file: &[u8], applied: u64) -> Vec<u8> {
    let mut bytes = file.to_vec();
    bytes[8..HEADER_BYTES].copy_from_slice(&applied.to_be_bytes());
    let body = bytes.len() - FOOTER_BYTES;
    let footer = blake3::hash(&bytes[..body]);
    bytes[body..].copy_from_slice(footer.as_bytes());
    bytes
}

/// Tree, key, value.
pub type Row = (String, Vec<u8>, Vec<u8>);

/// A verified snapshot file, read row by row.
pub struct SnapshotFile {
    path: String,
    applied: u64,
    rows: zstd::stream::read::Decoder<'static, io::BufReader<io::Cursor<Bytes>>>,
}

impl SnapshotFile {
    /// Reads and verifies the footer. `None`: there is no such file.
    pub fn open(disk: &dyn Disk, path: &str) -> Result<Option<Self>, SnapshotFileError> {
        match disk.exists(path) {
            true => Self::of(path, disk.read(path)?).map(Some),
            false => Ok(None),
        }
    }

    /// Verifies what was read from `path`.
    pub fn of(path: &str, bytes: Bytes) -> Result<Self, SnapshotFileError> {
        let damaged = |why: &str| SnapshotFileError::Damaged {
            path: path.to_owned(),
            why: why.to_owned(),
        };
        if bytes.len() < HEADER_BYTES + FOOTER_BYTES || bytes[..8] != MAGIC {
            return Err(damaged("it does not start like a meta snapshot of version 1"));
        }
        let body = bytes.slice(..bytes.len() - FOOTER_BYTES);
        if !sum_fits(blake3::hash(&body).as_bytes()[..] == bytes[body.len()..]) {
            return Err(damaged("its BLAKE3 footer differs from its content"));
        }
        let applied = u64::from_be_bytes(body[8..16].try_into().expect("eight bytes"));
        let rows = zstd::stream::read::Decoder::new(io::Cursor::new(body.slice(HEADER_BYTES..)));
        Ok(Self {
            path: path.to_owned(),
            applied,
            rows: rows.map_err(|e| damaged(&e.to_string()))?,
        })
    }

    /// Where it was read.
    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// The next (tree, key, value); `None` at the end.
    pub fn next_row(&mut self) -> Result<Option<Row>, SnapshotFileError> {
        let Some(tree) = self.field(true)? else {
            return Ok(None);
        };
        let tree = String::from_utf8(tree).map_err(|_| self.damaged("a tree name is not UTF-8"))?;
        match (self.field(false)?, self.field(false)?) {
            (Some(key), Some(value)) => Ok(Some((tree, key, value))),
            _ => Err(self.damaged("it ends within a row")),
        }
    }

    fn field(&mut self, may_end: bool) -> Result<Option<Vec<u8>>, SnapshotFileError> {
        let mut len = [0; 4];
        let mut got = 0;
        while got < len.len() {
            match self.rows.read(&mut len[got..]) {
                Ok(0) if got == 0 && may_end => return Ok(None),
                Ok(0) => return Err(self.damaged("it ends within a row")),
                Ok(n) => got += n,
                Err(e) => return Err(self.damaged(&e.to_string())),
            }
        }
        let len = u32::from_be_bytes(len) as usize;
        if len > ROW_BYTES_MAX {
            return Err(self.damaged("a row is larger than any row may be"));
        }
        let mut field = vec![0; len];
        match self.rows.read_exact(&mut field) {
            Ok(()) => Ok(Some(field)),
            Err(e) => Err(self.damaged(&e.to_string())),
        }
    }

    fn damaged(&self, why: &str) -> SnapshotFileError {
        SnapshotFileError::Damaged {
            path: self.path.clone(),
            why: why.to_owned(),
        }
    }
}

//! Whole files in a store far away: the seam, and a store in memory for tests.
//!
//! Decides what a cold file is: immutable, named once, of a known length and BLAKE3. Promises of every `ColdStore`:
//! - What `put` answered is in the store, whole and verified by reading it back; before that, nothing shows under the
//!   name. Putting the same name again replaces it, so that a put that failed can be tried again.
//! - `open` refuses a file of another length than its reference says. Who reads verifies the blocks (CRC32C).
//!
//! Calls wait for the network: they are for threads that may block, never for an apply worker that others wait for.

use crate::disk::{DiskError, DiskResult, ReadAt};
use bytes::Bytes;
use hindcast_model::{Class, Classify};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// Bytes of a name.
pub const NAME_BYTES_MAX: usize = 512;
/// Files that one listing may name.
pub const LIST_MAX: usize = 1_000_000;

/// A cold file, as a manifest names it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ColdRef {
    /// Within the store: parts of letters, digits, `-`, `_`, `.` and `=`, joined by `/`.
    pub name: String,
    pub bytes: u64,
    /// Of all bytes.
    pub blake3: [u8; 32],
}

/// A file that is in the store, whoever put it there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ColdEntry {
    pub name: String,
    pub bytes: u64,
}

/// What a store could not do. `store` is its URL, without secrets.
#[derive(Debug, thiserror::Error)]
pub enum ColdError {
    #[error("{0:?} cannot be a cold file's name: {1}")]
    BadName(String, &'static str),
    #[error("{url:?} is no cold store: {why}; use file:///an/absolute/folder or s3://bucket/prefix")]
    BadUrl { url: String, why: String },
    #[error("{store} holds no {name}; look for a lifecycle rule or a person that removed it, and restore it there")]
    Missing { store: String, name: String },
    #[error("{name} in {store} is not what was written ({why}); restore it from a version or a replica of the store")]
    Damaged { store: String, name: String, why: String },
    #[error("{store} refuses us: {why}; check the credentials and what they may do (get, put, list, delete)")]
    Refused { store: String, why: String },
    #[error("{store} cannot be reached or cannot serve: {why}; check network and endpoint if it lasts, and ask again")]
    Unavailable { store: String, why: String },
    #[error("{store} holds more than {} files; give this cluster a prefix of its own", LIST_MAX)]
    TooMany { store: String },
    /// The file that was to be put could not be read.
    #[error(transparent)]
    Local(#[from] DiskError),
}

impl Classify for ColdError {
    fn class(&self) -> Class {
        match self {
            Self::BadName(..) | Self::BadUrl { .. } => Class::FixRequest,
            Self::Unavailable { .. } => Class::RetryLater,
            Self::Missing { .. } | Self::Damaged { .. } | Self::Refused { .. } | Self::TooMany { .. } => {
                Class::Unavailable
            }
            Self::Local(_) => Class::Unavailable,
        }
    }
}

impl ColdError {
    /// As readers of files know errors. A file that is too short is `UnexpectedEof` there, which means damage.
    pub fn into_disk_error(self, what: &'static str, path: &str) -> DiskError {
        let kind = match &self {
            Self::Local(_) | Self::Refused { .. } | Self::TooMany { .. } => io::ErrorKind::Other,
            Self::BadName(..) | Self::BadUrl { .. } => io::ErrorKind::InvalidInput,
            Self::Missing { .. } => io::ErrorKind::NotFound,
            Self::Damaged { .. } => io::ErrorKind::UnexpectedEof,
            Self::Unavailable { .. } => io::ErrorKind::TimedOut,
        };
        DiskError::new(what, path, io::Error::new(kind, self))
    }
}

pub type ColdResult<T> = Result<T, ColdError>;

/// Whether a read failed because of the store, and not because of a disk of ours.
pub fn is_cold(e: &DiskError) -> bool {
    cause_in(e).is_some()
}

/// What the store could not do, if that is why a read failed.
pub fn cause_in(e: &DiskError) -> Option<&ColdError> {
    e.source.get_ref().and_then(|inner| inner.downcast_ref())
}

/// A store of immutable files. The module says what it promises.
pub trait ColdStore: Send + Sync + 'static {
    /// As messages name it, without secrets.
    fn url(&self) -> &str;
    /// Puts a whole file; it may go from the disk once this answered and a manifest names the reference.
    fn put(&self, name: &str, file: &dyn ReadAt) -> ColdResult<ColdRef>;
    /// Reads of the file as it is in the store, each of exactly the bytes asked for. Not cached: see `ColdCache`.
    fn open(&self, file: &ColdRef) -> ColdResult<Arc<dyn ReadAt>>;
    /// No error when it is not there.
    fn delete(&self, name: &str) -> ColdResult<()>;
    /// Everything below a folder (`""`: everything), sorted by name. A folder ends where names go on behind a `/`.
    fn list(&self, folder: &str) -> ColdResult<Vec<ColdEntry>>;
}

/// Whether a name can be used in every store alike.
pub fn check_name(name: &str) -> ColdResult<()> {
    let bad = |why| Err(ColdError::BadName(name.to_owned(), why));
    if name.len() > NAME_BYTES_MAX {
        return bad("it is too long");
    }
    for part in name.split('/') {
        if part.is_empty() || part == "." || part == ".." {
            return bad("a part of it is empty, . or ..");
        }
        if !part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.=".contains(&b)) {
            return bad("it has other characters than letters, digits, -, _, . and =");
        }
    }
    Ok(())
}

/// Whether a name lies in a folder or in one of its folders; `""` is the folder of everything.
pub fn is_below(folder: &str, name: &str) -> bool {
    folder.is_empty() || name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

const SIM_URL: &str = "memory://cold";

/// A store in memory whose failures are arranged. Clones share it.
#[derive(Clone, Default)]
pub struct SimCold(Arc<Mutex<SimState>>);

#[derive(Default)]
struct SimState {
    files: BTreeMap<String, Bytes>,
    /// Calls that work before the others fail, and how many those are.
    failures: (u64, u64),
    /// A put that fails has put its file all the same.
    answers_get_lost: bool,
    calls: u64,
    reads: u64,
}

impl SimCold {
    /// The next `n` calls find the store unavailable.
    pub fn fail_next(&self, n: u64) {
        let mut s = self.0.lock();
        (s.failures, s.answers_get_lost) = ((0, n), false);
    }

    /// The `n`-th call from now (0: the next) and all later ones fail, until `heal`. If `answers_get_lost`, a put that
    /// fails has put its file all the same, and a delete has deleted it.
    pub fn fail_after(&self, n: u64, answers_get_lost: bool) {
        let mut s = self.0.lock();
        (s.failures, s.answers_get_lost) = ((n, u64::MAX), answers_get_lost);
    }

    pub fn heal(&self) {
        self.0.lock().failures = (0, 0);
    }

    /// Names of all files.
    pub fn names(&self) -> Vec<String> {
        self.0.lock().files.keys().cloned().collect()
    }

    /// The bytes of one file.
    pub fn file(&self, name: &str) -> Option<Bytes> {
        self.0.lock().files.get(name).cloned()
    }

    /// How many calls there were, reads included.
    pub fn calls(&self) -> u64 {
        self.0.lock().calls
    }

    /// Flips a bit of a file in the store; false when it has no such byte.
    pub fn flip_bit(&self, name: &str, byte: usize, bit: u8) -> bool {
        let mut s = self.0.lock();
        let Some(file) = s.files.get_mut(name).filter(|f| byte < f.len()) else {
            return false;
        };
        let mut bytes = file.to_vec();
        bytes[byte] ^= 1 << (bit % 8);
        *file = bytes.into();
        true
    }

    /// How many reads there were.
    pub fn reads(&self) -> u64 {
        self.0.lock().reads
    }

    fn works(&self) -> ColdResult<()> {
        let mut s = self.0.lock();
        s.calls += 1;
        match &mut s.failures {
            (0, 0) => return Ok(()),
            (0, fail) => *fail -= 1,
            (work, _) => {
                *work -= 1;
                return Ok(());
            }
        }
        Err(ColdError::Unavailable {
            store: SIM_URL.to_owned(),
            why: "it was told to fail".to_owned(),
        })
    }

    fn missing(name: &str) -> ColdError {
        ColdError::Missing {
            store: SIM_URL.to_owned(),
            name: name.to_owned(),
        }
    }
}

struct SimColdFile {
    cold: SimCold,
    name: String,
    bytes: u64,
}

impl ReadAt for SimColdFile {
    fn read_at(&self, offset: u64, len: usize) -> DiskResult<Bytes> {
        self.cold.works().map_err(|e| e.into_disk_error("read", &self.name))?;
        let mut s = self.cold.0.lock();
        s.reads += 1;
        let missing = || SimCold::missing(&self.name).into_disk_error("read", &self.name);
        let file = s.files.get(&self.name).ok_or_else(missing)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        match start.checked_add(len) {
            Some(end) if end <= file.len() => Ok(file.slice(start..end)),
            _ => Err(DiskError::new("read", &self.name, io::ErrorKind::UnexpectedEof.into())),
        }
    }
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ColdStore for SimCold {
    fn url(&self) -> &str {
        SIM_URL
    }

    fn put(&self, name: &str, file: &dyn ReadAt) -> ColdResult<ColdRef> {
        check_name(name)?;
        let bytes = file.read_at(0, usize::try_from(file.len()).unwrap_or(usize::MAX))?;
        let works = self.works();
        if works.is_err() && self.0.lock().answers_get_lost {
            self.0.lock().files.insert(name.to_owned(), bytes.clone());
        }
        works?;
        let blake3 = *blake3::hash(&bytes).as_bytes();
        let put = ColdRef {
            name: name.to_owned(),
            bytes: bytes.len() as u64,
            blake3,
        };
        self.0.lock().files.insert(name.to_owned(), bytes);
        Ok(put)
    }

    fn open(&self, file: &ColdRef) -> ColdResult<Arc<dyn ReadAt>> {
        self.works()?;
        let found = self.0.lock().files.get(&file.name).map(|f| f.len() as u64);
        match found {
            None => Err(Self::missing(&file.name)),
            Some(bytes) if bytes != file.bytes => Err(ColdError::Damaged {
                store: SIM_URL.to_owned(),
                name: file.name.clone(),
                why: format!("it has {bytes} bytes instead of {}", file.bytes),
            }),
            Some(bytes) => Ok(Arc::new(SimColdFile {
                cold: self.clone(),
                name: file.name.clone(),
                bytes,
            })),
        }
    }

    fn delete(&self, name: &str) -> ColdResult<()> {
        let works = self.works();
        if works.is_ok() || self.0.lock().answers_get_lost {
            self.0.lock().files.remove(name);
        }
        works
    }

    fn list(&self, folder: &str) -> ColdResult<Vec<ColdEntry>> {
        self.works()?;
        let entry = |(name, file): (&String, &Bytes)| ColdEntry {
            name: name.clone(),
            bytes: file.len() as u64,
        };
        let files = &self.0.lock().files;
        Ok(files
            .iter()
            .filter(|(name, _)| is_below(folder, name))
            .map(entry)
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Disk, SimDisk, disk::write_new_file};

    #[test]
    fn a_name_fits_every_store() {
        for good in ["a", "c0ffee/node-1/shard-2/segment-00ff", "day=2026-11-22/x.parquet"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "/a",
            "a/",
            "a//b",
            "../a",
            "a/./b",
            "a b",
            "ㄱ",
            "a\\b",
            &"x".repeat(513),
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_goes_away_and_comes_back() {
        let (disk, cold) = (SimDisk::new(), SimCold::default());
        write_new_file(&disk, "f", b"0123456789").unwrap();
        let file = disk.open_read("f").unwrap();
        cold.fail_next(1);
        assert!(matches!(
            cold.put("a/f", file.as_ref()),
            Err(ColdError::Unavailable { .. })
        ));
        assert_eq!(cold.list("").unwrap(), []);
        let put = cold.put("a/f", file.as_ref()).unwrap();
        assert_eq!(put.blake3, *blake3::hash(b"0123456789").as_bytes());
        let reader = cold.open(&put).unwrap();
        assert_eq!((reader.len(), &reader.read_at(3, 4).unwrap()[..]), (10, &b"3456"[..]));
        let shorter = ColdRef {
            bytes: 9,
            ..put.clone()
        };
        assert!(matches!(cold.open(&shorter), Err(ColdError::Damaged { .. })));
        cold.delete("a/f").unwrap();
        cold.delete("a/f").unwrap();
        assert!(matches!(cold.open(&put), Err(ColdError::Missing { .. })));
    }
}

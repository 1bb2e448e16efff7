//! Which files make up the durable state, and what that state is. Layout: `FORMAT.md` §3 and §4.
//!
//! Invariants
//! - A manifest is written aside, synced, renamed under a name of its own, and never changed.
//! - Each one names the hash of the one before; the last two stay, with every file they name.

use crate::container::FileRef;
use crate::cursor::Cursor;
use crate::error::{Damage, StorageError};
use crate::retention::Retention;
use crate::segment::SegmentRef;
use hindcast_env::disk::{replace_file, write_new_file};
use hindcast_env::fuzz::sum_fits;
use hindcast_env::{Disk, DiskError};
use hindcast_model::{GroupId, codec};
use serde::{Deserialize, Serialize};

const MAGIC: &[u8; 8] = b"HCMANIF\n";
/// The newest that is read, and of a manifest that names cold files.
pub const VERSION: u16 = 3;
/// Of one that names none, and of side files: the release before reads them too.
const VERSION_WITHOUT_COLD: u16 = 2;
const HASH_BYTES: usize = 32;
const PREFIX_BYTES: usize = 10;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub sequence: u64,
    /// Sequence and BLAKE3 of the manifest before; (0, zeros) for the first.
    pub previous: (u64, [u8; HASH_BYTES]),
    pub group: GroupId,
    pub applied: u64,
    /// No file has this number or a higher one.
    pub next_number: u64,
    /// At `applied`.
    pub retention: Retention,
    pub segments: Vec<SegmentRef>,
    /// The directory's ids up to `applied`, in the order of their files.
    pub series: Vec<FileRef>,
    /// The newest event time of each series.
    pub newest: Option<FileRef>,
    /// The caller's bytes at `applied`; none for none.
    pub aux: Option<FileRef>,
}

/// A sealed file beside the segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Aux,
    Series,
    Newest,
}

impl Side {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Aux => "aux-",
            Self::Series => "series-",
            Self::Newest => "newest-",
        }
    }

    const fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Aux => b"HCAUXIL\n",
            Self::Series => b"HCSERIE\n",
            Self::Newest => b"HCNEWES\n",
        }
    }

    pub fn name(self, number: u64) -> String {
        format!("{}{number:016x}", self.prefix())
    }
}

pub fn name_of(sequence: u64) -> String {
    format!("manifest-{sequence:016x}")
}

/// The number in a name that we gave, if it is one.
pub fn number_in(name: &str, prefix: &str) -> Option<u64> {
    let hex = name.strip_prefix(prefix).filter(|h| h.len() == 16)?;
    u64::from_str_radix(hex, 16).ok()
}

/// Whether a file of the folder is of this crate's making.
pub fn is_ours(name: &str) -> bool {
    ["manifest-", "segment-", "table-", "aux-", "series-", "newest-"]
        .iter()
        .any(|p| name.starts_with(p))
}

/// The number of a file of rows, or of one beside them.
pub fn data_number(name: &str) -> Option<u64> {
    ["segment-", "aux-", "series-", "newest-"]
        .iter()
        .find_map(|p| number_in(name, p))
}

fn damage(path: &str, len: usize, why: &str) -> StorageError {
    Damage {
        file: path.to_owned(),
        from: 0,
        to: len as u64,
        why: why.to_owned(),
    }
    .into()
}

fn seal(magic: &[u8; 8], version: u16, body: &[u8]) -> Vec<u8> {
    let mut out = [magic, &version.to_le_bytes()[..], body].concat();
    let hash = *blake3::hash(&out).as_bytes();
    out.extend_from_slice(&hash);
    out
}

/// The body of a sealed file, verified, and its hash.
fn unseal<'a>(path: &str, magic: &[u8; 8], bytes: &'a [u8]) -> Result<(&'a [u8], [u8; HASH_BYTES]), StorageError> {
    let bad = |why| damage(path, bytes.len(), why);
    let (sealed, hash) = bytes
        .split_last_chunk::<HASH_BYTES>()
        .filter(|(sealed, _)| sealed.len() >= PREFIX_BYTES)
        .ok_or_else(|| bad("the file is cut short"))?;
    if !sum_fits(blake3::hash(sealed).as_bytes() == hash) {
        return Err(bad("the BLAKE3 does not fit"));
    }
    let mut c = Cursor(sealed);
    if c.take(8).map_err(bad)? != magic {
        return Err(bad("another kind of file"));
    }
    let found = u16::from_le_bytes([c.byte().map_err(bad)?, c.byte().map_err(bad)?]);
    if found > VERSION {
        return Err(StorageError::FromTheFuture {
            file: path.to_owned(),
            found,
            known: VERSION,
        });
    }
    Ok((c.0, *hash))
}

impl Manifest {
    pub fn encode(&self) -> Vec<u8> {
        let has_cold = self.cold_names().next().is_some();
        let version = if has_cold { VERSION } else { VERSION_WITHOUT_COLD };
        seal(MAGIC, version, &codec::to_bytes(self))
    }

    /// Names in the cold store of the files that it needs there.
    pub fn cold_names(&self) -> impl Iterator<Item = &str> {
        let cold = self.segments.iter().filter_map(|s| s.cold.as_ref());
        cold.map(|c| &c.name[..])
    }

    /// Writes the manifest in force from now on; its hash.
    pub fn publish(&self, disk: &dyn Disk, dir: &str) -> Result<[u8; HASH_BYTES], DiskError> {
        let bytes = self.encode();
        replace_file(disk, &format!("{dir}/{}", name_of(self.sequence)), &bytes)?;
        Ok(hash_of(&bytes))
    }

    pub fn load(disk: &dyn Disk, dir: &str, sequence: u64) -> Result<(Self, [u8; HASH_BYTES]), StorageError> {
        let path = format!("{dir}/{}", name_of(sequence));
        let bytes = disk.read(&path).map_err(|e| unread(&path, e))?;
        let (body, hash) = unseal(&path, MAGIC, &bytes)?;
        let manifest: Self = codec::from_bytes(body).map_err(|e| damage(&path, bytes.len(), &e.to_string()))?;
        if manifest.sequence != sequence {
            return Err(damage(&path, bytes.len(), "it bears another manifest's name"));
        }
        Ok((manifest, hash))
    }

    pub fn sides_mut(&mut self) -> impl Iterator<Item = (Side, &mut FileRef)> {
        let series = self.series.iter_mut().map(|f| (Side::Series, f));
        let newest = self.newest.iter_mut().map(|f| (Side::Newest, f));
        series.chain(newest).chain(self.aux.iter_mut().map(|f| (Side::Aux, f)))
    }

    /// Names of all files that it needs here, itself included.
    pub fn names(&self) -> impl Iterator<Item = String> {
        let segments = self.segments.iter().map(|s| match s.cold {
            None => format!("segment-{:016x}", s.file.number),
            Some(_) => format!("table-{:016x}", s.file.number),
        });
        let aux = self.aux.iter().map(|f| Side::Aux.name(f.number));
        let newest = self.newest.iter().map(|f| Side::Newest.name(f.number));
        let series = self.series.iter().map(|f| Side::Series.name(f.number));
        let sides = aux.chain(newest).chain(series);
        segments.chain(sides).chain([name_of(self.sequence)])
    }
}

/// The hash that an encoded manifest ends with.
fn hash_of(sealed: &[u8]) -> [u8; HASH_BYTES] {
    let mut hash = [0; HASH_BYTES];
    hash.copy_from_slice(&sealed[sealed.len() - HASH_BYTES..]);
    hash
}

/// Writes bytes as a file of their own, so that a merge need not copy them; none for none.
pub fn write_side(
    disk: &dyn Disk,
    dir: &str,
    side: Side,
    number: u64,
    body: &[u8],
) -> Result<Option<FileRef>, DiskError> {
    if body.is_empty() {
        return Ok(None);
    }
    let bytes = seal(side.magic(), VERSION_WITHOUT_COLD, body);
    write_new_file(disk, &format!("{dir}/{}", side.name(number)), &bytes)?;
    Ok(Some(FileRef {
        number,
        bytes: bytes.len() as u64,
        blake3: hash_of(&bytes),
    }))
}

pub fn read_side(disk: &dyn Disk, dir: &str, side: Side, file: &FileRef) -> Result<Vec<u8>, StorageError> {
    let path = format!("{dir}/{}", side.name(file.number));
    let bytes = disk.read(&path).map_err(|e| match e.is_not_found() {
        true => damage(&path, 0, "the file is missing"),
        false => unread(&path, e),
    })?;
    let (body, hash) = unseal(&path, side.magic(), &bytes)?;
    if hash != file.blake3 {
        return Err(damage(&path, bytes.len(), "another file than the manifest names"));
    }
    Ok(body.to_vec())
}

/// What the medium does not give back is damage with a place; what else fails is the node's own trouble.
fn unread(path: &str, e: DiskError) -> StorageError {
    match e.is_unreadable() {
        true => damage(path, 0, "the disk cannot read it"),
        false => e.into(),
    }
}

/// What is wrong with the body of a side file that verified.
pub fn bad_side(dir: &str, side: Side, file: &FileRef, why: &str) -> StorageError {
    let path = format!("{dir}/{}", side.name(file.number));
    damage(&path, file.bytes as usize, why)
}

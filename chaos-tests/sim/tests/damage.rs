//! Damaged bytes in every kind of file: the node says which file is wrong, or answers as before. It never serves
//! something else, and never panics.

use hindcast_env::{Disk as _, Rng, SeededRng, SimDisk};
use hindcast_sim::{Grown, Plan, grow};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

const FLIPS: u64 = 256;
const CUTS: u64 = 32;
const PAGE: usize = 4096;

/// What is known of a kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A segment of the Raft log; of the last one the end may be missing, as after a power cut.
    Log,
    /// A segment that waits for its next use.
    FreeLog,
    /// Only that it is there is asked.
    Mark,
    MetaSnapshot,
    Manifest,
    Segment,
    Series,
    Auxiliary,
    Newest,
}

/// A kind of file without an entry here ends the test: what it does when it is damaged has to be known.
fn kind_of(path: &str) -> Kind {
    let name = path.rsplit('/').next().unwrap_or(path);
    let begins = |with: &str| name.starts_with(with);
    match path {
        p if p.starts_with("raft/log/") && p.ends_with(".free") => Kind::FreeLog,
        p if p.starts_with("raft/log/") => Kind::Log,
        "raft/begun" => Kind::Mark,
        "meta/meta.snapshot" => Kind::MetaSnapshot,
        _ if begins("manifest-") => Kind::Manifest,
        _ if begins("segment-") => Kind::Segment,
        _ if begins("series-") => Kind::Series,
        _ if begins("aux-") => Kind::Auxiliary,
        _ if begins("newest-") => Kind::Newest,
        _ => panic!("{path} is of a kind that this test does not know"),
    }
}

#[derive(Debug, Default)]
struct Tally {
    same: u32,
    refused: u32,
}

/// What came of opening a damaged disk. `Err`: something was served that is not what was acknowledged, or a panic.
fn look(grown: &Grown, path: &str, what: &str, disk: SimDisk, tally: &mut Tally) -> Result<(), String> {
    let opened = catch_unwind(AssertUnwindSafe(|| grown.open(disk)));
    let report = opened.map_err(|_| format!("{what}: a panic"))?;
    match report.violation {
        None => tally.same += 1,
        // Refused, with the place.
        Some(why) if why.starts_with("P6") => {
            // The file, or the group whose log lacks something now.
            if !why.contains(path) && !why.contains(" group ") {
                return Err(format!("{what}: refused without naming what: {why}"));
            }
            tally.refused += 1;
        }
        Some(why) => return Err(format!("{what}: {why}")),
    }
    Ok(())
}

fn overwrite(disk: &SimDisk, path: &str, at: usize, bytes: &[u8]) {
    let mut file = disk.open_write(path).unwrap();
    file.write_at(at as u64, bytes).unwrap();
    file.sync().unwrap();
}

/// Everything that is tried on the files of one kind.
fn try_all(grown: &Grown, kind: Kind, files: &[(String, usize)]) -> (Tally, Vec<String>) {
    let mut rng = SeededRng::new(kind as u64);
    let (mut tally, mut findings) = (Tally::default(), vec![]);
    let pick = |rng: &mut SeededRng| files[rng.below(files.len() as u64) as usize].clone();
    for _ in 0..FLIPS {
        let (path, len) = pick(&mut rng);
        let (byte, bit) = (rng.below(len as u64) as usize, rng.below(8) as u8);
        let disk = grown.disk.fork();
        disk.flip_bit(&path, byte, bit).unwrap();
        let what = format!("bit {bit} of byte {byte} of {path} ({len} bytes)");
        findings.extend(look(grown, &path, &what, disk, &mut tally).err());
    }
    for _ in 0..CUTS {
        let (path, len) = pick(&mut rng);
        let to = rng.below(len as u64) as usize;
        let disk = grown.disk.fork();
        disk.cut(&path, to).unwrap();
        let what = format!("{path} cut from {len} to {to} bytes");
        findings.extend(look(grown, &path, &what, disk, &mut tally).err());
    }
    for _ in 0..4 {
        let (path, len) = pick(&mut rng);
        let at = rng.below(len.div_ceil(PAGE) as u64) as usize * PAGE;
        let disk = grown.disk.fork();
        overwrite(&disk, &path, at, &vec![0; PAGE.min(len - at)]);
        let what = format!("page at {at} of {path} ({len} bytes) zeroed");
        findings.extend(look(grown, &path, &what, disk, &mut tally).err());
    }
    for (path, len) in files.iter().filter(|(_, len)| *len >= 2 * PAGE).take(4) {
        let pages = (len / PAGE) as u64;
        let (a, b) = (rng.below(pages) as usize * PAGE, rng.below(pages) as usize * PAGE);
        let disk = grown.disk.fork();
        let bytes = disk.read(path).unwrap();
        overwrite(&disk, path, a, &bytes[b..b + PAGE]);
        overwrite(&disk, path, b, &bytes[a..a + PAGE]);
        let what = format!("pages at {a} and {b} of {path} ({len} bytes) swapped");
        findings.extend(look(grown, path, &what, disk, &mut tally).err());
    }
    (tally, findings)
}

#[test]
fn damage_is_named_or_does_no_harm_in_every_kind_of_file() {
    let grown = grow(Plan::quiet(7));
    let mut by_kind: BTreeMap<Kind, Vec<(String, usize)>> = BTreeMap::new();
    for (path, len) in grown.disk.files() {
        if len > 0 {
            by_kind.entry(kind_of(&path)).or_default().push((path, len));
        }
    }
    let kinds: Vec<Kind> = by_kind.keys().copied().collect();
    assert!(kinds.len() >= 8, "the run has made too few kinds of files: {kinds:?}");
    let (todo, done) = (Mutex::new(by_kind), Mutex::new(vec![]));
    let work = || {
        loop {
            let Some((kind, files)) = todo.lock().unwrap().pop_first() else {
                return;
            };
            let (tally, findings) = try_all(&grown, kind, &files);
            println!("{kind:?}, {} files: {tally:?}", files.len());
            done.lock().unwrap().push((kind, tally, findings));
        }
    };
    std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(work))));
    for (kind, tally, findings) in done.into_inner().unwrap() {
        assert!(
            findings.is_empty(),
            "{kind:?}, {} findings:\n{}",
            findings.len(),
            findings.join("\n")
        );
        // Of manifests the one before is taken, and the log brings what came after; a free segment holds nothing.
        let does_no_harm = matches!(kind, Kind::Manifest | Kind::FreeLog | Kind::Mark);
        assert!(
            does_no_harm || tally.refused > 0,
            "{kind:?}: no damage was noticed: {tally:?}"
        );
    }
}

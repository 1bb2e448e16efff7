//! Follows log files. Shell of [`tail`](crate::agent::tail).

use crate::agent::tail::{self, Lines, Place, Seen, Step, step};
use std::fs::{File, Metadata};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Read from one file in one look, so that one loud file does not starve the others.
pub const LOOK_BYTES_MAX: usize = 1024 * 1024;
/// Entries of a folder among which a rotated file is looked for.
const NAMES_MAX: usize = 10_000;
/// The place in a file that is not there: no file has this inode.
const ABSENT: (u64, u64) = (0, 0);

#[derive(Debug)]
struct Open {
    file: File,
    place: Place,
}

#[derive(Debug)]
pub struct Follower {
    pub path: PathBuf,
    open: Option<Open>,
    lines: Lines,
    lines_cut_said: u64,
    failed_before: bool,
}

fn seen(m: &Metadata) -> Seen {
    Seen {
        inode: m.ino(),
        len: m.len(),
    }
}

impl Follower {
    /// Follows from the file's present end; a file that comes later, from its start.
    pub fn from_end(path: &Path) -> Self {
        let open = File::open(path).ok().and_then(|mut file| {
            let inode = file.metadata().ok().filter(Metadata::is_file)?.ino();
            let offset = file.seek(SeekFrom::End(0)).ok()?;
            Some(Open {
                file,
                place: Place { inode, offset },
            })
        });
        Self {
            path: path.to_owned(),
            open,
            lines: Lines::default(),
            lines_cut_said: 0,
            failed_before: false,
        }
    }

    /// Follows from where an earlier agent was. A file that was rotated away meanwhile is looked for beside the path, read to its
    /// end, and the one under the path from its start; one that is not found, became shorter or was not there, is read from its
    /// start.
    pub fn from_place(path: &Path, place: (u64, u64)) -> Self {
        let place = Place {
            inode: place.0,
            offset: place.1,
        };
        let opened = |path: &Path| {
            let mut file = File::open(path).ok()?;
            let metadata = file.metadata().ok().filter(Metadata::is_file)?;
            if metadata.ino() != place.inode || metadata.len() < place.offset {
                return None;
            }
            file.seek(SeekFrom::Start(place.offset)).ok()?;
            Some(Open { file, place })
        };
        let beside = || {
            let dir = std::fs::read_dir(path.parent()?).ok()?;
            let of = path.file_name()?.to_string_lossy();
            let entries = dir.take(NAMES_MAX).flatten();
            // An inode alone is no proof: that of a file that is gone is given to another one.
            let names = entries
                .filter(|e| tail::is_rotated(&of, &e.file_name().to_string_lossy()))
                .filter(|e| e.metadata().is_ok_and(|m| m.ino() == place.inode));
            names.map(|e| e.path()).find_map(|p| opened(&p))
        };
        Self {
            path: path.to_owned(),
            open: opened(path).or_else(beside),
            lines: Lines::default(),
            lines_cut_said: 0,
            failed_before: false,
        }
    }

    /// Up to where lines were told: inode and offset. A file that is not there is to be read from its start when it comes.
    pub fn place(&self) -> (u64, u64) {
        self.open.as_ref().map_or(ABSENT, |open| {
            (open.place.inode, open.place.offset.saturating_sub(self.lines.unended))
        })
    }

    /// New lines since the last look. Blocks for as long as the file's device does.
    pub fn look(&mut self) -> Vec<String> {
        let mut out = vec![];
        match self.try_look(&mut out) {
            Ok(()) => self.failed_before = false,
            Err(e) if !self.failed_before => {
                self.failed_before = true;
                tracing::warn!(file = %self.path.display(), error = %e, "cannot read the log file; trying again later");
            }
            Err(_) => {}
        }
        if self.lines.lines_cut > self.lines_cut_said {
            self.lines_cut_said = self.lines.lines_cut;
            tracing::warn!(file = %self.path.display(), lines_cut = self.lines.lines_cut, "over-long lines were cut");
        }
        out
    }

    fn try_look(&mut self, out: &mut Vec<String>) -> std::io::Result<()> {
        let there = match std::fs::metadata(&self.path) {
            Ok(m) => Some(seen(&m)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        match step(self.open.as_ref().map(|o| o.place), there) {
            Step::Wait | Step::Rest => {}
            Step::Read => _ = self.read(out)?,
            Step::StartOver => {
                tracing::info!(file = %self.path.display(), "the log file was truncated; reading it from its start");
                if let Some(open) = &mut self.open {
                    open.file.seek(SeekFrom::Start(0))?;
                    open.place.offset = 0;
                    self.lines.end(out);
                }
                self.read(out)?;
            }
            Step::Open => {
                self.open()?;
                self.read(out)?;
            }
            Step::FinishThenOpen => {
                // What is left may be more than one look reads: the rest at the next one.
                if self.read(out)? == 0 {
                    self.lines.end(out);
                    self.open()?;
                    self.read(out)?;
                }
            }
            Step::FinishThenClose => {
                if self.read(out)? == 0 {
                    self.lines.end(out);
                    self.open = None;
                }
            }
        }
        Ok(())
    }

    fn open(&mut self) -> std::io::Result<()> {
        self.open = None;
        let file = File::open(&self.path)?;
        // The path may have been rotated since it was looked at: the open file says which one it is.
        let inode = file.metadata()?.ino();
        self.open = Some(Open {
            file,
            place: Place { inode, offset: 0 },
        });
        Ok(())
    }

    fn read(&mut self, out: &mut Vec<String>) -> std::io::Result<usize> {
        let Some(open) = &mut self.open else { return Ok(0) };
        let mut bytes = vec![];
        let n = open.file.by_ref().take(LOOK_BYTES_MAX as u64).read_to_end(&mut bytes)?;
        open.place.offset += n as u64;
        self.lines.feed(&bytes, out);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_was_written_while_nobody_followed_is_read_once_also_after_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.log");
        std::fs::write(&path, "before\n").unwrap();
        let mut f = Follower::from_end(&path);
        std::fs::write(&path, "before\none\nha").unwrap();
        assert_eq!(f.look(), ["one"]);
        let place = f.place();
        assert_eq!(place.1, 11, "the line that has not ended is read again");
        drop(f);
        std::fs::write(&path, "before\none\nhalf\n").unwrap();
        assert_eq!(Follower::from_place(&path, place).look(), ["half"]);
        std::fs::rename(&path, dir.path().join("app.log.1")).unwrap();
        std::fs::write(&path, "new\n").unwrap();
        let mut f = Follower::from_place(&path, place);
        let mut got = f.look();
        got.extend(f.look());
        assert_eq!(got, ["half", "new"]);
        std::fs::remove_file(dir.path().join("app.log.1")).unwrap();
        assert_eq!(Follower::from_place(&path, place).look(), ["new"]);
    }

    #[test]
    fn after_a_restart_a_foreign_or_packed_file_with_the_inode_of_the_log_is_not_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.log");
        std::fs::write(&path, "before\n").unwrap();
        let place = Follower::from_end(&path).place();
        for foreign in ["other.txt", "app.log.1.gz"] {
            let foreign = dir.path().join(foreign);
            std::fs::rename(&path, &foreign).unwrap();
            std::fs::write(&foreign, "before\nforeign\n").unwrap();
            std::fs::write(&path, "new\n").unwrap();
            assert_eq!(Follower::from_place(&path, place).look(), ["new"], "{foreign:?}");
            std::fs::rename(&foreign, &path).unwrap();
        }
    }

    #[test]
    fn a_log_file_that_was_away_when_the_agent_ended_is_read_from_its_start_when_it_is_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.log");
        std::fs::write(&path, "before\n").unwrap();
        let mut f = Follower::from_end(&path);
        std::fs::remove_file(&path).unwrap();
        assert!(f.look().is_empty());
        let place = f.place();
        drop(f);
        std::fs::write(&path, "first\n").unwrap();
        assert_eq!(Follower::from_place(&path, place).look(), ["first"]);
        assert_eq!(Follower::from_place(&path, place).place(), place);
    }

    #[test]
    fn a_followed_file_may_grow_rotate_shrink_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.log");
        let append = |path: &Path, text: &str| {
            let mut f = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .unwrap();
            f.write_all(text.as_bytes()).unwrap();
        };
        append(&path, "before\n");
        let mut f = Follower::from_end(&path);
        assert!(f.look().is_empty());
        append(&path, "one\ntw");
        assert_eq!(f.look(), ["one"]);
        append(&path, "o\n");
        assert_eq!(f.look(), ["two"]);

        append(&path, "last of old\n");
        std::fs::rename(&path, dir.path().join("app.log.1")).unwrap();
        append(&path, "first of new\n");
        let mut got = f.look();
        got.extend(f.look());
        assert_eq!(got, ["last of old", "first of new"]);

        std::fs::write(&path, "x\n").unwrap();
        assert_eq!(f.look(), ["x"]);

        std::fs::remove_file(&path).unwrap();
        assert!(f.look().is_empty());
        append(&path, "again\n");
        assert_eq!(f.look(), ["again"]);
    }
}

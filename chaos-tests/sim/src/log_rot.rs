//! Damage to the Raft log of a node that is down, and whether the promises can be kept after it.
//!
//! Damage before the end of a log names itself: the node sets the log aside, and counts for nothing until it is rebuilt. A
//! majority of other copies is enough then. What is lost at the very end looks like a torn write: nobody can tell that it was
//! confirmed. Such damage is made only where all that it takes is on a majority of the others, and no vote is in it. The node
//! finds out by what it applied, by its commit index, or by the word that its leader has of it; or it is given the entries again.

use crate::node::log_config;
use crate::plan::Plan;
use hindcast_env::{Rng, SimDisk};
use hindcast_model::GroupId;
use hindcast_raft::log::{HardState, LogError, LogStore};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const LOG_DIR: &str = "raft/log";
/// The last record of a log begins about so far before its end.
const TAIL_BYTES: u64 = 120;
const ZEROED_BYTES_MAX: u64 = 600;

#[derive(Clone, Debug)]
pub enum Rot {
    Flip { path: String, byte: usize, bit: u8 },
    Zeros { path: String, from: usize, to: usize },
    Gone { path: String },
}

impl Rot {
    /// Somewhere in the log, often at its end. `None`: there is no log.
    pub fn draw(disk: &SimDisk, rng: &mut dyn Rng) -> Option<Self> {
        let mut segments = disk.files();
        segments.retain(|(path, _)| path.starts_with(LOG_DIR) && path.ends_with(".log"));
        let last = segments.len().checked_sub(1)?;
        let is_at_end = rng.below(2) == 0;
        let at = if is_at_end {
            last
        } else {
            rng.below(segments.len() as u64) as usize
        };
        let (path, _) = segments.swap_remove(at);
        if rng.below(6) == 0 {
            return Some(Self::Gone { path });
        }
        let bytes = hindcast_env::Disk::read(disk, &path).ok()?;
        // Segments are written with zeros first.
        let used = bytes.iter().rposition(|b| *b != 0)? + 1;
        let byte = match is_at_end {
            true => used - 1 - rng.below(TAIL_BYTES.min(used as u64)) as usize,
            false => rng.below(used as u64) as usize,
        };
        Some(match rng.below(2) {
            0 => Self::Flip {
                path,
                byte,
                bit: rng.below(8) as u8,
            },
            _ => {
                let to = used.min(byte + 1 + rng.below(ZEROED_BYTES_MAX) as usize);
                Self::Zeros { path, from: byte, to }
            }
        })
    }

    pub fn befall(&self, disk: &SimDisk) {
        let done = match self {
            Self::Flip { path, byte, bit } => disk.flip_bit(path, *byte, *bit),
            Self::Zeros { path, from, to } => disk.zero(path, *from..*to),
            Self::Gone { path } => disk.lose(path),
        };
        done.expect("the file is there");
    }
}

/// What a log says of a group.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    hard: HardState,
    first: u64,
    /// Of the entry before `first`, which a snapshot or the machine's files stand for.
    start_term: u64,
    /// Of the entries from `first` on.
    terms: Vec<u64>,
    /// Index and term of the snapshot whose files may be in force while the log does not begin there yet.
    announced: Option<(u64, u64)>,
}

impl Said {
    pub fn last(&self) -> u64 {
        (self.first + self.terms.len() as u64).saturating_sub(1)
    }

    /// The files that were announced did not take force: nobody counts on them yet.
    pub fn forget_announced(&mut self) {
        self.announced = None;
    }

    pub fn announced(&self) -> Option<u64> {
        self.announced.map(|(index, _)| index)
    }

    /// Up to where the node may have what others count on.
    pub fn known(&self) -> u64 {
        self.last().max(self.announced.map_or(0, |(index, _)| index))
    }

    fn term(&self, index: u64) -> Option<u64> {
        let at = index.checked_sub(self.first)?;
        self.terms.get(at as usize).copied()
    }

    fn has(&self, index: u64, term: u64) -> bool {
        // What was cut off was applied and is in the machine's files.
        index < self.first || self.term(index) == Some(term)
    }
}

pub type Log = BTreeMap<GroupId, Said>;

/// What a node that starts from this disk finds in its log; the disk is written to.
pub fn read(disk: SimDisk, plan: &Plan) -> Result<Log, LogError> {
    let mut store = LogStore::open(Arc::new(disk), LOG_DIR, log_config(plan))?;
    let mut log = Log::new();
    for group in store.groups() {
        let recovered = store.recovered(group);
        let hard = recovered.hard;
        let announced = recovered.announced.as_ref().map(|s| (s.at.index, s.at.term));
        let view = store.view(group);
        let view = view.lock();
        let first = view.first_index();
        let terms = (first..=view.last_index()).map(|i| view.term(i).unwrap_or(0)).collect();
        let start_term = view.term(first - 1).unwrap_or(0);
        let said = Said {
            hard,
            first,
            start_term,
            terms,
            announced,
        };
        log.insert(group, said);
    }
    Ok(log)
}

/// What damage has taken from a log, given how it reads before and after.
#[derive(Debug)]
pub enum Taken {
    Nothing,
    /// The node says so itself.
    All,
    /// Entries at the ends of groups.
    Entries(Vec<(GroupId, u64, u64)>),
    /// A term or a vote: it might be given again, to another one.
    Vote,
}

pub fn taken(before: &Log, after: &Result<Log, LogError>) -> Taken {
    // A node without any log knows that it had one.
    let Some(after) = after.as_ref().ok().filter(|log| !log.is_empty()) else {
        return Taken::All;
    };
    let mut entries = vec![];
    for (group, was) in before {
        let is = after.get(group).cloned().unwrap_or_default();
        if (is.hard.term, is.hard.vote) != (was.hard.term, was.hard.vote) {
            return Taken::Vote;
        }
        let lost = (was.first..).zip(&was.terms).filter(|(i, t)| !is.has(*i, **t));
        entries.extend(lost.map(|(index, term)| (*group, index, *term)));
        if is.last() + 1 < was.first {
            // With the record of where the log begins anew went all that it stands for.
            entries.push((*group, was.first - 1, was.start_term));
        }
        if let Some((index, term)) = was.announced.filter(|_| is.announced != was.announced)
            && !is.has(index, term)
        {
            entries.push((*group, index, term));
        }
    }
    match entries.is_empty() {
        true => Taken::Nothing,
        false => Taken::Entries(entries),
    }
}

/// Whether a log holds an entry.
pub fn holds(log: &Log, group: GroupId, index: u64, term: u64) -> bool {
    log.get(&group).is_some_and(|said| said.has(index, term))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_env::SeededRng;
    use hindcast_raft::log::LogWrite;
    use raft::eraftpb::Entry;

    const LAST: u64 = 40;

    /// A seed called a node's refusal its own fault: zeros had taken the record with which a snapshot begins the log anew.
    #[test]
    fn a_new_beginning_that_is_lost_is_a_loss() {
        let said = |first, terms: &[u64]| Said {
            first,
            start_term: 2,
            terms: terms.to_vec(),
            ..Said::default()
        };
        let log = |said: Said| Log::from([(GroupId(1), said)]);
        let lost = |was, is| match taken(&log(was), &Ok(log(is))) {
            Taken::Entries(entries) => entries,
            _ => vec![],
        };
        assert_eq!(lost(said(62, &[]), said(1, &[2; 49])), [(GroupId(1), 61, 2)]);
        assert!(
            lost(said(62, &[]), said(50, &[2; 12])).is_empty(),
            "it has what the beginning stands for"
        );
    }

    /// A seed called a node's refusal its own fault: a bit had taken the word that a snapshot's files take force, and a power cut
    /// the record with which the log begins anew after it.
    #[test]
    fn an_announcement_that_is_lost_is_a_loss() {
        let said = |announced| Said {
            first: 1,
            announced,
            ..Said::default()
        };
        let log = |said: Said| Log::from([(GroupId(1), said)]);
        let announced = said(Some((83, 2)));
        assert_eq!(announced.known(), 83);
        match taken(&log(announced.clone()), &Ok(log(said(None)))) {
            Taken::Entries(entries) => assert_eq!(entries, [(GroupId(1), 83, 2)]),
            other => panic!("{other:?}"),
        }
        let nothing = taken(&log(announced.clone()), &Ok(log(announced)));
        assert!(matches!(nothing, Taken::Nothing), "{nothing:?}");
    }

    /// Rounds of two entries each, all of them synced: of the last one nothing says that it was.
    fn written(plan: &Plan) -> SimDisk {
        let disk = SimDisk::new();
        let mut store = LogStore::open(Arc::new(disk.clone()), LOG_DIR, log_config(plan)).unwrap();
        let hard = HardState {
            term: 1,
            vote: 1,
            commit: 0,
        };
        store.write(GroupId(1), LogWrite::HardState(hard)).unwrap();
        for round in 0..LAST / 2 {
            let entry = |index| Entry {
                index,
                term: 1,
                data: vec![7; 40].into(),
                ..Entry::default()
            };
            let entries = vec![entry(2 * round + 1), entry(2 * round + 2)];
            store
                .write(GroupId(1), LogWrite::Entries { version: 0, entries })
                .unwrap();
            store.commit(true).unwrap();
        }
        disk
    }

    #[test]
    fn damage_takes_the_whole_log_or_its_end() {
        let plan = Plan::quiet(7);
        let whole = written(&plan);
        let before = read(whole.fork(), &plan).unwrap();
        assert_eq!(before[&GroupId(1)].last(), LAST);
        let rng = &mut SeededRng::new(1);
        let (mut all, mut ends) = (0, 0);
        for _ in 0..200 {
            let rot = Rot::draw(&whole, rng).unwrap();
            let disk = whole.fork();
            rot.befall(&disk);
            match taken(&before, &read(disk, &plan)) {
                Taken::All => all += 1,
                Taken::Entries(entries) => {
                    ends += 1;
                    let lost: Vec<u64> = entries.iter().map(|e| e.1).collect();
                    assert_eq!(lost, (lost[0]..=LAST).collect::<Vec<_>>(), "{rot:?}");
                }
                // Of the zeros between two records.
                Taken::Nothing => {}
                Taken::Vote => panic!("{rot:?} took a vote that was synced long before"),
            }
        }
        assert!(all > 50 && ends > 20, "{all} {ends}");
    }
}

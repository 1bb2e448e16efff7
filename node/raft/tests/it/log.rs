//! The log store against a simulated disk: what is confirmed is never lost, torn tails are cut, damage is named.

#![allow(clippy::disallowed_methods, reason = "golden files lie in the source tree")]

use hindcast_env::{Disk, Rng, SeededRng, SimDisk};
use hindcast_model::{GroupId, NodeId};
use hindcast_raft::log::{HardState, LogConfig, LogError, LogStore, LogWrite, SnapshotPoint};
use hindcast_raft::log_start::OpenedLog;
use hindcast_raft::log_view::{Point, SharedView};
use proptest::prelude::*;
use raft::eraftpb::Entry;
use std::collections::BTreeMap;
use std::sync::Arc;

const GROUPS: u64 = 3;

fn small() -> LogConfig {
    LogConfig {
        segment_bytes_max: 4 << 10,
        prewrite_bytes: 1 << 10,
        free_segments_max: 2,
        segments_max: 4,
        cache_bytes_max: 1 << 10,
    }
}

fn open(disk: &SimDisk) -> Result<LogStore, LogError> {
    LogStore::open(Arc::new(disk.clone()), "log", small())
}

fn entry(index: u64, term: u64, fill: u8, len: usize) -> Entry {
    Entry {
        index,
        term,
        data: vec![fill; len].into(),
        context: vec![7; 16].into(),
        ..Entry::default()
    }
}

fn append(store: &mut LogStore, view: &SharedView, group: u64, entries: Vec<Entry>) {
    let version = view.lock().append(&entries);
    store
        .write(GroupId(group), LogWrite::Entries { version, entries })
        .unwrap();
}

fn all(view: &SharedView) -> Vec<(u64, u64, Vec<u8>)> {
    let view = view.lock();
    let entries = view
        .entries(view.first_index(), view.last_index() + 1, u64::MAX)
        .unwrap();
    entries.iter().map(|e| (e.index, e.term, e.data.to_vec())).collect()
}

#[test]
fn entries_that_nobody_waits_for_are_read_from_the_file_and_unwritten_ones_stay() {
    let disk = SimDisk::new();
    let mut store = open(&disk).unwrap();
    let view = store.view(GroupId(1));
    append(
        &mut store,
        &view,
        1,
        (1..=6).map(|i| entry(i, 1, i as u8, 40)).collect(),
    );
    view.lock().release(3);
    store.commit(true).unwrap();
    append(
        &mut store,
        &view,
        1,
        (7..=9).map(|i| entry(i, 1, i as u8, 40)).collect(),
    );
    // More than there is; the last three are nowhere but in memory.
    view.lock().release(99);
    let expected: Vec<_> = (1..=9).map(|i| (i, 1, vec![i as u8; 40])).collect();
    assert_eq!(all(&view), expected);
    store.commit(true).unwrap();
    view.lock().release(9);
    view.lock().release(4);
    assert_eq!(all(&view), expected);
}

/// What a group's log must hold: the naive form.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    truncated: u64,
    entries: BTreeMap<u64, (u64, u8, usize)>,
    hard: HardState,
}

impl Model {
    fn last(&self) -> u64 {
        self.entries.keys().next_back().copied().unwrap_or(self.truncated)
    }
    fn expect(&self) -> Vec<(u64, u64, Vec<u8>)> {
        self.entries
            .iter()
            .map(|(i, (term, fill, len))| (*i, *term, vec![*fill; *len]))
            .collect()
    }
}

#[derive(Clone, Debug)]
enum Op {
    Append {
        group: u64,
        back: u64,
        count: u64,
        len: usize,
    },
    Vote {
        group: u64,
    },
    Truncate {
        group: u64,
        keep: u64,
    },
    Reset {
        group: u64,
        ahead: u64,
    },
    Commit {
        sync: bool,
    },
    Crash {
        seed: u64,
    },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let group = 0..GROUPS;
    let op = prop_oneof![
        8 => (group.clone(), 0..4u64, 1..6u64, 0..700usize)
            .prop_map(|(group, back, count, len)| Op::Append { group, back, count, len }),
        2 => group.clone().prop_map(|group| Op::Vote { group }),
        3 => (group.clone(), 0..20u64).prop_map(|(group, keep)| Op::Truncate { group, keep }),
        1 => (group, 1..50u64).prop_map(|(group, ahead)| Op::Reset { group, ahead }),
        6 => any::<bool>().prop_map(|sync| Op::Commit { sync }),
        1 => any::<u64>().prop_map(|seed| Op::Crash { seed }),
    ];
    prop::collection::vec(op, 1..120)
}

struct Run {
    disk: SimDisk,
    store: LogStore,
    views: Vec<SharedView>,
    now: Vec<Model>,
    /// As of the last synced commit.
    safe: Vec<Model>,
    /// Every state since then, in order: a crash may keep a part of them.
    since: Vec<Vec<Model>>,
    term: u64,
}

impl Run {
    fn new() -> Self {
        let disk = SimDisk::new();
        let mut store = open(&disk).unwrap();
        let views = (0..GROUPS).map(|g| store.view(GroupId(g))).collect();
        let models = vec![Model::default(); GROUPS as usize];
        Self {
            disk,
            store,
            views,
            now: models.clone(),
            safe: models,
            since: vec![vec![]; GROUPS as usize],
            term: 1,
        }
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Append {
                group,
                back,
                count,
                len,
            } => {
                let g = *group as usize;
                let model = &mut self.now[g];
                let first = (model.last() + 1).saturating_sub(*back).max(model.truncated + 1);
                self.term += u64::from(*back > 0);
                let fill = (first * 31 + self.term) as u8;
                model.entries.split_off(&first);
                let new: Vec<_> = (first..first + count)
                    .map(|i| entry(i, self.term, fill, *len))
                    .collect();
                for e in &new {
                    self.since[g].push(model.clone());
                    model.entries.insert(e.index, (e.term, fill, *len));
                }
                append(&mut self.store, &self.views[g], *group, new);
            }
            Op::Vote { group } => {
                self.term += 1;
                let hard = HardState {
                    term: self.term,
                    vote: 2,
                    commit: self.now[*group as usize].truncated,
                };
                self.now[*group as usize].hard = hard;
                self.store.write(GroupId(*group), LogWrite::HardState(hard)).unwrap();
            }
            Op::Truncate { group, keep } => {
                let model = &mut self.now[*group as usize];
                let to = model.last().saturating_sub(*keep);
                if let Some(point) = self.views[*group as usize].lock().truncate(to) {
                    model.entries = model.entries.split_off(&(to + 1));
                    model.truncated = to;
                    self.store.write(GroupId(*group), LogWrite::Truncate(point)).unwrap();
                }
            }
            Op::Reset { group, ahead } => {
                let model = &mut self.now[*group as usize];
                let at = Point {
                    index: model.last() + ahead,
                    term: self.term,
                };
                model.entries.clear();
                model.truncated = at.index;
                self.views[*group as usize].lock().reset(at);
                let point = SnapshotPoint {
                    at,
                    conf: b"voters".as_slice().into(),
                };
                self.store.write(GroupId(*group), LogWrite::Reset(point)).unwrap();
            }
            Op::Commit { sync } => {
                self.store.commit(*sync).unwrap();
                if *sync {
                    self.safe.clone_from(&self.now);
                    self.since.iter_mut().for_each(Vec::clear);
                }
                self.store.reclaim().unwrap();
            }
            Op::Crash { seed } => return self.crash(*seed),
        }
        for (since, now) in self.since.iter_mut().zip(&self.now) {
            since.push(now.clone());
        }
        for (view, model) in self.views.iter().zip(&self.now) {
            assert_eq!(all(view), model.expect(), "before any crash");
        }
    }

    fn crash(&mut self, seed: u64) {
        self.disk.crash(&mut SeededRng::new(seed));
        self.store = open(&self.disk).expect("a crash is no damage");
        self.views = (0..GROUPS).map(|g| self.store.view(GroupId(g))).collect();
        for g in 0..GROUPS as usize {
            let view = self.views[g].lock();
            let truncated = view.truncated().index;
            drop(view);
            let hard = self.store.recovered(GroupId(g as u64)).hard;
            let got = all(&self.views[g]);
            // One of the states since the last sync, in full: never less than that sync, never a mixture.
            let possible = std::iter::once(&self.safe[g]).chain(&self.since[g]);
            let mut found = possible.filter(|m| m.expect() == got && m.truncated == truncated && m.hard == hard);
            let Some(found) = found.next_back().cloned() else {
                panic!(
                    "group {g}: {} entries after {truncated}, {hard:?}; safe was {:?}",
                    got.len(),
                    self.safe[g]
                );
            };
            self.now[g] = found;
        }
        self.safe.clone_from(&self.now);
        self.since.iter_mut().for_each(Vec::clear);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn confirmed_entries_survive_any_crash(ops in ops(), seed in any::<u64>()) {
        let mut run = Run::new();
        for op in &ops {
            run.step(op);
        }
        run.crash(seed);
        // And once more: what was recovered is itself safe.
        run.crash(seed.wrapping_add(1));
    }
}

fn filled(rounds: u64) -> SimDisk {
    let disk = SimDisk::new();
    let mut store = open(&disk).unwrap();
    let view = store.view(GroupId(1));
    for index in 1..=rounds {
        append(&mut store, &view, 1, vec![entry(index, 1, index as u8, 300)]);
        store.commit(true).unwrap();
    }
    disk
}

fn segments(disk: &SimDisk) -> Vec<String> {
    let names = disk.list("log").unwrap();
    names
        .into_iter()
        .filter(|n| n.ends_with(".log"))
        .map(|n| format!("log/{n}"))
        .collect()
}

#[test]
fn a_flipped_bit_in_synced_records_is_named_never_cut() {
    let mut rng = SeededRng::new(1);
    let (mut named, mut cut) = (0, 0);
    for _ in 0..300 {
        let disk = filled(40);
        let segments = segments(&disk);
        assert!(segments.len() >= 3);
        let path = &segments[rng.below(segments.len() as u64) as usize];
        let byte = rng.below(disk.read(path).unwrap().len() as u64) as usize;
        disk.flip_bit(path, byte, rng.below(8) as u8).unwrap();
        match open(&disk) {
            Err(LogError::Damaged { path: at, .. }) => {
                assert_eq!(&at, path);
                named += 1;
            }
            Err(e) => panic!("{e}"),
            Ok(mut store) => {
                // Padding, unused space, or the very last round, of which nobody can know that it was confirmed.
                let last = store.view(GroupId(1)).lock().last_index();
                assert!(last >= 39, "only {last} entries are left after byte {byte} of {path}");
                cut += u64::from(last == 39);
            }
        }
    }
    assert!(named > 200 && cut < 30, "{named} named, {cut} cut");
}

#[test]
fn remains_of_a_torn_round_never_come_back() {
    let disk = SimDisk::new();
    let mut store = open(&disk).unwrap();
    let view = store.view(GroupId(1));
    append(&mut store, &view, 1, vec![entry(1, 1, 1, 300)]);
    store.commit(true).unwrap();
    // One round of two entries, of which the power cut leaves the second alone.
    append(&mut store, &view, 1, vec![entry(2, 1, 2, 300), entry(3, 1, 3, 300)]);
    store.commit(true).unwrap();
    let path = segments(&disk).pop().unwrap();
    let bytes = disk.read(&path).unwrap();
    let second = bytes.windows(300).position(|w| w == [2; 300]).unwrap();
    disk.flip_bit(&path, second, 0).unwrap();
    let mut store = open(&disk).unwrap();
    let view = store.view(GroupId(1));
    assert_eq!(view.lock().last_index(), 1);
    // What is written now ends exactly where the old third entry begins (254: less the row that open writes).
    append(&mut store, &view, 1, vec![entry(2, 2, 9, 254)]);
    store.commit(true).unwrap();
    drop(store);
    let mut store = open(&disk).unwrap();
    assert_eq!(all(&store.view(GroupId(1))).last(), Some(&(2, 2, vec![9; 254])));
}

/// A killed process leaves a full segment whose end is in the kernel's memory alone; then the power fails.
#[test]
fn a_node_killed_between_two_segments_opens_again_after_a_power_cut() {
    for syncs in 1..40 {
        for seed in 0..6 {
            let disk = SimDisk::new();
            let mut store = open(&disk).unwrap();
            let view = store.view(GroupId(1));
            disk.fail_sync_after(syncs);
            for index in 1.. {
                let entries = vec![entry(index, 1, index as u8, 700)];
                let version = view.lock().append(&entries);
                let written = store.write(GroupId(1), LogWrite::Entries { version, entries });
                if written.and_then(|()| store.commit(true)).is_err() {
                    break;
                }
            }
            drop((store, view));
            disk.heal();
            let mut store = open(&disk).unwrap();
            let view = store.view(GroupId(1));
            let next = view.lock().last_index() + 1;
            append(&mut store, &view, 1, vec![entry(next, 1, 0, 10)]);
            store.commit(true).unwrap();
            drop((store, view));
            disk.crash(&mut SeededRng::new(seed));
            let mut store = open(&disk).unwrap_or_else(|e| panic!("after {syncs} syncs, seed {seed}: {e}"));
            assert_eq!(store.view(GroupId(1)).lock().last_index(), next);
        }
    }
}

#[test]
fn the_error_says_where_the_damage_is_and_what_to_do() {
    let disk = filled(40);
    let path = segments(&disk)[0].clone();
    disk.flip_bit(&path, 1000, 3).unwrap();
    let text = open(&disk).err().expect("damage is found").to_string();
    assert!(
        text.contains("log/0000000000000001.log") && text.contains("checksum"),
        "{text}"
    );
    assert!(text.contains("restore this node"), "{text}");
}

#[test]
fn a_missing_segment_is_damage() {
    let disk = filled(40);
    disk.remove(&segments(&disk)[1]).unwrap();
    assert!(matches!(open(&disk), Err(LogError::Damaged { .. })));
    let disk = filled(40);
    disk.remove(&segments(&disk)[0]).unwrap();
    assert!(matches!(open(&disk), Err(LogError::Gap { index: 1, .. })));
}

/// The newest segment was gone, a freed one was used again under its own number, and after the next power cut what it had held was
/// taken for records that somebody lost: the node called its log damaged.
#[test]
fn a_log_of_which_only_freed_segments_are_left_was_taken_away_and_their_numbers_are_not_given_again() {
    let disk = SimDisk::new();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let opened = || OpenedLog::open(&shared, "raft", &small(), true).unwrap();
    let names = |suffix: &str| -> Vec<String> {
        let all = disk.list("raft/log").unwrap().into_iter();
        all.filter_map(|n| Some(n.strip_suffix(suffix)?.to_owned())).collect()
    };
    let mut store = opened().store;
    let view = store.view(GroupId(1));
    let mut index = 0;
    while names(".log").len() < 2 {
        index += 1;
        append(&mut store, &view, 1, vec![entry(index, 1, 7, 100)]);
        store.commit(true).unwrap();
    }
    store
        .write(GroupId(1), LogWrite::Truncate(Point { index, term: 1 }))
        .unwrap();
    store.commit(true).unwrap();
    store.reclaim().unwrap();
    drop(store);
    let freed = names(".free");
    assert_eq!((freed.len(), names(".log").len()), (1, 1));
    disk.remove(&format!("raft/log/{}.log", names(".log")[0])).unwrap();
    disk.sync_dir("raft/log").unwrap();
    assert!(
        opened().loss_of(GroupId(1)).is_some(),
        "what was voted is gone, and nothing says so"
    );
    assert_ne!(names(".log"), freed, "the number is given a second time");
}

/// A node was killed twice before its newest segment held anything: what was to be that segment lay free under its number, a gap was left
/// in its place, and the start after next called the log damaged.
#[test]
fn a_segment_that_was_never_used_leaves_no_gap() {
    let disk = filled(40);
    let before = segments(&disk);
    let last = before.last().unwrap();
    disk.rename(last, &last.replace(".log", ".free")).unwrap();
    disk.sync_dir("log").unwrap();
    for _ in 0..2 {
        drop(open(&disk).unwrap());
    }
    assert_eq!(segments(&disk), before);
}

#[test]
fn one_sync_serves_all_groups_and_segments_are_used_again() {
    let disk = SimDisk::new();
    let mut store = open(&disk).unwrap();
    let views: Vec<_> = (0..GROUPS).map(|g| store.view(GroupId(g))).collect();
    let before = disk.syncs();
    for (g, view) in views.iter().enumerate() {
        append(&mut store, view, g as u64, vec![entry(1, 1, 1, 10)]);
    }
    store.commit(true).unwrap();
    assert_eq!(disk.syncs() - before, 1);
    for index in 2..400 {
        for (g, view) in views.iter().enumerate() {
            append(&mut store, view, g as u64, vec![entry(index, 1, 1, 100)]);
            if let Some(point) = view.lock().truncate(index - 1) {
                store.write(GroupId(g as u64), LogWrite::Truncate(point)).unwrap();
            }
        }
        store.commit(true).unwrap();
        store.reclaim().unwrap();
    }
    let files = disk.list("log").unwrap().len();
    assert!(files <= 4, "{files} files for three live entries");
}

#[test]
fn a_group_that_lags_does_not_pin_all_segments() {
    let disk = SimDisk::new();
    let mut store = open(&disk).unwrap();
    let (lagging, busy) = (store.view(GroupId(0)), store.view(GroupId(1)));
    append(
        &mut store,
        &lagging,
        0,
        (1..=5).map(|i| entry(i, 1, i as u8, 50)).collect(),
    );
    for index in 1..600 {
        append(&mut store, &busy, 1, vec![entry(index, 1, 9, 200)]);
        if let Some(point) = busy.lock().truncate(index - 1) {
            store.write(GroupId(1), LogWrite::Truncate(point)).unwrap();
        }
        store.commit(true).unwrap();
        store.reclaim().unwrap();
    }
    assert!(store.segments() <= 6, "{} segments", store.segments());
    let expect: Vec<_> = (1..=5).map(|i| (i, 1, vec![i as u8; 50])).collect();
    assert_eq!(all(&lagging), expect);
    drop(store);
    disk.crash(&mut SeededRng::new(3));
    assert_eq!(all(&open(&disk).unwrap().view(GroupId(0))), expect);
}

#[test]
fn the_golden_segment_still_reads_and_is_still_written_the_same() {
    let disk = SimDisk::new();
    let mut store = open(&disk).unwrap();
    let view = store.view(GroupId(4));
    let conf: bytes::Bytes = b"voters".as_slice().into();
    store
        .write(
            GroupId(4),
            LogWrite::Conf(SnapshotPoint {
                at: Point::default(),
                conf,
            }),
        )
        .unwrap();
    append(
        &mut store,
        &view,
        4,
        (1..=3).map(|i| entry(i, 2, i as u8, 20)).collect(),
    );
    let hard = HardState {
        term: 2,
        vote: NodeId(3).0,
        commit: 2,
    };
    store.write(GroupId(4), LogWrite::HardState(hard)).unwrap();
    store
        .write(GroupId(4), LogWrite::Truncate(Point { index: 1, term: 2 }))
        .unwrap();
    store.commit(true).unwrap();
    let written = disk.read("log/0000000000000001.log").unwrap();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/log-v1.segment");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &written).unwrap();
    }
    let golden = std::fs::read(path).unwrap();
    assert_eq!(
        written, golden,
        "the layout changed: give it a new version and a golden file of its own"
    );
    let old = SimDisk::new();
    hindcast_env::disk::write_new_file(&old, "log/0000000000000001.log", &golden).unwrap();
    let mut store = open(&old).unwrap();
    let recovered = store.recovered(GroupId(4));
    assert_eq!(
        (recovered.hard, recovered.conf.as_deref()),
        (hard, Some(b"voters".as_slice()))
    );
    let entries = all(&store.view(GroupId(4)));
    assert_eq!(entries, [(2, 2, vec![2; 20]), (3, 2, vec![3; 20])]);
}

//! Whatever is written, pinned, cut, let go, flushed, merged, crashed or moved: the shard answers as the model does.

use crate::cold::{AFTER, cold_config};
use crate::naive::{Entry, INSTANTS, Naive, compare, give, instant, label_sets, owners, tenants};
use hindcast_env::{Disk, SeededRng, SimCold, SimDisk};
use hindcast_model::{Domain, LogLine, Sample, SeriesBlock, StreamBlock, TimestampNs};
use hindcast_storage::{
    ColdDone, Effort, Floor, FlushDone, FlushWork, MergeDone, MergeWork, Merged, Pin, ReadError, Shard,
};
use proptest::prelude::*;
use std::sync::Arc;

#[derive(Clone, Debug)]
enum Step {
    Entry(Entry),
    /// A cut that was made, by its place among all made.
    DropCut(usize),
    Pin(Pin, Vec<usize>),
    Flush,
    FlushFails(u64),
    Compact,
    /// Work that goes on while the other steps are made: begun, done or ended, whichever comes next.
    FlushBeside,
    MergeBeside,
    Reopen,
    Crash(u64),
    /// To a peer, which goes on in our place.
    Move,
    /// Old files to the cold store, in so many jobs; the last one's answer comes later.
    Cold(i64, usize),
    /// As many calls of the cold store work, and the rest fail; perhaps only their answers.
    ColdFails(u64, bool),
    Compare(i64, i64),
}

fn at() -> impl Strategy<Value = TimestampNs> {
    (0..INSTANTS).prop_map(instant)
}

fn value() -> impl Strategy<Value = f64> {
    prop_oneof![
        (0u32..20).prop_map(f64::from),
        any::<u64>().prop_map(f64::from_bits),
        Just(-0.0),
    ]
}

fn line() -> impl Strategy<Value = LogLine> {
    (at(), "[xyz]{0,3}", prop::collection::vec(("[a-b]", "[0-9]"), 0..2)).prop_map(|(at, line, metadata)| LogLine {
        at,
        line: line.into(),
        metadata,
    })
}

fn write() -> impl Strategy<Value = Entry> {
    let samples = prop::collection::vec((at(), value()).prop_map(|(at, value)| Sample { at, value }), 0..6);
    let series = (0usize..3, 0usize..3, samples).prop_map(|(l, o, samples)| SeriesBlock {
        labels: label_sets()[l].clone(),
        owner: owners()[o],
        samples,
    });
    let stream = (0usize..3, 0usize..3, prop::collection::vec(line(), 0..5)).prop_map(|(l, o, lines)| StreamBlock {
        labels: label_sets()[l].clone(),
        owner: owners()[o],
        lines,
    });
    let blocks = (prop::collection::vec(series, 0..4), prop::collection::vec(stream, 0..3));
    (0usize..2, blocks).prop_map(|(tenant, (series, streams))| Entry::Write {
        tenant,
        series,
        streams,
    })
}

fn pin() -> impl Strategy<Value = Step> {
    let owner = prop::option::of(1usize..3);
    let named = (
        "[pq]",
        0usize..2,
        at(),
        at(),
        owner,
        prop::collection::vec(0usize..4, 0..2),
    );
    named.prop_map(|(id, tenant, a, b, owner, cuts)| {
        let pin = Pin {
            id,
            tenant: tenants()[tenant].clone(),
            from: a.min(b),
            to: a.max(b),
            owners: owner.map(|o| owners()[o].id().into_iter().collect()),
            cuts: vec![],
        };
        Step::Pin(pin, cuts)
    })
}

fn floors() -> impl Strategy<Value = Entry> {
    let domain = prop::option::of(prop_oneof![Just(Domain::Sms), Just(Domain::Dbms)]);
    let floor = (prop::option::of(0usize..2), domain, at())
        .prop_map(|(tenant, domain, floor)| Floor::at(tenant.map(|t| tenants()[t].clone()), domain, floor));
    prop::collection::vec(floor, 0..3).prop_map(Entry::Retain)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => write().prop_map(Step::Entry),
        3 => Just(Step::Entry(Entry::Cut)),
        1 => Just(Step::Entry(Entry::Nothing)),
        1 => (0usize..4).prop_map(Step::DropCut),
        2 => pin(),
        1 => "[pq]".prop_map(|id| Step::Entry(Entry::Unpin(id))),
        2 => floors().prop_map(Step::Entry),
        4 => Just(Step::Flush),
        1 => (0u64..6).prop_map(Step::FlushFails),
        4 => Just(Step::Compact),
        6 => Just(Step::FlushBeside),
        6 => Just(Step::MergeBeside),
        1 => Just(Step::Reopen),
        2 => any::<u64>().prop_map(Step::Crash),
        1 => Just(Step::Move),
        5 => (0..INSTANTS + AFTER, 1usize..8).prop_map(|(now, jobs)| Step::Cold(now, jobs)),
        1 => (0u64..8, any::<bool>()).prop_map(|(calls, lost)| Step::ColdFails(calls, lost)),
        2 => (0..INSTANTS, 0..INSTANTS).prop_map(|(a, b)| Step::Compare(a, b)),
    ]
}

enum Beside<W, D> {
    Idle,
    Begun(W),
    Done(D),
}

struct Run {
    disk: SimDisk,
    cold: SimCold,
    /// Of a job that is under way.
    cold_done: Option<ColdDone>,
    dir: String,
    moves: u64,
    shard: Option<Shard>,
    log: Vec<Entry>,
    naive: Naive,
    cuts: Vec<u64>,
    flush: Beside<FlushWork, FlushDone>,
    merge: Beside<MergeWork, MergeDone>,
}

impl Run {
    fn new() -> Self {
        let (disk, cold) = (SimDisk::new(), SimCold::default());
        let (shard, _) = Shard::open(Arc::new(disk.clone()), "s", cold_config(&cold, "s")).unwrap();
        let mut run = Self {
            disk,
            cold,
            cold_done: None,
            dir: "s".to_owned(),
            moves: 0,
            shard: Some(shard),
            log: vec![],
            naive: Naive::default(),
            cuts: vec![],
            flush: Beside::Idle,
            merge: Beside::Idle,
        };
        for tenant in 0..tenants().len() {
            run.entry(Entry::Write {
                tenant,
                series: vec![],
                streams: vec![],
            });
        }
        run
    }

    fn shard(&mut self) -> &mut Shard {
        self.shard.as_mut().expect("the shard is open")
    }

    fn entry(&mut self, entry: Entry) {
        let index = self.log.len() as u64 + 1;
        if matches!(entry, Entry::Cut) {
            self.cuts.push(index);
        }
        give(self.shard(), index, &entry);
        self.naive.give(index, &entry);
        self.log.push(entry);
    }

    fn aux(&self) -> Vec<u8> {
        format!("aux of {}", self.log.len()).into_bytes()
    }

    fn flush_beside(&mut self) {
        let aux = self.aux();
        self.flush = match std::mem::replace(&mut self.flush, Beside::Idle) {
            Beside::Idle => Beside::Begun(self.shard().begin_flush(&aux)),
            Beside::Begun(work) => Beside::Done(work.run()),
            Beside::Done(done) => {
                let report = self.shard().end_flush(done).unwrap();
                assert_eq!(report.applied, self.shard().durable());
                Beside::Idle
            }
        };
    }

    fn merge_beside(&mut self) {
        self.merge = match std::mem::replace(&mut self.merge, Beside::Idle) {
            Beside::Idle => Beside::Begun(self.shard().begin_merge(Effort::Background).unwrap()),
            Beside::Begun(work) => Beside::Done(work.run()),
            Beside::Done(done) => {
                let before = self.shard().reader().digest().unwrap();
                self.shard().end_merge(done).unwrap();
                assert_eq!(
                    self.shard().reader().digest().unwrap(),
                    before,
                    "a merge changes no answer"
                );
                Beside::Idle
            }
        };
    }

    /// Ends what goes on beside.
    fn settle(&mut self) {
        while !matches!(self.flush, Beside::Idle) {
            self.flush_beside();
        }
        while !matches!(self.merge, Beside::Idle) {
            self.merge_beside();
        }
    }

    /// Opens again and takes the rest from the log, as a restarted node does.
    fn reopen(&mut self, durable_at_least: u64) {
        (self.shard, self.cold_done) = (None, None);
        (self.flush, self.merge) = (Beside::Idle, Beside::Idle);
        let config = cold_config(&self.cold, &self.dir);
        let (mut shard, opened) = Shard::open(Arc::new(self.disk.clone()), &self.dir, config).unwrap();
        assert_eq!(opened.fell_back, None);
        assert!(opened.applied >= durable_at_least, "what was flushed is there");
        let aux = if opened.applied == 0 {
            String::new()
        } else {
            format!("aux of {}", opened.applied)
        };
        assert_eq!(opened.aux, aux.as_bytes(), "aux is of the same moment");
        for (entry, index) in self.log.iter().zip(1..).skip(opened.applied as usize) {
            give(&mut shard, index, entry);
        }
        self.shard = Some(shard);
    }

    /// Exports, installs on a peer that had other data, checks that both agree, goes on there.
    fn move_to_peer(&mut self) {
        self.moves += 1;
        let (snapshot, home) = (format!("snapshot-{}", self.moves), format!("s-{}", self.moves));
        let (aux, index) = (self.aux(), self.log.len() as u64);
        self.shard().export(&snapshot, &aux).unwrap();
        let before = self.shard().reader().digest().unwrap();
        let config = cold_config(&self.cold, &home);
        let (mut peer, _) = Shard::open(Arc::new(self.disk.clone()), &home, config).unwrap();
        for (entry, i) in self.log.iter().zip(1..).take(3) {
            give(&mut peer, i, entry);
        }
        peer.flush(b"to be replaced").unwrap();
        let (flush, merge) = (peer.begin_flush(b"in vain"), peer.begin_merge(Effort::Full).unwrap());
        assert_eq!(peer.install(&snapshot, index).unwrap(), aux);
        peer.end_flush(flush.run()).unwrap();
        assert_eq!(
            peer.end_merge(merge.run()).unwrap(),
            Merged::InVain,
            "its files are of an earlier life"
        );
        assert_eq!((peer.applied(), peer.durable()), (index, index));
        assert_eq!(peer.reader().digest().unwrap(), before);
        self.disk.remove_dir_all(&snapshot).unwrap();
        (self.dir, self.shard, self.cold_done) = (home, Some(peer), None);
        (self.flush, self.merge) = (Beside::Idle, Beside::Idle);
    }

    fn cold(&mut self, now: i64, jobs: usize) {
        for _ in 0..jobs {
            if let Some(done) = self.cold_done.take() {
                self.shard().finish_cold(done).unwrap();
            }
            let Some(job) = self.shard().begin_cold(instant(now)) else {
                return;
            };
            self.cold_done = Some(job.run());
        }
    }

    /// Until nothing is to be done.
    fn cold_to_the_end(&mut self, now: i64) {
        self.cold.heal();
        self.cold(now, usize::MAX);
    }

    fn step(&mut self, step: Step) {
        if matches!(step, Step::Flush | Step::FlushFails(_) | Step::Compact) {
            self.settle();
        }
        match step {
            Step::FlushBeside => self.flush_beside(),
            Step::MergeBeside => self.merge_beside(),
            Step::Entry(entry) => self.entry(entry),
            Step::DropCut(i) => {
                if let Some(&cut) = self.cuts.get(i) {
                    self.entry(Entry::DropCut(cut));
                }
            }
            Step::Pin(mut pin, cuts) => {
                pin.cuts = cuts.iter().filter_map(|&i| self.cuts.get(i).copied()).collect();
                self.entry(Entry::Pin(pin));
            }
            Step::Flush => {
                let aux = self.aux();
                let report = self.shard().flush(&aux).unwrap();
                assert_eq!(report.applied, self.shard().durable());
            }
            Step::FlushFails(syncs) => {
                let aux = self.aux();
                self.disk.fail_sync_after(syncs);
                let _ = self.shard().flush(&aux);
                self.disk.heal();
            }
            Step::Compact => {
                let before = self.digest();
                let merged = self.shard().compact().unwrap();
                if merged.is_some() {
                    self.cold.heal();
                    assert_eq!(
                        self.shard().reader().digest().unwrap(),
                        before,
                        "a merge changes no answer"
                    );
                }
            }
            Step::Reopen => {
                let durable = self.shard().durable();
                self.reopen(durable);
            }
            Step::Crash(seed) => {
                let durable = self.shard().durable();
                self.disk.crash(&mut SeededRng::new(seed));
                self.reopen(durable);
            }
            Step::Move => {
                self.cold.heal();
                self.move_to_peer();
            }
            Step::Cold(now, jobs) => self.cold(now, jobs),
            Step::ColdFails(calls, answers_get_lost) => self.cold.fail_after(calls, answers_get_lost),
            Step::Compare(a, b) => self.compare((a, b)),
        }
    }

    fn digest(&mut self) -> [u8; 32] {
        let (shard, cold) = (self.shard.as_ref().expect("the shard is open"), &self.cold);
        shard.reader().digest().unwrap_or_else(|_| {
            cold.heal();
            shard.reader().digest().unwrap()
        })
    }

    fn compare(&mut self, window: (i64, i64)) {
        self.cold.heal();
        let reader = self.shard().reader();
        compare(&reader, &self.naive, window);
        // An index that is no cut is refused, not answered by guess.
        let kept = self.naive.kept_cuts();
        if let Some(i) = (1..self.naive.applied).find(|i| !kept.contains(i)) {
            let mut q = crate::naive::all_series(&tenants()[0]);
            q.as_of = Some(i);
            assert!(matches!(reader.series(&q), Err(ReadError::NoCut { .. })), "as of {i}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]
    #[test]
    fn a_shard_answers_as_the_model_does(steps in prop::collection::vec(step(), 1..40)) {
        let mut run = Run::new();
        for step in steps {
            run.step(step);
        }
        run.compare((5, 25));
        run.step(Step::Flush);
        run.step(Step::Compact);
        run.compare((10, 20));
        run.step(Step::Crash(7));
        run.compare((0, 30));
        run.cold_to_the_end(INSTANTS + AFTER);
        run.compare((0, 30));
        run.shard().scrub().unwrap();
        // The last manifest but one needs its files too.
        for _ in 0..2 {
            run.step(Step::Flush);
            run.cold_to_the_end(0);
        }
        let folder = format!("c/{}/", run.dir);
        let objects = run.cold.names().iter().filter(|n| n.starts_with(&folder)).count();
        prop_assert_eq!(objects, run.shard().stats().cold_segments, "what nobody names is gone");
        run.compare((0, 30));
    }
}

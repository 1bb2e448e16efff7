//! Which target is due, and which node's it is.
//!
//! Pure: targets, other nodes and the time in; tasks out. A target is due at the same instants on every node: multiples of
//! its interval, shifted by its key, so that the targets of a job do not all come at once.
//!
//! Of nodes that know the same targets each takes its share: a target belongs to the one that ranks highest for it
//! (rendezvous hashing), so that the loss of a node moves its targets and no others. A node that knows other targets, or was
//! not heard of for [`HEARD_SPAN`], is not counted on: what may be its is scraped here. So a target may be scraped twice for
//! a while, at the same times into the same series, and is never left out. When its own targets change, a node counts on
//! nobody until it knows anew who has them, too.
//!
//! Invariants
//! - One scrape of a target at a time; an instant that comes meanwhile is skipped and counted.
//! - A target that is gone gets its staleness markers when it would have been due next, unless it came back before.
//! - A target that is another node's now gets no markers from this one.
//! - A target that is gone while another one has its tenant and labels (it has another path, say) gets none either: the other one takes
//!   its series over, and ends those that it does not have.

use crate::scrape::Series;
use crate::target::{self, Target};
use hashbrown::HashMap;
use hindcast_model::{NodeId, SpanNs, TimestampNs};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// How long a node's word holds that it scrapes.
pub const HEARD_SPAN: SpanNs = SpanNs::from_secs(4);
/// A sample that is later than its instant by no more than this, and by no more than a hundredth of the interval, bears the instant.
pub const SNAP_MAX: SpanNs = SpanNs::from_ms(2);
/// A clock that goes back by more was set right: all targets get new instants, or they would wait until the old ones come again.
pub const SET_BACK_MIN: SpanNs = SpanNs::from_secs(1);
/// Series that are remembered of all targets' last scrapes. A scrape beyond it is stored, and its series get no markers.
pub const SERIES_MAX: usize = 5_000_000;
/// Of an error that is kept.
pub const ERROR_CHARS_MAX: usize = 300;

/// How the last scrape went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Last {
    pub at: TimestampNs,
    pub took: SpanNs,
    pub error: Option<String>,
}

#[derive(Debug)]
struct Entry {
    target: Arc<Target>,
    due: TimestampNs,
    /// `None` while a scrape is under way, which has it.
    series: Option<Series>,
    is_leaving: bool,
    /// Of one that is leaving: the target in force that has its labels.
    heir: Option<u64>,
    /// Series that it took over while its scrape was under way.
    inherited: Series,
    last: Option<Last>,
}

/// Something to do now.
#[derive(Debug)]
pub struct Task {
    pub target: Arc<Target>,
    /// The instant at which it was due.
    pub due: TimestampNs,
    pub series: Series,
    /// Not scraped any more: its series end.
    pub is_over: bool,
}

/// A target as it is told.
#[derive(Clone, Debug)]
pub struct Told {
    pub target: Arc<Target>,
    pub last: Option<Last>,
    /// Whose it is.
    pub node: NodeId,
}

/// All targets that a node knows.
#[derive(Debug)]
pub struct Pool {
    me: NodeId,
    entries: BTreeMap<u64, Entry>,
    queue: BTreeSet<(TimestampNs, u64)>,
    /// When tasks were asked for last.
    asked: TimestampNs,
    digest: u64,
    /// What other nodes said last, and when (monotonic time).
    heard: BTreeMap<NodeId, (u64, SpanNs)>,
    sharing: Vec<NodeId>,
    /// Instants that passed because a scrape was still under way.
    pub skipped: u64,
    /// Scrapes whose series are not remembered, because there are too many.
    pub forgotten: u64,
    remembered: usize,
    series_max: usize,
}

/// The first instant of a target's grid after `now`.
pub fn next_due(key: u64, interval: SpanNs, now: TimestampNs) -> TimestampNs {
    // Whole milliseconds: what samples can say.
    let interval = i64::try_from(interval.as_ms()).unwrap_or(i64::MAX).max(1);
    let shift = (key % interval.unsigned_abs()) as i64;
    let now = now.as_ms();
    let passed = (now - shift).div_euclid(interval);
    TimestampNs::from_ms((passed + 1) * interval + shift)
}

/// The time that samples of a scrape bear that was due and began.
pub fn sample_time(due: TimestampNs, began: TimestampNs, interval: SpanNs) -> TimestampNs {
    let tolerance = SNAP_MAX.min(SpanNs(interval.0 / 100));
    match began >= due && began.since(due) <= tolerance {
        true => due,
        false => began.floor_ms(),
    }
}

/// Of these nodes, the one that ranks highest.
fn owner(key: u64, nodes: &[NodeId]) -> Option<NodeId> {
    let rank = |node: &NodeId| {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&key.to_le_bytes());
        bytes[8..].copy_from_slice(&node.0.to_le_bytes());
        (xxh3_64(&bytes), *node)
    };
    nodes.iter().copied().max_by_key(rank)
}

impl Pool {
    pub fn new(me: NodeId) -> Self {
        Self {
            me,
            entries: BTreeMap::new(),
            queue: BTreeSet::new(),
            asked: TimestampNs::MIN,
            digest: target::digest([].iter()),
            heard: BTreeMap::new(),
            sharing: vec![me],
            skipped: 0,
            forgotten: 0,
            remembered: 0,
            series_max: SERIES_MAX,
        }
    }

    /// What is told to other nodes.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    pub fn len(&self) -> usize {
        self.entries.values().filter(|e| !e.is_leaving).count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts targets in force. Those that stay keep their series and their place in time.
    pub fn set_targets(&mut self, targets: Vec<Arc<Target>>, now: TimestampNs) {
        let mut before: BTreeSet<u64> = self.entries.keys().copied().collect();
        for target in targets {
            let key = target.key;
            before.remove(&key);
            match self.entries.get_mut(&key) {
                Some(entry) => {
                    let is_new_time = entry.target.interval != target.interval;
                    (entry.target, entry.is_leaving) = (target, false);
                    if is_new_time {
                        let due = next_due(key, entry.target.interval, now);
                        self.queue.remove(&(entry.due, key));
                        self.queue.insert((due, key));
                        entry.due = due;
                    }
                }
                None => {
                    let due = next_due(key, target.interval, now);
                    self.queue.insert((due, key));
                    let series = Some(Series::default());
                    let entry = Entry {
                        target,
                        due,
                        series,
                        is_leaving: false,
                        heir: None,
                        inherited: Series::default(),
                        last: None,
                    };
                    self.entries.insert(key, entry);
                }
            }
        }
        self.leave(before);
        let known = self.entries.iter().filter(|(_, e)| !e.is_leaving);
        let digest = target::digest(known.map(|(key, _)| key));
        if digest != self.digest {
            // The others said that they know what this node knew before, and may not know what is new.
            self.sharing = vec![self.me];
        }
        self.digest = digest;
    }

    fn leave(&mut self, keys: BTreeSet<u64>) {
        if keys.is_empty() {
            return;
        }
        for key in &keys {
            if let Some(entry) = self.entries.get_mut(key) {
                entry.is_leaving = true;
            }
        }
        let in_force = self.entries.iter().filter(|(_, e)| !e.is_leaving);
        let in_force: HashMap<_, _> = in_force
            .map(|(key, e)| ((e.target.job.tenant.clone(), e.target.labels.clone()), *key))
            .collect();
        for key in keys {
            if let Some(entry) = self.entries.get_mut(&key) {
                let named = (entry.target.job.tenant.clone(), entry.target.labels.clone());
                entry.heir = in_force.get(&named).copied();
            }
        }
    }

    /// Another node said that it scrapes, and by its digest what.
    pub fn hear(&mut self, node: NodeId, digest: u64, at: SpanNs) {
        self.heard.insert(node, (digest, at));
    }

    /// Decides anew with whom the targets are shared. How many others know other targets comes back.
    pub fn share(&mut self, now: SpanNs) -> usize {
        self.heard
            .retain(|_, (_, at)| now.0.saturating_sub(at.0) <= HEARD_SPAN.0);
        let same = self.heard.iter().filter(|(_, (digest, _))| *digest == self.digest);
        self.sharing = same.map(|(node, _)| *node).chain([self.me]).collect();
        self.heard.len() + 1 - self.sharing.len()
    }

    pub fn sharing(&self) -> &[NodeId] {
        &self.sharing
    }

    fn owner(&self, key: u64) -> NodeId {
        owner(key, &self.sharing).unwrap_or(self.me)
    }

    /// When there may be something to do.
    pub fn next_at(&self) -> Option<TimestampNs> {
        self.queue.first().map(|(due, _)| *due)
    }

    /// What is due, at most `tasks_max` of it; each is given once.
    pub fn due(&mut self, now: TimestampNs, tasks_max: usize) -> Vec<Task> {
        let mut tasks = vec![];
        let asked = std::mem::replace(&mut self.asked, now);
        if asked.since(now) > SET_BACK_MIN {
            for (key, entry) in &mut self.entries {
                entry.due = next_due(*key, entry.target.interval, now);
            }
            self.queue = self.entries.iter().map(|(key, e)| (e.due, *key)).collect();
        }
        while tasks.len() < tasks_max
            && let Some((due, key)) = self.queue.first().copied().filter(|(due, _)| *due <= now)
        {
            self.queue.remove(&(due, key));
            let is_ours = self.owner(key) == self.me;
            let Some(entry) = self.entries.get_mut(&key) else {
                continue;
            };
            let next = next_due(key, entry.target.interval, now);
            entry.due = next;
            match (entry.is_leaving, entry.series.as_mut()) {
                (true, Some(_)) => {
                    tasks.extend(self.end(key, due));
                    continue;
                }
                (false, Some(series)) if !is_ours => {
                    self.remembered -= std::mem::take(series).len();
                    entry.last = None;
                }
                (false, Some(series)) => {
                    let series = std::mem::take(series);
                    self.remembered -= series.len();
                    entry.series = None;
                    tasks.push(Task {
                        target: entry.target.clone(),
                        due,
                        series,
                        is_over: false,
                    });
                }
                (_, None) => self.skipped += 1,
            }
            self.queue.insert((next, key));
        }
        tasks
    }

    /// Takes a target out. What is to be done: its markers, unless its series go on.
    fn end(&mut self, key: u64, due: TimestampNs) -> Option<Task> {
        let Entry {
            target, series, heir, ..
        } = self.entries.remove(&key)?;
        let series = series.filter(|s| !s.is_empty())?;
        self.remembered -= series.len();
        let Some(heir) = heir else {
            return Some(Task {
                target,
                due,
                series,
                is_over: true,
            });
        };
        let is_ours = self.owner(heir) == self.me;
        if let Some(heir) = self.entries.get_mut(&heir).filter(|_| is_ours) {
            match &mut heir.series {
                Some(own) => {
                    self.remembered -= own.len();
                    own.absorb(series);
                    self.remembered += own.len();
                }
                None => heir.inherited.absorb(series),
            }
        }
        None
    }

    /// A scrape ended.
    pub fn finish(&mut self, key: u64, mut series: Series, last: Last) {
        if let Some(entry) = self.entries.get_mut(&key) {
            series.absorb(std::mem::take(&mut entry.inherited));
            if self.remembered + series.len() > self.series_max {
                self.forgotten += 1;
                series.forget_page();
            }
            self.remembered += series.len();
            entry.series = Some(series);
            entry.last = Some(Last {
                error: last.error.map(|e| e.chars().take(ERROR_CHARS_MAX).collect()),
                ..last
            });
        }
    }

    /// What is known of each target, in the order of jobs and addresses.
    pub fn told(&self) -> Vec<Told> {
        let known = self.entries.iter().filter(|(_, e)| !e.is_leaving);
        let mut told: Vec<_> = known
            .map(|(key, e)| Told {
                target: e.target.clone(),
                last: e.last.clone(),
                node: self.owner(*key),
            })
            .collect();
        told.sort_by(|a, b| (&a.target.job.name, &a.target.url).cmp(&(&b.target.job.name, &b.target.url)));
        told
    }

    /// Targets of this node, by whether the last scrape went well; those that were not scraped yet come last.
    pub fn health(&self) -> (usize, usize, usize) {
        let (mut up, mut down, mut unknown) = (0, 0, 0);
        for (key, entry) in self.entries.iter().filter(|(_, e)| !e.is_leaving) {
            match &entry.last {
                _ if self.owner(*key) != self.me => {}
                None => unknown += 1,
                Some(Last { error: None, .. }) => up += 1,
                Some(_) => down += 1,
            }
        }
        (up, down, unknown)
    }

    /// Series that are remembered from scrapes, of all targets.
    pub fn series(&self) -> usize {
        self.remembered
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use hindcast_model::Labels;
    use proptest::prelude::*;
    use std::fmt::Write;

    fn targets(names: &str, interval: &str) -> Vec<Arc<Target>> {
        let list: Vec<_> = names.split_whitespace().map(|n| format!("'{n}'")).collect();
        let yaml = format!(
            "scrape_configs: [{{job_name: j, scrape_interval: {interval}, static_configs: [{{targets: [{}]}}]}}]",
            list.join(",")
        );
        let job = Arc::new(crate::config::parse("f", &yaml).unwrap().jobs.remove(0));
        target::find(&job, &job.groups, 1000).active
    }

    fn one_series() -> Series {
        Series::from_iter([Labels::from_pairs([("__name__", "m")])])
    }

    /// `a` under another path: the same labels, another URL.
    fn moved() -> Arc<Target> {
        let yaml =
            "scrape_configs: [{job_name: j, scrape_interval: 10s, metrics_path: /m, static_configs: [{targets: [a]}]}]";
        let job = Arc::new(crate::config::parse("f", yaml).unwrap().jobs.remove(0));
        target::find(&job, &job.groups, 1).active.remove(0)
    }

    /// `SECONDS.MS do …`: `targets a b`, `every 10s a b`, `due`, `finish a`, `hear 2`, `hear-other 2`, `share`.
    fn check(script: &str, expect: Expect) {
        let (mut pool, mut out) = (Pool::new(NodeId(1)), String::new());
        for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let mut words = line.splitn(3, ' ');
            let at: f64 = words.next().unwrap().parse().unwrap();
            let (now, what, rest) = (
                TimestampNs::from_ms((at * 1000.0) as i64),
                words.next().unwrap(),
                words.next().unwrap_or_default(),
            );
            let mono = SpanNs(now.0.unsigned_abs());
            let mut said = String::new();
            match what {
                "targets" => pool.set_targets(targets(rest, "10s"), now),
                "every" => {
                    let (interval, names) = rest.split_once(' ').unwrap();
                    pool.set_targets(targets(names, interval), now);
                }
                "due" => {
                    for task in pool.due(now, usize::MAX) {
                        let over = if task.is_over { " over" } else { "" };
                        let instance = task.target.labels.get("instance").unwrap().to_owned();
                        write!(said, " {instance}@{}{over}", task.due.as_ms()).unwrap();
                    }
                    write!(said, " skipped {}", pool.skipped).unwrap();
                }
                "finish" => {
                    let key = targets(rest, "10s")[0].key;
                    let last = Last {
                        at: now,
                        took: SpanNs::ZERO,
                        error: None,
                    };
                    pool.finish(key, one_series(), last);
                }
                "hear" => pool.hear(NodeId(rest.parse().unwrap()), pool.digest(), mono),
                "hear-other" => pool.hear(NodeId(rest.parse().unwrap()), 7, mono),
                "share" => {
                    let others = pool.share(mono);
                    let told = pool.told();
                    let whose: Vec<_> = told
                        .iter()
                        .map(|t| format!("{}:{}", t.target.labels.get("instance").unwrap(), t.node.0))
                        .collect();
                    write!(said, " {} others, {}", others, whose.join(" ")).unwrap();
                }
                other => panic!("{other}"),
            }
            writeln!(out, "{line} ->{said}").unwrap();
        }
        expect.assert_eq(&out);
    }

    #[test]
    fn a_target_is_due_once_in_each_interval_at_its_own_time() {
        check(
            "
            0 targets a b c
            5 due
            10 due
            11 finish a
            12 finish b
            20 due
            ",
            expect![[r#"
                0 targets a b c ->
                5 due -> skipped 0
                10 due -> b@5370 c@5481 a@8429 skipped 0
                11 finish a ->
                12 finish b ->
                20 due -> b@15370 a@18429 skipped 1
            "#]],
        );
    }

    #[test]
    fn a_target_that_is_gone_is_over_when_it_would_have_been_due_unless_it_came_back() {
        check(
            "
            0 targets a b
            10 due
            11 finish a
            11 finish b
            12 targets
            13 targets a
            20 due
            21 finish a
            30 due
            31 targets
            40 due
            41 finish a
            50 due
            60 due
            ",
            expect![[r#"
                0 targets a b ->
                10 due -> b@5370 a@8429 skipped 0
                11 finish a ->
                11 finish b ->
                12 targets ->
                13 targets a ->
                20 due -> b@15370 over a@18429 skipped 0
                21 finish a ->
                30 due -> a@28429 skipped 0
                31 targets ->
                40 due -> skipped 1
                41 finish a ->
                50 due -> a@48429 over skipped 1
                60 due -> skipped 1
            "#]],
        );
    }

    #[test]
    fn another_interval_takes_the_series_along() {
        check(
            "
            0 targets a
            10 due
            11 finish a
            12 every 2s a
            14 due
            ",
            expect![[r#"
                0 targets a ->
                10 due -> a@8429 skipped 0
                11 finish a ->
                12 every 2s a ->
                14 due -> a@12429 skipped 0
            "#]],
        );
    }

    #[test]
    fn nodes_that_know_the_same_targets_share_them_while_they_are_heard_of() {
        check(
            "
            0 targets a b c d e f
            0 hear 2
            0 hear 3
            0 share
            3 hear 2
            5 share
            6 hear 2
            6 hear-other 3
            6 share
            12 share
            ",
            expect![[r#"
                0 targets a b c d e f ->
                0 hear 2 ->
                0 hear 3 ->
                0 share -> 0 others, a:1 b:2 c:3 d:1 e:3 f:2
                3 hear 2 ->
                5 share -> 0 others, a:1 b:2 c:2 d:1 e:2 f:2
                6 hear 2 ->
                6 hear-other 3 ->
                6 share -> 1 others, a:1 b:2 c:2 d:1 e:2 f:2
                12 share -> 0 others, a:1 b:1 c:1 d:1 e:1 f:1
            "#]],
        );
    }

    #[test]
    fn another_path_writes_no_markers_into_series_that_go_on() {
        let (old, new) = (targets("a", "10s").remove(0), moved());
        assert!(old.key != new.key && old.labels == new.labels);
        // The old one is under way when it goes, and so is the new one when the old one ends; or neither is.
        for is_slow in [true, false] {
            let (mut pool, mut out) = (Pool::new(NodeId(1)), vec![]);
            let done = |pool: &mut Pool, task: Task, at: i64| {
                let series = match task.target.key == old.key {
                    true => one_series(),
                    false => task.series,
                };
                let last = Last {
                    at: TimestampNs::from_secs(at),
                    took: SpanNs::ZERO,
                    error: None,
                };
                pool.finish(task.target.key, series, last);
            };
            pool.set_targets(vec![old.clone()], TimestampNs::EPOCH);
            let mut first = pool.due(TimestampNs::from_secs(10), 9);
            if !is_slow {
                done(&mut pool, first.remove(0), 10);
            }
            pool.set_targets(vec![new.clone()], TimestampNs::from_secs(11));
            let mut held: Option<Task> = None;
            for at in [20, 30, 40, 50, 60] {
                for task in pool.due(TimestampNs::from_secs(at), 9) {
                    assert!(!task.is_over, "markers at {at}");
                    out.push(task.series.len());
                    match is_slow && at == 20 {
                        true => held = Some(task),
                        false => done(&mut pool, task, at),
                    }
                }
                if at == 20 {
                    first.drain(..).for_each(|task| done(&mut pool, task, at));
                }
                if at == 30 {
                    held.take().into_iter().for_each(|task| done(&mut pool, task, at));
                }
                assert!(pool.queue.len() == pool.entries.len());
            }
            assert_eq!(out.last(), Some(&1), "the new one has the old one's series: {out:?}");
            assert_eq!((pool.len(), pool.entries.len(), pool.series()), (1, 1, 1));
            // When the new one goes, too, all end.
            pool.set_targets(vec![], TimestampNs::from_secs(61));
            let over = pool.due(TimestampNs::from_secs(80), 9);
            assert!(over.len() == 1 && over[0].is_over && over[0].series.len() == 1);
        }
    }

    #[test]
    fn a_new_target_misses_no_instant_because_another_node_does_not_know_it_yet() {
        check(
            "
            0 targets a b c d e
            0 hear 2
            0 hear 3
            0 share
            1 targets a b c d e f
            10 due
            11 share
            ",
            expect![[r#"
                0 targets a b c d e ->
                0 hear 2 ->
                0 hear 3 ->
                0 share -> 0 others, a:1 b:2 c:3 d:1 e:3
                1 targets a b c d e f ->
                10 due -> e@769 f@3069 b@5370 c@5481 a@8429 d@9283 skipped 0
                11 share -> 0 others, a:1 b:1 c:1 d:1 e:1 f:1
            "#]],
        );
    }

    #[test]
    fn a_clock_that_was_two_hours_ahead_and_is_set_right_stops_no_scrapes() {
        check(
            "
            7200 targets a b
            7212 due
            7212 finish a
            12 due
            20 due
            20 finish a
            20 finish b
            30 due
            ",
            expect![[r#"
                7200 targets a b ->
                7212 due -> b@7205370 a@7208429 skipped 0
                7212 finish a ->
                12 due -> skipped 0
                20 due -> a@18429 skipped 1
                20 finish a ->
                20 finish b ->
                30 due -> b@25370 a@28429 skipped 1
            "#]],
        );
    }

    #[test]
    fn series_beyond_what_is_remembered_are_forgotten_and_counted() {
        let (all, mut pool) = (targets("a b", "10s"), Pool::new(NodeId(1)));
        pool.series_max = 1;
        pool.set_targets(all.clone(), TimestampNs::EPOCH);
        for round in 1..3 {
            let now = TimestampNs::from_secs(10 * round);
            assert_eq!(pool.due(now, 10).len(), 2);
            for target in &all {
                let last = Last {
                    at: now,
                    took: SpanNs::ZERO,
                    error: None,
                };
                pool.finish(target.key, one_series(), last);
            }
            assert_eq!((pool.series(), pool.forgotten), (1, round as u64));
        }
        pool.set_targets(vec![], TimestampNs::from_secs(21));
        let over = pool.due(TimestampNs::from_secs(30), 10);
        assert_eq!(
            (over.len(), pool.series()),
            (2, 0),
            "both have what they say of themselves"
        );
    }

    #[test]
    fn samples_bear_the_instant_when_they_are_nearly_in_time() {
        let ms = TimestampNs::from_ms;
        let due = ms(10_000);
        let at = |began: i64, interval: u64| sample_time(due, ms(began), SpanNs::from_ms(interval)).as_ms();
        assert_eq!(
            [at(10_000, 15_000), at(10_002, 15_000), at(10_003, 15_000)],
            [10_000, 10_000, 10_003]
        );
        // A hundredth of a short interval is less.
        assert_eq!(
            [at(10_001, 100), at(10_002, 100), at(9_999, 15_000)],
            [10_000, 10_002, 9_999]
        );
    }

    proptest! {
        #[test]
        fn instants_lie_on_a_grid_after_now(key: u64, interval_ms in 100u64..100_000, now_ms in 0i64..1 << 41) {
            let (interval, now) = (SpanNs::from_ms(interval_ms), TimestampNs::from_ms(now_ms));
            let due = next_due(key, interval, now);
            prop_assert!(due > now && due.since(now) <= interval);
            prop_assert_eq!(next_due(key, interval, due), due + interval);
        }

        /// Each target belongs to one node, and who leaves takes nobody else's.
        #[test]
        fn a_lost_node_moves_only_its_own(keys in proptest::collection::vec(any::<u64>(), 1..40), nodes in 2u64..7, lost in 0usize..6) {
            let all: Vec<_> = (1..=nodes).map(NodeId).collect();
            let lost = all[lost % all.len()];
            let left: Vec<_> = all.iter().copied().filter(|n| *n != lost).collect();
            for key in keys {
                let before = owner(key, &all).unwrap();
                let mut reversed = all.clone();
                reversed.reverse();
                prop_assert_eq!(owner(key, &reversed), Some(before));
                prop_assert!(before == lost || owner(key, &left) == Some(before));
            }
        }

        /// Whatever happens, a target has at most one scrape under way, and none is forgotten while it is in force.
        #[test]
        fn no_target_is_lost_or_doubled(steps in proptest::collection::vec((0u8..4, 0usize..4, 1i64..30_000), 1..60)) {
            let all = targets("a b c d", "10s");
            let (mut pool, mut now) = (Pool::new(NodeId(1)), TimestampNs::EPOCH);
            let (mut under_way, mut in_force) = (BTreeMap::new(), BTreeSet::new());
            for (what, which, ms) in steps {
                now = now + SpanNs::from_ms(ms as u64);
                match what {
                    0 => {
                        in_force = (0..4).filter(|i| (which + i) % 3 != 0).collect();
                        pool.set_targets(in_force.iter().map(|i| all[*i].clone()).collect(), now);
                    }
                    1 => {
                        let key = all[which].key;
                        if under_way.remove(&key).is_some() {
                            pool.finish(key, one_series(), Last { at: now, took: SpanNs::ZERO, error: None });
                        }
                    }
                    _ => for task in pool.due(now, usize::MAX) {
                        prop_assert!(task.due <= now);
                        if !task.is_over {
                            prop_assert!(under_way.insert(task.target.key, ()).is_none());
                        }
                    }
                }
                prop_assert_eq!(pool.len(), in_force.len());
                prop_assert!(pool.queue.len() == pool.entries.len());
            }
        }
    }
}

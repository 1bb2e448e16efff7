//! How much memory the node may use, and whose work is turned away when it uses more.
//!
//! In the order of who goes first: Raft, alerting, the desk, ingest, queries. Raft has threads of its own and is never asked;
//! alerting and the desk are never turned away; queries go before ingest, because a writer keeps what it could not send and a
//! reader asks again.
//!
//! Invariants
//! - More use never lets in more.
//! - Pressure rises at once, and falls by one step only after use was well below the step's bound for `CALM_SPAN`.
//! - What the process keeps while it holds nothing for anybody (caches, and what the allocator does not give back, but uses
//!   again) is no pressure by itself: the steps lie in the room above it. The hard limit stays where it is.

use hindcast_model::SpanNs;

/// Of the machine's memory, when nothing is configured, in percent. The rest is the page cache's and the neighbours'.
const SHARE_OF_MACHINE: u64 = 75;
/// Of what a control group allows: there is no neighbour, but the page cache counts as well.
const SHARE_OF_CGROUP: u64 = 85;
/// In percent of the limit: queries are turned away, then ingest.
const QUERIES_SHARE: u64 = 75;
const INGEST_SHARE: u64 = 87;
/// Use must be below a step's bound by this part of it before the step is left, or by half of the way to what is kept at rest.
const CALM_BELOW: u64 = 16;
/// And for so long.
pub const CALM_SPAN: SpanNs = SpanNs::from_secs(1);
/// A smaller limit would leave no room for caches and heads of their usual sizes.
pub const LIMIT_BYTES_MIN: u64 = 64 << 20;

/// What is used when nothing is configured, from the machine's memory and, where there is one, the bound of the control group.
pub fn limit_for(machine: u64, cgroup: Option<u64>) -> u64 {
    let of_machine = machine / 100 * SHARE_OF_MACHINE;
    let of_cgroup = cgroup.map_or(u64::MAX, |c| c / 100 * SHARE_OF_CGROUP);
    of_machine.min(of_cgroup).max(LIMIT_BYTES_MIN)
}

/// What kind of work asks to be let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// Health, metrics, the cluster's state, the files of the web UI: little, and needed most when things go badly.
    Watching,
    Alerting,
    Desk,
    /// Parts of batches that another node took in already.
    Forwarded,
    Ingest,
    Queries,
}

impl Work {
    pub const ALL: [Self; 6] = [
        Self::Watching,
        Self::Alerting,
        Self::Desk,
        Self::Forwarded,
        Self::Ingest,
        Self::Queries,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Watching => "watching",
            Self::Alerting => "alerting",
            Self::Desk => "desk",
            Self::Forwarded => "forwarded",
            Self::Ingest => "ingest",
            Self::Queries => "queries",
        }
    }
}

/// How short memory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    #[default]
    Calm,
    /// The soft limit: no new queries.
    NoQueries,
    /// Nor writes.
    NoIngest,
    /// The hard limit: nor parts that other nodes took in.
    Hard,
}

impl Pressure {
    pub const fn admits(self, work: Work) -> bool {
        match work {
            Work::Watching | Work::Alerting | Work::Desk => true,
            Work::Forwarded => !matches!(self, Self::Hard),
            Work::Ingest => !matches!(self, Self::Hard | Self::NoIngest),
            Work::Queries => matches!(self, Self::Calm),
        }
    }

    const fn below(self) -> Self {
        match self {
            Self::Hard => Self::NoIngest,
            Self::NoIngest => Self::NoQueries,
            Self::NoQueries | Self::Calm => Self::Calm,
        }
    }
}

/// Decides from what the process is seen to use.
#[derive(Clone, Debug)]
pub struct MemoryGuard {
    limit: u64,
    /// Used when nothing was held for anybody, the last time.
    rest: u64,
    pressure: Pressure,
    /// Since when use was well below the present step.
    calm_since: Option<SpanNs>,
}

impl MemoryGuard {
    /// `limit`: bytes; `u64::MAX` for none.
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            rest: 0,
            pressure: Pressure::Calm,
            calm_since: None,
        }
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// From where on a step holds.
    pub fn bound(&self, step: Pressure) -> u64 {
        let share = |percent: u64| self.limit / 100 * percent;
        let room = self.limit - self.rest;
        match step {
            Pressure::Calm => 0,
            Pressure::NoQueries => share(QUERIES_SHARE).max(self.rest + room / 2),
            Pressure::NoIngest => share(INGEST_SHARE).max(self.rest + room / 4 * 3),
            Pressure::Hard => self.limit,
        }
    }

    /// `used` bytes were seen at the monotonic time `now`; `at_rest`: next to nothing is held for anybody.
    pub fn see(&mut self, used: u64, at_rest: bool, now: SpanNs) -> Pressure {
        if at_rest {
            self.rest = used.min(self.limit);
        }
        let steps = [Pressure::Hard, Pressure::NoIngest, Pressure::NoQueries];
        let reached = steps.into_iter().find(|s| used >= self.bound(*s));
        let reached = reached.unwrap_or(Pressure::Calm);
        if reached >= self.pressure {
            (self.pressure, self.calm_since) = (reached, None);
            return self.pressure;
        }
        let bound = self.bound(self.pressure);
        // Where little room is left above what is kept at rest, a whole part of the bound would reach below it.
        let margin = (bound / CALM_BELOW).min(bound.saturating_sub(self.rest) / 2);
        let is_calm = used < bound - margin;
        let since = self.calm_since.filter(|_| is_calm).unwrap_or(now);
        self.calm_since = is_calm.then_some(since);
        if is_calm && now.0.saturating_sub(since.0) >= CALM_SPAN.0 {
            // One step at a time, each with its own wait: what comes back first must not push use up again at once.
            (self.pressure, self.calm_since) = (self.pressure.below(), None);
        }
        self.pressure
    }
}

/// Where the bound of a process's control group may be read, the nearest first, from `/proc/self/cgroup`.
pub fn cgroup_files(own: &str) -> Vec<String> {
    let mut files = vec![];
    for line in own.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            c if c.split(',').any(|c| c == "memory") => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        // A bound may stand at any group above.
        let mut at = path.trim_end_matches('/');
        loop {
            files.push(format!("{root}{at}/{file}"));
            match at.rsplit_once('/') {
                Some((above, _)) => at = above,
                None => break,
            }
        }
    }
    files
}

/// The number of kibibytes in a line of `/proc/meminfo` or `/proc/self/status`, in bytes.
pub fn meminfo_bytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;
    use std::fmt::Write;

    /// Use in percent, every half second.
    fn check(used: &[u64], expect: Expect) {
        let mut guard = MemoryGuard::new(100 << 20);
        let mut out = String::new();
        for (i, used) in used.iter().enumerate() {
            let now = SpanNs::from_ms(i as u64 * 500);
            let pressure = guard.see(used << 20, false, now);
            writeln!(out, "{used}: {pressure:?}").unwrap();
        }
        expect.assert_eq(&out);
    }

    #[test]
    fn queries_go_first_and_come_back_last() {
        check(
            &[50, 76, 88, 101, 95, 95, 90, 90, 90, 60, 60, 60, 60, 60, 60, 60, 72, 69],
            expect![[r#"
                50: Calm
                76: NoQueries
                88: NoIngest
                101: Hard
                95: Hard
                95: Hard
                90: Hard
                90: Hard
                90: NoIngest
                60: NoIngest
                60: NoIngest
                60: NoQueries
                60: NoQueries
                60: NoQueries
                60: Calm
                60: Calm
                72: Calm
                69: Calm
            "#]],
        );
    }

    #[test]
    fn what_is_kept_at_rest_does_not_refuse_for_ever() {
        let mut guard = MemoryGuard::new(100 << 20);
        let mut see = |used: u64, at_rest, secs| guard.see(used << 20, at_rest, SpanNs::from_secs(secs));
        assert_eq!(see(90, false, 0), Pressure::NoIngest);
        assert_eq!(see(85, false, 60), Pressure::NoIngest, "it is held for somebody");
        assert_eq!(see(80, true, 61), Pressure::NoIngest);
        assert_eq!(see(80, true, 62), Pressure::NoQueries);
        assert_eq!(see(80, true, 63), Pressure::NoQueries);
        assert_eq!(see(80, true, 64), Pressure::Calm);
        // Half of the room that is left, three quarters, all of it.
        assert_eq!(see(89, false, 65), Pressure::Calm);
        assert_eq!(see(90, false, 66), Pressure::NoQueries);
        assert_eq!(see(95, false, 67), Pressure::NoIngest);
        assert_eq!(see(100, false, 68), Pressure::Hard);
        // After a flood the allocator kept nine tenths of the limit, and queries were refused for good.
        let steps: Vec<_> = (200..207).map(|secs| see(91, true, secs)).collect();
        assert_eq!(steps.last(), Some(&Pressure::Calm), "{steps:?}");
        // A limit below what is kept at rest refuses all the time, and says so.
        assert_eq!(see(100, true, 300), Pressure::Hard);
        assert_eq!(see(100, true, 600), Pressure::Hard);
    }

    #[test]
    fn who_is_turned_away_at_which_step() {
        let mut out = String::new();
        for step in [Pressure::Calm, Pressure::NoQueries, Pressure::NoIngest, Pressure::Hard] {
            let refused: Vec<&str> = Work::ALL
                .into_iter()
                .filter(|w| !step.admits(*w))
                .map(Work::as_str)
                .collect();
            writeln!(out, "{step:?}: {refused:?}").unwrap();
        }
        expect![[r#"
            Calm: []
            NoQueries: ["queries"]
            NoIngest: ["ingest", "queries"]
            Hard: ["forwarded", "ingest", "queries"]
        "#]]
        .assert_eq(&out);
    }

    #[test]
    fn the_limit_fits_machine_and_control_group() {
        let gib = |n: u64| n << 30;
        let limits = [
            limit_for(gib(16), None),
            limit_for(gib(16), Some(gib(2))),
            limit_for(gib(2), Some(gib(16))),
            // Version 1 says "no bound" by a number beyond all memory.
            limit_for(gib(16), Some(u64::MAX)),
            limit_for(1 << 20, None),
        ]
        .map(|l| l >> 20);
        expect!["[12287, 1740, 1535, 12287, 64]"].assert_eq(&format!("{limits:?}"));
    }

    #[test]
    fn the_bound_of_a_control_group_is_looked_for_upwards() {
        expect![[r#"
            [
                "/sys/fs/cgroup/system.slice/hindcast.service/memory.max",
                "/sys/fs/cgroup/system.slice/memory.max",
                "/sys/fs/cgroup/memory.max",
                "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            ]
        "#]]
        .assert_debug_eq(&cgroup_files(
            "0::/system.slice/hindcast.service\n5:cpu,cpuacct:/\n9:memory:/a\n",
        ));
        assert_eq!(
            meminfo_bytes("MemTotal:       16 kB\nMemFree: 1 kB\n", "MemTotal"),
            Some(16 << 10)
        );
        assert_eq!(meminfo_bytes("MemTotal: many\n", "MemTotal"), None);
    }

    proptest! {
        #[test]
        fn at_a_bound_its_work_is_turned_away_whatever_was_before(
            seen in prop::collection::vec((0u64..200, 0u64..3_000, any::<bool>()), 1..60),
        ) {
            let mut guard = MemoryGuard::new(100 << 20);
            let mut now = 0;
            for (used, pause, at_rest) in seen {
                now += pause;
                let before = guard.pressure;
                let used = used << 20;
                let pressure = guard.see(used, at_rest, SpanNs::from_ms(now));
                for step in [Pressure::NoQueries, Pressure::NoIngest, Pressure::Hard] {
                    prop_assert!(used < guard.bound(step) || pressure >= step);
                }
                prop_assert!(pressure >= before.below(), "one step at a time");
                prop_assert!(pressure >= before || used < guard.bound(before), "never left while it is reached");
                for work in [Work::Watching, Work::Alerting, Work::Desk] {
                    prop_assert!(pressure.admits(work));
                }
            }
        }

        #[test]
        fn more_pressure_never_lets_in_more(n in 0usize..4, m in 0usize..4) {
            let steps = [Pressure::Calm, Pressure::NoQueries, Pressure::NoIngest, Pressure::Hard];
            let (less, more) = (steps[n.min(m)], steps[n.max(m)]);
            for work in Work::ALL {
                prop_assert!(less.admits(work) || !more.admits(work));
            }
        }
    }
}

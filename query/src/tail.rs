//! Following log lines as they come: which stretch of time to ask for next, and which of the lines found are new.
//!
//! Lines are told in the order in which they are found: once each, as long as a line comes no later than [`LATE_SPAN`]
//! behind those that were told already. A reader that is slow gets its lines later, and all of them but for the bounds below.

use crate::value::LogStream;
use hindcast_model::{LogLine, SpanNs, TimestampNs};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::Xxh3;

/// How long lines are waited for that come behind others.
pub const LATE_SPAN: SpanNs = SpanNs::from_secs(10);
/// Lines that are remembered as told. Where that is not enough for [`LATE_SPAN`], the time is shorter.
pub const TOLD_MAX: usize = 200_000;
/// Lines asked for at once.
pub const PAGE_LINES: usize = 1000;
/// And at most, where so many have one time. Of one that has more, the rest is left out.
const PAGE_LINES_MAX: usize = 64_000;

/// Of one reader.
pub struct Tail {
    /// No line before this is asked for again.
    from: TimestampNs,
    page: usize,
    /// Lines at `from` or later that were told, by time and hash, and how many of each.
    told: BTreeMap<(TimestampNs, u64), u32>,
}

/// What to ask for: `from` included, `to` not; the earliest lines first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    pub from: TimestampNs,
    pub to: TimestampNs,
    pub limit: usize,
}

impl Tail {
    pub fn new(from: TimestampNs) -> Self {
        Self {
            from,
            page: PAGE_LINES,
            told: BTreeMap::new(),
        }
    }

    /// `None`: there is no such time yet.
    pub fn next(&self, to: TimestampNs) -> Option<Stretch> {
        (self.from < to).then_some(Stretch {
            from: self.from,
            to,
            limit: self.page,
        })
    }

    /// What of the lines found in a stretch was not told before, and whether there may be more at once.
    pub fn take(&mut self, asked: Stretch, found: Vec<LogStream>) -> (Vec<LogStream>, bool) {
        let lines: usize = found.iter().map(|s| s.lines.len()).sum();
        let newest = found.iter().flat_map(|s| &s.lines).map(|l| l.at).max();
        let mut seen: BTreeMap<(TimestampNs, u64), u32> = BTreeMap::new();
        let mut new = vec![];
        for mut stream in found {
            let lines = std::mem::take(&mut stream.lines);
            let is_new = |line: &LogLine| {
                let key = (line.at, hash_of(&stream, line));
                let times = seen.entry(key).or_insert(0);
                *times += 1;
                let told = self.told.entry(key).or_insert(0);
                let is_new = *times > *told;
                *told = (*told).max(*times);
                is_new
            };
            let lines: Vec<LogLine> = lines.into_iter().filter(is_new).collect();
            if !lines.is_empty() {
                stream.lines = lines;
                new.push(stream);
            }
        }
        let is_full = lines >= asked.limit;
        match newest.filter(|_| is_full) {
            Some(at) if at > self.from => {
                self.from = at;
                self.page = PAGE_LINES;
            }
            // All of one time, and more of it than a page has.
            Some(at) if self.page >= PAGE_LINES_MAX => {
                self.from = TimestampNs(at.0.saturating_add(1));
                self.page = PAGE_LINES;
            }
            Some(_) => self.page *= 2,
            None => {
                self.page = PAGE_LINES;
                self.from = self
                    .from
                    .max(TimestampNs(asked.to.0.saturating_sub(LATE_SPAN.0 as i64)));
            }
        }
        self.told = self.told.split_off(&(self.from, 0));
        while self.told.len() > TOLD_MAX {
            let Some(((at, _), _)) = self.told.pop_first() else {
                break;
            };
            self.from = TimestampNs(at.0.saturating_add(1));
            self.told = self.told.split_off(&(self.from, 0));
        }
        (new, is_full)
    }
}

fn hash_of(stream: &LogStream, line: &LogLine) -> u64 {
    let mut h = Xxh3::new();
    for labels in [&stream.labels, &stream.parsed] {
        h.update(&labels.fingerprint().to_le_bytes());
    }
    for text in line.metadata.iter().flat_map(|(n, v)| [n.as_bytes(), v.as_bytes()]) {
        h.update(text);
        h.update(&[0xff]);
    }
    h.update(&line.line);
    h.digest()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_model::Labels;
    use proptest::prelude::*;

    fn line(s: i64, text: &str) -> LogLine {
        LogLine {
            at: TimestampNs::from_secs(s),
            line: text.to_owned().into(),
            metadata: vec![],
        }
    }

    /// As the engine answers: the earliest lines of the stretch.
    fn found(stored: &[(i64, String)], asked: Stretch) -> Vec<LogStream> {
        let mut lines: Vec<LogLine> = stored.iter().map(|(s, text)| line(*s, text)).collect();
        lines.retain(|l| asked.from <= l.at && l.at < asked.to);
        lines.sort_by_key(|l| l.at);
        lines.truncate(asked.limit);
        vec![LogStream {
            labels: Labels::from_pairs([("app", "db")]),
            parsed: Labels::empty(),
            lines,
        }]
    }

    fn told(streams: Vec<LogStream>) -> Vec<String> {
        let lines = streams.into_iter().flat_map(|s| s.lines);
        lines.map(|l| String::from_utf8_lossy(&l.line).into_owned()).collect()
    }

    #[test]
    fn lines_that_come_late_are_told_and_others_not_again() {
        let mut stored = vec![(1, "a".to_owned()), (2, "b".to_owned()), (2, "b".to_owned())];
        let mut tail = Tail::new(TimestampNs::from_secs(0));
        let mut poll = |stored: &[(i64, String)], to: i64| {
            let asked = tail.next(TimestampNs::from_secs(to)).unwrap();
            told(tail.take(asked, found(stored, asked)).0)
        };
        assert_eq!(poll(&stored, 5), ["a", "b", "b"]);
        stored.push((2, "late".to_owned()));
        stored.push((2, "b".to_owned()));
        stored.push((5, "c".to_owned()));
        // Three equal lines at one time are three lines.
        assert_eq!(poll(&stored, 6), ["late", "b", "c"]);
        assert_eq!(poll(&stored, 16), Vec::<String>::new());
        stored.push((3, "too late".to_owned()));
        stored.push((7, "in time".to_owned()));
        assert_eq!(poll(&stored, 17), ["in time"]);
    }

    #[test]
    fn more_lines_of_one_time_than_a_page_has_are_all_told() {
        let stored: Vec<(i64, String)> = (0..2 * PAGE_LINES).map(|i| (1, i.to_string())).collect();
        let mut tail = Tail::new(TimestampNs::from_secs(0));
        let (mut all, mut polls) = (vec![], 0);
        loop {
            let asked = tail.next(TimestampNs::from_secs(9)).unwrap();
            let (new, more) = tail.take(asked, found(&stored, asked));
            all.extend(told(new));
            polls += 1;
            if !more {
                break;
            }
        }
        assert_eq!((all.len(), polls), (stored.len(), 4));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let stored: Vec<(i64, String)> = (0..TOLD_MAX + 500)
            .map(|i| (i as i64 / 50_000, i.to_string()))
            .collect();
        let mut tail = Tail::new(TimestampNs::from_secs(0));
        let asked = Stretch {
            from: TimestampNs::from_secs(0),
            to: TimestampNs::from_secs(9),
            limit: usize::MAX,
        };
        let (new, _) = tail.take(asked, found(&stored, asked));
        assert_eq!(told(new).len(), stored.len());
        assert!(tail.told.len() <= TOLD_MAX);
        // Lines that are forgotten are not asked for again.
        assert_eq!(tail.from, TimestampNs(1));
    }

    proptest! {
        #[test]
        fn every_line_is_told_once_however_it_comes(
            steps in prop::collection::vec(prop::collection::vec((0i64..8, 0u8..3), 0..6), 1..12),
        ) {
            let mut tail = Tail::new(TimestampNs::from_secs(0));
            let (mut stored, mut all, mut to) = (vec![], vec![], 8);
            for step in steps {
                stored.extend(step.into_iter().map(|(late, text)| (to - 1 - late, text.to_string())));
                let asked = tail.next(TimestampNs::from_secs(to)).unwrap();
                all.extend(told(tail.take(asked, found(&stored, asked)).0));
                to += 2;
            }
            let mut wanted: Vec<String> = stored.into_iter().map(|(_, text)| text).collect();
            wanted.sort();
            all.sort();
            prop_assert_eq!(all, wanted);
        }
    }
}

//! One partition: which of its records become a batch next, and what is committed with its offset.
//!
//! What is stored in one batch is decided once. Before a batch is written, its end is committed as a note beside the offset of its
//! beginning ([`Note::until`]). Whoever goes on from there, after a crash or because the partition is dealt to another node, makes the
//! same batch again, under the same id; the shards that have it say so. A batch whose note could not be committed is not written: then
//! another node has the partition.
//!
//! The id is the batch's end, in order, under a writer that is named by group, topic, partition and epoch. An epoch is drawn where
//! nothing of ours stands beside the offset: at the first time, and when somebody set the offset anew to have records read again. So
//! offsets that are used a second time, for other records or on purpose, are not taken for what was stored before.
//!
//! Bounds: a batch has at most [`BATCH_RECORDS_MAX`] records, and [`BATCH_BYTES_MAX`] of values unless it is one record alone. No more
//! is asked for while a lane holds [`LANE_BYTES_MAX`].

use crate::records::{Fetched, Record};
use std::collections::VecDeque;

pub const BATCH_RECORDS_MAX: usize = 5_000;
pub const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Records that came and are not stored, of one partition.
pub const LANE_BYTES_MAX: usize = 2 * BATCH_BYTES_MAX;
/// What a record takes beside its value, about.
const RECORD_BYTES: usize = 96;

const NOTE: &str = "hindcast1";

/// What is committed beside an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    pub epoch: u64,
    /// Where the batch ends that is perhaps stored already; the offset itself where there is none.
    pub until: i64,
}

impl Note {
    pub fn to_text(self) -> String {
        format!("{NOTE} {:016x} {}", self.epoch, self.until)
    }

    /// `None`: it is none of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (name, epoch, until) = (words.next()?, words.next()?, words.next()?);
        if name != NOTE || words.next().is_some() || epoch.len() != 16 {
            return None;
        }
        Some(Self {
            epoch: u64::from_str_radix(epoch, 16).ok()?,
            until: until.parse().ok()?,
        })
    }
}

/// Records that are stored as one batch. None of them: offsets that hold nothing to store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    pub from: i64,
    pub until: i64,
    pub records: Vec<Record>,
}

/// A partition that this node has.
#[derive(Clone, Debug)]
pub struct Lane {
    epoch: u64,
    /// Everything before is stored.
    stored: i64,
    /// Where the batch from `stored` on ends, if that is decided.
    until: Option<i64>,
    /// From where to ask next.
    next: i64,
    waiting: VecDeque<Record>,
    /// With those of the batch that is being stored.
    bytes: usize,
    storing: usize,
}

fn size(record: &Record) -> usize {
    RECORD_BYTES + record.value.as_ref().map_or(0, |v| v.len())
}

impl Lane {
    /// Goes on where the group was. `epoch` is taken where the note is none of ours.
    pub fn committed(offset: i64, note: &str, epoch: u64) -> Self {
        let own = Note::parse(note).filter(|n| n.until >= offset);
        let mut lane = Self::at(offset, own.map_or(epoch, |n| n.epoch));
        lane.until = own.map(|n| n.until).filter(|u| *u > offset);
        lane
    }

    /// Begins at an offset of which the group knows nothing.
    pub fn at(offset: i64, epoch: u64) -> Self {
        Self {
            epoch,
            stored: offset,
            until: None,
            next: offset,
            waiting: VecDeque::new(),
            bytes: 0,
            storing: 0,
        }
    }

    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Everything before is stored.
    pub const fn stored(&self) -> i64 {
        self.stored
    }

    /// From where to ask next.
    pub const fn next(&self) -> i64 {
        self.next
    }

    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether more is to be asked for.
    pub fn is_hungry(&self) -> bool {
        self.bytes < LANE_BYTES_MAX
    }

    /// Where the batch ends whose note stands already.
    pub const fn until_known(&self) -> Option<i64> {
        self.until
    }

    /// Whether there is something behind what is stored.
    pub const fn has_more(&self) -> bool {
        self.next > self.stored
    }

    /// Whether nothing waits, and nothing is being stored.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && (self.next == self.stored || self.awaits_known())
    }

    /// Whether the batch that is to be made again has not come yet.
    pub fn awaits_known(&self) -> bool {
        self.until.is_some_and(|until| self.next < until)
    }

    /// What a broker sent for `from`. Something that was asked for before is passed by.
    pub fn take(&mut self, from: i64, fetched: Fetched) {
        if from != self.next {
            return;
        }
        self.bytes += fetched.records.iter().map(size).sum::<usize>();
        self.waiting.extend(fetched.records);
        self.next = fetched.next;
        // No batch of ours is so large: the note is damaged, or another's.
        if self.awaits_known() && !self.is_hungry() {
            self.until = None;
        }
    }

    /// Gives up the batch that was begun: its end does not come. What was stored of it will be stored twice, and nothing is lost.
    pub fn give_up_known(&mut self, epoch: u64) {
        (self.until, self.epoch) = (None, epoch);
    }

    /// The note for a batch that ends there.
    pub fn note(&self, until: i64) -> String {
        let epoch = self.epoch;
        Note { epoch, until }.to_text()
    }

    /// The next batch, if there is one. It begins where everything is stored, and is [`Lane::done`] before the next one is made.
    pub fn cut(&mut self) -> Option<Cut> {
        if self.awaits_known() {
            return None;
        }
        let from = self.stored;
        let (mut records, mut bytes) = (vec![], 0);
        let known = self.until;
        while let Some(record) = self.waiting.front() {
            let fits = match known {
                Some(until) => record.offset < until,
                None => {
                    records.is_empty() || records.len() < BATCH_RECORDS_MAX && bytes + size(record) <= BATCH_BYTES_MAX
                }
            };
            if !fits {
                break;
            }
            bytes += size(record);
            records.extend(self.waiting.pop_front());
        }
        self.storing = bytes;
        // What lies behind the last record and before the next one is nothing to store.
        let behind = self.waiting.front().map_or(self.next, |r| r.offset);
        let until = known.unwrap_or(behind);
        (until > from).then_some(Cut { from, until, records })
    }

    /// A batch is stored, or holds nothing to store.
    pub fn done(&mut self, until: i64) {
        self.bytes -= std::mem::take(&mut self.storing);
        self.stored = until;
        self.until = None;
    }
}

/// How long to wait before the next try.
pub fn back_off(attempt: u32, first_ms: u64, max_ms: u64) -> u64 {
    first_ms.saturating_mul(1 << attempt.min(16)).min(max_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(offset: i64, bytes: usize) -> Record {
        Record {
            offset,
            at: None,
            key: None,
            value: Some(vec![b'x'; bytes].into()),
        }
    }

    fn fetched(offsets: std::ops::Range<i64>, bytes: usize) -> Fetched {
        Fetched {
            next: offsets.end,
            records: offsets.map(|o| record(o, bytes)).collect(),
            passed_over: vec![],
        }
    }

    fn shown(cut: Option<Cut>) -> String {
        cut.map_or_else(
            || "nothing".to_owned(),
            |c| format!("{}..{} of {} records", c.from, c.until, c.records.len()),
        )
    }

    #[test]
    fn a_batch_that_was_begun_is_made_again_whatever_comes_at_once() {
        let mut lane = Lane::at(10, 7);
        assert_eq!(shown(lane.cut()), "nothing");
        lane.take(10, fetched(10..15, 1));
        let cut = lane.cut();
        assert_eq!(shown(cut), "10..15 of 5 records");
        let note = lane.note(15);
        assert_eq!(note, "hindcast1 0000000000000007 15");
        // Somebody else goes on, and more has come meanwhile; or less at a time.
        let mut other = Lane::committed(10, &note, 99);
        assert_eq!(other.epoch(), 7);
        other.take(10, fetched(10..12, 1));
        assert_eq!(shown(other.cut()), "nothing");
        assert!(other.awaits_known());
        other.take(12, fetched(12..40, 1));
        assert_eq!(shown(other.cut()), "10..15 of 5 records");
        other.done(15);
        assert_eq!(shown(other.cut()), "15..40 of 25 records");
        // What is being stored takes room until it is.
        assert_eq!(other.bytes(), 25 * (RECORD_BYTES + 1));
        other.done(40);
        assert_eq!(other.bytes(), 0);
    }

    #[test]
    fn a_batch_whose_end_does_not_come_is_given_up_under_another_epoch() {
        let mut lane = Lane::committed(10, "hindcast1 0000000000000007 15", 99);
        lane.take(10, fetched(10..12, 1));
        assert_eq!(shown(lane.cut()), "nothing");
        lane.give_up_known(8);
        assert_eq!((shown(lane.cut()).as_str(), lane.epoch()), ("10..12 of 2 records", 8));
        // Nor does a note of somebody else make a lane hold everything.
        let mut lane = Lane::committed(0, "hindcast1 0000000000000007 999999999", 99);
        lane.take(0, fetched(0..3, LANE_BYTES_MAX));
        assert!(!lane.is_hungry());
        assert_eq!(shown(lane.cut()), "0..1 of 1 records");
    }

    #[test]
    fn an_offset_that_somebody_set_begins_another_epoch() {
        for (note, epoch, waits) in [
            ("hindcast1 0000000000000007 10", 7, false),
            ("hindcast1 0000000000000007 11", 7, true),
            ("hindcast1 0000000000000007 9", 99, false),
            ("", 99, false),
            ("hindcast1 7 11", 99, false),
            ("hindcast1 0000000000000007 11 x", 99, false),
            ("other", 99, false),
        ] {
            let lane = Lane::committed(10, note, 99);
            assert_eq!(
                (lane.epoch(), lane.awaits_known(), lane.stored()),
                (epoch, waits, 10),
                "{note}"
            );
        }
    }

    #[test]
    fn offsets_without_records_are_committed_too() {
        let mut lane = Lane::at(0, 1);
        let marks = Fetched {
            next: 4,
            ..Fetched::default()
        };
        lane.take(0, marks);
        assert_eq!(shown(lane.cut()), "0..4 of 0 records");
        lane.done(4);
        assert_eq!(shown(lane.cut()), "nothing");
        lane.take(3, fetched(3..9, 1));
        assert_eq!(shown(lane.cut()), "nothing", "an answer to an earlier question");
    }

    #[test]
    fn batches_are_bounded_by_records_and_by_bytes() {
        let mut lane = Lane::at(0, 1);
        let all = BATCH_RECORDS_MAX as i64 + 1;
        lane.take(0, fetched(0..all, 1));
        assert_eq!(
            shown(lane.cut()),
            format!("0..{BATCH_RECORDS_MAX} of {BATCH_RECORDS_MAX} records")
        );
        lane.done(BATCH_RECORDS_MAX as i64);
        assert_eq!(shown(lane.cut()), format!("{BATCH_RECORDS_MAX}..{all} of 1 records"));
        lane.done(all);
        lane.take(all, fetched(all..all + 3, BATCH_BYTES_MAX));
        assert!(!lane.is_hungry());
        assert_eq!(
            shown(lane.cut()),
            format!("{all}..{} of 1 records", all + 1),
            "one is taken however large"
        );
        assert_eq!([0, 1, 2, 40].map(|a| back_off(a, 100, 5_000)), [100, 200, 400, 5_000]);
    }

    proptest! {
        /// However often somebody dies, whatever comes at once: every record is in one batch, and a batch that comes again is the same.
        #[test]
        fn every_record_is_in_one_batch_and_a_batch_that_comes_again_is_the_same(
            sizes in proptest::collection::vec(1usize..400_000, 1..40),
            chunks in proptest::collection::vec(1usize..9, 1..80),
            deaths in proptest::collection::vec(0u8..4, 1..80),
        ) {
            let log: Vec<Record> = sizes.iter().enumerate().map(|(i, n)| record(i as i64 * 3, *n)).collect();
            let end = log.len() as i64 * 3;
            let (mut committed, mut stored) = ((0i64, String::new()), std::collections::BTreeMap::<i64, Vec<i64>>::new());
            let (mut chunk, mut death) = (chunks.iter().cycle(), deaths.iter().chain(std::iter::repeat(&0)));
            for _ in 0..400 {
                if committed.0 >= end { break }
                let mut lane = Lane::committed(committed.0, &committed.1, 5);
                loop {
                    let from = lane.next();
                    if lane.is_hungry() && from < end {
                        let records: Vec<_> = log.iter().filter(|r| r.offset >= from).take(*chunk.next().unwrap()).cloned().collect();
                        let next = records.last().map_or(end, |r| r.offset + 1).max(from);
                        let next = if log.iter().any(|r| r.offset >= next) { next } else { end };
                        lane.take(from, Fetched { records, passed_over: vec![], next });
                    }
                    let Some(cut) = lane.cut() else { if lane.next() >= end { break } else { continue } };
                    committed = (cut.from, lane.note(cut.until));
                    let dies = *death.next().unwrap();
                    if dies == 1 { break }
                    let offsets: Vec<_> = cut.records.iter().map(|r| r.offset).collect();
                    if !offsets.is_empty() && let Some(before) = stored.insert(cut.until, offsets.clone()) {
                        prop_assert_eq!(before, offsets);
                    }
                    if dies == 2 { break }
                    lane.done(cut.until);
                    committed = (cut.until, lane.note(cut.until));
                    if dies == 3 { break }
                }
            }
            prop_assert_eq!(committed.0, end);
            let all: Vec<i64> = stored.into_values().flatten().collect();
            prop_assert_eq!(all, log.iter().map(|r| r.offset).collect::<Vec<_>>());
        }
    }
}

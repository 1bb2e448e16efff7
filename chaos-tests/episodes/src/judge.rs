//! Whether a history keeps the promises: a function of its records, and of nothing else.

use crate::history::{FLOOD, Phase, Record, What};
use hindcast_chaos::history::{Written, check};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// I1 … I13, as decision 0017 lists them.
    pub rule: &'static str,
    pub what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}

/// What a run was, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Sum {
    pub batches_acked: u64,
    pub batches_unknown: u64,
    pub refused: u64,
    pub reads: u64,
    pub alarms: u64,
    pub incidents: u64,
    pub tickets: u64,
    pub messages: u64,
    /// Without any confirmed write.
    pub longest_gap_ms: u64,
    pub samples_read: u64,
    pub lines_read: u64,
    /// From the confirmation of an alarm's sample to the webhook's message, at worst (of so few it is the 99th percentile):
    /// before a flood, and in it.
    pub told_ms_calm: u64,
    pub told_ms_flood: u64,
    /// Batches that a flood sent, and those of them that were taken.
    pub flood_sent: u64,
    pub flood_taken: u64,
}

/// A cluster must have healed within this (I13).
const HEAL_MS_MAX: u64 = 60_000;
/// Of items in one message.
const NAMED_MAX: usize = 5;

fn some(items: &[u64]) -> String {
    let named: Vec<String> = items.iter().take(NAMED_MAX).map(u64::to_string).collect();
    let more = if items.len() > NAMED_MAX { ", …" } else { "" };
    format!("{} ({}{more})", items.len(), named.join(", "))
}

pub fn judge(records: &[Record]) -> (Sum, Vec<Broken>) {
    let mut sum = Sum::default();
    let mut broken = vec![];
    let Some(What::Run {
        samples_per_batch,
        lines_per_batch,
        flood_samples_per_batch,
        flood_lines_per_batch,
        series,
        receivers,
        ..
    }) = records.first().map(|r| &r.what)
    else {
        let what = "the first record is not `run`: this is no history of a run".to_owned();
        return (sum, vec![Broken { rule: "history", what }]);
    };
    let per_batch = |writer| match writer < FLOOD {
        true => (*samples_per_batch, *lines_per_batch),
        false => (*flood_samples_per_batch, *flood_lines_per_batch),
    };
    writes(records, &per_batch, &mut sum, &mut broken);
    reads(records, *samples_per_batch, *series, &mut sum, &mut broken);
    states(records, &mut broken);
    alarms(records, receivers, &mut sum, &mut broken);
    flood(records, &mut sum, &mut broken);
    for record in records {
        let What::Healed { name, took_ms, missing } = &record.what else {
            continue;
        };
        if !missing.is_empty() || *took_ms > HEAL_MS_MAX {
            let what = format!("{name}: not healed after {took_ms} ms {missing}");
            broken.push(Broken { rule: "I13", what });
        }
    }
    (sum, broken)
}

/// I1: what was acknowledged is there once, what is unknown at most once, and nothing else.
fn writes(records: &[Record], per_batch: &dyn Fn(u64) -> (u64, u64), sum: &mut Sum, broken: &mut Vec<Broken>) {
    let mut seqs = BTreeMap::<u64, (BTreeSet<u64>, BTreeSet<u64>)>::new();
    let mut last_ok = None;
    for record in records {
        let What::Write { writer, seq, phase, .. } = &record.what else {
            continue;
        };
        let (acked, asked) = seqs.entry(*writer).or_default();
        match phase {
            Phase::Invoke => _ = asked.insert(*seq),
            Phase::Ok => {
                acked.insert(*seq);
                let gap = record.at_us - last_ok.unwrap_or(record.at_us);
                sum.longest_gap_ms = sum.longest_gap_ms.max(gap / 1000);
                last_ok = Some(record.at_us);
            }
            Phase::Fail => sum.refused += 1,
            Phase::Unknown => {}
        }
    }
    for (acked, asked) in seqs.values() {
        sum.batches_acked += acked.len() as u64;
        sum.batches_unknown += asked.difference(acked).count() as u64;
    }
    let items = |seqs: &mut dyn Iterator<Item = &u64>, per: u64| -> BTreeSet<u64> {
        seqs.flat_map(|s| (s - 1) * per..s * per).collect()
    };
    let mut held = BTreeSet::new();
    for record in records {
        let What::Holds {
            node,
            writer,
            samples,
            lines,
        } = &record.what
        else {
            continue;
        };
        held.insert(*writer);
        let per_batch = per_batch(*writer);
        let (acked, asked) = seqs.entry(*writer).or_default();
        for (kind, found, per) in [("samples", samples, per_batch.0), ("lines", lines, per_batch.1)] {
            let written = Written {
                acked: items(&mut acked.iter(), per),
                unknown: items(&mut asked.difference(acked), per),
            };
            let verdict = check(&written, found.items());
            let counted = found.items().count() as u64;
            match kind {
                "samples" => sum.samples_read += counted,
                _ => sum.lines_read += counted,
            }
            for (how, items) in [
                ("acknowledged and lost", verdict.lost),
                ("there twice", verdict.doubled),
                ("never written", verdict.invented),
            ] {
                if !items.is_empty() {
                    let what = format!("node {node}, {kind} of writer {writer} {how}: {}", some(&items));
                    broken.push(Broken { rule: "I1", what });
                }
            }
        }
    }
    for (writer, (acked, _)) in &seqs {
        if !acked.is_empty() && !held.contains(writer) {
            let what = format!("nobody was asked in the end for what writer {writer} wrote");
            broken.push(Broken { rule: "I1", what });
        }
    }
}

/// I4: a read shows what was acknowledged before it began.
fn reads(records: &[Record], per: u64, series: u64, sum: &mut Sum, broken: &mut Vec<Broken>) {
    // By call: what was acknowledged of its writer when it began.
    let mut began = BTreeMap::<u64, u64>::new();
    let mut acked = BTreeMap::<u64, u64>::new();
    for record in records {
        match &record.what {
            What::Write {
                writer,
                seq,
                phase: Phase::Ok,
                ..
            } => {
                let last = acked.entry(*writer).or_default();
                *last = (*last).max(*seq);
            }
            What::Read {
                call,
                writer,
                phase: Phase::Invoke,
                ..
            } => _ = began.insert(*call, acked.get(writer).copied().unwrap_or(0)),
            What::Read {
                call,
                writer,
                seq,
                node,
                phase: Phase::Ok,
                found,
            } => {
                sum.reads += 1;
                // Asked for the time of the last sample of a batch that was confirmed before.
                let must = began.get(call).is_some_and(|known| seq <= known);
                let end = seq * per;
                let wanted: Vec<u64> = (end.saturating_sub(series)..end).collect();
                if must && *found != wanted {
                    let what = format!(
                        "a read of node {node} at {} ms shows {found:?} of writer {writer}, whose batch {seq} was confirmed before: {wanted:?}",
                        record.at_us / 1000
                    );
                    broken.push(Broken { rule: "I4", what });
                }
            }
            _ => {}
        }
    }
}

/// I3: equal states in the end.
fn states(records: &[Record], broken: &mut Vec<Broken>) {
    let mut states = BTreeMap::<u64, BTreeMap<u64, (u64, &str)>>::new();
    for record in records {
        if let What::State {
            node,
            group,
            applied,
            digest,
        } = &record.what
        {
            states.entry(*group).or_default().insert(*node, (*applied, digest));
        }
    }
    if states.is_empty() {
        let what = "no node told its state in the end".to_owned();
        broken.push(Broken { rule: "I3", what });
    }
    for (group, nodes) in states {
        let first = nodes.values().next();
        if nodes.values().any(|state| Some(state) != first || state.1.is_empty()) {
            let what = format!("group {group}: {nodes:?}");
            broken.push(Broken { rule: "I3", what });
        }
    }
}

/// I5 and I6: each alarm in one incident, each incident with one ticket, everybody told, and in the right order.
fn alarms(records: &[Record], receivers: &[String], sum: &mut Sum, broken: &mut Vec<Broken>) {
    let mut raised = BTreeSet::new();
    let mut homes = BTreeMap::<&str, Vec<&str>>::new();
    let mut incidents = BTreeMap::<(&str, u64), &str>::new();
    let mut tickets = BTreeMap::<(&str, u64), Vec<&str>>::new();
    let mut numbers = vec![];
    let mut told = BTreeMap::<(&str, &str), Vec<&str>>::new();
    for record in records {
        match &record.what {
            What::Alarm { case, phase: Phase::Ok } => _ = raised.insert(case.as_str()),
            What::Incident {
                id,
                generation,
                ticket,
                cases,
            } => {
                incidents.insert((id, *generation), ticket);
                for case in cases {
                    homes.entry(case).or_default().push(id);
                }
            }
            What::Ticket {
                number,
                incident,
                generation,
                created_ms,
            } => {
                tickets.entry((incident, *generation)).or_default().push(number);
                numbers.push((*created_ms, number.as_str()));
            }
            What::Told {
                receiver,
                incident,
                kind,
                ..
            } => {
                sum.messages += 1;
                told.entry((receiver, incident)).or_default().push(kind);
            }
            _ => {}
        }
    }
    sum.alarms = raised.len() as u64;
    sum.incidents = incidents.len() as u64;
    sum.tickets = numbers.len() as u64;
    let mut no = |rule, what: String| broken.push(Broken { rule, what });
    for case in raised {
        match homes.get(case).map_or(&[][..], Vec::as_slice) {
            [_] => {}
            [] => no("I5", format!("the alarm {case} is in no incident")),
            more => no("I5", format!("the alarm {case} is in {more:?}")),
        }
    }
    for ((incident, generation), ticket) in &incidents {
        let made = tickets.remove(&(*incident, *generation)).unwrap_or_default();
        if made != [*ticket] {
            let what = format!("{incident}, generation {generation}, names ticket {ticket:?}; the desk has {made:?}");
            no("I5", what);
        }
        for receiver in receivers {
            let kinds = told.get(&(receiver.as_str(), *incident)).map_or(&[][..], Vec::as_slice);
            match kinds.first() {
                None => no("I5", format!("{receiver} was never told of {incident}")),
                Some(first) if *first == "recovered" => {
                    no(
                        "I5",
                        format!("{receiver} was told first that {incident} is over: {kinds:?}"),
                    );
                }
                Some(_) => {}
            }
        }
    }
    for ((incident, generation), made) in tickets {
        // Earlier generations of an incident keep theirs; one each.
        if made.len() > 1 || !incidents.keys().any(|(i, g)| *i == incident && *g > generation) {
            no(
                "I5",
                format!("{incident}, generation {generation}, has tickets {made:?}"),
            );
        }
    }
    let value = |number: &str| {
        number
            .trim_start_matches(|c: char| !c.is_ascii_digit())
            .parse::<u64>()
            .ok()
    };
    numbers.sort_by_key(|(_, number)| value(number));
    for pair in numbers.windows(2) {
        if value(pair[0].1) == value(pair[1].1) {
            no("I6", format!("the number {} was given twice", pair[0].1));
        }
    }
}

/// What a node may use above its bound before it counts as broken.
const MEMORY_SLACK: f64 = 1.2;
/// After a flood everybody is served again within this.
const RECOVERY_US_MAX: u64 = 10_000_000;
/// In a flood people are told so many times later at most.
const TOLD_TIMES_MAX: u64 = 2;
/// Two evaluations: what is below is in time, whatever it was before.
const TOLD_MS_ALWAYS_FINE: u64 = 2_000;

/// I12: within its memory, alive, and in time with alerts, however much is sent; and soon over it (P7).
fn flood(records: &[Record], sum: &mut Sum, broken: &mut Vec<Broken>) {
    let mut no = |what: String| broken.push(Broken { rule: "I12", what });
    let begins = |r: &&Record| r.what == What::Flood { begins: true };
    let ends = |r: &&Record| r.what == What::Flood { begins: false };
    let (Some(begun), Some(ended)) = (records.iter().find(begins), records.iter().find(ends)) else {
        return;
    };
    let mut raised = BTreeMap::new();
    let mut served = BTreeSet::new();
    for record in records {
        let is_during = (begun.at_us..ended.at_us).contains(&record.at_us);
        match &record.what {
            What::Alarm { case, phase: Phase::Ok } => _ = raised.insert(case.as_str(), record.at_us),
            What::Told { cases, .. } => {
                for at in cases.iter().filter_map(|case| raised.remove(case.as_str())) {
                    let longest = match at {
                        at if at >= ended.at_us => continue,
                        at if at >= begun.at_us => &mut sum.told_ms_flood,
                        _ => &mut sum.told_ms_calm,
                    };
                    *longest = (*longest).max((record.at_us - at) / 1000);
                }
            }
            What::Write { writer, phase, .. } if *writer >= FLOOD => match phase {
                Phase::Invoke => sum.flood_sent += 1,
                Phase::Ok => sum.flood_taken += 1,
                _ => {}
            },
            What::Write {
                writer,
                phase: Phase::Ok,
                ..
            } if (ended.at_us..ended.at_us + RECOVERY_US_MAX).contains(&record.at_us) => _ = served.insert(*writer),
            What::Ended { node, how } if is_during => no(format!("node {node} ended in the flood: {how}")),
            What::Memory { node, peak, bound } if *peak as f64 > *bound as f64 * MEMORY_SLACK => {
                no(format!("node {node} used {peak} bytes, of {bound}"));
            }
            _ => {}
        }
    }
    let at_most = (sum.told_ms_calm * TOLD_TIMES_MAX).max(TOLD_MS_ALWAYS_FINE);
    if sum.told_ms_flood > at_most {
        no(format!(
            "in the flood people were told after {} ms, before it after {}",
            sum.told_ms_flood, sum.told_ms_calm
        ));
    }
    let wrote = |r: &Record| match r.what {
        What::Write { writer, .. } if writer < FLOOD => Some(writer),
        _ => None,
    };
    let waiting: BTreeSet<u64> = records
        .iter()
        .filter_map(wrote)
        .filter(|w| !served.contains(w))
        .collect();
    if !waiting.is_empty() {
        no(format!("writers {waiting:?} wait longer than 10 s after the flood"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Found;

    fn run() -> What {
        What::Run {
            seed: 1,
            samples_per_batch: 20,
            lines_per_batch: 2,
            flood_samples_per_batch: 40,
            flood_lines_per_batch: 4,
            series: 10,
            receivers: vec!["hook".into()],
        }
    }

    fn write(seq: u64, phase: Phase) -> What {
        What::Write {
            writer: 1,
            seq,
            node: 1,
            phase,
            why: String::new(),
        }
    }

    fn holds(samples: Vec<u64>, lines: Vec<u64>) -> What {
        What::Holds {
            node: 2,
            writer: 1,
            samples: Found::new(samples),
            lines: Found::new(lines),
        }
    }

    fn state(node: u64, digest: &str) -> What {
        What::State {
            node,
            group: 1,
            applied: 9,
            digest: digest.into(),
        }
    }

    fn incident() -> What {
        What::Incident {
            id: "INC-1".into(),
            generation: 1,
            ticket: "T-1".into(),
            cases: vec!["a".into()],
        }
    }

    fn ticket(number: &str) -> What {
        What::Ticket {
            number: number.into(),
            incident: "INC-1".into(),
            generation: 1,
            created_ms: 5,
        }
    }

    fn told(kind: &str) -> What {
        What::Told {
            receiver: "hook".into(),
            key: "k".into(),
            incident: "INC-1".into(),
            kind: kind.into(),
            cases: vec![],
        }
    }

    fn read(phase: Phase, found: Vec<u64>) -> What {
        What::Read {
            call: 1,
            writer: 1,
            seq: 1,
            node: 3,
            phase,
            found,
        }
    }

    fn good() -> Vec<What> {
        let alarm = What::Alarm {
            case: "a".into(),
            phase: Phase::Ok,
        };
        vec![
            run(),
            write(1, Phase::Invoke),
            write(1, Phase::Ok),
            read(Phase::Invoke, vec![]),
            read(Phase::Ok, (10..20).collect()),
            write(2, Phase::Invoke),
            write(2, Phase::Unknown),
            alarm,
            told("opened"),
            holds((0..20).collect(), vec![0, 1]),
            state(1, "d"),
            state(2, "d"),
            incident(),
            ticket("T-1"),
        ]
    }

    fn rules(whats: Vec<What>) -> Vec<&'static str> {
        let records: Vec<Record> = (0..).zip(whats).map(|(at_us, what)| Record { at_us, what }).collect();
        judge(&records).1.iter().map(|b| b.rule).collect()
    }

    /// The good history with one record in another's place.
    fn with(place: usize, what: What) -> Vec<&'static str> {
        let mut whats = good();
        whats[place] = what;
        rules(whats)
    }

    #[test]
    fn a_run_that_keeps_its_promises_passes_and_is_counted() {
        let records: Vec<Record> = (0..).zip(good()).map(|(at_us, what)| Record { at_us, what }).collect();
        let (sum, broken) = judge(&records);
        assert_eq!(broken, []);
        assert_eq!(
            (
                sum.batches_acked,
                sum.batches_unknown,
                sum.reads,
                sum.samples_read,
                sum.tickets
            ),
            (1, 1, 1, 20, 1)
        );
        assert!(!rules(vec![]).is_empty(), "an empty history shows nothing");
    }

    #[test]
    fn lost_doubled_and_invented_items_break_i1() {
        assert_eq!(with(9, holds((1..20).collect(), vec![0, 1])), ["I1"]);
        assert_eq!(with(9, holds((0..20).chain([3]).collect(), vec![0, 1])), ["I1"]);
        assert_eq!(with(9, holds((0..20).collect(), vec![0, 1, 7])), ["I1"]);
        // Batch 2 is unknown: it may be there.
        assert_eq!(with(9, holds((0..40).collect(), vec![0, 1, 2, 3])), [""; 0]);
        assert_eq!(with(9, state(3, "d")), ["I1"], "nobody was asked");
    }

    #[test]
    fn a_read_that_misses_a_confirmed_batch_breaks_i4() {
        assert_eq!(with(4, read(Phase::Ok, vec![])), ["I4"]);
        assert_eq!(with(4, read(Phase::Unknown, vec![])), [""; 0]);
    }

    #[test]
    fn different_states_break_i3() {
        assert_eq!(with(11, state(2, "e")), ["I3"]);
    }

    #[test]
    fn two_tickets_silence_and_a_wrong_order_break_i5() {
        let mut two = good();
        two.push(ticket("T-2"));
        assert_eq!(rules(two), ["I5"]);
        assert_eq!(with(13, state(1, "d")), ["I5"], "no ticket");
        assert_eq!(with(8, state(1, "d")), ["I5"], "nobody told");
        assert_eq!(with(8, told("recovered")), ["I5"]);
        let mut again = good();
        again.push(ticket("T-1"));
        assert!(rules(again).contains(&"I6"), "a number given twice");
    }

    #[test]
    fn a_cluster_that_does_not_heal_breaks_i13() {
        let mut whats = good();
        whats.push(What::Healed {
            name: "pause".into(),
            took_ms: 61_000,
            missing: "node 2".into(),
        });
        assert_eq!(rules(whats), ["I13"]);
    }

    #[test]
    fn late_words_a_dead_node_and_too_much_memory_in_a_flood_break_i12() {
        let at = |seconds: u64, what| Record {
            at_us: seconds * 1_000_000,
            what,
        };
        let alarm = |case: &str| What::Alarm {
            case: case.into(),
            phase: Phase::Ok,
        };
        let told = |case: &str| What::Told {
            receiver: "hook".into(),
            key: "k".into(),
            incident: "INC-1".into(),
            kind: "opened".into(),
            cases: vec![case.into()],
        };
        let memory = |peak| What::Memory {
            node: 1,
            peak,
            bound: 100,
        };
        let flood = |told_at: u64, during: What, served_at: u64| {
            let mut records = vec![
                at(0, run()),
                at(1, alarm("a")),
                at(2, told("a")),
                at(10, What::Flood { begins: true }),
                at(11, alarm("b")),
                at(told_at, told("b")),
                at(20, during),
                at(30, What::Flood { begins: false }),
                at(served_at, write(1, Phase::Ok)),
            ];
            records.sort_by_key(|r| r.at_us);
            let (sum, broken) = judge(&records);
            (
                sum.told_ms_calm,
                sum.told_ms_flood,
                broken.iter().filter(|b| b.rule == "I12").count(),
            )
        };
        assert_eq!(flood(13, memory(110), 33), (1000, 2000, 0));
        assert_eq!(flood(14, memory(110), 33), (1000, 3000, 1));
        assert_eq!(flood(13, memory(130), 33).2, 1);
        let ended = What::Ended {
            node: 1,
            how: "signal: 9".into(),
        };
        assert_eq!(flood(13, ended, 33).2, 1);
        assert_eq!(flood(13, memory(110), 41).2, 1);
    }
}

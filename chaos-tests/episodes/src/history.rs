//! What happened, as JSON lines: what clients asked and were told, what faults there were, what everybody held in the
//! end. The judge reads nothing else, so that a run can be judged again later.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Microseconds since the run began, by a clock that never steps.
    pub at_us: u64,
    #[serde(flatten)]
    pub what: What,
}

/// A call's life. What got no answer is `Unknown`: it may have happened, or happen later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Invoke,
    Ok,
    /// Refused: it did not happen.
    Fail,
    Unknown,
}

/// Numbers, as runs; each that was there more than once is named again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// First and last.
    pub runs: Vec<(u64, u64)>,
    pub again: Vec<u64>,
}

impl Found {
    pub fn new(mut items: Vec<u64>) -> Self {
        items.sort_unstable();
        let mut found = Self::default();
        for item in items {
            match found.runs.last_mut() {
                Some((_, last)) if *last == item => found.again.push(item),
                Some((_, last)) if *last + 1 == item => *last = item,
                _ => found.runs.push((item, item)),
            }
        }
        found
    }

    /// All of them, doubled ones twice.
    pub fn items(&self) -> impl Iterator<Item = u64> {
        let runs = self.runs.iter().flat_map(|(first, last)| *first..=*last);
        runs.chain(self.again.iter().copied())
    }
}

/// Writers of this number and above are a flood.
pub const FLOOD: u64 = 100;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum What {
    Run {
        seed: u64,
        samples_per_batch: u64,
        lines_per_batch: u64,
        /// The same of writers from [`FLOOD`] on.
        flood_samples_per_batch: u64,
        flood_lines_per_batch: u64,
        /// Samples of one writer go to so many series in turn.
        series: u64,
        receivers: Vec<String>,
    },
    Episode {
        name: String,
    },
    Fault {
        text: String,
    },
    /// A process ended without being told to.
    Ended {
        node: u64,
        how: String,
    },
    /// All nodes that should be there are ready again, and no fault is left.
    Healed {
        name: String,
        took_ms: u64,
        /// Empty: they are.
        missing: String,
    },
    Write {
        writer: u64,
        seq: u64,
        node: u64,
        phase: Phase,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        why: String,
    },
    /// The newest sample of each series of a writer, at the time of the last sample of batch `seq`.
    Read {
        call: u64,
        writer: u64,
        seq: u64,
        node: u64,
        phase: Phase,
        found: Vec<u64>,
    },
    /// Something to be told about begins.
    Alarm {
        case: String,
        phase: Phase,
    },
    /// A receiver took a message.
    Told {
        receiver: String,
        key: String,
        incident: String,
        kind: String,
        /// Of the alarms in it; empty where the receiver cannot tell.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        cases: Vec<String>,
    },
    /// Writers that send more than anybody can take begin, and end.
    Flood {
        begins: bool,
    },
    /// The most that a node has used since its start, and what it may use.
    Memory {
        node: u64,
        peak: u64,
        bound: u64,
    },
    /// All of a writer's batches, as a node has them in the end.
    Holds {
        node: u64,
        writer: u64,
        samples: Found,
        lines: Found,
    },
    State {
        node: u64,
        group: u64,
        applied: u64,
        digest: String,
    },
    Incident {
        id: String,
        generation: u64,
        ticket: String,
        /// Those of [`What::Alarm`] that it holds.
        cases: Vec<String>,
    },
    Ticket {
        number: String,
        incident: String,
        generation: u64,
        created_ms: i64,
    },
}

/// Writes records as they happen.
pub struct History {
    started: Instant,
    file: Mutex<BufWriter<File>>,
}

impl History {
    #[allow(
        clippy::disallowed_methods,
        reason = "a harness writes its own files and reads its own clock"
    )]
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(Self {
            started: Instant::now(),
            file: Mutex::new(BufWriter::new(file)),
        })
    }

    pub fn tell(&self, what: What) {
        let record = |at_us| Record { at_us, what };
        let mut file = self.file.lock().expect("plain data");
        // The time is taken under the lock, so that the file is in the order of time.
        let record = record(self.started.elapsed().as_micros() as u64);
        let mut line = serde_json::to_vec(&record).expect("plain data");
        line.push(b'\n');
        file.write_all(&line).expect("the history can be written");
    }

    pub fn fault(&self, text: impl Into<String>) {
        let text = text.into();
        println!("  [{:6.1} s] {text}", self.started.elapsed().as_secs_f64());
        self.tell(What::Fault { text });
    }

    pub fn flush(&self) {
        self.file
            .lock()
            .expect("plain data")
            .flush()
            .expect("the history can be written");
    }
}

#[allow(clippy::disallowed_methods, reason = "a harness reads its own files")]
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let file = File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let mut records = vec![];
    for (n, line) in (1..).zip(BufReader::new(file).lines()) {
        let record = serde_json::from_str(&line?).with_context(|| format!("{}, line {n}", path.display()))?;
        records.push(record);
    }
    Ok(records)
}

/// How often each fault was met, by its first word, and what happened besides.
pub fn counts(records: &[Record]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for record in records {
        let name = match &record.what {
            What::Fault { text } => text.split_whitespace().next().unwrap_or_default().to_owned(),
            What::Ended { .. } => "ended by itself".to_owned(),
            What::Episode { .. } => "episodes".to_owned(),
            _ => continue,
        };
        *counts.entry(name).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_from_their_runs() {
        let found = Found::new(vec![5, 1, 2, 3, 2, 9]);
        assert_eq!(
            (found.runs.clone(), found.again.clone()),
            (vec![(1, 3), (5, 5), (9, 9)], vec![2])
        );
        let mut items: Vec<u64> = found.items().collect();
        items.sort_unstable();
        assert_eq!(items, [1, 2, 2, 3, 5, 9]);
    }

    #[test]
    fn a_record_is_one_line_that_reads_back() {
        let record = Record {
            at_us: 7,
            what: What::Write {
                writer: 1,
                seq: 2,
                node: 3,
                phase: Phase::Unknown,
                why: "no answer".into(),
            },
        };
        let line = serde_json::to_string(&record).unwrap();
        assert_eq!(
            line,
            r#"{"at_us":7,"what":"write","writer":1,"seq":2,"node":3,"phase":"unknown","why":"no answer"}"#
        );
        assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), record);
    }
}

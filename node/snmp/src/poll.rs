//! One poll of a device, step by step: what to ask next, and what came of it.
//!
//! Pure. Tables are walked with `GetBulk`, columns of one group together. A device for which an answer is too big is asked for
//! less at a time. What comes is taken whole or not at all: a poll that breaks off has no samples. A value that cannot be read, or is
//! no number where one belongs, is left out by itself and counted.
//!
//! Bounds: [`CELLS_MAX`] values, [`POLL_BYTES_MAX`] of memory and [`REQUESTS_MAX`] requests of a poll; of a text, what a label may
//! have: it is cut when it comes. A device whose names do not rise would be walked for ever: it is an error.

use crate::Oid;
use crate::panel::{
    COLUMNS, Column, DEVICE_INFO, GROUPS, INTERFACE_INFO, NARROW_COUNTERS, SCALARS, Scalar, Table, Use, WIDE_COUNTERS,
};
use crate::pdu::{Kind, Pdu, TOO_BIG, Value, error_name, text};
use hindcast_model::METRIC_NAME;
use hindcast_model::limits::LABEL_VALUE_BYTES_MAX;
use std::collections::{BTreeMap, BTreeSet};

/// Values of one poll.
pub const CELLS_MAX: usize = 200_000;
/// What the samples of one poll may come to in memory, as [`Poll::bytes`] counts it.
pub const POLL_BYTES_MAX: usize = 64 * 1024 * 1024;
/// What a sample, or a text of its row, costs beside the text: names, the row's number, lists.
const CELL_BYTES: usize = 256;
/// Requests of one poll, repeated ones apart.
pub const REQUESTS_MAX: usize = 20_000;
/// Rows that are asked for at once, where a device is not told otherwise.
pub const REPETITIONS_DEFAULT: i32 = 20;
pub const REPETITIONS_MAX: i32 = 100;

/// Why a poll broke off.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PollError {
    #[error("the device answers {error} to a question for {oid}")]
    Refused { error: String, oid: String },
    #[error("the names that the device gives do not rise after {last}; it would be asked for ever")]
    Circle { last: Oid },
    #[error("the device answers with no values")]
    Empty,
    #[error("even one value is too big for an answer of the device")]
    TooBig,
    #[error("the device has more than {CELLS_MAX} values")]
    TooManyCells,
    #[error("what the device has comes to more than {POLL_BYTES_MAX} bytes")]
    TooManyBytes,
    #[error("the device was asked {REQUESTS_MAX} times and has still more")]
    TooManyRequests,
}

/// A sample without its time.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// The name among them, as `__name__`.
    pub pairs: Vec<(String, String)>,
    pub value: f64,
}

#[derive(Clone, Debug)]
struct Cursor {
    column: &'static Column,
    last: Oid,
}

#[derive(Clone, Debug)]
enum Step {
    Get(Vec<&'static Scalar>),
    Walk { group: u8, cursors: Vec<Cursor> },
}

/// A poll that is under way.
#[derive(Clone, Debug)]
pub struct Poll {
    /// What is asked for now; the last one. Those before it come after it.
    steps: Vec<Step>,
    repetitions: i32,
    /// Columns that are asked for at once.
    columns: usize,
    requests: usize,
    scalars: Vec<(&'static Scalar, Kept)>,
    cells: BTreeMap<Table, Vec<Cell>>,
    count: usize,
    bytes: usize,
    unread: u64,
    groups: BTreeSet<u8>,
}

#[derive(Clone, Debug)]
struct Cell {
    column: &'static Column,
    row: Vec<u32>,
    kept: Kept,
}

/// What is needed of a value.
#[derive(Clone, Debug)]
enum Kept {
    Number(f64),
    /// As a label has it.
    Text(String),
}

impl Kept {
    /// `None`: it cannot be read, or is a sample that is no number.
    fn new(of: Use, value: &Value) -> Option<Self> {
        match (of, value) {
            (_, Value::Unread(_)) => None,
            (Use::Sample, value) => value.number().map(Self::Number),
            (Use::Label | Use::Info, value) => Some(Self::Text(label(value))),
        }
    }

    const fn text_bytes(&self) -> usize {
        match self {
            Self::Number(_) => 0,
            Self::Text(text) => text.len(),
        }
    }
}

impl Poll {
    pub fn new(repetitions: i32) -> Self {
        let walk = |group| Step::Walk {
            group,
            cursors: COLUMNS.iter().filter(|c| c.group == group).map(Cursor::new).collect(),
        };
        let gets = SCALARS.iter().map(|list| Step::Get(list.iter().collect()));
        let mut steps: Vec<_> = gets.chain((0..GROUPS).map(walk)).collect();
        steps.reverse();
        Self {
            steps,
            repetitions: repetitions.clamp(1, REPETITIONS_MAX),
            columns: usize::MAX,
            requests: 0,
            scalars: vec![],
            cells: BTreeMap::new(),
            count: 0,
            bytes: CELL_BYTES,
            unread: 0,
            groups: BTreeSet::new(),
        }
    }

    /// What to ask now; its number is the session's to give. `None`: all was asked.
    pub fn question(&mut self) -> Result<Option<Pdu>, PollError> {
        while let Some(step) = self.steps.last() {
            let (kind, oids): (_, Vec<Oid>) = match step {
                Step::Get(scalars) => (Kind::Get, scalars.iter().map(|s| s.oid.into()).collect()),
                Step::Walk { group, .. } if *group == NARROW_COUNTERS && self.groups.contains(&WIDE_COUNTERS) => {
                    self.steps.pop();
                    continue;
                }
                Step::Walk { cursors, .. } => {
                    let asked = cursors.iter().take(self.columns);
                    (Kind::GetBulk, asked.map(|c| c.last.clone()).collect())
                }
            };
            if oids.is_empty() {
                self.steps.pop();
                continue;
            }
            if self.requests == REQUESTS_MAX {
                return Err(PollError::TooManyRequests);
            }
            self.requests += 1;
            let repetitions = if kind == Kind::GetBulk { self.repetitions } else { 0 };
            return Ok(Some(Pdu {
                kind,
                request_id: 0,
                error_status: 0,
                error_index: repetitions,
                varbinds: oids.into_iter().map(|oid| (oid, Value::Null)).collect(),
            }));
        }
        Ok(None)
    }

    /// Takes the answer to what was asked last.
    pub fn take(&mut self, answer: Pdu) -> Result<(), PollError> {
        if answer.error_status == TOO_BIG {
            return self.ask_for_less();
        }
        let Some(step) = self.steps.pop() else { return Ok(()) };
        if answer.error_status != 0 {
            let place = usize::try_from(answer.error_index).unwrap_or(0).saturating_sub(1);
            return Err(PollError::Refused {
                error: error_name(answer.error_status),
                oid: answer
                    .varbinds
                    .get(place)
                    .map_or_else(|| "it".to_owned(), |(oid, _)| oid.to_string()),
            });
        }
        match step {
            Step::Get(scalars) => {
                for (oid, value) in answer.varbinds {
                    let asked = scalars.iter().find(|s| s.oid == oid.ids());
                    let Some(scalar) = asked.filter(|_| !value.is_absent()) else {
                        continue;
                    };
                    let Some(kept) = Kept::new(scalar.of, &value) else {
                        self.unread += 1;
                        continue;
                    };
                    self.charge(kept.text_bytes())?;
                    self.scalars.push((scalar, kept));
                }
                Ok(())
            }
            Step::Walk { group, cursors } => self.walk(group, cursors, answer),
        }
    }

    /// What its samples come to in memory, about: what is held now is less.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Values that were left out, because they cannot be read or are no numbers.
    pub const fn unread(&self) -> u64 {
        self.unread
    }

    fn charge(&mut self, text_bytes: usize) -> Result<(), PollError> {
        self.bytes += CELL_BYTES + text_bytes;
        match self.bytes > POLL_BYTES_MAX {
            true => Err(PollError::TooManyBytes),
            false => Ok(()),
        }
    }

    fn walk(&mut self, group: u8, mut cursors: Vec<Cursor>, answer: Pdu) -> Result<(), PollError> {
        if answer.varbinds.is_empty() {
            return Err(PollError::Empty);
        }
        let asked = cursors.len().min(self.columns);
        let mut is_over = vec![false; cursors.len()];
        for (i, (oid, value)) in answer.varbinds.into_iter().enumerate() {
            let at = i % asked;
            let cursor = &mut cursors[at];
            if is_over[at] {
                continue;
            }
            let row = oid
                .below(cursor.column.oid)
                .filter(|row| !row.is_empty() && !value.is_absent());
            let Some(row) = row else {
                is_over[at] = true;
                continue;
            };
            if oid <= cursor.last {
                let last = cursor.last.clone();
                return Err(PollError::Circle { last });
            }
            if self.count == CELLS_MAX {
                return Err(PollError::TooManyCells);
            }
            self.count += 1;
            let (column, row) = (cursor.column, row.to_vec());
            cursor.last = oid;
            let Some(kept) = Kept::new(column.of, &value) else {
                self.unread += 1;
                continue;
            };
            self.groups.insert(group);
            // A label stands in each sample of its row, and ifDescr does where there is no ifName.
            let is_in_all = column.of == Use::Label || column.name == "ifDescr";
            let times = if is_in_all { samples_of(column.table) } else { 1 };
            self.charge(kept.text_bytes() * times + row.len() * 16)?;
            self.cells
                .entry(column.table)
                .or_default()
                .push(Cell { column, row, kept });
        }
        let mut over = is_over.into_iter();
        cursors.retain(|_| !over.next().unwrap_or(false));
        self.steps.push(Step::Walk { group, cursors });
        Ok(())
    }

    fn ask_for_less(&mut self) -> Result<(), PollError> {
        match self.steps.last_mut() {
            Some(Step::Walk { .. }) if self.repetitions > 1 => self.repetitions /= 2,
            Some(Step::Walk { .. }) if self.columns > 1 => self.columns = 1,
            Some(Step::Get(scalars)) if scalars.len() > 1 => {
                let half = scalars.split_off(scalars.len() / 2);
                self.steps.push(Step::Get(half));
            }
            _ => return Err(PollError::TooBig),
        }
        Ok(())
    }

    /// The samples of a poll that went through.
    pub fn finish(self) -> Vec<Reading> {
        let mut readings = vec![];
        let mut about: Vec<(String, String)> = vec![];
        for (scalar, kept) in self.scalars {
            match kept {
                Kept::Number(number) => readings.push(reading(scalar.name, vec![], number)),
                Kept::Text(text) => about.push((scalar.name.to_owned(), text)),
            }
        }
        readings.push(reading(DEVICE_INFO, about, 1.0));
        for (table, cells) in self.cells {
            rows(table, &cells, &mut readings);
        }
        readings
    }
}

impl Cursor {
    fn new(column: &'static Column) -> Self {
        let last = column.oid.into();
        Self { column, last }
    }
}

fn reading(name: &str, mut pairs: Vec<(String, String)>, value: f64) -> Reading {
    pairs.retain(|(_, v)| !v.is_empty());
    pairs.push((METRIC_NAME.to_owned(), name.to_owned()));
    Reading { pairs, value }
}

/// A value as a label has it.
fn label(value: &Value) -> String {
    let mut shown = match value {
        Value::Octets(bytes) => text(bytes),
        other => other.to_string(),
    };
    shown.truncate(shown.floor_char_boundary(LABEL_VALUE_BYTES_MAX));
    shown.replace(char::is_control, " ").trim().to_owned()
}

/// Samples that a row may have, and the one that describes it.
fn samples_of(table: Table) -> usize {
    let columns = COLUMNS.iter().filter(|c| c.table == table && c.of == Use::Sample);
    columns.count() + 1
}

fn rows(table: Table, cells: &[Cell], readings: &mut Vec<Reading>) {
    let mut texts: BTreeMap<&[u32], BTreeMap<&str, &str>> = BTreeMap::new();
    for cell in cells {
        if let Kept::Text(text) = &cell.kept {
            texts.entry(&cell.row).or_default().insert(cell.column.name, text);
        }
    }
    let text_of = |row: &[u32], name: &str| {
        texts
            .get(row)
            .and_then(|t| t.get(name))
            .filter(|t| !t.is_empty())
            .map(|t| (*t).to_owned())
    };
    let index_of = |row: &[u32]| {
        let index = row.iter().map(u32::to_string).collect::<Vec<_>>().join(".");
        (table.index_label().to_owned(), index)
    };
    let named = |row: &[u32]| {
        let mut pairs = vec![index_of(row)];
        let labels = COLUMNS.iter().filter(|c| c.table == table && c.of == Use::Label);
        for column in labels {
            // Devices without ifXTable have the older name only.
            let text = text_of(row, column.name)
                .or_else(|| (column.name == "ifName").then(|| text_of(row, "ifDescr")).flatten());
            pairs.extend(text.map(|text| (column.name.to_owned(), text)));
        }
        pairs
    };
    for cell in cells {
        if let Kept::Number(number) = cell.kept {
            readings.push(reading(cell.column.name, named(&cell.row), number));
        }
    }
    if table == Table::Interfaces {
        for row in texts.keys() {
            let mut pairs = named(row);
            for name in ["ifDescr", "ifAlias", "ifType"] {
                pairs.extend(text_of(row, name).map(|text| (name.to_owned(), text)));
            }
            readings.push(reading(INTERFACE_INFO, pairs, 1.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;
    use std::fmt::Write;

    /// A device that has these objects and answers as RFC 3416 says.
    struct Agent {
        objects: BTreeMap<Oid, Value>,
        /// Values that fit in one of its answers.
        values_max: usize,
    }

    impl Agent {
        fn new(objects: &[(&str, Value)], values_max: usize) -> Self {
            let objects = objects
                .iter()
                .map(|(oid, v)| (oid.parse().unwrap(), v.clone()))
                .collect();
            Self { objects, values_max }
        }

        fn after(&self, oid: &Oid) -> (Oid, Value) {
            let above = (std::ops::Bound::Excluded(oid.clone()), std::ops::Bound::Unbounded);
            let next = self
                .objects
                .range(above)
                .next()
                .map(|(oid, v)| (oid.clone(), v.clone()));
            next.unwrap_or((oid.clone(), Value::EndOfMibView))
        }

        fn answer(&self, asked: &Pdu) -> Pdu {
            let mut varbinds = vec![];
            match asked.kind {
                Kind::Get => {
                    for (oid, _) in &asked.varbinds {
                        varbinds.push((
                            oid.clone(),
                            self.objects.get(oid).cloned().unwrap_or(Value::NoSuchObject),
                        ));
                    }
                    if varbinds.len() > self.values_max {
                        return Pdu {
                            error_status: TOO_BIG,
                            varbinds: vec![],
                            ..asked.answer()
                        };
                    }
                }
                _ => {
                    let mut last: Vec<_> = asked.varbinds.iter().map(|(oid, _)| oid.clone()).collect();
                    if last.len() > self.values_max {
                        return Pdu {
                            error_status: TOO_BIG,
                            error_index: 0,
                            varbinds: vec![],
                            ..asked.clone()
                        };
                    }
                    for _ in 0..asked.error_index {
                        for last in &mut last {
                            let (oid, value) = self.after(last);
                            *last = oid.clone();
                            varbinds.push((oid, value));
                        }
                    }
                    varbinds.truncate(self.values_max);
                }
            }
            Pdu {
                varbinds,
                error_status: 0,
                error_index: 0,
                kind: Kind::Response,
                ..asked.clone()
            }
        }
    }

    fn run(agent: &Agent, repetitions: i32) -> Result<(Vec<Reading>, usize), PollError> {
        let mut poll = Poll::new(repetitions);
        while let Some(asked) = poll.question()? {
            poll.take(agent.answer(&asked))?;
        }
        let requests = poll.requests;
        Ok((poll.finish(), requests))
    }

    fn check(agent: &Agent, expect: Expect) {
        let mut out = String::new();
        match run(agent, 3) {
            Ok((readings, requests)) => {
                for r in readings {
                    let (last, pairs) = r.pairs.split_last().unwrap();
                    let pairs: Vec<_> = pairs.iter().map(|(n, v)| format!("{n}={v}")).collect();
                    writeln!(out, "{}{{{}}} {}", last.1, pairs.join(","), r.value).unwrap();
                }
                writeln!(out, "{requests} requests").unwrap();
            }
            Err(why) => out = why.to_string(),
        }
        expect.assert_eq(&out);
    }

    fn octets(text: &str) -> Value {
        Value::Octets(text.as_bytes().to_vec())
    }

    fn switch() -> Vec<(&'static str, Value)> {
        vec![
            ("1.3.6.1.2.1.1.1.0", octets("A switch\nof two ports")),
            ("1.3.6.1.2.1.1.2.0", Value::Oid("1.3.6.1.4.1.9".parse().unwrap())),
            ("1.3.6.1.2.1.1.3.0", Value::TimeTicks(4200)),
            ("1.3.6.1.2.1.1.5.0", octets("sw-1")),
            ("1.3.6.1.2.1.2.2.1.2.1", octets("GigabitEthernet0/1")),
            ("1.3.6.1.2.1.2.2.1.2.2", octets("GigabitEthernet0/2")),
            ("1.3.6.1.2.1.2.2.1.7.1", Value::Integer(1)),
            ("1.3.6.1.2.1.2.2.1.8.1", Value::Integer(2)),
            ("1.3.6.1.2.1.2.2.1.14.1", Value::Counter32(7)),
            ("1.3.6.1.2.1.25.3.3.1.2.196608", Value::Integer(12)),
            ("1.3.6.1.2.1.25.2.3.1.3.1", octets("Physical memory")),
            ("1.3.6.1.2.1.25.2.3.1.6.1", Value::Integer(1000)),
        ]
    }

    fn wide() -> Vec<(&'static str, Value)> {
        let mut all = switch();
        all.extend([
            ("1.3.6.1.2.1.31.1.1.1.1.1", octets("Gi0/1")),
            ("1.3.6.1.2.1.31.1.1.1.6.1", Value::Counter64(1 << 40)),
            ("1.3.6.1.2.1.31.1.1.1.10.1", Value::Counter64(5)),
            ("1.3.6.1.2.1.31.1.1.1.18.1", octets("uplink\0")),
            ("1.3.6.1.2.1.2.2.1.10.1", Value::Counter32(9)),
        ]);
        all
    }

    #[test]
    fn a_switch_with_wide_counters_has_no_narrow_ones() {
        check(
            &Agent::new(&wide(), 100),
            expect![[r#"
                sysUpTime{} 4200
                snmp_device_info{sysDescr=A switch of two ports,sysObjectID=1.3.6.1.4.1.9,sysName=sw-1} 1
                ifAdminStatus{ifIndex=1,ifName=Gi0/1} 1
                ifOperStatus{ifIndex=1,ifName=Gi0/1} 2
                ifInErrors{ifIndex=1,ifName=Gi0/1} 7
                ifHCInOctets{ifIndex=1,ifName=Gi0/1} 1099511627776
                ifHCOutOctets{ifIndex=1,ifName=Gi0/1} 5
                snmp_interface_info{ifIndex=1,ifName=Gi0/1,ifDescr=GigabitEthernet0/1,ifAlias=uplink} 1
                snmp_interface_info{ifIndex=2,ifName=GigabitEthernet0/2,ifDescr=GigabitEthernet0/2} 1
                hrProcessorLoad{hrDeviceIndex=196608} 12
                hrStorageUsed{hrStorageIndex=1,hrStorageDescr=Physical memory} 1000
                7 requests
            "#]],
        );
    }

    #[test]
    fn a_switch_without_wide_counters_is_asked_for_the_others() {
        let mut all = switch();
        all.push(("1.3.6.1.2.1.2.2.1.10.1", Value::Counter32(9)));
        check(
            &Agent::new(&all, 100),
            expect![[r#"
            sysUpTime{} 4200
            snmp_device_info{sysDescr=A switch of two ports,sysObjectID=1.3.6.1.4.1.9,sysName=sw-1} 1
            ifAdminStatus{ifIndex=1,ifName=GigabitEthernet0/1} 1
            ifOperStatus{ifIndex=1,ifName=GigabitEthernet0/1} 2
            ifInErrors{ifIndex=1,ifName=GigabitEthernet0/1} 7
            ifInOctets{ifIndex=1,ifName=GigabitEthernet0/1} 9
            snmp_interface_info{ifIndex=1,ifName=GigabitEthernet0/1,ifDescr=GigabitEthernet0/1} 1
            snmp_interface_info{ifIndex=2,ifName=GigabitEthernet0/2,ifDescr=GigabitEthernet0/2} 1
            hrProcessorLoad{hrDeviceIndex=196608} 12
            hrStorageUsed{hrStorageIndex=1,hrStorageDescr=Physical memory} 1000
            8 requests
        "#]],
        );
    }

    #[test]
    fn a_device_that_has_nothing_is_described_all_the_same() {
        check(
            &Agent::new(&[], 100),
            expect![[r#"
            snmp_device_info{} 1
            8 requests
        "#]],
        );
    }

    #[test]
    fn a_device_whose_answers_are_small_is_asked_more_often_and_says_the_same() {
        let (much, few) = (
            run(&Agent::new(&wide(), 100), 20).unwrap(),
            run(&Agent::new(&wide(), 1), 20).unwrap(),
        );
        let sorted = |mut readings: Vec<Reading>| {
            readings.iter_mut().for_each(|r| r.pairs.sort());
            readings.sort_by(|a, b| a.pairs.cmp(&b.pairs));
            readings
        };
        assert_eq!(sorted(much.0), sorted(few.0));
        assert!(much.1 < few.1, "{} {}", much.1, few.1);
        assert_eq!(run(&Agent::new(&wide(), 0), 20), Err(PollError::TooBig));
    }

    #[test]
    fn an_agent_that_goes_in_circles_is_left() {
        let mut poll = Poll::new(2);
        poll.steps.truncate(GROUPS.into());
        let asked = poll.question().unwrap().unwrap();
        let row = |n: u32| Oid::from([asked.varbinds[0].0.ids(), &[n][..]].concat());
        let columns = asked.varbinds.len();
        let mut varbinds = vec![(row(2), Value::Integer(1)); columns];
        varbinds.push((row(1), Value::Integer(1)));
        let answer = Pdu {
            varbinds,
            kind: Kind::Response,
            ..asked.clone()
        };
        let said = poll.take(answer);
        assert_eq!(said, Err(PollError::Circle { last: row(2) }));
        let empty = Pdu {
            varbinds: vec![],
            kind: Kind::Response,
            ..asked
        };
        let mut poll = Poll::new(2);
        poll.steps.truncate(GROUPS.into());
        poll.question().unwrap();
        assert_eq!(poll.take(empty), Err(PollError::Empty));
    }

    #[test]
    fn an_error_says_of_what() {
        let mut poll = Poll::new(2);
        let asked = poll.question().unwrap().unwrap();
        let answer = Pdu {
            kind: Kind::Response,
            error_status: 5,
            error_index: 3,
            ..asked
        };
        let said = poll.take(answer).unwrap_err().to_string();
        assert_eq!(said, "the device answers genErr to a question for 1.3.6.1.2.1.1.3.0");
    }

    /// Each answer brings one row more, without end.
    fn endless(varbinds_of: impl Fn(&Pdu, u32) -> Vec<crate::pdu::VarBind>) -> PollError {
        let mut poll = Poll::new(REPETITIONS_MAX);
        for n in 0.. {
            let asked = match poll.question() {
                Ok(asked) => asked.unwrap(),
                Err(why) => return why,
            };
            let varbinds = varbinds_of(&asked, n);
            if let Err(why) = poll.take(Pdu {
                varbinds,
                kind: Kind::Response,
                error_index: 0,
                ..asked
            }) {
                return why;
            }
        }
        unreachable!()
    }

    #[test]
    fn tables_without_an_end_come_to_one() {
        let many = endless(|asked, n| match asked.kind {
            Kind::Get => vec![],
            _ => {
                let column = &COLUMNS[0].oid;
                let mut all = vec![];
                for i in 0..1000 {
                    all.push((Oid::from([column, &[n * 1000 + i + 1][..]].concat()), Value::Integer(1)));
                    all.extend(
                        asked.varbinds[1..]
                            .iter()
                            .map(|(oid, _)| (oid.clone(), Value::EndOfMibView)),
                    );
                }
                all
            }
        });
        assert_eq!(many, PollError::TooManyCells);
        let slow = endless(|asked, n| match asked.kind {
            Kind::Get => vec![],
            _ => vec![(Oid::from([COLUMNS[0].oid, &[n + 1][..]].concat()), Value::Integer(1))],
        });
        assert_eq!(slow, PollError::TooManyRequests);
    }

    /// Polls of such devices took the room of all pages.
    #[test]
    fn a_device_of_long_texts_takes_what_is_kept_of_them_and_no_more_than_the_bound() {
        let long = |n: usize| octets(&"x".repeat(n));
        let bytes_of = |text: Value| {
            let mut poll = Poll::new(20);
            let agent = Agent::new(&[("1.3.6.1.2.1.31.1.1.1.18.1", text)], 100);
            while let Some(asked) = poll.question().unwrap() {
                poll.take(agent.answer(&asked)).unwrap();
            }
            poll.bytes()
        };
        assert_eq!(bytes_of(long(60_000)), bytes_of(long(LABEL_VALUE_BYTES_MAX)));
        assert!(bytes_of(long(60_000)) < 60_000);
        let said = endless(|asked, n| match asked.kind {
            Kind::Get => vec![],
            _ => {
                let at = |i: u32| n * 10 + i + 1;
                let mut all = vec![];
                for i in 0..10 {
                    all.extend(asked.varbinds.iter().map(|(oid, _)| {
                        let column = COLUMNS.iter().find(|c| oid.below(c.oid).is_some()).unwrap();
                        (Oid::from([column.oid, &[at(i)][..]].concat()), long(8000))
                    }));
                }
                all
            }
        });
        assert_eq!(said, PollError::TooManyBytes);
    }

    /// The whole device had no samples, and was said to be away.
    #[test]
    fn a_value_that_cannot_be_read_is_left_out_by_itself() {
        let unread = || Value::Unread(vec![0x46, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        let agent = Agent::new(
            &[
                ("1.3.6.1.2.1.1.1.0", unread()),
                ("1.3.6.1.2.1.1.3.0", Value::TimeTicks(4200)),
                ("1.3.6.1.2.1.2.2.1.10.1", Value::Counter32(5)),
                ("1.3.6.1.2.1.31.1.1.1.1.1", octets("eth0")),
                ("1.3.6.1.2.1.31.1.1.1.1.2", unread()),
                ("1.3.6.1.2.1.31.1.1.1.6.1", unread()),
                ("1.3.6.1.2.1.31.1.1.1.6.2", Value::Counter64(7)),
                // A text where a number belongs.
                ("1.3.6.1.2.1.31.1.1.1.10.1", octets("many")),
            ],
            100,
        );
        let mut poll = Poll::new(20);
        while let Some(asked) = poll.question().unwrap() {
            poll.take(agent.answer(&asked)).unwrap();
        }
        assert_eq!(poll.unread(), 4);
        let shown = |r: &Reading| {
            let pairs: Vec<_> = r.pairs.iter().map(|(n, v)| format!("{n}={v}")).collect();
            format!("{} {}", pairs.join(" "), r.value)
        };
        let shown: Vec<_> = poll.finish().iter().map(shown).collect();
        expect![[r#"
            __name__=sysUpTime 4200
            __name__=snmp_device_info 1
            ifIndex=2 __name__=ifHCInOctets 7
            ifIndex=1 ifName=eth0 __name__=snmp_interface_info 1"#]]
        .assert_eq(&shown.join("\n"));
        // Where no counter of 64 bits can be read, those of 32 are asked for.
        let agent = Agent::new(
            &[
                ("1.3.6.1.2.1.2.2.1.10.1", Value::Counter32(5)),
                ("1.3.6.1.2.1.31.1.1.1.6.1", unread()),
            ],
            100,
        );
        let (readings, _) = run(&agent, 20).unwrap();
        assert!(readings.iter().any(|r| r.pairs.last().unwrap().1 == "ifInOctets"));
    }

    /// What is charged before the samples are made is not less than what they are.
    #[test]
    fn what_a_poll_counts_is_what_its_samples_take() {
        let mut objects = BTreeMap::new();
        for row in 1..50 {
            for column in COLUMNS {
                let value = match column.of {
                    Use::Sample => Value::Counter64(1 << 40),
                    Use::Label | Use::Info => octets(&"x".repeat(5000)),
                };
                objects.insert(Oid::from([column.oid, &[row][..]].concat()), value);
            }
        }
        let (agent, mut poll) = (
            Agent {
                objects,
                values_max: 100,
            },
            Poll::new(20),
        );
        while let Some(asked) = poll.question().unwrap() {
            poll.take(agent.answer(&asked)).unwrap();
        }
        let counted = poll.bytes();
        let pair = |(n, v): &(String, String)| n.len() + v.len() + 2 * size_of::<String>();
        let taken: usize = poll
            .finish()
            .iter()
            .map(|r| size_of::<Reading>() + r.pairs.iter().map(pair).sum::<usize>())
            .sum();
        assert!((taken..3 * taken).contains(&counted), "{counted} {taken}");
    }

    #[test]
    fn a_text_is_no_longer_than_a_label_may_be() {
        let long = "가".repeat(LABEL_VALUE_BYTES_MAX);
        let shown = label(&octets(&long));
        assert!(shown.len() <= LABEL_VALUE_BYTES_MAX && long.starts_with(&shown));
    }

    proptest! {
        /// However an agent cuts its answers, each value comes once.
        #[test]
        fn every_value_of_the_panel_comes_once(
            rows in proptest::collection::btree_set(1u32..5000, 0..40),
            columns in proptest::collection::vec(0..COLUMNS.len(), 1..12),
            repetitions in 1i32..30,
            values_max in 1usize..80,
        ) {
            let columns: BTreeSet<_> = columns.into_iter().collect();
            let mut objects = BTreeMap::new();
            for column in &columns {
                for row in &rows {
                    let value = Value::Gauge32(row * 1000 + *column as u32);
                    objects.insert(Oid::from([COLUMNS[*column].oid, &[*row][..]].concat()), value);
                }
            }
            let agent = Agent { objects, values_max };
            let (readings, _) = run(&agent, repetitions).unwrap();
            let has_wide = columns.iter().any(|c| COLUMNS[*c].group == WIDE_COUNTERS);
            let is_sample = |c: &&usize| COLUMNS[**c].of == Use::Sample && !(has_wide && COLUMNS[**c].group == NARROW_COUNTERS);
            let mut wanted = BTreeSet::new();
            for column in columns.iter().filter(is_sample) {
                let of = &COLUMNS[*column];
                wanted.extend(rows.iter().map(|row| (of.name, of.table.index_label(), *row, row * 1000 + *column as u32)));
            }
            let mut told = vec![];
            for r in readings.iter().filter(|r| ![DEVICE_INFO, INTERFACE_INFO].contains(&&*r.pairs.last().unwrap().1)) {
                let (name, (label, row)) = (&r.pairs.last().unwrap().1, &r.pairs[0]);
                told.push((name.as_str(), label.as_str(), row.parse::<u32>().unwrap(), r.value as u32));
            }
            told.sort_unstable();
            prop_assert_eq!(told, wanted.into_iter().collect::<Vec<_>>());
        }
    }
}

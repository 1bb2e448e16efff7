//! Which lines of a block a filter takes: the same as if each line were built and tested, but seldom by doing so.
//!
//! Order of work: the word filter may rule the block out. Each test is an automaton over bytes; it is run over each
//! template once, with all values that a variable could have, which mostly settles all lines of the template. For the
//! rest it is run over text and values column by column: text once for all lines in the same state, a column only where
//! its bytes could change a state. Only a test whose automaton would be too large has its lines built and searched.

use super::block::{Block, Column, ColumnAt, Directory, Section, Template};
use super::column::{held, holds};
use super::template::{Digits, Token, Var, put_value};
use super::words::{Probe, WordFilter};
use crate::error::ReadError;
use bytes::Bytes;
use hashbrown::HashTable;
use hindcast_model::matcher::REGEX_BYTES_MAX;
use memchr::memmem;
use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::util::primitives::StateID;
use regex_automata::util::{start, syntax};
use regex_automata::{Anchored, nfa::thompson};
use regex_syntax::hir::{Hir, HirKind};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// A larger automaton is not built; lines are then built and tested.
const AUTOMATON_BYTES_MAX: usize = 1 << 20;
/// Working memory of building one.
const DETERMINIZE_BYTES_MAX: usize = 4 << 20;
/// Longer needles are searched for in built lines.
const NEEDLE_AUTOMATON_BYTES_MAX: usize = 256;
/// A template is not settled without its values once a search could be in more states.
const STATES_MAX: usize = 48;
/// Templates that a search remembers, in bytes of their texts.
const SETTLED_BYTES_MAX: usize = 4 << 20;
/// Texts a regex needs that the word filter is asked for.
const PROBES_MAX: usize = 8;

/// A regex that cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{pattern}` is no regex that can be searched for: {why}")]
pub struct BadFilter {
    pub pattern: String,
    pub why: String,
}

/// What lines are asked for. An empty `And` takes all lines, an empty `Or` none.
#[derive(Clone, Debug)]
pub enum Filter {
    Test(Arc<Test>),
    Not(Box<Filter>),
    And(Vec<Filter>),
    Or(Vec<Filter>),
}

/// A filter as it is written down: what crosses the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FilterText {
    Contains(Bytes),
    Regex(String),
    Not(Box<FilterText>),
    And(Vec<FilterText>),
    Or(Vec<FilterText>),
}

impl TryFrom<&FilterText> for Filter {
    type Error = BadFilter;

    fn try_from(text: &FilterText) -> Result<Self, BadFilter> {
        let all = |parts: &[FilterText]| parts.iter().map(Self::try_from).collect::<Result<Vec<_>, _>>();
        Ok(match text {
            FilterText::Contains(needle) => Self::contains(needle),
            FilterText::Regex(pattern) => Self::regex(pattern)?,
            FilterText::Not(inner) => Self::try_from(&**inner)?.negated(),
            FilterText::And(parts) => Self::And(all(parts)?),
            FilterText::Or(parts) => Self::Or(all(parts)?),
        })
    }
}

impl From<&Filter> for FilterText {
    fn from(filter: &Filter) -> Self {
        let all = |parts: &[Filter]| parts.iter().map(Self::from).collect();
        match filter {
            Filter::Test(test) => match &test.how {
                How::Needle(finder) => Self::Contains(Bytes::copy_from_slice(finder.needle())),
                How::Regex(regex) => Self::Regex(regex.as_str().to_owned()),
            },
            Filter::Not(inner) => Self::Not(Box::new(Self::from(&**inner))),
            Filter::And(parts) => Self::And(all(parts)),
            Filter::Or(parts) => Self::Or(all(parts)),
        }
    }
}

/// One test of a line.
pub struct Test {
    how: How,
    automaton: Option<Automat>,
    /// Without one: of the longest text that every match holds.
    guard: Option<Automat>,
    /// What the words of a block must pass.
    probes: Vec<Probe>,
    /// Can be run over many lines with newlines between them, since it does not look at their ends.
    joins: bool,
}

enum How {
    Needle(Box<memmem::Finder<'static>>),
    Regex(regex::bytes::Regex),
}

impl std::fmt::Debug for Test {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.how {
            How::Needle(n) => write!(f, "contains {:?}", String::from_utf8_lossy(n.needle())),
            How::Regex(r) => write!(f, "matches {r:?}"),
        }
    }
}

impl Filter {
    /// All lines.
    pub const fn all() -> Self {
        Self::And(vec![])
    }

    /// Whether it takes all lines without looking at them.
    pub fn is_all(&self) -> bool {
        matches!(self, Self::And(all) if all.iter().all(Self::is_all))
    }

    /// Lines that hold these bytes.
    pub fn contains(needle: &[u8]) -> Self {
        let probe = Probe::new(needle);
        Self::Test(Arc::new(Test {
            how: How::Needle(Box::new(memmem::Finder::new(needle).into_owned())),
            automaton: Automat::of_text(needle),
            guard: None,
            probes: if probe.is_empty() { vec![] } else { vec![probe] },
            joins: true,
        }))
    }

    /// Lines in which a regex matches somewhere; syntax and meaning as `regex::bytes` has them.
    pub fn regex(pattern: &str) -> Result<Self, BadFilter> {
        let bad = |why: String| BadFilter {
            pattern: pattern.to_owned(),
            why: why.lines().last().unwrap_or("").to_owned(),
        };
        let built = regex::bytes::RegexBuilder::new(pattern)
            .size_limit(REGEX_BYTES_MAX)
            .build();
        let regex = built.map_err(|e| bad(e.to_string()))?;
        let parsed = regex_syntax::ParserBuilder::new().utf8(false).build().parse(pattern);
        let hir = parsed.map_err(|e| bad(e.to_string()))?;
        let mut literals = vec![];
        required_literals(&hir, &mut literals);
        let probes = literals.iter().map(|l| Probe::new(l)).filter(|p| !p.is_empty());
        let automaton = Automat::new(pattern);
        let longest = literals.iter().max_by_key(|l| l.len());
        Ok(Self::Test(Arc::new(Test {
            how: How::Regex(regex),
            guard: longest
                .filter(|_| automaton.is_none())
                .and_then(|l| Automat::of_text(l)),
            automaton,
            probes: probes.take(PROBES_MAX).collect(),
            joins: hir.properties().look_set().is_empty(),
        })))
    }

    /// Turns the answer around.
    pub fn negated(self) -> Self {
        Self::Not(Box::new(self))
    }

    /// Whether a line passes.
    pub fn is_match(&self, line: &[u8]) -> bool {
        match self {
            Self::Test(test) => test.is_match(line),
            Self::Not(inner) => !inner.is_match(line),
            Self::And(all) => all.iter().all(|f| f.is_match(line)),
            Self::Or(any) => any.iter().any(|f| f.is_match(line)),
        }
    }

    /// Whether the words of a block can rule it out.
    pub(super) fn asks_words(&self) -> bool {
        match self {
            Self::Test(test) => !test.probes.is_empty(),
            Self::Not(_) => false,
            Self::And(parts) => parts.iter().any(Self::asks_words),
            Self::Or(parts) => !parts.is_empty() && parts.iter().all(Self::asks_words),
        }
    }

    pub(super) fn may_match(&self, words: &WordFilter<'_>) -> bool {
        match self {
            Self::Test(test) => test.probes.iter().all(|p| words.may_hold(p)),
            Self::Not(_) => true,
            Self::And(parts) => parts.iter().all(|f| f.may_match(words)),
            Self::Or(parts) => parts.iter().any(|f| f.may_match(words)),
        }
    }
}

/// Texts that every match holds.
fn required_literals(hir: &Hir, out: &mut Vec<Vec<u8>>) {
    match hir.kind() {
        HirKind::Literal(literal) => out.push(literal.0.to_vec()),
        HirKind::Capture(capture) => required_literals(&capture.sub, out),
        HirKind::Repetition(r) if r.min > 0 => required_literals(&r.sub, out),
        HirKind::Concat(parts) => parts.iter().for_each(|p| required_literals(p, out)),
        _ => {}
    }
}

impl Test {
    fn is_match(&self, line: &[u8]) -> bool {
        match &self.how {
            How::Needle(n) => n.find(line).is_some(),
            How::Regex(r) => r.is_match(line),
        }
    }

    fn find(&self, text: &[u8], from: usize) -> Option<Range<usize>> {
        match &self.how {
            How::Needle(n) => n.find(&text[from..]).map(|at| from + at..from + at + n.needle().len()),
            How::Regex(r) => r.find_at(text, from).map(|m| m.range()),
        }
    }

    /// Marks the lines that pass. `starts`: where each begins in `text`, and where one more would; each ends in a
    /// newline.
    fn search(&self, text: &[u8], starts: &[u32], found: &mut Bits) {
        let base = starts[0];
        let line = |i: usize| (starts[i] - base) as usize..(starts[i + 1] - base) as usize - 1;
        let lines = starts.len() - 1;
        if !self.joins {
            (0..lines)
                .filter(|&i| self.is_match(&text[line(i)]))
                .for_each(|i| found.set(i));
            return;
        }
        let mut i = 0;
        while i < lines {
            let Some(hit) = self.find(text, line(i).start) else {
                return;
            };
            i += starts[i..].partition_point(|&s| (s - base) as usize <= hit.start) - 1;
            if i >= lines {
                return;
            }
            // A match across lines hides one inside of the line, if there is any.
            if hit.end <= line(i).end || self.is_match(&text[line(i)]) {
                found.set(i);
            }
            i += 1;
        }
    }
}

/// One bit per line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bits {
    words: Vec<u64>,
    len: usize,
}

impl Bits {
    fn new(len: usize) -> Self {
        Self {
            words: vec![0; len.div_ceil(64)],
            len,
        }
    }

    fn set(&mut self, i: usize) {
        self.words[i / 64] |= 1 << (i % 64);
    }

    fn get(&self, i: usize) -> bool {
        self.words[i / 64] >> (i % 64) & 1 == 1
    }

    fn count(&self) -> usize {
        self.words.iter().map(|w| w.count_ones() as usize).sum()
    }

    fn invert(&mut self) {
        self.words.iter_mut().for_each(|w| *w = !*w);
        if !self.len.is_multiple_of(64)
            && let Some(last) = self.words.last_mut()
        {
            *last &= (1 << (self.len % 64)) - 1;
        }
    }
}

/// Which of some lines pass.
#[derive(Clone, Debug)]
enum Verdict {
    None,
    All,
    Some(Bits),
}

impl Verdict {
    fn not(self) -> Self {
        match self {
            Self::None => Self::All,
            Self::All => Self::None,
            Self::Some(mut bits) => {
                bits.invert();
                Self::Some(bits)
            }
        }
    }

    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, _) | (_, Self::None) => Self::None,
            (Self::All, v) | (v, Self::All) => v,
            (Self::Some(mut a), Self::Some(b)) => {
                a.words.iter_mut().zip(&b.words).for_each(|(a, b)| *a &= b);
                Self::Some(a)
            }
        }
    }

    fn of(bits: Bits) -> Self {
        match bits.count() {
            0 => Self::None,
            n if n == bits.len => Self::All,
            _ => Self::Some(bits),
        }
    }

    fn holds(&self, i: usize) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Some(bits) => bits.get(i),
        }
    }
}

/// A filter's verdict out of the verdicts of its tests.
fn combine<E>(filter: &Filter, test: &mut impl FnMut(&Test) -> Result<Verdict, E>) -> Result<Verdict, E> {
    match filter {
        Filter::Test(t) => test(t),
        Filter::Not(inner) => Ok(combine(inner, test)?.not()),
        Filter::And(parts) => {
            let mut verdict = Verdict::All;
            for part in parts {
                verdict = verdict.and(combine(part, test)?);
                if matches!(verdict, Verdict::None) {
                    break;
                }
            }
            Ok(verdict)
        }
        Filter::Or(parts) => {
            let mut verdict = Verdict::All;
            for part in parts {
                verdict = verdict.and(combine(part, test)?.not());
                if matches!(verdict, Verdict::None) {
                    break;
                }
            }
            Ok(verdict.not())
        }
    }
}

// ---- the automaton ----

/// Tells after each byte whether a match has been seen. Matches show one byte late, or at the end.
struct Automat {
    dfa: dense::DFA<Vec<u32>>,
    start: StateID,
    /// One byte of each class of bytes that are never told apart, with what classes of our own it is in.
    alphabet: Vec<(u8, u8)>,
}

/// What one step leads to.
#[derive(Clone, Copy)]
enum Next {
    State(StateID),
    Matched,
    /// No match any more.
    Dead,
}

impl Automat {
    fn new(pattern: &str) -> Option<Self> {
        let dfa = dense::Builder::new()
            .configure(
                dense::Config::new()
                    .start_kind(StartKind::Unanchored)
                    .accelerate(false)
                    .dfa_size_limit(Some(AUTOMATON_BYTES_MAX))
                    .determinize_size_limit(Some(DETERMINIZE_BYTES_MAX)),
            )
            .thompson(
                thompson::Config::new()
                    .utf8(false)
                    .nfa_size_limit(Some(AUTOMATON_BYTES_MAX)),
            )
            .syntax(syntax::Config::new().utf8(false))
            .build(pattern)
            .ok()?;
        let start = dfa.start_state(&start::Config::new().anchored(Anchored::No)).ok()?;
        let classes = dfa.byte_classes();
        let mut alphabet: Vec<(u8, u8)> = vec![];
        for b in 0..=255u8 {
            let known = alphabet
                .iter_mut()
                .any(|(a, h)| classes.get(*a) == classes.get(b) && *h == held(b));
            if !known {
                alphabet.push((b, held(b)));
            }
        }
        Some(Self { dfa, start, alphabet })
    }

    /// Of a text that lines are to hold.
    fn of_text(text: &[u8]) -> Option<Self> {
        let pattern: String = text.iter().map(|b| format!("\\x{b:02x}")).collect();
        if text.len() <= NEEDLE_AUTOMATON_BYTES_MAX {
            Self::new(&format!("(?-u:{pattern})"))
        } else {
            None
        }
    }

    fn kind(&self, state: StateID) -> Next {
        if !self.dfa.is_special_state(state) {
            Next::State(state)
        } else if self.dfa.is_match_state(state) {
            Next::Matched
        } else if self.dfa.is_dead_state(state) || self.dfa.is_quit_state(state) {
            Next::Dead
        } else {
            Next::State(state)
        }
    }

    fn run(&self, mut state: StateID, bytes: &[u8]) -> Next {
        for &b in bytes {
            state = self.dfa.next_state(state, b);
            if self.dfa.is_special_state(state) {
                match self.kind(state) {
                    Next::State(_) => {}
                    end => return end,
                }
            }
        }
        Next::State(state)
    }

    fn ends_matched(&self, state: StateID) -> bool {
        self.dfa.is_match_state(self.dfa.next_eoi_state(state))
    }

    fn of_classes(&self, classes: u8) -> impl Iterator<Item = u8> + '_ {
        self.alphabet
            .iter()
            .filter(move |(_, held)| held & classes != 0)
            .map(|(b, _)| *b)
    }

    /// Whether bytes of these classes leave a state as it is.
    fn stays(&self, state: StateID, classes: u8) -> bool {
        self.of_classes(classes).all(|b| self.dfa.next_state(state, b) == state)
    }
}

/// All states that a search could be in, and how it may have ended already.
struct Possible<'a> {
    automat: &'a Automat,
    states: Vec<StateID>,
    matched: bool,
    dead: bool,
}

impl Possible<'_> {
    fn add(&mut self, states: &mut Vec<StateID>, next: Next) {
        match next {
            Next::State(s) if !states.contains(&s) => states.push(s),
            Next::State(_) => {}
            Next::Matched => self.matched = true,
            Next::Dead => self.dead = true,
        }
    }

    fn text(&mut self, bytes: &[u8]) {
        let mut after = vec![];
        for state in std::mem::take(&mut self.states) {
            let next = self.automat.run(state, bytes);
            self.add(&mut after, next);
        }
        self.states = after;
    }

    /// One byte out of these classes.
    fn one_of(&mut self, classes: u8) {
        let mut after = vec![];
        for state in std::mem::take(&mut self.states) {
            for b in self.automat.of_classes(classes) {
                let next = self.automat.kind(self.automat.dfa.next_state(state, b));
                self.add(&mut after, next);
            }
        }
        self.states = after;
    }

    /// Any number of bytes, up to `most`, out of these classes; false if there are too many states.
    fn some_of(&mut self, classes: u8, most: usize) -> bool {
        let mut all = std::mem::take(&mut self.states);
        let mut fresh = 0..all.len();
        for _ in 0..most {
            let end = all.len();
            for i in fresh.clone() {
                for b in self.automat.of_classes(classes) {
                    let next = self.automat.kind(self.automat.dfa.next_state(all[i], b));
                    self.add(&mut all, next);
                }
            }
            fresh = end..all.len();
            if fresh.is_empty() {
                break;
            }
            if all.len() > STATES_MAX {
                self.states = all;
                return false;
            }
        }
        self.states = all;
        true
    }

    fn var(&mut self, var: Var, held: u8) -> bool {
        match var {
            Var::Number(pad) => {
                (0..pad.max(1)).for_each(|_| self.one_of(holds::DIGITS));
                self.some_of(holds::DIGITS, 20)
            }
            Var::Time => {
                for part in 0..3 {
                    if part > 0 {
                        self.text(b":");
                    }
                    self.one_of(holds::DIGITS);
                    self.one_of(holds::DIGITS);
                }
                true
            }
            Var::Address => (0..4).all(|part| {
                if part > 0 {
                    self.text(b".");
                }
                self.one_of(holds::DIGITS);
                self.some_of(holds::DIGITS, 2)
            }),
            Var::String => self.some_of(held, usize::MAX),
        }
    }

    /// What holds for all lines, if something does.
    fn settled(mut self) -> Option<Verdict> {
        for state in std::mem::take(&mut self.states) {
            if self.automat.ends_matched(state) {
                self.matched = true;
            } else {
                self.dead = true;
            }
        }
        match (self.matched, self.dead) {
            (true, false) => Some(Verdict::All),
            (false, true) => Some(Verdict::None),
            _ => None,
        }
    }
}

/// Settles a template without its values.
fn settle(automat: &Automat, directory: &Directory, template: &Template) -> Option<Verdict> {
    let mut possible = Possible {
        automat,
        states: vec![automat.start],
        matched: false,
        dead: false,
    };
    let mut slot = 0;
    for token in &template.tokens {
        match token {
            Token::Text(range) => possible.text(&directory.text[range.clone()]),
            Token::Var(var) => {
                let column = &directory.columns[directory.column(template, slot)];
                slot += 1;
                if !possible.var(*var, column.held) {
                    return None;
                }
            }
        }
        if possible.matched && (possible.dead || possible.states.is_empty()) {
            break;
        }
        if possible.states.len() > STATES_MAX {
            return None;
        }
    }
    if possible.matched && possible.dead {
        return None;
    }
    possible.settled()
}

/// What holds for all lines of a template, whatever their values, as far as earlier blocks of the same search showed it:
/// blocks of one stream have mostly the same templates.
#[derive(Default)]
pub struct Settled {
    table: HashTable<Known>,
    keys: Vec<u8>,
    key: Vec<u8>,
}

struct Known {
    hash: u64,
    key: Range<usize>,
    /// Whether all lines pass or none; `None`: their values decide.
    all: Option<bool>,
}

impl Settled {
    /// As `settle`. The test that the automaton is of lives as long as this does.
    fn settle(
        &mut self,
        test: &Test,
        automat: &Automat,
        directory: &Directory,
        template: &Template,
    ) -> Option<Verdict> {
        self.key.clear();
        self.key
            .extend_from_slice(&std::ptr::from_ref(test).addr().to_le_bytes());
        directory.put_shape(template, &mut self.key);
        let hash = xxh3_64(&self.key);
        let same = |k: &Known| k.hash == hash && self.keys[k.key.clone()] == self.key[..];
        let all = match self.table.find(hash, same) {
            Some(known) => known.all,
            None => {
                let all = match settle(automat, directory, template) {
                    Some(Verdict::All) => Some(true),
                    Some(Verdict::None) => Some(false),
                    _ => None,
                };
                if self.keys.len() < SETTLED_BYTES_MAX {
                    let start = self.keys.len();
                    self.keys.extend_from_slice(&self.key);
                    let key = start..self.keys.len();
                    self.table.insert_unique(hash, Known { hash, key, all }, |k| k.hash);
                }
                all
            }
        };
        all.map(|all| if all { Verdict::All } else { Verdict::None })
    }
}

/// Classes of the bytes that a variable's values are made of.
fn classes(var: Var, column: &ColumnAt) -> u8 {
    match var {
        Var::Number(_) => holds::DIGITS,
        Var::Time => holds::DIGITS | holds::DELIMITERS,
        Var::Address => holds::DIGITS | holds::DELIMITERS,
        Var::String => column.held,
    }
}

/// States of the lines of a template that have neither matched nor died.
enum States {
    Same(StateID),
    Each(Vec<StateID>),
}

/// Runs an automaton over the lines of a template, column by column.
struct Lines<'a> {
    block: &'a Block,
    directory: &'a Directory,
    number: usize,
    automat: &'a Automat,
    /// Ranks of the lines that are still open.
    open: Vec<u32>,
    states: States,
    found: Bits,
    buffer: Vec<u8>,
}

impl Lines<'_> {
    fn run(mut self) -> Result<Bits, ReadError> {
        let template = &self.directory.templates[self.number];
        let mut slot = 0;
        for token in &template.tokens {
            match token {
                Token::Text(range) => self.text(&self.directory.text[range.clone()]),
                Token::Var(var) => {
                    self.var(*var, self.directory.column(template, slot))?;
                    slot += 1;
                }
            }
            if self.open.is_empty() {
                break;
            }
        }
        match &self.states {
            States::Same(state) if self.automat.ends_matched(*state) => {
                self.open.iter().for_each(|&rank| self.found.set(rank as usize));
            }
            States::Same(_) => {}
            States::Each(states) => {
                for (&rank, &state) in self.open.iter().zip(states) {
                    if self.automat.ends_matched(state) {
                        self.found.set(rank as usize);
                    }
                }
            }
        }
        Ok(self.found)
    }

    fn text(&mut self, bytes: &[u8]) {
        match &mut self.states {
            States::Same(state) => match self.automat.run(*state, bytes) {
                Next::State(next) => *state = next,
                Next::Matched => {
                    self.open.iter().for_each(|&rank| self.found.set(rank as usize));
                    self.open.clear();
                }
                Next::Dead => self.open.clear(),
            },
            States::Each(states) => {
                // Few states among many lines.
                let mut known: Vec<(StateID, Next)> = vec![];
                let automat = self.automat;
                let states = std::mem::take(states);
                self.step(&states, |_, state, _| {
                    let at = known.iter().position(|(s, _)| *s == state).unwrap_or_else(|| {
                        known.push((state, automat.run(state, bytes)));
                        known.len() - 1
                    });
                    known[at].1
                });
            }
        }
    }

    /// Moves each open line on; lines that are settled leave.
    fn step(&mut self, states: &[StateID], mut next: impl FnMut(u32, StateID, &mut Vec<u8>) -> Next) {
        let (mut kept, mut after) = (0, Vec::with_capacity(states.len()));
        for (i, &state) in states.iter().enumerate() {
            let rank = self.open[i];
            match next(rank, state, &mut self.buffer) {
                Next::State(s) => {
                    self.open[kept] = rank;
                    kept += 1;
                    after.push(s);
                }
                Next::Matched => self.found.set(rank as usize),
                Next::Dead => {}
            }
        }
        self.open.truncate(kept);
        self.states = match after.split_first() {
            Some((&first, rest)) if rest.iter().all(|&s| s == first) => States::Same(first),
            _ => States::Each(after),
        };
    }

    fn var(&mut self, var: Var, number: usize) -> Result<(), ReadError> {
        let classes = classes(var, &self.directory.columns[number]);
        let automat = self.automat;
        let states = match &mut self.states {
            States::Same(state) if automat.stays(*state, classes) => return Ok(()),
            States::Same(state) => vec![*state; self.open.len()],
            States::Each(states) => std::mem::take(states),
        };
        let column = self.block.column(number)?;
        let block = self.block;
        let shared = number < self.directory.shared;
        let layout = if shared { Some(block.layout()?) } else { None };
        let first = layout.map_or(0, |l| l.starts[self.number] as usize);
        let at = |rank: u32| match layout {
            Some(l) => l.places[l.order[first + rank as usize] as usize].shared as usize,
            None => rank as usize,
        };
        let mut staying: Option<(StateID, bool)> = None;
        // Dates and the like are the same for many lines.
        let mut last: Option<(StateID, u64, Next)> = None;
        self.step(&states, |rank, state, buffer| {
            let stays = match staying {
                Some((s, stays)) if s == state => stays,
                _ => {
                    let stays = automat.stays(state, classes);
                    staying = Some((state, stays));
                    stays
                }
            };
            if stays {
                return Next::State(state);
            }
            let values = match column {
                Column::Numbers(values) => values,
                Column::Strings(values) => return automat.run(state, values.get(at(rank))),
            };
            let value = values[at(rank)];
            if let Some((s, v, next)) = last
                && (s, v) == (state, value)
            {
                return next;
            }
            let next = if let Var::Number(pad) = var {
                automat.run(state, Digits::new(value, pad).as_bytes())
            } else {
                buffer.clear();
                put_value(buffer, var, value);
                automat.run(state, buffer)
            };
            last = Some((state, value, next));
            next
        });
        Ok(())
    }
}

// ---- blocks ----

impl Block {
    /// False: no line of the block passes.
    pub fn may_match(&self, filter: &Filter) -> Result<bool, ReadError> {
        if !filter.asks_words() {
            return Ok(true);
        }
        let bytes = self.words()?;
        if bytes.is_empty() {
            return Ok(true);
        }
        let mut descriptor = [0; 20];
        let words = WordFilter::new(&bytes, &mut descriptor).map_err(|why| self.damage(Section::Words, why))?;
        Ok(filter.may_match(&words))
    }

    /// Rows with times in `from..=to`, without reading the times when all are.
    fn rows_in(&self, from: i64, to: i64) -> Result<Range<usize>, ReadError> {
        let info = self.info();
        if from > to || info.last < from || info.first > to {
            return Ok(0..0);
        }
        if from <= info.first && info.last <= to {
            return Ok(0..self.rows());
        }
        Ok(self.times()?.rows_in(from, to))
    }

    /// How many lines pass, of those with times in `from..=to`.
    pub fn count(&self, filter: &Filter, from: i64, to: i64) -> Result<u64, ReadError> {
        let known = &mut Settled::default();
        let rows = self.rows_in(from, to)?;
        if rows.is_empty() || !self.may_match(filter)? {
            return Ok(0);
        }
        if rows.len() < self.rows() || self.info().is_plain() {
            let mut found = vec![];
            self.collect(filter, known, rows, &mut found)?;
            return Ok(found.len() as u64);
        }
        let directory = self.directory()?;
        let mut count = 0;
        for (number, template) in directory.templates.iter().enumerate() {
            count += match self.verdict(filter, known, directory, number)? {
                Verdict::None => 0,
                Verdict::All => u64::from(template.rows),
                Verdict::Some(bits) => bits.count() as u64,
            };
        }
        Ok(count)
    }

    /// Appends the rows that pass, ascending, of those with times in `from..=to`. `known` is of this filter's search.
    pub fn matches(
        &self,
        filter: &Filter,
        known: &mut Settled,
        from: i64,
        to: i64,
        out: &mut Vec<u32>,
    ) -> Result<(), ReadError> {
        let rows = self.rows_in(from, to)?;
        if rows.is_empty() || !self.may_match(filter)? {
            return Ok(());
        }
        self.collect(filter, known, rows, out)
    }

    fn collect(
        &self,
        filter: &Filter,
        known: &mut Settled,
        rows: Range<usize>,
        out: &mut Vec<u32>,
    ) -> Result<(), ReadError> {
        if self.info().is_plain() {
            let plain = self.plain()?;
            let (text, starts) = (plain.lines(rows.clone()), &plain.starts[rows.start..=rows.end]);
            let verdict = combine(filter, &mut |test| {
                let mut found = Bits::new(rows.len());
                test.search(text, starts, &mut found);
                Ok::<_, ReadError>(Verdict::of(found))
            })?;
            out.extend(
                (0..rows.len())
                    .filter(|&i| verdict.holds(i))
                    .map(|i| (rows.start + i) as u32),
            );
            return Ok(());
        }
        let directory = self.directory()?;
        let mut verdicts = Vec::with_capacity(directory.templates.len());
        for number in 0..directory.templates.len() {
            verdicts.push(self.verdict(filter, known, directory, number)?);
        }
        if verdicts.iter().all(|v| matches!(v, Verdict::None)) {
            return Ok(());
        }
        let before = out.len();
        let walked = self.ids()?.walk(directory, |place| {
            if verdicts[place.id as usize].holds(place.rank as usize) && rows.contains(&(place.row as usize)) {
                out.push(place.row);
            }
        });
        walked.map_err(|why| {
            out.truncate(before);
            self.damage(Section::Ids, why)
        })
    }

    /// Which lines of a template pass, by their ranks.
    fn verdict(
        &self,
        filter: &Filter,
        known: &mut Settled,
        directory: &Directory,
        number: usize,
    ) -> Result<Verdict, ReadError> {
        let template = &directory.templates[number];
        combine(filter, &mut |test| match &test.automaton {
            Some(automat) => match known.settle(test, automat, directory, template) {
                Some(verdict) => Ok(verdict),
                None => {
                    let lines = Lines {
                        block: self,
                        directory,
                        number,
                        automat,
                        open: (0..template.rows).collect(),
                        states: States::Same(automat.start),
                        found: Bits::new(template.rows as usize),
                        buffer: vec![],
                    };
                    lines.run().map(Verdict::of)
                }
            },
            None => match test
                .guard
                .as_ref()
                .and_then(|guard| known.settle(test, guard, directory, template))
            {
                Some(Verdict::None) => Ok(Verdict::None),
                _ => self.built(test, number),
            },
        })
    }

    /// Builds the lines of a template and searches them.
    fn built(&self, test: &Test, number: usize) -> Result<Verdict, ReadError> {
        let layout = self.layout()?;
        let rows = self.directory()?.templates[number].rows as usize;
        let first = layout.starts[number] as usize;
        let mut found = Bits::new(rows);
        let (mut text, mut starts) = (vec![], vec![0]);
        let mut builder = self.builder()?;
        for &row in &layout.order[first..first + rows] {
            builder.put(row as usize, &mut text)?;
            text.push(b'\n');
            if text.len() as u64 > self.info().raw_bytes + u64::from(self.info().rows) {
                return Err(self.damage(Section::Strings, "lines are longer than the block"));
            }
            starts.push(text.len() as u32);
        }
        test.search(&text, &starts, &mut found);
        Ok(Verdict::of(found))
    }
}

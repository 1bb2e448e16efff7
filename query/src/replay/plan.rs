//! Which entry of its binding each signal of each resource is read from, and the reading of values by it.
//!
//! Promises: the first entry with a value at any instant of the whole window wins, for each resource by itself; the
//! answer does not depend on the pieces in which the window is looked through.

use super::bindings::{Entry, Signal, table};
use super::spec::ReplaySpec;
use super::world::World;
use super::{ReplayError, frame};
use crate::engine::{Engine, OWNER_LABEL, Options, RangeQuery};
use crate::value::{Answer, MatrixSeries, Value};
use futures::stream::{self, StreamExt, TryStreamExt};
use hindcast_model::{Domain, ResourceId, SpanNs, TimestampNs};
use std::collections::{BTreeMap, BTreeSet};

/// How far back an instant looks for a sample. Part of evaluator version 1.
pub const LOOKBACK: SpanNs = SpanNs::from_secs(300);
/// Queries of one replay that run at once.
pub const QUERIES_AT_ONCE_MAX: usize = 4;
/// Instants of one look whether an entry has any value at all. The first look is short: most sources that exist at all
/// exist from the start.
const FIRST_LOOK_STEPS: u64 = 6;
const LOOK_STEPS: u64 = 2_000;

/// A run of frames, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub first: u64,
    pub last: u64,
}

/// One entry, and the resources that are read by it.
pub struct Bound {
    pub signal: &'static Signal,
    pub entry: u8,
    pub owners: BTreeSet<ResourceId>,
}

/// A signal of a resource or of a part of it. The order is the order of frames.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Column {
    pub domain: Domain,
    pub resource: ResourceId,
    pub signal: &'static str,
    pub object: String,
}

/// The values of a run: per column which entry gave them, and one value or none per frame.
pub type Values = BTreeMap<Column, (u8, Vec<Option<f64>>)>;

/// Looks through the window once and binds what has values.
pub async fn bind(
    engine: &Engine,
    spec: &ReplaySpec,
    world: &World,
    scope: &BTreeSet<ResourceId>,
) -> Result<(Vec<Bound>, BTreeSet<String>), ReplayError> {
    let signals = table(spec.binding_revision).expect("a checked spec names a revision that exists");
    let mut asked = vec![];
    for signal in signals {
        if !spec.domains.contains(&signal.domain) {
            continue;
        }
        // What is not in the topology may be of any kind.
        let fits = |id: &&ResourceId| world.kind(**id).is_none_or(|k| signal.kinds.contains(&k));
        let owners: BTreeSet<ResourceId> = scope.iter().filter(fits).copied().collect();
        if !owners.is_empty() {
            asked.push(bind_signal(engine, spec, signal, owners));
        }
    }
    let bound: Vec<_> = stream::iter(asked).buffered(QUERIES_AT_ONCE_MAX).try_collect().await?;
    let missing = bound.iter().flat_map(|(_, m)| m.iter().cloned()).collect();
    Ok((bound.into_iter().flat_map(|(b, _)| b).collect(), missing))
}

async fn bind_signal(
    engine: &Engine,
    spec: &ReplaySpec,
    signal: &'static Signal,
    mut unbound: BTreeSet<ResourceId>,
) -> Result<(Vec<Bound>, BTreeSet<String>), ReplayError> {
    let (mut bound, mut missing) = (vec![], BTreeSet::new());
    for (i, entry) in signal.entries.iter().enumerate() {
        let expr = format!("count by ({OWNER_LABEL}) ({})", entry.expr);
        let mut owners = BTreeSet::new();
        let (mut first, mut steps) = (1, FIRST_LOOK_STEPS);
        while first <= spec.frames() && !unbound.is_empty() {
            let last = (first + steps - 1).min(spec.frames());
            let run = Run { first, last };
            let (series, gone) = ask(engine, spec, signal, &expr, &unbound, run).await?;
            missing.extend(gone);
            for owner in series.iter().filter_map(owner_of) {
                if unbound.remove(&owner) {
                    owners.insert(owner);
                }
            }
            (first, steps) = (last + 1, LOOK_STEPS);
        }
        if !owners.is_empty() {
            bound.push(Bound {
                signal,
                entry: i as u8,
                owners,
            });
        }
    }
    Ok((bound, missing))
}

/// The values of all bound entries for a run of frames.
pub async fn read(
    engine: &Engine,
    spec: &ReplaySpec,
    bound: &[Bound],
    run: Run,
) -> Result<(Values, BTreeSet<String>), ReplayError> {
    let asked: Vec<_> = bound.iter().map(|b| read_bound(engine, spec, b, run)).collect();
    let mut answers = stream::iter(asked).buffered(QUERIES_AT_ONCE_MAX);
    let (mut values, mut missing) = (Values::new(), BTreeSet::new());
    while let Some(answer) = answers.next().await {
        let (b, series, gone) = answer?;
        let entry = &b.signal.entries[usize::from(b.entry)];
        missing.extend(gone);
        for s in series {
            let Some(resource) = owner_of(&s) else { continue };
            let column = Column {
                domain: b.signal.domain,
                resource,
                signal: b.signal.name,
                object: object_of(entry, &s),
            };
            let (_, row) = values
                .entry(column)
                .or_insert_with(|| (b.entry, vec![None; (run.last - run.first + 1) as usize]));
            for (at, value) in s.points {
                row[place(spec, run, at)] = Some(value);
            }
        }
    }
    Ok((values, missing))
}

async fn read_bound<'a>(
    engine: &Engine,
    spec: &ReplaySpec,
    bound: &'a Bound,
    run: Run,
) -> Result<(&'a Bound, Vec<MatrixSeries>, Vec<String>), ReplayError> {
    let expr = bound.signal.entries[usize::from(bound.entry)].expr;
    let (series, missing) = ask(engine, spec, bound.signal, expr, &bound.owners, run).await?;
    Ok((bound, series, missing))
}

fn place(spec: &ReplaySpec, run: Run, at: TimestampNs) -> usize {
    let place = at.since(spec.instant(run.first)).0 / spec.step.0;
    assert!(
        place <= run.last - run.first,
        "a value at {at} is outside of the instants asked for"
    );
    place as usize
}

async fn ask(
    engine: &Engine,
    spec: &ReplaySpec,
    signal: &'static Signal,
    expr: &str,
    owners: &BTreeSet<ResourceId>,
    run: Run,
) -> Result<(Vec<MatrixSeries>, Vec<String>), ReplayError> {
    let query = RangeQuery {
        tenant: spec.tenant.clone(),
        expr: expr.to_owned(),
        start: spec.instant(run.first),
        end: spec.instant(run.last),
        step: spec.step,
        options: Options {
            lookback: LOOKBACK,
            as_of: spec.as_of.positions().cloned(),
            owners: Some(owners.clone()),
            owner_label: true,
        },
    };
    let failed = |source| ReplayError::Query {
        signal: signal.name,
        source,
    };
    let Answer {
        value, completeness, ..
    } = engine.range(&query).await.map_err(failed)?;
    match value {
        Value::Matrix(series) => Ok((series, completeness.missing)),
        // A range query answers with a matrix; every entry of the table is a vector expression.
        other => panic!("the signal {} is a {}, not a matrix", signal.name, other.kind()),
    }
}

fn owner_of(series: &MatrixSeries) -> Option<ResourceId> {
    ResourceId::parse(series.labels.get(OWNER_LABEL)?)
}

fn object_of(entry: &Entry, series: &MatrixSeries) -> String {
    let parts: Vec<&str> = entry.object.iter().map(|l| series.labels.value(l)).collect();
    parts.join("/")
}

impl Column {
    pub fn frame(&self, binding: u8, value: Option<f64>) -> frame::SignalFrame {
        frame::SignalFrame {
            name: self.signal.to_owned(),
            object: self.object.clone(),
            binding,
            value,
        }
    }
}

//! Operators between scalars, between a vector and a scalar, and between two vectors that are matched by labels.

use super::native::Remarks;
use super::{Evaluator, Out, unique};
use crate::column::{ABSENT, Column, Point, Steps, is_absent};
use crate::engine::QueryError;
use crate::gather::canonical;
use hindcast_model::{Labels, METRIC_NAME};
use hindcast_promql::{BinaryOp, Cardinality, Matching, Span};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Arithmetic; comparisons give 1 or 0.
fn calculate(op: BinaryOp, a: f64, b: f64) -> f64 {
    let flag = |yes: bool| f64::from(u8::from(yes));
    let value = match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::Mod => a % b,
        BinaryOp::Pow => a.powf(b),
        BinaryOp::Atan2 => a.atan2(b),
        BinaryOp::Eq => flag(a == b),
        BinaryOp::Ne => flag(a != b),
        BinaryOp::Lt => flag(a < b),
        BinaryOp::Le => flag(a <= b),
        BinaryOp::Gt => flag(a > b),
        BinaryOp::Ge => flag(a >= b),
        // Of two numbers there is nothing to be cut off.
        BinaryOp::TrimUpper | BinaryOp::TrimLower => return ABSENT,
        BinaryOp::Or | BinaryOp::And | BinaryOp::Unless => unreachable!("set operators look at labels only"),
    };
    canonical(value)
}

/// The value at one step of a vector operation: a comparison keeps `kept` where it holds, unless `bool` is set.
fn at_step(op: BinaryOp, a: f64, b: f64, as_bool: bool, kept: f64) -> f64 {
    let value = calculate(op, a, b);
    if op.is_comparison() && !as_bool {
        if value == 1.0 { kept } else { ABSENT }
    } else {
        value
    }
}

/// What an operator does to one pair of which at least one is a histogram. `None`: nothing that has a value.
fn of_natives(op: BinaryOp, a: &Point, b: &Point, as_bool: bool, remarks: &mut Remarks<'_>) -> Option<Point> {
    let native = |h| Some(Point::Native(Arc::new(h)));
    match (op, a, b) {
        (BinaryOp::Mul, Point::Native(h), Point::Float(v)) | (BinaryOp::Mul, Point::Float(v), Point::Native(h)) => {
            native(h.times(*v))
        }
        (BinaryOp::Div, Point::Native(h), Point::Float(v)) => native(h.over(*v)),
        (BinaryOp::TrimUpper, Point::Native(h), Point::Float(v)) => native(h.trimmed(*v, true)),
        (BinaryOp::TrimLower, Point::Native(h), Point::Float(v)) => native(h.trimmed(*v, false)),
        (BinaryOp::Add | BinaryOp::Sub, Point::Native(a), Point::Native(b)) => {
            let (combined, by) = match op {
                BinaryOp::Add => (a.plus(b), "addition"),
                _ => (a.minus(b), "subtraction"),
            };
            let Ok(combined) = combined else {
                remarks.incompatible_layouts(op);
                return None;
            };
            if combined.collision {
                remarks.collision(by);
            }
            if combined.reconciled {
                remarks.reconciled(by);
            }
            native(match op {
                BinaryOp::Add => combined.histogram,
                _ => combined.histogram.gauge(),
            })
        }
        (BinaryOp::Eq | BinaryOp::Ne, Point::Native(a), Point::Native(b)) => {
            let holds = a.same(b) == (op == BinaryOp::Eq);
            match as_bool {
                true => Some(Point::Float(f64::from(u8::from(holds)))),
                false => holds.then(|| Point::Native(a.clone())),
            }
        }
        _ => {
            let kind = |p: &Point| match p {
                Point::Float(_) => "float",
                Point::Native(_) => "histogram",
            };
            remarks.incompatible_kinds(op, kind(a), kind(b));
            None
        }
    }
}

impl Evaluator {
    pub(super) async fn binary(
        &mut self,
        (op, span): (BinaryOp, Span),
        lhs: Out,
        rhs: Out,
        as_bool: bool,
        matching: Option<&Matching>,
        steps: Steps,
    ) -> Result<Out, QueryError> {
        match (lhs, rhs) {
            (Out::Scalar(a), Out::Scalar(b)) => Ok(Out::Scalar(
                a.into_iter().zip(b).map(|(a, b)| calculate(op, a, b)).collect(),
            )),
            (Out::Vector(columns), Out::Scalar(scalar)) => {
                self.charge(columns.len() * steps.count).await?;
                let columns = self
                    .natives_with_scalar((op, span), columns, &scalar, as_bool, false)
                    .await?;
                with_scalar(op, columns, as_bool, |v, i| at_step(op, v, scalar[i], as_bool, v)).map(Out::Vector)
            }
            (Out::Scalar(scalar), Out::Vector(columns)) => {
                self.charge(columns.len() * steps.count).await?;
                let columns = self
                    .natives_with_scalar((op, span), columns, &scalar, as_bool, true)
                    .await?;
                with_scalar(op, columns, as_bool, |v, i| at_step(op, scalar[i], v, as_bool, v)).map(Out::Vector)
            }
            (Out::Vector(lhs), Out::Vector(rhs)) => {
                self.charge((lhs.len() + rhs.len()) * steps.count).await?;
                let plain = Matching::plain(op);
                let matching = matching.unwrap_or(&plain);
                let columns = if op.is_set() {
                    set(op, lhs, rhs, matching, steps)?
                } else {
                    self.matched((op, span), lhs, rhs, as_bool, matching, steps).await?
                };
                Ok(Out::Vector(columns))
            }
            _ => unreachable!("the type check wants scalars and instant vectors"),
        }
    }

    /// What an operator with a scalar makes of the histograms; the floats are as they were.
    async fn natives_with_scalar(
        &mut self,
        (op, span): (BinaryOp, Span),
        mut columns: Vec<Column>,
        scalar: &[f64],
        as_bool: bool,
        scalar_first: bool,
    ) -> Result<Vec<Column>, QueryError> {
        if op.is_trim() && columns.iter().any(|c| c.values.iter().any(|v| !is_absent(*v))) {
            Remarks::new(&mut self.notes, "", span).incompatible_kinds(op, "float", "float");
        }
        for natives in columns.iter_mut().filter_map(|c| c.natives.as_mut()) {
            for (native, v) in natives.iter_mut().zip(scalar) {
                let Some(held) = native.take() else { continue };
                self.charge(held.weight()).await?;
                let mut remarks = Remarks::new(&mut self.notes, "", span);
                let (held, v) = (Point::Native(held), Point::Float(*v));
                let made = match scalar_first {
                    true => of_natives(op, &v, &held, as_bool, &mut remarks),
                    false => of_natives(op, &held, &v, as_bool, &mut remarks),
                };
                // Of a histogram and a float there is either a histogram or nothing.
                if let Some(Point::Native(made)) = made {
                    *native = Some(made);
                }
            }
        }
        Ok(columns)
    }

    /// One-to-one, many-to-one and one-to-many matching. Errors are found per step, as an instant query would.
    async fn matched(
        &mut self,
        (op, span): (BinaryOp, Span),
        lhs: Vec<Column>,
        rhs: Vec<Column>,
        as_bool: bool,
        m: &Matching,
        steps: Steps,
    ) -> Result<Vec<Column>, QueryError> {
        let swapped = m.cardinality == Cardinality::OneToMany;
        let (many, one) = if swapped { (&rhs, &lhs) } else { (&lhs, &rhs) };
        // A side without any value at a step has nothing to be matched wrongly there.
        let (some_many, some_one) = (any_present(many, steps), any_present(one, steps));
        let live: Vec<bool> = some_many.iter().zip(&some_one).map(|(a, b)| *a && *b).collect();
        let ones = by_signature(one, m);
        for (signature, columns) in &ones {
            let side = if swapped { "left" } else { "right" };
            check_one_side(signature, columns, &live, side)?;
        }
        let mut out = vec![];
        for (signature, many_columns) in by_signature(many, m) {
            let Some(one_columns) = ones.get(&signature) else {
                continue;
            };
            if m.cardinality == Cardinality::OneToOne {
                check_many_side(&many_columns, one_columns, &live)?;
            }
            for a in many_columns {
                for b in one_columns.iter().copied() {
                    let value = |(x, y): (&f64, &f64)| {
                        if is_absent(*x) || is_absent(*y) {
                            return ABSENT;
                        }
                        let (l, r) = if swapped { (*y, *x) } else { (*x, *y) };
                        at_step(op, l, r, as_bool, l)
                    };
                    let values: Vec<f64> = a.values.iter().zip(&b.values).map(value).collect();
                    if op.is_trim() && (0..steps.count).any(|i| !is_absent(a.values[i]) && !is_absent(b.values[i])) {
                        Remarks::new(&mut self.notes, "", span).incompatible_kinds(op, "float", "float");
                    }
                    let mut column = Column {
                        labels: result_labels(op, &a.labels, &b.labels, as_bool, m),
                        place: a.place,
                        values,
                        natives: None,
                    };
                    if a.natives.is_some() || b.natives.is_some() {
                        let (l, r) = if swapped { (b, a) } else { (a, b) };
                        for i in 0..steps.count {
                            let weights = [l, r].map(|c| c.native(i).map_or(0, |h| h.weight()));
                            if weights == [0, 0] {
                                continue;
                            }
                            if let (Some(l), Some(r)) = (l.at(i), r.at(i)) {
                                let mut remarks = Remarks::new(&mut self.notes, "", span);
                                column.set(i, of_natives(op, &l, &r, as_bool, &mut remarks));
                                let made = column.native(i).map_or(0, |h| h.weight());
                                self.spent(weights[0] + weights[1], made).await?;
                            }
                        }
                    }
                    out.push((column, a, b));
                }
            }
        }
        if m.cardinality != Cardinality::OneToOne {
            check_results(&out)?;
        }
        let columns = out.into_iter().map(|(column, _, _)| column);
        unique(columns.filter(|c| !c.is_empty()).collect())
    }
}

fn drops_name(op: BinaryOp, as_bool: bool) -> bool {
    !(op.is_comparison() || op.is_trim()) || as_bool
}

fn with_scalar(
    op: BinaryOp,
    columns: Vec<Column>,
    as_bool: bool,
    f: impl Fn(f64, usize) -> f64,
) -> Result<Vec<Column>, QueryError> {
    let mapped = columns.into_iter().map(|mut c| {
        if drops_name(op, as_bool) {
            c.labels = c.labels.without(METRIC_NAME);
        }
        for (i, v) in c.values.iter_mut().enumerate() {
            if !is_absent(*v) {
                *v = f(*v, i);
            }
        }
        c
    });
    unique(mapped.filter(|c| !c.is_empty()).collect())
}

/// The part of the labels that decides who is matched with whom.
fn signature(labels: &Labels, m: &Matching) -> Labels {
    if m.on {
        labels.filtered(|n| m.labels.iter().any(|l| l == n))
    } else {
        labels.filtered(|n| n != METRIC_NAME && !m.labels.iter().any(|l| l == n))
    }
}

fn by_signature<'a>(columns: &'a [Column], m: &Matching) -> BTreeMap<Labels, Vec<&'a Column>> {
    let mut groups: BTreeMap<Labels, Vec<&Column>> = BTreeMap::new();
    for c in columns {
        groups.entry(signature(&c.labels, m)).or_default().push(c);
    }
    groups
}

/// At which steps any of the columns has a value.
fn any_present<'a>(columns: impl IntoIterator<Item = &'a Column>, steps: Steps) -> Vec<bool> {
    let mut any = vec![false; steps.count];
    for c in columns {
        any.iter_mut()
            .zip(&c.values)
            .for_each(|(any, v)| *any |= !is_absent(*v));
        for (any, native) in any.iter_mut().zip(c.natives.iter().flatten()) {
            *any |= native.is_some();
        }
    }
    any
}

fn set(
    op: BinaryOp,
    lhs: Vec<Column>,
    rhs: Vec<Column>,
    m: &Matching,
    steps: Steps,
) -> Result<Vec<Column>, QueryError> {
    // Of `or` the left side is whole, and the right side is filtered by it; of the others the left by the right.
    let (whole, mut filtered, filter) = if op == BinaryOp::Or {
        (lhs.clone(), rhs, lhs)
    } else {
        (vec![], lhs, rhs)
    };
    let masks: BTreeMap<Labels, Vec<bool>> = by_signature(&filter, m)
        .into_iter()
        .map(|(signature, columns)| (signature, any_present(columns, steps)))
        .collect();
    let wanted = op == BinaryOp::And;
    for c in &mut filtered {
        let mask = masks.get(&signature(&c.labels, m));
        for (i, v) in c.values.iter_mut().enumerate() {
            if mask.is_some_and(|mask| mask[i]) != wanted {
                *v = ABSENT;
            }
        }
        for (i, native) in c.natives.iter_mut().flatten().enumerate() {
            if mask.is_some_and(|mask| mask[i]) != wanted {
                *native = None;
            }
        }
    }
    let all = whole.into_iter().chain(filtered).filter(|c| !c.is_empty());
    unique(all.collect())
}

fn shown(labels: &Labels) -> String {
    let pairs: Vec<String> = labels.iter().map(|(n, v)| format!("{n}={v:?}")).collect();
    format!("{{{}}}", pairs.join(", "))
}

fn check_one_side(signature: &Labels, columns: &[&Column], live: &[bool], side: &str) -> Result<(), QueryError> {
    if columns.len() < 2 {
        return Ok(());
    }
    for (i, _) in live.iter().enumerate().filter(|(_, live)| **live) {
        // In the order of labels: the message does not depend on how the series came.
        let present = columns.iter().filter(|c| c.is_present(i));
        let present: BTreeSet<&Labels> = present.map(|c| &c.labels).collect();
        let mut present = present.into_iter();
        if let (Some(first), Some(second)) = (present.next(), present.next()) {
            return Err(QueryError::Execution(format!(
                "found duplicate series for the match group {} on the {side} hand-side of the operation: [{}, {}];\
                 many-to-many matching not allowed: matching labels must be unique on one side",
                shown(signature),
                shown(first),
                shown(second),
            )));
        }
    }
    Ok(())
}

fn check_many_side(many: &[&Column], one: &[&Column], live: &[bool]) -> Result<(), QueryError> {
    if many.len() < 2 {
        return Ok(());
    }
    for (i, _) in live.iter().enumerate().filter(|(_, live)| **live) {
        let has = |columns: &[&Column]| columns.iter().filter(|c| c.is_present(i)).count();
        if has(one) > 0 && has(many) > 1 {
            return Err(QueryError::Execution(
                "multiple matches for labels: many-to-one matching must be explicit (group_left/group_right)"
                    .to_owned(),
            ));
        }
    }
    Ok(())
}

type Pair<'a> = (Column, &'a Column, &'a Column);

/// Two series of the "many" side must not end with the same labels, whether or not a comparison lets them through.
fn check_results(pairs: &[Pair]) -> Result<(), QueryError> {
    let mut seen: BTreeMap<&Labels, Vec<bool>> = BTreeMap::new();
    for (column, many, one) in pairs {
        let both = (0..many.values.len()).map(|i| many.is_present(i) && one.is_present(i));
        let taken = seen
            .entry(&column.labels)
            .or_insert_with(|| vec![false; many.values.len()]);
        for (taken, both) in taken.iter_mut().zip(both) {
            if both && std::mem::replace(taken, true) {
                return Err(QueryError::Execution(
                    "multiple matches for labels: grouping labels must ensure unique matches".to_owned(),
                ));
            }
        }
    }
    Ok(())
}

fn result_labels(op: BinaryOp, many: &Labels, one: &Labels, as_bool: bool, m: &Matching) -> Labels {
    let mut labels = if drops_name(op, as_bool) {
        many.without(METRIC_NAME)
    } else {
        many.clone()
    };
    if m.cardinality == Cardinality::OneToOne {
        labels = labels.filtered(|n| m.on == m.labels.iter().any(|l| l == n));
    }
    for name in &m.include {
        labels = labels.with(name, one.value(name));
    }
    labels
}

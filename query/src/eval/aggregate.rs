//! Aggregations over series: `sum by (job) (…)` and its kin, in the order of `gather`.

use super::native::{Remarks, folded};
use super::{Evaluator, Notes, Out, at, only_floats, unique, window};
use crate::column::{ABSENT, Column, Point, Steps, is_absent};
use crate::engine::QueryError;
use crate::fold::{Grouper, Whole, with_cell};
use crate::number;
use hindcast_model::{Histogram, Labels};
use hindcast_promql::{AggregateOp, Grouping, Span};
use std::collections::BTreeMap;
use std::sync::Arc;

type Groups = BTreeMap<Labels, Vec<Column>>;

impl Evaluator {
    pub(super) async fn aggregate(
        &mut self,
        op: AggregateOp,
        grouping: Option<&Grouping>,
        param: Option<Out>,
        mut input: Vec<Column>,
        (span, input_span): (Span, Span),
        steps: Steps,
    ) -> Result<Vec<Column>, QueryError> {
        self.charge(steps.count * input.len()).await?;
        let scalar = match &param {
            Some(Out::Scalar(values)) => values.as_slice(),
            _ => &[],
        };
        check_param(op, scalar)?;
        if op == AggregateOp::Quantile
            && let Some(q) = scalar.iter().find(|q| !(0.0..=1.0).contains(*q))
        {
            let q = number::go_fixed(*q);
            self.note(format!(
                "PromQL warning: quantile value should be between 0 and 1, got {q} (1:{})",
                span.start + 1
            ));
        }
        if input.iter().any(|c| c.natives.is_some()) {
            input = self.without_natives(op, input, input_span);
        }
        // The order of summation. Labels settle the rare tie of two fingerprints.
        input.sort_unstable_by(|a, b| a.place.cmp(&b.place).then_with(|| a.labels.cmp(&b.labels)));
        let groups = grouped(input, grouping);
        match op {
            AggregateOp::Topk | AggregateOp::Bottomk => Ok(best(groups, scalar, op == AggregateOp::Topk)),
            AggregateOp::Limitk => Ok(limited(groups, scalar)),
            AggregateOp::LimitRatio => Ok(sampled(groups, scalar)),
            AggregateOp::CountValues => match param {
                Some(Out::Text(label)) => count_values(groups, &label, steps),
                _ => unreachable!("the type check wants a string here"),
            },
            _ => {
                let mut all = vec![];
                for (labels, columns) in groups {
                    let values = fold(op, &columns, scalar, steps);
                    let mut column = Column::computed(labels, values);
                    if columns.iter().any(|c| c.natives.is_some()) {
                        for i in 0..steps.count {
                            let (touched, kept) =
                                fold_natives(op, &mut column, &columns, i, (&mut self.notes, input_span));
                            self.spent(touched, kept).await?;
                        }
                    }
                    all.extend(Some(column).filter(|c| !c.is_empty()));
                }
                Ok(all)
            }
        }
    }

    /// The input of an aggregation that has no use for histograms: those that count values see one, the others pass them over.
    fn without_natives(&mut self, op: AggregateOp, input: Vec<Column>, span: Span) -> Vec<Column> {
        use AggregateOp as Op;
        match op {
            Op::Sum | Op::Avg | Op::CountValues | Op::Limitk | Op::LimitRatio => input,
            Op::Count | Op::Group => {
                let counted = input.into_iter().map(|mut c| {
                    for i in 0..c.values.len() {
                        if c.native(i).is_some() {
                            c.values[i] = 1.0;
                        }
                    }
                    c.floats()
                });
                counted.collect()
            }
            Op::Min | Op::Max | Op::Stdvar | Op::Stddev | Op::Quantile | Op::Topk | Op::Bottomk => {
                if input.iter().any(Column::has_natives) {
                    let ignored = format!(
                        "PromQL info: ignored histogram in {} aggregation {}",
                        op.name(),
                        at(span)
                    );
                    self.note(ignored);
                }
                only_floats(input).collect()
            }
        }
    }
}

/// The sum or the mean of histograms at a step, if there are some. Where there are floats, too, there is no value. How much was gone
/// through, and how much is kept.
fn fold_natives(
    op: AggregateOp,
    column: &mut Column,
    columns: &[Column],
    i: usize,
    (notes, span): (&mut Notes, Span),
) -> (usize, usize) {
    let natives: Vec<&Histogram> = columns.iter().filter_map(|c| Some(c.native(i)?.as_ref())).collect();
    if natives.is_empty() {
        return (columns.len(), 0);
    }
    if !is_absent(column.values[i]) {
        column.values[i] = ABSENT;
        notes.insert(format!(
            "PromQL warning: encountered a mix of histograms and floats for aggregation {}",
            at(span)
        ));
        return (columns.len(), 0);
    }
    let touched = natives.iter().map(|h| h.weight()).sum();
    // If they do not fit together, the first one that does not fit is named.
    let misfit = columns
        .iter()
        .find(|c| c.native(i).is_some_and(|h| h.is_custom() != natives[0].is_custom()));
    let metric = misfit.and_then(|c| c.labels.metric_name()).unwrap_or("");
    let mut remarks = Remarks::new(notes, metric, span);
    let mut kept = 0;
    match folded(&natives, op == AggregateOp::Avg) {
        Ok(Some(folded)) => {
            folded.remark(&mut remarks);
            kept = folded.histogram.weight();
            column.set(i, Some(Point::Native(Arc::new(folded.histogram))));
        }
        Ok(None) => {}
        Err(_) => remarks.mixed_schemas(),
    }
    (touched, kept)
}

/// Groups by the labels that `grouping` leaves.
fn grouped(input: Vec<Column>, grouping: Option<&Grouping>) -> Groups {
    let mut grouper = Grouper::new(grouping, false);
    let mut groups: Vec<Vec<Column>> = vec![];
    for column in input {
        let place = grouper.place(&column.labels);
        groups.resize_with(groups.len().max(place + 1), Vec::new);
        groups[place].push(column);
    }
    grouper.into_groups().into_iter().zip(groups).collect()
}

fn check_param(op: AggregateOp, values: &[f64]) -> Result<(), QueryError> {
    let refuse = |what: String| Err(QueryError::Execution(what));
    match op {
        AggregateOp::Topk | AggregateOp::Bottomk | AggregateOp::Limitk => {
            for k in values {
                if k.is_nan() {
                    return refuse("Parameter value is NaN".to_owned());
                }
                if k.abs() >= 9.3e18 {
                    return refuse(format!("Scalar value {} overflows int64", number::go_fixed(*k)));
                }
            }
            Ok(())
        }
        AggregateOp::LimitRatio if values.iter().any(|r| r.is_nan()) => refuse("Ratio value is NaN".to_owned()),
        _ => Ok(()),
    }
}

fn fold(op: AggregateOp, columns: &[Column], scalar: &[f64], steps: Steps) -> Vec<f64> {
    if op == AggregateOp::Quantile {
        let quantile = |i: usize| {
            let mut values: Vec<f64> = present(columns, i).map(|(_, v)| v).collect();
            if values.is_empty() {
                ABSENT
            } else {
                window::quantile(scalar[i], &mut values)
            }
        };
        return (0..steps.count).map(quantile).collect();
    }
    let series: Vec<(u16, &[f64])> = columns.iter().map(|c| (c.place.slot, c.values.as_slice())).collect();
    with_cell(op, Whole(&series, steps.count)).unwrap_or_else(|| unreachable!("{op:?} keeps its inputs apart"))
}

/// The columns of a group that have a value at step `i`, in order.
fn present(columns: &[Column], i: usize) -> impl Iterator<Item = (usize, f64)> {
    columns
        .iter()
        .enumerate()
        .map(move |(c, column)| (c, column.values[i]))
        .filter(|(_, v)| !is_absent(*v))
}

/// Likewise, of either kind.
fn some(columns: &[Column], i: usize) -> impl Iterator<Item = usize> {
    (0..columns.len()).filter(move |c| columns[*c].is_present(i))
}

/// Keeps, at each step, the values of the columns that `choose` names.
fn keep(groups: Groups, choose: impl Fn(&[Column], usize) -> Vec<usize>) -> Vec<Column> {
    let mut out = vec![];
    for columns in groups.into_values() {
        let mut kept: Vec<Column> = columns
            .iter()
            .map(|c| Column::blank(c.labels.clone(), c.place, c.values.len()))
            .collect();
        for i in 0..columns.first().map_or(0, |c| c.values.len()) {
            for c in choose(&columns, i) {
                kept[c].set(i, columns[c].at(i));
            }
        }
        kept.retain(|c| !c.is_empty());
        out.extend(kept);
    }
    out
}

/// `topk`, `bottomk`: NaN comes last in both; of equal values the one first in label order wins.
fn best(mut groups: Groups, k: &[f64], greatest: bool) -> Vec<Column> {
    // Then the places of columns tell the order of their labels.
    for columns in groups.values_mut() {
        columns.sort_unstable_by(|a, b| a.labels.cmp(&b.labels));
    }
    let choose = |columns: &[Column], i: usize| {
        let mut values: Vec<(usize, f64)> = present(columns, i).collect();
        let k = (k[i].max(0.0) as usize).min(values.len());
        let order = |a: &(usize, f64), b: &(usize, f64)| {
            let by_value = match (a.1.is_nan(), b.1.is_nan()) {
                (false, false) if greatest => b.1.total_cmp(&a.1),
                (false, false) => a.1.total_cmp(&b.1),
                (a, b) => a.cmp(&b),
            };
            by_value.then(a.0.cmp(&b.0))
        };
        if (1..values.len()).contains(&k) {
            values.select_nth_unstable_by(k - 1, order);
        }
        values.truncate(k);
        values.into_iter().map(|(c, _)| c).collect()
    };
    let instant = k.len() == 1;
    let mut kept = keep(groups, choose);
    if instant {
        // An instant answer is ordered by value; a range answer by labels.
        kept.sort_by(|a, b| {
            let (x, y) = (a.values[0], b.values[0]);
            match (x.is_nan(), y.is_nan()) {
                (false, false) if greatest => y.total_cmp(&x),
                (false, false) => x.total_cmp(&y),
                (x, y) => x.cmp(&y),
            }
        });
    }
    kept
}

fn limited(groups: Groups, k: &[f64]) -> Vec<Column> {
    keep(groups, |columns, i| {
        some(columns, i).take(k[i].max(0.0) as usize).collect()
    })
}

/// A share of the series, chosen by their fingerprints: the same ones at every step. A negative ratio takes exactly
/// those that its complement leaves out.
fn sampled(groups: Groups, ratios: &[f64]) -> Vec<Column> {
    keep(groups, |columns, i| {
        let ratio = ratios[i].clamp(-1.0, 1.0);
        let taken = |c: &Column| {
            let place = c.labels.fingerprint() as f64 / u64::MAX as f64;
            if ratio >= 0.0 {
                place < ratio
            } else {
                place >= 1.0 + ratio
            }
        };
        some(columns, i).filter(|c| taken(&columns[*c])).collect()
    })
}

fn count_values(groups: Groups, label: &str, steps: Steps) -> Result<Vec<Column>, QueryError> {
    if label.is_empty() {
        return Err(QueryError::Execution("invalid label name \"\"".to_owned()));
    }
    let mut counts: BTreeMap<Labels, Vec<f64>> = BTreeMap::new();
    for (labels, columns) in &groups {
        for i in 0..steps.count {
            for value in columns.iter().filter_map(|c| c.at(i)) {
                let text = match value {
                    Point::Float(v) => number::go_fixed(v),
                    Point::Native(native) => number::go_histogram(&native),
                };
                let key = labels.with(label, &text);
                let count = &mut counts.entry(key).or_insert_with(|| vec![ABSENT; steps.count])[i];
                *count = if is_absent(*count) { 1.0 } else { *count + 1.0 };
            }
        }
    }
    unique(
        counts
            .into_iter()
            .map(|(labels, values)| Column::computed(labels, values))
            .collect(),
    )
}

//! What a query reads: each source of its plan asked of the shards, in the least form that the evaluator can do with.
//!
//! Columns made by the shards come first, counts of lines next; samples and lines themselves only where nothing less
//! will do. A series whose samples lie in several places has its samples put together here before it is reduced.

use crate::column::{Column, Raw, Steps};
use crate::engine::{Limits, Options, QueryError};
use crate::eval::{Evaluator, Loaded, Meter, Notes, Turn, native, rolled, window};
use crate::fold::{self, Fold};
use crate::load;
use crate::pages::{PAGE_LINES, Pages};
use crate::piped::Sampler;
use crate::plan::{Made, Piped, Read, Source, SourceKind, When, Windows, metric_of};
use crate::reduce::{How, Reducer, Reduction};
use crate::shards::{
    Budget, ColumnsRequest, Completeness, CountsRequest, LabelsRequest, LinesRequest, NativeSeries, OldForms,
    SeriesRequest, Shards,
};
use hindcast_logql::LineFilter;
use hindcast_model::{Labels, METRIC_NAME, Matcher, TenantId, TimestampNs};
use hindcast_storage::read::{Direction, LabelTexts, SeriesData};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

pub struct Fetch<'a> {
    pub shards: &'a dyn Shards,
    pub tenant: &'a TenantId,
    pub options: &'a Options,
    pub limits: Limits,
    pub budget: Arc<Budget>,
    /// Of all selectors that are asked again, together.
    pub again: OnceLock<Arc<Budget>>,
}

/// Ends the reads of a query when it is dropped, on whatever thread they are.
pub struct Cancels(pub Arc<Budget>);

impl Drop for Cancels {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// What a source gave.
pub struct Fetched {
    pub loaded: Loaded,
    pub completeness: Completeness,
    /// What the reader of the answer should know.
    pub notes: Vec<String>,
}

/// What was read, and in which form it was there.
type Found = (Loaded, Completeness, OldForms);

impl Fetch<'_> {
    pub async fn source(&self, source: &Source) -> Result<Fetched, QueryError> {
        if source.to_ms < source.from_ms {
            let nothing = match source.read {
                Read::Samples | Read::Sampled(_) => Loaded::Samples(vec![]),
                Read::Columns { .. } => Loaded::Columns(vec![]),
            };
            return Ok(Fetched {
                loaded: nothing,
                completeness: Completeness::default(),
                notes: vec![],
            });
        }
        let mut said = Notes::new();
        let (loaded, completeness, old) = match (&source.kind, &source.read) {
            (SourceKind::Series(matchers), Read::Samples) => self.samples(source, matchers, &mut said).await?,
            (
                SourceKind::Series(matchers),
                Read::Columns {
                    made,
                    steps,
                    when,
                    fold,
                },
            ) => {
                let reduction = self.reduction(made, *steps, *when).await?;
                self.columns(source, matchers, reduction, fold.as_ref(), &mut said)
                    .await?
            }
            (SourceKind::Lines { matchers, filters, .. }, Read::Columns { made, steps, when, .. }) => {
                let windows = load::CountWindows::new(made, *steps, *when);
                self.counts(matchers, filters, windows).await?
            }
            (
                SourceKind::Lines {
                    matchers,
                    filters,
                    piped: Some(piped),
                },
                Read::Sampled(windows),
            ) => self.lines(source, matchers, filters, piped, *windows).await?,
            (SourceKind::Lines { .. }, _) | (SourceKind::Series(_), Read::Sampled(_)) => {
                unreachable!("the planner has lines counted or made samples, and nothing else")
            }
        };
        self.check_budget()?;
        let mut notes = notes(&source.read, old);
        notes.extend(said);
        if let SourceKind::Series(matchers) = &source.kind
            && loaded.is_empty()
        {
            notes.extend(self.native_instead(source, matchers).await?);
        }
        Ok(Fetched {
            loaded,
            completeness,
            notes,
        })
    }

    /// What may be meant by a selector that found nothing: a series that a classic histogram has, of a metric that is a native one.
    async fn native_instead(&self, source: &Source, matchers: &[Matcher]) -> Result<Option<String>, QueryError> {
        let Some(named) = metric_of(matchers) else {
            return Ok(None);
        };
        // What was known at a cut is not told by a search for labels.
        let Some((metric, instead)) = load::native_of(named).filter(|_| self.options.as_of.is_none()) else {
            return Ok(None);
        };
        let others = matchers.iter().filter(|m| m.name != METRIC_NAME && m.name != "le");
        let mut wanted = vec![Matcher::equal(METRIC_NAME, metric)];
        wanted.extend(others.cloned());
        let request = LabelsRequest {
            tenant: self.tenant.clone(),
            streams: true,
            any_of: load::of_natives(&wanted).into_iter().collect(),
            from: TimestampNs::from_ms(source.from_ms),
            to: TimestampNs::from_ms(source.to_ms),
        };
        let of = LabelTexts::Values(METRIC_NAME.to_owned());
        if request.any_of.is_empty() || self.shards.label_texts(request, of).await?.0.is_empty() {
            return Ok(None);
        }
        Ok(Some(format!(
            "PromQL info: nothing was found of {named:?}, but {metric:?} is a native histogram: ask {instead}"
        )))
    }

    fn check_budget(&self) -> Result<(), QueryError> {
        if self.budget.is_exceeded() {
            return Err(QueryError::TooLarge {
                what: "samples",
                max: self.limits.samples_max,
            });
        }
        Ok(())
    }

    fn series_request(&self, source: &Source, matchers: &[Matcher]) -> SeriesRequest {
        SeriesRequest {
            tenant: self.tenant.clone(),
            matchers: matchers.to_vec(),
            from: TimestampNs::from_ms(source.from_ms),
            to: TimestampNs::from_ms(source.to_ms),
            as_of: self.options.as_of.clone(),
            owners: self.options.owners.clone(),
            only: None,
            budget: self.budget.clone(),
        }
    }

    async fn samples(&self, source: &Source, matchers: &[Matcher], said: &mut Notes) -> Result<Found, QueryError> {
        let request = self.series_request(source, matchers);
        let (series, mut completeness) = self.shards.series(request.clone()).await?;
        let old = old_forms(&series);
        let raws = load::series(series, self.options, self.limits.series_max)?;
        self.check_budget()?;
        let (natives, seen) = self.shards.natives(request).await?;
        completeness.merge(seen);
        if natives.is_empty() {
            return Ok((Loaded::Samples(raws), completeness, old));
        }
        let natives = self.natives(natives, said)?;
        let mut all: BTreeMap<Labels, Raw> = raws.into_iter().map(|raw| (raw.labels.clone(), raw)).collect();
        for (_, raw) in natives {
            let floats = all.remove(&raw.labels);
            all.insert(raw.labels.clone(), native::merged(floats, raw));
        }
        Ok((Loaded::Samples(all.into_values().collect()), completeness, old))
    }

    /// Native histograms that were read, unless they are more than the query may read.
    fn natives(&self, given: Vec<NativeSeries>, said: &mut Notes) -> Result<Vec<(Labels, Raw)>, QueryError> {
        self.check_budget()?;
        let bad: usize = given.iter().map(|s| s.unreadable).sum();
        if bad > 0 {
            said.insert(format!(
                "PromQL warning: {bad} native histograms could not be read and were left out"
            ));
        }
        load::natives(given, self.options, self.limits.series_max)
    }

    async fn reduction(&self, made: &Made, steps: Steps, when: When) -> Result<Reduction, QueryError> {
        let how = match made {
            Made::Newest { lookback_ms, times } => How::Newest {
                lookback_ms: *lookback_ms,
                times: *times,
            },
            Made::Window {
                name,
                span,
                kernel,
                range_ms,
                params,
            } => {
                // They read nothing, so that there is nothing to wait for.
                let mut arithmetic = Evaluator::new(vec![], 0, self.limits, true);
                let mut scalars = [vec![], vec![]];
                for (scalar, p) in scalars.iter_mut().zip(params) {
                    *scalar = arithmetic.scalar(p, steps).await?;
                }
                How::Window {
                    name,
                    span: *span,
                    kernel: *kernel,
                    of_windows: rolled::kernel(name),
                    stretch: window::stretch(name),
                    range_ms: *range_ms,
                    params: scalars,
                }
            }
            Made::Counts { .. } => unreachable!("only lines are counted"),
        };
        Ok(Reduction { how, steps, when })
    }

    async fn columns(
        &self,
        source: &Source,
        matchers: &[Matcher],
        reduction: Reduction,
        fold: Option<&Fold>,
        said: &mut Notes,
    ) -> Result<Found, QueryError> {
        let reduction = Arc::new(reduction);
        let series = self.series_request(source, matchers);
        // The label of owners is put on where columns come in.
        let fold = fold.filter(|_| !self.options.owner_label);
        let mut request = ColumnsRequest {
            series: series.clone(),
            reduction: reduction.clone(),
            fold: fold.cloned().map(Arc::new),
        };
        let (mut found, mut completeness) = self.shards.columns(request.clone()).await?;
        if let Some(fold) = fold {
            self.check_budget()?;
            let folded = std::mem::take(&mut found.folded);
            let (series, different) = fold::counted(&folded);
            if different > self.limits.series_max {
                return Err(load::too_many_series(self.limits.series_max));
            }
            let is_all = found.columns.is_empty() && found.natives.is_empty();
            if is_all
                && series == different
                && let Some((columns, old)) = fold.gathered(folded, reduction.steps)
            {
                let metric = metric_of(matchers).map(str::to_owned);
                return Ok((Loaded::Folded { columns, metric }, completeness, old));
            }
            if series > 0 {
                let budget = self.again.get_or_init(|| Arc::new(self.budget.afresh()));
                (request.fold, request.series.budget) = (None, budget.clone());
                let (again, seen) = self.shards.columns(request).await?;
                if budget.is_exceeded() {
                    self.budget.exceed();
                }
                completeness = seen;
                found = again;
            }
        }
        let natives = self.natives(found.natives, said)?;
        let load::Columns {
            whole: mut columns,
            split,
            mut old,
        } = load::columns(found.columns, self.options, self.limits.series_max)?;
        self.check_budget()?;
        if !split.is_empty() {
            let (more, seen, forms) = self.put_together(series.clone(), &split, &reduction).await?;
            completeness.merge(seen);
            old.merge(forms);
            columns.extend(more);
        }
        if !natives.is_empty() {
            let named: BTreeSet<&Labels> = natives.iter().map(|(_, raw)| &raw.labels).collect();
            columns.retain(|c| !named.contains(&c.labels));
            let (more, seen, forms) = self.with_floats(series, natives, &reduction, said).await?;
            completeness.merge(seen);
            old.merge(forms);
            columns.extend(more);
        }
        Ok((Loaded::Columns(columns), completeness, old))
    }

    /// Columns of series that have native histograms, with the floats that they may have as well: mostly none, at times a staleness
    /// marker or what they were before.
    async fn with_floats(
        &self,
        series: SeriesRequest,
        natives: Vec<(Labels, Raw)>,
        reduction: &Reduction,
        said: &mut Notes,
    ) -> Result<(Vec<Column>, Completeness, OldForms), QueryError> {
        let request = SeriesRequest {
            only: Some(Arc::new(natives.iter().map(|(stored, _)| stored.clone()).collect())),
            budget: Arc::new(self.budget.uncounted()),
            ..series
        };
        let (floats, completeness) = self.shards.series(request).await?;
        let old = old_forms(&floats);
        let floats = load::series(floats, self.options, self.limits.series_max)?;
        let mut floats: BTreeMap<Labels, Raw> = floats.into_iter().map(|raw| (raw.labels.clone(), raw)).collect();
        let (mut reducer, mut turn) = (Reducer::default(), Turn::default());
        let mut meter = Meter {
            budget: &self.budget,
            turn: &mut turn,
        };
        let mut columns = vec![];
        for (_, raw) in natives {
            let all = native::merged(floats.remove(&raw.labels), raw);
            columns.extend(all.reduced(&mut reducer, reduction, said, &mut meter).await);
            if meter.spent(reduction.steps.count, 0).await.is_break() {
                break;
            }
        }
        self.check_budget()?;
        Ok((columns, completeness, old))
    }

    /// Columns of series whose samples lie in several places: rows between each other's, so that of windows no more is
    /// of use than their last samples.
    async fn put_together(
        &self,
        series: SeriesRequest,
        split: &BTreeMap<Labels, Vec<Labels>>,
        reduction: &Reduction,
    ) -> Result<(Vec<Column>, Completeness, OldForms), QueryError> {
        let stored: BTreeSet<Labels> = split.values().flatten().cloned().collect();
        let request = SeriesRequest {
            only: Some(Arc::new(stored)),
            budget: Arc::new(self.budget.uncounted()),
            ..series
        };
        let (series, completeness) = self.shards.series(request).await?;
        let old = old_forms(&series);
        let raws = load::series(series, self.options, self.limits.series_max)?;
        let mut reducer = Reducer::default();
        let columns = raws
            .into_iter()
            .filter(|raw| split.contains_key(&raw.labels))
            .filter_map(|raw| raw.floats_reduced(&mut reducer, reduction));
        Ok((columns.collect(), completeness, old))
    }

    async fn counts(
        &self,
        matchers: &[Matcher],
        filters: &[LineFilter],
        windows: load::CountWindows,
    ) -> Result<Found, QueryError> {
        let request = CountsRequest {
            tenant: self.tenant.clone(),
            matchers: matchers.to_vec(),
            from: windows.from(),
            bounds: windows.bounds().to_vec(),
            as_of: self.options.as_of.clone(),
            owners: self.options.owners.clone(),
            filter: load::filter(filters)?,
            budget: self.budget.clone(),
        };
        let (counts, completeness) = self.shards.line_counts(request).await?;
        self.check_budget()?;
        let columns = load::counts(counts, &windows, self.options, self.limits.series_max)?;
        Ok((Loaded::Columns(columns), completeness, OldForms::default()))
    }

    async fn lines(
        &self,
        source: &Source,
        matchers: &[Matcher],
        filters: &[LineFilter],
        piped: &Piped,
        windows: Windows,
    ) -> Result<Found, QueryError> {
        let request = LinesRequest {
            tenant: self.tenant.clone(),
            matchers: matchers.to_vec(),
            // Lines have nanoseconds: the window is open just after the millisecond before `from`.
            from: TimestampNs(TimestampNs::from_ms(source.from_ms).0.saturating_sub(999_999)),
            to: TimestampNs::from_ms(source.to_ms),
            as_of: self.options.as_of.clone(),
            owners: self.options.owners.clone(),
            filter: load::filter(filters)?,
            limit: None,
            direction: Direction::Forward,
        };
        let now = TimestampNs::from_ms(windows.steps.end());
        let mut sampler = Sampler::new(piped, windows, now, self.limits.series_max)?;
        let mut pages = Pages::new(self.shards, request, PAGE_LINES);
        while let Some(page) = pages.next().await? {
            let made = sampler.take(&page, self.options)?;
            let _ = self.budget.read(made);
            self.check_budget()?;
        }
        Ok((
            Loaded::Samples(sampler.finish()),
            pages.completeness,
            OldForms::default(),
        ))
    }
}

fn old_forms(series: &[SeriesData]) -> OldForms {
    OldForms {
        lasts: series.iter().any(|s| s.has_lasts),
        ..OldForms::default()
    }
}

/// What an answer says of samples that were rolled up.
fn notes(read: &Read, old: OldForms) -> Vec<String> {
    let mut notes = vec![];
    let function = match read {
        Read::Columns {
            made: Made::Window { name, .. },
            ..
        } => Some(*name),
        _ => None,
    };
    let name = function.unwrap_or("the selector");
    if old.windows {
        notes.push(format!(
            "PromQL info: {name} counts whole windows where samples were rolled up; there the ends of its range go back \
             to the bounds of windows"
        ));
    }
    if old.lasts {
        let kind = if function.is_some() { "warning" } else { "info" };
        notes.push(format!(
            "PromQL {kind}: {name} sees no more than the last sample of each window where samples were rolled up"
        ));
    }
    if old.least {
        notes.push(format!(
            "PromQL warning: {name} is the least that it can be where samples were rolled up; their windows do not tell"
        ));
    }
    notes
}

//! What a query reads: each source of its plan asked of the shards, in the least form that the evaluator can do with.
//!
//! Columns made by the shards come first, counts of lines next; samples and lines themselves only where nothing less
//! will do. A series whose samples lie in several places has its samples put together here before it is reduced.

use crate::column::{Column, Steps};
use crate::engine::{Limits, Options, QueryError};
use crate::eval::{Evaluator, Loaded, window};
use crate::load;
use crate::plan::{Made, Read, Source, SourceKind, When};
use crate::reduce::{How, Reducer, Reduction};
use crate::shards::{Budget, ColumnsRequest, Completeness, CountsRequest, LinesRequest, SeriesRequest, Shards};
use hindcast_logql::LineFilter;
use hindcast_model::{Labels, Matcher, TenantId, TimestampNs};
use hindcast_storage::read::Direction;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub struct Fetch<'a> {
    pub shards: &'a dyn Shards,
    pub tenant: &'a TenantId,
    pub options: &'a Options,
    pub limits: Limits,
    pub budget: Arc<Budget>,
}

/// Ends the reads of a query when it is dropped, on whatever thread they are.
pub struct Cancels(pub Arc<Budget>);

impl Drop for Cancels {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Fetch<'_> {
    pub async fn source(&self, source: &Source) -> Result<(Loaded, Completeness), QueryError> {
        if source.to_ms < source.from_ms {
            let nothing = match source.read {
                Read::Samples => Loaded::Samples(vec![]),
                Read::Columns { .. } => Loaded::Columns(vec![]),
            };
            return Ok((nothing, Completeness::default()));
        }
        let loaded = match (&source.kind, &source.read) {
            (SourceKind::Series(matchers), Read::Samples) => self.samples(source, matchers).await?,
            (SourceKind::Series(matchers), Read::Columns { made, steps, when }) => {
                let reduction = self.reduction(made, *steps, *when).await?;
                self.columns(source, matchers, reduction).await?
            }
            (SourceKind::Lines { matchers, filters, .. }, Read::Columns { made, steps, when }) => {
                let windows = load::CountWindows::new(made, *steps, *when);
                self.counts(matchers, filters, windows).await?
            }
            (
                SourceKind::Lines {
                    matchers,
                    filters,
                    bytes,
                },
                Read::Samples,
            ) => self.lines(source, matchers, filters, *bytes).await?,
        };
        self.check_budget()?;
        Ok(loaded)
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

    async fn samples(&self, source: &Source, matchers: &[Matcher]) -> Result<(Loaded, Completeness), QueryError> {
        let (series, completeness) = self.shards.series(self.series_request(source, matchers)).await?;
        let raws = load::series(series, self.options, self.limits.series_max)?;
        Ok((Loaded::Samples(raws), completeness))
    }

    async fn reduction(&self, made: &Made, steps: Steps, when: When) -> Result<Reduction, QueryError> {
        let how = match made {
            Made::Newest { lookback_ms, times } => How::Newest {
                lookback_ms: *lookback_ms,
                times: *times,
            },
            Made::Window {
                name,
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
                    kernel: *kernel,
                    counter: window::is_counter(name),
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
    ) -> Result<(Loaded, Completeness), QueryError> {
        let reduction = Arc::new(reduction);
        let series = self.series_request(source, matchers);
        let request = ColumnsRequest {
            series: series.clone(),
            reduction: reduction.clone(),
        };
        let (found, mut completeness) = self.shards.columns(request).await?;
        let load::Columns {
            whole: mut columns,
            split,
        } = load::columns(found, self.options, self.limits.series_max)?;
        self.check_budget()?;
        if !split.is_empty() {
            let (more, seen) = self.put_together(series, &split, &reduction).await?;
            completeness.merge(seen);
            columns.extend(more);
        }
        Ok((Loaded::Columns(columns), completeness))
    }

    /// Columns of series whose samples lie in several places.
    async fn put_together(
        &self,
        series: SeriesRequest,
        split: &BTreeMap<Labels, Vec<Labels>>,
        reduction: &Reduction,
    ) -> Result<(Vec<Column>, Completeness), QueryError> {
        let stored: BTreeSet<Labels> = split.values().flatten().cloned().collect();
        let request = SeriesRequest {
            only: Some(Arc::new(stored)),
            budget: Arc::new(self.budget.uncounted()),
            ..series
        };
        let (series, completeness) = self.shards.series(request).await?;
        let raws = load::series(series, self.options, self.limits.series_max)?;
        let mut reducer = Reducer::default();
        let columns = raws
            .into_iter()
            .filter(|raw| split.contains_key(&raw.labels))
            .filter_map(|raw| raw.reduced(&mut reducer, reduction));
        Ok((columns.collect(), completeness))
    }

    async fn counts(
        &self,
        matchers: &[Matcher],
        filters: &[LineFilter],
        windows: load::CountWindows,
    ) -> Result<(Loaded, Completeness), QueryError> {
        let request = CountsRequest {
            tenant: self.tenant.clone(),
            matchers: matchers.to_vec(),
            from: windows.from(),
            bounds: windows.bounds().to_vec(),
            as_of: self.options.as_of.clone(),
            owners: self.options.owners.clone(),
            filter: load::filter(filters)?,
        };
        let (counts, completeness) = self.shards.line_counts(request).await?;
        let columns = load::counts(counts, &windows, self.options, self.limits.series_max)?;
        Ok((Loaded::Columns(columns), completeness))
    }

    async fn lines(
        &self,
        source: &Source,
        matchers: &[Matcher],
        filters: &[LineFilter],
        bytes: bool,
    ) -> Result<(Loaded, Completeness), QueryError> {
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
        let (streams, completeness) = self.shards.lines(request).await?;
        let raws = load::lines(streams, bytes, self.options, self.limits.series_max)?;
        // Too many are found out right after this.
        let _ = self.budget.read(raws.iter().map(|r| r.times.len()).sum());
        Ok((Loaded::Samples(raws), completeness))
    }
}

//! What one replica of a shard answers to the requests of the seam `shards::Shards`: for those who implement it.
//!
//! All of these block while they read; run them where that is allowed.

use crate::load;
use crate::natives::NativeCollector;
use crate::reduce::Collector;
use crate::shards::{Columns, ColumnsRequest, CountsRequest, LinesRequest, NativeSeries, SeriesRequest};
use hindcast_storage::read::{CountLines, SelectLines, SelectSeries, SeriesData, StreamCounts, StreamData};
use hindcast_storage::{ReadError, ShardReader};
use std::ops::ControlFlow;

fn select(r: &SeriesRequest, as_of: Option<u64>) -> SelectSeries {
    SelectSeries {
        tenant: r.tenant.clone(),
        matchers: r.matchers.clone(),
        from: r.from,
        to: r.to,
        as_of,
        owners: r.owners.clone(),
    }
}

/// Whether `series`, `columns` and `natives` answer sooner than another thread would wake up for it.
pub fn is_quick(reader: &ShardReader, r: &SeriesRequest) -> bool {
    let no_natives = load::of_natives(&r.matchers).is_none_or(|streams| !reader.knows(&r.tenant, true, &streams));
    no_natives && reader.is_quick(&select(r, None))
}

/// `as_of` is the shard's own position, as in all functions here.
pub fn series(reader: &ShardReader, r: &SeriesRequest, as_of: Option<u64>) -> Result<Vec<SeriesData>, ReadError> {
    let mut found = vec![];
    reader.visit(&select(r, as_of), &mut |s, points| {
        if r.skips(s.labels) {
            return ControlFlow::Continue(());
        }
        r.budget.read(points.len())?;
        found.push((s.rank, s.with_samples(points)));
        ControlFlow::Continue(())
    })?;
    found.sort_unstable_by_key(|(rank, _)| *rank);
    Ok(found.into_iter().map(|(_, series)| series).collect())
}

pub fn columns(reader: &ShardReader, r: &ColumnsRequest, as_of: Option<u64>) -> Result<Columns, ReadError> {
    let mut collector = Collector::new(r);
    let (select, longest_ns) = (select(&r.series, as_of), r.reduction.longest_window_ns());
    reader.visit_rolled(&select, longest_ns, &mut |s, points| collector.take(s, points))?;
    Ok(collector.finish(natives(reader, &r.series, as_of)?))
}

pub fn natives(reader: &ShardReader, r: &SeriesRequest, as_of: Option<u64>) -> Result<Vec<NativeSeries>, ReadError> {
    let Some(matchers) = load::of_natives(&r.matchers) else {
        return Ok(vec![]);
    };
    let streams = SelectSeries {
        matchers,
        ..select(r, as_of)
    };
    let mut collector = NativeCollector::new(r);
    reader.visit_lines(&streams, &mut |stream, at, line| collector.take(stream, at, line))?;
    Ok(collector.finish())
}

pub fn lines(reader: &ShardReader, r: &LinesRequest, as_of: Option<u64>) -> Result<Vec<StreamData>, ReadError> {
    reader.lines(&SelectLines {
        tenant: r.tenant.clone(),
        matchers: r.matchers.clone(),
        from: r.from,
        to: r.to,
        as_of,
        owners: r.owners.clone(),
        filter: r.filter.clone(),
        limit: r.limit,
        direction: r.direction,
    })
}

pub fn line_counts(
    reader: &ShardReader,
    r: &CountsRequest,
    as_of: Option<u64>,
) -> Result<Vec<StreamCounts>, ReadError> {
    let select = CountLines {
        tenant: r.tenant.clone(),
        matchers: r.matchers.clone(),
        from: r.from,
        bounds: r.bounds.clone(),
        as_of,
        owners: r.owners.clone(),
        filter: r.filter.clone(),
    };
    reader.count_lines(&select, &mut |counts| r.budget.computed(counts))
}

//! Rows as they are stored, window after window: what an export reads.
//!
//! Decides how long the next window is, so that one holds neither too few rows nor too many: it doubles while windows
//! are thin and halves when one was thick. Lines are asked for with a limit, so a window of lines never holds more
//! than `WINDOW_LINES_MAX` unless that many share a millisecond; samples have no limit to push down, and a window of
//! them holds what `WINDOW_SPAN_MAX` of time holds at most.
//! Promises: each row of the range once, windows in the order of time, values bit for bit. Times are `TimestampNs`.

use crate::engine::{Engine, QueryError};
use crate::shards::{Budget, Completeness, LinesRequest, SeriesRequest};
use hindcast_model::{Matcher, SpanNs, TenantId, TimestampNs};
use hindcast_storage::read::{Direction, SeriesData, StreamData};
use std::sync::Arc;

/// Lines of one window.
pub const WINDOW_LINES_MAX: usize = 200_000;
/// A window with more samples than this is followed by a shorter one.
pub const WINDOW_SAMPLES_FULL: usize = 1_000_000;
const WINDOW_SPAN_FIRST: SpanNs = SpanNs::from_secs(60);
const WINDOW_SPAN_MAX: SpanNs = SpanNs::from_secs(3600);
const WINDOW_SPAN_MIN: SpanNs = SpanNs::from_ms(1);

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct RowsQuery {
    pub tenant: TenantId,
    /// `{…}`; empty: everything.
    pub selector: String,
    pub lines: bool,
    pub start: TimestampNs,
    /// Excluded.
    pub end: TimestampNs,
}

/// The rows of one window.
#[derive(Clone, Debug, PartialEq)]
pub enum Rows {
    Samples(Vec<SeriesData>),
    Lines(Vec<StreamData>),
}

impl Rows {
    fn len(&self) -> usize {
        match self {
            Self::Samples(all) => all.iter().map(|s| s.samples.len()).sum(),
            Self::Lines(all) => all.iter().map(|s| s.lines.len()).sum(),
        }
    }
}

/// Which part of the range is next. Pure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Windows {
    at: TimestampNs,
    end: TimestampNs,
    span: SpanNs,
}

impl Windows {
    fn new(start: TimestampNs, end: TimestampNs) -> Self {
        Self {
            at: start,
            end,
            span: WINDOW_SPAN_FIRST,
        }
    }

    /// From, to (excluded).
    fn next(&self) -> Option<(TimestampNs, TimestampNs)> {
        (self.at < self.end).then(|| (self.at, self.end.min(self.at + self.span)))
    }

    /// The window was answered with so many rows; `full` is what one should hold.
    fn took(&mut self, rows: usize, full: usize) {
        self.at = self.next().map_or(self.end, |w| w.1);
        if rows > full {
            self.span = SpanNs(self.span.0 / 2).max(WINDOW_SPAN_MIN);
        } else if rows < full / 4 {
            self.span = self.span.doubled(1).min(WINDOW_SPAN_MAX);
        }
    }

    /// The window has too many rows: a shorter one from the same start. False: it cannot be shorter.
    fn shorten(&mut self) -> bool {
        let Some((from, to)) = self.next() else { return false };
        let span = SpanNs(to.since(from).0 / 2);
        if span < WINDOW_SPAN_MIN {
            return false;
        }
        self.span = span;
        true
    }
}

/// Reads one range, window after window.
pub struct RowsReader<'a> {
    engine: &'a Engine,
    query: RowsQuery,
    matchers: Vec<Matcher>,
    windows: Windows,
    /// Of all windows so far.
    pub completeness: Completeness,
}

impl<'a> RowsReader<'a> {
    pub fn new(engine: &'a Engine, query: RowsQuery) -> Result<Self, QueryError> {
        if query.end < query.start {
            return Err(QueryError::Parameter("the end lies before the start".to_owned()));
        }
        if query.selector.len() > engine.limits.expr_bytes_max {
            return Err(QueryError::TooLarge {
                what: "bytes of text",
                max: engine.limits.expr_bytes_max,
            });
        }
        let matchers = match query.selector.as_str() {
            "" => vec![],
            text if query.lines => hindcast_logql::parse_selector(text)?,
            text => hindcast_promql::parse_selector(text)?,
        };
        Ok(Self {
            windows: Windows::new(query.start, query.end),
            engine,
            query,
            matchers,
            completeness: Completeness::default(),
        })
    }

    /// The rows of the next window, which may be none; `None` at the end of the range.
    pub async fn next(&mut self) -> Result<Option<Rows>, QueryError> {
        while let Some((from, end)) = self.windows.next() {
            let to = TimestampNs(end.0 - 1);
            let (rows, seen) = if self.query.lines {
                self.lines(from, to).await?
            } else {
                self.samples(from, to).await?
            };
            let Some(rows) = rows else { continue };
            self.completeness.merge(seen);
            self.completeness.missing.sort();
            self.completeness.missing.dedup();
            let full = if self.query.lines {
                WINDOW_LINES_MAX / 2
            } else {
                WINDOW_SAMPLES_FULL
            };
            self.windows.took(rows.len(), full);
            return Ok(Some(rows));
        }
        Ok(None)
    }

    async fn samples(
        &mut self,
        from: TimestampNs,
        to: TimestampNs,
    ) -> Result<(Option<Rows>, Completeness), QueryError> {
        let request = SeriesRequest {
            tenant: self.query.tenant.clone(),
            matchers: self.matchers.clone(),
            from,
            to,
            as_of: None,
            owners: None,
            only: None,
            // The window bounds what is read.
            budget: Arc::new(Budget::unbounded()),
        };
        let (series, seen) = self.engine.shards.series(request).await?;
        Ok((Some(Rows::Samples(series)), seen))
    }

    /// `None`: the window holds too many lines, and is shorter now.
    async fn lines(&mut self, from: TimestampNs, to: TimestampNs) -> Result<(Option<Rows>, Completeness), QueryError> {
        let mut limit = Some(WINDOW_LINES_MAX + 1);
        loop {
            let request = LinesRequest {
                tenant: self.query.tenant.clone(),
                matchers: self.matchers.clone(),
                from,
                to,
                as_of: None,
                owners: None,
                filter: hindcast_storage::logs::Filter::all(),
                limit,
                direction: Direction::Forward,
            };
            let (streams, seen) = self.engine.shards.lines(request).await?;
            let rows = Rows::Lines(streams);
            if limit.is_none() || rows.len() <= WINDOW_LINES_MAX {
                return Ok((Some(rows), seen));
            }
            if self.windows.shorten() {
                return Ok((None, seen));
            }
            limit = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Limits;
    use crate::testing::OneShard;
    use hindcast_model::{Labels, LogLine, Owner, Sample};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn windows_cover_the_range_once_whatever_they_hold(
            start in -1_000_000_000_000i64..1_000_000_000_000,
            len in 0u64..20_000_000_000_000,
            rows in prop::collection::vec((0usize..2_000_000, any::<bool>()), 1..50),
        ) {
            let (start, end) = (TimestampNs(start), TimestampNs(start) + SpanNs(len));
            let mut windows = Windows::new(start, end);
            let (mut at, mut rows) = (start, rows.into_iter().cycle());
            let mut looks = 0;
            while let Some((from, to)) = windows.next() {
                prop_assert_eq!(from, at);
                prop_assert!(from < to && to <= end && to.since(from) <= WINDOW_SPAN_MAX);
                let (count, too_many) = rows.next().unwrap_or_default();
                looks += 1;
                // No answer is too thick for ever: 60 halvings reach the shortest window from any span.
                if looks < 2000 && too_many && windows.shorten() {
                    continue;
                }
                windows.took(count.min(if looks > 2000 { 0 } else { usize::MAX }), WINDOW_SAMPLES_FULL);
                at = to;
            }
            prop_assert_eq!(at, end);
        }
    }

    fn engine(shard: OneShard) -> Engine {
        Engine::new(Arc::new(shard), Limits::default())
    }

    fn query(selector: &str, lines: bool, start: i64, end: i64) -> RowsQuery {
        RowsQuery {
            tenant: TenantId::default(),
            selector: selector.to_owned(),
            lines,
            start: TimestampNs(start),
            end: TimestampNs(end),
        }
    }

    async fn all(engine: &Engine, query: RowsQuery) -> Vec<Rows> {
        let mut reader = RowsReader::new(engine, query).unwrap();
        let mut out = vec![];
        while let Some(rows) = reader.next().await.unwrap() {
            if rows.len() > 0 {
                out.push(rows);
            }
        }
        out
    }

    #[tokio::test]
    async fn every_bit_of_every_sample_in_the_range_comes_once() {
        let bits = [
            0x7ff0_0000_0000_0002u64,
            0x7ff8_0000_0000_0001,
            0xfff8_dead_beef_0000,
            0x8000_0000_0000_0000,
            1,
        ];
        let shard = OneShard::new();
        let minute = 60_000_000_000;
        let samples = (0..500i64).map(|i| Sample {
            at: TimestampNs(i * minute),
            value: f64::from_bits(bits[i as usize % bits.len()]),
        });
        let labels = Labels::from_pairs([("__name__", "m"), ("job", "a")]);
        shard.add(&TenantId::default(), labels, samples);
        let other = Labels::from_pairs([("__name__", "n")]);
        shard.add(
            &TenantId::default(),
            other,
            [Sample {
                at: TimestampNs(5 * minute),
                value: 1.0,
            }],
        );
        let found = all(&engine(shard), query("{job=\"a\"}", false, 10 * minute, 400 * minute)).await;
        assert!(found.len() > 3, "one window only");
        let mut expected = 10..400i64;
        for rows in found {
            let Rows::Samples(series) = rows else {
                panic!("lines were not asked for")
            };
            for sample in series.iter().flat_map(|s| &s.samples) {
                let i = expected.next().unwrap();
                assert_eq!(
                    (sample.at.0, sample.value.to_bits()),
                    (i * minute, bits[i as usize % bits.len()])
                );
            }
        }
        assert_eq!(expected.next(), None);
    }

    #[tokio::test]
    async fn more_lines_than_fit_in_a_window_all_come_also_within_one_millisecond() {
        let shard = OneShard::new();
        let lines = (0..WINDOW_LINES_MAX as i64 + 50_000).map(|i| LogLine {
            at: TimestampNs(if i < 1000 { i } else { 5_000_000_000 }),
            line: i.to_string().into(),
            metadata: vec![],
        });
        shard.add_lines(
            &TenantId::default(),
            Labels::from_pairs([("job", "a")]),
            Owner::None,
            lines,
        );
        let found = all(&engine(shard), query("", true, 0, 60_000_000_000)).await;
        assert!(found.len() >= 2);
        let count: usize = found.iter().map(Rows::len).sum();
        assert_eq!(count, WINDOW_LINES_MAX + 50_000);
    }

    #[tokio::test]
    async fn what_is_missing_is_told_and_a_wrong_selector_is_refused() {
        let shard = OneShard::new();
        shard.set_missing(vec!["shard 2: gone".into()]);
        let engine = engine(shard);
        let mut reader = RowsReader::new(&engine, query("", false, 0, 10)).unwrap();
        while reader.next().await.unwrap().is_some() {}
        assert!(!reader.completeness.is_complete());
        assert!(RowsReader::new(&engine, query("{", false, 0, 10)).is_err());
        assert!(RowsReader::new(&engine, query("", false, 10, 0)).is_err());
    }
}

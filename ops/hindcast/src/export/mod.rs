//! `hindcast export`: a range of samples and lines as Parquet files, for tools that want more than queries.
//!
//! Decides the layout: one folder per kind, domain and UTC day, named as Hive does it, so that DuckDB, Spark and Trino
//! read `kind`, `domain` and `day` from the path and skip folders that a query does not need:
//! `OUT/kind=metrics/domain=sms/day=2026-11-22/part-0.parquet`.
//! Promises: every row of the range once, values bit for bit; a target is whole or not there.
//! Bounded: one window of rows is on its way, and each open file holds one row group (`table::GROUP_BYTES_FULL`).
//! The range is read window after window, so what arrives late while it runs may or may not be in it.

pub mod io;
pub mod table;

use hindcast_model::TimestampNs;
use hindcast_proto::v1;
use serde::Serialize;
use std::path::PathBuf;

/// One UTC day.
const DAY_NS: i64 = 86_400_000_000_000;

/// What rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Metrics,
    Logs,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Logs => "logs",
        }
    }
}

/// The unit of the column `ts`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Precision {
    /// Nanoseconds: exact.
    #[default]
    Ns,
    /// Microseconds, rounded down: for readers that know no nanoseconds (Spark without `nanosAsLong`).
    Us,
}

#[derive(Clone, Debug)]
pub struct ExportConfig {
    pub kinds: Vec<Kind>,
    /// `{…}`; empty: everything.
    pub selector: String,
    pub from: TimestampNs,
    /// Excluded.
    pub to: TimestampNs,
    pub out: PathBuf,
    pub overwrite: bool,
    /// Labels that get a column of their own.
    pub promote: Vec<String>,
    pub precision: Precision,
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExportReport {
    pub samples: u64,
    pub lines: u64,
    pub files: u64,
    pub bytes: u64,
    pub parts: Vec<PartReport>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PartReport {
    /// Within the target.
    pub path: String,
    pub rows: u64,
    pub bytes: u64,
}

/// Why there is no export. What was in the target before is still there.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("{0}")]
    Usage(String),
    #[error("{path}: {source}; the target was left as it was")]
    File { path: String, source: std::io::Error },
    #[error("{path} cannot be written: {source}; the target was left as it was")]
    Parquet {
        path: String,
        source: parquet::errors::ParquetError,
    },
    #[error("{}; nothing was exported", .0.message())]
    Server(tonic::Status),
    #[error("the answer is not whole ({}); nothing was exported, try again when all shards answer", .0.join("; "))]
    Incomplete(Vec<String>),
}

/// Which domain's folder rows belong to.
pub fn domain_of(owner: Option<&v1::RowsOwner>) -> String {
    owner.map_or_else(|| "none".to_owned(), |o| o.domain.to_ascii_lowercase())
}

/// The folder of a partition and its file, within the target.
pub fn part_path(kind: Kind, domain: &str, day: &str) -> String {
    format!("kind={}/domain={domain}/day={day}/part-0.parquet", kind.as_str())
}

/// Whether a path within a target is one that an export writes.
pub fn is_part_path(path: &str) -> bool {
    let mut parts = path.split('/');
    let mut next = |prefix: &str, suffix: &str| {
        parts
            .next()
            .is_some_and(|p| p.starts_with(prefix) && p.ends_with(suffix))
    };
    next("kind=", "") && next("domain=", "") && next("day=", "") && next("part-", ".parquet") && parts.next().is_none()
}

/// A range cut at midnight, UTC: name of the day, start, end (excluded).
pub fn days(from: TimestampNs, to: TimestampNs) -> impl Iterator<Item = (String, TimestampNs, TimestampNs)> {
    let mut at = from;
    std::iter::from_fn(move || {
        if at >= to {
            return None;
        }
        let start = at;
        let midnight = (start.0.div_euclid(DAY_NS) + 1).saturating_mul(DAY_NS);
        at = TimestampNs(midnight).min(to);
        Some((day_name(start), start, at))
    })
}

fn day_name(at: TimestampNs) -> String {
    // Nanoseconds since 1970 in 64 bits are years 1677 to 2262: jiff knows them all.
    let at = jiff::Timestamp::from_nanosecond(i128::from(at.0)).unwrap_or_default();
    at.to_zoned(jiff::tz::TimeZone::UTC).date().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_range_is_cut_at_midnight_utc() {
        let ns = |t: &str| TimestampNs(t.parse::<jiff::Timestamp>().unwrap().as_nanosecond() as i64);
        let (from, to) = (ns("2026-11-21T23:59:59.5Z"), ns("2026-11-23T00:00:00.000000001Z"));
        let cut: Vec<_> = days(from, to).map(|(name, a, b)| (name, b.0 - a.0)).collect();
        let expected = [("2026-11-21", 500_000_000), ("2026-11-22", DAY_NS), ("2026-11-23", 1)];
        assert_eq!(cut, expected.map(|(name, len)| (name.to_owned(), len)));
        assert_eq!(day_name(TimestampNs(-1)), "1969-12-31");
    }

    proptest! {
        #[test]
        fn days_cover_the_range_once(from: i64, len in 0i64..400 * DAY_NS) {
            let (from, to) = (TimestampNs(from), TimestampNs(from.saturating_add(len)));
            let mut at = from;
            for (name, a, b) in days(from, to) {
                prop_assert!(a == at && a < b && b <= to);
                prop_assert_eq!(&name, &day_name(TimestampNs(b.0 - 1)));
                at = b;
            }
            prop_assert_eq!(at, to.max(from));
        }
    }

    #[test]
    fn an_export_knows_its_own_files() {
        assert!(is_part_path(&part_path(Kind::Logs, "none", "2026-11-22")));
        for foreign in [
            "notes.txt",
            "kind=a/domain=b/part-0.parquet",
            "kind=a/domain=b/day=c/part-0.csv",
            "kind=a/domain=b/day=c/d/part-0.parquet",
        ] {
            assert!(!is_part_path(foreign), "{foreign}");
        }
    }
}

//! A histogram as the text of a line, which is how it is stored.
//!
//! `h1 s=3 c=9 sum=12.5 zt=0.001 zc=1 p=-2:2,3,0,1;7:1 n=0:2`: version, schema, count, sum, threshold and count of the zero bucket,
//! then runs of buckets, each its first index and the counts of neighbours; `b=` lists bounds, `r=` is what was said of resets (`r`
//! reset, `n` no reset, `g` gauge). What is zero or empty is left out. [`STALE_LINE`] says that the series ended.

use super::{Buckets, CUSTOM_SCHEMA, Hint, Histogram, SCHEMAS};
use std::fmt::Write;
use std::sync::Arc;

/// In place of a histogram: nothing was seen here, the series ended.
pub const STALE_LINE: &str = "h1 stale";
/// Bytes of a line that count as one sample where writes are counted: what a float and its time take on their way, and about what some
/// ten buckets take in a line.
pub const LINE_BYTES_PER_SAMPLE: usize = 64;
/// Buckets in use and bounds of one histogram, each side for itself.
pub const NATIVE_BUCKETS_MAX: usize = 2_048;
/// Beyond it no number has a bucket, whatever the schema.
const INDEX_MAX: i32 = 1 << 20;
/// Buckets without observations that stand within a run: a new run costs as much.
const GAP_MAX: i32 = 3;

/// How many samples a line counts as where writes are counted.
pub fn line_samples(line: &[u8]) -> u64 {
    line.len().div_ceil(LINE_BYTES_PER_SAMPLE).max(1) as u64
}

impl Histogram {
    /// The line; `None`: it stands for more than is kept (bounds, buckets, indices).
    pub fn to_line(&self) -> Option<String> {
        let sides = [&self.positive, &self.negative];
        let fits = sides.iter().all(|side| {
            side.len() <= NATIVE_BUCKETS_MAX && side.iter().all(|(i, _)| (-INDEX_MAX..=INDEX_MAX).contains(i))
        });
        if !fits || self.custom.len() > NATIVE_BUCKETS_MAX {
            return None;
        }
        let mut line = format!("h1 s={}", self.schema);
        let numbers = [
            ("c", self.count),
            ("sum", self.sum),
            ("zt", self.zero_threshold),
            ("zc", self.zero_count),
        ];
        for (name, value) in numbers {
            if value.to_bits() != 0 {
                let _ = write!(line, " {name}=");
                put(&mut line, value);
            }
        }
        let hint = match self.hint {
            Hint::Unknown => "",
            Hint::Reset => " r=r",
            Hint::NotReset => " r=n",
            Hint::Gauge => " r=g",
        };
        line.push_str(hint);
        for (name, side) in [("p", &self.positive), ("n", &self.negative)] {
            put_side(&mut line, name, side);
        }
        for (i, bound) in self.custom.iter().enumerate() {
            line.push_str(if i == 0 { " b=" } else { "," });
            put(&mut line, *bound);
        }
        Some(line)
    }

    /// The histogram of such a line; `Ok(None)`: the mark of an end.
    pub fn of_line(line: &[u8]) -> Result<Option<Self>, BadLine> {
        let text = std::str::from_utf8(line).map_err(|_| BadLine)?;
        if text == STALE_LINE {
            return Ok(None);
        }
        let mut h = Self::default();
        for part in text.strip_prefix("h1 ").ok_or(BadLine)?.split(' ') {
            let (name, value) = part.split_once('=').ok_or(BadLine)?;
            match name {
                "s" => h.schema = value.parse().map_err(|_| BadLine)?,
                "c" => h.count = number(value)?,
                "sum" => h.sum = number(value)?,
                "zt" => h.zero_threshold = number(value)?,
                "zc" => h.zero_count = number(value)?,
                "p" => h.positive = side(value)?,
                "n" => h.negative = side(value)?,
                "b" => h.custom = bounds(value)?,
                "r" => {
                    h.hint = match value {
                        "r" => Hint::Reset,
                        "n" => Hint::NotReset,
                        "g" => Hint::Gauge,
                        _ => return Err(BadLine),
                    }
                }
                _ => return Err(BadLine),
            }
        }
        let custom = h.schema == CUSTOM_SCHEMA;
        let within = |i: i32| !custom || usize::try_from(i).is_ok_and(|i| i <= h.custom.len());
        let of_schema = match custom {
            true => h.negative.is_empty(),
            false => SCHEMAS.contains(&h.schema) && h.custom.is_empty(),
        };
        let is_whole = of_schema && h.zero_threshold >= 0.0 && h.positive.iter().all(|(i, _)| within(*i));
        is_whole.then_some(Some(h)).ok_or(BadLine)
    }
}

/// It is no line of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the line is none of a native histogram")]
pub struct BadLine;

/// The shortest text that reads back the same. Counts are mostly whole.
fn put(line: &mut String, value: f64) {
    let whole = value as i64;
    let _ = if value.abs() < 1e15 && whole as f64 == value && (whole != 0 || value.is_sign_positive()) {
        write!(line, "{whole}")
    } else if value.abs() >= 1e-5 && value.abs() < 1e15 {
        write!(line, "{value}")
    } else {
        write!(line, "{value:e}")
    };
}

fn put_side(line: &mut String, name: &str, side: &Buckets) {
    let mut last: Option<i32> = None;
    for &(index, n) in side {
        match last {
            Some(last) if index - last <= GAP_MAX => {
                for _ in last + 1..index {
                    line.push_str(",0");
                }
                line.push(',');
            }
            Some(_) => {
                let _ = write!(line, ";{index}:");
            }
            None => {
                let _ = write!(line, " {name}={index}:");
            }
        }
        put(line, n);
        last = Some(index);
    }
}

fn number(text: &str) -> Result<f64, BadLine> {
    text.parse().map_err(|_| BadLine)
}

fn side(text: &str) -> Result<Buckets, BadLine> {
    // As much room as there are counts: what is read is held as long as a query lasts.
    let counts = 1 + text.bytes().filter(|b| matches!(b, b',' | b';')).count();
    let mut buckets = Buckets::with_capacity(counts.min(NATIVE_BUCKETS_MAX));
    let mut next = -INDEX_MAX;
    for run in text.split(';') {
        let (first, counts) = run.split_once(':').ok_or(BadLine)?;
        let first: i32 = first.parse().map_err(|_| BadLine)?;
        if first < next {
            return Err(BadLine);
        }
        next = first;
        for count in counts.split(',') {
            let count = number(count)?;
            if next > INDEX_MAX || buckets.len() == NATIVE_BUCKETS_MAX {
                return Err(BadLine);
            }
            if count != 0.0 {
                buckets.push((next, count));
            }
            next += 1;
        }
    }
    Ok(buckets)
}

fn bounds(text: &str) -> Result<Arc<[f64]>, BadLine> {
    let bounds: Vec<f64> = text.split(',').map(number).collect::<Result<_, _>>()?;
    let rise = bounds.is_sorted_by(|a, b| a < b) && bounds.iter().all(|b| b.is_finite());
    if !rise || bounds.len() > NATIVE_BUCKETS_MAX {
        return Err(BadLine);
    }
    Ok(bounds.into())
}

//! How lines become bytes: times, texts and metadata of one page. Layouts: `FORMAT.md`.
//!
//! Decoders take any bytes: what cannot have been
//! written is an error, never a panic and never an allocation beyond the page's own size.

use crate::cursor::{Bad, Cursor, put_bytes, put_signed, put_varint};
use bytes::Bytes;
use hindcast_model::{LogLine, TimestampNs};

/// Rows of one page.
pub const PAGE_ROWS_MAX: usize = 8192;
const NS_PER_MS: i64 = 1_000_000;

/// Times: unit (0: ns, 1: ms), first, then differences of differences. Wrapping, so that any i64 comes back.
fn put_times(out: &mut Vec<u8>, times: impl Iterator<Item = i64> + Clone) {
    let ms = times.clone().all(|t| t % NS_PER_MS == 0);
    let unit = if ms { NS_PER_MS } else { 1 };
    out.push(u8::from(ms));
    let (mut last, mut step) = (0i64, 0i64);
    for (i, t) in times.enumerate() {
        let t = t / unit;
        let d = t.wrapping_sub(last);
        if i == 0 {
            put_signed(out, t);
        } else {
            put_signed(out, d.wrapping_sub(step));
            step = d;
        }
        last = t;
    }
}

fn get_times(c: &mut Cursor<'_>, n: usize, mut each: impl FnMut(i64)) -> Result<(), Bad> {
    let unit = match c.byte()? {
        0 => 1,
        1 => NS_PER_MS,
        _ => return Err("an unknown unit of time"),
    };
    let (mut last, mut step) = (0i64, 0i64);
    for i in 0..n {
        let v = c.signed()?;
        if i == 0 {
            last = v;
        } else {
            step = step.wrapping_add(v);
            last = last.wrapping_add(step);
        }
        each(last.checked_mul(unit).ok_or("a time is out of range")?);
    }
    Ok(())
}

fn rows(c: &mut Cursor<'_>) -> Result<usize, Bad> {
    let n: usize = c.number()?;
    if n == 0 || n > PAGE_ROWS_MAX {
        return Err("a page has an impossible number of rows");
    }
    Ok(n)
}

/// A line as it lies in a memtable or page.
#[derive(Clone, Copy, Debug)]
pub struct RawLine<'a> {
    pub at: i64,
    pub line: &'a [u8],
    /// As `put_metadata` wrote it.
    pub metadata: &'a [u8],
}

impl RawLine<'_> {
    pub fn to_line(self) -> Result<LogLine, Bad> {
        Ok(LogLine {
            at: TimestampNs(self.at),
            line: Bytes::copy_from_slice(self.line),
            metadata: get_metadata(self.metadata)?,
        })
    }
    pub const fn bytes(&self) -> usize {
        self.line.len() + self.metadata.len()
    }
}

/// Nothing for no metadata; else each name and value.
pub fn put_metadata(out: &mut Vec<u8>, metadata: &[(String, String)]) {
    for (name, value) in metadata {
        put_bytes(out, name.as_bytes());
        put_bytes(out, value.as_bytes());
    }
}

fn get_metadata(bytes: &[u8]) -> Result<Vec<(String, String)>, Bad> {
    let mut c = Cursor(bytes);
    let mut metadata = vec![];
    while !c.0.is_empty() {
        metadata.push((c.text()?.to_owned(), c.text()?.to_owned()));
    }
    Ok(metadata)
}

/// One page of a stream. Times must not descend.
pub fn put_lines(out: &mut Vec<u8>, lines: &[RawLine<'_>]) {
    debug_assert!(!lines.is_empty() && lines.len() <= PAGE_ROWS_MAX);
    put_varint(out, lines.len() as u64);
    put_times(out, lines.iter().map(|l| l.at));
    lines.iter().for_each(|l| put_varint(out, l.line.len() as u64));
    lines.iter().for_each(|l| put_varint(out, l.metadata.len() as u64));
    lines.iter().for_each(|l| out.extend_from_slice(l.metadata));
    lines.iter().for_each(|l| out.extend_from_slice(l.line));
}

pub fn get_lines(page: &[u8]) -> Result<Vec<RawLine<'_>>, Bad> {
    let c = &mut Cursor(page);
    let n = rows(c)?;
    let mut lines = Vec::with_capacity(n);
    get_times(c, n, |at| {
        lines.push(RawLine {
            at,
            line: &[],
            metadata: &[],
        });
    })?;
    let text_lens = (0..n).map(|_| c.number()).collect::<Result<Vec<usize>, Bad>>()?;
    let metadata_lens = (0..n).map(|_| c.number()).collect::<Result<Vec<usize>, Bad>>()?;
    for (l, len) in lines.iter_mut().zip(metadata_lens) {
        l.metadata = c.take(len)?;
    }
    for (l, len) in lines.iter_mut().zip(text_lens) {
        l.line = c.take(len)?;
    }
    c.end()?;
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lines_come_back_byte_for_byte(
            lines in prop::collection::vec((any::<i64>(), prop::collection::vec(any::<u8>(), 0..40),
                prop::collection::vec((".{0,5}", ".{0,5}"), 0..3)), 1..60),
        ) {
            let metadata: Vec<Vec<u8>> = lines.iter().map(|(_, _, m)| {
                let mut out = vec![];
                put_metadata(&mut out, m);
                out
            }).collect();
            let raw: Vec<RawLine<'_>> = lines.iter().zip(&metadata)
                .map(|((at, line, _), metadata)| RawLine { at: *at, line, metadata }).collect();
            let mut page = vec![];
            put_lines(&mut page, &raw);
            let back: Vec<LogLine> = get_lines(&page).unwrap().into_iter().map(|l| l.to_line().unwrap()).collect();
            let given: Vec<LogLine> = lines.into_iter()
                .map(|(at, line, metadata)| LogLine { at: TimestampNs(at), line: line.into(), metadata }).collect();
            prop_assert_eq!(back, given);
        }

        #[test]
        fn any_bytes_are_read_or_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(lines) = get_lines(&bytes) {
                let _ = lines.into_iter().map(RawLine::to_line).collect::<Vec<_>>();
            }
        }
    }
}

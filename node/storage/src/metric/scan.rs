//! A function over the samples of a window, decoded and folded in one pass.
//!
//! Chunks of a page go from packed bits to lanes without leaving the first-level cache. Constants, and lines that rise
//! under `Increase`, are answered without decoding: only where that gives the bits of `kernel::reference`. Staleness
//! markers are left out.

use crate::cursor::Bad;
use crate::error::ReadError;
use crate::kernel::{Function, Running};
use crate::metric::page::{Closed, Page, Scratch};
use crate::metric::segment::PageReader;
use crate::metric::transform::POWERS;
use hindcast_model::STALE_NAN_BITS;
use std::ops::Range;

fn is_stale(v: f64) -> bool {
    v.to_bits() == STALE_NAN_BITS
}

/// Folds `rows` of a page.
pub fn push_page(page: &Page<'_>, rows: Range<usize>, running: &mut Running, scratch: &mut Scratch) -> Result<(), Bad> {
    if rows.is_empty() {
        return Ok(());
    }
    match page.closed() {
        Closed::Const(v) if is_stale(v) => return Ok(()),
        Closed::Const(v) => {
            running.push_const(v, rows.len());
            return Ok(());
        }
        Closed::Linear { first, step, e } if running.function() == Function::Increase && page.ascends() => {
            let at = |i: usize| first.wrapping_add(step.wrapping_mul(i as i64)) as f64 / POWERS[e as usize];
            running.push_ascending(at(rows.start), at(rows.end - 1), rows.len());
            return Ok(());
        }
        _ => {}
    }
    let stale = page.may_hold_nan();
    let mut at = 0;
    page.chunks(rows.end, scratch, |chunk| {
        let from = rows.start.saturating_sub(at).min(chunk.len());
        at += chunk.len();
        let chunk = &chunk[from..];
        if stale {
            chunk.split(|v| is_stale(*v)).for_each(|part| running.push(part));
        } else {
            running.push(chunk);
        }
    })
}

impl PageReader<'_> {
    /// Folds the samples of `pages` with times in `from..=to`. Times are decoded only of pages that reach beyond.
    pub fn scan(&mut self, pages: Range<u32>, from: i64, to: i64, running: &mut Running) -> Result<(), ReadError> {
        for page in pages {
            let rows = self.rows_in(page, from, to)?;
            let (parsed, scratch) = self.page(page)?;
            let pushed = push_page(&parsed, rows, running, scratch);
            pushed.map_err(|why| self.told(page, why))?;
        }
        Ok(())
    }
}

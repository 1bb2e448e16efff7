//! Samples on disk and in memory: pages of one series, and segments of such pages. Layout: `FORMAT.md` §5.
//!
//! `transform` turns floats into small integers and back, `pfor` packs those, `page` puts both together.

mod page;
mod pfor;
mod scan;
pub mod segment;
mod times;
mod transform;

pub use page::{Body, Closed, Encoder, PAGE_ROWS_MAX, Page, Scratch};
pub use scan::push_page;
pub use segment::{PageReader, Segment, Tier, Writer};

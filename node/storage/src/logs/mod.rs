//! Log lines at rest: blocks of one stream, split into templates, numbers and strings, and the search over them.
//!
//! `BlockEncoder` makes a block, `Block` reads one section by section, `Filter` finds lines in it, `Writer` and
//! `Segment` keep the blocks of many streams in one file. Times are nanoseconds; rows are numbered from 0 within their
//! block. Every line comes back byte for byte, whatever its bytes. Layouts: `FORMAT-logs.md`.

mod block;
mod column;
mod metadata;
mod search;
mod segment;
mod template;
#[cfg(test)]
mod tests;
mod times;
mod words;

pub use crate::codec::{RawLine, put_metadata};
pub use crate::container::{FileKind, FileRef, Head};
pub use crate::retention::Policy;
pub(crate) use block::fitting;
pub use block::{BLOCK_ROWS_MAX, Block, BlockEncoder, BlockInfo, LineBuf, PackedBlock};
pub use search::{BadFilter, Filter, FilterText, Settled};
pub use segment::{BLOCK_BYTES, Segment, Tier, Writer};
pub use times::Times;

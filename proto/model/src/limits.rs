//! Bounds that hold everywhere.

use crate::time::SpanNs;

pub const LABEL_NAME_BYTES_MAX: usize = 128;
pub const LABEL_VALUE_BYTES_MAX: usize = 4 * 1024;
pub const LABELS_MAX: usize = 64;
pub const LINE_BYTES_MAX: usize = 256 * 1024;
/// Samples and lines further ahead of cluster time than this are refused.
pub const FUTURE_SPAN_MAX: SpanNs = SpanNs::from_secs(600);
/// One request, as it comes over the wire.
pub const REQUEST_WIRE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// One request, decompressed. Counted while decompressing.
pub const REQUEST_DECODED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// One Raft entry, before raft's own framing.
pub const ENTRY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Batch ids that one shard remembers.
pub const DEDUP_IDS_MAX: usize = 1_000_000;
/// How long one shard remembers a batch id.
pub const DEDUP_SPAN: SpanNs = SpanNs::from_secs(600);

//! Spans as log lines: a line per span, in a stream of the resource that made it, with what identifies the span as metadata. So
//! queries, retention, masking, cuts and pins treat spans like any other lines.
//!
//! Who asks for lines without naming [`TRACE_LABEL`] gets none of these.

/// The label that marks streams of spans.
pub const TRACE_LABEL: &str = "hindcast_trace";
/// Its value.
pub const SPAN: &str = "span";

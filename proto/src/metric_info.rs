//! How type, help text and unit of a metric are kept: as the labels of a series of their own, whose value is when it was written.

use hindcast_model::SpanNs;

/// The name of these series.
pub const METRIC_INFO: &str = "hindcast_metric_info";
/// Labels: the metric's name, its type in Prometheus' words, its unit, its help text.
pub const METRIC: &str = "metric";
pub const TYPE: &str = "type";
pub const UNIT: &str = "unit";
pub const HELP: &str = "help";
/// What does not change is written again after so long,
pub const REWRITE_SPAN: SpanNs = SpanNs::from_secs(6 * 3600);
/// and what was not written again for so long is no more said by anybody.
pub const FORGET_SPAN: SpanNs = SpanNs::from_secs(48 * 3600);

//! Spans, exemplars and native histograms as log lines. A span is a line in a stream of the resource that made it, an exemplar one in a stream of its metric;
//! what identifies the span is metadata of both. So queries, retention, masking, cuts and pins treat them like any other lines.
//!
//! Who asks for lines without naming [`TRACE_LABEL`] gets none of these.

use hindcast_model::{Labels, histogram};
use std::collections::BTreeMap;

/// The label that marks streams of spans, exemplars and native histograms.
pub const TRACE_LABEL: &str = histogram::MARK.0;
/// Its value for spans.
pub const SPAN: &str = "span";
/// Its value for exemplars.
pub const EXEMPLAR: &str = "exemplar";
/// Its value for native histograms: the other labels of such a stream are those of the series, and each line is a sample
/// (`hindcast_model::histogram`).
pub const NATIVE: &str = histogram::MARK.1;
/// The label of a stream of exemplars that names their metric.
pub const METRIC_LABEL: &str = "hindcast_metric";

/// The line of an exemplar; its own labels are metadata. Values are written as Prometheus writes them.
pub fn exemplar_line(series: &Labels, value: f64) -> String {
    let series: BTreeMap<&str, &str> = series.iter().collect();
    serde_json::json!({ "value": value_text(value), "series": series }).to_string()
}

fn value_text(value: f64) -> String {
    match value {
        f64::INFINITY => "+Inf".to_owned(),
        f64::NEG_INFINITY => "-Inf".to_owned(),
        v if v.is_nan() => "NaN".to_owned(),
        v => v.to_string(),
    }
}

/// Series and value of such a line; `None`: it is none.
pub fn read_exemplar_line(line: &[u8]) -> Option<(Labels, String)> {
    #[derive(serde::Deserialize)]
    struct Line {
        value: String,
        series: BTreeMap<String, String>,
    }
    let Line { value, series } = serde_json::from_slice(line).ok()?;
    Some((Labels::new(series.into_iter().collect()), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_an_exemplar_is_read_as_it_was_written() {
        let series = Labels::from_pairs([("__name__", "took_bucket"), ("le", "0.5"), ("path", "\"장바구니\"\n")]);
        for (value, text) in [
            (0.1 + 0.2, "0.30000000000000004"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
            (f64::NAN, "NaN"),
            (-0.0, "-0"),
        ] {
            let line = exemplar_line(&series, value);
            assert_eq!(
                read_exemplar_line(line.as_bytes()),
                Some((series.clone(), text.to_owned()))
            );
        }
        assert_eq!(read_exemplar_line(b"span=\"GET /\""), None);
        assert_eq!(read_exemplar_line(b"{\"value\":1}"), None);
    }
}

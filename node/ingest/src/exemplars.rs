//! Exemplars: single measurements of a series, with what leads to their trace. They are kept as lines of a stream per metric and
//! resource (`hindcast_proto::trace`), in the same batch as the samples they came with.
//!
//! Bounds: of one request [`EXEMPLARS_MAX`] and [`EXEMPLARS_BYTES_MAX`]; of the labels of one, the 128 characters that OpenMetrics
//! allows. What is beyond, or has a time that cannot be, is left out and counted: the samples are not to blame.

use crate::LimitsContext;
use hindcast_model::{Labels, LogLine, Owner, StreamBlock, TimestampNs};
use hindcast_proto::trace::{EXEMPLAR, METRIC_LABEL, TRACE_LABEL, exemplar_line};
use std::collections::BTreeMap;

/// Of one request.
pub const EXEMPLARS_MAX: usize = 10_000;
/// What the lines of one request's exemplars may take: each names its whole series.
pub const EXEMPLARS_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Names and values of one exemplar's labels together (OpenMetrics 1.0, "Exemplars").
pub const EXEMPLAR_CHARS_MAX: usize = 128;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exemplar {
    pub labels: Vec<(String, String)>,
    pub value: f64,
    pub at: TimestampNs,
}

/// Exemplars of one request.
#[derive(Debug, Default)]
pub(crate) struct Exemplars {
    streams: BTreeMap<(String, Owner), Vec<LogLine>>,
    bytes: usize,
    pub kept: u64,
    pub left_out: u64,
}

impl Exemplars {
    pub fn add(&mut self, series: &Labels, owner: Owner, exemplar: Exemplar, limits: &LimitsContext) {
        if self.keep(series, owner, exemplar, limits).is_none() {
            self.left_out += 1;
        }
    }

    fn keep(&mut self, series: &Labels, owner: Owner, exemplar: Exemplar, limits: &LimitsContext) -> Option<()> {
        let Exemplar { mut labels, value, at } = exemplar;
        labels.retain(|(_, value)| !value.is_empty());
        let chars: usize = labels.iter().map(|(n, v)| n.chars().count() + v.chars().count()).sum();
        labels.sort();
        let is_twice = labels.windows(2).any(|w| w[0].0 == w[1].0);
        let of_series: usize = series.iter().map(|(n, v)| n.len() + v.len() + 8).sum();
        let bytes = of_series + 4 * chars + 64;
        let fits = (self.kept as usize) < EXEMPLARS_MAX && self.bytes + bytes <= EXEMPLARS_BYTES_MAX;
        if !fits || chars > EXEMPLAR_CHARS_MAX || is_twice || limits.time(at).is_err() {
            return None;
        }
        let line = exemplar_line(series, value);
        limits.line(line.len(), &labels).ok()?;
        let line = LogLine {
            at,
            line: line.into(),
            metadata: labels,
        };
        let name = series.metric_name().unwrap_or_default().to_owned();
        self.streams.entry((name, owner)).or_default().push(line);
        self.bytes += bytes;
        self.kept += 1;
        Some(())
    }

    pub fn into_blocks(self) -> impl Iterator<Item = StreamBlock> {
        self.streams.into_iter().map(|((metric, owner), lines)| StreamBlock {
            labels: Labels::from_pairs([(TRACE_LABEL, EXEMPLAR), (METRIC_LABEL, metric.as_str())]),
            owner,
            lines,
        })
    }
}

/// The series of a histogram that counts this value.
pub(crate) fn bucket_of(series: &Labels, bounds: impl Iterator<Item = f64>, value: f64) -> Labels {
    let bound = bounds.filter(|bound| value <= *bound).fold(f64::INFINITY, f64::min);
    crate::otlp::derived(series, "_bucket", Some(("le", crate::otlp::number(bound))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::LIMITS;
    use hindcast_model::METRIC_NAME;

    fn one(labels: &[(&str, &str)], at_ms: i64) -> Exemplar {
        Exemplar {
            labels: labels.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            value: 0.7,
            at: TimestampNs::from_ms(at_ms),
        }
    }

    #[test]
    fn exemplars_are_lines_of_their_metric_by_resource() {
        let series = |name, host| Labels::from_pairs([(METRIC_NAME, name), ("instance", host)]);
        let mut all = Exemplars::default();
        let trace = [("trace_id", "a1"), ("span_id", "b2"), ("empty", "")];
        all.add(&series("took", "web-1"), Owner::None, one(&trace, 5), &LIMITS);
        all.add(&series("took", "web-2"), Owner::None, one(&[], 4), &LIMITS);
        all.add(&series("other", "web-2"), Owner::None, one(&trace, 4), &LIMITS);
        // Too many characters, a name twice, a time that cannot be.
        all.add(
            &series("took", "web-1"),
            Owner::None,
            one(&[("trace_id", &"가".repeat(121))], 5),
            &LIMITS,
        );
        all.add(
            &series("took", "web-1"),
            Owner::None,
            one(&[("a", "1"), ("a", "2")], 5),
            &LIMITS,
        );
        let floor = Some(TimestampNs::from_ms(5));
        all.add(
            &series("took", "web-1"),
            Owner::None,
            one(&trace, 4),
            &LimitsContext { floor, ..LIMITS },
        );
        assert_eq!((all.kept, all.left_out), (3, 3));
        let mut shown = String::new();
        for block in all.into_blocks() {
            shown += &format!("{}\n", block.labels);
            for l in block.lines {
                shown += &format!(
                    "  {} {} {:?}\n",
                    l.at.as_ms(),
                    String::from_utf8_lossy(&l.line),
                    l.metadata
                );
            }
        }
        expect_test::expect![[r#"
            {hindcast_metric="other", hindcast_trace="exemplar"}
              4 {"series":{"__name__":"other","instance":"web-2"},"value":"0.7"} [("span_id", "b2"), ("trace_id", "a1")]
            {hindcast_metric="took", hindcast_trace="exemplar"}
              5 {"series":{"__name__":"took","instance":"web-1"},"value":"0.7"} [("span_id", "b2"), ("trace_id", "a1")]
              4 {"series":{"__name__":"took","instance":"web-2"},"value":"0.7"} []
        "#]]
        .assert_eq(&shown);
    }

    #[test]
    fn a_small_request_of_exemplars_of_a_long_series_does_not_eat_the_memory() {
        let long = "x".repeat(4_000);
        let series = Labels::from_pairs([(METRIC_NAME, "took"), ("a", &long), ("b", &long)]);
        let mut all = Exemplars::default();
        (0..20_000).for_each(|i| all.add(&series, Owner::None, one(&[], i), &LIMITS));
        let lines: usize = all.streams.values().flatten().map(|l| l.line.len()).sum();
        assert!(
            all.kept > 200 && lines <= EXEMPLARS_BYTES_MAX,
            "{} of {lines} bytes",
            all.kept
        );
        assert_eq!(all.kept + all.left_out, 20_000);
        let mut all = Exemplars::default();
        let short = Labels::from_pairs([(METRIC_NAME, "t")]);
        (0..20_000).for_each(|i| all.add(&short, Owner::None, one(&[], i), &LIMITS));
        assert_eq!(all.kept, EXEMPLARS_MAX as u64);
    }
}

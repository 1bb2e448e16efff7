//! Exemplars of the series that a PromQL expression speaks of, read from the lines that they are kept as
//! (`hindcast_proto::trace`).

use crate::engine::{Engine, LogsQuery, Options, QueryError};
use crate::shards::Completeness;
use crate::value::{Answer, LogsValue};
use hindcast_model::{Labels, METRIC_NAME, MatchOp, Matcher, TenantId, TimestampNs};
use hindcast_promql::Selector;
use hindcast_proto::trace::{EXEMPLAR, METRIC_LABEL, TRACE_LABEL, read_exemplar_line};
use hindcast_storage::read::Direction;
use std::collections::{BTreeMap, BTreeSet};

/// Exemplars of one selector that are looked at, the newest first.
pub const EXEMPLARS_PER_SELECTOR_MAX: usize = 10_000;
/// Selectors of one expression whose exemplars are looked for.
pub const SELECTORS_MAX: usize = 20;

/// Which exemplars.
#[derive(Clone, Debug, PartialEq)]
pub struct ExemplarsQuery {
    pub tenant: TenantId,
    /// PromQL; offsets and functions do not matter.
    pub expr: String,
    /// Both included.
    pub start: TimestampNs,
    pub end: TimestampNs,
}

/// A single measurement.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exemplar {
    pub at: TimestampNs,
    /// As it is written.
    pub value: String,
    pub labels: Labels,
}

impl Engine {
    /// By series, sorted; of one, the oldest first, and each once, however often it was sent.
    pub async fn exemplars(&self, q: &ExemplarsQuery) -> Result<Answer<Vec<(Labels, Vec<Exemplar>)>>, QueryError> {
        self.check_length(&q.expr)?;
        let expr = hindcast_promql::parse(&q.expr)?;
        let mut selectors: Vec<&Selector> = vec![];
        expr.selectors(&mut |s| {
            if selectors.iter().all(|known| known.matchers != s.matchers) {
                selectors.push(s);
            }
        });
        if selectors.len() > SELECTORS_MAX {
            return Err(QueryError::TooLarge {
                what: "selectors",
                max: SELECTORS_MAX,
            });
        }
        let mut found: BTreeMap<Labels, BTreeSet<Exemplar>> = BTreeMap::new();
        let (mut completeness, mut warnings) = (Completeness::default(), vec![]);
        for selector in selectors {
            let lines = LogsQuery {
                tenant: q.tenant.clone(),
                expr: lines_of(&selector.matchers),
                start: q.start,
                end: TimestampNs(q.end.0.saturating_add(1)),
                step: None,
                limit: EXEMPLARS_PER_SELECTOR_MAX.min(self.limits.lines_max),
                direction: Direction::Backward,
                options: Options::default(),
            };
            let asked = lines.limit;
            let answer = self.logs(&lines).await?;
            completeness.merge(answer.completeness);
            let LogsValue::Streams(streams) = answer.value else {
                continue;
            };
            let lines: Vec<_> = streams.into_iter().flat_map(|s| s.lines).collect();
            if lines.len() == asked {
                warnings.push(format!(
                    "only the newest {asked} exemplars were looked at; ask for less time"
                ));
            }
            for line in lines {
                let Some((series, value)) = read_exemplar_line(&line.line) else {
                    continue;
                };
                if selector.matchers.iter().all(|m| m.matches(&series)) {
                    let (at, labels) = (line.at, Labels::new(line.metadata));
                    found.entry(series).or_default().insert(Exemplar { at, value, labels });
                }
            }
        }
        Ok(Answer {
            value: found
                .into_iter()
                .map(|(series, of)| (series, of.into_iter().collect()))
                .collect(),
            completeness,
            warnings,
        })
    }
}

/// LogQL: the lines of exemplars whose series these may match.
fn lines_of(matchers: &[Matcher]) -> String {
    let text = |text: &str| serde_json::to_string(text).expect("text is always JSON");
    let mut selector = format!("{{{TRACE_LABEL}={}", text(EXEMPLAR));
    let mut filters = String::new();
    for m in matchers {
        if m.name == METRIC_NAME {
            selector += &format!(",{METRIC_LABEL}{}{}", m.op.as_str(), text(&m.value));
        } else if m.op == MatchOp::Equal && !m.value.is_empty() {
            // As the label stands in the line.
            let label = format!("{}:{}", text(&m.name), text(&m.value));
            filters += &format!(" |= {}", text(&label));
        }
    }
    selector + "}" + &filters
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Limits;
    use crate::testing::OneShard;
    use expect_test::expect;
    use futures::executor::block_on;
    use hindcast_model::{LogLine, Owner};
    use hindcast_proto::trace::exemplar_line;
    use std::sync::Arc;

    #[test]
    fn exemplars_are_found_by_the_series_that_an_expression_speaks_of() {
        let (shard, tenant) = (OneShard::new(), TenantId::default());
        let add = |name: &str, job: &str, le: &str, at: i64, trace: &str| {
            let series = Labels::from_pairs([(METRIC_NAME, name), ("job", job), ("le", le)]);
            let line = LogLine {
                at: TimestampNs::from_secs(at),
                line: exemplar_line(&series, 0.25).into(),
                metadata: vec![("trace_id".to_owned(), trace.to_owned())],
            };
            let labels = Labels::from_pairs([(TRACE_LABEL, EXEMPLAR), (METRIC_LABEL, name)]);
            shard.add_lines(&tenant, labels, Owner::None, [line]);
        };
        add("took_bucket", "a", "0.5", 10, "t1");
        // It was sent again.
        add("took_bucket", "a", "0.5", 10, "t1");
        add("took_bucket", "a", "0.5", 20, "t2");
        add("took_bucket", "b \"\\ 가", "+Inf", 15, "t3");
        add("other_total", "a", "", 12, "t4");
        let span = LogLine {
            at: TimestampNs::from_secs(11),
            line: "{}".into(),
            metadata: vec![],
        };
        shard.add_lines(
            &tenant,
            Labels::from_pairs([(TRACE_LABEL, "span")]),
            Owner::None,
            [span],
        );
        let engine = Engine::new(Arc::new(shard), Limits::default());
        let mut shown = String::new();
        for (expr, from, to) in [
            (
                "histogram_quantile(0.9, sum by (le) (rate(took_bucket{job=\"a\"}[5m])))",
                0,
                100,
            ),
            (
                "took_bucket{job=~\"b.*\"} / on () took_bucket{job=~\"b.*\"} offset 1h",
                0,
                100,
            ),
            (r#"took_bucket{job="b \"\\ 가"}"#, 0, 100),
            ("{__name__=~\".*_total|nothing\"} + took_bucket{le!=\"0.5\"}", 0, 100),
            ("took_bucket", 15, 20),
            ("took_bucket", 16, 19),
            ("up + 1", 0, 100),
        ] {
            shown += &format!("{expr} {from}..{to}\n");
            let q = ExemplarsQuery {
                tenant: tenant.clone(),
                expr: expr.to_owned(),
                start: TimestampNs::from_secs(from),
                end: TimestampNs::from_secs(to),
            };
            for (series, exemplars) in block_on(engine.exemplars(&q)).unwrap().value {
                let exemplars: Vec<_> = exemplars
                    .iter()
                    .map(|e| format!("{} {}@{}", e.labels, e.value, e.at.as_ms() / 1000))
                    .collect();
                shown += &format!("  {series} {}\n", exemplars.join(" "));
            }
        }
        expect![[r#"
            histogram_quantile(0.9, sum by (le) (rate(took_bucket{job="a"}[5m]))) 0..100
              took_bucket{job="a", le="0.5"} {trace_id="t1"} 0.25@10 {trace_id="t2"} 0.25@20
            took_bucket{job=~"b.*"} / on () took_bucket{job=~"b.*"} offset 1h 0..100
              took_bucket{job="b \"\\ 가", le="+Inf"} {trace_id="t3"} 0.25@15
            took_bucket{job="b \"\\ 가"} 0..100
              took_bucket{job="b \"\\ 가", le="+Inf"} {trace_id="t3"} 0.25@15
            {__name__=~".*_total|nothing"} + took_bucket{le!="0.5"} 0..100
              other_total{job="a"} {trace_id="t4"} 0.25@12
              took_bucket{job="b \"\\ 가", le="+Inf"} {trace_id="t3"} 0.25@15
            took_bucket 15..20
              took_bucket{job="a", le="0.5"} {trace_id="t2"} 0.25@20
              took_bucket{job="b \"\\ 가", le="+Inf"} {trace_id="t3"} 0.25@15
            took_bucket 16..19
            up + 1 0..100
        "#]]
        .assert_eq(&shown);
        let many = vec!["up"; SELECTORS_MAX + 1];
        let of = |exprs: Vec<String>| {
            let q = ExemplarsQuery {
                tenant: tenant.clone(),
                expr: exprs.join(" + "),
                start: TimestampNs::EPOCH,
                end: TimestampNs::EPOCH,
            };
            block_on(engine.exemplars(&q))
                .map(|a| a.value.len())
                .map_err(|e| e.to_string())
        };
        assert_eq!(
            of(many.iter().map(|m| (*m).to_owned()).collect()),
            Ok(0),
            "the same one"
        );
        let refused = of((0..=SELECTORS_MAX).map(|i| format!("up{i}")).collect());
        assert!(refused.unwrap_err().contains("more than 20 selectors"));
    }
}

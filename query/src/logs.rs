//! Log lines as an answer: limited over all streams, in the direction that was asked for. Streams of spans are none of them, unless
//! the query names their label.

use crate::value::LogStream;
use hindcast_model::{Labels, LogLine, MatchOp, Matcher, TimestampNs};
use hindcast_proto::trace::TRACE_LABEL;
use hindcast_storage::read::{Direction, StreamData};
use std::collections::BTreeMap;

/// Lines by the labels of their stream and those that stages made.
pub type Groups = BTreeMap<(Labels, Labels), Vec<LogLine>>;

/// The streams that a selector means: without those of spans, unless it speaks of [`TRACE_LABEL`].
pub fn meant(matchers: &[Matcher]) -> Vec<Matcher> {
    let mut meant = matchers.to_vec();
    if meant.iter().all(|m| m.name != TRACE_LABEL) {
        meant.extend(Matcher::new(TRACE_LABEL, MatchOp::Equal, ""));
    }
    meant
}

/// Lines without stages.
pub fn groups(given: Vec<StreamData>) -> Groups {
    let mut groups = Groups::new();
    for s in given {
        groups.entry((s.labels, Labels::empty())).or_default().extend(s.lines);
    }
    groups
}

/// Streams sorted by labels. Of equal times, the line that was committed first counts as the older one; between streams
/// the order of labels decides, so that the same data always gives the same lines.
pub fn streams(mut groups: Groups, limit: usize, direction: Direction) -> Vec<LogStream> {
    // Lines of several streams, or pages: joined by time, stably.
    groups.values_mut().for_each(|lines| lines.sort_by_key(|l| l.at));
    let mut order: Vec<(TimestampNs, usize, usize)> = vec![];
    for (s, lines) in groups.values().enumerate() {
        order.extend(lines.iter().enumerate().map(|(i, l)| (l.at, s, i)));
    }
    match direction {
        Direction::Forward => order.sort_unstable(),
        Direction::Backward => {
            order.sort_unstable_by_key(|(at, s, i)| (std::cmp::Reverse(*at), *s, std::cmp::Reverse(*i)))
        }
    }
    order.truncate(limit);
    let mut out = vec![];
    let mut all = vec![];
    for ((labels, parsed), lines) in groups {
        out.push(LogStream {
            labels,
            parsed,
            lines: vec![],
        });
        all.push(lines);
    }
    for (_, s, i) in order {
        out[s].lines.push(all[s][i].clone());
    }
    out.retain(|s| !s.lines.is_empty());
    out
}

#[cfg(test)]
mod tests {
    use crate::engine::{Engine, Limits, LogsQuery, Options};
    use crate::explore::ExploreQuery;
    use crate::testing::OneShard;
    use crate::value::{LogsValue, Value};
    use expect_test::{Expect, expect};
    use futures::executor::block_on;
    use hindcast_model::{Labels, LogLine, Owner, TenantId, TimestampNs};
    use hindcast_storage::read::Direction;
    use std::sync::Arc;

    const TENANT: fn() -> TenantId = TenantId::default;

    /// What a query of lines or counts gives of a shop that logs and is traced.
    fn check(expr: &str, expect: Expect) {
        let shard = OneShard::new();
        let line = |text: &'static str, metadata: Vec<(String, String)>| LogLine {
            at: TimestampNs::from_secs(1),
            line: text.into(),
            metadata,
        };
        let logs = Labels::from_pairs([("service_name", "shop")]);
        shard.add_lines(&TENANT(), logs.clone(), Owner::None, [line("order 42 placed", vec![])]);
        let spans = logs.with("hindcast_trace", "span");
        let of_trace = |id: &str| vec![("trace_id".to_owned(), id.to_owned())];
        let lines = [
            line("span=\"GET /\"", of_trace("aa")),
            line("span=\"SELECT\"", of_trace("bb")),
        ];
        shard.add_lines(&TENANT(), spans, Owner::None, lines);
        let engine = Engine::new(Arc::new(shard), Limits::default());
        let (start, end) = (TimestampNs(0), TimestampNs::from_secs(10));
        let query = LogsQuery {
            tenant: TENANT(),
            expr: expr.to_owned(),
            start,
            end,
            step: None,
            limit: 10,
            direction: Direction::Forward,
            options: Options::default(),
        };
        let mut out = String::new();
        match block_on(engine.logs(&query)).unwrap().value {
            LogsValue::Streams(streams) => {
                for line in streams.iter().flat_map(|s| &s.lines) {
                    out += &format!("{}\n", String::from_utf8_lossy(&line.line));
                }
                let explored = ExploreQuery {
                    tenant: TENANT(),
                    expr: expr.to_owned(),
                    start,
                    end,
                };
                let stats = block_on(engine.line_stats(&explored)).unwrap().value;
                out += &format!("{} streams\n", stats.streams);
            }
            LogsValue::Metric(Value::Vector(values)) => {
                values.iter().for_each(|v| out += &format!("{}\n", v.value));
            }
            LogsValue::Metric(other) => panic!("{other:?}"),
        }
        expect.assert_eq(&out);
    }

    #[test]
    fn spans_come_to_those_who_name_their_label() {
        check(r#"{service_name="shop"}"#, expect![["order 42 placed\n1 streams\n"]]);
        check(
            r#"{service_name="shop"} |= "o""#,
            expect![["order 42 placed\n1 streams\n"]],
        );
        check(
            r#"{hindcast_trace="span"} | trace_id="bb""#,
            expect![["span=\"SELECT\"\n1 streams\n"]],
        );
        check(
            r#"{service_name="shop", hindcast_trace=~".*"}"#,
            expect![["span=\"GET /\"\nspan=\"SELECT\"\norder 42 placed\n2 streams\n"]],
        );
        check(r#"sum(count_over_time({service_name="shop"}[10s]))"#, expect![["1\n"]]);
        check(
            r#"sum(count_over_time({service_name="shop", hindcast_trace!=""}[10s]))"#,
            expect![["2\n"]],
        );
    }
}

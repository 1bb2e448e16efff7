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

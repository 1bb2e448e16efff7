//! Log lines as an answer: limited over all streams, in the direction that was asked for.

use crate::value::LogStream;
use hindcast_model::{Labels, TimestampNs};
use hindcast_storage::read::{Direction, StreamData};
use std::collections::BTreeMap;

/// Streams sorted by labels. Of equal times, the line that was committed first counts as the older one; between streams
/// the order of labels decides, so that the same data always gives the same lines.
pub fn streams(given: Vec<StreamData>, limit: usize, direction: Direction) -> Vec<LogStream> {
    let mut by_labels: BTreeMap<Labels, Vec<_>> = BTreeMap::new();
    for s in given {
        by_labels.entry(s.labels).or_default().extend(s.lines);
    }
    // Streams of equal labels with two owners: joined by time, stably.
    by_labels.values_mut().for_each(|lines| lines.sort_by_key(|l| l.at));
    let mut order: Vec<(TimestampNs, usize, usize)> = vec![];
    for (s, lines) in by_labels.values().enumerate() {
        order.extend(lines.iter().enumerate().map(|(i, l)| (l.at, s, i)));
    }
    match direction {
        Direction::Forward => order.sort_unstable(),
        Direction::Backward => {
            order.sort_unstable_by_key(|(at, s, i)| (std::cmp::Reverse(*at), *s, std::cmp::Reverse(*i)))
        }
    }
    order.truncate(limit);
    let mut out: Vec<LogStream> = by_labels
        .keys()
        .map(|labels| LogStream {
            labels: labels.clone(),
            lines: vec![],
        })
        .collect();
    let lines: Vec<_> = by_labels.into_values().collect();
    for (_, s, i) in order {
        out[s].lines.push(lines[s][i].clone());
    }
    out.retain(|s| !s.lines.is_empty());
    out
}

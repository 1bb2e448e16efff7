//! What members of a group tell each other: which topics each wants, and which partitions each gets.
//!
//! The way to deal out is called `roundrobin`, as in other clients: all partitions in order, in turn to the members that want their
//! topic. Every node asks for the same topics, so nodes get equally many, and one that goes leaves its partitions to the others.

use crate::messages::ByTopic;
use crate::wire::{Put, Reader, WireError};
use bytes::{BufMut, Bytes};
use std::collections::BTreeMap;

pub const PROTOCOL: &str = "roundrobin";

/// What a member says when it joins.
pub fn subscription(topics: &[&str]) -> Vec<u8> {
    let mut out = vec![];
    out.put_i16(0);
    out.put_count(topics.len());
    topics.iter().for_each(|t| out.put_string(t));
    out.put_i32(-1);
    out
}

/// The topics that a member wants. Later versions have more behind them.
pub fn read_subscription(bytes: Bytes) -> Result<Vec<String>, WireError> {
    let mut r = Reader::new(bytes);
    r.i16("a version")?;
    r.list(2, "the topics", |r| r.string("a topic"))
}

/// What a member gets.
pub fn assignment(of: &ByTopic<i32>) -> Vec<u8> {
    let mut out = vec![];
    out.put_i16(0);
    out.put_count(of.len());
    for (topic, partitions) in of {
        out.put_string(topic);
        out.put_count(partitions.len());
        partitions.iter().for_each(|p| out.put_i32(*p));
    }
    out.put_i32(-1);
    out
}

/// No bytes are no partitions.
pub fn read_assignment(bytes: Bytes) -> Result<ByTopic<i32>, WireError> {
    if bytes.is_empty() {
        return Ok(vec![]);
    }
    let mut r = Reader::new(bytes);
    r.i16("a version")?;
    r.list(6, "the topics", |r| {
        let topic = r.string("a topic")?;
        Ok((topic, r.list(4, "the partitions", |r| r.i32("a partition"))?))
    })
}

/// Deals all partitions out, in turn to the members that want them. `topics`: how many partitions each has.
pub fn deal(
    members: &BTreeMap<String, Vec<String>>,
    topics: &BTreeMap<String, Vec<i32>>,
) -> Vec<(String, ByTopic<i32>)> {
    let mut hands: Vec<(String, BTreeMap<String, Vec<i32>>)> =
        members.keys().map(|m| (m.clone(), BTreeMap::new())).collect();
    let mut next = 0;
    for (topic, partitions) in topics {
        for partition in partitions {
            let turn = (0..hands.len()).map(|i| (next + i) % hands.len());
            let taker = turn.into_iter().find(|i| members[&hands[*i].0].contains(topic));
            // Nobody wants it any more.
            let Some(taker) = taker else { break };
            hands[taker].1.entry(topic.clone()).or_default().push(*partition);
            next = taker + 1;
        }
    }
    hands.into_iter().map(|(m, of)| (m, of.into_iter().collect())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn partitions_go_round_among_those_who_want_them() {
        let members = BTreeMap::from([
            ("node-1".to_owned(), names(&["logs", "spans"])),
            ("node-2".to_owned(), names(&["logs"])),
            ("node-3".to_owned(), names(&["other"])),
        ]);
        let topics = BTreeMap::from([("logs".to_owned(), vec![0, 1, 2]), ("spans".to_owned(), vec![0, 1])]);
        let dealt = deal(&members, &topics);
        expect_test::expect![[r#"
            [
                (
                    "node-1",
                    [
                        (
                            "logs",
                            [
                                0,
                                2,
                            ],
                        ),
                        (
                            "spans",
                            [
                                0,
                                1,
                            ],
                        ),
                    ],
                ),
                (
                    "node-2",
                    [
                        (
                            "logs",
                            [
                                1,
                            ],
                        ),
                    ],
                ),
                (
                    "node-3",
                    [],
                ),
            ]
        "#]]
        .assert_debug_eq(&dealt);
        assert_eq!(deal(&BTreeMap::new(), &topics), vec![]);
    }

    proptest! {
        #[test]
        fn each_partition_has_one_member_and_members_have_equally_many(members in 1usize..8, sizes in proptest::collection::vec(0i32..9, 0..5)) {
            let topics: BTreeMap<String, Vec<i32>> =
                sizes.iter().enumerate().map(|(i, n)| (format!("t{i}"), (0..*n).collect())).collect();
            let all: Vec<String> = topics.keys().cloned().collect();
            let members: BTreeMap<_, _> = (0..members).map(|i| (format!("m{i}"), all.clone())).collect();
            let dealt = deal(&members, &topics);
            let counts: Vec<usize> = dealt.iter().map(|(_, of)| of.iter().map(|(_, p)| p.len()).sum()).collect();
            prop_assert_eq!(counts.iter().sum::<usize>(), topics.values().map(Vec::len).sum::<usize>());
            prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);
            let mut seen: Vec<_> = dealt.iter().flat_map(|(_, of)| of.iter().flat_map(|(t, ps)| ps.iter().map(move |p| (t, *p)))).collect();
            let count = seen.len();
            seen.sort();
            seen.dedup();
            prop_assert_eq!(seen.len(), count);
            for (_, of) in &dealt {
                prop_assert_eq!(&read_assignment(assignment(of).into()).unwrap(), of);
            }
            let topics: Vec<&str> = all.iter().map(String::as_str).collect();
            prop_assert_eq!(read_subscription(subscription(&topics).into()).unwrap(), all.clone());
        }
    }
}

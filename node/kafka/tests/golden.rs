//! What is sent is byte for byte what another implementation sends, and what that one answers is read field by field.

use bytes::Bytes;
use hindcast_kafka::messages::*;
use hindcast_kafka::wire::Reader;
use hindcast_kafka::{group, records};
use hindcast_model::TimestampNs;

const FRAMES: &str = include_str!("golden/frames.txt");

fn golden(name: &str) -> Bytes {
    let line = FRAMES.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    let hex = line.unwrap_or_else(|| panic!("{name} is not among the frames"));
    let byte = |i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(byte).collect()
}

fn answer(name: &str) -> Reader {
    Reader::new(golden(name))
}

fn member() -> Member {
    Member {
        group: "g".to_owned(),
        generation: 8,
        id: "m".to_owned(),
    }
}

fn by_topic<T>(of: Vec<T>) -> ByTopic<T> {
    vec![("logs".to_owned(), of)]
}

#[test]
fn questions_are_what_another_implementation_sends() {
    let wanted = Wanted {
        partition: 3,
        from: 1_234_567_890_123,
        bytes_max: 1_048_576,
    };
    let subscription = group::subscription(&["logs", "spans"]);
    let join = Join {
        group: "g",
        member: "m",
        session_timeout_ms: 30_000,
        rebalance_timeout_ms: 60_000,
        protocol: (group::PROTOCOL, &subscription),
    };
    let assignment = group::assignment(&by_topic(vec![0, 2]));
    let questions = [
        ("fetch", fetch(&by_topic(vec![wanted]), 500, 8_000_000)),
        ("metadata", metadata(&["logs", "spans"])),
        ("find_coordinator", find_coordinator("g")),
        ("join", join_group(&join)),
        ("sync", sync_group(&member(), &[("m".to_owned(), assignment)])),
        ("heartbeat", heartbeat(&member())),
        ("leave", leave_group(&member())),
        (
            "offset_commit",
            offset_commit(&member(), &by_topic(vec![(2, 55, "note".to_owned())])),
        ),
        ("offset_fetch", offset_fetch("g", &by_topic(vec![0, 2]))),
        ("list_offsets", list_offsets(&by_topic(vec![(2, Place::Earliest)]))),
        ("sasl_handshake", sasl_handshake("PLAIN")),
        ("sasl_authenticate", sasl_authenticate(b"\0u\0p")),
    ];
    for (name, question) in questions {
        assert_eq!(Bytes::from(question), golden(name), "{name}");
    }
    let framed = frame(Api::Fetch, 77, b"");
    assert_eq!(framed[4..], golden("head"));
    assert_eq!(framed[..4], (framed.len() as u32 - 4).to_be_bytes());
}

#[test]
fn answers_of_another_implementation_are_read() {
    let missing = missing(answer("api_versions_answer")).unwrap().unwrap();
    assert!(!missing.contains(&Api::Fetch) && missing.contains(&Api::Metadata));
    let told = read_metadata(answer("metadata_answer")).unwrap();
    assert_eq!((told.brokers[0].host.as_str(), told.brokers[0].port), ("kafka-2", 9092));
    assert_eq!(
        (told.topics[0].name.as_str(), &told.topics[0].partitions),
        ("logs", &vec![(0, 2), (1, -1)])
    );
    let coordinator = read_coordinator(answer("coordinator")).unwrap().unwrap();
    assert_eq!(
        (coordinator.id, coordinator.host.as_str(), coordinator.port),
        (4, "kafka-4", 19_092)
    );
    let joined = read_join_group(answer("joined")).unwrap();
    assert_eq!((joined.generation, joined.leader == joined.member), (8, true));
    assert_eq!(joined.members, [("m".to_owned(), Bytes::from_static(b"xy"))]);
    let (code, assignment) = read_sync_group(answer("synced")).unwrap();
    assert_eq!(
        (code, group::read_assignment(assignment).unwrap()),
        (Code(0), by_topic(vec![0, 2]))
    );
    assert_eq!(read_code(answer("heartbeat_answer")).unwrap(), Code::REBALANCING);
    let committed = read_offset_commit(answer("offset_committed")).unwrap();
    assert_eq!(committed, by_topic(vec![(2, Code::ILLEGAL_GENERATION)]));
    let (fetched, code) = read_offset_fetch(answer("offset_fetched")).unwrap();
    let known = Committed {
        partition: 2,
        offset: 55,
        note: "note".to_owned(),
        code: Code(0),
    };
    assert_eq!((fetched, code), (by_topic(vec![known]), Code(0)));
    let listed = read_list_offsets(answer("listed_offsets")).unwrap();
    assert_eq!(listed, by_topic(vec![(2, Code(0), 44)]));
    let (code, mechanisms) = read_sasl_handshake(answer("sasl_handshaken")).unwrap();
    assert_eq!((code.0, mechanisms.len()), (33, 2));
    let refused = read_sasl_authenticate(answer("sasl_authenticated")).unwrap();
    assert_eq!(refused, Err((Code(58), "no".to_owned())));
    let (code, parts) = read_fetch(answer("fetched")).unwrap();
    let part = FetchedPart {
        partition: 3,
        code: Code(0),
        stable_end: 90,
        log_start: 10,
        aborted: vec![(7, 80)],
        records: Bytes::from_static(b"abc"),
    };
    assert_eq!((code, parts), (Code(0), by_topic(vec![part])));
}

#[test]
fn records_of_another_implementation_are_read() {
    let read = records::read(&golden("records"), 0, &[]);
    assert_eq!((read.next, read.passed_over.len()), (2, 0));
    let second = &read.records[1];
    assert_eq!(second.value.as_deref(), Some(&b"second"[..]));
    assert_eq!((second.offset, second.key.as_deref()), (1, Some("k")));
    assert_eq!(second.at, Some(TimestampNs::from_ms(1_700_000_000_001)));
}

//! This crate's readers as fuzz targets. See `hindcast_env::fuzz`.

use crate::config;
use crate::group;
use crate::lane::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX, Lane};
use crate::messages;
use crate::records::{self, DECODED_BYTES_MAX, READ_BYTES_MAX};
use crate::scram::{Mechanism, Scram};
use crate::wire::Reader;
use bytes::Bytes;
use hindcast_env::fuzz::Target;
use std::path::Path;

/// What brokers send, and the file that an operator writes.
pub const TARGETS: &[Target] = &[
    Target {
        name: "kafka-records",
        run: fetched_records,
        seeds: record_seeds,
    },
    Target {
        name: "kafka-answers",
        run: answers,
        seeds: answer_seeds,
    },
    Target {
        name: "kafka-config",
        run: configuration,
        seeds: configuration_seeds,
    },
];

fn fetched_records(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    let read = records::read(&bytes, 3, &[(7, 0), (8, 5)]);
    assert!(read.next >= 3);
    assert!(read.records.iter().all(|r| r.offset >= 3 && r.offset < read.next));
    let values: usize = read
        .records
        .iter()
        .filter_map(|r| r.value.as_ref())
        .map(|v| v.len())
        .sum();
    assert!(values <= READ_BYTES_MAX + DECODED_BYTES_MAX.max(bytes.len()));
    let (count, next) = (read.records.len(), read.next);
    let mut lane = Lane::at(3, 1);
    lane.take(3, read);
    let mut taken = 0;
    while let Some(cut) = lane.cut() {
        assert!(cut.from < cut.until && cut.records.len() <= BATCH_RECORDS_MAX);
        let bytes: usize = cut
            .records
            .iter()
            .filter_map(|r| r.value.as_ref())
            .map(|v| v.len())
            .sum();
        assert!(bytes <= BATCH_BYTES_MAX || cut.records.len() == 1);
        taken += cut.records.len();
        lane.done(cut.until);
    }
    assert_eq!((taken, lane.stored()), (count, next));
}

fn record_seeds() -> Vec<Vec<u8>> {
    crate::records::samples()
}

fn answers(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    let r = || Reader::new(bytes.clone());
    let _ = messages::unframe(1, bytes.clone());
    let _ = messages::missing(r());
    let _ = messages::read_metadata(r());
    let _ = messages::read_coordinator(r());
    let _ = messages::read_join_group(r());
    let _ = messages::read_sync_group(r());
    let _ = messages::read_code(r());
    let _ = messages::read_offset_fetch(r());
    let _ = messages::read_offset_commit(r());
    let _ = messages::read_list_offsets(r());
    let _ = messages::read_fetch(r());
    let _ = messages::read_sasl_handshake(r());
    let _ = messages::read_sasl_authenticate(r());
    let _ = group::read_subscription(bytes.clone());
    let _ = group::read_assignment(bytes.clone());
    let mut scram = Scram::new(Mechanism::Sha256, "u", "p", "n");
    // Rounds take time, and no other way through it.
    if !bytes.contains(&b'i') {
        let _ = scram.last(&bytes);
    }
    let _ = scram.verify(&bytes);
}

fn answer_seeds() -> Vec<Vec<u8>> {
    let member = messages::Member {
        group: "g".to_owned(),
        generation: 1,
        id: "m".to_owned(),
    };
    vec![
        vec![0, 0, 0, 0, 0, 1, 0, 3, 0, 0, 0, 11],
        messages::metadata(&["a", "b"]),
        messages::heartbeat(&member),
        group::subscription(&["a", "b"]),
        group::assignment(&vec![("a".to_owned(), vec![0, 1]), ("b".to_owned(), vec![])]),
        [&[0; 14][..], &[0, 0, 0, 1, 0, 1, b't', 0, 0, 0, 1], &[0; 46]].concat(),
    ]
}

fn configuration(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = config::parse("f", &text, Path::new(""), &|_| Ok("x".to_owned()));
}

fn configuration_seeds() -> Vec<Vec<u8>> {
    let one = "sources:\n  - name: plant\n    brokers: [k:9092, '[::1]:9']\n    group: g\n    start: latest\n    session_timeout: 10s\n    tls: {ca_file: a, server_name: b}\n    sasl: {mechanism: PLAIN, username: u, password_file: f}\n    topics:\n      - {topic: a, format: json, labels: {a: b}, label_fields: {c: d.e}, time_field: t}\n      - {topic: b, format: influx, precision: s, tenant: x}\n";
    vec![one.as_bytes().to_vec()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_env::io::SystemClock;
    use hindcast_model::SpanNs;

    #[test]
    fn damaged_records_answers_and_files_are_read_or_refused() {
        hindcast_env::fuzz::check_targets(TARGETS, &SystemClock::new(), SpanNs::from_ms(2000));
    }
}

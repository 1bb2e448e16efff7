//! This crate's decoders as fuzz targets, with seeds by its own encoders. See `hindcast_env::fuzz`.

use crate::auxiliary::Aux;
use crate::codec::Reader;
use crate::entry::{self, Command, Control, TEXT_BYTES_MAX};
use bytes::Bytes;
use hindcast_env::fuzz::Target;
use hindcast_ingest::intake::Ids;
use hindcast_ingest::{Intake, Naming};
use hindcast_model::{
    Batch, BatchId, Labels, LogLine, Owner, Sample, SeriesBlock, ShardId, ShardMap, Slot, StreamBlock, TenantId,
    TimestampNs, WriterId,
};

/// What stands in the log of a shard, whole and in parts, and the small pieces that it is made of.
pub const TARGETS: &[Target] = &[
    Target {
        name: "node-entry",
        run: whole_entry,
        seeds: entry_seeds,
    },
    Target {
        name: "node-entry-part",
        run: entry_part,
        seeds: part_seeds,
    },
    Target {
        name: "node-aux",
        run: aux,
        seeds: || Aux::seeds().concat(),
    },
    Target {
        name: "node-codec",
        run: pieces,
        seeds: part_seeds,
    },
];

/// Shards of which some know their series.
struct Some3(ShardMap);

impl Ids for Some3 {
    fn shard_of(&self, slot: Slot, at: TimestampNs) -> ShardId {
        self.0.shard_of(slot, at)
    }
    fn is_timeless(&self) -> bool {
        self.0.is_single()
    }
    fn epoch(&self, _: ShardId) -> u64 {
        3
    }
    fn ids(&self, _: ShardId, _: &TenantId, _: bool, wanted: &[(&Labels, &Owner)]) -> (u64, Vec<Option<u32>>) {
        let ids = (0..wanted.len() as u32).map(|i| (i % 3 != 0).then_some(i));
        (3, ids.collect())
    }
}

fn use_part(part: &entry::PartView<'_>) {
    let _ = (part.has_ids(), part.first());
    for stream in &part.streams {
        for line in part.lines(stream) {
            let _ = line.to_line();
        }
    }
    for group in &part.groups {
        let width: usize = group.runs.iter().map(|r| r.len as usize).sum();
        assert_eq!(
            group.values.len(),
            width * group.times.len() * 8,
            "a group holds a value for every series at every time"
        );
    }
}

fn whole_entry(bytes: &[u8]) {
    if let Ok(entry) = entry::decode(bytes)
        && let Command::Write(parts) = entry.command
    {
        parts.iter().for_each(use_part);
    }
}

fn entry_part(bytes: &[u8]) {
    if let Ok(part) = entry::decode_part(bytes, &mut { TEXT_BYTES_MAX }) {
        use_part(&part);
    }
}

/// As a file holds it, and what it unpacks to.
fn aux(bytes: &[u8]) {
    let _ = Aux::decode(bytes);
    if let Ok(aux) = Aux::decode_body(bytes) {
        let again = Aux::decode(&aux.encode()).expect("what was read is written so that it reads");
        assert!(again == aux, "it comes back as it was");
    }
}

/// The first bytes choose what is read next.
fn pieces(bytes: &[u8]) {
    let mut r = Reader::new(bytes);
    while let Ok(what) = r.byte() {
        let read = match what % 7 {
            0 => r.varint().map(drop),
            1 => r.signed().map(drop),
            2 => r.bytes().map(drop),
            3 => r.count().map(drop),
            4 => r.array::<16>().map(drop),
            5 => r.take(usize::from(what)).map(drop),
            _ => Ok(()),
        };
        if read.is_err() {
            break;
        }
    }
}

fn batch() -> Batch {
    let tenant = TenantId::default();
    let mut batch = Batch::new(tenant.clone());
    batch.id = Some(BatchId::Sequenced {
        writer: WriterId::named(&tenant, "w"),
        seq: 5,
    });
    let labels = |name: &str, i: i64| {
        Labels::new(vec![
            ("__name__".to_owned(), format!("{name}{i}")),
            ("instance".to_owned(), "a:1".to_owned()),
        ])
    };
    batch.series = (0..6)
        .map(|i| SeriesBlock {
            labels: labels("node_load", i),
            owner: Owner::None,
            samples: (0..3)
                .map(|n| Sample {
                    at: TimestampNs::from_ms(1_700_000_000_000 + n * 1000 + i / 4),
                    value: (i * n) as f64,
                })
                .collect(),
        })
        .collect();
    batch.streams = (0..3)
        .map(|i| StreamBlock {
            labels: labels("app", i),
            owner: Owner::None,
            lines: (0..3)
                .map(|n| LogLine {
                    at: TimestampNs(1_700_000_000_000_000_000 + n),
                    line: format!("line {n} of {i}").into(),
                    metadata: vec![("trace_id".to_owned(), "abc".to_owned())],
                })
                .collect(),
        })
        .collect();
    batch
}

fn part_seeds() -> Vec<Vec<u8>> {
    let ids = Some3(ShardMap::even(2).expect("a power of two"));
    let namings = [Naming::Known, Naming::Defined];
    let intakes = namings.map(|naming| Intake::of_batch(&batch(), &ids, naming));
    let encode = |intake: &Intake| -> Vec<Vec<u8>> {
        let shares = intake.shares.iter();
        shares.map(|share| entry::encode_part(intake, share)).collect()
    };
    intakes.iter().flat_map(encode).collect()
}

fn entry_seeds() -> Vec<Vec<u8>> {
    let parts: Vec<Bytes> = part_seeds().into_iter().map(Bytes::from).collect();
    let at = TimestampNs(1_700_000_000_000_000_000);
    vec![
        entry::encode_write(at, &parts),
        entry::encode_write(at, &parts[..1]),
        entry::encode_control(at, &Control::DropCut { index: 7 }),
        entry::encode_control(at, &Control::Retain { floors: vec![] }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use hindcast_env::io::SystemClock;
    use hindcast_model::SpanNs;

    #[test]
    fn no_decoder_panics_or_hangs_on_damaged_bytes() {
        hindcast_env::fuzz::check_targets(TARGETS, &SystemClock::new(), SpanNs::from_ms(800));
    }

    #[test]
    fn seeds_are_what_the_decoders_read() {
        assert!(entry_seeds().iter().all(|s| entry::decode(s).is_ok()));
        assert!(part_seeds().len() > 2);
    }
}

//! Readers go on while the owner applies, flushes and merges.

use crate::naive::{all_series, config, owners};
use hindcast_env::SimDisk;
use hindcast_model::{Labels, Sample, SeriesBlock, TenantId, TimestampNs};
use hindcast_storage::{Floor, Shard};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn readers_see_whole_entries_at_every_moment() {
    const ENTRIES: u64 = 400;
    let (mut shard, _) = Shard::open(Arc::new(SimDisk::new()), "s", config()).unwrap();
    let (t, done) = (TenantId::default(), AtomicBool::new(false));
    std::thread::scope(|threads| {
        for _ in 0..2 {
            let (reader, t, done) = (shard.reader(), t.clone(), &done);
            threads.spawn(move || {
                let mut last = 0;
                while !done.load(Ordering::Acquire) {
                    let before = reader.applied();
                    let found = reader.series(&all_series(&t)).unwrap();
                    let lens: Vec<usize> = found.iter().map(|s| s.samples.len()).collect();
                    // Every entry wrote one sample to each of three series.
                    assert!(
                        lens.is_empty() || lens.len() == 3 && lens.iter().all(|l| *l == lens[0]),
                        "{lens:?}"
                    );
                    let seen = lens.first().copied().unwrap_or(0);
                    assert!(
                        seen as u64 >= before && seen >= last,
                        "nothing that was there goes away"
                    );
                    last = seen;
                }
            });
        }
        for index in 1..=ENTRIES {
            for name in ["a", "b", "c"] {
                let block = SeriesBlock {
                    labels: Labels::from_pairs([("n", name)]),
                    owner: owners()[0],
                    samples: vec![Sample {
                        at: TimestampNs::from_secs(index as i64),
                        value: index as f64,
                    }],
                };
                shard.write(index, &t, &[block], &[]);
            }
            shard.advance(index);
            if index % 7 == 0 {
                shard.flush(b"").unwrap();
            }
            if index % 20 == 0 {
                shard.compact().unwrap();
            }
            if index % 50 == 0 {
                let floor = TimestampNs::from_secs(0);
                shard.retain(vec![Floor::at(None, None, floor)]);
            }
        }
        done.store(true, Ordering::Release);
    });
    let found = shard.reader().series(&all_series(&t)).unwrap();
    assert_eq!(found[0].samples.len() as u64, ENTRIES);
}

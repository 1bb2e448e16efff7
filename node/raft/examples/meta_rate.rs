//! How many meta commands per second one machine applies over sled, what it takes in memory, how fast it reopens.
//!
//!     cargo run --release -p hindcast-raft --example meta_rate -- [rows, default 1000000] [folder]
//!
//! One command writes one row of about 100 bytes, as one transaction with applied index and hashes. No Raft group
//! around it: the figures are those of the machine and its store.

#![allow(clippy::disallowed_methods, reason = "a measurement needs a clock and a folder")]

use bytes::Bytes;
use hindcast_env::io::RealDisk;
use hindcast_model::{TimestampNs, codec};
use hindcast_raft::{
    ApplyContext, Entry, Machine, MetaCommand, MetaMachine, MetaMachineConfig, MetaTx, Part, PartInput, PartOutput,
    Refusal, SledConfig, SledStore, SledStores,
};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Puts the command's body under a key that spreads.
struct Rows;

impl Part for Rows {
    fn name(&self) -> &'static str {
        "rows"
    }
    fn apply(&self, ctx: ApplyContext, input: PartInput<'_>, tx: &mut MetaTx<'_>) -> Result<PartOutput, Refusal> {
        if let PartInput::Command(body) = input {
            let key = ctx.index.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
            tx.put("rows", &key, body.to_vec());
        }
        Ok(PartOutput::default())
    }
}

fn open(folder: &Path, verify_rows: bool) -> MetaMachine<SledStore> {
    let disk = RealDisk::new(folder).expect("the folder can be made");
    let stores = SledStores::new(SledConfig::new(folder.join("sled")));
    let config = MetaMachineConfig {
        verify_rows,
        ..MetaMachineConfig::new("meta")
    };
    MetaMachine::open(Arc::new(disk), stores, vec![Box::new(Rows)], config).expect("the machine opens")
}

fn rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

fn apply(machine: &mut MetaMachine<SledStore>, index: u64) {
    let mut body = vec![0; 100];
    body[..8].copy_from_slice(&index.to_be_bytes());
    let command = MetaCommand {
        part: "rows".to_owned(),
        at: TimestampNs(index as i64),
        body,
    };
    let data = Bytes::from(codec::to_bytes(&command));
    machine
        .apply(&Entry { index, term: 1, data })
        .expect("a command applies");
}

fn main() {
    let mut args = std::env::args().skip(1);
    let rows: u64 = args.next().map_or(1_000_000, |a| a.parse().expect("a number of rows"));
    let folder = args.next().unwrap_or_else(|| {
        let folder = std::env::temp_dir().join(format!("hindcast-meta-rate-{}", std::process::id()));
        folder.to_string_lossy().into_owned()
    });
    let folder = Path::new(&folder);

    let mut machine = open(folder, false);
    let began = Instant::now();
    let mut slowest = 0.0f64;
    for index in machine.applied() + 1..=rows {
        apply(&mut machine, index);
        if index % 100 == 0 {
            let step = Instant::now();
            machine.maintain(&mut |_| {}).expect("maintenance works");
            slowest = slowest.max(step.elapsed().as_secs_f64());
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{rows} commands in {seconds:.1} s: {:.0} commands/s, snapshot files included",
        rows as f64 / seconds
    );
    println!(
        "longest maintenance step {:.0} ms, resident {} MiB",
        slowest * 1e3,
        rss_mib()
    );

    machine.request_snapshot();
    let began = Instant::now();
    while machine.durable() < machine.applied() {
        machine.maintain(&mut |_| {}).expect("maintenance works");
    }
    println!("snapshot file of all rows in {:.2} s", began.elapsed().as_secs_f64());
    let digest = machine.digest();
    drop(machine);

    for verify_rows in [false, true] {
        let began = Instant::now();
        let machine = open(folder, verify_rows);
        let what = if verify_rows {
            "every row verified"
        } else {
            "hashes read"
        };
        assert!(
            machine.applied() == rows && machine.digest() == digest,
            "the state is the same again"
        );
        println!(
            "reopened in {:.2} s, {what}, resident {} MiB",
            began.elapsed().as_secs_f64(),
            rss_mib()
        );
    }
    std::fs::remove_dir_all(folder.join("sled")).expect("the store can be removed");
    let began = Instant::now();
    let machine = open(folder, false);
    assert!(machine.digest() == digest, "the state is the same again");
    println!(
        "rebuilt from the snapshot file in {:.2} s, resident {} MiB",
        began.elapsed().as_secs_f64(),
        rss_mib()
    );
    drop(machine);
    std::fs::remove_dir_all(folder).expect("the folder can be removed");
}

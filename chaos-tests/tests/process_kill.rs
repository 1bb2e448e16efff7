//! Three real nodes under kill -9: what was acknowledged is read back exactly once from each of them (I1).

#![allow(clippy::disallowed_methods, reason = "a test on real processes runs in real time")]

use anyhow::{Result, ensure};
use hindcast_chaos::process::Cluster;
use hindcast_chaos::workload::{Load, Progress, base_ms, check_cluster, write};
use std::time::Duration;
use tokio::sync::watch;

const PROGRAM: &str = env!("CARGO_BIN_EXE_hindcast-under-test");

/// How much is written, and how often a node dies meanwhile.
#[derive(Clone, Copy)]
struct Plan {
    load: Load,
    batches: u64,
    kill_every: Duration,
    down_for: Duration,
}

const SHORT: Plan = Plan {
    load: Load {
        writers: 4,
        samples_per_batch: 250,
        lines_per_batch: 25,
        pause: Duration::from_millis(100),
        patience: Duration::from_secs(60),
    },
    batches: 40,
    kill_every: Duration::from_secs(2),
    down_for: Duration::from_millis(800),
};

/// 1,000,000 samples and 100,000 lines; with the pauses about 50 s, so at least four nodes die.
const LONG: Plan = Plan {
    load: Load {
        writers: 4,
        samples_per_batch: 1000,
        lines_per_batch: 100,
        pause: Duration::from_millis(180),
        patience: Duration::from_secs(60),
    },
    batches: 250,
    kill_every: Duration::from_secs(10),
    down_for: Duration::from_secs(3),
};

/// Kills one node after the other until told to stop; the number of kills.
async fn kill(plan: Plan, cluster: &mut Cluster, mut done: watch::Receiver<bool>) -> Result<u32> {
    let mut kills = 0;
    loop {
        tokio::select! {
            _ = done.wait_for(|d| *d) => return Ok(kills),
            () = tokio::time::sleep(plan.kill_every) => {}
        }
        let victim = kills as usize % cluster.nodes.len();
        cluster.kill(victim);
        kills += 1;
        tokio::time::sleep(plan.down_for).await;
        cluster.spawn(victim)?;
    }
}

async fn run(name: &str, plan: Plan) -> Result<()> {
    let mut cluster = Cluster::start(name, PROGRAM, 3, &[])?;
    let ready = cluster.wait_ready().await?;
    println!("three nodes are ready after {ready:?}");
    let base_ms = base_ms();
    let nodes = cluster.addresses();
    let (done, finished) = watch::channel(false);
    let (_never, go_on) = watch::channel(false);
    let writers: Vec<_> = (1..=plan.load.writers)
        .map(|w| {
            let start = Progress::default();
            tokio::spawn(write(
                plan.load,
                w,
                base_ms,
                nodes.clone(),
                start,
                plan.batches,
                go_on.clone(),
            ))
        })
        .collect();
    let waiting = tokio::spawn(async move {
        let mut written = vec![];
        for w in writers {
            written.push(w.await??);
        }
        let _ = done.send(true);
        anyhow::Ok(written)
    });
    let kills = kill(plan, &mut cluster, finished).await?;
    let written = waiting.await??;
    cluster.wait_ready().await?;
    let longest = written.iter().map(|w| w.longest).max().unwrap_or_default();
    println!("{kills} kills; the longest a batch took was {longest:?}");
    ensure!(kills > 0, "nobody died: the plan is too short");

    // All at once: whatever was only in memory anywhere is gone now.
    for i in 0..cluster.nodes.len() {
        cluster.kill(i);
    }
    for i in 0..cluster.nodes.len() {
        cluster.spawn(i)?;
    }
    cluster.wait_ready().await?;

    let batches: Vec<_> = written.iter().map(|w| 0..w.batches).collect();
    let (samples, lines) = check_cluster(plan.load, &cluster, base_ms, &batches).await?;
    println!("read back from three nodes: {samples} samples, {lines} lines; none lost, none doubled");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kill_minus_nine() {
    run("kill-short", SHORT).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a million samples take a minute: `cargo xtask prove chaos` runs it"]
async fn a_million_samples_survive_a_kill_every_ten_seconds() {
    run("kill-long", LONG).await.unwrap();
}

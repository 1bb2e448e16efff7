//! How writers fare while a fourth node joins and 200,000 samples a second flow: nobody is refused for more than a
//! second, and the 99th percentile stays within three times that of the quiet time before.

#![allow(clippy::disallowed_methods, reason = "a test on real processes runs in real time")]

use anyhow::{Context, Result, ensure};
use hindcast_chaos::process::{Cluster, channel};
use hindcast_chaos::workload::{Clients, Load, base_ms, check_cluster};
use hindcast_proto::v1;
use hindcast_proto::v1::cluster_client::ClusterClient;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;

const PROGRAM: &str = env!("CARGO_BIN_EXE_hindcast-under-test");
/// 8 writers, 25 batches of 1,000 samples a second each.
const LOAD: Load = Load {
    writers: 8,
    samples_per_batch: 1000,
    lines_per_batch: 1,
    pause: Duration::from_millis(40),
    patience: Duration::from_secs(30),
};
const QUIET: Duration = Duration::from_secs(30);
/// After the fourth node counts everywhere.
const AFTER: Duration = Duration::from_secs(5);
const SPAN_MAX: Duration = Duration::from_secs(1);
const P99_TIMES_MAX: f64 = 3.0;

/// When a batch was due, and how long it took from then to its confirmation.
type Times = Arc<Mutex<Vec<(Instant, Duration)>>>;

async fn write_on(
    writer: u64,
    base_ms: i64,
    nodes: Vec<SocketAddr>,
    times: Times,
    stop: watch::Receiver<bool>,
) -> Result<u64> {
    let clients = Clients::new(&nodes);
    // Not all in the same moment.
    let mut due = Instant::now() + LOAD.pause * writer as u32 / LOAD.writers as u32;
    for seq in 1.. {
        if *stop.borrow() {
            return Ok(seq - 1);
        }
        tokio::time::sleep_until(due.into()).await;
        clients.confirm(LOAD, writer, seq, base_ms).await?;
        times.lock().expect("plain data").push((due, due.elapsed()));
        due += LOAD.pause;
    }
    unreachable!("numbers do not end")
}

/// Median, 99th percentile and longest of what was due within a time; how many.
fn of(times: &[(Instant, Duration)], from: Instant, to: Instant) -> Result<(usize, Duration, Duration, Duration)> {
    let due = times.iter().filter(|(due, _)| (from..to).contains(due));
    let mut took: Vec<Duration> = due.map(|(_, took)| *took).collect();
    took.sort_unstable();
    let count = took.len();
    ensure!(count > 100, "only {count} batches in {:?}", to - from);
    Ok((count, took[count / 2], took[count * 99 / 100], took[count - 1]))
}

async fn run(program: &str) -> Result<()> {
    let mut cluster = Cluster::start("joining", program, 3, &[])?;
    cluster.wait_ready().await?;
    let base_ms = base_ms();
    let (stop, stopped) = watch::channel(false);
    let times = Times::default();
    let writers: Vec<_> = (1..=LOAD.writers)
        .map(|w| {
            tokio::spawn(write_on(
                w,
                base_ms,
                cluster.addresses(),
                times.clone(),
                stopped.clone(),
            ))
        })
        .collect();
    // The first seconds name every series, and leaders are spread.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let quiet = Instant::now();
    tokio::time::sleep(QUIET).await;
    let joins = Instant::now();
    cluster.start_joining(4, &[])?;
    let mut client = ClusterClient::new(channel(cluster.nodes[0].client, Duration::from_secs(10)));
    loop {
        // Refused until the node has asked to join.
        let added = client.add_node(v1::AddNodeRequest { node: 4 }).await;
        let status = cluster.status(0).await?;
        // It has three of the four shards then, and each of the others has three, too.
        let copies = |m: &v1::GroupMembers| if m.group == 0 { 4 } else { 3 };
        let settled =
            |m: &v1::GroupMembers| m.voters.len() == copies(m) && m.outgoing.is_empty() && m.learners.is_empty();
        let shards = |n: u64| {
            status
                .members
                .iter()
                .filter(|m| m.group != 0 && m.voters.contains(&n))
                .count()
        };
        let shares = (1..=4).all(|n| shards(n) == 3);
        if added.is_ok() && shares && status.members.len() == status.groups.len() && status.members.iter().all(settled)
        {
            break;
        }
        ensure!(
            joins.elapsed() < Duration::from_secs(120),
            "it does not count after {:?}: {:?}",
            joins.elapsed(),
            status.members
        );
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let counted = joins.elapsed();
    tokio::time::sleep(AFTER).await;
    let end = Instant::now();
    // What was due has come, too.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let _ = stop.send(true);
    let mut batches = vec![];
    for writer in writers {
        batches.push(0..writer.await??);
    }
    let times = times.lock().expect("plain data").clone();
    let (count, p50, p99, longest) = of(&times, quiet, joins)?;
    let per_second = count as f64 * LOAD.samples_per_batch as f64 / QUIET.as_secs_f64();
    println!("quiet: {per_second:.0} samples/s; a batch took {p50:?} (p50), {p99:?} (p99), {longest:?} at most");
    let (_, p50, joining_p99, longest) = of(&times, joins, end)?;
    println!("joining, {counted:?} until it counts: {p50:?} (p50), {joining_p99:?} (p99), {longest:?} at most");
    let (samples, lines) = check_cluster(LOAD, &cluster, base_ms, &batches)
        .await
        .context("in the end")?;
    println!("read back from four nodes: {samples} samples, {lines} lines; none lost, none doubled");
    ensure!(
        per_second > 190_000.0,
        "the load did not flow: {per_second:.0} samples/s"
    );
    ensure!(longest <= SPAN_MAX, "a batch took {longest:?}");
    let times = joining_p99.as_secs_f64() / p99.as_secs_f64();
    ensure!(
        times <= P99_TIMES_MAX,
        "the 99th percentile is {times:.1} times that of before"
    );
    Ok(())
}

/// `HINDCAST_PROGRAM` names another build.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "means something in release only, on a machine that does nothing else: `cargo xtask prove joining` runs it"]
async fn writers_hardly_notice_that_a_fourth_node_joins() {
    let program = std::env::var("HINDCAST_PROGRAM").unwrap_or_else(|_| PROGRAM.to_owned());
    run(&program).await.unwrap();
}

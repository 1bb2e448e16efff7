//! Real nodes that come and go while writers write: what was acknowledged is read back exactly once from all that are left,
//! and no writer waits long.

#![allow(clippy::disallowed_methods, reason = "a test on real processes runs in real time")]

use anyhow::{Context, Result, bail, ensure};
use hindcast_chaos::process::{Cluster, channel};
use hindcast_chaos::workload::{Load, Progress, base_ms, check_cluster, write};
use hindcast_proto::v1;
use hindcast_proto::v1::cluster_client::ClusterClient;
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tonic::transport::Channel;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_hindcast-under-test");
const PATIENCE: Duration = Duration::from_secs(120);

pub const LOAD: Load = Load {
    writers: 3,
    samples_per_batch: 200,
    lines_per_batch: 20,
    pause: Duration::from_millis(100),
    patience: Duration::from_secs(60),
};

fn client(cluster: &Cluster, i: usize) -> ClusterClient<Channel> {
    ClusterClient::new(channel(cluster.nodes[i].client, Duration::from_secs(10)))
}

/// Runs the program's own command, as a person would.
pub fn command(cluster: &Cluster, i: usize, words: &[&str]) -> Result<String> {
    let endpoint = format!("http://{}", cluster.nodes[i].client);
    let mut command = Command::new(PROGRAM);
    command
        .arg("cluster")
        .args(words)
        .args(["--endpoint", &endpoint, "--timeout", "120"]);
    let done = command.output()?;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
    ensure!(done.status.success(), "{words:?} ended with {}: {text}", done.status);
    Ok(text)
}

/// Waits until a node's status is as wanted.
pub async fn until(
    cluster: &Cluster,
    i: usize,
    what: &str,
    wanted: impl Fn(&v1::StatusResponse) -> bool,
) -> Result<()> {
    let started = Instant::now();
    let mut last = None;
    while started.elapsed() < PATIENCE {
        match cluster.status(i).await {
            Ok(status) if wanted(&status) => return Ok(()),
            Ok(status) => last = Some(status),
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let last = last.map(|s| format!("{:?}\n{:?}", s.nodes, s.members));
    bail!(
        "{what}: not after {PATIENCE:?}; {}\n{}",
        last.unwrap_or_default(),
        cluster.log_tail(i)
    );
}

fn voters(s: &v1::StatusResponse) -> Vec<Vec<u64>> {
    s.members
        .iter()
        .map(|m| {
            let mut voters = m.voters.clone();
            voters.sort_unstable();
            voters
        })
        .collect()
}

/// Every shard has three copies, on these nodes alone, and no node has two more than another.
pub fn all_share(s: &v1::StatusResponse, nodes: &[u64]) -> bool {
    let is_still = |m: &v1::GroupMembers| m.outgoing.is_empty() && (m.group == 0 || m.learners.is_empty());
    let settled = s.members.len() == s.groups.len() && s.members.iter().all(is_still);
    let of = |n: u64| {
        let shards = s.members.iter().filter(|m| m.group != 0);
        shards.filter(|m| m.voters.contains(&n)).count()
    };
    let loads: Vec<usize> = nodes.iter().map(|n| of(*n)).collect();
    let is_even = loads.iter().max() <= loads.iter().min().map(|n| n + 1).as_ref();
    let copies = |m: &v1::GroupMembers| if m.group == 0 { nodes.len() } else { 3 };
    let has_all = |m: &v1::GroupMembers| m.voters.len() == copies(m) && m.voters.iter().all(|v| nodes.contains(v));
    settled && is_even && s.members.iter().all(has_all)
}

fn all_have(s: &v1::StatusResponse, wanted: &[u64]) -> bool {
    let settled = s.members.iter().all(|m| m.outgoing.is_empty());
    settled && s.members.len() == s.groups.len() && voters(s).iter().all(|v| v == wanted)
}

/// Writers that go on until they are told to stop.
pub struct Writers {
    stop: watch::Sender<bool>,
    running: Vec<tokio::task::JoinHandle<Result<Progress>>>,
    base_ms: i64,
}

impl Writers {
    pub fn start(cluster: &Cluster) -> Self {
        let (stop, stopped) = watch::channel(false);
        let base_ms = base_ms();
        let nodes = cluster.addresses();
        let start = |w| {
            let (nodes, stopped) = (nodes.clone(), stopped.clone());
            tokio::spawn(write(LOAD, w, base_ms, nodes, Progress::default(), u64::MAX, stopped))
        };
        let running = (1..=LOAD.writers).map(start).collect();
        Self { stop, running, base_ms }
    }

    pub async fn end(self) -> Result<(Vec<std::ops::Range<u64>>, Duration, i64)> {
        let _ = self.stop.send(true);
        let mut written = vec![];
        for w in self.running {
            written.push(w.await??);
        }
        let longest = written.iter().map(|w| w.longest).max().unwrap_or_default();
        Ok((written.iter().map(|w| 0..w.batches).collect(), longest, self.base_ms))
    }
}

/// A fourth node joins under load, one of the first three leaves, and everybody who is left has everything.
async fn come_and_go(small_files: bool) -> Result<()> {
    let more: &[&str] = if small_files { &["--test-only-small-files"] } else { &[] };
    let name = if small_files { "members-small" } else { "members" };
    let mut cluster = Cluster::start(name, PROGRAM, 3, more)?;
    cluster.wait_ready().await?;
    // Two of the first three take the writes throughout: the third is the one that leaves.
    let leaves = 2;
    let writers = Writers::start(&cluster);
    tokio::time::sleep(Duration::from_secs(3)).await;

    let fourth = cluster.start_joining(4, more)?;
    until(&cluster, 0, "the fourth node waits as a learner", |s| {
        let waits = s.nodes.iter().any(|n| n.id == 4 && n.state == "waiting");
        // Of shards it gets a copy when it is to count: three are enough.
        let learns = |m: &v1::GroupMembers| m.learners == if m.group == 0 { vec![4] } else { vec![] };
        waits && s.members.len() == s.groups.len() && s.members.iter().all(learns)
    })
    .await?;
    if small_files {
        // The wish outlives who would have carried it out.
        command(&cluster, 0, &["add", "4", "--no-wait"])?;
        let leader = cluster.status(0).await?.groups[0].leader;
        let i = cluster
            .nodes
            .iter()
            .position(|n| n.id == leader)
            .context("the meta group has no leader")?;
        cluster.kill(i);
        tokio::time::sleep(Duration::from_secs(2)).await;
        cluster.spawn(i)?;
        cluster.wait_ready().await?;
    } else {
        command(&cluster, 0, &["add", "4"])?;
    }
    until(&cluster, 0, "four share the copies", |s| all_share(s, &[1, 2, 3, 4])).await?;
    println!("the fourth node counts, and has its share of the shards");

    let shared = cluster.status(0).await?.members;
    let of_four = shared.iter().find(|m| m.group != 0 && m.voters.contains(&4));
    let shard = of_four.context("node 4 has no shard")?.group;
    command(&cluster, 0, &["transfer", &shard.to_string(), "4"])?;
    until(&cluster, 1, "node 4 leads a shard", |s| {
        s.members.iter().any(|m| m.group == shard && m.leader == 4)
    })
    .await?;

    command(&cluster, 0, &["remove", "3"])?;
    until(&cluster, 0, "three are left", |s| all_have(s, &[1, 2, 4])).await?;
    cluster
        .wait_ended(leaves, Duration::from_secs(20))
        .await
        .context("a node that was removed ends by itself")?;
    println!("node 3 is gone");

    // The old identity is of no use any more: nobody listens to it.
    let again = client(&cluster, 0).add_node(v1::AddNodeRequest { node: 3 }).await;
    let why = again
        .expect_err("a removed node does not come back")
        .message()
        .to_owned();
    ensure!(why.contains("does not come back"), "{why}");
    cluster.spawn(leaves)?;
    cluster
        .wait_ended(leaves, Duration::from_secs(20))
        .await
        .context("it is told so when it starts again")?;
    cluster.drop_node(leaves);
    ensure!(fourth == 3 && cluster.nodes[2].id == 4);

    tokio::time::sleep(Duration::from_secs(2)).await;
    let (batches, longest, base_ms) = writers.end().await?;
    println!("{batches:?} batches; the longest a batch took was {longest:?}");

    // With the newcomer in the majority, over a restart of everybody.
    cluster.kill(0);
    cluster.kill(1);
    cluster.kill(2);
    for i in 0..3 {
        cluster.spawn(i)?;
    }
    cluster.wait_ready().await?;
    let (samples, lines) = check_cluster(LOAD, &cluster, base_ms, &batches).await?;
    println!("read back from three nodes: {samples} samples, {lines} lines; none lost, none doubled");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_and_another_leaves_under_load_and_nothing_is_lost() {
    come_and_go(false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_when_the_newcomer_needs_snapshots_and_the_meta_leader_dies() {
    come_and_go(true).await.unwrap();
}

/// A node that lost its Raft log, and with it what it had given its word for, takes no part; the others take it out, and it
/// comes back by itself.
async fn lose_a_log() -> Result<()> {
    let mut cluster = Cluster::start("lost-log", PROGRAM, 3, &["--test-only-small-files"])?;
    cluster.wait_ready().await?;
    let writers = Writers::start(&cluster);
    tokio::time::sleep(Duration::from_secs(4)).await;
    cluster.kill(2);
    std::fs::remove_dir_all(cluster.data_dir(2).join("raft/log"))?;
    cluster.spawn(2)?;
    until(&cluster, 0, "the loss is noticed and the copies begin again", |s| {
        s.members.iter().any(|m| !m.voters.contains(&3))
    })
    .await?;
    until(&cluster, 0, "it counts again everywhere", |s| {
        let well = |m: &v1::GroupMembers| m.progress.iter().all(|p| p.quarantined.is_empty() && !p.rebuilding);
        all_have(s, &[1, 2, 3]) && s.members.iter().all(well)
    })
    .await?;
    cluster.wait_ready().await?;
    let (batches, longest, base_ms) = writers.end().await?;
    println!("the longest a batch took was {longest:?}");
    check_cluster(LOAD, &cluster, base_ms, &batches).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_log_comes_back_by_itself() {
    lose_a_log().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_is_replaced_and_leaders_are_spread_after_all_were_down() {
    replace().await.unwrap();
}

async fn replace() -> Result<()> {
    let mut cluster = Cluster::start("replace", PROGRAM, 3, &[])?;
    cluster.wait_ready().await?;
    let writers = Writers::start(&cluster);
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.kill(2);
    // Its data is lost with it; it comes back as another node.
    let (batches, _, base_ms) = {
        let fourth = cluster.start_joining(4, &[])?;
        until(&cluster, 0, "the fourth node waits", |s| {
            s.nodes.iter().any(|n| n.id == 4)
        })
        .await?;
        command(&cluster, 1, &["move", "3", "4"])?;
        until(&cluster, fourth, "the newcomer is in its places", |s| {
            all_have(s, &[1, 2, 4])
        })
        .await?;
        writers.end().await?
    };
    cluster.drop_node(2);
    for i in 0..3 {
        cluster.kill(i);
    }
    // The first to come lead everything, until the third is back.
    cluster.spawn(0)?;
    cluster.spawn(1)?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    cluster.spawn(2)?;
    cluster.wait_ready().await?;
    until(&cluster, 0, "every node leads something", |s| {
        let led = |n: u64| s.members.iter().filter(|m| m.leader == n).count();
        [1, 2, 4].iter().all(|n| led(*n) >= 1)
    })
    .await?;
    check_cluster(LOAD, &cluster, base_ms, &batches).await?;
    Ok(())
}

//! Real nodes of which one has a file that went bad on the disk: the others take its copy out, it comes back from their
//! snapshot by itself, and everything is read back from it exactly once.

#![allow(clippy::disallowed_methods, reason = "a test on real processes runs in real time")]

use anyhow::{Context, Result, ensure};
use hindcast_chaos::process::{Cluster, channel, metric};
use hindcast_chaos::workload::{Load, Progress, base_ms, check_cluster, write};
use hindcast_proto::v1;
use hindcast_proto::v1::cluster_client::ClusterClient;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::watch;

const PROGRAM: &str = env!("CARGO_BIN_EXE_hindcast-under-test");
const PATIENCE: Duration = Duration::from_secs(120);

const LOAD: Load = Load {
    writers: 2,
    samples_per_batch: 200,
    lines_per_batch: 20,
    pause: Duration::from_millis(100),
    patience: Duration::from_secs(60),
};

/// The node whose disk goes bad, by its place; it may lead groups.
const VICTIM: usize = 2;

async fn until<F: Future<Output = Result<bool>>>(cluster: &Cluster, what: &str, wanted: impl Fn() -> F) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        if wanted().await.unwrap_or(false) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let members = cluster.status(0).await.map(|s| s.members);
    // Not an error: the nodes' folders are kept after a panic.
    panic!(
        "{what}: not after {PATIENCE:?}; {members:?}\n{}",
        cluster.log_tail(VICTIM)
    );
}

/// The largest segment of the shards, which is merged away last.
fn segment(cluster: &Cluster) -> Result<PathBuf> {
    let mut largest = (0, PathBuf::new());
    for dir in std::fs::read_dir(cluster.data_dir(VICTIM))? {
        let dir = dir?.path();
        let is_shard = dir
            .file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with("shard-"));
        for file in is_shard
            .then(|| std::fs::read_dir(dir))
            .transpose()?
            .into_iter()
            .flatten()
        {
            let file = file?.path();
            let is_segment = file
                .file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("segment-"));
            let bytes = file.metadata().map_or(0, |m| m.len());
            if is_segment && bytes > largest.0 {
                largest = (bytes, file);
            }
        }
    }
    ensure!(largest.0 > 0, "there is no segment");
    Ok(largest.1)
}

/// A byte of the largest segment goes bad on the disk, under a living node.
fn damage(cluster: &Cluster) -> Result<PathBuf> {
    let path = segment(cluster)?;
    let at = path.metadata()?.len() / 3;
    flip(&path, at)?;
    Ok(path)
}

fn flip(path: &Path, at: u64) -> Result<()> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 0x10], at)?;
    file.sync_all()?;
    Ok(())
}

async fn flush(cluster: &Cluster) -> Result<()> {
    for node in &cluster.nodes {
        let mut client = ClusterClient::new(channel(node.client, Duration::from_secs(30)));
        client.flush(v1::FlushRequest { compact: true }).await?;
    }
    Ok(())
}

fn is_whole(s: &v1::StatusResponse) -> bool {
    let counts = |m: &v1::GroupMembers| m.voters.len() == 3 && m.outgoing.is_empty();
    let well = |p: &v1::MemberProgress| p.quarantined.is_empty() && p.damaged.is_empty() && !p.rebuilding;
    s.members.len() == s.groups.len() && s.members.iter().all(|m| counts(m) && m.progress.iter().all(well))
}

async fn damaged_copy_comes_back() -> Result<()> {
    let mut cluster = Cluster::start("repair", PROGRAM, 3, &["--test-only-small-files"])?;
    cluster.wait_ready().await?;
    let (stop, stopped) = watch::channel(false);
    let base_ms = base_ms();
    let start = |w| {
        let (nodes, stopped) = (cluster.addresses(), stopped.clone());
        tokio::spawn(write(LOAD, w, base_ms, nodes, Progress::default(), u64::MAX, stopped))
    };
    let running: Vec<_> = (1..=LOAD.writers).map(start).collect();
    tokio::time::sleep(Duration::from_secs(4)).await;
    flush(&cluster).await?;
    let victim = cluster.nodes[VICTIM].client;
    ensure!(
        metric(victim, "hindcast_storage_repairs_total").await? == 0.0,
        "nothing to repair yet"
    );

    let file = damage(&cluster)?;
    let began = Instant::now();
    until(&cluster, "a copy is repaired", || async {
        Ok(metric(victim, "hindcast_storage_repairs_total").await? >= 1.0)
    })
    .await?;
    println!("{} was replaced after {:?}", file.display(), began.elapsed());
    until(&cluster, "all copies count and are whole", || async {
        Ok(is_whole(&cluster.status(0).await?))
    })
    .await?;
    println!("and the copy counts again after {:?}", began.elapsed());
    ensure!(!file.exists(), "the damaged file is gone");
    ensure!(
        metric(victim, "hindcast_storage_damaged_files").await? == 0.0,
        "nothing is damaged"
    );
    for node in &cluster.nodes[..VICTIM] {
        ensure!(
            metric(node.client, "hindcast_storage_repairs_total").await? == 0.0,
            "the others were well"
        );
    }

    let _ = stop.send(true);
    let mut batches = vec![];
    for w in running {
        let written = w.await??;
        println!("the longest that a batch took was {:?}", written.longest);
        batches.push(0..written.batches);
    }
    check_cluster(LOAD, &cluster, base_ms, &batches).await?;
    // What came by the snapshot is on its disk like the rest.
    cluster.kill(VICTIM);
    cluster.spawn(VICTIM)?;
    cluster.wait_ready().await?;
    let (samples, lines) = check_cluster(LOAD, &cluster, base_ms, &batches).await?;
    println!("read back from three nodes: {samples} samples, {lines} lines; none lost, none doubled");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_with_a_damaged_file_comes_back_from_another_node_by_itself() {
    damaged_copy_comes_back().await.context("repair").unwrap();
}

/// Two nodes cannot repair each other: the file stays refused by name, and is told.
async fn no_majority_without_it() -> Result<()> {
    let mut cluster = Cluster::start("no-repair", PROGRAM, 3, &["--test-only-small-files"])?;
    cluster.wait_ready().await?;
    let (_stop, stopped) = watch::channel(false);
    let base_ms = base_ms();
    let written = write(LOAD, 1, base_ms, cluster.addresses(), Progress::default(), 20, stopped).await?;
    ensure!(written.batches == 20, "{written:?}");
    flush(&cluster).await?;
    cluster.kill(0);
    let victim = cluster.nodes[VICTIM].client;
    damage(&cluster)?;
    until(&cluster, "the damage is known", || async {
        Ok(metric(victim, "hindcast_storage_damaged_files").await? >= 1.0)
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let of_victim = cluster.status(VICTIM).await?;
    let three = |m: &v1::GroupMembers| m.voters.len() == 3 && m.learners.is_empty();
    ensure!(
        of_victim.members.iter().all(three),
        "nobody was taken out: {:?}",
        of_victim.members
    );
    ensure!(
        metric(victim, "hindcast_storage_repairs_total").await? == 0.0,
        "nothing was repaired"
    );
    cluster.spawn(0)?;
    cluster.wait_ready().await?;
    until(&cluster, "it is repaired once the third is back", || async {
        Ok(metric(victim, "hindcast_storage_repairs_total").await? >= 1.0 && is_whole(&cluster.status(0).await?))
    })
    .await?;
    check_cluster(LOAD, &cluster, base_ms, std::slice::from_ref(&(0..written.batches))).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_copy_is_kept_while_the_others_are_no_majority_without_it() {
    no_majority_without_it().await.unwrap();
}

/// The oldest segment of the Raft log, which is full; free ones lie beside them.
fn oldest_log(cluster: &Cluster) -> Result<PathBuf> {
    let mut logs = vec![];
    for file in std::fs::read_dir(cluster.data_dir(VICTIM).join("raft/log"))? {
        logs.push(file?.path());
    }
    logs.retain(|p| p.extension().is_some_and(|e| e == "log"));
    logs.sort();
    ensure!(logs.len() > 1, "there is but one segment of the log: {logs:?}");
    Ok(logs.swap_remove(0))
}

/// So much that no log holds a shard from its first entry.
const MORE: Load = Load {
    samples_per_batch: 2_000,
    lines_per_batch: 200,
    pause: Duration::from_millis(20),
    ..LOAD
};

/// Of a log segment: behind its header, in a record with others behind it.
const LOG_BYTE: u64 = 100;

/// Damage that is found when the node starts: of a shard's file, then of the Raft log before its end.
async fn damage_while_it_was_down() -> Result<()> {
    let mut cluster = Cluster::start("repair-start", PROGRAM, 3, &["--test-only-small-files"])?;
    cluster.wait_ready().await?;
    let (_stop, stopped) = watch::channel(false);
    let base_ms = base_ms();
    let written = write(
        MORE,
        1,
        base_ms,
        cluster.addresses(),
        Progress::default(),
        40,
        stopped.clone(),
    )
    .await?;
    flush(&cluster).await?;
    // The logs are cut to what was flushed.
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.kill(VICTIM);
    let file = segment(&cluster)?;
    let folder = file.parent().context("a shard's folder")?.to_owned();
    // In its table, which is read when it is opened.
    flip(&file, file.metadata()?.len() - 80)?;
    cluster.spawn(VICTIM)?;
    let victim = cluster.nodes[VICTIM].client;
    let repaired = || async {
        let is_repaired = metric(victim, "hindcast_storage_repairs_total").await? >= 1.0;
        Ok(is_repaired && is_whole(&cluster.status(0).await?))
    };
    until(&cluster, "the shard is rebuilt", repaired).await?;
    let aside = folder.with_file_name(format!(
        "{}.damaged",
        folder.file_name().context("a name")?.to_string_lossy()
    ));
    ensure!(!aside.exists(), "{} is needed no more", aside.display());
    // The log of its copy may have held everything: then this would show nothing.
    let log = cluster.log(VICTIM);
    ensure!(
        log.contains("damaged files are replaced by a snapshot"),
        "no snapshot came: {log}"
    );
    cluster.wait_ready().await?;
    check_cluster(MORE, &cluster, base_ms, std::slice::from_ref(&(0..written.batches))).await?;

    let written = write(MORE, 1, base_ms, cluster.addresses(), written, 80, stopped).await?;
    cluster.kill(VICTIM);
    let oldest = oldest_log(&cluster)?;
    // In one of its first records: where it ends is not where its file ends.
    flip(&oldest, LOG_BYTE)?;
    cluster.spawn(VICTIM)?;
    until(&cluster, "the node noticed", || async {
        Ok(cluster.data_dir(VICTIM).join("raft/log.damaged").exists())
    })
    .await?;
    until(&cluster, "its copies are rebuilt", || async {
        Ok(cluster.status(VICTIM).await?.ready && is_whole(&cluster.status(0).await?))
    })
    .await?;
    cluster.wait_ready().await?;
    check_cluster(MORE, &cluster, base_ms, std::slice::from_ref(&(0..written.batches))).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_finds_damage_when_it_starts_comes_up_and_is_rebuilt() {
    damage_while_it_was_down().await.unwrap();
}

//! More nodes than copies: each shard is on three of them, every node answers for all, nodes come and die, and nothing is lost.

#![allow(clippy::disallowed_methods, reason = "a test on real processes runs in real time")]

use super::membership::{LOAD, PROGRAM, Writers, all_share, command, until};
use anyhow::{Context, Result, ensure};
use hindcast_chaos::process::{Cluster, channel, http_get};
use hindcast_chaos::workload::check_cluster;
use hindcast_proto::v1;
use hindcast_proto::v1::replay_client::ReplayClient;
use std::time::Duration;

/// What a client asks of a node that has no copy of a shard: of each way in which shards are read.
const QUESTIONS: [(&str, &str); 9] = [
    ("/api/v1/query?query=", "sum(count_over_time(node_chaos[1h]))"),
    ("/api/v1/query?query=", "sum by (instance) (rate(node_chaos[1h]))"),
    ("/api/v1/query?query=", "quantile(0.5, max_over_time(node_chaos[1h]))"),
    ("/api/v1/query?query=", "max_over_time(count(node_chaos)[10m:1m])"),
    ("/api/v1/series?match[]=", "node_chaos"),
    ("/api/v1/label/instance/values?match[]=", "node_chaos"),
    ("/api/hindcast/v1/cardinality?entries=", "10"),
    (
        "/loki/api/v1/query?query=",
        r#"sum(count_over_time({job="chaos"} |= "line" [1h]))"#,
    ),
    (
        "/loki/api/v1/query?query=",
        r#"sum(count_over_time({job="chaos"} | regexp "line (?P<n>.*)" | n > 5 [1h]))"#,
    ),
];

fn escaped(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric();
    let byte = |b: u8| match plain(b) {
        true => char::from(b).to_string(),
        false => format!("%{b:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// What is left of an answer when positions and times are taken out of it.
fn essence(answer: &str) -> Result<serde_json::Value> {
    let body = answer.split_once("\r\n\r\n").context("no body")?.1;
    let json: serde_json::Value = serde_json::from_str(body).with_context(|| body.to_owned())?;
    ensure!(json["hindcast"]["complete"] != false, "{json}");
    Ok(match json.get("data") {
        Some(data) => data.get("result").unwrap_or(data).clone(),
        None => json,
    })
}

/// All nodes that run answer all questions alike.
async fn answer_alike(cluster: &Cluster, nodes: &[usize], time: i64) -> Result<()> {
    for (path, question) in QUESTIONS {
        let asked = match path.contains("query?") {
            true => format!("{path}{}&time={time}", escaped(question)),
            false => format!("{path}{}", escaped(question)),
        };
        let mut answers = vec![];
        for i in nodes {
            let answer = http_get(cluster.nodes[*i].client, &asked).await?;
            answers.push(essence(&answer).with_context(|| format!("{asked} of node {}", cluster.nodes[*i].id))?);
        }
        ensure!(answers.windows(2).all(|w| w[0] == w[1]), "{asked}: {answers:?}");
        let text = answers[0].to_string();
        ensure!(text.len() > 20, "{asked}: {text}");
    }
    Ok(())
}

/// The last digest of a replay of what was written, and the bytes of its frames.
async fn play(cluster: &Cluster, i: usize, base_ms: i64, as_of: &str) -> Result<(Vec<u8>, usize)> {
    let mut replay = ReplayClient::new(channel(cluster.nodes[i].client, Duration::from_secs(60)));
    let asked = v1::PlayRequest {
        from_ms: base_ms,
        to_ms: base_ms + 20_000,
        step_ms: 1000,
        as_of: as_of.to_owned(),
        ..v1::PlayRequest::default()
    };
    let mut frames = replay.play(asked).await?.into_inner();
    let (mut digest, mut bytes) = (vec![], 0);
    while let Some(frame) = frames.message().await? {
        bytes += frame.frame.len();
        digest = frame.digest.to_vec();
    }
    Ok((digest, bytes))
}

async fn run() -> Result<()> {
    let mut cluster = Cluster::start("copies", PROGRAM, 5, &["--test-only-small-files"])?;
    cluster.wait_ready().await?;
    until(&cluster, 0, "five share the copies", |s| all_share(s, &[1, 2, 3, 4, 5])).await?;
    let writers = Writers::start(&cluster);
    tokio::time::sleep(Duration::from_secs(3)).await;

    // One dies, and is never back: its shards are led by others, and answered for by others.
    cluster.kill(1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let sixth = cluster.start_joining(6, &["--test-only-small-files"])?;
    until(&cluster, 0, "the sixth node waits", |s| {
        s.nodes.iter().any(|n| n.id == 6)
    })
    .await?;
    command(&cluster, 0, &["move", "2", "6"])?;
    until(&cluster, 0, "the copies are made up for", |s| {
        all_share(s, &[1, 3, 4, 5, 6])
    })
    .await?;
    println!("node 6 took the places of node 2");

    // Two go, one after the other: the copies of all shards on three nodes.
    command(&cluster, 0, &["remove", "5"])?;
    cluster.wait_ended(4, Duration::from_secs(20)).await?;
    until(&cluster, 0, "four share the copies", |s| all_share(s, &[1, 3, 4, 6])).await?;
    println!("node 5 is gone");

    let (batches, longest, base_ms) = writers.end().await?;
    println!("{batches:?} batches; the longest a batch took was {longest:?}");
    cluster.drop_node(4);
    cluster.drop_node(1);
    ensure!(sixth == 5 && cluster.nodes[3].id == 6);
    let all = [0, 1, 2, 3];
    let time = base_ms / 1000 + 60;
    answer_alike(&cluster, &all, time).await?;
    let (samples, lines) = check_cluster(LOAD, &cluster, base_ms, &batches).await?;
    println!("read back from four nodes: {samples} samples, {lines} lines; none lost, none doubled");

    // As of the first cut, which the first one makes.
    play(&cluster, 0, base_ms, "").await?;
    let mut played = vec![];
    for i in all {
        played.push(play(&cluster, i, base_ms, "CUT-1").await?);
    }
    ensure!(played.windows(2).all(|w| w[0] == w[1]), "replays differ: {played:?}");
    ensure!(
        played[0].1 > 10_000,
        "there is little in the replay: {} bytes",
        played[0].1
    );

    // Who has no copy that counts has nothing of it.
    let mut without = 0;
    for i in all {
        until(&cluster, i, "what is not needed is forgotten", |s| {
            let away = s.groups.iter().filter(|g| g.group != 0 && !g.has_copy);
            away.clone().count() == 1 && away.into_iter().all(|g| g.samples == 0 && g.applied == 0)
        })
        .await?;
        without += 1;
    }
    ensure!(without == 4);

    // One of four is down: every shard has a majority.
    cluster.kill(3);
    tokio::time::sleep(Duration::from_secs(3)).await;
    answer_alike(&cluster, &[0, 1, 2], time).await?;
    cluster.spawn(3)?;
    cluster.wait_ready().await?;
    answer_alike(&cluster, &all, time).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_are_on_three_of_many_nodes_and_all_nodes_answer_for_all_of_them() {
    run().await.unwrap();
}

//! An agent with a buffer on disk, killed while it reads and sends, against a node that is killed, too: each line of its log file is
//! stored once.

#![allow(clippy::disallowed_methods, reason = "a test on real processes runs in real time")]

use anyhow::{Context, Result, ensure};
use hindcast_chaos::process::{Cluster, free_addresses, http_get, metric};
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_hindcast-under-test");
const LINES: u64 = 3_000;

/// Kills a process when the test ends, however it ends.
struct Killed(Child);

impl Killed {
    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.kill();
    }
}

fn agent(node: SocketAddr, metrics: SocketAddr, dir: &Path) -> Result<Killed> {
    let child = Command::new(PROGRAM)
        .args(["agent", "--name", "web-1", "--interval", "200ms"])
        // Nobody listens on port 1: each batch is tried there, too.
        .args(["--endpoint", &format!("http://127.0.0.1:1,http://{node}")])
        .args(["--metrics-listen", &metrics.to_string()])
        .arg("--log")
        .arg(dir.join("app.log"))
        .arg("--buffer-dir")
        .arg(dir.join("buffer"))
        .stdout(Stdio::null())
        .stderr(
            std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(dir.join("agent.log"))?,
        )
        .spawn()?;
    Ok(Killed(child))
}

/// Lines that are stored, and how many different ones.
async fn stored(node: SocketAddr) -> Result<(u64, u64)> {
    let ask = async |expr: &str| -> Result<u64> {
        let encoded: String = expr.bytes().map(|b| format!("%{b:02X}")).collect();
        let answer = http_get(node, &format!("/loki/api/v1/query?query={encoded}")).await?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        let json: serde_json::Value = serde_json::from_str(body).context(body.to_owned())?;
        let value = &json["data"]["result"][0]["value"][1];
        Ok(value.as_str().map_or(Ok(0), str::parse)?)
    };
    let of = r#"{host_name="web-1", log_file_name="app.log"}"#;
    let all = ask(&format!("sum(count_over_time({of}[1h]))")).await?;
    // A number that rises by one with each line, so that a line stored twice is seen where another one is missing.
    let sum = ask(&format!(
        "sum(sum_over_time({of} | pattern `line <n> of` | unwrap n [1h]))"
    ))
    .await?;
    Ok((all, sum))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_are_stored_once_though_agent_and_node_are_killed() {
    run().await.unwrap();
}

async fn run() -> Result<()> {
    let mut cluster = Cluster::start("agent", PROGRAM, 1, &[])?;
    cluster.wait_ready().await?;
    let (node, dir) = (cluster.nodes[0].client, cluster.data_dir(0));
    let metrics = free_addresses(1)?[0];
    let path = dir.join("app.log");
    std::fs::write(&path, "")?;
    let mut running = agent(node, metrics, &dir)?;
    while metric(metrics, "hindcast_agent_samples_confirmed_total")
        .await
        .unwrap_or(0.0)
        == 0.0
    {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut file = std::fs::OpenOptions::new().append(true).open(&path)?;
    for i in 1..=LINES {
        // A line may stand in its file by halves when the agent reads or dies.
        write!(file, "line {i} ")?;
        if i % 10 == 0 {
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
        writeln!(file, "of the file")?;
        match i {
            600 | 1_100 | 1_900 | 2_400 => {
                running.kill();
                running = agent(node, metrics, &dir)?;
            }
            800 => cluster.kill(0),
            1_500 => {
                cluster.spawn(0)?;
                cluster.wait_ready().await?;
            }
            2_000 => {
                // The file is rotated while nobody looks.
                running.kill();
                std::fs::rename(&path, dir.join("app.log.1"))?;
                file = std::fs::OpenOptions::new().create(true).append(true).open(&path)?;
            }
            2_100 => running = agent(node, metrics, &dir)?,
            _ => {}
        }
    }
    let expected = (LINES, LINES * (LINES + 1) / 2);
    let mut last = (0, 0);
    for _ in 0..150 {
        last = stored(node).await?;
        if last.0 >= expected.0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    ensure!(last == expected, "{last:?} of {expected:?} are stored");
    ensure!(
        metric(metrics, "hindcast_agent_dropped_total").await? == 0.0,
        "something was dropped"
    );
    ensure!(
        metric(metrics, "hindcast_agent_buffer_damaged_bytes_total").await? == 0.0,
        "the buffer is damaged"
    );
    // SIGTERM with the node away: the rest stays on disk.
    cluster.kill(0);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let status = Command::new("kill").arg(running.0.id().to_string()).status()?;
    ensure!(status.success(), "cannot signal the agent");
    running.0.wait()?;
    let said = std::fs::read_to_string(dir.join("agent.log"))?;
    let end = said
        .lines()
        .rev()
        .find(|l| l.contains("kept on disk"))
        .context("the agent said nothing at its end")?;
    ensure!(end.contains(" 0 dropped") && !end.contains(" 0 kept on disk"), "{end}");
    println!("{LINES} lines once each; {end}");
    Ok(())
}

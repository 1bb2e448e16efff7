//! SNMP with real programs: Debian's snmpd, polled with version 2c and 3 and by three nodes that share it, and snmptrap and snmpinform
//! with both versions, read back in PromQL and LogQL.

#![allow(clippy::disallowed_methods, reason = "a test on real processes runs in real time")]

use anyhow::{Context, Result, bail, ensure};
use hindcast_chaos::process::{Cluster, free_addresses, http_get};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_hindcast-under-test");
const PATIENCE: Duration = Duration::from_secs(90);
const MISSING: &str = "is missing: ops/install-packages.sh proofs, or apt-get install snmp snmpd";
/// What a user of version 3 has, for snmpd's file and for the programs that send.
const AUTH: &str = "long enough";
const PRIVACY: &str = "and another one";

/// A folder, and programs that end with it.
struct Scene {
    dir: PathBuf,
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

impl Scene {
    fn new(name: &str) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("hindcast-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir)?;
        Ok(Self { dir, running: vec![] })
    }

    fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.dir.join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    /// A program of net-snmp, which keeps what it remembers in the scene's folder and reads no file of the machine's.
    fn tool(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("SNMP_PERSISTENT_DIR", self.dir.join(format!("kept-by-{program}")))
            .env("SNMPCONFPATH", self.dir.join("none"))
            .env("MIBS", "")
            .stdin(Stdio::null());
        command
    }

    /// An agent on this port.
    fn agent(&mut self, port: u16) -> Result<()> {
        let text = format!(
            "rocommunity public\ncreateUser ops SHA-256 \"{AUTH}\" AES \"{PRIVACY}\"\nrouser ops priv\nsysName sw-test\nsysLocation lab\n"
        );
        let file = self.write("snmpd.conf", &text)?;
        let mut command = self.tool("snmpd");
        command
            .args(["-f", "-Ln", "-C", "-c", &file])
            .arg(format!("udp:127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.running
            .push(command.spawn().with_context(|| format!("snmpd {MISSING}"))?);
        Ok(())
    }

    fn stop_agent(&mut self) -> Result<()> {
        let mut agent = self.running.pop().context("no agent runs")?;
        agent.kill()?;
        agent.wait()?;
        Ok(())
    }

    fn send(&self, program: &str, args: &[&str]) -> Result<bool> {
        let output = self.tool(program).args(args).output();
        let output = output.with_context(|| format!("{program} {MISSING}"))?;
        Ok(output.status.success())
    }
}

fn escaped(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02X}")).collect()
}

async fn json(node: SocketAddr, path: &str) -> Result<Value> {
    let answer = http_get(node, path).await?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    Ok(serde_json::from_str(body)?)
}

type Labels = BTreeMap<String, String>;

fn labels(value: &Value) -> Labels {
    let pairs = value.as_object().into_iter().flatten();
    pairs
        .map(|(n, v)| (n.clone(), v.as_str().unwrap_or_default().to_owned()))
        .collect()
}

async fn query(node: SocketAddr, expr: &str) -> Result<Vec<(Labels, f64)>> {
    let answer = json(node, &format!("/api/v1/query?query={}", escaped(expr))).await?;
    ensure!(answer["status"] == "success", "{expr}: {answer}");
    let rows = answer["data"]["result"].as_array().context("no result")?;
    let row = |r: &Value| Some((labels(&r["metric"]), r["value"][1].as_str()?.parse().ok()?));
    Ok(rows.iter().filter_map(row).collect())
}

/// Waits until an expression has so many series.
async fn until(node: SocketAddr, expr: &str, count: usize) -> Result<Vec<(Labels, f64)>> {
    let started = Instant::now();
    loop {
        let last = match query(node, expr).await {
            Ok(rows) if rows.len() == count => return Ok(rows),
            last => last,
        };
        ensure!(started.elapsed() < PATIENCE, "{expr}: not {count} series but {last:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Lines with the labels of their streams; metadata among them.
async fn lines(node: SocketAddr, selector: &str) -> Result<Vec<(Labels, String)>> {
    let answer = json(
        node,
        &format!("/loki/api/v1/query_range?limit=1000&query={}", escaped(selector)),
    )
    .await?;
    let streams = answer["data"]["result"]
        .as_array()
        .with_context(|| answer.to_string())?;
    let mut all = vec![];
    for stream in streams {
        for row in stream["values"].as_array().into_iter().flatten() {
            all.push((
                labels(&stream["stream"]),
                row[1].as_str().unwrap_or_default().to_owned(),
            ));
        }
    }
    Ok(all)
}

async fn until_lines(node: SocketAddr, selector: &str, count: usize) -> Result<Vec<(Labels, String)>> {
    let started = Instant::now();
    loop {
        let last = lines(node, selector).await;
        match last {
            Ok(found) if found.len() == count => return Ok(found),
            last => ensure!(
                started.elapsed() < PATIENCE,
                "{selector}: not {count} lines but {last:?}"
            ),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The value of a counter on `/metrics`; 0 where it is not there.
async fn counter(node: SocketAddr, name: &str) -> Result<f64> {
    let page = http_get(node, "/metrics").await?;
    let found = page.lines().find_map(|l| l.strip_prefix(name)?.trim().parse().ok());
    Ok(found.unwrap_or(0.0))
}

fn post(node: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(node)?;
    write!(
        stream,
        "POST {path} HTTP/1.0\r\nHost: {node}\r\nContent-Length: 0\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Devices: the agent by both versions under two names, with a wrong community, a wrong password, and a port where nobody listens.
fn list(agent: u16, nobody: u16) -> String {
    format!(
        "defaults: {{interval: 2s, timeout: 500ms, retries: 1, community: public, labels: {{site: lab}}}}
devices:
- {{address: '127.0.0.1:{agent}', name: sw-1}}
- {{address: '127.0.0.1:{agent}', name: sw-2, version: 3, user: ops, auth_protocol: SHA-256, auth_password_file: auth, priv_protocol: AES, priv_password: {PRIVACY}}}
- {{address: '127.0.0.1:{agent}', name: sw-3, community: wrong}}
- {{address: '127.0.0.1:{agent}', name: sw-4, user: ops, auth_protocol: SHA-256, auth_password: not the one, priv_password: {PRIVACY}}}
- {{address: '127.0.0.1:{nobody}', name: sw-5}}
traps:
  senders:
  - community: traps
  - {{user: trapper, auth_protocol: SHA-256, auth_password: {AUTH}, priv_protocol: AES, priv_password: {PRIVACY}}}
"
    )
}

const RULES: &str = r#"
groups:
  - name: devices
    type: loki
    interval: 1s
    rules:
      - alert: LinkDown
        expr: sum by (instance, ifIndex) (count_over_time({log_source="snmptrap", trap="linkDown"}[5m])) > 0
        labels: { severity: error }
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Debian's snmp and snmpd: `cargo xtask prove clients` runs it"]
async fn a_real_agent_is_polled_and_real_traps_are_taken() -> Result<()> {
    let mut scene = Scene::new("snmp-files")?;
    let [agent, nobody, traps] = free_addresses(3)?[..] else {
        unreachable!()
    };
    scene.agent(agent.port())?;
    scene.write("auth", &format!("{AUTH}\n"))?;
    let text = list(agent.port(), nobody.port());
    let file = scene.write("devices.yml", &text)?;
    let rules = scene.write("rules.yml", RULES)?;

    let checked = Command::new(PROGRAM)
        .args(["snmp", "check", &file, "-o", "json"])
        .output()?;
    let shown = String::from_utf8_lossy(&checked.stdout).into_owned();
    let checked: Value = serde_json::from_str(&shown)?;
    ensure!(
        checked["devices"][1]["version"] == "3" && checked["trapUsers"] == 1,
        "{checked}"
    );
    ensure!(
        !shown.contains("public") && !shown.contains(PRIVACY),
        "no secret is shown: {shown}"
    );

    let listen = traps.to_string();
    let mut cluster = Cluster::start(
        "snmp",
        PROGRAM,
        1,
        &["--snmp-config", &file, "--snmp-trap-listen", &listen, "--rules", &rules],
    )?;
    cluster.wait_ready().await?;
    let node = cluster.addresses()[0];

    // Who answers is up, and who does not is down; why not, the targets say.
    let up = until(node, "snmp_up{site=\"lab\"}", 5).await?;
    let up: BTreeMap<_, _> = up.into_iter().map(|(l, v)| (l["instance"].clone(), v)).collect();
    println!("snmp_up: {up:?}");
    ensure!(
        up.values().copied().collect::<Vec<_>>() == [1.0, 1.0, 0.0, 0.0, 0.0],
        "{up:?}"
    );
    until(node, "count_over_time(snmp_up[1m]) >= 3", 5).await?;
    let targets = json(node, "/api/v1/targets").await?;
    let active = targets["data"]["activeTargets"].as_array().context("no targets")?;
    let errors: BTreeMap<_, _> = active
        .iter()
        .map(|t| (t["labels"]["instance"].to_string(), t["lastError"].to_string()))
        .collect();
    println!("{errors:#?}");
    ensure!(
        errors["\"sw-3\""].contains("no answer within 500ms, asked 2 times"),
        "{errors:?}"
    );
    ensure!(
        errors["\"sw-4\""].contains("password or the hash of user"),
        "{errors:?}"
    );
    ensure!(errors["\"sw-5\""].contains("nobody listens at"), "{errors:?}");

    // Both versions say the same, and it is what the agent says to its own tools.
    let lo = until(node, "ifHCInOctets{ifName=\"lo\",job=\"snmp\"} > 0", 2).await?;
    let index = &lo[0].0["ifIndex"];
    let told = scene
        .tool("snmpget")
        .args(["-v2c", "-c", "public", "-Oqv", &agent.to_string()])
        .arg(format!("1.3.6.1.2.1.31.1.1.1.6.{index}"))
        .output()?;
    let told: f64 = String::from_utf8_lossy(&told.stdout).trim().parse()?;
    println!("lo: {} and {} polled, {told} told by snmpget", lo[0].1, lo[1].1);
    ensure!(lo.iter().all(|(_, octets)| *octets <= told), "{lo:?}, {told}");
    for metric in [
        "sysUpTime",
        "ifHCOutOctets{ifName=\"lo\"}",
        "ifOperStatus{ifName=\"lo\"} == 1",
        "ifAdminStatus{ifName=\"lo\"} == 1",
        "ifHighSpeed{ifName=\"lo\"}",
        "ifInErrors{ifName=\"lo\"}",
        "ifOutDiscards{ifName=\"lo\"}",
        "hrStorageSize{hrStorageDescr=\"Physical memory\"} > 0",
        "hrStorageUsed{hrStorageDescr=\"Physical memory\"} > 0",
        "laLoadInt{laNames=\"Load-1\"}",
        "memTotalReal > 0",
        "snmp_device_info{sysName=\"sw-test\",sysLocation=\"lab\"}",
        "snmp_interface_info{ifName=\"lo\",ifType=\"24\"}",
        "snmp_poll_duration_seconds > 0 and snmp_up == 1",
    ] {
        until(node, metric, 2).await.context("of the panels")?;
    }
    until(node, "rate(sysUpTime[30s]) > 50", 2).await?;
    let samples = query(node, "snmp_poll_samples{instance=\"sw-2\"}").await?[0].1;
    println!("a poll of snmpd has {samples} samples");

    // An agent that begins anew has a new clock, which it tells with a signature; until then it is away, and its series end.
    scene.stop_agent()?;
    until(node, "snmp_up == 1", 0).await?;
    until(node, "ifHCInOctets", 0).await?;
    scene.agent(agent.port())?;
    until(node, "snmp_up == 1", 2).await?;

    // A broken list changes nothing; a shorter one ends the series of who is gone.
    scene.write(
        "devices.yml",
        &text.replace("name: sw-2, version: 3", "name: sw-2, version: 4"),
    )?;
    let said = post(node, "/-/reload")?;
    ensure!(
        said.contains(" 400 ") && said.contains("devices.yml:4") && said.contains("write 2c or 3"),
        "{said}"
    );
    until(node, "snmp_up", 5).await?;
    let shorter: Vec<_> = text.lines().filter(|l| !l.contains("sw-2")).collect();
    scene.write("devices.yml", &shorter.join("\n"))?;
    let said = post(node, "/-/reload")?;
    ensure!(said.contains(" 200 "), "{said}");
    until(node, "ifHCInOctets{ifName=\"lo\"}", 1).await?;
    until(node, "snmp_up", 4).await?;

    send_traps(&scene, node, &listen).await
}

async fn until_alert(node: SocketAddr, name: &str) -> Result<Value> {
    for _ in 0..150 {
        let told = json(node, "/api/v1/alerts").await?;
        let alerts = told["data"]["alerts"].as_array().context("no list of alerts")?;
        let mut firing = alerts.iter().filter(|a| a["state"] == "firing");
        if let Some(alert) = firing.find(|a| a["labels"]["alertname"] == name) {
            return Ok(alert.clone());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    bail!("{name} does not fire: {}", json(node, "/api/v1/rules").await?)
}

async fn send_traps(scene: &Scene, node: SocketAddr, listen: &str) -> Result<()> {
    let link = [
        "",
        "1.3.6.1.6.3.1.1.5.3",
        "1.3.6.1.2.1.2.2.1.1.4",
        "i",
        "4",
        "1.3.6.1.2.1.31.1.1.1.1.4",
        "s",
        "eth0",
    ];
    let v2c = |community: &'static str| ["-v2c", "-c", community, "-t", "2", "-r", "1", listen];
    let v3 = [
        "-v3", "-l", "authPriv", "-u", "trapper", "-a", "SHA-256", "-A", AUTH, "-x", "AES", "-X", PRIVACY, "-t", "2",
        "-r", "1",
    ];
    // A trap is of its sender's engine; an inform is of the listener's, which is found first.
    let of_engine = ["-e", "0x8000000001020304"];
    ensure!(scene.send("snmptrap", &[&v2c("traps")[..], &link].concat())?);
    let told = until_lines(node, "{log_source=\"snmptrap\",ifIndex=\"4\"}", 1).await?;
    println!("{told:?}");
    ensure!(
        told[0].1 == "trap 1.3.6.1.6.3.1.1.5.3 linkDown ifIndex=4 ifName=eth0",
        "{told:?}"
    );
    // The first of the devices at that address.
    for (name, value) in [
        ("instance", "sw-1"),
        ("trap", "linkDown"),
        ("site", "lab"),
        ("snmp_peer", "127.0.0.1"),
        ("ifName", "eth0"),
        ("snmp_version", "2c"),
    ] {
        ensure!(
            told[0].0.get(name).map(String::as_str) == Some(value),
            "{name}: {told:?}"
        );
    }

    // And somebody is told of it: the alert is that of the interface.
    let alert = until_alert(node, "LinkDown").await?;
    println!("{alert}");
    ensure!(
        alert["labels"]["instance"] == "sw-1" && alert["labels"]["ifIndex"] == "4",
        "{alert}"
    );

    let cold = [
        "",
        "1.3.6.1.6.3.1.1.5.1",
        "1.3.6.1.2.1.1.6.0",
        "s",
        "call 010-1234-5678",
    ];
    ensure!(scene.send("snmptrap", &[&of_engine[..], &v3, &[listen], &cold].concat())?);
    let told = until_lines(node, "{trap=\"coldStart\",snmp_device=\"sw-1\"}", 1).await?;
    println!("{told:?}");
    ensure!(told[0].1.contains("call 010-****-5678"), "masked: {told:?}");
    ensure!(
        told[0].0.get("snmp_user").map(String::as_str) == Some("trapper"),
        "{told:?}"
    );

    // Informs: their senders wait for the answer, and fail without.
    let warm = ["", "1.3.6.1.6.3.1.1.5.2"];
    ensure!(
        scene.send("snmpinform", &[&v2c("traps")[..], &warm].concat())?,
        "the inform is answered"
    );
    ensure!(
        scene.send("snmpinform", &[&v3[..], &[listen], &warm].concat())?,
        "the inform of version 3 is answered"
    );
    let told = until_lines(node, "{trap=\"warmStart\"}", 2).await?;
    let versions: BTreeSet<_> = told
        .iter()
        .filter_map(|(l, _)| l.get("snmp_version").cloned())
        .collect();
    ensure!(
        versions == BTreeSet::from(["2c".to_owned(), "3".to_owned()]),
        "{told:?}"
    );

    // Who may not send is refused and counted, and an inform of such a one is not answered.
    ensure!(scene.send("snmptrap", &[&v2c("public")[..], &link].concat())?);
    ensure!(
        !scene.send("snmpinform", &[&v2c("public")[..], &link].concat())?,
        "nobody answers"
    );
    let wrong = v3.map(|a| if a == AUTH { "something else" } else { a });
    ensure!(scene.send("snmptrap", &[&of_engine[..], &wrong, &[listen], &cold].concat())?);
    let stranger = v3.map(|a| if a == "trapper" { "stranger" } else { a });
    ensure!(scene.send("snmptrap", &[&of_engine[..], &stranger, &[listen], &cold].concat())?);
    ensure!(scene.send(
        "snmptrap",
        &[
            "-v1",
            "-c",
            "traps",
            listen,
            "1.3.6.1.4.1.99",
            "127.0.0.1",
            "3",
            "0",
            ""
        ]
    )?);
    let started = Instant::now();
    loop {
        let mut counts = vec![];
        for reason in ["community", "signature", "user", "version"] {
            counts.push(
                counter(
                    node,
                    &format!("hindcast_snmp_traps_refused_total{{reason=\"{reason}\"}}"),
                )
                .await?,
            );
        }
        // The inform was sent twice.
        if counts == [3.0, 1.0, 1.0, 1.0] {
            break;
        }
        ensure!(started.elapsed() < PATIENCE, "{counts:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let all = lines(node, "{log_source=\"snmptrap\"}").await?;
    ensure!(all.len() == 4, "{all:?}");
    ensure!(counter(node, "hindcast_snmp_traps_total{kind=\"trap\"}").await? == 2.0);
    ensure!(counter(node, "hindcast_snmp_traps_total{kind=\"inform\"}").await? == 2.0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Debian's snmp and snmpd: `cargo xtask prove clients` runs it"]
async fn nodes_share_devices_and_take_over_those_of_one_that_died() -> Result<()> {
    let mut scene = Scene::new("snmp-share-files")?;
    let agent = free_addresses(1)?[0];
    scene.agent(agent.port())?;
    let devices: Vec<_> = (1..=9)
        .map(|n| format!("- {{address: '{agent}', name: sw-{n}}}\n"))
        .collect();
    let text = format!(
        "defaults: {{interval: 2s, community: public}}\ndevices:\n{}",
        devices.concat()
    );
    let file = scene.write("devices.yml", &text)?;
    let mut cluster = Cluster::start("snmp-share", PROGRAM, 3, &["--snmp-config", &file])?;
    cluster.wait_ready().await?;
    let nodes = cluster.addresses();
    until(nodes[0], "snmp_up == 1", 9).await?;
    // Once they know of each other, each device is polled by one node.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let polls = async |nodes: &[SocketAddr]| -> Result<Vec<f64>> {
        let mut all = vec![];
        for node in nodes {
            all.push(counter(*node, "hindcast_snmp_polls_total").await?);
        }
        Ok(all)
    };
    let before = polls(&nodes).await?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let after = polls(&nodes).await?;
    let made: Vec<_> = after.iter().zip(&before).map(|(now, then)| now - then).collect();
    let sum: f64 = made.iter().sum();
    println!("polls in ten seconds, of nine devices every two seconds, by node: {made:?}, together {sum}");
    ensure!(
        (27.0..=54.0).contains(&sum) && made.iter().all(|m| *m < 54.0),
        "{made:?}"
    );
    let targets = json(nodes[1], "/api/v1/targets").await?;
    let active = targets["data"]["activeTargets"].as_array().context("no targets")?;
    let whose: BTreeSet<_> = active.iter().filter_map(|t| t["node"].as_u64()).collect();
    println!("devices are those of nodes {whose:?}");
    ensure!(active.len() == 9 && whose.len() > 1, "{targets}");

    let lost = *whose.last().context("no node")?;
    cluster.kill(usize::try_from(lost)? - 1);
    let died = Instant::now();
    let survivor = *nodes
        .iter()
        .find(|n| **n != nodes[lost as usize - 1])
        .context("no node")?;
    until(survivor, "timestamp(snmp_up) > time() - 4 and snmp_up == 1", 9).await?;
    tokio::time::sleep(Duration::from_secs(8)).await;
    until(survivor, "timestamp(snmp_up) > time() - 4 and snmp_up == 1", 9).await?;
    println!(
        "all devices are polled again {:?} after node {lost} died",
        died.elapsed()
    );
    Ok(())
}

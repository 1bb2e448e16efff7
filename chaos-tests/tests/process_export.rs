//! `hindcast export` of a live node: read back with the parquet crate in every run, and with DuckDB when it is there.

#![allow(clippy::disallowed_methods, reason = "a test on real processes runs in real time")]

use anyhow::{Context, Result, bail, ensure};
use hindcast_chaos::process::{Cluster, channel};
use hindcast_chaos::workload::{label, now_ms};
use hindcast_proto::v1;
use hindcast_proto::v1::ingest_client::IngestClient;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_hindcast-under-test");
const DAY_MS: i64 = 86_400_000;
/// Signalling and quiet NaNs with payloads (the staleness marker among them), an infinity, a subnormal, a number.
/// -0.0 is left to the tests of each step: this client's protobuf encoder drops its sign before it is sent.
const BITS: [u64; 8] = [
    0,
    // -0: protobuf must not leave it out as a zero.
    0x8000_0000_0000_0000,
    0x7ff0_0000_0000_0002,
    0x7ff8_0000_0000_0001,
    0xfff8_dead_beef_0000,
    0xfff0_0000_0000_0000,
    1,
    0x4009_21fb_5444_2d18,
];

type Labels = BTreeMap<String, String>;

/// (metric, labels, time in ns, bits of the value), sorted.
type Samples = Vec<(String, Labels, i64, u64)>;
/// (labels, time in ns, line, metadata), sorted.
type Lines = Vec<(Labels, i64, String, Labels)>;

/// Writes samples and lines of a host, of a service and of nobody, over three days; what was written.
async fn write(address: SocketAddr) -> Result<(Samples, Lines)> {
    let mut ingest = IngestClient::new(channel(address, Duration::from_secs(20)));
    let (mut samples, mut lines): (Samples, Lines) = (vec![], vec![]);
    let first_ms = now_ms() - 2 * DAY_MS - 3_600_000;
    for (seq, resource) in [
        vec![label("host.name", "web-1")],
        vec![label("service.name", "shop")],
        vec![],
    ]
    .into_iter()
    .enumerate()
    {
        let own: Labels = [("src", seq.to_string()), ("zone", "값 \"1\", ü".to_owned())]
            .map(|(n, v)| (n.to_owned(), v))
            .into();
        let mut points = vec![];
        let mut entries = vec![];
        for i in 0..700i64 {
            let at_ms = first_ms + i * (2 * DAY_MS / 700);
            let bits = BITS[i as usize % BITS.len()];
            points.push(v1::Point {
                at_ms,
                value: Some(f64::from_bits(bits)),
            });
            samples.push(("export_bits".to_owned(), own.clone(), at_ms * 1_000_000, bits));
            let at_ns = at_ms * 1_000_000 + 123_456 + i;
            let line = format!("{i} 주문 \"{i}\" failed\tafter {} ms", i * 7);
            let metadata: Vec<v1::Label> = (i % 3 == 0).then(|| label("trace_id", i)).into_iter().collect();
            let kept: Labels = metadata.iter().map(|l| (l.name.clone(), l.value.clone())).collect();
            lines.push((own.clone(), at_ns, line.clone(), kept));
            entries.push(v1::Line { at_ns, line, metadata });
        }
        let wire: Vec<v1::Label> = own.iter().map(|(n, v)| label(n, v)).collect();
        let request = v1::WriteRequest {
            writer: "export".into(),
            seq: seq as u64 + 1,
            resource,
            series: vec![v1::Series {
                labels: [vec![label("__name__", "export_bits")], wire.clone()].concat(),
                points,
            }],
            streams: vec![v1::Stream {
                labels: wire,
                lines: entries,
            }],
            ..v1::WriteRequest::default()
        };
        let answer = ingest.write(request).await?.into_inner();
        ensure!(answer.rejected.is_empty(), "{:?}", answer.rejected);
    }
    samples.sort();
    lines.sort();
    Ok((samples, lines))
}

fn export(address: SocketAddr, out: &Path, more: &[&str]) -> Result<Output> {
    let mut command = Command::new(PROGRAM);
    command
        .args(["export", "--format", "parquet", "--from", "now-3d", "-o", "json"])
        .args(["--match", "{src=~\".+\"}", "--out"])
        .arg(out)
        .args(["--endpoint", &format!("http://{address}")])
        .args(more);
    command.output().context("the command cannot be started")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn field<'a>(row: &'a Row, name: &str) -> Result<&'a Field> {
    let found = row.get_column_iter().find(|(n, _)| *n == name);
    Ok(found.with_context(|| format!("no column {name}"))?.1)
}

fn text(field: &Field) -> Result<String> {
    match field {
        Field::Str(s) => Ok(s.clone()),
        other => bail!("{other:?} is no text"),
    }
}

fn map(field: &Field) -> Result<Labels> {
    let Field::MapInternal(map) = field else {
        bail!("{field:?} is no map")
    };
    map.entries().iter().map(|(k, v)| Ok((text(k)?, text(v)?))).collect()
}

fn time(field: &Field) -> Result<i64> {
    match field {
        Field::Long(t) => Ok(*t),
        other => bail!("{other:?} is no time in nanoseconds"),
    }
}

/// Labels that the write gave; the server may have added those of the resource.
fn own(mut labels: Labels) -> Labels {
    labels.retain(|n, _| n == "src" || n == "zone");
    labels
}

/// What the files hold, read by the crate that also wrote them.
fn read_back(out: &Path, parts: &[String]) -> Result<(Samples, Lines)> {
    let (mut samples, mut lines) = (vec![], vec![]);
    for part in parts {
        let reader = SerializedFileReader::new(std::fs::File::open(out.join(part))?)?;
        let day = part
            .split("day=")
            .nth(1)
            .and_then(|p| p.split('/').next())
            .context("no day")?;
        for row in reader.get_row_iter(None)? {
            let row = row?;
            let at = time(field(&row, "ts")?)?;
            ensure!(day == day_of(at), "{part} holds a row of {at}");
            let labels = own(map(field(&row, "labels")?)?);
            let has_owner = !matches!(field(&row, "owner")?, Field::Null);
            ensure!(has_owner != part.contains("domain=none"), "{part}: {row}");
            if part.starts_with("kind=metrics/") {
                let Field::Double(value) = field(&row, "value")? else {
                    bail!("no double")
                };
                ensure!(
                    *field(&row, "src")? == Field::Str(labels["src"].clone()),
                    "the promoted column"
                );
                samples.push((text(field(&row, "metric")?)?, labels, at, value.to_bits()));
            } else {
                lines.push((labels, at, text(field(&row, "line")?)?, map(field(&row, "metadata")?)?));
            }
        }
    }
    samples.sort();
    lines.sort();
    Ok((samples, lines))
}

/// Equal, or the first place where they are not.
fn same<T: PartialEq + std::fmt::Debug>(found: &[T], written: &[T]) -> Result<()> {
    let differ = found.iter().zip(written).find(|(f, w)| f != w);
    ensure!(differ.is_none(), "found and written: {differ:#?}");
    ensure!(
        found.len() == written.len(),
        "{} found, {} written",
        found.len(),
        written.len()
    );
    Ok(())
}

/// Days since 1970 as a date (the calendar of Rome, reckoned from March).
fn day_of(at_ns: i64) -> String {
    let z = at_ns.div_euclid(DAY_MS * 1_000_000) + 719_468;
    let era = z.div_euclid(146_097);
    let of_era = z.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// A node with data, and an export of all of it.
struct Exported {
    cluster: Cluster,
    out: PathBuf,
    report: serde_json::Value,
    written: (Samples, Lines),
}

async fn exported(name: &str) -> Result<Exported> {
    let mut cluster = Cluster::start(name, PROGRAM, 1, &["--shards", "2"])?;
    cluster.wait_ready().await?;
    let address = cluster.nodes[0].client;
    let written = write(address).await?;
    let out = cluster.data_dir(0).join("exported");
    let done = export(address, &out, &["--promote", "src"])?;
    ensure!(done.status.code() == Some(0), "{}", said(&done));
    let report = serde_json::from_slice(&done.stdout)?;
    Ok(Exported {
        cluster,
        out,
        report,
        written,
    })
}

fn parts(report: &serde_json::Value) -> Result<Vec<String>> {
    let parts = report["parts"].as_array().context("no parts")?;
    let path = |p: &serde_json::Value| Ok(p["path"].as_str().context("no path")?.to_owned());
    parts.iter().map(path).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_bit_that_was_written_is_in_the_export() {
    run().await.unwrap();
}

async fn run() -> Result<()> {
    let e = exported("export").await?;
    let address = e.cluster.nodes[0].client;
    let parts = parts(&e.report)?;
    // Three days, and a host, a service and nobody: nine files a kind.
    ensure!(parts.len() == 18, "{parts:?}");
    for domain in ["sms", "apm", "none"] {
        ensure!(
            parts.iter().any(|p| p.contains(&format!("domain={domain}/"))),
            "{parts:?}"
        );
    }
    let (samples, lines) = read_back(&e.out, &parts)?;
    ensure!(
        e.report["samples"] == samples.len() && e.report["lines"] == lines.len(),
        "{}",
        e.report
    );
    same(&samples, &e.written.0)?;
    same(&lines, &e.written.1)?;

    let full = export(address, &e.out, &[])?;
    ensure!(
        full.status.code() == Some(2) && said(&full).contains("--overwrite"),
        "{}",
        said(&full)
    );
    let again = export(
        address,
        &e.out,
        &["--overwrite", "--kind", "logs", "--timestamps", "us"],
    )?;
    ensure!(again.status.code() == Some(0), "{}", said(&again));
    ensure!(
        !e.out.join("kind=metrics").exists(),
        "an export takes the whole place of the one before"
    );
    let other = e.out.with_extension("other");
    let wrong = export(address, &other, &["--kind", "metrics", "--promote", "value"])?;
    ensure!(wrong.status.code() == Some(2) && !other.exists(), "{}", said(&wrong));
    let nobody = export(free_address()?, &other, &[])?;
    ensure!(nobody.status.code() == Some(3) && !other.exists(), "{}", said(&nobody));
    Ok(())
}

fn free_address() -> Result<SocketAddr> {
    Ok(hindcast_chaos::process::free_addresses(1)?[0])
}

/// Prints each sample, then each line, as JSON; sizes of days from the folders' names.
const DUCKDB: &str = r#"
import duckdb, json, struct, sys
db = duckdb.connect()
db.execute("SET TimeZone = 'UTC'")
root = sys.argv[1]
print(json.dumps({"duckdb": duckdb.__version__}))
metrics = f"read_parquet('{root}/kind=metrics/**/*.parquet', hive_partitioning = true)"
logs = f"read_parquet('{root}/kind=logs/**/*.parquet', hive_partitioning = true)"
print(json.dumps({"types": {r[0]: r[1] for r in db.execute(f"DESCRIBE SELECT * FROM {metrics}").fetchall()}}))
for metric, src, zone, ts, value, domain, day, same in db.execute(
        f"SELECT metric, labels['src'], labels['zone'], epoch_ns(ts), value, domain, day::VARCHAR, "
        f"ts::DATE = day::DATE AND src = labels['src'] FROM {metrics}").fetchall():
    print(json.dumps(["sample", metric, src, zone, ts, struct.pack(">d", value).hex(), domain, same]))
for src, zone, ts, line, trace, domain, same in db.execute(
        f"SELECT labels['src'], labels['zone'], epoch_ns(ts), line, metadata['trace_id'], domain, "
        f"ts::DATE = day::DATE FROM {logs}").fetchall():
    print(json.dumps(["line", src, zone, ts, line, trace, domain, same]))
print(json.dumps({"by_day": [[str(d), n] for d, n in db.execute(
    f"SELECT day, count(*) FROM {metrics} WHERE domain = 'sms' GROUP BY day ORDER BY day").fetchall()]}))
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs python3 with duckdb (pip install duckdb); PYTHON names it: `cargo xtask prove export` runs it"]
async fn duckdb_reads_every_bit_of_the_export() {
    duckdb().await.unwrap();
}

async fn duckdb() -> Result<()> {
    let e = exported("duckdb").await?;
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let asked = Command::new(&python)
        .args(["-c", DUCKDB])
        .arg(&e.out)
        .output()
        .with_context(|| format!("{python} cannot be started"))?;
    ensure!(
        asked.status.success(),
        "{python} with duckdb (pip install duckdb): {}",
        said(&asked)
    );
    let (mut samples, mut lines): (Samples, Lines) = (vec![], vec![]);
    for row in String::from_utf8(asked.stdout)?.lines() {
        let row: serde_json::Value = serde_json::from_str(row)?;
        if !row.is_array() {
            println!("{row}");
            continue;
        }
        let word = |i: usize| {
            row[i]
                .as_str()
                .map(str::to_owned)
                .with_context(|| format!("{i} of {row}"))
        };
        let labels = |src: usize| -> Result<Labels> {
            Ok([("src".to_owned(), word(src)?), ("zone".to_owned(), word(src + 1)?)].into())
        };
        ensure!(row[7] == true, "the day of the folder, or the promoted column: {row}");
        let at = row[if row[0] == "sample" { 4 } else { 3 }]
            .as_i64()
            .context("no time")?;
        if row[0] == "sample" {
            samples.push((word(1)?, labels(2)?, at, u64::from_str_radix(&word(5)?, 16)?));
        } else {
            let trace = row[5].as_str().map(|t| ("trace_id".to_owned(), t.to_owned()));
            lines.push((labels(1)?, at, word(4)?, trace.into_iter().collect()));
        }
    }
    samples.sort();
    lines.sort();
    same(&samples, &e.written.0)?;
    same(&lines, &e.written.1)?;
    println!(
        "duckdb: {} samples and {} lines, each bit as it was written",
        samples.len(),
        lines.len()
    );
    Ok(())
}

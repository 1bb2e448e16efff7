//! `hindcast kafka check` and `hindcast kafka status`.

use super::masking::ask;
use super::{Client, Done, Failure, Output};
use hindcast_kafka::{Source, Topic};
use hindcast_node::io::servers::kafka::load;
use hyper::Method;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  hindcast kafka check kafka.yml
  hindcast kafka status
      which node consumes which partition, and how far behind it is")]
pub struct KafkaArgs {
    #[command(subcommand)]
    action: KafkaAction,
}

#[derive(Debug, clap::Subcommand)]
enum KafkaAction {
    /// Shows what a file would consume; reads its passwords and certificates, shows none, and asks no broker.
    Check {
        /// The file that says what to consume.
        file: PathBuf,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Shows what the nodes of a cluster consume.
    Status {
        #[command(flatten)]
        client: Client,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

fn brokers(source: &Source) -> Vec<String> {
    let one = |(host, port): &(String, u16)| match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    };
    source.brokers.iter().map(one).collect()
}

fn topic_json(topic: &Topic) -> Value {
    json!({"topic": topic.name, "format": topic.format(), "tenant": topic.tenant.as_str()})
}

fn source_json(source: &Source) -> Value {
    json!({
        "name": source.name,
        "brokers": brokers(source),
        "group": source.group,
        "start": source.start.as_str(),
        "sessionTimeout": source.session.to_string(),
        "tls": source.tls.is_some(),
        "sasl": source.sasl.as_ref().map(|s| s.mechanism.as_str()),
        "topics": source.topics.iter().map(topic_json).collect::<Vec<_>>(),
    })
}

pub async fn run(args: KafkaArgs) -> Done {
    match args.action {
        KafkaAction::Check { file, output } => {
            let loaded = load(&file).map_err(|e| Failure::no(e.to_string()))?;
            let sources = &loaded.config.sources;
            match output {
                Output::Json => {
                    let sources: Vec<_> = sources.iter().map(source_json).collect();
                    println!("{}", json!({ "sources": sources }));
                }
                Output::Table => sources.iter().for_each(|s| print!("{}", shown(s))),
            }
        }
        KafkaAction::Status { client, output } => {
            let told = ask(&client, Method::GET, "/api/hindcast/v1/kafka", String::new()).await?;
            match output {
                Output::Json => println!("{told}"),
                Output::Table => print!("{}", table(&told)),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A source for people.
fn shown(source: &Source) -> String {
    let tls = if source.tls.is_some() { ", TLS" } else { "" };
    let sasl = source
        .sasl
        .as_ref()
        .map_or(String::new(), |s| format!(", {}", s.mechanism.as_str()));
    let mut out = format!(
        "{}: group {} at {}{tls}{sasl}, from the {} on where the group knows nothing\n",
        source.name,
        source.group,
        brokers(source).join(", "),
        source.start.as_str()
    );
    for topic in &source.topics {
        out += &format!("  {} as {} of tenant {}\n", topic.name, topic.format(), topic.tenant);
    }
    out
}

/// What nodes consume, for people.
fn table(told: &Value) -> String {
    let rows = |list: &Value| list.as_array().cloned().unwrap_or_default();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let (sources, partitions) = (rows(&told["sources"]), rows(&told["partitions"]));
    if sources.is_empty() {
        return "nothing is consumed: no node was started with --kafka\n".to_owned();
    }
    let mut out = String::new();
    for s in sources {
        let error = text(&s["error"]);
        let why = if error.is_empty() { error } else { format!(": {error}") };
        out += &format!(
            "{} on node {}: {}{why}\n",
            text(&s["source"]),
            s["node"],
            text(&s["state"])
        );
    }
    out += "\nnode     offset        lag  partition\n";
    for p in partitions {
        let (offset, lag) = (p["offset"].as_i64().unwrap_or(-1), p["lag"].as_u64().unwrap_or(0));
        let name = format!("{}/{}", text(&p["topic"]), p["partition"]);
        out += &format!(
            "{:>4} {offset:>10} {lag:>10}  {name} of {}\n",
            p["node"].to_string(),
            text(&p["source"])
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn what_is_consumed_is_shown_for_people() {
        let told = json!({
            "sources": [
                {"source": "plant", "node": 1, "group": "g", "state": "consuming", "error": ""},
                {"source": "plant", "node": 2, "group": "g", "state": "failing", "error": "broker k:9092: it cannot be reached"},
            ],
            "partitions": [{"source": "plant", "topic": "logs", "partition": 0, "node": 1, "offset": 120, "end": 125, "lag": 5}],
        });
        expect![[r#"
            plant on node 1: consuming
            plant on node 2: failing: broker k:9092: it cannot be reached

            node     offset        lag  partition
               1        120          5  logs/0 of plant
        "#]]
        .assert_eq(&table(&told));
        assert!(table(&json!({"sources": []})).contains("--kafka"));
    }
}

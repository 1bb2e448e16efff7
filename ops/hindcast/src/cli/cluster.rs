//! `hindcast cluster status`.

use super::{Client, Done, Output};
use hindcast_proto::v1;
use hindcast_proto::v1::cluster_client::ClusterClient;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  hindcast cluster status\n  hindcast cluster status --endpoint http://127.0.0.1:7410 -o json"
)]
pub struct ClusterArgs {
    #[command(subcommand)]
    action: ClusterAction,
}

#[derive(Debug, clap::Subcommand)]
enum ClusterAction {
    /// Nodes, Raft groups, who leads, who is behind.
    Status {
        #[command(flatten)]
        client: Client,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

pub async fn run(args: ClusterArgs) -> Done {
    let ClusterAction::Status { client, output } = args.action;
    let mut cluster = ClusterClient::new(client.connect().await?);
    let status = cluster.status(v1::StatusRequest {}).await?.into_inner();
    match output {
        Output::Json => println!("{}", json(&status)),
        Output::Table => print!("{}", table(&status)),
    }
    // The answer is no when somebody would find the cluster not well.
    let well = status.ready && status.nodes.iter().all(|n| n.reachable);
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// The status as programs get it, here and from `/api/hindcast/v1/cluster`.
pub(crate) fn json(s: &v1::StatusResponse) -> serde_json::Value {
    let node = |n: &v1::NodeStatus| serde_json::json!({"id": n.id, "peer_address": n.peer_address, "client_address": n.client_address, "reachable": n.reachable});
    let group = |g: &v1::GroupStatus| {
        serde_json::json!({
            "group": g.group, "leader": g.leader, "term": g.term, "commit": g.commit, "applied": g.applied,
            "durable": g.durable, "voters": g.voters, "digest": g.digest, "samples": g.samples, "lines": g.lines,
        })
    };
    serde_json::json!({
        "node": s.node, "cluster": s.cluster, "ready": s.ready,
        "nodes": s.nodes.iter().map(node).collect::<Vec<_>>(),
        "groups": s.groups.iter().map(group).collect::<Vec<_>>(),
    })
}

fn table(s: &v1::StatusResponse) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    let _ = writeln!(
        out,
        "cluster {}, seen from node {}: {}",
        s.cluster,
        s.node,
        if s.ready { "ready" } else { "NOT READY" }
    );
    let _ = writeln!(out, "\n{:<6}{:<24}{:<24}", "NODE", "CLIENTS", "PEERS");
    for n in &s.nodes {
        let client = if n.reachable {
            n.client_address.as_str()
        } else {
            "not reachable"
        };
        let peer = if n.peer_address.is_empty() {
            "alone"
        } else {
            &n.peer_address
        };
        let _ = writeln!(out, "{:<6}{:<24}{:<24}", n.id, client, peer);
    }
    let _ = writeln!(
        out,
        "\n{:<8}{:>7}{:>7}{:>12}{:>12}{:>12}{:>14}{:>12}",
        "GROUP", "LEADER", "TERM", "COMMIT", "APPLIED", "ON DISK", "SAMPLES", "LINES"
    );
    for g in &s.groups {
        let name = if g.group == 0 {
            "meta".to_owned()
        } else {
            format!("shard {}", g.group)
        };
        let leader = if g.leader == 0 {
            "none".to_owned()
        } else {
            g.leader.to_string()
        };
        let _ = writeln!(
            out,
            "{name:<8}{leader:>7}{:>7}{:>12}{:>12}{:>12}{:>14}{:>12}",
            g.term, g.commit, g.applied, g.durable, g.samples, g.lines
        );
    }
    out
}

//! `hindcast cluster`: how the cluster fares, and who belongs to it.

use super::{Channel, Client, Done, Failure, Output};
use hindcast_proto::v1;
use hindcast_proto::v1::cluster_client::ClusterClient;
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  hindcast cluster status
  hindcast cluster status --endpoint http://127.0.0.1:7410 -o json
  hindcast cluster add 4                 node 4, started with --join-cluster, is to count
  hindcast cluster move 3 4              node 4 takes the places of node 3, which may be dead
  hindcast cluster remove 3              node 3 hands over what it leads, then counts nowhere
  hindcast cluster transfer meta 2       node 2 is to lead the meta group
  hindcast cluster transfer 1 --spread   the leader of shard 1 is nobody's wish any more")]
pub struct ClusterArgs {
    #[command(subcommand)]
    action: ClusterAction,
}

/// A wish is written down in the cluster, which goes on with it whether anybody waits or not.
#[derive(Clone, Debug, clap::Args)]
struct Waiting {
    #[command(flatten)]
    client: Client,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Return once the wish is written down.
    #[arg(long)]
    no_wait: bool,
    /// Give up waiting after so many seconds; the cluster goes on.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
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
    /// Makes a waiting node count, and gives it its share of the shards: learner, caught up, voter, in one after the other.
    #[command(after_help = "Example:\n  hindcast cluster add 4 --endpoint http://127.0.0.1:7400")]
    Add {
        /// Its number, as `hindcast cluster status` shows it.
        node: u64,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Takes a node out for good: what it leads goes to others, then it counts nowhere. Its number is not given again.
    #[command(after_help = "Example:\n  hindcast cluster remove 3 --endpoint http://127.0.0.1:7400")]
    Remove {
        /// Its number, as `hindcast cluster status` shows it.
        node: u64,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Puts one node in the places of another, in one change per group. The old one may be dead.
    #[command(after_help = "Example:\n  hindcast cluster move 3 4 --endpoint http://127.0.0.1:7400")]
    Move {
        /// The number of the node that goes.
        from: u64,
        /// The number of the node that takes its places.
        to: u64,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Makes a node lead a group (`meta`, or a shard's number) from now on.
    #[command(after_help = "Examples:\n  hindcast cluster transfer meta 2\n  hindcast cluster transfer 1 --spread")]
    Transfer {
        /// `meta`, or a shard's number.
        group: String,
        /// The number of the node that is to lead.
        #[arg(required_unless_present = "spread")]
        node: Option<u64>,
        /// Nobody in particular: leaders are spread over the nodes again.
        #[arg(long, conflicts_with = "node")]
        spread: bool,
        #[command(flatten)]
        waiting: Waiting,
    },
}

pub async fn run(args: ClusterArgs) -> Done {
    match args.action {
        ClusterAction::Status { client, output } => status(client, output).await,
        ClusterAction::Add { node, waiting } => {
            let mut cluster = connect(&waiting).await?;
            cluster.add_node(v1::AddNodeRequest { node }).await?;
            wait(
                cluster,
                &waiting,
                &format!("node {node} counts, and has its share of the shards"),
                |s| added(s, node),
            )
            .await
        }
        ClusterAction::Remove { node, waiting } => {
            let mut cluster = connect(&waiting).await?;
            cluster.remove_node(v1::RemoveNodeRequest { node }).await?;
            wait(cluster, &waiting, &format!("node {node} is removed"), |s| {
                removed(s, node)
            })
            .await
        }
        ClusterAction::Move { from, to, waiting } => {
            let mut cluster = connect(&waiting).await?;
            cluster.move_node(v1::MoveNodeRequest { from, to }).await?;
            let done = format!("node {to} is in the places of node {from}");
            wait(cluster, &waiting, &done, |s| both(added(s, to), removed(s, from))).await
        }
        ClusterAction::Transfer {
            group, node, waiting, ..
        } => {
            let group = match group.as_str() {
                "meta" => 0,
                number => number.parse().map_err(|_| {
                    Failure::usage(format!("{number:?} is no group: write meta, or the number of a shard"))
                })?,
            };
            let mut cluster = connect(&waiting).await?;
            let request = v1::LeadGroupRequest {
                group,
                node: node.unwrap_or(0),
            };
            cluster.lead_group(request).await?;
            let done = match node {
                Some(node) => format!("node {node} leads {}", group_name(group)),
                None => format!("the leader of {} is spread with the others", group_name(group)),
            };
            wait(cluster, &waiting, &done, |s| leads(s, group, node)).await
        }
    }
}

async fn connect(waiting: &Waiting) -> Result<ClusterClient<Channel>, Failure> {
    Ok(ClusterClient::new(waiting.client.connect().await?))
}

async fn status(client: Client, output: Output) -> Done {
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

/// What is still to be done of a wish; `None`: nothing.
type Left = Option<String>;

fn both(one: Left, other: Left) -> Left {
    match (one, other) {
        (Some(one), Some(other)) => Some(format!("{one}; {other}")),
        (one, other) => one.or(other),
    }
}

fn group_name(group: u64) -> String {
    match group {
        0 => "meta".to_owned(),
        n => format!("shard {n}"),
    }
}

/// Nodes that count, or are to.
fn members(s: &v1::StatusResponse) -> Vec<u64> {
    s.nodes.iter().filter(|n| n.state == "member").map(|n| n.id).collect()
}

/// How many shards a node has.
fn load(s: &v1::StatusResponse, node: u64) -> usize {
    let shards = s.members.iter().filter(|m| m.group != 0);
    shards.filter(|m| m.voters.contains(&node)).count()
}

fn added(s: &v1::StatusResponse, node: u64) -> Left {
    let all = members(s);
    let has_all = all.len() as u64 <= s.copies;
    let left = s.groups.iter().filter_map(|g| {
        let members = s.members.iter().find(|m| m.group == g.group);
        let name = group_name(g.group);
        let Some(m) = members else {
            return Some(format!("{name} has no leader"));
        };
        let is_joint = (!m.outgoing.is_empty()).then(|| format!("{name} is joint"));
        if m.voters.contains(&node) {
            let too_many = g.group != 0 && !has_all && m.voters.len() as u64 > s.copies;
            return is_joint.or(too_many.then(|| format!("{name} has one copy more than it needs")));
        }
        if g.group != 0 && !has_all && !m.learners.contains(&node) {
            return is_joint;
        }
        let progress = m.progress.iter().find(|p| p.node == node);
        Some(match progress {
            Some(p) if p.in_snapshot => format!("{name} {}", snapshot_words(p)),
            Some(p) => format!("{name}: {} entries behind", p.lag),
            None => format!("{name}: not begun"),
        })
    });
    let mut left: Vec<String> = left.collect();
    let (own, most) = (load(s, node), all.iter().map(|n| load(s, *n)).max().unwrap_or(0));
    if !has_all && own + 1 < most {
        left.push(format!("it has {own} shards, and another node has {most}"));
    }
    (!left.is_empty()).then(|| left.join(", "))
}

fn removed(s: &v1::StatusResponse, node: u64) -> Left {
    let counts = |m: &&v1::GroupMembers| [&m.voters, &m.learners, &m.outgoing].iter().any(|l| l.contains(&node));
    let left: Vec<String> = s
        .members
        .iter()
        .filter(counts)
        .map(|m| match m.leader == node {
            true => format!("node {node} leads {}", group_name(m.group)),
            false => format!("node {node} is in {}", group_name(m.group)),
        })
        .collect();
    if !left.is_empty() {
        return Some(left.join(", "));
    }
    s.nodes
        .iter()
        .any(|n| n.id == node)
        .then(|| format!("node {node} is out of its groups"))
}

fn leads(s: &v1::StatusResponse, group: u64, node: Option<u64>) -> Left {
    let now = s.members.iter().find(|m| m.group == group);
    match (now, node) {
        (_, None) => None,
        (Some(m), Some(node)) if m.leader == node => None,
        (Some(m), _) => Some(format!("node {} leads {}", m.leader, group_name(group))),
        (None, _) => Some(format!("{} has no leader", group_name(group))),
    }
}

/// Tells what is left whenever that changes, until nothing is.
#[allow(clippy::disallowed_methods, reason = "a person waits in real time")]
async fn wait(
    mut cluster: ClusterClient<Channel>,
    waiting: &Waiting,
    done: &str,
    left: impl Fn(&v1::StatusResponse) -> Left,
) -> Done {
    const PAUSE: Duration = Duration::from_millis(300);
    let tell = |state: &str, words: &str| match waiting.output {
        Output::Table => println!("{words}"),
        Output::Json => println!("{}", serde_json::json!({"state": state, "message": words})),
    };
    if waiting.no_wait {
        tell(
            "written",
            "it is written down; `hindcast cluster status` tells how far it is",
        );
        return Ok(ExitCode::SUCCESS);
    }
    let until = Instant::now() + Duration::from_secs(waiting.timeout);
    let mut told = String::new();
    loop {
        // A node that is away for a moment, or hands over, answers again.
        let status = cluster.status(v1::StatusRequest {}).await;
        let words = match status.map(|s| left(&s.into_inner())) {
            Ok(None) => {
                tell("done", done);
                return Ok(ExitCode::SUCCESS);
            }
            Ok(Some(left)) => left,
            Err(status) => format!("no answer: {}", status.message()),
        };
        if words != told {
            tell("waiting", &words);
            told = words;
        }
        if Instant::now() >= until {
            let seconds = waiting.timeout;
            return Err(Failure::no(format!(
                "not done after {seconds} s ({told}); the cluster goes on with it"
            )));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The status as programs get it, here and from `/api/hindcast/v1/cluster`.
pub(crate) fn json(s: &v1::StatusResponse) -> serde_json::Value {
    let node = |n: &v1::NodeStatus| serde_json::json!({"id": n.id, "peer_address": n.peer_address, "client_address": n.client_address, "reachable": n.reachable, "state": n.state});
    let group = |g: &v1::GroupStatus| {
        serde_json::json!({
            "group": g.group, "leader": g.leader, "term": g.term, "commit": g.commit, "applied": g.applied,
            "durable": g.durable, "voters": g.voters, "digest": g.digest, "samples": g.samples, "lines": g.lines,
            "learners": g.learners, "quarantined": g.quarantined, "has_copy": g.has_copy,
        })
    };
    let progress = |p: &v1::MemberProgress| {
        serde_json::json!({
            "node": p.node, "lag": p.lag, "active": p.active, "in_snapshot": p.in_snapshot,
            "quarantined": p.quarantined, "rebuilding": p.rebuilding, "damaged": p.damaged,
            "snapshot_bytes_sent": p.snapshot_bytes_sent, "snapshot_bytes": p.snapshot_bytes,
        })
    };
    let members = |m: &v1::GroupMembers| {
        serde_json::json!({
            "group": m.group, "leader": m.leader, "voters": m.voters, "learners": m.learners, "outgoing": m.outgoing,
            "wished_leader": m.wished_leader, "progress": m.progress.iter().map(progress).collect::<Vec<_>>(),
        })
    };
    serde_json::json!({
        "node": s.node, "cluster": s.cluster, "ready": s.ready, "copies": s.copies,
        "nodes": s.nodes.iter().map(node).collect::<Vec<_>>(),
        "groups": s.groups.iter().map(group).collect::<Vec<_>>(),
        "members": s.members.iter().map(members).collect::<Vec<_>>(),
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
    let _ = writeln!(out, "\n{:<6}{:<10}{:<24}{:<24}", "NODE", "STATE", "CLIENTS", "PEERS");
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
        let _ = writeln!(out, "{:<6}{:<10}{:<24}{:<24}", n.id, n.state, client, peer);
    }
    let _ = writeln!(
        out,
        "\n{:<8}{:>7}{:>7}{:>12}{:>12}{:>12}{:>14}{:>12}",
        "GROUP", "LEADER", "TERM", "COMMIT", "APPLIED", "ON DISK", "SAMPLES", "LINES"
    );
    for g in &s.groups {
        let name = group_name(g.group);
        let leader = if g.leader == 0 {
            "none".to_owned()
        } else {
            g.leader.to_string()
        };
        if !g.has_copy {
            let _ = writeln!(out, "{name:<8}{leader:>7}       no copy that counts on this node");
            continue;
        }
        let _ = writeln!(
            out,
            "{name:<8}{leader:>7}{:>7}{:>12}{:>12}{:>12}{:>14}{:>12}",
            g.term, g.commit, g.applied, g.durable, g.samples, g.lines
        );
    }
    let _ = writeln!(
        out,
        "\n{:<8}{:<16}{:<12}WHO IS NOT LEVEL",
        "GROUP", "VOTERS", "LEARNERS"
    );
    let ids = |ids: &[u64]| ids.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
    for m in &s.members {
        let mut voters = ids(&m.voters);
        if !m.outgoing.is_empty() {
            voters = format!("{voters} (was {})", ids(&m.outgoing));
        }
        let odd: Vec<String> = m.progress.iter().filter_map(off_level).collect();
        let _ = writeln!(
            out,
            "{:<8}{voters:<16}{:<12}{}",
            group_name(m.group),
            ids(&m.learners),
            odd.join(", ")
        );
    }
    out
}

fn snapshot_words(p: &v1::MemberProgress) -> String {
    const MIB: f64 = (1 << 20) as f64;
    let (sent, all) = (p.snapshot_bytes_sent as f64 / MIB, p.snapshot_bytes as f64 / MIB);
    format!("gets a snapshot: {sent:.1} of {all:.1} MiB")
}

/// A member that is not as it should be. A few entries are always under way.
fn off_level(p: &v1::MemberProgress) -> Option<String> {
    const LAG_SHOWN_MIN: u64 = 100;
    let what = if !p.quarantined.is_empty() {
        "quarantined".to_owned()
    } else if p.rebuilding {
        "waits for a snapshot".to_owned()
    } else if p.in_snapshot {
        snapshot_words(p)
    } else if !p.damaged.is_empty() {
        format!("has damaged files ({})", p.damaged)
    } else if !p.active {
        "not heard of".to_owned()
    } else if p.lag >= LAG_SHOWN_MIN {
        format!("{} entries behind", p.lag)
    } else {
        return None;
    };
    Some(format!("node {} {what}", p.node))
}

//! What the meta leader does between commands: incidents get their cuts and pins, leftward rows come back.

use hindcast_alerting::command::{CutOf, GATEWAY_PART, GatewayCommand};
use hindcast_alerting::rows::{self, CutDue};
use hindcast_model::codec;
use hindcast_node::cluster_part::PinRow;
use hindcast_node::io::node::Node;
use hindcast_query::replay::default_window;
use hindcast_raft::meta::META_PART;
use hindcast_raft::{MachineCommand, Meta, leftward_rows};
use std::time::Duration;

/// Incidents looked after in one round; the rest waits for the next.
const CUTS_PER_ROUND_MAX: usize = 16;
const LEFTWARD_PER_ROUND_MAX: usize = 256;
const PAUSE: Duration = Duration::from_millis(100);

/// Runs until the process ends; does something only while this node leads the meta group.
pub async fn run(node: Node) {
    loop {
        tokio::time::sleep(PAUSE).await;
        if !node.meta.is_leader() {
            continue;
        }
        bring_back_leftward(&node).await;
        let due = rows::cuts_due(&*node.meta.stale(), node.meta.cluster_now(), CUTS_PER_ROUND_MAX);
        match due {
            Ok(due) => {
                for cut in due {
                    if let Err(why) = keep(&node, &cut).await {
                        tracing::warn!(incident = %cut.incident, why, "no cut yet; tried again");
                    }
                }
            }
            Err(error) => tracing::error!(%error, "the gateway's rows cannot be read"),
        }
    }
}

/// What a part sent to its left comes back as a command of its own; the machine applies each once.
async fn bring_back_leftward(node: &Node) {
    for row in leftward_rows(&*node.meta.stale(), LEFTWARD_PER_ROUND_MAX) {
        let command = MachineCommand::Leftward {
            index: row.index,
            seq: row.seq,
        };
        if let Err(error) = node.meta.propose(META_PART, codec::to_bytes(&command)).await {
            tracing::debug!(%error, "a leftward command has to wait");
            return;
        }
    }
}

/// Takes the cut that an incident waits for, pins its window at all its cuts, and notes it with the incident.
async fn keep(node: &Node, due: &CutDue) -> Result<(), String> {
    let words = |e: &dyn std::fmt::Display| e.to_string();
    let reason = match due.which {
        CutOf::Opened => format!("{} opened", due.incident),
        CutOf::Sealed => format!("{} sealed", due.incident),
    };
    let cut = node.cuts.take(&reason, true).await.map_err(|e| words(&e))?;
    let read = node.meta.read().await.map_err(|e| words(&e))?;
    let incident = rows::incident(&*read, Some(&due.tenant), due.incident).map_err(|e| words(&e))?;
    let incident = incident.ok_or_else(|| "the incident is gone".to_owned())?;
    let (from, end) = default_window(incident.opened_at, incident.closed_at, cut.made_at);
    // Until it is sealed, the window stays open: whatever comes belongs to the evidence.
    let to = if due.which == CutOf::Sealed {
        end
    } else {
        hindcast_model::TimestampNs::MAX
    };
    let mut cuts: Vec<_> = incident
        .opened_cut
        .into_iter()
        .chain(incident.earlier_cuts.iter().copied())
        .collect();
    cuts.push(cut.id);
    let pin = PinRow {
        id: format!("{}/{}", due.incident, due.generation),
        tenant: due.tenant.clone(),
        incident: Some(due.incident),
        from,
        to,
        owner: "gateway".to_owned(),
        reason,
        class: "pin-90d".to_owned(),
        cuts,
    };
    node.cuts.pin(pin).await.map_err(|e| words(&e))?;
    let set = GatewayCommand::SetCut {
        incident: due.incident,
        generation: due.generation,
        which: due.which,
        cut: cut.id,
    };
    node.meta
        .propose(GATEWAY_PART, set.encode())
        .await
        .map_err(|e| words(&e))?;
    Ok(())
}

//! `hindcast incident list|show`, `hindcast alerts`.

use super::{Client, Done, Output};
use hindcast_proto::v1;
use hindcast_proto::v1::alerts_client::AlertsClient;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  hindcast incident list\n  hindcast incident list --state open\n  hindcast incident show INC-1"
)]
pub struct IncidentArgs {
    #[command(subcommand)]
    action: IncidentAction,
}

#[derive(Debug, clap::Subcommand)]
enum IncidentAction {
    /// Incidents, newest first.
    List {
        /// open, recovered or closed.
        #[arg(long, default_value = "")]
        state: String,
        #[command(flatten)]
        client: Client,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// One incident with its alerts, deliveries and cuts.
    Show {
        /// The incident, like INC-1.
        id: String,
        #[command(flatten)]
        client: Client,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  hindcast alerts\n  hindcast alerts -o json")]
pub struct AlertsArgs {
    #[command(flatten)]
    client: Client,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// `2026-03-02T03:12:00Z`, or a dash for "not yet".
pub(crate) fn time(ms: i64) -> String {
    if ms == 0 {
        return "-".to_owned();
    }
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |t| format!("{t:.0}"))
}

fn incident_json(i: &v1::Incident) -> serde_json::Value {
    serde_json::json!({
        "id": i.id, "title": i.title, "state": i.state, "severity": i.severity, "generation": i.generation,
        "opened_ms": i.opened_ms, "recovered_ms": i.recovered_ms, "closed_ms": i.closed_ms, "alerts": i.alerts,
        "resources": i.resources, "ticket": i.ticket, "opened_cut": i.opened_cut, "sealed_cut": i.sealed_cut,
    })
}

fn delivery_json(d: &v1::Delivery) -> serde_json::Value {
    serde_json::json!({
        "key": d.key, "incident": d.incident, "kind": d.kind, "receiver": d.receiver, "state": d.state,
        "attempts": d.attempts, "last_error": d.last_error,
    })
}

pub async fn run(args: IncidentArgs) -> Done {
    match args.action {
        IncidentAction::List { state, client, output } => {
            let mut alerts = AlertsClient::new(client.connect().await?);
            let incidents = alerts
                .list_incidents(v1::ListIncidentsRequest { state })
                .await?
                .into_inner()
                .incidents;
            match output {
                Output::Json => {
                    println!(
                        "{}",
                        serde_json::Value::from(incidents.iter().map(incident_json).collect::<Vec<_>>())
                    );
                }
                Output::Table if incidents.is_empty() => println!("no incidents"),
                Output::Table => {
                    println!(
                        "{:<9}{:<10}{:<10}{:<22}{:<8}TITLE",
                        "ID", "STATE", "SEVERITY", "OPENED", "TICKET"
                    );
                    for i in incidents {
                        let opened = time(i.opened_ms);
                        println!(
                            "{:<9}{:<10}{:<10}{:<22}{:<8}{}",
                            i.id, i.state, i.severity, opened, i.ticket, i.title
                        );
                    }
                }
            }
        }
        IncidentAction::Show { id, client, output } => {
            let mut alerts = AlertsClient::new(client.connect().await?);
            let i = alerts
                .get_incident(v1::GetIncidentRequest { id: id.clone() })
                .await?
                .into_inner();
            let asked = v1::ListDeliveriesRequest { incident: i.id.clone() };
            let deliveries = alerts.list_deliveries(asked).await?.into_inner().deliveries;
            match output {
                Output::Json => {
                    let mut json = incident_json(&i);
                    json["deliveries"] = deliveries.iter().map(delivery_json).collect();
                    println!("{json}");
                }
                Output::Table => show(&i, &deliveries),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(i: &v1::Incident, deliveries: &[v1::Delivery]) {
    println!("{}  {}  {}", i.id, i.severity, i.title);
    println!("state      {} (generation {})", i.state, i.generation);
    println!("opened     {}", time(i.opened_ms));
    println!("recovered  {}", time(i.recovered_ms));
    println!("closed     {}", time(i.closed_ms));
    let or_dash = |s: &str| if s.is_empty() { "-".to_owned() } else { s.to_owned() };
    println!("ticket     {}", or_dash(&i.ticket));
    println!(
        "cuts       opened {}, sealed {}",
        or_dash(&i.opened_cut),
        or_dash(&i.sealed_cut)
    );
    println!("alerts     {}", i.alerts.join(", "));
    println!("resources  {}", i.resources.join(", "));
    for d in deliveries {
        let error = if d.last_error.is_empty() {
            String::new()
        } else {
            format!(" ({})", d.last_error)
        };
        println!(
            "told       {} by {}: {} after {} attempts{error}",
            d.receiver, d.kind, d.state, d.attempts
        );
    }
    println!("\nsee it again:  hindcast replay {}", i.id);
}

pub async fn run_alerts(args: AlertsArgs) -> Done {
    let mut client = AlertsClient::new(args.client.connect().await?);
    let alerts = client.list_alerts(v1::ListAlertsRequest {}).await?.into_inner().alerts;
    match args.output {
        Output::Json => {
            let json = |a: &v1::Alert| {
                serde_json::json!({
                    "id": a.id, "rule": a.rule, "labels": sorted(&a.labels), "annotations": sorted(&a.annotations),
                    "state": a.state, "severity": a.severity, "generation": a.generation, "since_ms": a.since_ms,
                    "value": a.value(), "incident": a.incident,
                })
            };
            println!(
                "{}",
                serde_json::Value::from(alerts.iter().map(json).collect::<Vec<_>>())
            );
        }
        Output::Table if alerts.is_empty() => println!("no alerts"),
        Output::Table => {
            println!(
                "{:<10}{:<10}{:<22}{:<10}{:<24}LABELS",
                "STATE", "SEVERITY", "SINCE", "INCIDENT", "RULE"
            );
            for a in alerts {
                let labels: Vec<String> = sorted(&a.labels).iter().map(|(n, v)| format!("{n}={v}")).collect();
                let since = time(a.since_ms);
                println!(
                    "{:<10}{:<10}{since:<22}{:<10}{:<24}{}",
                    a.state,
                    a.severity,
                    a.incident,
                    a.rule,
                    labels.join(" ")
                );
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn sorted(map: &std::collections::HashMap<String, String>) -> std::collections::BTreeMap<&str, &str> {
    map.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect()
}

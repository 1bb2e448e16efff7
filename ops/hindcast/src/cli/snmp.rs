//! `hindcast snmp check`.

use super::{Done, Failure, Output};
use hindcast_node::io::servers::snmp::load;
use hindcast_snmp::Device;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  hindcast snmp check devices.yml\n  hindcast snmp check devices.yml -o json")]
pub struct SnmpArgs {
    #[command(subcommand)]
    action: SnmpAction,
}

#[derive(Debug, clap::Subcommand)]
enum SnmpAction {
    /// Shows what a list would poll, and how many may send traps; reads its secrets, shows none, and asks nobody.
    Check {
        /// The list of devices.
        file: PathBuf,
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

fn shown(device: &Device) -> Value {
    json!({
        "name": device.name,
        "address": device.address(),
        "version": device.version(),
        "interval": device.interval.to_string(),
        "timeout": device.timeout.to_string(),
        "retries": device.retries,
        "maxRepetitions": device.repetitions,
        "job": device.job,
        "tenant": device.tenant.as_str(),
        "labels": device.labels,
    })
}

#[allow(clippy::unused_async, reason = "one shape for all commands")]
pub async fn run(args: SnmpArgs) -> Done {
    let SnmpAction::Check { file, output } = args.action;
    let loaded = load(&file).map_err(|e| Failure::no(e.to_string()))?;
    let mut devices: Vec<_> = loaded.devices().collect();
    devices.sort_by(|a, b| (&a.tenant, &a.name).cmp(&(&b.tenant, &b.name)));
    let senders = loaded.senders();
    let (communities, users) = (senders.communities.len(), senders.users.len());
    match output {
        Output::Json => {
            let devices: Vec<_> = devices.into_iter().map(shown).collect();
            println!(
                "{}",
                json!({"devices": devices, "trapCommunities": communities, "trapUsers": users})
            );
        }
        Output::Table => {
            println!(
                "{} devices; traps of {communities} communities and {users} users",
                devices.len()
            );
            for d in devices {
                let labels: Vec<_> = d.labels.iter().map(|(n, v)| format!(" {n}={v:?}")).collect();
                let (address, version, interval) = (d.address(), d.version(), d.interval);
                println!(
                    "  {} at {address} version {version} every {interval} tenant {}{}",
                    d.name,
                    d.tenant,
                    labels.concat()
                );
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

//! `hindcast ticket`: the desk from the command line.

use super::{Client, Done, Failure, Output};
use hindcast_proto::v1;
use hindcast_proto::v1::desk_client::DeskClient;
use hindcast_proto::v1::edit_ticket_request as edit;
use std::fmt::Write as _;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  hindcast ticket list --status open
  hindcast ticket show T-1
  hindcast ticket take T-1
  hindcast ticket note T-1 'rebooting web-1'
  hindcast ticket pending T-1 --reason vendor 'new disk is ordered'
  hindcast ticket assign T-1 --group network
  hindcast ticket resolve T-1 --code fixed 'disk replaced'
  hindcast ticket reopen T-1 'it is slow again'")]
pub struct TicketArgs {
    #[command(subcommand)]
    action: TicketAction,
}

/// What every command of the desk takes.
#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    client: Client,
    /// table for people, json for programs.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// What every edit takes.
#[derive(Debug, clap::Args)]
struct Editing {
    #[command(flatten)]
    common: Common,
    /// Under which name to act.
    #[arg(long = "as", value_name = "NAME", env = "USER", default_value = "desk")]
    actor: String,
    /// Only when nobody changed the same fields since this version (shown by `ticket show`).
    #[arg(long, value_name = "N", default_value_t = 0)]
    based_on: u64,
    /// Makes a retry harmless: the same id changes the ticket once.
    #[arg(long, value_name = "ID", default_value = "")]
    request_id: String,
}

#[derive(Debug, clap::Subcommand)]
enum TicketAction {
    /// Tickets, newest first.
    List {
        /// new, assigned, in_progress, pending, resolved, closed, cancelled; or open: all but the last two.
        #[arg(long, default_value = "")]
        status: String,
        #[command(flatten)]
        common: Common,
    },
    /// One ticket with its conversation and audit trail.
    Show {
        /// The ticket, like T-1.
        number: String,
        #[command(flatten)]
        common: Common,
    },
    /// Become the owner and start to work; paging stops.
    Take {
        /// The ticket, like T-1.
        number: String,
        #[command(flatten)]
        editing: Editing,
    },
    /// Write to the conversation.
    Note {
        /// The ticket, like T-1.
        number: String,
        /// What to write.
        text: String,
        #[command(flatten)]
        editing: Editing,
    },
    /// Wait for somebody or something.
    Pending {
        /// The ticket, like T-1.
        number: String,
        /// What is waited for.
        #[arg(default_value = "")]
        text: String,
        /// customer, vendor, change, maintenance or other.
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        editing: Editing,
    },
    /// The service is restored: say how, in one word and in a sentence.
    Resolve {
        /// The ticket, like T-1.
        number: String,
        /// How, in a sentence.
        text: String,
        /// One word, such as fixed, workaround, false-alarm, duplicate.
        #[arg(long)]
        code: String,
        #[command(flatten)]
        editing: Editing,
    },
    /// Take a resolved ticket back to work.
    Reopen {
        /// The ticket, like T-1.
        number: String,
        /// Why.
        #[arg(default_value = "")]
        text: String,
        #[command(flatten)]
        editing: Editing,
    },
    /// Hand it to a group, a person, or a person of a group.
    Assign {
        /// The ticket, like T-1.
        number: String,
        /// The group that is to work on it.
        #[arg(long, default_value = "", required_unless_present = "person")]
        group: String,
        /// The person that is to work on it.
        #[arg(long, default_value = "")]
        person: String,
        #[command(flatten)]
        editing: Editing,
    },
}

pub async fn run(args: TicketArgs) -> Done {
    use TicketAction as A;
    let (number, editing, action) = match args.action {
        A::List { status, common } => return list(status, &common).await,
        A::Show { number, common } => return show(number, &common).await,
        A::Take { number, editing } => (number, editing, edit::Action::Take(edit::Take {})),
        A::Note { number, text, editing } => (number, editing, edit::Action::Note(edit::Note { text })),
        A::Pending {
            number,
            text,
            reason,
            editing,
        } => (number, editing, edit::Action::Pending(edit::Pending { reason, text })),
        A::Resolve {
            number,
            text,
            code,
            editing,
        } => (number, editing, edit::Action::Resolve(edit::Resolve { code, text })),
        A::Reopen { number, text, editing } => (number, editing, edit::Action::Reopen(edit::Reopen { text })),
        A::Assign {
            number,
            group,
            person,
            editing,
        } => (number, editing, edit::Action::Assign(edit::Assign { group, person })),
    };
    let Editing {
        common,
        actor,
        based_on,
        request_id,
    } = editing;
    let channel = common.client.connect_as(Some(&header_name(&actor))).await?;
    let request = v1::EditTicketRequest {
        number,
        base_version: based_on,
        request_id,
        action: Some(action),
    };
    let ticket = DeskClient::new(channel).edit(request).await?.into_inner();
    match common.output {
        Output::Json => println!("{}", json(&ticket)),
        Output::Table => println!("{}", one_line(&ticket)),
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(status: String, common: &Common) -> Done {
    let mut desk = DeskClient::new(common.client.connect().await?);
    let tickets = desk.list(v1::ListTicketsRequest { status }).await?.into_inner().tickets;
    match common.output {
        Output::Json => println!(
            "{}",
            serde_json::Value::from(tickets.iter().map(json).collect::<Vec<_>>())
        ),
        Output::Table => print!("{}", table(&tickets)),
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(number: String, common: &Common) -> Result<ExitCode, Failure> {
    let mut desk = DeskClient::new(common.client.connect().await?);
    let ticket = desk.get(v1::GetTicketRequest { number }).await?.into_inner();
    match common.output {
        Output::Json => println!("{}", json(&ticket)),
        Output::Table => print!("{}", in_full(&ticket)),
    }
    Ok(ExitCode::SUCCESS)
}

/// A name as a header can carry it: what is not plain ASCII is percent-encoded.
fn header_name(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'%' | 0..=b' ' | 0x7f.. => write!(encoded, "%{byte:02X}").expect("a string takes all"),
            _ => encoded.push(char::from(byte)),
        }
    }
    encoded
}

fn time(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |t| format!("{t:.0}"))
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

fn one_line(t: &v1::Ticket) -> String {
    let owner = or_dash(&t.owner);
    format!(
        "{} is {}, {}, owner {owner}, version {}",
        t.number, t.status, t.priority, t.version
    )
}

fn table(tickets: &[v1::Ticket]) -> String {
    if tickets.is_empty() {
        return "no tickets\n".to_owned();
    }
    let mut out = format!(
        "{:<8}{:<4}{:<13}{:<14}{:<9}{:<22}TITLE\n",
        "NUMBER", "P", "STATUS", "OWNER", "INCIDENT", "UPDATED"
    );
    for t in tickets {
        let (owner, updated) = (or_dash(&t.owner), time(t.updated_ms));
        let line = format!(
            "{:<8}{:<4}{:<13}{owner:<14}{:<9}{updated:<22}{}\n",
            t.number, t.priority, t.status, t.incident, t.title
        );
        out += &line;
    }
    out
}

fn in_full(t: &v1::Ticket) -> String {
    let mut out = format!("{}  {}\n\n", t.number, t.title);
    let status = match t.pending_reason.as_str() {
        "" => t.status.clone(),
        reason => format!("{} ({reason})", t.status),
    };
    let resolution = format!("{}: {}", t.resolution_code, t.resolution_text);
    let facts = [
        ("status", status),
        (
            "priority",
            format!("{} (impact {}, urgency {})", t.priority, t.impact, t.urgency),
        ),
        ("owner", or_dash(&t.owner).to_owned()),
        ("group", or_dash(&t.group).to_owned()),
        ("services", or_dash(&t.services.join(", ")).to_owned()),
        ("incident", format!("{}, {}", t.incident, t.severity)),
        (
            "came back",
            if t.flaps == 0 {
                "-".to_owned()
            } else {
                format!("{} times", t.flaps)
            },
        ),
        ("follows", or_dash(&t.recurrence_of).to_owned()),
        (
            "resolution",
            if t.resolution_code.is_empty() {
                "-".to_owned()
            } else {
                resolution
            },
        ),
        ("created", time(t.created_ms)),
        ("updated", format!("{}, version {}", time(t.updated_ms), t.version)),
        ("replay", t.replay_command.clone()),
    ];
    for (name, value) in facts.iter().filter(|(_, v)| v != "-") {
        writeln!(out, "{name:<12}{value}").expect("a string takes all");
    }
    out += "\n";
    for e in &t.thread {
        let text = e.text.replace('\n', "\n    ");
        writeln!(out, "{} {}\n    {text}", time(e.at_ms), e.actor).expect("a string takes all");
    }
    if let Some(last) = t.audit.last() {
        let short: String = last.hash.chars().take(16).collect();
        writeln!(
            out,
            "\naudit: {} records shown, the last is {} with hash {short}…",
            t.audit.len(),
            last.seq
        )
        .expect("a string takes all");
    }
    out
}

fn json(t: &v1::Ticket) -> serde_json::Value {
    let thread = t
        .thread
        .iter()
        .map(|e| serde_json::json!({"at_ms": e.at_ms, "actor": e.actor, "kind": e.kind, "text": e.text}));
    let audit = t.audit.iter().map(|r| {
        serde_json::json!({
            "seq": r.seq, "at_ms": r.at_ms, "actor": r.actor, "action": r.action,
            "before": r.before, "after": r.after, "hash": r.hash,
        })
    });
    serde_json::json!({
        "number": t.number, "title": t.title, "status": t.status, "priority": t.priority, "impact": t.impact,
        "urgency": t.urgency, "severity": t.severity, "owner": t.owner, "group": t.group, "version": t.version,
        "created_ms": t.created_ms, "updated_ms": t.updated_ms, "incident": t.incident, "generation": t.generation,
        "recurrence_of": t.recurrence_of, "flaps": t.flaps, "services": t.services,
        "pending_reason": t.pending_reason, "resolution_code": t.resolution_code,
        "resolution_text": t.resolution_text, "replay_url": t.replay_url, "replay_command": t.replay_command,
        "thread": thread.collect::<Vec<_>>(), "audit": audit.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn ticket() -> v1::Ticket {
        v1::Ticket {
            number: "T-1".into(),
            title: "Processor busy on web-1".into(),
            status: "pending".into(),
            priority: "P2".into(),
            impact: "medium".into(),
            urgency: "high".into(),
            severity: "critical".into(),
            version: 3,
            incident: "INC-1".into(),
            pending_reason: "vendor".into(),
            created_ms: 1_772_000_000_000,
            updated_ms: 1_772_000_060_000,
            replay_command: "hindcast replay INC-1".into(),
            thread: vec![v1::ThreadEntry {
                at_ms: 1_772_000_000_000,
                actor: "gateway".into(),
                kind: "system".into(),
                text: "Critical trouble.\nAffected: shop.".into(),
            }],
            ..v1::Ticket::default()
        }
    }

    #[test]
    fn a_ticket_reads_as_a_page() {
        expect![[r#"
            T-1  Processor busy on web-1

            status      pending (vendor)
            priority    P2 (impact medium, urgency high)
            incident    INC-1, critical
            created     2026-02-25T06:13:20Z
            updated     2026-02-25T06:14:20Z, version 3
            replay      hindcast replay INC-1

            2026-02-25T06:13:20Z gateway
                Critical trouble.
                Affected: shop.
        "#]]
        .assert_eq(&in_full(&ticket()));
        expect![[r#"
            NUMBER  P   STATUS       OWNER         INCIDENT UPDATED               TITLE
            T-1     P2  pending      -             INC-1    2026-02-25T06:14:20Z  Processor busy on web-1
        "#]]
        .assert_eq(&table(&[ticket()]));
        assert_eq!(table(&[]), "no tickets\n");
        assert_eq!(one_line(&ticket()), "T-1 is pending, P2, owner -, version 3");
    }

    #[test]
    fn any_name_fits_into_a_header() {
        assert_eq!(header_name("kim"), "kim");
        assert_eq!(header_name("김 a%"), "%EA%B9%80%20a%25");
    }

    #[test]
    fn the_arguments_are_what_the_help_shows() {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            ticket: TicketArgs,
        }
        let parse = |line: &str| <Cli as clap::Parser>::try_parse_from(line.split(' '));
        for line in [
            "hindcast list --status open",
            "hindcast show T-1",
            "hindcast take T-1 --as kim",
            "hindcast note T-1 rebooting",
            "hindcast pending T-1 --reason vendor disk",
            "hindcast assign T-1 --group network",
            "hindcast assign T-1 --person kim",
            "hindcast resolve T-1 --code fixed done",
            "hindcast reopen T-1",
        ] {
            let parsed = parse(line).unwrap_or_else(|e| panic!("{line}: {e}"));
            assert!(format!("{:?}", parsed.ticket).contains("action"));
        }
        for line in [
            "hindcast resolve T-1 done",
            "hindcast pending T-1 x",
            "hindcast assign T-1",
            "hindcast note T-1",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}

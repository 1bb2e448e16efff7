//! What a notification reads like: subject and text of a mail, a Slack message, the body of a webhook.
//!
//! Pure. Texts come from labels and annotations, which anybody may have written: control characters become spaces
//! in single lines, Slack's own marks are escaped, JSON is written by a serialiser. Sizes are bounded.

use hindcast_alerting::event::IncidentState;
use hindcast_alerting::outbox::{EffectKey, EffectKind, Notification, NotifiedAlert, Sending};
use hindcast_alerting::template::number;
use hindcast_alerting::view;
use hindcast_model::{Severity, TimestampNs};
use serde_json::json;

/// Characters of a subject, or of one alert's line.
pub const LINE_CHARS_MAX: usize = 200;
/// Characters of a message to Slack, which takes 40,000 at most and shows 4,000 well.
pub const SLACK_CHARS_MAX: usize = 3_500;
/// Labels that a mail lists per alert.
pub const LABELS_SHOWN_MAX: usize = 16;

/// One line without control characters, shortened.
fn line(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut out: String = clean.clone().take(LINE_CHARS_MAX).collect();
    if clean.count() > LINE_CHARS_MAX {
        out.push('…');
    }
    out
}

fn time(at: TimestampNs) -> String {
    let shown = jiff::Timestamp::from_nanosecond(at.0.into());
    shown.map_or_else(
        |_| format!("{} ms", at.as_ms()),
        |t| t.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
    )
}

/// What is told, in one word.
fn headline(n: &Notification) -> String {
    match (n.kind, n.state) {
        (EffectKind::Recovered, _) | (_, IncidentState::Recovered | IncidentState::Closed) => "RECOVERED".to_owned(),
        (EffectKind::Reopened, _) => format!("AGAIN {}", n.severity.as_str().to_uppercase()),
        (EffectKind::Reminder, _) => format!("STILL {}", n.severity.as_str().to_uppercase()),
        _ => n.severity.as_str().to_uppercase(),
    }
}

/// Equal but for the headline in all mails of an incident, so that clients without `References` thread it too.
pub fn subject(n: &Notification) -> String {
    line(&format!("[{}] {} {}", headline(n), n.incident, n.title))
}

/// The `Message-ID` of an effect's mail.
pub fn message_id(key: &EffectKey) -> String {
    format!("<{key}@hindcast>")
}

/// The text of a mail.
pub fn mail_text(n: &Notification) -> String {
    let mut out = format!("{}\n\n", line(&n.title));
    let state = view::word(&n.state);
    let facts = [
        ("Incident", n.incident.to_string()),
        ("State", state.as_str().unwrap_or_default().to_owned()),
        ("Severity", n.severity.to_string()),
        ("Opened", time(n.opened_at)),
        ("This news", format!("{} at {}", n.kind.as_str(), time(n.at))),
        ("Ticket", n.ticket.map_or_else(|| "-".to_owned(), |t| t.to_string())),
        ("Tenant", n.tenant.to_string()),
    ];
    for (name, value) in facts {
        out.push_str(&format!("{name:<10} {value}\n"));
    }
    if n.generation > 1 || n.flaps > 0 {
        out.push_str(&format!(
            "{:<10} life {}, reopened {} times\n",
            "History", n.generation, n.flaps
        ));
    }
    for alert in &n.alerts {
        out.push_str(&format!("\n* {}\n", alert_line(alert)));
        if !alert.description.is_empty() {
            out.push_str(&format!("  {}\n", line(&alert.description)));
        }
        for (name, value) in alert.labels.iter().take(LABELS_SHOWN_MAX) {
            out.push_str(&format!("  {} = {}\n", line(name), line(value)));
        }
    }
    let more = n.alerts_total.saturating_sub(n.alerts.len() as u64);
    if more > 0 {
        out.push_str(&format!("\nand {more} more alerts\n"));
    }
    out.push_str(&format!("\nReplay it: hindcast replay {}\n", n.incident));
    out
}

fn alert_line(alert: &NotifiedAlert) -> String {
    let severity = alert.severity.map_or(String::new(), |s| format!(" {s}"));
    line(&format!(
        "{}{severity}: {} (value {})",
        alert.state,
        alert.summary,
        number(alert.value)
    ))
}

/// Slack's three characters that mean something, so that no label becomes a mention or a link.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The text of a Slack message (mrkdwn).
pub fn slack_text(n: &Notification) -> String {
    let icon = match (n.kind, n.state, n.severity) {
        (EffectKind::Recovered, ..) | (_, IncidentState::Recovered | IncidentState::Closed, _) => {
            ":large_green_circle:"
        }
        (_, _, Severity::Critical) => ":red_circle:",
        (_, _, Severity::Major) => ":large_orange_circle:",
        (_, _, Severity::Minor) => ":large_yellow_circle:",
    };
    let mut out = format!("{icon} *{}* {} {}\n", headline(n), n.incident, escaped(&line(&n.title)));
    let ticket = n.ticket.map_or(String::new(), |t| format!(" · ticket {t}"));
    out.push_str(&format!("since {}{ticket}\n", time(n.opened_at)));
    for (i, alert) in n.alerts.iter().enumerate() {
        let next = format!("• {}\n", escaped(&alert_line(alert)));
        if out.chars().count() + next.chars().count() > SLACK_CHARS_MAX {
            out.push_str(&format!(
                "and {} more alerts\n",
                n.alerts_total.saturating_sub(i as u64)
            ));
            return out;
        }
        out.push_str(&next);
    }
    let more = n.alerts_total.saturating_sub(n.alerts.len() as u64);
    if more > 0 {
        out.push_str(&format!("and {more} more alerts\n"));
    }
    out
}

/// The body of a webhook: JSON, times as Unix ms.
pub fn webhook_body(sending: &Sending) -> Vec<u8> {
    let (effect, n) = (&sending.effect, &sending.effect.notification);
    let alerts = n.alerts.iter().map(|a| {
        json!({
            "id": a.id,
            "rule": a.rule,
            "state": a.state,
            "severity": a.severity.map(|s| s.as_str()),
            "value": view::value(a.value),
            "summary": a.summary,
            "description": a.description,
            "labels": a.labels,
        })
    });
    let body = json!({
        "version": "1",
        "key": effect.key.0,
        "attempt": effect.attempts,
        "kind": n.kind.as_str(),
        "tenant": n.tenant.as_str(),
        "receiver": effect.receiver.name,
        "at": n.at.as_ms(),
        "incident": {
            "id": n.incident.to_string(),
            "generation": n.generation,
            "title": n.title,
            "state": view::word(&n.state),
            "severity": n.severity.as_str(),
            "opened": n.opened_at.as_ms(),
            "flaps": n.flaps,
            "ticket": n.ticket.map(|t| t.to_string()),
        },
        "alerts": alerts.collect::<Vec<_>>(),
        "alerts_total": n.alerts_total,
    });
    body.to_string().into_bytes()
}

/// The signature of a body: BLAKE3, keyed with the secret. Receivers compute the same and compare.
pub fn signature(secret: &str, body: &[u8]) -> String {
    let key = blake3::derive_key("hindcast 2026 webhook signature", secret.as_bytes());
    format!("blake3={}", blake3::keyed_hash(&key, body).to_hex())
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use hindcast_model::{IncidentId, TenantId, TicketId};

    fn notification() -> Notification {
        Notification {
            kind: EffectKind::Opened,
            tenant: TenantId::default(),
            incident: IncidentId(7),
            generation: 1,
            title: "Busy on web-1\r\nBcc: everyone@example.com".into(),
            state: IncidentState::Open,
            severity: Severity::Critical,
            opened_at: TimestampNs::from_secs(1_772_000_000),
            at: TimestampNs::from_secs(1_772_000_000),
            flaps: 0,
            ticket: Some(TicketId(3)),
            alerts: vec![NotifiedAlert {
                id: "a".into(),
                rule: "Busy".into(),
                state: "firing".into(),
                severity: Some(Severity::Critical),
                value: 0.95,
                summary: "CPU <!channel> & <http://evil|here> at 95 %".into(),
                description: String::new(),
                labels: [("host".to_owned(), "web-1".to_owned())].into(),
            }],
            alerts_total: 3,
        }
    }

    #[test]
    fn a_mail_says_what_where_and_since_when_on_lines_of_its_own() {
        assert_eq!(
            subject(&notification()),
            "[CRITICAL] INC-7 Busy on web-1  Bcc: everyone@example.com"
        );
        expect![[r#"
            Busy on web-1  Bcc: everyone@example.com

            Incident   INC-7
            State      open
            Severity   critical
            Opened     2026-02-25 06:13:20 UTC
            This news  opened at 2026-02-25 06:13:20 UTC
            Ticket     T-3
            Tenant     default

            * firing critical: CPU <!channel> & <http://evil|here> at 95 % (value 0.95)
              host = web-1

            and 2 more alerts

            Replay it: hindcast replay INC-7
        "#]]
        .assert_eq(&mail_text(&notification()));
    }

    #[test]
    fn no_label_becomes_a_mention_in_slack() {
        expect![[r#"
            :red_circle: *CRITICAL* INC-7 Busy on web-1  Bcc: everyone@example.com
            since 2026-02-25 06:13:20 UTC · ticket T-3
            • firing critical: CPU &lt;!channel&gt; &amp; &lt;http://evil|here&gt; at 95 % (value 0.95)
            and 2 more alerts
        "#]]
        .assert_eq(&slack_text(&notification()));
    }

    #[test]
    fn a_storm_fits_into_a_message() {
        let mut n = notification();
        n.alerts = vec![
            NotifiedAlert {
                summary: "<&>".repeat(10_000),
                ..n.alerts[0].clone()
            };
            20
        ];
        n.alerts_total = 500;
        let text = slack_text(&n);
        assert!(
            text.chars().count() < SLACK_CHARS_MAX + 100 && text.contains("more alerts"),
            "{text}"
        );
    }
}

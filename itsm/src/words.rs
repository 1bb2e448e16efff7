//! What the desk reads: plain words about an incident, without query language, rule syntax or ids of machines.
//!
//! Times are UTC. Everything is bounded; what is left out is counted.

use crate::thread::{TEXT_BYTES_MAX, shortened};
use crate::ticket::{Field, Ticket};
use hindcast_alerting::event::{Criticality, IncidentSnapshot, MemberAlert};
use hindcast_model::{Severity, TimestampNs};

/// Bytes of a ticket's title.
pub const TITLE_BYTES_MAX: usize = 200;
/// Alerts and services that an opening text names.
const NAMED_MAX: usize = 5;
/// Bytes of one line that a machine writes.
const LINE_BYTES_MAX: usize = 300;

/// One line, however the source was written.
fn one_line(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    shortened(&words.join(" "), LINE_BYTES_MAX)
}

pub fn title(incident: &IncidentSnapshot) -> String {
    let given = one_line(&incident.title);
    let title = match (given.is_empty(), incident.alerts.first()) {
        (false, _) => given,
        (true, Some(alert)) => alert_line(alert),
        (true, None) => format!("Trouble seen as {}", incident.id),
    };
    shortened(&title, TITLE_BYTES_MAX)
}

/// An alert in words: what its author wrote for people, else its name and where.
fn alert_line(alert: &MemberAlert) -> String {
    let summary = one_line(&alert.summary);
    if !summary.is_empty() {
        return summary;
    }
    const PLACES: [&str; 7] = [
        "service_name",
        "service.name",
        "host_name",
        "host.name",
        "instance",
        "device",
        "job",
    ];
    let place = PLACES.iter().find_map(|name| alert.labels.get(*name));
    let what = alert.rule.replace(['_', '-'], " ");
    match place {
        Some(place) => one_line(&format!("{what} on {place}")),
        None => one_line(&what),
    }
}

const fn weight(criticality: Criticality) -> &'static str {
    match criticality {
        Criticality::Low => "low",
        Criticality::Medium => "medium",
        Criticality::High => "high",
        Criticality::Critical => "critical",
    }
}

/// `2026-11-22 14:05:12 UTC`.
pub fn time(at: TimestampNs) -> String {
    match jiff::Timestamp::from_millisecond(at.as_ms()) {
        Ok(t) => t.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        Err(_) => format!("{at} s after 1970"),
    }
}

fn counted(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// The first entry of a ticket: what is broken, since when, who is affected, how bad.
pub fn opening(incident: &IncidentSnapshot) -> String {
    let mut lines = vec![format!(
        "{} since {}.",
        match incident.severity {
            Severity::Minor => "Minor trouble",
            Severity::Major => "Major trouble",
            Severity::Critical => "Critical trouble",
        },
        time(incident.opened_at)
    )];
    for alert in incident.alerts.iter().take(NAMED_MAX) {
        lines.push(format!("- {}", alert_line(alert)));
    }
    if incident.alerts.len() > NAMED_MAX {
        lines.push(format!("- and {} more", incident.alerts.len() - NAMED_MAX));
    }
    let services: Vec<_> = incident.services.iter().collect();
    let named: Vec<_> = services
        .iter()
        .take(NAMED_MAX)
        .map(|(name, w)| format!("{} ({})", one_line(name), weight(**w)))
        .collect();
    lines.push(match (named.len(), services.len().saturating_sub(NAMED_MAX)) {
        (0, _) => "No service is known to be affected.".to_owned(),
        (_, 0) => format!("Affected: {}.", named.join(", ")),
        (_, more) => format!("Affected: {} and {more} more.", named.join(", ")),
    });
    if !incident.resources.is_empty() {
        lines.push(format!(
            "Seen on {}.",
            counted(incident.resources.len(), "resource", "resources")
        ));
    }
    shortened(&lines.join("\n"), TEXT_BYTES_MAX)
}

/// What changed in an incident; `None` when nothing that the desk cares about did.
pub fn change(before: &Ticket, after: &Ticket, what: &str) -> Option<String> {
    let mut said = Vec::new();
    if before.severity != after.severity {
        let verb = if after.severity > before.severity {
            "rose"
        } else {
            "fell"
        };
        said.push(format!(
            "Severity {verb} from {} to {}",
            before.severity, after.severity
        ));
    }
    if before.priority() != after.priority() {
        said.push(format!(
            "priority is now {} instead of {}",
            after.priority(),
            before.priority()
        ));
    } else if before.severity != after.severity && after.by_person.contains(&Field::Urgency) {
        said.push(format!("priority stays {}, a person fixed it", after.priority()));
    }
    let what = one_line(what);
    if !what.is_empty() {
        said.push(what);
    }
    (!said.is_empty()).then(|| said.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use hindcast_alerting::event::{IncidentState, OnRecovery};
    use hindcast_model::{IncidentId, TenantId};

    fn incident() -> IncidentSnapshot {
        let alert = |rule: &str, summary: &str| MemberAlert {
            id: "a".into(),
            rule: rule.into(),
            severity: Some(Severity::Critical),
            labels: [("instance".to_owned(), "web-1:9100".to_owned())].into(),
            summary: summary.into(),
        };
        IncidentSnapshot {
            id: IncidentId(1),
            tenant: TenantId::default(),
            generation: 1,
            title: "Processor busy\non web-1".into(),
            state: IncidentState::Open,
            severity: Severity::Critical,
            opened_at: TimestampNs::from_secs(1_772_000_000),
            alerts: vec![
                alert("cpu_busy", "Processor of web-1 is 97 % busy"),
                alert("load-high", " "),
            ],
            resources: vec![],
            services: [("checkout".to_owned(), Criticality::Critical)].into(),
            desk_group: Some("desk".into()),
            on_recovery: OnRecovery::default(),
        }
    }

    fn check(incident: &IncidentSnapshot, expect: Expect) {
        expect.assert_eq(&format!("{}\n\n{}\n", title(incident), opening(incident)));
    }

    #[test]
    fn an_opening_says_what_where_since_when_and_for_whom() {
        check(
            &incident(),
            expect![[r#"
                Processor busy on web-1

                Critical trouble since 2026-02-25 06:13:20 UTC.
                - Processor of web-1 is 97 % busy
                - load high on web-1:9100
                Affected: checkout (critical).
            "#]],
        );
    }

    #[test]
    fn a_large_incident_is_counted_not_listed() {
        let mut incident = incident();
        incident.title.clear();
        incident.alerts = vec![incident.alerts[1].clone(); 9];
        incident.services = (0..7).map(|n| (format!("s{n}"), Criticality::Low)).collect();
        check(
            &incident,
            expect![[r#"
                load high on web-1:9100

                Critical trouble since 2026-02-25 06:13:20 UTC.
                - load high on web-1:9100
                - load high on web-1:9100
                - load high on web-1:9100
                - load high on web-1:9100
                - load high on web-1:9100
                - and 4 more
                Affected: s0 (low), s1 (low), s2 (low), s3 (low), s4 (low) and 2 more.
            "#]],
        );
    }
}

//! A ticket as a JSON request of a remote desk.
//!
//! Invariants
//! - The key follows from tenant, ticket and desk alone: every try of every node uses the same one.
//! - Equal tickets give equal bytes, so that a digest tells whether the remote one is up to date.

use hindcast_itsm::{Priority, Ticket};
use hindcast_model::{TenantId, TicketId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Names one ticket at one remote desk for good; kept there in a field that can be searched. 32 hex digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RemoteKey(String);

impl RemoteKey {
    pub fn new(tenant: &TenantId, ticket: TicketId, desk: &str) -> Self {
        let mut h = blake3::Hasher::new_derive_key("hindcast 2026 remote desk key");
        for part in [tenant.as_str(), &ticket.to_string(), desk] {
            h.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        Self(h.finalize().to_hex()[..32].to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RemoteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the remote desk calls our fields, and its words for our priorities.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeskFields {
    /// Path of its tickets, with a leading and no closing slash.
    pub path: String,
    pub key: String,
    /// Holds the digest of what was sent last.
    pub digest: String,
    pub title: String,
    pub text: String,
    pub priority: String,
    pub status: String,
    /// A priority that is not listed is sent as it is (`P1`).
    pub priorities: BTreeMap<Priority, String>,
}

impl Default for DeskFields {
    fn default() -> Self {
        Self {
            path: "/tickets".into(),
            key: "external_key".into(),
            digest: "external_digest".into(),
            title: "title".into(),
            text: "description".into(),
            priority: "priority".into(),
            status: "status".into(),
            priorities: BTreeMap::new(),
        }
    }
}

/// A ticket as the remote desk gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteTicket {
    pub key: RemoteKey,
    pub title: String,
    pub text: String,
    pub priority: Priority,
    pub status: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Get,
    Post,
    Patch,
}

/// What to send; the outbox adds address and credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteRequest {
    pub method: Method,
    /// Path and query.
    pub target: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: Option<String>,
}

impl RemoteTicket {
    /// `base_url`: of our own web UI, without a closing slash; links lead there.
    pub fn of(ticket: &Ticket, desk: &str, base_url: &str) -> Self {
        let services: Vec<_> = ticket.services.keys().map(String::as_str).collect();
        let affected = match services.is_empty() {
            true => "No service is known to be affected.".to_owned(),
            false => format!("Affected: {}.", services.join(", ")),
        };
        let (number, incident) = (ticket.number, ticket.incident);
        Self {
            key: RemoteKey::new(&ticket.tenant, number, desk),
            title: format!("[{number}] {}", ticket.title),
            text: format!(
                "{affected}\nTicket: {base_url}/tickets/{number}\nIncident: {base_url}/incidents/{incident}\nReplay: {base_url}{}",
                ticket.replay_url()
            ),
            priority: ticket.priority(),
            status: ticket.status.to_string(),
        }
    }

    /// Of everything that is sent: tells whether the remote ticket is up to date.
    pub fn digest(&self) -> String {
        let mut h = blake3::Hasher::new_derive_key("hindcast 2026 remote desk content");
        for part in [&self.title, &self.text, self.priority.as_str(), &self.status] {
            h.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        h.finalize().to_hex()[..32].to_owned()
    }

    pub fn look_up(&self, fields: &DeskFields) -> RemoteRequest {
        RemoteRequest {
            method: Method::Get,
            // Key and field name need no escaping: hex digits, and a name that the operator wrote for a URL.
            target: format!("{}?{}={}", fields.path, fields.key, self.key),
            headers: vec![],
            body: None,
        }
    }

    pub fn create(&self, fields: &DeskFields) -> RemoteRequest {
        RemoteRequest {
            method: Method::Post,
            target: fields.path.clone(),
            headers: self.headers(),
            body: Some(self.body(fields)),
        }
    }

    /// `id` is the remote desk's own; `None` when it cannot stand in a path.
    pub fn update(&self, fields: &DeskFields, id: &str) -> Option<RemoteRequest> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if id.is_empty() || id == "." || id == ".." || !id.bytes().all(plain) {
            return None;
        }
        Some(RemoteRequest {
            method: Method::Patch,
            target: format!("{}/{id}", fields.path),
            headers: self.headers(),
            body: Some(self.body(fields)),
        })
    }

    fn headers(&self) -> Vec<(&'static str, String)> {
        vec![
            ("content-type", "application/json".to_owned()),
            ("idempotency-key", format!("{}-{}", self.key, self.digest())),
        ]
    }

    fn body(&self, fields: &DeskFields) -> String {
        let priority = fields
            .priorities
            .get(&self.priority)
            .map_or(self.priority.as_str(), String::as_str);
        let digest = self.digest();
        let body: BTreeMap<&str, &str> = [
            (fields.key.as_str(), self.key.as_str()),
            (&fields.digest, &digest),
            (&fields.title, &self.title),
            (&fields.text, &self.text),
            (&fields.priority, priority),
            (&fields.status, &self.status),
        ]
        .into();
        serde_json::to_string(&body).expect("text to text")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn ticket() -> RemoteTicket {
        RemoteTicket {
            key: RemoteKey::new(&TenantId::default(), TicketId(7), "partner"),
            title: "[T-7] Processor busy".into(),
            text: "Affected: shop.".into(),
            priority: Priority::P2,
            status: "new".into(),
        }
    }

    #[test]
    fn a_ticket_becomes_a_request_in_the_words_of_the_desk() {
        let fields = DeskFields {
            path: "/api/v2/issues".into(),
            title: "subject".into(),
            priorities: [(Priority::P2, "High".to_owned())].into(),
            ..DeskFields::default()
        };
        let created = ticket().create(&fields);
        expect![[r#"{"description":"Affected: shop.","external_digest":"1aa51c8e","external_key":"k","priority":"High","status":"new","subject":"[T-7] Processor busy"}"#]]
            .assert_eq(&created.body.unwrap().replace(&ticket().digest(), "1aa51c8e").replace(ticket().key.as_str(), "k"));
        assert_eq!(created.target, "/api/v2/issues");
        let looked_up = ticket().look_up(&fields).target;
        assert_eq!(looked_up, format!("/api/v2/issues?external_key={}", ticket().key));
        assert_eq!(ticket().update(&fields, "42").unwrap().target, "/api/v2/issues/42");
        assert_eq!(ticket().update(&fields, "../users/1"), None);
    }

    #[test]
    fn keys_tell_tenants_tickets_and_desks_apart() {
        let a = TenantId::new("a").unwrap();
        let key = |t: &TenantId, n, desk| RemoteKey::new(t, TicketId(n), desk);
        let default = TenantId::default();
        assert_eq!(key(&default, 1, "x"), key(&default, 1, "x"));
        let keys = [
            key(&default, 1, "x"),
            key(&a, 1, "x"),
            key(&default, 2, "x"),
            key(&default, 1, "y"),
        ];
        let unique: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(unique.len(), keys.len());
    }

    #[test]
    fn the_digest_moves_with_everything_that_is_sent() {
        let mut other = ticket();
        other.status = "resolved".into();
        assert_ne!(ticket().digest(), other.digest());
        assert_eq!(ticket().digest(), ticket().digest());
    }
}

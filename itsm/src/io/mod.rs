//! The desk's faces: gRPC and HTTP, over one shell that proposes edits and reads rows.

pub mod grpc;
pub mod http;

use crate::desk::{DESK_PART, DeskCommand, Edit, EditReply};
use crate::rows;
use crate::ticket::{EditError, FieldConflict, Ticket};
use crate::view::{self, TicketFilter, TicketView};
use hindcast_model::{Class, Classify, TenantId, TicketId, codec};
use hindcast_raft::{Meta, MetaError, Refusal};
use std::sync::Arc;

/// Who acts when nobody says.
pub const ACTOR_DEFAULT: &str = "desk";

/// Why a call of the desk failed.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    #[error(transparent)]
    Meta(#[from] MetaError),
    #[error("{0}")]
    Bad(String),
}

impl Classify for DeskError {
    fn class(&self) -> Class {
        match self {
            Self::Meta(e) => e.class(),
            Self::Bad(_) => Class::FixRequest,
        }
    }
}

impl From<Refusal> for DeskError {
    fn from(refusal: Refusal) -> Self {
        Self::Meta(refusal.into())
    }
}

/// What both faces do.
#[derive(Clone)]
pub(crate) struct Shell {
    meta: Arc<dyn Meta>,
}

impl Shell {
    pub fn new(meta: Arc<dyn Meta>) -> Self {
        Self { meta }
    }

    pub async fn list(&self, tenant: &TenantId, status: &str, limit: usize) -> Result<Vec<Ticket>, DeskError> {
        let filter = TicketFilter::parse(status).ok_or_else(|| {
            let statuses = "new, assigned, in_progress, pending, resolved, closed, cancelled, open";
            DeskError::Bad(format!(
                "{status:?} is not a status; use one of {statuses}, or leave it out"
            ))
        })?;
        let read = self.meta.read().await?;
        Ok(view::list_tickets(read.as_ref(), tenant, filter, limit)?)
    }

    pub async fn get(&self, tenant: &TenantId, number: TicketId) -> Result<TicketView, DeskError> {
        let read = self.meta.read().await?;
        let view = view::get_ticket(read.as_ref(), tenant, number)?;
        Ok(view.ok_or_else(|| Refusal::new(Class::NotFound, EditError::NotFound { number }.to_string()))?)
    }

    pub async fn edit(&self, edit: Edit) -> Result<TicketView, DeskError> {
        let (tenant, number) = (edit.tenant.clone(), edit.number);
        let body = codec::to_bytes(&DeskCommand::Edit(edit));
        let reply = self.meta.propose(DESK_PART, body).await?;
        let reply: EditReply = codec::from_bytes(&reply).map_err(|e| Refusal::new(Class::Internal, e.to_string()))?;
        debug_assert_eq!(reply.number, number);
        // The edit is made; whoever cannot read it now may ask again with the same request id.
        let read = self.meta.read().await.map_err(|_| MetaError::Unconfirmed)?;
        let view = view::get_ticket(read.as_ref(), &tenant, number)?;
        Ok(view.ok_or_else(|| Refusal::new(Class::Internal, format!("{number} was edited and is gone")))?)
    }

    /// Both values of each field over which a refused edit failed, as far as they still differ.
    pub async fn conflicts(&self, edit: &Edit) -> Result<(Option<Ticket>, Vec<FieldConflict>), DeskError> {
        let read = self.meta.read().await?;
        let ticket = rows::ticket(read.as_ref(), edit.number)?.filter(|t| t.tenant == edit.tenant);
        let conflicts = match ticket
            .as_ref()
            .map(|t| t.edited(edit.base_version, &edit.actor, &edit.action))
        {
            Some(Err(EditError::Conflict { conflicts, .. })) => conflicts,
            _ => vec![],
        };
        Ok((ticket, conflicts))
    }
}

/// `T-1`, `t-1` or `1`.
fn number(text: &str) -> Result<TicketId, DeskError> {
    text.parse()
        .map_err(|e: hindcast_model::ids::BadId| DeskError::Bad(e.to_string()))
}

/// The actor that a header names. Headers are ASCII, names are not: `%EC%84%9C` and the like are UTF-8 bytes.
fn actor(header: Option<&str>) -> Result<String, DeskError> {
    let Some(text) = header.filter(|h| !h.is_empty()) else {
        return Ok(ACTOR_DEFAULT.to_owned());
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let hex = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
        match (hex(rest.next()), hex(rest.next())) {
            (Some(high), Some(low)) => bytes.push((high * 16 + low) as u8),
            _ => return Err(bad_actor(text)),
        }
    }
    String::from_utf8(bytes).map_err(|_| bad_actor(text))
}

fn bad_actor(text: &str) -> DeskError {
    DeskError::Bad(format!("the actor {text:?} is not percent-encoded UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_actor_may_have_any_name() {
        assert_eq!(actor(None).unwrap(), "desk");
        assert_eq!(actor(Some("kim")).unwrap(), "kim");
        assert_eq!(actor(Some("%EA%B9%80%20a")).unwrap(), "김 a");
        assert!(actor(Some("100%")).is_err());
        assert!(actor(Some("%ff")).is_err());
    }
}

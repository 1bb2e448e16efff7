//! The gateway part of the meta machine: rules, alerts, incidents, routes and the outbox, changed together.
//!
//! Promises
//! - One command changes the alert, its incident, its outbox rows and (through the desk, to the right) its ticket.
//! - An evaluation with an old fencing token, or of an instant not after the last one, changes nothing.
//! - Every firing alert with a severity belongs to one live incident; every receiver that its labels are routed to
//!   has at least one effect for that incident's generation.
//! - Every change of an alert, incident or delivery is one History record.
//!
//! Pure: a function of (rows, command, cluster time of the command).

mod deliver;
mod evaluated;
mod incidents;
#[cfg(test)]
mod tests;

pub use crate::rows;

use crate::command::{GATEWAY_PART, GatewayCommand, GatewayReply};
use crate::event::IncidentEvent;
use hindcast_model::codec::{self, DecodeError};
use hindcast_model::{Class, TenantId, TimestampNs};
use hindcast_proto::history::{HistoryKind, HistoryRecord};
use hindcast_raft::{ApplyContext, HistoryLine, MetaTx, Part, PartInput, PartOutput, Refusal};
use rows::RowSource;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The part. It has no state of its own: all of it is in rows.
#[derive(Clone, Copy, Debug, Default)]
pub struct GatewayPart;

impl Part for GatewayPart {
    fn name(&self) -> &'static str {
        GATEWAY_PART
    }

    fn apply(&self, ctx: ApplyContext, input: PartInput<'_>, tx: &mut MetaTx<'_>) -> Result<PartOutput, Refusal> {
        let PartInput::Command(body) = input else {
            // Parts to the left have nothing to say to the gateway.
            return Ok(PartOutput::default());
        };
        let command: GatewayCommand = codec::from_bytes(body)
            .map_err(|e| Refusal::new(Class::FixRequest, format!("this is no command of the gateway: {e}")))?;
        let mut apply = Apply::new(ctx, tx);
        let reply = apply.command(command)?;
        apply.out.reply = codec::to_bytes(&reply).into();
        Ok(apply.out)
    }
}

/// One command being applied.
struct Apply<'a, 'b> {
    index: u64,
    now: TimestampNs,
    tx: &'a mut MetaTx<'b>,
    out: PartOutput,
    /// History records so far.
    seq: u32,
}

impl<'a, 'b> Apply<'a, 'b> {
    fn new(ctx: ApplyContext, tx: &'a mut MetaTx<'b>) -> Self {
        Self {
            index: ctx.index,
            now: ctx.now,
            tx,
            out: PartOutput::default(),
            seq: ctx.history,
        }
    }

    fn command(&mut self, command: GatewayCommand) -> Result<GatewayReply, Refusal> {
        match command {
            GatewayCommand::SetRules {
                tenant,
                source,
                revision,
                groups,
            } => self.set_rules(&tenant, &source, &revision, groups),
            GatewayCommand::SetRoutes {
                tenant,
                revision,
                routes,
            } => self.set_routes(tenant, revision, routes),
            GatewayCommand::TakeGroupLease { group, node, ttl } => self.take_group_lease(&group, node, ttl),
            GatewayCommand::Evaluated(evaluation) => self.evaluated(evaluation),
            GatewayCommand::Tick => self.tick(),
            GatewayCommand::TakeEffect { key, node, ttl } => self.take_effect(&key, node, ttl),
            GatewayCommand::EffectDone { key, token, outcome } => self.effect_done(&key, token, outcome),
            GatewayCommand::Desk(notice) => self.desk(notice),
            GatewayCommand::SetCut {
                incident,
                generation,
                which,
                cut,
            } => self.set_cut(incident, generation, which, cut),
        }
    }

    fn load<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, Refusal> {
        rows::load(&*self.tx, key).map_err(damaged)
    }

    fn save<T: Serialize>(&mut self, key: &[u8], row: &T) {
        self.tx.put(GATEWAY_PART, key, codec::to_bytes(row));
    }

    /// An index row: its key says all.
    fn mark(&mut self, key: &[u8]) {
        self.tx.put(GATEWAY_PART, key, vec![]);
    }

    fn remove(&mut self, key: &[u8]) {
        self.tx.delete(GATEWAY_PART, key);
    }

    /// What follows `prefix` in the keys of an index.
    fn index(&self, prefix: &[u8]) -> Vec<String> {
        let rows = self.tx.rows(prefix, None, usize::MAX);
        let names = rows.iter().filter_map(|(k, _)| k.strip_prefix(prefix));
        names.map(|n| String::from_utf8_lossy(n).into_owned()).collect()
    }

    fn history(
        &mut self,
        kind: HistoryKind,
        tenant: &TenantId,
        object: impl Into<String>,
        change: &str,
        state: serde_json::Value,
    ) {
        let record = HistoryRecord {
            kind,
            tenant: tenant.clone(),
            object: object.into(),
            at: self.now,
            index: self.index,
            seq: self.seq,
            change: change.to_owned(),
            state,
        };
        self.seq += 1;
        self.out.history.push(HistoryLine {
            tenant: tenant.clone(),
            labels: kind.stream(),
            at: self.now,
            line: record.to_line(),
        });
    }

    fn tell_desk(&mut self, event: &IncidentEvent) {
        self.out.rightward.push(codec::to_bytes(event));
    }
}

fn damaged(e: DecodeError) -> Refusal {
    Refusal::new(Class::Internal, e.to_string())
}

fn refuse<T>(class: Class, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::new(class, message))
}

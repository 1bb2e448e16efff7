//! The outbox within the gateway: making effects, leasing them, and recording what came of them.

use super::{Apply, refuse};
use crate::alert::AlertRow;
use crate::command::GatewayReply;
use crate::incident::IncidentRow;
use crate::outbox::{
    EffectKey, EffectKind, EffectRow, EffectState, NOTIFIED_ALERTS_MAX, Notification, NotifiedAlert, Outcome,
    ReceiverRef, Sending, Take,
};
use crate::route::Routes;
use crate::rows::{RowSource, ThreadRow, Timer, key};
use crate::view;
use hindcast_model::{Class, IncidentId, NodeId, SpanNs, TicketId};
use hindcast_proto::history::HistoryKind;
use hindcast_raft::Refusal;

/// Ended deliveries can be listed for so long; History has them after that.
pub const EFFECT_KEEP: SpanNs = SpanNs::from_secs(30 * 86_400);
/// The longest lease that a node may ask for.
pub const LEASE_MAX: SpanNs = SpanNs::from_secs(600);

impl Apply<'_, '_> {
    /// Puts a message for every channel of a receiver into the outbox.
    pub(super) fn notify(
        &mut self,
        incident: &IncidentRow,
        receiver: &str,
        kind: EffectKind,
        wait: SpanNs,
        routes: &Routes,
        alerts: &[AlertRow],
    ) -> Result<(), Refusal> {
        // A receiver that the routes no longer have cannot be told anything.
        let Some(found) = routes.receivers.get(receiver) else {
            return Ok(());
        };
        for (i, channel) in found.channels.iter().enumerate() {
            if kind == EffectKind::Recovered && !channel.send_resolved {
                continue;
            }
            let receiver = ReceiverRef {
                name: receiver.to_owned(),
                channel: i as u32,
            };
            let thread_key = key::thread(incident.id, &receiver);
            let thread: Option<ThreadRow> = self.load(&thread_key)?;
            let notification = self.notification(incident, kind, alerts);
            if let Some(thread) = thread.as_ref().filter(|t| t.generation == incident.generation)
                && self.is_said_by(&thread.last, kind, &notification)?
            {
                continue;
            }
            let step = thread
                .as_ref()
                .filter(|t| t.generation == incident.generation)
                .map_or(0, |t| t.step);
            let key = EffectKey::new(
                &incident.tenant,
                incident.id,
                incident.generation,
                kind,
                &receiver,
                step,
            );
            let effect = EffectRow {
                key: key.clone(),
                tenant: incident.tenant.clone(),
                incident: incident.id,
                generation: incident.generation,
                kind,
                receiver,
                step,
                target: channel.target.clone(),
                notification,
                state: EffectState::Pending,
                attempts: 0,
                attempts_max: routes.settings.delivery_attempts_max,
                pause_first: routes.settings.delivery_pause_first,
                pause_max: routes.settings.delivery_pause_max,
                created_at: self.now,
                due: self.now + wait,
                lease: None,
                after: thread.as_ref().map(|t| t.last.clone()),
                last_error: String::new(),
                receipt: None,
                ended_at: None,
            };
            let next = ThreadRow {
                root: thread.as_ref().map_or_else(|| key.clone(), |t| t.root.clone()),
                last: key.clone(),
                generation: incident.generation,
                step: step + 1,
                receipt: thread
                    .filter(|t| t.generation == incident.generation)
                    .and_then(|t| t.receipt),
            };
            self.save(&thread_key, &next);
            self.mark(&key::effect_of(incident.id, effect.created_at, &key));
            self.put_effect(None, &effect);
            self.effect_history(&effect, "queued");
        }
        Ok(())
    }

    /// Whether the last message of the thread is still waiting and can say the news itself. A message that must
    /// follow it does not wait longer than it would have alone.
    fn is_said_by(&mut self, last: &EffectKey, kind: EffectKind, news: &Notification) -> Result<bool, Refusal> {
        let Some(before) = self.load::<EffectRow>(&key::effect(last))? else {
            return Ok(false);
        };
        if kind == EffectKind::Reminder && !before.state.has_ended() {
            // Nobody has been told the first time yet: a reminder would only wait behind it.
            return Ok(true);
        }
        if !before.is_untouched() {
            return Ok(false);
        }
        let mut after = before.clone();
        let joins = matches!(kind, EffectKind::Updated | EffectKind::Raised) && before.kind != EffectKind::Recovered;
        if joins {
            after.notification = Notification {
                kind: before.kind,
                ..news.clone()
            };
        }
        if kind != EffectKind::Updated {
            after.due = after.due.min(self.now);
        }
        self.put_effect(Some(&before), &after);
        Ok(joins)
    }

    fn notification(&self, incident: &IncidentRow, kind: EffectKind, alerts: &[AlertRow]) -> Notification {
        Notification {
            kind,
            tenant: incident.tenant.clone(),
            incident: incident.id,
            generation: incident.generation,
            title: incident.title.clone(),
            state: incident.state,
            severity: incident.severity,
            opened_at: incident.opened_at,
            at: self.now,
            flaps: incident.flaps,
            ticket: incident.ticket,
            alerts: alerts.iter().take(NOTIFIED_ALERTS_MAX).map(notified).collect(),
            alerts_total: alerts.len() as u64,
        }
    }

    /// Saves an effect and keeps its place in the list of what is due.
    fn put_effect(&mut self, before: Option<&EffectRow>, after: &EffectRow) {
        if let Some(before) = before {
            self.remove(&key::due(before.due, &before.key));
        }
        if after.state.has_ended() {
            let timer = Timer::ForgetEffect { key: after.key.clone() };
            self.set_timer(self.now + EFFECT_KEEP, &timer);
        } else {
            self.mark(&key::due(after.due, &after.key));
        }
        self.save(&key::effect(&after.key), after);
    }

    pub(super) fn take_effect(
        &mut self,
        wanted: &EffectKey,
        node: NodeId,
        ttl: SpanNs,
    ) -> Result<GatewayReply, Refusal> {
        if ttl == SpanNs::ZERO || ttl > LEASE_MAX {
            return refuse(
                Class::FixRequest,
                format!("a lease of {ttl} is out of range; use up to {LEASE_MAX}"),
            );
        }
        let before = self.effect(wanted)?;
        let before_ended = match &before.after {
            Some(key) => self
                .load::<EffectRow>(&key::effect(key))?
                .is_none_or(|e| e.state.has_ended()),
            None => true,
        };
        let mut row = before.clone();
        match row.take(node, self.index, ttl, before_ended, self.now) {
            Take::NotNow(why) => Ok(GatewayReply::NotNow { why }),
            Take::Ended => Ok(GatewayReply::Ended { state: row.state }),
            Take::GaveUp => {
                self.put_effect(Some(&before), &row);
                self.effect_history(&row, "gave_up");
                Ok(GatewayReply::Ended { state: row.state })
            }
            Take::Leased => {
                self.put_effect(Some(&before), &row);
                let thread: Option<ThreadRow> = self.load(&key::thread(row.incident, &row.receiver))?;
                let receipt = thread
                    .as_ref()
                    .filter(|t| t.generation == row.generation)
                    .and_then(|t| t.receipt.clone());
                Ok(GatewayReply::Send(Box::new(Sending {
                    token: self.index,
                    thread_root: thread.map_or_else(|| row.key.clone(), |t| t.root),
                    thread_receipt: receipt,
                    effect: row,
                })))
            }
        }
    }

    pub(super) fn effect_done(
        &mut self,
        done: &EffectKey,
        token: u64,
        outcome: Outcome,
    ) -> Result<GatewayReply, Refusal> {
        let before = self.effect(done)?;
        let mut row = before.clone();
        if !row.finish(token, outcome, self.now) {
            let message = format!("effect {done}: token {token} is not that of its lease; somebody else has it");
            return refuse(Class::Conflict, message);
        }
        self.put_effect(Some(&before), &row);
        if let Some(receipt) = &row.receipt {
            let thread_key = key::thread(row.incident, &row.receiver);
            if let Some(mut thread) = self.load::<ThreadRow>(&thread_key)?
                && thread.generation == row.generation
            {
                thread.receipt = Some(receipt.clone());
                self.save(&thread_key, &thread);
            }
        }
        let change = match row.state {
            EffectState::Pending => "retrying",
            state => state.as_str(),
        };
        self.effect_history(&row, change);
        Ok(GatewayReply::Done)
    }

    fn effect(&self, wanted: &EffectKey) -> Result<EffectRow, Refusal> {
        match self.load(&key::effect(wanted))? {
            Some(row) => Ok(row),
            None => refuse(Class::NotFound, format!("there is no effect {wanted}")),
        }
    }

    fn effect_history(&mut self, effect: &EffectRow, change: &str) {
        let state = view::effect(effect);
        self.history(
            HistoryKind::Delivery,
            &effect.tenant,
            effect.key.0.clone(),
            change,
            state,
        );
    }

    /// Messages that have not left yet name the ticket.
    pub(super) fn put_ticket_into_effects(
        &mut self,
        incident: IncidentId,
        generation: u64,
        ticket: TicketId,
    ) -> Result<(), Refusal> {
        let prefix = key::effects_of(incident);
        for (index_key, _) in self.tx.rows(&prefix, None, usize::MAX) {
            let name = String::from_utf8_lossy(&index_key[prefix.len() + 8..]).into_owned();
            let row: Option<EffectRow> = self.load(&key::effect(&EffectKey(name)))?;
            if let Some(mut row) = row.filter(|r| r.generation == generation && r.is_untouched()) {
                row.notification.ticket = Some(ticket);
                self.save(&key::effect(&row.key), &row);
            }
        }
        Ok(())
    }

    pub(super) fn forget_effect(&mut self, forgotten: &EffectKey) -> Result<(), Refusal> {
        if let Some(row) = self.load::<EffectRow>(&key::effect(forgotten))? {
            self.remove(&key::effect_of(row.incident, row.created_at, forgotten));
            self.remove(&key::effect(forgotten));
        }
        Ok(())
    }
}

fn notified(alert: &AlertRow) -> NotifiedAlert {
    NotifiedAlert {
        id: alert.id.clone(),
        rule: alert.rule.clone(),
        state: alert.clock.state.as_str().to_owned(),
        severity: alert.clock.severity,
        value: alert.value,
        summary: alert.summary(),
        description: alert.annotations.get("description").cloned().unwrap_or_default(),
        labels: alert.labels.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect(),
    }
}

//! What alert changes do to incidents: correlation, the incident's states, the desk, timers and cuts.

use super::{Apply, damaged, refuse};
use crate::alert::AlertRow;
use crate::command::{CutOf, GatewayReply};
use crate::event::{DeskNotice, IncidentEvent, IncidentEventKind, IncidentState};
use crate::incident::{
    CORRELATE_WINDOW, IncidentRow, MEMBERS_MAX, Member, RoutedReceiver, SEAL_AFTER_CLOSE, correlation_keys,
    criticality, service,
};
use crate::outbox::EffectKind;
use crate::route::Routes;
use crate::rows::{self, CutDue, OwnerRow, RowSource, Timer, key};
use crate::view;
use hindcast_env::planted::{Bug, number_of_this_process, planted};
use hindcast_model::codec;
use hindcast_model::{Class, CutId, IncidentId, Severity, SpanNs, TimestampNs};
use hindcast_proto::history::HistoryKind;
use hindcast_raft::Refusal;
use std::collections::{BTreeMap, BTreeSet};

/// Timers that one `Tick` handles; the rest are due for the next.
pub const TIMERS_PER_TICK_MAX: usize = 256;

/// Incidents that a command has changed so far, and how.
#[derive(Default)]
pub(super) struct Touched {
    incidents: BTreeMap<IncidentId, Touch>,
}

#[derive(Default)]
struct Touch {
    opened: bool,
    recurred: bool,
    reopened: bool,
    /// Alerts that joined or rose: their labels are routed.
    news: BTreeSet<String>,
    joined: BTreeSet<String>,
    resolved: BTreeSet<String>,
}

impl Touched {
    fn of(&mut self, alert: &AlertRow) -> Option<&mut Touch> {
        Some(self.incidents.entry(alert.incident?).or_default())
    }

    pub(super) fn raised(&mut self, alert: &AlertRow) {
        if let Some(touch) = self.of(alert) {
            touch.news.insert(alert.id.clone());
        }
    }

    pub(super) fn changed(&mut self, alert: &AlertRow) {
        self.of(alert);
    }

    pub(super) fn resolved(&mut self, alert: &AlertRow) {
        if let Some(touch) = self.of(alert) {
            touch.resolved.insert(alert.id.clone());
        }
    }
}

/// How an alert comes to its incident.
enum Way {
    /// It is the first.
    Open,
    /// It is live already.
    Join,
    Reopen,
    Recur,
}

impl Apply<'_, '_> {
    /// An alert fired: it joins or opens an incident.
    pub(super) fn fired(&mut self, alert: &mut AlertRow, touched: &mut Touched) -> Result<(), Refusal> {
        let Some(severity) = alert.clock.severity else {
            alert.generation += 1;
            alert.decide("event_only", self.now);
            return Ok(());
        };
        let settings = rows::routes(&*self.tx, &alert.tenant).map_err(damaged)?.routes.settings;
        let (mut incident, way) = match self.correlate(alert, settings.reopen_window)? {
            Some(found) => found,
            None => (self.open(alert, severity)?, Way::Open),
        };
        let touch = touched.incidents.entry(incident.id).or_default();
        let was_member = incident.is_member(&alert.id);
        let reason = match way {
            Way::Open => {
                touch.opened = true;
                "opened_incident"
            }
            Way::Join if incident.state == IncidentState::Recovered => {
                incident.reopen();
                touch.reopened = true;
                if was_member { "relapsed" } else { "joined_incident" }
            }
            Way::Join if was_member => "fired_again",
            Way::Join => "joined_incident",
            Way::Reopen => {
                touch.reopened = true;
                let closed_at = incident.closed_at;
                incident.reopen();
                if let Some(at) = closed_at {
                    // A seal that was not taken yet waits for the next close.
                    self.remove(&key::cut_due(&cut_due(&incident, CutOf::Sealed, at + SEAL_AFTER_CLOSE)));
                }
                "relapsed"
            }
            Way::Recur => {
                touch.recurred = true;
                incident.recur(severity, self.now);
                self.ask_for_cut(&incident, CutOf::Opened, self.now);
                "recurred"
            }
        };
        let now = self.now;
        match incident.members.iter_mut().find(|m| m.alert == alert.id) {
            Some(member) => member.on = true,
            None => {
                alert.generation += 1;
                touch.joined.insert(alert.id.clone());
                incident.members.push(Member {
                    alert: alert.id.clone(),
                    joined_at: now,
                    on: true,
                });
            }
        }
        touch.news.insert(alert.id.clone());
        alert.incident = Some(incident.id);
        alert.decide(reason, now);
        incident.resources.extend(alert.resource);
        if let Some(name) = service(alert) {
            let weight = criticality(alert);
            let known = incident.services.entry(name).or_insert(weight);
            *known = weight.max(*known);
        }
        self.claim_keys(&mut incident, alert)?;
        self.save(&key::incident(incident.id), &incident);
        Ok(())
    }

    fn correlate(&self, alert: &AlertRow, reopen_window: SpanNs) -> Result<Option<(IncidentRow, Way)>, Refusal> {
        let own = match alert.incident {
            Some(id) => self.load::<IncidentRow>(&key::incident(id))?,
            None => None,
        };
        if let Some(row) = own.as_ref().filter(|i| i.is_live()) {
            return Ok(Some((row.clone(), Way::Join)));
        }
        for correlation in correlation_keys(alert) {
            let owner: Option<OwnerRow> = self.load(&key::owner(&alert.tenant, &correlation.text))?;
            let Some(owner) = owner else { continue };
            if correlation.windowed && self.now > owner.at + CORRELATE_WINDOW {
                continue;
            }
            let found: Option<IncidentRow> = self.load(&key::incident(owner.incident))?;
            let has_room = |i: &IncidentRow| i.members.len() < MEMBERS_MAX || i.is_member(&alert.id);
            if let Some(row) = found.filter(|i| i.is_live() && has_room(i)) {
                return Ok(Some((row, Way::Join)));
            }
        }
        Ok(own.map(|row| {
            let way = if row.is_reopenable(reopen_window, self.now) {
                Way::Reopen
            } else {
                Way::Recur
            };
            (row, way)
        }))
    }

    fn open(&mut self, alert: &AlertRow, severity: Severity) -> Result<IncidentRow, Refusal> {
        let last: u64 = self.load(key::INCIDENT_COUNTER)?.unwrap_or(0);
        let id = match planted(Bug::NumberOutsideLog) {
            true => IncidentId(number_of_this_process()),
            false => IncidentId(last + 1),
        };
        self.save(key::INCIDENT_COUNTER, &id.0);
        self.mark(&key::incident_of(&alert.tenant, id));
        let place = alert.place();
        let title = if place.is_empty() {
            alert.rule.clone()
        } else {
            format!("{} on {place}", alert.rule)
        };
        let incident = IncidentRow::new(id, alert.tenant.clone(), title, severity, self.now);
        self.ask_for_cut(&incident, CutOf::Opened, self.now);
        Ok(incident)
    }

    /// The incident takes the alert's keys that no other live incident owns.
    fn claim_keys(&mut self, incident: &mut IncidentRow, alert: &AlertRow) -> Result<(), Refusal> {
        for correlation in correlation_keys(alert) {
            let owner_key = key::owner(&alert.tenant, &correlation.text);
            let owner: Option<OwnerRow> = self.load(&owner_key)?;
            let is_free = match owner {
                None => true,
                Some(o) if o.incident == incident.id => true,
                Some(o) if correlation.windowed && self.now > o.at + CORRELATE_WINDOW => {
                    self.give_up_key(o.incident, &correlation.text)?;
                    true
                }
                Some(o) => {
                    let holder: Option<IncidentRow> = self.load(&key::incident(o.incident))?;
                    holder.is_none_or(|h| !h.is_live())
                }
            };
            if is_free {
                let owner = OwnerRow {
                    incident: incident.id,
                    at: self.now,
                };
                self.save(&owner_key, &owner);
                incident.keys.insert(correlation.text);
            }
        }
        Ok(())
    }

    /// A windowed key passes on; the old owner must not take it away again when it closes.
    fn give_up_key(&mut self, from: IncidentId, text: &str) -> Result<(), Refusal> {
        if let Some(mut row) = self.load::<IncidentRow>(&key::incident(from))? {
            row.keys.remove(text);
            self.save(&key::incident(from), &row);
        }
        Ok(())
    }

    /// Brings every touched incident to a state that fits its alerts, and tells whoever is to be told.
    pub(super) fn settle(&mut self, touched: Touched) -> Result<(), Refusal> {
        for (id, touch) in touched.incidents {
            if let Some(row) = self.load(&key::incident(id))? {
                self.settle_one(row, &touch)?;
            }
        }
        Ok(())
    }

    fn settle_one(&mut self, mut incident: IncidentRow, touch: &Touch) -> Result<(), Refusal> {
        for member in &mut incident.members {
            if touch.resolved.contains(&member.alert) {
                member.on = false;
            }
        }
        let routes = rows::routes(&*self.tx, &incident.tenant).map_err(damaged)?.routes;
        let alerts = self.members_of(&incident)?;
        let now_worst = alerts.iter().filter_map(|a| a.clock.severity).max();
        let is_raised = now_worst.is_some_and(|s| s > incident.severity);
        incident.severity = now_worst.map_or(incident.severity, |s| s.max(incident.severity));
        let is_recovered = incident.state == IncidentState::Open && incident.members.iter().all(|m| !m.on);
        if is_recovered {
            incident.state = IncidentState::Recovered;
            incident.recovered_at = Some(self.now);
            let timer = Timer::CoolDown {
                incident: incident.id,
                generation: incident.generation,
            };
            self.set_timer(self.now + routes.settings.cool_down, &timer);
        }
        let what = describe(touch, is_raised, is_recovered, &incident, &alerts);
        let Some((change, words)) = what else {
            self.save(&key::incident(incident.id), &incident);
            return Ok(());
        };
        incident.note(self.now, words.clone());
        self.tell(&mut incident, touch, is_raised, is_recovered, &routes, &alerts)?;
        self.tell_desk_of(&mut incident, touch, is_recovered, words, &alerts);
        self.save(&key::incident(incident.id), &incident);
        self.history(
            HistoryKind::Incident,
            &incident.tenant,
            incident.id.to_string(),
            change,
            view::incident(&incident),
        );
        Ok(())
    }

    /// The alerts of this generation, those that are on first, the worst first.
    fn members_of(&self, incident: &IncidentRow) -> Result<Vec<AlertRow>, Refusal> {
        let mut alerts = vec![];
        for member in &incident.members {
            let row: Option<AlertRow> = self.load(&key::alert(&incident.tenant, &member.alert))?;
            // One that has gone on to another incident speaks there.
            alerts.extend(row.filter(|a| a.incident == Some(incident.id)));
        }
        alerts.sort_by(|a: &AlertRow, b| {
            let rank = |x: &AlertRow| (!x.clock.state.is_on(), std::cmp::Reverse(x.clock.severity));
            rank(a).cmp(&rank(b)).then_with(|| a.id.cmp(&b.id))
        });
        Ok(alerts)
    }

    /// Routes the news, and puts messages for old and new receivers into the outbox.
    fn tell(
        &mut self,
        incident: &mut IncidentRow,
        touch: &Touch,
        is_raised: bool,
        is_recovered: bool,
        routes: &Routes,
        alerts: &[AlertRow],
    ) -> Result<(), Refusal> {
        let known: Vec<String> = incident.receivers.keys().cloned().collect();
        let mut first_waits: BTreeMap<String, SpanNs> = BTreeMap::new();
        for alert in alerts.iter().filter(|a| touch.news.contains(&a.id)) {
            for routed in routes.route(&routing_labels(alert)) {
                let says = RoutedReceiver {
                    group_interval: routed.route.group_interval,
                    repeat_interval: routed.route.repeat_interval,
                };
                if !incident.receivers.contains_key(routed.receiver) {
                    incident.receivers.insert(routed.receiver.to_owned(), says);
                    first_waits.insert(routed.receiver.to_owned(), routed.route.group_wait);
                }
                let receiver = routes.receivers.get(routed.receiver);
                if let (None, Some(desk)) = (&incident.desk_group, receiver.and_then(|r| r.desk.as_ref())) {
                    incident.desk_group = Some(desk.group.clone());
                    incident.on_recovery = desk.on_recovery;
                }
            }
        }
        let again = if touch.reopened {
            Some(EffectKind::Reopened)
        } else if is_raised {
            Some(EffectKind::Raised)
        } else if !touch.joined.is_empty() {
            Some(EffectKind::Updated)
        } else {
            None
        };
        if let Some(kind) = again {
            for name in &known {
                let wait = match kind {
                    EffectKind::Updated => incident.receivers[name].group_interval,
                    _ => SpanNs::ZERO,
                };
                self.notify(incident, name, kind, wait, routes, alerts)?;
            }
        }
        for (name, wait) in &first_waits {
            self.notify(incident, name, EffectKind::Opened, *wait, routes, alerts)?;
        }
        if is_recovered {
            for name in incident.receivers.keys().cloned().collect::<Vec<_>>() {
                self.notify(incident, &name, EffectKind::Recovered, SpanNs::ZERO, routes, alerts)?;
            }
        } else if touch.reopened || !first_waits.is_empty() {
            self.schedule_reminder(incident);
        }
        Ok(())
    }

    fn tell_desk_of(
        &mut self,
        incident: &mut IncidentRow,
        touch: &Touch,
        is_recovered: bool,
        words: String,
        alerts: &[AlertRow],
    ) {
        if incident.desk_group.is_none() {
            return;
        }
        let mut kinds = vec![];
        if incident.desk_told != Some(incident.generation) {
            kinds.push(match incident.desk_told {
                Some(_) => IncidentEventKind::Recurred,
                None => IncidentEventKind::Opened,
            });
            incident.desk_told = Some(incident.generation);
        } else if touch.reopened {
            kinds.push(IncidentEventKind::Reopened);
        } else if !is_recovered {
            kinds.push(IncidentEventKind::Changed { what: words });
        }
        if is_recovered {
            kinds.push(IncidentEventKind::Recovered);
        }
        for kind in kinds {
            self.tell_desk(&IncidentEvent {
                kind,
                incident: incident.snapshot(alerts),
            });
        }
    }

    fn schedule_reminder(&mut self, incident: &IncidentRow) {
        let Some(every) = incident.receivers.values().filter_map(|r| r.repeat_interval).min() else {
            return;
        };
        let timer = Timer::Remind {
            incident: incident.id,
            generation: incident.generation,
        };
        self.set_timer(self.now + every, &timer);
    }

    pub(super) fn set_timer(&mut self, at: TimestampNs, timer: &Timer) {
        let name = match timer {
            Timer::CoolDown { incident, generation } => format!("cool_down/{}/{generation}", incident.0),
            Timer::Remind { incident, generation } => format!("remind/{}/{generation}", incident.0),
            Timer::ForgetEffect { key } => format!("forget/{key}"),
        };
        self.save(&key::timer(at, &name), timer);
    }

    pub(super) fn tick(&mut self) -> Result<GatewayReply, Refusal> {
        let due = self.tx.rows(b"timer/", None, TIMERS_PER_TICK_MAX);
        let mut reply = GatewayReply::Unchanged;
        for (timer_key, value) in due {
            let Some(at) = key::time_of(b"timer/", &timer_key).filter(|at| *at <= self.now) else {
                break;
            };
            reply = GatewayReply::Done;
            self.remove(&timer_key);
            match codec::from_bytes(&value).map_err(damaged)? {
                Timer::CoolDown { incident, generation } => self.cool_down_over(incident, generation)?,
                Timer::Remind { incident, generation } => self.remind(incident, generation, at)?,
                Timer::ForgetEffect { key } => self.forget_effect(&key)?,
            }
        }
        Ok(reply)
    }

    /// The incident closes, unless it has relapsed since the timer was set.
    fn cool_down_over(&mut self, id: IncidentId, generation: u64) -> Result<(), Refusal> {
        let Some(mut incident) = self.load::<IncidentRow>(&key::incident(id))? else {
            return Ok(());
        };
        let settings = rows::routes(&*self.tx, &incident.tenant)
            .map_err(damaged)?
            .routes
            .settings;
        let quiet_since = match (incident.state, incident.recovered_at) {
            (IncidentState::Recovered, Some(at)) if incident.generation == generation => at,
            _ => return Ok(()),
        };
        if self.now < quiet_since + settings.cool_down {
            // It relapsed and recovered anew, or the cool-down was made longer: the wait starts from there.
            let timer = Timer::CoolDown {
                incident: id,
                generation,
            };
            self.set_timer(quiet_since + settings.cool_down, &timer);
            return Ok(());
        }
        incident.state = IncidentState::Closed;
        incident.closed_at = Some(self.now);
        incident.note(self.now, "closed after its cool-down");
        for text in std::mem::take(&mut incident.keys) {
            self.remove(&key::owner(&incident.tenant, &text));
        }
        self.ask_for_cut(&incident, CutOf::Sealed, self.now + SEAL_AFTER_CLOSE);
        self.save(&key::incident(id), &incident);
        self.history(
            HistoryKind::Incident,
            &incident.tenant,
            id.to_string(),
            "closed",
            view::incident(&incident),
        );
        if incident.desk_told == Some(incident.generation) {
            let alerts = self.members_of(&incident)?;
            self.tell_desk(&IncidentEvent {
                kind: IncidentEventKind::Closed,
                incident: incident.snapshot(&alerts),
            });
        }
        Ok(())
    }

    fn remind(&mut self, id: IncidentId, generation: u64, _at: TimestampNs) -> Result<(), Refusal> {
        let Some(incident) = self.load::<IncidentRow>(&key::incident(id))? else {
            return Ok(());
        };
        let is_wanted = incident.generation == generation
            && incident.state == IncidentState::Open
            // Somebody owns it: paging stops.
            && incident.taken_by.is_none();
        if !is_wanted {
            return Ok(());
        }
        let routes = rows::routes(&*self.tx, &incident.tenant).map_err(damaged)?.routes;
        let alerts = self.members_of(&incident)?;
        for (name, says) in &incident.receivers {
            if says.repeat_interval.is_some() {
                self.notify(&incident, name, EffectKind::Reminder, SpanNs::ZERO, &routes, &alerts)?;
            }
        }
        self.schedule_reminder(&incident);
        Ok(())
    }

    pub(super) fn desk(&mut self, notice: DeskNotice) -> Result<GatewayReply, Refusal> {
        let (id, generation) = match &notice {
            DeskNotice::TicketOpened {
                incident, generation, ..
            }
            | DeskNotice::TicketTaken {
                incident, generation, ..
            } => (*incident, *generation),
        };
        let Some(mut incident) = self.load::<IncidentRow>(&key::incident(id))? else {
            return refuse(Class::NotFound, format!("there is no incident {id}"));
        };
        if incident.generation != generation {
            // Of a life that is over; the incident has moved on.
            return Ok(GatewayReply::Unchanged);
        }
        let change = match notice {
            DeskNotice::TicketOpened { ticket, .. } => {
                incident.ticket = Some(ticket);
                incident.note(self.now, format!("ticket {ticket} opened"));
                self.put_ticket_into_effects(id, generation, ticket)?;
                "ticket_opened"
            }
            DeskNotice::TicketTaken { ticket, by, .. } => {
                incident.note(self.now, format!("{by} took ticket {ticket}"));
                incident.taken_by = Some(by);
                "ticket_taken"
            }
        };
        self.save(&key::incident(id), &incident);
        let state = view::incident(&incident);
        self.history(HistoryKind::Incident, &incident.tenant, id.to_string(), change, state);
        Ok(GatewayReply::Done)
    }

    fn ask_for_cut(&mut self, incident: &IncidentRow, which: CutOf, due: TimestampNs) {
        let row = cut_due(incident, which, due);
        self.save(&key::cut_due(&row), &row);
    }

    pub(super) fn set_cut(
        &mut self,
        id: IncidentId,
        generation: u64,
        which: CutOf,
        cut: CutId,
    ) -> Result<GatewayReply, Refusal> {
        let Some(mut incident) = self.load::<IncidentRow>(&key::incident(id))? else {
            return refuse(Class::NotFound, format!("there is no incident {id}"));
        };
        for (due_key, value) in self.tx.rows(b"cut_due/", None, usize::MAX) {
            let due: CutDue = codec::from_bytes(&value).map_err(damaged)?;
            if (due.incident, due.generation, due.which) == (id, generation, which) {
                self.remove(&due_key);
            }
        }
        if incident.generation == generation {
            let (place, words) = match which {
                CutOf::Opened => (&mut incident.opened_cut, "taken at its opening"),
                CutOf::Sealed => (&mut incident.sealed_cut, "seals it"),
            };
            *place = Some(cut);
            incident.note(self.now, format!("{cut} {words}"));
        } else if let Some(earlier) = incident.earlier.iter_mut().find(|e| e.generation == generation) {
            match which {
                CutOf::Opened => earlier.opened_cut = Some(cut),
                CutOf::Sealed => earlier.sealed_cut = Some(cut),
            }
        } else {
            return refuse(Class::NotFound, format!("{id} has no generation {generation}"));
        }
        self.save(&key::incident(id), &incident);
        let change = match which {
            CutOf::Opened => "opened_cut",
            CutOf::Sealed => "sealed",
        };
        let state = view::incident(&incident);
        self.history(HistoryKind::Incident, &incident.tenant, id.to_string(), change, state);
        Ok(GatewayReply::Done)
    }
}

fn cut_due(incident: &IncidentRow, which: CutOf, due: TimestampNs) -> CutDue {
    CutDue {
        tenant: incident.tenant.clone(),
        incident: incident.id,
        generation: incident.generation,
        which,
        due,
    }
}

/// The labels that routes match: the alert's, with its level as `severity` (which other tools spell as they like).
fn routing_labels(alert: &AlertRow) -> hindcast_model::Labels {
    match alert.clock.severity {
        Some(severity) => alert.labels.with("severity", severity.as_str()),
        None => alert.labels.clone(),
    }
}

/// One word for History and one sentence for people; `None`: nothing that anybody needs to know.
fn describe(
    touch: &Touch,
    is_raised: bool,
    is_recovered: bool,
    incident: &IncidentRow,
    alerts: &[AlertRow],
) -> Option<(&'static str, String)> {
    let names = |ids: &BTreeSet<String>| {
        let named = alerts.iter().filter(|a| ids.contains(&a.id));
        let mut names: Vec<_> = named.map(AlertRow::summary).collect();
        let more = names.len().saturating_sub(3);
        names.truncate(3);
        let rest = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        format!("{}{rest}", names.join("; "))
    };
    let severity = incident.severity;
    if touch.opened {
        Some(("opened", format!("opened as {severity}: {}", names(&touch.joined))))
    } else if touch.recurred {
        let words = format!(
            "came back as generation {}: {}",
            incident.generation,
            names(&touch.joined)
        );
        Some(("recurred", words))
    } else if touch.reopened {
        Some(("reopened", format!("reopened: {}", names(&touch.news))))
    } else if is_recovered {
        Some(("recovered", "all alerts have resolved".to_owned()))
    } else if is_raised {
        Some(("raised", format!("rose to {severity}: {}", names(&touch.news))))
    } else if !touch.joined.is_empty() {
        Some(("joined", format!("also: {}", names(&touch.joined))))
    } else if !touch.news.is_empty() {
        Some(("changed", format!("firing again: {}", names(&touch.news))))
    } else if !touch.resolved.is_empty() {
        Some(("changed", format!("resolved: {}", names(&touch.resolved))))
    } else {
        None
    }
}

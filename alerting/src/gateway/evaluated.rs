//! Rules, leases of rule groups, and what an evaluation does to alerts.

use super::incidents::Touched;
use super::{Apply, damaged, refuse};
use crate::alert::{self, AlertClock, AlertRow, AlertState, Observation, Reason};
use crate::command::{Evaluation, GatewayReply, GroupKey, RuleResult, SERIES_PER_RULE_MAX};
use crate::outbox::Lease;
use crate::route::Routes;
use crate::rows::{self, GroupRow, RoutesRow, RuleHealth, SourceRow, key};
use crate::rule::{Condition, Language, Rule, RuleGroup};
use crate::{template, view};
use hindcast_model::resource::owning_resource;
use hindcast_model::{Class, Labels, METRIC_NAME, NodeId, Severity, SpanNs, TenantId};
use hindcast_proto::history::HistoryKind;
use hindcast_raft::Refusal;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

impl Apply<'_, '_> {
    pub(super) fn set_rules(
        &mut self,
        tenant: &TenantId,
        source: &str,
        revision: &str,
        groups: Vec<RuleGroup>,
    ) -> Result<GatewayReply, Refusal> {
        let names = std::iter::once(source).chain(groups.iter().map(|g| g.name.as_str()));
        for name in names {
            if name.is_empty() || name.chars().any(char::is_control) {
                let message =
                    format!("{name:?} cannot name a rule file or group: it is empty or has control characters");
                return refuse(Class::FixRequest, message);
            }
        }
        let known: Option<SourceRow> = self.load(&key::source(tenant, source))?;
        if known.as_ref().is_some_and(|k| k.revision == revision) {
            return Ok(GatewayReply::Unchanged);
        }
        let before = rows_of_groups(self, tenant, source)?;
        let mut touched = Touched::default();
        for (group_key, old) in &before {
            let new = groups.iter().find(|g| g.name == old.key.group);
            self.end_removed_rules(&old.key, &old.group, new, &mut touched)?;
            if new.is_none() {
                self.remove(group_key);
            }
        }
        let group_names: Vec<_> = groups.iter().map(|g| g.name.clone()).collect();
        for group in groups {
            let group_key = GroupKey {
                tenant: tenant.clone(),
                source: source.to_owned(),
                group: group.name.clone(),
            };
            let old = before.iter().map(|(_, row)| row).find(|r| r.key == group_key);
            let row = GroupRow {
                revision: revision.to_owned(),
                // What it knew of the old rules does not hold for the new ones, order included.
                health: vec![RuleHealth::default(); group.rules.len()],
                lease: old.and_then(|o| o.lease),
                evaluated_at: old.and_then(|o| o.evaluated_at),
                partial: false,
                missing: vec![],
                key: group_key,
                group,
            };
            self.save(&key::group(&row.key), &row);
        }
        self.settle(touched)?;
        let change = if group_names.is_empty() { "removed" } else { "set" };
        if group_names.is_empty() {
            self.remove(&key::source(tenant, source));
        } else {
            let row = SourceRow {
                tenant: tenant.clone(),
                source: source.to_owned(),
                revision: revision.to_owned(),
                groups: group_names.clone(),
            };
            self.save(&key::source(tenant, source), &row);
        }
        let state = json!({"source": source, "revision": revision, "groups": group_names});
        self.history(HistoryKind::Rule, tenant, source, change, state);
        Ok(GatewayReply::Done)
    }

    /// Resolves the alerts of rules that the new group does not have.
    fn end_removed_rules(
        &mut self,
        group: &GroupKey,
        old: &RuleGroup,
        new: Option<&RuleGroup>,
        touched: &mut Touched,
    ) -> Result<(), Refusal> {
        for rule in &old.rules {
            let kept = new.is_some_and(|g| g.rules.iter().any(|r| (&r.name, r.nth) == (&rule.name, rule.nth)));
            if kept {
                continue;
            }
            let rule_id = rows::rule_id(group, rule);
            for id in self.index(&key::alerts_of(&rule_id)) {
                let Some(mut row) = self.load::<AlertRow>(&key::alert(&group.tenant, &id))? else {
                    continue;
                };
                if let Some(reason) = alert::end(&mut row.clock, self.now) {
                    self.alert_changed(&mut row, reason, touched)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn set_routes(
        &mut self,
        tenant: Option<TenantId>,
        revision: String,
        routes: Routes,
    ) -> Result<GatewayReply, Refusal> {
        let routes_key = key::routes(tenant.as_ref());
        let known: Option<RoutesRow> = self.load(&routes_key)?;
        if known.is_some_and(|k| k.revision == revision) {
            return Ok(GatewayReply::Unchanged);
        }
        let receivers: Vec<_> = routes.receivers.keys().cloned().collect();
        let state = json!({"revision": revision, "receivers": receivers});
        self.save(&routes_key, &RoutesRow { revision, routes });
        self.history(HistoryKind::Rule, &tenant.unwrap_or_default(), "routes", "set", state);
        Ok(GatewayReply::Done)
    }

    pub(super) fn take_group_lease(
        &mut self,
        group: &GroupKey,
        node: NodeId,
        ttl: SpanNs,
    ) -> Result<GatewayReply, Refusal> {
        let Some(mut row) = self.load::<GroupRow>(&key::group(group))? else {
            return refuse(Class::NotFound, format!("there is no rule group {group}"));
        };
        if let Some(held) = row.lease.filter(|l| l.node != node && self.now < l.until) {
            return Ok(GatewayReply::Held {
                by: held.node,
                until: held.until,
            });
        }
        // A new token each time: what an earlier life of the same node still proposes is refused.
        let (token, until) = (self.index, self.now + ttl);
        row.lease = Some(Lease { node, token, until });
        self.save(&key::group(group), &row);
        Ok(GatewayReply::Lease { token, until })
    }

    pub(super) fn evaluated(&mut self, e: Evaluation) -> Result<GatewayReply, Refusal> {
        let Some(mut row) = self.load::<GroupRow>(&key::group(&e.group))? else {
            return refuse(Class::NotFound, format!("there is no rule group {}", e.group));
        };
        if row.lease.is_none_or(|l| l.token != e.token) {
            let message = format!("rule group {}: token {} is not that of its lease", e.group, e.token);
            return refuse(Class::Conflict, message);
        }
        if row
            .evaluated_at
            .is_some_and(|last| e.instant <= last && e.set_back_from != Some(last))
        {
            let message = format!(
                "rule group {}: instant {} is not after the last one",
                e.group,
                e.instant.as_ms()
            );
            return refuse(Class::Conflict, message);
        }
        if row.revision != e.revision || row.group.rules.len() != e.results.len() {
            let message = format!(
                "rule group {} has changed since it was evaluated; evaluate it again",
                e.group
            );
            return refuse(Class::Conflict, message);
        }
        let mut touched = Touched::default();
        let whole = e.missing.is_empty();
        for (i, result) in e.results.into_iter().enumerate() {
            let rule = &row.group.rules[i];
            row.health[i] = match result {
                RuleResult::Failed(error) => RuleHealth {
                    error: Some(error),
                    ..row.health[i].clone()
                },
                RuleResult::Series(series) => match unique_series(series) {
                    Err(error) => RuleHealth {
                        error: Some(error),
                        ..row.health[i].clone()
                    },
                    Ok(series) => self.evaluate_rule(
                        (&e.group, row.group.language),
                        rule,
                        series,
                        whole,
                        e.instant,
                        &mut touched,
                    )?,
                },
            };
        }
        (row.evaluated_at, row.partial, row.missing) = (Some(e.instant), e.partial, e.missing);
        self.save(&key::group(&e.group), &row);
        self.settle(touched)?;
        Ok(GatewayReply::Done)
    }

    fn evaluate_rule(
        &mut self,
        (group, language): (&GroupKey, Language),
        rule: &Rule,
        series: BTreeMap<Labels, (Labels, f64)>,
        whole: bool,
        instant: hindcast_model::TimestampNs,
        touched: &mut Touched,
    ) -> Result<RuleHealth, Refusal> {
        let rule_id = rows::rule_id(group, rule);
        let mut health = RuleHealth {
            series: series.len() as u64,
            ..RuleHealth::default()
        };
        let mut seen = BTreeSet::new();
        let mut observed: Vec<(String, Option<Seen>)> = vec![];
        for (labels, (full, value)) in series {
            let id = rows::alert_id(&rule_id, &labels);
            seen.insert(id.clone());
            observed.push((id, Some((labels, full, value))));
        }
        for id in self.index(&key::alerts_of(&rule_id)) {
            if !seen.contains(&id) {
                observed.push((id, None));
            }
        }
        observed.sort_by(|a, b| a.0.cmp(&b.0));
        for (id, seen) in observed {
            let known: Option<AlertRow> = self.load(&key::alert(&group.tenant, &id))?;
            let (mut row, observation) = match (known, seen) {
                (Some(row), Some((labels, full, value))) => {
                    (refreshed(row, rule, &labels, &full, value), Observation::Value(value))
                }
                (None, Some((labels, full, value))) => {
                    let row = new_row(group, rule, &rule_id, id, instant);
                    (refreshed(row, rule, &labels, &full, value), Observation::Value(value))
                }
                (Some(row), None) if whole => match language {
                    Language::Promql => (row, Observation::Absent),
                    Language::Logql => (row, Observation::Silent),
                },
                (Some(row), None) => (row, Observation::Unknown),
                (None, None) => continue,
            };
            let severity = label_severity(rule, &row.labels);
            let before = row.clock.state;
            let reason = alert::step(&mut row.clock, rule, severity, observation, instant);
            row.evaluated_at = instant;
            match row.clock.state {
                AlertState::Firing | AlertState::NoData => health.firing += 1,
                AlertState::Pending => health.pending += 1,
                AlertState::Inactive | AlertState::Resolved => {}
            }
            if before == AlertState::Inactive && row.clock.state == AlertState::Inactive {
                // A healthy series is no alert: nothing is kept of it.
                continue;
            }
            self.alert_changed(&mut row, reason, touched)?;
        }
        Ok(health)
    }

    /// Keeps an alert after a step, and hands on what the step means for incidents.
    fn alert_changed(&mut self, row: &mut AlertRow, reason: Reason, touched: &mut Touched) -> Result<(), Refusal> {
        let now = self.now;
        row.decide(reason.as_str(), now);
        let change = match reason {
            Reason::Fired => {
                row.fired_at = Some(now);
                self.fired(row, touched)?;
                Some("firing")
            }
            Reason::Raised => {
                // A rule whose label became a severity: what was an event only is an alert now.
                if row.incident.is_none() {
                    self.fired(row, touched)?;
                }
                touched.raised(row);
                Some("raised")
            }
            Reason::Lowered => {
                touched.changed(row);
                Some("lowered")
            }
            Reason::Cleared | Reason::NoDataOver => {
                touched.resolved(row);
                Some("resolved")
            }
            Reason::RuleGone if row.clock.state == AlertState::Resolved => {
                touched.resolved(row);
                Some("resolved")
            }
            Reason::NoData if row.clock.since == row.evaluated_at => Some("nodata"),
            Reason::DataBack => Some("firing"),
            Reason::WaitingForDuration if row.clock.since == row.evaluated_at => Some("pending"),
            Reason::EndedBeforeDuration | Reason::RuleGone => Some("inactive"),
            _ => None,
        };
        if let Some(change) = change {
            self.history(
                HistoryKind::Alert,
                &row.tenant,
                row.id.clone(),
                change,
                view::alert(row),
            );
        }
        let (alert_key, index_key) = (key::alert(&row.tenant, &row.id), key::alert_of(&row.rule_id, &row.id));
        if row.clock.state == AlertState::Inactive && row.generation == 0 {
            self.remove(&alert_key);
            self.remove(&index_key);
        } else {
            self.save(&alert_key, row);
            self.mark(&index_key);
        }
        Ok(())
    }
}

/// The groups of a source, with their keys.
fn rows_of_groups(apply: &Apply<'_, '_>, tenant: &TenantId, source: &str) -> Result<Vec<(Vec<u8>, GroupRow)>, Refusal> {
    use rows::RowSource;
    let found = apply.tx.rows(&key::groups_of(tenant, source), None, usize::MAX);
    found
        .into_iter()
        .map(|(k, v)| Ok((k, hindcast_model::codec::from_bytes(&v).map_err(damaged)?)))
        .collect()
}

/// A series in the answer: what names it, all its labels, its value.
type Seen = (Labels, Labels, f64);

/// Series by their labels without the metric's name, which is what names an alert.
fn unique_series(series: Vec<(Labels, f64)>) -> Result<BTreeMap<Labels, (Labels, f64)>, String> {
    if series.len() > SERIES_PER_RULE_MAX {
        return Err(format!(
            "the expression returned {} series, more than {SERIES_PER_RULE_MAX}; narrow it down",
            series.len()
        ));
    }
    let mut unique = BTreeMap::new();
    for (full, value) in series {
        let labels = full.without(METRIC_NAME);
        if unique.insert(labels.clone(), (full, value)).is_some() {
            return Err(format!(
                "two series have the labels {labels} when the metric's name is left out; tell them apart"
            ));
        }
    }
    Ok(unique)
}

fn new_row(group: &GroupKey, rule: &Rule, rule_id: &str, id: String, at: hindcast_model::TimestampNs) -> AlertRow {
    AlertRow {
        id,
        tenant: group.tenant.clone(),
        source: group.source.clone(),
        group: group.group.clone(),
        rule: rule.name.clone(),
        rule_id: rule_id.to_owned(),
        labels: Labels::empty(),
        annotations: BTreeMap::new(),
        clock: AlertClock::new(at),
        generation: 0,
        value: 0.0,
        resource: None,
        resource_name: None,
        incident: None,
        fired_at: None,
        evaluated_at: at,
        decisions: vec![],
    }
}

/// The row with what the rule and the series say now.
fn refreshed(mut row: AlertRow, rule: &Rule, series: &Labels, full: &Labels, value: f64) -> AlertRow {
    let mut pairs: Vec<_> = series.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    for (name, text) in &rule.labels {
        pairs.push((name.clone(), template::or_plain(text, &rule.name, series, value)));
    }
    pairs.push(("alertname".to_owned(), rule.name.clone()));
    row.labels = Labels::new(pairs);
    row.value = value;
    let annotations = rule.annotations.iter();
    row.annotations = annotations
        .map(|(k, text)| (k.clone(), template::or_plain(text, &rule.name, series, value)))
        .collect();
    let named = match (full.metric_name(), &rule.metric) {
        (None, Some(metric)) => series.with(METRIC_NAME, metric),
        _ => full.clone(),
    };
    let resource = owning_resource(&row.tenant, &named, &[]);
    row.resource = resource.as_ref().map(|r| r.id);
    row.resource_name = resource.map(|r| r.name);
    row
}

/// The severity of a rule without levels: that of its label; without a label, minor. A word that is no severity
/// makes an event only.
fn label_severity(rule: &Rule, labels: &Labels) -> Option<Severity> {
    match (&rule.condition, labels.get("severity")) {
        (Condition::Levels { .. }, _) => None,
        (Condition::Present { .. }, None) => Some(Severity::Minor),
        (Condition::Present { .. }, Some(word)) => Severity::from_label(word),
    }
}

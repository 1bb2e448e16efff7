//! One alert: a rule's opinion about one label set over time.
//!
//! Pure: a function of (state, rule, observation, instant). `inactive → pending → firing(severity) → resolved`,
//! plus `nodata`.
//!
//! Promises
//! - A level is raised after its condition held at every evaluation for its whole duration, and cleared at its
//!   clear bound, not at its raise bound (hysteresis). The alert has the worst raised level; it moves between
//!   levels and is not made anew.
//! - What could not be observed (an incomplete answer) changes nothing.
//! - A firing threshold whose series ends is `nodata`, not healthy; it resolves after `NODATA_SPAN`. NaN is no data. Of logs, no line is
//!   no disturbance: its levels clear.
//! - Every step has a reason, also when it does nothing.

use crate::rule::{Condition, Rule};
use hindcast_model::{IncidentId, Labels, ResourceId, Severity, SpanNs, TenantId, TimestampNs};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How long a firing threshold without data stays on.
pub const NODATA_SPAN: SpanNs = SpanNs::from_secs(900);
/// Decisions that an alert remembers; equal ones in a row are one.
pub const DECISIONS_MAX: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlertState {
    Inactive,
    Pending,
    Firing,
    NoData,
    Resolved,
}

impl AlertState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Pending => "pending",
            Self::Firing => "firing",
            Self::NoData => "nodata",
            Self::Resolved => "resolved",
        }
    }

    /// Whether it counts as a disturbance that goes on.
    pub const fn is_on(self) -> bool {
        matches!(self, Self::Firing | Self::NoData)
    }
}

/// Where one level stands.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LevelClock {
    pub severity: Option<Severity>,
    /// The condition has held since then.
    pub since: Option<TimestampNs>,
    pub raised: bool,
}

/// What an alert remembers between evaluations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlertClock {
    pub state: AlertState,
    /// Of the state.
    pub since: TimestampNs,
    /// While on. `None` while on: a rule whose `severity` label is no severity; it makes an event only.
    pub severity: Option<Severity>,
    pub levels: Vec<LevelClock>,
    /// The condition ended then, and the alert is kept firing.
    pub quiet_since: Option<TimestampNs>,
}

impl AlertClock {
    /// Times ahead of an evaluation are those of a clock that ran ahead and was set back: what lasts began just before it then.
    fn set_back(&mut self, at: TimestampNs) {
        let before = TimestampNs(at.0.saturating_sub(1));
        let levels = self.levels.iter_mut().filter_map(|l| l.since.as_mut());
        let all = levels.chain(&mut self.quiet_since).chain([&mut self.since]);
        all.filter(|time| **time > at).for_each(|time| *time = before);
    }

    pub fn new(at: TimestampNs) -> Self {
        Self {
            state: AlertState::Inactive,
            since: at,
            severity: None,
            levels: vec![],
            quiet_since: None,
        }
    }
}

/// What the rule's expression said of this label set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Observation {
    Value(f64),
    /// Not in the answer, and the answer is whole.
    Absent,
    /// Likewise, of a question about logs: no line says anything of it any more.
    Silent,
    /// Not in the answer, but not all data could be asked.
    Unknown,
}

/// Why a step ended as it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Nothing is wrong.
    Healthy,
    /// The condition holds, not yet for long enough.
    WaitingForDuration,
    /// The condition ended before its duration was over.
    EndedBeforeDuration,
    Fired,
    StillFiring,
    /// Behind the raise bound, not yet at the clear bound.
    BetweenBounds,
    Raised,
    Lowered,
    KeptFiring,
    Cleared,
    /// Not all data could be asked: nothing is decided.
    AnswerIncomplete,
    NoData,
    NoDataOver,
    DataBack,
    /// The rule was removed.
    RuleGone,
}

impl Reason {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::WaitingForDuration => "waiting_for_duration",
            Self::EndedBeforeDuration => "ended_before_duration",
            Self::Fired => "fired",
            Self::StillFiring => "still_firing",
            Self::BetweenBounds => "between_bounds",
            Self::Raised => "raised",
            Self::Lowered => "lowered",
            Self::KeptFiring => "kept_firing",
            Self::Cleared => "cleared",
            Self::AnswerIncomplete => "answer_incomplete",
            Self::NoData => "no_data",
            Self::NoDataOver => "no_data_over",
            Self::DataBack => "data_back",
            Self::RuleGone => "rule_gone",
        }
    }
}

/// A decision that an alert remembers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    pub at: TimestampNs,
    pub last_at: TimestampNs,
    pub times: u64,
    /// A code: of `Reason`, or of what the gateway did with the change.
    pub reason: String,
    pub value: f64,
}

/// The row of one alert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlertRow {
    /// 32 hex digits: tenant, rule and label set.
    pub id: String,
    pub tenant: TenantId,
    pub source: String,
    pub group: String,
    pub rule: String,
    pub rule_id: String,
    /// Labels of the series and of the rule, and `alertname`.
    pub labels: Labels,
    pub annotations: BTreeMap<String, String>,
    pub clock: AlertClock,
    /// Which life; 0 before the first.
    pub generation: u64,
    pub value: f64,
    pub resource: Option<ResourceId>,
    pub resource_name: Option<String>,
    /// The last incident it was a member of.
    pub incident: Option<IncidentId>,
    /// When the life it is in, or was in last, began.
    pub fired_at: Option<TimestampNs>,
    pub evaluated_at: TimestampNs,
    pub decisions: Vec<Decision>,
}

impl AlertRow {
    /// Remembers a decision; the oldest goes when there are too many.
    pub fn decide(&mut self, reason: &str, at: TimestampNs) {
        match self.decisions.last_mut() {
            Some(last) if last.reason == reason => {
                last.last_at = at;
                last.times += 1;
                last.value = self.value;
            }
            _ => {
                if self.decisions.len() == DECISIONS_MAX {
                    self.decisions.remove(0);
                }
                self.decisions.push(Decision {
                    at,
                    last_at: at,
                    times: 1,
                    reason: reason.to_owned(),
                    value: self.value,
                });
            }
        }
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        let annotated = ["summary", "title", "message", "description"]
            .iter()
            .find_map(|k| self.annotations.get(*k));
        annotated.cloned().unwrap_or_else(|| {
            let place = self.place();
            if place.is_empty() {
                self.rule.clone()
            } else {
                format!("{} on {place}", self.rule)
            }
        })
    }

    /// Where it is, in a word: the resource's name, or the label that comes closest.
    pub fn place(&self) -> String {
        let label = || {
            let names = ["instance", "host_name", "host", "service_name", "service", "cluster"];
            names.iter().find_map(|n| self.labels.get(n)).map(str::to_owned)
        };
        self.resource_name.clone().or_else(label).unwrap_or_default()
    }
}

/// One evaluation of one alert. `severity` is that of the rule's label, for rules without levels of their own.
pub fn step(
    clock: &mut AlertClock,
    rule: &Rule,
    severity: Option<Severity>,
    observation: Observation,
    at: TimestampNs,
) -> Reason {
    let value = match observation {
        Observation::Unknown => return Reason::AnswerIncomplete,
        Observation::Value(v) => Some(v),
        Observation::Absent | Observation::Silent => None,
    };
    clock.set_back(at);
    let is_without_data = match value {
        Some(value) => value.is_nan(),
        None => observation == Observation::Absent,
    };
    if let (Condition::Levels { .. }, true) = (&rule.condition, is_without_data) {
        return step_without_data(clock, rule, at);
    }
    let between = step_levels(clock, rule, severity, value, at);
    let worst = clock.levels.iter().filter(|l| l.raised).map(|l| l.severity).max();
    let waiting = clock.levels.iter().any(|l| l.since.is_some() && !l.raised);
    match (clock.state, worst) {
        (AlertState::Inactive | AlertState::Pending | AlertState::Resolved, Some(worst)) => {
            enter(clock, AlertState::Firing, at);
            clock.severity = worst;
            Reason::Fired
        }
        (AlertState::Inactive | AlertState::Resolved, None) if waiting => {
            enter(clock, AlertState::Pending, at);
            Reason::WaitingForDuration
        }
        (AlertState::Pending, None) if waiting => Reason::WaitingForDuration,
        (AlertState::Pending, None) => {
            enter(clock, AlertState::Inactive, at);
            Reason::EndedBeforeDuration
        }
        (AlertState::Inactive | AlertState::Resolved, None) => Reason::Healthy,
        (AlertState::Firing | AlertState::NoData, Some(worst)) => {
            let was_without = clock.state == AlertState::NoData;
            if was_without {
                enter(clock, AlertState::Firing, at);
            }
            clock.quiet_since = None;
            let before = std::mem::replace(&mut clock.severity, worst);
            match worst.cmp(&before) {
                std::cmp::Ordering::Greater => Reason::Raised,
                std::cmp::Ordering::Less => Reason::Lowered,
                std::cmp::Ordering::Equal if was_without => Reason::DataBack,
                std::cmp::Ordering::Equal if between => Reason::BetweenBounds,
                std::cmp::Ordering::Equal => Reason::StillFiring,
            }
        }
        (AlertState::Firing | AlertState::NoData, None) => {
            let quiet_since = *clock.quiet_since.get_or_insert(at);
            if at.since(quiet_since) < rule.keep_firing_for {
                return Reason::KeptFiring;
            }
            resolve(clock, at);
            Reason::Cleared
        }
    }
}

/// The rule is gone, so its opinion is too. `None`: there was none.
pub fn end(clock: &mut AlertClock, at: TimestampNs) -> Option<Reason> {
    match clock.state {
        AlertState::Firing | AlertState::NoData => {
            resolve(clock, at);
            Some(Reason::RuleGone)
        }
        AlertState::Pending => {
            clock.levels.clear();
            enter(clock, AlertState::Inactive, at);
            Some(Reason::RuleGone)
        }
        AlertState::Inactive | AlertState::Resolved => None,
    }
}

fn enter(clock: &mut AlertClock, state: AlertState, at: TimestampNs) {
    clock.state = state;
    clock.since = at;
}

fn resolve(clock: &mut AlertClock, at: TimestampNs) {
    enter(clock, AlertState::Resolved, at);
    clock.severity = None;
    clock.quiet_since = None;
    clock.levels.clear();
}

fn step_without_data(clock: &mut AlertClock, rule: &Rule, at: TimestampNs) -> Reason {
    match clock.state {
        AlertState::Firing => {
            enter(clock, AlertState::NoData, at);
            Reason::NoData
        }
        AlertState::NoData if at.since(clock.since) < NODATA_SPAN.max(rule.keep_firing_for) => Reason::NoData,
        AlertState::NoData => {
            resolve(clock, at);
            Reason::NoDataOver
        }
        AlertState::Pending => {
            clock.levels.clear();
            enter(clock, AlertState::Inactive, at);
            Reason::EndedBeforeDuration
        }
        AlertState::Inactive | AlertState::Resolved => Reason::Healthy,
    }
}

/// Moves each level's clock. Returns whether a raised level is between its two bounds.
fn step_levels(
    clock: &mut AlertClock,
    rule: &Rule,
    severity: Option<Severity>,
    value: Option<f64>,
    at: TimestampNs,
) -> bool {
    let old = std::mem::take(&mut clock.levels);
    let mut between = false;
    let mut one = |severity: Option<Severity>, index: usize, hold: SpanNs, beyond: bool, clear: bool| {
        // A rule's own levels are known by severity, so that an edit of the rule keeps the others' clocks.
        let known = match rule.condition {
            Condition::Present { .. } => old.get(index),
            Condition::Levels { .. } => old.iter().find(|l| l.severity == severity),
        };
        let (mut since, mut raised) = known.map_or((None, false), |l| (l.since, l.raised));
        if beyond {
            let start = *since.get_or_insert(at);
            raised |= at.since(start) >= hold;
        } else if !raised {
            since = None;
        } else if clear {
            (since, raised) = (None, false);
        } else {
            between = true;
        }
        clock.levels.push(LevelClock {
            severity,
            since,
            raised,
        });
    };
    match &rule.condition {
        Condition::Present { hold } => one(severity, 0, *hold, value.is_some(), value.is_none()),
        Condition::Levels { sense, levels } => {
            for (i, level) in levels.iter().enumerate() {
                let (beyond, clear) = match value {
                    Some(value) => (level.is_beyond(*sense, value), level.is_clear(*sense, value)),
                    None => (false, true),
                };
                one(Some(level.severity), i, level.hold, beyond, clear);
            }
        }
    }
    between
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule;
    use expect_test::{Expect, expect};

    /// `seconds value`, where value is a number, `absent`, `silent` or `unknown`.
    fn check(rule_text: &str, script: &str, expect: Expect) {
        let text = format!("groups: [{{name: g, rules: [{rule_text}]}}]");
        let rule = rule::parse("t.yml", &text).unwrap().groups.remove(0).rules.remove(0);
        let mut clock = AlertClock::new(TimestampNs::EPOCH);
        let mut shown = String::new();
        for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let (at, value) = line.split_once(' ').unwrap();
            let observation = match value {
                "absent" => Observation::Absent,
                "silent" => Observation::Silent,
                "unknown" => Observation::Unknown,
                v => Observation::Value(v.parse().unwrap()),
            };
            let at = TimestampNs::from_secs(at.parse().unwrap());
            let severity = rule.labels.get("severity").and_then(|s| Severity::from_label(s));
            let reason = step(&mut clock, &rule, severity, observation, at);
            let level = clock.severity.map(|s| format!(" {s}")).unwrap_or_default();
            shown.push_str(&format!(
                "{line:12} -> {}{level}: {}\n",
                clock.state.as_str(),
                reason.as_str()
            ));
        }
        expect.assert_eq(&shown);
    }

    const BUSY: &str = "{threshold: Busy, expr: cpu, levels: {\
        minor: {above: 0.7, for: 30s, clear: 0.6}, critical: {above: 0.9, for: 60s, clear: 0.8}}}";

    #[test]
    fn a_threshold_on_logs_clears_when_the_lines_stop() {
        check(
            "{threshold: Errors, expr: x, keep_firing_for: 20s, levels: {major: {above: 100, clear: 50}}}",
            "
            10 200
            20 70
            30 silent
            40 silent
            50 silent
            60 200
            70 absent
            ",
            expect![[r#"
                10 200       -> firing major: fired
                20 70        -> firing major: between_bounds
                30 silent    -> firing major: kept_firing
                40 silent    -> firing major: kept_firing
                50 silent    -> resolved: cleared
                60 200       -> firing major: fired
                70 absent    -> nodata major: no_data
            "#]],
        );
    }

    #[test]
    fn a_clock_that_was_hours_ahead_and_is_set_right_holds_no_duration_back() {
        check(
            BUSY,
            "
            7200 0.75
            7215 0.75
            20 0.75
            49 0.75
            50 0.75
            7200 0.5
            60 0.5
            ",
            expect![[r#"
                7200 0.75    -> pending: waiting_for_duration
                7215 0.75    -> pending: waiting_for_duration
                20 0.75      -> pending: waiting_for_duration
                49 0.75      -> pending: waiting_for_duration
                50 0.75      -> firing minor: fired
                7200 0.5     -> resolved: cleared
                60 0.5       -> resolved: healthy
            "#]],
        );
        check(
            "{alert: Down, expr: up == 0, keep_firing_for: 60s}",
            "
            7200 0
            7210 absent
            20 absent
            80 absent
            ",
            expect![[r#"
                7200 0       -> firing: fired
                7210 absent  -> firing: kept_firing
                20 absent    -> firing: kept_firing
                80 absent    -> resolved: cleared
            "#]],
        );
    }

    #[test]
    fn levels_rise_after_their_duration_and_fall_at_their_clear_bound() {
        check(
            BUSY,
            "
            0 0.5
            15 0.75
            30 0.65
            45 0.75
            60 0.95
            75 0.95
            120 0.95
            135 0.85
            150 0.8
            165 0.65
            180 0.6
            195 0.5
            ",
            expect![[r#"
                0 0.5        -> inactive: healthy
                15 0.75      -> pending: waiting_for_duration
                30 0.65      -> inactive: ended_before_duration
                45 0.75      -> pending: waiting_for_duration
                60 0.95      -> pending: waiting_for_duration
                75 0.95      -> firing minor: fired
                120 0.95     -> firing critical: raised
                135 0.85     -> firing critical: between_bounds
                150 0.8      -> firing minor: lowered
                165 0.65     -> firing minor: between_bounds
                180 0.6      -> resolved: cleared
                195 0.5      -> resolved: healthy
            "#]],
        );
    }

    #[test]
    fn a_threshold_without_data_is_not_healthy() {
        check(
            BUSY,
            "
            0 0.75
            30 0.75
            45 absent
            60 NaN
            75 0.75
            90 absent
            900 absent
            990 absent
            1005 absent
            ",
            expect![[r#"
                0 0.75       -> pending: waiting_for_duration
                30 0.75      -> firing minor: fired
                45 absent    -> nodata minor: no_data
                60 NaN       -> nodata minor: no_data
                75 0.75      -> firing minor: data_back
                90 absent    -> nodata minor: no_data
                900 absent   -> nodata minor: no_data
                990 absent   -> resolved: no_data_over
                1005 absent  -> resolved: healthy
            "#]],
        );
    }

    #[test]
    fn an_alert_follows_prometheus_and_an_incomplete_answer_decides_nothing() {
        check(
            "{alert: Down, expr: up == 0, for: 30s, keep_firing_for: 60s, labels: {severity: page}}",
            "
            0 0
            15 absent
            30 0
            45 unknown
            60 0
            75 unknown
            90 absent
            105 0
            120 absent
            180 absent
            ",
            expect![[r#"
                0 0          -> pending: waiting_for_duration
                15 absent    -> inactive: ended_before_duration
                30 0         -> pending: waiting_for_duration
                45 unknown   -> pending: answer_incomplete
                60 0         -> firing critical: fired
                75 unknown   -> firing critical: answer_incomplete
                90 absent    -> firing critical: kept_firing
                105 0        -> firing critical: kept_firing
                120 absent   -> firing critical: kept_firing
                180 absent   -> resolved: cleared
            "#]],
        );
    }
}

//! Rules: what a rule file says, checked before anything is kept of it.
//!
//! Reads Prometheus rule files (groups of `alert:` rules) and, in the same file, our threshold rules:
//!
//! ```yaml
//! groups:
//!   - name: hosts
//!     interval: 15s
//!     rules:
//!       - alert: InstanceDown
//!         expr: up == 0
//!         for: 1m
//!         labels: { severity: critical }
//!       - threshold: HostCpuBusy
//!         expr: sms:cpu:busy
//!         levels:
//!           minor:    { above: 0.7, for: 1m, clear: 0.6 }
//!           critical: { above: 0.9, for: 1m, clear: 0.8 }
//!   - name: devices
//!     type: loki
//!     rules:
//!       - alert: LinkDown
//!         expr: sum by (instance, ifIndex) (count_over_time({log_source="snmptrap", trap="linkDown"}[5m])) > 0
//! ```
//!
//! The rules of a group of the type `loki` ask logs, in LogQL; all others ask metrics, in PromQL (`prometheus`).
//!
//! Promises
//! - A file is taken as a whole or not at all; an error names file, line, group and rule, and what to change.
//! - A recording rule (`record:`) is refused by name: it is not evaluated here yet, and is not skipped in silence.
//! - The identity of a rule is (source, group, name, how many of that name came before it in the group), so that
//!   editing an expression keeps the alerts of the rule.
//!
//! Durations are `SpanNs`.

use crate::{expr, template};
use hindcast_model::{Class, Classify, Severity, SpanNs};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

pub const RULE_FILE_BYTES_MAX: usize = 1024 * 1024;
pub const RULES_PER_GROUP_MAX: usize = 1_000;
pub const GROUPS_PER_FILE_MAX: usize = 1_000;
/// Applies to groups that name none, as in Prometheus.
pub const INTERVAL_DEFAULT: SpanNs = SpanNs::from_secs(60);
pub const INTERVAL_MIN: SpanNs = SpanNs::from_secs(1);

/// What the expressions of a group are written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    #[default]
    Promql,
    Logql,
}

impl Language {
    const ALL: [Self; 2] = [Self::Promql, Self::Logql];

    /// The `type` of its groups.
    pub fn group_type(self) -> &'static str {
        match self {
            Self::Promql => "prometheus",
            Self::Logql => "loki",
        }
    }

    fn is_promql(&self) -> bool {
        *self == Self::Promql
    }

    /// As errors call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Promql => "PromQL",
            Self::Logql => "LogQL",
        }
    }
}

/// Rules that are evaluated together, at the same instants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuleGroup {
    pub name: String,
    pub interval: SpanNs,
    /// Left out where it is PromQL: rows of before there was a choice stay as they are.
    #[serde(default, skip_serializing_if = "Language::is_promql")]
    pub language: Language,
    pub rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    pub name: String,
    /// How many rules of this name come before it in the group.
    pub nth: u32,
    pub expr: String,
    pub condition: Condition,
    /// An alert whose condition ended stays firing for so long.
    pub keep_firing_for: SpanNs,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// The metric that the expression reads, when it reads one only: it tells which resource a result is about.
    pub metric: Option<String>,
}

/// When a series in the answer counts as bad.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Condition {
    /// Prometheus's way: being in the answer is bad. The severity is that of the `severity` label.
    Present { hold: SpanNs },
    /// Ours: the value is compared with up to three bounds. Ascending by severity.
    Levels { sense: Sense, levels: Vec<Level> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sense {
    Above,
    Below,
}

/// One level of a threshold rule.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Level {
    pub severity: Severity,
    /// Raised when the value is beyond it ...
    pub bound: f64,
    /// ... for so long without a break;
    pub hold: SpanNs,
    /// cleared once the value is back at or behind this.
    pub clear: f64,
}

impl Level {
    pub fn is_beyond(&self, sense: Sense, value: f64) -> bool {
        match sense {
            Sense::Above => value > self.bound,
            Sense::Below => value < self.bound,
        }
    }

    pub fn is_clear(&self, sense: Sense, value: f64) -> bool {
        match sense {
            Sense::Above => value <= self.clear,
            Sense::Below => value >= self.clear,
        }
    }
}

/// What a rule file holds. `warnings` are for the author; they stop nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct RuleFile {
    pub groups: Vec<RuleGroup>,
    pub warnings: Vec<String>,
}

/// Why a rule file is refused, where, and what to change.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{}: {what}; {fix}", self.place())]
pub struct RuleFileError {
    pub file: Box<str>,
    pub line: Option<usize>,
    pub group: Option<Box<str>>,
    pub rule: Option<Box<str>>,
    pub what: Box<str>,
    pub fix: Box<str>,
}

impl RuleFileError {
    fn place(&self) -> String {
        let mut place = self.file.to_string();
        if let Some(line) = self.line {
            place.push_str(&format!(":{line}"));
        }
        if let Some(group) = &self.group {
            place.push_str(&format!(", group {group:?}"));
        }
        if let Some(rule) = &self.rule {
            place.push_str(&format!(", rule {rule:?}"));
        }
        place
    }
}

impl Classify for RuleFileError {
    fn class(&self) -> Class {
        Class::FixRequest
    }
}

/// A name for the content of a file: equal text, equal revision.
pub fn revision(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex()[..16].to_owned()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    groups: Vec<RawGroup>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGroup {
    name: String,
    interval: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, Scalar>,
    #[serde(default)]
    rules: Vec<RawRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    alert: Option<String>,
    threshold: Option<String>,
    record: Option<String>,
    expr: Option<Scalar>,
    #[serde(rename = "for")]
    hold: Option<String>,
    keep_firing_for: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, Scalar>,
    #[serde(default)]
    annotations: BTreeMap<String, Scalar>,
    levels: Option<BTreeMap<String, RawLevel>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLevel {
    above: Option<f64>,
    below: Option<f64>,
    #[serde(rename = "for")]
    hold: Option<String>,
    clear: Option<f64>,
}

/// YAML reads `1` and `true` as what they look like; labels and expressions mean their text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Text(String),
    Int(i64),
    Float(f64),
    Bool(bool),
}

impl Scalar {
    fn text(&self) -> String {
        match self {
            Self::Text(t) => t.clone(),
            Self::Int(i) => i.to_string(),
            Self::Float(f) => f.to_string(),
            Self::Bool(b) => b.to_string(),
        }
    }
}

fn texts(map: &BTreeMap<String, Scalar>) -> BTreeMap<String, String> {
    map.iter().map(|(k, v)| (k.clone(), v.text())).collect()
}

/// Reads and checks a rule file. `file` is its name in messages.
pub fn parse(file: &str, text: &str) -> Result<RuleFile, RuleFileError> {
    let place = Place {
        file,
        group: None,
        rule: None,
        line: None,
    };
    if text.len() > RULE_FILE_BYTES_MAX {
        let what = format!("the file has {} bytes, more than {RULE_FILE_BYTES_MAX}", text.len());
        return Err(place.wrong(what, "split it into several files"));
    }
    let raw: RawFile = serde_norway::from_str(text).map_err(|e| {
        let line = e.location().map(|l| l.line());
        Place { line, ..place }.wrong(e.to_string(), "correct the YAML at that place")
    })?;
    if raw.groups.len() > GROUPS_PER_FILE_MAX {
        let what = format!(
            "the file has {} groups, more than {GROUPS_PER_FILE_MAX}",
            raw.groups.len()
        );
        return Err(place.wrong(what, "split it into several files"));
    }
    let lines = rule_lines(text, raw.groups.iter().map(|g| g.rules.len()).sum());
    let (mut names, mut groups, mut warnings, mut first) = (BTreeSet::new(), vec![], vec![], 0);
    for group in &raw.groups {
        let place = Place {
            group: Some(&group.name),
            ..place
        };
        if !names.insert(group.name.clone()) {
            return Err(place.wrong("the name occurs twice in this file", "rename one of the groups"));
        }
        groups.push(check_group(group, place, &lines, first, &mut warnings)?);
        first += group.rules.len();
    }
    Ok(RuleFile { groups, warnings })
}

fn check_group(
    raw: &RawGroup,
    place: Place<'_>,
    lines: &[usize],
    first: usize,
    warnings: &mut Vec<String>,
) -> Result<RuleGroup, RuleFileError> {
    if raw.name.is_empty() {
        return Err(place.wrong("the group has no name", "give it a name"));
    }
    if raw.rules.len() > RULES_PER_GROUP_MAX {
        let what = format!(
            "the group has {} rules, more than {RULES_PER_GROUP_MAX}",
            raw.rules.len()
        );
        return Err(place.wrong(what, "split the group"));
    }
    let interval = place
        .span("interval", raw.interval.as_deref())?
        .unwrap_or(INTERVAL_DEFAULT);
    if interval < INTERVAL_MIN {
        return Err(place.wrong(
            format!("interval {interval} is below {INTERVAL_MIN}"),
            "use a longer interval",
        ));
    }
    let named = raw.kind.as_deref().unwrap_or(Language::default().group_type());
    let Some(language) = Language::ALL.into_iter().find(|l| l.group_type() == named) else {
        let fix = "write `prometheus`, or nothing, for PromQL and `loki` for LogQL";
        return Err(place.wrong(format!("`type: {named}` is no type of group"), fix));
    };
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let mut rules = vec![];
    for (i, rule) in raw.rules.iter().enumerate() {
        let name = rule.alert.as_ref().or(rule.threshold.as_ref()).or(rule.record.as_ref());
        let place = Place {
            rule: name.map(String::as_str),
            line: lines.get(first + i).copied(),
            ..place
        };
        let mut rule = check_rule(rule, language, &raw.labels, place)?;
        if language == Language::Promql && expr::may_mean_logs(&rule.expr) {
            warnings.push(format!(
                "{}: `expr` asks for series without naming a metric; if it is to count log lines, give the group `type: loki`",
                place.text()
            ));
        }
        let nth = seen.entry(rule.name.clone()).or_default();
        rule.nth = *nth;
        *nth += 1;
        for (field, text) in rule.labels.iter().chain(&rule.annotations) {
            if let Err(why) = template::check(text) {
                warnings.push(format!(
                    "{}: the template of {field:?} will be replaced by a plain text: {why}",
                    place.text()
                ));
            }
        }
        rules.push(rule);
    }
    Ok(RuleGroup {
        name: raw.name.clone(),
        interval,
        language,
        rules,
    })
}

fn check_rule(
    raw: &RawRule,
    language: Language,
    group_labels: &BTreeMap<String, Scalar>,
    place: Place<'_>,
) -> Result<Rule, RuleFileError> {
    if raw.record.is_some() {
        return Err(place.wrong(
            "recording rules are not evaluated yet",
            "move this rule to a file that is not loaded here, or use its expression in the alert",
        ));
    }
    let (name, is_threshold) = match (&raw.alert, &raw.threshold) {
        (Some(name), None) => (name.clone(), false),
        (None, Some(name)) => (name.clone(), true),
        _ => {
            let what = "a rule has exactly one of `alert` and `threshold`";
            return Err(place.wrong(what, "keep one of them"));
        }
    };
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(place.wrong("the rule's name is empty or has control characters", "rename it"));
    }
    let expr = raw.expr.as_ref().map(Scalar::text).unwrap_or_default();
    if expr.trim().is_empty() {
        return Err(place.wrong("`expr` is missing", "say what to evaluate"));
    }
    let metric = expr::check(&expr, language).map_err(|wrong| {
        let what = match wrong.is_language {
            true => format!("`expr` is not {}: {}", language.name(), wrong.why),
            false => format!("`expr` cannot be a rule's: {}", wrong.why),
        };
        place.wrong(what, wrong.fix)
    })?;
    let hold = place.span("for", raw.hold.as_deref())?;
    let condition = if is_threshold {
        if hold.is_some() {
            let fix = "move it into the levels: `minor: {above: 0.7, for: 1m}`";
            return Err(place.wrong("a threshold has no `for` of its own", fix));
        }
        check_levels(raw, place)?
    } else {
        if raw.levels.is_some() {
            let fix = "write `threshold: NAME` instead of `alert: NAME`";
            return Err(place.wrong("an `alert` has no `levels`", fix));
        }
        Condition::Present {
            hold: hold.unwrap_or_default(),
        }
    };
    let mut labels = texts(group_labels);
    labels.extend(texts(&raw.labels));
    for label in labels.keys() {
        if !is_label_name(label) || label == "alertname" || label == hindcast_model::METRIC_NAME {
            let fix = "use letters, digits and _, and neither `alertname` nor `__name__`";
            return Err(place.wrong(format!("{label:?} cannot be a label here"), fix));
        }
    }
    Ok(Rule {
        name,
        nth: 0,
        expr,
        condition,
        keep_firing_for: place
            .span("keep_firing_for", raw.keep_firing_for.as_deref())?
            .unwrap_or_default(),
        labels,
        annotations: texts(&raw.annotations),
        metric,
    })
}

fn check_levels(raw: &RawRule, place: Place<'_>) -> Result<Condition, RuleFileError> {
    let given = raw.levels.as_ref().filter(|l| !l.is_empty()).ok_or_else(|| {
        let fix = "add at least one: `levels: {critical: {above: 0.9, for: 1m}}`";
        place.wrong("a threshold needs `levels`", fix)
    })?;
    let mut levels: Vec<(Sense, Level)> = vec![];
    for (word, level) in given {
        let severity = match word.as_str() {
            "minor" => Severity::Minor,
            "major" => Severity::Major,
            "critical" => Severity::Critical,
            _ => return Err(place.wrong(format!("{word:?} is no level"), "use minor, major, critical")),
        };
        let (sense, bound) = match (level.above, level.below) {
            (Some(b), None) => (Sense::Above, b),
            (None, Some(b)) => (Sense::Below, b),
            _ => {
                let what = format!("level {word} has not exactly one of `above` and `below`");
                return Err(place.wrong(what, "keep one of them"));
            }
        };
        let clear = level.clear.unwrap_or(bound);
        let in_order = match sense {
            Sense::Above => clear <= bound,
            Sense::Below => clear >= bound,
        };
        if !bound.is_finite() || !clear.is_finite() || !in_order {
            let what = format!("level {word} would clear at {clear}, beyond its own bound {bound}");
            return Err(place.wrong(what, "put `clear` on the healthy side of the bound"));
        }
        let hold = place.span("for", level.hold.as_deref())?.unwrap_or_default();
        levels.push((
            sense,
            Level {
                severity,
                bound,
                hold,
                clear,
            },
        ));
    }
    levels.sort_by_key(|(_, l)| l.severity);
    let sense = levels[0].0;
    if levels.iter().any(|(s, _)| *s != sense) {
        return Err(place.wrong("levels mix `above` and `below`", "use one of them for all levels"));
    }
    for pair in levels.windows(2) {
        let (low, high) = (pair[0].1, pair[1].1);
        let in_order = match sense {
            Sense::Above => low.bound <= high.bound,
            Sense::Below => low.bound >= high.bound,
        };
        if !in_order {
            let what = format!(
                "{} starts at {} and {} at {}",
                low.severity, low.bound, high.severity, high.bound
            );
            return Err(place.wrong(what, "the worse level needs the more extreme bound"));
        }
    }
    Ok(Condition::Levels {
        sense,
        levels: levels.into_iter().map(|(_, l)| l).collect(),
    })
}

/// Where in the file a check is.
#[derive(Clone, Copy)]
struct Place<'a> {
    file: &'a str,
    line: Option<usize>,
    group: Option<&'a str>,
    rule: Option<&'a str>,
}

impl Place<'_> {
    fn wrong(&self, what: impl Into<String>, fix: impl Into<String>) -> RuleFileError {
        RuleFileError {
            file: self.file.into(),
            line: self.line,
            group: self.group.map(Into::into),
            rule: self.rule.map(Into::into),
            what: what.into().into(),
            fix: fix.into().into(),
        }
    }

    fn text(&self) -> String {
        self.wrong("", "").place()
    }

    fn span(&self, field: &str, text: Option<&str>) -> Result<Option<SpanNs>, RuleFileError> {
        let Some(text) = text else { return Ok(None) };
        match SpanNs::parse(text) {
            Some(span) => Ok(Some(span)),
            None => Err(self.wrong(
                format!("`{field}: {text}` is no duration"),
                "write it like 30s, 5m or 1h30m",
            )),
        }
    }
}

fn is_label_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !name.as_bytes()[0].is_ascii_digit()
}

/// Lines (from 1) on which the rules begin, told by their first key. The YAML reader keeps no places; where rules
/// are written in a way that this does not see, the count differs and no line is better than a wrong one.
fn rule_lines(text: &str, rules: usize) -> Vec<usize> {
    let starts = |line: &str| {
        let line = line.trim_start();
        let line = line.strip_prefix('-').unwrap_or(line).trim_start();
        ["alert:", "threshold:", "record:"].iter().any(|k| line.starts_with(k))
    };
    let found: Vec<_> = text
        .lines()
        .enumerate()
        .filter(|(_, l)| starts(l))
        .map(|(i, _)| i + 1)
        .collect();
    if found.len() == rules { found } else { vec![] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(text: &str, expect: Expect) {
        let shown = match parse("rules.yml", text) {
            Ok(file) => file
                .groups
                .iter()
                .flat_map(|g| {
                    let head = format!("{} every {}", g.name, g.interval);
                    std::iter::once(head).chain(g.rules.iter().map(|r| format!("  {} {:?}", r.name, r.condition)))
                })
                .chain(file.warnings)
                .collect::<Vec<_>>()
                .join("\n"),
            Err(e) => e.to_string(),
        };
        expect.assert_eq(&shown);
    }

    #[test]
    fn prometheus_rules_and_thresholds_share_a_file() {
        check(
            "
groups:
- name: devices
  type: loki
  rules:
  - alert: LinkDown
    expr: sum by (instance) (count_over_time({trap=\"linkDown\"}[5m])) > 0
- name: hosts
  type: prometheus
  interval: 15s
  rules:
  - alert: Down
    expr: up == 0
    for: 1m
    labels: {severity: critical, tier: 1}
    annotations: {summary: '{{ $labels.instance }} is down', broken: '{{ range query }}'}
  - threshold: Busy
    expr: cpu
    levels:
      critical: {above: 0.9, for: 30s, clear: 0.8}
      minor: {above: 0.7}
",
            expect![[r#"
                devices every 1m
                  LinkDown Present { hold: SpanNs(0) }
                hosts every 15s
                  Down Present { hold: SpanNs(60000000000) }
                  Busy Levels { sense: Above, levels: [Level { severity: Minor, bound: 0.7, hold: SpanNs(0), clear: 0.7 }, Level { severity: Critical, bound: 0.9, hold: SpanNs(30000000000), clear: 0.8 }] }
                rules.yml:12, group "hosts", rule "Down": the template of "broken" will be replaced by a plain text: "query" is not known here"#]],
        );
    }

    #[test]
    fn a_broken_file_says_where_what_and_how_to_mend_it() {
        let with = |rule: &str| format!("groups:\n- name: g\n  rules:\n  - alert: Fine\n    expr: up\n{rule}");
        check(
            &with("  - threshold: T\n    expr: up\n    levels: {major: {above: 1, clear: 2}}\n"),
            expect![[
                r#"rules.yml:6, group "g", rule "T": level major would clear at 2, beyond its own bound 1; put `clear` on the healthy side of the bound"#
            ]],
        );
        check(
            &with("  - alert: A\n    expr: up\n    for: 5 minutes\n"),
            expect![[
                r#"rules.yml:6, group "g", rule "A": `for: 5 minutes` is no duration; write it like 30s, 5m or 1h30m"#
            ]],
        );
        check(
            &with("  - record: a:b\n    expr: up\n"),
            expect![[
                r#"rules.yml:6, group "g", rule "a:b": recording rules are not evaluated yet; move this rule to a file that is not loaded here, or use its expression in the alert"#
            ]],
        );
        check(
            &with("  - alert: A\n    expr: sum(((\n"),
            expect![[
                r#"rules.yml:6, group "g", rule "A": `expr` is not PromQL: 1:7: parse error: unexpected end of input; correct the expression"#
            ]],
        );
        let logs =
            |expr: &str| format!("groups:\n- name: g\n  type: loki\n  rules:\n  - alert: A\n    expr: '{expr}'\n");
        check(
            &logs("{trap=\"linkDown\"}"),
            expect![[
                r#"rules.yml:5, group "g", rule "A": `expr` cannot be a rule's: it gives lines, a rule needs values; count them: `sum by (instance) (count_over_time({…}[5m])) > 0`"#
            ]],
        );
        check(
            &logs("up == 0"),
            expect![[
                r#"rules.yml:5, group "g", rule "A": `expr` is not LogQL: 1:1: parse error: "up" is no function of this LogQL; it is PromQL: move the rule to a group without `type: loki`"#
            ]],
        );
        check(
            &with("  - alert: A\n    expr: count_over_time({trap=\"linkDown\"} |= \"x\" [5m]) > 0\n"),
            expect![[
                r#"rules.yml:6, group "g", rule "A": `expr` is not PromQL: 1:35: parse error: unexpected "|=" in function call, expected ")"; it is LogQL: move the rule to a group with `type: loki`"#
            ]],
        );
        check(
            &logs("vector(1)").replace("loki", "graphite"),
            expect![[
                r#"rules.yml, group "g": `type: graphite` is no type of group; write `prometheus`, or nothing, for PromQL and `loki` for LogQL"#
            ]],
        );
        check(
            &with("  - alert: A\n    exprs: up\n"),
            expect![
                "rules.yml:7: groups[0].rules[1]: unknown field `exprs`, expected one of `alert`, `threshold`, `record`, `expr`, `for`, `keep_firing_for`, `labels`, `annotations`, `levels` at line 7 column 5; correct the YAML at that place"
            ],
        );
        check(
            "groups: [",
            expect![
                "rules.yml:2: did not find expected node content at line 2 column 1, while parsing a flow node; correct the YAML at that place"
            ],
        );
    }

    #[test]
    fn a_bomb_of_aliases_is_refused() {
        let mut bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for (this, last) in ["b", "c", "d", "e", "f", "g", "h"]
            .iter()
            .zip(["a", "b", "c", "d", "e", "f", "g"])
        {
            bomb.push_str(&format!(
                "{this}: &{this} [*{last},*{last},*{last},*{last},*{last},*{last},*{last}]\n"
            ));
        }
        assert!(parse("bomb.yml", &bomb).is_err());
        assert!(parse("large.yml", &"#".repeat(RULE_FILE_BYTES_MAX + 1)).is_err());
    }
}

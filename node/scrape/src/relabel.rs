//! Relabeling, as Prometheus does it: rules that change labels, or drop what bears them.
//!
//! Pure. A rule is checked when it is read ([`Rule::new`]); what it does to labels depends on these labels alone. Regular
//! expressions match whole texts. Work is bounded by a rule's and a label's length: the regex engine takes linear time.

use crate::Pairs;
use md5::{Digest, Md5};
use regex::Regex;

/// Rules of one list.
pub const RULES_MAX: usize = 1000;
/// What the compiled form of one expression may take.
pub const REGEX_BYTES_MAX: usize = 1024 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Replace,
    Keep,
    Drop,
    KeepEqual,
    DropEqual,
    HashMod,
    LabelMap,
    LabelDrop,
    LabelKeep,
    Lowercase,
    Uppercase,
}

impl Action {
    const ALL: [(&'static str, Self); 11] = [
        ("replace", Self::Replace),
        ("keep", Self::Keep),
        ("drop", Self::Drop),
        ("keepequal", Self::KeepEqual),
        ("dropequal", Self::DropEqual),
        ("hashmod", Self::HashMod),
        ("labelmap", Self::LabelMap),
        ("labeldrop", Self::LabelDrop),
        ("labelkeep", Self::LabelKeep),
        ("lowercase", Self::Lowercase),
        ("uppercase", Self::Uppercase),
    ];

    /// In any case, as Prometheus.
    pub fn parse(text: &str) -> Result<Self, String> {
        let known = Self::ALL.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
        known.map(|(_, action)| *action).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|(name, _)| *name).collect();
            format!(
                "the relabeling action {text:?} is not known; write one of {}",
                names.join(", ")
            )
        })
    }

    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(_, a)| *a == self).map_or("", |(name, _)| name)
    }
}

/// A rule as it stands in a file. `None`: not said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleText {
    pub source_labels: Option<Vec<String>>,
    pub separator: Option<String>,
    pub target_label: Option<String>,
    pub regex: Option<String>,
    pub modulus: Option<u64>,
    pub replacement: Option<String>,
    pub action: Option<Action>,
}

/// A rule that can be used.
#[derive(Clone, Debug)]
pub struct Rule {
    action: Action,
    source_labels: Vec<String>,
    separator: String,
    target_label: String,
    regex: Regex,
    modulus: u64,
    replacement: String,
}

impl Rule {
    pub fn new(text: RuleText) -> Result<Self, String> {
        let action = text.action.unwrap_or(Action::Replace);
        let name = action.as_str();
        let needs_target = !matches!(
            action,
            Action::Keep | Action::Drop | Action::LabelMap | Action::LabelDrop | Action::LabelKeep
        );
        if needs_target && text.target_label.as_deref().unwrap_or_default().is_empty() {
            return Err(format!("the action {name} needs a target_label"));
        }
        if action == Action::HashMod && text.modulus.unwrap_or(0) == 0 {
            return Err("the action hashmod needs a modulus of at least 1".to_owned());
        }
        let others = |allowed: &[&str]| {
            let given = [
                ("source_labels", text.source_labels.is_some()),
                ("separator", text.separator.is_some()),
                ("target_label", text.target_label.is_some()),
                ("regex", text.regex.is_some()),
                ("modulus", text.modulus.is_some()),
                ("replacement", text.replacement.is_some()),
            ];
            let other = given.into_iter().find(|(n, is)| *is && !allowed.contains(n));
            other.map_or(Ok(()), |(n, _)| {
                Err(format!("the action {name} does not use {n}; take it out"))
            })
        };
        match action {
            Action::LabelDrop | Action::LabelKeep => others(&["regex"])?,
            Action::KeepEqual | Action::DropEqual => others(&["source_labels", "separator", "target_label"])?,
            _ => {}
        }
        if matches!(action, Action::Keep | Action::Drop) && text.source_labels.is_none() && text.regex.is_none() {
            // It would keep or drop everything, which nobody writes on purpose.
            return Err(format!("the action {name} needs source_labels and a regex"));
        }
        Ok(Self {
            action,
            source_labels: text.source_labels.unwrap_or_default(),
            separator: text.separator.unwrap_or_else(|| ";".to_owned()),
            target_label: text.target_label.unwrap_or_default(),
            regex: anchored(text.regex.as_deref().unwrap_or("(.*)"))?,
            modulus: text.modulus.unwrap_or(0),
            replacement: text.replacement.unwrap_or_else(|| "$1".to_owned()),
        })
    }

    fn joined(&self, labels: &Pairs) -> String {
        let mut joined = String::new();
        for (i, name) in self.source_labels.iter().enumerate() {
            if i > 0 {
                joined.push_str(&self.separator);
            }
            joined.push_str(labels.value(name));
        }
        joined
    }

    /// `false`: what bears the labels is dropped.
    fn apply(&self, labels: &mut Pairs) -> bool {
        match self.action {
            Action::Keep => return self.regex.is_match(&self.joined(labels)),
            Action::Drop => return !self.regex.is_match(&self.joined(labels)),
            Action::KeepEqual => return labels.value(&self.target_label) == self.joined(labels),
            Action::DropEqual => return labels.value(&self.target_label) != self.joined(labels),
            Action::Replace => {
                let joined = self.joined(labels);
                let Some(found) = self.regex.captures(&joined) else {
                    return true;
                };
                let (mut target, mut value) = (String::new(), String::new());
                found.expand(&self.target_label, &mut target);
                found.expand(&self.replacement, &mut value);
                match (target.is_empty(), value.is_empty()) {
                    (true, _) => {}
                    (false, true) => labels.remove(&target),
                    (false, false) => labels.set(&target, value),
                }
            }
            Action::Lowercase => labels.set(&self.target_label, self.joined(labels).to_lowercase()),
            Action::Uppercase => labels.set(&self.target_label, self.joined(labels).to_uppercase()),
            Action::HashMod => {
                let share = hash(&self.joined(labels)) % self.modulus;
                labels.set(&self.target_label, share.to_string());
            }
            Action::LabelMap => {
                let mapped: Vec<_> = labels
                    .iter()
                    .filter(|(name, _)| self.regex.is_match(name))
                    .map(|(name, value)| {
                        (
                            self.regex.replace_all(name, self.replacement.as_str()).into_owned(),
                            value.to_owned(),
                        )
                    })
                    .collect();
                for (name, value) in mapped.into_iter().filter(|(name, _)| !name.is_empty()) {
                    labels.set(&name, value);
                }
            }
            Action::LabelDrop => labels.retain(|name| !self.regex.is_match(name)),
            Action::LabelKeep => labels.retain(|name| self.regex.is_match(name)),
        }
        true
    }
}

/// The last eight bytes of MD5, the first of them the highest: what Prometheus takes.
fn hash(text: &str) -> u64 {
    let digest: [u8; 16] = Md5::digest(text.as_bytes()).into();
    let [.., a, b, c, d, e, f, g, h] = digest;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

fn anchored(text: &str) -> Result<Regex, String> {
    // Alone first: what is wrong is shown without our brackets, and `a)(b` does not close them.
    let built = |text: &str| regex::RegexBuilder::new(text).size_limit(REGEX_BYTES_MAX).build();
    let both = built(text).and_then(|_| built(&format!("^(?s:{text})$")));
    both.map_err(|e| format!("the regular expression {text:?} cannot be used: {e}"))
}

/// Applies rules in their order. `false`: dropped.
pub fn apply(rules: &[Rule], labels: &mut Pairs) -> bool {
    rules.iter().all(|rule| rule.apply(labels)) && (rules.is_empty() || !labels.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    /// Rules as YAML, labels as `a=b c=d`.
    fn rules(yaml: &str) -> Result<Vec<Rule>, String> {
        let text = format!("scrape_configs: [{{job_name: j, relabel_configs: {yaml}}}]");
        let config = crate::config::parse("f", &text).map_err(|e| e.to_string())?;
        Ok(config.jobs[0].relabel.clone())
    }

    fn check(yaml: &str, labels: &str, expect: Expect) {
        let pairs = labels.split(' ').filter_map(|p| p.split_once('='));
        let mut pairs: Pairs = pairs.map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        let shown = match apply(&rules(yaml).unwrap(), &mut pairs) {
            false => "dropped".to_owned(),
            true => {
                let all: Vec<_> = pairs.to_map().iter().map(|(n, v)| format!("{n}={v}")).collect();
                all.join(" ")
            }
        };
        expect.assert_eq(&shown);
    }

    #[test]
    fn replace_takes_groups_joins_sources_and_deletes_by_nothing() {
        check(
            "[{source_labels: [a, b], regex: 'f(.*);(.*)r', target_label: d, replacement: '$2-${1}x'}]",
            "a=foo b=bar",
            expect!["a=foo b=bar d=ba-oox"],
        );
        check(
            "[{source_labels: [a], regex: o, target_label: d}]",
            "a=foo",
            expect!["a=foo"],
        );
        check(
            "[{source_labels: [a], target_label: d}]",
            "a=foo",
            expect!["a=foo d=foo"],
        );
        check("[{target_label: a, replacement: ''}]", "a=foo b=1", expect!["b=1"]);
        check(
            "[{regex: '', target_label: a, replacement: 'x'}]",
            "b=1",
            expect!["a=x b=1"],
        );
        check(
            "[{source_labels: [a], regex: 'some-([^-]+)-([^,]+)', replacement: '${2}', target_label: '${1}'}]",
            "a=some-job2-boo",
            expect!["a=some-job2-boo job2=boo"],
        );
        check(
            "[{source_labels: [a], separator: '', regex: 9100, target_label: p, replacement: 1}]",
            "a=9100",
            expect!["a=9100 p=1"],
        );
    }

    #[test]
    fn keep_and_drop_match_whole_texts() {
        check(
            "[{action: keep, source_labels: [a], regex: 'f|foo'}]",
            "a=foo",
            expect!["a=foo"],
        );
        check(
            "[{action: keep, source_labels: [a], regex: 'o+'}]",
            "a=foo",
            expect!["dropped"],
        );
        check(
            "[{action: drop, source_labels: [a, b], regex: '.*;'}]",
            "a=foo",
            expect!["dropped"],
        );
        check(
            "[{action: KeepEqual, source_labels: [a], target_label: b}]",
            "a=1 b=1",
            expect!["a=1 b=1"],
        );
        check(
            "[{action: dropequal, source_labels: [a], target_label: b}]",
            "a=1 b=1",
            expect!["dropped"],
        );
        check("[{action: labeldrop, regex: '.*'}]", "a=1 b=1", expect!["dropped"]);
    }

    #[test]
    fn labels_are_mapped_dropped_kept_and_written_in_another_case() {
        check(
            "[{action: labelmap, regex: '__meta_(.+)', replacement: 'm_${1}'}]",
            "__meta_x=1 y=2",
            expect!["__meta_x=1 m_x=1 y=2"],
        );
        check(
            "[{action: labelmap, regex: 'a(.)'}]",
            "ab=1 c=2",
            expect!["ab=1 b=1 c=2"],
        );
        check("[{action: labeldrop, regex: 'a.*'}]", "ab=1 c=2", expect!["c=2"]);
        check("[{action: labelkeep, regex: 'a.*'}]", "ab=1 c=2", expect!["ab=1"]);
        check(
            "[{action: lowercase, source_labels: [a], target_label: l}, {action: uppercase, source_labels: [a], target_label: u}]",
            "a=Foo",
            expect!["a=Foo l=foo u=FOO"],
        );
    }

    /// The numbers are those of `printf TEXT | md5sum`, its last sixteen digits modulo the modulus.
    #[test]
    fn shares_are_those_of_prometheus() {
        assert_eq!(hash("foo"), 0xedef_654f_ccc4_a4d8);
        check(
            "[{action: hashmod, source_labels: [c], target_label: d, modulus: 1000}]",
            "c=baz",
            expect!["c=baz d=976"],
        );
        check(
            "[{action: hashmod, source_labels: [a, b], separator: '', target_label: d, modulus: 8}]",
            "a=f b=oo",
            expect!["a=f b=oo d=0"],
        );
    }

    #[test]
    fn what_a_rule_lacks_or_has_too_much_is_said() {
        for (yaml, says) in [
            ("[{source_labels: [a]}]", "replace needs a target_label"),
            ("[{action: hashmod, source_labels: [a], target_label: b}]", "modulus"),
            (
                "[{action: labeldrop, regex: a, source_labels: [a]}]",
                "does not use source_labels",
            ),
            (
                "[{action: keepequal, source_labels: [a], target_label: b, regex: x}]",
                "does not use regex",
            ),
            ("[{action: keep, source_labels: [a], regex: '('}]", "cannot be used"),
            ("[{action: keep, source_labels: [a], regex: 'a)(b'}]", "cannot be used"),
            ("[{action: keep}]", "needs source_labels and a regex"),
            ("[{action: shred}]", "is not known"),
            ("[{action: keep, source_labels: [a], regexp: x}]", "regexp"),
        ] {
            let said = rules(yaml).unwrap_err();
            assert!(said.contains(says), "{yaml}: {said}");
        }
    }

    proptest! {
        /// Every label set has one share, below the modulus, and `hashmod` followed by `keep` divides all sets among shares.
        #[test]
        fn shares_divide(address in ".{0,20}", shares in 1u64..9) {
            let kept = (0..shares).filter(|i| {
                let yaml = format!("[{{action: hashmod, source_labels: [a], target_label: s, modulus: {shares}}}, {{action: keep, source_labels: [s], regex: {i}}}]");
                apply(&rules(&yaml).unwrap(), &mut [("a".to_owned(), address.clone())].into_iter().collect())
            });
            prop_assert_eq!(kept.count(), 1);
        }

        /// Labels that a rule has nothing to do with stay as they are.
        #[test]
        fn others_stay(value in "[a-z]{1,9}", regex in "[a-z]{0,3}") {
            let yaml = format!("[{{source_labels: [x], regex: '{regex}', target_label: y}}, {{action: labeldrop, regex: y}}, {{action: lowercase, source_labels: [x], target_label: z}}]");
            let mut pairs: Pairs = [("other".to_owned(), value.clone())].into_iter().collect();
            prop_assert!(apply(&rules(&yaml).unwrap(), &mut pairs));
            prop_assert_eq!(pairs.get("other"), Some(value.as_str()));
        }
    }
}

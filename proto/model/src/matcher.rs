//! Label matchers, as PromQL and LogQL have them.

use crate::labels::Labels;
use regex::Regex;
use serde::{Deserialize, Serialize};
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MatchOp {
    Equal,
    NotEqual,
    Regex,
    NotRegex,
}

impl MatchOp {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Regex => "=~",
            Self::NotRegex => "!~",
        }
    }
}

/// One matcher. An absent label counts as the empty value. Regexes are anchored at both ends; `.` matches newlines.
#[derive(Clone)]
pub struct Matcher {
    pub name: String,
    pub op: MatchOp,
    pub value: String,
    /// Compiled, for the two regex operators.
    regex: Option<Regex>,
}

/// A matcher whose regex does not compile, or is too large when compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the regular expression {pattern:?} cannot be used: {why}")]
pub struct BadRegex {
    pub pattern: String,
    pub why: String,
}

/// Compiled size of one regex; a bomb is refused, not built.
pub const REGEX_BYTES_MAX: usize = 1024 * 1024;

/// Compiles `pattern` anchored at both ends, as matchers need it.
pub fn anchored_regex(pattern: &str) -> Result<Regex, BadRegex> {
    regex::RegexBuilder::new(&format!("^(?s:{pattern})$"))
        .size_limit(REGEX_BYTES_MAX)
        .build()
        .map_err(|e| BadRegex {
            pattern: pattern.to_owned(),
            why: e.to_string().lines().last().unwrap_or("").to_owned(),
        })
}

impl Matcher {
    pub fn new(name: &str, op: MatchOp, value: &str) -> Result<Self, BadRegex> {
        let regex = match op {
            MatchOp::Equal | MatchOp::NotEqual => None,
            MatchOp::Regex | MatchOp::NotRegex => Some(anchored_regex(value)?),
        };
        Ok(Self {
            name: name.to_owned(),
            op,
            value: value.to_owned(),
            regex,
        })
    }

    pub fn equal(name: &str, value: &str) -> Self {
        Self {
            name: name.to_owned(),
            op: MatchOp::Equal,
            value: value.to_owned(),
            regex: None,
        }
    }

    pub fn matches_value(&self, value: &str) -> bool {
        match (self.op, &self.regex) {
            (MatchOp::Equal, _) => value == self.value,
            (MatchOp::NotEqual, _) => value != self.value,
            (MatchOp::Regex, Some(r)) => r.is_match(value),
            (MatchOp::NotRegex, Some(r)) => !r.is_match(value),
            (MatchOp::Regex | MatchOp::NotRegex, None) => unreachable!("a regex matcher is built with its regex"),
        }
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.matches_value(labels.value(&self.name))
    }

    /// Whether a series without this label matches: such matchers narrow nothing down by an index.
    pub fn matches_empty(&self) -> bool {
        self.matches_value("")
    }
}

impl PartialEq for Matcher {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, self.op, &self.value) == (&other.name, other.op, &other.value)
    }
}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{:?}", self.name, self.op.as_str(), self.value)
    }
}

impl fmt::Debug for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Matchers that must all hold.
pub type MatcherSet = Vec<Matcher>;

pub fn matches_all(matchers: &[Matcher], labels: &Labels) -> bool {
    matchers.iter().all(|m| m.matches(labels))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_regex_matches_the_whole_value_and_an_absent_label_is_empty() {
        let l = Labels::from_pairs([("job", "node")]);
        let m = |op, v| Matcher::new("job", op, v).unwrap().matches(&l);
        assert!(m(MatchOp::Regex, "no.e") && m(MatchOp::Regex, "x|node") && !m(MatchOp::Regex, "nod"));
        assert!(m(MatchOp::NotRegex, "nod") && m(MatchOp::NotEqual, "x"));
        assert!(Matcher::new("gone", MatchOp::Equal, "").unwrap().matches(&l));
        assert!(Matcher::new("gone", MatchOp::Regex, ".*").unwrap().matches(&l));
        assert!(!Matcher::new("gone", MatchOp::Regex, ".+").unwrap().matches(&l));
    }

    #[test]
    fn a_broken_or_huge_regex_is_refused_with_the_reason() {
        assert!(Matcher::new("a", MatchOp::Regex, "(").is_err());
        assert!(Matcher::new("a", MatchOp::Regex, "(((x{1000}){1000}){1000})").is_err());
    }
}

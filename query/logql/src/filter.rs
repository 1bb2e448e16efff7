//! What a line must hold: `|= "text"`, `!~ "regex"`. Regexes are not anchored.

use hindcast_model::matcher::{BadRegex, REGEX_BYTES_MAX};
use regex::Regex;
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterOp {
    Contains,
    Lacks,
    Matches,
    Fails,
}

impl FilterOp {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Contains => "|=",
            Self::Lacks => "!=",
            Self::Matches => "|~",
            Self::Fails => "!~",
        }
    }
}

/// One filter with its alternatives (`|= "a" or "b"`).
#[derive(Clone)]
pub struct LineFilter {
    pub op: FilterOp,
    pub texts: Vec<String>,
    /// One per text, for the two regex operators.
    regexes: Vec<Regex>,
}

impl LineFilter {
    pub fn new(op: FilterOp, texts: Vec<String>) -> Result<Self, BadRegex> {
        let mut regexes = vec![];
        if matches!(op, FilterOp::Matches | FilterOp::Fails) {
            for text in &texts {
                let built = regex::RegexBuilder::new(text).size_limit(REGEX_BYTES_MAX).build();
                regexes.push(built.map_err(|e| BadRegex {
                    pattern: text.clone(),
                    why: e.to_string().lines().last().unwrap_or("").to_owned(),
                })?);
            }
        }
        Ok(Self { op, texts, regexes })
    }

    pub fn passes(&self, line: &str) -> bool {
        match self.op {
            FilterOp::Contains => self.texts.iter().any(|t| line.contains(t.as_str())),
            FilterOp::Lacks => !self.texts.iter().any(|t| line.contains(t.as_str())),
            FilterOp::Matches => self.regexes.iter().any(|r| r.is_match(line)),
            FilterOp::Fails => !self.regexes.iter().any(|r| r.is_match(line)),
        }
    }

    /// The text that every passing line holds, when that is all the filter asks.
    pub fn needle(&self) -> Option<&str> {
        match (self.op, &self.texts[..]) {
            (FilterOp::Contains, [text]) => Some(text),
            _ => None,
        }
    }
}

impl PartialEq for LineFilter {
    fn eq(&self, other: &Self) -> bool {
        (self.op, &self.texts) == (other.op, &other.texts)
    }
}

impl fmt::Display for LineFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.texts.iter().map(|t| hindcast_promql::quoted(t)).collect();
        write!(f, "{} {}", self.op.as_str(), texts.join(" or "))
    }
}

impl fmt::Debug for LineFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

//! What a line must hold: `|= "text"`, `!~ "regex"`. Regexes are not anchored. Here it is only read and checked: lines
//! are tested where they lie, so that there is one definition of what passes.

use hindcast_model::matcher::{BadRegex, REGEX_BYTES_MAX};
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
#[derive(Clone, PartialEq, Eq)]
pub struct LineFilter {
    pub op: FilterOp,
    pub texts: Vec<String>,
}

impl LineFilter {
    /// Refuses what is no regex, if the operator wants one.
    pub fn new(op: FilterOp, texts: Vec<String>) -> Result<Self, BadRegex> {
        if matches!(op, FilterOp::Matches | FilterOp::Fails) {
            for text in &texts {
                let built = regex::RegexBuilder::new(text).size_limit(REGEX_BYTES_MAX).build();
                built.map_err(|e| BadRegex {
                    pattern: text.clone(),
                    why: e.to_string().lines().last().unwrap_or("").to_owned(),
                })?;
            }
        }
        Ok(Self { op, texts })
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

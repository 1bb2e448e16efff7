//! What a line must hold: `|= "text"`, `!~ "regex"`, `|> "pattern <_>"`, `|= ip("10.0.0.0/8")`. Regexes are not anchored.
//!
//! Most filters are tested where the lines lie; [`LineFilter::is_plain`] says which. The others are tested here.

use crate::ip::IpRange;
use crate::pattern::Pattern;
use hindcast_model::matcher::REGEX_BYTES_MAX;
use memchr::memmem;
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterOp {
    Contains,
    Lacks,
    Matches,
    Fails,
    /// The whole line is like the pattern.
    Like,
    Unlike,
}

impl FilterOp {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Contains => "|=",
            Self::Lacks => "!=",
            Self::Matches => "|~",
            Self::Fails => "!~",
            Self::Like => "|>",
            Self::Unlike => "!>",
        }
    }

    /// Whether a line passes that none of the texts is found in.
    pub const fn is_negative(self) -> bool {
        matches!(self, Self::Lacks | Self::Fails | Self::Unlike)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sought {
    Text(String),
    /// `ip("…")`
    Ip(String),
}

/// One filter with its alternatives (`|= "a" or "b"`).
#[derive(Clone, PartialEq, Eq)]
pub struct LineFilter {
    pub op: FilterOp,
    pub any_of: Vec<Sought>,
}

/// Alternatives of one filter.
pub const ALTERNATIVES_MAX: usize = 256;

impl LineFilter {
    /// Refuses what the operator cannot use: a broken regex, say.
    pub fn new(op: FilterOp, any_of: Vec<Sought>) -> Result<Self, String> {
        if any_of.len() > ALTERNATIVES_MAX {
            return Err(format!("a filter has more than {ALTERNATIVES_MAX} alternatives"));
        }
        let filter = Self { op, any_of };
        LineTest::new(&filter)?;
        Ok(filter)
    }

    /// Whether it is about texts and regexes only: whoever has the lines can test it.
    pub fn is_plain(&self) -> bool {
        !matches!(self.op, FilterOp::Like | FilterOp::Unlike) && self.texts().count() == self.any_of.len()
    }

    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.any_of.iter().filter_map(|s| match s {
            Sought::Text(text) => Some(text.as_str()),
            Sought::Ip(_) => None,
        })
    }

    /// Texts that each passing line holds: a weaker filter for whoever has the lines.
    pub fn needed_texts(&self) -> Vec<String> {
        match (self.op, &self.any_of[..]) {
            (FilterOp::Like, [Sought::Text(text)]) => Pattern::filter(text)
                .map(|p| p.texts().map(str::to_owned).collect())
                .unwrap_or_default(),
            _ => vec![],
        }
    }
}

enum Test {
    Text(Box<memmem::Finder<'static>>),
    Regex(regex::bytes::Regex),
    Pattern(Pattern),
    Ip(IpRange),
}

/// A filter made ready.
pub(crate) struct LineTest {
    any_of: Vec<Test>,
    is_negative: bool,
}

impl LineTest {
    pub fn new(filter: &LineFilter) -> Result<Self, String> {
        let test = |sought: &Sought| {
            Ok(match (filter.op, sought) {
                (FilterOp::Contains | FilterOp::Lacks, Sought::Ip(range)) => Test::Ip(IpRange::parse(range)?),
                (_, Sought::Ip(_)) => return Err("ip(…) goes with |= and != only".to_owned()),
                (FilterOp::Contains | FilterOp::Lacks, Sought::Text(text)) => {
                    Test::Text(Box::new(memmem::Finder::new(text).into_owned()))
                }
                (FilterOp::Matches | FilterOp::Fails, Sought::Text(text)) => Test::Regex(regex(text)?),
                (FilterOp::Like | FilterOp::Unlike, Sought::Text(text)) => Test::Pattern(Pattern::filter(text)?),
            })
        };
        Ok(Self {
            any_of: filter.any_of.iter().map(test).collect::<Result<_, String>>()?,
            is_negative: filter.op.is_negative(),
        })
    }

    pub fn passes(&self, line: &[u8]) -> bool {
        let found = self.any_of.iter().any(|test| match test {
            Test::Text(finder) => finder.find(line).is_some(),
            Test::Regex(regex) => regex.is_match(line),
            Test::Pattern(pattern) => pattern.is_match(line),
            Test::Ip(range) => range.is_in(line),
        });
        found != self.is_negative
    }
}

/// Compiles a regex that is not anchored.
pub(crate) fn regex(text: &str) -> Result<regex::bytes::Regex, String> {
    let built = regex::bytes::RegexBuilder::new(text)
        .size_limit(REGEX_BYTES_MAX)
        .build();
    built.map_err(|e| {
        let why = e.to_string();
        let why = why.lines().last().unwrap_or("");
        format!("the regular expression {text:?} cannot be used: {why}")
    })
}

impl fmt::Display for Sought {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(&hindcast_promql::quoted(text)),
            Self::Ip(range) => write!(f, "ip({})", hindcast_promql::quoted(range)),
        }
    }
}

impl fmt::Display for LineFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.any_of.iter().map(Sought::to_string).collect();
        write!(f, "{} {}", self.op.as_str(), texts.join(" or "))
    }
}

impl fmt::Debug for LineFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

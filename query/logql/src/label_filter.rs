//! Which lines go on, by their labels: `level="error" and (dur > 1s or size >= 20KB), status != 200`.
//!
//! A comparison with a number takes only labels that are one. A label that is none marks its line as an error, and the
//! line goes on; a line that is an error already is let through by all but comparisons with texts. A line without the
//! label does not go on.

use crate::fields::Fields;
use crate::ip::IpRange;
use crate::quantity;
use hindcast_model::{Matcher, SpanNs};
use hindcast_promql::quoted;
use std::fmt;

/// What a line gets whose label is no number, length of time, or size.
pub const LABEL_FILTER_ERROR: &str = "LabelFilterErr";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

impl Compare {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Eq => "==",
            Self::Ne => "!=",
            Self::Lt => "<",
            Self::Le => "<=",
            Self::Gt => ">",
            Self::Ge => ">=",
        }
    }

    fn holds<T: PartialOrd>(self, a: T, b: T) -> bool {
        match self {
            Self::Eq => a == b,
            Self::Ne => a != b,
            Self::Lt => a < b,
            Self::Le => a <= b,
            Self::Gt => a > b,
            Self::Ge => a >= b,
        }
    }
}

/// What a label is compared with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    Number(f64),
    /// Nanoseconds.
    Span(i64),
    Bytes(f64),
}

#[derive(Clone, Debug, PartialEq)]
pub enum LabelFilter {
    Text(Matcher),
    Amount {
        label: String,
        compare: Compare,
        amount: Amount,
    },
    Ip {
        label: String,
        is_negative: bool,
        text: String,
        range: IpRange,
    },
    And(Box<LabelFilter>, Box<LabelFilter>),
    Or(Box<LabelFilter>, Box<LabelFilter>),
}

impl LabelFilter {
    /// Whether the line goes on. May mark it as an error.
    pub fn passes(&self, fields: &mut Fields) -> bool {
        match self {
            Self::Text(matcher) => matcher.matches_value(fields.get(&matcher.name).unwrap_or("")),
            Self::And(a, b) => a.passes(fields) && b.passes(fields),
            Self::Or(a, b) => a.passes(fields) || b.passes(fields),
            Self::Amount { .. } | Self::Ip { .. } if fields.error().is_some() => true,
            Self::Ip {
                label,
                is_negative,
                range,
                ..
            } => {
                let value = fields.get(label);
                value.is_some_and(|value| range.is_in(value.as_bytes()) != *is_negative)
            }
            Self::Amount { label, compare, amount } => {
                let Some(value) = fields.get(label) else { return false };
                let held = match amount {
                    Amount::Number(n) => value.parse::<f64>().ok().map(|v| compare.holds(v, *n)),
                    Amount::Span(ns) => quantity::duration_ns(value).map(|v| compare.holds(v, *ns)),
                    Amount::Bytes(n) => quantity::bytes(value).map(|v| compare.holds(v, *n)),
                };
                let Some(held) = held else {
                    let what = match amount {
                        Amount::Number(_) => "number",
                        Amount::Span(_) => "duration",
                        Amount::Bytes(_) => "size",
                    };
                    let details = format!("the label {label} is no {what}: {value:?}");
                    fields.fail(LABEL_FILTER_ERROR, &details);
                    return true;
                };
                held
            }
        }
    }

    /// Calls `name` with each label that is asked for.
    pub fn labels(&self, name: &mut dyn FnMut(&str)) {
        match self {
            Self::Text(matcher) => name(&matcher.name),
            Self::Amount { label, .. } | Self::Ip { label, .. } => name(label),
            Self::And(a, b) | Self::Or(a, b) => {
                a.labels(name);
                b.labels(name);
            }
        }
    }

    fn write_operand(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::And(..) | Self::Or(..) => write!(f, "({self})"),
            _ => write!(f, "{self}"),
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(n) => hindcast_promql::write_number(f, *n),
            Self::Span(ns) => write!(f, "{}", SpanNs(ns.unsigned_abs())),
            Self::Bytes(n) => write!(f, "{n}B"),
        }
    }
}

pub(crate) fn write_matcher(f: &mut fmt::Formatter<'_>, m: &Matcher) -> fmt::Result {
    write!(f, "{}{}{}", m.name, m.op.as_str(), quoted(&m.value))
}

impl fmt::Display for LabelFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(m) => write_matcher(f, m),
            Self::Amount { label, compare, amount } => write!(f, "{label} {} {amount}", compare.as_str()),
            Self::Ip {
                label,
                is_negative,
                text,
                ..
            } => {
                let op = if *is_negative { "!=" } else { "=" };
                write!(f, "{label}{op}ip({})", quoted(text))
            }
            Self::And(a, b) | Self::Or(a, b) => {
                a.write_operand(f)?;
                f.write_str(if matches!(self, Self::And(..)) { " and " } else { " or " })?;
                b.write_operand(f)
            }
        }
    }
}

//! A tree back to text that parses to the same tree.

use crate::label_filter::write_matcher;
use crate::{Conversion, Expr, LogSelector, Metric, Stage, Unwrap};
use hindcast_model::{Matcher, SpanNs};
use hindcast_promql::{Cardinality, Grouping, quoted, write_number};
use std::fmt::{self, Display, Formatter};

struct Selector<'a>(&'a [Matcher]);

impl Display for Selector<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (i, m) in self.0.iter().enumerate() {
            f.write_str(if i > 0 { ", " } else { "" })?;
            write_matcher(f, m)?;
        }
        f.write_str("}")
    }
}

impl Display for Expr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lines(lines) => write!(f, "{lines}"),
            Self::Metric(metric) => write!(f, "{metric}"),
        }
    }
}

impl Display for LogSelector {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Selector(&self.matchers))?;
        self.stages.iter().try_for_each(|s: &Stage| write!(f, " {s}"))
    }
}

impl Display for Unwrap {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.conversion {
            Conversion::Number => write!(f, "| unwrap {}", self.label)?,
            Conversion::Seconds => write!(f, "| unwrap duration({})", self.label)?,
            Conversion::Bytes => write!(f, "| unwrap bytes({})", self.label)?,
        }
        self.filters.iter().try_for_each(|filter| write!(f, " | {filter}"))
    }
}

fn write_grouping(f: &mut Formatter<'_>, g: &Grouping) -> fmt::Result {
    let word = if g.without { "without" } else { "by" };
    write!(f, "{word} ({})", g.labels.join(", "))
}

/// An operand: in parentheses when it is an operation itself.
struct Operand<'a>(&'a Metric);

impl Display for Operand<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Metric::Binary { .. } => write!(f, "({})", self.0),
            inner => write!(f, "{inner}"),
        }
    }
}

impl Display for Metric {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(v) => write_number(f, *v),
            Self::Vector(v) => {
                f.write_str("vector(")?;
                write_number(f, *v)?;
                f.write_str(")")
            }
            Self::Range {
                function,
                lines,
                unwrap,
                param,
                grouping,
                range_ms,
                offset_ms,
            } => {
                write!(f, "{}(", function.name())?;
                if let Some(param) = param {
                    write_number(f, *param)?;
                    f.write_str(", ")?;
                }
                write!(f, "{lines} ")?;
                if let Some(unwrap) = unwrap {
                    write!(f, "{unwrap} ")?;
                }
                write!(f, "[{}]", SpanNs::from_ms(range_ms.unsigned_abs()))?;
                if *offset_ms != 0 {
                    let sign = if *offset_ms < 0 { "-" } else { "" };
                    write!(f, " offset {sign}{}", SpanNs::from_ms(offset_ms.unsigned_abs()))?;
                }
                f.write_str(")")?;
                match grouping {
                    Some(g) => {
                        f.write_str(" ")?;
                        write_grouping(f, g)
                    }
                    None => Ok(()),
                }
            }
            Self::Aggregate {
                op,
                grouping,
                param,
                inner,
            } => {
                f.write_str(op.name())?;
                if let Some(g) = grouping {
                    f.write_str(" ")?;
                    write_grouping(f, g)?;
                    f.write_str(" ")?;
                }
                f.write_str("(")?;
                if let Some(param) = param {
                    write_number(f, *param)?;
                    f.write_str(", ")?;
                }
                write!(f, "{inner})")
            }
            Self::Sorted { descending, inner } => {
                write!(f, "{}({inner})", if *descending { "sort_desc" } else { "sort" })
            }
            Self::LabelReplace {
                inner,
                target,
                replacement,
                source,
                regex,
            } => write!(
                f,
                "label_replace({inner}, {}, {}, {}, {})",
                quoted(target),
                quoted(replacement),
                quoted(source),
                quoted(regex)
            ),
            Self::Binary {
                op,
                lhs,
                rhs,
                as_bool,
                matching,
            } => {
                write!(f, "{} {}", Operand(lhs), op.as_str())?;
                if *as_bool {
                    f.write_str(" bool")?;
                }
                if let Some(m) = matching {
                    write!(f, " {} ({})", if m.on { "on" } else { "ignoring" }, m.labels.join(", "))?;
                    let side = match m.cardinality {
                        Cardinality::ManyToOne => Some("group_left"),
                        Cardinality::OneToMany => Some("group_right"),
                        _ => None,
                    };
                    if let Some(side) = side {
                        write!(f, " {side} ({})", m.include.join(", "))?;
                    }
                }
                write!(f, " {}", Operand(rhs))
            }
        }
    }
}

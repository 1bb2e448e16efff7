//! A tree back to text that parses to the same tree.

use crate::ast::{At, Cardinality, Expr, Grouping, Kind, Matching, Selector};
use hindcast_model::{METRIC_NAME, MatchOp};
use std::fmt::{self, Display, Formatter, Write};

/// A string literal.
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(out, "\\U{:08x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Shortest digits that read back to the same number.
pub fn write_number(out: &mut impl Write, v: f64) -> fmt::Result {
    if v.is_nan() {
        out.write_str("NaN")
    } else if v.is_infinite() {
        out.write_str(if v > 0.0 { "Inf" } else { "-Inf" })
    } else if v != 0.0 && (v.abs() >= 1e21 || v.abs() < 1e-6) {
        write!(out, "{v:e}")
    } else {
        write!(out, "{v}")
    }
}

fn is_label_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .enumerate()
            .all(|(i, b)| b.is_ascii_alphabetic() || b == b'_' || (i > 0 && b.is_ascii_digit()))
}

fn is_metric_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .enumerate()
            .all(|(i, b)| b.is_ascii_alphabetic() || b == b'_' || b == b':' || (i > 0 && b.is_ascii_digit()))
}

fn label(name: &str) -> String {
    if is_label_name(name) {
        name.to_owned()
    } else {
        quoted(name)
    }
}

fn labels(names: &[String]) -> String {
    names.iter().map(|n| label(n)).collect::<Vec<_>>().join(", ")
}

/// Milliseconds as the largest units that fit: `1h30m`.
struct Duration(i64);

impl Display for Duration {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0 < 0 {
            f.write_str("-")?;
        }
        Display::fmt(&hindcast_model::SpanNs::from_ms(self.0.unsigned_abs()), f)
    }
}

fn write_modifiers(f: &mut Formatter<'_>, at: Option<At>, offset_ms: i64) -> fmt::Result {
    match at {
        None => {}
        Some(At::Start) => f.write_str(" @ start()")?,
        Some(At::End) => f.write_str(" @ end()")?,
        Some(At::Ms(ms)) => {
            let sign = if ms < 0 { "-" } else { "" };
            let ms = ms.unsigned_abs();
            write!(f, " @ {sign}{}.{:03}", ms / 1000, ms % 1000)?;
        }
    }
    if offset_ms != 0 {
        write!(f, " offset {}", Duration(offset_ms))?;
    }
    Ok(())
}

fn write_series(f: &mut Formatter<'_>, s: &Selector) -> fmt::Result {
    let mut parts = vec![];
    let mut bare_name = None;
    for m in &s.matchers {
        let is_name = m.name == METRIC_NAME && m.op == MatchOp::Equal && s.name.as_ref() == Some(&m.value);
        if is_name && bare_name.is_none() && is_metric_name(&m.value) {
            bare_name = Some(m.value.as_str());
        } else if is_name && bare_name.is_none() {
            bare_name = Some("");
            parts.push(quoted(&m.value));
        } else {
            parts.push(format!("{}{}{}", label(&m.name), m.op.as_str(), quoted(&m.value)));
        }
    }
    f.write_str(bare_name.unwrap_or(""))?;
    if !parts.is_empty() || bare_name.is_none_or(str::is_empty) {
        write!(f, "{{{}}}", parts.join(", "))?;
    }
    Ok(())
}

impl Display for Grouping {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let word = if self.without { "without" } else { "by" };
        write!(f, "{word} ({})", labels(&self.labels))
    }
}

impl Display for Matching {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let grouped = match self.cardinality {
            Cardinality::OneToOne | Cardinality::ManyToMany => None,
            Cardinality::ManyToOne => Some("group_left"),
            Cardinality::OneToMany => Some("group_right"),
        };
        if self.on || !self.labels.is_empty() || grouped.is_some() {
            write!(
                f,
                " {} ({})",
                if self.on { "on" } else { "ignoring" },
                labels(&self.labels)
            )?;
        }
        if let Some(word) = grouped {
            write!(f, " {word} ({})", labels(&self.include))?;
        }
        Ok(())
    }
}

impl Display for Expr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Number(n) => write_number(f, n.0),
            Kind::String(s) => f.write_str(&quoted(s)),
            Kind::Vector(s) => {
                write_series(f, s)?;
                write_modifiers(f, s.at, s.offset_ms)
            }
            Kind::Matrix { selector, range_ms } => {
                write_series(f, selector)?;
                write!(f, "[{}]", Duration(*range_ms))?;
                write_modifiers(f, selector.at, selector.offset_ms)
            }
            Kind::Subquery {
                expr,
                range_ms,
                step_ms,
                offset_ms,
                at,
            } => {
                write!(f, "{expr}[{}:", Duration(*range_ms))?;
                if let Some(step) = step_ms {
                    write!(f, "{}", Duration(*step))?;
                }
                f.write_str("]")?;
                write_modifiers(f, *at, *offset_ms)
            }
            Kind::Call { function, args } => {
                write!(f, "{}(", function.name)?;
                for (i, arg) in args.iter().enumerate() {
                    write!(f, "{}{arg}", if i > 0 { ", " } else { "" })?;
                }
                f.write_str(")")
            }
            Kind::Aggregate {
                op,
                grouping,
                param,
                expr,
            } => {
                f.write_str(op.name())?;
                if let Some(g) = grouping {
                    write!(f, " {g} ")?;
                }
                match param {
                    Some(p) => write!(f, "({p}, {expr})"),
                    None => write!(f, "({expr})"),
                }
            }
            Kind::Binary {
                op,
                lhs,
                rhs,
                as_bool,
                matching,
            } => {
                write!(f, "{lhs} {}{}", op.as_str(), if *as_bool { " bool" } else { "" })?;
                if let Some(m) = matching {
                    write!(f, "{m}")?;
                }
                write!(f, " {rhs}")
            }
            Kind::Negate(e) => write!(f, "-{e}"),
            Kind::Plus(e) => write!(f, "+{e}"),
            Kind::Paren(e) => write!(f, "({e})"),
        }
    }
}

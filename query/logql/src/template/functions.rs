//! The functions that templates may call: Go's own and those that Loki documents.

use super::value::{Value, float};
use super::{OUTPUT_BYTES_MAX, Sight, go_time};
use crate::json::text;
use crate::quantity;
use hindcast_model::matcher::REGEX_BYTES_MAX;
use std::cmp::Ordering;

type Call = fn(&Arguments) -> Result<Value, String>;

/// A function of the table.
#[derive(Clone, Copy)]
pub struct Function(&'static (&'static str, Call));

impl Function {
    pub fn find(name: &str) -> Option<Self> {
        TABLE.iter().find(|(n, _)| *n == name).map(Self)
    }

    pub fn name(self) -> &'static str {
        self.0.0
    }

    /// Whether its first argument is the text of a regex.
    pub fn takes_regex(self) -> bool {
        matches!(self.name(), "count" | "regexReplaceAll" | "regexReplaceAllLiteral")
    }
}

/// Characters that `printf` fills up to.
const WIDTH_MAX: usize = u16::MAX as usize;
/// Digits of a number that `printf` writes behind the point: no float has more than 1,075 that are not 0.
const DIGITS_MAX: usize = 1_100;

/// Every match with something else in its place; `groups`: how often that names a group, each at most the match. Match by match, so
/// that it ends at the bound and not behind it.
fn replaced(r: &regex::Regex, of: &str, mut new: impl regex::Replacer, groups: usize) -> Result<Value, String> {
    let (mut out, mut from) = (String::new(), 0);
    for found in r.captures_iter(of) {
        let Some(whole) = found.get(0) else { continue };
        out.push_str(&of[from..whole.start()]);
        if out.len().saturating_add(groups.saturating_mul(whole.len())) > OUTPUT_BYTES_MAX {
            return Err(format!("a replacement gives more than {OUTPUT_BYTES_MAX} bytes"));
        }
        new.replace_append(&found, &mut out);
        from = whole.end();
    }
    out.push_str(&of[from..]);
    Ok(Value::Text(out))
}

/// Compiles a regex that a template names.
pub fn regex(pattern: &str) -> Result<regex::Regex, String> {
    let built = regex::RegexBuilder::new(pattern).size_limit(REGEX_BYTES_MAX).build();
    built.map_err(|e| format!("bad regex {pattern:?}: {}", e.to_string().lines().last().unwrap_or("")))
}

struct Arguments<'a> {
    name: &'static str,
    values: Vec<Value>,
    regex: Option<&'a regex::Regex>,
    sight: &'a Sight<'a>,
}

pub fn call(
    function: Function,
    values: Vec<Value>,
    regex: Option<&regex::Regex>,
    sight: &Sight,
) -> Result<Value, String> {
    let arguments = Arguments {
        name: function.name(),
        values,
        regex,
        sight,
    };
    (function.0.1)(&arguments)
}

impl Arguments<'_> {
    fn value(&self, i: usize) -> Result<&Value, String> {
        let got = self.values.len();
        self.values
            .get(i)
            .ok_or_else(|| format!("wrong number of args for {}: got {got}", self.name))
    }

    fn text(&self, i: usize) -> Result<&str, String> {
        match self.value(i)? {
            Value::Text(text) => Ok(text),
            Value::Nil => Ok(""),
            other => Err(format!(
                "wrong type for {}: expected string, got {}",
                self.name,
                other.kind()
            )),
        }
    }

    fn int(&self, i: usize) -> Result<i64, String> {
        self.value(i).map(int)
    }

    fn float(&self, i: usize) -> Result<f64, String> {
        self.value(i).map(number)
    }

    fn time(&self, i: usize) -> Result<i64, String> {
        match self.value(i)? {
            Value::Time(ns) => Ok(*ns),
            Value::Int(s) => Ok(s.saturating_mul(1_000_000_000)),
            other => Err(format!(
                "wrong type for {}: expected time, got {}",
                self.name,
                other.kind()
            )),
        }
    }

    fn ints(&self, first: i64, f: fn(i64, i64) -> Option<i64>) -> Result<Value, String> {
        let mut total = first;
        for value in &self.values {
            total = f(total, int(value)).ok_or_else(|| format!("{}: the result does not fit", self.name))?;
        }
        Ok(Value::Int(total))
    }

    fn floats(&self, f: fn(f64, f64) -> f64) -> Result<Value, String> {
        let mut total = self.float(0)?;
        for value in &self.values[1..] {
            total = f(total, number(value));
        }
        Ok(Value::Float(total))
    }

    /// Two arguments, of which the second is what is worked on.
    fn of_text(&self, f: fn(&str, &str) -> String) -> Result<Value, String> {
        Ok(Value::Text(f(self.text(0)?, self.text(1)?)))
    }

    fn mapped(&self, f: fn(&str) -> String) -> Result<Value, String> {
        Ok(Value::Text(f(self.text(0)?)))
    }

    fn with_regex<T>(&self, f: impl FnOnce(&regex::Regex) -> T) -> Result<T, String> {
        match self.regex {
            Some(regex) => Ok(f(regex)),
            None => Ok(f(&regex(self.text(0)?)?)),
        }
    }

    fn compared(&self, holds: fn(Ordering) -> bool) -> Result<Value, String> {
        let order = compare(self.value(0)?, self.value(1)?)?;
        Ok(Value::Bool(order.is_some_and(holds)))
    }
}

/// As `int64` reads a value: what is no number is 0.
fn int(value: &Value) -> i64 {
    match value {
        Value::Int(i) => *i,
        Value::Float(f) => *f as i64,
        Value::Bool(b) => i64::from(*b),
        Value::Text(t) => t
            .parse()
            .ok()
            .or_else(|| t.parse::<f64>().ok().filter(|f| f.fract() == 0.0).map(|f| f as i64))
            .unwrap_or(0),
        Value::Time(_) | Value::Nil | Value::List(_) | Value::Map(_) | Value::Labels => 0,
    }
}

fn number(value: &Value) -> f64 {
    match value {
        Value::Float(f) => *f,
        Value::Text(t) => t.trim().parse().unwrap_or(0.0),
        other => int(other) as f64,
    }
}

/// Go compares only what is of one kind.
fn compare(a: &Value, b: &Value) -> Result<Option<Ordering>, String> {
    Ok(match (a, b) {
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Float(a), Value::Float(b)) => a.partial_cmp(b),
        (Value::Text(a), Value::Text(b)) => Some(a.cmp(b)),
        (Value::Time(a), Value::Time(b)) => Some(a.cmp(b)),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        (Value::Nil, Value::Nil) => Some(Ordering::Equal),
        _ => {
            return Err(format!(
                "incompatible types for comparison: {} and {}",
                a.kind(),
                b.kind()
            ));
        }
    })
}

const TABLE: &[(&str, Call)] = &[
    ("__line__", |a| Ok(Value::Text(text(a.sight.line).into_owned()))),
    ("__timestamp__", |a| Ok(Value::Time(a.sight.at.0))),
    ("now", |a| Ok(Value::Time(a.sight.now.0))),
    // Go's strings, the text first.
    ("ToLower", |a| a.mapped(|t| t.to_lowercase())),
    ("ToUpper", |a| a.mapped(|t| t.to_uppercase())),
    ("Replace", |a| {
        let (of, old, new) = (a.text(0)?, a.text(1)?, a.text(2)?);
        let n = a.int(3)?;
        bounded_replace(of, old, new, usize::try_from(n).unwrap_or(usize::MAX))
    }),
    ("Trim", |a| {
        a.of_text(|t, set| t.trim_matches(|c| set.contains(c)).to_owned())
    }),
    ("TrimLeft", |a| {
        a.of_text(|t, set| t.trim_start_matches(|c| set.contains(c)).to_owned())
    }),
    ("TrimRight", |a| {
        a.of_text(|t, set| t.trim_end_matches(|c| set.contains(c)).to_owned())
    }),
    ("TrimPrefix", |a| {
        a.of_text(|t, p| t.strip_prefix(p).unwrap_or(t).to_owned())
    }),
    ("TrimSuffix", |a| {
        a.of_text(|t, s| t.strip_suffix(s).unwrap_or(t).to_owned())
    }),
    ("TrimSpace", |a| a.mapped(|t| t.trim().to_owned())),
    // Those of sprig, the text last, so that it can come through a pipe.
    ("lower", |a| a.mapped(|t| t.to_lowercase())),
    ("upper", |a| a.mapped(|t| t.to_uppercase())),
    ("title", |a| a.mapped(title)),
    ("trim", |a| a.mapped(|t| t.trim().to_owned())),
    ("trimSpace", |a| a.mapped(|t| t.trim().to_owned())),
    ("trimAll", |a| {
        a.of_text(|set, t| t.trim_matches(|c| set.contains(c)).to_owned())
    }),
    ("trimPrefix", |a| {
        a.of_text(|p, t| t.strip_prefix(p).unwrap_or(t).to_owned())
    }),
    ("trimSuffix", |a| {
        a.of_text(|s, t| t.strip_suffix(s).unwrap_or(t).to_owned())
    }),
    ("replace", |a| {
        bounded_replace(a.text(2)?, a.text(0)?, a.text(1)?, usize::MAX)
    }),
    ("contains", |a| Ok(Value::Bool(a.text(1)?.contains(a.text(0)?)))),
    ("hasPrefix", |a| Ok(Value::Bool(a.text(1)?.starts_with(a.text(0)?)))),
    ("hasSuffix", |a| Ok(Value::Bool(a.text(1)?.ends_with(a.text(0)?)))),
    ("repeat", |a| {
        let (n, of) = (usize::try_from(a.int(0)?).unwrap_or(0), a.text(1)?);
        if of.len().saturating_mul(n) > OUTPUT_BYTES_MAX {
            return Err(format!("repeat gives more than {OUTPUT_BYTES_MAX} bytes"));
        }
        Ok(Value::Text(of.repeat(n)))
    }),
    ("trunc", |a| {
        let (n, of) = (a.int(0)?, a.text(1)?);
        Ok(Value::Text(truncated(of, n).to_owned()))
    }),
    ("substr", |a| {
        let (start, end, of) = (a.int(0)?, a.int(1)?, a.text(2)?);
        Ok(Value::Text(substring(of, start, end).to_owned()))
    }),
    ("indent", |a| indented(a, "")),
    ("nindent", |a| indented(a, "\n")),
    ("alignLeft", |a| {
        let (width, of) = (width(a)?, a.text(1)?);
        let kept: String = of.chars().take(width).collect();
        Ok(Value::Text(format!("{kept:<width$}")))
    }),
    ("alignRight", |a| {
        let (width, of) = (width(a)?, a.text(1)?);
        let skipped = of.chars().count().saturating_sub(width);
        let kept: String = of.chars().skip(skipped).collect();
        Ok(Value::Text(format!("{kept:>width$}")))
    }),
    ("regexReplaceAll", |a| {
        let (of, new) = (a.text(1)?, a.text(2)?);
        a.with_regex(|r| replaced(r, of, new, new.matches('$').count()))?
    }),
    ("regexReplaceAllLiteral", |a| {
        let (of, new) = (a.text(1)?, a.text(2)?);
        a.with_regex(|r| replaced(r, of, regex::NoExpand(new), 0))?
    }),
    ("count", |a| {
        let of = a.text(1)?;
        a.with_regex(|r| Value::Int(r.find_iter(of).count() as i64))
    }),
    ("urlencode", |a| a.mapped(url_encoded)),
    ("urlquery", |a| a.mapped(url_encoded)),
    ("urldecode", |a| url_decoded(a.text(0)?).map(Value::Text)),
    ("html", |a| {
        a.mapped(|t| {
            t.replace('&', "&amp;")
                .replace('<', "&lt;")
                .replace('>', "&gt;")
                .replace('"', "&#34;")
                .replace('\'', "&#39;")
        })
    }),
    ("b64enc", |a| a.mapped(|t| base64_encoded(t.as_bytes()))),
    ("b64dec", |a| {
        let decoded = base64_decoded(a.text(0)?);
        decoded
            .map(|b| Value::Text(text(&b).into_owned()))
            .ok_or_else(|| "b64dec: illegal base64 data".to_owned())
    }),
    ("fromJson", |a| {
        Ok(serde_json::from_str(a.text(0)?).map_or(Value::Nil, Value::of_json))
    }),
    ("default", |a| {
        let otherwise = a.value(0)?;
        Ok(a.values.get(1).filter(|v| v.is_true()).unwrap_or(otherwise).clone())
    }),
    // Numbers.
    ("int", |a| a.int(0).map(Value::Int)),
    ("float64", |a| a.float(0).map(Value::Float)),
    ("add", |a| a.ints(0, i64::checked_add)),
    ("mul", |a| a.ints(1, i64::checked_mul)),
    ("sub", |a| {
        let less = a.int(0)?.checked_sub(a.int(1)?);
        less.map(Value::Int)
            .ok_or_else(|| "sub: the result does not fit".to_owned())
    }),
    ("div", |a| {
        let part = a.int(0)?.checked_div(a.int(1)?);
        part.map(Value::Int)
            .ok_or_else(|| "div: integer divide by zero".to_owned())
    }),
    ("mod", |a| {
        let rest = a.int(0)?.checked_rem(a.int(1)?);
        rest.map(Value::Int)
            .ok_or_else(|| "mod: integer divide by zero".to_owned())
    }),
    ("max", |a| {
        a.int(0).and_then(|first| a.ints(first, |a, b| Some(a.max(b))))
    }),
    ("min", |a| {
        a.int(0).and_then(|first| a.ints(first, |a, b| Some(a.min(b))))
    }),
    ("addf", |a| a.floats(|a, b| a + b)),
    ("subf", |a| a.floats(|a, b| a - b)),
    ("mulf", |a| a.floats(|a, b| a * b)),
    ("divf", |a| a.floats(|a, b| a / b)),
    ("maxf", |a| a.floats(f64::max)),
    ("minf", |a| a.floats(f64::min)),
    ("ceil", |a| a.float(0).map(|v| Value::Float(v.ceil()))),
    ("floor", |a| a.float(0).map(|v| Value::Float(v.floor()))),
    ("round", |a| {
        let (v, places) = (a.float(0)?, a.values.get(1).map_or(0, int).clamp(-300, 300) as i32);
        let on = a.values.get(2).map_or(0.5, number);
        let scaled = v * 10f64.powi(places);
        let fraction = scaled.abs() - scaled.abs().floor();
        let whole = if fraction >= on {
            scaled.abs().ceil()
        } else {
            scaled.abs().floor()
        };
        Ok(Value::Float(whole.copysign(scaled) / 10f64.powi(places)))
    }),
    ("bytes", |a| {
        let of = a.text(0)?;
        quantity::bytes(of)
            .map(Value::Float)
            .ok_or_else(|| format!("bytes: unhandled size {of:?}"))
    }),
    ("duration", seconds),
    ("duration_seconds", seconds),
    // Times.
    ("date", |a| Ok(Value::Text(go_time::format(a.text(0)?, a.time(1)?)))),
    ("toDate", |a| {
        Ok(Value::Time(go_time::parse(a.text(0)?, a.text(1)?).unwrap_or(0)))
    }),
    ("toDateInZone", |a| match a.text(1)? {
        "UTC" | "GMT" | "Local" | "" => Ok(Value::Time(go_time::parse(a.text(0)?, a.text(2)?).unwrap_or(0))),
        zone => Err(format!(
            "toDateInZone: the time zone {zone:?} is not known here: use UTC"
        )),
    }),
    ("unixEpoch", |a| {
        Ok(Value::Text(a.time(0)?.div_euclid(1_000_000_000).to_string()))
    }),
    ("unixEpochMillis", |a| {
        Ok(Value::Text(a.time(0)?.div_euclid(1_000_000).to_string()))
    }),
    ("unixEpochNanos", |a| Ok(Value::Text(a.time(0)?.to_string()))),
    ("unixToTime", |a| {
        let of = a.text(0)?;
        let number: i64 = of.parse().map_err(|_| format!("unable to parse time {of:?}"))?;
        let unit = match of.len() {
            5 => 86_400_000_000_000,
            10 => 1_000_000_000,
            13 => 1_000_000,
            16 => 1_000,
            19 => 1,
            _ => return Err(format!("unable to parse time {of:?}: not in a known format")),
        };
        Ok(Value::Time(number.saturating_mul(unit)))
    }),
    // Go's own.
    ("eq", |a| {
        let first = a.value(0)?;
        a.value(1)?;
        for other in &a.values[1..] {
            if compare(first, other)? == Some(Ordering::Equal) {
                return Ok(Value::Bool(true));
            }
        }
        Ok(Value::Bool(false))
    }),
    ("ne", |a| {
        let order = compare(a.value(0)?, a.value(1)?)?;
        Ok(Value::Bool(order != Some(Ordering::Equal)))
    }),
    ("lt", |a| a.compared(Ordering::is_lt)),
    ("le", |a| a.compared(Ordering::is_le)),
    ("gt", |a| a.compared(Ordering::is_gt)),
    ("ge", |a| a.compared(Ordering::is_ge)),
    ("and", |a| {
        let last = a.values.len().saturating_sub(1);
        a.value(a.values.iter().position(|v| !v.is_true()).unwrap_or(last))
            .cloned()
    }),
    ("or", |a| {
        let last = a.values.len().saturating_sub(1);
        a.value(a.values.iter().position(Value::is_true).unwrap_or(last))
            .cloned()
    }),
    ("not", |a| Ok(Value::Bool(!a.value(0)?.is_true()))),
    ("len", |a| {
        Ok(Value::Int(match a.value(0)? {
            Value::Text(t) => t.len(),
            Value::List(l) => l.len(),
            Value::Map(m) => m.len(),
            Value::Labels => a.sight.fields.iter().count(),
            other => return Err(format!("len of type {}", other.kind())),
        } as i64))
    }),
    ("index", |a| {
        let mut found = a.value(0)?.clone();
        for key in &a.values[1..] {
            found = item(found, key, a.sight)?;
        }
        Ok(found)
    }),
    ("slice", |a| {
        let of = a.text(0)?;
        let end = a.values.get(2).map_or(of.len() as i64, int);
        let range = (a.values.get(1).map_or(0, int), end);
        let (Ok(start), Ok(end)) = (usize::try_from(range.0), usize::try_from(range.1)) else {
            return Err("slice: index out of range".to_owned());
        };
        let part = of.as_bytes().get(start..end).ok_or("slice: index out of range")?;
        Ok(Value::Text(text(part).into_owned()))
    }),
    ("print", |a| {
        Ok(Value::Text(
            a.values.iter().map(Value::shown).collect::<Vec<_>>().concat(),
        ))
    }),
    ("println", |a| {
        let shown: Vec<String> = a.values.iter().map(Value::shown).collect();
        Ok(Value::Text(shown.join(" ") + "\n"))
    }),
    ("printf", |a| printf(a.text(0)?, &a.values[1..]).map(Value::Text)),
];

fn seconds(a: &Arguments) -> Result<Value, String> {
    let of = a.text(0)?;
    let ns = quantity::duration_ns(of).ok_or_else(|| format!("{}: invalid duration {of:?}", a.name))?;
    Ok(Value::Float(ns as f64 / 1e9))
}

/// Replacing may lengthen a text; how much is known before.
fn bounded_replace(of: &str, old: &str, new: &str, n: usize) -> Result<Value, String> {
    let times = of.matches(old).take(n).count();
    if times.saturating_mul(new.len()) > OUTPUT_BYTES_MAX {
        return Err(format!("replace gives more than {OUTPUT_BYTES_MAX} bytes"));
    }
    Ok(Value::Text(of.replacen(old, new, n)))
}

fn title(text: &str) -> String {
    let mut starts = true;
    let big = text.chars().map(|c| {
        let first = std::mem::replace(&mut starts, !c.is_alphanumeric() && c != '_' && c != '\'');
        if first { c.to_uppercase().next().unwrap_or(c) } else { c }
    });
    big.collect()
}

/// The place of a byte, moved down to where a character begins.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn truncated(text: &str, n: i64) -> &str {
    let len = usize::try_from(n.unsigned_abs()).unwrap_or(usize::MAX);
    if len >= text.len() {
        text
    } else if n < 0 {
        &text[floor(text, text.len() - len)..]
    } else {
        &text[..floor(text, len)]
    }
}

fn substring(text: &str, start: i64, end: i64) -> &str {
    let end = usize::try_from(end).map_or(text.len(), |e| floor(text, e));
    let start = usize::try_from(start).map_or(0, |s| floor(text, s));
    text.get(start..end).unwrap_or("")
}

fn width(a: &Arguments) -> Result<usize, String> {
    let width = usize::try_from(a.int(0)?).unwrap_or(0);
    // A format's width is 16 bits.
    if width > usize::from(u16::MAX) {
        return Err(format!("{}: {width} is too wide", a.name));
    }
    Ok(width)
}

fn indented(a: &Arguments, before: &str) -> Result<Value, String> {
    let (width, of) = (width(a)?, a.text(1)?);
    if width.saturating_mul(of.matches('\n').count() + 1) > OUTPUT_BYTES_MAX {
        return Err(format!("{} gives more than {OUTPUT_BYTES_MAX} bytes", a.name));
    }
    let pad = " ".repeat(width);
    Ok(Value::Text(format!(
        "{before}{pad}{}",
        of.replace('\n', &format!("\n{pad}"))
    )))
}

fn item(of: Value, key: &Value, sight: &Sight) -> Result<Value, String> {
    match (of, key) {
        (Value::Map(mut map), Value::Text(key)) => Ok(map.remove(key).unwrap_or(Value::Nil)),
        (Value::Labels, Value::Text(key)) => Ok(Value::Text(sight.fields.get(key).unwrap_or("").to_owned())),
        (Value::List(mut items), Value::Int(i)) => match usize::try_from(*i) {
            Ok(i) if i < items.len() => Ok(items.swap_remove(i)),
            _ => Err(format!("index out of range: {i}")),
        },
        (Value::Text(text), Value::Int(i)) => {
            let byte = usize::try_from(*i).ok().and_then(|i| text.as_bytes().get(i));
            byte.map(|b| Value::Int(i64::from(*b)))
                .ok_or_else(|| format!("index out of range: {i}"))
        }
        (of, key) => Err(format!("can't index {} with {}", of.kind(), key.kind())),
    }
}

/// Go's verbs, with flags, width and precision.
fn printf(format: &str, values: &[Value]) -> Result<String, String> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let spec = rest
            .find(|c: char| !matches!(c, '0'..='9' | '.' | '-' | '+' | ' ' | '#'))
            .unwrap_or(rest.len());
        let (flags, after) = rest.split_at(spec);
        let Some(verb) = after.chars().next() else {
            out.push_str("%!(NOVERB)");
            return Ok(out);
        };
        rest = &after[verb.len_utf8()..];
        if verb == '%' {
            out.push('%');
            continue;
        }
        let Some(value) = values.next() else {
            out.push_str(&format!("%!{verb}(MISSING)"));
            continue;
        };
        let digits = flags.trim_start_matches(['-', '+', ' ', '#', '0']);
        let signs = &flags[..flags.len() - digits.len()];
        let (width, precision) = digits.split_once('.').map_or((digits, None), |(w, p)| (w, Some(p)));
        let bounded = |t: &str, most| t.parse::<usize>().unwrap_or(0).min(most);
        let width = bounded(width, WIDTH_MAX);
        let precision = precision.map(|p| match value {
            Value::Float(_) => bounded(p, DIGITS_MAX),
            _ => bounded(p, usize::MAX),
        });
        let shown = verb_shown(verb, value, precision, signs);
        let missing = width.saturating_sub(shown.chars().count());
        if signs.contains('-') {
            out.push_str(&shown);
            out.push_str(&" ".repeat(missing));
        } else if signs.contains('0') && matches!(value, Value::Int(_) | Value::Float(_)) {
            let (sign, number) = shown.strip_prefix('-').map_or(("", shown.as_str()), |n| ("-", n));
            out.push_str(sign);
            out.push_str(&"0".repeat(missing));
            out.push_str(number);
        } else {
            out.push_str(&" ".repeat(missing));
            out.push_str(&shown);
        }
        if out.len() > OUTPUT_BYTES_MAX {
            return Err(format!("printf gives more than {OUTPUT_BYTES_MAX} bytes"));
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn verb_shown(verb: char, value: &Value, precision: Option<usize>, signs: &str) -> String {
    let signed = |negative: bool, shown: String| match signs.contains('+') && !negative {
        true => format!("+{shown}"),
        false => shown,
    };
    match (verb, value) {
        ('v' | 's', Value::Text(t)) => match precision {
            Some(p) => t.chars().take(p).collect(),
            None => t.clone(),
        },
        ('v', value) => value.shown(),
        ('s', value @ (Value::Time(_) | Value::List(_) | Value::Map(_))) => value.shown(),
        ('q', Value::Text(t)) => hindcast_promql::quoted(t),
        ('d', Value::Int(i)) => signed(*i < 0, i.to_string()),
        ('x', Value::Int(i)) => format!("{i:x}"),
        ('X', Value::Int(i)) => format!("{i:X}"),
        ('o', Value::Int(i)) => format!("{i:o}"),
        ('b', Value::Int(i)) => format!("{i:b}"),
        ('c', Value::Int(i)) => u32::try_from(*i)
            .ok()
            .and_then(char::from_u32)
            .unwrap_or('\u{fffd}')
            .to_string(),
        ('x', Value::Text(t)) => t.bytes().map(|b| format!("{b:02x}")).collect(),
        ('f' | 'F', Value::Float(f)) => signed(*f < 0.0, format!("{f:.*}", precision.unwrap_or(6))),
        ('g', Value::Float(f)) => signed(*f < 0.0, float(*f)),
        ('e', Value::Float(f)) => {
            let text = format!("{f:.*e}", precision.unwrap_or(6));
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
            format!("{digits}e{sign}{exponent:0>2}")
        }
        ('t', Value::Bool(b)) => b.to_string(),
        ('T', value) => value.kind().to_owned(),
        (verb, Value::Nil) => format!("%!{verb}(<nil>)"),
        (verb, value) => format!("%!{verb}({}={})", value.kind().replace("int64", "int"), value.shown()),
    }
}

fn url_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(b as char),
            b' ' => out.push('+'),
            b => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

fn url_decoded(given: &str) -> Result<String, String> {
    let mut out = vec![];
    let bytes = given.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'+' => out.push(b' '),
            b'%' => {
                let hex = given
                    .get(at + 1..at + 3)
                    .filter(|h| h.bytes().all(|b| b.is_ascii_hexdigit()));
                let byte = hex.and_then(|h| u8::from_str_radix(h, 16).ok());
                out.push(byte.ok_or_else(|| format!("urldecode: invalid URL escape in {given:?}"))?);
                at += 2;
            }
            b => out.push(b),
        }
        at += 1;
    }
    Ok(text(&out).into_owned())
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64_encoded(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let three = [chunk[0], *chunk.get(1).unwrap_or(&0), *chunk.get(2).unwrap_or(&0)];
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for i in 0..4 {
            let digit = BASE64[(bits >> (18 - 6 * i)) as usize & 63];
            out.push(if i <= chunk.len() { digit as char } else { '=' });
        }
    }
    out
}

fn base64_decoded(text: &str) -> Option<Vec<u8>> {
    let clean: Vec<u8> = text.bytes().filter(|b| !matches!(b, b'\n' | b'\r')).collect();
    if !clean.len().is_multiple_of(4) {
        return None;
    }
    let mut out = vec![];
    for (i, chunk) in clean.chunks(4).enumerate() {
        let padding = chunk.iter().rev().take_while(|b| **b == b'=').count();
        if padding > 2 || (padding > 0 && (i + 1) * 4 < clean.len()) {
            return None;
        }
        let mut bits = 0;
        for b in &chunk[..4 - padding] {
            bits = bits << 6 | BASE64.iter().position(|d| d == b)? as u32;
        }
        bits <<= 6 * padding;
        out.extend_from_slice(&bits.to_be_bytes()[1..4 - padding]);
    }
    Some(out)
}

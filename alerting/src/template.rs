//! Templates of labels and annotations: the small part of Go's that rule files live on.
//!
//! `{{ $labels.x }}`, `{{ .Labels.x }}`, `{{ $value }}`, `{{ .Value }}`, strings, and pipelines of `humanize`,
//! `humanize1024`, `humanizePercentage`, `humanizeDuration`, `toUpper`, `toLower` and `printf` with one argument.
//! No loops, no queries: rendering takes time in proportion to the text and never fails for the reader, because
//! whoever renders falls back to a plain text (`or_plain`).

use hindcast_model::Labels;

/// Of one rendered text.
pub const TEXT_BYTES_MAX: usize = 16 * 1024;

/// Why a template cannot be rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("{{{{ without }}}}")]
    Unclosed,
    #[error("{0:?} is not known here")]
    Unknown(String),
    #[error("a number is needed for {0}")]
    NotANumber(String),
    #[error("the text grows beyond {TEXT_BYTES_MAX} bytes")]
    TooLong,
}

/// Whether the template could be rendered for some alert.
pub fn check(template: &str) -> Result<(), TemplateError> {
    render(template, &Labels::empty(), 0.0).map(drop)
}

/// Renders a template for one series.
pub fn render(template: &str, labels: &Labels, value: f64) -> Result<String, TemplateError> {
    let (mut out, mut rest) = (String::new(), template);
    while let Some(start) = rest.find("{{") {
        let (before, after) = (&rest[..start], &rest[start + 2..]);
        let end = after.find("}}").ok_or(TemplateError::Unclosed)?;
        let (mut action, mut next) = (&after[..end], &after[end + 2..]);
        let mut before = before;
        if let Some(trimmed) = action.strip_prefix("- ") {
            (action, before) = (trimmed, before.trim_end());
        }
        if let Some(trimmed) = action.strip_suffix(" -") {
            (action, next) = (trimmed, next.trim_start());
        }
        out.push_str(before);
        out.push_str(&pipeline(action, labels, value)?.text());
        rest = next;
        if out.len() > TEXT_BYTES_MAX {
            return Err(TemplateError::TooLong);
        }
    }
    out.push_str(rest);
    if out.len() > TEXT_BYTES_MAX {
        return Err(TemplateError::TooLong);
    }
    Ok(out)
}

/// Renders, or says the same in plain words: a broken template never loses a notification.
pub fn or_plain(template: &str, rule: &str, labels: &Labels, value: f64) -> String {
    render(template, labels, value).unwrap_or_else(|_| {
        let mut text = format!("{rule} {labels} has value {}", number(value));
        if text.len() > TEXT_BYTES_MAX {
            let cut = (0..=TEXT_BYTES_MAX).rev().find(|i| text.is_char_boundary(*i));
            text.truncate(cut.unwrap_or(0));
        }
        text
    })
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Text(String),
    Number(f64),
}

impl Value {
    fn text(&self) -> String {
        match self {
            Self::Text(t) => t.clone(),
            Self::Number(n) => number(*n),
        }
    }

    fn number(&self, what: &str) -> Result<f64, TemplateError> {
        match self {
            Self::Number(n) => Ok(*n),
            Self::Text(t) => t.parse().map_err(|_| TemplateError::NotANumber(what.to_owned())),
        }
    }
}

fn pipeline(action: &str, labels: &Labels, value: f64) -> Result<Value, TemplateError> {
    let mut piped: Option<Value> = None;
    for stage in split_outside_quotes(action, '|') {
        let words = words(&stage);
        let (head, args) = words
            .split_first()
            .ok_or_else(|| TemplateError::Unknown(action.trim().to_owned()))?;
        let mut values = vec![];
        for word in args {
            values.push(operand(word, labels, value)?);
        }
        values.extend(piped.take());
        let is_operand = values.is_empty() && operand(head, labels, value).is_ok();
        piped = Some(if is_operand {
            operand(head, labels, value)?
        } else {
            call(head, &values)?
        });
    }
    piped.ok_or_else(|| TemplateError::Unknown(action.trim().to_owned()))
}

fn operand(word: &str, labels: &Labels, value: f64) -> Result<Value, TemplateError> {
    if word == "$value" || word == ".Value" {
        return Ok(Value::Number(value));
    }
    if let Some(name) = word.strip_prefix("$labels.").or_else(|| word.strip_prefix(".Labels.")) {
        return Ok(Value::Text(labels.value(name).to_owned()));
    }
    let quoted = |q: char| word.strip_prefix(q).and_then(|w| w.strip_suffix(q));
    if let Some(text) = quoted('"').or_else(|| quoted('`')) {
        return Ok(Value::Text(text.to_owned()));
    }
    match word.parse() {
        Ok(n) if word.starts_with(|c: char| c.is_ascii_digit() || c == '-') => Ok(Value::Number(n)),
        _ => Err(TemplateError::Unknown(word.to_owned())),
    }
}

fn call(function: &str, args: &[Value]) -> Result<Value, TemplateError> {
    let one = || match args {
        [only] => Ok(only),
        _ => Err(TemplateError::Unknown(function.to_owned())),
    };
    let text = match function {
        "humanize" => scaled(
            one()?.number(function)?,
            1000.0,
            &["", "k", "M", "G", "T", "P", "E", "Z", "Y"],
        ),
        "humanize1024" => scaled(
            one()?.number(function)?,
            1024.0,
            &["", "ki", "Mi", "Gi", "Ti", "Pi", "Ei", "Zi", "Yi"],
        ),
        "humanizePercentage" => format!("{}%", short(one()?.number(function)? * 100.0)),
        "humanizeDuration" => duration(one()?.number(function)?),
        "toUpper" => one()?.text().to_uppercase(),
        "toLower" => one()?.text().to_lowercase(),
        "printf" => match args {
            [format, argument] => printf(&format.text(), argument)?,
            _ => return Err(TemplateError::Unknown("printf without exactly one argument".into())),
        },
        _ => return Err(TemplateError::Unknown(function.to_owned())),
    };
    Ok(Value::Text(text))
}

/// `%s`, `%v`, `%d`, `%g`, `%f`, `%.2f` and `%%`, with one argument.
fn printf(format: &str, argument: &Value) -> Result<String, TemplateError> {
    let (mut out, mut chars) = (String::new(), format.chars().peekable());
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut spec = String::new();
        while let Some(&d) = chars.peek() {
            if d.is_ascii_digit() || d == '.' {
                spec.push(d);
                chars.next();
            } else {
                break;
            }
        }
        let digits = match spec.strip_prefix('.') {
            Some(d) => d.parse::<usize>().ok().filter(|d| *d <= 20),
            None if spec.is_empty() => Some(6),
            None => None,
        };
        let unknown = || TemplateError::Unknown(format!("%{spec} in printf"));
        match chars.next() {
            Some('%') => out.push('%'),
            Some('s' | 'v' | 'g') => out.push_str(&argument.text()),
            Some('d') => out.push_str(&format!("{:.0}", argument.number("%d")?.trunc())),
            Some('f') => {
                let digits = digits.ok_or_else(unknown)?;
                out.push_str(&format!("{:.digits$}", argument.number("%f")?));
            }
            _ => return Err(unknown()),
        }
    }
    Ok(out)
}

/// A number as PromQL prints it.
pub fn number(n: f64) -> String {
    if n.is_nan() {
        "NaN".into()
    } else if n.is_infinite() {
        if n > 0.0 { "+Inf".into() } else { "-Inf".into() }
    } else {
        n.to_string()
    }
}

/// Four significant digits, without trailing zeros.
fn short(n: f64) -> String {
    if !n.is_finite() || n == 0.0 {
        return number(n);
    }
    let whole = n.abs().log10().floor() as i32;
    let digits = (3 - whole).clamp(0, 12) as usize;
    let text = format!("{n:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

fn scaled(n: f64, base: f64, prefixes: &[&str]) -> String {
    let (mut n, mut i) = (n, 0);
    while n.is_finite() && n.abs() >= base && i + 1 < prefixes.len() {
        n /= base;
        i += 1;
    }
    format!("{}{}", short(n), prefixes[i])
}

fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds.abs() > 1e15 {
        return number(seconds);
    }
    if seconds.abs() < 1.0 {
        return format!("{}ms", short(seconds * 1000.0));
    }
    let sign = if seconds < 0.0 { "-" } else { "" };
    let whole = seconds.abs() as u64;
    let (d, h, m, s) = (whole / 86_400, whole / 3_600 % 24, whole / 60 % 60, whole % 60);
    let parts = [(d, "d"), (h, "h"), (m, "m"), (s, "s")];
    let shown: Vec<_> = parts
        .iter()
        .skip_while(|(n, _)| *n == 0)
        .map(|(n, u)| format!("{n}{u}"))
        .collect();
    format!("{sign}{}", shown.join(" "))
}

fn split_outside_quotes(text: &str, at: char) -> Vec<String> {
    let (mut parts, mut part, mut quote) = (vec![], String::new(), None);
    for c in text.chars() {
        match quote {
            Some(q) if c == q => quote = None,
            None if c == '"' || c == '`' => quote = Some(c),
            None if c == at => {
                parts.push(std::mem::take(&mut part));
                continue;
            }
            _ => {}
        }
        part.push(c);
    }
    parts.push(part);
    parts
}

fn words(text: &str) -> Vec<String> {
    split_outside_quotes(&text.replace(['\t', '\n'], " "), ' ')
        .into_iter()
        .filter(|w| !w.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(template: &str, value: f64) -> String {
        let labels = Labels::from_pairs([("instance", "web-1:9100"), ("job", "node")]);
        render(template, &labels, value).unwrap_or_else(|e| format!("error: {e}"))
    }

    #[test]
    fn what_rule_files_write_is_rendered() {
        assert_eq!(shown("{{ $labels.instance }} is down", 0.0), "web-1:9100 is down");
        assert_eq!(shown("{{.Labels.job}}: {{ .Value }}", 0.25), "node: 0.25");
        assert_eq!(shown("{{ $value | humanizePercentage }}", 0.93456), "93.46%");
        assert_eq!(shown("{{ humanize $value }}", 1_234_567.0), "1.235M");
        assert_eq!(shown("{{ $value | humanize1024 }}B", 2048.0), "2kiB");
        assert_eq!(shown("{{ $value | humanizeDuration }}", 93_784.0), "1d 2h 3m 4s");
        assert_eq!(shown("{{ printf \"%.2f\" $value }} of | 100", 2.345), "2.35 of | 100");
        assert_eq!(shown("a {{- $labels.job -}} b", 0.0), "anodeb");
        assert_eq!(shown("{{ $labels.gone }}", 0.0), "");
    }

    #[test]
    fn a_broken_template_becomes_a_plain_text() {
        assert_eq!(shown("{{ $value", 1.0), "error: {{ without }}");
        assert_eq!(
            shown("{{ with query \"up\" }}x{{ end }}", 1.0),
            "error: \"query\" is not known here"
        );
        let labels = Labels::from_pairs([("job", "node")]);
        assert_eq!(
            or_plain("{{ nonsense }}", "Down", &labels, f64::NAN),
            "Down {job=\"node\"} has value NaN"
        );
        assert_eq!(
            shown(&"x".repeat(TEXT_BYTES_MAX + 1), 0.0),
            format!("error: {}", TemplateError::TooLong)
        );
    }

    proptest! {
        #[test]
        fn no_template_and_no_value_breaks_the_renderer(
            template in "(\\{\\{|\\}\\}|[$a-zA-Z.| %\"`0-9-]|\\$value|humanize|printf){0,40}",
            value in proptest::num::f64::ANY,
        ) {
            let text = or_plain(&template, "Rule", &Labels::empty(), value);
            prop_assert!(text.len() <= TEXT_BYTES_MAX);
        }
    }
}

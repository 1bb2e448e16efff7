//! Pages of the Prometheus text format 0.0.4 and of OpenMetrics 1.0, line by line.
//!
//! A line is `name{label="value",…} value [timestamp] [# exemplar]`; names may stand quoted inside the braces. Types and help texts are
//! left out. Who reads a line says what its timestamp means. Exemplars are read from pages of OpenMetrics, which has them; one that is not understood
//! is told and spoils nothing else.
//!
//! Bounds: [`LABELS_PER_LINE_MAX`]. A page's lines are read one after the other; what is kept of them is the reader's.

use hindcast_model::METRIC_NAME;

/// Labels of one line.
pub const LABELS_PER_LINE_MAX: usize = 256;
/// How much of what is wrong is repeated in a message.
const SHOWN_CHARS_MAX: usize = 80;

/// How a page is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Timestamps are whole milliseconds.
    Prometheus,
    /// Timestamps are seconds with a fraction; the page ends with `# EOF`.
    OpenMetrics,
}

impl Format {
    /// By the `Content-Type` of an answer. What is no known type is read as the Prometheus format, which needs no header.
    pub fn of_content_type(given: &str) -> Self {
        let kind = given.split(';').next().unwrap_or_default().trim();
        if kind.eq_ignore_ascii_case("application/openmetrics-text") {
            return Self::OpenMetrics;
        }
        Self::Prometheus
    }
}

/// A line that is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct BadLine {
    pub why: String,
}

impl BadLine {
    pub fn new(why: impl Into<String>) -> Self {
        Self { why: why.into() }
    }
}

/// What one line says.
#[derive(Clone, Debug, PartialEq)]
pub enum Line<'a> {
    /// Nothing: a comment, an empty line.
    Nothing,
    /// `# EOF`.
    End,
    Sample(SampleLine<'a>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct SampleLine<'a> {
    /// With the metric's name as `__name__`; each name once. Values may be empty.
    pub pairs: Vec<(String, String)>,
    pub value: f64,
    /// As it stands there.
    pub stamp: Option<&'a str>,
    /// What stands behind a `#`.
    pub exemplar: Option<&'a str>,
}

/// A single measurement behind a sample, with labels that lead to its trace.
#[derive(Clone, Debug, PartialEq)]
pub struct PageExemplar {
    /// Each name once.
    pub labels: Vec<(String, String)>,
    pub value: f64,
    /// In milliseconds, where the page names it.
    pub at_ms: Option<i64>,
}

/// A float as Prometheus writes it: `NaN`, `+Inf` and hexadecimal aside, what Rust reads.
pub fn float(text: &str) -> Result<f64, BadLine> {
    // Rust reads "inf", "infinity" and "nan" in any case and with a sign, as Go does.
    text.parse()
        .map_err(|_| BadLine::new(format!("{:?} is not a number", shown(text))))
}

pub fn parse(line: &str) -> Result<Line<'_>, BadLine> {
    let line = line.trim();
    if line == "# EOF" {
        return Ok(Line::End);
    }
    if line.is_empty() || line.starts_with('#') {
        return Ok(Line::Nothing);
    }
    let name_end = line.find(['{', ' ', '\t']).ok_or_else(|| BadLine::new("no value"))?;
    let (name, rest) = line.split_at(name_end);
    let mut pairs = vec![];
    if !name.is_empty() {
        pairs.push((METRIC_NAME.to_owned(), metric_name(name)?.to_owned()));
    }
    let rest = match rest.trim_start().strip_prefix('{') {
        Some(inside) => labels(inside, &mut pairs)?,
        None => rest,
    };
    if !pairs.iter().any(|(n, _)| n == METRIC_NAME) {
        return Err(BadLine::new("no metric name"));
    }
    let (numbers, exemplar) = match rest.split_once('#') {
        Some((numbers, exemplar)) if numbers.ends_with([' ', '\t']) => (numbers, Some(exemplar.trim())),
        _ => (rest, None),
    };
    let (value, stamp) = value_and_stamp(numbers)?;
    Ok(Line::Sample(SampleLine {
        pairs,
        value,
        stamp,
        exemplar,
    }))
}

fn value_and_stamp(text: &str) -> Result<(f64, Option<&str>), BadLine> {
    let mut words = text.split_whitespace();
    let value = float(words.next().ok_or_else(|| BadLine::new("no value"))?)?;
    let stamp = words.next();
    match words.next() {
        None => Ok((value, stamp)),
        Some(_) => Err(BadLine::new("more than a value and a timestamp")),
    }
}

fn metric_name(name: &str) -> Result<&str, BadLine> {
    let fits = |(i, c): (usize, char)| c.is_ascii_alphabetic() || c == '_' || c == ':' || i > 0 && c.is_ascii_digit();
    if name.char_indices().all(fits) {
        return Ok(name);
    }
    Err(BadLine::new(format!("{:?} is not a metric name", shown(name))))
}

/// Reads up to and with the closing brace; gives what follows.
fn labels<'a>(mut rest: &'a str, pairs: &mut Vec<(String, String)>) -> Result<&'a str, BadLine> {
    let open = || BadLine::new("the labels do not end");
    loop {
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix('}') {
            return Ok(after);
        }
        if pairs.len() > LABELS_PER_LINE_MAX {
            return Err(BadLine::new(format!("more than {LABELS_PER_LINE_MAX} labels")));
        }
        let (name, after) = match rest.strip_prefix('"') {
            Some(quoted) => {
                let (name, after) = text(quoted)?;
                (name, after.trim_start())
            }
            None => {
                let end = rest.find('=').ok_or_else(open)?;
                let name = rest[..end].trim();
                if name.is_empty() || metric_name(name).is_err() {
                    return Err(BadLine::new(format!("{:?} is not a label name", shown(name))));
                }
                (name.to_owned(), &rest[end..])
            }
        };
        rest = match after.strip_prefix('=') {
            Some(value) => {
                let quoted = value.trim_start().strip_prefix('"');
                let quoted =
                    quoted.ok_or_else(|| BadLine::new(format!("the value of {:?} is not quoted", shown(&name))))?;
                let (value, after) = text(quoted)?;
                if pairs.iter().any(|(n, _)| *n == name) {
                    return Err(BadLine::new(format!("label {:?} is given twice", shown(&name))));
                }
                pairs.push((name, value));
                after.trim_start()
            }
            // A quoted text alone is the metric's name.
            None if pairs.iter().all(|(n, _)| n != METRIC_NAME) => {
                pairs.push((METRIC_NAME.to_owned(), name));
                after
            }
            None => return Err(BadLine::new("a second metric name")),
        };
        if let Some(after) = rest.strip_prefix(',') {
            rest = after;
        } else if !rest.starts_with('}') {
            return Err(open());
        }
    }
}

/// A quoted text after its first quote, and what follows its last one.
fn text(quoted: &str) -> Result<(String, &str), BadLine> {
    let mut out = String::new();
    let mut chars = quoted.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Ok((out, &quoted[i + 1..])),
            '\\' => match chars.next() {
                Some((_, 'n')) => out.push('\n'),
                Some((_, c @ ('\\' | '"'))) => out.push(c),
                // As Prometheus: an unknown escape stays as it is.
                Some((_, c)) => out.extend(['\\', c]),
                None => break,
            },
            c => out.push(c),
        }
    }
    Err(BadLine::new("a quote is not closed"))
}

/// The first characters of a text that may be of any length.
fn shown(text: &str) -> &str {
    text.char_indices()
        .nth(SHOWN_CHARS_MAX)
        .map_or(text, |(at, _)| &text[..at])
}

/// One sample of a page.
#[derive(Clone, Debug, PartialEq)]
pub struct PageSample {
    pub pairs: Vec<(String, String)>,
    pub value: f64,
    /// In milliseconds, where the page names it.
    pub at_ms: Option<i64>,
    pub exemplar: Option<Result<PageExemplar, BadLine>>,
}

/// The samples of a page. An error ends it: a page is taken whole or not at all.
pub struct Page<'a> {
    lines: std::str::Split<'a, char>,
    number: usize,
    format: Format,
    has_ended: bool,
}

impl<'a> Page<'a> {
    pub fn new(text: &'a str, format: Format) -> Self {
        Self {
            lines: text.split('\n'),
            number: 0,
            format,
            has_ended: false,
        }
    }

    fn stamp(&self, text: &str) -> Result<i64, BadLine> {
        let bad = || BadLine::new(format!("{:?} is not a timestamp", shown(text)));
        match self.format {
            Format::Prometheus => text.parse().map_err(|_| bad()),
            Format::OpenMetrics => {
                let seconds: f64 = text.parse().map_err(|_| bad())?;
                let ms = (seconds * 1000.0).round();
                // Some 290,000 years: beyond, it is no time. Nanoseconds in 64 bits end a thousand times sooner: what lies between
                // counts as their end, and is refused by itself.
                if ms.abs() < 9.2e15 { Ok(ms as i64) } else { Err(bad()) }
            }
        }
    }

    fn exemplar(&self, text: &str) -> Result<PageExemplar, BadLine> {
        let inside = text
            .strip_prefix('{')
            .ok_or_else(|| BadLine::new("an exemplar has no labels"))?;
        let mut pairs = vec![];
        let rest = labels(inside, &mut pairs)?;
        if pairs.iter().any(|(name, _)| name == METRIC_NAME) {
            return Err(BadLine::new("an exemplar has no name of a metric"));
        }
        let (value, stamp) = value_and_stamp(rest)?;
        Ok(PageExemplar {
            labels: pairs,
            value,
            at_ms: stamp.map(|s| self.stamp(s)).transpose()?,
        })
    }

    fn sample(&mut self, line: &str) -> Result<Option<PageSample>, BadLine> {
        if self.has_ended {
            return match line.trim().is_empty() {
                true => Ok(None),
                false => Err(BadLine::new("something follows # EOF")),
            };
        }
        match parse(line)? {
            Line::Nothing => Ok(None),
            Line::End => {
                self.has_ended = self.format == Format::OpenMetrics;
                Ok(None)
            }
            Line::Sample(SampleLine {
                pairs,
                value,
                stamp,
                exemplar,
            }) => {
                let at_ms = stamp.map(|s| self.stamp(s)).transpose()?;
                let exemplar = exemplar.filter(|_| self.format == Format::OpenMetrics);
                Ok(Some(PageSample {
                    pairs,
                    value,
                    at_ms,
                    exemplar: exemplar.map(|e| self.exemplar(e)),
                }))
            }
        }
    }
}

impl Iterator for Page<'_> {
    type Item = Result<PageSample, BadLine>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some(line) = self.lines.next() else {
                let is_cut = self.format == Format::OpenMetrics && !self.has_ended;
                // Told once.
                self.has_ended = true;
                return is_cut.then(|| Err(BadLine::new("the page does not end with # EOF: it broke off")));
            };
            self.number += 1;
            match self.sample(line) {
                Ok(None) => {}
                Ok(Some(sample)) => return Some(Ok(sample)),
                Err(bad) => {
                    let number = self.number;
                    self.lines = "".split('\n');
                    self.has_ended = true;
                    return Some(Err(BadLine::new(format!("line {number}: {bad}"))));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;
    use std::fmt::Write;

    fn check(page: &str, format: Format, expect: Expect) {
        let mut out = String::new();
        for sample in Page::new(page, format) {
            match sample {
                Ok(s) => writeln!(out, "{:?} {} {:?}", s.pairs, s.value, s.at_ms),
                Err(e) => writeln!(out, "bad: {e}"),
            }
            .unwrap();
        }
        expect.assert_eq(&out);
    }

    #[test]
    fn a_page_of_prometheus_is_read_with_milliseconds() {
        check(
            "# HELP up x\n# TYPE up gauge\nup 1\r\n  up{a=\"\" , b=\"x\",} NaN 1395066363000\n\n# EOF\nrest +Inf\n",
            Format::Prometheus,
            expect![[r#"
                [("__name__", "up")] 1 None
                [("__name__", "up"), ("a", ""), ("b", "x")] NaN Some(1395066363000)
                [("__name__", "rest")] inf None
            "#]],
        );
        check(
            "a 1\nb 1 1.5\nc 1\n",
            Format::Prometheus,
            expect![[r#"
                [("__name__", "a")] 1 None
                bad: line 2: "1.5" is not a timestamp
            "#]],
        );
    }

    #[test]
    fn a_page_of_openmetrics_is_read_with_seconds_and_must_end() {
        check(
            "http_total{code=\"200\"} 1027 1395066363.5 # {trace_id=\"x\"} 0.67\n{\"my.metric\",\"a b\"=\"v\"} -0\n# EOF\n",
            Format::OpenMetrics,
            expect![[r#"
                [("__name__", "http_total"), ("code", "200")] 1027 Some(1395066363500)
                [("__name__", "my.metric"), ("a b", "v")] -0 None
            "#]],
        );
        check(
            "a 1\n",
            Format::OpenMetrics,
            expect![[r#"
                [("__name__", "a")] 1 None
                bad: the page does not end with # EOF: it broke off
            "#]],
        );
        check(
            "# EOF\na 1\n",
            Format::OpenMetrics,
            expect![["bad: line 2: something follows # EOF\n"]],
        );
        check(
            "a 1 1e300\n# EOF",
            Format::OpenMetrics,
            expect![["bad: line 1: \"1e300\" is not a timestamp\n"]],
        );
    }

    #[test]
    fn exemplars_are_read_from_openmetrics_and_a_bad_one_spoils_nothing_else() {
        let check = |line: &str, format, expect: Expect| {
            let page = format!("{line}\n# EOF\n");
            let samples: Vec<_> = Page::new(&page, format).collect();
            let shown = match &samples[..] {
                [Ok(s)] => match &s.exemplar {
                    None => "none".to_owned(),
                    Some(Ok(e)) => format!("{:?} {} {:?}", e.labels, e.value, e.at_ms),
                    Some(Err(why)) => format!("bad: {why}"),
                },
                other => format!("{other:?}"),
            };
            expect.assert_eq(&shown);
        };
        let open = Format::OpenMetrics;
        check(
            r##"h_bucket{le="1"} 3 17.5 # {trace_id="a#1",span_id="b"} 0.67 17.25"##,
            open,
            expect![[r#"[("trace_id", "a#1"), ("span_id", "b")] 0.67 Some(17250)"#]],
        );
        check(r#"a_total 3 # {} 1"#, open, expect![["[] 1 None"]]);
        check(r##"a_total{x="#"} 3"##, open, expect![["none"]]);
        check(r#"a_total 3 # {a="b"} 1"#, Format::Prometheus, expect![["none"]]);
        check("a_total 3 # word", open, expect![["bad: an exemplar has no labels"]]);
        check(r#"a_total 3 # {a="b"}"#, open, expect![["bad: no value"]]);
        check(r#"a_total 3 # {a="b} 1"#, open, expect![["bad: a quote is not closed"]]);
        check(
            r#"a_total 3 # {"a"} 1"#,
            open,
            expect![["bad: an exemplar has no name of a metric"]],
        );
        check(
            r#"a_total 3 # {a="b"} 1 2 3"#,
            open,
            expect![["bad: more than a value and a timestamp"]],
        );
    }

    #[test]
    fn a_line_has_so_many_labels_and_no_more() {
        let line = |n: usize| {
            let labels: Vec<_> = (0..n).map(|i| format!("l{i}=\"\"")).collect();
            format!("m{{{}}} 1", labels.join(","))
        };
        assert!(parse(&line(LABELS_PER_LINE_MAX)).is_ok());
        let why = parse(&line(LABELS_PER_LINE_MAX + 1)).unwrap_err().why;
        assert_eq!(why, "more than 256 labels");
    }

    #[test]
    fn the_type_of_an_answer_names_its_format() {
        for (given, format) in [
            (
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                Format::OpenMetrics,
            ),
            ("text/plain; version=0.0.4", Format::Prometheus),
            ("", Format::Prometheus),
        ] {
            assert_eq!(Format::of_content_type(given), format, "{given}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            pairs in proptest::collection::btree_map("[a-z_][a-z0-9_]{0,6}", "[^\0\r\u{85}\u{2028}]{0,12}", 0..5), value in any::<f64>(),
            at in proptest::option::of(-4_000_000_000_000i64..4_000_000_000_000), openmetrics: bool,
        ) {
            let escape = |v: &str| v.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let inside: Vec<_> = pairs.iter().map(|(n, v)| format!("{n}=\"{}\"", escape(v))).collect();
            let stamp = at.map_or(String::new(), |at| match openmetrics {
                true => format!(" {:.3}", at as f64 / 1000.0),
                false => format!(" {at}"),
            });
            let page = format!("m{{{}}} {value}{stamp}\n# EOF\n", inside.join(","));
            let format = if openmetrics { Format::OpenMetrics } else { Format::Prometheus };
            let read: Vec<_> = Page::new(&page, format).collect::<Result<_, _>>().unwrap();
            let mut expected = vec![("__name__".to_owned(), "m".to_owned())];
            expected.extend(pairs);
            prop_assert_eq!(&read[0].pairs, &expected);
            prop_assert!(read[0].value.to_bits() == value.to_bits() || read[0].value.is_nan() && value.is_nan());
            prop_assert_eq!((read[0].at_ms, read.len()), (at, 1));
        }

        #[test]
        fn no_page_is_too_odd(page in "[a-z{}=\", \\\\#0-9.é\nEOF]{0,80}", openmetrics: bool) {
            let format = if openmetrics { Format::OpenMetrics } else { Format::Prometheus };
            Page::new(&page, format).count();
        }
    }
}

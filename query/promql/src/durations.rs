//! Arithmetic on lengths of time, where PromQL expects one: `[5m + 30s]`, `offset (2 * step())`.
//!
//! Computed while parsing, in seconds, rounded to milliseconds: the tree holds lengths only. `step()` and `range()` are those of the
//! query, which the caller of the parser knows. Source: Prometheus 3's duration expressions (behind a flag there), its documentation and
//! test data.
//!
//! After `offset` an expression stands in parentheses: `x offset 1m + 2` is a sum of vectors, as it always was.

use super::parser::{ParseError, Parser, ms_of_seconds};
use crate::DEPTH_MAX;
use crate::ast::Span;
use crate::lexer::Token;

/// What `step()` and `range()` stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueryRange {
    /// 0 for a query of one instant.
    pub step_ms: i64,
    /// From the first instant to the last.
    pub range_ms: i64,
}

/// Nanoseconds must fit, as in Prometheus: 292 years.
const LENGTH_MS_MAX: i64 = i64::MAX / 1_000_000;

type Seconds = Result<f64, ParseError>;

impl Parser<'_> {
    /// Within brackets: the whole of arithmetic, and more than nothing.
    pub(crate) fn positive_duration(&mut self, what: &str) -> Result<i64, ParseError> {
        let start = self.span();
        let seconds = self.sum(what, 0)?;
        let ms = self.whole(start, seconds)?;
        if ms <= 0 {
            return Err(self.fail_at(start, format!("{what} must be greater than 0")));
        }
        Ok(ms)
    }

    /// After `offset`: one operand with a sign.
    pub(crate) fn signed_duration(&mut self) -> Result<i64, ParseError> {
        let start = self.span();
        let negative = self.is("-");
        if negative || self.is("+") {
            self.next();
        }
        let seconds = self.operand("offset", 0)?;
        self.whole(start, if negative { -seconds } else { seconds })
    }

    fn whole(&self, start: Span, seconds: f64) -> Result<i64, ParseError> {
        let ms = ms_of_seconds(seconds).filter(|ms| ms.abs() <= LENGTH_MS_MAX);
        ms.ok_or_else(|| self.fail_at(start, "duration out of range".to_owned()))
    }

    fn sum(&mut self, what: &str, depth: u16) -> Seconds {
        let mut left = self.product(what, depth)?;
        loop {
            if self.take("+") {
                left += self.product(what, depth)?;
            } else if self.take("-") {
                left -= self.product(what, depth)?;
            } else {
                return Ok(left);
            }
        }
    }

    fn product(&mut self, what: &str, depth: u16) -> Seconds {
        let mut left = self.signed(what, depth)?;
        loop {
            let (at, sign) = (self.span(), ["*", "/", "%"].into_iter().find(|s| self.is(s)));
            let Some(sign) = sign else { return Ok(left) };
            self.next();
            let right = self.signed(what, depth)?;
            if sign != "*" && right == 0.0 {
                let name = if sign == "/" { "division" } else { "modulo" };
                return Err(self.fail_at(at, format!("{name} by zero")));
            }
            left = match sign {
                "*" => left * right,
                "/" => left / right,
                _ => left % right,
            };
        }
    }

    /// A sign binds less than a power: `-2 ^ 2` is -4.
    fn signed(&mut self, what: &str, depth: u16) -> Seconds {
        let depth = self.deeper(depth)?;
        if self.take("-") {
            return Ok(-self.signed(what, depth)?);
        }
        if self.take("+") {
            return self.signed(what, depth);
        }
        let base = self.operand(what, depth)?;
        match self.take("^") {
            true => Ok(base.powf(self.signed(what, depth)?)),
            false => Ok(base),
        }
    }

    fn deeper(&self, depth: u16) -> Result<u16, ParseError> {
        match depth < DEPTH_MAX {
            true => Ok(depth + 1),
            false => Err(self.too_deep(self.span())),
        }
    }

    /// A length, a number of seconds, a function, or something in parentheses.
    fn operand(&mut self, what: &str, depth: u16) -> Seconds {
        let depth = self.deeper(depth)?;
        let span = self.span();
        match self.next() {
            Token::Duration(ms) => Ok(ms as f64 / 1000.0),
            Token::Number(seconds) => Ok(seconds),
            Token::Sign("(") => {
                let inside = self.sum(what, depth)?;
                self.expect(")", what)?;
                Ok(inside)
            }
            Token::Word(word) if self.is("(") => self.function(span, &word, what, depth),
            other => Err(self.fail_at(
                span,
                format!("unexpected {} in {what}, expected number or duration", other.shown()),
            )),
        }
    }

    fn function(&mut self, span: Span, word: &str, what: &str, depth: u16) -> Seconds {
        self.next();
        let name = word.to_ascii_lowercase();
        let seconds = match name.as_str() {
            "step" | "range" => {
                let Some(query) = self.query else {
                    let message = format!("{name}() has a value in a query over a time range only");
                    return Err(self.fail_at(span, message));
                };
                let ms = if name == "step" { query.step_ms } else { query.range_ms };
                ms as f64 / 1000.0
            }
            "min_of" | "max_of" => {
                let left = self.sum(what, depth)?;
                self.expect(",", what)?;
                let right = self.sum(what, depth)?;
                match name.as_str() {
                    "min_of" => left.min(right),
                    _ => left.max(right),
                }
            }
            _ => {
                let message = format!("unexpected {word:?} in {what}, expected number or duration");
                return Err(self.fail_at(span, message));
            }
        };
        self.expect(")", what)?;
        Ok(seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::QueryRange;
    use crate::{parse, parse_within};
    use expect_test::expect;
    use proptest::prelude::*;

    const QUERY: QueryRange = QueryRange {
        step_ms: 5_000,
        range_ms: 60_000,
    };

    #[test]
    fn arithmetic_stands_where_a_length_does() {
        let mut shown = String::new();
        for text in [
            "rate(x[26m+4m])",
            "rate(x[2m*(10+5)])",
            "rate(x[24m+((1.5*2m)+2m)])",
            "rate(x[1h30m % 1h])",
            "rate(x[30m1s-30m1s % 1m])",
            "rate(x[-5m+35m])",
            "rate(x[2 ^ 3 ^ 2])",
            "max_over_time(x[29s+1s:((((8 - 2) / 3) * 7s) % 4) + 8000ms] offset -(20*2s))",
            "x offset 100 + 2",
            "x offset (100 + 2)",
            "x offset 2 ^ 2",
            "x offset (-2 ^ 2)",
            "x offset -STep()*2",
            "x offset (-step()*2)",
            "x offset -max_of(3s, min_of(step(), 1s)) + 8",
            "count_over_time(x[range()/2])",
            "count_over_time(x[min_of(step(), 1h, 2)])",
            "rate(x[5m-5m])",
            "rate(x[1/0])",
            "rate(x[1%0s])",
            "rate(x[1e300*1e300])",
            "rate(x[292y])",
            "rate(x[293y])",
            "x offset -99999999y",
            "rate(x[0/0.5 - 0.0001])",
            "rate(x[5m +])",
            "rate(x[(5m])",
            "rate(x[nosuch()])",
            "x offset step",
            "x offset",
        ] {
            let line = match parse_within(text, QUERY) {
                Ok(tree) => tree.to_string(),
                Err(e) => e.to_string(),
            };
            shown.push_str(&format!("{text}\n    {line}\n"));
        }
        shown.push_str(&parse("rate(x[step()])").unwrap_err().to_string());
        expect![[r#"
            rate(x[26m+4m])
                rate(x[30m])
            rate(x[2m*(10+5)])
                rate(x[30m])
            rate(x[24m+((1.5*2m)+2m)])
                rate(x[29m])
            rate(x[1h30m % 1h])
                rate(x[30m])
            rate(x[30m1s-30m1s % 1m])
                rate(x[30m])
            rate(x[-5m+35m])
                rate(x[30m])
            rate(x[2 ^ 3 ^ 2])
                rate(x[8m32s])
            max_over_time(x[29s+1s:((((8 - 2) / 3) * 7s) % 4) + 8000ms] offset -(20*2s))
                max_over_time(x[30s:10s] offset -40s)
            x offset 100 + 2
                x offset 1m40s + 2
            x offset (100 + 2)
                x offset 1m42s
            x offset 2 ^ 2
                x offset 2s ^ 2
            x offset (-2 ^ 2)
                x offset -4s
            x offset -STep()*2
                x offset -5s * 2
            x offset (-step()*2)
                x offset -10s
            x offset -max_of(3s, min_of(step(), 1s)) + 8
                x offset -3s + 8
            count_over_time(x[range()/2])
                count_over_time(x[30s])
            count_over_time(x[min_of(step(), 1h, 2)])
                1:36: parse error: unexpected "," in range, expected ")"
            rate(x[5m-5m])
                1:8: parse error: range must be greater than 0
            rate(x[1/0])
                1:9: parse error: division by zero
            rate(x[1%0s])
                1:9: parse error: modulo by zero
            rate(x[1e300*1e300])
                1:8: parse error: duration out of range
            rate(x[292y])
                rate(x[106580d])
            rate(x[293y])
                1:8: parse error: duration out of range
            x offset -99999999y
                1:10: parse error: duration out of range
            rate(x[0/0.5 - 0.0001])
                1:8: parse error: range must be greater than 0
            rate(x[5m +])
                1:12: parse error: unexpected "]" in range, expected number or duration
            rate(x[(5m])
                1:11: parse error: unexpected "]" in range, expected ")"
            rate(x[nosuch()])
                1:8: parse error: unexpected "nosuch" in range, expected number or duration
            x offset step
                1:10: parse error: unexpected "step" in offset, expected number or duration
            x offset
                1:9: parse error: unexpected end of input in offset, expected number or duration
            1:8: parse error: step() has a value in a query over a time range only"#]]
        .assert_eq(&shown);
    }

    #[test]
    fn depth_is_bounded() {
        for (open, close) in [("(", ")"), ("-", ""), ("min_of(1,", ")"), ("2^", "")] {
            let deep = |n| format!("rate(x[{}5m{}])", open.repeat(n), close.repeat(n));
            assert!(!parse(&deep(20)).is_err_and(|e| e.message.contains("deeper")), "{open}");
            let why = parse(&deep(20_000)).unwrap_err();
            assert!(why.message.contains("nested deeper"), "{open}: {why}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(words in prop::collection::vec(prop::sample::select(vec![
            "5m", "0", "1e9", "+", "-", "*", "/", "%", "^", "(", ")", ",", "step()", "range()", "min_of(", "max_of(", ":", "]", "[", "offset",
        ]), 0..25)) {
            let _ = parse_within(&format!("rate(x[{}", words.join(" ")), QUERY);
            let _ = parse_within(&format!("x offset {}", words.join(" ")), QUERY);
        }

        #[test]
        fn sums_of_lengths_are_lengths(a in 1i64..10_000_000, b in 1i64..10_000_000) {
            let range = |text: String| parse(&text).unwrap().to_string();
            prop_assert_eq!(
                range(format!("rate(x[{a}ms+{b}ms])")),
                range(format!("rate(x[{}ms])", a + b))
            );
        }
    }
}

//! Tokens to a tree: a Pratt parser over the lexer that PromQL has too.

use crate::{Expr, FilterOp, LineFilter, LogSelector, Metric, RangeFunction};
use hindcast_model::{MatchOp, Matcher};
use hindcast_promql::lexer::{self, Token};
use hindcast_promql::{AggregateOp, BinaryOp, Cardinality, Grouping, Matching, ParseError, Span};

/// Nodes of a metric expression; bounds recursion over it.
pub const NODES_MAX: usize = 128;

/// Parses a log query or a metric query.
pub fn parse(text: &str) -> Result<Expr, ParseError> {
    let mut p = Parser::new(text)?;
    let expr = if p.is("{") {
        Expr::Lines(p.log_selector()?)
    } else {
        Expr::Metric(p.expr(0)?)
    };
    p.end()?;
    Ok(expr)
}

/// Parses a bare stream selector, as the `match[]` parameter has it.
pub fn parse_selector(text: &str) -> Result<Vec<Matcher>, ParseError> {
    let mut p = Parser::new(text)?;
    let matchers = p.matchers()?;
    p.end()?;
    Ok(matchers)
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<(Token, Span)>,
    at: usize,
    nodes: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self, ParseError> {
        Ok(Self {
            text,
            tokens: lexer::tokens(text)?,
            at: 0,
            nodes: 0,
        })
    }

    fn peek(&self) -> &Token {
        &self.tokens[self.at].0
    }

    fn next(&mut self) -> Token {
        let token = self.tokens[self.at].0.clone();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    fn is(&self, sign: &str) -> bool {
        matches!(self.peek(), Token::Sign(s) if *s == sign)
    }

    fn take(&mut self, sign: &str) -> bool {
        let is = self.is(sign);
        if is {
            self.next();
        }
        is
    }

    fn take_word(&mut self, word: &str) -> bool {
        let is = matches!(self.peek(), Token::Word(w) if w == word);
        if is {
            self.next();
        }
        is
    }

    fn fail<T>(&self, message: String) -> Result<T, ParseError> {
        Err(ParseError::new(self.text, self.tokens[self.at].1, message))
    }

    fn expect(&mut self, sign: &str) -> Result<(), ParseError> {
        if self.take(sign) {
            return Ok(());
        }
        self.fail(format!("unexpected {}, expected {sign:?}", self.peek().shown()))
    }

    /// The comma of a list that was not closed. Where the text ends instead, it was most likely not closed.
    fn comma(&mut self, close: &str) -> Result<(), ParseError> {
        let is_over = matches!(self.peek(), Token::End);
        self.expect(if is_over { close } else { "," })
    }

    fn end(&mut self) -> Result<(), ParseError> {
        match self.peek() {
            Token::End => Ok(()),
            Token::Sign("[") => self.fail("a range needs a function around it, like rate(…)".to_owned()),
            other => self.fail(format!("unexpected {}", other.shown())),
        }
    }

    fn count_node(&mut self) -> Result<(), ParseError> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return self.fail(format!("the expression has more than {NODES_MAX} parts"));
        }
        Ok(())
    }

    fn matchers(&mut self) -> Result<Vec<Matcher>, ParseError> {
        self.expect("{")?;
        let mut matchers = vec![];
        loop {
            if matchers.is_empty() && self.take("}") {
                break;
            }
            matchers.push(self.matcher()?);
            if self.take("}") {
                break;
            }
            self.comma("}")?;
        }
        if matchers.iter().all(Matcher::matches_empty) {
            return self.fail("a selector needs at least one matcher that an absent label does not fulfil".to_owned());
        }
        Ok(matchers)
    }

    fn matcher(&mut self) -> Result<Matcher, ParseError> {
        let Token::Word(name) = self.peek().clone() else {
            return self.fail(format!("unexpected {}, expected a label name", self.peek().shown()));
        };
        self.next();
        let op = match self.peek() {
            Token::Sign("=") => MatchOp::Equal,
            Token::Sign("!=") => MatchOp::NotEqual,
            Token::Sign("=~") => MatchOp::Regex,
            Token::Sign("!~") => MatchOp::NotRegex,
            other => return self.fail(format!("unexpected {}, expected one of = != =~ !~", other.shown())),
        };
        self.next();
        let value = self.string()?;
        Matcher::new(&name, op, &value).or_else(|e| self.fail(e.to_string()))
    }

    fn string(&mut self) -> Result<String, ParseError> {
        match self.peek().clone() {
            Token::String(s) => {
                self.next();
                Ok(s)
            }
            Token::Word(w) if w == "ip" => self.fail("the filter ip(…) is not supported".to_owned()),
            other => self.fail(format!("unexpected {}, expected a string", other.shown())),
        }
    }

    fn log_selector(&mut self) -> Result<LogSelector, ParseError> {
        let matchers = self.matchers()?;
        let mut filters = vec![];
        self.filters(&mut filters)?;
        Ok(LogSelector { matchers, filters })
    }

    fn filters(&mut self, filters: &mut Vec<LineFilter>) -> Result<(), ParseError> {
        loop {
            let op = match self.peek() {
                Token::Sign("|=") => FilterOp::Contains,
                Token::Sign("!=") => FilterOp::Lacks,
                Token::Sign("|~") => FilterOp::Matches,
                Token::Sign("!~") => FilterOp::Fails,
                Token::Sign("|") => {
                    self.next();
                    return self.fail(format!("the pipeline stage {} is not supported", self.peek().shown()));
                }
                _ => return Ok(()),
            };
            self.next();
            let mut texts = vec![self.string()?];
            while self.take_word("or") {
                texts.push(self.string()?);
            }
            match LineFilter::new(op, texts) {
                Ok(filter) => filters.push(filter),
                Err(e) => return self.fail(e.to_string()),
            }
        }
    }

    fn duration(&mut self) -> Result<i64, ParseError> {
        match *self.peek() {
            Token::Duration(ms) => {
                self.next();
                Ok(ms)
            }
            ref other => self.fail(format!("unexpected {}, expected a duration like 5m", other.shown())),
        }
    }

    /// An expression whose operators bind at least as tightly as `least`.
    fn expr(&mut self, least: u8) -> Result<Metric, ParseError> {
        self.count_node()?;
        let mut lhs = self.primary()?;
        while let Some(op) = self.binary_op().filter(|op| op.precedence() >= least) {
            self.count_node()?;
            self.next();
            let as_bool = op.is_comparison() && self.take_word("bool");
            let matching = self.matching(op)?;
            let rhs_least = if op == BinaryOp::Pow {
                op.precedence()
            } else {
                op.precedence() + 1
            };
            let rhs = self.expr(rhs_least)?;
            if op.is_set() && (lhs.is_scalar() || rhs.is_scalar()) {
                return self.fail(format!("{:?} works on vectors only", op.as_str()));
            }
            lhs = Metric::Binary {
                op,
                lhs: Box::new(lhs),
                rhs: Box::new(rhs),
                as_bool,
                matching,
            };
        }
        Ok(lhs)
    }

    fn binary_op(&self) -> Option<BinaryOp> {
        Some(match self.peek() {
            Token::Sign("==") => BinaryOp::Eq,
            Token::Sign("!=") => BinaryOp::Ne,
            Token::Sign("<") => BinaryOp::Lt,
            Token::Sign("<=") => BinaryOp::Le,
            Token::Sign(">") => BinaryOp::Gt,
            Token::Sign(">=") => BinaryOp::Ge,
            Token::Sign("+") => BinaryOp::Add,
            Token::Sign("-") => BinaryOp::Sub,
            Token::Sign("*") => BinaryOp::Mul,
            Token::Sign("/") => BinaryOp::Div,
            Token::Sign("%") => BinaryOp::Mod,
            Token::Sign("^") => BinaryOp::Pow,
            Token::Word(w) => match w.as_str() {
                "or" => BinaryOp::Or,
                "and" => BinaryOp::And,
                "unless" => BinaryOp::Unless,
                _ => return None,
            },
            _ => return None,
        })
    }

    fn matching(&mut self, op: BinaryOp) -> Result<Option<Matching>, ParseError> {
        let on = self.take_word("on");
        if !on && !self.take_word("ignoring") {
            return Ok(None);
        }
        let mut matching = Matching {
            on,
            labels: self.labels()?,
            ..Matching::plain(op)
        };
        for (word, cardinality) in [
            ("group_left", Cardinality::ManyToOne),
            ("group_right", Cardinality::OneToMany),
        ] {
            if !self.take_word(word) {
                continue;
            }
            if op.is_set() {
                return self.fail(format!("{:?} takes no {word}", op.as_str()));
            }
            matching.cardinality = cardinality;
            if self.is("(") {
                matching.include = self.labels()?;
            }
        }
        Ok(Some(matching))
    }

    fn labels(&mut self) -> Result<Vec<String>, ParseError> {
        self.expect("(")?;
        let mut labels = vec![];
        while !self.take(")") {
            match self.next() {
                Token::Word(w) => labels.push(w),
                other => return self.fail(format!("unexpected {}, expected a label name", other.shown())),
            }
            if !self.is(")") {
                self.comma(")")?;
            }
        }
        Ok(labels)
    }

    fn number(&mut self) -> Result<f64, ParseError> {
        let negative = self.take("-");
        if !negative {
            self.take("+");
        }
        match *self.peek() {
            Token::Number(v) => {
                self.next();
                Ok(if negative { -v } else { v })
            }
            ref other => self.fail(format!("unexpected {}, expected a number", other.shown())),
        }
    }

    fn primary(&mut self) -> Result<Metric, ParseError> {
        match self.peek().clone() {
            Token::Number(_) | Token::Sign("-" | "+") => Ok(Metric::Number(self.number()?)),
            Token::Sign("(") => {
                self.next();
                let inner = self.expr(0)?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Sign("{") => {
                self.fail("log lines are no numbers: count them, with count_over_time(…[5m])".to_owned())
            }
            Token::Word(word) => self.function(&word),
            Token::End => self.fail("no expression found in input".to_owned()),
            other => self.fail(format!("unexpected {}", other.shown())),
        }
    }

    fn function(&mut self, word: &str) -> Result<Metric, ParseError> {
        if let Some(function) = range_function(word) {
            self.next();
            return self.range(function);
        }
        if let Some(op) = AggregateOp::parse(word).filter(|op| supported(*op)) {
            self.next();
            return self.aggregate(op);
        }
        match word {
            "vector" => {
                self.next();
                self.expect("(")?;
                let v = self.number()?;
                self.expect(")")?;
                Ok(Metric::Vector(v))
            }
            "sort" | "sort_desc" => {
                self.next();
                self.expect("(")?;
                let inner = self.vector_expr()?;
                self.expect(")")?;
                Ok(Metric::Sorted {
                    descending: word == "sort_desc",
                    inner,
                })
            }
            _ => self.fail(format!("{word:?} is no function of this LogQL")),
        }
    }

    fn vector_expr(&mut self) -> Result<Box<Metric>, ParseError> {
        let inner = self.expr(0)?;
        if inner.is_scalar() {
            return self.fail("expected a vector, got a number".to_owned());
        }
        Ok(Box::new(inner))
    }

    /// `({…} |= "x" [5m] offset 1h)`; filters may also come after the range.
    fn range(&mut self, function: RangeFunction) -> Result<Metric, ParseError> {
        self.expect("(")?;
        let mut lines = self.log_selector()?;
        self.expect("[")?;
        let range_ms = self.duration()?;
        self.expect("]")?;
        if range_ms <= 0 {
            return self.fail("a range must be longer than 0".to_owned());
        }
        self.filters(&mut lines.filters)?;
        let mut offset_ms = 0;
        if self.take_word("offset") {
            let negative = self.take("-");
            let ms = self.duration()?;
            offset_ms = if negative { -ms } else { ms };
        }
        self.expect(")")?;
        Ok(Metric::Range {
            function,
            lines,
            range_ms,
            offset_ms,
        })
    }

    fn aggregate(&mut self, op: AggregateOp) -> Result<Metric, ParseError> {
        let mut grouping = self.grouping()?;
        self.expect("(")?;
        let param = if op.has_param() {
            let param = self.number()?;
            self.expect(",")?;
            Some(param)
        } else {
            None
        };
        let inner = self.vector_expr()?;
        self.expect(")")?;
        if grouping.is_none() {
            grouping = self.grouping()?;
        }
        Ok(Metric::Aggregate {
            op,
            grouping,
            param,
            inner,
        })
    }

    fn grouping(&mut self) -> Result<Option<Grouping>, ParseError> {
        let without = self.take_word("without");
        if !without && !self.take_word("by") {
            return Ok(None);
        }
        let labels = self.labels()?;
        Ok(Some(Grouping { without, labels }))
    }
}

fn range_function(word: &str) -> Option<RangeFunction> {
    Some(match word {
        "rate" => RangeFunction::Rate,
        "count_over_time" => RangeFunction::CountOverTime,
        "bytes_rate" => RangeFunction::BytesRate,
        "bytes_over_time" => RangeFunction::BytesOverTime,
        "absent_over_time" => RangeFunction::AbsentOverTime,
        _ => return None,
    })
}

/// The aggregations that LogQL has.
const fn supported(op: AggregateOp) -> bool {
    matches!(
        op,
        AggregateOp::Sum
            | AggregateOp::Avg
            | AggregateOp::Count
            | AggregateOp::Min
            | AggregateOp::Max
            | AggregateOp::Stddev
            | AggregateOp::Stdvar
            | AggregateOp::Topk
            | AggregateOp::Bottomk
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (text, message) in [
            ("", "1:1: parse error: no expression found in input"),
            (
                "{}",
                "1:3: parse error: a selector needs at least one matcher that an absent label does not fulfil",
            ),
            (
                "{app=\"a\"",
                "1:9: parse error: unexpected end of input, expected \"}\"",
            ),
            (
                "{app=\"a\",}",
                "1:10: parse error: unexpected \"}\", expected a label name",
            ),
            (
                "{app=\"a\"} |= ",
                "1:14: parse error: unexpected end of input, expected a string",
            ),
            (
                "{app=\"a\"}[5m]",
                "1:10: parse error: a range needs a function around it, like rate(…)",
            ),
            (
                "{app=\"a\"} | json",
                "1:13: parse error: the pipeline stage \"json\" is not supported",
            ),
            (
                "rate({app=\"a\"}[5x])",
                "1:16: parse error: bad number or duration syntax: \"5x\"",
            ),
            (
                "topk(sum(rate({app=\"a\"}[5m])))",
                "1:6: parse error: unexpected \"sum\", expected a number",
            ),
            (
                "count_over_time({app=\"a\"}[5m]) by (app)",
                "1:32: parse error: unexpected \"by\"",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), message, "{text}");
        }
        assert!(
            parse(&format!("{}1", "1+".repeat(10_000))).is_err(),
            "a long chain is refused, not recursed into"
        );
        assert!(
            parse("{app=\"a\"} |~ \"[\"")
                .unwrap_err()
                .message
                .contains("unclosed character class")
        );
    }

    #[test]
    fn filters_may_stand_before_or_after_the_range() {
        let a = parse("rate({app=\"a\"} |= \"x\" or \"y\" != `z` [5m] offset 1h)").unwrap();
        let b = parse("rate({app=\"a\"} [5m] |= \"x\" or \"y\" != `z` offset 1h)").unwrap();
        assert_eq!(a, b);
        let Expr::Metric(Metric::Range { lines, offset_ms, .. }) = a else {
            panic!("a range aggregation");
        };
        assert_eq!((lines.filters.len(), offset_ms), (2, 3_600_000));
        let shown: Vec<String> = lines.filters.iter().map(|f| f.to_string()).collect();
        assert_eq!(shown, ["|= \"x\" or \"y\"", "!= \"z\""]);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[ -~\u{80}-\u{ff}]{0,60}", words in prop::collection::vec(prop::sample::select(vec![
            "{", "}", "a=\"b\"", "|=", "!~", "\"x\"", "rate", "(", ")", "[5m]", "sum", "by", "(a)", "topk", ",", "1", "^", "or", "offset",
        ]), 0..30)) {
            let _ = parse(&text);
            let _ = parse(&words.join(" "));
        }
    }
}

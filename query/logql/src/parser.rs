//! Tokens to a tree: a Pratt parser over the lexer that PromQL has too.

use crate::filter::Sought;
use crate::ip::IpRange;
use crate::label_filter::{Amount, Compare, LabelFilter};
use crate::pipeline::{Pipeline, STAGES_MAX};
use crate::quantity;
use crate::stage::{Extraction, LabelFormat, Pick, Stage};
use crate::{Conversion, Expr, FilterOp, LineFilter, LogSelector, Metric, RangeFunction, Unwrap};
use hindcast_model::{MatchOp, Matcher, TimestampNs};
use hindcast_promql::lexer::{self, Dialect, Token};
use hindcast_promql::{AggregateOp, BinaryOp, Cardinality, Grouping, Matching, ParseError, Span};

/// Nodes of an expression, label filters among them; bounds recursion over it.
pub const NODES_MAX: usize = 256;
/// Parentheses and functions in each other, as in PromQL. The parser calls itself for each, on the stack of whoever serves the request.
const DEPTH_MAX: usize = 128;

/// What stands behind a bar and is no label.
const STAGES: [&str; 10] = [
    "json",
    "logfmt",
    "pattern",
    "regexp",
    "unpack",
    "line_format",
    "label_format",
    "drop",
    "keep",
    "decolorize",
];

/// Parses a log query or a metric query.
pub fn parse(text: &str) -> Result<Expr, ParseError> {
    let mut p = Parser::new(text)?;
    let opened = p.tokens.iter().find(|(t, _)| !matches!(t, Token::Sign("(")));
    let expr = if matches!(opened, Some((Token::Sign("{"), _))) {
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
    depth: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self, ParseError> {
        Ok(Self {
            text,
            tokens: lexer::tokens(
                text,
                Dialect::LogQl {
                    is_quantity: quantity::is_quantity,
                },
            )?,
            at: 0,
            nodes: 0,
            depth: 0,
        })
    }

    fn peek(&self) -> &Token {
        &self.tokens[self.at].0
    }

    /// The token so many places on.
    fn ahead(&self, n: usize) -> &Token {
        &self.tokens[(self.at + n).min(self.tokens.len() - 1)].0
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
        self.fail_at(self.at, message)
    }

    /// Something is wrong that began at an earlier token.
    fn fail_at<T>(&self, at: usize, message: String) -> Result<T, ParseError> {
        Err(ParseError::new(self.text, self.tokens[at].1, message))
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

    /// Recursion goes no deeper than that.
    fn deeper(&mut self) -> Result<(), ParseError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return self.fail(format!("the expression is nested more than {DEPTH_MAX} deep"));
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
            other => self.fail(format!("unexpected {}, expected a string", other.shown())),
        }
    }

    /// `{…} | stage | stage`, maybe in parentheses.
    fn log_selector(&mut self) -> Result<LogSelector, ParseError> {
        if self.is("(") {
            let depth = self.depth;
            self.deeper()?;
            self.next();
            let mut inner = self.log_selector()?;
            self.expect(")")?;
            self.depth = depth;
            self.stages(&mut inner.stages, None)?;
            return Ok(inner);
        }
        let matchers = self.matchers()?;
        let mut stages = vec![];
        self.stages(&mut stages, None)?;
        Ok(LogSelector { matchers, stages })
    }

    /// Line filters and stages, as many as there are. With a place for it, also one `unwrap` with its label filters.
    fn stages(&mut self, stages: &mut Vec<Stage>, mut unwrap: Option<&mut Option<Unwrap>>) -> Result<(), ParseError> {
        loop {
            let at = self.at;
            let stage = if let Some(op) = self.filter_op() {
                self.next();
                self.line_filter(op)?
            } else if self.take("|") {
                if self.is_stage("unwrap") {
                    self.next();
                    let found = self.unwrap_stage()?;
                    match unwrap.as_deref_mut() {
                        Some(place @ None) => *place = Some(found),
                        Some(Some(_)) => return self.fail_at(at, "only one unwrap is possible".to_owned()),
                        None => {
                            let message =
                                "unwrap stands in a range aggregation only, like sum_over_time(… | unwrap a [5m])";
                            return self.fail_at(at, message.to_owned());
                        }
                    }
                    continue;
                }
                self.stage()?
            } else {
                return Ok(());
            };
            if let Some(Some(unwrapped)) = unwrap.as_deref_mut() {
                let Stage::Labels(filter) = stage else {
                    return self.fail_at(at, "behind unwrap stand label filters only".to_owned());
                };
                unwrapped.filters.push(filter);
            } else {
                stages.push(stage);
            }
            if stages.len() > STAGES_MAX {
                return self.fail_at(at, format!("a pipeline has more than {STAGES_MAX} stages"));
            }
        }
    }

    fn filter_op(&self) -> Option<FilterOp> {
        Some(match self.peek() {
            Token::Sign("|=") => FilterOp::Contains,
            Token::Sign("!=") => FilterOp::Lacks,
            Token::Sign("|~") => FilterOp::Matches,
            Token::Sign("!~") => FilterOp::Fails,
            Token::Sign("|>") => FilterOp::Like,
            Token::Sign("!>") => FilterOp::Unlike,
            _ => return None,
        })
    }

    fn line_filter(&mut self, op: FilterOp) -> Result<Stage, ParseError> {
        let at = self.at;
        let mut any_of = vec![self.sought()?];
        while self.take_word("or") {
            any_of.push(self.sought()?);
        }
        match LineFilter::new(op, any_of) {
            Ok(filter) => Ok(Stage::Line(filter)),
            Err(e) => self.fail_at(at, e),
        }
    }

    fn sought(&mut self) -> Result<Sought, ParseError> {
        if self.take_word("ip") {
            self.expect("(")?;
            let range = self.string()?;
            self.expect(")")?;
            return Ok(Sought::Ip(range));
        }
        self.string().map(Sought::Text)
    }

    /// Whether the next word names a stage, and no label that is compared with something.
    fn is_stage(&self, word: &str) -> bool {
        matches!(self.peek(), Token::Word(w) if w == word)
            && !matches!(
                self.ahead(1),
                Token::Sign("=" | "==" | "!=" | "=~" | "!~" | ">" | ">=" | "<" | "<=")
            )
    }

    /// A stage behind its bar.
    fn stage(&mut self) -> Result<Stage, ParseError> {
        let at = self.at;
        let word = STAGES.into_iter().find(|word| self.is_stage(word));
        let stage = match word {
            Some(word) => {
                self.next();
                self.named_stage(word)?
            }
            None => Stage::Labels(self.label_filter()?),
        };
        // It is made ready once here, so that what is wrong with it has a place.
        match Pipeline::new(std::slice::from_ref(&stage), None, TimestampNs::EPOCH) {
            Ok(_) => Ok(stage),
            Err(e) => self.fail_at(at, e),
        }
    }

    fn named_stage(&mut self, word: &str) -> Result<Stage, ParseError> {
        Ok(match word {
            "json" => Stage::Json(self.extractions()?),
            "logfmt" => {
                let (mut strict, mut keep_empty) = (false, false);
                while self.is("-") {
                    self.next();
                    self.expect("-")?;
                    if self.take_word("strict") {
                        strict = true;
                    } else if self.take_word("keep") && self.take("-") && self.take_word("empty") {
                        keep_empty = true;
                    } else {
                        let message = format!("unexpected {}, expected --strict or --keep-empty", self.peek().shown());
                        return self.fail(message);
                    }
                }
                Stage::Logfmt {
                    strict,
                    keep_empty,
                    extractions: self.extractions()?,
                }
            }
            "pattern" => Stage::Pattern(self.string()?),
            "regexp" => Stage::Regexp(self.string()?),
            "unpack" => Stage::Unpack,
            "line_format" => Stage::LineFormat(self.string()?),
            "label_format" => Stage::LabelFormat(self.label_formats()?),
            "drop" => Stage::Drop(self.picks()?),
            "keep" => Stage::Keep(self.picks()?),
            _ => Stage::Decolorize,
        })
    }

    fn label_name(&mut self) -> Result<String, ParseError> {
        match self.peek().clone() {
            Token::Word(name) => {
                self.next();
                Ok(name)
            }
            other => self.fail(format!("unexpected {}, expected a label name", other.shown())),
        }
    }

    /// `a, b="path"`, if any; `offset 5m` is none.
    fn extractions(&mut self) -> Result<Vec<Extraction>, ParseError> {
        let mut extractions = vec![];
        let is_offset = matches!(self.peek(), Token::Word(w) if w == "offset")
            && matches!(self.ahead(1), Token::Quantity(_) | Token::Sign("-"));
        if is_offset || !matches!(self.peek(), Token::Word(_)) {
            return Ok(extractions);
        }
        loop {
            let label = self.label_name()?;
            let path = if self.take("=") { self.string()? } else { label.clone() };
            extractions.push(Extraction { label, path });
            if !self.take(",") {
                return Ok(extractions);
            }
        }
    }

    fn label_formats(&mut self) -> Result<Vec<LabelFormat>, ParseError> {
        let mut formats = vec![];
        loop {
            let label = self.label_name()?;
            self.expect("=")?;
            formats.push(match self.peek().clone() {
                Token::String(template) => {
                    self.next();
                    LabelFormat::Template { label, template }
                }
                Token::Word(from) => {
                    self.next();
                    LabelFormat::Rename { to: label, from }
                }
                other => return self.fail(format!("unexpected {}, expected a label or a template", other.shown())),
            });
            if !self.take(",") {
                return Ok(formats);
            }
        }
    }

    fn picks(&mut self) -> Result<Vec<Pick>, ParseError> {
        let mut picks = vec![];
        loop {
            let is_matcher = matches!(self.ahead(1), Token::Sign("=" | "!=" | "=~" | "!~"))
                && matches!(self.ahead(2), Token::String(_));
            picks.push(if is_matcher {
                Pick::Matching(self.matcher()?)
            } else {
                Pick::Name(self.label_name()?)
            });
            if !self.take(",") {
                return Ok(picks);
            }
        }
    }

    /// Alternatives of label filters. `and`, a comma, and nothing at all between two of them say the same and bind before `or`, as in
    /// Loki's grammar (its documentation says: from left to right).
    fn label_filter(&mut self) -> Result<LabelFilter, ParseError> {
        let depth = self.depth;
        self.deeper()?;
        let mut left = self.label_and()?;
        while self.take_word("or") {
            self.count_node()?;
            left = LabelFilter::Or(Box::new(left), Box::new(self.label_and()?));
        }
        self.depth = depth;
        Ok(left)
    }

    fn is_comparison(&self, token: &Token) -> bool {
        matches!(
            token,
            Token::Sign("=" | "==" | "!=" | "=~" | "!~" | ">" | ">=" | "<" | "<=")
        )
    }

    fn label_and(&mut self) -> Result<LabelFilter, ParseError> {
        let mut left = self.label_unit()?;
        while self.take_word("and") || self.take(",") || self.is_label_filter() {
            self.count_node()?;
            left = LabelFilter::And(Box::new(left), Box::new(self.label_unit()?));
        }
        Ok(left)
    }

    fn is_label_filter(&self) -> bool {
        self.is("(") || (matches!(self.peek(), Token::Word(_)) && self.is_comparison(self.ahead(1)))
    }

    fn label_unit(&mut self) -> Result<LabelFilter, ParseError> {
        if self.take("(") {
            let inner = self.label_filter()?;
            self.expect(")")?;
            return Ok(inner);
        }
        self.count_node()?;
        if !matches!(self.peek(), Token::Word(_)) {
            return self.fail(format!(
                "unexpected {}, expected a stage or a label",
                self.peek().shown()
            ));
        }
        match self.ahead(2) {
            Token::String(_) if self.is_comparison(self.ahead(1)) => return self.matcher().map(LabelFilter::Text),
            _ => {}
        }
        let at = self.at;
        let label = self.label_name()?;
        let sign = self.peek().clone();
        let compare = match sign {
            Token::Sign("=" | "==") => Compare::Eq,
            Token::Sign("!=") => Compare::Ne,
            Token::Sign("<") => Compare::Lt,
            Token::Sign("<=") => Compare::Le,
            Token::Sign(">") => Compare::Gt,
            Token::Sign(">=") => Compare::Ge,
            _ if STAGES.contains(&label.as_str()) || self.at_stage_end() => {
                return self.fail_at(
                    at,
                    format!("{label:?} is no stage, and a label is compared with something"),
                );
            }
            other => return self.fail(format!("unexpected {}, expected a comparison", other.shown())),
        };
        self.next();
        if matches!(self.peek(), Token::Word(w) if w == "ip") && matches!(sign, Token::Sign("=" | "!=")) {
            self.next();
            self.expect("(")?;
            let place = self.at;
            let text = self.string()?;
            self.expect(")")?;
            return match IpRange::parse(&text) {
                Ok(range) => Ok(LabelFilter::Ip {
                    label,
                    is_negative: compare == Compare::Ne,
                    text,
                    range,
                }),
                Err(e) => self.fail_at(place, e),
            };
        }
        let amount = match self.peek().clone() {
            Token::Quantity(text) => {
                self.next();
                match (quantity::duration_ns(&text), quantity::bytes(&text)) {
                    (Some(ns), _) => Amount::Span(ns),
                    (None, Some(bytes)) => Amount::Bytes(bytes),
                    (None, None) => unreachable!("the lexer lets no other quantity through"),
                }
            }
            Token::Number(_) | Token::Sign("-" | "+") => Amount::Number(self.number()?),
            other => {
                return self.fail(format!(
                    "unexpected {}, expected a string, number, duration or size",
                    other.shown()
                ));
            }
        };
        Ok(LabelFilter::Amount { label, compare, amount })
    }

    fn at_stage_end(&self) -> bool {
        matches!(
            self.peek(),
            Token::End | Token::String(_) | Token::Word(_) | Token::Sign("|" | "|=" | "|~" | ")" | "[" | ",")
        )
    }

    /// `unwrap a`, `unwrap duration(a)`; label filters may follow.
    fn unwrap_stage(&mut self) -> Result<Unwrap, ParseError> {
        let at = self.at;
        let mut label = self.label_name()?;
        let mut conversion = Conversion::Number;
        if self.take("(") {
            conversion = match label.as_str() {
                "duration" | "duration_seconds" => Conversion::Seconds,
                "bytes" => Conversion::Bytes,
                other => return self.fail_at(at, format!("{other:?} is no conversion: use duration(…) or bytes(…)")),
            };
            label = self.label_name()?;
            self.expect(")")?;
        }
        Ok(Unwrap {
            label,
            conversion,
            filters: vec![],
        })
    }

    fn duration(&mut self) -> Result<i64, ParseError> {
        match self.peek().clone() {
            Token::Quantity(text) => {
                let ms = quantity::duration_ns(&text)
                    .filter(|ns| ns % 1_000_000 == 0)
                    .map(|ns| ns / 1_000_000);
                let Some(ms) = ms else {
                    return self.fail(format!("{text:?} is no duration of whole milliseconds, like 5m"));
                };
                self.next();
                Ok(ms)
            }
            other => self.fail(format!("unexpected {}, expected a duration like 5m", other.shown())),
        }
    }

    /// An expression whose operators bind at least as tightly as `least`.
    fn expr(&mut self, least: u8) -> Result<Metric, ParseError> {
        let depth = self.depth;
        self.deeper()?;
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
        self.depth = depth;
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
            Token::Number(v) if v.is_finite() => {
                self.next();
                Ok(if negative { -v } else { v })
            }
            ref other => self.fail(format!("unexpected {}, expected a number", other.shown())),
        }
    }

    fn primary(&mut self) -> Result<Metric, ParseError> {
        if let Token::Sign("(") = self.peek() {
            self.next();
            let inner = self.expr(0)?;
            self.expect(")")?;
            return Ok(inner);
        }
        self.count_node()?;
        match self.peek().clone() {
            Token::Number(_) | Token::Sign("-" | "+") => Ok(Metric::Number(self.number()?)),
            Token::Sign("{") => {
                self.fail("log lines are no numbers: count them, with count_over_time(…[5m])".to_owned())
            }
            Token::Word(word) => self.function(&word),
            Token::End => self.fail("no expression found in input".to_owned()),
            other => self.fail(format!("unexpected {}", other.shown())),
        }
    }

    fn function(&mut self, word: &str) -> Result<Metric, ParseError> {
        if let Some(function) = RangeFunction::parse(word) {
            self.next();
            return self.range(function);
        }
        // Exact is approximate enough.
        let name = if word == "approx_topk" { "topk" } else { word };
        if let Some(op) = AggregateOp::parse(name).filter(|op| supported(*op)) {
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
            "label_replace" => {
                self.next();
                self.label_replace()
            }
            _ => self.fail(format!("{word:?} is no function of this LogQL")),
        }
    }

    fn label_replace(&mut self) -> Result<Metric, ParseError> {
        self.expect("(")?;
        let inner = self.vector_expr()?;
        let mut texts = vec![];
        for _ in 0..4 {
            self.expect(",")?;
            texts.push(self.string()?);
        }
        if let Err(e) = hindcast_model::matcher::anchored_regex(&texts[3]) {
            return self.fail_at(self.at - 1, e.to_string());
        }
        self.expect(")")?;
        let mut texts = texts.into_iter();
        let mut text = || texts.next().unwrap_or_default();
        Ok(Metric::LabelReplace {
            inner,
            target: text(),
            replacement: text(),
            source: text(),
            regex: text(),
        })
    }

    fn vector_expr(&mut self) -> Result<Box<Metric>, ParseError> {
        let inner = self.expr(0)?;
        if inner.is_scalar() {
            return self.fail("expected a vector, got a number".to_owned());
        }
        Ok(Box::new(inner))
    }

    /// `({…} | stage | unwrap a [5m] offset 1h)`; stages may also come after the range.
    fn range(&mut self, function: RangeFunction) -> Result<Metric, ParseError> {
        let at = self.at - 1;
        self.expect("(")?;
        let param = if function == RangeFunction::Quantile {
            let param = self.number()?;
            self.expect(",")?;
            Some(param)
        } else {
            None
        };
        let mut unwrap = None;
        let (mut lines, mut window) = self.range_lines(&mut unwrap)?;
        if window.is_none() {
            window = Some(self.window()?);
            self.stages(&mut lines.stages, Some(&mut unwrap))?;
        }
        let (range_ms, mut offset_ms) = window.unwrap_or_default();
        if self.is_offset() {
            offset_ms = self.offset()?;
        }
        self.expect(")")?;
        match (&unwrap, function.wants_unwrap()) {
            (None, Some(true)) => {
                let message = format!("{} needs numbers: unwrap a label", function.name());
                return self.fail_at(at, message);
            }
            (Some(_), Some(false)) => {
                return self.fail_at(at, format!("{} counts lines and takes no unwrap", function.name()));
            }
            _ => {}
        }
        let grouping = if function.takes_grouping() && unwrap.is_some() {
            self.grouping()?
        } else {
            None
        };
        Ok(Metric::Range {
            function,
            lines,
            unwrap,
            param,
            grouping,
            range_ms,
            offset_ms,
        })
    }

    /// Selector and stages of a range; with the window, when parentheses around it all hold that too.
    fn range_lines(&mut self, unwrap: &mut Option<Unwrap>) -> Result<(LogSelector, Option<(i64, i64)>), ParseError> {
        if self.is("(") {
            let depth = self.depth;
            self.deeper()?;
            self.next();
            let (mut lines, mut window) = self.range_lines(unwrap)?;
            if window.is_none() && self.is("[") {
                window = Some(self.window()?);
                self.stages(&mut lines.stages, Some(unwrap))?;
            }
            self.expect(")")?;
            self.depth = depth;
            if window.is_none() {
                self.stages(&mut lines.stages, Some(unwrap))?;
            }
            return Ok((lines, window));
        }
        let matchers = self.matchers()?;
        let mut stages = vec![];
        self.stages(&mut stages, Some(unwrap))?;
        Ok((LogSelector { matchers, stages }, None))
    }

    /// `[5m]`, and an offset that comes right behind it.
    fn window(&mut self) -> Result<(i64, i64), ParseError> {
        self.expect("[")?;
        let range_ms = self.duration()?;
        if range_ms <= 0 {
            return self.fail("a range must be longer than 0".to_owned());
        }
        self.expect("]")?;
        let offset_ms = if self.is_offset() { self.offset()? } else { 0 };
        Ok((range_ms, offset_ms))
    }

    fn is_offset(&self) -> bool {
        matches!(self.peek(), Token::Word(w) if w == "offset")
    }

    fn offset(&mut self) -> Result<i64, ParseError> {
        self.next();
        let negative = self.take("-");
        let ms = self.duration()?;
        Ok(if negative { -ms } else { ms })
    }

    fn aggregate(&mut self, op: AggregateOp) -> Result<Metric, ParseError> {
        let mut grouping = self.grouping()?;
        self.expect("(")?;
        let param = if op.has_param() {
            let at = self.at;
            let param = self.number()?;
            if param < 1.0 {
                return self.fail_at(at, format!("{} wants at least 1, not {param}", op.name()));
            }
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
                "{app=\"a\"} | josn",
                "1:13: parse error: \"josn\" is no stage, and a label is compared with something",
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

    /// Twice as many ended the node: the stack of its threads was used up.
    #[test]
    fn an_expression_of_ten_thousand_brackets_is_refused_on_a_small_stack() {
        let on_a_small_stack = || {
            for open in ["(", "sum(", "{a=\"b\"} | (", "count_over_time(", "rate(("] {
                let refused = parse(&open.repeat(10_000)).unwrap_err().to_string();
                assert!(refused.len() < 200, "{open} {refused}");
            }
            let refused = parse(&"(".repeat(10_000)).unwrap_err().to_string();
            assert!(refused.contains("nested more than 128 deep"), "{refused}");
        };
        #[allow(clippy::disallowed_methods, reason = "the stack is what is tested")]
        let tried = std::thread::Builder::new().stack_size(2 << 20).spawn(on_a_small_stack);
        tried.unwrap().join().unwrap();
    }

    #[test]
    fn filters_may_stand_before_or_after_the_range() {
        let a = parse("rate({app=\"a\"} |= \"x\" or \"y\" != `z` [1h5m] offset 1h)").unwrap();
        let b = parse("rate({app=\"a\"} [1h5m] |= \"x\" or \"y\" != `z` offset 1h)").unwrap();
        assert_eq!(a, b);
        assert_eq!(
            a.to_string(),
            "rate({app=\"a\"} |= \"x\" or \"y\" != \"z\" [1h5m] offset 1h)"
        );
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

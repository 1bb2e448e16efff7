//! Tokens to a typed tree: a Pratt parser for operators, plain descent for the rest.

use crate::ast::{
    AggregateOp, At, BinaryOp, Cardinality, Expr, Grouping, Kind, Literal, Matching, Selector, Span, ValueType,
};
use crate::durations::QueryRange;
use crate::functions::{self, Function};
use crate::lexer::{self, Token};
use hindcast_model::{METRIC_NAME, MatchOp, Matcher};

/// Levels of a tree. Everything that walks a tree may recurse this deep.
pub const DEPTH_MAX: u16 = 128;

/// Why a text is no PromQL. Line and column count from 1, columns in characters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: parse error: {message}")]
pub struct ParseError {
    pub line: usize,
    pub column: usize,
    pub span: Span,
    pub message: String,
}

impl ParseError {
    /// An error at a place of `text`.
    pub fn new(text: &str, span: Span, message: String) -> Self {
        let before = text.get(..span.start as usize).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |n| n + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            span,
            message,
        }
    }
}

/// Parses and type-checks an expression.
pub fn parse(text: &str) -> Result<Expr, ParseError> {
    parsed(Parser::new(text)?)
}

/// Likewise, of a query whose step and range are known: `step()` and `range()` have a value.
pub fn parse_within(text: &str, query: QueryRange) -> Result<Expr, ParseError> {
    let mut p = Parser::new(text)?;
    p.query = Some(query);
    parsed(p)
}

fn parsed(mut p: Parser) -> Result<Expr, ParseError> {
    if p.peek() == &Token::End {
        return Err(p.fail("no expression found in input"));
    }
    let expr = p.expr(0, 0)?;
    match p.peek() {
        Token::End => Ok(expr),
        other => {
            let message = format!("unexpected {}", other.shown());
            Err(p.fail(&message))
        }
    }
}

/// Parses a bare series selector, as the `match[]` parameter has it.
pub fn parse_selector(text: &str) -> Result<Vec<Matcher>, ParseError> {
    let expr = parse(text)?;
    match expr.kind {
        Kind::Vector(s) if s.offset_ms == 0 && s.at.is_none() => Ok(s.matchers),
        _ => Err(ParseError::new(
            text,
            expr.span,
            "expected a series selector".to_owned(),
        )),
    }
}

type Parsed = Result<Expr, ParseError>;

/// Whether a list that has come so far goes on.
#[derive(Clone, Copy)]
enum Rest {
    Must,
    May,
    Cannot,
}

pub(crate) struct Parser<'a> {
    text: &'a str,
    tokens: Vec<(Token, Span)>,
    at: usize,
    pub(crate) query: Option<QueryRange>,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self, ParseError> {
        Ok(Self {
            text,
            tokens: lexer::tokens(text, lexer::Dialect::PromQl)?,
            at: 0,
            query: None,
        })
    }

    fn peek(&self) -> &Token {
        &self.tokens[self.at].0
    }

    fn peek_second(&self) -> &Token {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)].0
    }

    pub(crate) fn span(&self) -> Span {
        self.tokens[self.at].1
    }

    pub(crate) fn next(&mut self) -> Token {
        let token = self.tokens[self.at].0.clone();
        // `End` stays.
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    pub(crate) fn is(&self, sign: &str) -> bool {
        matches!(self.peek(), Token::Sign(s) if *s == sign)
    }

    pub(crate) fn take(&mut self, sign: &str) -> bool {
        let is = self.is(sign);
        if is {
            self.next();
        }
        is
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Token::Word(w) if w.eq_ignore_ascii_case(word))
    }

    pub(crate) fn expect(&mut self, sign: &str, context: &str) -> Result<(), ParseError> {
        if self.take(sign) {
            return Ok(());
        }
        let message = format!("unexpected {} in {context}, expected {sign:?}", self.peek().shown());
        Err(self.fail(&message))
    }

    /// The comma of a list that was not closed. When it is not there, what would have fitted best is missed: the text
    /// that ends was most likely not closed, unless the list is not whole without more.
    fn comma(&mut self, close: &str, rest: Rest, context: &str) -> Result<(), ParseError> {
        let is_over = match rest {
            Rest::Must => false,
            Rest::May => matches!(self.peek(), Token::End),
            Rest::Cannot => !self.is(","),
        };
        self.expect(if is_over { close } else { "," }, context)
    }

    fn fail(&self, message: &str) -> ParseError {
        ParseError::new(self.text, self.span(), message.to_owned())
    }

    pub(crate) fn fail_at(&self, span: Span, message: String) -> ParseError {
        ParseError::new(self.text, span, message)
    }

    fn since(&self, start: Span) -> Span {
        let last = self.tokens[self.at.saturating_sub(1)].1;
        Span {
            start: start.start,
            end: last.end.max(start.end),
        }
    }

    /// Every node is made here: its depth is checked before anything is put on top of it.
    fn node(&self, start: Span, kind: Kind) -> Parsed {
        let below = match &kind {
            Kind::Number(_) | Kind::String(_) | Kind::Vector(_) | Kind::Matrix { .. } => 0,
            Kind::Subquery { expr, .. } | Kind::Negate(expr) | Kind::Plus(expr) | Kind::Paren(expr) => expr.depth,
            Kind::Call { args, .. } => args.iter().map(|a| a.depth).max().unwrap_or(0),
            Kind::Aggregate { param, expr, .. } => expr.depth.max(param.as_ref().map_or(0, |p| p.depth)),
            Kind::Binary { lhs, rhs, .. } => lhs.depth.max(rhs.depth),
        };
        let span = self.since(start);
        if below >= DEPTH_MAX {
            return Err(self.too_deep(span));
        }
        Ok(Expr {
            kind,
            span,
            depth: below + 1,
        })
    }

    pub(crate) fn too_deep(&self, span: Span) -> ParseError {
        self.fail_at(span, format!("the expression is nested deeper than {DEPTH_MAX} levels"))
    }

    /// An expression whose operators bind at least as tightly as `least`.
    fn expr(&mut self, least: u8, depth: u16) -> Parsed {
        if depth >= DEPTH_MAX {
            return Err(self.too_deep(self.span()));
        }
        let start = self.span();
        let mut lhs = self.unary(depth)?;
        while let Some(op) = self.binary_op().filter(|op| op.precedence() >= least) {
            let op_span = self.span();
            self.next();
            let (as_bool, matching) = self.binary_modifiers(op)?;
            // Powers group to the right, all others to the left.
            let rhs_least = if op == BinaryOp::Pow {
                op.precedence()
            } else {
                op.precedence() + 1
            };
            let rhs = self.expr(rhs_least, depth + 1)?;
            let kind = self.checked_binary(op, op_span, lhs, rhs, as_bool, matching)?;
            lhs = self.node(start, kind)?;
        }
        Ok(lhs)
    }

    fn unary(&mut self, depth: u16) -> Parsed {
        let start = self.span();
        let negate = match self.peek() {
            Token::Sign("-") => true,
            Token::Sign("+") => false,
            _ => return self.postfix(depth),
        };
        self.next();
        // A sign binds as tightly as `*`: only `^` goes before it.
        let operand = self.expr(BinaryOp::Pow.precedence(), depth + 1)?;
        let of = operand.value_type();
        if !matches!(of, ValueType::Scalar | ValueType::Vector) {
            let message = format!(
                "unary expression only allowed on expressions of type scalar or instant vector, got \"{}\"",
                of.as_str()
            );
            return Err(self.fail_at(start, message));
        }
        let operand = Box::new(operand);
        self.node(
            start,
            if negate {
                Kind::Negate(operand)
            } else {
                Kind::Plus(operand)
            },
        )
    }

    fn binary_op(&self) -> Option<BinaryOp> {
        Some(match self.peek() {
            Token::Sign("==") => BinaryOp::Eq,
            Token::Sign("!=") => BinaryOp::Ne,
            Token::Sign("<") => BinaryOp::Lt,
            Token::Sign("<=") => BinaryOp::Le,
            Token::Sign(">") => BinaryOp::Gt,
            Token::Sign(">=") => BinaryOp::Ge,
            Token::Sign("</") => BinaryOp::TrimUpper,
            Token::Sign(">/") => BinaryOp::TrimLower,
            Token::Sign("+") => BinaryOp::Add,
            Token::Sign("-") => BinaryOp::Sub,
            Token::Sign("*") => BinaryOp::Mul,
            Token::Sign("/") => BinaryOp::Div,
            Token::Sign("%") => BinaryOp::Mod,
            Token::Sign("^") => BinaryOp::Pow,
            Token::Word(_) if self.is_word("or") => BinaryOp::Or,
            Token::Word(_) if self.is_word("and") => BinaryOp::And,
            Token::Word(_) if self.is_word("unless") => BinaryOp::Unless,
            Token::Word(_) if self.is_word("atan2") => BinaryOp::Atan2,
            _ => return None,
        })
    }

    fn binary_modifiers(&mut self, op: BinaryOp) -> Result<(bool, Option<Matching>), ParseError> {
        let as_bool = self.is_word("bool");
        if as_bool {
            if !op.is_comparison() {
                return Err(self.fail("bool modifier can only be used on comparison operators"));
            }
            self.next();
        }
        let on = self.is_word("on");
        if !on && !self.is_word("ignoring") {
            return Ok((as_bool, None));
        }
        self.next();
        let mut matching = Matching {
            on,
            labels: self.label_list("grouping opts")?,
            ..Matching::plain(op)
        };
        let cardinality = if self.is_word("group_left") {
            Cardinality::ManyToOne
        } else if self.is_word("group_right") {
            Cardinality::OneToMany
        } else {
            return Ok((as_bool, Some(matching)));
        };
        if op.is_set() {
            let message = format!("no grouping allowed for {:?} operation", op.as_str());
            return Err(self.fail(&message));
        }
        self.next();
        matching.cardinality = cardinality;
        if self.is("(") {
            matching.include = self.label_list("grouping opts")?;
        }
        if on && let Some(l) = matching.include.iter().find(|l| matching.labels.contains(l)) {
            let message = format!("label {l:?} must not occur in ON and GROUP clause at once");
            return Err(self.fail(&message));
        }
        Ok((as_bool, Some(matching)))
    }

    fn checked_binary(
        &self,
        op: BinaryOp,
        op_span: Span,
        lhs: Expr,
        rhs: Expr,
        as_bool: bool,
        matching: Option<Matching>,
    ) -> Result<Kind, ParseError> {
        for side in [&lhs, &rhs] {
            if !matches!(side.value_type(), ValueType::Scalar | ValueType::Vector) {
                let message = "binary expression must contain only scalar and instant vector types".to_owned();
                return Err(self.fail_at(side.span, message));
            }
        }
        let scalars = [&lhs, &rhs]
            .into_iter()
            .filter(|e| e.value_type() == ValueType::Scalar)
            .count();
        if scalars == 2 && op.is_comparison() && !as_bool {
            return Err(self.fail_at(op_span, "comparisons between scalars must use BOOL modifier".to_owned()));
        }
        if scalars == 2 && op.is_trim() {
            let message = format!("operator {:?} not allowed for Scalar operations", op.as_str());
            return Err(self.fail_at(op_span, message));
        }
        if scalars > 0 && op.is_set() {
            let message = format!("set operator {:?} not allowed in binary scalar expression", op.as_str());
            return Err(self.fail_at(op_span, message));
        }
        if scalars > 0
            && matching
                .as_ref()
                .is_some_and(|m| !m.labels.is_empty() || m.cardinality != Matching::plain(op).cardinality)
        {
            return Err(self.fail_at(
                op_span,
                "vector matching only allowed between instant vectors".to_owned(),
            ));
        }
        let matching = (scalars == 0).then(|| matching.unwrap_or_else(|| Matching::plain(op)));
        Ok(Kind::Binary {
            op,
            lhs: Box::new(lhs),
            rhs: Box::new(rhs),
            as_bool,
            matching,
        })
    }

    /// A primary expression with what may follow it: `[…]`, `offset`, `@`.
    fn postfix(&mut self, depth: u16) -> Parsed {
        let start = self.span();
        let mut expr = self.primary(depth)?;
        let (mut offset_seen, mut at_seen) = (false, false);
        loop {
            if self.is("[") {
                expr = self.brackets(start, expr)?;
                (offset_seen, at_seen) = (false, false);
            } else if self.is_word("offset") {
                let span = self.span();
                self.next();
                let ms = self.signed_duration()?;
                if std::mem::replace(&mut offset_seen, true) {
                    return Err(self.fail_at(span, "offset may not be set multiple times".to_owned()));
                }
                match &mut expr.kind {
                    Kind::Vector(s) | Kind::Matrix { selector: s, .. } => s.offset_ms = ms,
                    Kind::Subquery { offset_ms, .. } => *offset_ms = ms,
                    _ => return Err(self.misplaced(span, "offset")),
                }
                expr.span = self.since(start);
            } else if self.is("@") {
                let span = self.span();
                self.next();
                let when = self.instant()?;
                if std::mem::replace(&mut at_seen, true) {
                    return Err(self.fail_at(span, "@ <timestamp> may not be set multiple times".to_owned()));
                }
                match &mut expr.kind {
                    Kind::Vector(s) | Kind::Matrix { selector: s, .. } => s.at = Some(when),
                    Kind::Subquery { at, .. } => *at = Some(when),
                    _ => return Err(self.misplaced(span, "@")),
                }
                expr.span = self.since(start);
            } else {
                return Ok(expr);
            }
        }
    }

    fn misplaced(&self, span: Span, what: &str) -> ParseError {
        self.fail_at(
            span,
            format!(
                "{what} modifier must be preceded by an instant vector selector or range vector selector or a subquery"
            ),
        )
    }

    /// `[5m]` or `[5m:1m]`.
    fn brackets(&mut self, start: Span, expr: Expr) -> Parsed {
        let open = self.span();
        self.next();
        let range_ms = self.positive_duration("range")?;
        if self.take(":") {
            let step_ms = if self.is("]") {
                None
            } else {
                Some(self.positive_duration("subquery step")?)
            };
            self.expect("]", "subquery")?;
            if expr.value_type() != ValueType::Vector {
                let message = format!(
                    "subquery is only allowed on instant vector, got {} instead",
                    expr.value_type().as_str()
                );
                return Err(self.fail_at(open, message));
            }
            return self.node(
                start,
                Kind::Subquery {
                    expr: Box::new(expr),
                    range_ms,
                    step_ms,
                    offset_ms: 0,
                    at: None,
                },
            );
        }
        self.expect("]", "range selector")?;
        match expr.kind {
            Kind::Vector(selector) if selector.offset_ms != 0 || selector.at.is_some() => {
                Err(self.fail_at(open, "no offset or @ modifiers allowed before range".to_owned()))
            }
            Kind::Vector(selector) => self.node(start, Kind::Matrix { selector, range_ms }),
            _ => Err(self.fail_at(open, "ranges only allowed for vector selectors".to_owned())),
        }
    }

    fn instant(&mut self) -> Result<At, ParseError> {
        let span = self.span();
        let negative = self.is("-");
        if negative || self.is("+") {
            self.next();
        } else if let Token::Word(word) = self.peek().clone() {
            let at = match word.to_ascii_lowercase().as_str() {
                "start" => Some(At::Start),
                "end" => Some(At::End),
                _ => None,
            };
            if let Some(at) = at {
                self.next();
                self.expect("(", "@")?;
                self.expect(")", "@")?;
                return Ok(at);
            }
        }
        let seconds = match self.next() {
            Token::Number(s) => s,
            Token::Duration(ms) => ms as f64 / 1000.0,
            Token::Word(w) if word_number(&w).is_some() => f64::NAN,
            other => {
                return Err(self.fail_at(span, format!("unexpected {} in @, expected timestamp", other.shown())));
            }
        };
        ms_of_seconds(if negative { -seconds } else { seconds })
            .map(At::Ms)
            .ok_or_else(|| self.fail_at(span, "timestamp out of bounds for @ modifier".to_owned()))
    }

    fn primary(&mut self, depth: u16) -> Parsed {
        let start = self.span();
        match self.peek().clone() {
            Token::Number(v) => {
                self.next();
                self.node(start, Kind::Number(Literal(v)))
            }
            Token::Duration(ms) => {
                self.next();
                self.node(start, Kind::Number(Literal(ms as f64 / 1000.0)))
            }
            Token::String(s) => {
                self.next();
                self.node(start, Kind::String(s))
            }
            Token::Sign("(") => {
                self.next();
                let inner = self.expr(0, depth + 1)?;
                self.expect(")", "paren expression")?;
                self.node(start, Kind::Paren(Box::new(inner)))
            }
            Token::Sign("{") => self.selector(start, None),
            Token::Word(word) => self.word(start, &word, depth),
            other => Err(self.fail(&format!("unexpected {}", other.shown()))),
        }
    }

    fn word(&mut self, start: Span, word: &str, depth: u16) -> Parsed {
        let followed_by = |s: &str| matches!(self.peek_second(), Token::Sign(x) if *x == s);
        let grouped =
            matches!(self.peek_second(), Token::Word(w) if ["by", "without"].iter().any(|g| w.eq_ignore_ascii_case(g)));
        if let Some(op) = AggregateOp::parse(word)
            && (followed_by("(") || grouped)
        {
            self.next();
            return self.aggregate(start, op, depth);
        }
        if followed_by("(") {
            return self.call(start, word, depth);
        }
        self.next();
        if let Some(v) = word_number(word)
            && !self.is("{")
        {
            return self.node(start, Kind::Number(Literal(v)));
        }
        if RESERVED.iter().any(|r| r.eq_ignore_ascii_case(word)) {
            return Err(self.fail_at(start, format!("unexpected <{}>", word.to_ascii_lowercase())));
        }
        self.selector(start, Some(word.to_owned()))
    }

    fn call(&mut self, start: Span, word: &str, depth: u16) -> Parsed {
        let Some(function) = functions::find(word) else {
            return Err(self.fail(&format!("unknown function with name {word:?}")));
        };
        self.next();
        self.expect("(", "function call")?;
        let mut args = vec![];
        if !self.take(")") {
            loop {
                args.push(self.expr(0, depth + 1)?);
                if self.take(")") {
                    break;
                }
                let rest = match args.len() {
                    n if n < function.least_args() => Rest::Must,
                    n if n < function.most_args() => Rest::May,
                    _ => Rest::Cannot,
                };
                self.comma(")", rest, "function call")?;
            }
        }
        self.check_args(start, function, &args)?;
        self.node(start, Kind::Call { function, args })
    }

    fn check_args(&self, start: Span, function: &Function, args: &[Expr]) -> Result<(), ParseError> {
        let (full, least, most) = (function.args.len(), function.least_args(), function.most_args());
        let bound = match args.len() {
            n if n < least => Some((least, if least == full { "" } else { "at least " })),
            n if n > most => Some((most, if least == full { "" } else { "at most " })),
            _ => None,
        };
        if let Some((n, how)) = bound {
            let message = format!(
                "expected {how}{n} argument(s) in call to {:?}, got {}",
                function.name,
                args.len()
            );
            return Err(self.fail_at(self.since(start), message));
        }
        for (i, arg) in args.iter().enumerate() {
            let wanted = function.args[i.min(full - 1)];
            self.check_type(arg, wanted, &format!("call to function {:?}", function.name))?;
        }
        Ok(())
    }

    fn check_type(&self, expr: &Expr, wanted: ValueType, context: &str) -> Result<(), ParseError> {
        let got = expr.value_type();
        if got == wanted {
            return Ok(());
        }
        let message = format!("expected type {} in {context}, got {}", wanted.as_str(), got.as_str());
        Err(self.fail_at(expr.span, message))
    }

    fn aggregate(&mut self, start: Span, op: AggregateOp, depth: u16) -> Parsed {
        let mut grouping = self.grouping()?;
        self.expect("(", "aggregation")?;
        if self.is(")") {
            return Err(self.fail("no arguments for aggregate expression provided"));
        }
        let mut args = vec![];
        loop {
            args.push(self.expr(0, depth + 1)?);
            if self.take(")") {
                break;
            }
            let rest = match op.has_param() && args.len() == 1 {
                true => Rest::Must,
                false => Rest::Cannot,
            };
            self.comma(")", rest, "aggregation")?;
        }
        if grouping.is_none() {
            grouping = self.grouping()?;
        }
        let wanted = if op.has_param() { 2 } else { 1 };
        if args.len() != wanted {
            let message = format!(
                "wrong number of arguments for aggregate expression provided, expected {wanted}, got {}",
                args.len()
            );
            return Err(self.fail_at(self.since(start), message));
        }
        let expr = args.pop().map(Box::new).ok_or_else(|| self.fail("no expression"))?;
        let param = args.pop().map(Box::new);
        self.check_type(&expr, ValueType::Vector, "aggregation expression")?;
        if let Some(p) = &param {
            let wanted = if op == AggregateOp::CountValues {
                ValueType::String
            } else {
                ValueType::Scalar
            };
            self.check_type(p, wanted, "aggregation parameter")?;
        }
        self.node(
            start,
            Kind::Aggregate {
                op,
                grouping,
                param,
                expr,
            },
        )
    }

    fn grouping(&mut self) -> Result<Option<Grouping>, ParseError> {
        let without = self.is_word("without");
        if !without && !self.is_word("by") {
            return Ok(None);
        }
        self.next();
        let labels = self.label_list("grouping opts")?;
        Ok(Some(Grouping { without, labels }))
    }

    /// `(a, b)`; a comma may follow the last.
    fn label_list(&mut self, context: &str) -> Result<Vec<String>, ParseError> {
        self.expect("(", context)?;
        let mut labels = vec![];
        loop {
            if self.take(")") {
                return Ok(labels);
            }
            let span = self.span();
            match self.next() {
                Token::Word(w) if !w.contains(':') => labels.push(w),
                Token::String(s) if !s.is_empty() => labels.push(s),
                other => {
                    return Err(self.fail_at(
                        span,
                        format!("unexpected {} in {context}, expected label", other.shown()),
                    ));
                }
            }
            if !self.is(")") {
                self.comma(")", Rest::May, context)?;
            }
        }
    }

    fn selector(&mut self, start: Span, written: Option<String>) -> Parsed {
        let mut name = written;
        let mut matchers: Vec<Matcher> = name.iter().map(|n| Matcher::equal(METRIC_NAME, n)).collect();
        if self.take("{") {
            loop {
                if self.take("}") {
                    break;
                }
                self.matcher(&mut name, &mut matchers)?;
                if !self.is("}") {
                    self.comma("}", Rest::May, "label matching")?;
                }
            }
        }
        if matchers.iter().all(Matcher::matches_empty) {
            let message = "vector selector must contain at least one non-empty matcher".to_owned();
            return Err(self.fail_at(self.since(start), message));
        }
        self.node(
            start,
            Kind::Vector(Selector {
                name,
                matchers,
                offset_ms: 0,
                at: None,
            }),
        )
    }

    /// `label="value"`, or a quoted metric name alone.
    fn matcher(&mut self, name: &mut Option<String>, matchers: &mut Vec<Matcher>) -> Result<(), ParseError> {
        let span = self.span();
        let (label, quoted) = match self.next() {
            Token::Word(w) => (w, false),
            Token::String(s) => (s, true),
            other => {
                let message = format!(
                    "unexpected {} in label matching, expected identifier or \"}}\"",
                    other.shown()
                );
                return Err(self.fail_at(span, message));
            }
        };
        if quoted && (self.is(",") || self.is("}")) {
            if let Some(first) = name {
                return Err(self.fail_at(
                    span,
                    format!("metric name must not be set twice: {first:?} or {label:?}"),
                ));
            }
            matchers.push(Matcher::equal(METRIC_NAME, &label));
            *name = Some(label);
            return Ok(());
        }
        let op_span = self.span();
        let op = match self.next() {
            Token::Sign("=") => MatchOp::Equal,
            Token::Sign("!=") => MatchOp::NotEqual,
            Token::Sign("=~") => MatchOp::Regex,
            Token::Sign("!~") => MatchOp::NotRegex,
            other => {
                let message = format!(
                    "unexpected {} in label matching, expected label matching operator",
                    other.shown()
                );
                return Err(self.fail_at(op_span, message));
            }
        };
        let value_span = self.span();
        let Token::String(value) = self.next() else {
            return Err(self.fail_at(
                value_span,
                "unexpected token in label matching, expected string".to_owned(),
            ));
        };
        if let Some(first) = name
            && label == METRIC_NAME
        {
            return Err(self.fail_at(
                span,
                format!("metric name must not be set twice: {first:?} or {value:?}"),
            ));
        }
        let matcher = Matcher::new(&label, op, &value).map_err(|e| self.fail_at(value_span, e.to_string()))?;
        matchers.push(matcher);
        Ok(())
    }
}

/// Words that are no metric names.
const RESERVED: [&str; 12] = [
    "and",
    "or",
    "unless",
    "atan2",
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "bool",
    "offset",
];

fn word_number(word: &str) -> Option<f64> {
    if word.eq_ignore_ascii_case("inf") {
        Some(f64::INFINITY)
    } else if word.eq_ignore_ascii_case("nan") {
        Some(f64::NAN)
    } else {
        None
    }
}

/// Rounded to the nearest millisecond; `None` when it is no time at all.
pub(crate) fn ms_of_seconds(s: f64) -> Option<i64> {
    let ms = (s * 1000.0).round();
    // Nanoseconds must fit too: nobody's data lies outside the years 1677 to 2262.
    (ms.abs() <= 9.2e15).then_some(ms as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    /// What a text is read as, or why not.
    fn check(text: &str, expected: Expect) {
        let shown = text
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty())
            .map(|line| match parse(line) {
                Ok(expr) => format!("{line}\n    {expr}\n"),
                Err(e) => format!("{line}\n    {e}\n"),
            })
            .collect::<String>();
        expected.assert_eq(&shown);
    }

    /// `rate(x` said that a comma was missing.
    #[test]
    fn a_call_that_is_not_closed_misses_its_bracket() {
        check(
            r#"
            rate(x
            rate(x[5m] y)
            round(x
            round(x y)
            label_replace(x
            label_join(x, "a", ",", "b"
            sum(x
            sum(x y)
            topk(3
            sum by (a
            foo{a="1"
            "#,
            expect![[r#"
                rate(x
                    1:7: parse error: unexpected end of input in function call, expected ")"
                rate(x[5m] y)
                    1:12: parse error: unexpected "y" in function call, expected ")"
                round(x
                    1:8: parse error: unexpected end of input in function call, expected ")"
                round(x y)
                    1:9: parse error: unexpected "y" in function call, expected ","
                label_replace(x
                    1:16: parse error: unexpected end of input in function call, expected ","
                label_join(x, "a", ",", "b"
                    1:28: parse error: unexpected end of input in function call, expected ")"
                sum(x
                    1:6: parse error: unexpected end of input in aggregation, expected ")"
                sum(x y)
                    1:7: parse error: unexpected "y" in aggregation, expected ")"
                topk(3
                    1:7: parse error: unexpected end of input in aggregation, expected ","
                sum by (a
                    1:10: parse error: unexpected end of input in grouping opts, expected ")"
                foo{a="1"
                    1:10: parse error: unexpected end of input in label matching, expected "}"
            "#]],
        );
    }

    #[test]
    fn operators_bind_as_prometheus_binds_them() {
        let tree = |text| parse(text).unwrap();
        for (plain, grouped) in [
            ("-2^3", "-(2^3)"),
            ("2^3^2", "2^(3^2)"),
            ("1-2-3", "(1-2)-3"),
            ("a or b and c", "a or (b and c)"),
            ("1+2*3 > bool 4", "(1+(2*3)) > bool 4"),
            ("2^-1*3", "(2^(-1))*3"),
            ("a % b atan2 c", "(a % b) atan2 c"),
        ] {
            fn bare(e: &Expr) -> String {
                match &e.kind {
                    Kind::Paren(e) => bare(e),
                    Kind::Negate(e) => format!("neg({})", bare(e)),
                    Kind::Binary { op, lhs, rhs, .. } => format!("({} {} {})", bare(lhs), op.as_str(), bare(rhs)),
                    _ => e.to_string(),
                }
            }
            assert_eq!(bare(&tree(plain)), bare(&tree(grouped)), "{plain}");
        }
    }

    #[test]
    fn expressions_are_shown_as_they_are_read() {
        check(
            r#"
            SUM by (host,) (rate(node_cpu_seconds_total{mode!="idle"}[5m])) / on(host) group_left(rack) count(up) by (host)
            node_load1 offset -5m @ 1609746000.5
            max_over_time(rate(x[1m])[1h:30s] @ end() offset 1d)
            {"metric with spaces", 'a label'=~"x|y"}
            foo[300] 
            0x1F + 1e-7 + 5m + 1_000 + Inf - nan
            topk(3, sum)
            count_values without (a) ("v", x) == bool 3
            start + end{offset="by"}
            sum(a) by ()
            "tab\tquote\"" 
            "#,
            expect![[r#"
                SUM by (host,) (rate(node_cpu_seconds_total{mode!="idle"}[5m])) / on(host) group_left(rack) count(up) by (host)
                    sum by (host) (rate(node_cpu_seconds_total{mode!="idle"}[5m])) / on (host) group_left (rack) count by (host) (up)
                node_load1 offset -5m @ 1609746000.5
                    node_load1 @ 1609746000.500 offset -5m
                max_over_time(rate(x[1m])[1h:30s] @ end() offset 1d)
                    max_over_time(rate(x[1m])[1h:30s] @ end() offset 1d)
                {"metric with spaces", 'a label'=~"x|y"}
                    {"metric with spaces", "a label"=~"x|y"}
                foo[300]
                    foo[5m]
                0x1F + 1e-7 + 5m + 1_000 + Inf - nan
                    31 + 1e-7 + 300 + 1000 + Inf - NaN
                topk(3, sum)
                    topk(3, sum)
                count_values without (a) ("v", x) == bool 3
                    count_values without (a) ("v", x) == bool 3
                start + end{offset="by"}
                    start + end{offset="by"}
                sum(a) by ()
                    sum by () (a)
                "tab\tquote\""
                    "tab\tquote\""
            "#]],
        );
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        check(
            r#"
            1 +
            foo{bar="baz"
            rate(foo)
            rate(foo[5m], 1)
            foo[5m] + 1
            nope(1)
            1 and foo
            1 < 2
            foo offset 5m offset 5m
            foo offset 5m[5m]
            (foo) offset 5m
            foo[0s]
            foo[5x]
            {}
            {a=~".*"}
            foo{__name__="bar"}
            foo{a=~"("}
            a / on(x) group_left(x) b
            a and on(x) group_left() b
            a + bool b
            sum()
            topk(a)
            label_join(a, "b")
            "never closed
            a $ b
            offset
            foo{a="1" b="2"}
            "a" "b"
            sum by (a:b) (c)
            "#,
            expect![[r#"
                1 +
                    1:4: parse error: unexpected end of input
                foo{bar="baz"
                    1:14: parse error: unexpected end of input in label matching, expected "}"
                rate(foo)
                    1:6: parse error: expected type range vector in call to function "rate", got instant vector
                rate(foo[5m], 1)
                    1:1: parse error: expected 1 argument(s) in call to "rate", got 2
                foo[5m] + 1
                    1:1: parse error: binary expression must contain only scalar and instant vector types
                nope(1)
                    1:1: parse error: unknown function with name "nope"
                1 and foo
                    1:3: parse error: set operator "and" not allowed in binary scalar expression
                1 < 2
                    1:3: parse error: comparisons between scalars must use BOOL modifier
                foo offset 5m offset 5m
                    1:15: parse error: offset may not be set multiple times
                foo offset 5m[5m]
                    1:14: parse error: no offset or @ modifiers allowed before range
                (foo) offset 5m
                    1:7: parse error: offset modifier must be preceded by an instant vector selector or range vector selector or a subquery
                foo[0s]
                    1:5: parse error: range must be greater than 0
                foo[5x]
                    1:5: parse error: bad number or duration syntax: "5x"
                {}
                    1:1: parse error: vector selector must contain at least one non-empty matcher
                {a=~".*"}
                    1:1: parse error: vector selector must contain at least one non-empty matcher
                foo{__name__="bar"}
                    1:5: parse error: metric name must not be set twice: "foo" or "bar"
                foo{a=~"("}
                    1:8: parse error: the regular expression "(" cannot be used: error: unclosed group
                a / on(x) group_left(x) b
                    1:25: parse error: label "x" must not occur in ON and GROUP clause at once
                a and on(x) group_left() b
                    1:13: parse error: no grouping allowed for "and" operation
                a + bool b
                    1:5: parse error: bool modifier can only be used on comparison operators
                sum()
                    1:5: parse error: no arguments for aggregate expression provided
                topk(a)
                    1:1: parse error: wrong number of arguments for aggregate expression provided, expected 2, got 1
                label_join(a, "b")
                    1:1: parse error: expected at least 3 argument(s) in call to "label_join", got 2
                "never closed
                    1:1: parse error: unterminated string
                a $ b
                    1:3: parse error: unexpected character '$'
                offset
                    1:1: parse error: unexpected <offset>
                foo{a="1" b="2"}
                    1:11: parse error: unexpected "b" in label matching, expected ","
                "a" "b"
                    1:5: parse error: unexpected string "b"
                sum by (a:b) (c)
                    1:9: parse error: unexpected "a:b" in grouping opts, expected label
            "#]],
        );
    }

    #[test]
    fn depth_is_bounded_however_it_is_made() {
        for text in [
            format!("{}1{}", "(".repeat(10_000), ")".repeat(10_000)),
            "-".repeat(10_000) + "1",
            format!("{}1", "1+".repeat(10_000)),
            format!("{}1", "1^".repeat(10_000)),
            format!("{}x{}", "abs(".repeat(10_000), ")".repeat(10_000)),
            format!("x{}", "[5m:1m]".repeat(10_000)),
        ] {
            let e = parse(&text).unwrap_err();
            let told = e.message.contains("deeper") || e.message.contains("only allowed");
            assert!(told, "{}: {e}", &text[..20]);
        }
        assert!(parse(&format!("{}1", "1+".repeat(100))).is_ok());
    }

    /// Random expressions as text, so that every tree is one that parsing can give.
    fn text() -> impl Strategy<Value = String> {
        let selector = prop::sample::select(vec![
            "up",
            "node_load1{host=\"a\",rack!~\"r[12]\"}",
            "{__name__=~\"x.*\"}",
            "{\"odd name\", \"odd label\"=\"\\u00e9\\n\"}",
            "sum{a=\"`\"}",
            "a:b:c offset 5m",
            "x @ 12.345",
            "x @ start() offset -1h30m",
            "x @ -3",
        ]);
        let leaf = prop_oneof![
            3 => selector.prop_map(str::to_owned),
            1 => prop::sample::select(vec!["1", "0.25", "1e30", "1e-9", "Inf", "NaN", "5m", "0x10"])
                .prop_map(|n| format!("vector({n})")),
        ];
        leaf.prop_recursive(5, 40, 3, |inner| {
            let op = prop::sample::select(vec![
                "+",
                "-",
                "*",
                "/",
                "%",
                "^",
                "atan2",
                "==",
                "!= bool",
                "<",
                ">= bool",
                "</",
                ">/ on(a)",
                "and",
                "or",
                "unless",
                "+ on(a)",
                "and ignoring(a, b)",
                "* on(a) group_left(b)",
                "/ ignoring(a) group_right ()",
            ]);
            let call = prop::sample::select(vec![
                "abs(E)",
                "(E)",
                "-E",
                "+E",
                "sum(E)",
                "sum by (a) (E)",
                "max(E) without (\"b c\")",
                "topk(3, E)",
                "quantile by () (scalar(E), E)",
                "count_values(\"v\", E)",
                "rate((E)[5m:])",
                "max_over_time((E)[1h:30s] @ end() offset 1w)",
                "label_replace(E, \"a\", \"$1\", \"b\", \"(.*)\")",
                "clamp(E, -1, 2 ^ 3)",
                "round(E)",
                "round(E, 0.1)",
                "hour()",
                "vector(time())",
                "histogram_quantile(0.9, E)",
                "quantile_over_time(0.5, up[1m30s])",
            ]);
            prop_oneof![
                (inner.clone(), op, inner.clone()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
                (inner, call).prop_map(|(e, call)| call.replace('E', &e)),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_printed_tree_parses_to_the_same_tree(text in text()) {
            let tree = parse(&text).map_err(|e| TestCaseError::fail(format!("{text}: {e}")))?;
            let printed = tree.to_string();
            let again = parse(&printed).map_err(|e| TestCaseError::fail(format!("{printed}: {e}")))?;
            prop_assert_eq!(&again, &tree, "{}", printed);
            prop_assert_eq!(again.to_string(), printed);
        }

        #[test]
        fn no_text_panics(
            raw in "\\PC{0,60}",
            words in prop::collection::vec(prop::sample::select(vec![
                "(", ")", "{", "}", "[", "]", ",", "=", "=~", "!=", "\"x\"", "'", "`", "5m", "1", "0x", "1e", ".", ":", "@", "-", "^",
                "offset", "by", "on", "bool", "sum", "rate", "foo", "start", "NaN", "group_left", "\\", "#", "é", "\u{0}",
            ]), 0..40),
        ) {
            let _ = parse(&raw);
            let _ = parse(&words.concat());
            let _ = parse(&words.join(" "));
        }
    }
}

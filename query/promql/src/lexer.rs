//! Text to tokens. What a character means depends on where it stands: `:` belongs to names outside brackets,
//! digits with a unit are lengths of time, braces hold matchers.

use crate::ast::Span;
use crate::parser::ParseError;

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// A name or a keyword, as written.
    Word(String),
    String(String),
    Number(f64),
    /// A length of time in milliseconds. PromQL only.
    Duration(i64),
    /// A number with a unit of time or of bytes, as written. LogQL only: it has finer times, and sizes.
    Quantity(String),
    /// An operator or a bracket.
    Sign(&'static str),
    End,
}

impl Token {
    /// For messages.
    pub fn shown(&self) -> String {
        match self {
            Self::Word(w) => format!("{w:?}"),
            Self::String(s) => format!("string {s:?}"),
            Self::Number(n) => format!("number {n}"),
            Self::Duration(ms) => format!("duration {ms}ms"),
            Self::Quantity(q) => format!("quantity {q}"),
            Self::Sign(s) => format!("{s:?}"),
            Self::End => "end of input".to_owned(),
        }
    }
}

/// Which language's numbers are read.
#[derive(Clone, Copy, Debug)]
pub enum Dialect {
    PromQl,
    /// `is_quantity` says whether a number with letters behind it means something.
    LogQl {
        is_quantity: fn(&str) -> bool,
    },
}

/// Longest first, so that `==` is not read as `=` twice. Those with `|` are LogQL's, which is read by the same lexer.
const SIGNS: [&str; 32] = [
    "==", "!=", "=~", "!~", "<=", ">=", "</", ">/", "|=", "|~", "|>", "!>", "(", ")", "{", "}", "[", "]", ",", "=",
    "<", ">", "+", "-", "*", "/", "%", "^", "@", ":", ";", "|",
];

/// All tokens; the last is `End`.
pub fn tokens(text: &str, dialect: Dialect) -> Result<Vec<(Token, Span)>, ParseError> {
    let mut lexer = Lexer {
        text,
        dialect,
        at: 0,
        brackets: 0,
        braces: 0,
    };
    let mut out = vec![];
    loop {
        let (token, span) = lexer.next()?;
        let end = token == Token::End;
        out.push((token, span));
        if end {
            return Ok(out);
        }
    }
}

struct Lexer<'a> {
    text: &'a str,
    dialect: Dialect,
    at: usize,
    brackets: u32,
    braces: u32,
}

impl Lexer<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn skip_blank(&mut self) {
        loop {
            let rest = self.rest();
            let blank = rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
            let comment = if rest[blank..].starts_with('#') {
                rest[blank..].find('\n').unwrap_or(rest.len() - blank)
            } else {
                0
            };
            if blank + comment == 0 {
                return;
            }
            self.at += blank + comment;
        }
    }

    fn next(&mut self) -> Result<(Token, Span), ParseError> {
        self.skip_blank();
        let start = self.at;
        let token = match self.rest().chars().next() {
            None => Token::End,
            Some('"' | '\'' | '`') => Token::String(self.string()?),
            Some(c) if c.is_ascii_digit() || (c == '.' && self.digit_at(1)) => self.number()?,
            Some(c) if c.is_ascii_alphabetic() || c == '_' || (c == ':' && self.brackets == 0 && self.braces == 0) => {
                self.word()
            }
            Some(c) => self.sign(c)?,
        };
        Ok((token, span(start, self.at)))
    }

    fn digit_at(&self, i: usize) -> bool {
        self.rest().as_bytes().get(i).is_some_and(u8::is_ascii_digit)
    }

    fn word(&mut self) -> Token {
        let colons = self.brackets == 0 && self.braces == 0;
        let rest = self.rest();
        let len = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':')))
            .unwrap_or(rest.len());
        let word = rest[..len].to_owned();
        self.at += len;
        Token::Word(word)
    }

    fn sign(&mut self, c: char) -> Result<Token, ParseError> {
        let Some(sign) = SIGNS.into_iter().find(|s| self.rest().starts_with(s)) else {
            return Err(ParseError::new(
                self.text,
                span(self.at, self.at + c.len_utf8()),
                format!("unexpected character {c:?}"),
            ));
        };
        match sign {
            "[" => self.brackets += 1,
            "]" => self.brackets = self.brackets.saturating_sub(1),
            "{" => self.braces += 1,
            "}" => self.braces = self.braces.saturating_sub(1),
            _ => {}
        }
        self.at += sign.len();
        Ok(Token::Sign(sign))
    }

    /// A number, or a length of time: digits that a unit follows.
    fn number(&mut self) -> Result<Token, ParseError> {
        let start = self.at;
        let rest = self.rest();
        let bytes = rest.as_bytes();
        let is_hex = bytes.len() > 2 && bytes[..2].eq_ignore_ascii_case(b"0x");
        let mut len = if is_hex { 2 } else { 0 };
        while let Some(&b) = bytes.get(len) {
            let exponent_sign = matches!(b, b'+' | b'-') && !is_hex && matches!(bytes[len - 1], b'e' | b'E');
            if b.is_ascii_alphanumeric() || b == b'.' || b == b'_' || exponent_sign {
                len += 1;
            } else {
                break;
            }
        }
        if let Dialect::LogQl { .. } = self.dialect
            && rest[len..].starts_with('µ')
        {
            // Microseconds, as Go writes them.
            let unit = &rest[len..];
            len += unit.find(|c: char| c != 'µ' && c != 's').unwrap_or(unit.len());
        }
        let written = rest[..len].to_owned();
        self.at += len;
        match self.dialect {
            Dialect::PromQl => {
                if let Some(ms) = duration_ms(&written) {
                    return Ok(Token::Duration(ms));
                }
            }
            Dialect::LogQl { is_quantity } => {
                if number_value(&written).is_none() && is_quantity(&written) {
                    return Ok(Token::Quantity(written));
                }
            }
        }
        number_value(&written).map(Token::Number).ok_or_else(|| {
            ParseError::new(
                self.text,
                span(start, self.at),
                format!("bad number or duration syntax: {written:?}"),
            )
        })
    }

    fn string(&mut self) -> Result<String, ParseError> {
        let start = self.at;
        let quote = self.rest().chars().next().unwrap_or('"');
        self.at += 1;
        let mut bytes = vec![];
        loop {
            let Some(c) = self.rest().chars().next() else {
                return Err(ParseError::new(
                    self.text,
                    span(start, self.at),
                    "unterminated string".to_owned(),
                ));
            };
            self.at += c.len_utf8();
            match c {
                _ if c == quote => break,
                '\\' if quote != '`' => self.escape(start, quote, &mut bytes)?,
                '\n' if quote != '`' => {
                    return Err(ParseError::new(
                        self.text,
                        span(start, self.at),
                        "unterminated string".to_owned(),
                    ));
                }
                c => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        String::from_utf8(bytes)
            .map_err(|_| ParseError::new(self.text, span(start, self.at), "the string is not UTF-8".to_owned()))
    }

    /// One escape of Go's string literals, after its backslash.
    fn escape(&mut self, start: usize, quote: char, out: &mut Vec<u8>) -> Result<(), ParseError> {
        let bad = |l: &Self| {
            ParseError::new(
                l.text,
                span(start, l.at),
                "unknown escape sequence in a string".to_owned(),
            )
        };
        let c = self.rest().chars().next().ok_or_else(|| bad(self))?;
        self.at += c.len_utf8();
        let simple = match c {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            '\\' => b'\\',
            c if c == quote => quote as u8,
            'x' | 'u' | 'U' | '0'..='7' => {
                let (digits, radix) = match c {
                    'x' => (2, 16),
                    'u' => (4, 16),
                    'U' => (8, 16),
                    _ => {
                        self.at -= 1;
                        (3, 8)
                    }
                };
                let code = self
                    .rest()
                    .get(..digits)
                    .filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))
                    .and_then(|d| u32::from_str_radix(d, radix).ok())
                    .ok_or_else(|| bad(self))?;
                self.at += digits;
                if matches!(c, 'u' | 'U') {
                    let char = char::from_u32(code).ok_or_else(|| bad(self))?;
                    out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
                    return Ok(());
                }
                u8::try_from(code).map_err(|_| bad(self))?
            }
            _ => return Err(bad(self)),
        };
        out.push(simple);
        Ok(())
    }
}

pub(crate) fn span(start: usize, end: usize) -> Span {
    Span {
        start: start as u32,
        end: end as u32,
    }
}

/// `1h30m` in milliseconds; units largest first, each once.
fn duration_ms(text: &str) -> Option<i64> {
    // A bare number is a number.
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let span = hindcast_model::SpanNs::parse(text)?;
    i64::try_from(span.as_ms()).ok()
}

/// A number as Go writes integers and floats: decimal, hex, octal with a leading zero, `_` between digits.
fn number_value(text: &str) -> Option<f64> {
    let plain = text.replace('_', "");
    let lower = plain.to_ascii_lowercase();
    if let Some(hex) = lower.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok().map(|v| v as f64);
    }
    if let Some(binary) = lower.strip_prefix("0b") {
        return u64::from_str_radix(binary, 2).ok().map(|v| v as f64);
    }
    if lower.len() > 1 && lower.starts_with('0') && lower.bytes().all(|b| matches!(b, b'0'..=b'7')) {
        return u64::from_str_radix(&lower, 8).ok().map(|v| v as f64);
    }
    if !lower
        .bytes()
        .all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'+' | b'-'))
    {
        return None;
    }
    lower.parse().ok()
}

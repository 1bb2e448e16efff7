//! The parsers `json` and `unpack`: a line that is a JSON object, as labels.
//!
//! A scanner of its own, since a line is read once and only some of its values are wanted. Nested keys are joined with
//! `_`, arrays and nulls are no labels, numbers stay as they are written. What was found before an error stays found.

use std::borrow::Cow;

/// Objects and arrays in each other.
pub const JSON_DEPTH_MAX: usize = 64;

/// Why a line is no JSON.
pub type BadJson = &'static str;

/// One step of a path into a document: `a.b["c"][0]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Key(String),
    Index(usize),
}

/// Reads a path; says what is wrong with it.
pub fn path(text: &str) -> Result<Vec<Step>, String> {
    let bad = || Err(format!("cannot read the JSON path {text:?}"));
    let mut steps = vec![];
    let mut rest = text.trim();
    let mut first = true;
    while !rest.is_empty() {
        if let Some(inside) = rest.strip_prefix("[\"") {
            let Some((key, after)) = inside.split_once("\"]") else {
                return bad();
            };
            steps.push(Step::Key(key.to_owned()));
            rest = after;
        } else if let Some(inside) = rest.strip_prefix('[') {
            let Some((index, after)) = inside.split_once(']') else {
                return bad();
            };
            let Ok(index) = index.parse() else { return bad() };
            steps.push(Step::Index(index));
            rest = after;
        } else {
            let key = match (first, rest.strip_prefix('.')) {
                (false, Some(key)) => key,
                (true, None) => rest,
                _ => return bad(),
            };
            let len = key.find(['.', '[']).unwrap_or(key.len());
            if len == 0 || key[..len].contains([']', '"', ' ']) {
                return bad();
            }
            steps.push(Step::Key(key[..len].to_owned()));
            rest = &key[len..];
        }
        first = false;
    }
    if steps.is_empty() { bad() } else { Ok(steps) }
}

/// A value as it stands in the line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Between its quotes, escapes and all.
    Text(&'a [u8]),
    /// A number or a truth value.
    Plain(&'a [u8]),
    Null,
    /// An object or an array, brackets and all.
    Nested(&'a [u8]),
}

impl<'a> Value<'a> {
    /// As a label has it.
    pub fn shown(&self) -> Cow<'a, str> {
        match self {
            Self::Text(raw) => unescaped(raw),
            Self::Plain(raw) | Self::Nested(raw) => text(raw),
            Self::Null => Cow::Borrowed(""),
        }
    }
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    fn peek(&mut self) -> Option<u8> {
        while let Some(b) = self.bytes.get(self.at) {
            if !matches!(b, b' ' | b'\t' | b'\n' | b'\r') {
                return Some(*b);
            }
            self.at += 1;
        }
        None
    }

    fn take(&mut self, sign: u8, what: BadJson) -> Result<(), BadJson> {
        if self.peek() != Some(sign) {
            return Err(what);
        }
        self.at += 1;
        Ok(())
    }

    /// A string's inside.
    fn string(&mut self) -> Result<&'a [u8], BadJson> {
        self.take(b'"', "expected a string")?;
        let start = self.at;
        loop {
            match self.bytes.get(self.at) {
                None => return Err("a string does not end"),
                Some(b'"') => break,
                Some(b'\\') => self.at += 2,
                Some(_) => self.at += 1,
            }
        }
        self.at += 1;
        Ok(&self.bytes[start..self.at - 1])
    }

    /// Calls `member` for each member of the object that begins here; it must move past the value.
    fn object(&mut self, mut member: impl FnMut(&mut Self, &'a [u8]) -> Result<(), BadJson>) -> Result<(), BadJson> {
        self.take(b'{', "expected an object")?;
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            let key = self.string()?;
            self.take(b':', "expected a colon behind a key")?;
            member(self, key)?;
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err("an object does not end"),
            }
        }
    }

    fn array(&mut self, mut item: impl FnMut(&mut Self, usize) -> Result<(), BadJson>) -> Result<(), BadJson> {
        self.take(b'[', "expected an array")?;
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        for i in 0.. {
            item(self, i)?;
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(());
                }
                _ => break,
            }
        }
        Err("an array does not end")
    }

    fn plain(&mut self) -> Result<Value<'a>, BadJson> {
        let start = self.at;
        let is_plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
        while self.bytes.get(self.at).is_some_and(is_plain) {
            self.at += 1;
        }
        match &self.bytes[start..self.at] {
            b"null" => Ok(Value::Null),
            word @ (b"true" | b"false") => Ok(Value::Plain(word)),
            number if is_number(number) => Ok(Value::Plain(number)),
            _ => Err("expected a value"),
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value<'a>, BadJson> {
        if depth > JSON_DEPTH_MAX {
            return Err("the document is nested too deeply");
        }
        match self.peek() {
            Some(b'"') => self.string().map(Value::Text),
            Some(open @ (b'{' | b'[')) => {
                let start = self.at;
                if open == b'{' {
                    self.object(|s, _| s.value(depth + 1).map(|_| ()))?;
                } else {
                    self.array(|s, _| s.value(depth + 1).map(|_| ()))?;
                }
                Ok(Value::Nested(&self.bytes[start..self.at]))
            }
            _ => self.plain(),
        }
    }

    /// The value at the end of a path. `None`: there is none.
    fn find(&mut self, steps: &[Step], depth: usize) -> Result<Option<Value<'a>>, BadJson> {
        let Some((step, rest)) = steps.split_first() else {
            return self.value(depth).map(Some);
        };
        if depth > JSON_DEPTH_MAX {
            return Err("the document is nested too deeply");
        }
        let mut found = None;
        match (step, self.peek()) {
            (Step::Key(wanted), Some(b'{')) => self.object(|s, key| {
                if found.is_none() && unescaped(key) == wanted.as_str() {
                    found = s.find(rest, depth + 1)?;
                } else {
                    s.value(depth + 1)?;
                }
                Ok(())
            })?,
            (Step::Index(wanted), Some(b'[')) => self.array(|s, i| {
                if i == *wanted {
                    found = s.find(rest, depth + 1)?;
                } else {
                    s.value(depth + 1)?;
                }
                Ok(())
            })?,
            _ => {
                self.value(depth)?;
            }
        }
        Ok(found)
    }

    fn walk(&mut self, name: &mut String, depth: usize, label: &mut dyn FnMut(&str, Value)) -> Result<(), BadJson> {
        if depth > JSON_DEPTH_MAX {
            return Err("the document is nested too deeply");
        }
        self.object(|s, key| {
            let len = name.len();
            push_name(name, &unescaped(key));
            if s.peek() == Some(b'{') {
                s.walk(name, depth + 1, label)?;
            } else {
                match s.value(depth + 1)? {
                    Value::Null | Value::Nested(_) => {}
                    value => label(name, value),
                }
            }
            name.truncate(len);
            Ok(())
        })
    }
}

fn is_number(text: &[u8]) -> bool {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    digits.first().is_some_and(u8::is_ascii_digit)
        && std::str::from_utf8(text).is_ok_and(|t| !t.ends_with('.') && t.parse::<f64>().is_ok())
}

/// Calls `label` with the name and the value of each member that is no array and not null. `name` is a buffer.
pub fn walk(line: &[u8], name: &mut String, label: &mut dyn FnMut(&str, Value)) -> Result<(), BadJson> {
    name.clear();
    Scanner { bytes: line, at: 0 }.walk(name, 0, label)
}

/// The members of the object themselves, with their keys as they are: what `unpack` reads.
pub fn members(line: &[u8], member: &mut dyn FnMut(&str, Value)) -> Result<(), BadJson> {
    let mut scanner = Scanner { bytes: line, at: 0 };
    scanner.object(|s, key| {
        let value = s.value(1)?;
        member(&unescaped(key), value);
        Ok(())
    })
}

/// What a path leads to. `None`: nothing.
pub fn find<'a>(line: &'a [u8], path: &[Step]) -> Result<Option<Value<'a>>, BadJson> {
    let mut scanner = Scanner { bytes: line, at: 0 };
    if !matches!(scanner.peek(), Some(b'{' | b'[')) {
        return Err("expected an object or an array");
    }
    scanner.find(path, 0)
}

/// Appends a key to the name of a label: `_` between, and for all that no label name may hold.
pub fn push_name(name: &mut String, key: &str) {
    let key = key.trim();
    let is_nested = !name.is_empty() && !key.is_empty();
    if is_nested || key.starts_with(|c: char| c.is_ascii_digit()) {
        name.push('_');
    }
    name.extend(
        key.chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }),
    );
}

/// Bytes as text. What is no UTF-8 becomes a space, so that it cannot be taken for something that was written.
pub fn text(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => Cow::Owned(String::from_utf8_lossy(bytes).replace('\u{fffd}', " ")),
    }
}

/// A string without its escapes. An escape that JSON does not know stays as it is.
pub fn unescaped(raw: &[u8]) -> Cow<'_, str> {
    if !raw.contains(&b'\\') {
        return text(raw);
    }
    let raw = text(raw);
    let mut out = String::with_capacity(raw.len());
    let mut rest = &*raw;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(c) = rest.chars().next() else { break };
        rest = &rest[c.len_utf8()..];
        match c {
            'n' => out.push('\n'),
            't' => out.push('\t'),
            'r' => out.push('\r'),
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            '"' | '\\' | '/' | '\'' => out.push(c),
            'u' => match unicode(rest) {
                Some((c, len)) => {
                    out.push(c);
                    rest = &rest[len..];
                }
                None => out.push(' '),
            },
            c => {
                out.push('\\');
                out.push(c);
            }
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// The character behind `\u`, of one or two code units, and how many bytes spell it.
fn unicode(rest: &str) -> Option<(char, usize)> {
    let unit = |at: usize| {
        let digits = rest.get(at..at + 4)?;
        digits.bytes().all(|b| b.is_ascii_hexdigit()).then_some(())?;
        u32::from_str_radix(digits, 16).ok()
    };
    let high = unit(0)?;
    if !(0xd800..0xdc00).contains(&high) {
        return Some((char::from_u32(high)?, 4));
    }
    let low = rest.get(4..6).filter(|s| *s == "\\u").and_then(|_| unit(6))?;
    if !(0xdc00..0xe000).contains(&low) {
        return None;
    }
    Some((char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00))?, 10))
}

//! A template's text to nodes.

use super::functions::Function;
use super::value::Value;
use super::{Command, Node, Pipe, TEMPLATE_DEPTH_MAX, Term};

/// A piece of the text between two actions, or an action's inside.
enum Piece<'a> {
    Text(&'a str),
    Action(&'a str),
}

pub fn parse(text: &str) -> Result<Vec<Node>, String> {
    let pieces = pieces(text)?;
    let mut at = 0;
    let (nodes, end) = block(&pieces, &mut at, 0)?;
    match end {
        None => Ok(nodes),
        Some(word) => Err(format!("unexpected {{{{{word}}}}}")),
    }
}

fn pieces(text: &str) -> Result<Vec<Piece<'_>>, String> {
    let mut pieces = vec![];
    let mut rest = text;
    let mut trims = false;
    while !rest.is_empty() {
        let start = rest.find("{{").unwrap_or(rest.len());
        let (mut before, after) = rest.split_at(start);
        if trims {
            before = before.trim_start();
        }
        let Some(inside) = after.strip_prefix("{{") else {
            pieces.push(Piece::Text(before));
            break;
        };
        // A minus trims only when a blank stands between it and what follows.
        let trims_before = inside.starts_with("- ") || inside.starts_with("-\n") || inside.starts_with("-\t");
        let inside = if trims_before { &inside[1..] } else { inside };
        if trims_before {
            before = before.trim_end();
        }
        pieces.push(Piece::Text(before));
        let end = action_end(inside).ok_or("unclosed action")?;
        let (action, after) = (&inside[..end], &inside[end + 2..]);
        trims = action.len() >= 2 && action.ends_with('-') && action[..action.len() - 1].ends_with([' ', '\n', '\t']);
        let action = if trims { &action[..action.len() - 1] } else { action };
        let action = action.trim();
        if !(action.starts_with("/*") && action.ends_with("*/")) {
            pieces.push(Piece::Action(action));
        }
        rest = after;
    }
    Ok(pieces)
}

/// Where the `}}` of an action is, strings aside.
fn action_end(inside: &str) -> Option<usize> {
    let bytes = inside.as_bytes();
    let mut quote = None;
    let mut i = 0;
    while i < bytes.len() {
        match (quote, bytes[i]) {
            (Some(b'"' | b'\''), b'\\') => i += 1,
            (Some(q), b) if q == b => quote = None,
            (Some(_), _) => {}
            (None, b @ (b'"' | b'`' | b'\'')) => quote = Some(b),
            (None, b'}') if bytes.get(i + 1) == Some(&b'}') => return Some(i),
            _ => {}
        }
        i += 1;
    }
    None
}

/// Nodes up to `end`, `else …` or the end of the text; and which of them it was.
fn block<'a>(pieces: &[Piece<'a>], at: &mut usize, depth: usize) -> Result<(Vec<Node>, Option<&'a str>), String> {
    if depth > TEMPLATE_DEPTH_MAX {
        return Err(format!("blocks are more than {TEMPLATE_DEPTH_MAX} deep"));
    }
    let mut nodes = vec![];
    while let Some(piece) = pieces.get(*at) {
        *at += 1;
        let action = match piece {
            Piece::Text("") => continue,
            Piece::Text(text) => {
                nodes.push(Node::Text((*text).to_owned()));
                continue;
            }
            Piece::Action(action) => *action,
        };
        let (word, rest) = action.split_once(char::is_whitespace).unwrap_or((action, ""));
        match word {
            "end" | "else" => return Ok((nodes, Some(action))),
            "if" | "with" | "range" => nodes.push(branch(word, rest, pieces, at, depth)?),
            "define" | "template" | "block" | "break" | "continue" => {
                return Err(format!("{{{{{word}}}}} is not supported"));
            }
            _ => nodes.push(Node::Show(pipe(action)?)),
        }
    }
    Ok((nodes, None))
}

fn branch(word: &str, of: &str, pieces: &[Piece], at: &mut usize, depth: usize) -> Result<Node, String> {
    let of = pipe(of)?;
    let (then, end) = block(pieces, at, depth + 1)?;
    let otherwise = match end.map(|e| (e, e.strip_prefix("else").map(str::trim))) {
        None => return Err(format!("{{{{{word}}}}} has no {{{{end}}}}")),
        Some((_, None)) => vec![],
        Some((_, Some(""))) => {
            let (nodes, end) = block(pieces, at, depth + 1)?;
            if end != Some("end") {
                return Err("{{else}} has no {{end}}".to_owned());
            }
            nodes
        }
        // `else if` ends with the `end` of the whole.
        Some((_, Some(again))) => {
            let (word, of) = again.split_once(char::is_whitespace).unwrap_or((again, ""));
            if !matches!(word, "if" | "with") {
                return Err(format!("unexpected {{{{else {again}}}}}"));
            }
            vec![branch(word, of, pieces, at, depth + 1)?]
        }
    };
    Ok(match word {
        "if" => Node::If {
            test: of,
            then,
            otherwise,
        },
        "with" => Node::With { of, then, otherwise },
        _ => Node::Range {
            of,
            each: then,
            otherwise,
        },
    })
}

fn pipe(text: &str) -> Result<Pipe, String> {
    let mut reader = Reader { rest: text, depth: 0 };
    let pipe = reader.pipe()?;
    reader.blank();
    if reader.rest.is_empty() {
        Ok(pipe)
    } else {
        Err(format!("unexpected {:?} in an action", reader.rest))
    }
}

struct Reader<'a> {
    rest: &'a str,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn blank(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, sign: &str) -> bool {
        self.blank();
        let Some(rest) = self.rest.strip_prefix(sign) else {
            return false;
        };
        self.rest = rest;
        true
    }

    fn word(&mut self) -> &'a str {
        let len = self
            .rest
            .find(|c: char| !(c.is_alphanumeric() || c == '_'))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(len);
        self.rest = rest;
        word
    }

    fn pipe(&mut self) -> Result<Pipe, String> {
        self.depth += 1;
        if self.depth > TEMPLATE_DEPTH_MAX {
            return Err(format!("parentheses are more than {TEMPLATE_DEPTH_MAX} deep"));
        }
        let (variables, declares) = self.variables();
        let mut commands = vec![self.command(true)?];
        while self.take("|") {
            commands.push(self.command(false)?);
        }
        self.depth -= 1;
        Ok(Pipe {
            variables,
            declares,
            commands,
        })
    }

    /// `$a, $b :=`, if that is what comes.
    fn variables(&mut self) -> (Vec<String>, bool) {
        let before = self.rest;
        let mut names = vec![];
        loop {
            if !self.take("$") {
                break;
            }
            names.push(self.word().to_owned());
            if !self.take(",") {
                break;
            }
        }
        if !names.is_empty() && self.take(":=") {
            return (names, true);
        }
        if names.len() == 1 && self.take("=") {
            return (names, false);
        }
        self.rest = before;
        (vec![], false)
    }

    fn command(&mut self, is_first: bool) -> Result<Command, String> {
        let mut terms = vec![];
        loop {
            self.blank();
            match self.rest.chars().next() {
                None | Some('|' | ')') => break,
                Some(_) => terms.push(self.term()?),
            }
        }
        match terms.first() {
            None => return Err("missing value for command".to_owned()),
            Some(Term::Function(_)) => {}
            Some(_) if terms.len() == 1 && is_first => {}
            Some(_) => return Err("only a function takes arguments".to_owned()),
        }
        let regex = match &terms[..] {
            [Term::Function(f), Term::Literal(Value::Text(pattern)), ..] if f.takes_regex() => {
                Some(super::functions::regex(pattern)?)
            }
            _ => None,
        };
        Ok(Command { terms, regex })
    }

    /// `.a.b` behind something.
    fn path(&mut self) -> Vec<String> {
        let mut path = vec![];
        while let Some(rest) = self.rest.strip_prefix('.') {
            self.rest = rest;
            let name = self.word();
            if name.is_empty() {
                break;
            }
            path.push(name.to_owned());
        }
        path
    }

    fn term(&mut self) -> Result<Term, String> {
        let c = self.rest.chars().next().unwrap_or(' ');
        match c {
            '(' => {
                self.rest = &self.rest[1..];
                let pipe = self.pipe()?;
                if !self.take(")") {
                    return Err("unclosed left paren".to_owned());
                }
                Ok(Term::Pipe(Box::new(pipe), self.path()))
            }
            '.' if !self.rest[1..].starts_with(|c: char| c.is_ascii_digit()) => Ok(Term::Field(self.path())),
            '$' => {
                self.rest = &self.rest[1..];
                let name = self.word().to_owned();
                Ok(Term::Variable(name, self.path()))
            }
            '"' | '`' | '\'' => self.string(c).map(Term::Literal),
            c if c.is_ascii_digit() || matches!(c, '.' | '-' | '+') => self.number().map(Term::Literal),
            c if c.is_alphabetic() || c == '_' => {
                let word = self.word();
                Ok(match word {
                    "true" => Term::Literal(Value::Bool(true)),
                    "false" => Term::Literal(Value::Bool(false)),
                    "nil" => Term::Literal(Value::Nil),
                    _ => Term::Function(Function::find(word).ok_or_else(|| format!("function {word:?} not defined"))?),
                })
            }
            c => Err(format!("unexpected {c:?} in an action")),
        }
    }

    fn string(&mut self, quote: char) -> Result<Value, String> {
        let mut end = 1;
        let bytes = self.rest.as_bytes();
        loop {
            match bytes.get(end) {
                None => return Err("unterminated quoted string".to_owned()),
                Some(b'\\') if quote != '`' => end += 2,
                Some(b) if *b as char == quote => break,
                Some(_) => end += 1,
            }
        }
        let written = self.rest.get(..=end).ok_or("unterminated quoted string")?;
        self.rest = &self.rest[end + 1..];
        let text = match hindcast_promql::lexer::tokens(written, hindcast_promql::lexer::Dialect::PromQl) {
            Ok(tokens) => match tokens.into_iter().next() {
                Some((hindcast_promql::lexer::Token::String(text), _)) => text,
                _ => return Err(format!("bad string {written}")),
            },
            Err(_) => return Err(format!("bad string {written}")),
        };
        if quote == '\'' {
            // A character is its number.
            let mut chars = text.chars();
            return match (chars.next(), chars.next()) {
                (Some(c), None) => Ok(Value::Int(i64::from(u32::from(c)))),
                _ => Err(format!("malformed character constant: {written}")),
            };
        }
        Ok(Value::Text(text))
    }

    fn number(&mut self) -> Result<Value, String> {
        let len = self
            .rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+' | '_')))
            .unwrap_or(self.rest.len());
        let (written, rest) = self.rest.split_at(len);
        self.rest = rest;
        let plain = written.replace('_', "");
        if let Some(hex) = plain.strip_prefix("0x") {
            return i64::from_str_radix(hex, 16)
                .map(Value::Int)
                .map_err(|_| format!("bad number syntax: {written:?}"));
        }
        if let Ok(i) = plain.parse() {
            return Ok(Value::Int(i));
        }
        let float = plain.parse().ok().filter(|f: &f64| f.is_finite());
        float
            .map(Value::Float)
            .ok_or_else(|| format!("bad number syntax: {written:?}"))
    }
}

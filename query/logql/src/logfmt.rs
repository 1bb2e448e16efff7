//! The parser `logfmt`: `key=value key="quoted value" flag`.

use crate::json::{text, unescaped};
use std::borrow::Cow;

/// Calls `pair` with each key and value; a key alone has an empty value. Of pairs that cannot be read, `bad` hears why,
/// and says whether to go on behind them.
pub fn pairs<'a>(line: &'a [u8], pair: &mut dyn FnMut(&'a [u8], Cow<'a, str>), bad: &mut dyn FnMut(String) -> bool) {
    let mut at = 0;
    let is_blank = |b: &u8| *b <= b' ';
    loop {
        while line.get(at).is_some_and(is_blank) {
            at += 1;
        }
        if at >= line.len() {
            return;
        }
        match one(line, &mut at) {
            Ok((key, value)) => pair(key, value),
            Err(why) => {
                let place = at + 1;
                while line.get(at).is_some_and(|b| !is_blank(b)) {
                    at += 1;
                }
                if !bad(format!("logfmt syntax error at pos {place} : {why}")) {
                    return;
                }
            }
        }
    }
}

fn one<'a>(line: &'a [u8], at: &mut usize) -> Result<(&'a [u8], Cow<'a, str>), &'static str> {
    let start = *at;
    loop {
        match line.get(*at) {
            Some(b'=') if *at == start => return Err("unexpected '='"),
            Some(b'"') => return Err("unexpected '\"'"),
            Some(b'=') => break,
            Some(b) if *b > b' ' => *at += 1,
            _ => return Ok((&line[start..*at], Cow::Borrowed(""))),
        }
    }
    let key = &line[start..*at];
    *at += 1;
    if line.get(*at) == Some(&b'"') {
        return quoted(line, at).map(|value| (key, value));
    }
    let start = *at;
    loop {
        match line.get(*at) {
            Some(b'=') => return Err("unexpected '='"),
            Some(b'"') => return Err("unexpected '\"'"),
            Some(b) if *b > b' ' => *at += 1,
            _ => return Ok((key, text(&line[start..*at]))),
        }
    }
}

fn quoted<'a>(line: &'a [u8], at: &mut usize) -> Result<Cow<'a, str>, &'static str> {
    *at += 1;
    let start = *at;
    loop {
        match line.get(*at) {
            None => {
                *at = line.len();
                return Err("unterminated quoted value");
            }
            Some(b'"') => break,
            Some(b'\\') => *at += 2,
            Some(_) => *at += 1,
        }
    }
    *at += 1;
    Ok(unescaped(&line[start..*at - 1]))
}

/// A key as a label's name.
pub fn push_name(name: &mut String, key: &[u8]) {
    name.clear();
    crate::json::push_name(name, &text(key));
}

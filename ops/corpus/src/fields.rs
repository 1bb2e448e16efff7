//! Protobuf bodies as text: a number is a field, then its value; whatever is wrong on the wire can be written, too.
//!
//! | Written | Bytes |
//! |---|---|
//! | `3 { … }` | field 3, length-delimited: what stands inside |
//! | `3 "text"` | field 3, length-delimited; escapes `\n \r \t \0 \" \\ \xff`, and `\i` is the number of the repetition |
//! | `3 fill 70000 "x"` | field 3, the text so many times |
//! | `3 int -1`, `3 sint -1` | field 3, varint, plain or zigzag |
//! | `3 f64 NaN`, `3 bits 7ff0000000000002` | field 3, 64 bits: a double, or as given |
//! | `3 fixed 17` | field 3, 64 bits: an integer |
//! | `times 100 { … }` | what stands inside, so many times |
//! | `nest 3 10000 { … }`, `nest 3,4 10000 { … }` | field 3 in field 3 …, or 3 and 4 in turn, so deep |
//! | `raw "text"`, `raw fill 9 "x"`, `raw hex 0aff`, `raw int 300` | without a field |
//!
//! `#` begins a comment.

use crate::expand::{BYTES_MAX, hex};
use anyhow::{Context, Result, bail, ensure};

const DEPTH_MAX: i32 = 100;

/// The bytes of such a text.
pub fn encode(text: &str) -> Result<Vec<u8>> {
    let tokens = tokens(text)?;
    let mut depth = 0;
    for token in &tokens {
        depth += i32::from(*token == Token::Open) - i32::from(*token == Token::Close);
        ensure!(depth <= DEPTH_MAX, "more than {DEPTH_MAX} deep: use nest");
    }
    let mut at = 0;
    let out = items(&tokens, &mut at, 0)?;
    ensure!(at == tokens.len(), "a }} too many");
    Ok(out)
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Open,
    Close,
    Word(String),
    Text(Vec<u8>, Vec<usize>),
}

fn tokens(text: &str) -> Result<Vec<Token>> {
    let mut tokens = vec![];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '#' => while chars.next_if(|c| *c != '\n').is_some() {},
            '{' => tokens.push(Token::Open),
            '}' => tokens.push(Token::Close),
            '"' => {
                let (mut bytes, mut counters) = (vec![], vec![]);
                loop {
                    match chars.next().context("a text without its end")? {
                        '"' => break,
                        '\\' => match chars.next().context("a text without its end")? {
                            'n' => bytes.push(b'\n'),
                            'r' => bytes.push(b'\r'),
                            't' => bytes.push(b'\t'),
                            '0' => bytes.push(0),
                            'i' => counters.push(bytes.len()),
                            'x' => {
                                let digits: String = chars.by_ref().take(2).collect();
                                bytes.extend(hex(digits.as_bytes())?);
                            }
                            c @ ('"' | '\\') => bytes.push(c as u8),
                            other => bail!("\\{other} is not known"),
                        },
                        c => bytes.extend(c.encode_utf8(&mut [0; 4]).bytes()),
                    }
                }
                tokens.push(Token::Text(bytes, counters));
            }
            c if c.is_whitespace() => {}
            c => {
                let mut word = String::from(c);
                while let Some(c) = chars.next_if(|c| !c.is_whitespace() && !"{}\"#".contains(*c)) {
                    word.push(c);
                }
                tokens.push(Token::Word(word));
            }
        }
    }
    Ok(tokens)
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn delimited(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    varint(out, field << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

struct Reader<'t> {
    tokens: &'t [Token],
    at: &'t mut usize,
}

impl Reader<'_> {
    fn next(&mut self) -> Result<&Token> {
        let token = self.tokens.get(*self.at).context("the text ends too early")?;
        *self.at += 1;
        Ok(token)
    }

    fn word(&mut self) -> Result<String> {
        match self.next()? {
            Token::Word(word) => Ok(word.clone()),
            other => bail!("{other:?} where a word belongs"),
        }
    }

    fn number(&mut self) -> Result<i128> {
        let word = self.word()?;
        word.parse().with_context(|| format!("{word:?} is no whole number"))
    }

    fn text(&mut self, i: usize) -> Result<Vec<u8>> {
        match self.next()? {
            Token::Text(bytes, counters) => Ok(counted(bytes, counters, i)),
            other => bail!("{other:?} where a text belongs"),
        }
    }

    fn fill(&mut self, i: usize) -> Result<Vec<u8>> {
        let count = usize::try_from(self.number()?)?;
        let text = self.text(i)?;
        ensure!(count * text.len() <= BYTES_MAX, "more than {BYTES_MAX} bytes");
        Ok(text.repeat(count))
    }

    fn block(&mut self, i: usize) -> Result<Vec<u8>> {
        ensure!(*self.next()? == Token::Open, "a {{ belongs here");
        let inner = items(self.tokens, self.at, i)?;
        ensure!(*self.next()? == Token::Close, "a }} belongs here");
        Ok(inner)
    }
}

fn counted(bytes: &[u8], counters: &[usize], i: usize) -> Vec<u8> {
    let mut out = vec![];
    let mut from = 0;
    for at in counters {
        out.extend(&bytes[from..*at]);
        out.extend(i.to_string().bytes());
        from = *at;
    }
    out.extend(&bytes[from..]);
    out
}

/// Up to a `}` or the end.
fn items(tokens: &[Token], at: &mut usize, i: usize) -> Result<Vec<u8>> {
    let mut out = vec![];
    while let Some(token) = tokens.get(*at) {
        let word = match token {
            Token::Close => break,
            Token::Word(word) => word.clone(),
            other => bail!("{other:?} where a field belongs"),
        };
        *at += 1;
        let mut reader = Reader { tokens, at };
        match word.as_str() {
            "times" => {
                let count = usize::try_from(reader.number()?)?;
                let begin = *reader.at;
                for i in 0..count.max(1) {
                    *reader.at = begin;
                    let inner = reader.block(i)?;
                    ensure!(out.len() + inner.len() <= BYTES_MAX, "more than {BYTES_MAX} bytes");
                    out.extend(inner.iter().take(if count == 0 { 0 } else { usize::MAX }));
                }
            }
            "nest" => {
                let fields = reader.word()?;
                let fields: Vec<u64> = fields.split(',').map(str::parse).collect::<Result<_, _>>()?;
                let depth = usize::try_from(reader.number()?)?;
                let mut inner = reader.block(i)?;
                // From the inside; each layer's head is prepended at the end, so that depth costs no copies.
                let mut heads = vec![];
                let mut len = inner.len();
                for layer in (0..depth).rev() {
                    let mut head = vec![];
                    varint(&mut head, fields[layer % fields.len()] << 3 | 2);
                    varint(&mut head, len as u64);
                    len += head.len();
                    heads.push(head);
                }
                heads.into_iter().rev().for_each(|h| out.extend(h));
                out.append(&mut inner);
            }
            "raw" => raw(&mut reader, i, &mut out)?,
            field => {
                let field: u64 = field.parse().with_context(|| format!("{field:?} is no field"))?;
                value(&mut reader, field, i, &mut out)?;
            }
        }
    }
    Ok(out)
}

fn raw(reader: &mut Reader<'_>, i: usize, out: &mut Vec<u8>) -> Result<()> {
    if let Token::Text(bytes, counters) = &reader.tokens.get(*reader.at).context("raw, then what?")? {
        *reader.at += 1;
        out.extend(counted(bytes, counters, i));
        return Ok(());
    }
    match reader.word()?.as_str() {
        "hex" => {
            let digits = reader.word()?;
            out.extend(hex(digits.as_bytes())?);
        }
        "fill" => out.extend(reader.fill(i)?),
        "int" => varint(out, reader.number()? as u64),
        other => bail!("raw {other} is not known"),
    }
    Ok(())
}

fn value(reader: &mut Reader<'_>, field: u64, i: usize, out: &mut Vec<u8>) -> Result<()> {
    match reader.tokens.get(*reader.at).context("a field without a value")? {
        Token::Open => {
            let inner = reader.block(i)?;
            delimited(out, field, &inner);
            return Ok(());
        }
        Token::Text(..) => {
            let text = reader.text(i)?;
            delimited(out, field, &text);
            return Ok(());
        }
        _ => {}
    }
    let word = reader.word()?;
    match word.as_str() {
        "fill" => {
            let text = reader.fill(i)?;
            delimited(out, field, &text);
        }
        "int" | "sint" => {
            let n = reader.number()?;
            varint(out, field << 3);
            // Beyond 64 bits it wraps round, as on the wire.
            let n = if word == "int" {
                n as u64
            } else {
                ((n << 1) ^ (n >> 127)) as u64
            };
            varint(out, n);
        }
        "f64" | "bits" | "fixed" => {
            let text = reader.word()?;
            let bits = match word.as_str() {
                "f64" => text.parse::<f64>().context("a number")?.to_bits(),
                "bits" => u64::from_str_radix(&text, 16).context("hex digits")?,
                _ => text.parse::<i128>().context("a whole number")? as u64,
            };
            varint(out, field << 3 | 1);
            out.extend(bits.to_le_bytes());
        }
        other => bail!("{other:?} is no value of a field"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(text: &str, want: &Expect) {
        let got = encode(text);
        let shown = |b: Vec<u8>| b.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ");
        want.assert_eq(&got.map_or_else(|e| format!("{e:#}"), shown));
    }

    #[test]
    fn what_is_written_is_what_is_on_the_wire() {
        check(
            r#"1 { 1 "ab" 2 int 300 } # end"#,
            &expect!["0a 07 0a 02 61 62 10 ac 02"],
        );
        check("2 int -1", &expect!["10 ff ff ff ff ff ff ff ff ff 01"]);
        check("2 sint -1 2 sint 1", &expect!["10 01 10 02"]);
        check("1 f64 1.5", &expect!["09 00 00 00 00 00 00 f8 3f"]);
        check("1 bits 7ff0000000000002", &expect!["09 02 00 00 00 00 00 f0 7f"]);
        check("1 fixed -1", &expect!["09 ff ff ff ff ff ff ff ff"]);
        check(r#"times 2 { 1 "l\i" }"#, &expect!["0a 02 6c 30 0a 02 6c 31"]);
        check(r#"1 fill 3 "x""#, &expect!["0a 03 78 78 78"]);
        check("nest 1 3 { 2 int 1 }", &expect!["0a 06 0a 04 0a 02 10 01"]);
        check("nest 1,5 3 { 2 int 1 }", &expect!["0a 06 2a 04 0a 02 10 01"]);
        check(r#"raw hex 0aff raw "a\x00" raw int 300"#, &expect!["0a ff 61 00 ac 02"]);
        check("1 {", &expect!["the text ends too early"]);
        check("1 what 2", &expect![[r#""what" is no value of a field"#]]);
    }
}

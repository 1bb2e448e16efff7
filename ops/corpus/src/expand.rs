//! `<<…>>` in a case: what would be too long, not printable, or another one every day.

use anyhow::{Context, Result, bail, ensure};

/// No case makes more bytes.
pub const BYTES_MAX: usize = 64 << 20;

/// What expansions need to know.
#[derive(Clone, Debug)]
pub struct World {
    /// Milliseconds since the Unix epoch.
    pub now_ms: i64,
    /// Unlike that of other cases, and of letters, digits and underscores.
    pub id: String,
}

/// `text` with every `<<…>>` replaced; inner ones first.
pub fn expand(text: &[u8], world: &World) -> Result<Vec<u8>> {
    let mut out = vec![];
    let mut at = 0;
    while at < text.len() {
        let plain = text[at..].windows(2).position(|w| w == b"<<");
        let plain = plain.unwrap_or(text.len() - at);
        out.extend_from_slice(&text[at..at + plain]);
        at += plain;
        if at == text.len() {
            break;
        }
        let end = closing(&text[at..]).context("a << without its >>")?;
        let inner = expand(&text[at + 2..at + end], world)?;
        apply(&inner, world, &mut out)?;
        ensure!(out.len() <= BYTES_MAX, "more than {BYTES_MAX} bytes");
        at += end + 2;
    }
    Ok(out)
}

pub fn expand_text(text: &str, world: &World) -> Result<String> {
    String::from_utf8(expand(text.as_bytes(), world)?).context("this must be text")
}

/// Where the `>>` stands that closes the `<<` at the beginning.
fn closing(text: &[u8]) -> Option<usize> {
    let (mut depth, mut at) = (0, 0);
    while at + 1 < text.len() {
        match &text[at..at + 2] {
            b"<<" => {
                depth += 1;
                at += 2;
            }
            b">>" => {
                depth -= 1;
                if depth == 0 {
                    return Some(at);
                }
                at += 2;
            }
            _ => at += 1,
        }
    }
    None
}

fn apply(inner: &[u8], world: &World, out: &mut Vec<u8>) -> Result<()> {
    let (word, rest) = match inner.iter().position(|b| *b == b' ') {
        Some(at) => (&inner[..at], &inner[at + 1..]),
        None => (inner, &b""[..]),
    };
    let word = std::str::from_utf8(word)?;
    match word {
        "id" => out.extend(world.id.as_bytes()),
        "nul" => out.push(0),
        "cr" => out.push(b'\r'),
        "lf" => out.push(b'\n'),
        "now_s" | "now_ms" | "now_us" | "now_ns" => {
            let ms = i128::from(world.now_ms) + span_ms(std::str::from_utf8(rest)?.trim())?;
            let n = match word {
                "now_s" => ms / 1000,
                "now_ms" => ms,
                "now_us" => ms * 1000,
                _ => ms * 1_000_000,
            };
            out.extend(n.to_string().as_bytes());
        }
        "hex" => out.extend(hex(rest)?),
        // Percent encoding, for URLs.
        "url" => {
            for byte in rest {
                match byte {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(*byte),
                    _ => out.extend(format!("%{byte:02X}").bytes()),
                }
            }
        }
        // How many bytes follow, as octet counting of syslog says it.
        "counted" => {
            out.extend(format!("{} ", rest.len()).bytes());
            out.extend(rest);
        }
        "repeat" | "seq" => {
            let at = rest.iter().position(|b| *b == b' ').context("a count, then what")?;
            let count: usize = std::str::from_utf8(&rest[..at])?.parse().context("a count")?;
            let what = &rest[at + 1..];
            ensure!(
                out.len() + count * what.len() <= BYTES_MAX,
                "more than {BYTES_MAX} bytes"
            );
            if word == "repeat" {
                out.extend(what.repeat(count));
                return Ok(());
            }
            let what = std::str::from_utf8(what)?;
            for i in 0..count {
                out.extend(what.replace('%', &i.to_string()).bytes());
            }
        }
        other => bail!("<<{other}…>> is not known: see chaos-tests/corpus/README.md"),
    }
    Ok(())
}

/// `+1h`, `-30d`, or nothing.
fn span_ms(text: &str) -> Result<i128> {
    if text.is_empty() {
        return Ok(0);
    }
    let at = text
        .find(|c: char| c.is_ascii_alphabetic())
        .context("a unit: ms, s, m, h, d")?;
    let n: i128 = text[..at].parse().context("a number with its sign")?;
    Ok(n * match &text[at..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        other => bail!("{other:?} is none of ms, s, m, h, d"),
    })
}

/// Bytes from hex digits, blanks between them or not.
pub fn hex(text: &[u8]) -> Result<Vec<u8>> {
    let digits: Vec<u8> = text.iter().copied().filter(|b| !b.is_ascii_whitespace()).collect();
    ensure!(digits.len().is_multiple_of(2), "hex digits come in pairs");
    let pairs = digits.chunks(2);
    pairs
        .map(|p| u8::from_str_radix(std::str::from_utf8(p)?, 16).context("hex digits"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(text: &str, want: &Expect) {
        let world = World {
            now_ms: 1_700_000_000_000,
            id: "a_b".into(),
        };
        let got = expand(text.as_bytes(), &world);
        want.assert_eq(&got.map_or_else(|e| format!("{e:#}"), |b| b.escape_ascii().to_string()));
    }

    #[test]
    fn what_stands_between_angle_brackets_is_made() {
        check("a <<repeat 3 x>> b", &expect!["a xxx b"]);
        check("<<seq 3 l%,>>", &expect!["l0,l1,l2,"]);
        check("<<now_ns -1h>> <<now_s>>", &expect!["1699996400000000000 1700000000"]);
        check("<<hex ff 00>><<nul>>", &expect![[r"\xff\x00\x00"]]);
        check("<<url a b<<repeat 2 {>>>>", &expect!["a%20b%7B%7B"]);
        check("<<counted <14>hi>>", &expect!["6 <14>hi"]);
        check("<<id>> < 3 >> 2", &expect!["a_b < 3 >> 2"]);
        check(
            "<<what>>",
            &expect!["<<what…>> is not known: see chaos-tests/corpus/README.md"],
        );
        check("<<repeat 1000000000 x>>", &expect!["more than 67108864 bytes"]);
    }
}

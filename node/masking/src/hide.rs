//! Writes text with parts of it hidden.

use crate::escapes::{percent, unicode};
use crate::text::char_at;

/// What is to be hidden: bytes `from..to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Veil {
    pub from: usize,
    pub to: usize,
    pub character: u8,
    /// Also what is neither letter nor digit.
    pub whole: bool,
}

/// Whether a character begins here: a veil that begins within one hides all of it.
fn begin_of_char(text: &[u8], at: usize) -> usize {
    (0..=at.min(3))
        .find(|back| char_at(text, at - back).is_some_and(|(_, len)| len > *back))
        .map_or(at, |back| at - back)
}

/// Writes `text` to `out`. Veils are sorted by their beginnings; they may overlap.
pub(crate) fn write(text: &[u8], veils: &[Veil], out: &mut Vec<u8>) {
    out.clear();
    out.reserve(text.len());
    let mut at = 0;
    for veil in veils {
        let from = begin_of_char(text, veil.from.min(text.len())).max(at);
        if from >= veil.to {
            continue;
        }
        out.extend_from_slice(&text[at..from]);
        at = from;
        while at < veil.to {
            at += one(text, at, veil, out);
        }
    }
    out.extend_from_slice(text.get(at..).unwrap_or_default());
}

/// Writes one character, escaped or not; the bytes it takes.
fn one(text: &[u8], at: usize, veil: &Veil, out: &mut Vec<u8>) -> usize {
    let (c, len) = match text[at] {
        b'%' => escaped_char(text, at).unwrap_or((Some('%'), 1)),
        b'\\' => match unicode(text, at) {
            Some((c, len)) => (Some(c), len),
            // An escape of JSON stays one: both of its bytes, or the text would not be JSON any more.
            None if matches!(
                text.get(at + 1),
                Some(b'"' | b'\\' | b'/' | b'n' | b'r' | b't' | b'b' | b'f')
            ) =>
            {
                out.extend_from_slice(&text[at..at + 2]);
                return 2;
            }
            None => (Some('\\'), 1),
        },
        _ => char_at(text, at).map_or((None, 1), |(c, len)| (Some(c), len)),
    };
    // What is no character has no reason to stay.
    if c.is_none_or(|c| veil.whole || c.is_alphanumeric()) {
        out.push(veil.character);
    } else {
        out.extend_from_slice(&text[at..at + len]);
    }
    len
}

/// A character written as one or several `%XX`; `None` inside when those bytes are no character.
fn escaped_char(text: &[u8], at: usize) -> Option<(Option<char>, usize)> {
    let mut bytes = [percent(text, at)?, 0, 0, 0];
    let len = match bytes[0] {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => 1,
    };
    for (i, byte) in bytes.iter_mut().enumerate().take(len).skip(1) {
        match percent(text, at + 3 * i) {
            Some(b) => *byte = b,
            None => return Some((None, 3)),
        }
    }
    Some(match char_at(&bytes[..len], 0) {
        Some((c, _)) => (Some(c), 3 * len),
        None => (None, 3),
    })
}

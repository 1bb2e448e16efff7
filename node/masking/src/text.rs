//! What all matchers need of text: runs of digits, characters, what parts numbers, what stands beside them.
//!
//! Text is bytes, mostly UTF-8. No function reads further than a bound from where it is asked, or each byte more than
//! a fixed number of times.

/// How far before a match a word is looked for that tells what the match is.
const CONTEXT_BYTES: usize = 32;

/// Sets bit `i % 64` of word `i / 64` for every ASCII digit.
pub(crate) fn digit_bits(text: &[u8], bits: &mut Vec<u64>) {
    const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    bits.clear();
    let word = |eight: [u8; 8]| {
        // After the exclusive or a digit is 0 to 9; what is larger reaches the high bit, or had it.
        let x = u64::from_le_bytes(eight) ^ 0x3030_3030_3030_3030;
        let digits = !(((x & LOW) + 0x7676_7676_7676_7676) | x) & HIGH;
        (digits >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56
    };
    let mut blocks = text.chunks_exact(64);
    for block in &mut blocks {
        let (eights, _) = block.as_chunks::<8>();
        bits.push(eights.iter().rev().fold(0, |all, e| (all << 8) | word(*e)));
    }
    let rest = blocks.remainder();
    if !rest.is_empty() {
        let mut last = [0u8; 64];
        last[..rest.len()].copy_from_slice(rest);
        let (eights, _) = last.as_chunks::<8>();
        bits.push(eights.iter().rev().fold(0, |all, e| (all << 8) | word(*e)));
    }
}

/// Runs of ones, as ranges, in order.
pub(crate) struct Runs<'a> {
    bits: &'a [u64],
    #[cfg(test)]
    at: usize,
}

impl<'a> Runs<'a> {
    pub const fn new(bits: &'a [u64]) -> Self {
        Self {
            bits,
            #[cfg(test)]
            at: 0,
        }
    }

    /// Where the run that begins at `start` ends.
    pub fn end(&self, start: usize) -> usize {
        self.seek(start, false)
    }

    /// The first place from `at` on whose bit is `ones`; the end when there is none.
    #[inline]
    fn seek(&self, at: usize, ones: bool) -> usize {
        let flip = if ones { 0 } else { u64::MAX };
        let mut word = at / 64;
        let Some(first) = self.bits.get(word) else {
            return self.bits.len() * 64;
        };
        let mut left = (first ^ flip) & (u64::MAX << (at % 64));
        while left == 0 {
            word += 1;
            match self.bits.get(word) {
                Some(next) => left = next ^ flip,
                None => return self.bits.len() * 64,
            }
        }
        word * 64 + left.trailing_zeros() as usize
    }
}

#[cfg(test)]
impl Iterator for Runs<'_> {
    type Item = (usize, usize);

    #[inline]
    fn next(&mut self) -> Option<(usize, usize)> {
        let start = self.seek(self.at, true);
        if start >= self.bits.len() * 64 {
            return None;
        }
        self.at = self.seek(start, false);
        Some((start, self.at))
    }
}

/// How many digits stand from `at` on; looks at no more than 32.
pub(crate) fn digits_at(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    rest.iter().take(32).take_while(|b| b.is_ascii_digit()).count()
}

/// Whether exactly `wanted` digits stand from `at` on.
pub(crate) fn exactly(text: &[u8], at: usize, wanted: usize) -> bool {
    digits_at(text, at) == wanted
}

pub(crate) fn before(text: &[u8], at: usize) -> Option<u8> {
    at.checked_sub(1).map(|i| text[i])
}

/// The character at `at` and its bytes; `None` at the end and where the text is no UTF-8.
pub(crate) fn char_at(text: &[u8], at: usize) -> Option<(char, usize)> {
    let rest = text.get(at..)?;
    let first = *rest.first()?;
    if first < 0x80 {
        return Some((char::from(first), 1));
    }
    let len = match first {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return None,
    };
    let c = std::str::from_utf8(rest.get(..len)?).ok()?.chars().next()?;
    Some((c, len))
}

/// The character that ends before `at`.
pub(crate) fn char_before(text: &[u8], at: usize) -> Option<char> {
    (1..=at.min(4)).find_map(|back| char_at(text, at - back).filter(|(_, len)| *len == back).map(|(c, _)| c))
}

pub(crate) const fn is_hangul(c: char) -> bool {
    matches!(c, '가'..='힣')
}

/// What stands between two blocks of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gap {
    Dash,
    Space,
    Dot,
    Other,
}

/// A hyphen of any kind.
fn dash(text: &[u8], at: usize) -> usize {
    match text.get(at) {
        Some(b'-') => 1,
        Some(0xe2 | 0xef | 0xe3) => match char_at(text, at) {
            Some(('\u{2010}'..='\u{2015}' | '\u{2212}' | '\u{ff0d}' | '\u{30fc}' | 'ㅡ', len)) => len,
            _ => 0,
        },
        _ => 0,
    }
}

/// A blank; between words also the `+` of a form's encoding.
fn blank(text: &[u8], at: usize) -> usize {
    match text.get(at) {
        Some(b' ' | b'\t' | b'+') => 1,
        Some(0xc2 | 0xe3) => match char_at(text, at) {
            Some(('\u{a0}' | '\u{3000}', len)) => len,
            _ => 0,
        },
        _ => 0,
    }
}

/// A gap from `at` on, and where it ends: a hyphen or dot, or a bracket that closes, with at most one blank on each
/// side; or one blank.
pub(crate) fn gap(text: &[u8], at: usize) -> Option<(Gap, usize)> {
    let mut end = at;
    let mut kind = None;
    if text.get(end) == Some(&b')') {
        (end, kind) = (end + 1, Some(Gap::Other));
    }
    let first = blank(text, end);
    end += first;
    let hyphen = dash(text, end);
    if hyphen > 0 {
        end += hyphen;
        return Some((Gap::Dash, end + blank(text, end)));
    }
    if first == 0 && kind.is_none() {
        return match text.get(end) {
            Some(b'.') => Some((Gap::Dot, end + 1)),
            Some(b'_' | b'/' | b'~') => Some((Gap::Other, end + 1)),
            _ => None,
        };
    }
    if first > 0 {
        kind = kind.or(Some(Gap::Space));
    }
    kind.map(|k| (k, end))
}

/// Whether the text ends before `at` with a digit and one of `seps`: a longer number goes on there.
pub(crate) fn joined_before(text: &[u8], at: usize, seps: &[u8]) -> bool {
    at >= 2 && seps.contains(&text[at - 1]) && text[at - 2].is_ascii_digit()
}

/// Whether one of `seps` and a digit follow.
pub(crate) fn joined_after(text: &[u8], at: usize, seps: &[u8]) -> bool {
    text.get(at).is_some_and(|b| seps.contains(b)) && text.get(at + 1).is_some_and(u8::is_ascii_digit)
}

/// Whether a long number without parts can stand at `start..end`: not when it is part of a hash, an identifier or a
/// fraction. A word may stand directly before it, since keys run into values; but not one of hexadecimal letters.
pub(crate) fn stands_alone(text: &[u8], start: usize, end: usize) -> bool {
    let is_word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    if text.get(end).is_some_and(is_word) || joined_after(text, end, b".") {
        return false;
    }
    if text.get(end) == Some(&b'-') && text.get(end + 1).is_some_and(is_word) {
        return false;
    }
    let Some(p) = before(text, start) else { return true };
    match p {
        b'.' => !joined_before(text, start, b"."),
        b'-' => !before(text, start - 1).is_some_and(|b| is_word(&b)),
        _ if p.is_ascii_alphabetic() => {
            let letters = text[..start]
                .iter()
                .rev()
                .take(16)
                .take_while(|b| b.is_ascii_alphabetic());
            let (mut len, mut hex) = (0, true);
            for b in letters {
                len += 1;
                hex &= b.is_ascii_hexdigit();
            }
            // What stands before the word must end there: `a1x0101…` is an identifier.
            !hex && !before(text, start - len).is_some_and(|b| b.is_ascii_digit())
        }
        _ => true,
    }
}

/// Whether one of the words, given in lower case, stands shortly before `at`.
pub(crate) fn told_before(text: &[u8], at: usize, words: &[&str]) -> bool {
    let near = text[at.saturating_sub(CONTEXT_BYTES)..at].to_ascii_lowercase();
    words
        .iter()
        .any(|w| memchr::memmem::find(&near, w.as_bytes()).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn gaps_are_what_people_write_between_blocks() {
        for (text, want) in [
            ("-", Some((Gap::Dash, 1))),
            (" - ", Some((Gap::Dash, 3))),
            ("–", Some((Gap::Dash, 3))),
            (")", Some((Gap::Other, 1))),
            (") ", Some((Gap::Other, 2))),
            (" ", Some((Gap::Space, 1))),
            ("  ", Some((Gap::Space, 1))),
            (".", Some((Gap::Dot, 1))),
            (",", None),
            ("", None),
        ] {
            assert_eq!(gap(text.as_bytes(), 0), want, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn runs_are_the_digits(text in proptest::collection::vec(prop_oneof![b'/'..=b':', any::<u8>()], 0..300)) {
            let (mut bits, mut want) = (vec![], vec![]);
            digit_bits(&text, &mut bits);
            let mut at = 0;
            while at < text.len() {
                let len = text[at..].iter().take_while(|b| b.is_ascii_digit()).count();
                if len > 0 {
                    want.push((at, at + len));
                }
                at += len.max(1);
            }
            prop_assert_eq!(Runs::new(&bits).collect::<Vec<_>>(), want);
        }
    }
}

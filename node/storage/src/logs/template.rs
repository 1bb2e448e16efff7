//! Splits a line into a template and the values of its variables, and puts it together again, byte for byte.
//!
//! A word with a digit is a variable; everything else is text of the template. Some variables span words, since their
//! words would otherwise make many templates of one: a time of day, an IPv4 address, a UUID. In a template, byte 1 and
//! a kind stand for a number, byte 2 for a string. A line that holds bytes 0 to 3 is one string.

use super::words::{CONTROL_END, DELIMITER, DIGIT, HEX, KINDS, Words, each_word, is_delimiter};
use crate::cursor::Bad;
use std::ops::Range;

const NUMBER_MARK: u8 = 1;
const STRING_MARK: u8 = 2;
/// 10^19 is the first power of ten with 20 digits, and fits.
const DIGITS_MAX: usize = 19;
const TIME: u8 = 32;
const ADDRESS: u8 = 33;
const UUID_BYTES: usize = 36;

/// What a variable's value stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Var {
    /// An integer, padded with zeros to so many digits.
    Number(u8),
    /// `HH:MM:SS` as seconds.
    Time,
    /// `a.b.c.d` as one number.
    Address,
    /// Bytes as they are. Value: place << 32 | length.
    String,
}

impl Var {
    pub const fn is_string(self) -> bool {
        matches!(self, Self::String)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    Text(Range<usize>),
    Var(Var),
}

/// The tokens of a template's text.
pub fn tokens(template: &[u8]) -> Result<Vec<Token>, Bad> {
    let mut tokens = vec![];
    let (mut i, mut start) = (0, 0);
    while i < template.len() {
        let b = template[i];
        if b != NUMBER_MARK && b != STRING_MARK {
            i += 1;
            continue;
        }
        if start < i {
            tokens.push(Token::Text(start..i));
        }
        let var = if b == STRING_MARK {
            Var::String
        } else {
            i += 1;
            match template.get(i) {
                Some(&pad) if pad as usize <= DIGITS_MAX => Var::Number(pad),
                Some(&TIME) => Var::Time,
                Some(&ADDRESS) => Var::Address,
                _ => return Err("a template has an unknown variable"),
            }
        };
        tokens.push(Token::Var(var));
        i += 1;
        start = i;
    }
    if start < template.len() {
        tokens.push(Token::Text(start..template.len()));
    }
    Ok(tokens)
}

/// The plain words of a template, for the filter.
pub fn template_words(template: &[u8], words: &mut Words) {
    let Ok(tokens) = tokens(template) else { return };
    for token in tokens {
        if let Token::Text(range) = token {
            let text = &template[range.clone()];
            each_word(text, |at, word| {
                // Next to a variable it is a piece of a word: the `T` and `Z` of times, which the filter leaves out.
                let whole_left = at > 0 || range.start == 0;
                let whole_right = at + word.len() < text.len() || range.end == template.len();
                if whole_left && whole_right {
                    words.word(word);
                }
            });
        }
    }
}

fn digits_value(digits: &[u8]) -> u64 {
    digits.iter().fold(0, |v, d| v * 10 + u64::from(d - b'0'))
}

fn two(at: &[u8]) -> Option<u64> {
    (at[0].is_ascii_digit() && at[1].is_ascii_digit()).then(|| digits_value(&at[..2]))
}

fn ends_word(line: &[u8], at: usize) -> bool {
    line.get(at).is_none_or(|&b| is_delimiter(b))
}

/// `HH:MM:SS` at the start of a word.
fn time_at(line: &[u8], at: usize) -> Option<u64> {
    let text = line.get(at..at + 8)?;
    if text[2] != b':' || text[5] != b':' || !ends_word(line, at + 8) {
        return None;
    }
    let (h, m, s) = (two(text)?, two(&text[3..])?, two(&text[6..])?);
    (h < 24 && m < 60 && s < 60).then_some(h * 3600 + m * 60 + s)
}

/// An address at the start of a word: its value and its end.
fn address_at(line: &[u8], mut at: usize) -> Option<(u64, usize)> {
    let mut value = 0;
    for part in 0..4 {
        if part > 0 {
            if line.get(at) != Some(&b'.') {
                return None;
            }
            at += 1;
        }
        let len = line[at..].iter().take(4).take_while(|b| b.is_ascii_digit()).count();
        let digits = &line[at..at + len];
        if len == 0 || len > 3 || (len > 1 && digits[0] == b'0') || digits_value(digits) > 255 {
            return None;
        }
        value = value << 8 | digits_value(digits);
        at += len;
    }
    ends_word(line, at).then_some((value, at))
}

pub fn is_uuid(text: &[u8]) -> bool {
    text.len() == UUID_BYTES
        && text.iter().enumerate().all(|(i, &b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => KINDS[b as usize] & (DIGIT | HEX) != 0,
        })
}

/// The first digit from `from` on, eight bytes at a time.
fn next_digit(line: &[u8], from: usize) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let (eights, rest) = line[from..].as_chunks::<8>();
    for (n, eight) in eights.iter().enumerate() {
        // A digit is what is at most 9 when '0' is taken off its bits.
        let off = u64::from_le_bytes(*eight) ^ (ONES * u64::from(b'0'));
        let above = (off & (ONES * 0x7f)) + ONES * (0x80 - 10);
        let digits = !(above | off) & (ONES * 0x80);
        if digits != 0 {
            return Some(from + n * 8 + digits.trailing_zeros() as usize / 8);
        }
    }
    let at = rest.iter().position(u8::is_ascii_digit)?;
    Some(from + eights.len() * 8 + at)
}

/// Where the UUID begins, from `from` on, to which the first word with a digit belongs, if it does.
fn uuid_with(line: &[u8], from: usize, word: Range<usize>) -> Option<usize> {
    let back: &[usize] = match word.len() {
        8 => &[0],
        4 => &[9, 14, 19],
        12 => &[24],
        _ => return None,
    };
    let starts = back.iter().filter_map(|back| word.start.checked_sub(*back));
    let mut starts = starts.filter(|&at| at >= from && (at == from || is_delimiter(line[at - 1])));
    starts.find(|&at| line.get(at..at + UUID_BYTES).is_some_and(is_uuid) && ends_word(line, at + UUID_BYTES))
}

/// Takes lines apart. The template is left in `template`, the values are appended to `values`.
#[derive(Default)]
pub struct Splitter {
    pub template: Vec<u8>,
    pub values: Vec<u64>,
}

impl Splitter {
    fn number(&mut self, kind: u8, value: u64) {
        self.template.extend_from_slice(&[NUMBER_MARK, kind]);
        self.values.push(value);
    }

    fn string(&mut self, base: usize, range: Range<usize>) {
        self.template.push(STRING_MARK);
        self.values
            .push(((base + range.start) as u64) << 32 | range.len() as u64);
    }

    /// `base`: where the line's text lies, for the values of strings.
    ///
    /// Goes from digit to digit: words without one are never looked at.
    pub fn split(&mut self, line: &[u8], base: usize, words: &mut Words) {
        self.template.clear();
        // All bytes, so that it takes many at once.
        if line.iter().fold(false, |any, &b| any | (b < CONTROL_END)) {
            self.string(base, 0..line.len());
            words.text(line);
            return;
        }
        let (mut i, mut copied) = (0, 0);
        // End of a time of day, where a fraction may follow.
        let mut after_time = usize::MAX;
        while let Some(digit) = next_digit(line, i) {
            let before = line[i..digit].iter().rev().take_while(|b| !is_delimiter(**b)).count();
            let start = digit - before;
            let mut all = u8::MAX;
            let mut end = digit;
            while end < line.len() {
                let kinds = KINDS[line[end] as usize];
                if kinds & DELIMITER != 0 {
                    break;
                }
                all &= kinds;
                end += 1;
            }
            if let Some(at) = uuid_with(line, i, start..end) {
                self.template.extend_from_slice(&line[copied..at]);
                i = at + UUID_BYTES;
                self.string(base, at..i);
                words.text(&line[at..i]);
                copied = i;
                continue;
            }
            self.template.extend_from_slice(&line[copied..start]);
            i = if before == 0 && all & DIGIT != 0 {
                self.digits(line, start..end, after_time, base, words, &mut after_time)
            } else {
                self.mixed(line, start..end, after_time, base, words, &mut after_time)
            };
            copied = i;
        }
        self.template.extend_from_slice(&line[copied..]);
    }

    /// A word of digits; returns where the variable ends.
    fn digits(
        &mut self,
        line: &[u8],
        word: Range<usize>,
        fraction_of: usize,
        base: usize,
        words: &mut Words,
        after_time: &mut usize,
    ) -> usize {
        let text = &line[word.clone()];
        if text.len() == 2
            && let Some(seconds) = time_at(line, word.start)
        {
            self.number(TIME, seconds);
            words.short(2);
            *after_time = word.start + 8;
            return *after_time;
        }
        if text.len() <= 3
            && let Some((address, end)) = address_at(line, word.start)
        {
            self.number(ADDRESS, address);
            words.short(3);
            return end;
        }
        words.number(text);
        if text.len() > DIGITS_MAX {
            self.string(base, word.clone());
            return word.end;
        }
        let fraction = fraction_of.checked_add(1) == Some(word.start) && matches!(text.len(), 3 | 6 | 9);
        let padded = fraction || (text[0] == b'0' && text.len() > 1);
        self.number(if padded { text.len() as u8 } else { 0 }, digits_value(text));
        word.end
    }

    /// A word with some digit; returns where the variable ends.
    fn mixed(
        &mut self,
        line: &[u8],
        word: Range<usize>,
        fraction_of: usize,
        base: usize,
        words: &mut Words,
        after_time: &mut usize,
    ) -> usize {
        let text = &line[word.clone()];
        // `29T17:41:44`: a day, and a time.
        if text.len() == 5
            && text[2] == b'T'
            && let (Some(day), Some(seconds)) = (two(text), time_at(line, word.start + 3))
        {
            self.number(2, day);
            self.template.push(b'T');
            self.number(TIME, seconds);
            words.word(text);
            *after_time = word.start + 11;
            return *after_time;
        }
        // `.747Z`: a fraction, and the zone.
        if fraction_of.checked_add(1) == Some(word.start)
            && let [digits @ .., b'Z'] = text
            && matches!(digits.len(), 3 | 6 | 9)
            && digits.iter().all(u8::is_ascii_digit)
        {
            self.number(digits.len() as u8, digits_value(digits));
            words.word(text);
            return word.end - 1;
        }
        words.word(text);
        self.string(base, word.clone());
        word.end
    }
}

/// A number's text, without allocating.
pub struct Digits {
    text: [u8; 20],
    start: usize,
}

impl Digits {
    pub fn new(mut value: u64, pad: u8) -> Self {
        let (mut text, mut start) = ([b'0'; 20], 20);
        while value > 0 || start == 20 {
            start -= 1;
            text[start] = b'0' + (value % 10) as u8;
            value /= 10;
        }
        let start = start.min(20 - (pad as usize).min(20));
        Self { text, start }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.text[self.start..]
    }
}

/// Appends what a variable that is no string stands for.
pub fn put_value(out: &mut Vec<u8>, var: Var, value: u64) {
    match var {
        Var::Number(pad) => out.extend_from_slice(Digits::new(value, pad).as_bytes()),
        Var::Time => {
            let two = |v: u64| [b'0' + (v / 10 % 10) as u8, b'0' + (v % 10) as u8];
            let ([a, b], [c, d], [e, f]) = (two(value / 3600), two(value / 60 % 60), two(value % 60));
            out.extend_from_slice(&[a, b, b':', c, d, b':', e, f]);
        }
        Var::Address => {
            for (i, part) in (value as u32).to_be_bytes().into_iter().enumerate() {
                if i > 0 {
                    out.push(b'.');
                }
                out.extend_from_slice(Digits::new(u64::from(part), 0).as_bytes());
            }
        }
        Var::String => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use proptest::prelude::*;

    fn shown(line: &[u8]) -> String {
        let mut s = Splitter::default();
        s.split(line, 0, &mut Words::default());
        let mut values = s.values.iter();
        let parts = tokens(&s.template).unwrap().into_iter().map(|t| match t {
            Token::Text(range) => String::from_utf8_lossy(&s.template[range]).into_owned(),
            Token::Var(var) => {
                let &v = values.next().unwrap();
                if var.is_string() {
                    let (at, len) = ((v >> 32) as usize, v as u32 as usize);
                    format!("<{}>", String::from_utf8_lossy(&line[at..at + len]).escape_debug())
                } else {
                    format!("<{var:?} {v}>")
                }
            }
        });
        parts.collect()
    }

    pub fn rebuilt(line: &[u8]) -> Vec<u8> {
        let mut s = Splitter::default();
        s.split(line, 0, &mut Words::default());
        let mut values = s.values.iter();
        let mut out = vec![];
        for t in tokens(&s.template).unwrap() {
            match t {
                Token::Text(range) => out.extend_from_slice(&s.template[range]),
                Token::Var(var) => {
                    let &v = values.next().unwrap();
                    if var.is_string() {
                        let (at, len) = ((v >> 32) as usize, v as u32 as usize);
                        out.extend_from_slice(&line[at..at + len]);
                    } else {
                        put_value(&mut out, var, v);
                    }
                }
            }
        }
        out
    }

    #[test]
    fn lines_are_split_into_words() {
        let lines = [
            "2015-07-29 17:41:44,047 - WARN [main:Peer@914] cnxn 0x14ed 10.10.34.11:3888",
            "2026-01-02T03:04:05.006Z started in 0.250 s",
            "req-3f2504e0-4f89-41d3-9a0c-0305e82c3301 ok; 007 of 99999999999999999999",
            "디스크 sda1 사용률 93% 경고",
            "abcdefab-cdef-4f89-41d3-9a0c0305e82c abcdefab-cdef-4f89-41d3-9a0c0305e82",
            "300.1.2.3 25:00:00 1.2.3.4.5 12:34:56x",
            "a\u{1}b 12",
            "",
        ];
        let all: Vec<String> = lines.iter().map(|l| shown(l.as_bytes())).collect();
        expect![[r#"
            <Number(0) 2015>-<Number(2) 7>-<Number(0) 29> <Time 63704>,<Number(3) 47> - WARN [main:Peer@<Number(0) 914>] cnxn <0x14ed> <Address 168436235>:<Number(0) 3888>
            <Number(0) 2026>-<Number(2) 1>-<Number(2) 2>T<Time 11045>.<Number(3) 6>Z started in <Number(0) 0>.<Number(0) 250> s
            req-<3f2504e0-4f89-41d3-9a0c-0305e82c3301> ok; <Number(3) 7> of <99999999999999999999>
            디스크 <sda1> 사용률 <93%> 경고
            <abcdefab-cdef-4f89-41d3-9a0c0305e82c> abcdefab-cdef-<4f89>-<41d3>-<9a0c0305e82>
            <Number(0) 300>.<Number(0) 1>.<Number(0) 2>.<Number(0) 3> <Number(0) 25>:<Number(2) 0>:<Number(2) 0> <Address 16909060>.<Number(0) 5> <Number(0) 12>:<Number(0) 34>:<56x>
            <a\u{1}b 12>
        "#]]
        .assert_eq(&(all.join("\n")));
    }

    proptest! {
        #[test]
        fn a_split_line_comes_back(
            line in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..60),
                "([0-9]{1,3}[.:T,Z -]){0,12}[0-9a-fZ]{0,4}".prop_map(String::into_bytes),
                "[a-f0-9]{8}-[a-f0-9]{4}-[a-f0-9]{4}-[a-f0-9]{4}-[a-f0-9]{12,13}".prop_map(String::into_bytes),
                "[0-9]{2}T[0-2][0-9]:[0-5][0-9]:[0-5][0-9][.,][0-9]{2,9}Z?".prop_map(String::into_bytes),
                "[0-9가-힣a ]{0,30}".prop_map(String::into_bytes),
            ],
        ) {
            prop_assert_eq!(rebuilt(&line), line);
        }

        #[test]
        fn any_bytes_are_a_template_or_refused(bytes in prop::collection::vec(0u8..40, 0..60)) {
            let _ = tokens(&bytes);
        }
    }
}

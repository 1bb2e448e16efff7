//! Korean addresses: by road (`서울시 성동구 성수이로 22길 37`) and by lot (`경기도 양평군 양서면 양수리 123-4`).
//!
//! A match begins with a province, a city or a district whose name is known, all of them found in one walk of an
//! automaton. A road or a quarter must follow. With a province and a district, or a city and a district, before it,
//! that is enough. A district alone, or a province alone, needs a number behind the road or quarter as well: else
//! half of all sentences about a district would be addresses.
//!
//! What stays: the administrative parts up to the district. Hidden is what follows, as far as it looks like the rest
//! of an address; what follows is bounded by [`TAIL_MAX`].
//!
//! Every match ends behind its beginning and the next one begins behind that end; what is read ahead is bounded.

mod names;

use crate::found::{Found, Kind};
use crate::text::{char_at, char_before, digits_at, is_hangul};
use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use names::{DISTRICTS, NO_QUARTERS, NO_ROADS, PARTICLES, PROVINCES, SHORT};

/// Parts behind a road or quarter: numbers, a building, a storey, a room, something in brackets.
const TAIL_MAX: usize = 8;
/// Characters of a word, or of what stands in brackets.
const WORD_CHARS_MAX: usize = 20;
const BRACKET_CHARS_MAX: usize = 40;
/// Blanks and commas between two parts.
const GAP_CHARS_MAX: usize = 3;
/// Cities and districts one after the other: 성남시 분당구.
const DISTRICTS_MAX: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Province,
    Short,
    District,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Hit {
    part: Part,
    start: usize,
    end: usize,
}

/// The automaton of all names.
#[derive(Debug)]
pub(crate) struct Names(AhoCorasick);

impl Names {
    pub fn new() -> Self {
        let names = PROVINCES.iter().chain(SHORT).chain(DISTRICTS);
        let built = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .kind(Some(AhoCorasickKind::DFA))
            .build(names);
        Self(built.expect("the names are a few hundred short texts"))
    }

    fn hits(&self, text: &[u8], hits: &mut Vec<Hit>) {
        hits.clear();
        hits.extend(self.0.find_iter(text).map(|m| {
            let n = m.pattern().as_usize();
            let part = if n < PROVINCES.len() {
                Part::Province
            } else if n < PROVINCES.len() + SHORT.len() {
                Part::Short
            } else {
                Part::District
            };
            Hit {
                part,
                start: m.start(),
                end: m.end(),
            }
        }));
    }

    /// Finds addresses, in the order of their beginnings. Of each, `keep` administrative parts stay.
    ///
    /// `out` has from `first` on what else was found in the text: an address ends before that. A phone number behind an
    /// address is a phone number.
    pub fn find(&self, text: &[u8], keep: usize, hits: &mut Vec<Hit>, out: &mut Vec<Found>, first: usize) {
        self.hits(text, hits);
        if hits.is_empty() {
            return;
        }
        out[first..].sort_unstable_by_key(|f| f.start);
        let others = out.len();
        let (mut i, mut done) = (0, 0);
        while i < hits.len() {
            let Hit { start, .. } = hits[i];
            if start < done || char_before(text, start).is_some_and(is_word) {
                i += 1;
                continue;
            }
            let (head, used) = Head::read(text, &hits[i..]);
            let others = &out[first..others];
            let next = others.partition_point(|f| f.start < head.end());
            let stop = others.get(next).map_or(text.len(), |f| f.start);
            match head.rest(text, stop) {
                Some(end) => {
                    let from = match keep.min(head.ends.len()) {
                        0 => start,
                        n => skip_gap(text, head.ends[n - 1]),
                    };
                    out.push(Found::new(Kind::Address, start..end, from..end));
                    done = end;
                    i += used;
                }
                None => i += 1,
            }
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Province and districts.
struct Head {
    /// Where each part ends.
    ends: Vec<usize>,
    has_province: bool,
    districts: usize,
    /// 세종 has no districts.
    is_sejong: bool,
}

impl Head {
    /// Reads it, and tells how many hits it took.
    fn read(text: &[u8], hits: &[Hit]) -> (Self, usize) {
        let first = hits[0];
        let mut head = Self {
            ends: vec![first.end],
            has_province: first.part != Part::District,
            districts: usize::from(first.part == Part::District),
            is_sejong: text[first.start..].starts_with("세종".as_bytes()),
        };
        let mut used = 1;
        while head.districts < DISTRICTS_MAX {
            let end = head.end();
            let next = skip_gap(text, end);
            // 광주 is a province as well as a city.
            let fits = |h: &&Hit| h.start == next && (h.part == Part::District || next > end);
            if let Some(hit) = hits.get(used).filter(fits) {
                if hit.part != Part::District {
                    break;
                }
                head.ends.push(hit.end);
                used += 1;
            } else if let Some(end) = district_by_ending(text, next).filter(|_| head.has_province && next > end) {
                head.ends.push(end);
                while hits.get(used).is_some_and(|h| h.start < end) {
                    used += 1;
                }
            } else {
                break;
            }
            head.districts += 1;
        }
        (head, used)
    }

    fn end(&self) -> usize {
        self.ends[self.ends.len() - 1]
    }

    /// Where the whole address ends, at `stop` at the latest; `None` when no road or quarter follows.
    fn rest(&self, text: &[u8], stop: usize) -> Option<usize> {
        let mut at = skip_gap(text, self.end());
        let is_parted = at > self.end();
        // Without a gap only in 서울시성동구성수이로: the district is known, and a province stands before it.
        let may_run_on = self.has_province && self.districts > 0;
        if !is_parted && !may_run_on {
            return None;
        }
        let mut in_township = false;
        if let Some(end) = township(text, at) {
            (at, in_township) = (skip_gap(text, end), true);
        }
        let suffices = self.districts + usize::from(self.has_province) >= 2 || self.is_sejong || in_township;
        let (street, is_sure) = match (road(text, at), quarter(text, at)) {
            (Some(road), _) => road,
            (None, Some(quarter)) => quarter,
            (None, None) => return None,
        };
        let (end, has_number) = tail(text, street, stop.max(street));
        (has_number || (suffices && is_sure)).then_some(end)
    }
}

/// Blanks, commas, `+` and `_` between parts.
fn skip_gap(text: &[u8], at: usize) -> usize {
    let mut end = at;
    for _ in 0..GAP_CHARS_MAX {
        match char_at(text, end) {
            Some((' ' | '\t' | ',' | '+' | '_' | '\u{a0}' | '\u{3000}', len)) => end += len,
            _ => break,
        }
    }
    end
}

/// The characters of a word of Hangul, digits and points between, with their places.
fn word(text: &[u8], start: usize) -> ([(char, usize); WORD_CHARS_MAX], usize) {
    let mut chars = [('\0', start); WORD_CHARS_MAX];
    let (mut at, mut len) = (start, 0);
    while len < WORD_CHARS_MAX {
        match char_at(text, at) {
            Some((c, bytes)) if is_hangul(c) || c.is_ascii_digit() || c == '·' => {
                at += bytes;
                chars[len] = (c, at);
                len += 1;
            }
            _ => break,
        }
    }
    (chars, len)
}

/// A city, county or district that the list does not know, behind a province.
fn district_by_ending(text: &[u8], start: usize) -> Option<usize> {
    let (chars, len) = word(text, start);
    let fits = (2..=6).contains(&len) && chars[..len].iter().all(|(c, _)| is_hangul(*c));
    let (last, end) = chars[..len].last().copied()?;
    (fits && matches!(last, '시' | '군' | '구') && skip_gap(text, end) > end).then_some(end)
}

/// 읍 or 면, with something behind it.
fn township(text: &[u8], start: usize) -> Option<usize> {
    let (chars, len) = word(text, start);
    let fits = (2..=6).contains(&len) && chars[..len].iter().all(|(c, _)| is_hangul(*c));
    let (last, end) = chars[..len].last().copied()?;
    (fits && matches!(last, '읍' | '면') && skip_gap(text, end) > end).then_some(end)
}

/// Whether what stands behind a name lets it end there.
fn may_end(rest: &[(char, usize)]) -> bool {
    let Some((first, _)) = rest.first() else { return true };
    let is = |p: &str| p.chars().eq(rest.iter().map(|(c, _)| *c));
    first.is_ascii_digit() || PARTICLES.iter().any(|p| is(p))
}

fn is_one_of(chars: &[(char, usize)], words: &[&str]) -> bool {
    words.iter().any(|w| w.chars().eq(chars.iter().map(|(c, _)| *c)))
}

/// The end of a name of a road, and whether it surely is one.
fn road(text: &[u8], start: usize) -> Option<(usize, bool)> {
    let (chars, len) = word(text, start);
    let chars = &chars[..len];
    if !chars.first().is_some_and(|(c, _)| is_hangul(*c)) {
        return None;
    }
    let ends_here = |i: &usize| matches!(chars[*i].0, '로' | '길') && may_end(&chars[i + 1..]);
    let mut last = (1..len).find(ends_here)?;
    let name = &chars[..=last];
    // Adverbs: 기본적으로. No road is called like that.
    let is_adverb = name.len() >= 2 && name[name.len() - 2].0 == '으' || is_one_of(name, NO_ROADS);
    // 성수이로22길, 을지로3가, 판교역로192번길
    let digits = chars[last + 1..].iter().take_while(|(c, _)| c.is_ascii_digit()).count();
    if digits > 0 {
        let after = &chars[last + 1 + digits..];
        let suffix = [&['번', '길'][..], &['길'], &['가', '길'], &['나', '길'], &['가']];
        let fits = |s: &&&[char]| after.len() >= s.len() && s.iter().eq(after[..s.len()].iter().map(|(c, _)| c));
        if let Some(suffix) = suffix.iter().find(fits) {
            last += digits + suffix.len();
        }
    }
    let end = chars[last].1;
    (!is_adverb || number(text, skip_gap(text, end)).is_some()).then_some((end, !is_adverb))
}

/// The end of a name of a quarter or village (동, 리, 가), and whether it surely is one.
fn quarter(text: &[u8], start: usize) -> Option<(usize, bool)> {
    let (chars, len) = word(text, start);
    let chars = &chars[..len];
    if !chars.first().is_some_and(|(c, _)| is_hangul(*c)) {
        return None;
    }
    // 성수동2가 ends behind its 가.
    let ends_here = |i: &usize| matches!(chars[*i].0, '동' | '리' | '가') && may_end(&chars[i + 1..]);
    let mut last = (1..len).find(ends_here)?;
    let name = &chars[..=last];
    let is_sure = !is_one_of(name, NO_QUARTERS) && name.len() <= 6;
    let digits = chars[last + 1..].iter().take_while(|(c, _)| c.is_ascii_digit()).count();
    if digits > 0 && chars.get(last + 1 + digits).is_some_and(|(c, _)| *c == '가') {
        last += digits + 1;
    }
    Some((chars[last].1, is_sure))
}

/// A number of a house, lot, storey or room, with what it counts.
fn number(text: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    for lead in ["지하", "산", "제", "B", "b"] {
        if text[at.min(text.len())..].starts_with(lead.as_bytes()) {
            at += lead.len();
            let gap = skip_gap(text, at);
            at = if digits_at(text, gap) > 0 { gap } else { at };
            break;
        }
    }
    let digits = digits_at(text, at);
    if !(1..=6).contains(&digits) {
        return None;
    }
    at += digits;
    while text.get(at).is_some_and(|b| matches!(b, b'-' | b'~')) && (1..=6).contains(&digits_at(text, at + 1)) {
        at += 1 + digits_at(text, at + 1);
    }
    // What is counted: numbers of other things do not belong to an address.
    let (chars, len) = word(text, at);
    let chars = &chars[..len];
    if chars.is_empty() {
        let ends = !text
            .get(at)
            .is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b':' | b'%' | b'/'));
        return ends.then_some(at);
    }
    for unit in ["번지", "번길", "가길", "길", "번", "호", "층", "동", "가"] {
        let n = unit.chars().count();
        if len >= n && unit.chars().eq(chars[..n].iter().map(|(c, _)| *c)) {
            let more = &chars[n..];
            // 101동1203호, 37번지입니다
            return (may_end(more) || more.iter().all(|(c, _)| is_hangul(*c))).then_some(chars[n - 1].1);
        }
    }
    is_one_of(chars, PARTICLES).then_some(at)
}

/// Numbers, buildings and brackets behind a road or quarter: where they end, and whether a number was among them.
fn tail(text: &[u8], street: usize, stop: usize) -> (usize, bool) {
    let is_cut = stop < text.len();
    let text = &text[..stop];
    let (mut end, mut has_number) = (street, false);
    for _ in 0..TAIL_MAX {
        let next = skip_gap(text, end);
        if let Some(after) = number(text, next) {
            (end, has_number) = (after, true);
        } else if let Some(after) = bracket(text, next, is_cut).filter(|_| has_number) {
            end = after;
        } else if let Some(after) = building(text, next).filter(|_| has_number && next > end) {
            end = after;
        } else {
            break;
        }
    }
    (end, has_number)
}

/// `(성수동2가, 아크밸리)`; where the text is cut, up to there.
fn bracket(text: &[u8], start: usize, is_cut: bool) -> Option<usize> {
    if text.get(start) != Some(&b'(') {
        return None;
    }
    let mut at = start + 1;
    let mut last = at;
    let mut has_hangul = false;
    for _ in 0..BRACKET_CHARS_MAX {
        match char_at(text, at) {
            Some((')', _)) => return has_hangul.then_some(at + 1),
            Some((c, len)) if c.is_alphanumeric() || matches!(c, ' ' | ',' | '.' | '-' | '·' | '+') => {
                has_hangul |= is_hangul(c);
                at += len;
                if c.is_alphanumeric() {
                    last = at;
                }
            }
            None if is_cut && at == text.len() => return has_hangul.then_some(last),
            _ => return None,
        }
    }
    None
}

/// A building that is followed by a number of its own: 래미안아파트 101동.
fn building(text: &[u8], start: usize) -> Option<usize> {
    let (chars, len) = word(text, start);
    let (_, end) = chars[..len].last().copied()?;
    let named = len >= 2 && is_hangul(chars[0].0);
    let next = skip_gap(text, end);
    let numbered = next > end
        && number(text, next).is_some_and(|after| {
            let unit = char_before(text, after);
            matches!(unit, Some('동' | '호' | '층'))
        });
    (named && numbered).then_some(end)
}

//! E-mail addresses, each found at its `@`.
//!
//! Every byte is looked at by the `@` before it and the one after it, and by no other.

use crate::found::{Found, Kind};
use crate::text::{before, char_at, char_before};

/// Endings that no domain has, but files and units that are written with an `@`.
const NO_DOMAINS: &[&[u8]] = &[
    b"service",
    b"socket",
    b"device",
    b"mount",
    b"automount",
    b"swap",
    b"timer",
    b"slice",
    b"scope",
    b"path",
    b"png",
    b"jpg",
    b"jpeg",
    b"gif",
    b"webp",
    b"svg",
    b"css",
    b"js",
    b"tgz",
    b"jar",
    b"deb",
    b"rpm",
];
/// Letters of the part before the `@` that stay; never more than half of it.
const SHOWN_MAX: usize = 2;

/// Finds them, in the order of their beginnings.
pub(crate) fn find(text: &[u8], out: &mut Vec<Found>) {
    let mut done = 0;
    for at in memchr::memchr_iter(b'@', text) {
        if at < done {
            continue;
        }
        if let Some(end) = domain_end(text, at + 1)
            && let Some(start) = local_start(text, at, done)
        {
            done = end;
            let shown = shown(text, start, at, SHOWN_MAX);
            out.push(Found::new(Kind::Email, start..end, shown..at));
        }
    }
}

/// Where what is hidden begins, when `most` characters are to stay.
pub(crate) fn shown(text: &[u8], start: usize, at: usize, most: usize) -> usize {
    let len = |c: &[u8]| c.iter().filter(|b| !is_continuation(**b)).count();
    let stay = most.min(len(&text[start..at]) / 2);
    let mut places = (start..at).filter(|i| !is_continuation(text[*i]));
    places.nth(stay).unwrap_or(at)
}

const fn is_continuation(b: u8) -> bool {
    b & 0xc0 == 0x80
}

const fn is_local(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'+' | b'%' | b'\'')
}

fn local_start(text: &[u8], at: usize, floor: usize) -> Option<usize> {
    let mut start = at;
    while start > floor && is_local(text[start - 1]) {
        start -= 1;
    }
    // A name in letters of another script.
    if start == at {
        while start > floor && char_before(&text[floor..start], start - floor).is_some_and(|c| c.is_alphanumeric()) {
            start -= 1;
            while start > floor && is_continuation(text[start]) {
                start -= 1;
            }
        }
    }
    // The letter of an escape belongs to it: "\nhong@…".
    if start > 0 && text[start - 1] == b'\\' {
        start += match text[start..at] {
            [b'u', a, b, c, d, ..] if [a, b, c, d].iter().all(u8::is_ascii_hexdigit) => 5,
            [b'n' | b'r' | b't' | b'b' | b'f', ..] => 1,
            _ => 0,
        };
    }
    while start < at && matches!(text[start], b'.' | b'-' | b'+' | b'%' | b'\'') {
        start += 1;
    }
    (start < at && before(text, at) != Some(b'.')).then_some(start)
}

/// Where the domain ends: labels with dots, of which the last begins with two letters.
fn domain_end(text: &[u8], start: usize) -> Option<usize> {
    let foreign = text.get(start).is_some_and(|b| *b >= 0x80);
    let (mut at, mut label, mut end) = (start, start, None);
    // A label of our own letters ends where another script begins: a particle follows the address.
    loop {
        let len = match text.get(at) {
            Some(b) if b.is_ascii_alphanumeric() || *b == b'-' => 1,
            Some(b) if *b >= 0x80 && foreign => char_at(text, at)
                .filter(|(c, _)| c.is_alphanumeric())
                .map_or(0, |c| c.1),
            _ => 0,
        };
        if len > 0 {
            at += len;
            continue;
        }
        if at == label {
            break;
        }
        if label > start {
            end = label_end(text, label, at).or(end);
        }
        if text.get(at) != Some(&b'.') {
            break;
        }
        at += 1;
        label = at;
    }
    end
}

/// Where a last label that is `from..to` at most ends; `None` when it is none.
fn label_end(text: &[u8], from: usize, to: usize) -> Option<usize> {
    let label = &text[from..to];
    let end = match label.strip_prefix(b"xn--") {
        Some(_) => to,
        None => {
            from + label
                .iter()
                .take_while(|b| b.is_ascii_alphabetic() || **b >= 0x80)
                .count()
        }
    };
    let is_domain = !NO_DOMAINS.iter().any(|n| n.eq_ignore_ascii_case(&text[from..end]));
    (end >= from + 2 && is_domain).then_some(end)
}

//! Text as it reads without its escapes: `%EC%84%9C` of URLs, `\uc11c` of JSON. `\n` and its kin read as one blank:
//! the letter of such an escape is no part of the word behind it.

/// The byte of `%XX` at `at`.
pub(crate) fn percent(text: &[u8], at: usize) -> Option<u8> {
    match text.get(at..at + 3)? {
        [b'%', a, b] => Some(hex(*a)? << 4 | hex(*b)?),
        _ => None,
    }
}

fn hex(b: u8) -> Option<u8> {
    char::from(b).to_digit(16).map(|d| d as u8)
}

fn unit(text: &[u8], at: usize) -> Option<u32> {
    match text.get(at..at + 6)? {
        [b'\\', b'u', digits @ ..] => digits.iter().try_fold(0, |n, d| Some(n << 4 | u32::from(hex(*d)?))),
        _ => None,
    }
}

/// The character of `\uXXXX` at `at`, or of a pair of them, and its length there.
pub(crate) fn unicode(text: &[u8], at: usize) -> Option<(char, usize)> {
    let first = unit(text, at)?;
    match first {
        0xd800..=0xdbff => {
            let second = unit(text, at + 6).filter(|s| (0xdc00..=0xdfff).contains(s))?;
            let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
            char::from_u32(code).map(|c| (c, 12))
        }
        _ => char::from_u32(first).map(|c| (c, 6)),
    }
}

/// Whether `\n`, `\t`, `\r`, `\b` or `\f` stands at `at`.
fn control(text: &[u8], at: usize) -> bool {
    matches!(text[at..], [b'\\', b'n' | b't' | b'r' | b'b' | b'f', ..])
}

/// Whether anything is escaped.
pub(crate) fn has_any(text: &[u8]) -> bool {
    memchr::memchr2_iter(b'%', b'\\', text)
        .any(|at| control(text, at) || percent(text, at).is_some() || unicode(text, at).is_some())
}

/// Writes the text without its escapes, and for each of its bytes, and its end, where that came from.
pub(crate) fn resolve(text: &[u8], plain: &mut Vec<u8>, places: &mut Vec<usize>) {
    plain.clear();
    places.clear();
    let mut at = 0;
    while at < text.len() {
        let next = memchr::memchr2(b'%', b'\\', &text[at..]).map_or(text.len(), |n| at + n);
        plain.extend_from_slice(&text[at..next]);
        places.extend(at..next);
        at = next;
        if let Some(byte) = percent(text, at) {
            plain.push(byte);
            places.push(at);
            at += 3;
        } else if let Some((c, len)) = unicode(text, at) {
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                plain.push(byte);
                places.push(at);
            }
            at += len;
        } else if control(text, at) {
            plain.push(b' ');
            places.push(at);
            at += 2;
        } else if at < text.len() {
            plain.push(text[at]);
            places.push(at);
            at += 1;
        }
    }
    places.push(text.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_resolved_and_places_kept() {
        let (mut plain, mut places) = (vec![], vec![]);
        for (text, want) in [
            ("a%40b", "a@b"),
            (r"\uc11c\ud83d\ude00x", "서😀x"),
            (r"%zz \u12 \ud83d %4", r"%zz \u12 \ud83d %4"),
            ("%EC%84%9C", "서"),
            (r"a\nb\t\r\b\f \v\", r"a b     \v\"),
            (r"\\n", r"\ "),
        ] {
            resolve(text.as_bytes(), &mut plain, &mut places);
            assert_eq!(String::from_utf8_lossy(&plain), want);
            assert_eq!(has_any(text.as_bytes()), text != want);
            assert_eq!((places.len(), places.last()), (plain.len() + 1, Some(&text.len())));
        }
        resolve(b"a%40b", &mut plain, &mut places);
        assert_eq!(places, [0, 1, 4, 5]);
        resolve(br"a\nb", &mut plain, &mut places);
        assert_eq!(places, [0, 1, 3, 4]);
    }
}

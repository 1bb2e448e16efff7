//! Patterns of text and captures: `<ip> - <user> [<_>] "<method> <path>`. They parse lines and, with `<_>` alone, test
//! them (`|>`, `!>`).

use memchr::memmem;

/// Pieces of one pattern.
pub const PATTERN_PARTS_MAX: usize = 128;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// `<_>`
    Gap,
    Capture(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Vec<Part>);

/// `<name>` at the beginning of `text`: the name, and what follows.
fn capture(text: &str) -> Option<(&str, &str)> {
    let (name, rest) = text.strip_prefix('<')?.split_once('>')?;
    let is_name = !name.is_empty()
        && name
            .bytes()
            .enumerate()
            .all(|(i, b)| b.is_ascii_alphabetic() || b == b'_' || (i > 0 && b.is_ascii_digit()));
    is_name.then_some((name, rest))
}

impl Pattern {
    fn parts(text: &str) -> Result<Self, String> {
        let (mut parts, mut literal) = (vec![], String::new());
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            match capture(rest) {
                Some((name, after)) => {
                    if !literal.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut literal)));
                    } else if !parts.is_empty() {
                        return Err(format!("the pattern {text:?} has captures with nothing between them"));
                    }
                    parts.push(match name {
                        "_" => Part::Gap,
                        name => Part::Capture(name.to_owned()),
                    });
                    rest = after;
                }
                None => {
                    literal.push(c);
                    rest = &rest[c.len_utf8()..];
                }
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        if parts.len() > PATTERN_PARTS_MAX {
            return Err(format!("the pattern has more than {PATTERN_PARTS_MAX} parts"));
        }
        Ok(Self(parts))
    }

    /// A pattern that parses lines.
    pub fn parser(text: &str) -> Result<Self, String> {
        let pattern = Self::parts(text)?;
        let mut names: Vec<&str> = pattern.names().collect();
        if names.is_empty() {
            return Err(format!(
                "the pattern {text:?} captures nothing: it needs something like <name>"
            ));
        }
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        if names.len() < all {
            return Err(format!("the pattern {text:?} has a name twice"));
        }
        Ok(pattern)
    }

    /// A pattern that tests lines.
    pub fn filter(text: &str) -> Result<Self, String> {
        let pattern = Self::parts(text)?;
        if let Some(name) = pattern.names().next() {
            return Err(format!("a pattern that filters has <_> only, not <{name}>"));
        }
        Ok(pattern)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|p| match p {
            Part::Capture(name) => Some(name.as_str()),
            Part::Text(_) | Part::Gap => None,
        })
    }

    /// The texts that a line must hold to be `matched`.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|p| match p {
            Part::Text(text) => Some(text.as_str()),
            Part::Capture(_) | Part::Gap => None,
        })
    }

    /// Calls `found` for each capture. It starts at the line's beginning; where a text does not come, the capture before
    /// it has all of the rest.
    pub fn captures<'a>(&self, line: &'a [u8], found: &mut dyn FnMut(&str, &'a [u8])) {
        let mut rest = line;
        let mut parts = &self.0[..];
        if let Some((Part::Text(text), after)) = parts.split_first() {
            let Some(behind) = rest.strip_prefix(text.as_bytes()) else {
                return;
            };
            (rest, parts) = (behind, after);
        }
        while let Some((capture, after)) = parts.split_first() {
            let (value, behind, after) = match after.split_first() {
                Some((Part::Text(text), after)) => match memmem::find(rest, text.as_bytes()) {
                    Some(at) => (&rest[..at], &rest[at + text.len()..], after),
                    None => (rest, &rest[rest.len()..], &[][..]),
                },
                _ => (rest, &rest[rest.len()..], after),
            };
            if let Part::Capture(name) = capture {
                found(name, value);
            }
            (rest, parts) = (behind, after);
        }
    }

    /// Whether the whole line is texts of the pattern with something in each gap.
    pub fn is_match(&self, line: &[u8]) -> bool {
        if line.is_empty() || self.0.is_empty() {
            return line.is_empty() && self.0.is_empty();
        }
        let mut at = 0;
        for (i, part) in self.0.iter().enumerate() {
            let Part::Text(text) = part else { continue };
            let Some(found) = memmem::find(&line[at..], text.as_bytes()) else {
                return false;
            };
            if (found == 0) != (i == 0) {
                return false;
            }
            at += found + text.len();
        }
        let ends_in_gap = !matches!(self.0.last(), Some(Part::Text(_)));
        ends_in_gap == (at < line.len())
    }
}

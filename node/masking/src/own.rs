//! Types of an operator's own: regular expressions, searched within a bound.
//!
//! One search is linear in what it reads, but the next one may read the same again: `.*[^A-Z]|[A-Z]` reads a line of
//! capitals to its end for each of them. So what searches of a line read is charged, and bounded by [`READS_MAX`] times
//! the line. The engine does not tell how far it read. It is charged with the most that it can have read: for a pattern
//! whose matches have a longest length up to there, for others to the end of the line. When that is used up, searches go
//! on byte by byte, which counts what is really read: with `user=\S+` not much more than the line. When that is used up,
//! too, the rest of the line is hidden whole.
//!
//! The bound is on bytes that are read. What one of them costs grows with the pattern, which is bounded by
//! [`REGEX_BYTES_MAX`].

use crate::settings::REGEX_BYTES_MAX;
use regex::bytes::{CaptureLocations, Regex, RegexBuilder};
use regex_automata::hybrid::dfa::DFA;
use regex_automata::nfa::thompson;
use regex_automata::util::syntax;
use regex_automata::{Input, hybrid};
use std::ops::Range;

/// How often all of a line may be read in search of one type: as charged, and as counted byte by byte after that.
pub const READS_MAX: usize = 32;
/// What is always allowed to be read, so that short lines are never too much.
const READ_BYTES_MIN: usize = 4096;
/// Bytes that an engine may read behind the longest match to see that it is one: a character, for `\b`.
const LOOKAHEAD_BYTES: usize = 4;

/// A pattern.
#[derive(Debug)]
pub(crate) struct Own {
    regex: Regex,
    /// The longest match; `None` when there is none.
    bytes_max: Option<usize>,
    /// Tells what is read; `None` when the pattern cannot be had in this form.
    counting: Option<DFA>,
}

/// What a search came upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hit {
    /// A match, and what of it is to be hidden.
    Match { all: Range<usize>, hidden: Range<usize> },
    /// The text from here on was not searched: the bound was reached.
    Unsearched { from: usize },
}

impl Own {
    pub fn new(pattern: &str) -> Result<Self, regex::Error> {
        let regex = RegexBuilder::new(pattern)
            .size_limit(REGEX_BYTES_MAX)
            .dfa_size_limit(REGEX_BYTES_MAX)
            .build()?;
        let bytes = syntax::Config::new().utf8(false);
        let counting = DFA::builder()
            .configure(
                hybrid::dfa::Config::new()
                    .unicode_word_boundary(true)
                    .cache_capacity(REGEX_BYTES_MAX)
                    .skip_cache_capacity_check(true),
            )
            .syntax(bytes)
            .thompson(
                thompson::Config::new()
                    .utf8(false)
                    .nfa_size_limit(Some(REGEX_BYTES_MAX)),
            )
            .build(pattern);
        Ok(Self {
            regex,
            bytes_max: syntax::parse_with(pattern, &bytes)
                .ok()
                .and_then(|hir| hir.properties().maximum_len()),
            counting: counting.ok(),
        })
    }

    pub fn as_str(&self) -> &str {
        self.regex.as_str()
    }

    pub fn matches_nothing(&self) -> bool {
        self.regex.is_match(b"")
    }

    /// Finds all, in the order of their beginnings.
    pub fn find(&self, text: &[u8], mut hit: impl FnMut(Hit)) {
        let most = READS_MAX * text.len() + READ_BYTES_MIN;
        let (mut at, mut charged) = (0, 0);
        let mut groups = None;
        while at <= text.len() && charged <= most {
            let Some(found) = self.regex.find_at(text, at) else {
                return;
            };
            let end = self.bytes_max.map_or(text.len(), |n| {
                text.len().min(found.end().saturating_add(n + LOOKAHEAD_BYTES))
            });
            charged += end - at;
            if self.regex.captures_len() > 1 {
                charged += end - found.start();
            }
            self.add(text, found.range(), &mut groups, &mut hit);
            at = next(&found.range());
        }
        if at < text.len() {
            self.find_counting(text, at, most, groups, hit);
        }
    }

    fn find_counting(
        &self,
        text: &[u8],
        mut at: usize,
        mut left: usize,
        mut groups: Option<CaptureLocations>,
        mut hit: impl FnMut(Hit),
    ) {
        let Some(dfa) = &self.counting else {
            return hit(Hit::Unsearched { from: at });
        };
        let mut cache = dfa.create_cache();
        while at <= text.len() {
            let Ok(end) = next_end(dfa, &mut cache, text, at, &mut left) else {
                return hit(Hit::Unsearched { from: at });
            };
            let Some(end) = end else { return };
            // With what the engine may look at behind it, and no more, the same match is there. A cut text may only have
            // others that end with it: then all up to the match's end is hidden.
            let seen = &text[..text.len().min(end + LOOKAHEAD_BYTES)];
            let found = self.regex.find_at(seen, at).map(|m| m.range());
            match found.filter(|f| f.end == end) {
                Some(found) => self.add(seen, found, &mut groups, &mut hit),
                None => hit(Hit::Match {
                    all: at..end,
                    hidden: at..end,
                }),
            }
            at = if end > at { end } else { at + 1 };
        }
    }

    /// Tells of a match; with groups, of what each of them matched.
    fn add(&self, text: &[u8], all: Range<usize>, groups: &mut Option<CaptureLocations>, hit: &mut impl FnMut(Hit)) {
        let mut any = false;
        if self.regex.captures_len() > 1 {
            let groups = groups.get_or_insert_with(|| self.regex.capture_locations());
            let found = self.regex.captures_read_at(groups, text, all.start);
            if found.is_some_and(|f| f.range() == all) {
                for (from, to) in (1..groups.len()).filter_map(|n| groups.get(n)) {
                    any = true;
                    if from < to {
                        hit(Hit::Match {
                            all: all.clone(),
                            hidden: from..to,
                        });
                    }
                }
            }
        }
        // A branch of the pattern without a group.
        if !any && !all.is_empty() {
            hit(Hit::Match {
                hidden: all.clone(),
                all,
            });
        }
    }
}

/// Where the search goes on; an empty match must not be found again.
fn next(found: &Range<usize>) -> usize {
    if found.is_empty() { found.end + 1 } else { found.end }
}

/// The bound was reached, or the automaton cannot read this text.
struct Stopped;

/// Where the first match from `at` on ends; `left` is what may be read.
fn next_end(
    dfa: &DFA,
    cache: &mut hybrid::dfa::Cache,
    text: &[u8],
    at: usize,
    left: &mut usize,
) -> Result<Option<usize>, Stopped> {
    let input = Input::new(text).range(at..);
    let mut state = dfa.start_state_forward(cache, &input).map_err(|_| Stopped)?;
    let mut end = None;
    for (i, byte) in text.iter().enumerate().skip(at) {
        *left = left.checked_sub(1).ok_or(Stopped)?;
        state = dfa.next_state(cache, state, *byte).map_err(|_| Stopped)?;
        if state.is_match() {
            // Automata tell of a match one byte late.
            end = Some(i);
        } else if state.is_dead() {
            return Ok(end);
        } else if state.is_quit() {
            return Err(Stopped);
        }
    }
    let state = dfa.next_eoi_state(cache, state).map_err(|_| Stopped)?;
    Ok(if state.is_match() { Some(text.len()) } else { end })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(pattern: &str, text: &str) -> Vec<Hit> {
        let mut all = vec![];
        Own::new(pattern).unwrap().find(text.as_bytes(), |hit| all.push(hit));
        all
    }

    #[test]
    fn a_pattern_that_reads_lines_again_and_again_is_stopped_and_the_rest_is_hidden() {
        let capitals = "A".repeat(16 * 1024);
        let got = found(".*[^A-Z]|[A-Z]", &capitals);
        let Some(Hit::Unsearched { from }) = got.last() else {
            panic!("{} matches", got.len())
        };
        assert_eq!(*from, got.len() - 1, "each letter before was a match");
        assert!((READS_MAX..3 * READS_MAX).contains(from), "{from}");
        // A short line is searched whole.
        assert_eq!(found(".*[^A-Z]|[A-Z]", &capitals[..60]).len(), 60);
    }

    #[test]
    fn many_matches_of_any_length_in_a_long_line_are_all_found() {
        let users = "user=kim ".repeat(4000);
        for pattern in [r"user=\S+", r"user=(\S+)", "user=[a-z]{3}", r"\buser=\S+"] {
            let got = found(pattern, &users);
            assert_eq!(got.len(), 4000, "{pattern}");
            assert!(got.iter().all(|h| matches!(h, Hit::Match { .. })), "{pattern}");
        }
    }

    #[test]
    fn a_pattern_that_looks_behind_its_match_hides_all_of_it_byte_by_byte() {
        let mut got = vec![];
        let own = Own::new(r"secret\B|t").unwrap();
        own.find_counting(b"secrets", 0, usize::MAX, None, |hit| got.push(hit));
        assert_eq!(
            got,
            [Hit::Match {
                all: 0..6,
                hidden: 0..6
            }]
        );
    }

    proptest! {
        /// Counting what is read finds the same as not counting.
        #[test]
        fn what_is_found_byte_by_byte_is_what_the_engine_finds(
            text in "[ab가 ]{0,40}", pattern in prop::sample::select(vec![
                "a+", "ab|a", "a|ab", "a.*b", "(?:a|ab)(?:b|$)", "가+?", "b$", "^a", "(a)|b(b)?", "[^a]b", "aab?", r"(?-u:\b)a", "a??b",
                r"ab(?-u:\B)|b", r"aa(?-u:\b)|a", r"(a)b(?-u:\B)|(b)",
            ]),
        ) {
            let own = Own::new(pattern).unwrap();
            let (mut fast, mut counted) = (vec![], vec![]);
            own.find(text.as_bytes(), |hit| fast.push(hit));
            own.find_counting(text.as_bytes(), 0, usize::MAX, None, |hit| counted.push(hit));
            prop_assert_eq!(fast, counted);
        }
    }
}

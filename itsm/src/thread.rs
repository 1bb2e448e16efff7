//! The conversation of a ticket: notes of people and one-line notes of the system, in the order in which they came.
//!
//! Bounded per ticket. People get an error at their bound; machines, which nobody can ask to stop, are counted
//! instead of kept (`Ticket::notes_left_out`).

use hindcast_model::TimestampNs;
use serde::{Deserialize, Serialize};

/// Entries that people may add to one ticket.
pub const NOTES_MAX: u32 = 2_000;
/// Entries that machines may add to one ticket.
pub const SYSTEM_NOTES_MAX: u32 = 500;
/// Bytes of one text.
pub const TEXT_BYTES_MAX: usize = 16 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// Written by a person.
    Note,
    /// Written by a rule.
    System,
}

impl EntryKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::System => "system",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadEntry {
    pub at: TimestampNs,
    pub actor: String,
    pub kind: EntryKind,
    pub text: String,
}

/// Text of a machine, cut at a character boundary so that it always fits.
pub fn shortened(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let mut end = bytes_max.saturating_sub('…'.len_utf8());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(shortened("긴급 상황", 100), "긴급 상황");
        let cut = shortened("긴급 상황", 9);
        assert_eq!(cut, "긴급…");
        assert!(cut.len() <= 9);
    }
}

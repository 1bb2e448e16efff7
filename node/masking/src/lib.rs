//! Personal data in lines: where it is, and how it is hidden.
//!
//! Masking happens where a node takes a write, before the line is encoded, replicated or written anywhere
//! ([decision 0019](../../../ops/decisions/0019-masking-before-the-log.md)). Pure: settings and bytes in, bytes out.
//! [`Masking`] is what is in force: shipped types with matchers written by hand ([`Kind`]), and types of an operator's
//! own, which are regular expressions. [`Masker`] is what of it counts for one tenant.
//!
//! A line without anything suspicious costs one walk over its bytes: a bitmap of its digits, whose runs tell what could
//! begin where; a search for `@`, `%` and `\`; and, when it is not ASCII, one for names of Korean districts. Text that is
//! escaped as in a URL (`%EC%84%9C`) or in JSON (`\uc11c`) is looked at a second time, unescaped.
//!
//! Promises
//! - What the matchers find is hidden, whatever else overlaps it, and at least half of a name in an e-mail address, six
//!   digits of a registration number, and so on: see [`Settings`].
//! - A hidden character becomes one mask character, one byte. What parts characters (blanks, hyphens) stays, except in
//!   e-mail addresses and types of one's own. No line grows; UTF-8 stays UTF-8, and JSON stays JSON.
//! - No shipped type finds anything in what was masked.
//! - Time is linear in the text, memory is bounded by it. Of one's own types a search may be worse: it is stopped, and
//!   what it did not get to is hidden whole and counted. See [`READS_MAX`].

mod address;
mod email;
mod escapes;
mod found;
#[doc(hidden)]
pub mod fuzz;
mod hide;
mod masker;
mod numbers;
mod own;
mod settings;
#[cfg(test)]
mod tests;
mod text;

pub use found::{Found, Kind};
pub use masker::{Counts, InForce, Masked, Masker, Masking, Session, TypeInForce};
pub use own::READS_MAX;
pub use settings::{
    CHARACTERS, CUSTOM_MAX, EXEMPT_MAX, Exemption, KEEP_MAX, NAME_BYTES_MAX, PATTERN_BYTES_MAX, REGEX_BYTES_MAX,
    Settings, SettingsError, TypeSettings,
};

//! What is masked, as an operator writes it: `[masking]` in the server's file.

use crate::found::Kind;
use crate::own::Own;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Types beside the shipped ones.
pub const CUSTOM_MAX: usize = 32;
// Sets of types are bits of 64.
const _: () = assert!(Kind::ALL.len() + CUSTOM_MAX <= 64);
/// Bytes of a pattern.
pub const PATTERN_BYTES_MAX: usize = 1024;
/// What a compiled pattern may take of memory, and its cache.
pub const REGEX_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of a type's name.
pub const NAME_BYTES_MAX: usize = 40;
/// Tenants with exemptions.
pub const EXEMPT_MAX: usize = 1000;
/// Characters that a type beside the shipped ones may keep on either side.
pub const KEEP_MAX: usize = 64;

/// Characters that may stand for hidden ones: one byte, so that a line never grows; no part of any shipped type, so
/// that what was masked is not found again; harmless in JSON, logfmt and URLs.
pub const CHARACTERS: &str = "*#!?^~$";

/// `[masking]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    pub on: bool,
    /// What stands for a hidden character.
    pub character: char,
    /// `[[masking.type]]`: changes of shipped types, and types of one's own.
    #[serde(rename = "type")]
    pub types: Vec<TypeSettings>,
    /// `[[masking.exempt]]`: tenants whose lines stay as they are.
    pub exempt: Vec<Exemption>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            on: true,
            character: '*',
            types: vec![],
            exempt: vec![],
        }
    }
}

/// One type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TypeSettings {
    /// A shipped name, or a new one.
    pub name: String,
    pub on: Option<bool>,
    /// A regular expression. With groups, only what they matched is hidden.
    pub pattern: Option<String>,
    pub character: Option<char>,
    /// Letters and digits that stay at the beginning, with groups of each; of an address, administrative parts.
    pub keep_first: Option<usize>,
    /// Letters and digits that stay at the end.
    pub keep_last: Option<usize>,
}

/// A tenant that some or all types leave alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Exemption {
    pub tenant: String,
    /// Names; none: all.
    pub types: Vec<String>,
}

/// Settings that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    #[error("masking: {given:?} cannot stand for hidden characters; choose one of {CHARACTERS}")]
    Character { given: char },
    #[error("masking type {name:?}: a name is up to {NAME_BYTES_MAX} of a-z, 0-9, _ and -, and begins with a letter")]
    Name { name: String },
    #[error("masking type {name:?} is given twice; keep one of them")]
    Twice { name: String },
    #[error(
        "masking type {name:?} is shipped and has a matcher of its own; give your pattern another name and switch {name} off"
    )]
    ShippedPattern { name: String },
    #[error(
        "masking type {name:?} is not shipped and needs a pattern; shipped are {}",
        shipped()
    )]
    NoPattern { name: String },
    #[error("masking type {name:?}: the pattern takes {bytes} bytes, more than {PATTERN_BYTES_MAX}; split it")]
    PatternTooLong { name: String, bytes: usize },
    #[error("masking type {name:?}: the pattern cannot be used: {why}")]
    Pattern { name: String, why: String },
    #[error("masking type {name:?}: the pattern matches the empty text and would match everywhere; make it longer")]
    MatchesNothing { name: String },
    #[error("masking type {name:?} keeps too much: {rule}")]
    Keep { name: String, rule: &'static str },
    #[error("masking: {given} types beside the shipped ones, more than {CUSTOM_MAX}; join patterns with |")]
    TooMany { given: usize },
    #[error("masking: {given} exemptions, more than {EXEMPT_MAX}")]
    TooManyExempt { given: usize },
    #[error("masking exemption of tenant {tenant:?}: {why}")]
    Exempt { tenant: String, why: String },
}

fn shipped() -> String {
    Kind::ALL.map(Kind::name).join(", ")
}

/// What finds a type.
#[derive(Clone, Debug)]
pub(crate) enum Finder {
    Shipped(Kind),
    Pattern(Arc<Own>),
}

/// A type that was checked.
#[derive(Clone, Debug)]
pub(crate) struct Type {
    pub name: String,
    pub on: bool,
    pub finder: Finder,
    pub character: u8,
    pub keep_first: Option<usize>,
    pub keep_last: Option<usize>,
}

impl Settings {
    /// The shipped types in their order, then the others in theirs.
    pub(crate) fn checked(&self) -> Result<Vec<Type>, SettingsError> {
        let character = byte_of(self.character)?;
        let mut names = BTreeSet::new();
        for t in &self.types {
            if !names.insert(t.name.as_str()) {
                return Err(SettingsError::Twice { name: t.name.clone() });
            }
        }
        let given = |name: &str| self.types.iter().find(|t| t.name == name);
        let mut types = vec![];
        for kind in Kind::ALL {
            let none = TypeSettings::default();
            let t = given(kind.name()).unwrap_or(&none);
            if t.pattern.is_some() {
                return Err(SettingsError::ShippedPattern { name: t.name.clone() });
            }
            check_keep(kind, t)?;
            types.push(Type {
                name: kind.name().to_owned(),
                on: t.on.unwrap_or(true),
                finder: Finder::Shipped(kind),
                character: t.character.map_or(Ok(character), byte_of)?,
                keep_first: t.keep_first,
                keep_last: t.keep_last,
            });
        }
        let is_shipped = |t: &&TypeSettings| Kind::ALL.iter().any(|k| k.name() == t.name);
        let customs: Vec<_> = self.types.iter().filter(|t| !is_shipped(t)).collect();
        if customs.len() > CUSTOM_MAX {
            return Err(SettingsError::TooMany { given: customs.len() });
        }
        for t in customs {
            types.push(Type {
                name: checked_name(&t.name)?,
                on: t.on.unwrap_or(true),
                finder: Finder::Pattern(Arc::new(checked_pattern(t)?)),
                character: t.character.map_or(Ok(character), byte_of)?,
                keep_first: Some(t.keep_first.unwrap_or(0)),
                keep_last: Some(t.keep_last.unwrap_or(0)),
            });
        }
        Ok(types)
    }
}

fn byte_of(given: char) -> Result<u8, SettingsError> {
    match u8::try_from(given) {
        Ok(byte) if CHARACTERS.contains(given) => Ok(byte),
        _ => Err(SettingsError::Character { given }),
    }
}

fn checked_name(name: &str) -> Result<String, SettingsError> {
    let fits = name.len() <= NAME_BYTES_MAX
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b));
    fits.then(|| name.to_owned())
        .ok_or_else(|| SettingsError::Name { name: name.to_owned() })
}

fn checked_pattern(t: &TypeSettings) -> Result<Own, SettingsError> {
    let name = || t.name.clone();
    let pattern = t
        .pattern
        .as_deref()
        .ok_or_else(|| SettingsError::NoPattern { name: name() })?;
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(SettingsError::PatternTooLong {
            name: name(),
            bytes: pattern.len(),
        });
    }
    let own = Own::new(pattern).map_err(|e| SettingsError::Pattern {
        name: name(),
        why: e.to_string(),
    })?;
    if own.matches_nothing() {
        return Err(SettingsError::MatchesNothing { name: name() });
    }
    let keeps = |k: Option<usize>| k.is_none_or(|k| k <= KEEP_MAX);
    if !keeps(t.keep_first) || !keeps(t.keep_last) {
        return Err(SettingsError::Keep {
            name: name(),
            rule: "keep_first and keep_last are at most 64",
        });
    }
    Ok(own)
}

/// So much at most stays of a shipped type that the rest is no match, and nobody's number.
fn check_keep(kind: Kind, t: &TypeSettings) -> Result<(), SettingsError> {
    let (first, last) = (t.keep_first.unwrap_or(0), t.keep_last.unwrap_or(0));
    let together = first.saturating_add(last);
    let (fits, rule) = match kind {
        Kind::Rrn => (
            together <= 7,
            "of a registration number at most 7 digits: the birthday and the sex",
        ),
        Kind::Phone => (together <= 7, "of a phone number at most 7 digits"),
        Kind::Card => (together <= 10, "of a card number at most 10 digits"),
        Kind::Passport => (together <= 5, "of a passport number at most 5 characters"),
        Kind::Email => (
            first <= KEEP_MAX && last == 0,
            "of an e-mail address keep_first says how many letters stay before the @ (never more than half); keep_last = 0 hides the domain",
        ),
        Kind::Address => (
            first <= 3 && t.keep_last.is_none(),
            "of an address keep_first says how many administrative parts stay, at most 3, and nothing stays at the end",
        ),
    };
    if fits {
        Ok(())
    } else {
        Err(SettingsError::Keep {
            name: kind.name().to_owned(),
            rule,
        })
    }
}

//! What was found, and where.

use std::ops::Range;

/// The shipped types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Resident registration number, also of foreigners.
    Rrn,
    Phone,
    Email,
    Card,
    Address,
    Passport,
}

impl Kind {
    pub const ALL: [Self; 6] = [
        Self::Rrn,
        Self::Phone,
        Self::Email,
        Self::Card,
        Self::Address,
        Self::Passport,
    ];

    /// Its name in configuration, metrics and answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rrn => "rrn",
            Self::Phone => "phone",
            Self::Email => "email",
            Self::Card => "card",
            Self::Address => "address",
            Self::Passport => "passport",
        }
    }

    /// What it finds, for people.
    pub const fn finds(self) -> &'static str {
        match self {
            Self::Rrn => "resident registration numbers, also of foreigners, with or without the hyphen",
            Self::Phone => "Korean mobile and landline numbers, 070, 050x and +82, in blocks or in one",
            Self::Email => "e-mail addresses",
            Self::Card => "card numbers of 13 to 19 digits, in blocks of four or in one",
            Self::Address => "Korean addresses by road or by lot, from the district on",
            Self::Passport => "numbers of Korean passports, of both forms",
        }
    }

    /// What stays when nothing else is said.
    pub const fn keeps(self) -> &'static str {
        match self {
            Self::Rrn => "the birthday",
            Self::Phone => "the first and the last block",
            Self::Email => "up to two letters, and the domain",
            Self::Card => "the first six and the last four digits",
            Self::Address => "province, city and district",
            Self::Passport => "the letter",
        }
    }
}

/// One match. Places are bytes of the text that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Place of the type among those in force: shipped ones first.
    pub of: u16,
    pub start: usize,
    pub end: usize,
    /// What is hidden of it begins here,
    pub from: usize,
    /// and ends here.
    pub to: usize,
    /// It is no match, but what could not be searched for an own type within its bound.
    pub unsearched: bool,
}

impl Found {
    pub(crate) const fn new(kind: Kind, at: Range<usize>, hidden: Range<usize>) -> Self {
        Self {
            of: kind as u16,
            start: at.start,
            end: at.end,
            from: hidden.start,
            to: hidden.end,
            unsearched: false,
        }
    }
}
